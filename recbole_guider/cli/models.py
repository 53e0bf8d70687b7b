"""``recbole-guider models``: the list of them."""

from __future__ import annotations

import argparse
import json

from recbole_guider.cli.command import Command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print a JSON list instead of a table")


def run(arguments: argparse.Namespace, rest: list[str]) -> None:
    from tabulate import tabulate

    from recbole_guider.config.registry import ModelInfo, list_models

    models = list_models()
    if arguments.json:
        print(json.dumps([model._asdict() for model in models], indent=1))
    else:
        print(tabulate(models, headers=ModelInfo._fields, tablefmt="simple"))


COMMAND = Command(
    "list the models: their kind, the content they need, and how GUIDER teaches them", add_arguments, run,
    epilog="""\
Every name can be given as --model; GUIDER_<name> is the denoised model, except where distillation is none.
  modalities    any: reads the items' content, whatever modalities there are; none: reads none
  distillation  factorised: over the whole catalogue, from two matrices; rows: over the whole catalogue, from score
                rows; candidates: over items drawn for each batch; none: it is not trained by gradients
""",
)
