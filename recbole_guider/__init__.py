"""Denoise multi-modal recommenders in RecBole."""

from __future__ import annotations

import warnings
from typing import Any

from recbole_guider.integration import hooks
from recbole_guider.utils import compat, requirements

__version__ = "0.1.0"
#: What a run trains, and on which data, when nothing is said.
DEFAULT_MODEL, DEFAULT_DATASET = "GUIDER_FREEDOM", "ml-100k"
__all__ = [
    "__version__",
    "list_models",
    "load_data_and_model",
    "objective_function",
    "prepare_run",
    "register_denoising",
    "register_model",
    "run_recbole_guider",
]

compat.apply()
hooks.apply()

if _unmet := requirements.recbole_is_missing():
    warnings.warn(f"{_unmet} (recbole_guider.amsc, .graph and .losses work without)", stacklevel=2)
elif _unmet := requirements.unmet():
    warnings.warn(_unmet, stacklevel=2)

_HOMES = {
    "list_models": "recbole_guider.config.registry",
    "load_data_and_model": "recbole_guider.quick_start",
    "objective_function": "recbole_guider.quick_start",
    "prepare_run": "recbole_guider.quick_start",
    "register_denoising": "recbole_guider.denoising.methods",
    "register_model": "recbole_guider.config.registry",
    "run_recbole_guider": "recbole_guider.quick_start",
}


def __getattr__(name: str) -> Any:
    # loaded when asked for: `recbole-guider --help` and `from recbole_guider.amsc import calibrate` need no RecBole
    if name in _HOMES:
        from importlib import import_module

        if unmet := requirements.unmet():
            raise ImportError(unmet)
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
