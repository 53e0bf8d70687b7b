"""DRAGON against MMRec's implementation, and its graphs and fusion against loops."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from backbones import built, with_modalities
from reference import reference
from torch.nn.functional import normalize

from recbole_guider.utils.errors import GuiderError


def test_agrees_with_its_reference(tmp_path: Path) -> None:
    ours = reference(
        "DRAGON", tmp_path, knn_k=4, user_knn_k=5, reg_weight=0.1, embedding_size=8,
        modality_weights={"image": 0.3, "text": 0.7},
    )
    model, given = ours.model, ours.arrays
    ours.place(model.user_weights, given["weight.weight_u"][:, :, 0], ours.user_ids)
    for place, letter in enumerate("vt"):
        ours.place(model.preferences[place].weight, given[f"weight.{letter}_gcn.preference"], ours.user_ids)
        for layer, name in ((0, "MLP"), (2, "MLP_1")):
            for kind in ("weight", "bias"):
                ours.place(getattr(model.projections[place][layer], kind), given[f"weight.{letter}_gcn.{name}.{kind}"])
    torch.testing.assert_close(ours.scores(), torch.from_numpy(given["scores"]), rtol=1e-5, atol=1e-6)
    loss = model.train().calculate_loss(ours.batch)
    torch.testing.assert_close(loss, torch.tensor(float(given["loss"])), rtol=1e-5, atol=0.0)
    loss.backward()
    for gradient, name in (
        (model.preferences[0].weight.grad[ours.user_ids], "v_gcn.preference"),
        (model.projections[1][0].weight.grad, "t_gcn.MLP.weight"),
        (model.user_weights.grad[ours.user_ids, :, None], "weight_u"),
    ):
        expected = torch.from_numpy(given[f"gradient.{name}"])
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6, msg=name)


def test_users_learn_from_those_who_share_their_items(toy: dict[str, Any]) -> None:
    model, train = built("DRAGON", toy, user_knn_k=3)
    profiles: dict[int, set[int]] = {user: set() for user in range(model.n_users)}
    for user, item in zip(*(train.dataset.inter_feat[name].tolist() for name in ("user_id", "item_id")), strict=True):
        profiles[user].add(item)
    graph = model.user_graph.to_dense()
    for user, profile in profiles.items():
        common = {other: len(profile & items) for other, items in profiles.items() if other != user}
        nearest = sorted((other for other in common if common[other]), key=lambda other: (-common[other], other))[:3]
        expected = torch.zeros(model.n_users)
        if nearest:
            expected[nearest] = torch.tensor([float(common[other]) for other in nearest]).softmax(0)
        torch.testing.assert_close(graph[user], expected)


@pytest.mark.parametrize("names", [("image",), ("text",), ("image", "text", "again")])
def test_encoding_by_dense_algebra_where_content_is_missing(names: tuple[str, ...], toy: dict[str, Any]) -> None:
    model, train = built("DRAGON", with_modalities(toy, *names), n_mm_layers=2, n_ui_layers=3)
    graph, users, items = model.graph.to_dense(), [], []
    for place, part in enumerate(train.dataset.item_features.values()):
        content = model.projections[place](torch.from_numpy(part.values))
        content[~torch.from_numpy(part.present)] = 0.0
        layer = torch.cat([normalize(model.preferences[place].weight), normalize(content)])
        total = layer
        for _ in range(3):
            layer = graph @ layer
            total = total + layer
        weight = 1.0 if model.user_weights is None else model.user_weights[:, place : place + 1]
        users.append(weight * total[: model.n_users])
        items.append(total[model.n_users :])
    assert (model.user_weights is None) == (len(names) == 1)
    u, v = torch.cat(users, dim=1), torch.cat(items, dim=1)
    item_graph = model.item_graph.to_dense()
    encoding = model.encode()
    torch.testing.assert_close(encoding.users, u + model.user_graph.to_dense() @ u)
    torch.testing.assert_close(encoding.items, v + item_graph @ item_graph @ v)


def test_refuses_a_user_graph_without_neighbours(toy: dict[str, Any]) -> None:
    with pytest.raises(GuiderError, match="user_knn_k is 0"):
        built("DRAGON", toy, user_knn_k=0)
