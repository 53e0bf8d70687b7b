"""Throughput and memory of calibrate_parquet, pass by pass.

    taskset -c 1 python benchmarks/parquet.py [--interactions 4000000] [--dim 64] [--cpus 1] [--learned] [--out FOLDER]

A log of profiles of 1 to 79 items (40 on average), items by a heavy-tailed popularity, two modalities of ``--dim``
columns each, is written to a temporary folder and calibrated. Printed as markdown: for each pass wall seconds and
processor seconds of driver and workers, and processor microseconds for each interaction; then what the split log and
the result take on disk, and the largest peak memory of a worker. On a machine that
does other work, believe the processor seconds. Linux only (/proc).
"""

from __future__ import annotations

import argparse
import logging
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from measure import table

from recbole_guider.amsc import CalibrationSettings, calibrate_parquet, parquet

PASSES = ("split", "count", "sample", "learn", "judge")


def write_log(folder: Path, n: int, n_items: int, files: int) -> None:
    """``n`` interactions in random order."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    sizes = rng.integers(1, 80, size=n // 40 + 1)
    users = rng.permutation(np.repeat(np.arange(len(sizes)), sizes)[:n])
    for k, part in enumerate(np.array_split(users, files)):
        items = (n_items * rng.random(len(part)) ** 2).astype(np.int64)
        pq.write_table(pa.table({"user": part, "item": items}), folder / f"{k:03}.parquet")


def processes(pid: int) -> Iterator[int]:
    """A process and its descendants."""
    yield pid
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            for child in children.read_text().split():
                yield from processes(int(child))
        except OSError:
            continue


class Meter(logging.Handler):
    """Processor time and peak memory of this process and its descendants, noted whenever a pass reports its end."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder, self.split_bytes = folder, 0
        self.seconds: dict[int, float] = {}
        self.peak: dict[int, int] = {}
        self.workers: set[int] = set()
        self.marks: list[tuple[str, float, float]] = []
        self.done = threading.Event()

    def look(self) -> None:
        """Read /proc once."""
        tick = os.sysconf("SC_CLK_TCK")
        for pid in set(processes(os.getpid())):
            try:
                name, rest = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)
                fields = rest.split()
                self.seconds[pid] = (int(fields[11]) + int(fields[12])) / tick
                status = Path(f"/proc/{pid}/status").read_text()
                self.peak[pid] = int(status.split("VmHWM:")[1].split()[0]) * 1024
                if "ray::MapBatches" in name or "ray::Map" in name:
                    self.workers.add(pid)
            except (OSError, IndexError):
                continue

    def watch(self) -> None:
        """Read /proc until done."""
        while not self.done.wait(0.2):
            self.look()

    def mark(self, name: str) -> None:
        """Note the time."""
        self.look()
        self.marks.append((name, time.perf_counter(), sum(self.seconds.values())))

    def disk(self) -> None:
        """Note the size of the split log."""
        self.split_bytes = sum(path.stat().st_size for path in self.folder.glob(".out.*/split/*"))

    def emit(self, record: logging.LogRecord) -> None:
        name = record.getMessage().partition(":")[0]
        if name in PASSES:
            self.mark(name)
        if name == "split":
            self.disk()


def main() -> None:
    """Read the command line, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--interactions", type=int, default=4_000_000)
    parser.add_argument("--items", type=int, default=20_000)
    parser.add_argument("--dim", type=int, default=64, help="columns of each of the two modalities")
    parser.add_argument("--cpus", type=int, default=1, help="workers of Ray")
    parser.add_argument("--learned", action="store_true", help="with learned similarities")
    parser.add_argument("--bucket-rows", type=int, default=parquet.BUCKET_ROWS)
    parser.add_argument("--folder", type=Path, help="where the temporary folder lies")
    args = parser.parse_args()
    import ray

    parquet.BUCKET_ROWS = args.bucket_rows
    rng = np.random.default_rng(1)
    features = {name: rng.normal(size=(args.items, args.dim)).astype(np.float32) for name in ("image", "text")}
    with tempfile.TemporaryDirectory(dir=args.folder) as temporary:
        folder = Path(temporary)
        write_log(folder / "log", args.interactions, args.items, 16)
        ray.init(
            address="local", num_cpus=args.cpus, object_store_memory=500_000_000, include_dashboard=False,
            log_to_driver=False,
        )
        meter = Meter(folder)
        logger = logging.getLogger("recbole_guider.amsc.parquet")
        logger.setLevel("INFO")
        logger.addHandler(meter)
        thread = threading.Thread(target=meter.watch, daemon=True)
        meter.mark("start")
        thread.start()
        settings = CalibrationSettings(learned=args.learned)
        calibrate_parquet(folder / "log", features, folder / "out", settings=settings)
        meter.done.set()
        thread.join()
        ray.shutdown()
        out_bytes = sum(path.stat().st_size for path in (folder / "out").iterdir())
    rows = []
    n = args.interactions
    first, last = meter.marks[0], meter.marks[-1]
    steps = [*zip(meter.marks[:-1], meter.marks[1:], strict=True), (first, (("all", *last[1:])))]
    for (_, wall, cpu), (name, wall_end, cpu_end) in steps:
        seconds = cpu_end - cpu
        rows.append([name, f"{wall_end - wall:.1f}", f"{seconds:.1f}", f"{1e6 * seconds / n:.2f}"])
    print(f"{n} interactions, {args.items} items, 2 x {args.dim} columns, learned: {args.learned}, {args.cpus} CPUs\n")
    print(table(["pass", "wall s", "CPU s", "CPU us per interaction"], rows))
    print(f"\ninteractions per second and core: {n / (last[2] - first[2]):.0f} by CPU time")
    print(f"split log {meter.split_bytes / n:.1f} and result {out_bytes / n:.1f} bytes for each interaction")
    peak = max((meter.peak[pid] for pid in meter.workers), default=0)
    print(f"peak of a worker {peak / 2**20:.0f} MiB, of the driver {meter.peak[os.getpid()] / 2**20:.0f} MiB")


if __name__ == "__main__":
    main()
