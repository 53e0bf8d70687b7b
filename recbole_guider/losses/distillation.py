"""Distillation of a teacher's rankings: optimal transport between score rows, and KL, as pure functions.

Student scores are U V^T and teacher scores U' V'^T, for the B users of a batch over all n items. For the costs
``cosine`` and ``scores`` no B x n matrix is ever built: every quantity follows from the d x d matrices V^T V, V'^T V'
and V^T V'; ``kl``, which needs the softmax of every row, holds two of them. The two models may have different d. The
definitions are this project's.
"""

from __future__ import annotations

import math
import os
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax

from recbole_guider.losses.dbpr import soft_negative
from recbole_guider.utils.errors import GuiderError

__all__ = [
    "COSTS",
    "PLANS",
    "CatalogueMoments",
    "ItemsOrMoments",
    "catalogue_moments",
    "diagonal_cost",
    "kl_distillation_loss",
    "min_norm_weights",
    "ot_distillation_loss",
    "reusable",
    "score_cost",
    "transport_plan",
]

COSTS = ("cosine", "scores", "kl")
# Those that follow from Gram matrices.
_GRAM_COSTS = ("cosine", "scores")
PLANS = ("anchored", "batch", "identity")

# Above this ratio of the largest reduced cost to epsilon the kernel exp(-C / epsilon) leaves float64's
# comfortable range.
_LOG_DOMAIN = 300.0
# Where Sinkhorn may stop: violation of the marginals, relative to them.
_MARGINAL_STOP = 1e-7


@dataclass(frozen=True)
class CatalogueMoments:
    """What distillation needs to know of an item matrix V [n, d]; compute it once while the matrix does not
    change.

    Attributes:
        cost: the cost it was made for.
        items: V, minus its mean row for ``cosine`` (that centres every score row over the items), [n, d].
        gram: items^T items, [d, d].
        floor: squared length of a score row, relative to the squared length of the user's vector, below which
            the row is rounding noise and counts as zero; scalar.
    """

    cost: str
    items: Tensor
    gram: Tensor
    floor: Tensor

    @property
    def n_items(self) -> int:
        """Number of items n."""
        return self.items.shape[0]

    def squared_length(self, users: Tensor) -> Tensor:
        """Squared lengths of the (centred) score rows of ``users`` [B, d]: diag(U G U^T), [B]."""
        return ((users @ self.gram) * users).sum(1)

    def inverse_length(self, users: Tensor) -> Tensor:
        """1 / length of the score rows of ``users`` [B, d]; 0, with zero gradient, where a row vanishes.
        [B]."""
        squared = self.squared_length(users)
        zero = squared.detach() <= users.detach().square().sum(1) * self.floor
        return squared.masked_fill(zero, 1.0).rsqrt().masked_fill(zero, 0.0)


