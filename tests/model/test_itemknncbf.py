"""ItemKNNCBF against MMRec's implementation and a loop over pairs of items."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from backbones import built, pairs_of
from recbole.data.interaction import Interaction
from reference import reference

from recbole_guider import load_data_and_model, run_recbole_guider
from recbole_guider.utils.errors import GuiderError


def test_agrees_with_its_reference(tmp_path: Path) -> None:
    ours = reference("ItemKNNCBF", tmp_path, knn_k=4, shrink=10)
    torch.testing.assert_close(ours.scores(), torch.from_numpy(ours.arrays["scores"]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("modalities", [["text"], ["image", "text"], ["image", "text", "more"]])
def test_scores_against_a_loop(modalities: list[str], toy: dict[str, Any]) -> None:
    blocks = {**toy["modalities"], "more": toy["modalities"]["text"]}
    settings = {**toy, "modalities": {name: blocks[name] for name in modalities}}
    model, train = built("ItemKNNCBF", settings, knn_k=3, shrink=2.0)
    features = train.dataset.item_features
    n_items = model.n_items
    rows = []
    for item in range(n_items):
        parts = [part.values[item].astype(np.float64) if part.present[item] else np.zeros(part.dim)
                 for part in features.values()]
        rows.append(np.concatenate(parts))
    has_content = [any(part.present[item] for part in features.values()) for item in range(n_items)]
    assert has_content.count(False) == (4 if modalities == ["text"] else 1)  # padding, and three without text
    similarity = np.zeros((n_items, n_items))
    for i in range(n_items):
        candidates = {
            j: rows[i] @ rows[j] / (np.linalg.norm(rows[i]) * np.linalg.norm(rows[j]) + 2.0)
            for j in range(n_items) if has_content[i] and has_content[j]
        }
        for j in sorted(candidates, key=candidates.__getitem__, reverse=True)[:3]:
            similarity[i, j] = candidates[j]
    expected = np.zeros((model.n_users, n_items))
    for user, item in pairs_of(train.dataset):
        expected[user] += similarity[item]
    users = Interaction({"user_id": torch.arange(model.n_users)})
    scores = model.full_sort_predict(users).view(model.n_users, n_items)
    np.testing.assert_allclose(scores.numpy(), expected, rtol=1e-5, atol=1e-6)
    assert not scores[:, ~torch.tensor(has_content)].any()
    pairs = Interaction({"user_id": torch.tensor([3, 3, 7, 60]), "item_id": torch.tensor([1, 2, 40, 5])})
    torch.testing.assert_close(model.predict(pairs), scores[pairs["user_id"], pairs["item_id"]])


def test_a_run_scores_as_the_model_it_reloads(toy: dict[str, Any]) -> None:
    result = run_recbole_guider("ItemKNNCBF", "toy", config_dict=toy)
    assert result["test_result"]["recall@5"] > 0.3  # .125 at random
    _, model, _, _, _, test = load_data_and_model(result["model_file"])
    fresh = built("ItemKNNCBF", toy)[0]
    batch = next(iter(test))[0]
    assert torch.equal(model.full_sort_predict(batch), fresh.full_sort_predict(batch))


def test_it_cannot_be_denoised(toy: dict[str, Any]) -> None:
    with pytest.raises(GuiderError, match="model ItemKNNCBF is of type traditional: GUIDER denoises general"):
        run_recbole_guider("GUIDER_ItemKNNCBF", "toy", config_dict=toy)
    with pytest.raises(GuiderError, match="guider.teacher: model ItemKNNCBF is of type traditional"):
        run_recbole_guider("FREEDOM", "toy", config_dict={**toy, "guider": {"teacher": "ItemKNNCBF"}})


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"knn_k": 0}, "knn_k is 0"), ({"shrink": -1}, "shrink is -1")],
)
def test_refuses_what_it_cannot_use(changes: dict[str, Any], message: str, toy: dict[str, Any]) -> None:
    with pytest.raises(GuiderError, match=message):
        built("ItemKNNCBF", toy, **changes)
