"""``recbole-guider noise``: write a noisy copy of a data set."""

from __future__ import annotations

import argparse
from typing import Any

from recbole_guider import DEFAULT_DATASET
from recbole_guider.cli.command import FILES_HELP, Command, add_name
from recbole_guider.utils.arguments import run_command, split_files
from recbole_guider.utils.resources import dataset_configs_dir


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_name(parser, "dataset", "data set", DEFAULT_DATASET)
    parser.add_argument("--config_files", action="append", help=FILES_HELP)
    parser.add_argument("--to", required=True, help="the folder to write <name>/ and <name>.yaml into")
    parser.add_argument("--name", help="the noisy copy's name (default: <dataset>-noisy)")


def run(arguments: argparse.Namespace, rest: list[str]) -> None:
    from recbole_guider.config.guider_config import GuiderConfig
    from recbole_guider.data.noisy_copy import write_noisy_copy
    from recbole_guider.utils.yaml_files import read_yaml

    files = split_files(arguments.config_files)
    in_files: dict[str, Any] = {}
    for file in files:
        in_files.update(read_yaml(file))
    dataset = arguments.dataset or in_files.get("dataset", DEFAULT_DATASET)
    # the simplest model: only its data are made
    config = GuiderConfig("BPR", dataset, files, {"guider": False}, command_line=rest)
    written = write_noisy_copy(
        config, arguments.to, arguments.name, guider_block=_chosen_for_guider(config["dataset"])
    )
    print(f"wrote the folder {written.with_suffix('')} and {written}")
    print(f"run it: {run_command('run_recbole_guider.py', written, written.stem)}")


def _chosen_for_guider(dataset: str) -> dict[str, Any]:
    """The guider block that the package has for a data set. Noise and mask, which a copy has in it or says itself, are
    no part of the block once it is merged.
    """
    from recbole_guider.config.merging import merge
    from recbole_guider.utils.yaml_files import read_yaml

    file = dataset_configs_dir() / f"{dataset}.yaml"
    return (merge({}, read_yaml(file)).get("guider") if file.is_file() else None) or {}


COMMAND = Command(
    "write a noisy copy of a data set, with the injected pairs recorded", add_arguments, run,
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
)
