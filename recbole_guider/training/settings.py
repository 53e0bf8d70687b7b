"""The settings of training beside RecBole's own: ``mirror_gradient``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import Field

from recbole_guider.utils.errors import GuiderError
from recbole_guider.utils.settings import NonNegative, Positive, SwitchedSettings


class MirrorGradientSettings(SwitchedSettings):
    """``mirror_gradient``, a key of its own beside the ``guider`` block: every ``interval``-th batch takes a step down
    its loss and a smaller one back up. ``properties/overall.yaml`` shows the same keys and defaults.
    """

    block_name, off = "mirror_gradient", "null"

    interval: Annotated[int, Field(ge=1)] = Field(default=3, description="the batches from one mirrored to the next")
    alpha: Positive = Field(default=1.0, description="the weight of the loss in the first step, down")
    beta: NonNegative = Field(default=0.2, description="the weight of the loss in the second step, up; below alpha")

    @classmethod
    def from_block(cls, block: Mapping[str, Any] | bool | None) -> Self | None:
        """The settings that a configuration's ``mirror_gradient`` stands for.

        Raises:
            GuiderError: as every block, and where ``beta`` is not below ``alpha``.
        """
        settings = super().from_block(block)
        if settings is not None and settings.beta >= settings.alpha:
            raise GuiderError(
                f"mirror_gradient.beta is {settings.beta}: it must be below mirror_gradient.alpha, which is "
                f"{settings.alpha}, or training would climb."
            )
        return settings
