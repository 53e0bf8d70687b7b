"""graph.py against RecBole's own adjacency, dense formulas and finite differences."""

from __future__ import annotations

import copy
import pickle
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from recbole_guider.errors import GuiderError
from recbole_guider.graph import (
    BipartiteGraph,
    SparseOperator,
    bipartite_adjacency,
    combine,
    knn_graph,
    propagate,
    propagate_mean,
    prune_by_degree,
    shrunk_cosine_graph,
    user_item_block,
)

N_USERS, N_ITEMS = 23, 17


@pytest.fixture
def edges():
    rng = np.random.default_rng(0)
    key = rng.choice((N_USERS - 2) * N_ITEMS, 90, replace=False)  # the last two users have no edge
    return np.divmod(key, N_ITEMS)


@pytest.fixture
def operator(edges):
    return bipartite_adjacency(*edges, N_USERS, N_ITEMS)


def lopsided(rows=11, columns=7, seed=1):
    return SparseOperator.from_scipy(sp.random(rows, columns, 0.4, random_state=seed), dtype=torch.float64)


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


@pytest.mark.parametrize("n_layers", [0, 1, 2, 3])
def test_propagation_equals_the_dense_one(operator, n_layers):
    a, x = (
        operator.to_dense().double(),
        torch.randn(40, 5, generator=torch.Generator().manual_seed(0)).double(),
    )
    layers = [x]
    for _ in range(n_layers):
        layers.append(a @ layers[-1])
    op = operator.to(dtype=torch.float64)
    torch.testing.assert_close(propagate_mean(op, x, n_layers), torch.stack(layers).mean(0))
    torch.testing.assert_close(propagate(op, x, n_layers), layers[-1])
    torch.testing.assert_close(operator @ x.float(), (a @ x).float(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("symmetric", [True, False])
def test_gradients(operator, symmetric):
    op = operator.to(dtype=torch.float64)
    if not symmetric:
        op = SparseOperator.from_scipy(sp.random(9, 9, 0.3, random_state=3), dtype=torch.float64)
    x = torch.randn(op.shape[1], 2, dtype=torch.float64, requires_grad=True)
    for f in (lambda x: propagate_mean(op, x, 3), lambda x: propagate(op, x, 2), lambda x: op @ x):
        assert torch.autograd.gradcheck(f, (x,))
        assert torch.autograd.gradgradcheck(f, (x,))


def test_rectangular_gradient_and_transpose():
    op = lopsided()
    x = torch.randn(7, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: op @ x, (x,))
    torch.testing.assert_close(op.T.to_dense(), op.to_dense().T)
    assert op.T.T is op


def test_gradient_that_is_not_contiguous(operator):
    x = torch.randn(40, 3, requires_grad=True)
    propagate_mean(operator, x, 2).sum().backward()  # an expanded gradient
    a = operator.to_dense()
    torch.testing.assert_close(
        x.grad, ((torch.eye(40) + a + a @ a) / 3).T @ torch.ones(40, 3), rtol=1e-5, atol=1e-6
    )


def test_input_type_and_autocast(operator):
    x = torch.randn(40, 3)
    assert (operator @ x.double()).dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(operator @ x, propagate(operator, x))
        torch.testing.assert_close(operator @ x, operator.to_dense().matmul(x).float(), rtol=0.02, atol=0.02)
        assert (operator @ x).dtype == torch.float32


def test_copies_are_equal(operator):
    for op in (operator, lopsided()):
        assert op.T.csr.shape == op.T.shape  # fills the caches
        for copied in (copy.deepcopy(op), pickle.loads(pickle.dumps(op))):
            assert torch.equal(copied.to_dense(), op.to_dense())
            assert torch.equal(copied.T.to_dense(), op.to_dense().T)
            assert copied.symmetric == op.symmetric
    assert operator.to("cpu") is operator


def test_no_warning_reaches_the_user(edges):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bipartite_adjacency(*edges, N_USERS, N_ITEMS) @ torch.ones(40, 2)


def test_operator_errors(operator):
    with pytest.raises(GuiderError, match="40 columns"):
        operator @ torch.ones(39, 2)
    with pytest.raises(GuiderError, match="square"):
        propagate_mean(lopsided(), torch.ones(7, 2), 1)
    with pytest.raises(GuiderError, match="n_layers"):
        propagate(operator, torch.ones(40, 2), -1)
    with pytest.raises(GuiderError, match="square"):
        SparseOperator(torch.zeros(3), torch.zeros(0), torch.zeros(0), (2, 3), symmetric=True)


# kNN ------------------------------------------------------------------------------------------------------------------


def naive_knn(x, k, present, weighting="binary", exclude_self=False):
    n = len(x)
    there = [i for i in range(n) if present[i] and np.any(x[i])]
    s = np.zeros((n, n))
    for i in there:
        cosines = []
        for j in there:
            if not (exclude_self and i == j):
                c = x[i] @ x[j] / (np.linalg.norm(x[i]) * np.linalg.norm(x[j]))
                cosines.append((-round(c, 6), j, c))
        for _, j, c in sorted(cosines)[:k]:
            s[i, j] = 1.0 if weighting == "binary" else max(c, 0.0)
    scale = (s.sum(1) + 1e-7) ** -0.5
    return scale[:, None] * s * scale[None, :]


@pytest.mark.parametrize("weighting", ["binary", "similarity"])
@pytest.mark.parametrize("exclude_self", [False, True])
@pytest.mark.parametrize("block", [1, 7, None])
def test_knn_is_the_naive_one(weighting, exclude_self, block):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(31, 6)).astype(np.float32)
    x[4] = x[9] = x[20]  # equal items
    x[11] = 0
    present = rng.random(31) < 0.8
    found = knn_graph(x, 5, present, block, weighting=weighting, exclude_self=exclude_self)
    expected = naive_knn(x.astype(np.float64), 5, present, weighting, exclude_self)
    np.testing.assert_allclose(found.to_dense().numpy(), expected, atol=1e-6)


def test_knn_is_freedoms():
    """All rows have k neighbours, so every value is 1 / (k + 1e-7), on the top k of the cosine matrix."""
    x = torch.randn(200, 16, generator=torch.Generator().manual_seed(0))
    unit = x / x.norm(dim=1, keepdim=True)
    neighbours = torch.topk(unit @ unit.T, 10, dim=-1).indices
    expected = torch.zeros(200, 200).scatter_(1, neighbours, 1 / (10 + 1e-7))
    torch.testing.assert_close(knn_graph(x, 10).to_dense(), expected, rtol=1e-6, atol=1e-6)


def test_knn_does_not_depend_on_the_block_where_all_are_equal():
    graphs = [knn_graph(np.ones((12, 3)), 4, block=block).to_dense() for block in (1, 5, 100)]
    assert torch.equal(graphs[0], graphs[1]) and torch.equal(graphs[0], graphs[2])
    assert (graphs[0].nonzero()[:, 1].view(12, 4) == torch.arange(4)).all()


def test_knn_edges():
    x = np.random.default_rng(1).normal(size=(5, 3))
    assert knn_graph(x, 100).nnz == 25
    assert knn_graph(x, 100, exclude_self=True).nnz == 20
    assert knn_graph(x, 2, present=np.zeros(5, bool)).nnz == 0
    assert knn_graph(x[:1], 2, exclude_self=True).nnz == 0
    huge = knn_graph(x * 1e25, 2).to_dense()
    assert torch.equal(huge, knn_graph(x, 2).to_dense()) and torch.equal(
        huge, knn_graph(x * 1e-25, 2).to_dense()
    )
    half = knn_graph(torch.from_numpy(x).half(), 2)
    assert half.dtype == torch.float32


def test_knn_ignores_what_is_absent():
    x = np.random.default_rng(1).normal(size=(5, 3))
    present = np.array([True, True, False, True, True])
    x[2] = np.nan
    assert torch.isfinite(knn_graph(x, 2, present).values).all()
    with pytest.raises(GuiderError, match="item 2 are not finite"):
        knn_graph(x, 2)


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"k": 0}, "k must"),
        ({"k": 1, "block": 0}, "block"),
        ({"k": 1, "weighting": "x"}, "weighting"),
        ({"k": 1, "present": np.ones(3, bool)}, "present"),
    ],
)
def test_bad_knn(kwargs, words):
    with pytest.raises(GuiderError, match=words):
        knn_graph(np.ones((5, 2)), **kwargs)


