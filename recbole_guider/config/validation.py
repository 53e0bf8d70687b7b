"""What is wrong with a configuration, found before anything is trained: names that nobody reads, and values that
RecBole or a model would stumble over."""

from __future__ import annotations

import importlib.util
import math
import sys
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

import recbole
from pydantic import BeforeValidator, ConfigDict, Field
from recbole.evaluator import metric_types
from recbole.evaluator.register import metric_information

from recbole_guider.config.registry import backbone_class, is_ours
from recbole_guider.config.settings import OverallSettings
from recbole_guider.utils.atomic_io import require_folder
from recbole_guider.utils.errors import GuiderError, did_you_mean, nearest, one_of
from recbole_guider.utils.resources import properties_dir
from recbole_guider.utils.settings import AllowedValues, Count, Natural, NonNegative, Positive, Settings, check_part
from recbole_guider.utils.yaml_files import read_yaml

#: RecBole's property files.
_RECBOLES = Path(recbole.__file__).resolve().parent / "properties"

# -- values -------------------------------------------------------------------------------------------------------


class _Part(Settings):
    """Settings of which any part may be given, among other ones."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)


_LOWER = BeforeValidator(lambda name: name.lower() if isinstance(name, str) else name)
_Text = Annotated[str, Field(min_length=1)]
_Names = Annotated[list[_Text], AllowedValues("a list of names")]
_Mode = Annotated[str, Field(pattern=r"^(full|labeled|(uni|pop)[1-9]\d*)$")]


class NegativeSamplingSettings(_Part):
    """RecBole's ``train_neg_sample_args``."""

    sample_num: Count
    alpha: NonNegative
    dynamic: bool
    candidate_num: Natural
    distribution: Literal["uniform", "popularity"]


class ClippingSettings(Settings):
    """RecBole's ``clip_grad_norm``: what torch's function of that name takes."""

    max_norm: Positive
    norm_type: Positive | Literal["inf"] = 2.0
    error_if_nonfinite: bool = False
    foreach: bool | None = None


class EvaluationSettings(_Part):
    """RecBole's ``eval_args``."""

    order: Literal["RO", "TO"]
    split: dict[str, Any] | None
    group_by: Annotated[Literal["user", "none"] | None, _LOWER]
    mode: Annotated[
        _Mode | dict[Literal["valid", "test"], _Mode],
        AllowedValues("full, labeled, uni<N> or pop<N>, such as uni100; or valid and test with one of these each"),
    ]


class RecBoleSettings(_Part):
    """RecBole's settings, as far as a wrong value would be seen late or not at all."""

    seed: Annotated[int, Field(ge=0, le=2**32 - 1)]
    worker: Natural
    epochs: Natural
    train_batch_size: Count
    learner: Annotated[Literal["adam", "adamw", "sgd", "adagrad", "rmsprop", "sparse_adam"], _LOWER]
    learning_rate: NonNegative
    weight_decay: NonNegative
    embedding_size: Count
    train_neg_sample_args: NegativeSamplingSettings
    clip_grad_norm: ClippingSettings
    eval_step: int
    stopping_step: NonNegative
    loss_decimal_place: Natural
    metric_decimal_place: Natural
    eval_batch_size: Count
    eval_args: EvaluationSettings
    metrics: Annotated[str | list[str], AllowedValues("a name or a list of names")]
    topk: Annotated[
        Count | Annotated[list[Count], Field(min_length=1)], AllowedValues("a whole number >= 1 or a list of them")
    ]
    valid_metric: str
    state: str
    checkpoint_dir: Annotated[_Text, AllowedValues("the path of a folder")]
    benchmark_filename: _Names | None
    additional_feat_suffix: _Names | None
    alias_of_user_id: _Names | None
    alias_of_item_id: _Names | None


#: Settings of this package that are read as they are given; the others are checked where they are read.
_CHECKED_HERE = ("backend",)


def check_values(final: Mapping[str, Any], model: str, name: str = "") -> None:
    """Raise if a setting of RecBole or a parameter of a model has a value that it cannot have.

    Args:
        final: settings, as they are before RecBole completes them.
        model: the name of the model whose parameters are among them.
        name: what the mapping is called in messages; empty for a whole configuration.

    Raises:
        GuiderError: the message names the key, the value and what is allowed.
    """
    values = dict(final)
    negatives = values.get("train_neg_sample_args")
    if isinstance(negatives, Mapping) and str(negatives.get("distribution", "uniform")).lower() == "none":
        del values["train_neg_sample_args"]  # RecBole's word for none at all
        negatives = None
    declared, defaults = (parameters_of(backbone_class(model)), {}) if is_ours(model) else (None, model_defaults(model))
    schemas: list[tuple[type[Settings], Iterable[str]]] = [
        (RecBoleSettings, RecBoleSettings.model_fields), (OverallSettings, _CHECKED_HERE)
    ]
    if declared is not None:
        schemas.append((declared, declared.model_fields))
    for schema, keys in schemas:
        check_part(schema, {key: values[key] for key in keys if key in values}, name)
    for key, default in (defaults or {}).items():
        # RecBole's models declare no types: what is a number by default has to be one
        if key in values and isinstance(default, (int, float)) and not isinstance(default, bool):
            number = values[key]
            if isinstance(number, bool) or not isinstance(number, (int, float)) or not math.isfinite(number):
                raise GuiderError(f"{name}{'.' if name else ''}{key} is {number!r}: it must be a number.")
    evaluation = values.get("eval_args")
    if isinstance(evaluation, Mapping) and "split" in evaluation and values.get("benchmark_filename") is None:
        _check_split(evaluation["split"])
    if isinstance(negatives, Mapping) and negatives.get("dynamic") and not negatives.get("candidate_num"):
        raise GuiderError(
            "train_neg_sample_args.dynamic is True, which draws the best of several candidates: set candidate_num to 1 "
            "or more."
        )
    metrics = values.get("metrics", [])
    for metric in [metrics] if isinstance(metrics, str) else metrics:
        _check_metric("metrics", metric)
    if "valid_metric" in values:
        _check_metric("valid_metric", values["valid_metric"].partition("@")[0])


