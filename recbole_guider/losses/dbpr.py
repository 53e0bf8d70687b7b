"""DBPR, the denoised BPR loss of the teacher, as a pure function of scores; its formulas are this project's. And the
L2 term that recommenders share.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import softplus

from recbole_guider.utils.errors import GuiderError

__all__ = ["DBPR_FORMS", "dbpr_loss", "l2_penalty", "observed_probability", "soft_negative", "soft_negative_sum"]

DBPR_FORMS = ("pairwise", "softmax")
# exp(-2 x) is still a normal float32 number.
_SAFE_EXPONENT = 40.0
# Scores that one block of a sum of soft negatives holds: on a CPU they stay in its cache.
_BLOCK_ENTRIES = {"cpu": 2**20}
_BLOCK_ENTRIES_ELSEWHERE = 2**25
# Rows of a block at least, however many negatives there are: products with fewer are slow.
_BLOCK_ROWS = 64


def dbpr_loss(
    positive: Tensor,
    negative: Tensor,
    clean_probability: Tensor,
    true: Tensor | None = None,
    false: Tensor | None = None,
    *,
    form: str = "softmax",
    temperature: float = 0.2,
    eta: float = 0.1,
    gamma: float = 0.0,
    negative_mask: Tensor | None = None,
    weight: Tensor | None = None,
) -> Tensor:
    r"""Bayesian personalised ranking with the clean probability p of every observed pair as its weight.

    With y_b the score of an observed pair, y_bj those of its N sampled negatives and s(x) = log sigmoid(x):

    ``pairwise`` (scores as they are; the mean over j runs over the usable negatives):

        L = - mean_b[ p_b mean_j s(y_b - y_bj) ] - eta mean_m[ s(y_t - y_f) ]
            - gamma mean_b[ (1 - p_b) mean_j s(y_bj - y_b) ]

    ``softmax`` (every score divided by tau = ``temperature`` first; meant for cosines and many negatives):

        L = - mean_b[ p_b ( y_b - log( exp(y_b) + sum_j exp(y_bj) ) ) ] + the same eta and gamma terms

    With one negative and tau = 1 both are the same number. The regulariser is the model's. This project's
    definition.

    Args:
        positive: y [B], any float type.
        negative: scores of the negatives, [B] or [B, N]; in ``softmax`` they are usually shared by the batch.
        clean_probability: p in [0, 1], [B]; calibrated probability that the pair is not noise, or bool [B], whether it
            counts as clean.
        true, false: scores [M] of a true and a false positive of the same user, pair by pair. Without them
            (None or empty) that term is 0.
        form: ``pairwise`` or ``softmax``.
        temperature: tau > 0; only ``softmax`` uses it.
        eta: weight >= 0 of the true-above-false term.
        gamma: weight >= 0 of the flipped term.
        negative_mask: bool, shape of ``negative``; False marks a negative not to use (a positive of the
            user). A pair with no usable negative adds 0 to the first and the last term.
        weight: [B], what the first term of every pair is multiplied with besides p; None: 1.

    Returns:
        A scalar; the means run over the whole batch (B) and over the M true-false pairs. 0 if
        both are empty.

    Raises:
        GuiderError: if the form is unknown, a parameter is out of range or shapes do not fit.
    """
    _check_form(form, temperature)
    if eta < 0 or gamma < 0:
        raise GuiderError(f"eta and gamma must be 0 or more, not {eta} and {gamma}.")
    if positive.dim() != 1 or negative.dim() not in (1, 2) or negative.shape[0] != positive.shape[0]:
        raise GuiderError(
            f"positive must be [B] and negative [B] or [B, N], not {tuple(positive.shape)} "
            f"and {tuple(negative.shape)}."
        )
    if clean_probability.shape != positive.shape:
        raise GuiderError(
            f"clean_probability must have the shape of positive, {tuple(positive.shape)}, "
            f"not {tuple(clean_probability.shape)}."
        )
    if negative_mask is not None and negative_mask.shape != negative.shape:
        raise GuiderError(
            f"negative_mask must have the shape of negative, {tuple(negative.shape)}, "
            f"not {tuple(negative_mask.shape)}."
        )
    if weight is not None and weight.shape != positive.shape:
        raise GuiderError(
            f"weight must have the shape of positive, {tuple(positive.shape)}, not {tuple(weight.shape)}."
        )
    negative, negative_mask = _in_columns(negative, negative_mask)

    p = clean_probability.to(positive.dtype)
    weighted = p if weight is None else p * weight
    scale = 1.0 / temperature if form == "softmax" else 1.0
    positive, negative = positive * scale, negative * scale

    # -log sigmoid(x) = softplus(-x); the softmax term is the pairwise one against the negatives' log-sum-exp.
    if form == "softmax":
        loss = _batch_mean(weighted * softplus(_log_sum_exp(negative, negative_mask) - positive))
    else:
        loss = _batch_mean(weighted * _mean_over(softplus(negative - positive[:, None]), negative_mask))
    if gamma > 0:
        flipped = _mean_over(softplus(positive[:, None] - negative), negative_mask)
        loss = loss + gamma * _batch_mean((1 - p) * flipped)
    if eta > 0 and true is not None and false is not None:
        if true.shape != false.shape:
            raise GuiderError(
                f"true and false must be equally long, not {tuple(true.shape)} and {tuple(false.shape)}."
            )
        loss = loss + eta * _batch_mean(softplus((false - true) * scale))
    return loss


@torch.no_grad()
def observed_probability(
    positive: Tensor,
    negative: Tensor,
    *,
    form: str = "softmax",
    temperature: float = 0.2,
    negative_mask: Tensor | None = None,
) -> Tensor:
    r"""How probable the scores find every observed pair, in the sense of :func:`dbpr_loss`; without gradients.

    ``softmax``: ``exp(y_b) / (exp(y_b) + sum_j exp(y_bj))``, every score divided by tau; ``pairwise``: the mean over j
    of ``sigmoid(y_b - y_bj)``.

    Args:
        positive, negative, form, temperature, negative_mask: as in :func:`dbpr_loss`.

    Returns:
        [B] in [0, 1], of the type of ``positive``; softmax: 1 where no negative is usable, pairwise: 0.

    Raises:
        GuiderError: if the form is unknown or the temperature is not above 0.
    """
    _check_form(form, temperature)
    negative, negative_mask = _in_columns(negative, negative_mask)
    if form == "softmax":
        return torch.sigmoid(positive / temperature - _log_sum_exp(negative / temperature, negative_mask))
    return _mean_over(torch.sigmoid(positive[:, None] - negative), negative_mask)


def soft_negative(
    users: Tensor, items: Tensor, *, temperature: float, excluded: tuple[Tensor, Tensor] | None = None
) -> Tensor:
    r"""The one negative score that stands for many: tau log( sum_j exp(<u_b, v_j> / tau) ) over negatives that a batch
    shares.

    ``dbpr_loss(positive, soft_negative(...), p, form="softmax", temperature=tau)`` is the softmax form with those N
    negatives. It is computed as one autograd node that keeps one [B, N] array, and whose backward pass is two matrix
    products: less than half the time of the separate steps. A second derivative is right for the gradient that comes
    in, in which the backward pass is linear, and leaves out how the softmax weights change.

    Args:
        users: u [B, d], floats; half precision is computed in float32.
        items: v [N, d], the negatives.
        temperature: tau > 0.
        excluded: (row, column) positions in [B, N], int64, that are no negatives of that row.

    Returns:
        [B]; minus infinity, with no gradient, where every negative is excluded.

    Raises:
        GuiderError: the temperature is not above 0.
    """
    _check_temperature(temperature)
    return _SoftNegative.apply(users, items, temperature, excluded)


class _SoftNegative(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, users: Tensor, items: Tensor, temperature: float, excluded: tuple[Tensor, Tensor] | None
    ) -> Tensor:
        with torch.autocast(users.device.type, enabled=False):
            u, v = _at_least_single(users), _at_least_single(items)
            weight = (u / temperature) @ v.T
            if excluded is not None:
                weight[excluded] = -torch.inf
            shift = _exponentiate(weight, _largest_score(u, v, temperature))
            total = weight.sum(1)
        ctx.save_for_backward(u, v, weight, total)
        ctx.temperature, ctx.types = temperature, (users.dtype, items.dtype)
        return temperature * (total.log() + shift)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        u, v, weight, total = ctx.saved_tensors
        factor = torch.where(total > 0, gradients[0] / total, 0.0)[:, None]
        of_users, of_items = factor * (weight @ v), weight.T @ (factor * u)
        return of_users.to(ctx.types[0]), of_items.to(ctx.types[1]), None, None


def soft_negative_sum(users: Tensor, items: Tensor, *, temperature: float, weights: Tensor | None = None) -> Tensor:
    """``(weights * soft_negative(users, items)).sum()``, where only that sum is wanted.

    Its gradient is known up to a factor before the backward pass, and is computed together with the value in blocks
    of rows, so that no [B, N] array is ever made. It cannot be differentiated twice.

    Args:
        users: u [B, d], floats; half precision is computed in float32.
        items: v [N, d], the negatives, one or more.
        temperature: tau > 0.
        weights: [B], without gradients; None: 1 each.

    Returns:
        A scalar.

    Raises:
        GuiderError: the temperature is not above 0.
    """
    _check_temperature(temperature)
    return _SoftNegativeSum.apply(users, items, temperature, weights)


class _SoftNegativeSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, users: Tensor, items: Tensor, temperature: float, weights: Tensor | None) -> Tensor:
        with torch.autocast(users.device.type, enabled=False):
            u, v = _at_least_single(users), _at_least_single(items)
            share = u.new_ones(len(u)) if weights is None else weights.to(u.dtype)
            bound = _largest_score(u, v, temperature)
            wanted = any(ctx.needs_input_grad)
            of_users, of_items = torch.empty_like(u), torch.zeros_like(v)
            result = u.new_zeros(())
            rows = max(_BLOCK_ROWS, _BLOCK_ENTRIES.get(u.device.type, _BLOCK_ENTRIES_ELSEWHERE) // max(len(v), 1))
            for start in range(0, len(u), rows):
                block, factor = u[start : start + rows], share[start : start + rows]
                weight = (block / temperature) @ v.T
                shift = _exponentiate(weight, bound)
                total = weight.sum(1)
                result += (factor * (total.log() + shift)).sum()
                if wanted:
                    factor = (factor / total)[:, None]
                    of_users[start : start + rows] = factor * (weight @ v)
                    of_items.addmm_(weight.T, factor * block)
        ctx.save_for_backward(of_users, of_items)
        ctx.types = users.dtype, items.dtype
        return temperature * result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        of_users, of_items = (
            (gradients[0] * gradient).to(dtype)
            for gradient, dtype in zip(ctx.saved_tensors, ctx.types, strict=True)
        )
        return of_users, of_items, None, None


def _check_form(form: str, temperature: float) -> None:
    if form not in DBPR_FORMS:
        raise GuiderError(f"form must be one of {', '.join(DBPR_FORMS)}, not {form!r}.")
    _check_temperature(temperature)


def _in_columns(negative: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Scores of negatives and their mask as [B, N], one negative for each row being a column."""
    if negative.dim() != 1:
        return negative, mask
    return negative.unsqueeze(1), None if mask is None else mask.unsqueeze(1)


