"""R-CE: every observation is weighed by a power of its probability.

Source: Wang, Feng, He, Nie, Chua, Denoising Implicit Feedback for Recommendation, WSDM 2021.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor
from torch.nn.functional import softplus

from recbole_guider.denoising.base import DenoisingMethod, Logits, Sample, pooled_mean
from recbole_guider.denoising.settings import RCESettings


def reweighted_loss(logits: Logits, beta: float) -> Tensor:
    r"""``mean[ sig(x)^beta (- log sig(x)) ]`` over all observations, the weight detached.

    In the bce form with y = sig(score) this is weight y^beta on observed pairs and (1 - y)^beta on sampled ones, R-CE.

    Args:
        logits: of the batch.
        beta: exponent >= 0.
    """
    parts = [part for part in logits if part is not None]
    return pooled_mean(torch.sigmoid(x.detach()) ** beta * softplus(-x) for x in parts)


class Reweighted(DenoisingMethod):
    """R-CE (own form bce)."""

    name, settings_class = "r-ce", RCESettings

    def loss(self, sample: Sample) -> Tensor:
        return reweighted_loss(sample.logits, cast(RCESettings, self.settings).beta)
