"""The sweep as one HTML page that needs no network."""

from __future__ import annotations

import html
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from recbole_guider.tuning.definition import SweepDefinition
from recbole_guider.tuning.importance import MIN_TRIALS, encoded, label, setting_importance

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 1100px; padding: 0 1em; color: #222; }
table { border-collapse: collapse; font-size: 13px; } th, td { padding: .25em .7em; border-bottom: 1px solid #ddd; }
th { text-align: left; } td { font-variant-numeric: tabular-nums; } .wide { overflow-x: auto; }
"""


def write_report(
    file: Path, definition: SweepDefinition, trials: pd.DataFrame, evaluations: pd.DataFrame, result: Mapping[str, Any]
) -> None:
    """Write the page: the winner, parallel coordinates, the metric over time, importances, all trials.

    Args:
        file: where to.
        definition: the sweep.
        trials, evaluations: its tables.
        result: what :func:`~recbole_guider.tuning.tune_guider` returns.
    """
    keys = [setting.key for setting in definition.space]
    scored = trials[np.isfinite(trials["best_valid_score"].astype(float))]
    importance = setting_importance(trials, keys, seed=definition.sampler_seed)
    sections = [
        ("The winner", _winner(definition, result)),
        ("Settings and score", _plot(parallel_coordinates(scored, keys, definition), first=True)),
        ("Validation over training", _plot(metric_over_time(evaluations, definition))),
        (
            "Importance of each setting",
            _plot(importance_bars(importance))
            if len(importance)
            else f"<p>Needs at least {MIN_TRIALS} trials with different scores.</p>",
        ),
        ("All trials", f"<div class=wide>{_table(trials)}</div>"),
    ]
    title = html.escape(f"{definition.settings['model']} on {definition.settings['dataset']}: sweep")
    body = "".join(f"<h2>{name}</h2>\n{content}\n" for name, content in sections)
    file.write_text(
        f"<!doctype html><html lang=en><head><meta charset=utf-8><title>{title}</title><style>{_STYLE}</style></head>"
        f"<body><h1>{title}</h1>\n{body}</body></html>\n",
        encoding="utf-8",
    )


def parallel_coordinates(scored: pd.DataFrame, keys: list[str], definition: SweepDefinition) -> Any:
    """One line for each trial through its settings to its score."""
    import plotly.graph_objects as go

    log = {setting.key for setting in definition.space if setting.kind == "loguniform"}
    dimensions = []
    for key in keys:
        values = encoded(scored[key])
        axis: dict[str, Any] = {"label": key, "values": np.log10(values) if key in log else values}
        texts = [label(value) for value in scored[key]]
        if key in log and len(values):
            ticks = np.linspace(axis["values"].min(), axis["values"].max(), 5)
            axis.update(tickvals=ticks, ticktext=[f"{10**tick:.2g}" for tick in ticks])
        elif len(set(texts)) <= 12:
            places = dict(zip(values, texts, strict=True))
            axis.update(tickvals=sorted(places), ticktext=[places[place] for place in sorted(places)])
        dimensions.append(axis)
    score = scored["best_valid_score"].to_numpy(dtype=float)
    dimensions.append({"label": f"valid {definition.metric}", "values": score})
    line = {"color": score, "colorscale": "Viridis", "reversescale": not definition.bigger, "showscale": True}
    figure = go.Figure(go.Parcoords(dimensions=dimensions, line=line))
    return figure.update_layout(height=420, margin={"l": 90, "r": 60, "t": 60, "b": 30})


def metric_over_time(evaluations: pd.DataFrame, definition: SweepDefinition) -> Any:
    """The validation score of each trial after each evaluation."""
    import plotly.graph_objects as go

    figure = go.Figure()
    for trial, rows in evaluations.groupby("trial", sort=False):
        figure.add_scatter(x=rows["epoch"], y=rows["valid_score"], name=str(trial), mode="lines+markers")
    return figure.update_layout(
        height=420, xaxis_title="epoch", yaxis_title=f"valid {definition.metric}", margin={"t": 20}
    )


def importance_bars(importance: pd.Series) -> Any:
    """The permutation importances."""
    import plotly.graph_objects as go

    ordered = importance.sort_values()
    figure = go.Figure(go.Bar(x=ordered.to_numpy(), y=ordered.index.tolist(), orientation="h"))
    return figure.update_layout(
        height=120 + 40 * len(ordered), xaxis_title="loss of R2 when the setting is shuffled", margin={"t": 20}
    )


def _plot(figure: Any, first: bool = False) -> str:
    """A figure as HTML; the first one of a page brings plotly's script along."""
    text: str = figure.to_html(full_html=False, include_plotlyjs=first)
    return text


def _winner(definition: SweepDefinition, result: Mapping[str, Any]) -> str:
    if result["best_trial"] is None:
        return "<p>No trial was evaluated.</p>"
    rows = [{"setting": key, "value": label(value)} for key, value in result["best_settings"].items()]
    metrics = [
        {"metric": name, "validation": (result["best_valid_result"] or {}).get(name), "test": value}
        for name, value in result["test_result"].items()
    ]
    seeds = f", mean over the seeds {', '.join(map(str, definition.seeds))}" if len(definition.seeds) > 1 else ""
    return (
        f"<p>Trial {html.escape(result['best_trial'])}: validation {html.escape(definition.metric)} "
        f"{result['best_valid_score']:.4f}{seeds}. The file <code>best.yaml</code> runs it again.</p>"
        f"{_table(pd.DataFrame(rows))}<br>{_table(pd.DataFrame(metrics))}"
    )


def _table(table: pd.DataFrame) -> str:
    text: str = table.to_html(index=False, escape=True, na_rep="", float_format=lambda value: f"{value:.5g}", border=0)
    return text
