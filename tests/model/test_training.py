"""Every backbone of this package in whole runs: on ml-100k, on planted tastes, denoised, as a teacher, and resumed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from resuming import assert_resumes_exactly

from recbole_guider import list_models, load_data_and_model, run_recbole_guider
from recbole_guider.config.guider_config import GuiderConfig
from recbole_guider.config.registry import get_model_class
from recbole_guider.quick_start import prepare_run
from recbole_guider.utils.errors import GuiderError

pytestmark = pytest.mark.slow

OURS = [info for info in list_models() if get_model_class(info.name).__module__.startswith("recbole_guider.")]
TRAINED = sorted(info.name for info in OURS if info.kind != "traditional")
#: what makes a model draw random numbers, where its defaults do not
DRAWING: dict[str, dict[str, Any]] = {
    "DGCN": {"dropout": 0.3},
    "LATTICE": {"cf_model": "ngcf"},
    "LGMRec": {"dropout": 0.5},
    "LayerGCN": {"dropout": 0.3},
    "MMGCF": {"dropout": 0.3},
    "PGL": {"subgraph": "local", "feature_dropout": 0.2},
    "SLMRec": {"ssl_task": "FD+FM"},
    "SMORE": {"dropout": 0.2},
}
#: models whose loss of a batch is a sum over its rows
SUMS = ("LayerGCN", "DGCN")
#: models that rank well after an epoch
QUICK_TO_LEARN = ("LayerGCN", "MMGCF", "DRAGON", "LGMRec", "SMORE", "PGL")
#: small runs on ml-100k
SMALL: dict[str, Any] = {
    "epochs": 1, "embedding_size": 16, "feat_embed_dim": 16, "latent_embedding": 16, "latent_size": 32,
    "train_batch_size": 4096, "learning_rate": 0.01, "show_progress": False, "state": "ERROR", "use_gpu": False,
    "topk": [10], "metrics": ["Recall"], "valid_metric": "Recall@10",
    "modalities": {
        "title": {"columns": ["movie_title"], "encoder": "tfidf_svd", "dim": 16},
        "genre": {"columns": ["class", "release_year"], "encoder": {"class": "multi_hot", "release_year": "numeric"}},
    },
}


# DAMRS weighs its rows by what it has learned so far: its loss rises at first, and falls in the test of planted tastes
@pytest.mark.parametrize("model", [model for model in TRAINED if model != "DAMRS"])
def test_an_epoch_on_ml_100k_lowers_the_loss(model: str) -> None:
    trainer, train, _, test = prepare_run(GuiderConfig(model, "ml-100k", config_dict=SMALL, command_line=[]))
    losses = []
    calculate_loss = trainer.model.calculate_loss

    def recorded(batch: Any) -> torch.Tensor:
        loss = calculate_loss(batch)
        losses.append(loss.item() / (len(batch) if model in SUMS else 1))
        return loss

    trainer.model.calculate_loss = recorded
    trainer.steps.run(train, 0)
    assert len(losses) == len(train) > 15
    assert np.isfinite(losses).all()
    assert np.mean(losses[-4:]) < np.mean(losses[:4]) - 0.02
    if model in QUICK_TO_LEARN:
        # a random ranking of some 1,600 items would recall .006
        assert trainer.evaluate(test, load_best_model=False)["recall@10"] > 0.03


@pytest.mark.parametrize(("model", "least"), [("ItemKNNCBF", 0.01), ("DAMRS", 0.03)])
def test_an_epoch_on_ml_100k_ranks_better_than_chance(model: str, least: float) -> None:
    result = run_recbole_guider(model, "ml-100k", config_dict=SMALL, saved=False)
    assert result["test_result"]["recall@10"] > least


@pytest.mark.parametrize("model", ["LayerGCN", "DGCN", "MMGCF", "DRAGON", "LGMRec", "SMORE", "PGL", "DAMRS"])
def test_the_loss_falls_and_the_planted_tastes_are_learned(model: str, toy: dict[str, Any]) -> None:
    config = GuiderConfig(model, "toy", config_dict={**toy, "epochs": 15, "drop_iterations": 1}, command_line=[])
    trainer, train, valid, test = prepare_run(config)
    trainer.fit(train, valid, saved=False)
    losses = list(trainer.train_loss_dict.values())
    assert float(losses[-1]) < 0.9 * float(losses[0])
    # five of forty items at random would give .125
    assert trainer.evaluate(test, load_best_model=False)["recall@5"] > 0.3


@pytest.mark.parametrize("student_loss", ["own", "dbpr"])
@pytest.mark.parametrize("model", TRAINED)
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


@pytest.mark.parametrize("teacher", ["LayerGCN", "DGCN"])
def test_an_epoch_as_a_teacher(teacher: str, toy: dict[str, Any]) -> None:
    settings = {**toy, "epochs": 1, "guider": {"teacher": teacher}}
    result = run_recbole_guider("GUIDER_FREEDOM", "toy", config_dict=settings)
    assert np.isfinite(list(result["test_result"].values())).all()


RESUMED = [(model, DRAWING.get(model, {})) for model in TRAINED if model != "SelfCF"]
AUGMENTATIONS = ("embedding_dropout", "historical_embedding", "edge_pruning")
RESUMED += [("SelfCF", {"augmentation": kind}) for kind in AUGMENTATIONS]
RESUMED += [(f"GUIDER_{model}", DRAWING.get(model, {})) for model in ("BM3", "DGCN", "MVGAE", "PGL")]


@pytest.mark.parametrize(("model", "changes"), RESUMED, ids=str)
def test_a_killed_run_resumes_to_the_same_weights(model: str, changes: dict[str, Any], toy: dict[str, Any]) -> None:
    # killed after an odd number of epochs: LayerGCN prunes by turns
    assert_resumes_exactly(model, {**toy, **changes, "epochs": 4}, kill_after=0)


@pytest.mark.parametrize("block", [False, {"student_loss": "own", "teacher": "BPR"}], ids=["plain", "GUIDER"])
def test_a_loss_that_compares_sampled_items_says_so_before_training(block: Any, toy: dict[str, Any]) -> None:
    settings = {**toy, "train_neg_sample_args": None, "guider": block}
    with pytest.raises(GuiderError, match="train_neg_sample_args is none: the loss of VBPR compares sampled items"):
        run_recbole_guider("VBPR", "toy", config_dict=settings)
