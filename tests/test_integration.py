"""RecBole's own functions accept this package's models and blocks, and are RecBole's own for everything else."""

from __future__ import annotations

import copy
import inspect
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from ray import cloudpickle
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.data.dataset import Dataset
from recbole.model.general_recommender import BPR, LightGCN
from recbole.quick_start import load_data_and_model, objective_function, run_recbole
from recbole.trainer import Trainer
from recbole.utils import get_model, get_trainer, init_seed
from recbole.utils.case_study import full_sort_scores, full_sort_topk

from recbole_guider import run_recbole_guider
from recbole_guider.config.guider_config import GuiderConfig
from recbole_guider.data.dataset import GuiderDataset
from recbole_guider.guider.model import Guider
from recbole_guider.models.freedom import FREEDOM
from recbole_guider.training.loop import Training
from recbole_guider.training.trainer import GuiderTraining
from recbole_guider.utils.errors import GuiderError

pytestmark = pytest.mark.slow

QUICK = {"calibration": {"learned": False, "anchors": 8}}


@pytest.mark.parametrize("model", ["FREEDOM", "GUIDER_FREEDOM", "GUIDER_LightGCN", "GUIDER_NeuMF"])
def test_run_recbole_is_our_run(model: str, toy: dict[str, Any]) -> None:
    settings = dict(toy)
    if model.startswith("GUIDER"):
        settings["guider"] = QUICK
    theirs = run_recbole(model, "toy", config_dict=settings)
    ours = run_recbole_guider(model, "toy", config_dict=settings)
    for key in ("best_valid_score", "best_valid_result", "test_result"):
        assert theirs[key] == ours[key]


def test_run_recbole_takes_a_block_in_a_file(toy: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump({**toy, "guider": QUICK}))
    theirs = run_recbole("BPR", "toy", config_file_list=[str(file)])
    assert theirs["test_result"] == run_recbole_guider("GUIDER_BPR", "toy", [str(file)])["test_result"]
    assert any(path.name.startswith("GUIDER_BPR") for path in Path("saved").iterdir())


@pytest.mark.parametrize(
    "block",
    [
        {"denoising": "bod"}, {"mirror_gradient": {"interval": 1, "beta": 0.5}}, {"noise": {"interactions": 0.5}},
        {"eval_mask": "mmrec"},
    ],
    ids=str,
)
def test_run_recbole_and_trials_apply_blocks_that_names_do_not_say(block: dict[str, Any], toy: dict[str, Any]) -> None:
    settings = {**toy, **block}
    ours = run_recbole_guider("BPR", "toy", config_dict=settings)
    plain = run_recbole_guider("BPR", "toy", config_dict=toy)
    theirs = run_recbole("BPR", "toy", config_dict=settings)
    trial = objective_function({**settings, "model": "BPR", "dataset": "toy"})
    for key in ("best_valid_score", "best_valid_result", "test_result"):
        assert theirs[key] == trial[key] == ours[key]
    assert ours["best_valid_score"] != plain["best_valid_score"] or ours["test_result"] != plain["test_result"]
    config, model, *_ = load_data_and_model(theirs["model_file"])
    assert type(model) is config.model_class and type(create_dataset(config)) is GuiderDataset


def test_a_wrong_block_is_refused_by_recboles_functions(toy: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    for model in ("BPR", "FREEDOM"):
        with pytest.raises(GuiderError, match="denoising.method is 'bot', which does not exist; did you mean bod?"):
            run_recbole(model, "toy", config_dict={**toy, "denoising": "bot"})
    with pytest.raises(GuiderError, match="mirror_gradient is 3: "):
        run_recbole("BPR", "toy", config_dict={**toy, "mirror_gradient": 3})
    monkeypatch.setattr("sys.argv", ["script.py", "--denoising=t-bpr"])
    with pytest.raises(GuiderError, match="denoising is t-bpr and the guider block is on"):
        run_recbole("GUIDER_BPR", "toy", config_dict=toy)


def test_a_script_is_refused_where_a_name_does_not_say_what_to_train(toy: dict[str, Any]) -> None:
    for model in ("BPR", "FREEDOM"):
        with pytest.raises(GuiderError, match="denoising is bod, .* train with run_recbole"):
            Config(model, "toy", config_dict={**toy, "denoising": "bod"})
    with pytest.raises(GuiderError, match="mirror_gradient is set, which for BPR .* train with run_recbole"):
        Config("BPR", "toy", config_dict={**toy, "mirror_gradient": True})
    for model in ("FREEDOM", "GUIDER_BPR"):
        assert type(Config(model, "toy", config_dict={**toy, "mirror_gradient": True})) is GuiderConfig
    for off in ({"denoising": "none"}, {"denoising": False}, {"mirror_gradient": None}):
        assert type(Config("BPR", "toy", config_dict={**toy, **off})) is Config


def test_a_script_is_refused_in_several_processes(toy: dict[str, Any]) -> None:
    processes = {"local_rank": 0, "world_size": 2, "nproc": 2, "ip": "localhost", "port": 1, "offset": 0}
    with pytest.raises(GuiderError, match="FREEDOM would not train as in one process: start several with recbole-guid"):
        Config("FREEDOM", "toy", config_dict={**toy, **processes})


def test_a_script_of_recboles_functions(toy: dict[str, Any]) -> None:
    config = Config(model="GUIDER_FREEDOM", dataset="toy", config_dict={**toy, "guider": QUICK})
    assert type(config) is GuiderConfig
    dataset = create_dataset(config)
    assert isinstance(dataset, GuiderDataset)
    train, valid, test = data_preparation(config, dataset)
    model = get_model(config["model"])(config, train.dataset).to(config["device"])
    assert isinstance(model, Guider) and isinstance(model.student, FREEDOM)
    trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, model)
    assert isinstance(trainer, GuiderTraining)
    trainer.fit(train, valid)
    result = trainer.evaluate(test)

    config, model, _, _, _, test = load_data_and_model(trainer.saved_model_file)
    assert config["model"] == "GUIDER_FREEDOM"
    users = [3, 1, 7]
    scores, items = full_sort_topk(users, model, test, k=5)
    whole = full_sort_scores(users, model, test)
    assert scores.shape == items.shape == (3, 5) and torch.equal(whole.gather(1, items), scores)
    history = test.uid2history_item[users]
    for row, seen in zip(items.tolist(), history, strict=True):
        assert 0 not in row and not set(row) & set(seen.tolist())
    assert set(result) == {"recall@5", "ndcg@5"}


