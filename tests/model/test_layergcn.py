"""LayerGCN against the authors' implementation and dense algebra; how it prunes, and what its loss is a sum of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from backbones import built, dense_adjacency, pairs_of
from reference import reference

from recbole_guider.utils.errors import GuiderError


def test_agrees_with_its_reference(tmp_path: Path) -> None:
    ours = reference("LayerGCN", tmp_path, n_layers=3, dropout=0.0, reg_weight=0.01, embedding_size=8)
    model, given = ours.model, ours.arrays
    ours.place(model.user_embedding.weight, given["weight.user_embeddings"], ours.user_ids)
    ours.place(model.item_embedding.weight, given["weight.item_embeddings"], ours.item_ids)
    torch.testing.assert_close(ours.scores(), torch.from_numpy(given["scores"]), rtol=1e-5, atol=1e-6)
    loss = model.train().calculate_loss(ours.batch)
    torch.testing.assert_close(loss, torch.tensor(float(given["loss"])), rtol=1e-5, atol=0.0)
    loss.backward()
    for kind, ids in (("user", ours.user_ids), ("item", ours.item_ids)):
        gradient = getattr(model, f"{kind}_embedding").weight.grad[ids]
        expected = torch.from_numpy(given[f"gradient.{kind}_embeddings"])
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6)


def test_is_its_formulas(toy: dict[str, Any]) -> None:
    model, train = built("LayerGCN", toy, n_layers=2, dropout=0.0)
    adjacency = dense_adjacency(pairs_of(train.dataset), model.n_users, model.n_items)
    ego = torch.cat([model.user_embedding.weight, model.item_embedding.weight]).detach().double()
    layer, total = ego, torch.zeros_like(ego)
    for _ in range(2):
        layer = adjacency @ layer
        for node in range(len(ego)):
            lengths = layer[node].norm() * ego[node].norm()
            layer[node] *= (layer[node] @ ego[node] / lengths) if lengths > 0 else 0.0
        total = total + layer
    with torch.no_grad():
        users, items = model.eval().embeddings()
    torch.testing.assert_close(torch.cat([users, items]).double(), total, rtol=1e-5, atol=1e-7)
    # the [PAD] user and item take no part
    assert not users[0].any() and not items[0].any()


def test_the_loss_is_the_sum_over_the_batch_and_its_parts_are_means(toy: dict[str, Any]) -> None:
    model, train = built("LayerGCN", toy, dropout=0.0, reg_weight=0.5)
    batch = next(iter(train))
    whole = model.calculate_loss(batch)
    rows = [batch[:1], batch[1:40], batch[40:]]
    torch.testing.assert_close(whole, sum(model.calculate_loss(part) for part in rows), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(whole / len(batch), model.loss(model.encode(), batch))
    alone = model.regulariser(model.encode(), without_negatives(batch))
    squares = model.user_embedding.weight[batch["user_id"]].square().sum()
    squares = squares + model.item_embedding.weight[batch["item_id"]].square().sum()
    torch.testing.assert_close(alone, 0.25 * squares / len(batch))


def without_negatives(batch: Any) -> Any:
    return type(batch)({name: batch[name] for name in ("user_id", "item_id")})


def test_prunes_by_degree_and_at_random_by_turns(toy: dict[str, Any]) -> None:
    model, train = built("LayerGCN", toy, dropout=0.3, pruning="mixed")
    by_degree = built("LayerGCN", toy, dropout=0.3, pruning="degree")[0]
    graphs, degree_graphs = [], []
    for _ in range(4):
        graphs.append(model.train().training_graph().to_dense())
        assert model.training_graph() is model.training_graph()
        degree_graphs.append(by_degree.train().training_graph().to_dense())
    assert int(model.n_pruned) == 4
    # both draw from a generator of the same seed: the first choice is the same, the second made in another way
    assert torch.equal(graphs[0], degree_graphs[0]) and not torch.equal(graphs[1], degree_graphs[1])
    kept = int(len(pairs_of(train.dataset)) * (1 - 0.3))
    for graph in graphs:
        assert int((graph > 0).sum()) == 2 * kept and bool((model.graph.to_dense()[graph > 0] > 0).all())


def test_random_pruning_is_uniform_and_pruning_by_degree_is_not(toy: dict[str, Any]) -> None:
    shares = {}
    for pruning in ("random", "degree"):
        model = built("LayerGCN", toy, dropout=0.5, pruning=pruning)[0]
        full = model.graph.to_dense()
        counts = sum((model.train().training_graph().to_dense() > 0).double() for _ in range(300))
        edges = full > 0
        # edges between busy nodes have small entries in the normalised graph
        shares[pruning] = torch.corrcoef(torch.stack([counts[edges] / 300, full[edges].double()]))[0, 1]
        assert abs(float(counts[edges].mean()) / 300 - 0.5) < 0.01
    assert shares["degree"] > 0.8 and abs(shares["random"]) < 0.2


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"dropout": 1.0}, "dropout is 1.0"), ({"n_layers": 0}, "n_layers is 0"), ({"pruning": "by_luck"}, "by_luck")],
)
def test_refuses_what_it_cannot_use(changes: dict[str, Any], message: str, toy: dict[str, Any]) -> None:
    with pytest.raises(GuiderError, match=message):
        built("LayerGCN", toy, **changes)
