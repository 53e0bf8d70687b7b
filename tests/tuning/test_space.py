"""Search spaces: what the files mean, and that the samplers' values become valid settings."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recbole_guider.tuning.space import read_space
from recbole_guider.utils.errors import GuiderError


def test_a_yaml_file_with_dotted_and_nested_keys(tmp_path: Path) -> None:
    file = tmp_path / "space.yaml"
    file.write_text(
        "learning_rate: {loguniform: [1e-4, 1e-2]}\n"
        "guider.dbpr.eta: {choice: [0.0, 0.1]}\n"
        "guider:\n  distillation:\n    weight: {uniform: [0, 2]}\n"
        "dropout: {quniform: [0.0, 0.5, 0.1]}\n"
        "n_layers: {int: [1, 3]}\n"
    )
    space = read_space(file)
    assert [(each.key, each.kind, each.values) for each in space] == [
        ("learning_rate", "loguniform", (1e-4, 1e-2)),
        ("guider.dbpr.eta", "choice", (0.0, 0.1)),
        ("guider.distillation.weight", "uniform", (0, 2)),
        ("dropout", "quniform", (0.0, 0.5, 0.1)),
        ("n_layers", "int", (1, 3)),
    ]
    assert read_space(space.to_plain()) == space


def test_recboles_hyper_test_means_what_hyperopt_makes_of_it(tmp_path: Path) -> None:
    file = tmp_path / "hyper.test"
    file.write_text(
        "# a comment of three words\n"
        "learning_rate loguniform -8, 0\n"
        "embedding_size choice [64, 96 , 128]\n"
        "mlp_hidden_size choice ['[64,64]','[128]']\n"
        "dropout_prob uniform 0.0,0.5\n"
        "train_batch_size quniform 512,2048,512\n\n"
    )
    space = {each.key: each for each in read_space(file)}
    assert space["learning_rate"].values == (math.exp(-8), 1.0)  # hyperopt's bounds are logarithms
    assert space["embedding_size"].values == (64, 96, 128)
    assert space["mlp_hidden_size"].values == ("[64,64]", "[128]")
    assert space["dropout_prob"].values == (0.0, 0.5)
    assert space["train_batch_size"].encoded_grid() == [512, 1024, 1536, 2048]
    assert all(isinstance(value, int) for value in space["train_batch_size"].encoded_grid())


def test_samples_lie_in_the_range_and_spread_as_the_kind_says() -> None:
    space = read_space({
        "a": {"uniform": [2, 4]}, "b": {"loguniform": [1e-4, 1]}, "c": {"quniform": [0.1, 0.5, 0.1]},
        "d": {"int": [1, 3]}, "e": {"choice": [None, [64, 32], "x", {"k": 1}]},
    })
    domains = space.domains()
    drawn = [space.decode({key: domain.sample(None) for key, domain in domains.items()}) for _ in range(3000)]
    a, b = (np.array([each[key] for each in drawn]) for key in "ab")
    assert a.min() >= 2 and a.max() <= 4 and abs(a.mean() - 3) < 0.05
    assert b.min() >= 1e-4 and b.max() <= 1 and abs(np.log10(b).mean() + 2) < 0.1
    assert {each["c"] for each in drawn} == {0.1, 0.2, 0.3, 0.4, 0.5}  # not 0.30000000000000004
    assert {each["d"] for each in drawn} == {1, 2, 3}
    seen: list[Any] = []
    for each in drawn:
        if each["e"] not in seen:
            seen.append(each["e"])
    assert sorted(map(str, seen)) == sorted(map(str, [None, [64, 32], "x", {"k": 1}]))


def test_the_grid_has_every_combination_once() -> None:
    space = read_space({"a": {"choice": [1, [2]]}, "b": {"int": [1, 3]}, "c": {"quniform": [0, 1, 0.5]}})
    grid = space.grid()
    assert space.grid_size() == 2 * 3 * 3
    assert [space.decode({"a": a, "b": 1, "c": 0})["a"] for a in grid["a"]["grid_search"]] == [1, [2]]
    assert grid["b"]["grid_search"] == [1, 2, 3] and grid["c"]["grid_search"] == [0, 0.5, 1.0]
    with pytest.raises(GuiderError, match="lr is uniform, which has no finite grid"):
        read_space({"lr": {"uniform": [0, 1]}}).grid()


def test_what_population_based_training_makes_comes_back_into_the_range() -> None:
    space = read_space({
        "a": {"uniform": [0.5, 1]}, "n": {"int": [1, 4]}, "q": {"quniform": [0, 1, 0.25]}, "c": {"choice": [[1], [2]]},
    })
    assert space.bring_into_range({"a": 1.2, "n": 0, "q": 0.8 * 0.25, "c": "[2]"}) == {
        "a": 1.0, "n": 1, "q": 0.25, "c": "[2]",
    }
    assert space.mutations()["c"] == ["[1]", "[2]"]


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({}, "names no setting"),
        ({"a": 3}, "gives a as 3: it must be one of choice, uniform"),
        ({"a": {"normal": [0, 1]}}, "gives a as"),
        ({"a": {"choice": []}}, "no value to choose from"),
        ({"a": {"choice": [1, 1]}}, "names a value twice"),
        ({"a": {"choice": 1}}, "must be a list"),
        ({"a": {"uniform": [1]}}, r"must be \[low, high\]"),
        ({"a": {"uniform": [0, "x"]}}, r"must be \[low, high\]"),
        ({"a": {"uniform": [1, 0]}}, "low below high"),
        ({"a": {"loguniform": [0, 1]}}, "low above 0"),
        ({"a": {"int": [0.5, 2]}}, "whole numbers"),
        ({"a": {"quniform": [0, 1, 0]}}, "a step above 0"),
        ({"a": {"quniform": [0, 1]}}, r"must be \[low, high, step\]"),
        ({"guider.dbpr": {"choice": [{}]}, "guider.dbpr.eta": {"choice": [0.1]}}, "which is part of it"),
    ],
)
def test_a_wrong_space_is_one_clear_sentence(space: dict[str, Any], message: str) -> None:
    with pytest.raises(GuiderError, match=message):
        read_space(space)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("learning_rate", "line 1"),
        ("learning_rate normal 0,1", "one of choice"),
        ("learning_rate choice [__import__('os')]", "is not a list of values"),
        ("learning_rate uniform 0,one", "is not a list of values"),
    ],
)
def test_a_wrong_hyper_test_names_file_and_line(line: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "hyper.test").write_text(line + "\n")
    with pytest.raises(GuiderError, match=message) as caught:
        read_space(tmp_path / "hyper.test")
    assert "hyper.test" in str(caught.value)
    with pytest.raises(GuiderError, match=r"absent\.test does not exist"):
        read_space(tmp_path / "absent.test")
