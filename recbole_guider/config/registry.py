"""From a model's name to its class: this package's models, RecBole's, a user's own, and GUIDER_<Backbone> around
each."""

from __future__ import annotations

import difflib
import importlib
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple, TypeVar

import recbole
from recbole.model.abstract_recommender import AbstractRecommender
from recbole.utils import ModelType

from recbole_guider.utils.errors import GuiderError

#: A model's name with this prefix is that model, denoised.
PREFIX = "GUIDER_"

_OURS = "recbole_guider.models"
_RECBOLE = tuple(
    f"recbole.model.{family}_recommender"
    for family in ("general", "context_aware", "sequential", "knowledge_aware", "exlib")
)
#: This package's models; each is a class of its file, which has its name in lower case.
MODELS = (
    "BM3", "DAMRS", "DGCN", "DRAGON", "DualGNN", "FREEDOM", "GRCN", "ItemKNNCBF", "LATTICE", "LayerGCN", "LGMRec",
    "MGCN", "MMGCF", "MMGCN", "MVGAE", "PGL", "SelfCF", "SLMRec", "SMORE", "VBPR",
)
#: RecBole's models that have no property file of their name.
_RECBOLES_OTHERS = {"LightGBM", "Random", "XGBoost"}
#: RecBole's models that call themselves general recommenders and have nothing to train: they are solved when made.
_SOLVED_WHEN_MADE = {"recbole.model.general_recommender.nceplrec.NCEPLRec"}


class ModelInfo(NamedTuple):
    """What :func:`list_models` says of a model."""

    #: the name for ``--model``; ``GUIDER_<name>`` is the denoised one
    name: str
    #: ``multimodal`` (reads item content), ``id-based`` or ``traditional`` (has no training by gradients)
    kind: str
    #: the modalities it needs: ``any`` (one or more, whichever they are) or ``none``
    modalities: str
    #: how GUIDER teaches it: ``factorised`` (over the whole catalogue, from two matrices), ``rows`` (over the whole
    #: catalogue, from full score rows), ``candidates`` (over sampled items) or ``none`` (not at all)
    distillation: str


def get_model_class(name: str) -> type:
    """The class of a model.

    Args:
        name: a model of this package, else one of RecBole's.

    Returns:
        The class, to be made with ``(config, dataset)``; for ``GUIDER_<Backbone>`` that is
        :class:`~recbole_guider.guider.model.Guider`, which finds its backbone in the configuration.

    Raises:
        GuiderError: no model has that name (the message has the nearest names), it needs a package that is
            not installed, or GUIDER cannot wrap it.
    """
    backbone = backbone_class(name)
    if not name.startswith(PREFIX):
        return backbone
    check_trainable(backbone, "GUIDER denoises")
    from recbole_guider.guider.model import Guider  # plain models need nothing of it

    return Guider


def backbone_class(name: str) -> type:
    """The class of the model itself: of ``<Backbone>`` for ``GUIDER_<Backbone>``, and for ``<Backbone>``.

    Raises:
        GuiderError: as :func:`get_model_class`.
    """
    bare = name.removeprefix(PREFIX)
    if bare in _registered:
        return _registered[bare]
    module_name = _index().get(bare)
    if module_name is None:
        near = _nearest(name)
        guess = f"did you mean {' or '.join(near)}?" if near else "recbole_guider.list_models() has the names."
        raise GuiderError(
            f"there is no model {name!r}; {guess} A class of your own is known by its name after "
            f"recbole_guider.register_model(YourModel)."
        )
    try:
        module = importlib.import_module(module_name)
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
    if not _trains(model_class):
        what = kind.name.lower() if isinstance(kind, ModelType) else "unknown"
        if kind == ModelType.GENERAL:
            what += ", but solved when it is made"
        raise GuiderError(
            f"model {model_class.__name__} is of type {what}: {role} general recommenders that are trained by "
            f"gradients, such as FREEDOM, LightGCN or BPR."
        )


#: Models of a user's own, by name.
_registered: dict[str, type] = {}

_Class = TypeVar("_Class", bound=type)


