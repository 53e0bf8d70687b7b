"""Whole sweeps on Ray: what they report, what comes out, and what happens when something breaks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import pytest
import ray
import torch

from recbole_guider import load_data_and_model, run_recbole_guider
from recbole_guider.config.guider_config import GuiderConfig
from recbole_guider.denoising import METHODS
from recbole_guider.tuning import tune_guider
from recbole_guider.tuning.journal import Journal
from recbole_guider.tuning.shared_data import configuration
from recbole_guider.tuning.space import read_space
from recbole_guider.tuning.sweep import _check_unchanged, _common_settings, _define
from recbole_guider.utils.errors import GuiderError
from recbole_guider.utils.yaml_files import read_yaml, write_yaml

pytestmark = pytest.mark.slow

MEMORY = 80_000_000


@pytest.fixture(scope="module")
def small_ray() -> Iterator[None]:
    """Two CPUs of this machine, for several sweeps."""
    ray.init("local", num_cpus=2, object_store_memory=MEMORY, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture
def toy_bpr(toy: dict[str, Any]) -> dict[str, Any]:
    """A run that takes no time: no content, no calibration; and that lasts as long as it is told."""
    return {**{key: value for key, value in toy.items() if key != "modalities"}, "epochs": 3, "stopping_step": 1000}


def lines_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "journal.jsonl").read_text().splitlines()]


def evaluations_of(out: Path) -> list[tuple[str, int]]:
    """(trial, number of the evaluation), in the order of the journal."""
    return [
        (line["trial"], line["metrics"]["evaluation"]) for line in lines_of(out) if line["event"] == "evaluation"
    ]


def test_a_grid_with_seeds_and_a_trial_that_turns_nan(small_ray: None, toy: dict[str, Any], tmp_path: Path) -> None:
    out = tmp_path / "sweep"
    space = {"guider.dbpr.eta": {"choice": [0.0, 0.1]}, "learning_rate": {"choice": [0.05, 1e30]}}
    result = tune_guider(
        "GUIDER_FREEDOM", "toy", config_dict=toy, space=space, out=out, sampler="grid", scheduler="none", seeds=[7, 8],
        verbose=False,
    )

    # all combinations; the impossible ones failed with their message, and the others went on
    table = result["trials"]
    assert len(table) == 4
    failed = table[table["learning_rate"] == 1e30]
    assert (failed["status"] == "failed").all() and failed["best_valid_score"].isna().all()
    assert failed["message"].str.contains("nan|inf|NaN|infinite").all(), failed["message"].tolist()
    good = table[table["learning_rate"] == 0.05]
    assert (good["status"] == "finished").all() and np.isfinite(good["best_valid_score"]).all()
    assert set(good["guider.dbpr.eta"]) == {0.0, 0.1}

    # every evaluation was reported, test never
    rows = [line for line in lines_of(out) if line["event"] == "evaluation"]
    assert sorted((row["trial"], row["metrics"]["evaluation"]) for row in rows) == sorted(
        (trial, evaluation) for trial in good["trial"] for evaluation in (1, 2)
    )
    assert not any("test" in key for row in rows for key in row["metrics"])
    for row in rows:
        scores = json.loads(row["metrics"]["seed_scores"])
        assert set(scores) == {"7", "8"}
        assert np.isclose(np.mean(list(scores.values())), row["metrics"]["best_valid_score"])

    # the winner: best mean; its file gives the same numbers with each seed, and so do the stored models
    assert result["best_valid_score"] == table["best_valid_score"].max() and result["best_trial"] == table["trial"][0]
    best = [result["best_config_file"]]
    reruns = [run_recbole_guider(config_file_list=best, config_dict={"seed": seed}) for seed in (7, 8)]
    for key, value in result["test_result"].items():
        assert np.mean([rerun["test_result"][key] for rerun in reruns]) == value
        assert np.mean([rerun["best_valid_result"][key] for rerun in reruns]) == result["best_valid_result"][key]
    assert np.mean([rerun["best_valid_score"] for rerun in reruns]) == result["best_valid_score"]
    assert read_yaml(best[0])["seed"] == 7
    config, model, *_ = load_data_and_model(result["model_files"]["8"])
    weights = load_data_and_model(reruns[1]["model_file"])[1].state_dict()
    stored = model.state_dict()
    assert config["seed"] == 8
    assert all(torch.equal(stored[name], value) for name, value in weights.items() if torch.is_tensor(value))

    # the tables say the same
    assert pd.read_csv(out / "trials.csv")["trial"].tolist() == table["trial"].tolist()
    pd.testing.assert_frame_equal(pd.read_parquet(out / "trials.parquet"), table, check_dtype=False)
    assert len(pd.read_parquet(out / "evaluations.parquet")) == 4

    # AMSC judged the data once for each seed, though all trials needed it at once
    assert len(list((out / "trials" / "calibrations").glob("*.npz"))) == 2

    # nothing of one trial lies in another's folder or in ours
    assert {entry.name for entry in tmp_path.iterdir()} <= {"sweep", "saved", "log", "log_tensorboard"}  # ours: reruns
    for trial in good["trial"]:
        (folder,) = out.glob(f"trials/*{trial}*")
        assert list(folder.rglob("log/**/*.log")) and (folder / "settings.yaml").is_file()
        assert not list(folder.rglob("work-*"))

    # TensorBoard has the curves
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (folder,) = out.glob(f"trials/*{result['best_trial']}*")
    (events,) = folder.glob("events.out.tfevents*")
    accumulator = EventAccumulator(str(events)).Reload()
    assert [event.value for event in accumulator.Scalars("ray/tune/valid_score")] == pytest.approx(
        [row["metrics"]["valid_score"] for row in rows if row["trial"] == result["best_trial"]]
    )


def test_the_page_has_its_plots_and_no_address(small_ray: None, toy_bpr: dict[str, Any], tmp_path: Path) -> None:
    """ASHA, on the way: of trials that differ much it stops some, and the winner's file gives its number."""
    space = {"learning_rate": {"loguniform": [1e-6, 0.2]}, "embedding_size": {"int": [4, 16]}}
    result = tune_guider(
        "BPR", "toy", config_dict={**toy_bpr, "epochs": 9}, space=space, out=tmp_path / "sweep", samples=8,
        grace_period=1, verbose=False, sampler_seed=3,
    )
    table = result["trials"]
    assert len(table) == 8 and set(table["status"]) == {"finished", "stopped"}
    assert (table[table["status"] == "finished"]["epochs"] == 9).all()
    assert (table[table["status"] == "stopped"]["epochs"] < 9).all()
    rerun = run_recbole_guider(config_file_list=[result["best_config_file"]])
    assert rerun["best_valid_score"] == result["best_valid_score"] and rerun["test_result"] == result["test_result"]
    page = Path(result["report"]).read_text()
    for part in ('"type":"parcoords"', '"type":"scatter"', '"type":"bar"', "All trials", table["trial"][7]):
        assert part in page
    assert 'src="http' not in page and "src='http" not in page


