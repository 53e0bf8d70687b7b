"""The winner of a sweep: its property file, and its one evaluation on test."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from recbole_guider.quick_start import prepare_run, replay
from recbole_guider.training.checkpoint import load, save
from recbole_guider.tuning.definition import SweepDefinition
from recbole_guider.tuning.journal import FINISHED, TrialRecord
from recbole_guider.tuning.shared_data import configuration, unpack
from recbole_guider.utils.plain import to_plain
from recbole_guider.utils.yaml_files import write_yaml


def best_settings(record: TrialRecord, definition: SweepDefinition) -> dict[str, Any]:
    """The property file that trains as the trial did, to the same numbers.

    A trial whose settings changed on the way, or that was stopped before its end, gets a ``replay`` block.
    """
    stages = json.loads(record.last["stages"])
    settings = definition.trial_settings(stages[0]["settings"])
    if definition.seeds:
        settings["seed"] = definition.seeds[0]
    stop_after = None if record.status == FINISHED else record.last["epoch"]
    if len(stages) > 1 or stop_after is not None:
        settings["replay"] = {"stages": stages[1:], "stop_after": stop_after}
    return settings


def test_winner(
    settings: Mapping[str, Any], definition: SweepDefinition, models: Mapping[str, bytes], server_name: str
) -> dict[str, dict[str, Any]]:
    """Evaluate the winner on test, once for each seed. A task of Ray's, with the resources of a trial.

    Args:
        settings: of :func:`best_settings`.
        definition: the sweep.
        models: seed -> the best checkpoint by validation. A seed that is missing is trained again.
        server_name: as for a trial.

    Returns:
        seed -> ``test_result``, ``best_valid_score``, ``best_valid_result`` and ``model``, the checkpoint's bytes.
    """
    import ray

    torch.set_num_threads(max(1, int(definition.cpus_per_trial)))
    server = ray.get_actor(server_name)

    def data(config: Any) -> Any:
        return unpack(ray.get(ray.get(server.data.remote(settings))[0]), config)

    started_in = os.getcwd()
    results = {}
    for seed in definition.seeds or (None,):
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)  # RecBole writes its log into the current directory
            try:
                results[str(seed)] = _test_seed(seed, settings, models.get(str(seed)), data, Path(folder))
            finally:
                os.chdir(started_in)
    return results


def _test_seed(
    seed: int | None, settings: Mapping[str, Any], model: bytes | None, data: Callable[[Any], Any], folder: Path
) -> dict[str, Any]:
    own = {} if seed is None else {"seed": seed}
    config = configuration(settings, checkpoint_dir=str(folder), show_progress=False, save_dataset=False, **own)
    prepared = prepare_run(config, data(config))
    training = prepared.training
    training.saved_model_file = str(folder / "model.pth")
    if model is not None:
        Path(training.saved_model_file).write_bytes(model)
        state = load(training.saved_model_file)
        score, valid_result = state["best_valid_score"], state["best_valid_result"]
        training.collect_data(prepared.train_data)
    elif config["replay"]:
        prepared, score, valid_result = replay(config, prepared, dataset=data, verbose=False)
        training = prepared.training
    else:
        score, valid_result = training.fit(prepared.train_data, prepared.valid_data, verbose=False)
    test_result = to_plain(dict(training.evaluate(prepared.test_data, load_best_model=True)))
    state = load(training.saved_model_file)
    # whoever loads this model has no such folder
    state["config"].update(checkpoint_dir=settings.get("checkpoint_dir", "saved"))
    save(state, training.saved_model_file)
    return {
        "test_result": test_result,
        "best_valid_score": float(score),
        "best_valid_result": to_plain(dict(valid_result)) if valid_result else None,
        "model": Path(training.saved_model_file).read_bytes(),
    }


def write_best(
    file: Path, settings: Mapping[str, Any], record: TrialRecord, definition: SweepDefinition,
    tested: Mapping[str, Mapping[str, Any]],
) -> None:
    """Write the winner's property file, with what it reached in its head."""
    scores = json.loads(record.last["seed_scores"])
    threads = max(1, int(definition.cpus_per_trial))
    lines = [
        f"The best of a sweep of {settings['model']} on {settings['dataset']}: trial {record.name}.",
        f"Run it:  OMP_NUM_THREADS={threads} recbole-guider run --config_files={file.name}",
    ]
    for seed, score in scores.items():
        test = ", ".join(f"{name} {value:.4f}" for name, value in tested[seed]["test_result"].items())
        of_seed = "" if seed == "None" else f" with seed {seed}"
        lines.append(f"Validation {definition.metric}{of_seed}: {score!r}; test: {test}")
    if len(scores) > 1:
        lines.append(f"Mean over seeds: {record.best_valid_score!r}. Another seed: --seed=N.")
    write_yaml(settings, file, "\n".join(lines))
