"""What a recommender must offer so that GUIDER can teach it, and the base of this package's own models.

A model is *factorised* when its scores are the product of a user matrix and an item matrix, ``U V^T``. Everything
catalogue-wide (the DBPR loss with many negatives, optimal-transport distillation, full-sort evaluation) works on
those two matrices and never on the score matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from recbole.data.interaction import Interaction
from recbole.model.abstract_recommender import GeneralRecommender
from recbole.utils import InputType
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from recbole_guider.utils.compat import epoch_goes_on
from recbole_guider.utils.errors import GuiderError
from recbole_guider.utils.settings import Settings


def require_sampled_items(config: Any, model: nn.Module) -> None:
    """Raise where a model's own loss compares sampled items and the configuration samples none.

    Raises:
        GuiderError: ``train_neg_sample_args`` is none.
    """
    samples = isinstance(model, FactorisedRecommender) and model.compares_sampled_items
    if samples and config["train_neg_sample_args"]["distribution"] == "none":
        raise GuiderError(
            f"train_neg_sample_args is none: the loss of {type(model).__name__} compares sampled items; give "
            f"{{distribution: uniform, sample_num: 1}}."
        )


class SeededGenerators(nn.Module):
    """A module whose random choices come from generators of its own, saved and restored with its state.

    ``self.generator(name, seed)`` makes one CPU generator per kind of choice, so that drawing more of one kind
    never shifts another, and a resumed run continues each stream where it stopped.
    """

    _generators: dict[str, torch.Generator]

    def generator(self, name: str, seed: int | None = None) -> torch.Generator:
        """The generator called ``name``, made with ``seed`` at the first call (``seed`` is then required)."""
        generators = self.__dict__.setdefault("_generators", {})
        if name not in generators:
            if seed is None:
                raise KeyError(f"no generator called {name!r}: give a seed at the first call")
            generators[name] = torch.Generator().manual_seed(seed)
        return generators[name]

    def get_extra_state(self) -> dict[str, Tensor]:
        """The state of every generator, as plain tensors; a subclass adds whatever else its loss moves on."""
        return {name: generator.get_state() for name, generator in self.__dict__.get("_generators", {}).items()}

    def set_extra_state(self, state: dict[str, Tensor]) -> None:
        """Restore what :meth:`get_extra_state` gave; the states are CPU tensors wherever the model lives."""
        for name, value in state.items():
            self.generator(name, seed=0).set_state(value.cpu())


class Encoding(NamedTuple):
    """What a factorised model computes once for a batch: its two matrices, and whatever else its loss needs.

    Attributes:
        users: user matrix ``[n_users, d]``, float32, with gradients.
        items: item matrix ``[n_items, d]``.
        parts: further tensors by name, such as the views of single modalities.
    """

    users: Tensor
    items: Tensor
    parts: Mapping[str, Tensor] = {}


class FactorisedRecommender(SeededGenerators, GeneralRecommender):
    """Base of the models whose scores are ``U V^T``.

    A subclass gives :meth:`encode`, and of :meth:`ranking_loss`, :meth:`auxiliary_loss` and :meth:`regulariser` what it
    has; scoring, the cache for evaluation and RecBole's interface follow from them. The three losses stand apart
    because a denoised model may replace the first and keeps the other two. Row 0 of both matrices is RecBole's
    ``[PAD]``.
    """

    input_type = InputType.PAIRWISE
    #: the model's parameters, each with its type, range, default and description
    settings_class: type[Settings] | None = None
    #: whether it reads the items' content
    reads_content = False
    #: whether the losses read sampled items; a model that learns from observed pairs alone says False
    compares_sampled_items = True
    #: whether :meth:`auxiliary_loss`, where a model has one, needs them; one that goes by observed pairs says False
    auxiliary_loss_samples = True

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        self._evaluation_embeddings: tuple[Tensor, Tensor] | None = None
        self.register_load_state_dict_post_hook(_forget_evaluation)

    def add_id_embeddings(self, size: int, initialise: Callable[[Tensor], Any] | None = None) -> None:
        """Make ``user_embedding`` and ``item_embedding``, ``size`` wide; ``initialise`` fills them, users first."""
        self.user_embedding = nn.Embedding(self.n_users, size)
        self.item_embedding = nn.Embedding(self.n_items, size)
        if initialise is not None:
            initialise(self.user_embedding.weight)
            initialise(self.item_embedding.weight)

    def training_pairs(self, dataset: Any) -> tuple[np.ndarray, np.ndarray, int, int]:
        """Users and items of the training interactions, int ``[nnz]`` each, and the numbers of users and items: what
        the functions of :mod:`recbole_guider.graph` make a graph of.
        """
        interactions = dataset.inter_matrix(form="coo")
        return interactions.row, interactions.col, self.n_users, self.n_items

    def encode(self) -> Encoding:
        """The two matrices with gradients, and what else the loss needs.

        In training mode a model may use its randomised training graph, in evaluation mode the full one.
        """
        raise NotImplementedError

    def ranking_loss(self, encoding: Encoding, interaction: Interaction) -> Tensor:
        """How observed items are ranked above sampled ones; scalar. By default BPR, ``- mean log sig(y_ui - y_uj)``."""
        user, item, other = self.batch_rows(encoding.users, encoding.items, interaction)
        positive, negative = (user * item).sum(dim=1), (user * other).sum(dim=1)
        return -logsigmoid(positive - negative).mean()

    def auxiliary_loss(self, encoding: Encoding, interaction: Interaction) -> Tensor | float:
        """What a model learns beside the ranking (content terms, contrastive terms), weighted; scalar."""
        return 0.0

    def regulariser(self, encoding: Encoding, interaction: Interaction) -> Tensor | float:
        """What keeps parameters small, weighted; scalar. The batch may lack sampled items."""
        return 0.0

    def loss(self, encoding: Encoding, interaction: Interaction) -> Tensor:
        """The model's own loss for a batch: the sum of its three parts; scalar."""
        return (
            self.ranking_loss(encoding, interaction)
            + self.auxiliary_loss(encoding, interaction)
            + self.regulariser(encoding, interaction)
        )

    def batch_rows(self, users: Tensor, items: Tensor, interaction: Interaction) -> list[Tensor]:
        """A batch's rows of a user and an item matrix: its users, their items, and sampled items where it has any.

        Args:
            users, items: ``[n_users, d]`` and ``[n_items, e]``.
            interaction: the batch, of B interactions.

        Returns:
            Two or three matrices of B rows.
        """
        # index_select: its backward pass is faster than that of an index in brackets
        rows = [users.index_select(0, interaction[self.USER_ID]), items.index_select(0, interaction[self.ITEM_ID])]
        if self.NEG_ITEM_ID in interaction:
            rows.append(items.index_select(0, interaction[self.NEG_ITEM_ID]))
        return rows

    def compare_by_cosines(self) -> None:
        """Scores are going to be cosines: the softmax loss takes the place of the ranking loss. Called once, before
        training.

        A model whose vectors have no negative entries changes that here, since all their cosines are alike.
        """

    def embeddings(self) -> tuple[Tensor, Tensor]:
        """User matrix ``[n_users, d]`` and item matrix ``[n_items, d]`` of :meth:`encode`."""
        encoding = self.encode()
        return encoding.users, encoding.items

    def train(self, mode: bool = True) -> FactorisedRecommender:
        # RecBole calls train() before each epoch and eval() before each evaluation: parameters may have changed
        # in between, so this is where a cached evaluation becomes stale.
        self._evaluation_embeddings = None
        if mode and not epoch_goes_on():
            self.renew()
        return super().train(mode)

    def _apply(self, fn: Any, recurse: bool = True) -> FactorisedRecommender:
        self._evaluation_embeddings = None  # of another device or type
        return super()._apply(fn, recurse)

    def renew(self) -> None:
        """An epoch begins: what a model makes once for each is due.

        GUIDER calls ``train()`` for its teacher pass, too: what is due is best made when first needed.
        """

    def evaluation_embeddings(self) -> tuple[Tensor, Tensor]:
        """The two matrices for scoring, computed once per evaluation and without gradients."""
        if self._evaluation_embeddings is None:
            with torch.no_grad():
                self._evaluation_embeddings = self.embeddings()
        return self._evaluation_embeddings

    def calculate_loss(self, interaction: Interaction) -> Tensor:
        return self.loss(self.encode(), interaction)

    def predict(self, interaction: Interaction) -> Tensor:
        users, items = self.evaluation_embeddings()
        return (users[interaction[self.USER_ID]] * items[interaction[self.ITEM_ID]]).sum(dim=1)

    def full_sort_predict(self, interaction: Interaction) -> Tensor:
        users, items = self.evaluation_embeddings()
        return (users[interaction[self.USER_ID]] @ items.T).view(-1)


def _forget_evaluation(model: FactorisedRecommender, keys: Any) -> None:
    """Other parameters have been loaded: what an evaluation has cached is stale."""
    model._evaluation_embeddings = None
