"""``recbole-guider benchmark SPEC.yaml``: models x methods x data sets x noise x seeds, one row a run.

``spec.py`` says which runs there are, ``data.py`` which files they read, ``cell.py`` does one, ``progress.py`` keeps
what a stopped one has done, ``runner.py`` does all that are missing, ``report.py`` makes tables, tests and plots.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from recbole_guider.benchmark.report import write_report
    from recbole_guider.benchmark.runner import RESULTS, run_benchmark, write_results
    from recbole_guider.benchmark.spec import read_spec

__all__ = ["RESULTS", "read_spec", "run_benchmark", "write_report", "write_results"]

_HOMES = {"report": ("write_report",), "runner": ("RESULTS", "run_benchmark", "write_results"), "spec": ("read_spec",)}


def __getattr__(name: str) -> Any:
    # loaded when asked for: a process of one run needs neither plots nor tests
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{home}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
