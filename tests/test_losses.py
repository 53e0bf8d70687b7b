"""dbpr_loss against loops over pairs, over forms, types and masks."""

from __future__ import annotations

import math

import pytest
import torch

from recbole_guider.losses.dbpr import dbpr_loss, observed_probability, soft_negative, soft_negative_sum
from recbole_guider.utils.errors import GuiderError

FORMS = ["pairwise", "softmax"]


def scores(batch=6, negatives=4, pairs=3, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    p = torch.rand(batch, generator=generator, dtype=torch.float64).to(dtype)
    return draw(batch), draw(batch, negatives), p, draw(pairs), draw(pairs)


def log_sigmoid(x):
    return -math.log1p(math.exp(-x))


def naive(positive, negative, p, true, false, form, temperature, soft, eta, gamma, mask):
    tau = temperature if form == "softmax" else 1.0
    total = 0.0
    batch, n = negative.shape
    for b in range(batch):
        y = positive[b].item() / tau
        usable = [negative[b, j].item() / tau for j in range(n) if mask is None or mask[b, j]]
        weight = p[b].item() if soft else float(p[b].item() >= 0.5)
        if not usable:
            continue
        if form == "softmax":
            total -= weight * (y - math.log(math.exp(y) + sum(math.exp(x) for x in usable))) / batch
        else:
            total -= weight * sum(log_sigmoid(y - x) for x in usable) / len(usable) / batch
        total -= gamma * (1 - weight) * sum(log_sigmoid(x - y) for x in usable) / len(usable) / batch
    for t, f in zip(true.tolist(), false.tolist(), strict=True):
        total -= eta * log_sigmoid((t - f) / tau) / len(true)
    return total


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("soft", [True, False])
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize(("eta", "gamma"), [(0.0, 0.0), (0.1, 0.0), (0.7, 0.4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_is_the_loop(form, soft, masked, eta, gamma, dtype):
    inputs = scores(dtype=dtype)
    mask = torch.rand(6, 4, generator=torch.Generator().manual_seed(1)) < 0.6 if masked else None
    if mask is not None:
        mask[2] = False
    found = dbpr_loss(
        *inputs[:2], inputs[2] if soft else inputs[2] >= 0.5, *inputs[3:], form=form, temperature=0.3, eta=eta,
        gamma=gamma, negative_mask=mask,
    )
    expected = naive(*inputs, form, 0.3, soft, eta, gamma, mask)
    assert found.dtype == dtype and found.shape == ()
    assert found.item() == pytest.approx(expected, rel=1e-5 if dtype == torch.float32 else 1e-12)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("masked", [True, False])
def test_observed_probability_is_the_loop(form, masked):
    positive, negative, _, _, _ = scores()
    mask = torch.rand(6, 4, generator=torch.Generator().manual_seed(1)) < 0.6 if masked else None
    if mask is not None:
        mask[2] = False
    expected = []
    for b in range(6):
        usable = [negative[b, j].item() for j in range(4) if mask is None or mask[b, j]]
        if form == "softmax":
            y = math.exp(positive[b].item() / 0.3)
            expected.append(y / (y + sum(math.exp(x / 0.3) for x in usable)))
        else:
            each = [1 / (1 + math.exp(x - positive[b].item())) for x in usable]
            expected.append(sum(each) / max(len(each), 1))
    found = observed_probability(
        positive.requires_grad_(), negative, form=form, temperature=0.3, negative_mask=mask
    )
    assert found.tolist() == pytest.approx(expected, rel=1e-12) and not found.requires_grad
    one = observed_probability(positive, negative[:, 0], form=form, temperature=0.3)
    assert torch.equal(one, observed_probability(positive, negative[:, :1], form=form, temperature=0.3))
    for change, words in (({"form": "listwise"}, "form must be one of"), ({"temperature": 0.0}, "temperature must be")):
        with pytest.raises(GuiderError, match=words):
            observed_probability(positive, negative, **{"form": form, **change})


@pytest.mark.parametrize("form", FORMS)
def test_rows_weigh_what_they_are_given(form):
    positive, negative, p, true, false = scores()
    weight = torch.tensor([0.0, 2.0, 0.5, 1.0, 3.0, 0.1], dtype=torch.float64)

    def loss(p, weight=None, **settings):
        return dbpr_loss(positive, negative, p, true, false, form=form, weight=weight, **settings)

    torch.testing.assert_close(loss(p, weight), loss(p * weight), rtol=1e-12, atol=0)
    # of the first term only, and of the decision whether a pair counts nothing
    flipped = loss(p, gamma=0.5) - loss(p)
    torch.testing.assert_close(loss(p, weight, gamma=0.5) - loss(p, weight), flipped, rtol=1e-10, atol=0)
    hard = p >= 0.5
    torch.testing.assert_close(loss(hard, weight), loss(hard * weight), rtol=1e-12, atol=0)


@pytest.mark.parametrize("gamma", [0.0, 0.5])
def test_softmax_with_one_negative_and_no_temperature_is_pairwise(gamma):
    positive, negative, p, true, false = scores(negatives=1)
    values = [
        dbpr_loss(positive, x, p, true, false, form=form, temperature=1.0, eta=0.3, gamma=gamma)
        for form in FORMS
        for x in (negative, negative[:, 0])
    ]
    for value in values[1:]:
        torch.testing.assert_close(value, values[0], rtol=1e-12, atol=0)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("masked", [True, False])
def test_gradient(form, masked):
    inputs = [x.requires_grad_() for x in scores()]
    mask = torch.rand(6, 4, generator=torch.Generator().manual_seed(1)) < 0.5 if masked else None
    if mask is not None:
        mask[0] = False

    def loss(*x):
        return dbpr_loss(*x, form=form, temperature=0.5, eta=0.2, gamma=0.3, negative_mask=mask)

    assert torch.autograd.gradcheck(loss, inputs)


@pytest.mark.parametrize("form", FORMS)
def test_gradients_point_the_right_way(form):
    positive, negative, p, true, false = (x.requires_grad_() for x in scores())
    dbpr_loss(positive, negative, p, true, false, form=form).backward()
    assert (positive.grad < 0).all() and (negative.grad > 0).all()
    assert (true.grad < 0).all() and (false.grad > 0).all()
    assert (p.grad > 0).all()


@pytest.mark.parametrize("form", FORMS)
def test_a_pair_that_is_surely_noise_teaches_nothing(form):
    positive, negative, _, _, _ = scores()
    positive.requires_grad_()
    p = torch.tensor([1.0, 0.0, 1.0, 0.0, 1.0, 0.0], dtype=torch.float64)
    dbpr_loss(positive, negative, p, form=form).backward()
    assert ((positive.grad != 0) == (p == 1)).all()
    flipped = positive.detach().requires_grad_()
    dbpr_loss(flipped, negative, p, form=form, gamma=1.0).backward()
    assert ((flipped.grad > 0) == (p == 0)).all()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("size", [1e4, -1e4])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_extreme_scores_stay_finite(form, size, dtype):
    positive = torch.tensor([size, -size], dtype=dtype, requires_grad=True)
    negative = torch.tensor([[-size, 0.0], [size, 0.0]], dtype=dtype, requires_grad=True)
    mask = torch.tensor([[True, True], [False, False]])
    for negative_mask in (None, mask):
        loss = dbpr_loss(
            positive,
            negative,
            torch.ones(2),
            form=form,
            temperature=1.0,
            gamma=0.1,
            negative_mask=negative_mask,
        )
        loss.backward()
        assert (
            torch.isfinite(loss)
            and torch.isfinite(positive.grad).all()
            and torch.isfinite(negative.grad).all()
        )


@pytest.mark.parametrize("form", FORMS)
def test_empty_sets_add_nothing(form):
    positive, negative, p, true, false = scores()
    none = dbpr_loss(positive, negative, p, form=form, eta=0.5)
    assert none == dbpr_loss(positive, negative, p, true[:0], false[:0], form=form, eta=0.5)
    assert none < dbpr_loss(positive, negative, p, true, false, form=form, eta=0.5)
    empty = dbpr_loss(positive[:0].requires_grad_(), negative[:0], p[:0], form=form)
    empty.backward()
    assert empty == 0
    assert dbpr_loss(positive, negative[:, :0], p, form=form, gamma=1.0) == 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"form": "listwise"}, "form must be one of pairwise, softmax"),
        ({"temperature": 0.0}, "temperature"),
        ({"temperature": math.nan}, "temperature"),
        ({"eta": -0.1}, "eta"),
        ({"gamma": -0.1}, "gamma"),
        ({"negative": torch.zeros(5, 2)}, "positive must be"),
        ({"clean_probability": torch.ones(5)}, "clean_probability"),
        ({"negative_mask": torch.ones(6, 3, dtype=torch.bool)}, "negative_mask"),
        ({"weight": torch.ones(6, 1)}, "weight must have the shape"),
        ({"false": torch.zeros(2)}, "equally long"),
    ],
)
def test_bad_input(change, words):
    names = ("positive", "negative", "clean_probability", "true", "false")
    with pytest.raises(GuiderError, match=words):
        dbpr_loss(**{**dict(zip(names, scores(), strict=True)), **change})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("temperature", [0.01, 0.2, 1.0])
