"""Which directions of a space tell observed pairs from null pairs: Fisher's discriminant, cross-fitted by users.

The definition is this project's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recbole_guider.amsc.folds import UserFolds
from recbole_guider.amsc.profiles import Candidates, FloatArray
from recbole_guider.utils.interactions import IntArray, InteractionIndex

#: Share of each direction's own spread that is added to it, against chance.
SHRINKAGE = 0.1
# Rows that the moments are taken over: more would not change the weights.
_LEARN_ROWS = 200_000
_BLOCK_ELEMENTS = 4_194_304


def products(
    rows: NDArray[np.float32],
    profiles: InteractionIndex,
    candidates: Candidates,
    target: NDArray[np.float32] | None = None,
) -> Iterator[tuple[slice, FloatArray]]:
    """Blocks of v_i * r_u, entry by entry; float32 [block, d].

    r_u is the sum of the rows of the profile without the left-out item, divided by its length. The sum over the
    entries is the cosine of the item and the rest of the profile.

    Args:
        rows: float32 [n_items, d], summed over profiles.
        candidates: sorted by user.
        target: float32 [n_items, d], v; ``rows`` themselves if None.
    """
    step = max(_BLOCK_ELEMENTS // rows.shape[1], 1)
    wide = rows.astype(np.float64)
    of_items = wide if target is None else target.astype(np.float64)
    for start in range(0, len(candidates), step):
        block = slice(start, min(start + step, len(candidates)))
        users = candidates.users[block]
        total = profiles.matrix[users[0] : users[-1] + 1] @ wide
        rest = total[users - users[0]] - wide[candidates.left_out[block]]
        length = np.linalg.norm(rest, axis=1, keepdims=True)
        # What subtraction leaves of a rest that is empty is rounding.
        rest = np.where(length > 1e-6, rest / np.maximum(length, 1e-6), 0.0)
        yield block, (rest * of_items[candidates.items[block]]).astype(np.float32)


def with_a_rest(folds: UserFolds, profiles: InteractionIndex, candidates: Candidates) -> Iterator[tuple[int, IntArray]]:
    """(fold, positions of its candidates), fold by fold, without candidates of users who have no other item."""
    fold = folds(profiles.user_keys)[candidates.users]
    others = profiles.size[candidates.users] > 1
    for k in range(folds.count):
        yield k, np.flatnonzero((fold == k) & others)


@dataclass(frozen=True)
class Discriminant:
    """sum over k of w_k v_ik r_uk, with the weights that separate observed from null pairs of other users best.

    Attributes:
        folds: which fold a user lies in.
        rows: for every fold of the users float32 [n_items, d], the item rows that they are scored with.
        weights: for every fold float64 [d], learned outside it; None where nothing could be learned.
    """

    folds: UserFolds
    rows: list[NDArray[np.float32]]
    weights: list[FloatArray | None]

    def scores(self, profiles: InteractionIndex, candidates: Candidates) -> FloatArray:
        """float64 [len(candidates)], 0 where the rest of the profile is empty.

        Args:
            candidates: sorted by user.
        """
        result = np.zeros(len(candidates))
        for k, chosen in with_a_rest(self.folds, profiles, candidates):
            weights = self.weights[k]
            if weights is None:
                continue
            for block, product in products(self.rows[k], profiles, candidates.take(chosen)):
                # Row by row: a matrix product may round a row by what lies beside it in the block.
                result[chosen[block]] = np.einsum("ij,j->i", product, weights)
        return result


def learn_discriminant(
    rows_by_fold: list[NDArray[np.float32]],
    folds: UserFolds,
    profiles: InteractionIndex,
    observed: Candidates,
    null: Candidates,
    rng: np.random.Generator,
) -> Discriminant:
    """The weights of :class:`Discriminant`, for every fold of the users from the others.

        w = (S + S0 + shrinkage diag(S + S0))^-1 (m - m0)

    with m, S the mean and covariance of the products of observed pairs and m0, S0 of null pairs, both over the users
    outside the fold that is scored. This is the adaptive modality weight, for each direction in place of each modality.

    Args:
        rows_by_fold: for every fold of the users float32 [n_items, d], the item rows that they are scored with.
        folds: which fold a user lies in.
        observed, null: sorted by user.
        rng: chooses the pairs that are learned from, where there are many.
    """
    fold = folds(profiles.user_keys)
    weights: list[FloatArray | None] = []
    for k, rows in enumerate(rows_by_fold):
        moments = []
        for candidates in (observed, null):
            learn = np.flatnonzero((fold[candidates.users] != k) & (profiles.size[candidates.users] > 1))
            if len(learn) > _LEARN_ROWS:
                learn = np.sort(rng.choice(learn, size=_LEARN_ROWS, replace=False))
            moments.append(_moments(rows, profiles, candidates.take(learn)))
        (mean, covariance), (null_mean, null_covariance) = moments
        spread = covariance + null_covariance
        diagonal = np.diag(spread)
        if np.max(diagonal) <= 0:
            weights.append(None)
            continue
        penalty = SHRINKAGE * diagonal + 1e-6 * np.max(diagonal)
        weights.append(np.linalg.solve(spread + np.diag(penalty), mean - null_mean))
    return Discriminant(folds, rows_by_fold, weights)


def _moments(
    rows: NDArray[np.float32], profiles: InteractionIndex, candidates: Candidates
) -> tuple[FloatArray, FloatArray]:
    first, second = np.zeros(rows.shape[1]), np.zeros((rows.shape[1], rows.shape[1]))
    for _, product in products(rows, profiles, candidates):
        first += product.sum(axis=0, dtype=np.float64)
        second += product.T @ product
    count = max(len(candidates), 1)
    mean = first / count
    return mean, second / count - np.outer(mean, mean)
