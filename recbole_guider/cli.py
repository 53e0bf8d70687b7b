"""The command ``recbole-guider`` and the script ``run_recbole_guider.py``: arguments in, one call, clear errors."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

from recbole_guider import __version__
from recbole_guider.errors import GuiderError


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of ``recbole-guider``; returns the exit status (2: the input was not right)."""
    parser = argparse.ArgumentParser(
        prog="recbole-guider", description="Denoise multi-modal recommenders in RecBole."
    )
    parser.add_argument("--version", action="version", version=f"recbole-guider {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    add_run_arguments(
        commands.add_parser(
            "run", help="train and test a model", description=RUN_DESCRIPTION, epilog=RUN_EPILOG,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
    )
    convert = commands.add_parser("convert", help="turn a folder of interactions and features into a data set")
    convert.add_argument("source", help="the folder to read")
    convert.add_argument("--from", dest="kind", choices=("csv", "mmrec"), required=True,
                         help="csv: interactions.csv and <modality>_feat.npy; mmrec: a folder of MMRec's")
    convert.add_argument("--to", required=True, help="the folder to write <name>/ and <name>.yaml into")
    convert.add_argument("--name", help="the data set's name (default: the source folder's)")
    arguments, rest = parser.parse_known_args(argv)
    if rest and arguments.command != "run":
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    return _guarded({"run": _run, "convert": _convert}[arguments.command], arguments, rest)


def run_script(argv: Sequence[str] | None = None) -> int:
    """Entry point of ``run_recbole_guider.py``: the same as ``recbole-guider run``."""
    parser = argparse.ArgumentParser(
        description=RUN_DESCRIPTION, epilog=RUN_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_run_arguments(parser)
    return _guarded(_run, *parser.parse_known_args(argv))


RUN_DESCRIPTION = "Train and test a model of RecBole or of this package, with GUIDER or without."
RUN_EPILOG = """\
Every setting of RecBole and of GUIDER can follow as --key=value, nested ones with dots:
  --epochs=20 --learning_rate=0.001 --guider.dbpr.eta=0.3 --guider=false
"""


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """RecBole's own flags, with this package's defaults."""
    from recbole_guider.quick_start import DEFAULT_DATASET, DEFAULT_MODEL

    parser.add_argument("--model", "-m", default=None, help=f"name of the model (default: {DEFAULT_MODEL})")
    parser.add_argument("--dataset", "-d", default=None, help=f"name of the data set (default: {DEFAULT_DATASET})")
    parser.add_argument("--config_files", default=None, help="property files, separated by spaces")
    parser.add_argument("--nproc", type=int, default=1, help="processes on this machine (default: 1)")


def _guarded(
    command: Callable[[argparse.Namespace, list[str]], None], arguments: argparse.Namespace, rest: list[str]
) -> int:
    try:
        command(arguments, rest)
    except GuiderError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


def _run(arguments: argparse.Namespace, rest: list[str]) -> None:
    from recbole_guider.quick_start import run_from_command_line

    if arguments.nproc != 1:
        raise GuiderError(f"--nproc is {arguments.nproc}: training in several processes is not supported yet, use 1.")
    run_from_command_line(
        arguments.model, arguments.dataset, arguments.config_files.split() if arguments.config_files else None, rest
    )


def _convert(arguments: argparse.Namespace, rest: list[str]) -> None:
    from recbole_guider.data.convert import convert

    written = convert(arguments.source, arguments.to, arguments.kind, arguments.name)
    print(f"wrote the folder {written.with_suffix('')} and {written}")
    print(f"run it: run_recbole_guider.py --dataset={written.stem} --config_files={written}")
