"""MMGCN, GRCN, DualGNN, MVGAE and SLMRec in whole runs: on ml-100k, under GUIDER, and resumed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from recbole_guider import list_models, load_data_and_model, run_recbole_guider
from recbole_guider.config import GuiderConfig
from recbole_guider.quick_start import _prepare

MODELS = ("MMGCN", "GRCN", "DualGNN", "MVGAE", "SLMRec")


@pytest.mark.parametrize("model", MODELS)
def test_an_epoch_on_ml_100k_lowers_the_loss(model: str) -> None:
    settings = {
        "embedding_size": 16, "latent_embedding": 16, "latent_size": 32, "train_batch_size": 4096,
        "learning_rate": 0.01, "use_gpu": False, "show_progress": False, "state": "ERROR",
    }
    config = GuiderConfig(model, "ml-100k", config_dict=settings, command_line=[])
    trainer, train, _, _ = _prepare(config)
    losses = []
    calculate_loss = trainer.model.calculate_loss

    def recorded(batch: Any) -> torch.Tensor:
        loss = calculate_loss(batch)
        losses.append(loss.item())
        return loss

    trainer._train_epoch(train, 0, loss_func=recorded)
    assert len(losses) == len(train) > 15
    assert np.isfinite(losses).all()
    assert np.mean(losses[-4:]) < np.mean(losses[:4]) - 0.02


@pytest.mark.parametrize("student_loss", ["own", "dbpr"])
@pytest.mark.parametrize("model", MODELS)
def test_guider_trains_it_and_its_checkpoint_gives_it_back(
    model: str, student_loss: str, toy: dict[str, Any]
) -> None:
    settings = {**toy, "epochs": 1, "guider": {"student_loss": student_loss}}
    result = run_recbole_guider(f"GUIDER_{model}", "toy", config_dict=settings)
    assert np.isfinite(list(result["test_result"].values())).all()
    _, again, _, _, _, test = load_data_and_model(result["model_file"])
    again.eval()
    with torch.no_grad():
        assert all(torch.isfinite(again.full_sort_predict(batch[0])).all() for batch in test)
    known = {info.name: info for info in list_models()}
    assert known[model].distillation == "factorised"


class Killed(Exception):
    """Stands for a kill in the middle of a run."""


@pytest.mark.parametrize(
    ("model", "changes"),
    [("MVGAE", {}), ("SLMRec", {"ssl_task": "FD+FM"}), ("GUIDER_MVGAE", {})],
    ids=str,
)
def test_what_draws_random_numbers_resumes_to_the_same_weights(
    model: str, changes: dict[str, Any], toy: dict[str, Any]
) -> None:
    def weights(resume: str | None, kill_after: int | None) -> tuple[dict[str, torch.Tensor], str]:
        settings = {**toy, **changes, "epochs": 4, "resume": resume}
        trainer, train, valid, _ = _prepare(GuiderConfig(model, "toy", config_dict=settings, command_line=[]))
        if resume:
            trainer.resume_checkpoint(resume)

        def callback(epoch: int, score: float) -> None:
            if epoch == kill_after:
                raise Killed

        try:
            trainer.fit(train, valid, saved=True, callback_fn=callback)
        except Killed:
            return {}, trainer.last_model_file
        state = {name: value for name, value in trainer.model.state_dict().items() if torch.is_tensor(value)}
        return state, trainer.last_model_file

    whole, _ = weights(None, None)
    _, last_file = weights(None, kill_after=1)
    resumed, _ = weights(last_file, None)
    assert set(whole) == set(resumed)
    for name, value in whole.items():
        assert torch.equal(value, resumed[name]), name
