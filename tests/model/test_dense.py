"""No model holds an item-by-item matrix: graphs and losses go over it a block at a time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from backbones import built
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from recbole_guider.config.registry import get_model_class, list_models
from recbole_guider.graph import neighbours
from recbole_guider.models import damrs

MODELS = [name for name, *_ in list_models() if get_model_class(name).__module__.startswith("recbole_guider.")]


class _Shapes(TorchDispatchMode):
    """Notes the shape of every dense matrix that is computed, in backward passes as well."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[tuple[int, ...]] = set()

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), more: Any = None) -> Any:
        result = function(*arguments, **(more or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.layout == torch.strided and tensor.ndim >= 2:
                self.seen.add(tuple(tensor.shape))
        return result


@pytest.mark.parametrize("name", MODELS)
def test_no_matrix_of_all_items_by_all_items(name: str, toy: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "BLOCK_BYTES", 4 * 5 * 41)
    monkeypatch.setattr(damrs, "_BLOCK_ENTRIES", 5 * 41)
    with _Shapes() as shapes:
        model, train = built(name, toy, train_batch_size=16, embedding_size=12)  # no size but the items' is theirs
        for _ in range(2 if name != "ItemKNNCBF" else 0):
            model.train().calculate_loss(next(iter(train))).backward()
    assert shapes.seen
    items = {model.n_items - 1, model.n_items}
    nodes = items | {model.n_users + size for size in items} | {model.n_users - 1 + size for size in items}
    assert not [shape for shape in shapes.seen if sum(size in nodes for size in shape) > 1]
