"""All runs of a benchmark that are not finished, some at a time."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import threading
import traceback
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock, Timeout

import recbole_guider
from recbole_guider.benchmark.cell import as_json, made_by, run_cell
from recbole_guider.benchmark.progress import forget, keep_unfinished, take_unfinished, unfinished
from recbole_guider.benchmark.spec import Cell, Spec
from recbole_guider.utils.atomic_io import require_folder, write_whole
from recbole_guider.utils.errors import GuiderError
from recbole_guider.utils.threads import one_thread

RESULTS = "results.csv"
_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_FEW_METRICS = ("recall@20", "ndcg@20", "recall@10", "ndcg@10")
#: Seconds that a run has to end in when it is told to.
_PATIENCE = 10


def run_benchmark(
    spec: Spec, folder: Path, workers: int = 1, say: Callable[[str], None] = print
) -> list[tuple[Cell, str]]:
    """Run what is missing. A killed benchmark continues: finished runs are kept, one by one, and those that were under
    way go on after their latest evaluation (``folder/unfinished``), unless code, libraries, machine or data differ.

    Every finished run is a file of its own in ``folder/cells``; after each, ``folder/results.csv`` is made anew from
    them and put into place at once, a row for each finished run of the spec. A run whose data have changed since it
    finished is made again. Runs of the same settings under several labels are one.

    Args:
        spec: from :func:`~recbole_guider.benchmark.spec.read_spec`.
        folder: of the results, made if need be.
        workers: runs at a time, each in a process of its own with one thread; 0: one after the other in this process
            (its memory is then counted as a whole).
        say: is told of every run that ends.

    Returns:
        The runs that failed, with the reason; all that they printed lies in ``folder/failures``.

    Raises:
        GuiderError: the data of a run that is missing are not there, or ``folder`` cannot be written to.
    """
    if workers < 0:
        raise GuiderError(f"--workers is {workers}: it must be 0 (in this process) or more.")
    require_folder(folder, "--out")
    pending: dict[str, list[Cell]] = {}
    outdated: Counter[str] = Counter()
    for cell in spec.cells:
        if is_finished(cell, folder):
            _failure(cell, folder).unlink(missing_ok=True)
            forget(cell.key, folder)
            continue
        cell.data.check()
        pending.setdefault(cell.key, []).append(cell)
        if _row(cell, folder) is not None:
            outdated[cell.dataset] += 1
    folder.mkdir(parents=True, exist_ok=True)
    for dataset, number in outdated.items():
        say(f"the files of {dataset} have changed: {number} finished runs on them are made again")
    failures: list[tuple[Cell, str]] = []
    done = len(spec.cells) - sum(map(len, pending.values()))
    if done:
        say(f"{done} of {len(spec.cells)} runs are finished already")
    write_results(spec, folder)
    with _terminable(), _scratch(folder) as scratch:
        first = [cells[0] for cells in pending.values()]
        _look_for_unfinished(first, folder, say)
        ended = _in_processes(first, folder, scratch, workers) if workers else _in_this_process(first, folder, scratch)
        with closing(ended):
            for ran, problem in ended:
                if problem is None and not is_finished(ran, folder):
                    problem = "error: the files of the data set changed while it ran."
                if problem is None:
                    rows = write_results(spec, folder)
                    what = _result(spec, rows, ran)
                    _failure(ran, folder).unlink(missing_ok=True)
                else:
                    reason = _reason(problem)
                    what = f"FAILED, {reason}"
                    failures += [(cell, reason) for cell in pending[ran.key]]
                    _failure(ran, folder).parent.mkdir(exist_ok=True)
                    _failure(ran, folder).write_text(f"{_place(ran)}\n\n{problem}", encoding="utf-8")
                for cell in pending[ran.key]:
                    done += 1
                    say(f"[{done}/{len(spec.cells)}] {_place(cell)}: {what}")
    return failures


def metrics_of(spec: Spec, rows: pd.DataFrame) -> list[str]:
    """The metrics that are compared: the spec's; else Recall and NDCG at 20 or 10; else all there are."""
    there = [str(column).removeprefix("test ") for column in rows.columns if str(column).startswith("test ")]
    wanted = spec.settings.metrics or [metric for metric in _FEW_METRICS if metric in there][:2] or there
    return [metric for metric in wanted if metric in there]


