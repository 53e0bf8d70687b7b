"""``recbole-guider calibrate``: which interactions of a log in parquet files are noise."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recbole_guider.cli.command import FILES_HELP, Command
from recbole_guider.utils.arguments import split_files
from recbole_guider.utils.errors import GuiderError

if TYPE_CHECKING:
    from recbole_guider.amsc import CalibrationSettings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("interactions", nargs="+", help="parquet files, folders or patterns: a row for each pair")
    parser.add_argument("--out", required=True, help="the folder to write, which must not exist")
    parser.add_argument("--feature", action="append", default=[], metavar="NAME=ROWS.npy[,IDS.txt]",
                        help="a modality: row r belongs to item r, or to the id in line r of IDS.txt; repeat for more")
    parser.add_argument("--user", default="user", help="the column of the users (default: user)")
    parser.add_argument("--item", default="item", help="the column of the items (default: item)")
    parser.add_argument("--seed", type=int, default=0, help="of every random choice (default: 0)")
    parser.add_argument("--buckets", type=int, help="pieces of the log (default: as many as keep them small)")
    parser.add_argument("--config_files", action="append", help=f"with a guider block: {FILES_HELP}")
    parser.add_argument("--address", help="a running Ray cluster, e.g. auto (default: this machine)")


def run(arguments: argparse.Namespace, rest: list[str]) -> None:
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
    from recbole_guider.guider.settings import GuiderSettings
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


@contextmanager
def _cluster(address: str | None) -> Iterator[None]:
    """A connection to a running Ray cluster for as long as the block lasts; nothing where none is named."""
    if not address:
        yield
        return
    import ray

    try:
        ray.init(address=address, log_to_driver=False)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise GuiderError(f"there is no Ray cluster at {address}: {str(error).splitlines()[0]}") from error
    try:
        yield
    finally:
        ray.shutdown()


COMMAND = Command(
    "say of each interaction of a log in parquet files whether it is noise", add_arguments, run,
    takes_settings=True, needs_recbole=False, needs_ray=True,
    description="AMSC on parquet files of any size, on this machine or on a Ray cluster, without training a model.",
    epilog="""\
  recbole-guider calibrate log/*.parquet --feature text=text.npy --feature image=image.npy,ids.txt --out calibrated
The settings of guider.calibration can follow, as --guider.calibration.decision=quantile.
""",
)
