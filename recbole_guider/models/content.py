"""The content of the items, as a part of a model, and the base of the models that read it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from recbole_guider.data.features import ItemFeatures, require_content
from recbole_guider.graph import SparseOperator, combine, knn_graph
from recbole_guider.models.base import FactorisedRecommender
from recbole_guider.utils.errors import GuiderError


class ModalityContent(nn.Module):
    """The rows of a modality on the model's device, as constants or as parameters, and which of them exist.

    Constants are not in the state dict: the data set has them, and a checkpoint need not repeat them.

    Args:
        part: the modality; row 0 is RecBole's padding item.
        trainable: whether the rows are parameters, which start from the raw values.

    Attributes:
        values: float32 ``[n_items, d]``; items without content hold the modality's mean.
        present: bool ``[n_items]``; False for items without content and for row 0.
    """

    values: Tensor
    present: Tensor

    def __init__(self, part: ItemFeatures, trainable: bool = False) -> None:
        super().__init__()
        values = torch.from_numpy(part.values)
        if trainable:
            self.values = nn.Parameter(values.clone())
        else:
            self.register_buffer("values", values, persistent=False)
        self.register_buffer("present", torch.from_numpy(part.present), persistent=False)

    @property
    def dim(self) -> int:
        """Width d of the modality."""
        return self.values.shape[1]


def required_content(config: Any, dataset: Any) -> Mapping[str, ItemFeatures]:
    """The modalities of a data set, for a model that cannot do without: name -> features, one at least.

    Raises:
        GuiderError: there are none.
    """
    features: Mapping[str, ItemFeatures] = dataset.item_features
    require_content(config, features, behaviour_suffices=False)
    return features


class ContentRecommender(FactorisedRecommender):
    """Base of the factorised models that read the content of the items.

    Attributes:
        content: one :class:`ModalityContent` for each modality, once :meth:`add_content` has made them.
        projections: a linear layer on each, where it was given a size.
    """

    reads_content = True

    def add_content(
        self, features: Mapping[str, ItemFeatures], size: int | None = None, trainable: bool = False
    ) -> None:
        """Make ``content`` and, for a ``size`` to project every modality to, ``projections``."""
        self.content = nn.ModuleList(ModalityContent(part, trainable) for part in features.values())
        if size is not None:
            self.projections = nn.ModuleList(nn.Linear(part.dim, size) for part in features.values())


def presence(features: Mapping[str, ItemFeatures]) -> Tensor:
    """Which items have which modality, bool ``[n_items, M]``."""
    return torch.stack([torch.from_numpy(part.present) for part in features.values()], dim=1)


def item_graph(features: Mapping[str, ItemFeatures], k: int, weights: dict[str, float] | None) -> SparseOperator:
    """The weighted sum of the modalities' graphs of the ``k`` nearest items by cosine, each normalised.

    Args:
        features: the modalities.
        k: the number of nearest items.
        weights: the setting ``modality_weights``.

    Raises:
        GuiderError: as :func:`modality_weights`.
    """
    shares = modality_weights(weights, list(features))
    graphs = [knn_graph(part.values, k, present=part.present) for part in features.values()]
    return combine(graphs, [shares[name] for name in features])


def modality_weights(given: dict[str, float] | None, names: list[str]) -> dict[str, float]:
    """The setting ``modality_weights``: weights that sum to 1 over the modalities, equal ones or those given.

    Raises:
        GuiderError: ``given`` does not name each modality once, or has a negative weight, or only zeros.
    """
    if given is None:
        return {name: 1.0 / len(names) for name in names}
    if set(given) != set(names) or any(weight < 0 for weight in given.values()) or sum(given.values()) <= 0:
        raise GuiderError(
            f"modality_weights is {given}: it needs one weight >= 0, not all 0, for each of {', '.join(names)}."
        )
    total = sum(given.values())
    return {name: given[name] / total for name in names}


def of_each_modality(key: str, given: Any, names: list[str]) -> dict[str, Any]:
    """A setting that is one value for all modalities, or a mapping from each modality to its own value.

    Args:
        key: the setting's name, for the message.
        given: its value.
        names: the modalities.

    Raises:
        GuiderError: ``given`` is a mapping that does not name each modality once.
    """
    if not isinstance(given, Mapping):
        return dict.fromkeys(names, given)
    if set(given) != set(names):
        raise GuiderError(f"{key} is {dict(given)}: it needs one value, or one for each of {', '.join(names)}.")
    return {name: given[name] for name in names}
