"""Similarities that other users teach: item embeddings from behaviour, from content, and from both.

Content as it comes weighs every direction of the feature space alike, and co-occurrence compares only items that
share a user. Both gain from what the other profiles show: which items go together, and which directions of the
content go with that. All of it is learned for one fold of the users from the interactions of the other folds: a
user's own interactions would pull all items of the profile, the noisy ones too, towards each other, and a noisy pair
would no longer look like its null pairs. All definitions are this project's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from recbole_guider.amsc.behaviour import counts_are_affordable
from recbole_guider.amsc.folds import UserFolds
from recbole_guider.amsc.profiles import Candidates, FloatArray
from recbole_guider.amsc.similarity import Modality, mean_scores, nearest_scores
from recbole_guider.utils.interactions import IntArray, InteractionIndex

#: Users are split into this many folds; each is scored by what the other folds did.
FOLDS = 5
#: Dimension of the behaviour embeddings, at most an eighth of the number of items.
RANK = 256
#: Dimension to which the content is reduced before it is mapped to behaviour.
CONTENT_RANK = 512
#: Penalty of the map, as a share of the mean eigenvalue.
RIDGE = 0.3
#: An item's own behaviour weighs as much as its content does once it has this many users.
CONTENT_PRIOR = 4.0
# Context counts are raised to this power (3/4 as in word embeddings, spread evenly over both sides).
_CONTEXT_POWER = 0.875
_OVERSAMPLING = 16
_ITEMS_PER_DIRECTION = 8


@dataclass(frozen=True)
class FoldedEmbeddings:
    """Item embeddings from interactions, a set for each fold of the users, made without that fold.

    Attributes:
        folds: which fold a user lies in.
        rows: one float32 [n_items, d] for each fold, of unit length or 0.
    """

    folds: UserFolds
    rows: list[NDArray[np.float32]]

    def split(
        self, profiles: InteractionIndex, candidates: Candidates
    ) -> Iterator[tuple[IntArray, NDArray[np.float32]]]:
        """(positions in the candidates, the embeddings they are scored with), fold by fold."""
        fold = self.folds(profiles.user_keys)[candidates.users]
        for k, rows in enumerate(self.rows):
            yield np.flatnonzero(fold == k), rows

    def mean_scores(self, weight: FloatArray, profiles: InteractionIndex, candidates: Candidates) -> FloatArray:
        """Leave-one-out mean cosine, as :func:`recbole_guider.amsc.similarity.mean_scores`."""
        result = np.zeros(len(candidates))
        for at, rows in self.split(profiles, candidates):
            result[at] = mean_scores(rows, weight, profiles, candidates.take(at))
        return result

    def nearest_scores(self, weight: FloatArray, profiles: InteractionIndex, candidates: Candidates) -> FloatArray:
        """The largest cosine to the rest of a profile, as :func:`recbole_guider.amsc.similarity.nearest_scores`."""
        result = np.zeros(len(candidates))
        for at, rows in self.split(profiles, candidates):
            result[at] = nearest_scores(rows, weight, profiles, candidates.take(at))
        return result


def learn_embeddings(
    profiles: InteractionIndex, joined: NDArray[np.float32] | None, rng: np.random.Generator
) -> dict[str, FoldedEmbeddings]:
    """Item embeddings for every fold of the users from the interactions of the others.

    ``behaviour``: b_i, the leading eigenvectors of the positive pointwise mutual information of items in profiles

        M(i, i') = max(0, log(N(i, i') Z / (n_i n_i')^(7/8))),    N(i, i') = sum over v of 1 / (|I_v| - 1)

    (each user shares one unit of weight among the other items of the profile; n_i = sum over i' of N(i, i'),
    Z = sum over i of n_i^(3/4)). Where counting pairs costs too much: eigenvectors of D_i^-1/4 X^T D_u^-1 X D_i^-1/4.

    ``content``: W_i x_i, the ridge regression of b on the content of all modalities, items weighted by the root of
    their number of users: it stretches the directions of the content that profiles agree in. W_i is fitted without
    item i, so that the map cannot remember what the users of i did, and the rows are centred (:func:`centred`).

    ``both``: (d_i b_i + kappa W_i x_i) / (d_i + kappa): behaviour where it is known, content where it is not.

    Args:
        joined: float32 [n_items, d], the content of :func:`joined_content`; None: only ``behaviour`` is returned.
        rng: chooses the folds and the start of the eigenvalue iteration.

    Returns:
        name -> :class:`FoldedEmbeddings`, rows of unit length.
    """
    folds = UserFolds(int(rng.integers(2**63)), FOLDS)
    fold = folds(profiles.user_keys)
    content = None if joined is None else half_whitened(joined)
    rows: dict[str, list[NDArray[np.float32]]] = {"behaviour": []}
    if content is not None:
        rows |= {"content": [], "both": []}
    pmi = counts_are_affordable(profiles.square_sum)
    for k in range(FOLDS):
        users = np.flatnonzero((fold != k) & (profiles.size > 1))
        matrix = sp.csr_matrix(profiles.matrix[users])
        operator = _pmi(matrix) if pmi else _normalised(matrix)
        behaviour = _unit_rows(_leading_eigenvectors(operator, rng) if operator is not None else None, profiles.n_items)
        rows["behaviour"].append(behaviour)
        if content is None:
            continue
        degree = np.asarray(matrix.sum(axis=0)).ravel()[:, None]
        mapped = _unit_rows(held_out_ridge(content, behaviour, np.sqrt(degree)), profiles.n_items)
        rows["content"].append(_unit_rows(centred(mapped, degree), profiles.n_items))
        rows["both"].append(_unit_rows(degree * behaviour + CONTENT_PRIOR * mapped, profiles.n_items))
    return {name: FoldedEmbeddings(folds, by_fold) for name, by_fold in rows.items()}


def centred(rows: FloatArray, degree: FloatArray) -> FloatArray:
    """Rows minus their mean over the interactions (``degree`` [n_items] or [n_items, 1], the number of users).

    The mean over the items is not the mean over what people choose: without this, pairs near the middle of what is
    popular look alike.
    """
    weight = degree.reshape(-1, 1)
    return rows - (weight * rows).sum(axis=0) / max(float(weight.sum()), 1.0)


def held_out_ridge(content: FloatArray, target: FloatArray, weight: FloatArray) -> FloatArray:
    """Weighted ridge predictions of every row by the map that was fitted without that row.

    With G = X^T diag(w) X + penalty I, prediction p_i = x_i^T G^-1 X^T diag(w) Y and h_i = w_i x_i^T G^-1 x_i, the map
    without row i predicts (p_i - h_i y_i) / (1 - h_i), exactly and without a second fit. The penalty is RIDGE times
    the mean eigenvalue of X^T diag(w) X.

    Args:
        content: float64 [n, d], X; target: float [n, k], Y; weight: float [n, 1], w >= 0.

    Returns:
        float64 [n, k].
    """
    weighted = content * weight
    gram = weighted.T @ content
    penalty = RIDGE * max(np.trace(gram) / len(gram), 1e-12)
    solved = np.linalg.solve(gram + penalty * np.eye(len(gram)), weighted.T)
    own = np.einsum("ij,ji->i", content, solved)[:, None]
    return (content @ (solved @ target) - own * target) / (1.0 - own)


def _unit_rows(rows: FloatArray | None, n_items: int) -> NDArray[np.float32]:
    """Rows divided by their length; rows of (almost) no length, or no rows at all, become 0."""
    if rows is None:
        return np.zeros((n_items, 1), dtype=np.float32)
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    good = length > 1e-6 * np.max(length, initial=0.0)
    return np.where(good, rows / np.where(good, length, 1.0), 0.0).astype(np.float32)


def joined_content(modalities: list[Modality], rng: np.random.Generator) -> NDArray[np.float32] | None:
    """All modalities side by side, at most CONTENT_RANK leading directions; float32 [n_items, d], None without any."""
    some = [m.rows for m in modalities if m.present.any()]
    if not some:
        return None
    rows = np.concatenate(some, axis=1)
    if rows.shape[1] > CONTENT_RANK:
        # A few rounds of subspace iteration on rows^T rows, without that matrix.
        basis = rng.standard_normal((rows.shape[1], CONTENT_RANK)).astype(np.float32)
        for _ in range(3):
            basis = np.linalg.qr(rows.T @ (rows @ basis))[0]
        rows = rows @ basis
    return rows


def half_whitened(rows: NDArray[np.float32]) -> FloatArray:
    """Principal components, each divided by the root of its spread; float64."""
    wide = rows.astype(np.float64)
    values, vectors = np.linalg.eigh(wide.T @ wide / len(wide))
    keep = values > 1e-6 * values[-1]
    return wide @ (vectors[:, keep] * values[keep] ** -0.25)


def _pmi(matrix: sp.csr_matrix) -> sp.csr_matrix | None:
    """M of :func:`learn_embeddings`; float32 [n_items, n_items], None without any pair of items."""
    if not matrix.nnz:
        return None
    size = np.asarray(matrix.sum(axis=1)).ravel()
    shares = sp.csr_matrix(sp.diags((size - 1) ** -0.5) @ matrix).astype(np.float32)
    counts = sp.coo_matrix(shares.T @ shares)
    off = counts.row != counts.col
    row, column, count = counts.row[off], counts.col[off], counts.data[off]
    total = np.bincount(row, weights=count, minlength=matrix.shape[1])
    context = np.maximum(total, 1e-12) ** _CONTEXT_POWER
    value = np.log(count * np.sum(total**0.75) / (context[row] * context[column])).astype(np.float32)
    good = value > 0
    return sp.csr_matrix((value[good], (row[good], column[good])), shape=counts.shape) if good.any() else None


class _Gram:
    """A^T A of a sparse A, as an operator."""

    def __init__(self, matrix: sp.csr_matrix) -> None:
        self.matrix, self.transposed = matrix, sp.csr_matrix(matrix.T)
        self.shape = (matrix.shape[1], matrix.shape[1])

    def __matmul__(self, other: FloatArray) -> FloatArray:
        return self.transposed @ (self.matrix @ other)


def _normalised(matrix: sp.csr_matrix) -> _Gram | None:
    if not matrix.nnz:
        return None
    size = np.asarray(matrix.sum(axis=1)).ravel()
    degree = np.maximum(np.asarray(matrix.sum(axis=0)).ravel(), 1.0)
    return _Gram(sp.csr_matrix(sp.diags(size**-0.5) @ matrix @ sp.diags(degree**-0.25)).astype(np.float32))


def _leading_eigenvectors(operator: sp.csr_matrix | _Gram, rng: np.random.Generator) -> FloatArray:
    """Eigenvectors of the largest positive eigenvalues, times their roots, by randomised subspace iteration."""
    n = operator.shape[0]
    # All directions of a small catalogue would leave every item similar to itself alone.
    rank = max(min(RANK, n // _ITEMS_PER_DIRECTION), 1)
    basis = rng.standard_normal((n, min(rank + _OVERSAMPLING, n))).astype(np.float32)
    for _ in range(2):
        basis = np.linalg.qr(operator @ basis)[0]
    small = basis.T @ (operator @ basis)
    values, vectors = np.linalg.eigh((small + small.T) / 2)
    chosen = np.argsort(-values)[:rank]
    chosen = chosen[values[chosen] > 1e-6 * max(float(np.max(values)), 0.0)]
    if isinstance(operator, _Gram):
        return basis @ vectors[:, chosen]
    return basis @ (vectors[:, chosen] * np.sqrt(values[chosen]))
