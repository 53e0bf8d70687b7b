"""BM3 against MMRec's implementation, its dropout against a loop, and what must not matter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from backbones import built, with_modalities
from reference import reference

from recbole_guider.utils.errors import GuiderError


def test_agrees_with_its_reference(tmp_path: Path) -> None:
    ours = reference("BM3", tmp_path, n_layers=2, reg_weight=0.1, cl_weight=2.0, dropout=0.0, embedding_size=8)
    model, given = ours.model, ours.arrays
    ours.place(model.user_embedding.weight, given["weight.user_embedding.weight"], ours.user_ids)
    ours.place(model.item_embedding.weight, given["weight.item_id_embedding.weight"], ours.item_ids)
    for kind in ("weight", "bias"):
        ours.place(getattr(model.predictor, kind), given[f"weight.predictor.{kind}"])
        for projection, name in zip(model.projections, ("image", "text"), strict=True):
            ours.place(getattr(projection, kind), given[f"weight.{name}_trs.{kind}"])
    torch.testing.assert_close(ours.scores(), torch.from_numpy(given["scores"]), rtol=1e-5, atol=1e-6)
    loss = model.train().calculate_loss(ours.batch)
    torch.testing.assert_close(loss, torch.tensor(float(given["loss"])), rtol=1e-5, atol=0.0)
    loss.backward()
    for parameter, name, ids in (
        (model.predictor.weight, "predictor.weight", slice(None)),
        (model.projections[0].weight, "image_trs.weight", slice(None)),
        (model.item_embedding.weight, "item_id_embedding.weight", ours.item_ids),
        (model.content[1].values, "text_embedding.weight", ours.item_ids),
    ):
        expected = torch.from_numpy(given[f"gradient.{name}"])
        torch.testing.assert_close(parameter.grad[ids], expected, rtol=1e-4, atol=1e-6, msg=name)


def test_targets_are_dropped_and_get_no_gradient(toy: dict[str, Any]) -> None:
    model, train = built("BM3", with_modalities(toy, "image"), dropout=0.4, cl_weight=0.5, reg_weight=0.0)
    batch = next(iter(train))
    state = model.generator("dropout").get_state()
    loss = model.train().calculate_loss(batch)
    loss.backward()
    found = model.item_embedding.weight.grad.clone()
    model.zero_grad()

    draws = torch.Generator().set_state(state)

    def target(rows: torch.Tensor) -> torch.Tensor:
        return rows.detach() * (torch.rand(rows.shape, generator=draws) >= 0.4) / 0.6

    def apart(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        cosines = [a @ b / (a.norm() * b.norm()) for a, b in zip(one, other, strict=True)]
        return 1.0 - torch.stack(cosines).mean()

    nodes = torch.cat([model.user_embedding.weight, model.item_embedding.weight])
    nodes = (nodes + model.graph.to_dense() @ nodes) / 2
    users, items = nodes[: model.n_users], nodes[model.n_users :] + model.item_embedding.weight
    user, item = users[batch["user_id"]], items[batch["item_id"]]
    view = model.projections[0](model.content[0].values[batch["item_id"]])
    expected = apart(model.predictor(user), target(item)) + apart(model.predictor(item), target(user))
    predicted = model.predictor(view)
    expected = expected + 0.5 * (apart(predicted, target(item)) + apart(predicted, target(view)))
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    expected.backward()
    torch.testing.assert_close(found, model.item_embedding.weight.grad, rtol=1e-4, atol=1e-6)


def test_a_missing_row_costs_nothing(toy: dict[str, Any]) -> None:
    model, train = built("BM3", with_modalities(toy, "text"), dropout=0.0)
    present = model.content[0].present
    inter = train.dataset.inter_feat
    without = inter[torch.nonzero(~present[inter["item_id"]]).squeeze(1)]
    assert len(without)
    assert model.auxiliary_loss(model.encode(), without).item() == 0.0


def test_dropout_is_a_share(toy: dict[str, Any]) -> None:
    with pytest.raises(GuiderError, match="dropout is 1.0"):
        built("BM3", toy, dropout=1.0)
