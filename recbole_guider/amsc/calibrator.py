"""What AMSC says about the pairs of any users, block by block, with what it learned from a log."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recbole_guider.amsc import decision
from recbole_guider.amsc.evidence import Evidence, classifier_inputs
from recbole_guider.amsc.profiles import Candidates, FloatArray
from recbole_guider.amsc.settings import CalibrationSettings
from recbole_guider.utils.interactions import IntArray, InteractionIndex

#: What :attr:`Calibrator.rule` may be.
DensityRatio = decision.CrossFitted | FloatArray | None


def judged_pairs(profiles: InteractionIndex, settings: CalibrationSettings) -> NDArray[np.bool_]:
    """bool [n_pairs]: the pairs of users with at least ``min_profile`` items."""
    return profiles.size[profiles.users] >= max(settings.min_profile, 2)


@dataclass(frozen=True)
class Prediction:
    """What AMSC says about the distinct pairs of some profiles.

    Attributes:
        score, probability: float64 [n_pairs].
        is_clean: bool [n_pairs], by :func:`~recbole_guider.amsc.decision.is_clean`.
        columns: name -> float64 [n_pairs], the evidence.
    """

    score: FloatArray
    probability: FloatArray
    is_clean: NDArray[np.bool_]
    columns: dict[str, FloatArray]


@dataclass(frozen=True)
class Calibrator:
    """Everything that is learned from a log; judges the pairs of any users, block by block.

    Attributes:
        evidence: what compares items.
        settings: ``guider.calibration``.
        weights: name -> alpha.
        item_degree: int64 [n_items], the number of users of each item.
        density_ratio: f/f0 for ``lfdr``, the scores that ranks are taken in for ``quantile``; None where all pairs look
            alike and nobody says how many of them are noise.
        noise_rate: pi0, estimated or as given.
        conservative_pi0: the pi0 that probabilities are computed with, ``noise_rate`` or, where ``lfdr`` estimates it,
            more.
        by_popularity: how the odds of noise differ with the popularity of items; None: not at all.
    """

    evidence: Evidence
    settings: CalibrationSettings
    weights: dict[str, float]
    item_degree: IntArray
    density_ratio: DensityRatio
    noise_rate: float
    conservative_pi0: float
    by_popularity: decision.NoiseByPopularity | None = None

    def ratio(self, profiles: InteractionIndex, candidates: Candidates) -> FloatArray:
        """f/f0 of candidates, observed or null, where that is the rule; float64 [len(candidates)].

        Args:
            candidates: sorted by user.
        """
        score, columns = self._compared(profiles, candidates)
        return self._ratio(profiles, candidates, score, columns)

    def __call__(self, profiles: InteractionIndex, known: Mapping[str, FloatArray] | None = None) -> Prediction:
        """The prediction on all pairs of ``profiles``, which holds each of its users' whole profile.

        Args:
            known: the evidence of those pairs, where it has been computed already.
        """
        observed = Candidates(profiles.users, profiles.items, profiles.items)
        score, columns = self._compared(profiles, observed, known)
        judged = np.flatnonzero(judged_pairs(profiles, self.settings))
        probability = np.full(profiles.n_pairs, 1.0 - self.conservative_pi0)
        if isinstance(self.density_ratio, decision.CrossFitted):
            of_judged = {name: column[judged] for name, column in columns.items()}
            ratio = self._ratio(profiles, observed.take(judged), score[judged], of_judged)
            likely = decision.local_clean_probability(ratio, self.conservative_pi0)
            if self.by_popularity is not None:
                likely = self.by_popularity.clean_probability(likely, self.item_degree[profiles.items[judged]])
            probability[judged] = likely
        elif self.density_ratio is not None:
            probability[judged] = decision.quantile_probability(
                score[judged], self.density_ratio, self.conservative_pi0
            )
        is_clean = decision.is_clean(probability, profiles.users, profiles.n_users)
        return Prediction(score, probability, is_clean, columns)

    def _compared(
        self, profiles: InteractionIndex, candidates: Candidates, known: Mapping[str, FloatArray] | None = None
    ) -> tuple[FloatArray, dict[str, FloatArray]]:
        """The score and the evidence of candidates, the latter ``known`` or computed."""
        columns = dict(known or {})
        if known is None:
            columns = self.evidence.columns(profiles, candidates) | self.evidence.further_columns(profiles, candidates)
        return self.evidence.score(profiles, candidates, columns, self.weights), columns

    def _ratio(
        self, profiles: InteractionIndex, candidates: Candidates, score: FloatArray, columns: Mapping[str, FloatArray]
    ) -> FloatArray:
        assert isinstance(self.density_ratio, decision.CrossFitted)
        degree = self.item_degree[candidates.items] - (candidates.items == candidates.left_out)
        rows, _ = classifier_inputs(score, columns, profiles.size[candidates.users], degree, self.settings)
        return self.density_ratio.ratio(rows, profiles.user_keys[candidates.users])
