"""FREEDOM: a frozen item graph from content, and a user-item graph that is pruned anew in every epoch."""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field
from recbole.data.interaction import Interaction
from recbole.model.init import xavier_uniform_initialization
from torch import Tensor
from torch.nn.functional import logsigmoid

from recbole_guider.graph import propagate_mean
from recbole_guider.models.base import Encoding
from recbole_guider.models.content import (
    ContentRecommender,
    item_graph,
    required_content,
)
from recbole_guider.models.pruned import PrunedGraphRecommender
from recbole_guider.utils.settings import Count, Natural, NonNegative, Settings, Share


class FREEDOMParameters(Settings):
    """The parameters of :class:`FREEDOM`."""

    embedding_size: Count = Field(default=64, description="the size of the user and item embeddings")
    knn_k: Count = Field(
        default=10, description="the number of nearest items that an item is linked to, in each modality"
    )
    n_mm_layers: Natural = Field(default=1, description="the number of layers on the item graph")
    n_ui_layers: Natural = Field(default=2, description="the number of layers on the user-item graph")
    dropout: Share = Field(default=0.8, description="the share of the user-item edges that an epoch leaves out")
    reg_weight: NonNegative = Field(default=0.001, description="the weight of the content terms of the loss")
    modality_weights: dict[str, NonNegative] | None = Field(
        default=None, description="modality -> weight in the item graph; null: equal weights"
    )
    train_features: bool = Field(
        default=False, description="whether the raw features are parameters too, as in the authors' code"
    )


class FREEDOM(ContentRecommender, PrunedGraphRecommender):
    r"""FREEDOM, for any number of modalities.

    Item graph, built once: for each modality m the k nearest items by cosine, normalised to
    ``S_m = D^-1/2 K_m D^-1/2``, and ``S = sum_m w_m S_m``. User-item graph: in every training epoch a share
    ``dropout`` of the edges is dropped, an edge (u, i) being kept with probability proportional to
    ``1 / sqrt(d_u d_i)``; evaluation uses all edges. With E_U, E_I the LightGCN means over ``n_ui_layers`` layers of
    that graph,

        U = E_U,   V = E_I + S^{n_mm_layers} Q,    score(u, i) = <U_u, V_i>,

    Q being the item ID embeddings, and the loss of a batch is

        - mean log sig(<U_u, V_i> - <U_u, V_j>) - reg_weight * sum_m mean log sig(<U_u, W_m x_i> - <U_u, W_m x_j>).

    An item without a row in some modality has no edge in that modality's graph, and takes no part in that modality's
    loss term.

    Source: Zhou and Shen, A Tale of Two Graphs: Freezing and Denoising Graph Structures for Multimodal
    Recommendation, ACM Multimedia 2023.
    """

    settings_class = FREEDOMParameters

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        features = required_content(config, dataset)
        self.n_item_layers: int = config["n_mm_layers"]
        self.n_layers: int = config["n_ui_layers"]
        self.reg_weight: float = config["reg_weight"]

        size: int = config["embedding_size"]
        self.add_id_embeddings(size)
        self.item_graph = item_graph(features, config["knn_k"], config["modality_weights"]).to(self.device)
        self.add_content(features, size, trainable=config["train_features"])
        self.apply(xavier_uniform_initialization)

    def encode(self) -> Encoding:
        content = self.item_embedding.weight
        for _ in range(self.n_item_layers):
            content = self.item_graph @ content
        nodes = torch.cat([self.user_embedding.weight, self.item_embedding.weight])
        nodes = propagate_mean(self.current_graph, nodes, self.n_layers)
        return Encoding(nodes[: self.n_users], nodes[self.n_users :] + content)

    def auxiliary_loss(self, encoding: Encoding, interaction: Interaction) -> Tensor | float:
        total: Tensor | float = 0.0
        if not self.reg_weight:
            return total
        user = encoding.users[interaction[self.USER_ID]]
        item, other = interaction[self.ITEM_ID], interaction[self.NEG_ITEM_ID]
        for content, projection in zip(self.content, self.projections, strict=True):
            both = content.present[item] & content.present[other]
            margin = (user * (projection(content.values[item]) - projection(content.values[other]))).sum(dim=1)
            total = total - (logsigmoid(margin) * both).sum() / len(both)
        return self.reg_weight * total
