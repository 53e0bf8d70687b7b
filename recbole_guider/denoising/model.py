"""A backbone whose ranking loss a denoising method has replaced."""

from __future__ import annotations

from typing import Any

import torch
from recbole.data.interaction import Interaction
from recbole.model.general_recommender.convncf import ConvNCFBPRLoss
from recbole.model.loss import BPRLoss
from recbole.utils import InputType
from torch import Tensor, nn

from recbole_guider.denoising.base import Context, Sample, SharedNegatives, pair_scores
from recbole_guider.denoising.methods import METHODS
from recbole_guider.denoising.settings import DenoisingSettings
from recbole_guider.models import Encoding, FactorisedRecommender, Scoring, fastest
from recbole_guider.utils.errors import GuiderError
from recbole_guider.utils.interactions import InteractionIndex

#: The column of the training interactions that numbers them.
INTERACTION = "interaction_index"

#: Loss modules of RecBole's models that are called with scores (logits) of pairs.
_PAIR_LOSSES = (BPRLoss, ConvNCFBPRLoss, nn.BCEWithLogitsLoss)


class Denoised(FactorisedRecommender):
    """A backbone with a denoising method, ``denoising: <method>``.

    A batch's loss is the method's, on the backbone's scores of the observed and the sampled pairs, plus whatever the
    backbone learns beside its ranking: ``auxiliary_loss`` and ``regulariser`` of this package's models; for RecBole's
    models, all of ``calculate_loss`` but the ranking loss, whose module is replaced by one that only reads the scores
    it is called with. With the ``softmax`` form the model is trained on cosines, so it is also scored by cosines.

    Its backbone is ``config.backbone_class``; to RecBole it is of the backbone's type.

    Raises:
        GuiderError: the backbone has no scores of pairs, or the method or the form needs matrices that it lacks, or the
            method keeps count of what it sees and mirror_gradient shows it batches twice.
    """

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        self.backbone: type = config.backbone_class
        self.type, self.input_type = config["MODEL_TYPE"], config["MODEL_INPUT_TYPE"]
        self.settings: DenoisingSettings = config.denoising_settings
        name = self.backbone.__name__
        self.sampling: dict[str, Any] = config["train_neg_sample_args"]
        if self.sampling["distribution"] == "none":
            raise GuiderError(
                f"denoising is {self.settings.method}: it needs sampled items in every batch, but {name} is trained "
                f"without (train_neg_sample_args is none)."
            )
        method = METHODS[self.settings.method]
        if method.keeps_count and config["mirror_gradient"] is not None:
            raise GuiderError(
                f"denoising is {self.settings.method} and mirror_gradient is set: the method counts batches or keeps a "
                f"record of them, and a batch that takes two steps would enter twice; leave mirror_gradient null for "
                f"it."
            )
        # The backbone first: with the same seed it starts from the same values as the plain model.
        self.recommender = fastest(self.backbone)(config, dataset)
        self.scoring = Scoring(self.recommender)
        self.factorises = self.scoring.factorised
        if not self.factorises and (method.needs_matrices or self.settings.form == "softmax"):
            what = f"the method {self.settings.method}" if method.needs_matrices else "loss_form: softmax"
            raise GuiderError(f"denoising: {what} needs user and item matrices, which {name} does not have.")
        self._reader: _ScoreReader | None = None
        if self.settings.form == "softmax":
            self.scoring.compare_by_cosines()
        if not isinstance(self.recommender, FactorisedRecommender):
            self._reader = _read_scores(self.recommender, name, self.settings.method)
        self.label_field: str = config["LABEL_FIELD"]
        self.generator("shared negatives", config["seed"] + 1)
        users, items = (dataset.inter_feat[field] for field in (dataset.uid_field, dataset.iid_field))
        #: what is none of a user's shared negatives, where that is left out
        self.profiles: InteractionIndex | None = None
        if self.settings.form == "softmax" and self.settings.own_as == "ignore":
            self.profiles = InteractionIndex(users.numpy(), items.numpy(), self.n_users, self.n_items)
        #: whether the loader gives pairs of an observed and a sampled item, or pairs with a label
        self.pairwise = self.input_type == InputType.PAIRWISE
        width = self._matrix_width() if method.needs_matrices else 0
        self.method = method(
            Context(self.settings, config, dataset, users.long(), items.long(), self.n_users, self.n_items, width,
                    self, self.recommender)
        )

    def _get_name(self) -> str:
        return f"Denoised_{self.backbone.__name__}"

    @torch.no_grad()
    def _matrix_width(self) -> int:
        self.recommender.to(self.device)  # where its constants are already
        self.recommender.eval()  # draws nothing
        width = self.scoring.factors().items.shape[1]
        self.recommender.train()
        return width

    def _encoding(self) -> Encoding:
        """The matrices that a backbone whose scores factorise makes."""
        if isinstance(self.recommender, FactorisedRecommender):
            return self.recommender.encode()
        return Encoding(*self.scoring.whole(self.scoring.factors()))

    # -- training -------------------------------------------------------------------------------------------------

    def calculate_loss(self, interaction: Interaction) -> Tensor:
        sample, other = self.observe(interaction)
        return self.method.loss(sample) + other

    def jointly_trained(self) -> list[nn.Parameter]:
        """The parameters of the backbone's optimiser: all but those that the method trains itself."""
        own = {
            id(parameter) for network, _ in self.method.own_networks().values() for parameter in network.parameters()
        }
        return [parameter for parameter in self.parameters() if id(parameter) not in own]

    def forward(self, interaction: Interaction) -> tuple[Sample, Tensor | float]:
        """:meth:`observe`, so that ``torch.func.functional_call`` can run it with other parameters."""
        return self.observe(interaction)

    def observe(self, interaction: Interaction) -> tuple[Sample, Tensor | float]:
        """The backbone's scores on a batch of its loader, and the sum of its losses beside the ranking loss."""
        users, items, negatives = self._pairs(interaction)
        shared = self._shared_negatives(users) if self.settings.form == "softmax" else None
        encoding: Encoding | None = None
        other: Tensor | float
        if isinstance(self.recommender, FactorisedRecommender):
            encoding = self.recommender.encode()
            other = self.recommender.auxiliary_loss(encoding, interaction)
            other = other + self.recommender.regulariser(encoding, interaction)
            other = other.sum() if isinstance(other, Tensor) else other
            scores = pair_scores(encoding.users, encoding.items, users, items, negatives, shared)
        else:
            assert self._reader is not None
            scores, other = self._reader.read(self.recommender, interaction, negatives.shape[1])
            if shared is not None:
                encoding = self._encoding()
                scores = pair_scores(encoding.users, encoding.items, users, items, negatives, shared)
        if encoding is None and self.method.uses_matrices and self.factorises:
            encoding = self._encoding()
        index = interaction[INTERACTION][: len(users)] if INTERACTION in interaction else users.new_empty(0)
        return Sample(users, items, negatives, index, *scores, self.settings.form, shared, encoding), other

    def _pairs(self, interaction: Interaction) -> tuple[Tensor, Tensor, Tensor]:
        """Users [P], items [P] and sampled items [P, N] of a pairwise or a pointwise batch."""
        users, items = interaction[self.USER_ID], interaction[self.ITEM_ID]
        if self.NEG_ITEM_ID in interaction:
            # RecBole's pairwise batch: its rows N times one after the other, each time with another sampled item; the
            # batches that a method draws for itself have no numbers, and one item for each row
            sampled = self.sampling["sample_num"] if INTERACTION in interaction else 1
            observed = len(users) // sampled
            return users[:observed], items[:observed], interaction[self.NEG_ITEM_ID].view(sampled, observed).T
        # RecBole's pointwise batch: the P observed pairs, then as many sampled ones in the same order, N times
        observed = int((interaction[self.label_field] > 0).sum())
        if observed == 0 or len(users) % observed or not bool((interaction[self.label_field][:observed] > 0).all()):
            raise GuiderError(
                f"denoising is {self.settings.method}: a batch must be observed pairs followed by pairs sampled for "
                f"them (train_neg_sample_args), not rows with labels of their own."
            )
        return users[:observed], items[:observed], items[observed:].view(-1, observed).T

    def _shared_negatives(self, users: Tensor) -> SharedNegatives:
        distinct, place = torch.unique(users, return_inverse=True)
        count = min(self.settings.negatives, self.n_items - 1)
        drawn = torch.randint(1, self.n_items, (count,), generator=self.generator("shared negatives")).unique()
        excluded = None
        if self.profiles is not None:
            row, column = self.profiles.among(distinct.cpu().numpy(), drawn.numpy())
            excluded = (torch.from_numpy(row).to(users.device), torch.from_numpy(column).to(users.device))
        return SharedNegatives(drawn.to(users.device), distinct, place, excluded, self.settings.temperature)

    # -- scoring --------------------------------------------------------------------------------------------------

    def encode(self) -> Encoding:
        """The matrices that predict: the backbone's, of unit length after the softmax form."""
        return Encoding(*self.scoring.matrices())

    def predict(self, interaction: Interaction) -> Tensor:
        return super().predict(interaction) if self.factorises else self.recommender.predict(interaction)

    def full_sort_predict(self, interaction: Interaction) -> Tensor:
        if self.factorises:
            return super().full_sort_predict(interaction)
        return self.recommender.full_sort_predict(interaction)


