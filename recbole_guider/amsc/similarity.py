"""Content similarity within each modality, its leave-one-out scores, and the confidence of every item."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from recbole_guider.amsc.profiles import Candidates, FloatArray
from recbole_guider.utils.errors import GuiderError
from recbole_guider.utils.interactions import IntArray, InteractionIndex

# Leave-one-out by subtraction leaves residues of rounding where the truth is 0, and null pairs have exact
# zeros: a classifier would tell the two apart by that alone. Means below this are set to 0.
SNAP = 1e-9
# Elements of the largest temporary array of a block: 32 MiB of float64.
_BLOCK_ELEMENTS = 4_194_304
# Columns that are promoted to float64 at a time, and elements of that copy: 256 MiB, whatever the catalogue's size.
_COLUMNS = 256
_COLUMN_ELEMENTS = 33_554_432
# Profiles up to this size are compared through gathered rows, longer ones by one matrix product per user.
_SMALL_PROFILE = 16


@dataclass(frozen=True)
class Modality:
    """One modality: centred rows of unit length, and which items have one.

    Attributes:
        name: as in the settings.
        rows: float32 [n_items, d], of length 1, or 0 where there is nothing to compare.
        present: bool [n_items].
    """

    name: str
    rows: NDArray[np.float32]
    present: NDArray[np.bool_]


def normalise_modality(name: str, feature: ArrayLike | tuple[ArrayLike, ArrayLike], n_items: int) -> Modality:
    """``e_i = (x_i - mean) / ||x_i - mean||``, the mean taken over the items that have a feature.

    Rows of zeros (an empty text, a picture that could not be read) and rows that equal the mean (constant
    features) have no direction: they count as absent.

    Args:
        feature: float [n_items, d], or (that, bool [n_items]) where rows are missing.

    Raises:
        GuiderError: a wrong shape, or NaN or infinity in a row that is present (names the first item).
    """
    values, mask = feature if isinstance(feature, tuple) else (feature, None)
    raw = np.asarray(values)
    if raw.ndim != 2 or raw.shape[0] != n_items:
        raise GuiderError(f"Modality {name!r} must have shape [{n_items}, d], not {list(raw.shape)}.")
    if not (np.issubdtype(raw.dtype, np.number) or raw.dtype == np.bool_):
        raise GuiderError(f"Modality {name!r} must hold numbers, not {raw.dtype}.")
    present = np.ones(n_items, dtype=bool) if mask is None else np.asarray(mask, dtype=bool).copy()
    if present.shape != (n_items,):
        raise GuiderError(
            f"The presence mask of modality {name!r} must have shape [{n_items}], not {list(present.shape)}."
        )
    rows = np.zeros(raw.shape, dtype=np.float32)
    rows[present] = raw[present]
    finite = np.isfinite(rows).all(axis=1)
    if not finite.all():
        raise GuiderError(f"Modality {name!r} holds NaN or infinity, first at item {int(np.argmin(finite))}.")
    present &= rows.any(axis=1)
    if not present.any():
        return Modality(name, rows, present)
    # Sums in float64: a float32 mean of many rows would leave constant features with a direction.
    mean = rows.mean(axis=0, where=present[:, None], dtype=np.float64)
    scale = float(np.sqrt(np.mean(np.einsum("ij,ij->i", rows, rows, dtype=np.float64)[present])))
    for start in range(0, n_items, max(_BLOCK_ELEMENTS // max(raw.shape[1], 1), 1)):
        block = slice(start, start + max(_BLOCK_ELEMENTS // max(raw.shape[1], 1), 1))
        centred = rows[block] - mean
        length = np.linalg.norm(centred, axis=1)
        # What is left of a constant row is rounding of its float32 values.
        present[block] &= length > 1e-6 * scale
        rows[block] = np.where(present[block, None], centred / np.maximum(length, 1e-300)[:, None], 0.0)
    return Modality(name, rows, present)


def confidence(
    modalities: list[Modality], *, anchors: int, rng: np.random.Generator, relative: bool = True
) -> NDArray[np.float32]:
    """Agreement of every item's own modalities, in [0, 1] (this project's definition of S_conf).

    With the anchor items a in A (seeded; for each pair of modalities the first ``anchors`` items
    of one random order that have both), r_i^m is the vector of S_m(i, a), a in A without i, minus its mean and
    divided by its length, and

        c_i = (1 + mean over the pairs (m, m') that i has of <r_i^m, r_i^m'>) / 2.

    The modalities need not share a space: only similarities within each are compared. c_i is 1 where nothing can be
    compared (one modality, or the other one missing).

    Args:
        modalities: of n_items rows each.
        anchors: the largest number of anchor items.
        rng: chooses them.
        relative: false: c_i = 1 for all items.

    Returns:
        float32 [n_items].
    """
    n_items = len(modalities[0].present) if modalities else 0
    total, count = np.zeros(n_items), np.zeros(n_items)
    order = rng.permutation(n_items)
    for left, right in combinations(modalities if relative else [], 2):
        both = np.flatnonzero(left.present & right.present)
        in_both = left.present & right.present
        chosen = order[in_both[order]][:anchors]
        agreement, usable = _relative_agreement(left.rows, right.rows, both, chosen)
        total[both[usable]] += agreement[usable]
        count[both[usable]] += 1
    result = np.where(count > 0, (1 + total / np.maximum(count, 1)) / 2, 1.0)
    return np.clip(result, 0.0, 1.0).astype(np.float32)


def _relative_agreement(
    left: FloatArray, right: FloatArray, items: IntArray, anchors: IntArray
) -> tuple[FloatArray, NDArray[np.bool_]]:
    agreement, usable = np.zeros(len(items)), np.zeros(len(items), dtype=bool)
    step = max(_BLOCK_ELEMENTS // max(len(anchors), 1), 1)
    for start in range(0, len(items), step):
        block = items[start : start + step]
        # An item is no anchor of itself: both similarities are 1 there and would count as agreement.
        other = block[:, None] != anchors[None, :]
        number = np.maximum(other.sum(axis=1, keepdims=True), 1)
        relative = []
        for rows in (left, right):
            similarity = (rows[block] @ rows[anchors].T).astype(np.float64)
            similarity -= similarity.sum(axis=1, keepdims=True, where=other) / number
            similarity *= other
            relative.append(similarity)
        a, b = relative
        lengths = np.sqrt(np.einsum("ij,ij->i", a, a) * np.einsum("ij,ij->i", b, b))
        good = lengths > 1e-10
        agreement[start : start + step] = np.einsum("ij,ij->i", a, b) / np.where(good, lengths, 1.0)
        usable[start : start + step] = good
    return agreement, usable


def mean_scores(
    rows: NDArray[np.float32], weight: FloatArray, profiles: InteractionIndex, candidates: Candidates
) -> NDArray[np.float64]:
    """Exact leave-one-out means in linear time.

    With v_i = sqrt(c_i) e_i and V_u = sum of v_i over the profile of u, a candidate (u, i) that leaves out l
    scores

        s = <v_i, V_u - v_l> / (|I_u| - 1),

    for an observed pair (l = i) that is (<v_i, V_u> - ||v_i||^2) / (|I_u| - 1). One sparse-dense product and a
    row-wise dot, O((nnz + candidates) d), in blocks of bounded memory.

    Args:
        rows: float32 [n_items, d].
        weight: float [n_items], c_i.
        candidates: sorted by user.

    Returns:
        float64 [len(candidates)], 0 where the rest of the profile is empty.
    """
    total = np.zeros(len(candidates))
    matrix = profiles.matrix
    root = np.sqrt(np.asarray(weight, dtype=np.float64))[:, None]
    columns = min(_COLUMNS, max(_COLUMN_ELEMENTS // len(rows), 1))
    for first in range(0, rows.shape[1], columns):
        v = rows[:, first : first + columns] * root
        step = max(_BLOCK_ELEMENTS // v.shape[1], 1)
        for start in range(0, len(candidates), step):
            block = slice(start, start + step)
            users = candidates.users[block]
            profile_sum = matrix[users[0] : users[-1] + 1] @ v
            rest = profile_sum[users - users[0]] - v[candidates.left_out[block]]
            total[block] += np.einsum("ij,ij->i", rest, v[candidates.items[block]])
    others = profiles.size[candidates.users] - 1
    mean = total / np.maximum(others, 1)
    mean[(others < 1) | (np.abs(mean) < SNAP)] = 0.0
    return mean


@dataclass(frozen=True)
class SimilarityBlock:
    """Candidates of one block, beside the whole profile of their users.

    Attributes:
        index: int64 [c], positions in the candidates.
        profile: int64 [c, n] or [1, n] (the same for all), the items of the profile.
    """

    index: IntArray
    profile: IntArray


def profile_blocks(profiles: InteractionIndex, candidates: Candidates, width: int) -> Iterator[SimilarityBlock]:
    """Candidates with profiles of equal length together; long profiles one user at a time.

    Args:
        candidates: sorted by user.
        width: elements per (candidate, profile item) that the caller holds, to bound the memory.
    """
    size = profiles.size[candidates.users]
    budget = max(_BLOCK_ELEMENTS // max(width, 1), 1)
    for n in np.unique(size[size <= _SMALL_PROFILE]):
        if n < 2:
            continue
        index = np.flatnonzero(size == n)
        step = max(budget // int(n), 1)
        for start in range(0, len(index), step):
            part = index[start : start + step]
            offset = profiles.indptr[candidates.users[part]]
            yield SimilarityBlock(part, profiles.items[offset[:, None] + np.arange(n)])
    index = np.flatnonzero(size > _SMALL_PROFILE)
    if not len(index):
        return
    for part in np.split(index, np.flatnonzero(np.diff(candidates.users[index])) + 1):
        user = candidates.users[part[0]]
        profile = profiles.items_of(user)
        step = max(_BLOCK_ELEMENTS // len(profile), 1)
        for start in range(0, len(part), step):
            yield SimilarityBlock(part[start : start + step], profile[None, :])


def block_similarity(v: FloatArray, items: IntArray, profile: IntArray) -> FloatArray:
    """<v_i, v_i'> of every candidate item with every item of its profile; [c, n]."""
    if len(profile) == 1:
        return v[items] @ v[profile[0]].T
    return np.matmul(v[profile], v[items][:, :, None])[:, :, 0]


def nearest_scores(
    rows: NDArray[np.float32], weight: FloatArray, profiles: InteractionIndex, candidates: Candidates
) -> NDArray[np.float64]:
    """The similarity to the most similar item of the rest of each profile, O(sum |I_u|^2 d), in blocks.

    Args:
        rows: float32 [n_items, d].
        weight: float [n_items], c_i; the similarity is sqrt(c_i c_i') <row_i, row_i'>.
        candidates: sorted by user.

    Returns:
        float64 [len(candidates)], 0 where the rest of the profile is empty.
    """
    result = np.zeros(len(candidates))
    # In double precision: what a matrix product rounds depends on what else lies in the block.
    v = rows * np.sqrt(np.asarray(weight, dtype=np.float64))[:, None]
    for block in profile_blocks(profiles, candidates, v.shape[1]):
        items, left_out = candidates.items[block.index], candidates.left_out[block.index]
        similarity = block_similarity(v, items, block.profile)
        largest = np.where(block.profile == left_out[:, None], -np.inf, similarity).max(axis=1)
        result[block.index] = np.where(np.abs(largest) < SNAP, 0.0, largest)
    return result


def modality_list(
    features: Mapping[str, ArrayLike | tuple[ArrayLike, ArrayLike]], names: object, n_items: int
) -> list[Modality]:
    """The modalities that the settings ask for (``"all"`` or a list of names), normalised.

    Raises:
        GuiderError: a name that is not among the features.
    """
    chosen = list(features) if names == "all" else list(names)  # type: ignore[call-overload]  # a list by the settings
    for name in chosen:
        if name not in features:
            raise GuiderError(
                f"guider.calibration.modalities names {name!r}, but the data have: {', '.join(features) or 'none'}."
            )
    return [normalise_modality(name, features[name], n_items) for name in chosen]
