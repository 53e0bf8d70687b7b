"""From a model's name to its class: this package's models, RecBole's, and GUIDER_<Backbone> around either."""

from __future__ import annotations

import difflib
import importlib
import re
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import recbole
from recbole.utils import ModelType

from recbole_guider.errors import GuiderError

#: A model's name with this prefix is that model, denoised.
PREFIX = "GUIDER_"

_OURS = "recbole_guider.model"
_RECBOLE = tuple(
    f"recbole.model.{family}_recommender"
    for family in ("general", "context_aware", "sequential", "knowledge_aware", "exlib")
)
#: Files of recbole_guider/model/ that hold what models are made of.
_NOT_MODELS = {"__init__", "base", "denoised", "guider"}


class ModelInfo(NamedTuple):
    """What :func:`list_models` says of a model."""

    #: the name for ``--model``; ``GUIDER_<name>`` is the denoised one
    name: str
    #: ``multimodal`` (reads item content), ``id-based`` or ``traditional`` (has no training by gradients)
    kind: str
    #: the modalities it reads: ``any`` or ``none``
    modalities: str
    #: how GUIDER teaches it: ``factorised`` (over the whole catalogue), ``candidates`` (over sampled items)
    #: or ``none``
    distillation: str


class _Entry(NamedTuple):
    module: str
    file: Path


def get_model_class(name: str) -> type:
    """The class of a model.

    Args:
        name: a model of this package, else one of RecBole's; ``GUIDER_<either>`` gives the denoised model.

    Returns:
        The class, to be made with ``(config, dataset)``.

    Raises:
        GuiderError: no model has that name (the message has the nearest names), it needs a package that is
            not installed, or GUIDER cannot wrap it.
    """
    backbone = backbone_class(name)
    if not name.startswith(PREFIX):
        return backbone
    check_trainable(backbone, "GUIDER denoises")
    # imported here: it imports the teacher's class through this module
    from recbole_guider.model.guider import guider_class

    return guider_class(backbone)


def backbone_class(name: str) -> type:
    """The class of the model itself: of ``<Backbone>`` for ``GUIDER_<Backbone>``, and for ``<Backbone>``.

    Raises:
        GuiderError: as :func:`get_model_class`.
    """
    bare = name.removeprefix(PREFIX)
    entry = _index().get(bare)
    if entry is None:
        near = [name[: len(name) - len(bare)] + known for known in _nearest(bare)]
        guess = f"did you mean {' or '.join(near)}?" if near else "recbole_guider.list_models() has the names."
        raise GuiderError(f"there is no model {name!r}; {guess}")
    try:
        module = importlib.import_module(entry.module)
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing in ("recbole", "recbole_guider", ""):
            raise
        raise GuiderError(
            f"model {bare} needs the package {missing!r}, which is not installed: pip install {missing}"
        ) from error
    return getattr(module, bare)


def check_trainable(model_class: type, role: str) -> None:
    """Raise unless ``model_class`` is a general recommender that is trained by gradients.

    Args:
        model_class: a recommender's class.
        role: the beginning of the message's second half, e.g. "GUIDER denoises".

    Raises:
        GuiderError: it is not one.
    """
    kind = getattr(model_class, "type", None)
    if kind != ModelType.GENERAL:
        what = kind.name.lower() if isinstance(kind, ModelType) else "unknown"
        raise GuiderError(
            f"model {model_class.__name__} is of type {what}: {role} general recommenders that are trained by "
            f"gradients, such as FREEDOM, LightGCN or BPR."
        )


def list_models() -> list[ModelInfo]:
    """This package's models and RecBole's general recommenders, by name; no model is imported."""
    infos = []
    for name, entry in _index().items():
        if entry.module.startswith(_OURS):
            infos.append(
                ModelInfo(name, "multimodal", "any", _distillation(name, entry.file.read_text("utf-8")))
            )
        elif entry.module.startswith(_RECBOLE[0]):
            distillation = _distillation(name, entry.file.read_text("utf-8"))
            infos.append(
                ModelInfo(name, "traditional" if distillation == "none" else "id-based", "none", distillation)
            )
    return sorted(infos, key=lambda info: (info.kind != "multimodal", info.name.lower()))


def _distillation(name: str, source: str) -> str:
    if "ModelType.TRADITIONAL" in source:
        return "none"
    # what recbole_guider.model.base.scores_factorise asks of an instance, read off the source
    graph_model = (
        "restore_user_e" in source
        and "restore_item_e" in source
        and re.search(r"def forward\(self\)", source)
    )
    return "factorised" if name == "BPR" or "FactorisedRecommender" in source or graph_model else "candidates"


@lru_cache(maxsize=1)
def _index() -> dict[str, _Entry]:
    """Name -> where it is. By convention a model's file is its class's name in lower case."""
    index: dict[str, _Entry] = {}
    folders = [(_OURS, Path(__file__).resolve().parent / "model")]
    recbole_models = Path(recbole.__file__).resolve().parent / "model"
    folders += [(package, recbole_models / package.rpartition(".")[2]) for package in _RECBOLE]
    for package, folder in folders:
        for file in sorted(folder.glob("*.py")):
            if package == _OURS and file.stem in _NOT_MODELS:
                continue
            for name in re.findall(r"^class (\w+)", file.read_text("utf-8"), re.MULTILINE):
                if name.lower() == file.stem:
                    index.setdefault(name, _Entry(f"{package}.{file.stem}", file))
    return index


def _nearest(name: str) -> list[str]:
    by_lower = {known.lower(): known for known in _index()}
    return [by_lower[lower] for lower in difflib.get_close_matches(name.lower(), by_lower, n=3, cutoff=0.6)]
