"""From names to classes: this package's models, RecBole's, GUIDER_<Backbone>, and what is said of a wrong name."""

from __future__ import annotations

import importlib.util
import json

import pytest
from recbole.model.general_recommender import BPR, LightGCN
from recbole.utils import ModelType, get_model

from recbole_guider.cli.main import main
from recbole_guider.config.guider_config import GuiderConfig
from recbole_guider.config.registry import ModelInfo, get_model_class, list_models
from recbole_guider.data.dataset import build_dataset, prepare_data
from recbole_guider.guider.model import Guider
from recbole_guider.models.freedom import FREEDOM
from recbole_guider.models.scoring import Scoring
from recbole_guider.utils.errors import GuiderError


def test_names_give_the_classes():
    assert get_model_class("FREEDOM") is FREEDOM
    assert get_model_class("LightGCN") is LightGCN
    assert get_model_class("SASRec") is get_model("SASRec")


def test_a_guider_name_gives_the_one_class_around_every_backbone():
    for backbone in (FREEDOM, BPR):
        assert get_model_class(f"GUIDER_{backbone.__name__}") is Guider


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("LigthGCN", r"there is no model 'LigthGCN'; did you mean LightGCN"),
        ("lightgcn", r"there is no model 'lightgcn'; did you mean LightGCN"),
        ("GUIDER_FREDOM", r"there is no model 'GUIDER_FREDOM'; did you mean GUIDER_FREEDOM"),
        ("guider_freedom", r"there is no model 'guider_freedom'; did you mean GUIDER_FREEDOM"),
        ("GUIDER_Randm", r"there is no model 'GUIDER_Randm'; (?!.*GUIDER_Random)"),
        ("zzzzzz", r"there is no model 'zzzzzz'; recbole_guider\.list_models\(\) has the names"),
        ("GUIDER_GUIDER_FREEDOM", r"there is no model 'GUIDER_GUIDER_FREEDOM'"),
        ("GUIDER_SASRec", r"model SASRec is of type sequential: GUIDER denoises general recommenders"),
        ("GUIDER_ItemKNN", r"model ItemKNN is of type traditional"),
        ("GUIDER_NCEPLRec", r"model NCEPLRec is of type general, but solved when it is made: GUIDER denoises"),
        # what models are made of is no model
        ("base", r"there is no model 'base'"),
        ("Guider", r"there is no model 'Guider'"),
    ],
)
def test_a_wrong_name_gets_the_nearest_ones(name, message):
    with pytest.raises(GuiderError, match=message) as caught:
        get_model_class(name)
    assert "lightgbm" not in str(caught.value)


@pytest.mark.parametrize(("name", "package"), [("LightGBM", "lightgbm"), ("XGBoost", "lightgbm")])
def test_a_missing_package_is_named_for_its_models_only(name, package):
    # RecBole imports both packages for either of the two models
    if importlib.util.find_spec(package) is None:
        with pytest.raises(GuiderError, match=f"model {name} needs the package '{package}'"):
            get_model_class(name)
    else:
        assert get_model_class(name).__name__ == name


def test_the_list_agrees_with_the_classes():
    models = {info.name: info for info in list_models()}
    assert models["FREEDOM"].kind == "multimodal" and models["FREEDOM"].modalities == "any"
    assert "SASRec" not in models and "FastLightGCN" not in models and "Guider" not in models
    recbole_models = 0
    for info in models.values():
        model_class = get_model_class(info.name)
        # RecBole counts NCEPLRec among the models that train, and solves it when it is made
        traditional = model_class.type == ModelType.TRADITIONAL or info.name == "NCEPLRec"
        assert (info.kind == "traditional") == traditional, info
        assert (info.distillation == "none") == traditional, info
        recbole_models += model_class.__module__.startswith("recbole.")
    assert recbole_models >= 30
    assert {name for name, info in models.items() if info.distillation == "factorised"} >= {
        "FREEDOM",
        "BPR",
        "LightGCN",
        "NGCF",
    }


def test_kinds_and_content_of_this_packages_models():
    models = {info.name: info for info in list_models()}
    # DGCN says what it is through LayerGCN, from which it derives
    assert models["DGCN"][1:] == models["LayerGCN"][1:] == ("id-based", "none", "factorised")
    assert models["MMGCF"][1:] == models["FREEDOM"][1:] == ("multimodal", "any", "factorised")
    assert models["ItemKNNCBF"][1:] == ("traditional", "any", "none")


OURS = [info for info in list_models() if get_model_class(info.name).__module__.startswith("recbole_guider.")]


@pytest.mark.parametrize("info", OURS, ids=lambda info: info.name)
def test_the_list_is_true_of_this_packages_models(info, toy):
    def built(**changes):
        config = GuiderConfig(info.name, "toy", config_dict={**toy, **changes}, command_line=[])
        train, _, _ = prepare_data(config, build_dataset(config))
        return config.model_class(config, train.dataset)

    model = built()
    if info.distillation != "none":
        assert Scoring(model.eval()).kind == info.distillation
    assert (info.kind == "traditional") == (info.distillation == "none") == (type(model).type != ModelType.GENERAL)
    if info.kind != "traditional":
        assert (info.kind == "multimodal") == (info.modalities == "any")
    # one that needs content says that there is none, any other one is made without
    if info.modalities == "any":
        with pytest.raises(GuiderError, match="no content"):
            built(modalities=None)
    else:
        built(modalities=None)


def test_the_command_prints_the_list(capsys):
    assert main(["models"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == list(ModelInfo._fields) and [tuple(line) for line in lines[2:]] == list_models()
    assert main(["models", "--json"]) == 0
    assert [ModelInfo(**each) for each in json.loads(capsys.readouterr().out)] == list_models()
