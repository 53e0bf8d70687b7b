"""Item content: readers that turn files into aligned matrices with a presence mask.

Three ways in, and they can be mixed:

1. extra atomic files, RecBole's own ``additional_feat_suffix`` (the id field of each file named in
   ``alias_of_item_id``): the ``float`` and ``float_seq`` columns of ``<dataset>.<suffix>`` are modality ``<suffix>``;
2. arrays, ``modalities: {image: {file: image_feat.npy, ids: image_ids.txt}}``: memory-mapped, only the rows that
   are needed are read. ``ids`` holds one item token per line, in the order of the rows; without it row r belongs
   to the item token ``r``, counted from 0. ``image: image_feat.npy`` is the short form;
3. columns of the ``.item`` file, ``modalities: {title: {columns: [movie_title], encoder: tfidf_svd, dim: 64}}``.
   The file is read here, not through RecBole's ``item_feat``: nothing about RecBole's own data set changes.

Whatever the way in, an item that RecBole does not know never enters, so the ranked catalogue does not grow.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import sparse
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.preprocessing import StandardScaler

from recbole_guider.data.tables import read_atomic
from recbole_guider.utils.errors import GuiderError, did_you_mean
from recbole_guider.utils.paths import user_path

MODALITY_KEYS = ("file", "ids", "columns", "encoder", "dim", "seed")
DEFAULT_DIM = 64
DEFAULT_SEED = 2020
# Up to this many distinct tokens a token column is a set of categories; above, it is text.
MAX_CATEGORIES = 256
_BLOCK_BYTES = 16 * 2**20

EXAMPLE = (
    "modalities: {image: {file: image_feat.npy}} for an array beside the interactions, or "
    "modalities: {title: {columns: [title], encoder: tfidf_svd}} for a column of the .item file"
)


@dataclass(frozen=True)
class ItemFeatures:
    """Content of every item in one modality, aligned to RecBole's internal item ids.

    Attributes:
        values: float32 [n_items, d]. Row 0, RecBole's padding item, is zero. Items without content hold the mean
            of those that have some.
        present: bool [n_items]. True where the item has content of its own; False for row 0.
    """

    values: np.ndarray
    present: np.ndarray

    @property
    def dim(self) -> int:
        """Width d of the modality."""
        return int(self.values.shape[1])

    @property
    def coverage(self) -> float:
        """Share of the items (padding aside) that have content."""
        return float(self.present[1:].mean()) if len(self.present) > 1 else 0.0


def load_item_features(config: Any, dataset: Any) -> dict[str, ItemFeatures]:
    """All modalities of a data set, in the order of the ``modalities`` block, then of ``additional_feat_suffix``.

    Args:
        config: a RecBole ``Config`` (only ``config[key]`` is used).
        dataset: a RecBole ``Dataset`` whose ids are already remapped; for atomic feature files a
            ``GuiderDataset``, which keeps their raw values.

    Returns:
        name -> :class:`ItemFeatures`; empty when the configuration names no content.

    Raises:
        GuiderError: a file, row, column, key or encoder is missing or wrong, or a value is NaN or infinite; the
            message names the modality and what would be right.
    """
    tokens = _item_tokens(dataset)
    features: dict[str, ItemFeatures] = {}
    for name, block in modality_blocks(config).items():
        if "file" in block:
            features[name] = _from_array(name, block, tokens, config)
        else:
            features[name] = _from_columns(name, block, tokens, config)
    for name, (item_ids, rows) in getattr(dataset, "atomic_features", {}).items():
        if name in features:
            raise GuiderError(
                f"modality {name!r} is given twice, in modalities and in additional_feat_suffix; rename one of them."
            )
        features[name] = align(name, item_ids, rows, tokens)
    return features


def require_content(config: Any, features: Mapping[str, Any], *, behaviour_suffices: bool = True) -> None:
    """Raise the error that tells somebody whose data set has no content what to add.

    Args:
        config: a RecBole ``Config``.
        features: name -> anything; only its emptiness matters.
        behaviour_suffices: whether the caller can work from behaviour alone (the calibrator can, a multi-modal
            backbone cannot). Then ``guider.calibration: {behaviour: true, modalities: []}`` passes.

    Raises:
        GuiderError: there is no content and behaviour alone was not asked for.
    """
    if features:
        return
    guider = config["guider"] or {}
    calibration = guider.get("calibration", {}) if isinstance(guider, Mapping) else {}
    if behaviour_suffices and calibration.get("behaviour") and calibration.get("modalities") == []:
        return
    message = f"data set {config['dataset']!r} has no content; add it to the configuration, e.g. {EXAMPLE}"
    if behaviour_suffices:
        message += "; to calibrate on behaviour alone set guider.calibration: {behaviour: true, modalities: []}"
    raise GuiderError(message + ".")


def modality_blocks(config: Any) -> dict[str, dict[str, Any]]:
    """The ``modalities`` block, checked and in its long form: name -> its settings.

    A string stands for ``{file: string}``; a modality set to null or false is left out.

    Raises:
        GuiderError: a block that is no mapping, an unknown key (with the nearest name), or keys that exclude
            each other.
    """
    blocks = config["modalities"]
    if not blocks:
        return {}
    if not isinstance(blocks, Mapping):
        raise GuiderError(f"modalities must map names to their source, not {blocks!r}; e.g. {EXAMPLE}.")
    checked = {}
    for name, block in blocks.items():
        if block is None or block is False:
            continue
        if isinstance(block, str):
            block = {"file": block}
        if not isinstance(block, Mapping):
            raise GuiderError(f"modalities.{name} must be a file name or a block, not {block!r}; e.g. {EXAMPLE}.")
        checked[str(name)] = _check_block(str(name), dict(block))
    return checked


def modality_files(config: Any) -> list[Path]:
    """The files that the ``modalities`` block reads (arrays, id lists, the ``.item`` file), existing or not."""
    files = []
    for block in modality_blocks(config).values():
        if "file" in block:
            files += [beside_data(config, block[key]) for key in ("file", "ids") if block.get(key)]
        else:
            files.append(_item_file(config))
    return files


def align(
    name: str,
    item_ids: np.ndarray,
    rows: np.ndarray,
    tokens: np.ndarray,
    take: np.ndarray | None = None,
) -> ItemFeatures:
    """Put feature rows at RecBole's internal item ids, fill the gaps with the mean, and check every value.

    Args:
        name: modality, for messages.
        item_ids: int [m], distinct internal item ids (1..n_items-1).
        rows: [k, d], any real dtype; may be a memory map.
        tokens: [n_items] original item tokens, for messages.
        take: int [m], the row of ``rows`` for each of ``item_ids``; default: row j belongs to ``item_ids[j]``.

    Returns:
        :class:`ItemFeatures`.

    Raises:
        GuiderError: no row belongs to an item, or a value is NaN or infinite.
    """
    n_items, dim = len(tokens), rows.shape[1]
    if len(item_ids) == 0:
        raise GuiderError(
            f"modality {name!r} has no row for any of the {n_items - 1} items; check that its ids are item tokens "
            f"such as {str(tokens[1])!r}."
        )
    take = np.arange(len(item_ids)) if take is None else take
    values = np.zeros((n_items, dim), dtype=np.float32)
    present = np.zeros(n_items, dtype=bool)
    present[item_ids] = True
    total = np.zeros(dim, dtype=np.float64)
    for part, block in finite_blocks(name, rows, take, tokens[item_ids]):
        values[item_ids[part]] = block
        total += block.sum(axis=0, dtype=np.float64)
    absent = ~present
    absent[0] = False
    values[absent] = (total / len(item_ids)).astype(np.float32)
    return ItemFeatures(values=values, present=present)


def finite_blocks(
    name: str, rows: np.ndarray, take: np.ndarray, tokens: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Read rows as float32, a block at a time in the order of the file, and check every value.

    Args:
        name: modality, for messages.
        rows: [k, d], any real dtype; may be a memory map.
        take: int [m], the rows to read.
        tokens: [m], the item token of each, for messages.

    Yields:
        Positions in ``take`` [b], and their rows [b, d].

    Raises:
        GuiderError: a value is NaN or infinite.
    """
    # Increasing row numbers turn the reading of a memory map into one pass over the file.
    order = np.argsort(take, kind="stable")
    step = max(1, _BLOCK_BYTES // max(1, rows.shape[1] * rows.dtype.itemsize))
    for start in range(0, len(order), step):
        part = order[start : start + step]
        with np.errstate(over="ignore"):  # too large for float32: becomes infinite, and is reported as such
            block = np.asarray(rows[take[part]]).astype(np.float32, copy=False)
        finite = np.isfinite(block).all(axis=1)
        if not finite.all():
            raise GuiderError(
                f"modality {name!r} holds NaN or infinite values (as float32), first in the row of item "
                f"{str(tokens[part[np.flatnonzero(~finite)[0]]])!r}; clean the file, or leave such items out."
            )
        yield part, block


# --- arrays ---------------------------------------------------------------------------------------------------


def read_array(path: Path, what: str) -> np.ndarray:
    """Open a two-dimensional numeric ``.npy`` file as a memory map, without running anything it holds.

    Raises:
        GuiderError: missing, not a ``.npy`` array, not numeric, or not of shape [rows, width >= 1].
    """
    if not path.is_file():
        raise GuiderError(f"{what}: file {path} does not exist.")
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise GuiderError(f"{what}: {path} is not a plain .npy array of numbers ({error}).") from error
    if not isinstance(array, np.ndarray):
        raise GuiderError(f"{what}: {path} is an archive; save one array of shape [items, width] with np.save.")
    if array.dtype.kind not in "fiub":
        raise GuiderError(f"{what}: {path} holds {array.dtype}, not numbers.")
    if array.ndim != 2 or array.shape[1] == 0:
        raise GuiderError(f"{what}: {path} has shape {list(array.shape)}; expected [items, width].")
    return array


def read_ids(path: Path, rows: int, what: str) -> list[str]:
    """Item tokens of a feature file's rows, one per line.

    Raises:
        GuiderError: missing, not UTF-8, not one token per row, an empty line, or a token that occurs twice.
    """
    if not path.is_file():
        raise GuiderError(f"{what}: ids file {path} does not exist.")
    try:
        ids = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except UnicodeDecodeError as error:
        raise GuiderError(f"{what}: ids file {path} is not UTF-8 text; save it as UTF-8.") from error
    while ids and not ids[-1]:
        ids.pop()
    if len(ids) != rows:
        raise GuiderError(f"{what}: {path} has {len(ids)} lines, but the feature file has {rows} rows; one token each.")
    seen: set[str] = set()
    for number, token in enumerate(ids, start=1):
        if not token or token in seen:
            problem = f"token {token!r} a second time" if token else "an empty line"
            raise GuiderError(f"{what}: {path} has {problem} in line {number}; every row needs its own item token.")
        seen.add(token)
    return ids


def row_numbers(tokens: Iterable[Any], rows: int, path: Path, what: str) -> np.ndarray:
    """Row of each item under the convention "row r belongs to item token r, counted from 0".

    Args:
        tokens: item tokens.
        rows: number of rows of the file.
        path: the file, for messages.
        what: who asks, for messages.

    Raises:
        GuiderError: a token that is no row number, or a file with too few rows.
    """
    texts = [str(token) for token in tokens]
    for text in texts:
        if not (text.isascii() and text.isdigit() and str(int(text)) == text):
            raise GuiderError(
                f"{what}: item token {text!r} is not a row number, so {path.name} needs `ids:`, a file with the item "
                f"token of each row, one per line."
            )
    numbers = np.array([int(text) for text in texts], dtype=np.int64)
    if len(numbers) and np.max(numbers) >= rows:
        raise GuiderError(
            f"{what}: {path} has {rows} rows, but item token {np.max(numbers)} needs at least {np.max(numbers) + 1} "
            f"(row r belongs to item token r, counted from 0); if rows are missing or ordered otherwise, add `ids:`, "
            f"a file with the item token of each row, one per line."
        )
    return numbers


def _from_array(name: str, block: Mapping[str, Any], tokens: np.ndarray, config: Any) -> ItemFeatures:
    what = f"modalities.{name}"
    path = beside_data(config, block["file"])
    rows = read_array(path, what)
    if block.get("ids"):
        row_of = {token: row for row, token in enumerate(read_ids(beside_data(config, block["ids"]), len(rows), what))}
        found = [(item, row_of[str(token)]) for item, token in enumerate(tokens) if item and str(token) in row_of]
        pairs = np.array(found, dtype=np.int64).reshape(-1, 2)
        return align(name, pairs[:, 0], rows, tokens, take=pairs[:, 1])
    return align(name, np.arange(1, len(tokens)), rows, tokens, take=row_numbers(tokens[1:], len(rows), path, what))


# --- columns of the .item file --------------------------------------------------------------------------------


def _tfidf_svd(values: pd.Series, ftype: str, separator: str, dim: int | None, seed: int) -> np.ndarray:
    """Text: tf-idf of the words, reduced to ``dim`` (64) dimensions by a seeded truncated SVD."""
    try:
        counts = TfidfVectorizer(sublinear_tf=True, dtype=np.float64).fit_transform(values.fillna(""))
    except ValueError as error:  # scikit-learn's "empty vocabulary"
        raise GuiderError("holds no words") from error
    return _reduce(counts, DEFAULT_DIM if dim is None else dim, seed)


def _multi_hot(values: pd.Series, ftype: str, separator: str, dim: int | None, seed: int) -> np.ndarray:
    """Categories: one 0/1 column per distinct token; reduced by SVD where ``dim`` is given and smaller."""
    split = partial(_tokens, ftype=ftype, separator=separator)
    try:
        hot = CountVectorizer(analyzer=split, binary=True, dtype=np.float64).fit_transform(values.fillna(""))
    except ValueError as error:
        raise GuiderError("holds no tokens") from error
    return _reduce(hot, dim, seed) if dim is not None and dim < hot.shape[1] else hot.toarray()


def _numeric(values: pd.Series, ftype: str, separator: str, dim: int | None, seed: int) -> np.ndarray:
    """Numbers (or vectors of numbers): each dimension to mean 0 and standard deviation 1; gaps become 0.

    In a ``token`` column (a year, say) up to a tenth of the values may be words such as "unknown"; they are gaps.
    """
    if ftype == "token":
        if not _mostly_numbers(values):
            word = next(iter(values[pd.to_numeric(values, errors="coerce").isna()].dropna()), "")
            raise GuiderError(f"holds {word!r}, which is not a number")
        matrix = pd.to_numeric(values, errors="coerce").to_numpy(dtype=np.float64)[:, None]
    else:
        matrix = _number_lists(values, separator if ftype.endswith("_seq") else None)
    if np.isnan(matrix).all(axis=0).any():
        raise GuiderError("holds no numbers")
    return np.nan_to_num(StandardScaler().fit_transform(matrix), nan=0.0)


def _mostly_numbers(values: pd.Series) -> bool:
    filled = values.dropna()
    return len(filled) > 0 and float(pd.to_numeric(filled, errors="coerce").notna().mean()) >= 0.9


def _number_lists(values: pd.Series, separator: str | None) -> np.ndarray:
    """float64 [rows, width], NaN for empty cells; ``separator`` None: one number per cell."""
    lists = [[part for part in text.split(separator) if part] if separator else [text] for text in values.fillna("")]
    lists = [[] if parts == [""] else parts for parts in lists]
    matrix = np.full((len(lists), max([1, *map(len, lists)])), np.nan)
    for row, parts in enumerate(lists):
        if not parts:
            continue
        if len(parts) != matrix.shape[1]:
            raise GuiderError(f"holds {len(parts)} numbers in one row and {matrix.shape[1]} in another")
        try:
            matrix[row] = [float(part) for part in parts]
        except ValueError as error:
            raise GuiderError(f"holds {' '.join(parts)!r}, which is not a number") from error
    return matrix


ENCODERS: dict[str, Callable[[pd.Series, str, str, int | None, int], np.ndarray]] = {
    "tfidf_svd": _tfidf_svd,
    "multi_hot": _multi_hot,
    "numeric": _numeric,
}


def default_encoder(values: pd.Series, ftype: str, separator: str) -> str:
    """Encoder for a column that names none.

    ``float`` and ``float_seq``, and ``token`` columns of (nine tenths) numbers, such as a year: ``numeric``. Other
    tokens: ``multi_hot`` up to 256 distinct ones, ``tfidf_svd`` above.
    """
    if ftype in ("float", "float_seq"):
        return "numeric"
    filled = values.dropna()
    if ftype == "token" and _mostly_numbers(filled):
        return "numeric"
    distinct: set[str] = set()
    for text in filled:
        distinct.update(_tokens(text, ftype, separator))
        if len(distinct) > MAX_CATEGORIES:
            return "tfidf_svd"
    return "multi_hot"


def _from_columns(name: str, block: Mapping[str, Any], tokens: np.ndarray, config: Any) -> ItemFeatures:
    what = f"modalities.{name}"
    path = _item_file(config)
    if not path.is_file():
        raise GuiderError(f"{what}: file {path} does not exist; `columns` are read from it.")
    frame, types = _read_atomic(path, config)
    id_field = config["ITEM_ID_FIELD"]
    if id_field not in types:
        raise GuiderError(f"{what}: {path} has no column {id_field!r}, the item id; it has {', '.join(types)}.")
    columns: list[str] = block["columns"]
    content = [column for column in types if column != id_field]
    for column in columns:
        if column == id_field:
            raise GuiderError(
                f"{what}.columns names {column!r}, the item id, which is no content; "
                f"{path} has {', '.join(content) or 'no other columns'}."
            )
        if column not in types:
            raise GuiderError(
                f"{what}: {path} has no column {column!r}{did_you_mean(column, content)} It has {', '.join(content)}."
            )
    # Only items of the catalogue: what the encoders learn does not depend on items that nobody sees.
    index = pd.Series(np.arange(len(tokens)), index=pd.Index(tokens.astype(str)))
    frame = frame[frame[id_field].isin(index.index[1:])].drop_duplicates(id_field, keep="first")
    frame = frame[frame[columns].notna().any(axis=1)]
    item_ids = index.loc[frame[id_field].to_numpy()].to_numpy(dtype=np.int64)
    if len(frame) == 0:
        return align(name, item_ids, np.zeros((0, 1), dtype=np.float32), tokens)
    separator = config["seq_separator"] or " "
    parts = []
    for column in columns:
        encoder = _encoder_of(block, column) or default_encoder(frame[column], types[column], separator)
        try:
            parts.append(
                ENCODERS[encoder](
                    frame[column], types[column], separator, block.get("dim"), block.get("seed", DEFAULT_SEED)
                )
            )
        except GuiderError as error:
            raise GuiderError(f"{what}: column {column!r} of {path} {error}, so {encoder} cannot encode it.") from error
    return align(name, item_ids, np.hstack(parts), tokens)


def _read_atomic(path: Path, config: Any) -> tuple[pd.DataFrame, dict[str, str]]:
    """A whole atomic file as text, missing values as NaN, and the type of each column."""
    frame = read_atomic(path, config, keep_default_na=False, na_values=[""])
    types = {}
    for head in frame.columns:
        column, _, ftype = str(head).partition(":")
        types[column] = ftype.strip()
    frame.columns = pd.Index(list(types))
    return frame.astype(object), types


def _tokens(text: str, ftype: str, separator: str) -> list[str]:
    if ftype == "token_seq":
        return [token for token in text.split(separator) if token]
    return [text] if text else []


def _reduce(matrix: sparse.spmatrix, dim: int, seed: int) -> np.ndarray:
    """Truncated SVD to at most ``dim`` dimensions; dimensions beyond the rank are dropped."""
    rank = min(dim, *matrix.shape)
    svd = TruncatedSVD(n_components=rank, random_state=seed)
    reduced = svd.fit_transform(matrix)
    keep = svd.singular_values_ > 1e-6 * svd.singular_values_[0]
    return reduced[:, keep]


# --- checks and small helpers ---------------------------------------------------------------------------------


def _check_block(name: str, block: dict[str, Any]) -> dict[str, Any]:
    what = f"modalities.{name}"
    for key in block:
        if key not in MODALITY_KEYS:
            raise GuiderError(
                f"{what}.{key} is not a setting{did_you_mean(key, MODALITY_KEYS)} Allowed: {', '.join(MODALITY_KEYS)}."
            )
    block = {key: value for key, value in block.items() if value is not None}
    if ("file" in block) == ("columns" in block):
        raise GuiderError(f"{what} needs either `file` or `columns`; e.g. {EXAMPLE}.")
    excluded = ("encoder", "dim", "seed") if "file" in block else ("ids",)
    for key in excluded:
        if key in block:
            other = "columns" if "file" in block else "file"
            raise GuiderError(f"{what}.{key} belongs to a modality with `{other}`; remove it.")
    for key in ("file", "ids"):
        if key in block and not isinstance(block[key], (str, os.PathLike)):
            raise GuiderError(f"{what}.{key} must be a file name, not {block[key]!r}.")
    for key, least in (("dim", 1), ("seed", 0)):
        value = block.get(key, least)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise GuiderError(f"{what}.{key} must be an integer of at least {least}, not {value!r}.")
    if "columns" in block:
        columns = [block["columns"]] if isinstance(block["columns"], str) else block["columns"]
        if not isinstance(columns, Sequence) or not columns or not all(isinstance(c, str) for c in columns):
            raise GuiderError(f"{what}.columns must be a list of column names, not {block['columns']!r}.")
        block["columns"] = list(columns)
        for column in columns:
            _encoder_of(block, column, what)
    return block


def _encoder_of(block: Mapping[str, Any], column: str, what: str = "") -> str | None:
    encoder = block.get("encoder")
    if isinstance(encoder, Mapping):
        for key in encoder:
            if key not in block["columns"]:
                raise GuiderError(f"{what}.encoder names {key!r}, which is not one of its columns {block['columns']}.")
        encoder = encoder.get(column)
    if encoder is not None and encoder not in ENCODERS:
        raise GuiderError(
            f"{what}.encoder {encoder!r} does not exist{did_you_mean(encoder, ENCODERS)} "
            f"Allowed: {', '.join(ENCODERS)}."
        )
    return encoder


def _item_tokens(dataset: Any) -> np.ndarray:
    return np.asarray(dataset.field2id_token[dataset.iid_field])


def _item_file(config: Any) -> Path:
    return Path(config["data_path"]) / f"{config['dataset']}.item"


def beside_data(config: Any, file: str | os.PathLike[str]) -> Path:
    """A file that a setting names: in the folder of the data set, unless its path is absolute."""
    return Path(config["data_path"]) / user_path(file)
