"""MVGAE: a Gaussian for every node in every modality, multiplied into one."""

from __future__ import annotations

import math
from logging import getLogger
from typing import Any, Literal

import torch
from pydantic import Field
from recbole.data.interaction import Interaction
from torch import Tensor, nn
from torch.nn.functional import leaky_relu, logsigmoid, normalize

from recbole_guider.graph import SparseOperator, mean_adjacency
from recbole_guider.models.base import Encoding
from recbole_guider.models.content import ContentRecommender, required_content
from recbole_guider.models.layers import seeded_dropout
from recbole_guider.utils.settings import Count, Natural, NonNegative, Settings, Share

#: log variances are cut off here before they are exponentiated
MAX_LOG_VARIANCE = 10.0
#: least variance of an expert
VARIANCE_EPSILON = 1e-8
#: the share of a standard deviation that training samples with
NOISE_SCALE = 0.1


class MVGAEParameters(Settings):
    """The parameters of :class:`MVGAE`."""

    embedding_size: Count = Field(
        default=64, description="the size of the Gaussians and of the collaborative item vectors"
    )
    latent_size: Count = Field(
        default=128, description="the width that content is projected to, and of the preferences"
    )
    n_layers: Natural = Field(
        default=1, description="the number of graph layers before those that give means and variances"
    )
    beta: NonNegative = Field(
        default=1.0, description="the weight of the KL divergence; 1 in the paper, MMRec searches 0.01, 0.1 and 1"
    )
    dropout: Share = Field(default=0.1, description="the share of a layer's entries that is dropped")
    sigmoid: bool = Field(
        default=True, description="whether the vectors pass a sigmoid; the authors do so for sparse data, not for dense"
    )
    negatives: Literal["own", "batch"] = Field(
        default="own",
        description="whom a user's item is ranked above: own, the sampled item, or batch, the best of the batch's "
        "sampled items",
    )


