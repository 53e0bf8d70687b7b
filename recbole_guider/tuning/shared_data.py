"""The data of a sweep: read once, and carried to each machine once."""

from __future__ import annotations

import copy
import json
import pickle
import tempfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from recbole_guider.config.guider_config import GuiderConfig
from recbole_guider.data.dataset import GuiderDataset, build_dataset, dataset_settings
from recbole_guider.utils.yaml_files import write_yaml

#: Different data sets that stay in Ray's memory at a time; a space may vary settings of the data.
_KEPT = 8


class SweepServer:
    """One process of a sweep, an actor beside the driver: builds data sets for the trials, and knows how trials ended.

    A data set is built from files once for each distinct set of data settings, on the machine that the sweep was
    started on (no other needs the files), and put into Ray's object store, which copies it to each machine once,
    however many trials run there.

    Args:
        finished: trial -> its last metrics, of trials that were over before the sweep was interrupted.
    """

    def __init__(self, finished: Mapping[str, dict[str, Any]]) -> None:
        self._data: OrderedDict[str, Any] = OrderedDict()
        self._finished = dict(finished)
        self._failures: dict[str, str] = {}
        self._built = 0

    def data(self, settings: Mapping[str, Any]) -> list[Any]:
        """[reference to the packed data set] for a trial's settings; for :func:`unpack`."""
        import ray

        config = configuration(settings, device="cpu")
        key = data_key(config)
        if key not in self._data:
            self._data[key] = ray.put(pack(build_dataset(config)))
            self._built += 1
            if len(self._data) > _KEPT:
                self._data.popitem(last=False)
        self._data.move_to_end(key)
        return [self._data[key]]

    def built(self) -> int:
        """How often a data set was built from files."""
        return self._built

    def finished(self, trial: str) -> dict[str, Any] | None:
        """The last metrics of a trial that was over before this start of the sweep."""
        return self._finished.get(trial)

    def fail(self, trial: str, message: str) -> None:
        """Note why a trial failed. A restart of it will not be tried: it would fail again."""
        self._failures[trial] = message

    def failure(self, trial: str) -> str | None:
        """Why the trial failed, if it did."""
        return self._failures.get(trial)


def configuration(settings: Mapping[str, Any], **overrides: Any) -> GuiderConfig:
    """The configuration that ``settings``, as a property file, give; the command line of this process is not read."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "settings.yaml"
        write_yaml(settings, file)
        return GuiderConfig(config_file_list=[file], config_dict=overrides, command_line=[])


def data_key(config: Any) -> str:
    """What the data set of a run depends on, before it is split; the seed is for the split."""
    settings = dataset_settings(config)
    settings["settings"].pop("seed")
    return json.dumps(settings, sort_keys=True, default=str)


def pack(dataset: Any) -> np.ndarray:
    """A data set with its item features as bytes, uint8 [n]: one buffer, which processes of a machine share."""
    if isinstance(dataset, GuiderDataset):
        dataset.item_features  # noqa: B018  # read here: a worker may lack the files
    lean = copy.copy(dataset)
    lean.config = None
    return np.frombuffer(pickle.dumps(lean, protocol=5), dtype=np.uint8)


def unpack(packed: np.ndarray, config: Any) -> Any:
    """A data set of one's own (RecBole changes data sets in place) from :func:`pack`."""
    dataset = pickle.loads(packed.data)
    dataset.config = config
    return dataset
