"""AMSC, the calibrator: which interactions are clean.

Every observed pair is scored by how well its item fits the rest of the user's profile, within each modality and in
behaviour, and compared with null pairs that are scored against the same rest of the profile. All definitions are
this project's.
"""

from __future__ import annotations

from recbole_guider.amsc.calibrate import Calibration, calibrate

__all__ = ["Calibration", "calibrate"]
