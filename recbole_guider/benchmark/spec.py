"""What a benchmark compares, read from a YAML file and checked before anything runs."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from recbole_guider.benchmark.data import DataFiles, data_files
from recbole_guider.config.guider_config import GuiderConfig
from recbole_guider.config.merging import merge
from recbole_guider.config.registry import PREFIX
from recbole_guider.config.validation import check_valid_metric, measured
from recbole_guider.data.settings import AMOUNTS
from recbole_guider.denoising import METHODS
from recbole_guider.utils.errors import GuiderError, did_you_mean
from recbole_guider.utils.extensions import import_extensions
from recbole_guider.utils.paths import user_path
from recbole_guider.utils.settings import Settings, validated
from recbole_guider.utils.yaml_files import read_yaml

#: Settings of every run: what it prints belongs to the benchmark, and the checkpoint is removed.
_QUIET = {"state": "ERROR", "show_progress": False}
#: The dimensions of a benchmark, which together name a run.
_DIMENSIONS = ("dataset", "model", "method", "noise", "seed")

#: Settings that say where a run works and what it shows, not what it computes.
_PLACES = {
    "data_path", "checkpoint_dir", "dataset_save_path", "dataloaders_save_path", "save_dataset", "save_dataloaders",
    "device", "use_gpu", "gpu_id", "backend", "local_rank", "single_spec", "worker", "eval_memory_mb", "show_progress",
    "state", "log_wandb", "wandb_project", "import",
}


class BenchmarkSettings(Settings):
    """A spec after its short forms are written out: label -> settings, in each dimension."""

    datasets: dict[str, dict[str, Any]] = Field(description="data set -> files, settings")
    models: dict[str, dict[str, Any]] = Field(description="label -> settings, among them model if it is not the label")
    methods: dict[str, dict[str, Any]] = Field(description="label -> settings")
    noise: dict[str, dict[str, Any]] = Field(description="label -> settings of the noise block")
    seeds: Annotated[list[int], Field(min_length=1)] = Field(description="seeds of the runs")
    settings: dict[str, Any] = Field(default_factory=dict, description="settings of every run")
    baseline: str = Field(description="the method that the others are compared with")
    metrics: list[str] | None = Field(default=None, description="metrics that are compared; null: all")
    skip: list[dict[str, Any]] = Field(default_factory=list, description="combinations to leave out")


@dataclass(frozen=True)
class Cell:
    """One run of a benchmark.

    Attributes:
        dataset, model, method, noise: labels.
        seed: of the run, and of its noise where the spec gives none.
        name: the model's name.
        files: property files.
        settings: all settings that go on top of the files.
    """

    dataset: str
    model: str
    method: str
    noise: str
    seed: int
    name: str
    files: tuple[str, ...]
    settings: Mapping[str, Any]

    @property
    def key(self) -> str:
        """What the run's results depend on beside its data, as a short name: all settings with their defaults, so that
        a run from before a default changed is another run. Labels do not count, nor the device, nor where the data lie.
        """
        return self._described[0]

    @property
    def data(self) -> DataFiles:
        """The files that the run reads."""
        return self._described[1]

    @cached_property
    def _described(self) -> tuple[str, DataFiles]:
        config = self.config()
        settings = {key: value for key, value in config.final_config_dict.items() if key not in _PLACES}
        if config.guider_settings is not None:
            calibration = {**settings["guider"]["calibration"], "cache": None}
            settings["guider"] = {**settings["guider"], "calibration": calibration}
        text = json.dumps(settings, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:16], data_files(config)

    @property
    def labels(self) -> dict[str, Any]:
        """The run's place in the benchmark."""
        return {
            "dataset": self.dataset, "model": self.model, "method": self.method, "noise": self.noise, "seed": self.seed,
        }

    def config(self) -> GuiderConfig:
        """The run's configuration; raises GuiderError where a setting is wrong."""
        return GuiderConfig(self.name, self.dataset, list(self.files), dict(self.settings), command_line=[])


@dataclass(frozen=True)
class Spec:
    """A benchmark.

    Attributes:
        settings: the checked content of the file.
        cells: its runs, seed by seed, so that a stopped benchmark has whole comparisons.
    """

    settings: BenchmarkSettings
    cells: tuple[Cell, ...]


