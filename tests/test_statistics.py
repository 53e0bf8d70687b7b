"""Paired tests against scipy's and a permutation test, Holm's correction against its definition."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from recbole_guider.evaluation import compare, holm, paired_t, signed_rank
from recbole_guider.utils.errors import GuiderError


def rejected_by_steps(p: list[float], level: float) -> set[int]:
    """Holm's procedure as he states it: step down until the first test that is not significant."""
    rejected: set[int] = set()
    for position, test in enumerate(sorted(range(len(p)), key=lambda index: p[index])):
        if p[test] > level / (len(p) - position):
            break
        rejected.add(test)
    return rejected


def test_holm_rejects_what_the_procedure_rejects() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        p = (rng.random(7) ** 4).round(3).tolist()
        adjusted = holm(p)
        for level in (0.001, 0.01, 0.05, 0.2, 0.7):
            assert {k for k in range(7) if adjusted[k] <= level + 1e-12} == rejected_by_steps(p, level + 1e-12)
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    found = holm([0.01, float("nan"), 0.04])
    assert np.isnan(found[1])
    np.testing.assert_allclose(found[[0, 2]], [0.02, 0.04])
    assert len(holm([])) == 0


def test_paired_t_is_scipys() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=30), rng.normal(0.3, size=30)
    assert paired_t(a - b) == pytest.approx(stats.ttest_rel(a, b).pvalue)
    assert np.isnan(paired_t(np.array([1.0])))
    assert paired_t(np.zeros(5)) == 1.0 and paired_t(np.ones(5)) == 0.0


def test_the_signed_rank_test_agrees_with_all_sign_flips() -> None:
    rng = np.random.default_rng(2)
    d = np.concatenate([rng.normal(0.4, 1, size=11), np.zeros(3)])
    ranks = stats.rankdata(np.abs(d))
    # zeros give half their rank to either sign; every other sign is flipped
    zeros, rest = d == 0, np.flatnonzero(d)
    start = ranks[zeros].sum() / 2
    statistics = np.array(
        [start + ranks[rest][np.array(signs)].sum() for signs in itertools.product([True, False], repeat=len(rest))]
    )
    observed, centre = start + ranks[d > 0].sum(), ranks.sum() / 2
    exact = np.mean(np.abs(statistics - centre) >= abs(observed - centre) - 1e-9)
    assert signed_rank(d) == pytest.approx(exact, abs=0.03)
    assert signed_rank(np.zeros(4)) == 1.0
    assert signed_rank(d) == pytest.approx(signed_rank(-d))


def measured(effect: float, users: int = 200, seeds: int = 5, seed: int = 0) -> tuple[dict, dict]:
    rng = np.random.default_rng(seed)
    names = [f"u{user}" for user in range(users)]
    level = rng.random(users)
    theirs = {s: pd.Series(level + 0.1 * rng.normal(size=users), names) for s in range(seeds)}
    ours = {s: pd.Series(level + effect + 0.1 * rng.normal(size=users), names).sample(frac=1, random_state=s)
            for s in range(seeds)}
    return ours, theirs


def test_a_comparison_pairs_users_and_seeds() -> None:
    ours, theirs = measured(0.02)
    found = compare(ours, theirs)
    d = np.array([[ours[s][user] - theirs[s][user] for s in range(5)] for user in theirs[0].index])
    assert found.difference == pytest.approx(d.mean())
    assert found.theirs == pytest.approx(np.mean([series.mean() for series in theirs.values()]))
    assert found.relative == pytest.approx(found.difference / found.theirs)
    assert found.p_users == pytest.approx(stats.ttest_1samp(d.mean(axis=1), 0).pvalue)
    assert found.p_seeds == pytest.approx(stats.ttest_1samp(d.mean(axis=0), 0).pvalue)
    of_users, of_seeds = d.mean(axis=1).var(ddof=1) / 200, d.mean(axis=0).var(ddof=1) / 5
    freedom = (of_users + of_seeds) ** 2 / (of_users**2 / 199 + of_seeds**2 / 4)
    width = 2 * stats.t.ppf(0.975, freedom) * np.sqrt(of_users + of_seeds)
    assert found.high - found.low == pytest.approx(width, rel=1e-5)
    assert (found.users, found.seeds) == (200, 5)
    assert compare({0: ours[0]}, theirs).seeds == 1 and np.isnan(compare({0: ours[0]}, theirs).p_seeds)


@pytest.mark.slow
def test_the_tests_find_an_effect_and_keep_their_level() -> None:
    assert compare(*measured(0.05)).p_users < 1e-6
    false = [compare(*measured(0.0, seed=seed)).p_users < 0.05 for seed in range(200)]
    assert 2 <= sum(false) <= 20  # 10 expected


@pytest.mark.slow
def test_the_interval_of_two_seeds_covers_no_difference_often_enough() -> None:
    found = [compare(*measured(0.0, users=100, seeds=2, seed=seed)) for seed in range(200)]
    assert sum(each.low <= 0 <= each.high for each in found) >= 180  # 190 expected; a normal interval has some 175


def test_what_cannot_be_paired_is_said() -> None:
    ours, theirs = measured(0.0)
    with pytest.raises(GuiderError, match="no common seed"):
        compare({9: ours[0]}, theirs)
    with pytest.raises(GuiderError, match="seed 0: the two methods were not measured on the same users"):
        compare({0: ours[0].iloc[1:]}, theirs)
    renamed = {0: theirs[0], 1: theirs[1].rename({"u0": "x"})}
    with pytest.raises(GuiderError, match="users differ between seeds"):
        compare(renamed, {0: renamed[0], 1: renamed[1]})
