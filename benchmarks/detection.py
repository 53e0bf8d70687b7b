"""How well AMSC finds injected noise.

    python benchmarks/detection.py FOLDER [--ratio 0.2] [--seeds 0 1 2] [--evidence both content] [--csv detection.csv]

FOLDER holds ``interactions.csv`` (user, item, split), ``<modality>_feat.npy`` and, where rows are missing,
``<modality>_ids.txt``. Random pairs that occur in no split are added to the training pairs, users drawn by activity
and items by popularity, so that degrees tell nothing (``--uniform`` draws both uniformly). All training pairs are then
ranked by ``clean_probability``, with behaviour as evidence (``both``) and without (``content``). ``--ratio 0`` adds
nothing: of the figures only the estimated share of noise is left. Printed as markdown: AUROC (ties count half), average
precision of the noise, precision at the injected count, the estimated and the injected share of noise, the largest
ratio of flagged to true noise in a fifth of the pairs by popularity and by activity, processor seconds. Beside it, what
profile size alone scores under the uniform protocol, where degrees give the noise away. ``--csv`` appends one row for
each run.
"""

from __future__ import annotations

import argparse
import csv
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from recbole_guider.amsc import CalibrationSettings, calibrate
from recbole_guider.data.noise import inject_interactions
from recbole_guider.evaluation import detection_figures, detection_report

#: What may be seen of the pairs -> how the tables call it.
EVIDENCE = {"both": "content + behaviour", "content": "content"}
COLUMNS = ["data", "protocol", "ratio", "seed", "method", "auroc", "average_precision", "precision", "estimated"]
COLUMNS += ["injected", "popularity_flags", "activity_flags", "cpu_seconds"]
Features = dict[str, tuple[np.ndarray, np.ndarray]]


def read_folder(folder: Path) -> tuple[pd.DataFrame, int, int, Features]:
    """interactions.csv, the numbers of users and items, and the features with their presence masks."""
    interactions = pd.read_csv(folder / "interactions.csv")
    n_users, n_items = int(interactions["user"].max()) + 1, int(interactions["item"].max()) + 1
    features = {}
    for path in sorted(folder.glob("*_feat.npy")):
        name = path.name.removesuffix("_feat.npy")
        rows = np.load(path, allow_pickle=False).astype(np.float32)
        ids_file = folder / f"{name}_ids.txt"
        ids = np.loadtxt(ids_file, dtype=np.int64) if ids_file.exists() else np.arange(len(rows))
        known = ids < n_items
        values, present = np.zeros((n_items, rows.shape[1]), dtype=np.float32), np.zeros(n_items, dtype=bool)
        values[ids[known]], present[ids[known]] = rows[known], True
        features[name] = (values, present)
    return interactions, n_users, n_items, features


def noisy_training_pairs(
    interactions: pd.DataFrame, n_users: int, n_items: int, ratio: float, seed: int, uniform: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(users, items, is_noise) of the training pairs with the added ones at the end."""
    train = interactions[interactions["split"] == "train"]
    users, items = train["user"].to_numpy(), train["item"].to_numpy()
    added_users, added_items = inject_interactions(
        users,
        items,
        n_users,
        n_items,
        ratio,
        forbidden_users=interactions["user"].to_numpy(),
        forbidden_items=interactions["item"].to_numpy(),
        user_distribution="uniform" if uniform else "activity",
        item_distribution="uniform" if uniform else "popularity",
        seed=seed,
    )
    is_noise = np.repeat([False, True], [len(users), len(added_users)])
    return np.concatenate([users, added_users]), np.concatenate([items, added_items]), is_noise


def run(folder: Path, args: argparse.Namespace) -> Iterator[dict[str, object]]:
    """One row for each seed and method."""
    interactions, n_users, n_items, features = read_folder(folder)
    for seed in args.seeds:
        users, items, noise = noisy_training_pairs(interactions, n_users, n_items, args.ratio, seed, args.uniform)
        common = {"data": folder.name, "ratio": args.ratio, "seed": seed, "injected": noise.mean()}
        for evidence in args.evidence:
            settings = CalibrationSettings(
                behaviour=evidence == "both",
                min_profile=args.min_profile,
                learned=not args.plain,
                nearest=not args.plain,
            )
            start = time.process_time()
            result = calibrate(users, items, features, n_users=n_users, n_items=n_items, settings=settings, seed=seed)
            seconds = time.process_time() - start
            yield (
                common
                | detection_report(-result.clean_probability, noise, users, items)
                | {
                    "protocol": "uniform" if args.uniform else "activity x popularity",
                    "method": EVIDENCE[evidence] + (" (plain)" if args.plain else ""),
                    "estimated": result.noise_rate,
                    "cpu_seconds": seconds,
                }
            )
        if not args.ratio:
            continue
        users, items, noise = noisy_training_pairs(interactions, n_users, n_items, args.ratio, seed, True)
        size = np.bincount(users, minlength=n_users)[users]
        yield common | detection_figures(-size, noise) | {"protocol": "uniform", "method": "profile size alone"}


def table(rows: pd.DataFrame) -> str:
    """Means over the seeds as a markdown table."""
    keys = ["data", "protocol", "ratio", "method"]
    lines = ["| " + " | ".join(keys + COLUMNS[5:]) + " |", "|" + "---|" * (len(keys) + len(COLUMNS[5:]))]
    for names, group in rows.groupby(keys, sort=False):
        cells = [str(name) for name in names]
        for column in COLUMNS[5:]:
            mean = group[column].mean()
            cells.append("-" if np.isnan(mean) else f"{mean:.1f}" if column == "cpu_seconds" else f"{mean:.3f}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Read the command line, run, print, append."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--ratio", type=float, default=0.2, help="added pairs as a share of the training pairs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--evidence", nargs="+", choices=EVIDENCE, default=list(EVIDENCE))
    parser.add_argument("--uniform", action="store_true", help="draw users and items of the noise uniformly")
    parser.add_argument("--min-profile", type=int, default=CalibrationSettings().min_profile)
    parser.add_argument("--plain", action="store_true", help="without learned similarities and nearest items")
    parser.add_argument("--csv", type=Path, help="append one row for each run")
    args = parser.parse_args()
    rows = pd.DataFrame(list(run(args.folder, args)), columns=COLUMNS)
    print(table(rows))
    if args.csv:
        new = not args.csv.exists()
        with args.csv.open("a", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            if new:
                writer.writerow(COLUMNS)
            writer.writerows(rows.itertuples(index=False))


if __name__ == "__main__":
    main()
