from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from scipy.stats import chisquare

from recbole_guider.data.features import ItemFeatures
from recbole_guider.data.noise import delete_interactions, gaussian_features, inject_interactions, shuffle_features
from recbole_guider.utils.errors import GuiderError


@pytest.fixture
def observed():
    """2,000 draws over 300 users and 200 items with unequal degrees, duplicates among them."""
    rng = np.random.default_rng(0)
    users = (rng.random(2000) ** 2 * 300).astype(int)
    items = (rng.random(2000) ** 2 * 200).astype(int)
    return users, items


@pytest.mark.parametrize("ratio", [0.0, 0.0001, 0.05, 0.2, 1.0, 3.0])
@pytest.mark.parametrize("users_by, items_by", [("activity", "popularity"), ("uniform", "uniform")])
def test_exact_count_distinct_and_free(observed, ratio, users_by, items_by):
    users, items = observed
    forbidden = np.arange(200), np.arange(200)
    noise_users, noise_items = inject_interactions(
        users, items, 300, 200, ratio, forbidden_users=forbidden[0], forbidden_items=forbidden[1],
        user_distribution=users_by, item_distribution=items_by, seed=1,
    )
    drawn = list(zip(noise_users.tolist(), noise_items.tolist(), strict=True))
    assert len(drawn) == len(set(drawn)) == round(ratio * len(users))
    assert not set(drawn) & set(zip(users.tolist(), items.tolist(), strict=True))
    assert not set(drawn) & set(zip(*map(list, forbidden), strict=True))
    assert noise_users.dtype == noise_items.dtype == np.int64
    assert set(noise_users.tolist()) <= set(users.tolist())  # nobody comes into being through noise


def test_the_seed_decides(observed):
    first = inject_interactions(*observed, 300, 200, 0.2, seed=7)
    again = inject_interactions(*observed, 300, 200, 0.2, seed=7)
    other = inject_interactions(*observed, 300, 200, 0.2, seed=8)
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    assert not all((a == b).all() for a, b in zip(first, other, strict=True))


def test_global_random_state_is_not_touched(observed):
    state = np.random.get_state()[1].copy()
    inject_interactions(*observed, 300, 200, 0.2)
    assert (np.random.get_state()[1] == state).all()


def test_degrees_follow_activity_and_popularity():
    rng = np.random.default_rng(3)
    users = rng.choice(10, 400, p=np.arange(1, 11) / 55)
    items = rng.choice(1000, 400, p=np.arange(1, 1001) / 500500)  # so many items that hardly a draw is refused
    by_degree, flat = np.zeros(10), np.zeros(10)
    for seed in range(10):
        drawn, _ = inject_interactions(users, items, 10, 1000, 0.2, seed=seed)
        by_degree += np.bincount(drawn, minlength=10)
        drawn, drawn_items = inject_interactions(
            users, items, 10, 1000, 0.2, user_distribution="uniform", item_distribution="uniform", seed=seed
        )
        flat += np.bincount(drawn, minlength=10)
        assert len(np.unique(drawn_items)) > 60  # of 80: spread over the catalogue
    activity = np.bincount(users, minlength=10)
    assert chisquare(by_degree, activity / activity.sum() * by_degree.sum()).pvalue > 0.01
    assert chisquare(flat).pvalue > 0.01
    assert chisquare(flat, activity / activity.sum() * flat.sum()).pvalue < 1e-6


def test_items_follow_popularity_exactly():
    """Against the exact law of a single draw, refusals included."""
    users, items = np.array([0, 0, 1, 1, 1]), np.array([0, 1, 1, 2, 2])
    weights = {}
    for user, activity in ((0, 2), (1, 3)):
        for item, popularity in ((0, 1), (1, 2), (2, 2)):
            if (user, item) not in {(0, 0), (0, 1), (1, 1), (1, 2)}:
                weights[user, item] = activity * popularity
    counts = Counter()
    for seed in range(2000):
        noise_users, noise_items = inject_interactions(users, items, 2, 4, 0.2, seed=seed)
        counts[noise_users[0].item(), noise_items[0].item()] += 1
    total = sum(weights.values())
    assert set(counts) == set(weights)
    expected = [2000 * weight / total for weight in weights.values()]
    assert chisquare([counts[pair] for pair in weights], expected).pvalue > 0.01


def test_the_last_free_pairs_are_found():
    users = np.repeat(np.arange(20), 50)
    items = np.tile(np.arange(50), 20)
    items[users == 3] %= 10  # the only user with free pairs: 40 of them
    noise_users, noise_items = inject_interactions(users, items, 20, 50, 0.04, seed=0)
    assert set(zip(noise_users, noise_items, strict=True)) == {(3, item) for item in range(10, 50)}
    with pytest.raises(GuiderError, match=r"41 noisy interactions .* only 40 pairs"):
        inject_interactions(users, items, 20, 50, 0.041, seed=0)


@pytest.mark.parametrize(
    "ratio, options, message",
    [
        (-0.1, {}, "at least 0, not -0.1"),
        (0.1, {"user_distribution": "popularity"}, "'popularity' does not exist; allowed: activity, uniform"),
        (0.1, {"item_distribution": "activity"}, "'activity' does not exist; allowed: popularity, uniform, clickbait"),
    ],
)
def test_wrong_arguments_are_named(observed, ratio, options, message):
    with pytest.raises(GuiderError, match=message):
        inject_interactions(*observed, 300, 200, ratio, **options)


