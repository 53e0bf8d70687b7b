from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from recbole.data.dataset import Dataset

from recbole_guider.data.dataset import GuiderDataset
from recbole_guider.data.features import ItemFeatures, modality_blocks, require_content
from recbole_guider.guider.calibration import calibrate_dataset
from recbole_guider.utils.errors import GuiderError

N_ITEMS = 20


def tokens_of(dataset):
    return dataset.field2id_token[dataset.iid_field]


def check_against(dataset, feature: ItemFeatures, rows: dict[str, np.ndarray]) -> None:
    """Naive recomputation: row of the token, mean of the others where there is none, zeros for the padding."""
    tokens = tokens_of(dataset)
    mean = np.mean([np.asarray(rows[t], dtype=np.float64) for t in tokens[1:] if t in rows], axis=0)
    assert feature.values.dtype == np.float32 and feature.present.dtype == bool
    assert feature.values.shape == (dataset.item_num, len(mean))
    assert not feature.values[0].any() and not feature.present[0]
    for item, token in enumerate(tokens):
        if item == 0:
            continue
        assert feature.present[item] == (token in rows)
        expected = np.asarray(rows[token], dtype=np.float32) if token in rows else mean.astype(np.float32)
        np.testing.assert_allclose(feature.values[item], expected, rtol=1e-6, atol=1e-7)


# --- arrays ---


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int16"])
def test_rows_follow_the_item_token(folder, make_dataset, dtype):
    rows = (np.random.default_rng(1).normal(size=(N_ITEMS + 3, 5)) * 10).astype(dtype)
    np.save(folder / "image_feat.npy", rows)
    dataset = make_dataset(modalities={"image": "image_feat.npy"})
    check_against(dataset, dataset.item_features["image"], {str(r): rows[r] for r in range(N_ITEMS)})
    assert dataset.item_num == N_ITEMS + 1  # three rows more than items change nothing


def test_rows_follow_the_ids_file(folder, make_dataset):
    rng = np.random.default_rng(2)
    ids = rng.permutation(N_ITEMS)[:13].astype(str).tolist() + ["999", "not-there"]
    rows = rng.normal(size=(len(ids), 7)).astype(np.float16)
    np.save(folder / "text_feat.npy", rows)
    (folder / "text_ids.txt").write_text("\n".join(ids) + "\n")
    dataset = make_dataset(modalities={"text": {"file": "text_feat.npy", "ids": "text_ids.txt"}})
    feature = dataset.item_features["text"]
    known = set(tokens_of(dataset))
    check_against(dataset, feature, {t: r for t, r in zip(ids, rows, strict=True) if t in known})
    assert dataset.item_num == N_ITEMS + 1
    assert feature.coverage == 13 / N_ITEMS and feature.dim == 7


def test_order_is_that_of_the_configuration_and_splits_share_the_features(folder, make_dataset):
    for name in "bac":
        np.save(folder / f"{name}.npy", np.ones((N_ITEMS, 2)))
    dataset = make_dataset(modalities={"b": "b.npy", "a": {"file": str(folder / "a.npy")}, "c": None})
    train, _, test = dataset.build()
    assert list(train.item_features) == ["b", "a"]
    assert test.item_features is train.item_features is dataset.item_features


def test_only_needed_rows_are_read(folder, make_dataset):
    rows = np.lib.format.open_memmap(folder / "big.npy", mode="w+", dtype=np.float32, shape=(2_000_000, 64))  # sparse
    rows[:N_ITEMS] = 1.0
    del rows
    dataset = make_dataset(modalities={"big": "big.npy"})
    tracemalloc.start()
    values = dataset.item_features["big"].values
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2_000_000 and (values[1:] == 1).all()


def test_large_features_are_read_in_blocks(folder, make_dataset, monkeypatch):
    monkeypatch.setattr("recbole_guider.data.features._BLOCK_BYTES", 3 * 5 * 8)  # three rows
    rows = np.random.default_rng(3).normal(size=(N_ITEMS, 5))
    np.save(folder / "image.npy", rows)
    dataset = make_dataset(modalities={"image": "image.npy"})
    check_against(dataset, dataset.item_features["image"], {str(r): rows[r] for r in range(N_ITEMS)})


