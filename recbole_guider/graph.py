"""Sparse graphs of users and items: normalised adjacency, blockwise kNN graphs, fast propagation.

Everything that a graph recommender multiplies by is a :class:`SparseOperator`: a CSR matrix whose backward
pass is another CSR product (by itself where it is symmetric), never torch's slow sparse-COO backward. A whole
LightGCN propagation is one linear map, so :func:`propagate_mean` runs it as one autograd node that keeps no
intermediate layer.

Shapes: n_users users and n_items items, ids from 0; a bipartite graph has N = n_users + n_items nodes, users
first.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from recbole_guider.errors import GuiderError

__all__ = [
    "BipartiteGraph",
    "SparseOperator",
    "agreeing_knn_graphs",
    "bipartite_adjacency",
    "co_occurrence",
    "combine",
    "degree_normalised",
    "knn_graph",
    "mean_adjacency",
    "propagate",
    "propagate_mean",
    "prune_by_degree",
    "shrunk_cosine_graph",
    "softmax_rows",
    "union",
    "user_item_block",
]

ArrayLike: TypeAlias = np.ndarray | Tensor | Sequence[int]

# Added to every degree before the inverse square root, as RecBole's LightGCN and FREEDOM do.
DEGREE_EPSILON = 1e-7
_INT32_MAX = 2**31 - 1
# Similarities closer than this are one value in float32, so the lower item id wins.
_TIE = 4 * torch.finfo(torch.float32).eps
# Bytes that one block of similarities may take when the caller names no block size.
_BLOCK_BYTES = 32 * 2**20
# Products that one block of a sparse product of two incidence matrices may take.
_BLOCK_PRODUCTS = 10**7


class SparseOperator:
    """A constant sparse matrix A [rows, columns] that multiplies dense tensors, with a fast backward pass.

    ``op @ x`` is A x for x [columns, d]; its gradient is A^T g, computed by the same CSR if ``symmetric``,
    otherwise by a CSR of the transpose that is built at the first backward pass and kept. The values get no
    gradient.

    Args:
        crow: row pointers, integers [rows + 1].
        col: column of every entry, integers [nnz], sorted within a row.
        values: floats [nnz].
        shape: (rows, columns).
        symmetric: the caller's promise that A = A^T.

    Raises:
        GuiderError: if a non-square matrix is called symmetric.
    """

    def __init__(
        self, crow: Tensor, col: Tensor, values: Tensor, shape: tuple[int, int], symmetric: bool = False
    ) -> None:
        if symmetric and shape[0] != shape[1]:
            raise GuiderError(f"A symmetric operator must be square, not {shape[0]} x {shape[1]}.")
        # 32-bit indices halve the memory traffic of the product.
        index = torch.int32 if max(values.numel(), *shape) <= _INT32_MAX else torch.int64
        self.crow = crow.to(index)
        self.col = col.to(index)
        self.values = values
        self.shape = (int(shape[0]), int(shape[1]))
        self.symmetric = symmetric
        self._csr: Tensor | None = None
        self._transpose: SparseOperator | None = self if symmetric else None
        self._transposition: tuple[Tensor, Tensor, Tensor] | None = None

    @classmethod
    def from_scipy(
        cls, matrix: Any, symmetric: bool = False, dtype: torch.dtype = torch.float32
    ) -> SparseOperator:
        """An operator from any scipy sparse matrix (duplicate entries are summed)."""
        csr = sp.csr_matrix(matrix)
        csr.sum_duplicates()
        return cls(
            torch.from_numpy(csr.indptr),
            torch.from_numpy(csr.indices),
            torch.from_numpy(np.asarray(csr.data)).to(dtype),
            csr.shape,
            symmetric,
        )

    @property
    def nnz(self) -> int:
        """Number of stored entries."""
        return self.values.numel()

    @property
    def device(self) -> torch.device:
        """Where the entries lie."""
        return self.values.device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the entries; inputs are cast to it."""
        return self.values.dtype

    @property
    def csr(self) -> Tensor:
        """The matrix as torch's sparse CSR tensor."""
        if self._csr is None:
            with warnings.catch_warnings():
                # torch says once that CSR is in beta; the few operations used here are covered by the tests.
                warnings.filterwarnings(
                    "ignore", message="Sparse CSR tensor support is in beta", category=UserWarning
                )
                self._csr = torch.sparse_csr_tensor(
                    self.crow, self.col, self.values, self.shape, check_invariants=False
                )
        return self._csr

    @property
    def T(self) -> SparseOperator:
        """The transpose, built once; the operator itself if symmetric."""
        if self._transpose is None:
            crow, col, order = self.transposition
            transpose = SparseOperator(crow, col, self.values[order], self.shape[::-1])
            transpose._transpose = self
            self._transpose = transpose
        return self._transpose

    @property
    def transposition(self) -> tuple[Tensor, Tensor, Tensor]:
        """Row pointers and columns of the transpose, and which entry stands in each of its places; found once."""
        if self._transposition is None:
            pattern = sp.csr_matrix(
                (np.arange(self.nnz), self.col.cpu().numpy(), self.crow.cpu().numpy()), shape=self.shape
            ).tocsc()
            crow, col, order = (torch.from_numpy(part).to(self.device) for part in (
                pattern.indptr, pattern.indices, pattern.data
            ))
            self._transposition = crow, col, order
        return self._transposition

    @property
    def rows(self) -> Tensor:
        """Row of every entry, int64 [nnz]."""
        return torch.repeat_interleave(self.crow.diff().long())

    def with_values(self, values: Tensor) -> SparseOperator:
        """The operator with other values [nnz] in the same places, not called symmetric; its transpose needs no sort
        once this one's is known.
        """
        other = SparseOperator(self.crow, self.col, values, self.shape)
        other._transposition = self.transposition
        return other

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> SparseOperator:
        """The operator on another device or with another float type (itself if nothing changes)."""
        device = self.device if device is None else torch.device(device)
        values = self.values.to(device=device, dtype=dtype)
        if values is self.values:
            return self
        return SparseOperator(self.crow.to(device), self.col.to(device), values, self.shape, self.symmetric)

    def to_scipy(self) -> sp.csr_matrix:
        """The matrix as scipy CSR on the CPU."""
        parts = (self.values.cpu().numpy(), self.col.cpu().numpy(), self.crow.cpu().numpy())
        return sp.csr_matrix(parts, shape=self.shape)

    def to_dense(self) -> Tensor:
        """The matrix as a dense tensor [rows, columns] on its device; for small graphs and tests."""
        return torch.from_numpy(self.to_scipy().toarray()).to(self.device)

    def __matmul__(self, x: Tensor) -> Tensor:
        return propagate(self, x)

    def __getstate__(self) -> dict[str, Any]:
        # The CSR view and the transpose are caches: cheap to rebuild, wasteful to store.
        state = self.__dict__.copy()
        state["_csr"] = None
        state["_transpose"] = None
        state["_transposition"] = None
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self.symmetric:
            self._transpose = self

    def __repr__(self) -> str:
        kind = "symmetric " if self.symmetric else ""
        size = f"{self.shape[0]} x {self.shape[1]}, nnz={self.nnz}"
        return f"SparseOperator({kind}{size}, {self.dtype}, {self.device})"


