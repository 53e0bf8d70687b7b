"""Short runs whose numbers a redesign must not change: the check that what was rebuilt is still the same.

    python benchmarks/golden.py record benchmarks/golden/python3.13.json
    python benchmarks/golden.py check benchmarks/golden/python3.13.json --only calibrate

``record`` before a change, ``check`` after each step. A run is recorded with every metric to the last digit and with a
hash of the weights; a calibration with hashes of what it says of the pairs. Hashes and last digits compare only on one
kind of processor with one set of libraries, which the file names; elsewhere ``check`` says so and compares metrics to
six decimals. Only public names are used, so that nothing here has to follow a redesign.
"""

from __future__ import annotations

import os

os.environ.update(OMP_NUM_THREADS="1", TQDM_DISABLE="1")  # before torch is imported

import argparse
import hashlib
import json
import logging
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

LIBRARIES = ("torch", "numpy", "scipy", "scikit-learn", "pandas", "pyarrow", "ray", "recbole")
#: to how many decimals metrics are compared where last digits are not
DECIMALS = 6

Result = dict[str, Any]


# -- made-up data -------------------------------------------------------------------------------------------------


def write_data(folder: Path, name: str = "golden", n_users: int = 150, n_items: int = 90, n_tastes: int = 6) -> None:
    """A data set with planted tastes: interactions with times, images, and texts that some items lack."""
    rng = np.random.default_rng(11)
    taste = np.arange(n_items) % n_tastes
    lines = ["user_id:token\titem_id:token\ttimestamp:float"]
    for user in range(n_users):
        liked = np.flatnonzero(taste == user % n_tastes)
        chosen = np.union1d(rng.choice(liked, size=9, replace=False), rng.choice(n_items, size=3, replace=False))
        lines += [f"u{user}\ti{item}\t{time_}" for time_, item in enumerate(rng.permutation(chosen))]
    (folder / name).mkdir()
    (folder / name / f"{name}.inter").write_text("\n".join(lines) + "\n")
    centres = rng.normal(size=(n_tastes, 12))
    image = centres[taste] + 0.5 * rng.normal(size=(n_items, 12))
    text = (centres[taste][:, :8] + 0.5 * rng.normal(size=(n_items, 8)))[: n_items - 7]
    for modality, values in (("image", image), ("text", text)):
        np.save(folder / name / f"{modality}.npy", values.astype(np.float32))
        ids = "\n".join(f"i{item}" for item in range(len(values)))
        (folder / name / f"{modality}_ids.txt").write_text(ids + "\n")


def settings(folder: Path) -> dict[str, Any]:
    """What the runs on the made-up data have in common."""
    return {
        "data_path": str(folder), "load_col": {"inter": ["user_id", "item_id"]},
        "modalities": {name: {"file": f"{name}.npy", "ids": f"{name}_ids.txt"} for name in ("image", "text")},
        "epochs": 3, "train_batch_size": 256, "embedding_size": 16, "learning_rate": 0.01, "topk": [5, 10],
        "metrics": ["Recall", "NDCG"], "valid_metric": "Recall@5", "metric_decimal_place": 16,
        "eval_args": {"split": {"RS": [0.7, 0.15, 0.15]}, "order": "RO", "group_by": "user", "mode": "full"},
        "show_progress": False, "use_gpu": False, "state": "ERROR",
    }


# -- runs ---------------------------------------------------------------------------------------------------------


def digest(*arrays: np.ndarray) -> str:
    """Hexadecimal digits that stand for types, shapes and bytes, in this order."""
    total = hashlib.sha256()
    for array in arrays:
        total.update(f"{array.dtype} {array.shape}".encode() + np.ascontiguousarray(array).tobytes())
    return total.hexdigest()[:16]


def weights(model_file: str) -> str:
    """A hash of a checkpoint's weights that does not depend on what its parameters are called."""
    from recbole_guider import load_data_and_model

    state = load_data_and_model(model_file)[1].state_dict()
    tensors = sorted(digest(value.numpy()) for value in state.values() if isinstance(value, torch.Tensor))
    return hashlib.sha256("".join(tensors).encode()).hexdigest()[:16]


def run(model: str, folder: Path, dataset: str = "golden", **more: Any) -> Result:
    """A whole run: train, validate, test."""
    from recbole_guider import run_recbole_guider

    return described(run_recbole_guider(model, dataset, config_dict={**settings(folder), **more}))


def run_in_two_processes(model: str, folder: Path, **more: Any) -> Result:
    """The same by two processes over gloo."""
    from recbole_guider.quick_start import run as run_in_processes

    result = run_in_processes(model, "golden", config_dict={**settings(folder), **more}, nproc=2)
    assert result is not None
    return described(result)


