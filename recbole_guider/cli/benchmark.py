"""``recbole-guider benchmark``: compare models, methods, data sets and noise over seeds."""

from __future__ import annotations

import argparse
from pathlib import Path

from recbole_guider.cli.command import Command, add_import
from recbole_guider.utils.errors import GuiderError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("spec", help="YAML file: datasets, models, methods, noise, seeds")
    parser.add_argument("--data", help="folder of <dataset>.yaml, for data sets whose spec names no files")
    parser.add_argument("--out", help="folder of the results (default: <spec>-results)")
    parser.add_argument("--workers", type=int, default=1,
                        help="runs at a time, each a process with one thread; 0: in this process (default: 1)")
    add_import(parser)
    parser.add_argument("--report-only", action="store_true", help="run nothing; report what is finished")


def run(arguments: argparse.Namespace, rest: list[str]) -> None:
    from recbole_guider.benchmark import RESULTS, read_spec, run_benchmark, write_report, write_results

    spec = read_spec(arguments.spec, arguments.data, arguments.imports or ())
    folder = Path(arguments.out or f"{Path(arguments.spec).stem}-results")
    failures = []
    if arguments.report_only:
        if not (folder / RESULTS).is_file() and not (folder / "cells").is_dir():
            raise GuiderError(f"--report-only: {folder} holds no results of a benchmark; name their folder with --out.")
        write_results(spec, folder)
    else:
        failures = run_benchmark(spec, folder, arguments.workers)
    for written in (folder / "results.csv", *write_report(spec, folder)):
        print(f"wrote {written}")
    if failures:
        raise GuiderError(
            f"{len(failures)} of {len(spec.cells)} runs failed; see {folder / 'failures'}. The same command tries them "
            f"again."
        )


COMMAND = Command(
    "compare models, methods, data sets and noise over seeds", add_arguments, run,
    description="Run models x methods x data sets x noise x seeds, one CSV row a run, and report means,\n"
    "deviations, paired tests and robustness curves as markdown and as a page with plots.",
    epilog="""\
A killed benchmark continues with the same command: finished runs are kept. benchmarks/specs/ has specs, and
docs/benchmark.md says what may stand in one.
""",
)
