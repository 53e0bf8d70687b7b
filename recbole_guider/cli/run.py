"""``recbole-guider run`` and ``run_recbole_guider.py``: train and test a model."""

from __future__ import annotations

import argparse

from recbole_guider import DEFAULT_DATASET, DEFAULT_MODEL
from recbole_guider.cli.command import FILES_HELP, Command, add_import, add_name, import_setting
from recbole_guider.utils.arguments import split_files


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """RecBole's own flags, with this package's defaults."""
    add_name(parser, "model", "model", DEFAULT_MODEL)
    add_name(parser, "dataset", "data set", DEFAULT_DATASET)
    parser.add_argument("--config_files", action="append", help=FILES_HELP)
    add_import(parser)
    parser.add_argument("--nproc", type=int, default=1, help="processes on this machine (default: 1)")
    parser.add_argument("--world_size", type=int, default=-1, help="processes on all machines (default: nproc)")
    parser.add_argument("--ip", default="localhost", help="the machine of process 0, for several machines")
    parser.add_argument("--port", type=int, default=None,
                        help="its port where the processes meet (default: any free one; for several machines 5678)")
    parser.add_argument("--group_offset", type=int, default=0,
                        help="the number of the first process on this machine (default: 0)")


def run(arguments: argparse.Namespace, rest: list[str]) -> None:
    from recbole_guider.quick_start import run_from_command_line
    from recbole_guider.training.parallel.launch import Processes

    run_from_command_line(
        arguments.model,
        arguments.dataset,
        split_files(arguments.config_files) or None,
        [*import_setting(arguments.imports), *rest],
        Processes(arguments.nproc, arguments.world_size, arguments.ip, arguments.port, arguments.group_offset),
    )


COMMAND = Command(
    "train and test a model", add_arguments, run, takes_settings=True,
    description="Train and test a model of RecBole or of this package, with GUIDER or without.",
    epilog="""\
Every setting of RecBole and of GUIDER can follow as --key=value, nested ones with dots:
  --epochs=20 --learning_rate=0.001 --guider.dbpr.eta=0.3 --guider=false
""",
)
