"""MVGAE against MMRec's and the authors' implementations, against dense algebra, and what must not matter."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from backbones import built, with_modalities
from reference import Reference, reference
from torch.nn.functional import leaky_relu, logsigmoid, normalize

from recbole_guider.utils.errors import GuiderError

pytestmark = pytest.mark.slow


def _placed(folder: Path, **settings: Any) -> Reference:
    ours = reference("MVGAE", folder, embedding_size=8, latent_size=6, n_layers=1, **settings)
    model, given = ours.model, ours.arrays
    ours.place(model.item_embedding.weight, given["weight.collaborative"], ours.item_ids)
    for encoder, name in zip(model.encoders, ("v_gcn", "t_gcn", "c_gcn"), strict=True):
        ours.place(encoder.preference, given[f"weight.{name}.preference"], ours.user_ids)
        pairs = [(encoder.projection, "MLP"), (encoder.layers[0], "g_layer1")]
        convolutions = [(encoder.convolutions[0], 1)]
        for number, (convolution, layer, own) in ((4, encoder.mean), (5, encoder.log_variance)):
            convolutions.append((convolution, number))
            pairs += [(layer, f"g_layer{number}"), (own, f"linear_layer{number}")]
        for linear, theirs in pairs:
            for kind in ("weight", "bias"):
                ours.place(getattr(linear, kind), given[f"weight.{name}.{theirs}.{kind}"])
        for linear, number in convolutions:
            ours.place(linear.weight, given[f"weight.{name}.conv_embed_{number}.weight"].T)
            ours.place(linear.bias, given[f"weight.{name}.conv_embed_{number}.bias"])
    return ours


def test_agrees_with_mmrec(tmp_path: Path) -> None:
    ours = _placed(tmp_path, beta=0.5, negatives="batch")
    model, given = ours.model, ours.arrays
    torch.testing.assert_close(ours.scores(), torch.from_numpy(given["scores"]), rtol=1e-5, atol=1e-6)
    batch = ours.batch
    loss = model.calculate_loss(batch) * len(batch)  # in evaluation mode: no noise, no dropout
    torch.testing.assert_close(loss, torch.tensor(float(given["batch.loss"])), rtol=1e-5, atol=0.0)
    loss.backward()
    for found, name in (
        (model.item_embedding.weight.grad[ours.item_ids], "collaborative"),
        (model.encoders[0].preference.grad[ours.user_ids], "v_gcn.preference"),
        (model.encoders[2].preference.grad[ours.user_ids], "c_gcn.preference"),
        (model.encoders[1].log_variance[0].weight.grad.T, "t_gcn.conv_embed_5.weight"),
        (model.encoders[0].convolutions[0].weight.grad.T, "v_gcn.conv_embed_1.weight"),
    ):
        torch.testing.assert_close(found, torch.from_numpy(given[f"gradient.{name}"]), rtol=1e-4, atol=2e-5, msg=name)


def test_agrees_with_the_authors(tmp_path: Path) -> None:
    ours = _placed(tmp_path, beta=1.0, negatives="own")
    ours.model.eval()
    loss = ours.model.calculate_loss(ours.batch) * len(ours.batch)
    torch.testing.assert_close(loss, torch.tensor(float(ours.arrays["loss"])), rtol=1e-5, atol=0.0)


def _encoded(encoder: Any, items: torch.Tensor, graph: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    def convolved(convolution: Any, x: torch.Tensor) -> torch.Tensor:
        return leaky_relu(normalize(graph @ x @ convolution.weight.T + convolution.bias))

    x = normalize(torch.cat([encoder.preference, items]))
    for convolution, layer in zip(encoder.convolutions, encoder.layers, strict=True):
        x = leaky_relu(layer(convolved(convolution, x)))
    return tuple(  # type: ignore[return-value]
        layer(convolved(convolution, x)) + leaky_relu(own(x))
        for convolution, layer, own in (encoder.mean, encoder.log_variance)
    )


def test_is_a_product_of_the_experts_there_are(toy: dict[str, Any]) -> None:
    model, _ = built("MVGAE", with_modalities(toy, "text", "image", "again"), n_layers=2, sigmoid=False)
    model.content[1].present[5] = model.content[2].present[5] = False
    model.described[1:3, model.n_users + 5] = False
    absent = int(torch.nonzero(~model.content[0].present)[-1])
    graph = model.graph.to_dense()
    experts = []
    for content, encoder in zip(model.content, model.encoders[:-1], strict=True):
        items = encoder.projection(content.values) * content.present[:, None]
        experts.append((*_encoded(encoder, items, graph), content.present))
    collaborative = model.encoders[-1]
    experts.append(
        (*_encoded(collaborative, collaborative.projection(model.item_embedding.weight), graph), None)
    )
    model.eval()
    users, items = model.embeddings()
    for item in (1, 5, absent):
        there = [m for m in range(4) if m == 3 or bool(experts[m][2][item])]
        assert (item == 1) == (len(there) == 4)
        precision = [torch.exp(-experts[m][1][model.n_users + item].double()) for m in there]
        mean = [experts[m][0][model.n_users + item].double() for m in there]
        expected = sum(t * mu for t, mu in zip(precision, mean, strict=True)) / sum(precision)
        torch.testing.assert_close(items[item], expected.float(), rtol=1e-4, atol=1e-5)


def test_training_samples_around_the_mean_and_drops(toy: dict[str, Any]) -> None:
    model, _ = built("MVGAE", toy, sigmoid=False, dropout=0.0)
    model.eval()
    mean = torch.cat(model.embeddings())
    model.train()
    with torch.no_grad():
        draws = torch.stack([torch.cat(model.embeddings()) for _ in range(400)])
    spread = (0.5 * model.encode().parts["log_variance"].detach()).exp()
    torch.testing.assert_close(draws.std(0) / (0.1 * spread), torch.ones_like(mean), rtol=0.2, atol=0.0)
    torch.testing.assert_close(draws.mean(0), mean, rtol=0.0, atol=0.05 * float(spread.max()))

    dropping, _ = built("MVGAE", toy, sigmoid=False, dropout=0.5)
    a, b = (dropping.encode().parts["mean"] for _ in range(2))
    assert (a - b).abs().max() > 1e-3


@pytest.mark.parametrize("negatives", ["own", "batch"])
def test_loss_skips_pairs_without_content(negatives: str, toy: dict[str, Any]) -> None:
    model, train = built("MVGAE", with_modalities(toy, "text"), negatives=negatives, beta=0.3)
    batch = next(iter(train))
    model.eval()
    with torch.no_grad():
        encoding = model.encode()
        found = float(model.calculate_loss(batch))
    present = torch.ones(model.n_items, dtype=torch.bool)
    assert not model.content[0].present[batch["item_id"]].all()
    expected = 0.0
    for name, there in (("", present), ("_0", model.content[0].present), ("_1", present)):
        mean, v = encoding.parts[f"mean{name}"], encoding.parts[f"log_variance{name}"]
        z = mean.sigmoid()
        nodes = [
            row for row in range(1, model.n_users + model.n_items)
            if row != model.n_users and (row < model.n_users or there[row - model.n_users])
        ]
        kl = np.mean([float(-0.5 * (1 + v[row] - mean[row] ** 2 - v[row].exp()).sum()) for row in nodes])
        expected += 0.3 * kl / len(batch)
        for row in range(len(batch)):
            user, item, other = (int(batch[key][row]) for key in ("user_id", "item_id", "neg_item_id"))
            others = [other] if negatives == "own" else batch["neg_item_id"].tolist()
            others = [each for each in others if there[each]]
            if there[item] and others:
                y = [float(z[user] @ z[model.n_users + each]) for each in (item, *others)]
                margin = torch.tensor(y[0] - max(y[1:]))
                expected -= float(logsigmoid(margin)) / math.log(2) / len(batch)
    assert found == pytest.approx(expected, rel=1e-5)


def test_settings_that_cannot_be(toy: dict[str, Any]) -> None:
    for changes in ({"negatives": "all"}, {"dropout": 1.0}, {"n_layers": -1}):
        (key, value), = changes.items()
        with pytest.raises(GuiderError, match=f"{key} is {value!r}"):
            built("MVGAE", toy, **changes)


@pytest.mark.parametrize(
    ("changes", "cosines"),
    [
        ({"guider": True}, True),
        ({"guider": {"student_loss": "own"}}, False),
        ({"guider": {"dbpr": {"form": "pairwise"}}}, False),
        ({"guider": {"teacher": "MVGAE", "student_loss": "own"}}, False),
        ({"denoising": {"method": "none", "loss_form": "softmax"}}, True),
        ({"denoising": "t-bpr"}, False),
    ],
)
def test_cosines_are_those_of_vectors_without_a_sigmoid(
    changes: dict[str, Any], cosines: bool, toy: dict[str, Any]
) -> None:
    model, _ = built("MVGAE", toy, **changes)
    users, items = model.eval().embeddings()
    assert bool((users[1:] < 0).any()) is bool((items[1:] < 0).any()) is cosines
    if getattr(model, "teacher", None) is not None:
        teacher_users, teacher_items = model.teacher.eval().embeddings()
        assert (teacher_users[1:] < 0).any() and (teacher_items[1:] < 0).any()
