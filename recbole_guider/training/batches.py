"""The batches of GUIDER's passes, and the bar that follows them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from recbole.data.interaction import Interaction
from recbole.utils import set_color
from tqdm import tqdm

from recbole_guider.guider.calibration import CLEAN_PROBABILITY, IS_CLEAN


class CalibratedBatches:
    """The training interactions with their clean probability, shuffled anew in every pass: the batches of DBPR.

    DBPR's negatives are shared by a batch and drawn by the model. RecBole's sampler is only asked for one item more
    for each interaction where ``sampler`` is given: some backbones compare the content of two items.

    Args:
        dataset: the training part of a data set, with what a calibration says of it.
        batch_size: interactions in a batch.
        generator: where the order comes from.
        sampler: RecBole's training sampler, or None.
        negative_field: the column for its items.
    """

    shuffle = False

    def __init__(
        self, dataset: Any, batch_size: int, generator: torch.Generator, sampler: Any = None, negative_field: str = ""
    ) -> None:
        self.user_field, self.item_field = dataset.uid_field, dataset.iid_field
        names = (self.user_field, self.item_field, CLEAN_PROBABILITY, IS_CLEAN)
        self.columns = {name: dataset.inter_feat[name] for name in names}
        self.size = len(dataset.inter_feat)
        self.batch_size = batch_size
        self.generator = generator
        self.sampler, self.negative_field = sampler, negative_field

    def __len__(self) -> int:
        return -(-self.size // self.batch_size)

    def __iter__(self) -> Iterator[Interaction]:
        order = torch.randperm(self.size, generator=self.generator)
        for rows in order.split(self.batch_size):
            batch = {name: column[rows] for name, column in self.columns.items()}
            if self.sampler is not None:
                users, items = batch[self.user_field].numpy(), batch[self.item_field].numpy()
                batch[self.negative_field] = self.sampler.sample_by_user_ids(users, items, 1)
            yield Interaction(batch)


class WatchedBatches:
    """A loader whose batches move a progress bar."""

    def __init__(self, loader: Any, bar: Any, losses: Mapping[str, float]) -> None:
        self.loader, self.bar, self.losses = loader, bar, losses

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        for batch in self.loader:
            yield batch
            self.bar.update()
            self.bar.set_postfix_str(" ".join(f"{name} {value:.3f}" for name, value in self.losses.items()))


def progress_bar(description: str, total: int, shown: bool) -> Any:
    """RecBole's bar with a shorter rule: three losses need the room."""
    return tqdm(
        total=total,
        desc=set_color(description, "pink"),
        bar_format="{desc}: {percentage:3.0f}%|{bar:10}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]",
        disable=not shown,
    )
