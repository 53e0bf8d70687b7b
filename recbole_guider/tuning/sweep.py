"""A sweep from its start, or its resumption, to its report."""

from __future__ import annotations

import json
import logging
import os
import platform
import secrets
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from recbole_guider import DEFAULT_DATASET, DEFAULT_MODEL
from recbole_guider.config.guider_config import GuiderConfig
from recbole_guider.config.merging import BLOCKS, merge
from recbole_guider.config.validation import check_valid_metric
from recbole_guider.tuning import ray_api
from recbole_guider.tuning.definition import SweepDefinition
from recbole_guider.tuning.journal import FAILED, FINISHED, STOPPED, UNFINISHED, Journal, TrialRecord, winner
from recbole_guider.tuning.report import write_report
from recbole_guider.tuning.samplers import check_names, compared_metric, scheduler, search_algorithm
from recbole_guider.tuning.shared_data import SweepServer, configuration
from recbole_guider.tuning.space import Space, read_space
from recbole_guider.tuning.tables import evaluation_table, trial_table, write_tables
from recbole_guider.tuning.trial import run_trial
from recbole_guider.tuning.winner import best_settings, test_winner, write_best
from recbole_guider.utils.arguments import run_command
from recbole_guider.utils.atomic_io import require_folder
from recbole_guider.utils.errors import GuiderError, did_you_mean
from recbole_guider.utils.yaml_files import read_yaml

#: What trials must have in common to be compared, and what belongs to a single run.
_OF_ALL_TRIALS = (
    "dataset", "epochs", "eval_step", "valid_metric", "eval_args", "eval_mask", "resume", "replay", "checkpoint_dir",
)
#: Files of a sweep's folder.
DEFINITION, JOURNAL, TRIALS = "sweep.json", "journal.jsonl", "trials"
#: Seconds after each attempt to start the sweep's server.
_SERVER_WAITS = (1.0, 2.0, 4.0, 8.0)
#: Seconds in which a server that was placed answers; its process imports torch.
_SERVER_ANSWERS = 120.0