def test_combine():
    a, b = lopsided(seed=1), lopsided(seed=2)
    torch.testing.assert_close(
        combine([a, b], [0.1, 0.9]).to_dense(), 0.1 * a.to_dense() + 0.9 * b.to_dense()
    )
    torch.testing.assert_close(combine([a, b]).to_dense(), (a.to_dense() + b.to_dense()) / 2)
    with pytest.raises(GuiderError, match="shapes"):
        combine([a, a.T])
    with pytest.raises(GuiderError, match="weights"):
        combine([a, b], [1.0])
    with pytest.raises(GuiderError, match="at least one"):
        combine([])


def test_combine_keeps_symmetry(operator):
    both = combine([operator, operator], [2.0, 1.0])
    assert both.symmetric
    torch.testing.assert_close(both.to_dense(), 3 * operator.to_dense())


def _pattern(rows: int, columns: int, seed: int = 0) -> SparseOperator:
    matrix = sp.random(rows, columns, density=0.3, random_state=seed, format="csr")
    return SparseOperator.from_scipy(matrix, dtype=torch.float64)


def test_other_values_in_the_same_places_transpose_without_a_sort() -> None:
    pattern = _pattern(7, 5)
    values = torch.arange(1.0, pattern.nnz + 1, dtype=torch.float64)
    other = pattern.with_values(values)
    expected = sp.csr_matrix((values.numpy(), pattern.col.numpy(), pattern.crow.numpy()), shape=(7, 5)).toarray()
    np.testing.assert_array_equal(other.to_dense().numpy(), expected)
    np.testing.assert_array_equal(other.T.to_dense().numpy(), expected.T)
    assert other.transposition is pattern.transposition
    np.testing.assert_array_equal(pattern.rows.numpy(), np.repeat(np.arange(7), np.diff(pattern.crow.numpy())))


