"""DRAGON, LGMRec, SMORE, PGL and DAMRS in whole runs: on ml-100k, denoised, and resumed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from recbole_guider import run_recbole_guider
from recbole_guider.config import GuiderConfig
from recbole_guider.quick_start import _prepare
from recbole_guider.registry import list_models

#: each with settings that make it draw random numbers, where it can
MODELS: dict[str, dict[str, Any]] = {
    "DRAGON": {},
    "LGMRec": {"dropout": 0.5},
    "SMORE": {"dropout": 0.2},
    "PGL": {"subgraph": "local", "feature_dropout": 0.2},
    "DAMRS": {},
}
SMALL = {
    "epochs": 1, "embedding_size": 16, "train_batch_size": 4096, "show_progress": False, "state": "ERROR",
    "use_gpu": False, "topk": [10], "metrics": ["Recall"], "valid_metric": "Recall@10", "learning_rate": 0.01,
    "eval_args": {"split": {"RS": [0.8, 0.1, 0.1]}, "order": "RO", "group_by": "user", "mode": "full"},
    "modalities": {
        "title": {"columns": ["movie_title"], "encoder": "tfidf_svd", "dim": 16},
        "genre": {"columns": ["class", "release_year"], "encoder": {"class": "multi_hot", "release_year": "numeric"}},
    },
}


class Killed(Exception):
    """Stands for a kill in the middle of a run."""


def test_they_are_listed_as_factorised_models_of_content() -> None:
    found = {info.name: info for info in list_models()}
    for model in MODELS:
        assert found[model].kind == "multimodal" and found[model].distillation == "factorised"


@pytest.mark.parametrize("model", MODELS)
def test_an_epoch_on_ml_100k(model: str) -> None:
    result = run_recbole_guider(model, "ml-100k", config_dict={**SMALL, **MODELS[model]}, saved=False)
    # a random ranking of some 1,600 items would recall .006
    assert result["test_result"]["recall@10"] > 0.03


@pytest.mark.parametrize("student_loss", ["own", "dbpr"])
@pytest.mark.parametrize("model", MODELS)
def test_an_epoch_denoised(model: str, student_loss: str, toy: dict[str, Any]) -> None:
    settings = {**toy, "epochs": 1, "guider": {"student_loss": student_loss}}
    result = run_recbole_guider(f"GUIDER_{model}", "toy", config_dict=settings)
    assert np.isfinite(list(result["test_result"].values())).all()


@pytest.mark.parametrize("model", MODELS)
def test_the_loss_falls_and_the_planted_tastes_are_learned(model: str, toy: dict[str, Any]) -> None:
    config = GuiderConfig(model, "toy", config_dict={**toy, "epochs": 15}, command_line=[])
    trainer, train, valid, test = _prepare(config)
    trainer.fit(train, valid, saved=False)
    losses = list(trainer.train_loss_dict.values())
    assert float(losses[-1]) < 0.9 * float(losses[0])
    # five of forty items at random would give .125
    assert trainer.evaluate(test, load_best_model=False)["recall@5"] > 0.3


@pytest.mark.parametrize("model", [*MODELS, "GUIDER_PGL"])
def test_a_killed_run_resumes_to_the_same_weights(model: str, toy: dict[str, Any]) -> None:
    settings = {**toy, "epochs": 4, **MODELS[model.removeprefix("GUIDER_")]}

    def weights(resume: str | None, kill_after: int | None) -> tuple[dict[str, Any], str]:
        config = GuiderConfig(model, "toy", config_dict={**settings, "resume": resume}, command_line=[])
        trainer, train, valid, _ = _prepare(config)
        if resume:
            trainer.resume_checkpoint(resume)

        def callback(epoch: int, score: float) -> None:
            if epoch == kill_after:
                raise Killed

        try:
            trainer.fit(train, valid, saved=True, callback_fn=callback)
        except Killed:
            return {}, trainer.last_model_file
        return trainer.model.state_dict(), trainer.last_model_file

    whole, _ = weights(None, None)
    _, last_file = weights(None, kill_after=1)
    assert Path(last_file).exists()
    resumed, _ = weights(last_file, None)
    assert set(whole) == set(resumed)
    for name, value in whole.items():
        if torch.is_tensor(value):
            assert torch.equal(value, resumed[name]), name