def tune_guider(
    model: str | None = None,
    dataset: str | None = None,
    config_file_list: Sequence[str] | None = None,
    config_dict: Mapping[str, Any] | None = None,
    *,
    space: str | os.PathLike[str] | Mapping[str, Any] | None = None,
    out: str | os.PathLike[str],
    samples: int | None = None,
    sampler: str | None = None,
    scheduler: str | None = None,
    seeds: int | Sequence[int] | None = None,
    cpus_per_trial: float | None = None,
    gpus_per_trial: float | None = None,
    max_concurrent: int | None = None,
    time_budget: float | None = None,
    grace_period: int | None = None,
    perturbation_interval: int | None = None,
    retries: int | None = None,
    sampler_seed: int | None = None,
    address: str | None = None,
    resume: bool = False,
    verbose: bool = True,
    command_line: Sequence[str] = (),
) -> dict[str, Any]:
    """Search for the settings with the best validation score, in many trainings at a time.

    Every trial reports its validation metrics after every evaluation; test is evaluated once, for the winner.

    Args:
        model, dataset, config_file_list, config_dict: as for ``run_recbole_guider``; what all trials have in common.
        space: what they differ in; see :func:`~recbole_guider.tuning.space.read_space`.
        out: the folder of the sweep. On a cluster, one that all machines see.
        samples: how many configurations (default 20; the grid has as many as it has).
        sampler: ``random`` (default), ``grid``, ``hyperopt`` or ``optuna`` (where those packages are installed).
        scheduler: ``asha`` (default) stops trials that fall behind, ``pbt`` lets them go on from better ones with
            changed settings, ``none`` trains all to the end.
        seeds: train every configuration with several seeds, which advance together, and compare means: a list, or a
            number (the configured seed and those after it). Default: the configured seed.
        cpus_per_trial: CPUs, and threads, of a trial (default 1). gpus_per_trial: GPUs, may be a fraction (default: 1
            where the cluster has GPUs, else 0).
        max_concurrent: trials at a time (default: as many as there are resources for).
        time_budget: seconds after which running trials are stopped and the best so far wins.
        grace_period: evaluations that ASHA leaves a trial at least (default: a tenth of all).
        perturbation_interval: evaluations between two looks of PBT at a trial (default: a fifth of all).
        retries: how often a trial is continued whose machine or process was lost (default: 3 on a cluster, else 0). A
            trial that raises an error is not tried again.
        sampler_seed: of the choice of configurations (default: the configured seed).
        address: of a running Ray cluster (``auto``, or ``host:port``); default: this machine alone.
        resume: go on with the sweep in ``out``. What else is given must be as it was.
        verbose: print a line for every trial that ends.
        command_line: ``--key=value`` arguments, as :class:`~recbole_guider.config.guider_config.GuiderConfig`
            takes them.

    Returns:
        ``best_trial``, ``best_settings``, ``best_valid_score``, ``best_valid_result``, ``test_result`` (means over the
        seeds), ``valid_score_bigger``, ``best_config_file``, ``model_files`` (seed -> checkpoint), ``trials`` (a
        pandas.DataFrame, the best first) and ``report``. With no trial that was evaluated ``best_trial`` is None.

    Raises:
        GuiderError: a setting, the space, a file or the release of Ray is not what it must be; raised before the
            sweep starts.
        KeyboardInterrupt: after Ctrl-C; the sweep can be resumed.
    """
    ray_api.require_known_release()
    folder = Path(out).absolute()
    require_folder(folder, "out")
    given: dict[str, Any] = {
        "samples": samples, "sampler": sampler, "scheduler": scheduler, "cpus_per_trial": cpus_per_trial,
        "gpus_per_trial": gpus_per_trial, "max_concurrent": max_concurrent, "time_budget": time_budget,
        "grace_period": grace_period, "perturbation_interval": perturbation_interval, "retries": retries,
        "sampler_seed": sampler_seed,
    }
    given = {key: value for key, value in given.items() if value is not None}
    common = (model, dataset, config_file_list, config_dict, command_line)
    if resume:
        definition = _stored(folder)
        if any(common):
            stored = definition.settings
            given["settings"] = _common_settings(model or stored["model"], dataset or stored["dataset"], *common[2:])[0]
        if space is not None:
            given["space"] = read_space(space)
        _check_unchanged(definition, given, seeds, folder)
    else:
        if (folder / DEFINITION).exists():
            raise GuiderError(f"{folder} holds a sweep already: go on with it (--resume), or name another folder.")
        if space is None:
            raise GuiderError("no search space is given: name a file with --space=.")
        settings, config = _common_settings(*common)
        definition = _define(settings, config, read_space(space), seeds, given, on_cluster=address is not None)
        folder.mkdir(parents=True, exist_ok=True)
    with _ray(address):
        definition = _with_resources(definition, shared=address is not None)
        return _run(definition, folder, resume, verbose)


# -- what the sweep is --------------------------------------------------------------------------------------------


def _common_settings(
    model: str | None, dataset: str | None, config_file_list: Sequence[str] | None,
    config_dict: Mapping[str, Any] | None, command_line: Sequence[str],
) -> tuple[dict[str, Any], GuiderConfig]:
    """What the user says of all trials, in one dict that needs no other file; and the configuration it gives."""
    if model is not None and not isinstance(model, str):
        raise GuiderError(f"model is {model!r}: a sweep needs a name, by which its workers find the model.")
    in_files: dict[str, Any] = {}
    for file in config_file_list or ():
        in_files = merge(in_files, read_yaml(file))
    said = {**in_files, **(config_dict or {})}
    config = GuiderConfig(
        model=model or said.get("model", DEFAULT_MODEL),
        dataset=dataset or said.get("dataset", DEFAULT_DATASET),
        config_file_list=list(config_file_list) if config_file_list else None,
        config_dict=dict(config_dict) if config_dict else None,
        command_line=command_line,
    )
    settings = {"model": config["model"], "dataset": config["dataset"]}
    final = config.to_plain()
    for key, value in config.external_config_dict.items():
        # what the user said of one entry of a mapping is part of the whole by now
        whole = isinstance(value, Mapping) and key not in BLOCKS
        settings.setdefault(key, final.get(key, value) if whole else value)
    settings["data_path"] = final["data_path"]
    if final["import"] is not None:
        settings["import"] = final["import"]  # with absolute paths
    for key in ("data_path", "dataset_save_path", "dataloaders_save_path"):
        if isinstance(settings.get(key), str):
            settings[key] = os.path.abspath(settings[key])  # workers run in other folders
    for key in ("resume", "replay"):
        if settings.get(key):
            raise GuiderError(f"{key} is set: a sweep starts its trials from nothing; remove it.")
    return settings, config


