"""Random choices about users that depend on nothing but the seed and the user.

A generator that is asked once per user gives user 7 another number when user 3 is absent or comes later. What has to be
the same for one array in memory and for a log in any number of pieces is therefore a function of (seed, user).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_GOLDEN = 0x9E3779B97F4A7C15
_WORD = 2**64 - 1


def hashes(keys: NDArray[np.integer], seed: int) -> NDArray[np.uint64]:
    """A 64-bit hash of every (seed, key), by the finaliser of SplitMix64, applied to the seed and then to both.

    Args:
        keys: integers of any shape; seed: any integer.
    """
    start = int(_finalise(np.array([(seed * _GOLDEN + _GOLDEN) & _WORD], dtype=np.uint64))[0])
    return _finalise(np.asarray(keys).astype(np.uint64) * np.uint64(_GOLDEN) + np.uint64(start))


def uniform(keys: NDArray[np.integer], seed: int) -> NDArray[np.float64]:
    """A number in [0, 1) for every (seed, key)."""
    return (hashes(keys, seed) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _finalise(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@dataclass(frozen=True)
class UserFolds:
    """``count`` folds of about equal size; which fold a user lies in follows from its key.

    Attributes:
        seed: of the choice.
        count: the number of folds.
    """

    seed: int
    count: int

    def __call__(self, keys: NDArray[np.integer]) -> NDArray[np.int64]:
        """int64, shape of ``keys``: the fold of every key, from 0."""
        return (hashes(keys, self.seed) % np.uint64(self.count)).astype(np.int64)
