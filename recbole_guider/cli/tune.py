"""``recbole-guider tune``: search for the best settings."""

from __future__ import annotations

import argparse
import shlex
import sys

from recbole_guider import DEFAULT_DATASET, DEFAULT_MODEL
from recbole_guider.cli.command import FILES_HELP, Command, add_import, add_name, import_setting
from recbole_guider.utils.arguments import split_files
from recbole_guider.utils.errors import GuiderError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_name(parser, "model", "model", DEFAULT_MODEL)
    add_name(parser, "dataset", "data set", DEFAULT_DATASET)
    parser.add_argument("--config_files", action="append", help=FILES_HELP)
    add_import(parser)
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


def run(arguments: argparse.Namespace, rest: list[str]) -> None:
    from recbole_guider.tuning import tune_guider

    given = dict(vars(arguments))
    del given["command"]
    files, epochs, imports = given.pop("config_files"), given.pop("epochs"), given.pop("imports")
    try:
        result = tune_guider(
            **given,
            config_file_list=split_files(files) or None,
            command_line=[
                *import_setting(imports), *([] if epochs is None else [f"--epochs={epochs}"]), *rest
            ],
        )
    except KeyboardInterrupt:
        print(f"go on with it:  recbole-guider tune --out={shlex.quote(arguments.out)} --resume", file=sys.stderr)
        raise
    if result["best_trial"] is None:
        raise GuiderError("no trial was evaluated: trials.csv has the message of each.")


COMMAND = Command(
    "search for the best settings", add_arguments, run, takes_settings=True, needs_ray=True,
    description="Search for the settings with the best validation score, on this machine or a Ray cluster.",
    epilog="""\
Settings that all trials share can follow as --key=value. A search space is a file such as
  learning_rate: {loguniform: [1e-4, 1e-2]}
  embedding_size: {choice: [32, 64]}
  guider.dbpr.eta: {uniform: [0.0, 0.3]}
  n_ui_layers: {int: [1, 3]}
""",
)
