"""What a student learns from a frozen teacher: the distillation loss of a batch, for models of every kind."""

from __future__ import annotations

import torch
from torch import Tensor

from recbole_guider.guider.settings import GuiderSettings
from recbole_guider.losses import ItemsOrMoments, kl_distillation_loss, ot_distillation_loss, reusable
from recbole_guider.models import (
    CANDIDATES,
    FACTORISED,
    ROWS,
    Encoding,
    Scoring,
    SeededGenerators,
    as_in_evaluation,
    explicit,
)

#: Items that student and teacher are compared on where one of them scores pairs only, and users of a batch.
N_CANDIDATES = 256
N_CANDIDATE_USERS = 64
#: Cost ``kl`` compares no more users than hold this many scores of the catalogue.
SCORES_OF_A_BATCH = 2**25
#: The temperature of cost ``kl``, in terms of DBPR's. Whole rows are mostly items that nobody would be shown: at DBPR's
#: own temperature they outweigh the few at the top (docs/method.md).
SHARPER = 0.5
#: The objective ``kl`` compares the teacher's best items and random ones.
KL_TOP, KL_RANDOM = 50, 200


class Distiller(SeededGenerators):
    """Distillation from a frozen teacher.

    Optimal transport compares the score rows of a batch's users over the whole catalogue (without the padding): by the
    matrices of a factorised model, or as a model that gives whole rows has them. Where student or teacher scores pairs
    only, both are compared on items drawn for the batch. The objective ``kl`` compares the scores of the teacher's best
    items and of random ones.

    With ``cost: auto`` rows are compared by ``kl`` where student and teacher are both ranked by cosines, as DBPR trains
    them, and by ``cosine`` elsewhere, where the scale of scores means nothing.

    Args:
        settings: of the whole guider block.
        student, teacher: how the two score.
        seed: of the drawn users and items, which have a generator each.
    """

    def __init__(self, settings: GuiderSettings, student: Scoring, teacher: Scoring, seed: int) -> None:
        super().__init__()
        self.settings = settings.distillation
        self.student, self.teacher = student, teacher
        self.cost = self.settings.cost
        if self.cost == "auto":
            # a divergence compares scores of one scale: cosines under one temperature
            self.cost = "kl" if student.by_cosines and teacher.by_cosines else "cosine"
        temperature = self.settings.temperature
        if temperature is None:
            temperature = settings.dbpr.temperature * (SHARPER if self.settings.objective == "ot" else 1.0)
        self.temperature = temperature
        self.n_items: int = student.model.n_items
        self.exact = CANDIDATES not in (student.kind, teacher.kind)
        for name in ("users", "candidates"):
            self.generator(name, seed=seed + 1 + sum(map(ord, name)))
        self.teacher_matrices: tuple[Tensor, Tensor] | None = None
        self._teacher_items: ItemsOrMoments | None = None
        self._batch = 0

    # the place in the epoch decides whether a batch is distilled: like the generators, it moves on with every loss
    def get_extra_state(self) -> dict[str, Tensor]:
        return {**super().get_extra_state(), "batch": torch.tensor(self._batch)}

    def set_extra_state(self, state: dict[str, Tensor]) -> None:
        state = dict(state)
        self._batch = int(state.pop("batch", 0))  # every pass of the student begins at 0: it may be lacking
        super().set_extra_state(state)

    @torch.no_grad()
    def freeze(self) -> None:
        """Begin a student pass: a factorised teacher's matrices are computed once, as they stand."""
        self._batch = 0
        if self.teacher.kind == FACTORISED:
            with as_in_evaluation(self.teacher.model):
                users, items = self.teacher.matrices()
            self.teacher_matrices = users, items
            self._teacher_items = reusable(items[1:], self.cost)

    def due(self) -> bool:
        """Whether this batch is one of those that distil; call it once for each batch."""
        due, self._batch = self._batch % self.settings.interval == 0, self._batch + 1
        return due

    def loss(self, encoding: Encoding | None, users: Tensor) -> Tensor:
        """The loss, not yet weighted, over the users int64 [B] of a batch (repeated ones count once); scalar.

        Args:
            encoding: the student's, where it has one.
        """
        settings = self.settings
        users = self._distinct(users, self._most_users())
        if settings.objective == "kl":
            return self._kl(encoding, users)
        if self.exact:
            of_student, of_teacher = self._student_factors(encoding, users), self._teacher_factors(users)
        else:
            chosen = self._candidates(N_CANDIDATES, users.device).expand(len(users), -1)
            of_student = explicit(self.student.chosen(users, chosen, encoding))
            of_teacher = explicit(self._teacher_scores(users, chosen))
        return ot_distillation_loss(
            *of_student,
            *of_teacher,
            cost=self.cost,
            temperature=self.temperature,
            plan=settings.plan,
            epsilon=settings.epsilon,
            iterations=settings.iterations,
            anchor=settings.anchor,
        )

    def _most_users(self) -> int:
        settings = self.settings
        if not self.exact:
            return min(settings.users, N_CANDIDATE_USERS)
        if settings.objective == "ot" and self.cost == "kl":
            return max(2, min(settings.users, SCORES_OF_A_BATCH // self.n_items))
        return settings.users

    def _student_factors(self, encoding: Encoding | None, users: Tensor) -> tuple[Tensor, Tensor]:
        if self.student.kind == ROWS:
            return explicit(self.student.rows(users)[:, 1:])
        factors = self.student.scored_factors(encoding)
        return factors.users(users), factors.items[1:]

    @torch.no_grad()
    def _teacher_factors(self, users: Tensor) -> tuple[Tensor, ItemsOrMoments]:
        if self.teacher.kind == ROWS:
            with as_in_evaluation(self.teacher.model):
                return explicit(self.teacher.rows(users)[:, 1:])
        assert self.teacher_matrices is not None and self._teacher_items is not None, "freeze() comes first"
        return self.teacher_matrices[0][users], self._teacher_items

    @torch.no_grad()
    def _teacher_scores(self, users: Tensor, items: Tensor) -> Tensor:
        """Scores [B, C] of the frozen teacher for items [B, C]."""
        if self.teacher_matrices is not None:
            of_users, of_items = self.teacher_matrices
            return (of_users[users].unsqueeze(1) * of_items[items]).sum(dim=2)
        with as_in_evaluation(self.teacher.model):
            return self.teacher.chosen(users, items)

    def _kl(self, encoding: Encoding | None, users: Tensor) -> Tensor:
        random = self._candidates(KL_RANDOM, users.device).expand(len(users), -1)
        if self.teacher.kind == CANDIDATES:
            chosen = random
            teacher_scores = self._teacher_scores(users, chosen)
        else:
            rows = self._teacher_rows(users)
            best = rows.topk(min(KL_TOP, self.n_items - 1), dim=1).indices
            chosen = torch.cat([best, random], dim=1)
            teacher_scores = rows.gather(1, chosen)
        return kl_distillation_loss(self.student.chosen(users, chosen, encoding), teacher_scores, self.temperature)

    @torch.no_grad()
    def _teacher_rows(self, users: Tensor) -> Tensor:
        """All scores [B, n_items] of the frozen teacher, minus infinity for the padding."""
        if self.teacher_matrices is not None:
            rows = self.teacher_matrices[0][users] @ self.teacher_matrices[1].T
        else:
            with as_in_evaluation(self.teacher.model):
                rows = self.teacher.rows(users).clone()
        rows[:, 0] = -torch.inf
        return rows

    def _distinct(self, users: Tensor, size: int) -> Tensor:
        distinct = torch.unique(users)
        distinct = distinct[distinct > 0]  # batches of whole users hold the padding, too
        if len(distinct) <= size:
            return distinct
        order = torch.randperm(len(distinct), generator=self.generator("users"))[:size]
        return distinct[order.to(distinct.device)]

    def _candidates(self, count: int, device: torch.device) -> Tensor:
        drawn = torch.randperm(self.n_items - 1, generator=self.generator("candidates"))[:count] + 1
        return drawn.to(device)
