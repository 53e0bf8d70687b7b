r"""What a denoising method sees of a batch, and what it has to give back.

Every method changes how a batch of observed interactions becomes a loss. The loss itself has one of three forms; each
says with logits x how probable it is, sig(x), that an observation is what it seems to be:

    bpr       x = y_ui - y_uj                                   (i observed, j sampled)
    bce       x = y_ui of an observed pair, x = - y_uj of a sampled one
    softmax   x = (y_ui - s_u) / tau,  s_u = tau log( sum_j exp(y_uj / tau) )

The softmax form has cosine scores and negatives that the whole batch shares. The plain loss is the mean of
``- log sig(x)``: ``softplus(-x)``. Written on logits, a method is the same for all three.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize, softplus

from recbole_guider.denoising.settings import DenoisingSettings, NoneSettings
from recbole_guider.losses import soft_negative
from recbole_guider.models import Encoding, SeededGenerators
from recbole_guider.utils.errors import GuiderError

LOSS_FORMS = ("bpr", "bce", "softmax")


class Logits(NamedTuple):
    """How probable, sig(x), a model finds each observation of a batch.

    Attributes:
        positive: [P, K]; of the P observed interactions (bpr: against each of the K items that are sampled for one;
            else K = 1).
        negative: [P, N], of the sampled pairs being no interactions; None where the form has no such term.
    """

    positive: Tensor
    negative: Tensor | None

    def observed_losses(self) -> Tensor:
        """``- log sig(x)`` of every observed interaction, [P]."""
        return softplus(-self.positive).mean(1)

    def row_losses(self) -> Tensor:
        """The loss of every observed interaction together with its sampled pairs, [P]; their mean is the loss."""
        if self.negative is None:
            return self.observed_losses()
        return torch.cat([softplus(-self.positive), softplus(-self.negative)], dim=1).mean(1)


def logits(form: str, positive: Tensor, negative: Tensor, scale: float = 1.0) -> Logits:
    """The logits of a loss form.

    Args:
        form: one of LOSS_FORMS.
        positive: scores of the observed pairs, [P].
        negative: scores of the sampled pairs, [P, N]; softmax: the one score that stands for all, [P, 1].
        scale: what scores are multiplied with; softmax: 1 / tau.
    """
    if form not in LOSS_FORMS:
        raise GuiderError(f"a loss form is one of {', '.join(LOSS_FORMS)}, not {form!r}.")
    positive, negative = positive.unsqueeze(1) * scale, negative * scale
    return Logits(positive, -negative) if form == "bce" else Logits(positive - negative, None)


def pooled_mean(terms: Iterable[Tensor | None]) -> Tensor:
    """The mean over the entries of all ``terms`` together; 0 if there are none."""
    given = [term.reshape(-1) for term in terms if term is not None]
    everything = torch.cat(given)
    return everything.sum() / max(everything.numel(), 1)


class SharedNegatives(NamedTuple):
    """The softmax form's negatives: items [N], and which of them are none for the batch's b-th distinct user."""

    items: Tensor
    distinct: Tensor
    place: Tensor
    excluded: tuple[Tensor, Tensor] | None
    temperature: float


@dataclass(frozen=True, eq=False)
class Sample:
    """A batch as a method sees it: P observed interactions, each with its sampled items, and the backbone's scores.

    Attributes:
        users, items: int64 [P], RecBole's ids.
        negatives: int64 [P, N], items that the loader sampled for each interaction.
        interactions: int64 [P], which training interaction it is.
        positive: scores of the observed pairs [P]; softmax form: cosines.
        negative: scores of the sampled pairs [P, N]; softmax form: the one that stands for all, [P, 1].
        form: the loss form.
        shared: the softmax form's negatives, else None.
        encoding: the backbone's user and item matrices, for methods that use them (``uses_matrices``).
    """

    users: Tensor
    items: Tensor
    negatives: Tensor
    interactions: Tensor
    positive: Tensor
    negative: Tensor
    form: str
    shared: SharedNegatives | None
    encoding: Encoding | None = None

    @property
    def scale(self) -> float:
        """What the form multiplies scores with."""
        return 1.0 if self.shared is None else 1.0 / self.shared.temperature

    @cached_property
    def logits(self) -> Logits:
        """The backbone's logits."""
        return logits(self.form, self.positive, self.negative, self.scale)

    @property
    def matrices(self) -> Encoding:
        """``encoding`` of a backbone that has matrices."""
        assert self.encoding is not None, "checked when the model is made"
        return self.encoding

    def logits_of(self, users: Tensor, items: Tensor) -> Logits:
        """The logits of another factorised model, user matrix [n_users, d] and item matrix [n_items, d]."""
        scores = pair_scores(users, items, self.users, self.items, self.negatives, self.shared)
        return logits(self.form, *scores, self.scale)


