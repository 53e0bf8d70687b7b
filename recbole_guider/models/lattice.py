"""LATTICE: an item graph that is learned from content, epoch by epoch, under any collaborative filter."""

from __future__ import annotations

from typing import Any, Literal

import scipy.sparse as sp
import torch
from pydantic import Field
from recbole.data.interaction import Interaction
from torch import Tensor, nn
from torch.nn.functional import leaky_relu, normalize

from recbole_guider.graph import Edges, SparseOperator, combine, knn_graph, mean_adjacency, propagate_mean
from recbole_guider.models.base import Encoding
from recbole_guider.models.content import ContentRecommender, required_content
from recbole_guider.models.layers import seeded_dropout
from recbole_guider.utils.settings import Count, Natural, NonNegative, Settings, Share, UnitInterval


class LATTICEParameters(Settings):
    """The parameters of :class:`LATTICE`."""

    embedding_size: Count = Field(default=64, description="the size of the user and item embeddings")
    feat_embed_dim: Count = Field(
        default=64, description="the size of the projected content, whose similarities are learned"
    )
    knn_k: Count = Field(
        default=10, description="the number of nearest items that an item is linked to, in each modality"
    )
    lambda_coeff: UnitInterval = Field(
        default=0.9, description="the share of the raw content's graph in the item graph; the rest is learned"
    )
    n_mm_layers: Natural = Field(default=1, description="the number of layers on the item graph")
    n_ui_layers: Natural = Field(default=2, description="the number of layers on the user-item graph")
    cf_model: Literal["lightgcn", "ngcf", "mf"] = Field(
        default="lightgcn", description="the collaborative filter: lightgcn, ngcf or mf"
    )
    mess_dropout: Share = Field(
        default=0.1, description="the share of a layer's entries that are dropped in training; only ngcf uses it"
    )
    reg_weight: NonNegative = Field(
        default=0.0001,
        description="the weight of the squares of the batch's rows; the authors search 0, 1e-5, 1e-4, 1e-3",
    )
    train_features: bool = Field(
        default=True, description="whether the raw features are parameters too, as in the authors' code"
    )


