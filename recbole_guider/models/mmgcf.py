"""MMGCF: LightGCN whose item vectors are fused with projected content after the propagation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from pydantic import Field
from recbole.data.interaction import Interaction
from torch import Tensor, nn
from torch.nn.functional import normalize

from recbole_guider.graph import propagate_mean
from recbole_guider.losses import l2_penalty
from recbole_guider.models.base import Encoding
from recbole_guider.models.content import ContentRecommender, presence, required_content
from recbole_guider.models.pruned import PrunedGraphRecommender
from recbole_guider.utils.errors import GuiderError
from recbole_guider.utils.settings import Count, Natural, NonNegative, Settings, Share


class MMGCFParameters(Settings):
    """The parameters of :class:`MMGCF`."""

    embedding_size: Count = Field(default=64, description="the size of the user and item embeddings")
    feat_embed_dim: Count | None = Field(
        default=None, description="the size of projected content; null: embedding_size, which mean and sum need"
    )
    n_ui_layers: Natural = Field(
        default=2, description="the number of layers on the user-item graph. The authors try 1, 2, 3"
    )
    dropout: Share = Field(
        default=0.5,
        description="the share of the user-item edges that an epoch leaves out. The authors try 0.2, 0.5, 0.8",
    )
    fusion_mode: Literal["mean", "sum", "concat"] = Field(
        default="mean", description="how rows are fused: mean, sum, or concat (side by side through a linear map)"
    )
    weighting: Literal["equal", "alpha", "normalized"] = Field(
        default="equal",
        description="equal: the modalities with each other first, then with behaviour; alpha: all at once, by a "
        "learned share; normalized: all at once, at unit length",
    )
    reg_weight: NonNegative = Field(
        default=0.001, description="the weight of the L2 regulariser. The authors try 1e-1, 1e-2, 1e-3, 1e-4"
    )


class MMGCF(ContentRecommender, PrunedGraphRecommender):
    r"""MMGCF, for any number M of modalities.

    E_U, E_I are the LightGCN means over ``n_ui_layers`` layers of the user-item graph, of which every training epoch
    leaves out a share ``dropout``, an edge being kept with probability proportional to ``1 / sqrt(d_u d_i)``.
    F_m = W_m x^m + b_m is the content of modality m. Users keep U = E_U; items are fused, by ``weighting``:

    - ``equal``: ``V = fuse(E_I, fuse(F_1, ..., F_M))``; with one modality ``fuse(E_I, F_1)``;
    - ``alpha``: ``V = fuse(a E_I, (1 - a) F_1, ..., (1 - a) F_M)``, a = sig of a learned number;
    - ``normalized``: ``V = fuse(M E_I / |E_I|, F_1 / |F_1|, ..., F_M / |F_M|)``, row by row;

    where ``fuse`` is the mean or the sum of the rows, or a linear map of them side by side (``fusion_mode``). Scores
    are <U_u, V_i>, and the loss of a batch of B pairs is

        BPR + reg_weight / (2 B) * sum (|e_u|^2 + |e_i|^2 + |e_j|^2),

    e being ID embeddings before propagation. The content itself is not trained.

    An item without a row in some modality adds nothing there: no term of a sum, zeros side by side, and a mean is
    over what the item has.

    Source: Multimodal Graph Collaborative Filtering for Recommendation with Graph Convolutional Networks, UMAP 2026,
    and the authors' implementation in MMRec.

    Raises:
        GuiderError: the data set has no content, or a setting is none of the choices.
    """

    settings_class = MMGCFParameters

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        features = required_content(config, dataset)
        self.n_layers: int = config["n_ui_layers"]
        self.reg_weight: float = config["reg_weight"]
        self.fusion_mode: str = config["fusion_mode"]
        self.weighting: str = config["weighting"]
        size: int = config["embedding_size"]
        content_size: int = config["feat_embed_dim"] or size
        if self.fusion_mode != "concat" and content_size != size:
            raise GuiderError(
                f"feat_embed_dim is {content_size} and embedding_size {size}: fusion_mode {self.fusion_mode} adds "
                f"their rows, so they must be equal; concat takes any."
            )
        self.add_id_embeddings(size, nn.init.xavier_uniform_)
        self.add_content(features, content_size)
        self.register_buffer("present", presence(features).float(), persistent=False)
        if self.weighting == "alpha":
            self.alpha = nn.Parameter(torch.zeros(()))
        if self.fusion_mode == "concat":
            together = len(features) * content_size
            if self.weighting == "equal" and len(features) > 1:
                self.content_layer = nn.Linear(together, content_size)
                together = content_size
            self.item_layer = nn.Linear(size + together, size)

    def encode(self) -> Encoding:
        nodes = torch.cat([self.user_embedding.weight, self.item_embedding.weight])
        nodes = propagate_mean(self.current_graph, nodes, self.n_layers)
        return Encoding(nodes[: self.n_users], self._fused(nodes[self.n_users :]))

    def _fused(self, items: Tensor) -> Tensor:
        """The item matrix ``[n_items, d]``: behaviour ``items`` joined with the content."""
        content = [
            projection(part.values) for part, projection in zip(self.content, self.projections, strict=True)
        ]
        present, layer = self.present, getattr(self, "item_layer", None)
        if self.weighting == "equal":
            if len(content) > 1:
                content = [self._fuse(content, present, getattr(self, "content_layer", None))]
            present = present.amax(dim=1, keepdim=True)
        elif self.weighting == "alpha":
            share = self.alpha.sigmoid()
            items, content = share * items, [(1 - share) * rows for rows in content]
        else:
            items = len(content) * normalize(items, dim=1)
            content = [normalize(rows, dim=1) for rows in content]
        return self._fuse([items, *content], torch.cat([torch.ones_like(present[:, :1]), present], dim=1), layer)

    def _fuse(self, rows: Sequence[Tensor], present: Tensor, layer: Callable[[Tensor], Tensor] | None) -> Tensor:
        """``fuse`` of the parts ``[n_items, d]``; ``present``, ``[n_items, parts]``, is 1 where an item has one."""
        kept = [part * present[:, number, None] for number, part in enumerate(rows)]
        if layer is not None:
            return layer(torch.cat(kept, dim=1))
        total = torch.stack(kept).sum(dim=0)
        return total if self.fusion_mode == "sum" else total / present.sum(dim=1, keepdim=True).clamp_min(1.0)

    def regulariser(self, encoding: Encoding, interaction: Interaction) -> Tensor:
        rows = [self.user_embedding(interaction[self.USER_ID]), self.item_embedding(interaction[self.ITEM_ID])]
        if self.NEG_ITEM_ID in interaction:
            rows.append(self.item_embedding(interaction[self.NEG_ITEM_ID]))
        return self.reg_weight * l2_penalty(*rows)
