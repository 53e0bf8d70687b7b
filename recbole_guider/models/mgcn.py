"""MGCN: item content purified by behaviour, spread over item graphs, and fused as far as behaviour prefers it."""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field
from recbole.data.interaction import Interaction
from torch import Tensor, nn

from recbole_guider.graph import bipartite_adjacency, knn_graph, propagate, propagate_mean, user_item_block
from recbole_guider.models.base import Encoding
from recbole_guider.models.content import ContentRecommender, presence, required_content
from recbole_guider.models.contrast import info_nce
from recbole_guider.utils.settings import Count, Natural, NonNegative, Positive, Settings


class MGCNParameters(Settings):
    """The parameters of :class:`MGCN`."""

    embedding_size: Count = Field(default=64, description="the size of the user and item embeddings")
    knn_k: Count = Field(
        default=10, description="the number of nearest items that an item is linked to, in each modality"
    )
    n_mm_layers: Natural = Field(default=1, description="the number of layers on the item graphs")
    n_ui_layers: Natural = Field(default=2, description="the number of layers on the user-item graph")
    cl_weight: NonNegative = Field(
        default=0.01, description="the weight of the contrastive loss; the authors search 0.001, 0.01 and 0.1"
    )
    temperature: Positive = Field(default=0.2, description="what the cosines of the contrastive loss are divided by")
    reg_weight: NonNegative = Field(default=0.0001, description="the weight of the squares of the batch's rows")
    train_features: bool = Field(
        default=True, description="whether the raw features are parameters too, as in the authors' code"
    )


class MGCN(ContentRecommender):
    r"""MGCN, for any number of modalities.

    With Q the item ID embeddings, s the sigmoid, S_m the item graph of modality m (the k nearest items by cosine,
    weighed by it, D^-1/2 K_m D^-1/2) and R the user-item block of the normalised user-item graph, every modality has a
    view of the items and one of the users,

        Z_m = S_m^{n_mm_layers} [ Q * s(G_m(W_m x)) ],   Z_m^U = R Z_m,

    and behaviour has the LightGCN mean B over ``n_ui_layers`` layers. Each node, user or item, attends over its
    modalities,

        a = softmax over m of q(z_m),   q(z) = v^T tanh(A z + b),   c = sum_m a_m z_m,
        side = [ c + sum_m s(P_m(b)) * (z_m - c) ] / (number of modalities + 1),
        score(u, i) = <b_u + side_u, b_i + side_i>.

    The loss of a batch is BPR, plus ``cl_weight`` times InfoNCE of side and b at ``temperature``, over the users of the
    batch and over its items, plus ``reg_weight`` times half the squares of its user, item and sampled item rows,
    divided by ``train_batch_size``.

    An item without a row in some modality has no edge in that modality's graph, and is fused over the modalities that
    it has, as though there were no others. An item without any has ``side`` = 0.

    Source: Yu et al., Multi-View Graph Convolutional Network for Multimedia Recommendation, ACM Multimedia 2023.
    """

    settings_class = MGCNParameters
    attends: Tensor

    auxiliary_loss_samples = False

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        features = required_content(config, dataset)
        self.n_item_layers: int = config["n_mm_layers"]
        self.n_layers: int = config["n_ui_layers"]
        self.reg_weight: float = config["reg_weight"]
        self.cl_weight: float = config["cl_weight"]
        self.temperature: float = config["temperature"]
        self.batch_size: int = config["train_batch_size"]
        graph = bipartite_adjacency(*self.training_pairs(dataset))
        self.graph = graph.to(self.device)
        self.user_graph = user_item_block(graph, self.n_users).to(self.device)
        self.item_graphs = [
            knn_graph(part.values, config["knn_k"], present=part.present, weighting="similarity").to(self.device)
            for part in features.values()
        ]

        size: int = config["embedding_size"]
        self.add_id_embeddings(size, nn.init.xavier_uniform_)
        self.add_content(features, size, trainable=config["train_features"])
        self.query = nn.Sequential(nn.Linear(size, size), nn.Tanh(), nn.Linear(size, 1, bias=False))
        self.purifiers = nn.ModuleList(nn.Sequential(nn.Linear(size, size), nn.Sigmoid()) for _ in features)
        self.preferences = nn.ModuleList(nn.Sequential(nn.Linear(size, size), nn.Sigmoid()) for _ in features)
        # bool [n_users + n_items, M]: which modalities a node attends over; a user over all
        present = presence(features)
        attends = torch.cat([present.new_ones(self.n_users, len(features)), present])
        self.register_buffer("attends", attends, persistent=False)

    def encode(self) -> Encoding:
        ids = self.item_embedding.weight
        nodes = torch.cat([self.user_embedding.weight, ids])
        behaviour = propagate_mean(self.graph, nodes, self.n_layers)
        views = [
            # without a layer the graph would not keep out rows that are not there
            propagate(graph, ids * purifier(projection(content.values)) * content.present[:, None], self.n_item_layers)
            for graph, content, projection, purifier in zip(
                self.item_graphs, self.content, self.projections, self.purifiers, strict=True
            )
        ]
        side = self._fused([torch.cat([self.user_graph @ view, view]) for view in views], behaviour)
        nodes = behaviour + side
        parts = {"behaviour": behaviour, "side": side}
        return Encoding(nodes[: self.n_users], nodes[self.n_users :], parts)

    def _fused(self, views: list[Tensor], behaviour: Tensor) -> Tensor:
        """The side view of every node, ``[n_users + n_items, d]``, from its view in each modality."""
        logits = torch.cat([self.query(view) for view in views], dim=1)
        # the lowest finite number: a node that attends to nothing shall not have NaN for weights
        weights = logits.masked_fill(~self.attends, torch.finfo(logits.dtype).min).softmax(dim=1)
        common = sum(weight[:, None] * view for weight, view in zip(weights.unbind(1), views, strict=True))
        side = common
        for preference, view, attends in zip(self.preferences, views, self.attends.unbind(1), strict=True):
            side = side + preference(behaviour) * (view - common) * attends[:, None]
        return side / (self.attends.sum(dim=1, keepdim=True) + 1)

    def auxiliary_loss(self, encoding: Encoding, interaction: Interaction) -> Tensor | float:
        if not self.cl_weight:
            return 0.0
        rows = [
            self.batch_rows(part[: self.n_users], part[self.n_users :], interaction)[:2]
            for part in (encoding.parts["side"], encoding.parts["behaviour"])
        ]
        return self.cl_weight * sum(info_nce(side, own, self.temperature) for side, own in zip(*rows, strict=True))

    def regulariser(self, encoding: Encoding, interaction: Interaction) -> Tensor:
        rows = self.batch_rows(encoding.users, encoding.items, interaction)
        return self.reg_weight * 0.5 * sum(row.square().sum() for row in rows) / self.batch_size
