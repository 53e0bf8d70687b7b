"""The ``denoising`` block: a method to compare GUIDER with, its parameters, and the loss form it works on."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from recbole_guider.guider.settings import OwnAs
from recbole_guider.utils.settings import Count, NonNegative, Positive, Settings, Share

LossForm = Literal["bpr", "bce", "softmax"]


class DenoisingSettings(Settings):
    """What every method has. The parameters of a method, in a subclass, have its authors' defaults."""

    method: str
    loss_form: Literal["own", "bpr", "bce", "softmax"] = Field(
        default="own", description="the loss that the method changes; own: the one of its authors"
    )
    temperature: Positive = Field(default=0.2, description="divides the cosine scores of the softmax form")
    negatives: Count = Field(default=512, description="negatives shared by a batch, softmax form")
    own_as: OwnAs = Field(
        default="negative", description="what a user's own items among those negatives count as"
    )

    #: the loss form of the method's authors
    own_form: ClassVar[LossForm] = "bpr"

    @property
    def form(self) -> LossForm:
        """The loss form with ``own`` replaced by the method's own."""
        return self.own_form if self.loss_form == "own" else self.loss_form

    def to_dict(self) -> dict[str, Any]:
        """All keys with their values as plain Python."""
        return self.model_dump()


def expanded(block: Any) -> Any:
    """``denoising: <name>``, the short form, as the block it stands for; anything else as it is."""
    return {"method": block} if isinstance(block, str) else block


#: Keys of every method: they stay when a later source names another method.
COMMON_KEYS = tuple(key for key in DenoisingSettings.model_fields if key != "method")


class NoneSettings(DenoisingSettings):
    """No denoising: the backbone on another loss form, to compare with."""

    method: Literal["none"] = Field(default="none", description="the backbone itself")


class TCESettings(DenoisingSettings):
    """T-CE; see :mod:`recbole_guider.denoising.truncated`."""

    own_form: ClassVar[LossForm] = "bce"
    method: Literal["t-ce"] = Field(default="t-ce", description="truncated cross-entropy")
    drop_rate: Share = Field(default=0.1, description="the share of the observed interactions that is dropped")
    steps: Count = Field(default=30_000, description="batches over which the share grows from 0")


class TBPRSettings(DenoisingSettings):
    """T-BPR; see :mod:`recbole_guider.denoising.truncated`."""

    method: Literal["t-bpr"] = Field(default="t-bpr", description="truncated BPR")
    drop_rate: Share = Field(default=0.1, description="the share of the observed interactions that is dropped")
    steps: Count = Field(default=20_000, description="batches over which the share grows from 0")


class RCESettings(DenoisingSettings):
    """R-CE; see :mod:`recbole_guider.denoising.reweighted`."""

    own_form: ClassVar[LossForm] = "bce"
    method: Literal["r-ce"] = Field(default="r-ce", description="reweighted cross-entropy")
    beta: NonNegative = Field(default=0.25, description="the exponent of the weights; 0: no weights")


class DCFSettings(DenoisingSettings):
    """DCF; see :mod:`recbole_guider.denoising.dcf`."""

    own_form: ClassVar[LossForm] = "bce"
    method: Literal["dcf"] = Field(default="dcf", description="double correction framework")
    drop_rate: Share = Field(default=0.2, description="the share of the observed interactions that is taken out")
    steps: Count = Field(default=30_000, description="batches over which the share grows from 0")
    relabel_rate: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] = Field(
        default=0.05, description="the part of that share that is relabelled instead of dropped"
    )
    window: Count = Field(default=3, description="epochs over which losses are averaged")
    co_lambda: Share = Field(default=1e-4, description="the width of the confidence bound")


class DeCASettings(DenoisingSettings):
    """DeCA; see :mod:`recbole_guider.denoising.deca`."""

    own_form: ClassVar[LossForm] = "bce"
    method: Literal["deca"] = Field(default="deca", description="denoising with cross-model agreement")
    alpha: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] = Field(
        default=1.0, description="the weight of KL(auxiliary || backbone) against the other direction"
    )
    c1: NonNegative = Field(default=1000.0, description="the cost of calling a sampled item a true interaction")
    c2: NonNegative = Field(default=10.0, description="the cost of calling an observed interaction noise")
    embedding_size: Count = Field(default=32, description="the size of the three auxiliary models")


class SGDLSettings(DenoisingSettings):
    """SGDL; see :mod:`recbole_guider.denoising.sgdl`."""

    method: Literal["sgdl"] = Field(default="sgdl", description="self-guided denoising learning")
    history: Count = Field(default=10, description="epochs in the memorisation history")
    hidden: Count = Field(default=100, description="hidden units of the network that weighs losses")
    tau: Positive = Field(default=1.0, description="the temperature of the scheduler's Gumbel softmax")
    meta_learning_rate: Positive = Field(default=5e-4, description="learning rate of the network that weighs losses")
    scheduler_learning_rate: Positive = Field(default=5e-3, description="learning rate of the scheduler")
    meta_batch: Count = Field(default=128, description="memorised interactions that a step learns from")


class BODSettings(DenoisingSettings):
    """BOD; see :mod:`recbole_guider.denoising.bod`."""

    method: Literal["bod"] = Field(default="bod", description="bi-level optimisation for denoising")
    alignment: NonNegative = Field(default=1.0, description="the weight of the weighted alignment")
    uniformity: NonNegative = Field(default=0.5, description="the weight of the uniformity")
    hidden: Count = Field(default=64, description="hidden units of the weight generator")
    generator_learning_rate: Positive = Field(default=1e-3, description="learning rate of the weight generator")
    outer_steps: Count = Field(default=1, description="steps of the weight generator after an epoch")


class DAMRSSettings(DenoisingSettings):
    """DA-MRS's denoised BPR; see :mod:`recbole_guider.denoising.damrs`."""

    method: Literal["da-mrs"] = Field(default="da-mrs", description="the denoised BPR of DA-MRS")
    neighbours: Count = Field(default=10, description="the most similar items of an item in each graph")
    contrast: NonNegative = Field(default=0.001, description="the weight of the neighbour contrast")
    contrast_temperature: Positive = Field(default=0.2, description="divides the cosines of the neighbour contrast")
    alignment: NonNegative = Field(default=1.0, description="the weight of the symmetric KL divergence")
    sample: Count = Field(default=512, description="users and items of a batch that both terms are computed on")
