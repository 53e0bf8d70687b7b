"""SMORE against MMRec's implementation, and its spectra where content is missing against loops."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from backbones import built, with_modalities
from reference import reference

from recbole_guider.utils.errors import GuiderError

pytestmark = pytest.mark.slow

SETTINGS = {"knn_k": 4, "n_mm_layers": 2, "n_ui_layers": 2, "reg_weight": 0.1, "cl_weight": 0.1}


def test_agrees_with_its_reference(tmp_path: Path) -> None:
    settings = {**SETTINGS, "knn_k": {"image": 4, "text": 3}}
    ours = reference("SMORE", tmp_path, **settings, embedding_size=8, train_batch_size=20)
    model, given = ours.model, ours.arrays
    ours.place(model.user_embedding.weight, given["weight.user_embedding.weight"], ours.user_ids)
    ours.place(model.item_embedding.weight, given["weight.item_id_embedding.weight"], ours.item_ids)
    filters = [given[f"weight.{name}_complex_weight"][0] for name in ("image", "text", "fusion")]
    ours.place(model.filters, np.stack(filters))
    modules = {"gate_f.0": model.gates[2][0], "gate_fusion_prefer.0": model.preferences[2][0]}
    for place, (name, letter) in enumerate((("image", "v"), ("text", "t"))):
        ours.place(model.queries[place][2].weight, given[f"weight.query_{letter}.2.weight"])
        modules |= {
            f"{name}_trs": model.projections[place],
            f"query_{letter}.0": model.queries[place][0],
            f"gate_{letter}.0": model.gates[place][0],
            f"gate_{name}_prefer.0": model.preferences[place][0],
        }
    for name, module in modules.items():
        for kind in ("weight", "bias"):
            ours.place(getattr(module, kind), given[f"weight.{name}.{kind}"])
    torch.testing.assert_close(ours.scores(), torch.from_numpy(given["scores"]), rtol=1e-5, atol=1e-6)
    loss = model.train().calculate_loss(ours.batch)
    torch.testing.assert_close(loss, torch.tensor(float(given["loss"])), rtol=1e-5, atol=0.0)
    loss.backward()
    for gradient, name in (
        (model.filters.grad[:1], "image_complex_weight"),
        (model.filters.grad[2:], "fusion_complex_weight"),
        (model.queries[1][0].weight.grad, "query_t.0.weight"),
        (model.gates[2][0].weight.grad, "gate_f.0.weight"),
        (model.preferences[0][0].weight.grad, "gate_image_prefer.0.weight"),
        (model.projections[1].weight.grad, "text_trs.weight"),
    ):
        expected = torch.from_numpy(given[f"gradient.{name}"])
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("names", [("text",), ("image", "text", "again")])
def test_item_by_item_where_content_is_missing(names: tuple[str, ...], toy: dict[str, Any]) -> None:
    model, train = built("SMORE", with_modalities(toy, *names), **{**SETTINGS, "n_mm_layers": 1, "embedding_size": 6})
    encoding = model.eval().encode()
    behaviour, side = encoding.parts["behaviour"], encoding.parts["side"]
    parts = list(train.dataset.item_features.values())
    kernels = model.filters[..., 0] + 1j * model.filters[..., 1]
    graphs = [graph.to_dense() for graph in model.item_graphs]
    ids = model.item_embedding.weight
    gated = torch.zeros(model.n_items, len(names) + 1, 6)
    for item in range(1, model.n_items):
        product = torch.ones(4, dtype=torch.complex64)
        for place, part in enumerate(parts):
            if part.present[item]:
                spectrum = torch.fft.rfft(model.projections[place](torch.from_numpy(part.values[item])), norm="ortho")
                product = product * spectrum
                signal = torch.fft.irfft(spectrum * kernels[place], n=6, norm="ortho")
                gated[item, place] = ids[item] * model.gates[place](signal)
        signal = torch.fft.irfft(product * kernels[-1], n=6, norm="ortho")
        gated[item, -1] = ids[item] * model.gates[-1](signal)
    views = torch.stack([graph @ gated[:, place] for place, graph in enumerate(graphs)], dim=1)
    for item in range(1, model.n_items):
        own = [place for place, part in enumerate(parts) if part.present[item]]
        node, fused = behaviour[model.n_users + item], views[item, -1]
        expected = model.preferences[-1](node) * fused if own else torch.zeros(6)
        for place in own:
            attention = model.queries[place](fused).softmax(0)
            expected = expected + model.preferences[place](node) * attention * views[item, place]
        torch.testing.assert_close(side[model.n_users + item], expected / (len(own) + 1), rtol=1e-4, atol=1e-6)


def test_the_fused_graph_has_the_edges_of_all_modalities(toy: dict[str, Any]) -> None:
    model, _ = built("SMORE", toy, knn_k={"image": 5, "text": 2})
    image, text, fused = (graph.to_dense() for graph in model.item_graphs)
    assert torch.equal(fused, torch.maximum(image, text))
    assert (image[1:] > 0).sum(1).max() <= 5 and (text[1:] > 0).sum(1).max() <= 2


def test_preferences_are_dropped_in_training_only(toy: dict[str, Any]) -> None:
    model, _ = built("SMORE", toy, dropout=0.4)
    model.eval()
    assert torch.equal(model.encode().users, model.encode().users)
    model.train()
    assert not torch.equal(model.encode().users, model.encode().users)


def test_an_item_without_content_is_what_behaviour_says(toy: dict[str, Any]) -> None:
    model, _ = built("SMORE", with_modalities(toy, "text"), **SETTINGS)
    encoding = model.encode()
    absent = torch.nonzero(~model.content[0].present).squeeze(1)
    assert len(absent) > 1
    assert torch.equal(encoding.items[absent], encoding.parts["behaviour"][model.n_users :][absent])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"knn_k": {"image": 3}}, "knn_k is .* one for each of image, text"),
    ],
)
def test_refuses_what_it_cannot_use(changes: dict[str, Any], message: str, toy: dict[str, Any]) -> None:
    with pytest.raises(GuiderError, match=message):
        built("SMORE", toy, **changes)
