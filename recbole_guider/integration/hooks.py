"""RecBole's own functions, once this package is imported: they accept its models and its blocks.

``run_recbole``, ``objective_function``, ``load_data_and_model`` and the functions that people build scripts from
(``Config``, ``create_dataset``, ``data_preparation``, ``get_model``, ``get_trainer``) each ask one question: is this
run ours? It is, if its model is one of this package, a registered one, or has ``GUIDER_`` before its name, or if its
settings have a block that is on: ``guider:``, ``denoising:``, ``mirror_gradient:`` or ``noise:``, an ``eval_mask:`` or
an ``import:``.
Then the function of this package does the work; otherwise RecBole's own does, unchanged. A script that is built of the
latter functions finds its model and its trainer by the name of the model: what the name does not say, ``Config``
refuses.

Nothing of RecBole is copied, and only RecBole's modules change: :data:`PLACES` has every name that is another one
afterwards. A script that took a name out of RecBole before it imported this package keeps RecBole's own function.
``inspect.unwrap`` of a function gives RecBole's.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

from recbole_guider.utils import compat


def apply() -> None:
    """Put all of it in place, now or when RecBole's modules are imported; a second call does nothing."""
    for name in PLACES:
        compat.after_import(name, _put)
    compat.after_import("recbole.config.configurator", _configuration)


def _put(module: ModuleType) -> None:
    """Put our functions in the places of ``module``; the first place that a function of RecBole has is its own."""
    for name in PLACES[module.__name__]:
        ours, theirs = globals()[name], vars(module)[name]
        if theirs is ours:
            continue
        if not hasattr(ours, "__wrapped__"):
            ours.__wrapped__, ours.__doc__ = theirs, theirs.__doc__
        setattr(module, name, ours)


def _configuration(configurator: ModuleType) -> None:
    Config: Any = configurator.Config

    def __new__(cls: type, *args: Any, **kwargs: Any) -> Any:
        # Without arguments it is copy or pickle that asks, and the object that they make is filled afterwards.
        if cls is Config and (args or kwargs):
            from recbole_guider.config.guider_config import GuiderConfig
            from recbole_guider.integration.ours import is_our_run

            if is_our_run(*args, **kwargs):
                config = object.__new__(GuiderConfig)
                config.is_found_by_name = True
                return config
        return object.__new__(cls)

    Config.__new__ = staticmethod(__new__)


# What stands in RecBole's places. They are sent to other processes (Ray's workers, spawned ones), where pickle finds a
# function by its module and name: these are this module's, so that whoever unpickles one imports this package.


def get_model(model_name: str) -> type:
    from recbole_guider.config.registry import get_model_class, is_ours

    return get_model_class(model_name) if is_ours(model_name) else _recboles(get_model)(model_name)


def get_trainer(model_type: Any, model_name: str) -> type:
    from recbole_guider.config.registry import is_ours

    if not is_ours(model_name):
        return _recboles(get_trainer)(model_type, model_name)
    from recbole_guider.config.trainers import training_by_name

    return training_by_name(model_name)


def create_dataset(config: Any) -> Any:
    if not _is_ours(config):
        return _recboles(create_dataset)(config)
    from recbole_guider.data.dataset import build_dataset

    return build_dataset(config)


def data_preparation(config: Any, dataset: Any) -> Any:
    if not _is_ours(config):
        return _recboles(data_preparation)(config, dataset)
    from recbole_guider.data.dataset import prepare_data

    return prepare_data(config, dataset)


def run_recbole(
    model: Any = None,
    dataset: Any = None,
    config_file_list: Any = None,
    config_dict: Any = None,
    saved: bool = True,
    queue: Any = None,
) -> Any:
    from recbole_guider.integration.ours import is_our_run

    if not is_our_run(model, dataset, config_file_list, config_dict):
        return _recboles(run_recbole)(model, dataset, config_file_list, config_dict, saved, queue)
    from recbole_guider.quick_start import run_recbole_guider

    return run_recbole_guider(model, dataset, config_file_list, config_dict, saved, queue)


def objective_function(config_dict: Any = None, config_file_list: Any = None, saved: bool = True) -> Any:
    from recbole_guider.integration.ours import is_our_run

    if not is_our_run(config_file_list=config_file_list, config_dict=config_dict):
        return _recboles(objective_function)(config_dict, config_file_list, saved)
    from recbole_guider.quick_start import objective_function as run_ours

    result = run_ours(config_dict, config_file_list, saved)
    _report(result["test_result"])
    return result


def load_data_and_model(model_file: Any) -> Any:
    from recbole_guider.training.checkpoint import is_checkpoint

    if not is_checkpoint(model_file):
        return _recboles(load_data_and_model)(model_file)
    from recbole_guider.quick_start import load_data_and_model as load_ours

    return load_ours(model_file)


def _report(metrics: Mapping[str, Any]) -> None:
    """Tell Ray Tune of a trial's metrics, as RecBole's function does for its own models."""
    from recbole_guider.tuning.ray_api import report

    report(metrics)


def _recboles(function: Callable[..., Any]) -> Callable[..., Any]:
    """What RecBole has under the name of one of these functions."""
    # a process that has unpickled the function may not have it yet
    import recbole.quick_start.quick_start  # noqa: F401

    wrapped: Callable[..., Any] = vars(function)["__wrapped__"]
    return wrapped


def _is_ours(config: Any) -> bool:
    loaded = sys.modules.get("recbole_guider.config.guider_config")  # not loaded: nobody can have made a GuiderConfig
    if loaded is None or not isinstance(config, loaded.GuiderConfig):
        return False
    from recbole_guider.config.registry import is_ours
    from recbole_guider.integration.ours import changes_data

    blocks = (config.guider_settings, config.denoising_settings, config["mirror_gradient"])
    asked = any(block is not None for block in blocks) or changes_data(config.final_config_dict)
    return asked or is_ours(config["model"])


_MODELS = ("get_model", "get_trainer")
_DATA = ("create_dataset", "data_preparation")
_RUNS = ("run_recbole", "objective_function", "load_data_and_model")
#: Module of RecBole -> the names in it that are functions of this module afterwards, home first. Beside
#: them ``recbole.config.configurator.Config`` makes a ``GuiderConfig`` where a run is ours.
PLACES: dict[str, tuple[str, ...]] = {
    "recbole.utils.utils": _MODELS,
    "recbole.utils": _MODELS,
    "recbole.config.configurator": ("get_model",),
    "recbole.data.utils": _DATA,
    "recbole.data": _DATA,
    "recbole.quick_start.quick_start": (*_MODELS, *_DATA, *_RUNS),
    "recbole.quick_start": _RUNS,
}
