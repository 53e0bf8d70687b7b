r"""SGDL: what a model memorises first is clean, and guides the weights of everything else.

Source: Gao, Du, Chen, Fang, Fang, Zheng, Self-Guided Learning to Denoise for Robust Recommendation, SIGIR 2022.
"""

from __future__ import annotations

from logging import getLogger
from typing import Any, cast

import numpy as np
import torch
from sklearn.mixture import GaussianMixture
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cosine_similarity, normalize

from recbole_guider.denoising.base import Context, DenoisingMethod, Sample
from recbole_guider.denoising.negatives import NegativeSampler
from recbole_guider.denoising.settings import SGDLSettings

#: Training interactions that are scored at a time between epochs.
_CHUNK = 32_768
#: Losses that the mixture is fitted to, at most.
_MIXTURE_SAMPLE = 1_000_000


def clean_share(losses: np.ndarray, users: np.ndarray, seed: int) -> float:
    """The estimated share of clean interactions, from the losses of all of them.

    Losses are scaled to [0, 1] within each user; a Gaussian mixture of two components is fitted, and the share is one
    minus the mean posterior of the component with the larger mean. Users with one interaction, or with equal losses,
    have no scale and take no part. (In the authors' code the loss of a user with one interaction takes part as it is,
    beside the scaled ones; equal losses make it fail.)

    Args:
        losses: float [nnz].
        users: int [nnz].
        seed: of the mixture's start.

    Returns:
        The share; 1 where there is nothing to fit.
    """
    _, group = np.unique(users, return_inverse=True)
    low, high = np.full(int(np.max(group)) + 1, np.inf), np.full(int(np.max(group)) + 1, -np.inf)
    np.minimum.at(low, group, losses)
    np.maximum.at(high, group, losses)
    spread = (high - low)[group]
    scaled = ((losses - low[group])[spread > 0] / spread[spread > 0]).reshape(-1, 1)
    if len(scaled) < 2:
        return 1.0
    if len(scaled) > _MIXTURE_SAMPLE:
        scaled = np.random.default_rng(seed).choice(scaled, _MIXTURE_SAMPLE, replace=False)
    mixture = GaussianMixture(n_components=2, max_iter=100, tol=1e-2, reg_covar=5e-4, random_state=seed).fit(scaled)
    return 1.0 - float(mixture.predict_proba(scaled)[:, mixture.means_.argmax()].mean())


def memorised_pairs(users: np.ndarray, positive: np.ndarray, negative: np.ndarray) -> np.ndarray:
    """Which observed interactions a model ranks where it should.

    Among a user's n observed items and n sampled ones, an observed item is memorised if it is one of the n with the
    highest scores. Equal scores count against it.

    Args:
        users: int [nnz].
        positive, negative: scores of the observed pairs and of one sampled item for each, [nnz].

    Returns:
        bool [nnz].
    """
    count = len(users)
    both, scores = np.concatenate([users, users]), np.concatenate([negative, positive])
    order = np.lexsort((-scores, both))
    rank = np.empty(2 * count, dtype=np.int64)
    _, start, group, sizes = np.unique(both[order], return_index=True, return_inverse=True, return_counts=True)
    rank[order] = np.arange(2 * count) - start[group]
    half = np.empty(2 * count, dtype=np.int64)
    half[order] = sizes[group] // 2
    memorised: np.ndarray = (rank < half)[count:]
    return memorised


