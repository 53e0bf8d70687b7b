"""Whole runs: the plain model bit for bit, GUIDER around it, and checkpoints that give everything back."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from recbole.trainer import Trainer
from recbole.utils import init_seed
from resuming import assert_resumes_exactly

import recbole_guider
from recbole_guider import load_data_and_model, objective_function, run_recbole_guider
from recbole_guider.config.guider_config import GuiderConfig
from recbole_guider.data.dataset import build_dataset, prepare_data
from recbole_guider.quick_start import prepare_run
from recbole_guider.training.checkpoint import load
from recbole_guider.utils.errors import GuiderError

pytestmark = pytest.mark.own_calibration


def scores_of(model: Any, data: Any) -> torch.Tensor:
    """Scores of every user that ``data`` evaluates, over all items."""
    with torch.no_grad():
        model.eval()
        return torch.cat([model.full_sort_predict(batch[0]).view(len(batch[0]), -1) for batch in data])


@pytest.mark.parametrize("model", ["LightGCN", "BPR", "FREEDOM"])
def test_plain_model_is_the_same_model_in_recboles_trainer_bit_for_bit(model: str, toy: dict[str, Any]) -> None:
    ours = run_recbole_guider(model, "toy", config_dict={**toy, "guider": False})

    config = GuiderConfig(model, "toy", config_dict=toy, command_line=[])
    init_seed(config["seed"], config["reproducibility"])
    train, valid, test = prepare_data(config, build_dataset(config))
    init_seed(config["seed"], config["reproducibility"])
    network = config.model_class(config, train.dataset)
    trainer = Trainer(config, network)
    score, result = trainer.fit(train, valid, saved=False)
    # RecBole tests the last state if nothing is saved; both runs improve in their last epoch or agree on the best one
    assert ours["best_valid_score"] == score
    assert ours["best_valid_result"] == result
    assert ours["calibration"] is None


def test_plain_lightgcn_equals_recboles_own_entry_point(toy: dict[str, Any]) -> None:
    from recbole.config import Config
    from recbole.data import create_dataset, data_preparation
    from recbole.model.general_recommender import LightGCN

    settings = {key: value for key, value in toy.items() if key != "modalities"}
    ours = run_recbole_guider("LightGCN", "toy", config_dict=settings, saved=False)
    config = Config("LightGCN", "toy", config_dict=settings)
    init_seed(config["seed"], config["reproducibility"])
    train, valid, test = data_preparation(config, create_dataset(config))
    init_seed(config["seed"], config["reproducibility"])
    trainer = Trainer(config, LightGCN(config, train.dataset).to(config["device"]))
    score, result = trainer.fit(train, valid, saved=False)
    assert (ours["best_valid_score"], ours["best_valid_result"]) == (score, result)
    assert ours["test_result"] == trainer.evaluate(test, load_best_model=False)


@pytest.mark.parametrize("backbone", ["FREEDOM", "LightGCN", "BPR"])
def test_guider_run_returns_what_it_promises_and_reloads_identically(backbone: str, toy: dict[str, Any]) -> None:
    result = run_recbole_guider(f"GUIDER_{backbone}", "toy", config_dict=toy)
    assert set(result) == {
        "best_valid_score", "valid_score_bigger", "best_valid_result", "test_result", "calibration", "model_file",
    }
    found = result["calibration"]
    training = load_data_and_model(result["model_file"])[3].dataset
    assert found["n_true"] + found["n_false"] == len(training.inter_feat)
    assert 0 <= found["noise_rate"] < 1
    config, model, dataset, train, valid, test = load_data_and_model(result["model_file"])
    assert config["model"] == f"GUIDER_{backbone}" and config["backbone"] == backbone
    # the same checkpoint, loaded again, and evaluated by RecBole's trainer as the run did
    again = load_data_and_model(result["model_file"])[1]
    assert torch.equal(scores_of(model, test), scores_of(again, test))
    trainer = Trainer(config, model)
    trainer.eval_collector.data_collect(train)
    assert trainer.evaluate(test, load_best_model=False) == result["test_result"]


def test_no_user_is_left_without_a_true_interaction(toy: dict[str, Any]) -> None:
    block = {"calibration": {"decision": "quantile", "noise_rate": 0.9}, "dbpr": {"soft": False}}
    result = run_recbole_guider("GUIDER_BPR", "toy", config_dict={**toy, "epochs": 1, "guider": block})
    probability = load(result["model_file"])["extra_state"]["clean_probability"]
    users = load_data_and_model(result["model_file"])[3].dataset.inter_feat["user_id"]
    assert int((probability >= 0.5).sum()) == result["calibration"]["n_true"]
    assert set(users[probability >= 0.5].tolist()) == set(users.tolist())


def test_the_same_seed_gives_the_same_numbers_and_another_seed_others(toy: dict[str, Any]) -> None:
    first, second, other = (
        run_recbole_guider("GUIDER_FREEDOM", "toy", config_dict={**toy, "seed": seed}) for seed in (1, 1, 2)
    )
    for key in ("best_valid_score", "best_valid_result", "test_result", "calibration"):
        assert first[key] == second[key]
    assert first["test_result"] != other["test_result"]


@pytest.mark.slow
@pytest.mark.parametrize("model", ["GUIDER_FREEDOM", "LightGCN"])
@pytest.mark.parametrize("schedule", ["in_sync", "pretrained"])
def test_a_killed_run_resumes_to_the_same_weights(model: str, schedule: str, toy: dict[str, Any]) -> None:
    settings = {**toy, "epochs": 5}
    if model.startswith("GUIDER"):
        settings["guider"] = {"schedule": schedule, "dbpr": {"eta": 0.1}}
    elif schedule == "pretrained":
        settings["learner"] = "adamw"  # a plain model has no schedule; another optimiser instead
    assert_resumes_exactly(model, settings, kill_after=2)


def test_checkpoints_are_plain_data_and_carry_teacher_and_both_optimisers(toy: dict[str, Any]) -> None:
    result = run_recbole_guider("GUIDER_FREEDOM", "toy", config_dict=toy)
    state = torch.load(result["model_file"], weights_only=True)
    assert any(name.startswith("teacher.") for name in state["state_dict"])
    assert any(name.startswith("student.") for name in state["state_dict"])
    assert state["optimizers"]["states"]["optimizer"]["state"]
    assert state["extra_state"]["teacher"]["states"]["optimizer"]["state"]
    assert len(list(Path("saved").iterdir())) == 1


def test_guider_block_and_guider_name_are_the_same_run(toy: dict[str, Any]) -> None:
    by_name = run_recbole_guider("GUIDER_FREEDOM", "toy", config_dict=toy)
    by_block = run_recbole_guider("FREEDOM", "toy", config_dict={**toy, "guider": {"teacher": "LightGCN"}})
    assert by_name["test_result"] == by_block["test_result"]
    assert by_name["best_valid_result"] == by_block["best_valid_result"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "block",
    [
        {"schedule": "pretrained"},
        {"student_loss": "dbpr"},
        {"teacher_loss": "own", "student_loss": "own"},
        {"calibration": {"confidence": "none", "weights": "uniform"}},
        {"dbpr": {"form": "pairwise", "gamma": 0.1, "soft": False}},
        {"dbpr": {"own_as": "ignore", "eta": 0.5}},
        {"distillation": {"plan": "batch"}},
        {"distillation": {"objective": "kl"}},
        {"distillation": {"cost": "scores", "balance": "min_norm"}},
        {"distillation": {"objective": "none"}, "student_loss": "dbpr"},
        {"calibration": {"method": "none"}},
        {"calibration": {"modalities": ["image"], "behaviour": False}},
        {"teacher": "BPR"},
    ],
    ids=str,
)
def test_every_choice_of_the_block_trains(block: dict[str, Any], toy: dict[str, Any]) -> None:
    result = run_recbole_guider("GUIDER_FREEDOM", "toy", config_dict={**toy, "guider": block})
    assert np.isfinite(list(result["test_result"].values())).all()


@pytest.mark.parametrize("learner", ["adagrad", "sgd"])
def test_a_fused_step_is_asked_of_optimisers_that_make_its_state_late(learner: str, toy: dict[str, Any]) -> None:
    config = GuiderConfig("GUIDER_FREEDOM", "toy", config_dict={**toy, "learner": learner}, command_line=[])
    trainer, train, _, _ = prepare_run(config)
    for optimizer in (trainer.optimizer, trainer.teacher_steps.trainer.optimizer):
        assert bool(optimizer.param_groups[0]["fused"]) is (learner == "sgd")
    trainer.fit(train, None, saved=False)


def test_a_backbone_without_matrices_distils_on_candidates(toy: dict[str, Any]) -> None:
    result = run_recbole_guider("GUIDER_NeuMF", "toy", config_dict=toy)
    assert np.isfinite(list(result["test_result"].values())).all()


def test_losses_fall_and_the_student_learns_the_planted_tastes(toy: dict[str, Any]) -> None:
    config = GuiderConfig("GUIDER_FREEDOM", "toy", config_dict={**toy, "epochs": 15}, command_line=[])
    trainer, train, valid, test = prepare_run(config)
    losses = []
    report = trainer.report_losses
    trainer.report_losses = lambda epoch, each: (losses.append(each), report(epoch, each))
    trainer.fit(train, valid, saved=False)
    assert len(losses) == 15 and all(len(each) == 3 for each in losses)
    for first, last in zip(losses[0], losses[-1], strict=True):
        assert last < 0.9 * first
    # five of forty items at random would give .125; a taste has ten items
    assert trainer.evaluate(test, load_best_model=False)["recall@5"] > 0.3


def test_gradients_of_the_teacher_do_not_count_in_the_students_clipping(toy: dict[str, Any]) -> None:
    config = GuiderConfig(
        "GUIDER_FREEDOM", "toy", config_dict={**toy, "epochs": 1, "clip_grad_norm": {"max_norm": 1.0}}, command_line=[]
    )
    trainer, train, _, _ = prepare_run(config)
    seen = []
    calculate = trainer.model.calculate_loss

    def watched(interaction: Any) -> Any:
        seen.append([parameter.grad for parameter in trainer.model.teacher.parameters()])
        return calculate(interaction)

    trainer.model.calculate_loss = watched
    trainer.fit(train, None, saved=False)
    assert seen and all(gradient is None for batch in seen for gradient in batch)


@pytest.mark.parametrize("model", ["GUIDER_FREEDOM", "SMORE", "DAMRS"])
def test_mixed_precision_runs(model: str, toy: dict[str, Any]) -> None:
    result = run_recbole_guider(model, "toy", config_dict={**toy, "enable_amp": True})
    assert np.isfinite(list(result["test_result"].values())).all()


def test_objective_function_reports_validation(toy: dict[str, Any]) -> None:
    result = objective_function({**toy, "model": "GUIDER_FREEDOM", "dataset": "toy"}, saved=False)
    assert result["model"] == "GUIDER_FREEDOM"
    assert result["best_valid_score"] == result["best_valid_result"]["recall@5"]


@pytest.mark.slow
def test_two_runs_in_one_process_keep_their_logs_apart(toy: dict[str, Any]) -> None:
    # in a process of its own: pytest's handlers on the root logger would keep RecBole from adding any
    program = f"""
