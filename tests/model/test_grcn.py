"""GRCN against MMRec's implementation, against dense algebra, and what must not matter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from backbones import built, with_modalities
from reference import Reference, reference
from torch.nn.functional import leaky_relu, normalize

from recbole_guider.utils.errors import GuiderError

pytestmark = pytest.mark.slow


def _placed(folder: Path, n_routing: int) -> Reference:
    ours = reference(
        "GRCN", folder, n_routing=n_routing, n_layers=2, reg_weight=0.1, embedding_size=8, latent_embedding=6
    )
    model, given = ours.model, ours.arrays
    n_users = int(given["n_users"])
    for users, items, name in (
        (model.user_embedding.weight, model.item_embedding.weight, "id_gcn.id_embedding"),
        (model.user_confidence, model.item_confidence, "model_specific_conf"),
    ):
        ours.place(users, given[f"weight.{name}"][:n_users], ours.user_ids)
        ours.place(items, given[f"weight.{name}"][n_users:], ours.item_ids)
    for routing, name in zip(model.routings, ("v_gcn", "t_gcn"), strict=True):
        ours.place(routing.preference, given[f"weight.{name}.preference"], ours.user_ids)
        ours.place(routing.projection.weight, given[f"weight.{name}.MLP.weight"])
        ours.place(routing.projection.bias, given[f"weight.{name}.MLP.bias"])
    return ours


@pytest.mark.parametrize("n_routing, run", [(0, "plain."), (3, "")])
def test_agrees_with_its_reference(n_routing: int, run: str, tmp_path: Path) -> None:
    """As it is the reference routes nothing; with the direction of its routing messages turned it does."""
    ours = _placed(tmp_path, n_routing)
    model, given = ours.model, ours.arrays
    torch.testing.assert_close(ours.scores(), torch.from_numpy(given[f"{run}scores"]), rtol=1e-5, atol=1e-6)
    # the reference regularises all image preferences once more
    extra = 0.1 * model.routings[0].preference[1:].square().mean()
    loss = model.train().calculate_loss(ours.batch) + extra
    torch.testing.assert_close(loss, torch.tensor(float(given[f"{run}loss"])), rtol=1e-5, atol=0.0)


def test_gradients_agree_with_the_reference(tmp_path: Path) -> None:
    ours = _placed(tmp_path, 3)
    model, given = ours.model, ours.arrays
    n_users = int(given["n_users"])
    extra = 0.1 * model.routings[0].preference[1:].square().mean()
    (model.train().calculate_loss(ours.batch) + extra).backward()
    for found, expected in (
        (model.user_confidence.grad[ours.user_ids], given["gradient.model_specific_conf"][:n_users]),
        (model.item_confidence.grad[ours.item_ids], given["gradient.model_specific_conf"][n_users:]),
        (model.user_embedding.weight.grad[ours.user_ids], given["gradient.id_gcn.id_embedding"][:n_users]),
        (model.routings[0].preference.grad[ours.user_ids], given["gradient.v_gcn.preference"]),
        (model.routings[1].projection.weight.grad, given["gradient.t_gcn.MLP.weight"]),
    ):
        torch.testing.assert_close(found, torch.from_numpy(expected), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("pruning", [True, False])
def test_is_the_paper_s_formula(pruning: bool, toy: dict[str, Any]) -> None:
    model, train = built("GRCN", with_modalities(toy, "text", "image"), n_routing=2, n_layers=3, pruning=pruning)
    edges = model.edges
    linked = torch.zeros(model.n_users, model.n_items, dtype=torch.bool)
    linked[edges.rows, edges.columns] = True
    assert linked.sum() == len(train.dataset.inter_feat)

    def attention(scores: torch.Tensor, dim: int) -> torch.Tensor:
        return scores.masked_fill(~linked, -torch.inf).softmax(dim).nan_to_num()

    user_views, item_views, to_user, to_item = [], [], [], []
    for m, (routing, content) in enumerate(zip(model.routings, model.content, strict=True)):
        z = normalize(leaky_relu(routing.projection(content.values)) * content.present[:, None])
        p = normalize(routing.preference)
        for _ in range(2):
            p = normalize(p + attention(p @ z.T, 1) @ z)
        a, b = attention(p @ z.T, 1), attention(p @ z.T, 0)
        user_views.append(p + a @ z)
        item_views.append(z + b.T @ p)
        to_user.append(a * model.item_confidence[:, m])
        to_item.append(b * model.user_confidence[:, m, None])
    to_user, to_item = (torch.stack(each).amax(0) for each in (to_user, to_item))
    if pruning:
        to_user, to_item = to_user.relu(), to_item.relu()
    matrix = torch.zeros(model.n_users + model.n_items, model.n_users + model.n_items)
    matrix[: model.n_users, model.n_users :] = to_user
    matrix[model.n_users :, : model.n_users] = to_item.T
    assert (to_user > 0).any() and ((to_user[linked] == 0) if pruning else (to_user < 0)).any()
    nodes = normalize(torch.cat([model.user_embedding.weight, model.item_embedding.weight]))
    nodes = nodes + matrix @ nodes + matrix @ matrix @ nodes + matrix @ matrix @ matrix @ nodes
    users, items = model.embeddings()
    torch.testing.assert_close(users, torch.cat([nodes[: model.n_users], *user_views], 1), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(items, torch.cat([nodes[model.n_users :], *item_views], 1), rtol=1e-4, atol=1e-6)


def test_layers_cannot_be_negative(toy: dict[str, Any]) -> None:
    with pytest.raises(GuiderError, match="n_routing is -1"):
        built("GRCN", toy, n_routing=-1)
