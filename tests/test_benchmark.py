"""Benchmarks: what a spec means, runs that are kept, and what the report says of them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

import recbole_guider
from recbole_guider import run_recbole_guider
from recbole_guider.benchmark.report import _rounded, comparisons, curves, summary_table, write_report
from recbole_guider.benchmark.runner import _reason, metrics_of, read_results, read_users, run_benchmark
from recbole_guider.benchmark.spec import level_of, read_spec
from recbole_guider.cli.main import main
from recbole_guider.data.eval_mask import PerUserEvaluator
from recbole_guider.evaluation import compare
from recbole_guider.training.loop import Training
from recbole_guider.utils.errors import GuiderError
from recbole_guider.utils.resources import properties_dir

pytestmark = pytest.mark.slow

SPECS = Path(recbole_guider.__file__).resolve().parent.parent / "benchmarks" / "specs"


@pytest.fixture
def write(tmp_path: Path, toy: dict[str, Any]) -> Any:
    """``write(**changes)``: a spec on the toy data, two methods on one model; its file."""
    settings = {key: value for key, value in toy.items() if key not in ("state", "show_progress")}
    (tmp_path / "toy.yaml").write_text(yaml.safe_dump(settings))

    def make(**changes: Any) -> Path:
        spec = {
            "datasets": {"toy": "toy.yaml"}, "models": ["BPR"], "seeds": 2,
            "methods": {"plain": {}, "T-BPR": {"denoising": "t-bpr"}}, **changes,
        }
        file = tmp_path / "spec.yaml"
        file.write_text(yaml.safe_dump(spec, sort_keys=False))
        return file

    return make


# -- the spec -----------------------------------------------------------------------------------------------------


def test_a_run_is_known_by_its_settings_with_their_defaults(
    write: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def key(**settings: Any) -> str:
        guided = {"G": {"guider": True}}
        spec = read_spec(write(models=["FREEDOM"], methods=guided, seeds=[7], settings={"epochs": 1, **settings}))
        return spec.cells[0].key

    first = key()
    assert key(guider={"dbpr": {"eta": 0.1}}) == first  # the default, named
    assert key(show_progress=True, use_gpu=False) == first
    assert key(checkpoint_dir="elsewhere", worker=1, eval_memory_mb=7) == first
    assert key(data_path="elsewhere", guider={"calibration": {"cache": "elsewhere"}}) == first
    different = [key(guider={"dbpr": {"eta": 0.2}}), key(learning_rate=0.1)]
    assert len({first, *different}) == 3
    # the same spec after a default changed
    folder = tmp_path / "properties"
    shutil.copytree(properties_dir(), folder)
    file = folder / "model" / "FREEDOM.yaml"
    file.write_text(file.read_text().replace("n_ui_layers: 2", "n_ui_layers: 3"))
    monkeypatch.setattr("recbole_guider.config.guider_config.properties_dir", lambda: folder)
    assert key() not in {first, *different}


def test_cells_are_the_product_with_later_dimensions_on_top(write: Any) -> None:
    spec = read_spec(
        write(
            models={"small": {"model": "LightGCN", "n_layers": 1}, "BPR": None},
            methods={"plain": {}, "G": {"guider": {"dbpr": {"eta": 0.3}}}},
            noise=[0, 0.2], seeds=[7, 8], settings={"epochs": 1, "guider": {"dbpr": {"gamma": 0.5}}},
            skip=[{"model": "BPR", "method": "G", "noise": "20%"}],
        )
    )
    assert len(spec.cells) == 2 * 2 * 2 * 2 - 2 and len({cell.key for cell in spec.cells}) == len(spec.cells)
    cell = next(c for c in spec.cells if (c.model, c.method, c.noise, c.seed) == ("small", "G", "20%", 8))
    config = cell.config()
    assert config["model"] == "GUIDER_LightGCN" and config["n_layers"] == 1 and config["seed"] == 8
    assert config["noise"]["interactions"] == 0.2 and config["noise"]["seed"] == 8
    assert (config.guider_settings.dbpr.eta, config.guider_settings.dbpr.gamma) == (0.3, 0.5)
    plain = next(c for c in spec.cells if c.method == "plain").config()
    assert plain.guider_settings is None  # the values of all runs do not switch GUIDER on


@pytest.mark.parametrize(
    ("model", "method", "on"),
    [
        ({}, {"guider": {}}, True),
        ({}, {"guider.student_loss": "own"}, True),
        ({"guider": {"student_loss": "own"}}, {}, True),
        ({"guider": True}, {"guider": False}, False),
        ({"guider.student_loss": "own"}, {"guider": None}, False),
        ({}, {"guider": None}, False),
        ({"model": "GUIDER_LightGCN"}, {}, True),
        ({"model": "GUIDER_LightGCN"}, {"guider": None}, True),
        ({"model": "GUIDER_LightGCN"}, {"guider": False}, False),
    ],
)
def test_what_switches_guider_on(model: dict[str, Any], method: dict[str, Any], on: bool, write: Any) -> None:
    models, methods = {"M": {"model": "LightGCN", **model}}, {"X": method}
    spec = read_spec(write(models=models, methods=methods, settings={"guider": {"dbpr": {"eta": 0.3}}}))
    assert (spec.cells[0].config().guider_settings is not None) == on


def test_the_method_plain_is_plain_whatever_the_models_name(write: Any) -> None:
    spec = read_spec(write(models=["GUIDER_BPR"], methods=["plain", "guider"], seeds=1))
    assert [cell.config().guider_settings is not None for cell in spec.cells] == [False, True]
    assert spec.cells[0].key == read_spec(write(models=["BPR"], methods=["plain"], seeds=1)).cells[0].key


def test_a_data_set_alone_does_not_switch_guider_on(write: Any, tmp_path: Path) -> None:
    file = write(methods=["plain", "guider"])
    (tmp_path / "more.yaml").write_text("guider: {student_loss: own}\n")
    content = yaml.safe_load(file.read_text()) | {"datasets": {"toy": ["toy.yaml", "more.yaml"]}}
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    plain, guided = (cell.config().guider_settings for cell in read_spec(file).cells[:2])
    assert plain is None and guided.student_loss == "own"


def test_lists_of_methods_and_packaged_data(write: Any, tmp_path: Path) -> None:
    spec = read_spec(write(datasets=["ml-100k"], methods=["plain", "guider", "r-ce"], seeds=1))
    assert [cell.method for cell in spec.cells] == ["plain", "guider", "r-ce"]
    assert [cell.config().denoising_settings is not None for cell in spec.cells] == [False, False, True]
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine.yaml").write_text("epochs: 77\n")
    mine = read_spec(write(datasets=["mine"]), tmp_path / "data").cells[0]
    assert mine.config()["epochs"] == 77


def test_every_share_of_noise_is_a_level_of_its_own(write: Any) -> None:
    spec = read_spec(write(noise=[0, 0.001, 0.004, 0.07, 0.125], seeds=1))
    assert list(spec.settings.noise) == ["none", "0.1%", "0.4%", "7%", "12.5%"]
    assert len({cell.key for cell in spec.cells}) == len(spec.cells) == 10


@pytest.mark.parametrize("name", sorted(path.stem for path in SPECS.glob("*.yaml")))
def test_the_specs_of_the_repository_are_valid(name: str) -> None:
    spec = read_spec(SPECS / f"{name}.yaml")
    assert len(spec.cells) >= 24


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"datasets": None}, "names no datasets"),
        ({"modles": []}, r"spec\.modles is not a setting; did you mean spec\.models"),
        ({"methods": ["plain", "t-cee"]}, "spec.methods names 't-cee': a name is one of plain, guider, t-ce"),
        ({"methods": {"x": {"denoising": {"method": "t-ce", "beta": 1}}}}, "method x, noise none: denoising.beta is"),
        ({"models": ["LigthGCN"]}, "model LigthGCN, .*: there is no model 'LigthGCN'; did you mean LightGCN"),
        ({"noise": {"a": {"interaction": 1}}}, "noise a: noise.interaction is not a setting"),
        ({"baseline": "none"}, "baseline is 'none', which is none of the methods"),
        ({"datasets": {"toy": "nowhere.yaml"}}, "spec.datasets.toy: file .*nowhere.yaml does not exist"),
        ({"datasets": {"toy": {"file": "toy.yaml"}}}, "spec.datasets.toy.file is not a setting. Allowed: files, s"),
        ({"datasets": {"toy": 5}}, "spec.datasets.toy is 5: give a file, a list of files, or a block"),
        ({"datasets": {"toy": [5]}}, r"spec.datasets.toy: files is \[5\]: it must be a file or a list"),
        ({"datasets": {"toy": {"settings": 5}}}, "spec.datasets.toy.settings is 5: it must be a block"),
        ({"models": [{"BPR": {"epochs": 1}}]}, "spec.models lists .*: a list is of names; for settings, make models a"),
        ({"models": ["GRU4Rec"]}, "model GRU4Rec, .*: RecBole does not accept this configuration: .*should be None"),
        ({"methods": ["plain", {"G": {"guider": True}}]}, "spec.methods names {'G': .*: a name is one of plain"),
        ({"methods": {"plain": {}, "T": "t-bpr"}}, "spec.methods.T is 't-bpr': it must be a block of settings"),
        ({"noise": {"a": 0.2}}, "spec.noise.a is 0.2: it must be a block of settings"),
        ({"noise": 0.2}, r"spec.noise is 0.2: give a list of shares such as \[0, 0.2\], or a block"),
        ({"noise": ["none", 0.2]}, "spec.noise lists 'none': a list is of shares such as 0 and 0.2"),
        ({"noise": [True]}, "spec.noise lists True: a list is of shares"),
        ({"noise": [float("nan")]}, "spec.noise lists nan: a list is of shares"),
        ({"noise": [0.2, 0.2]}, "spec.noise lists 20% twice"),
        ({"seeds": []}, r"spec.seeds is \[\]: it must be a number of seeds >= 1, or a list of seeds"),
        ({"seeds": 0}, "spec.seeds is 0: it must be a number of seeds >= 1"),
        ({"seeds": True}, "spec.seeds is True: it must be a number of seeds >= 1"),
        ({"seeds": [-1]}, "spec.seeds lists -1: a seed is a whole number from 0"),
        ({"seeds": [1.5]}, "spec.seeds lists 1.5: a seed is a whole number"),
        ({"seeds": [True]}, "spec.seeds lists True: a seed is a whole number"),
        ({"seeds": [2020, 2020]}, "spec.seeds lists 2020 twice"),
        ({"skip": {"method": "plain"}}, "spec.skip is {'method': 'plain'}: it must be a list of blocks such as"),
        ({"skip": [{"modle": "BPR"}]}, "spec.skip names 'modle'; did you mean model"),
        ({"skip": [{"method": "tbpr"}]}, "spec.skip: method 'tbpr' is not in the spec; it has plain, T-BPR"),
        ({"skip": [{"seed": 7}]}, "spec.skip: seed 7 is not in the spec; it has 2020, 2021"),
        ({"settings": {"epochs": "abc"}}, "model BPR, .*: epochs is 'abc': it must be a whole number >= 0"),
        ({"settings": {"learning_rate": "abc"}}, "model BPR, .*: learning_rate is 'abc': it must be a number"),
        ({"settings": {"valid_metric": "Recall@7"}}, "valid_metric is Recall@7, which metrics and topk do not give: .*"
                                                     "recall@5, ndcg@5"),
        ({"settings": {"model": "BPR"}}, "spec.settings has model: that is a dimension, give it under spec.models"),
        ({"datasets": {"toy": {"files": "toy.yaml", "settings": {"seed": 3}}}}, "spec.datasets.toy.settings has seed"),
        ({"methods": {"plain": {"dataset": "toy"}}}, "spec.methods.plain has dataset"),
        ({"metrics": ["recal@5"]}, "spec.metrics names 'recal@5', which .*; did you mean recall@5"),
        ({"metrics": ["recall@20"]}, "spec.metrics names 'recall@20', which .* give recall@5, ndcg@5"),
        ({"settings": {"metrics": ["Recall", "ItemCoverage"]}, "metrics": ["itemcoverage@5"]},
         "spec.metrics names 'itemcoverage@5', which the run does not report for each user"),
    ],
)
def test_mistakes_are_told_before_anything_runs(changes: dict[str, Any], message: str, write: Any) -> None:
    with pytest.raises(GuiderError, match=message):
        read_spec(write(**changes))


def test_an_empty_key_is_one_that_is_not_there(write: Any) -> None:
    empty = dict.fromkeys(("methods", "noise", "seeds", "settings", "baseline", "metrics", "skip"))
    spec = read_spec(write(datasets={"toy": {"files": "toy.yaml", "settings": None}}, **empty))
    assert [(cell.method, cell.noise, cell.seed) for cell in spec.cells] == [("plain", "none", 2020)]


def test_labels_that_yaml_reads_as_numbers(write: Any) -> None:
    spec = read_spec(write(methods={1: {}, 2: {"denoising": "t-bpr"}}, baseline=1, skip=[{"method": 2, "seed": 2021}]))
    assert spec.settings.baseline == "1" and [cell.method for cell in spec.cells] == ["1", "2", "1"]


def test_kinds_and_levels_of_noise() -> None:
    assert level_of({}) == ("", 0.0) == level_of({"interactions": 0, "users": "uniform"})
    assert level_of({"interactions": 0.2, "seed": 3}) == ("interactions", 0.2)
    assert level_of({"interactions": 0.2, "users": "uniform"}) == ("interactions, users uniform", 0.2)
    assert level_of({"features": {"image": 0.1, "text": 0.3}}) == ("features (image, text)", 0.3)


# -- runs ---------------------------------------------------------------------------------------------------------


def test_a_benchmark_keeps_what_is_finished(write: Any, tmp_path: Path, toy: dict[str, Any]) -> None:
    out, said = tmp_path / "out", []
    spec = read_spec(write(noise=[0, 0.3]))
    assert run_benchmark(spec, out, workers=0, say=said.append) == []
    rows = pd.read_csv(out / "results.csv")
    assert len(rows) == len(spec.cells) == 8 and len(said) == 8
    assert {path.name for path in tmp_path.iterdir()} == {"toy.yaml", "spec.yaml", "out"}  # no logs, no checkpoints
    first = spec.cells[0]
    row = rows[rows["key"] == first.key].iloc[0]
    # the same run by hand
    by_hand = run_recbole_guider("BPR", "toy", config_dict={**toy, "seed": first.seed})
    assert row["test recall@5"] == pytest.approx(by_hand["test_result"]["recall@5"])
    assert row["valid ndcg@5"] == pytest.approx(by_hand["best_valid_result"]["ndcg@5"])
    for column in ("seconds", "seconds per epoch", "cpu seconds per epoch", "peak memory MB"):
        assert (rows[column] > 0).all()
    assert (rows["torch version"].notna() & rows["settings"].map(json.loads).map(bool)).all()
    # and the metrics of every user
    users = read_users(first.key, out)
    assert users["recall@5"].mean() == pytest.approx(row["test recall@5"])
    assert set(users["recall@5"]) <= {0.0, 0.5, 1.0} and users.index.str.startswith("u").all()

    # one run is lost, another is half written, a method is renamed: only what is missing runs
    (out / "cells" / f"{spec.cells[3].key}.json").unlink()
    (out / "users" / f"{spec.cells[5].key}.parquet").unlink()
    before = {cell.key: (out / "cells" / f"{cell.key}.json").stat().st_mtime_ns for cell in spec.cells
              if cell not in (spec.cells[3], spec.cells[5])}
    renamed = read_spec(write(noise=[0, 0.3], methods={"base": {}, "T-BPR": {"denoising": "t-bpr"}}))
    said.clear()
    run_benchmark(renamed, out, workers=0, say=said.append)
    assert len(said) == 3 and said[0] == "6 of 8 runs are finished already"
    again = pd.read_csv(out / "results.csv")
    assert set(again["method"]) == {"base", "T-BPR"}
    for key, stamp in before.items():
        assert (out / "cells" / f"{key}.json").stat().st_mtime_ns == stamp
    same = [column for column in rows if column.startswith(("test ", "valid "))]
    pd.testing.assert_frame_equal(rows[same], again[same])


@pytest.fixture
def no_training(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Runs take no time; the list fills with their settings. A learning rate of 0.5 fails with a traceback."""
    ran: list[dict[str, Any]] = []

    def train_and_test(config: Any, *rest: Any) -> tuple[dict[str, Any], pd.DataFrame]:
        ran.append({"seed": config["seed"], "denoising": config["denoising"], "here": Path.cwd()})
        if config["learning_rate"] == 0.5:
            print("error: before that")
            raise ValueError("too\nfast")
        users = pd.DataFrame({"user": ["u1", "u2"], "recall@5": [0.0, 0.5], "ndcg@5": [0.1, 0.3]})
        row = {"test recall@5": 0.25, "test ndcg@5": 0.2, "best epoch": 1, "seconds": 1.0, "seconds per epoch": 1.0}
        return row, users

    monkeypatch.setattr("recbole_guider.benchmark.cell._train_and_test", train_and_test)
    return ran


