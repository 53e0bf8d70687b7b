"""DA-MRS against MMRec's implementation, and its loss where content is missing against loops."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from backbones import built, with_modalities
from reference import reference
from torch.nn.functional import logsigmoid, normalize

import recbole_guider.models.damrs as damrs_module
from recbole_guider.models.damrs import _NeighbourLoss
from recbole_guider.utils.errors import GuiderError

pytestmark = pytest.mark.slow

SETTINGS = {"knn_k": 4, "n_mm_layers": 2, "neighbour_weight": 0.1, "kl_weight": 0.5}


def test_agrees_with_its_reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(damrs_module, "_BLOCK_ENTRIES", 200)
    ours = reference("DAMRS", tmp_path, **SETTINGS, embedding_size=8)
    model, given = ours.model, ours.arrays
    assert torch.equal(ours.item_ids, torch.arange(1, model.n_items))  # equal counts are broken alike
    ours.place(model.user_embedding.weight, given["weight.user_embedding.weight"], ours.user_ids)
    ours.place(model.item_embedding.weight, given["weight.item_id_embedding.weight"], ours.item_ids)
    torch.testing.assert_close(ours.scores(), torch.from_numpy(given["scores"]), rtol=1e-5, atol=1e-6)
    loss = model.train().calculate_loss(ours.batch)
    torch.testing.assert_close(loss, torch.tensor(float(given["loss"])), rtol=1e-5, atol=0.0)
    loss.backward()
    for gradient, name in (
        (model.user_embedding.weight.grad[ours.user_ids], "user_embedding.weight"),
        (model.item_embedding.weight.grad[ours.item_ids], "item_id_embedding.weight"),
    ):
        expected = torch.from_numpy(given[f"gradient.{name}"])
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("names", [("text",), ("image", "text", "again")])
def test_item_by_item_where_content_is_missing(names: tuple[str, ...], toy: dict[str, Any]) -> None:
    model, train = built("DAMRS", with_modalities(toy, *names), **SETTINGS)
    with torch.no_grad():
        for weight in model.parameters():
            weight *= 5.0
            weight.requires_grad_(False)  # only values are compared, and graphs of loops are slow
    encoding = model.train().encode()
    ids = model.item_embedding.weight
    has = [torch.from_numpy(part.present) for part in train.dataset.item_features.values()]
    has.append(torch.arange(model.n_items) > 0)
    assert not all(view[1:].all() for view in has)
    views = [graph.to_dense() @ graph.to_dense() @ ids for graph in model.item_graphs]
    own = [[place for place, view in enumerate(has) if view[item]] for item in range(model.n_items)]
    content = torch.zeros(model.n_items, 16)
    for item in range(1, model.n_items):
        content[item] = torch.stack([views[place][item] for place in own[item]]).mean(0)
    behaviour, users = encoding.items - content, encoding.users
    nodes = torch.cat([model.user_embedding.weight, ids])
    graph = model.graph.to_dense()
    mean = (nodes + graph @ nodes + graph @ graph @ nodes) / 3
    torch.testing.assert_close(users, mean[: model.n_users])
    torch.testing.assert_close(behaviour[1:], mean[model.n_users + 1 :], rtol=1e-5, atol=1e-6)

    batch = next(iter(train))[:50]
    triples = list(zip(*(batch[name].tolist() for name in ("user_id", "item_id", "neg_item_id")), strict=True))
    unit = [normalize(view) for view in views]
    sampled = [torch.sigmoid(users[u] @ unit[place][j]) for u, _, j in triples for place in own[j]]
    usual = torch.stack(sampled).mean().detach()
    ranking, flips = torch.tensor(0.0), 0
    for u, i, j in triples:
        z = torch.stack([torch.sigmoid(users[u] @ unit[place][i]) for place in own[i]]).detach()
        spread = z.var() if len(z) > 1 else torch.tensor(0.0)
        margin = users[u] @ (encoding.items[i] - encoding.items[j])
        ranking = ranking - (z.mean() * torch.exp(-spread) ** 2).clamp(0, 1) * logsigmoid(margin)
        if z.mean() < usual:
            flips += 1
            ranking = ranking - (z.max() - usual).clamp(0, 1) * logsigmoid(-margin)
    assert 0 < flips < len(triples)
    torch.testing.assert_close(model.ranking_loss(encoding, batch), ranking / len(triples), rtol=1e-4, atol=1e-6)

    items = sorted({item for _, i, j in triples for item in (i, j)})
    members = [torch.nonzero(view).squeeze(1) for view in has]
    averages = []
    for place, candidates in enumerate(members):
        terms = []
        for item in items:
            if not has[place][item]:
                continue
            shares = torch.zeros(len(own[item]), model.n_items)
            for row, other in enumerate(own[item]):
                shares[row, members[other]] = (unit[other][members[other]] @ unit[other][item]).softmax(0)
            mine = shares[own[item].index(place)]
            joint = (shares.sum(0) + mine).tolist()
            first = sorted(candidates.tolist(), key=lambda k: -joint[k])[:10]
            rest = [k for k in candidates.tolist() if k not in first]
            second = sorted(rest, key=lambda k: -mine[k].item())[:10]
            weight = (unit[place] @ unit[place][item] / 0.2).exp()
            terms.append(-torch.log(weight[first].sum() / weight[candidates].sum()))
            terms[-1] = terms[-1] - torch.log(weight[second].sum() / weight[rest].sum())
        averages.append(torch.stack(terms).mean())
    expected = 0.1 * torch.stack(averages).mean()
    alignment = []
    for u in sorted({u for u, _, _ in triples}):
        for item in items:
            p = torch.sigmoid(users[u].double() @ normalize(behaviour[item].double(), dim=0))
            q = torch.sigmoid(users[u].double() @ normalize(content[item].double(), dim=0))
            both = [a * torch.log(a / b) + (1 - a) * torch.log((1 - a) / (1 - b)) for a, b in ((p, q), (q, p))]
            alignment.append(sum(both))
    expected = expected + 0.5 * torch.stack(alignment).mean().float()
    torch.testing.assert_close(model.auxiliary_loss(encoding, batch), expected, rtol=1e-4, atol=1e-6)


def test_blocks_change_nothing(toy: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    gradients = []
    for entries in (2**22, 100):
        monkeypatch.setattr(damrs_module, "_BLOCK_ENTRIES", entries)
        model, train = built("DAMRS", toy, **SETTINGS)
        model.train().calculate_loss(next(iter(train))).backward()
        gradients.append(model.item_embedding.weight.grad)
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-7)


def test_behaviour_links_what_shares_users(toy: dict[str, Any]) -> None:
    model, train = built("DAMRS", toy, behaviour_knn_k=3)
    buyers: dict[int, set[int]] = {item: set() for item in range(model.n_items)}
    for user, item in zip(*(train.dataset.inter_feat[name].tolist() for name in ("user_id", "item_id")), strict=True):
        buyers[item].add(user)
    expected = torch.zeros(model.n_items, model.n_items)
    for item in range(1, model.n_items):
        common = {other: len(buyers[item] & users) for other, users in buyers.items() if other != item}
        linked = sorted((other for other in common if common[other] >= 2), key=lambda k: (-common[k], k))[:3]
        expected[item, [item, *linked]] = 1.0
    scale = (expected.sum(1) + 1e-7) ** -0.5
    expected = scale[:, None] * expected * scale
    torch.testing.assert_close(model.item_graphs[-1].to_dense(), expected)


def test_a_view_of_few_items_has_few_neighbours() -> None:
    generator = torch.Generator().manual_seed(0)
    views = normalize(torch.randn(3, 9, 4, generator=generator, dtype=torch.float64), dim=2)
    has = torch.zeros(3, 9, dtype=torch.bool)
    has[0, 1:], has[1, 2:6], has[2, 3] = True, True, True
    views = (views * has[..., None]).requires_grad_()
    loss = _NeighbourLoss.apply(views, has, torch.tensor([1, 3, 7]), 100, 0.2)
    loss.backward()
    assert views.grad is not None and torch.isfinite(views.grad).all() and not views.grad[2].any()
    # all of a view is in N1 or N2, so that the second term is 0, and N1 is half of it
    shares = [(view[has_] @ view[has_].T).softmax(dim=1) for view, has_ in zip(views.detach()[:2], has, strict=False)]
    places = [torch.nonzero(has_).squeeze(1).tolist() for has_ in has[:2]]
    expected = torch.tensor(0.0, dtype=torch.float64)
    for view, items in ((0, (1, 3, 7)), (1, (3,))):
        for item in items:
            joint = torch.zeros(9, dtype=torch.float64)
            for other in (0, 1):
                if has[other, item]:
                    joint[has[other]] += shares[other][places[other].index(item)] * (1 + (other == view))
            if has[2, item]:
                joint[3] += 1.0
            half = sorted(places[view], key=lambda k: -joint[k].item())[: len(places[view]) // 2]
            weight = (views.detach()[view] @ views.detach()[view, item] / 0.2).exp()
            expected -= (weight[half].sum() / weight[has[view]].sum()).log() / len(items) / 3
    torch.testing.assert_close(loss.detach(), expected, rtol=1e-5, atol=1e-6)


def test_the_gradient_of_the_neighbours_term(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(damrs_module, "_BLOCK_ENTRIES", 45)
    generator = torch.Generator().manual_seed(0)
    has = torch.rand(3, 15, generator=generator) > 0.2
    views = normalize(torch.randn(3, 15, 3, generator=generator, dtype=torch.float64), dim=2) * has[..., None]
    items = torch.tensor([1, 4, 5, 9, 14])
    assert not has[:, items].all()
    torch.autograd.gradcheck(lambda x: _NeighbourLoss.apply(x, has, items, 3, 0.3), views.requires_grad_())


def test_low_temperatures_keep_the_loss_finite(toy: dict[str, Any]) -> None:
    model, train = built("DAMRS", toy, temperature=0.03)
    loss = model.train().calculate_loss(next(iter(train)))
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(model.item_embedding.weight.grad).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"neighbours": 0}, "neighbours is 0"),
        ({"behaviour_knn_k": 0}, "behaviour_knn_k is 0"),
        ({"behaviour_minimum": 0}, "behaviour_minimum is 0"),
        ({"temperature": 0.0}, "temperature is 0.0"),
    ],
)
def test_refuses_what_it_cannot_use(changes: dict[str, Any], message: str, toy: dict[str, Any]) -> None:
    with pytest.raises(GuiderError, match=message):
        built("DAMRS", toy, **changes)
