r"""The loss of a whole batch, and its gradient, from the parts that the processes compute.

With n rows in a batch, n_r of them with process r, and L_r the model's loss on those rows,

    L = sum_r (n_r / n) L_r,        grad L = sum_r (n_r / n) grad L_r

hold for every loss that is a mean over rows (BPR, cross entropy, DBPR), for every term that does not depend on the rows
(a regulariser of all parameters), and for every term that each process computes on the whole batch
(:func:`~recbole_guider.utils.batch_parts.whole_batch`). They do not hold for a sum over rows, or where rows meet
(in-batch negatives, batch normalisation, a dropout mask drawn for each row). Nobody has to know which kind a model is:
at the first batch of each epoch every process computes the whole batch as well as its part, and the two gradients are
compared. Where they differ, the whole batch is computed by every process from then on: right, but not faster.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from logging import getLogger
from typing import Any

import numpy as np
import torch
from recbole.data.interaction import Interaction
from recbole.model.loss import EmbLoss
from torch import Tensor, nn

from recbole_guider.utils import distributed
from recbole_guider.utils.batch_parts import BatchPart
from recbole_guider.utils.model_state import Snapshot

#: Largest relative difference between the two gradients that is rounding: in float32, and with mixed precision.
TOLERANCE, TOLERANCE_MIXED = 1e-4, 2e-2
# Gradients below this share of the whole gradient's length are compared against that share: they may be all rounding.
_FLOOR = 1e-2


class WholeBatchLoss:
    """A model's loss function, called with whole batches in every process, and dealt to the processes.

    The value that it returns is that of the whole batch, in every process; its backward pass leaves the gradient of
    the whole batch in every process. Gradient clipping, loss scaling and the test for NaN therefore act as with one
    process.

    Args:
        model: what owns the parameters.
        name: of the method, e.g. ``calculate_loss``.
        tolerance: see :data:`TOLERANCE`.
    """

    def __init__(self, model: nn.Module, name: str, tolerance: float = TOLERANCE) -> None:
        self.model, self.name, self.tolerance = model, name, tolerance
        self.loss: Callable[..., Any] = getattr(model, name)
        #: whether the parts make up the whole; None: not known yet
        self.is_dealt: bool | None = None
        self.to_check = True
        self.parts = _Parts.of(model)

    def __call__(self, interaction: Interaction, *args: Any, **kwargs: Any) -> Any:
        world_size = distributed.world_size()
        if self.is_dealt is False or len(interaction) < world_size:
            return self._of_whole(self.loss(interaction, *args, **kwargs))
        part = BatchPart(interaction, distributed.rank(), world_size)
        if self.to_check:
            self.to_check = False
            return self._checked(interaction, part, *args, **kwargs)
        with self.parts.weighing(part.weight):
            losses = self.loss(part, *args, **kwargs)
        return self._summed(losses, part.weight)

    def _checked(self, whole: Interaction, part: BatchPart, *args: Any, **kwargs: Any) -> Any:
        """The loss of the whole batch, computed by every process; afterwards it is known whether it can be dealt."""
        before = Snapshot(self.model)
        losses = self.loss(whole, *args, **kwargs)
        after = Snapshot(self.model, before.changed())
        before.restore()
        try:
            with self.parts.weighing(part.weight):
                of_part = self.loss(part, *args, **kwargs)
        finally:
            after.restore()
        difference = self._difference(losses, of_part, part.weight)
        self.is_dealt = difference <= self.tolerance
        if not self.is_dealt and distributed.is_main():
            getLogger().warning(
                f"{self.name} of {self.model._get_name()} is no mean over the rows of a batch (its gradient differs "
                f"by {difference:.0e} between a batch and its parts): every process computes the whole batch. Training "
                f"is right, but not faster than in one process; evaluation is."
            )
        return self._of_whole(losses)

    def _difference(self, of_whole: Any, of_part: Any, weight: float) -> float:
        """Between the two gradients, of the parameter where it is largest, relative to its length; all processes."""
        whole = _gradients(of_whole, self.parameters)
        parts = _summed_gradients(_gradients(of_part, self.parameters, weight), self.parameters)
        length = sum(float(one.double().square().sum()) for one in whole if one is not None) ** 0.5
        worst = 0.0
        for one, other in zip(whole, parts, strict=True):
            if one is None and other is None:
                continue
            one = torch.zeros_like(other) if one is None else one
            difference = one if other is None else one - other
            scale = max(float(one.double().norm()), _FLOOR * length, 1e-30)
            error = float(difference.double().norm()) / scale
            worst = max(worst, error if np.isfinite(error) else 0.0)  # a loss that is NaN is another matter
        return distributed.largest(worst)

    def _of_whole(self, losses: Any) -> Any:
        # The processes agree but for rounding that depends on the device; the mean keeps them from drifting apart.
        return self._summed(losses, 1.0 / distributed.world_size())

    def _summed(self, losses: Any, weight: float) -> Any:
        several = losses if isinstance(losses, tuple) else (losses,)
        values = torch.stack([one.detach().float().sum() for one in several]) * weight
        distributed.sum_over([values])
        summed = _SumOverProcesses.apply(several, weight, values, *self.parameters)
        return summed if isinstance(losses, tuple) else summed[0]

    @property
    def parameters(self) -> list[nn.Parameter]:
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]


class _SumOverProcesses(torch.autograd.Function):
    """Values that are sums over the processes, whose gradient is the sum of the processes' gradients.

    The gradient of the own part is computed in the backward pass, not before, so that a loss scaler's factor reaches
    it.
    """

    @staticmethod
    def forward(
        ctx: Any, losses: tuple[Tensor, ...], weight: float, values: Tensor, *parameters: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.losses, ctx.weight, ctx.parameters = losses, weight, parameters
        return tuple(value.clone() for value in values)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        own = _gradients(ctx.losses, ctx.parameters, ctx.weight, gradients, retain_graph=False)
        return None, None, None, *_summed_gradients(own, ctx.parameters)


def _gradients(
    losses: Any,
    parameters: Sequence[Tensor],
    weight: float = 1.0,
    factors: Sequence[Tensor] | None = None,
    retain_graph: bool = True,
) -> list[Tensor | None]:
    """Gradients of ``weight * sum_k factor_k loss_k``; None for a parameter that no loss depends on."""
    several = losses if isinstance(losses, tuple) else (losses,)
    factors = [torch.ones_like(one) for one in several] if factors is None else factors
    with_graph = [
        (one, (weight * factor).to(one).reshape(one.shape))
        for one, factor in zip(several, factors, strict=True)
        if one.requires_grad
    ]
    if not with_graph:
        return [None] * len(parameters)
    outputs, weights = zip(*with_graph, strict=True)
    return list(torch.autograd.grad(outputs, parameters, weights, retain_graph=retain_graph, allow_unused=True))


def _summed_gradients(gradients: Sequence[Tensor | None], parameters: Sequence[Tensor]) -> list[Tensor | None]:
    """Sums over the processes; None where no process has a gradient."""
    if not parameters:
        return []
    used = torch.tensor([float(gradient is not None) for gradient in gradients], device=parameters[0].device)
    distributed.sum_over([used])
    sums = [
        (torch.zeros_like(parameter) if gradient is None else gradient.contiguous()) if in_use else None
        for gradient, parameter, in_use in zip(gradients, parameters, used.tolist(), strict=True)
    ]
    distributed.sum_over(tensor for tensor in sums if tensor is not None)
    return sums


# -- RecBole's regulariser, the one common loss that is no mean over rows ---------------------------------------------


@dataclass
class _Parts:
    """Tells the regularisers of a model whether they see a part of a batch, and how much of it."""

    weight: float | None = None

    @classmethod
    def of(cls, model: nn.Module) -> _Parts:
        parts = cls()
        for module in model.modules():
            if type(module) is EmbLoss:
                module.__class__ = _EmbLossOfParts
                module.parts = parts
            elif isinstance(module, _EmbLossOfParts):
                parts = module.parts
        return parts

    @contextmanager
    def weighing(self, weight: float) -> Iterator[None]:
        self.weight = weight
        try:
            yield
        finally:
            self.weight = None


class _EmbLossOfParts(EmbLoss):
    r"""RecBole's ``EmbLoss``, exact when the rows of a batch lie with several processes.

    It is the length of a matrix of embeddings, divided by its rows n: with e_r the rows of process r,
    ``|e| / n = (sum_r |e_r|^p)^(1/p) / n``. The gradient for e_r is that of ``|e_r|``, times (|e_r| / |e|)^(p - 1).
    (With ``require_pow`` it is a mean over rows.)
    """

    parts: _Parts

    def forward(self, *embeddings: Tensor, require_pow: bool = False) -> Tensor:
        if require_pow or self.parts.weight is None:
            return super().forward(*embeddings, require_pow=require_pow)
        own = torch.stack([torch.norm(embedding, p=self.norm) for embedding in embeddings])
        total = torch.cat([own.detach().pow(self.norm), own.new_tensor([float(embeddings[-1].shape[0])])])
        distributed.sum_over([total])
        length, rows = total[:-1].pow(1.0 / self.norm), total[-1]
        slope = torch.where(length > 0, own.detach() / length, 0.0).pow(self.norm - 1)
        # The caller takes weight times this: the value is the whole one, the gradient is that of the own rows.
        return ((length + slope / self.parts.weight * (own - own.detach())).sum() / rows).reshape(1)