def test_runs_whose_data_changed_are_made_again(
    write: Any, toy: dict[str, Any], tmp_path: Path, no_training: Any
) -> None:
    data, out, said = tmp_path / "data", tmp_path / "out", []
    shutil.copytree(toy["data_path"], data)
    file = write(seeds=1, settings={"data_path": str(data)})

    def again() -> int:
        """How many runs are made now."""
        no_training.clear()
        said.clear()
        assert run_benchmark(read_spec(file), out, workers=0, say=said.append) == []
        assert len(read_results(read_spec(file), out)) == 2
        return len(no_training)

    assert again() == 2
    os.utime(data / "toy" / "toy.inter")  # other times, the same content
    (data / "toy" / "toy.notes").write_text("not read")
    assert again() == 0
    np.save(data / "toy" / "image.npy", np.load(data / "toy" / "image.npy") + 1)
    assert len(read_results(read_spec(file), out)) == 0  # nor are they reported beside new ones
    assert again() == 2 and said[0] == "the files of toy have changed: 2 finished runs on them are made again"
    for written in out.glob("cells/*.json"):  # as an older version wrote it
        row = json.loads(written.read_text())
        assert row.pop("data")
        written.write_text(json.dumps(row))
    (data / "toy" / "toy.inter").write_text((data / "toy" / "toy.inter").read_text().rstrip("\n"))
    assert again() == 0
    shutil.rmtree(data)
    assert len(read_results(read_spec(file), out)) == 2  # the report needs no data


