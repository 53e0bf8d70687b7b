"""The denoising methods by name, and what a ``denoising`` block stands for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from recbole_guider.denoising.base import DenoisingMethod, Plain
from recbole_guider.denoising.bod import BOD
from recbole_guider.denoising.damrs import DAMRS
from recbole_guider.denoising.dcf import DCF
from recbole_guider.denoising.deca import DeCA
from recbole_guider.denoising.reweighted import Reweighted
from recbole_guider.denoising.settings import DenoisingSettings, expanded
from recbole_guider.denoising.sgdl import SGDL
from recbole_guider.denoising.truncated import TBPR, TCE
from recbole_guider.utils.errors import GuiderError, did_you_mean
from recbole_guider.utils.settings import validated

#: Name -> method; :func:`register_denoising` adds to it.
METHODS: dict[str, type[DenoisingMethod]] = {}

_Method = TypeVar("_Method", bound=type[DenoisingMethod])


def register_denoising(method: _Method) -> _Method:
    """Make a denoising method known by its name in this process; also a decorator.

    Afterwards ``denoising: <name>`` works in property files, on the command line, in sweeps and in benchmarks.

    Args:
        method: a :class:`~recbole_guider.denoising.base.DenoisingMethod` with a ``name`` (lower case) and a
            ``settings_class``, which has a field for each of its parameters.

    Returns:
        The class.

    Raises:
        GuiderError: it is no method, it lacks a name, or another method has that name.
    """
    what = getattr(method, "__name__", repr(method))
    if not (isinstance(method, type) and issubclass(method, DenoisingMethod)):
        raise GuiderError(f"{what} is no denoising method: derive it from recbole_guider.denoising.DenoisingMethod.")
    name = getattr(method, "name", None)
    if not isinstance(name, str) or not name or name != name.lower():
        raise GuiderError(f"the denoising method {what} needs a name in lower case: name = {what.lower()!r}.")
    schema = method.settings_class
    if not (isinstance(schema, type) and issubclass(schema, DenoisingSettings)):
        raise GuiderError(f"settings_class of the denoising method {what} must derive from DenoisingSettings.")
    if METHODS.get(name, method).__qualname__ != method.__qualname__:  # the same again: a module that is loaded anew
        raise GuiderError(f"a denoising method of your own cannot be called {name}, which is one already; rename it.")
    METHODS[name] = method
    return method


for _method in (Plain, TCE, Reweighted, TBPR, DCF, DeCA, SGDL, BOD, DAMRS):
    register_denoising(_method)


def denoising_settings(block: Mapping[str, Any] | str | bool | None) -> DenoisingSettings | None:
    """The settings that a configuration's ``denoising`` value stands for.

    Args:
        block: a method's name; a mapping with ``method`` and any part of its parameters; null or false for none.
            Method ``none`` with a loss form other than ``own`` is the backbone on that loss.

    Returns:
        The settings, or None for the plain model.

    Raises:
        GuiderError: an unknown method or key, a value of another type or out of range.
    """
    if block is None or block is False:
        return None
    block = expanded(block)
    if not isinstance(block, Mapping):
        raise GuiderError(f"denoising is {block!r}: give the name of a method ({', '.join(METHODS)}) or a block.")
    if not block:
        return None
    method = "none" if block.get("method") is None else block["method"]
    known = str(method).lower()
    if known not in METHODS:
        raise GuiderError(
            f"denoising.method is {method!r}, which does not exist{did_you_mean(known, METHODS)} Allowed: "
            f"{', '.join(METHODS)}."
        )
    settings = validated(METHODS[known].settings_class, {**block, "method": known}, "denoising")
    return None if settings.method == "none" and settings.loss_form == "own" else settings
