"""What a benchmark found: tables, paired tests and robustness curves, as markdown and as one HTML page."""

from __future__ import annotations

import html
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from tabulate import tabulate

from recbole_guider.benchmark.runner import metrics_of, read_results, read_users
from recbole_guider.benchmark.spec import Spec, level_of, percent
from recbole_guider.evaluation import Comparison, compare, holm
from recbole_guider.utils.atomic_io import write_whole
from recbole_guider.utils.errors import GuiderError

#: Differences are called significant if both tests are, after Holm's correction.
LEVEL = 0.05
_PLACE = ["dataset", "noise", "model", "method"]
_ENVIRONMENT = ("git commit", "version", "python", "processor", "gpu", "device", "threads")


@dataclass(frozen=True)
class Section:
    """A part of the report: a table or a plot under a heading, with what it shows."""

    title: str
    text: str = ""
    table: pd.DataFrame | None = None
    figure: go.Figure | None = None


def write_report(spec: Spec, folder: Path) -> tuple[Path, Path]:
    """Write ``folder/report.md`` and ``folder/report.html`` from the finished runs.

    Returns:
        The two files.
    """
    rows = read_results(spec, folder)
    sections = list(_sections(spec, rows, folder))
    markdown, page = folder / "report.md", folder / "report.html"
    write_whole(markdown, lambda path: path.write_text(_as_markdown(sections), encoding="utf-8"))
    write_whole(page, lambda path: path.write_text(_as_html(sections), encoding="utf-8"))
    return markdown, page


def summary_table(rows: pd.DataFrame, metrics: list[str]) -> pd.DataFrame:
    """Mean and standard deviation over the seeds: a row for each data set, noise, model and method."""
    lines = []
    for place, group in rows.groupby(_PLACE, sort=False):
        line = dict(zip(_PLACE, place, strict=True)) | {"seeds": len(group)}
        for metric in metrics:
            line[metric] = _mean_and_deviation(group[f"test {metric}"])
        line["best epoch"] = f"{group['best epoch'].mean():.0f}"
        line["s / epoch"] = f"{group['seconds per epoch'].mean():.2f}"
        line["s"] = f"{group['seconds'].mean():.0f}"
        line["peak MB"] = f"{group['peak memory MB'].max():.0f}"
        lines.append(line)
    return pd.DataFrame(lines)


def comparisons(
    spec: Spec, rows: pd.DataFrame, folder: Path, metrics: list[str], left_out: list[str] | None = None
) -> pd.DataFrame:
    """Every method against the baseline on the same model, data set, noise, seeds and users.

    Columns: the place, ``metric``, the fields of :class:`~recbole_guider.evaluation.significance.Comparison`, and
    ``holm_users`` and ``holm_seeds``, corrected over all rows of this table; ``significant`` where both are at
    most 0.05.

    A comparison that cannot be paired has no row; ``left_out``, if given, is told which and why.
    """
    baseline = spec.settings.baseline
    lines = []
    for (dataset, noise, model), group in rows.groupby(_PLACE[:3], sort=False):
        by_method = {
            method: {int(row["seed"]): read_users(str(row["key"]), folder) for _, row in part.iterrows()}
            for method, part in group.groupby("method", sort=False)
        }
        theirs = by_method.pop(baseline, {})
        for method, ours in by_method.items():
            if not set(ours) & set(theirs):
                continue
            place = dict(zip(_PLACE, (dataset, noise, model, method), strict=True))
            unpaired: dict[str, list[str]] = {}
            for metric in metrics:
                try:
                    found = compare(_of_metric(metric, ours), _of_metric(metric, theirs))
                except GuiderError as error:
                    unpaired.setdefault(str(error), []).append(metric)
                else:
                    lines.append({**place, "metric": metric, **found._asdict()})
            if left_out is not None:
                label = ", ".join(f"{key} {value}" for key, value in place.items())
                left_out += [f"{label} ({', '.join(names)}): {reason}" for reason, names in unpaired.items()]
    table = pd.DataFrame(lines, columns=[*_PLACE, "metric", *Comparison._fields])
    table["holm_users"], table["holm_seeds"] = holm(table["p_users"].tolist()), holm(table["p_seeds"].tolist())
    table["significant"] = (table["holm_users"] <= LEVEL) & (table["holm_seeds"] <= LEVEL)
    return table


def _of_metric(metric: str, by_seed: dict[int, pd.DataFrame]) -> dict[int, pd.Series]:
    """seed -> the metric of every user, of the runs that measured it."""
    return {seed: users[metric] for seed, users in by_seed.items() if metric in users}


