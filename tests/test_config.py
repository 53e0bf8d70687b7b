"""GuiderConfig beside RecBole's own Config: merging, dotted keys, names, devices, copies."""

from __future__ import annotations

import copy
import os
import pickle
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
import recbole
import torch
from recbole.config import Config
from recbole.model.general_recommender import BPR, LightGCN

from recbole_guider.cli.main import main
from recbole_guider.config import device
from recbole_guider.config.guider_config import GuiderConfig
from recbole_guider.config.merging import merge, merge_all, parse_value
from recbole_guider.config.registry import list_models, register_model
from recbole_guider.config.validation import check_values, model_defaults
from recbole_guider.data.settings import NoiseSettings
from recbole_guider.guider.model import Guider
from recbole_guider.guider.settings import GuiderSettings
from recbole_guider.integration.ours import is_our_run
from recbole_guider.models.freedom import FREEDOM
from recbole_guider.utils import distributed
from recbole_guider.utils.arguments import run_command, split_files
from recbole_guider.utils.errors import GuiderError
from recbole_guider.utils.paths import user_path
from recbole_guider.utils.recbole_errors import warn_once
from recbole_guider.utils.resources import properties_dir
from recbole_guider.utils.settings import Settings
from recbole_guider.utils.yaml_files import read_yaml

#: What this package adds to RecBole's entries.
OURS = {"guider", "denoising", "backbone", "modalities", "backend", "eval_memory_mb", "eval_mask", "noise", "import"}
OURS |= {"mirror_gradient"}
#: What a guider block shows of settings that are not its own, by default.
NO_EXPERIMENT = {"noise": NoiseSettings().model_dump(), "eval_mask": "recbole"}


def make(*command_line: str, model="FREEDOM", dataset="toy", files=None, **config_dict) -> GuiderConfig:
    return GuiderConfig(model, dataset, files, config_dict, list(command_line))


def write(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


class MyModel(LightGCN):
    """A user's own model, unknown to the registry."""


class OwnFreedom(FREEDOM):
    """A user's own model that inherits declared parameters."""


class OwnKeys(BPR):
    """A user's own model with settings of its own."""

    class settings_class(Settings):
        knob: int = 0
        nois: int = 0

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.knob, self.nois = config["knob"], config["nois"]


# -- RecBole's meaning ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "dataset"), [("LightGCN", "ml-100k"), ("BPR", "toy"), ("SASRec", "ml-100k"), ("FM", "ml-100k")]
)
def test_a_plain_model_has_recboles_configuration(model, dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["run", "--topk=[5,10]", "--epochs=7", "--learning_rate=1e-2"])
    file = write(tmp_path / "mine.yaml", "train_batch_size: 99\nreg_weight: 1e-4\n")
    settings = {"eval_args": {"mode": "uni50"}, "seed": "7"}
    if model == "SASRec":
        settings["train_neg_sample_args"] = None
    before = copy.deepcopy(settings)
    theirs = Config(model, dataset, [file], copy.deepcopy(settings)).final_config_dict
    ours = GuiderConfig(model, dataset, [file], settings).final_config_dict
    assert {key: value for key, value in ours.items() if key not in OURS} == theirs
    assert ours["guider"] is False and ours["model"] == ours["backbone"] == model
    assert settings == before, "the caller's dict is not changed"


@pytest.mark.parametrize(
    "text",
    ["[64,32]", "True", "true", "FALSE", "1e-3", "{'RS':[0.8,0.1,0.1]}", "None", "full", "uni100", "0,1", "-3", "0.5"]
    + ["'quoted'", "", "[0,inf)", "[0,inf]", "ml-100k", "null", "MRR@10", "inf", "all", "x.npy", "a b", "08", "1_0"],
)
def test_values_are_read_as_recbole_reads_them(text, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["run"])
    theirs = Config("BPR", "ml-100k")._convert_config_dict({"key": text})["key"]
    ours = parse_value("key", text)
    assert ours == theirs and type(ours) is type(theirs)


def test_nothing_that_is_typed_is_executed(tmp_path):
    marker = tmp_path / "executed"
    text = f"open({str(marker)!r}, 'w')"
    assert parse_value("key", text) == text and parse_value("guider.teacher", text) == text
    with pytest.raises(GuiderError, match=r"bad\.yaml, line 1 is not valid YAML"):
        read_yaml(write(tmp_path / "bad.yaml", f"key: !!python/object/apply:builtins.open ['{marker}', 'w']\n"))
    assert not marker.exists()


def test_yaml_blocks_can_be_typed():
    assert parse_value("modalities.image", "{file: x.npy}") == {"file": "x.npy"}
    assert parse_value("guider.calibration.noise_rate", "null") is None
    assert parse_value("guider.dbpr.eta", "1e-3") == 0.001
    assert parse_value("eval_args", "{split: {RS: [8, 1, 1]}}") == {"split": {"RS": [8, 1, 1]}}
    with pytest.raises(GuiderError, match=r"guider\.dbpr is '\{eta: \['"):
        parse_value("guider.dbpr", "{eta: [")


@pytest.mark.parametrize(
    ("key", "text", "message"),
    [
        ("noise.features", "{image:0.1}", r"a space after a colon, as in '\{image: 0\.1\}'"),
        ("modalities", "{image: {file:x.npy}}", r"a space after a colon, as in '\{image: \{file: x\.npy\}\}'"),
        ("load_col", "{inter:null}", "a space after a colon"),
    ],
)
def test_a_missing_space_after_a_colon_is_named(key, text, message):
    with pytest.raises(GuiderError, match=message):
        parse_value(key, text)


def test_lists_of_names_need_no_quotes_where_recbole_wants_a_list():
    assert parse_value("benchmark_filename", "[train, valid,test]") == ["train", "valid", "test"]
    assert parse_value("metrics", "[Recall]") == ["Recall"] and parse_value("metrics", "Recall") == "Recall"
    assert parse_value("user_inter_num_interval", "[0,inf]") == "[0,inf]", "an interval"


def test_recbole_lists_of_parameters_stay_as_they_are():
    from recbole.utils import dataset_arguments

    before = list(dataset_arguments)
    make(dataset="ml-100k", model="BPR")
    assert dataset_arguments == before


# -- merging --------------------------------------------------------------------------------------------------------


