from __future__ import annotations

import pickle
from inspect import unwrap

import numpy as np
import pytest
import torch
from recbole.data import create_dataset, data_preparation
from recbole.data.dataloader import FullSortEvalDataLoader, NegSampleEvalDataLoader, UserDataLoader
from recbole.data.dataset import Dataset
from recbole.utils import get_model, get_trainer, init_seed

from recbole_guider.data.dataset import GuiderDataset, build_dataset, noise_of, prepare_data
from recbole_guider.data.eval_mask import MemoryBatchedEvalDataLoader
from recbole_guider.utils.errors import GuiderError


def pairs_of(dataset):
    inter = dataset.inter_feat
    return list(zip(inter[dataset.uid_field].tolist(), inter[dataset.iid_field].tolist(), strict=True))


def same_interactions(one, other):
    assert one.columns == other.columns
    for name in one.columns:
        assert torch.equal(one[name], other[name]), name


def prepared(config, ours: bool):
    init_seed(config["seed"], True)
    # RecBole's own functions, as they are without this package
    make, prepare = (build_dataset, prepare_data) if ours else (unwrap(create_dataset), unwrap(data_preparation))
    dataset = make(config)
    loaders = prepare(config, dataset)
    return dataset, loaders


# --- nothing asked for: RecBole, bit for bit ---


@pytest.mark.parametrize(
    "dataset, settings", [("ml-100k", {}), ("toy", {"eval_args": {"split": {"LS": "valid_and_test"}, "order": "RO"}})]
)
def test_plain_is_recbole_bit_for_bit(make_config, folder, dataset, settings):
    config = make_config(dataset, modalities=None, eval_memory_mb=0, **settings)
    theirs, their_loaders = prepared(config, ours=False)
    ours, our_loaders = prepared(config, ours=True)
    assert isinstance(ours, GuiderDataset) and type(theirs) is Dataset
    for field in ("user_id", "item_id"):
        assert (ours.field2id_token[field] == theirs.field2id_token[field]).all()
    same_interactions(ours.inter_feat, theirs.inter_feat)
    assert ours.item_features == {}
    for mine, recbole in zip(our_loaders, their_loaders, strict=True):
        assert type(mine) is type(recbole) and mine.step == recbole.step
        same_interactions(mine._dataset.inter_feat, recbole._dataset.inter_feat)

    def batches(loader):
        init_seed(3, True)
        return list(loader)

    for mine, recbole in zip(batches(our_loaders[0]), batches(their_loaders[0]), strict=True):
        same_interactions(mine, recbole)  # the sampled negatives too
    for mine, recbole in zip(batches(our_loaders[2]), batches(their_loaders[2]), strict=True):
        same_interactions(mine[0], recbole[0])
        assert all(torch.equal(a, b) for a, b in zip(mine[1], recbole[1], strict=True))
        assert torch.equal(mine[2], recbole[2]) and torch.equal(mine[3], recbole[3])


def test_plain_results_are_recboles(make_config):
    """The default memory batches: same training, same ranking, same numbers."""
    config = make_config("ml-100k", modalities=None, epochs=1, metric_decimal_place=12, model="BPR")

    def run(ours):
        dataset, (train, valid, test) = prepared(config, ours)
        init_seed(config["seed"], True)
        model = get_model("BPR")(config, train._dataset)
        trainer = get_trainer(config["MODEL_TYPE"], "BPR")(config, model)
        trainer.fit(train, None, saved=False, verbose=False)
        return trainer.evaluate(test, load_best_model=False), test.step

    (our_result, our_step), (their_result, their_step) = run(True), run(False)
    assert our_result == their_result
    assert their_step == 2 and our_step > 900


# --- loaders ---


