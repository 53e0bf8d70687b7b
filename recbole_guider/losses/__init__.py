"""Losses as pure functions of tensors: DBPR, distillation by optimal transport and by KL."""

from recbole_guider.losses.dbpr import dbpr_loss
from recbole_guider.losses.distillation import kl_distillation_loss, ot_distillation_loss, score_cost, transport_plan

__all__ = ["dbpr_loss", "kl_distillation_loss", "ot_distillation_loss", "score_cost", "transport_plan"]
