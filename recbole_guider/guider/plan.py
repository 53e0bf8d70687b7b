"""The replaceable parts of GUIDER: which of them a run uses is ``guider.variant``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from recbole.data.interaction import Interaction
from torch import Tensor, nn

from recbole_guider.guider.distiller import Distiller


class Parts(NamedTuple):
    """What teaches the student, and how."""

    #: whether AMSC judges the interactions before training; if not, all of them count as clean
    calibrates: bool
    #: the configuration of the teacher: (configuration of the run) -> one of its own
    teacher_config: Callable[[Any], Any]
    #: makes the teacher: (configuration of the teacher, training data set) -> model
    build_teacher: Callable[[Any, Any], nn.Module]
    #: whether the teacher learns from DBPR where it can, or always from its own loss
    teacher_learns_dbpr: bool
    #: what the student learns from the frozen teacher, made as :class:`Distiller`
    distiller: type[Distiller]
    #: (own loss, distillation loss, tensors that both depend on, settings of the block, batch or a process' part of it)
    #: -> weights of the two
    balance: Callable[[Tensor, Tensor, Any, Any, Interaction], tuple[Tensor | float, Tensor | float]]
    #: whether ``balance`` looks at the user and item matrices where the student has them; if not, at its parameters
    balances_at_matrices: bool
    #: settings of the guider block that this variant does not read
    ignored: tuple[str, ...] = ()


def parts_of(variant: str) -> Parts:
    """The parts of ``guider.variant``."""
    # imported here: each of them builds models, and only one is used
    if variant == "released":
        from recbole_guider.guider.released import RELEASED

        return RELEASED
    from recbole_guider.guider.project import PROJECT

    return PROJECT
