"""Behaviour as one more modality: which items occur together in other users' profiles."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from recbole_guider.amsc.profiles import Candidates, FloatArray
from recbole_guider.amsc.similarity import SNAP
from recbole_guider.utils.interactions import IntArray, InteractionIndex

#: Sum of squared profile sizes up to which items' common users are counted: time and memory of the counts.
COUNT_BUDGET = 50_000_000
#: Multiplications up to which every profile is compared with the exact counts.
EXACT_BUDGET = 2_000_000_000
# Elements of the dense scores of a block of users: 32 MiB of float64.
_BLOCK_ELEMENTS = 4_194_304


def counts_are_affordable(square_sum: int) -> bool:
    """Whether sum |I_u|^2, the cost of counting co-occurrence, lies within the budget."""
    return square_sum <= COUNT_BUDGET


class CoOccurrence:
    """Exact leave-one-out co-occurrence cosine.

    With C the item-item counts of common users, d the items' degrees, and C', d' the same without user u,

        S_b(i, i') = C'(i, i') / sqrt(d'_i d'_i'),     0 where a degree is 0:

    the cosine of two columns of the interaction matrix from which the row of u was removed. A null item j is
    not in the profile, so u adds nothing to its counts.

    Args:
        profiles: of all users; what is scored later may be the profiles of some of them.
        weight: float [n_items], the confidence c_i; similarities come out multiplied by sqrt(c_i c_i').
    """

    def __init__(self, profiles: InteractionIndex, weight: FloatArray) -> None:
        self.counts = sp.csr_matrix(profiles.matrix.T @ profiles.matrix)
        self.counts.sort_indices()
        self.degree = profiles.item_degree.astype(np.float64)
        self.root = np.sqrt(np.asarray(weight, dtype=np.float64))

    @property
    def is_affordable(self) -> bool:
        """Whether comparing every profile with the counts lies within the budget."""
        return float(np.dot(self.degree, np.diff(self.counts.indptr))) <= EXACT_BUDGET

    def _count(self, rows: IntArray, columns: IntArray) -> FloatArray:
        return np.asarray(self.counts[rows.ravel(), columns.ravel()]).reshape(rows.shape)

    def _factor(self, items: IntArray, own: NDArray[np.bool_] | bool) -> FloatArray:
        degree = self.degree[items] - own
        return np.where(degree > 0, self.root[items] / np.sqrt(np.where(degree > 0, degree, 1.0)), 0.0)

    def mean_scores(self, profiles: InteractionIndex, candidates: Candidates) -> FloatArray:
        """Mean of sqrt(c_i c_i') S_b(i, i') over the profile without the left-out item; float64 [n].

        One sparse product for each block of users gives the scores of all items at once; what the user and the
        left-out item added to them is taken off again.

        Args:
            profiles: of the users of the candidates.
            candidates: sorted by user.
        """
        right = self._factor(np.arange(profiles.n_items), True)
        profile_weights = sp.csr_matrix(profiles.matrix @ sp.diags(right))
        own_sum = np.asarray(profile_weights.sum(axis=1)).ravel()
        result = np.zeros(len(candidates))
        step = max(_BLOCK_ELEMENTS // profiles.n_items, 1)
        bounds = np.searchsorted(candidates.users, np.arange(0, profiles.n_users + step, step))
        for k, (first, last) in enumerate(zip(bounds[:-1], bounds[1:], strict=True)):
            if first == last:
                continue
            at = slice(first, last)
            users, items, left_out = candidates.users[at], candidates.items[at], candidates.left_out[at]
            own = items == left_out
            sums = (profile_weights[k * step : (k + 1) * step] @ self.counts).toarray()[users - k * step, items]
            sums -= self._count(items, left_out) * right[left_out]
            sums -= own * (own_sum[users] - right[left_out])
            result[at] = sums * self._factor(items, own)
        result /= np.maximum(profiles.size[candidates.users] - 1, 1)
        # The same residues as in the content scores: a sum of square roots minus its terms is not exactly 0.
        result[(np.abs(result) < SNAP) | (profiles.size[candidates.users] < 2)] = 0.0
        return result