def test_the_user_item_block_carries_items_to_their_users() -> None:
    adjacency = bipartite_adjacency([0, 0, 2], [1, 3, 1], 3, 4)
    block = user_item_block(adjacency, 3)
    torch.testing.assert_close(block.to_dense(), adjacency.to_dense()[:3, 3:])


def test_shrunk_cosine_graph_is_its_formula_in_blocks_of_any_size() -> None:
    features = np.random.default_rng(0).normal(size=(50, 6)).astype(np.float32)
    features[7] = 0.0
    present = np.ones(50, dtype=bool)
    present[[0, 20]] = False
    expected = np.zeros((50, 50))
    there = [i for i in range(50) if present[i] and i != 7]
    length = np.linalg.norm(features.astype(np.float64), axis=1)
    for i in there:
        similarity = {j: float(features[i] @ features[j]) / (length[i] * length[j] + 1.5) for j in there}
        for j in sorted(there, key=similarity.__getitem__, reverse=True)[:4]:
            expected[i, j] = similarity[j]
    for block in (1, 7, 47, None):
        graph = shrunk_cosine_graph(features, 4, 1.5, present, block)
        assert graph.nnz == 4 * 47
        np.testing.assert_allclose(graph.to_dense(), expected, rtol=1e-5, atol=1e-6)
    # without shrinkage it is the cosine, and everybody's nearest item is itself
    torch.testing.assert_close(shrunk_cosine_graph(features[8:20], 1).to_dense(), torch.eye(12))
    # more neighbours than items; nobody at all
    assert shrunk_cosine_graph(features[:7], 100).nnz == 49
    assert shrunk_cosine_graph(features[:7], 3, present=np.zeros(7, dtype=bool)).nnz == 0


@pytest.mark.parametrize(
    ("k", "shrink", "message"), [(0, 1.0, "k must be 1"), (1, -1.0, "shrink must be 0"), (1, float("nan"), "shrink")]
)
def test_shrunk_cosine_graph_refuses_bad_arguments(k: int, shrink: float, message: str) -> None:
    with pytest.raises(GuiderError, match=message):
        shrunk_cosine_graph(np.ones((3, 2), dtype=np.float32), k, shrink)
