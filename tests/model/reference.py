"""Fixtures of reference implementations: made-up interactions and content, weights, and what the authors' code gives.

A fixture is ``fixtures/<Model>.npz`` of plain arrays. These keys have a meaning here; a model's test knows the others:

    n_users, n_items        scalars; ids count from 0
    users, items            int32 [nnz], the training pairs
    content_<modality>      float32 [n_items, d]
    batch                   int32 [3, B]: users, their items, sampled items
    scores                  float32 [n_users, n_items], expected
    loss                    scalar, expected
    weight.<name>           a parameter, by the reference's name
    gradient.<name>         the loss's gradient by it, expected
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from recbole.data.interaction import Interaction
from recbole.utils import init_seed

from recbole_guider.config.guider_config import GuiderConfig
from recbole_guider.data.dataset import build_dataset, prepare_data

FIXTURES = Path(__file__).parent / "fixtures"


class Reference(NamedTuple):
    """A model built on the data of a fixture, and how the fixture's ids read in it."""

    model: Any
    arrays: dict[str, np.ndarray]
    #: RecBole's id of each of the fixture's users [n_users] and items [n_items]
    user_ids: torch.Tensor
    item_ids: torch.Tensor

    def place(self, parameter: torch.Tensor, values: np.ndarray, ids: torch.Tensor | None = None) -> None:
        """Copy the reference's values into a parameter; ``ids`` where its rows are users or items."""
        with torch.no_grad():
            given = torch.from_numpy(np.asarray(values)).to(parameter.dtype)
            if ids is None:
                assert parameter.shape == given.shape, (parameter.shape, given.shape)
                parameter.copy_(given)
            else:
                parameter[ids] = given

    @property
    def batch(self) -> Interaction:
        """The fixture's batch in RecBole's ids."""
        user, item, other = torch.from_numpy(self.arrays["batch"]).long()
        return Interaction(
            {"user_id": self.user_ids[user], "item_id": self.item_ids[item], "neg_item_id": self.item_ids[other]}
        )

    def scores(self) -> torch.Tensor:
        """Scores of all users for all items in the fixture's order, as RecBole's evaluation asks for them."""
        self.model.eval()
        with torch.no_grad():
            scores = self.model.full_sort_predict(Interaction({"user_id": self.user_ids}))
        return scores.view(len(self.user_ids), -1)[:, self.item_ids]


def reference(model: str, folder: Path, fixture: str | None = None, **settings: Any) -> Reference:
    """Build ``model`` on the data of ``fixtures/<fixture or model>.npz``, written as atomic files into ``folder``."""
    with np.load(FIXTURES / f"{fixture or model}.npz", allow_pickle=False) as stored:
        arrays = dict(stored)
    data = folder / "reference"
    data.mkdir()
    pairs = list(zip(arrays["users"].tolist(), arrays["items"].tolist(), strict=True))
    for split, rows in (("train", pairs), ("valid", pairs[:1]), ("test", pairs[:1])):
        lines = ["user_id:token\titem_id:token", *(f"{user}\t{item}" for user, item in rows)]
        (data / f"reference.{split}.inter").write_text("\n".join(lines) + "\n")
    modalities = {}
    for key in arrays:
        if key.startswith("content_"):
            name = key.removeprefix("content_")
            np.save(data / f"{name}.npy", arrays[key])
            modalities[name] = {"file": f"{name}.npy"}
    changes: dict[str, Any] = {
        "data_path": str(folder), "benchmark_filename": ["train", "valid", "test"], "modalities": modalities,
        "load_col": {"inter": ["user_id", "item_id"]}, "state": "ERROR", "use_gpu": False,
    }
    config = GuiderConfig(model, "reference", config_dict=changes | settings, command_line=[])
    train, _, _ = prepare_data(config, build_dataset(config))
    init_seed(config["seed"], True)
    dataset = train.dataset
    user_ids, item_ids = (
        torch.from_numpy(dataset.token2id(field, [str(i) for i in range(int(arrays[count]))]))
        for field, count in ((dataset.uid_field, "n_users"), (dataset.iid_field, "n_items"))
    )
    return Reference(config.model_class(config, dataset), arrays, user_ids, item_ids)