class LossWeigher(nn.Module):
    """``w = sig(MLP(l))``: 1 - hidden - 1, ReLU; the weight of an interaction from its loss [P] -> [P]."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(1, hidden), nn.ReLU(), nn.Linear(hidden, 1))

    def forward(self, losses: Tensor) -> Tensor:
        return torch.sigmoid(self.layers(losses.unsqueeze(1))).squeeze(1)


class Scheduler(nn.Module):
    """How useful a memorised interaction is to learn weights from: a score from its loss, and from how far a step of
    learning turns its gradient (the cosines of before and after, [P, parts])."""

    def __init__(self, parts: int = 2, size: int = 10) -> None:
        super().__init__()
        self.gradients = nn.LSTM(parts, size, bidirectional=True)
        self.losses = nn.LSTM(1, size, bidirectional=True)
        self.layers = nn.Sequential(nn.Linear(4 * size, 2 * size), nn.Tanh(), nn.Linear(2 * size, 1))

    def forward(self, losses: Tensor, cosines: Tensor) -> Tensor:
        # a sequence of one step, as the authors' has
        seen = [lstm(part.unsqueeze(0))[0].squeeze(0)
                for lstm, part in ((self.gradients, cosines), (self.losses, losses.unsqueeze(1)))]
        return self.layers(torch.cat(seen, dim=1)).squeeze(1)


def gumbel_selection(scores: Tensor, tau: float, generator: torch.Generator) -> Tensor:
    """P draws, with replacement, of P things: rows are one-hot, with the gradient of the soft choice.

    Each row is ``softmax((log softmax(scores) + g) / tau)``, g from Gumbel(0, 1), rounded to its largest entry
    (straight through).

    Args:
        scores: [P].
        tau: temperature > 0.
        generator: on the CPU.

    Returns:
        [P, P].
    """
    count = len(scores)
    uniform = torch.rand(count, count, generator=generator).clamp_min(1e-20).to(scores.device)
    gumbel = -torch.log((-torch.log(uniform)).clamp_min(1e-20))
    soft = torch.softmax((torch.log_softmax(scores, dim=0) + gumbel) / tau, dim=1)
    hard = torch.zeros_like(soft).scatter_(1, soft.argmax(dim=1, keepdim=True), 1.0)
    return (hard - soft).detach() + soft


class SGDL(DenoisingMethod):
    """SGDL (own form bpr).

    Phase 1, memorisation: the plain loss. After each epoch :func:`memorised_pairs` enters a history of 10 epochs; an
    interaction is memorised if it was in at least half of them. When the memorised share reaches :func:`clean_share`,
    phase 2 begins: the weight of an interaction is w(its loss), and w is meta-learned. In each step the backbone takes
    a virtual step on the weighted loss, and w and the scheduler step down the loss that the moved backbone has on
    memorised interactions that the scheduler chose. The backbone then takes its real step, weighted.

    Deviations from the authors' code: the scheduler's gradients are those at the rows of the user and item matrices
    (for a matrix factorisation they are the parameters; for other models the authors take the parameters, one backward
    pass for each interaction), and left at 1 where a backbone has no matrices; the optimiser and its learning rate are
    the backbone's throughout (theirs is a fifth in phase 1, and starts anew in each epoch of phase 2); memorised
    interactions are drawn with replacement, 128 a step, their batch size. The scheduler's choice mixes losses; theirs
    mixes the embeddings of users and items, and takes the loss of what results: as a choice is of one interaction, the
    meta loss is the same, and so is the step of w, but the gradient that the soft choice gives the scheduler is not.
    One-item users do not enter :func:`clean_share`.
    """

    name, settings_class = "sgdl", SGDLSettings
    uses_matrices = keeps_count = True
    history: Tensor
    position: Tensor
    memorised: Tensor
    guided: Tensor

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.options = cast(SGDLSettings, context.settings)
        self.weigher, self.scheduler = LossWeigher(self.options.hidden), Scheduler()
        self.learning_rate = float(context.config["learning_rate"])
        self.seed = int(context.config["seed"])
        self.negatives = NegativeSampler(context)
        for number, name in enumerate(("memorisation", "memorised", "memorised negatives", "gumbel")):
            self.generator(name, self.seed + 21 + number)
        count = len(context.users)
        self.register_buffer("history", torch.zeros(count, self.options.history, dtype=torch.bool))
        self.register_buffer("position", torch.zeros((), dtype=torch.int64))
        self.register_buffer("memorised", torch.zeros(count, dtype=torch.bool))
        self.register_buffer("guided", torch.zeros((), dtype=torch.bool))

    def own_networks(self) -> dict[str, tuple[nn.Module, float]]:
        return {
            "weigher": (self.weigher, self.options.meta_learning_rate),
            "scheduler": (self.scheduler, self.options.scheduler_learning_rate),
        }

    def loss(self, sample: Sample) -> Tensor:
        losses = sample.logits.row_losses()
        if not bool(self.guided):
            return losses.mean()
        self._learn_weights(losses)
        with torch.no_grad():
            weights = self.weigher(losses)
        return (weights * losses).mean()

    # -- phase 2 --------------------------------------------------------------------------------------------------

    def _learn_weights(self, losses: Tensor) -> None:
        interaction = self._memorised_batch()
        selection = self._select(interaction)
        meta_loss = (selection @ self.losses_after_step(losses, interaction)).mean()
        networks = (self.weigher, self.scheduler)
        parameters = [parameter for network in networks for parameter in network.parameters()]
        for parameter, gradient in zip(
            parameters, torch.autograd.grad(meta_loss, parameters, allow_unused=True), strict=True
        ):
            parameter.grad = gradient
        for optimizer in self.optimizers.values():
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def losses_after_step(self, losses: Tensor, interaction: Any) -> Tensor:
        """Losses [M] on another batch after the backbone's virtual step ``theta - lr grad mean(w(l) l)``.

        Differentiable by the weigher's parameters, through the step.

        Args:
            losses: of the present batch, with their graph, [P].
            interaction: the other batch.
        """
        weighted = (losses * self.weigher(losses.detach())).mean()
        sample = self._observe_after(weighted, interaction, create_graph=True)
        return sample.logits.row_losses()

    def _observe_after(self, loss: Tensor, interaction: Any, create_graph: bool) -> Sample:
        named = [
            (name, parameter) for name, parameter in self.context.recommender.named_parameters()
            if parameter.requires_grad
        ]
        gradients = torch.autograd.grad(
            loss, [parameter for _, parameter in named], create_graph=create_graph, allow_unused=True
        )
        moved = {
            f"recommender.{name}": parameter if gradient is None else parameter - self.learning_rate * gradient
            for (name, parameter), gradient in zip(named, gradients, strict=True)
        }
        sample, _ = functional_call(self.context.model, moved, (interaction,))
        return sample

    def _select(self, interaction: Any) -> Tensor:
        """The scheduler's choice among a batch of memorised interactions, [M, M]."""
        before, _ = self.context.model.observe(interaction)
        losses = before.logits.row_losses()
        with torch.no_grad():
            weights = self.weigher(losses)
        after = self._observe_after((losses * weights).mean(), interaction, create_graph=False)
        cosines = gradient_cosines(before, after).detach()
        return gumbel_selection(self.scheduler(losses.detach(), cosines), self.options.tau, self.generator("gumbel"))

    def _memorised_batch(self) -> Any:
        known = torch.nonzero(self.memorised).squeeze(1).cpu()
        drawn = torch.randint(len(known), (self.options.meta_batch,), generator=self.generator("memorised"))
        return self.negatives.batch(known[drawn], self.generator("memorised negatives"))

    # -- phase 1 --------------------------------------------------------------------------------------------------

    def end_epoch(self, epoch: int) -> None:
        if bool(self.guided):
            return
        losses, positive, negative = self._score_training_interactions()
        users = self.context.users.numpy()
        found = torch.from_numpy(memorised_pairs(users, positive, negative)).to(self.history.device)
        self.history[:, int(self.position)] = found
        self.position.copy_((self.position + 1) % self.options.history)
        self.memorised.copy_(2 * self.history.sum(dim=1) >= self.options.history)
        share = float(self.memorised.float().mean())
        if 0 < share >= clean_share(losses, users, self.seed):
            self.guided.fill_(True)
            getLogger().info(f"SGDL: {share:.1%} of the interactions are memorised after epoch {epoch}, and guide now.")

    @torch.no_grad()
    def _score_training_interactions(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Losses, scores and scores of one sampled item of all training interactions, [nnz] each."""
        model = self.context.model
        model.eval()
        parts = []
        for chosen in torch.arange(len(self.context.users)).split(_CHUNK):
            sample, _ = model.observe(self.negatives.batch(chosen, self.generator("memorisation")))
            negative = sample.negative[:, 0]
            if sample.shared is not None:  # there it stands for all the shared ones
                users, items = (normalize(matrix, dim=1) for matrix in sample.matrices[:2])
                negative = (users[sample.users] * items[sample.negatives[:, 0]]).sum(dim=1)
            parts.append(torch.stack([sample.logits.row_losses(), sample.positive, negative]))
        losses, positive, negative = torch.cat(parts, dim=1).double().cpu().numpy()
        return losses, positive, negative


def gradient_cosines(before: Sample, after: Sample) -> Tensor:
    """How far a step turned the gradient of each interaction's loss by its rows of the user and item matrices, [P, 2].

    The gradient of a loss of ``<u, v_i> - <u, v_j>`` is along ``v_i - v_j`` for the user's row, and along u for the
    items' rows. Ones where a backbone has no matrices.
    """
    if before.encoding is None or after.encoding is None:
        return torch.ones(len(before.users), 2, device=before.users.device)
    by_user, by_item = [], []
    for sample in (before, after):
        users, items, _ = sample.matrices
        by_user.append(items[sample.items] - items[sample.negatives[:, 0]])
        by_item.append(users[sample.users])
    return torch.stack([cosine_similarity(*by_user, dim=1), cosine_similarity(*by_item, dim=1)], dim=1)
