"""The observed pairs, user by user, and the null pairs that they are compared with."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import scipy.sparse as sp
from numpy.typing import ArrayLike, NDArray

from recbole_guider.utils.errors import GuiderError

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.floating]

# Rejection sampling of null items: rounds before the few pairs that are left are drawn exactly.
_REJECTION_ROUNDS = 32


@dataclass(frozen=True)
class Profiles:
    """The distinct observed pairs, sorted by user and then item.

    Attributes:
        users, items: int64 [n_pairs], the distinct pairs.
        inverse: int64 [nnz], the row of ``users``/``items`` that each input pair became.
        indptr: int64 [n_users + 1]; the profile of u is ``items[indptr[u]:indptr[u + 1]]``.
        n_users, n_items: sizes of the id ranges.
        keys: int64 [n_users], what random choices about each user depend on: its id in the whole log, also where
            these profiles hold only some of the users.
    """

    users: IntArray
    items: IntArray
    inverse: IntArray
    indptr: IntArray
    n_users: int
    n_items: int
    keys: IntArray

    @property
    def n_pairs(self) -> int:
        """Number of distinct observed pairs."""
        return len(self.users)

    @cached_property
    def size(self) -> IntArray:
        """int64 [n_users]: the number of distinct items of each user."""
        return np.diff(self.indptr)

    @cached_property
    def square_sum(self) -> int:
        """The sum of the squared profile sizes."""
        return int(np.sum(self.size**2))

    @cached_property
    def item_degree(self) -> IntArray:
        """int64 [n_items]: the number of users of each item."""
        return np.bincount(self.items, minlength=self.n_items)

    @cached_property
    def matrix(self) -> sp.csr_matrix:
        """float64 CSR [n_users, n_items] of ones."""
        return sp.csr_matrix((np.ones(self.n_pairs), self.items, self.indptr), shape=(self.n_users, self.n_items))

    @cached_property
    def _codes(self) -> IntArray:
        return self.users * self.n_items + self.items

    def rows_of(self, users: IntArray, items: IntArray) -> IntArray:
        """The rows of observed pairs (users[k], items[k])."""
        return np.searchsorted(self._codes, users * self.n_items + items)

    def contains(self, users: IntArray, items: IntArray) -> NDArray[np.bool_]:
        """Which of the pairs (users[k], items[k]) are observed; bool, shape of the input."""
        codes = users * self.n_items + items
        position = np.minimum(np.searchsorted(self._codes, codes), self.n_pairs - 1)
        return self._codes[position] == codes

    def of_users(self, chosen: IntArray) -> Profiles:
        """The profiles of some users (ascending), who get the ids 0, 1, ...; ``inverse`` leads from pair to pair."""
        size = self.size[chosen]
        indptr = np.concatenate([[0], np.cumsum(size)])
        rows = np.repeat(self.indptr[chosen] - indptr[:-1], size) + np.arange(indptr[-1])
        users = np.repeat(np.arange(len(chosen)), size)
        inverse = np.arange(len(rows))
        return Profiles(users, self.items[rows], inverse, indptr, len(chosen), self.n_items, self.keys[chosen])


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
    users: ArrayLike, items: ArrayLike, n_users: int, n_items: int, keys: IntArray | None = None
) -> Profiles:
    """Sort the pairs and drop repeated ones.

    Args:
        users, items: integer ids [nnz], from 0; a pair may occur more than once.
        n_users, n_items: sizes of the id ranges.
        keys: int64 [n_users], see :class:`Profiles`; None: the ids themselves.

    Raises:
        GuiderError: ids that are out of range or no integers, lengths that differ, no pair at all.
    """
    user_ids, item_ids = _ids(users, "users", n_users), _ids(items, "items", n_items)
    if len(user_ids) != len(item_ids):
        raise GuiderError(f"users and items must be equally long, not {len(user_ids)} and {len(item_ids)}.")
    if not len(user_ids):
        raise GuiderError("There is no interaction to calibrate: users and items are empty.")
    pairs, inverse = np.unique(user_ids * n_items + item_ids, return_inverse=True)
    distinct_users = pairs // n_items
    indptr = np.concatenate([[0], np.cumsum(np.bincount(distinct_users, minlength=n_users))])
    keys = np.arange(n_users) if keys is None else keys
    return Profiles(distinct_users, pairs % n_items, inverse.reshape(-1), indptr, n_users, n_items, keys)


@dataclass(frozen=True)
class NullPairs:
    """Null pairs: ``items[k]`` stands in for the item of the observed pair ``pair[k]``.

    The null pair (u, j) is scored against the profile of u without the item that it replaces, so a noisy
    observation and its null pairs have the same distribution.

    Attributes:
        pair: int64 [n_null], row of :class:`Profiles`.
        items: int64 [n_null], an item that the user of that row does not have.
    """

    pair: IntArray
    items: IntArray


def draw_null_pairs(
    profiles: Profiles,
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
    open_rows = np.flatnonzero(profiles.contains(users, items))
    for _ in range(_REJECTION_ROUNDS):
        if not len(open_rows):
            break
        items[open_rows] = draw(len(open_rows))
        open_rows = open_rows[profiles.contains(users[open_rows], items[open_rows])]
    keep = np.ones(len(pairs), dtype=bool)
    for user in np.unique(users[open_rows]):
        rows = open_rows[users[open_rows] == user]
        rest = weight.copy()
        rest[profiles.items[profiles.indptr[user] : profiles.indptr[user + 1]]] = 0.0
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
