"""AMSC on a log of interactions that no machine can hold: parquet files in, parquet files out, on Ray Data.

Four passes over the log, each in pieces of bounded size:

1. split: rows are dealt to buckets by user, so that a bucket holds whole profiles;
2. count: profile sizes and item degrees;
3. sample: the profiles of some users, which the driver learns from (:func:`recbole_guider.amsc.fit.fit_calibrator`);
4. calibrator: what was learned goes to every machine once, and each bucket is scored and written.

Everything that is learned follows from sums of integers and from a sample that depends on (seed, user) alone, so the
result does not depend on files, buckets or machines, and is the one of :func:`recbole_guider.amsc.calibrate`.
"""

from __future__ import annotations

import glob
import json
import logging
import pickle
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import ArrayLike, NDArray

from recbole_guider.amsc.calibrator import Calibrator
from recbole_guider.amsc.fit import LogCounts, UserSample, check_modalities, fit_calibrator, learning_sample
from recbole_guider.amsc.folds import UserFolds
from recbole_guider.amsc.profiles import build_profiles
from recbole_guider.amsc.settings import CalibrationSettings
from recbole_guider.amsc.similarity import Modality, modality_list
from recbole_guider.utils.atomic_io import require_folder
from recbole_guider.utils.errors import GuiderError
from recbole_guider.utils.interactions import InteractionIndex

logger = logging.getLogger(__name__)

#: The columns that the output adds.
ADDED = ("clean_probability", "is_clean", "score")
#: The summary beside the output files; readers of parquet folders skip names that begin with an underscore.
SUMMARY = "_summary.json"
#: Interactions and bytes of a bucket, about: what one worker holds.
BUCKET_ROWS = 2_000_000
BUCKET_BYTES = 268_435_456
# Rows that one task of the split pass holds.
_SPLIT_ROWS = 1_000_000
_SPLIT_BYTES = 134_217_728
_BUCKET_SEED = 1

Paths = str | PathLike[str] | Sequence[str | PathLike[str]]
Feature = ArrayLike | str | PathLike[str] | tuple[Any, Any]


@dataclass(frozen=True)
class ParquetCalibration:
    """What :func:`calibrate_parquet` wrote.

    Attributes:
        out: the folder.
        noise_rate: the share of noise among the interactions, estimated or as given.
        modality_weights: name -> alpha >= 0, together 1.
        n_true, n_false: the number of interactions (rows) that count as clean and as noise.
    """

    out: Path
    noise_rate: float
    modality_weights: dict[str, float]
    n_true: int
    n_false: int


