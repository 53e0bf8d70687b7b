"""Models, teachers and methods on a device that is not the CPU: the same numbers, and no tensor in the wrong place.

Everywhere on a device that only looks like another one; and on a GPU, where there is one.
"""

from __future__ import annotations

import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml
from other_device import other_device
from recbole.model.abstract_recommender import GeneralRecommender
from recbole.model.loss import BPRLoss
from recbole.utils import InputType
from resuming import assert_resumes

from recbole_guider.config.guider_config import GuiderConfig
from recbole_guider.config.registry import get_model_class, list_models
from recbole_guider.config.trainers import training_class
from recbole_guider.denoising.methods import METHODS as ALL_METHODS
from recbole_guider.graph import bipartite_adjacency, propagate_mean
from recbole_guider.losses.distillation import ot_distillation_loss
from recbole_guider.quick_start import load_data_and_model, prepare_run, run_recbole_guider

pytestmark = pytest.mark.slow

OURS = [
    info.name
    for info in list_models()
    if info.kind != "traditional" and get_model_class(info.name).__module__.startswith("recbole_guider.")
]
METHODS = [name for name in ALL_METHODS if name != "none"]


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


RUNS = [
    *((model, {}) for model in OURS),
    ("GUIDER_FREEDOM", {}),
    ("GUIDER_FREEDOM", guider(dbpr={"form": "pairwise", "gamma": 0.1}, distillation={"cost": "cosine"})),
    ("GUIDER_FREEDOM", guider(distillation={"cost": "scores", "plan": "batch", "balance": "min_norm"})),
    ("GUIDER_FREEDOM", guider(distillation={"objective": "kl"}, dbpr={"own_as": "ignore"})),
    ("GUIDER_FREEDOM", guider(schedule="pretrained", calibration={"learned": False})),
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
]


def trained(model: Any, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch, elsewhere: bool) -> dict[str, Any]:
    """What an epoch of training, and its evaluations, come to."""
    config = GuiderConfig(model, "toy", config_dict={**settings, "epochs": 1}, command_line=[])
    with other_device(monkeypatch) if elsewhere else nullcontext(config["device"]) as device:
        config["device"] = device
        trainer, train, valid, test = prepare_run(config)
        for optimizer in trainer.optimizers().values():
            for group in optimizer.param_groups:
                group["fused"] = group["foreach"] = False  # kernels that the other device lacks
        trainer.fit(train, valid, saved=False)
        return dict(trainer.evaluate(test, load_best_model=False))


