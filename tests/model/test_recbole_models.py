"""GUIDER around every general recommender of RecBole that trains: how it scores, one epoch, and its checkpoint."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from recbole.data.dataloader import UserDataLoader
from recbole.data.interaction import Interaction
from recbole.trainer.trainer import NCLTrainer, RaCTTrainer, RecVAETrainer
from recbole.utils import init_seed

from recbole_guider import load_data_and_model, run_recbole_guider
from recbole_guider.config.guider_config import GuiderConfig
from recbole_guider.config.registry import get_model_class, list_models
from recbole_guider.config.trainers import training_class
from recbole_guider.data.dataset import build_dataset, prepare_data
from recbole_guider.models.scoring import Scoring, trainable
from recbole_guider.quick_start import prepare_run
from recbole_guider.training.steps import recboles_trainer
from recbole_guider.training.trainer import GuiderTraining
from recbole_guider.utils.errors import GuiderError

pytestmark = pytest.mark.slow

MODELS = [
    info.name
    for info in list_models()
    if info.distillation != "none" and get_model_class(info.name).__module__.startswith("recbole.")
]
#: Smaller than the defaults, which make a test wait, or fitting the toy data.
SMALL: dict[str, dict[str, Any]] = {
    "ConvNCF": {"cnn_channels": [1, 4, 4], "cnn_kernels": [4, 4], "cnn_strides": [4, 4]},
    "DiffRec": {"dims_dnn": [16]},
    "GCMC": {"gcn_output_dim": 20},
    "LDiffRec": {"dims_dnn": [16], "in_dims": [16]},
    "NCL": {"num_clusters": 5},
    "NNCF": {"num_conv_kernel": 8},
    "RaCT": {"pretrain_epochs": 1, "save_step": 1, "metrics_k": 10},
    "RecVAE": {"hidden_dimension": 32, "latent_dimension": 16},
    "SimpleX": {"train_neg_sample_args": {"distribution": "uniform", "sample_num": 3}},
}
QUICK = {"calibration": {"learned": False, "anchors": 8}}


def settings_of(model: str, toy: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {**toy, "epochs": 1, **SMALL.get(model, {}), **changes}


def built(model: str, toy: dict[str, Any], **changes: Any) -> tuple[Any, Any]:
    """A plain model with every parameter away from zero, and its training loader."""
    config = GuiderConfig(model, "toy", config_dict=settings_of(model, toy, **changes), command_line=[])
    train, _, _ = prepare_data(config, build_dataset(config))
    init_seed(3, True)
    network = config.model_class(config, train.dataset)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network, train


def test_every_model_that_trains_is_here() -> None:
    assert len(MODELS) == 25 and {"BPR", "NeuMF", "SGL", "NCL", "SimpleX", "DMF", "ENMF", "MultiVAE"} <= set(MODELS)


@pytest.mark.parametrize("model", MODELS)
def test_the_list_says_how_a_model_scores(model: str, toy: dict[str, Any]) -> None:
    network, _ = built(model, toy)
    scoring = Scoring(network.eval())
    assert scoring.kind == {info.name: info.distillation for info in list_models()}[model]
    users = torch.arange(1, 30)
    with torch.no_grad():
        if scoring.factorised:
            of_users, of_items = scoring.matrices()
            torch.testing.assert_close(
                scoring.link(of_users[users] @ of_items.T), scoring.rows(users), rtol=1e-4, atol=1e-6
            )
        elif scoring.kind == "rows":
            assert scoring.rows(users).shape == (29, network.n_items)
    # whichever way the scores are reached, a student learns through them
    chosen = torch.arange(1, 6).expand(29, -1)
    loss = scoring.chosen(users, chosen).square().sum()
    assert any(
        gradient is not None and bool(gradient.abs().sum() > 0)
        for gradient in torch.autograd.grad(loss, trainable(network), allow_unused=True)
    )


@pytest.mark.parametrize("aggregator", ["mean", "user_attention", "self_attention"])
def test_simplex_factorises_with_every_aggregator(aggregator: str, toy: dict[str, Any]) -> None:
    scoring = Scoring(built("SimpleX", toy, aggregator=aggregator)[0].eval())
    with torch.no_grad():
        of_users, of_items = scoring.matrices()
        users = torch.arange(1, 9)
        torch.testing.assert_close(of_users[users] @ of_items.T, scoring.rows(users), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("model", MODELS)
def test_guider_trains_it_and_its_checkpoint_gives_the_same_scores(model: str, toy: dict[str, Any]) -> None:
    config = GuiderConfig(
        f"GUIDER_{model}", "toy", config_dict=settings_of(model, toy, guider=QUICK), command_line=[]
    )
    trainer, train, valid, _ = prepare_run(config)
    before = {name: value.clone() for name, value in trainer.model.named_parameters()}
    trainer.fit(train, valid)
    changed = {name.partition(".")[0] for name, value in trainer.model.named_parameters()
               if not torch.equal(value, before[name])}
    assert changed == {"student", "teacher"}
    assert trainer.model.epoch_losses["distillation"] > 0
    users = torch.arange(1, 20)
    trainer.model.eval()
    with torch.no_grad():
        scores = scores_of(trainer.model, users)
        again = scores_of(load_data_and_model(trainer.saved_model_file)[1], users)
    assert bool(torch.isfinite(scores[:, 1:]).all())
    assert torch.equal(scores, again)


def scores_of(model: Any, users: torch.Tensor) -> torch.Tensor:
    """Scores for all items, by ``predict`` for models that have nothing else."""
    try:
        return model.full_sort_predict(Interaction({"user_id": users})).view(len(users), -1)
    except NotImplementedError:
        pairs = {"user_id": users.repeat_interleave(model.n_items), "item_id": torch.arange(model.n_items).repeat(19)}
        return model.predict(Interaction(pairs)).view(len(users), -1)


@pytest.mark.parametrize("model", ["NeuMF", "MultiVAE", "RecVAE", "SGL", "DMF", "FREEDOM", "DiffRec", "ConvNCF"])
@pytest.mark.parametrize("student", ["BPR", "NeuMF", "MultiDAE"])
def test_it_teaches(model: str, student: str, toy: dict[str, Any]) -> None:
    block = {**QUICK, "teacher": model, "teacher_parameters": SMALL.get(model, {})}
    config = GuiderConfig(
        f"GUIDER_{student}", "toy", config_dict=settings_of(student, toy, guider=block), command_line=[]
    )
    trainer, train, valid, test = prepare_run(config)
    before = {name: value.clone() for name, value in trainer.model.teacher.named_parameters()}
    trainer.fit(train, valid, saved=False)
    assert any(not torch.equal(value, before[name]) for name, value in trainer.model.teacher.named_parameters())
    assert trainer.model.epoch_losses["distillation"] > 0
    with trainer.model.scored_by_teacher():
        assert np.isfinite(list(trainer.evaluate(test, load_best_model=False).values())).all()


@pytest.mark.parametrize("teacher", ["LightGCN", "NeuMF", "MultiVAE"])
@pytest.mark.parametrize("student", ["NGCF", "NeuMF", "MultiVAE"])
@pytest.mark.parametrize("distillation", [{"objective": "kl"}, {"balance": "min_norm"}])
def test_every_objective_and_balance_is_for_every_kind(
    teacher: str, student: str, distillation: dict[str, Any], toy: dict[str, Any]
) -> None:
    block = {**QUICK, "teacher": teacher, "distillation": distillation}
    config = GuiderConfig(f"GUIDER_{student}", "toy", config_dict={**toy, "guider": block}, command_line=[])
    trainer, train, _, _ = prepare_run(config)
    trainer.fit(train, None, saved=False)
    losses = trainer.model.epoch_losses
    # min_norm may give the whole weight to one of the two
    assert np.isfinite(list(losses.values())).all() and losses["student"] + losses["distillation"] > 0


@pytest.mark.parametrize("model", ["NeuMF", "SimpleX", "DMF", "NCL"])
def test_the_student_may_learn_dbpr(model: str, toy: dict[str, Any]) -> None:
    block = {**QUICK, "student_loss": "dbpr"}
    result = run_recbole_guider(f"GUIDER_{model}", "toy", config_dict=settings_of(model, toy, guider=block))
    assert np.isfinite(list(result["test_result"].values())).all()


def test_matrices_of_dmf_train_in_half_precision(toy: dict[str, Any]) -> None:
    settings = settings_of("DMF", toy, guider=QUICK, enable_amp=True)
    result = run_recbole_guider("GUIDER_DMF", "toy", config_dict=settings)
    assert np.isfinite(list(result["test_result"].values())).all()


def test_what_cannot_work_is_an_error_before_training(toy: dict[str, Any]) -> None:
    for model, block, message in [
        ("GUIDER_MultiVAE", {"student_loss": "dbpr"}, "student_loss is dbpr: it needs scores of single pairs"),
        ("GUIDER_BPR", {"teacher": "EASE"}, "guider.teacher: model EASE is of type traditional"),
        ("GUIDER_BPR", {"teacher": "GUIDER_BPR"}, "GUIDER_BPR is a denoised model; name BPR"),
        ("GUIDER_NCEPLRec", {}, "solved when it is made"),
        ("GUIDER_ENMF", {"teacher": "FREEDOM"}, "train_neg_sample_args is none: the loss of FREEDOM compares sampled"),
    ]:
        settings = {**toy, "guider": block}
        if model == "GUIDER_ENMF":
            settings["train_neg_sample_args"] = None
        with pytest.raises(GuiderError, match=message):
            config = GuiderConfig(model, "toy", config_dict=settings, command_line=[])
            prepare_run(config)


# -- trainers with steps of their own --------------------------------------------------------------------------


@pytest.mark.parametrize(("model", "trainer"), [("NCL", NCLTrainer), ("RaCT", RaCTTrainer), ("RecVAE", RecVAETrainer)])
def test_a_models_own_trainer_stays(model: str, trainer: type, toy: dict[str, Any]) -> None:
    config = GuiderConfig(f"GUIDER_{model}", "toy", config_dict=settings_of(model, toy), command_line=[])
    made = prepare_run(config)[0]
    assert isinstance(made, GuiderTraining) and type(made.steps.trainer) is trainer


def test_ncl_clusters_anew_and_warms_up_without_prototypes(toy: dict[str, Any], monkeypatch: Any) -> None:
    block = {**QUICK, "distillation": {"interval": 1}}
    settings = settings_of("NCL", toy, guider=block, epochs=4, m_step=2, warm_up_step=2, proto_reg=1.0)
    config = GuiderConfig("GUIDER_NCL", "toy", config_dict=settings, command_line=[])
    trainer, train, _, _ = prepare_run(config)
    student, clusterings = trainer.model.student, []
    monkeypatch.setattr(student, "e_step", lambda step=student.e_step: (clusterings.append(1), step()))
    given: list[tuple[float, ...]] = []
    stepped: list[float] = []
    calculate = trainer.model.calculate_loss

    def watched(interaction: Any) -> Any:
        losses = calculate(interaction)
        given.append(tuple(loss.item() for loss in losses))
        return losses

    trainer.model.calculate_loss = watched
    check = trainer.steps.trainer._check_nan
    # every loss that is stepped on passes here, right after it was calculated; the teacher's before the student's
    trainer.steps.trainer._check_nan = lambda loss: (
        stepped.append(loss.item()) if len(stepped) < len(given) else None, check(loss)
    )
    trainer.fit(train, None, saved=False)
    assert len(clusterings) == 2  # epochs 0 and 2
    assert len(given) == len(stepped) and all(len(losses) == 3 and losses[2] > 0 for losses in given)
    for number, (losses, total) in enumerate(zip(given, stepped, strict=True)):
        warming_up = number < len(given) // 2
        np.testing.assert_allclose(total, sum(losses[:2] if warming_up else losses), rtol=1e-5)


def test_recvae_trains_encoder_and_decoder_in_turn(toy: dict[str, Any]) -> None:
    settings = settings_of("RecVAE", toy, guider=QUICK, n_enc_epochs=2, n_dec_epochs=1)
    config = GuiderConfig("GUIDER_RecVAE", "toy", config_dict=settings, command_line=[])
    trainer, train, _, _ = prepare_run(config)
    flags, calculate = [], trainer.model.student.calculate_loss
    trainer.model.student.calculate_loss = lambda interaction, encoder_flag: (
        flags.append(encoder_flag), calculate(interaction, encoder_flag))[1]
    trainer.fit(train, None, saved=False)
    assert flags == [True] * 2 * len(train) + [False] * len(train)
    assert trainer.model.epoch_losses["distillation"] > 0


def test_a_killed_recvae_resumes_with_the_states_of_both_its_optimisers(toy: dict[str, Any]) -> None:
    def weights(resume: str | None, kill_after: int | None) -> tuple[dict[str, torch.Tensor], str]:
        settings = settings_of("RecVAE", toy, guider=QUICK, epochs=4, resume=resume)
        config = GuiderConfig("GUIDER_RecVAE", "toy", config_dict=settings, command_line=[])
        trainer, train, valid, _ = prepare_run(config)
        if resume:
            trainer.resume_checkpoint(resume)

        def callback(epoch: int, score: float) -> None:
            if epoch == kill_after:
                raise KeyboardInterrupt

        with suppress(KeyboardInterrupt):
            trainer.fit(train, valid, callback_fn=callback)
        return dict(trainer.model.named_parameters()), trainer.last_model_file

    whole, _ = weights(None, None)
    _, file = weights(None, 1)
    resumed, _ = weights(file, None)
    for name, value in whole.items():
        assert torch.equal(value, resumed[name]), name


def test_ract_runs_its_three_stages_on_each_others_files(toy: dict[str, Any]) -> None:
    file = None
    for stage in ("actor_pretrain", "critic_pretrain", "finetune"):
        settings = settings_of("RaCT", toy, guider=QUICK, train_stage=stage, pre_model_path=file or "")
        result = run_recbole_guider("GUIDER_RaCT", "toy", config_dict=settings)
        assert np.isfinite(list(result["test_result"].values())).all()
        assert load_data_and_model(result["model_file"])[0]["train_stage"] == stage
        file = str(Path("saved") / "GUIDER_RaCT-toy-1.pth")
        assert torch.load(file, weights_only=True)["state_dict"]


def test_ract_saves_its_weights_though_its_stage_is_shorter_than_a_save_step(toy: dict[str, Any]) -> None:
    settings = settings_of("RaCT", toy, guider=QUICK, save_step=10)
    assert Path(run_recbole_guider("GUIDER_RaCT", "toy", config_dict=settings)["model_file"]).exists()


def test_ract_pretraining_resumes_beyond_the_epochs_of_other_stages(toy: dict[str, Any]) -> None:
    def weights(epochs: int, resume: str | None = None) -> tuple[dict[str, torch.Tensor], str]:
        settings = settings_of("RaCT", toy, train_stage="actor_pretrain", epochs=2, pretrain_epochs=epochs)
        trainer, train, valid, _ = prepare_run(GuiderConfig("RaCT", "toy", config_dict=settings, command_line=[]))
        if resume:
            trainer.resume_checkpoint(resume)
        trainer.fit(train, valid)
        return {name: value.clone() for name, value in trainer.model.named_parameters()}, trainer.saved_model_file

    whole, _ = weights(6)
    _, file = weights(4)
    resumed, _ = weights(6, file)
    for name, value in whole.items():
        assert torch.equal(value, resumed[name]), name


@pytest.mark.parametrize("model", ["EASE", "ItemKNN", "AsymKNN", "SLIMElastic", "ADMMSLIM", "NCEPLRec", "Pop"])
def test_what_is_not_trained_by_gradients_runs_and_loads(model: str, toy: dict[str, Any]) -> None:
    result = run_recbole_guider(model, "toy", config_dict={**toy, "epochs": 1})
    config, loaded, _, train, _, test = load_data_and_model(result["model_file"])
    again = training_class(config)(config, loaded).evaluate(test, load_best_model=False)
    assert again == result["test_result"]
    users = torch.arange(1, 20)
    torch.manual_seed(0)
    assert torch.isfinite(scores_of(loaded, users)[:, 1:]).all()


def test_models_of_whole_users_get_their_loader(toy: dict[str, Any]) -> None:
    config = GuiderConfig("GUIDER_MultiVAE", "toy", config_dict=toy, command_line=[])
    assert isinstance(prepare_run(config)[1], UserDataLoader)


def test_the_page_says_what_applies(toy: dict[str, Any]) -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "recbole_models.md").read_text()
    rows = [[cell.strip() for cell in line.strip("| ").split("|")] for line in page.splitlines() if line[:2] == "| "]
    said = {row[0]: (row + [""])[1:6] for row in rows[1:]}
    assert set(said) == set(MODELS)
    words = {
        "subsampled": "rows", "history": "weighted histories", "subsampled history": "subsampled histories"
    }
    for name, (distillation, dbpr, weighting, as_teacher, trainer) in said.items():
        block = {**QUICK, "student_loss": "own", "teacher": name, "teacher_parameters": SMALL.get(name, {})}
        config = GuiderConfig(
            f"GUIDER_{name}", "toy", config_dict=settings_of(name, toy, guider=block), command_line=[]
        )
        train, _, _ = prepare_data(config, build_dataset(config))
        model = config.model_class(config, train.dataset)
        assert (model.student_scoring.kind, words[model.plan.weighting]) == (distillation, weighting), name
        assert (dbpr == "yes") == (distillation != "rows"), name
        assert as_teacher == ("DBPR" if model.plan.teacher_learns_dbpr else "own loss"), name
        assert (trainer or "Trainer") == recboles_trainer(config["MODEL_TYPE"], name).__name__, name
    untrained = re.search(r"^(.*?) have nothing to train", page, re.MULTILINE | re.DOTALL)[1].split("\n\n")[-1]
    listed = {info.name for info in list_models() if info.distillation == "none"}
    assert set(re.findall(r"\w+", untrained.replace(" and ", " "))) == {
        name for name in listed if get_model_class(name).__module__.startswith("recbole.")
    }
