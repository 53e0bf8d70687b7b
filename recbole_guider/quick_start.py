"""A whole run in one call: data, calibration, training, evaluation, result."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from logging import ERROR, Handler, getLogger
from pathlib import Path
from time import time
from typing import Any, NamedTuple

from recbole.utils import init_logger, init_seed, set_color
from tabulate import tabulate

from recbole_guider import DEFAULT_DATASET, DEFAULT_MODEL
from recbole_guider.config.guider_config import GuiderConfig
from recbole_guider.config.trainers import training_class
from recbole_guider.config.validation import check_outputs, check_valid_metric
from recbole_guider.data.dataset import build_dataset, prepare_data
from recbole_guider.evaluation import detection_line
from recbole_guider.models.base import require_sampled_items
from recbole_guider.training.checkpoint import load, load_model
from recbole_guider.training.loop import Evaluation, Training
from recbole_guider.training.parallel.launch import Processes, launch
from recbole_guider.training.parallel.requirements import require_same_data
from recbole_guider.utils import distributed
from recbole_guider.utils.errors import GuiderError
from recbole_guider.utils.yaml_files import read_yaml


def run_recbole_guider(
    model: str | type | None = None,
    dataset: str | None = None,
    config_file_list: Sequence[str] | None = None,
    config_dict: Mapping[str, Any] | None = None,
    saved: bool = True,
    queue: Any = None,
) -> dict[str, Any]:
    """Train and test a model, with GUIDER where its name or a ``guider:`` block asks for it.

    Args:
        model: a name that :func:`~recbole_guider.config.registry.list_models` lists, ``GUIDER_<name>``, or a model
            class. None: what the configuration says.
        dataset: the data set's name; None: what the configuration says.
        config_file_list: property files, later ones override earlier ones.
        config_dict: settings that override the files; the command line overrides both.
        saved: whether the best model is written to a checkpoint, and tested from it.
        queue: where to put the result as well, for a parent process.

    Returns:
        RecBole's dict (``best_valid_score``, ``valid_score_bigger``, ``best_valid_result``, ``test_result``) plus
        ``calibration`` (``noise_rate``, ``modality_weights``, ``n_true``, ``n_false``,
        ``detection`` of injected noise, if there is some; None for a plain model) and
        ``model_file`` (the checkpoint's path; None if not saved).

    Raises:
        GuiderError: a setting, a file or a name is not what it must be; raised before training.
    """
    config = GuiderConfig(
        model=model,
        dataset=dataset,
        config_file_list=config_file_list,
        config_dict=dict(config_dict) if config_dict else None,
    )
    result = _run(config, saved)
    if queue is not None and distributed.is_main():
        queue.put(result)
    return result


def run_from_command_line(
    model: str | None,
    dataset: str | None,
    config_file_list: Sequence[str] | None,
    command_line: Sequence[str],
    processes: Processes | None = None,
) -> dict[str, Any] | None:
    """A run as ``recbole-guider run`` and ``run_recbole_guider.py`` start it.

    Args:
        model, dataset: the launcher's flags; None: what the files or the settings say, else the package's defaults.
        config_file_list: property files.
        command_line: the remaining arguments, settings in the form ``--key=value``.
        processes: those that train; None: this one.

    Returns:
        As :func:`run_recbole_guider`; None on a machine that lacks process 0.

    Raises:
        GuiderError: as there.
        ProcessFailed: one of several processes failed for another reason.
    """
    arguments = (model, dataset, config_file_list, command_line)
    if processes is not None and processes.several:
        return launch(_run_command_line, processes, *arguments)
    return _run_command_line({}, *arguments)


def _run_command_line(
    process: Mapping[str, Any],
    model: str | None,
    dataset: str | None,
    config_file_list: Sequence[str] | None,
    command_line: Sequence[str],
) -> dict[str, Any]:
    in_files: dict[str, Any] = {}
    for file in config_file_list or ():
        in_files.update(read_yaml(file))
    config = GuiderConfig(
        model=model or in_files.get("model", DEFAULT_MODEL),
        dataset=dataset or in_files.get("dataset", DEFAULT_DATASET),
        config_file_list=config_file_list,
        config_dict=process,
        command_line=command_line,
    )
    return _run(config, saved=True)


def run(
    model: str | None = None,
    dataset: str | None = None,
    config_file_list: Sequence[str] | None = None,
    config_dict: Mapping[str, Any] | None = None,
    saved: bool = True,
    nproc: int = 1,
    world_size: int = -1,
    ip: str = "localhost",
    port: int | str | None = None,
    group_offset: int = 0,
) -> dict[str, Any] | None:
    """:func:`run_recbole_guider` by several processes, on one machine or on several; RecBole's ``run``.

    A script that calls this needs ``if __name__ == "__main__":`` around what it does, since the processes import it.

    Args:
        model, dataset, config_file_list, config_dict, saved: as there.
        nproc, world_size, ip, port, group_offset: see :class:`~recbole_guider.training.parallel.launch.Processes`.

    Returns:
        As there, the same numbers as of one process; None on a machine that lacks process 0.

    Raises:
        GuiderError: as there.
        ProcessFailed: a process failed for another reason.
    """
    processes = Processes(nproc, world_size, ip, None if port is None else int(port), group_offset)
    arguments = (model, dataset, config_file_list, dict(config_dict or {}), saved)
    return launch(_run_process, processes, *arguments) if processes.several else _run_process({}, *arguments)


def _run_process(
    process: Mapping[str, Any],
    model: str | None,
    dataset: str | None,
    config_file_list: Sequence[str] | None,
    config_dict: Mapping[str, Any],
    saved: bool,
) -> dict[str, Any]:
    return run_recbole_guider(model, dataset, config_file_list, {**config_dict, **process}, saved)


def _run(config: GuiderConfig, saved: bool, verbose: bool = True) -> dict[str, Any]:
    start = time()
    distributed.join(config.process)
    verbose = verbose and distributed.is_main()
    check_outputs(config)
    resume = config["resume"]
    wanted = resume not in (None, False) and distributed.is_main()
    if wanted and not (isinstance(resume, (str, os.PathLike)) and Path(resume).is_file()):
        what = "empty" if resume == "" else resume
        raise GuiderError(f"resume is {what}: there is no such checkpoint; a killed run leaves <name>.last.pth.")
    prepared = prepare_run(config)
    if prepared.valid_data and config["eval_step"] > 0:
        check_valid_metric(config)
    if resume:
        prepared.training.resume_checkpoint(resume)
    show_progress = config["show_progress"] and verbose
    training_start = time()
    if config["replay"]:
        prepared, best_valid_score, best_valid_result = replay(config, prepared, verbose=verbose)
        saved = True
    else:
        best_valid_score, best_valid_result = prepared.training.fit(
            prepared.train_data, prepared.valid_data, verbose=verbose, saved=saved, show_progress=show_progress
        )
    training_seconds = time() - training_start
    training = prepared.training
    test_result = training.evaluate(prepared.test_data, load_best_model=saved, show_progress=show_progress)
    result = {
        "best_valid_score": best_valid_score,
        "valid_score_bigger": config["valid_metric_bigger"],
        "best_valid_result": best_valid_result,
        "test_result": test_result,
        "calibration": getattr(training, "calibration_summary", None),
        "model_file": training.saved_model_file if saved else None,
    }
    if verbose:
        getLogger().info(_closing_table(config, result, training_seconds, time() - start))
    return result


class PreparedRun(NamedTuple):
    """A run before its first epoch.

    Attributes:
        training: its :class:`~recbole_guider.training.loop.Training`, with ``training.model`` and ``training.config``.
        train_data, valid_data, test_data: RecBole's loaders.
    """

    training: Training
    train_data: Any
    valid_data: Any
    test_data: Any

    def iter_evaluations(
        self, verbose: bool = True, saved: bool = True, show_progress: bool = False
    ) -> Iterator[Evaluation]:
        """Train, and stop after each evaluation; see :meth:`.Training.iter_evaluations`."""
        return self.training.iter_evaluations(
            self.train_data, self.valid_data, verbose=verbose, saved=saved, show_progress=show_progress
        )


def prepare_run(config: GuiderConfig, dataset: Any = None) -> PreparedRun:
    """Logger, data, model and training of a run, seeded as RecBole seeds them.

    For whoever drives a training evaluation by evaluation::

        prepared = prepare_run(GuiderConfig("GUIDER_FREEDOM", "ml-100k"))
        for evaluation in prepared.iter_evaluations():
            print(evaluation.epoch, evaluation.result)

    Args:
        config: of the run.
        dataset: the data set, where it is built already.

    Raises:
        GuiderError: as :func:`run_recbole_guider`.
    """
    model, _, *loaders = _prepare_model(config, dataset)
    return PreparedRun(training_class(config)(config, model), *loaders)


def _prepare_model(config: GuiderConfig, dataset: Any = None) -> tuple[Any, Any, Any, Any, Any]:
    """Model, data set and loaders, as :func:`prepare_run`; no training: it opens TensorBoard and Weights & Biases."""
    init_seed(config["seed"], config["reproducibility"])
    _init_logger(config)
    logger = getLogger()
    logger.info(config)
    if dataset is None:
        dataset = build_dataset(config)
    logger.info(dataset)
    train_data, valid_data, test_data = prepare_data(config, dataset)
    require_same_data(train_data.dataset)
    init_seed(config["seed"], config["reproducibility"])  # several processes: all draw the same
    model = config.model_class(config, train_data.dataset).to(config["device"])
    if config.guider_settings is None and config.denoising_settings is None:
        require_sampled_items(config, model)
    logger.info(model)
    # GUIDER reads content for its calibration: read now, bad content is an error before training
    wanted = "loaded_features" if config.guider_settings is None else "item_features"
    features = getattr(train_data.dataset, wanted, {})
    if features:
        logger.info(
            set_color("Modalities", "pink")
            + ": "
            + ", ".join(
                f"{name} ({part.values.shape[1]}-d, {int(part.present.sum())} of {len(part.present) - 1} items)"
                for name, part in features.items()
            )
        )
    return model, dataset, train_data, valid_data, test_data


def replay(
    config: GuiderConfig,
    prepared: PreparedRun,
    *,
    dataset: Callable[[GuiderConfig], Any] | None = None,
    verbose: bool = True,
) -> tuple[PreparedRun, float, Any]:
    """Train as a trial of a sweep did whose settings changed on the way, or that was stopped early.

    ``config["replay"]`` has ``stages``, a list of ``{epoch, settings}``: from that epoch (the first is 0) on these
    settings hold; and ``stop_after``, the number of epochs to train, or null for as many as ``epochs`` says. Between
    two stages training continues from a checkpoint, as population-based training does it.

    Args:
        config: the settings up to the first stage.
        prepared: the run with them.
        dataset: makes the data set of a further stage anew, given its configuration; default: from files.

    Returns:
        (the run of the last stage, best_valid_score, best_valid_result)
    """
    plan = config["replay"]
    stages = list(plan.get("stages") or ())
    for number, end in enumerate([*(stage["epoch"] for stage in stages), plan.get("stop_after")]):
        if number:
            staged = GuiderConfig.from_plain(config.to_plain(), overrides=stages[number - 1]["settings"])
            file = prepared.training.last_model_file
            prepared = prepare_run(staged, dataset(staged) if dataset else None)
            prepared.training.resume_checkpoint(file)
        for evaluation in prepared.iter_evaluations(verbose, show_progress=config["show_progress"] and verbose):
            if end is not None and evaluation.epoch + 1 >= end:
                break
        else:
            break  # the training ended by itself
    training = prepared.training
    Path(training.last_model_file).unlink(missing_ok=True)
    return prepared, training.best_valid_score, training.best_valid_result


def _init_logger(config: GuiderConfig) -> None:
    """RecBole's logger for this run alone: handlers of an earlier run in this process are closed first."""
    root = getLogger()
    for handler in root.handlers[:]:
        if getattr(handler, "_recbole_guider", False):
            root.removeHandler(handler)
            handler.close()
    if not distributed.is_main():
        root.setLevel(ERROR)
        return
    before = set(root.handlers)
    init_logger(config)
    for handler in set(root.handlers) - before:
        _mark(handler)


def _mark(handler: Handler) -> None:
    handler._recbole_guider = True  # type: ignore[attr-defined]  # our own mark, read above


def _closing_table(config: GuiderConfig, result: Mapping[str, Any], training: float, total: float) -> str:
    valid, test = result["best_valid_result"] or {}, result["test_result"] or {}
    metrics = tabulate(
        [[name, valid.get(name, ""), value] for name, value in test.items()],
        headers=["metric", "best valid", "test"],
        tablefmt="github",
        floatfmt=".4f",
    )
    lines = ["", f"{config['model']} on {config['dataset']}", "", metrics, ""]
    if config.denoising_settings is not None:
        lines.append(f"denoising:   {config.denoising_settings.method}, loss form {config.denoising_settings.form}")
    found = result["calibration"]
    if found:
        lines.append(
            f"calibration: noise rate {found['noise_rate']:.3f}, {found['n_true']} true and {found['n_false']} false "
            f"interactions"
        )
        if found["detection"] is not None:
            lines.append(f"detection:   {detection_line(found['detection'])}")
    lines.append(f"checkpoint:  {result['model_file'] or 'not saved'}")
    lines.append(f"time:        {training:.1f} s of training, {total:.1f} s in all")
    return "\n".join(lines)


def load_data_and_model(
    model_file: str | os.PathLike[str], config_dict: Mapping[str, Any] | None = None, model: type | None = None
) -> tuple[GuiderConfig, Any, Any, Any, Any, Any]:
    """The model of a checkpoint with its data, as RecBole's function of this name gives them.

    Args:
        model_file: what a run printed as its checkpoint.
        config_dict: settings that differ here, such as ``{"data_path": ...}`` for data that moved.
        model: the class of the (plain) model, where it is one of your own. A checkpoint has its name only, as it holds
            nothing that could run code; a class that was registered, or trained in this process, is found by it.

    Returns:
        ``(config, model, dataset, train_data, valid_data, test_data)``; the model scores as it did when it was saved.
        ``dataset`` is the whole data set, after filtering and before splitting; ``train_data.dataset`` is its training
        part, with injected noise if there is some.

    Raises:
        GuiderError: the file is missing, or not a checkpoint of this package, or its model is not known.
    """
    checkpoint = load(os.fspath(model_file))
    config = GuiderConfig.from_plain(checkpoint["config"], overrides=dict(config_dict or {}), model=model)
    distributed.join(config.process)
    network, dataset, *loaders = _prepare_model(config)
    load_model(network, checkpoint)
    network.eval()
    return config, network, dataset, *loaders


def objective_function(
    config_dict: Mapping[str, Any] | None = None,
    config_file_list: Sequence[str] | None = None,
    saved: bool = True,
) -> dict[str, Any]:
    """One trial of a search, in the form that RecBole's HyperTuning calls.

    Select on ``best_valid_score``: ``test_result`` is for reporting the winner, once.

    Args:
        config_dict: the trial's settings; ``model`` and ``dataset`` may stand here or in a file.
        config_file_list: property files.
        saved: whether the best model is written to a checkpoint and tested from it.

    Returns:
        ``model``, ``best_valid_score``, ``valid_score_bigger``, ``best_valid_result``, ``test_result``.
    """
    config = GuiderConfig(
        config_file_list=config_file_list,
        config_dict=dict(config_dict) if config_dict else None,
    )
    result = _run(config, saved, verbose=False)
    keys = ("best_valid_score", "valid_score_bigger", "best_valid_result", "test_result")
    return {"model": config["model"], **{key: result[key] for key in keys}}
