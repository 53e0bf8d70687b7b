"""What can be continued from a checkpoint, and what cannot: then one sentence says why."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from resuming import Killed, assert_resumes_exactly

from recbole_guider import load_data_and_model, run_recbole_guider
from recbole_guider.config.guider_config import GuiderConfig
from recbole_guider.quick_start import prepare_run
from recbole_guider.utils.errors import GuiderError

pytestmark = pytest.mark.slow


def interrupted(model: str, settings: dict[str, Any], after: int, metric_falls: bool = False) -> Any:
    """The trainer of a run on the toy data that was killed after epoch ``after``, its files left as they were."""
    config = GuiderConfig(model, "toy", config_dict=settings, command_line=[])
    trainer, train, valid, _ = prepare_run(config)
    if metric_falls:
        validate = trainer.validate
        trainer.validate = lambda *a, **k: (-float(len(trainer.train_loss_dict)), validate(*a, **k)[1])

    def callback(epoch: int, score: float) -> None:
        if epoch == after:
            raise Killed

    with pytest.raises(Killed):
        trainer.fit(train, valid, saved=True, callback_fn=callback)
    return trainer


AUTOENCODER = {"mlp_hidden_size": [16], "latent_dimension": 8, "total_anneal_steps": 20, "train_batch_size": 16}
DIFFUSION = {"dims_dnn": [16], "steps": 2, "history_num_per_term": 4, "train_batch_size": 16}
DISTILLER = {"distiller": {"_batch"}}
CLUSTERS = {"num_clusters": 3, "m_step": 3, "warm_up_step": 0}


@pytest.mark.parametrize(
    ("model", "changes", "kept"),
    [
        ("MultiVAE", AUTOENCODER, {"": {"update"}}),
        ("GUIDER_MultiVAE", AUTOENCODER, {"student": {"update"}, **DISTILLER}),
        (
            "GUIDER_BPR",
            {"guider": {"teacher": "MultiVAE", "teacher_parameters": AUTOENCODER}},
            {"teacher": {"update"}, **DISTILLER},
        ),
        ("DiffRec", DIFFUSION, {"": {"Lt_history", "Lt_count"}}),
        ("LINE", {}, {"": {"random_list", "random_pr"}}),
        ("NCL", CLUSTERS, {"": {"user_centroids", "user_2cluster", "item_centroids", "item_2cluster"}}),
        ("LightGCN", {}, {}),
    ],
)
def test_what_a_model_keeps_in_attributes_is_resumed(
    model: str, changes: dict[str, Any], kept: dict[str, set[str]], toy: dict[str, Any]
) -> None:
    def look(state: dict[str, Any]) -> None:
        assert {path: set(values) for path, values in state["attributes"].items()} == kept

    assert_resumes_exactly(model, {**toy, **changes, "epochs": 4}, kill_after=1, look=look)


def test_the_checkpoint_of_a_resumed_run_loads(toy: dict[str, Any]) -> None:
    file = interrupted("GUIDER_FREEDOM", {**toy, "epochs": 3}, after=1).last_model_file
    result = run_recbole_guider("GUIDER_FREEDOM", "toy", config_dict={**toy, "epochs": 3, "resume": file})
    assert not Path(file).exists()
    assert load_data_and_model(result["model_file"])[0]["resume"] is None


def test_the_best_model_has_its_own_validation_result(toy: dict[str, Any]) -> None:
    trainer = interrupted("LightGCN", {**toy, "epochs": 4}, after=2)
    scores = [torch.load(file, weights_only=True) for file in (trainer.saved_model_file, trainer.last_model_file)]
    for state in scores:
        assert state["best_valid_result"]["recall@5"] == state["best_valid_score"] > 0


def test_a_run_is_not_resumed_without_its_best_model(toy: dict[str, Any], tmp_path: Path) -> None:
    settings = {**toy, "epochs": 4}
    trainer = interrupted("LightGCN", settings, after=1, metric_falls=True)
    moved = Path(shutil.move(trainer.last_model_file, tmp_path / "elsewhere.last.pth"))
    with pytest.raises(GuiderError, match=f"best model so far is {Path(trainer.saved_model_file).name}"):
        run_recbole_guider("LightGCN", "toy", config_dict={**settings, "resume": str(moved)})
    # where the best model is the latest one, nothing is missing
    trainer = interrupted("LightGCN", settings, after=0)
    moved = Path(shutil.move(trainer.last_model_file, tmp_path / "elsewhere.last.pth"))
    result = run_recbole_guider("LightGCN", "toy", config_dict={**settings, "resume": str(moved)})
    assert Path(result["model_file"]).parent == tmp_path and Path(result["model_file"]).exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"embedding_size": 8}, "embedding_size was 16 and is 8"),
        ({"guider": {"teacher": "BPR"}}, "does not fit the model of this run"),
        ({"resume": True}, "resume is True: there is no such checkpoint"),
        ({"resume": ""}, "resume is empty: there is no such checkpoint"),
        ({"seed": 7}, r"a run on other training interactions, .* the seed \(7 here\)"),
        ({"noise": {"deleted": 0.1}}, "was trained on .* interactions and the data set has .*: resume with the data"),
    ],
    ids=["size", "teacher", "no file", "empty", "seed", "noise"],
)
def test_resuming_with_other_settings_says_which(changes: dict[str, Any], message: str, toy: dict[str, Any]) -> None:
    settings = {**toy, "embedding_size": 16}
    file = interrupted("GUIDER_FREEDOM", settings, after=0).last_model_file
    with pytest.raises(GuiderError, match=message):
        run_recbole_guider("GUIDER_FREEDOM", "toy", config_dict={**settings, "resume": file, **changes})


def test_a_plain_model_is_not_resumed_on_another_split(toy: dict[str, Any]) -> None:
    file = interrupted("LightGCN", toy, after=0).last_model_file
    with pytest.raises(GuiderError, match="a run on other training interactions"):
        run_recbole_guider("LightGCN", "toy", config_dict={**toy, "seed": 7, "resume": file})


def test_loading_a_model_starts_no_logging(
    toy: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = Path(run_recbole_guider("GUIDER_FREEDOM", "toy", config_dict=toy)["model_file"]).absolute()
    state = torch.load(file, weights_only=True)
    state["config"]["log_wandb"] = True
    torch.save(state, file)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    load_data_and_model(file)
    assert {path.name for path in Path().iterdir()} <= {"log"}
