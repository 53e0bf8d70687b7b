"""The sweep's own record: one line of JSON for each evaluation and each end of a trial, written as it happens.

It outlives a killed driver, whose last seconds Ray's snapshots may lack, and does not depend on Ray's file formats.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

#: How a trial ended, as the tables say it.
FINISHED, STOPPED, FAILED, UNFINISHED = "finished", "stopped", "failed", "unfinished"


@dataclass
class TrialRecord:
    """What the journal knows of one trial.

    Attributes:
        name: Ray's id of the trial.
        settings: key -> value of the searched settings; the latest, where population-based training changed them.
        evaluations: the reported metrics, in order.
        status: ``finished``; ``stopped`` by the scheduler or the time budget; ``failed``; ``unfinished``.
        message: why it failed.
    """

    name: str
    settings: dict[str, Any] = field(default_factory=dict)
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    status: str = UNFINISHED
    message: str = ""

    @property
    def last(self) -> dict[str, Any]:
        """The metrics of the latest evaluation; empty if there was none."""
        return self.evaluations[-1] if self.evaluations else {}

    @property
    def best_valid_score(self) -> float:
        """NaN if the trial failed or was never evaluated."""
        return float("nan") if self.status == FAILED else float(self.last.get("best_valid_score", "nan"))


class Journal:
    """The file ``journal.jsonl`` of a sweep."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def write(self, event: str, trial: str, **details: Any) -> None:
        """Append one line, on disk when this returns."""
        line = json.dumps({"event": event, "trial": trial, **details}, default=str) + "\n"
        with open(self.file, "a", encoding="utf-8") as stream:
            stream.write(line)
            stream.flush()
            os.fsync(stream.fileno())

    def trials(self) -> list[TrialRecord]:
        """All trials in the order of their first line."""
        records: dict[str, TrialRecord] = {}
        for line in self._lines():
            record = records.setdefault(line["trial"], TrialRecord(line["trial"]))
            record.settings = line.get("settings", record.settings)
            if line["event"] == "evaluation":
                metrics = line["metrics"]
                # a trial that was restarted on another machine repeats what came after its checkpoint
                kept = [row for row in record.evaluations if row["evaluation"] < metrics["evaluation"]]
                record.evaluations = [*kept, metrics]
                record.status, record.message = UNFINISHED, ""
            elif line["event"] == "complete":
                record.status = FINISHED if record.last.get("over") else STOPPED
            elif line["event"] == "failed":
                record.status, record.message = FAILED, line["message"]
        return list(records.values())

    def _lines(self) -> Iterator[dict[str, Any]]:
        if not self.file.is_file():
            return
        with open(self.file, encoding="utf-8") as stream:
            for text in stream:
                try:
                    yield json.loads(text)
                except ValueError:
                    continue  # a line that a killed process had begun


def winner(trials: list[TrialRecord], bigger: bool) -> TrialRecord | None:
    """The trial with the best validation score; the first of equals; None if no trial was evaluated."""
    scored = [trial for trial in trials if not math.isnan(trial.best_valid_score)]
    if not scored:
        return None
    return (max if bigger else min)(scored, key=lambda trial: trial.best_valid_score)


def metrics_of(result: Mapping[str, Any]) -> dict[str, Any]:
    """Of what Ray adds to a report, only what a reader of the tables may want."""
    ours = {"evaluation", "epoch", "valid_score", "best_valid_score", "over", "seconds", "node"} | {
        "seed_scores", "stages"
    }
    kept = {key: value for key, value in result.items() if key in ours or key.startswith(("valid/", "best_valid/"))}
    return {
        **kept, "time": result.get("time_total_s", 0.0), "host": result.get("hostname", ""), "pid": result.get("pid", 0)
    }