def described(result: Mapping[str, Any]) -> Result:
    """What is kept of a run."""
    metrics = {f"valid {name}": value for name, value in (result["best_valid_result"] or {}).items()}
    metrics |= {f"test {name}": value for name, value in (result["test_result"] or {}).items()}
    found = result["calibration"]
    if found:
        metrics |= {key: found[key] for key in ("noise_rate", "n_true", "n_false")}
        metrics |= {f"weight of {name}": value for name, value in found["modality_weights"].items()}
        if found["detection"]:
            metrics |= {f"detection {name}": value for name, value in found["detection"].items()}
    numbers = {name: float(value) for name, value in metrics.items() if np.isreal(value)}
    return {"metrics": numbers, "weights": weights(result["model_file"])}


def pairs_and_features(folder: Path) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    rows = [line.split("\t") for line in (folder / "golden" / "golden.inter").read_text().splitlines()[1:]]
    users, items = (np.array([int(row[column][1:]) for row in rows]) for column in (0, 1))
    image, text = (np.load(folder / "golden" / f"{name}.npy") for name in ("image", "text"))
    has_text = np.arange(len(image)) < len(text)
    text = np.concatenate([text, np.zeros((len(image) - len(text), text.shape[1]), text.dtype)])
    return users, items, {"image": image, "text": (text, has_text)}


def in_memory(folder: Path) -> Result:
    """AMSC on arrays."""
    from recbole_guider.amsc import calibrate

    users, items, features = pairs_and_features(folder)
    found = calibrate(users, items, features, n_users=users.max() + 1, n_items=items.max() + 1, seed=5)
    arrays = {name: np.asarray(getattr(found, name)) for name in ("score", "clean_probability", "is_clean")}
    metrics = {"noise_rate": found.noise_rate, "mean": arrays["clean_probability"].mean()}
    metrics |= {f"weight of {name}": value for name, value in found.modality_weights.items()}
    return {
        "metrics": {name: float(value) for name, value in metrics.items()},
        "weights": digest(*arrays.values(), np.asarray(found.confidence)),
    }


def from_parquet(folder: Path) -> Result:
    """AMSC on parquet files."""
    import pandas as pd

    from recbole_guider.amsc import calibrate_parquet

    users, items, features = pairs_and_features(folder)
    log = folder / "log.parquet"
    pd.DataFrame({"user": users, "item": items}).to_parquet(log)
    with tempfile.TemporaryDirectory(dir=folder) as out:
        image = folder / "golden" / "image.npy"
        found = calibrate_parquet([str(log)], {"image": str(image)}, str(Path(out) / "calibrated"), seed=5)
        table = pd.read_parquet(found.out).sort_values(["user", "item"])
    names = ("clean_probability", "is_clean")
    metrics = {"noise_rate": found.noise_rate, "mean": table["clean_probability"].mean(), "n_true": found.n_true}
    return {
        "metrics": {name: float(value) for name, value in metrics.items()},
        "weights": digest(*(table[name].to_numpy() for name in names)),
    }


ML_100K = {
    "dataset": "ml-100k", "epochs": 1, "train_batch_size": 2048, "data_path": "dataset", "load_col": None,
    "modalities": {
        "title": {"columns": ["movie_title"], "encoder": "tfidf_svd", "dim": 32}, "image": None, "text": None
    },
}
QUICK = {"calibration": {"learned": False}}
RUNS: dict[str, Callable[[Path], Result]] = {
    "plain BPR": partial(run, "BPR"),
    "plain FREEDOM": partial(run, "FREEDOM"),
    "plain BM3, mirror gradient": partial(run, "BM3", mirror_gradient=True),
    "plain LightGCN on ml-100k": partial(run, "LightGCN", **ML_100K),
    "plain NCL, a trainer of its own": partial(run, "NCL", num_clusters=3, m_step=2, warm_up_step=1),
    "GUIDER LightGCN": partial(run, "GUIDER_LightGCN"),
    "GUIDER FREEDOM on ml-100k": partial(run, "GUIDER_FREEDOM", guider=QUICK, **ML_100K),
    "GUIDER FREEDOM, noise": partial(
        run, "GUIDER_FREEDOM", noise={"interactions": 0.3, "features": 0.1}, guider={"eval_mask": "mmrec"}
    ),
    "GUIDER VBPR, min norm, gamma": partial(
        run, "GUIDER_VBPR", guider={"distillation": {"balance": "min_norm"}, "dbpr": {"gamma": 0.1}, **QUICK}
    ),
    "GUIDER BM3, own loss weighted": partial(
        run, "GUIDER_BM3", guider={"student_loss": "own", "student_weighting": "weight", **QUICK}
    ),
    "GUIDER FREEDOM, own loss resampled, pretrained": partial(
        run, "GUIDER_FREEDOM", guider={"student_loss": "own", "schedule": "pretrained", **QUICK}
    ),
    "GUIDER LightGCN, pairwise, KL": partial(
        run, "GUIDER_LightGCN",
        guider={"dbpr": {"form": "pairwise"}, "distillation": {"objective": "kl"}, "teacher": "BPR", **QUICK},
    ),
    "GUIDER MGCN, batch plan by scores": partial(
        run, "GUIDER_MGCN", guider={"distillation": {"plan": "batch", "cost": "scores"}, **QUICK}
    ),
    "GUIDER MultiVAE, rows": partial(
        run, "GUIDER_MultiVAE", guider=QUICK, mlp_hidden_size=[16], latent_dimension=8, train_batch_size=32
    ),
    "GUIDER NeuMF, pairs": partial(run, "GUIDER_NeuMF", guider=QUICK, mlp_hidden_size=[16], mf_embedding_size=8),
    "GUIDER NCL, a trainer of its own": partial(
        run, "GUIDER_NCL", guider=QUICK, num_clusters=3, m_step=2, warm_up_step=1
    ),
    "GUIDER FREEDOM, released": partial(run, "GUIDER_FREEDOM", guider={"variant": "released"}),
    "GUIDER FREEDOM, stopped and resumed": partial(
        run, "GUIDER_FREEDOM", guider=QUICK,
        replay={"stages": [{"epoch": 2, "settings": {"guider.dbpr.eta": 0.3}}], "stop_after": 3},
    ),
    "GUIDER FREEDOM, two processes": partial(run_in_two_processes, "GUIDER_FREEDOM", guider=QUICK),
    **{
        f"{method} around LightGCN": partial(run, "LightGCN", denoising={"method": method, "loss_form": form})
        for method, form in (("t-ce", "own"), ("r-ce", "softmax"), ("dcf", "own"), ("deca", "own"), ("bod", "softmax"))
    },
    "sgdl around FREEDOM": partial(run, "FREEDOM", denoising={"method": "sgdl", "history": 2}, epochs=4),
    "calibrate": in_memory,
    "calibrate parquet": from_parquet,
}


