"""One run of a benchmark: its row, and the metrics of every user.

``python -m recbole_guider.benchmark.cell CELL.json FOLDER`` runs it in a process of its own, so that its peak memory is
its own and a crash takes nothing else along. Checkpoints and logs go beside CELL.json; where those of a run that was
stopped are there already, it is continued.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

import recbole_guider
from recbole_guider.benchmark.progress import SAVED, Progress, last_checkpoint, read_progress
from recbole_guider.benchmark.spec import Cell
from recbole_guider.data.eval_mask import PerUserEvaluator
from recbole_guider.quick_start import prepare_run
from recbole_guider.training.loop import Callback, Evaluation, Training
from recbole_guider.training.trainer import share_calibrations
from recbole_guider.utils.atomic_io import write_whole
from recbole_guider.utils.errors import GuiderError
from recbole_guider.utils.resources import properties_dir

_LIBRARIES = ("torch", "recbole", "numpy", "scipy", "pandas", "scikit-learn", "POT")


def run_cell(cell: Cell, folder: Path, scratch: Path) -> dict[str, Any]:
    """Train on the training split, choose the epoch by validation, test once there.

    Writes ``folder/users/<key>.parquet`` (a row for each test user: token and metrics), then
    ``folder/cells/<key>.json`` (the row): where the second is, the run is finished. Both appear whole or not at all.
    ``folder/calibrations`` keeps what AMSC found, for other runs on the same data with the same seed.

    Args:
        cell: the run.
        folder: of the results.
        scratch: a folder for checkpoints and logs, which the caller removes. A run that is stopped leaves in it what
            another call with this folder continues.

    Returns:
        The row: labels, the data's fingerprint, best validation and test results, epochs, seconds, memory, detection of
        injected noise, commit, versions.
    """
    _forget_peak()
    config = cell.config()
    config["data_path"] = os.path.abspath(config["data_path"])
    saved = scratch.resolve() / SAVED
    config["checkpoint_dir"] = str(saved)
    folder = folder.resolve()
    here = made_by(cell)  # before training: the data that the run read, not those that are there when it ends
    progress = read_progress(saved)
    if progress is None or not progress.continues_in(here):
        shutil.rmtree(saved, ignore_errors=True)
        progress = Progress(here, started=datetime.now(UTC).isoformat(timespec="seconds"))
    with _inside(scratch):  # logs go there, too
        row, users = _train_and_test(config, folder / "calibrations", progress, last_checkpoint(saved))
    made = {name: value for name, value in progress.made_by.items() if name != "code"}
    row = {
        # without one the data were downloaded meanwhile
        "key": cell.key, "data": made.pop("data") or cell.data.fingerprint(), **cell.labels, **row,
        "settings": json.dumps(cell.settings, sort_keys=True, default=str), "files": " ".join(cell.files),
        "peak memory MB": max(progress.peak_memory, _peak_megabytes()), "threads": torch.get_num_threads(),
        "started": progress.started, "resumed": progress.resumed, **made,
    }
    (folder / "users").mkdir(parents=True, exist_ok=True)
    (folder / "cells").mkdir(parents=True, exist_ok=True)
    write_whole(folder / "users" / f"{cell.key}.parquet", lambda path: users.to_parquet(path, index=False))
    text = json.dumps(row, indent=1, default=str)
    write_whole(folder / "cells" / f"{cell.key}.json", lambda path: path.write_text(text, encoding="utf-8"))
    return row


def made_by(cell: Cell) -> dict[str, Any]:
    """What the numbers of a run depend on beside its settings: its data, the code, and :func:`environment`."""
    return {
        "data": cell.data.fingerprint(), "code": code_fingerprint(), "device": str(cell.config()["device"]),
        **environment(),
    }


def _train_and_test(
    config: Any, calibrations: Path, progress: Progress, checkpoint: Path | None
) -> tuple[dict[str, Any], pd.DataFrame]:
    begin = time.perf_counter() - progress.seconds
    training, train, valid, test = prepare_run(config)
    share_calibrations(training, calibrations)
    if checkpoint is not None:
        training.resume_checkpoint(checkpoint)
        progress.resumed += 1
    training.callbacks.append(_Record(training, progress, begin))
    training.keep_last_model = True  # a run that is killed while it is tested has its training behind it
    training.fit(train, valid, verbose=False)
    evaluator = training.steps.trainer.evaluator = PerUserEvaluator(config)
    training.evaluate(test, load_best_model=True)
    per_user = evaluator.per_user
    dataset = test._dataset
    users = pd.DataFrame({"user": dataset.id2token(dataset.uid_field, np.asarray(test.uid_list)), **per_user})
    best = [epoch for epoch, score in progress.scores if score == training.best_valid_score]
    calibration = getattr(training, "calibration_summary", None) or {}
    found = {f"detection {name}": value for name, value in (calibration.get("detection") or {}).items()}
    wall_seconds, cpu_seconds = np.median(progress.epochs, axis=0)
    row = {
        **{f"valid {name}": float(value) for name, value in (training.best_valid_result or {}).items()},
        # not RecBole's four decimals
        **{f"test {name}": float(value.mean()) for name, value in per_user.items()},
        # of epochs that are as good RecBole keeps the last
        "epochs": len(progress.epochs), "best epoch": best[-1] if best else None,
        "seconds": time.perf_counter() - begin,
        "seconds per epoch": float(wall_seconds), "cpu seconds per epoch": float(cpu_seconds),
        "calibration seconds": progress.calibration_seconds, "noise rate": calibration.get("noise_rate"), **found,
    }
    return row, users


class _Record(Callback):
    """Keeps a run's :class:`Progress`."""

    def __init__(self, training: Training, progress: Progress, begin: float) -> None:
        self.training, self.progress, self.begin = training, progress, begin
        self._started = (0.0, 0.0)

    def begin_epoch(self, epoch: int) -> None:
        self._started = (time.perf_counter(), time.process_time())

    def end_epoch(self, epoch: int) -> None:
        wall, cpu = self._started
        self.progress.epochs.append([time.perf_counter() - wall, time.process_time() - cpu])

    def evaluated(self, evaluation: Evaluation) -> None:
        self.progress.scores.append([evaluation.epoch, float(evaluation.score)])

    def notes(self) -> dict[str, Any]:
        progress = self.progress
        progress.seconds = time.perf_counter() - self.begin
        progress.peak_memory = max(progress.peak_memory, _peak_megabytes())
        seconds = getattr(self.training, "calibration_seconds", None)
        progress.calibration_seconds = seconds or progress.calibration_seconds
        return dataclasses.asdict(progress)


