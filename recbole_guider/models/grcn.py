"""GRCN: content decides which edges of the user-item graph count, and how much."""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field
from recbole.data.interaction import Interaction
from torch import Tensor, nn
from torch.nn.functional import leaky_relu, normalize

from recbole_guider.graph import BipartiteGraph, Edges
from recbole_guider.models.base import Encoding
from recbole_guider.models.content import ContentRecommender, ModalityContent, required_content
from recbole_guider.utils.settings import Count, Natural, NonNegative, Settings


class GRCNParameters(Settings):
    """The parameters of :class:`GRCN`."""

    embedding_size: Count = Field(default=64, description="the size of the ID embeddings")
    latent_embedding: Count = Field(default=64, description="the size of the content views in each modality")
    n_routing: Natural = Field(
        default=3,
        description="how often the preferences are drawn to the items of the profile; 0 gives MMRec's numbers",
    )
    n_layers: Natural = Field(default=2, description="the number of layers over which the ID embeddings are passed")
    pruning: bool = Field(
        default=True,
        description="whether edges without a confident modality are cut; the authors' commands for Kwai, Tiktok and "
        "MovieLens keep them",
    )
    reg_weight: NonNegative = Field(
        default=1e-05, description="the weight of the squared embeddings and preferences; MMRec searches 1e-5 to 0.1"
    )


class GRCN(ContentRecommender):
    r"""GRCN, for any number of modalities.

    Refining. In each modality m items are described by z_i = LeakyReLU(W_m x_i + b_m) and users by a preference p_u,
    both of unit length. ``n_routing`` times the preferences are drawn to the items of their profiles,

        p_u <- unit( p_u + sum over i in I_u of a_ui z_i ),   a_ui = softmax over i in I_u of <p_u, z_i>.

    With the final preferences, a_ui as above and b_ui = softmax over the users u of i of <p_u, z_i>, the content views
    are [p_u + sum_i a_ui z_i] and [z_i + sum_u b_ui p_u]. An edge counts with its most confident modality: with c the
    confidences of nodes in modalities,

        from item to user   w_ui = relu( max_m a_ui^m c_i^m ),   from user to item   w_iu = relu( max_m b_ui^m c_u^m ).

    and not at all where that is negative; ``pruning: false`` leaves out the relu, so that no edge is cut.

    Convolving. ID embeddings of unit length are passed over the edges so weighted, E + W E + W^2 E (``n_layers`` = 2).
    U and V are the ID view and the content views side by side. The loss of a batch is

        - mean log sig(<U_u, V_i> - <U_u, V_j>)
        + reg_weight * ( mean E_u^2 + mean over i and j of E^2 + sum_m mean (p_u^m)^2 )

    with the parameters E and p before they are scaled, means running over entries.

    Differences from the public code: there the routing step sends messages from users to items and reads those that
    arrive at users, which are none, so that it does nothing (run in MMRec; the authors' code reads the same). Here, as
    in the paper, preferences are routed; ``n_routing: 0`` gives the numbers of that code. MMRec further adds the mean
    square of all preferences of the image modality to the loss; the authors do not.

    An item without a row in some modality is described by the zero vector there: it adds nothing to preferences, and
    its edges have score 0.

    Source: Wei et al., Graph-Refined Convolutional Network for Multimedia Recommendation with Implicit Feedback,
    ACM Multimedia 2020.
    """

    settings_class = GRCNParameters

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        features = required_content(config, dataset)
        self.n_routing: int = config["n_routing"]
        self.n_layers: int = config["n_layers"]
        self.pruning: bool = config["pruning"]
        self.reg_weight: float = config["reg_weight"]
        graph = BipartiteGraph(*self.training_pairs(dataset))
        self.edges = Edges(graph.users, graph.items, (self.n_users, self.n_items)).to(self.device)

        self.add_id_embeddings(config["embedding_size"])
        self.user_confidence = nn.Parameter(torch.empty(self.n_users, len(features)))
        self.item_confidence = nn.Parameter(torch.empty(self.n_items, len(features)))
        self.add_content(features)
        self.routings = nn.ModuleList(
            _Routing(self.n_users, part.dim, config["latent_embedding"]) for part in features.values()
        )
        for weight in (
            self.user_embedding.weight, self.item_embedding.weight, self.user_confidence, self.item_confidence
        ):
            nn.init.xavier_normal_(weight)

    def encode(self) -> Encoding:
        user_views, item_views, to_users, to_items = [], [], [], []
        for routing, content in zip(self.routings, self.content, strict=True):
            users, items, to_user, to_item = routing(content, self.edges, self.n_routing)
            user_views.append(users)
            item_views.append(items)
            to_users.append(to_user)
            to_items.append(to_item)
        to_user = self._refined(to_users, self.item_confidence.index_select(0, self.edges.columns))
        to_item = self._refined(to_items, self.user_confidence.index_select(0, self.edges.rows))

        users = user_sum = normalize(self.user_embedding.weight, dim=1)
        items = item_sum = normalize(self.item_embedding.weight, dim=1)
        for _ in range(self.n_layers):
            users, items = self.edges.sum_to_rows(to_user, items), self.edges.sum_to_columns(to_item, users)
            user_sum, item_sum = user_sum + users, item_sum + items
        return Encoding(torch.cat([user_sum, *user_views], dim=1), torch.cat([item_sum, *item_views], dim=1))

    def _refined(self, weights: list[Tensor], confidence: Tensor) -> Tensor:
        """The weights of edges [n_edges], from those in each modality and the confidence [n_edges, modalities]."""
        weight = (torch.stack(weights, dim=1) * confidence).amax(dim=1)
        return weight.relu() if self.pruning else weight

    def regulariser(self, encoding: Encoding, interaction: Interaction) -> Tensor:
        users, items = interaction[self.USER_ID], interaction[self.ITEM_ID]
        if self.NEG_ITEM_ID in interaction:
            items = torch.cat([items, interaction[self.NEG_ITEM_ID]])
        total = self.user_embedding(users).square().mean() + self.item_embedding(items).square().mean()
        for routing in self.routings:
            total = total + routing.preference.index_select(0, users).square().mean()
        return self.reg_weight * total


class _Routing(nn.Module):
    """One modality's content views of users and items, and how much attention they pay each other.

    Args:
        n_users: number of users.
        dim: width of the content.
        size: width of the views.
    """

    def __init__(self, n_users: int, dim: int, size: int) -> None:
        super().__init__()
        self.preference = nn.Parameter(torch.empty(n_users, size))
        self.projection = nn.Linear(dim, size)
        nn.init.xavier_normal_(self.preference)
        nn.init.xavier_normal_(self.projection.weight)

    def forward(self, content: ModalityContent, edges: Edges, n_routing: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Views of users and items, attention of users to items and of items to users (both [n_edges])."""
        items = leaky_relu(self.projection(content.values)) * content.present.unsqueeze(1)
        items, users = normalize(items, dim=1), normalize(self.preference, dim=1)
        for _ in range(n_routing):
            attention = edges.softmax_over_rows(edges.dot(users, items))
            users = normalize(users + edges.sum_to_rows(attention, items), dim=1)
        scores = edges.dot(users, items)
        of_users, of_items = edges.softmax_over_rows(scores), edges.softmax_over_columns(scores)
        return (
            users + edges.sum_to_rows(of_users, items),
            items + edges.sum_to_columns(of_items, users),
            of_users,
            of_items,
        )
