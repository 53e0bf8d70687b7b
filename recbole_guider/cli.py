"""The command ``recbole-guider`` and the script ``run_recbole_guider.py``: arguments in, one call, clear errors."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

from recbole_guider import DEFAULT_DATASET, DEFAULT_MODEL, __version__
from recbole_guider.errors import GuiderError, ProcessFailed


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
        description=command.description, epilog=command.epilog, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    command.add_arguments(parser)
    return _guarded(command, *parser.parse_known_args(argv))


def _guarded(command: Command, arguments: argparse.Namespace, rest: list[str]) -> int:
    try:
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
    parser.add_argument("--model", "-m", default=None, help=f"name of the model (default: {DEFAULT_MODEL})")
    parser.add_argument("--dataset", "-d", default=None, help=f"name of the data set (default: {DEFAULT_DATASET})")
    parser.add_argument("--config_files", default=None, help="property files, separated by spaces")
    parser.add_argument("--nproc", type=int, default=1, help="processes on this machine (default: 1)")
    parser.add_argument("--world_size", type=int, default=-1, help="processes on all machines (default: nproc)")
    parser.add_argument("--ip", default="localhost", help="the machine of process 0, for several machines")
    parser.add_argument("--port", type=int, default=None,
                        help="its port where the processes meet (default: any free one; for several machines 5678)")
    parser.add_argument("--group_offset", type=int, default=0,
                        help="the number of the first process on this machine (default: 0)")


def _run(arguments: argparse.Namespace, rest: list[str]) -> None:
    from recbole_guider.parallel.launch import Processes
    from recbole_guider.quick_start import run_from_command_line

    run_from_command_line(
        arguments.model,
        arguments.dataset,
        arguments.config_files.split() if arguments.config_files else None,
        rest,
        Processes(arguments.nproc, arguments.world_size, arguments.ip, arguments.port, arguments.group_offset),
    )


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
    print(f"run it: run_recbole_guider.py --dataset={written.stem} --config_files={written}")


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
    parser.add_argument("--config_files", default=None, help="property files with a guider block, separated by spaces")
    parser.add_argument("--address", help="a running Ray cluster, e.g. auto (default: this machine)")


def _calibrate(arguments: argparse.Namespace, rest: list[str]) -> None:
    from recbole_guider.amsc.command import run

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
    "calibrate": Command(
        "say of each interaction of a log in parquet files whether it is noise", _add_calibrate_arguments, _calibrate,
        takes_settings=True,
        description="AMSC on parquet files of any size, on this machine or on a Ray cluster, without training a model.",
        epilog="""\
  recbole-guider calibrate log/*.parquet --feature text=text.npy --feature image=image.npy,ids.txt --out calibrated
The settings of guider.calibration can follow, as --guider.calibration.decision=quantile.
""",
    ),
    "convert": Command(
        "turn a folder of interactions and features into a data set", _add_convert_arguments, _convert
    ),
}
