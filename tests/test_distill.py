"""distill.py against score matrices written out, POT itself, and finite differences."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import log_softmax, normalize

from recbole_guider.losses.distillation import (
    _pot,
    catalogue_moments,
    diagonal_cost,
    kl_distillation_loss,
    min_norm_weights,
    ot_distillation_loss,
    reusable,
    score_cost,
    transport_plan,
)
from recbole_guider.utils.errors import GuiderError

ot = _pot()
GRAM_COSTS = ["cosine", "scores"]
COSTS = [*GRAM_COSTS, "kl"]
TEMPERATURE = 0.7


def models(batch=9, n=120, d=6, d_teacher=4, dtype=torch.float64, seed=0, common=1.0):
    """Student and teacher that agree in part; item vectors share an offset, as popularity gives them."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    users, items = draw(batch, d), draw(n, d) + common * draw(1, d)
    mixing = draw(d, d_teacher) / math.sqrt(d)
    users_teacher = users @ torch.linalg.pinv(mixing).T + 0.3 * draw(batch, d_teacher)
    items_teacher = items @ mixing + 0.3 * draw(n, d_teacher)
    return tuple(x.to(dtype) for x in (users, items, users_teacher, items_teacher))


def direct_cost(users, items, users_teacher, items_teacher, cost, temperature=TEMPERATURE):
    s, t = (users @ items.T).double(), (users_teacher @ items_teacher.T).double()
    if cost == "kl":
        s, t = log_softmax(s / temperature, 1), log_softmax(t / temperature, 1)
        return temperature * (t.exp()[None, :, :] * (t[None, :, :] - s[:, None, :])).sum(2)
    if cost == "scores":
        return ((s[:, None, :] - t[None, :, :]) ** 2).mean(2)
    return 1 - normalize(s - s.mean(1, keepdim=True)) @ normalize(t - t.mean(1, keepdim=True)).T


# cost -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize("d_teacher", [3, 6, 10])
@pytest.mark.parametrize("common", [0.0, 30.0])
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
def test_cost_is_the_direct_form(cost, d_teacher, common, dtype, rtol):
    parts = models(d_teacher=d_teacher, common=common)
    expected = direct_cost(*parts, cost)
    parts = tuple(x.to(dtype) for x in parts)
    found = score_cost(*parts, cost, TEMPERATURE)
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), expected, rtol=rtol, atol=rtol * expected.abs().max().item())
    diagonal = diagonal_cost(*parts, cost, TEMPERATURE)
    torch.testing.assert_close(diagonal, found.diagonal(), rtol=rtol, atol=rtol * expected.abs().max().item())


@pytest.mark.parametrize("cost", GRAM_COSTS)
def test_batches_of_different_size_and_moments(cost):
    users, items, users_teacher, items_teacher = models()
    expected = direct_cost(users, items, users_teacher[:4], items_teacher, cost)
    moments = catalogue_moments(items_teacher, cost)
    torch.testing.assert_close(score_cost(users, items, users_teacher[:4], moments, cost), expected)
    torch.testing.assert_close(
        score_cost(users, catalogue_moments(items, cost), users_teacher[:4], moments, cost), expected
    )
    with pytest.raises(GuiderError, match="same users"):
        diagonal_cost(users, items, users_teacher[:4], moments, cost)


def test_cosine_ignores_scale_and_item_offsets():
    users, items, users_teacher, items_teacher = models()
    expected = score_cost(users, items, users_teacher, items_teacher)
    shifted = score_cost(7 * users, items + 3, users_teacher, 0.01 * items_teacher - 1)
    torch.testing.assert_close(shifted, expected)
    tiny = score_cost(1e-9 * users, 1e-9 * items, 1e-9 * users_teacher, items_teacher)
    torch.testing.assert_close(tiny, expected)
    torch.testing.assert_close(score_cost(users, items, users, items).diagonal(), torch.zeros(9).double())
    torch.testing.assert_close(
        score_cost(users, items, -users, items).diagonal(), torch.full((9,), 2.0).double()
    )