def test_batches_by_memory(make_config, folder):
    budget = 2 * 16 * 21 / 2**20  # two users' rows
    dataset, (_, valid, test) = prepared(make_config(eval_memory_mb=budget, eval_batch_size=1), ours=True)
    assert test.step == valid.step == 2 and dataset.item_num == 21
    assert torch.equal(torch.cat([batch[0]["user_id"] for batch in test]), test.uid_list)
    for mb, batch_size, users in [(budget, 100, 4), (0, 1, 1), (1, 1, 2**20 // (16 * 21))]:
        # never fewer than the user asked for; 0 turns it off
        assert prepared(make_config(eval_memory_mb=mb, eval_batch_size=batch_size), ours=True)[1][2].step == users
    with pytest.raises(GuiderError, match="eval_memory_mb must be a number"):
        prepared(make_config(eval_memory_mb="256MB"), ours=True)


def test_sampled_evaluation_keeps_recboles_loader(make_config, folder):
    config = make_config(eval_args={"mode": {"valid": "uni5", "test": "full"}})
    _, (_, valid, test) = prepared(config, ours=True)
    assert type(valid) is NegSampleEvalDataLoader and type(test) is MemoryBatchedEvalDataLoader
    assert valid.step == prepared(config, ours=False)[1][1].step


def test_a_denoised_model_gets_the_loaders_of_its_backbone(make_config, folder):
    config = make_config(model="MultiDAE", train_neg_sample_args=None)
    config["model"], config["backbone"] = "GUIDER_MultiDAE", "MultiDAE"
    train, _, test = prepare_data(config, build_dataset(config))
    assert type(train) is UserDataLoader and isinstance(test, FullSortEvalDataLoader)
    assert config["model"] == "GUIDER_MultiDAE" and "dataloaders_save_path" in config
    assert config["dataloaders_save_path"] is None


def test_other_model_types_are_recboles_own(make_config, folder):
    from recbole.data.dataset import SequentialDataset

    (folder / "toy.inter").write_text((folder / "toy.inter").read_text().replace("rating:float", "timestamp:float"))
    config = make_config(model="GRU4Rec", train_neg_sample_args=None)
    assert type(build_dataset(config)) is SequentialDataset
    config["noise"] = {"interactions": 0.1}
    with pytest.raises(GuiderError, match=r"noise\.interactions needs a general recommender, which GRU4Rec is not"):
        build_dataset(config)


# --- noise ---


RATED = {"load_col": {"inter": ["user_id", "item_id", "rating"]}, "normalize_all": False}


def benchmark(folder):
    lines = (folder / "toy.inter").read_text().splitlines()
    for name, part in (("train", lines[1:81]), ("valid", lines[81:101]), ("test", lines[101:])):
        (folder / f"toy.{name}.inter").write_text("\n".join([lines[0], *part]) + "\n")
    return {"benchmark_filename": ["train", "valid", "test"]}


@pytest.mark.parametrize("split", ["ratio", "benchmark"])
def test_noise_goes_into_training_only(make_config, folder, split):
    settings = {**RATED, **(benchmark(folder) if split == "benchmark" else {})}
    noise = {"noise": {"interactions": 0.25, "seed": 5}}
    init_seed(1, True)
    clean = GuiderDataset(make_config(**settings)).build()
    init_seed(1, True)
    noisy = GuiderDataset(make_config(**settings, **noise)).build()
    for one, other in zip(clean[1:], noisy[1:], strict=True):
        same_interactions(one.inter_feat, other.inter_feat)
        assert not other.is_injected.any() and len(other.is_injected) == len(other)
    train, before = noisy[0], pairs_of(clean[0])
    n = len(before)
    assert len(train) == n + round(0.25 * n)
    assert pairs_of(train)[:n] == before and not clean[0].is_injected.any()
    added = pairs_of(train)[n:]
    assert len(set(added)) == len(added)
    assert not set(added) & {pair for dataset in clean for pair in pairs_of(dataset)}
    assert train.is_injected.tolist() == [False] * n + [True] * len(added)
    ratings = dict.fromkeys(user for user, _ in before)
    for (user, _), rating in zip(before, clean[0].inter_feat["rating"].tolist(), strict=True):
        ratings[user] = (ratings[user] or set()) | {rating}
    for (user, _), rating in zip(added, train.inter_feat["rating"].tolist()[n:], strict=True):
        assert rating in ratings[user]  # the other columns come from a row of the same user

    marked = {pair for pair, injected in zip(pairs_of(train), train.is_injected, strict=True) if injected}
    train.shuffle()
    assert {pair for pair, injected in zip(pairs_of(train), train.is_injected, strict=True) if injected} == marked
    init_seed(1, True)
    assert pairs_of(GuiderDataset(make_config(**settings, **noise)).build()[0])[n:] == added


def test_samplers_and_masks_treat_noise_like_any_interaction(make_config, folder):
    config = make_config(noise={"interactions": 0.5})
    _, (train, _, test) = prepared(config, ours=True)
    dataset = train._dataset
    assert dataset.is_injected.sum() == round(0.5 * (~dataset.is_injected).sum())
    for user, item in pairs_of(dataset):
        assert item in train._sampler.used_ids[user]
        if test.uid2history_item[user] is not None and item not in test.uid2positive_item[user].tolist():
            assert item in test.uid2history_item[user].tolist()
    for batch in train:
        sampled = set(zip(batch["user_id"].tolist(), batch["neg_item_id"].tolist(), strict=True))
        assert not sampled & set(pairs_of(dataset))


def test_plain_and_denoised_models_read_the_same_block(make_config, folder):
    assert noise_of(make_config()).interactions == 0
    assert noise_of(make_config(noise={"interactions": 0.1})).interactions == 0.1
    noise = noise_of(make_config(guider={"noise": {"interactions": 0.4, "seed": 3}}))
    assert (noise.interactions, noise.seed) == (0.4, 3)
    for wrong, message in [
        ({"interactions": -1}, r"^noise\.interactions is -1"),
        ({"interaction": 0.1}, r"^noise\.interaction is not a setting"),
    ]:
        config = make_config()
        config["noise"] = wrong
        with pytest.raises(GuiderError, match=message):
            noise_of(config)


def test_feature_noise(make_config, folder):
    np.save(folder / "image.npy", np.arange(40.0).reshape(20, 2))
    settings = {"modalities": {"image": "image.npy"}}
    clean = GuiderDataset(make_config(**settings)).item_features["image"].values
    noisy = GuiderDataset(make_config(**settings, noise={"features": 0.5})).item_features["image"].values
    assert (clean != noisy).any(axis=1).sum() == 10
    assert sorted(map(tuple, clean)) == sorted(map(tuple, noisy))


# --- saved data sets and loaders ---


def test_a_saved_data_set_is_used_only_for_the_same_settings_and_files(make_config, folder, monkeypatch):
    np.save(folder / "image.npy", np.ones((20, 2)))
    settings = {"save_dataset": True, "modalities": {"image": "image.npy"}}
    opened = []
    load = pickle.load
    monkeypatch.setattr(pickle, "load", lambda stream: opened.append(stream.name) or load(stream))

    first = build_dataset(make_config(**settings))
    _ = first.item_features
    config = make_config(**settings)
    again = build_dataset(config)
    assert len(opened) == 1 and again.config is config
    assert (again.inter_feat == first.inter_feat).all().all()
    assert (again.item_features["image"].values == first.item_features["image"].values).all()
    assert len(prepare_data(config, again)) == 3

    for changed in ({"noise": {"interactions": 0.1}}, {"modalities": None}, {"seed": 7}, {"rm_dup_inter": "first"}):
        build_dataset(make_config(**{**settings, **changed, "save_dataset": False}))
    assert len(opened) == 1  # other settings: not even opened
    np.save(folder / "image.npy", np.zeros((20, 3)))
    build_dataset(make_config(**{**settings, "save_dataset": False}))
    assert len(opened) == 1  # another file under the same name


def test_a_file_without_a_fingerprint_is_not_opened(make_config, folder, tmp_path):
    stranger = tmp_path / "stranger.pth"
    stranger.write_bytes(b"not a pickle")
    assert len(build_dataset(make_config(dataset_save_path=str(stranger)))) == 120
    config = make_config(dataloaders_save_path=str(stranger))
    assert len(prepare_data(config, build_dataset(config))[0]._dataset) > 0
    assert config["dataloaders_save_path"] == str(stranger)


def test_saved_loaders_are_used_only_for_the_same_noise(make_config, folder):
    config = make_config(save_dataloaders=True, noise={"interactions": 0.25})
    train = prepare_data(config, build_dataset(config))[0]
    n = len(train._dataset)
    config = make_config(noise={"interactions": 0.25})
    assert pairs_of(prepare_data(config, build_dataset(config))[0]._dataset) == pairs_of(train._dataset)
    config = make_config()
    assert len(prepare_data(config, build_dataset(config))[0]._dataset) < n


def test_saving_loaders_leaves_them_as_they_are(make_config, folder):
    plain, saving = make_config(), make_config(save_dataloaders=True)
    loaders = [prepare_data(config, build_dataset(config)) for config in (plain, saving)]
    assert loaders[1][0].sampler.generator is loaders[1][0].generator
    for without, with_ in zip(*loaders, strict=True):
        assert torch.equal(with_.generator.get_state(), without.generator.get_state())


# --- mistakes ---


def test_missing_files_are_named(make_config, folder, tmp_path):
    for model in ("BPR", "GRU4Rec"):
        settings = {"model": model, "train_neg_sample_args": None} if model == "GRU4Rec" else {"model": model}
        with pytest.raises(GuiderError, match=r"additional_feat_suffix names 'sound', .* no file .*toy\.sound\."):
            build_dataset(make_config(additional_feat_suffix=["sound"], **settings))
        with pytest.raises(GuiderError, match=r"benchmark_filename names 'train', .* no file .*toy\.train\.inter\."):
            build_dataset(make_config(benchmark_filename=["train"], **settings))
    with pytest.raises(GuiderError, match=r"no folder .*toi with the data set 'toi': set data_path"):
        build_dataset(make_config("toi"))
    (folder / "toy.inter").unlink()
    with pytest.raises(GuiderError, match=r"no file .*toy\.inter with the interactions: set data_path"):
        build_dataset(make_config())
    (tmp_path / "toy.yaml").write_text("")
    with pytest.raises(GuiderError, match=r"give the settings of this data set, --config_files=.*/toy\.yaml\."):
        build_dataset(make_config())


@pytest.mark.parametrize("split", ["ratio", "benchmark"])
@pytest.mark.parametrize(
    "settings, message",
    [
        ({"load_col": {"inter": ["user_id", "item"]}}, r"column 'item_id' of .*\.inter, which ITEM_ID_FIELD names, is"),
        ({"load_col": {"inter": ["user", "item_id"]}}, r"'user_id' .*, is not loaded: add it to load_col\.inter"),
        ({"ITEM_ID_FIELD": "iid"}, r"\.inter has no column 'iid', which ITEM_ID_FIELD names; it has user_id, item_id"),
        ({"USER_ID_FIELD": "uid"}, r"\.inter has no column 'uid', which USER_ID_FIELD names"),
        ({"load_col": {"item": "*"}}, r"loads no column of .*\.inter; add `inter: \[user_id, item_id\]` to it"),
        ({"alias_of_user_id": ["friend"]}, "alias_of_user_id names 'friend', but no loaded file has that column"),
    ],
)
def test_id_columns_that_are_not_there_are_named(make_config, folder, split, settings, message):
    with pytest.raises(GuiderError, match=message):
        build_dataset(make_config(**settings, **(benchmark(folder) if split == "benchmark" else {})))


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"user_inter_num_interval": "[1000,inf)"}, "RecBole does not accept this configuration: Some feat is empty"),
        ({"val_interval": {"nope": "[3,inf)"}}, r"Field \[nope\] not defined"),
        ({"encoding": "utf-99"}, "unknown encoding"),
        ({"eval_args": {"order": "TO"}}, "order is TO, by time, but the column 'timestamp', which TIME_FIELD names"),
    ],
)
def test_what_recbole_refuses_of_the_data_is_one_sentence(make_config, folder, settings, message):
    config = make_config(**settings)
    with pytest.raises(GuiderError, match=message) as caught:
        prepare_data(config, build_dataset(config))
    assert "\n" not in str(caught.value)
