"""RecBole's data set with item content, and the loaders of a run.

Without content, noise or another mask, everything here is RecBole's own: the same ids, splits and batches.
"""

from __future__ import annotations

import copy
import inspect
import json
import os
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from logging import getLogger
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from recbole.data import create_dataset, data_preparation
from recbole.data.dataset import Dataset
from recbole.data.interaction import Interaction, cat_interactions
from recbole.utils import FeatureSource, FeatureType, ModelType
from recbole.utils.argument_list import dataset_arguments

from recbole_guider.data.checks import check_evaluation
from recbole_guider.data.eval_mask import apply_eval_mask, batch_by_memory
from recbole_guider.data.features import ItemFeatures, beside_data, load_item_features, modality_files
from recbole_guider.data.noise import delete_interactions, gaussian_features, inject_interactions, shuffle_features
from recbole_guider.data.settings import NoiseSettings
from recbole_guider.data.tables import read_atomic, read_table
from recbole_guider.utils.arguments import files_argument
from recbole_guider.utils.errors import GuiderError
from recbole_guider.utils.interactions import pair_keys
from recbole_guider.utils.recbole_errors import recboles_errors

# RecBole's own: under these names it has functions that call the ones below
create_dataset, data_preparation = inspect.unwrap(create_dataset), inspect.unwrap(data_preparation)


