"""InfoNCE against a loop over rows, with its gradients."""

from __future__ import annotations

import torch
from torch.nn.functional import normalize

from recbole_guider.models.contrast import info_nce


def test_info_nce_against_a_loop() -> None:
    views = torch.randn(2, 9, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    a, b = (normalize(view, dim=1) for view in views)
    terms = []
    for row in range(9):
        weights = torch.exp(a[row] @ b.T / 0.3)
        terms.append(-torch.log(weights[row] / weights.sum()))
    (expected,) = torch.autograd.grad(torch.stack(terms).mean(), views)
    found = info_nce(*views, 0.3)
    torch.testing.assert_close(found, torch.stack(terms).mean())
    torch.testing.assert_close(torch.autograd.grad(found, views)[0], expected)
    assert info_nce(views[0, :0], views[1, :0], 0.3) == 0


def test_a_row_that_counts_twice_is_two_rows() -> None:
    views = torch.randn(2, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True)
    counts = torch.tensor([2, 1, 3])
    repeated = torch.arange(3).repeat_interleave(counts)
    expected = info_nce(views[0, repeated], views[1, repeated], 0.3, views[1])
    found = info_nce(views[0, :3], views[1, :3], 0.3, views[1], counts)
    torch.testing.assert_close(found, expected)
    gradients = [torch.autograd.grad(loss, views)[0] for loss in (found, expected)]
    torch.testing.assert_close(*gradients)
