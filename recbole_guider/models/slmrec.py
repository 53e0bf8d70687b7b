"""SLMRec: modalities side by side on the user-item graph, and self-supervision that ties them together."""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field
from recbole.data.interaction import Interaction
from torch import Tensor, nn
from torch.nn.functional import normalize

from recbole_guider.graph import bipartite_adjacency, propagate_mean
from recbole_guider.losses import soft_negative
from recbole_guider.models.base import Encoding
from recbole_guider.models.content import ContentRecommender, required_content
from recbole_guider.models.contrast import info_nce
from recbole_guider.models.layers import seeded_dropout
from recbole_guider.utils.settings import Count, Natural, NonNegative, Positive, Settings, Share


class SLMRecParameters(Settings):
    """The parameters of :class:`SLMRec`."""

    embedding_size: Count = Field(
        default=64, description="the size of the user and item embeddings and of every channel"
    )
    n_layers: Natural = Field(default=3, description="the number of layers on the user-item graph")
    temperature: Positive = Field(default=0.2, description="the temperature of the ranking loss")
    ssl_task: Literal["FAC", "FD", "FM", "FD+FM"] = Field(
        default="FAC",
        description="the self-supervised task: FAC (fine and coarse), FD (feature dropout), FM (feature masking) or "
        "FD+FM",
    )
    ssl_weight: NonNegative = Field(
        default=0.1, description="the weight of the self-supervised task; MMRec searches 0.01 to 1"
    )
    ssl_temperature: Positive = Field(
        default=0.2, description="the temperature of the self-supervised task; MMRec searches 0.1 to 1"
    )
    dropout: Share = Field(default=0.3, description="the share of the entries that FD drops after each layer")
    weight_decay: NonNegative = Field(
        default=0.0001,
        description="RecBole's: the weight of the squared parameters in the optimiser, as in the authors' code",
    )
    train_neg_sample_args: dict[str, Any] | None = Field(
        default=None, description="SLMRec learns from observed pairs alone"
    )


