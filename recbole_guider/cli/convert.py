"""``recbole-guider convert``: a folder of interactions and features becomes a data set."""

from __future__ import annotations

import argparse

from recbole_guider.cli.command import Command
from recbole_guider.utils.arguments import run_command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", help="the folder to read")
    parser.add_argument("--from", dest="kind", choices=("csv", "mmrec"), required=True,
                        help="csv: interactions.csv and <modality>_feat.npy; mmrec: a folder of MMRec's")
    parser.add_argument("--to", required=True, help="the folder to write <name>/ and <name>.yaml into")
    parser.add_argument("--name", help="the data set's name (default: the source folder's)")


def run(arguments: argparse.Namespace, rest: list[str]) -> None:
    from recbole_guider.data.convert import convert

    written = convert(arguments.source, arguments.to, arguments.kind, arguments.name)
    print(f"wrote the folder {written.with_suffix('')} and {written}")
    print(f"run it: {run_command('run_recbole_guider.py', written, written.stem)}")


COMMAND = Command("turn a folder of interactions and features into a data set", add_arguments, run)
