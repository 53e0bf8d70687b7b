"""AMSC, the calibrator: which interactions are clean.

Every observed pair is scored by how well its item fits the rest of the user's profile, within each modality and in
behaviour, and compared with null pairs that are scored against the same rest of the profile. All definitions are
this project's.
"""

from __future__ import annotations

from typing import Any

from recbole_guider.amsc.calibrate import Calibration, calibrate

__all__ = ["Calibration", "ParquetCalibration", "calibrate", "calibrate_parquet"]


def __getattr__(name: str) -> Any:
    # loaded when asked for: arrays in memory need neither pyarrow nor pandas
    if name in ("ParquetCalibration", "calibrate_parquet"):
        from recbole_guider.amsc import parquet

        return getattr(parquet, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
