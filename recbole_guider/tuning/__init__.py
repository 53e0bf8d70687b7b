"""Sweeps: many trainings at a time, on this machine or a cluster, through Ray Tune.

``space.py`` says what is searched, ``samplers.py`` how, ``trial.py`` what one trial does in its worker,
``shared_data.py`` where it gets its data from, ``sweep.py`` runs them all; ``journal.py``, ``tables.py``, ``winner.py``
and ``report.py`` are what comes out.
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
