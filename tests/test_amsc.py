"""AMSC against naive loops, and the properties that its probabilities must have."""

from __future__ import annotations

from functools import cache
from itertools import combinations

import numpy as np
import pytest
import torch

from recbole_guider.amsc import Calibration, calibrate, decision, factor_training
from recbole_guider.amsc.behaviour import CoOccurrence
from recbole_guider.amsc.evidence import adaptive_weights
from recbole_guider.amsc.factor_training import learn_factors
from recbole_guider.amsc.fit import NULL_DRAWS
from recbole_guider.amsc.folds import UserFolds
from recbole_guider.amsc.learned import FOLDS, RIDGE, half_whitened, held_out_ridge, joined_content, learn_embeddings
from recbole_guider.amsc.profiles import Candidates, build_profiles, draw_null_pairs
from recbole_guider.amsc.settings import CalibrationSettings
from recbole_guider.amsc.similarity import confidence, normalise_modality
from recbole_guider.utils.errors import GuiderError

TASTES = 6


@pytest.fixture(autouse=True)
def few_passes(monkeypatch):
    """Nothing here but what says so asks how well factors are learned; one pass over the pairs is quick."""
    monkeypatch.setattr(factor_training, "EPOCHS", 1)


def world(n_users=300, n_items=150, seed=0, sharpness=0.9, dims=(12, 8), sizes=(1, 30)):
    """Users with one taste each who mostly choose items of that taste; content that shows the taste."""
    rng = np.random.default_rng(seed)
    taste = rng.integers(TASTES, size=n_items)
    popularity = rng.pareto(3.0, size=n_items) + 0.5
    pairs = []
    for user in range(n_users):
        weight = popularity * np.where(taste == rng.integers(TASTES), sharpness, 1 - sharpness)
        size = min(int(rng.integers(*sizes)), n_items // 3)
        pairs += [(user, i) for i in rng.choice(n_items, size=size, replace=False, p=weight / weight.sum())]
    features = {}
    for name, d in zip(("image", "text", "sound"), dims, strict=False):
        centre = rng.normal(size=(TASTES, d))
        features[name] = (centre[taste] + rng.normal(size=(n_items, d)) + 3.0).astype(np.float32)
    users, items = np.array(pairs).T
    return users, items, features, n_users, n_items


def inject(users, items, n_users, n_items, ratio, seed):
    """Noise with users drawn by activity and items by popularity; returns the pairs and which are noise."""
    rng = np.random.default_rng(seed)
    seen = set(zip(users.tolist(), items.tolist(), strict=True))
    added = []
    while len(added) < round(ratio * len(users)):
        pair = (int(rng.choice(users)), int(rng.choice(items)))
        if pair not in seen:
            seen.add(pair)
            added.append(pair)
    new = np.array(added, dtype=np.int64).reshape(-1, 2)
    noise = np.repeat([False, True], [len(users), len(new)])
    return np.concatenate([users, new[:, 0]]), np.concatenate([items, new[:, 1]]), noise


def run(users, items, features, n_users, n_items, seed=0, **settings) -> Calibration:
    return calibrate(
        users,
        items,
        features,
        n_users=n_users,
        n_items=n_items,
        settings=CalibrationSettings(**settings),
        seed=seed,
    )


def auroc(good, bad):
    order = np.sort(bad)
    return (np.searchsorted(order, good, "left") + np.searchsorted(order, good, "right")).mean() / (2 * len(bad))


# ---------------------------------------------------------------- naive forms


def naive_unit(feature):
    values, present = feature if isinstance(feature, tuple) else (feature, np.ones(len(feature), bool))
    values = np.asarray(values, dtype=np.float64)
    present = present & np.array([bool(np.any(row)) for row in values])
    mean = np.mean([values[i] for i in range(len(values)) if present[i]], axis=0)
    rows = np.zeros_like(values)
    for i in range(len(values)):
        if present[i]:
            rows[i] = (values[i] - mean) / np.linalg.norm(values[i] - mean)
    return rows, present


def naive_similarities(user, i, other, units, profiles, degree, c):
    """name -> sqrt(c_i c_i') S_m(i, i') with the part of ``user`` taken out of behaviour."""
    root = np.sqrt(c[i] * c[other])
    result = {name: root * float(rows[i] @ rows[other]) for name, rows in units.items()}
    own = i in profiles[user]
    common = sum(1 for v, p in profiles.items() if v != user and i in p and other in p)
    d, d_other = degree[i] - own, degree[other] - 1
    result["behaviour"] = root * common / np.sqrt(d * d_other) if d > 0 and d_other > 0 else 0.0
    return result


def naive_scores(pairs, units, profiles, degree, c, weights):
    """(score, parts) of (user, item, left out) triples by a double loop; ``nearest.<name>``: the largest similarity."""
    scores, parts = [], {name: [] for name in (*weights, *(f"nearest.{name}" for name in units))}
    for user, item, left_out in pairs:
        rest = [other for other in profiles[user] if other != left_out]
        each = [naive_similarities(user, item, other, units, profiles, degree, c) for other in rest]
        for name in weights:
            parts[name].append(np.mean([s[name] for s in each]) if each else 0.0)
        for name in units:
            parts[f"nearest.{name}"].append(max((s[name] for s in each), default=0.0))
        total = [sum(weights[n] * s[n] for n in weights) for s in each]
        scores.append(np.mean(total) if total else 0.0)
    return np.array(scores), {name: np.array(values) for name, values in parts.items()}


@pytest.mark.parametrize("names", [("image",), ("image", "text"), ("image", "text", "sound")])
@pytest.mark.parametrize("behaviour", [True, False])
def test_scores_equal_a_double_loop(names, behaviour):
    users, items, features, n_users, n_items = world(40, 30, seed=1, dims=(12, 8, 300), sizes=(1, 25))
    features = {name: features[name] for name in names}
    missing = np.arange(n_items) % 5 != 0
    features["image"] = (np.where(missing[:, None], features["image"], np.nan), missing)
    users, items = np.append(users, users[:7]), np.append(items, items[:7])
    result = run(users, items, features, n_users, n_items, behaviour=behaviour)

    features["image"] = (np.where(missing[:, None], features["image"][0], 0), missing)
    units = {name: naive_unit(feature)[0] for name, feature in features.items()}
    profiles = {u: sorted(set(items[users == u].tolist())) for u in range(n_users)}
    degree = np.bincount([i for p in profiles.values() for i in p], minlength=n_items)
    common = (units, profiles, degree, result.confidence.astype(float), result.modality_weights)
    assert list(result.modality_weights) == list(names) + ["behaviour"] * behaviour

    score, parts = naive_scores(list(zip(users, items, items, strict=True)), *common)
    np.testing.assert_allclose(result.score, score, atol=1e-5)
    for name, part in parts.items():
        np.testing.assert_allclose(result.evidence[name], part, atol=1e-5)

    left_out = items[result.null_pair]
    null_users = users[result.null_pair]
    assert all(j not in profiles[u] for u, j in zip(null_users, result.null_item, strict=True))
    null_score, null_parts = naive_scores(list(zip(null_users, result.null_item, left_out, strict=True)), *common)
    np.testing.assert_allclose(result.null_score, null_score, atol=1e-5)
    for name, part in null_parts.items():
        np.testing.assert_allclose(result.null_evidence[name], part, atol=1e-5)
    distinct = {(u, i) for u, i in zip(users.tolist(), items.tolist(), strict=True) if len(profiles[u]) >= 3}
    assert len(result.null_pair) == NULL_DRAWS * len(distinct)


def test_no_residue_where_the_score_is_zero():
    # Users who share no item, so that behaviour is exactly 0 once their own part is removed.
    users, items = np.repeat(np.arange(30), 7), np.arange(210)
    features = {"text": np.eye(210, dtype=np.float32)}
    result = run(users, items, features, 30, 210)
    assert not result.evidence["behaviour"].any()
    assert not result.null_evidence["behaviour"].any()
    rest = np.random.default_rng(0).normal(size=(210, 4))
    rest[np.arange(0, 210, 2)] = 0  # absent: half of the scores are exactly 0
    result = run(users, items, {"text": rest}, 30, 210, behaviour=False)
    assert not result.evidence["text"][::2].any()


@pytest.mark.parametrize("dims", [(12, 8), (12, 8, 20)])
def test_confidence_by_relative_representations(dims):
    _, _, features, _, n_items = world(dims=dims)
    present = np.arange(n_items) % 4 != 0
    features["text"] = (features["text"], present)
    modalities = [normalise_modality(name, feature, n_items) for name, feature in features.items()]
    got = confidence(modalities, anchors=50, rng=np.random.default_rng(3))
    order = np.random.default_rng(3).permutation(n_items)
    units = [naive_unit(feature) for feature in features.values()]
    for i in range(n_items):
        agreements = []
        for (left, has_left), (right, has_right) in combinations(units, 2):
            if not (has_left[i] and has_right[i]):
                continue
            chosen = [a for a in order if has_left[a] and has_right[a]][:50]
            r = [np.array([rows[i] @ rows[a] for a in chosen if a != i]) for rows in (left, right)]
            agreements.append(np.corrcoef(*r)[0, 1])
        expected = (1 + np.mean(agreements)) / 2 if agreements else 1.0
        assert got[i] == pytest.approx(expected, abs=1e-5)


def test_agreeing_modalities_are_trusted():
    rng = np.random.default_rng(0)
    image = rng.normal(size=(200, 10))
    text = image @ rng.normal(size=(10, 10)) + 0.1 * rng.normal(size=(200, 10))
    text[:50] = rng.normal(size=(50, 10)) * text.std()  # content of something else
    result = run([0, 1], [0, 1], {"image": image, "text": text}, 2, 200)
    assert result.confidence[50:].mean() > result.confidence[:50].mean() + 0.2
    assert result.confidence.min() >= 0 and result.confidence.max() <= 1


def test_adaptive_weights():
    rng = np.random.default_rng(0)
    observed = {"a": rng.normal(1, 1, 500), "b": rng.normal(0.5, 2, 500), "c": rng.normal(-1, 1, 500)}
    null = {name: rng.normal(0, 1, 500) for name in observed}
    raw = [max(observed[n].mean() - null[n].mean(), 0) / (observed[n].var() + null[n].var()) for n in ("a", "b", "c")]
    got = adaptive_weights(observed, null)
    np.testing.assert_allclose(list(got.values()), np.array(raw) / sum(raw))
    assert got["c"] == 0 and sum(got.values()) == pytest.approx(1)
    same = {name: np.zeros(5) for name in "ab"}
    assert adaptive_weights(same, same) == {"a": 0.5, "b": 0.5}


def test_uninformative_modality_gets_little_weight():
    users, items, features, n_users, n_items = world()
    features["text"] = np.random.default_rng(9).normal(size=features["text"].shape)
    weights = run(users, items, features, n_users, n_items, behaviour=False).modality_weights
    assert weights["image"] > 4 * weights["text"]


# ---------------------------------------------------------------- the paired null


def test_null_items_follow_popularity_or_are_uniform():
    users, items, _, n_users, n_items = world(400, 60, sizes=(3, 12))
    profiles = build_profiles(users, items, n_users, n_items)
    rows = np.repeat(np.arange(profiles.n_pairs), 30)
    for by_popularity in (True, False):
        nulls = draw_null_pairs(profiles, rows, by_popularity=by_popularity, rng=np.random.default_rng(0))
        assert not profiles.has(profiles.users[nulls.pair], nulls.items).any()
        weight = profiles.item_degree if by_popularity else (profiles.item_degree > 0).astype(float)
        expected = np.zeros(n_items)
        for user in range(n_users):
            free = weight.astype(float).copy()
            free[profiles.items[profiles.users == user]] = 0
            expected += profiles.size[user] * 30 * free / free.sum()
        got = np.bincount(nulls.items, minlength=n_items)
        assert np.abs(got - expected).max() < 6 * np.sqrt(expected.max())


def test_a_user_with_nearly_every_item_gets_the_free_ones():
    users, items = np.repeat([0, 1, 2], [50, 49, 5]), np.concatenate([np.arange(50), np.arange(49), np.arange(5)])
    profiles = build_profiles(users, items, 3, 50)
    nulls = draw_null_pairs(profiles, np.arange(104), by_popularity=True, rng=np.random.default_rng(0))
    of = profiles.users[nulls.pair]
    assert not np.any(of == 0)
    assert set(nulls.items[of == 1].tolist()) == {49}
    assert np.sum(of == 2) == 5


@cache
def judged_with_noise(seed: int) -> tuple[Calibration, np.ndarray, np.ndarray]:
    """(what AMSC says, profile size, whether it was injected) of the pairs of a world with noise."""
    users, items, features, n_users, n_items = world(900, 600, seed=seed, sizes=(2, 16))
    users, items, noise = inject(users, items, n_users, n_items, 0.3, seed)
    result = run(users, items, features, n_users, n_items, seed=seed, min_profile=2)
    return result, np.bincount(users, minlength=n_users)[users], noise


@pytest.mark.slow
@pytest.mark.parametrize(
    "columns",
    [["image"], ["behaviour"], ["learned.behaviour", "learned.both"], ["nearest.image", "nearest.learned.both"]],
)
def test_injected_noise_looks_like_its_null_pairs_at_every_profile_size(columns):
    distances, zeros = [], []
    for seed in range(3):
        result, size, noise = judged_with_noise(seed)
        null_of_noise = noise[result.null_pair]
        for column in columns:
            part, null = result.evidence[column], result.null_evidence[column]
            for low, high in [(2, 5), (6, 10), (11, 15), (16, 40)]:
                a = np.sort(part[noise & (low <= size) & (size <= high)])
                chosen = null_of_noise & (low <= size[result.null_pair]) & (size[result.null_pair] <= high)
                b = np.sort(null[chosen])
                assert min(len(a), len(b)) > 50
                grid = np.concatenate([a, b])
                gap = np.searchsorted(a, grid, "right") / len(a) - np.searchsorted(b, grid, "right") / len(b)
                scale = np.sqrt(1 / len(a) + 1 / len(b))
                distances.append(np.abs(gap).max() / scale)
                zeros.append((np.mean(a == 0) - np.mean(b == 0)) / (0.5 * scale))
    # Kolmogorov's distribution: 1.95 is passed by chance once in a thousand, and the median is 0.83.
    assert max(distances) < 1.95
    assert np.mean(distances) < 1.15
    assert np.abs(zeros).max() < 4 and abs(np.mean(zeros)) < 1


# ---------------------------------------------------------------- probabilities


@pytest.mark.slow
def test_noise_is_found_and_its_share_follows_what_was_injected():
    users, items, features, n_users, n_items = world(500, 600, sharpness=0.97, sizes=(4, 25))
    shares, estimates = [], []
    for ratio in (0.0, 0.1, 0.3, 0.6):
        noisy_users, noisy_items, noise = inject(users, items, n_users, n_items, ratio, 5)
        result = run(noisy_users, noisy_items, features, n_users, n_items)
        shares.append(noise.mean())
        estimates.append(result.noise_rate)
        assert np.mean(1 - result.clean_probability) == pytest.approx(result.noise_rate, abs=0.05)
        if ratio:
            assert auroc(result.clean_probability[~noise], result.clean_probability[noise]) > 0.8
    assert np.all(np.diff(estimates) > 0)
    clean = estimates[0]
    for r, estimate in zip(shares, estimates, strict=True):
        assert estimate == pytest.approx(clean + r - clean * r, abs=0.06)


@pytest.mark.parametrize("blur", [0.0, 1.0])
def test_the_noise_share_is_counted_and_does_not_follow_the_judges_errors(blur):
    rng = np.random.default_rng(0)
    # evidence of noise is uniform; clean pairs have none below 0.3; f/f0 is judged with errors of a factor e^blur
    true_share, n = 0.3, 40_000
    evidence = np.concatenate([rng.uniform(size=int(n * true_share)), rng.uniform(0.3, 1.0, size=int(n * 0.7))])
    null = rng.uniform(size=n)

    def judged(x):
        ratio = np.where(x < 0.3, true_share, true_share + 1.0) * np.exp(2.0 * x)
        return ratio * np.exp(blur * rng.normal(size=len(x)))

    found = decision.counted_noise_rate(judged(evidence), null_ratio := judged(null))
    assert found >= 0.3 - 0.03
    if not blur:
        assert found == pytest.approx(0.3, abs=0.03)
    else:  # the quantile takes the errors for a low floor
        assert np.quantile(null_ratio, 0.05) < 0.15
    # few pairs: no fewer than 100 null pairs are counted
    few = np.arange(100.0)
    assert decision.counted_noise_rate(few[50:], few) == 1.0
    assert decision.counted_noise_rate(few, np.arange(400.0)) == 1.0  # 100 of 400 null pairs, and all observed ones
    assert decision.counted_noise_rate(np.zeros(0), few) == 0.0


def test_probabilities_are_cautious():
    users, items, features, n_users, n_items = world(500, 600, sharpness=0.8, sizes=(4, 10))
    noisy_users, noisy_items, _ = inject(users, items, n_users, n_items, 0.5, 5)
    result = run(noisy_users, noisy_items, features, n_users, n_items)
    assert 0.2 < result.noise_rate < np.mean(1 - result.clean_probability) + 0.02


def test_a_given_noise_rate_is_kept():
    users, items, features, n_users, n_items = world()
    for given in (0.0, 0.1, 0.4):
        result = run(users, items, features, n_users, n_items, noise_rate=given)
        assert result.noise_rate == given
        assert np.mean(1 - result.clean_probability) == pytest.approx(given, abs=0.05)
    assert run(users, items, features, n_users, n_items, noise_rate=0.0).is_clean.all()


def test_degrees_are_no_evidence():
    # Content and profiles that say nothing, strong differences of popularity and activity.
    rng = np.random.default_rng(0)
    weight, n_users, n_items = rng.pareto(3.0, size=500) + 0.3, 500, 500
    pairs = [
        (u, i)
        for u in range(n_users)
        for i in rng.choice(n_items, size=int(rng.choice([3, 6, 20])), replace=False, p=weight / weight.sum())
    ]
    users, items = np.array(pairs).T
    result = run(users, items, {"text": rng.normal(size=(500, 10))}, n_users, n_items, behaviour=False)
    lost = 1 - result.clean_probability
    for degree in (np.bincount(users)[users], np.bincount(items)[items]):
        group = np.searchsorted(np.quantile(degree, [0.33, 0.67]), degree)
        rates = [lost[group == g].mean() for g in np.unique(group)]
        assert max(rates) - min(rates) < 0.15


def test_groups_by_popularity_have_shares_of_noise_of_their_own():
    rng = np.random.default_rng(0)
    shares = np.array([0.05, 0.1, 0.1, 0.1, 0.3])  # of the pairs of rare, ..., popular items
    popularity = np.repeat([1, 4, 7, 20, 90], 4000) + rng.integers(3, size=20_000)
    noise = rng.random(20_000) < shares[np.repeat(np.arange(5), 4000)]
    # evidence of noise is uniform, clean pairs are all above 0.8; half as many null pairs
    ratio = np.where(noise, rng.random(20_000), rng.uniform(0.8, 3.0, size=20_000))
    null_popularity, null_ratio = popularity[::2], rng.random(10_000)
    found = decision.NoiseByPopularity.estimate(ratio, popularity, null_ratio, null_popularity)
    for group, share in enumerate(shares):
        low, high = (popularity[4000 * group : 4000 * (group + 1)].min(), popularity[4000 * group :][:4000].max())
        assert np.ptp(found(np.array([low, high]))) == 0  # one group, whatever the popularity in it
        of_group = (low <= popularity) & (popularity <= high)
        null = np.sort(null_ratio[(low <= null_popularity) & (null_popularity <= high)])
        least = null[int(0.65 * (len(null) - 1))]
        weak = np.mean(ratio[of_group] <= least) / np.mean(null <= least)
        everywhere = noise.mean()
        assert found(np.array([low]))[0] == pytest.approx(weak / everywhere, rel=0.05)
        assert found(np.array([low]))[0] == pytest.approx(share / shares.mean(), rel=0.2)
    assert np.mean(found(popularity)) == pytest.approx(1.0)
    # odds are multiplied, what is certain stays
    p = np.array([0.0, 0.2, 0.5, 0.9, 1.0])
    for degree in (1, 90):
        other = found.clean_probability(p, np.full(5, degree))
        assert other[[0, 4]].tolist() == [0.0, 1.0]
        factor = found(np.array([degree]))[0]
        assert (1 - other[1:4]) / other[1:4] == pytest.approx(factor * (1 - p[1:4]) / p[1:4])
    # beyond what was seen: the group at that end
    assert found(np.array([0, 10**6])) == pytest.approx(found.factor[[0, -1]])


def test_few_pairs_or_equal_popularity_are_one_group():
    rng = np.random.default_rng(0)
    estimate = decision.NoiseByPopularity.estimate
    few, many = rng.random(1999), rng.random(8000)
    degree = rng.integers(1, 50, size=8000)
    for found in (
        estimate(few, degree[:1999], many, degree),
        estimate(many, degree, few, degree[:1999]),
        estimate(np.zeros(0), degree[:0], np.zeros(0), degree[:0]),
        estimate(many, np.full(8000, 3), many, np.full(8000, 3)),
        estimate(many, np.arange(8000), many, np.zeros(8000, dtype=np.int64)),  # no null pair has a popular item
    ):
        assert found(np.array([0, 3, 10_000])) == pytest.approx(np.ones(3))


@pytest.mark.slow
def test_fewer_pairs_of_rare_items_are_called_noise_where_they_hold_less_of_it():
    users, items, features, n_users, n_items = world(500, 300, sharpness=0.97, sizes=(4, 25))
    noisy_users, noisy_items, noise = inject(users, items, n_users, n_items, 0.4, 5)
    degree = np.bincount(items, minlength=n_items)
    popular = degree >= np.median(degree[items])  # noise falls on popular items alone
    kept = ~noise | popular[noisy_items]
    noisy_users, noisy_items, noise = noisy_users[kept], noisy_items[kept], noise[kept]
    rare = ~popular[noisy_items]
    doubted = {}
    for noise_by in ("popularity", "none"):
        result = run(noisy_users, noisy_items, features, n_users, n_items, noise_by=noise_by)
        p = result.clean_probability
        doubted[noise_by] = (1 - p[rare]).mean() / (1 - p).mean()
        assert auroc(p[~noise], p[noise]) > 0.85
    assert doubted["popularity"] < 0.85 * doubted["none"]
    # where popularity is evidence it has its say there
    both = [
        run(noisy_users, noisy_items, features, n_users, n_items, popularity=True, noise_by=noise_by)
        for noise_by in ("popularity", "none")
    ]
    np.testing.assert_array_equal(both[0].clean_probability, both[1].clean_probability)


@pytest.mark.parametrize("decision_name", ["lfdr", "quantile"])
def test_probabilities_never_fall_as_a_similarity_rises(decision_name):
    users, items, features, n_users, n_items = world(sizes=(3, 30))
    rng = np.random.default_rng(0)
    result = run(users, items, features, n_users, n_items, decision=decision_name)
    if decision_name != "lfdr":
        order = np.argsort(result.score, kind="stable")
        p = result.clean_probability
        assert np.all(np.diff(p[order]) >= -1e-6)
        return
    names = list(result.evidence)
    observed = np.column_stack([result.evidence[n] for n in names] + [np.bincount(users)[users]]).astype(float)
    null = np.column_stack([result.null_evidence[n] for n in names] + [np.bincount(users)[users[result.null_pair]]])
    monotone = [1] * len(names) + [0]
    fitted = decision.CrossFitted(observed, null, users, users[result.null_pair], monotone, rng)
    for column in range(len(names)):
        # The same rows again, of users of their own part, with one similarity raised step by step.
        step = np.zeros_like(observed[:200])
        step[:, column] = 0.05
        grid = [observed[:200] + k * step for k in range(-10, 20)]
        rows = np.concatenate([observed, *grid])
        owner = np.concatenate([users, *[users[:200]] * len(grid)])
        ratio = fitted.ratio(rows, owner)[len(observed) :].reshape(len(grid), 200)
        p = decision.local_clean_probability(ratio, 0.3)
        assert np.all(np.diff(p, axis=0) >= 0)
        assert p.min() >= 0 and p.max() <= 1


def test_one_similarity_alone_is_judged_by_isotonic_regression():
    users, items, features, n_users, n_items = world()
    settings = {"behaviour": False, "learned": False, "nearest": False, "modalities": ["image"]}
    users, items, noise = inject(users, items, n_users, n_items, 0.3, 0)
    result = run(users, items, features, n_users, n_items, **settings)
    assert list(result.evidence) == ["image"] and result.modality_weights == {"image": 1.0}
    assert auroc(result.clean_probability[~noise], result.clean_probability[noise]) > 0.6
    levels = len(np.unique(result.clean_probability))
    assert 3 < levels < len(users) / 4


def test_isotonic_ratio_follows_the_densities():
    rng = np.random.default_rng(0)
    observed, null = rng.normal(1, 1, (20_000, 1)), rng.normal(0, 1, (20_000, 1))
    who = np.arange(20_000)
    fitted = decision.CrossFitted(observed, null, who, who, [1], rng)
    x = np.linspace(-1, 2, 13)
    got = fitted.ratio(x[:, None], np.zeros(13, dtype=np.int64))
    np.testing.assert_allclose(np.log(got), x - 0.5, atol=0.25)


@pytest.mark.parametrize("decision_name", ["lfdr", "quantile"])
def test_no_user_loses_everything(decision_name):
    users, items, features, n_users, n_items = world(sharpness=0.4)
    result = run(users, items, features, n_users, n_items, noise_rate=0.9, decision=decision_name)
    kept = np.bincount(users, weights=result.is_clean, minlength=n_users)
    assert np.all(kept[np.unique(users)] >= 1)
    assert result.n_false > 0 and result.n_true + result.n_false == len(users)
    # training sees the same: no probability but those of the kept ones differs
    training = result.training_probability
    np.testing.assert_array_equal(training >= 0.5, result.is_clean)
    lifted = training != result.clean_probability
    assert lifted.any() and (training[lifted] == 0.5).all() and result.is_clean[lifted].all()
    alone = np.bincount(users)[users] < 3
    np.testing.assert_allclose(result.clean_probability[alone], 0.1, atol=1e-6)


def test_ranks_flag_the_given_share():
    users, items, features, n_users, n_items = world(sizes=(5, 30))
    result = run(users, items, features, n_users, n_items, decision="quantile", noise_rate=0.2)
    assert np.mean(result.clean_probability < 0.5) == pytest.approx(0.2, abs=0.02)
    users, items, noise = inject(users, items, n_users, n_items, 0.5, 0)
    result = run(users, items, features, n_users, n_items, decision="quantile")
    assert 0.3 < result.noise_rate < 0.75  # the clean pairs below the null median count as noise
    assert auroc(result.clean_probability[~noise], result.clean_probability[noise]) > 0.7


# ---------------------------------------------------------------- learned similarities


def test_learned_embeddings_know_nothing_of_their_own_users():
    users, items, features, n_users, n_items = world()
    modalities = [normalise_modality(name, feature, n_items) for name, feature in features.items()]
    joined = joined_content(modalities, np.random.default_rng(0))
    profiles = build_profiles(users, items, n_users, n_items)
    learned = learn_embeddings(profiles, joined, np.random.default_rng(0))
    part = learned["behaviour"].folds(np.arange(n_users))
    for k in range(FOLDS):
        # Shuffle what the users of part k did: their embeddings must stay as they were.
        mine = part[users] == k
        other = items.copy()
        other[mine] = np.random.default_rng(1).permutation(items[mine])
        changed = learn_embeddings(build_profiles(users, other, n_users, n_items), joined, np.random.default_rng(0))
        for name in learned:
            np.testing.assert_array_equal(changed[name].rows[k], learned[name].rows[k])
            assert not np.array_equal(changed[name].rows[(k + 1) % FOLDS], learned[name].rows[(k + 1) % FOLDS])


def test_held_out_ridge_equals_a_fit_without_the_item():
    rng = np.random.default_rng(0)
    x, y, w = rng.normal(size=(40, 6)), rng.normal(size=(40, 3)), rng.integers(0, 5, size=(40, 1)).astype(float)
    penalty = RIDGE * np.trace(x.T @ (w * x)) / 6
    got = held_out_ridge(x, y, w)
    for i in range(40):
        rest = np.arange(40) != i
        gram = x[rest].T @ (w[rest] * x[rest]) + penalty * np.eye(6)
        np.testing.assert_allclose(got[i], x[i] @ np.linalg.solve(gram, x[rest].T @ (w[rest] * y[rest])), atol=1e-9)


def test_learned_scores_and_nearest_items_equal_a_double_loop():
    users, items, features, n_users, n_items = world(60, 40, seed=2, sizes=(2, 14))
    result = run(users, items, features, n_users, n_items, seed=4)
    modalities = [normalise_modality(name, feature, n_items) for name, feature in features.items()]
    rng = np.random.default_rng([4, 2])  # the third of the generators of calibrate
    joined = joined_content(modalities, rng)
    learned = learn_embeddings(build_profiles(users, items, n_users, n_items), joined, rng)
    part = learned["content"].folds(np.arange(n_users))
    profiles = {u: set(items[users == u].tolist()) for u in range(n_users)}
    degree = np.bincount(items, minlength=n_items)
    root = np.sqrt(result.confidence.astype(float))
    middle = joined - np.average(joined, axis=0, weights=degree)
    observed = list(zip(users, items, items, strict=True))
    null = list(zip(users[result.null_pair], result.null_item, items[result.null_pair], strict=True))

    def check(name, score):
        for pairs, got in ((observed, result.evidence), (null, result.null_evidence)):
            expected = [score(u, i, [o for o in sorted(profiles[u]) if o != out]) for u, i, out in pairs]
            np.testing.assert_allclose(got[name], expected, atol=1e-5, rtol=1e-4)

    for name, folded in learned.items():
        rows = [r.astype(float) for r in folded.rows]

        def mean_cosine(u, i, rest, rows=rows):
            v = rows[part[u]]
            return np.mean([root[i] * root[o] * (v[i] @ v[o]) for o in rest]) if rest else 0.0

        def nearest(u, i, rest, rows=rows):
            v = rows[part[u]]
            return max((root[i] * root[o] * (v[i] @ v[o]) for o in rest), default=0.0)

        check(f"learned.{name}", mean_cosine)
        check(f"nearest.learned.{name}", nearest)
    for modality in modalities:
        v = modality.rows.astype(float) * root[:, None]
        check(f"nearest.{modality.name}", lambda u, i, rest, v=v: max((v[i] @ v[o] for o in rest), default=0.0))

    def product(rows, i, rest):
        total = np.sum([rows[o] for o in rest], axis=0)
        length = np.linalg.norm(total)
        return rows[i] * total / length if length > 1e-6 else np.zeros(rows.shape[1])

    fitted = learn_factors(
        build_profiles(users, items, n_users, n_items),
        learned["content"].folds,
        degree,
        half_whitened(joined),
        True,
        np.random.default_rng([4, 4]),
    )

    def next_to_the_rest(u, i, rest):
        context, target = fitted.context[part[u]].astype(float), fitted.target[part[u]].astype(float)
        total = np.sum([context[o] for o in rest], axis=0)
        return total @ target[i] / np.linalg.norm(total) / np.linalg.norm(target[i]) if rest else 0.0

    check("learned.factors", next_to_the_rest)

    by_fold = {"directions": [middle] * FOLDS, "content_directions": learned["content"].rows}
    for name, parts in by_fold.items():
        weights = []
        for k, rows in enumerate(parts):
            moments = []
            for pairs in (observed, null):
                chosen = [(u, i, out) for u, i, out in pairs if part[u] != k and len(profiles[u]) > 1]
                z = np.array([product(rows.astype(float), i, profiles[u] - {out}) for u, i, out in chosen])
                moments.append((z.mean(axis=0), np.cov(z.T, bias=True)))
            spread = np.atleast_2d(moments[0][1] + moments[1][1])
            diagonal = np.diag(spread)
            shrunk = spread + np.diag(0.1 * diagonal + 1e-6 * diagonal.max())
            weights.append(np.linalg.solve(shrunk, moments[0][0] - moments[1][0]))

        def discriminant(u, i, rest, parts=parts, weights=weights):
            return product(parts[part[u]].astype(float), i, rest) @ weights[part[u]] if rest else 0.0

        check(f"learned.{name}", discriminant)


@pytest.mark.parametrize("by_item", [True, False])
def test_learned_factors_know_nothing_of_their_own_users(by_item):
    users, items, features, n_users, n_items = world(120, 60)
    content = np.concatenate(list(features.values()), axis=1)
    degree, parts = np.bincount(items, minlength=n_items), UserFolds(3, 4)
    part = parts(np.arange(n_users))

    def rows(of_items):
        profiles = build_profiles(users, of_items, n_users, n_items)
        return learn_factors(profiles, parts, degree, content, by_item, np.random.default_rng(0))

    learned = rows(items)
    for k in range(parts.count):
        other = np.where(part[users] == k, np.random.default_rng(1).permutation(items), items)
        changed = rows(other)
        for side in ("context", "target"):
            np.testing.assert_array_equal(getattr(changed, side)[k], getattr(learned, side)[k])
            apart = (k + 1) % parts.count
            assert not np.array_equal(getattr(changed, side)[apart], getattr(learned, side)[apart])


def test_factors_without_rows_of_items_are_a_map_of_the_content():
    users, items, features, n_users, n_items = world(120, 60)
    features["image"][1] = features["image"][0]
    profiles, degree = build_profiles(users, items, n_users, n_items), np.bincount(items, minlength=n_items)
    learned = learn_factors(profiles, UserFolds(0, 2), degree, features["image"], False, np.random.default_rng(0))
    for rows in learned.context:
        np.testing.assert_array_equal(rows[1], rows[0])
        found, *_ = np.linalg.lstsq(features["image"], rows, rcond=None)
        np.testing.assert_allclose(features["image"] @ found, rows, atol=1e-4)


def test_the_loss_of_factors_equals_a_loop_over_pairs():
    users, items, features, n_users, n_items = world(30, 20, sizes=(2, 6))
    content = torch.from_numpy(features["image"].astype(np.float32))
    model = factor_training._Model(n_items, content, True, torch.Generator().manual_seed(0))
    matrix = build_profiles(users, items, n_users, n_items).matrix
    matrix = matrix[np.flatnonzero(np.diff(matrix.indptr) > 1)]
    negatives = torch.tensor([3, 3, 7, 11])
    (a, b), (w, v) = ([side.detach().double() for side in pair] for pair in (model.of_items, model.maps))
    context, target = a + content.double() @ w, b + content.double() @ v
    losses = []
    for row in matrix:
        for i in row.indices:
            rest = sum(context[o] for o in row.indices if o != i)
            cosines = [torch.cosine_similarity(rest, target[j], dim=0) for j in (i, *negatives)]
            scores = torch.stack(cosines) / factor_training.TEMPERATURE
            losses.append(torch.logsumexp(scores, 0) - scores[0])
    assert model._loss(matrix, negatives).item() == pytest.approx(float(sum(losses)) / len(losses), rel=1e-5)


def test_learning_factors_looks_at_a_bounded_number_of_pairs(monkeypatch):
    users, items, features, n_users, n_items = world()
    profiles, degree = build_profiles(users, items, n_users, n_items), np.bincount(items, minlength=n_items)
    looked_at, loss = [], factor_training._Model._loss

    def counted(self, matrix, negatives):
        looked_at.append(matrix.nnz)
        return loss(self, matrix, negatives)

    monkeypatch.setattr(factor_training._Model, "_loss", counted)
    for constant, value in (("EPOCHS", 100), ("BATCH", 200), ("VISITS", 1500)):
        monkeypatch.setattr(factor_training, constant, value)
    learn_factors(profiles, UserFolds(0, 2), degree, features["text"], True, np.random.default_rng(0))
    most = 1500 + 200 + profiles.size.max()  # the last batch may pass the limit
    assert 2 * 1500 <= sum(looked_at) <= 2 * most


def test_factors_do_not_depend_on_the_number_of_threads():
    users, items, features, n_users, n_items = world()
    profiles, degree = build_profiles(users, items, n_users, n_items), np.bincount(items, minlength=n_items)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(
                learn_factors(profiles, UserFolds(0, 2), degree, features["text"], True, np.random.default_rng(0))
            )
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    np.testing.assert_array_equal(found[0].target, found[1].target)


@pytest.mark.parametrize("behaviour", [True, False])
def test_learned_factors_find_noise_that_content_does_not_show(behaviour, monkeypatch):
    monkeypatch.setattr(factor_training, "EPOCHS", 10)
    users, items, features, n_users, n_items = world(600, 200, dims=(12,), sizes=(4, 20))
    junk = 4 * np.random.default_rng(1).normal(size=(n_items, 12))
    features = {"image": np.concatenate([features["image"], junk], axis=1)}
    users, items, noise = inject(users, items, n_users, n_items, 0.3, 0)
    result = run(users, items, features, n_users, n_items, behaviour=behaviour)
    plain, learned = result.evidence["image"], result.evidence["learned.factors"]
    assert auroc(learned[~noise], learned[noise]) > auroc(plain[~noise], plain[noise]) + 0.05


def test_learned_content_finds_the_directions_that_matter():
    users, items, features, n_users, n_items = world(600, 200, dims=(12,), sizes=(4, 20))
    # Many strong directions that say nothing about taste.
    junk = 4 * np.random.default_rng(1).normal(size=(n_items, 12))
    features = {"image": np.concatenate([features["image"], junk], axis=1)}
    users, items, noise = inject(users, items, n_users, n_items, 0.3, 0)
    result = run(users, items, features, n_users, n_items, behaviour=False)
    plain, learned = result.evidence["image"], result.evidence["learned.content"]
    assert auroc(learned[~noise], learned[noise]) > auroc(plain[~noise], plain[noise]) + 0.05


def test_behaviour_past_the_budget_is_low_rank(monkeypatch, caplog):
    users, items, features, n_users, n_items = world(sizes=(4, 30))
    users, items, noise = inject(users, items, n_users, n_items, 0.3, 0)
    monkeypatch.setattr("recbole_guider.amsc.behaviour.COUNT_BUDGET", 100)
    with caplog.at_level("INFO", logger="recbole_guider"):
        result = run(users, items, features, n_users, n_items, learned=False)
    assert "too long for exact co-occurrence" in caplog.text
    assert auroc(result.evidence["behaviour"][~noise], result.evidence["behaviour"][noise]) > 0.6
    assert list(result.evidence) == ["image", "text", "behaviour"]


# ---------------------------------------------------------------- edges


def test_one_constant_and_one_zero_modality_change_nothing():
    users, items, features, n_users, n_items = world()
    extra = {"constant": np.full((n_items, 5), 0.1, dtype=np.float16), "zero": np.zeros((n_items, 3))}
    result = run(users, items, features | extra, n_users, n_items)
    for name in extra:
        assert not result.evidence[name].any() and not result.null_evidence[name].any()
        assert result.modality_weights[name] == 0
    plain = run(users, items, features, n_users, n_items)
    np.testing.assert_array_equal(result.confidence, plain.confidence)
    np.testing.assert_allclose(result.score, plain.score, atol=1e-6)
    assert np.isfinite(result.clean_probability).all()


def test_only_constant_features_give_the_prior():
    users, items, _, n_users, n_items = world()
    result = run(users, items, {"text": np.ones((n_items, 4))}, n_users, n_items, behaviour=False, noise_rate=0.3)
    np.testing.assert_allclose(result.clean_probability, 0.7, atol=0.1)
    assert result.modality_weights == {"text": 1.0}


@pytest.mark.parametrize("decision_name", ["lfdr", "quantile"])
def test_where_nothing_tells_items_apart_all_is_clean_and_it_says_so(decision_name, caplog):
    users, items, _, n_users, n_items = world()
    result = run(
        users, items, {"text": np.full((n_items, 4), 0.37)}, n_users, n_items, behaviour=False, decision=decision_name
    )
    assert result.noise_rate == 0 and result.n_false == 0
    np.testing.assert_array_equal(result.clean_probability, 1)
    assert "nothing that tells items apart in text" in caplog.text


def test_zero_rows_count_as_missing():
    users, items, features, n_users, n_items = world(60, 40)
    gone = np.arange(n_items) % 3 == 0
    zeroed = {"image": np.where(gone[:, None], 0, features["image"])}
    masked = {"image": (np.where(gone[:, None], np.nan, features["image"]), ~gone)}
    a, b = (run(users, items, f, n_users, n_items) for f in (zeroed, masked))
    np.testing.assert_array_equal(a.clean_probability, b.clean_probability)
    assert not a.evidence["image"][gone[items]].any()


def test_half_precision_is_widened():
    users, items, features, n_users, n_items = world(60, 40)
    half = {name: (rows * 50).astype(np.float16) for name, rows in features.items()}
    wide = {name: rows.astype(np.float64) for name, rows in half.items()}
    a, b = (run(users, items, f, n_users, n_items) for f in (half, wide))
    np.testing.assert_allclose(a.score, b.score, atol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_names_the_modality_and_the_item(bad):
    users, items, features, n_users, n_items = world(60, 40)
    features["text"][[17, 23], 2] = bad
    with pytest.raises(GuiderError, match=r"'text'.*item 17\b"):
        run(users, items, features, n_users, n_items)


def test_honest_errors():
    users, items, features, n_users, n_items = world(60, 40)
    with pytest.raises(GuiderError, match="behaviour: true"):
        run(users, items, {}, n_users, n_items, behaviour=False)
    with pytest.raises(GuiderError, match="'smell'.*image, text"):
        run(users, items, features, n_users, n_items, modalities=["smell"])
    with pytest.raises(GuiderError, match=r"\[40, d\]"):
        run(users, items, {"text": features["text"][:-1]}, n_users, n_items)
    with pytest.raises(GuiderError, match="id 40"):
        run([0], [40], features, n_users, n_items)
    with pytest.raises(GuiderError, match="empty"):
        run([], [], features, n_users, n_items)
    with pytest.raises(GuiderError, match="equally long"):
        run([0, 1], [0], features, n_users, n_items)
    with pytest.raises(GuiderError, match="'behaviour'"):
        run(users, items, {"behaviour": features["text"]}, n_users, n_items)


def test_behaviour_alone():
    users, items, _, n_users, n_items = world(sizes=(4, 30))
    users, items, noise = inject(users, items, n_users, n_items, 0.3, 0)
    result = run(users, items, {}, n_users, n_items)
    assert result.modality_weights == {"behaviour": 1.0}
    assert auroc(result.clean_probability[~noise], result.clean_probability[noise]) > 0.7
    np.testing.assert_array_equal(result.confidence, 1)


def test_confidence_and_weights_can_be_left_out():
    users, items, features, n_users, n_items = world()
    full = run(users, items, features, n_users, n_items)
    assert np.ptp(full.confidence) > 0 and len(set(full.modality_weights.values())) > 1
    plain = run(users, items, features, n_users, n_items, confidence="none", weights="uniform")
    np.testing.assert_array_equal(plain.confidence, 1)
    assert set(plain.modality_weights.values()) == {1 / 3} and set(plain.modality_weights) == set(full.modality_weights)
    mean = sum(plain.evidence[name] for name in plain.modality_weights) / 3
    np.testing.assert_allclose(plain.score, mean, atol=1e-6)
    assert (plain.score != full.score).any()


@pytest.mark.parametrize(
    ("given", "message"), [({"seed": -1}, "seed is -1"), ({"features": [np.ones((5, 2))]}, "features is a list")]
)
def test_calibrate_says_what_is_wrong(given, message):
    arguments = {"users": [0, 0, 1], "items": [0, 1, 2], "features": {}, "n_users": 2, "n_items": 5, **given}
    with pytest.raises(GuiderError, match=message):
        calibrate(**arguments)


def test_short_profiles():
    # Users with one or two items only: nothing but the prior, and no user without a clean item.
    users, items = np.array([0, 1, 1, 2, 3, 3]), np.array([0, 1, 2, 3, 4, 0])
    result = run(users, items, {"text": np.eye(5)}, 4, 5)
    assert len(set(result.clean_probability.tolist())) == 1
    assert np.bincount(users, weights=result.is_clean).min() >= 1
    result = run(users, items, {"text": np.eye(5)}, 4, 5, min_profile=2, noise_rate=0.9)
    assert np.bincount(users, weights=result.is_clean).min() >= 1
    result = run([2], [1], {"text": np.eye(5)}, 4, 5)
    assert result.is_clean.all()


def test_repeated_pairs_count_once():
    users, items, features, n_users, n_items = world()
    plain = run(users, items, features, n_users, n_items)
    twice = run(np.tile(users, 2), np.tile(items, 2), features, n_users, n_items)
    for half in (twice.clean_probability[: len(users)], twice.clean_probability[len(users) :]):
        np.testing.assert_array_equal(half, plain.clean_probability)
    assert twice.noise_rate == plain.noise_rate


@pytest.mark.parametrize("settings", [{}, {"decision": "quantile"}, {"popularity": True}])
def test_order_of_the_rows_does_not_matter_and_runs_repeat(settings):
    users, items, features, n_users, n_items = world(150, 80)
    shuffle = np.random.default_rng(0).permutation(len(users))
    plain, again, other = (
        run(u, i, features, n_users, n_items, **settings)
        for u, i in [(users, items), (users, items), (users[shuffle], items[shuffle])]
    )
    for field in ("score", "clean_probability", "is_clean"):
        np.testing.assert_array_equal(getattr(plain, field), getattr(again, field))
        np.testing.assert_array_equal(getattr(plain, field)[shuffle], getattr(other, field))
    assert plain.clean_probability.dtype == np.float32 and plain.is_clean.dtype == bool


def test_method_none_and_global_random_state():
    users, items, features, n_users, n_items = world(60, 40)
    result = run(users, items, features, n_users, n_items, method="none")
    assert result.is_clean.all() and result.noise_rate == 0 and np.all(result.clean_probability == 1)
    before = np.random.get_state()[1].copy()
    run(users, items, features, n_users, n_items)
    np.testing.assert_array_equal(before, np.random.get_state()[1])


def test_exact_co_occurrence_by_hand():
    # Items 0 and 1 share users 0, 1, 2; without user 0 they share two of two and two of three.
    users, items = np.array([0, 0, 1, 1, 2, 2, 3]), np.array([0, 1, 0, 1, 0, 1, 1])
    profiles = build_profiles(users, items, 4, 3)
    exact = CoOccurrence(profiles, np.ones(3))
    first = np.zeros(1, dtype=np.int64)
    (got,) = exact.mean_scores(profiles, Candidates(first, first, first))
    assert got == pytest.approx(2 / np.sqrt(2 * 3))
