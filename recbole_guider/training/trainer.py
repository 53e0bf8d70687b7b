"""GUIDER's training: calibrator, teacher and student around RecBole's own epoch loop."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from functools import cache
from pathlib import Path
from time import time
from typing import Any

import numpy as np
import torch
from recbole.data.dataloader import UserDataLoader
from recbole.data.interaction import Interaction
from recbole.data.utils import get_dataloader
from recbole.trainer import Trainer
from recbole.utils import early_stopping, get_trainer, set_color
from tqdm import tqdm

from recbole_guider.amsc import Calibration
from recbole_guider.evaluation.detection import detection_line
from recbole_guider.guider.calibration import CLEAN_PROBABILITY, IS_CLEAN, attach, calibrate_dataset, summary
from recbole_guider.guider.weighting import SubsampledBatches, reads_histories
from recbole_guider.training.checkpoint import PlainCheckpoints, load_optimizers, optimizer_states
from recbole_guider.training.mirror_gradient import MirrorGradientTrainer
from recbole_guider.training.parallel.trainer import ParallelTraining, require_dealable
from recbole_guider.utils.distributed import is_parallel, once
from recbole_guider.utils.errors import GuiderError
from recbole_guider.utils.paths import user_path

#: What the three numbers of a GUIDER epoch are called in logs, bars and TensorBoard.
LOSS_NAMES = ("teacher loss", "student loss", "distillation loss")


class CalibratedBatches:
    """The training interactions with their clean probability, shuffled anew in every pass: the batches of DBPR.

    DBPR's negatives are shared by a batch and drawn by the model. RecBole's sampler is only asked for one item more
    for each interaction where ``sampler`` is given: some backbones compare the content of two items.

    Args:
        dataset: the training part of a data set, with what a calibration says of it.
        batch_size: interactions in a batch.
        generator: where the order comes from.
        sampler: RecBole's training sampler, or None.
        negative_field: the column for its items.
    """

    shuffle = False

    def __init__(
        self, dataset: Any, batch_size: int, generator: torch.Generator, sampler: Any = None, negative_field: str = ""
    ) -> None:
        self.user_field, self.item_field = dataset.uid_field, dataset.iid_field
        names = (self.user_field, self.item_field, CLEAN_PROBABILITY, IS_CLEAN)
        self.columns = {name: dataset.inter_feat[name] for name in names}
        self.size = len(dataset.inter_feat)
        self.batch_size = batch_size
        self.generator = generator
        self.sampler, self.negative_field = sampler, negative_field

    def __len__(self) -> int:
        return -(-self.size // self.batch_size)

    def __iter__(self) -> Iterator[Interaction]:
        order = torch.randperm(self.size, generator=self.generator)
        for rows in order.split(self.batch_size):
            batch = {name: column[rows] for name, column in self.columns.items()}
            if self.sampler is not None:
                users, items = batch[self.user_field].numpy(), batch[self.item_field].numpy()
                batch[self.negative_field] = self.sampler.sample_by_user_ids(users, items, 1)
            yield Interaction(batch)


class _Watched:
    """A loader whose batches move a progress bar."""

    def __init__(self, loader: Any, bar: Any, losses: Mapping[str, float]) -> None:
        self.loader, self.bar, self.losses = loader, bar, losses

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        for batch in self.loader:
            yield batch
            self.bar.update()
            self.bar.set_postfix_str(" ".join(f"{name} {value:.3f}" for name, value in self.losses.items()))


def _progress_bar(description: str, total: int, shown: bool) -> Any:
    """RecBole's bar with a shorter rule: three losses need the room."""
    return tqdm(
        total=total,
        desc=set_color(description, "pink"),
        bar_format="{desc}: {percentage:3.0f}%|{bar:10}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]",
        disable=not shown,
    )