def pair_scores(
    user_matrix: Tensor, item_matrix: Tensor, users: Tensor, items: Tensor, negatives: Tensor,
    shared: SharedNegatives | None,
) -> tuple[Tensor, Tensor]:
    """Scores [P] of observed pairs and [P, N] of sampled ones; with ``shared``: cosines, and their soft negative."""
    if shared is None:
        rows = user_matrix[users]
        positive = (rows * item_matrix[items]).sum(dim=1)
        return positive, (rows.unsqueeze(1) * item_matrix[negatives]).sum(dim=2)
    rows = normalize(user_matrix[shared.distinct], dim=1)
    candidates = normalize(item_matrix[shared.items], dim=1)
    soft = soft_negative(rows, candidates, temperature=shared.temperature, excluded=shared.excluded)[shared.place]
    # a user whose every shared negative is an own item has no negative: the lowest score, and no gradient
    soft = soft.masked_fill(soft.isinf(), -1e4)
    return (rows[shared.place] * normalize(item_matrix[items], dim=1)).sum(dim=1), soft.unsqueeze(1)


@dataclass(frozen=True)
class Context:
    """What a method may know of its run.

    Attributes:
        settings: the method's settings.
        config: the run's configuration.
        dataset: the training part of the data set.
        users, items: int64 [nnz] on the CPU, the training interactions in the order of ``Sample.interactions``.
        n_users, n_items: sizes of the backbone's matrices, RecBole's padding row included.
        width: columns of the backbone's matrices, for methods that need some (``needs_matrices``); else 0.
        model: the denoised model; ``model.observe(interaction)`` gives a :class:`Sample` and the backbone's other loss.
        recommender: the backbone.
    """

    settings: Any
    config: Any
    dataset: Any
    users: Tensor
    items: Tensor
    n_users: int
    n_items: int
    width: int
    model: Any
    recommender: nn.Module


class DenoisingMethod(SeededGenerators):
    """How a batch becomes a loss, and the state that this needs.

    Parameters in ``self`` are trained with the backbone's, by the same optimiser, unless they belong to one of
    :meth:`own_networks`. State that a resumed run needs lies in buffers, parameters and seeded generators: a checkpoint
    has them all.
    """

    #: what it is called in ``denoising: <name>``
    name: str
    #: the class of its settings, which has its parameters and its own loss form
    settings_class: type[DenoisingSettings] = DenoisingSettings
    #: whether samples have the backbone's user and item matrices, where it has some; and whether it must have some
    uses_matrices = False
    needs_matrices = False
    #: whether a call of :meth:`loss` changes what a later call gives; random streams do not count
    keeps_count = False
    #: the optimisers of :meth:`own_networks`, made and saved by the trainer
    optimizers: dict[str, torch.optim.Optimizer]

    def __init__(self, context: Context) -> None:
        super().__init__()
        self.settings: DenoisingSettings = context.settings
        self.context = context
        self.optimizers = {}

    def loss(self, sample: Sample) -> Tensor:
        """What takes the place of the backbone's ranking loss; scalar."""
        raise NotImplementedError

    def begin_epoch(self, epoch: int) -> None:
        """Called before an epoch, counted from 0."""

    def end_epoch(self, epoch: int) -> None:
        """Called after an epoch, before evaluation."""

    def own_networks(self) -> dict[str, tuple[nn.Module, float]]:
        """Networks that the method trains by itself: name -> (network, learning rate of its Adam)."""
        return {}


class Plain(DenoisingMethod):
    """No denoising: the mean of ``- log sig(x)``."""

    name, settings_class = "none", NoneSettings

    def loss(self, sample: Sample) -> Tensor:
        return sample.logits.row_losses().mean()


class Ramp(nn.Module):
    """A share that grows linearly from 0 to ``rate`` over ``steps`` batches; counts its calls."""

    step: Tensor

    def __init__(self, rate: float, steps: int) -> None:
        super().__init__()
        self.rate, self.steps = rate, steps
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    def forward(self) -> float:
        share = ramp(int(self.step), self.rate, self.steps)
        self.step += 1
        return share


def ramp(step: int, rate: float, steps: int) -> float:
    """``rate * min(step / steps, 1)``."""
    return rate * min(step / steps, 1.0)
