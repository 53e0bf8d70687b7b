"""From scores to the probability that a pair is clean."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.isotonic import IsotonicRegression

from recbole_guider.amsc.folds import UserFolds
from recbole_guider.amsc.profiles import FloatArray
from recbole_guider.utils.groups import group_edges
from recbole_guider.utils.interactions import IntArray

#: UserFolds of the users for cross-fitting.
FOLDS = 5
#: The share of the null pairs, those of the weakest evidence, in which noise is counted, and their least number.
COUNTED_SHARE = 0.05
COUNTED_PAIRS = 100
#: f/f0 at this quantile of the null pairs is the cautious noise share that probabilities are computed with.
CONSERVATIVE_QUANTILE = 0.1
#: Groups of about equal size by popularity whose shares of noise are compared, each with at least so many pairs.
POPULARITY_GROUPS = 5
GROUP_PAIRS = 1000
#: The null pairs of a group, those of the weaker evidence, that its observed pairs are compared with.
GROUP_SHARE = 0.65
#: An interaction that is at least so probably clean counts as clean.
CLEAN = 0.5
_LEAST_ROWS = 50


class CrossFitted:
    """f/f0, the ratio of the observed to the null density, judged by models that have not seen the user.

    A probabilistic classifier q(x) = P(observed | x) on n observed and m null rows gives f/f0 = q / (1 - q) m / n. All
    pairs and null pairs of a user lie in one fold; a fold is judged by the model of the others. Each model is
    monotone in the similarities. One column alone: isotonic regression.

    Args:
        observed: float [n, k]; null: float [m, k].
        users: int [n]; null_users: int [m], keys of users (see ``InteractionIndex``).
        monotone: [k], 1 where f/f0 must not fall as the column rises, 0 where it may do anything.
        rng: chooses the folds.
    """

    def __init__(
        self,
        observed: FloatArray,
        null: FloatArray,
        users: IntArray,
        null_users: IntArray,
        monotone: list[int],
        rng: np.random.Generator,
    ) -> None:
        seed = int(rng.integers(2**31 - 1))
        self.folds = UserFolds(int(rng.integers(2**63)), FOLDS)
        fold, null_fold = self.folds(users), self.folds(null_users)
        self.models: list[_Model | None] = []
        for k in range(FOLDS):
            chosen, null_chosen = observed[fold != k], null[null_fold != k]
            n, m = len(chosen), len(null_chosen)
            if min(n, m) < _LEAST_ROWS:
                self.models.append(None)
                continue
            self.models.append(_Model(chosen, null_chosen, monotone, seed))

    def ratio(self, rows: FloatArray, users: IntArray) -> FloatArray:
        """f/f0 of rows [n, k] of these users; float64 [n], 1 (no evidence) where there was too little to learn from."""
        result = np.ones(len(rows))
        fold = self.folds(users)
        for k, model in enumerate(self.models):
            chosen = fold == k
            if model is not None and chosen.any():
                result[chosen] = model.ratio(rows[chosen])
        return result


class _Model:
    """One monotone probabilistic classifier of observed against null."""

    def __init__(self, observed: FloatArray, null: FloatArray, monotone: list[int], seed: int) -> None:
        x = np.concatenate([observed, null])
        y = np.repeat([1.0, 0.0], [len(observed), len(null)])
        # The odds are put right afterwards: sample weights would make scikit-learn's binning 20 times slower.
        self.null_per_observed = len(null) / len(observed)
        self.alone = x.shape[1] == 1 and monotone == [1]
        if self.alone:
            self.model = IsotonicRegression(y_min=0.0, y_max=1.0, out_of_bounds="clip").fit(x[:, 0], y)
        else:
            self.model = HistGradientBoostingClassifier(
                max_iter=100,
                learning_rate=0.1,
                max_leaf_nodes=15,
                min_samples_leaf=50,
                l2_regularization=1.0,
                monotonic_cst=monotone,
                early_stopping=False,
                random_state=seed,
            ).fit(x, y)

    def ratio(self, x: FloatArray) -> FloatArray:
        q = self.model.predict(x[:, 0]) if self.alone else self.model.predict_proba(x)[:, 1]
        q = np.clip(q, 1e-3, 1 - 1e-6)
        return q / (1 - q) * self.null_per_observed


def counted_noise_rate(ratio: FloatArray, null_ratio: FloatArray) -> float:
    """pi0 = P(f/f0 <= t) / P0(f/f0 <= t): where evidence is so weak that only noise is left, f = pi0 f0.

    t leaves the weakest 5% of the null pairs below it, or 100 of them if that is more. The ratios are judged by models
    that have not seen the users, so that both shares are mere counts: clean pairs of as weak evidence raise pi0, and
    nothing lowers it but chance.

    Args:
        ratio: f/f0 of the observed pairs, float [n]; null_ratio: of the null pairs, float [m].
    """
    if not len(ratio) or not len(null_ratio):
        return 0.0
    share = min(max(COUNTED_SHARE, COUNTED_PAIRS / len(null_ratio)), 1.0)
    least = np.quantile(null_ratio, share)
    return float(min(np.mean(ratio <= least) / np.mean(null_ratio <= least), 1.0))


def extrapolated_noise_rate(counted: float, noisier: float, share: float) -> float:
    """The count pi0 less the clean pairs in it that only the noise in their profiles makes look like noise.

    With pi the share of noise and b the share of the clean pairs that look like noise, pi0 = pi + (1 - pi) b. Let b
    rise in proportion to the noise in the profiles. That is pi, and pi + (1 - pi) share once null pairs have taken the
    place of this share of the pairs, so that the count rises by D = (1 - pi)^2 share b', b' being the slope of b; and

        pi = pi0 - D pi / (share (1 - pi)),

    of which the smaller root is returned: pi0 where D is 0 (or, by chance, less). Clean pairs that look like noise
    whatever their profiles hold stay in it. Where b rises late, at first slowly, too much is subtracted.

    Args:
        counted: pi0 as it is; noisier: with null pairs in place of ``share`` of the pairs, see
            :mod:`recbole_guider.amsc.simex`.
    """
    if share <= 0 or counted <= 0:
        return counted
    middle = share * (1 + counted) + max(noisier - counted, 0.0)
    # share pi^2 - middle pi + share counted = 0, by the form that loses no digits
    return 2 * share * counted / (middle + np.sqrt(max(middle**2 - 4 * share**2 * counted, 0.0)))


def conservative_noise_rate(null_ratio: FloatArray) -> float:
    """A low quantile of f/f0 over the null pairs, which lies above pi0 where evidence is weak.

    Models learn better from probabilities that are a little more cautious than they must be (docs/method.md has the
    numbers).
    """
    return float(np.clip(np.quantile(null_ratio, CONSERVATIVE_QUANTILE), 0.0, 1.0)) if len(null_ratio) else 0.0


@dataclass(frozen=True)
class NoiseByPopularity:
    """How much more, or less, of the pairs of rare or of popular items is noise than of all pairs.

    The local false discovery rate of grouped hypotheses has a pi0 for each group (Efron, Simultaneous inference: When
    should hypothesis testing problems be combined?, Annals of Applied Statistics 2008; Cai and Sun, JASA 2009): what
    looks like a null pair is noise less often where few pairs do. With t_g the quantile ``GROUP_SHARE`` of f/f0 among
    the null pairs of group g,

        b_g = P_g(f/f0 <= t_g) / P0_g(f/f0 <= t_g),

    and the odds that a pair of the group is noise are those by the pi0 of all pairs times b_g / sum over g of P(g) b_g.
    b_g counts clean pairs of weak evidence along with the noise (Storey's estimate, JRSS B 2002, with lambda .35).
    They are many, and so draw the groups together: a group is not called noise because its clean pairs are hard to
    recognise. Popularity decides nothing about one pair of a group against another.

    Attributes:
        edges: int64 [groups - 1], the popularities at which groups begin, rising.
        factor: float64 [groups], of the odds.
    """

    edges: IntArray
    factor: FloatArray

    @classmethod
    def estimate(
        cls, ratio: FloatArray, popularity: IntArray, null_ratio: FloatArray, null_popularity: IntArray
    ) -> NoiseByPopularity:
        """Compare the groups.

        Args:
            ratio: f/f0 of the observed pairs, float [n]; null_ratio: of the null pairs, float [m].
            popularity: int [n], the users of each pair's item, itself counted; null_popularity: int [m], the same, as
                if the null pair had been observed.
        """
        one_group = cls(np.zeros(0, dtype=np.int64), np.ones(1))
        groups = min(POPULARITY_GROUPS, len(ratio) // GROUP_PAIRS, len(null_ratio) // GROUP_PAIRS)
        if groups < 2:
            return one_group
        edges = np.unique(np.ceil(group_edges(popularity, groups))).astype(np.int64)
        group, null_group = (np.searchsorted(edges, degree, side="right") for degree in (popularity, null_popularity))
        count, null_count = (np.bincount(of, minlength=len(edges) + 1) for of in (group, null_group))
        if min(np.min(count), np.min(null_count)) < GROUP_PAIRS / 2:  # equal degrees are never split
            return one_group
        weak = np.empty(len(count))
        for g in range(len(count)):
            null = null_ratio[null_group == g]
            least = np.quantile(null, GROUP_SHARE)
            weak[g] = np.mean(ratio[group == g] <= least) / np.mean(null <= least)
        # no group is without noise for certain
        weak = np.maximum(weak, 1 / GROUP_PAIRS)
        return cls(edges, weak / np.average(weak, weights=count))

    def __call__(self, popularity: IntArray) -> FloatArray:
        """The factor for pairs whose items have these many users; float64, the shape of ``popularity``."""
        return self.factor[np.searchsorted(self.edges, popularity, side="right")]

    def clean_probability(self, probability: FloatArray, popularity: IntArray) -> FloatArray:
        """The clean probabilities, float64 [n], where ``probability`` [n] is by the pi0 of all pairs; 0 and 1 stay."""
        noise = self(popularity) * (1.0 - probability)
        return probability / (probability + noise)


def local_clean_probability(ratio: FloatArray, noise_rate: float) -> FloatArray:
    """1 - min(1, pi0 f0/f), the complement of the local false discovery rate."""
    return 1.0 - np.minimum(1.0, noise_rate / ratio)


def storey_noise_rate(score: FloatArray, null: FloatArray) -> float:
    """Share of noise from the lower half of the null: min(1, 2 P(observed score <= null median)).

    Clean pairs score above the null median, so what lies below it is half of the noise.
    """
    if not len(null):
        return 0.0
    median = np.median(null)
    below = np.mean(score < median) + 0.5 * np.mean(score == median)
    half = np.mean(null < median) + 0.5 * np.mean(null == median)
    return float(min(1.0, below / half))


def quantile_probability(score: FloatArray, reference: FloatArray, noise_rate: float) -> FloatArray:
    """Mid-rank of the score, bent so that the ``noise_rate`` quantile lies at 1/2.

    With r the mid-rank in (0, 1) among the ``reference`` scores: r / (2 noise_rate) below the quantile,
    1 - (1 - r) / (2 (1 - noise_rate)) above.
    """
    ordered = np.sort(reference)
    both_sides = np.searchsorted(ordered, score, side="left") + np.searchsorted(ordered, score, side="right")
    rank = both_sides / (2 * max(len(ordered), 1))
    below = rank / (2 * max(noise_rate, 1e-12))
    above = 1 - (1 - rank) / (2 * max(1 - noise_rate, 1e-12))
    return np.where(rank < noise_rate, below, above)


def is_clean(probability: FloatArray, users: IntArray, n_users: int) -> NDArray[np.bool_]:
    """Which pairs count as clean: those of at least :data:`CLEAN`, and the most probable ones of a user who has none.

    Nothing else in this package decides it.

    Args:
        probability: clean probabilities, float [n]; users: int [n], below ``n_users``.

    Returns:
        bool [n].
    """
    best = np.full(n_users, -np.inf)
    np.maximum.at(best, users, probability)
    own_best = best[users]
    return (probability >= CLEAN) | ((own_best < CLEAN) & (probability == own_best))
