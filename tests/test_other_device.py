"""Models, teachers and methods on a device that is not the CPU: the same numbers, and no tensor in the wrong place."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from other_device import other_device
from recbole.model.abstract_recommender import GeneralRecommender
from recbole.model.loss import BPRLoss
from recbole.utils import InputType

from recbole_guider.config import GuiderConfig
from recbole_guider.denoising.settings import SETTINGS
from recbole_guider.quick_start import _prepare
from recbole_guider.registry import get_model_class, list_models

OURS = [
    info.name
    for info in list_models()
    if info.kind != "traditional" and get_model_class(info.name).__module__.startswith("recbole_guider.")
]
METHODS = [name for name in SETTINGS if name != "none"]


def guider(**block: Any) -> dict[str, Any]:
    """Settings with a guider block that calibrates quickly."""
    return {"guider": {"calibration": {"learned": False}, **block}}


class OwnGraph(GeneralRecommender):
    """A graph model from outside this package, whose graph lies where the configuration says from the start."""

    input_type = InputType.PAIRWISE

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        self.users = torch.nn.Embedding(self.n_users, 8)
        self.items = torch.nn.Embedding(self.n_items, 8)
        common = torch.from_numpy(dataset.inter_matrix(form="csr").toarray()).float()
        self.graph = (common / common.sum(dim=1, keepdim=True).clamp_min(1)).to(self.device)
        self.restore_user_e = self.restore_item_e = None
        self.loss = BPRLoss()

    def forward(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self.users.weight + self.graph @ self.items.weight, self.items.weight

    def calculate_loss(self, interaction: Any) -> torch.Tensor:
        users, items = self.forward()
        user, item, other = (
            matrix[interaction[field]] for matrix, field in
            ((users, self.USER_ID), (items, self.ITEM_ID), (items, self.NEG_ITEM_ID))
        )
        return self.loss((user * item).sum(dim=1), (user * other).sum(dim=1))

    def predict(self, interaction: Any) -> torch.Tensor:
        users, items = self.forward()
        return (users[interaction[self.USER_ID]] * items[interaction[self.ITEM_ID]]).sum(dim=1)

    def full_sort_predict(self, interaction: Any) -> torch.Tensor:
        users, items = self.forward()
        return (users[interaction[self.USER_ID]] @ items.T).view(-1)


def trained(model: Any, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch, elsewhere: bool) -> dict[str, Any]:
    """What an epoch of training, and its evaluations, come to."""
    config = GuiderConfig(model, "toy", config_dict={**settings, "epochs": 1}, command_line=[])
    with other_device(monkeypatch) if elsewhere else nullcontext(config["device"]) as device:
        config["device"] = device
        trainer, train, valid, test = _prepare(config)
        for optimizer in [each for each in vars(trainer).values() if isinstance(each, torch.optim.Optimizer)]:
            for group in optimizer.param_groups:
                group["fused"] = group["foreach"] = False  # kernels that the other device lacks
        trainer.fit(train, valid, saved=False)
        return dict(trainer.evaluate(test, load_best_model=False))


@pytest.mark.parametrize(
    ("model", "changes"),
    [
        *((model, {}) for model in OURS),
        ("GUIDER_FREEDOM", {}),
        ("GUIDER_FREEDOM", guider(dbpr={"form": "pairwise", "gamma": 0.1}, distillation={"cost": "cosine"})),
        ("GUIDER_FREEDOM", guider(distillation={"cost": "scores", "plan": "batch", "balance": "min_norm"})),
        ("GUIDER_FREEDOM", guider(distillation={"objective": "kl"}, dbpr={"own_as": "ignore"})),
        ("GUIDER_FREEDOM", guider(schedule="pretrained", calibration={"learned": False, "recalibrate_every": 1})),
        ("GUIDER_FREEDOM", guider(variant="released")),
        ("GUIDER_BPR", guider(teacher="FREEDOM", student_loss="own")),
        ("GUIDER_NeuMF", guider(teacher="NeuMF")),
        ("GUIDER_MultiVAE", {**guider(teacher="MultiDAE"), "train_neg_sample_args": None}),
        ("GUIDER_SimpleX", guider(student_loss="dbpr")),
        (OwnGraph, guider(student_loss="dbpr")),
        (OwnGraph, {"denoising": {"method": "none", "loss_form": "softmax"}}),
        *(("FREEDOM", {"denoising": method}) for method in METHODS),
        *(("FREEDOM", {"denoising": {"method": method, "loss_form": "softmax"}}) for method in ("r-ce", "bod")),
        ("FREEDOM", {"mirror_gradient": {"interval": 1}}),
    ],
    ids=str,
)
def test_it_trains_elsewhere_to_the_same_numbers(
    model: Any, changes: dict[str, Any], toy: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    results = [trained(model, {**toy, **changes}, monkeypatch, elsewhere) for elsewhere in (True, False)]
    assert results[0] == pytest.approx(results[1], abs=1e-6)
