"""A small multi-modal data set with planted tastes, as RecBole reads it from disk."""

from __future__ import annotations

import logging
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from recbole_guider.utils import compat

compat.apply()  # before a test module takes names out of RecBole's modules

from recbole_guider.config import registry  # noqa: E402
from recbole_guider.guider.calibration import calibrate_dataset  # noqa: E402

# A shell starts background jobs with SIGINT ignored, and their children inherit that: tests press Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)

N_USERS, N_ITEMS, N_TASTES = 60, 40, 4


@pytest.fixture(autouse=True)
def _in_a_directory_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs write logs and checkpoints to the current directory; no test may see another's, or our command line.

    Nor the models that another has registered.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry, "_registered", dict(registry._registered))
    monkeypatch.setattr("sys.argv", ["pytest"])
    threads, level = torch.get_num_threads(), logging.getLogger().level
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    logging.getLogger().setLevel(level)  # RecBole's logger sets it
    for handler in logging.getLogger().handlers[:]:
        if isinstance(handler, logging.FileHandler):
            logging.getLogger().removeHandler(handler)
            handler.close()


@pytest.fixture(autouse=True)
def _calibrations_are_shared(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Hundreds of runs train on the toy data; those of one process calibrate it once for each of AMSC's settings.

    Tests of calibrations themselves, or of whole runs, are marked ``own_calibration``.
    """
    if request.node.get_closest_marker("own_calibration"):
        return
    folder = tmp_path_factory.getbasetemp() / "calibrations"

    def sharing(config: Any, dataset: Any, *, cache: Path | None = None, **more: Any) -> Any:
        return calibrate_dataset(config, dataset, cache=folder if cache is None else cache, **more)

    monkeypatch.setattr("recbole_guider.training.trainer.calibrate_dataset", sharing)


@pytest.fixture(scope="session")
def toy_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds ``toy/``: 60 users of 4 tastes, 40 items, image (8-d) and text (5-d, some rows missing)."""
    rng = np.random.default_rng(7)
    folder = tmp_path_factory.mktemp("data") / "toy"
    folder.mkdir()
    taste = np.arange(N_ITEMS) % N_TASTES
    lines = ["user_id:token\titem_id:token"]
    for user in range(N_USERS):
        liked = np.flatnonzero(taste == user % N_TASTES)
        chosen = set(rng.choice(liked, size=7, replace=False)) | set(rng.choice(N_ITEMS, size=2, replace=False))
        lines += [f"u{user}\t{item}" for item in sorted(chosen)]
    (folder / "toy.inter").write_text("\n".join(lines) + "\n")
    centres = rng.normal(size=(N_TASTES, 8))
    np.save(folder / "image.npy", (centres[taste] + 0.3 * rng.normal(size=(N_ITEMS, 8))).astype(np.float32))
    rows = np.arange(0, N_ITEMS - 3)
    np.save(folder / "text.npy", (centres[taste][:, :5] + 0.3 * rng.normal(size=(N_ITEMS, 5)))[rows].astype(np.float32))
    (folder / "text_ids.txt").write_text("\n".join(map(str, rows)) + "\n")
    return folder.parent


@pytest.fixture
def toy(toy_folder: Path) -> dict[str, Any]:
    """Settings of a short run on the toy data."""
    return {
        "data_path": str(toy_folder),
        "modalities": {"image": {"file": "image.npy"}, "text": {"file": "text.npy", "ids": "text_ids.txt"}},
        "epochs": 2,
        "train_batch_size": 128,
        "embedding_size": 16,
        "eval_args": {"split": {"RS": [0.7, 0.15, 0.15]}, "order": "RO", "group_by": "user", "mode": "full"},
        "topk": [5],
        "metrics": ["Recall", "NDCG"],
        "valid_metric": "Recall@5",
        "show_progress": False,
        "learning_rate": 0.01,
        "metric_decimal_place": 8,
        "state": "ERROR",
        "use_gpu": False,
    }
