"""The ``guider`` block: every key with its type, its range, its default and its meaning."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from recbole_guider.amsc import CalibrationSettings
from recbole_guider.utils.settings import NonNegative, Positive, Settings, SwitchedSettings, UnitInterval

#: What items that a user interacted with are when they are drawn as negatives.
OwnAs = Literal["ignore", "negative"]


class DBPRSettings(Settings):
    """``guider.dbpr``: the teacher's loss."""

    form: Literal["pairwise", "softmax"] = Field(
        default="softmax",
        description="softmax: many negatives shared by the batch, cosine scores; pairwise: one negative",
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
        default=0.0,
        description="the power of the model's own probability that an interaction weighs by besides its clean "
        "probability; 0: all alike; R-CE has .25",
    )
    own_as: OwnAs = Field(
        default="negative",
        description="a user's own items among the negatives, softmax form: negative, as in a softmax over the "
        "catalogue, or ignore. The pairwise form ignores them",
    )


class DistillationSettings(Settings):
    """``guider.distillation``: what the student learns from the teacher."""

    objective: Literal["ot", "kl", "none"] = Field(
        default="ot",
        description="ot: optimal transport; kl: Kullback-Leibler divergence on the teacher's 50 best items and 200 "
        "random ones, without transport; none",
    )
    cost: Literal["auto", "kl", "cosine", "scores"] = Field(
        default="auto",
        description="how the scores of two users compare over the catalogue. kl: by the divergence of their softmax, "
        "which what the teacher ranks high decides; cosine: all items count alike; scores: squared "
        "difference; auto: kl where student and teacher are both ranked by cosines (as DBPR trains them), "
        "cosine elsewhere",
    )
    temperature: Positive | None = Field(
        default=None,
        description="divides the scores that kl compares; null: dbpr.temperature for objective kl, half of it for "
        "cost kl",
    )
    plan: Literal["anchored", "batch", "identity"] = Field(
        default="anchored",
        description="anchored: a user's mass may flow to similar users at a price; batch: free; identity: not at all. "
        "At the default price anchored is the identity, and computed as such",
    )
    anchor: NonNegative = Field(default=1.0, description="that price")
    weight: NonNegative = Field(default=1.0, description="the weight of the distillation loss")
    epsilon: Positive = Field(default=0.05, description="the entropic regularisation of the plan")
    iterations: Annotated[int, Field(ge=1)] = Field(
        default=20, description="sinkhorn iterations; the plan is rounded to its marginals after them"
    )
    users: Annotated[int, Field(ge=2)] = Field(
        default=256, description="the number of users of a batch that are compared"
    )
    interval: Annotated[int, Field(ge=1)] = Field(
        default=2,
        description="distil in the first of every interval batches, with that many times the weight (balance: fixed; "
        "min_norm weighs the losses in those batches alone)",
    )
    balance: Literal["fixed", "min_norm"] = Field(
        default="fixed", description="fixed: by weight; min_norm: by the gradients of the two losses"
    )


class GuiderSettings(SwitchedSettings):
    """The whole ``guider`` block. Immutable; ``properties/guider.yaml`` shows the same keys and defaults."""

    block_name = "guider"

    variant: Literal["project", "released"] = Field(
        default="project",
        description="project: the method of docs/method.md; released: what the published GUIDER code does",
    )
    teacher: Annotated[str, Field(min_length=1)] = Field(
        default="LightGCN",
        description="any general recommender that is trained by gradients. One that scores whole rows only "
        "(autoencoders) learns from its own loss, any other one from DBPR",
    )
    teacher_parameters: dict[str, Any] = Field(
        default_factory=dict,
        description="the teacher's hyper-parameters. What is not named follows the run where it is a setting of all "
        "models (learning_rate, embedding_size, ..) or where the student is the same model, and keeps the "
        "teacher's own default elsewhere",
    )
    calibration: CalibrationSettings = CalibrationSettings()
    dbpr: DBPRSettings = DBPRSettings()
    distillation: DistillationSettings = DistillationSettings()
    teacher_loss: Literal["dbpr", "own"] = Field(
        default="dbpr",
        description="dbpr: the calibrated loss; own: the teacher's own loss, and an epoch takes each interaction with "
        "its clean probability",
    )
    student_loss: Literal["auto", "own", "dbpr"] = Field(
        default="auto",
        description="own: the backbone's loss; dbpr: the calibrated loss in place of its ranking loss; auto: dbpr "
        "where a model keeps its ranking loss apart (this package's models do, and LightGCN), own "
        "elsewhere",
    )
    student_weighting: Literal["resample", "weight", "none"] = Field(
        default="resample",
        description="what the backbone's own loss makes of clean probabilities. resample: an epoch takes each "
        "interaction with that probability; weight: its BPR terms are weighted, where they can be had one "
        "by one; none: it takes all alike. Histories that an autoencoder learns whole are weighted under "
        "resample and weight",
    )
    schedule: Literal["in_sync", "pretrained"] = Field(
        default="in_sync", description="in_sync: teacher and student in every epoch; pretrained: the teacher first"
    )

    def to_dict(self) -> dict[str, Any]:
        """All keys with their values as plain Python, nested like the block."""
        return self.model_dump()
