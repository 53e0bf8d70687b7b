"""Denoising methods to compare with, one file each, and the model that they are put around.

    settings.py   what every ``denoising`` block has, and the parameters of each method
    methods.py    the methods by name; how a user's own is registered
    base.py       what a method sees of a batch, and what it gives back
    model.py      the model around a backbone whose loss a method has replaced
    training.py   its epochs, and the optimisers of methods that have some
    negatives.py  batches that a method draws for itself
    truncated.py (T-CE, T-BPR), reweighted.py (R-CE), dcf.py, deca.py, sgdl.py, bod.py, damrs.py: the methods
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from recbole_guider.denoising.base import Context, DenoisingMethod, Logits, Sample
    from recbole_guider.denoising.methods import METHODS, denoising_settings, register_denoising
    from recbole_guider.denoising.settings import DenoisingSettings

__all__ = [
    "METHODS",
    "Context",
    "DenoisingMethod",
    "DenoisingSettings",
    "Logits",
    "Sample",
    "denoising_settings",
    "register_denoising",
]

_HOMES = {
    "base": ("Context", "DenoisingMethod", "Logits", "Sample"),
    "methods": ("METHODS", "denoising_settings", "register_denoising"),
    "settings": ("DenoisingSettings",),
}


def __getattr__(name: str) -> Any:
    # loaded when asked for: the settings are read without RecBole too, which the methods need
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{home}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
