r"""BOD: a generator of weights learns, outside, to make two inner losses pull the model in one direction.

Source: Wang, Xia, Wang, Yin, Huang, Efficient Bi-Level Optimization for Recommendation Denoising, KDD 2023.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
from recbole.data.interaction import Interaction
from torch import Tensor, nn
from torch.nn.functional import normalize, softplus

from recbole_guider.denoising.base import Context, DenoisingMethod, Sample, logits, pooled_mean
from recbole_guider.denoising.negatives import NegativeSampler
from recbole_guider.denoising.settings import BODSettings


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


def uniformity(rows: Tensor) -> Tensor:
    """``log mean exp(-2 ||x_a - x_b||^2)`` over the pairs a < b of unit rows [P, d]; 0 for fewer than two rows."""
    count = len(rows)
    if count < 2:
        return rows.sum() * 0.0
    unit = normalize(rows, dim=1)
    # ||a - b||^2 = 2 - 2 <a, b>; the matrix is symmetric, its diagonal left out
    exponent = 4.0 * (unit @ unit.T) - 4.0
    exponent = exponent.masked_fill(torch.eye(count, dtype=torch.bool, device=rows.device), -torch.inf)
    return torch.logsumexp(exponent.flatten(), dim=0) - math.log(count * (count - 1))


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
        rows, observed, sampled = users[sample.users], items[sample.items], items[sample.negatives[:, 0]]
        total = weighted_ranking_loss(sample, positive, negative)
        total = total + self.options.alignment * alignment(rows, observed, positive)
        if self.options.uniformity:
            # the users of observed and of sampled pairs are the same rows
            spread = (2 * uniformity(rows) + uniformity(observed) + uniformity(sampled)) / 4
            total = total + self.options.uniformity * spread
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
