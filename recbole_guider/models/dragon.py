"""DRAGON: content spread over the user-item graph, then over a graph of items and a graph of users."""

from __future__ import annotations

import math
from typing import Any

import torch
from pydantic import Field
from recbole.data.interaction import Interaction
from torch import Tensor, nn
from torch.nn.functional import normalize

from recbole_guider.graph import (
    bipartite_adjacency,
    co_occurrence,
    propagate,
    propagate_mean,
    softmax_rows,
)
from recbole_guider.models.base import Encoding
from recbole_guider.models.content import (
    ContentRecommender,
    item_graph,
    required_content,
)
from recbole_guider.utils.settings import Count, Natural, NonNegative, Positive, Settings


class DRAGONParameters(Settings):
    """The parameters of :class:`DRAGON`."""

    embedding_size: Count = Field(default=64, description="the size of the user and item embeddings of one modality")
    knn_k: Count = Field(
        default=10, description="the number of nearest items that an item is linked to, in each modality"
    )
    user_knn_k: Count = Field(default=40, description="the number of users that a user is linked to, by common items")
    n_mm_layers: Natural = Field(default=1, description="the number of layers on the item graph")
    n_ui_layers: Natural = Field(default=2, description="the number of layers on the user-item graph")
    reg_weight: NonNegative = Field(
        default=0.001, description="the weight of the squared preferences; the authors use 0.1 on Clothing"
    )
    modality_weights: dict[str, NonNegative] | None = Field(
        default=None,
        description="modality -> weight in the item graph; null: equal weights. The authors: image 0.1, text 0.9",
    )
    learning_rate: Positive = Field(default=0.0001, description="the learning rate, as in the authors' runs")


class DRAGON(ContentRecommender):
    r"""DRAGON, for any number of modalities.

    In modality m a user starts from a preference p_u^m, which is a parameter, and an item from its content
    ``W2 leaky_relu(W1 x_i^m + b1) + b2``, both of unit length. With A the normalised user-item graph and L =
    ``n_ui_layers``,

        x^m <- x^m + A x^m + ... + A^L x^m,
        u = [ w_u^1 x_u^1, ..., w_u^M x_u^M ],   v = [ x_i^1, ..., x_i^M ]   (attentive concatenation),
        U = u + C u,   V = v + S^{n_mm_layers} v,   score(u, i) = <U_u, V_i>.

    w_u are parameters, about equal at first. Item graph S: for each modality the k nearest items by cosine, normalised,
    and their weighted sum. User graph C: the ``user_knn_k`` users who share the most items with a user, weighed by the
    softmax of these numbers. With one modality there is no w. The loss of a batch is

        - mean log2 sig(<U_u, V_i> - <U_u, V_j>)
        + reg_weight * [ sum_m mean of (p_u^m)^2 over the batch + mean of w^2 over all users ].

    An item without a row in some modality starts there from zero, so that it has what its users bring, and it has no
    edge in that modality's item graph.

    MMRec's and the authors' code, which this agrees with where a user has ``user_knn_k`` neighbours, pads a user with
    fewer by drawing some of them again in every epoch, which shifts the softmax at random; here it is the softmax over
    the neighbours that there are. It also evaluates with the matrices of the last training batch, one step old.

    Source: Zhou et al., Enhancing Dyadic Relations with Homogeneous Graphs for Multimodal Recommendation, ECAI 2023.
    """

    settings_class = DRAGONParameters

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        features = required_content(config, dataset)
        self.n_item_layers: int = config["n_mm_layers"]
        self.n_layers: int = config["n_ui_layers"]
        self.reg_weight: float = config["reg_weight"]

        pairs = self.training_pairs(dataset)
        self.graph = bipartite_adjacency(*pairs).to(self.device)
        self.user_graph = softmax_rows(co_occurrence(*pairs, config["user_knn_k"])).to(self.device)
        self.item_graph = item_graph(features, config["knn_k"], config["modality_weights"]).to(self.device)

        size: int = config["embedding_size"]
        self.add_content(features)
        self.preferences = nn.ModuleList(nn.Embedding(self.n_users, size) for _ in features)
        self.projections = nn.ModuleList(
            nn.Sequential(nn.Linear(part.dim, 4 * size), nn.LeakyReLU(), nn.Linear(4 * size, size))
            for part in features.values()
        )
        for preference in self.preferences:
            nn.init.xavier_normal_(preference.weight)
        self.user_weights: nn.Parameter | None = None
        if len(features) > 1:
            start = torch.randn(self.n_users, len(features)) * math.sqrt(2.0 / (self.n_users + len(features)))
            self.user_weights = nn.Parameter(start.softmax(dim=1))

    def encode(self) -> Encoding:
        nodes = torch.cat(
            [
                torch.cat(
                    [normalize(preference.weight), normalize(projection(content.values) * content.present[:, None])]
                )
                for preference, projection, content in zip(
                    self.preferences, self.projections, self.content, strict=True
                )
            ],
            dim=1,
        )
        # the sum over the layers, where propagate_mean has their mean
        nodes = (self.n_layers + 1) * propagate_mean(self.graph, nodes, self.n_layers)
        users, items = nodes[: self.n_users], nodes[self.n_users :]
        if self.user_weights is not None:
            users = (users.view(*self.user_weights.shape, -1) * self.user_weights[:, :, None]).flatten(1)
        users = users + self.user_graph @ users
        return Encoding(users, items + propagate(self.item_graph, items, self.n_item_layers))

    def ranking_loss(self, encoding: Encoding, interaction: Interaction) -> Tensor:
        return super().ranking_loss(encoding, interaction) / math.log(2.0)

    def regulariser(self, encoding: Encoding, interaction: Interaction) -> Tensor | float:
        if not self.reg_weight:
            return 0.0
        users = interaction[self.USER_ID]
        squares = sum(preference(users).square().mean() for preference in self.preferences)
        if self.user_weights is not None:
            squares = squares + self.user_weights[1:].square().mean()
        return self.reg_weight * squares