def _float(x: Tensor) -> Tensor:
    """Half precision cannot hold a Gram matrix over a catalogue."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def catalogue_moments(items: Tensor, cost: str = "cosine") -> CatalogueMoments:
    """The moments of an item matrix; pass them in place of the teacher's matrix while the teacher is frozen.

    Args:
        items: V, floats [n, d]; half precision is computed in float32.
        cost: ``cosine`` or ``scores``; ``kl`` has none.

    Raises:
        GuiderError: if the cost has no moments or V is not a matrix with at least one row.
    """
    if cost not in _GRAM_COSTS:
        raise GuiderError(f"Only the costs {' and '.join(_GRAM_COSTS)} have moments, not {cost!r}.")
    _check_items(items)
    with torch.autocast(items.device.type, enabled=False):
        items = _float(items)
        eps = torch.finfo(items.dtype).eps
        whole = items.detach().square().sum()
        if cost == "cosine":
            items = items - items.mean(0)
        gram = items.T @ items
        # Error of the Gram route, and of the centring (which leaves about eps * |V| of a constant V).
        floor = torch.maximum(4 * eps * gram.detach().trace(), (16 * eps) ** 2 * whole)
    return CatalogueMoments(cost, items, gram, floor)


def _check_items(items: Tensor) -> None:
    if items.dim() != 2 or items.shape[0] == 0:
        raise GuiderError(f"Item embeddings must be a matrix [items, dimensions], not {tuple(items.shape)}.")


ItemsOrMoments: TypeAlias = Tensor | CatalogueMoments


def _moments(items: ItemsOrMoments, cost: str) -> CatalogueMoments:
    if not isinstance(items, CatalogueMoments):
        return catalogue_moments(items, cost)
    if items.cost != cost:
        raise GuiderError(f"The moments were computed for cost {items.cost!r}, not {cost!r}.")
    return items


def reusable(items: ItemsOrMoments, cost: str) -> ItemsOrMoments:
    """What to pass in place of an item matrix [n, d] that several costs share: its moments, where the cost has some."""
    return _moments(items, cost) if cost in _GRAM_COSTS else items


class _ByGram:
    """Two models' score rows compared through Gram matrices."""

    def __init__(
        self, users: Tensor, items: ItemsOrMoments, users_teacher: Tensor, items_teacher: ItemsOrMoments, cost: str
    ) -> None:
        self.student, self.teacher = _moments(items, cost), _moments(items_teacher, cost)
        _check_pair(users, self.student.items, users_teacher, self.teacher.items)
        self.u, self.t = _float(users), _float(users_teacher)

    def matrix(self) -> Tensor:
        u, t, student, teacher = self.u, self.t, self.student, self.teacher
        projected = u @ (student.items.T @ teacher.items)
        if student.cost == "cosine":
            projected = projected * student.inverse_length(u)[:, None]
            return 1 - projected @ (t * teacher.inverse_length(t)[:, None]).T
        squares = student.squared_length(u)[:, None] + teacher.squared_length(t)[None, :]
        return torch.addmm(squares, projected, t.T, alpha=-2) / student.n_items

    def diagonal(self) -> Tensor:
        u, t, student, teacher = self.u, self.t, self.student, self.teacher
        product = ((u @ (student.items.T @ teacher.items)) * t).sum(1)
        if student.cost == "cosine":
            return 1 - product * student.inverse_length(u) * teacher.inverse_length(t)
        return (student.squared_length(u) + teacher.squared_length(t) - 2 * product) / student.n_items


class _ByKL:
    """Two models' score rows compared as distributions over the items.

    T KL(p_b || softmax(s_a / T)) = T log sum_i exp(s_ai / T) - <u_a, V^T p_b> - T H(p_b): a number for each of the
    student's users, one for each of the teacher's, and a product of d-dimensional vectors between them.
    """

    def __init__(
        self, users: Tensor, items: ItemsOrMoments, users_teacher: Tensor, items_teacher: ItemsOrMoments,
        temperature: float,
    ) -> None:
        if isinstance(items, CatalogueMoments) or isinstance(items_teacher, CatalogueMoments):
            raise GuiderError("Cost 'kl' takes the item matrices themselves, not moments.")
        _check_items(items)
        _check_items(items_teacher)
        _check_pair(users, items, users_teacher, items_teacher)
        self.u, v, t, w = (_float(each) for each in (users, items, users_teacher, items_teacher))
        #: T log sum_i exp(s_ai / T), [B]
        self.normaliser = soft_negative(self.u, v, temperature=temperature)
        scaled = (t / temperature) @ w.T
        largest = scaled.detach().amax(1)
        share = (scaled - largest[:, None]).exp()
        total = share.sum(1)
        #: V^T p_b, the mean of the student's item vectors as the teacher's user weighs them, [B', d]
        self.expected = (share @ v) / total[:, None]
        #: T sum_i p_bi log p_bi, [B']
        self.negative_entropy = temperature * ((share * scaled).sum(1) / total - largest - total.log())

    def matrix(self) -> Tensor:
        constants = self.normaliser[:, None] + self.negative_entropy[None, :]
        return torch.addmm(constants, self.u, self.expected.T, alpha=-1)

    def diagonal(self) -> Tensor:
        return self.normaliser + self.negative_entropy - (self.u * self.expected).sum(1)


