"""LayerGCN: graph convolution whose layers are refined by their similarity to the embeddings they began with."""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field
from recbole.data.interaction import Interaction
from recbole.model.init import xavier_uniform_initialization
from torch import Tensor
from torch.nn.functional import cosine_similarity

from recbole_guider.graph import SparseOperator
from recbole_guider.losses import l2_penalty
from recbole_guider.models.base import Encoding
from recbole_guider.models.pruned import PrunedGraphRecommender
from recbole_guider.utils.settings import Count, NonNegative, Settings, Share


class LayerGCNParameters(Settings):
    """The parameters of :class:`LayerGCN`."""

    embedding_size: Count = Field(default=64, description="the size of the user and item embeddings")
    n_layers: Count = Field(default=4, description="the number of layers")
    dropout: Share = Field(
        default=0.1,
        description="the share of the user-item edges that an epoch leaves out. The authors try 0, 0.1, 0.2",
    )
    pruning: Literal["mixed", "degree", "random"] = Field(
        default="mixed",
        description="which edges go. degree: those of busy nodes first; random: any; mixed: by turns, as in the "
        "authors' code",
    )
    reg_weight: NonNegative = Field(
        default=0.001, description="the weight of the L2 regulariser. The authors try 1e-2, 1e-3, 1e-4, 1e-5"
    )


class LayerGCN(PrunedGraphRecommender):
    r"""LayerGCN; reads no content.

    With E_0 the ID embeddings of users and items and A the normalised user-item graph,

        H_l = A E_{l-1},   E_l = diag(cos(H_l, E_0)) H_l,   E = E_1 + ... + E_L,   score(u, i) = <E_u, E_i>,

    the cosine taken row by row: a layer counts for a node as far as it still resembles the node. E_0 itself is no
    part of the sum. In every training epoch a share ``dropout`` of the edges is left out: with probability by degree
    (``pruning: degree``, edges of busy nodes go first), uniformly (``random``), or by turns, degree first (``mixed``,
    what the authors' code does). The loss of a batch is

        - sum log sig(<E_u, E_i> - <E_u, E_j>) + reg_weight / 2 * sum (|e_u|^2 + |e_i|^2 + |e_j|^2),

    a sum over the batch, e being rows of E_0. Its parts (:meth:`ranking_loss`, :meth:`regulariser`) are means over the
    batch, as those of the other backbones are, so that GUIDER weighs them alike.

    Source: Zhou, Lin, Liu and Miao, Layer-refined Graph Convolutional Networks for Recommendation, ICDE 2023.

    Raises:
        GuiderError: ``n_layers`` is below 1, ``dropout`` is no share below 1, or ``pruning`` is none of the choices.
    """

    settings_class: type[Settings] | None = LayerGCNParameters

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        self.n_layers: int = config["n_layers"]
        self.pruning: str = config["pruning"]
        self.reg_weight: float = config["reg_weight"]
        # in the state dict: a resumed run continues the turns of `mixed`
        self.register_buffer("n_pruned", torch.zeros((), dtype=torch.int64))
        self.add_id_embeddings(config["embedding_size"])
        self.apply(xavier_uniform_initialization)

    def prune(self) -> SparseOperator:
        turn = int(self.n_pruned)
        self.n_pruned += 1
        if self.pruning == "degree" or self.pruning == "mixed" and turn % 2 == 0:
            return super().prune()
        kept = int(self.edges.n_edges * (1.0 - self.dropout))
        return self.edges.adjacency(torch.randperm(self.edges.n_edges, generator=self.generator("pruning"))[:kept])

    def encode(self) -> Encoding:
        graph = self.current_graph
        ego = torch.cat([self.user_embedding.weight, self.item_embedding.weight])
        layer, total = ego, torch.zeros_like(ego)
        for _ in range(self.n_layers):
            layer = graph @ layer
            layer = cosine_similarity(layer, ego, dim=1).unsqueeze(1) * layer
            total = total + layer
        return Encoding(total[: self.n_users], total[self.n_users :])

    def regulariser(self, encoding: Encoding, interaction: Interaction) -> Tensor:
        rows = [self.user_embedding(interaction[self.USER_ID]), self.item_embedding(interaction[self.ITEM_ID])]
        if self.NEG_ITEM_ID in interaction:
            rows.append(self.item_embedding(interaction[self.NEG_ITEM_ID]))
        return self.reg_weight * l2_penalty(*rows)

    def calculate_loss(self, interaction: Interaction) -> Tensor:
        return len(interaction) * super().calculate_loss(interaction)
