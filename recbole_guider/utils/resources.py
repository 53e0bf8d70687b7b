"""Where the package's YAML files lie: inside the package once installed, beside it in a checkout."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent.parent


def properties_dir() -> Path:
    """The folder of the defaults: overall.yaml, guider.yaml and model/<Model>.yaml."""
    return _folder("properties")


def dataset_configs_dir() -> Path:
    """The folder with one <dataset>.yaml for each data set that the package knows."""
    return _folder("dataset_configs")


def _folder(name: str) -> Path:
    # A wheel carries the folders inside the package; an editable install and a checkout have them at the top
    # level.
    installed = _PACKAGE / name
    return installed if installed.is_dir() else _PACKAGE.parent / name