def _check_pair(users: Tensor, items: Tensor, users_teacher: Tensor, items_teacher: Tensor) -> None:
    if items.shape[0] != items_teacher.shape[0]:
        raise GuiderError(
            f"Student and teacher must score the same items, not {items.shape[0]} and {items_teacher.shape[0]}."
        )
    for who, u, v in (("student", users, items), ("teacher", users_teacher, items_teacher)):
        if u.dim() != 2 or u.shape[1] != v.shape[1]:
            raise GuiderError(
                f"The {who}'s users must be [B, {v.shape[1]}] like its items, not {tuple(u.shape)}."
            )


def _compare(
    users: Tensor, items: ItemsOrMoments, users_teacher: Tensor, items_teacher: ItemsOrMoments, cost: str,
    temperature: float,
) -> _ByGram | _ByKL:
    if cost not in COSTS:
        raise GuiderError(f"cost must be one of {', '.join(COSTS)}, not {cost!r}.")
    if cost == "kl":
        return _ByKL(users, items, users_teacher, items_teacher, temperature)
    return _ByGram(users, items, users_teacher, items_teacher, cost)


def score_cost(
    U: Tensor,
    V: ItemsOrMoments,
    U_teacher: Tensor,
    V_teacher: ItemsOrMoments,
    cost: str = "cosine",
    temperature: float = 1.0,
) -> Tensor:
    r"""Pairwise cost between the student's and the teacher's score rows over all n items.

    With s_a = V U_a (student) and t_b = V' U'_b (teacher), rows over the n items:

        cosine:  C_ab = 1 - cos(s_a - mean s_a, t_b - mean t_b)          (1 where one of them vanishes)
        scores:  C_ab = || s_a - t_b ||^2 / n
        kl:      C_ab = T KL( softmax(t_b / T) || softmax(s_a / T) )

    ``cosine`` and ``scores`` go through Gram matrices G = V^T V, G' = V'^T V', X = V^T V' (V and V' minus their mean
    rows for ``cosine``): <s_a, t_b> = U_a X U'_b^T and || s_a ||^2 = U_a G U_a^T; O(n d^2 + B d^2 + B^2 d) instead of
    O(B^2 n). ``kl`` is O(B n d + B^2 d) and holds two [B, n] arrays. Cosines weigh all items alike, ``kl`` those that
    the teacher ranks high. This project's definition.

    Args:
        U, V: the student's users [B, d] and items [n, d].
        U_teacher, V_teacher: the teacher's users [B', d'] and items [n, d'].
            V and V_teacher may also be :func:`catalogue_moments` of the matrices (``cosine``, ``scores``).
        cost: ``cosine``, ``scores`` or ``kl``.
        temperature: T > 0; only ``kl`` uses it. The factor T makes C a number in the units of the scores, whose
            gradient by a score is the difference of two probabilities.

    Returns:
        C [B, B'], differentiable in everything given as a tensor. Rounding may leave entries slightly below
        0.

    Raises:
        GuiderError: if the cost is unknown, T is not above 0 or shapes do not fit.
    """
    with torch.autocast(U.device.type, enabled=False):
        return _compare(U, V, U_teacher, V_teacher, cost, temperature).matrix()