def test_population_based_training_and_the_way_to_its_winner(
    small_ray: None, toy_bpr: dict[str, Any], tmp_path: Path
) -> None:
    space = {"learning_rate": {"loguniform": [1e-4, 0.1]}, "weight_decay": {"choice": [0.0, 0.001, 0.01]}}
    result = tune_guider(
        "BPR", "toy", config_dict={**toy_bpr, "epochs": 5}, space=space, out=tmp_path / "sweep", samples=4,
        scheduler="pbt", perturbation_interval=1, verbose=False,
    )
    table = result["trials"]
    assert (table["status"] == "finished").all() and (table["epochs"] == 5).all()
    last = {line["trial"]: line for line in lines_of(tmp_path / "sweep") if line["event"] == "evaluation"}
    paths = [json.loads(line["metrics"]["stages"]) for line in last.values()]
    assert any(len(path) > 1 for path in paths)  # somebody went on from somebody else
    for path, line in zip(paths, last.values(), strict=True):
        assert path[-1]["settings"] == line["settings"]
        assert all(1e-4 <= stage["settings"]["learning_rate"] <= 0.1 for stage in path)
    rerun = run_recbole_guider(config_file_list=[result["best_config_file"]])
    assert rerun["best_valid_score"] == result["best_valid_score"] and rerun["test_result"] == result["test_result"]


