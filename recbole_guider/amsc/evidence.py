"""How well candidates fit their users' profiles: everything that compares items, and how it becomes one score."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from recbole_guider.amsc.behaviour import CoOccurrence
from recbole_guider.amsc.discriminant import Discriminant
from recbole_guider.amsc.factors import Factors
from recbole_guider.amsc.learned import FoldedEmbeddings
from recbole_guider.amsc.profiles import Candidates, FloatArray
from recbole_guider.amsc.settings import BEHAVIOUR, CalibrationSettings
from recbole_guider.amsc.similarity import Modality, mean_scores, nearest_scores
from recbole_guider.utils.interactions import IntArray, InteractionIndex

#: What compares items by behaviour.
Behaviour = CoOccurrence | FoldedEmbeddings | None


class Evidence:
    """How well candidates fit the rest of their users' profiles, by everything that compares items.

    Args:
        modalities: of the content.
        behaviour: one more modality, or None.
        agreement: float32 [n_items], the confidence c_i.
        learned: name -> embeddings that are evidence beside the score.
        nearest: whether the most similar item of a profile is evidence as well, in each modality and each embedding.
    """

    def __init__(
        self,
        modalities: list[Modality],
        behaviour: Behaviour,
        agreement: NDArray[np.float32],
        learned: Mapping[str, FoldedEmbeddings] | None = None,
        nearest: bool = False,
    ) -> None:
        self.agreement, self.nearest = agreement, nearest
        self.modalities = list(modalities)
        self.behaviour = behaviour
        self.learned = dict(learned or {})
        self.fitted: dict[str, Discriminant | Factors] = {}

    def of_log(self, profiles: InteractionIndex) -> Evidence:
        """This evidence where the log consists of these profiles: what is counted exactly is counted anew."""
        if not isinstance(self.behaviour, CoOccurrence):
            return self
        other = copy.copy(self)
        other.behaviour = CoOccurrence(profiles, self.agreement)
        return other

    def columns(self, profiles: InteractionIndex, candidates: Candidates) -> dict[str, FloatArray]:
        """The score of each modality on its own; name -> float64 [len(candidates)]."""
        result: dict[str, FloatArray] = {
            m.name: mean_scores(m.rows, self.agreement, profiles, candidates) for m in self.modalities
        }
        if isinstance(self.behaviour, CoOccurrence):
            result[BEHAVIOUR] = self.behaviour.mean_scores(profiles, candidates)
        elif self.behaviour is not None:
            result[BEHAVIOUR] = self.behaviour.mean_scores(self.agreement, profiles, candidates)
        return _rounded(result)

    def further_columns(self, profiles: InteractionIndex, candidates: Candidates) -> dict[str, FloatArray]:
        """What is evidence beside the score: learned similarities, nearest items; name -> float64 [len(candidates)]."""
        result = {name: e.mean_scores(self.agreement, profiles, candidates) for name, e in self.learned.items()}
        result |= {name: fitted.scores(profiles, candidates) for name, fitted in self.fitted.items()}
        if self.nearest:
            for modality in self.modalities:
                result[f"nearest.{modality.name}"] = nearest_scores(
                    modality.rows, self.agreement, profiles, candidates
                )
            for name, embeddings in self.learned.items():
                result[f"nearest.{name}"] = embeddings.nearest_scores(self.agreement, profiles, candidates)
        return _rounded(result)

    def score(
        self,
        profiles: InteractionIndex,
        candidates: Candidates,
        columns: Mapping[str, FloatArray],
        weights: Mapping[str, float],
    ) -> FloatArray:
        """The AMSC score; float64 [len(candidates)]."""
        # The mean is linear: the score is the weighted sum of its columns.
        total = np.zeros(len(candidates))
        for name, weight in weights.items():
            total += weight * columns[name]
        return _rounded({"score": total})["score"]


def _rounded(columns: Mapping[str, FloatArray]) -> dict[str, FloatArray]:
    """In single precision: another processor may round the last bits another way, and a tree may split there."""
    return {name: column.astype(np.float32).astype(np.float64) for name, column in columns.items()}


def adaptive_weights(observed: Mapping[str, FloatArray], null: Mapping[str, FloatArray]) -> dict[str, float]:
    """alpha_m, from how far modality m separates observed from null pairs.

        alpha_m proportional to max(0, mean(s_m) - mean(s0_m)) / (var(s_m) + var(s0_m)):

    the best weights of a sum of uncorrelated scores (Fisher's discriminant with a diagonal covariance). Uniform if
    nothing separates.
    """
    raw = {}
    for name, column in observed.items():
        gap = float(column.mean() - null[name].mean()) if len(column) and len(null[name]) else 0.0
        spread = float(column.var() + null[name].var()) if len(column) and len(null[name]) else 0.0
        raw[name] = max(gap, 0.0) / spread if spread > 1e-15 else 0.0
    total = sum(raw.values())
    return {name: value / total if total > 0 else 1.0 / len(raw) for name, value in raw.items()}


def classifier_inputs(
    score: FloatArray,
    columns: Mapping[str, FloatArray],
    size: IntArray,
    degree: IntArray,
    settings: CalibrationSettings,
) -> tuple[FloatArray, list[int]]:
    """(what the classifier sees of each pair, in which of its inputs f/f0 must not fall)."""
    inputs, monotone = [score], [1]
    if len(columns) > 1:
        inputs += [*columns.values(), size.astype(np.float64)]
        monotone += [1] * len(columns) + [0]
    if settings.popularity:
        inputs += [degree.astype(np.float64), size.astype(np.float64)]
        monotone += [0, 0]
    return np.column_stack(inputs), monotone
