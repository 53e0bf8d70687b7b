"""Who learns what in a run of GUIDER, and what its user should know of that: decided once, from settings and models."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from recbole.model.general_recommender import BPR
from torch import nn

from recbole_guider.guider.distiller import N_CANDIDATE_USERS, N_CANDIDATES
from recbole_guider.guider.settings import GuiderSettings
from recbole_guider.guider.teacher import PAIRS_OF_A_BATCH
from recbole_guider.guider.weighting import has_weightable_rows, learns_history_lists, reads_histories
from recbole_guider.models import CANDIDATES, ROWS, FactorisedRecommender, Scoring
from recbole_guider.utils.errors import GuiderError


@dataclass(frozen=True)
class TeachingPlan:
    """How the two models of a run are taught.

    Attributes:
        calibrates: whether AMSC judges the interactions before training; if not, all of them count as clean.
        student_learns_dbpr: whether DBPR takes the place of the student's ranking loss.
        teacher_learns_dbpr: whether the teacher is trained on DBPR; else on its own loss.
        teacher_needs_negatives: whether the teacher's loss has a part that compares a sampled item (as FREEDOM's
            content terms do).
        weighting: how the student's own loss sees the calibration: ``rows`` (weighted), ``subsampled`` (rows),
            ``history`` (weighted), ``subsampled history`` or ``none``.
        teacher_weights_history: whether the teacher's own loss reads histories, which then are weighted.
        need_sampled_items: the models whose loss compares items that RecBole samples.
        notes: what a user should know of it: a sentence for each thing out of the ordinary.
    """

    calibrates: bool
    student_learns_dbpr: bool
    teacher_learns_dbpr: bool
    teacher_needs_negatives: bool
    weighting: str
    teacher_weights_history: bool
    need_sampled_items: tuple[nn.Module, ...]
    notes: tuple[str, ...]

    @property
    def weights_histories(self) -> bool:
        """Whether a model scores with weighted histories, so that a checkpoint has to hold the weights."""
        return self.weighting == "history" or self.teacher_weights_history


def make_plan(settings: GuiderSettings, student: Scoring, teacher: Scoring | None) -> TeachingPlan:
    """The plan of the default variant.

    With ``student_loss: auto`` the student learns DBPR where nothing but its ranking loss is replaced: a model that
    keeps it apart is a :class:`~recbole_guider.models.base.FactorisedRecommender`. A teacher learns DBPR unless it
    scores whole rows only, or ``teacher_loss`` is ``own``.

    Args:
        settings: the guider block.
        student, teacher: how the two models score; no teacher where nothing is distilled.

    Raises:
        GuiderError: something cannot work with these two models.
    """
    student_learns_dbpr = settings.student_loss == "dbpr" or (
        settings.student_loss == "auto" and isinstance(student.model, FactorisedRecommender)
    )
    if student_learns_dbpr and student.kind == ROWS:
        raise GuiderError(
            f"guider.student_loss is dbpr: it needs scores of single pairs, and {student.name} gives whole rows only; "
            f"use own."
        )
    teacher_learns_dbpr = settings.teacher_loss == "dbpr" and teacher is not None and teacher.kind != ROWS
    learners = [(student, student_learns_dbpr)]
    if teacher is not None:
        learners.append((teacher, teacher_learns_dbpr))
    plan = TeachingPlan(
        calibrates=True,
        student_learns_dbpr=student_learns_dbpr,
        teacher_learns_dbpr=teacher_learns_dbpr,
        teacher_needs_negatives=teacher is not None and _samples_beside_ranking(teacher.model),
        weighting=_weighting(settings, student.model, student_learns_dbpr),
        teacher_weights_history=teacher is not None and not teacher_learns_dbpr and reads_histories(teacher.model),
        # DBPR draws its own, and what a model learns beside its ranking loss may need some
        need_sampled_items=tuple(
            each.model for each, learns_dbpr in learners if not learns_dbpr or _samples_beside_ranking(each.model)
        ),
        notes=(),
    )
    return replace(plan, notes=tuple(dict.fromkeys(_notes(plan, settings, student, teacher))))


def _weighting(settings: GuiderSettings, student: nn.Module, learns_dbpr: bool) -> str:
    if learns_dbpr or settings.student_weighting == "none":
        return "none"
    if reads_histories(student):
        return "history"
    if learns_history_lists(student):
        return "subsampled history"
    return "rows" if settings.student_weighting == "weight" and has_weightable_rows(student) else "subsampled"


def _notes(
    plan: TeachingPlan, settings: GuiderSettings, student: Scoring, teacher: Scoring | None
) -> Iterator[str]:
    for scoring in (student, teacher) if teacher is not None else ():
        if scoring.kind == CANDIDATES:
            yield (
                f"{scoring.name} scores pairs: the distillation loss compares {N_CANDIDATES} items drawn for each "
                f"batch, not the whole catalogue, for {N_CANDIDATE_USERS} users at most."
            )
    if teacher is not None and teacher.kind == ROWS:
        yield (
            f"{teacher.name} scores whole rows only: as a teacher it learns from its own loss, with histories weighted "
            f"by the clean probability, not from DBPR."
        )
    learners = [student] if plan.student_learns_dbpr else []
    learners += [teacher] if teacher is not None and plan.teacher_learns_dbpr else []
    for scoring in learners:
        if scoring.kind == CANDIDATES and settings.dbpr.form == "softmax":
            yield (
                f"{scoring.name} scores pairs: DBPR takes so many negatives that a batch has at most "
                f"{PAIRS_OF_A_BATCH} pairs, which may be fewer than guider.dbpr.negatives."
            )
        if not isinstance(scoring.model, (FactorisedRecommender, BPR)):
            yield (
                f"{scoring.name} learns from DBPR in place of its whole loss, whatever that has beside the ranking "
                f"(regularisers, contrastive terms)."
            )
    if plan.student_learns_dbpr and settings.student_weighting == "weight":
        yield f"{student.name} learns from DBPR, which weights rows: guider.student_weighting is not read."
    if plan.weighting == "history":
        yield f"{student.name} learns whole histories: they are weighted by the clean probability."
    elif plan.weighting == "subsampled history":
        yield f"{student.name} learns whole histories: an epoch takes an item with its clean probability."
    elif plan.weighting == "subsampled" and settings.student_weighting == "weight":
        yield (
            f"the loss of {student.name} cannot be had row by row: rows are resampled instead of weighted "
            f"(guider.student_weighting)."
        )


def _samples_beside_ranking(model: nn.Module) -> bool:
    """Whether what a model learns beside its ranking loss compares sampled items."""
    if not isinstance(model, FactorisedRecommender) or not model.compares_sampled_items:
        return False
    return model.auxiliary_loss_samples and type(model).auxiliary_loss is not FactorisedRecommender.auxiliary_loss
