"""What a run has done so far: a benchmark that is stopped continues its runs where they were."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from recbole_guider.training.checkpoint import load
from recbole_guider.utils.errors import GuiderError

#: Of the results' folder: the checkpoints of each run that was stopped, in a folder named by its key.
UNFINISHED = "unfinished"
#: Of a run's own folder: its checkpoints.
SAVED = "saved"


@dataclass
class Progress:
    """What a run's row needs of the epochs so far, kept in its checkpoints.

    Attributes:
        made_by: code, libraries, machine and data (:func:`~recbole_guider.benchmark.cell.made_by`).
        started: when the run began.
        epochs: wall and processor seconds of each.
        scores: epoch and validation score of each evaluation.
        seconds: in all, without those that a stop made vain.
        peak_memory: in MB.
        calibration_seconds: AMSC's; None for a plain model.
        resumed: how many times the run was continued.
    """

    made_by: Mapping[str, Any]
    started: str
    epochs: list[list[float]] = field(default_factory=list)
    scores: list[list[float]] = field(default_factory=list)
    seconds: float = 0.0
    peak_memory: float = 0.0
    calibration_seconds: float | None = None
    resumed: int = 0

    def continues_in(self, here: Mapping[str, Any]) -> bool:
        """Whether the run may go on where code, libraries, machine and data are these.

        Where they differ its numbers would be those of neither. The commit is not compared, since that of a page of
        docs changes nothing, nor are data that were downloaded after the run began.
        """
        left_out = {"git commit"} | ({"data"} if self.made_by.get("data") is None else set())
        return {**self.made_by, **dict.fromkeys(left_out)} == {**here, **dict.fromkeys(left_out)}


def last_checkpoint(saved: Path) -> Path | None:
    """The checkpoint that a stopped run is continued from; None if it did not get as far as its first evaluation."""
    return next(saved.glob("*.last.pth"), None)


def read_progress(saved: Path) -> Progress | None:
    """That of a stopped run; None as in :func:`last_checkpoint`.

    Raises:
        GuiderError: the checkpoint is damaged, or not one of a benchmark.
    """
    checkpoint = last_checkpoint(saved)
    if checkpoint is None:
        return None
    try:
        return Progress(**load(checkpoint)["notes"])
    except (KeyError, TypeError) as error:
        raise GuiderError(f"{checkpoint} is not a checkpoint of a benchmark's run.") from error


def keep_unfinished(scratch: Path, folder: Path) -> None:
    """Move the runs that were stopped from the folder of their benchmark to ``folder/unfinished``."""
    for saved in scratch.glob(f"*/{SAVED}"):
        if last_checkpoint(saved) is None:
            continue
        for half_written in saved.glob(".*.partial"):
            half_written.unlink(missing_ok=True)
        forget(saved.parent.name, folder)
        with suppress(FileNotFoundError):  # somebody else has moved it
            (folder / UNFINISHED).mkdir(exist_ok=True)
            os.replace(saved, folder / UNFINISHED / saved.parent.name)


def take_unfinished(key: str, folder: Path, its_own: Path) -> None:
    """Move the checkpoints of a run, if it was stopped, to its own folder in a benchmark that continues it.

    Of two benchmarks on the same results' folder one gets them.
    """
    with suppress(FileNotFoundError):
        os.replace(folder / UNFINISHED / key, its_own / SAVED)
    _remove_if_empty(folder / UNFINISHED)


def unfinished(key: str, folder: Path) -> Progress | None:
    """That of a run in the folder of the results, if it was stopped; one that nobody can continue is removed."""
    with suppress(GuiderError):
        progress = read_progress(folder / UNFINISHED / key)
        if progress is not None:
            return progress
    forget(key, folder)
    return None


def forget(key: str, folder: Path) -> None:
    """Remove the checkpoints of a run that was stopped."""
    shutil.rmtree(folder / UNFINISHED / key, ignore_errors=True)
    _remove_if_empty(folder / UNFINISHED)


def _remove_if_empty(folder: Path) -> None:
    with suppress(OSError):  # there is something in it, or it never was there
        folder.rmdir()
