"""SelfCF: a graph encoder that learns to predict a perturbed view of its own output; no item is sampled."""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field
from recbole.data.interaction import Interaction
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from recbole_guider.graph import bipartite_adjacency, propagate_mean
from recbole_guider.models.base import Encoding, FactorisedRecommender
from recbole_guider.models.layers import seeded_dropout
from recbole_guider.utils.settings import Count, Natural, NonNegative, Settings, Share, UnitInterval


class SelfCFParameters(Settings):
    """The parameters of :class:`SelfCF`."""

    embedding_size: Count = Field(default=64, description="the size of the user and item embeddings")
    n_layers: Natural = Field(
        default=2, description="the number of layers on the user-item graph; 0: matrix factorisation"
    )
    augmentation: Literal["embedding_dropout", "historical_embedding", "edge_pruning"] = Field(
        default="embedding_dropout",
        description="how targets are made: embedding_dropout, historical_embedding or edge_pruning",
    )
    dropout: Share = Field(
        default=0.5, description="the share that is dropped, of a target's entries or of the graph's"
    )
    momentum: UnitInterval = Field(default=0.1, description="the weight of the past in a historical target")
    graph_dropout: UnitInterval = Field(
        default=1.0, description="the largest share of the graph's entries that a training batch does without"
    )
    reg_weight: NonNegative = Field(default=0.0, description="the weight of the squares of the batch's rows")
    train_neg_sample_args: dict[str, Any] | None = Field(
        default=None, description="SelfCF learns from observed pairs alone"
    )


class SelfCF(FactorisedRecommender):
    r"""SelfCF on LightGCN, with the three augmentations of its paper; it reads no content.

    With H the LightGCN means over ``n_layers`` layers of the normalised user-item graph A, and F a linear predictor,

        score(u, i) = <F(h_u), h_i> + <h_u, F(h_i)>.

    The loss of a batch of observed pairs, with targets t that get no gradient, is

        - 1/2 mean cos(F(h_u), t_i) - 1/2 mean cos(F(h_i), t_u) + reg_weight / 2 * sum (||h_u||^2 + ||h_i||^2),

    and ``augmentation`` makes t out of H:

        embedding_dropout       t = h with a share ``dropout`` of its entries dropped, for every row of the batch anew
        historical_embedding    t = momentum * (h when its user or item was last in a batch) + (1 - momentum) * h
        edge_pruning            T = A' H, A' being A with a share ``dropout`` of its entries dropped

    In training H itself comes from A with a share of its entries dropped that is drawn anew for every batch, uniformly
    from 0 to ``graph_dropout``. What stays of a matrix is divided by the share that stays. The history starts from
    normally distributed numbers, as in the authors' code, and is saved with the model; theirs is lost at a resume.

    Source: Zhou et al., SelfCF: A Simple Framework for Self-supervised Collaborative Filtering, ACM Transactions on
    Recommender Systems 2023.
    """

    settings_class = SelfCFParameters
    user_history: Tensor
    item_history: Tensor

    compares_sampled_items = False

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        self.n_layers: int = config["n_layers"]
        self.reg_weight: float = config["reg_weight"]
        self.augmentation: str = config["augmentation"]
        self.dropout: float = config["dropout"]
        self.momentum: float = config["momentum"]
        self.graph_dropout: float = config["graph_dropout"]
        for name in ("graph", "dropout"):
            self.generator(name, config["seed"] + len(name))
        self.graph = bipartite_adjacency(*self.training_pairs(dataset)).to(self.device)

        size: int = config["embedding_size"]
        self.add_id_embeddings(size, nn.init.xavier_uniform_)
        self.predictor = nn.Linear(size, size)
        if self.augmentation == "historical_embedding":
            draws = self.generator("history", config["seed"])
            for name, count in (("user_history", self.n_users), ("item_history", self.n_items)):
                self.register_buffer(name, torch.randn(count, size, generator=draws))

    def encode(self) -> Encoding:
        graph = self.graph
        if self.training and self.graph_dropout:
            draws = self.generator("graph")
            rate = self.graph_dropout * torch.rand((), generator=draws, dtype=torch.float64).item()
            graph = graph.with_values(seeded_dropout(graph.values, rate, draws))
        nodes = torch.cat([self.user_embedding.weight, self.item_embedding.weight])
        nodes = propagate_mean(graph, nodes, self.n_layers)
        predicted = self.predictor(nodes)
        users, items = nodes[: self.n_users], nodes[self.n_users :]
        return Encoding(
            torch.cat([predicted[: self.n_users], users], dim=1),
            torch.cat([items, predicted[self.n_users :]], dim=1),
            {"users": users, "items": items},
        )

    def ranking_loss(self, encoding: Encoding, interaction: Interaction) -> Tensor:
        user, item = self.batch_rows(encoding.parts["users"], encoding.parts["items"], interaction)[:2]
        user_target, item_target = self._targets(encoding, interaction)
        of_items = cosine_similarity(self.predictor(user), item_target, dim=1).mean()
        of_users = cosine_similarity(self.predictor(item), user_target, dim=1).mean()
        return -0.5 * (of_items + of_users)

    @torch.no_grad()
    def _targets(self, encoding: Encoding, interaction: Interaction) -> list[Tensor]:
        """The targets of the batch's users and of its items, ``[B, d]`` each."""
        users, items = encoding.parts["users"], encoding.parts["items"]
        draws = self.generator("dropout")
        if self.augmentation == "edge_pruning":
            pruned = self.graph.with_values(seeded_dropout(self.graph.values, self.dropout, draws))
            nodes = pruned @ torch.cat([users, items])
            return self.batch_rows(nodes[: self.n_users], nodes[self.n_users :], interaction)[:2]
        rows = self.batch_rows(users, items, interaction)[:2]
        if self.augmentation == "embedding_dropout":
            return [seeded_dropout(row, self.dropout, draws) for row in rows]
        before = self.batch_rows(self.user_history, self.item_history, interaction)[:2]
        if self.training:
            self.user_history[interaction[self.USER_ID]] = rows[0]
            self.item_history[interaction[self.ITEM_ID]] = rows[1]
        return [torch.lerp(row, past, self.momentum) for row, past in zip(rows, before, strict=True)]

    def regulariser(self, encoding: Encoding, interaction: Interaction) -> Tensor | float:
        if not self.reg_weight:
            return 0.0
        rows = self.batch_rows(encoding.parts["users"], encoding.parts["items"], interaction)[:2]
        return self.reg_weight * 0.5 * sum(row.square().sum() for row in rows)