def _check_temperature(temperature: float) -> None:
    if not temperature > 0:
        raise GuiderError(f"temperature must be above 0, not {temperature}.")


def _at_least_single(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _largest_score(u: Tensor, v: Tensor, temperature: float) -> Tensor:
    """What no score <u_b, v_j> / tau can pass: the product of the longest vectors."""
    if not len(u) or not len(v):
        return u.new_zeros(())
    return u.norm(dim=1).amax() * v.norm(dim=1).amax() / temperature


def _exponentiate(scores: Tensor, bound: Tensor) -> Tensor:
    """Scores [B, N] become exp(scores - shift) in their place; the shift [B], finite."""
    # Where the bound is small enough for exp, as for cosines at the usual temperatures, the pass over [B, N] that
    # looks for the maximum can be saved.
    shift = bound.expand(len(scores))
    if len(scores) and float(bound) > _SAFE_EXPONENT:
        shift = scores.amax(1)
        shift = shift.masked_fill(shift.isinf(), 0.0)
    scores.sub_(shift[:, None]).exp_()
    return shift


def l2_penalty(*rows: Tensor) -> Tensor:
    """Half the squared lengths of the embeddings of a batch, added over the tensors, averaged over the batch.

    ``1 / (2 B) * sum over tensors and rows of |row|^2``.

    Args:
        rows: one or more tensors ``[B, d]``.

    Returns:
        A scalar.
    """
    return torch.stack([each.square().sum() for each in rows]).sum() / (2 * len(rows[0]))


def _batch_mean(terms: Tensor) -> Tensor:
    return terms.sum() / max(terms.numel(), 1)


def _mean_over(terms: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over the usable negatives [B, N] -> [B]; 0 where there is none."""
    if mask is None:
        return terms.mean(1) if terms.shape[1] else terms.sum(1)
    return terms.masked_fill(~mask, 0.0).sum(1) / mask.sum(1).clamp_min(1)


def _log_sum_exp(scores: Tensor, mask: Tensor | None) -> Tensor:
    # The lowest finite number, not -inf: a row without usable negatives must have a zero gradient, not NaN.
    lowest = torch.finfo(scores.dtype).min
    if mask is not None:
        scores = scores.masked_fill(~mask, lowest)
    if scores.shape[1] == 0:
        return scores.new_full((scores.shape[0],), lowest)
    if scores.shape[1] == 1:
        # the sum of one term is that term, also where it is minus infinity, whose logsumexp has a NaN gradient
        return scores.squeeze(1)
    return torch.logsumexp(scores, dim=1)