@pytest.mark.parametrize(
    "rows, ids, message",
    [
        (np.ones((10, 3)), None, r"image\.npy has 10 rows, but item token 19 needs at least 20"),
        (np.ones(20), None, r"image\.npy has shape \[20\]; expected \[items, width\]"),
        (np.ones((20, 0)), None, r"shape \[20, 0\]"),
        (np.array([["a", "b"]] * 20), None, r"holds <U1, not numbers"),
        (np.array([{"a": 1}] * 20, dtype=object), None, r"not a plain \.npy array"),
        (np.where(np.arange(20)[:, None] == 7, np.nan, 1.0), None, r"'image' holds NaN .* item '7'"),
        (np.where(np.arange(20)[:, None] == 7, 1e300, 1.0), None, r"'image' holds NaN or infinite .* item '7'"),
        (np.ones((2, 3)), "1\n2\n3\n", r"image_ids\.txt has 3 lines, but the feature file has 2 rows"),
        (np.ones((3, 3)), "1\n2\n1\n", r"token '1' a second time in line 3"),
        (np.ones((3, 3)), "1\n\n2\n", r"an empty line in line 2"),
        (np.ones((2, 3)), "x\ny\n", r"'image' has no row for any of the 20 items"),
    ],
)
def test_wrong_arrays_are_named(folder, make_dataset, rows, ids, message):
    np.save(folder / "image.npy", rows)
    block = {"file": "image.npy"}
    if ids is not None:
        (folder / "image_ids.txt").write_text(ids)
        block["ids"] = "image_ids.txt"
    with pytest.raises(GuiderError, match=message):
        _ = make_dataset(modalities={"image": block}).item_features


def test_a_bad_row_of_an_unknown_item_does_no_harm(folder, make_dataset):
    rows = np.ones((N_ITEMS + 1, 2))
    rows[N_ITEMS] = np.nan
    np.save(folder / "image.npy", rows)
    assert np.isfinite(make_dataset(modalities={"image": "image.npy"}).item_features["image"].values).all()


def test_missing_files_and_archives_are_named(folder, make_dataset):
    np.savez(folder / "image.npz", a=np.ones((20, 2)))
    np.save(folder / "image.npy", np.ones((20, 2)))
    (folder / "ids.bin").write_bytes(b"\xff\xfe\x00")
    for block, message in [
        ("none.npy", r"modalities\.image: file .*none\.npy does not exist"),
        ("image.npz", "is an archive"),
        ({"file": "image.npy", "ids": "none.txt"}, r"ids file .*none\.txt does not exist"),
        ({"file": "image.npy", "ids": "ids.bin"}, r"modalities\.image: ids file .*ids\.bin is not UTF-8 text"),
    ]:
        with pytest.raises(GuiderError, match=message):
            _ = make_dataset(modalities={"image": block}).item_features


def test_tokens_that_are_no_row_numbers_need_ids(folder, make_config):
    text = (folder / "toy.inter").read_text().replace("\t7\t", "\tB007\t")
    (folder / "toy.inter").write_text(text)
    np.save(folder / "image.npy", np.ones((20, 2)))
    with pytest.raises(GuiderError, match=r"item token 'B007' is not a row number, so image\.npy needs `ids:`"):
        _ = GuiderDataset(make_config(modalities={"image": "image.npy"})).item_features


# --- columns ---

ITEMS = """item_id:token\ttitle:token_seq\tyear:token\tgenre:token_seq\tprice:float\tvector:float_seq
0\tred wool jumper\t1990\ta b\t1.5\t1 2
1\tred wool scarf\t1991\tb\t2.5\t3 4
2\tblue cotton shirt\t1992\tc\t\t5 6
3\tblue cotton trousers\t\ta c\t4.0\t7 8
4\t\t\t\t\t
77\tunseen words entirely\t1800\td\t1000\t9 9
"""


@pytest.fixture
def items(folder):
    (folder / "toy.item").write_text(ITEMS)
    return folder


def column(dataset, name):
    feature = dataset.item_features[name]
    index = {t: i for i, t in enumerate(tokens_of(dataset))}
    return feature.values[[index[str(t)] for t in range(4)]], feature.present[[index[str(t)] for t in range(6)]]


def test_columns_do_not_change_recboles_data_set(items, make_config):
    block = {"m": {"columns": ["title"]}}
    plain, guided = Dataset(make_config()), GuiderDataset(make_config(modalities=block))
    _ = guided.item_features
    assert guided.item_feat is None and guided.item_num == plain.item_num == N_ITEMS + 1
    assert guided.field2type == plain.field2type
    assert (tokens_of(guided) == tokens_of(plain)).all()


