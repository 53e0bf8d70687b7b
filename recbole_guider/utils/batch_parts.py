"""The part of a batch that one process computes.

A model's loss is called with a :class:`BatchPart` where several processes train together, and with the batch itself
where one trains alone. A loss that is a mean over the rows of the batch need not know. One that looks at the batch as a
whole asks for it: :func:`whole_batch`, :func:`share_of_rows`, :func:`sum_of_parts`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from recbole.data.interaction import Interaction
from torch import Tensor

from recbole_guider.utils import distributed


class BatchPart(Interaction):
    """The rows ``rank, rank + world_size, ...`` of a batch.

    Attributes:
        whole: the batch.
        rows: which of its rows are here.
        weight: the share of its rows that are here; the loss of the batch is the sum over the processes of weight
            times the loss of the part.
    """

    def __init__(self, whole: Interaction, rank: int, world_size: int) -> None:
        self.rows = slice(rank, None, world_size)
        super().__init__({name: whole[name][self.rows] for name in whole})
        self.whole = whole
        self.weight: float = len(self) / len(whole)


def whole_batch(interaction: Interaction) -> Interaction:
    """The batch that ``interaction`` is a part of, or ``interaction`` itself.

    A term that every process computes on the whole batch counts once, since the weights of the parts sum to 1: so a
    loss of pairs of rows, or of the set of users, is exact.
    """
    return interaction.whole if isinstance(interaction, BatchPart) else interaction


def of_rows(values: Tensor, interaction: Interaction) -> Tensor:
    """From one value for each row of the whole batch, those of the rows that are in ``interaction``."""
    return values[interaction.rows] if isinstance(interaction, BatchPart) else values


def share_of_rows(interaction: Interaction) -> float:
    """The share of the batch's rows that are in ``interaction``, 1 for a batch itself.

    A sum over the rows of a part, divided by this and by a number of the whole batch, adds up to the sum over the whole
    batch divided by that number.
    """
    return interaction.weight if isinstance(interaction, BatchPart) else 1.0


def sum_of_parts(tensors: Sequence[Tensor], interaction: Interaction) -> list[Tensor]:
    """From tensors that are means over the rows of a part (gradients, say), the same for the whole batch."""
    if not isinstance(interaction, BatchPart):
        return list(tensors)
    sums = [torch.mul(tensor.detach(), interaction.weight) for tensor in tensors]
    distributed.sum_over(sums)
    return sums
