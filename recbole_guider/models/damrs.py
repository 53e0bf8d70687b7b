"""DA-MRS: item graphs in which modalities agree, denoised BPR, and content aligned with behaviour."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from pydantic import Field
from recbole.data.interaction import Interaction
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import logsigmoid, normalize

from recbole_guider.graph import (
    agreeing_knn_graphs,
    bipartite_adjacency,
    co_occurrence,
    degree_normalised,
    propagate,
    propagate_mean,
)
from recbole_guider.models.base import Encoding
from recbole_guider.models.content import ContentRecommender, required_content
from recbole_guider.utils.settings import Count, Natural, NonNegative, Positive, Settings

# Similarities of anchors to all items that one block holds, for each view.
_BLOCK_ENTRIES = 2**22
# What N1 leaves to all others, at least, as a logarithm.
_LEAST_REST = -1e-6
# Added to shares before the logarithm, as in the authors' code.
_SHARE_EPSILON = 1e-9


class DAMRSParameters(Settings):
    """The parameters of :class:`DAMRS`."""

    embedding_size: Count = Field(default=64, description="the size of the user and item embeddings")
    knn_k: Count = Field(
        default=10, description="the largest number of nearest items that an item is linked to, in each modality"
    )
    behaviour_knn_k: Count = Field(
        default=2, description="the number of items that an item is linked to, by common users"
    )
    behaviour_minimum: Count = Field(
        default=2, description="the smallest number of users that items linked so have in common"
    )
    n_mm_layers: Natural = Field(default=1, description="the number of layers on the item graphs")
    n_ui_layers: Natural = Field(default=2, description="the number of layers on the user-item graph")
    neighbours: Count = Field(default=10, description="the number of pseudo neighbours of each of the two kinds")
    temperature: Positive = Field(default=0.2, description="what the cosines of the neighbours' loss are divided by")
    neighbour_weight: NonNegative = Field(default=0.001, description="the weight of the neighbours' loss")
    kl_weight: NonNegative = Field(
        default=1.0, description="the weight of the divergence between what behaviour and content say"
    )


class DAMRS(ContentRecommender):
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

    averaged over the items and the views. It is computed in blocks together with its gradient, so that no [items,
    items] matrix is kept.

    Alignment (``kl_weight``): for all users and items of the batch, the mean of ``KL(p || q) + KL(q || p) = (p - q)
    (logit p - logit q)`` with ``p = sig(<U_u, E_i / |E_i|>)``, ``q = sig(<U_u, c_i / |c_i|>)``.

    An item without a row in some modality has no view there: means, variances and maxima run over the views that it
    has, and in that view it is neither an anchor nor anybody's neighbour. In a view of fewer than 2 ``neighbours``
    items, N1 and N2 are smaller.

    Source: Xv et al., Improving Multi-modal Recommender Systems by Denoising and Aligning Multi-modal Content and User
    Feedback, KDD 2024; numbers of the authors' code.
    """

    settings_class = DAMRSParameters
    has: Tensor

    auxiliary_loss_samples = False

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        features = required_content(config, dataset)
        self.n_item_layers: int = config["n_mm_layers"]
        self.n_layers: int = config["n_ui_layers"]
        self.neighbours: int = config["neighbours"]
        self.temperature: float = config["temperature"]
        self.neighbour_weight: float = config["neighbour_weight"]
        self.kl_weight: float = config["kl_weight"]

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

        self.add_id_embeddings(config["embedding_size"], nn.init.xavier_uniform_)

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
        return _NeighbourLoss.apply(views, self.has, items, self.neighbours, self.temperature)


