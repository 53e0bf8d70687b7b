"""Which model a run trains: its own class, what GUIDER or a denoising method puts around it, and its teacher."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, NoReturn

from recbole_guider.config.registry import (
    PREFIX,
    backbone_class,
    check_trainable,
    ensure_registered,
    get_model_class,
    is_ours,
)
from recbole_guider.config.validation import model_defaults, shared_defaults
from recbole_guider.denoising.methods import denoising_settings
from recbole_guider.denoising.settings import DenoisingSettings
from recbole_guider.guider.settings import GuiderSettings
from recbole_guider.utils.errors import GuiderError


def resolve_model(
    said: Mapping[str, Any], model: str | type | None
) -> tuple[type, bool, DenoisingSettings | None]:
    """The model that a run is to train.

    Args:
        said: what the user's sources say, merged; a guider block among the defaults gives values, but does not switch
            GUIDER on.
        model: a name or a class that overrides the key ``model``.

    Returns:
        (the class of the model itself, whether GUIDER is around it, the denoising method that is, or None)

    Raises:
        GuiderError: no or an unknown model, one that GUIDER or a denoising method cannot be put around, or both of
            these.
    """
    given: Any = model if model is not None else said.get("model")
    if not given:
        raise GuiderError("no model is given: name one with --model=, as `model:` in a file or in config_dict.")
    named = isinstance(given, str) and given.startswith(PREFIX)
    if isinstance(given, str):
        backbone = backbone_class(given)
    else:
        backbone = given
        ensure_registered(backbone)
    block = said.get("guider")
    guider_on = block is not False and (block is not None or named)
    denoising = denoising_settings(said.get("denoising"))
    if denoising is not None and guider_on:
        raise GuiderError(
            f"denoising is {denoising.method} and the guider block is on: each replaces what the backbone learns from "
            f"an interaction; switch one off (denoising: none, or guider: false)."
        )
    if denoising is not None:
        check_trainable(backbone, "a denoising method is for")
    elif guider_on:
        check_trainable(backbone, "GUIDER denoises")
    return backbone, guider_on, denoising


def trained_class(backbone: type, guider: GuiderSettings | None, denoising: DenoisingSettings | None) -> type:
    """The class of what a run trains, to be made with ``(config, dataset)``."""
    # imported here: plain models need nothing of them
    if denoising is not None:
        from recbole_guider.denoising.model import Denoised

        return Denoised
    if guider is None:
        return backbone
    if guider.variant == "released":
        from recbole_guider.guider.released import ReleasedGuider

        return ReleasedGuider
    from recbole_guider.guider.model import Guider

    return Guider


def check_found_by_name(config: Any) -> None:
    """Raise where a script of RecBole's functions, which finds model and trainer by their names, would leave out a
    part of what was asked for.

    Args:
        config: the GuiderConfig that the script has made.

    Raises:
        GuiderError: a denoising method is on, mirror gradient for a model of RecBole's own, or it is to be one of
            several processes.
    """
    hint = "the name of a model: train with run_recbole or run_recbole_guider, or load_data_and_model a trained one."
    if config.denoising_settings is not None:
        raise GuiderError(f"denoising is {config.denoising_settings.method}, which does not follow from {hint}")
    if config["mirror_gradient"] is not None and not is_ours(config["model"]):
        raise GuiderError(f"mirror_gradient is set, which for {config['model']} does not follow from {hint}")
    if config.process is not None:
        refuse_processes(config["model"])


def refuse_processes(model: str) -> NoReturn:
    """Raise a GuiderError: a script of RecBole's functions is to train ``model`` in several processes."""
    raise GuiderError(
        f"RecBole's own functions seed every process differently, so {model} would not train as in one process: "
        f"start several with recbole-guider run --nproc, or recbole_guider.quick_start.run."
    )


def teacher_values(final: Mapping[str, Any], guider: GuiderSettings) -> tuple[type, dict[str, Any]]:
    """The class of the teacher, and the settings to make it with.

    They are the defaults of the teacher's model, RecBole's and this package's; embedding_size is the student's; and
    ``guider.teacher_parameters`` overrides both. A learning rate or another setting for all models is the student's
    too, unless it is what the student's model has by default. A teacher of the same model as the student starts from
    the student's values instead of the defaults.

    Args:
        final: the settings of the run; not changed.
        guider: those of the guider block.
    """
    name = guider.teacher
    model_class: Any = get_model_class(name)
    values = copy.deepcopy(dict(final))
    if name != final["backbone"]:
        shared = shared_defaults()
        for key, value in (model_defaults(final["backbone"]) or {}).items():
            if key in shared and values[key] == value:
                values[key] = shared[key]
        values.update(model_defaults(name) or {})
        if "embedding_size" in final:
            values["embedding_size"] = final["embedding_size"]
    values.update(copy.deepcopy(guider.teacher_parameters))
    values.update(model=name, backbone=name, MODEL_TYPE=model_class.type)
    if hasattr(model_class, "input_type"):
        values["MODEL_INPUT_TYPE"] = model_class.input_type
    return model_class, values
