"""LGMRec against MMRec's implementation, and its hypergraphs where content is missing against loops."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from backbones import built, with_modalities
from reference import reference
from torch.nn.functional import cosine_similarity, normalize

from recbole_guider.utils.errors import GuiderError

pytestmark = pytest.mark.slow

SETTINGS = {"n_hyper_layers": 2, "n_hyperedges": 3, "alpha": 0.7, "cl_weight": 0.01, "reg_weight": 0.1}


def test_agrees_with_its_reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = reference("LGMRec", tmp_path, **SETTINGS, dropout=0.0, embedding_size=8)
    model, given = ours.model, ours.arrays
    ours.place(model.user_embedding.weight, given["weight.user_embedding.weight"], ours.user_ids)
    ours.place(model.item_embedding.weight, given["weight.item_id_embedding.weight"], ours.item_ids)
    for place, (name, letter) in enumerate((("image", "v"), ("text", "t"))):
        ours.place(model.projections[place], given[f"weight.item_{name}_trs"])
        ours.place(model.hyperedges[place], given[f"weight.{letter}_hyper"])
    torch.testing.assert_close(ours.scores(), torch.from_numpy(given["scores"]), rtol=1e-5, atol=1e-6)
    noise = torch.zeros(model.n_users + model.n_items, 2, 3)
    noise[ours.user_ids] = torch.from_numpy(given["noise_users"]).transpose(0, 1)
    noise[model.n_users + ours.item_ids] = torch.from_numpy(given["noise_items"]).transpose(0, 1)
    monkeypatch.setattr(model, "_gumbel", lambda shape: noise.view(shape))
    loss = model.train().calculate_loss(ours.batch)
    torch.testing.assert_close(loss, torch.tensor(float(given["loss"])), rtol=1e-5, atol=0.0)
    loss.backward()
    for gradient, name in (
        (model.projections[0].grad, "item_image_trs"),
        (model.hyperedges[0].grad, "v_hyper"),
        (model.hyperedges[1].grad, "t_hyper"),
        (model.item_embedding.weight.grad[ours.item_ids], "item_id_embedding.weight"),
    ):
        expected = torch.from_numpy(given[f"gradient.{name}"])
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("names", [("image",), ("text",), ("image", "text", "again")])
def test_by_loops_where_content_is_missing(names: tuple[str, ...], toy: dict[str, Any]) -> None:
    model, train = built("LGMRec", with_modalities(toy, *names), **SETTINGS)
    model.eval()
    graph = model.graph.to_dense()
    profiles = (graph[: model.n_users, model.n_users :] > 0).float()
    layers = [torch.cat([model.user_embedding.weight, model.item_embedding.weight])]
    for _ in range(2):
        layers.append(graph @ layers[-1])
    behaviour = sum(layers) / 3
    nodes, shared = behaviour, []
    for place, part in enumerate(train.dataset.item_features.values()):
        values, present = torch.from_numpy(part.values), torch.from_numpy(part.present)
        items = values @ model.projections[place]
        items[~present] = 0.0
        users = torch.zeros(model.n_users, 16)
        degrees = torch.zeros(model.n_items, 3)
        of_users = torch.full((model.n_users, 3), 1 / 3)
        for item in torch.nonzero(present).squeeze(1):
            degrees[item] = (values[item] @ model.hyperedges[place] / 0.2).softmax(0)
        for user in range(model.n_users):
            own = torch.nonzero(profiles[user].bool() & present).squeeze(1)
            if len(own):
                users[user] = items[own].mean(0)
                of_users[user] = ((values[own] @ model.hyperedges[place]).sum(0) / 0.2).softmax(0)
        nodes = nodes + normalize(graph @ graph @ torch.cat([users, items]))
        first = behaviour[model.n_users :]
        second = degrees @ (degrees.T @ first)
        gathered = degrees.T @ second
        shared.append(torch.cat([of_users @ gathered, degrees @ gathered]))
    nodes = nodes + 0.7 * normalize(sum(shared))
    encoding = model.encode()
    torch.testing.assert_close(torch.cat([encoding.users, encoding.items]), nodes, rtol=1e-5, atol=1e-6)

    batch = next(iter(train))
    total = torch.tensor(0.0)
    parts = list(train.dataset.item_features.values())
    for one, other in combinations(range(len(names)), 2):
        for user in batch["user_id"]:
            cosine = cosine_similarity(shared[one][user], shared[other][1 : model.n_users]) / 0.2
            total = total + cosine.logsumexp(0) - cosine[user - 1]
        present = torch.nonzero(torch.from_numpy(parts[other].present)).squeeze(1)
        for item in batch["item_id"]:
            if parts[one].present[item] and parts[other].present[item]:
                candidates = shared[other][model.n_users + present]
                cosine = cosine_similarity(shared[one][model.n_users + item], candidates) / 0.2
                total = total + cosine.logsumexp(0) - cosine[present == item].squeeze()
    got = model.auxiliary_loss(encoding, batch)
    torch.testing.assert_close(torch.as_tensor(got), 0.01 * total, rtol=1e-4, atol=1e-6)


def test_noise_is_drawn_in_training_only(toy: dict[str, Any]) -> None:
    model, _ = built("LGMRec", toy, dropout=0.0)
    model.eval()
    assert torch.equal(model.encode().users, model.encode().users)
    model.train()
    first, second = model.encode(), model.encode()
    assert not torch.equal(first.users, second.users)
    # Gumbel noise of location 0: mean 0.5772, variance pi^2 / 6
    noise = model._gumbel(torch.Size([200000]))
    assert abs(float(noise.mean()) - 0.5772) < 0.02 and abs(float(noise.var()) - 1.6449) < 0.03


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_hyperedges": 0}, "n_hyperedges is 0"),
        ({"n_hyper_layers": 0}, "n_hyper_layers is 0"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"temperature": 0.0}, "temperature is 0.0"),
    ],
)
def test_refuses_what_it_cannot_use(changes: dict[str, Any], message: str, toy: dict[str, Any]) -> None:
    with pytest.raises(GuiderError, match=message):
        built("LGMRec", toy, **changes)
