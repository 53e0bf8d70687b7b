"""Which trainer a run has: RecBole's choice for the backbone, with GUIDER's or a denoising method's training."""

from __future__ import annotations

import inspect
from typing import Any

from recbole.trainer import Trainer
from recbole.utils import get_trainer

from recbole_guider.config.registry import PREFIX
from recbole_guider.config.resolution import refuse_processes
from recbole_guider.denoising.training import DenoisingTraining
from recbole_guider.training.checkpoint import PlainCheckpoints
from recbole_guider.training.parallel.trainer import ParallelTraining, require_dealable, require_exact
from recbole_guider.training.trainer import GuiderTraining, with_training
from recbole_guider.utils.distributed import is_parallel
from recbole_guider.utils.errors import GuiderError


def trainer_class(config: Any) -> type:
    """The trainer of a run.

    Args:
        config: a GuiderConfig.

    Raises:
        GuiderError: several processes cannot train what it asks for, or a denoising method is on and the backbone has a
            trainer of its own.
    """
    if is_parallel():
        require_exact(config)
    if config.denoising_settings is None:
        return _trainer(config["MODEL_TYPE"], config["backbone"], config.guider_settings is not None)
    trainer = _recboles_trainer(config["MODEL_TYPE"], config["backbone"])
    if trainer is not Trainer:
        raise GuiderError(
            f"denoising is {config.denoising_settings.method}: {config['backbone']} has a trainer of its own "
            f"({trainer.__name__}), which a method cannot change."
        )
    return with_training(DenoisingTraining, trainer)


def trainer_of(model_type: Any, name: str) -> type:
    """The trainer of a model of this package, or of ``GUIDER_<Backbone>``.

    Raises:
        GuiderError: this is one of several processes.
    """
    if is_parallel():
        refuse_processes(name)
    return _trainer(model_type, name.removeprefix(PREFIX), name.startswith(PREFIX))


def _trainer(model_type: Any, backbone: str, guided: bool) -> type:
    trainer = _recboles_trainer(model_type, backbone)
    if is_parallel():
        require_dealable(trainer, backbone)
        trainer = with_training(ParallelTraining, trainer)
    return with_training(GuiderTraining if guided else PlainCheckpoints, trainer)


def _recboles_trainer(model_type: Any, backbone: str) -> type:
    trainer: type = inspect.unwrap(get_trainer)(model_type, backbone)  # under that name RecBole may have trainer_of
    return trainer
