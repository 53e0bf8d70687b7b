"""The command ``recbole-guider`` and the script ``run_recbole_guider.py``: arguments in, one call, clear errors."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

from recbole_guider import DEFAULT_DATASET, DEFAULT_MODEL, __version__
from recbole_guider.utils import requirements
from recbole_guider.utils.arguments import is_setting, run_command, split_files
from recbole_guider.utils.errors import GuiderError, ProcessFailed

_FILES_HELP = "property files, separated by spaces (a name with spaces: in quotes of its own); may be given again"


class Command(NamedTuple):
    """A subcommand of ``recbole-guider``.

    What it does is imported when it runs: ``recbole-guider --help`` needs neither torch nor RecBole.
    """

    #: one line for ``recbole-guider --help``
    help: str
    #: adds its arguments to its parser
    add_arguments: Callable[[argparse.ArgumentParser], None]
    #: does it, given the parsed arguments and the settings that followed them
    run: Callable[[argparse.Namespace, list[str]], None]
    #: whether settings of the form ``--key=value`` may follow
    takes_settings: bool = False
    #: whether it needs RecBole, and whether Ray
    needs_recbole: bool = True
    needs_ray: bool = False
    #: what ``recbole-guider <command> --help`` says above and below the arguments; the help where empty
    description: str = ""
    epilog: str = ""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of ``recbole-guider``; returns the exit status (2: the input was not right)."""
    parser = argparse.ArgumentParser(
        prog="recbole-guider", description="Denoise multi-modal recommenders in RecBole."
    )
    parser.add_argument("--version", action="version", version=f"recbole-guider {__version__}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="command")
    for name, command in COMMANDS.items():
        command.add_arguments(
            subparsers.add_parser(
                name, help=command.help, description=command.description or command.help, epilog=command.epilog,
                formatter_class=argparse.RawDescriptionHelpFormatter,
                allow_abbrev=False,  # --seed=3 is a setting, not short for --seeds
            )
        )
    arguments, rest = parser.parse_known_args(argv)
    command = COMMANDS[arguments.command]
    if rest and not command.takes_settings:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    return _guarded(command, arguments, rest)


def run_script(argv: Sequence[str] | None = None) -> int:
    """Entry point of ``run_recbole_guider.py``: the same as ``recbole-guider run``."""
    command = COMMANDS["run"]
    parser = argparse.ArgumentParser(
        description=command.description, epilog=command.epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
    )
    command.add_arguments(parser)
    return _guarded(command, *parser.parse_known_args(argv))


def _name(text: str) -> str:
    """The name of a model or a data set; an unset variable of a shell is none."""
    if not text.strip():
        raise argparse.ArgumentTypeError("is empty; give a name, or leave the option out for the default")
    return text


def _add_name(parser: argparse.ArgumentParser, option: str, what: str, default: str) -> None:
    parser.add_argument(
        f"--{option}", f"-{option[0]}", type=_name, default=None, help=f"name of the {what} (default: {default})"
    )


def _add_import(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--import", action="append", dest="imports", metavar="FILE",
        help="a Python file, or a module, that registers models or denoising methods of your own; may be given again",
    )


def _import_setting(named: list[str] | None) -> list[str]:
    """``--import`` as the setting that it stands for."""
    return [] if named is None else [f"--import={named}"]


def _require_values(settings: Sequence[str]) -> None:
    """Refuse what is not of the form --key=value: RecBole would leave it out of the run, and only warn."""
    for argument in settings:
        if not is_setting(argument):
            raise GuiderError(f"{argument} is none of the options, nor a setting of the form --key=value.")


def _guarded(command: Command, arguments: argparse.Namespace, rest: list[str]) -> int:
    unmet = requirements.unmet(command.needs_recbole)
    if command.needs_ray and not unmet:
        unmet = requirements.unfit_for_ray()
    if unmet:
        print(f"error: {unmet}", file=sys.stderr)
        return 2
    try:
        _require_values(rest)
        command.run(arguments, rest)
    except GuiderError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except ProcessFailed as error:
        print(f"{error.details}error: {error}", file=sys.stderr)
        return 1
    return 0


# -- run ----------------------------------------------------------------------------------------------------------


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """RecBole's own flags, with this package's defaults."""
    _add_name(parser, "model", "model", DEFAULT_MODEL)
    _add_name(parser, "dataset", "data set", DEFAULT_DATASET)
    parser.add_argument("--config_files", action="append", help=_FILES_HELP)
    _add_import(parser)
    parser.add_argument("--nproc", type=int, default=1, help="processes on this machine (default: 1)")
    parser.add_argument("--world_size", type=int, default=-1, help="processes on all machines (default: nproc)")
    parser.add_argument("--ip", default="localhost", help="the machine of process 0, for several machines")
    parser.add_argument("--port", type=int, default=None,
                        help="its port where the processes meet (default: any free one; for several machines 5678)")
    parser.add_argument("--group_offset", type=int, default=0,
                        help="the number of the first process on this machine (default: 0)")


def _run(arguments: argparse.Namespace, rest: list[str]) -> None:
    from recbole_guider.quick_start import run_from_command_line
    from recbole_guider.training.parallel.launch import Processes

    run_from_command_line(
        arguments.model,
        arguments.dataset,
        split_files(arguments.config_files) or None,
        [*_import_setting(arguments.imports), *rest],
        Processes(arguments.nproc, arguments.world_size, arguments.ip, arguments.port, arguments.group_offset),
    )


# -- tune ---------------------------------------------------------------------------------------------------------


def _add_tune_arguments(parser: argparse.ArgumentParser) -> None:
    _add_name(parser, "model", "model", DEFAULT_MODEL)
    _add_name(parser, "dataset", "data set", DEFAULT_DATASET)
    parser.add_argument("--config_files", action="append", help=_FILES_HELP)
    _add_import(parser)
    parser.add_argument("--epochs", type=int, help="epochs of a full training (default: the model's setting)")
    parser.add_argument("--out", required=True, help="the folder to write the sweep into")
    search = parser.add_argument_group("what is searched, and how")
    search.add_argument("--space", help="a .yaml file, or one in the form of RecBole's hyper.test")
    search.add_argument("--samples", type=int, help="configurations to try (default: 20; of a grid: all)")
    search.add_argument("--sampler", help="random (default), grid, hyperopt or optuna")
    search.add_argument("--scheduler", help="asha (default: stops trials that fall behind), pbt or none")
    search.add_argument("--seeds", type=int, help="train every configuration with so many seeds, and compare means")
    search.add_argument("--grace-period", type=int, help="evaluations that asha leaves every trial")
    search.add_argument("--perturbation-interval", type=int, help="evaluations between two changes of pbt")
    search.add_argument("--sampler-seed", type=int, help="seed of the choice of configurations (default: seed)")
    resources = parser.add_argument_group("where, and for how long")
    resources.add_argument("--cpus-per-trial", type=float, help="CPUs, and threads, of a trial (default: 1)")
    resources.add_argument("--gpus-per-trial", type=float, help="GPUs of a trial (default: 1 if there are any)")
    resources.add_argument("--max-concurrent", type=int, help="trials at a time (default: as resources allow)")
    resources.add_argument("--time-budget", type=float, help="seconds after which the best so far wins")
    resources.add_argument("--address", help="a Ray cluster to join: auto or host:port (default: this machine)")
    resources.add_argument("--retries", type=int, help="restarts of a trial whose machine is lost (cluster: 3)")
    resources.add_argument("--resume", action="store_true", help="go on with the sweep in --out")


def _tune(arguments: argparse.Namespace, rest: list[str]) -> None:
    from recbole_guider.tuning import tune_guider

    given = dict(vars(arguments))
    del given["command"]
    files, epochs, imports = given.pop("config_files"), given.pop("epochs"), given.pop("imports")
    try:
        result = tune_guider(
            **given,
            config_file_list=split_files(files) or None,
            command_line=[
                *_import_setting(imports), *([] if epochs is None else [f"--epochs={epochs}"]), *rest
            ],
        )
    except KeyboardInterrupt:
        print(f"go on with it:  recbole-guider tune --out={shlex.quote(arguments.out)} --resume", file=sys.stderr)
        raise
    if result["best_trial"] is None:
        raise GuiderError("no trial was evaluated: trials.csv has the message of each.")


# -- convert ------------------------------------------------------------------------------------------------------


def _add_convert_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", help="the folder to read")
    parser.add_argument("--from", dest="kind", choices=("csv", "mmrec"), required=True,
                        help="csv: interactions.csv and <modality>_feat.npy; mmrec: a folder of MMRec's")
    parser.add_argument("--to", required=True, help="the folder to write <name>/ and <name>.yaml into")
    parser.add_argument("--name", help="the data set's name (default: the source folder's)")


def _convert(arguments: argparse.Namespace, rest: list[str]) -> None:
    from recbole_guider.data.convert import convert

    written = convert(arguments.source, arguments.to, arguments.kind, arguments.name)
    print(f"wrote the folder {written.with_suffix('')} and {written}")
    print(f"run it: {run_command('run_recbole_guider.py', written, written.stem)}")


# -- models -------------------------------------------------------------------------------------------------------


def _add_models_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print a JSON list instead of a table")


def _models(arguments: argparse.Namespace, rest: list[str]) -> None:
    import json

    from tabulate import tabulate

    from recbole_guider.config.registry import ModelInfo, list_models

    models = list_models()
    if arguments.json:
        print(json.dumps([model._asdict() for model in models], indent=1))
    else:
        print(tabulate(models, headers=ModelInfo._fields, tablefmt="simple"))


# -- noise --------------------------------------------------------------------------------------------------------


def _add_noise_arguments(parser: argparse.ArgumentParser) -> None:
    _add_name(parser, "dataset", "data set", DEFAULT_DATASET)
    parser.add_argument("--config_files", action="append", help=_FILES_HELP)
    parser.add_argument("--to", required=True, help="the folder to write <name>/ and <name>.yaml into")
    parser.add_argument("--name", help="the noisy copy's name (default: <dataset>-noisy)")


def _noise(arguments: argparse.Namespace, rest: list[str]) -> None:
    from recbole_guider.cli import noise

    files = split_files(arguments.config_files)
    written = noise.run(arguments.dataset, files, rest, arguments.to, arguments.name)
    print(f"wrote the folder {written.with_suffix('')} and {written}")
    print(f"run it: {run_command('run_recbole_guider.py', written, written.stem)}")


# -- benchmark ----------------------------------------------------------------------------------------------------


def _add_benchmark_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("spec", help="YAML file: datasets, models, methods, noise, seeds")
    parser.add_argument("--data", help="folder of <dataset>.yaml, for data sets whose spec names no files")
    parser.add_argument("--out", help="folder of the results (default: <spec>-results)")
    parser.add_argument("--workers", type=int, default=1,
                        help="runs at a time, each a process with one thread; 0: in this process (default: 1)")
    _add_import(parser)
    parser.add_argument("--report-only", action="store_true", help="run nothing; report what is finished")


def _benchmark(arguments: argparse.Namespace, rest: list[str]) -> None:
    from pathlib import Path

    from recbole_guider.benchmark.report import write_report
    from recbole_guider.benchmark.runner import RESULTS, run_benchmark, write_results
    from recbole_guider.benchmark.spec import read_spec

    spec = read_spec(arguments.spec, arguments.data, arguments.imports or ())
    folder = Path(arguments.out or f"{Path(arguments.spec).stem}-results")
    failures = []
    if arguments.report_only:
        if not (folder / RESULTS).is_file() and not (folder / "cells").is_dir():
            raise GuiderError(f"--report-only: {folder} holds no results of a benchmark; name their folder with --out.")
        write_results(spec, folder)
    else:
        failures = run_benchmark(spec, folder, arguments.workers)
    for written in (folder / "results.csv", *write_report(spec, folder)):
        print(f"wrote {written}")
    if failures:
        raise GuiderError(
            f"{len(failures)} of {len(spec.cells)} runs failed; see {folder / 'failures'}. The same command tries them "
            f"again."
        )


# -- calibrate ----------------------------------------------------------------------------------------------------


def _add_calibrate_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("interactions", nargs="+", help="parquet files, folders or patterns: a row for each pair")
    parser.add_argument("--out", required=True, help="the folder to write, which must not exist")
    parser.add_argument("--feature", action="append", default=[], metavar="NAME=ROWS.npy[,IDS.txt]",
                        help="a modality: row r belongs to item r, or to the id in line r of IDS.txt; repeat for more")
    parser.add_argument("--user", default="user", help="the column of the users (default: user)")
    parser.add_argument("--item", default="item", help="the column of the items (default: item)")
    parser.add_argument("--seed", type=int, default=0, help="of every random choice (default: 0)")
    parser.add_argument("--buckets", type=int, help="pieces of the log (default: as many as keep them small)")
    parser.add_argument("--config_files", action="append", help=f"with a guider block: {_FILES_HELP}")
    parser.add_argument("--address", help="a running Ray cluster, e.g. auto (default: this machine)")


def _calibrate(arguments: argparse.Namespace, rest: list[str]) -> None:
    from recbole_guider.cli.calibrate import run

    run(arguments, rest)


COMMANDS = {
    "run": Command(
        "train and test a model", add_run_arguments, _run, takes_settings=True,
        description="Train and test a model of RecBole or of this package, with GUIDER or without.",
        epilog="""\
Every setting of RecBole and of GUIDER can follow as --key=value, nested ones with dots:
  --epochs=20 --learning_rate=0.001 --guider.dbpr.eta=0.3 --guider=false
""",
    ),
    "tune": Command(
        "search for the best settings", _add_tune_arguments, _tune, takes_settings=True, needs_ray=True,
        description="Search for the settings with the best validation score, on this machine or a Ray cluster.",
        epilog="""\
Settings that all trials share can follow as --key=value. A search space is a file such as
  learning_rate: {loguniform: [1e-4, 1e-2]}
  embedding_size: {choice: [32, 64]}
  guider.dbpr.eta: {uniform: [0.0, 0.3]}
  n_ui_layers: {int: [1, 3]}
""",
    ),
    "calibrate": Command(
        "say of each interaction of a log in parquet files whether it is noise", _add_calibrate_arguments, _calibrate,
        takes_settings=True, needs_recbole=False, needs_ray=True,
        description="AMSC on parquet files of any size, on this machine or on a Ray cluster, without training a model.",
        epilog="""\
  recbole-guider calibrate log/*.parquet --feature text=text.npy --feature image=image.npy,ids.txt --out calibrated
The settings of guider.calibration can follow, as --guider.calibration.decision=quantile.
""",
    ),
    "convert": Command(
        "turn a folder of interactions and features into a data set", _add_convert_arguments, _convert
    ),
    "models": Command(
        "list the models: their kind, the content they need, and how GUIDER teaches them", _add_models_arguments,
        _models,
        epilog="""\
Every name can be given as --model; GUIDER_<name> is the denoised model, except where distillation is none.
  modalities    any: reads the items' content, whatever modalities there are; none: reads none
  distillation  factorised: over the whole catalogue, from two matrices; rows: over the whole catalogue, from score
                rows; candidates: over items drawn for each batch; none: it is not trained by gradients
""",
    ),
    "noise": Command(
        "write a noisy copy of a data set, with the injected pairs recorded", _add_noise_arguments, _noise,
        takes_settings=True,
        description="Write a noisy copy of a data set: its splits as RecBole's atomic files, with noise in the\n"
        "training split only, and the content of its items. The injected and deleted pairs are recorded beside it.",
        epilog="""\
What is done to the data is said by the settings of the noise block, which follow as --key=value:
  --noise.interactions=0.1 --noise.items=clickbait     add pairs (also: noise.users, noise.clickbait_items)
  --noise.deleted=0.2                                  take pairs out
  --noise.features=0.1 --noise.gaussian.title=0.1      shuffle features between items, make them Gaussian noise
  --noise.seed=1
""",
    ),
    "benchmark": Command(
        "compare models, methods, data sets and noise over seeds", _add_benchmark_arguments, _benchmark,
        description="Run models x methods x data sets x noise x seeds, one CSV row a run, and report means,\n"
        "deviations, paired tests and robustness curves as markdown and as a page with plots.",
        epilog="""\
A killed benchmark continues with the same command: finished runs are kept. benchmarks/specs/ has specs, and
docs/benchmark.md says what may stand in one.
""",
    ),
}