class MVGAE(ContentRecommender):
    r"""MVGAE, for any number of modalities.

    In each modality, and once more with trained item vectors in place of content (the collaborative part), a graph
    encoder gives every node a Gaussian with mean mu and variance exp(v). With A the mean over a node and its
    neighbours, s = LeakyReLU, D dropout and ``c_k(x) = s(D(unit(A x W_k + b_k)))``, it computes from x, preferences and
    projected content of unit length,

        x <- s(G_k c_k(x))  in each of n_layers layers,   mu = G c(x) + s(L x),   v likewise with weights of its own.

    The modalities' Gaussians are multiplied into one (precisions T = 1 / (exp(v) + 1e-8) add, means are weighted by
    them), and the product with the collaborative one. U and V are z, or sig(z) with ``sigmoid``; z = mu in evaluation
    and mu + 0.1 exp(v / 2) noise in training. For one Gaussian, with y the scores, the loss per interaction of a
    batch of B is

        - mean log2 sig(y_ui - y_uj) + beta / B * KL,
        KL = - 1/2 mean over nodes of the sum over entries of (1 + v - mu^2 - exp(v)),

    j being the sampled item of the pair, or, with ``negatives: batch``, that of the batch's sampled items with the
    highest score. The loss is the sum over the product and all of its factors. The public code has B times this loss;
    here its size does not depend on the batch, as that of the losses it is combined with does not.

    Differences from the public code: neither code hands the preferences and the collaborative item vectors to the
    optimiser; here they are parameters. MMRec takes item ids for node ids, so that it trains on users in place of
    items, and compares sigmoids of scores; the authors' code, as here, does neither. MMRec's negatives are those
    of ``negatives: batch``; the authors' are the user's own.

    Where scores are cosines (GUIDER's DBPR, the softmax loss of ``denoising``) U and V are z: a sigmoid leaves no
    negative entry, and vectors without any all point the same way.

    An item without content in a modality has no Gaussian there: it is a factor of no product and a part of no loss
    term. Encoders see it as a node that starts from the zero vector.

    Source: Yi and Chen, Multi-Modal Variational Graph Auto-Encoder for Recommendation Systems, IEEE Transactions on
    Multimedia 2021.
    """

    settings_class = MVGAEParameters

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        features = required_content(config, dataset)
        self.beta: float = config["beta"]
        self.sigmoid: bool = config["sigmoid"]
        self.negatives: str = config["negatives"]
        dropout: float = config["dropout"]
        self.dropout = dropout
        self.generator("dropout", config["seed"])
        self.generator("noise", config["seed"] + 1)
        self.graph = mean_adjacency(*self.training_pairs(dataset), self_loops=True).to(self.device)

        size: int = config["embedding_size"]
        self.item_embedding = nn.Embedding(self.n_items, size)
        nn.init.xavier_normal_(self.item_embedding.weight)
        self.add_content(features)
        # the modalities', and then the collaborative one
        self.encoders = nn.ModuleList(
            _GraphEncoder(self.n_users, dim, config["latent_size"], size, config["n_layers"])
            for dim in (*(part.dim for part in features.values()), size)
        )
        nodes = [torch.cat([torch.ones(self.n_users, dtype=torch.bool), each.present]) for each in self.content]
        real = torch.ones(self.n_users + self.n_items, dtype=torch.bool)
        real[[0, self.n_users]] = False
        nodes = [each & real for each in (*nodes, real)]
        #: bool [modalities + 1, n_users + n_items]: which nodes have a Gaussian there; the padding has none
        self.register_buffer("described", torch.stack(nodes), persistent=False)

    described: Tensor

    def compare_by_cosines(self) -> None:
        if self.sigmoid:
            getLogger().info("MVGAE is scored by cosines: its vectors do not pass a sigmoid.")
        self.sigmoid = False

    def encode(self) -> Encoding:
        gaussians = []
        for m, encoder in enumerate(self.encoders):
            last = m == len(self.content)
            items = self.item_embedding.weight if last else self.content[m].values
            present = self.described[m, self.n_users :]
            gaussians.append(encoder(items, present, self.graph, self._dropped))
        mean, log_variance = self._product(gaussians)
        parts = {"mean": mean, "log_variance": log_variance}
        for m, (mu, v) in enumerate(gaussians):
            parts |= {f"mean_{m}": mu, f"log_variance_{m}": v}
        return Encoding(*self._vectors(mean, log_variance), parts)

    def _dropped(self, x: Tensor) -> Tensor:
        return seeded_dropout(x, self.dropout, self.generator("dropout")) if self.training else x

    def _product(self, gaussians: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """Mean and log variance [N, size] of the product of the modalities, and of that with the collaborative one."""
        precision: Tensor | float = 0.0
        weighted: Tensor | float = 0.0
        for m, (mean, log_variance) in enumerate(gaussians[:-1]):
            own = self.described[m].unsqueeze(1) / (log_variance.exp() + VARIANCE_EPSILON)
            precision, weighted = precision + own, weighted + own * mean
        mean, log_variance = gaussians[-1]
        own = 1.0 / (log_variance.exp() + VARIANCE_EPSILON)
        # 1 / (1 / precision + epsilon), written so that an item without any content has precision 0
        shrink = 1.0 / (1.0 + VARIANCE_EPSILON * precision)
        total = precision * shrink + own
        return (weighted * shrink + own * mean) / total, -total.log()

    def _vectors(self, mean: Tensor, log_variance: Tensor) -> tuple[Tensor, Tensor]:
        """The user and the item matrix of a Gaussian; sampled in training."""
        z = mean
        if self.training:
            noise = torch.randn(mean.shape, generator=self.generator("noise")).to(mean.device, mean.dtype)
            z = mean + NOISE_SCALE * noise * (0.5 * log_variance.clamp(max=MAX_LOG_VARIANCE)).exp()
        if self.sigmoid:
            z = z.sigmoid()
        return z[: self.n_users], z[self.n_users :]

    def ranking_loss(self, encoding: Encoding, interaction: Interaction) -> Tensor:
        return self._ranked(encoding.users, encoding.items, interaction, None)

    def auxiliary_loss(self, encoding: Encoding, interaction: Interaction) -> Tensor:
        total = encoding.users.new_zeros(())
        for m in range(len(self.encoders)):
            vectors = self._vectors(encoding.parts[f"mean_{m}"], encoding.parts[f"log_variance_{m}"])
            total = total + self._ranked(*vectors, interaction, self.described[m, self.n_users :])
        return total

    def _ranked(self, users: Tensor, items: Tensor, interaction: Interaction, described: Tensor | None) -> Tensor:
        """- mean log2 sig(y_ui - y_uj) over the pairs whose items are all described."""
        item, other = interaction[self.ITEM_ID], interaction[self.NEG_ITEM_ID]
        user = users.index_select(0, interaction[self.USER_ID])
        positive = (user * items.index_select(0, item)).sum(dim=1)
        known = None if described is None else described[item]
        if self.negatives == "own":
            negative = (user * items.index_select(0, other)).sum(dim=1)
            known = None if known is None or described is None else known & described[other]
        else:
            others = other if described is None else other[described[other]]
            if not len(others):
                return positive.new_zeros(())
            negative = (user @ items.index_select(0, others).T).amax(dim=1)
        terms = logsigmoid(positive - negative)
        return -(terms if known is None else terms * known).sum() / (len(item) * math.log(2.0))

    def regulariser(self, encoding: Encoding, interaction: Interaction) -> Tensor:
        described = self.described[-1]
        total = _divergence(encoding.parts["mean"], encoding.parts["log_variance"], described)
        for m, described in enumerate(self.described):
            total = total + _divergence(
                encoding.parts[f"mean_{m}"], encoding.parts[f"log_variance_{m}"], described
            )
        return self.beta * total / len(interaction[self.USER_ID])


class _GraphEncoder(nn.Module):
    """Mean and log variance of every node in one modality.

    Args:
        n_users: number of users.
        dim: width of the content.
        latent: width that it is projected to.
        size: width of the layers and of the result.
        n_layers: layers before the two that give mean and log variance.
    """

    def __init__(self, n_users: int, dim: int, latent: int, size: int, n_layers: int) -> None:
        super().__init__()
        self.preference = nn.Parameter(torch.empty(n_users, latent))
        self.projection = nn.Linear(dim, latent)
        inputs = [latent, *[size] * n_layers]
        self.convolutions = nn.ModuleList(nn.Linear(each, size) for each in inputs[:-1])
        self.layers = nn.ModuleList(nn.Linear(size, size) for _ in inputs[:-1])
        # each of mean and log variance has a convolution, a layer on it, and one on the node itself
        self.mean, self.log_variance = (
            nn.ModuleList([nn.Linear(inputs[-1], size), nn.Linear(size, size), nn.Linear(inputs[-1], size)])
            for _ in range(2)
        )
        nn.init.xavier_normal_(self.preference)
        for linear in (self.projection, *self.convolutions, *self.layers, *self.mean, *self.log_variance):
            nn.init.xavier_normal_(linear.weight)

    def forward(self, items: Tensor, present: Tensor, graph: SparseOperator, dropped: Any) -> tuple[Tensor, Tensor]:
        items = self.projection(items) * present.unsqueeze(1)
        x = normalize(torch.cat([self.preference, items]), dim=1)
        for convolution, layer in zip(self.convolutions, self.layers, strict=True):
            # A (x W) costs less than (A x) W where W narrows
            gathered = graph @ (x @ convolution.weight.T) + convolution.bias
            x = leaky_relu(layer(_activated(gathered, dropped)))
        gathered = graph @ x
        mean, log_variance = (
            layer(_activated(convolution(gathered), dropped)) + leaky_relu(own(x))
            for convolution, layer, own in (self.mean, self.log_variance)
        )
        return mean, log_variance


def _activated(x: Tensor, dropped: Any) -> Tensor:
    return leaky_relu(dropped(normalize(x, dim=1)))


def _divergence(mean: Tensor, log_variance: Tensor, described: Tensor) -> Tensor:
    """KL divergence from the standard Gaussian, summed over entries, averaged over the nodes described."""
    v = log_variance.clamp(max=MAX_LOG_VARIANCE)
    each = -0.5 * (1.0 + v - mean.square() - v.exp()).sum(dim=1)
    return (each * described).sum() / described.sum()
