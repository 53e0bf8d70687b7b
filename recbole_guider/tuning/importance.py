"""How much each searched setting matters."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pandas as pd

#: Fewer trials tell nothing about several settings.
MIN_TRIALS = 6


def setting_importance(table: pd.DataFrame, keys: list[str], seed: int = 0) -> pd.Series:
    """Permutation importance of each setting for the validation score.

    A random forest predicts a trial's score from its settings. The importance of a setting is how much its R2 falls
    when the setting's column is shuffled, the mean of 30 shuffles, on the trials that it was fitted to: a sweep has too
    few to set some aside.

    Args:
        table: one row for each trial, as ``trial_table`` gives it.
        keys: the searched settings.
        seed: of the forest and the shuffles.

    Returns:
        setting -> importance, 0 where it is negative, the greatest first; empty with fewer than :data:`MIN_TRIALS`
        scored trials or where all scores are equal.
    """
    from sklearn.ensemble import RandomForestRegressor
    from sklearn.inspection import permutation_importance

    scored = table[np.isfinite(table["best_valid_score"].astype(float))]
    target = scored["best_valid_score"].to_numpy(dtype=float)
    if len(scored) < MIN_TRIALS or np.ptp(target) == 0:
        return pd.Series(dtype=float)
    features = np.column_stack([encoded(scored[key]) for key in keys])
    forest = RandomForestRegressor(n_estimators=200, min_samples_leaf=2, random_state=seed).fit(features, target)
    found = permutation_importance(forest, features, target, n_repeats=30, random_state=seed)
    return pd.Series(found.importances_mean, index=keys).clip(lower=0.0).sort_values(ascending=False)


def encoded(column: pd.Series) -> np.ndarray:
    """Numbers as they are; anything else as its rank among the values, float64 [n]."""
    values = column.tolist()
    if all(isinstance(value, (int, float, np.number)) and not isinstance(value, bool) for value in values):
        return np.asarray(values, dtype=float)
    ranks = {text: rank for rank, text in enumerate(sorted({label(value) for value in values}))}
    return np.array([ranks[label(value)] for value in values], dtype=float)


def label(value: Any) -> str:
    """A value as text, the same for equal values."""
    if isinstance(value, np.generic):
        value = value.item()
    return value if isinstance(value, str) else json.dumps(value, default=str)