def test_the_block_merges_over_all_sources(tmp_path):
    first = write(tmp_path / "a.yaml", "guider:\n  dbpr: {eta: 0.3, gamma: 0.2}\n  schedule: pretrained\n")
    second = write(tmp_path / "b.yaml", "guider:\n  dbpr: {gamma: 0.4}\nguider.dbpr.negatives: 8\n")
    config = make("--guider.dbpr.temperature=0.5", files=[first, second], guider={"dbpr": {"negatives": 9}})
    expected = GuiderSettings().to_dict()
    expected["schedule"] = "pretrained"
    expected["dbpr"].update(eta=0.3, gamma=0.4, negatives=9, temperature=0.5)
    assert config["guider"] == {**expected, **NO_EXPERIMENT}
    assert config.guider_settings == GuiderSettings.from_block(expected)


def test_precedence_is_files_dict_command_line(tmp_path):
    file = write(tmp_path / "a.yaml", "guider.dbpr.eta: 0.1\nepochs: 1\nguider.dbpr.gamma: 0.1\nknn_k: 3\n")
    settings = {"guider.dbpr.eta": 0.2, "epochs": 2, "guider.dbpr.gamma": "0.2"}
    config = make("--guider.dbpr.eta=0.3", "--epochs=3", files=[file], **settings)
    assert (config["guider"]["dbpr"]["eta"], config["epochs"]) == (0.3, 3)
    assert (config["guider"]["dbpr"]["gamma"], config["knn_k"]) == (0.2, 3)
    assert config["n_ui_layers"] == 2, "properties/model/FREEDOM.yaml"


def test_dotted_keys_keep_the_rest_of_a_mapping():
    config = make("--eval_args.mode=uni100", "--modalities.image.file=a=b.npy", "--train_neg_sample_args.sample_num=4")
    assert config["eval_args"]["mode"] == {"valid": "uni100", "test": "uni100"}
    assert config["eval_args"]["split"] == {"RS": [0.8, 0.1, 0.1]}
    assert config["modalities"] == {"image": {"file": "a=b.npy"}}
    assert config["train_neg_sample_args"]["sample_num"] == 4
    assert config["train_neg_sample_args"]["distribution"] == "uniform"


def test_other_mappings_are_replaced_as_in_recbole():
    config = make(model="BPR", load_col={"inter": ["user_id"]}, files=None)
    assert config["load_col"] == {"inter": ["user_id"]}


def test_a_dotted_key_through_a_value_is_an_error():
    with pytest.raises(GuiderError, match=r"learning_rate\.x cannot be set: learning_rate is 0\.001"):
        make("--learning_rate.x=1")


@pytest.mark.parametrize(
    ("sources", "expected"),
    [
        ([{"guider": {"a": 1}}, {"guider": False}], False),
        ([{"guider": {"a": 1}}, {"guider": None}], None),
        ([{"guider": False}, {"guider": {"a": 1}}], {"a": 1}),
        ([{"guider": False}, {"guider.a": 1}], {"a": 1}),
        ([{"guider": {"a": 1}}, {"guider": True}], {"a": 1}),
        ([{"guider": {"a": {"b": 1, "c": 2}}}, {"guider": {"a": {"b": 3}}}], {"a": {"b": 3, "c": 2}}),
        ([{"guider": {"a": [1, 2]}}, {"guider": {"a": [3]}}], {"a": [3]}),
        ([{"guider.a.b": 1, "guider": {"a": {"c": 2}}}], {"a": {"c": 2, "b": 1}}),
        ([{"guider": {"a.b": 1, "a": {"c": 2}}}], {"a": {"c": 2, "b": 1}}),
    ],
)
def test_merging(sources, expected):
    merged: dict = {}
    untouched = copy.deepcopy(sources)
    for source in sources:
        merged = merge(merged, source)
    assert merged == {"guider": expected}
    assert sources == untouched


@pytest.mark.parametrize(
    ("sources", "expected"),
    [
        ([{"guider": {"noise": {"seed": 1}, "a": 1}}], {"guider": {"a": 1}, "noise": {"seed": 1}}),
        ([{"guider.noise.seed": 1, "guider.eval_mask": "mmrec"}],
         {"guider": {}, "noise": {"seed": 1}, "eval_mask": "mmrec"}),
        # within a source the block wins, whatever comes first
        ([{"guider": {"eval_mask": "mmrec"}, "eval_mask": "recbole"}], {"guider": {}, "eval_mask": "mmrec"}),
        ([{"guider.noise.seed": 1, "noise.seed": 2, "noise": {"seed": 3, "deleted": 0.1}}],
         {"guider": {}, "noise": {"seed": 1, "deleted": 0.1}}),
        # between sources the later one
        ([{"guider": {"noise": {"seed": 1, "deleted": 0.1}}}, {"noise.seed": 2}],
         {"guider": {}, "noise": {"seed": 2, "deleted": 0.1}}),
        ([{"eval_mask": "mmrec"}, {"guider": False}, {"guider.eval_mask": "recbole"}],
         {"guider": {}, "eval_mask": "recbole"}),
        ([{"guider": {"noise": {"seed": 1}}}, {"guider": False}], {"guider": False, "noise": {"seed": 1}}),
        # null takes nothing back
        ([{"noise": {"seed": 1}, "eval_mask": "mmrec"}, {"noise": None, "eval_mask": None}],
         {"noise": {"seed": 1}, "eval_mask": "mmrec"}),
        ([{"noise": {"seed": 1}}, {"guider": {"noise": None, "eval_mask": None}}],
         {"noise": {"seed": 1}, "guider": {}}),
    ],
)
def test_the_guider_block_has_another_spelling_of_noise_and_mask(sources, expected):
    untouched = copy.deepcopy(sources)
    assert merge_all(sources) == expected
    assert sources == untouched


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--guider=False", "--guider.dbpr.eta=0.2"], r"guider\.dbpr\.eta is set where guider is False"),
        (["--noise.seed=1", "--noise=false"], r"noise\.seed is set where noise is False"),
        (["--guider=0", "--guider.dbpr.eta=0.2"], r"guider\.dbpr\.eta cannot be set: guider is 0"),
    ],
)
def test_a_source_that_contradicts_itself_is_an_error(arguments, message):
    with pytest.raises(GuiderError, match=message):
        make(*arguments)


