"""DA-MRS: item graphs in which modalities agree, denoised BPR, and content aligned with behaviour."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from recbole.data.interaction import Interaction
from torch import Tensor, nn
from torch.nn.functional import logsigmoid, normalize
from torch.utils.checkpoint import checkpoint

from recbole_guider.data.features import require_content
from recbole_guider.errors import GuiderError, above_zero
from recbole_guider.graph import (
    agreeing_knn_graphs,
    bipartite_adjacency,
    co_occurrence,
    degree_normalised,
    propagate,
    propagate_mean,
)
from recbole_guider.losses import soft_negative
from recbole_guider.model.base import Encoding, FactorisedRecommender

# Similarities of anchors to all items that one block holds, for each view.
_BLOCK_ENTRIES = 2**22
# What N1 leaves to all others, at least, as a logarithm.
_LEAST_REST = -1e-6
# Added to shares before the logarithm, as in the authors' code.
_SHARE_EPSILON = 1e-9


class DAMRS(FactorisedRecommender):
    r"""DA-MRS on LightGCN, for any number of modalities.

    An item has one view for each modality and one of behaviour, ``h_v = S_v^{n_mm_layers} Q``, Q being the item ID
    embeddings. S_m links an item to its ``knn_k`` most similar items in modality m, without the edges that another
    modality contradicts (:func:`~recbole_guider.graph.agreeing_knn_graphs`). The behaviour graph links an item to
    itself and to the ``behaviour_knn_k`` items with which it shares the most users, at least ``behaviour_minimum``; it
    is binary and normalised like the others. With E the LightGCN mean over ``n_ui_layers`` layers,

        U = E_U,   c_i = mean_v h_v(i),   V = E_I + c,   score(u, i) = <U_u, V_i>.

    The loss of a batch has three terms.

    Denoised BPR: with y the scores, ``z_v(u, i) = sig(<U_u, h_v(i) / |h_v(i)|>)`` and nbar the mean of z over sampled
    items j and views,

        - mean[ w+ log sig(y_ui - y_uj) + w- log sig(y_uj - y_ui) ],
        w+ = mean_v z_v(u, i) * exp(-2 var_v z_v(u, i)),
        w- = max(0, max_v z_v(u, i) - nbar) where mean_v z_v(u, i) < nbar, else 0,

    the weights at most 1 and held fixed, the variance that of a sample.

    Neighbours (``neighbour_weight``): p_v(i, .) is the softmax over the items of the cosines of h_v. For an item i of
    the batch, observed or sampled, and a view a, the ``neighbours`` items with the largest ``sum_v p_v + p_a`` are N1,
    those with the largest p_a among the others are N2, and with ``e_ik = exp(cos(h_a(i), h_a(k)) / temperature)``

        - log( sum over N1 of e / sum over all of e ) - log( sum over N2 of e / sum over all but N1 of e ),

    averaged over the items and the views. The sums over all items are computed in blocks, and again in the backward
    pass, so that no [items, items] matrix is kept.

    Alignment (``kl_weight``): for all users and items of the batch, the mean of ``KL(p || q) + KL(q || p) = (p - q)
    (logit p - logit q)`` with ``p = sig(<U_u, E_i / |E_i|>)``, ``q = sig(<U_u, c_i / |c_i|>)``.

    Settings (properties/model/DAMRS.yaml): ``embedding_size``, ``knn_k``, ``behaviour_knn_k``, ``behaviour_minimum``,
    ``n_mm_layers``, ``n_ui_layers``, ``neighbours``, ``temperature``, ``neighbour_weight``, ``kl_weight``.

    An item without a row in some modality has no view there: means, variances and maxima run over the views that it
    has, and in that view it is neither an anchor nor anybody's neighbour. In a view of fewer than 2 ``neighbours``
    items, N1 and N2 are smaller.

    Source: Xv et al., Improving Multi-modal Recommender Systems by Denoising and Aligning Multi-modal Content and User
    Feedback, KDD 2024; numbers of the authors' code.
    """

    has: Tensor

    auxiliary_loss_samples = False

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        features = dataset.item_features
        require_content(config, features, behaviour_suffices=False)
        self.n_item_layers: int = config["n_mm_layers"]
        self.n_layers: int = config["n_ui_layers"]
        self.neighbours: int = config["neighbours"]
        self.temperature: float = config["temperature"]
        self.neighbour_weight: float = config["neighbour_weight"]
        self.kl_weight: float = config["kl_weight"]
        for name in ("behaviour_knn_k", "behaviour_minimum", "neighbours"):
            if config[name] < 1:
                raise GuiderError(f"{name} is {config[name]}: DAMRS needs 1 or more.")
        above_zero("temperature", self.temperature, "DAMRS divides cosines by it")

        users, items, *_ = pairs = self.training_pairs(dataset)
        self.graph = bipartite_adjacency(*pairs).to(self.device)
        common = co_occurrence(
            items, users, self.n_items, self.n_users, config["behaviour_knn_k"], config["behaviour_minimum"]
        )
        common.data[:] = 1.0
        itself = sp.diags(np.arange(self.n_items, dtype=np.float32) > 0, dtype=np.float32)
        content = agreeing_knn_graphs(
            [part.values for part in features.values()], config["knn_k"], [part.present for part in features.values()]
        )
        # of the modalities, and of behaviour
        self.item_graphs = [graph.to(self.device) for graph in (*content, degree_normalised(common + itself))]
        # bool [views, n_items]
        real = torch.arange(self.n_items) > 0
        has = torch.stack([*(torch.from_numpy(part.present) for part in features.values()), real])
        self.register_buffer("has", has, persistent=False)
        self._members = [int(view.sum()) for view in has]

        size: int = config["embedding_size"]
        self.user_embedding = nn.Embedding(self.n_users, size)
        self.item_embedding = nn.Embedding(self.n_items, size)
        for embedding in (self.user_embedding, self.item_embedding):
            nn.init.xavier_uniform_(embedding.weight)

    def encode(self) -> Encoding:
        ids = self.item_embedding.weight
        nodes = propagate_mean(self.graph, torch.cat([self.user_embedding.weight, ids]), self.n_layers)
        users, items = nodes[: self.n_users], nodes[self.n_users :]
        views = torch.stack([propagate(graph, ids, self.n_item_layers) for graph in self.item_graphs])
        views = views * self.has[..., None]
        content = views.sum(dim=0) / self.has.sum(dim=0).clamp_min(1)[:, None]
        parts = {"behaviour": items, "content": content, "views": normalize(views, dim=2)}
        return Encoding(users, items + content, parts)

    def ranking_loss(self, encoding: Encoding, interaction: Interaction) -> Tensor:
        user, item, other = self.batch_rows(encoding.users, encoding.items, interaction)
        trusted, flipped = self._weights(encoding, interaction)
        margin = (user * item).sum(dim=1) - (user * other).sum(dim=1)
        return -(trusted * logsigmoid(margin) + flipped * logsigmoid(-margin)).mean()

    @torch.no_grad()
    def _weights(self, encoding: Encoding, interaction: Interaction) -> tuple[Tensor, Tensor]:
        """w+ and w- of the batch's pairs, ``[B]`` each."""
        user, views = encoding.users[interaction[self.USER_ID]], encoding.parts["views"]
        item, other = interaction[self.ITEM_ID], interaction[self.NEG_ITEM_ID]
        observed, sampled = ((views[:, ids] * user).sum(dim=2).sigmoid() for ids in (item, other))
        has, has_sampled = self.has[:, item], self.has[:, other]
        count = has.sum(dim=0)
        mean = (observed * has).sum(dim=0) / count
        spread = ((observed - mean).square() * has).sum(dim=0) / (count - 1).clamp_min(1)
        usual = (sampled * has_sampled).sum() / has_sampled.sum()
        trusted = (mean * (-2.0 * spread).exp()).clamp(0.0, 1.0)
        flipped = ((observed * has).amax(dim=0) - usual).clamp(0.0, 1.0) * (mean < usual)
        return trusted, flipped

    def auxiliary_loss(self, encoding: Encoding, interaction: Interaction) -> Tensor | float:
        items = interaction[self.ITEM_ID]
        if self.NEG_ITEM_ID in interaction:
            items = torch.cat([items, interaction[self.NEG_ITEM_ID]])
        items = torch.unique(items)
        total: Tensor | float = 0.0
        if self.neighbour_weight:
            total = total + self.neighbour_weight * self._neighbour_loss(encoding.parts["views"], items)
        if self.kl_weight:
            users = encoding.users[torch.unique(interaction[self.USER_ID])]
            behaviour, content = (
                users @ normalize(encoding.parts[name].index_select(0, items), dim=1).T
                for name in ("behaviour", "content")
            )
            divergence = (behaviour.sigmoid() - content.sigmoid()) * (behaviour - content)
            total = total + self.kl_weight * divergence.mean()
        return total

    def _neighbour_loss(self, views: Tensor, items: Tensor) -> Tensor:
        """The neighbours' term for ``views`` of unit rows ``[V, n_items, d]``, averaged over ``items`` and views."""
        losses = []
        found = self._pseudo_neighbours(views.detach(), items)
        for view, has, (in_all, in_one) in zip(views, self.has, found, strict=True):
            present = has[items]
            if not in_all.shape[1] or not present.any():
                losses.append(view.sum() * 0.0)
                continue
            anchors = view.index_select(0, items[present])
            candidates = view[has]
            everything = torch.cat(
                [
                    # kept for the backward pass are the anchors, not their similarities to all items
                    checkpoint(_log_sum_exp, block, candidates, self.temperature, use_reentrant=False)
                    for block in anchors.split(self._block)
                ]
            )
            first, second = (
                torch.einsum("bd,bkd->bk", anchors, view[nearest[present]]).div(self.temperature).logsumexp(dim=1)
                for nearest in (in_all, in_one)
            )
            share = (first - everything).exp()
            # rounding may put the sum over N1 above that over all
            rest = -(first - everything).clamp_max(_LEAST_REST).expm1()
            other_share = ((second - everything).exp() / rest).clamp_max(1.0)
            losses.append(-((share + _SHARE_EPSILON).log() + (other_share + _SHARE_EPSILON).log()).mean())
        return torch.stack(losses).mean()

    @property
    def _block(self) -> int:
        return max(1, _BLOCK_ENTRIES // self.n_items)

    @torch.no_grad()
    def _pseudo_neighbours(self, views: Tensor, items: Tensor) -> list[tuple[Tensor, Tensor]]:
        """N1 and N2 of ``items`` in every view, ids of ``[len(items), at most neighbours]``.

        Rows of items that have no view are meaningless.
        """
        blocks = []
        for anchors in items.split(self._block):
            shares = []
            for view, has in zip(views, self.has, strict=True):
                with torch.autocast(view.device.type, enabled=False):  # half precision makes ties
                    share = (view[anchors].float() @ view.T.float()).exp_().mul_(has)
                # an anchor without the view says nothing about it
                total = share.sum(dim=1).clamp_min(torch.finfo(share.dtype).tiny)
                shares.append(share.mul_((has[anchors] / total)[:, None]))
            joint = torch.stack(shares).sum(dim=0)
            found = []
            for share, has, members in zip(shares, self.has, self._members, strict=True):
                k = min(self.neighbours, members // 2)
                in_all = (joint + share).masked_fill_(~has, -1.0).topk(k, dim=1).indices
                found.append((in_all, share.scatter_(1, in_all, -1.0).topk(k, dim=1).indices))
            blocks.append(found)
        return [
            (torch.cat([one for one, _ in of_view]), torch.cat([other for _, other in of_view]))
            for of_view in zip(*blocks, strict=True)
        ]


def _log_sum_exp(anchors: Tensor, candidates: Tensor, temperature: float) -> Tensor:
    """log of the sum over candidates of exp(<anchor, candidate> / temperature), ``[B]``."""
    return soft_negative(anchors, candidates, temperature=temperature) / temperature
