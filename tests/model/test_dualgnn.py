"""DualGNN against MMRec's implementation, against dense algebra, and what must not matter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from backbones import built, with_modalities
from reference import Reference, reference
from torch.nn.functional import leaky_relu, normalize

from recbole_guider.utils.errors import GuiderError


def _placed(folder: Path) -> Reference:
    ours = reference("DualGNN", folder, n_layers=2, n_neighbours=4, reg_weight=0.1, embedding_size=6)
    model, given = ours.model, ours.arrays
    ours.place(model.modality_weight, given["weight.weight_u"][:, :, 0], ours.user_ids)
    for m, name in enumerate(("v_gcn", "t_gcn")):
        ours.place(model.preferences[m], given[f"weight.{name}.preference"], ours.user_ids)
        for layer, theirs in ((0, "MLP"), (2, "MLP_1")):
            for kind in ("weight", "bias"):
                ours.place(getattr(model.projections[m][layer], kind), given[f"weight.{name}.{theirs}.{kind}"])
    return ours


def test_agrees_with_its_reference(tmp_path: Path) -> None:
    ours = _placed(tmp_path)
    model, given = ours.model, ours.arrays
    torch.testing.assert_close(ours.scores(), torch.from_numpy(given["scores"]), rtol=1e-5, atol=1e-6)
    # the reference regularises weights that nothing uses
    unused = 0.1 * float(np.square(given["weight.weight_i"]).mean())
    loss = model.train().calculate_loss(ours.batch)
    torch.testing.assert_close(loss + unused, torch.tensor(float(given["loss"])), rtol=1e-5, atol=0.0)
    loss.backward()
    for found, expected in (
        (model.modality_weight.grad[ours.user_ids], given["gradient.weight_u"][:, :, 0]),
        (model.preferences[0].grad[ours.user_ids], given["gradient.v_gcn.preference"]),
        (model.projections[1][0].weight.grad, given["gradient.t_gcn.MLP.weight"]),
    ):
        torch.testing.assert_close(found, torch.from_numpy(expected), rtol=1e-4, atol=1e-7)


def test_mmrec_s_sum_in_place_is_another_weight(tmp_path: Path) -> None:
    """With the modalities of all nodes added into the first one, a user's second weight is the sum of both."""
    ours = _placed(tmp_path)
    with torch.no_grad():
        ours.model.modality_weight[:, 1] += ours.model.modality_weight[:, 0]
    torch.testing.assert_close(ours.scores(), torch.from_numpy(ours.arrays["plain.scores"]), rtol=1e-5, atol=1e-6)


def test_is_the_paper_s_formula(toy: dict[str, Any]) -> None:
    model, _ = built("DualGNN", with_modalities(toy, "text", "image", "again"), n_layers=3, n_neighbours=5)
    graph, alike = model.graph.to_dense(), model.user_graph.to_dense()
    assert ((alike > 0).sum(1)[1:] == 5).all() and not alike[0].any() and not alike[:, 0].any()
    views = []
    for content, preference, layers in zip(model.content, model.preferences, model.projections, strict=True):
        items = leaky_relu(content.values @ layers[0].weight.T + layers[0].bias) @ layers[2].weight.T + layers[2].bias
        items[~content.present] = 0.0
        x = normalize(torch.cat([preference, items]))
        views.append(x + graph @ x + graph @ graph @ x + graph @ graph @ graph @ x)
    fused = sum(model.modality_weight[:, m, None] * view[: model.n_users] for m, view in enumerate(views))
    users, items = model.embeddings()
    torch.testing.assert_close(users, fused + alike @ fused, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(items, sum(view[model.n_users :] for view in views), rtol=1e-4, atol=1e-6)


def test_users_begin_with_weights_that_sum_to_one(toy: dict[str, Any]) -> None:
    model, _ = built("DualGNN", toy)
    torch.testing.assert_close(model.modality_weight.sum(1), torch.ones(model.n_users))


def test_settings_that_cannot_be(toy: dict[str, Any]) -> None:
    for changes in ({"n_layers": -1}, {"n_neighbours": 0}):
        (key, value), = changes.items()
        with pytest.raises(GuiderError, match=f"{key} is {value}"):
            built("DualGNN", toy, **changes)
