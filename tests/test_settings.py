"""The guider block: defaults, partial blocks, and one clear sentence for every mistake."""

from __future__ import annotations

import re

import numpy as np
import pytest
from pydantic import BaseModel, ValidationError

from recbole_guider.config import reference
from recbole_guider.config.registry import MODELS, backbone_class
from recbole_guider.config.settings import OverallSettings
from recbole_guider.config.validation import check_values
from recbole_guider.guider.settings import GuiderSettings
from recbole_guider.utils.errors import GuiderError
from recbole_guider.utils.resources import properties_dir
from recbole_guider.utils.settings import allowed_values
from recbole_guider.utils.yaml_files import read_yaml


def test_the_yaml_file_and_the_schema_have_the_same_keys_and_defaults():
    assert read_yaml(properties_dir() / "guider.yaml") == {"guider": GuiderSettings().to_dict()}


def test_the_yaml_file_says_what_every_key_means():
    for line in (properties_dir() / "guider.yaml").read_text(encoding="utf-8").splitlines():
        if re.match(r"\s+\w+:", line) and not line.endswith(":"):
            assert "#" in line, f"no meaning beside {line.strip()!r}"


def test_every_field_has_a_description():
    def check(model: type[BaseModel]) -> None:
        for name, field in model.model_fields.items():
            if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
                check(field.annotation)
            else:
                assert field.description, f"{model.__name__}.{name}"

    check(GuiderSettings)


@pytest.mark.parametrize("block", [None, False])
def test_an_absent_block_is_the_plain_model(block):
    assert GuiderSettings.from_block(block) is None


@pytest.mark.parametrize("block", [True, {}, {"dbpr": None}])
def test_true_and_empty_blocks_are_all_defaults(block):
    assert GuiderSettings.from_block(block) == GuiderSettings()


def test_a_partial_block_keeps_the_other_defaults():
    settings = GuiderSettings.from_block({"dbpr": {"eta": 0.3}})
    expected = GuiderSettings().to_dict()
    expected["dbpr"]["eta"] = 0.3
    assert settings.to_dict() == expected
    assert GuiderSettings.from_block(settings.to_dict()) == settings


def test_numbers_of_a_sweep_are_taken():
    # ray draws numpy numbers; a whole number is a number; tuples are lists
    settings = GuiderSettings.from_block(
        {
            "dbpr": {"eta": np.float64(0.5), "temperature": np.float32(0.25), "negatives": np.int64(7), "gamma": 1},
            "calibration": {"modalities": ("image", "text"), "noise_rate": None, "behaviour": np.bool_(False)},
        }
    )
    assert (settings.dbpr.eta, settings.dbpr.temperature, settings.dbpr.negatives) == (0.5, 0.25, 7)
    assert type(settings.dbpr.negatives) is int and type(settings.calibration.behaviour) is bool
    assert settings.calibration.modalities == ["image", "text"]


def test_settings_cannot_change():
    with pytest.raises(ValidationError):
        GuiderSettings().dbpr.eta = 1.0


@pytest.mark.parametrize(
    ("block", "message"),
    [
        (
            {"dbpr": {"etta": 1}},
            r"guider\.dbpr\.etta is not a setting; did you mean guider\.dbpr\.eta\? Allowed: form, ",
        ),
        ({"eta": 1}, r"guider\.eta is not a setting; did you mean guider\.dbpr\.eta\?"),
        ({"techer": "BPR"}, r"guider\.techer is not a setting; did you mean guider\.teacher\?"),
        ({"qqqq": 1}, r"guider\.qqqq is not a setting\. Allowed: variant, teacher, "),
        # an unknown key is named before a wrong value, which may follow from it
        ({"dbpr": {"eta": -1}, "qqqq": 1}, r"guider\.qqqq"),
        ({"dbpr": {"eta": -1}}, r"guider\.dbpr\.eta is -1: it must be a number >= 0\."),
        ({"dbpr": {"eta": float("nan")}}, r"guider\.dbpr\.eta is nan: it must be a number >= 0\."),
        ({"dbpr": {"temperature": 0.0}}, r"guider\.dbpr\.temperature is 0\.0: it must be a number > 0\."),
        ({"dbpr": {"eta": "0.3"}}, r"guider\.dbpr\.eta is '0\.3': it must be a number"),
        ({"dbpr": {"eta": True}}, r"guider\.dbpr\.eta is True: it must be a number"),
        ({"dbpr": {"negatives": 1.5}}, r"guider\.dbpr\.negatives is 1\.5: it must be a whole number >= 1\."),
        ({"dbpr": {"soft": 1}}, r"guider\.dbpr\.soft is 1: it must be true or false\."),
        ({"dbpr": 3}, r"guider\.dbpr is 3: it is a block of keys \(form, "),
        ({"calibration": {"decision": "lfdrr"}}, r"decision is 'lfdrr': it must be lfdr or quantile\."),
        ({"calibration": {"noise_rate": 1.0}}, r"noise_rate is 1\.0: it must be a number >= 0 and < 1 or null\."),
        ({"calibration": {"modalities": "image"}}, r"modalities is 'image': it must be all or a list of names\."),
        ({"calibration": {"modalities": ["image", 1]}}, r"modalities is \['image', 1\]: it must be all or a list"),
        ({"teacher_parameters": 3}, r"guider\.teacher_parameters is 3: it must be a block of keys\."),
        ({"teacher": ""}, r"guider\.teacher is '': it must be a name\."),
        ("on", r"guider is 'on': give true, false or a block of keys"),
        (1, r"guider is 1: give true, false"),
    ],
)
def test_a_mistake_is_named_with_what_is_allowed(block, message):
    with pytest.raises(GuiderError, match=message) as caught:
        GuiderSettings.from_block(block)
    assert "\n" not in str(caught.value)


def test_property_files_and_the_page_are_what_the_declarations_say() -> None:
    for file, text in reference.files().items():
        assert file.read_text("utf-8") == text, f"{file} differs: run python -m recbole_guider.config.reference"


def test_property_files_have_the_declared_defaults() -> None:
    for name in MODELS:
        declared = backbone_class(name).settings_class()
        assert read_yaml(properties_dir() / "model" / f"{name}.yaml") == declared.model_dump(), name
    assert read_yaml(properties_dir() / "overall.yaml") == OverallSettings().model_dump(by_alias=True)
    assert read_yaml(properties_dir() / "guider.yaml")["guider"] == GuiderSettings().model_dump()


def test_every_number_of_every_model_has_a_range() -> None:
    for name in MODELS:
        for key, field in backbone_class(name).settings_class.model_fields.items():
            words = allowed_values(field)
            if "number" in words:
                assert ">" in words, (name, key, words)
                with pytest.raises(GuiderError, match=f"^{key} is -1: it must be"):
                    check_values({key: -1}, name)
