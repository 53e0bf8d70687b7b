"""SLMRec against MMRec's implementation, its tasks against loops, and what must not matter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from backbones import built, with_modalities
from reference import reference
from torch.nn.functional import cross_entropy, normalize

from recbole_guider.utils.errors import GuiderError

pytestmark = pytest.mark.slow


def test_agrees_with_its_reference(tmp_path: Path) -> None:
    ours = reference(
        "SLMRec", tmp_path, embedding_size=8, n_layers=3, temperature=0.2, ssl_weight=0.3, ssl_temperature=0.5
    )
    model, given = ours.model, ours.arrays
    ours.place(model.user_embedding.weight, given["weight.embedding_user.weight"], ours.user_ids)
    ours.place(model.item_embedding.weight, given["weight.embedding_item.weight"], ours.item_ids)
    for linear, name in (
        (model.projections[0], "v_dense"),
        (model.projections[1], "t_dense"),
        (model.user_fusion, "embedding_user_after_GCN"),
        (model.item_fusion, "embedding_item_after_GCN"),
        (model.coarse[0], "g_i_iv"),
        (model.fine[0], "g_v_iv"),
        (model.fine[1], "g_t_ivat"),
    ):
        for kind in ("weight", "bias"):
            ours.place(getattr(linear, kind), given[f"weight.{name}.{kind}"])
    # the reference's acoustic step and its textual one are one map
    first, second = given["weight.g_iv_iva.weight"], given["weight.g_iva_ivat.weight"]
    ours.place(model.coarse[1].weight, second @ first)
    ours.place(
        model.coarse[1].bias, second @ given["weight.g_iv_iva.bias"] + given["weight.g_iva_ivat.bias"]
    )
    torch.testing.assert_close(ours.scores().sigmoid(), torch.from_numpy(given["scores"]), rtol=1e-5, atol=0.0)
    loss = model.train().calculate_loss(ours.batch)
    torch.testing.assert_close(loss, torch.tensor(float(given["loss"])), rtol=1e-5, atol=0.0)
    loss.backward()
    for found, name in (
        (model.user_embedding.weight.grad[ours.user_ids], "embedding_user"),
        (model.item_embedding.weight.grad[ours.item_ids], "embedding_item"),
        (model.projections[1].weight.grad, "t_dense"),
        (model.fine[0].weight.grad, "g_v_iv"),
        (model.item_fusion.weight.grad, "embedding_item_after_GCN"),
    ):
        expected = torch.from_numpy(given[f"gradient.{name}.weight"])
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("task", ["FD", "FM", "FD+FM"])
def test_tasks_of_two_views(task: str, toy: dict[str, Any]) -> None:
    model, train = built("SLMRec", toy, ssl_task=task, n_layers=2, dropout=0.4, ssl_weight=0.7, ssl_temperature=0.5)
    batch = next(iter(train))
    state = model.get_extra_state()
    with torch.no_grad():
        found = model.train().auxiliary_loss(model.encode(), batch)

        masking = torch.Generator().set_state(state["masking"])
        draws = torch.Generator().set_state(state["dropout"])
        masked = torch.randperm(3, generator=masking)[:2].tolist() if "FM" in task else [None, None]
        assert "FM" not in task or masked[0] != masked[1]
        graph, size, users, items = model.graph.to_dense(), 16, [], []
        for hidden in masked:
            channels = [model.item_embedding.weight]
            for content, projection in zip(model.content, model.projections, strict=True):
                channels.append(projection(normalize(content.values)) * content.present[:, None])
            layers = []
            for number, channel in enumerate(channels):
                channel = torch.zeros_like(channel) if number == hidden else channel
                layers.append(torch.cat([model.user_embedding.weight, channel]))
            layer = total = torch.cat(layers, dim=1)
            for _ in range(2):
                layer = graph @ layer
                if "FD" in task:
                    layer = layer * (torch.rand(layer.shape, generator=draws) >= 0.4) / 0.6
                total = total + layer
            assert total.shape[1] == 3 * size
            users.append(normalize(model.user_fusion(total[: model.n_users] / 3)[batch["user_id"]]))
            items.append(normalize(model.item_fusion(total[model.n_users :] / 3)[batch["item_id"]]))
        own = torch.arange(len(batch))
        expected = sum(cross_entropy(one @ other.T / 0.5, own) for one, other in (users, items))
    torch.testing.assert_close(found, 0.7 * expected, rtol=1e-5, atol=0.0)


def test_fine_and_coarse_compares_what_there_is(toy: dict[str, Any]) -> None:
    model, train = built("SLMRec", with_modalities(toy, "text", "image", "again"), ssl_weight=1.0, ssl_temperature=0.3)
    batch = next(iter(train))
    with torch.no_grad():
        encoding = model.encode()
        found = model.auxiliary_loss(encoding, batch)
        views = encoding.parts["items"].view(model.n_items, 4, 16)[batch["item_id"]]
        joint, expected = views[:, 0], 0.0
        for m in range(3):
            joint = model.coarse[m](joint)
            there = torch.nonzero(model.content[m].present[batch["item_id"]]).squeeze(1)
            assert (len(there) < len(batch)) == (m == 0)
            logits = joint[there] @ model.fine[m](views[there, m + 1]).T / 0.3
            expected = expected + cross_entropy(logits, torch.arange(len(there)))
        assert joint.shape[1] == 8
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0.0)


def test_settings_that_cannot_be(toy: dict[str, Any]) -> None:
    for changes in (
        {"n_layers": -1}, {"ssl_task": "FOO"}, {"temperature": 0.0}, {"ssl_temperature": -1.0}, {"dropout": 1.0},
    ):
        (key, value), = changes.items()
        with pytest.raises(GuiderError, match=f"^{key} is {value!r}"):
            built("SLMRec", toy, **changes)
