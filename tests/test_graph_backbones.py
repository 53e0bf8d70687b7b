"""The graphs of single backbones against naive loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from recbole_guider.graph import mean_adjacency


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
