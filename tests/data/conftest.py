"""A small data set on disk, and configurations that read nothing but what the test gives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from recbole_guider.config.guider_config import GuiderConfig
from recbole_guider.data.dataset import GuiderDataset

N_USERS, N_ITEMS = 30, 20


@pytest.fixture
def pairs():
    """120 distinct pairs: every user has 4 items, every item 6 users. int64 [120, 2]."""
    users = np.repeat(np.arange(N_USERS), 4)
    items = (users * 3 + np.tile([0, 1, 5, 11], N_USERS)) % N_ITEMS
    return np.stack([users, items], axis=1)


@pytest.fixture
def folder(tmp_path: Path, pairs: np.ndarray) -> Path:
    """``<tmp>/toy/toy.inter`` with item tokens "0".."19"."""
    path = tmp_path / "toy"
    path.mkdir()
    order = np.random.default_rng(0).permutation(len(pairs))
    lines = ["user_id:token\titem_id:token\trating:float"]
    lines += [f"u{pairs[row, 0]}\t{pairs[row, 1]}\t{row % 5 + 1}" for row in order]
    (path / "toy.inter").write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def make_config(tmp_path: Path):
    """``make_config(dataset="toy", model="BPR", **settings)``."""

    def make(dataset: str = "toy", model: str = "BPR", **settings) -> GuiderConfig:
        settings = {
            "data_path": str(tmp_path),
            "checkpoint_dir": str(tmp_path / "saved"),
            "use_gpu": False,
            "state": "ERROR",
            "show_progress": False,
            **settings,
        }
        return GuiderConfig(model=model, dataset=dataset, config_dict=settings, command_line=[])

    return make


@pytest.fixture
def make_dataset(folder: Path, make_config):
    """``make_dataset(**settings)``: a GuiderDataset of the small data set."""

    def make(**settings) -> GuiderDataset:
        return GuiderDataset(make_config(**settings))

    return make