@pytest.mark.parametrize("cost", COSTS)
def test_cost_gradient(cost):
    parts = [x.requires_grad_() for x in models(batch=3, n=8, d=3, d_teacher=2)]
    assert torch.autograd.gradcheck(lambda *x: score_cost(*x, cost, TEMPERATURE), parts)
    assert torch.autograd.gradcheck(lambda *x: diagonal_cost(*x, cost, TEMPERATURE), parts)


def test_kl_of_other_users_of_a_model_to_itself_and_of_shifted_rows():
    users, items, users_teacher, items_teacher = models()
    cost = score_cost(users, items, users_teacher[:4], items_teacher, "kl", TEMPERATURE)
    torch.testing.assert_close(cost, direct_cost(users, items, users_teacher[:4], items_teacher, "kl"))
    itself = score_cost(users, items, users, items, "kl", TEMPERATURE)
    torch.testing.assert_close(itself.diagonal(), torch.zeros(9).double(), rtol=0, atol=1e-12)
    assert (itself + torch.eye(9)).min() > 1e-3
    # a user's scores may be off by a constant, as by an offset of all items
    shifted = score_cost(users, items + 3, users_teacher[:4], items_teacher - 1, "kl", TEMPERATURE)
    torch.testing.assert_close(shifted, cost)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_vanishing_score_rows(dtype):
    users, items, users_teacher, items_teacher = models(dtype=dtype)
    users[2] = 0
    users_teacher[5] = 0
    users.requires_grad_()
    cost = score_cost(users, items, users_teacher, items_teacher)
    assert (cost[2] == 1).all() and (cost[:, 5] == 1).all()
    (cost.sum() + diagonal_cost(users, items, users_teacher, items_teacher).sum()).backward()
    assert torch.isfinite(users.grad).all() and not users.grad[2].any()

    constant = (
        torch.ones(120, 6, dtype=dtype) * torch.rand(1, 6)
    ).requires_grad_()  # every user's scores are constant
    cost = score_cost(users, constant, users_teacher, items_teacher)
    cost.sum().backward()
    assert (cost == 1).all() and torch.isfinite(constant.grad).all() and torch.isfinite(users.grad).all()


@pytest.mark.parametrize(("cost", "atol"), [("cosine", 0.02), ("kl", 0.2)])
def test_half_precision_and_autocast_are_computed_in_float32(cost, atol):
    parts = models(dtype=torch.float32)
    expected = score_cost(*parts, cost)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(score_cost(*parts, cost), expected)
    low = score_cost(*(x.bfloat16() for x in parts), cost)
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, expected, rtol=0, atol=atol)


def test_bad_cost():
    users, items, users_teacher, items_teacher = models()
    with pytest.raises(GuiderError, match="cost must be one of cosine, scores, kl"):
        score_cost(users, items, users_teacher, items_teacher, "euclid")
    with pytest.raises(GuiderError, match="same items"):
        score_cost(users, items[:5], users_teacher, items_teacher)
    with pytest.raises(GuiderError, match="teacher's users"):
        score_cost(users, items, users, items_teacher)
    with pytest.raises(GuiderError, match="moments"):
        score_cost(users, items, users_teacher, catalogue_moments(items_teacher, "scores"))
    with pytest.raises(GuiderError, match="matrix"):
        catalogue_moments(items[:0])
    with pytest.raises(GuiderError, match="cosine and scores have moments"):
        catalogue_moments(items, "kl")
    with pytest.raises(GuiderError, match="matrices themselves"):
        score_cost(users, catalogue_moments(items), users_teacher, items_teacher, "kl")
    with pytest.raises(GuiderError, match="same items"):
        score_cost(users, items[:5], users_teacher, items_teacher, "kl")
    with pytest.raises(GuiderError, match="temperature must be above 0"):
        score_cost(users, items, users_teacher, items_teacher, "kl", 0.0)


# plan -----------------------------------------------------------------------------------------------------------------


def marginal_error(plan):
    rows, columns = plan.shape
    return max(
        ((plan.sum(1) * rows) - 1).abs().max().item(), ((plan.sum(0) * columns) - 1).abs().max().item()
    )


