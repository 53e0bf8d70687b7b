"""GUIDER around a backbone: a teacher on calibrated interactions, and a student that learns from it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from logging import getLogger
from typing import Any

import numpy as np
import torch
from recbole.data.interaction import Interaction
from recbole.model.general_recommender import BPR
from torch import Tensor, nn

from recbole_guider.guider.distiller import N_CANDIDATE_USERS, N_CANDIDATES
from recbole_guider.guider.plan import parts_of
from recbole_guider.guider.settings import GuiderSettings
from recbole_guider.guider.teacher import DBPR, PAIRS_OF_A_BATCH
from recbole_guider.guider.weighting import (
    PairLookup,
    ThinnedHistory,
    WeighedHistory,
    has_weighable_rows,
    learns_history_lists,
    reads_histories,
    weighted_ranking_loss,
)
from recbole_guider.models.accelerated import fastest
from recbole_guider.models.base import Encoding, FactorisedRecommender, require_sampled_items
from recbole_guider.models.scoring import CANDIDATES, ROWS, Scoring, trainable
from recbole_guider.utils.batch_parts import sum_of_parts, whole_batch
from recbole_guider.utils.errors import GuiderError


class Guider(FactorisedRecommender):
    """A backbone (the student) with its teacher.

    The teacher is trained on calibrated interactions (:meth:`teacher_loss`): on the DBPR loss where its scores can be
    had for single pairs, else on its own loss. The student, the backbone, is trained on its own loss, or on DBPR, and
    on the distillation loss from the frozen teacher (:meth:`calculate_loss`). It is the student that predicts. The
    schedule, the optimisers and the calibration belong to the trainer (:mod:`recbole_guider.training.trainer`).

    With the ``softmax`` form of DBPR a factorised model is trained on cosines, so it is also scored by cosines: the
    rows of its matrices have unit length.

    A trainer finds everything that the backbone has here, too: RecBole's trainers of single models call methods of
    theirs (NCL's ``e_step``, RecVAE's ``update_prior``).

    Its backbone is ``config.backbone_class``; to RecBole it is of the backbone's type.
    """

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        self.backbone: type = config.backbone_class
        self.type, self.input_type = config["MODEL_TYPE"], config["MODEL_INPUT_TYPE"]
        self.settings: GuiderSettings = config.guider_settings
        self.parts = parts_of(self.settings.variant)
        # The student first: with the same seed it starts from the same values as the plain model.
        self.student = fastest(self.backbone)(config, dataset)
        self.student_scoring = Scoring(self.student)
        self.teacher: nn.Module | None = None
        self.teacher_scoring: Scoring | None = None
        if self.settings.distillation.objective != "none" or "distillation" in self.parts.ignored:
            self.teacher = self.parts.build_teacher(self.parts.teacher_config(config), dataset)
            self.teacher_scoring = Scoring(self.teacher)
        self._check(config)
        seed: int = config["seed"]
        users, items = (dataset.inter_feat[field].numpy() for field in (dataset.uid_field, dataset.iid_field))
        self.dbpr = DBPR(
            self.settings.dbpr, users, items, self.n_users, self.n_items, (self.USER_ID, self.ITEM_ID), seed
        )
        learners = ((self.student_scoring, self.student_learns_dbpr), (self.teacher_scoring, self.teacher_learns_dbpr))
        for scoring, learns_dbpr in learners:
            if scoring is not None and learns_dbpr and self.dbpr.unit_length:
                scoring.compare_by_cosines()
        self.distiller = None
        if self.teacher_scoring is not None:
            self.distiller = self.parts.distiller(self.settings, self.student_scoring, self.teacher_scoring, seed)
        #: losses of the latest batch, and their sums since :meth:`begin_epoch`, by name
        self.last_losses: dict[str, float] = {}
        self.epoch_losses: dict[str, float] = {}
        self._said = False
        self._teacher_scores = False
        self._pairs = users, items
        self._set_up_histories(len(users), seed)

    def _get_name(self) -> str:
        return f"GUIDER_{self.backbone.__name__}"

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            student = self.__dict__.get("_modules", {}).get("student")
            # a buffer belongs to its own module: who asks for one is about to register it
            if student is None or name.startswith("__") or name in student._buffers:
                raise
            return getattr(student, name)

    # -- what applies to these two models -------------------------------------------------------------------------

    @property
    def student_learns_dbpr(self) -> bool:
        """Whether DBPR takes the place of the student's ranking loss.

        With ``auto`` it does where nothing but the ranking loss is replaced: a model that keeps it apart is a
        :class:`~recbole_guider.models.base.FactorisedRecommender`.
        """
        if "student_loss" in self.parts.ignored:
            return False
        if self.settings.student_loss == "auto":
            return isinstance(self.student, FactorisedRecommender)
        return self.settings.student_loss == "dbpr"

    @property
    def teacher_learns_dbpr(self) -> bool:
        """Whether the teacher is trained on DBPR; else on its own loss."""
        scoring = self.teacher_scoring
        wanted = self.parts.teacher_learns_dbpr and self.settings.teacher_loss == "dbpr"
        return wanted and scoring is not None and scoring.kind != ROWS

    @property
    def teacher_needs_negatives(self) -> bool:
        """Whether the teacher's loss has a part that compares a sampled item (as FREEDOM's content terms do)."""
        return _samples_beside_ranking(self.teacher)

    @property
    def weighting(self) -> str:
        """How the student's own loss sees the calibration: ``rows`` (weighted), ``thinned`` (rows), ``history``,
        ``thinned history`` or ``none``."""
        if not self.parts.calibrates or self.student_learns_dbpr or self.settings.student_weighting == "none":
            return "none"
        if self._weighed:
            return "history"
        if self._thinned is not None:
            return "thinned history"
        exact = self.settings.student_weighting == "weight" and has_weighable_rows(self.student)
        return "rows" if exact else "thinned"

    @property
    def notes(self) -> list[str]:
        """What a user should know of how these two models are taught: a sentence for each thing out of the ordinary."""
        student, notes = self.student_scoring, []
        if self.teacher_scoring is not None:
            for scoring in (student, self.teacher_scoring):
                if scoring.kind == CANDIDATES:
                    notes.append(
                        f"{scoring.name} scores pairs: the distillation loss compares {N_CANDIDATES} items drawn for "
                        f"each batch, not the whole catalogue, for {N_CANDIDATE_USERS} users at most."
                    )
            if self.teacher_scoring.kind == ROWS and self.parts.teacher_learns_dbpr:
                notes.append(
                    f"{self.teacher_scoring.name} scores whole rows only: as a teacher it learns from its own loss, "
                    f"with histories weighed by the clean probability, not from DBPR."
                )
        taught = [student] if self.student_learns_dbpr else []
        taught += [self.teacher_scoring] if self.teacher_scoring is not None and self.teacher_learns_dbpr else []
        for scoring in taught:
            if scoring.kind == CANDIDATES and self.settings.dbpr.form == "softmax":
                notes.append(
                    f"{scoring.name} scores pairs: DBPR takes so many negatives that a batch has at most "
                    f"{PAIRS_OF_A_BATCH} pairs, which may be fewer than guider.dbpr.negatives."
                )
            if not isinstance(scoring.model, (FactorisedRecommender, BPR)):
                notes.append(
                    f"{scoring.name} learns from DBPR in place of its whole loss, whatever that has beside the ranking "
                    f"(regularisers, contrastive terms)."
                )
        if self.student_learns_dbpr and self.settings.student_weighting == "weight":
            notes.append(f"{student.name} learns from DBPR, which weighs rows: guider.student_weighting is not read.")
        if self.weighting == "history":
            notes.append(f"{student.name} learns whole histories: they are weighed by the clean probability.")
        elif self.weighting == "thinned history":
            notes.append(f"{student.name} learns whole histories: an epoch takes an item with its clean probability.")
        elif self.settings.student_weighting == "weight" and self.weighting == "thinned":
            notes.append(
                f"the loss of {student.name} cannot be had row by row: rows are resampled instead of weighted "
                f"(guider.student_weighting)."
            )
        if self.parts.ignored:
            notes.append(
                f"guider.variant {self.settings.variant} does not read {', '.join(self.parts.ignored)}."
            )
        return list(dict.fromkeys(notes))

    def _check(self, config: Any) -> None:
        """Raise for what cannot work with these two models, before anything is trained."""
        settings = self.settings
        if self.student_learns_dbpr and self.student_scoring.kind == ROWS:
            raise GuiderError(
                f"guider.student_loss is dbpr: it needs scores of single pairs, and {self.backbone.__name__} gives "
                f"whole rows only; use own."
            )
        learners = {self.student: self.student_learns_dbpr}
        if self.teacher is not None:
            learners[self.teacher] = self.teacher_learns_dbpr
        for model, learns_dbpr in learners.items():
            # DBPR draws its own, and what a model learns beside its ranking loss may need some
            if not learns_dbpr or _samples_beside_ranking(model):
                require_sampled_items(config, model)
        if settings.calibration.recalibrate_every and "calibration" not in self.parts.ignored:
            if not settings.calibration.behaviour:
                raise GuiderError(
                    f"guider.calibration.recalibrate_every is {settings.calibration.recalibrate_every} and "
                    f"guider.calibration.behaviour is false: calibrating again takes the behaviour from the teacher, "
                    f"and nothing else changes; use 0, or set behaviour to true."
                )
            scoring = self.teacher_scoring
            if scoring is None or not scoring.factorised:
                what = "there is no teacher" if scoring is None else f"{scoring.name} has none"
                raise GuiderError(
                    f"guider.calibration.recalibrate_every is {settings.calibration.recalibrate_every}: calibrating "
                    f"again takes the behaviour from the teacher's item matrix, and {what}; use 0."
                )

    # -- calibration ----------------------------------------------------------------------------------------------

    def _set_up_histories(self, size: int, seed: int) -> None:
        self._weighed: list[WeighedHistory] = []
        self._thinned: ThinnedHistory | None = None
        self._lookup: PairLookup | None = None
        if not self.parts.calibrates:
            return
        if self.settings.student_weighting != "none":
            if reads_histories(self.student):
                self._weighed.append(WeighedHistory(self.student))
            elif learns_history_lists(self.student):
                self._thinned = ThinnedHistory(self.student, self.generator("history", seed=seed + 2))
        if self.teacher is not None and not self.teacher_learns_dbpr and reads_histories(self.teacher):
            self._weighed.append(WeighedHistory(self.teacher))
        if self._weighed:
            # the model scores with the weighed histories: a checkpoint must hold the weights
            self.register_buffer("clean_probability", torch.ones(size))
            self.register_load_state_dict_post_hook(_weigh_after_loading)

    def set_calibration(self, users: np.ndarray, items: np.ndarray, clean_probability: np.ndarray) -> None:
        """Take over how clean each training interaction is.

        Args:
            users, items: int ``[nnz]``, RecBole's ids of the training pairs.
            clean_probability: float ``[nnz]``; 0.5 and more counts as true.
        """
        is_clean = clean_probability >= 0.5
        self.dbpr.set_true(users[is_clean], items[is_clean])
        self._pairs = users, items
        if self._weighed:
            self.clean_probability.copy_(torch.from_numpy(clean_probability))
        self.weigh_histories(clean_probability)

    def weigh_histories(self, clean_probability: np.ndarray) -> None:
        """Let the models that read whole histories read them by clean_probability, float ``[nnz]``."""
        if self._weighed or self._thinned is not None:
            self._lookup = PairLookup(*self._pairs, clean_probability, self.n_items)
        for history in self._weighed:
            history.apply(self._lookup)  # type: ignore[arg-type]  # made above

    # -- passes ---------------------------------------------------------------------------------------------------

    def begin_epoch(self) -> None:
        """Forget the losses of the epoch before."""
        self.last_losses.clear()
        self.epoch_losses.clear()

    def freeze_teacher(self) -> None:
        """Begin a student pass: what the teacher knows is taken as it stands."""
        if self.distiller is not None:
            self.distiller.freeze()
        if self._thinned is not None and self._lookup is not None:
            self._thinned.draw(self._lookup)

    def teacher_item_matrix(self) -> np.ndarray:
        """The frozen teacher's item matrix, float32 ``[n_items, d]``."""
        assert self.distiller is not None and self.distiller.teacher_matrices is not None
        return self.distiller.teacher_matrices[1].cpu().numpy()

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
        """The teacher's loss on a batch; scalar.

        DBPR with whatever the teacher learns beside its ranking, or the teacher's own loss.
        """
        teacher, scoring = self.teacher, self.teacher_scoring
        assert teacher is not None and scoring is not None
        if self.teacher_learns_dbpr:
            loss = self._dbpr(teacher, scoring, interaction)[0].sum()
        else:
            loss = sum(_parts(teacher.calculate_loss(interaction)))
        self._record("teacher", loss, interaction)
        return loss

    def calculate_loss(self, interaction: Interaction, **arguments: Any) -> Tensor | tuple[Tensor, ...]:
        """The student's loss on a batch with the weighted distillation loss added.

        It has the form of the backbone's own loss, one number or several, as the backbone's trainer expects it.

        Args:
            arguments: what the backbone's own trainer gives its loss beside the batch.
        """
        own, distilled = self.student_losses(interaction, **arguments)
        if distilled is not None:
            own = (own[0] + distilled, *own[1:])
        return own if len(own) > 1 else own[0]

    def student_losses(self, interaction: Interaction, **arguments: Any) -> tuple[tuple[Tensor, ...], Tensor | None]:
        """The student's own loss in its parts, and the distillation loss (None in a batch without), both weighted."""
        own, encoding = self._own_losses(interaction, **arguments)
        distilled = None
        if self.distiller is not None and self.distiller.due():
            # over the users of the whole batch: a part computes all of it
            distilled = self.distiller.loss(encoding, whole_batch(interaction)[self.USER_ID])
            if not distilled.requires_grad:
                self._say_that_nothing_is_distilled()
                distilled = None
        if distilled is not None:
            own_weight, weight = self.parts.balance(
                sum(own[1:], own[0]),
                distilled,
                self._shared(encoding),
                self.settings,
                interaction,
            )
            own, distilled = tuple(own_weight * part for part in own), weight * distilled
            self._record("distillation", distilled, interaction)
        self._record("student", sum(part.detach() for part in own), interaction)
        return own, distilled

    def _say_that_nothing_is_distilled(self) -> None:
        if not self._said:
            getLogger().warning(
                f"The scores of {self.student_scoring.name} depend on nothing that is being trained: it learns nothing "
                f"from its teacher."
            )
        self._said = True

    def _own_losses(self, interaction: Interaction, **arguments: Any) -> tuple[tuple[Tensor, ...], Encoding | None]:
        student = self.student
        if self.student_learns_dbpr:
            loss, encoding = self._dbpr(student, self.student_scoring, interaction)
            return (loss.sum(),), encoding
        if not isinstance(student, FactorisedRecommender):
            return _parts(student.calculate_loss(interaction, **arguments)), None
        encoding = student.encode()
        if self.weighting != "rows":
            return (student.loss(encoding, interaction).sum(),), encoding
        loss = weighted_ranking_loss(student, encoding, interaction) + _beside_ranking(student, encoding, interaction)
        return (loss.sum(),), encoding

    def _dbpr(self, model: nn.Module, scoring: Scoring, interaction: Interaction) -> tuple[Tensor, Encoding | None]:
        """DBPR in place of a model's ranking loss, and what else the model learns."""
        if not scoring.factorised:
            return self.dbpr.of_pairs(scoring, interaction), None
        if not isinstance(model, FactorisedRecommender):
            return self.dbpr.of_factors(scoring.factors(), interaction), None
        encoding = model.encode()
        loss = self.dbpr.of_factors(scoring.factors(encoding), interaction)
        return loss + _beside_ranking(model, encoding, interaction), encoding

    def _shared(self, encoding: Encoding | None) -> Sequence[Tensor]:
        """What both losses of the student depend on."""
        if encoding is not None and self.parts.balances_at_matrices:
            return [encoding.users, encoding.items]
        return trainable(self.student)

    def _record(self, name: str, loss: Tensor, interaction: Interaction) -> None:
        value = float(sum_of_parts([loss.detach().float()], interaction)[0])
        self.last_losses[name] = value
        self.epoch_losses[name] = self.epoch_losses.get(name, 0.0) + value

    # -- scoring --------------------------------------------------------------------------------------------------

    @property
    def _predicting(self) -> Scoring:
        """How the model that predicts scores."""
        if not self._teacher_scores:
            return self.student_scoring
        assert self.teacher_scoring is not None
        return self.teacher_scoring

    def encode(self) -> Encoding:
        """The matrices that predict: the student's, or the teacher's within :meth:`scored_by_teacher`."""
        return Encoding(*self._predicting.matrices())

    def predict(self, interaction: Interaction) -> Tensor:
        scoring = self._predicting
        if not scoring.factorised:
            return scoring.model.predict(interaction)
        return scoring.link(super().predict(interaction))

    def full_sort_predict(self, interaction: Interaction) -> Tensor:
        scoring = self._predicting
        if not scoring.factorised:
            return scoring.model.full_sort_predict(interaction)
        return scoring.link(super().full_sort_predict(interaction))

    # -- checkpoints ----------------------------------------------------------------------------------------------

    # sums over an epoch move on with every loss, like the generators: what computes a loss twice takes both back
    def get_extra_state(self) -> dict[str, Tensor]:
        sums = {f"loss.{name}": torch.tensor(value, dtype=torch.float64) for name, value in self.epoch_losses.items()}
        return {**super().get_extra_state(), **sums}

    def set_extra_state(self, state: dict[str, Tensor]) -> None:
        sums = {name for name in state if name.startswith("loss.")}
        self.epoch_losses = {name.removeprefix("loss."): float(state[name]) for name in sums}
        super().set_extra_state({name: value for name, value in state.items() if name not in sums})

    def other_parameter(self) -> dict[str, Any]:
        """What the two models keep outside their parameters."""
        models = {"student": self.student, "teacher": self.teacher}
        return {name: model.other_parameter() for name, model in models.items() if model is not None}

    def load_other_parameter(self, para: Mapping[str, Any] | None) -> None:
        for name, values in (para or {}).items():
            getattr(self, name).load_other_parameter(values)


def _weigh_after_loading(model: Guider, incompatible_keys: Any) -> None:
    model.weigh_histories(model.clean_probability.cpu().numpy())


def _parts(losses: Any) -> tuple[Tensor, ...]:
    """A model's loss as a tuple of scalars; some of RecBole's have a shape of one."""
    return tuple(loss.sum() for loss in (losses if isinstance(losses, tuple) else (losses,)))


def _samples_beside_ranking(model: nn.Module | None) -> bool:
    """Whether what a model learns beside its ranking loss compares sampled items."""
    if not isinstance(model, FactorisedRecommender) or not model.compares_sampled_items:
        return False
    return model.auxiliary_loss_samples and type(model).auxiliary_loss is not FactorisedRecommender.auxiliary_loss


def _beside_ranking(model: FactorisedRecommender, encoding: Encoding, interaction: Interaction) -> Tensor | float:
    """What a model learns beside its ranking loss."""
    return model.auxiliary_loss(encoding, interaction) + model.regulariser(encoding, interaction)
