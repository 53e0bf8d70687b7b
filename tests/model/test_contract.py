"""What every backbone of this package keeps to: scores, losses, gradients, states, content, device.

A backbone's own file has what is special to it: its formula against a loop, the numbers of its reference, its settings.
The quick tier takes one form of each.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from backbones import (
    assert_padding_has_no_influence,
    losses_of_training,
    made,
    prepared,
    scores_and_loss,
    with_modalities,
)
from other_device import other_device
from recbole.data.interaction import Interaction

from recbole_guider.config.registry import MODELS, get_model_class
from recbole_guider.models.base import FactorisedRecommender
from recbole_guider.utils.errors import GuiderError


@dataclass(frozen=True)
class Backbone:
    """What is not the same for every backbone."""

    #: settings under which every term of its loss weighs something and, where it can, draws random numbers
    settings: dict[str, Any] = field(default_factory=dict)
    #: the choices that make another model of it
    forms: tuple[dict[str, Any], ...] = ({},)
    #: settings of the test of training, which has the defaults otherwise
    training: dict[str, Any] = field(default_factory=dict)
    #: how far its loss falls in that test at least, for a loss that may be below zero; a fifth of it in any case
    falls: float = 0.0
    reads_content: bool = True
    #: whether training changes it
    trains: bool = True
    #: whether its batches have sampled items
    samples: bool = True
    #: whether the loss of a batch is the sum over its rows
    sums: bool = False
    #: what stands in place of missing content: nothing that counts, or the mean of the others
    missing_is_mean: bool = False
    #: parameters whose gradient is zero, since the loss reads differences
    cancelled: tuple[str, ...] = ()
    #: the forms of the test of training; every one if None
    trained: tuple[dict[str, Any], ...] | None = None


LAYERS = {"knn_k": 4, "n_mm_layers": 2, "reg_weight": 0.1}
BACKBONES = {
    "BM3": Backbone({"reg_weight": 0.1}, samples=False),
    "DAMRS": Backbone({"knn_k": 4, "n_mm_layers": 2, "neighbour_weight": 0.1, "kl_weight": 0.5}),
    "DGCN": Backbone({"dropout": 0.3, "drop_iterations": 3}, reads_content=False, sums=True),
    "DRAGON": Backbone({"reg_weight": 0.1}),
    "DualGNN": Backbone({"reg_weight": 0.1}, training={"reg_weight": 0.001}),
    "FREEDOM": Backbone({**LAYERS, "dropout": 0.5}, cancelled=("projections.0.bias", "projections.1.bias")),
    "GRCN": Backbone({"reg_weight": 0.1}),
    "ItemKNNCBF": Backbone({"knn_k": 4}, trains=False, samples=False),
    "LATTICE": Backbone(
        {**LAYERS, "lambda_coeff": 0.7, "mess_dropout": 0.1},
        forms=({"cf_model": "lightgcn"}, {"cf_model": "ngcf"}, {"cf_model": "mf"}),
    ),
    "LayerGCN": Backbone({"dropout": 0.3, "reg_weight": 0.1}, reads_content=False, sums=True),
    "LGMRec": Backbone(
        {"n_hyper_layers": 2, "n_hyperedges": 3, "alpha": 0.7, "cl_weight": 0.01, "reg_weight": 0.1, "dropout": 0.5}
    ),
    "MGCN": Backbone({**LAYERS, "cl_weight": 0.1}, forms=({}, {"n_mm_layers": 0}), trained=({},)),
    "MMGCF": Backbone(
        {"dropout": 0.3, "reg_weight": 0.1},
        forms=tuple(
            {"fusion_mode": fusion, "weighting": weighting}
            for fusion in ("mean", "sum", "concat") for weighting in ("equal", "alpha", "normalized")
        ),
        trained=({},),
    ),
    "MMGCN": Backbone({"reg_weight": 0.1}),
    "MVGAE": Backbone({"dropout": 0.1}, forms=({"negatives": "own"}, {"negatives": "batch"}), trained=({},)),
    "PGL": Backbone(
        {"knn_k": 4, "cl_weight": 0.1, "feature_dropout": 0.2}, forms=({"subgraph": "local"}, {"subgraph": "global"})
    ),
    "SelfCF": Backbone(
        {"graph_dropout": 0.3},
        forms=tuple(
            {"augmentation": name} for name in ("embedding_dropout", "historical_embedding", "edge_pruning")
        ),
        training={"graph_dropout": 0.3}, falls=0.3, reads_content=False, samples=False,
    ),
    "SLMRec": Backbone(
        forms=tuple({"ssl_task": task} for task in ("FAC", "FD", "FM", "FD+FM")), samples=False
    ),
    "SMORE": Backbone({**LAYERS, "n_ui_layers": 2, "cl_weight": 0.1, "dropout": 0.2}),
    "VBPR": Backbone(
        {"train_features": True, "reg_weight": 0.1}, forms=({"item_bias": False}, {"item_bias": True}),
        training={"train_features": True}, missing_is_mean=True,
    ),
}


def forms(accept: Callable[[Backbone], bool] = lambda backbone: True) -> pytest.MarkDecorator:
    """A test of every form of each backbone that ``accept`` accepts."""
    cases = [case(name, form) for name, row in BACKBONES.items() if accept(row) for form in row.forms]
    return pytest.mark.parametrize(("name", "form"), cases)


def case(name: str, form: dict[str, Any], *more: Any) -> Any:
    """The parameters of a test of one form of a backbone: of its first one in the quick tier."""
    quick = form in ({}, BACKBONES[name].forms[0])
    words = [name, *map(str, form.values()), *("+".join(each) for each in more)]
    return pytest.param(name, form, *more, id="-".join(words), marks=() if quick else pytest.mark.slow)


def backbones(accept: Callable[[Backbone], bool] = lambda backbone: True) -> pytest.MarkDecorator:
    """A test of each backbone that ``accept`` accepts."""
    return pytest.mark.parametrize("name", [name for name, row in BACKBONES.items() if accept(row)])


#: The data of a form, prepared once: what takes most of a test's time.
_PREPARED: dict[str, tuple[Any, Any]] = {}


def of(name: str, toy: dict[str, Any], form: dict[str, Any], **how: Any) -> tuple[Any, Any]:
    """The backbone in its settings of the table, and its training loader; ``how``: as ``made`` takes it."""
    return on_shared_data(name, {**toy, **BACKBONES[name].settings, **form}, **how)


def on_shared_data(name: str, settings: dict[str, Any], **how: Any) -> tuple[Any, Any]:
    """As ``built``: a new model, and a loader that begins anew; no test changes the data."""
    key = repr((name, settings))
    if key not in _PREPARED:
        _PREPARED[key] = prepared(name, settings)
    config, train = _PREPARED[key]
    train.generator.manual_seed(config["seed"])
    return made(config, train, **how), train


def users_of(model: Any, users: torch.Tensor) -> torch.Tensor:
    """Scores of these users for all items ``[U, n_items]``, in evaluation mode."""
    with torch.no_grad():
        return model.eval().full_sort_predict(Interaction({model.USER_ID: users})).view(len(users), model.n_items)


def test_the_table_has_every_model() -> None:
    assert set(BACKBONES) == set(MODELS)
    for name, row in BACKBONES.items():
        model_class = get_model_class(name)
        assert model_class.reads_content is row.reads_content, name
        assert issubclass(model_class, FactorisedRecommender) is row.trains, name
        assert getattr(model_class, "compares_sampled_items", False) is row.samples, name


# -- scores -------------------------------------------------------------------------------------------------------


@forms()
def test_scores(name: str, form: dict[str, Any], toy: dict[str, Any]) -> None:
    model, _ = of(name, toy, form)
    users = torch.tensor([5, 1, 5, model.n_users - 1])
    scores = users_of(model, users)
    assert scores.dtype == torch.float32 and torch.isfinite(scores).all() and not scores.requires_grad
    assert torch.equal(scores[0], scores[2])
    assert torch.equal(scores, users_of(model, users)), "an evaluation draws nothing"
    pairs = Interaction(
        {model.USER_ID: users.repeat_interleave(model.n_items), model.ITEM_ID: torch.arange(model.n_items).repeat(4)}
    )
    single = model.predict(pairs)
    assert single.shape == (4 * model.n_items,)
    torch.testing.assert_close(single.view(4, -1), scores, rtol=1e-5, atol=1e-6)
    if BACKBONES[name].trains:
        of_users, of_items = model.embeddings()
        assert len(of_users) == model.n_users and len(of_items) == model.n_items
        torch.testing.assert_close(of_users[users] @ of_items.T, scores, rtol=1e-5, atol=1e-6)


# -- losses and gradients -----------------------------------------------------------------------------------------


@forms(lambda row: row.trains)
def test_the_loss_and_its_gradients(name: str, form: dict[str, Any], toy: dict[str, Any]) -> None:
    row = BACKBONES[name]
    model, train = of(name, toy, form)
    batch = next(iter(train))
    assert (model.NEG_ITEM_ID in batch) is row.samples
    loss = model.train().calculate_loss(batch)
    assert loss.shape == () and torch.isfinite(loss)
    loss.backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), key
    model.zero_grad()
    encoding = model.train().encode()  # a regulariser reaches a parameter that nothing uses
    (model.ranking_loss(encoding, batch) + model.auxiliary_loss(encoding, batch)).backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), key
        assert (parameter.grad.abs().max() > 1e-8) is not (key in row.cancelled), key


@forms(lambda row: row.trains)
def test_the_loss_is_the_sum_of_its_parts(name: str, form: dict[str, Any], toy: dict[str, Any]) -> None:
    row = BACKBONES[name]
    model, train = of(name, toy, form)
    batch = next(iter(train))
    state = deepcopy(model.state_dict())  # every loss draws the same numbers, and remembers its batch

    def again() -> Any:
        model.load_state_dict(state)
        return model.train()

    with torch.no_grad():
        whole = again().calculate_loss(batch) / (len(batch) if row.sums else 1)
        torch.testing.assert_close(again().loss(model.encode(), batch), whole)
        encoding = again().encode()
        parts = [part(encoding, batch) for part in (model.ranking_loss, model.auxiliary_loss, model.regulariser)]
        torch.testing.assert_close(sum(parts), whole)
        # where another ranking loss stands in, there may be no sampled items
        observed = Interaction({key: batch[key] for key in (model.USER_ID, model.ITEM_ID)})
        others = [model.regulariser] if model.auxiliary_loss_samples else [model.regulariser, model.auxiliary_loss]
        for part in others:
            assert torch.isfinite(torch.as_tensor(part(encoding, observed)))


TRAINED = [
    case(name, form, names)
    for name, row in BACKBONES.items() if row.trains
    for form in (row.forms if row.trained is None else row.trained)
    # a modality may have any name, of an attribute of a module or with a dot in it, too
    for names in ([("image",), ("text",), ("type", "a.b", "keys")] if row.reads_content else [()])
]


@pytest.mark.parametrize(("name", "form", "names"), TRAINED)
def test_training_lowers_the_loss(
    name: str, form: dict[str, Any], names: tuple[str, ...], toy: dict[str, Any]
) -> None:
    row = BACKBONES[name]
    losses = losses_of_training(*on_shared_data(name, {**with_modalities(toy, *names), **row.training, **form}))
    assert losses[-1] < losses[0] - max(0.2 * abs(losses[0]), row.falls)


# -- states -------------------------------------------------------------------------------------------------------


def steps(model: Any, batch: Interaction, count: int) -> list[float]:
    """The losses of ``count`` steps of Adam on a batch, from the beginning of an epoch."""
    model.train()
    optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
    losses = []
    for _ in range(count):
        optimiser.zero_grad()
        loss = model.calculate_loss(batch)
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return losses


@forms(lambda row: row.trains)
def test_one_seed_gives_the_same_numbers(name: str, form: dict[str, Any], toy: dict[str, Any]) -> None:
    found = []
    for _ in range(2):
        model, train = of(name, toy, form)
        found.append((steps(model, next(iter(train)), 3), users_of(model, torch.arange(1, model.n_users))))
    assert found[0][0] == found[1][0] and len(set(found[0][0])) == 3
    assert torch.equal(found[0][1], found[1][1])


@forms(lambda row: row.trains)
def test_a_state_brings_back_scores_and_the_next_losses(name: str, form: dict[str, Any], toy: dict[str, Any]) -> None:
    model, train = of(name, toy, form)
    batch, users = next(iter(train)), torch.arange(1, model.n_users)
    steps(model, batch, 3)
    file = io.BytesIO()
    torch.save({"state_dict": model.state_dict(), "other_parameter": model.other_parameter()}, file)
    file.seek(0)
    state = torch.load(file, weights_only=True)

    other = of(name, toy, form)[0]
    assert not torch.equal(users_of(other, users), users_of(model, users))
    other.load_state_dict(state["state_dict"])
    other.load_other_parameter(state["other_parameter"])
    loaded = other.full_sort_predict(Interaction({model.USER_ID: users})).view(len(users), -1)
    assert torch.equal(loaded, users_of(model, users)), "what was scored before is forgotten"
    assert steps(other, batch, 2) == steps(model, batch, 2)


@backbones(lambda row: row.reads_content and row.trains)
def test_content_is_a_parameter_only_where_asked(name: str, toy: dict[str, Any]) -> None:
    may_train = "train_features" in get_model_class(name).settings_class.model_fields
    for choice in (False, True) if may_train else (False,):
        model, train = of(name, toy, {"train_features": choice} if may_train else {})
        rows = {key: value for key, value in model.named_parameters() if key.split(".")[0] == "content"}
        assert bool(rows) is choice
        assert any(key.split(".")[0] == "content" for key in model.state_dict()) is choice
        before = content_of(model)
        losses_of_training(model, train, steps=2)
        for one, another in zip(before, content_of(model), strict=True):
            assert torch.equal(one, another) is not choice
    if isinstance(getattr(model, "content", None), torch.nn.ModuleList):
        for part, given in zip(model.content, train.dataset.item_features.values(), strict=True):
            assert torch.equal(part.present, torch.from_numpy(given.present))


def content_of(model: Any) -> list[torch.Tensor]:
    """The rows of each modality as they are now; none for a model that has made graphs of them."""
    content = getattr(model, "content", [])
    rows = [content] if torch.is_tensor(content) else [part.values for part in content]
    return [values.detach().clone() for values in rows]


# -- what must not matter -----------------------------------------------------------------------------------------


@forms(lambda row: row.trains)
def test_padding_has_no_influence(name: str, form: dict[str, Any], toy: dict[str, Any]) -> None:
    assert_padding_has_no_influence(*of(name, toy, form))


@forms(lambda row: row.reads_content and not row.missing_is_mean)
def test_missing_rows_have_no_influence(name: str, form: dict[str, Any], toy: dict[str, Any]) -> None:
    """Whatever stands in place of missing content: in graphs that are made of it, and in the losses."""
    first, second = (scores_and_loss(*of(name, toy, form, filled=seed)) for seed in (1, 2))
    for one, other in zip(first, second, strict=True):
        torch.testing.assert_close(one, other, rtol=0.0, atol=0.0)


@backbones(lambda row: row.reads_content and row.trains)
def test_items_without_any_content_stay_finite(name: str, toy: dict[str, Any]) -> None:
    model, train = of(name, with_modalities(toy, "text"), BACKBONES[name].forms[0])
    absent = torch.from_numpy(~train.dataset.item_features["text"].present)
    assert absent[1:].sum() > 1
    assert torch.isfinite(users_of(model, torch.arange(1, model.n_users))).all()
    encoding = model.train().encode()
    (encoding.items * torch.randn_like(encoding.items)).sum().backward()
    model.calculate_loss(next(iter(train))).backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is None or torch.isfinite(parameter.grad).all(), key


# -- no content, and another device -----------------------------------------------------------------------------------


@backbones(lambda row: row.reads_content)
def test_data_without_content_is_refused_in_a_sentence(name: str, toy: dict[str, Any]) -> None:
    with pytest.raises(GuiderError, match="has no content") as refused:
        of(name, {**toy, "modalities": None}, {})
    assert "\n" not in str(refused.value)


@pytest.mark.slow
@backbones()
def test_another_device(name: str, toy: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The same loss, gradients and scores wherever the model is."""
    found = []
    for elsewhere in (False, True):
        with other_device(monkeypatch) if elsewhere else nullcontext(torch.device("cpu")) as device:
            model, train = of(name, toy, BACKBONES[name].forms[0], device=device)
            batch = next(iter(train)).to(device)
            loss = model.train().calculate_loss(batch)
            loss.backward()
            results = {"loss": loss.detach(), "scores": model.eval().full_sort_predict(batch[:9]).detach()}
            results |= {key: each.grad for key, each in model.named_parameters() if each.grad is not None}
            assert {each.device.type for each in results.values()} == {device.type}
            found.append({key: each.to("cpu") for key, each in results.items()})
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-6)
