"""AMSC over parquet files and Ray Data against AMSC in memory: the same numbers however the log is cut."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray

from recbole_guider.amsc import calibrate, calibrate_parquet, parquet
from recbole_guider.amsc.folds import UserFolds, hashes, uniform
from recbole_guider.amsc.settings import CalibrationSettings
from recbole_guider.cli.main import main
from recbole_guider.utils.errors import GuiderError

pytestmark = pytest.mark.slow

N_USERS, N_ITEMS = 260, 90


@pytest.fixture(scope="module", autouse=True)
def _small_ray() -> Iterator[None]:
    ray.init(address="local", num_cpus=1, object_store_memory=100_000_000, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def log() -> pd.DataFrame:
    """Users of 5 tastes, profiles of 1 to 25 items, a fifth of the pairs anything, some rows twice, in no order."""
    rng = np.random.default_rng(0)
    pairs = []
    for user in range(N_USERS):
        liked = np.flatnonzero(np.arange(N_ITEMS) % 5 == user % 5)
        size = int(rng.integers(1, 18))
        pairs += [(user, i) for i in set(rng.choice(liked, size)) | set(rng.choice(N_ITEMS, 1 + size // 4))]
    pairs += pairs[::7]
    frame = pd.DataFrame(pairs, columns=["user", "item"]).sample(frac=1, random_state=0)
    return frame.assign(row=np.arange(len(frame)), note=[f"note {k % 13}" for k in range(len(frame))])


@pytest.fixture(scope="module")
def features() -> dict[str, Any]:
    """Image for all items, text for four of five."""
    rng = np.random.default_rng(1)
    centre = rng.normal(size=(5, 7))
    image, text = (centre[np.arange(N_ITEMS) % 5] + rng.normal(size=(N_ITEMS, 7)) for _ in range(2))
    return {"image": image.astype(np.float32), "text": (text[:, :4].astype(np.float32), np.arange(N_ITEMS) % 5 != 2)}


def write(frame: pd.DataFrame, folder: Path, files: int) -> Path:
    """The log in several files, the rows of a user in many of them."""
    folder.mkdir()
    for k in range(files):
        frame.iloc[k::files].to_parquet(folder / f"log-{k}.parquet", row_group_size=400, index=False)
    return folder


def read(out: Path) -> pd.DataFrame:
    return pd.read_parquet(out).sort_values("row", ignore_index=True)


def in_memory(log: pd.DataFrame, features: dict[str, Any], n_items: int = N_ITEMS, **settings: Any) -> Any:
    return calibrate(
        log["user"],
        log["item"],
        features,
        n_users=int(log["user"].max()) + 1,
        n_items=n_items,
        settings=CalibrationSettings(**settings),
        seed=3,
    )


def assert_same(out: Path, expected: Any) -> None:
    got = read(out)
    np.testing.assert_allclose(got["clean_probability"], expected.clean_probability, atol=1e-5)
    np.testing.assert_allclose(got["score"], expected.score, atol=1e-6)
    np.testing.assert_array_equal(got["is_clean"], expected.is_clean)
    summary = json.loads((out / "_summary.json").read_text())
    assert summary["noise_rate"] == pytest.approx(expected.noise_rate, abs=1e-9)
    assert summary["modality_weights"] == pytest.approx(expected.modality_weights, abs=1e-9)
    assert (summary["n_true"], summary["n_false"]) == (expected.n_true, expected.n_false)


# ---------------------------------------------------------------- the same as in memory


@pytest.mark.parametrize(("files", "buckets"), [(1, 1), (5, 3), (3, 8)])
def test_every_cut_of_the_log_gives_the_result_of_memory(log, features, tmp_path, files, buckets):
    folder = write(log, tmp_path / "log", files)
    result = calibrate_parquet(str(folder / "*.parquet"), features, tmp_path / "out", seed=3, buckets=buckets)
    expected = in_memory(log, features)
    assert 0 < expected.n_false < expected.n_true
    assert_same(result.out, expected)
    got = read(result.out)
    pd.testing.assert_frame_equal(got[list(log.columns)], log.reset_index(drop=True))
    assert got.dtypes[["clean_probability", "is_clean", "score"]].tolist() == [np.float32, bool, np.float32]
    parts = [pq.read_table(path)["user"].to_numpy() for path in sorted(result.out.glob("*.parquet"))]
    assert len(parts) == buckets
    # the rows of a user lie in one file, one after the other
    starts = [int((part[1:] != part[:-1]).sum()) + 1 for part in parts]
    assert sum(starts) == log["user"].nunique()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log", "out"]


@pytest.mark.parametrize(
    "settings",
    [
        {"learned": False, "decision": "quantile", "noise_rate": 0.2, "min_profile": 5},
        {"learned": False, "noise_by": "none", "null_items": "uniform"},
        {"behaviour": False, "popularity": True, "modalities": ["text"]},
        {"learned": False, "nearest": False, "behaviour": False, "modalities": ["image"]},
    ],
    ids=["quantile", "uniform null items", "learned content", "one similarity"],
)
def test_every_setting_gives_the_result_of_memory(log, features, tmp_path, settings):
    folder = write(log, tmp_path / "log", 2)
    chosen = CalibrationSettings(**settings)
    result = calibrate_parquet(folder, features, tmp_path / "out", settings=chosen, seed=3, buckets=4)
    assert_same(result.out, in_memory(log, features, **settings))


def test_a_log_beyond_the_samples_gives_the_result_of_memory(log, features, tmp_path, monkeypatch):
    # The samples that a large log is learned from, made small enough for this one to be large.
    monkeypatch.setattr("recbole_guider.amsc.fit.SAMPLE", 1600)
    monkeypatch.setattr("recbole_guider.amsc.fit.LEARN_PAIRS", 1200)
    monkeypatch.setattr("recbole_guider.amsc.decision.GROUP_PAIRS", 100)
    folder = write(log, tmp_path / "log", 3)
    result = calibrate_parquet(folder, features, tmp_path / "out", seed=3, buckets=5)
    expected = in_memory(log, features)
    assert 500 < len(expected.null_pair) < 1100
    own = set(zip(log["user"], log["item"], strict=True))
    users = log["user"].to_numpy()[expected.null_pair]
    assert not own & set(zip(users, expected.null_item, strict=True))
    assert_same(result.out, expected)
    # shares of noise by popularity are at work in it
    assert np.abs(expected.clean_probability - in_memory(log, features, noise_by="none").clean_probability).max() > 0.01


def test_ids_of_integers_lead_to_rows(log, features, tmp_path):
    # Item i is called 7 i + 100; the rows of the features come in another order, some items have none.
    order = np.random.default_rng(0).permutation(N_ITEMS)[: N_ITEMS - 9]
    np.save(tmp_path / "image.npy", features["image"][order])
    (tmp_path / "ids.txt").write_text("\n".join(str(7 * i + 100) for i in order) + "\n")
    renamed = log.assign(item=7 * log["item"] + 100)
    folder = write(renamed.rename(columns={"user": "u", "item": "i"}), tmp_path / "log", 2)
    rows = {"image": (tmp_path / "image.npy", tmp_path / "ids.txt")}
    result = calibrate_parquet(folder, rows, tmp_path / "out", user="u", item="i", seed=3, buckets=3)
    present = np.isin(np.arange(N_ITEMS), order)
    assert set(log["item"]) == set(range(N_ITEMS))
    assert_same(result.out, in_memory(log, {"image": (features["image"], present)}))


def test_what_was_learned_is_sent_once_and_tasks_carry_none_of_it(log, features, tmp_path, monkeypatch):
    folder = write(log, tmp_path / "log", 2)
    stored: list[Any] = []
    closures: list[int] = []
    put, over = ray.put, parquet._over

    def watched_put(value: Any) -> Any:
        stored.append(type(value).__name__)
        return put(value)

    def watched_over(pieces: Any, function: Any) -> Any:
        closures.append(len(ray.cloudpickle.dumps(function)))
        return over(pieces, function)

    monkeypatch.setattr(ray, "put", watched_put)
    monkeypatch.setattr(parquet, "_over", watched_over)
    rng = np.random.default_rng(2)
    wide = {"image": rng.normal(size=(N_ITEMS, 2000)).astype(np.float32)}  # 720 kB
    settings = CalibrationSettings(learned=False)
    calibrate_parquet(folder, wide, tmp_path / "out", seed=3, buckets=6, settings=settings)
    assert stored.count("Calibrator") == stored.count("_Pieces") == 1  # newer Ray stores things of its own
    assert len(closures) == 4 and max(closures) < 100_000


def test_text_ids(log, features, tmp_path):
    # Names that sort as the numbers do: the null items are those of memory, and so are the scores.
    named = log.assign(user=log["user"].map("u{:05}".format), item=log["item"].map("i{:05}".format))
    np.save(tmp_path / "image.npy", features["image"])
    (tmp_path / "ids.txt").write_text("\n".join(f"i{i:05}" for i in range(N_ITEMS)))
    rows = {"image": (str(tmp_path / "image.npy"), str(tmp_path / "ids.txt"))}
    settings = CalibrationSettings(learned=False)
    outs = [
        calibrate_parquet(write(named, tmp_path / f"log{n}", n), rows, tmp_path / f"out{n}", settings=settings, seed=3,
                          buckets=n)
        for n in (1, 4)
    ]
    one, four = (read(result.out) for result in outs)
    pd.testing.assert_frame_equal(one, four)
    expected = in_memory(log, {"image": features["image"]}, learned=False)
    np.testing.assert_allclose(one["score"], expected.score, atol=1e-6)
    assert outs[0].noise_rate == pytest.approx(expected.noise_rate, abs=0.1)


def test_behaviour_alone_and_the_default_number_of_buckets(log, tmp_path):
    result = calibrate_parquet(write(log, tmp_path / "log", 2), {}, tmp_path / "out", seed=3)
    assert [path.name for path in result.out.glob("*.parquet")] == ["part-000000.parquet"]
    assert_same(result.out, in_memory(log, {}))


# ---------------------------------------------------------------- on the command line


def test_the_command_writes_what_the_function_does(log, features, tmp_path, capsys):
    folder = write(log.rename(columns={"user": "u"}), tmp_path / "log", 2)
    order = np.random.default_rng(0).permutation(N_ITEMS)
    np.save(tmp_path / "image.npy", features["image"])
    np.save(tmp_path / "text.npy", features["text"][0][order])
    (tmp_path / "ids.txt").write_text("\n".join(map(str, order)))
    (tmp_path / "mine.yaml").write_text("guider: {calibration: {learned: false, noise_rate: 0.4, min_profile: 5}}")
    status = main([
        "calibrate", *map(str, sorted(folder.iterdir())), "--out", str(tmp_path / "out"), "--user=u", "--seed=3",
        "--feature", f"image={tmp_path / 'image.npy'}",
        "--feature", f"text={tmp_path / 'text.npy'},{tmp_path / 'ids.txt'}",
        "--buckets=2", "--config_files", str(tmp_path / "mine.yaml"),
        "--guider.calibration.decision=quantile", "--guider.calibration.noise_rate=0.2",
    ])  # fmt: skip
    printed = capsys.readouterr()
    assert status == 0, printed.err
    expected = in_memory(
        log, {"image": features["image"], "text": features["text"][0]},
        learned=False, decision="quantile", noise_rate=0.2, min_profile=5,
    )
    assert_same(tmp_path / "out", expected)
    assert f"noise rate 0.200: {expected.n_true} true and {expected.n_false} false interactions" in printed.out
    assert ray.is_initialized()  # it was running before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--feature", "image.npy"], "--feature is 'image.npy': it must be NAME=ROWS.npy"),
        (["--feature", "a=x.npy", "--feature", "a=y.npy"], "names a modality twice"),
        (["--epochs=3"], "--epochs=3 is no setting of calibrate"),
        (["--guider.calibration.decison=lfdr"], "guider.calibration.decison is not a setting; did you mean"),
        (["--config_files", "none.yaml"], "none.yaml does not exist"),
        ([], "no parquet file matches 'log'"),
    ],
)
def test_the_command_names_mistakes(arguments, message, tmp_path, capsys):
    assert main(["calibrate", "log", "--out", str(tmp_path / "out"), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------- random choices


def test_choices_of_a_user_depend_on_seed_and_user_alone():
    keys = np.arange(-50_000, 50_000)
    numbers = uniform(keys, 5)
    some = np.random.default_rng(0).permutation(len(keys))[:1000]
    np.testing.assert_array_equal(uniform(keys[some], 5), numbers[some])
    assert numbers.min() >= 0 and numbers.max() < 1
    assert np.abs(np.sort(numbers) - np.linspace(0, 1, len(keys))).max() < 0.007  # Kolmogorov, one in 10,000
    assert abs(np.corrcoef(numbers, uniform(keys, 6))[0, 1]) < 0.015
    assert abs(np.corrcoef(numbers[1:], numbers[:-1])[0, 1]) < 0.015
    counts = np.bincount(UserFolds(5, 3)(keys), minlength=3)
    assert np.abs(counts - len(keys) / 3).max() < 5 * np.sqrt(len(keys) / 3)
    assert len(np.unique(hashes(keys, 5))) == len(keys)
    # The published first output of SplitMix64 for the state 0 is the finaliser of its increment.
    from recbole_guider.amsc.folds import _finalise

    assert _finalise(np.array([0x9E3779B97F4A7C15], dtype=np.uint64))[0] == 0xE220A8397B1DCDAF


# ---------------------------------------------------------------- what is wrong is said, and nothing is left


def wrong(change: str, log: pd.DataFrame, features: dict[str, Any], tmp: Path) -> dict[str, Any]:
    """Arguments with one mistake in them."""
    folder = write(log, tmp / "log", 2)
    arguments: dict[str, Any] = {"interactions": folder, "features": features, "out": tmp / "out"}
    last = folder / "log-1.parquet"
    if change == "pattern":
        arguments["interactions"] = str(tmp / "log" / "*.csv")
    elif change == "column":
        arguments["item"] = "product"
    elif change == "rows":
        arguments["features"] = {"image": features["image"][:-1], "text": features["text"]}
    elif change == "too few":
        arguments["features"] = {"image": features["image"][:-5]}
    elif change == "ids":
        (tmp / "ids.txt").write_text("1\n2\n")
        arguments["features"] = {"image": (features["image"], tmp / "ids.txt")}
    elif change == "twice":
        (tmp / "ids.txt").write_text("\n".join(["4"] * N_ITEMS))
        arguments["features"] = {"image": (features["image"], tmp / "ids.txt")}
    elif change == "nan":
        arguments["features"] = {"image": np.where(np.arange(N_ITEMS)[:, None] == 5, np.nan, features["image"])}
    elif change == "no file":
        arguments["features"] = {"image": tmp / "image.npy"}
    elif change == "schema":
        log.iloc[1::2].assign(item=log["item"].astype(np.int32)).to_parquet(last, index=False)
    elif change == "float":
        log.assign(user=0.5).to_parquet(last, index=False)
    elif change == "empty value":
        frame = log.iloc[1::2].astype({"user": "Int64"})
        frame.iloc[3, 0] = pd.NA
        frame.to_parquet(last, index=False)
    elif change == "no parquet":
        last.write_text("user,item")
    elif change == "no rows":
        for path in folder.iterdir():
            pq.write_table(pa.table({"user": pa.array([], pa.int64()), "item": pa.array([], pa.int64())}), path)
    elif change == "taken":
        log.assign(score=1.0).to_parquet(last, index=False)
    elif change == "modality":
        arguments["settings"] = CalibrationSettings(modalities=["smell"])
    elif change == "method":
        arguments["settings"] = CalibrationSettings(method="none")
    elif change == "nothing":
        arguments |= {"features": {}, "settings": CalibrationSettings(behaviour=False)}
    elif change == "text":
        for path in folder.iterdir():
            log.assign(item="x").to_parquet(path, index=False)
    elif change == "buckets":
        arguments["buckets"] = 0
    elif change == "seed":
        arguments["seed"] = -1
    elif change == "below a file":
        np.save(tmp / "image.npy", features["image"])
        arguments["out"] = tmp / "image.npy" / "out"
    return arguments


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("pattern", r"no parquet file matches '.*\*\.csv'"),
        ("column", r"log-0\.parquet has no column 'product'; it has user, item, row, note"),
        ("rows", r"'text' has 90 rows and 'image' has 89"),
        ("too few", r"'item' .* holds the id 89, but the features have 85 rows"),
        ("ids", r"ids\.txt has 2 lines, but modality 'image' has 90 rows"),
        ("twice", r"ids\.txt holds the id 4 twice"),
        ("nan", r"'image' holds NaN or infinity, first at item 5"),
        ("no file", r"'image': there is no file .*image\.npy"),
        ("schema", r"log-1\.parquet has other columns or types than .*log-0\.parquet"),
        ("float", r"Column 'user' of .*log-1\.parquet must hold integers or text, not double"),
        ("empty value", r"Column 'user' of the interactions has empty values"),
        ("no parquet", r"log-1\.parquet is not a parquet file"),
        ("no rows", r"log-0\.parquet.* hold no rows"),
        ("taken", r"log-1\.parquet has a column 'score' already"),
        ("modality", r"'smell'.*image, text"),
        ("method", r"method is none"),
        ("nothing", r"nothing to compare items by"),
        ("text", r"'image' needs the ids of its rows"),
        ("buckets", r"buckets is 0"),
        ("seed", r"seed is -1: it must be a whole number >= 0"),
        ("below a file", r"out is .*image\.npy: .* is a file, and must be a folder"),
    ],
)
def test_mistakes_are_named_and_nothing_is_left(log, features, tmp_path, change, message):
    arguments = wrong(change, log, features, tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(GuiderError, match=message):
        calibrate_parquet(**arguments)
    assert sorted(tmp_path.rglob("*")) == before


def test_what_exists_is_kept(log, features, tmp_path):
    folder = write(log, tmp_path / "log", 1)
    (tmp_path / "out").mkdir()
    with pytest.raises(GuiderError, match="out exists already"):
        calibrate_parquet(folder, features, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_failure_in_the_last_pass_leaves_nothing(log, features, tmp_path, monkeypatch):
    # What is written last fails, when all parts lie there already.
    def fail(*_: Any, **__: Any) -> str:
        raise OSError("no space")

    monkeypatch.setattr("recbole_guider.amsc.parquet.json", SimpleNamespace(dumps=fail))
    folder = write(log, tmp_path / "log", 1)
    settings = CalibrationSettings(learned=False)
    with pytest.raises(OSError, match="no space"):
        calibrate_parquet(folder, features, tmp_path / "out", settings=settings)
    assert [path.name for path in tmp_path.iterdir()] == ["log"]


# ---------------------------------------------------------------- memory


def test_no_process_holds_the_log(tmp_path):
    """500 MB of log through buckets of 8 MB: the peak memory of driver and workers, by /proc, lies far below."""
    if not Path("/proc/self/status").exists():
        pytest.skip("reads peak memory from /proc, which only Linux has")
    script = textwrap.dedent("""
        import glob, json, os, sys, threading, time
        from pathlib import Path
        import numpy as np, pyarrow as pa, pyarrow.parquet as pq

        folder = Path(sys.argv[1])
        rng = np.random.default_rng(0)
        n_rows, n_users, n_items, payload, size = 400_000, 40_000, 2_000, 1_250, 0
        (folder / "log").mkdir()
        for k in range(20):
            n = n_rows // 20
            user, item = rng.integers(n_users, size=n), rng.integers(n_items, size=n)
            words = np.frombuffer(rng.bytes(n * payload), dtype=f"S{payload}")
            words = pa.FixedSizeBinaryArray.from_buffers(pa.binary(payload), n, [None, pa.py_buffer(words)])
            table = pa.table({"user": user, "item": item, "payload": words})
            size += table.nbytes
            pq.write_table(table, folder / f"log/{k}.parquet", row_group_size=4_000, compression="none")
            del words, table

        def descendants(pid):
            for task in glob.glob(f"/proc/{pid}/task/*/children"):
                for child in open(task).read().split():
                    yield child
                    yield from descendants(child)

        peaks, done = {}, threading.Event()
        def watch():
            while not done.is_set():
                for pid in [str(os.getpid()), *descendants(os.getpid())]:
                    try:
                        text = open(f"/proc/{pid}/status").read()
                        name = text.split("\\n")[0].split("\\t")[1]
                        peaks[pid, name] = int(text.split("VmHWM:")[1].split()[0]) * 1024
                    except (OSError, IndexError):
                        pass
                time.sleep(0.05)

        open("/proc/self/clear_refs", "w").write("5")
        import ray
        quiet = {"include_dashboard": False, "log_to_driver": False}
        ray.init(address="local", num_cpus=1, object_store_memory=80_000_000, **quiet)
        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        from recbole_guider.amsc import calibrate_parquet, fit, parquet
        from recbole_guider.amsc.settings import CalibrationSettings
        fit.SAMPLE, fit.LEARN_PAIRS = 20_000, 100_000
        parquet.BUCKET_BYTES, parquet._SPLIT_BYTES = 8_000_000, 8_000_000
        features = {"image": rng.normal(size=(n_items, 8))}
        settings = CalibrationSettings(learned=False, behaviour=False)
        result = calibrate_parquet(folder / "log", features, folder / "out", settings=settings)
        done.set(), thread.join()
        ray.shutdown()
        rows = sum(pq.read_metadata(path).num_rows for path in (folder / "out").glob("*.parquet"))
        print(json.dumps({"log": size, "rows": rows, "n": result.n_true + result.n_false,
                          "peaks": [[*key, value] for key, value in peaks.items()]}))
    """)
    run = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, timeout=900)
    assert run.returncode == 0, run.stderr[-2000:]
    report = json.loads(run.stdout.strip().splitlines()[-1])
    assert report["rows"] == report["n"] == 400_000
    assert report["log"] > 500_000_000
    own = [peak for _, name, peak in report["peaks"] if name.startswith(("python", "pytest", "ray::"))]
    assert len(own) >= 2, report["peaks"]
    assert max(own) < 0.8 * report["log"], report["peaks"]
