"""From a method's name to its class."""

from __future__ import annotations

from recbole_guider.denoising.base import DenoisingMethod, Plain
from recbole_guider.denoising.bod import BOD
from recbole_guider.denoising.damrs import DAMRS
from recbole_guider.denoising.dcf import DCF
from recbole_guider.denoising.deca import DeCA
from recbole_guider.denoising.reweighted import Reweighted
from recbole_guider.denoising.sgdl import SGDL
from recbole_guider.denoising.truncated import Truncated

METHODS: dict[str, type[DenoisingMethod]] = {
    "none": Plain,
    "t-ce": Truncated,
    "r-ce": Reweighted,
    "t-bpr": Truncated,
    "dcf": DCF,
    "deca": DeCA,
    "sgdl": SGDL,
    "bod": BOD,
    "da-mrs": DAMRS,
}
