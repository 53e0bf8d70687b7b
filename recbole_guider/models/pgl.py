"""PGL: content propagated on a principal part of the user-item graph in training, and on all of it in evaluation."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import scipy.sparse as sp
import torch
from pydantic import Field
from recbole.data.interaction import Interaction
from scipy.sparse.linalg import svds
from torch import Tensor, nn
from torch.nn.functional import normalize

from recbole_guider.graph import SparseOperator, propagate, propagate_mean, user_item_block
from recbole_guider.models.base import Encoding
from recbole_guider.models.content import (
    ContentRecommender,
    item_graph,
    required_content,
)
from recbole_guider.models.contrast import info_nce
from recbole_guider.models.layers import seeded_dropout
from recbole_guider.models.pruned import PrunedGraphRecommender
from recbole_guider.utils.errors import GuiderError
from recbole_guider.utils.settings import Count, Natural, NonNegative, Positive, Settings, Share


class PGLParameters(Settings):
    """The parameters of :class:`PGL`."""

    embedding_size: Count = Field(default=64, description="the size of the user and item embeddings of one modality")
    knn_k: Count = Field(
        default=10, description="the number of nearest items that an item is linked to, in each modality"
    )
    n_mm_layers: Natural = Field(default=1, description="the number of layers on the item graph")
    n_ui_layers: Natural = Field(default=2, description="the number of layers on the user-item graph")
    subgraph: Literal["local", "global"] = Field(
        default="local",
        description="what training propagates on: local (an epoch's sample of the edges) or global (leading singular "
        "vectors)",
    )
    dropout: Share = Field(
        default=0.7, description="the share of the user-item edges that an epoch leaves out, where subgraph is local"
    )
    feature_dropout: Share = Field(
        default=0.2,
        description="the share of entries that the contrastive loss drops; the authors: Baby 0.2, Sports 0.05, "
        "Clothing 0.1",
    )
    cl_weight: NonNegative = Field(
        default=0.05, description="the weight of the contrastive loss; the authors: Baby 0.05, Sports 0.1, Clothing 0.5"
    )
    temperature: Positive = Field(default=0.2, description="what the cosines of the contrastive loss are divided by")
    modality_weights: dict[str, NonNegative] | None = Field(
        default=None,
        description="modality -> weight in the item graph; null: equal weights. The authors: image 0.1, text 0.9",
    )
    train_features: bool = Field(
        default=True, description="whether the raw features are parameters too, as in the authors' code"
    )


class PGL(ContentRecommender, PrunedGraphRecommender):
    r"""PGL, for any number of modalities.

    In modality m a user has an embedding p_u^m and an item its content ``W_m x_i^m + b_m`` of unit length; those of all
    modalities stand side by side. With E their LightGCN mean over ``n_ui_layers`` layers of a user-item graph, and S
    the item graph (for each modality the k nearest items by cosine, normalised, and their weighted sum),

        U = E_U,   V = E_I + S^{n_mm_layers} [ x_i^1, ..., x_i^M ],   score(u, i) = <U_u, V_i>.

    Evaluation uses all edges. Training uses the principal subgraph:

    - ``local``: in every epoch a share ``dropout`` of the edges is dropped, an edge (u, i) being kept with probability
      proportional to ``1 / sqrt(d_u d_i)``;
    - ``global``: with s_1 >= s_2 >= ... the K = ``embedding_size / 2`` largest singular values of the user-item block
      of the normalised graph, a_j and b_j their vectors and T = ``embedding_size / 8``, the edges whose weight in
      ``sum over j <= T of s_j s_{K-T+j} a_j b_j^T`` is at least 0.001 in size. (The authors' code takes
      ``embedding_size`` singular values of the whole square graph, which has each of these twice.)

    The loss of a batch is BPR, plus ``cl_weight / 2`` times InfoNCE at ``temperature`` between two copies of its user
    rows of U with a share ``feature_dropout`` of the entries dropped, and the same for its item rows of V.

    An item without a row in some modality starts there from zero, so that it has what its users bring, and has no edge
    in that modality's item graph. An item without any takes no part in the InfoNCE of items.

    Source: Yu et al., Mind Individual Information! Principal Graph Learning for Multimedia Recommendation, AAAI 2025;
    the details of both subgraphs from the authors' code.
    """

    settings_class = PGLParameters
    auxiliary_loss_samples = False

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        features = required_content(config, dataset)
        self.n_item_layers: int = config["n_mm_layers"]
        self.n_layers: int = config["n_ui_layers"]
        self.cl_weight: float = config["cl_weight"]
        self.feature_dropout: float = config["feature_dropout"]
        self.temperature: float = config["temperature"]
        self.generator("masks", config["seed"])

        size: int = config["embedding_size"]
        self.principal_graph: SparseOperator | None = None
        if config["subgraph"] == "global":
            self.principal_graph = principal_subgraph(self.graph, self.n_users, size).to(self.device)
        self.item_graph = item_graph(features, config["knn_k"], config["modality_weights"]).to(self.device)
        self.user_embeddings = nn.ModuleList(nn.Embedding(self.n_users, size) for _ in features)
        for embedding in self.user_embeddings:
            nn.init.xavier_uniform_(embedding.weight)
        self.add_content(features, size, trainable=config["train_features"])

    def training_graph(self) -> SparseOperator:
        """The principal subgraph: this epoch's, or the one of all epochs."""
        return super().training_graph() if self.principal_graph is None else self.principal_graph

    def encode(self) -> Encoding:
        users = torch.cat([embedding.weight for embedding in self.user_embeddings], dim=1)
        items = torch.cat(
            [
                normalize(projection(content.values) * content.present[:, None])
                for projection, content in zip(self.projections, self.content, strict=True)
            ],
            dim=1,
        )
        nodes = propagate_mean(self.current_graph, torch.cat([users, items]), self.n_layers)
        similar = propagate(self.item_graph, items, self.n_item_layers)
        return Encoding(nodes[: self.n_users], nodes[self.n_users :] + similar)

    def auxiliary_loss(self, encoding: Encoding, interaction: Interaction) -> Tensor | float:
        if not self.cl_weight:
            return 0.0
        item = interaction[self.ITEM_ID]
        item = item[torch.stack([content.present[item] for content in self.content]).any(dim=0)]
        rows = encoding.users.index_select(0, interaction[self.USER_ID]), encoding.items.index_select(0, item)
        views = [[self._masked(matrix) for _ in range(2)] for matrix in rows]
        return self.cl_weight / 2 * sum(info_nce(one, other, self.temperature) for one, other in views)

    def _masked(self, rows: Tensor) -> Tensor:
        return seeded_dropout(rows, self.feature_dropout if self.training else 0.0, self.generator("masks"))


