"""LGMRec: behaviour and content of a user's own neighbourhood, and hyperedges that connect everybody."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import torch
from pydantic import Field
from recbole.data.interaction import Interaction
from torch import Tensor, nn
from torch.nn.functional import normalize

from recbole_guider.graph import SparseOperator, bipartite_adjacency, propagate, propagate_mean
from recbole_guider.models.base import Encoding
from recbole_guider.models.content import ContentRecommender, presence, required_content
from recbole_guider.models.contrast import info_nce
from recbole_guider.models.layers import seeded_dropout
from recbole_guider.utils.settings import Count, Natural, NonNegative, Positive, Settings, Share


class LGMRecParameters(Settings):
    """The parameters of :class:`LGMRec`."""

    embedding_size: Count = Field(default=64, description="the size of the user and item embeddings")
    n_ui_layers: Natural = Field(
        default=2, description="the number of layers on the user-item graph for the ID embeddings"
    )
    n_mm_layers: Natural = Field(default=2, description="the number of layers on the user-item graph for the content")
    n_hyper_layers: Count = Field(
        default=1, description="the number of layers on the hypergraphs; the authors use 2 on Clothing"
    )
    n_hyperedges: Count = Field(
        default=4, description="the number of hyperedges of each modality; the authors use 64 on Clothing"
    )
    dropout: Share = Field(
        default=0.5,
        description="the share of the degrees of membership that a batch leaves out; the authors: Sports 0.6, "
        "Clothing 0.8",
    )
    temperature: Positive = Field(
        default=0.2,
        description="what the logits of the memberships and the cosines of the contrastive loss are divided by",
    )
    alpha: NonNegative = Field(
        default=0.3, description="the weight of the hypergraphs' embeddings; the authors: Sports 0.6, Clothing 0.2"
    )
    cl_weight: NonNegative = Field(default=0.0001, description="the weight of the contrastive loss")
    reg_weight: NonNegative = Field(default=1e-06, description="the weight of the norms of the batch's rows")


class LGMRec(ContentRecommender):
    r"""LGMRec, for any number of modalities.

    With A the normalised user-item graph, R the user-item matrix of zeros and ones and d_u a user's number of items:

    - behaviour, E: the LightGCN mean of the ID embeddings over ``n_ui_layers`` layers of A;
    - content, C_m = A^{n_mm_layers} [ D_U^-1 R X_m W_m ; X_m W_m ]: a user starts from the mean of the own items;
    - hyperedges: item i belongs to the ``n_hyperedges`` of modality m to the degrees ``H_m = softmax((X_m V_m + g) /
      temperature)``, a user to ``H_m^U = softmax((R X_m V_m + g) / temperature)``, where g is Gumbel noise, new in
      every batch, and a share ``dropout`` of the degrees is dropped. In each of ``n_hyper_layers`` layers the
      hyperedges gather from the items, ``L = H_m^T Q``, and give to items and users, ``Q = H_m L``, ``P = H_m^U L``; at
      first Q is the items' part of E. G_m = [P; Q].

    With n(.) bringing rows to unit length,

        [U; V] = E + sum_m n(C_m) + alpha * n(sum_m G_m),   score(u, i) = <U_u, V_i>.

    The loss of a batch is BPR, plus ``cl_weight`` times the InfoNCE terms between rows of G_m and G_m', summed over
    pairs of modalities and over the batch's users and items, all users or all items being the candidates, plus
    ``reg_weight`` times the Frobenius norms of the batch's user, item and sampled item rows, divided by the size of the
    batch.

    An item without a row in some modality belongs to none of its hyperedges, has no content of its own there (only what
    its users bring), is not counted in a user's mean, and takes no part in the contrast. A user none of whose items has
    the modality belongs to all its hyperedges alike.

    In evaluation there is neither noise nor dropout. MMRec's and the authors' code draws noise there too, so that their
    scores differ from call to call.

    Source: Guo et al., LGMRec: Local and Global Graph Learning for Multimodal Recommendation, AAAI 2024.
    """

    settings_class = LGMRecParameters
    owned: Tensor

    auxiliary_loss_samples = False

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        features = required_content(config, dataset)
        self.n_item_layers: int = config["n_mm_layers"]
        self.n_layers: int = config["n_ui_layers"]
        self.n_hyper_layers: int = config["n_hyper_layers"]
        self.dropout: float = config["dropout"]
        self.temperature: float = config["temperature"]
        self.alpha: float = config["alpha"]
        self.cl_weight: float = config["cl_weight"]
        self.reg_weight: float = config["reg_weight"]
        self.size: int = config["embedding_size"]
        self.generator("hyperedges", config["seed"])

        self.graph = bipartite_adjacency(*self.training_pairs(dataset)).to(self.device)
        profiles = dataset.inter_matrix(form="csr")
        profiles.data = np.ones_like(profiles.data)
        self.profiles = SparseOperator.from_scipy(profiles).to(self.device)

        self.add_id_embeddings(self.size)
        self.add_content(features)
        self.projections = nn.ParameterList(torch.empty(part.dim, self.size) for part in features.values())
        self.hyperedges = nn.ParameterList(torch.empty(part.dim, config["n_hyperedges"]) for part in features.values())
        for weight in self.parameters():
            nn.init.xavier_uniform_(weight)
        # float [n_users, M]: how many of a user's items have each modality
        owned = profiles @ presence(features).numpy()
        self.register_buffer("owned", torch.from_numpy(owned.astype(np.float32)), persistent=False)

    def encode(self) -> Encoding:
        n_modalities = len(self.content)
        nodes = torch.cat([self.user_embedding.weight, self.item_embedding.weight])
        behaviour = propagate_mean(self.graph, nodes, self.n_layers)
        # content and logits of all modalities together: one product carries both to the users
        items = torch.stack(
            [
                (content.values @ torch.cat([projection, hyperedges], dim=1)) * content.present[:, None]
                for content, projection, hyperedges in zip(self.content, self.projections, self.hyperedges, strict=True)
            ],
            dim=1,
        )
        users = (self.profiles @ items.flatten(1)).view(self.n_users, n_modalities, -1)
        means = users[..., : self.size] / (self.owned[..., None] + 1e-7)
        local = torch.cat([means, items[..., : self.size]]).flatten(1)
        local = propagate(self.graph, local, self.n_item_layers).view(-1, n_modalities, self.size)
        degrees = self._degrees(users[..., self.size :], items[..., self.size :])
        shared = torch.stack([self._shared(degrees[:, place], behaviour) for place in range(n_modalities)])
        nodes = behaviour + normalize(local, dim=2).sum(dim=1) + self.alpha * normalize(shared.sum(dim=0), dim=1)
        return Encoding(nodes[: self.n_users], nodes[self.n_users :], {"shared": shared})

    def _degrees(self, user_logits: Tensor, item_logits: Tensor) -> Tensor:
        """How far every node belongs to every hyperedge of every modality, ``[n_users + n_items, M, n_hyperedges]``."""
        logits = torch.cat([user_logits, item_logits])
        if self.training:
            logits = logits + self._gumbel(logits.shape).to(logits.device)
        degrees = (logits / self.temperature).softmax(dim=2)
        present = torch.stack([content.present for content in self.content], dim=1)
        degrees = torch.cat([degrees[: self.n_users], degrees[self.n_users :] * present[..., None]])
        return seeded_dropout(degrees, self.dropout if self.training else 0.0, self.generator("hyperedges"))

    def _gumbel(self, shape: torch.Size) -> Tensor:
        return torch.empty(shape).exponential_(generator=self.generator("hyperedges")).log_().neg_()

    def _shared(self, degrees: Tensor, behaviour: Tensor) -> Tensor:
        """G of one modality, ``[n_users + n_items, d]``."""
        of_users, of_items = degrees[: self.n_users], degrees[self.n_users :]
        items = behaviour[self.n_users :]
        for _ in range(self.n_hyper_layers):
            gathered = of_items.T @ items
            items = of_items @ gathered
        return torch.cat([of_users @ gathered, items])

    def auxiliary_loss(self, encoding: Encoding, interaction: Interaction) -> Tensor | float:
        total: Tensor | float = 0.0
        if not self.cl_weight:
            return total
        # a batch repeats users and items: each is compared with all candidates once
        user, user_counts = interaction[self.USER_ID].unique(return_counts=True)
        item, item_counts = interaction[self.ITEM_ID].unique(return_counts=True)
        users, items = encoding.parts["shared"].split([self.n_users, self.n_items], dim=1)

        def contrast(view: Tensor, other: Tensor, candidates: Tensor, ids: Tensor, counts: Tensor) -> Tensor:
            rows = view.index_select(0, ids), other.index_select(0, ids)
            return counts.sum() * info_nce(*rows, self.temperature, candidates, counts)

        for one, other in combinations(range(len(self.content)), 2):
            total = total + contrast(users[one], users[other], users[other][1:], user, user_counts)
            present = self.content[other].present
            both = self.content[one].present[item] & present[item]
            candidates = items[other][present]
            total = total + contrast(items[one], items[other], candidates, item[both], item_counts[both])
        return self.cl_weight * total

    def regulariser(self, encoding: Encoding, interaction: Interaction) -> Tensor:
        rows = self.batch_rows(encoding.users, encoding.items, interaction)
        return self.reg_weight * sum(row.norm() for row in rows) / len(rows[0])
