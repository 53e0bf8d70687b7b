"""What a command is, and the arguments that several of them have."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import NamedTuple

FILES_HELP = "property files, separated by spaces (a name with spaces: in quotes of its own); may be given again"


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


def _name(text: str) -> str:
    """The name of a model or a data set; an unset variable of a shell is none."""
    if not text.strip():
        raise argparse.ArgumentTypeError("is empty; give a name, or leave the option out for the default")
    return text


def add_name(parser: argparse.ArgumentParser, option: str, what: str, default: str) -> None:
    """``--option`` and its first letter, for a name."""
    """``--option`` and its first letter, for a name."""
    parser.add_argument(
        f"--{option}", f"-{option[0]}", type=_name, default=None, help=f"name of the {what} (default: {default})"
    )


def add_import(parser: argparse.ArgumentParser) -> None:
    """``--import``, the files of users' own models and methods."""
    """``--import``, the files of users' own models and methods."""
    parser.add_argument(
        "--import", action="append", dest="imports", metavar="FILE",
        help="a Python file, or a module, that registers models or denoising methods of your own; may be given again",
    )


def import_setting(named: list[str] | None) -> list[str]:
    """``--import`` as the setting that it stands for."""
    return [] if named is None else [f"--import={named}"]
