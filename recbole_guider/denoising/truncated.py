"""T-CE and T-BPR: the observed interactions with the largest losses of a batch are dropped.

Source: Wang, Feng, He, Nie, Chua, Denoising Implicit Feedback for Recommendation, WSDM 2021.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor
from torch.nn.functional import softplus

from recbole_guider.denoising.base import Context, DenoisingMethod, Logits, Ramp, Sample, pooled_mean
from recbole_guider.denoising.settings import DenoisingSettings, TBPRSettings, TCESettings


def smallest(losses: Tensor, dropped: float) -> Tensor:
    """int64, the positions of the ``int((1 - dropped) * P)`` smallest of ``losses`` [P], equal ones in their order."""
    kept = int((1 - dropped) * len(losses))
    return torch.argsort(losses.detach(), stable=True)[:kept]


def truncated_loss(logits: Logits, dropped: float) -> Tensor:
    r"""The mean loss over what is left when the share ``dropped`` of the observed interactions is taken out.

    l_b = - log sig(x_b); K = the ``int((1 - dropped) P)`` observed interactions with the smallest l_b:

        L = ( sum_{b in K} l_b + sum over sampled pairs of l ) / (|K| + number of sampled pairs)

    bpr and softmax have no terms of sampled pairs.

    Args:
        logits: of the batch.
        dropped: share in [0, 1).
    """
    kept = smallest(logits.observed_losses(), dropped)
    negative = None if logits.negative is None else softplus(-logits.negative)
    return pooled_mean([softplus(-logits.positive[kept]), negative])


class TCE(DenoisingMethod):
    """T-CE: the loss truncated at a growing share.

    The share dropped is ``drop_rate`` of the *observed* interactions, as the paper has it. The authors' T-CE code drops
    that share of all pairs of the batch, sampled ones included, but takes it from the observed ones.
    """

    name = "t-ce"
    settings_class: type[DenoisingSettings] = TCESettings
    keeps_count = True

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        settings = cast(TCESettings, context.settings)
        self.share = Ramp(settings.drop_rate, settings.steps)

    def loss(self, sample: Sample) -> Tensor:
        return truncated_loss(sample.logits, self.share())


class TBPR(TCE):
    """T-BPR: the same, by default of BPR and with a shorter ramp."""

    name, settings_class = "t-bpr", TBPRSettings
