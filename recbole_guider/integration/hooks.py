"""RecBole's own functions, once this package is imported: they accept its models and its blocks.

``run_recbole``, ``objective_function``, ``load_data_and_model`` and the functions that people build scripts from
(``Config``, ``create_dataset``, ``data_preparation``, ``get_model``, ``get_trainer``) each ask one question: is this
run ours? It is, if its model is one of this package, a registered one, or has ``GUIDER_`` before its name, or if its
settings have a block that is on: ``guider:``, ``denoising:``, ``mirror_gradient:`` or ``noise:``, or an ``eval_mask:``.
Then the function of this package does the work; otherwise RecBole's own does, unchanged. A script that is built of the
latter functions finds its model and its trainer by the name of the model: what the name does not say, ``Config``
refuses.

Nothing of RecBole is copied. A function is wrapped in the module that defines it, right after that module has been
imported (:func:`recbole_guider.utils.compat.after_import`), so that whoever imports it from there gets the wrapped one,
and a module that imported it before this package gets it in place of RecBole's; ``inspect.unwrap`` gives RecBole's.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

from recbole_guider.utils import compat


def apply() -> None:
    """Put all of it in place, now or when RecBole's modules are imported; a second call does nothing."""
    _there_before.update(name for name in _HOOKS if name in sys.modules)
    for name, hook in _HOOKS.items():
        compat.after_import(name, hook)


def _model_names(utils: ModuleType) -> None:
    @functools.wraps(utils.get_model)
    def get_model(model_name: str) -> type:
        from recbole_guider.config.registry import get_model_class, is_ours

        return get_model_class(model_name) if is_ours(model_name) else recbole_get_model(model_name)

    @functools.wraps(utils.get_trainer)
    def get_trainer(model_type: Any, model_name: str) -> type:
        from recbole_guider.config.registry import is_ours

        if not is_ours(model_name):
            return recbole_get_trainer(model_type, model_name)
        from recbole_guider.config.trainers import trainer_of

        return trainer_of(model_type, model_name)

    recbole_get_model, recbole_get_trainer = utils.get_model, utils.get_trainer
    _replace({recbole_get_model: get_model, recbole_get_trainer: get_trainer}, utils)


def _configuration(configurator: ModuleType) -> None:
    Config: Any = configurator.Config

    def __new__(cls: type, *args: Any, **kwargs: Any) -> Any:
        # Without arguments it is copy or pickle that asks, and the object that they make is filled afterwards.
        if cls is Config and (args or kwargs):
            from recbole_guider.config.guider_config import GuiderConfig, check_known_by_name, is_our_run

            if is_our_run(*args, **kwargs):
                check_known_by_name(*args, **kwargs)
                cls = GuiderConfig
        return object.__new__(cls)

    Config.__new__ = staticmethod(__new__)


def _data(data_utils: ModuleType) -> None:
    @functools.wraps(data_utils.create_dataset)
    def create_dataset(config: Any) -> Any:
        if not _is_ours(config):
            return recbole_create_dataset(config)
        from recbole_guider.data.dataset import build_dataset

        return build_dataset(config)

    @functools.wraps(data_utils.data_preparation)
    def data_preparation(config: Any, dataset: Any) -> Any:
        if not _is_ours(config):
            return recbole_data_preparation(config, dataset)
        from recbole_guider.data.dataset import prepare_data

        return prepare_data(config, dataset)

    recbole_create_dataset, recbole_data_preparation = data_utils.create_dataset, data_utils.data_preparation
    _replace({recbole_create_dataset: create_dataset, recbole_data_preparation: data_preparation}, data_utils)


# RecBole's whole runs. They are sent to other processes (Ray's workers, spawned ones), where pickle finds a function by
# its module and name: these are this module's, so that whoever unpickles one imports this package.


def run_recbole(
    model: Any = None,
    dataset: Any = None,
    config_file_list: Any = None,
    config_dict: Any = None,
    saved: bool = True,
    queue: Any = None,
) -> Any:
    from recbole_guider.config.guider_config import is_our_run

    if not is_our_run(model, dataset, config_file_list, config_dict):
        return _recboles(run_recbole)(model, dataset, config_file_list, config_dict, saved, queue)
    from recbole_guider.quick_start import run_recbole_guider

    return run_recbole_guider(model, dataset, config_file_list, config_dict, saved, queue)


def objective_function(config_dict: Any = None, config_file_list: Any = None, saved: bool = True) -> Any:
    from recbole_guider.config.guider_config import is_our_run

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


_RUNS: tuple[Callable[..., Any], ...] = (run_recbole, objective_function, load_data_and_model)


def _whole_runs(quick_start: ModuleType) -> None:
    wrapped = {getattr(quick_start, function.__name__): function for function in _RUNS}
    for recboles, function in wrapped.items():
        functools.update_wrapper(function, recboles, assigned=("__doc__",))
    _replace(wrapped, quick_start)


def _report(metrics: Mapping[str, Any]) -> None:
    """Tell Ray Tune of a trial's metrics, as RecBole's function does for its own models."""
    from recbole_guider.tuning.ray_api import report

    report(metrics)


def _recboles(function: Callable[..., Any]) -> Callable[..., Any]:
    """What RecBole has under the name of one of these functions."""
    import recbole.quick_start.quick_start  # noqa: F401  # a process that has unpickled the function may not have it yet

    wrapped: Callable[..., Any] = vars(function)["__wrapped__"]
    return wrapped


def _is_ours(config: Any) -> bool:
    loaded = sys.modules.get("recbole_guider.config.guider_config")  # not loaded: nobody can have made a GuiderConfig
    if loaded is None or not isinstance(config, loaded.GuiderConfig):
        return False
    from recbole_guider.config.registry import is_ours

    blocks = (config.guider_settings, config.denoising_settings, config["mirror_gradient"])
    asked = any(block is not None for block in blocks) or loaded.changes_data(config.final_config_dict)
    return asked or is_ours(config["model"])


def _replace(wrapped: Mapping[Callable[..., Any], Callable[..., Any]], home: ModuleType) -> None:
    """Put functions in the place of those of ``home``, there and wherever these have been imported to.

    Args:
        wrapped: a function of RecBole -> ours.
        home: their module. Where it was there before this package, not only RecBole may have taken names out of it, but
            a script, or a notebook, too.
    """
    # a shim may have wrapped a function already
    ours = {id(each): wrapper for theirs, wrapper in wrapped.items() for each in (theirs, inspect.unwrap(theirs))}
    for package, module in [("recbole", home), *((name.partition(".")[0], each) for name, each in _loaded())]:
        if package != "recbole" and (home.__name__ not in _there_before or package == "recbole_guider"):
            continue
        # past __getattribute__, by which a lazy module would load itself
        names: dict[str, Any] = object.__getattribute__(module, "__dict__")
        for name, value in list(names.items()):
            if id(value) in ours:
                names[name] = ours[id(value)]


def _loaded() -> list[tuple[str, ModuleType]]:
    # without the objects of other kinds that some packages put there for themselves
    return [(name, module) for name, module in list(sys.modules.items()) if issubclass(type(module), ModuleType)]


#: RecBole's modules that were imported before this package.
_there_before: set[str] = set()

_HOOKS: dict[str, Callable[[ModuleType], None]] = {
    "recbole.utils.utils": _model_names,
    "recbole.config.configurator": _configuration,
    "recbole.data.utils": _data,
    "recbole.quick_start.quick_start": _whole_runs,
}