class GuiderTraining(PlainCheckpoints):
    """Mixed into a RecBole trainer to train a :class:`~recbole_guider.guider.model.Guider`.

    Before the first epoch AMSC calibrates the training interactions. Then, with ``schedule: in_sync``, every epoch is
    one pass of the teacher and one pass of the student against the frozen teacher; with ``pretrained`` the teacher is
    trained by itself first, stops by the same early stopping on its own validation score, and stays as it was at its
    best. The passes run through RecBole's ``_train_epoch``, so clip_grad_norm, mixed precision and a backbone's own
    trainer apply; everything around them (early stopping, logging, evaluation) is RecBole's.
    """

    def __init__(self, config: Any, model: Any) -> None:
        super().__init__(config, model)
        self.settings = config.guider_settings
        self.calibration: Calibration | None = None
        folder = self.settings.calibration.cache
        #: how long the latest calibration took
        self.calibration_seconds: float | None = None
        #: the folder that keeps calibrations, or None
        self.calibration_cache: Path | None = None if folder is None else user_path(folder)
        #: of each training interaction, [nnz]
        self.clean_probability: torch.Tensor | None = None
        self.is_clean: torch.Tensor | None = None
        self.calibration_summary: dict[str, Any] | None = None
        self.teacher_optimizer: Any = None
        self.teacher_trainer: Any = None
        if model.teacher is not None and not model.plan.teacher_learns_dbpr:
            self.teacher_trainer = _own_trainer(model.teacher_config(config), model.teacher)
        if model.teacher is not None:
            # guider.teacher_parameters may give the teacher a learning rate of its own
            own = model.teacher_config(config)
            self.teacher_optimizer = self._build_optimizer(
                params=list(model.teacher.parameters()),
                **{key: own[key] for key in ("learner", "learning_rate", "weight_decay")},
            )
        self._order = torch.Generator().manual_seed(config["seed"])
        self._student_order = torch.Generator().manual_seed(config["seed"] + 1)
        self._teacher_ready = False
        self._teacher_loader: Any = None
        for note in model.plan.notes:
            self.logger.info(f"{set_color('GUIDER', 'green')}: {note}")

    def _build_optimizer(self, **kwargs: Any) -> Any:
        # RecBole would hand every parameter to one optimiser; the teacher has one of its own.
        kwargs.setdefault("params", list(self.model.student.parameters()))
        optimizer = super()._build_optimizer(**kwargs)
        # one kernel for a whole step, several times faster on a CPU; RecBole does not ask for it. Other optimisers keep
        # numbers that a fused step needs on the device, and have made them by now
        if isinstance(optimizer, (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD)):
            for group in optimizer.param_groups:
                group["fused"], group["foreach"] = True, False
        return optimizer

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

    @contextmanager
    def _teaching(self) -> Iterator[None]:
        """Within this context RecBole's loop steps the teacher's optimiser."""
        self.optimizer, student_optimizer = self.teacher_optimizer, self.optimizer
        try:
            yield
        finally:
            # gradients that stay behind would count in the student's clip_grad_norm
            self.teacher_optimizer.zero_grad(set_to_none=True)
            self.optimizer = student_optimizer

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

    def _teacher_pass(self, batches: Any, epoch_idx: int) -> float:
        self.optimizer.zero_grad(set_to_none=True)
        if isinstance(self, ParallelTraining):
            self.check_losses()
        if self.teacher_trainer is not None:
            return self.teacher_trainer._train_epoch(batches, epoch_idx)
        with self._teaching():
            # not the epoch of a backbone's own trainer: the teacher is another model
            return MirrorGradientTrainer._train_epoch(self, batches, epoch_idx, loss_func=self.model.teacher_loss)

    def _train_epoch(
        self, train_data: Any, epoch_idx: int, loss_func: Any = None, show_progress: bool = False
    ) -> tuple[float, float, float]:
        teaches = self.teacher_optimizer is not None and self.settings.schedule == "in_sync"
        batches: Any = self._teacher_batches(train_data) if teaches else []
        student_batches = self._student_batches(train_data)
        self.model.begin_epoch()
        with _progress_bar(f"Train {epoch_idx:>5}", len(batches) + len(student_batches), show_progress) as bar:
            watch = [_Watched(loader, bar, self.model.last_losses) for loader in (batches, student_batches)]
            teacher_loss = self._teacher_pass(watch[0], epoch_idx) if teaches else 0.0
            self.model.begin_student_pass()
            # the sum over batches that RecBole returns has the form of the backbone's loss: ours are told apart here
            super()._train_epoch(watch[1], epoch_idx, loss_func=loss_func)
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
            with _progress_bar(f"Teach {epoch_idx:>5}", len(batches), show_progress) as bar:
                loss = self._teacher_pass(_Watched(batches, bar, self.model.last_losses), epoch_idx)
            if not valid_data or (epoch_idx + 1) % self.eval_step:
                continue
            with self.model.scored_by_teacher():
                score, _ = self._valid_epoch(valid_data, show_progress=show_progress)
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

    def fit(self, train_data: Any, valid_data: Any = None, verbose: bool = True, saved: bool = True,
            show_progress: bool = False, callback_fn: Any = None) -> tuple[float, Any]:
        if self.clean_probability is None:
            self._calibrate(train_data.dataset)
        self._apply_calibration(train_data.dataset)
        if self.settings.schedule == "pretrained" and self.model.teacher is not None and not self._teacher_ready:
            self.eval_collector.data_collect(train_data)
            self._pretrain_teacher(train_data, valid_data, verbose, show_progress)
        return super().fit(train_data, valid_data, verbose, saved, show_progress, callback_fn)

    # -- logs -----------------------------------------------------------------------------------------------------

    def _generate_train_loss_output(self, epoch_idx: int, s_time: float, e_time: float, losses: Any) -> str:
        text: str = super()._generate_train_loss_output(epoch_idx, s_time, e_time, losses)
        for number, name in enumerate(LOSS_NAMES, start=1):
            text = text.replace(f"train_loss{number}", name)
        return text

    def _add_train_loss_to_tensorboard(self, epoch_idx: int, losses: Any, tag: str = "Loss/Train") -> None:
        for name, loss in zip(LOSS_NAMES, losses, strict=False):
            self.tensorboard.add_scalar(f"{tag}/{name}", loss, epoch_idx)

    # -- checkpoints ----------------------------------------------------------------------------------------------

    def extra_state(self) -> dict[str, Any]:
        return {
            "teacher_optimizer": None if self.teacher_optimizer is None else self.teacher_optimizer.state_dict(),
            "teacher_trainer": None if self.teacher_trainer is None else optimizer_states(self.teacher_trainer),
            "teacher_ready": self._teacher_ready,
            "order": self._order.get_state(),
            "student_order": self._student_order.get_state(),
            "clean_probability": self.clean_probability,
            "is_clean": self.is_clean,
            "calibration": self.calibration_summary,
        }

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        if self.teacher_optimizer is not None:
            self.teacher_optimizer.load_state_dict(state["teacher_optimizer"])
        if self.teacher_trainer is not None:
            load_optimizers(self.teacher_trainer, state["teacher_trainer"])
        self._teacher_ready = state["teacher_ready"]
        self._order.set_state(state["order"].cpu())
        self._student_order.set_state(state["student_order"].cpu())
        self.clean_probability = state["clean_probability"].cpu()
        if "is_clean" not in state:
            raise GuiderError("resume is a checkpoint of an older version, which cannot be continued: train anew.")
        self.is_clean = state["is_clean"].cpu()
        self.calibration_summary = state["calibration"]


