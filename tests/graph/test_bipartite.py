"""Graphs of users and items against RecBole's own adjacency, dense formulas and naive loops."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from small_graphs import N_ITEMS, N_USERS

from recbole_guider.graph import (
    BipartiteGraph,
    bipartite,
    bipartite_adjacency,
    co_occurrence,
    mean_adjacency,
    prune_by_degree,
    user_item_block,
)
from recbole_guider.utils.errors import GuiderError


def dense_adjacency(users, items, weights=None):
    a = np.zeros((N_USERS + N_ITEMS,) * 2)
    for e, (u, i) in enumerate(zip(users, items, strict=True)):
        w = 1.0 if weights is None else weights[e]
        a[u, N_USERS + i] = a[N_USERS + i, u] = max(w, a[u, N_USERS + i])
    scale = (a.sum(1) + 1e-7) ** -0.5
    return scale[:, None] * a * scale[None, :]


def test_adjacency_is_recboles(edges, operator):
    from recbole.model.general_recommender.lightgcn import LightGCN

    matrix = sp.coo_matrix((np.ones(edges[0].size, np.float32), edges), (N_USERS, N_ITEMS))
    inputs = SimpleNamespace(n_users=N_USERS, n_items=N_ITEMS, interaction_matrix=matrix)
    theirs = LightGCN.get_norm_adj_mat(inputs).to_dense()
    torch.testing.assert_close(operator.to_dense(), theirs, rtol=1e-6, atol=1e-6)
    assert operator.symmetric and operator.dtype == torch.float32


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("as_torch", [False, True])
def test_adjacency_with_duplicates_in_any_order(edges, weighted, as_torch):
    rng = np.random.default_rng(1)
    order = rng.permutation(np.r_[np.arange(90), rng.integers(0, 90, 40)])
    users, items = edges[0][order], edges[1][order]
    weights = rng.random(order.size) if weighted else None
    expected = dense_adjacency(users, items, weights)
    if as_torch:
        users, items = torch.from_numpy(users).int(), torch.from_numpy(items)
        weights = None if weights is None else torch.from_numpy(weights)
    found = bipartite_adjacency(users, items, N_USERS, N_ITEMS, weights)
    np.testing.assert_allclose(found.to_dense().numpy(), expected, atol=1e-6)
    assert found.nnz == 180
    np.testing.assert_array_equal(found.to_dense(), found.to_dense().T)


def test_users_without_edges_have_zero_rows(operator):
    assert not operator.to_dense()[N_USERS - 2 : N_USERS].any()
    empty = bipartite_adjacency([], [], 3, 2)
    assert empty.nnz == 0 and not (empty @ torch.ones(5, 2)).any()


@pytest.mark.parametrize(
    ("users", "items", "weights", "words"),
    [
        ([0, N_USERS], [0, 0], None, "users must lie in 0..22"),
        ([0, 1], [0, -1], None, "items must lie in"),
        ([0, 1], [0], None, "equally long"),
        ([0.5], [0], None, "integer"),
        ([0, 1], [0, 0], np.array([1.0, -1.0]), "weights"),
        ([0, 1], [0, 0], np.array([1.0, np.nan]), "weights"),
    ],
)
def test_bad_edges(users, items, weights, words):
    with pytest.raises(GuiderError, match=words):
        bipartite_adjacency(users, items, N_USERS, N_ITEMS, weights)


@pytest.mark.parametrize("as_mask", [False, True])
def test_pruned_adjacency_is_the_adjacency_of_the_kept_edges(edges, as_mask):
    graph = BipartiteGraph(*edges, N_USERS, N_ITEMS, weights=np.linspace(0.1, 1, 90))
    keep = np.sort(np.random.default_rng(2).choice(90, 30, replace=False))
    users, items, weights = (part[keep] for part in (graph.users, graph.items, graph.weights))
    mask = np.zeros(90, dtype=bool)
    mask[keep] = True
    pruned = graph.adjacency(mask if as_mask else torch.from_numpy(keep))
    np.testing.assert_allclose(pruned.to_dense(), dense_adjacency(users, items, weights.numpy()), atol=1e-6)
    with pytest.raises(GuiderError, match="90 edges"):
        graph.adjacency(mask[:5])


def test_pruning_renormalises_as_freedom(edges):
    """Kept edges get 1 / sqrt((d_u + 1e-7)(d_i + 1e-7)) with the degrees among the kept edges, in both directions."""
    generator = torch.Generator().manual_seed(3)
    kept = prune_by_degree(*edges, N_USERS, N_ITEMS, 0.2, generator)
    assert kept.tolist() == sorted(set(kept.tolist())) and kept.numel() == int(90 * 0.2)
    users, items = (torch.from_numpy(part)[kept] for part in edges)
    found = bipartite_adjacency(users, items, N_USERS, N_ITEMS).to_dense()
    du, di = torch.bincount(users), torch.bincount(items)
    expected = torch.zeros_like(found)
    for u, i in zip(users.tolist(), items.tolist(), strict=True):
        value = (du[u] + 1e-7) ** -0.5 * (di[i] + 1e-7) ** -0.5
        expected[u, N_USERS + i] = expected[N_USERS + i, u] = value
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)

    graph = BipartiteGraph(*edges, N_USERS, N_ITEMS)
    pruned = graph.prune(0.2, torch.Generator().manual_seed(4))
    again = graph.prune(0.2, torch.Generator().manual_seed(4))
    assert pruned.nnz == 36 and torch.equal(pruned.to_dense(), again.to_dense())


def test_pruning_follows_the_degrees():
    """One edge of four kept, many times: the frequencies are 1 / sqrt(d_u d_i), normalised."""
    users, items = np.array([0, 0, 0, 1]), np.array([0, 1, 2, 0])
    p = 1 / np.sqrt(np.array([3, 3, 3, 1]) * np.array([2, 1, 1, 2]))
    generator = torch.Generator().manual_seed(0)
    draws = [int(prune_by_degree(users, items, 2, 3, 1, generator)) for _ in range(4000)]
    np.testing.assert_allclose(np.bincount(draws, minlength=4) / 4000, p / p.sum(), atol=0.03)
    # Without replacement: the pair that is left out, by its exact probability (two ordered draws of three).
    q = p / p.sum()
    inclusion = q + [sum(q[j] * q[e] / (1 - q[j]) for j in range(4) if j != e) for e in range(4)]
    twice = torch.cat([prune_by_degree(users, items, 2, 3, 2, generator) for _ in range(4000)])
    np.testing.assert_allclose(np.bincount(twice, minlength=4) / 4000, inclusion, atol=0.03)


@pytest.mark.parametrize("keep", [1.5, -1, 91])
def test_bad_share(edges, keep):
    with pytest.raises(GuiderError, match="keep"):
        prune_by_degree(*edges, N_USERS, N_ITEMS, keep, torch.Generator())


def test_keep_all_and_none(edges):
    assert prune_by_degree(*edges, N_USERS, N_ITEMS, 0, torch.Generator()).numel() == 0
    assert prune_by_degree(*edges, N_USERS, N_ITEMS, 1.0, torch.Generator()).tolist() == list(range(90))


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


def test_the_user_item_block_carries_items_to_their_users() -> None:
    adjacency = bipartite_adjacency([0, 0, 2], [1, 3, 1], 3, 4)
    block = user_item_block(adjacency, 3)
    torch.testing.assert_close(block.to_dense(), adjacency.to_dense()[:3, 3:])


@pytest.mark.parametrize("products", [10**7, 40, 1])
@pytest.mark.parametrize("minimum", [1, 2])
def test_co_occurrence_by_a_loop(products: int, minimum: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bipartite, "_BLOCK_PRODUCTS", products)
    rng = np.random.default_rng(0)
    nodes, contexts = rng.integers(0, 20, 120), rng.integers(0, 15, 120)  # some pairs come twice; node 20 has none
    got = co_occurrence(nodes, contexts, 21, 15, 3, minimum).toarray()
    owned = {node: set(contexts[nodes == node].tolist()) for node in range(21)}
    for node in range(21):
        common = Counter({other: len(owned[node] & owned[other]) for other in range(21) if other != node})
        expected = np.zeros(21)
        for other in sorted(common, key=lambda other: (-common[other], other))[:3]:
            expected[other] = common[other] if common[other] >= minimum else 0
        np.testing.assert_array_equal(got[node], expected)


def test_co_occurrence_of_four_nodes() -> None:
    counts = co_occurrence([0, 0, 1, 1, 2, 2, 2], [0, 1, 0, 1, 1, 2, 2], 4, 3, 2)
    np.testing.assert_array_equal(counts.toarray(), [[0, 2, 1, 0], [2, 0, 1, 0], [1, 1, 0, 0], [0, 0, 0, 0]])


def test_bad_co_occurrence() -> None:
    with pytest.raises(GuiderError, match="k and minimum"):
        co_occurrence([0], [0], 1, 1, 0)
