"""``calibrate``: from interactions and item features to the probability that each interaction is clean."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

from recbole_guider.amsc import decision
from recbole_guider.amsc.behaviour import CoOccurrence, counts_are_affordable
from recbole_guider.amsc.discriminant import discriminant_scores
from recbole_guider.amsc.learned import PARTS, FoldedEmbeddings, centred, joined_content, learn_embeddings
from recbole_guider.amsc.profiles import (
    Candidates,
    FloatArray,
    IntArray,
    NullPairs,
    Profiles,
    build_profiles,
    draw_null_pairs,
)
from recbole_guider.amsc.similarity import (
    Modality,
    block_similarity,
    confidence,
    mean_scores,
    modality_list,
    normalise_modality,
    profile_blocks,
    top_mean,
)
from recbole_guider.errors import GuiderError
from recbole_guider.settings import CalibrationSettings

logger = logging.getLogger(__name__)

#: The name of the behaviour modality among the weights and the evidence.
BEHAVIOUR = "behaviour"
#: Null pairs drawn for each observed pair.
NULL_DRAWS = 1
#: The largest number of observed and null pairs that the classifier learns from.
SAMPLE = 1_000_000

Feature = ArrayLike | tuple[ArrayLike, ArrayLike]
_Behaviour = CoOccurrence | FoldedEmbeddings | Modality | None


@dataclass(frozen=True)
class Calibration:
    """What AMSC says about each interaction.

    Attributes:
        score: float32 [nnz], S summed up over the rest of the profile (the mean, or the mean of the top k).
        clean_probability: float32 [nnz], in [0, 1].
        is_clean: bool [nnz], ``clean_probability >= 0.5``, and the most probable ones of a user who has none such.
        confidence: float32 [n_items], the agreement of the item's own modalities, in [0, 1].
        modality_weights: name -> alpha >= 0, together 1; ``behaviour`` is one of the names.
        noise_rate: the share of noise among the interactions, estimated or as given.
        evidence: name -> float32 [nnz], the score of each modality alone.
        null_score: float32 [n_null], scores of the null pairs.
        null_pair: int64 [n_null], the input row that each null pair stands in for.
        null_item: int64 [n_null], the item of each null pair.
        null_evidence: name -> float32 [n_null].
    """

    score: NDArray[np.float32]
    clean_probability: NDArray[np.float32]
    is_clean: NDArray[np.bool_]
    confidence: NDArray[np.float32]
    modality_weights: dict[str, float]
    noise_rate: float
    evidence: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    null_score: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, dtype=np.float32))
    null_pair: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    null_item: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    null_evidence: dict[str, NDArray[np.float32]] = field(default_factory=dict)

    @property
    def n_true(self) -> int:
        """Number of interactions that count as clean."""
        return int(self.is_clean.sum())

    @property
    def n_false(self) -> int:
        """Number of interactions that count as noise."""
        return len(self.is_clean) - self.n_true


def calibrate(
    users: ArrayLike,
    items: ArrayLike,
    features: Mapping[str, Feature],
    *,
    n_users: int,
    n_items: int,
    settings: CalibrationSettings | None = None,
    seed: int = 0,
    behaviour_embeddings: ArrayLike | tuple[ArrayLike | None, ArrayLike] | None = None,
) -> Calibration:
    """AMSC: how probable it is that each observed interaction is clean (this project's definitions).

    With e_i^m the centred feature of item i in modality m, of unit length, c_i the agreement of the item's own
    modalities and alpha_m the weight of a modality,

        S(i, i') = sqrt(c_i c_i') sum_m alpha_m <e_i^m, e_i'^m>
        s_ui     = mean of S(i, i') over i' in I_u, i' != i       (or over the ``topk`` most similar)

    exactly, in time linear in the number of interactions for ``mean``. ``behaviour`` adds co-occurrence with the
    user's own part removed as one more modality. For every observed pair null items j not in I_u are scored
    against the same rest of the profile; ``lfdr`` learns the density ratio f/f0 of observed to null pairs from the
    score, its parts and the profile size, monotone in every similarity, takes the noise share pi0 as the ratio's
    floor, and returns 1 - min(1, pi0 f0/f).

    Args:
        users, items: int [nnz], ids from 0. A pair that occurs more than once counts once in the profile, and all
            its rows get the same result.
        features: name -> float [n_items, d], or (that, bool [n_items]) where rows are missing.
        n_users, n_items: sizes of the id ranges.
        settings: ``guider.calibration``; None: the defaults.
        seed: of every random choice made here.
        behaviour_embeddings: item embeddings [n_items, d] that stand in for co-occurrence as the behaviour modality
            (or (user embeddings, item embeddings), of which the items' are used).

    Returns:
        Calibration, in the order of the input.

    Raises:
        GuiderError: ids out of range; NaN or infinite features; a modality that is not there; nothing to compare
            items by (neither features nor behaviour).

    Example:
        >>> rng = np.random.default_rng(0)
        >>> taste = np.eye(2)[[0, 0, 0, 1, 1, 1]] + 0.01 * rng.normal(size=(6, 2))
        >>> calibrate([0, 0, 0, 1, 1], [0, 1, 3, 3, 4], {"text": taste}, n_users=2, n_items=6).score.shape
        (5,)
    """
    settings = CalibrationSettings() if settings is None else settings
    profiles = build_profiles(users, items, n_users, n_items)
    if settings.method == "none":
        return _all_clean(len(profiles.inverse), n_items)
    # One generator for each purpose: an option that draws more does not change the others.
    anchor_rng, null_rng, learned_rng, decision_rng = (np.random.default_rng([seed, k]) for k in range(4))

    modalities = modality_list(features, settings.modalities, n_items)
    if not modalities and not settings.behaviour and behaviour_embeddings is None:
        raise GuiderError(
            "There is nothing to compare items by: give at least one modality, or set "
            "guider.calibration.behaviour: true."
        )
    if any(m.name == BEHAVIOUR for m in modalities):
        raise GuiderError(f"A modality cannot be called {BEHAVIOUR!r}: that is the name of co-occurrence; rename it.")
    agreement = confidence(modalities, kind=settings.confidence, anchors=settings.anchors, rng=anchor_rng)
    if not modalities:
        agreement = np.ones(n_items, dtype=np.float32)

    judged = profiles.size[profiles.users] >= max(settings.min_profile, 2)
    nulls = _draw_nulls(profiles, judged, settings.null_items == "popularity", null_rng)
    observed = Candidates(profiles.users, profiles.items, profiles.items)
    null = Candidates(profiles.users[nulls.pair], nulls.items, profiles.items[nulls.pair])

    wants_behaviour = settings.behaviour or behaviour_embeddings is not None
    exact = None
    if behaviour_embeddings is None and settings.behaviour and counts_are_affordable(profiles):
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
            float(np.sum(profiles.size.astype(np.float64) ** 2)),
        )
        behaviour = learned["behaviour"]

    scorer = _Scorer(profiles, modalities, behaviour, agreement, settings)
    parts, null_parts = scorer.parts(observed), scorer.parts(null)
    weights = adaptive_weights({name: part[judged] for name, part in parts.items()}, null_parts)
    score, null_score = scorer.score(observed, parts, weights), scorer.score(null, null_parts, weights)
    if settings.learned:
        for name in ["behaviour", "content", "both"] if wants_behaviour else ["content"]:
            if name in learned:
                parts[f"learned.{name}"] = learned[name].mean_scores(agreement, profiles, observed)
                null_parts[f"learned.{name}"] = learned[name].mean_scores(agreement, profiles, null)
        if joined is not None:
            part, by_part = learned["content"].part, learned["content"].rows
            middle = centred(joined, profiles.item_degree.astype(np.float64)).astype(np.float32)
            for name, rows in {"directions": [middle] * PARTS, "content_directions": by_part}.items():
                parts[f"learned.{name}"], null_parts[f"learned.{name}"] = discriminant_scores(
                    rows, part, profiles, observed, null, learned_rng
                )

    probability, noise_rate = _decide(
        profiles, settings, score, null_score, parts, null_parts, judged, nulls, decision_rng
    )
    is_clean = _keep_one(probability, profiles)
    to_input = profiles.inverse
    first_row = np.zeros(profiles.n_pairs, dtype=np.int64)
    first_row[to_input[::-1]] = np.arange(len(to_input))[::-1]
    return Calibration(
        score=score[to_input].astype(np.float32),
        clean_probability=probability[to_input].astype(np.float32),
        is_clean=is_clean[to_input],
        confidence=agreement,
        modality_weights=weights,
        noise_rate=noise_rate,
        evidence={name: part[to_input].astype(np.float32) for name, part in parts.items()},
        null_score=null_score.astype(np.float32),
        null_pair=first_row[nulls.pair],
        null_item=nulls.items,
        null_evidence={name: part.astype(np.float32) for name, part in null_parts.items()},
    )


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


class _Scorer:
    """Scores candidates by every modality on its own and by their sum."""

    def __init__(
        self,
        profiles: Profiles,
        modalities: list[Modality],
        behaviour: _Behaviour,
        agreement: NDArray[np.float32],
        settings: CalibrationSettings,
    ) -> None:
        self.profiles, self.agreement, self.settings = profiles, agreement, settings
        self.modalities = list(modalities)
        if isinstance(behaviour, Modality):
            self.modalities.append(behaviour)
        self.behaviour = None if isinstance(behaviour, Modality) else behaviour

    def parts(self, candidates: Candidates) -> dict[str, FloatArray]:
        """Each modality's own score; name -> float64 [len(candidates)]."""
        if self.settings.aggregation == "topk":
            return self._topk(candidates, None)
        result = {m.name: mean_scores(m.rows, self.agreement, self.profiles, candidates) for m in self.modalities}
        if isinstance(self.behaviour, CoOccurrence):
            result[BEHAVIOUR] = self.behaviour.mean_scores(candidates)
        elif self.behaviour is not None:
            result[BEHAVIOUR] = self.behaviour.mean_scores(self.agreement, self.profiles, candidates)
        return result

    def score(
        self, candidates: Candidates, parts: Mapping[str, FloatArray], weights: Mapping[str, float]
    ) -> FloatArray:
        """The AMSC score; float64 [len(candidates)]."""
        if self.settings.aggregation == "topk":
            return self._topk(candidates, weights)["score"]
        # The mean is linear: the score is the weighted sum of its parts.
        total = np.zeros(len(candidates))
        for name, part in parts.items():
            total += weights[name] * part
        return total

    def _topk(self, candidates: Candidates, weights: Mapping[str, float] | None) -> dict[str, FloatArray]:
        names = [m.name for m in self.modalities] + ([BEHAVIOUR] if self.behaviour is not None else [])
        result = {name: np.zeros(len(candidates)) for name in (names if weights is None else ["score"])}
        root = np.sqrt(self.agreement)[:, None]
        rows = {m.name: m.rows * root for m in self.modalities}
        width = max([1] + [r.shape[1] for r in rows.values()])
        pieces: list[tuple[IntArray, FloatArray | None]] = [(np.arange(len(candidates)), None)]
        if isinstance(self.behaviour, FoldedEmbeddings):
            pieces = [(at, folded * root) for at, folded in self.behaviour.split(candidates)]
            width = max([width] + [folded.shape[1] for folded in self.behaviour.rows])
        for at, folded in pieces:
            some = candidates.take(at)
            for block in profile_blocks(self.profiles, some, width):
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


def _draw_nulls(
    profiles: Profiles, judged: NDArray[np.bool_], by_popularity: bool, rng: np.random.Generator
) -> NullPairs:
    rows = np.flatnonzero(judged)
    most = SAMPLE // (1 + NULL_DRAWS)
    if len(rows) > most:
        rows = np.sort(rng.choice(rows, size=most, replace=False))
    return draw_null_pairs(profiles, np.repeat(rows, NULL_DRAWS), by_popularity=by_popularity, rng=rng)


def _decide(
    profiles: Profiles,
    settings: CalibrationSettings,
    score: FloatArray,
    null_score: FloatArray,
    parts: Mapping[str, FloatArray],
    null_parts: Mapping[str, FloatArray],
    judged: NDArray[np.bool_],
    nulls: NullPairs,
    rng: np.random.Generator,
) -> tuple[FloatArray, float]:
    """(clean probability of every distinct pair, noise share)."""
    users, null_users = profiles.users, profiles.users[nulls.pair]
    size, null_size = profiles.size[users], profiles.size[null_users]
    given = settings.noise_rate
    probability = np.ones(profiles.n_pairs)
    if settings.decision != "lfdr":
        noise_rate = decision.storey_noise_rate(score[judged], null_score) if given is None else given
        if settings.decision == "quantile":
            probability[judged] = decision.quantile_probability(score[judged], noise_rate)
        else:
            probability[judged] = decision.zscore_probability(
                score[judged], size[judged], null_score, null_size, noise_rate
            )
        probability[~judged] = 1.0 - noise_rate
        return probability, noise_rate
    columns, null_columns, monotone = [score], [null_score], [1]
    if len(parts) > 1:
        columns += list(parts.values())
        null_columns += [null_parts[name] for name in parts]
        columns.append(size.astype(np.float64))
        null_columns.append(null_size.astype(np.float64))
        monotone += [1] * len(parts) + [0]
    if settings.popularity:
        degree = profiles.item_degree
        columns += [degree[profiles.items] - 1.0, size.astype(np.float64)]
        null_columns += [degree[nulls.items].astype(np.float64), null_size.astype(np.float64)]
        monotone += [0, 0]
    ratio = np.ones(profiles.n_pairs)
    rows, null_rows = np.column_stack(columns), np.column_stack(null_columns)
    fitted = decision.CrossFitted(rows[judged], null_rows, users[judged], null_users, monotone, rng)
    ratio[judged] = fitted.ratio(rows[judged], users[judged])
    null_ratio = fitted.ratio(null_rows, null_users)
    noise_rate = decision.noise_floor(null_ratio) if given is None else given
    probability = decision.local_clean_probability(ratio, noise_rate)
    probability[~judged] = 1.0 - noise_rate
    return probability, noise_rate


def _keep_one(probability: FloatArray, profiles: Profiles) -> NDArray[np.bool_]:
    """``probability >= 0.5``, and of a user who would lose everything the most probable ones."""
    best = np.full(profiles.n_users, -np.inf)
    np.maximum.at(best, profiles.users, probability)
    own_best = best[profiles.users]
    return (probability >= 0.5) | ((own_best < 0.5) & (probability == own_best))


def _all_clean(nnz: int, n_items: int) -> Calibration:
    return Calibration(
        score=np.zeros(nnz, dtype=np.float32),
        clean_probability=np.ones(nnz, dtype=np.float32),
        is_clean=np.ones(nnz, dtype=bool),
        confidence=np.ones(n_items, dtype=np.float32),
        modality_weights={},
        noise_rate=0.0,
    )
