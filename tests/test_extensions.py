"""Models and denoising methods of a user's own, found by every command through ``import``."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from recbole_guider import list_models, load_data_and_model, register_denoising, run_recbole_guider
from recbole_guider.cli.main import main
from recbole_guider.denoising import METHODS, DenoisingMethod
from recbole_guider.utils import extensions
from recbole_guider.utils.errors import GuiderError

MINE = '''
from typing import Literal

import torch
from pydantic import Field

from recbole_guider import register_denoising, register_model
from recbole_guider.denoising import DenoisingMethod, DenoisingSettings
from recbole_guider.models.base import Encoding, FactorisedRecommender


class HalvedSettings(DenoisingSettings):
    method: Literal["{method}"] = "{method}"
    share: float = Field(default=0.5, gt=0, le=1, description="what losses are multiplied with")


@register_denoising
class Halved(DenoisingMethod):
    name, settings_class = "{method}", HalvedSettings

    def loss(self, sample):
        return self.settings.share * sample.logits.row_losses().mean()


@register_model
class {model}(FactorisedRecommender):
    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.user_embedding = torch.nn.Embedding(self.n_users, 8)
        self.item_embedding = torch.nn.Embedding(self.n_items, 8)

    def encode(self):
        return Encoding(self.user_embedding.weight, self.item_embedding.weight)
'''


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """(path of a user's file, its method's name, its model's name), which no other test has seen."""
    unique = re.sub(r"\W", "", tmp_path.name).lower()
    method, model = f"halved-{unique}", f"Factors{unique}"
    file = tmp_path / f"mine_{unique}.py"
    file.write_text(MINE.replace("{method}", method).replace("{model}", model))
    monkeypatch.setattr(extensions, "_imported", set())
    yield file, method, model
    METHODS.pop(method, None)
    sys.modules.pop(file.stem, None)


def property_file(toy: dict[str, Any], folder: Path, **more: Any) -> Path:
    file = folder / "toy.yaml"
    file.write_text(yaml.safe_dump({**toy, "epochs": 1, "dataset": "toy", **more}))
    return file


def test_run_finds_what_a_file_registers(mine: Any, toy: dict[str, Any], tmp_path: Path, caplog: Any) -> None:
    file, method, model = mine
    settings = property_file(toy, tmp_path)
    caplog.set_level("INFO")
    arguments = ["run", f"--model={model}", f"--config_files={settings}", f"--denoising={method}", "--state=INFO"]
    assert main([*arguments, f"--import={file}"]) == 0
    assert re.search(rf"denoising: +{method}, loss form bpr", caplog.text)
    assert model in {info.name for info in list_models()}


def test_a_property_file_names_it_from_its_own_folder(mine: Any, toy: dict[str, Any], tmp_path: Path) -> None:
    file, method, model = mine
    settings = property_file(toy, tmp_path, **{"import": file.name, "model": model})
    block = {"method": method, "share": 0.25}
    result = run_recbole_guider(config_file_list=[str(settings)], config_dict={"denoising": block})
    config, loaded, *_ = load_data_and_model(result["model_file"])
    assert config.denoising_settings.share == 0.25 and config["import"] is None
    with pytest.raises(GuiderError, match="share is 2: it must be a number > 0 and <= 1"):
        run_recbole_guider(config_file_list=[str(settings)], config_dict={"denoising": {**block, "share": 2}})


def test_a_checkpoint_imports_nothing(mine: Any, toy: dict[str, Any], tmp_path: Path) -> None:
    """A stranger's file may name anything: only what a user writes is imported."""
    file, _, _ = mine
    settings = property_file(toy, tmp_path, **{"import": str(file), "model": "BPR"})
    result = run_recbole_guider(config_file_list=[str(settings)])
    state = torch.load(result["model_file"], weights_only=True)
    marked = tmp_path / "executed"
    hostile = tmp_path / "hostile.py"
    hostile.write_text(f"open({str(marked)!r}, 'w')\n")
    state["config"]["import"] = [str(hostile)]
    torch.save(state, tmp_path / "changed.pth")
    load_data_and_model(tmp_path / "changed.pth")
    assert not marked.exists()


@pytest.mark.slow
def test_a_benchmark_gives_it_to_its_processes(mine: Any, toy: dict[str, Any], tmp_path: Path) -> None:
    file, method, model = mine
    property_file(toy, tmp_path)
    spec = tmp_path / "spec.yaml"
    content = {"datasets": ["toy"], "models": [model], "methods": ["plain", method], "seeds": 1, "import": file.name}
    spec.write_text(yaml.safe_dump(content))
    assert main(["benchmark", str(spec), f"--data={tmp_path}", f"--out={tmp_path / 'out'}", "--workers=1"]) == 0
    rows = (tmp_path / "out" / "results.csv").read_text().splitlines()
    assert len(rows) == 3 and any(method in row for row in rows)


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ("nowhere.py", r"import names nowhere\.py: there is no file .*nowhere\.py"),
        ("no_such_module", "import of no_such_module failed: ModuleNotFoundError"),
        ("..", r"import names \.\.: give a Python file"),
        ("leaves.py", r"import of .*leaves\.py failed: SystemExit"),
        ("json.py", r"a module called json is loaded already: rename the file"),
        (3, "import is 3: it must be the name of a Python file or a module"),
        ("broken.py", r"import of .*broken\.py failed: ZeroDivisionError"),
    ],
)
def test_what_cannot_be_imported_is_one_sentence(named: Any, message: str, toy: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("1 / 0\n")
    (tmp_path / "leaves.py").write_text("raise SystemExit(3)\n")
    (tmp_path / "json.py").write_text("")
    with pytest.raises(GuiderError, match=message):
        run_recbole_guider("BPR", "toy", config_dict={**toy, "import": named})


def test_what_is_no_method_is_refused() -> None:
    class NoName(DenoisingMethod):
        pass

    class Taken(DenoisingMethod):
        name = "t-ce"

    class NoSettings(DenoisingMethod):
        name, settings_class = "mine", dict  # type: ignore[assignment]

    for method, message in (
        (int, "int is no denoising method"),
        (NoName, "NoName needs a name in lower case"),
        (Taken, "cannot be called t-ce, which is one already"),
        (NoSettings, "settings_class of the denoising method NoSettings must derive"),
    ):
        with pytest.raises(GuiderError, match=message):
            register_denoising(method)  # type: ignore[type-var]
    with pytest.raises(GuiderError, match=r"denoising\.method is 'mien', which does not exist"):
        run_recbole_guider("BPR", "toy", config_dict={"denoising": "mien"})


def test_the_page_runs(toy: dict[str, Any], tmp_path: Path) -> None:
    page = (Path(__file__).parent.parent / "docs" / "denoising.md").read_text("utf-8")
    (tmp_path / "clipped.py").write_text(re.search(r"```python\n(.*?)```", page, re.DOTALL)[1])  # type: ignore[index]
    try:
        settings = {**toy, "epochs": 1, "import": "clipped.py", "denoising": {"method": "clipped", "largest": 1.0}}
        assert run_recbole_guider("LightGCN", "toy", config_dict=settings)["test_result"]
    finally:
        METHODS.pop("clipped", None)
        sys.modules.pop("clipped", None)


def test_a_file_that_failed_can_be_mended_and_imported_again(tmp_path: Path) -> None:
    file = tmp_path / "mended_later.py"
    file.write_text("1 / 0\n")
    with pytest.raises(GuiderError, match="ZeroDivisionError"):
        extensions.import_extensions(file.name, tmp_path)
    assert "mended_later" not in sys.modules
    file.write_text("KNOWN = True\n")
    try:
        assert extensions.import_extensions([file.name, str(file)], tmp_path) == [str(file)] * 2
        assert sys.modules["mended_later"].KNOWN
    finally:
        sys.modules.pop("mended_later", None)