def test_a_modality_can_be_taken_out():
    known = make(dataset="ml-100k")["modalities"]
    assert {"title", "genre"} <= set(known)
    config = make("--modalities.title=null", dataset="ml-100k")
    assert config["modalities"] == {name: block for name, block in known.items() if name != "title"}
    assert GuiderConfig.from_plain(config.to_plain())["modalities"] == config["modalities"]


# -- names ----------------------------------------------------------------------------------------------------------


def test_a_guider_name_and_a_block_are_the_same_configuration():
    named = make("--guider.dbpr.eta=0.3", model="GUIDER_FREEDOM")
    block = make("--guider.dbpr.eta=0.3", model="FREEDOM")
    typed = make("--model=GUIDER_FREEDOM", "--guider.dbpr.eta=0.3", model=None)
    for config in (block, typed):
        assert config.final_config_dict == named.final_config_dict
        assert config.model_class is named.model_class
    assert (named["model"], named["backbone"]) == ("GUIDER_FREEDOM", "FREEDOM")
    assert named.model_class is Guider and named.backbone_class.__name__ == "FREEDOM"


@pytest.mark.parametrize("block", [True, {}])
def test_switching_on_takes_all_defaults(block):
    expected = make(model="GUIDER_BPR")
    assert make(model="BPR", guider=block).final_config_dict == expected.final_config_dict
    assert expected["guider"] == {**GuiderSettings().to_dict(), **NO_EXPERIMENT}


@pytest.mark.parametrize(
    ("model", "settings"),
    [("BPR", {}), ("BPR", {"guider": False}), ("BPR", {"guider": None}), ("GUIDER_BPR", {"guider": False})],
)
def test_switching_off_is_the_plain_model(model, settings):
    config = make(model=model, **settings)
    assert (config["model"], config["backbone"], config["guider"]) == ("BPR", "BPR", False)
    assert config.guider_settings is None and config.model_class is BPR
    assert config.final_config_dict == make(model="BPR").final_config_dict


def test_false_on_the_command_line_wins(tmp_path):
    file = write(tmp_path / "a.yaml", "guider: {dbpr: {eta: 0.3}}\n")
    assert make("--guider=false", files=[file], model="BPR").guider_settings is None


def test_a_class_can_be_the_model():
    plain = make(model=MyModel, n_layers=3, reg_weight=0.1)
    assert plain["model"] == "MyModel" and plain.model_class is MyModel
    guided = make(model=MyModel, guider=True, n_layers=3, reg_weight=0.1)
    assert guided["model"] == "GUIDER_MyModel" and guided.backbone_class is MyModel


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"model": "GUIDER_FREDOM"}, "there is no model 'GUIDER_FREDOM'; did you mean GUIDER_FREEDOM"),
        ({"model": None}, "no model is given"),
        ({"dataset": None}, "no data set is given"),
        ({"model": "SASRec", "guider": True}, "model SASRec is of type sequential"),
        ({"guider": {"teacher": "LigthGCN"}}, r"guider\.teacher: there is no model 'LigthGCN'; did you mean LightGCN"),
        ({"guider": {"teacher": "ItemKNN"}}, r"guider\.teacher: model ItemKNN is of type traditional"),
        ({"guider": {"dbpr": {"etta": 1}}}, r"guider\.dbpr\.etta is not a setting; did you mean guider\.dbpr\.eta"),
        ({"guider": "maybe"}, "guider is 'maybe'"),
        ({"guider": 0}, "guider is 0: give true, false or a block"),
        ({"guider": 1}, "guider is 1: give true, false or a block"),
        ({"model": "BPR", "eval_mask": "mmrecc"}, r"^eval_mask is 'mmrecc': it must be recbole or mmrec"),
        ({"model": "BPR", "noise": {"interactions": -1}}, r"^noise\.interactions is -1: it must be a number >= 0"),
        (
            {"guider": {"noise": {"features": {"image": 2}}}},
            r"^noise\.features\.image is 2: it must be a number >= 0 and <= 1\.",
        ),
        ({"guider": {"eval_mask": "mmrecc"}}, r"^eval_mask is 'mmrecc': it must be recbole or mmrec"),
        ({"noise": 3}, r"^noise is 3: it is a block of keys \(interactions, "),
        ({"device": "gpu"}, r"device is 'gpu': it must be auto, cpu, cuda or cuda:N"),
    ],
)
def test_mistakes_are_named(keywords, message):
    with pytest.raises(GuiderError, match=message):
        make(**keywords)