def read_spec(file: str | Path, data: str | Path | None = None, imports: Sequence[str] = ()) -> Spec:
    """Read a spec and check every run's settings.

    Args:
        file: a YAML file; ``benchmarks/specs`` has examples, docs/benchmark.md explains them.
        data: a folder of ``<dataset>.yaml``, used for data sets whose spec names no files.
        imports: Python files or modules that register models and methods, beside those that the spec names as
            ``import``.

    Raises:
        GuiderError: a key that does not exist, a file that is missing, or a setting that a run would refuse.
    """
    # a key with nothing behind it is one that is not there
    content = {key: value for key, value in read_yaml(file).items() if value is not None}
    here = Path(file).resolve().parent
    extensions = [*import_extensions(content.pop("import", None), here), *import_extensions(list(imports), Path.cwd())]
    for key in ("datasets", "models"):
        if not content.get(key):
            raise GuiderError(f"{file} names no {key}: give a list or a block of them.")
    content["datasets"] = {
        label: _dataset(label, block, here, data) for label, block in _labelled(content, "datasets").items()
    }
    content["models"] = _labelled(content, "models")
    methods = content.get("methods") or {"plain": {}}
    content["methods"] = _methods(methods)
    content["noise"] = _noise(content.get("noise"))
    content["seeds"] = _seeds(content.get("seeds", 1))
    content["skip"] = _rules(content)
    # labels are names, also where YAML reads a number
    content["baseline"] = str(content.get("baseline", next(iter(content["methods"]))))
    if extensions:  # the processes of the runs import them, too
        content["settings"] = {**(content.get("settings") or {}), "import": extensions}
    settings = validated(BenchmarkSettings, content, "spec")
    _refuse_dimensions(settings)
    if settings.baseline not in settings.methods:
        raise GuiderError(
            f"{file}: baseline is {settings.baseline!r}, which is none of the methods ({', '.join(settings.methods)})."
        )
    if settings.metrics is not None:
        settings = settings.model_copy(update={"metrics": [metric.lower() for metric in settings.metrics] or None})
    cells = tuple(_cells(settings))
    if not cells:
        raise GuiderError(f"{file}: skip leaves nothing to run.")
    for cell in _representatives(cells):
        try:
            _check(cell, settings.metrics or [])
        except GuiderError as error:
            place = ", ".join(f"{key} {value}" for key, value in cell.labels.items() if key != "seed")
            raise GuiderError(f"{file}, {place}: {error}") from error
    return Spec(settings, cells)


def _refuse_dimensions(spec: BenchmarkSettings) -> None:
    """Refuse settings that would be another model, data set or seed than a row's labels say."""
    parts: dict[str, tuple[Mapping[str, Any], tuple[str, ...]]] = {"settings": (spec.settings, ("model",))}
    parts |= {f"datasets.{label}.settings": (block["settings"], ("model",)) for label, block in spec.datasets.items()}
    parts |= {f"models.{label}": (block, ()) for label, block in spec.models.items()}
    parts |= {f"methods.{label}": (block, ("model",)) for label, block in spec.methods.items()}
    for place, (block, names) in parts.items():
        for name in ("dataset", "seed", *names):
            if name in block:
                raise GuiderError(f"spec.{place} has {name}: that is a dimension, give it under spec.{name}s.")


def _check(cell: Cell, metrics: Iterable[str]) -> None:
    """Refuse what would stop a run, or leave the report without one of its ``metrics``."""
    config = cell.config()
    data_files(config)
    if config["epochs"] < 1:
        raise GuiderError(f"epochs is {config['epochs']}: a run that is compared must train.")
    check_valid_metric(config)
    per_user = [name for name, is_per_user in measured(config).items() if is_per_user]
    for metric in metrics:
        if metric not in per_user:
            raise GuiderError(
                f"spec.metrics names {metric!r}, which the run does not report for each user"
                f"{did_you_mean(metric, per_user)} Its settings metrics and topk give "
                f"{', '.join(per_user) or 'none'}."
            )


