"""The settings of what an experiment does to its training data: ``noise``, for any model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from recbole_guider.utils.errors import GuiderError
from recbole_guider.utils.settings import NonNegative, Settings, UnitInterval, validated

#: The keys of the noise block that say how much.
AMOUNTS = ("interactions", "deleted", "features", "gaussian")


class NoiseSettings(Settings):
    """``noise``, for any model: what an experiment does to the training data. ``guider.noise`` is another spelling."""

    interactions: NonNegative = Field(default=0.0, description="random pairs to add, as a share of the training pairs")
    users: Literal["activity", "uniform"] = Field(
        default="activity",
        description="how added pairs draw users: by activity, or uniform over the users with training pairs",
    )
    items: Literal["popularity", "uniform", "clickbait"] = Field(
        default="popularity",
        description="how they draw items: by popularity, uniform over the catalogue, or clickbait: from few",
    )
    clickbait_items: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] = Field(
        default=0.01, description="the share of the catalogue that clickbait draws from"
    )
    deleted: Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)] = Field(
        default=0.0, description="the share of the training pairs that is taken out"
    )
    features: UnitInterval | dict[str, UnitInterval] = Field(
        default=0.0, description="the share of items whose features are shuffled"
    )
    gaussian: UnitInterval | dict[str, UnitInterval] = Field(
        default=0.0, description="the share of items whose features are replaced by Gaussian noise"
    )
    recorded: str | None = Field(
        default=None,
        description="a file of training pairs that are known to be noise (recbole-guider noise writes one)",
    )
    seed: Annotated[int, Field(ge=0)] = Field(default=2020, description="the seed of all of it")

    @classmethod
    def from_block(cls, block: Mapping[str, Any] | None) -> NoiseSettings:
        """The settings that a configuration's ``noise`` stands for.

        Args:
            block: a mapping with any part of the keys; None for no noise.

        Raises:
            GuiderError: a key that does not exist, a value of another type or out of range.
        """
        if block is not None and not isinstance(block, Mapping):
            raise GuiderError(f"noise is {block!r}: it is a block of keys ({', '.join(cls.model_fields)}).")
        return validated(cls, block or {}, "noise")
