"""Several processes give the numbers of one, and end together."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import parallel_runs
import pytest
import torch
from recbole.data.dataloader import FullSortEvalDataLoader
from recbole.data.interaction import Interaction
from recbole.model.loss import EmbLoss
from torch import nn

import recbole_guider
from recbole_guider.config.guider_config import GuiderConfig
from recbole_guider.config.trainers import training_by_name, training_class
from recbole_guider.quick_start import prepare_run
from recbole_guider.training.loop import Training
from recbole_guider.training.parallel import evaluation
from recbole_guider.training.parallel.launch import Processes, launch
from recbole_guider.training.parallel.losses import WholeBatchLoss
from recbole_guider.utils import distributed
from recbole_guider.utils.batch_parts import BatchPart
from recbole_guider.utils.errors import GuiderError, ProcessFailed

pytestmark = pytest.mark.slow

SCRIPT = Path(recbole_guider.__file__).parent.parent / "run_recbole_guider.py"

#: Runs that are compared, and whether the parts of a batch make up its loss: None where a model has no such loss.
CASES: dict[str, tuple[dict[str, Any], dict[str, bool | None]]] = {
    "BPR": ({"model": "BPR"}, {"calculate_loss": True}),
    # the regulariser is the length of a matrix: not a mean over rows
    "LightGCN": ({"model": "LightGCN", "reg_weight": 0.5}, {"calculate_loss": True}),
    "LightGCN, sampled evaluation, clipped gradients": (
        {
            "model": "LightGCN", "clip_grad_norm": {"max_norm": 0.05}, "metrics": ["Recall", "MRR"],
            "eval_args": {"split": {"RS": [0.7, 0.15, 0.15]}, "order": "RO", "group_by": "user", "mode": "uni10"},
            "eval_batch_size": 64,
        },
        {"calculate_loss": True},
    ),
    # dropout masks are drawn for each row: parts do not make up the whole
    "NeuMF": ({"model": "NeuMF", "dropout_prob": 0.3}, {"calculate_loss": False}),
    # in-batch contrastive terms, sums over rows, graphs drawn anew in every epoch
    "SGL": ({"model": "SGL"}, {"calculate_loss": False}),
    "GUIDER_LightGCN": (
        {"model": "GUIDER_LightGCN", "reg_weight": 0.5}, {"calculate_loss": True, "teacher: teacher_loss": True},
    ),
    "GUIDER_LightGCN, pairwise, identity": (
        {
            "model": "GUIDER_LightGCN",
            "guider": {
                "dbpr": {"form": "pairwise", "gamma": 0.2, "eta": 0.5, "robustness": 0.5},
                "distillation": {"plan": "identity", "users": 20, "interval": 1},
            },
        },
        {"calculate_loss": True, "teacher: teacher_loss": True},
    ),
    "GUIDER_FREEDOM": (
        {
            "model": "GUIDER_FREEDOM", "clip_grad_norm": {"max_norm": 0.05},
            "guider": {"distillation": {"epsilon": 0.5, "anchor": 0.1}},
        },
        {"calculate_loss": True, "teacher: teacher_loss": True},
    ),
    "GUIDER_FREEDOM, dbpr, min_norm, pretrained": (
        {
            "model": "GUIDER_FREEDOM",
            "guider": {
                "student_loss": "dbpr", "schedule": "pretrained",
                "dbpr": {"batch_size": 37, "eta": 0.5, "robustness": 0.5},
                "distillation": {"balance": "min_norm", "plan": "batch"},
            },
        },
        {"calculate_loss": True, "teacher: teacher_loss": True},
    ),
    "GUIDER_FREEDOM, kl": (
        {"model": "GUIDER_FREEDOM", "guider": {"distillation": {"objective": "kl"}}},
        {"calculate_loss": True, "teacher: teacher_loss": True},
    ),
    # a step down and one up on the same batch: both see the gradient of the whole
    "GUIDER_FREEDOM, mirror gradient, weighted rows": (
        {
            "model": "GUIDER_FREEDOM", "mirror_gradient": {"interval": 2, "alpha": 1.0, "beta": 0.2},
            "guider": {"student_weighting": "weight", "distillation": {"balance": "min_norm"}},
        },
        {"calculate_loss": True, "teacher: teacher_loss": True},
    ),
    # a teacher and a student with losses of their own, rows left out at random, a trainer of its own for the teacher
    "GUIDER_BPR taught by RecVAE": (
        {"model": "GUIDER_BPR", "guider": {"teacher": "RecVAE", "student_weighting": "weight"}},
        {"calculate_loss": True, "teacher: calculate_loss": False},
    ),
    # candidate items in place of matrices; Adam's first steps would turn this model's rounding into other curves
    "GUIDER_NeuMF": (
        {
            "model": "GUIDER_NeuMF", "dropout_prob": 0.0, "learner": "sgd",
            "guider": {"distillation": {"cost": "scores"}},
        },
        {"calculate_loss": True, "teacher: teacher_loss": True},
    ),
}


@pytest.fixture(scope="module")
def settings(toy_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """Settings of short runs on the toy data, in batches that neither 2 nor 3 divides, in a folder of their own."""
    before = os.getcwd()
    os.chdir(tmp_path_factory.mktemp("runs"))
    yield {
        "dataset": "toy", "data_path": str(toy_folder), "epochs": 4, "train_batch_size": 53, "embedding_size": 16,
        "modalities": {"image": {"file": "image.npy"}, "text": {"file": "text.npy", "ids": "text_ids.txt"}},
        "eval_args": {"split": {"RS": [0.7, 0.15, 0.15]}, "order": "RO", "group_by": "user", "mode": "full"},
        "topk": [5], "metrics": ["Recall", "NDCG", "GAUC"], "valid_metric": "Recall@5", "show_progress": False,
        "learning_rate": 0.01, "metric_decimal_place": 8, "state": "ERROR", "use_gpu": False,
        "checkpoint_dir": str(Path("saved").resolve()),
    }
    os.chdir(before)


@pytest.fixture(scope="module")
def runs(settings: dict[str, Any]) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """The result of each case, of one process and of two; AMSC runs in both for one of them, which is enough."""
    shared = {"guider.calibration.cache": str(Path("calibrations").resolve())}
    cases = [
        {"settings": settings | case | (shared if name.startswith("GUIDER_") and name != "GUIDER_LightGCN" else {})}
        for name, (case, _) in CASES.items()
    ]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    single = parallel_runs.train({}, cases)
    torch.set_num_threads(threads)
    double = launch(parallel_runs.train, Processes(2), cases)
    return dict(zip(CASES, zip(single, double, strict=True), strict=True))


@pytest.mark.parametrize("case", CASES)
def test_two_processes_give_the_numbers_of_one(case: str, runs: Any) -> None:
    one, two = runs[case]
    assert two["dealt"] == CASES[case][1]
    assert two["the same in all"]
    assert len(one["curve"]) == 4
    np.testing.assert_allclose(two["curve"], one["curve"], rtol=1e-5, atol=1e-6)
    for kind in ("best_result", "result"):
        assert dict(two[kind]) == pytest.approx(dict(one[kind]), abs=1e-7), kind
    for name, value in one["weights"].items():
        np.testing.assert_allclose(two["weights"][name], value, rtol=1e-2, atol=1e-4, err_msg=name)


def test_only_the_main_process_writes(runs: Any, settings: dict[str, Any]) -> None:
    # one file of each kind for each run: two runs of each case
    folder = Path(settings["checkpoint_dir"]).parent
    assert len(list((folder / "saved").iterdir())) == 2 * len(CASES)
    assert len(list((folder / "log").rglob("*.log"))) <= 2 * len(CASES)
    assert len(list((folder / "log_tensorboard").iterdir())) <= 2 * len(CASES)


@pytest.mark.parametrize("model", ["GUIDER_FREEDOM"])
def test_a_killed_run_resumes_in_as_many_processes_as_one_likes(model: str, settings: dict[str, Any]) -> None:
    settings = {**settings, "model": model}
    whole, stopped = parallel_runs.train({}, [{"settings": settings}, {"settings": settings, "stop_after": 1}])
    again = {"settings": {**settings, "resume": stopped["last_model_file"]}}
    last = Path(stopped["last_model_file"]).read_bytes()
    two, halted = launch(
        parallel_runs.train, Processes(2), [again, {"settings": settings, "stop_after": 1}]
    )
    assert not Path(stopped["last_model_file"]).exists()
    Path(stopped["last_model_file"]).write_bytes(last)
    one = parallel_runs.train({}, [{"settings": {**settings, "resume": halted["last_model_file"]}}])[0]
    for resumed in (one, two):
        np.testing.assert_allclose(resumed["curve"], whole["curve"][2:], rtol=1e-5)
        assert dict(resumed["result"]) == pytest.approx(dict(whole["result"]), abs=1e-7)


# -- an evaluation ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["full", "uni10"])
@pytest.mark.parametrize("world_size", [2, 3, 7, 100])
def test_every_user_is_evaluated_once(
    mode: str, world_size: int, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    eval_args = {**settings["eval_args"], "mode": mode}
    more = {"eval_args": eval_args, "eval_memory_mb": 0.01, "eval_batch_size": 40, "model": "BPR"}
    _, _, _, test = prepare_run(GuiderConfig(config_dict={**settings, **more}, command_line=[]))
    np.random.seed(0)
    users = [int(user) for batch in test for user in batch[0]["user_id"]]
    items = [] if mode == "full" else [batch[0]["item_id"] for batch in (np.random.seed(0), *test)[1:]]
    got, got_items = [], []
    monkeypatch.setattr(distributed, "world_size", lambda: world_size)
    for rank in range(world_size):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        share = evaluation.own_share(test)
        assert share and isinstance(share, FullSortEvalDataLoader) == isinstance(test, FullSortEvalDataLoader)
        np.random.seed(0)
        batches = list(share)
        assert len(batches) == len(share)
        got += [int(user) for batch in batches for user in batch[0]["user_id"]]
        got_items += [] if mode == "full" else [batch[0]["item_id"] for batch in batches]
    assert got == users
    assert [list(batch) for batch in got_items] == [list(batch) for batch in items]


# -- a loss ----------------------------------------------------------------------------------------------------------


class _Rows(nn.Module):
    """Rows of a table, of which a batch takes some."""

    def __init__(self, norm: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(9, 4, generator=torch.Generator().manual_seed(0)))
        self.regulariser = EmbLoss(norm=norm)

    def calculate_loss(self, interaction: Interaction) -> torch.Tensor:
        rows = self.table[interaction["user_id"]]
        return rows.exp().mean() + 3 * self.regulariser(rows, rows.square())


@pytest.mark.parametrize("norm", [1, 2, 3])
def test_the_regulariser_of_parts_is_that_of_the_batch(norm: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = _Rows(norm)
    batch = Interaction({"user_id": torch.tensor([0, 3, 3, 5, 8, 1, 7])})
    whole = model.calculate_loss(batch)
    expected = torch.autograd.grad(whole.sum(), [model.table])[0]
    parts = WholeBatchLoss(model, "calculate_loss").parts
    # what all_reduce would find: the sums of both processes, taken from a first pass over them
    seen: list[torch.Tensor] = []
    monkeypatch.setattr(distributed, "sum_over", lambda tensors: seen.extend(tensor.clone() for tensor in tensors))
    both = [BatchPart(batch, rank, 2) for rank in range(2)]
    assert [len(part) for part in both] == [4, 3]
    for part in both:
        with parts.weighing(part.weight):
            model.calculate_loss(part)
    total = seen[0] + seen[1]
    monkeypatch.setattr(distributed, "sum_over", lambda tensors: [tensor.copy_(total) for tensor in tensors])
    value, gradient = 0.0, torch.zeros_like(model.table)
    for part in both:
        with parts.weighing(part.weight):
            loss = part.weight * model.calculate_loss(part).sum()
        value += float(loss.detach())
        gradient += torch.autograd.grad(loss, [model.table])[0]
    assert value == pytest.approx(float(whole.detach()), rel=1e-6)
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"model": "LightGCN", "denoising": "t-ce"}, r"^denoising is t-ce: .* --nproc 1\.$"),
        ({"model": "GUIDER_LightGCN", "guider": {"variant": "released"}}, r"^guider\.variant is released: .*--nproc 1"),
    ],
)
def test_what_cannot_be_shared_out_is_an_error(
    more: dict[str, Any], message: str, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = GuiderConfig(config_dict={**settings, **more}, command_line=[])
    assert issubclass(training_class(config), Training)
    monkeypatch.setattr("recbole_guider.config.trainers.is_parallel", lambda: True)
    with pytest.raises(GuiderError, match=message):
        training_class(config)
    with pytest.raises(GuiderError, match=r"recbole-guider run --nproc"):
        training_by_name("GUIDER_LightGCN")


# -- how processes end -----------------------------------------------------------------------------------------------


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def _pids(folder: Path, expected: int = 2) -> list[int]:
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline:
        files = sorted(folder.glob("*.pid"))
        if len(files) == expected and all(file.read_text() for file in files):
            return [int(file.read_text()) for file in files]
        time.sleep(0.1)
    raise AssertionError("the processes did not start")


@pytest.mark.parametrize(
    ("how", "error", "message"),
    [
        ("raise", ProcessFailed, r"^process 1 of 2 failed: ValueError: the reason$"),
        ("input", GuiderError, r"^the setting is wrong\.$"),
        ("kill", ProcessFailed, r"^process 1 of 2 was killed by SIGKILL"),
    ],
)
def test_the_failure_of_one_process_ends_all_and_is_told_once(
    how: str, error: type, message: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(error, match=message) as caught:
        launch(parallel_runs.fail, Processes(2), how, str(tmp_path))
    assert not any(_is_alive(pid) for pid in _pids(tmp_path))
    if how == "raise":
        assert 'raise ValueError("the reason")' in caught.value.details
    assert "Traceback" not in capfd.readouterr().err


PROGRAM = """
import sys
sys.path.insert(0, {tests!r})
import parallel_runs
from recbole_guider.utils.errors import ProcessFailed
from recbole_guider.training.parallel.launch import Processes, launch
if __name__ == "__main__":
    try:
        print("result", launch(parallel_runs.{function}, Processes({processes}), *{arguments!r}))
    except ProcessFailed as error:
        sys.exit(f"failed {{error}}")
    except KeyboardInterrupt:
        sys.exit(130)
