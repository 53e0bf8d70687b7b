"""Nearest-neighbour graphs of items from their features, built in blocks of rows; sums and unions of graphs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from recbole_guider.graph.operator import DEGREE_EPSILON, SparseOperator, degree_normalised
from recbole_guider.utils.errors import GuiderError

# Similarities closer than this are one value in float32, so the lower item id wins.
_TIE = 4 * torch.finfo(torch.float32).eps
# Bytes that one block of similarities may take when the caller names no block size.
BLOCK_BYTES = 32 * 2**20


def knn_graph(
    features: np.ndarray | Tensor,
    k: int,
    present: np.ndarray | Tensor | None = None,
    block: int | None = None,
    *,
    weighting: Literal["binary", "similarity"] = "binary",
    exclude_self: bool = False,
) -> SparseOperator:
    """The cosine k-nearest-neighbour graph of items with FREEDOM's normalisation, built in blocks of rows.

    S_ij = 1 (or max(cos(x_i, x_j), 0)) if j is among the k items most similar to i, itself included unless
    ``exclude_self``; the result is D^-1/2 S D^-1/2 with D = diag(row sums of S) + 1e-7. S is not symmetric.
    Never more than one block of similarities, [block, n], is in memory. Equal similarities: the lower id
    wins.

    Args:
        features: floats [n, d], computed in float32 on their own device; not centred here.
        k: neighbours of an item; no more than there are.
        present: bool [n]; an absent item has no edges and is nobody's neighbour. So has a row of zeros, which
            has no direction.
        block: rows of similarities at a time; None takes about 32 MB.
        weighting: ``binary`` (FREEDOM) or ``similarity``.
        exclude_self: leave out the edge of an item to itself.

    Returns:
        A float32 :class:`SparseOperator` [n, n] on the features' device.

    Raises:
        GuiderError: if shapes do not fit, k < 1, or a present row is not finite.
    """
    if weighting not in ("binary", "similarity"):
        raise GuiderError(f"weighting must be 'binary' or 'similarity', not {weighting!r}.")
    x, there = _content(features, k, present, block)
    n, device = x.shape[0], x.device
    ids = torch.nonzero(there & (x != 0).any(1)).squeeze(1)
    x = x[ids]
    # Divided by the largest entry first, so that squares neither overflow nor vanish.
    x = x / x.abs().amax(1, keepdim=True) if x.numel() else x
    x = x / x.norm(dim=1, keepdim=True)
    m = ids.numel()
    k = min(k, m - 1 if exclude_self else m)
    if k < 1:
        empty = torch.zeros(n + 1, dtype=torch.int64, device=device)
        return SparseOperator(empty, empty[:0], torch.zeros(0, device=device), (n, n))
    if block is None:
        block = max(1, BLOCK_BYTES // (4 * m))

    columns = torch.empty((m, k), dtype=torch.int64, device=device)
    weights = torch.ones((m, k), device=device)
    for start in range(0, m, block):
        stop = min(start + block, m)
        with torch.autocast(device.type, enabled=False):  # half precision makes ties
            similarity = x[start:stop] @ x.T
        if exclude_self:
            rows = torch.arange(start, stop, device=device)
            similarity[rows - start, rows] = -torch.inf
        columns[start:stop] = _neighbours(similarity, k)
        if weighting == "similarity":
            weights[start:stop] = similarity.gather(1, columns[start:stop]).clamp_min(0.0)
    scale = (weights.double().sum(1) + DEGREE_EPSILON).rsqrt()
    values = weights * scale[:, None] * scale[columns]
    counts = torch.zeros(n, dtype=torch.int64, device=device)
    counts[ids] = k
    crow = torch.cat((counts.new_zeros(1), counts.cumsum(0)))
    return SparseOperator(crow, ids[columns].flatten(), values.float().flatten(), (n, n))


def shrunk_cosine_graph(
    features: np.ndarray | Tensor,
    k: int,
    shrink: float = 0.0,
    present: np.ndarray | Tensor | None = None,
    block: int | None = None,
) -> SparseOperator:
    """The k most similar items of every item with their similarities, built in blocks of rows.

    S_ij = <x_i, x_j> / (|x_i| |x_j| + shrink) if j is among the k items for which this is largest, i itself
    included, else 0. Nothing is normalised and S is not symmetric. Never more than one block of similarities,
    [block, n], is in memory. Equal similarities: the lower id wins.

    Args:
        features: floats [n, d], computed in float32 on their own device; neither centred nor scaled here.
        k: neighbours of an item; no more than there are.
        shrink: number >= 0 that makes small vectors less similar to anything.
        present: bool [n]; an absent item has no edges and is nobody's neighbour. So has a row of zeros.
        block: rows of similarities at a time; None takes about 32 MB.

    Returns:
        A float32 :class:`SparseOperator` [n, n] on the features' device.

    Raises:
        GuiderError: if shapes do not fit, k < 1, shrink < 0, or a present row is not finite.
    """
    if not shrink >= 0:
        raise GuiderError(f"shrink must be 0 or more, not {shrink}.")
    x, there = _content(features, k, present, block)
    n, device = x.shape[0], x.device
    ids = torch.nonzero(there & (x != 0).any(1)).squeeze(1)
    x = x[ids]
    m = ids.numel()
    k = min(k, m)
    length = x.norm(dim=1)
    columns = torch.empty((m, k), dtype=torch.int64, device=device)
    values = torch.empty((m, k), device=device)
    block = block or max(1, BLOCK_BYTES // (4 * max(m, 1)))
    for start in range(0, m, block):
        stop = min(start + block, m)
        similarity = (x[start:stop] @ x.T).div_(torch.outer(length[start:stop], length).add_(shrink))
        columns[start:stop] = _neighbours(similarity, k)
        values[start:stop] = similarity.gather(1, columns[start:stop])
    counts = torch.zeros(n, dtype=torch.int64, device=device)
    counts[ids] = k
    crow = torch.cat((counts.new_zeros(1), counts.cumsum(0)))
    return SparseOperator(crow, ids[columns].flatten(), values.flatten(), (n, n))


def agreeing_knn_graphs(
    features: Sequence[np.ndarray | Tensor],
    k: int,
    present: Sequence[np.ndarray | Tensor] | None = None,
    block: int | None = None,
) -> list[SparseOperator]:
    """The cosine k-nearest-neighbour graph of every modality, without the edges that another modality contradicts.

    Items i and j agree if, in every modality that both have, their cosine is at least the mean cosine of all pairs
    of that modality (each item with itself included). In modality m an item is linked to the at most k most similar
    items, itself included, that it agrees with; the result is D^-1/2 S D^-1/2 as in :func:`degree_normalised`. Never
    more than one block of similarities for each modality is in memory. Equal similarities: the lower id wins.

    Args:
        features: for each modality floats [n, d_m], all on one device, computed in float32.
        k: largest number of neighbours of an item.
        present: for each modality bool [n]; an absent item has no edges there, is nobody's neighbour, and no pair of
            it is contradicted there. The same holds for a row of zeros, which has no direction.
        block: rows of similarities at a time; None takes about 32 MB for all modalities together.

    Returns:
        For each modality a float32 :class:`SparseOperator` [n, n].

    Raises:
        GuiderError: there is no modality, shapes do not fit, k < 1, or a present row is not finite.

    Source: the denoised item graph of Xv et al., Improving Multi-modal Recommender Systems by Denoising and Aligning
    Multi-modal Content and User Feedback, KDD 2024.
    """
    if not features:
        raise GuiderError("agreeing_knn_graphs needs at least one modality.")
    masks: Sequence[Any] = [None] * len(features) if present is None else present
    modalities = [_unit_rows(*_content(x, k, mask, block)) for x, mask in zip(features, masks, strict=True)]
    n, device = len(modalities[0][0]), modalities[0][0].device
    if any(len(unit) != n for unit, _ in modalities):
        raise GuiderError(f"modalities must have equally many items, not {[len(unit) for unit, _ in modalities]}.")
    # the mean of all cosines is the squared length of the mean unit row
    means = [unit.double().sum(0).square().sum() / max(int(there.sum()), 1) ** 2 for unit, there in modalities]
    if block is None:
        block = max(1, BLOCK_BYTES // (4 * n * len(modalities)))
    rows: list[list[Tensor]] = [[] for _ in modalities]
    columns: list[list[Tensor]] = [[] for _ in modalities]
    for start in range(0, n, block):
        similarities = [unit[start : start + block] @ unit.T for unit, _ in modalities]
        agree = torch.ones_like(similarities[0], dtype=torch.bool)
        for similarity, mean, (_, there) in zip(similarities, means, modalities, strict=True):
            both = there[start : start + block, None] & there
            agree &= (similarity >= mean.float()) | ~both
        for place, (similarity, (_, there)) in enumerate(zip(similarities, modalities, strict=True)):
            kept = agree & there[start : start + block, None] & there
            similarity = similarity.masked_fill(~kept, -torch.inf)
            nearest = _neighbours(similarity, min(k, n))
            row, slot = torch.nonzero(similarity.gather(1, nearest) > -torch.inf, as_tuple=True)
            rows[place].append(row + start)
            columns[place].append(nearest[row, slot])
    graphs = []
    for row_parts, column_parts in zip(rows, columns, strict=True):
        row, column = torch.cat(row_parts).cpu().numpy(), torch.cat(column_parts).cpu().numpy()
        ones = np.ones(len(row), dtype=np.float32)
        graphs.append(degree_normalised(sp.csr_matrix((ones, (row, column)), shape=(n, n))).to(device))
    return graphs


def _content(
    features: np.ndarray | Tensor, k: int, present: np.ndarray | Tensor | None, block: int | None
) -> tuple[Tensor, Tensor]:
    """Checked arguments of a nearest-neighbour graph: the features in float32, and who is present."""
    x = (
        features.detach()
        if isinstance(features, Tensor)
        else torch.from_numpy(np.array(features, dtype=np.float32))
    )
    if x.dim() != 2:
        raise GuiderError(f"features must be a matrix [items, dimensions], not {x.dim()}-dimensional.")
    if k < 1:
        raise GuiderError(f"k must be 1 or more, not {k}.")
    if block is not None and block < 1:
        raise GuiderError(f"block must be 1 or more, not {block}.")
    n, device = x.shape[0], x.device
    there = torch.ones(n, dtype=torch.bool, device=device)
    if present is not None:
        there = torch.as_tensor(present, dtype=torch.bool).to(device)
        if there.shape != (n,):
            raise GuiderError(
                f"present must have one entry for each of the {n} items, not {tuple(there.shape)}."
            )
    x = x.float()
    bad = torch.nonzero(there & ~torch.isfinite(x).all(1)).squeeze(1)
    if bad.numel():
        raise GuiderError(f"The features of item {int(bad[0])} are not finite.")
    return x, there


def _unit_rows(x: Tensor, there: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of unit length, float32 [n, d], and which rows have a direction, bool [n]; the others are zero."""
    x = x.masked_fill(~there[:, None], 0.0)
    largest = x.abs().amax(1)
    there = there & (largest > 0)
    # Divided by the largest entry first, so that squares neither overflow nor vanish.
    x = x / torch.where(there, largest, 1.0)[:, None]
    return x / torch.where(there, x.norm(dim=1), 1.0)[:, None], there


