"""``recbole-guider noise``: the copy on disk gives a run the data that the noise block gives in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from recbole.utils import init_seed

from recbole_guider.cli.main import COMMANDS, main
from recbole_guider.config.guider_config import GuiderConfig
from recbole_guider.data.dataset import build_dataset

NOISE = {"interactions": 0.3, "items": "uniform", "deleted": 0.2, "features": {"image": 0.5}, "gaussian": 0.25}


@pytest.fixture
def source(folder: Path, tmp_path: Path) -> Path:
    """A property file of the small data set with two modalities, ratings and an .item file."""
    rng = np.random.default_rng(1)
    np.save(folder / "image.npy", rng.normal(size=(20, 3)).astype(np.float32))
    np.save(folder / "text.npy", rng.normal(size=(15, 2)).astype(np.float32))
    (folder / "text_ids.txt").write_text("\n".join(map(str, range(15))) + "\n")
    rows = [f"{item}\t{item % 3}" for item in range(25)]  # five of them unknown to the interactions
    (folder / "toy.item").write_text("item_id:token\tclass:token\n" + "\n".join(rows) + "\n")
    settings = {
        "data_path": str(tmp_path), "load_col": {"inter": ["user_id", "item_id", "rating"]},
        "modalities": {"image": {"file": "image.npy"}, "text": {"file": "text.npy", "ids": "text_ids.txt"}},
        "eval_args": {"split": {"RS": [0.6, 0.2, 0.2]}, "order": "RO", "group_by": "user", "mode": "full"},
        "use_gpu": False, "metrics": ["Recall"], "topk": [5], "valid_metric": "Recall@5",
    }
    file = tmp_path / "source.yaml"
    file.write_text(yaml.safe_dump(settings))
    return file


def splits_of(dataset: str, file: Path, **settings: Any) -> tuple[list[Any], list[list[tuple[str, str, float]]]]:
    config = GuiderConfig("BPR", dataset, [file], settings, command_line=[])
    init_seed(config["seed"], True)
    parts = build_dataset(config).build()
    return parts, [
        [
            (part.id2token("user_id", int(u)), part.id2token("item_id", int(i)), round(float(r), 5))
            for u, i, r in zip(
                part.inter_feat["user_id"], part.inter_feat["item_id"], part.inter_feat["rating"], strict=True
            )
        ]
        for part in parts
    ]


def test_the_copy_is_the_data_set_with_the_noise_in_memory(source: Path, tmp_path: Path) -> None:
    arguments = [
        "noise", "--dataset=toy", f"--config_files={source}", f"--to={tmp_path / 'copies'}", "--noise.interactions=0.3",
        "--noise.items=uniform", "--noise.deleted=0.2", "--noise.features.image=0.5", "--noise.gaussian=0.25",
    ]
    assert main(arguments) == 0
    file = tmp_path / "copies" / "toy-noisy.yaml"
    memory, in_memory = splits_of("toy", source, noise=NOISE)
    copy, copied = splits_of("toy-noisy", file)
    clean, untouched = splits_of("toy", source)
    for ours, theirs in zip(copied, in_memory, strict=True):
        assert sorted(ours) == sorted(theirs)
    assert copied[1:] == untouched[1:]  # validation and test are not touched
    count = len(untouched[0])
    assert len(copied[0]) == count + round(0.3 * count) - round(0.2 * count)

    injected = {pair[:2] for pair, noise in zip(copied[0], copy[0].is_injected, strict=True) if noise}
    assert injected == {pair[:2] for pair, noise in zip(in_memory[0], memory[0].is_injected, strict=True) if noise}
    assert injected == {pair[:2] for pair in copied[0]} - {pair[:2] for pair in untouched[0]}
    assert not injected & {pair[:2] for part in untouched for pair in part}
    deleted = (tmp_path / "copies" / "toy-noisy" / "toy-noisy.deleted.inter").read_text().splitlines()[1:]
    assert {tuple(line.split("\t")) for line in deleted} == {p[:2] for p in untouched[0]} - {p[:2] for p in copied[0]}

    for name, feature in copy[0].item_features.items():
        other = memory[0].item_features[name]
        for item in range(1, copy[0].item_num):
            there = memory[0].token2id("item_id", copy[0].id2token("item_id", item))
            assert feature.present[item] == other.present[there]
            np.testing.assert_array_equal(feature.values[item], other.values[there])
        assert (other.values != clean[0].item_features[name].values).any()


def test_the_same_command_writes_the_same_files(source: Path, tmp_path: Path) -> None:
    for folder in ("one", "two"):
        assert main(["noise", "--dataset=toy", f"--config_files={source}", f"--to={tmp_path / folder}",
                     "--name=n", "--noise.interactions=0.2"]) == 0
    files = sorted(path.name for path in (tmp_path / "one" / "n").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "two" / "n").iterdir())
    for name in files:
        assert (tmp_path / "one" / "n" / name).read_bytes() == (tmp_path / "two" / "n" / name).read_bytes()


def test_tables_of_the_source_come_along_without_unknown_items(source: Path, tmp_path: Path) -> None:
    settings = yaml.safe_load(source.read_text())
    settings["load_col"]["item"] = ["item_id", "class"]
    settings["item_inter_num_interval"] = "[1,inf)"
    source.write_text(yaml.safe_dump(settings))
    assert main(["noise", "--dataset=toy", f"--config_files={source}", f"--to={tmp_path / 'copies'}",
                 "--noise.interactions=0.2"]) == 0
    copy, _ = splits_of("toy-noisy", tmp_path / "copies" / "toy-noisy.yaml")
    memory, _ = splits_of("toy", source)
    assert copy[0].item_num == memory[0].item_num
    assert copy[0].item_feat is not None


def test_a_copy_names_its_columns_and_loads_all_where_the_source_does(source: Path, tmp_path: Path) -> None:
    settings = yaml.safe_load(source.read_text())
    settings |= {"load_col": None, "USER_ID_FIELD": "who", "ITEM_ID_FIELD": "what", "seq_separator": "|"}
    source.write_text(yaml.safe_dump(settings))
    for file in ("toy.inter", "toy.item"):
        path = tmp_path / "toy" / file
        text = path.read_text().replace("user_id:", "who:", 1).replace("item_id:", "what:", 1)
        path.write_text("\n".join(text.splitlines()[:21 if file == "toy.item" else None]) + "\n")
    assert main(["noise", "--dataset=toy", f"--config_files={source}", f"--to={tmp_path / 'copies'}",
                 "--noise.interactions=0.2"]) == 0
    config = GuiderConfig("BPR", "toy-noisy", [tmp_path / "copies" / "toy-noisy.yaml"], command_line=[])
    train = build_dataset(config).build()[0]
    assert (train.uid_field, train.iid_field, config["seq_separator"]) == ("who", "what", "|")
    assert "class" in train.item_feat.columns and train.is_injected.any()


def test_the_noise_may_stand_in_the_guider_block_of_a_file(source: Path, tmp_path: Path) -> None:
    settings = yaml.safe_load(source.read_text())
    settings["guider"] = {"noise": {"interactions": 0.3}}
    source.write_text(yaml.safe_dump(settings))
    assert main(["noise", "--dataset=toy", f"--config_files={source}", f"--to={tmp_path / 'copies'}",
                 "--noise.deleted=0.1"]) == 0
    copy, _ = splits_of("toy-noisy", tmp_path / "copies" / "toy-noisy.yaml")
    count = len(splits_of("toy", source, noise={"interactions": 0})[1][0])
    assert copy[0].is_injected.sum() == round(0.3 * count)
    assert len(copy[0]) == count + round(0.3 * count) - round(0.1 * count)


def test_a_run_on_the_copy_is_measured_as_one_on_the_source(source: Path, tmp_path: Path) -> None:
    settings = yaml.safe_load(source.read_text())
    settings["eval_args"]["mode"] = {"valid": "uni10", "test": "uni20"}
    settings |= {"repeatable": True, "stopping_step": 7, "topk": [3]}
    source.write_text(yaml.safe_dump(settings))
    assert main(["noise", "--dataset=toy", f"--config_files={source}", f"--to={tmp_path / 'copies'}",
                 "--noise.interactions=0.2"]) == 0
    before = GuiderConfig("BPR", "toy", [source], command_line=[])
    after = GuiderConfig("BPR", "toy-noisy", [tmp_path / "copies" / "toy-noisy.yaml"], command_line=[])
    assert after["eval_args"]["mode"] == before["eval_args"]["mode"] == {"valid": "uni10", "test": "uni20"}
    for key in ("repeatable", "stopping_step", "topk", "metrics", "valid_metric", "eval_mask", "valid_neg_sample_args"):
        assert after[key] == before[key]


def test_what_the_package_has_guider_do_on_the_source_holds_for_the_copy(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = tmp_path / "known"
    known.mkdir()
    (known / "toy.yaml").write_text(
        "guider: {dbpr: {temperature: 0.3, batch_size: 64}, teacher: BPR, eval_mask: mmrec, noise: {deleted: 0.1}}\n"
    )
    for module in ("config.guider_config", "cli.noise"):
        monkeypatch.setattr(f"recbole_guider.{module}.dataset_configs_dir", lambda: known)
    assert main(["noise", "--dataset=toy", f"--config_files={source}", f"--to={tmp_path / 'copies'}",
                 "--noise.interactions=0.2"]) == 0
    file = tmp_path / "copies" / "toy-noisy.yaml"
    more = file.with_suffix("") / "guider.yaml"
    assert f'--config_files="{file} {more}"' in file.read_text()
    before = GuiderConfig("GUIDER_BPR", "toy", [source], command_line=[])
    after = GuiderConfig("GUIDER_BPR", "toy-noisy", [file, more], command_line=[])
    assert after["guider"]["dbpr"] == before["guider"]["dbpr"] and after["guider"]["dbpr"]["temperature"] == 0.3
    assert (after["guider"]["teacher"], after["eval_mask"]) == ("BPR", "mmrec")
    # noise that is in the copy is not made again; and a plain model stays one
    assert (after["noise"]["deleted"], after["noise"]["recorded"]) == (0.0, "toy-noisy.injected.inter")
    assert GuiderConfig("BPR", "toy-noisy", [file], command_line=[])["guider"] is False


def test_the_examples_of_the_help_work_on_the_default_data_set(tmp_path: Path) -> None:
    arguments = [word for word in COMMANDS["noise"].epilog.split() if word.startswith("--noise.")]
    assert len(arguments) == 6
    assert main(["noise", f"--to={tmp_path / 'copies'}", "--use_gpu=False", *arguments]) == 0
    injected = (tmp_path / "copies" / "ml-100k-noisy" / "ml-100k-noisy.injected.inter").read_text().splitlines()[1:]
    assert len({line.split("\t")[1] for line in injected}) == 17  # 1% of the catalogue


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the noise block asks for no noise"),
        (["--noise.interactions=0.1", "--name=tiktok"], "'tiktok' belongs to a data set that the package knows"),
        (["--noise.interactions=0.1", "--name=a/b"], "'a/b' cannot name a data set"),
        (["--noise.interactions=-1"], "noise.interactions is -1: it must be a number >= 0"),
        (["--noise.interactions=99"], "pairs of users and items are free; lower the ratio."),
        (["--noise.interactions=0.5", "--noise.items=clickbait"],
         "users and the clickbait items are free; lower the ratio or raise noise.clickbait_items, which is 0.01."),
        (["--noise.interactions=99", "--noise.items=clickbait", "--noise.clickbait_items=1.0"],
         "pairs of users and items are free; lower the ratio."),
        (["--noise.features.sound=0.1"], "names the modality 'sound': this data set has image, text"),
        (["--noise.features=0.5", "--modalities.image=null", "--modalities.text=null"],
         "the share of shuffled features is 0.5, but this data set has no modalities."),
        (["--noise.item=uniform"], "noise.item is not a setting; did you mean noise.items?"),
    ],
)
def test_mistakes_are_told_and_leave_nothing(
    arguments: list[str], message: str, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["noise", "--dataset=toy", f"--config_files={source}", f"--to={tmp_path / 'copies'}", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not list((tmp_path / "copies").glob("*")) if (tmp_path / "copies").exists() else True


def test_recorded_pairs_must_exist(source: Path, tmp_path: Path) -> None:
    from recbole_guider.utils.errors import GuiderError

    with pytest.raises(GuiderError, match=r"noise\.recorded is nowhere: there is no file"):
        splits_of("toy", source, noise={"recorded": "nowhere"})
    (tmp_path / "pairs").write_text("user_id\titem_id\nu1\tzzz\n")
    with pytest.raises(GuiderError, match=r"names item_id 'zzz', which the data set does not have"):
        splits_of("toy", source, noise={"recorded": str(tmp_path / "pairs")})
    for text, message in (("", "cannot be read as a table"), ("user_id\titem_id\nu1\t1\t2\n", "more fields than")):
        (tmp_path / "pairs").write_text(text)
        with pytest.raises(GuiderError, match=message):
            splits_of("toy", source, noise={"recorded": str(tmp_path / "pairs")})
