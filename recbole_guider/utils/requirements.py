"""Whether what is installed is what this package works with, by its own metadata: setup.py alone lists requirements."""

from __future__ import annotations

from importlib import metadata
from importlib.util import find_spec

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

_NAME = "recbole-guider"
#: RecBole goes beside this package without its own requirements, whose pins cannot be met on Python 3.12 and newer.
_RECBOLE = "recbole==1.2.1"


def recbole_is_missing() -> str:
    """A sentence that says how to install RecBole, where it is not installed; else empty. Imports nothing."""
    if find_spec("recbole") is not None:
        return ""
    return f"RecBole is not installed, which this needs: pip install --no-deps {_RECBOLE}"


def unmet(needs_recbole: bool = True) -> str:
    """A sentence about the first requirement that is missing, too old or too new; empty: there is none.

    Args:
        needs_recbole: whether RecBole is one of them; the calibrator on arrays and parquet files works without.
    """
    if needs_recbole and (missing := recbole_is_missing()):
        return missing
    for requirement in [*_declared(), *([Requirement(_RECBOLE)] if needs_recbole else [])]:
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            return f"{requirement.name} is not installed, which {_NAME} needs: pip install '{requirement}'"
        if not requirement.specifier.contains(version, prereleases=True):
            return (
                f"{requirement.name} {version} is installed, and {_NAME} needs {requirement.name}"
                f"{requirement.specifier}: pip install {'--no-deps ' if requirement.name == 'recbole' else ''}"
                f"'{requirement}'"
            )
    return ""


def unfit_for_ray() -> str:
    """A sentence about the first library that is too new for the Ray that is installed; empty: there is none.

    Only the Ray that RecBole pins has such a limit; the set that it works with is that of the extra ``recbole``.
    """
    pinned = {each.name: each.specifier for each in _declared("recbole")}
    try:
        ray = metadata.version("ray")
    except metadata.PackageNotFoundError:
        return ""  # unmet() says so
    if ray not in pinned.pop("ray", SpecifierSet("<0")):
        return ""
    pinned.pop("recbole", None)
    for name, allowed in pinned.items():
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            return f"ray {ray} needs {name}, which is not installed: pip install '{name}{allowed}'"
        if not allowed.contains(version, prereleases=True):
            return (
                f"{name} {version} is too new for ray {ray}, which needs {name}{allowed}: "
                f"pip install '{name}{allowed}', or a newer Ray: pip install -U 'ray[data,tune]'"
            )
    return ""


def _declared(extra: str = "") -> list[Requirement]:
    """This package's requirements for this Python: all of them, or those that only ``extra`` adds."""
    try:
        every = [Requirement(text) for text in metadata.requires(_NAME) or ()]
    except metadata.PackageNotFoundError:  # a checkout that is not installed
        return []
    always = [each for each in every if each.marker is None or each.marker.evaluate({"extra": ""})]
    if not extra:
        return always
    return [each for each in every if each not in always and each.marker and each.marker.evaluate({"extra": extra})]