import logging
from recbole_guider import run_recbole_guider
for _ in range(2):
    run_recbole_guider("BPR", "toy", config_dict={ {**toy, "epochs": 1}!r})
print(sum(isinstance(handler, logging.FileHandler) for handler in logging.getLogger().handlers))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split()[-1] == "1"


def test_a_foreign_checkpoint_is_refused(tmp_path: Path) -> None:
    torch.save({"config": object}, tmp_path / "pickled.pth")
    with pytest.raises(GuiderError, match="pickled.pth is not a checkpoint"):
        load_data_and_model(tmp_path / "pickled.pth")
    with pytest.raises(GuiderError, match="There is no checkpoint nowhere.pth"):
        load_data_and_model("nowhere.pth")


def test_the_script_and_the_command_tell_errors_in_one_line(toy_folder: Path) -> None:
    script = Path(recbole_guider.__file__).parent.parent / "run_recbole_guider.py"
    done = subprocess.run(
        [sys.executable, str(script), "--model=GUIDER_FREDOM"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "FREEDOM" in done.stderr and done.stderr.strip().splitlines()[-1].startswith("error: ")
    assert not Path("saved").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"checkpoint_dir": "taken"}, "checkpoint_dir is taken: .*taken is a file, and must be a folder"),
        ({"checkpoint_dir": "taken/inside"}, "checkpoint_dir is taken/inside: .*taken is a file"),
        ({"log_wandb": True}, "the package wandb is not installed: pip install wandb"),
        ({"valid_metric": "MRR@5"}, "valid_metric is MRR@5, .* one of recall@5, ndcg@5"),
        ({"valid_metric": "Recall@10"}, "valid_metric is Recall@10, which metrics and topk do not give"),
    ],
)
def test_what_would_fail_after_an_epoch_fails_before_it(
    changes: dict[str, Any], message: str, toy: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_training(*arguments: Any, **more: Any) -> None:
        raise AssertionError("it trains")

    Path("taken").write_text("")
    monkeypatch.setattr(Trainer, "fit", no_training)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(GuiderError, match=message):
        run_recbole_guider("BPR", "toy", config_dict={**toy, **changes})


def test_metrics_without_a_cutoff_can_decide(toy: dict[str, Any]) -> None:
    changes = {"metrics": ["GAUC", "ShannonEntropy"], "epochs": 1}
    for metric in ("GAUC", "shannonentropy@5"):
        run_recbole_guider("BPR", "toy", config_dict={**toy, **changes, "valid_metric": metric}, saved=False)