def curves(spec: Spec, rows: pd.DataFrame, metrics: list[str]) -> pd.DataFrame:
    """A metric against the amount of noise: a row for each data set, kind of noise, model, method and level.

    Columns: ``dataset``, ``kind``, ``model``, ``method``, ``level``, and for each metric its mean, ``<metric> sd``, and
    ``<metric> kept``, the share of its value without noise. Runs without noise begin the curve of every kind.
    """
    levels = {label: level_of(noise) for label, noise in spec.settings.noise.items()}
    kinds = list(dict.fromkeys(kind for kind, _ in levels.values() if kind))
    lines = []
    for kind in kinds:
        for (dataset, model, method), group in rows.groupby(["dataset", "model", "method"], sort=False):
            points = []
            for label, part in group.groupby("noise", sort=False):
                its_kind, level = levels[str(label)]
                if its_kind in ("", kind):
                    points.append((level, part))
            points.sort(key=lambda point: point[0])
            for level, part in points if len(points) > 1 else []:
                line = {"dataset": dataset, "kind": kind, "model": model, "method": method, "level": level}
                for metric in metrics:
                    values = part[f"test {metric}"]
                    line |= {metric: values.mean(), f"{metric} sd": values.std()}
                    start = points[0][1][f"test {metric}"].mean() if points[0][0] == 0 else float("nan")
                    line[f"{metric} kept"] = values.mean() / start if start else float("nan")
                lines.append(line)
    return pd.DataFrame(lines)


# -- sections ------------------------------------------------------------------------------------------------------


def _sections(spec: Spec, rows: pd.DataFrame, folder: Path) -> Iterator[Section]:
    total = len(spec.cells)
    missing = "" if len(rows) == total else f" {total - len(rows)} of {total} runs are missing."
    yield Section(
        "Benchmark",
        f"{len(rows)} runs: models x methods x data sets x noise x seeds. In every run the epoch is chosen by "
        f"validation and test is evaluated once, there.{missing}",
    )
    if rows.empty:
        return
    metrics = metrics_of(spec, rows)
    yield Section("Results", "Test metrics, mean ± standard deviation over the seeds.", summary_table(rows, metrics))
    yield from _bars(rows, metrics)
    left_out: list[str] = []
    tested = comparisons(spec, rows, folder, metrics, left_out)
    if len(tested) or left_out:
        yield Section(
            f"Against {spec.settings.baseline}",
            "Paired differences on the same users and seeds, with a 95% interval. p over users: t-test of each user's "
            "difference, averaged over seeds (beside it Wilcoxon's signed-rank test); p over seeds: t-test of each "
            "seed's difference, averaged over users. Both are corrected by Holm over all rows of this table; a "
            f"difference is marked * where both are at most {LEVEL}."
            + "".join(f" Left out: {line}" for line in left_out),
            _tested(tested) if len(tested) else None,
        )
    noisy = curves(spec, rows, metrics)
    if len(noisy):
        yield Section(
            "Robustness", "Metrics against the amount of noise, and the share that is kept of the value without noise.",
            _rounded(noisy),
        )
        yield from _curve_figures(noisy, metrics)
    detected = _detection(rows)
    if detected is not None:
        yield Section("Detection of injected noise", "How GUIDER's calibration ranks the injected pairs.", detected)
    there = [column for column in rows.columns if column in _ENVIRONMENT or str(column).endswith(" version")]
    lines = [{"what": column, "values": ", ".join(map(str, rows[column].dropna().unique()))} for column in there]
    yield Section("Environment", "", pd.DataFrame(lines))


def _tested(table: pd.DataFrame) -> pd.DataFrame:
    return pd.DataFrame(
        {
            **{column: table[column] for column in [*_PLACE, "metric"]},
            "baseline": table["theirs"].map("{:.4f}".format),
            "difference": [
                f"{row.difference:+.4f} ({row.relative:+.1%}){' *' if row.significant else ''}"
                for row in table.itertuples()
            ],
            "95% interval": [f"{row.low:+.4f} to {row.high:+.4f}" for row in table.itertuples()],
            **{
                title: table[column].map(_p_value)
                for title, column in (
                    ("p users", "p_users"), ("Wilcoxon", "p_wilcoxon"), ("p seeds", "p_seeds"),
                    ("Holm users", "holm_users"), ("Holm seeds", "holm_seeds"),
                )
            },
            "users": table["users"], "seeds": table["seeds"],
        }
    )


def _p_value(p: float) -> str:
    return "" if p != p else f"{p:.3f}" if p >= 0.001 else f"{p:.0e}"