@pytest.mark.parametrize("plan", ["batch", "anchored"])
@pytest.mark.parametrize("epsilon", [1.0, 0.05, 0.005, 1e-4])
@pytest.mark.parametrize("scale", [1.0, 100.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_marginals_hold_and_nothing_is_said(plan, epsilon, scale, dtype):
    cost = scale * torch.rand(40, 40, generator=torch.Generator().manual_seed(0)).to(dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = transport_plan(cost, epsilon=epsilon, iterations=50, plan=plan, anchor=0.3)
    assert found.dtype == dtype and (found >= 0).all()
    assert marginal_error(found) < 1e-4


@pytest.mark.parametrize("epsilon", [0.5, 0.05])
def test_batch_plan_is_pots(epsilon):
    cost = torch.rand(12, 7, generator=torch.Generator().manual_seed(0)).double()
    expected = ot.sinkhorn([], [], cost.numpy(), epsilon, numItermax=100000, stopThr=1e-14)
    found = transport_plan(cost, epsilon=epsilon, iterations=100000, plan="batch")
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4, atol=1e-8)


def test_small_epsilon_approaches_the_exact_plan():
    cost = torch.rand(30, 30, generator=torch.Generator().manual_seed(0)).double()
    exact = ot.emd2([], [], cost.numpy())
    found = (transport_plan(cost, epsilon=1e-3, iterations=5000, plan="batch") * cost).sum().item()
    assert exact - 1e-9 <= found <= exact + 0.01


def test_anchored_tends_to_the_identity():
    cost = torch.rand(20, 20, generator=torch.Generator().manual_seed(0)).double()
    stays = [
        transport_plan(cost, epsilon=0.05, iterations=1000, anchor=anchor).trace().item()
        for anchor in (0.0, 0.2, 0.5, 1.0, 2.0, 1e6)
    ]
    assert stays == sorted(stays) and stays[0] < 0.5 and stays[-1] == pytest.approx(1, abs=1e-12)
    torch.testing.assert_close(
        transport_plan(cost, anchor=0.0, iterations=1000), transport_plan(cost, plan="batch", iterations=1000)
    )
    identity = torch.eye(20).double() / 20
    torch.testing.assert_close(transport_plan(cost, anchor=1e6), identity)
    assert torch.equal(transport_plan(cost, anchor=math.inf), identity)
    assert torch.equal(transport_plan(cost, plan="identity"), identity)


def test_plan_finds_permuted_users():
    users, items, _, _ = models()
    order = torch.randperm(9, generator=torch.Generator().manual_seed(0))
    plan = transport_plan(
        score_cost(users, items, users[order], items), epsilon=0.01, plan="batch", iterations=500
    )
    assert torch.equal(plan.argmax(1), order.argsort())


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"plan": "free"}, "plan must be one of"),
        ({"epsilon": 0.0}, "epsilon"),
        ({"epsilon": math.inf}, "epsilon"),
        ({"iterations": 0}, "iterations"),
        ({"anchor": -1.0}, "anchor"),
        ({"anchor": math.nan}, "anchor"),
    ],
)
def test_bad_plan(kwargs, words):
    with pytest.raises(GuiderError, match=words):
        transport_plan(torch.zeros(3, 3), **kwargs)
    with pytest.raises(GuiderError, match=words):
        ot_distillation_loss(*models(), **kwargs)


def test_bad_cost_matrix():
    with pytest.raises(GuiderError, match="square"):
        transport_plan(torch.zeros(3, 4))
    with pytest.raises(GuiderError, match="not finite"):
        transport_plan(torch.tensor([[0.0, math.nan], [1.0, 1.0]]))


# loss -----------------------------------------------------------------------------------------------------------------

PLANS = [("batch", 0.0), ("anchored", 0.2), ("anchored", 1.0), ("identity", 1.0)]


def regularised_cost(matrix, epsilon, anchor):
    """min_P <P, C + A> + eps KL(P | ab^T), through the plan and its entropy."""
    if anchor is None:
        return matrix.diagonal().mean()
    plan = transport_plan(matrix, epsilon=epsilon, iterations=1000, plan="anchored", anchor=anchor)
    rows = matrix.shape[0]
    price = anchor * (1 - torch.eye(rows).double())
    kl = (plan * (plan * rows**2).clamp_min(1e-300).log()).sum()
    return (plan * (matrix + price)).sum() + epsilon * kl


