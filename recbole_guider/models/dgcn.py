"""DGCN: LayerGCN trained on a truncated BPR loss, which leaves out the pairs of a batch that fit worst."""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field
from recbole.data.interaction import Interaction
from torch import Tensor
from torch.nn.functional import logsigmoid

from recbole_guider.models.base import Encoding
from recbole_guider.models.layergcn import LayerGCN
from recbole_guider.utils.settings import Count, NonNegative, Settings, Share


class DGCNParameters(Settings):
    """The parameters of :class:`DGCN`."""

    embedding_size: Count = Field(default=64, description="the size of the user and item embeddings")
    n_layers: Count = Field(default=4, description="the number of layers")
    dropout: Share = Field(default=0.2, description="the share of the user-item edges that an epoch leaves out")
    pruning: Literal["mixed", "degree", "random"] = Field(
        default="mixed", description="which edges go. degree: those of busy nodes first; random: any; mixed: by turns"
    )
    reg_weight: NonNegative = Field(default=0.001, description="the weight of the L2 regulariser")
    drop_rate: Share = Field(
        default=0.1, description="the share of a batch with the largest losses that is left out in the end"
    )
    drop_iterations: Count = Field(
        default=50, description="the number of batches in which that share grows from 0 to drop_rate"
    )


class DGCN(LayerGCN):
    r"""The denoising graph model of GUIDER's published code; reads no content.

    Scores, pruning and regulariser are those of :class:`~recbole_guider.models.layergcn.LayerGCN`. Of the B losses
    ``- log sig(y_ui - y_uj)`` of a batch the ``floor(r_t B)`` largest are left out, as noise tends to be what a young
    model fits worst. t counts the training batches from 0, and the share grows to its limit within the first
    ``drop_iterations`` of them,

        r_t = drop_rate * min(t / (drop_iterations - 1), 1).

    The loss is the sum of what is left. GUIDER with ``student_loss: dbpr``, and GUIDER's teacher, replace this loss.

    Source: there is no paper of that name. The model is `DGCN` of the code published with Li et al., Teach Me How to
    Denoise, WSDM 2025, a LayerGCN (Zhou et al., ICDE 2023) under the truncated loss of adaptive denoising training
    (Wang, Feng, He, Nie and Chua, Denoising Implicit Feedback for Recommendation, WSDM 2021), there with
    cross-entropy. The published trainer never hands over t, so that the published class cannot be trained with it.

    Raises:
        GuiderError: as LayerGCN; ``drop_rate`` is no share below 1, or ``drop_iterations`` is below 1.
    """

    settings_class: type[Settings] | None = DGCNParameters

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        self.drop_rate: float = config["drop_rate"]
        self.drop_iterations: int = config["drop_iterations"]
        #: training batches seen so far
        self.iteration = 0

    def get_extra_state(self) -> dict[str, Tensor]:
        return {**super().get_extra_state(), "iteration": torch.tensor(self.iteration)}

    def set_extra_state(self, state: dict[str, Tensor]) -> None:
        state = dict(state)
        self.iteration = int(state.pop("iteration"))
        super().set_extra_state(state)

    def ranking_loss(self, encoding: Encoding, interaction: Interaction) -> Tensor:
        user = encoding.users[interaction[self.USER_ID]]
        item, other = encoding.items[interaction[self.ITEM_ID]], encoding.items[interaction[self.NEG_ITEM_ID]]
        margin = (user * (item - other)).sum(dim=1)
        ramp = self.iteration / (self.drop_iterations - 1) if self.drop_iterations > 1 else 1.0
        if self.training:
            self.iteration += 1
        dropped = int(self.drop_rate * min(ramp, 1.0) * len(margin))
        # the largest losses are the smallest margins
        kept = margin.topk(len(margin) - dropped, sorted=False).values
        return -logsigmoid(kept).sum() / len(margin)
