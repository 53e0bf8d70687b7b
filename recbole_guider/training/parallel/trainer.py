"""Mixed into a trainer of RecBole: one of several processes that train one model together."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import recbole.trainer.trainer
from recbole.trainer import Trainer

from recbole_guider.training.parallel.evaluation import SharedCollector, own_share
from recbole_guider.training.parallel.losses import TOLERANCE, TOLERANCE_MIXED, WholeBatchLoss
from recbole_guider.utils import distributed
from recbole_guider.utils.errors import GuiderError

if TYPE_CHECKING:
    from recbole.trainer import Trainer as _Trainer
else:
    _Trainer = object  # a mixin: the trainer stands beside it

#: Methods of a model that are losses of a batch; what a model does not have is passed over.
LOSSES = ("calculate_loss", "teacher_loss")


class ParallelTraining(_Trainer):
    """The same training, by several processes.

    It starts from the main process' parameters, deals every batch (:mod:`~recbole_guider.training.parallel.losses`) and
    every evaluation (:mod:`~recbole_guider.training.parallel.evaluation`), and lets the main process alone write. All
    else is the trainer's own: since losses, gradients and metrics are the same in every process, so is every decision
    that follows from them.
    """

    def __init__(self, config: Any, model: Any) -> None:
        os.makedirs(config["checkpoint_dir"], exist_ok=True)  # RecBole's way fails where two processes try at once
        distributed.copy_from_main([*model.parameters(), *model.buffers()])
        with _main_alone_draws():
            super().__init__(config, model)
        self.eval_collector = SharedCollector(config)
        self._losses = [
            WholeBatchLoss(model, name, TOLERANCE_MIXED if self.enable_amp else TOLERANCE)
            for name in LOSSES
            if hasattr(model, name)
        ]
        for loss in self._losses:
            # at the model, where every trainer of RecBole looks for its losses
            setattr(model, loss.name, loss)

    def _train_epoch(
        self, train_data: Any, epoch_idx: int, loss_func: Any = None, show_progress: bool = False
    ) -> Any:
        self.check_losses()
        return super()._train_epoch(train_data, epoch_idx, loss_func=loss_func, show_progress=show_progress)

    def check_losses(self) -> None:
        """Begin a pass: whether the next batch can be dealt is found out anew, since a model may change its loss."""
        for loss in self._losses:
            loss.to_check = True

    def evaluate(
        self, eval_data: Any, load_best_model: bool = True, model_file: Any = None, show_progress: bool = False
    ) -> Any:
        share = own_share(eval_data) if eval_data else eval_data
        return super().evaluate(share, load_best_model, model_file, show_progress)


def require_same_data(dataset: Any) -> None:
    """Raise in every process unless all of them train on the same interactions, in the same order.

    Raises:
        GuiderError: a machine has other files or settings.
    """
    if distributed.is_parallel():
        pairs = [np.ascontiguousarray(dataset.inter_feat[name]) for name in (dataset.uid_field, dataset.iid_field)]
        distributed.require_same("The training data", [len(pairs[0]), *(zlib.crc32(column.data) for column in pairs)])


def require_dealable(trainer: type, model: str) -> None:
    """Raise unless several processes can train with ``trainer``.

    Raises:
        GuiderError: it does not train by gradients, as RecBole's decision trees.
    """
    if not issubclass(trainer, Trainer):
        raise GuiderError(f"{model} is not trained by gradients, which is what several processes share: use --nproc 1.")


def require_exact(config: Any) -> None:
    """Raise unless several processes compute what one does, for all that a run's settings add to its backbone.

    Raises:
        GuiderError: ``denoising`` (its methods keep a record of each interaction, step optimisers of their own inside
            a loss, or change the loss within an epoch) or ``guider.variant: released`` (which compares the rows of a
            batch) is set.
    """
    setting = None
    if config.denoising_settings is not None:
        setting = f"denoising is {config.denoising_settings.method}"
    elif config.guider_settings is not None and config.guider_settings.variant == "released":
        setting = "guider.variant is released"
    if setting is not None:
        raise GuiderError(f"{setting}: what it makes of a batch cannot be shared by processes; use --nproc 1.")


class _NoWriter:
    """Stands for TensorBoard's writer in the other processes."""

    def add_scalar(self, *args: Any, **kwargs: Any) -> None:
        pass

    def add_hparams(self, *args: Any, **kwargs: Any) -> None:
        pass


@contextmanager
def _main_alone_draws() -> Iterator[None]:
    """Within this context RecBole's trainers make no TensorBoard files, unless this is the main process."""
    if distributed.is_main():
        yield
        return
    module = recbole.trainer.trainer
    original = module.get_tensorboard
    module.get_tensorboard = lambda logger: _NoWriter()
    try:
        yield
    finally:
        module.get_tensorboard = original
