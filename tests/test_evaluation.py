from __future__ import annotations

import numpy as np
import pytest
import torch
from recbole.data import data_preparation
from recbole.utils import init_seed

from recbole_guider.config.guider_config import GuiderConfig
from recbole_guider.data.dataset import build_dataset, prepare_data
from recbole_guider.data.eval_mask import apply_eval_mask
from recbole_guider.utils.errors import GuiderError

HEAD = "user_id:token\titem_id:token"


@pytest.fixture
def config(tmp_path):
    """300 pairs of 30 users and 40 items; u0 occurs in valid and test only, u1's test item is also in train."""
    rng = np.random.default_rng(0)
    cells = rng.permutation(np.arange(40, 30 * 40))[:300]
    rows = [f"u{cell // 40}\t{cell % 40}" for cell in cells]
    parts = {
        "train": [*rows[:200], "u1\t39"],
        "valid": [*rows[200:250], "u0\t1"],
        "test": [*rows[250:], "u0\t2", "u1\t39"],
    }
    (tmp_path / "toy").mkdir()
    for name, lines in parts.items():
        (tmp_path / "toy" / f"toy.{name}.inter").write_text("\n".join([HEAD, *lines]) + "\n")

    def make(**settings):
        settings = {
            "data_path": str(tmp_path),
            "checkpoint_dir": str(tmp_path / "saved"),
            "benchmark_filename": list(parts),
            "use_gpu": False,
            **settings,
        }
        return GuiderConfig("BPR", "toy", config_dict=settings, command_line=[])

    return make


def sets_of(dataset):
    sets: dict[int, set[int]] = {}
    for user, item in zip(dataset.inter_feat["user_id"].tolist(), dataset.inter_feat["item_id"].tolist(), strict=True):
        sets.setdefault(user, set()).add(item)
    return sets


@pytest.mark.parametrize("protocol", ["recbole", "mmrec"])
def test_hidden_items_equal_naive_sets(config, protocol):
    settings = config(eval_mask=protocol)
    dataset = build_dataset(settings)
    init_seed(0, True)
    train, valid, test = prepare_data(settings, dataset)
    splits = [sets_of(part) for part in build_dataset(settings).build()]
    cold = dataset.token2id("user_id", "u0")
    for number, loader in ((1, valid), (2, test)):
        users = []
        for batch in loader:
            interaction, (rows, hidden), positive_rows, positives = batch
            for row, user in enumerate(interaction["user_id"].tolist()):
                users.append(user)
                positive = set(positives[positive_rows == row].tolist())
                assert positive == splits[number][user]
                earlier = splits[:number] if protocol == "recbole" else splits[:1]
                known = set().union(*(split.get(user, set()) for split in earlier))
                assert set(hidden[rows == row].tolist()) == known - positive
        expected = set(splits[number]) - ({cold} if protocol == "mmrec" else set())
        assert set(users) == expected and len(users) == len(expected)
        assert (cold in users) == (protocol == "recbole")


def test_mmrec_differs_from_recbole_at_test_only(config):
    """Where every user has training items, validation is the same under both."""
    settings = config()
    dataset = build_dataset(settings)
    train, valid, test = data_preparation(settings, dataset)
    hidden = {name: [] for name in ("recbole", "mmrec")}
    for protocol, parts in hidden.items():
        for loader in (valid, test):
            loader = apply_eval_mask(loader, train._dataset, protocol)
            keep = [u for u in loader.uid_list.tolist() if u != dataset.token2id("user_id", "u0")]
            parts.append([set(loader.uid2history_item[user].tolist()) for user in keep])
    assert hidden["recbole"][0] == hidden["mmrec"][0]
    assert hidden["recbole"][1] != hidden["mmrec"][1]


def test_recbole_protocol_returns_the_loader_itself(config):
    settings = config()
    train, _, test = data_preparation(settings, build_dataset(settings))
    assert apply_eval_mask(test, train._dataset, "recbole") is test
    masked = apply_eval_mask(test, train._dataset, "mmrec")
    assert type(masked) is type(test) and masked.step == test.step
    assert torch.equal(test.uid_list, torch.tensor(sorted(sets_of(test._dataset))))  # the given loader is unchanged


def test_injected_noise_is_hidden_like_any_training_item(config):
    settings = config(eval_mask="mmrec", noise={"interactions": 0.3})
    train, _, test = prepare_data(settings, build_dataset(settings))
    splits = sets_of(train._dataset), sets_of(test._dataset)
    assert train._dataset.is_injected.sum() == round(0.3 * 201)
    for user in test.uid_list.tolist():
        assert set(test.uid2history_item[user].tolist()) == splits[0][user] - splits[1][user]


def test_plain_and_denoised_models_read_the_same_key(config):
    for settings in ({"eval_mask": "mmrec"}, {"guider": {"eval_mask": "mmrec"}}):
        settings = config(**settings)
        dataset = build_dataset(settings)
        cold = dataset.token2id("user_id", "u0")
        assert cold not in prepare_data(settings, dataset)[2].uid_list.tolist()


def test_unknown_protocols_are_named(config):
    with pytest.raises(GuiderError, match="'mmrecs' does not exist; did you mean mmrec.*Allowed: recbole, mmrec"):
        apply_eval_mask(object(), object(), "mmrecs")


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"eval_mask": "mmrec", "eval_args": {"mode": "uni5"}}, "needs full-sort evaluation"),
        ({"eval_mask": "mmrec", "repeatable": True}, "choose one of them"),
        ({"topk": [5, 41], "valid_metric": "Recall@5"}, "topk has 41, but toy has 40 items"),
        ({"eval_args": {"mode": "labeled"}}, "eval_args.mode is labeled, .* and metrics has Recall, .* a ranking"),
    ],
)
def test_what_cannot_be_is_said(config, settings, message):
    settings = config(**settings)
    with pytest.raises(GuiderError, match=message):
        prepare_data(settings, build_dataset(settings))


def test_lists_may_be_as_long_as_the_catalogue(config):
    settings = config(topk=[40], valid_metric="Recall@40")
    prepare_data(settings, build_dataset(settings))
