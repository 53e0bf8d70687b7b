"""SMORE: modalities denoised and fused as spectra, and spread over item graphs as far as behaviour prefers them."""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field
from recbole.data.interaction import Interaction
from torch import Tensor, nn

from recbole_guider.graph import bipartite_adjacency, knn_graph, propagate, propagate_mean, union, user_item_block
from recbole_guider.models.base import Encoding
from recbole_guider.models.content import (
    ContentRecommender,
    of_each_modality,
    presence,
    required_content,
)
from recbole_guider.models.contrast import info_nce
from recbole_guider.models.layers import seeded_dropout
from recbole_guider.utils.settings import Count, Natural, NonNegative, Positive, Settings, Share


class SMOREParameters(Settings):
    """The parameters of :class:`SMORE`."""

    embedding_size: Count = Field(default=64, description="the size of the user and item embeddings")
    knn_k: Count | dict[str, Count] = Field(
        default=10,
        description="the number of nearest items that an item is linked to, for all modalities or modality -> number; "
        "the authors: Baby and Clothing image 40, text 15 and 10",
    )
    n_mm_layers: Natural = Field(default=1, description="the number of layers on the item graphs")
    n_ui_layers: Natural = Field(
        default=3, description="the number of layers on the user-item graph; the authors use 4 on Baby"
    )
    dropout: Share = Field(
        default=0.0, description="the share of the preferences that a batch leaves out; the authors use 0.1 on Baby"
    )
    cl_weight: NonNegative = Field(
        default=0.01, description="the weight of the contrastive loss; the authors use 0.03 on Sports"
    )
    temperature: Positive = Field(default=0.2, description="what the cosines of the contrastive loss are divided by")
    reg_weight: NonNegative = Field(
        default=0.0001, description="the weight of the squares of the batch's rows; the authors use 0.00001 on Clothing"
    )
    train_features: bool = Field(
        default=True, description="whether the raw features are parameters too, as in the authors' code"
    )


