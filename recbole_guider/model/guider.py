"""GUIDER around a backbone: an ID-based teacher on calibrated interactions, and a student that learns from it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import torch
from recbole.data.interaction import Interaction
from torch import Tensor, nn
from torch.nn.functional import normalize

from recbole_guider.calibration import CLEAN_PROBABILITY
from recbole_guider.distill import (
    catalogue_moments,
    kl_distillation_loss,
    min_norm_weights,
    ot_distillation_loss,
)
from recbole_guider.errors import GuiderError
from recbole_guider.losses import dbpr_loss, soft_negative
from recbole_guider.model.base import Encoding, FactorisedRecommender, factorised_encoding, scores_factorise
from recbole_guider.model.fast_lightgcn import FastLightGCN
from recbole_guider.parallel.batch import sum_of_parts, whole_batch
from recbole_guider.settings import DBPRSettings, GuiderSettings

#: RecBole models that this package computes faster, with the same parameters, loss and scores.
ACCELERATED: dict[str, type] = {"LightGCN": FastLightGCN}

#: Candidate items for models whose scores do not factorise, and users of a batch that are compared on them.
N_CANDIDATES = 256
N_CANDIDATE_USERS = 64
#: KL distillation compares the teacher's best items and random ones.
KL_TOP, KL_RANDOM = 50, 200


class Guider(FactorisedRecommender):
    """A backbone (the student) with its teacher.

    The teacher, an ID-based recommender, is trained on the DBPR loss over calibrated interactions
    (:meth:`teacher_loss`). The student, the backbone, is trained on its own loss, or on DBPR, and on the distillation
    loss from the frozen teacher (:meth:`calculate_loss`). It is the student that predicts. The schedule, the two
    optimisers and the calibration belong to the trainer (:mod:`recbole_guider.trainer`).

    With the ``softmax`` form of DBPR a model is trained on cosines, so it is also scored by cosines: the rows of its
    matrices have unit length.

    Concrete classes, one for each backbone, come from :func:`guider_class`.
    """

    backbone: type

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        self.settings: GuiderSettings = config.guider_settings
        # The student first: with the same seed it starts from the same values as the plain model.
        self.student = ACCELERATED.get(self.backbone.__name__, self.backbone)(config, dataset)
        self.student_factorises = scores_factorise(self.student)
        if self.settings.student_loss == "dbpr" and not self.student_factorises:
            raise GuiderError(
                f"guider.student_loss is dbpr: it needs user and item matrices, which {self.backbone.__name__} does "
                f"not have; use own."
            )
        self.teacher: nn.Module | None = None
        if self.settings.distillation.objective != "none":
            self.teacher = _build_teacher(config, dataset)
        seed: int = config["seed"]
        for name in ("negatives", "eta", "users", "candidates"):
            # one stream each, and none of them the one that draws initial values
            self.generator(name, seed=seed + 1 + sum(map(ord, name)))
        self.profiles = _Profiles(
            dataset.inter_feat[dataset.uid_field].numpy(),
            dataset.inter_feat[dataset.iid_field].numpy(),
            self.n_users,
            self.n_items,
        )
        self.true_profiles = self.profiles
        self.last_losses: dict[str, float] = {}
        self._teacher_matrices: tuple[Tensor, Tensor] | None = None
        self._teacher_moments: Any = None
        self._teacher_scores = False
        self._batch = 0

    # -- what the trainer tells the model -------------------------------------------------------------------------

    def set_calibration(self, users: np.ndarray, items: np.ndarray, is_clean: np.ndarray) -> None:
        """Take over which training interactions are true.

        Args:
            users, items: int ``[nnz]``, RecBole's ids of the training pairs.
            is_clean: bool ``[nnz]``.
        """
        self.true_profiles = _Profiles(users[is_clean], items[is_clean], self.n_users, self.n_items)

    @torch.no_grad()
    def freeze_teacher(self) -> None:
        """Begin a student pass: the teacher's matrices are computed once, as they stand."""
        self._batch = 0
        if self.teacher is None:
            return
        self.teacher.eval()
        self._teacher_matrices = self._scoring_matrices(self.teacher, self.settings.dbpr.form == "softmax")
        self._teacher_moments = catalogue_moments(self._teacher_matrices[1], self.settings.distillation.cost)

    def teacher_item_matrix(self) -> np.ndarray:
        """The frozen teacher's item matrix, float32 ``[n_items, d]``."""
        assert self._teacher_matrices is not None
        return self._teacher_matrices[1].cpu().numpy()

    @contextmanager
    def scored_by_teacher(self) -> Iterator[None]:
        """Within this context the model predicts with its teacher, so that a teacher can be evaluated by itself."""
        self._teacher_scores, self._evaluation_embeddings = True, None
        try:
            yield
        finally:
            self._teacher_scores, self._evaluation_embeddings = False, None

    # -- losses ---------------------------------------------------------------------------------------------------

    def teacher_loss(self, interaction: Interaction) -> Tensor:
        """DBPR of the teacher on a batch of calibrated interactions, with the teacher's own regulariser; scalar."""
        assert self.teacher is not None
        encoding = _encode(self.teacher)
        loss = self._dbpr(encoding, interaction)
        if isinstance(self.teacher, FactorisedRecommender):
            loss = loss + self.teacher.regulariser(encoding, interaction)
        loss = loss.sum()
        self.last_losses["teacher"] = loss.item()
        return loss

    def calculate_loss(self, interaction: Interaction) -> tuple[Tensor, Tensor]:
        """The student's losses on a batch: its ranking loss, and the weighted distillation loss."""
        encoding = _encode(self.student) if self.student_factorises else None
        own = self._student_loss(encoding, interaction).sum()
        interval = self.settings.distillation.interval
        due, self._batch = self._batch % interval == 0, self._batch + 1
        if self._teacher_matrices is None or not due:
            distilled = torch.zeros_like(own)
        else:
            distilled = self._distillation(encoding, interaction)
            own_weight, weight = self._balance(own, distilled, encoding, interaction)
            own, distilled = own_weight * own, weight * distilled
            self.last_losses["distillation"] = distilled.item()
        self.last_losses["student"] = own.item()
        return own, distilled

    def _student_loss(self, encoding: Encoding | None, interaction: Interaction) -> Tensor:
        student = self.student
        if encoding is not None and self.settings.student_loss == "dbpr":
            loss = self._dbpr(encoding, interaction)
            if isinstance(student, FactorisedRecommender):
                loss = loss + student.auxiliary_loss(encoding, interaction) + student.regulariser(encoding, interaction)
            return loss
        if encoding is not None and isinstance(student, FactorisedRecommender):
            return student.loss(encoding, interaction)
        losses = student.calculate_loss(interaction)
        return sum(losses) if isinstance(losses, tuple) else losses

    def _dbpr(self, encoding: Encoding, interaction: Interaction) -> Tensor:
        settings: DBPRSettings = self.settings.dbpr
        users, items = encoding.users, encoding.items
        user, item = interaction[self.USER_ID], interaction[self.ITEM_ID]
        clean = interaction[CLEAN_PROBABILITY]
        softmax = settings.form == "softmax"
        unit = (lambda matrix: normalize(matrix, dim=1)) if softmax else (lambda matrix: matrix)
        # The negatives are shared, so a user who comes several times in a batch is scored against them once.
        distinct, place = torch.unique(user, return_inverse=True)
        user_rows = unit(users[distinct])
        rows = user_rows[place]
        count = settings.negatives if softmax else 1
        sampled = torch.randint(1, self.n_items, (count,), generator=self.generator("negatives")).unique()
        positive = (rows * unit(items[item])).sum(dim=1)
        candidates = unit(items[sampled.to(user.device)])
        # what the user interacted with is no negative; with false_as: negative this holds for true interactions only
        own = self.true_profiles if settings.false_as == "negative" else self.profiles
        row, column = own.among(distinct.cpu().numpy(), sampled.numpy())
        hits = (row.to(user.device), column.to(user.device))
        usable = None
        if softmax and not settings.gamma:
            negative = soft_negative(user_rows, candidates, temperature=settings.temperature, excluded=hits)[place]
        else:
            negative = (user_rows @ candidates.T)[place]
            usable = torch.ones(len(distinct), len(sampled), dtype=torch.bool, device=user.device)
            usable[hits] = False
            usable = usable[place]
        true_score = false_score = None
        if settings.eta:
            # pairs are drawn for the whole batch: a part has them all
            batch = whole_batch(interaction)
            false = torch.nonzero(batch[CLEAN_PROBABILITY] < 0.5).squeeze(1)
            drawn = self.true_profiles.draw(batch[self.USER_ID][false].cpu().numpy(), self.generator("eta"))
            drawn = drawn.to(user.device)
            false, drawn = false[drawn >= 0], drawn[drawn >= 0]
            owners = unit(users[batch[self.USER_ID][false]])
            true_score = (owners * unit(items[drawn])).sum(dim=1)
            false_score = (owners * unit(items[batch[self.ITEM_ID][false]])).sum(dim=1)
        return dbpr_loss(
            positive,
            negative,
            clean,
            true_score,
            false_score,
            form=settings.form,
            temperature=settings.temperature,
            soft=settings.soft,
            eta=settings.eta,
            gamma=settings.gamma,
            negative_mask=usable,
        )

    def _distillation(self, encoding: Encoding | None, interaction: Interaction) -> Tensor:
        settings = self.settings.distillation
        teacher_users, _ = self._teacher_matrices  # type: ignore[misc]  # checked by the caller
        size = settings.users if encoding is not None else min(settings.users, N_CANDIDATE_USERS)
        # the plan is over the users of the whole batch: a part computes all of it
        batch = self._distinct_users(whole_batch(interaction)[self.USER_ID], size)
        if encoding is None or settings.objective == "kl":
            student_scores, teacher_scores = self._candidate_scores(batch, encoding)
            if settings.objective == "kl":
                return kl_distillation_loss(student_scores, teacher_scores, self.settings.dbpr.temperature)
            # The cost of explicit scores is the factorised one over an identity: S = S I.
            candidates = torch.eye(student_scores.shape[1], device=student_scores.device)
            factors = (student_scores, candidates, teacher_scores, candidates)
        else:
            factors = (encoding.users[batch], encoding.items, teacher_users[batch], self._teacher_moments)
        return ot_distillation_loss(
            *factors,
            cost=settings.cost,
            plan=settings.plan,
            epsilon=settings.epsilon,
            iterations=settings.iterations,
            anchor=settings.anchor,
            debias=settings.debias,
        )

    def _distinct_users(self, users: Tensor, size: int) -> Tensor:
        distinct = torch.unique(users)
        if len(distinct) <= size:
            return distinct
        order = torch.randperm(len(distinct), generator=self.generator("users"))[:size]
        return distinct[order.to(distinct.device)]

    def _candidate_scores(self, batch: Tensor, encoding: Encoding | None) -> tuple[Tensor, Tensor]:
        """Scores of student and teacher, ``[B, C]`` each, for the same candidate items of every user."""
        teacher_users, teacher_items = self._teacher_matrices  # type: ignore[misc]  # checked by the caller
        all_scores = teacher_users[batch] @ teacher_items.T
        all_scores[:, 0] = -torch.inf
        generator = self.generator("candidates")
        if encoding is not None:
            # each user's best items by the teacher, and items at random
            best = all_scores.topk(min(KL_TOP, self.n_items - 1), dim=1).indices
            random = torch.randint(1, self.n_items, (KL_RANDOM,), generator=generator).to(batch.device)
            chosen = torch.cat([best, random.expand(len(batch), -1)], dim=1)
            student_scores = (encoding.users[batch].unsqueeze(1) * encoding.items[chosen]).sum(dim=2)
        else:
            shared = torch.randperm(self.n_items - 1, generator=generator)[:N_CANDIDATES].to(batch.device) + 1
            chosen = shared.expand(len(batch), -1)
            pairs = Interaction(
                {
                    self.USER_ID: batch.repeat_interleave(len(shared)),
                    self.ITEM_ID: shared.repeat(len(batch)),
                }
            )
            student_scores = self.student.predict(pairs).view(len(batch), -1)
        return student_scores, all_scores.gather(1, chosen)

    def _balance(
        self, own: Tensor, distilled: Tensor, encoding: Encoding | None, interaction: Interaction
    ) -> tuple[float, float]:
        settings = self.settings.distillation
        if settings.balance == "fixed":
            return 1.0, settings.weight * settings.interval
        if encoding is None:
            raise GuiderError(
                f"guider.distillation.balance is min_norm: it compares gradients at the user and item matrices, which "
                f"{self.backbone.__name__} does not have; use fixed."
            )
        shared = [encoding.users, encoding.items]
        gradients = [
            torch.autograd.grad(loss, shared, retain_graph=True, materialize_grads=True) for loss in (own, distilled)
        ]
        return min_norm_weights(sum_of_parts(gradients[0], interaction), gradients[1])

    # -- scoring --------------------------------------------------------------------------------------------------

    @staticmethod
    def _scoring_matrices(model: nn.Module, unit_length: bool) -> tuple[Tensor, Tensor]:
        users, items, _ = _encode(model)
        return (normalize(users, dim=1), normalize(items, dim=1)) if unit_length else (users, items)

    def encode(self) -> Encoding:
        """The matrices that predict: the student's, or the teacher's within :meth:`scored_by_teacher`."""
        softmax = self.settings.dbpr.form == "softmax"
        if self._teacher_scores:
            assert self.teacher is not None
            return Encoding(*self._scoring_matrices(self.teacher, softmax))
        return Encoding(*self._scoring_matrices(self.student, softmax and self.settings.student_loss == "dbpr"))

    def predict(self, interaction: Interaction) -> Tensor:
        if self.student_factorises or self._teacher_scores:
            return super().predict(interaction)
        return self.student.predict(interaction)

    def full_sort_predict(self, interaction: Interaction) -> Tensor:
        if self.student_factorises or self._teacher_scores:
            return super().full_sort_predict(interaction)
        return self.student.full_sort_predict(interaction)


