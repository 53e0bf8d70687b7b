"""SelfCF against MMRec's and the authors' implementations, and its random views against draws of the same generator."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from backbones import built
from reference import reference
from torch.nn.functional import cosine_similarity

from recbole_guider.models.selfcf import SelfCFParameters
from recbole_guider.utils.errors import GuiderError

AUGMENTATIONS = get_args(SelfCFParameters.model_fields["augmentation"].annotation)


@pytest.mark.parametrize("augmentation", AUGMENTATIONS)
def test_agrees_with_its_references(augmentation: str, tmp_path: Path) -> None:
    ours = reference(
        "SelfCF", tmp_path, n_layers=2, dropout=0.0, graph_dropout=0.0, momentum=0.3, reg_weight=0.01,
        embedding_size=8, augmentation=augmentation,
    )
    model, given = ours.model, ours.arrays
    ours.place(model.user_embedding.weight, given["weight.online_encoder.embedding_dict.user_emb"], ours.user_ids)
    ours.place(model.item_embedding.weight, given["weight.online_encoder.embedding_dict.item_emb"], ours.item_ids)
    for kind in ("weight", "bias"):
        ours.place(getattr(model.predictor, kind), given[f"weight.predictor.{kind}"])
    historical = augmentation == "historical_embedding"
    if historical:
        ours.place(model.user_history, given["history.users"], ours.user_ids)
        ours.place(model.item_history, given["history.items"], ours.item_ids)
    torch.testing.assert_close(ours.scores(), torch.from_numpy(given["scores"]), rtol=1e-5, atol=1e-6)
    loss = model.train().calculate_loss(ours.batch)
    suffix = "" if augmentation == "embedding_dropout" else f"_{augmentation}"
    torch.testing.assert_close(loss, torch.tensor(float(given["loss" + suffix])), rtol=1e-5, atol=1e-6)
    if historical:
        for found, name, ids in (
            (model.user_history, "users", ours.user_ids),
            (model.item_history, "items", ours.item_ids),
        ):
            expected = torch.from_numpy(given[f"history_after.{name}"])
            torch.testing.assert_close(found[ids], expected, rtol=1e-5, atol=1e-6)
    if not suffix:
        loss.backward()
        expected = torch.from_numpy(given["gradient.predictor.weight"])
        torch.testing.assert_close(model.predictor.weight.grad, expected, rtol=1e-4, atol=1e-6)
        expected = torch.from_numpy(given["gradient.online_encoder.embedding_dict.item_emb"])
        torch.testing.assert_close(model.item_embedding.weight.grad[ours.item_ids], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("augmentation", ["embedding_dropout", "edge_pruning"])
def test_random_views_and_their_gradient(augmentation: str, toy: dict[str, Any]) -> None:
    model, train = built(
        "SelfCF", toy, n_layers=2, dropout=0.4, graph_dropout=0.8, reg_weight=0.01, augmentation=augmentation
    )
    batch = next(iter(train))
    states = {name: model.generator(name).get_state() for name in ("graph", "dropout")}
    loss = model.train().calculate_loss(batch)
    loss.backward()
    found = model.item_embedding.weight.grad.clone()
    model.zero_grad()

    draws = {name: torch.Generator().set_state(state) for name, state in states.items()}
    rows, columns = model.graph.rows, model.graph.col.long()

    def dropped(values: torch.Tensor, rate: float, generator: torch.Generator) -> torch.Tensor:
        return values * (torch.rand(values.shape, generator=generator) >= rate) / (1 - rate)

    def dense(values: torch.Tensor) -> torch.Tensor:
        size = model.n_users + model.n_items
        return torch.zeros(size, size).index_put((rows, columns), values)

    rate = 0.8 * torch.rand((), generator=draws["graph"], dtype=torch.float64).item()
    assert 0.0 < rate < 0.8
    graph = dense(dropped(model.graph.values, rate, draws["graph"]))
    nodes = torch.cat([model.user_embedding.weight, model.item_embedding.weight])
    nodes = (nodes + graph @ nodes + graph @ graph @ nodes) / 3
    user, item = nodes[batch["user_id"]], nodes[model.n_users + batch["item_id"]]
    if augmentation == "embedding_dropout":
        targets = [dropped(rows.detach(), 0.4, draws["dropout"]) for rows in (user, item)]
    else:
        views = dense(dropped(model.graph.values, 0.4, draws["dropout"])) @ nodes.detach()
        targets = [views[batch["user_id"]], views[model.n_users + batch["item_id"]]]
    expected = -0.5 * cosine_similarity(model.predictor(user), targets[1]).mean()
    expected = expected - 0.5 * cosine_similarity(model.predictor(item), targets[0]).mean()
    expected = expected + 0.005 * (user.square().sum() + item.square().sum())
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    expected.backward()
    torch.testing.assert_close(found, model.item_embedding.weight.grad, rtol=1e-4, atol=1e-6)


def test_history_is_what_a_row_last_was(toy: dict[str, Any]) -> None:
    model, train = built("SelfCF", toy, augmentation="historical_embedding", graph_dropout=0.0, momentum=1.0)
    batch = next(iter(train))
    before = model.user_history.clone()
    model.eval()
    model.ranking_loss(model.encode(), batch)
    assert torch.equal(model.user_history, before)  # only training makes history
    model.train()
    encoding = model.encode()
    model.ranking_loss(encoding, batch)
    seen = torch.zeros(model.n_users, dtype=torch.bool)
    seen[batch["user_id"]] = True
    assert seen.any() and not seen.all()
    torch.testing.assert_close(model.user_history[seen], encoding.parts["users"][seen])
    assert torch.equal(model.user_history[~seen], before[~seen])
    users, items = model._targets(encoding, batch)  # momentum 1: nothing but the past
    torch.testing.assert_close(users, encoding.parts["users"][batch["user_id"]])
    torch.testing.assert_close(items, encoding.parts["items"][batch["item_id"]])
    assert {"user_history", "item_history"} <= set(model.state_dict())


def test_evaluation_takes_the_whole_graph(toy: dict[str, Any]) -> None:
    model, _ = built("SelfCF", toy)
    model.eval()
    once, again = model.encode(), model.encode()
    assert torch.equal(once.users, again.users) and torch.equal(once.items, again.items)
    model.train()
    assert not torch.equal(model.encode().users, model.encode().users)


def test_wrong_settings_are_named(toy: dict[str, Any]) -> None:
    with pytest.raises(GuiderError, match="augmentation is 'noise'"):
        built("SelfCF", toy, augmentation="noise")
    for key, value in (("dropout", 1.0), ("momentum", 1.5), ("graph_dropout", -0.1)):
        with pytest.raises(GuiderError, match=f"{key} is {value}"):
            built("SelfCF", toy, **{key: value})
