"""Noise of a known size and place, for experiments: added and deleted interactions, swapped and random content.

Pure functions on arrays. ``GuiderDataset`` applies them to training data only.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping

import numpy as np

from recbole_guider.data.features import ItemFeatures
from recbole_guider.utils.errors import GuiderError
from recbole_guider.utils.interactions import pair_keys

_MAX_ROUNDS = 200
_MAX_CELLS = 200_000_000


def inject_interactions(
    users: np.ndarray,
    items: np.ndarray,
    n_users: int,
    n_items: int,
    ratio: float,
    *,
    forbidden_users: np.ndarray | None = None,
    forbidden_items: np.ndarray | None = None,
    user_distribution: str = "activity",
    item_distribution: str = "popularity",
    clickbait_items: float = 0.01,
    seed: int = 2020,
) -> tuple[np.ndarray, np.ndarray]:
    """Draw ``round(ratio * len(users))`` distinct new pairs (u, i), none of them observed or forbidden.

    Pairs are drawn one after the other, without replacement, with probability proportional to
    ``p(u) * q(i)`` over the pairs that are still free. ``activity`` / ``popularity`` take p and q proportional to
    the number of given pairs of the user / the item, so that the degrees of a noisy pair say nothing about it;
    ``uniform`` takes every user that has a pair, and every item of the catalogue, alike. ``clickbait`` takes few items
    alike, drawn from the catalogue, and no others.

    Args:
        users, items: int [nnz], the observed training pairs, ids from 0.
        n_users, n_items: sizes of the catalogue.
        ratio: added pairs as a share of ``nnz`` (0.2: one added pair for five observed ones).
        forbidden_users, forbidden_items: int [m], further pairs that must not be drawn (validation and test).
        user_distribution: ``activity`` or ``uniform``.
        item_distribution: ``popularity``, ``uniform`` or ``clickbait``.
        clickbait_items: the share of the catalogue that ``clickbait`` draws from; at least one item.
        seed: of this function's own generator.

    Returns:
        (noise_users, noise_items), int64 [round(ratio * nnz)] each.

    Raises:
        GuiderError: a negative ratio, an unknown distribution, or fewer free pairs than asked for.
    """
    if ratio < 0:
        raise GuiderError(f"the noise ratio must be at least 0, not {ratio}.")
    users, items = np.asarray(users, dtype=np.int64), np.asarray(items, dtype=np.int64)
    p_user = _weights(users, n_users, user_distribution, "activity", among_observed=True)
    if item_distribution == "clickbait":
        p_item = _clickbait(n_items, clickbait_items, seed)
    else:
        p_item = _weights(items, n_items, item_distribution, "popularity", among_observed=False)
    wanted = round(ratio * len(users))
    if wanted == 0:
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    taken = pair_keys(users, items, n_items)
    if forbidden_users is not None and forbidden_items is not None:
        taken = np.append(taken, pair_keys(np.asarray(forbidden_users), np.asarray(forbidden_items), n_items))
    taken = np.unique(taken)
    few = clickbait_items if item_distribution == "clickbait" and clickbait_items < 1 else None
    _check_enough_free(wanted, ratio, taken, p_user, p_item, few)
    drawn = _draw(wanted, taken, p_user, p_item, np.random.default_rng(seed))
    return drawn // n_items, drawn % n_items


def delete_interactions(
    users: np.ndarray, items: np.ndarray, n_users: int, n_items: int, ratio: float, *, seed: int = 2020
) -> np.ndarray:
    """Choose ``round(ratio * len(users))`` of the pairs to take out, uniformly among those that may go.

    Of every user and of every item one random pair stays, so that nobody falls out of the data.

    Args:
        users, items: int [nnz], ids from 0.
        n_users, n_items: sizes of the catalogue.
        ratio: share in [0, 1).
        seed: of this function's own generator.

    Returns:
        bool [nnz], True for the pairs that go.

    Raises:
        GuiderError: a ratio outside [0, 1), or more pairs than may go.
    """
    if not 0 <= ratio < 1:
        raise GuiderError(f"the share of deleted interactions must be at least 0 and below 1, not {ratio}.")
    wanted = round(ratio * len(users))
    gone = np.zeros(len(users), dtype=bool)
    if wanted == 0:
        return gone
    rng = np.random.default_rng([seed, 2])
    order = rng.permutation(len(users))
    stays = np.zeros(len(users), dtype=bool)
    for ids in (users, items):
        _, first = np.unique(ids[order], return_index=True)
        stays[order[first]] = True
    free = order[~stays[order]]
    if wanted > len(free):
        raise GuiderError(
            f"{wanted} interactions were to be deleted (share {ratio}), but only {len(free)} can go if every user and "
            f"every item keeps one; lower the share."
        )
    gone[free[:wanted]] = True
    return gone


#: The share of the items that is changed: one number, or one for each modality by name.
Shares = float | Mapping[str, float]


def shuffle_features(features: Mapping[str, ItemFeatures], ratio: Shares, seed: int) -> dict[str, ItemFeatures]:
    """Give a share of the items another item's content.

    In every modality on its own, ``round(ratio * number of items with content)`` of the items that have content
    pass their rows around a random ring: none of them keeps its own row, and the set of rows stays the same.

    Args:
        features: name -> :class:`~recbole_guider.data.features.ItemFeatures`.
        ratio: share of the items in [0, 1], or modality -> share (a modality that is not named stays as it is).
        seed: each modality's generator is seeded by this and its name.

    Returns:
        New features; the input is not changed. Presence masks stay.

    Raises:
        GuiderError: a ratio outside [0, 1], or a modality that does not exist.
    """
    noisy = dict(features)
    for name, share in _shares(features, ratio, "shuffled").items():
        feature = features[name]
        rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
        having = np.flatnonzero(feature.present)
        ring = rng.choice(having, size=round(share * len(having)), replace=False)
        if len(ring) > 1:
            values = feature.values.copy()
            values[ring] = feature.values[np.roll(ring, 1)]
            noisy[name] = ItemFeatures(values=values, present=feature.present)
    return noisy


def gaussian_features(features: Mapping[str, ItemFeatures], ratio: Shares, seed: int) -> dict[str, ItemFeatures]:
    """Replace the content of a share of the items by Gaussian noise.

    In every modality on its own, ``round(ratio * number of items with content)`` of the items that have content get a
    row of independent normal numbers; each dimension has the mean and the standard deviation of the modality, so that
    scale does not give the noise away.

    Args, Returns, Raises: as :func:`shuffle_features`.
    """
    noisy = dict(features)
    for name, share in _shares(features, ratio, "Gaussian").items():
        feature = features[name]
        rng = np.random.default_rng([seed, zlib.crc32(name.encode()), 1])
        having = np.flatnonzero(feature.present)
        chosen = rng.choice(having, size=round(share * len(having)), replace=False)
        if len(chosen):
            rows = feature.values[having].astype(np.float64)
            values = feature.values.copy()
            noise = rng.standard_normal((len(chosen), values.shape[1]))
            values[chosen] = rows.mean(axis=0) + rows.std(axis=0) * noise
            absent = ~feature.present
            absent[0] = False  # RecBole's padding stays zero; the others hold the mean
            values[absent] = values[having].mean(axis=0, dtype=np.float64)
            noisy[name] = ItemFeatures(values=values, present=feature.present)
    return noisy


def _shares(features: Mapping[str, ItemFeatures], ratio: Shares, what: str) -> dict[str, float]:
    if not isinstance(ratio, Mapping) and ratio > 0 and not features:
        raise GuiderError(f"the share of {what} features is {ratio:g}, but this data set has no modalities.")
    shares = dict(ratio) if isinstance(ratio, Mapping) else dict.fromkeys(features, ratio)
    for name, share in shares.items():
        if name not in features:
            raise GuiderError(
                f"the share of {what} features names the modality {name!r}: this data set has "
                f"{', '.join(features) or 'no modalities'}."
            )
        if not 0 <= share <= 1:
            raise GuiderError(f"the share of {what} features must be between 0 and 1, not {share}.")
    return shares


def _weights(ids: np.ndarray, n: int, distribution: str, by_count: str, *, among_observed: bool) -> np.ndarray:
    counts = np.bincount(ids, minlength=n).astype(np.float64)
    if distribution == "uniform":
        counts = (counts > 0).astype(np.float64) if among_observed else np.ones(n)
    elif distribution != by_count:
        allowed = f"{by_count}, uniform" + ("" if among_observed else ", clickbait")
        raise GuiderError(f"noise distribution {distribution!r} does not exist; allowed: {allowed}.")
    return counts / counts.sum() if counts.sum() else counts


def _clickbait(n_items: int, share: float, seed: int) -> np.ndarray:
    """The same weight for a few items drawn from the catalogue, and none for the others."""
    if not 0 < share <= 1:
        raise GuiderError(f"the share of clickbait items must be above 0 and at most 1, not {share}.")
    few = max(1, round(share * n_items))
    weights = np.zeros(n_items)
    weights[np.random.default_rng([seed, 3]).choice(n_items, size=few, replace=False)] = 1 / few
    return weights


def _check_enough_free(
    wanted: int, ratio: float, taken: np.ndarray, p_user: np.ndarray, p_item: np.ndarray, clickbait: float | None
) -> None:
    """Raise if fewer than ``wanted`` pairs are free; ``clickbait``: the share of the items, if some only."""
    n_items = len(p_item)
    reachable = (p_user[taken // n_items] > 0) & (p_item[taken % n_items] > 0)
    free = int(np.count_nonzero(p_user)) * int(np.count_nonzero(p_item)) - int(reachable.sum())
    if wanted > free:
        remedy = "" if clickbait is None else f" or raise noise.clickbait_items, which is {clickbait}"
        raise GuiderError(
            f"{wanted} noisy interactions were asked for (ratio {ratio}), but only {free} pairs of users and "
            f"{'items' if clickbait is None else 'the clickbait items'} are free; lower the ratio{remedy}."
        )


def _draw(
    wanted: int, taken: np.ndarray, p_user: np.ndarray, p_item: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """The keys of ``wanted`` pairs that are not among ``taken``, one after the other without replacement."""
    n_users, n_items = len(p_user), len(p_item)
    drawn = np.zeros(0, dtype=np.int64)
    for _ in range(_MAX_ROUNDS):
        missing = wanted - len(drawn)
        if missing == 0:
            return drawn
        size = max(2 * missing, 1024)
        keys = pair_keys(rng.choice(n_users, size, p=p_user), rng.choice(n_items, size, p=p_item), n_items)
        keys = keys[~np.isin(keys, taken)]
        # Keeping first occurrences in order is drawing without replacement.
        _, first = np.unique(keys, return_index=True)
        keys = keys[np.sort(first)][:missing]
        drawn = np.concatenate([drawn, keys])
        taken = np.union1d(taken, keys)
    return np.concatenate([drawn, _enumerate_free(taken, p_user, p_item, wanted - len(drawn), rng)])


def _enumerate_free(
    taken: np.ndarray, p_user: np.ndarray, p_item: np.ndarray, wanted: int, rng: np.random.Generator
) -> np.ndarray:
    """The rest of the draw when nearly every likely pair is taken: exponential keys over all free pairs."""
    n_items = len(p_item)
    if len(p_user) * n_items > _MAX_CELLS:
        raise GuiderError(f"{wanted} of the noisy interactions found no free pair; lower the ratio.")
    weights = np.outer(p_user, p_item).ravel()
    weights[taken] = 0.0
    free = np.flatnonzero(weights)
    # The k smallest Exp(1)/w are k draws without replacement proportional to w.
    arrival = rng.exponential(size=len(free)) / weights[free]
    return free[np.argsort(arrival, kind="stable")[:wanted]]