def _rounded(table: pd.DataFrame) -> pd.DataFrame:
    table = table.copy()
    for column in table.select_dtypes("number"):
        style = percent if column == "level" else ("{:.1%}" if column.endswith(" kept") else "{:.4f}").format
        table[column] = ["" if value != value else style(value) for value in table[column]]
    return table


def _mean_and_deviation(values: pd.Series) -> str:
    return f"{values.mean():.4f}" + (f" ± {values.std():.4f}" if len(values) > 1 else "")


def _detection(rows: pd.DataFrame) -> pd.DataFrame | None:
    columns = [column for column in rows.columns if str(column).startswith("detection ")]
    found = rows.dropna(subset=columns, how="all") if columns else rows[:0]
    if found.empty:
        return None
    lines = []
    for place, group in found.groupby(_PLACE, sort=False):
        line = dict(zip(_PLACE, place, strict=True))
        line |= {str(column).removeprefix("detection "): f"{group[column].mean():.3f}" for column in columns}
        lines.append(line | {"estimated": f"{group['noise rate'].mean():.3f}"})
    return pd.DataFrame(lines)


# -- plots ---------------------------------------------------------------------------------------------------------

#: above the plot: names of models and methods are long
_LEGEND = {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"}


def _deviations(values: pd.Series) -> dict[str, Any] | None:
    """Error bars; none for single seeds."""
    return {"type": "data", "array": values.fillna(0).tolist()} if values.notna().any() else None


def _bars(rows: pd.DataFrame, metrics: list[str]) -> Iterator[Section]:
    for (dataset, noise), group in rows.groupby(["dataset", "noise"], sort=False):
        for metric in metrics:
            figure = go.Figure()
            for method, part in group.groupby("method", sort=False):
                found = part.groupby("model", sort=False)[f"test {metric}"].agg(["mean", "std"])
                figure.add_bar(
                    name=str(method), x=found.index.tolist(), y=found["mean"].tolist(),
                    error_y=_deviations(found["std"]),
                )
            figure.update_layout(barmode="group", yaxis_title=metric, xaxis_title="model", height=420, legend=_LEGEND)
            yield Section(f"{metric} on {dataset}, noise {noise}", figure=figure)


def _curve_figures(table: pd.DataFrame, metrics: list[str]) -> Iterator[Section]:
    for (dataset, kind), group in table.groupby(["dataset", "kind"], sort=False):
        for metric in metrics:
            figure = go.Figure()
            for (model, method), part in group.groupby(["model", "method"], sort=False):
                figure.add_scatter(
                    name=f"{model}, {method}", x=part["level"].tolist(), y=part[metric].tolist(), mode="lines+markers",
                    error_y=_deviations(part[f"{metric} sd"]),
                )
            figure.update_layout(
                xaxis_title=kind, yaxis_title=metric, xaxis_tickformat="~%", height=480, legend=_LEGEND
            )
            yield Section(f"{metric} on {dataset} against {kind}", figure=figure)


# -- formats -------------------------------------------------------------------------------------------------------


def _as_markdown(sections: list[Section]) -> str:
    parts = []
    for number, section in enumerate(sections):
        if section.figure is not None:
            continue  # the page has them
        parts += [f"{'#' if number == 0 else '##'} {section.title}", section.text]
        if section.table is not None:
            rows = section.table.astype(object).where(section.table.notna(), "").values.tolist()
            parts.append(tabulate(rows, headers=list(section.table), tablefmt="github", disable_numparse=True))
    return "\n\n".join(part for part in parts if part) + "\n"


_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 1200px; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; font-size: 13px; display: block; overflow-x: auto; }
th, td { border-bottom: 1px solid #ddd; padding: 4px 10px; text-align: left; white-space: nowrap; }
th { background: #f4f4f4; }
"""


def _as_html(sections: list[Section]) -> str:
    """One page that needs no network: plotly's script is in it, once."""
    parts = []
    script: bool | str = "inline"
    for number, section in enumerate(sections):
        size = 1 if number == 0 else 3 if section.figure is not None else 2
        parts.append(f"<h{size}>{html.escape(section.title)}</h{size}>")
        if section.text:
            parts.append(f"<p>{html.escape(section.text)}</p>")
        if section.table is not None:
            parts.append(section.table.to_html(index=False, border=0, na_rep=""))
        if section.figure is not None:
            parts.append(section.figure.to_html(full_html=False, include_plotlyjs=script))
            script = False
    title = html.escape(sections[0].title)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{_STYLE}</style></head><body>\n" + "\n".join(parts) + "\n</body></html>\n"
    )
