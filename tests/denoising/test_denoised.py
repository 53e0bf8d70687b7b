"""Denoising methods around backbones: whole runs, resumed runs, and what is refused before training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from recbole.data.interaction import Interaction
from resuming import assert_resumes_exactly

from recbole_guider import load_data_and_model, run_recbole_guider
from recbole_guider.config.guider_config import GuiderConfig
from recbole_guider.denoising.methods import METHODS, denoising_settings
from recbole_guider.denoising.model import INTERACTION
from recbole_guider.denoising.settings import DenoisingSettings
from recbole_guider.quick_start import prepare_run
from recbole_guider.utils.errors import GuiderError
from recbole_guider.utils.resources import properties_dir
from recbole_guider.utils.yaml_files import read_yaml

#: Three items are sampled for every observed one.
THREE_SAMPLED = {"distribution": "uniform", "sample_num": 3, "alpha": 1.0, "dynamic": False, "candidate_num": 0}


def run(model: str, toy: dict[str, Any], denoising: Any, **changes: Any) -> dict[str, Any]:
    return run_recbole_guider(model, "toy", config_dict={**toy, **changes, "denoising": denoising})


def prepared(model: str, toy: dict[str, Any], denoising: Any, **changes: Any) -> tuple[Any, Any, Any]:
    """A trainer, its training and its validation loader."""
    config = GuiderConfig(model, "toy", config_dict={**toy, **changes, "denoising": denoising}, command_line=[])
    return prepare_run(config)[:3]


# -- settings -----------------------------------------------------------------------------------------------------


def test_every_method_has_the_name_that_its_settings_allow() -> None:
    for name, method in METHODS.items():
        assert method.settings_class(method=name).method == method.name == name


def test_the_yaml_file_and_the_schema_have_the_same_methods_keys_and_defaults() -> None:
    described = read_yaml(properties_dir() / "denoising.yaml")
    common = DenoisingSettings.model_fields
    expected = {
        method: {name: field.default for name, field in schema.model_fields.items() if name not in common}
        for method, schema in ((name, each.settings_class) for name, each in METHODS.items())
    }
    assert described == expected
    text = (properties_dir() / "denoising.yaml").read_text(encoding="utf-8")
    for name, field in common.items():
        if name != "method":
            assert f"#   {name}: {field.default}  " in text


def test_a_name_is_a_block_and_no_name_is_the_plain_model() -> None:
    assert denoising_settings("t-ce") == denoising_settings({"method": "T-CE", "drop_rate": 0.1})
    for block in (None, False, "none", {}, {"method": "none"}, {"temperature": 0.1}):
        assert denoising_settings(block) is None
    softmax = denoising_settings({"loss_form": "softmax"})
    assert softmax is not None and (softmax.method, softmax.form) == ("none", "softmax")


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ("t-cee", r"denoising\.method is 't-cee', which does not exist; did you mean t-ce\? Allowed: none, t-ce"),
        ({"method": "t-ce", "beta": 1}, r"denoising\.beta is not a setting\. Allowed: method, loss_form"),
        ({"method": "t-ce", "drop_rte": 1}, r"did you mean denoising\.drop_rate\?"),
        ({"method": "t-ce", "drop_rate": 1.0}, r"denoising\.drop_rate is 1\.0: it must be a number >= 0 and < 1\."),
        ({"method": "t-ce", "loss_form": "bcee"}, r"denoising\.loss_form is 'bcee': it must be own, bpr, bce or soft"),
        (3, r"denoising is 3: give the name of a method"),
    ],
)
def test_a_mistake_is_named_with_what_is_allowed(block: Any, message: str) -> None:
    with pytest.raises(GuiderError, match=message):
        denoising_settings(block)


def test_sources_merge_as_long_as_they_name_one_method(toy: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("denoising: {method: t-ce, drop_rate: 0.3, loss_form: softmax, own_as: ignore}\n")

    def settings(*arguments: str) -> Any:
        return GuiderConfig("BPR", "toy", [file], toy, command_line=list(arguments)).denoising_settings

    assert settings("--denoising.steps=7").to_dict() == {
        "method": "t-ce", "loss_form": "softmax", "temperature": 0.2, "negatives": 512, "own_as": "ignore",
        "drop_rate": 0.3, "steps": 7,
    }
    other = settings("--denoising=r-ce")
    assert (other.method, other.beta, other.form, other.own_as) == ("r-ce", 0.25, "softmax", "ignore")
    assert settings("--denoising=false") is None
    file.write_text("denoising: t-ce\n")
    assert settings("--denoising.drop_rate=0.4").drop_rate == 0.4


def test_guider_and_a_method_together_are_refused(toy: dict[str, Any]) -> None:
    for changes in ({"guider": {"teacher": "BPR"}}, {"guider": True}):
        with pytest.raises(GuiderError, match="denoising is t-ce and the guider block is on: .* switch one off"):
            run("BPR", toy, "t-ce", **changes)
    with pytest.raises(GuiderError, match="switch one off"):
        run("GUIDER_BPR", toy, "t-ce")
    assert run("BPR", toy, "t-ce", guider=False)["calibration"] is None


@pytest.mark.parametrize(
    ("model", "denoising", "changes", "message"),
    [
        ("SGL", "t-bpr", {}, "denoising is t-bpr: SGL has no pairwise or pointwise score"),
        ("NCL", "t-bpr", {}, "denoising is t-bpr: NCL has a trainer of its own"),
        *((model, "t-ce", {}, f"{model} is trained without") for model in ("BM3", "SLMRec", "SelfCF")),
        ("ItemKNNCBF", "t-ce", {}, "model ItemKNNCBF is of type traditional: a denoising method is for general"),
        ("ItemKNN", "t-ce", {}, "model ItemKNN is of type traditional: a denoising method is for general"),
        ("NeuMF", {"method": "t-ce", "loss_form": "softmax"}, {}, "softmax needs user and item matrices, which NeuMF"),
        ("NeuMF", "t-ce", {"train_neg_sample_args": None}, "NeuMF is trained without"),
    ],
)
def test_what_a_method_cannot_work_on_is_said(
    model: str, denoising: Any, changes: dict[str, Any], message: str, toy: dict[str, Any]
) -> None:
    with pytest.raises(GuiderError, match=message):
        run(model, toy, denoising, **changes)
    assert not list(Path("saved").glob("*.pth")) if Path("saved").exists() else True


@pytest.mark.parametrize("method", METHODS)
def test_mirror_gradient_is_refused_by_methods_that_a_second_step_of_a_batch_would_change(
    method: str, toy: dict[str, Any]
) -> None:
    """By those whose loss of a batch is another one when it is asked for again, from the same random streams."""
    block = {"method": method, "loss_form": "bpr", **({"history": 1} if method == "sgdl" else {})}
    block |= {"steps": 5} if method in ("t-ce", "t-bpr", "dcf") else {}
    trainer, train, _ = prepared("LightGCN", toy, block)
    trainer.fit(train, None, saved=False)
    model, batch = trainer.model, next(iter(train))
    assert method != "sgdl" or bool(model.method.guided)
    before = {name: value.clone() for name, value in model.state_dict().items() if torch.is_tensor(value)}
    for _ in range(2):
        model.calculate_loss(batch)
    after = {name: value for name, value in model.state_dict().items() if torch.is_tensor(value)}
    changed = any(not torch.equal(before[name], value) for name, value in after.items())
    assert METHODS[method].keeps_count is changed
    if changed:
        with pytest.raises(GuiderError, match=f"denoising is {method} and mirror_gradient is set: .* null for it"):
            run("LightGCN", toy, block, mirror_gradient=True)
    else:
        assert run("LightGCN", toy, block, mirror_gradient=True)["test_result"]


# -- runs ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampled", [1, 3])
@pytest.mark.parametrize(
    ("model", "form"), [("LightGCN", "bpr"), ("FREEDOM", "bpr"), ("NGCF", "bpr"), ("BPR", "bpr"), ("NeuMF", "bce")]
)
def test_no_method_on_the_backbones_own_form_is_the_backbone(
    model: str, form: str, sampled: int, toy: dict[str, Any]
) -> None:
    toy = {**toy, "train_neg_sample_args": {**THREE_SAMPLED, "sample_num": sampled}}
    plain = run_recbole_guider(model, "toy", config_dict=toy)
    same = run(model, toy, {"method": "none", "loss_form": form})
    for name, value in plain["test_result"].items():
        assert same["test_result"][name] == pytest.approx(value, rel=1e-4), name
    weights = torch.load(plain["model_file"], weights_only=True)["state_dict"]
    ours = torch.load(same["model_file"], weights_only=True)["state_dict"]
    for name, value in weights.items():
        if torch.is_tensor(value) and not name.endswith("_extra_state"):
            torch.testing.assert_close(ours[f"recommender.{name}"], value, rtol=1e-3, atol=1e-5)


def test_samples_are_the_batch_with_the_backbones_scores(toy: dict[str, Any]) -> None:
    """Pairwise and pointwise loaders with several sampled items: rows belong together and scores are right."""
    changes = {"train_neg_sample_args": THREE_SAMPLED}
    for name in ("LightGCN", "FREEDOM", "NeuMF"):
        trainer, train, _ = prepared(name, toy, {"method": "none", "loss_form": "bce"}, **changes)
        trainer.fit(train, None, saved=False)
        model, dataset = trainer.model.eval(), train.dataset
        known = {
            int(number): (int(user), int(item))
            for number, user, item in zip(
                dataset.inter_feat[INTERACTION], dataset.inter_feat["user_id"], dataset.inter_feat["item_id"],
                strict=True,
            )
        }
        observed = set(known.values())
        batch = next(iter(train))
        with torch.no_grad():
            sample, _ = model.observe(batch)
            for row in range(len(sample.users)):
                user, item = int(sample.users[row]), int(sample.items[row])
                assert known[int(sample.interactions[row])] == (user, item)
                pairs = [(user, item)] + [(user, int(other)) for other in sample.negatives[row]]
                assert not observed & set(pairs[1:])
                found = [float(sample.positive[row]), *sample.negative[row].tolist()]
                for (u, i), score in zip(pairs, found, strict=True):
                    pair = Interaction({"user_id": torch.tensor([u]), "item_id": torch.tensor([i])})
                    expected = float(model.predict(pair))
                    if name == "NeuMF":  # predicts probabilities
                        score = 1 / (1 + np.exp(-score))
                    assert score == pytest.approx(expected, abs=1e-5)
        assert sample.negatives.shape[1] == sample.negative.shape[1] == 3
        assert len(sample.interactions.unique()) == len(sample.interactions)


@pytest.mark.parametrize("model", ["LightGCN", "FREEDOM"])
def test_an_interaction_with_several_sampled_items_is_kept_or_dropped_once(model: str, toy: dict[str, Any]) -> None:
    """DCF's record and loss on a pairwise loader, recomputed one interaction after the other."""
    block = {"method": "dcf", "loss_form": "bpr", "steps": 1, "drop_rate": 0.5, "relabel_rate": 0.2, "co_lambda": 0.0}
    trainer, train, _ = prepared(model, toy, block, train_neg_sample_args=THREE_SAMPLED, epochs=1)
    trainer.fit(train, None, saved=False)
    method, batch = trainer.model.eval().method, next(iter(train))
    sums, recorded, selected = method.sums.clone(), method.recorded.clone(), method.selected.clone()
    with torch.no_grad():
        sample, _ = trainer.model.observe(batch)
        loss = float(method.loss(sample))

    rows: dict[int, list[float]] = {}  # interaction -> x against each of its sampled items
    for number, user, item, other in zip(
        *(batch[field].tolist() for field in (INTERACTION, "user_id", "item_id", "neg_item_id")), strict=True
    ):
        pair = Interaction({"user_id": torch.tensor([user, user]), "item_id": torch.tensor([item, other])})
        own, against = trainer.model.predict(pair).tolist()
        rows.setdefault(number, []).append(own - against)
    assert {len(row) for row in rows.values()} == {3}
    means = {}
    for number, row in rows.items():
        observed = np.mean(np.log1p(np.exp(-np.array(row))))
        sums[number] += np.log(1 + observed + observed**2 / 2)
        recorded[number] += 1
        means[number] = float(sums[number] / recorded[number])
    order = sorted(means, key=lambda number: means[number])
    kept, relabelled = order[: int(0.5 * len(order))], order[int((1 - 0.5 * 0.2) * len(order)) :]
    for number in kept:
        selected[number] += 1
    torch.testing.assert_close(method.sums, sums)
    assert torch.equal(method.recorded, recorded) and torch.equal(method.selected, selected)
    terms = [np.log1p(np.exp(-x)) for number in kept for x in rows[number]]
    terms += [np.log1p(np.exp(x)) for number in relabelled for x in rows[number]]
    assert loss == pytest.approx(np.mean(terms), rel=1e-4)


