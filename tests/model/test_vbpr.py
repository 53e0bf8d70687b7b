"""VBPR against MMRec's implementation, and what it does with biases, modalities and padding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from backbones import built
from recbole.data.interaction import Interaction
from reference import reference


def test_agrees_with_its_reference(tmp_path: Path) -> None:
    ours = reference("VBPR", tmp_path, reg_weight=0.1, embedding_size=8)
    model, given = ours.model, ours.arrays
    ours.place(model.user_embedding.weight, given["weight.u_embedding"], ours.user_ids)
    ours.place(model.item_embedding.weight, given["weight.i_embedding"], ours.item_ids)
    # the reference has the text first
    text = given["content_text"].shape[1]
    weight = np.roll(given["weight.item_linear.weight"], -text, axis=1)
    ours.place(model.projection.weight, weight)
    ours.place(model.projection.bias, given["weight.item_linear.bias"])
    torch.testing.assert_close(ours.scores(), torch.from_numpy(given["scores"]), rtol=1e-5, atol=1e-6)
    loss = model.train().calculate_loss(ours.batch)
    torch.testing.assert_close(loss, torch.tensor(float(given["loss"])), rtol=1e-5, atol=0.0)
    loss.backward()
    expected = torch.from_numpy(np.roll(given["gradient.item_linear.weight"], -text, axis=1).copy())
    torch.testing.assert_close(model.projection.weight.grad, expected, rtol=1e-4, atol=1e-6)
    expected = torch.from_numpy(given["gradient.u_embedding"])
    torch.testing.assert_close(model.user_embedding.weight.grad[ours.user_ids], expected, rtol=1e-4, atol=1e-6)


def test_biases_are_the_papers(toy: dict[str, Any]) -> None:
    model, train = built("VBPR", toy, item_bias=True, reg_weight=0.1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    batch = next(iter(train))
    features = np.concatenate([part.values for part in train.dataset.item_features.values()], axis=1)
    p, q = (embedding.weight.detach().double().numpy() for embedding in (model.user_embedding, model.item_embedding))
    matrix, offset = (parameter.detach().double().numpy() for parameter in model.projection.parameters())
    bias = model.item_bias.detach().double().numpy()[:, 0]
    visual = model.content_bias.weight.detach().double().numpy()[0]
    size = q.shape[1]

    def score(user: int, item: int) -> float:
        content = matrix @ features[item] + offset
        return p[user, :size] @ q[item] + p[user, size:] @ content + bias[item] + visual @ features[item]

    users = Interaction({"user_id": torch.tensor([1, 5])})
    model.eval()
    found = model.full_sort_predict(users).view(2, -1)
    for row, user in enumerate((1, 5)):
        np.testing.assert_allclose(found[row, 3].item(), score(user, 3), rtol=1e-4)
    rank, norms = 0.0, 0.0
    columns = [batch[name].tolist() for name in ("user_id", "item_id", "neg_item_id")]
    for user, item, other in zip(*columns, strict=True):
        rank += np.logaddexp(0.0, score(user, other) - score(user, item))
    items = np.concatenate([q, features @ matrix.T + offset], axis=1)
    norms = sum(np.linalg.norm(rows) for rows in (p[columns[0]], items[columns[1]], items[columns[2]]))
    expected = (rank + 0.1 * norms) / len(batch)
    np.testing.assert_allclose(model.train().calculate_loss(batch).item(), expected, rtol=1e-5)


def test_missing_rows_count_as_the_mean(toy: dict[str, Any]) -> None:
    model, train = built("VBPR", toy)
    text = train.dataset.item_features["text"]
    absent = ~text.present
    absent[0] = False
    assert absent.any()
    content = model.projection(model.content)
    mean = model.content.clone()
    mean[absent, -text.dim :] = torch.from_numpy(text.values[text.present].mean(axis=0))
    torch.testing.assert_close(content, model.projection(mean))
