r"""The denoised BPR of DA-MRS: an interaction counts as much as the modalities agree that the user likes the item.

Source: Xv, Li, Xiao, Xu, Chen, Improving Multi-modal Recommender Systems by Denoising and Aligning Multi-modal Content
and User Feedback, KDD 2024.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, cast

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, normalize, softplus

from recbole_guider.data.features import ItemFeatures, require_content
from recbole_guider.denoising.base import Context, DenoisingMethod, Logits, Sample, pooled_mean
from recbole_guider.denoising.deca import bernoulli_kl
from recbole_guider.denoising.settings import DAMRSSettings
from recbole_guider.graph import DEGREE_EPSILON, SparseOperator
from recbole_guider.utils.interactions import InteractionIndex

_BLOCK_CELLS = 8_000_000


class Weights(NamedTuple):
    """How much an observed interaction counts as it is, and how much turned round, [P] each, without gradients."""

    positive: Tensor
    negative: Tensor


def preference_weights(observed: Tensor, sampled: Tensor) -> Weights:
    r"""DA-MRS's weights from what each view says of the pairs.

    With z_m = sig(<u, h_m / |h_m|>) for the views m, mean, maximum and (unbiased) variance over m, and nbar the mean
    of all z of sampled pairs:

        w+ = clamp(mean_m z_m(i) exp(-Var_m z_m(i))^2, 0, 1)
        w- = 1[mean_m z_m(i) < nbar] clamp(max_m z_m(i) - nbar, 0, 1)

    Args:
        observed: z of the observed pairs, [M, P]; at least two views.
        sampled: z of the sampled pairs, [M, any].
    """
    observed, sampled = observed.detach(), sampled.detach()
    mean, bar = observed.mean(dim=0), sampled.mean()
    positive = (mean * torch.exp(-observed.var(dim=0)).square()).clamp(0, 1)
    negative = torch.where(mean < bar, (observed.amax(dim=0) - bar).clamp(0, 1), 0.0)
    return Weights(positive, negative)


def denoised_loss(logits: Logits, weights: Weights) -> Tensor:
    """``- mean[ w+ log sig(x) + w- log sig(-x) ]``; in the bce form the mean is over the sampled pairs' losses, too."""
    x = logits.positive
    observed = -(weights.positive[:, None] * logsigmoid(x) + weights.negative[:, None] * logsigmoid(-x))
    return pooled_mean([observed, None if logits.negative is None else softplus(-logits.negative)])


