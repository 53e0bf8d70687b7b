"""The trials of a sweep as tables."""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path
from typing import Any

import pandas as pd

from recbole_guider.tuning.definition import SweepDefinition
from recbole_guider.tuning.journal import TrialRecord


def trial_table(trials: list[TrialRecord], definition: SweepDefinition) -> pd.DataFrame:
    """One row for each trial, the best first: its end, its settings, its scores.

    Columns: trial, status, message, one for each searched setting, best_valid_score (mean over the seeds),
    best_valid_score_std (over the seeds; missing for one), epochs, best_valid/<metric>, seconds, node.
    """
    rows = []
    for trial in trials:
        last = trial.last
        scores = list(json.loads(last["seed_scores"]).values()) if last else []
        rows.append({
            "trial": trial.name,
            "status": trial.status,
            "message": trial.message,
            **{setting.key: trial.settings.get(setting.key) for setting in definition.space},
            "best_valid_score": trial.best_valid_score,
            "best_valid_score_std": statistics.stdev(scores) if len(scores) > 1 else math.nan,
            "epochs": last.get("epoch", 0),
            **{name: value for name, value in last.items() if name.startswith("best_valid/")},
            "seconds": math.fsum(row["seconds"] for row in trial.evaluations),
            "node": last.get("node", ""),
        })
    columns = ["trial", "status", "message", *(setting.key for setting in definition.space), "best_valid_score"]
    table = pd.DataFrame(rows) if rows else pd.DataFrame(columns=columns)
    return table.sort_values("best_valid_score", ascending=not definition.bigger, na_position="last", ignore_index=True)


def evaluation_table(trials: list[TrialRecord]) -> pd.DataFrame:
    """One row for each evaluation of each trial: trial, evaluation, epoch, valid_score, ..., in order."""
    rows = [{"trial": trial.name, **row} for trial in trials for row in trial.evaluations]
    columns = ["trial", "evaluation", "epoch", "valid_score", "best_valid_score"]
    table = pd.DataFrame(rows) if rows else pd.DataFrame(columns=columns)
    return table.drop(columns=["stages", "seed_scores"], errors="ignore")


def write_tables(trials: pd.DataFrame, evaluations: pd.DataFrame, folder: Path) -> None:
    """``trials`` and ``evaluations``, each as .csv and .parquet. Values that are no scalars become JSON text."""
    for name, table in (("trials", trials), ("evaluations", evaluations)):
        flat = table.copy()
        for column in flat.columns:
            if flat[column].dtype == object:
                flat[column] = _as_one_type(flat[column].tolist())
        flat.to_csv(folder / f"{name}.csv", index=False)
        flat.to_parquet(folder / f"{name}.parquet", index=False)


def _as_one_type(values: list[Any]) -> list[Any]:
    """Parquet columns have one type: a choice of [64, null, [64, 32]] has three."""
    if len({type(value) for value in values if value is not None}) <= 1 and not any(
        isinstance(value, (list, dict)) for value in values
    ):
        return values
    return [value if value is None or isinstance(value, str) else json.dumps(value) for value in values]
