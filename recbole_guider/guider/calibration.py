"""From a RecBole training set to what AMSC says about each of its interactions, and back into its batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from recbole.data.interaction import Interaction

from recbole_guider.amsc import Calibration, calibrate
from recbole_guider.data.features import require_content
from recbole_guider.evaluation import detection_report
from recbole_guider.guider.calibration_cache import calibration_key, load_or_compute
from recbole_guider.guider.settings import GuiderSettings
from recbole_guider.utils.errors import GuiderError

#: The column of the training interactions that carries the probability that an interaction is clean.
CLEAN_PROBABILITY = "clean_probability"
#: The column that says whether an interaction counts as clean.
IS_CLEAN = "is_clean"


def calibrate_dataset(
    config: Any,
    dataset: Any,
    *,
    cache: Path | None = None,
) -> Calibration:
    """Run AMSC on the interactions of a training set.

    Args:
        config: a GuiderConfig whose guider block is on.
        dataset: the training part of a GuiderDataset.
        cache: a folder that keeps calibrations; see
            :func:`~recbole_guider.guider.calibration_cache.load_or_compute`.

    Returns:
        The calibration, one entry for each row of ``dataset.inter_feat``.

    Raises:
        GuiderError: there is nothing to compare items by, or a modality that the settings name does not exist.
    """
    settings: GuiderSettings = config.guider_settings
    features = dataset.item_features
    wanted = settings.calibration.modalities
    if wanted != "all":
        unknown = [name for name in wanted if name not in features]
        if unknown:
            raise GuiderError(
                f"guider.calibration.modalities names {unknown[0]!r}: this data set has "
                f"{', '.join(features) or 'no modalities'}."
            )
        features = {name: features[name] for name in wanted}
    if settings.calibration.method != "none":
        if not wanted and not settings.calibration.behaviour:
            raise GuiderError(
                "guider.calibration.modalities is empty and guider.calibration.behaviour is false, which leaves "
                "nothing to compare items by: set behaviour to true, or name modalities of this data set "
                f"({', '.join(dataset.item_features) or 'it has none'})."
            )
        require_content(config, features)
    # RecBole's ids start at 1, row 0 is padding
    users = dataset.inter_feat[dataset.uid_field].numpy() - 1
    items = dataset.inter_feat[dataset.iid_field].numpy() - 1
    content = {name: (part.values[1:], part.present[1:]) for name, part in features.items()}
    sizes: dict[str, int] = {"n_users": dataset.user_num - 1, "n_items": dataset.item_num - 1}
    seed: int = config["seed"]

    def compute() -> Calibration:
        return calibrate(users, items, content, **sizes, settings=settings.calibration, seed=seed)

    if cache is None or settings.calibration.method == "none":
        return compute()
    described = [settings.calibration.model_dump(exclude={"cache"}), sizes, seed, list(content)]
    arrays = [users, items, *(array for pair in content.values() for array in pair)]
    return load_or_compute(cache, calibration_key(arrays, repr(described)), compute)


def attach(dataset: Any, clean_probability: torch.Tensor, is_clean: torch.Tensor) -> None:
    """Put what a calibration says into the training interactions, so that every batch carries its own.

    Args:
        dataset: the training part of a data set.
        clean_probability: float32 ``[nnz]``, in the order of ``dataset.inter_feat``.
        is_clean: bool ``[nnz]``, which of them count as clean.
    """
    dataset.inter_feat.update(Interaction({CLEAN_PROBABILITY: clean_probability, IS_CLEAN: is_clean}))


def summary(calibration: Calibration, dataset: Any) -> dict[str, Any]:
    """What a run reports of its calibration: noise rate, modality weights, numbers of true and false interactions.

    Where the training set knows which of its interactions are injected noise, ``detection`` says how well they were
    found (:func:`~recbole_guider.evaluation.detection.detection_report`); else it is None.
    """
    injected = dataset.is_injected
    detection = None
    if injected.any():
        users, items = (dataset.inter_feat[field].numpy() for field in (dataset.uid_field, dataset.iid_field))
        detection = detection_report(-np.asarray(calibration.clean_probability), injected, users, items)
    return {
        "noise_rate": float(calibration.noise_rate),
        "modality_weights": {name: float(weight) for name, weight in calibration.modality_weights.items()},
        "n_true": int(calibration.is_clean.sum()),
        "n_false": int((~calibration.is_clean).sum()),
        "detection": detection,
    }
