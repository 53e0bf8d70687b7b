"""``recbole-guider noise``: a data set with noise of a known size and place, written to disk, ready to run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from recbole.utils import FeatureType, init_seed

from recbole_guider.data.convert import SPLITS
from recbole_guider.data.dataset import GuiderDataset, build_dataset, noise_of
from recbole_guider.data.folder import check_name, new_data_set, written_together
from recbole_guider.data.tables import read_atomic
from recbole_guider.utils.arguments import files_argument, run_command
from recbole_guider.utils.errors import GuiderError
from recbole_guider.utils.resources import dataset_configs_dir
from recbole_guider.utils.yaml_files import write_yaml

#: Settings of the source that say how a run on the copy is measured.
_MEASURED_BY = ("metrics", "topk", "valid_metric", "eval_mask", "stopping_step")
#: Settings of the source that say what its columns are, with RecBole's defaults.
_COLUMNS = {
    "USER_ID_FIELD": "user_id", "ITEM_ID_FIELD": "item_id", "RATING_FIELD": "rating", "TIME_FIELD": "timestamp",
    "LABEL_FIELD": "label", "seq_separator": " ",
}


def write_noisy_copy(
    config: Any, to: str | Path, name: str | None = None, *, guider_block: Mapping[str, Any] | None = None
) -> Path:
    """Write a noisy copy of a data set.

    Writes ``<to>/<name>/``: ``<name>.train.inter`` (with the noise), ``<name>.valid.inter`` and ``<name>.test.inter``
    (without), ``<modality>_feat.npy`` and ``<modality>_ids.txt`` for every modality, ``<name>.user`` and
    ``<name>.item`` where the source loads them, ``<name>.injected.inter`` and ``<name>.deleted.inter`` (user and item
    of the pairs that were added and taken out); and ``<to>/<name>.yaml``, which names all of it. In a run on the copy,
    ``noise.recorded`` in that file tells which pairs were injected, so that GUIDER reports how well it found them.
    ``<to>/<name>/guider.yaml`` holds ``guider_block``, for runs with GUIDER: in ``<name>.yaml`` it would put GUIDER
    around every model that is run on the copy.

    The splits are those that a run with the same settings and seed has: the copy gives a run the same data as the
    ``noise`` block gives in memory. Everything is moved into place at the end: a failure leaves nothing behind.

    Args:
        config: a GuiderConfig of the source, whose ``noise`` block says what is done to it.
        to: folder to write into, made if need be.
        name: of the copy; default ``<dataset>-noisy``.
        guider_block: GUIDER's settings for the source, where there are some.

    Returns:
        Path of the YAML file.

    Raises:
        GuiderError: nothing to do, a target that exists, a column that cannot be written, or as a run raises.
    """
    to = Path(to)
    name = name or f"{config['dataset']}-noisy"
    yaml_file = _checked_place(config, to, name)
    init_seed(config["seed"], config["reproducibility"])
    source = build_dataset(config)
    splits = source.build()
    if len(splits) != len(SPLITS):
        raise GuiderError(f"the data set has {len(splits)} splits: a copy needs train, valid and test.")
    for modality in source.item_features:  # read before anything is written
        check_name(modality)  # it becomes part of a file's name

    with written_together(yaml_file) as (inside, text_file):
        settings = {
            "dataset": name,
            "data_path": str(to.resolve()),
            "load_col": {"inter": _write_interactions(splits, inside, name), **_copy_tables(source, inside, name)},
            "benchmark_filename": list(SPLITS),
            "modalities": _write_features(source, inside),
            "noise": {"recorded": f"{name}.injected.inter"},
            **_as_the_source(config),
        }
        if guider_block:
            title = f"GUIDER's defaults on {config['dataset']}."
            write_yaml({"guider": dict(guider_block)}, inside / "guider.yaml", title)
        text = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True, default_flow_style=None)
        text_file.write_text(_header(config, yaml_file, bool(guider_block)) + text, "utf-8")
    return yaml_file


def _checked_place(config: Any, to: Path, name: str) -> Path:
    """Where the copy's YAML file goes; raises where there is nothing to do, or the name is taken."""
    noise = noise_of(config)
    amounts = (noise.interactions, noise.deleted, noise.features, noise.gaussian)
    if not any(any(amount.values()) if isinstance(amount, dict) else amount for amount in amounts):
        raise GuiderError(
            "the noise block asks for no noise: give at least one of --noise.interactions, --noise.deleted, "
            "--noise.features and --noise.gaussian."
        )
    check_name(name)
    if (dataset_configs_dir() / f"{name}.yaml").is_file():
        raise GuiderError(f"the name {name!r} belongs to a data set that the package knows; give another --name.")
    yaml_file = new_data_set(to, name)
    if config["benchmark_filename"] is None and config["eval_args"]["split"] is None:
        raise GuiderError("the data set has no splits: set eval_args.split or benchmark_filename.")
    return yaml_file