def _representatives(cells: Iterable[Cell]) -> Iterator[Cell]:
    """Cells that have every model, method and data set together, and every noise, once: what is wrong is in one."""
    combinations, noises = set(), set()
    for cell in cells:
        combination = (cell.dataset, cell.model, cell.method)
        if combination not in combinations or cell.noise not in noises:
            yield cell
        combinations.add(combination)
        noises.add(cell.noise)


def _cells(spec: BenchmarkSettings) -> Iterator[Cell]:
    dimensions = (spec.seeds, spec.datasets, spec.noise, spec.models, spec.methods)
    for seed, dataset, noise, model, method in itertools.product(*dimensions):
        labels: dict[str, Any] = {
            "dataset": dataset, "model": model, "method": method, "noise": noise, "seed": seed
        }
        if any(all(labels[key] == value for key, value in rule.items()) for rule in spec.skip):
            continue
        source, of_model, of_method = spec.datasets[dataset], spec.models[model], spec.methods[method]
        settings: dict[str, Any] = {}
        for part in (_QUIET, spec.settings, source["settings"], of_model, of_method):
            settings = merge(settings, part)
        if spec.noise[noise]:
            settings = merge(settings, {"noise": {"seed": seed, **spec.noise[noise]}})
        settings["seed"] = seed
        name = settings.pop("model", model)
        if not _guider_is_on(merge(merge({}, of_model), of_method), named=str(name).startswith(PREFIX)):
            settings["guider"] = False  # its values are for the methods that switch it on
        yield Cell(**labels, name=name, files=tuple(source["files"]), settings=settings)


def _guider_is_on(own: Mapping[str, Any], named: bool) -> bool:
    """Whether the blocks of a model and a method switch GUIDER on, as the same blocks would in a run: values do, null
    and false do not, but only false and no null where the model's name says GUIDER."""
    if "guider" not in own:
        return named
    return own["guider"] is not False and (own["guider"] is not None or named)


def _labelled(content: Mapping[str, Any], key: str) -> dict[str, Any]:
    """A list of names, or a block of label -> settings (null: none), as a block."""
    value = content[key]
    if isinstance(value, list):
        for name in value:
            if isinstance(name, (Mapping, list)) or name is None:
                raise GuiderError(
                    f"spec.{key} lists {name!r}: a list is of names; for settings, make {key} a block of label -> "
                    f"settings."
                )
        return {str(name): {} for name in value}
    if not isinstance(value, Mapping):
        raise GuiderError(f"spec.{key} is {value!r}: give a list of names or a block of label -> settings.")
    for label, block in value.items():
        # a data set may also be its files
        if key != "datasets" and block is not None and not isinstance(block, Mapping):
            raise GuiderError(f"spec.{key}.{label} is {block!r}: it must be a block of settings.")
    return {str(label): {} if block is None else block for label, block in value.items()}


def _dataset(label: str, block: Any, here: Path, data: str | Path | None) -> dict[str, Any]:
    block = {"files": block} if isinstance(block, (str, list)) else block
    if not isinstance(block, Mapping):
        raise GuiderError(
            f"spec.datasets.{label} is {block!r}: give a file, a list of files, or a block of files and settings."
        )
    for key in block:
        if key not in ("files", "settings"):
            raise GuiderError(f"spec.datasets.{label}.{key} is not a setting. Allowed: files, settings.")
    files, settings = block.get("files"), block.get("settings")
    files = [files] if isinstance(files, str) else files
    if files is None:
        beside = Path(data).resolve() / f"{label}.yaml" if data is not None else None
        files = [str(beside)] if beside is not None and beside.is_file() else []
    if not isinstance(files, list) or not all(isinstance(file, str) for file in files):
        raise GuiderError(f"spec.datasets.{label}: files is {files!r}: it must be a file or a list of files.")
    settings = {} if settings is None else settings
    if not isinstance(settings, Mapping):
        raise GuiderError(f"spec.datasets.{label}.settings is {settings!r}: it must be a block of settings.")
    paths = [here / user_path(file) for file in files]
    for path in paths:
        if not path.is_file():
            raise GuiderError(f"spec.datasets.{label}: file {path} does not exist.")
    return {"files": [str(path.resolve()) for path in paths], "settings": dict(settings)}


