"""Denoising methods to compare with, one file each, and the model that they are put around."""

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
