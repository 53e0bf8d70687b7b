"""What is said where a requirement is missing, too old or too new; what works without RecBole."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from packaging.requirements import Requirement

import recbole_guider
from recbole_guider.cli.main import main
from recbole_guider.utils import requirements

ROOT = Path(__file__).parent.parent


def without_recbole(code: str) -> subprocess.CompletedProcess[str]:
    """``code`` in a process in which importing RecBole fails."""
    hidden = "import sys; sys.modules['recbole'] = None\n"
    return subprocess.run([sys.executable, "-c", hidden + code], capture_output=True, text=True)


def declare(monkeypatch: pytest.MonkeyPatch, *declared: str) -> None:
    monkeypatch.setattr(metadata, "requires", lambda name: list(declared))


def test_everything_that_is_declared_is_here() -> None:
    assert requirements.unmet() == ""


@pytest.mark.parametrize(
    ("declared", "words"),
    [
        ("no-such-library>=3", ["no-such-library is not installed", "pip install 'no-such-library>=3'"]),
        ("numpy>=99", [f"numpy {metadata.version('numpy')}", "needs numpy>=99", "pip install 'numpy>=99'"]),
        ("numpy<1", [f"numpy {metadata.version('numpy')}", "needs numpy<1"]),
    ],
)
def test_one_sentence_names_the_library_and_what_to_install(
    declared: str, words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    declare(monkeypatch, "torch>=1", declared, 'never-asked>=1; extra == "test"')
    with pytest.raises(ImportError) as error:
        _ = recbole_guider.run_recbole_guider
    assert main(["models"]) == 2
    told = capsys.readouterr().err
    for word in words:
        assert word in str(error.value) and word in told
    assert told.startswith("error: ") and told.count("\n") == 1


def test_a_library_too_new_for_the_ray_that_recbole_pins_is_named_where_ray_is_needed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ray, numpy = metadata.version("ray"), metadata.version("numpy")
    declare(monkeypatch, "numpy>=1", f'ray=={ray}; extra == "recbole"', 'numpy<1; extra == "recbole"')
    for command in (["tune", "--out=sweep"], ["calibrate", "log.parquet", "--out=calibrated"]):
        assert main(command) == 2
        told = capsys.readouterr().err
        assert told.startswith(f"error: numpy {numpy} is too new for ray {ray}, which needs numpy<1: pip install")
        assert told.count("\n") == 1
    assert requirements.unmet() == ""  # what needs no Ray works
    declare(monkeypatch, "numpy>=1", 'ray==0.1; extra == "recbole"', 'numpy<1; extra == "recbole"')
    assert requirements.unfit_for_ray() == ""  # another Ray than the pinned one


def test_importing_says_which_library_is_too_new() -> None:
    code = "from importlib import metadata\nmetadata.requires = lambda name: ['numpy<1']\nimport recbole_guider"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0
    assert f"numpy {np.__version__} is installed, and recbole-guider needs numpy<1" in done.stderr


def test_other_requirements_of_extras_and_other_pythons_are_not_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    declare(monkeypatch, 'never-asked>=1; extra == "test"', 'never-asked>=1; python_version < "3"')
    assert requirements.unmet() == ""


def test_without_recbole_importing_says_how_to_install_it() -> None:
    done = without_recbole("import recbole_guider")
    assert done.returncode == 0 and "pip install --no-deps recbole==1.2.1" in done.stderr
    done = without_recbole("from recbole_guider import run_recbole_guider")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("ImportError: RecBole is not installed")
    done = without_recbole("from recbole_guider.cli.main import main; sys.exit(main(['models']))")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: RecBole is not installed")


def test_calibrator_graphs_and_losses_work_without_recbole() -> None:
    code = """