# -- record and check ---------------------------------------------------------------------------------------------


def environment() -> dict[str, str]:
    """What numbers to the last digit depend on."""
    processor = next(
        (line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")),
        platform.processor(),
    )
    versions = {name: metadata.version(name) for name in LIBRARIES}
    return {"python": platform.python_version(), "processor": processor, **versions}


def _lines(file: str) -> list[str]:
    return Path(file).read_text().splitlines() if Path(file).exists() else []


def run_all(only: str) -> dict[str, Result]:
    """The runs whose names hold ``only``, each in order, in a folder that goes afterwards."""
    torch.set_num_threads(1)
    results: dict[str, Result] = {}
    started_in = os.getcwd()
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        os.chdir(folder)  # runs write logs and checkpoints into it
        try:
            write_data(folder)
            for name, one in RUNS.items():
                if only in name:
                    start = time.time()
                    results[name] = one(folder)
                    logging.getLogger().handlers.clear()
                    print(f"  {name}: {time.time() - start:.1f} s", file=sys.stderr, flush=True)
        finally:
            os.chdir(started_in)
    return results


def difference(old: Result, new: Result, exact: bool) -> str:
    """What differs, in words; empty: nothing."""
    places = 17 if exact else DECIMALS
    told = [
        f"{name} {old['metrics'].get(name)} -> {new['metrics'].get(name)}"
        for name in sorted({*old["metrics"], *new["metrics"]})
        if name not in old["metrics"] or name not in new["metrics"]
        or round(old["metrics"][name] - new["metrics"][name], places) != 0
    ]
    if exact and old["weights"] != new["weights"]:
        told.append(f"weights {old['weights']} -> {new['weights']}")
    return ", ".join(told)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("record", "check"))
    parser.add_argument("file", type=Path, help="JSON file of recorded numbers")
    parser.add_argument("--only", default="", help="only runs whose names hold this")
    given = parser.parse_args(arguments)
    sys.argv = sys.argv[:1]  # RecBole reads settings from there
    if given.what == "record":
        recorded = {"environment": environment(), "runs": run_all(given.only)}
        given.file.parent.mkdir(parents=True, exist_ok=True)
        given.file.write_text(json.dumps(recorded, indent=1) + "\n")
        return 0
    recorded = json.loads(given.file.read_text())
    here = environment()
    others = [
        f"{name} {value}, not {here[name]}" for name, value in recorded["environment"].items() if here[name] != value
    ]
    if others:
        print(f"recorded with {'; '.join(others)}: metrics are compared to {DECIMALS} decimals")
    results = run_all(given.only)
    missing = [name for name in recorded["runs"] if given.only in name and name not in results]
    for name in missing:
        print(f"MISSING {name}")
    failed = len(missing) + (not results)  # a check of nothing is none
    for name, new in results.items():
        told = difference(recorded["runs"][name], new, exact=not others) if name in recorded["runs"] else "not recorded"
        failed += bool(told)
        print(f"{'DIFFERS' if told else 'equal  '} {name}{': ' if told else ''}{told}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