def _neighbours(similarity: Tensor, k: int) -> Tensor:
    """The k largest columns of every row [rows, k], in ascending column order; of equal values the lower
    id."""
    # One more than needed, to see whether topk had a choice between equal values: it leaves open which it takes.
    values, columns = torch.topk(similarity, min(k + 1, similarity.shape[1]), dim=1)
    columns, last = columns[:, :k].clone(), values[:, k - 1 : k]
    tied = torch.nonzero((last - values[:, k:] <= _TIE).any(1)).squeeze(1)
    if tied.numel():
        rows, last = similarity[tied], last[tied]
        above = rows > last + _TIE
        level = (rows >= last - _TIE) & ~above
        missing = k - above.sum(1, keepdim=True)
        chosen = above | (level & (level.cumsum(1) <= missing))
        columns[tied] = chosen.nonzero()[:, 1].view(-1, k)
    return columns.sort(dim=1).values


def combine(operators: Sequence[SparseOperator], weights: Sequence[float] | None = None) -> SparseOperator:
    """The weighted sum of operators of one shape, sum_m w_m A_m, as one operator.

    Args:
        operators: at least one, all of the same shape.
        weights: one number for each, used as given (not normalised); None: 1 / number of operators.

    Returns:
        An operator on the first one's device with its float type, symmetric if all are.

    Raises:
        GuiderError: if there is no operator, or if shapes or numbers differ.
    """
    if not operators:
        raise GuiderError("combine needs at least one operator.")
    if weights is None:
        weights = [1.0 / len(operators)] * len(operators)
    if len(weights) != len(operators):
        raise GuiderError(f"{len(operators)} operators need as many weights, not {len(weights)}.")
    first = operators[0]
    if any(op.shape != first.shape for op in operators):
        raise GuiderError(
            f"Operators of different shapes cannot be combined: {[op.shape for op in operators]}."
        )
    total = sp.csr_matrix(first.shape, dtype=np.float64)
    for op, weight in zip(operators, weights, strict=True):
        total = total + float(weight) * op.to_scipy().astype(np.float64)
    symmetric = all(op.symmetric for op in operators)
    return SparseOperator.from_scipy(total, symmetric, first.dtype).to(first.device)


