"""MGCN against MMRec's implementation, and its fusion against a loop over nodes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from backbones import built, with_modalities
from reference import reference
from torch.nn.functional import normalize

from recbole_guider.utils.errors import GuiderError

pytestmark = pytest.mark.slow

SETTINGS = {"knn_k": 4, "n_mm_layers": 2, "reg_weight": 0.1, "cl_weight": 0.1}


def test_agrees_with_its_reference(tmp_path: Path) -> None:
    ours = reference("MGCN", tmp_path, **SETTINGS, embedding_size=8, train_batch_size=20)
    model, given = ours.model, ours.arrays
    ours.place(model.user_embedding.weight, given["weight.user_embedding.weight"], ours.user_ids)
    ours.place(model.item_embedding.weight, given["weight.item_id_embedding.weight"], ours.item_ids)
    ours.place(model.query[2].weight, given["weight.query_common.2.weight"])
    modules = {"query_common.0": model.query[0]}
    for place, (name, letter) in enumerate((("image", "v"), ("text", "t"))):
        modules |= {
            f"{name}_trs": model.projections[place],
            f"gate_{letter}.0": model.purifiers[place][0],
            f"gate_{name}_prefer.0": model.preferences[place][0],
        }
    for name, module in modules.items():
        for kind in ("weight", "bias"):
            ours.place(getattr(module, kind), given[f"weight.{name}.{kind}"])
    torch.testing.assert_close(ours.scores(), torch.from_numpy(given["scores"]), rtol=1e-5, atol=1e-6)
    loss = model.train().calculate_loss(ours.batch)
    torch.testing.assert_close(loss, torch.tensor(float(given["loss"])), rtol=1e-5, atol=0.0)
    loss.backward()
    for parameter, name, ids in (
        (model.query[0].weight, "query_common.0.weight", slice(None)),
        (model.purifiers[0][0].weight, "gate_v.0.weight", slice(None)),
        (model.preferences[1][0].weight, "gate_text_prefer.0.weight", slice(None)),
        (model.item_embedding.weight, "item_id_embedding.weight", ours.item_ids),
        (model.content[1].values, "text_embedding.weight", ours.item_ids),
    ):
        expected = torch.from_numpy(given[f"gradient.{name}"])
        torch.testing.assert_close(parameter.grad[ids], expected, rtol=1e-4, atol=1e-6, msg=name)


def test_fusion_node_by_node_where_content_is_missing(toy: dict[str, Any]) -> None:
    model, train = built("MGCN", with_modalities(toy, "image", "text", "again"), **SETTINGS)
    encoding = model.eval().encode()
    behaviour, side = encoding.parts["behaviour"].detach(), encoding.parts["side"].detach()
    ids = model.item_embedding.weight
    views = []
    for place, part in enumerate(train.dataset.item_features.values()):
        unit = normalize(torch.from_numpy(part.values), dim=1)
        graph = torch.zeros(model.n_items, model.n_items)
        for item in np.flatnonzero(part.present):
            cosine = (unit @ unit[item]).masked_fill(torch.from_numpy(~part.present), -2.0)
            nearest = cosine.topk(4).indices
            graph[item, nearest] = cosine[nearest].clamp_min(0.0)
        scale = (graph.sum(1) + 1e-7) ** -0.5
        scale[~torch.from_numpy(part.present)] = 0.0
        graph = scale[:, None] * graph * scale[None, :]
        gate = torch.sigmoid(model.purifiers[place][0](model.projections[place](torch.from_numpy(part.values))))
        items = graph @ graph @ (ids * gate)
        views.append(torch.cat([model.graph.to_dense()[: model.n_users, model.n_users :] @ items, items]))
    for node in (0, 1, 7, *range(model.n_users, model.n_users + model.n_items)):
        item = node - model.n_users
        own = [
            place
            for place, part in enumerate(train.dataset.item_features.values())
            if item < 0 or part.present[item]
        ]
        expected = torch.zeros_like(side[node])
        if own:
            weight = torch.stack([model.query(views[place][node])[0] for place in own]).softmax(0)
            common = sum(share * views[place][node] for share, place in zip(weight, own, strict=True))
            expected = common
            for place in own:
                preference = torch.sigmoid(model.preferences[place][0](behaviour[node]))
                expected = expected + preference * (views[place][node] - common)
            expected = expected / (len(own) + 1)
        torch.testing.assert_close(side[node], expected, rtol=1e-4, atol=1e-6)
    assert not all(part.present[1:].all() for part in train.dataset.item_features.values())


def test_an_item_without_content_is_what_behaviour_says(toy: dict[str, Any]) -> None:
    model, _ = built("MGCN", with_modalities(toy, "text"))
    encoding = model.eval().encode()
    absent = torch.nonzero(~model.content[0].present).squeeze(1)
    assert len(absent) > 1
    behaviour = encoding.parts["behaviour"][model.n_users :]
    torch.testing.assert_close(encoding.items[absent], behaviour[absent])


def test_temperature_is_positive(toy: dict[str, Any]) -> None:
    with pytest.raises(GuiderError, match="temperature is 0"):
        built("MGCN", toy, temperature=0.0)