def neighbour_contrast(views: Sequence[Tensor], chosen: Tensor, count: int, temperature: float) -> Tensor:
    r"""Items of a batch are drawn towards their neighbours: those that the views agree on, then the view's own.

    With P_m the row-wise softmax of the cosines c_m between the chosen items and all items, the neighbours of an item
    in view m are N, the ``count`` largest of ``P_m + sum over views P``, and O, the ``count`` largest of P_m among the
    others; with e = exp(c_m / temperature) and E its sum over all items

        - log( sum_N e / E ) - log( sum_O e / (E - sum_N e) ),

    averaged over items and views.

    Args:
        views: item matrices [n, d], one for each view.
        chosen: int64 [S], the items of the batch.
        count: of neighbours.
        temperature: > 0.
    """
    total = views[0].new_zeros(())
    cosines = []
    for view in views:
        unit = normalize(view, dim=1)
        cosines.append(unit[chosen] @ unit.T)
    with torch.no_grad():
        chances = [cosine.softmax(dim=1) for cosine in cosines]
        agreed = torch.stack(chances).sum(dim=0)
    count = min(count, (cosines[0].shape[1] - 1) // 2)
    for cosine, chance in zip(cosines, chances, strict=True):
        common = (agreed + chance).topk(count, dim=1).indices
        own = chance.scatter(1, common, 0.0).topk(count, dim=1).indices
        exponential = torch.exp(cosine / temperature)
        of_common, of_own = exponential.gather(1, common).sum(dim=1), exponential.gather(1, own).sum(dim=1)
        everything = exponential.sum(dim=1)
        total = total - (torch.log(of_common / everything) + torch.log(of_own / (everything - of_common))).mean()
    return total / len(views)


def agreeing_graphs(features: Sequence[ItemFeatures], k: int) -> list[SparseOperator]:
    """For each modality the graph of an item's k most similar items among those that all modalities find similar.

    An edge is kept only if in every modality in which both items have content their cosine is at least the mean cosine
    of that modality over all pairs. Binary, normalised as ``D^-1/2 S D^-1/2``. In blocks of rows.

    Args:
        features: of the modalities, aligned to one item catalogue.
        k: neighbours of an item, itself among them.
    """
    n = len(features[0].present)
    units, means = [], []
    for feature in features:
        rows = torch.from_numpy(feature.values) * torch.from_numpy(feature.present)[:, None]
        unit = normalize(rows.float(), dim=1)
        units.append(unit)
        there = max(int(feature.present.sum()), 1)
        means.append(float(unit.sum(dim=0).double().square().sum()) / there**2)
    present = torch.from_numpy(np.stack([feature.present for feature in features]))
    found: list[list[np.ndarray]] = [[] for _ in features]
    block = max(1, _BLOCK_CELLS // n)
    for start in range(0, n, block):
        similarities = [unit[start : start + block] @ unit.T for unit in units]
        alike = torch.ones_like(similarities[0], dtype=torch.bool)
        both = [there[start : start + block, None] & there[None, :] for there in present]
        for similarity, mean, comparable in zip(similarities, means, both, strict=True):
            alike &= (similarity >= mean) | ~comparable
        for number, (similarity, comparable) in enumerate(zip(similarities, both, strict=True)):
            scores = similarity.masked_fill(~(alike & comparable), -torch.inf)
            best = scores.topk(min(k, n), dim=1)
            row, place = torch.nonzero(best.values > -torch.inf, as_tuple=True)
            found[number].append(np.stack([row.numpy() + start, best.indices[row, place].numpy()]))
    return [_normalised(np.concatenate(parts, axis=1), n) for parts in found]


def cooccurrence_graph(users: np.ndarray, items: np.ndarray, n_items: int, k: int) -> SparseOperator:
    """Each item with itself and the k items that share the most users with it, at least two; binary, normalised.

    Args:
        users, items: int [nnz], distinct pairs.
        n_items: size of the catalogue.
        k: neighbours of an item, itself not counted.
    """
    incidence = sp.csr_matrix((np.ones(len(users)), (items, users)))
    incidence.resize(n_items, incidence.shape[1])
    edges = [np.stack([np.unique(items), np.unique(items)])]
    # a block of rows at a time: the whole matrix may be nearly full
    for start in range(0, n_items, 4096):
        counts = (incidence[start : start + 4096] @ incidence.T).tocoo()
        row, column, value = counts.row + start, counts.col, counts.data
        kept = (row != column) & (value >= 2)
        row, column, value = row[kept], column[kept], value[kept]
        order = np.lexsort((column, -value, row))
        row, column = row[order], column[order]
        _, first, size = np.unique(row, return_index=True, return_counts=True)
        rank = np.arange(len(row)) - np.repeat(first, size)
        edges.append(np.stack([row[rank < k], column[rank < k]]))
    return _normalised(np.concatenate(edges, axis=1), n_items)


def _normalised(edges: np.ndarray, n: int) -> SparseOperator:
    degree = np.bincount(edges[0], minlength=n) + DEGREE_EPSILON
    values = degree[edges[0]] ** -0.5 * degree[edges[1]] ** -0.5
    # an item that has no edge of its own would divide by almost nothing as a neighbour
    values[degree[edges[1]] < 1] = 0.0
    return SparseOperator.from_scipy(sp.csr_matrix((values, (edges[0], edges[1])), shape=(n, n)))


class DAMRS(DenoisingMethod):
    """DA-MRS's denoised BPR (own form bpr), with its neighbour contrast and its symmetric KL divergence.

    The views of the items are the backbone's item matrix carried over one layer of a graph for each modality
    (:func:`agreeing_graphs`) and one for behaviour (:func:`cooccurrence_graph`). The contrast and the divergence, which
    align the views with the item matrix, are computed on at most 512 items and users of a batch, drawn at random (the
    authors take all of it). The backbone ranks as it does: views do not enter its scores, as they do in DA-MRS itself.
    """

    name, settings_class = "da-mrs", DAMRSSettings
    uses_matrices = needs_matrices = True

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.options = cast(DAMRSSettings, context.settings)
        features = context.dataset.item_features
        require_content(context.config, features, behaviour_suffices=False)
        graphs = agreeing_graphs(list(features.values()), self.options.neighbours)
        distinct = InteractionIndex(context.users, context.items, context.n_users, context.n_items)
        graphs.append(cooccurrence_graph(distinct.users, distinct.items, context.n_items, self.options.neighbours))
        self.graphs = [graph.to(context.config["device"]) for graph in graphs]
        self.generator("sample", context.config["seed"] + 31)

    def loss(self, sample: Sample) -> Tensor:
        users, items, _ = sample.matrices
        views = [graph @ items for graph in self.graphs]
        rows = users[sample.users]
        with torch.no_grad():
            units = [normalize(view, dim=1) for view in views]
            observed = torch.stack([torch.sigmoid((rows * unit[sample.items]).sum(dim=1)) for unit in units])
            sampled = torch.stack(
                [torch.sigmoid((rows.unsqueeze(1) * unit[sample.negatives]).sum(dim=2)) for unit in units]
            )
        total = denoised_loss(sample.logits, preference_weights(observed, sampled))
        some_users = self._some(sample.users)
        some_items = self._some(torch.cat([sample.items, sample.negatives.flatten()]))
        if self.options.contrast:
            total = total + self.options.contrast * neighbour_contrast(
                # RecBole's padding is nobody's neighbour
                [view[1:] for view in views], some_items - 1, self.options.neighbours, self.options.contrast_temperature
            )
        if self.options.alignment:
            joint = torch.stack(views).mean(dim=0)
            direct, by_views = (
                users[some_users] @ normalize(matrix[some_items], dim=1).T for matrix in (items, joint)
            )
            divergence = bernoulli_kl(direct, by_views) + bernoulli_kl(by_views, direct)
            total = total + self.options.alignment * divergence.mean()
        return total

    def _some(self, ids: Tensor) -> Tensor:
        distinct = torch.unique(ids)
        if len(distinct) <= self.options.sample:
            return distinct
        order = torch.randperm(len(distinct), generator=self.generator("sample"))[: self.options.sample]
        return distinct[order.to(distinct.device)]
