"""All runs of a benchmark that are not finished, some at a time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd

import recbole_guider
from recbole_guider.benchmark.cell import as_json, run_cell
from recbole_guider.benchmark.spec import Cell, Spec
from recbole_guider.errors import GuiderError
from recbole_guider.threads import one_thread
from recbole_guider.whole_files import write_whole

RESULTS = "results.csv"
_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def run_benchmark(
    spec: Spec, folder: Path, workers: int = 1, say: Callable[[str], None] = print
) -> list[tuple[Cell, str]]:
    """Run what is missing. A killed benchmark continues: finished runs are kept, one by one.

    Every finished run is a file of its own in ``folder/cells``; after each, ``folder/results.csv`` is made anew from
    them and put into place at once, a row for each finished run of the spec.

    Args:
        spec: from :func:`~recbole_guider.benchmark.spec.read_spec`.
        folder: of the results, made if need be.
        workers: runs at a time, each in a process of its own with one thread; 0: one after the other in this process
            (its memory is then counted as a whole).
        say: is told of every run that ends.

    Returns:
        The runs that failed, with the end of what they printed; the whole lies in ``folder/failures``.
    """
    if workers < 0:
        raise GuiderError(f"--workers is {workers}: it must be 0 (in this process) or more.")
    folder.mkdir(parents=True, exist_ok=True)
    failures: list[tuple[Cell, str]] = []
    pending = [cell for cell in spec.cells if not is_finished(cell, folder)]
    done = len(spec.cells) - len(pending)
    if done:
        say(f"{done} of {len(spec.cells)} runs are finished already")
    write_results(spec, folder)
    running = _in_processes(pending, folder, workers) if workers else _in_this_process(pending, folder)
    for cell, problem in running:
        done += 1
        place = ", ".join(f"{key} {value}" for key, value in cell.labels.items())
        if problem is None:
            rows = write_results(spec, folder)
            row = rows[rows["key"] == cell.key].iloc[0]
            metric = (spec.settings.metrics or _metrics(rows))[0]
            result = f"test {metric} {row[f'test {metric}']:.4f}, {row['seconds']:.0f} s"
            say(f"[{done}/{len(spec.cells)}] {place}: {result}")
        else:
            failures.append((cell, problem))
            (folder / "failures").mkdir(exist_ok=True)
            (folder / "failures" / f"{cell.key}.txt").write_text(f"{place}\n\n{problem}", encoding="utf-8")
            say(f"[{done}/{len(spec.cells)}] {place}: FAILED, {problem.strip().splitlines()[-1]}")
    return failures


def is_finished(cell: Cell, folder: Path) -> bool:
    """Whether a run's row and its users' metrics are there."""
    return (folder / "cells" / f"{cell.key}.json").is_file() and (folder / "users" / f"{cell.key}.parquet").is_file()


def read_results(spec: Spec, folder: Path) -> pd.DataFrame:
    """A row for each finished run of the spec, under the spec's present labels."""
    rows = []
    for cell in spec.cells:
        if is_finished(cell, folder):
            row = json.loads((folder / "cells" / f"{cell.key}.json").read_text(encoding="utf-8"))
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


def _metrics(rows: pd.DataFrame) -> list[str]:
    return [column.removeprefix("test ") for column in rows.columns if str(column).startswith("test ")]


def _in_this_process(cells: list[Cell], folder: Path) -> Iterator[tuple[Cell, str | None]]:
    for cell in cells:
        try:
            with one_thread():
                run_cell(cell, folder)
        except Exception as error:  # one bad run must not end the others
            yield cell, f"{type(error).__name__}: {error}"
        else:
            yield cell, None


def _in_processes(cells: list[Cell], folder: Path, workers: int) -> Iterator[tuple[Cell, str | None]]:
    with tempfile.TemporaryDirectory(prefix="benchmark-") as scratch, _children() as children:
        pool = ThreadPoolExecutor(workers)
        try:
            waiting = {pool.submit(_child, cell, folder.resolve(), Path(scratch), children): cell for cell in cells}
            while waiting:
                for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                    yield waiting.pop(future), future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _child(cell: Cell, folder: Path, scratch: Path, children: _Children) -> str | None:
    """Run a cell in a process of its own; None if it finished, else the end of what it printed."""
    described = scratch / f"{cell.key}.json"
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
    if process.returncode == 0 and is_finished(cell, folder):
        return None
    return f"{output[-4000:]}\nexit status {process.returncode}"


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
            for process in self.running:
                if process.poll() is None:
                    process.terminate()


@contextmanager
def _children() -> Iterator[_Children]:
    children = _Children()
    try:
        yield children
    finally:
        children.stop()
