"""Checkpoints of plain data: safe to load, and enough to resume a training exactly."""

from __future__ import annotations

import os
import random
import shutil
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from recbole_guider.data.dataset import keys_of_pairs
from recbole_guider.utils import distributed
from recbole_guider.utils.atomic_io import write_whole
from recbole_guider.utils.errors import GuiderError
from recbole_guider.utils.model_state import loaded_parameters, stored_parameters
from recbole_guider.utils.plain import to_plain

if TYPE_CHECKING:
    from recbole_guider.training.loop import Training  # it writes and reads its state here

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


def optimizer_states(trainer: Any) -> dict[str, Any]:
    """The state of each optimiser that a trainer holds, and which of them is at work.

    RecBole's RecVAE trainer has one for its encoder and one for its decoder, and puts each in turn in the place of
    ``optimizer``.

    Args:
        trainer: a RecBole trainer.
    """
    held = {name: value for name, value in held_optimizers(trainer).items() if name != "optimizer"}
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
class Resumed:
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


def state_of(training: Training, epoch: int) -> dict[str, Any]:
    """What a checkpoint after ``epoch`` holds."""
    plain = partial(to_plain, tensors=True)
    return {
        "config": training.config.to_plain(),
        "epoch": epoch,
        "cur_step": training.cur_step,
        "best_valid_score": plain(training.best_valid_score),
        "best_valid_result": plain(training.best_valid_result),
        "best_model_file": os.path.basename(training.saved_model_file),
        "state_dict": training.model.state_dict(),
        "other_parameter": plain(stored_parameters(training.model.other_parameter())),
        "attributes": plain(training.attributes.changed()),
        "optimizers": optimizer_states(training.steps.trainer),
        "optimizer_settings": training.built_with,
        "random_state": None if training.train_data is None else random_state(training.train_data),
        "extra_state": training.extra_state(),
        "training_pairs": training.training_pairs,
        "notes": plain({name: note for each in training.callbacks for name, note in each.notes().items()}),
    }


def resume(training: Training, resume_file: str | Path) -> None:
    """Let a training continue from a checkpoint; its random streams follow in :func:`continue_resumed`.

    Raises:
        GuiderError: the checkpoint is of another model, data set or shape, or that run's best model is missing.
    """
    config = training.config
    with distributed.file_of_main(resume_file) as file:
        state = load(file, training.device)
    stored = state["config"]
    for key, what in (("model", "holds a"), ("dataset", "was trained on")):
        if stored[key] != config[key]:
            raise GuiderError(f"{resume_file} {what} {stored[key]}: it cannot continue as {config[key]}.")
    best = Path(resume_file).parent / state["best_model_file"]
    if not distributed.once(lambda: _is_there(best, Path(resume_file), state)):
        raise GuiderError(
            f"{resume_file} continues a run whose best model so far is {best.name}: put that file beside it."
        )
    training.built_with = _optimizer_settings(training)
    try:
        load_model(training.model, state)
        load_optimizers(training.steps.trainer, state["optimizers"])
        training.load_extra_state(state["extra_state"])
        training.attributes.restore(state.get("attributes") or {})
    except (RuntimeError, ValueError, TypeError, KeyError, AttributeError) as error:  # what torch raises
        raise GuiderError(
            f"{resume_file} does not fit the model of this run: repeat the settings that it was started with"
            f"{_differences(stored, config.to_plain())}."
        ) from error
    training.start_epoch, training.cur_step = state["epoch"] + 1, state["cur_step"]
    training.best_valid_score, training.best_valid_result = state["best_valid_score"], state["best_valid_result"]
    training.saved_model_file = os.fspath(best)
    had_stopped = training.cur_step > training.stopping_step == stored["stopping_step"]
    training.resumed = Resumed(state["random_state"], state.get("training_pairs"), had_stopped)
    _keep_changed_settings(training, state.get("optimizer_settings") or {})
    training.logger.info(f"Checkpoint loaded. Resume training from epoch {training.start_epoch}")


def continue_resumed(training: Training) -> bool:
    """Note what a training is on, and continue the random streams of what it resumes.

    Returns:
        Whether the resumed run had ended: it was killed after its last epoch.

    Raises:
        GuiderError: the resumed run was on other training interactions.
    """
    training.training_pairs = pairs_sum(training.train_data._dataset)
    resumed, training.resumed = training.resumed, None
    if not training.built_with:
        training.built_with = _optimizer_settings(training)
    if resumed is None:
        return False
    if resumed.training_pairs not in (None, training.training_pairs):
        raise GuiderError(
            f"resume is a checkpoint of a run on other training interactions, and what is tested here may be among "
            f"them: give the data, the split, the noise and the seed ({training.config['seed']} here) of that run."
        )
    if resumed.random_state is not None:
        restore_random_state(resumed.random_state, training.train_data)
    return training.start_epoch >= training.epochs or resumed.had_stopped


def _optimizer_settings(training: Training) -> dict[str, list[list[float]]]:
    """Optimiser -> learning rate and weight decay of each group."""
    return {
        name: [[float(each["lr"]), float(each.get("weight_decay", 0.0))] for each in optimizer.param_groups]
        for name, optimizer in training.optimizers().items()
    }


def _keep_changed_settings(training: Training, stored: Mapping[str, Any]) -> None:
    """Learning rates and weight decays that this run changes hold; the stored state would overwrite them."""
    own = training.built_with
    for name, optimizer in training.optimizers().items():
        if own[name] == stored.get(name, own[name]):
            continue
        for options, (learning_rate, weight_decay) in zip(optimizer.param_groups, own[name], strict=True):
            options.update(lr=learning_rate, weight_decay=weight_decay)
