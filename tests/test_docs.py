"""The pages of docs/ against what they describe."""

from __future__ import annotations

import re
from pathlib import Path

from recbole_guider import list_models
from recbole_guider.config.registry import get_model_class
from recbole_guider.denoising.methods import METHODS
from recbole_guider.utils.resources import properties_dir
from recbole_guider.utils.yaml_files import read_yaml

PAGE = Path(__file__).parent.parent / "docs" / "models.md"


def rows() -> dict[str, list[str]]:
    """Model -> the cells of its row after the name."""
    lines = [line.strip("| ").split("|") for line in PAGE.read_text("utf-8").splitlines() if line.startswith("|")]
    table = {cells[0].strip(): [cell.strip() for cell in cells[1:]] for cells in lines}
    return {name: cells for name, cells in table.items() if re.fullmatch(r"[A-Z]\w+", name)}


def test_every_model_of_this_package_has_a_row_and_settings() -> None:
    table = rows()
    for info in list_models():
        if not get_model_class(info.name).__module__.startswith("recbole_guider."):
            continue
        assert info.name in table, f"{info.name} has no row in docs/models.md"
        paper, what, modalities = table[info.name]
        assert paper and what
        assert modalities == ("1 or more" if info.modalities == "any" else "none"), info.name
        assert f"\n### {info.name}\n" in (PAGE.parent / "settings.md").read_text("utf-8")


def test_what_the_page_says_of_distillation_is_what_is_there() -> None:
    text = PAGE.read_text("utf-8")
    assert all(f"`{info.distillation}`" in text for info in list_models())


def test_the_methods_that_mirror_gradient_is_refused_beside_are_named() -> None:
    names = ", ".join(f"`{name}`" for name, method in METHODS.items() if method.keeps_count)
    names = " and ".join(names.rsplit(", ", 1))
    assert names in " ".join((PAGE.parent / "denoising.md").read_text("utf-8").split())


def test_the_models_that_no_denoising_method_takes_are_named() -> None:
    text = " ".join((PAGE.parent / "denoising.md").read_text("utf-8").split())
    refused = re.search(r"Refused with one sentence are (.*?), a backbone whose", text)
    assert refused is not None
    ours = [info for info in list_models() if get_model_class(info.name).__module__.startswith("recbole_guider.")]
    without = {
        info.name for info in ours
        if info.distillation == "none"
        or read_yaml(properties_dir() / "model" / f"{info.name}.yaml").get("train_neg_sample_args", {}) is None
    }
    assert set(re.findall(r"[A-Z]\w+", refused[1])) == without
