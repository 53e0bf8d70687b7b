"""What the tests of every backbone need: models on the toy data, a few steps of training, and what must not matter."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from recbole.data.interaction import Interaction
from recbole.utils import init_seed

from recbole_guider.config.guider_config import GuiderConfig
from recbole_guider.data.dataset import build_dataset, prepare_data


def built(model: str, toy: dict[str, Any], **changes: Any) -> tuple[Any, Any]:
    """A model on the toy data, and its training loader."""
    config, train = prepared(model, {**toy, **changes})
    return made(config, train), train


def prepared(model: str, settings: dict[str, Any]) -> tuple[Any, Any]:
    """The configuration of a model, and its training loader."""
    config = GuiderConfig(model, "toy", config_dict=settings, command_line=[])
    init_seed(config["seed"], True)
    return config, prepare_data(config, build_dataset(config))[0]


def made(config: Any, train: Any, *, device: torch.device | None = None, filled: int | None = None) -> Any:
    """A model of its configuration and its training loader.

    Args:
        config, train: of :func:`prepared`; as before afterwards.
        device: where the model is, as RecBole puts it there; where the configuration says if None.
        filled: a seed of random rows in place of content that is missing.
    """
    features, where = train.dataset.item_features, config["device"]
    given = dict(features)
    if filled is not None:
        assert not all(part.present[1:].all() for part in given.values()), "the toy text lacks rows"
        rng = np.random.default_rng(filled)
        for name, part in given.items():
            rows = 7.0 * rng.normal(size=part.values.shape).astype(np.float32)
            features[name] = replace(part, values=np.where(part.present[:, None], part.values, rows))
    config["device"] = where if device is None else device
    init_seed(config["seed"], True)
    try:
        return config.model_class(config, train.dataset).to(config["device"])
    finally:
        features.update(given)
        config["device"] = where


def with_modalities(toy: dict[str, Any], *names: str) -> dict[str, Any]:
    """The toy settings with these modalities; ``again``, ``type`` and ``keys`` are the image, ``a.b`` is the text."""
    image, text = toy["modalities"]["image"], toy["modalities"]["text"]
    known = {"image": image, "text": text, "again": image, "type": image, "a.b": text, "keys": image}
    return {**toy, "modalities": {name: known[name] for name in names}}


def dense_adjacency(pairs: set[tuple[int, int]], n_users: int, n_items: int) -> torch.Tensor:
    """The normalised graph of users and items, float64."""
    adjacency = torch.zeros(n_users + n_items, n_users + n_items, dtype=torch.float64)
    for user, item in pairs:
        adjacency[user, n_users + item] = adjacency[n_users + item, user] = 1.0
    scale = (adjacency.sum(1) + 1e-7) ** -0.5
    return scale[:, None] * adjacency * scale[None, :]


def pairs_of(dataset: Any) -> set[tuple[int, int]]:
    """The users and items of a data set's interactions."""
    users, items = dataset.inter_feat[dataset.uid_field], dataset.inter_feat[dataset.iid_field]
    return set(zip(users.tolist(), items.tolist(), strict=True))


def losses_of_training(model: Any, train: Any, steps: int = 25, learning_rate: float = 0.02) -> list[float]:
    """The loss before each of ``steps`` steps of Adam on one batch, the same random choices at every step."""
    model.train()
    optimiser = torch.optim.Adam(model.parameters(), lr=learning_rate)
    batch = next(iter(train))
    state = model.get_extra_state()
    losses = []
    for _ in range(steps):
        model.set_extra_state(state)
        optimiser.zero_grad()
        loss = model.calculate_loss(batch)
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return losses


def scores_and_loss(model: Any, train: Any) -> list[torch.Tensor]:
    """Scores of all real users for all real items, the loss of a batch of training pairs, and what is multiplied."""
    users = Interaction({model.USER_ID: torch.arange(1, model.n_users)})
    pairs = train.dataset.inter_feat[torch.arange(32)]
    other = Interaction({model.NEG_ITEM_ID: pairs[model.ITEM_ID].roll(5)})
    pairs.update(other)
    state = deepcopy(model.state_dict())  # a loss may draw random numbers, or remember its batch
    model.eval()
    with torch.no_grad():
        scores = model.full_sort_predict(users).view(model.n_users - 1, -1)[:, 1:]
        matrices = [matrix[1:] for matrix in model.embeddings()] if hasattr(model, "embeddings") else []
        loss = model.train().calculate_loss(pairs)
    model.load_state_dict(state)
    return [scores, loss, *matrices]


def assert_padding_has_no_influence(model: Any, train: Any) -> None:
    """Whatever row 0 of the users' and items' parameters holds, scores and loss of the others stay the same."""
    before = scores_and_loss(model, train)
    with torch.no_grad():
        changed = 0
        for parameter in model.parameters():
            if parameter.dim() == 2 and len(parameter) in (model.n_users, model.n_items):
                parameter[0] = 100.0
                changed += 1
    assert changed
    after = scores_and_loss(model, train)
    for one, other in zip(before, after, strict=True):
        torch.testing.assert_close(one, other, rtol=0.0, atol=0.0)
