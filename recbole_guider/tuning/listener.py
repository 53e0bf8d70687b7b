"""What the driver does as trials report: write the journal, and tell the user."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from typing import Any

from ray.tune import Callback

from recbole_guider.tuning.definition import SweepDefinition
from recbole_guider.tuning.journal import FAILED, Journal, TrialRecord, metrics_of, winner

#: Seconds between two lines on the sweep as a whole.
_STATUS_EVERY = 30.0


class Listener(Callback):
    """Ray Tune's callback of a sweep; it is stored with the sweep and used again when that is resumed.

    Args:
        definition: the sweep.
        journal: the file of its journal.
        total: how many trials there will be.
        verbose: whether to print.
    """

    def __init__(self, definition: SweepDefinition, journal: Path, total: int, verbose: bool) -> None:
        self.definition, self.journal = definition, Journal(journal)
        self.total, self.verbose = total, verbose
        self._start = self._told = time.time()

    def setup(self, *args: Any, **kwargs: Any) -> None:
        self._start = self._told = time.time()

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        settings = self.definition.space.decode(trial.config)
        self.journal.write("evaluation", trial.trial_id, settings=settings, metrics=metrics_of(result))
        self._tell_status(trials)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.journal.write("complete", trial.trial_id)
        self._tell_end(trial.trial_id)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        settings = self.definition.space.decode(trial.config)
        self.journal.write("failed", trial.trial_id, settings=settings, message=self._message(trial))
        self._tell_end(trial.trial_id)

    def _message(self, trial: Any) -> str:
        """What the trial itself said; else that its process died, and Ray's last words on it."""
        import ray

        try:
            server = ray.get_actor(self.definition.name)
            message = ray.get(server.failure.remote(trial.trial_id))
        except (ValueError, ray.exceptions.RayError):
            message = None
        if message:
            return str(message)
        file = getattr(trial, "error_file", None)
        lines = Path(file).read_text(encoding="utf-8", errors="replace").split("\n") if file else []
        said = [line.strip() for line in lines if line.strip()]
        return f"the worker process died: {said[-1]}" if said else "the worker process died"

    # -- the terminal ---------------------------------------------------------------------------------------------

    def _tell_end(self, name: str) -> None:
        if not self.verbose:
            return
        records = self.journal.trials()
        record = next(each for each in records if each.name == name)
        print(f"{self._clock()}  {describe(record, self.definition)}", flush=True)
        self._told = time.time()
        over = [each for each in records if each.status != "unfinished"]
        best = winner(over, self.definition.bigger)
        if best is not None and best.name == name and len(over) > 1:
            print(f"{self._clock()}  -> the best so far", flush=True)

    def _tell_status(self, trials: list[Any]) -> None:
        if not self.verbose or time.time() - self._told < _STATUS_EVERY:
            return
        self._told = time.time()
        states = Counter(trial.status for trial in trials)
        over = states["TERMINATED"] + states["ERROR"]
        best = winner(self.journal.trials(), self.definition.bigger)
        line = f"{over} of {self.total} trials over, {states['RUNNING']} running"
        if states["ERROR"]:
            line += f", {states['ERROR']} failed"
        if best is not None:
            line += f"; best {self.definition.metric} {best.best_valid_score:.4f} ({short(best.name)})"
        print(f"{self._clock()}  {line}", flush=True)

    def _clock(self) -> str:
        seconds = int(time.time() - self._start)
        return f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"


def describe(record: TrialRecord, definition: SweepDefinition) -> str:
    """A trial in one line."""
    settings = " ".join(f"{key}={format_value(value)}" for key, value in record.settings.items())
    if record.status == FAILED:
        return f"{short(record.name)} failed    {settings}: {record.message}"
    score, epochs = record.best_valid_score, record.last.get("epoch", 0)
    return f"{short(record.name)} {record.status:<9} {definition.metric} {score:.4f} after {epochs} epochs  {settings}"


def short(name: str) -> str:
    """The number of a trial within its sweep, as Ray's id ends with it."""
    return f"trial {name.rpartition('_')[2]}"


def format_value(value: Any) -> str:
    """A setting's value, with few digits."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
