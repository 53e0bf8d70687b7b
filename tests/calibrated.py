"""What a calibration says of training interactions, for tests that need none of its own."""

from __future__ import annotations

from typing import Any

import torch


def all_clean(dataset: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Probability and decision of a calibration that finds no noise."""
    size = len(dataset.inter_feat)
    return torch.ones(size), torch.ones(size, dtype=torch.bool)