class GuiderTrainer(GuiderTraining, MirrorGradientTrainer):
    """GUIDER's training around RecBole's standard trainer; backbones with a trainer of their own keep theirs."""


def _own_trainer(config: Any, teacher: Any) -> Trainer | None:
    """RecBole's trainer of a teacher that learns from its own loss, where it has steps of its own (RecVAE).

    Args:
        config: the teacher's.
    """
    trainer = inspect.unwrap(get_trainer)(config["MODEL_TYPE"], config["model"])
    if trainer._train_epoch is Trainer._train_epoch:
        return None
    config["log_wandb"] = False  # the run's trainer does
    if is_parallel():
        require_dealable(trainer, config["model"])
        return with_training(ParallelTraining, trainer)(config, teacher)
    mirrored = type(f"Mirror{trainer.__name__}", (trainer, MirrorGradientTrainer), {"__module__": __name__})
    return mirrored(config, teacher)


@cache
def with_training(training: type, trainer: type) -> type:
    """A trainer of RecBole with one of this package's trainings mixed in, and mirror gradient below it.

    Args:
        training: :class:`GuiderTraining`, ``PlainCheckpoints``, ``ParallelTraining`` or a denoising method's.
        trainer: RecBole's ``Trainer``, or one that derives from it.
    """
    if (training, trainer) == (GuiderTraining, Trainer):
        return GuiderTrainer
    # a trainer of RecBole's own derives from Trainer: in the order of bases MirrorGradientTrainer comes between the two
    bases = (training, MirrorGradientTrainer) if trainer is Trainer else (training, trainer, MirrorGradientTrainer)
    return type(f"{training.__name__}{trainer.__name__}", bases, {"__module__": __name__})


def share_calibrations(trainer: Any, folder: Path) -> None:
    """Let ``folder`` keep what AMSC finds, for other runs on the same data, unless the settings name a folder.

    Args:
        trainer: of any kind; one without GUIDER calibrates nothing.
        folder: as in :func:`~recbole_guider.guider.calibration_cache.load_or_compute`.
    """
    if isinstance(trainer, GuiderTraining) and trainer.calibration_cache is None:
        trainer.calibration_cache = folder
