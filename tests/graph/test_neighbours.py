"""Nearest-neighbour graphs against naive loops, and sums, unions and softmaxes of graphs against dense formulas."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from small_graphs import lopsided

from recbole_guider.graph import agreeing_knn_graphs, combine, knn_graph, shrunk_cosine_graph, softmax_rows, union
from recbole_guider.utils.errors import GuiderError


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


@pytest.mark.parametrize("block", [None, 1, 7])
def test_agreeing_neighbours_by_a_loop(block: int | None) -> None:
    rng = np.random.default_rng(0)
    n, k = 25, 4
    features = [rng.normal(size=(n, d)) + 0.3 for d in (6, 3, 9)]
    present = [rng.random(n) < share for share in (1.0, 0.7, 0.6)]
    features[2][3] = 0.0  # no direction: as though it were absent
    given = [np.where(there[:, None], x, np.nan) for x, there in zip(features, present, strict=True)]
    graphs = agreeing_knn_graphs(given, k, present, block)
    present[2][3] = False
    cosines, means = [], []
    for x, there in zip(features, present, strict=True):
        unit = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-30)
        cosines.append(unit @ unit.T)
        means.append(cosines[-1][np.ix_(there, there)].mean())
    for place, graph in enumerate(graphs):
        expected = np.zeros((n, n))
        for i in range(n):
            agreed = [
                j
                for j in range(n)
                if present[place][i] and present[place][j]
                and all(
                    cosine[i, j] >= mean
                    for cosine, mean, there in zip(cosines, means, present, strict=True)
                    if there[i] and there[j]
                )
            ]
            expected[i, sorted(agreed, key=lambda j: -cosines[place][i, j])[:k]] = 1.0
        assert 0 < (expected.sum(1) < k).sum() < n  # some items agree with few others
        scale = (expected.sum(1) + 1e-7) ** -0.5
        expected = scale[:, None] * expected * scale[None, :]
        np.testing.assert_allclose(graph.to_dense().numpy(), expected, rtol=1e-5, atol=1e-7)


def test_one_modality_agrees_with_itself_above_its_mean() -> None:
    # three groups of like items: neighbours within the group are all above the mean
    rng = np.random.default_rng(1)
    x = np.repeat(np.eye(3), 6, axis=0) + 0.01 * rng.normal(size=(18, 3))
    assert torch.equal(agreeing_knn_graphs([x], 4)[0].to_dense(), knn_graph(x, 4).to_dense())


def test_bad_agreeing_graphs() -> None:
    with pytest.raises(GuiderError, match="at least one"):
        agreeing_knn_graphs([], 2)
    with pytest.raises(GuiderError, match="k must be"):
        agreeing_knn_graphs([np.eye(3)], 0)
    with pytest.raises(GuiderError, match="equally many items"):
        agreeing_knn_graphs([np.eye(3), np.eye(4)], 2)


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


def test_union_is_the_larger_entry() -> None:
    rng = np.random.default_rng(0)
    graphs = [knn_graph(rng.normal(size=(12, 3)), 3, weighting="similarity") for _ in range(3)]
    expected = torch.stack([graph.to_dense() for graph in graphs]).amax(0)
    assert torch.equal(union(graphs).to_dense(), expected)
    assert torch.equal(union(graphs[:1]).to_dense(), graphs[0].to_dense())
    with pytest.raises(GuiderError, match="at least one"):
        union([])
    with pytest.raises(GuiderError, match="different shapes"):
        union([graphs[0], knn_graph(np.eye(3), 2)])


def test_softmax_of_every_row() -> None:
    counts = sp.csr_matrix(np.array([[0, 2, 1, 0], [2, 0, 1, 0], [1, 1, 0, 0], [0, 0, 0, 0]], dtype=np.float32))
    shares = np.exp([2, 1]) / np.exp([2, 1]).sum()
    expected = [[0, *shares, 0], [shares[0], 0, shares[1], 0], [0.5, 0.5, 0, 0], [0, 0, 0, 0]]
    np.testing.assert_allclose(softmax_rows(counts).to_dense(), expected, rtol=1e-6)
