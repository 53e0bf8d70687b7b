"""VBPR: matrix factorisation with a second user vector that meets a projection of the items' content."""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field
from recbole.data.interaction import Interaction
from recbole.model.init import xavier_normal_initialization
from torch import Tensor, nn

from recbole_guider.models.base import Encoding
from recbole_guider.models.content import ContentRecommender, required_content
from recbole_guider.utils.settings import Count, NonNegative, Settings


class VBPRParameters(Settings):
    """The parameters of :class:`VBPR`."""

    embedding_size: Count = Field(
        default=64, description="the size of each of a user's two vectors, and of both parts of an item"
    )
    reg_weight: NonNegative = Field(
        default=2.0, description="the weight of the norms of the batch's rows; MMRec searches 2, 1, 0.1, ... 1e-5"
    )
    item_bias: bool = Field(
        default=False, description="whether items and their content have a bias each, as in the paper"
    )
    train_features: bool = Field(default=False, description="whether the raw features are parameters too")


class VBPR(ContentRecommender):
    r"""VBPR, for any number of modalities.

    With x_i the modalities of item i side by side,

        score(u, i) = <p_u, q_i> + <t_u, E x_i + c>   ( + b_i + <w, x_i> with ``item_bias``),

    and the loss of a batch of B is BPR plus ``reg_weight`` / B times the sum of the Euclidean norms of its user rows,
    its item rows and its sampled item rows, each a matrix of B rows of ``[p, t]`` or ``[q, E x + c]``.

    ``item_bias`` adds the two biases of the paper; MMRec's VBPR, whose defaults these are, has none. A bias of the user
    or of the whole would change no ranking. The paper regularises by squared norms.

    An item without a row in some modality has the mean of the modality in its place.

    Source: He and McAuley, VBPR: Visual Bayesian Personalized Ranking from Implicit Feedback, AAAI 2016.
    """

    settings_class = VBPRParameters
    content: Tensor

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        features = required_content(config, dataset)
        self.reg_weight: float = config["reg_weight"]
        size: int = config["embedding_size"]
        self.user_embedding = nn.Embedding(self.n_users, 2 * size)
        self.item_embedding = nn.Embedding(self.n_items, size)
        content = torch.cat([torch.from_numpy(part.values) for part in features.values()], dim=1)
        if config["train_features"]:
            self.content = nn.Parameter(content)
        else:
            # not in the state dict: the data set has it, and a checkpoint need not repeat it
            self.register_buffer("content", content, persistent=False)
        self.projection = nn.Linear(content.shape[1], size)
        self.apply(xavier_normal_initialization)
        self.item_bias: nn.Parameter | None = None
        self.content_bias: nn.Linear | None = None
        if config["item_bias"]:
            self.item_bias = nn.Parameter(torch.zeros(self.n_items, 1))
            self.content_bias = nn.Linear(content.shape[1], 1, bias=False)
            nn.init.zeros_(self.content_bias.weight)

    def encode(self) -> Encoding:
        return self._encoding(self.user_embedding.weight, self.item_embedding.weight, self.content, self.item_bias)

    def _encoding(self, users: Tensor, items: Tensor, content: Tensor, bias: Tensor | None) -> Encoding:
        """The matrices of some users and some items, from their rows of the parameters."""
        items = torch.cat([items, self.projection(content)], dim=1)
        if bias is None or self.content_bias is None:
            return Encoding(users, items)
        bias = bias + self.content_bias(content)
        # one more column, in which every user has a one, so that scores stay a product
        return Encoding(
            torch.cat([users, torch.ones_like(users[:, :1])], dim=1),
            torch.cat([items, bias], dim=1),
            {"users": users, "items": items},
        )

    def calculate_loss(self, interaction: Interaction) -> Tensor:
        # A loss needs the rows of its batch only, and projecting the content of all items is most of the work.
        fields = [name for name in (self.ITEM_ID, self.NEG_ITEM_ID) if name in interaction]
        users, user_place = torch.unique(interaction[self.USER_ID], return_inverse=True)
        items, item_place = torch.unique(torch.cat([interaction[name] for name in fields]), return_inverse=True)
        encoding = self._encoding(
            self.user_embedding.weight.index_select(0, users),
            self.item_embedding.weight.index_select(0, items),
            self.content.index_select(0, items),
            None if self.item_bias is None else self.item_bias.index_select(0, items),
        )
        places = dict(zip(fields, item_place.chunk(len(fields)), strict=True))
        return self.loss(encoding, Interaction({self.USER_ID: user_place, **places}))

    def regulariser(self, encoding: Encoding, interaction: Interaction) -> Tensor:
        users, items = encoding.parts.get("users", encoding.users), encoding.parts.get("items", encoding.items)
        rows = self.batch_rows(users, items, interaction)
        return self.reg_weight * sum(row.norm() for row in rows) / len(rows[0])
