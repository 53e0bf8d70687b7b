"""MMGCF against the authors' implementation in all its nine forms, with one modality and three, and missing rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from backbones import built, dense_adjacency, pairs_of
from reference import reference
from torch.nn.functional import normalize

from recbole_guider.utils.errors import GuiderError

pytestmark = pytest.mark.slow

FORMS = [(fusion, weighting) for fusion in ("mean", "sum", "concat") for weighting in ("equal", "alpha", "normalized")]


@pytest.mark.parametrize(("fusion", "weighting"), FORMS)
def test_agrees_with_its_reference(fusion: str, weighting: str, tmp_path: Path) -> None:
    ours = reference(
        "MMGCF", tmp_path, fusion_mode=fusion, weighting=weighting, n_ui_layers=2, dropout=0.0, reg_weight=0.1,
        embedding_size=8, feat_embed_dim=6 if fusion == "concat" else 8,
    )
    model, given, form = ours.model, ours.arrays, f"{fusion}.{weighting}"
    ours.place(model.user_embedding.weight, given["weight.user_embedding.weight"], ours.user_ids)
    ours.place(model.item_embedding.weight, given["weight.item_id_embedding.weight"], ours.item_ids)
    names = {f"projections.{place}": f"{name}_trs" for place, name in enumerate(("image", "text"))}
    names["content_layer"] = "mm_concat_layer"
    names["item_layer"] = "id_mm_concat_layer" if weighting == "equal" else "all_concat_layer"
    for name, parameter in model.named_parameters():
        module, _, kind = name.rpartition(".")
        if module in names:
            ours.place(parameter, given[f"{form}.weight.{names[module]}.{kind}"])
    if weighting == "alpha":
        ours.place(model.alpha, given[f"{form}.weight.mm_alpha"])
    expected = torch.from_numpy(given[f"{form}.scores"])
    torch.testing.assert_close(ours.scores()[: len(expected)], expected, rtol=1e-5, atol=1e-6)
    loss = model.train().calculate_loss(ours.batch)
    torch.testing.assert_close(loss, torch.tensor(float(given[f"{form}.loss"])), rtol=1e-5, atol=0.0)
    loss.backward()
    gradient = torch.from_numpy(given[f"{form}.gradient"])
    torch.testing.assert_close(model.projections[0].weight.grad, gradient, rtol=1e-4, atol=1e-6)


def with_modalities(toy: dict[str, Any], count: int) -> dict[str, Any]:
    """The toy settings with one, two or three modalities, text (which lacks rows) among them."""
    text, image = {"file": "text.npy", "ids": "text_ids.txt"}, {"file": "image.npy"}
    blocks = {"text": text, "image": image, "again": {**text, "ids": "text_ids.txt"}}
    return {**toy, "modalities": dict(list(blocks.items())[:count])}


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize(("fusion", "weighting"), FORMS)
def test_is_its_formulas_for_any_number_of_modalities_and_missing_rows(
    fusion: str, weighting: str, count: int, toy: dict[str, Any]
) -> None:
    settings = {"fusion_mode": fusion, "weighting": weighting, "n_ui_layers": 1, "dropout": 0.0}
    model, train = built("MMGCF", with_modalities(toy, count), **settings)
    features = train.dataset.item_features
    assert not all(part.present[1:].all() for part in features.values())
    adjacency = dense_adjacency(pairs_of(train.dataset), model.n_users, model.n_items).float()
    nodes = torch.cat([model.user_embedding.weight, model.item_embedding.weight])
    mean = (nodes + adjacency @ nodes) / 2
    users, behaviour = mean[: model.n_users], mean[model.n_users :]

    def fuse(rows: list[torch.Tensor | None], layer: Any) -> torch.Tensor:
        there = [row for row in rows if row is not None]
        if fusion == "concat":
            size = next(row for row in rows if row is not None).shape
            return layer(torch.cat([torch.zeros(size) if row is None else row for row in rows]))
        return sum(there) / (len(there) if fusion == "mean" else 1)

    expected = []
    for item in range(model.n_items):
        content: list[torch.Tensor | None] = [
            projection(torch.from_numpy(part.values[item])) if part.present[item] else None
            for projection, part in zip(model.projections, features.values(), strict=True)
        ]
        own = behaviour[item]
        layer = getattr(model, "item_layer", None)
        if weighting == "equal":
            if all(row is None for row in content):
                content = [None]
            elif count > 1:
                content = [fuse(content, getattr(model, "content_layer", None))]
        elif weighting == "alpha":
            content = [None if row is None else 0.5 * row for row in content]
            own = 0.5 * own
        else:
            content = [None if row is None else normalize(row, dim=0) for row in content]
            own = count * normalize(own, dim=0)
        expected.append(fuse([own, *content], layer))
    got_users, got_items = model.eval().embeddings()
    torch.testing.assert_close(got_users, users, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(got_items, torch.stack(expected), rtol=1e-5, atol=1e-6)


def test_pruning_is_freedoms(toy: dict[str, Any]) -> None:
    model = built("MMGCF", toy, dropout=0.5)[0]
    freedom = built("FREEDOM", toy, dropout=0.5)[0]
    for _ in range(2):
        assert torch.equal(model.train().training_graph().to_dense(), freedom.train().training_graph().to_dense())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fusion_mode": "product"}, "fusion_mode is 'product'"),
        ({"weighting": "heavy"}, "weighting is 'heavy'"),
        ({"feat_embed_dim": 5}, "feat_embed_dim is 5 and embedding_size 16"),
        ({"dropout": -0.1}, "dropout is -0.1"),
    ],
)
def test_refuses_what_it_cannot_use(changes: dict[str, Any], message: str, toy: dict[str, Any]) -> None:
    with pytest.raises(GuiderError, match=message):
        built("MMGCF", toy, **changes)


def test_concat_takes_content_of_another_size(toy: dict[str, Any]) -> None:
    model = built("MMGCF", toy, fusion_mode="concat", feat_embed_dim=5)[0]
    assert model.embeddings()[1].shape == (model.n_items, 16)
    assert np.isfinite(model.embeddings()[1].detach().numpy()).all()
