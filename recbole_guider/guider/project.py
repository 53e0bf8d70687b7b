"""The parts of GUIDER as this project defines them; see docs/method.md."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from recbole.data.interaction import Interaction
from torch import Tensor, nn

from recbole_guider.guider.distiller import Distiller
from recbole_guider.guider.plan import Parts
from recbole_guider.guider.settings import GuiderSettings
from recbole_guider.losses.distillation import min_norm_weights
from recbole_guider.models.accelerated import fastest
from recbole_guider.utils.batch_parts import sum_of_parts


def teacher_config(config: Any) -> Any:
    """The configuration of the model that ``guider.teacher`` names, with ``guider.teacher_parameters``."""
    return config.teacher_config()


def build_teacher(config: Any, dataset: Any) -> nn.Module:
    """The model of a teacher's configuration."""
    return fastest(config.model_class)(config, dataset)


def balance(
    own: Tensor, distilled: Tensor, shared: Sequence[Tensor], settings: GuiderSettings, interaction: Interaction
) -> tuple[Tensor | float, Tensor | float]:
    """Weights of the student's own and of the distillation loss.

    ``fixed``: 1 and ``weight``, times the interval of batches that distil. ``min_norm``: the min-norm point of the two
    losses' gradients at ``shared``, one extra backward pass.
    """
    if settings.distillation.balance == "fixed":
        return 1.0, settings.distillation.weight * settings.distillation.interval
    gradients = [
        torch.autograd.grad(loss, shared, retain_graph=True, allow_unused=True, materialize_grads=True)
        for loss in (own, distilled)
    ]
    # the distillation loss is that of the whole batch already
    return min_norm_weights(sum_of_parts(gradients[0], interaction), gradients[1])


PROJECT = Parts(
    calibrates=True,
    teacher_config=teacher_config,
    build_teacher=build_teacher,
    teacher_learns_dbpr=True,
    distiller=Distiller,
    balance=balance,
    balances_at_matrices=True,
)
