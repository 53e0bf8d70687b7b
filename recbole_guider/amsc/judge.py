"""What AMSC learns from a log, and what it says with that about the pairs of any users.

Learning takes the counts of the whole log and the profiles of a sample of its users; judging takes the profiles of any
users, one block after the other. Nothing else passes between the two, so a log may lie in memory or on many machines.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from recbole_guider.amsc import decision
from recbole_guider.amsc.behaviour import CoOccurrence, counts_are_affordable
from recbole_guider.amsc.discriminant import Discriminant, learn_discriminant
from recbole_guider.amsc.draws import uniform
from recbole_guider.amsc.factors import Factors
from recbole_guider.amsc.learned import (
    PARTS,
    FoldedEmbeddings,
    centred,
    half_whitened,
    joined_content,
    learn_embeddings,
)
from recbole_guider.amsc.profiles import Candidates, FloatArray, IntArray, NullPairs, Profiles, draw_null_pairs
from recbole_guider.amsc.similarity import (
    Modality,
    block_similarity,
    confidence,
    mean_scores,
    normalise_modality,
    profile_blocks,
    top_mean,
    top_scores,
)
from recbole_guider.errors import GuiderError
from recbole_guider.settings import CalibrationSettings

logger = logging.getLogger(__name__)

#: The name of the behaviour modality among the weights and the evidence.
BEHAVIOUR = "behaviour"
#: Null pairs drawn for each observed pair.
NULL_DRAWS = 2
#: About the largest number of observed and null pairs that the classifier learns from.
SAMPLE = 1_000_000
#: About the largest number of pairs that embeddings are learned from.
LEARN_PAIRS = 20_000_000

_Behaviour = CoOccurrence | FoldedEmbeddings | Modality | None


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
    def of(cls, profiles: Profiles, settings: CalibrationSettings) -> LogCounts:
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


def judged_pairs(profiles: Profiles, settings: CalibrationSettings) -> NDArray[np.bool_]:
    """bool [n_pairs]: the pairs of users with at least ``min_profile`` items."""
    return profiles.size[profiles.users] >= max(settings.min_profile, 2)


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

    def __call__(self, profiles: Profiles) -> Profiles:
        """The profiles of the sampled users; the same object where those are all."""
        return profiles if self.share >= 1 else profiles.of_users(self.users(profiles.keys))


def learning_sample(counts: LogCounts, seed: int) -> UserSample:
    """The users that :func:`learn` has to see."""
    return UserSample.of_size(seed, LEARN_PAIRS, counts.n_pairs)


class Evidence:
    """How well candidates fit the rest of their users' profiles, by everything that compares items.

    Args:
        modalities: of the content.
        behaviour: one more modality, or None.
        agreement: float32 [n_items], the confidence c_i.
        settings: of the aggregation.
        learned: name -> embeddings that are evidence beside the score.
        nearest: whether the most similar item of a profile is evidence as well, in each modality and each embedding.
    """

    def __init__(
        self,
        modalities: list[Modality],
        behaviour: _Behaviour,
        agreement: NDArray[np.float32],
        settings: CalibrationSettings,
        learned: Mapping[str, FoldedEmbeddings] | None = None,
        nearest: bool = False,
    ) -> None:
        self.agreement, self.settings, self.nearest = agreement, settings, nearest
        self.modalities = list(modalities)
        if isinstance(behaviour, Modality):
            self.modalities.append(behaviour)
        self.behaviour = None if isinstance(behaviour, Modality) else behaviour
        self.learned = dict(learned or {})
        self.fitted: dict[str, Discriminant | Factors] = {}

    def parts(self, profiles: Profiles, candidates: Candidates) -> dict[str, FloatArray]:
        """The score of each modality on its own; name -> float64 [len(candidates)]."""
        if self.settings.aggregation == "topk":
            return _rounded(self._topk(profiles, candidates, None))
        result = {m.name: mean_scores(m.rows, self.agreement, profiles, candidates) for m in self.modalities}
        if isinstance(self.behaviour, CoOccurrence):
            result[BEHAVIOUR] = self.behaviour.mean_scores(profiles, candidates)
        elif self.behaviour is not None:
            result[BEHAVIOUR] = self.behaviour.mean_scores(self.agreement, profiles, candidates)
        return _rounded(result)

    def further_parts(self, profiles: Profiles, candidates: Candidates) -> dict[str, FloatArray]:
        """What is evidence beside the score: learned similarities, nearest items; name -> float64 [len(candidates)]."""
        result = {name: e.mean_scores(self.agreement, profiles, candidates) for name, e in self.learned.items()}
        result |= {name: fitted.scores(profiles, candidates) for name, fitted in self.fitted.items()}
        if self.nearest:
            for modality in self.modalities:
                result[f"nearest.{modality.name}"] = top_scores(
                    modality.rows, self.agreement, profiles, candidates, topk=1
                )
            for name, embeddings in self.learned.items():
                result[f"nearest.{name}"] = embeddings.top_scores(self.agreement, profiles, candidates, topk=1)
        return _rounded(result)

    def score(
        self,
        profiles: Profiles,
        candidates: Candidates,
        parts: Mapping[str, FloatArray],
        weights: Mapping[str, float],
    ) -> FloatArray:
        """The AMSC score; float64 [len(candidates)]."""
        if self.settings.aggregation == "topk":
            return _rounded(self._topk(profiles, candidates, weights))["score"]
        # The mean is linear: the score is the weighted sum of its parts.
        total = np.zeros(len(candidates))
        for name, weight in weights.items():
            total += weight * parts[name]
        return _rounded({"score": total})["score"]

    def _topk(
        self, profiles: Profiles, candidates: Candidates, weights: Mapping[str, float] | None
    ) -> dict[str, FloatArray]:
        names = [m.name for m in self.modalities] + ([BEHAVIOUR] if self.behaviour is not None else [])
        result = {name: np.zeros(len(candidates)) for name in (names if weights is None else ["score"])}
        root = np.sqrt(self.agreement)[:, None]
        rows = {m.name: m.rows * root for m in self.modalities}
        width = max([1] + [r.shape[1] for r in rows.values()])
        pieces: list[tuple[IntArray, FloatArray | None]] = [(np.arange(len(candidates)), None)]
        if isinstance(self.behaviour, FoldedEmbeddings):
            pieces = [(at, folded * root) for at, folded in self.behaviour.split(profiles, candidates)]
            width = max([width] + [folded.shape[1] for folded in self.behaviour.rows])
        for at, folded in pieces:
            some = candidates.take(at)
            for block in profile_blocks(profiles, some, width):
                items, left_out = some.items[block.index], some.left_out[block.index]
                similarity = {name: block_similarity(v, items, block.profile) for name, v in rows.items()}
                if isinstance(self.behaviour, CoOccurrence):
                    similarity[BEHAVIOUR] = self.behaviour.block(items, block.profile, items == left_out)
                elif folded is not None:
                    similarity[BEHAVIOUR] = block_similarity(folded, items, block.profile)
                if weights is not None:
                    similarity = {"score": sum(weights[name] * s for name, s in similarity.items())}  # type: ignore[dict-item]  # sum of arrays
                left = block.profile == left_out[:, None]
                for name, s in similarity.items():
                    result[name][at[block.index]] = top_mean(s, left, self.settings.topk)
        return result


def _rounded(parts: Mapping[str, FloatArray]) -> dict[str, FloatArray]:
    """In single precision: another processor may round the last bits another way, and a tree may split there."""
    return {name: part.astype(np.float32).astype(np.float64) for name, part in parts.items()}


def adaptive_weights(observed: Mapping[str, FloatArray], null: Mapping[str, FloatArray]) -> dict[str, float]:
    """alpha_m, from how far modality m separates observed from null pairs.

        alpha_m proportional to max(0, mean(s_m) - mean(s0_m)) / (var(s_m) + var(s0_m)):

    the best weights of a sum of uncorrelated scores (Fisher's discriminant with a diagonal covariance). Uniform if
    nothing separates.
    """
    raw = {}
    for name, part in observed.items():
        gap = float(part.mean() - null[name].mean()) if len(part) and len(null[name]) else 0.0
        spread = float(part.var() + null[name].var()) if len(part) and len(null[name]) else 0.0
        raw[name] = max(gap, 0.0) / spread if spread > 1e-15 else 0.0
    total = sum(raw.values())
    return {name: value / total if total > 0 else 1.0 / len(raw) for name, value in raw.items()}


@dataclass(frozen=True)
class Verdict:
    """What AMSC says about the distinct pairs of some profiles.

    Attributes:
        score, probability: float64 [n_pairs].
        is_clean: bool [n_pairs], ``probability >= 0.5``, and the most probable ones of a user who has none such.
        parts: name -> float64 [n_pairs], the evidence.
    """

    score: FloatArray
    probability: FloatArray
    is_clean: NDArray[np.bool_]
    parts: dict[str, FloatArray]

    def at_level(self, probability: FloatArray, profiles: Profiles, settings: CalibrationSettings) -> Verdict:
        """This verdict's order with the probabilities of another one.

        Args:
            probability: float64 [n_pairs], the other's; what it says of pairs that are not judged stays.
            profiles, settings: that both verdicts are of.
        """
        judged = np.flatnonzero(judged_pairs(profiles, settings))
        order = judged[np.lexsort((probability[judged], self.probability[judged]))]
        dealt = probability.copy()
        dealt[order] = np.sort(probability[judged])
        return replace(self, probability=dealt, is_clean=_keep_one(dealt, profiles))


@dataclass(frozen=True)
class Judge:
    """Everything that is learned from a log; judges the pairs of any users, block by block.

    Attributes:
        evidence: what compares items.
        settings: ``guider.calibration``.
        weights: name -> alpha.
        item_degree: int64 [n_items], the number of users of each item.
        rule: f/f0 for ``lfdr``, the scores that ranks are taken in for ``quantile``, z-scores for ``zscore``; None
            where all pairs look alike and nobody says how many of them are noise.
        noise_rate: pi0, estimated or as given.
        doubt: the pi0 that probabilities are computed with, ``noise_rate`` or, where ``lfdr`` estimates it, more.
    """

    evidence: Evidence
    settings: CalibrationSettings
    weights: dict[str, float]
    item_degree: IntArray
    rule: decision.CrossFitted | decision.ZScore | FloatArray | None
    noise_rate: float
    doubt: float

    def __call__(self, profiles: Profiles, known: Mapping[str, FloatArray] | None = None) -> Verdict:
        """The verdict on all pairs of ``profiles``, which holds each of its users' whole profile.

        Args:
            known: the evidence of those pairs, where it has been computed already.
        """
        observed = Candidates(profiles.users, profiles.items, profiles.items)
        parts = dict(known or {})
        if known is None:
            parts = self.evidence.parts(profiles, observed) | self.evidence.further_parts(profiles, observed)
        score = self.evidence.score(profiles, observed, parts, self.weights)
        judged = judged_pairs(profiles, self.settings)
        size = profiles.size[profiles.users]
        probability = np.full(profiles.n_pairs, 1.0 - self.doubt)
        if isinstance(self.rule, decision.CrossFitted):
            degree = self.item_degree[profiles.items] - 1
            rows, _ = _columns(score, parts, size, degree, self.settings)
            ratio = self.rule.ratio(rows[judged], profiles.keys[profiles.users[judged]])
            probability[judged] = decision.local_clean_probability(ratio, self.doubt)
        elif isinstance(self.rule, decision.ZScore):
            probability[judged] = self.rule.probability(score[judged], size[judged])
        elif self.rule is not None:
            probability[judged] = decision.quantile_probability(score[judged], self.rule, self.doubt)
        return Verdict(score, probability, _keep_one(probability, profiles), parts)


@dataclass(frozen=True)
class Lesson:
    """What :func:`learn` saw on the way to its judge.

    Attributes:
        judge: what was learned.
        sample: the profiles that evidence was compared with null pairs in.
        parts: name -> float64 [n_pairs], the evidence of the pairs of ``sample``.
        nulls: the null pairs, ``pair`` a row of ``sample``.
        null_score: float64 [n_null].
        null_parts: name -> float64 [n_null].
    """

    judge: Judge
    sample: Profiles
    parts: dict[str, FloatArray]
    nulls: NullPairs
    null_score: FloatArray
    null_parts: dict[str, FloatArray] = field(default_factory=dict)


def check_modalities(modalities: list[Modality], behaviour: bool) -> None:
    """Raise GuiderError where there is nothing to compare items by, or a name is taken."""
    if not modalities and not behaviour:
        raise GuiderError(
            "There is nothing to compare items by: give at least one modality, or set "
            "guider.calibration.behaviour: true."
        )
    if any(m.name == BEHAVIOUR for m in modalities):
        raise GuiderError(f"A modality cannot be called {BEHAVIOUR!r}: that is the name of co-occurrence; rename it.")


def learn(
    counts: LogCounts,
    profiles: Profiles,
    modalities: list[Modality],
    settings: CalibrationSettings,
    seed: int,
    behaviour_embeddings: ArrayLike | tuple[ArrayLike | None, ArrayLike] | None = None,
) -> Lesson:
    """Learn what separates observed from null pairs.

    Args:
        counts: of the whole log.
        profiles: of the users in ``learning_sample(counts, seed)``, sorted by user.
        modalities: of the content, normalised.
        settings: ``guider.calibration``.
        seed: of every random choice made here.
        behaviour_embeddings: as in :func:`recbole_guider.amsc.calibrate`.

    Raises:
        GuiderError: as :func:`check_modalities`, and for embeddings of a wrong shape.
    """
    wants_behaviour = settings.behaviour or behaviour_embeddings is not None
    check_modalities(modalities, wants_behaviour)
    # One generator for each purpose: an option that draws more does not change the others.
    anchor_rng, null_rng, learned_rng, decision_rng, factors_rng = (
        np.random.default_rng([seed, k]) for k in range(5)
    )
    n_items = profiles.n_items
    agreement = confidence(modalities, kind=settings.confidence, anchors=settings.anchors, rng=anchor_rng)
    if not modalities:
        agreement = np.ones(n_items, dtype=np.float32)

    sample = UserSample.of_size(seed, SAMPLE // (1 + NULL_DRAWS), counts.n_judged)(profiles)
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
    if behaviour_embeddings is None and settings.behaviour and complete and counts_are_affordable(counts.square_sum):
        exact = CoOccurrence(profiles, agreement)
        exact = exact if exact.is_affordable else None
    learned: dict[str, FoldedEmbeddings] = {}
    joined = None
    if settings.learned or (settings.behaviour and behaviour_embeddings is None and exact is None):
        joined = joined_content(modalities, learned_rng)
        learned = learn_embeddings(profiles, joined, learned_rng)
    behaviour: _Behaviour = exact
    if behaviour_embeddings is not None:
        given = behaviour_embeddings[1] if isinstance(behaviour_embeddings, tuple) else behaviour_embeddings
        behaviour = normalise_modality(BEHAVIOUR, given, n_items)
    elif settings.behaviour and exact is None:
        logger.info(
            "The profiles are too long for exact co-occurrence (sum of squared sizes %.3g): behaviour is compared by "
            "a low-rank embedding of the interactions.",
            float(counts.square_sum),
        )
        behaviour = learned["behaviour"]

    names = (["behaviour", "content", "both"] if wants_behaviour else ["content"]) if settings.learned else []
    shown = {f"learned.{name}": learned[name] for name in names if name in learned}
    # Comparing a pair with every item of its profile costs what counting the pairs of items does.
    nearest = settings.nearest and counts_are_affordable(counts.square_sum)
    evidence = Evidence(modalities, behaviour, agreement, settings, shown, nearest)
    parts, null_parts = evidence.parts(sample, observed), evidence.parts(sample, null)
    weights = dict.fromkeys(parts, 1 / len(parts))
    if settings.weights == "adaptive":
        weights = adaptive_weights({name: part[judged] for name, part in parts.items()}, null_parts)
    if settings.learned and joined is not None:
        user_parts, by_part = learned["content"].parts, learned["content"].rows
        middle = centred(joined, counts.item_degree.astype(np.float64)).astype(np.float32)
        for name, rows in {"directions": [middle] * PARTS, "content_directions": by_part}.items():
            evidence.fitted[f"learned.{name}"] = learn_discriminant(
                rows, user_parts, sample, observed, null, learned_rng
            )
    if settings.learned and (wants_behaviour or joined is not None):
        # imported here: it loads torch, which the many processes that only judge do without
        from recbole_guider.amsc.factor_training import learn_factors

        evidence.fitted["learned.factors"] = learn_factors(
            profiles,
            learned["behaviour"].parts,
            counts.item_degree,
            None if joined is None else half_whitened(joined),
            wants_behaviour,
            factors_rng,
        )
    score = evidence.score(sample, observed, parts, weights)
    null_score = evidence.score(sample, null, null_parts, weights)
    parts |= evidence.further_parts(sample, observed)
    null_parts |= evidence.further_parts(sample, null)

    size = sample.size[sample.users]
    rule: decision.CrossFitted | decision.ZScore | FloatArray | None = None
    given = settings.noise_rate
    noise_rate = doubt = 0.0 if given is None else given
    told_apart = settings.popularity or any(
        np.ptp(np.concatenate([parts[name][judged], null_part])) > 0 for name, null_part in null_parts.items()
        if len(null_part)
    )
    if given is None and not told_apart:
        # any share of noise would explain what is seen
        if len(nulls.items):
            logger.warning(
                "AMSC finds nothing that tells items apart in %s: all interactions count as clean.", ", ".join(weights)
            )
    elif settings.decision == "lfdr":
        degree, null_degree = counts.item_degree[sample.items] - 1, counts.item_degree[nulls.items]
        columns, monotone = _columns(score, parts, size, degree, settings)
        null_columns, _ = _columns(null_score, null_parts, size[nulls.pair], null_degree, settings)
        keys, null_keys = sample.keys[sample.users], sample.keys[null.users]
        rule = decision.CrossFitted(columns[judged], null_columns, keys[judged], null_keys, monotone, decision_rng)
        if given is None:
            null_ratio = rule.ratio(null_columns, null_keys)
            doubt = decision.cautious_noise_rate(null_ratio)
            # each is too high where clean pairs look like noise
            noise_rate = min(decision.counted_noise_rate(rule.ratio(columns[judged], keys[judged]), null_ratio), doubt)
    else:
        if given is None:
            noise_rate = doubt = decision.storey_noise_rate(score[judged], null_score)
        rule = np.sort(score[judged])
        if settings.decision == "zscore":
            rule = decision.ZScore(score[judged], size[judged], null_score, size[nulls.pair], noise_rate)
    judge = Judge(evidence, settings, weights, counts.item_degree, rule, noise_rate, doubt)
    return Lesson(judge, sample, parts, nulls, null_score, null_parts)


def _columns(
    score: FloatArray,
    parts: Mapping[str, FloatArray],
    size: IntArray,
    degree: IntArray,
    settings: CalibrationSettings,
) -> tuple[FloatArray, list[int]]:
    """(what the classifier sees of each pair, in which of its columns f/f0 must not fall)."""
    columns, monotone = [score], [1]
    if len(parts) > 1:
        columns += [*parts.values(), size.astype(np.float64)]
        monotone += [1] * len(parts) + [0]
    if settings.popularity:
        columns += [degree.astype(np.float64), size.astype(np.float64)]
        monotone += [0, 0]
    return np.column_stack(columns), monotone


def _keep_one(probability: FloatArray, profiles: Profiles) -> NDArray[np.bool_]:
    """``probability >= 0.5``, and of a user who would lose everything the most probable ones."""
    best = np.full(profiles.n_users, -np.inf)
    np.maximum.at(best, profiles.users, probability)
    own_best = best[profiles.users]
    return (probability >= 0.5) | ((own_best < 0.5) & (probability == own_best))