class LATTICE(ContentRecommender):
    r"""LATTICE, for any number of modalities.

    With L(S) = D^-1/2 S D^-1/2, D the row sums of S, and kNN_k(x) the cosines of every item with its k nearest (itself
    included, negative ones as 0), the item graph is

        S = lambda_coeff * sum_m w_m L(kNN_k(x^m)) + (1 - lambda_coeff) * L( sum_m w_m kNN_k(W_m x^m + b_m) ),

    w the softmax of one learned number for each modality. S is built anew in the first batch of an epoch, which is the
    only one that teaches w, W, b and x; the other batches take it as it is, and evaluation builds it from the
    parameters that it evaluates. With Q the item ID embeddings and U, V what ``cf_model`` makes of the ID embeddings,

        score(u, i) = <U_u, V_i + h_i / ||h_i||>,   h = S^{n_mm_layers} Q.

    ``cf_model`` is ``lightgcn`` (the mean over ``n_ui_layers`` layers), ``ngcf`` (NGCF's layers, averaged, with dropout
    ``mess_dropout``) or ``mf`` (the embeddings themselves). Both graph models use D^-1 (A + I), as the authors' code
    does. The loss is BPR, plus ``reg_weight`` times half the squares of the batch's user, item and sampled item rows,
    divided by ``train_batch_size``.

    MMRec keeps negative cosines among the k nearest, which the paper sets to 0: sums of them have no square root.

    An item without a row in some modality has no edge in that modality's graphs.

    Source: Zhang et al., Mining Latent Structures for Multimedia Recommendation, ACM Multimedia 2021.
    """

    settings_class = LATTICEParameters

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        features = required_content(config, dataset)
        self.knn_k: int = config["knn_k"]
        self.lambda_coeff: float = config["lambda_coeff"]
        self.n_item_layers: int = config["n_mm_layers"]
        self.n_layers: int = config["n_ui_layers"]
        self.reg_weight: float = config["reg_weight"]
        self.batch_size: int = config["train_batch_size"]
        self.cf_model: str = config["cf_model"]
        self.dropout: float = config["mess_dropout"]
        self.generator("dropout", config["seed"])
        self.graph = mean_adjacency(*self.training_pairs(dataset), self_loops=True).to(self.device)
        self.original_graphs = [
            knn_graph(part.values, self.knn_k, present=part.present, weighting="similarity").to(self.device)
            for part in features.values()
        ]
        self._item_graph: SparseOperator | None = None

        size: int = config["embedding_size"]
        self.add_id_embeddings(size, nn.init.xavier_uniform_)
        self.add_content(features, config["feat_embed_dim"], trainable=config["train_features"])
        self.modality_logits = nn.Parameter(torch.full((len(features),), 1.0 / len(features)))
        n_ngcf_layers = self.n_layers if self.cf_model == "ngcf" else 0
        self.sum_layers = nn.ModuleList(nn.Linear(size, size) for _ in range(n_ngcf_layers))
        self.product_layers = nn.ModuleList(nn.Linear(size, size) for _ in range(n_ngcf_layers))

    def renew(self) -> None:
        # Built when first needed, so that an epoch of GUIDER, which begins with two passes, still builds exactly one.
        self._item_graph = None

    def learned_edges(self) -> tuple[list[Edges], list[Tensor], Tensor]:
        """The learned part of the item graph, with gradients.

        Returns:
            For every modality its edges and their values in L( sum_m w_m kNN_k(W_m x^m + b_m) ), ``[nnz]``; and w.
        """
        weights = self.modality_logits.softmax(dim=0)
        places, values = [], []
        degree = weights.new_zeros(self.n_items)
        for content, projection, weight in zip(self.content, self.projections, weights, strict=True):
            projected = normalize(projection(content.values), dim=1)
            nearest = knn_graph(projected, self.knn_k, present=content.present)
            edges = Edges(nearest.rows.cpu(), nearest.col.long().cpu(), nearest.shape).to(projected.device)
            similarity = weight * edges.dot(projected, projected).clamp_min(0.0)
            degree = degree.index_add(0, edges.rows, similarity)
            places.append(edges)
            values.append(similarity)
        linked = degree > 0
        # 1 in place of 0: an item without edges shall have no NaN for a gradient
        scale = torch.where(linked, degree, 1.0).rsqrt() * linked
        values = [
            value * scale.index_select(0, edges.rows) * scale.index_select(0, edges.columns)
            for edges, value in zip(places, values, strict=True)
        ]
        return places, values, weights

    @torch.no_grad()
    def _as_it_is(self, places: list[Edges], values: list[Tensor], weights: Tensor) -> SparseOperator:
        """The item graph S of what :meth:`learned_edges` gave, as one constant operator."""
        learned = []
        for edges, value in zip(places, values, strict=True):
            entries = (value.cpu().numpy(), (edges.rows.cpu().numpy(), edges.columns.cpu().numpy()))
            learned.append(SparseOperator.from_scipy(sp.coo_matrix(entries, shape=edges.shape)).to(self.device))
        shares = [1.0 - self.lambda_coeff] * len(learned) + [self.lambda_coeff * weight for weight in weights.tolist()]
        return combine([*learned, *self.original_graphs], shares)

    def _content_view(self) -> Tensor:
        """S^{n_mm_layers} Q, ``[n_items, d]``; with gradients for S where a new S is due."""
        view = self.item_embedding.weight
        if self.training and self._item_graph is None:
            places, values, weights = self.learned_edges()
            self._item_graph = self._as_it_is(places, values, weights)
            for _ in range(self.n_item_layers):
                learned = sum(edges.sum_to_rows(value, view) for edges, value in zip(places, values, strict=True))
                original = sum(
                    weight * (graph @ view) for weight, graph in zip(weights, self.original_graphs, strict=True)
                )
                view = (1.0 - self.lambda_coeff) * learned + self.lambda_coeff * original
            return view
        if self.training:
            graph = self._item_graph
        else:
            with torch.no_grad():
                graph = self._as_it_is(*self.learned_edges())
        for _ in range(self.n_item_layers):
            view = graph @ view
        return view

    def _behaviour_view(self) -> Tensor:
        """What the collaborative filter makes of the ID embeddings, ``[n_users + n_items, d]``."""
        nodes = torch.cat([self.user_embedding.weight, self.item_embedding.weight])
        if self.cf_model == "mf":
            return nodes
        if self.cf_model == "lightgcn":
            return propagate_mean(self.graph, nodes, self.n_layers)
        total = nodes
        for sum_layer, product_layer in zip(self.sum_layers, self.product_layers, strict=True):
            around = self.graph @ nodes
            nodes = leaky_relu(sum_layer(around)) + leaky_relu(product_layer(nodes * around))
            if self.training:
                nodes = seeded_dropout(nodes, self.dropout, self.generator("dropout"))
            total = total + normalize(nodes, dim=1)
        return total / (self.n_layers + 1)

    def encode(self) -> Encoding:
        nodes = self._behaviour_view()
        return Encoding(nodes[: self.n_users], nodes[self.n_users :] + normalize(self._content_view(), dim=1))

    def regulariser(self, encoding: Encoding, interaction: Interaction) -> Tensor:
        rows = self.batch_rows(encoding.users, encoding.items, interaction)
        return self.reg_weight * 0.5 * sum(row.square().sum() for row in rows) / self.batch_size
