"""The settings that this package adds to RecBole's for all models; ``properties/overall.yaml`` is made of them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from recbole_guider.utils.settings import AllowedValues, NonNegative, Settings

_Block = dict[str, Any]


class OverallSettings(Settings):
    """What stands at the top level of a property file, beside RecBole's own settings."""

    guider: Annotated[bool | _Block, AllowedValues("true, false or a block of keys")] = Field(
        default=False, description="GUIDER around the model, with the block's settings; false: the plain model"
    )
    denoising: Annotated[bool | str | _Block, AllowedValues("false, the name of a method or a block of keys")] = Field(
        default=False, description="a denoising method to compare with: its name, or a block with method and its keys"
    )
    modalities: _Block | None = Field(
        default=None,
        description="item content: name -> {file: x.npy, ids: tokens.txt} or {columns: [..], encoder: .., dim: ..}",
    )
    device: Annotated[str, AllowedValues("auto, cpu, cuda or cuda:N")] = Field(
        default="auto", description="where to compute; auto: on CUDA where there is one (and use_gpu is not False)"
    )
    backend: Literal["auto", "nccl", "gloo"] = Field(
        default="auto", description="communication of several processes; auto: nccl on CUDA, gloo on a CPU"
    )
    eval_memory_mb: NonNegative = Field(
        default=256, description="MiB for one batch of full-sort scores; 0: RecBole's own batches"
    )
    eval_mask: Literal["recbole", "mmrec"] = Field(
        default="recbole",
        description="what is hidden at test. recbole: training and validation items; mmrec: training items only",
    )
    noise: _Block | None = Field(
        default=None, description="done to training data, for experiments: {interactions: 0.2, ..}"
    )
    import_: Annotated[str | list[str] | None, AllowedValues("a name, a list of names or null")] = Field(
        default=None,
        alias="import",
        description="Python files (from the folder of the file that names them), or modules, that register models and "
        "denoising methods of your own",
    )
    mirror_gradient: Annotated[bool | _Block | None, AllowedValues("null, true or a block of keys")] = Field(
        default=None,
        description="every interval-th batch takes two steps, down its loss and less far back up, towards flatter "
        "minima; null: off, true: all defaults",
    )