def test_multi_hot_and_numeric_equal_the_naive_encoding(items, make_dataset):
    dataset = make_dataset(
        modalities={
            "genre": {"columns": ["genre"], "encoder": "multi_hot"},
            "price": {"columns": ["price"]},
            "vector": {"columns": "vector"},
            "year": {"columns": ["year"]},
        }
    )
    genre, present = column(dataset, "genre")
    assert genre.tolist() == [[1, 1, 0], [0, 1, 0], [0, 0, 1], [1, 0, 1]]  # a, b, c; d is an unknown item's
    assert present.tolist() == [True] * 4 + [False] * 2  # token 4 has empty cells, token 5 no row
    price, present = column(dataset, "price")
    seen = np.array([1.5, 2.5, 4.0])
    np.testing.assert_allclose(price[[0, 1, 3], 0], (seen - seen.mean()) / seen.std(), rtol=1e-6)
    assert present.tolist() == [True, True, False, True, False, False]
    vector, _ = column(dataset, "vector")
    raw = np.arange(1, 9).reshape(4, 2)
    np.testing.assert_allclose(vector, (raw - raw.mean(0)) / raw.std(0), rtol=1e-6)
    year, _ = column(dataset, "year")
    np.testing.assert_allclose(year[:3, 0], np.array([-1, 0, 1]) / np.sqrt(2 / 3), rtol=1e-6)


def test_tfidf_svd_keeps_similarity_and_stops_at_the_rank(items, make_dataset):
    dataset = make_dataset(modalities={"t": {"columns": ["title"], "encoder": "tfidf_svd", "dim": 64}})
    values, _ = column(dataset, "t")
    assert values.shape == (4, 4)  # 64 asked for, four texts
    assert values[0] @ values[1] > 0.3 and abs(values[0] @ values[2]) < 1e-5
    narrow = make_dataset(modalities={"t": {"columns": ["title"], "encoder": "tfidf_svd", "dim": 2, "seed": 5}})
    assert column(narrow, "t")[0].shape == (4, 2)


def test_defaults_by_type_and_several_columns(items, make_dataset):
    several = {"columns": ["genre", "year"]}
    chosen = {"columns": ["genre", "year"], "encoder": {"genre": "multi_hot", "year": "multi_hot"}}
    dataset = make_dataset(modalities={"several": several, "chosen": chosen, "title": {"columns": ["title"]}})
    values, present = column(dataset, "several")
    assert values.shape == (4, 3 + 1)
    assert values[3, 3] == 0  # no year: the mean
    assert present.tolist() == [True] * 4 + [False] * 2
    assert column(dataset, "chosen")[0].shape == (4, 3 + 3)
    assert column(dataset, "title")[0].shape == (4, 8)  # few words: categories


def test_a_few_words_among_years_are_gaps(folder, make_dataset):
    years = [str(1990 + i) for i in range(N_ITEMS)]
    years[6] = "unknown"
    lines = ["item_id:token\tyear:token", *(f"{item}\t{year}" for item, year in enumerate(years))]
    (folder / "toy.item").write_text("\n".join(lines) + "\n")
    dataset = make_dataset(modalities={"year": {"columns": ["year"]}})
    feature = dataset.item_features["year"]
    seen = np.array([float(y) for y in years if y != "unknown"])
    for item, token in enumerate(tokens_of(dataset)[1:], start=1):
        expected = 0.0 if token == "6" else (float(years[int(token)]) - seen.mean()) / seen.std()
        assert abs(feature.values[item, 0] - expected) < 1e-6
    assert feature.dim == 1


def test_many_distinct_tokens_are_text(folder, make_dataset):
    lines = ["item_id:token\twords:token_seq"]
    lines += [f"{i}\t" + " ".join(f"w{i}x{j}" for j in range(20)) for i in range(N_ITEMS)]
    (folder / "toy.item").write_text("\n".join(lines) + "\n")
    feature = make_dataset(modalities={"words": {"columns": ["words"]}}).item_features["words"]
    assert feature.dim == N_ITEMS  # reduced, and no more than the rank