"""


def _program(tmp_path: Path, function: str, processes: str, *arguments: Any) -> subprocess.Popen[str]:
    file = tmp_path / f"program{len(list(tmp_path.glob('program*')))}.py"
    file.write_text(
        PROGRAM.format(
            tests=str(Path(__file__).parent), function=function, processes=processes, arguments=arguments
        )
    )
    return subprocess.Popen(
        [sys.executable, str(file)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_process_outlives_its_launcher(ending: signal.Signals, tmp_path: Path) -> None:
    launcher = _program(tmp_path, "fail", "2", "hang", str(tmp_path))
    pids = _pids(tmp_path)
    assert all(_is_alive(pid) for pid in pids)
    if ending == signal.SIGINT:
        os.killpg(launcher.pid, ending)  # as a terminal does
    else:
        launcher.send_signal(ending)
    _, errors = launcher.communicate(timeout=300)
    assert launcher.returncode == (130 if ending == signal.SIGINT else -ending)
    assert "Traceback" not in errors
    deadline = time.monotonic() + 30
    while any(_is_alive(pid) for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def _free_port() -> int:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


@pytest.mark.parametrize("how", ["well", "raise", "kill"])
def test_two_launchers_act_as_two_machines(how: str, tmp_path: Path) -> None:
    port = _free_port()
    function, arguments = ("meet", ()) if how == "well" else ("fail", (how, str(tmp_path)))
    machines = [
        _program(tmp_path, function, f"1, 2, '127.0.0.1', {port}, {offset}", *arguments) for offset in range(2)
    ]
    (out_0, error_0), (out_1, error_1) = (machine.communicate(timeout=600) for machine in machines)
    if how == "well":
        assert (out_0, out_1) == ("result 3\n", "result None\n"), (error_0, error_1)
        return
    reason = "failed: ValueError: the reason" if how == "raise" else "was killed by SIGKILL"
    assert [machine.returncode for machine in machines] == [1, 1]
    assert f"failed process 1 of 2 {reason}" in error_1
    assert f"failed on another machine: process 1 of 2 {reason}" in error_0
    assert not any(_is_alive(pid) for pid in _pids(tmp_path))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"nproc": 0}, "nproc is 0"),
        ({"nproc": 2, "world_size": 1}, "world_size is 1"),
        ({"nproc": 2, "world_size": 4, "group_offset": 3}, r"group_offset is 3: .* 0 to 2"),
        ({"nproc": 2, "port": 0}, "port is 0"),
    ],
)
def test_processes_that_cannot_be_are_an_error(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(GuiderError, match=message):
        Processes(**arguments)


# -- the command -----------------------------------------------------------------------------------------------------


def _command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, check=False)


def test_the_command_trains_in_two_processes(settings: dict[str, Any], tmp_path: Path) -> None:
    import yaml

    file = tmp_path / "toy.yaml"
    own = {key: value for key, value in settings.items() if key not in ("state", "dataset", "checkpoint_dir")}
    file.write_text(yaml.safe_dump(own))
    printed = []
    for nproc in ("1", "2"):
        folder = tmp_path / nproc
        folder.mkdir()
        done = subprocess.run(
            [sys.executable, str(SCRIPT), "--model=GUIDER_LightGCN", "--dataset", "toy", f"--config_files={file}",
             "--nproc", nproc, "--epochs=2", "--loss_decimal_place=3"],
            capture_output=True, text=True, check=True, cwd=folder,
        )
        text = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout + done.stderr)
        printed.append(re.findall(r"teacher loss: [^]]*|valid_score: [^]]*|\| (?:recall|ndcg)@5 .*", text))
        assert text.count("noise rate") == 2  # AMSC's own line, and the closing table
        assert [len(list((folder / name).rglob("*.*"))) >= 1 for name in ("saved", "log", "log_tensorboard")]
        assert len(list((folder / "saved").iterdir())) == len(list((folder / "log").rglob("*.log"))) == 1
        assert len(list((folder / "log_tensorboard").iterdir())) == 1
    assert len(printed[0]) == 6
    assert printed[0] == printed[1]


def test_wrong_input_is_told_once_with_status_2(settings: dict[str, Any]) -> None:
    done = _command("--model=GUIDER_FREDOM", "--nproc", "2", f"--data_path={settings['data_path']}")
    assert done.returncode == 2
    assert done.stderr.count("FREDOM") == 1 and "Traceback" not in done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith("error: there is no model 'GUIDER_FREDOM'")
