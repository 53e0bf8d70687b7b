"""DualGNN: content on the user-item graph, fused by each user's taste for modalities, and a graph of alike users."""

from __future__ import annotations

import math
from typing import Any

import torch
from pydantic import Field
from recbole.data.interaction import Interaction
from torch import Tensor, nn
from torch.nn.functional import normalize

from recbole_guider.graph import bipartite_adjacency, co_occurrence, propagate_mean, softmax_rows
from recbole_guider.models.base import Encoding
from recbole_guider.models.content import ContentRecommender, required_content
from recbole_guider.utils.settings import Count, Natural, NonNegative, Settings


class DualGNNParameters(Settings):
    """The parameters of :class:`DualGNN`."""

    embedding_size: Count = Field(default=64, description="the size of the user and item embeddings")
    n_layers: Natural = Field(default=2, description="the number of layers on the user-item graph")
    n_neighbours: Count = Field(default=40, description="the number of users that a user is linked to")
    reg_weight: NonNegative = Field(
        default=0.1,
        description="the weight of the squared preferences and modality weights; MMRec searches 1e-5 to 0.1",
    )


class DualGNN(ContentRecommender):
    r"""DualGNN, for any number of modalities.

    In each modality m a user starts from a preference of its own and an item from its content after two layers,
    ``x = unit([P_m; W2 LeakyReLU(W1 x_i)])``, and A = D^-1/2 R D^-1/2 passes both on,

        Z_m = x + A x + ... + A^{n_layers} x.

    With alpha_um the weight that user u gives to modality m and S the graph of the ``n_neighbours`` users who share
    most items with u, weighted by a softmax over how many (:func:`recbole_guider.graph.co_occurrence`),

        H_u = sum_m alpha_um Z_m[u],   U = H + S H,   V_i = sum_m Z_m[i].

    The loss of a batch is

        - mean log2 sig(<U_u, V_i> - <U_u, V_j>) + reg_weight * ( sum_m mean (P_m[u])^2 + mean alpha^2 ),

    means running over entries, the last one over all users.

    Differences from the public code: a user with fewer than ``n_neighbours`` neighbours gets the softmax over those
    there are, as in the paper; the code fills the row up with repetitions drawn anew in every epoch. MMRec adds the
    modalities of items in place, whereby H_u becomes alpha_u1 (Z_1 + Z_2) + alpha_u2 Z_2; the authors' code does not.
    The code also regularises modality weights of items, which nothing uses; they do not exist here.

    An item without a row in some modality starts from the zero vector there.

    Source: Wang et al., DualGNN: Dual Graph Neural Network for Multimedia Recommendation, IEEE Transactions on
    Multimedia 2021.
    """

    settings_class = DualGNNParameters

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        features = required_content(config, dataset)
        self.n_layers: int = config["n_layers"]
        self.reg_weight: float = config["reg_weight"]
        pairs = self.training_pairs(dataset)
        self.graph = bipartite_adjacency(*pairs).to(self.device)
        self.user_graph = softmax_rows(co_occurrence(*pairs, config["n_neighbours"])).to(self.device)

        size: int = config["embedding_size"]
        self.add_content(features)
        self.preferences = nn.ParameterList(torch.empty(self.n_users, size) for _ in features)
        self.projections = nn.ModuleList(
            nn.Sequential(nn.Linear(part.dim, 4 * size), nn.LeakyReLU(), nn.Linear(4 * size, size))
            for part in features.values()
        )
        self.modality_weight = nn.Parameter(torch.empty(self.n_users, len(features)))
        for weight in (*self.preferences, self.modality_weight):
            nn.init.xavier_normal_(weight)
        with torch.no_grad():
            self.modality_weight.copy_(self.modality_weight.softmax(dim=1))

    def encode(self) -> Encoding:
        starts = []
        for content, preference, projection in zip(self.content, self.preferences, self.projections, strict=True):
            items = projection(content.values) * content.present.unsqueeze(1)
            starts.append(normalize(torch.cat([preference, items]), dim=1))
        # the modalities side by side: the graph is read once for all of them
        nodes = (self.n_layers + 1) * propagate_mean(self.graph, torch.cat(starts, dim=1), self.n_layers)
        nodes = nodes.unflatten(1, (len(starts), -1))
        users = (nodes[: self.n_users] * self.modality_weight.unsqueeze(2)).sum(dim=1)
        return Encoding(users + self.user_graph @ users, nodes[self.n_users :].sum(dim=1))

    def ranking_loss(self, encoding: Encoding, interaction: Interaction) -> Tensor:
        return super().ranking_loss(encoding, interaction) / math.log(2.0)

    def regulariser(self, encoding: Encoding, interaction: Interaction) -> Tensor:
        total = self.modality_weight[1:].square().mean()  # row 0 is padding
        for preference in self.preferences:
            total = total + preference.index_select(0, interaction[self.USER_ID]).square().mean()
        return self.reg_weight * total
