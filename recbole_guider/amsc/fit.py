"""What AMSC learns from a log.

Learning takes the counts of the whole log and the profiles of a sample of its users; judging takes the profiles of any
users, one block after the other. Nothing else passes between the two, so a log may lie in memory or on many machines.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from recbole_guider.amsc import decision
from recbole_guider.amsc.behaviour import CoOccurrence, counts_are_affordable
from recbole_guider.amsc.calibrator import Calibrator, DensityRatio, judged_pairs
from recbole_guider.amsc.discriminant import learn_discriminant
from recbole_guider.amsc.evidence import Behaviour, Evidence, adaptive_weights, classifier_inputs
from recbole_guider.amsc.folds import uniform
from recbole_guider.amsc.learned import (
    FOLDS,
    FoldedEmbeddings,
    centred,
    half_whitened,
    joined_content,
    learn_embeddings,
)
from recbole_guider.amsc.profiles import Candidates, FloatArray, NullPairs, draw_null_pairs
from recbole_guider.amsc.settings import BEHAVIOUR, CalibrationSettings
from recbole_guider.amsc.simex import simex_count
from recbole_guider.amsc.similarity import Modality, confidence
from recbole_guider.utils.errors import GuiderError
from recbole_guider.utils.interactions import IntArray, InteractionIndex

logger = logging.getLogger(__name__)

#: Null pairs drawn for each observed pair.
NULL_DRAWS = 2
#: About the largest number of observed and null pairs that the classifier learns from.
SAMPLE = 1_000_000
#: About the largest number of pairs that embeddings are learned from.
LEARN_PAIRS = 20_000_000


@dataclass(frozen=True)
class LogCounts:
    """What is counted over the whole log; the sum of two is that of two logs without a common user.

    Attributes:
        n_pairs: the number of distinct pairs.
        n_judged: of those, the pairs of users whose profile is long enough to be judged.
        square_sum: the sum of the squared profile sizes.
        item_degree: int64 [n_items], the number of users of each item.
    """

    n_pairs: int
    n_judged: int
    square_sum: int
    item_degree: IntArray

    @classmethod
    def of(cls, profiles: InteractionIndex, settings: CalibrationSettings) -> LogCounts:
        """The counts of these profiles."""
        n_judged = int(judged_pairs(profiles, settings).sum())
        return cls(profiles.n_pairs, n_judged, profiles.square_sum, profiles.item_degree)

    def __add__(self, other: LogCounts) -> LogCounts:
        return LogCounts(
            self.n_pairs + other.n_pairs,
            self.n_judged + other.n_judged,
            self.square_sum + other.square_sum,
            self.item_degree + other.item_degree,
        )


@dataclass(frozen=True)
class UserSample:
    """About a given number of pairs: those of the users whose own random number lies below ``share``.

    Whole users, since a null pair is scored against a whole profile, and the same users however the log is cut. A
    smaller sample of the same seed is part of a larger one.

    Attributes:
        seed: of the calibration.
        share: of the users, 1 or more for all.
    """

    seed: int
    share: float

    @classmethod
    def of_size(cls, seed: int, wanted: int, n_pairs: int) -> UserSample:
        """The sample that holds about ``wanted`` of ``n_pairs`` pairs."""
        return cls(seed, wanted / max(n_pairs, 1))

    def users(self, keys: IntArray) -> IntArray:
        """Positions of the sampled users among users with these keys."""
        return np.flatnonzero(uniform(keys, self.seed) < self.share)

    def __call__(self, profiles: InteractionIndex) -> InteractionIndex:
        """The profiles of the sampled users; the same object where those are all."""
        return profiles if self.share >= 1 else profiles.of_users(self.users(profiles.user_keys))


def learning_sample(counts: LogCounts, seed: int) -> UserSample:
    """The users that :func:`fit_calibrator` has to see."""
    return UserSample.of_size(seed, LEARN_PAIRS, counts.n_pairs)


@dataclass(frozen=True)
class CalibratorFit:
    """What :func:`fit_calibrator` saw on the way to its calibrator.

    Attributes:
        calibrator: what was learned.
        sample: the profiles that evidence was compared with null pairs in.
        columns: name -> float64 [n_pairs], the evidence of the pairs of ``sample``.
        nulls: the null pairs, ``pair`` a row of ``sample``.
        null_score: float64 [n_null].
        null_columns: name -> float64 [n_null].
    """

    calibrator: Calibrator
    sample: InteractionIndex
    columns: dict[str, FloatArray]
    nulls: NullPairs
    null_score: FloatArray
    null_columns: dict[str, FloatArray] = field(default_factory=dict)


def check_modalities(modalities: list[Modality], behaviour: bool) -> None:
    """Raise GuiderError where there is nothing to compare items by, or a name is taken."""
    if not modalities and not behaviour:
        raise GuiderError(
            "There is nothing to compare items by: give at least one modality, or set "
            "guider.calibration.behaviour: true."
        )
    if any(m.name == BEHAVIOUR for m in modalities):
        raise GuiderError(f"A modality cannot be called {BEHAVIOUR!r}: that is the name of co-occurrence; rename it.")


def fit_calibrator(
    counts: LogCounts,
    profiles: InteractionIndex,
    modalities: list[Modality],
    settings: CalibrationSettings,
    seed: int,
) -> CalibratorFit:
    """Learn what separates observed from null pairs.

    Args:
        counts: of the whole log.
        profiles: of the users in ``learning_sample(counts, seed)``, sorted by user.
        modalities: of the content, normalised.
        settings: ``guider.calibration``.
        seed: of every random choice made here.

    Raises:
        GuiderError: as :func:`check_modalities`.
    """
    check_modalities(modalities, settings.behaviour)
    # One generator for each purpose: an option that draws more does not change the others.
    anchor_rng, null_rng, learned_rng, decision_rng, factors_rng, simex_rng = (
        np.random.default_rng([seed, k]) for k in range(6)
    )
    n_items = profiles.n_items
    agreement = confidence(
        modalities, anchors=settings.anchors, rng=anchor_rng, relative=settings.confidence == "relative"
    )
    if not modalities:
        agreement = np.ones(n_items, dtype=np.float32)

    sampled = UserSample.of_size(seed, SAMPLE // (1 + NULL_DRAWS), counts.n_judged)
    sample = sampled(profiles)
    judged = judged_pairs(sample, settings)
    nulls = draw_null_pairs(
        sample,
        np.repeat(np.flatnonzero(judged), NULL_DRAWS),
        by_popularity=settings.null_items == "popularity",
        rng=null_rng,
        item_degree=counts.item_degree,
    )
    observed = Candidates(sample.users, sample.items, sample.items)
    null = Candidates(sample.users[nulls.pair], nulls.items, sample.items[nulls.pair])

    exact = None
    # Exact counts need every profile, so all of them have to be here.
    complete = counts.n_pairs == profiles.n_pairs
    if settings.behaviour and complete and counts_are_affordable(counts.square_sum):
        exact = CoOccurrence(profiles, agreement)
        exact = exact if exact.is_affordable else None
    learned: dict[str, FoldedEmbeddings] = {}
    joined = None
    if settings.learned or (settings.behaviour and exact is None):
        joined = joined_content(modalities, learned_rng)
        learned = learn_embeddings(profiles, joined, learned_rng)
    behaviour: Behaviour = exact
    if settings.behaviour and exact is None:
        logger.info(
            "The profiles are too long for exact co-occurrence (sum of squared sizes %.3g): behaviour is compared by "
            "a low-rank embedding of the interactions.",
            float(counts.square_sum),
        )
        behaviour = learned["behaviour"]

    names = (["behaviour", "content", "both"] if settings.behaviour else ["content"]) if settings.learned else []
    shown = {f"learned.{name}": learned[name] for name in names if name in learned}
    # Comparing a pair with every item of its profile costs what counting the pairs of items does.
    nearest = settings.nearest and counts_are_affordable(counts.square_sum)
    evidence = Evidence(modalities, behaviour, agreement, shown, nearest)
    columns, null_columns = evidence.columns(sample, observed), evidence.columns(sample, null)
    weights = dict.fromkeys(columns, 1 / len(columns))
    if settings.weights == "adaptive":
        weights = adaptive_weights({name: column[judged] for name, column in columns.items()}, null_columns)
    if settings.learned and joined is not None:
        user_folds, by_fold = learned["content"].folds, learned["content"].rows
        middle = centred(joined, counts.item_degree.astype(np.float64)).astype(np.float32)
        for name, rows in {"directions": [middle] * FOLDS, "content_directions": by_fold}.items():
            evidence.fitted[f"learned.{name}"] = learn_discriminant(
                rows, user_folds, sample, observed, null, learned_rng
            )
    if settings.learned and (settings.behaviour or joined is not None):
        # imported here: it loads torch, which the many processes that only predict do without
        from recbole_guider.amsc.factor_training import learn_factors

        evidence.fitted["learned.factors"] = learn_factors(
            profiles,
            learned["behaviour"].folds,
            counts.item_degree,
            None if joined is None else half_whitened(joined),
            settings.behaviour,
            factors_rng,
        )
    score = evidence.score(sample, observed, columns, weights)
    null_score = evidence.score(sample, null, null_columns, weights)
    columns |= evidence.further_columns(sample, observed)
    null_columns |= evidence.further_columns(sample, null)

    told_apart = settings.popularity or any(
        np.ptp(np.concatenate([columns[name][judged], null_column])) > 0 for name, null_column in null_columns.items()
        if len(null_column)
    )
    if settings.noise_rate is None and not told_apart:
        # any share of noise would explain what is seen
        if len(nulls.items):
            logger.warning(
                "AMSC finds nothing that tells items apart in %s: all interactions count as clean.", ", ".join(weights)
            )
        calibrator = Calibrator(evidence, settings, weights, counts.item_degree, None, 0.0, 0.0)
        return CalibratorFit(calibrator, sample, columns, nulls, null_score, null_columns)
    found = _decide(
        sample, judged, nulls, (score, columns), (null_score, null_columns), counts.item_degree, settings, decision_rng
    )
    calibrator = Calibrator(
        evidence, settings, weights, counts.item_degree, found.density_ratio, found.noise_rate, found.conservative_pi0,
        found.by_popularity,
    )
    if found.counted is not None:
        # exact counts are those of all users
        log, users = (
            (sample, None) if exact is None or sample is profiles else (profiles, sampled.users(profiles.user_keys))
        )
        with_more_noise = simex_count(calibrator, log, users, nulls, simex_rng)
        noise_rate = decision.extrapolated_noise_rate(found.counted, with_more_noise.noise_rate, with_more_noise.share)
        # both are too high where clean pairs look like noise
        calibrator = replace(calibrator, noise_rate=min(noise_rate, found.conservative_pi0))
    return CalibratorFit(calibrator, sample, columns, nulls, null_score, null_columns)


@dataclass(frozen=True)
class _Decision:
    """How scores become probabilities: what :class:`Calibrator` has of the same names, and the count of noise.

    Attributes:
        counted: among the judged pairs, where ``lfdr`` estimates the share of noise; None elsewhere.
    """

    density_ratio: DensityRatio
    noise_rate: float
    conservative_pi0: float
    counted: float | None = None
    by_popularity: decision.NoiseByPopularity | None = None


def _decide(
    sample: InteractionIndex,
    judged: NDArray[np.bool_],
    nulls: NullPairs,
    observed: tuple[FloatArray, Mapping[str, FloatArray]],
    null: tuple[FloatArray, Mapping[str, FloatArray]],
    item_degree: IntArray,
    settings: CalibrationSettings,
    rng: np.random.Generator,
) -> _Decision:
    """How scores become probabilities.

    Args:
        observed, null: scores and evidence of the pairs of ``sample`` and of ``nulls``.
        rng: of the cross-fitting.
    """
    (score, columns), (null_score, null_columns) = observed, null
    size = sample.size[sample.users]
    given = settings.noise_rate
    if settings.decision == "lfdr":
        degree, null_degree = item_degree[sample.items] - 1, item_degree[nulls.items]
        inputs, monotone = classifier_inputs(score, columns, size, degree, settings)
        null_inputs, _ = classifier_inputs(null_score, null_columns, size[nulls.pair], null_degree, settings)
        keys = sample.user_keys[sample.users]
        null_keys = keys[nulls.pair]
        density_ratio = decision.CrossFitted(inputs[judged], null_inputs, keys[judged], null_keys, monotone, rng)
        grouped = settings.noise_by == "popularity" and not settings.popularity  # which would be evidence already
        if given is not None and not grouped:
            return _Decision(density_ratio, given, given)
        ratio = density_ratio.ratio(inputs[judged], keys[judged])
        null_ratio = density_ratio.ratio(null_inputs, null_keys)
        by_popularity = None
        if grouped:
            by_popularity = decision.NoiseByPopularity.estimate(ratio, degree[judged] + 1, null_ratio, null_degree + 1)
        if given is not None:
            return _Decision(density_ratio, given, given, None, by_popularity)
        counted = decision.counted_noise_rate(ratio, null_ratio)
        return _Decision(density_ratio, 0.0, decision.conservative_noise_rate(null_ratio), counted, by_popularity)
    noise_rate = decision.storey_noise_rate(score[judged], null_score) if given is None else given
    return _Decision(np.sort(score[judged]), noise_rate, noise_rate)