class _Power(torch.autograd.Function):
    """A^n x; the gradient is (A^T)^n g."""

    @staticmethod
    def forward(ctx: Any, op: SparseOperator, x: Tensor, n_layers: int) -> Tensor:
        ctx.op, ctx.n_layers = op, n_layers
        with torch.autocast(x.device.type, enabled=False):
            for _ in range(n_layers):
                x = op.csr @ x
        return x

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor, None]:
        # Linear, so the backward is the same node on the transpose, and can itself be differentiated.
        return None, _Power.apply(ctx.op.T, grads[0].contiguous(), ctx.n_layers), None


class _Mean(torch.autograd.Function):
    """(x + A x + ... + A^n x) / (n + 1) by Horner's rule; the gradient is the same polynomial of A^T."""

    @staticmethod
    def forward(ctx: Any, op: SparseOperator, x: Tensor, n_layers: int) -> Tensor:
        ctx.op, ctx.n_layers = op, n_layers
        share = 1.0 / (n_layers + 1)
        y = x
        with torch.autocast(x.device.type, enabled=False):
            for layer in range(n_layers):
                scale = share if layer == n_layers - 1 else 1.0
                y = torch.addmm(x, op.csr, y, beta=scale, alpha=scale)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor, None]:
        return None, _Mean.apply(ctx.op.T, grads[0].contiguous(), ctx.n_layers), None


def _dense_input(op: SparseOperator, x: Tensor, n_layers: int, square: bool) -> Tensor:
    if n_layers < 0:
        raise GuiderError(f"n_layers must be 0 or more, not {n_layers}.")
    if square and op.shape[0] != op.shape[1]:
        raise GuiderError(f"Several layers need a square operator, not {op.shape[0]} x {op.shape[1]}.")
    if x.dim() != 2 or x.shape[0] != op.shape[1]:
        raise GuiderError(
            f"The operator has {op.shape[1]} columns, but the input has shape {tuple(x.shape)}."
        )
    return x.to(op.dtype).contiguous()


def propagate(op: SparseOperator, x: Tensor, n_layers: int = 1) -> Tensor:
    """A^n_layers x, as one autograd node that keeps no intermediate.

    Args:
        op: the graph A [rows, columns]; square if n_layers > 1.
        x: dense [columns, d], cast to the operator's float type.
        n_layers: how often A is applied; 0 gives x.

    Raises:
        GuiderError: if the shapes do not fit.
    """
    x = _dense_input(op, x, n_layers, square=n_layers != 1)
    return x if n_layers == 0 else _Power.apply(op, x, n_layers)


