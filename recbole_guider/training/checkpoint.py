"""Checkpoints of plain data, for RecBole's trainers and ours: safe to load, and enough to resume exactly."""

from __future__ import annotations

import os
import random
import secrets
import shutil
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from recbole.utils import set_color

from recbole_guider.data.dataset import keys_of_pairs
from recbole_guider.utils import distributed
from recbole_guider.utils.atomic_io import write_whole
from recbole_guider.utils.errors import GuiderError
from recbole_guider.utils.model_state import PlainAttributes, loaded_parameters, stored_parameters
from recbole_guider.utils.plain import to_plain

if TYPE_CHECKING:
    from recbole.trainer import Trainer as _Trainer
else:
    _Trainer = object  # a mixin: the trainer stands beside it


#: Settings that say nothing about the shape of a model.
_FREE = {"checkpoint_dir", "data_path", "epochs", "seed", "show_progress", "state", "device", "gpu_id", "use_gpu"}
#: How many settings an error shows.
_SHOWN = 3


def save(state: Mapping[str, Any], file: str | Path) -> None:
    """Write ``state`` so that ``file`` is either the old one or the new one, never half of it."""
    write_whole(Path(file), partial(torch.save, dict(state)))


def load(file: str | Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read a checkpoint with ``weights_only``: nothing in the file can run code.

    Raises:
        GuiderError: there is no such file, or it is not a checkpoint of this package.
    """
    if not Path(file).is_file():
        raise GuiderError(f"There is no checkpoint {file}: give the path that a run printed as its checkpoint.")
    try:
        state = torch.load(file, map_location=device, weights_only=True)
    except Exception as error:  # torch raises many kinds here, all of which mean the same to the user
        raise GuiderError(
            f"{file} is not a checkpoint of recbole-guider ({type(error).__name__}): files that RecBole itself saved "
            f"hold pickled objects and are not loaded."
        ) from error
    if not isinstance(state, dict) or "config" not in state or "state_dict" not in state:
        raise GuiderError(f"{file} is not a checkpoint of recbole-guider: it has no config and no state_dict.")
    return state


def is_checkpoint(file: str | Path) -> bool:
    """Whether :func:`load` would read ``file``; the weights themselves are not read."""
    try:
        state = torch.load(file, weights_only=True, mmap=True)
    except Exception:  # as in load
        return False
    return isinstance(state, dict) and isinstance(state.get("config"), dict) and "state_dict" in state


def random_state(train_data: Any) -> dict[str, Any]:
    """The state of every generator that training draws from, as plain data and tensors."""
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)  # RecBole samples from the global one
    return {
        "python": [version, list(words), gauss],
        "numpy": [str(name), torch.from_numpy(np.asarray(keys).astype(np.int64)), int(position), int(has_gauss),
                  float(cached)],
        "torch": torch.get_rng_state(),
        "cuda": _cuda_state(),
        "loader": train_data.generator.get_state(),
    }


def _cuda_state() -> list[torch.Tensor]:
    if not torch.cuda.is_available():
        return []
    # one of several processes uses its own device only, and all of them draw the same
    return [torch.cuda.get_rng_state()] if distributed.is_parallel() else torch.cuda.get_rng_state_all()


def restore_random_state(state: Mapping[str, Any], train_data: Any) -> None:
    """Continue every generator where :func:`random_state` left it."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.cpu().numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"].cpu())
    if state["cuda"] and torch.cuda.is_available():
        if distributed.is_parallel() or len(state["cuda"]) == 1:
            torch.cuda.set_rng_state(state["cuda"][0].cpu())
        else:
            torch.cuda.set_rng_state_all([entry.cpu() for entry in state["cuda"]])
    train_data.generator.set_state(state["loader"].cpu())


def held_optimizers(trainer: Any) -> dict[str, torch.optim.Optimizer]:
    """Every optimiser among a trainer's attributes, by the attribute's name."""
    return {name: value for name, value in vars(trainer).items() if isinstance(value, torch.optim.Optimizer)}


def optimizer_states(trainer: Any, apart: tuple[str, ...] = ()) -> dict[str, Any]:
    """The state of each optimiser that a trainer holds, and which of them is at work.

    RecBole's RecVAE trainer has one for its encoder and one for its decoder, and puts each in turn in the place of
    ``optimizer``.

    Args:
        trainer: a RecBole trainer.
        apart: attributes that are saved elsewhere.
    """
    held = {name: value for name, value in held_optimizers(trainer).items() if name not in ("optimizer", *apart)}
    at_work = next((name for name, optimizer in held.items() if optimizer is trainer.optimizer), "optimizer")
    states = {name: optimizer.state_dict() for name, optimizer in held.items()}
    return {"at_work": at_work, "states": {**states, at_work: trainer.optimizer.state_dict()}}


def load_optimizers(trainer: Any, saved: Mapping[str, Any]) -> None:
    """Take back what :func:`optimizer_states` gave."""
    trainer.optimizer = getattr(trainer, saved["at_work"])
    for name, state in saved["states"].items():
        getattr(trainer, name).load_state_dict(state)