import numpy as np, torch
from recbole_guider.amsc import calibrate, calibrate_parquet
from recbole_guider.graph import bipartite_adjacency, knn_graph
from recbole_guider.losses import dbpr_loss, ot_distillation_loss
rng = np.random.default_rng(0)
pairs = np.unique(rng.integers(0, [30, 20], size=(300, 2)), axis=0)
found = calibrate(pairs[:, 0], pairs[:, 1], {"text": rng.normal(size=(20, 4))}, n_users=30, n_items=20)
assert len(found.clean_probability) == len(pairs) and not any(name.startswith("recbole.") for name in sys.modules)
bipartite_adjacency(pairs[:, 0], pairs[:, 1], 30, 20)
knn_graph(rng.normal(size=(20, 4)).astype(np.float32), 3)
"""
    done = without_recbole(code)
    assert done.returncode == 0, done.stderr


def test_the_command_for_parquet_files_works_without_recbole(tmp_path: Path) -> None:
    settings = tmp_path / "settings.yaml"
    settings.write_text("guider: {calibration: {decision: quantile}}\n")
    for last, message in (("quantile", "no parquet file matches"), ("other", "calibration.decision is 'other'")):
        arguments = [
            "calibrate", str(tmp_path / "none.parquet"), f"--out={tmp_path / 'out'}", f"--config_files={settings}",
            f"--guider.calibration.decision={last}",
        ]
        done = without_recbole(f"from recbole_guider.cli.main import main; sys.exit(main({arguments}))")
        assert done.returncode == 2 and "Traceback" not in done.stderr
        assert message in done.stderr.splitlines()[-1]


def test_processes_that_only_predict_do_without_torch() -> None:
    code = "from recbole_guider.amsc import calibrate_parquet, calibrator, parquet\nassert 'torch' not in sys.modules"
    done = without_recbole(code)
    assert done.returncode == 0, done.stderr


def test_every_place_that_names_a_python_says_the_same() -> None:
    setup, ci = (ROOT / "setup.py").read_text(), (ROOT / ".ci" / "run").read_text()
    named = re.findall(r"Programming Language :: Python :: (3\.\d+)", setup)
    oldest, newest = named[0], named[-1]
    assert f'python_requires=">={oldest}"' in setup
    assert re.search(r"^for version in ([\d. ]+); do", ci, re.MULTILINE)[1].split() == named[::-1]  # type: ignore[index]
    tools = (ROOT / "pyproject.toml").read_text()
    assert f'target-version = "py{oldest.replace(".", "")}"' in tools and f'python_version = "{oldest}"' in tools
    for page in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"):
        assert f"Python {oldest} to {newest}" in " ".join((ROOT / page).read_text("utf-8").split()), page


def test_every_place_that_names_recboles_version_says_the_same() -> None:
    setup = (ROOT / "setup.py").read_text()
    version = re.search(r'"(recbole==[\d.]+)"', setup)[1]  # type: ignore[index]
    pages = ("README.md", "CONTRIBUTING.md", "docs/tuning.md")
    for file in ("setup.py", ".ci/run", "recbole_guider/utils/requirements.py", *pages):
        assert set(re.findall(r"recbole==[\d.]+\d", (ROOT / file).read_text("utf-8"))) == {version}, file


def test_the_command_that_ci_calls_is_the_readmes() -> None:
    command = re.search(r"^test_command='(.*)'$", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)[1]  # type: ignore[index]
    commands = re.findall(r"```sh\n(.*)\n```", (ROOT / "README.md").read_text("utf-8"))
    assert command == commands[1] and all(each.startswith("python3 -m venv .venv && ") for each in commands[:2])


def test_requirements_reach_down_to_the_set_that_recbole_pins() -> None:
    """What the extra pins is allowed by the requirements: nothing has to be replaced where that set is installed."""
    setup = (ROOT / "setup.py").read_text()
    listed, pinned = [
        {each.name: each for each in map(Requirement, re.findall(r'^ +"([a-z][^"]*)",', part, re.MULTILINE))}
        for part in (
            setup.partition("REQUIREMENTS = [")[2].partition("\n]")[0],
            setup.partition("RECBOLES_PINS = [")[2].partition("\n]")[0],
        )
    ]
    assert {"numpy", "pandas", "ray"} <= set(pinned)
    installed = {"ray": "2.6.3", "numpy": "1.26.4", "pandas": "2.3.3", "scipy": "1.12.0", "pyarrow": "17.0.0"}
    for name, allowed in installed.items():
        assert pinned[name].specifier.contains(allowed) and listed[name].specifier.contains(allowed), name
