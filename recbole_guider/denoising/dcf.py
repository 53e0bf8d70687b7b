r"""DCF: losses are damped and averaged over a few epochs before they decide what is dropped, and what is relabelled.

Source: He, Wang, Yang, Sun, Wu, Yi, Yue, Wang, Double Correction Framework for Denoising Recommendation, KDD 2024.
"""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
from torch import Tensor
from torch.nn.functional import softplus

from recbole_guider.denoising.base import Context, DenoisingMethod, Logits, Ramp, Sample, pooled_mean
from recbole_guider.denoising.settings import DCFSettings


def damped(losses: Tensor) -> Tensor:
    """``psi(l) = log(1 + l + l^2 / 2)``: grows like log, so that one outlier does not decide a mean."""
    return torch.log1p(losses + losses.square() / 2)


def lower_bound(mean: Tensor, recorded: Tensor, selected: Tensor, co_lambda: float) -> Tensor:
    r"""The lower end of the confidence interval of a mean loss, at least 0.

    ``max(0, mean - c (t + c log(2 t) / t^2) / (n - c))``, c = ``co_lambda``: an interaction that was seldom selected
    gets the benefit of the doubt.

    Args:
        mean: means of the damped losses, [P].
        recorded: t, how many losses each is the mean of, at least 1, [P].
        selected: n, how often the interaction was kept in the window, plus one, [P].
        co_lambda: c in [0, 1).
    """
    t = recorded.to(mean.dtype)
    width = co_lambda * (t + co_lambda * torch.log(2 * t) / t.square()) / (selected.to(mean.dtype) - co_lambda)
    return (mean - width).clamp_min(0.0)


class Corrected(NamedTuple):
    """What DCF makes of a batch: positions of the kept and of the relabelled observed interactions, int64."""

    kept: Tensor
    relabelled: Tensor


def corrections(scores: Tensor, dropped: float, relabel_rate: float) -> Corrected:
    """Split the observed interactions of a batch by the lower bounds of their losses.

    Sorted upwards, the first ``int((1 - dropped) P)`` are kept, those from ``int((1 - dropped * relabel_rate) P)`` on
    are relabelled as no interactions, and what lies between is dropped.

    Args:
        scores: lower bounds, [P].
        dropped: share in [0, 1) that is taken out.
        relabel_rate: part of that share that is relabelled.
    """
    order = torch.argsort(scores.detach(), stable=True)
    count = len(order)
    return Corrected(order[: int((1 - dropped) * count)], order[int((1 - dropped * relabel_rate) * count) :])


def corrected_loss(logits: Logits, corrected: Corrected) -> Tensor:
    """The mean loss of the kept interactions, of the relabelled ones with their label turned (``- log sig(-x)``), and
    of the sampled pairs (bce)."""
    negative = None if logits.negative is None else softplus(-logits.negative)
    kept, turned = logits.positive[corrected.kept], logits.positive[corrected.relabelled]
    return pooled_mean([softplus(-kept), softplus(turned), negative])


class DCF(DenoisingMethod):
    """DCF (own form bce): ramp over 30,000 batches, window of 3 epochs, ``co_lambda`` falling linearly to 0.

    History belongs to interactions. In the authors' code it belongs to positions in the epoch, which a shuffled loader
    fills anew each time; it counts epochs from the start of training where the mean runs over the window; and it gives
    the interactions that it would relabel their old label back. Here all three are as in the paper. A relabelled
    interaction is one for this batch: whether it is again is decided anew.

    The share taken out is ``drop_rate`` of the *observed* interactions of a batch, as for T-CE. The authors' code takes
    it of all pairs of the batch, sampled ones included, whose own loss counts as 0: with one sampled pair for each, up
    to twice as many observed ones go.
    """

    name, settings_class = "dcf", DCFSettings
    keeps_count = True
    sums: Tensor
    recorded: Tensor
    selected: Tensor

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.options = cast(DCFSettings, context.settings)
        self.share = Ramp(self.options.drop_rate, self.options.steps)
        self.epochs = max(1, int(context.config["epochs"]))
        self.co_lambda = self.options.co_lambda
        count = len(context.users)
        self.register_buffer("sums", torch.zeros(count))
        self.register_buffer("recorded", torch.zeros(count, dtype=torch.int32))
        self.register_buffer("selected", torch.ones(count, dtype=torch.int32))

    def begin_epoch(self, epoch: int) -> None:
        self.co_lambda = self.options.co_lambda * (1 - epoch / max(1, self.epochs - 1)) if self.epochs > 1 else 0.0
        if epoch % self.options.window == 0:
            self.sums.zero_()
            self.recorded.zero_()
            self.selected.fill_(1)

    def loss(self, sample: Sample) -> Tensor:
        index = sample.interactions
        self.sums[index] += damped(sample.logits.observed_losses().detach()).to(self.sums.dtype)
        self.recorded[index] += 1
        mean = self.sums[index] / self.recorded[index]
        bound = lower_bound(mean, self.recorded[index], self.selected[index], max(self.co_lambda, 0.0))
        found = corrections(bound, self.share(), self.options.relabel_rate)
        self.selected[index[found.kept]] += 1
        return corrected_loss(sample.logits, found)