class _Profiles:
    """Who has which item, for set questions about whole batches."""

    def __init__(self, users: np.ndarray, items: np.ndarray, n_users: int, n_items: int) -> None:
        self.items, self.start = _grouped(items, users, n_users)
        self.users, self.item_start = _grouped(users, items, n_items)

    def among(self, users: np.ndarray, candidates: np.ndarray) -> tuple[Tensor, Tensor]:
        """Where in ``[B, N]`` candidate n is an item of user b: rows and columns, int64.

        O(users of the candidates + hits), whatever the length of the profiles.
        """
        length = self.item_start[candidates + 1] - self.item_start[candidates]
        columns = np.repeat(np.arange(len(candidates)), length)
        owners = self.users[_ranges(self.item_start[candidates], length)]
        # the rows of the batch that each owner stands in: none, one or several
        order = np.argsort(users, kind="stable")
        first = np.searchsorted(users, owners, side="left", sorter=order)
        count = np.searchsorted(users, owners, side="right", sorter=order) - first
        rows = order[_ranges(first, count)]
        return torch.from_numpy(rows), torch.from_numpy(np.repeat(columns, count))

    def draw(self, users: np.ndarray, generator: torch.Generator) -> Tensor:
        """int64 ``[M]``: one random item of each user, -1 where a user has none."""
        length = torch.from_numpy(self.start[users + 1] - self.start[users])
        offset = (torch.rand(len(users), generator=generator, dtype=torch.float64) * length).long()
        drawn = torch.full((len(users),), -1, dtype=torch.long)
        some = length > 0
        drawn[some] = torch.from_numpy(self.items)[(torch.from_numpy(self.start[users]) + offset)[some]].long()
        return drawn


