"""The optimiser steps of one model: RecBole's trainer for it, and what a run puts around each of its losses."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from recbole.trainer import Trainer
from recbole.trainer.trainer import NCLTrainer, PretrainTrainer
from recbole.utils import get_trainer
from torch import nn

from recbole_guider.training.mirror_gradient import MirrorGradient
from recbole_guider.training.parallel.evaluation import SharedCollector
from recbole_guider.training.parallel.losses import TOLERANCE, TOLERANCE_MIXED, WholeBatchLoss
from recbole_guider.training.settings import MirrorGradientSettings
from recbole_guider.utils import compat, distributed
from recbole_guider.utils.errors import GuiderError

#: Where RecBole's trainers look for the losses of a batch.
_LOSSES = ("calculate_loss", "calculate_rs_loss", "calculate_kg_loss")


def recboles_trainer(model_type: Any, model: str) -> type[Trainer]:
    """The trainer that RecBole has for a model.

    Raises:
        GuiderError: the model is not trained by gradients (RecBole's decision trees).
    """
    trainer: type = inspect.unwrap(get_trainer)(model_type, model)  # under that name RecBole may have our own
    if not issubclass(trainer, Trainer):
        raise GuiderError(f"{model} is not trained by gradients: run it with RecBole, without recbole_guider.")
    return trainer


class ModelView:
    """A model with other losses, or with fewer parameters to train, for a trainer of RecBole; all else is the model's.

    Args:
        model: the model.
        losses: name of a method -> what a trainer calls under this name in place of the model's own.
        parameters: what :meth:`parameters` gives; None: the model's.
    """

    def __init__(
        self, model: nn.Module, losses: Mapping[str, Callable[..., Any]], parameters: Iterable[nn.Parameter] | None
    ) -> None:
        self._model, self._parameters = model, None if parameters is None else list(parameters)
        vars(self).update(losses)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_model"], name)

    def parameters(self) -> list[nn.Parameter]:
        return list(self._model.parameters()) if self._parameters is None else self._parameters


class Steps:
    """Passes over batches, in which RecBole's trainer steps a model.

    RecBole's trainers of single models keep their ways: RecVAE's epoch is several passes with an optimiser for each
    part, NCL clusters at the beginning of some epochs, RaCT has stages. They find every loss at the model that they are
    given: where a run puts something around losses (several processes, mirror gradient), or trains a part of a model
    only, that is a :class:`ModelView`.

    Args:
        config: of the model that is stepped; its learner, learning rate, weight decay and clipping hold.
        model: what has the losses, and predicts.
        trainer: RecBole's trainer.
        loss: the method of ``model`` that trainers are given as ``calculate_loss``.
        parameters: what is trained; None: all of ``model``.
        reports: whether RecBole's trainer opens TensorBoard and Weights & Biases.
    """

    def __init__(
        self,
        config: Any,
        model: nn.Module,
        trainer: type[Trainer],
        loss: str = "calculate_loss",
        parameters: Iterable[nn.Parameter] | None = None,
        reports: bool = True,
    ) -> None:
        self.model = model
        #: the losses that several processes share
        self.shared_losses: list[WholeBatchLoss] = []
        self._mirror: MirrorGradient | None = None
        mirrored = MirrorGradientSettings.from_block(config["mirror_gradient"])
        if mirrored is not None:
            self._mirror = MirrorGradient(model, mirrored)
        named = {name: loss if name == "calculate_loss" else name for name in _LOSSES}
        losses = {
            name: self._surrounded(method, config) for name, method in named.items()
            if hasattr(model, method) and (method != name or self._mirror is not None or distributed.is_parallel())
        }
        seen: Any = model if parameters is None and not losses else ModelView(model, losses, parameters)
        if reports and distributed.is_main():
            self.trainer = trainer(config, seen)
        else:
            with compat.without_tensorboard():
                self.trainer = trainer(config, seen)
        if distributed.is_parallel():
            self.trainer.eval_collector = SharedCollector(config)

    def _surrounded(self, name: str, config: Any) -> Callable[..., Any]:
        """The loss that a method of the model is, shared by the processes and mirrored where the run asks for it."""
        loss: Callable[..., Any] = getattr(self.model, name)
        if distributed.is_parallel():
            shared = WholeBatchLoss(self.model, name, TOLERANCE_MIXED if config["enable_amp"] else TOLERANCE)
            self.shared_losses.append(shared)
            loss = shared
        return loss if self._mirror is None else self._mirror.loss(loss)

    @property
    def pretrains(self) -> bool:
        """Whether this is a stage of pre-training, as RaCT and S3Rec have them: it evaluates nothing, and its result is
        a file for the next stage."""
        return isinstance(self.trainer, PretrainTrainer) and self.model.train_stage.endswith("pretrain")

    @property
    def epochs(self) -> int:
        """How many epochs the model is trained."""
        return int(self.trainer.pretrain_epochs if self.pretrains else self.trainer.epochs)

    def begin_epoch(self, epoch: int) -> None:
        """What RecBole's trainers do before some epochs, outside of the epoch itself."""
        if isinstance(self.trainer, NCLTrainer) and epoch % self.trainer.num_m_step == 0:
            self.trainer.logger.info("Running E-step ! ")
            self.model.e_step()

    def run(self, batches: Any, epoch: int, show_progress: bool = False) -> Any:
        """One epoch of RecBole's trainer.

        Args:
            batches: RecBole's training loader, or something that iterates over batches in its place.
            epoch: its number, from 0.

        Returns:
            The sum of the losses of all batches, or of each of their parts.
        """
        for loss in self.shared_losses:
            loss.to_check = True  # a model may change its loss
        if self._mirror is not None:
            batches = self._mirror.batches(batches)
        return self.trainer._train_epoch(batches, epoch, show_progress=show_progress)
