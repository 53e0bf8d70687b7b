"""``guider.variant: released``: what the published GUIDER code does, to compare with.

The published code (github.com/Neon-Jing/Guider, commit 5aaf514) differs from the method of docs/method.md in every
part. This file follows what it computes, not how it is written, and keeps its defects; docs/method.md names them:

- Calibration: none before training. In each batch, an item's text and image go through two linear maps that are never
  trained; a row counts as clean where the distance of the two, scaled to [0, 1] over the batch, is below 0.7.
- Teacher: FREEDOM without its content losses, so a multi-modal one. A clean row's BPR term weighs how well signs of
  untrained projections of user, text and image agree; every other row weighs 1.
- Distillation: Kullback-Leibler divergence between whole score rows, for every batch.
- Balance: the min-norm point of two gradients, of which the second holds the first as well, with floors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from recbole.data.interaction import Interaction
from torch import Tensor, nn
from torch.nn.functional import log_softmax, logsigmoid, softmax

from recbole_guider.guider.distiller import Distiller
from recbole_guider.guider.model import Guider, gradients_at
from recbole_guider.guider.plan import TeachingPlan
from recbole_guider.guider.settings import GuiderSettings
from recbole_guider.models import CANDIDATES, FACTORISED, Encoding, Scoring, as_in_evaluation, trainable
from recbole_guider.models.freedom import FREEDOM
from recbole_guider.utils.errors import GuiderError

#: Dimensions of the maps of text and image, and signs that stand for a user, a text or an image.
MAP_SIZE, BITS = 64, 64
#: A row is clean below this share of the batch's largest distance between text and image.
CLEAN_BELOW = 0.7
#: What the weights of the student's own and of the distillation loss do not fall below.
FLOORS = (0.5, 1e-4)
#: The two modalities that the published code knows, and the first one's weight in the item graph.
IMAGE, TEXT, IMAGE_WEIGHT = "image", "text", 0.1
#: Settings of the guider block that this variant does not read.
NOT_READ = ("teacher", "calibration", "dbpr", "distillation", "teacher_loss", "student_loss", "student_weighting")
#: Hyper-parameters of the teacher; ``guider.teacher_parameters`` overrides them.
TEACHER_PARAMETERS: dict[str, Any] = {
    "knn_k": 20, "n_mm_layers": 1, "n_ui_layers": 2, "dropout": 0.1, "reg_weight": 0.0, "train_features": False,
    "modality_weights": None,
}


class ReleasedTeacher(FREEDOM):
    """The teacher: FREEDOM's graphs and scores, with

        L = - mean_b[ w_b log sig(y_ui - y_uj) ]

    and w by :func:`interaction_weights` from the modalities ``image`` and ``text``. Where the data have no modalities
    of these names the first two take their places, and with fewer than two every w is 1.

    The linear maps behind w get no gradient, here as in the published code: a threshold and signs have none.
    """

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        names = list(dataset.item_features)
        self.compared = [names.index(name) for name in compared_modalities(names)]
        self.maps = nn.ModuleList(nn.Linear(self.content[place].dim, MAP_SIZE) for place in self.compared)
        self.hashes = nn.ModuleList(nn.Linear(MAP_SIZE, BITS) for _ in self.compared)
        self.user_hash = nn.Linear(config["embedding_size"], BITS)
        for part in (self.maps, self.hashes, self.user_hash):
            part.requires_grad_(False)

    def ranking_loss(self, encoding: Encoding, interaction: Interaction) -> Tensor:
        user = encoding.users[interaction[self.USER_ID]]
        positive = (user * encoding.items[interaction[self.ITEM_ID]]).sum(dim=1)
        negative = (user * encoding.items[interaction[self.NEG_ITEM_ID]]).sum(dim=1)
        return -(self.weights(user, interaction[self.ITEM_ID]) * logsigmoid(positive - negative)).mean()

    @torch.no_grad()
    def weights(self, user: Tensor, items: Tensor) -> Tensor:
        """The weights [B] of a batch: users' rows [B, d] as the graph gives them, and their items int64 [B]."""
        if len(self.maps) < 2:
            return torch.ones_like(user[:, 0])
        content = [self.content[place].values[items] for place in self.compared]
        mapped = [layer(rows) for layer, rows in zip(self.maps, content, strict=True)]
        signs = [torch.sign(layer(rows)) for layer, rows in zip(self.hashes, mapped, strict=True)]
        return interaction_weights(mapped, signs, torch.sign(self.user_hash(user)))


def interaction_weights(mapped: Sequence[Tensor], signs: Sequence[Tensor], user_signs: Tensor) -> Tensor:
    r"""How much each row of a batch weighs.

        D_b = || text_b - image_b ||,   clean_b = (D_b - min D) / (max D - min D) < 0.7
        w_b = mean over text and image m of (1 + <h_u, h_m> / bits) / 2  where clean,   1 elsewhere

    The published code takes D from a Sinkhorn divergence (p = 1) between two single points, which is their distance.

    Args:
        mapped: text and image of each row's item, [B, 64] each.
        signs: their signs, [B, bits] each.
        user_signs: [B, bits].

    Returns:
        [B] in [0, 1].
    """
    distance = (mapped[0] - mapped[1]).norm(dim=1)
    least, most = distance.min(), distance.max()
    clean = (distance - least) / (most - least + 1e-7) < CLEAN_BELOW
    agreement = torch.stack([(1 + (user_signs * each).sum(dim=1) / user_signs.shape[1]) / 2 for each in signs])
    return torch.where(clean, agreement.mean(dim=0).clamp(0.0, 1.0), 1.0)


