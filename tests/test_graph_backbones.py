"""The graphs of single backbones against naive loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from recbole_guider import graph as graphs
from recbole_guider.errors import GuiderError
from recbole_guider.graph import cooccurrence_graph, mean_adjacency


def _pairs() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(4)
    users, items = rng.integers(1, 12, size=40), rng.integers(1, 9, size=40)
    return np.append(users, users[:5]), np.append(items, items[:5])  # some pairs twice; nobody has id 0


@pytest.mark.parametrize("self_loops", [False, True])
def test_mean_adjacency_averages_over_neighbours(self_loops: bool) -> None:
    users, items = _pairs()
    x = torch.randn(21, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
    found = mean_adjacency(users, items, 12, 9, self_loops=self_loops) @ x
    neighbours: list[set[int]] = [{node} if self_loops else set() for node in range(21)]
    for user, item in zip(users.tolist(), items.tolist(), strict=True):
        neighbours[user].add(12 + item)
        neighbours[12 + item].add(user)
    expected = torch.stack([x[sorted(own)].mean(0) if own else 0 * x[0] for own in neighbours])
    torch.testing.assert_close(found, expected)
    ours, theirs = (torch.autograd.grad(each.square().sum(), x)[0] for each in (found, expected))
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("block", [1, 30, 10**6])
@pytest.mark.parametrize("k", [1, 3, 50])
def test_cooccurrence_graph_takes_those_who_share_most(k: int, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "_BLOCK_COUNTS", block)
    users, items = _pairs()
    found = cooccurrence_graph(users, items, 13, 9, k).to_dense()  # user 12 has no item
    profiles = [{int(item) for user, item in zip(users, items, strict=True) if user == own} for own in range(13)]
    for own in range(13):
        shared = {other: len(profiles[own] & profiles[other]) for other in range(13) if other != own}
        near = sorted((other for other in shared if shared[other]), key=lambda other: (-shared[other], other))[:k]
        expected = torch.zeros(13)
        total = sum(math.exp(shared[other]) for other in near)
        for other in near:
            expected[other] = math.exp(shared[other]) / total
        torch.testing.assert_close(found[own], expected)


def test_cooccurrence_graph_needs_a_neighbour() -> None:
    with pytest.raises(GuiderError, match="k must be 1 or more"):
        cooccurrence_graph(*_pairs(), 12, 9, 0)
