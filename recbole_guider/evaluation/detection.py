"""How well noise is found where it is known which interactions are noise."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from sklearn.metrics import average_precision_score, roc_auc_score

from recbole_guider.utils.groups import group_edges


def detection_figures(suspicion: np.ndarray, is_noise: np.ndarray) -> dict[str, float]:
    """How a score that is high for noise ranks the interactions.

    Args:
        suspicion: floats [nnz].
        is_noise: bool [nnz].

    Returns:
        ``auroc``: probability that a noisy interaction is more suspicious than another one, ties half;
        ``average_precision`` of the noise; ``precision``: the share of noise among the most suspicious interactions,
        as many as are noise, ties at the cut sharing the places that are left. NaN where all or none are noise.
    """
    count = int(is_noise.sum())
    if not 0 < count < len(is_noise):
        return {"auroc": float("nan"), "average_precision": float("nan"), "precision": float("nan")}
    cut = np.partition(suspicion, len(suspicion) - count)[len(suspicion) - count]
    above, tied = suspicion > cut, suspicion == cut
    hits = is_noise[above].sum() + is_noise[tied].mean() * (count - above.sum())
    return {
        "auroc": float(roc_auc_score(is_noise, suspicion)),
        "average_precision": float(average_precision_score(is_noise, suspicion)),
        "precision": float(hits / count),
    }


def worst_group(degree: np.ndarray, flagged: np.ndarray, is_noise: np.ndarray, groups: int = 5) -> float:
    """Largest (share flagged) / (share of noise) over groups of pairs of about equal size by ``degree``.

    Args:
        degree: number [nnz], such as the popularity of each pair's item.
        flagged: bool [nnz], called noise.
        is_noise: bool [nnz].
        groups: how many groups; equal degrees are never split.

    Returns:
        The ratio; NaN if no group has noise.
    """
    group = np.searchsorted(group_edges(degree, groups), degree, side="right")
    pairs = [(flagged[group == g].mean(), is_noise[group == g].mean()) for g in np.unique(group)]
    return max((float(share / true) for share, true in pairs if true > 0), default=float("nan"))


def detection_report(
    suspicion: np.ndarray, is_noise: np.ndarray, users: np.ndarray, items: np.ndarray
) -> dict[str, float]:
    """:func:`detection_figures`, and whether some users or items are suspected for their degree.

    Args:
        suspicion: floats [nnz], high for noise.
        is_noise: bool [nnz].
        users, items: int [nnz], the pairs.

    Returns:
        The figures; ``injected``: the share of noise; ``popularity_flags`` and ``activity_flags``: the largest ratio of
        flagged to true noise over five groups of pairs by the popularity of the item and by the activity of the user,
        where as many of the most suspicious pairs are flagged as are noise.
    """
    count = int(is_noise.sum())
    flagged = np.zeros(len(is_noise), dtype=bool)
    flagged[np.argsort(-suspicion, kind="stable")[:count]] = True
    return detection_figures(suspicion, is_noise) | {
        "injected": float(is_noise.mean()) if len(is_noise) else float("nan"),
        "popularity_flags": worst_group(np.bincount(items)[items], flagged, is_noise),
        "activity_flags": worst_group(np.bincount(users)[users], flagged, is_noise),
    }


def detection_line(found: Mapping[str, float]) -> str:
    """A :func:`detection_report` in one line, for logs."""
    return (
        f"injected noise ({found['injected']:.1%} of the interactions): AUROC {found['auroc']:.3f}, average precision "
        f"{found['average_precision']:.3f}, precision at the injected count {found['precision']:.3f}"
    )