def register_model(model_class: _Class) -> _Class:
    """Make a model of one's own known by its name in this process; also a decorator.

    Afterwards the name works wherever a model's name does: in files, for ``guider.teacher``, with ``GUIDER_`` before
    it, when a checkpoint is loaded, and in RecBole's own functions. ``run_recbole_guider(model=YourModel)`` calls it.

    Args:
        model_class: a general recommender of RecBole's kind, made with ``(config, dataset)``.

    Returns:
        The class.

    Raises:
        GuiderError: it is no recommender, or its name is that of a model of RecBole or of this package.
    """
    name = getattr(model_class, "__name__", repr(model_class))
    if not (isinstance(model_class, type) and issubclass(model_class, AbstractRecommender)):
        raise GuiderError(f"{name} is no recommender: derive it from RecBole's GeneralRecommender.")
    if name.startswith(PREFIX) or name in _index():
        raise GuiderError(f"a model of your own cannot be called {name}, which is a model already; rename the class.")
    _registered[name] = model_class
    return model_class


def ensure_registered(model_class: type) -> None:
    """Register a class that somebody runs, unless its name already leads to it.

    Raises:
        GuiderError: as :func:`register_model`.
    """
    if _index().get(model_class.__name__) != model_class.__module__:
        register_model(model_class)


def is_ours(name: str) -> bool:
    """Whether RecBole by itself does not know this name: a model of this package, a registered or a denoised one."""
    return name in _registered or name.startswith(PREFIX) or name in MODELS


def list_models() -> list[ModelInfo]:
    """This package's models, registered ones and RecBole's general recommenders: content-based ones first, by name.

    A model that needs a package which is not installed is left out.
    """
    infos = []
    names = [name for name, module in _index().items() if module.startswith((_OURS, _RECBOLE[0]))]
    for name in [*names, *_registered]:
        try:
            infos.append(_info(name, backbone_class(name)))
        except GuiderError:
            continue
    return sorted(infos, key=lambda info: (info.modalities == "none", info.name.lower()))


def _info(name: str, model_class: type) -> ModelInfo:
    # imported here: it imports this package's base class, which plain runs of RecBole's models do without
    from recbole_guider.models import scoring_kind

    content = getattr(model_class, "reads_content", False)
    modalities = "any" if content else "none"
    if not _trains(model_class):
        return ModelInfo(name, "traditional", modalities, "none")
    return ModelInfo(name, "multimodal" if content else "id-based", modalities, scoring_kind(model_class))


def _trains(model_class: type) -> bool:
    solved = f"{model_class.__module__}.{model_class.__qualname__}" in _SOLVED_WHEN_MADE
    return getattr(model_class, "type", None) == ModelType.GENERAL and not solved


@lru_cache(maxsize=1)
def _index() -> dict[str, str]:
    """Name -> the module it is in: of this package's models, and of RecBole's, whose files have their names in lower
    case.
    """
    root = Path(recbole.__file__).resolve().parent
    files = {file.stem for file in (root / "properties" / "model").glob("*.yaml")} - {"lightgbm", "xgboost"}
    index = {name: f"{_OURS}.{name.lower()}" for name in MODELS}
    for package in _RECBOLE:
        folder = root / "model" / package.rpartition(".")[2]
        for name in sorted(files | _RECBOLES_OTHERS):
            if (folder / f"{name.lower()}.py").is_file():
                index.setdefault(name, f"{package}.{name.lower()}")
    return index


def _nearest(name: str) -> list[str]:
    """The names most like ``name``; with the prefix, in whatever case it is written, those that may have it."""
    guided = name.lower().startswith(PREFIX.lower())
    bare = name[len(PREFIX):] if guided else name
    by_lower = {known.lower(): known for known in (*_index(), *_registered)}
    near = [by_lower[lower] for lower in difflib.get_close_matches(bare.lower(), by_lower, n=10, cutoff=0.6)]
    return [PREFIX + known for known in near if _can_be_guided(known)][:3] if guided else near[:3]


def _can_be_guided(name: str) -> bool:
    try:
        return _trains(backbone_class(name))
    except GuiderError:
        return False  # it needs a package that is not installed