def compared_modalities(names: list[str]) -> list[str]:
    """The two modalities that are compared: ``image`` and ``text``, else the first two; empty if there are fewer."""
    if IMAGE in names and TEXT in names:
        return [IMAGE, TEXT]
    return names[:2] if len(names) > 1 else []


def row_divergence(student: Tensor, teacher: Tensor, weight: Tensor | None = None) -> Tensor:
    """KL( softmax(teacher) || softmax(student) ) of score rows [B, n]: their mean, by ``weight`` [B] if given; scalar.
    """
    target = softmax(teacher, dim=1)
    rows = (torch.special.xlogy(target, target) - target * log_softmax(student, dim=1)).sum(dim=1)
    return rows.mean() if weight is None else (weight * rows).sum() / weight.sum()


class ReleasedDistiller(Distiller):
    """KL divergence between whole score rows of the users of every batch, each as often as it is in the batch.

    The student's rows are scored on its whole graph and without dropout, though with gradients. The padding is left
    out.
    """

    def __init__(self, settings: GuiderSettings, student: Scoring, teacher: Scoring, seed: int) -> None:
        if student.kind == CANDIDATES:
            raise GuiderError(
                f"guider.variant is released: it compares whole score rows, and {student.name} scores pairs; use "
                f"project."
            )
        super().__init__(settings, student, teacher, seed)

    def due(self) -> bool:
        return True

    def loss(self, encoding: Encoding | None, users: Tensor) -> Tensor:
        distinct, count = torch.unique(users[users > 0], return_counts=True)
        with as_in_evaluation(self.student.model):
            if self.student.kind == FACTORISED:
                factors = self.student.factors()
                rows = factors.users(distinct) @ factors.items.T
            else:
                rows = self.student.rows(distinct)
        return row_divergence(rows[:, 1:], self._teacher_rows(distinct)[:, 1:], count.to(rows.dtype))


def min_norm_coefficients(own: Sequence[Tensor], distilled: Sequence[Tensor]) -> tuple[float, float]:
    r"""Weights of the two losses from their gradients g and h at the student's parameters.

    With a = g and b = g + h (in the published code h is accumulated onto g), c = <a, a>, e = <a, b>, f = <b, b>:

        w = 0.999 if e >= c,  0.001 if e >= f,  (f - e) / (c + f - 2 e) otherwise
        max(w, 0.5),  max(1 - w, 0.0001)

    Args:
        own, distilled: gradients, tensor by tensor of the same parameters.
    """
    # sums of products in the gradients' own type and on the CPU, as there
    first = [(g, g + h) for g, h in zip(own, distilled, strict=True)]
    c, e, f = (
        float(sum((x * y).sum().cpu() for x, y in pairs))
        for pairs in (
            [(a, a) for a, _ in first], first, [(b, b) for _, b in first],
        )
    )
    weight = 0.999 if e >= c else 0.001 if e >= f else (f - e) / (c + f - 2 * e)
    return max(weight, FLOORS[0]), max(1 - weight, FLOORS[1])


class ReleasedGuider(Guider):
    """GUIDER as the published code has it: another teacher, another loss of distillation, another balance."""

    def _has_teacher(self) -> bool:
        return True

    @staticmethod
    def teacher_config(config: Any) -> Any:
        """The configuration of the teacher: the run's, with :data:`TEACHER_PARAMETERS`."""
        given = config.guider_settings.teacher_parameters
        view = config.teacher_config()
        view.final_config_dict.update({key: value for key, value in TEACHER_PARAMETERS.items() if key not in given})
        view.final_config_dict.update(
            model=FREEDOM.__name__, backbone=FREEDOM.__name__, MODEL_TYPE=FREEDOM.type,
            MODEL_INPUT_TYPE=FREEDOM.input_type,
        )
        return view

    @staticmethod
    def make_teacher(config: Any, dataset: Any) -> nn.Module:
        """The teacher of a run.

        Raises:
            GuiderError: the run samples no negative items, which the teacher's loss compares.
        """
        if config["train_neg_sample_args"]["distribution"] == "none":
            raise GuiderError(
                "guider.variant is released: its teacher compares sampled items, and train_neg_sample_args is none; "
                "give {distribution: uniform, sample_num: 1}."
            )
        if config["modality_weights"] is None and {IMAGE, TEXT} == set(dataset.item_features):
            config["modality_weights"] = {IMAGE: IMAGE_WEIGHT, TEXT: 1.0 - IMAGE_WEIGHT}
        return ReleasedTeacher(config, dataset)

    def make_plan(self, student: Scoring, teacher: Scoring | None) -> TeachingPlan:
        """Both models learn from their own losses, and all interactions count as clean."""
        assert teacher is not None
        return TeachingPlan(
            calibrates=False,
            student_learns_dbpr=False,
            teacher_learns_dbpr=False,
            teacher_needs_negatives=False,
            weighting="none",
            teacher_weights_history=False,
            need_sampled_items=(student.model, teacher.model),
            notes=(f"guider.variant {self.settings.variant} does not read {', '.join(NOT_READ)}.",),
        )

    def make_distiller(self, student: Scoring, teacher: Scoring, seed: int) -> Distiller:
        return ReleasedDistiller(self.settings, student, teacher, seed)

    def balance(
        self, own: Tensor, distilled: Tensor, encoding: Encoding | None, interaction: Interaction
    ) -> tuple[float, float]:
        """:func:`min_norm_coefficients` of the two losses at the student's parameters."""
        return min_norm_coefficients(*(gradients_at(loss, trainable(self.student)) for loss in (own, distilled)))
