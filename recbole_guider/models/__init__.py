"""The backbones and how they score; they know nothing of GUIDER, of denoising, of trainers.

A backbone is a class in the file of its name (``vbpr.py``: VBPR); ``config/registry.py`` lists them. What they are made
of, and what others use of all of them:

    base.py           what a model offers so that GUIDER can teach it, and the base of the models here
    scoring.py        how the scores of any model are reached: two matrices, rows over all items, or pair by pair
    content.py        the base of the models that read item content
    pruned.py         the base of those whose graph is pruned anew in every epoch
    contrast.py       the contrastive loss that several share
    layers.py         small layers that several share
    accelerated.py    RecBole's models that are computed faster here: fast_lightgcn.py
"""

from recbole_guider.models.accelerated import fastest
from recbole_guider.models.base import Encoding, FactorisedRecommender, SeededGenerators, require_sampled_items
from recbole_guider.models.scoring import (
    CANDIDATES,
    FACTORISED,
    ROWS,
    Factors,
    Scoring,
    as_in_evaluation,
    explicit,
    scoring_kind,
    trainable,
)

__all__ = [
    "CANDIDATES",
    "FACTORISED",
    "ROWS",
    "Encoding",
    "FactorisedRecommender",
    "Factors",
    "Scoring",
    "SeededGenerators",
    "as_in_evaluation",
    "explicit",
    "fastest",
    "require_sampled_items",
    "scoring_kind",
    "trainable",
]