def test_soft_negative_is_the_log_sum_exp_of_its_scores(dtype: torch.dtype, temperature: float) -> None:
    generator = torch.Generator().manual_seed(0)
    users = torch.randn(7, 4, generator=generator, dtype=dtype).requires_grad_()
    items = torch.randn(5, 4, generator=generator, dtype=dtype).requires_grad_()
    excluded = (torch.tensor([0, 0, 3, *[6] * 5]), torch.tensor([1, 4, 2, *range(5)]))
    got = soft_negative(users, items, temperature=temperature, excluded=excluded)
    for b in range(7):
        gone = {int(c) for r, c in zip(*excluded, strict=True) if r == b}
        kept = [users[b].detach() @ items[n].detach() for n in range(5) if n not in gone]
        scores = torch.stack(kept or [users.new_tensor(-torch.inf)])
        expected = temperature * torch.logsumexp(scores / temperature, 0)
        torch.testing.assert_close(got[b], expected, rtol=1e-5, atol=1e-5)
    # a row without any negative has no gradient, and disturbs nobody else's
    positive = torch.randn(7, generator=generator, dtype=dtype)
    dbpr_loss(positive, got, torch.ones(7, dtype=dtype), temperature=temperature).backward()
    assert torch.isfinite(users.grad).all() and torch.isfinite(items.grad).all()
    assert (users.grad[6] == 0).all()


