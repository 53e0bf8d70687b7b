"""Who has which item, for set questions about whole batches."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor


def pair_keys(dataset: Any) -> np.ndarray:
    """int64 ``[interactions]``: a number for each pair of a data set, the same wherever the same items are known."""
    users, items = (np.asarray(dataset.inter_feat[field], np.int64) for field in (dataset.uid_field, dataset.iid_field))
    return users * dataset.item_num + items


class Profiles:
    """The items of every user and the users of every item, of a set of interactions.

    Args:
        users, items: int ``[nnz]``, ids below ``n_users`` and ``n_items``.
        n_users, n_items: sizes of the two catalogues.
    """

    def __init__(self, users: np.ndarray, items: np.ndarray, n_users: int, n_items: int) -> None:
        self.n_items = n_items
        self.items, self.start = _grouped(items, users, n_users)
        self.users, self.item_start = _grouped(users, items, n_items)

    def among(self, users: np.ndarray, candidates: np.ndarray) -> tuple[Tensor, Tensor]:
        """Where in ``[B, N]`` candidate n is an item of user b: rows and columns, int64.

        O(users of the candidates + hits), whatever the length of the profiles.
        """
        length = self.item_start[candidates + 1] - self.item_start[candidates]
        columns = np.repeat(np.arange(len(candidates)), length)
        owners = self.users[_ranges(self.item_start[candidates], length)]
        # the rows of the batch that each owner stands in: none, one or several
        order = np.argsort(users, kind="stable")
        first = np.searchsorted(users, owners, side="left", sorter=order)
        count = np.searchsorted(users, owners, side="right", sorter=order) - first
        rows = order[_ranges(first, count)]
        return torch.from_numpy(rows), torch.from_numpy(np.repeat(columns, count))

    def has(self, users: np.ndarray, items: np.ndarray) -> np.ndarray:
        """bool ``[M]``: whether item m is one of user m's."""
        keys = users.astype(np.int64) * self.n_items + items
        place = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
        return self._keys[place] == keys if len(self._keys) else np.zeros(len(keys), dtype=bool)

    @cached_property
    def _keys(self) -> np.ndarray:
        """A number for each pair, ascending."""
        owners = np.repeat(np.arange(len(self.start) - 1, dtype=np.int64), np.diff(self.start))
        return np.sort(owners * self.n_items + self.items)

    def draw(self, users: np.ndarray, generator: torch.Generator) -> Tensor:
        """int64 ``[M]``: one random item of each user, -1 where a user has none."""
        length = torch.from_numpy(self.start[users + 1] - self.start[users])
        offset = (torch.rand(len(users), generator=generator, dtype=torch.float64) * length).long()
        drawn = torch.full((len(users),), -1, dtype=torch.long)
        some = length > 0
        drawn[some] = torch.from_numpy(self.items)[(torch.from_numpy(self.start[users]) + offset)[some]].long()
        return drawn


def _grouped(values: np.ndarray, groups: np.ndarray, n_groups: int) -> tuple[np.ndarray, np.ndarray]:
    """``values`` sorted by group, and where each group starts ``[n_groups + 1]``."""
    start = np.zeros(n_groups + 1, dtype=np.int64)
    np.cumsum(np.bincount(groups, minlength=n_groups), out=start[1:])
    return values[np.argsort(groups, kind="stable")], start


def _ranges(start: np.ndarray, length: np.ndarray) -> np.ndarray:
    """start[0], start[0] + 1, ... (length[0] of them), start[1], ..."""
    return np.repeat(start - np.cumsum(length) + length, length) + np.arange(length.sum())