def union(operators: Sequence[SparseOperator]) -> SparseOperator:
    """The entry-wise maximum of operators of one shape whose entries are not negative: every edge of any of them.

    Args:
        operators: at least one, all of the same shape.

    Returns:
        An operator on the first one's device with its float type, symmetric if all are.

    Raises:
        GuiderError: there is no operator, or shapes differ.
    """
    if not operators:
        raise GuiderError("union needs at least one operator.")
    first = operators[0]
    if any(op.shape != first.shape for op in operators):
        raise GuiderError(f"Operators of different shapes have no union: {[op.shape for op in operators]}.")
    total = first.to_scipy()
    for op in operators[1:]:
        total = total.maximum(op.to_scipy())
    symmetric = all(op.symmetric for op in operators)
    return SparseOperator.from_scipy(total, symmetric, first.dtype).to(first.device)


def softmax_rows(matrix: sp.csr_matrix) -> SparseOperator:
    """The softmax of every row over its stored entries; a row without entries stays empty."""
    matrix = matrix.tocsr()
    row = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
    largest = np.full(matrix.shape[0], -np.inf)
    np.maximum.at(largest, row, matrix.data)
    values = np.exp(matrix.data - largest[row])
    total = np.bincount(row, values, minlength=matrix.shape[0])
    return SparseOperator.from_scipy(sp.csr_matrix((values / total[row], matrix.indices, matrix.indptr), matrix.shape))
