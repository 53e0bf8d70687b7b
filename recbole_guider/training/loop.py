"""The loop of a training: one evaluation after another, which fit, sweeps, benchmarks and replays drive."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from logging import getLogger
from pathlib import Path
from time import time
from typing import Any

import numpy as np
import torch
from recbole.utils import calculate_valid_score, dict2str, early_stopping, get_local_time, set_color

from recbole_guider.training import checkpoint
from recbole_guider.training.parallel.evaluation import own_share
from recbole_guider.training.steps import Steps, recboles_trainer
from recbole_guider.utils import distributed
from recbole_guider.utils.model_state import PlainAttributes


@dataclass(frozen=True)
class Evaluation:
    """What one evaluation during training found.

    Attributes:
        epoch: after which it was, from 0.
        train_loss: of this epoch, its parts added up.
        score, result: ``valid_metric``, and all metrics.
        best_score, best_result: those of the best model so far.
        is_best: whether it is this one.
        is_last: whether training ends with it, by the number of epochs or by early stopping.
    """

    epoch: int
    train_loss: float
    score: float
    result: Mapping[str, float]
    best_score: float
    best_result: Mapping[str, float]
    is_best: bool
    is_last: bool


class Callback:
    """What is done around the epochs, evaluations and checkpoints of a training; here nothing."""

    def begin_epoch(self, epoch: int) -> None:
        """Called before epoch ``epoch``, the first is 0."""

    def end_epoch(self, epoch: int) -> None:
        """Called after the epoch's last step, before its evaluation."""

    def evaluated(self, evaluation: Evaluation) -> None:
        """Called after an evaluation, before its checkpoints are written."""

    def notes(self) -> Mapping[str, Any]:
        """What a checkpoint is to hold under ``notes``: plain data."""
        return {}