def diagonal_cost(
    U: Tensor,
    V: ItemsOrMoments,
    U_teacher: Tensor,
    V_teacher: ItemsOrMoments,
    cost: str = "cosine",
    temperature: float = 1.0,
) -> Tensor:
    """The diagonal of :func:`score_cost`, every user against itself: [B], without the other B^2 - B costs.

    Raises:
        GuiderError: as :func:`score_cost`, and if the two models' batches differ in size.
    """
    with torch.autocast(U.device.type, enabled=False):
        compared = _compare(U, V, U_teacher, V_teacher, cost, temperature)
        if U.shape[0] != U_teacher.shape[0]:
            raise GuiderError(
                f"Student and teacher must have the same users, not {U.shape[0]} and {U_teacher.shape[0]}."
            )
        return compared.diagonal()


def transport_plan(
    cost: Tensor,
    *,
    epsilon: float = 0.05,
    iterations: int = 50,
    plan: str = "anchored",
    anchor: float = 1.0,
) -> Tensor:
    r"""The entropic transport plan between two batches of users with uniform marginals.

        P = argmin  <P, C + A> + epsilon KL(P | 1/B 1/B'),   P 1 = 1/B,  P^T 1 = 1/B'

    ``batch``: A = 0. ``anchored``: A_ab = ``anchor`` off the diagonal, so a user's mass may flow to users of
    similar taste at that price; an infinite anchor, or ``identity``, is P = I / B.

    POT's Sinkhorn in float64 on the cost's device; in the log domain where epsilon is small against the
    costs. It stops early once the marginals hold; if they do not after ``iterations``, the last plan is
    rounded to them (Altschuler, Weed and Rigollet, 2017), so the result is always a coupling.

    Args:
        cost: C [B, B'], square unless ``batch``; no gradient flows through the plan.
        epsilon: entropic regularisation > 0, in units of the cost.
        iterations: at most this many Sinkhorn iterations, >= 1.
        plan: ``anchored``, ``batch`` or ``identity``.
        anchor: price >= 0 of leaving the diagonal, in units of the cost.

    Returns:
        P [B, B'], of the cost's type, detached; its entries sum to 1.

    Raises:
        GuiderError: if a parameter is out of range, or the cost is not finite or not square where it must be.
    """
    _check_plan(plan, epsilon, iterations, anchor)
    if cost.dim() != 2 or (plan != "batch" and cost.shape[0] != cost.shape[1]):
        raise GuiderError(f"Plan {plan!r} needs a square cost matrix, not {tuple(cost.shape)}.")
    rows, columns = cost.shape
    if cost.numel() == 0:
        return torch.zeros_like(cost.detach())
    if _is_identity(plan, anchor):
        return torch.eye(rows, dtype=cost.dtype, device=cost.device) / rows

    reduced = cost.detach().double()
    if plan == "anchored":
        reduced = reduced + anchor
        reduced.diagonal().sub_(anchor)
    # Constants per row and column do not change the plan, but every row and column now has a cost of 0.
    reduced = reduced - reduced.amin(1, keepdim=True)
    reduced = reduced - reduced.amin(0, keepdim=True)
    largest = float(reduced.max())
    if not math.isfinite(largest):
        raise GuiderError(
            "The cost matrix is not finite; the embeddings of student or teacher have diverged."
        )
    result = None
    if largest <= _LOG_DOMAIN * epsilon:
        result = _sinkhorn(reduced, epsilon, iterations, "sinkhorn")
    if result is None or not bool(torch.isfinite(result).all()):
        result = _sinkhorn(reduced, epsilon, iterations, "sinkhorn_log")
    return _round_to_marginals(result).to(cost.dtype)


def _check_plan(plan: str, epsilon: float, iterations: int, anchor: float) -> None:
    if plan not in PLANS:
        raise GuiderError(f"plan must be one of {', '.join(PLANS)}, not {plan!r}.")
    if not (epsilon > 0 and math.isfinite(epsilon)):
        raise GuiderError(f"epsilon must be a finite number above 0, not {epsilon}.")
    if iterations < 1:
        raise GuiderError(f"iterations must be 1 or more, not {iterations}.")
    if not anchor >= 0:
        raise GuiderError(f"anchor must be 0 or more, not {anchor}.")


