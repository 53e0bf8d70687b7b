"""Sweeps: many trainings at a time, on this machine or a cluster, through Ray Tune.

    space.py        what is searched; samplers.py: how
    definition.py   a sweep as plain data
    sweep.py        a sweep from its start, or its resumption, to its report
    trial.py        what one trial does in its worker, for all its seeds in turns
    shared_data.py  where it gets its data from
    listener.py     what the driver does as trials report
    ray_api.py      Ray Tune of both generations
    journal.py      the sweep's own record
    winner.py       the best configuration, and its one evaluation on test
    tables.py, importance.py, report.py: what comes out
"""

from __future__ import annotations

from typing import Any

__all__ = ["tune_guider"]


def __getattr__(name: str) -> Any:
    # loaded when asked for: a worker that runs a trial needs neither plots nor tables
    if name == "tune_guider":
        from recbole_guider.tuning.sweep import tune_guider

        return tune_guider
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
