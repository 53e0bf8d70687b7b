"""An evaluation by several processes: each ranks its users, and every user counts once.

RecBole pads the users to a multiple of the processes and averages the processes' metrics by their numbers of batches.
Here the users are dealt without padding, and what the metrics are computed from (a row for each user) is brought
together in the order of one process, so that every process gets the metrics of a single one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from recbole.data.dataloader import FullSortEvalDataLoader, NegSampleEvalDataLoader
from recbole.evaluator import Collector
from recbole.evaluator.collector import DataStruct

from recbole_guider.utils import distributed


def own_share(loader: Any) -> Any:
    """The evaluation loader ``loader``, of which this process gets its share only; ``loader`` itself is left as it is.

    The shares follow each other by rank. Of a full-sort evaluation they are users; where items are sampled every
    process draws all of them and keeps its batches, so that the sampled items are those of one process.
    """
    kind: Any = _DealtUsers if isinstance(loader, FullSortEvalDataLoader) else _DealtBatches
    share = kind.__new__(kind)
    vars(share).update(vars(loader))
    share.whole = loader
    return share


def _bounds(size: int) -> tuple[int, int]:
    rank, world_size = distributed.rank(), distributed.world_size()
    return size * rank // world_size, size * (rank + 1) // world_size


class _DealtUsers(FullSortEvalDataLoader):
    """A full-sort loader whose batches are made of the rows of this process."""

    whole: FullSortEvalDataLoader

    def __bool__(self) -> bool:
        return True  # RecBole takes a loader without batches for none, and a share may be empty

    def __iter__(self) -> Iterator[Any]:
        first, last = _bounds(self.whole.sample_size)
        for start in range(first, last, self.whole.batch_size):
            yield self.whole.collate_fn(list(range(start, min(start + self.whole.batch_size, last))))

    def __len__(self) -> int:
        first, last = _bounds(self.whole.sample_size)
        return -(-(last - first) // self.whole.batch_size)


class _DealtBatches(NegSampleEvalDataLoader):
    """A loader of sampled items, all of which are drawn; the batches of this process come out."""

    whole: NegSampleEvalDataLoader

    def __bool__(self) -> bool:
        return True  # as above

    def __iter__(self) -> Iterator[Any]:
        first, last = _bounds(len(self.whole))
        for number, batch in enumerate(self.whole):
            if first <= number < last:
                yield batch

    def __len__(self) -> int:
        first, last = _bounds(len(self.whole))
        return last - first


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