def _define(
    settings: dict[str, Any], config: GuiderConfig, space: Space, seeds: int | Sequence[int] | None,
    given: Mapping[str, Any], on_cluster: bool,
) -> SweepDefinition:
    evaluations = config["epochs"] // config["eval_step"] if config["eval_step"] > 0 else 0
    if evaluations < 1:
        raise GuiderError(
            f"epochs is {config['epochs']} and eval_step {config['eval_step']}: a trial would end without an "
            f"evaluation; eval_step must be between 1 and epochs."
        )
    check_valid_metric(config)
    definition = SweepDefinition(
        name=f"recbole-guider-{secrets.token_hex(6)}",
        settings=settings,
        space=space,
        samples=given.get("samples", 20),
        sampler=given.get("sampler", "random"),
        scheduler=given.get("scheduler", "asha"),
        seeds=_seeds(seeds, config["seed"]),
        sampler_seed=given.get("sampler_seed", config["seed"]),
        metric=config["valid_metric"],
        bigger=config["valid_metric_bigger"],
        evaluations=evaluations,
        grace_period=given.get("grace_period", max(1, evaluations // 10)),
        perturbation_interval=given.get("perturbation_interval", max(1, evaluations // 5)),
        cpus_per_trial=given.get("cpus_per_trial", 1),
        gpus_per_trial=given.get("gpus_per_trial"),
        max_concurrent=given.get("max_concurrent"),
        time_budget=given.get("time_budget"),
        retries=given.get("retries", 3 if on_cluster else 0),
        versions={
            "python": platform.python_version(),
            **{name: version(name) for name in ("recbole", "ray", "torch", "numpy")},
        },
    )
    check_names(definition.sampler, definition.scheduler)
    for key, low in (
        ("samples", 1), ("grace_period", 1), ("perturbation_interval", 1), ("max_concurrent", 1), ("retries", 0),
        ("gpus_per_trial", 0),
    ):
        value = getattr(definition, key)
        if value is not None and value < low:
            raise GuiderError(f"{key} is {value}: it must be at least {low}.")
    for key in ("cpus_per_trial", "time_budget"):
        value = getattr(definition, key)
        if value is not None and value <= 0:
            raise GuiderError(f"{key} is {value}: it must be above 0.")
    if definition.sampler == "grid":
        definition = replace(definition, samples=space.grid_size())
    _check_space(definition, config)
    return definition


def _seeds(seeds: int | Sequence[int] | None, configured: int) -> tuple[int, ...]:
    if seeds is None:
        return ()
    chosen = tuple(range(configured, configured + seeds)) if isinstance(seeds, int) else tuple(seeds)
    if not chosen or len(set(chosen)) < len(chosen) or not all(isinstance(seed, int) for seed in chosen):
        raise GuiderError(f"seeds is {seeds!r}: it must be a number of at least 1, or a list of different seeds.")
    return chosen


def _check_space(definition: SweepDefinition, config: GuiderConfig) -> None:
    """Every searched key is a setting, and its values are valid ones, as far as a configuration can tell."""
    known = {*config.final_config_dict, *(key for keys in config.parameters.values() for key in keys)}
    for setting in definition.space:
        head = setting.key.partition(".")[0]
        if head not in known:
            guess = did_you_mean(head, sorted(map(str, known)))
            raise GuiderError(
                f"the search space names {setting.key}, which is no setting of {config['model']}{guess} If the model "
                f"reads it, give it a value in a file too."
            )
        if head in _OF_ALL_TRIALS:
            raise GuiderError(f"the search space names {setting.key}: trials could not be compared; remove it.")
        if head == "guider" and definition.settings.get("guider") is False:
            raise GuiderError(f"the search space names {setting.key}, but guider is False for all trials.")
        if setting.key == "seed" and definition.seeds:
            raise GuiderError("the search space names seed, and seeds is given: use one of the two.")
        for value in setting.extremes():
            try:
                tried = configuration(definition.trial_settings({setting.key: value}))
                check_valid_metric(tried)
            except GuiderError as error:
                raise GuiderError(f"the search space gives {setting.key} the value {value!r}: {error}") from error


def _stored(folder: Path) -> SweepDefinition:
    file = folder / DEFINITION
    if not file.is_file():
        raise GuiderError(f"there is no sweep in {folder} to resume: it has no {DEFINITION}.")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        definition = SweepDefinition.from_plain(content)
    except (ValueError, KeyError, TypeError) as error:
        raise GuiderError(f"{file} is not the definition of a sweep: {error}.") from error
    if content.get("folder") != str(folder):
        raise GuiderError(
            f"the sweep in {folder} was started in {content.get('folder')}: move it back there to resume it."
        )
    return definition


def _check_unchanged(
    definition: SweepDefinition, given: Mapping[str, Any], seeds: int | Sequence[int] | None, folder: Path
) -> None:
    stored = definition.to_plain()
    now = dict(given)
    if seeds is not None:
        now["seeds"] = list(_seeds(seeds, definition.seeds[0] if definition.seeds else 0))
    if "space" in now:
        now["space"] = now["space"].to_plain()
    # of the common settings, those that are given
    now.update(now.pop("settings", {}))
    before = {**stored, **stored["settings"]}
    for key, value in json.loads(json.dumps(now)).items():
        if value != before.get(key):
            raise GuiderError(
                f"{key} is {value!r}, but the sweep in {folder} was started with {before.get(key)!r}: leave it out to "
                f"resume, or start another sweep in another folder."
            )


def _with_resources(definition: SweepDefinition, shared: bool) -> SweepDefinition:
    """With the GPUs of a trial decided by what there is.

    Args:
        definition: the sweep.
        shared: whether Ray is a cluster, to which machines may come that it does not have yet.

    Raises:
        GuiderError: a trial would wait forever for what this machine does not have.
    """
    import ray

    there = ray.cluster_resources()
    if definition.gpus_per_trial is None:
        definition = replace(definition, gpus_per_trial=1 if there.get("GPU", 0) else 0)
    for key, kind in (("cpus_per_trial", "CPU"), ("gpus_per_trial", "GPU")):
        wanted, available = getattr(definition, key), there.get(kind, 0)
        if wanted > available:
            has = f"{key} is {wanted:g}, but {'the cluster' if shared else 'this machine'} has {available:g} {kind}s"
            if not shared:
                raise GuiderError(f"{has}: no trial could start.")
            logging.getLogger().warning(f"{has}: trials wait for more machines")
    return definition


# -- running it ---------------------------------------------------------------------------------------------------


@contextmanager
def _ray(address: str | None) -> Iterator[None]:
    """Ray, as it runs already, joined at ``address``, or started on this machine and stopped afterwards."""
    import ray

    if ray.is_initialized():
        yield
        return
    try:
        ray.init(
            address=address or "local", log_to_driver=False, logging_level=logging.ERROR,
            **({} if address else {"include_dashboard": False}),
        )
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise GuiderError(
            f"no Ray cluster answers at {address!r} ({' '.join(str(error).split())[:200]}): start one with "
            f"`ray start --head`, or leave the address out."
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def _run(definition: SweepDefinition, folder: Path, resume: bool, verbose: bool) -> dict[str, Any]:
    import ray

    journal = Journal(folder / JOURNAL)
    server = _start_server(definition, journal)
    try:
        _first_data(server, definition)
        if not resume:
            content = {**definition.to_plain(), "folder": str(folder)}
            (folder / DEFINITION).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        if verbose:
            print(_headline(definition, folder), flush=True)
        start = time.time()
        _tune(definition, folder, resume, verbose)
        result = _conclude(definition, journal.trials(), folder)
        if verbose:
            print(_summary(definition, journal.trials(), result, time.time() - start), flush=True)
        return result
    finally:
        ray.kill(server)


def _start_server(definition: SweepDefinition, journal: Journal) -> Any:
    """The sweep's server, on this machine, once it answers.

    Ray lets any machine of a cluster place an actor; one that has just joined may not know this machine yet, and then
    refuses. So another is asked for.

    Raises:
        GuiderError: no server answered.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    over = {trial.name: trial.last for trial in journal.trials() if trial.status in (FINISHED, STOPPED)}
    said: Exception | None = None
    for wait in _SERVER_WAITS:
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        actor = ray.remote(SweepServer).options(name=definition.name, num_cpus=0, scheduling_strategy=here)
        server = actor.remote(over)
        try:
            ray.get(server.built.remote(), timeout=_SERVER_ANSWERS)
            return server
        except (ray.exceptions.RayActorError, ray.exceptions.ActorUnschedulableError, TimeoutError) as error:
            said = error
            ray.kill(server)
            time.sleep(wait)
    raise GuiderError(f"the sweep's server did not start in the Ray cluster: {' '.join(str(said).split())[:300]}")


def _first_data(server: Any, definition: SweepDefinition) -> None:
    """Build the data set of the common settings: data that is wrong is an error before the sweep starts."""
    import ray

    try:
        ray.get(server.data.remote(definition.settings))
    except ray.exceptions.RayTaskError as error:
        cause = getattr(error, "cause", None)
        if isinstance(cause, GuiderError):
            raise GuiderError(str(cause)) from None
        raise


def _tune(definition: SweepDefinition, folder: Path, resume: bool, verbose: bool) -> None:
    """Run Ray Tune until all trials are over.

    Raises:
        KeyboardInterrupt: it was interrupted; what is there is stored.
    """
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # else Tune prints a banner and tables of its own
    from ray.tune import TuneConfig, Tuner, with_resources

    from recbole_guider.tuning.listener import Listener

    name = definition.name

    def guider_trial(chosen: dict[str, Any]) -> None:
        run_trial(chosen, definition, name)

    resources = {"cpu": definition.cpus_per_trial, "gpu": definition.gpus_per_trial}
    trainable = with_resources(guider_trial, resources)
    stored = str(folder / TRIALS)
    if resume and Tuner.can_restore(stored):
        tuner = Tuner.restore(stored, trainable=trainable, resume_unfinished=True, resume_errored=False)
    else:
        grid = definition.sampler == "grid"
        listener = Listener(definition, folder / JOURNAL, definition.samples, verbose)
        tuner = Tuner(
            trainable,
            param_space=definition.space.grid() if grid else definition.space.domains(),
            tune_config=TuneConfig(
                metric=compared_metric(definition),
                mode="max" if definition.bigger else "min",
                num_samples=1 if grid else definition.samples,
                search_alg=search_algorithm(definition),
                scheduler=scheduler(definition),
                max_concurrent_trials=definition.max_concurrent,
                time_budget_s=definition.time_budget,
                reuse_actors=True,  # a worker process imports torch once, not once for each trial
            ),
            run_config=ray_api.run_config(
                folder, TRIALS, callbacks=[listener], retries=definition.retries,
                checkpoints_kept=4 if definition.scheduler == "pbt" else 1,
            ),
        )
    with _quiet_tune(), _interruptible() as was_interrupted:
        tuner.fit()
        if was_interrupted():
            raise KeyboardInterrupt


@contextmanager
def _quiet_tune() -> Iterator[None]:
    """Without Tune's tracebacks of failed trials: their messages are told, and lie in their folders in full."""
    levels = {
        "ray.tune": logging.CRITICAL,
        # says that trials wait for resources
        "ray.tune.execution.insufficient_resources_manager": logging.WARNING,
    }
    found = {name: logging.getLogger(name).level for name in levels}
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)
    try:
        yield
    finally:
        for name, level in found.items():
            logging.getLogger(name).setLevel(level)


@contextmanager
def _interruptible() -> Iterator[Any]:
    """Tell whether Ray Tune was interrupted, and let SIGTERM (what batch systems send) do the same as Ctrl-C.

    Tune's handler of SIGINT stores the sweep, and puts back the handler that it found, but returns as if all were well.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    found_int, found_term = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, interrupt)
    signal.signal(signal.SIGTERM, lambda number, frame: signal.raise_signal(signal.SIGINT))
    try:
        yield lambda: signal.getsignal(signal.SIGINT) is interrupt
    finally:
        signal.signal(signal.SIGINT, found_int)
        signal.signal(signal.SIGTERM, found_term)


# -- what comes out -----------------------------------------------------------------------------------------------


def _conclude(definition: SweepDefinition, trials: list[TrialRecord], folder: Path) -> dict[str, Any]:
    """Test the winner, and write the tables, ``best.yaml`` and the report."""
    table, evaluations = trial_table(trials, definition), evaluation_table(trials)
    write_tables(table, evaluations, folder)
    best = winner(trials, definition.bigger)
    result: dict[str, Any] = {
        "best_trial": None, "best_settings": None, "best_valid_score": None, "best_valid_result": None,
        "test_result": None, "valid_score_bigger": definition.bigger, "best_config_file": None, "model_files": {},
        "trials": table, "report": str(folder / "report.html"),
    }
    if best is not None:
        settings = best_settings(best, definition)
        tested = _test(definition, best, settings, folder)
        models = {}
        for seed, of_seed in tested.items():
            file = folder / ("best.pth" if seed == "None" else f"best-seed-{seed}.pth")
            file.write_bytes(of_seed["model"])
            models[seed] = str(file)
        write_best(folder / "best.yaml", settings, best, definition, tested)
        result.update(
            best_trial=best.name,
            best_settings=best.settings,
            best_valid_score=best.best_valid_score,
            best_valid_result={
                key.partition("/")[2]: value for key, value in best.last.items() if key.startswith("best_valid/")
            },
            test_result=_means([of_seed["test_result"] for of_seed in tested.values()]),
            best_config_file=str(folder / "best.yaml"),
            model_files=models,
        )
    plain = {key: value for key, value in result.items() if key not in ("trials", "report")}
    (folder / "result.json").write_text(json.dumps(plain, indent=1) + "\n", encoding="utf-8")
    write_report(folder / "report.html", definition, table, evaluations, result)
    return result


def _test(
    definition: SweepDefinition, best: TrialRecord, settings: dict[str, Any], folder: Path
) -> dict[str, dict[str, Any]]:
    import ray

    task = ray.remote(test_winner).options(
        num_cpus=definition.cpus_per_trial, num_gpus=definition.gpus_per_trial, max_retries=definition.retries
    )
    models = _models(folder / TRIALS, best, definition)
    tested: dict[str, dict[str, Any]] = ray.get(task.remote(settings, definition, models, definition.name))
    return tested


def _models(trials: Path, best: TrialRecord, definition: SweepDefinition) -> dict[str, bytes]:
    """seed -> the winner's checkpoint, where this machine finds it."""
    newest = sorted(trials.glob(f"*{best.name}*/checkpoint_*"))
    models = {}
    for seed in definition.seeds or (None,):
        name = "seed.pth" if seed is None else f"seed-{seed}.pth"
        if newest and (newest[-1] / name).is_file():
            models[str(seed)] = (newest[-1] / name).read_bytes()
    return models


def _means(results: list[dict[str, float]]) -> dict[str, float]:
    return {name: sum(result[name] for result in results) / len(results) for name in results[0]}


def _headline(definition: SweepDefinition, folder: Path) -> str:
    settings = definition.settings
    seeds = f", seeds {', '.join(map(str, definition.seeds))}" if definition.seeds else ""
    per_trial = f"{definition.cpus_per_trial:g} CPU"
    if definition.gpus_per_trial:
        per_trial += f" and {definition.gpus_per_trial:g} GPU"
    return (
        f"{settings['model']} on {settings['dataset']}: {definition.samples} trials ({definition.sampler}, scheduler "
        f"{definition.scheduler}{seeds}), {per_trial} each, selected by validation {definition.metric}\n"
        f"in {folder}; TensorBoard: tensorboard --logdir={folder / TRIALS}"
    )


def _summary(
    definition: SweepDefinition, trials: list[TrialRecord], result: dict[str, Any], seconds: float
) -> str:
    counts = Counter(trial.status for trial in trials)
    told = ", ".join(f"{counts[end]} {end}" for end in (FINISHED, STOPPED, FAILED, UNFINISHED) if counts[end])
    lines = ["", f"{len(trials)} trials in {seconds:.0f} s: {told or 'none'}"]
    if result["best_trial"] is None:
        messages = [trial.message for trial in trials if trial.message]
        return "\n".join([*lines, f"no trial was evaluated{': ' + messages[0] if messages else ''}"])
    chosen = " ".join(f"{key}={value}" for key, value in result["best_settings"].items())
    test = ", ".join(f"{name} {value:.4f}" for name, value in result["test_result"].items())
    return "\n".join([
        *lines,
        f"best: {chosen}",
        f"      validation {definition.metric} {result['best_valid_score']:.4f}",
        f"      test {test}",
        f"run it again:  {run_command('recbole-guider run', result['best_config_file'])}",
        f"report:        {result['report']}",
    ])