@pytest.mark.parametrize(
    "block, message",
    [
        ({"columns": ["titel"]}, r"no column 'titel'; did you mean title\? It has title, year, genre"),
        ({"columns": ["item_id"]}, r"columns names 'item_id', the item id, which is no content; .* has title"),
        ({"columns": ["title"], "encoder": "tfidf"}, r"'tfidf' does not exist; did you mean tfidf_svd\? Allowed"),
        ({"columns": ["title"], "encoder": "numeric"}, r"column 'title' .* is not a number, so numeric cannot encode"),
        ({"columns": ["genre"], "encoder": "numeric"}, r"column 'genre' .* holds .*, so numeric cannot encode"),
        ({"columns": ["title"], "encoder": {"genre": "numeric"}}, "names 'genre', which is not one of its columns"),
        ({"columns": ["title"], "dims": 3}, r"modalities\.m\.dims is not a setting; did you mean dim\?"),
        ({"columns": ["title"], "dim": 0}, r"dim must be an integer of at least 1, not 0"),
        ({"columns": ["title"], "ids": "x"}, r"ids belongs to a modality with `file`"),
        ({"columns": []}, "must be a list of column names"),
        ({"file": "a.npy", "encoder": "numeric"}, r"encoder belongs to a modality with `columns`"),
        ({"file": "a.npy", "columns": ["title"]}, "either `file` or `columns`"),
        ({"dim": 3}, "either `file` or `columns`"),
        (3, "must be a file name or a block, not 3"),
    ],
)
def test_wrong_blocks_are_named(items, make_dataset, block, message):
    with pytest.raises(GuiderError, match=message):
        _ = make_dataset(modalities={"m": block}).item_features


def test_columns_without_an_item_file(folder, make_dataset):
    with pytest.raises(GuiderError, match=r"toy\.item does not exist; `columns` are read from it"):
        _ = make_dataset(modalities={"m": {"columns": ["title"]}}).item_features


@pytest.mark.parametrize(
    "content, message",
    [
        (b"item_id:token\ttitle:token_seq\n1\ta b\n2\tc\td\n", "line 3 has 3 fields, but the header names 2 columns"),
        ("item_id:token\ttitle:token_seq\n1\tcafé\n".encode("latin-1"), "cannot be read as a table .*codec"),
        (b"", "cannot be read as a table"),
    ],
)
def test_an_item_file_that_is_no_table_is_named(folder, make_dataset, content, message):
    (folder / "toy.item").write_bytes(content)
    with pytest.raises(GuiderError, match=rf"toy\.item.*{message}"):
        _ = make_dataset(modalities={"m": {"columns": ["title"]}}).item_features


def test_ml100k_is_multimodal_with_nothing_to_download(make_config):
    config = make_config("ml-100k")
    dataset = GuiderDataset(config)
    features = dataset.item_features
    assert set(features) == set(modality_blocks(config)) == {"title", "genre"}
    assert features["title"].dim == 64 and features["genre"].dim == 19 + 1
    assert all(feature.coverage == 1 for feature in features.values())
    assert dataset.item_num == Dataset(make_config("ml-100k", modalities=None)).item_num


# --- extra atomic files ---


def atomic(folder, suffix, id_field, rows, extra=()):
    lines = [f"{id_field}:token\t{suffix}_emb:float_seq"]
    lines += [f"{token}\t" + " ".join(map(str, row)) for token, row in [*rows.items(), *extra]]
    (folder / f"toy.{suffix}").write_text("\n".join(lines) + "\n")


ATOMIC = {
    "additional_feat_suffix": ["image", "text"],
    "alias_of_item_id": ["image_item", "text_item"],
    "load_col": {"inter": ["user_id", "item_id"], "image": "*", "text": ["text_item", "text_emb"]},
}


def test_atomic_files_give_raw_values_and_no_new_items(folder, make_dataset):
    rng = np.random.default_rng(4)
    image = {str(i): rng.normal(size=3) * 9 for i in range(N_ITEMS)}
    text = {str(i): rng.normal(size=2) for i in range(3, 15)}
    atomic(folder, "image", "image_item", image, extra=[("500", [1e9, 0, 0]), ("0", [7, 7, 7])])
    atomic(folder, "text", "text_item", text, extra=[("501", [1, 2]), ("1", [])])
    dataset = make_dataset(**ATOMIC)
    assert dataset.item_num == N_ITEMS + 1
    features = dataset.item_features
    assert list(features) == ["image", "text"]
    check_against(dataset, features["image"], image)  # as in the file, although RecBole normalises its own copy
    check_against(dataset, features["text"], text)
    train, _, _ = dataset.build()
    assert train.item_features is features


def test_atomic_items_known_from_the_item_file_stay(folder, make_dataset):
    (folder / "toy.item").write_text("item_id:token\tprice:float\n0\t1\n600\t2\n")
    atomic(folder, "image", "image_item", {str(i): [i, 1] for i in range(N_ITEMS)}, extra=[("600", [6, 6])])
    dataset = make_dataset(
        additional_feat_suffix=["image"],
        alias_of_item_id=["image_item"],
        load_col=None,
        filter_inter_by_user_or_item=False,
    )
    assert dataset.item_num == N_ITEMS + 2  # RecBole's own rule for .item rows
    feature = dataset.item_features["image"]
    assert feature.values[dataset.token2id("item_id", "600")].tolist() == [6, 6]


