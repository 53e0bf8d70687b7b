"""The command ``recbole-guider`` and the script ``run_recbole_guider.py``: every command, and how one is run."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from recbole_guider import __version__
from recbole_guider.cli import benchmark, calibrate, convert, models, noise, run, tune
from recbole_guider.cli.command import Command
from recbole_guider.utils import requirements
from recbole_guider.utils.arguments import is_setting
from recbole_guider.utils.errors import GuiderError, ProcessFailed

#: Every command by its name, in the order of ``recbole-guider --help``; a file each.
COMMANDS = {
    "run": run.COMMAND,
    "tune": tune.COMMAND,
    "calibrate": calibrate.COMMAND,
    "convert": convert.COMMAND,
    "models": models.COMMAND,
    "noise": noise.COMMAND,
    "benchmark": benchmark.COMMAND,
}


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
