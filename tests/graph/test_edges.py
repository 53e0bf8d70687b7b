"""Message passing over learned weights against dense algebra, with gradients to the second order."""

from __future__ import annotations

import pytest
import torch

from recbole_guider.graph import BipartiteGraph, Edges
from recbole_guider.utils.errors import GuiderError

SHAPE = (7, 5)


@pytest.fixture
def edges() -> Edges:
    draws = torch.Generator().manual_seed(0)
    pairs = torch.randperm(35, generator=draws)[:14]
    # rows 0 and 6 and column 0 have no edge
    users, items = 1 + pairs // 5 % 5, 1 + pairs % 4
    graph = BipartiteGraph(users, items, *SHAPE)
    return Edges(graph.users, graph.items, SHAPE)


def _dense(edges: Edges, values: torch.Tensor) -> torch.Tensor:
    return torch.zeros(SHAPE).index_put((edges.rows, edges.columns), values)


def _inputs(edges: Edges) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    draws = torch.Generator().manual_seed(1)
    sizes = ((edges.n_edges,), (SHAPE[0], 3), (SHAPE[1], 3))
    values, a, b = (torch.randn(size, generator=draws, requires_grad=True) for size in sizes)
    return values, a, b


def _operations(
    edges: Edges, values: torch.Tensor, a: torch.Tensor, b: torch.Tensor, dense: bool
) -> list[torch.Tensor]:
    if dense:
        matrix = _dense(edges, values)
        return [matrix @ b, matrix.T @ a, (a @ b.T)[edges.rows, edges.columns]]
    return [edges.sum_to_rows(values, b), edges.sum_to_columns(values, a), edges.dot(a, b)]


@pytest.mark.parametrize("which", range(3))
def test_operations_and_their_gradients(edges: Edges, which: int) -> None:
    results = []
    for dense in (False, True):
        inputs = _inputs(edges)
        out = _operations(edges, *inputs, dense)[which]
        options = {"allow_unused": True, "materialize_grads": True}
        first = torch.autograd.grad(out.sin().sum(), inputs, create_graph=True, **options)
        second = torch.autograd.grad(sum(each.square().sum() for each in first), inputs, **options)
        results.append([out, *first, *second])
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


def test_softmax_over_rows_and_columns(edges: Edges) -> None:
    scores = (50 * _inputs(edges)[0]).detach().requires_grad_()
    upstream = torch.randn(edges.n_edges, generator=torch.Generator().manual_seed(2))
    for weights, groups in (
        (edges.softmax_over_rows(scores), edges.rows),
        (edges.softmax_over_columns(scores), edges.columns),
    ):
        expected = torch.zeros_like(scores)
        for group in groups.unique():
            own = groups == group
            expected = expected.masked_scatter(own, scores[own].softmax(0))
        torch.testing.assert_close(weights, expected)
        ours, theirs = (torch.autograd.grad((each * upstream).sum(), scores)[0] for each in (weights, expected))
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_no_edges() -> None:
    none = torch.zeros(0, dtype=torch.int64)
    edges = Edges(none, none, SHAPE)
    assert edges.softmax_over_rows(torch.zeros(0)).shape == (0,)
    torch.testing.assert_close(edges.sum_to_rows(torch.zeros(0), torch.ones(5, 2)), torch.zeros(7, 2))


@pytest.mark.parametrize("rows, columns", [([1, 0], [0, 0]), ([0, 0], [1, 1]), ([0, 7], [0, 0]), ([0, 1], [-1, 0])])
def test_edges_must_be_sorted_distinct_and_within(rows: list[int], columns: list[int]) -> None:
    with pytest.raises(GuiderError, match="distinct pairs within"):
        Edges(torch.tensor(rows), torch.tensor(columns), SHAPE)