@pytest.mark.parametrize("sampler", ["hyperopt", "optuna"])
def test_samplers_that_learn(sampler: str, small_ray: None, toy_bpr: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip(sampler, reason=f"{sampler} is optional, and is not installed here")
    space = {
        "learning_rate": {"loguniform": [1e-3, 0.1]}, "embedding_size": {"choice": [8, 16]}, "weight_decay":
        {"quniform": [0, 0.01, 0.001]}, "seed": {"int": [1, 3]}, "train_batch_size": {"choice": [64, 128]},
    }
    result = tune_guider(
        "BPR", "toy", config_dict={**toy_bpr, "epochs": 1}, space=space, out=tmp_path / "sweep", samples=3,
        sampler=sampler, max_concurrent=1, verbose=False,
    )
    assert (result["trials"]["status"] == "finished").all() and len(result["trials"]) == 3
    assert result["trials"]["learning_rate"].nunique() == 3


def test_a_killed_process_is_a_failed_trial(small_ray: None, toy_bpr: dict[str, Any], tmp_path: Path) -> None:
    journal = Journal(tmp_path / "sweep" / "journal.jsonl")

    def kill() -> None:
        wait_until(lambda: journal.trials())
        os.kill(journal.trials()[0].last["pid"], signal.SIGKILL)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    result = tune_guider(
        "BPR", "toy", config_dict={**toy_bpr, "epochs": 30}, space={"learning_rate": {"choice": [0.1, 0.01]}},
        out=tmp_path / "sweep", sampler="grid", scheduler="none", max_concurrent=1, verbose=False,
    )
    killer.join(timeout=60)
    table = result["trials"].set_index("status")
    assert sorted(table.index) == ["failed", "finished"]
    assert table["message"]["failed"].startswith("the worker process died")
    assert result["best_trial"] == table["trial"]["finished"]


# -- a process of its own, interrupted ----------------------------------------------------------------------------


def command(toy: dict[str, Any], out: Path, *more: str) -> list[str]:
    """``recbole-guider tune`` of three trials on the toy data, one at a time."""
    write_yaml(toy, out.parent / "toy.yaml")
    write_yaml({"learning_rate": {"loguniform": [0.001, 0.1]}}, out.parent / "space.yaml")
    program = "import sys; from recbole_guider.cli.main import main; sys.exit(main())"
    return [
        sys.executable, "-c", program, "tune", "--model=BPR", "--dataset=toy", "--config_files",
        str(out.parent / "toy.yaml"), "--space", str(out.parent / "space.yaml"), "--samples", "3",
        "--scheduler", "none", "--max-concurrent", "1", "--epochs", "25", "--out", str(out), *more,
    ]


def wait_until(condition: Any, seconds: float = 300.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)


def test_an_interrupted_sweep_leaves_no_process_and_goes_on(toy_bpr: dict[str, Any], tmp_path: Path) -> None:
    out = tmp_path / "sweep"
    sweep = subprocess.Popen(command(toy_bpr, out), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        journal = Journal(out / "journal.jsonl")
        wait_until(lambda: len(journal.trials()) == 2 and len(journal.trials()[1].evaluations) >= 2)
        children = psutil.Process(sweep.pid).children(recursive=True)
        assert len(children) > 3  # Ray's, and the trial
    finally:
        sweep.send_signal(signal.SIGINT)
    said, _ = sweep.communicate(timeout=200)
    assert sweep.returncode == 130, said
    assert f"recbole-guider tune --out={out} --resume" in said and "Traceback" not in said
    _, alive = psutil.wait_procs(children, timeout=60)
    assert not alive, alive

    before = journal.trials()
    assert [trial.status for trial in before] == ["finished", "unfinished"]
    assert 2 <= len(before[1].evaluations) < 25
    again = subprocess.run(command(toy_bpr, out, "--resume"), capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "3 trials" in again.stdout and "3 finished" in again.stdout
    trials = journal.trials()
    assert [trial.status for trial in trials] == ["finished"] * 3
    evaluations = evaluations_of(out)
    assert evaluations.count((trials[0].name, 1)) == 1 and evaluations.count((trials[1].name, 1)) == 1
    assert sorted(set(evaluations)) == sorted((trial.name, k) for trial in trials for k in range(1, 26))
    # and the interrupted trial ended where it would have ended without the interruption
    settings = next(out.glob(f"trials/*{trials[1].name}*")) / "settings.yaml"
    assert run_recbole_guider(config_file_list=[str(settings)])["best_valid_score"] == trials[1].best_valid_score


# -- several machines ---------------------------------------------------------------------------------------------


def test_a_cluster_of_two_nodes_loses_one(toy_bpr: dict[str, Any], tmp_path: Path) -> None:
    from ray.cluster_utils import Cluster

    ray.shutdown()
    out = tmp_path / "sweep"
    cluster = Cluster(
        initialize_head=True, shutdown_at_exit=False,  # its hooks could not be set from another thread
        head_node_args={"num_cpus": 1, "object_store_memory": MEMORY, "include_dashboard": False},
    )
    seen: dict[str, Any] = {}

    def lose_a_node() -> None:
        journal = Journal(out / "journal.jsonl")
        home = None

        def away(trials: list[Any]) -> list[Any]:
            return [trial for trial in trials if trial.last and trial.last["node"] != home]

        # the second node joins when the sweep is on the first: of two on one machine Ray takes either as the driver's
        wait_until((out / "sweep.json").exists)
        other = cluster.add_node(num_cpus=1, object_store_memory=MEMORY)
        wait_until(lambda: journal.trials())
        home = ray.get_runtime_context().get_node_id()
        wait_until(lambda: any(trial.status == "finished" for trial in away(journal.trials())))
        wait_until(lambda: any(trial.status == "unfinished" for trial in away(journal.trials())))
        definition = json.loads((out / "sweep.json").read_text())
        server = ray.get_actor(definition["name"])
        reference = ray.get(server.data.remote(definition["settings"]))[0]
        seen["places"] = ray.experimental.get_object_locations([reference])[reference]["node_ids"]
        seen["built"] = ray.get(server.built.remote())
        cluster.remove_node(other, allow_graceful=False)
        seen["finished"] = {trial.name: trial.last for trial in journal.trials() if trial.status == "finished"}
        seen["home"] = home

    killer = threading.Thread(target=lose_a_node, daemon=True)
    killer.start()
    try:
        result = tune_guider(
            "BPR", "toy", config_dict={**toy_bpr, "epochs": 30}, space={"learning_rate": {"loguniform": [0.001, 0.1]}},
            out=out, samples=6, scheduler="none", address=cluster.address, verbose=False,
            time_budget=300,  # rather fail than wait for ever
        )
        killer.join(timeout=60)
    finally:
        ray.shutdown()
        cluster.shutdown()
    assert "home" in seen, "the node was never killed"
    # the data were read once, and lay on both machines
    assert seen["built"] == 1 and len(seen["places"]) == 2
    # trials ran on both, what was finished stayed as it was, and the others finished on the machine that was left
    nodes = {node for trial in Journal(out / "journal.jsonl").trials() for node in {trial.last["node"]}}
    assert len(nodes) == 2 and seen["home"] in nodes
    assert (result["trials"]["status"] == "finished").all() and len(result["trials"]) == 6
    assert (result["trials"]["epochs"] == 30).all()
    assert any(metrics["node"] != seen["home"] for metrics in seen["finished"].values())
    after = {trial.name: trial.last for trial in Journal(out / "journal.jsonl").trials()}
    assert all(after[name] == metrics for name, metrics in seen["finished"].items())
    lines = evaluations_of(out)
    assert all(lines.count((name, k)) == 1 for name in seen["finished"] for k in range(1, 31))


def test_a_machine_that_refuses_the_server_is_asked_again(
    small_ray: None, toy_bpr: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray.util import scheduling_strategies

    real, asked = scheduling_strategies.NodeAffinitySchedulingStrategy, []

    def strategy(node: str, soft: bool) -> Any:
        asked.append(node)
        return real(node if len(asked) > 1 else "a" * len(node), soft=soft)  # as from a machine that does not know it

    monkeypatch.setattr(scheduling_strategies, "NodeAffinitySchedulingStrategy", strategy)
    result = tune_guider(
        "BPR", "toy", config_dict={**toy_bpr, "epochs": 1}, space={"learning_rate": {"choice": [0.01]}},
        out=tmp_path / "sweep", sampler="grid", scheduler="none", verbose=False,
    )
    assert len(asked) == 2 and (result["trials"]["status"] == "finished").all()


def test_a_time_budget_stops_what_runs_and_takes_the_best_so_far(
    small_ray: None, toy_bpr: dict[str, Any], tmp_path: Path
) -> None:
    settings = {**toy_bpr, "epochs": 1_000_000, "stopping_step": 1_000_000}
    result = tune_guider(
        "BPR", "toy", config_dict=settings, space={"learning_rate": {"loguniform": [0.001, 0.1]}}, samples=40,
        out=tmp_path / "sweep", scheduler="none", time_budget=25, verbose=False,
    )
    trials = result["trials"]
    assert not (trials["status"] == "finished").any()  # none can reach its last epoch
    assert trials["epochs"].max() < 1_000_000
    assert result["best_valid_score"] == trials["best_valid_score"].max()
    assert result["test_result"] and (tmp_path / "sweep" / "best.yaml").exists()


# -- what is wrong is said before anything starts -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"space": None}, "no search space is given"),
        ({"space": {"learnig_rate": {"choice": [1]}}}, "did you mean learning_rate"),
        ({"space": {"guider.dbpr.etta": {"choice": [1]}}}, "gives guider.dbpr.etta the value 1: .*etta"),
        ({"space": {"guider.dbpr.eta": {"choice": [0.1, -1]}}}, "gives guider.dbpr.eta the value -1"),
        ({"space": {"learning_rate": {"uniform": [0, 1]}}, "sampler": "grid"}, "no finite grid"),
        ({"space": {"epochs": {"choice": [1, 2]}}}, "could not be compared"),
        ({"space": {"eval_args.mode": {"choice": ["full", "uni100"]}}}, "could not be compared"),
        ({"space": {"topk": {"choice": [[5], [3]]}}}, r"gives topk the value \[3\]: valid_metric is .*@5, which"),
        ({"config_dict": {"guider": False}, "space": {"guider.dbpr.eta": {"choice": [0.1]}}}, "guider is False"),
        ({"cpus_per_trial": 1000}, "cpus_per_trial is 1000, but this machine has .* CPUs: no trial could start"),
        ({"gpus_per_trial": 1000}, "gpus_per_trial is 1000, but this machine has .* GPUs: no trial could start"),
        ({"sampler": "bayes"}, "must be one of random, grid, hyperopt, optuna"),
        ({"scheduler": "median"}, "must be one of asha, pbt, none"),
        ({"scheduler": "pbt", "sampler": "grid"}, "works with the sampler random"),
        ({"samples": 0}, "samples is 0: it must be at least 1"),
        ({"cpus_per_trial": 0}, "cpus_per_trial is 0"),
        ({"seeds": 0}, "seeds is 0"),
        ({"seeds": [1, 1]}, "different seeds"),
        ({"resume": True}, "there is no sweep in .* to resume"),
        ({"config_dict": {"epochs": 2, "eval_step": 5}}, "without an evaluation"),
    ],
)
def test_wrong_input_is_one_clear_sentence(
    change: dict[str, Any], message: str, toy: dict[str, Any], tmp_path: Path
) -> None:
    given = {"config_dict": toy, "space": {"learning_rate": {"choice": [0.1, 0.01]}}, **change}
    given["config_dict"] = {**toy, **given["config_dict"]}
    with pytest.raises(GuiderError, match=message):
        tune_guider("GUIDER_FREEDOM", "toy", out=tmp_path / "sweep", **given)
    assert not (tmp_path / "sweep" / "sweep.json").exists()


@pytest.mark.parametrize("sampler", ["hyperopt", "optuna"])
def test_a_sampler_that_is_not_installed(sampler: str, toy: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recbole_guider.tuning.samplers.find_spec", lambda name: None)
    with pytest.raises(GuiderError, match=f"needs the package {sampler}: pip install {sampler}"):
        tune_guider("BPR", "toy", config_dict=toy, space={"seed": {"int": [1, 2]}}, out="sweep", sampler=sampler)


@pytest.mark.parametrize("release", ["2.7.0", "2.42.1"])
def test_releases_of_ray_between_the_two_generations(
    release: str, toy: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray, "__version__", release)
    with pytest.raises(GuiderError, match=f"Ray {release} is installed"):
        tune_guider("BPR", "toy", config_dict=toy, space={"seed": {"int": [1, 2]}}, out=tmp_path / "sweep")
    assert not (tmp_path / "sweep").exists()


def test_common_settings_mean_what_they_mean_in_a_run(toy: dict[str, Any], tmp_path: Path) -> None:
    """A dotted key sets one entry of a mapping, whether all trials share it or each has its own."""
    given = ["--train_neg_sample_args.sample_num=2", "--epochs=4"]
    config = GuiderConfig("BPR", "toy", config_dict=toy, command_line=given)
    space = read_space({"train_neg_sample_args.alpha": {"choice": [0.5]}, "guider.dbpr.eta": {"choice": [0.3]}})
    settings, _ = _common_settings("BPR", "toy", None, toy, given)
    definition = _define(settings, config, space, None, {}, on_cluster=False)
    same = configuration(definition.trial_settings({}))
    for key, value in config.final_config_dict.items():
        assert same[key] == value, key
    changed = configuration(
        definition.trial_settings({"train_neg_sample_args.alpha": 0.5, "guider.dbpr.eta": 0.3})
    )
    assert changed["train_neg_sample_args"] == {**config["train_neg_sample_args"], "alpha": 0.5}
    assert changed["train_neg_sample_args"]["sample_num"] == 2
    assert changed["guider"]["dbpr"]["eta"] == 0.3 and changed["model"] == "GUIDER_BPR"

    # and what a resumed sweep is given must be as it was
    folder = tmp_path / "sweep"
    for unchanged in ({"settings": {"embedding_size": 16, "epochs": 4}}, {"samples": 20, "space": space}, {}):
        _check_unchanged(definition, unchanged, None, folder)
    for key, different in (
        ("epochs", {"settings": {"epochs": 5}}), ("samples", {"samples": 3}),
        ("space", {"space": read_space({"learning_rate": {"choice": [1]}})}),
    ):
        with pytest.raises(GuiderError, match=f"{key} is .*, but the sweep in .* was started with"):
            _check_unchanged(definition, different, None, folder)
    with pytest.raises(GuiderError, match="seeds is"):
        _check_unchanged(definition, {}, 2, folder)


def test_a_folder_with_a_sweep_is_not_overwritten_and_resumed_only_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "sweep.json").write_text("{}")
    with pytest.raises(GuiderError, match="holds a sweep already"):
        tune_guider("BPR", "ml-100k", space={"seed": {"int": [1, 2]}}, out=tmp_path)
    with pytest.raises(GuiderError, match="is not the definition of a sweep"):
        tune_guider(out=tmp_path, resume=True)
    assert os.listdir(tmp_path) == ["sweep.json"]


def test_trials_import_a_file_of_the_users_own(small_ray: None, toy_bpr: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "mine_for_trials.py"
    file.write_text(
        "from typing import Literal\n"
        "from recbole_guider import register_denoising\n"
        "from recbole_guider.denoising import DenoisingMethod, DenoisingSettings\n\n"
        "class ScaledSettings(DenoisingSettings):\n"
        "    method: Literal['scaled'] = 'scaled'\n"
        "    share: float = 1.0\n\n"
        "@register_denoising\n"
        "class Scaled(DenoisingMethod):\n"
        "    name, settings_class = 'scaled', ScaledSettings\n\n"
        "    def loss(self, sample):\n"
        "        return self.settings.share * sample.logits.row_losses().mean()\n"
    )
    try:
        result = tune_guider(
            "BPR", "toy", config_dict={**toy_bpr, "epochs": 1, "denoising": "scaled", "import": str(file)},
            space={"denoising.share": {"choice": [0.5, 1.0]}}, out=tmp_path / "sweep", sampler="grid", scheduler="none",
            verbose=False,
        )
        assert (result["trials"]["status"] == "finished").all() and len(result["trials"]) == 2
    finally:
        METHODS.pop("scaled")
