"""How much of the noise that is counted is clean pairs whose profiles are full of noise.

A clean pair is recognised by the rest of its profile. The more of that is noise, the more clean pairs look like noise
themselves, and the count rises faster than the noise does. How fast is measured as in simulation extrapolation (Cook
and Stefanski, Simulation-Extrapolation Estimation in Parametric Measurement Error Models, Journal of the American
Statistical Association 1994): noise is added to the profiles, counted again, and the rise carried on to no noise.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from recbole_guider.amsc import decision
from recbole_guider.amsc.calibrator import Calibrator, judged_pairs
from recbole_guider.amsc.profiles import Candidates, NullPairs, build_profiles, draw_null_pairs
from recbole_guider.utils.interactions import InteractionIndex, pair_keys


@dataclass(frozen=True)
class SimexCount:
    """What is counted where null pairs take the place of some pairs.

    Attributes:
        noise_rate: the count among the pairs that stay, see :func:`~recbole_guider.amsc.decision.counted_noise_rate`.
        share: of the pairs, those whose place is taken.
    """

    noise_rate: float
    share: float


def simex_count(
    calibrator: Calibrator, profiles: InteractionIndex, users: NDArray[np.int64] | None, nulls: NullPairs,
    rng: np.random.Generator,
) -> SimexCount:
    """Count noise with half of the pairs replaced by null pairs, then with the other half, each pair judged once.

    What has been learned stays as it is; exact co-occurrence is counted anew.

    Args:
        calibrator: with f/f0 as its density_ratio.
        profiles: the log that co-occurrence is counted in, or the profiles of ``users`` alone where it is not.
        users: int64, positions in ``profiles`` of the users that are judged; None: all.
        nulls: of the judged users, ``pair`` a row of their profiles.
        rng: chooses the halves and what takes the place of their pairs.
    """
    sample = profiles if users is None else profiles.of_users(users)
    judged, pair_users = judged_pairs(sample, calibrator.settings), sample.users[nulls.pair]
    ratios, null_ratios, staying = [], [], []
    for whole in _halves_with_more_noise(profiles, calibrator, rng):
        noisier = whole if users is None else whole.of_users(users)
        calibrator_of_half = replace(calibrator, evidence=calibrator.evidence.of_log(whole))
        stays = noisier.has(sample.users, sample.items)
        staying.append(stays.mean())
        kept = np.flatnonzero(stays & judged)
        observed = Candidates(sample.users[kept], sample.items[kept], sample.items[kept])
        ratios.append(calibrator_of_half.ratio(noisier, observed))
        # a null pair of the half that stays may have become an observed one
        usable = np.flatnonzero(stays[nulls.pair] & ~noisier.has(pair_users, nulls.items))
        null = Candidates(pair_users[usable], nulls.items[usable], sample.items[nulls.pair[usable]])
        null_ratios.append(calibrator_of_half.ratio(noisier, null))
    rate = decision.counted_noise_rate(np.concatenate(ratios), np.concatenate(null_ratios))
    return SimexCount(rate, 1.0 - float(np.mean(staying)))


def _halves_with_more_noise(
    profiles: InteractionIndex, calibrator: Calibrator, rng: np.random.Generator
) -> Iterator[InteractionIndex]:
    """The profiles with null pairs in place of one half of the pairs, then of the other; their sizes stay.

    A pair stays where its user has every item, or where its stand-in has come into the profile already.
    """
    drawn = draw_null_pairs(
        profiles,
        np.arange(profiles.n_pairs),
        by_popularity=calibrator.settings.null_items == "popularity",
        rng=rng,
        item_degree=calibrator.item_degree,
    )
    stand_in = profiles.items.copy()
    stand_in[drawn.pair] = drawn.items
    first = rng.random(profiles.n_pairs) < 0.5
    for half in (first, ~first):
        rows = np.flatnonzero(half)
        _, at = np.unique(pair_keys(profiles.users[rows], stand_in[rows], profiles.n_items), return_index=True)
        items = profiles.items.copy()
        items[rows[at]] = stand_in[rows[at]]
        yield build_profiles(profiles.users, items, profiles.n_users, profiles.n_items, profiles.user_keys)
