"""Calibrations that are load_or_compute: never another one than would be computed, and never computed twice."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from multiprocessing import Queue, get_context
from multiprocessing.synchronize import Barrier
from pathlib import Path
from time import sleep
from typing import Any

import numpy as np
import pytest

from recbole_guider import run_recbole_guider
from recbole_guider.amsc import Calibration
from recbole_guider.guider import calibration as calibrations
from recbole_guider.guider.calibration_cache import calibration_key, load_or_compute
from recbole_guider.utils.errors import GuiderError

pytestmark = [pytest.mark.own_calibration, pytest.mark.slow]


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one with every calibration that is computed."""
    calls: list[int] = []
    compute = calibrations.calibrate

    def counting(*arguments: Any, **more: Any) -> Calibration:
        calls.append(1)
        return compute(*arguments, **more)

    monkeypatch.setattr(calibrations, "calibrate", counting)
    return calls


def run(toy: dict[str, Any], cache: Path | None, seed: int = 1, **block: Any) -> dict[str, Any]:
    chosen = {"calibration": {"cache": None if cache is None else str(cache)}, **block}
    return run_recbole_guider(
        "GUIDER_LightGCN", "toy", config_dict={**toy, "epochs": 1, "seed": seed, "guider": chosen}, saved=False
    )


def test_runs_that_differ_elsewhere_share_one(toy: dict[str, Any], tmp_path: Path, counted: list[int]) -> None:
    plain = run(toy, None)
    first = run(toy, tmp_path / "load_or_compute")
    again = run(toy, tmp_path / "load_or_compute")
    other = run(toy, tmp_path / "load_or_compute", student_loss="own")
    assert len(counted) == 2
    assert plain == first == again
    assert other["calibration"] == first["calibration"] and other["test_result"] != first["test_result"]
    run(toy, tmp_path / "load_or_compute", seed=2)
    assert len(counted) == 3 and len(list((tmp_path / "load_or_compute").glob("*.npz"))) == 2
    run_recbole_guider(
        "GUIDER_LightGCN", "toy", saved=False,
        config_dict={**toy, "epochs": 1, "seed": 1, "noise": {"interactions": 0.2},
                     "guider": {"calibration": {"cache": str(tmp_path / "load_or_compute")}}},
    )
    assert len(counted) == 4


def test_the_key_depends_on_every_number_and_setting() -> None:
    users, rows = np.arange(3), np.eye(3, dtype=np.float32)
    other = rows.copy()
    other[2, 0] = 1e-7
    keys = {
        calibration_key(arrays, settings)
        for arrays, settings in [
            ([users, rows], "a"), ([users, rows], "b"), ([users, other], "a"), ([rows, users], "a"),
            ([users, rows.astype(np.float64)], "a"), ([users, rows.reshape(1, 9)], "a"),
        ]
    }
    assert len(keys) == 6
    assert calibration_key([users[::1], np.asfortranarray(rows)], "a") == calibration_key([users, rows], "a")


def calibration(value: float) -> Calibration:
    one = np.array([value], dtype=np.float32)
    return Calibration(one, one, np.array([True]), one, {"text": 0.25, "bild": 0.75}, value)


def test_what_is_kept_comes_back_and_a_broken_file_is_made_anew(tmp_path: Path) -> None:
    first = load_or_compute(tmp_path / "new" / "folder", "key", lambda: calibration(0.5))
    again = load_or_compute(tmp_path / "new" / "folder", "key", lambda: calibration(0.7))
    for name in ("score", "clean_probability", "is_clean", "confidence"):
        np.testing.assert_array_equal(getattr(first, name), getattr(again, name))
        assert getattr(first, name).dtype == getattr(again, name).dtype
    assert again.modality_weights == {"text": 0.25, "bild": 0.75} and again.noise_rate == 0.5
    file = tmp_path / "new" / "folder" / "key.npz"
    file.write_bytes(file.read_bytes()[:100])
    assert load_or_compute(tmp_path / "new" / "folder", "key", lambda: calibration(0.7)).noise_rate == 0.7
    assert load_or_compute(tmp_path / "new" / "folder", "key", lambda: calibration(0.9)).noise_rate == 0.7
    assert sorted(each.name for each in file.parent.iterdir()) == ["key.lock", "key.npz"]


def judge_slowly(folder: Path, start: Barrier, rates: Queue) -> None:
    start.wait()

    def compute() -> Calibration:
        sleep(1)
        (folder / f"computed by {os.getpid()}").touch()
        return calibration(os.getpid() / 2**40)

    rates.put(load_or_compute(folder, "key", compute).noise_rate)


def test_processes_that_need_one_at_once_compute_it_once(tmp_path: Path) -> None:
    spawn = get_context("spawn")
    start, rates = spawn.Barrier(3), spawn.Queue()
    workers = [spawn.Process(target=judge_slowly, args=(tmp_path, start, rates)) for _ in range(3)]
    for worker in workers:
        worker.start()
    assert len({rates.get(timeout=300) for _ in workers}) == 1
    for worker in workers:
        worker.join()
    assert len(list(tmp_path.glob("computed by *"))) == 1


def test_without_locks_nobody_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system may have none; a lock file that a killed process left behind must not stop anybody there."""

    def no_locks(*arguments: Any) -> None:
        raise OSError(errno.ENOSYS, "no locks")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    (tmp_path / "key.lock").write_text(f"{os.getpid()}\n{socket.gethostname()}\n")
    assert load_or_compute(tmp_path, "key", lambda: calibration(0.5)).noise_rate == 0.5
    assert load_or_compute(tmp_path, "key", lambda: calibration(0.7)).noise_rate == 0.5


def test_a_folder_that_cannot_be_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(GuiderError, match="guider.calibration.cache.*file.*cannot be written to"):
        load_or_compute(tmp_path / "file" / "below", "key", lambda: calibration(0.5))
