"""LATTICE against MMRec's implementation, its item graph against dense algebra, and when that graph is built."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from backbones import built, with_modalities
from reference import reference
from torch.nn.functional import normalize

from recbole_guider.utils.errors import GuiderError

pytestmark = pytest.mark.slow

SETTINGS = {"knn_k": 4, "n_mm_layers": 2, "reg_weight": 0.1, "lambda_coeff": 0.7, "mess_dropout": 0.0}


@pytest.mark.parametrize("cf_model", ["lightgcn", "ngcf", "mf"])
def test_agrees_with_its_reference(cf_model: str, tmp_path: Path) -> None:
    ours = reference(
        "LATTICE", tmp_path, **SETTINGS, embedding_size=8, feat_embed_dim=8, cf_model=cf_model, train_batch_size=20
    )
    model, given = ours.model, ours.arrays
    ours.place(model.user_embedding.weight, given["weight.user_embedding.weight"], ours.user_ids)
    ours.place(model.item_embedding.weight, given["weight.item_id_embedding.weight"], ours.item_ids)
    ours.place(model.modality_logits, given["weight.modal_weight"])
    modules = {"image_trs": model.projections[0], "text_trs": model.projections[1]}
    modules |= {f"GC_Linear_list.{layer}": module for layer, module in enumerate(model.sum_layers)}
    modules |= {f"Bi_Linear_list.{layer}": module for layer, module in enumerate(model.product_layers)}
    for name, module in modules.items():
        for kind in ("weight", "bias"):
            ours.place(getattr(module, kind), given[f"weight.{name}.{kind}"])
    suffix = "" if cf_model == "lightgcn" else f"_{cf_model}"
    torch.testing.assert_close(ours.scores(), torch.from_numpy(given["scores" + suffix]), rtol=1e-5, atol=1e-6)
    model.train()
    expected = torch.tensor(float(given["loss" + suffix]))
    first = model.calculate_loss(ours.batch)
    torch.testing.assert_close(first, expected, rtol=1e-5, atol=0.0)
    if suffix:
        return
    first.backward()
    for parameter, name, ids in (
        (model.modality_logits, "modal_weight", slice(None)),
        (model.projections[0].weight, "image_trs.weight", slice(None)),
        (model.projections[1].bias, "text_trs.bias", slice(None)),
        (model.content[1].values, "text_embedding.weight", ours.item_ids),
        (model.item_embedding.weight, "item_id_embedding.weight", ours.item_ids),
    ):
        gradient = torch.from_numpy(given[f"gradient.{name}"])
        torch.testing.assert_close(parameter.grad[ids], gradient, rtol=1e-4, atol=1e-6, msg=name)
    model.zero_grad()
    again = model.calculate_loss(ours.batch)
    torch.testing.assert_close(again, expected, rtol=1e-5, atol=0.0)
    again.backward()
    assert model.projections[0].weight.grad is None and model.modality_logits.grad is None
    gradient = torch.from_numpy(given["gradient_again.item_id_embedding.weight"])
    torch.testing.assert_close(model.item_embedding.weight.grad[ours.item_ids], gradient, rtol=1e-4, atol=1e-6)


def dense_item_graph(model: Any, features: list[Any]) -> torch.Tensor:
    """S by dense algebra in float64; an item without a row in a modality has no edge there."""

    def nearest(rows: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        unit = normalize(rows, dim=1)
        cosines = (unit @ unit.T).masked_fill(~present[None, :], -2.0)
        kept = torch.zeros_like(cosines)
        for item in torch.nonzero(present).squeeze(1).tolist():
            best = cosines[item].topk(model.knn_k).indices
            kept[item, best] = cosines[item, best].clamp_min(0.0)
        return kept

    def normalised(graph: torch.Tensor) -> torch.Tensor:
        degree = graph.sum(1)
        scale = torch.where(degree > 0, degree, 1.0) ** -0.5 * (degree > 0)
        return scale[:, None] * graph * scale[None, :]

    weights = model.modality_logits.detach().double().softmax(0)
    learned = original = torch.zeros(model.n_items, model.n_items, dtype=torch.float64)
    for weight, part, projection in zip(weights, features, model.projections, strict=True):
        values, present = torch.from_numpy(part.values).double(), torch.from_numpy(part.present)
        projected = values @ projection.weight.detach().double().T + projection.bias.detach().double()
        learned = learned + weight * nearest(projected, present)
        original = original + weight * normalised(nearest(values, present))
    return (1 - model.lambda_coeff) * normalised(learned) + model.lambda_coeff * original


@pytest.mark.parametrize("names", [("text",), ("image", "text", "again")])
def test_item_graph_where_content_is_missing(names: tuple[str, ...], toy: dict[str, Any]) -> None:
    model, train = built("LATTICE", with_modalities(toy, *names), **SETTINGS)
    with torch.no_grad():
        model.modality_logits.copy_(torch.tensor([0.3, -0.5, 0.1])[: len(names)])
    features = list(train.dataset.item_features.values())
    assert not all(part.present[1:].all() for part in features)
    graph = dense_item_graph(model, features)
    found = model._as_it_is(*model.learned_edges()).to_dense()
    torch.testing.assert_close(found.double(), graph, rtol=1e-4, atol=1e-6)
    ids = model.item_embedding.weight.detach().double()
    expected = graph @ graph @ ids
    for training in (True, False):  # with gradients, and without
        view = model.train(training)._content_view()
        torch.testing.assert_close(view.double(), expected, rtol=1e-4, atol=1e-6)


def test_an_epoch_builds_one_graph_and_evaluation_its_own(toy: dict[str, Any], monkeypatch: Any) -> None:
    model, train = built("LATTICE", toy)
    counted = []
    edges = model.learned_edges
    monkeypatch.setattr(model, "learned_edges", lambda: counted.append(model.training) or edges())
    batch = next(iter(train))
    for _ in range(2):
        model.train()
        model.train()  # as GUIDER's two passes do
        for _ in range(3):
            model.calculate_loss(batch)
        model.eval()
        for _ in range(3):
            model.predict(batch)
    assert counted == [True, False, True, False]


def test_the_view_of_an_item_without_content_is_empty(toy: dict[str, Any]) -> None:
    model, _ = built("LATTICE", with_modalities(toy, "text"), **SETTINGS)
    absent = torch.nonzero(~model.content[0].present).squeeze(1)
    assert len(absent) > 1
    assert torch.equal(model.train()._content_view()[absent], torch.zeros(len(absent), 16))


def test_wrong_settings_are_named(toy: dict[str, Any]) -> None:
    with pytest.raises(GuiderError, match="cf_model is 'gcn'"):
        built("LATTICE", toy, cf_model="gcn")
    with pytest.raises(GuiderError, match="mess_dropout is 1"):
        built("LATTICE", toy, mess_dropout=1.0)
