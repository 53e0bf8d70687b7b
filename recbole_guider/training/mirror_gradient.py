"""Mirror gradient: some batches take a step down their loss and a smaller one back up, which favours flat minima."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

from torch import Tensor, nn

from recbole_guider.training.settings import MirrorGradientSettings
from recbole_guider.utils.model_state import Snapshot

#: What a model's loss function gives: one loss, or several that are added up.
Losses: TypeAlias = Tensor | tuple[Tensor, ...]


class MirrorGradient:
    r"""Batches and losses for an epoch in which every ``interval``-th batch, the first included, is mirrored.

    With s the update that the optimiser makes of a gradient (for plain gradient descent ``s(g) = lr g``), a mirrored
    batch with loss L makes of the parameters theta

        theta' = theta - s(alpha grad L(theta)),    theta'' = theta' - s(- beta grad L(theta')),

    and any other batch ``theta - s(grad L(theta))``. Both steps see the same sampled items, the same draws and the same
    state of the model beside theta (a graph that is due, a record of earlier batches). Each is a step like any other:
    it is clipped by clip_grad_norm and scaled for mixed precision. (The authors' code clips the second one only, and
    draws dropout anew.) The epoch's loss counts every batch once, as it was before its first step.

    A loop of RecBole's asks for a batch, computes its loss and steps: a mirrored batch is two turns of that loop.
    :meth:`batches` gives such a batch twice, and what :meth:`loss` gives knows which of the two it sees.

    Source: Zhong et al., Mirror Gradient: Towards Robust Multimodal Recommender Systems via Exploring Flat Local
    Minima, WWW 2024; ``interval``, ``alpha`` and ``beta`` are there beta, alpha_1 and alpha_2.

    Args:
        model: what the losses are of.
        settings: of the ``mirror_gradient`` block.
    """

    def __init__(self, model: nn.Module, settings: MirrorGradientSettings) -> None:
        self.model, self.settings = model, settings
        self._turn = "plain"
        #: the model before a mirrored batch's first turn, and after it
        self._before: Snapshot | None = None
        self._afterwards: Snapshot | None = None
        #: the tensors that a loss changes in place; the first mirrored batch of a pass tells
        self._changing: set[int] | None = None

    def batches(self, loader: Any) -> _MirroredBatches:
        """The batches of a loader, mirrored ones twice."""
        return _MirroredBatches(self, loader)

    def loss(self, loss: Callable[..., Losses]) -> Callable[..., Losses]:
        """A loss function whose gradient is weighted by what the turn of the latest batch is."""

        def of_turn(*arguments: Any, **more: Any) -> Losses:
            return self._of_turn(lambda: loss(*arguments, **more))

        return of_turn

    def turns(self, loader: Any) -> Iterator[Any]:
        """The batches of one pass."""
        self._changing = None
        for number, batch in enumerate(loader):
            if number % self.settings.interval:
                self._turn = "plain"
                yield batch
            else:
                for turn in ("down", "up"):
                    self._turn = turn
                    yield batch
                if self._afterwards is not None:
                    # not before the step is done: the backward pass may need a buffer as the loss left it
                    self._afterwards.restore()
                    self._afterwards = None

    def _of_turn(self, loss: Callable[[], Losses]) -> Losses:
        if self._turn == "plain":
            return loss()
        if self._turn == "down":
            self._before = Snapshot(self.model, self._changing)
            losses = loss()
            self._changing = self._before.changed() | (self._changing or set())
            return _each(losses, self._weighted_down)
        assert self._before is not None, "the loader gives a batch down before it gives it up"
        self._afterwards = Snapshot(self.model, self._changing)
        self._before.restore()
        self._before = None
        return _each(loss(), self._weighted_up)

    def _weighted_down(self, loss: Tensor) -> Tensor:
        """``loss`` by its value, with ``alpha`` times its gradient."""
        alpha = self.settings.alpha
        return loss if alpha == 1 else alpha * loss + (1 - alpha) * loss.detach()

    def _weighted_up(self, loss: Tensor) -> Tensor:
        """0 by its value, as the batch has been counted, with ``- beta`` times the gradient of ``loss``."""
        return -self.settings.beta * (loss - loss.detach())


class _MirroredBatches:
    """A loader that gives mirrored batches twice."""

    def __init__(self, mirror: MirrorGradient, loader: Any) -> None:
        self.mirror, self.loader = mirror, loader

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["loader"], name)

    def __len__(self) -> int:
        batches = len(self.loader)
        return batches + -(-batches // self.mirror.settings.interval)

    def __iter__(self) -> Iterator[Any]:
        return self.mirror.turns(self.loader)


def _each(losses: Losses, change: Callable[[Tensor], Tensor]) -> Losses:
    return tuple(map(change, losses)) if isinstance(losses, tuple) else change(losses)