def test_plain_models_of_this_package_keep_plain_checkpoints() -> None:
    trainer = get_trainer(FREEDOM.type, "FREEDOM")
    assert issubclass(trainer, Training) and get_model("FREEDOM") is FREEDOM


def test_objective_function_runs_a_trial(toy: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump({**toy, "model": "GUIDER_BPR", "dataset": "toy", "guider": QUICK}))
    result = objective_function({"learning_rate": 0.02}, [str(file)])
    assert result["model"] == "GUIDER_BPR" and result["best_valid_score"] == result["best_valid_result"]["recall@5"]


def test_a_function_that_is_sent_to_another_process_is_ours_there(toy: dict[str, Any], tmp_path: Path) -> None:
    settings = {**toy, "epochs": 1, "model": "BPR", "dataset": "toy", "guider": QUICK}
    # as ray.tune.with_parameters keeps it: in a function of its own
    sent = cloudpickle.dumps(lambda: (objective_function(settings), load_data_and_model.__module__))
    (tmp_path / "sent").write_bytes(sent)
    program = """
import pickle
result, module = pickle.load(open("sent", "rb"))()
print(result["model"], module)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split()[-2:] == ["GUIDER_BPR", "recbole_guider.integration.hooks"]


def test_a_key_twice_in_a_file_is_refused_in_our_runs_only(toy: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(f"epochs: 1\nepochs: 2\ndata_path: {toy['data_path']}\n")
    assert type(Config("BPR", "toy", [str(file)])) is Config
    with pytest.raises(GuiderError, match="line 2 .* the key 'epochs' is here a second time, after line 1"):
        Config("GUIDER_BPR", "toy", [str(file)])


@pytest.mark.parametrize("extra", [{}, {"guider": False}, {"guider": None}])
def test_recboles_own_models_are_bit_for_bit_as_before(extra: dict[str, Any], toy: dict[str, Any]) -> None:
    settings = {key: value for key, value in toy.items() if key != "modalities"} | extra
    config = Config("LightGCN", "toy", config_dict=settings)
    assert type(config) is Config
    dataset = create_dataset(config)
    assert type(dataset) is Dataset
    assert get_model("LightGCN") is LightGCN and get_trainer(LightGCN.type, "LightGCN") is Trainer
    ours = run_recbole("LightGCN", "toy", config_dict=settings, saved=False)

    # the same with what RecBole had before
    create, prepare, model_of, trainer_of = map(
        inspect.unwrap, (create_dataset, data_preparation, get_model, get_trainer)
    )
    assert all(function.__module__.startswith("recbole.") for function in (create, prepare, model_of, trainer_of))
    init_seed(config["seed"], config["reproducibility"])
    train, valid, test = prepare(config, create(config))
    init_seed(config["seed"], config["reproducibility"])
    trainer = trainer_of(LightGCN.type, "LightGCN")(config, model_of("LightGCN")(config, train.dataset))
    score, result = trainer.fit(train, valid, saved=False)
    assert (ours["best_valid_score"], ours["best_valid_result"]) == (score, result)
    assert ours["test_result"] == trainer.evaluate(test, load_best_model=False)


def test_recboles_checkpoints_are_recboles(toy: dict[str, Any]) -> None:
    run_recbole("BPR", "toy", config_dict={key: value for key, value in toy.items() if key != "modalities"})
    (file,) = Path("saved").iterdir()
    config, model, *_ = load_data_and_model(str(file))
    assert type(config) is Config and type(model) is BPR


@pytest.mark.parametrize("model", ["BPR", "GUIDER_BPR"])
def test_a_checkpoint_comes_with_the_whole_data_set(model: str, toy: dict[str, Any]) -> None:
    settings = {**toy, "epochs": 1, "guider": QUICK if model.startswith("GUIDER") else False}
    run_recbole(model, "toy", config_dict=settings)
    (file,) = (path for path in Path("saved").iterdir() if not path.name.endswith(".last.pth"))
    config, _, dataset, train, _, _ = load_data_and_model(str(file))
    assert pairs_of(dataset) == pairs_of(create_dataset(config))  # RecBole's third value
    assert pairs_of(train.dataset) < pairs_of(dataset)


def pairs_of(dataset: Any) -> set[tuple[int, int]]:
    return set(zip(*(dataset.inter_feat[field].tolist() for field in ("user_id", "item_id")), strict=True))


def test_a_checkpoint_of_benchmark_files_comes_with_all_of_them(
    toy: dict[str, Any], toy_folder: Path, tmp_path: Path
) -> None:
    head, *lines = (toy_folder / "toy" / "toy.inter").read_text().splitlines()
    (tmp_path / "parts").mkdir()
    for number, part in enumerate(("train", "valid", "test")):
        (tmp_path / "parts" / f"parts.{part}.inter").write_text("\n".join([head, *lines[number::3]]) + "\n")
    changes = {"data_path": str(tmp_path), "benchmark_filename": ["train", "valid", "test"], "modalities": {}}
    result = run_recbole_guider("BPR", "parts", config_dict={**toy, **changes, "epochs": 1})
    _, _, dataset, train, *_ = load_data_and_model(result["model_file"])
    assert dataset.inter_num == len(lines) and train.dataset.inter_num == len(lines[0::3])


def test_configurations_are_copied_as_what_they_are(toy: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    config = Config("BPR", "toy", config_dict=toy)
    monkeypatch.setattr("sys.argv", ["script.py", "--model=GUIDER_BPR"])
    for made in (copy.copy(config), copy.deepcopy(config), pickle.loads(pickle.dumps(config))):
        assert type(made) is Config and made["model"] == "BPR"


def test_the_command_line_asks_for_us_too(toy: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["script.py", "--guider.dbpr.eta=0.2"])
    config = Config("BPR", "toy", config_dict=toy)
    assert config["model"] == "GUIDER_BPR" and config.guider_settings.dbpr.eta == 0.2
    monkeypatch.setattr("sys.argv", ["script.py", "--guider=false"])
    assert type(Config("BPR", "toy", config_dict=toy)) is Config


def test_what_cannot_be_read_is_left_to_recbole(toy: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "tagged.yaml"
    file.write_text("topk: !!python/tuple [5]\n")  # RecBole's loader reads it, ours does not
    assert type(Config("BPR", "toy", config_file_list=[str(file)], config_dict=toy)) is Config
    with pytest.raises(FileNotFoundError):
        Config("BPR", "toy", config_file_list=["nowhere.yaml"], config_dict=toy)


@pytest.mark.parametrize("first", ["import recbole_guider", "import recbole.quick_start, recbole.trainer"])
def test_the_order_of_imports_does_not_matter(first: str, toy: dict[str, Any]) -> None:
    settings = {**toy, "epochs": 1, "guider": QUICK}
    program = f"""
{first}
import recbole_guider
from recbole.quick_start import run_recbole
print(run_recbole("GUIDER_BPR", "toy", config_dict={settings!r})["test_result"]["recall@5"])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert np.isfinite(float(done.stdout.split()[-1]))