def _is_identity(plan: str, anchor: float) -> bool:
    return plan == "identity" or (plan == "anchored" and math.isinf(anchor))


@cache
def _pot() -> ModuleType:
    """POT, imported when it is needed: that takes a second or two, and the identity plan and KL do without.

    It imports every array library that it finds, and JAX then takes three quarters of a GPU's memory, from this process
    and its neighbours. So those that nobody has imported here stay out.
    """
    unwanted = {
        f"POT_BACKEND_DISABLE_{library.upper()}": "1"
        for library in ("jax", "cupy", "tensorflow") if library not in sys.modules
    }
    found = {name: os.environ.get(name) for name in unwanted}
    os.environ.update(unwanted)
    try:
        import ot
    finally:
        for name, value in found.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
    return ot


def _sinkhorn(cost: Tensor, epsilon: float, iterations: int, method: str) -> Tensor:
    rows, columns = cost.shape
    with warnings.catch_warnings():
        # The caller rounds what has not converged and repairs what overflowed.
        warnings.filterwarnings("ignore", category=UserWarning, module=r"ot\.")
        return _pot().sinkhorn(
            cost.new_full((rows,), 1.0 / rows),
            cost.new_full((columns,), 1.0 / columns),
            cost,
            epsilon,
            method=method,
            numItermax=iterations,
            stopThr=_MARGINAL_STOP / columns,
            warn=False,
        )


def _round_to_marginals(plan: Tensor) -> Tensor:
    """The nearest coupling with uniform marginals: scale rows and columns down, spread what is missing. O(B
    B')."""
    rows, columns = plan.shape
    plan = plan * (1.0 / rows / plan.sum(1).clamp_min(torch.finfo(plan.dtype).tiny)).clamp_max(1.0)[:, None]
    plan = (
        plan * (1.0 / columns / plan.sum(0).clamp_min(torch.finfo(plan.dtype).tiny)).clamp_max(1.0)[None, :]
    )
    missing_rows = (1.0 / rows - plan.sum(1)).clamp_min(0.0)
    missing_columns = (1.0 / columns - plan.sum(0)).clamp_min(0.0)
    missing = missing_rows.sum().clamp_min(torch.finfo(plan.dtype).tiny)
    return torch.addr(plan, missing_rows, missing_columns / missing)


def ot_distillation_loss(
    U: Tensor,
    V: ItemsOrMoments,
    U_teacher: Tensor,
    V_teacher: ItemsOrMoments,
    *,
    cost: str = "cosine",
    temperature: float = 1.0,
    plan: str = "anchored",
    epsilon: float = 0.05,
    iterations: int = 50,
    anchor: float = 1.0,
) -> Tensor:
    r"""Transport cost between the score rows of student and teacher, L = <P, C>, with the plan P held fixed.

    C is :func:`score_cost` and P :func:`transport_plan`. By the envelope theorem the gradient of <P, C> at
    the optimal P is that of the regularised cost min_P <P, C + A> + epsilon KL(P | 1/B 1/B'). The teacher
    gets no gradient.
    This project's definition.

    Args:
        U, V: the student's users [B, d] and items [n, d].
        U_teacher, V_teacher: the teacher's, [B, d'] and [n, d'], of the same users and items in the same
            order. V and V_teacher may also be :func:`catalogue_moments`.
        cost, temperature: see :func:`score_cost`.
        plan, epsilon, iterations, anchor: see :func:`transport_plan`; ``identity`` computes the costs of the diagonal
            only.

    Returns:
        A scalar; 0 for an empty batch.

    Raises:
        GuiderError: if a parameter is out of range, shapes do not fit or costs are not finite.
    """
    _check_plan(plan, epsilon, iterations, anchor)
    student = reusable(V, cost)
    teacher = reusable(V_teacher.detach() if isinstance(V_teacher, Tensor) else V_teacher, cost)
    target = U_teacher.detach()
    if _is_identity(plan, anchor):
        each = diagonal_cost(U, student, target, teacher, cost, temperature)
        return each.sum() / max(each.numel(), 1)
    matrix = score_cost(U, student, target, teacher, cost, temperature)
    fixed = transport_plan(matrix, epsilon=epsilon, iterations=iterations, plan=plan, anchor=anchor)
    return (fixed * matrix).sum()


