"""Time and peak memory of a function, for the benchmark scripts beside this file."""

from __future__ import annotations

import multiprocessing
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any


def milliseconds(function: Callable[[], Any], repeat: int = 10) -> float:
    """Median processor time of a call, over all its threads, after one call to warm up.

    With one thread that is the wall time on a machine that does nothing else, whatever this machine does beside.
    """
    function()
    times = []
    for _ in range(repeat):
        start = time.process_time()
        function()
        times.append(time.process_time() - start)
    return 1e3 * statistics.median(times)


def _peak_kilobytes() -> int:
    # Not getrusage: its maximum survives exec, so that a child would start from its parent's peak.
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0])


def _child(make: Callable[..., Callable[[], Any]], arguments: Sequence[Any], queue: Any) -> None:
    function = make(*arguments)
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    before = _peak_kilobytes()
    function()
    queue.put((_peak_kilobytes() - before) / 1024)


def peak_megabytes(make: Callable[..., Callable[[], Any]], *arguments: Any) -> float:
    """How far one call of ``make(*arguments)()`` raises the peak memory of a new process that did nothing else.

    Linux only (/proc). ``make`` must be a module-level function; what it allocates before it returns does not count.
    """
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=_child, args=(make, arguments, queue))
    process.start()
    result = queue.get()
    process.join()
    return result


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
