"""The DBPR loss of a model on a batch: which negatives it meets, and which true and false items it compares."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from recbole.data.interaction import Interaction
from torch import Tensor
from torch.nn.functional import normalize

from recbole_guider.guider.calibration import CLEAN_PROBABILITY, IS_CLEAN
from recbole_guider.guider.settings import DBPRSettings
from recbole_guider.losses import dbpr_loss, observed_probability, soft_negative
from recbole_guider.models import Factors, Scoring, SeededGenerators
from recbole_guider.utils.batch_parts import of_rows, sum_of_parts, whole_batch
from recbole_guider.utils.interactions import InteractionIndex

#: A model that scores pairs one by one meets no more pairs than this in a batch: it gets fewer negatives.
PAIRS_OF_A_BATCH = 16384
# How often a negative is drawn that turns out to be an item of the user; then the row goes without.
_DRAWS = 10


class DBPR(SeededGenerators):
    """DBPR on batches of calibrated interactions, for models of every kind.

    In the ``softmax`` form a batch shares its negatives; with ``own_as: negative`` all users have the same, as in a
    softmax over the catalogue, but that a row's own positive counts twice where it is drawn. In the ``pairwise`` form
    every row has one negative of its own. Otherwise than with ``own_as: negative``, what a user interacted with is none
    of the user's negatives.

    With q = ``robustness`` above 0 the first term of a row weighs ``pi_b^q / mean over the batch of pi^q``, held fixed,
    pi being the probability that the model itself gives the row
    (:func:`~recbole_guider.losses.dbpr.observed_probability`): what a model finds improbable teaches it less. But for
    the division, which keeps the balance with the other losses,
    it is the gradient of generalised cross-entropy ``(1 - pi^q) / q`` (Zhang and Sabuncu, NeurIPS 2018), and R-CE's
    weight (Wang et al., WSDM 2021) on the softmax loss.

    Args:
        settings: ``guider.dbpr``.
        users, items: int ``[nnz]``, the training pairs in RecBole's ids.
        n_users, n_items: sizes of both, with the padding.
        fields: names of the columns with users and items.
        seed: of the negatives and of the drawn true items, which have a generator each.
    """

    def __init__(
        self, settings: DBPRSettings, users: np.ndarray, items: np.ndarray, n_users: int, n_items: int,
        fields: tuple[str, str], seed: int,
    ) -> None:
        super().__init__()
        self.settings = settings
        self.n_users, self.n_items = n_users, n_items
        self.user_field, self.item_field = fields
        self.profiles = self.true_profiles = InteractionIndex(users, items, n_users, n_items)
        for name in ("negatives", "eta"):
            self.generator(name, seed=seed + 1 + sum(map(ord, name)))

    def set_true(self, users: np.ndarray, items: np.ndarray) -> None:
        """Take over the true interactions, int ``[m]`` each."""
        self.true_profiles = InteractionIndex(users, items, self.n_users, self.n_items)

    @property
    def unit_length(self) -> bool:
        """Whether a factorised model trained by this loss is to be scored by cosines."""
        return self.settings.form == "softmax"

    def of_factors(self, factors: Factors, interaction: Interaction) -> Tensor:
        """The loss of a factorised model; with the ``softmax`` form its scores are cosines. Scalar."""
        settings = self.settings
        user, item = interaction[self.user_field], interaction[self.item_field]
        unit: Callable[[Tensor], Tensor] = _unit if self.unit_length else _as_it_is
        # The negatives are shared, so a user who comes several times in a batch is scored against them once.
        distinct, place = torch.unique(user, return_inverse=True)
        user_rows = unit(factors.users(distinct))
        rows = user_rows[place]
        positive = (rows * unit(factors.items[item])).sum(dim=1)

        def score(users: Tensor, items: Tensor) -> Tensor:
            return (unit(factors.users(users)) * unit(factors.items[items])).sum(dim=1)

        if settings.form == "pairwise":
            other, usable = self._negative_of_each(interaction)
            return self._loss(interaction, positive, (rows * unit(factors.items[other])).sum(dim=1), usable, score)
        sampled = self._sample(settings.negatives)
        candidates = unit(factors.items[sampled.to(user.device)])
        usable = None
        if not settings.gamma:
            hits = self._hits(distinct, sampled)
            negative = soft_negative(user_rows, candidates, temperature=settings.temperature, excluded=hits)[place]
        else:
            negative = (user_rows @ candidates.T)[place]
            usable = self._usable(distinct, sampled, place)
        return self._loss(interaction, positive, negative, usable, score)

    def of_pairs(self, scoring: Scoring, interaction: Interaction) -> Tensor:
        """The loss of a model that scores pairs: scores as its ``predict`` gives them, fewer negatives. Scalar."""
        user, item = interaction[self.user_field], interaction[self.item_field]
        positive = scoring.pairs(user, item)

        def score(users: Tensor, items: Tensor) -> Tensor:
            # a model with batch normalisation cannot score a batch of none or of one
            return scoring.pairs(users, items) if len(users) > 1 else positive[:0]

        if self.settings.form == "pairwise":
            other, usable = self._negative_of_each(interaction)
            return self._loss(interaction, positive, scoring.pairs(user, other), usable, score)
        # as many for a part of a batch as for the whole
        sampled = self._sample(max(1, min(self.settings.negatives, PAIRS_OF_A_BATCH // len(whole_batch(interaction)))))
        distinct, place = torch.unique(user, return_inverse=True)
        everyone = sampled.to(user.device).expand(len(distinct), -1)
        negative = scoring.chosen(distinct, everyone)[place]
        return self._loss(interaction, positive, negative, self._usable(distinct, sampled, place), score)

    def _negative_of_each(self, interaction: Interaction) -> tuple[Tensor, Tensor]:
        """(a random item for each row, which of them count), ``[B]`` each; an item of the user is drawn again."""
        # for the whole batch: the parts draw the same
        users = whole_batch(interaction)[self.user_field].cpu().numpy()
        drawn = np.zeros(len(users), dtype=np.int64)
        again = np.ones(len(users), dtype=bool)
        for _ in range(_DRAWS):
            new = torch.randint(1, self.n_items, (int(again.sum()),), generator=self.generator("negatives"))
            drawn[again] = new.numpy()
            again[again] = self.profiles.has(users[again], drawn[again])
            if not again.any():
                break
        device = interaction[self.user_field].device
        items, usable = (of_rows(torch.from_numpy(each), interaction).to(device) for each in (drawn, ~again))
        return items, usable

    def _sample(self, count: int) -> Tensor:
        return torch.randint(1, self.n_items, (count,), generator=self.generator("negatives")).unique()

    def _hits(self, users: Tensor, sampled: Tensor) -> tuple[Tensor, Tensor] | None:
        """Where in ``[users, sampled]`` an item is no negative of the user; None where all are."""
        if self.settings.own_as == "negative":
            return None
        row, column = self.profiles.among(users.cpu().numpy(), sampled.numpy())
        return torch.from_numpy(row).to(users.device), torch.from_numpy(column).to(users.device)

    def _usable(self, users: Tensor, sampled: Tensor, place: Tensor) -> Tensor | None:
        """Which negatives count, bool ``[B, N]``, row b being of the user ``users[place[b]]``; None where all do."""
        hits = self._hits(users, sampled)
        if hits is None:
            return None
        usable = torch.ones(len(users), len(sampled), dtype=torch.bool, device=users.device)
        usable[hits] = False
        return usable[place]

    def _loss(
        self, interaction: Interaction, positive: Tensor, negative: Tensor, usable: Tensor | None,
        score: Callable[[Tensor, Tensor], Tensor],
    ) -> Tensor:
        """``score``: users [M] and an item [M] for each -> scores [M]."""
        settings = self.settings
        scores: dict[str, Any] = {}
        if settings.eta:
            # pairs are drawn for the whole batch: a part has them all
            batch = whole_batch(interaction)
            user, item = batch[self.user_field], batch[self.item_field]
            false = torch.nonzero(~batch[IS_CLEAN]).squeeze(1)
            uniform = torch.rand(len(false), generator=self.generator("eta"), dtype=torch.float64)
            chosen = self.true_profiles.choose(user[false].cpu().numpy(), uniform.numpy())
            drawn = torch.from_numpy(chosen).to(user.device)
            false, drawn = false[drawn >= 0], drawn[drawn >= 0]
            true_score = score(user[false], drawn)
            false_score = positive[false] if batch is interaction else score(user[false], item[false])
            scores = {"true": true_score, "false": false_score[: len(true_score)]}
        return dbpr_loss(
            positive,
            negative,
            interaction[CLEAN_PROBABILITY if settings.soft else IS_CLEAN],
            **scores,
            form=settings.form,
            temperature=settings.temperature,
            eta=settings.eta,
            gamma=settings.gamma,
            negative_mask=usable,
            weight=self._robust_weight(interaction, positive, negative, usable) if settings.robustness else None,
        )

    def _robust_weight(
        self, interaction: Interaction, positive: Tensor, negative: Tensor, usable: Tensor | None
    ) -> Tensor:
        """The probability of every row to the power ``robustness``, over its mean in the whole batch; ``[B]``."""
        settings = self.settings
        weight = observed_probability(
            positive, negative, form=settings.form, temperature=settings.temperature, negative_mask=usable
        )
        weight = weight**settings.robustness
        # a part of a batch may have no rows
        (mean,) = sum_of_parts([weight.sum() / max(len(weight), 1)], interaction)
        return weight / mean.clamp_min(torch.finfo(weight.dtype).tiny)


def _unit(rows: Tensor) -> Tensor:
    return normalize(rows, dim=1)


def _as_it_is(rows: Tensor) -> Tensor:
    return rows
