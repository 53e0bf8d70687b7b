"""One trial: a configuration trained with every seed, which reports its validation scores after every evaluation.

This runs in Ray's worker processes; unpickling it there imports this package, which applies the shims of ``compat``.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from recbole_guider.quick_start import prepare_run
from recbole_guider.training.checkpoint import random_state, restore_random_state
from recbole_guider.training.trainer import share_calibrations
from recbole_guider.tuning import ray_api
from recbole_guider.tuning.definition import SweepDefinition
from recbole_guider.tuning.shared_data import configuration, unpack
from recbole_guider.utils.errors import GuiderError
from recbole_guider.utils.yaml_files import write_yaml

#: The file of a trial's checkpoint that says where the trial was.
_PROGRESS = "progress.json"


#: What stands for the next evaluation of a training that has ended.
_ENDED = object()


class TrialFailed(RuntimeError):
    """A trial that failed before and would fail again."""


def run_trial(chosen: Mapping[str, Any], definition: SweepDefinition, server_name: str) -> None:
    """Train one configuration, from the start or from where it was interrupted.

    Args:
        chosen: what the sampler chose, encoded.
        definition: the sweep.
        server_name: the name of its :class:`~recbole_guider.tuning.shared_data.SweepServer`.

    Raises:
        Exception: what went wrong; Ray marks the trial as failed, and the sweep goes on.
    """
    import ray

    server, name = ray.get_actor(server_name), ray_api.trial_id()
    earlier = ray.get(server.failure.remote(name))
    if earlier is not None:
        raise TrialFailed(earlier)
    finished = ray.get(server.finished.remote(name))
    if finished is not None:  # Ray's snapshot is older than the journal: nothing is trained again
        with tempfile.TemporaryDirectory() as folder:
            _restore(Path(folder))
            ray_api.report(finished, Path(folder))
        return
    started_in = os.getcwd()
    try:
        with tempfile.TemporaryDirectory(prefix="work-", dir=started_in) as work:
            _train(definition, definition.space.decode(chosen), server, Path(work))
    except Exception as error:
        ray.get(server.fail.remote(name, describe(error)))
        raise
    finally:
        os.chdir(started_in)


def describe(error: BaseException) -> str:
    """An error in one line."""
    text = " ".join(str(error).split())
    return text if isinstance(error, GuiderError) and text else f"{type(error).__name__}: {text}".rstrip(": ")


class SeedRun:
    """The training of one configuration with one seed, one evaluation at a time.

    Attributes:
        epochs: how many epochs it has trained.
        valid_score, valid_result: of the latest evaluation; best_valid_score, best_valid_result: of the best one.
        over: training ends after the latest evaluation, by its number or by RecBole's early stopping.
    """

    def __init__(
        self, settings: Mapping[str, Any], seed: int | None, packed: Any, work: Path, state: Mapping[str, Any]
    ) -> None:
        self.settings, self.seed, self.packed, self.work = settings, seed, packed, work
        self.stem = "seed" if seed is None else f"seed-{seed}"
        self.resume = work / f"{self.stem}.last.pth" if state else None
        self.epochs: int = state.get("epochs", 0)
        self.evaluations: int = state.get("evaluations", 0)
        self.valid_score: float = state.get("valid_score", math.nan)
        self.best_valid_score: float = state.get("best_valid_score", math.nan)
        self.valid_result: dict[str, float] = state.get("valid_result", {})
        self.best_valid_result: dict[str, float] = state.get("best_valid_result", {})
        self.over: bool = state.get("over", False)

    def state(self) -> dict[str, Any]:
        """What the constructor takes as ``state``, as JSON keeps it."""
        keys = ("epochs", "evaluations", "valid_score", "best_valid_score", "valid_result", "best_valid_result", "over")
        return {key: getattr(self, key) for key in keys}

    def files(self) -> list[Path]:
        """The best model, and what training continues from."""
        return [file for file in (self.work / f"{self.stem}.pth", self.work / f"{self.stem}.last.pth") if file.exists()]

    def train(self) -> Iterator[None]:
        """Train, and stop after each evaluation; meanwhile others may draw from the generators of this process.

        Raises:
            FloatingPointError: a loss or a score is not finite.
        """
        overrides: dict[str, Any] = {"checkpoint_dir": str(self.work), "show_progress": False, "save_dataset": False}
        if self.seed is not None:
            overrides["seed"] = self.seed
        config = configuration(self.settings, **overrides)
        prepared = prepare_run(config, unpack(self.packed, config))
        prepared.training.saved_model_file = str(self.work / f"{self.stem}.pth")
        # trials that differ in other settings than AMSC's share one, on each machine
        share_calibrations(prepared.training, ray_api.trial_folder().parent / "calibrations")
        if self.resume is not None:
            prepared.training.resume_checkpoint(self.resume)
        for evaluation in prepared.iter_evaluations():
            for what, value in (("training loss", evaluation.train_loss), ("validation score", evaluation.score)):
                if not math.isfinite(value):
                    raise FloatingPointError(f"the {what} is {value} after epoch {evaluation.epoch}")
            self.epochs, self.evaluations = evaluation.epoch + 1, self.evaluations + 1
            self.valid_score, self.best_valid_score = float(evaluation.score), float(evaluation.best_score)
            self.valid_result, self.best_valid_result = map(_numbers, (evaluation.result, evaluation.best_result))
            self.over = evaluation.is_last
            state = random_state(prepared.train_data)
            yield
            restore_random_state(state, prepared.train_data)


def _train(definition: SweepDefinition, chosen: dict[str, Any], server: Any, work: Path) -> None:
    import ray

    folder = ray_api.trial_folder()
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)  # RecBole writes its logs and TensorBoard files into the current directory
    torch.set_num_threads(max(1, int(definition.cpus_per_trial)))
    state = _restore(work)
    stages = state.get("stages", [])
    if not stages or stages[-1]["settings"] != chosen:
        # population-based training goes on with the state of another trial and settings of its own
        stages = [*stages, {"epoch": state.get("epochs", 0), "settings": chosen}]
    settings = definition.trial_settings(chosen)
    write_yaml(settings, folder / "settings.yaml")
    packed = ray.get(ray.get(server.data.remote(settings))[0])
    seeds: list[int | None] = list(definition.seeds) or [None]
    runs = [SeedRun(settings, seed, packed, work, state.get("seeds", {}).get(str(seed), {})) for seed in seeds]
    if all(run.over for run in runs):
        _report(runs, stages, work, 0.0)
        return
    trainings = {run: run.train() for run in runs if not run.over}
    while trainings:
        start = time.time()
        for run, training in list(trainings.items()):
            if next(training, _ENDED) is _ENDED:
                del trainings[run]
        if trainings:
            _report(runs, stages, work, time.time() - start)
    if not any(run.evaluations for run in runs):
        raise GuiderError(f"{settings['model']} trains without evaluating: a sweep has nothing to compare it by.")


def _report(runs: list[SeedRun], stages: list[dict[str, Any]], work: Path, seconds: float) -> None:
    import ray

    metrics: dict[str, Any] = {
        "evaluation": max(run.evaluations for run in runs),
        "epoch": max(run.epochs for run in runs),
        "valid_score": _mean([run.valid_score for run in runs]),
        "best_valid_score": _mean([run.best_valid_score for run in runs]),
        "over": all(run.over for run in runs),
        "seconds": seconds,
        "node": ray.get_runtime_context().get_node_id(),
        "seed_scores": json.dumps({str(run.seed): run.best_valid_score for run in runs}),
        "stages": json.dumps(stages),
    }
    for kind, results in (
        ("valid", [run.valid_result for run in runs]), ("best_valid", [run.best_valid_result for run in runs])
    ):
        metrics.update({f"{kind}/{name}": _mean([result[name] for result in results]) for name in results[0]})
    with tempfile.TemporaryDirectory(dir=work) as temporary:
        checkpoint = Path(temporary)
        for file in [file for run in runs for file in run.files()]:
            os.link(file, checkpoint / file.name)  # files are replaced, never changed: a link is a copy
        progress = {
            "epochs": metrics["epoch"], "stages": stages, "seeds": {str(run.seed): run.state() for run in runs}
        }
        (checkpoint / _PROGRESS).write_text(json.dumps(progress), encoding="utf-8")
        ray_api.report(metrics, checkpoint)


def _restore(work: Path) -> dict[str, Any]:
    """Copy the checkpoint of this trial, if there is one, to ``work``; what its progress file says."""
    with ray_api.restored_checkpoint() as folder:
        if folder is None or not (folder / _PROGRESS).is_file():
            return {}
        shutil.copytree(folder, work, dirs_exist_ok=True)
    state: dict[str, Any] = json.loads((work / _PROGRESS).read_text(encoding="utf-8"))
    return state


def _mean(values: list[float]) -> float:
    return math.fsum(values) / len(values)


def _numbers(result: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in result.items()}
