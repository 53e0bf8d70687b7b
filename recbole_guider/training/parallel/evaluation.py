"""An evaluation by several processes: each ranks its users, and every user counts once.

RecBole pads the users to a multiple of the processes and averages the processes' metrics by their numbers of batches.
Here the users are dealt without padding, and what the metrics are computed from (a row for each user) is brought
together in the order of one process, so that every process gets the metrics of a single one.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import torch
from recbole.data.dataloader import FullSortEvalDataLoader
from recbole.evaluator import Collector
from recbole.evaluator.collector import DataStruct

from recbole_guider.utils import distributed


def own_share(loader: Any) -> Any:
    """The evaluation loader ``loader``, of which this process gets its share only; ``loader`` itself is left as it is.

    The shares follow each other by rank. Of a full-sort evaluation they are users; where items are sampled every
    process draws all of them and keeps its batches, so that the sampled items are those of one process.
    """
    kind = _DealtUsers if isinstance(loader, FullSortEvalDataLoader) else _DealtBatches
    loader_class: type = type(loader)
    share_class: Any = _with(kind, loader_class)
    share = share_class.__new__(share_class)
    vars(share).update(vars(loader))
    return share


def _bounds(size: int) -> tuple[int, int]:
    rank, world_size = distributed.rank(), distributed.world_size()
    return size * rank // world_size, size * (rank + 1) // world_size


class _Dealt:
    """The share of a loader."""

    def __bool__(self) -> bool:
        return True  # RecBole takes a loader without batches for none, and a share may be empty


class _DealtUsers(_Dealt):
    """A full-sort loader whose batches are made of the rows of this process."""

    sample_size: int
    batch_size: int
    collate_fn: Any

    def __iter__(self) -> Iterator[Any]:
        first, last = _bounds(self.sample_size)
        for start in range(first, last, self.batch_size):
            yield self.collate_fn(list(range(start, min(start + self.batch_size, last))))

    def __len__(self) -> int:
        first, last = _bounds(self.sample_size)
        return -(-(last - first) // self.batch_size)


class _DealtBatches(_Dealt):
    """A loader of sampled items, all of which are drawn; the batches of this process come out."""

    def __iter__(self) -> Iterator[Any]:
        first, last = _bounds(super().__len__())  # type: ignore[misc]  # of the loader's class
        for number, batch in enumerate(super().__iter__()):  # type: ignore[misc]  # as above
            if first <= number < last:
                yield batch

    def __len__(self) -> int:
        first, last = _bounds(super().__len__())  # type: ignore[misc]  # as above
        return last - first


@cache
def _with(kind: type, loader: type) -> type:
    return type(f"{kind.__name__}{loader.__name__}", (kind, loader), {"__module__": __name__})


class SharedCollector(Collector):
    """RecBole's collector, which hands out what all processes collected, in the order of one process."""

    def get_data_struct(self) -> DataStruct:
        own = super().get_data_struct()
        # RecBole drops what belongs to the evaluated rows, and keeps what belongs to the training data
        rows = {name: own[name] for name in list(own._data_dict) if name not in self.data_struct}
        everyone = distributed.gather(rows)
        for name in dict.fromkeys(name for each in everyone for name in each):
            own.set(name, torch.cat([each[name] for each in everyone if name in each]))
        return own