def _methods(value: Any) -> dict[str, Any]:
    """A block; or a list of names: plain, guider, or a method of the denoising block."""
    if not isinstance(value, list):
        return _labelled({"methods": value}, "methods")
    known: dict[str, dict[str, Any]] = {"plain": {"guider": False}, "guider": {"guider": True}}
    known |= {name: {"denoising": name} for name in METHODS if name != "none"}
    for name in value:
        if not isinstance(name, str) or name not in known:
            raise GuiderError(
                f"spec.methods names {name!r}: a name is one of {', '.join(known)}; anything else is a block of label "
                f"-> settings."
            )
    return {name: known[name] for name in value}


def _noise(value: Any) -> dict[str, Any]:
    """A block of label -> noise settings, or a list of shares of added interactions; no noise is called none."""
    if value is None:
        value = [0]
    if isinstance(value, Mapping):
        return _labelled({"noise": value}, "noise")
    if not isinstance(value, list):
        raise GuiderError(
            f"spec.noise is {value!r}: give a list of shares such as [0, 0.2], or a block of label -> noise settings."
        )
    levels: dict[str, Any] = {}
    for share in value:
        if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 <= share < math.inf:
            raise GuiderError(
                f"spec.noise lists {share!r}: a list is of shares such as 0 and 0.2; anything else is a block of label "
                f"-> noise settings."
            )
        label = percent(share) if share else "none"
        if label in levels:
            raise GuiderError(f"spec.noise lists {label} twice: every share needs a label of its own.")
        levels[label] = {"interactions": float(share)} if share else {}
    return levels


def percent(share: float) -> str:
    """A share as a label, with as many digits as it has (up to six)."""
    return f"{100 * share:g}%"


def _seeds(value: Any) -> list[int]:
    """A list of seeds, or their number."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 1:
        return [2020 + number for number in range(value)]
    if not isinstance(value, list) or not value:
        raise GuiderError(f"spec.seeds is {value!r}: it must be a number of seeds >= 1, or a list of seeds.")
    for seed in value:
        # what numpy takes
        if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
            raise GuiderError(f"spec.seeds lists {seed!r}: a seed is a whole number from 0 to {2**32 - 1}.")
        if value.count(seed) > 1:
            raise GuiderError(f"spec.seeds lists {seed} twice: the same run would count twice.")
    return value


def _rules(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """``skip``, whose labels must be there: a misspelt one would skip nothing."""
    rules = content.get("skip", [])
    if not isinstance(rules, list) or not all(isinstance(rule, Mapping) and rule for rule in rules):
        raise GuiderError(f"spec.skip is {rules!r}: it must be a list of blocks such as {{model: NeuMF, method: BOD}}.")
    known: dict[str, list[Any]] = {
        "dataset": list(content["datasets"]), "model": list(content["models"]), "method": list(content["methods"]),
        "noise": list(content["noise"]), "seed": content["seeds"],
    }
    checked = []
    for rule in rules:
        for key, value in rule.items():
            if key not in known:
                guess = did_you_mean(key, _DIMENSIONS)
                raise GuiderError(f"spec.skip names {key!r}{guess} Allowed: {', '.join(_DIMENSIONS)}.")
            if (value if key == "seed" else str(value)) not in known[key]:
                raise GuiderError(
                    f"spec.skip: {key} {value!r} is not in the spec; it has {', '.join(map(str, known[key]))}."
                )
        checked.append({key: value if key == "seed" else str(value) for key, value in rule.items()})
    return checked


def level_of(noise: Mapping[str, Any]) -> tuple[str, float]:
    """The kind of a noise setting and how much of it: the largest amount; everything else makes the kind.

    No noise has the kind "" and level 0: it begins the curve of every kind.
    """
    amounts = {}
    for key in AMOUNTS:
        amount = noise.get(key) or 0.0
        amounts[key] = float(max(amount.values(), default=0.0) if isinstance(amount, Mapping) else amount)
    level = max(amounts.values())
    if level == 0:
        return "", 0.0
    kind = [key for key, amount in amounts.items() if amount]
    for key in ("features", "gaussian"):
        if isinstance(noise.get(key), Mapping):
            kind[kind.index(key)] += f" ({', '.join(noise[key])})"
    kind += [f"{key} {value}" for key, value in noise.items() if key not in (*AMOUNTS, "seed")]
    return ", ".join(kind), level
