"""MMGCN against MMRec's implementation, against dense algebra, and what must not matter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from backbones import built, with_modalities
from reference import reference
from torch.nn.functional import leaky_relu, normalize

from recbole_guider.utils.errors import GuiderError


def test_agrees_with_its_reference(tmp_path: Path) -> None:
    ours = reference(
        "MMGCN", tmp_path, reg_weight=0.1, embedding_size=8, latent_size={"image": 6, "text": None}
    )
    model, given = ours.model, ours.arrays
    n_users = int(given["n_users"])
    ours.place(model.user_embedding.weight, given["weight.id_embedding"][:n_users], ours.user_ids)
    ours.place(model.item_embedding.weight, given["weight.id_embedding"][n_users:], ours.item_ids)
    image, text = model.networks
    ours.place(image.projection.weight, given["weight.v_gcn.MLP.weight"])
    ours.place(image.projection.bias, given["weight.v_gcn.MLP.bias"])
    for network, theirs in ((image, "v_gcn"), (text, "t_gcn")):
        ours.place(network.preference, given[f"weight.{theirs}.preference"], ours.user_ids)
        for layer in range(3):
            ours.place(network.messages[layer].weight, given[f"weight.{theirs}.conv_embed_{layer + 1}.weight"].T)
            for part, name in ((network.own, "linear_layer"), (network.joint, "g_layer")):
                for kind in ("weight", "bias"):
                    ours.place(getattr(part[layer], kind), given[f"weight.{theirs}.{name}{layer + 1}.{kind}"])
    torch.testing.assert_close(ours.scores(), torch.from_numpy(given["scores"]), rtol=1e-5, atol=1e-6)

    loss = model.train().calculate_loss(ours.batch)
    # the reference regularises the image preferences only
    of_text = 0.1 * text.preference[1:].square().mean()
    torch.testing.assert_close(loss - of_text, torch.tensor(float(given["loss"])), rtol=1e-5, atol=0.0)
    (loss - of_text).backward()
    for parameter, expected in (
        (model.user_embedding.weight.grad[ours.user_ids], given["gradient.id_embedding"][:n_users]),
        (model.item_embedding.weight.grad[ours.item_ids], given["gradient.id_embedding"][n_users:]),
        (image.preference.grad[ours.user_ids], given["gradient.v_gcn.preference"]),
        (text.preference.grad[ours.user_ids], given["gradient.t_gcn.preference"]),
        (image.messages[1].weight.grad, given["gradient.v_gcn.conv_embed_2.weight"].T),
    ):
        torch.testing.assert_close(parameter, torch.from_numpy(expected), rtol=1e-4, atol=1e-7)


def test_combination_by_a_sum_is_the_paper_s_formula(toy: dict[str, Any]) -> None:
    model, _ = built("MMGCN", with_modalities(toy, "text"), combination="add", n_layers=2, latent_size=4)
    network, content, graph = model.networks[0], model.content[0], model.graph.to_dense()
    torch.testing.assert_close(graph.sum(1)[1:model.n_users], torch.ones(model.n_users - 1))
    items = network.projection(content.values) * content.present[:, None]
    x = normalize(torch.cat([network.preference, items]))
    identity = torch.cat([model.user_embedding.weight, model.item_embedding.weight])
    for layer in range(2):
        gathered = leaky_relu(graph @ x @ network.messages[layer].weight.T)
        x = leaky_relu(network.joint[layer](gathered) + leaky_relu(network.own[layer](x)) + identity)
    users, items = model.embeddings()
    torch.testing.assert_close(torch.cat([users, items]), x, rtol=1e-5, atol=1e-6)


def test_only_wide_modalities_are_projected(toy: dict[str, Any]) -> None:
    model, _ = built("MMGCN", toy, latent_size=6)  # image is 8 wide, text 5
    assert [network.preference.shape[1] for network in model.networks] == [6, 5]


def test_settings_that_cannot_be(toy: dict[str, Any]) -> None:
    for changes, message in (
        ({"combination": "product"}, "combination is 'product'"),
        ({"n_layers": 0}, "n_layers is 0"),
        ({"latent_size": {"sound": 8}}, "latent_size names sound"),
        ({"latent_size": {"text": 0}}, r"latent_size\.text is 0"),
    ):
        with pytest.raises(GuiderError, match=message):
            built("MMGCN", toy, **changes)
