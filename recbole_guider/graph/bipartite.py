"""Graphs of users and items from their interactions: normalised adjacencies, pruned ones, and who occurs together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from recbole_guider.graph.operator import DEGREE_EPSILON, INT32_MAX, SparseOperator
from recbole_guider.utils.errors import GuiderError
from recbole_guider.utils.interactions import InteractionIndex

ArrayLike: TypeAlias = np.ndarray | Tensor | Sequence[int]

# Products that one block of a sparse product of two incidence matrices may take.
_BLOCK_PRODUCTS = 10**7


class BipartiteGraph:
    """The distinct (user, item) edges of a log, sorted once, so that every pruned adjacency is built without
    a sort.

    Args:
        users, items: integer arrays [nnz], ids from 0; a repeated pair is one edge.
        n_users, n_items: numbers of users and items.
        weights: edge weights >= 0 [nnz], 1 without; of a repeated pair the largest counts.

    Attributes:
        users, items: the distinct edges [n_edges], sorted by user and then by item (int64, CPU).
        weights: their weights [n_edges] (float64), or None.

    Raises:
        GuiderError: if ids are out of range or lengths differ.
    """

    def __init__(
        self,
        users: ArrayLike,
        items: ArrayLike,
        n_users: int,
        n_items: int,
        weights: np.ndarray | Tensor | None = None,
    ) -> None:
        u, i = _pairs(users, items, n_users, n_items)
        self.n_users, self.n_items = int(n_users), int(n_items)
        w: np.ndarray | None = None
        if weights is not None:
            w = weights.detach().cpu().numpy() if isinstance(weights, Tensor) else np.asarray(weights)
            w = w.astype(np.float64)
            if w.shape != u.shape or not np.all(np.isfinite(w)) or (w.size and w.min() < 0):
                raise GuiderError(f"weights must be {u.size} finite numbers >= 0, one for each pair.")
        edges = InteractionIndex(u, i, self.n_users, self.n_items)
        u, i = edges.users, edges.items
        if w is not None:
            given, w = w, np.zeros(edges.n_pairs)
            np.maximum.at(w, edges.inverse, given)
        self.users, self.items = torch.from_numpy(u), torch.from_numpy(i)
        self.weights = None if w is None else torch.from_numpy(w)
        # Edge ids in item-major order: the lower half of the symmetric matrix.
        by_user = sp.csr_matrix((np.arange(u.size), i, edges.indptr), shape=(self.n_users, self.n_items))
        self._by_item = by_user.tocsc().data
        self._half = (u, i, w)
        self._half_by_item = (u[self._by_item], i[self._by_item], None if w is None else w[self._by_item])

    @property
    def n_edges(self) -> int:
        """Number of distinct edges."""
        return self.users.numel()

    def adjacency(self, keep: Tensor | np.ndarray | None = None) -> SparseOperator:
        """D^-1/2 A D^-1/2 of the graph, or of the edges kept, with the degrees of what is kept.

        Args:
            keep: edge ids (integers) or a mask (bool [n_edges]); None keeps every edge.

        Raises:
            GuiderError: if a mask has the wrong length.
        """
        halves = [self._half, self._half_by_item]
        if keep is not None:
            chosen = keep.detach().cpu().numpy() if isinstance(keep, Tensor) else np.asarray(keep)
            mask = chosen
            if chosen.dtype != np.bool_:
                mask = np.zeros(self.n_edges, dtype=bool)
                mask[chosen] = True
            if mask.shape != (self.n_edges,):
                raise GuiderError(
                    f"keep must have one entry for each of the {self.n_edges} edges, not {mask.shape}."
                )
            ids = [np.flatnonzero(mask), np.flatnonzero(mask[self._by_item])]
            halves = [
                (u.take(at), i.take(at), None if w is None else w.take(at))
                for (u, i, w), at in zip(halves, ids, strict=True)
            ]
        (u, i, w), (u_by_item, i_by_item, w_by_item) = halves

        count_u = np.bincount(u, minlength=self.n_users)
        count_i = np.bincount(i_by_item, minlength=self.n_items)
        degree_u = count_u if w is None else np.bincount(u, w, minlength=self.n_users)
        degree_i = count_i if w is None else np.bincount(i_by_item, w_by_item, minlength=self.n_items)
        scale_u, scale_i = (1.0 / np.sqrt(degree + DEGREE_EPSILON) for degree in (degree_u, degree_i))

        # Rows of users first, then rows of items; both are sorted already.
        n, n_kept = self.n_users + self.n_items, u.size
        index = np.int32 if max(n, 2 * n_kept) <= INT32_MAX else np.int64
        crow = np.zeros(n + 1, dtype=index)
        np.cumsum(np.concatenate((count_u, count_i)), out=crow[1:])
        col = np.empty(2 * n_kept, dtype=index)
        col[:n_kept], col[n_kept:] = i + self.n_users, u_by_item
        values = np.empty(2 * n_kept, dtype=np.float32)
        values[:n_kept] = scale_u[u] * scale_i[i] if w is None else scale_u[u] * scale_i[i] * w
        lower = scale_u[u_by_item] * scale_i[i_by_item]
        values[n_kept:] = lower if w_by_item is None else lower * w_by_item
        parts = torch.from_numpy(crow), torch.from_numpy(col), torch.from_numpy(values)
        return SparseOperator(*parts, (n, n), symmetric=True)

    def prune(self, keep: int | float, generator: torch.Generator) -> SparseOperator:
        """The renormalised adjacency of a degree-sensitive sample of the edges; see
        :func:`prune_by_degree`."""
        kept = prune_by_degree(self.users, self.items, self.n_users, self.n_items, keep, generator)
        return self.adjacency(kept)


def bipartite_adjacency(
    users: ArrayLike,
    items: ArrayLike,
    n_users: int,
    n_items: int,
    weights: np.ndarray | Tensor | None = None,
) -> SparseOperator:
    """The symmetric normalised adjacency of a user-item graph, D^-1/2 A D^-1/2 on N = n_users + n_items
    nodes.

    A[u, n_users + i] = A[n_users + i, u] = w_ui for every distinct pair, D = diag(row sums of A) + 1e-7: with
    all weights 1 these are the numbers of RecBole's ``LightGCN.get_norm_adj_mat``. A node without edges has a
    zero row.

    Args:
        users, items: integer arrays [nnz] (numpy or torch), ids from 0; a repeated pair is one edge.
        n_users, n_items: numbers of users and items.
        weights: edge weights >= 0 [nnz]; of a repeated pair the largest counts. None: 1.

    Returns:
        A symmetric float32 :class:`SparseOperator` [N, N] on the CPU.

    Raises:
        GuiderError: if ids are out of range, lengths differ, or a weight is negative or not finite.
    """
    return BipartiteGraph(users, items, n_users, n_items, weights).adjacency()


def mean_adjacency(
    users: ArrayLike, items: ArrayLike, n_users: int, n_items: int, *, self_loops: bool = False
) -> SparseOperator:
    """The user-item graph that averages over neighbours, D^-1 A on N = n_users + n_items nodes.

    Args:
        users, items: integer arrays [nnz], ids from 0; a repeated pair is one edge of weight 1.
        n_users, n_items: numbers of users and items.
        self_loops: whether a node counts among its neighbours, D^-1 (A + I).

    Returns:
        A float32 :class:`SparseOperator` [N, N] on the CPU, not symmetric. A node without neighbours has a zero
        row.

    Raises:
        GuiderError: if ids are out of range or lengths differ.
    """
    pattern = bipartite_adjacency(users, items, n_users, n_items).to_scipy()
    pattern.data[:] = 1.0
    if self_loops:
        pattern = pattern + sp.eye(pattern.shape[0], format="csr")
    counts = np.diff(pattern.indptr)
    return SparseOperator.from_scipy(sp.diags(1.0 / np.maximum(counts, 1)) @ pattern)


def user_item_block(adjacency: SparseOperator, n_users: int) -> SparseOperator:
    """The block [n_users, n_items] of a bipartite adjacency that carries items to their users.

    Args:
        adjacency: [N, N], users first.
        n_users: number of users.
    """
    return SparseOperator.from_scipy(
        adjacency.to_scipy()[:n_users, n_users:], dtype=adjacency.dtype
    ).to(adjacency.device)


def prune_by_degree(
    users: ArrayLike,
    items: ArrayLike,
    n_users: int,
    n_items: int,
    keep: int | float,
    generator: torch.Generator,
) -> Tensor:
    """FREEDOM's degree-sensitive edge sample: without replacement, p_e proportional to 1 / sqrt(d_u d_i).

    Keys E_e / p_e with E_e ~ Exp(1); the edges with the smallest keys are a sequential sample without
    replacement (Efraimidis and Spirakis, 2006). Unlike ``torch.multinomial`` this has no limit of 2^24 edges.

    Args:
        users, items: integer arrays [nnz], the edges.
        n_users, n_items: numbers of users and items.
        keep: how many edges to keep (int), or which share of them (float in [0, 1], rounded down).
        generator: CPU generator that the sample is drawn from.

    Returns:
        Positions of the kept edges, ascending, int64 [keep].

    Raises:
        GuiderError: if keep is out of range or ids are.
    """
    u, i = _pairs(users, items, n_users, n_items)
    n_edges = u.size
    if isinstance(keep, float):
        if not 0 <= keep <= 1:
            raise GuiderError(f"keep as a share must lie in [0, 1], not {keep}.")
        keep = int(n_edges * keep)
    if not 0 <= keep <= n_edges:
        raise GuiderError(f"keep must lie in 0..{n_edges}, not {keep}.")
    scale_u = np.sqrt(np.bincount(u, minlength=n_users) + DEGREE_EPSILON)
    scale_i = np.sqrt(np.bincount(i, minlength=n_items) + DEGREE_EPSILON)
    # -log(1 - U) ~ Exp(1); drawn even where nothing is left to choose, so that the generator moves on alike.
    key = torch.rand(n_edges, dtype=torch.float64, generator=generator).neg_().log1p_().neg_().numpy()
    if keep == 0 or keep == n_edges:
        return torch.arange(keep)
    key *= scale_u[u] * scale_i[i]
    mask = np.zeros(n_edges, dtype=bool)
    mask[np.argpartition(key, keep)[:keep]] = True
    return torch.from_numpy(np.flatnonzero(mask))


def co_occurrence(
    nodes: ArrayLike, contexts: ArrayLike, n_nodes: int, n_contexts: int, k: int, minimum: int = 1
) -> sp.csr_matrix:
    """Who occurs together with whom: for every node the k others with which it shares the most contexts.

    Users are nodes in the context of items, or items in the context of users. Counted in blocks of rows, so that no
    more than some ten million counts are in memory at a time. Equal counts: the lower id wins.

    Args:
        nodes, contexts: integer arrays [nnz], ids from 0; a repeated pair counts once.
        n_nodes, n_contexts: numbers of them.
        k: largest number of neighbours of a node.
        minimum: how many contexts two neighbours share at least.

    Returns:
        Numbers of shared contexts, float32 [n_nodes, n_nodes], with an empty diagonal and at most k entries in a row.

    Raises:
        GuiderError: ids are out of range, lengths differ, or k or minimum is below 1.
    """
    if k < 1 or minimum < 1:
        raise GuiderError(f"k and minimum must be 1 or more, not {k} and {minimum}.")
    node, context = _pairs(nodes, contexts, n_nodes, n_contexts)
    incidence = sp.csr_matrix((np.ones(node.size, np.float32), (node, context)), shape=(n_nodes, n_contexts))
    incidence.data[:] = 1.0
    transpose = incidence.T.tocsr()
    # Products of a row: the sum of its contexts' degrees. Blocks end where these pass a bound.
    work = np.cumsum(incidence @ np.diff(transpose.indptr))
    found = []
    start = 0
    while start < n_nodes:
        done = work[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(work, done + _BLOCK_PRODUCTS, side="right")))
        counts = (incidence[start:stop] @ transpose).tocoo()
        row, column, count = counts.row + start, counts.col, counts.data
        kept = (count >= minimum) & (row != column)
        row, column, count = row[kept], column[kept], count[kept]
        order = np.lexsort((column, -count, row))
        row, column, count = row[order], column[order], count[order]
        rank = np.arange(row.size) - np.searchsorted(row, row)
        found.append((row[rank < k], column[rank < k], count[rank < k]))
        start = stop
    row, column, count = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return sp.csr_matrix((count, (row, column)), shape=(n_nodes, n_nodes))


def _ids(name: str, ids: ArrayLike, size: int) -> np.ndarray:
    array = ids.detach().cpu().numpy() if isinstance(ids, Tensor) else np.asarray(ids)
    if array.size == 0:
        return np.zeros(0, dtype=np.int64)
    if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
        raise GuiderError(f"{name} must be a one-dimensional integer array, not {array.dtype} {array.shape}.")
    low, high = int(array.min()), int(array.max())
    if low < 0 or high >= size:
        raise GuiderError(f"{name} must lie in 0..{size - 1}, but they run from {low} to {high}.")
    return array.astype(np.int64, copy=False)


def _pairs(users: ArrayLike, items: ArrayLike, n_users: int, n_items: int) -> tuple[np.ndarray, np.ndarray]:
    u, i = _ids("users", users, n_users), _ids("items", items, n_items)
    if u.shape != i.shape:
        raise GuiderError(f"users and items must be equally long, not {u.size} and {i.size}.")
    return u, i
