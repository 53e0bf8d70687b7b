"""How a model that keeps its own loss learns from interactions in proportion to their clean probability.

Such a loss is a black box: what can be chosen is what it sees. Leaving an interaction out of an epoch with probability
1 - p, anew in every epoch, gives in expectation the loss in which the interaction weighs p, whatever the loss is, as
long as it is a sum (or a mean) over interactions. An interaction that is kept comes once in an epoch, as always:
drawing with replacement would be right in expectation too, but a clean interaction would miss a third of the epochs.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from recbole.data.interaction import Interaction
from recbole.model.abstract_recommender import AutoEncoderMixin
from recbole.model.general_recommender.enmf import ENMF
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from recbole_guider.guider.calibration import CLEAN_PROBABILITY
from recbole_guider.models import Encoding, FactorisedRecommender
from recbole_guider.utils.batch_parts import share_of_rows, whole_batch
from recbole_guider.utils.interactions import InteractionIndex

if TYPE_CHECKING:
    from recbole_guider.guider.plan import TeachingPlan  # it asks this file which models learn histories


class SubsampledBatches:
    """RecBole's training batches over a random part of their rows: row r is in this epoch with probability p_r.

    The loader's own ``collate_fn`` makes the batches, so that negative sampling and transforms are as always.

    Args:
        loader: a RecBole training loader.
        probability: float ``[rows of the loader]`` in [0, 1], on the CPU; None keeps all rows.
        generator: where the choice of rows and their order come from.
    """

    shuffle = False

    def __init__(self, loader: Any, probability: Tensor | None, generator: torch.Generator) -> None:
        self.loader, self.generator = loader, generator
        size: int = loader.sample_size
        self.rows = torch.arange(size)
        if probability is not None:
            kept = self.rows[torch.rand(size, generator=generator) < probability]
            self.rows = kept if len(kept) else self.rows  # an epoch of nothing is no epoch
        self.in_order = not loader.shuffle

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["loader"], name)

    def __len__(self) -> int:
        step: int = self.loader.step
        return -(-len(self.rows) // step)

    def __iter__(self) -> Iterator[Interaction]:
        rows = self.rows
        if not self.in_order:
            rows = rows[torch.randperm(len(rows), generator=self.generator)]
        for part in rows.split(self.loader.step):
            yield self.loader.collate_fn(part.numpy())


class Histories:
    """What models that learn whole histories see of the calibration.

    An autoencoder reads and reproduces histories in which each item weights its clean probability. That is exact where
    the loss is linear in the history, as the multinomial likelihood is, and what a subsampled history is on average
    elsewhere. The model reads the same histories in evaluation: it is not to believe there what it was taught to doubt.
    A whole-data model (ENMF) learns from lists of items, int64 [n_users, length], 0 being the padding; in each epoch an
    item is in with its clean probability.

    Args:
        plan: of the run, which says which of the two models it concerns.
        student, teacher: the models.
    """

    def __init__(self, plan: TeachingPlan, student: Any, teacher: Any) -> None:
        concerned = ((student, plan.weighting == "history"), (teacher, plan.teacher_weights_history))
        self._weighted = [(model, model.history_item_value) for model, yes in concerned if yes]
        self._subsampled: tuple[Any, Tensor] | None = None
        if plan.weighting == "subsampled history":
            self._subsampled = (student, student.history_item_matrix)
        self._lookup: PairLookup | None = None

    def set_probability(self, users: np.ndarray, items: np.ndarray, probability: np.ndarray, n_items: int) -> None:
        """Take over how clean the training pairs are; see :class:`PairLookup`. Weighted histories change at once."""
        if not self._weighted and self._subsampled is None:
            return
        self._lookup = PairLookup(users, items, probability, n_items)
        for model, values in self._weighted:
            model.history_item_value = values * self._lookup.of_histories(model.history_item_id).to(values)

    def subsample(self, generator: torch.Generator) -> None:
        """Choose what an epoch learns from."""
        if self._subsampled is None or self._lookup is None:
            return
        model, items = self._subsampled
        probability = self._lookup.of_histories(items)
        kept = torch.rand(probability.shape, generator=generator) < probability
        model.history_item_matrix = torch.where(kept.to(items.device), items, 0)


class PairLookup:
    """The clean probability of a (user, item), given those of the training interactions.

    Args:
        users, items: int ``[nnz]``; where a pair comes twice, its largest probability counts.
        probability: float ``[nnz]``.
        n_items: size of the catalogue with the padding.
    """

    def __init__(self, users: np.ndarray, items: np.ndarray, probability: np.ndarray, n_items: int) -> None:
        self._pairs = InteractionIndex(users, items, int(users.max(initial=-1)) + 1, n_items)
        self._probability = np.zeros(self._pairs.n_pairs, dtype=probability.dtype)
        np.maximum.at(self._probability, self._pairs.inverse, probability)

    def of_histories(self, histories: Tensor) -> Tensor:
        """float32 [n_users, length], on the CPU: of each item in int64 [n_users, length]; 1 for any other pair."""
        items = histories.cpu().numpy()
        rows = self._pairs.rows(np.arange(len(items))[:, None], items)
        found = np.ones(rows.shape, dtype=np.float32)
        found[rows >= 0] = self._probability[rows[rows >= 0]]
        return torch.from_numpy(found)


def reads_histories(model: nn.Module) -> bool:
    """Whether a model learns whole histories, so that subsampling the rows of a batch would leave out users instead."""
    return isinstance(model, AutoEncoderMixin) and hasattr(model, "history_item_value")


def learns_history_lists(model: nn.Module) -> bool:
    """Whether a model learns from lists of items, whole users at a time."""
    return isinstance(model, ENMF)


def has_weightable_rows(model: nn.Module) -> bool:
    """Whether the ranking loss of a model can be had row by row."""
    return isinstance(model, FactorisedRecommender) and type(model).ranking_loss is FactorisedRecommender.ranking_loss


def weighted_ranking_loss(model: FactorisedRecommender, encoding: Encoding, interaction: Interaction) -> Tensor:
    """``- sum_b p_b log sig(y_b - y_bj) / sum_b p_b``: BPR with each row weighted by its clean probability; scalar."""
    user = encoding.users[interaction[model.USER_ID]]
    difference = encoding.items[interaction[model.ITEM_ID]] - encoding.items[interaction[model.NEG_ITEM_ID]]
    weight = interaction[CLEAN_PROBABILITY]
    terms = weight * logsigmoid((user * difference).sum(dim=1))
    # the sum of the weights is the whole batch's, also where several processes have its rows
    total = whole_batch(interaction)[CLEAN_PROBABILITY].sum() * share_of_rows(interaction)
    return -terms.sum() / total.clamp_min(torch.finfo(terms.dtype).tiny)
