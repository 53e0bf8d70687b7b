"""Profiles as points: which item comes next to the others of a profile, cross-fitted.

The counts of :mod:`~recbole_guider.amsc.learned` see pairs of items; this sees an item and the whole rest of a profile,
as a recommender does. In contrast to a recommender's, the score of a pair depends neither on that pair nor on anything
else that its user did, so that a noisy pair looks like its null pairs. All definitions are this project's.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recbole_guider.amsc.discriminant import products, with_a_rest
from recbole_guider.amsc.folds import UserFolds
from recbole_guider.amsc.profiles import Candidates, FloatArray
from recbole_guider.utils.interactions import InteractionIndex


@dataclass(frozen=True)
class Factors:
    """cos(r_u, t_i), with r_u the sum of the context rows q over the rest of the profile and t_i the target row.

    Attributes:
        folds: which fold a user lies in.
        context, target: for every fold of the users float32 [n_items, d], learned from the other folds; rows of
            ``target`` have unit length.
    """

    folds: UserFolds
    context: list[NDArray[np.float32]]
    target: list[NDArray[np.float32]]

    def scores(self, profiles: InteractionIndex, candidates: Candidates) -> FloatArray:
        """float64 [len(candidates)], 0 where the rest of the profile is empty.

        Args:
            candidates: sorted by user.
        """
        result = np.zeros(len(candidates))
        for k, chosen in with_a_rest(self.folds, profiles, candidates):
            for block, product in products(self.context[k], profiles, candidates.take(chosen), self.target[k]):
                result[chosen[block]] = product.sum(axis=1, dtype=np.float64)
        return result