@pytest.mark.parametrize("method", [method for method in METHODS if method != "none"])
def test_every_method_takes_several_sampled_items(method: str, toy: dict[str, Any]) -> None:
    result = run("LightGCN", toy, method, train_neg_sample_args=THREE_SAMPLED)
    assert np.isfinite(list(result["test_result"].values())).all()


@pytest.mark.parametrize("own_as", ["ignore", "negative"])
def test_softmax_scores_are_cosines_against_shared_negatives(own_as: str, toy: dict[str, Any]) -> None:
    block = {"method": "none", "loss_form": "softmax", "negatives": 30, "own_as": own_as}
    trainer, train, _ = prepared("LightGCN", toy, block)
    model = trainer.model.eval()
    owned = {user: set() for user in range(model.n_users)}
    for user, item in zip(train.dataset.inter_feat["user_id"].tolist(), train.dataset.inter_feat["item_id"].tolist(),
                          strict=True):
        owned[user].add(item)
    with torch.no_grad():
        sample, _ = model.observe(next(iter(train)))
        users, items = model.recommender.forward()
    users, items = (matrix / matrix.norm(dim=1, keepdim=True) for matrix in (users, items))
    for row in range(len(sample.users)):
        user = int(sample.users[row])
        allowed = [item for item in sample.shared.items.tolist() if own_as == "negative" or item not in owned[user]]
        soft = 0.2 * np.log(sum(np.exp(float(users[user] @ items[item]) / 0.2) for item in allowed))
        x = (float(users[user] @ items[sample.items[row]]) - soft) / 0.2
        assert float(sample.logits.positive[row, 0]) == pytest.approx(x, abs=1e-4)
    # and the trained model ranks by cosines
    matrices = model.encode()
    torch.testing.assert_close(matrices.items[1:].norm(dim=1), torch.ones(model.n_items - 1))