class SMORE(ContentRecommender):
    r"""SMORE, for any number of modalities.

    With F the orthonormal real Fourier transform of a row, Q the item ID embeddings, s the sigmoid, k_m and k_f
    complex filters, z_m the projected content ``W_m x + b_m``, S_m the item graph of modality m (the k nearest items by
    cosine, weighed by it, D^-1/2 K_m D^-1/2), S_f the union of the S_m (their entry-wise maximum) and R the user-item
    block of the normalised user-item graph, items have one view for each modality and a fused one,

        v_m = S_m^{n_mm_layers} [ Q * s(G_m F^-1(k_m F z_m)) ],
        v_f = S_f^{n_mm_layers} [ Q * s(G_f F^-1(k_f prod_m F z_m)) ],

    and users have the same through R. Behaviour has the LightGCN mean b over ``n_ui_layers`` layers. For every node,
    user or item,

        side = [ s(P_f b) * v_f + sum_m s(P_m b) * softmax(q_m(v_f)) * v_m ] / (number of modalities + 1),
        q_m(v) = A_m tanh(B_m v + c_m),   score(u, i) = <b_u + side_u, b_i + side_i>,

    G, P being linear with a bias, the softmax over the dimensions of a row, and a share ``dropout`` of the preferences
    s(P b) dropped. The loss of a batch is BPR, plus ``cl_weight`` times InfoNCE of side and b at ``temperature``, over
    the users of the batch and over its items, plus ``reg_weight`` times half the squares of its user, item and sampled
    item rows, divided by ``train_batch_size``.

    An item without a row in some modality has no edge in that modality's graph, is fused over the spectra of the
    modalities that it has, and ``side`` divides by their number + 1. An item without any has ``side`` = 0 and takes no
    part in the InfoNCE of items.

    Source: Ong and Khong, Spectrum-based Modality Representation Fusion Graph Convolutional Network for Multimodal
    Recommendation, WSDM 2025.
    """

    settings_class = SMOREParameters
    present: Tensor

    auxiliary_loss_samples = False

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        features = required_content(config, dataset)
        self.n_item_layers: int = config["n_mm_layers"]
        self.n_layers: int = config["n_ui_layers"]
        self.reg_weight: float = config["reg_weight"]
        self.cl_weight: float = config["cl_weight"]
        self.dropout: float = config["dropout"]
        self.temperature: float = config["temperature"]
        self.batch_size: int = config["train_batch_size"]
        self.generator("preferences", config["seed"])

        graph = bipartite_adjacency(*self.training_pairs(dataset))
        self.graph = graph.to(self.device)
        self.user_graph = user_item_block(graph, self.n_users).to(self.device)
        neighbours = of_each_modality("knn_k", config["knn_k"], list(features))
        graphs = [
            knn_graph(part.values, neighbours[name], present=part.present, weighting="similarity")
            for name, part in features.items()
        ]
        # of the modalities, and of the fused view
        self.item_graphs = [graph.to(self.device) for graph in (*graphs, union(graphs))]

        size: int = config["embedding_size"]
        self.add_id_embeddings(size, nn.init.xavier_uniform_)
        self.add_content(features, size, trainable=config["train_features"])
        self.queries = nn.ModuleList(
            nn.Sequential(nn.Linear(size, size), nn.Tanh(), nn.Linear(size, size, bias=False)) for _ in features
        )
        # the last one of each belongs to the fused view; a filter's last axis holds real and imaginary parts
        n_views = len(features) + 1
        self.filters = nn.Parameter(torch.randn(n_views, size // 2 + 1, 2))
        self.gates = nn.ModuleList(nn.Sequential(nn.Linear(size, size), nn.Sigmoid()) for _ in range(n_views))
        self.preferences = nn.ModuleList(nn.Sequential(nn.Linear(size, size), nn.Sigmoid()) for _ in range(n_views))
        # bool [n_users + n_items, M]: which modalities a node has; a user has all
        present = presence(features)
        present = torch.cat([present.new_ones(self.n_users, len(features)), present])
        self.register_buffer("present", present, persistent=False)

    def encode(self) -> Encoding:
        ids = self.item_embedding.weight
        behaviour = propagate_mean(self.graph, torch.cat([self.user_embedding.weight, ids]), self.n_layers)
        items = torch.stack(
            [
                propagate(graph, ids * gate(signal), self.n_item_layers)
                for graph, gate, signal in zip(self.item_graphs, self.gates, self._signals(), strict=True)
            ],
            dim=1,
        )
        present = self.present[self.n_users :]
        items = items * torch.cat([present, present.any(dim=1, keepdim=True)], dim=1)[..., None]
        users = (self.user_graph @ items.flatten(1)).view(self.n_users, *items.shape[1:])
        *views, fused = torch.cat([users, items]).unbind(1)
        attended = [query(fused).softmax(dim=1) * view for query, view in zip(self.queries, views, strict=True)]
        side = sum(
            self._dropped(preference(behaviour)) * view
            for preference, view in zip(self.preferences, (*attended, fused), strict=True)
        ) / (self.present.sum(dim=1, keepdim=True) + 1)
        nodes = behaviour + side
        parts = {"behaviour": behaviour, "side": side}
        return Encoding(nodes[: self.n_users], nodes[self.n_users :], parts)

    def _signals(self) -> list[Tensor]:
        """The denoised content of every modality, and the fused one, each ``[n_items, d]``."""
        # CUDA transforms few lengths in half precision, and products of spectra would leave its range
        with torch.autocast(self.filters.device.type, enabled=False):
            return self._filtered()

    def _filtered(self) -> list[Tensor]:
        size = self.item_embedding.embedding_dim
        filters = torch.view_as_complex(self.filters)
        product: Tensor | None = None
        spectra = []
        for content, projection in zip(self.content, self.projections, strict=True):
            spectrum = torch.fft.rfft(projection(content.values), dim=1, norm="ortho")
            spectra.append(spectrum)
            factor = spectrum.where(content.present[:, None], torch.ones_like(spectrum[:1, :1]))
            product = factor if product is None else product * factor
        assert product is not None
        return [
            torch.fft.irfft(spectrum * kernel, n=size, dim=1, norm="ortho")
            for spectrum, kernel in zip((*spectra, product), filters, strict=True)
        ]

    def _dropped(self, preference: Tensor) -> Tensor:
        return seeded_dropout(preference, self.dropout if self.training else 0.0, self.generator("preferences"))

    def auxiliary_loss(self, encoding: Encoding, interaction: Interaction) -> Tensor | float:
        if not self.cl_weight:
            return 0.0
        user, item = interaction[self.USER_ID], interaction[self.ITEM_ID] + self.n_users
        item = item[self.present[item].any(dim=1)]
        side, behaviour = encoding.parts["side"], encoding.parts["behaviour"]
        return self.cl_weight * sum(
            info_nce(side.index_select(0, nodes), behaviour.index_select(0, nodes), self.temperature)
            for nodes in (user, item)
        )

    def regulariser(self, encoding: Encoding, interaction: Interaction) -> Tensor:
        rows = self.batch_rows(encoding.users, encoding.items, interaction)
        return self.reg_weight * 0.5 * sum(row.square().sum() for row in rows) / self.batch_size
