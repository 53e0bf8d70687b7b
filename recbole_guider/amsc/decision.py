"""From scores to the probability that a pair is clean."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.isotonic import IsotonicRegression

from recbole_guider.amsc.profiles import FloatArray, IntArray

#: Parts of the users for cross-fitting.
FOLDS = 3
#: f/f0 at this quantile of the null pairs is taken as its floor, the noise share pi0.
FLOOR_QUANTILE = 0.1
#: Bins of equal size over the profile sizes for zscore.
ZSCORE_BINS = 10
_LEAST_ROWS = 50


def density_ratio(
    observed: FloatArray,
    null: FloatArray,
    users: IntArray,
    null_users: IntArray,
    monotone: list[int],
    rng: np.random.Generator,
) -> tuple[FloatArray, FloatArray]:
    """f/f0 of the observed to the null density at every observed and every null row, cross-fitted.

    A probabilistic classifier q(x) = P(observed | x), both classes of equal weight, gives f/f0 = q / (1 - q).
    Every row is judged by a model that has not seen its user (all pairs and null pairs of a user lie in one
    part), and each model is monotone in the similarities. One column alone: isotonic regression.

    Args:
        observed: float [n, k]; null: float [m, k].
        users: int [n]; null_users: int [m].
        monotone: [k], 1 where f/f0 must not fall as the column rises, 0 where it may do anything.

    Returns:
        float64 [n], float64 [m]; 1 (no evidence) where there is too little to learn from.
    """
    ratio, null_ratio = np.ones(len(observed)), np.ones(len(null))
    seed = int(rng.integers(2**31 - 1))
    known = np.unique(users)
    part = np.zeros(int(known.max(initial=0)) + 1, dtype=np.int64)
    part[rng.permutation(known)] = np.arange(len(known)) % FOLDS
    fold, null_fold = part[users], part[null_users]
    for k in range(FOLDS):
        learn, null_learn = fold != k, null_fold != k
        n, m = int(learn.sum()), int(null_learn.sum())
        if min(n, m) < _LEAST_ROWS:
            continue
        x = np.concatenate([observed[learn], null[null_learn]])
        y = np.concatenate([np.ones(n), np.zeros(m)])
        weight = np.concatenate([np.full(n, (n + m) / (2 * n)), np.full(m, (n + m) / (2 * m))])
        model = _Model(x, y, weight, monotone, seed)
        ratio[fold == k] = model.ratio(observed[fold == k])
        null_ratio[null_fold == k] = model.ratio(null[null_fold == k])
    return ratio, null_ratio


class _Model:
    """One monotone probabilistic classifier of observed against null."""

    def __init__(self, x: FloatArray, y: FloatArray, weight: FloatArray, monotone: list[int], seed: int) -> None:
        self.isotonic: IsotonicRegression | None = None
        if x.shape[1] == 1 and monotone == [1]:
            self.isotonic = IsotonicRegression(y_min=0.0, y_max=1.0, out_of_bounds="clip")
            self.isotonic.fit(x[:, 0], y, sample_weight=weight)
            return
        self.boosting = HistGradientBoostingClassifier(
            max_iter=100,
            learning_rate=0.1,
            max_leaf_nodes=31,
            min_samples_leaf=50,
            l2_regularization=1.0,
            monotonic_cst=monotone,
            early_stopping=False,
            random_state=seed,
        ).fit(x, y, sample_weight=weight)

    def ratio(self, x: FloatArray) -> FloatArray:
        if not len(x):
            return np.zeros(0)
        if self.isotonic is not None:
            q = self.isotonic.predict(x[:, 0])
        else:
            q = self.boosting.predict_proba(x)[:, 1]
        q = np.clip(q, 1e-3, 1 - 1e-6)
        return q / (1 - q)


def noise_floor(null_ratio: FloatArray) -> float:
    """pi0 = a low quantile of f/f0: where only noise is left, f = pi0 f0."""
    return float(np.clip(np.quantile(null_ratio, FLOOR_QUANTILE), 0.0, 1.0)) if len(null_ratio) else 0.0


def local_clean_probability(ratio: FloatArray, noise_rate: float) -> FloatArray:
    """1 - min(1, pi0 f0/f), the complement of the local false discovery rate."""
    return 1.0 - np.minimum(1.0, noise_rate / ratio)


def storey_noise_rate(score: FloatArray, null: FloatArray) -> float:
    """Share of noise from the lower half of the null: min(1, 2 P(observed score <= null median)).

    Clean pairs score above the null median, so what lies below it is half of the noise.
    """
    if not len(null):
        return 0.0
    median = np.median(null)
    below = np.mean(score < median) + 0.5 * np.mean(score == median)
    half = np.mean(null < median) + 0.5 * np.mean(null == median)
    return float(min(1.0, below / half))


def quantile_probability(score: FloatArray, noise_rate: float) -> FloatArray:
    """Mid-rank of the score, bent so that the ``noise_rate`` quantile lies at 1/2.

    With r the mid-rank in (0, 1): r / (2 noise_rate) below the quantile, 1 - (1 - r) / (2 (1 - noise_rate)) above.
    """
    _, inverse, counts = np.unique(score, return_inverse=True, return_counts=True)
    rank = (np.cumsum(counts) - 0.5 * counts)[inverse.reshape(-1)] / max(len(score), 1)
    below = rank / (2 * max(noise_rate, 1e-12))
    above = 1 - (1 - rank) / (2 * max(1 - noise_rate, 1e-12))
    return np.where(rank < noise_rate, below, above)


def zscore_probability(
    score: FloatArray, size: IntArray, null: FloatArray, null_size: IntArray, noise_rate: float
) -> FloatArray:
    """Phi(z - z0): z = (s - mean) / spread of the null scores of profiles of about the same size.

    z0 is the ``noise_rate`` quantile of z, so that this share lies below 1/2.
    """
    if not len(null):
        return np.ones(len(score))
    edges = np.unique(np.quantile(null_size, np.linspace(0, 1, ZSCORE_BINS + 1)[1:-1]))
    bins, null_bins = np.searchsorted(edges, size), np.searchsorted(edges, null_size)
    z: NDArray[np.float64] = np.zeros(len(score))
    for k in np.unique(bins):
        reference = null[null_bins == k] if np.any(null_bins == k) else null
        spread = reference.std()
        z[bins == k] = (score[bins == k] - reference.mean()) / (spread if spread > 1e-12 else 1.0)
    return norm.cdf(z - np.quantile(z, noise_rate))
