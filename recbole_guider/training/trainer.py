"""GUIDER's training: calibration, then epoch by epoch a pass of the teacher and a pass of the student."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from time import time
from typing import Any

import numpy as np
import torch
from recbole.data.dataloader import UserDataLoader
from recbole.data.utils import get_dataloader
from recbole.trainer import Trainer
from recbole.utils import early_stopping, set_color

from recbole_guider.amsc import Calibration
from recbole_guider.evaluation.detection import detection_line
from recbole_guider.guider.calibration import attach, calibrate_dataset, summary
from recbole_guider.guider.weighting import SubsampledBatches, reads_histories
from recbole_guider.training.batches import CalibratedBatches, WatchedBatches, progress_bar
from recbole_guider.training.checkpoint import held_optimizers, load_optimizers, optimizer_states
from recbole_guider.training.loop import Training
from recbole_guider.training.steps import Steps, recboles_trainer
from recbole_guider.utils.distributed import once
from recbole_guider.utils.errors import GuiderError
from recbole_guider.utils.paths import user_path

#: What the three numbers of a GUIDER epoch are called in logs, bars and TensorBoard.
LOSS_NAMES = ("teacher loss", "student loss", "distillation loss")


class GuiderTraining(Training):
    """The training of a :class:`~recbole_guider.guider.model.Guider`.

    Before the first epoch AMSC calibrates the training interactions. Then, with ``schedule: in_sync``, every epoch is
    one pass of the teacher and one pass of the student against the frozen teacher; with ``pretrained`` the teacher is
    trained by itself first, stops by the same early stopping on its own validation score, and stays as it was at its
    best. Each of the two has steps of its own: with its optimiser, and for the student (and for a teacher that keeps
    its own loss) the way in which RecBole trains that model.

    Attributes:
        clean_probability, is_clean: of each training interaction, [nnz]; None before it is calibrated.
        calibration: AMSC's; None before, and in a run that was continued.
        calibration_summary: what logs and results say of it.
        calibration_seconds: how long it took.
        calibration_cache: the folder that keeps calibrations, or None.
    """

    def __init__(self, config: Any, model: Any) -> None:
        super().__init__(config, model)
        self.settings = config.guider_settings
        self.calibration: Calibration | None = None
        self.calibration_seconds: float | None = None
        folder = self.settings.calibration.cache
        self.calibration_cache: Path | None = None if folder is None else user_path(folder)
        self.clean_probability: torch.Tensor | None = None
        self.is_clean: torch.Tensor | None = None
        self.calibration_summary: dict[str, Any] | None = None
        #: None where there is no teacher
        self.teacher_steps = None if model.teacher is None else self._make_teacher_steps()
        self._order = torch.Generator().manual_seed(config["seed"])
        self._student_order = torch.Generator().manual_seed(config["seed"] + 1)
        self._teacher_ready = False
        self._teacher_loader: Any = None
        for note in model.plan.notes:
            self.logger.info(f"{set_color('GUIDER', 'green')}: {note}")

    def make_steps(self) -> Steps:
        trainer = recboles_trainer(self.config["MODEL_TYPE"], self.config["backbone"])
        # the teacher has an optimiser of its own
        steps = Steps(self.config, self.model, trainer, parameters=self.model.student.parameters())
        _fuse(steps)
        return steps

    def _make_teacher_steps(self) -> Steps:
        model, own = self.model, self.model.teacher_config(self.config)
        own["log_wandb"] = False  # the student's steps report
        trainer = recboles_trainer(own["MODEL_TYPE"], own["model"])
        if not model.plan.teacher_learns_dbpr and trainer._train_epoch is not Trainer._train_epoch:
            # RecBole trains it in a way of its own (RecVAE)
            return Steps(own, model.teacher, trainer, reports=False)
        parameters = model.teacher.parameters()
        steps = Steps(own, model, Trainer, loss="teacher_loss", parameters=parameters, reports=False)
        _fuse(steps)
        return steps

    # -- calibration ----------------------------------------------------------------------------------------------

    def _calibrate(self, dataset: Any) -> None:
        start = time()
        if not self.model.plan.calibrates:
            self.clean_probability = torch.ones(len(dataset.inter_feat))
            self.is_clean = torch.ones(len(dataset.inter_feat), dtype=torch.bool)
            return
        if self.settings.calibration.method != "none":
            self.logger.info(
                set_color("AMSC", "green") + f" calibrates {len(dataset.inter_feat)} interactions of "
                f"{dataset.user_num - 1} users: this takes from seconds to minutes"
            )
        self.calibration = once(lambda: calibrate_dataset(self.config, dataset, cache=self.calibration_cache))
        self.is_clean = torch.from_numpy(self.calibration.is_clean)
        self.clean_probability = torch.from_numpy(self.calibration.training_probability)
        self.calibration_summary = summary(self.calibration, dataset)
        self.calibration_seconds = time() - start
        self._log_calibration(self.calibration_seconds)

    def _apply_calibration(self, dataset: Any) -> None:
        assert self.clean_probability is not None and self.is_clean is not None
        if len(self.clean_probability) != len(dataset.inter_feat):
            raise GuiderError(
                f"The checkpoint was trained on {len(self.clean_probability)} interactions and the data set has "
                f"{len(dataset.inter_feat)}: resume with the data it was started on."
            )
        attach(dataset, self.clean_probability, self.is_clean)
        users = dataset.inter_feat[dataset.uid_field].numpy()
        items = dataset.inter_feat[dataset.iid_field].numpy()
        self.model.set_calibration(users, items, self.clean_probability.numpy(), self.is_clean.numpy())

    def _log_calibration(self, seconds: float) -> None:
        found = self.calibration_summary
        assert found is not None
        weights = ", ".join(f"{name} {weight:.2f}" for name, weight in found["modality_weights"].items())
        self.logger.info(
            set_color("AMSC", "green")
            + f" [{set_color('time', 'blue')}: {seconds:.2f}s] noise rate {found['noise_rate']:.3f}, "
            + f"{found['n_true']} true and {found['n_false']} false interactions, modality weights: {weights or 'none'}"
        )
        if found["detection"] is not None:
            self.logger.info(set_color("AMSC", "green") + " " + detection_line(found["detection"]))

    # -- epochs ---------------------------------------------------------------------------------------------------

    def _teacher_batches(self, train_data: Any) -> Any:
        """DBPR's batches, or those of the teacher's own loss over what counts as clean in this epoch."""
        if self.model.plan.teacher_learns_dbpr:
            sampler = train_data._sampler if self.model.plan.teacher_needs_negatives else None
            return CalibratedBatches(
                train_data.dataset, self._dbpr_batch_size, self._order, sampler, self.model.NEG_ITEM_ID
            )
        if self._teacher_loader is None:
            own = self.model.teacher_config(self.config)
            self._teacher_loader = get_dataloader(own, "train")(
                own, train_data.dataset, train_data._sampler, shuffle=True
            )
        weighted = not self.model.plan.calibrates or reads_histories(self.model.teacher)
        probability = None if weighted else self._row_probability(self._teacher_loader)
        return SubsampledBatches(self._teacher_loader, probability, self._order)

    def _student_batches(self, train_data: Any) -> Any:
        """RecBole's training loader, or what the student is to see of it, or DBPR's batches."""
        if self.model.plan.student_learns_dbpr:
            return CalibratedBatches(
                train_data.dataset, self._dbpr_batch_size, self._student_order, train_data._sampler,
                self.model.NEG_ITEM_ID,
            )
        probability = self._row_probability(train_data) if self.model.plan.weighting == "subsampled" else None
        return train_data if probability is None else SubsampledBatches(train_data, probability, self._student_order)

    def _row_probability(self, loader: Any) -> torch.Tensor | None:
        """How clean each row of a loader is; None where its rows are no interactions, or all of them are clean."""
        clean = self.clean_probability
        if clean is None or loader.sample_size != len(clean) or isinstance(loader, UserDataLoader):
            return None
        return None if bool((clean == 1).all()) else clean

    @property
    def _dbpr_batch_size(self) -> int:
        size: int = self.settings.dbpr.batch_size or self.config["train_batch_size"]
        return size

    def _teacher_pass(self, batches: Any, epoch: int) -> float:
        """One pass of the teacher; its loss."""
        assert self.teacher_steps is not None
        loss: float = self.teacher_steps.run(batches, epoch)
        # gradients that stay behind would count in the student's clip_grad_norm
        self.model.zero_grad(set_to_none=True)
        return loss

    def train_epoch(self, train_data: Any, epoch: int, show_progress: bool) -> tuple[float, float, float]:
        teaches = self.teacher_steps is not None and self.settings.schedule == "in_sync"
        batches: Any = self._teacher_batches(train_data) if teaches else []
        student_batches = self._student_batches(train_data)
        self.model.begin_epoch()
        with progress_bar(f"Train {epoch:>5}", len(batches) + len(student_batches), show_progress) as bar:
            watch = [WatchedBatches(loader, bar, self.model.last_losses) for loader in (batches, student_batches)]
            teacher_loss = self._teacher_pass(watch[0], epoch) if teaches else 0.0
            self.model.begin_student_pass()
            # the sum over batches that RecBole returns has the form of the backbone's loss: ours are told apart here
            self.steps.run(watch[1], epoch)
        sums = self.model.epoch_losses
        return teacher_loss, sums.get("student", 0.0), sums.get("distillation", 0.0)

    def _pretrain_teacher(self, train_data: Any, valid_data: Any, verbose: bool, show_progress: bool) -> None:
        """Train the teacher alone until its validation score stops rising, and keep it as it was at its best."""
        best_score, waited = (-np.inf if self.valid_metric_bigger else np.inf), 0
        best_state = deepcopy(self.model.teacher.state_dict())
        for epoch_idx in range(self.epochs):
            start = time()
            batches = self._teacher_batches(train_data)
            self.model.begin_epoch()
            with progress_bar(f"Teach {epoch_idx:>5}", len(batches), show_progress) as bar:
                loss = self._teacher_pass(WatchedBatches(batches, bar, self.model.last_losses), epoch_idx)
            if not valid_data or (epoch_idx + 1) % self.eval_step:
                continue
            with self.model.scored_by_teacher():
                score, _ = self.validate(valid_data, show_progress)
            best_score, waited, stop, better = early_stopping(
                score, best_score, waited, max_step=self.stopping_step, bigger=self.valid_metric_bigger
            )
            if verbose:
                self.logger.info(
                    set_color(f"teacher epoch {epoch_idx}", "green")
                    + f" [{set_color('time', 'blue')}: {time() - start:.2f}s, teacher loss: {loss:.4f}, "
                    + f"valid_score: {score:.4f}]"
                )
            if better:
                best_state = deepcopy(self.model.teacher.state_dict())
            if stop:
                break
        if valid_data:
            self.model.teacher.load_state_dict(best_state)
        self._teacher_ready = True

    def begin(self, train_data: Any, valid_data: Any, verbose: bool, show_progress: bool) -> None:
        if self.clean_probability is None:
            self._calibrate(train_data.dataset)
        self._apply_calibration(train_data.dataset)
        if self.settings.schedule == "pretrained" and self.teacher_steps is not None and not self._teacher_ready:
            self._pretrain_teacher(train_data, valid_data, verbose, show_progress)

    # -- logs -----------------------------------------------------------------------------------------------------

    def loss_line(self, epoch: int, start: float, end: float, losses: Any) -> str:
        line = super().loss_line(epoch, start, end, losses)
        for number, name in enumerate(LOSS_NAMES, start=1):
            line = line.replace(f"train_loss{number}", name)
        return line

    def report_losses(self, epoch: int, losses: Any) -> None:
        for name, loss in zip(LOSS_NAMES, losses, strict=True):
            self.steps.trainer.tensorboard.add_scalar(f"Loss/Train/{name}", loss, epoch)

    # -- checkpoints ----------------------------------------------------------------------------------------------

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        found = super().optimizers()
        if self.teacher_steps is not None:
            teachers = held_optimizers(self.teacher_steps.trainer)
            found.update({f"teacher_{name}": optimizer for name, optimizer in teachers.items()})
        return found

    def extra_state(self) -> dict[str, Any]:
        return {
            "teacher": None if self.teacher_steps is None else optimizer_states(self.teacher_steps.trainer),
            "teacher_ready": self._teacher_ready,
            "order": self._order.get_state(),
            "student_order": self._student_order.get_state(),
            "clean_probability": self.clean_probability,
            "is_clean": self.is_clean,
            "calibration": self.calibration_summary,
        }

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        if "teacher" not in state:
            raise GuiderError("resume is a checkpoint of an older version, which cannot be continued: train anew.")
        if self.teacher_steps is not None:
            load_optimizers(self.teacher_steps.trainer, state["teacher"])
        self._teacher_ready = state["teacher_ready"]
        self._order.set_state(state["order"].cpu())
        self._student_order.set_state(state["student_order"].cpu())
        self.clean_probability, self.is_clean = state["clean_probability"].cpu(), state["is_clean"].cpu()
        self.calibration_summary = state["calibration"]


def _fuse(steps: Steps) -> None:
    """Let optimisers take a whole step in one kernel, several times faster on a CPU; RecBole does not ask for it.

    Other optimisers keep numbers that a fused step needs on the device, and have made them by now.
    """
    for optimizer in held_optimizers(steps.trainer).values():
        if isinstance(optimizer, (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD)):
            for group in optimizer.param_groups:
                group["fused"], group["foreach"] = True, False


def share_calibrations(training: Training, folder: Path) -> None:
    """Let ``folder`` keep what AMSC finds, for other runs on the same data, unless the settings name a folder.

    Args:
        training: of any kind; one without GUIDER calibrates nothing.
        folder: as in :func:`~recbole_guider.guider.calibration_cache.load_or_compute`.
    """
    if isinstance(training, GuiderTraining) and training.calibration_cache is None:
        training.calibration_cache = folder
