"""How a model that keeps its own loss learns in proportion to clean probabilities."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from recbole.data.interaction import Interaction
from torch.nn.functional import logsigmoid

from recbole_guider import load_data_and_model
from recbole_guider.amsc import decision
from recbole_guider.config.guider_config import GuiderConfig
from recbole_guider.guider.weighting import PairLookup, SubsampledBatches
from recbole_guider.quick_start import prepare_run

QUICK = {"calibration": {"learned": False, "anchors": 8}}


def prepared(model: str, toy: dict[str, Any], **block: Any) -> tuple[Any, Any, Any]:
    """A trainer whose training interactions have known probabilities, its loaders, and the probabilities."""
    config = GuiderConfig(model, "toy", config_dict={**toy, "guider": {**QUICK, **block}}, command_line=[])
    trainer, train, valid, _ = prepare_run(config)
    size = len(train.dataset.inter_feat)
    trainer.clean_probability = 0.1 + 0.9 * torch.rand(size, generator=torch.Generator().manual_seed(5))
    trainer.is_clean = trainer.clean_probability >= 0.5
    trainer._apply_calibration(train.dataset)
    return trainer, train, valid


def test_lookup_against_a_dict() -> None:
    rng = np.random.default_rng(0)
    users, items = rng.integers(1, 9, 60), rng.integers(1, 12, 60)  # some pairs come twice
    probability = rng.random(60).astype(np.float32)
    known: dict[tuple[int, int], float] = {}
    for user, item, value in zip(users.tolist(), items.tolist(), probability.tolist(), strict=True):
        known[user, item] = max(known.get((user, item), 0.0), value)
    histories = torch.from_numpy(rng.integers(0, 12, (9, 7)))
    found = PairLookup(users, items, probability, 12).of_histories(histories)
    expected = [[known.get((user, int(item)), 1.0) for item in row] for user, row in enumerate(histories)]
    np.testing.assert_allclose(found, np.array(expected, dtype=np.float32))


@pytest.mark.parametrize("model", ["GUIDER_BPR", "GUIDER_NeuMF", "GUIDER_SimpleX"])
def test_an_epoch_takes_a_row_with_its_clean_probability_and_once(model: str, toy: dict[str, Any]) -> None:
    if model.endswith("SimpleX"):
        toy = {**toy, "train_neg_sample_args": {"distribution": "uniform", "sample_num": 3}}
    trainer, train, _ = prepared(model, toy)
    pairs = list(zip(*(train.dataset.inter_feat[name].tolist() for name in ("user_id", "item_id")), strict=True))
    taken = dict.fromkeys(pairs, 0)
    epochs = 400
    for epoch in range(epochs):
        batches = trainer._student_batches(train)
        assert isinstance(batches, SubsampledBatches)
        if epoch == 0:  # whole batches, as RecBole makes them
            whole = list(batches)
            assert len(whole) == len(batches) and set(whole[0].columns) == set(next(iter(train)).columns)
            if "label" in whole[0]:
                assert all(len(batch) == 2 * int(batch["label"].sum()) for batch in whole)
        rows = batches.rows.tolist()
        assert len(set(rows)) == len(rows)
        for row in rows:
            taken[pairs[row]] += 1
    found = np.array([taken[pair] for pair in pairs]) / epochs
    expected = trainer.clean_probability.numpy()
    # four standard deviations of a binomial share, and on average far less
    spread = np.sqrt(expected * (1 - expected) / epochs)
    assert (np.abs(found - expected) <= 4 * spread + 0.01).all()
    assert abs((found - expected).mean()) < 0.01


def test_subsampling_is_the_weighted_loss_in_expectation(toy: dict[str, Any]) -> None:
    trainer, train, _ = prepared("GUIDER_BPR", toy)
    terms = torch.rand(len(trainer.clean_probability), generator=torch.Generator().manual_seed(1))
    sums = [terms[trainer._student_batches(train).rows].sum() for _ in range(500)]
    torch.testing.assert_close(torch.stack(sums).mean(), (terms * trainer.clean_probability).sum(), rtol=0.01, atol=0.0)


@pytest.mark.parametrize(
    ("model", "block", "plain"),
    [
        ("GUIDER_BPR", {"student_weighting": "none"}, True),
        ("GUIDER_MultiVAE", {}, True),  # its rows are users
        ("GUIDER_FREEDOM", {"student_loss": "own", "student_weighting": "weight"}, True),  # weighted, not subsampled
        # RecBole's BPR loss cannot be had row by row
        ("GUIDER_LightGCN", {"student_loss": "own", "student_weighting": "weight"}, False),
        ("GUIDER_BPR", {}, False),
    ],
)
def test_which_batches_a_student_gets(model: str, block: dict[str, Any], plain: bool, toy: dict[str, Any]) -> None:
    trainer, train, _ = prepared(model, toy, **block)
    assert (trainer._student_batches(train) is train) is plain


@pytest.mark.parametrize("teacher", ["LightGCN", "FREEDOM"])
def test_a_teacher_on_its_own_loss_sees_what_counts_as_clean(teacher: str, toy: dict[str, Any]) -> None:
    trainer, train, _ = prepared("GUIDER_BPR", toy, teacher=teacher, teacher_loss="own")
    batches = trainer._teacher_batches(train)
    assert len(batches.rows) < len(trainer.clean_probability)
    batch = next(iter(batches))
    assert trainer.model.NEG_ITEM_ID in batch
    kept = trainer.model.teacher.calculate_loss(batch)
    assert float(trainer.model.teacher_loss(batch)) == pytest.approx(float(kept), rel=1e-6)


def test_without_noise_a_student_gets_recboles_own_batches(toy: dict[str, Any]) -> None:
    trainer, train, _ = prepared("GUIDER_BPR", toy)
    trainer.clean_probability = torch.ones_like(trainer.clean_probability)
    assert trainer._student_batches(train) is train


def test_subsampled_epochs_repeat_with_the_seed_and_differ_from_each_other(toy: dict[str, Any]) -> None:
    drawn = []
    for _ in range(2):
        trainer, train, _ = prepared("GUIDER_BPR", toy)
        drawn.append([trainer._student_batches(train).rows.tolist() for _ in range(3)])
    assert drawn[0] == drawn[1]
    assert drawn[0][0] != drawn[0][1] != drawn[0][2]


def test_weighted_rows_against_a_loop(toy: dict[str, Any]) -> None:
    block = {"student_loss": "own", "student_weighting": "weight", "distillation": {"objective": "none"}}
    trainer, train, _ = prepared("GUIDER_FREEDOM", toy, **block)
    model = trainer.model
    model.student.reg_weight = 0.0
    batch = next(iter(train))
    model.train()
    (loss,), _ = model.student_losses(batch)
    users, items = model.student.embeddings()
    total = weight = 0.0
    known = {
        pair: float(value)
        for *pair, value in zip(
            *(train.dataset.inter_feat[name].tolist() for name in ("user_id", "item_id")),
            trainer.clean_probability, strict=True,
        )
        for pair in [tuple(pair)]
    }
    columns = (batch[name].tolist() for name in ("user_id", "item_id", "neg_item_id"))
    for user, item, other in zip(*columns, strict=True):
        p = known[user, item]
        total = total - p * logsigmoid(users[user] @ items[item] - users[user] @ items[other])
        weight += p
    torch.testing.assert_close(loss, total / weight, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("model", ["MultiVAE", "MultiDAE", "CDAE", "MacridVAE", "DiffRec"])
def test_an_autoencoder_reads_weighted_histories(model: str, toy: dict[str, Any]) -> None:
    trainer, train, _ = prepared(f"GUIDER_{model}", toy)
    student, data = trainer.model.student, train.dataset.inter_feat
    expected = torch.zeros(student.n_users, student.n_items)
    expected[data["user_id"], data["item_id"]] = trainer.clean_probability
    users = torch.arange(student.n_users)
    torch.testing.assert_close(student.get_rating_matrix(users)[:, 1:], expected[:, 1:])
    # once more with other probabilities: from the original values, not from the weighted ones
    trainer.clean_probability = torch.full_like(trainer.clean_probability, 0.5)
    trainer._apply_calibration(train.dataset)
    assert set(student.get_rating_matrix(users)[:, 1:].unique().tolist()) == {0.0, 0.5}


def test_weighted_histories_are_the_exact_weighted_likelihood(toy: dict[str, Any]) -> None:
    settings = {**toy, "dropout_prob": 0.0, "anneal_cap": 0.0}
    trainer, train, _ = prepared("GUIDER_MultiDAE", settings)
    student = trainer.model.student.eval()
    batch = Interaction({"user_id": torch.arange(1, 20)})
    logits = torch.log_softmax(student.full_sort_predict(batch).view(19, -1), dim=1)
    data, total = train.dataset.inter_feat, 0.0
    columns = (data["user_id"].tolist(), data["item_id"].tolist(), trainer.clean_probability)
    for user, item, p in zip(*columns, strict=True):
        if 1 <= user < 20:
            total = total - p * logits[user - 1, item]
    torch.testing.assert_close(student.calculate_loss(batch), total / 19, rtol=1e-5, atol=1e-6)


def test_a_checkpoint_remembers_the_weighted_histories(toy: dict[str, Any]) -> None:
    config = GuiderConfig(
        "GUIDER_MultiVAE", "toy", config_dict={**toy, "guider": QUICK, "noise.interactions": 0.3}, command_line=[]
    )
    trainer, train, valid, _ = prepare_run(config)
    trainer.fit(train, valid)
    assert float(trainer.clean_probability.min()) < 1
    loaded = load_data_and_model(trainer.saved_model_file)[1]
    assert torch.equal(loaded.student.history_item_value, trainer.model.student.history_item_value)
    assert float(loaded.student.history_item_value.max()) <= 1 and len(loaded.student.history_item_value.unique()) > 3


def test_enmf_learns_from_subsampled_lists(toy: dict[str, Any]) -> None:
    trainer, train, _ = prepared("GUIDER_ENMF", toy)
    student, data = trainer.model.student, train.dataset.inter_feat
    known = {
        (user, item): float(p)
        for user, item, p in zip(
            data["user_id"].tolist(), data["item_id"].tolist(), trainer.clean_probability, strict=True
        )
    }
    counts = dict.fromkeys(known, 0)
    epochs = 300
    for _ in range(epochs):
        trainer.model.begin_student_pass()
        for user, row in enumerate(student.history_item_matrix.tolist()):
            for item in row:
                if item:
                    counts[user, item] += 1
    found, expected = (np.array([each[pair] for pair in known]) for each in (counts, known))
    spread = np.sqrt(expected * (1 - expected) / epochs)
    assert (np.abs(found / epochs - expected) <= 4 * spread + 0.01).all()


def test_a_teacher_of_whole_rows_reads_weighted_histories(toy: dict[str, Any]) -> None:
    trainer, train, _ = prepared("GUIDER_BPR", toy, teacher="MultiVAE")
    teacher = trainer.model.teacher
    values = teacher.history_item_value[teacher.history_item_id > 0]
    assert len(values.unique()) > 10 and float(values.max()) <= 1
    assert len(next(iter(trainer._teacher_batches(train))).columns) == 1  # whole users
    # which says nothing of the student, whose rows are subsampled as with any teacher
    assert trainer.model.plan.weighting == "subsampled"
    assert len(trainer._student_batches(train).rows) < len(trainer.clean_probability)


def test_noted_is_what_is_out_of_the_ordinary(toy: dict[str, Any]) -> None:
    def notes(model: str, **block: Any) -> str:
        return " ".join(prepared(model, toy, **block)[0].model.plan.notes)

    assert notes("GUIDER_FREEDOM") == ""
    assert "NeuMF scores pairs" in notes("GUIDER_NeuMF")
    assert "MultiVAE learns whole histories: they are weighted" in notes("GUIDER_MultiVAE")
    assert "ENMF learns whole histories: an epoch takes" in notes("GUIDER_ENMF")
    assert "cannot be had row by row" in notes("GUIDER_BPR", student_weighting="weight")
    assert "guider.student_weighting is not read" in notes("GUIDER_FREEDOM", student_weighting="weight")
    assert "at most 16384 pairs" in notes("GUIDER_BPR", teacher="NeuMF")
    assert "SGL learns from DBPR in place of its whole loss" in notes("GUIDER_BPR", teacher="SGL")
    assert "SGL learns from DBPR" in notes("GUIDER_SGL", student_loss="dbpr") and not notes("GUIDER_BPR")
    assert "MultiVAE scores whole rows only: as a teacher" in notes("GUIDER_BPR", teacher="MultiVAE")


@pytest.mark.own_calibration
def test_what_counts_as_clean_is_decided_once(toy: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Another decision changes what is reported, what training compares, and what a checkpoint holds, together."""

    def every_third(probability: np.ndarray, users: np.ndarray, n_users: int) -> np.ndarray:
        return np.arange(len(probability)) % 3 > 0

    monkeypatch.setattr(decision, "is_clean", every_third)
    config = GuiderConfig("GUIDER_FREEDOM", "toy", config_dict={**toy, "guider": QUICK}, command_line=[])
    trainer, train, valid, _ = prepare_run(config)
    trainer.fit(train, valid)
    size = len(train.dataset.inter_feat)
    summary = trainer.calibration_summary
    assert summary["n_false"] == -(-size // 3) and summary["n_true"] == size - summary["n_false"]
    clean = train.dataset.inter_feat["is_clean"]
    assert int(clean.sum()) == summary["n_true"]
    data = train.dataset.inter_feat
    users, items = data["user_id"].numpy(), data["item_id"].numpy()
    assert np.array_equal(trainer.model.dbpr.true_profiles.has(users, items), clean.numpy())
    assert torch.equal(trainer.extra_state()["is_clean"], clean)