def _check_split(split: Any) -> None:
    """Raise unless ``eval_args.split`` is one of RecBole's ways to split, with what it takes."""
    if not isinstance(split, Mapping) or len(split) != 1 or not set(split) <= {"RS", "LS", "TS"}:
        raise GuiderError(
            f"eval_args.split is {split!r}: it must be a block of RS (three shares, at random), LS (the last ones of "
            f"each user) or TS (three shares, by time), and of one of them only, e.g. {{'RS': [0.8, 0.1, 0.1]}}."
        )
    ((way, value),) = split.items()
    if way == "LS":
        one_of("eval_args.split.LS", value, ("valid_and_test", "valid_only", "test_only"))
        return
    shares = value if isinstance(value, list) else []
    numbers = all(isinstance(share, (int, float)) and not isinstance(share, bool) and share >= 0 for share in shares)
    if len(shares) != 3 or not numbers or shares[0] <= 0:
        raise GuiderError(
            f"eval_args.split.{way} is {value!r}: it must be a list of three shares, of training (above 0), validation "
            f"and test, e.g. [0.8, 0.1, 0.1]."
        )


def _check_metric(key: str, metric: str) -> None:
    if metric.lower() not in metric_types:
        raise GuiderError(
            f"{key} names {metric!r}, which is no metric of RecBole{did_you_mean(metric, metric_types, _ALIKE)} "
            f"Allowed: {', '.join(metric_types)}."
        )


def measured(config: Any) -> dict[str, bool]:
    """What an evaluation gives, such as ``recall@20`` -> whether it has a value for each user."""
    results: dict[str, bool] = {}
    for metric in map(str.lower, config["metrics"]):
        needs = set(metric_information[metric])
        # the metrics of whole lists are cut, too
        names = [f"{metric}@{k}" for k in config["topk"]] if needs & {"rec.topk", "rec.items"} else [metric]
        results |= dict.fromkeys(names, "rec.topk" in needs)
    return results


def check_valid_metric(config: Any) -> None:
    """Raise unless ``valid_metric`` is among the results of an evaluation.

    Raises:
        GuiderError: it is not; the message has what is.
    """
    results = measured(config)
    if config["valid_metric"].lower() not in results:
        raise GuiderError(
            f"valid_metric is {config['valid_metric']}, which metrics and topk do not give: it must be one of "
            f"{', '.join(results)}."
        )


def check_outputs(config: Any) -> None:
    """Raise if a run could not write its checkpoints or report to W&B.

    Raises:
        GuiderError: the message names the folder or the package.
    """
    require_folder(Path(config["checkpoint_dir"]), "checkpoint_dir")
    if config["log_wandb"] and "wandb" not in sys.modules and importlib.util.find_spec("wandb") is None:
        raise GuiderError("log_wandb is True, but the package wandb is not installed: pip install wandb")


# -- parameters of models -------------------------------------------------------------------------------------------


def parameters_of(model_class: type) -> type[Settings] | None:
    """The declared parameters of a model: its attribute ``settings_class``; None: it declares none."""
    declared = getattr(model_class, "settings_class", None)
    return declared if isinstance(declared, type) and issubclass(declared, Settings) else None


def model_defaults(name: str) -> dict[str, Any] | None:
    """A model's defaults, RecBole's or this package's; None: it has no property file."""
    files = (folder / "model" / f"{name}.yaml" for folder in (_RECBOLES, properties_dir()))
    return next((read_yaml(file) for file in files if file.is_file()), None)


def shared_defaults() -> dict[str, Any]:
    """The defaults that all models have, RecBole's and this package's."""
    return {**read_yaml(_RECBOLES / "overall.yaml"), **read_yaml(properties_dir() / "overall.yaml")}


# -- names --------------------------------------------------------------------------------------------------------

