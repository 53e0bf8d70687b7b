"""AMSC, the calibrator: which interactions are clean.

Every observed pair is scored by how well its item fits the rest of the user's profile, within each modality and in
behaviour, and compared with null pairs that are scored against the same rest of the profile. All definitions are
this project's.

    calibrate.py        from interactions and features in memory to probabilities
    parquet.py          the same for logs that no machine can hold
    settings.py         ``guider.calibration``
    profiles.py         observed pairs, user by user, and their null pairs
    fit.py              what is learned from a log
    calibrator.py       what that says of the pairs of any users, block by block
    evidence.py         how well candidates fit profiles, column by column, as one score
    similarity.py       content: similarity within each modality, and the confidence of every item
    behaviour.py        behaviour as one more modality
    learned.py          similarities that other users teach
    factors.py          profiles as points; factor_training.py learns them
    discriminant.py     which directions tell observed pairs from null pairs
    decision.py         from scores to the probability that a pair is clean, and ``is_clean``
    simex.py            how much of the noise that is counted is clean pairs in noisy profiles
    folds.py            random choices that depend on the seed and the user alone
"""

from __future__ import annotations

from typing import Any

from recbole_guider.amsc.calibrate import Calibration, calibrate
from recbole_guider.amsc.settings import BEHAVIOUR, CalibrationSettings

__all__ = [
    "BEHAVIOUR",
    "Calibration",
    "CalibrationSettings",
    "ParquetCalibration",
    "calibrate",
    "calibrate_parquet",
]


def __getattr__(name: str) -> Any:
    # loaded when asked for: arrays in memory need neither pyarrow nor pandas
    if name in ("ParquetCalibration", "calibrate_parquet"):
        from recbole_guider.amsc import parquet

        return getattr(parquet, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
