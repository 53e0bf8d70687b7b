"""What becomes of a sweep's journal: tables, importances, the page; and replays."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from recbole_guider import load_data_and_model, run_recbole_guider
from recbole_guider.config.guider_config import GuiderConfig
from recbole_guider.data.dataset import build_dataset
from recbole_guider.quick_start import prepare_run
from recbole_guider.tuning.definition import SweepDefinition
from recbole_guider.tuning.importance import setting_importance
from recbole_guider.tuning.journal import Journal, winner
from recbole_guider.tuning.report import write_report
from recbole_guider.tuning.shared_data import configuration, data_key, pack, unpack
from recbole_guider.tuning.space import read_space
from recbole_guider.tuning.tables import evaluation_table, trial_table, write_tables
from recbole_guider.utils.errors import GuiderError
from recbole_guider.utils.yaml_files import read_yaml, write_yaml

pytestmark = pytest.mark.slow


def metrics(evaluation: int, score: float, best: float, over: bool = False) -> dict[str, Any]:
    return {
        "evaluation": evaluation, "epoch": 2 * evaluation, "valid_score": score, "best_valid_score": best, "over": over,
        "seconds": 1.5, "node": "n", "seed_scores": json.dumps({"1": best - 0.1, "2": best + 0.1}), "stages": "[]",
        "best_valid/recall@5": best,
    }


@pytest.fixture
def definition() -> SweepDefinition:
    return SweepDefinition(
        name="sweep", settings={"model": "<BPR>", "dataset": "toy"}, samples=3, sampler="random", scheduler="none",
        space=read_space({"a": {"uniform": [0, 1]}, "b": {"choice": [None, 64, [64, 32]]}}),
        seeds=(1, 2), sampler_seed=0, metric="Recall@5", bigger=True, evaluations=2, grace_period=1,
        perturbation_interval=1, cpus_per_trial=1, gpus_per_trial=0, max_concurrent=None, time_budget=None, retries=0,
    )


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    """One trial that finished after its first machine was lost, one stopped, one failed, one cut off while written."""
    journal = Journal(tmp_path / "journal.jsonl")
    first, second = {"a": 0.5, "b": [64, 32]}, {"a": 0.1, "b": None}
    journal.write("evaluation", "x_1", settings=first, metrics=metrics(1, 0.3, 0.3))
    journal.write("evaluation", "x_2", settings=second, metrics=metrics(1, 0.4, 0.4))
    journal.write("evaluation", "x_1", settings=first, metrics=metrics(2, 0.2, 0.3))
    journal.write("complete", "x_2")
    journal.write("evaluation", "x_1", settings=first, metrics=metrics(2, 0.6, 0.6, over=True))
    journal.write("complete", "x_1")
    journal.write("failed", "x_3", settings={"a": 0.9, "b": 64}, message="<loss> is nan")
    with open(journal.file, "a") as stream:
        stream.write('{"event": "evaluat')
    return journal


def test_the_journal_folds_into_trials(journal: Journal) -> None:
    trials = {trial.name: trial for trial in journal.trials()}
    assert {name: trial.status for name, trial in trials.items()} == {
        "x_1": "finished", "x_2": "stopped", "x_3": "failed",
    }
    assert [row["valid_score"] for row in trials["x_1"].evaluations] == [0.3, 0.6]  # the repeated one counts once
    assert winner(list(trials.values()), bigger=True) is trials["x_1"]
    assert winner(list(trials.values()), bigger=False) is trials["x_2"]
    assert winner([trials["x_3"]], bigger=True) is None


def test_tables_and_the_page_show_every_trial(journal: Journal, definition: SweepDefinition, tmp_path: Path) -> None:
    trials, evaluations = trial_table(journal.trials(), definition), evaluation_table(journal.trials())
    assert trials["trial"].tolist() == ["x_1", "x_2", "x_3"]
    assert trials["best_valid_score_std"][0] == pytest.approx(np.std([0.5, 0.7], ddof=1))
    assert trials["seconds"].tolist() == [3.0, 1.5, 0.0]
    assert len(evaluations) == 3
    write_tables(trials, evaluations, tmp_path)
    for read, suffix in ((pd.read_csv, "csv"), (pd.read_parquet, "parquet")):
        back = read(tmp_path / f"trials.{suffix}")
        assert back["message"].tolist()[2] == "<loss> is nan"
        assert json.loads(back["b"].tolist()[0]) == [64, 32]
        assert len(read(tmp_path / f"evaluations.{suffix}")) == 3
    result = {
        "best_trial": "x_1", "best_settings": {"a": 0.5}, "best_valid_score": 0.6, "test_result": {"recall@5": 0.5},
        "best_valid_result": {"recall@5": 0.6},
    }
    write_report(tmp_path / "report.html", definition, trials, evaluations, result)
    page = (tmp_path / "report.html").read_text()
    assert "&lt;loss&gt; is nan" in page and "<loss>" not in page and "<BPR>" not in page
    assert "Needs at least 6 trials" in page and '"type":"parcoords"' in page
    write_report(tmp_path / "report.html", definition, *_tables([], definition), {"best_trial": None})
    assert "No trial was evaluated" in (tmp_path / "report.html").read_text()


def _tables(trials: list[Any], definition: SweepDefinition) -> tuple[pd.DataFrame, pd.DataFrame]:
    return trial_table(trials, definition), evaluation_table(trials)


def test_importance_finds_the_setting_that_matters() -> None:
    rng = np.random.default_rng(0)
    table = pd.DataFrame({
        "matters": rng.uniform(size=60), "does not": rng.uniform(size=60), "kind": rng.choice(["x", "y"], 60),
        "always": ["same"] * 60,
    })
    table["best_valid_score"] = (table["matters"] - 0.5) ** 2 + 0.05 * (table["kind"] == "x")
    found = setting_importance(table, ["matters", "does not", "kind", "always"])
    assert found.index[0] == "matters" and found["matters"] > 5 * found["does not"] and found["always"] == 0
    assert found["kind"] > found["does not"]
    assert setting_importance(table.head(5), ["matters"]).empty
    assert setting_importance(table.assign(best_valid_score=0.5), ["matters"]).empty


def test_a_packed_data_set_gives_the_same_run_without_its_files(toy: dict[str, Any], tmp_path: Path) -> None:
    toy = {**toy, "model": "FREEDOM", "dataset": "toy"}
    config = configuration(toy)
    packed = pack(build_dataset(config))
    elsewhere = configuration(toy, data_path=str(tmp_path / "nowhere"))
    trainer, train, valid, _ = prepare_run(elsewhere, unpack(packed, elsewhere))
    scores = trainer.fit(train, valid, saved=False)
    assert scores == _fitted(config)
    # a second run on the same bytes: RecBole changed only its own copy
    trainer, train, valid, _ = prepare_run(elsewhere, unpack(packed, elsewhere))
    assert trainer.fit(train, valid, saved=False) == scores


def _fitted(config: Any) -> Any:
    trainer, train, valid, _ = prepare_run(config)
    return trainer.fit(train, valid, saved=False)


def test_the_data_depend_on_data_settings_and_not_on_the_seed(toy: dict[str, Any]) -> None:
    toy = {**toy, "model": "BPR", "dataset": "toy"}
    key = data_key(configuration(toy))
    assert key == data_key(configuration(toy, seed=3, learning_rate=0.5))
    assert key != data_key(configuration(toy, user_inter_num_interval="[5,inf)"))
    assert key != data_key(configuration(toy, noise={"features": 0.5}))
    frames = []
    for seed in (1, 2):
        random.seed(seed)
        frames.append(build_dataset(configuration(toy, seed=seed)).inter_feat)
    pd.testing.assert_frame_equal(*frames)


@pytest.mark.parametrize("model", ["GUIDER_FREEDOM", "BPR"])
def test_replay_stops_and_changes_settings_where_it_says(model: str, toy: dict[str, Any]) -> None:
    """Against the same thing by hand: runs that end, and that resume with other settings."""
    toy = {**toy, "epochs": 6}
    stages = [{"epoch": 2, "settings": {"learning_rate": 0.05, "train_batch_size": 64}}]
    replayed = run_recbole_guider(
        model, "toy", config_dict={**toy, "learning_rate": 0.001, "replay": {"stages": stages, "stop_after": 5}}
    )

    class Ends(Exception):
        pass

    def until(epochs: int, resume: str | None, **changes: Any) -> Any:
        config = GuiderConfig(model, "toy", config_dict={**toy, **changes}, command_line=[])
        trainer, train, valid, test = prepare_run(config)
        if resume:
            trainer.resume_checkpoint(resume)

        def callback(epoch: int, score: float) -> None:
            if epoch + 1 == epochs:
                raise Ends

        with pytest.raises(Ends):
            trainer.fit(train, valid, callback_fn=callback)
        return trainer, test

    first, _ = until(2, None, learning_rate=0.001)
    second, test = until(5, first.last_model_file, learning_rate=0.05, train_batch_size=64)
    assert replayed["best_valid_score"] == second.best_valid_score
    assert replayed["best_valid_result"] == second.best_valid_result
    assert replayed["test_result"] == second.evaluate(test)
    # the new learning rate holds, for the teacher too
    assert {group["lr"] for held in second.optimizers().values() for group in held.param_groups} == {0.05}
    plain = run_recbole_guider(model, "toy", config_dict={**toy, "learning_rate": 0.001})
    assert replayed["best_valid_score"] != plain["best_valid_score"]
    assert load_data_and_model(replayed["model_file"])[1] is not None


def test_written_yaml_reads_back_to_the_same_values(tmp_path: Path) -> None:
    content = {
        "a": 1e-05, "b": "1e-3", "c": "123", "d": None, "e": True, "f": "no", "g": [1, "x", {"y": 0.1}], "h": 1e22,
        "i": {"k.l": "~"}, "j": 0.1 + 0.2, "m": "ü: #", "n": float("inf"),
    }
    write_yaml(content, tmp_path / "x.yaml", "first line\nsecond: line")
    assert read_yaml(tmp_path / "x.yaml") == content
    assert (tmp_path / "x.yaml").read_text().startswith("# first line\n# second: line\n")


def test_a_definition_reads_back_and_tells_a_foreign_file(definition: SweepDefinition) -> None:
    assert SweepDefinition.from_plain(json.loads(json.dumps(definition.to_plain()))) == definition
    with pytest.raises(GuiderError):
        SweepDefinition.from_plain({**definition.to_plain(), "space": {}})
