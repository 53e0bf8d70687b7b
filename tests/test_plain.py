"""Plain data: what has such a form, and what is refused."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from recbole_guider.utils.plain import to_plain
from recbole_guider.utils.yaml_files import read_yaml, write_yaml


class Colour(StrEnum):
    RED = "red"


@pytest.mark.parametrize("tensors", [False, True])
@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.float64(0.5), 0.5),
        (np.str_("a"), "a"),
        (np.bool_(True), True),
        (Path("a") / "b", str(Path("a", "b"))),
        ({"b", "a"}, ["a", "b"]),
        ({np.int64(1): (None, [np.float32(2.0)])}, {1: (None, [2.0])}),
    ],
)
def test_what_has_a_plain_form(value: Any, expected: Any, tensors: bool, tmp_path: Path) -> None:
    found = to_plain({"value": value}, tensors=tensors)
    assert found == {"value": expected}
    assert type(found["value"]) is type(expected)
    torch.save(found, tmp_path / "value.pth")
    assert torch.load(tmp_path / "value.pth", weights_only=True) == found


@pytest.mark.parametrize("tensors", [False, True])
@pytest.mark.parametrize("value", [object(), len, Colour.RED, 1j, b"bytes", np.datetime64("2020-01-01")])
def test_what_has_none_is_refused_at_any_depth(value: object, tensors: bool) -> None:
    for holding in (value, [value], {"key": (value,)}):
        with pytest.raises(TypeError, match="is not plain data"):
            to_plain(holding, tensors=tensors)


def test_arrays_are_lists_and_tensors_refused_unless_they_are_plain() -> None:
    array, tensor = np.arange(6.0).reshape(2, 3), torch.arange(3)
    assert to_plain({"x": array}) == {"x": array.tolist()}
    with pytest.raises(TypeError, match="a Tensor is not plain data"):
        to_plain([tensor])
    kept = to_plain({"x": array, "y": [tensor]}, tensors=True)
    assert kept["y"][0] is tensor and torch.equal(kept["x"], torch.from_numpy(array))
    array[:] = 0  # a copy
    assert kept["x"].sum() == 15


def test_property_files_hold_plain_data(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    write_yaml({"a": (1, (np.float64(1e-3), "1e-3")), "b": {"c": {3, 2}}}, file)
    assert read_yaml(file) == {"a": [1, [0.001, "1e-3"]], "b": {"c": [2, 3]}}
    with pytest.raises(TypeError):
        write_yaml({"a": torch.ones(1)}, file)