# -- values ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("epochs=abc", "^epochs is 'abc': it must be a whole number >= 0"),
        ("epochs=-1", "^epochs is -1"),
        ("seed=abc", "^seed is 'abc'"),
        ("seed=-1", "^seed is -1: it must be a whole number >= 0 and <= 4294967295"),
        ("learning_rate=abc", "^learning_rate is 'abc': it must be a number >= 0"),
        ("weight_decay=abc", "^weight_decay is 'abc'"),
        ("train_batch_size=0", "^train_batch_size is 0: it must be a whole number >= 1"),
        ("learner=foo", "^learner is 'foo': it must be adam, adamw, sgd, adagrad, rmsprop or sparse_adam"),
        ("clip_grad_norm=3", r"^clip_grad_norm is 3: it is a block of keys \(max_norm, norm_type"),
        ("clip_grad_norm={foo: 1}", r"^clip_grad_norm\.foo is not a setting"),
        ("checkpoint_dir=5", "^checkpoint_dir is 5: it must be the path of a folder"),
        ("alias_of_item_id=foo", "^alias_of_item_id is 'foo': it must be a list of names or null"),
        ("benchmark_filename=train", "^benchmark_filename is 'train': it must be a list of names or null"),
        ("eval_args.group_by=item", r"^eval_args\.group_by is 'item': it must be user or none or null"),
        ("eval_args.split=None", r"^eval_args\.split is None: it must be a block of RS .*, LS .* or TS"),
        ("eval_args.split={XX: [8, 1, 1]}", r"^eval_args\.split is \{'XX'"),
        ("eval_args.split.LS=valid_only", r"^eval_args\.split is \{'RS': .* and of one of them only"),
        ("eval_args.split={RS: [8, 2]}", r"^eval_args\.split\.RS is \[8, 2\]: it must be a list of three shares"),
        ("eval_args.split={RS: 0.8}", r"^eval_args\.split\.RS is 0.8"),
        ("eval_args.split={LS: last}", r"^eval_args\.split\.LS is 'last': it must be valid_and_test, valid_only or"),
        ("train_neg_sample_args={dynamic: True}", "dynamic is True, .*: set candidate_num to 1 or more"),
        ("backend=abc", "^backend is 'abc': it must be auto, nccl or gloo"),
        ("metrics=Foo", "^metrics names 'Foo', which is no metric of RecBole"),
        ("metrics=[Recal]", "^metrics names 'Recal', .*; did you mean recall"),
        ("valid_metric=Foo@3", "^valid_metric names 'Foo'"),
        ("topk=0", "^topk is 0: it must be a whole number >= 1 or a list of them"),
        ("topk=['a']", "^topk is "),
        ("eval_args=full", r"^eval_args is 'full': it is a block of keys \("),
        ("eval_args.mode=foo", r"^eval_args\.mode is 'foo': it must be full, labeled, uni<N> or pop<N>"),
        ("eval_args.mode={valid: unix}", r"^eval_args\.mode is"),
        ("train_neg_sample_args.sample_num=0", r"^train_neg_sample_args\.sample_num is 0"),
        ("train_neg_sample_args.distribution=foo", r"distribution is 'foo': it must be uniform or popularity"),
        ("embedding_size=abc", "^embedding_size is 'abc'"),
        ("embedding_size=0", "^embedding_size is 0: it must be a whole number >= 1"),
        ("reg_weight=abc", "^reg_weight is 'abc': it must be a number"),
        ("n_ui_layers=abc", "^n_ui_layers is 'abc': it must be a whole number >= 0"),
        ("n_ui_layers=-1", "^n_ui_layers is -1"),
        ("n_mm_layers=True", "^n_mm_layers is True"),
        ("knn_k=1.5", "^knn_k is 1.5: it must be a whole number >= 1"),
        ("knn_k=0", "^knn_k is 0"),
        ("train_features=abc", "^train_features is 'abc': it must be true or false"),
        ("modality_weights=3", "^modality_weights is 3: it must be a block of keys or null"),
    ],
)
def test_wrong_values_are_named(argument, message):
    with pytest.raises(GuiderError, match=message):
        make(f"--{argument}")


@pytest.mark.parametrize(
    ("model", "arguments"),
    [
        ("FREEDOM", ["--learner=Adam", "--topk=5", "--metrics=recall", "--modality_weights={image: 1}", "--epochs=0"]),
        ("BPR", ["--eval_args.split={LS: valid_and_test}", "--eval_args.group_by=None", "--clip_grad_norm=None"]),
        ("BPR", ["--benchmark_filename=[a, b, c]", "--eval_args.split=None", "--clip_grad_norm={max_norm: 5}"]),
        ("FREEDOM", ["--eval_args.mode={valid: uni10, test: full}", "--learning_rate=1", "--modality_weights=None"]),
        ("SMORE", ["--knn_k={image: 3}"]),
        ("MMGCN", ["--latent_size={image: null}"]),
        ("MMGCF", ["--feat_embed_dim=None"]),
        ("BM3", []),
        ("SimpleX", ["--negative_weight=0.5"]),
        ("LightGCN", ["--train_neg_sample_args={distribution: popularity, alpha: 0.5}"]),
    ],
)
def test_right_values_pass(model, arguments):
    make(*arguments, model=model)


def test_every_default_is_a_value_that_may_be_given():
    for info in list_models():
        check_values(make(model=info.name).to_plain(), info.name)


def test_limits_come_from_the_property_files():
    with pytest.raises(GuiderError, match="drop_rate is 1: it must be a number >= 0 and < 1"):
        make("--drop_rate=1", model="DGCN")
    with pytest.raises(GuiderError, match="knn_k is 0: it must be a whole number >= 1 or a block of keys"):
        make("--knn_k=0", model="SMORE")
    with pytest.raises(GuiderError, match="n_layers is 'abc': it must be a number"):
        make("--n_layers=abc", model="LightGCN")


def test_what_recbole_refuses_is_an_error_with_its_cause():
    with pytest.raises(GuiderError, match="RecBole does not accept this configuration: Ranking metrics") as caught:
        make("--metrics=['AUC', 'Recall']")
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_a_teacher_that_is_trained_first_needs_evaluations():
    with pytest.raises(GuiderError, match=r"eval_step is 0: with guider\.schedule pretrained"):
        make("--eval_step=0", guider={"schedule": "pretrained"})
    make("--eval_step=0", guider={"schedule": "in_sync"})


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"n_layers": "abc"}, r"guider\.teacher_parameters\.n_layers is 'abc': it must be a number"),
        ({"learning_rate": -1}, r"guider\.teacher_parameters\.learning_rate is -1"),
        ({"n_layerz": 3}, r"guider\.teacher_parameters\.n_layerz is not a parameter .*; did you mean n_layers"),
        ({"something": 3}, r"something is not a parameter of LightGCN\. Allowed: .*n_layers, reg_weight"),
    ],
)
def test_wrong_parameters_of_a_teacher_are_named(parameters, message):
    with pytest.raises(GuiderError, match=message):
        make(guider={"teacher_parameters": parameters})


def test_a_teacher_may_be_given_the_parameters_of_another_one():
    teacher = make(guider={"teacher": "BPR", "teacher_parameters": {"n_layers": 3}}).teacher_config()
    assert teacher["model"] == "BPR"


def test_the_released_teacher_has_the_parameters_of_freedom():
    make(guider={"variant": "released", "teacher_parameters": {"knn_k": 4}})


# -- names of settings ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "meant"),
    [("guidr", "guider"), ("Guider", "guider"), ("modalites", "modalities"), ("nosie", "noise")]
    + [("mirror-gradient", "mirror_gradient"), ("denoisng", "denoising"), ("eval_masks", "eval_mask")],
)
def test_a_slip_in_a_key_of_this_package_is_an_error(written, meant, tmp_path):
    message = f"{written} is not a setting; did you mean {meant}?"
    with pytest.raises(GuiderError, match=message):
        make(f"--{written}=x")
    with pytest.raises(GuiderError, match=message):
        make(**{written: {"x": 1}})
    with pytest.raises(GuiderError, match=message):
        make(files=[write(tmp_path / "a.yaml", f"{written}: {{x: 1}}\n")])


