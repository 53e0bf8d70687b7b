"""Message passing over edges whose weights are learned, such as attention, as fast as over fixed ones.

A :class:`Edges` object knows where the entries of a sparse matrix lie; their values come from the model and get
gradients. Three operations suffice, and the gradient of each is made of the others: sums over a row's or a column's
edges are CSR products, and the scores of edges are a sampled product. Nothing of size [edges, d] is ever built, which
is where message passing by gather and scatter spends its time.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from recbole_guider.graph.operator import csr_tensor
from recbole_guider.utils.errors import GuiderError

__all__ = ["Edges"]


class Edges:
    """The places of the entries of a sparse matrix [n_rows, n_columns].

    Args:
        rows, columns: int64 tensors [nnz] on the CPU, distinct pairs, sorted by row and then by column, as
            ``BipartiteGraph.users`` and ``.items`` are. Values of edges follow this order everywhere.
        shape: (n_rows, n_columns).

    Raises:
        GuiderError: if the pairs are not sorted and distinct, or out of range.
    """

    def __init__(self, rows: Tensor, columns: Tensor, shape: tuple[int, int]) -> None:
        row, column = rows.numpy(), columns.numpy()
        key = row * shape[1] + column
        outside = any(
            ids.size and (ids.min() < 0 or ids.max() >= size) for ids, size in zip((row, column), shape, strict=True)
        )
        if outside or np.any(np.diff(key) <= 0):
            raise GuiderError(f"Edges must be distinct pairs within {shape}, sorted by row and then by column.")
        self.shape = (int(shape[0]), int(shape[1]))
        self.rows, self.columns = rows, columns
        by_column = np.argsort(column, kind="stable")
        self._row_starts = torch.from_numpy(np.searchsorted(row, np.arange(shape[0] + 1)).astype(np.int32))
        self._column_starts = torch.from_numpy(
            np.searchsorted(column[by_column], np.arange(shape[1] + 1)).astype(np.int32)
        )
        self._by_column = torch.from_numpy(by_column)
        self._row_columns = columns.int()
        self._column_rows = torch.from_numpy(row[by_column].astype(np.int32))

    @property
    def n_edges(self) -> int:
        """Number of edges nnz."""
        return self.rows.numel()

    def to(self, device: torch.device | str) -> Edges:
        """The same edges on another device (itself if it is there)."""
        if self.rows.device == torch.device(device):
            return self
        moved = object.__new__(Edges)
        moved.shape = self.shape
        for name, value in self.__dict__.items():
            if isinstance(value, Tensor):
                setattr(moved, name, value.to(device))
        return moved

    def sum_to_rows(self, values: Tensor, x: Tensor) -> Tensor:
        """What every row gets from its edges: y_r = sum over edges (r, c) of values_rc x_c.

        Args:
            values: floats [nnz].
            x: floats [n_columns, d].

        Returns:
            [n_rows, d]; zero for a row without edges.
        """
        return _Sum.apply(self, values, x, True)

    def sum_to_columns(self, values: Tensor, x: Tensor) -> Tensor:
        """What every column gets from its edges: y_c = sum over edges (r, c) of values_rc x_r; x [n_rows, d]."""
        return _Sum.apply(self, values, x, False)

    def dot(self, a: Tensor, b: Tensor) -> Tensor:
        """The score of every edge, <a_r, b_c>, [nnz], for a [n_rows, d] and b [n_columns, d]."""
        return _Dot.apply(self, a, b)

    def softmax_over_rows(self, scores: Tensor) -> Tensor:
        """Scores [nnz] turned into weights that sum to 1 over the edges of each row."""
        return _softmax(scores, self.rows, self.shape[0])

    def softmax_over_columns(self, scores: Tensor) -> Tensor:
        """Scores [nnz] turned into weights that sum to 1 over the edges of each column."""
        return _softmax(scores, self.columns, self.shape[1])

    def _csr(self, values: Tensor) -> Tensor:
        return csr_tensor(self._row_starts, self._row_columns, values, self.shape)

    def _transposed_csr(self, values: Tensor) -> Tensor:
        values = values.index_select(0, self._by_column)
        return csr_tensor(self._column_starts, self._column_rows, values, (self.shape[1], self.shape[0]))


class _Sum(torch.autograd.Function):
    """To the rows, or to the columns: the same on the transpose."""

    @staticmethod
    def forward(ctx: Any, edges: Edges, values: Tensor, x: Tensor, to_rows: bool) -> Tensor:
        ctx.edges, ctx.to_rows = edges, to_rows
        ctx.save_for_backward(values, x)
        with torch.autocast(x.device.type, enabled=False):
            matrix = edges._csr(values.float()) if to_rows else edges._transposed_csr(values.float())
            return matrix @ x.float()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor | None, Tensor | None, None]:
        values, x = ctx.saved_tensors
        gradient = gradients[0].contiguous()
        of_rows, of_columns = (gradient, x) if ctx.to_rows else (x, gradient)
        _, values_wanted, x_wanted, _ = ctx.needs_input_grad
        return (
            None,
            _Dot.apply(ctx.edges, of_rows, of_columns) if values_wanted else None,
            _Sum.apply(ctx.edges, values, gradient, not ctx.to_rows) if x_wanted else None,
            None,
        )


class _Dot(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, edges: Edges, a: Tensor, b: Tensor) -> Tensor:
        ctx.edges = edges
        ctx.save_for_backward(a, b)
        with torch.autocast(a.device.type, enabled=False):
            places = edges._csr(torch.zeros(edges.n_edges, device=a.device))
            return torch.sparse.sampled_addmm(places, a.float(), b.float().T, beta=0.0).values()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor | None, Tensor | None]:
        a, b = ctx.saved_tensors
        gradient = gradients[0].contiguous()
        _, a_wanted, b_wanted = ctx.needs_input_grad
        return (
            None,
            _Sum.apply(ctx.edges, gradient, b, True) if a_wanted else None,
            _Sum.apply(ctx.edges, gradient, a, False) if b_wanted else None,
        )


def _softmax(scores: Tensor, groups: Tensor, n_groups: int) -> Tensor:
    # shifted by the largest score of each group, so that exp stays finite
    largest = scores.new_full((n_groups,), -torch.inf).scatter_reduce_(0, groups, scores.detach(), "amax")
    weight = (scores - largest.index_select(0, groups)).exp()
    total = weight.new_zeros(n_groups).index_add(0, groups, weight)
    return weight / total.index_select(0, groups)
