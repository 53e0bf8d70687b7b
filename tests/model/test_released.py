"""guider.variant: released, against numbers of the published code; see fixtures/README.md."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from reference import Reference, reference
from torch.nn.functional import kl_div, log_softmax, softmax

from recbole_guider import load_data_and_model, run_recbole_guider
from recbole_guider.config.guider_config import GuiderConfig
from recbole_guider.guider.released import (
    ReleasedGuider,
    ReleasedTeacher,
    compared_modalities,
    interaction_weights,
    min_norm_coefficients,
    row_divergence,
)
from recbole_guider.quick_start import prepare_run
from recbole_guider.utils.errors import GuiderError

NAMES = {"user_embedding": "user_embedding", "item_id_embedding": "item_embedding"}


@pytest.fixture
def published(tmp_path: Path) -> Reference:
    """Our GUIDER_FREEDOM with the parameters of the published run: teacher and student."""
    of_teacher = {"knn_k": 4, "dropout": 0.0}
    ours = reference(
        "GUIDER_FREEDOM", tmp_path, "released", guider={"variant": "released", "teacher_parameters": of_teacher},
        embedding_size=8, knn_k=4, n_mm_layers=1, n_ui_layers=2, reg_weight=0.1, dropout=0.0, train_features=True,
        modality_weights={"image": 0.3, "text": 0.7},
    )
    teacher, student = ours.model.teacher, ours.model.student
    for who, model in (("teacher", teacher), ("student", student)):
        for theirs, name in NAMES.items():
            ids = ours.user_ids if name == "user_embedding" else ours.item_ids
            ours.place(getattr(model, name).weight, ours.arrays[f"{who}.{theirs}.weight"], ids)
    for place, modality in enumerate(("image", "text")):  # as tests/model/reference.py gives them
        compared = teacher.compared.index(place)
        for kind in ("weight", "bias"):
            for part, theirs in (
                (student.projections[place], f"student.{modality}_trs.{kind}"),
                (teacher.maps[compared], f"teacher.{modality}_trs.{kind}"),
                (teacher.hashes[compared], f"teacher.{modality}_hash_layer.{kind}"),
                (teacher.user_hash, f"teacher.user_hash_layer.{kind}"),
            ):
                ours.place(getattr(part, kind), ours.arrays[theirs])
    ours.model.train()
    return ours


def test_weights_and_loss_of_the_teacher(published: Reference) -> None:
    teacher, batch = published.model.teacher, published.batch
    assert isinstance(teacher, ReleasedTeacher)
    rows = teacher.encode().users[batch["user_id"]]
    np.testing.assert_allclose(teacher.weights(rows, batch["item_id"]), published.arrays["weights"], atol=1e-5)
    np.testing.assert_allclose(published.model.teacher_loss(batch).item(), published.arrays["teacher_loss"], rtol=1e-5)


def test_scores_of_the_teacher(published: Reference) -> None:
    published.model.begin_student_pass()
    users, items = published.model.distiller.teacher_matrices
    scores = users[published.batch["user_id"]] @ items[published.item_ids].T
    torch.testing.assert_close(scores, torch.from_numpy(published.arrays["teacher_scores"]), rtol=1e-5, atol=1e-6)


def test_divergence_and_min_norm_coefficients(published: Reference) -> None:
    student, batch = published.model.student, published.batch
    parameters = list(student.parameters())
    branches = set()
    for case, target in zip(published.arrays["cases"], torch.from_numpy(published.arrays["targets"]), strict=True):
        _, own_value, divergence, raw, _, own_weight, weight = case
        own = student.calculate_loss(batch)
        np.testing.assert_allclose(own.item(), own_value, rtol=1e-5)
        users, items = student.embeddings()
        distilled = row_divergence(users[batch["user_id"]] @ items[published.item_ids].T, target)
        np.testing.assert_allclose(distilled.item(), divergence, rtol=1e-5, atol=1e-7)
        gradients = [
            torch.autograd.grad(loss, parameters, retain_graph=True, materialize_grads=True, allow_unused=True)
            for loss in (own, distilled)
        ]
        np.testing.assert_allclose(min_norm_coefficients(*gradients), (own_weight, weight), atol=1e-5)
        branches.add("most" if raw == 0.999 else "least" if raw == 0.001 else "between")
    assert branches == {"most", "least", "between"}


def test_a_whole_batch_of_the_published_trainer(published: Reference) -> None:
    published.model.begin_student_pass()
    own, distilled = published.model.student_losses(published.batch)
    np.testing.assert_allclose(sum(own).item() + distilled.item(), published.arrays["total"], rtol=1e-5)
    np.testing.assert_allclose(
        distilled.item(), published.arrays["kl"] * max(published.arrays["sol"][1], 1e-4), rtol=1e-4
    )


# -- properties ------------------------------------------------------------------------------------------------


def test_divergence_is_torchs_and_counts_repeated_users() -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 5, 9, dtype=torch.float64)
    repeated = torch.tensor([0, 0, 0, 1, 2, 3, 3, 4])
    expected = kl_div(
        log_softmax(student[repeated], dim=1), softmax(teacher[repeated], dim=1), reduction="batchmean"
    )
    torch.testing.assert_close(row_divergence(student[repeated], teacher[repeated]), expected)
    count = torch.tensor([3, 1, 1, 2, 1], dtype=torch.float64)
    torch.testing.assert_close(row_divergence(student, teacher, count), expected)


def test_clean_rows_weigh_less_than_noisy_ones() -> None:
    torch.manual_seed(0)
    text, image = torch.randn(2, 200, 64)
    image[:100] = text[:100]  # items whose modalities agree: the clean ones
    signs = [torch.randn(200, 64).sign(), torch.randn(200, 64).sign()]
    weights = interaction_weights([text, image], signs, torch.randn(200, 64).sign())
    assert float(weights[:100].max()) < 0.8 and float((weights == 1).sum()) > 50


def test_projections_are_never_trained(toy: dict[str, Any]) -> None:
    config = GuiderConfig("GUIDER_FREEDOM", "toy", config_dict={**toy, "guider.variant": "released"}, command_line=[])
    trainer, train, valid, _ = prepare_run(config)
    teacher = trainer.model.teacher
    before = {name: value.clone() for name, value in teacher.named_parameters()}
    trainer.fit(train, valid, saved=False)
    same = {name for name, value in teacher.named_parameters() if torch.equal(value, before[name])}
    assert {name.partition(".")[0] for name in same} == {"maps", "hashes", "user_hash", "projections"}


@pytest.mark.parametrize("student", ["FREEDOM", "LightGCN", "MultiVAE", "SimpleX"])
def test_it_runs_around_any_model_that_gives_rows(student: str, toy: dict[str, Any]) -> None:
    if student == "SimpleX":
        toy = {**toy, "train_neg_sample_args": {"distribution": "uniform", "sample_num": 2}}
    settings = {**toy, "guider": {"variant": "released", "dbpr": {"eta": 0.3}}}
    result = run_recbole_guider(f"GUIDER_{student}", "toy", config_dict=settings)
    assert result["calibration"] is None and np.isfinite(list(result["test_result"].values())).all()
    _, model, *_ = load_data_and_model(result["model_file"])
    assert type(model) is ReleasedGuider
    assert "does not read teacher, calibration, dbpr" in " ".join(model.plan.notes)


def test_what_it_cannot_wrap_is_an_error(toy: dict[str, Any]) -> None:
    for model, changes, message in [
        ("GUIDER_NeuMF", {}, "variant is released: it compares whole score rows"),
        ("GUIDER_MultiVAE", {"train_neg_sample_args": None}, "its teacher compares sampled items"),
    ]:
        config = GuiderConfig(model, "toy", config_dict={**toy, **changes, "guider.variant": "released"},
                              command_line=[])
        with pytest.raises(GuiderError, match=message):
            prepare_run(config)


def test_which_modalities_are_compared() -> None:
    assert compared_modalities(["audio", "text", "image"]) == ["image", "text"]
    assert compared_modalities(["audio", "text", "video"]) == ["audio", "text"]
    assert compared_modalities(["image"]) == []