def propagate_mean(op: SparseOperator, x: Tensor, n_layers: int) -> Tensor:
    """LightGCN's readout, (x + A x + ... + A^n x) / (n + 1), as one autograd node.

    Horner's rule, y <- x + A y, needs one fused product per layer and neither a stack of the layers nor saved
    activations; the backward pass is the same polynomial of A^T applied to the gradient.

    Args:
        op: the square graph A [N, N].
        x: dense [N, d], cast to the operator's float type.
        n_layers: number of layers n; 0 gives x.

    Raises:
        GuiderError: if the shapes do not fit.
    """
    x = _dense_input(op, x, n_layers, square=True)
    return x if n_layers == 0 else _Mean.apply(op, x, n_layers)


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
        key = u * self.n_items + i
        w: np.ndarray | None = None
        if weights is not None:
            w = weights.detach().cpu().numpy() if isinstance(weights, Tensor) else np.asarray(weights)
            w = w.astype(np.float64)
            if w.shape != u.shape or not np.all(np.isfinite(w)) or (w.size and w.min() < 0):
                raise GuiderError(f"weights must be {u.size} finite numbers >= 0, one for each pair.")
        if key.size > 1 and not np.all(key[1:] > key[:-1]):
            if w is None:
                key = np.unique(key)
            else:
                order = np.lexsort((-w, key))
                first = np.ones(order.size, dtype=bool)
                first[1:] = np.diff(key[order]) > 0
                key, w = key[order[first]], w[order[first]]
            u, i = np.divmod(key, self.n_items)
        u, i = np.ascontiguousarray(u), np.ascontiguousarray(i)
        self.users, self.items = torch.from_numpy(u), torch.from_numpy(i)
        self.weights = None if w is None else torch.from_numpy(w)
        # Edge ids in item-major order: the lower half of the symmetric matrix.
        pointers = np.searchsorted(u, np.arange(self.n_users + 1))
        by_user = sp.csr_matrix((np.arange(u.size), i, pointers), shape=(self.n_users, self.n_items))
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
        index = np.int32 if max(n, 2 * n_kept) <= _INT32_MAX else np.int64
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
        block = max(1, _BLOCK_BYTES // (4 * m))

    columns = torch.empty((m, k), dtype=torch.int64, device=device)
    weights = torch.ones((m, k), device=device)
    for start in range(0, m, block):
        stop = min(start + block, m)
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
    block = block or max(1, _BLOCK_BYTES // (4 * max(m, 1)))
    for start in range(0, m, block):
        stop = min(start + block, m)
        similarity = (x[start:stop] @ x.T).div_(torch.outer(length[start:stop], length).add_(shrink))
        columns[start:stop] = _neighbours(similarity, k)
        values[start:stop] = similarity.gather(1, columns[start:stop])
    counts = torch.zeros(n, dtype=torch.int64, device=device)
    counts[ids] = k
    crow = torch.cat((counts.new_zeros(1), counts.cumsum(0)))
    return SparseOperator(crow, ids[columns].flatten(), values.flatten(), (n, n))


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
        block = max(1, _BLOCK_BYTES // (4 * n * len(modalities)))
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


def _unit_rows(x: Tensor, there: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of unit length, float32 [n, d], and which rows have a direction, bool [n]; the others are zero."""
    x = x.masked_fill(~there[:, None], 0.0)
    largest = x.abs().amax(1)
    there = there & (largest > 0)
    # Divided by the largest entry first, so that squares neither overflow nor vanish.
    x = x / torch.where(there, largest, 1.0)[:, None]
    return x / torch.where(there, x.norm(dim=1), 1.0)[:, None], there


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


def degree_normalised(matrix: sp.csr_matrix) -> SparseOperator:
    """D^-1/2 S D^-1/2 with D = diag(row sums of S) + 1e-7, for a square matrix S >= 0 that need not be symmetric."""
    scale = 1.0 / np.sqrt(np.asarray(matrix.sum(axis=1), dtype=np.float64).ravel() + DEGREE_EPSILON)
    return SparseOperator.from_scipy(sp.diags(scale) @ matrix @ sp.diags(scale))


def softmax_rows(matrix: sp.csr_matrix) -> SparseOperator:
    """The softmax of every row over its stored entries; a row without entries stays empty."""
    matrix = matrix.tocsr()
    row = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
    largest = np.full(matrix.shape[0], -np.inf)
    np.maximum.at(largest, row, matrix.data)
    values = np.exp(matrix.data - largest[row])
    total = np.bincount(row, values, minlength=matrix.shape[0])
    return SparseOperator.from_scipy(sp.csr_matrix((values / total[row], matrix.indices, matrix.indptr), matrix.shape))