def test_only_recboles_modules_change() -> None:
    """A name that a script took before it imported this package stays RecBole's; in RecBole's modules it is ours."""
    program = """
import inspect
import sys

from recbole.data import create_dataset, data_preparation
from recbole.quick_start import load_data_and_model, objective_function, run_recbole
from recbole.utils import get_model, get_trainer
theirs = dict(globals())
import recbole_guider
from recbole_guider.integration import hooks

for module, names in hooks.PLACES.items():
    for name in names:
        ours = vars(sys.modules[module])[name]
        assert ours is vars(hooks)[name] and inspect.unwrap(ours) is inspect.unwrap(theirs[name]), (module, name)
        assert globals()[name] is theirs[name]
print(sys.modules["recbole.utils"].get_model("GUIDER_BPR").__name__)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split()[-1] == "Guider"


def test_an_import_does_not_hide_what_a_name_does_not_say(toy: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "nothing_special.py").write_text("")
    settings = {**toy, "import": str(tmp_path / "nothing_special.py")}
    try:
        with pytest.raises(GuiderError, match="denoising is t-ce, which does not follow from the name of a model"):
            Config("BPR", "toy", config_dict={**settings, "denoising": "t-ce"})
        with pytest.raises(GuiderError, match="mirror_gradient is set, which for BPR does not follow"):
            Config("GUIDER_BPR", "toy", config_dict={**settings, "guider": False, "mirror_gradient": True})
        assert Config("FREEDOM", "toy", config_dict={**settings, "mirror_gradient": True})["model"] == "FREEDOM"
    finally:
        sys.modules.pop("nothing_special", None)
