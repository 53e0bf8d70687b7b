"""Behaviour as one more modality: which items occur together in other users' profiles."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from sklearn.utils.extmath import randomized_svd

from recbole_guider.amsc.profiles import Candidates, FloatArray, IntArray, Profiles
from recbole_guider.amsc.similarity import SNAP, mean_scores, profile_blocks

logger = logging.getLogger(__name__)

#: Sum of squared profile sizes up to which co-occurrence is exact.
EXACT_BUDGET = 100_000_000
#: Users are split into this many parts; each is scored by what the other parts did.
FOLDS = 4
RANK = 128
# One entry of a sparse-dense product costs about this share of one look-up in a sparse matrix.
_LOOKUP_COST = 50
_HEAVY_USERS = 32


def exact_is_affordable(profiles: Profiles) -> bool:
    """Whether sum |I_u|^2, the cost of counting co-occurrence, lies within the budget."""
    return float(np.sum(profiles.size.astype(np.float64) ** 2)) <= EXACT_BUDGET


class CoOccurrence:
    """Exact leave-one-out co-occurrence cosine.

    With C the item-item counts of common users, d the items' degrees, and C', d' the same without user u,

        S_b(i, i') = C'(i, i') / sqrt(d'_i d'_i'),     0 where a degree is 0:

    the cosine of two columns of the interaction matrix from which the row of u was removed. A null item j is
    not in the profile, so u adds nothing to its counts. Costs O(sum |I_u|^2).
    """

    def __init__(self, profiles: Profiles, weight: FloatArray) -> None:
        self.profiles = profiles
        self.counts = sp.csr_matrix(profiles.matrix.T @ profiles.matrix)
        self.counts.sort_indices()
        self.degree = profiles.item_degree.astype(np.float64)
        self.root = np.sqrt(np.asarray(weight, dtype=np.float64))

    def _count(self, rows: IntArray, columns: IntArray) -> FloatArray:
        if not rows.size:
            return np.zeros(rows.shape)
        return np.asarray(self.counts[rows.ravel(), columns.ravel()]).reshape(rows.shape)

    def block(self, items: IntArray, profile: IntArray, own: NDArray[np.bool_]) -> FloatArray:
        """sqrt(c_i c_i') S_b(i, i') of c candidates with their profiles; float64 [c, n].

        Entries of a candidate with itself mean nothing: the caller leaves them out.

        Args:
            items: [c]; profile: [c, n] or [1, n]; own: bool [c], True where the candidate is observed.
        """
        shape = (len(items), profile.shape[1])
        rows = np.repeat(items, profile.shape[1]).reshape(shape)
        columns = profile if len(profile) == len(items) else np.tile(profile, (len(items), 1))
        counts = self._count(rows, columns) - own[:, None]
        left, right = self._factor(items, own), self._factor(profile, True)
        return counts * left[:, None] * right

    def _factor(self, items: IntArray, own: NDArray[np.bool_] | bool) -> FloatArray:
        degree = self.degree[items] - own
        return np.where(degree > 0, self.root[items] / np.sqrt(np.where(degree > 0, degree, 1.0)), 0.0)

    def mean_scores(self, candidates: Candidates) -> FloatArray:
        """Mean of sqrt(c_i c_i') S_b(i, i') over the profile without the left-out item; float64 [n].

        Long profiles go through one sparse-dense product per user, short ones through look-ups.
        """
        profiles = self.profiles
        size = profiles.size[candidates.users]
        rows_of = np.bincount(candidates.users, minlength=profiles.n_users)
        heavy_user = profiles.size * rows_of * _LOOKUP_COST > self.counts.nnz
        result = np.zeros(len(candidates))
        heavy = np.flatnonzero(heavy_user[candidates.users] & (size > 1))
        light = np.flatnonzero(~heavy_user[candidates.users] & (size > 1))
        for block in profile_blocks(profiles, candidates.take(light), 1):
            at = light[block.index]
            items, left_out = candidates.items[at], candidates.left_out[at]
            similarity = self.block(items, block.profile, items == left_out)
            similarity[block.profile == left_out[:, None]] = 0.0
            result[at] = similarity.sum(axis=1)
        users = np.unique(candidates.users[heavy])
        right = self._factor(np.arange(profiles.n_items), True)
        for first in range(0, len(users), _HEAVY_USERS):
            some = users[first : first + _HEAVY_USERS]
            at = heavy[np.isin(candidates.users[heavy], some)]
            column = np.searchsorted(some, candidates.users[at])
            items, left_out = candidates.items[at], candidates.left_out[at]
            own = items == left_out
            weights = profiles.matrix[some].multiply(right[None, :]).T.toarray()
            sums = (self.counts @ weights)[items, column]
            sums -= self._count(items, left_out) * right[left_out]
            sums -= own * (weights.sum(axis=0)[column] - right[left_out])
            result[at] = sums * self._factor(items, own)
        result /= np.maximum(size - 1, 1)
        result[np.abs(result) < SNAP] = 0.0
        return result


@dataclass(frozen=True)
class FoldedEmbeddings:
    """Item embeddings from interactions, a set for each part of the users, made without that part.

    Attributes:
        fold: int64 [n_users], the part of every user.
        rows: one float32 [n_items, d] for each part, of unit length or 0.
    """

    fold: IntArray
    rows: list[NDArray[np.float32]]

    def split(self, candidates: Candidates) -> Iterator[tuple[IntArray, NDArray[np.float32]]]:
        """(positions in the candidates, the embeddings they are scored with), part by part."""
        part = self.fold[candidates.users]
        for k, rows in enumerate(self.rows):
            yield np.flatnonzero(part == k), rows

    def mean_scores(self, weight: FloatArray, profiles: Profiles, candidates: Candidates) -> FloatArray:
        """Leave-one-out mean cosine, as :func:`~recbole_guider.amsc.similarity.mean_scores`."""
        result = np.zeros(len(candidates))
        for at, rows in self.split(candidates):
            result[at] = mean_scores(rows, weight, profiles, candidates.take(at))
        return result


def unit_rows(rows: FloatArray) -> NDArray[np.float32]:
    """Rows divided by their length; rows of (almost) no length become 0."""
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.where(length > 1e-10, rows / np.maximum(length, 1e-10), 0.0).astype(np.float32)


def low_rank_embeddings(profiles: Profiles, rng: np.random.Generator) -> FoldedEmbeddings:
    """Item embeddings by randomised SVD, for every part of the users from the interactions of the others.

    A user's own interactions would pull all items of the profile, the noisy ones too, towards each other;
    here nothing of the user is left in the embeddings, so a noisy pair and its null pairs stay exchangeable.
    Within the budget the matrix is the positive pointwise mutual information of co-occurrence, each user
    sharing one unit of weight among the other items of the profile; past it D_u^-1/2 X D_i^-1/4, linear.
    """
    fold = rng.permutation(profiles.n_users) % FOLDS
    pmi = exact_is_affordable(profiles)
    rows = []
    for k in range(FOLDS):
        keep = (fold != k) & (profiles.size > 1)
        matrix = sp.csr_matrix(profiles.matrix[np.flatnonzero(keep)])
        size = profiles.size[keep].astype(np.float64)
        seed = int(rng.integers(2**31 - 1))
        rows.append(_pmi_rows(matrix, size, seed) if pmi else _svd_rows(matrix, size, seed))
    return FoldedEmbeddings(fold, rows)


def _svd(matrix: sp.csr_matrix, seed: int) -> tuple[FloatArray, FloatArray, FloatArray]:
    rank = min(RANK, min(matrix.shape))
    return randomized_svd(matrix, rank, n_iter=2, random_state=seed)


def _svd_rows(matrix: sp.csr_matrix, size: FloatArray, seed: int) -> NDArray[np.float32]:
    if not matrix.nnz:
        return np.zeros((matrix.shape[1], 1), dtype=np.float32)
    degree = np.maximum(np.asarray(matrix.sum(axis=0)).ravel(), 1.0)
    scaled = sp.diags(size**-0.5) @ matrix @ sp.diags(degree**-0.25)
    return unit_rows(_svd(sp.csr_matrix(scaled), seed)[2].T)


def _pmi_rows(matrix: sp.csr_matrix, size: FloatArray, seed: int) -> NDArray[np.float32]:
    if not matrix.nnz:
        return np.zeros((matrix.shape[1], 1), dtype=np.float32)
    counts = sp.coo_matrix(matrix.T @ sp.diags(1.0 / (size - 1)) @ matrix)
    off = counts.row != counts.col
    row, col, count = counts.row[off], counts.col[off], counts.data[off]
    total = np.bincount(row, weights=count, minlength=matrix.shape[1])
    # The exponent 3/4 keeps rare items from scoring high by chance.
    context = total**0.75
    value = np.log(count * context.sum() / (total[row] * context[col]))
    good = value > 0
    pmi = sp.csr_matrix((value[good], (row[good], col[good])), shape=counts.shape)
    left, scale, _ = _svd(pmi, seed)
    return unit_rows(left * np.sqrt(scale))
