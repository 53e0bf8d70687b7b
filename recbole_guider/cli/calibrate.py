"""``recbole-guider calibrate``: which interactions of a log in parquet files are noise."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from recbole_guider.amsc.settings import CalibrationSettings
from recbole_guider.guider.settings import GuiderSettings
from recbole_guider.utils.arguments import split_files
from recbole_guider.utils.errors import GuiderError


def run(arguments: argparse.Namespace, rest: list[str]) -> None:
    """Calibrate, and print what was found.

    Raises:
        GuiderError: an argument, a file or a setting is not what it must be.
    """
    from recbole_guider.amsc import calibrate_parquet

    settings = calibration_settings(split_files(arguments.config_files), rest)
    features = dict(_feature(text) for text in arguments.feature)
    if len(features) < len(arguments.feature):
        raise GuiderError("--feature names a modality twice: give each a name of its own.")
    with _cluster(arguments.address):
        result = calibrate_parquet(
            arguments.interactions, features, arguments.out, user=arguments.user, item=arguments.item,
            settings=settings, seed=arguments.seed, buckets=arguments.buckets,
        )
    weights = ", ".join(f"{name} {weight:.2f}" for name, weight in result.modality_weights.items())
    print(f"noise rate {result.noise_rate:.3f}: {result.n_true} true and {result.n_false} false interactions")
    print(f"modality weights: {weights or 'none'}")
    print(f"wrote {result.out}")


def calibration_settings(files: Sequence[str], command_line: Sequence[str]) -> CalibrationSettings:
    """``guider.calibration`` as property files and ``--guider.calibration.key=value`` arguments give it.

    Raises:
        GuiderError: another setting among the arguments, or a value that is not right.
    """
    from recbole_guider.config.merging import merge, parse_value
    from recbole_guider.utils.yaml_files import read_yaml

    block: dict[str, Any] = {}
    for file in files:
        of_guider = {key: value for key, value in read_yaml(file).items() if str(key).partition(".")[0] == "guider"}
        block = merge(block, of_guider)
    for argument in command_line:
        key, separator, value = argument.removeprefix("--").partition("=")
        if not separator or not key.startswith("guider.calibration."):
            raise GuiderError(
                f"{argument} is no setting of calibrate: those are --guider.calibration.<key>=<value>."
            )
        block = merge(block, {key: parse_value(key, value)})
    settings = GuiderSettings.from_block(block.get("guider") or {})
    assert settings is not None  # a mapping is a block that is on
    return settings.calibration


def _feature(text: str) -> tuple[str, Any]:
    name, separator, place = text.partition("=")
    rows, _, ids = place.partition(",")
    if not separator or not name or not rows:
        raise GuiderError(f"--feature is {text!r}: it must be NAME=ROWS.npy or NAME=ROWS.npy,IDS.txt.")
    return name, (Path(rows), Path(ids)) if ids else Path(rows)


class _cluster:
    """A connection to a running Ray cluster for as long as the block lasts; nothing where none is named."""

    def __init__(self, address: str | None) -> None:
        self.address = address

    def __enter__(self) -> None:
        if self.address:
            import ray

            try:
                ray.init(address=self.address, log_to_driver=False)
            except (ConnectionError, ValueError, RuntimeError) as error:
                raise GuiderError(f"there is no Ray cluster at {self.address}: {str(error).splitlines()[0]}") from error

    def __exit__(self, *_: object) -> None:
        if self.address:
            import ray

            ray.shutdown()
