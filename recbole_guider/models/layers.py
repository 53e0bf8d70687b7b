"""Small layers that several models share."""

from __future__ import annotations

import torch
from torch import Tensor


def seeded_dropout(x: Tensor, rate: float, generator: torch.Generator) -> Tensor:
    """``x`` with a random share ``rate`` of its entries set to zero and the others divided by ``1 - rate``.

    Dropout whose mask comes from a generator of its own, so that runs repeat and resume exactly on every device.

    Args:
        x: floats of any shape.
        rate: 0 <= rate < 1; with 0 nothing is drawn.
        generator: on the CPU.
    """
    if rate == 0:
        return x
    kept = torch.rand(x.shape, generator=generator) >= rate
    return x * (kept.to(x.device, x.dtype) / (1.0 - rate))