def _grouped(values: np.ndarray, groups: np.ndarray, n_groups: int) -> tuple[np.ndarray, np.ndarray]:
    """``values`` sorted by group, and where each group starts ``[n_groups + 1]``."""
    start = np.zeros(n_groups + 1, dtype=np.int64)
    np.cumsum(np.bincount(groups, minlength=n_groups), out=start[1:])
    return values[np.argsort(groups, kind="stable")], start


def _ranges(start: np.ndarray, length: np.ndarray) -> np.ndarray:
    """start[0], start[0] + 1, ... (length[0] of them), start[1], ..."""
    return np.repeat(start - np.cumsum(length) + length, length) + np.arange(length.sum())


def _encode(model: nn.Module) -> Encoding:
    encoding = factorised_encoding(model)
    assert encoding is not None, "only called for models whose scores factorise"
    return encoding


def _build_teacher(config: Any, dataset: Any) -> nn.Module:
    teacher_config = config.teacher_config()
    name: str = teacher_config["model"]
    teacher = ACCELERATED.get(name, teacher_config.model_class)(teacher_config, dataset)
    if not scores_factorise(teacher):
        raise GuiderError(
            f"guider.teacher is {name}: a teacher needs user and item matrices, which it does not have; LightGCN and "
            f"BPR do."
        )
    return teacher


@cache
def guider_class(backbone: type) -> type:
    """The class of GUIDER around ``backbone``; called GUIDER_<Backbone>, with the backbone's RecBole types."""
    attributes = {
        "backbone": backbone,
        "type": backbone.type,  # type: ignore[attr-defined]  # RecBole's models declare it
        "input_type": backbone.input_type,  # type: ignore[attr-defined]
        "__doc__": f"GUIDER around {backbone.__name__}; see :class:`Guider`.",
        "__module__": __name__,
    }
    return type(f"GUIDER_{backbone.__name__}", (Guider,), attributes)
