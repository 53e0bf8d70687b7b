"""The recommenders against dense algebra, naive loops and RecBole's own classes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from backbones import built, dense_adjacency, pairs_of
from calibrated import all_clean
from recbole.model.general_recommender import LightGCN
from recbole.trainer import Trainer
from recbole.utils import init_seed
from torch.nn.functional import logsigmoid, normalize

from recbole_guider.config.guider_config import GuiderConfig
from recbole_guider.data.dataset import build_dataset, prepare_data
from recbole_guider.guider.calibration import CLEAN_PROBABILITY, attach
from recbole_guider.losses.dbpr import dbpr_loss
from recbole_guider.models.fast_lightgcn import FastLightGCN
from recbole_guider.models.freedom import FREEDOM
from recbole_guider.quick_start import prepare_run
from recbole_guider.utils.errors import GuiderError


def test_fast_lightgcn_is_recboles_lightgcn(toy: dict[str, Any]) -> None:
    config = GuiderConfig("LightGCN", "toy", config_dict=toy, command_line=[])
    train, _, _ = prepare_data(config, build_dataset(config))
    models = []
    for kind in (LightGCN, FastLightGCN):
        init_seed(3, True)
        models.append(kind(config, train.dataset))
    theirs, ours = models
    for name, value in theirs.state_dict().items():
        assert torch.equal(value, ours.state_dict()[name])
    batch = next(iter(train))
    losses = [model.calculate_loss(batch).sum() for model in models]
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-6, atol=1e-7)
    for loss in losses:
        loss.backward()
    for name, parameter in theirs.named_parameters():
        torch.testing.assert_close(parameter.grad, dict(ours.named_parameters())[name].grad, rtol=1e-5, atol=1e-8)
    with torch.no_grad():
        torch.testing.assert_close(theirs.full_sort_predict(batch), ours.eval().full_sort_predict(batch))
        torch.testing.assert_close(theirs.predict(batch), ours.predict(batch))


def test_freedom_is_its_formulas(toy: dict[str, Any]) -> None:
    model, train = built("FREEDOM", toy, knn_k=4, dropout=0.0, reg_weight=0.1)
    dataset = train.dataset
    n_users, n_items = model.n_users, model.n_items
    content = torch.zeros(n_items, n_items, dtype=torch.float64)
    for part in dataset.item_features.values():
        rows = torch.from_numpy(part.values).double()
        present = torch.from_numpy(part.present)
        unit = normalize(rows, dim=1)
        nearest = torch.zeros(n_items, n_items, dtype=torch.float64)
        for item in torch.nonzero(present).squeeze(1):
            similarity = unit @ unit[item]
            similarity[~present] = -2.0
            nearest[item, similarity.topk(4).indices] = 1.0
        scale = (nearest.sum(1) + 1e-7) ** -0.5
        content += 0.5 * scale[:, None] * nearest * torch.where(present, scale, 0.0)[None, :]
    items = model.item_embedding.weight.double()
    nodes = torch.cat([model.user_embedding.weight.double(), items])
    adjacency = dense_adjacency(pairs_of(dataset), n_users, n_items)
    layers = [nodes, adjacency @ nodes, adjacency @ adjacency @ nodes]
    mean = sum(layers) / 3
    users, items = mean[:n_users], mean[n_users:] + content @ items

    got_users, got_items = model.eval().embeddings()
    torch.testing.assert_close(got_users.double(), users, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(got_items.double(), items, rtol=1e-5, atol=1e-7)

    batch = next(iter(train))
    user, item, other = (batch[name] for name in ("user_id", "item_id", "neg_item_id"))
    expected = -logsigmoid((users[user] * (items[item] - items[other])).sum(1)).mean()
    for projection, part in zip(model.projections, dataset.item_features.values(), strict=True):
        total = 0.0
        for u, i, j in zip(user.tolist(), item.tolist(), other.tolist(), strict=True):
            if part.present[i] and part.present[j]:
                difference = projection(torch.from_numpy(part.values[i])) - projection(torch.from_numpy(part.values[j]))
                total = total - logsigmoid(users[u].float() @ difference)
        expected = expected + 0.1 * total / len(user)
    torch.testing.assert_close(model.calculate_loss(batch).double(), expected.double(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("model", ["FREEDOM", "VBPR", "GUIDER_FREEDOM"])
def test_other_parameters_are_scored_by_themselves(model: str, toy: dict[str, Any]) -> None:
    network, train = built(model, toy)
    users = next(iter(train))[:4]
    first = network.eval().full_sort_predict(users)
    network.load_state_dict({**network.state_dict(), **{name: p.flip(0) for name, p in network.named_parameters()}})
    loaded = network.full_sort_predict(users)
    assert not torch.equal(loaded, first)
    assert torch.equal(network.eval().full_sort_predict(users), loaded)
    if not model.startswith("GUIDER"):
        assert network.double()._evaluation_embeddings is None  # they were of another type


@pytest.mark.parametrize(
    ("model", "plain_trainer"),
    [("FREEDOM", False), ("FREEDOM", True), ("LATTICE", True), ("GUIDER_FREEDOM", False), ("GUIDER_LATTICE", False)],
)
def test_dynamic_negative_sampling_ends_no_epoch(
    model: str, plain_trainer: bool, toy: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    sampling = {"distribution": "uniform", "sample_num": 1, "dynamic": True, "candidate_num": 3}
    block = {"student_loss": "own"} if model.startswith("GUIDER") else None
    settings = {**toy, "train_neg_sample_args": sampling, "epochs": 3, "guider": block}
    config = GuiderConfig(model, "toy", config_dict=settings, command_line=[])
    trainer, train, valid, _ = prepare_run(config)
    student = getattr(trainer.model, "student", trainer.model)
    made = []
    method = "prune" if model.endswith("FREEDOM") else "learned_edges"
    original = getattr(student, method)
    monkeypatch.setattr(student, method, lambda: made.append(student.training) or original())
    if plain_trainer:
        trainer = Trainer(config, trainer.model)
    assert len(train) > 1
    # with evaluations between epochs, and without
    trainer.fit(train, valid, saved=False)
    assert sum(made) == 3
    trainer.fit(train, None, saved=False)
    assert sum(made) == 6


def test_freedom_prunes_once_an_epoch_and_evaluates_on_all_edges(toy: dict[str, Any]) -> None:
    model, train = built("FREEDOM", toy, dropout=0.5)
    graphs = []
    for _ in range(3):
        model.train()
        graphs.append(model.training_graph().to_dense())
        assert model.training_graph() is model.training_graph()
    assert not torch.equal(graphs[0], graphs[1]) and not torch.equal(graphs[1], graphs[2])
    full = model.graph.to_dense() > 0
    for graph in graphs:
        kept = graph > 0
        assert bool((full | ~kept).all()) and int(kept.sum()) == 2 * int(len(pairs_of(train.dataset)) * 0.5)
    with torch.no_grad():
        users, _ = model.eval().embeddings()
        model._training_graph = model.graph
        torch.testing.assert_close(users, model.train(False).embeddings()[0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"modality_weights": {"image": 1.0}}, "one weight >= 0"),
    ],
)
def test_freedom_refuses_what_it_cannot_use(changes: dict[str, Any], message: str, toy: dict[str, Any]) -> None:
    with pytest.raises(GuiderError, match=message):
        built("FREEDOM", toy, **changes)


def test_the_student_starts_where_the_plain_model_starts(toy: dict[str, Any]) -> None:
    plain = built("FREEDOM", toy)[0].state_dict()
    student = built("GUIDER_FREEDOM", toy)[0].student.state_dict()
    for name, value in plain.items():
        if torch.is_tensor(value):
            assert torch.equal(value, student[name]), name


@pytest.mark.parametrize("form", ["softmax", "pairwise"])
@pytest.mark.parametrize("own_as", ["ignore", "negative"])
@pytest.mark.parametrize(("gamma", "robustness"), [(0.0, 0.0), (0.3, 0.0), (0.0, 0.5), (0.3, 0.5)])
def test_the_teachers_loss_against_a_loop(
    form: str, own_as: str, gamma: float, robustness: float, toy: dict[str, Any]
) -> None:
    choices = {"own_as": own_as, "robustness": robustness}
    block = {"dbpr": {"form": form, "eta": 0.0, "gamma": gamma, "negatives": 16, **choices}}
    model, train = built("GUIDER_FREEDOM", toy, guider=block)
    dataset = train.dataset
    probability = torch.rand(len(dataset.inter_feat), generator=torch.Generator().manual_seed(1))
    attach(dataset, probability, probability >= 0.5)
    users, items = dataset.inter_feat["user_id"].numpy(), dataset.inter_feat["item_id"].numpy()
    model.set_calibration(users, items, probability.numpy(), probability.numpy() >= 0.5)
    state = model.dbpr.generator("negatives").get_state()
    batch = dataset.inter_feat[torch.arange(40)]
    model.teacher.eval()
    with torch.no_grad():
        got = model.dbpr.of_factors(model.teacher_scoring.factors(), batch)
        u, v = (matrix.double() for matrix in model.teacher.embeddings())
    if form == "softmax":
        u, v = normalize(u, dim=1), normalize(v, dim=1)
    excluded = set(zip(users, items, strict=True)) if own_as == "ignore" or form == "pairwise" else set()
    positive = (u[batch["user_id"]] * v[batch["item_id"]]).sum(1)
    stream = torch.Generator().set_state(state)
    if form == "softmax":  # a batch shares its negatives
        sampled = torch.randint(1, model.n_items, (16,), generator=stream).unique().expand(40, -1)
    else:  # every row has its own, drawn until it is none of the user's
        sampled = torch.zeros(40, 1, dtype=torch.long)
        rows = list(range(40))
        while rows:
            sampled[rows, 0] = torch.randint(1, model.n_items, (len(rows),), generator=stream)
            rows = [row for row in rows if (int(batch["user_id"][row]), int(sampled[row])) in excluded]
    negative = (u[batch["user_id"]].unsqueeze(1) * v[sampled]).sum(dim=2)
    usable = torch.tensor([
        [(int(user), int(item)) not in excluded for item in row]
        for user, row in zip(batch["user_id"], sampled, strict=True)
    ])
    tau = 0.2 if form == "softmax" else 1.0
    odds = ((positive / tau).exp()[:, None] / (negative / tau).exp()).masked_fill(~usable, torch.inf)
    probability = 1 / (1 + (1 / odds).sum(dim=1))  # one negative in the pairwise form
    if form == "pairwise":
        probability = probability * usable.any(dim=1)
    weight = probability**robustness
    expected = dbpr_loss(
        positive, negative, batch[CLEAN_PROBABILITY].double(), form=form, eta=0.0, gamma=gamma, negative_mask=usable,
        weight=weight / weight.mean(),
    )
    torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-6)


def test_eta_compares_true_and_false_items_of_the_same_user(toy: dict[str, Any]) -> None:
    losses = []
    for eta in (0.0, 1.0):
        model, train = built("GUIDER_FREEDOM", toy, guider={"dbpr": {"eta": eta, "negatives": 8}})
        dataset = train.dataset
        probability = torch.ones(len(dataset.inter_feat))
        probability[::3] = 0.2
        attach(dataset, probability, probability == 1)
        users, items = dataset.inter_feat["user_id"].numpy(), dataset.inter_feat["item_id"].numpy()
        model.set_calibration(users, items, probability.numpy(), probability.numpy() == 1)
        batch = dataset.inter_feat[torch.arange(60)]
        state = model.dbpr.generator("eta").get_state()
        with torch.no_grad():
            model.teacher.eval()
            losses.append(model.dbpr.of_factors(model.teacher_scoring.factors(), batch))
    u, v = (normalize(matrix.detach(), dim=1) for matrix in model.teacher.embeddings())
    false = torch.nonzero(batch[CLEAN_PROBABILITY] < 0.5).squeeze(1)
    uniform = torch.rand(len(false), generator=torch.Generator().set_state(state), dtype=torch.float64)
    drawn = model.dbpr.true_profiles.choose(batch["user_id"][false].numpy(), uniform.numpy())
    terms = []
    true_pairs = {(user, item) for user, item, p in zip(users, items, probability, strict=True) if p >= 0.5}
    for row, item in zip(false.tolist(), drawn.tolist(), strict=True):
        if item < 0:
            continue
        user = int(batch["user_id"][row])
        assert (user, item) in true_pairs
        margin = (u[user] @ (v[item] - v[int(batch["item_id"][row])])) / 0.2
        terms.append(-logsigmoid(margin))
    torch.testing.assert_close(losses[1] - losses[0], torch.stack(terms).mean(), rtol=1e-4, atol=1e-5)


def test_distillation_moves_the_student_towards_its_teacher(toy: dict[str, Any]) -> None:
    block = {"dbpr": {"eta": 0.0}, "distillation": {"interval": 1}}
    model, train = built("GUIDER_FREEDOM", toy, guider=block)
    attach(train.dataset, *all_clean(train.dataset))
    model.train()
    model.begin_student_pass()
    optimiser = torch.optim.Adam(model.student.parameters(), lr=0.02)
    batch = next(iter(train))
    values = []
    for _ in range(30):
        optimiser.zero_grad()
        _, distilled = model.student_losses(batch)
        distilled.backward()
        optimiser.step()
        values.append(distilled.item())
    assert values[-1] < 0.7 * values[0]
    assert all(parameter.grad is None for parameter in model.teacher.parameters())


def test_distilling_every_other_batch_weighs_double(toy: dict[str, Any]) -> None:
    found = {}
    for interval in (1, 2):
        model, train = built("GUIDER_FREEDOM", toy, guider={"distillation": {"interval": interval, "users": 999}})
        attach(train.dataset, *all_clean(train.dataset))
        model.train()
        model.begin_student_pass()
        batch = next(iter(train))
        found[interval] = [model.student_losses(batch)[1] for _ in range(4)]
    assert found[2][1] is None and found[2][3] is None
    np.testing.assert_allclose(found[2][0].item(), 2 * found[1][0].item(), rtol=1e-6)


def test_freedom_class_is_found_by_its_name(toy: dict[str, Any]) -> None:
    assert isinstance(built("FREEDOM", toy)[0], FREEDOM)