def calibrate_parquet(
    interactions: Paths,
    features: Mapping[str, Feature],
    out: str | PathLike[str],
    *,
    user: str = "user",
    item: str = "item",
    settings: CalibrationSettings | None = None,
    seed: int = 0,
    buckets: int | None = None,
) -> ParquetCalibration:
    """AMSC for a log in parquet files, on all machines of a Ray cluster; memory does not grow with the log.

    The result is that of :func:`recbole_guider.amsc.calibrate` on the same integer ids. Ray is started on this machine,
    and stopped afterwards, where ``ray.init`` has not been called.

    Args:
        interactions: a parquet file, a folder of them, a pattern (``log/*.parquet``), or a list of these. All files
            have the same columns; those that are not named here are carried over.
        features: name -> the modality's rows: a ``.npy`` file or an array, float [n_items, d]. Row r belongs to item r.
            ``(rows, mask)`` with bool [n_items] where rows are missing. ``(rows, ids)``, with a text file of one item
            id in each line: row r belongs to the r-th id, and ids may be any text.
        out: the folder to write, which must not exist. It holds ``part-*.parquet`` with the columns of the input and
            ``clean_probability`` (float32), ``is_clean`` (bool), ``score`` (float32), the rows of a user together, and
            ``_summary.json``. On a cluster every machine has to see its parent folder, where the split log lies
            meanwhile.
        user: the column of the users: integers, or text, of which a 64-bit hash stands in for the id in random choices.
        item: the column of the items: integers or text.
        settings: ``guider.calibration``; None: the defaults.
        seed: of every random choice.
        buckets: pieces that the log is cut into, by user; None: as many as keep a piece near BUCKET_ROWS interactions.

    Returns:
        What the summary says.

    Raises:
        GuiderError: a file, column, feature or setting that is not right, ``out`` exists, an id without a row. Nothing
            is left behind then.

    Example:
        calibrate_parquet("log/*.parquet", {"text": "text.npy", "image": ("image.npy", "image_ids.txt")}, "calibrated")
    """
    settings = CalibrationSettings() if settings is None else settings
    if settings.method == "none":
        raise GuiderError("guider.calibration.method is none: there is nothing to calibrate, set it to amsc.")
    target = Path(out).absolute()  # Ray's workers run in another folder
    if target.exists():
        raise GuiderError(f"{target} exists already: name a folder that does not, or remove it.")
    if buckets is not None and buckets < 1:
        raise GuiderError(f"buckets is {buckets}: it must be a whole number >= 1.")
    if seed < 0:
        raise GuiderError(f"seed is {seed}: it must be a whole number >= 0.")
    require_folder(target.parent, "out")
    log = _Log.of(interactions, user, item)
    catalogue = _Catalogue.of(features, settings, log.item_type)

    target.parent.mkdir(parents=True, exist_ok=True)
    work = target.parent / f".{target.name}.{uuid.uuid4().hex}"
    work.mkdir()
    try:
        with _ray():
            result = _run(log, catalogue, settings, seed, work, buckets or log.n_buckets)
        summary = {
            "noise_rate": result.noise_rate,
            "modality_weights": result.modality_weights,
            "n_true": result.n_true,
            "n_false": result.n_false,
            "seed": seed,
            "settings": settings.model_dump(),
        }
        (work / "result" / SUMMARY).write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
        (work / "result").rename(target)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return ParquetCalibration(target, result.noise_rate, result.modality_weights, result.n_true, result.n_false)


# ---------------------------------------------------------------- what comes in


