"""Who has which item: one index of a set of interactions."""

from __future__ import annotations

from functools import cached_property

import numpy as np
import scipy.sparse as sp
from numpy.typing import ArrayLike, NDArray

IntArray = NDArray[np.int64]


def pair_keys(users: np.ndarray, items: np.ndarray, n_items: int) -> IntArray:
    """int64, shape of the input: ``user * n_items + item``, a number for each pair, ascending by user and then item."""
    return users.astype(np.int64) * n_items + items


class InteractionIndex:
    """The distinct pairs of a set of interactions, sorted by user and then item: a CSR matrix and what is asked of it.

    Ids are not checked here. Memory is linear in the number of interactions.

    Args:
        users, items: int ``[nnz]``, ids below ``n_users`` and ``n_items``; a pair may come more than once.
        n_users, n_items: sizes of the two id ranges.
        user_keys: int64 ``[n_users]``, what random choices about each user depend on: its id in the whole log, where
            this index holds only some of the users. None: the ids themselves.

    Attributes:
        users, items: int64 ``[n_pairs]``, the distinct pairs.
        inverse: int64 ``[nnz]``, the row of ``users`` and ``items`` that each given interaction became.
        indptr: int64 ``[n_users + 1]``; the pairs of user u are the rows ``indptr[u]`` to ``indptr[u + 1]``.
    """

    def __init__(
        self, users: ArrayLike, items: ArrayLike, n_users: int, n_items: int, user_keys: IntArray | None = None
    ) -> None:
        # copies; np.array of a tensor would warn
        self.users, self.items = (np.asarray(ids).astype(np.int64) for ids in (users, items))
        self.n_users, self.n_items = int(n_users), int(n_items)
        self._keys = pair_keys(self.users, self.items, self.n_items)
        if np.all(self._keys[1:] > self._keys[:-1]):
            self.inverse = np.arange(len(self._keys))
        else:
            self._keys, inverse = np.unique(self._keys, return_inverse=True)
            self.inverse = inverse.reshape(-1)
            self.users, self.items = np.divmod(self._keys, self.n_items)
        self.indptr = np.concatenate([[0], np.cumsum(np.bincount(self.users, minlength=self.n_users))])
        self.user_keys = np.arange(self.n_users) if user_keys is None else user_keys

    @property
    def n_pairs(self) -> int:
        """Number of distinct pairs."""
        return len(self.users)

    @cached_property
    def size(self) -> IntArray:
        """int64 ``[n_users]``: the number of distinct items of each user."""
        return np.diff(self.indptr)

    @cached_property
    def square_sum(self) -> int:
        """The sum of the squared numbers of items of the users."""
        return int(np.sum(self.size**2))

    @cached_property
    def item_degree(self) -> IntArray:
        """int64 ``[n_items]``: the number of users of each item."""
        return np.bincount(self.items, minlength=self.n_items)

    @cached_property
    def matrix(self) -> sp.csr_matrix:
        """float64 CSR ``[n_users, n_items]`` of ones."""
        return sp.csr_matrix((np.ones(self.n_pairs), self.items, self.indptr), shape=(self.n_users, self.n_items))

    def items_of(self, user: int) -> IntArray:
        """int64 ``[size[user]]``: the items of a user, ascending."""
        return self.items[self.indptr[user] : self.indptr[user + 1]]

    def rows(self, users: np.ndarray, items: np.ndarray) -> IntArray:
        """int64, shape of the input: the row of each pair, -1 for a pair that is not there."""
        keys = pair_keys(users, items, self.n_items)
        if not self.n_pairs:
            return np.full(keys.shape, -1)
        place = np.searchsorted(self._keys, keys)
        np.minimum(place, self.n_pairs - 1, out=place)
        place[self._keys[place] != keys] = -1
        return place

    def has(self, users: np.ndarray, items: np.ndarray) -> NDArray[np.bool_]:
        """bool, shape of the input: whether each pair is there."""
        return self.rows(users, items) >= 0

    def among(self, users: np.ndarray, candidates: np.ndarray) -> tuple[IntArray, IntArray]:
        """Where in ``[B, N]`` candidate n is an item of user b: rows and columns, int64.

        Args:
            users: int ``[B]``; candidates: int ``[N]``. Both may repeat.

        O(users of the candidates + hits), whatever the number of items of a user.
        """
        start, owner = self._by_item
        length = start[candidates + 1] - start[candidates]
        columns = np.repeat(np.arange(len(candidates)), length)
        owners = owner[_ranges(start[candidates], length)]
        # the rows of the batch that each owner stands in: none, one or several
        order = np.argsort(users, kind="stable")
        first = np.searchsorted(users, owners, side="left", sorter=order)
        count = np.searchsorted(users, owners, side="right", sorter=order) - first
        return order[_ranges(first, count)], np.repeat(columns, count)

    def choose(self, users: np.ndarray, quantile: np.ndarray) -> IntArray:
        """int64 ``[M]``: of each user the item at ``quantile`` in [0, 1) of all its interactions, -1 where it has none.

        They stand in the order in which they were given, and a pair that came twice stands there twice; so with
        quantiles that are uniform at random, each interaction of a user is as likely.
        """
        start, items = self._as_given
        length = start[users + 1] - start[users]
        chosen = np.full(len(users), -1)
        some = length > 0
        chosen[some] = items[(start[users] + (quantile * length).astype(np.int64))[some]]
        return chosen

    def of_users(self, chosen: IntArray) -> InteractionIndex:
        """The pairs of some users (ascending), who get the ids 0, 1, ... and keep their ``user_keys``."""
        size = self.size[chosen]
        rows = _ranges(self.indptr[chosen], size)
        users = np.repeat(np.arange(len(chosen)), size)
        return InteractionIndex(users, self.items[rows], len(chosen), self.n_items, self.user_keys[chosen])

    @cached_property
    def _by_item(self) -> tuple[np.ndarray, np.ndarray]:
        """(where each item starts [n_items + 1], the users of all items, item by item)."""
        ones = np.ones(self.n_pairs, dtype=np.int8)
        matrix = sp.csr_matrix((ones, self.items, self.indptr), shape=(self.n_users, self.n_items)).tocsc()
        return matrix.indptr.astype(np.int64), matrix.indices

    @cached_property
    def _as_given(self) -> tuple[IntArray, IntArray]:
        """(where each user starts [n_users + 1], the items of all interactions, user by user in the order given)."""
        users = self.users[self.inverse]
        start = np.concatenate([[0], np.cumsum(np.bincount(users, minlength=self.n_users))])
        return start, self.items[self.inverse[np.argsort(users, kind="stable")]]


def _ranges(start: np.ndarray, length: np.ndarray) -> IntArray:
    """start[0], start[0] + 1, ... (length[0] of them), start[1], ..."""
    return np.repeat(start - np.cumsum(length) + length, length) + np.arange(length.sum())
