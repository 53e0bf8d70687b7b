"""Values as plain data: what configurations, property files and checkpoints store."""

from __future__ import annotations

import os
from collections.abc import Mapping
from enum import Enum
from typing import Any

import numpy as np


def to_plain(value: Any, *, tensors: bool = False) -> Any:
    """``value`` as None, bool, int, float, str, list, tuple and dict.

    numpy's scalars become Python's, sets become sorted lists, paths strings.

    Args:
        value: what to convert, at every depth.
        tensors: whether torch's tensors are plain, as they are to ``torch.load(weights_only=True)``; numpy's arrays
            become copies of that kind then. Else arrays become lists, and a tensor has no plain form.

    Raises:
        TypeError: something in it has no such form.
    """
    if isinstance(value, np.generic):
        value = value.item()  # np.float64 is a float and np.str_ a str, but neither loads with weights_only
    if value is None or (isinstance(value, (bool, int, float, str)) and not isinstance(value, Enum)):
        return value
    if isinstance(value, Mapping):
        return {to_plain(key): to_plain(entry, tensors=tensors) for key, entry in value.items()}
    if isinstance(value, tuple):
        return tuple(to_plain(entry, tensors=tensors) for entry in value)
    if isinstance(value, list):
        return [to_plain(entry, tensors=tensors) for entry in value]
    if isinstance(value, (set, frozenset)):
        return sorted(to_plain(entry) for entry in value)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if tensors:
        import torch  # not at the top: property files are read where torch is not loaded

        if isinstance(value, torch.Tensor):
            return value
        if isinstance(value, np.ndarray):
            return torch.from_numpy(value.copy())
    if isinstance(value, np.ndarray):
        return to_plain(value.tolist())
    raise TypeError(f"a {type(value).__name__} is not plain data: {value!r}")