@dataclass(frozen=True)
class _Log:
    """The files of the log, checked."""

    files: list[str]
    row_groups: list[list[int]]
    user: str
    item: str
    schema: pa.Schema
    n_rows: int
    n_bytes: int

    @classmethod
    def of(cls, interactions: Paths, user: str, item: str) -> _Log:
        files = _files(interactions)
        schema: pa.Schema | None = None
        row_groups = []
        n_rows = n_bytes = 0
        for file in files:
            try:
                metadata = pq.read_metadata(file)
                own = metadata.schema.to_arrow_schema().remove_metadata()
            except (pa.ArrowInvalid, OSError) as error:
                raise GuiderError(f"{file} is not a parquet file that can be read: {error}") from None
            for column in (user, item):
                if column not in own.names:
                    raise GuiderError(f"{file} has no column {column!r}; it has {', '.join(own.names)}.")
                kind = own.field(column).type
                if not (pa.types.is_integer(kind) or _is_text(kind)):
                    raise GuiderError(f"Column {column!r} of {file} must hold integers or text, not {kind}.")
            taken = [name for name in ADDED if name in own.names]
            if taken:
                raise GuiderError(f"{file} has a column {taken[0]!r} already, which the output adds: rename it.")
            if schema is not None and not own.equals(schema):
                raise GuiderError(f"{file} has other columns or types than {files[0]}: all files must be alike.")
            schema = own
            groups = [metadata.row_group(k) for k in range(metadata.num_row_groups)]
            row_groups.append([group.num_rows for group in groups])
            n_rows += metadata.num_rows
            n_bytes += sum(group.total_byte_size for group in groups)
        if not n_rows:
            raise GuiderError(f"There is no interaction to calibrate: {', '.join(files[:3])} hold no rows.")
        return cls(files, row_groups, user, item, schema, n_rows, n_bytes)

    @property
    def item_type(self) -> pa.DataType:
        return self.schema.field(self.item).type

    @property
    def n_buckets(self) -> int:
        return max(-(-self.n_rows // BUCKET_ROWS), -(-self.n_bytes // BUCKET_BYTES))

    @property
    def split_rows(self) -> int:
        return max(min(_SPLIT_ROWS, _SPLIT_BYTES * self.n_rows // max(self.n_bytes, 1)), 1)

    def stretches(self) -> Iterator[tuple[str, list[int]]]:
        """(file, row groups that follow each other): what one task of the split pass reads."""
        for file, sizes in zip(self.files, self.row_groups, strict=True):
            first = 0
            for k in range(len(sizes)):
                if k + 1 == len(sizes) or sum(sizes[first : k + 2]) > self.split_rows:
                    yield file, list(range(first, k + 1))
                    first = k + 1


def _files(interactions: Paths) -> list[str]:
    several = [interactions] if isinstance(interactions, (str, PathLike)) else list(interactions)
    found: list[str] = []
    for one in several:
        path = Path(one)
        matches = glob.glob(str(path / "*.parquet") if path.is_dir() else str(path), recursive=True)
        if not matches:
            raise GuiderError(f"interactions: no parquet file matches {str(one)!r}.")
        found += sorted(str(Path(match).resolve()) for match in matches)
    if not found:
        raise GuiderError("interactions: name at least one parquet file.")
    return list(dict.fromkeys(found))


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


@dataclass(frozen=True)
class _Catalogue:
    """The items, and what is known of them.

    Attributes:
        rows: modality -> the array of its rows, as given.
        ids: modality -> the ids that its rows belong to; without an entry row r belongs to item r.
        masks: modality -> bool [n_items].
        n_items: the number of rows where those are items; None: the items are all ids there are.
        settings: which modalities are compared.
    """

    rows: dict[str, NDArray[Any]]
    ids: dict[str, pa.Array]
    masks: dict[str, NDArray[np.bool_]]
    n_items: int | None
    settings: CalibrationSettings

    @classmethod
    def of(cls, features: Mapping[str, Feature], settings: CalibrationSettings, item_type: pa.DataType) -> _Catalogue:
        rows, ids, masks = {}, {}, {}
        n_items: int | None = None
        first = ""
        wanted = list(features) if settings.modalities == "all" else settings.modalities
        for name, feature in features.items():
            if name not in wanted:
                continue
            values, extra = feature if isinstance(feature, tuple) else (feature, None)
            rows[name] = _rows(name, values)
            if isinstance(extra, (str, PathLike)):
                ids[name] = _ids(name, Path(extra), len(rows[name]), item_type)
                continue
            if _is_text(item_type):
                raise GuiderError(
                    f"Modality {name!r} needs the ids of its rows, since the items are text: give (rows, ids file)."
                )
            if n_items not in (None, len(rows[name])):
                raise GuiderError(
                    f"Modality {name!r} has {len(rows[name])} rows and {first!r} has {n_items}: row r belongs to item "
                    "r in both, so give as many rows, or (rows, ids file)."
                )
            n_items, first = len(rows[name]), name
            if extra is not None:
                masks[name] = np.asarray(extra, dtype=bool)
        for name, of_rows in ids.items():
            if n_items is not None and (pc.min(of_rows).as_py() < 0 or pc.max(of_rows).as_py() >= n_items):
                raise GuiderError(
                    f"The ids of modality {name!r} must lie in 0..{n_items - 1}, since {first!r} has {n_items} rows, "
                    f"one for each item; they lie in {pc.min(of_rows)}..{pc.max(of_rows)}."
                )
        # Names alone: an error of theirs does not wait for the data.
        named = modality_list({name: np.zeros((0, 1)) for name in features}, settings.modalities, 0)
        check_modalities(named, settings.behaviour)
        catalogue = cls(rows, ids, masks, n_items, settings)
        if n_items is not None:
            catalogue.modalities(None)  # shapes and NaN, before any work
        return catalogue

    def modalities(self, items: pa.Array | None) -> list[Modality]:
        """The modalities, rows in the order of ``items`` (None: item r is row r)."""
        n_items = len(items) if items is not None else self.n_items or 0
        aligned: dict[str, Any] = {}
        for name, rows in self.rows.items():
            if name not in self.ids:
                aligned[name] = (rows, self.masks[name]) if name in self.masks else rows
                continue
            at = self.ids[name] if items is None else pc.index_in(self.ids[name], value_set=items)
            at = at.to_numpy(zero_copy_only=False).astype(np.int64)
            values, present = np.zeros((n_items, rows.shape[1]), rows.dtype), np.zeros(n_items, dtype=bool)
            values[at], present[at] = rows, True
            aligned[name] = (values, present)
        return modality_list(aligned, self.settings.modalities, n_items)


def _rows(name: str, values: Any) -> NDArray[Any]:
    if isinstance(values, (str, PathLike)):
        if not Path(values).is_file():
            raise GuiderError(f"Modality {name!r}: there is no file {values}.")
        try:
            values = np.load(values, mmap_mode="r", allow_pickle=False)
        except ValueError as error:
            raise GuiderError(f"Modality {name!r}: {values} is not a .npy file of numbers: {error}") from None
    rows = np.asarray(values)
    if rows.ndim != 2:
        raise GuiderError(f"Modality {name!r} must have shape [n_items, d], not {list(rows.shape)}.")
    return rows


def _ids(name: str, file: Path, n_rows: int, item_type: pa.DataType) -> pa.Array:
    if not file.is_file():
        raise GuiderError(f"Modality {name!r}: there is no file {file}.")
    lines = file.read_text(encoding="utf-8").splitlines()
    if len(lines) != n_rows:
        raise GuiderError(f"{file} has {len(lines)} lines, but modality {name!r} has {n_rows} rows: one id for each.")
    try:
        ids = pa.array(lines, pa.string()).cast(pa.string() if _is_text(item_type) else pa.int64())
    except pa.ArrowInvalid:
        raise GuiderError(f"{file} holds ids that are no integers, but the items of the log are integers.") from None
    if len(ids.unique()) != len(ids):
        seen = pc.value_counts(ids)
        twice = seen.filter(pc.greater(seen.field("counts"), 1))[0]["values"]
        raise GuiderError(f"{file} holds the id {twice} twice: one row for each item.")
    return ids


# ---------------------------------------------------------------- the passes


class _ray:
    """Ray as it runs, or Ray on this machine for as long as the block lasts."""

    def __enter__(self) -> None:
        import ray

        self.mine = not ray.is_initialized()
        if self.mine:
            ray.init(address="local", include_dashboard=False, log_to_driver=False)

    def __exit__(self, *_: object) -> None:
        import ray

        if self.mine:
            ray.shutdown()


@dataclass(frozen=True)
class _Pieces:
    """The split log: files of one record batch for each bucket, and where in them each batch lies.

    Attributes:
        files: paths.
        offsets: int64 [n_files, n_buckets + 1], in bytes.
        schema: of the batches.
        user, item: the columns.
        items: the catalogue, sorted; None: an item's id is its row.
        n_items: size of the catalogue.
    """

    files: list[str]
    offsets: NDArray[np.int64]
    schema: pa.Schema
    user: str
    item: str
    items: pa.Array | None
    n_items: int

    def table(self, bucket: int, columns: list[str] | None = None) -> pa.Table:
        """The rows of one bucket."""
        batches = []
        for file, offsets in zip(self.files, self.offsets, strict=True):
            start, end = int(offsets[bucket]), int(offsets[bucket + 1])
            if start == end:
                continue
            with pa.OSFile(file) as source:
                source.seek(start)
                batch = pa.ipc.read_record_batch(pa.ipc.read_message(source.read_buffer(end - start)), self.schema)
            batches.append(batch if columns is None else batch.select(columns))
        schema = self.schema if columns is None else pa.schema([self.schema.field(name) for name in columns])
        return pa.Table.from_batches(batches, schema)

    def profiles(self, table: pa.Table) -> tuple[InteractionIndex, pa.Array]:
        """(profiles of the users of a bucket, their ids sorted); ``inverse`` leads from the rows of ``table``."""
        column = table[self.user].combine_chunks()
        ids = pc.unique(column)
        ids = ids.take(pc.array_sort_indices(ids))
        users = pc.index_in(column, value_set=ids).to_numpy(zero_copy_only=False)
        return build_profiles(users, self.item_rows(table), len(ids), self.n_items, _keys(ids)), ids

    def item_rows(self, table: pa.Table) -> NDArray[np.int64]:
        column = table[self.item].combine_chunks()
        if self.items is not None:
            column = pc.index_in(column, value_set=self.items)
        return column.to_numpy(zero_copy_only=False).astype(np.int64)


def _keys(ids: pa.Array) -> NDArray[np.int64]:
    """What random choices about users depend on: the integer, or a hash of the text."""
    if _is_text(ids.type):
        return pd.util.hash_array(ids.to_numpy(zero_copy_only=False), categorize=False).view(np.int64)
    return ids.to_numpy(zero_copy_only=False).astype(np.int64)


def _run(
    log: _Log, catalogue: _Catalogue, settings: CalibrationSettings, seed: int, work: Path, n_buckets: int
) -> ParquetCalibration:
    import ray

    (work / "split").mkdir()
    (work / "result").mkdir()
    pieces = _split(log, catalogue, work / "split", n_buckets)
    logger.info("split: %d interactions into %d buckets, %d items", log.n_rows, n_buckets, pieces.n_items)
    modalities = catalogue.modalities(pieces.items)
    shared = ray.put(pieces)

    def count(bucket: int) -> LogCounts | None:
        pieces = ray.get(shared)
        table = pieces.table(bucket, [pieces.user, pieces.item])
        return LogCounts.of(pieces.profiles(table)[0], settings) if len(table) else None

    counts = LogCounts(0, 0, 0, np.zeros(pieces.n_items, dtype=np.int64))
    for part in _over(range(n_buckets), count):
        counts = counts if part is None else counts + part

    logger.info("count: %d distinct pairs, %d of long enough profiles", counts.n_pairs, counts.n_judged)
    sample_of = learning_sample(counts, seed)

    def sample(bucket: int) -> tuple[pa.Array, NDArray[np.int64], NDArray[np.int64]] | None:
        pieces = ray.get(shared)
        table = pieces.table(bucket, [pieces.user, pieces.item])
        return _sampled(pieces.profiles(table), sample_of) if len(table) else None

    profiles = _joined([part for part in _over(range(n_buckets), sample) if part is not None], pieces.n_items)
    logger.info("sample: %d pairs of %d users to learn from", profiles.n_pairs, profiles.n_users)
    calibrator = fit_calibrator(counts, profiles, modalities, settings, seed).calibrator
    logger.info("fit: share of noise %.3f", calibrator.noise_rate)
    del profiles
    learned = ray.put(calibrator)
    folder = str(work / "result")

    def decide(bucket: int) -> tuple[int, int]:
        return _write(ray.get(shared), bucket, ray.get(learned), folder)

    n_true = n_false = 0
    for true, false in _over(range(n_buckets), decide):
        n_true, n_false = n_true + true, n_false + false
    logger.info("calibrator: %d interactions are clean, %d are noise", n_true, n_false)
    return ParquetCalibration(work, calibrator.noise_rate, calibrator.weights, n_true, n_false)


def _over(pieces: Sequence[Any], function: Callable[[Any], Any]) -> Iterator[Any]:
    """``function`` of every piece, as tasks of Ray Data; the results as they come, in any order."""
    import ray.data

    def call(batch: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        results = [pickle.dumps(function(pickle.loads(piece))) for piece in batch["piece"]]
        return {"result": np.array([*results, None], dtype=object)[:-1]}

    dataset = ray.data.from_items([{"piece": pickle.dumps(piece)} for piece in pieces])
    for row in dataset.map_batches(call, batch_size=1, batch_format="numpy").iter_rows():
        yield pickle.loads(row["result"])


def _split(log: _Log, catalogue: _Catalogue, folder: Path, n_buckets: int) -> _Pieces:
    user, item, compact, rows = log.user, log.item, catalogue.n_items is None, log.split_rows
    place = str(folder)

    # Not ray.data.read_parquet: it reads a whole file at a time in older Ray, and needs packages that neither Ray asks
    # for (pkg_resources._vendor in 2.6, aiohttp in 2.60).
    def deal(stretch: tuple[str, list[int]]) -> list[dict[str, Any]]:
        file, row_groups = stretch
        with pq.ParquetFile(file) as source:
            batches = source.iter_batches(rows, row_groups=row_groups)
            return [_deal(pa.Table.from_batches([b]), user, item, compact, n_buckets, place) for b in batches]

    files, offsets, schema = [], [], log.schema
    found: list[pa.Array] = [] if not compact else [ids.cast(log.item_type) for ids in catalogue.ids.values()]
    for piece in (piece for several in _over(list(log.stretches()), deal) for piece in several):
        for column in piece["missing"]:
            raise GuiderError(f"Column {column!r} of the interactions has empty values: fill them or drop the rows.")
        if catalogue.n_items is not None:
            low, high = piece["range"]
            if low < 0 or high >= catalogue.n_items:
                raise GuiderError(
                    f"Column {item!r} of the interactions holds the id {low if low < 0 else high}, but the features "
                    f"have {catalogue.n_items} rows, one for each item from 0."
                )
        else:
            found = [pa.concat_arrays([*found, piece["items"]]).unique()]
        files.append(piece["file"])
        offsets.append(piece["offsets"])
        schema = piece["schema"]
    items = found[0].take(pc.array_sort_indices(found[0])) if compact else None
    n_items = catalogue.n_items if catalogue.n_items is not None else len(found[0])
    return _Pieces(files, np.array(offsets, dtype=np.int64), schema, user, item, items, n_items)


def _deal(table: pa.Table, user: str, item: str, compact: bool, n_buckets: int, folder: str) -> dict[str, Any]:
    """Write the rows of a table as one batch for each bucket; where, and what has to be known of the rows."""
    missing = [column for column in (user, item) if table[column].null_count]
    if missing:
        return {"missing": missing}
    users = table[user].combine_chunks()
    ids = pc.unique(users)
    part = UserFolds(_BUCKET_SEED, n_buckets)(_keys(ids))
    bucket = part[pc.index_in(users, value_set=ids).to_numpy(zero_copy_only=False)]
    order = np.argsort(bucket, kind="stable")
    bounds = np.concatenate([[0], np.cumsum(np.bincount(bucket, minlength=n_buckets))])
    dealt = table.replace_schema_metadata(None).take(pa.array(order)).combine_chunks()
    path = f"{folder}/{uuid.uuid4().hex}"
    offsets = [0]
    batches = dealt.to_batches()
    with pa.OSFile(path, "wb") as sink:
        for first, last in zip(bounds[:-1], bounds[1:], strict=True):
            if first < last:
                sink.write(batches[0].slice(first, last - first).serialize())
            offsets.append(sink.tell())
    result = {"missing": [], "file": path, "offsets": offsets, "schema": dealt.schema}
    if compact:
        return result | {"items": pc.unique(table[item].combine_chunks())}
    extremes = pc.min_max(table[item]).as_py()
    return result | {"range": (extremes["min"], extremes["max"])}


def _sampled(
    bucket: tuple[InteractionIndex, pa.Array], sample_of: UserSample
) -> tuple[pa.Array, NDArray[np.int64], NDArray[np.int64]]:
    """(ids of the sampled users, sizes of their profiles, items)."""
    profiles, ids = bucket
    users = sample_of.users(profiles.user_keys)
    chosen = profiles.of_users(users)
    return ids.take(pa.array(users)), chosen.size, chosen.items


def _joined(parts: list[tuple[pa.Array, NDArray[np.int64], NDArray[np.int64]]], n_items: int) -> InteractionIndex:
    """One :class:`InteractionIndex` of sampled users, sorted by their ids."""
    ids = pa.concat_arrays([part[0] for part in parts])
    order = pc.array_sort_indices(ids).to_numpy()
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order))
    users = np.repeat(rank, np.concatenate([part[1] for part in parts]))
    items = np.concatenate([part[2] for part in parts])
    return build_profiles(users, items, len(ids), n_items, _keys(ids.take(pa.array(order))))


def _write(pieces: _Pieces, bucket: int, calibrator: Calibrator, folder: str) -> tuple[int, int]:
    """Calibrator the rows of a bucket and write them; (clean rows, other rows)."""
    table = pieces.table(bucket)
    if not len(table):
        return 0, 0
    profiles, _ = pieces.profiles(table)
    prediction = calibrator(profiles)
    order = np.argsort(profiles.inverse, kind="stable")
    at = profiles.inverse[order]
    table = table.take(pa.array(order))
    is_clean = prediction.is_clean[at]
    added = (prediction.probability[at].astype(np.float32), is_clean, prediction.score[at].astype(np.float32))
    for name, values in zip(ADDED, added, strict=True):
        table = table.append_column(name, pa.array(values))
    pq.write_table(table, f"{folder}/part-{bucket:06d}.parquet")
    n_true = int(is_clean.sum())
    return n_true, len(is_clean) - n_true
