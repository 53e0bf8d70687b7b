"""Compare models on data sets over seeds: one CSV row a run, resumable, with a table of means and deviations.

    python benchmarks/compare.py --data data --datasets tiktok citeulike --seeds 2020 2021 2022 --out compare.csv

``data`` holds what ``recbole-guider convert`` wrote. A run that is in the CSV already is not repeated, so that a
stopped comparison continues. The best epoch is chosen by validation; test is evaluated once, there.

Methods: any model's name; ``teacher`` is GUIDER's teacher by itself (LightGCN on the DBPR loss, no student). LightGCN
is trained by RecBole's class, or with ``--fast`` by this package's, which computes the same several times faster.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from recbole_guider.config import GuiderConfig
from recbole_guider.model.accelerated import fastest
from recbole_guider.quick_start import _prepare

TEACHER = {"distillation": {"objective": "none"}, "student_loss": "dbpr"}


def run(
    method: str, dataset: str, seed: int, data: Path, settings: dict[str, Any], epochs: int, fast: bool
) -> dict[str, Any]:
    """One run; the row that goes into the CSV."""
    changes: dict[str, Any] = {"seed": seed, "epochs": epochs, "state": "WARNING", "show_progress": False}
    changes |= settings
    model = method
    if method == "teacher":
        model = "GUIDER_LightGCN"
        for key, value in TEACHER.items():
            for name, inner in value.items() if isinstance(value, dict) else [("", value)]:
                changes[f"guider.{key}.{name}".rstrip(".")] = inner
    elif not method.startswith("GUIDER_"):
        changes = {key: value for key, value in changes.items() if not key.startswith("guider.")}
    config = GuiderConfig(model, dataset, [data / f"{dataset}.yaml"], changes, command_line=[])
    if fast:
        config.model_class = fastest(config.model_class)
    trainer, train, valid, test = _prepare(config)
    seconds: list[tuple[float, float]] = []
    train_epoch = trainer._train_epoch

    def timed(*arguments: Any, **more: Any) -> Any:
        wall, cpu = time.perf_counter(), time.process_time()
        losses = train_epoch(*arguments, **more)
        seconds.append((time.perf_counter() - wall, time.process_time() - cpu))
        return losses

    trainer._train_epoch = timed
    start = time.perf_counter()
    scores: list[float] = []
    trainer.fit(train, valid, verbose=False, callback_fn=lambda epoch, score: scores.append(score))
    best = [epoch for epoch, score in enumerate(scores) if score == trainer.best_valid_score]
    total = time.perf_counter() - start
    result = trainer.evaluate(test, load_best_model=True)
    Path(trainer.saved_model_file).unlink()
    frame = pd.DataFrame(seconds)
    return {
        "method": method, "dataset": dataset, "seed": seed, "settings": json.dumps(settings, sort_keys=True),
        **{f"valid {name}": value for name, value in trainer.best_valid_result.items()},
        **{f"test {name}": value for name, value in result.items()},
        "epochs": len(seconds), "best epoch": best[-1] if best else -1,
        "seconds per epoch": frame[0].median(), "cpu seconds per epoch": frame[1].median(), "seconds": total,
        "threads": torch.get_num_threads(),
    }


def main() -> None:
    """Parse the arguments, run what the CSV lacks, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of <dataset>/ and <dataset>.yaml")
    parser.add_argument("--datasets", nargs="+", default=["tiktok", "citeulike"])
    parser.add_argument("--methods", nargs="+", default=["LightGCN", "FREEDOM", "teacher", "GUIDER_FREEDOM"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[2020, 2021, 2022])
    parser.add_argument("--epochs", type=int, default=300)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="settings, such as guider.dbpr.eta=0")
    parser.add_argument("--out", type=Path, default=Path("compare.csv"))
    parser.add_argument("--fast", action="store_true", help="LightGCN by this package's class")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    settings = dict(pair.split("=", 1) for pair in arguments.set)
    for seed in arguments.seeds:
        for dataset in arguments.datasets:
            for method in arguments.methods:
                if arguments.out.exists():
                    done = pd.read_csv(arguments.out)
                    same = (done["method"] == method) & (done["dataset"] == dataset) & (done["seed"] == seed)
                    if (same & (done["settings"] == json.dumps(settings, sort_keys=True))).any():
                        continue
                found = run(method, dataset, seed, arguments.data, dict(settings), arguments.epochs, arguments.fast)
                row = pd.DataFrame([found])
                if arguments.out.exists():
                    row = pd.concat([pd.read_csv(arguments.out), row])
                row.to_csv(arguments.out, index=False)
                print(row.iloc[-1].to_dict(), flush=True)
    table = pd.read_csv(arguments.out).groupby(["dataset", "settings", "method"], sort=False)
    columns = ["valid recall@20", "test recall@20", "test ndcg@20", "best epoch", "seconds per epoch",
               "cpu seconds per epoch"]
    print(table[columns].agg(["mean", "std"]).round(4).to_markdown())


if __name__ == "__main__":
    main()