class GuiderDataset(Dataset):
    """RecBole's ``Dataset`` for general recommenders, with the content of the items.

    Attributes:
        item_features: dict name -> :class:`~recbole_guider.data.features.ItemFeatures`, aligned to the internal item
            ids; read at first use, then shared by all copies (the splits).
        is_injected: bool [number of interactions], True where the interaction is noise that
            ``noise.interactions`` added or ``noise.recorded`` names. Follows every sorting and shuffling.
        deleted_pairs: int64 [2, number], users and items of the training pairs that ``noise.deleted`` took out.
    """

    def _get_preset(self) -> None:
        super()._get_preset()
        self._content: dict[str, Any] = {}  # one object for all copies
        self._atomic: dict[str, _AtomicFeature] = {}
        self._injected_keys = np.zeros(0, dtype=np.int64)
        self.deleted_pairs = np.zeros((2, 0), dtype=np.int64)

    def _load_feat(self, filepath: str, source: Any) -> pd.DataFrame | None:
        try:
            feat = super()._load_feat(filepath, source)
        except ValueError as error:
            problem = _unreadable(filepath, self.config, self._get_load_and_unload_col(source))
            if problem is None:
                raise
            raise GuiderError(problem) from error
        if feat is None and source == FeatureSource.INTERACTION:
            raise GuiderError(
                f"load_col loads no column of {filepath}; add `inter: [{self.uid_field}, {self.iid_field}]` to it."
            )
        return feat

    def _init_alias(self) -> None:
        super()._init_alias()
        # RecBole would fail later, with the bare name of a column or without any
        for key, field in (("USER_ID_FIELD", self.uid_field), ("ITEM_ID_FIELD", self.iid_field)):
            if field is not None and field not in self.inter_feat:
                raise GuiderError(self._why_not_loaded(field, key))
        for alias, fields in self.alias.items():
            for field in fields:
                if field not in self.field2type:
                    raise GuiderError(
                        f"alias_of_{alias} names {str(field)!r}, but no loaded file has that column; "
                        f"check load_col, which must name the suffix of its file (e.g. `image: '*'`)."
                    )
        for suffix in self.config["additional_feat_suffix"] or []:
            feat = getattr(self, f"{suffix}_feat")
            self._check_additional(suffix, [] if feat is None else list(feat))

    def _why_not_loaded(self, field: str, key: str) -> str:
        parts = self.benchmark_filename_list
        name = f"{self.dataset_name}.inter" if parts is None else f"{self.dataset_name}.{parts[0]}.inter"
        file = Path(self.dataset_path) / name
        with open(file, encoding=self.config["encoding"]) as stream:
            heads = stream.readline().rstrip("\n").split(self.config["field_separator"])
        columns = [head.partition(":")[0] for head in heads]
        if field in columns:
            return f"the column {field!r} of {file}, which {key} names, is not loaded: add it to load_col.inter."
        return f"{file} has no column {field!r}, which {key} names; it has {', '.join(columns)}."

    def _check_additional(self, suffix: str, fields: list[str]) -> None:
        """RecBole gives ids only to those tokens of an additional file that are known as users' or items'."""
        known = {*self.alias["user_id"], *self.alias["item_id"]}
        types = (FeatureType.TOKEN, FeatureType.TOKEN_SEQ)
        tokens = [field for field in fields if self.field2type.get(field) in types]
        unknown = [field for field in tokens if field not in known]
        if not unknown:
            return
        file = f"{self.dataset_name}.{suffix}"
        if len(unknown) == len(tokens):
            raise GuiderError(
                f"additional_feat_suffix {suffix!r}: no setting says which column of {file} is the item id; "
                f"set `alias_of_item_id: [{unknown[0]}]` (of users: alias_of_user_id)."
            )
        raise GuiderError(
            f"additional_feat_suffix {suffix!r}: the column {unknown[0]!r} of {file} holds tokens that are no ids; "
            f"leave it out with load_col."
        )

    def _remap_ID_all(self) -> None:
        """Drop feature rows of unknown items before they get an id, and keep the raw values.

        Raw, because RecBole normalises float columns later on (``normalize_all`` is its default).
        """
        item_fields = list(self.alias["item_id"])
        sources = {}
        for suffix in self.config["additional_feat_suffix"] or []:
            feat = getattr(self, f"{suffix}_feat")
            ids = [] if feat is None else [field for field in feat if field in item_fields]
            if len(ids) == 1:
                sources[suffix] = ids[0]
        known = self._known_items(set(sources.values())) if sources else set()
        for suffix, id_field in sources.items():
            feat = getattr(self, f"{suffix}_feat")
            feat = feat[feat[id_field].isin(known)].drop_duplicates(id_field, keep="first")
            setattr(self, f"{suffix}_feat", feat.reset_index(drop=True))
        super()._remap_ID_all()
        for suffix, id_field in sources.items():
            feat = getattr(self, f"{suffix}_feat")
            columns = {
                field: feat[field].to_numpy(copy=True)
                for field in feat
                if self.field2type[field] in (FeatureType.FLOAT, FeatureType.FLOAT_SEQ)
            }
            if columns:
                self._atomic[suffix] = _AtomicFeature(feat[id_field].to_numpy(dtype=np.int64), columns)

    def _known_items(self, feature_ids: set[str]) -> set[str]:
        """Tokens of the items that occur anywhere but in the extra feature files."""
        known: set[str] = set()
        for feat_name in self.feat_name_list:
            feat = getattr(self, feat_name)
            for field in feat:
                if field not in self.alias["item_id"] or field in feature_ids:
                    continue
                values = feat[field]
                if self.field2type[field] == FeatureType.TOKEN_SEQ:
                    values = pd.Series([token for tokens in values for token in tokens], dtype=object)
                known.update(values.dropna().unique())
        return known

    @property
    def atomic_features(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """suffix -> (internal item ids [m], raw values [m, d]) of the ``additional_feat_suffix`` files of items.

        Raises:
            GuiderError: an item's file of which ``load_col`` loads nothing, or rows of different width.
        """
        for suffix in self.config["additional_feat_suffix"] or []:
            if getattr(self, f"{suffix}_feat") is None:
                raise GuiderError(
                    f"additional_feat_suffix {suffix!r} loads no column of {self.dataset_name}.{suffix}; "
                    f"add `{suffix}: '*'` to load_col."
                )
        return {suffix: (feature.item_ids, feature.matrix(suffix)) for suffix, feature in self._with_rows()}

    def _with_rows(self) -> list[tuple[str, _AtomicFeature]]:
        return [(suffix, feature.without_empty_rows()) for suffix, feature in self._atomic.items()]

    @property
    def item_features(self) -> dict[str, ItemFeatures]:
        """Content of the items by modality; empty where the configuration names none. See ``load_item_features``."""
        if "features" not in self._content:
            features = load_item_features(self.config, self)
            noise = noise_of(self.config)
            features = shuffle_features(features, noise.features, noise.seed)
            self._content["features"] = gaussian_features(features, noise.gaussian, noise.seed)
        return self._content["features"]

    @property
    def loaded_features(self) -> dict[str, ItemFeatures]:
        """``item_features`` if something has read them, else empty."""
        return self._content.get("features", {})

    @property
    def is_injected(self) -> np.ndarray:
        """bool [number of interactions]: added by ``noise.interactions``, or named in the file ``noise.recorded``."""
        if len(self._injected_keys) == 0:
            return np.zeros(len(self.inter_feat), dtype=bool)
        return np.isin(keys_of_pairs(self), self._injected_keys)

    def build(self) -> list[GuiderDataset]:
        """RecBole's splits, and the noise of ``noise.interactions`` and ``noise.deleted`` in the training one.

        Noise goes in after splitting and before the samplers are built: negative sampling and masks treat it like
        any other training interaction.
        """
        by_time = self.benchmark_filename_list is None and self.config["eval_args"]["order"] == "TO"
        if by_time and self.time_field not in self.inter_feat.columns:
            raise GuiderError(
                f"eval_args.order is TO, by time, but the column {self.time_field!r}, which TIME_FIELD names, is not "
                f"loaded: add it to load_col.inter, or set eval_args.order to RO."
            )
        datasets = super().build()
        noise = noise_of(self.config)
        if noise.interactions > 0 or noise.deleted > 0:
            _disturb(datasets, noise)
        if noise.recorded is not None:
            train = datasets[0]
            train._injected_keys = np.union1d(train._injected_keys, _recorded_keys(train, noise.recorded))
        return datasets

    def save(self) -> None:
        """RecBole's ``save``, with a fingerprint of the settings and files beside it; see :func:`build_dataset`."""
        file = _dataset_file(self.config)
        file.parent.mkdir(parents=True, exist_ok=True)
        lean = copy.copy(self)
        # Features are read again when needed, and a configuration may hold classes made at run time.
        lean.__dict__.update(_content={}, config=None)
        with open(file, "wb") as stream:
            pickle.dump(lean, stream)
        _fingerprint_file(file).write_text(dataset_fingerprint(self.config), encoding="utf-8")
        self.logger.info(f"Saved the filtered dataset to [{file}]")


@dataclass(frozen=True)
class _AtomicFeature:
    """Raw float columns of one extra atomic file: ids [m], and per column floats [m] or arrays [m]."""

    item_ids: np.ndarray
    columns: Mapping[str, np.ndarray]

    def without_empty_rows(self) -> _AtomicFeature:
        """Without the rows that have an id but no value."""
        filled = np.zeros(len(self.item_ids), dtype=bool)
        for values in self.columns.values():
            if values.dtype == object:
                filled |= np.array([np.size(value) > 0 for value in values], dtype=bool)
            else:
                filled |= ~np.isnan(values)
        return _AtomicFeature(self.item_ids[filled], {name: values[filled] for name, values in self.columns.items()})

    def matrix(self, suffix: str) -> np.ndarray:
        """float64 [m, d], the columns side by side."""
        blocks = []
        for name, values in self.columns.items():
            if values.dtype == object:
                widths = {np.size(value) for value in values}
                if len(widths) > 1:
                    raise GuiderError(
                        f"modality {suffix!r}: column {name!r} has rows of {min(widths)} and of {max(widths)} numbers; "
                        f"every row needs the same width."
                    )
                blocks.append(np.stack(list(values)) if len(values) else np.zeros((0, 1)))
            else:
                blocks.append(np.asarray(values, dtype=np.float64)[:, None])
        return np.hstack(blocks)


def build_dataset(config: Any) -> Dataset:
    """The data set of a run: :class:`GuiderDataset` for general models, RecBole's own class for any other type.

    A saved data set (``save_dataset``, ``dataset_save_path``) is loaded only if the fingerprint beside it equals this
    run's: RecBole's settings, the ``modalities`` and noise settings, and size and time of every file. Without that
    it is not even opened. (RecBole itself compares its own settings only.)

    Raises:
        GuiderError: a folder or file that does not exist, a wrong value in a file, a column that no file has, or
            interaction noise for a model that is not a general recommender.
    """
    if config["MODEL_TYPE"] not in (ModelType.GENERAL, ModelType.TRADITIONAL):
        noise = noise_of(config)
        for key in ("interactions", "deleted"):
            if getattr(noise, key) > 0:
                raise GuiderError(f"noise.{key} needs a general recommender, which {config['model']} is not.")
        return _read(config, create_dataset)
    file = _dataset_file(config)
    if _is_current(file, dataset_fingerprint(config)):
        with open(file, "rb") as stream:
            dataset = pickle.load(stream)
        dataset.config = config
        getLogger().info(f"Loaded the filtered dataset from [{file}]")
        return dataset
    dataset = _read(config, GuiderDataset)
    if config["save_dataset"]:
        dataset.save()
    return dataset


def _read(config: Any, make: Callable[[Any], Dataset]) -> Dataset:
    with recboles_errors():
        try:
            return make(config)
        except GuiderError:
            raise
        except ValueError as error:
            missing = _missing_file(config)
            if missing is None:
                raise
            raise GuiderError(missing) from error


def _missing_file(config: Any) -> str | None:
    """What to say of the first file that the configuration names and that does not exist."""
    folder, name, parts = Path(config["data_path"]), config["dataset"], config["benchmark_filename"]
    if not folder.is_dir():
        return (
            f"there is no folder {folder} with the data set {name!r}: set data_path, or make one with "
            f"recbole-guider convert."
        )
    if parts is None and not (folder / f"{name}.inter").is_file():
        settings = folder.parent / f"{name}.yaml"
        hint = "set data_path, or benchmark_filename where the splits are files of their own"
        if settings.is_file():
            hint = f"give the settings of this data set, {files_argument(settings)}"
        return f"there is no file {folder / f'{name}.inter'} with the interactions: {hint}."
    for key, values, ending in (
        ("benchmark_filename", parts, ".inter"), ("additional_feat_suffix", config["additional_feat_suffix"], "")
    ):
        for value in values or []:
            file = folder / f"{name}.{value}{ending}"
            if not file.is_file():
                return f"{key} names {value!r}, but there is no file {file}."
    return None


def _unreadable(file: str, config: Any, loaded: tuple[Any, Any]) -> str | None:
    """What is wrong with an atomic file that RecBole could not read, or None where nothing is found.

    Args:
        file: its path.
        config: a RecBole ``Config``.
        loaded: the columns to load and those to leave out; None stands for all and for none.
    """
    try:
        # as RecBole reads it: the same words are missing values
        frame = read_atomic(Path(file), config)
    except GuiderError as error:
        return str(error)
    types = [kind.value for kind in FeatureType]
    for position, head in enumerate(frame.columns):
        column, _, kind = str(head).partition(":")
        if kind not in types:
            return f"{file}: the column {head!r} has no type; write {column}:<type> with one of {', '.join(types)}."
        if not kind.startswith("float") or (loaded[0] and column not in loaded[0]) or column in (loaded[1] or ()):
            continue
        for row, text in frame.iloc[:, position].dropna().items():
            for part in text.split(config["seq_separator"]) if kind.endswith("seq") else [text]:
                if part and not _is_number(part):
                    return f"{file}, line {row + 2}: the column {column!r} holds {part!r}, which is not a number."
    return None


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def prepare_data(config: Any, dataset: Dataset) -> tuple[Any, Any, Any]:
    """Train, validation and test loaders: RecBole's ``data_preparation``, with these differences.

    - A denoised model gets the loaders of its backbone, which RecBole picks by the model's name.
    - Full-sort evaluation is batched by memory (``eval_memory_mb``); rankings are the same.
    - ``eval_mask`` is applied; see :func:`~recbole_guider.data.eval_mask.apply_eval_mask`.
    - Saved loaders (``save_dataloaders``, ``dataloaders_save_path``) are loaded only if the fingerprint beside them
      equals this run's.

    Args:
        config: a RecBole ``Config``; unchanged afterwards.
        dataset: from :func:`build_dataset`.

    Returns:
        (train, valid, test) loaders.

    Raises:
        GuiderError: RecBole cannot split the data in this way, or an evaluation could not rank what it is to rank.
    """
    check_evaluation(config, dataset.item_num - 1)
    protocol = config["eval_mask"] or "recbole"
    backbone = config["backbone"] or config["model"]
    default = Path(config["checkpoint_dir"]) / f"{config['dataset']}-for-{backbone}-dataloader.pth"
    saved = Path(config["dataloaders_save_path"] or default)
    fingerprint = dataset_fingerprint(config, loaders=True)
    changes: dict[str, Any] = {"model": backbone}
    if not _is_current(saved, fingerprint):
        # RecBole loads whatever lies there; a path that does not exist keeps it from opening a stale file.
        changes["dataloaders_save_path"] = os.devnull + "/none"
    before = {key: (key in config, config[key]) for key in changes}
    try:
        for key, value in changes.items():
            config[key] = value
        with recboles_errors():
            train, valid, test = data_preparation(config, dataset)
    finally:
        for key, (existed, value) in before.items():
            config[key] = value
            if not existed:
                del config.final_config_dict[key]
    if config["save_dataloaders"] and default.exists():
        _fingerprint_file(default).write_text(fingerprint, encoding="utf-8")
    for loader in (train, valid, test):
        if loader.generator is None:  # RecBole takes them away to save the loaders, and gives them back on loading only
            loader.generator = loader.sampler.generator = torch.Generator().manual_seed(config["seed"])
    if not config["repeatable"]:
        _tell_repeated_pairs(train, {"validation": valid, "test": test})
    valid, test = (apply_eval_mask(loader, train._dataset, protocol) for loader in (valid, test))
    return train, batch_by_memory(valid), batch_by_memory(test)


def _tell_repeated_pairs(train: Any, evaluated: Mapping[str, Any]) -> None:
    """Warn of evaluated pairs that training has as well: RecBole does not hide them from the ranking."""
    trained = keys_of_pairs(train._dataset)
    for name, loader in evaluated.items():
        repeated = int(np.isin(keys_of_pairs(loader._dataset), trained).sum()) if loader else 0
        if repeated:
            getLogger().warning(
                f"{repeated} of {len(loader._dataset.inter_feat)} {name} pairs are in the training data as well, so "
                f"that they are ranked too well: rm_dup_inter: first keeps one row of each pair."
            )


def noise_of(config: Any) -> NoiseSettings:
    """The noise of a run.

    Raises:
        GuiderError: an unknown key, or a value of the wrong type or out of range.
    """
    return NoiseSettings.from_block(config["noise"])


def _disturb(datasets: list[GuiderDataset], noise: NoiseSettings) -> None:
    """Add and delete training interactions; both shares are of the training split as it came."""
    train, *others = datasets
    users, items = _pairs(train)
    later = [_pairs(dataset) for dataset in others]
    # RecBole's ids start at 1; 0 is padding
    given = (users - 1, items - 1, train.user_num - 1, train.item_num - 1)
    noise_users, noise_items = inject_interactions(
        *given,
        noise.interactions,
        forbidden_users=np.concatenate([pair[0] for pair in later]) - 1,
        forbidden_items=np.concatenate([pair[1] for pair in later]) - 1,
        user_distribution=noise.users,
        item_distribution=noise.items,
        clickbait_items=noise.clickbait_items,
        seed=noise.seed,
    )
    noise_users, noise_items = noise_users + 1, noise_items + 1
    deleted = delete_interactions(*given, noise.deleted, seed=noise.seed)
    parts = [train.inter_feat[np.flatnonzero(~deleted)] if deleted.any() else train.inter_feat]
    if len(noise_users):
        # Rating, time and whatever else: copied from a random training row of the same user.
        order = np.argsort(users, kind="stable")
        first = np.searchsorted(users[order], noise_users, side="left")
        last = np.searchsorted(users[order], noise_users, side="right")
        donors = order[np.random.default_rng([noise.seed, 1]).integers(first, last)]
        extra = Interaction({field: train.inter_feat[field][donors].clone() for field in train.inter_feat.columns})
        extra[train.iid_field][:] = torch.from_numpy(noise_items)
        parts.append(extra)
    train.inter_feat = cat_interactions(parts)
    train._injected_keys = np.sort(pair_keys(noise_users, noise_items, train.item_num))
    train.deleted_pairs = np.stack([users[deleted], items[deleted]])
    getLogger().info(
        f"Noise: {len(noise_users)} interactions added to the training split ({noise.interactions:g} of it), "
        f"{int(deleted.sum())} deleted ({noise.deleted:g})."
    )


def _recorded_keys(train: GuiderDataset, name: str) -> np.ndarray:
    """The pairs of a file of user and item tokens, as sorted keys of the training split."""
    path = beside_data(train.config, name)
    if not path.is_file():
        raise GuiderError(f"noise.recorded is {name}: there is no file {path}.")
    frame = read_table(path, "\t", keep_default_na=False)
    frame.columns = pd.Index([str(column).partition(":")[0] for column in frame.columns])
    ids = []
    for field in (train.uid_field, train.iid_field):
        if field not in frame:
            raise GuiderError(f"noise.recorded: {path} has no column {field!r}; it has {', '.join(frame.columns)}.")
        known = train.field2token_id[field]
        unknown = next((token for token in frame[field] if token not in known), None)
        if unknown is not None:
            raise GuiderError(f"noise.recorded: {path} names {field} {unknown!r}, which the data set does not have.")
        ids.append(frame[field].map(known).to_numpy(dtype=np.int64))
    return np.unique(pair_keys(ids[0], ids[1], train.item_num))


def keys_of_pairs(dataset: Dataset) -> np.ndarray:
    """int64 [interactions]: a number for each pair of a data set, the same wherever the same items are known."""
    return pair_keys(*_pairs(dataset), dataset.item_num)


def _pairs(dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
    inter = dataset.inter_feat
    return (
        np.asarray(inter[dataset.uid_field], dtype=np.int64),
        np.asarray(inter[dataset.iid_field], dtype=np.int64),
    )


# --- saved data sets ------------------------------------------------------------------------------------------


def dataset_settings(config: Any, *, loaders: bool = False) -> dict[str, Any]:
    """The settings that a built data set (or, with ``loaders``, a set of loaders) depends on."""
    keys = [*dataset_arguments, "dataset", "data_path", "seed", "repeatable", "encoding", "modalities"]
    if loaders:
        keys += ["eval_args", "shuffle", "worker", "train_batch_size", "eval_batch_size", "train_neg_sample_args"]
        keys += ["MODEL_INPUT_TYPE"]
    return {"settings": {key: config[key] for key in keys}, "noise": noise_of(config).model_dump()}


def dataset_fingerprint(config: Any, *, loaders: bool = False) -> str:
    """All that a built data set (or, with ``loaders``, a set of loaders) depends on, as comparable text."""
    folder = Path(config["data_path"])
    files = set(modality_files(config))
    files |= set(folder.glob(f"{config['dataset']}.*")) if folder.is_dir() else set()
    recorded = noise_of(config).recorded
    files |= {beside_data(config, recorded)} if recorded is not None else set()
    stats = {str(path): [path.stat().st_size, path.stat().st_mtime_ns] for path in files if path.is_file()}
    state = {**dataset_settings(config, loaders=loaders), "files": stats}
    return json.dumps(state, sort_keys=True, default=str, indent=1)


def _dataset_file(config: Any) -> Path:
    default = Path(config["checkpoint_dir"]) / f"{config['dataset']}-{GuiderDataset.__name__}.pth"
    return Path(config["dataset_save_path"] or default)


def _fingerprint_file(file: Path) -> Path:
    return file.with_name(file.name + ".json")


def _is_current(file: Path, fingerprint: str) -> bool:
    beside = _fingerprint_file(file)
    if not file.is_file():
        return False
    if beside.is_file() and beside.read_text(encoding="utf-8") == fingerprint:
        return True
    getLogger().warning(f"[{file}] was saved with other settings or files, and is not used.")
    return False