def test_keys_that_nothing_reads_give_one_warning(tmp_path, caplog):
    warn_once.cache_clear()
    file = write(tmp_path / "a.yaml", "lerning_rate: 3\nmine: 1\nn_layers: 3\nhidden_dropout_prob: 0.5\n")
    for _ in range(2):
        make("--valid_metirc.x=1", files=[file], something=1, mlp_hidden_size=[3])
    assert [record.message for record in caplog.records] == [
        "settings that nothing reads: lerning_rate (did you mean learning_rate?), something, "
        "valid_metirc (did you mean valid_metric?), mlp_hidden_size (a parameter of other models)"
    ]


def test_the_first_of_several_processes_gives_the_warning(caplog):
    for rank in (1, 0):
        warn_once.cache_clear()
        processes = {"local_rank": 0, "world_size": 2, "nproc": 1, "ip": "localhost", "port": 1, "offset": rank}
        config = make("--use_gpu=False", something=1, **processes)
        assert (config.process.rank, config["state"]) == (rank, "error" if rank else "INFO")
        assert bool(caplog.records) is (rank == 0)
    assert make("--use_gpu=False").process is None


def test_a_parameter_of_other_models_is_one_that_nothing_reads_where_it_is_typed(caplog):
    warn_once.cache_clear()
    make("--n_layers=9", mlp_hidden_size=[3])
    make("--n_layers=9", model="LightGCN")
    assert [record.message for record in caplog.records] == [
        "settings that nothing reads: mlp_hidden_size (a parameter of other models), "
        "n_layers (did you mean n_ui_layers?)"
    ]


def test_keys_that_are_read_give_no_warning(caplog):
    warn_once.cache_clear()
    for model in ("SASRec", "FREEDOM", "BPR"):
        make("--resume=", "--loss_type=CE", "--wandb_project=x", "--alias_of_mine=[a]", model=model, replay=None,
             train_neg_sample_args=None)
    make(model=OwnKeys, knob=3, nois=1)
    # these do not say what they read, whatever they inherit
    for model in (MyModel, OwnFreedom):
        make(model=model, knob=3)
    # a model's own file of RecBole's may lack what it reads
    make("--tau=1", "--contrast=us_x", model="FEARec", train_neg_sample_args=None)
    assert not caplog.records


def test_declared_parameters_of_a_class_of_ones_own_are_checked(caplog):
    warn_once.cache_clear()
    with pytest.raises(GuiderError, match="knob is 'x': it must be a whole number"):
        make(model=OwnKeys, knob="x")
    make(model=OwnKeys, mlp_hidden_size=[3], something=1)
    assert [record.message for record in caplog.records] == [
        "settings that nothing reads: something, mlp_hidden_size (a parameter of other models)"
    ]


# -- files and the command line -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"nothing\.yaml does not exist"),
        ("a: 1\nb: [1, 2\nc: 3\n", r"file\.yaml, line 3 is not valid YAML"),
        ("- 1\n- 2\n", r"file\.yaml holds a list: it must be `key: value` lines"),
        ("word\n", r"file\.yaml holds a str"),
        (
            "guider: {schedule: joint}\nknn_k: 3\nguider:\n  dbpr: {eta: 0.3}\n",
            r"file\.yaml, line 3 is not valid YAML: the key 'guider' is here a second time, after line 1",
        ),
        (
            "guider:\n  dbpr:\n    eta: 0.1\n    gamma: 0.2\n    \"eta\": 0.3\n",
            r"file\.yaml, line 5 is not valid YAML: the key 'eta' is here a second time, after line 3",
        ),
    ],
)
def test_a_bad_file_is_named(text, message, tmp_path):
    file = str(tmp_path / "nothing.yaml") if text is None else write(tmp_path / "file.yaml", text)
    with pytest.raises(GuiderError, match=message):
        make(files=[file])


def test_an_empty_file_and_exponents_are_fine(tmp_path):
    assert read_yaml(write(tmp_path / "a.yaml", "")) == {}
    assert read_yaml(write(tmp_path / "b.yaml", "a: 1e-3\nb: -2E5\nc: .5\nd: 1e\n")) == {
        "a": 0.001,
        "b": -200000.0,
        "c": 0.5,
        "d": "1e",
    }


def test_merged_keys_are_not_there_twice(tmp_path):
    text = "base: &base {x: 1}\nouter: {a: &a {<<: *base, x: 2}}\nother: {<<: *a, x: 3}\nlist: [{x: 1}, {x: 2}]\n"
    assert read_yaml(write(tmp_path / "a.yaml", text)) == {
        "base": {"x": 1}, "outer": {"a": {"x": 2}}, "other": {"x": 3}, "list": [{"x": 1}, {"x": 2}]
    }


def test_what_is_not_used_is_said_and_launcher_flags_are_not(caplog):
    make("--model", "BPR", "-d", "toy", "--config_files", "a.yaml", "-mBPR", "--epochs=3")
    assert not caplog.records
    config = make("--epochs", "3", "word")
    assert "command line args [--epochs 3 word] will not be used" in caplog.text
    assert config["epochs"] == 300


