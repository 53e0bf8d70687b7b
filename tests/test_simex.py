"""The counted noise share, less the clean pairs that only the noise in their profiles makes look like noise."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from test_amsc import few_passes, inject, run, world  # noqa: F401

from recbole_guider.amsc import decision, fit, simex
from recbole_guider.amsc.behaviour import CoOccurrence
from recbole_guider.amsc.calibrator import judged_pairs
from recbole_guider.amsc.fit import LogCounts, fit_calibrator
from recbole_guider.amsc.profiles import Candidates, build_profiles
from recbole_guider.amsc.settings import CalibrationSettings
from recbole_guider.amsc.similarity import modality_list

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("noise", [0.0, 0.05, 0.3, 0.6])
@pytest.mark.parametrize("slope", [0.0, 0.2, 0.8])
@pytest.mark.parametrize("share", [0.2, 0.5])
def test_the_formula_finds_the_noise_of_its_model(noise, slope, share):
    counted = noise + (1 - noise) * slope * noise
    noisier = noise + (1 - noise) * slope * (noise + (1 - noise) * share)
    assert decision.extrapolated_noise_rate(counted, noisier, share) == pytest.approx(noise, abs=1e-12)


def test_what_looks_like_noise_in_every_profile_stays_and_chance_adds_nothing():
    assert decision.extrapolated_noise_rate(0.3, 0.3, 0.5) == pytest.approx(0.3)
    assert decision.extrapolated_noise_rate(0.3, 0.2, 0.5) == pytest.approx(0.3)
    assert decision.extrapolated_noise_rate(1.0, 1.0, 0.5) == pytest.approx(1.0)
    assert decision.extrapolated_noise_rate(0.3, 0.6, 0.0) == 0.3  # nothing could be replaced
    assert decision.extrapolated_noise_rate(0.0, 0.4, 0.5) == 0.0
    found = [decision.extrapolated_noise_rate(0.3, noisier, 0.5) for noisier in np.linspace(0.3, 1, 20)]
    assert np.all(np.diff(found) < 0) and found[-1] > 0


@cache
def learned(**settings):
    users, items, features, n_users, n_items = world(300, 200, sizes=(2, 20))
    profiles = build_profiles(users, items, n_users, n_items)
    chosen = CalibrationSettings(**settings)
    counts = LogCounts.of(profiles, chosen)
    return profiles, fit_calibrator(counts, profiles, modality_list(features, "all", n_items), chosen, 0)


@pytest.mark.parametrize("null_items", ["popularity", "uniform"])
def test_each_pair_gives_way_to_a_null_pair_once_and_profiles_keep_their_size(null_items):
    profiles, found = learned(null_items=null_items)
    halves = list(simex._halves_with_more_noise(profiles, found.calibrator, np.random.default_rng(0)))
    stays = np.array([half.has(profiles.users, profiles.items) for half in halves])
    # a pair whose stand-in has come already stays in both
    assert np.all(stays.any(axis=0)) and np.mean(stays.all(axis=0)) < 0.1
    assert np.mean(stays[0]) == pytest.approx(0.5, abs=0.06)
    came = []
    for half in halves:
        assert np.array_equal(half.indptr, profiles.indptr) and np.array_equal(half.user_keys, profiles.user_keys)
        new = ~profiles.has(half.users, half.items)
        came += half.items[new].tolist()
    popularity = np.corrcoef(np.bincount(came, minlength=profiles.n_items), profiles.item_degree)[0, 1]
    assert popularity > 0.8 if null_items == "popularity" else popularity < 0.4


def test_co_occurrence_is_that_of_the_diluted_log():
    profiles, found = learned()
    assert isinstance(found.calibrator.evidence.behaviour, CoOccurrence)
    half = next(iter(simex._halves_with_more_noise(profiles, found.calibrator, np.random.default_rng(0))))
    pairs = np.arange(0, half.n_pairs, 37)
    observed = Candidates(half.users[pairs], half.items[pairs], half.items[pairs])
    got = found.calibrator.evidence.of_log(half).columns(half, observed)["behaviour"]
    baskets = {u: set(half.items[half.users == u].tolist()) for u in range(half.n_users)}
    c = found.calibrator.evidence.agreement
    for user, item, value in zip(observed.users, observed.items, got, strict=True):
        others = [p for u, p in baskets.items() if u != user]
        similarities = []
        for other in baskets[user] - {int(item)}:
            both, one, two = (sum(wanted <= p for p in others) for wanted in ({item, other}, {item}, {other}))
            similarities.append(both / np.sqrt(one * two) * np.sqrt(c[item] * c[other]) if one and two else 0.0)
        assert value == pytest.approx(np.mean(similarities) if similarities else 0.0, abs=1e-6)


def test_the_count_is_that_of_every_pair_against_its_diluted_profile(monkeypatch):
    profiles, found = learned()
    calibrator = found.calibrator
    seen = []

    def counting(ratio, null_ratio):
        seen.append((ratio, null_ratio))
        return 0.25

    monkeypatch.setattr(decision, "counted_noise_rate", counting)
    got = simex.simex_count(calibrator, profiles, None, found.nulls, np.random.default_rng(3))
    assert got.noise_rate == 0.25 and 0.45 < got.share < 0.51
    ratio, null_ratio = seen[0]
    judged = judged_pairs(profiles, calibrator.settings)
    assert judged.sum() <= len(ratio) < 1.1 * judged.sum()
    assert 0.95 * len(found.nulls.items) < len(null_ratio) < 1.1 * len(found.nulls.items)
    # noise in the profiles blurs what clean pairs look like
    observed = Candidates(profiles.users[judged], profiles.items[judged], profiles.items[judged])
    assert np.median(ratio) < np.median(calibrator.ratio(profiles, observed))
    # the users that are judged may be some of those whose co-occurrence is counted
    every = simex.simex_count(
        calibrator, profiles, np.arange(profiles.n_users), found.nulls, np.random.default_rng(3)
    )
    assert every == got
    np.testing.assert_array_equal(seen[0][0], seen[1][0])


def test_judging_candidates_gives_the_ratios_that_probabilities_come_from():
    profiles, found = learned()
    calibrator, every = found.calibrator, np.arange(profiles.n_pairs)
    judged = judged_pairs(profiles, calibrator.settings)
    ratio = calibrator.ratio(profiles, Candidates(profiles.users[every], profiles.items[every], profiles.items[every]))
    probability = calibrator(profiles).probability
    expected = decision.local_clean_probability(ratio, calibrator.conservative_pi0)
    assert calibrator.by_popularity is not None and len(calibrator.by_popularity.factor) > 1
    expected = calibrator.by_popularity.clean_probability(expected, profiles.item_degree[profiles.items])
    np.testing.assert_array_equal(probability[judged], expected[judged])


def test_the_share_is_nearer_to_the_truth_where_content_is_blurred(monkeypatch):
    counted, found, truth = [], [], []
    original = decision.extrapolated_noise_rate

    def noted(count, noisier, share):
        counted.append(count)
        return original(count, noisier, share)

    monkeypatch.setattr(decision, "extrapolated_noise_rate", noted)
    for seed in range(3):
        # nobody strays from a taste: what is injected is all the noise there is
        users, items, features, n_users, n_items = world(2000, 600, seed, sharpness=1.0, sizes=(3, 30))
        image = features["image"] + 2 * np.random.default_rng(seed).normal(size=features["image"].shape)
        users, items, noise = inject(users, items, n_users, n_items, 0.3, seed)
        content_alone = {"behaviour": False, "learned": False, "nearest": False}
        result = run(users, items, {"image": image}, n_users, n_items, seed=seed, **content_alone)
        found.append(result.noise_rate)
        truth.append(noise.mean())
    assert np.mean(counted) > np.mean(truth) + 0.04
    assert np.mean(found) == pytest.approx(np.mean(truth), abs=0.03)


def test_a_given_rate_and_other_decisions_extrapolate_nothing(monkeypatch):
    monkeypatch.setattr(fit, "simex_count", None)
    users, items, features, n_users, n_items = world()
    for settings in ({"noise_rate": 0.2}, {"decision": "quantile"}):
        run(users, items, features, n_users, n_items, **settings)


def test_where_some_users_are_judged_and_all_are_counted(monkeypatch):
    users, items, features, n_users, n_items = world(600, 300, sizes=(4, 25))
    users, items, _ = inject(users, items, n_users, n_items, 0.3, 0)
    whole = run(users, items, features, n_users, n_items).noise_rate
    seen = []
    original = fit.simex_count

    def noted(calibrator, profiles, chosen, *more):
        seen.append((profiles.n_users, chosen))
        return original(calibrator, profiles, chosen, *more)

    monkeypatch.setattr(fit, "simex_count", noted)
    monkeypatch.setattr(fit, "SAMPLE", 12_000)  # null pairs included: about half of the users
    assert run(users, items, features, n_users, n_items).noise_rate == pytest.approx(whole, abs=0.08)
    (counted, chosen), = seen
    assert counted == n_users and 0.3 * n_users < len(chosen) < 0.7 * n_users
