"""The ``guider`` block: every key with its type, its range, its default and its meaning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from recbole_guider.amsc.settings import CalibrationSettings
from recbole_guider.data.settings import NoiseSettings
from recbole_guider.utils.errors import GuiderError
from recbole_guider.utils.settings import NonNegative, Positive, Settings, UnitInterval, validated

#: What items that a user interacted with are when they are drawn as negatives.
OwnAs = Literal["ignore", "negative"]


class DBPRSettings(Settings):
    """``guider.dbpr``: the teacher's loss."""

    form: Literal["pairwise", "softmax"] = Field(
        default="softmax", description="one negative, or many shared by the batch"
    )
    temperature: Positive = Field(default=0.2, description="divides the cosine scores of the softmax form")
    negatives: Annotated[int, Field(ge=1)] = Field(default=512, description="negatives shared by a batch, softmax form")
    batch_size: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="interactions in a batch of this loss; null: train_batch_size"
    )
    soft: bool = Field(default=True, description="weigh by the clean probability; false: by 0 or 1")
    eta: NonNegative = Field(default=0.1, description="the weight of ranking true items above false ones")
    gamma: NonNegative = Field(default=0.0, description="the weight of ranking false items below the negatives")
    robustness: UnitInterval = Field(
        default=0.0, description="the power of its probability that an interaction weighs by; 0: all alike"
    )
    own_as: OwnAs = Field(
        default="negative", description="what a user's own items among the negatives count as, softmax form"
    )


class DistillationSettings(Settings):
    """``guider.distillation``: what the student learns from the teacher."""

    objective: Literal["ot", "kl", "none"] = Field(
        default="ot", description="optimal transport, KL divergence, or nothing"
    )
    cost: Literal["auto", "kl", "cosine", "scores"] = Field(
        default="auto", description="how two users' scores compare; auto: kl for cosines, cosine elsewhere"
    )
    temperature: Positive | None = Field(
        default=None,
        description="divides the scores that KL compares; null: dbpr.temperature, and half of it for cost kl",
    )
    plan: Literal["anchored", "batch", "identity"] = Field(
        default="anchored",
        description="transport at a price, free, or none; at the default price anchored is the identity, and as cheap",
    )
    anchor: NonNegative = Field(default=1.0, description="the price of moving mass to another user")
    weight: NonNegative = Field(default=1.0, description="the weight of the distillation loss")
    epsilon: Positive = Field(default=0.05, description="the entropic regularisation of the plan")
    iterations: Annotated[int, Field(ge=1)] = Field(default=20, description="Sinkhorn iterations")
    users: Annotated[int, Field(ge=2)] = Field(default=256, description="the users of a batch that are compared")
    interval: Annotated[int, Field(ge=1)] = Field(
        default=2,
        description="distil in the first of every interval batches, with that many times the weight (fixed balance)",
    )
    balance: Literal["fixed", "min_norm"] = Field(default="fixed", description="by weight, or by the losses' gradients")


class GuiderSettings(Settings):
    """The whole ``guider`` block. Immutable; ``properties/guider.yaml`` shows the same keys and defaults."""

    variant: Literal["project", "released"] = Field(
        default="project", description="this project's method, or what the published code does"
    )
    teacher: Annotated[str, Field(min_length=1)] = Field(default="LightGCN", description="the teacher's model")
    teacher_parameters: dict[str, Any] = Field(default_factory=dict, description="the teacher's hyper-parameters")
    calibration: CalibrationSettings = CalibrationSettings()
    dbpr: DBPRSettings = DBPRSettings()
    distillation: DistillationSettings = DistillationSettings()
    teacher_loss: Literal["dbpr", "own"] = Field(
        default="dbpr", description="the calibrated loss, or the teacher's own on what counts as clean"
    )
    student_loss: Literal["auto", "own", "dbpr"] = Field(
        default="auto", description="the backbone's loss, or the calibrated one in place of its ranking loss; auto: "
        "the latter where the model keeps its ranking loss apart"
    )
    student_weighting: Literal["resample", "weight", "none"] = Field(
        default="resample", description="how the backbone's own loss sees clean probabilities"
    )
    schedule: Literal["in_sync", "pretrained"] = Field(
        default="in_sync", description="both each epoch, or the teacher first"
    )
    noise: NoiseSettings = NoiseSettings()
    eval_mask: Literal["recbole", "mmrec"] = Field(
        default="recbole", description="hidden at test: training and validation items, or training items only"
    )

    @classmethod
    def from_block(cls, block: Mapping[str, Any] | bool | None) -> GuiderSettings | None:
        """The settings that a configuration's ``guider`` value stands for.

        Args:
            block: a mapping with any part of the keys (the others keep their defaults; a nested block that is
                null counts as not given); True for all defaults; False or None for the plain model.

        Returns:
            The settings, or None for the plain model.

        Raises:
            GuiderError: a key that does not exist, a value of another type or out of range; the message names
                the dotted key, the value and what is allowed.
        """
        if block is None or block is False:
            return None
        if block is True:
            return cls()
        if not isinstance(block, Mapping):
            raise GuiderError(
                f"guider is {block!r}: give true, false or a block of keys ({', '.join(cls.model_fields)})."
            )
        return validated(cls, block, "guider")

    def to_dict(self) -> dict[str, Any]:
        """All keys with their values as plain Python, nested like the block."""
        return self.model_dump()
