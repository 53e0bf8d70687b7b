"""``recbole-guider noise``: what its arguments stand for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from recbole_guider import DEFAULT_DATASET
from recbole_guider.config.guider_config import GuiderConfig
from recbole_guider.config.merging import merge
from recbole_guider.data.noisy_copy import write_noisy_copy
from recbole_guider.utils.resources import dataset_configs_dir
from recbole_guider.utils.yaml_files import read_yaml


def run(
    dataset: str | None, config_files: Sequence[str], command_line: Sequence[str], to: str | Path,
    name: str | None = None,
) -> Path:
    """Write a noisy copy of a data set.

    Args:
        dataset: the source's name; None: what the files say, else the default.
        config_files: property files.
        command_line: settings as ``--key=value``, such as ``--noise.interactions=0.2``.
        to, name: as :func:`~recbole_guider.data.noisy_copy.write_noisy_copy` has them.

    Returns:
        Path of the copy's YAML file.

    Raises:
        GuiderError: as there, and as a run raises.
    """
    in_files: dict[str, Any] = {}
    for file in config_files:
        in_files.update(read_yaml(file))
    # the simplest model: only its data are made
    config = GuiderConfig(
        "BPR", dataset or in_files.get("dataset", DEFAULT_DATASET), list(config_files), {"guider": False},
        command_line=command_line,
    )
    return write_noisy_copy(config, to, name, guider_block=_chosen_for_guider(config["dataset"]))


def _chosen_for_guider(dataset: str) -> dict[str, Any]:
    """The guider block that the package has for a data set. Noise and mask, which a copy has in it or says itself, are
    no part of the block once it is merged.
    """
    file = dataset_configs_dir() / f"{dataset}.yaml"
    return (merge({}, read_yaml(file)).get("guider") if file.is_file() else None) or {}
