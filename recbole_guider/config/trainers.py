"""Which training a run has: a plain one, GUIDER's, or a denoising method's."""

from __future__ import annotations

from typing import Any

from recbole_guider.config.registry import PREFIX
from recbole_guider.config.resolution import refuse_processes
from recbole_guider.denoising.training import DenoisingTraining
from recbole_guider.training.loop import Training
from recbole_guider.training.parallel.requirements import require_exact
from recbole_guider.training.trainer import GuiderTraining
from recbole_guider.utils.distributed import is_parallel


def training_class(config: Any) -> type[Training]:
    """The training of a run.

    Args:
        config: a GuiderConfig.

    Raises:
        GuiderError: several processes cannot train what it asks for.
    """
    if is_parallel():
        require_exact(config)
    if config.denoising_settings is not None:
        return DenoisingTraining
    return Training if config.guider_settings is None else GuiderTraining


def training_by_name(name: str) -> type[Training]:
    """The training of a model of this package, or of ``GUIDER_<Backbone>``.

    Raises:
        GuiderError: this is one of several processes.
    """
    if is_parallel():
        refuse_processes(name)
    return GuiderTraining if name.startswith(PREFIX) else Training
