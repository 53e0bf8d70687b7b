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


class CrossFitted:
    """f/f0, the ratio of the observed to the null density, judged by models that have not seen the user.

    A probabilistic classifier q(x) = P(observed | x) on n observed and m null rows gives f/f0 = q / (1 - q) m / n. All
    pairs and null pairs of a user lie in one part; a part is judged by the model of the others. Each model is
    monotone in the similarities. One column alone: isotonic regression.

    Args:
        observed: float [n, k]; null: float [m, k].
        users: int [n]; null_users: int [m].
        monotone: [k], 1 where f/f0 must not fall as the column rises, 0 where it may do anything.
        rng: chooses the parts.
    """

    def __init__(
        self,
        observed: FloatArray,
        null: FloatArray,
        users: IntArray,
        null_users: IntArray,
        monotone: list[int],
        rng: np.random.Generator,
    ) -> None:
        seed = int(rng.integers(2**31 - 1))
        known = np.unique(users)
        self.part = np.zeros(int(known.max(initial=0)) + 1, dtype=np.int64)
        self.part[rng.permutation(known)] = np.arange(len(known)) % FOLDS
        self.models: list[_Model | None] = []
        for k in range(FOLDS):
            chosen, null_chosen = observed[self.part[users] != k], null[self.part[null_users] != k]
            n, m = len(chosen), len(null_chosen)
            if min(n, m) < _LEAST_ROWS:
                self.models.append(None)
                continue
            self.models.append(_Model(chosen, null_chosen, monotone, seed))

    def ratio(self, rows: FloatArray, users: IntArray) -> FloatArray:
        """f/f0 of rows [n, k] of these users; float64 [n], 1 (no evidence) where there was too little to learn from."""
        result = np.ones(len(rows))
        for k, model in enumerate(self.models):
            chosen = self.part[users] == k
            if model is not None and chosen.any():
                result[chosen] = model.ratio(rows[chosen])
        return result


class _Model:
    """One monotone probabilistic classifier of observed against null."""

    def __init__(self, observed: FloatArray, null: FloatArray, monotone: list[int], seed: int) -> None:
        x = np.concatenate([observed, null])
        y = np.repeat([1.0, 0.0], [len(observed), len(null)])
        # The odds are put right afterwards: sample weights would make scikit-learn's binning 20 times slower.
        self.null_per_observed = len(null) / len(observed)
        self.alone = x.shape[1] == 1 and monotone == [1]
        if self.alone:
            self.model = IsotonicRegression(y_min=0.0, y_max=1.0, out_of_bounds="clip").fit(x[:, 0], y)
        else:
            self.model = HistGradientBoostingClassifier(
                max_iter=100,
                learning_rate=0.1,
                max_leaf_nodes=15,
                min_samples_leaf=50,
                l2_regularization=1.0,
                monotonic_cst=monotone,
                early_stopping=False,
                random_state=seed,
            ).fit(x, y)

    def ratio(self, x: FloatArray) -> FloatArray:
        q = self.model.predict(x[:, 0]) if self.alone else self.model.predict_proba(x)[:, 1]
        q = np.clip(q, 1e-3, 1 - 1e-6)
        return q / (1 - q) * self.null_per_observed


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
