"""The observed pairs, user by user, and the null pairs that they are compared with."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from recbole_guider.utils.errors import GuiderError
from recbole_guider.utils.interactions import IntArray, InteractionIndex

FloatArray = NDArray[np.floating]

# Rejection sampling of null items: rounds before the few pairs that are left are drawn exactly.
_REJECTION_ROUNDS = 32


def _ids(values: ArrayLike, name: str, limit: int) -> IntArray:
    array = np.asarray(values)
    if array.ndim != 1:
        raise GuiderError(f"{name} must be one-dimensional, not of shape {array.shape}.")
    if array.size and not np.issubdtype(array.dtype, np.integer):
        raise GuiderError(f"{name} must hold integer ids, not {array.dtype}.")
    if array.size and (array.min() < 0 or array.max() >= limit):
        bad = array.min() if array.min() < 0 else array.max()
        raise GuiderError(f"{name} holds the id {bad}; ids must lie in 0..{limit - 1}.")
    return array.astype(np.int64)


def build_profiles(
    users: ArrayLike, items: ArrayLike, n_users: int, n_items: int, user_keys: IntArray | None = None
) -> InteractionIndex:
    """The index of the pairs, whose ids are checked.

    Args:
        users, items: integer ids [nnz], from 0; a pair may occur more than once.
        n_users, n_items: sizes of the id ranges.
        user_keys: int64 [n_users], see :class:`InteractionIndex`; None: the ids themselves.

    Raises:
        GuiderError: ids that are out of range or no integers, lengths that differ, no pair at all.
    """
    user_ids, item_ids = _ids(users, "users", n_users), _ids(items, "items", n_items)
    if len(user_ids) != len(item_ids):
        raise GuiderError(f"users and items must be equally long, not {len(user_ids)} and {len(item_ids)}.")
    if not len(user_ids):
        raise GuiderError("There is no interaction to calibrate: users and items are empty.")
    return InteractionIndex(user_ids, item_ids, n_users, n_items, user_keys)


@dataclass(frozen=True)
class NullPairs:
    """Null pairs: ``items[k]`` stands in for the item of the observed pair ``pair[k]``.

    The null pair (u, j) is scored against the profile of u without the item that it replaces, so a noisy
    observation and its null pairs have the same distribution.

    Attributes:
        pair: int64 [n_null], row of :class:`InteractionIndex`.
        items: int64 [n_null], an item that the user of that row does not have.
    """

    pair: IntArray
    items: IntArray


def draw_null_pairs(
    profiles: InteractionIndex,
    pairs: IntArray,
    *,
    by_popularity: bool,
    rng: np.random.Generator,
    item_degree: IntArray | None = None,
) -> NullPairs:
    """For every row of ``pairs`` draw an item that its user does not have.

    Items are drawn by their number of users, or uniformly from the items that occur at all. A user who has
    every item gets no null pair.

    Args:
        item_degree: int64 [n_items], the number of users of each item; None: counted in ``profiles``.
    """
    weight = (profiles.item_degree if item_degree is None else item_degree).astype(np.float64)
    if not by_popularity:
        weight = (weight > 0).astype(np.float64)
    cumulative = np.cumsum(weight / weight.sum())
    cumulative[-1] = 1.0

    def draw(count: int) -> IntArray:
        return np.searchsorted(cumulative, rng.random(count), side="right").astype(np.int64)

    users = profiles.users[pairs]
    items = draw(len(pairs))
    open_rows = np.flatnonzero(profiles.has(users, items))
    for _ in range(_REJECTION_ROUNDS):
        if not len(open_rows):
            break
        items[open_rows] = draw(len(open_rows))
        open_rows = open_rows[profiles.has(users[open_rows], items[open_rows])]
    keep = np.ones(len(pairs), dtype=bool)
    for user in np.unique(users[open_rows]):
        rows = open_rows[users[open_rows] == user]
        rest = weight.copy()
        rest[profiles.items_of(user)] = 0.0
        if rest.sum() > 0:
            items[rows] = rng.choice(profiles.n_items, size=len(rows), p=rest / rest.sum())
        else:
            keep[rows] = False
    return NullPairs(pairs[keep], items[keep])


@dataclass(frozen=True)
class Candidates:
    """Pairs to score: item ``items[k]`` against the profile of ``users[k]`` without ``left_out[k]``.

    An observed pair leaves itself out (``items == left_out``); a null pair leaves out the observed item that
    it replaces. Sorted by user.

    Attributes:
        users, items, left_out: int64 [n].
    """

    users: IntArray
    items: IntArray
    left_out: IntArray

    def __len__(self) -> int:
        return len(self.users)

    def take(self, rows: IntArray) -> Candidates:
        """Some of the candidates, in the given (ascending) order."""
        return Candidates(self.users[rows], self.items[rows], self.left_out[rows])
