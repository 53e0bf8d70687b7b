"""This package's own settings in a merged configuration: checked, and completed by their defaults."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from recbole_guider.config.registry import PREFIX, check_trainable, get_model_class
from recbole_guider.config.settings import OverallSettings
from recbole_guider.config.validation import check_teacher_parameters
from recbole_guider.data.settings import NoiseSettings
from recbole_guider.denoising.settings import DenoisingSettings
from recbole_guider.guider.settings import GuiderSettings
from recbole_guider.training.settings import MirrorGradientSettings
from recbole_guider.utils.errors import GuiderError
from recbole_guider.utils.settings import check_part


def complete_blocks(
    final: dict[str, Any], guider_on: bool, denoising: DenoisingSettings | None
) -> GuiderSettings | None:
    """Check ``guider``, ``noise``, ``eval_mask`` and ``mirror_gradient`` of the merged settings ``final``, and write
    them out in full there. Where GUIDER is on, its block shows ``noise`` and ``eval_mask`` as well. A modality that
    is null or false is none.

    Returns:
        The settings of the guider block; None for a plain model.

    Raises:
        GuiderError: the message names the key, the value and what is allowed.
    """
    check_part(OverallSettings, {"eval_mask": final["eval_mask"]}, "")
    final["noise"] = NoiseSettings.from_block(final["noise"]).model_dump()
    final["denoising"] = False if denoising is None else denoising.to_dict()
    block, final["guider"], settings = final["guider"], False, None
    if guider_on:
        settings = GuiderSettings.from_block(True if block is None or block is False else block)
        assert settings is not None  # neither None nor False
        final["guider"] = {**settings.to_dict(), "noise": final["noise"], "eval_mask": final["eval_mask"]}
        _check_teacher(settings)
    if isinstance(final["modalities"], Mapping):
        modalities = final["modalities"].items()
        final["modalities"] = {name: block for name, block in modalities if block is not None and block is not False}
    mirror_gradient = MirrorGradientSettings.from_block(final["mirror_gradient"])
    final["mirror_gradient"] = None if mirror_gradient is None else mirror_gradient.model_dump()
    return settings


def _check_teacher(settings: GuiderSettings) -> None:
    """Raise unless the teacher is a model that can teach, with parameters that it has."""
    name = settings.teacher
    try:
        if name.startswith(PREFIX):
            raise GuiderError(f"{name} is a denoised model; name {name.removeprefix(PREFIX)}.")
        check_trainable(get_model_class(name), "a teacher is one of the")
    except GuiderError as error:
        raise GuiderError(f"guider.teacher: {error}") from error
    if settings.variant == "released":
        name = "FREEDOM"
    check_teacher_parameters(settings.teacher_parameters, name, get_model_class(name))
