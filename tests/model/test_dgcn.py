"""DGCN against the code published with GUIDER, and its truncated loss against a loop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from backbones import built
from reference import reference
from torch.nn.functional import logsigmoid

from recbole_guider.utils.errors import GuiderError


def test_agrees_with_its_reference_at_every_stage(tmp_path: Path) -> None:
    ours = reference("DGCN", tmp_path, n_layers=3, dropout=0.0, reg_weight=0.01, embedding_size=8)
    model, given = ours.model, ours.arrays
    ours.place(model.user_embedding.weight, given["weight.user_embeddings"], ours.user_ids)
    ours.place(model.item_embedding.weight, given["weight.item_embeddings"], ours.item_ids)
    torch.testing.assert_close(ours.scores(), torch.from_numpy(given["scores"]), rtol=1e-5, atol=1e-6)
    model.train()
    assert len(set(given["losses"].tolist())) == 4  # nothing is dropped at first, then more and more
    for iteration, expected in zip(given["iterations"].tolist(), given["losses"].tolist(), strict=True):
        model.iteration = iteration
        loss = model.calculate_loss(ours.batch)
        torch.testing.assert_close(loss, torch.tensor(expected), rtol=1e-5, atol=0.0)
    loss.backward()
    expected = torch.from_numpy(given["gradient.user_embeddings"])
    torch.testing.assert_close(model.user_embedding.weight.grad[ours.user_ids], expected, rtol=1e-4, atol=1e-6)


def test_the_worst_pairs_of_a_batch_count_less_and_less(toy: dict[str, Any]) -> None:
    model, train = built("DGCN", toy, dropout=0.0, drop_rate=0.4, drop_iterations=5)
    batch = next(iter(train))
    with torch.no_grad():
        encoding = model.train().encode()
    users, items = encoding.users, encoding.items
    pairs = zip(*(batch[name].tolist() for name in ("user_id", "item_id", "neg_item_id")), strict=True)
    losses = sorted(float(-logsigmoid(users[u] @ items[i] - users[u] @ items[j])) for u, i, j in pairs)
    for iteration in range(8):
        dropped = int(0.4 * min(iteration / 4, 1.0) * len(losses))
        assert model.iteration == iteration
        expected = sum(losses[: len(losses) - dropped]) / len(losses)
        assert float(model.ranking_loss(encoding, batch)) == pytest.approx(expected, rel=1e-5)
    # evaluation is no training batch
    model.eval()
    model.ranking_loss(encoding, batch)
    assert model.iteration == 8


def test_the_count_of_batches_travels_with_the_state(toy: dict[str, Any]) -> None:
    model, train = built("DGCN", toy, dropout=0.3)
    model.train().calculate_loss(next(iter(train)))
    model.train().calculate_loss(next(iter(train)))
    other = built("DGCN", toy, dropout=0.3)[0]
    other.load_state_dict(model.state_dict())
    assert other.iteration == 2 and int(other.n_pruned) == 2
    assert torch.equal(model.train().training_graph().to_dense(), other.train().training_graph().to_dense())


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"drop_rate": 1.0}, "drop_rate is 1.0"), ({"drop_iterations": 0}, "drop_iterations is 0")],
)
def test_refuses_what_it_cannot_use(changes: dict[str, Any], message: str, toy: dict[str, Any]) -> None:
    with pytest.raises(GuiderError, match=message):
        built("DGCN", toy, **changes)