@contextmanager
def _inside(folder: Path) -> Iterator[None]:
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def environment() -> dict[str, Any]:
    """The code, the libraries and the machine."""
    versions = {name: metadata.version(name) for name in _LIBRARIES}
    return {
        "git commit": git_commit(), "version": recbole_guider.__version__, "python": platform.python_version(),
        **{f"{name} version": version for name, version in versions.items()},
        "processor": _processor(), "gpu": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
    }


def code_fingerprint() -> str:
    """What this package's files hold, as a short name: a commit says less of an installed package, or of one with
    changes."""
    digest = hashlib.sha256()
    here = Path(recbole_guider.__file__).resolve().parent
    for file in sorted([*here.rglob("*.py"), *properties_dir().rglob("*.yaml")]):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def git_commit() -> str | None:
    """The commit of the package's repository, with ``+changes`` where files differ from it; None outside of one."""
    here = Path(recbole_guider.__file__).resolve().parent
    try:
        commit = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=True
        ).stdout.strip()
        changed = subprocess.run(
            ["git", "status", "--porcelain", "--", "."], cwd=here, capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + ("+changes" if changed else "")


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _forget_peak() -> None:
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return  # not Linux, or not allowed: the peak is then the process's


def _peak_megabytes() -> float:
    """Peak resident memory since the run began (with CUDA: plus the peak of the device's)."""
    try:
        # not getrusage: its maximum survives exec, so that a child would start from its parent's peak
        status = Path("/proc/self/status").read_text(encoding="ascii")
        peak = int(status.split("VmHWM:")[1].split()[0]) / 1024
    except (OSError, IndexError):
        unit = 2**20 if sys.platform == "darwin" else 2**10
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
    if torch.cuda.is_available():
        peak += torch.cuda.max_memory_allocated() / 2**20
    return peak


def main() -> int:
    """Run the cell that a file describes."""
    described, folder = Path(sys.argv[1]), Path(sys.argv[2])
    content = json.loads(described.read_text(encoding="utf-8"))
    cell = Cell(**{**content, "files": tuple(content["files"])})
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    try:
        run_cell(cell, folder, described.parent)
    except GuiderError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _end_with_parent(parent: int) -> None:
    """A benchmark that is killed leaves no run behind."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def as_json(cell: Cell) -> str:
    """A cell as :func:`main` reads it."""
    return json.dumps(dataclasses.asdict(cell), default=str)


if __name__ == "__main__":
    sys.exit(main())