@pytest.mark.parametrize(("plan", "anchor"), PLANS)
@pytest.mark.parametrize("cost", COSTS)
def test_envelope_gradient_is_that_of_the_regularised_transport_cost(plan, anchor, cost):
    users, items, users_teacher, items_teacher = models(batch=5, n=20, d=3, d_teacher=2)
    # Large enough for Sinkhorn to converge within the iterations: it is slow where the plan is nearly diagonal.
    epsilon = (1.0 if cost == "scores" else 0.1) * (3 if anchor == 1.0 else 1)
    users.requires_grad_()
    items.requires_grad_()
    kwargs = {"cost": cost, "temperature": TEMPERATURE, "plan": plan, "anchor": anchor, "epsilon": epsilon,
              "iterations": 1000}
    loss = ot_distillation_loss(users, items, users_teacher, items_teacher, **kwargs)
    loss.backward()

    def objective(u, v):
        matrix = score_cost(u, v, users_teacher, items_teacher, cost, TEMPERATURE)
        return regularised_cost(matrix, epsilon, None if plan == "identity" else anchor).item()

    step = 1e-5
    for x, rebuild in ((users, lambda y: (y, items)), (items, lambda y: (users, y))):
        for row, column in ((0, 0), (1, 2), (4, 1)):
            with torch.no_grad():
                up, down = x.clone(), x.clone()
                up[row, column] += step
                down[row, column] -= step
                slope = (objective(*rebuild(up)) - objective(*rebuild(down))) / (2 * step)
            assert x.grad[row, column].item() == pytest.approx(slope, rel=1e-4, abs=1e-7)


@pytest.mark.parametrize("cost", COSTS)
def test_loss_is_the_transported_cost(cost):
    parts = models()
    kwargs = {"epsilon": 0.1, "iterations": 500, "plan": "batch"}

    def transported(a, v, b, w):
        matrix = direct_cost(a, v, b, w, cost)
        return (transport_plan(matrix, **kwargs) * matrix).sum()

    u, v, t, w = parts
    expected = transported(u, v, t, w)
    settings = {**kwargs, "cost": cost, "temperature": TEMPERATURE}
    found = ot_distillation_loss(*parts, **settings)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)
    found = ot_distillation_loss(u, v, t, reusable(w, cost), **settings)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)


def test_identity_is_the_limit_of_anchored():
    parts = models()
    identity = ot_distillation_loss(*parts, plan="identity")
    torch.testing.assert_close(identity, direct_cost(*parts, "cosine").diagonal().mean())
    for anchor in (50.0, math.inf):
        torch.testing.assert_close(ot_distillation_loss(*parts, plan="anchored", anchor=anchor), identity)


@pytest.mark.parametrize("cost", ["cosine", "kl"])
def test_teacher_gets_no_gradient_and_descent_helps(cost):
    users, items, users_teacher, items_teacher = models()
    for x in (users_teacher, items_teacher):
        x.requires_grad_()
    student = (torch.randn(9, 6).double().requires_grad_(), torch.randn(120, 6).double().requires_grad_())
    optimiser = torch.optim.Adam(student, lr=0.05)
    losses = []
    for _ in range(40):
        loss = ot_distillation_loss(*student, users_teacher, items_teacher, cost=cost)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert users_teacher.grad is None and items_teacher.grad is None


@pytest.mark.parametrize("plan", ["batch", "anchored", "identity"])
@pytest.mark.parametrize("cost", ["cosine", "kl"])
def test_batches_of_one_and_none(plan, cost):
    users, items, users_teacher, items_teacher = models()
    one = ot_distillation_loss(
        users[:1], items, users_teacher[:1], items_teacher, cost=cost, temperature=TEMPERATURE, plan=plan
    )
    torch.testing.assert_close(one, direct_cost(users[:1], items, users_teacher[:1], items_teacher, cost)[0, 0])
    none = ot_distillation_loss(
        users[:0].requires_grad_(), items, users_teacher[:0], items_teacher, cost=cost, plan=plan
    )
    none.backward()
    assert none == 0


