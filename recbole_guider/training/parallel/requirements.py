"""What several processes that train one model together must have in common."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np

from recbole_guider.utils import distributed
from recbole_guider.utils.errors import GuiderError


def require_same_data(dataset: Any) -> None:
    """Raise in every process unless all of them train on the same interactions, in the same order.

    Raises:
        GuiderError: a machine has other files or settings.
    """
    if distributed.is_parallel():
        pairs = [np.ascontiguousarray(dataset.inter_feat[name]) for name in (dataset.uid_field, dataset.iid_field)]
        distributed.require_same("The training data", [len(pairs[0]), *(zlib.crc32(column.data) for column in pairs)])


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
