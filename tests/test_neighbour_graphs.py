"""Graphs of items that agree, and of what occurs together, against naive loops."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

import recbole_guider.graph as graph_module
from recbole_guider.errors import GuiderError
from recbole_guider.graph import agreeing_knn_graphs, co_occurrence, degree_normalised, knn_graph, softmax_rows, union


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


@pytest.mark.parametrize("products", [10**7, 40, 1])
@pytest.mark.parametrize("minimum", [1, 2])
def test_co_occurrence_by_a_loop(products: int, minimum: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph_module, "_BLOCK_PRODUCTS", products)
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


def test_normalised_rows() -> None:
    counts = co_occurrence([0, 0, 1, 1, 2, 2, 2], [0, 1, 0, 1, 1, 2, 2], 4, 3, 2)
    dense = counts.toarray()
    np.testing.assert_array_equal(dense, [[0, 2, 1, 0], [2, 0, 1, 0], [1, 1, 0, 0], [0, 0, 0, 0]])
    shares = np.exp([2, 1]) / np.exp([2, 1]).sum()
    expected = [[0, *shares, 0], [shares[0], 0, shares[1], 0], [0.5, 0.5, 0, 0], [0, 0, 0, 0]]
    np.testing.assert_allclose(softmax_rows(counts).to_dense(), expected, rtol=1e-6)
    scale = (dense.sum(1) + 1e-7) ** -0.5
    got = degree_normalised(counts).to_dense()
    np.testing.assert_allclose(got, scale[:, None] * dense * scale, rtol=1e-6)


def test_bad_neighbour_graphs() -> None:
    with pytest.raises(GuiderError, match="k and minimum"):
        co_occurrence([0], [0], 1, 1, 0)
    with pytest.raises(GuiderError, match="at least one"):
        agreeing_knn_graphs([], 2)
    with pytest.raises(GuiderError, match="k must be"):
        agreeing_knn_graphs([np.eye(3)], 0)
    with pytest.raises(GuiderError, match="equally many items"):
        agreeing_knn_graphs([np.eye(3), np.eye(4)], 2)


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