def _write_interactions(splits: Sequence[GuiderDataset], inside: Path, name: str) -> list[str]:
    """Write the splits, and the pairs that noise added and took out; returns the columns of the splits."""
    # of a split without noise: joining interactions, as noise does, leaves their columns in any order
    fields = list(splits[1].inter_feat.columns)
    for split, part in zip(SPLITS, splits, strict=True):
        _interactions(part, fields).to_csv(inside / f"{name}.{split}.inter", sep="\t", index=False)
    train = splits[0]
    users, items = (np.asarray(train.inter_feat[field], np.int64) for field in (train.uid_field, train.iid_field))
    injected = np.stack([users[train.is_injected], items[train.is_injected]])
    for kind, pairs in (("injected", injected), ("deleted", train.deleted_pairs)):
        _pairs(train, *pairs).to_csv(inside / f"{name}.{kind}.inter", sep="\t", index=False)
    return fields


def _write_features(source: GuiderDataset, inside: Path) -> dict[str, Any]:
    """Write every modality's rows, and the items that they belong to; returns the ``modalities`` block."""
    blocks = {}
    tokens = np.asarray(source.field2id_token[source.iid_field])
    for modality, part in source.item_features.items():
        np.save(inside / f"{modality}_feat.npy", part.values[part.present])
        (inside / f"{modality}_ids.txt").write_text("\n".join(tokens[part.present].tolist()) + "\n", "utf-8")
        blocks[modality] = {"file": f"{modality}_feat.npy", "ids": f"{modality}_ids.txt"}
    return blocks


def _as_the_source(config: Any) -> dict[str, Any]:
    """The settings of the source that hold for its copy too: its columns, and how a run is measured."""
    settings = {key: config[key] for key, default in _COLUMNS.items() if config[key] != default}
    settings |= {key: config[key] for key in _MEASURED_BY}
    settings["eval_args"] = {"mode": config["eval_args"]["mode"]}
    if config["repeatable"]:  # false is the default, but not of sequential models
        settings["repeatable"] = True
    return settings


def _header(config: Any, yaml_file: Path, with_guider: bool) -> str:
    """The comment at the top of the copy's YAML file: what it is, and how it is run."""
    name = yaml_file.stem
    lines = [
        f"A noisy copy of {config['dataset']}, made by `recbole-guider noise` with",
        str(noise_of(config).model_dump()),
        f"Run: {run_command('run_recbole_guider.py', yaml_file, name)}",
    ]
    if with_guider:
        both = files_argument(yaml_file, yaml_file.with_suffix("") / "guider.yaml")
        lines.append(f"With GUIDER as on {config['dataset']}: {both}")
    return "".join(f"# {line}\n" for line in lines) + "\n"


def _interactions(part: GuiderDataset, fields: Sequence[str]) -> pd.DataFrame:
    """A split as RecBole's atomic file has it: original tokens, and floats."""
    columns = {}
    for field in fields:
        kind = part.field2type[field]
        values = part.inter_feat[field].numpy()
        if kind == FeatureType.TOKEN:
            columns[f"{field}:token"] = np.asarray(part.field2id_token[field])[values]
        elif kind == FeatureType.FLOAT:
            columns[f"{field}:float"] = values
        else:
            raise GuiderError(
                f"the column {field!r} of the interactions is of type {kind.value}, which a copy cannot hold; leave it "
                f"out with load_col."
            )
    return pd.DataFrame(columns)


def _pairs(part: GuiderDataset, users: np.ndarray, items: np.ndarray) -> pd.DataFrame:
    return pd.DataFrame(
        {
            f"{field}:token": np.asarray(part.field2id_token[field])[ids]
            for field, ids in ((part.uid_field, users), (part.iid_field, items))
        }
    )


def _copy_tables(source: GuiderDataset, inside: Path, name: str) -> dict[str, Any]:
    """The source's .user and .item files, cut to the users and items that are left, and what to load of them."""
    load_col = {}
    loaded = source.config["load_col"]  # null: every table, and all of it
    for suffix, field in (("user", source.uid_field), ("item", source.iid_field)):
        file = Path(source.dataset_path) / f"{source.dataset_name}.{suffix}"
        if loaded is not None and suffix not in loaded or not file.is_file():
            continue
        frame = read_atomic(file, source.config, keep_default_na=False)
        column = next(column for column in frame.columns if str(column).partition(":")[0] == field)
        known = set(np.asarray(source.field2id_token[field])[1:].tolist())
        frame[frame[column].isin(known)].to_csv(inside / f"{name}.{suffix}", sep="\t", index=False)
        load_col[suffix] = "*" if loaded is None else loaded[suffix]
    return load_col
