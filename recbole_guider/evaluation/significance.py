"""Whether one model is better than another: paired tests over users and over seeds, corrected for their number."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from recbole_guider.utils.errors import GuiderError


def holm(p_values: Sequence[float] | np.ndarray) -> np.ndarray:
    """Holm's adjusted p-values: a family of tests at level a rejects those that are at most a.

    Sorted upwards, the k-th of m (from 0) becomes ``max over j <= k of min(1, (m - j) p_j)``. It holds the
    family-wise error without assuming independence.

    Args:
        p_values: one for each test; NaN (no test was possible) stays NaN and does not count in m.

    Source: Holm, A Simple Sequentially Rejective Multiple Test Procedure, Scandinavian Journal of Statistics 1979.
    """
    p = np.asarray(p_values, dtype=np.float64)
    adjusted = np.full(p.shape, np.nan)
    tested = np.flatnonzero(~np.isnan(p))
    order = tested[np.argsort(p[tested], kind="stable")]
    factors = np.arange(len(order), 0, -1)
    adjusted[order] = np.maximum.accumulate(np.minimum(1.0, factors * p[order]))
    return adjusted


class Comparison(NamedTuple):
    """How much better ``ours`` is than ``theirs`` in one metric, and whether that could be chance.

    Attributes:
        ours, theirs: means over users and seeds.
        difference: ours - theirs.
        relative: difference / theirs; NaN where theirs is 0.
        low, high: 95% confidence interval of the difference, from the spread over users and over seeds together.
        p_users: paired t-test over users, each user's difference averaged over the seeds.
        p_wilcoxon: the same differences by Wilcoxon's signed-rank test (zero differences split between the signs).
        p_seeds: paired t-test over seeds, each seed's difference averaged over the users; NaN for one seed.
        users, seeds: how many of each.
    """

    ours: float
    theirs: float
    difference: float
    relative: float
    low: float
    high: float
    p_users: float
    p_wilcoxon: float
    p_seeds: float
    users: int
    seeds: int


def compare(ours: Mapping[int, pd.Series], theirs: Mapping[int, pd.Series]) -> Comparison:
    """Paired comparison of two methods that were run with the same seeds and measured on the same users.

    With d_us the difference for user u and seed s, the tests look at ``mean_s d_us`` over users (would other users see
    the difference?) and at ``mean_u d_us`` over seeds (would other random numbers?). Each alone leaves out the other's
    spread: call a difference significant only if both do. The interval adds the two variances of the mean, v_u =
    ``var_u / n_users`` and v_s = ``var_s / n_seeds``, and is Student's with Welch's and Satterthwaite's degrees of
    freedom, ``(v_u + v_s)^2 / (v_u^2 / (n_users - 1) + v_s^2 / (n_seeds - 1))``. Of a single seed it has the users'
    spread alone.

    Args:
        ours, theirs: seed -> a metric of every user, indexed by user. Seeds that only one side has are left out.

    Raises:
        GuiderError: no common seed, or the users of a seed differ.
    """
    seeds = sorted(set(ours) & set(theirs))
    if not seeds:
        raise GuiderError("the two methods have no common seed: nothing can be paired.")
    columns = {}
    for seed in seeds:
        mine, other = ours[seed], theirs[seed]
        if len(mine) != len(other) or not mine.index.sort_values().equals(other.index.sort_values()):
            raise GuiderError(f"seed {seed}: the two methods were not measured on the same users.")
        columns[seed] = mine - other.reindex(mine.index)
    differences = pd.DataFrame(columns)
    if differences.isna().to_numpy().any():
        raise GuiderError("the users differ between seeds (splits that depend on the seed): nothing can be paired.")
    by_user, by_seed = differences.mean(axis=1).to_numpy(), differences.mean(axis=0).to_numpy()
    mean = float(by_user.mean())
    margin = _margin([sample for sample in (by_user, by_seed) if len(sample) > 1])
    baseline = float(np.mean([theirs[seed].mean() for seed in seeds]))
    return Comparison(
        ours=baseline + mean,
        theirs=baseline,
        difference=mean,
        relative=mean / baseline if baseline else float("nan"),
        low=mean - margin,
        high=mean + margin,
        p_users=paired_t(by_user),
        p_wilcoxon=signed_rank(by_user),
        p_seeds=paired_t(by_seed),
        users=len(by_user),
        seeds=len(seeds),
    )


def _margin(samples: Sequence[np.ndarray]) -> float:
    """Half of the 95% interval of a mean whose variance is the sum of those of the means of ``samples``."""
    parts = np.array([sample.var(ddof=1) / len(sample) for sample in samples])
    if not parts.sum():
        return 0.0
    freedom = parts.sum() ** 2 / sum(part**2 / (len(sample) - 1) for part, sample in zip(parts, samples, strict=True))
    return float(stats.t.ppf(0.975, freedom) * parts.sum() ** 0.5)


def paired_t(differences: np.ndarray) -> float:
    """Two-sided p-value of Student's t-test that paired differences have mean 0; NaN for fewer than two."""
    if len(differences) < 2:
        return float("nan")
    if np.ptp(differences) == 0:
        return 1.0 if differences[0] == 0 else 0.0
    return float(stats.ttest_1samp(differences, 0.0).pvalue)


def signed_rank(differences: np.ndarray) -> float:
    """Two-sided p-value of Wilcoxon's signed-rank test; NaN for fewer than two.

    Zero differences, of which recommendation has many, keep their rank and count half to either sign (``zsplit``).
    """
    if len(differences) < 2:
        return float("nan")
    if not differences.any():
        return 1.0
    with warnings.catch_warnings():
        # that zeros rule out the exact distribution of few differences: the normal approximation is meant
        warnings.filterwarnings("ignore", message="Exact p-value calculation", category=UserWarning)
        return float(stats.wilcoxon(differences, zero_method="zsplit").pvalue)