@pytest.mark.parametrize("form", ["own", "softmax"])
@pytest.mark.parametrize("method", [method for method in METHODS if method != "none"])
def test_every_method_trains_on_every_form_and_learns(method: str, form: str, toy: dict[str, Any]) -> None:
    result = run("LightGCN", toy, {"method": method, "loss_form": form}, epochs=12)
    # five of forty items at random would give .125; a taste has ten items
    assert result["test_result"]["recall@5"] > 0.3
    config, model, _, _, _, test = load_data_and_model(result["model_file"])
    assert type(model).__name__ == "Denoised" and config.backbone_class.__name__ == "LightGCN"


@pytest.mark.parametrize("model", ["FREEDOM", "BPR", "NGCF", "NeuMF"])
@pytest.mark.parametrize("method", [method for method in METHODS if method != "none"])
def test_every_method_on_every_kind_of_backbone(method: str, model: str, toy: dict[str, Any]) -> None:
    if model == "NeuMF" and METHODS[method].needs_matrices:
        with pytest.raises(GuiderError, match=f"the method {method} needs user and item matrices, which NeuMF"):
            run(model, toy, method)
        return
    block = {"method": method, "loss_form": {"FREEDOM": "bce", "BPR": "bpr"}.get(model, "own")}
    result = run(model, toy, block, epochs=3)
    assert np.isfinite(list(result["test_result"].values())).all()


@pytest.mark.parametrize("method", [method for method in METHODS if method != "none"])
def test_a_killed_run_resumes_to_the_same_weights(method: str, toy: dict[str, Any]) -> None:
    block = {"method": method, "loss_form": "softmax" if method in ("t-ce", "dcf") else "own"}
    if method in ("t-ce", "t-bpr", "dcf"):
        block["steps"] = 10
    if method == "sgdl":
        block["history"] = 1  # so that it guides before the kill

    def look(checkpoint: dict[str, Any]) -> None:
        assert method != "sgdl" or bool(checkpoint["state_dict"]["method.guided"])

    assert_resumes_exactly("FREEDOM", {**toy, "denoising": block, "epochs": 5}, kill_after=2, look=look)


def test_the_same_seed_gives_the_same_numbers(toy: dict[str, Any]) -> None:
    first, second = (run("FREEDOM", toy, {"method": "t-bpr", "loss_form": "softmax"}) for _ in range(2))
    assert first["test_result"] == second["test_result"]
