"""How a ranking is measured: which items are hidden from it, and how many users are ranked at a time."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
from recbole.data.dataloader import FullSortEvalDataLoader
from recbole.evaluator.base_metric import TopkMetric
from recbole.evaluator.evaluator import Evaluator
from recbole.utils import ModelType

from recbole_guider.utils.errors import GuiderError, did_you_mean

EVAL_MASKS = ("recbole", "mmrec")
DEFAULT_MEMORY_MB = 256
# Per score: RecBole's float32, the collector's int32 copy of the same shape, and as much again for the top-k's work.
_BYTES_PER_SCORE = 16


def apply_eval_mask(loader: Any, train_dataset: Any, protocol: str) -> Any:
    """Hide a user's known items from the ranking as the protocol has it.

    ``recbole``: the items of all earlier splits (at test: train and valid) that are not positives of this one; the
    loader is returned as it is. ``mmrec``, the protocol of the MMRec toolbox and of the papers that use it: training
    items only, at validation and at test, and users without a training interaction are not evaluated. A validation
    item may then take a place in the test ranking, so the numbers are lower; compare only under one protocol.

    Args:
        loader: RecBole full-sort evaluation loader of a general recommender.
        train_dataset: RecBole ``Dataset`` of the training split (with any injected noise: a system cannot tell it).
        protocol: ``recbole`` or ``mmrec``.

    Returns:
        The same loader, or a new one of the same class over the users that remain.

    Raises:
        GuiderError: an unknown protocol; ``mmrec`` with sampled (not full-sort) evaluation, a sequential model or
            ``repeatable: True``; no user left.
    """
    if _check(protocol) == "recbole":
        return loader
    config = loader.config
    if not is_full_sort(loader):
        raise GuiderError("eval_mask: mmrec needs full-sort evaluation of a general model (eval_args.mode: full).")
    if config["repeatable"]:
        raise GuiderError("eval_mask: mmrec hides training items and repeatable: True hides none; choose one of them.")
    dataset = loader._dataset
    uid, iid = dataset.uid_field, dataset.iid_field
    train_users = train_dataset.inter_feat[uid].numpy()
    train_items = train_dataset.inter_feat[iid].numpy()
    counts = np.bincount(train_users, minlength=dataset.user_num)

    keep = counts[dataset.inter_feat[uid].numpy()] > 0
    if not keep.any():
        raise GuiderError("eval_mask: mmrec evaluates users with training interactions, and no evaluated user has any.")
    if not keep.all():
        dataset = dataset.copy(dataset.inter_feat[np.flatnonzero(keep)])

    grouped = np.split(train_items[np.argsort(train_users, kind="stable")], np.cumsum(counts)[:-1])
    used = np.empty(dataset.user_num, dtype=object)
    used[:] = [set() for _ in range(dataset.user_num)]
    for user in np.unique(dataset.inter_feat[uid].numpy()):
        used[user] = set(grouped[user].tolist())
    sampler = copy.copy(loader._sampler)
    sampler.used_ids = used
    return type(loader)(config, dataset, sampler, shuffle=False)


class MemoryBatchedEvalDataLoader(FullSortEvalDataLoader):
    """RecBole's full-sort loader with as many users in a batch as a memory budget allows.

    RecBole's ``eval_batch_size`` counts user x item pairs, so that its default, 4096, ranks one user at a time from
    4,096 items up. Here a batch has ``eval_memory_mb`` MiB (default 256) / (16 bytes x items) users, and never fewer
    than ``eval_batch_size`` gives. The 16 bytes are a float32 score, RecBole's int32 copy, and the top-k's work space.
    """

    step: int

    def _init_batch_size_and_step(self) -> None:
        super()._init_batch_size_and_step()
        self.step = max(self.step, users_per_batch(self.config, self._dataset.item_num))
        self.set_batch_size(self.step * self._dataset.item_num)


def users_per_batch(config: Any, n_items: int) -> int:
    """Users whose full score rows fit in ``eval_memory_mb`` MiB; 0 when the key is 0 (RecBole's own batches).

    Raises:
        GuiderError: ``eval_memory_mb`` is not a number of at least 0.
    """
    budget = config["eval_memory_mb"]
    budget = DEFAULT_MEMORY_MB if budget is None else budget
    if isinstance(budget, bool) or not isinstance(budget, (int, float)) or budget < 0:
        raise GuiderError(f"eval_memory_mb must be a number of MiB, 0 for RecBole's own batches, not {budget!r}.")
    return int(budget * 2**20 // (n_items * _BYTES_PER_SCORE))


def batch_by_memory(loader: Any) -> Any:
    """The same evaluation in larger batches where the budget allows them; any other loader is returned as it is."""
    if not is_full_sort(loader):
        return loader
    if users_per_batch(loader.config, loader._dataset.item_num) <= loader.step:
        return loader
    return MemoryBatchedEvalDataLoader(loader.config, loader._dataset, loader._sampler, shuffle=False)


def is_full_sort(loader: Any) -> bool:
    """Whether the loader ranks all items for one user per row."""
    return isinstance(loader, FullSortEvalDataLoader) and loader.config["MODEL_TYPE"] != ModelType.SEQUENTIAL


def _check(protocol: str) -> str:
    if protocol not in EVAL_MASKS:
        guess = did_you_mean(protocol, EVAL_MASKS)
        raise GuiderError(f"eval_mask {protocol!r} does not exist{guess} Allowed: {', '.join(EVAL_MASKS)}.")
    return protocol


class PerUserEvaluator(Evaluator):
    """RecBole's evaluator that also keeps the top-k metrics of every user.

    Attributes:
        per_user: ``recall@20`` and so on -> float64 [users], of the latest evaluation, in the order of the loader's
            ``uid_list``; the results are their means. Metrics that are no mean over users (coverage) are not in it.
    """

    per_user: dict[str, np.ndarray]

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.per_user = {}
        for metric in self.metric_class.values():
            if isinstance(metric, TopkMetric):
                metric.topk_result = self._keeping(metric)

    def _keeping(self, metric: TopkMetric) -> Any:
        result = metric.topk_result

        def topk_result(name: str, value: np.ndarray) -> Any:
            for k in metric.topk:
                self.per_user[f"{name}@{k}"] = value[:, k - 1].astype(np.float64)
            return result(name, value)

        return topk_result
