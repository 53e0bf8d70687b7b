"""LightGCN, propagated with one CSR matrix and a symmetric backward."""

from __future__ import annotations

from typing import Any

from recbole.data.interaction import Interaction
from recbole.model.general_recommender.lightgcn import LightGCN
from torch import Tensor

from recbole_guider.graph import SparseOperator, bipartite_adjacency, propagate_mean
from recbole_guider.models.base import Encoding, FactorisedRecommender


class FastLightGCN(FactorisedRecommender, LightGCN):
    """RecBole's LightGCN with the same parameters, initial values, loss and scores, several times faster on a CPU.

    ``E = mean over l = 0..L of A^l E_0`` with ``A = D^-1/2 R D^-1/2``. Only the propagation is replaced: a CSR
    product whose backward uses the symmetry of A. GUIDER uses it for its teacher, and as the backbone of
    GUIDER_LightGCN; a plain ``LightGCN`` stays RecBole's own class.

    Settings (properties of RecBole's LightGCN): ``embedding_size``, ``n_layers``, ``reg_weight``, ``require_pow``.

    Source: He et al., LightGCN: Simplifying and Powering Graph Convolution Network for Recommendation, SIGIR 2020.
    """

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        # RecBole keeps evaluation results in these and writes them into checkpoints; the base class caches instead.
        self.other_parameter_name: list[str] = []

    def get_norm_adj_mat(self) -> SparseOperator:
        graph = self.interaction_matrix
        return bipartite_adjacency(graph.row, graph.col, self.n_users, self.n_items)

    def forward(self) -> tuple[Tensor, Tensor]:
        nodes = propagate_mean(self.norm_adj_matrix, self.get_ego_embeddings(), self.n_layers)
        return nodes[: self.n_users], nodes[self.n_users :]

    def encode(self) -> Encoding:
        return Encoding(*self.forward())

    def ranking_loss(self, encoding: Encoding, interaction: Interaction) -> Tensor:
        user, item, negative = (interaction[field] for field in (self.USER_ID, self.ITEM_ID, self.NEG_ITEM_ID))
        positive_score = (encoding.users[user] * encoding.items[item]).sum(dim=1)
        negative_score = (encoding.users[user] * encoding.items[negative]).sum(dim=1)
        return self.mf_loss(positive_score, negative_score)

    def regulariser(self, encoding: Encoding, interaction: Interaction) -> Tensor:
        fields = [self.user_embedding(interaction[self.USER_ID]), self.item_embedding(interaction[self.ITEM_ID])]
        if self.NEG_ITEM_ID in interaction:
            fields.append(self.item_embedding(interaction[self.NEG_ITEM_ID]))
        return self.reg_weight * self.reg_loss(*fields, require_pow=self.require_pow)
