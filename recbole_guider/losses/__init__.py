"""Losses as pure functions of tensors: DBPR, distillation by optimal transport and by KL.

    dbpr.py          the denoised BPR loss, and the terms that it shares with the backbones' own losses
    distillation.py  what one model's rankings say about another's: transport plans, KL, and the weights of two losses
"""

from recbole_guider.losses.dbpr import (
    dbpr_loss,
    l2_penalty,
    observed_probability,
    soft_negative,
    soft_negative_sum,
)
from recbole_guider.losses.distillation import (
    ItemsOrMoments,
    diagonal_cost,
    kl_distillation_loss,
    min_norm_weights,
    ot_distillation_loss,
    reusable,
    score_cost,
    transport_plan,
)

__all__ = [
    "ItemsOrMoments",
    "dbpr_loss",
    "diagonal_cost",
    "kl_distillation_loss",
    "l2_penalty",
    "min_norm_weights",
    "observed_probability",
    "ot_distillation_loss",
    "reusable",
    "score_cost",
    "soft_negative",
    "soft_negative_sum",
    "transport_plan",
]