class _NeighbourLoss(torch.autograd.Function):
    """The neighbours' term and, in the same pass over blocks of [items, all items], its gradient.

    A block's cosines serve the choice of N1 and N2, the value and the gradient, and none is kept. The gradient is
    known up to a factor before the backward pass; it cannot be differentiated twice.
    """

    @staticmethod
    def forward(ctx: Any, views: Tensor, has: Tensor, items: Tensor, neighbours: int, temperature: float) -> Tensor:
        with torch.autocast(views.device.type, enabled=False):  # half precision makes ties
            unit = views.to(torch.promote_types(views.dtype, torch.float32))
            gradient, loss = torch.zeros_like(unit), unit.new_zeros(())
            missing = [torch.nonzero(~view).squeeze(1) for view in has]
            sizes = [min(neighbours, members // 2) for members in has.sum(dim=1).tolist()]
            chosen = has[:, items]
            weights = chosen / (chosen.sum(dim=1, keepdim=True).clamp_min(1) * len(views))
            rows = max(1, _BLOCK_ENTRIES // views.shape[1])
            for ids, weight, present in zip(
                items.split(rows), weights.split(rows, dim=1), chosen.split(rows, dim=1), strict=True
            ):
                anchors = unit[:, ids]
                cosines = [block @ view.T for block, view in zip(anchors, unit, strict=True)]
                # an anchor without the view says nothing about it
                shares = [_shares(*of_view) for of_view in zip(cosines, missing, present, strict=True)]
                joint = shares[0].clone()
                for share in shares[1:]:
                    joint += share
                for view, size in enumerate(sizes):
                    if size:
                        near = _pseudo_neighbours(joint, shares[view], missing[view], size)
                        logits = cosines[view].div_(temperature)
                        value, slope = _contrast(logits, missing[view], *near, weight[view])
                        loss += value
                        slope /= temperature
                        gradient[view].index_add_(0, ids, slope @ unit[view])
                        gradient[view].addmm_(slope.T, anchors[view])
        ctx.save_for_backward(gradient)
        ctx.type = views.dtype
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return (gradients[0] * gradient).to(ctx.type), None, None, None, None


def _shares(cosines: Tensor, missing: Tensor, present: Tensor) -> Tensor:
    """p of the rows ``[B, n_items]``: 0 in the columns ``missing``, and in rows that are not ``present``, ``[B]``."""
    share = cosines.exp().index_fill_(1, missing, 0.0)
    total = share.sum(dim=1).clamp_min(torch.finfo(share.dtype).tiny)
    return share.mul_((present / total)[:, None])


def _pseudo_neighbours(joint: Tensor, share: Tensor, missing: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """N1 and N2 in one view, ids of ``[B, size]`` each.

    Args:
        joint: the sum over all views of p [B, n_items].
        share: p of this view [B, n_items], 0 only where the view has no item; overwritten.
        missing: the items that the view does not have, int64; none is chosen.
        size: of each set, 1 to half as many items as the view has.
    """
    in_all = (joint + share).index_fill_(1, missing, -1.0).topk(size, dim=1).indices
    in_one = share.scatter_(1, in_all, 0.0).topk(size, dim=1).indices
    return in_all, in_one


def _contrast(
    logits: Tensor, missing: Tensor, in_all: Tensor, in_one: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor]:
    """The sum over anchors of ``weight`` [B] times both logarithms, and its gradient ``[B, n_items]``.

    Args:
        logits: cosines over the temperature [B, n_items]; overwritten.
        missing: the items that the view does not have, int64.
        in_all: N1, ids [B, k].
        in_one: N2, ids [B, k].
        weight: [B].
    """
    near = [logits.gather(1, ids) for ids in (in_all, in_one)]
    shift = logits.amax(dim=1)
    everything = logits.sub_(shift[:, None]).exp_().index_fill_(1, missing, 0.0)
    total = everything.sum(dim=1)
    sums = torch.stack([total.log() + shift, *(block.logsumexp(dim=1) for block in near)])
    with torch.enable_grad():
        of_all, first, second = sums.requires_grad_()
        share = (first - of_all).exp()
        # rounding may put the sum over N1 above that over all
        rest = -(first - of_all).clamp_max(_LEAST_REST).expm1()
        other_share = ((second - of_all).exp() / rest).clamp_max(1.0)
        loss = -(weight * ((share + _SHARE_EPSILON).log() + (other_share + _SHARE_EPSILON).log())).sum()
        slopes = torch.autograd.grad(loss, sums)[0]
    gradient = everything.mul_((slopes[0] / total)[:, None])
    for ids, block, sum_, slope in zip((in_all, in_one), near, sums.detach()[1:], slopes[1:], strict=True):
        gradient.scatter_add_(1, ids, slope[:, None] * (block - sum_[:, None]).exp())
    return loss.detach(), gradient
