"""The figures of noise detection against counting pairs, and their way into a run's result."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from recbole_guider import run_recbole_guider
from recbole_guider.evaluation import detection_figures, detection_report, worst_group


@pytest.fixture
def ranked() -> tuple[np.ndarray, np.ndarray]:
    """Suspicion with many ties, and what is noise."""
    rng = np.random.default_rng(0)
    noise = rng.random(60) < 0.3
    return np.round(rng.normal(size=60) + noise, 1), noise


def test_figures_count_pairs(ranked: tuple[np.ndarray, np.ndarray]) -> None:
    suspicion, noise = ranked
    found = detection_figures(suspicion, noise)
    wins = [float(a > b) + 0.5 * float(a == b) for a in suspicion[noise] for b in suspicion[~noise]]
    assert found["auroc"] == pytest.approx(np.mean(wins))
    # precision at the injected count, over every order of the ties alike
    count, rng, hits = int(noise.sum()), np.random.default_rng(1), []
    for _ in range(4000):
        order = rng.permutation(len(noise))
        top = order[np.argsort(-suspicion[order], kind="stable")[:count]]
        hits.append(noise[top].mean())
    assert found["precision"] == pytest.approx(np.mean(hits), abs=0.01)
    steps, last, area = sorted(set(suspicion), reverse=True), 0.0, 0.0
    for threshold in steps:
        called = suspicion >= threshold
        recall, precision = noise[called].sum() / count, noise[called].mean()
        area += (recall - last) * precision
        last = recall
    assert found["average_precision"] == pytest.approx(area)
    assert np.isnan(list(detection_figures(suspicion, np.zeros(60, dtype=bool)).values())).all()


def test_the_worst_group_is_the_one_flagged_beyond_its_noise() -> None:
    degree = np.repeat([1, 2, 3, 4, 5], 10)
    noise = np.tile([True] + [False] * 9, 5)
    flagged = noise.copy()
    assert worst_group(degree, flagged, noise) == pytest.approx(1.0)
    flagged[20:23] = True  # three of the ten of degree 3, where one is noise
    assert worst_group(degree, flagged, noise) == pytest.approx(3.0)


def test_the_report_flags_as_many_as_there_are() -> None:
    users, items = np.repeat(np.arange(10), 5), np.tile(np.arange(5), 10)
    noise = np.zeros(50, dtype=bool)
    noise[::10] = True
    found = detection_report(noise.astype(float), noise, users, items)
    assert found["auroc"] == found["average_precision"] == found["precision"] == 1.0
    assert found["injected"] == pytest.approx(0.1)
    assert found["popularity_flags"] == found["activity_flags"] == 1.0


def test_a_run_on_noisy_data_reports_its_detection(toy: dict[str, Any]) -> None:
    noisy = {**toy, "epochs": 1, "noise": {"interactions": 0.3}}
    found = run_recbole_guider("GUIDER_BPR", "toy", config_dict=noisy)["calibration"]["detection"]
    assert set(found) == {
        "auroc", "average_precision", "precision", "injected", "popularity_flags", "activity_flags",
    }
    assert found["injected"] == pytest.approx(0.3 / 1.3, abs=0.01)
    assert 0.5 < found["auroc"] <= 1  # tastes are planted
    assert run_recbole_guider("GUIDER_BPR", "toy", config_dict={**toy, "epochs": 1})["calibration"]["detection"] is None
