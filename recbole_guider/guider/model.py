"""GUIDER around a backbone: a teacher on calibrated interactions, and a student that learns from it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from logging import getLogger
from typing import Any

import numpy as np
import torch
from recbole.data.interaction import Interaction
from torch import Tensor, nn

from recbole_guider.guider.distiller import Distiller
from recbole_guider.guider.plan import TeachingPlan, make_plan
from recbole_guider.guider.settings import GuiderSettings
from recbole_guider.guider.teacher import DBPR
from recbole_guider.guider.weighting import Histories, weighted_ranking_loss
from recbole_guider.losses import min_norm_weights
from recbole_guider.models import Encoding, FactorisedRecommender, Scoring, fastest, require_sampled_items, trainable
from recbole_guider.utils.batch_parts import sum_of_parts, whole_batch


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

    Its backbone is ``config.backbone_class``; to RecBole it is of the backbone's type. Who learns what is decided once,
    into ``plan`` (:class:`~recbole_guider.guider.plan.TeachingPlan`). A variant is a subclass
    (:class:`~recbole_guider.guider.released.ReleasedGuider`).
    """

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        self.backbone: type = config.backbone_class
        self.type, self.input_type = config["MODEL_TYPE"], config["MODEL_INPUT_TYPE"]
        self.settings: GuiderSettings = config.guider_settings
        seed: int = config["seed"]
        # The student first: with the same seed it starts from the same values as the plain model.
        self.student = fastest(self.backbone)(config, dataset)
        self.student_scoring = Scoring(self.student)
        self.teacher: nn.Module | None = None
        self.teacher_scoring: Scoring | None = None
        if self._has_teacher():
            self.teacher = self.make_teacher(self.teacher_config(config), dataset)
            self.teacher_scoring = Scoring(self.teacher)
        #: who learns what
        self.plan: TeachingPlan = self.make_plan(self.student_scoring, self.teacher_scoring)
        for model in self.plan.need_sampled_items:
            require_sampled_items(config, model)
        users, items = (dataset.inter_feat[field].numpy() for field in (dataset.uid_field, dataset.iid_field))
        self.dbpr = DBPR(
            self.settings.dbpr, users, items, self.n_users, self.n_items, (self.USER_ID, self.ITEM_ID), seed
        )
        learners = (
            (self.student_scoring, self.plan.student_learns_dbpr), (self.teacher_scoring, self.plan.teacher_learns_dbpr)
        )
        for scoring, learns_dbpr in learners:
            if scoring is not None and learns_dbpr and self.dbpr.unit_length:
                scoring.compare_by_cosines()
        self.distiller = None
        if self.teacher_scoring is not None:
            self.distiller = self.make_distiller(self.student_scoring, self.teacher_scoring, seed)
        #: losses of the latest batch, and their sums since :meth:`begin_epoch`, by name
        self.last_losses: dict[str, float] = {}
        self.epoch_losses: dict[str, float] = {}
        self._said = False
        self._teacher_scores = False
        self.histories = Histories(self.plan, self.student, self.teacher)
        if self.plan.weighting == "subsampled history":
            self.generator("history", seed=seed + 2)
        if self.plan.weights_histories:
            # a model scores with the weighted histories: a checkpoint must hold the weights
            self.register_buffer("clean_probability", torch.ones(len(users)))
            self._pairs = users, items
            self.register_load_state_dict_post_hook(_weight_after_loading)

    # -- what another variant does in another way -----------------------------------------------------------------

    def _has_teacher(self) -> bool:
        return self.settings.distillation.objective != "none"

    @staticmethod
    def teacher_config(config: Any) -> Any:
        """The configuration of the teacher: of the model that ``guider.teacher`` names, with
        ``guider.teacher_parameters``.
        """
        return config.teacher_config()

    @staticmethod
    def make_teacher(config: Any, dataset: Any) -> nn.Module:
        """The model of a teacher's configuration."""
        return fastest(config.model_class)(config, dataset)

    def make_plan(self, student: Scoring, teacher: Scoring | None) -> TeachingPlan:
        """Who learns what.

        Raises:
            GuiderError: something cannot work with these two models.
        """
        return make_plan(self.settings, student, teacher)

    def make_distiller(self, student: Scoring, teacher: Scoring, seed: int) -> Distiller:
        """What the student learns from the frozen teacher."""
        return Distiller(self.settings, student, teacher, seed)

    def balance(
        self, own: Tensor, distilled: Tensor, encoding: Encoding | None, interaction: Interaction
    ) -> tuple[Tensor | float, Tensor | float]:
        """Weights of the student's own and of the distillation loss.

        ``fixed``: 1 and ``weight``, times the interval of batches that distil. ``min_norm``: the min-norm point of the
        two losses' gradients at what both depend on, one extra backward pass.
        """
        settings = self.settings.distillation
        if settings.balance == "fixed":
            return 1.0, settings.weight * settings.interval
        shared = trainable(self.student) if encoding is None else [encoding.users, encoding.items]
        own_gradients, gradients = (gradients_at(loss, shared) for loss in (own, distilled))
        # the distillation loss is that of the whole batch already
        return min_norm_weights(sum_of_parts(own_gradients, interaction), gradients)

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

    # -- calibration ----------------------------------------------------------------------------------------------

    def set_calibration(
        self, users: np.ndarray, items: np.ndarray, clean_probability: np.ndarray, is_clean: np.ndarray
    ) -> None:
        """Take over how clean each training interaction is.

        Args:
            users, items: int ``[nnz]``, RecBole's ids of the training pairs.
            clean_probability: float ``[nnz]``.
            is_clean: bool ``[nnz]``, which of them count as true.
        """
        self.dbpr.set_true(users[is_clean], items[is_clean])
        if self.plan.weights_histories:
            self._pairs = users, items
            self.clean_probability.copy_(torch.from_numpy(clean_probability))
        self.histories.set_probability(users, items, clean_probability, self.n_items)

    # -- passes ---------------------------------------------------------------------------------------------------

    def begin_epoch(self) -> None:
        """Forget the losses of the epoch before."""
        self.last_losses.clear()
        self.epoch_losses.clear()

    def begin_student_pass(self) -> None:
        """Take what the teacher knows as it stands, and choose what of subsampled histories this pass learns from."""
        if self.distiller is not None:
            self.distiller.freeze()
        if self.plan.weighting == "subsampled history":
            self.histories.subsample(self.generator("history"))

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
        if self.plan.teacher_learns_dbpr:
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
            own_weight, weight = self.balance(sum(own[1:], own[0]), distilled, encoding, interaction)
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
        if self.plan.student_learns_dbpr:
            loss, encoding = self._dbpr(student, self.student_scoring, interaction)
            return (loss.sum(),), encoding
        if not isinstance(student, FactorisedRecommender):
            return _parts(student.calculate_loss(interaction, **arguments)), None
        encoding = student.encode()
        if self.plan.weighting != "rows":
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


def _weight_after_loading(model: Guider, incompatible_keys: Any) -> None:
    model.histories.set_probability(*model._pairs, model.clean_probability.cpu().numpy(), model.n_items)


def _parts(losses: Any) -> tuple[Tensor, ...]:
    """A model's loss as a tuple of scalars; some of RecBole's have a shape of one."""
    return tuple(loss.sum() for loss in (losses if isinstance(losses, tuple) else (losses,)))


def gradients_at(loss: Tensor, shared: Sequence[Tensor]) -> Sequence[Tensor]:
    """The gradient of ``loss`` at each tensor of ``shared``; its graph stays, and what it does not depend on is 0."""
    gradients: Sequence[Tensor] = torch.autograd.grad(
        loss, shared, retain_graph=True, allow_unused=True, materialize_grads=True
    )
    return gradients


def _beside_ranking(model: FactorisedRecommender, encoding: Encoding, interaction: Interaction) -> Tensor | float:
    """What a model learns beside its ranking loss."""
    return model.auxiliary_loss(encoding, interaction) + model.regulariser(encoding, interaction)
