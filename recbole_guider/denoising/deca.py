r"""DeCA: different models agree on clean interactions and disagree on noisy ones.

Source: Wang, Xin, Meng, Jose, Feng, He, Learning Robust Recommenders through Cross-Model Agreement, WWW 2022.
"""

from __future__ import annotations

from typing import cast

import torch
from recbole.model.init import xavier_normal_initialization
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from recbole_guider.denoising.base import Context, DenoisingMethod, Logits, Sample
from recbole_guider.denoising.settings import DeCASettings


def bernoulli_kl(first: Tensor, second: Tensor) -> Tensor:
    """KL(p || q) of Bernoulli distributions with logits ``first`` (p) and ``second`` (q), elementwise."""
    p = torch.sigmoid(first)
    yes = logsigmoid(first) - logsigmoid(second)
    no = logsigmoid(-first) - logsigmoid(-second)
    return p * yes + (1 - p) * no


def agreement(x: Tensor, auxiliary: Tensor, alpha: float) -> Tensor:
    """``alpha KL(p_aux || p) + (1 - alpha) KL(p || p_aux)``, elementwise on logits."""
    return alpha * bernoulli_kl(auxiliary, x) + (1 - alpha) * bernoulli_kl(x, auxiliary)


def deca_loss(
    backbone: Logits, auxiliary: Logits, noise: Logits, *, positive: bool, alpha: float, cost: float
) -> Tensor:
    r"""Agreement minus the expected log-likelihood of the observed labels, on observed and on sampled pairs.

    p is the backbone's probability that a pair is a *true* interaction, h that of the noise model (h1 or h2) of being
    *observed*, given that the truth is the other one:

        denoise positive (h1: what is no true interaction, and yet observed)
            observed   (1 - p) log h1                 sampled   (1 - p) log(1 - h1) - C1 p
        denoise negative (h2: what is a true interaction, and observed)
            observed   p log h2 - C2 (1 - p)          sampled   p log(1 - h2)

        L = mean over observed of (agreement - that) + mean over sampled of (agreement - that)

    In the bpr and softmax forms a training pair is one comparison, p = sig(x) that its observed item is preferred, and
    the comparison turned round takes the sampled pair's place.

    Args:
        backbone, auxiliary, noise: logits of the same observations by the three models.
        positive: denoise positive, else denoise negative.
        alpha: see :func:`agreement`.
        cost: C1 or C2.

    Source: Wang et al. 2022; the authors clamp probabilities at 1e-5, here logarithms are exact.
    """
    # logits of "is an interaction": of the observed pairs as they are, of the others with the sign turned
    x, x_other = backbone.positive, -_other(backbone)
    h, h_other = noise.positive, -_other(noise)
    p, p_other = torch.sigmoid(x), torch.sigmoid(x_other)
    if positive:
        likelihood = (1 - p) * logsigmoid(h)
        likelihood_other = (1 - p_other) * logsigmoid(-h_other) - cost * p_other
    else:
        likelihood = p * logsigmoid(h) - cost * (1 - p)
        likelihood_other = p_other * logsigmoid(-h_other)
    observed = agreement(x, auxiliary.positive, alpha) - likelihood
    sampled = agreement(x_other, -_other(auxiliary), alpha) - likelihood_other
    return observed.mean() + sampled.mean()


def _other(logits: Logits) -> Tensor:
    """The logits of the sampled pairs, or of the turned comparisons, being no interactions."""
    return logits.positive if logits.negative is None else logits.negative


class _MatrixFactorisation(nn.Module):
    def __init__(self, n_users: int, n_items: int, size: int) -> None:
        super().__init__()
        self.users, self.items = nn.Embedding(n_users, size), nn.Embedding(n_items, size)
        self.apply(xavier_normal_initialization)

    def logits(self, sample: Sample) -> Logits:
        return sample.logits_of(self.users.weight, self.items.weight)


class DeCA(DenoisingMethod):
    """DeCA (own form bce): steps that denoise observed and steps that denoise sampled pairs take turns.

    The auxiliary model and both noise models are matrix factorisations, trained with the backbone by its optimiser at
    its learning rate, as the authors' are. Their defaults of the command line are kept (alpha 1, C1 1000, C2 10); their
    per-data-set values lie in {0, .5, 1} and {1, .., 1000}. The backbone keeps its own regulariser in place of theirs.
    """

    name, settings_class = "deca", DeCASettings
    keeps_count = True
    step: Tensor

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.options = cast(DeCASettings, context.settings)
        size = self.options.embedding_size
        self.auxiliary, self.noise_positive, self.noise_negative = (
            _MatrixFactorisation(context.n_users, context.n_items, size) for _ in range(3)
        )
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    def loss(self, sample: Sample) -> Tensor:
        positive = int(self.step) % 2 == 0
        self.step += 1
        noise = self.noise_positive if positive else self.noise_negative
        return deca_loss(
            sample.logits, self.auxiliary.logits(sample), noise.logits(sample),
            positive=positive, alpha=self.options.alpha, cost=self.options.c1 if positive else self.options.c2,
        )