def principal_subgraph(graph: SparseOperator, n_users: int, size: int, threshold: float = 1e-3) -> SparseOperator:
    """PGL's ``global`` subgraph of a normalised user-item graph; the formula is in :class:`PGL`.

    The dense product of singular vectors is made in blocks of users.

    Args:
        graph: symmetric [N, N], users first.
        n_users: number of users.
        size: the embedding size, at least 8; where there are fewer singular values, all but one are used.
        threshold: smallest size of a weight.

    Returns:
        A symmetric operator [N, N] on the graph's device; weights may be negative.

    Raises:
        GuiderError: size is below 8, or the graph too small for a singular value.
    """
    block = user_item_block(graph, n_users).to_scipy().astype(np.float64)
    if size < 8:
        raise GuiderError(f"embedding_size is {size}: PGL's global subgraph takes an eighth of it, so 8 or more.")
    rank = min(size // 2, min(block.shape) - 1)
    if rank < 1:
        raise GuiderError(f"PGL's global subgraph needs two users and two items, not {block.shape}.")
    # a start vector of its own, so that the same graph gives the same vectors
    start = np.random.default_rng(0).normal(size=min(block.shape))
    users, values, items = svds(block, k=rank, v0=start)
    order = np.argsort(-values)
    top = min(size // 8, rank)
    weights = values[order[:top]] * values[order[rank - top :]]
    left, right = users[:, order[:top]] * weights, items[order[:top]]
    rows = max(1, 2**22 // block.shape[1])
    kept = []
    for begin in range(0, n_users, rows):
        product = left[begin : begin + rows] @ right
        product[np.abs(product) < threshold] = 0.0
        kept.append(sp.csr_matrix(product))
    principal = sp.vstack(kept)
    return SparseOperator.from_scipy(sp.bmat([[None, principal], [principal.T, None]]), symmetric=True).to(graph.device)