def kl_distillation_loss(student_scores: Tensor, teacher_scores: Tensor, temperature: float = 1.0) -> Tensor:
    r"""KL(teacher || student) between softened distributions over the candidate items, T^2 times its mean
    over users.

        L = T^2 mean_b KL( softmax(t_b / T) || softmax(s_b / T) )

    T^2 keeps the gradient's size independent of T (Hinton, Vinyals and Dean, 2015). The teacher gets no
    gradient.

    Args:
        student_scores, teacher_scores: [B, C], the same candidates in the same order.
        temperature: T > 0.

    Raises:
        GuiderError: if the temperature is not above 0 or shapes differ.
    """
    if not temperature > 0:
        raise GuiderError(f"temperature must be above 0, not {temperature}.")
    if student_scores.dim() != 2 or student_scores.shape != teacher_scores.shape:
        raise GuiderError(
            f"Student and teacher scores must be [B, C], the same shape, not {tuple(student_scores.shape)} "
            f"and {tuple(teacher_scores.shape)}."
        )
    student = log_softmax(student_scores / temperature, dim=1)
    teacher = log_softmax(teacher_scores.detach() / temperature, dim=1)
    total = kl_div(student, teacher, reduction="sum", log_target=True)
    return total * (temperature**2 / max(student_scores.shape[0], 1))


def min_norm_weights(
    grad_a: Tensor | Sequence[Tensor | None], grad_b: Tensor | Sequence[Tensor | None]
) -> tuple[Tensor, Tensor]:
    r"""Weights of two losses from their gradients on shared parameters: the min-norm point (MGDA for two
    losses).

        w_a = clip( <b - a, b> / ||a - b||^2, 0, 1 ),   w_b = 1 - w_a

    minimises || w_a a + w_b b ||, whose negative lowers both losses unless it is 0 (Sener and Koltun, 2018).
    Equal gradients give 1/2 each.

    Args:
        grad_a, grad_b: the gradients, a tensor each or equally long lists of tensors of equal shapes (None:
            zero).

    Returns:
        Two detached scalars in [0, 1] that sum to 1, on the gradients' device.

    Raises:
        GuiderError: if the lists differ in length, or shapes differ, or there is no gradient.
    """
    a = [grad_a] if isinstance(grad_a, Tensor) else list(grad_a)
    b = [grad_b] if isinstance(grad_b, Tensor) else list(grad_b)
    if len(a) != len(b):
        raise GuiderError(f"The two gradients must have equally many tensors, not {len(a)} and {len(b)}.")
    length: Tensor | None = None
    product: Tensor | None = None
    for x, y in zip(a, b, strict=True):
        known = x if x is not None else y
        if known is None:
            continue
        x = torch.zeros_like(known) if x is None else x.detach()
        y = torch.zeros_like(known) if y is None else y.detach()
        if x.shape != y.shape:
            raise GuiderError(f"Gradients must have equal shapes, not {tuple(x.shape)} and {tuple(y.shape)}.")
        difference = (y - x).flatten().double()
        length = difference @ difference + (0.0 if length is None else length)
        product = difference @ y.flatten().double() + (0.0 if product is None else product)
    if length is None or product is None:
        raise GuiderError("min_norm_weights needs at least one gradient that is not None.")
    same = length == 0
    weight = torch.where(same, 0.5, product / torch.where(same, 1.0, length)).clamp(0.0, 1.0)
    return weight.float(), (1 - weight).float()
