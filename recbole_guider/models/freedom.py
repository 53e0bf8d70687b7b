"""FREEDOM: a frozen item graph from content, and a user-item graph that is pruned anew in every epoch."""

from __future__ import annotations

from typing import Any

import torch
from recbole.data.interaction import Interaction
from recbole.model.init import xavier_uniform_initialization
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from recbole_guider.data.features import require_content
from recbole_guider.graph import combine, knn_graph, propagate_mean
from recbole_guider.models.base import Encoding
from recbole_guider.models.content import ModalityContent, modality_weights
from recbole_guider.models.pruned import PrunedGraphRecommender


class FREEDOM(PrunedGraphRecommender):
    r"""FREEDOM, for any number of modalities.

    Item graph, built once: for each modality m the k nearest items by cosine, normalised to
    ``S_m = D^-1/2 K_m D^-1/2``, and ``S = sum_m w_m S_m``. User-item graph: in every training epoch a share
    ``dropout`` of the edges is dropped, an edge (u, i) being kept with probability proportional to
    ``1 / sqrt(d_u d_i)``; evaluation uses all edges. With E_U, E_I the LightGCN means over ``n_ui_layers`` layers of
    that graph,

        U = E_U,   V = E_I + S^{n_mm_layers} Q,    score(u, i) = <U_u, V_i>,

    Q being the item ID embeddings, and the loss of a batch is

        - mean log sig(<U_u, V_i> - <U_u, V_j>) - reg_weight * sum_m mean log sig(<U_u, W_m x_i> - <U_u, W_m x_j>).

    Settings (properties/model/FREEDOM.yaml): ``embedding_size``, ``knn_k``, ``n_mm_layers``, ``n_ui_layers``,
    ``dropout``, ``reg_weight``, ``modality_weights`` (name -> weight, null: equal weights), ``train_features`` (whether
    the raw features x are parameters, as in the authors' code, or stay as they are, as in the paper).

    An item without a row in some modality has no edge in that modality's graph, and takes no part in that modality's
    loss term.

    Source: Zhou and Shen, A Tale of Two Graphs: Freezing and Denoising Graph Structures for Multimodal
    Recommendation, ACM Multimedia 2023.
    """

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        features = dataset.item_features
        require_content(config, features, behaviour_suffices=False)
        self.n_item_layers: int = config["n_mm_layers"]
        self.n_layers: int = config["n_ui_layers"]
        self.reg_weight: float = config["reg_weight"]
        weights = modality_weights(config["modality_weights"], list(features))

        size: int = config["embedding_size"]
        self.user_embedding = nn.Embedding(self.n_users, size)
        self.item_embedding = nn.Embedding(self.n_items, size)
        self.item_graph = combine(
            [knn_graph(part.values, config["knn_k"], present=part.present) for part in features.values()],
            [weights[name] for name in features],
        ).to(self.device)
        self.content = nn.ModuleList(ModalityContent(part, config["train_features"]) for part in features.values())
        self.projections = nn.ModuleList(nn.Linear(part.dim, size) for part in features.values())
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