@pytest.mark.parametrize(("model", "changes"), RUNS, ids=str)
def test_it_trains_elsewhere_to_the_same_numbers(
    model: Any, changes: dict[str, Any], toy: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    results = [trained(model, {**toy, **changes}, monkeypatch, elsewhere) for elsewhere in (True, False)]
    assert results[0] == pytest.approx(results[1], abs=1e-6)


# -- on a GPU -----------------------------------------------------------------------------------------------------

on_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA device")


def agrees(there: Any, here: Any, tolerance: float = 1e-5) -> None:
    """Whether what a GPU computed is what this processor did, in 32 bits."""
    torch.testing.assert_close(there.detach().cpu(), here.detach(), rtol=tolerance, atol=tolerance)


@on_a_gpu
@pytest.mark.parametrize(("model", "changes"), RUNS, ids=str)
def test_what_a_gpu_trained_ranks_the_same_on_a_cpu(model: Any, changes: dict[str, Any], toy: dict[str, Any]) -> None:
    settings = {**toy, **changes, "use_gpu": True}
    result = run_recbole_guider(model, "toy", config_dict=settings)
    config, network, _, _, _, test = load_data_and_model(
        result["model_file"], {"use_gpu": False}, model=None if isinstance(model, str) else model
    )
    assert next(network.parameters()).device.type == "cpu"
    trainer = training_class(config)(config, network)
    assert dict(trainer.evaluate(test, load_best_model=False)) == pytest.approx(result["test_result"], abs=1e-6)


@on_a_gpu
@pytest.mark.parametrize("model", OURS)
def test_scores_on_a_gpu_are_those_of_a_cpu(model: str, toy: dict[str, Any]) -> None:
    config = GuiderConfig(model, "toy", config_dict={**toy, "epochs": 1}, command_line=[])
    trainer, train, valid, _ = prepare_run(config)
    trainer.fit(train, valid, saved=False)
    here, batch = trainer.model.eval(), next(iter(train))
    away_config = GuiderConfig(model, "toy", config_dict={**toy, "use_gpu": True}, command_line=[])
    there = prepare_run(away_config)[0].model
    there.load_state_dict(here.state_dict())
    there.eval()
    for network in (here, there):
        network.restore_user_e = network.restore_item_e = None
    agrees(there.full_sort_predict(batch.to("cuda")), here.full_sort_predict(batch.to("cpu")))
    agrees(there.predict(batch.to("cuda")), here.predict(batch.to("cpu")))


@on_a_gpu
def test_propagation_on_a_gpu() -> None:
    generator = torch.Generator().manual_seed(3)
    users, items = (torch.randint(size, (900,), generator=generator).numpy() for size in (70, 50))
    here = bipartite_adjacency(users, items, 70, 50)
    away = here.to("cuda")
    results = []
    for operator, device in ((here, "cpu"), (away, "cuda")):
        x = torch.linspace(-1, 1, 120 * 16).reshape(120, 16).sin().to(device).requires_grad_()
        out = propagate_mean(operator, x, 3)
        (out * out.detach().cos()).sum().backward()
        results.append((out, x.grad))
    for there, at_home in zip(results[1], results[0], strict=True):
        agrees(there, at_home)
    double = here.to(dtype=torch.float64).to("cuda")
    x = torch.randn(120, 2, dtype=torch.float64, device="cuda", requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: propagate_mean(double, x, 2), (x,))


@on_a_gpu
@pytest.mark.parametrize(
    "options",
    [
        {"cost": cost, "plan": plan}
        for cost in ("cosine", "scores", "kl") for plan in ("identity", "anchored", "batch")
    ],
    ids=str,
)
def test_distillation_on_a_gpu(options: dict[str, Any]) -> None:
    generator = torch.Generator().manual_seed(5)
    matrices = [torch.randn(rows, 12, generator=generator) for rows in (32, 80, 32, 80)]
    if options["plan"] == "anchored":
        options = {**options, "anchor": 0.05}  # low enough for mass to move
    results = []
    for device in ("cpu", "cuda"):
        student = [matrix.to(device).requires_grad_() for matrix in matrices[:2]]
        loss = ot_distillation_loss(*student, *(matrix.to(device) for matrix in matrices[2:]), **options)
        results.append((loss, *torch.autograd.grad(loss, student)))
    for here, there in zip(*results, strict=True):
        assert there.device.type == "cuda"
        agrees(there, here, 1e-4)


@on_a_gpu
@pytest.mark.parametrize("model", ["FREEDOM", "GUIDER_FREEDOM", "GUIDER_MGCN", "GUIDER_NeuMF"])
def test_mixed_precision_on_a_gpu(model: str, toy: dict[str, Any]) -> None:
    result = run_recbole_guider(model, "toy", config_dict={**toy, "use_gpu": True, "enable_amp": True})
    assert all(0 < value < 1 for value in result["test_result"].values())


@on_a_gpu
@pytest.mark.parametrize("model", ["FREEDOM", "GUIDER_FREEDOM", "GUIDER_NeuMF"])
def test_a_killed_run_on_a_gpu_resumes_near_the_same_weights(model: str, toy: dict[str, Any]) -> None:
    """Near: sums on a GPU have no fixed order."""
    assert_resumes(model, {**toy, "epochs": 4, "use_gpu": True}, kill_after=1, tolerance=1e-4)


@on_a_gpu
def test_a_benchmark_on_a_gpu_counts_its_memory(toy: dict[str, Any], tmp_path: Path) -> None:
    spec = {
        "datasets": ["toy"], "models": ["FREEDOM"], "methods": {"plain": {}, "GUIDER": {"guider": True}},
        "seeds": [2020], "settings": {key: value for key, value in toy.items() if key != "use_gpu"},
    }
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(spec))
    command = [
        sys.executable, "-c", "import sys; from recbole_guider.cli.main import main; sys.exit(main())",
        "benchmark", "spec.yaml", "--out", "out", "--data", toy["data_path"],
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = pd.read_csv(tmp_path / "out" / "results.csv")
    assert len(rows) == 2 and (rows["device"] == "cuda").all() and rows["gpu"].notna().all()
    assert (rows["peak memory MB"] > 100).all()
