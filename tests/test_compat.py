"""The shims, on real RecBole: the same numbers with every supported set of releases."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.data.dataset import Dataset
from recbole.evaluator import metric_types
from recbole.quick_start import load_data_and_model
from recbole.trainer import Trainer
from recbole.utils import EvaluatorType, get_model, init_seed
from scipy.sparse import dok_matrix

from recbole_guider.utils import compat

# item, its words, its vector, its price and its brand; empty is missing
ITEMS = [
    ("a", "red hat", "1.0 2.0", 10.0, "x"),
    ("b", "", "", None, "y"),
    ("c", "hat", "4.0", 30.0, ""),
    ("d", "blue red hat", "0.5 1.5", None, "x"),
    *((item, "hat", "1.0", 20.0, "y") for item in "efghij"),
]
# every user has 7 of the 10 items
PAIRS = [(user, item) for u, user in enumerate("mnopq") for i, item in enumerate("abcdefghij") if (i - 2 * u) % 10 < 7]


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """RecBole's own Config, on data with missing values."""
    monkeypatch.setattr(sys, "argv", ["test"])
    folder = tmp_path / "toy"
    folder.mkdir()
    lines = ["user_id:token\titem_id:token\trating:float"]
    lines += [f"{user}\t{item}\t{'' if row % 5 == 0 else row % 3}" for row, (user, item) in enumerate(PAIRS)]
    (folder / "toy.inter").write_text("\n".join(lines) + "\n")
    lines = ["item_id:token\twords:token_seq\tvector:float_seq\tprice:float\tbrand:token"]
    lines += ["\t".join("" if value is None else str(value) for value in row) for row in ITEMS]
    (folder / "toy.item").write_text("\n".join(lines) + "\n")

    def make(model: str = "BPR", **settings) -> Config:
        columns = {"inter": ["user_id", "item_id", "rating"], "item": ["item_id", "words", "vector", "price", "brand"]}
        return Config(
            model=model,
            dataset="toy",
            config_dict={
                "data_path": str(tmp_path),
                "checkpoint_dir": str(tmp_path / "saved"),
                "load_col": columns,
                "normalize_all": False,
                "state": "ERROR",
                "epochs": 1,
                **settings,
            },
        )

    return make


def test_missing_values_are_filled_as_recbole_means_it(config):
    dataset = create_dataset(config())
    dataset.build()
    items = dataset.item_feat
    tokens = dataset.id2token("item_id", np.arange(dataset.item_num))
    expected = {row[0]: row for row in ITEMS}
    mean_price = 20.0  # of 10, 30 and some 20
    words = dataset.field2token_id["words"]
    for row, token in enumerate(tokens):
        _, text, vector, price, brand = expected.get(token, (None, "", "", None, ""))
        assert items["price"][row].item() == (mean_price if price is None else price), token
        ids = [words[word] for word in text.split()]
        assert items["words"][row].tolist() == ids + [0] * (3 - len(ids))
        values = [float(value) for value in vector.split()]
        assert items["vector"][row].tolist() == values + [0.0] * (2 - len(values))
        assert (items["brand"][row].item() == 0) == (brand == "")
    rating = dataset.inter_feat["rating"]
    given = [row % 3 for row in range(len(PAIRS)) if row % 5]
    assert sorted(rating.tolist()) == pytest.approx(sorted(given + [np.mean(given)] * (len(PAIRS) - len(given))))
    for feat in (items, dataset.inter_feat):
        assert not any(torch.isnan(values.float()).any() for values in feat.interaction.values())


def test_sequences_are_normalised_together(config):
    dataset = create_dataset(config(normalize_all=True))
    dataset.build()
    row = dataset.token2id("item_id", "a")
    # over the entries of all items, 0.5 to 4
    assert dataset.item_feat["vector"][row].tolist() == pytest.approx([0.5 / 3.5, 1.5 / 3.5])


def test_loading_says_nothing_and_leaves_pandas_alone(config):
    before = pd.Series.agg
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        warnings.simplefilter("error", UserWarning)
        if hasattr(pd.errors, "ChainedAssignmentError"):
            warnings.simplefilter("error", pd.errors.ChainedAssignmentError)
        warnings.filterwarnings("error", "The inplace keyword")
        warnings.filterwarnings("error", "__array_wrap__")
        data_preparation(config(), create_dataset(config()))
    assert pd.Series.agg is before


def test_ml_100k_is_the_same_with_all_releases(monkeypatch):
    # sums over RecBole's tensors, seen with numpy 1.26, pandas 2.3 and with numpy 2.4, pandas 3.1
    monkeypatch.setattr(sys, "argv", ["test"])
    columns = {
        "inter": ["user_id", "item_id", "rating", "timestamp"],
        "item": ["item_id", "movie_title", "release_year", "class"],
    }
    settings = {"load_col": columns, "normalize_all": True, "state": "ERROR"}
    config = Config(model="BPR", dataset="ml-100k", config_dict=settings)
    init_seed(2020, True)
    dataset = create_dataset(config)
    dataset.build()
    items = dataset.item_feat
    assert items["movie_title"].shape == (1683, 15) and items["class"].shape == (1683, 6)
    sums = {field: items[field].sum().item() for field in ("movie_title", "release_year", "class")}
    assert sums == {"movie_title": 4547645, "release_year": 26707, "class": 20102}
    assert all(int(items[field][0].sum()) == 0 for field in sums)


def test_numpy_has_the_names_and_keeps_its_own():
    assert np.float is np.float64 and np.float_ is np.float64 and np.unicode_ is np.str_
    assert np.zeros(2, dtype=np.bool).dtype == bool
    marker, before = object(), np.float
    try:
        np.float = marker
        compat.numpy_aliases(sys.modules["recbole"])
        assert np.float is marker
    finally:
        np.float = before


