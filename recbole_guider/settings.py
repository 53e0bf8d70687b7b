"""The guider and mirror_gradient blocks: every key with its type, its range, its default and its meaning."""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin

import numpy as np
from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo

from recbole_guider.errors import GuiderError, nearest

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
UnitInterval = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class Words(NamedTuple):
    """Put into an annotation: what values it takes, in words, where its type does not say it well."""

    words: str


#: The name of the behaviour modality among AMSC's weights and evidence.
BEHAVIOUR = "behaviour"


class Settings(BaseModel):
    """A block of settings: typed, immutable, without unknown keys. The base of every block of this package."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class CalibrationSettings(Settings):
    """``guider.calibration``: which interactions are clean (AMSC)."""

    method: Literal["amsc", "none"] = Field(default="amsc", description="none: every interaction counts as clean")
    modalities: Literal["all"] | list[str] = Field(default="all", description="the modalities that are compared")
    confidence: Literal["relative", "shared", "none"] = Field(
        default="relative",
        description="how an item's own modalities are compared: by anchor items, by plain cosine, or not at all",
    )
    weights: Literal["adaptive", "uniform"] = Field(
        default="adaptive", description="how much each modality counts: by how well it separates, or all alike"
    )
    aggregation: Literal["mean", "topk"] = Field(
        default="mean", description="how a profile's similarities are summed up"
    )
    topk: Annotated[int, Field(ge=1)] = Field(default=5, description="the most similar items that topk keeps")
    decision: Literal["lfdr", "quantile", "zscore"] = Field(
        default="lfdr", description="how scores become probabilities"
    )
    null_items: Literal["popularity", "uniform"] = Field(default="popularity", description="how null pairs draw items")
    popularity: bool = Field(default=False, description="whether popularity and activity are evidence")
    noise_rate: Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)] | None = Field(
        default=None, description="the share of noise; null: estimated"
    )
    noise_by: Literal["popularity", "none"] = Field(
        default="popularity",
        description="whether pairs of rare and of popular items have shares of noise of their own (decision: lfdr)",
    )
    min_profile: Annotated[int, Field(ge=2)] = Field(default=3, description="users with fewer items give no evidence")
    anchors: Annotated[int, Field(ge=2)] = Field(default=512, description="the number of anchor items")
    behaviour: bool = Field(default=True, description="whether co-occurrence is one more modality")
    recalibrate_every: Annotated[int, Field(ge=0)] = Field(
        default=0, description="epochs between calibrations; 0: one only"
    )
    learned: bool = Field(
        default=True, description="whether similarities learned from other users' profiles are further evidence"
    )
    nearest: bool = Field(
        default=True, description="whether the most similar item of a profile is further evidence"
    )
    cache: str | None = Field(
        default=None, description="a folder that keeps calibrations, so that none is computed twice"
    )


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
    false_as: OwnAs = Field(default="ignore", description="the same for false items alone, where own ones are ignored")


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
        default="anchored", description="transport at a price, free, or none"
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
    debias: bool = Field(default=False, description="subtract the two self-transport terms")
    balance: Literal["fixed", "min_norm"] = Field(default="fixed", description="by weight, or by the losses' gradients")


#: The keys of the noise block that say how much.
AMOUNTS = ("interactions", "deleted", "features", "gaussian")


class NoiseSettings(Settings):
    """``guider.noise``, and ``noise`` for any model: what an experiment does to the training data."""

    interactions: NonNegative = Field(default=0.0, description="random pairs to add, as a share of the training pairs")
    users: Literal["activity", "uniform"] = Field(default="activity", description="how added pairs draw users")
    items: Literal["popularity", "uniform", "clickbait"] = Field(
        default="popularity", description="how added pairs draw items; clickbait: from few items only"
    )
    clickbait_items: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] = Field(
        default=0.01, description="the share of the catalogue that clickbait draws from"
    )
    deleted: Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)] = Field(
        default=0.0, description="the share of the training pairs that is taken out"
    )
    features: UnitInterval | dict[str, UnitInterval] = Field(
        default=0.0, description="the share of items whose content features are shuffled; a number, or one per modality"
    )
    gaussian: UnitInterval | dict[str, UnitInterval] = Field(
        default=0.0, description="the share of items whose content features become Gaussian noise; as above"
    )
    recorded: str | None = Field(
        default=None, description="a file of training pairs that are known to be noise, to score their detection"
    )
    seed: Annotated[int, Field(ge=0)] = Field(default=2020, description="the seed of all of it")


class MirrorGradientSettings(Settings):
    """``mirror_gradient``, a key of its own beside the ``guider`` block: every ``interval``-th batch takes a step down
    its loss and a smaller one back up. ``properties/overall.yaml`` shows the same keys and defaults.
    """

    interval: Annotated[int, Field(ge=1)] = Field(default=3, description="the batches from one mirrored to the next")
    alpha: Positive = Field(default=1.0, description="the weight of the loss in the first step, down")
    beta: NonNegative = Field(default=0.2, description="the weight of the loss in the second step, up; below alpha")

    @classmethod
    def from_block(cls, block: Mapping[str, Any] | bool | None) -> MirrorGradientSettings | None:
        """The settings that a configuration's ``mirror_gradient`` stands for.

        Args:
            block: a mapping with any part of the keys; True for all defaults; False or None for no mirror gradient.

        Raises:
            GuiderError: a key that does not exist, a value of another type or out of range, ``beta`` not below
                ``alpha``.
        """
        if block is None or block is False:
            return None
        if block is True:
            return cls()
        if not isinstance(block, Mapping):
            raise GuiderError(
                f"mirror_gradient is {block!r}: give true, null or a block of keys ({', '.join(cls.model_fields)})."
            )
        settings = validated(cls, block, "mirror_gradient")
        if settings.beta >= settings.alpha:
            raise GuiderError(
                f"mirror_gradient.beta is {settings.beta}: it must be below mirror_gradient.alpha, which is "
                f"{settings.alpha}, or training would climb."
            )
        return settings


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


SomeSettings = TypeVar("SomeSettings", bound=Settings)


def validated(schema: type[SomeSettings], block: Mapping[Any, Any], name: str) -> SomeSettings:
    """The settings that ``block`` stands for, the others at their defaults.

    Args:
        schema: the class of the settings.
        block: any part of its keys.
        name: what the block is called in messages; empty for what stands at the top level.

    Raises:
        GuiderError: a key that does not exist, a value of another type or out of range; the message names the dotted
            key, the value and what is allowed.
    """
    try:
        return schema.model_validate(_plain(block, schema))
    except ValidationError as error:
        raise GuiderError(_explain(error, schema, name)) from None


def _plain(block: Mapping[Any, Any], model: type[BaseModel] | None) -> dict[Any, Any]:
    """``block`` with numpy numbers, tuples and empty nested blocks turned into what the schema reads."""
    plain: dict[Any, Any] = {}
    for key, value in block.items():
        nested = _nested(model.model_fields[key]) if model is not None and key in model.model_fields else None
        if value is None and nested is not None:
            continue
        plain[key] = _plain(value, nested) if isinstance(value, Mapping) else _plain_value(value)
    return plain


def _plain_value(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, (list, tuple)):
        return [_plain_value(part) for part in value]
    return value


def _nested(field: FieldInfo) -> type[BaseModel] | None:
    annotation = field.annotation
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def _dotted_keys(model: type[BaseModel], prefix: str) -> Iterator[str]:
    for name, field in model.model_fields.items():
        nested = _nested(field)
        yield f"{prefix}.{name}"
        if nested is not None:
            yield from _dotted_keys(nested, f"{prefix}.{name}")


def _explain(error: ValidationError, schema: type[BaseModel], name: str) -> str:
    """One sentence for the first mistake; a key that does not exist comes before a value that is wrong."""
    mistakes = error.errors(include_url=False, include_context=False)
    mistake = next((each for each in mistakes if each["type"] == "extra_forbidden"), mistakes[0])
    model = schema
    path = [name] if name else []
    for part in mistake["loc"]:
        path.append(str(part))
        if part not in model.model_fields:
            return _explain_unknown(".".join(path), model, schema, name)
        field = model.model_fields[str(part)]
        nested = _nested(field)
        if nested is None:
            break  # what follows in loc is the branch of a union or the index in a list
        model = nested
    else:
        keys = ", ".join(model.model_fields)
        return f"{'.'.join(path)} is {mistake['input']!r}: it is a block of keys ({keys})."
    value = mistake["input"]
    return f"{'.'.join(path)} is {value!r}: it must be {_allowed(field.annotation, field.metadata)}."


def _explain_unknown(key: str, model: type[BaseModel], schema: type[BaseModel], root: str) -> str:
    block, _, leaf = key.rpartition(".")
    # the names of the same block first, then those of all blocks
    known = {name: f"{block}.{name}" for name in model.model_fields}
    near = nearest(leaf, known, 0.7)
    if near is None:
        known = {other.rpartition(".")[2]: other for other in _dotted_keys(schema, root)}
        near = nearest(leaf, known, 0.7)
    guess = "." if near is None else f"; did you mean {known[near]}?"
    return f"{key} is not a setting{guess} Allowed: {', '.join(model.model_fields)}."


def _allowed(annotation: Any, metadata: list[Any]) -> str:
    """What values a field takes, in words."""
    for part in metadata:
        if isinstance(part, Words):
            return part.words
    origin = get_origin(annotation)
    if origin is Annotated:
        inner, *constraints = get_args(annotation)
        return _allowed(inner, [*metadata, *constraints])
    if origin in (Union, types.UnionType):
        return " or ".join(_allowed(branch, metadata) for branch in get_args(annotation))
    if origin is Literal:
        values = [str(value) for value in get_args(annotation)]
        return values[0] if len(values) == 1 else f"{', '.join(values[:-1])} or {values[-1]}"
    if origin is list:
        return "a list of names"
    if origin is dict:
        return "a block of keys"
    words = {bool: "true or false", str: "a name", type(None): "null"}
    if annotation in words:
        return words[annotation]
    return ("a whole number" if annotation is int else "a number") + _bounds(metadata)


def _bounds(metadata: list[Any]) -> str:
    flat = [part for entry in metadata for part in (entry.metadata if isinstance(entry, FieldInfo) else [entry])]
    bounds = []
    for part in flat:
        if isinstance(part, Gt):
            bounds.append(f"> {part.gt}")
        elif isinstance(part, Ge):
            bounds.append(f">= {part.ge}")
        elif isinstance(part, Le):
            bounds.append(f"<= {part.le}")
        elif isinstance(part, Lt):
            bounds.append(f"< {part.lt}")
    return " " + " and ".join(bounds) if bounds else ""
