r"""BOD: a generator of weights learns, outside, to make two inner losses pull the model in one direction.

Source: Wang, Xia, Wang, Yin, Huang, Efficient Bi-Level Optimization for Recommendation Denoising, KDD 2023.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from recbole.data.interaction import Interaction
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import normalize, softplus

from recbole_guider.denoising.base import Context, DenoisingMethod, Sample, logits, pooled_mean
from recbole_guider.denoising.negatives import NegativeSampler
from recbole_guider.denoising.settings import BODSettings

#: Rows whose pairs with all others are computed at a time.
_BLOCK = 128


def weighted_ranking_loss(sample: Sample, positive: Tensor, negative: Tensor) -> Tensor:
    r"""The plain loss of the form, on weighted scores: ``w+ y_ui`` and ``w- y_uj`` in place of y_ui and y_uj.

    bpr: ``- log sig(w+ y_ui - w- y_uj)``. In the softmax form the score that stands for the shared negatives takes the
    weight of the loader's sampled item.

    Args:
        sample: a batch.
        positive: w+ in (0, 1), [P].
        negative: w- in (0, 1), [P, N].
    """
    negative = negative.mean(dim=1, keepdim=True) if sample.negative.shape != negative.shape else negative
    found = logits(sample.form, positive * sample.positive, negative * sample.negative, sample.scale)
    return pooled_mean(None if part is None else softplus(-part) for part in found)


def alignment(users: Tensor, items: Tensor, weight: Tensor) -> Tensor:
    """``mean[ w ||u / |u| - i / |i| ||^2 ]`` over rows [P, d] with weights [P]."""
    return (weight * (normalize(users, dim=1) - normalize(items, dim=1)).square().sum(dim=1)).mean()


def uniformity(rows: Tensor, counts: Tensor | None = None) -> Tensor:
    """``log mean exp(-2 ||x_a - x_b||^2)`` over the pairs a < b of unit rows [P, d]; 0 for fewer than two rows.

    In blocks: the matrix of all pairs is never there. It can be differentiated once.

    Args:
        rows: [P, d].
        counts: [P], how often each of them counts; None: once.
    """
    counts = rows.new_ones(len(rows)) if counts is None else counts.to(rows.dtype)
    total = float(counts.sum())
    if total < 2:
        return rows.sum() * 0.0
    logarithm: Tensor = _LogOfPairs.apply(normalize(rows, dim=1), counts)
    return logarithm - math.log(total * (total - 1))


def _uniformity_of(matrix: Tensor, ids: Tensor) -> Tensor:
    """:func:`uniformity` of the rows ``matrix[ids]``; those that a batch has several times are computed once."""
    distinct, counts = torch.unique(ids, return_counts=True)
    return uniformity(matrix[distinct], counts)


class _LogOfPairs(torch.autograd.Function):
    """``log sum exp(-2 ||x_a - x_b||^2)`` over a != b of unit rows that count several times, and in the same pass its
    gradient."""

    @staticmethod
    def forward(ctx: Any, unit: Tensor, counts: Tensor) -> Tensor:
        gradient = torch.empty_like(unit)
        weighted = counts.unsqueeze(1) * unit
        total = unit.new_zeros(())
        with torch.autocast(unit.device.type, enabled=False):
            for start in range(0, len(unit), _BLOCK):
                part = slice(start, start + _BLOCK)
                # ||a - b||^2 = 2 - 2 <a, b>; between -8 and 0, so that no sum overflows
                pairs = (unit[part] @ unit.T).sub_(1.0).mul_(4.0).exp_()
                # c copies of a row are c (c - 1) pairs of one another
                pairs.diagonal(start).copy_(1.0 - 1.0 / counts[part])
                total += counts[part] @ (pairs @ counts)
                gradient[part] = counts[part].unsqueeze(1) * (pairs @ weighted)
        # a pair occurs twice: 2 * 4 exp(..) x_b
        ctx.save_for_backward(gradient.mul_(8.0 / total))
        return total.log()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return outer * gradient, None


def gradient_matching(first: Sequence[Tensor | None], second: Sequence[Tensor | None]) -> Tensor:
    """``sum over parameters, over columns of (1 - cos)`` between two lists of gradients.

    Columns are the dimensions of an embedding table (or the inputs of a layer). Vectors and missing gradients are left
    out.
    """
    total = torch.zeros(())
    for one, other in zip(first, second, strict=True):
        if one is None or other is None or one.dim() != 2:
            continue
        norms = one.norm(dim=0) * other.norm(dim=0)
        total = total.to(one.device) + (1 - (one * other).sum(dim=0) / (norms + 1e-6)).sum()
    return total


class WeightGenerator(nn.Module):
    """``w = sig(MLP[u; i])``, one hidden layer with ReLU and a linear one after it."""

    def __init__(self, size: int, hidden: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2 * size, hidden), nn.ReLU(), nn.Linear(hidden, hidden),
                                    nn.Linear(hidden, 1))

    def forward(self, users: Tensor, items: Tensor) -> Tensor:
        return torch.sigmoid(self.layers(torch.cat([users, items], dim=-1))).squeeze(-1)


class BOD(DenoisingMethod):
    """BOD (own form bpr): weights in the inner loss, and after each epoch a step of the generator.

    Inner: ranking on weighted scores + weighted alignment + 0.5 uniformity, the weights detached. Outer, one step after
    an epoch on a random batch: the generator minimises :func:`gradient_matching` between the gradients of the weighted
    ranking and of the weighted alignment by the backbone's parameters. The authors' code weighs the positive of the
    outer ranking by ``MLP[u; u]``; here it is ``MLP[u; i]``, as in the inner loop and in the paper. Their L2 term of
    the outer loss does not depend on the generator and is left out.
    """

    name, settings_class = "bod", BODSettings
    uses_matrices = needs_matrices = True

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.options = cast(BODSettings, context.settings)
        self.generator_network = WeightGenerator(context.width, self.options.hidden)
        self.negatives = NegativeSampler(context)
        self.generator("outer", context.config["seed"] + 11)
        self.generator("outer negatives", context.config["seed"] + 12)

    def own_networks(self) -> dict[str, tuple[nn.Module, float]]:
        return {"generator": (self.generator_network, self.options.generator_learning_rate)}

    def _weights(self, sample: Sample) -> tuple[Tensor, Tensor]:
        users, items, _ = sample.matrices
        rows = users[sample.users]
        positive = self.generator_network(rows, items[sample.items])
        others = items[sample.negatives]
        return positive, self.generator_network(rows.unsqueeze(1).expand_as(others), others)

    def loss(self, sample: Sample) -> Tensor:
        users, items, _ = sample.matrices
        with torch.no_grad():
            positive, negative = self._weights(sample)
        total = weighted_ranking_loss(sample, positive, negative)
        total = total + self.options.alignment * alignment(users[sample.users], items[sample.items], positive)
        if self.options.uniformity:
            # the users of observed and of sampled pairs are the same rows
            spread = (
                2 * _uniformity_of(users, sample.users) + _uniformity_of(items, sample.items)
                + _uniformity_of(items, sample.negatives[:, 0])
            )
            total = total + self.options.uniformity * spread / 4
        return total

    def end_epoch(self, epoch: int) -> None:
        for _ in range(self.options.outer_steps):
            self.outer_step(self._random_batch())

    def _random_batch(self) -> Interaction:
        size = min(int(self.context.config["train_batch_size"]), len(self.context.users))
        chosen = torch.randperm(len(self.context.users), generator=self.generator("outer"))[:size]
        return self.negatives.batch(chosen, self.generator("outer negatives"))

    def outer_step(self, interaction: Interaction) -> Tensor:
        """One step of the generator on a batch; the loss before it."""
        sample, _ = self.context.model.observe(interaction)
        users, items, _ = sample.matrices
        positive, negative = self._weights(sample)
        parameters = [parameter for parameter in self.context.recommender.parameters() if parameter.requires_grad]
        gradients = [
            torch.autograd.grad(loss, parameters, create_graph=True, allow_unused=True)
            for loss in (
                weighted_ranking_loss(sample, positive, negative),
                alignment(users[sample.users], items[sample.items], positive),
            )
        ]
        loss = gradient_matching(*gradients)
        own = list(self.generator_network.parameters())
        # only the generator's: the backbone's own gradients must not linger
        for parameter, gradient in zip(own, torch.autograd.grad(loss, own, allow_unused=True), strict=True):
            parameter.grad = gradient
        self.optimizers["generator"].step()
        self.optimizers["generator"].zero_grad(set_to_none=True)
        return loss.detach()