def test_the_command_takes_nothing_that_would_not_be_used(capsys):
    for argument in ("--epochs", "word", "-x=1"):
        assert main(["run", argument]) == 2
        message = f"error: {argument} is none of the options, nor a setting of the form --key=value."
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [["run", "--model="], ["run", "-d", ""], ["tune", "--out=sweep", "-m", " "], ["noise", "--dataset="]]
)
def test_an_empty_name_is_no_name(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "is empty; give a name, or leave the option out for the default" in capsys.readouterr().err


def test_homes_of_nobody_are_named(tmp_path):
    with pytest.raises(GuiderError, match=r"~nosuchuser/x: there is no user of that name"):
        user_path("~nosuchuser/x")
    assert user_path("~/x") == Path.home() / "x"


def test_a_key_with_two_values_is_an_error():
    assert make("--epochs=3", "--epochs=3")["epochs"] == 3
    with pytest.raises(GuiderError, match="--epochs is given twice, as '3' and as '4'"):
        make("--epochs=3", "--epochs=4")


def test_the_command_line_is_read_only_where_none_is_given(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["run", "--epochs=3"])
    assert GuiderConfig("BPR", "toy")["epochs"] == 3
    assert GuiderConfig("BPR", "toy", command_line=[])["epochs"] == 300


# -- mask and noise -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["BPR", "GUIDER_BPR"])
def test_mask_and_noise_may_stand_at_the_top_level(model):
    config = make("--eval_mask=mmrec", "--noise.interactions=0.2", model=model)
    noise = NoiseSettings(interactions=0.2).model_dump()
    assert (config["eval_mask"], config["noise"]) == ("mmrec", noise)
    if config["guider"]:
        assert (config["guider"]["eval_mask"], config["guider"]["noise"]) == ("mmrec", noise)


def test_the_later_source_decides_between_block_and_top_level(tmp_path):
    file = write(tmp_path / "a.yaml", "eval_mask: mmrec\nnoise: {interactions: 0.2}\n")
    config = make("--guider.eval_mask=recbole", "--guider.noise.seed=1", files=[file])
    assert config["eval_mask"] == config["guider"]["eval_mask"] == "recbole"
    assert config["noise"] == config["guider"]["noise"] == NoiseSettings(interactions=0.2, seed=1).model_dump()
    config = make("--eval_mask=mmrec", guider={"eval_mask": "recbole"})
    assert config["eval_mask"] == config["guider"]["eval_mask"] == "mmrec"


@pytest.mark.parametrize("model", ["BPR", "GUIDER_BPR"])
def test_a_block_that_is_switched_off_still_says_what_the_data_are(model, tmp_path):
    file = write(tmp_path / "a.yaml", "guider: {noise: {interactions: 0.2}, eval_mask: mmrec, teacher: BPR}\n")
    for config in (make("--guider=false", model=model, files=[file]), make(model=model, files=[file], guider=False)):
        assert (config["guider"], config["eval_mask"]) == (False, "mmrec")
        assert config["noise"] == NoiseSettings(interactions=0.2).model_dump()
        # and a run from its checkpoint
        again = GuiderConfig.from_plain(config.to_plain())
        assert (again["guider"], again["noise"], again["eval_mask"]) == (False, config["noise"], "mmrec")
    config = make("--guider=false", "--noise.interactions=0.1", model=model, files=[file])
    assert config["noise"] == NoiseSettings(interactions=0.1).model_dump()
    with pytest.raises(GuiderError, match=r"^noise\.interactions is -1: it must be a number >= 0"):
        make("--guider=false", model=model, guider={"noise": {"interactions": -1}})


# -- device ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def gpus(monkeypatch):
    """``gpus(n)``: torch sees n CUDA devices, and CUDA_VISIBLE_DEVICES is not set."""

    def see(count: int) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)

    # set and deleted: what a test leaves in the variable is undone
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr(device, "_shown_gpus", None)
    return see


@pytest.mark.parametrize("arguments", [[], ["--device=auto"], ["--device=cpu"], ["--use_gpu=False"], ["--gpu_id="]])
def test_without_cuda_the_cpu_is_taken(arguments, gpus):
    gpus(0)
    assert make(*arguments)["device"] == torch.device("cpu")


@pytest.mark.parametrize("argument", ["--device=cuda", "--device=cuda:1", "--use_gpu=True", "--gpu_id=0", "--gpu_id=1"])
def test_asking_for_cuda_where_there_is_none_is_an_error(argument, gpus):
    gpus(0)
    with pytest.raises(GuiderError, match=f"{argument[2:]} asks for CUDA, but torch .* finds no CUDA device"):
        make(argument)


def test_config_dict_asks_as_the_command_line_does(gpus):
    gpus(0)
    with pytest.raises(GuiderError, match="use_gpu=True asks for CUDA"):
        make(use_gpu=True)
    with pytest.raises(GuiderError, match="device is cpu but use_gpu is True"):
        make(use_gpu=True, device="cpu")
    for arguments in (["--use_gpu=False"], ["--device=cpu"]):
        assert make(*arguments, use_gpu=True)["device"].type == "cpu", "the command line overrides"


def test_files_written_for_a_gpu_still_run_without_one(gpus, tmp_path, caplog):
    gpus(0)
    warn_once.cache_clear()
    assert make(gpu_id="0")["device"].type == "cpu" and not caplog.records
    file = write(tmp_path / "gpu.yaml", "use_gpu: True\ngpu_id: '0'\n")
    assert make(files=[file], device="cpu")["device"].type == "cpu" and not caplog.records
    for _ in range(2):
        assert make(files=[file])["device"].type == "cpu"
    assert [record.message.partition(", but")[0] for record in caplog.records] == ["a property file has use_gpu: True"]


@pytest.mark.parametrize(
    ("arguments", "device", "visible"),
    [
        ([], "cuda", "0"),
        (["--gpu_id=1"], "cuda", "1"),
        (["--gpu_id=0,1"], "cuda", "0,1"),
        (["--device=cuda"], "cuda", "0"),
        (["--device=cuda:1"], "cuda:1", None),
        (["--device=cpu"], "cpu", None),
        (["--use_gpu=False"], "cpu", None),
        (["--gpu_id="], "cpu", None),
    ],
)
def test_with_cuda(arguments, device, visible, gpus):
    gpus(2)
    config = make(*arguments)
    assert config["device"] == torch.device(device)
    assert os.environ.get("CUDA_VISIBLE_DEVICES") == visible
    assert config["use_gpu"] is (device != "cpu")


def test_the_users_choice_of_gpus_stays(gpus, monkeypatch):
    gpus(1)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    make("--gpu_id=1")
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "3"


def test_a_choice_of_this_process_can_change(gpus):
    gpus(2)
    make("--gpu_id=1")
    make("--gpu_id=0")
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--device=cuda:2"], r"device is cuda:2, but this process sees 2 CUDA device"),
        (["--device=cuda", "--use_gpu=False"], "device is cuda but use_gpu is False"),
        (["--device=cpu", "--use_gpu=True"], "device is cpu but use_gpu is True"),
    ],
)
def test_contradictions_about_the_device_are_errors(arguments, message, gpus):
    gpus(2)
    with pytest.raises(GuiderError, match=message):
        make(*arguments)


