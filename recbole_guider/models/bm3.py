"""BM3: users, items and content learn to predict each other's perturbed views; no item is sampled."""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field
from recbole.data.interaction import Interaction
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from recbole_guider.graph import bipartite_adjacency, propagate_mean
from recbole_guider.models.base import Encoding
from recbole_guider.models.content import ContentRecommender, required_content
from recbole_guider.models.layers import seeded_dropout
from recbole_guider.utils.settings import Count, Natural, NonNegative, Settings, Share


class BM3Parameters(Settings):
    """The parameters of :class:`BM3`."""

    embedding_size: Count = Field(default=64, description="the size of the user and item embeddings")
    n_layers: Natural = Field(
        default=1, description="the number of layers on the user-item graph; the paper searches 1 and 2"
    )
    dropout: Share = Field(
        default=0.3, description="the share of a target's entries that are dropped; the paper searches 0.3 and 0.5"
    )
    reg_weight: NonNegative = Field(
        default=0.1, description="the weight of the embeddings' norms; the paper searches 0.1 and 0.01"
    )
    cl_weight: NonNegative = Field(default=2.0, description="the weight of the content terms of the loss")
    train_features: bool = Field(
        default=True, description="whether the raw features are parameters too, as in the authors' code"
    )
    train_neg_sample_args: dict[str, Any] | None = Field(
        default=None, description="BM3 learns from observed pairs alone"
    )


class BM3(ContentRecommender):
    r"""BM3, for any number of modalities.

    With E_U, E_I the LightGCN means over ``n_layers`` layers, Q the item ID embeddings, F a linear predictor and D(.)
    dropout without a gradient,

        H_U = E_U,   H_I = E_I + Q,   score(u, i) = <F(h_u), F(h_i)>.

    The loss of a batch of observed pairs, with c(a, b) = 1 - mean cos(a, b) and z^m = W_m x_i + b_m the items' content,

        c(F(h_u), D(h_i)) + c(F(h_i), D(h_u))
        + cl_weight * sum_m [ c(F(z^m), D(h_i)) + c(F(z^m), D(z^m)) ]
        + reg_weight * (||H_U|| + ||H_I||) / n_items,

    the norms being those of the whole matrices. Every row of a batch has a dropout mask of its own (MMRec draws one for
    the whole matrix, so that a user's rows within a batch share it). The paper regularises by squared norms; the
    authors' code, followed here, by norms.

    An item without a row in some modality takes no part in that modality's loss terms.

    Source: Zhou et al., Bootstrap Latent Representations for Multi-modal Recommendation, WWW 2023.
    """

    settings_class = BM3Parameters
    compares_sampled_items = False

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        features = required_content(config, dataset)
        self.n_layers: int = config["n_layers"]
        self.reg_weight: float = config["reg_weight"]
        self.cl_weight: float = config["cl_weight"]
        self.dropout: float = config["dropout"]
        self.generator("dropout", config["seed"])
        self.graph = bipartite_adjacency(*self.training_pairs(dataset)).to(self.device)

        size: int = config["embedding_size"]
        self.add_id_embeddings(size)
        self.predictor = nn.Linear(size, size)
        self.add_content(features, size, trainable=config["train_features"])
        for embedding in (self.user_embedding, self.item_embedding):
            nn.init.xavier_uniform_(embedding.weight)
        for linear in (self.predictor, *self.projections):
            nn.init.xavier_normal_(linear.weight)

    def encode(self) -> Encoding:
        nodes = torch.cat([self.user_embedding.weight, self.item_embedding.weight])
        nodes = propagate_mean(self.graph, nodes, self.n_layers)
        users, items = nodes[: self.n_users], nodes[self.n_users :] + self.item_embedding.weight
        return Encoding(self.predictor(users), self.predictor(items), {"users": users, "items": items})

    def ranking_loss(self, encoding: Encoding, interaction: Interaction) -> Tensor:
        user, item = self.batch_rows(encoding.users, encoding.items, interaction)[:2]
        user_view, item_view = self.batch_rows(encoding.parts["users"], encoding.parts["items"], interaction)[:2]
        return _distance(user, self._perturbed(item_view)).mean() + _distance(item, self._perturbed(user_view)).mean()

    def auxiliary_loss(self, encoding: Encoding, interaction: Interaction) -> Tensor | float:
        total: Tensor | float = 0.0
        if not self.cl_weight:
            return total
        items = interaction[self.ITEM_ID]
        item_view = encoding.parts["items"].index_select(0, items)
        for content, projection in zip(self.content, self.projections, strict=True):
            view = projection(content.values.index_select(0, items))
            predicted = self.predictor(view)
            apart = _distance(predicted, self._perturbed(item_view)) + _distance(predicted, self._perturbed(view))
            total = total + (apart * content.present[items]).sum() / len(items)
        return self.cl_weight * total

    def regulariser(self, encoding: Encoding, interaction: Interaction) -> Tensor:
        # row 0 is padding
        users, items = encoding.parts["users"][1:], encoding.parts["items"][1:]
        return self.reg_weight * (users.norm() + items.norm()) / len(items)

    def _perturbed(self, view: Tensor) -> Tensor:
        return seeded_dropout(view.detach(), self.dropout, self.generator("dropout"))


def _distance(a: Tensor, b: Tensor) -> Tensor:
    """1 - cosine of each pair of rows, ``[B]``."""
    return 1.0 - cosine_similarity(a, b, dim=1)
