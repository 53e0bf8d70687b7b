"""Losses between two models of any kind, against score matrices that are written out."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from calibrated import all_clean
from recbole.data.interaction import Interaction
from recbole.model.abstract_recommender import GeneralRecommender
from recbole.model.general_recommender import BPR, LightGCN, MultiVAE, NeuMF
from torch.nn.functional import logsigmoid, normalize

from recbole_guider.config.guider_config import GuiderConfig
from recbole_guider.guider import distiller as distiller_module
from recbole_guider.guider.calibration import CLEAN_PROBABILITY, attach
from recbole_guider.losses.dbpr import dbpr_loss
from recbole_guider.losses.distillation import transport_plan
from recbole_guider.models.freedom import FREEDOM
from recbole_guider.models.scoring import Scoring, as_in_evaluation, scoring_kind
from recbole_guider.quick_start import prepare_run
from recbole_guider.utils.errors import GuiderError


def prepared(model: str, toy: dict[str, Any], **block: Any) -> tuple[Any, Any]:
    """A GUIDER model ready for a student's batch, and its training loader."""
    config = GuiderConfig(model, "toy", config_dict={**toy, "guider": block}, command_line=[])
    trainer, train, _, _ = prepare_run(config)
    attach(train.dataset, *all_clean(train.dataset))
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    trainer.model.eval()
    trainer.model.begin_student_pass()
    return trainer.model, train


def all_scores(model: Any, users: torch.Tensor) -> torch.Tensor:
    """Scores for items 1, 2, ... by the model's own functions."""
    try:
        rows = model.full_sort_predict(Interaction({"user_id": users})).view(len(users), -1)
    except NotImplementedError:
        items = torch.arange(model.n_items)
        pairs = {"user_id": users.repeat_interleave(len(items)), "item_id": items.repeat(len(users))}
        rows = model.predict(Interaction(pairs)).view(len(users), -1)
    return rows[:, 1:]


