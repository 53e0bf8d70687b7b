"""MMGCN: one graph network per modality, tied together by the ID embeddings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import Field
from recbole.data.interaction import Interaction
from torch import Tensor, nn
from torch.nn.functional import leaky_relu, linear, normalize

from recbole_guider.graph import SparseOperator, mean_adjacency
from recbole_guider.models.base import Encoding
from recbole_guider.models.content import ContentRecommender, ModalityContent, required_content
from recbole_guider.utils.errors import GuiderError
from recbole_guider.utils.settings import Count, NonNegative, Settings


class MMGCNParameters(Settings):
    """The parameters of :class:`MMGCN`."""

    embedding_size: Count = Field(default=64, description="the size of the ID embeddings and of every layer")
    n_layers: Count = Field(default=3, description="the number of layers of each modality's network")
    latent_size: Count | dict[str, Count | None] | None = Field(
        default=256,
        description="a modality wider than this is projected to this width; or modality -> width, null: as it is",
    )
    combination: Literal["concatenate", "add"] = Field(
        default="concatenate", description="how a layer joins messages and a node's own part: concatenate or add"
    )
    reg_weight: NonNegative = Field(
        default=0.0001,
        description="the weight of the squared embeddings and preferences; MMRec searches 0 and 1e-5 to 0.1",
    )


class MMGCN(ContentRecommender):
    r"""MMGCN, for any number of modalities.

    In each modality m a node starts from ``x^0``: a user from a preference of its own, an item from its content,
    either of unit length. With A the mean over neighbours, E the ID embeddings shared by all modalities and s =
    LeakyReLU, layer l (of ``n_layers``) computes

        h = s(A x W_l),   e = s(L_l x) + E,   x^{l+1} = s(G_l [h || e])   or, with ``combination: add``,   s(G_l h + e);

    U and V are the means of the last layers over the modalities. The loss of a batch is

        - mean log sig(<U_u, V_i> - <U_u, V_j>)
        + reg_weight * ( mean E_u^2 + mean over i and j of E^2 + sum_m mean P_m^2 ),

    P_m being the preferences in modality m, and means running over entries.

    Two things differ from the authors' code and MMRec's: there the preferences and the ID embeddings are never handed
    to the optimiser, and only the first modality's preferences are regularised. Here all are parameters and all are
    regularised, as in the paper.

    An item without a row in some modality starts from the zero vector there: its neighbours get nothing of its
    content, and it still gets messages and its ID embedding.

    Source: Wei et al., MMGCN: Multi-modal Graph Convolution Network for Personalized Recommendation of Micro-video,
    ACM Multimedia 2019.
    """

    settings_class = MMGCNParameters

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        features = required_content(config, dataset)
        self.reg_weight: float = config["reg_weight"]
        n_layers: int = config["n_layers"]
        combination: str = config["combination"]
        self.graph = mean_adjacency(*self.training_pairs(dataset)).to(self.device)

        size: int = config["embedding_size"]
        self.add_id_embeddings(size)
        self.add_content(features)
        widths = _latent_sizes(config["latent_size"], {name: part.dim for name, part in features.items()})
        self.networks = nn.ModuleList(
            _ModalityNetwork(self.n_users, part.dim, widths[name], size, n_layers, combination == "concatenate")
            for name, part in features.items()
        )
        for embedding in (self.user_embedding, self.item_embedding):
            nn.init.xavier_normal_(embedding.weight)

    def encode(self) -> Encoding:
        identity = torch.cat([self.user_embedding.weight, self.item_embedding.weight])
        views = [
            network(content, identity, self.graph)
            for network, content in zip(self.networks, self.content, strict=True)
        ]
        nodes = torch.stack(views).mean(dim=0) if len(views) > 1 else views[0]
        return Encoding(nodes[: self.n_users], nodes[self.n_users :])

    def regulariser(self, encoding: Encoding, interaction: Interaction) -> Tensor:
        items = interaction[self.ITEM_ID]
        if self.NEG_ITEM_ID in interaction:
            items = torch.cat([items, interaction[self.NEG_ITEM_ID]])
        total = self.user_embedding(interaction[self.USER_ID]).square().mean()
        total = total + self.item_embedding(items).square().mean()
        for network in self.networks:
            total = total + network.preference[1:].square().mean()  # row 0 is padding
        return self.reg_weight * total


class _ModalityNetwork(nn.Module):
    """The graph network of one modality, [N, size] from content [n_items, dim] and ID embeddings [N, size].

    Args:
        n_users: number of users.
        dim: width of the content.
        width: width that it is projected to; None leaves it as it is.
        size: width of the ID embeddings and of every layer.
        n_layers: number of layers.
        concatenate: whether a layer joins the two parts of its input side by side, or by a sum.
    """

    def __init__(self, n_users: int, dim: int, width: int | None, size: int, n_layers: int, concatenate: bool) -> None:
        super().__init__()
        self.concatenate = concatenate
        self.projection = nn.Identity() if width is None else nn.Linear(dim, width)
        first = dim if width is None else width
        self.preference = nn.Parameter(torch.empty(n_users, first))
        inputs = [first] + [size] * (n_layers - 1)
        self.messages = nn.ModuleList(nn.Linear(each, each, bias=False) for each in inputs)
        self.own = nn.ModuleList(nn.Linear(each, size) for each in inputs)
        self.joint = nn.ModuleList(nn.Linear(each + size * concatenate, size) for each in inputs)
        nn.init.xavier_normal_(self.preference)
        for layer in (*self.messages, *self.own, *self.joint):
            nn.init.xavier_normal_(layer.weight)

    def forward(self, content: ModalityContent, identity: Tensor, graph: SparseOperator) -> Tensor:
        items = self.projection(content.values) * content.present.unsqueeze(1)
        x = normalize(torch.cat([self.preference, items]), dim=1)
        for messages, own, joint in zip(self.messages, self.own, self.joint, strict=True):
            gathered = leaky_relu(graph @ messages(x))
            kept = leaky_relu(own(x)) + identity
            if self.concatenate:
                # G [h || e] without building [h || e]
                of_messages, of_own = joint.weight.split([gathered.shape[1], kept.shape[1]], dim=1)
                x = leaky_relu(linear(gathered, of_messages) + linear(kept, of_own, joint.bias))
            else:
                x = leaky_relu(joint(gathered) + kept)
        return x


def _latent_sizes(given: Any, dims: Mapping[str, int]) -> dict[str, int | None]:
    """The width that each modality is projected to; None for one that stays as it is."""
    if isinstance(given, Mapping):
        unknown = set(given) - set(dims)
        if unknown:
            raise GuiderError(
                f"latent_size names {', '.join(sorted(map(str, unknown)))}: the data set has {', '.join(dims)}."
            )
        sizes = {name: given.get(name) for name in dims}
    else:
        sizes = {name: given if given is not None and dim > given else None for name, dim in dims.items()}
    return sizes
