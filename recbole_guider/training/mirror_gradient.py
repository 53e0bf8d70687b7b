"""Mirror gradient: some batches take a step down their loss and a smaller one back up, which favours flat minima."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

from recbole.trainer import Trainer
from torch import Tensor, nn

from recbole_guider.training.settings import MirrorGradientSettings
from recbole_guider.utils.errors import GuiderError
from recbole_guider.utils.model_state import Snapshot

#: What a model's loss function gives: one loss, or several that are added up.
Losses: TypeAlias = Tensor | tuple[Tensor, ...]


class MirrorGradientTrainer(Trainer):
    r"""RecBole's epoch, in which every ``interval``-th batch, the first included, is mirrored.

    With s the update that the optimiser makes of a gradient (for plain gradient descent ``s(g) = lr g``), a mirrored
    batch with loss L makes of the parameters theta

        theta' = theta - s(alpha grad L(theta)),    theta'' = theta' - s(- beta grad L(theta')),

    and any other batch ``theta - s(grad L(theta))``. Both steps see the same sampled items, the same draws and the same
    state of the model beside theta (a graph that is due, a record of earlier batches). Each is a step like any other:
    it is clipped by clip_grad_norm and scaled for mixed precision. (The authors' code clips the second one only, and
    draws dropout anew.) The epoch's loss counts every batch once, as it was before its first step.

    It stands in the class hierarchy just above RecBole's ``Trainer``, below trainers of single models, so that every
    pass that goes through ``Trainer._train_epoch`` goes through here: of the student, of GUIDER's teacher, of a part
    of a model. Without ``mirror_gradient`` in the configuration it does nothing.

    Source: Zhong et al., Mirror Gradient: Towards Robust Multimodal Recommender Systems via Exploring Flat Local
    Minima, WWW 2024; ``interval``, ``alpha`` and ``beta`` are there beta, alpha_1 and alpha_2.

    Raises:
        GuiderError: the model is trained by a trainer of RecBole's whose epochs do not go through here.
    """

    def __init__(self, config: Any, model: Any) -> None:
        super().__init__(config, model)
        self.mirror_gradient = MirrorGradientSettings.from_block(config["mirror_gradient"])
        if self.mirror_gradient is not None and not _reaches_base(type(self)):
            raise GuiderError(
                f"mirror_gradient is set: {config['backbone']} is trained by RecBole's "
                f"{_epoch_owner(type(self)).__name__}, which has steps of its own; leave mirror_gradient null for it."
            )

    def _train_epoch(
        self, train_data: Any, epoch_idx: int, loss_func: Any = None, show_progress: bool = False
    ) -> Any:
        if self.mirror_gradient is None:
            return super()._train_epoch(train_data, epoch_idx, loss_func=loss_func, show_progress=show_progress)
        mirror = _Mirror(self.model, loss_func or self.model.calculate_loss, train_data, self.mirror_gradient)
        return super()._train_epoch(mirror, epoch_idx, loss_func=mirror.loss, show_progress=show_progress)


class _Mirror:
    """A loader that gives mirrored batches twice, and the loss that knows which of the two it sees.

    RecBole's loop asks for a batch, computes its loss and steps: a mirrored batch is two turns of that loop.
    """

    def __init__(
        self, model: nn.Module, loss_func: Callable[[Any], Losses], loader: Any, settings: MirrorGradientSettings
    ) -> None:
        self.model, self.loss_func, self.loader, self.settings = model, loss_func, loader, settings
        self._turn = "plain"
        #: the model before a mirrored batch's first turn, and after it
        self._before: Snapshot | None = None
        self._afterwards: Snapshot | None = None
        #: the tensors that a loss changes in place; the first mirrored batch tells
        self._changing: set[int] | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)

    def __len__(self) -> int:
        batches = len(self.loader)
        return batches + -(-batches // self.settings.interval)

    def __iter__(self) -> Iterator[Any]:
        for number, batch in enumerate(self.loader):
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

    def loss(self, interaction: Any) -> Losses:
        """The loss of the batch that the loader gave last, its gradient weighted by what its turn is."""
        if self._turn == "plain":
            return self.loss_func(interaction)
        if self._turn == "down":
            self._before = Snapshot(self.model, self._changing)
            losses = self.loss_func(interaction)
            self._changing = self._before.changed() | (self._changing or set())
            return _each(losses, self._weighted_down)
        assert self._before is not None, "the loader gives a batch down before it gives it up"
        self._afterwards = Snapshot(self.model, self._changing)
        self._before.restore()
        self._before = None
        return _each(self.loss_func(interaction), self._weighted_up)

    def _weighted_down(self, loss: Tensor) -> Tensor:
        """``loss`` by its value, with ``alpha`` times its gradient."""
        alpha = self.settings.alpha
        return loss if alpha == 1 else alpha * loss + (1 - alpha) * loss.detach()

    def _weighted_up(self, loss: Tensor) -> Tensor:
        """0 by its value, as the batch has been counted, with ``- beta`` times the gradient of ``loss``."""
        return -self.settings.beta * (loss - loss.detach())


def _each(losses: Losses, change: Callable[[Tensor], Tensor]) -> Losses:
    return tuple(map(change, losses)) if isinstance(losses, tuple) else change(losses)


def _epoch_owner(trainer: type) -> type:
    """The class of RecBole's whose ``_train_epoch`` a trainer has."""
    return next(c for c in trainer.__mro__ if "_train_epoch" in vars(c) and c.__module__.startswith("recbole."))


def _reaches_base(trainer: type) -> bool:
    """Whether a trainer's epochs go through RecBole's base trainer: they are its own, or call it by ``super()``."""
    owner = _epoch_owner(trainer)
    return owner is Trainer or "super" in vars(owner)["_train_epoch"].__code__.co_names