#: Settings of RecBole's trainers that a teacher may have of its own.
_TEACHERS = (
    "learner", "learning_rate", "weight_decay", "clip_grad_norm", "train_batch_size", "train_neg_sample_args",
    "require_pow", "embedding_size", "loss_type",
)
#: What RecBole 1.2.1 and this package read from a configuration without a property file that names it.
READ_BY_RECBOLE = frozenset({
    "CROP_ITEM_SEQ", "CROP_ITEM_SEQ_LEN", "INVERSE_ITEM_SEQ", "MASK_INDEX", "MASK_ITEM_SEQ", "MODEL_INPUT_TYPE",
    "MODEL_TYPE", "NEG_ITEMS", "POS_ITEMS", "REORDER_ITEM_SEQ", "backbone", "cin", "contrast", "dataset",
    "encoding", "eta", "eval_type", "feature_num", "has_residual", "ip", "local_rank", "model", "norm", "nproc",
    "offset", "port", "replay", "resume", "sim", "single_spec", "tail_ratio", "test_neg_sample_args",
    "token_num_threshold", "training_neg_sample_num", "use_filter", "valid_neg_sample_args", "verbose",
    "world_size", "xgb_early_stopping_rounds",
})
#: How alike two names must be for one to be called a slip of the other; and in a file, which may hold anything, where
#: there is no block under it.
_ALIKE, _ALIKE_IN_FILES = 0.8, 0.88


def unknown_keys(
    given: Mapping[str, Any], files: Mapping[str, Any], known: Iterable[str], ours: Iterable[str], model_class: type
) -> list[str]:
    """Settings that neither RecBole nor this package nor the model reads, each with the key that may be meant.

    Of files, which may hold the parameters of other models and programs, only what looks like a slip.

    Args:
        given: what the command line and ``config_dict`` set.
        files: what property files set.
        known: the keys of RecBole and of this run.
        ours: this package's own keys: a slip in one of them would train another model than was asked for.
        model_class: the model's.

    Raises:
        GuiderError: a key is close to one of ``ours``.
    """
    known, ours = set(known), list(ours)
    suspects = [key for key in {**files, **given} if key not in known and not str(key).startswith("alias_of_")]
    if not suspects:
        return []
    others = _keys_in_properties() | READ_BY_RECBOLE
    of_model = _parameters(model_class)
    suspects = [key for key in suspects if of_model is None or key not in of_model]
    # a file may serve many models; what is typed for one run is meant for its model
    strangers = [key for key in suspects if key in given and key in _parameters_of_models() and of_model is not None]
    suspects = [key for key in suspects if key not in others]
    notes = []
    for key in suspects:
        sure = key in given or isinstance(files.get(key), Mapping)
        near = nearest(key, ours, _ALIKE if sure else _ALIKE_IN_FILES)
        if near is not None:
            raise GuiderError(f"{key} is not a setting; did you mean {near}?")
        near = nearest(key, known, _ALIKE)
        if near is not None:
            notes.append(f"{key} (did you mean {near}?)")
        elif key in given and of_model is not None:
            notes.append(str(key))
    for key in strangers:
        near = nearest(key, known, _ALIKE)
        notes.append(f"{key} ({'a parameter of other models' if near is None else f'did you mean {near}?'})")
    return notes


def check_teacher_parameters(given: Mapping[str, Any], teacher: str, teacher_class: type) -> None:
    """Raise if ``guider.teacher_parameters`` has a key that no model reads, or a value that the teacher cannot have.

    Parameters of another model pass: a data set's file has those of its usual teacher.

    Raises:
        GuiderError: the message names the key, and what is allowed.
    """
    known = {*_TEACHERS, *(model_defaults(teacher) or ())}
    of_model = _parameters(teacher_class)
    for key in given:
        if key not in known | _keys_in_properties() and of_model is not None and key not in of_model:
            raise GuiderError(
                f"guider.teacher_parameters.{key} is not a parameter of {teacher}{did_you_mean(key, known, _ALIKE)} "
                f"Allowed: {', '.join(sorted(known))}."
            )
    check_values(given, teacher, "guider.teacher_parameters")


@cache
def _keys_in_properties() -> frozenset[str]:
    """The keys of every property file of RecBole and of this package."""
    files = [*_RECBOLES.rglob("*.yaml"), *properties_dir().rglob("*.yaml")]
    return frozenset(str(key) for file in files for key in read_yaml(file, unique_keys=False))


@cache
def _parameters_of_models() -> frozenset[str]:
    """The keys that only the property files of models have, and that only the models read which have them there."""
    folders = (_RECBOLES / "model", properties_dir() / "model")
    keys = {str(key) for folder in folders for file in folder.glob("*.yaml") for key in read_yaml(file)}
    shared = {*shared_defaults(), "beta", "double_tower", "embedding_size", "loss_type", "reg_weight", "tau"}
    return frozenset(keys - shared)


def _parameters(model_class: type) -> frozenset[str] | None:
    """The keys that a model reads beside those of all models; None: a class of one's own that declares none.

    What such a class inherits does not count: it may read more.
    """
    declared, defaults = parameters_of(model_class), model_defaults(model_class.__name__)
    if defaults is None and "settings_class" not in vars(model_class):
        return None
    return frozenset([*(() if declared is None else declared.model_fields), *(defaults or ())])
