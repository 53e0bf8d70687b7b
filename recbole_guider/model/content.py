"""The raw content of one modality, as a part of a model."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from recbole_guider.data.features import ItemFeatures


class ModalityContent(nn.Module):
    """The rows of a modality on the model's device, as constants or as parameters, and which of them exist.

    Constants are not in the state dict: the data set has them, and a checkpoint need not repeat them.

    Args:
        part: the modality; row 0 is RecBole's padding item.
        trainable: whether the rows are parameters, which start from the raw values.

    Attributes:
        values: float32 ``[n_items, d]``; items without content hold the modality's mean.
        present: bool ``[n_items]``; False for items without content and for row 0.
    """

    values: Tensor
    present: Tensor

    def __init__(self, part: ItemFeatures, trainable: bool = False) -> None:
        super().__init__()
        values = torch.from_numpy(part.values)
        if trainable:
            self.values = nn.Parameter(values.clone())
        else:
            self.register_buffer("values", values, persistent=False)
        self.register_buffer("present", torch.from_numpy(part.present), persistent=False)

    @property
    def dim(self) -> int:
        """Width d of the modality."""
        return self.values.shape[1]