def _look_for_unfinished(cells: list[Cell], folder: Path, say: Callable[[str], None]) -> None:
    """Tell which runs are continued; the checkpoints of those that cannot be are removed."""
    for cell in cells:
        progress = unfinished(cell.key, folder)
        if progress is None:
            continue
        if progress.continues_in(made_by(cell)):
            say(f"{_place(cell)}: continued after epoch {len(progress.epochs)}")
        else:
            say(f"{_place(cell)}: made anew, since code, libraries, machine or data are not those it was begun with")
            forget(cell.key, folder)


def _place(cell: Cell) -> str:
    return ", ".join(f"{key} {value}" for key, value in cell.labels.items())


def _result(spec: Spec, rows: pd.DataFrame, cell: Cell) -> str:
    """What is said of a finished run: the first of the metrics that the report compares."""
    row = rows[rows["key"] == cell.key].iloc[0]
    metrics = [f"test {metric} {row[f'test {metric}']:.4f}" for metric in metrics_of(spec, rows)[:1]]
    return ", ".join([*metrics, f"{row['seconds']:.0f} s"])


def _reason(problem: str) -> str:
    """The line of a run's output that says why it failed: its error, else the exception's first line, else the last
    before its exit status."""
    lines = [line.strip() for line in problem.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error:")]
    ended_by_itself = lines[-1].startswith("exit status")
    if errors and (ended_by_itself or lines[-1] == errors[-1]):
        return errors[-1].removeprefix("error: ")
    raised = [line for line in problem.splitlines() if re.match(r"[\w.]+(Error|Exception)\b", line)]
    if raised and ended_by_itself:
        return raised[-1].strip()  # those of CUDA have hints for programmers behind it
    return lines[-2] if ended_by_itself and len(lines) > 1 else lines[-1]


def _failure(cell: Cell, folder: Path) -> Path:
    return folder / "failures" / f"{cell.key}.txt"


def _row(cell: Cell, folder: Path) -> dict[str, Any] | None:
    """What a run wrote when it finished, if its users' metrics are there as well."""
    file = folder / "cells" / f"{cell.key}.json"
    if not file.is_file() or not (folder / "users" / f"{cell.key}.parquet").is_file():
        return None
    row: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return row


def _is_current(cell: Cell, row: dict[str, Any]) -> bool:
    """Whether a run read the data that are there now. One from before fingerprints may have, and where there are no
    data (results may be reported elsewhere) there is nothing to compare with."""
    before = row.get("data")
    return before is None or cell.data.fingerprint() in (None, before)


def is_finished(cell: Cell, folder: Path) -> bool:
    """Whether a run's row and its users' metrics are there, from the data as they are now."""
    row = _row(cell, folder)
    return row is not None and _is_current(cell, row)


def read_results(spec: Spec, folder: Path) -> pd.DataFrame:
    """A row for each finished run of the spec, under the spec's present labels."""
    rows = []
    for cell in spec.cells:
        row = _row(cell, folder)
        if row is not None and _is_current(cell, row):
            rows.append({**row, **cell.labels})
    return pd.DataFrame(rows, columns=None if rows else ["key", "dataset", "model", "method", "noise", "seed"])


def write_results(spec: Spec, folder: Path) -> pd.DataFrame:
    """Put ``results.csv`` into place; returns its rows."""
    rows = read_results(spec, folder)
    write_whole(folder / RESULTS, lambda path: rows.to_csv(path, index=False))
    return rows


def read_users(key: str, folder: Path) -> pd.DataFrame:
    """The metrics of every test user of a finished run, indexed by the user's token."""
    return pd.read_parquet(folder / "users" / f"{key}.parquet").set_index("user")


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM ends the benchmark as Ctrl-C does, and its runs with it."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may ask for signals
        return

    def stop(number: int, frame: Any) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)


@contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    """A folder for what runs leave on the way (checkpoints, logs), inside that of the results, and gone at the end.

    What killed benchmarks left there is removed, but for the checkpoints of unfinished runs: a lock, which the system
    frees when its process ends, tells them from those that run beside this one.
    """
    for left in folder.glob(".running-*"):
        # a timeout: it is in use; the others: a file system without locks, where nobody can tell
        with suppress(Timeout, OSError, NotImplementedError), FileLock(left / "lock", 0, fallback_to_soft=False):
            keep_unfinished(left, folder)
            shutil.rmtree(left, ignore_errors=True)
    scratch = folder.resolve() / f".running-{secrets.token_hex(4)}"
    scratch.mkdir()
    with ExitStack() as held:
        with suppress(OSError, NotImplementedError):  # a file system without locks: what is left there stays
            held.enter_context(FileLock(scratch / "lock", fallback_to_soft=False))
        # before the lock is freed, lest a benchmark that starts now tidies up as well
        held.callback(shutil.rmtree, scratch, ignore_errors=True)
        held.callback(keep_unfinished, scratch, folder)
        yield scratch


#: A run that ended, and what it printed if it failed.
_Ended = Generator[tuple[Cell, str | None], None, None]


def _own_folder(cell: Cell, folder: Path, scratch: Path) -> Path:
    """A run's folder, with its checkpoints where it was stopped before."""
    its_own = scratch / cell.key
    its_own.mkdir()
    take_unfinished(cell.key, folder, its_own)
    return its_own


def _in_this_process(cells: list[Cell], folder: Path, scratch: Path) -> _Ended:
    for cell in cells:
        its_own = _own_folder(cell, folder, scratch)
        problem = None
        try:
            with one_thread():
                run_cell(cell, folder, its_own)
        except GuiderError as error:
            problem = f"error: {error}"
        except Exception:  # one bad run must not end the others
            problem = traceback.format_exc()
        shutil.rmtree(its_own, ignore_errors=True)
        yield cell, problem


def _in_processes(cells: list[Cell], folder: Path, scratch: Path, workers: int) -> _Ended:
    with _children() as children:
        pool = ThreadPoolExecutor(workers)
        try:
            waiting = {pool.submit(_child, cell, folder.resolve(), scratch, children): cell for cell in cells}
            while waiting:
                for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                    yield waiting.pop(future), future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _child(cell: Cell, folder: Path, scratch: Path, children: _Children) -> str | None:
    """Run a cell in a process of its own; None if it finished, else what it printed and how it ended."""
    its_own = _own_folder(cell, folder, scratch)
    described = its_own / "cell.json"
    described.write_text(as_json(cell), encoding="utf-8")
    package = str(Path(recbole_guider.__file__).resolve().parent.parent)
    path = os.pathsep.join(part for part in (package, os.environ.get("PYTHONPATH")) if part)
    environment = {**os.environ, **dict.fromkeys(_ONE_THREAD, "1"), "PYTHONPATH": path}
    process = children.start(
        [sys.executable, "-m", "recbole_guider.benchmark.cell", str(described), str(folder)],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )
    if process is None:
        return "stopped before it began"
    output, _ = process.communicate()
    if process.returncode < 0:  # it can be continued: its folder is seen to when the benchmark ends
        return f"{output}\nkilled by {signal.Signals(-process.returncode).name}"
    shutil.rmtree(its_own, ignore_errors=True)
    if process.returncode == 0:
        return None
    return f"{output}\nexit status {process.returncode}"


class _Children:
    """The processes that run now; none is left when the benchmark stops."""

    def __init__(self) -> None:
        self.lock, self.running, self.stopped = threading.Lock(), [], False  # type: ignore[var-annotated]

    def start(self, command: list[str], **more: Any) -> subprocess.Popen[str] | None:
        with self.lock:
            if self.stopped:
                return None
            process = subprocess.Popen(command, **more)
            self.running.append(process)
            return process

    def stop(self) -> None:
        with self.lock:
            self.stopped = True
            running = [process for process in self.running if process.poll() is None]
        for process in running:
            process.terminate()
        for process in running:  # one that writes still would bring its folder back
            try:
                process.wait(_PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextmanager
def _children() -> Iterator[_Children]:
    children = _Children()
    try:
        yield children
    finally:
        children.stop()