def test_data_that_are_not_there_are_told_before_the_first_run(write: Any, tmp_path: Path, no_training: Any) -> None:
    spec = read_spec(write(datasets={"toy": "toy.yaml", "toyy": "toy.yaml"}))
    with pytest.raises(GuiderError, match="there is no folder .*toyy with the data set 'toyy'; did you mean 'toy'"):
        run_benchmark(spec, tmp_path / "out", workers=0)
    assert not no_training and not (tmp_path / "out").exists()


def test_two_labels_of_the_same_settings_are_one_run(write: Any, tmp_path: Path, no_training: Any) -> None:
    said: list[str] = []
    spec = read_spec(write(methods={"plain": {}, "same": {"denoising": False}}, seeds=1, metrics=["NDCG@5"]))
    run_benchmark(spec, tmp_path / "out", workers=0, say=said.append)
    assert len(no_training) == 1
    assert pd.read_csv(tmp_path / "out" / "results.csv")["method"].tolist() == ["plain", "same"]
    # a line for each, with the metric that is compared
    assert [line.partition(":")[2] for line in said] == [" test ndcg@5 0.2000, 1 s"] * 2
    assert [line.partition("]")[0] for line in said] == ["[1/2", "[2/2"]


def test_a_failure_is_kept_until_the_run_succeeds(
    write: Any, tmp_path: Path, no_training: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, said = tmp_path / "out", []
    spec = read_spec(write(methods={"fast": {"learning_rate": 0.5}}, seeds=1))
    ((cell, reason),) = run_benchmark(spec, out, workers=0, say=said.append)
    assert reason == "fast" and said[-1].endswith("FAILED, fast")  # the last line of the exception
    (failure,) = (out / "failures").iterdir()
    assert "Traceback (most recent call last)" in failure.read_text()
    assert not list(no_training[0]["here"].parent.glob("*")) and not list(out.glob(".running-*"))
    monkeypatch.setattr(
        "recbole_guider.benchmark.cell._train_and_test",
        lambda config, *rest: ({"test auc": 0.7, "seconds": 1.0}, pd.DataFrame({"user": ["u1"]})),
    )
    assert run_benchmark(spec, out, workers=0, say=said.append) == [] and not failure.exists()
    failure.write_text("of an older version, which left it")
    run_benchmark(spec, out, workers=0, say=said.append)
    assert not failure.exists()


@pytest.mark.parametrize(
    ("problem", "reason"),
    [
        ("started\nerror: no such file.\n\nexit status 2", "no such file."),
        ("Traceback ..\n  line\nKeyError: 'x'\nexit status 1", "KeyError: 'x'"),
        ("started\nkilled by SIGKILL", "killed by SIGKILL"),
        ("\nexit status 1", "exit status 1"),
        (
            "Traceback ..\n  line\ntorch.AcceleratorError: CUDA error: out of memory\nFor debugging consider passing "
            "CUDA_LAUNCH_BLOCKING=1\nCompile with `TORCH_USE_CUDA_DSA`.\n\nexit status 1",
            "torch.AcceleratorError: CUDA error: out of memory",
        ),
    ],
)
def test_the_reason_of_a_failure(problem: str, reason: str) -> None:
    assert _reason(problem) == reason


def test_only_leftovers_of_killed_benchmarks_are_removed(write: Any, tmp_path: Path, no_training: Any) -> None:
    out = tmp_path / "out"
    for name in ("left", "alive"):
        (out / f".running-{name}" / "saved").mkdir(parents=True)
    program = (
        "import sys, time; from filelock import FileLock; lock = FileLock(sys.argv[1]); lock.acquire(); "
        "print(flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", program, str(out / ".running-alive" / "lock")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None and other.stdout.readline()
        run_benchmark(read_spec(write(seeds=1)), out, workers=0, say=lambda line: None)
        assert [path.name for path in out.glob(".running-*")] == [".running-alive"]
        other.kill()
    run_benchmark(read_spec(write(seeds=1)), out, workers=0, say=lambda line: None)
    assert not list(out.glob(".running-*"))


def test_a_terminated_benchmark_leaves_no_process_and_what_continues_its_run(write: Any, tmp_path: Path) -> None:
    file, out = write(seeds=1, settings={"epochs": 100000, "stopping_step": 100000}), tmp_path / "out"
    program = "import sys; from recbole_guider.cli.main import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", program, "benchmark", str(file), f"--out={out}"]
    package = str(Path(recbole_guider.__file__).resolve().parent.parent)
    environment = {**os.environ, "PYTHONPATH": package, "TMPDIR": str(tmp_path)}
    for number in (1, 2):
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        deadline = time.time() + 240
        while not list(out.glob(".running-*/*/saved/*.last.pth")) and time.time() < deadline and process.poll() is None:
            time.sleep(0.05)
        assert list(out.glob(".running-*/*/saved/*.last.pth"))
        process.send_signal(signal.SIGTERM)
        printed, _ = process.communicate(timeout=60)
        assert process.returncode == 128 + signal.SIGTERM
        assert ("continued after epoch" in printed) == (number == 2)
        assert {path.name for path in out.iterdir()} == {"results.csv", "unfinished"}
        (kept,) = (out / "unfinished").iterdir()
        assert sorted(path.name.split(".", 1)[1] for path in kept.iterdir()) == ["last.pth", "pth"]
    assert not list(tmp_path.glob("benchmark-*"))


class _Killed(BaseException):
    """As Ctrl-C, which nothing catches."""


@pytest.mark.parametrize(
    ("methods", "settings", "evaluation"),
    [
        ({"plain": {}}, {}, 2),
        ({"GUIDER": {"guider": True}}, {}, 3),
        ({"DeCA": {"denoising": "deca"}}, {}, 2),
        # after the last epoch, the last before early stopping, or while it is tested: nothing is left to train
        ({"plain": {}}, {}, 5),
        ({"plain": {}}, {"epochs": 100, "stopping_step": 1, "learning_rate": 0.05}, None),
        ({"plain": {}}, {"epochs": 100, "stopping_step": 1, "learning_rate": 0.05}, 1000),
    ],
)
def test_a_stopped_run_gives_the_numbers_of_one_that_was_not(
    methods: dict[str, Any], settings: dict[str, Any], evaluation: int | None, write: Any, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file = write(models=["LightGCN"], methods=methods, seeds=1, settings={"epochs": 5, **settings})
    run_benchmark(read_spec(file), tmp_path / "whole", workers=0, say=lambda line: None)
    whole = pd.read_csv(tmp_path / "whole" / "results.csv").iloc[0]
    assert evaluation is not None or whole["epochs"] < 100

    out, said = tmp_path / "out", []
    with monkeypatch.context() as patched:
        save, saves = Training.save_checkpoint, 0

        def dies(self: Any, epoch: int, file: str, verbose: bool = True) -> None:
            nonlocal saves
            save(self, epoch, file, verbose)
            saves += file == self.last_model_file
            if saves == (evaluation or whole["epochs"]):
                raise _Killed

        def tested(self: Any, struct: Any) -> None:
            raise _Killed

        patched.setattr(Training, "save_checkpoint", dies)
        patched.setattr(PerUserEvaluator, "evaluate", tested)
        with pytest.raises(_Killed):
            run_benchmark(read_spec(file), out, workers=0, say=said.append)
    assert not list(out.glob("cells/*"))
    run_benchmark(read_spec(file), out, workers=0, say=said.append)
    assert f"continued after epoch {min(evaluation or 100, whole['epochs'])}" in said[0]
    assert not (out / "unfinished").exists()
    row = pd.read_csv(out / "results.csv").iloc[0]
    assert (row["resumed"], whole["resumed"]) == (1, 0)
    same = [name for name in whole.index if name.startswith(("valid ", "test ", "epochs", "best epoch", "noise rate"))]
    assert len(same) > 6
    pd.testing.assert_series_equal(row[same], whole[same], check_exact=True)
    pd.testing.assert_frame_equal(read_users(row["key"], out), read_users(row["key"], tmp_path / "whole"))
    assert 0 < row["seconds per epoch"] <= row["seconds"]


@pytest.mark.parametrize("differs", ["code", "checkpoint"])
def test_a_stopped_run_that_cannot_be_continued_is_made_anew(
    differs: str, write: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, out, said = write(methods={"plain": {}}, seeds=1, settings={"epochs": 3}), tmp_path / "out", []
    save = Training.save_checkpoint

    def dies(self: Any, epoch: int, file: str, verbose: bool = True) -> None:
        save(self, epoch, file, verbose)
        if epoch == 1 and file == self.last_model_file:
            raise _Killed

    with monkeypatch.context() as patched, pytest.raises(_Killed):
        patched.setattr(Training, "save_checkpoint", dies)
        run_benchmark(read_spec(file), out, workers=0)
    if differs == "code":
        monkeypatch.setattr("recbole_guider.benchmark.cell.code_fingerprint", lambda: "another")
    else:
        next(out.glob("unfinished/*/*.last.pth")).write_bytes(b"no checkpoint")
    run_benchmark(read_spec(file), out, workers=0, say=said.append)
    assert ("code, libraries, machine or data are not those" in said[0]) == (differs == "code")
    row = pd.read_csv(out / "results.csv").iloc[0]
    assert row["resumed"] == 0 and row["epochs"] == 3
    assert not (out / "unfinished").exists()


def test_report_only_wants_results(write: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["benchmark", str(write()), f"--out={tmp_path / 'typo'}", "--report-only"]) == 2
    assert "typo holds no results of a benchmark; name their folder with --out" in capsys.readouterr().err
    assert not (tmp_path / "typo").exists()


def test_runs_on_the_same_data_share_what_amsc_found(write: Any, tmp_path: Path) -> None:
    methods = {"GUIDER": {"guider": True}, "without eta": {"guider": {"dbpr": {"eta": 0.0}}}}
    run_benchmark(read_spec(write(methods=methods, seeds=[2020])), tmp_path / "out", workers=2, say=lambda line: None)
    rows = pd.read_csv(tmp_path / "out" / "results.csv")
    assert len(rows) == 2 and rows["noise rate"].nunique() == 1 and (rows["calibration seconds"] > 0).all()
    assert len(list((tmp_path / "out" / "calibrations").glob("*.npz"))) == 1


def test_a_run_that_fails_does_not_stop_the_others(write: Any, tmp_path: Path, toy: dict[str, Any]) -> None:
    file = write(models=["BPR", "SGL"], methods=["t-bpr"], seeds=1)
    assert main(["benchmark", str(file), f"--out={tmp_path / 'out'}", "--workers=0"]) == 2
    rows = pd.read_csv(tmp_path / "out" / "results.csv")
    assert rows["model"].tolist() == ["BPR"]
    (failure,) = (tmp_path / "out" / "failures").iterdir()
    assert "SGL has no pairwise or pointwise score" in failure.read_text()


def test_killed_in_the_middle_and_continued_in_processes(write: Any, tmp_path: Path) -> None:
    file, out = write(seeds=1), tmp_path / "out"
    package = str(Path(recbole_guider.__file__).resolve().parent.parent)
    command = [sys.executable, "-m", "recbole_guider.cli.main", "benchmark", str(file), f"--out={out}"]
    program = "import sys; from recbole_guider.cli.main import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", program, *command[3:]]
    environment = {**os.environ, "PYTHONPATH": package}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.time() + 240
    while not list(out.glob("cells/*.json")) and time.time() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = {path.name: path.read_bytes() for path in out.glob("cells/*.json")}
    assert len(kept) >= 1
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"{len(kept)} of 2 runs are finished already" in done.stdout
    assert len(pd.read_csv(out / "results.csv")) == 2
    for name, content in kept.items():
        assert (out / "cells" / name).read_bytes() == content
    assert not list(out.rglob("*.partial"))


# -- the report ---------------------------------------------------------------------------------------------------


@pytest.fixture
def finished(write: Any, tmp_path: Path) -> tuple[Any, Path]:
    """A spec with made-up results: method B is better than A by .05, and loses less to noise."""
    spec = read_spec(write(methods={"A": {}, "B": {"denoising": "t-bpr"}}, noise=[0, 0.2, 0.5], seeds=3,
                           metrics=["Recall@5"]))
    out, rng = tmp_path / "made-up", np.random.default_rng(0)
    for folder in ("cells", "users"):
        (out / folder).mkdir(parents=True)
    for cell in spec.cells:
        level = {"none": 0.0, "20%": 0.2, "50%": 0.5}[cell.noise]
        value = 0.4 - level * (0.2 if cell.method == "A" else 0.1) + (0.05 if cell.method == "B" else 0.0)
        users = pd.DataFrame({"user": [f"u{n}" for n in range(80)], "recall@5": value + 0.02 * rng.normal(size=80)})
        users.to_parquet(out / "users" / f"{cell.key}.parquet", index=False)
        row = {
            "key": cell.key, **cell.labels, "test recall@5": users["recall@5"].mean(), "best epoch": 3, "seconds": 1.0,
            "seconds per epoch": 0.1, "peak memory MB": 5.0, "git commit": "abc", "torch version": "2",
        }
        (out / "cells" / f"{cell.key}.json").write_text(json.dumps(row))
    return spec, out


def test_tables_tests_and_curves(finished: tuple[Any, Path]) -> None:
    spec, out = finished
    rows = read_results(spec, out)
    metrics = metrics_of(spec, rows)
    assert metrics == ["recall@5"]
    table = summary_table(rows, metrics)
    assert len(table) == 6
    clean = rows[(rows["method"] == "A") & (rows["noise"] == "none")]["test recall@5"]
    assert table.iloc[0]["recall@5"] == f"{clean.mean():.4f} ± {clean.std():.4f}"

    tested = comparisons(spec, rows, out, metrics)
    assert tested["noise"].tolist() == ["none", "20%", "50%"] and (tested["method"] == "B").all()
    np.testing.assert_allclose(tested["difference"], [0.05, 0.07, 0.1], atol=0.005)
    assert tested["significant"].all()
    by_hand = compare(*(
        {cell.seed: read_users(cell.key, out)["recall@5"] for cell in spec.cells
         if (cell.method, cell.noise) == (method, "20%")}
        for method in ("B", "A")
    ))
    assert tested.iloc[1]["p_users"] == by_hand.p_users and tested.iloc[1]["low"] == by_hand.low

    curve = curves(spec, rows, metrics)
    assert set(curve["kind"]) == {"interactions"} and len(curve) == 6
    of_a = curve[curve["method"] == "A"]
    assert of_a["level"].tolist() == [0.0, 0.2, 0.5]
    np.testing.assert_allclose(of_a["recall@5 kept"], [1, 0.9, 0.75], atol=0.01)


def test_the_report_is_two_files_and_the_page_needs_no_network(finished: tuple[Any, Path]) -> None:
    spec, out = finished
    markdown, page = (path.read_text(encoding="utf-8") for path in write_report(spec, out))
    for word in ("## Results", "## Against A", "## Robustness", "## Environment", "| toy", "abc"):
        assert word in markdown
    assert page.count("<table") == 4 and page.count("plotly-graph-div") >= 4
    assert 'src="http' not in page
    (out / "cells" / f"{spec.cells[0].key}.json").unlink()
    write_report(spec, out)
    assert "1 of 18 runs are missing" in (out / "report.md").read_text(encoding="utf-8")


def test_what_cannot_be_paired_is_left_out_of_the_report(finished: tuple[Any, Path]) -> None:
    spec, out = finished
    cell = next(cell for cell in spec.cells if (cell.method, cell.noise, cell.seed) == ("B", "20%", 2021))
    file = out / "users" / f"{cell.key}.parquet"
    pd.read_parquet(file).iloc[1:].to_parquet(file, index=False)
    left_out: list[str] = []
    tested = comparisons(spec, read_results(spec, out), out, ["recall@5"], left_out)
    assert tested["noise"].tolist() == ["none", "50%"]
    (line,) = left_out
    assert line.startswith("dataset toy, noise 20%, model BPR, method B (recall@5): seed 2021: the two methods were")
    for path in write_report(spec, out):
        assert f"Left out: {line}" in path.read_text(encoding="utf-8")


def test_levels_of_noise_below_a_percent_are_told_apart(write: Any) -> None:
    table = _rounded(pd.DataFrame({"level": [0.0, 0.001, 0.2], "recall@5 kept": [1.0, 0.5, 0.25]}))
    assert table["level"].tolist() == ["0%", "0.1%", "20%"]
