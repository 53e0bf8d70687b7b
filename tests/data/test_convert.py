from __future__ import annotations

import shlex
import shutil

import numpy as np
import pandas as pd
import pytest
import yaml
from recbole.utils import get_model, get_trainer

from recbole_guider.cli.main import main, run_script
from recbole_guider.config.guider_config import GuiderConfig
from recbole_guider.data.convert import convert
from recbole_guider.data.dataset import build_dataset, prepare_data
from recbole_guider.utils.errors import GuiderError
from recbole_guider.utils.resources import dataset_configs_dir

SPLITS = ("train", "valid", "test")


@pytest.fixture
def table():
    """200 distinct pairs of 25 users and 30 items with split, rating and timestamp; every user trains."""
    rng = np.random.default_rng(0)
    cells = rng.permutation(25 * 30)[:200]
    split = rng.choice(SPLITS, 200, p=[0.8, 0.1, 0.1])
    frame = pd.DataFrame({"user": cells // 30, "item": cells % 30, "split": split})
    frame.loc[frame.groupby("user").head(1).index, "split"] = "train"
    frame["rating"] = rng.integers(1, 6, 200)
    frame["timestamp"] = 1_600_000_000 + rng.integers(0, 1000, 200)
    return frame


@pytest.fixture
def csv(tmp_path, table):
    """A csv source with an image for every item and a text for some (and for one item that nobody has)."""
    source = tmp_path / "source" / "shop"
    source.mkdir(parents=True)
    table.to_csv(source / "interactions.csv", index=False)
    rng = np.random.default_rng(1)
    np.save(source / "image_feat.npy", rng.normal(size=(33, 6)).astype(np.float16))
    np.save(source / "text_feat.npy", rng.normal(size=(4, 3)).astype(np.float32))
    (source / "text_ids.txt").write_text("7\n3\n500\n12\n")
    return source


@pytest.fixture
def mmrec(tmp_path, table):
    source = tmp_path / "source" / "baby"
    source.mkdir(parents=True)
    frame = table.rename(columns={"user": "userID", "item": "itemID"})
    frame["x_label"] = frame.pop("split").map(dict(zip(SPLITS, range(3), strict=True)))
    frame["u_degree"] = 1
    frame.to_csv(source / "baby.inter", sep="\t", index=False)
    np.save(source / "image_feat.npy", np.random.default_rng(2).normal(size=(30, 4)))
    np.save(source / "user_graph_dict.npy", np.array({"not": "content"}, dtype=object))
    return source


def load(file, **settings):
    settings = {"use_gpu": False, "show_progress": False, "checkpoint_dir": str(file.parent / "saved"), **settings}
    return GuiderConfig("BPR", file.stem, config_file_list=[str(file)], config_dict=settings, command_line=[])


def check_splits(dataset, table):
    """The three splits, back in the tokens of the source, hold exactly the source's rows."""
    for part, built in zip(SPLITS, dataset.build(), strict=True):
        inter = built.inter_feat
        rows = zip(
            dataset.id2token("user_id", inter["user_id"].numpy()),
            dataset.id2token("item_id", inter["item_id"].numpy()),
            inter["rating"].int().tolist(),
            inter["timestamp"].tolist(),
            strict=True,
        )
        expected = table[table["split"] == part]
        assert sorted((u, i, r) for u, i, r, _ in rows) == sorted(
            zip(expected["user"].astype(str), expected["item"].astype(str), expected["rating"], strict=True)
        )
    assert dataset.item_num == table["item"].nunique() + 1
    assert dataset.user_num == table["user"].nunique() + 1


def test_csv_round_trip(csv, table, tmp_path):
    file = convert(csv, tmp_path / "out", "csv")
    assert file == tmp_path / "out" / "shop.yaml" and file.read_text().startswith("# Data set shop")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["shop", "shop.yaml"]
    for name in ("image_feat.npy", "text_feat.npy", "text_ids.txt"):
        assert (file.parent / "shop" / name).read_bytes() == (csv / name).read_bytes()
    config = load(file, normalize_all=False)
    assert config["eval_mask"] == "mmrec" and config["valid_metric"].lower() == "recall@20"
    assert (config["topk"], config["stopping_step"]) == ([10, 20], 20)
    dataset = build_dataset(config)
    features = dataset.item_features
    image, text = np.load(csv / "image_feat.npy"), np.load(csv / "text_feat.npy")
    rows = dict(zip(["7", "3", "500", "12"], text, strict=True))
    for item, token in enumerate(dataset.field2id_token["item_id"][1:], start=1):
        assert (features["image"].values[item] == image[int(token)].astype(np.float32)).all()
        assert features["text"].present[item] == (token in rows)
        if token in rows:
            assert (features["text"].values[item] == rows[token]).all()
    check_splits(dataset, table)


def test_mmrec_round_trip(mmrec, table, tmp_path):
    file = convert(mmrec, tmp_path / "out", "mmrec", name="mine")
    config = load(file, normalize_all=False)
    assert list(config["modalities"]) == ["image"] and config["benchmark_filename"] == list(SPLITS)
    dataset = build_dataset(config)
    assert dataset.item_features["image"].values.shape == (table["item"].nunique() + 1, 4)
    check_splits(dataset, table)


def test_without_a_split_recbole_splits(csv, table, tmp_path):
    table[["user", "item"]].to_csv(csv / "interactions.csv", index=False)
    file = convert(csv, tmp_path / "out", "csv")
    assert (file.parent / "shop" / "shop.inter").is_file()
    config = load(file)
    assert config["benchmark_filename"] is None
    train, valid, test = prepare_data(config, build_dataset(config))
    assert len(train._dataset) + len(valid._dataset) + len(test._dataset) == 200 and len(train._dataset) > 120


def test_of_repeated_pairs_one_counts(csv, table, tmp_path, caplog):
    pd.concat([table[["user", "item"]]] * 2).to_csv(csv / "interactions.csv", index=False)
    file = convert(csv, tmp_path / "out", "csv")
    config = load(file)
    assert config["dataset"] == "shop" and config["rm_dup_inter"] == "first"
    loaders = prepare_data(config, build_dataset(config))
    assert sum(len(loader._dataset) for loader in loaders) == 200
    assert "training data as well" not in caplog.text
    config = load(file, rm_dup_inter=None)
    train, _, test = prepare_data(config, build_dataset(config))
    pairs = [
        set(zip(*(loader._dataset.inter_feat[name].tolist() for name in ("user_id", "item_id")), strict=True))
        for loader in (train, test)
    ]
    rows = zip(*(test._dataset.inter_feat[name].tolist() for name in ("user_id", "item_id")), strict=True)
    repeated = sum(row in pairs[0] for row in rows)
    assert repeated and f"{repeated} of {len(test._dataset)} test pairs are in the training data as well" in caplog.text


def test_recbole_trains_on_the_result_from_another_folder(csv, tmp_path, monkeypatch):
    """RecBole's own BPR for one epoch."""
    file = convert(csv, tmp_path / "out", "csv")
    monkeypatch.chdir(tmp_path)
    config = load(file, epochs=1)
    train, valid, test = prepare_data(config, build_dataset(config))
    trainer = get_trainer(config["MODEL_TYPE"], "BPR")(config, get_model("BPR")(config, train._dataset))
    trainer.fit(train, valid, saved=False, verbose=False)
    assert 0 < trainer.evaluate(test, load_best_model=False)["recall@20"] <= 1


def test_the_printed_command_runs_as_it_stands(csv, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["convert", "--from=csv", str(csv), "--to=x y", "--name=t t"]) == 0
    command = capsys.readouterr().out.splitlines()[-1].removeprefix("run it: ")
    assert f"# Run: {command}" in (tmp_path / "x y" / "t t.yaml").read_text().splitlines()
    script, *arguments = shlex.split(command)
    assert script == "run_recbole_guider.py"
    assert run_script([*arguments, "--model=BPR", "--epochs=1", "--state=ERROR", "--show_progress=False"]) == 0


def test_content_that_a_known_data_set_lacks_here_is_taken_out(mmrec, tmp_path):
    """dataset_configs/baby.yaml names image and text; this copy has images only."""
    file = convert(mmrec, tmp_path / "out", "mmrec")
    assert yaml.safe_load(file.read_text())["modalities"] == {"image": {"file": "image_feat.npy"}, "text": None}
    dataset = build_dataset(load(file))
    assert list(dataset.item_features) == ["image"]


def test_dataset_configs_have_the_keys_that_convert_writes(csv, tmp_path):
    written = yaml.safe_load(convert(csv, tmp_path / "out", "csv").read_text())
    files = sorted(dataset_configs_dir().glob("*.yaml"))
    names = {"baby", "citeulike", "clothing", "elec", "microlens", "ml-100k", "sports", "tiktok"}
    assert names <= {file.stem for file in files}
    for file in files:
        assert file.read_text().splitlines()[1].startswith("# "), "what and source; how to get to the files"
        content = yaml.safe_load(file.read_text())
        if file.stem == "ml-100k":
            assert set(content) == {"modalities"}
            continue
        content.pop("guider", None)  # settings that were chosen for the data set; they never turn GUIDER on
        assert set(content) == set(written) - {"dataset", "data_path", "load_col"}
        for key in set(content) - {"modalities"}:
            assert content[key] == written[key]


# --- mistakes ---


def rewrite(source, old, new):
    file = source / "interactions.csv"
    file.write_text(file.read_text().replace(old, new))


MISTAKES = {
    "no interactions": (lambda s: (s / "interactions.csv").unlink(), r"file .*interactions\.csv does not exist"),
    "no column": (lambda s: rewrite(s, "user,item", "person,item"), r"no column 'user'; it has person, item, split"),
    "split": (lambda s: rewrite(s, ",train,", ",training,"), r"line \d+: split 'training' is unknown; allowed: train"),
    "one split": (lambda s: rewrite(s, ",test,", ",valid,"), r"no row in the split 'test'"),
    "empty": (lambda s: (s / "interactions.csv").write_text("user,item\n"), "has no rows"),
    "not a table": (lambda s: (s / "interactions.csv").write_text(""), "cannot be read as a table"),
    "long rows": (
        lambda s: (s / "interactions.csv").write_text("user,item\n7,0,5\n8,1,3\n"),
        r"interactions\.csv, line 2 has 3 fields, but the header names 2 columns",
    ),
    "a long row": (
        lambda s: (s / "interactions.csv").write_text("user,item\n7,0\n8,1,3\n"), "line 3 has 3 fields, but the header"
    ),
    "commas at the ends": (
        lambda s: (s / "interactions.csv").write_text("user,item\n7,0,\n8,1,\n"), "line 2 has 3 fields, but the header"
    ),
    "two items": (
        lambda s: rewrite(s, "timestamp\n", "item_id\n"),
        r"interactions\.csv has a column 'item', which is read, and a column 'item_id'; remove that one",
    ),
    "a column twice": (lambda s: rewrite(s, "timestamp\n", "rating\n"), "more than one column 'rating'"),
    "token": (lambda s: rewrite(s, "timestamp\n", "timestamp\n,3,train,1,1\n"), "line 2: user_id '' cannot be a token"),
    "missing word": (lambda s: rewrite(s, "timestamp\n", "timestamp\n1,NA,train,1,1\n"), "'NA' cannot be a token"),
    "number": (lambda s: rewrite(s, "timestamp\n", "timestamp\n1,3,train,x,1\n"), "line 2: rating 'x' is not a finite"),
    "after blank lines": (
        lambda s: rewrite(s, "timestamp\n", "timestamp\n\n  \n1,3,train,x,1\n"), "line 4: rating 'x' is not a finite"
    ),
    "infinite": (
        lambda s: rewrite(s, "timestamp\n", "timestamp\n1,3,train,inf,1\n"), "line 2: rating 'inf' is not a finite"
    ),
    "flat": (lambda s: np.save(s / "image_feat.npy", np.ones(33)), r"'image': .* has shape \[33\]; expected"),
    "short": (lambda s: np.save(s / "image_feat.npy", np.ones((9, 2))), r"has 9 rows, but item token 29 needs"),
    "ids": (lambda s: (s / "text_ids.txt").write_text("1\n2\n"), r"text_ids\.txt has 2 lines, but .* 4 rows"),
    "encoding": (
        lambda s: (s / "text_ids.txt").write_bytes("é\n2\n3\n4\n".encode("latin-1")), r"text_ids\.txt is not UTF-8 text"
    ),
    "NaN": (
        lambda s: np.save(s / "image_feat.npy", np.where(np.arange(33)[:, None] == 7, np.nan, 1.0)),
        "modality 'image' holds NaN or infinite values .* first in the row of item '7'",
    ),
    "too large": (
        lambda s: np.save(s / "text_feat.npy", np.array([[1.0], [1.0], [1.0], [1e300]])),
        "modality 'text' holds NaN or infinite values .* first in the row of item '12'",
    ),
    "behaviour": (
        lambda s: shutil.copy(s / "image_feat.npy", s / "behaviour_feat.npy"), "a modality cannot be called 'behaviour'"
    ),
    "strangers": (lambda s: (s / "text_ids.txt").write_text("w\nx\ny\nz\n"), "no token of .*text_ids.txt is an item"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_named_and_leave_nothing_behind(csv, tmp_path, mistake):
    make, message = MISTAKES[mistake]
    make(csv)
    with pytest.raises(GuiderError, match=message):
        convert(csv, tmp_path / "out", "csv")
    assert not (tmp_path / "out").exists()


def test_a_bad_row_of_an_item_that_nobody_has_does_no_harm(csv, tmp_path):
    np.save(csv / "text_feat.npy", np.array([[1.0], [1.0], [np.nan], [1.0]]))  # the third is of item 500
    features = build_dataset(load(convert(csv, tmp_path / "out", "csv"))).item_features
    assert np.isfinite(features["text"].values).all()


def test_mmrec_mistakes(mmrec, tmp_path):
    file = mmrec / "baby.inter"
    text = file.read_text()
    file.write_text(text.replace("x_label", "label"))
    with pytest.raises(GuiderError, match="no column 'x_label'"):
        convert(mmrec, tmp_path / "out", "mmrec")
    frame = pd.read_csv(mmrec / "baby.inter", sep="\t").rename(columns={"label": "x_label"})
    frame.loc[4, "x_label"] = 3
    frame.to_csv(file, sep="\t", index=False)
    with pytest.raises(GuiderError, match="line 6: x_label '3' is unknown"):
        convert(mmrec, tmp_path / "out", "mmrec")
    (mmrec / "other.inter").write_text("")
    with pytest.raises(GuiderError, match=r"exactly one \.inter file; found: baby\.inter, other\.inter"):
        convert(mmrec, tmp_path / "out", "mmrec")


def test_targets_and_names(csv, tmp_path):
    out = tmp_path / "out"
    convert(csv, out, "csv")
    with pytest.raises(GuiderError, match=r"out/shop already exists"):
        convert(csv, out, "csv")
    for to in (out / "shop.yaml", out / "shop.yaml" / "further"):
        with pytest.raises(GuiderError, match=r"--to is .*out/shop\.yaml is a file, and must be a folder"):
            convert(csv, to, "csv")
    shutil.rmtree(out / "shop")
    with pytest.raises(GuiderError, match=r"out/shop\.yaml already exists"):
        convert(csv, out, "csv")
    for arguments, message in [
        ((csv, out, "tsv"), "'tsv' does not exist; allowed: csv, mmrec"),
        ((csv / "none", out, "csv"), "is not a folder"),
        ((csv, out, "csv", "a/b"), "'a/b' cannot name a data set"),
        ((csv, out, "csv", "ml-100k"), "belongs to the data set inside RecBole"),
    ]:
        with pytest.raises(GuiderError, match=message):
            convert(*arguments)


def test_a_failure_while_writing_leaves_nothing_behind(csv, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("shutil.copyfile", fail)
    with pytest.raises(OSError, match="disk full"):
        convert(csv, tmp_path / "out", "csv")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_small_catalogue_is_measured_by_shorter_lists(csv, tmp_path):
    table = pd.read_csv(csv / "interactions.csv")
    few = table["item"].unique()[:6]
    table[table["item"].isin(few)].drop(columns="split").to_csv(csv / "interactions.csv", index=False)
    for file in csv.glob("*_feat.npy"):
        file.unlink()
    settings = yaml.safe_load(convert(csv, tmp_path / "out", "csv").read_text())
    assert (settings["topk"], settings["valid_metric"]) == ([6], "Recall@6")


def test_a_feature_file_needs_the_name_of_its_modality(csv, tmp_path):
    np.save(csv / "_feat.npy", np.zeros((3, 1)))
    with pytest.raises(GuiderError, match="_feat.npy has no modality in its name"):
        convert(csv, tmp_path / "out", "csv")
