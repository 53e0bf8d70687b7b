"""What is wrong with data and an evaluation, found before anything is trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from recbole.evaluator.register import metric_information

from recbole_guider.utils.errors import GuiderError


def check_evaluation(config: Any, n_items: int) -> None:
    """Raise if an evaluation could not rank what it is to rank.

    Args:
        config: a RecBole ``Config``.
        n_items: the number of items of the data set, without the padding.

    Raises:
        GuiderError: a list of ``topk`` items is longer than the catalogue, or ranks only what has labels.
    """
    needs = {need for metric in map(str.lower, config["metrics"]) for need in metric_information[metric]}
    if not needs & {"rec.topk", "rec.items", "rec.meanrank"}:
        return
    modes = config["eval_args"]["mode"]
    if "labeled" in (modes.values() if isinstance(modes, Mapping) else [modes]):
        raise GuiderError(
            f"eval_args.mode is labeled, which measures predictions of a label (AUC, LogLoss, MAE, RMSE), and metrics "
            f"has {', '.join(config['metrics'])}, which measure a ranking: change one of the two."
        )
    longest = max(config["topk"])
    if longest > n_items:
        raise GuiderError(
            f"topk has {longest}, but {config['dataset']} has {n_items} items: a list can be as long as the catalogue."
        )
