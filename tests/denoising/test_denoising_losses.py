"""The losses of the denoising methods against loops over single observations."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from recbole_guider.denoising.base import Logits, logits, ramp
from recbole_guider.denoising.reweighted import reweighted_loss
from recbole_guider.denoising.truncated import truncated_loss

FORMS = ("bpr", "bce", "softmax")


def scores(form: str, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Scores of 13 observed pairs and of 3 sampled ones each (softmax: one soft negative), and the scale."""
    generator = torch.Generator().manual_seed(seed)
    positive = torch.randn(13, generator=generator, dtype=torch.float64)
    negative = torch.randn(13, 1 if form == "softmax" else 3, generator=generator, dtype=torch.float64)
    return positive, negative, 5.0 if form == "softmax" else 1.0


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def observations(form: str, positive: torch.Tensor, negative: torch.Tensor, scale: float) -> tuple[list, list]:
    """Probabilities by the definition: for each observed interaction a list, and one list of the sampled pairs."""
    observed, sampled = [], []
    for y, others in zip(positive.tolist(), negative.tolist(), strict=True):
        if form == "bce":
            observed.append([sigmoid(y)])
            sampled += [1 - sigmoid(z) for z in others]
        else:
            observed.append([sigmoid(scale * (y - z)) for z in others])
    return observed, sampled


@pytest.mark.parametrize("form", FORMS)
def test_logits_are_those_of_the_definitions(form: str) -> None:
    given = scores(form)
    found = logits(form, *given)
    observed, sampled = observations(form, *given)
    np.testing.assert_allclose(torch.sigmoid(found.positive).numpy(), observed)
    if form == "bce":
        assert found.negative is not None
        np.testing.assert_allclose(torch.sigmoid(found.negative).flatten().numpy(), sampled)
    else:
        assert found.negative is None
    np.testing.assert_allclose(
        found.observed_losses().numpy(), [-np.mean(np.log(row)) for row in observed]
    )
    everything = [-math.log(p) for row in observed for p in row] + [-math.log(p) for p in sampled]
    assert float(found.row_losses().mean()) == pytest.approx(np.mean(everything))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dropped", [0.0, 0.1, 0.37, 0.9])
def test_truncation_keeps_the_smallest_losses(form: str, dropped: float) -> None:
    given = scores(form)
    observed, sampled = observations(form, *given)
    by_loss = sorted(observed, key=lambda row: -np.mean(np.log(row)))
    kept = by_loss[: int((1 - dropped) * len(observed))]
    expected = np.mean([-math.log(p) for row in kept for p in row] + [-math.log(p) for p in sampled])
    assert float(truncated_loss(logits(form, *given), dropped)) == pytest.approx(expected)


def test_dropped_interactions_have_no_gradient() -> None:
    positive, negative, scale = scores("bpr")
    positive.requires_grad_()
    truncated_loss(logits("bpr", positive, negative, scale), 0.3).backward()
    worst = torch.argsort(logits("bpr", positive.detach(), negative).observed_losses())[9:]
    assert positive.grad is not None
    assert set(torch.nonzero(positive.grad == 0).flatten().tolist()) == set(worst.tolist())


def test_the_dropped_share_grows_linearly_and_stops() -> None:
    assert [ramp(step, 0.2, 4) for step in (0, 1, 2, 4, 9)] == pytest.approx([0, 0.05, 0.1, 0.2, 0.2])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("beta", [0.0, 0.25, 2.0])
def test_reweighting_by_a_power_of_the_probability(form: str, beta: float) -> None:
    given = scores(form)
    observed, sampled = observations(form, *given)
    flat = [p for row in observed for p in row] + sampled
    expected = np.mean([-(p**beta) * math.log(p) for p in flat])
    assert float(reweighted_loss(logits(form, *given), beta)) == pytest.approx(expected)


def test_the_weight_is_a_constant_of_the_gradient() -> None:
    x = torch.tensor([[0.3], [-1.2]], dtype=torch.float64, requires_grad=True)
    reweighted_loss(Logits(x, None), 0.5).backward()
    p = torch.sigmoid(x.detach())
    assert x.grad is not None
    torch.testing.assert_close(x.grad, -(p**0.5) * (1 - p) / 2)