def _one_of_two(rank: int, port: int, folder: str) -> None:
    processes = {"local_rank": rank, "world_size": 2, "nproc": 2, "ip": "localhost", "port": port, "offset": 0}
    config = make("--use_gpu=False", model="BPR", **processes)
    assert not distributed.is_parallel(), "a configuration says which process it is for, and joins none"
    distributed.join(config.process)
    assert (distributed.rank(), distributed.world_size()) == (rank, 2)
    total = torch.tensor([rank + 1])
    torch.distributed.all_reduce(total)
    torch.distributed.destroy_process_group()
    values = [config["device"].type, config["single_spec"], config["show_progress"], total.item()]
    Path(folder, str(rank)).write_text(repr(values))


def test_two_processes_meet_over_gloo_on_a_cpu(tmp_path):
    import socket

    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    other = torch.multiprocessing.get_context("spawn").Process(target=_one_of_two, args=(1, port, str(tmp_path)))
    other.start()
    _one_of_two(0, port, str(tmp_path))
    other.join()
    assert other.exitcode == 0
    # to RecBole each is a single process: batches and evaluations are dealt by recbole_guider.training.parallel
    assert (tmp_path / "0").read_text() == repr(["cpu", True, True, 3])
    assert (tmp_path / "1").read_text() == repr(["cpu", True, False, 3])


@pytest.mark.parametrize(
    ("backend", "message"), [("nccl", "backend is nccl, which needs CUDA"), ("mpi", "backend is 'mpi'")]
)
def test_a_wrong_backend_is_an_error(backend, message, gpus):
    gpus(0)
    processes = {"local_rank": 0, "world_size": 1, "nproc": 1, "ip": "localhost", "port": 1, "offset": 0}
    with pytest.raises(GuiderError, match=message):
        make(backend=backend, **processes)


# -- views and copies -----------------------------------------------------------------------------------------------


def test_the_teacher_has_its_own_parameters(tmp_path):
    config = make("--embedding_size=32", "--reg_weight=0.5", guider=True)
    teacher = config.teacher_config()
    assert (teacher["model"], teacher.model_class, teacher["backbone"]) == ("LightGCN", LightGCN, "LightGCN")
    # RecBole's LightGCN.yaml: n_layers 2, reg_weight 1e-5; the size follows the student's
    assert (teacher["n_layers"], teacher["reg_weight"], teacher["embedding_size"]) == (2, 1e-5, 32)
    assert (config["model"], config["reg_weight"], config["n_layers"]) == ("GUIDER_FREEDOM", 0.5, None)
    assert teacher["learning_rate"] == config["learning_rate"]
    assert teacher.guider_settings is config.guider_settings
    teacher["eval_args"]["mode"] = "changed"
    assert config["eval_args"]["mode"] != "changed"


def test_the_defaults_of_every_model_pass_its_own_checks():
    folders = (Path(recbole.__file__).parent / "properties" / "model", properties_dir() / "model")
    names = {file.stem for folder in folders for file in folder.glob("*.yaml")}
    assert len(names) > 80
    for name in names:
        check_values(model_defaults(name), name)
    check_values({"latent_size": None}, "MMGCN")
    check_values({"eval_step": -1, "stopping_step": 1e9}, "BPR")