def test_soft_negative_gradient_and_the_loss_it_stands_for() -> None:
    generator = torch.Generator().manual_seed(1)
    users, items = (torch.randn(n, 3, generator=generator, dtype=torch.float64).requires_grad_() for n in (6, 4))
    excluded = (torch.tensor([2, 5]), torch.tensor([0, 3]))
    assert torch.autograd.gradcheck(
        lambda u, v: soft_negative(u, v, temperature=0.5, excluded=excluded), (users, items)
    )
    positive = torch.randn(6, generator=generator, dtype=torch.float64)
    clean = torch.rand(6, generator=generator, dtype=torch.float64)
    mask = torch.ones(6, 4, dtype=torch.bool)
    mask[excluded] = False
    many = dbpr_loss(positive, users @ items.T, clean, temperature=0.5, negative_mask=mask)
    one = dbpr_loss(positive, soft_negative(users, items, temperature=0.5, excluded=excluded), clean, temperature=0.5)
    torch.testing.assert_close(one, many)
    with pytest.raises(GuiderError, match="temperature must be above 0"):
        soft_negative(users, items, temperature=0.0)


@pytest.mark.parametrize("temperature", [0.01, 0.5])
@pytest.mark.parametrize("weights", [None, torch.tensor([1, 3, 1, 0, 2, 1, 4])])
def test_soft_negative_sum_in_blocks(
    temperature: float, weights: torch.Tensor | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("recbole_guider.losses.dbpr._BLOCK_ROWS", 3)
    monkeypatch.setattr("recbole_guider.losses.dbpr._BLOCK_ENTRIES", {"cpu": 4})
    generator = torch.Generator().manual_seed(2)
    users, items = (torch.randn(n, 3, generator=generator, dtype=torch.float64).requires_grad_() for n in (7, 5))
    each = soft_negative(users, items, temperature=temperature)
    expected = (each if weights is None else weights * each).sum()
    got = soft_negative_sum(users, items, temperature=temperature, weights=weights)
    torch.testing.assert_close(got, expected)
    gradients = [torch.autograd.grad(2.5 * total, (users, items)) for total in (got, expected)]
    torch.testing.assert_close(*gradients)
    with torch.no_grad():
        torch.testing.assert_close(soft_negative_sum(users, items, temperature=temperature, weights=weights), expected)
    with pytest.raises(GuiderError, match="temperature must be above 0"):
        soft_negative_sum(users, items, temperature=-temperature)