class Training:
    """The training of a model: epochs, evaluations, early stopping and checkpoints around RecBole's steps.

    It has the methods of RecBole's trainers that scripts call: :meth:`fit`, :meth:`evaluate`,
    :meth:`resume_checkpoint`. Steps and evaluations are those of RecBole's trainer for the model
    (:class:`~recbole_guider.training.steps.Steps`), so that clip_grad_norm, mixed precision, every metric and the
    trainers of single models apply.

    Two files: ``<model>-<time>-<unique>.pth`` is the best model by validation, as RecBole has it;
    ``<the same>.last.pth`` is rewritten after every evaluation, so that a killed run continues where it was
    (``resume: <file>``), and is removed when training ends.

    With several processes (:mod:`recbole_guider.training.parallel`) it starts from the main process' parameters, and
    the main process alone writes. Since losses, gradients and metrics are the same in every process, so is every
    decision that follows from them.

    Args:
        config: a GuiderConfig.
        model: of ``config.model_class``.

    Attributes:
        callbacks: may be added to before training starts.
        best_valid_score, best_valid_result: of the best model so far.
        train_loss_dict: epoch -> the sum of its losses.
        saved_model_file: where the best model is written.
        keep_last_model: whether the state after the latest evaluation stays when training ends, for a caller that has
            more to do.
    """

    def __init__(self, config: Any, model: Any) -> None:
        self.config, self.model = config, model
        self.logger = getLogger()
        self.device: torch.device = config["device"]
        os.makedirs(config["checkpoint_dir"], exist_ok=True)
        if distributed.is_parallel():
            distributed.copy_from_main([*model.parameters(), *model.buffers()])
        self.steps = self.make_steps()
        self.callbacks: list[Callback] = []
        self.epochs = self.steps.epochs
        self.eval_step: int = self.steps.trainer.eval_step
        self.stopping_step: int = config["stopping_step"]
        self.valid_metric_bigger: bool = config["valid_metric_bigger"]
        #: the next epoch, and how many evaluations there were since the best one
        self.start_epoch = self.cur_step = 0
        self.best_valid_score = -np.inf if self.valid_metric_bigger else np.inf
        self.best_valid_result: Any = None
        self.train_loss_dict: dict[int, float] = {}
        # RecBole names checkpoints by the second: two runs that start together would share a file
        name = f"{config['model']}-{get_local_time()}-{secrets.token_hex(3)}.pth"
        self.saved_model_file: str = distributed.share(os.path.join(config["checkpoint_dir"], name))
        self.keep_last_model = False
        #: what the model keeps beside its weights
        self.attributes = PlainAttributes(model)
        #: what a checkpoint says of the data and of the optimisers, and what is left of the one that is resumed
        self.train_data: Any = None
        self.training_pairs: int | None = None
        self.built_with: dict[str, list[list[float]]] = {}
        self.resumed: checkpoint.Resumed | None = None

    @property
    def last_model_file(self) -> str:
        """Where the state after the latest evaluation lies while training runs."""
        return f"{os.path.splitext(self.saved_model_file)[0]}.last.pth"

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """What steps the model."""
        return self.steps.trainer.optimizer

    # -- what another training does in another way ----------------------------------------------------------------

    def make_steps(self) -> Steps:
        """The steps of the model that predicts."""
        config = self.config
        return Steps(config, self.model, recboles_trainer(config["MODEL_TYPE"], config["backbone"]))

    def begin(self, train_data: Any, valid_data: Any, verbose: bool, show_progress: bool) -> None:
        """Do what comes before the first epoch, also in a run that is continued."""

    def train_epoch(self, train_data: Any, epoch: int, show_progress: bool) -> Any:
        """Train for one epoch; the sum of its losses, or of each of their parts."""
        return self.steps.run(train_data, epoch, show_progress)

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """Every optimiser whose learning rate the configuration gives, by name."""
        return checkpoint.held_optimizers(self.steps.trainer)

    def extra_state(self) -> dict[str, Any]:
        """What a training needs beyond the state of the model and of its steps to continue; plain data and tensors."""
        return {}

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        """Take back what :meth:`extra_state` gave."""

    def report_losses(self, epoch: int, losses: Any) -> None:
        """Write an epoch's losses to TensorBoard."""
        self.steps.trainer._add_train_loss_to_tensorboard(epoch, losses)

    def loss_line(self, epoch: int, start: float, end: float, losses: Any) -> str:
        """What the log says of an epoch's losses."""
        line: str = self.steps.trainer._generate_train_loss_output(epoch, start, end, losses)
        return line

    # -- training -------------------------------------------------------------------------------------------------

    def fit(
        self,
        train_data: Any,
        valid_data: Any = None,
        verbose: bool = True,
        saved: bool = True,
        show_progress: bool = False,
        callback_fn: Callable[[int, float], None] | None = None,
    ) -> tuple[float, Any]:
        """Train to the end; RecBole's arguments.

        Returns:
            (best validation score, best validation result); without validation data the second is None.
        """
        for evaluation in self.iter_evaluations(
            train_data, valid_data, verbose=verbose, saved=saved, show_progress=show_progress
        ):
            if callback_fn:
                callback_fn(evaluation.epoch, evaluation.score)
        return self.best_valid_score, self.best_valid_result

    def iter_evaluations(
        self,
        train_data: Any,
        valid_data: Any = None,
        *,
        verbose: bool = True,
        saved: bool = True,
        show_progress: bool = False,
    ) -> Iterator[Evaluation]:
        """Train, and stop after each evaluation for whoever drives this loop.

        A caller that asks for no further evaluation leaves a run that was not ended: its last checkpoint stays.

        Args:
            train_data, valid_data: RecBole's loaders; no validation data: nothing is evaluated.
            verbose: whether losses and metrics are logged.
            saved: whether checkpoints are written.
            show_progress: whether epochs and evaluations show a bar.

        Raises:
            GuiderError: the run is resumed on other data.
        """
        self.train_data = train_data
        self.collect_data(train_data)
        self.begin(train_data, valid_data, verbose, show_progress)
        was_over = checkpoint.continue_resumed(self)
        if self.config["train_neg_sample_args"].get("dynamic", False):
            train_data.get_model(self.model)
        evaluates = bool(valid_data) and self.eval_step > 0 and not self.steps.pretrains
        if saved and not was_over and self.start_epoch >= self.epochs:
            self.save_checkpoint(-1, self.saved_model_file, verbose)
        for epoch in range(self.epochs if was_over else self.start_epoch, self.epochs):
            self._train(train_data, epoch, verbose, show_progress)
            if not evaluates:
                if saved:
                    self._save_unevaluated(epoch, verbose)
            elif (epoch + 1) % self.eval_step == 0:
                evaluation = self._evaluated(valid_data, epoch, verbose, show_progress)
                if saved:
                    if evaluation.is_best:
                        self.save_checkpoint(epoch, self.saved_model_file, verbose)
                    self.save_checkpoint(epoch, self.last_model_file, verbose=False)
                yield evaluation
                if self.cur_step > self.stopping_step:
                    if verbose:
                        best = epoch - self.cur_step * self.eval_step
                        self.logger.info(f"Finished training, best eval result in epoch {best}")
                    break
        self.steps.trainer._add_hparam_to_tensorboard(self.best_valid_score)
        self._clean_up(saved)

    def _train(self, train_data: Any, epoch: int, verbose: bool, show_progress: bool) -> None:
        for callback in self.callbacks:
            callback.begin_epoch(epoch)
        self.steps.begin_epoch(epoch)
        start = time()
        losses = self.train_epoch(train_data, epoch, show_progress)
        end = time()
        self.train_loss_dict[epoch] = sum(losses) if isinstance(losses, tuple) else losses
        for callback in self.callbacks:
            callback.end_epoch(epoch)
        if verbose:
            self.logger.info(self.loss_line(epoch, start, end, losses))
        self.report_losses(epoch, losses)
        self.steps.trainer.wandblogger.log_metrics(
            {"epoch": epoch, "train_loss": losses, "train_step": epoch}, head="train"
        )

    def _evaluated(self, valid_data: Any, epoch: int, verbose: bool, show_progress: bool) -> Evaluation:
        start = time()
        score, result = self.validate(valid_data, show_progress)
        self.best_valid_score, self.cur_step, stops, is_best = early_stopping(
            score, self.best_valid_score, self.cur_step, max_step=self.stopping_step, bigger=self.valid_metric_bigger
        )
        if is_best:
            self.best_valid_result = result
        if verbose:
            self.logger.info(
                set_color(f"epoch {epoch} evaluating", "green")
                + f" [{set_color('time', 'blue')}: {time() - start:.2f}s, {set_color('valid_score', 'blue')}: "
                + f"{score:f}]"
            )
            self.logger.info(set_color("valid result", "blue") + ": \n" + dict2str(result))
        self.steps.trainer.tensorboard.add_scalar("Vaild_score", score, epoch)  # RecBole's name for it
        self.steps.trainer.wandblogger.log_metrics(
            {**result, "valid_step": (epoch + 1) // self.eval_step - 1}, head="valid"
        )
        evaluation = Evaluation(
            epoch, float(self.train_loss_dict[epoch]), score, result, self.best_valid_score, self.best_valid_result,
            is_best, is_last=stops or epoch + self.eval_step >= self.epochs,
        )
        for callback in self.callbacks:
            callback.evaluated(evaluation)
        return evaluation

    def collect_data(self, train_data: Any) -> None:
        """Tell the metrics that need it of the training data; training does it by itself."""
        self.steps.trainer.eval_collector.data_collect(train_data)

    def validate(self, valid_data: Any, show_progress: bool = False) -> tuple[float, Any]:
        """Validation score and metrics of the model as it is."""
        result = self.evaluate(valid_data, load_best_model=False, show_progress=show_progress)
        return calculate_valid_score(result, self.steps.trainer.valid_metric), result

    def evaluate(
        self, eval_data: Any, load_best_model: bool = True, model_file: Any = None, show_progress: bool = False
    ) -> Any:
        """Metrics on a loader; RecBole's arguments.

        Args:
            eval_data: RecBole's loader; None: the result is None.
            load_best_model: whether the best model is read first.
            model_file: the checkpoint to read it from; None: this run's.
        """
        if eval_data and load_best_model:
            with distributed.file_of_main(model_file or self.saved_model_file) as file:
                state = checkpoint.load(file, self.device)
            checkpoint.load_model(self.model, state)
        if eval_data and distributed.is_parallel():
            eval_data = own_share(eval_data)
        return self.steps.trainer.evaluate(eval_data, load_best_model=False, show_progress=show_progress)

    # -- checkpoints ----------------------------------------------------------------------------------------------

    def save_checkpoint(self, epoch: int, file: str, verbose: bool = True) -> None:
        """Write the state after ``epoch`` to ``file``."""
        if not distributed.is_main():
            return
        checkpoint.save(checkpoint.state_of(self, epoch), file)
        if verbose:
            self.logger.info(set_color("Saving current", "blue") + f": {file}")

    def resume_checkpoint(self, resume_file: str | Path) -> None:
        """Continue from a checkpoint: the model, every optimiser, the counters and the random streams.

        Raises:
            GuiderError: the checkpoint is of another model, data set or shape, or that run's best model is missing.
        """
        checkpoint.resume(self, resume_file)

    def _save_unevaluated(self, epoch: int, verbose: bool) -> None:
        """The checkpoints of an epoch that nothing evaluates."""
        if not self.steps.pretrains:
            self.save_checkpoint(epoch, self.saved_model_file, verbose)
        elif (epoch + 1) % self.steps.trainer.save_step == 0:
            # the backbone's weights, for the next stage, with GUIDER or without: it reads them as pre_model_path
            name = f"{self.config['model']}-{self.config['dataset']}-{epoch + 1}.pth"
            file = os.path.join(self.config["checkpoint_dir"], name)
            backbone: Any = getattr(self.model, "student", self.model)
            if distributed.is_main():
                checkpoint.save({"epoch": epoch, "state_dict": backbone.state_dict()}, file)
            if verbose:
                self.logger.info(set_color("Saving current", "blue") + f": {file}")
            self.save_checkpoint(epoch, self.saved_model_file, verbose=False)

    def _clean_up(self, saved: bool) -> None:
        if not distributed.is_main():
            return
        if saved and self.train_loss_dict and not Path(self.saved_model_file).exists():
            # a stage that is shorter than its save_step, or more epochs than one from evaluation to evaluation
            self.save_checkpoint(max(self.train_loss_dict), self.saved_model_file, verbose=False)
        if not self.keep_last_model:
            Path(self.last_model_file).unlink(missing_ok=True)
