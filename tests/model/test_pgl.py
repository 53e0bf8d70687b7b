"""PGL against MMRec's implementation, and its subgraphs by dense algebra."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from backbones import built, with_modalities
from reference import Reference, reference
from torch.nn.functional import normalize

from recbole_guider.graph import bipartite_adjacency
from recbole_guider.models.pgl import principal_subgraph
from recbole_guider.utils.errors import GuiderError

pytestmark = pytest.mark.slow

SETTINGS = {"knn_k": 4, "cl_weight": 0.1, "feature_dropout": 0.0}


def with_weights(folder: Path, **settings: Any) -> Reference:
    weights = {"image": 0.3, "text": 0.7}
    ours = reference("PGL", folder, **SETTINGS, modality_weights=weights, embedding_size=8, **settings)
    for place, name in enumerate(("image", "text")):
        ours.place(ours.model.user_embeddings[place].weight, ours.arrays[f"weight.user_{name}.weight"], ours.user_ids)
        for kind in ("weight", "bias"):
            ours.place(getattr(ours.model.projections[place], kind), ours.arrays[f"weight.{name}_trs.{kind}"])
    return ours


def test_agrees_with_its_reference(tmp_path: Path) -> None:
    ours = with_weights(tmp_path)
    model, given = ours.model, ours.arrays
    torch.testing.assert_close(ours.scores(), torch.from_numpy(given["scores"]), rtol=1e-5, atol=1e-6)
    model.train()
    users, items = given["kept"]
    assert len(users) == int(len(given["users"]) * 0.3)
    model._training_graph = bipartite_adjacency(
        ours.user_ids[users], ours.item_ids[items], model.n_users, model.n_items
    )
    loss = model.calculate_loss(ours.batch)
    torch.testing.assert_close(loss, torch.tensor(float(given["loss"])), rtol=1e-5, atol=0.0)
    loss.backward()
    for gradient, name in (
        (model.user_embeddings[1].weight.grad[ours.user_ids], "user_text.weight"),
        (model.projections[0].weight.grad, "image_trs.weight"),
        (model.content[1].values.grad[ours.item_ids], "text_embedding.weight"),
    ):
        expected = torch.from_numpy(given[f"gradient.{name}"])
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6, msg=name)


def test_agrees_with_its_reference_on_the_global_subgraph(tmp_path: Path) -> None:
    ours = with_weights(tmp_path, subgraph="global")
    model, given = ours.model.train(), ours.arrays
    block = model.training_graph().to_dense()[ours.user_ids][:, model.n_users + ours.item_ids]
    torch.testing.assert_close(block, torch.from_numpy(given["principal"]), rtol=1e-4, atol=1e-6)
    loss = model.calculate_loss(ours.batch)
    torch.testing.assert_close(loss, torch.tensor(float(given["loss_global"])), rtol=1e-5, atol=0.0)
    torch.testing.assert_close(ours.scores(), torch.from_numpy(given["scores"]), rtol=1e-5, atol=1e-6)


def test_principal_subgraph_by_dense_algebra(toy: dict[str, Any]) -> None:
    model, _ = built("PGL", toy, subgraph="global", embedding_size=16)
    graph = model.graph.to_dense().double()
    u, s, v = np.linalg.svd(graph[: model.n_users, model.n_users :].numpy())
    expected = sum(s[j] * s[6 + j] * np.outer(u[:, j], v[j]) for j in range(2))
    expected[np.abs(expected) < 1e-3] = 0.0
    got = model.train().training_graph()
    block = got.to_dense()[: model.n_users, model.n_users :]
    np.testing.assert_allclose(block, expected, rtol=1e-4, atol=1e-7)
    assert torch.equal(got.to_dense(), got.to_dense().T)
    assert not got.to_dense()[0].any() and not got.to_dense()[model.n_users].any()  # padding
    assert model.training_graph() is got  # the same in every epoch
    with pytest.raises(GuiderError, match="embedding_size is 4"):
        principal_subgraph(model.graph, model.n_users, 4)


def test_local_subgraph_is_drawn_once_an_epoch(toy: dict[str, Any]) -> None:
    model, train = built("PGL", toy)
    drawn = []
    for _ in range(2):
        model.train()
        assert model.training_graph() is model.training_graph()
        drawn.append(model.training_graph().to_dense())
        assert int((drawn[-1] > 0).sum()) == 2 * int(model.edges.n_edges * (1 - 0.7))
    assert not torch.equal(*drawn)


@pytest.mark.parametrize("names", [("image",), ("text",), ("image", "text", "again")])
def test_encoding_by_dense_algebra_where_content_is_missing(names: tuple[str, ...], toy: dict[str, Any]) -> None:
    model, train = built("PGL", with_modalities(toy, *names), n_mm_layers=2)
    items = []
    for place, part in enumerate(train.dataset.item_features.values()):
        content = normalize(model.projections[place](torch.from_numpy(part.values)))
        items.append(content * torch.from_numpy(part.present)[:, None])
    v = torch.cat(items, dim=1)
    layer = torch.cat([torch.cat([embedding.weight for embedding in model.user_embeddings], dim=1), v])
    graph, item_graph = model.graph.to_dense(), model.item_graph.to_dense()
    mean = (layer + graph @ layer + graph @ graph @ layer) / 3
    encoding = model.eval().encode()
    torch.testing.assert_close(encoding.users, mean[: model.n_users])
    torch.testing.assert_close(encoding.items, mean[model.n_users :] + item_graph @ item_graph @ v)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"subgraph": "both"}, "subgraph is 'both'"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"feature_dropout": 1.0}, "feature_dropout is 1.0"),
        ({"temperature": 0.0}, "temperature is 0.0"),
    ],
)
def test_refuses_what_it_cannot_use(changes: dict[str, Any], message: str, toy: dict[str, Any]) -> None:
    with pytest.raises(GuiderError, match=message):
        built("PGL", toy, **changes)
