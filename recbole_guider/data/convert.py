"""Foreign data sets made ready: ``convert`` writes RecBole's atomic files, the features and a YAML file to run.

csv
    ``interactions.csv`` with the columns ``user,item`` and, where there, ``split`` (train, valid, test), ``rating``
    and ``timestamp``.
mmrec
    a data folder of the MMRec toolbox: ``<name>.inter``, separated by tabs, with ``userID``, ``itemID`` and
    ``x_label`` (0 train, 1 valid, 2 test).

Beside either: ``<modality>_feat.npy``, an array of shape [items, width], row r for item r, or for the item in line r
of ``<modality>_ids.txt`` where that file exists.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from itertools import islice
from logging import getLogger
from pathlib import Path

import numpy as np
import pandas as pd
import yaml

from recbole_guider.amsc import BEHAVIOUR
from recbole_guider.data.features import finite_blocks, read_array, read_ids, row_numbers
from recbole_guider.data.folder import check_name, new_data_set, written_together
from recbole_guider.data.tables import read_table
from recbole_guider.utils.arguments import run_command
from recbole_guider.utils.errors import GuiderError
from recbole_guider.utils.resources import dataset_configs_dir

KINDS = ("csv", "mmrec")
SPLITS = ("train", "valid", "test")
_FLOATS = ("rating", "timestamp")
# RecBole reads with pandas' defaults, to which these words are missing values (and then the padding item).
_READ_AS_MISSING = (
    *("", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>"),
    *("N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null"),
)


@dataclass
class _Source:
    """What was read and checked, before anything is written."""

    interactions: pd.DataFrame  # user_id, item_id (text), then rating and timestamp where there
    split: np.ndarray | None  # "train" | "valid" | "test" per row
    modalities: dict[str, list[Path]] = field(default_factory=dict)  # name -> feature file [, ids file]


def convert(source: str | Path, to: str | Path, kind: str, name: str | None = None) -> Path:
    """Convert a data folder.

    Writes ``<to>/<name>/`` (``<name>.train.inter``, ``.valid.inter``, ``.test.inter``, or one ``<name>.inter`` where
    the source has no split; the feature files as they are) and ``<to>/<name>.yaml``, which names all of it:
    ``run_recbole_guider.py --dataset=<name> --config_files=<to>/<name>.yaml`` runs at once, from any folder.
    Everything is checked first and moved into place at the end, so a failure leaves nothing behind.

    Args:
        source: folder to read.
        to: folder to write into, made if need be.
        kind: ``csv`` or ``mmrec``.
        name: of the data set; default: the name of the source folder.

    Returns:
        Path of the YAML file.

    Raises:
        GuiderError: what is missing or wrong in the source, or a target that already exists, by name.
    """
    source, to = Path(source), Path(to)
    if kind not in KINDS:
        raise GuiderError(f"convert --from {kind!r} does not exist; allowed: {', '.join(KINDS)}.")
    if not source.is_dir():
        raise GuiderError(f"{source} is not a folder; convert reads a folder with the interactions and the features.")
    name = name or source.resolve().name
    check_name(name)
    if name == "ml-100k":
        raise GuiderError("the name 'ml-100k' belongs to the data set inside RecBole; choose another with --name.")
    yaml_file = new_data_set(to, name)

    read = _read_csv(source) if kind == "csv" else _read_mmrec(source)
    read.modalities = _find_features(source, read.interactions["item_id"])

    with written_together(yaml_file) as (folder, text_file):
        _write_interactions(folder, name, read)
        for files in read.modalities.values():
            for file in files:
                shutil.copyfile(file, folder / file.name)
        text_file.write_text(_settings(name, to, read), encoding="utf-8")
    return yaml_file


def _read_csv(source: Path) -> _Source:
    path = source / "interactions.csv"
    frame = _read_table(path, ",", {"user": "user_id", "item": "item_id"})
    split = None
    if "split" in frame:
        wrong = frame.index[~frame["split"].isin(SPLITS)]
        if len(wrong):
            raise GuiderError(
                f"{_place(path, wrong[0])}: split {frame['split'].iloc[wrong[0]]!r} is unknown; "
                f"allowed: {', '.join(SPLITS)}."
            )
        split = frame["split"].to_numpy(dtype=str)
    return _Source(_interactions(frame, path), _check_split(split, path))


def _read_mmrec(source: Path) -> _Source:
    found = sorted(source.glob("*.inter"))
    if len(found) != 1:
        names = ", ".join(file.name for file in found) or "none"
        raise GuiderError(f"{source} must hold exactly one .inter file; found: {names}.")
    path = found[0]
    frame = _read_table(path, "\t", {"userID": "user_id", "itemID": "item_id", "x_label": "split"})
    labels = dict(zip(("0", "1", "2"), SPLITS, strict=True))
    wrong = frame.index[~frame["split"].isin(labels)]
    if len(wrong):
        raise GuiderError(
            f"{_place(path, wrong[0])}: x_label {frame['split'].iloc[wrong[0]]!r} is unknown; "
            f"allowed: 0 (train), 1 (valid), 2 (test)."
        )
    return _Source(_interactions(frame, path), _check_split(frame["split"].map(labels).to_numpy(dtype=str), path))


def _read_table(path: Path, separator: str, required: dict[str, str]) -> pd.DataFrame:
    """All columns as text; the required ones under their new names."""
    # the header is read as a row: pandas would rename columns that are there twice
    table = read_table(path, separator, header=None, keep_default_na=False)
    columns = table.iloc[0].tolist()
    for column, new in required.items():
        if column not in columns:
            raise GuiderError(f"{path} has no column {column!r}; it has {', '.join(columns)}.")
        if new != column and new in columns:
            raise GuiderError(f"{path} has a column {column!r}, which is read, and a column {new!r}; remove that one.")
    for column in (*required, "split", *_FLOATS):
        if columns.count(column) > 1:
            raise GuiderError(f"{path} has more than one column {column!r}; keep one of them.")
    frame = table.iloc[1:].reset_index(drop=True)
    if frame.empty:
        raise GuiderError(f"{path} has no rows.")
    frame.columns = pd.Index([required.get(column, column) for column in columns])
    return frame


def _place(path: Path, row: int) -> str:
    """The file and the line, from 1, of a row of its table, from 0; blank lines are no rows."""
    with path.open(encoding="utf-8") as file:
        filled = (number for number, line in enumerate(file, start=1) if line.strip(" \r\n"))
        return f"{path}, line {next(islice(filled, row + 1, None))}"


def _interactions(frame: pd.DataFrame, path: Path) -> pd.DataFrame:
    for column in ("user_id", "item_id"):
        wrong = frame.index[frame[column].isin(_READ_AS_MISSING) | frame[column].str.contains("[\t\n\r]", regex=True)]
        if len(wrong):
            raise GuiderError(
                f"{_place(path, wrong[0])}: {column} {str(frame[column].iloc[wrong[0]])!r} cannot be a token; "
                f"it must not be empty, contain a tab or a line break, or be a word for a missing value."
            )
    kept = ["user_id", "item_id"]
    for column in _FLOATS:
        if column in frame:
            numbers = pd.to_numeric(frame[column], errors="coerce")
            wrong = frame.index[~np.isfinite(numbers)]
            if len(wrong):
                raise GuiderError(
                    f"{_place(path, wrong[0])}: {column} {frame[column].iloc[wrong[0]]!r} is not a finite number."
                )
            kept.append(column)
    dropped = [column for column in frame.columns if column not in (*kept, "split")]
    if dropped:
        getLogger().info(f"{path}: columns {', '.join(dropped)} are left out.")
    return frame[kept]


def _check_split(split: np.ndarray | None, path: Path) -> np.ndarray | None:
    if split is not None:
        for part in SPLITS:
            if not (split == part).any():
                raise GuiderError(f"{path} has no row in the split {part!r}; all of {', '.join(SPLITS)} are needed.")
    return split


def _find_features(source: Path, items: pd.Series) -> dict[str, list[Path]]:
    modalities: dict[str, list[Path]] = {}
    distinct = np.asarray(items.unique(), dtype=str)
    for path in sorted(source.glob("*_feat.npy")):
        name = path.name[: -len("_feat.npy")]
        if not name:
            raise GuiderError(f"{path} has no modality in its name: call it e.g. image_feat.npy.")
        if name == BEHAVIOUR:
            raise GuiderError(f"{path}: a modality cannot be called {name!r}, AMSC's name of co-occurrence; rename it.")
        array = read_array(path, f"modality {name!r}")
        if array.dtype.kind == "b":
            raise GuiderError(f"modality {name!r}: {path} holds {array.dtype}, not numbers.")
        ids_file = source / f"{name}_ids.txt"
        if ids_file.exists():
            ids = np.array(read_ids(ids_file, len(array), f"modality {name!r}"), dtype=str)
            rows = np.flatnonzero(np.isin(ids, distinct))
            if len(rows) == 0:
                raise GuiderError(f"modality {name!r}: no token of {ids_file} is an item of the interactions.")
            tokens = ids[rows]
            modalities[name] = [path, ids_file]
        else:
            rows, tokens = row_numbers(distinct, len(array), path, f"modality {name!r}"), distinct
            modalities[name] = [path]
        for _ in finite_blocks(name, array, rows, tokens):
            pass  # what a run would refuse is refused here
    return modalities


def _write_interactions(folder: Path, name: str, read: _Source) -> None:
    types = {"user_id": "token", "item_id": "token", "rating": "float", "timestamp": "float"}
    frame = read.interactions.rename(columns={column: f"{column}:{types[column]}" for column in types})
    parts = {f"{name}.inter": frame}
    if read.split is not None:
        parts = {f"{name}.{part}.inter": frame[read.split == part] for part in SPLITS}
    for file, rows in parts.items():
        rows.to_csv(folder / file, sep="\t", index=False)


def _known_modalities(name: str) -> list[str]:
    file = dataset_configs_dir() / f"{name}.yaml"
    if not file.is_file():
        return []
    return list((yaml.safe_load(file.read_text(encoding="utf-8")) or {}).get("modalities") or {})


def _settings(name: str, to: Path, read: _Source) -> str:
    sections: list[tuple[str, dict]] = []
    sections.append(("", {"dataset": name}))
    sections.append(
        (f"The folder that holds {name}/; change it when the data moves.", {"data_path": str(to.resolve())})
    )
    load: dict = {"load_col": {"inter": list(read.interactions.columns)}}
    load["benchmark_filename"] = None if read.split is None else list(SPLITS)
    split_by = "RecBole splits it (eval_args)." if read.split is None else "The splits are those of the source."
    sections.append((split_by, load))
    repeated = int(read.interactions.duplicated(["user_id", "item_id"]).sum())
    if repeated and read.split is None:
        getLogger().info(f"{repeated} rows repeat a pair; the first of each counts (rm_dup_inter in the YAML file).")
        sections.append((f"{repeated} rows repeat a pair; the first of each counts.", {"rm_dup_inter": "first"}))
    elif repeated:
        getLogger().warning(f"{repeated} rows repeat a pair, perhaps across the splits; they are left as they are.")
    blocks: dict = {}
    for modality, files in read.modalities.items():
        blocks[modality] = dict(zip(("file", "ids"), (file.name for file in files), strict=False))
    # A data set that the package knows may have content that this copy lacks; null takes it out.
    blocks |= {modality: None for modality in _known_modalities(name) if modality not in blocks}
    if read.modalities:
        sections.append(("Content of the items, in the same folder.", {"modalities": blocks}))
    else:
        comment = "No *_feat.npy was found; content goes here, e.g. modalities: {image: {file: image_feat.npy}}"
        sections.append((comment, {"modalities": blocks}))
    # a list can be as long as the catalogue
    n_items = read.interactions["item_id"].nunique()
    cutoffs = [k for k in (10, 20) if k <= n_items] or [n_items]
    sections.append(
        (
            "Measured as in the literature on these data sets: only training items are hidden from the ranking.",
            {"metrics": ["Recall", "NDCG", "Precision"], "topk": cutoffs, "valid_metric": f"Recall@{cutoffs[-1]}"},
        )
    )
    sections.append(("", {"eval_mask": "mmrec", "stopping_step": 20}))
    lines = [f"# Data set {name}, made by `recbole-guider convert`."]
    lines += [f"# Run: {run_command('run_recbole_guider.py', to / (name + '.yaml'), name)}"]
    for comment, block in sections:
        lines += [f"\n# {comment}"] if comment else []
        for key, value in block.items():
            # Lists and flat blocks on one line, as people write them.
            style = None if isinstance(value, (dict, list)) else False
            text = yaml.safe_dump({key: value}, sort_keys=False, default_flow_style=style, allow_unicode=True)
            lines.append(text.rstrip())
    return "\n".join(lines) + "\n"
