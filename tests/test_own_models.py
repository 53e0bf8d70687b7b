"""A model that this package does not know: the code block of docs/own_models.md, and how the class is found again."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from recbole.data.interaction import Interaction
from recbole.model.abstract_recommender import GeneralRecommender
from recbole.quick_start import run_recbole
from recbole.utils import InputType

from recbole_guider import list_models, load_data_and_model, register_model, run_recbole_guider
from recbole_guider.config import registry
from recbole_guider.guider.model import Guider
from recbole_guider.models.base import Encoding, FactorisedRecommender
from recbole_guider.utils.errors import GuiderError

pytestmark = pytest.mark.slow

PAGE = Path(__file__).resolve().parent.parent / "docs" / "own_models.md"
QUICK = {"calibration": {"learned": False, "anchors": 8}}


class Own(FactorisedRecommender):
    """With item content in it."""

    reads_content = True

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        self.register_buffer("content", torch.from_numpy(dataset.item_features["image"].values))
        self.user_embedding = torch.nn.Embedding(self.n_users, 8)
        self.projection = torch.nn.Linear(self.content.shape[1], 8)

    def encode(self) -> Encoding:
        return Encoding(self.user_embedding.weight, self.projection(self.content))


class OwnPairs(GeneralRecommender):
    """Of RecBole's kind, scoring pairs only."""

    input_type = InputType.POINTWISE

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        self.table = torch.nn.Embedding(self.n_users + self.n_items, 4)
        self.top = torch.nn.Linear(8, 1)

    def forward(self, user: torch.Tensor, item: torch.Tensor) -> torch.Tensor:
        return self.top(torch.cat([self.table(user), self.table(self.n_users + item)], dim=1).tanh()).squeeze(1)

    def predict(self, interaction: Interaction) -> torch.Tensor:
        return self.forward(interaction[self.USER_ID], interaction[self.ITEM_ID])

    def calculate_loss(self, interaction: Interaction) -> torch.Tensor:
        return torch.nn.functional.binary_cross_entropy_with_logits(self.predict(interaction), interaction["label"])


def test_the_page_runs() -> None:
    block, driven = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    names: dict[str, Any] = {"__name__": "page"}
    # a calibration of ml-100k as it comes takes a minute and a half, and is tested elsewhere
    quick = '"teacher": "LightGCN", "calibration": {"learned": False, "nearest": False}'
    assert '"teacher": "LightGCN"' in block
    block = block.replace('"teacher": "LightGCN"', quick)
    exec(compile(block, str(PAGE), "exec"), names)  # the page's own code, from this repository
    assert names["result"]["model_file"] and isinstance(names["model"], Guider)
    assert names["model"].backbone is names["MyModel"]
    assert len(re.search(r"class MyModel.*?weight\)\n", block, re.DOTALL)[0].splitlines()) <= 10
    quick = '"epochs": 2, "guider": {"calibration": {"learned": False, "nearest": False}}'
    assert '"epochs": 2' in driven
    exec(compile(driven.replace('"epochs": 2', quick), str(PAGE), "exec"), names)  # as above
    assert names["evaluation"].is_last


@pytest.mark.parametrize("model", [Own, OwnPairs])
@pytest.mark.parametrize("guided", [True, False])
def test_it_runs_and_reloads(model: type, guided: bool, toy: dict[str, Any]) -> None:
    result = run_recbole_guider(model=model, dataset="toy", config_dict={**toy, "guider": QUICK if guided else False})
    for arguments in ({}, {"model": model}):
        config, loaded, *_ = load_data_and_model(result["model_file"], **arguments)
        assert isinstance(loaded, Guider) is guided and config["backbone"] == model.__name__
        if not arguments:
            registry._registered.clear()  # as in another process


def test_an_unknown_class_is_said_to_be_unknown(toy: dict[str, Any]) -> None:
    result = run_recbole_guider(model=Own, dataset="toy", config_dict={**toy, "guider": False})
    registry._registered.clear()
    with pytest.raises(GuiderError, match=r"there is no model 'Own'.*register_model\(YourModel\)"):
        load_data_and_model(result["model_file"])


def test_another_process_finds_it_after_registering_it(toy: dict[str, Any]) -> None:
    result = run_recbole_guider(model=OwnPairs, dataset="toy", config_dict={**toy, "guider": QUICK})
    program = f"""
import sys
sys.path[:0] = [{str(Path(__file__).parent)!r}]
from recbole_guider import load_data_and_model, register_model
from test_own_models import OwnPairs
register_model(OwnPairs)
model = load_data_and_model({result["model_file"]!r})[1]
print(type(model).__name__, model.backbone.__name__)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split()[-2:] == ["Guider", "OwnPairs"]


def test_a_registered_name_works_everywhere(toy: dict[str, Any]) -> None:
    assert register_model(Own) is Own and register_model(OwnPairs) is OwnPairs
    named = {info.name: info for info in list_models()}
    assert named["Own"] == ("Own", "multimodal", "any", "factorised")
    assert named["OwnPairs"] == ("OwnPairs", "id-based", "none", "candidates")
    block = {**QUICK, "teacher": "Own"}
    by_name = run_recbole_guider("GUIDER_OwnPairs", "toy", config_dict={**toy, "guider": block})
    theirs = run_recbole("GUIDER_OwnPairs", "toy", config_dict={**toy, "guider": block})
    assert by_name["test_result"] == theirs["test_result"]
    plain = run_recbole("Own", "toy", config_dict=toy)
    assert plain["test_result"] == run_recbole_guider(Own, "toy", config_dict=toy)["test_result"]


def test_names_that_are_taken_and_things_that_are_no_models_are_refused() -> None:
    for wrong, message in [
        (type("BPR", (OwnPairs,), {}), "cannot be called BPR"),
        (type("GUIDER_Mine", (OwnPairs,), {}), "cannot be called GUIDER_Mine"),
        (torch.nn.Linear, "Linear is no recommender"),
        ("Own", "'Own' is no recommender"),
    ]:
        with pytest.raises(GuiderError, match=message):
            register_model(wrong)
    with pytest.raises(GuiderError, match="cannot be called BPR"):
        run_recbole_guider(type("BPR", (OwnPairs,), {}), "ml-100k")