def test_dok_matrix_is_filled_from_a_dict():
    matrix = dok_matrix((2, 3), dtype=np.float32)
    matrix._update({(0, 1): 2.0, (1, 2): 3.0})
    assert matrix.toarray().tolist() == [[0, 2, 0], [0, 0, 3]]


@pytest.mark.parametrize("model", ["LightGCN", "NGCF", "GCMC", "SpectralCF", "SGL", "DGCF"])
def test_graph_models_of_recbole_can_be_made_and_trained(config, model):
    settings = config(model, train_batch_size=8)
    init_seed(2020, True)
    train, _, _ = data_preparation(settings, create_dataset(settings))
    instance = get_model(model)(settings, train.dataset)
    instance.train()
    loss = instance.calculate_loss(next(iter(train)))
    total = sum(loss) if isinstance(loss, tuple) else loss
    assert torch.isfinite(total)
    total.backward()


class _ForeignTrainer(Trainer):
    """A trainer that is not RecBole's."""


def test_recbole_reads_its_own_checkpoints_and_others_do_not(config, tmp_path):
    settings = config()
    init_seed(2020, True)
    train, valid, test = data_preparation(settings, create_dataset(settings))
    model = get_model("BPR")(settings, train.dataset)
    trainer = Trainer(settings, model)
    trainer.fit(train, valid, saved=True, show_progress=False, verbose=False)
    result = trainer.evaluate(test, load_best_model=True)
    file = trainer.saved_model_file
    _, loaded, _, _, _, loaded_test = load_data_and_model(file)
    assert Trainer(settings, loaded).evaluate(loaded_test, load_best_model=False) == result
    again = Trainer(settings, get_model("BPR")(settings, train.dataset))
    again.resume_checkpoint(file)
    assert again.start_epoch == 1
    # a pickle is code: nobody else reads one unasked
    with pytest.raises(pickle.UnpicklingError):
        torch.load(file)
    with pytest.raises(pickle.UnpicklingError):
        _ForeignTrainer(settings, model).evaluate(test, load_best_model=True, model_file=file)
    with pytest.raises(pickle.UnpicklingError):
        _ForeignTrainer(settings, model).resume_checkpoint(file)


def test_training_does_not_warn_of_torch(config):
    settings = config()
    train, valid, _ = data_preparation(settings, create_dataset(settings))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*torch.cuda.amp.*")
        Trainer(settings, get_model("BPR")(settings, train.dataset)).fit(
            train, valid, saved=False, show_progress=False, verbose=False
        )


def test_every_metric_of_a_ranking_can_be_evaluated(config):
    ranking = [name for name, kind in metric_types.items() if kind == EvaluatorType.RANKING and name != "gauc"]
    settings = config(metrics=ranking, topk=[3], valid_metric="Recall@3")
    init_seed(settings["seed"], True)
    train, valid, test = data_preparation(settings, create_dataset(settings))
    trainer = Trainer(settings, get_model("BPR")(settings, train.dataset))
    trainer.fit(train, valid, saved=False, verbose=False)
    results = trainer.evaluate(test, load_best_model=False)
    assert set(results) == {f"{name}@3" for name in ranking}
    # counted again, from the lists themselves; RecBole counts its padding as an item
    recommended = set()
    for batch, (_, history, _, _) in zip(test, test, strict=True):
        scores = trainer.model.full_sort_predict(batch[0]).view(-1, test._dataset.item_num)
        scores[:, 0] = -torch.inf
        scores[history] = -torch.inf
        recommended |= set(scores.topk(3).indices.flatten().tolist())
    assert results["itemcoverage@3"] == pytest.approx(len(recommended) / test._dataset.item_num, abs=1e-4)


def test_applying_again_changes_nothing():
    import recbole.trainer.trainer as trainer_module

    before = [list(sys.meta_path), Dataset._fill_nan, Dataset._from_scratch, Trainer.evaluate, trainer_module.amp]
    compat.apply()
    after = [list(sys.meta_path), Dataset._fill_nan, Dataset._from_scratch, Trainer.evaluate, trainer_module.amp]
    assert before == after
    assert not hasattr(Dataset._fill_nan.__wrapped__, "__wrapped__")


def _run(code: str) -> None:
    """In a new interpreter, which finds the package that is under test."""
    environment = {**os.environ, "PYTHONPATH": str(Path(compat.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("order", ["recbole_guider, recbole.data.dataset", "recbole.data.dataset, recbole_guider"])
def test_the_shims_arrive_whichever_is_imported_first(order):
    code = (
        f"import {order}, sys; from recbole.data.dataset import Dataset, SequentialDataset; import numpy;"
        "assert hasattr(Dataset._fill_nan, '__wrapped__');"
        "assert SequentialDataset._fill_nan is Dataset._fill_nan; numpy.float_"
    )
    _run(code)


def test_importing_the_package_does_not_import_recbole():
    code = "import recbole_guider, sys; assert not {'recbole', 'torch', 'ray', 'pandas'} & set(sys.modules)"
    _run(code)


@pytest.mark.slow
def test_graph_models_are_made_without_a_warning_of_torch(toy: dict) -> None:
    """Also where torch has removed the constructor that it warns of."""
    program = f"""
import sys, torch, warnings
if len(sys.argv) > 1:
    del torch.sparse.FloatTensor
import recbole_guider
from recbole.quick_start import run_recbole
settings = {toy!r}
sys.argv = sys.argv[:1]
with warnings.catch_warnings(record=True) as told:
    run_recbole("NGCF", "toy", config_dict={{**settings, "epochs": 0, "node_dropout": 0.1}})
print([str(each.message) for each in told if "sparse" in str(each.message)])
"""
    for arguments in ([], ["removed"]):
        done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[-1] == "[]"