def test_shuffled_features_are_the_same_rows_elsewhere():
    rng = np.random.default_rng(5)
    present = rng.random(101) < 0.8
    present[0] = False
    features = {
        name: ItemFeatures(rng.normal(size=(101, 4)).astype(np.float32), present) for name in ("image", "text")
    }
    before = {name: feature.values.copy() for name, feature in features.items()}
    noisy = shuffle_features(features, 0.3, seed=1)
    moved = {}
    for name, feature in noisy.items():
        changed = (feature.values != before[name]).any(axis=1)
        moved[name] = changed
        assert changed.sum() == round(0.3 * present.sum()) and present[changed].all()
        assert sorted(map(tuple, feature.values)) == sorted(map(tuple, before[name]))
        assert (features[name].values == before[name]).all()
    assert (moved["image"] != moved["text"]).any()
    alone = shuffle_features({"text": features["text"]}, 0.3, seed=1)
    assert (alone["text"].values == noisy["text"].values).all()  # does not depend on the other modalities
    assert (shuffle_features(features, 0.0, seed=1)["image"].values == before["image"]).all()
    with pytest.raises(GuiderError, match="between 0 and 1, not 1.5"):
        shuffle_features(features, 1.5, seed=1)


def test_clickbait_concentrates_on_few_items(observed):
    users, items = inject_interactions(*observed, 300, 200, 0.2, item_distribution="clickbait", clickbait_items=0.02,
                                       seed=4)
    assert len(users) == 400 and len(np.unique(items)) == 4
    assert np.bincount(items).max() < 150  # about 100 each
    _, others = inject_interactions(*observed, 300, 200, 0.2, item_distribution="clickbait", clickbait_items=0.02,
                                    seed=5)
    assert set(np.unique(others)) != set(np.unique(items))
    _, one = inject_interactions(*observed, 300, 200, 0.01, item_distribution="clickbait", clickbait_items=1e-9)
    assert len(np.unique(one)) == 1
    with pytest.raises(GuiderError, match="clickbait items must be above 0 and at most 1, not 0"):
        inject_interactions(*observed, 300, 200, 0.2, item_distribution="clickbait", clickbait_items=0)


@pytest.mark.parametrize("ratio", [0.0, 0.05, 0.5])
def test_deletion_takes_the_count_and_leaves_everybody_something(observed, ratio):
    users, items = observed
    gone = delete_interactions(users, items, 300, 200, ratio, seed=1)
    assert gone.sum() == round(ratio * len(users))
    assert set(users[~gone]) == set(users) and set(items[~gone]) == set(items)
    assert (gone == delete_interactions(users, items, 300, 200, ratio, seed=1)).all()
    if ratio:
        assert (gone != delete_interactions(users, items, 300, 200, ratio, seed=2)).any()


def test_deletion_is_uniform_and_says_when_it_cannot_be():
    users, items = np.repeat([0, 1], 6), np.tile(np.arange(6), 2)
    counts = np.zeros(12)
    for seed in range(600):
        counts += delete_interactions(users, items, 2, 6, 0.25, seed=seed)
    assert chisquare(counts).pvalue > 0.01
    with pytest.raises(GuiderError, match=r"11 interactions were to be deleted \(share 0.9\), but only"):
        delete_interactions(users, items, 2, 6, 0.9)
    with pytest.raises(GuiderError, match="at least 0 and below 1, not 1"):
        delete_interactions(users, items, 2, 6, 1)


def test_gaussian_features_keep_place_and_scale():
    rng = np.random.default_rng(5)
    present = rng.random(2001) < 0.8
    present[0] = False
    values = (rng.normal(size=(2001, 3)) * [1, 10, 0] + [0, 5, 2]).astype(np.float32)
    features = {name: ItemFeatures(values.copy(), present) for name in ("image", "text")}
    noisy = gaussian_features(features, {"image": 0.5}, seed=1)
    assert noisy["text"] is features["text"]
    changed = (noisy["image"].values != values).any(axis=1)
    assert changed[present].sum() == round(0.5 * present.sum()) and not changed[0]
    absent = ~present
    absent[0] = False  # a missing row holds the mean of those that are there
    mean = noisy["image"].values[present].mean(axis=0)
    np.testing.assert_allclose(noisy["image"].values[absent], np.tile(mean, (absent.sum(), 1)), atol=1e-4)
    changed &= present
    rows = noisy["image"].values[changed]
    np.testing.assert_allclose(rows.mean(axis=0), values[present].mean(axis=0), atol=0.8)
    np.testing.assert_allclose(rows.std(axis=0), values[present].std(axis=0), rtol=0.1, atol=1e-6)
    assert abs(np.corrcoef(rows[:, 0], values[changed, 0])[0, 1]) < 0.15  # nothing of the content is left
    assert (features["image"].values == values).all()
    with pytest.raises(GuiderError, match="Gaussian features names the modality 'audio': this data set has image, tex"):
        gaussian_features(features, {"audio": 0.5}, seed=1)


def test_one_modality_can_be_shuffled_alone():
    rng = np.random.default_rng(5)
    features = {name: ItemFeatures(rng.normal(size=(50, 4)), np.arange(50) > 0) for name in ("image", "text")}
    noisy = shuffle_features(features, {"text": 0.4}, seed=1)
    assert noisy["image"] is features["image"]
    assert (noisy["text"].values != features["text"].values).any(axis=1).sum() == round(0.4 * 49)
    assert (noisy["text"].values == shuffle_features(features, 0.4, seed=1)["text"].values).all()