class _ScoreReader(nn.Module):
    """Takes the place of a RecBole model's ranking loss: keeps the scores that it is called with, and costs nothing."""

    def __init__(self, pairwise: bool) -> None:
        super().__init__()
        self.pairwise = pairwise
        self.calls: list[tuple[Tensor, ...]] = []

    def forward(self, *scores: Tensor) -> Tensor:
        self.calls.append(scores)
        return scores[0].new_zeros(())

    def read(self, model: Any, interaction: Interaction, sampled: int) -> tuple[tuple[Tensor, Tensor], Tensor | float]:
        """Scores [P] and [P, N] on a batch, and the rest of the model's loss."""
        self.calls.clear()
        rest = model.calculate_loss(interaction)
        if len(self.calls) != 1:
            raise GuiderError(
                f"denoising: {type(model).__name__} calls its ranking loss {len(self.calls)} times for a batch; a "
                f"method can replace one call only."
            )
        first, second = self.calls.pop()
        rest = sum(rest) if isinstance(rest, tuple) else rest
        rest = rest.sum() if isinstance(rest, Tensor) else rest
        if self.pairwise:
            observed = first.numel() // sampled
            return (first.reshape(-1)[:observed], second.reshape(sampled, observed).T), rest
        scores = first.reshape(-1)
        observed = len(scores) // (1 + sampled)
        return (scores[:observed], scores[observed:].view(sampled, observed).T), rest


def _read_scores(model: nn.Module, name: str, method: str) -> _ScoreReader:
    found = [(child, module) for child, module in model.named_children() if isinstance(module, _PAIR_LOSSES)]
    if len(found) != 1:
        raise GuiderError(
            f"denoising is {method}: {name} has no pairwise or pointwise score that a method could read (its loss is "
            f"no BPR or binary cross-entropy of RecBole's); take a backbone such as LightGCN, BPR or NeuMF."
        )
    child, module = found[0]
    reader = _ScoreReader(pairwise=not isinstance(module, nn.BCEWithLogitsLoss))
    setattr(model, child, reader)
    return reader
