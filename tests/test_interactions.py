"""The index of interactions against sets and lists."""

from __future__ import annotations

import numpy as np
import pytest

from recbole_guider.utils.interactions import InteractionIndex, pair_keys


@pytest.fixture
def log() -> tuple[np.ndarray, np.ndarray]:
    """300 interactions of users 1 to 29 with items 1 to 49, some of them repeated, in no order."""
    rng = np.random.default_rng(0)
    users, items = rng.integers(1, 30, 300), rng.integers(1, 50, 300)
    assert len(set(zip(users.tolist(), items.tolist(), strict=True))) < 300
    return users, items


def test_membership_and_drawing_against_sets(log: tuple[np.ndarray, np.ndarray]) -> None:
    nobody = InteractionIndex(*np.zeros((2, 0), dtype=np.int64), 3, 4)
    assert not nobody.has(np.array([1, 2]), np.array([3, 0])).any()
    rng = np.random.default_rng(1)
    users, items = log
    index = InteractionIndex(users, items, 31, 51)
    owned = set(zip(users.tolist(), items.tolist(), strict=True))
    batch, candidates = rng.integers(1, 30, 64), np.unique(rng.integers(1, 50, 25))
    rows, columns = index.among(batch, candidates)
    expected = {(b, c) for b in range(64) for c in range(len(candidates)) if (batch[b], candidates[c]) in owned}
    assert set(zip(rows.tolist(), columns.tolist(), strict=True)) == expected and len(rows) == len(expected)
    asked, of_asked = rng.integers(1, 30, 500), rng.integers(1, 50, 500)
    found = [pair in owned for pair in zip(asked.tolist(), of_asked.tolist(), strict=True)]
    assert any(found) and index.has(asked, of_asked).tolist() == found

    asked = np.repeat(np.array([users[0], 30]), 500)  # user 30 has nothing
    drawn = index.choose(asked, rng.random(1000))
    assert set(drawn[:500]) == {item for user, item in owned if user == users[0]}
    assert (drawn[500:] == -1).all()


def test_an_interaction_is_chosen_in_the_order_given_and_as_often_as_it_came(
    log: tuple[np.ndarray, np.ndarray],
) -> None:
    users, items = log
    index = InteractionIndex(users, items, 31, 51)
    for user in range(30):
        given = items[users == user]
        quantile = (np.arange(len(given)) + 0.5) / max(len(given), 1)
        assert index.choose(np.full(len(given), user), quantile).tolist() == given.tolist()


def test_rows_are_sorted_and_lead_from_the_interactions_to_the_pairs(log: tuple[np.ndarray, np.ndarray]) -> None:
    users, items = log
    index = InteractionIndex(users, items, 31, 51)
    pairs = list(zip(index.users.tolist(), index.items.tolist(), strict=True))
    assert pairs == sorted(set(zip(users.tolist(), items.tolist(), strict=True)))
    assert np.array_equal(index.users[index.inverse], users) and np.array_equal(index.items[index.inverse], items)
    assert np.array_equal(index.rows(users, items), index.inverse)
    assert index.rows(np.array([[0, 30]]), np.array([[5, 50]])).tolist() == [[-1, -1]]
    for user in range(31):
        assert index.items_of(user).tolist() == sorted(set(items[users == user].tolist()))
    assert np.array_equal(index.matrix.toarray().sum(axis=0), index.item_degree)
    assert index.square_sum == (index.size**2).sum() and index.size.sum() == index.n_pairs == len(pairs)
    # what is sorted already stays as it is
    again = InteractionIndex(index.users, index.items, 31, 51)
    assert np.array_equal(again.users, index.users) and np.array_equal(again.inverse, np.arange(index.n_pairs))


def test_some_of_the_users_get_new_ids_and_keep_their_keys(log: tuple[np.ndarray, np.ndarray]) -> None:
    index = InteractionIndex(*log, 31, 51)
    chosen = np.array([2, 5, 30])
    some = index.of_users(chosen)
    assert (some.n_users, some.n_items) == (3, 51) and some.user_keys.tolist() == chosen.tolist()
    for new, old in enumerate(chosen):
        assert some.items_of(new).tolist() == index.items_of(old).tolist()


def test_keys_of_pairs_are_64_bits_wide() -> None:
    users, items = np.array([200_000], dtype=np.int32), np.array([7], dtype=np.int32)
    assert pair_keys(users, items, 100_000).tolist() == [20_000_000_007]
