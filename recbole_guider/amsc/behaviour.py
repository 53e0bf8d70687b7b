"""Behaviour as one more modality: co-occurrence of items in other users' profiles."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp

from recbole_guider.amsc.profiles import Candidates, FloatArray, IntArray, Profiles


class CoOccurrence:
    """Exact leave-one-out co-occurrence cosine.

    With C the item-item counts of common users, d the items' degrees, and C', d' the same without user u,

        S_b(i, i') = C'(i, i') / sqrt(d'_i d'_i'),     0 where a degree is 0:

    the cosine of two columns of the interaction matrix from which the row of u was removed. A null item j is
    not in the profile, so u adds nothing to its counts.
    """

    def __init__(self, profiles: Profiles) -> None:
        matrix = profiles.matrix
        self.counts = sp.csr_matrix(matrix.T @ matrix)
        self.counts.sort_indices()
        self.degree = profiles.item_degree.astype(np.float64)

    def block(self, items: IntArray, profile: IntArray, own: np.ndarray) -> FloatArray:
        """S_b of c candidates with their profiles; float64 [c, n].

        Args:
            items: [c]; profile: [c, n] or [1, n]; own: bool [c], True where the candidate is observed.
        """
        rows, columns = np.broadcast_arrays(items[:, None], profile)
        counts = np.asarray(self.counts[rows.ravel(), columns.ravel()]).reshape(rows.shape)
        counts = counts - own[:, None]
        degrees = (self.degree[items] - own)[:, None] * (self.degree[profile] - 1.0)
        return np.where(degrees > 0, counts / np.sqrt(np.where(degrees > 0, degrees, 1.0)), 0.0)


def lookups(profiles: Profiles, candidates: Candidates) -> int:
    """Number of (candidate, profile item) comparisons: the cost of the exact form."""
    return int(profiles.size[candidates.users].sum())
