"""A sparse matrix that multiplies dense tensors fast in both directions, and propagation over several layers."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from recbole_guider.utils.errors import GuiderError

# Added to every degree before the inverse square root, as RecBole's LightGCN and FREEDOM do.
DEGREE_EPSILON = 1e-7
INT32_MAX = 2**31 - 1


def csr_tensor(crow: Tensor, col: Tensor, values: Tensor, shape: tuple[int, int]) -> Tensor:
    """torch's sparse CSR tensor of these parts, unchecked and without its warning."""
    with warnings.catch_warnings():
        # torch says once that CSR is in beta, and some releases (2.11) that nothing is checked, though they are told
        # not to; the few operations used here are covered by the tests.
        for message in ("Sparse CSR tensor support is in beta", "Sparse invariant checks are implicitly disabled"):
            warnings.filterwarnings("ignore", message=message, category=UserWarning)
        return torch.sparse_csr_tensor(crow, col, values, shape, check_invariants=False)


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
        index = torch.int32 if max(values.numel(), *shape) <= INT32_MAX else torch.int64
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
            self._csr = csr_tensor(self.crow, self.col, self.values, self.shape)
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


def degree_normalised(matrix: sp.csr_matrix) -> SparseOperator:
    """D^-1/2 S D^-1/2 with D = diag(row sums of S) + 1e-7, for a square matrix S >= 0 that need not be symmetric."""
    scale = 1.0 / np.sqrt(np.asarray(matrix.sum(axis=1), dtype=np.float64).ravel() + DEGREE_EPSILON)
    return SparseOperator.from_scipy(sp.diags(scale) @ matrix @ sp.diags(scale))


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