# KL and weights -------------------------------------------------------------------------------------------------------


def test_kl_is_the_loop():
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(4, 7, generator=generator).double() for _ in range(2))
    expected = 0.0
    for s, t in zip((student / 2).tolist(), (teacher / 2).tolist(), strict=True):
        zs, zt = sum(map(math.exp, s)), sum(map(math.exp, t))
        expected += sum(
            math.exp(b) / zt * (b - math.log(zt) - a + math.log(zs)) for a, b in zip(s, t, strict=True)
        )
    assert kl_distillation_loss(student, teacher, 2.0).item() == pytest.approx(4 * expected / 4)
    assert kl_distillation_loss(student, student + 5, 0.3).item() == pytest.approx(0, abs=1e-12)


def test_kl_gradient():
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(3, 5, generator=generator).double().requires_grad_() for _ in range(2))
    assert torch.autograd.gradcheck(lambda s: kl_distillation_loss(s, teacher.detach(), 0.7), (student,))
    kl_distillation_loss(student, teacher, 0.7).backward()
    assert teacher.grad is None
    with pytest.raises(GuiderError, match="temperature"):
        kl_distillation_loss(student, teacher, 0.0)
    with pytest.raises(GuiderError, match="same shape"):
        kl_distillation_loss(student, teacher[:, :2], 1.0)


@pytest.mark.parametrize("seed", range(8))
def test_min_norm_is_the_best_mixture(seed):
    generator = torch.Generator().manual_seed(seed)
    a, b = (torch.randn(6, generator=generator).double() * s for s in (1.0, 0.2 + seed))
    w_a, w_b = min_norm_weights(a, b)
    assert 0 <= w_a <= 1 and w_a + w_b == 1
    grid = torch.linspace(0, 1, 2001).double()[:, None]
    best = (grid * a + (1 - grid) * b).norm(dim=1).min()
    mixture = w_a * a + w_b * b
    assert mixture.norm() <= best + 1e-6
    # A step against the mixture lowers both losses (or leaves them).
    assert mixture @ a >= -1e-6 and mixture @ b >= -1e-6
    parts = min_norm_weights([a[:2], None, a[2:].view(2, 2)], [b[:2], None, b[2:].view(2, 2)])
    torch.testing.assert_close(torch.stack(parts), torch.stack((w_a, w_b)))


def test_min_norm_edges():
    a = torch.tensor([1.0, 2.0])
    assert [w.item() for w in min_norm_weights(a, a)] == [0.5, 0.5]
    assert [w.item() for w in min_norm_weights(a, 3 * a)] == [1.0, 0.0]
    assert [w.item() for w in min_norm_weights(3 * a, a)] == [0.0, 1.0]
    assert [w.item() for w in min_norm_weights([a, None], [None, a])] == [0.5, 0.5]
    assert [w.item() for w in min_norm_weights(torch.zeros(2), a)] == [1.0, 0.0]
    with pytest.raises(GuiderError, match="equally many"):
        min_norm_weights([a], [a, a])
    with pytest.raises(GuiderError, match="equal shapes"):
        min_norm_weights(a, torch.ones(3))
    with pytest.raises(GuiderError, match="at least one"):
        min_norm_weights([None], [None])


@pytest.mark.parametrize("imported", [False, True])
def test_pot_takes_no_array_library_along_that_nobody_imported(imported: bool, tmp_path: Path) -> None:
    """JAX would take three quarters of a GPU's memory."""
    (tmp_path / "jax").mkdir()
    (tmp_path / "jax" / "__init__.py").write_text("")
    (tmp_path / "cupy.py").write_text("raise RuntimeError('imported')")
    program = f"""
import os, sys, torch
{"import jax" if imported else ""}
before = dict(os.environ)
from recbole_guider.losses.distillation import transport_plan
transport_plan(torch.rand(4, 4), plan="batch")
assert "ot" in sys.modules and ("jax" in sys.modules) is {imported} and "cupy" not in sys.modules
assert dict(os.environ) == before
"""
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    subprocess.run([sys.executable, "-c", program], check=True, env={**os.environ, "PYTHONPATH": path})