def pairs_sum(dataset: Any) -> int | None:
    """A check sum of the pairs of a data set, whatever their order; None where it has no users or no items."""
    if not dataset.uid_field or not dataset.iid_field:
        return None
    return zlib.crc32(np.sort(keys_of_pairs(dataset)).tobytes())


def load_model(model: Any, state: Mapping[str, Any]) -> None:
    """Give a model what a checkpoint holds of it: its weights, and what it keeps outside of them."""
    model.load_state_dict(state["state_dict"])
    model.load_other_parameter(loaded_parameters(state.get("other_parameter")))


@dataclass(frozen=True)
class _Resumed:
    """What training needs of the checkpoint that it continues, beside the states that are loaded at once."""

    random_state: Mapping[str, Any] | None
    #: None in checkpoints of older versions
    training_pairs: int | None
    #: whether early stopping had ended the run already
    had_stopped: bool


def _differences(stored: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """The first settings of a checkpoint that this run has otherwise, in words."""
    keys = [key for key in stored if key in now and stored[key] != now[key] and key not in _FREE]
    return "".join(f"; {key} was {stored[key]!r} and is {now[key]!r}" for key in keys[:_SHOWN])


def _is_there(best: Path, resumed: Path, state: Mapping[str, Any]) -> bool:
    """Whether a run's best model is beside what it is resumed from; where both are the same model, a copy is made."""
    if not best.exists() and not state["cur_step"]:
        write_whole(best, partial(shutil.copyfile, resumed))
    return best.exists()


class PlainCheckpoints(_Trainer):
    """Mixed into a RecBole trainer: the same training, with checkpoints of plain data that resume exactly.

    Two files: ``<model>-<time>-<unique>.pth`` is the best model by validation, as RecBole has it;
    ``<the same>.last.pth`` is rewritten after every evaluation, so that a killed run continues where it was
    (``resume: <file>``), and is removed when training ends.
    """

    saved_model_file: str
    start_epoch: int

    def __init__(self, config: Any, model: Any) -> None:
        super().__init__(config, model)
        stem, extension = os.path.splitext(self.saved_model_file)
        # RecBole names checkpoints by the second: two runs that start together would share a file
        self.saved_model_file = distributed.share(f"{stem}-{secrets.token_hex(3)}{extension}")
        self._attributes = PlainAttributes(model)
        self._train_data: Any = None
        #: a sum over the pairs that are trained on
        self._training_pairs: int | None = None
        self._resumed: _Resumed | None = None
        #: gives what whoever runs this trainer notes down: plain data, saved with every checkpoint
        self.notes: Callable[[], Mapping[str, Any]] = dict
        #: whether the state after the latest evaluation stays when training ends, for a caller that has more to do
        self.keep_last_model = False
        self._valid_result: Any = None
        #: learning rates and weight decays that the optimisers were made with
        self._built_with: dict[str, list[list[float]]] = {}

    @property
    def last_model_file(self) -> str:
        """Where the state after the latest evaluation lies while training runs."""
        return f"{os.path.splitext(self.saved_model_file)[0]}.last.pth"

    def extra_state(self) -> dict[str, Any]:
        """What a trainer needs beyond RecBole's own state to continue; plain data and tensors."""
        return {}

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        """Take back what :meth:`extra_state` gave."""

    def _valid_epoch(self, valid_data: Any, show_progress: bool = False) -> tuple[float, Any]:
        score, self._valid_result = super()._valid_epoch(valid_data, show_progress=show_progress)
        return score, self._valid_result

    def _save_checkpoint(self, epoch: int, verbose: bool = True, **kwargs: Any) -> None:
        if not distributed.is_main():
            return
        file = kwargs.pop("saved_model_file", self.saved_model_file)
        plain = partial(to_plain, tensors=True)
        state = {
            "config": self.config.to_plain(),
            "epoch": epoch,
            "cur_step": self.cur_step,
            "best_valid_score": plain(self.best_valid_score),
            # RecBole saves a model that is the best so far before it takes over its result
            "best_valid_result": plain(self.best_valid_result if self.cur_step else self._valid_result),
            "best_model_file": os.path.basename(self.saved_model_file),
            "state_dict": self.model.state_dict(),
            "other_parameter": plain(stored_parameters(self.model.other_parameter())),
            "attributes": plain(self._attributes.changed()),
            "optimizer": self.optimizer.state_dict(),
            "optimizers": optimizer_states(self, apart=("teacher_optimizer",)),
            "optimizer_settings": self._built_with,
            "random_state": None if self._train_data is None else random_state(self._train_data),
            "extra_state": self.extra_state(),
            "training_pairs": self._training_pairs,
            "notes": plain(self.notes()),
        }
        save(state, file)
        if verbose:
            self.logger.info(set_color("Saving current", "blue") + f": {file}")

    def save_pretrained_model(self, epoch: int, saved_model_file: str) -> None:
        """What RecBole's trainers with stages (RaCT) write after one: the backbone's weights, for the next stage.

        The next stage reads them as ``pre_model_path``, with GUIDER or without. The run's own checkpoint is a file of
        its own, as always.
        """
        backbone: Any = getattr(self.model, "student", self.model)
        weights = backbone.state_dict()
        if distributed.is_main():
            save({"epoch": epoch, "state_dict": weights}, saved_model_file)
        self._save_checkpoint(epoch, verbose=False)

    def resume_checkpoint(self, resume_file: str | Path) -> None:
        """Continue from a checkpoint: the model, every optimiser, the counters and the random streams.

        Raises:
            GuiderError: the checkpoint is of another model, data set or shape, or that run's best model is missing.
        """
        with distributed.file_of_main(resume_file) as file:
            state = load(file, self.device)
            stored = state["config"]
            for key, what in (("model", "holds a"), ("dataset", "was trained on")):
                if stored[key] != self.config[key]:
                    raise GuiderError(f"{resume_file} {what} {stored[key]}: it cannot continue as {self.config[key]}.")
            best = Path(resume_file).parent / state["best_model_file"]
            if not distributed.once(lambda: _is_there(best, Path(resume_file), state)):
                raise GuiderError(
                    f"{resume_file} continues a run whose best model so far is {best.name}: put that file beside it."
                )
            self.optimizer = getattr(self, state["optimizers"]["at_work"])
            self._built_with = self._optimizer_settings()
            try:
                super().resume_checkpoint(file)
                load_optimizers(self, state["optimizers"])
                self.load_extra_state(state["extra_state"])
                self._attributes.restore(state.get("attributes") or {})
                self.model.load_other_parameter(loaded_parameters(state["other_parameter"]))
            except (RuntimeError, ValueError, TypeError, KeyError, AttributeError) as error:  # what torch raises
                raise GuiderError(
                    f"{resume_file} does not fit the model of this run: repeat the settings that it was started with"
                    f"{_differences(stored, self.config.to_plain())}."
                ) from error
        self.saved_model_file = os.fspath(best)
        self.best_valid_result = state["best_valid_result"]
        self._valid_result = state["best_valid_result"]
        had_stopped = self.cur_step > self.stopping_step == stored["stopping_step"]
        self._resumed = _Resumed(state["random_state"], state.get("training_pairs"), had_stopped)
        self._keep_changed_settings(state.get("optimizer_settings") or {}, self._built_with)

    def _optimizer_settings(self) -> dict[str, list[list[float]]]:
        """Optimiser -> learning rate and weight decay of each group."""
        return {
            name: [[float(each["lr"]), float(each.get("weight_decay", 0.0))] for each in optimizer.param_groups]
            for name, optimizer in held_optimizers(self).items()
        }

    def _keep_changed_settings(self, stored: Mapping[str, Any], own: Mapping[str, Any]) -> None:
        """Learning rates and weight decays that this run changes hold; the stored state would overwrite them."""
        for name, optimizer in held_optimizers(self).items():
            if own[name] == stored.get(name, own[name]):
                continue
            for options, (learning_rate, weight_decay) in zip(optimizer.param_groups, own[name], strict=True):
                options.update(lr=learning_rate, weight_decay=weight_decay)

    def fit(self, train_data: Any, valid_data: Any = None, verbose: bool = True, saved: bool = True,
            show_progress: bool = False, callback_fn: Any = None) -> tuple[float, Any]:
        self._train_data = train_data
        self._training_pairs = pairs_sum(train_data._dataset)
        resumed, self._resumed = self._resumed, None
        if resumed is not None and resumed.training_pairs not in (None, self._training_pairs):
            raise GuiderError(
                f"resume is a checkpoint of a run on other training interactions, and what is tested here may be among "
                f"them: give the data, the split, the noise and the seed ({self.config['seed']} here) of that run."
            )
        if not self._built_with:
            self._built_with = self._optimizer_settings()
        trained = False
        if resumed is not None:
            if resumed.random_state is not None:
                restore_random_state(resumed.random_state, train_data)
            trained = self.start_epoch >= self.epochs or resumed.had_stopped
        if trained:  # killed after its last epoch: RecBole would go on, or save the last model in place of the best
            self.start_epoch = max(self.start_epoch, self.epochs)

        def after_evaluation(epoch_idx: int, valid_score: float) -> None:
            if saved:
                self._save_checkpoint(epoch_idx, verbose=False, saved_model_file=self.last_model_file)
            if callback_fn:
                callback_fn(epoch_idx, valid_score)

        result = super().fit(
            train_data, valid_data, verbose, saved and not trained, show_progress, after_evaluation
        )
        if saved and self.train_loss_dict and distributed.is_main() and not Path(self.saved_model_file).exists():
            # a trainer that never validates (a stage of RaCT) has saved nothing yet
            self._save_checkpoint(max(self.train_loss_dict), verbose=False)
        if distributed.is_main() and not self.keep_last_model:
            Path(self.last_model_file).unlink(missing_ok=True)
        return result

    def evaluate(
        self, eval_data: Any, load_best_model: bool = True, model_file: Any = None, show_progress: bool = False
    ) -> Any:
        if eval_data and load_best_model:
            with distributed.file_of_main(model_file or self.saved_model_file) as file:
                state = load(file, self.device)
            load_model(self.model, state)
        return super().evaluate(eval_data, load_best_model=False, show_progress=show_progress)
