"""Distillation: each cost against the score matrices written out, and what each transport plan costs.

    OMP_NUM_THREADS=1 python benchmarks/distill.py [--users 2048 --items 7050 --dim 64 --teacher-dim 64]

Prints markdown tables; times are medians of forward and backward (student's users and items get gradients).
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from typing import Any

import torch
from measure import milliseconds, peak_megabytes, table
from torch.nn.functional import log_softmax, normalize

from recbole_guider.losses import diagonal_cost, ot_distillation_loss, reusable, score_cost, transport_plan

TEMPERATURE = 0.15
# ways to the cost: the third is that of cosine and scores only
DIRECT, PACKAGE, KEPT, DIAGONAL = "score matrices", "score_cost", "score_cost, moments kept", "diagonal only"


def embeddings(n_users: int, n_items: int, dim: int, teacher_dim: int) -> tuple[torch.Tensor, ...]:
    """A student, with gradients, and a teacher that agrees with it in part; rows of unit length."""
    generator = torch.Generator().manual_seed(0)
    users = torch.randn(n_users, dim, generator=generator)
    items = torch.randn(n_items, dim, generator=generator)
    mixing = torch.randn(dim, teacher_dim, generator=generator) / math.sqrt(dim)
    users_teacher = users @ torch.linalg.pinv(mixing).T + 0.3 * torch.randn(
        n_users, teacher_dim, generator=generator
    )
    items_teacher = items @ mixing + 0.3 * torch.randn(n_items, teacher_dim, generator=generator)
    users, items, users_teacher, items_teacher = (
        normalize(each, dim=1) for each in (users, items, users_teacher, items_teacher)
    )
    return users.requires_grad_(), items.requires_grad_(), users_teacher, items_teacher


def direct_cost(
    users: torch.Tensor,
    items: torch.Tensor,
    users_teacher: torch.Tensor,
    items_teacher: torch.Tensor,
    cost: str,
) -> torch.Tensor:
    """The cost from both models' scores of all items."""
    s, t = users @ items.T, users_teacher @ items_teacher.T
    if cost == "kl":
        s, t = log_softmax(s / TEMPERATURE, 1), log_softmax(t / TEMPERATURE, 1)
        return TEMPERATURE * ((t.exp() * t).sum(1) - s @ t.exp().T)
    if cost == "scores":
        squares = s.square().sum(1)[:, None] + t.square().sum(1)
        return (squares - 2 * s @ t.T) / items.shape[0]
    s, t = (x - x.mean(1, keepdim=True) for x in (s, t))
    return 1 - normalize(s) @ normalize(t).T


def cost_call(kind: str, cost: str, size: tuple[int, int, int, int]) -> Callable[[], Any]:
    users, items, users_teacher, items_teacher = embeddings(*size)
    kept = reusable(items_teacher, cost)
    function: Callable[[], torch.Tensor] = {
        DIRECT: lambda: direct_cost(users, items, users_teacher, items_teacher, cost),
        PACKAGE: lambda: score_cost(users, items, users_teacher, items_teacher, cost, TEMPERATURE),
        KEPT: lambda: score_cost(users, items, users_teacher, kept, cost, TEMPERATURE),
        DIAGONAL: lambda: diagonal_cost(users, items, users_teacher, kept, cost, TEMPERATURE),
    }[kind]

    def call() -> None:
        users.grad = items.grad = None
        function().sum().backward()

    return call


def plan_call(cost: str, plan: str, epsilon: float, size: tuple[int, int, int, int]) -> Callable[[], torch.Tensor]:
    users, items, users_teacher, items_teacher = embeddings(*size)
    kept = reusable(items_teacher, cost)

    def call() -> torch.Tensor:
        users.grad = items.grad = None
        loss = ot_distillation_loss(
            users, items, users_teacher, kept, cost=cost, temperature=TEMPERATURE, plan=plan, epsilon=epsilon
        )
        loss.backward()
        return loss

    return call


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--users", type=int, default=2048, help="users of a batch in the first table")
    parser.add_argument("--plan-users", type=int, default=256, help="users of a batch in the second table")
    parser.add_argument("--items", type=int, default=7050)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--teacher-dim", type=int, default=64)
    parser.add_argument("--repeat", type=int, default=5)
    args = parser.parse_args()

    size = (args.users, args.items, args.dim, args.teacher_dim)
    print(f"B = {args.users}, n = {args.items}, d = {args.dim} and {args.teacher_dim}, ", end="")
    print(f"{torch.get_num_threads()} thread(s)\n")
    rows = []
    for cost in ("kl", "cosine", "scores"):
        exact = direct_cost(*(x.detach().double() for x in embeddings(*size)), cost)
        error = (
            score_cost(*embeddings(*size), cost, TEMPERATURE).detach().double() - exact
        ).abs().max() / exact.abs().max()
        first = 0.0
        kinds = [DIRECT, PACKAGE, KEPT, DIAGONAL]
        if cost == "kl":
            kinds.remove(KEPT)
        for kind in kinds:
            ms = milliseconds(cost_call(kind, cost, size), args.repeat)
            first = first or ms
            peak = peak_megabytes(cost_call, kind, cost, size)
            rows.append([f"{cost}: {kind}", f"{ms:.1f}", f"{first / ms:.1f}", f"{peak:.0f}"])
        rows[1 - len(kinds)].append(f"{error:.1e}")
    for row in rows:
        row.extend([""] * (5 - len(row)))
    print(
        table(["cost, forward and backward", "ms", "times faster", "peak MB", "relative error"], rows), "\n"
    )

    size = (args.plan_users, args.items, args.dim, args.teacher_dim)
    rows = []
    for cost, plan, epsilon in (
        ("kl", "identity", 0.05),
        ("kl", "anchored", 0.05),
        ("cosine", "identity", 0.05),
        ("cosine", "anchored", 0.05),
        ("cosine", "batch", 0.05),
        ("cosine", "anchored", 0.001),
        ("cosine", "batch", 0.001),
    ):
        matrix = score_cost(*embeddings(*size), cost, TEMPERATURE).detach()
        ms = milliseconds(plan_call(cost, plan, epsilon, size), args.repeat)
        found = transport_plan(matrix.double(), plan=plan, epsilon=epsilon)
        worst = max((found.sum(axis) * args.plan_users - 1).abs().max().item() for axis in (0, 1))
        rows.append([f"{cost}, {plan}", f"{epsilon}", f"{ms:.1f}", f"{found.trace().item():.4f}", f"{worst:.0e}"])
    print(
        table(
            [f"loss, B = {args.plan_users}", "epsilon", "ms", "mass on the diagonal", "marginal error"], rows
        )
    )


if __name__ == "__main__":
    main()
