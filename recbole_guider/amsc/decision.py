"""From scores to the probability that a pair is clean."""

from __future__ import annotations

import logging

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.isotonic import IsotonicRegression

from recbole_guider.amsc.profiles import FloatArray, IntArray

logger = logging.getLogger(__name__)

FOLDS = 3
# The share of null pairs below which f/f0 is taken as its floor, pi0.
FLOOR_QUANTILE = 0.1
_LEAST_PAIRS = 50


def density_ratio(
    observed: FloatArray,
    null: FloatArray,
    groups: IntArray,
    null_groups: IntArray,
    monotone: list[int],
    rng: np.random.Generator,
) -> tuple[FloatArray, FloatArray]:
    """f/f0 of the observed to the null density at every observed and every null row, cross-fitted.

    A probabilistic classifier q(x) = P(observed | x) gives f/f0 = q / (1 - q) * n_null / n_observed. Every row
    is judged by a model that has not seen its group (all pairs and null pairs of one user share a group), and
    each model is monotone in the similarities. One column alone: isotonic regression.

    Args:
        observed: float [n, k]; null: float [m, k].
        groups: int [n], null_groups: int [m], the user of each row.
        monotone: [k], 1 where f/f0 must not fall as the column rises, 0 where it may do anything.

    Returns:
        float64 [n], float64 [m].
    """
    users = np.unique(groups)
    fold_of = np.zeros(int(users.max()) + 1, dtype=np.int64)
    fold_of[rng.permutation(users)] = np.arange(len(users)) % FOLDS
    fold, null_fold = fold_of[groups], fold_of[null_groups]
    seed = int(rng.integers(2**31 - 1))
    ratio, null_ratio = np.ones(len(observed)), np.ones(len(null))
    for k in range(FOLDS):
        learn, null_learn = fold != k, null_fold != k
        n, m = int(learn.sum()), int(null_learn.sum())
        if min(n, m) < _LEAST_PAIRS:
            continue
        x = np.concatenate([observed[learn], null[null_learn]])
        y = np.concatenate([np.ones(n), np.zeros(m)])
        weight = np.concatenate([np.full(n, 0.5 / n), np.full(m, 0.5 / m)]) * (n + m)
        for rows, target, chosen in (
            (observed, ratio, fold == k),
            (null, null_ratio, null_fold == k),
        ):
            if not chosen.any():
                continue
            if target is ratio or k not in models:
                models = {k: _fit(x, y, weight, monotone, seed)}
            q = np.clip(models[k](rows[chosen]), 1e-6, 1 - 1e-6)
            target[chosen] = q / (1 - q)
    return ratio, null_ratio