def test_parameters_of_other_models_in_a_file_are_no_slips(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("denoise: true\nnoisy: 1\nnoise_p: 0.1\ndevice_id: 0\nbackbones: [a]\n")
    GuiderConfig("LightGCN", "toy", [str(file)], command_line=[])
    file.write_text("modalites: {image: image.npy}\n")
    with pytest.raises(GuiderError, match="did you mean modalities"):
        GuiderConfig("LightGCN", "toy", [str(file)], command_line=[])


def test_a_stored_configuration_is_not_judged_again():
    plain = GuiderConfig("BPR", "toy", command_line=[]).to_plain()
    assert GuiderConfig.from_plain({**plain, "stopping_step": "many"})["stopping_step"] == "many"
    with pytest.raises(GuiderError, match="epochs is 'many'"):
        GuiderConfig.from_plain(plain, overrides={"epochs": "many"})


def test_a_teacher_without_a_property_file_has_the_backbones_parameters():
    class Plainer(LightGCN):
        pass

    register_model(Plainer)
    settings = {"guider": {"teacher": "Plainer"}, "n_layers": 2, "reg_weight": 1e-5}
    teacher = GuiderConfig("LightGCN", "toy", config_dict=settings, command_line=[]).teacher_config()
    assert (teacher["n_layers"], teacher["reg_weight"]) == (2, 1e-5)


def test_a_number_called_noise_is_a_parameter_of_somebodys_model():
    for settings, ours in (
        ({"noise": 0.1}, False), ({"denoising": True}, False),
        ({"noise": {"deleted": 0.1}}, True), ({"denoising": "x"}, True),
        ({"guider": {"noise": {"deleted": 0.1}}}, True),
    ):
        assert is_our_run("BPR", "toy", None, settings) is ours


def test_noise_in_a_block_that_is_switched_off_is_ours(tmp_path):
    file = write(tmp_path / "a.yaml", "guider: {noise: {deleted: 0.1}}\n")
    assert is_our_run("BPR", "toy", [file], {"guider": False})
    assert not is_our_run("BPR", "toy", [write(tmp_path / "b.yaml", "guider: {teacher: BPR}\n")], {"guider": False})


def test_what_a_backbone_has_by_default_is_not_its_teachers():
    assert GuiderConfig("GUIDER_DRAGON", "toy", command_line=[])["learning_rate"] == 1e-4
    for model, key, default in (("DRAGON", "learning_rate", 0.001), ("SLMRec", "weight_decay", 0.0)):
        config = GuiderConfig(f"GUIDER_{model}", "toy", command_line=[])
        assert config.teacher_config()[key] == default
        asked = GuiderConfig(f"GUIDER_{model}", "toy", config_dict={key: 0.005}, command_line=[])
        assert asked.teacher_config()[key] == asked[key] == 0.005
        again = GuiderConfig.from_plain(asked.to_plain())
        assert again.teacher_config()[key] == 0.005


def test_teacher_parameters_win():
    given = "--guider.teacher_parameters={n_layers: 4, embedding_size: 16}"
    teacher = make(given, "--guider.teacher_parameters.reg_weight=0.1").teacher_config()
    assert (teacher["n_layers"], teacher["embedding_size"], teacher["reg_weight"]) == (4, 16, 0.1)


def test_a_teacher_like_its_student_starts_from_its_values():
    teacher = make("--n_layers=4", model="GUIDER_LightGCN").teacher_config()
    assert teacher["n_layers"] == 4


def test_a_plain_model_has_no_teacher():
    with pytest.raises(GuiderError, match="a plain model has no teacher"):
        make(model="BPR").teacher_config()


CASES = [
    {"model": "BPR"},
    {"model": "GUIDER_FREEDOM", "dataset": "ml-100k", "modalities": {"title": None}},
    {"guider": {"dbpr": {"eta": 0.3}}, "topk": 20, "eval_args": {"mode": {"valid": "uni10"}}, "data_path": "/x/y"},
    {"model": "BPR", "train_neg_sample_args": None, "user_inter_num_interval": "[5,inf)"},
    {"model": "BPR", "metrics": "AUC", "eval_args": {"mode": "labeled"}, "valid_metric": "AUC"},
    {"model": "SASRec", "train_neg_sample_args": None, "gpu_id": (0, 1)},
    {"model": "GUIDER_BPR", "eval_mask": "mmrec", "noise": {"interactions": 0.2}, "seed": np.int64(3), "own": (1, "2")},
]


@pytest.mark.parametrize("case", CASES)
def test_a_plain_copy_survives_a_checkpoint(case, tmp_path):
    config = make("--use_gpu=False", **case)
    torch.save(config.to_plain(), tmp_path / "config.pth")
    plain = torch.load(tmp_path / "config.pth", weights_only=True)
    sys_argv = list(sys.argv)
    sys.argv[1:] = ["--epochs=1", "--guider.dbpr.eta=9"]
    try:
        again = GuiderConfig.from_plain(plain)
    finally:
        sys.argv[:] = sys_argv
    assert again.final_config_dict == config.final_config_dict
    assert again.guider_settings == config.guider_settings and again.model_class is config.model_class
    assert again.to_plain() == config.to_plain()


def test_overrides_of_a_plain_copy_win():
    plain = make("--guider.dbpr.eta=0.3", data_path="/x").to_plain()
    given = {"data_path": "/elsewhere", "guider.dbpr.gamma": 0.1, "topk": 5, "eval_mask": "mmrec"}
    config = GuiderConfig.from_plain(plain, given)
    assert config["data_path"] == "/elsewhere/toy"
    assert (config["guider"]["dbpr"]["eta"], config["guider"]["dbpr"]["gamma"]) == (0.3, 0.1)
    assert config["topk"] == [5]
    assert config["eval_mask"] == config["guider"]["eval_mask"] == "mmrec"
    assert GuiderConfig.from_plain(plain, {"guider": False})["model"] == "FREEDOM"


def test_recboles_own_data_is_found_wherever_it_is_installed():
    plain = make(model="BPR", dataset="ml-100k").to_plain()
    assert "site-packages" not in plain["data_path"]
    assert Path(GuiderConfig.from_plain(plain)["data_path"], "ml-100k.inter").is_file()


def test_a_checkpoint_of_a_gpu_loads_without_one(gpus):
    gpus(2)
    plain = make("--device=cuda:1").to_plain()
    gpus(0)
    assert GuiderConfig.from_plain(plain)["device"].type == "cpu"
    with pytest.raises(GuiderError, match="asks for CUDA"):
        GuiderConfig.from_plain(plain, {"device": "cuda"})


def test_a_class_of_ones_own_is_given_again():
    config = make(model=MyModel, guider=True, n_layers=3, reg_weight=0.1)
    again = GuiderConfig.from_plain(config.to_plain(), model=MyModel)
    assert again.final_config_dict == config.final_config_dict


def test_what_cannot_be_stored_is_said(caplog):
    plain = make(model="BPR", own=object()).to_plain()
    assert "own" not in plain and "config key own holds a object" in caplog.text


@pytest.mark.parametrize("model", ["GUIDER_FREEDOM", "BPR", "GUIDER_LightGCN"])
def test_a_configuration_can_be_pickled_and_copied(model):
    config = make("--guider.dbpr.eta=0.3" if model.startswith("GUIDER") else "--epochs=3", model=model)
    for again in (pickle.loads(pickle.dumps(config)), copy.deepcopy(config)):
        assert again.final_config_dict == config.final_config_dict
        assert again.model_class is config.model_class and again.guider_settings == config.guider_settings
        again["epochs"] = -1
        assert config["epochs"] != -1


def test_it_prints_its_block():
    assert "Guider Hyper Parameters" in str(make(guider=True))


# -- property files on a command line -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "files"),
    [
        (None, []),
        ("", []),
        (["a.yaml b.yaml", "'c d.yaml'"], ["a.yaml", "b.yaml", "c d.yaml"]),
        ("a.yaml  b.yaml\tc.yaml", ["a.yaml", "b.yaml", "c.yaml"]),
        ("o'neil/a.yaml o'neil/b.yaml", ["o'neil/a.yaml", "o'neil/b.yaml"]),
        ("c:\\mine.yaml", ["c:\\mine.yaml"]),
        ("'x y/a.yaml' b.yaml \"it's c.yaml\"", ["x y/a.yaml", "b.yaml", "it's c.yaml"]),
        ("'c:\\x y\\mine.yaml' #b.yaml", ["c:\\x y\\mine.yaml", "#b.yaml"]),
    ],
)
def test_property_files_are_separated_by_spaces_outside_quotes(text, files):
    assert split_files(text) == files


def test_a_quotation_mark_that_is_not_closed():
    with pytest.raises(GuiderError, match=r"--config_files is b\.yaml 'x y\.yaml: a quotation mark is not closed"):
        split_files("b.yaml 'x y.yaml")


@pytest.mark.parametrize("file", ["data/a.yaml", "x y/a.yaml", "it's", "$x `y`!", 'a "b" \\', "c\\ d", "é"])
@pytest.mark.parametrize("name", ["toy", "a b", "it's"])
def test_a_printed_command_names_what_it_was_made_for(file, name):
    command = run_command("recbole-guider run", file, name)
    program, run, dataset, files = shlex.split(command)
    assert (program, run, dataset) == ("recbole-guider", "run", f"--dataset={name}")
    assert split_files(files.removeprefix("--config_files=")) == [file]
    if (file, name) == ("data/a.yaml", "toy"):
        assert command == "recbole-guider run --dataset=toy --config_files=data/a.yaml"