def test_atomic_mistakes_are_named(folder, make_dataset):
    atomic(folder, "image", "image_item", {"0": [1, 2], "1": [1]})
    atomic(folder, "text", "text_item", {"0": [1, 2]})
    with pytest.raises(GuiderError, match="'image': column 'image_emb' has rows of 1 and of 2 numbers"):
        _ = make_dataset(**ATOMIC).item_features
    unloaded = {**ATOMIC, "load_col": {"inter": "*", "image": "*"}}
    with pytest.raises(GuiderError, match="alias_of_item_id names 'text_item', but no loaded file has that column"):
        make_dataset(**unloaded)
    with pytest.raises(GuiderError, match=r"'text' loads no column of toy\.text; add `text: '\*'` to load_col"):
        _ = make_dataset(**{**unloaded, "alias_of_item_id": ["image_item"]}).item_features
    np.save(folder / "text.npy", np.ones((20, 2)))
    atomic(folder, "image", "image_item", {"0": [1, 2]})
    with pytest.raises(GuiderError, match="'text' is given twice"):
        _ = make_dataset(**ATOMIC, modalities={"text": "text.npy"}).item_features


@pytest.mark.parametrize("values", ["float_seq", "float"])
def test_a_word_among_the_numbers_of_an_atomic_file_is_named(folder, make_dataset, values):
    lines = [f"image_item:token\tx:float\tv:{values}", "0\t1\t2", "1\tNA\tNA", "2\t1\t"]
    (folder / "toy.image").write_text("\n".join([*lines, "3\tw\t4"]) + "\n")
    settings = {"additional_feat_suffix": ["image"], "alias_of_item_id": ["image_item"]}
    load = {"inter": ["user_id", "item_id"], "image": ["image_item", "v"]}
    make_dataset(**settings, load_col=load)  # x is not loaded
    (folder / "toy.image").write_text("\n".join([*lines, "3\tw\tword"]) + "\n")
    with pytest.raises(GuiderError, match=r"toy\.image, line 5: the column 'v' holds 'word', which is not a number"):
        make_dataset(**settings, load_col=load)
    (folder / "toy.image").write_text("image_item\tv\n0\t1\n")
    with pytest.raises(GuiderError, match=r"toy\.image: the column 'image_item' has no type; write image_item:<type>"):
        make_dataset(**settings, load_col=load)


def test_tokens_of_atomic_files_must_be_known_as_ids(folder, make_config, make_dataset):
    (folder / "toy.image").write_text("image_item:token\tkind:token\tv:float\n0\ta\t1\n1\tb\t2\n")
    everything = {
        "additional_feat_suffix": ["image"],
        "load_col": {"inter": ["user_id", "item_id"], "image": ["image_item", "kind", "v"]},
    }
    for settings, message in [
        (everything, r"'image': no setting says which .* of toy\.image .*; set `alias_of_item_id: \[image_item\]`"),
        ({**everything, "alias_of_item_id": ["image_item"]}, "the column 'kind' of toy.image holds tokens that are no"),
    ]:
        with pytest.raises(TypeError):
            Dataset(make_config(**settings)).build()
        with pytest.raises(GuiderError, match=message):
            make_dataset(**settings)


# --- no content ---


def test_no_content_says_what_to_add(make_config, folder):
    with pytest.raises(GuiderError, match=r"'toy' has no content.*modalities: \{image.*behaviour: true, modalities: "):
        require_content(make_config(), {})
    guider = {"calibration": {"behaviour": True, "modalities": []}}
    require_content(make_config(guider=guider), {})
    with pytest.raises(GuiderError, match="has no content"):
        require_content(make_config(guider=guider), {}, behaviour_suffices=False)
    require_content(make_config(), {"image": object()})


def test_content_that_the_calibration_leaves_out_is_not_called_missing(make_config, folder):
    np.save(folder / "image.npy", np.eye(N_ITEMS))
    guider = {"calibration": {"behaviour": False, "modalities": []}}
    config = make_config(modalities={"image": "image.npy"}, guider=guider)
    message = r"calibration\.modalities is empty and .*behaviour is false, .* name modalities of .* \(image\)"
    with pytest.raises(GuiderError, match=message):
        calibrate_dataset(config, GuiderDataset(config).build()[0])
