"""``calibrate``: from interactions and item features to the probability that each interaction is clean."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

from recbole_guider.amsc.decision import CLEAN
from recbole_guider.amsc.fit import LogCounts, check_modalities, fit_calibrator, learning_sample
from recbole_guider.amsc.profiles import build_profiles
from recbole_guider.amsc.settings import CalibrationSettings
from recbole_guider.amsc.similarity import modality_list
from recbole_guider.utils.errors import GuiderError

Feature = ArrayLike | tuple[ArrayLike, ArrayLike]

@dataclass(frozen=True)
class Calibration:
    """What AMSC says about each interaction.

    Attributes:
        score: float32 [nnz], the mean of S over the rest of the profile.
        clean_probability: float32 [nnz], in [0, 1].
        is_clean: bool [nnz], which of them count as clean; see :func:`~recbole_guider.amsc.decision.is_clean`.
        confidence: float32 [n_items], the agreement of the item's own modalities, in [0, 1].
        modality_weights: name -> alpha >= 0, together 1; ``behaviour`` is one of the names.
        noise_rate: the share of noise among the interactions, estimated or as given.
        evidence: name -> float32 [nnz], the score of each modality alone.
        null_score: float32 [n_null], scores of the null pairs.
        null_pair: int64 [n_null], the input row that each null pair stands in for.
        null_item: int64 [n_null], the item of each null pair.
        null_evidence: name -> float32 [n_null].
    """

    score: NDArray[np.float32]
    clean_probability: NDArray[np.float32]
    is_clean: NDArray[np.bool_]
    confidence: NDArray[np.float32]
    modality_weights: dict[str, float]
    noise_rate: float
    evidence: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    null_score: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, dtype=np.float32))
    null_pair: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    null_item: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    null_evidence: dict[str, NDArray[np.float32]] = field(default_factory=dict)

    @property
    def training_probability(self) -> NDArray[np.float32]:
        """float32 [nnz]: ``clean_probability``, and at least ``decision.CLEAN`` where ``is_clean``.

        What training weighs an interaction with: so no user is left without a true one.
        """
        return np.where(self.is_clean, np.maximum(self.clean_probability, np.float32(CLEAN)), self.clean_probability)

    @property
    def n_true(self) -> int:
        """Number of interactions that count as clean."""
        return int(self.is_clean.sum())

    @property
    def n_false(self) -> int:
        """Number of interactions that count as noise."""
        return len(self.is_clean) - self.n_true


def calibrate(
    users: ArrayLike,
    items: ArrayLike,
    features: Mapping[str, Feature],
    *,
    n_users: int,
    n_items: int,
    settings: CalibrationSettings | None = None,
    seed: int = 0,
) -> Calibration:
    """AMSC: how probable it is that each observed interaction is clean (this project's definitions).

    With e_i^m the centred feature of item i in modality m, of unit length, c_i the agreement of the item's own
    modalities and alpha_m the weight of a modality,

        S(i, i') = sqrt(c_i c_i') sum_m alpha_m <e_i^m, e_i'^m>
        s_ui     = mean of S(i, i') over i' in I_u, i' != i

    exactly, in time linear in the number of interactions. ``behaviour`` adds co-occurrence with the
    user's own part removed as one more modality. For every observed pair null items j not in I_u are scored
    against the same rest of the profile; ``lfdr`` learns the density ratio f/f0 of observed to null pairs from the
    score, its columns and the profile size, monotone in every similarity, and returns 1 - min(1, pi0 f0/f). pi0 is the
    given ``noise_rate`` or a cautious estimate (``decision.conservative_noise_rate``), and where ``noise_by`` is
    ``popularity`` the odds of noise differ between rare and popular items (``decision.NoiseByPopularity``). The
    estimate that is reported is counted where evidence is weakest (``decision.counted_noise_rate``), less the clean
    pairs that only look like noise because their profiles hold noise (``decision.extrapolated_noise_rate``), and is no
    larger.

    Args:
        users, items: int [nnz], ids from 0. A pair that occurs more than once counts once in the profile, and all
            its rows get the same result.
        features: name -> float [n_items, d], or (that, bool [n_items]) where rows are missing.
        n_users, n_items: sizes of the id ranges.
        settings: ``guider.calibration``; None: the defaults.
        seed: of every random choice made here.

    Returns:
        Calibration, in the order of the input.

    Raises:
        GuiderError: ids out of range; NaN or infinite features; a modality that is not there; nothing to compare
            items by (neither features nor behaviour).

    Example:
        >>> rng = np.random.default_rng(0)
        >>> taste = np.eye(2)[[0, 0, 0, 1, 1, 1]] + 0.01 * rng.normal(size=(6, 2))
        >>> calibrate([0, 0, 0, 1, 1], [0, 1, 3, 3, 4], {"text": taste}, n_users=2, n_items=6).score.shape
        (5,)
    """
    settings = CalibrationSettings() if settings is None else settings
    if seed < 0:
        raise GuiderError(f"seed is {seed}: it must be a whole number >= 0.")
    if not isinstance(features, Mapping):
        raise GuiderError(f"features is a {type(features).__name__}: it must be a mapping, name -> array.")
    profiles = build_profiles(users, items, n_users, n_items)
    if settings.method == "none":
        return _all_clean(len(profiles.inverse), n_items)
    modalities = modality_list(features, settings.modalities, n_items)
    check_modalities(modalities, settings.behaviour)
    counts = LogCounts.of(profiles, settings)
    fit = fit_calibrator(counts, learning_sample(counts, seed)(profiles), modalities, settings, seed)
    calibrator, sample, nulls = fit.calibrator, fit.sample, fit.nulls
    prediction = calibrator(profiles, known=fit.columns if sample is profiles else None)
    to_input = profiles.inverse
    first_row = np.zeros(profiles.n_pairs, dtype=np.int64)
    first_row[to_input[::-1]] = np.arange(len(to_input))[::-1]
    null_pair = profiles.rows(sample.user_keys[sample.users[nulls.pair]], sample.items[nulls.pair])
    return Calibration(
        score=prediction.score[to_input].astype(np.float32),
        clean_probability=prediction.probability[to_input].astype(np.float32),
        is_clean=prediction.is_clean[to_input],
        confidence=calibrator.evidence.agreement,
        modality_weights=calibrator.weights,
        noise_rate=calibrator.noise_rate,
        evidence={name: column[to_input].astype(np.float32) for name, column in prediction.columns.items()},
        null_score=fit.null_score.astype(np.float32),
        null_pair=first_row[null_pair],
        null_item=nulls.items,
        null_evidence={name: column.astype(np.float32) for name, column in fit.null_columns.items()},
    )


def _all_clean(nnz: int, n_items: int) -> Calibration:
    return Calibration(
        score=np.zeros(nnz, dtype=np.float32),
        clean_probability=np.ones(nnz, dtype=np.float32),
        is_clean=np.ones(nnz, dtype=bool),
        confidence=np.ones(n_items, dtype=np.float32),
        modality_weights={},
        noise_rate=0.0,
    )