class SLMRec(ContentRecommender):
    r"""SLMRec, for any number of modalities; no item is sampled.

    Channels: the item ID embeddings, and in each modality m the projected content W_m x_i + b_m, x_i of unit length.
    Every channel is joined with the same user embeddings and passed over the user-item graph, LightGCN's mean over
    ``n_layers`` layers; U and V are linear maps of a node's channels side by side (one map for users, one for items).

    The loss of a batch of observed pairs is InfoNCE of users and their items, both of unit length, at temperature
    ``temperature``, and ``ssl_weight`` times one of these tasks at ``ssl_temperature`` tau:

    - ``FAC``, fine and coarse: h_0 is an item's ID channel, h_m = C_m h_{m-1}, and for every modality, in the order
      of the data set's configuration, h_m shall recognise F_m z_m, the item's channel m, among those of the batch, by
      - mean log softmax of <h_m, F_m z_m> / tau. The last of several modalities is compared in half the width.
    - ``FD``, feature dropout: two views of all channels with a share ``dropout`` of the entries dropped after each
      layer; the fused views of the batch's users, and of its items, shall recognise each other (InfoNCE).
    - ``FM``, feature masking: the same with one channel's items set to zero in each view, another one in each.
    - ``FD+FM``: both at once.

    MMRec keeps the authors' acoustic step between image and text, though nothing is compared there: its two linear
    maps without a function between them are one, C_m, here. Its feature tasks fail. It scores by the sigmoid of
    <U_u, V_i>, which ranks alike. One modality is compared in full width, as in the authors' code.

    An item without a row in some modality starts from the zero vector in that channel and takes no part in that
    modality's comparison.

    Source: Tao et al., Self-supervised Learning for Multimedia Recommendation, IEEE Transactions on Multimedia 2022.
    """

    settings_class = SLMRecParameters
    compares_sampled_items = False

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        features = required_content(config, dataset)
        self.n_layers: int = config["n_layers"]
        self.task: str = config["ssl_task"]
        self.ssl_weight: float = config["ssl_weight"]
        self.temperature: float = config["temperature"]
        self.ssl_temperature: float = config["ssl_temperature"]
        self.dropout: float = config["dropout"]
        self.generator("dropout", config["seed"])
        self.generator("masking", config["seed"] + 1)
        self.graph = bipartite_adjacency(*self.training_pairs(dataset)).to(self.device)

        size: int = config["embedding_size"]
        self.n_channels = 1 + len(features)
        self.add_id_embeddings(size)
        self.add_content(features, size)
        self.user_fusion = nn.Linear(self.n_channels * size, size)
        self.item_fusion = nn.Linear(self.n_channels * size, size)
        layers: list[nn.Module] = [*self.projections, self.user_fusion, self.item_fusion]
        if self.task == "FAC":
            widths = [size] * len(features)
            if len(features) > 1:
                widths[-1] = max(1, size // 2)
            self.coarse = nn.ModuleList(nn.Linear(size, width) for width in widths)
            self.fine = nn.ModuleList(nn.Linear(size, width) for width in widths)
            layers += [*self.coarse, *self.fine]
        for layer in (self.user_embedding, self.item_embedding, *layers):
            nn.init.xavier_uniform_(layer.weight)

    def encode(self) -> Encoding:
        channels = [self.item_embedding.weight]
        for content, projection in zip(self.content, self.projections, strict=True):
            channels.append(projection(normalize(content.values, dim=1)) * content.present.unsqueeze(1))
        # side by side: the graph is read once for all channels
        nodes = torch.cat([self.user_embedding.weight.repeat(1, self.n_channels), torch.cat(channels, dim=1)])
        views = propagate_mean(self.graph, nodes, self.n_layers)
        users, items = views[: self.n_users], views[self.n_users :]
        return Encoding(self.user_fusion(users), self.item_fusion(items), {"nodes": nodes, "items": items})

    def ranking_loss(self, encoding: Encoding, interaction: Interaction) -> Tensor:
        user = encoding.users.index_select(0, interaction[self.USER_ID])
        item = encoding.items.index_select(0, interaction[self.ITEM_ID])
        return info_nce(user, item, self.temperature)

    def auxiliary_loss(self, encoding: Encoding, interaction: Interaction) -> Tensor | float:
        if not self.ssl_weight:
            return 0.0
        task = self._fine_and_coarse if self.task == "FAC" else self._two_views
        return self.ssl_weight * task(encoding, interaction)

    def _fine_and_coarse(self, encoding: Encoding, interaction: Interaction) -> Tensor:
        items = interaction[self.ITEM_ID]
        joint, *channels = encoding.parts["items"].index_select(0, items).chunk(self.n_channels, dim=1)
        total = joint.new_zeros(())
        for channel, content, coarse, fine in zip(channels, self.content, self.coarse, self.fine, strict=True):
            joint = coarse(joint)
            present = content.present[items]
            total = total + _recognition(joint[present], fine(channel[present]), self.ssl_temperature)
        return total

    def _two_views(self, encoding: Encoding, interaction: Interaction) -> Tensor:
        masked: list[int | None] = [None, None]
        if "FM" in self.task:
            masked = torch.randperm(self.n_channels, generator=self.generator("masking"))[:2].tolist()
        users, items = [], []
        for channel in masked:
            view = self._view(encoding.parts["nodes"], channel)
            users.append(self.user_fusion(view[: self.n_users].index_select(0, interaction[self.USER_ID])))
            items.append(self.item_fusion(view[self.n_users :].index_select(0, interaction[self.ITEM_ID])))
        (user, other_user), (item, other_item) = users, items
        return info_nce(user, other_user, self.ssl_temperature) + info_nce(item, other_item, self.ssl_temperature)

    def _view(self, nodes: Tensor, masked: int | None) -> Tensor:
        """All channels [N, channels * size] after the graph, with one channel's items masked, and with dropout."""
        if masked is not None:
            size = nodes.shape[1] // self.n_channels
            kept = torch.ones_like(nodes[:, :1]).repeat(1, self.n_channels)
            kept[self.n_users :, masked] = 0.0
            nodes = nodes * kept.repeat_interleave(size, dim=1)
        if "FD" not in self.task:
            return propagate_mean(self.graph, nodes, self.n_layers)
        layer = total = nodes
        for _ in range(self.n_layers):
            layer = seeded_dropout(self.graph @ layer, self.dropout, self.generator("dropout"))
            total = total + layer
        return total / (self.n_layers + 1)


def _recognition(anchors: Tensor, others: Tensor, temperature: float) -> Tensor:
    """- mean log softmax of <a_b, o_c> / tau over c, at c = b; a, o [B, d] of any length; 0 for no rows."""
    if not len(anchors):
        return anchors.sum()
    own = (anchors * others).sum(dim=1)
    return (soft_negative(anchors, others, temperature=temperature) - own).sum() / (temperature * len(anchors))