@pytest.mark.parametrize("student", ["BPR", "MultiVAE", "NeuMF"])
@pytest.mark.parametrize("teacher", ["BPR", "MultiVAE", "NeuMF"])
@pytest.mark.parametrize("cost", ["cosine", "kl"])
def test_distillation_is_the_transport_cost_of_whole_rows(
    student: str, teacher: str, cost: str, toy: dict[str, Any]
) -> None:
    # 40 items are fewer than are drawn as candidates, so that all kinds see the whole catalogue
    block = {"cost": cost, "temperature": 0.7, "anchor": 0.01}
    model, _ = prepared(f"GUIDER_{student}", toy, teacher=teacher, dbpr={"form": "pairwise"}, distillation=block)
    users = torch.arange(1, 11)
    with torch.no_grad():
        got = model.distiller.loss(None, torch.cat([users, users, torch.zeros(1, dtype=torch.long)]))
        rows = [all_scores(each, users).double() for each in (model.student, model.teacher)]
        if cost == "cosine":
            rows = [normalize(each - each.mean(dim=1, keepdim=True), dim=1) for each in rows]
            costs = 1 - rows[0] @ rows[1].T
        else:
            of_student, of_teacher = ((each / 0.7).log_softmax(dim=1) for each in rows)
            costs = 0.7 * (of_teacher.exp() * (of_teacher - of_student[:, None, :])).sum(dim=2)
        settings = model.settings.distillation
        plan = transport_plan(costs, epsilon=settings.epsilon, iterations=settings.iterations, plan=settings.plan,
                              anchor=settings.anchor)
    torch.testing.assert_close(got.double(), (plan * costs).sum(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("student", ["BPR", "DMF", "FREEDOM", "MVGAE"])
@pytest.mark.parametrize("student_loss", ["own", "dbpr"])
@pytest.mark.parametrize(("objective", "cost"), [("ot", "cosine"), ("ot", "kl"), ("kl", "cosine")])
def test_distillation_compares_the_rows_that_rank(
    student: str, student_loss: str, objective: str, cost: str, toy: dict[str, Any]
) -> None:
    block = {"plan": "identity", "objective": objective, "cost": cost}
    model, _ = prepared(f"GUIDER_{student}", toy, student_loss=student_loss, distillation=block)
    users = torch.arange(1, 11)
    with torch.no_grad():
        got = model.distiller.loss(None, users)
        rows = [all_scores(model, users).double()]
        with model.scored_by_teacher():
            rows.append(all_scores(model, users).double())
        if student_loss == "own" and student == "DMF":
            rows[0] = rows[0].logit()  # a sigmoid of the product
        tau = model.settings.dbpr.temperature * (0.5 if objective == "ot" else 1.0)
        if (objective, cost) == ("ot", "cosine"):
            unit = [normalize(row - row.mean(dim=1, keepdim=True), dim=1) for row in rows]
            expected = (1 - (unit[0] * unit[1]).sum(dim=1)).mean()
        else:
            if objective == "kl":
                # 40 items are fewer than are drawn, and all of them are among the teacher's best
                best = rows[1].argsort(dim=1, descending=True)
                rows = [torch.cat([row.gather(1, best), row], dim=1) for row in rows]
            target = (rows[1] / tau).softmax(dim=1)
            scale = tau if objective == "ot" else tau**2
            expected = scale * (target * (target.log() - (rows[0] / tau).log_softmax(dim=1))).sum(dim=1).mean()
    torch.testing.assert_close(got.double(), expected, rtol=1e-4, atol=1e-5)


def test_pairs_are_compared_on_drawn_items(toy: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distiller_module, "N_CANDIDATES", 7)
    model, _ = prepared("GUIDER_NeuMF", toy)
    seen: list[torch.Tensor] = []
    predict = model.student.predict
    monkeypatch.setattr(model.student, "predict", lambda pairs: (seen.append(pairs["item_id"]), predict(pairs))[1])
    for _ in range(40):
        model.distiller.loss(None, torch.arange(1, 6))
    assert all(len(items) == 5 * 7 and len(items.unique()) == 7 for items in seen)
    assert set(torch.cat(seen).tolist()) == set(range(1, model.n_items))  # every item, never the padding


@pytest.mark.parametrize(
    ("student", "block", "cost"),
    [
        ("FREEDOM", {}, "kl"),
        ("FREEDOM", {"student_loss": "own"}, "cosine"),
        ("FREEDOM", {"teacher_loss": "own"}, "cosine"),
        ("FREEDOM", {"dbpr": {"form": "pairwise"}}, "cosine"),
        ("NeuMF", {"student_loss": "dbpr"}, "cosine"),
        ("FREEDOM", {"teacher": "MultiVAE"}, "cosine"),
        ("FREEDOM", {"distillation": {"cost": "scores"}}, "scores"),
        ("MultiVAE", {"distillation": {"cost": "kl"}}, "kl"),
    ],
)
def test_scores_of_no_common_scale_are_compared_by_cosines(
    student: str, block: dict[str, Any], cost: str, toy: dict[str, Any]
) -> None:
    model, _ = prepared(f"GUIDER_{student}", toy, **block)
    assert model.distiller.cost == cost


def test_cost_kl_compares_no_more_users_than_fit(toy: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = prepared("GUIDER_BPR", toy, distillation={"cost": "kl"})
    monkeypatch.setattr(distiller_module, "SCORES_OF_A_BATCH", 5 * model.n_items)
    seen: list[int] = []
    loss = distiller_module.ot_distillation_loss

    def counting(users: torch.Tensor, *others: Any, **more: Any) -> torch.Tensor:
        seen.append(len(users))
        return loss(users, *others, **more)

    monkeypatch.setattr(distiller_module, "ot_distillation_loss", counting)
    model.distiller.loss(None, torch.arange(1, 40))
    assert seen == [5]


@pytest.mark.parametrize("student", ["BPR", "MultiVAE", "NeuMF"])
def test_a_student_of_any_kind_moves_towards_its_teacher(student: str, toy: dict[str, Any]) -> None:
    model, train = prepared(f"GUIDER_{student}", {**toy, "dropout_prob": 0.0}, distillation={"interval": 1})
    optimiser = torch.optim.Adam(model.student.parameters(), lr=0.02)
    values = []
    for _ in range(30):
        optimiser.zero_grad()
        distilled = model.distiller.loss(None, torch.arange(1, 61))
        distilled.backward()
        optimiser.step()
        values.append(distilled.item())
    assert values[-1] < 0.8 * values[0]
    assert all(parameter.grad is None for parameter in model.teacher.parameters())


@pytest.mark.parametrize("teacher", ["BPR", "NeuMF"])
def test_every_row_of_the_pairwise_form_has_a_negative_of_its_own(teacher: str, toy: dict[str, Any]) -> None:
    model, train = prepared(
        "GUIDER_BPR", toy, teacher=teacher, dbpr={"form": "pairwise", "eta": 0.0}, calibration={"method": "none"}
    )
    attach(train.dataset, *all_clean(train.dataset))
    batch = train.dataset.inter_feat[torch.arange(200)]
    stream = model.dbpr.generator("negatives").get_state()
    drawn, usable = model.dbpr._negative_of_each(batch)
    observed = set(zip(*(train.dataset.inter_feat[name].tolist() for name in ("user_id", "item_id")), strict=True))
    pairs = list(zip(batch["user_id"].tolist(), drawn.tolist(), strict=True))
    assert usable.all() and not observed & set(pairs)
    assert set(drawn.tolist()) == set(range(1, model.n_items))
    model.dbpr.generator("negatives").set_state(stream)
    with torch.no_grad():
        got = model.teacher_loss(batch) if teacher == "BPR" else model.dbpr.of_pairs(model.teacher_scoring, batch)
        scores = all_scores(model.teacher, torch.arange(1, 61))
    # BPR as it always is: -log sigmoid(y_ui - y_uj), a negative for each pair
    terms = [
        math.log1p(math.exp(float(scores[u - 1, j - 1] - scores[u - 1, i - 1])))
        for u, i, j in zip(batch["user_id"].tolist(), batch["item_id"].tolist(), drawn.tolist(), strict=True)
    ]
    assert float(got) == pytest.approx(sum(terms) / len(terms), rel=1e-5)


@pytest.mark.parametrize(("form", "own_as"), [("softmax", "negative"), ("softmax", "ignore")])
def test_dbpr_of_pairs_against_a_loop(form: str, own_as: str, toy: dict[str, Any]) -> None:
    block = {"form": form, "own_as": own_as, "negatives": 16, "eta": 0.5}
    model, train = prepared("GUIDER_BPR", toy, teacher="NeuMF", dbpr=block)
    dataset, size = train.dataset, len(train.dataset.inter_feat)
    probability = torch.rand(size, generator=torch.Generator().manual_seed(1))
    attach(dataset, probability, probability >= 0.5)
    users, items = (dataset.inter_feat[name].numpy() for name in ("user_id", "item_id"))
    model.set_calibration(users, items, probability.numpy(), probability.numpy() >= 0.5)
    batch = dataset.inter_feat[torch.arange(40)]
    streams = {name: model.dbpr.generator(name).get_state() for name in ("negatives", "eta")}
    with torch.no_grad():
        got = model.dbpr.of_pairs(model.teacher_scoring, batch)
        scores = torch.cat([torch.zeros(60, 1), all_scores(model.teacher, torch.arange(1, 61))], dim=1)
    scores = torch.cat([torch.zeros(1, model.n_items), scores])  # by ids
    sampled = torch.randint(
        1, model.n_items, (16,), generator=torch.Generator().set_state(streams["negatives"])
    ).unique()
    observed = set(zip(users.tolist(), items.tolist(), strict=True))
    if own_as == "negative":
        observed = set()
    usable = torch.tensor([[(int(u), int(i)) not in observed for i in sampled] for u in batch["user_id"]])
    false = torch.nonzero(batch[CLEAN_PROBABILITY] < 0.5).squeeze(1)
    uniform = torch.rand(len(false), generator=torch.Generator().set_state(streams["eta"]), dtype=torch.float64)
    chosen = model.dbpr.true_profiles.choose(batch["user_id"][false].numpy(), uniform.numpy())
    drawn = torch.from_numpy(chosen)
    false, drawn = false[drawn >= 0], drawn[drawn >= 0]
    expected = dbpr_loss(
        scores[batch["user_id"], batch["item_id"]],
        scores[batch["user_id"]][:, sampled],
        batch[CLEAN_PROBABILITY],
        scores[batch["user_id"][false], drawn],
        scores[batch["user_id"][false], batch["item_id"][false]],
        form=form, eta=0.5, negative_mask=usable,
    )
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_a_teacher_keeps_what_it_learns_beside_its_ranking(toy: dict[str, Any]) -> None:
    losses = []
    for weight in (0.0, 0.5):
        model, train = prepared(
            "GUIDER_BPR", toy, teacher="FREEDOM", teacher_parameters={"reg_weight": weight, "dropout": 0.0}
        )
        torch.manual_seed(0)
        for parameter in model.teacher.parameters():
            torch.nn.init.normal_(parameter)
        assert model.plan.teacher_needs_negatives
        batch = next(iter(train))
        encoding = model.teacher.encode()
        losses.append((model.teacher_loss(batch), model.teacher.auxiliary_loss(encoding, batch)))
    torch.testing.assert_close(losses[1][0] - losses[0][0], torch.as_tensor(losses[1][1]))


def test_min_norm_sees_the_parameters_of_a_model_without_matrices_of_its_own(toy: dict[str, Any]) -> None:
    model, train = prepared("GUIDER_NGCF", {**toy, "message_dropout": 0.0}, distillation={"balance": "min_norm"})
    batch = next(iter(train))
    own, distilled = model.student_losses(batch)
    model.begin_student_pass()
    raw_own = model.student.calculate_loss(batch).sum()
    raw_distilled = model.distiller.loss(None, batch["user_id"])
    a, b = (
        torch.cat([gradient.flatten() for gradient in torch.autograd.grad(
            loss, list(model.student.parameters()), materialize_grads=True, allow_unused=True)])
        for loss in (raw_own, raw_distilled)
    )
    weight = float(((b - a) @ b / ((b - a) @ (b - a))).clamp(0, 1))
    np.testing.assert_allclose(own[0].item(), weight * raw_own.item(), rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(distilled.item(), (1 - weight) * raw_distilled.item(), rtol=1e-3, atol=1e-6)


# -- kinds -----------------------------------------------------------------------------------------------------


class UntypedGraphModel(GeneralRecommender):
    """As many graph models outside RecBole look, and whether its product is its score depends on ``scale``."""

    scale = 1.0

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        self.user_embedding = torch.nn.Embedding(self.n_users, 8)
        self.item_embedding = torch.nn.Embedding(self.n_items, 8)
        self.restore_user_e = self.restore_item_e = None

    def forward(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self.user_embedding.weight, self.item_embedding.weight

    def full_sort_predict(self, interaction: Interaction) -> torch.Tensor:
        users, items = self.forward()
        return self.scale * (users[interaction["user_id"]] @ items.T).view(-1)

    def predict(self, interaction: Interaction) -> torch.Tensor:
        return self.full_sort_predict(interaction)

    def calculate_loss(self, interaction: Interaction) -> torch.Tensor:
        self.restore_user_e = self.restore_item_e = None
        users, items = self.forward()
        user, item, other = (interaction[name] for name in ("user_id", "item_id", "neg_item_id"))
        return -logsigmoid((users[user] * (items[item] - items[other])).sum(dim=1)).mean()


class OwnGraphModel(UntypedGraphModel):
    input_type = LightGCN.input_type


class ScaledGraphModel(OwnGraphModel):
    scale = 2.0


class BiasedGraphModel(OwnGraphModel):
    """With a term in its scores that is zero before training."""

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        self.bias = torch.nn.Parameter(torch.zeros(self.n_items))

    def full_sort_predict(self, interaction: Interaction) -> torch.Tensor:
        return (super().full_sort_predict(interaction).view(-1, self.n_items) + self.bias).view(-1)


class CachedRows(OwnGraphModel):
    """Whole rows only, from matrices that it keeps until its next loss."""

    predict = GeneralRecommender.predict

    def full_sort_predict(self, interaction: Interaction) -> torch.Tensor:
        if self.restore_user_e is None:
            self.restore_user_e, self.restore_item_e = (2.0 * matrix for matrix in self.forward())
        return (self.restore_user_e[interaction["user_id"]] @ self.restore_item_e.T).view(-1)


class Silent(GeneralRecommender):
    input_type = LightGCN.input_type


class Overridden(LightGCN):
    """Its scores are no longer LightGCN's product."""

    def full_sort_predict(self, interaction: Interaction) -> torch.Tensor:
        return super().full_sort_predict(interaction).sin()


class Inherited(BPR):
    pass


def test_kinds_are_told_by_who_defines_the_scores(toy: dict[str, Any]) -> None:
    assert scoring_kind(FREEDOM) == scoring_kind(LightGCN) == scoring_kind(Inherited) == "factorised"
    assert scoring_kind(MultiVAE) == "rows" and scoring_kind(NeuMF) == "candidates"
    assert scoring_kind(Overridden) == "candidates"
    with pytest.raises(GuiderError, match="Silent has neither predict nor full_sort_predict"):
        scoring_kind(Silent)
    _, train = prepared("GUIDER_BPR", toy)
    kinds = {
        OwnGraphModel: "factorised", ScaledGraphModel: "candidates", BiasedGraphModel: "candidates",
        CachedRows: "rows", Overridden: "candidates",
    }
    for kind, expected in kinds.items():
        config = GuiderConfig("LightGCN", "toy", config_dict=toy, command_line=[])
        model = kind(config, train.dataset)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        assert Scoring(model).kind == expected
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_graph_model_is_tried_where_its_constants_are(toy: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    _, train = prepared("GUIDER_BPR", toy)
    model = OwnGraphModel(GuiderConfig("LightGCN", "toy", config_dict=toy, command_line=[]), train.dataset)
    moved: list[Any] = []
    move, forward = model.to, model.forward

    def elsewhere(*arguments: Any) -> Any:
        if not moved:
            raise RuntimeError("Expected all tensors to be on the same device")
        return forward(*arguments)

    monkeypatch.setattr(model, "to", lambda device: moved.append(device) or move(device))
    monkeypatch.setattr(model, "forward", elsewhere)
    assert Scoring(model).kind == "factorised" and moved == [model.device]


def test_what_a_model_keeps_for_evaluation_does_not_outlast_a_step(toy: dict[str, Any]) -> None:
    settings = {**toy, "epochs": 1, "learning_rate": 0.1, "guider": {"distillation": {"interval": 1}}}
    config = GuiderConfig(CachedRows, "toy", config_dict=settings, command_line=[])
    trainer, train, _, _ = prepare_run(config)
    trainer.fit(train, None, saved=False)
    model, users = trainer.model.eval(), torch.arange(1, 5)
    with torch.no_grad():
        got = model.full_sort_predict(Interaction({"user_id": users})).view(4, -1)
        of_users, of_items = model.student.forward()
    torch.testing.assert_close(got, 4.0 * of_users[users] @ of_items.T)


def test_a_class_may_leave_its_input_type_to_the_settings(toy: dict[str, Any]) -> None:
    config = GuiderConfig(
        UntypedGraphModel, "toy", config_dict={**toy, "loss_type": "BPR", "epochs": 1, "guider": True}, command_line=[]
    )
    trainer, train, valid, _ = prepare_run(config)
    assert np.isfinite(trainer.fit(train, valid, saved=False)[0])


@pytest.mark.parametrize("teacher", ["MGCN", "LGMRec", "SMORE", "PGL", "DAMRS"])
def test_a_teacher_needs_no_sampled_items_that_it_does_not_read(teacher: str, toy: dict[str, Any]) -> None:
    model, train = prepared("GUIDER_BM3", toy, teacher=teacher)
    assert not model.plan.teacher_needs_negatives
    attach(train.dataset, *all_clean(train.dataset))
    model.teacher.train()
    assert torch.isfinite(model.teacher_loss(train.dataset.inter_feat[torch.arange(20)]))


def test_scoring_as_in_evaluation_tells_a_model_nothing(toy: dict[str, Any]) -> None:
    model, _ = prepared("GUIDER_FREEDOM", toy)
    student = model.student
    student.train()
    graph = student.training_graph()
    with as_in_evaluation(student):
        assert not any(module.training for module in student.modules())
    assert all(module.training for module in student.modules()) and student.training_graph() is graph
