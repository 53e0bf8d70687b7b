"""Mirror gradient against updates written by hand, in plain and in GUIDER's training."""

from __future__ import annotations

import copy
import random
import re
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from recbole.trainer import Trainer
from resuming import assert_resumes_exactly
from torch.nn.utils import clip_grad_norm_

from recbole_guider import load_data_and_model, run_recbole_guider
from recbole_guider.config.guider_config import GuiderConfig
from recbole_guider.quick_start import prepare_run
from recbole_guider.training.settings import MirrorGradientSettings
from recbole_guider.utils.errors import GuiderError
from recbole_guider.utils.model_state import Snapshot
from recbole_guider.utils.resources import properties_dir
from recbole_guider.utils.yaml_files import read_yaml

# powers of two: weighting a gradient is exact, and so are the comparisons
MIRROR = {"interval": 2, "alpha": 0.5, "beta": 0.25}

# what makes these models keep something from batch to batch
STATEFUL: dict[str, dict[str, Any]] = {
    "LATTICE": {"lambda_coeff": 0.1},
    "SelfCF": {"augmentation": "historical_embedding"},
    "DiffRec": {"dims_dnn": [16], "steps": 2, "history_num_per_term": 4, "train_batch_size": 16},
}


class Batches(list):
    """Batches that were recorded, as a loader."""

    shuffle = False


def prepared(model: str, settings: dict[str, Any]) -> tuple[Any, Any, Any]:
    config = GuiderConfig(model, "toy", config_dict=settings, command_line=[])
    trainer, train, valid, _ = prepare_run(config)
    return trainer, train, valid


def by_hand(
    model: Any, loss_of: Callable[[Any], Any], optimiser: Any, batches: Any, clip: float | None, amp: bool
) -> float:
    """An epoch of Algorithm 1, every step clipped; the second loss of a batch is that of a copy of the model as it was
    before the first one, so that it draws the same."""
    total = 0.0
    everything = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def step(loss_model: Any, weight: float, batch: Any) -> float:
        with torch.autocast("cpu") if amp else nullcontext():
            losses = loss_of(loss_model)(batch)
        loss = sum(losses) if isinstance(losses, tuple) else losses
        loss_parameters = [parameter for parameter in loss_model.parameters() if parameter.requires_grad]
        gradients = torch.autograd.grad(loss, loss_parameters, allow_unused=True)
        for parameter, gradient in zip(everything, gradients, strict=True):
            parameter.grad = None if gradient is None else weight * gradient
        if clip:
            clip_grad_norm_(everything, clip)
        optimiser.step()
        return float(loss.detach())

    for number, batch in enumerate(batches):
        if number % MIRROR["interval"]:
            total += step(model, 1.0, batch)
            continue
        twin, draws = copy.deepcopy(model), torch.get_rng_state()
        total += step(model, MIRROR["alpha"], batch)
        after = torch.get_rng_state()
        with torch.no_grad():
            for old, new in zip(twin.parameters(), model.parameters(), strict=True):
                old.copy_(new)
        torch.set_rng_state(draws)
        step(twin, -MIRROR["beta"], batch)
        torch.set_rng_state(after)
    return total


def assert_same_parameters(got: Any, expected: Any, relative: float = 0.0, absolute: float = 0.0) -> None:
    for (name, one), (_, other) in zip(got.named_parameters(), expected.named_parameters(), strict=True):
        torch.testing.assert_close(
            one, other, rtol=relative, atol=absolute, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize(
    ("model", "learner", "clip", "amp"),
    [
        ("BPR", "sgd", None, False),
        ("BPR", "adam", 0.05, False),
        ("NGCF", "adam", None, False),  # dropout from torch's generator
        ("FREEDOM", "adam", 0.05, True),
        ("FREEDOM", "adam", None, False),  # a graph drawn anew in every epoch
        ("DGCN", "sgd", 0.05, False),  # counts its batches
        ("LATTICE", "sgd", None, False),  # an epoch's first batch learns the item graph that the others take
        ("SelfCF", "sgd", None, False),  # a batch compares with the one before, and takes its place
        ("DiffRec", "sgd", 0.05, False),  # samples by the losses that it has recorded
    ],
)
def test_plain_training_against_updates_by_hand(
    model: str, learner: str, clip: float | None, amp: bool, toy: dict[str, Any]
) -> None:
    settings = {
        **toy, "learner": learner, "clip_grad_norm": {"max_norm": clip} if clip else None, "enable_amp": amp,
        "mirror_gradient": MIRROR, "learning_rate": 0.05, **STATEFUL.get(model, {}),
    }
    trainer, train, _ = prepared(model, settings)
    reference = copy.deepcopy(trainer.model)
    batches = Batches(train)
    assert len(batches) >= 3
    optimiser = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[learner](reference.parameters(), lr=0.05)
    for _ in range(2):
        draws = torch.get_rng_state()
        total = trainer.steps.run(batches, 0)
        after = torch.get_rng_state()
        torch.set_rng_state(draws)
        reference.train()
        expected = by_hand(reference, lambda twin: twin.calculate_loss, optimiser, batches, clip, amp)
        assert torch.equal(torch.get_rng_state(), after)
        assert_same_parameters(trainer.model, reference)
        # every batch counts once
        assert float(total) == pytest.approx(expected, rel=1e-4)
    if model == "DGCN":
        assert trainer.model.iteration == 2 * len(batches)


@pytest.mark.parametrize("backbone", ["FREEDOM", "DGCN"])
@pytest.mark.parametrize("student_loss", ["own", "dbpr"])
def test_guider_training_against_updates_by_hand(backbone: str, student_loss: str, toy: dict[str, Any]) -> None:
    block = {"student_loss": student_loss, "distillation": {"interval": 2, "users": 20}, "dbpr": {"negatives": 16}}
    settings = {**toy, "train_batch_size": 64, "guider": block, "clip_grad_norm": {"max_norm": 0.5}}
    trainer, train, _ = prepared(f"GUIDER_{backbone}", {**settings, "mirror_gradient": MIRROR})
    trainer._calibrate(train.dataset)
    trainer._apply_calibration(train.dataset)
    reference, naive_train, _ = prepared(f"GUIDER_{backbone}", settings)
    reference._calibrate(naive_train.dataset)
    reference._apply_calibration(naive_train.dataset)
    assert_same_parameters(trainer.model, reference.model)
    recorded = Batches(trainer._student_batches(train))  # RecBole's sampler draws from a generator of the process
    trainer._student_batches = lambda data: recorded
    draws = torch.get_rng_state()
    losses = trainer.train_epoch(train, 0, show_progress=False)
    torch.set_rng_state(draws)

    model = reference.model.train()
    optimisers = [torch.optim.Adam(part.parameters(), lr=0.01) for part in (model.teacher, model.student)]
    teacher_batches = Batches(reference._teacher_batches(naive_train))
    assert len(teacher_batches) >= 5 and len(recorded) >= 5
    teacher_loss = by_hand(model, lambda twin: twin.teacher_loss, optimisers[0], teacher_batches, 0.5, False)
    model.zero_grad()
    model.begin_student_pass()
    student_losses = by_hand(model.train(), lambda twin: twin.calculate_loss, optimisers[1], recorded, 0.5, False)
    # the trainer's optimiser is torch's fused Adam, which rounds in another way
    assert_same_parameters(trainer.model, model, relative=1e-3, absolute=1e-5)
    assert losses[0] == pytest.approx(teacher_loss, rel=1e-4)
    assert losses[1] + losses[2] == pytest.approx(student_losses, rel=1e-4)


@pytest.mark.parametrize("model", ["GUIDER_DGCN", "GUIDER_MMGCF", "LayerGCN", "BPR"])
def test_a_killed_run_resumes_to_the_same_weights(model: str, toy: dict[str, Any]) -> None:
    settings = {**toy, "epochs": 4, "dropout": 0.3, "mirror_gradient": True}
    assert_resumes_exactly(model, settings, kill_after=1)


def test_it_changes_training_and_travels_with_the_checkpoint(toy: dict[str, Any]) -> None:
    plain = run_recbole_guider("FREEDOM", "toy", config_dict=toy)
    off = run_recbole_guider("FREEDOM", "toy", config_dict={**toy, "mirror_gradient": False})
    mirrored = run_recbole_guider("FREEDOM", "toy", config_dict={**toy, "mirror_gradient": MIRROR})
    assert plain["test_result"] == off["test_result"]
    configs, models = zip(*(load_data_and_model(run["model_file"])[:2] for run in (plain, mirrored)), strict=True)
    assert configs[0]["mirror_gradient"] is None and configs[1]["mirror_gradient"] == MIRROR
    assert not torch.equal(models[0].item_embedding.weight, models[1].item_embedding.weight)


class Stateful(torch.nn.Module):
    """Keeps something from call to call in every way there is."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(3))
        self.view = self.weight.detach()
        self.norm = torch.nn.BatchNorm1d(3)
        self.register_buffer("unsaved", torch.zeros(3), persistent=False)
        self.tensor, self.array, self.elements, self.count = torch.zeros(3), np.zeros(3), [0], 0
        self.by_name: dict[str, float] = {}
        self.cache: torch.Tensor | None = None

    def forward(self) -> list[Any]:
        self.norm(torch.randn(4, 3))
        for state in (self.unsaved, self.tensor, self.array):
            state += random.random() + np.random.rand()
        self.elements.append(len(self.elements))
        self.count += 1
        self.by_name["last"] = float(self.tensor[0])
        if self.cache is None:
            self.cache = torch.randn(3)
        return self.state()

    def state(self) -> list[Any]:
        tensors = [*self.norm.buffers(), self.unsaved, self.tensor, *([] if self.cache is None else [self.cache])]
        lists = [tensor.tolist() for tensor in tensors]
        return copy.deepcopy([*lists, self.array.tolist(), self.elements, self.count, self.by_name])


@pytest.mark.parametrize("known", [False, True])
def test_a_snapshot_takes_back_all_but_the_parameters(known: bool) -> None:
    model = Stateful()
    first = Snapshot(model)
    model()
    changing = first.changed()
    assert changing == {id(model.unsaved), id(model.tensor)}
    start, snapshot = model.state(), Snapshot(model, changing if known else None)
    once = model()
    with torch.no_grad():
        model.weight.add_(1)
    snapshot.restore()
    assert model.state() == start
    assert model() == once
    assert torch.equal(model.weight, torch.full((3,), 2.0)) and torch.equal(model.view, model.weight)


def test_every_pass_of_a_trainer_of_its_own_is_mirrored(toy: dict[str, Any]) -> None:
    # RecVAE's epoch is several passes with loss functions and optimisers of its own
    trainer, train, valid = prepared("RecVAE", {**toy, "mirror_gradient": MIRROR, "train_batch_size": 16})
    steps = []
    for optimiser in (trainer.steps.trainer.optimizer_encoder, trainer.steps.trainer.optimizer_decoder):
        optimiser.register_step_post_hook(lambda *_, optimiser=optimiser: steps.append(optimiser))
    trainer.steps.run(train, 0)
    mirrored = -(-len(train) // MIRROR["interval"])
    passes = trainer.steps.trainer.n_enc_epochs + trainer.steps.trainer.n_dec_epochs
    assert len(train) > 2 and len(steps) == passes * (len(train) + mirrored)


def test_a_teacher_with_a_trainer_of_its_own_is_mirrored(toy: dict[str, Any]) -> None:
    settings = {**toy, "epochs": 1, "train_batch_size": 16, "guider": {"teacher": "RecVAE"}}
    trainer, train, valid = prepared("GUIDER_BPR", {**settings, "mirror_gradient": MIRROR})
    teacher = trainer.teacher_steps.trainer
    steps = []
    for optimiser in (teacher.optimizer_encoder, teacher.optimizer_decoder):
        optimiser.register_step_post_hook(lambda *_: steps.append(1))
    trainer.fit(train, valid, saved=False)
    batches = len(trainer._teacher_batches(train))
    mirrored = -(-batches // MIRROR["interval"])
    assert batches > 2 and len(steps) == (teacher.n_enc_epochs + teacher.n_dec_epochs) * (batches + mirrored)


def test_a_loop_of_its_own_is_mirrored(toy: dict[str, Any]) -> None:
    # NCL's trainer does not go through the epoch of RecBole's other trainers
    settings = {**toy, "num_clusters": 3, "mirror_gradient": MIRROR, "train_batch_size": 64}
    trainer, train, _ = prepared("NCL", settings)
    steps = []
    trainer.optimizer.register_step_post_hook(lambda *_: steps.append(1))
    trainer.fit(train, None, saved=False)
    assert len(train) > 2 and len(steps) == toy["epochs"] * (len(train) + -(-len(train) // MIRROR["interval"]))


def test_the_bar_counts_mirrored_batches_twice(toy: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, train, _ = prepared("BPR", {**toy, "mirror_gradient": {"interval": 2}, "train_batch_size": 64})
    seen = []

    def loop(self: Any, data: Any, *args: Any, **kwargs: Any) -> None:
        seen.extend([len(data), len(list(data))])

    monkeypatch.setattr(Trainer, "_train_epoch", loop)
    trainer.steps.run(train, 0)
    assert seen == [len(train) + -(-len(train) // 2)] * 2


# -- settings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, None),
        (False, None),
        (True, MirrorGradientSettings()),
        ({}, MirrorGradientSettings()),
        ({"beta": 0.1}, MirrorGradientSettings(beta=0.1)),
        ({"interval": 1, "alpha": 2}, MirrorGradientSettings(interval=1, alpha=2.0)),
    ],
)
def test_blocks(given: Any, expected: Any, toy: dict[str, Any]) -> None:
    config = GuiderConfig("BPR", "toy", config_dict={**toy, "mirror_gradient": given}, command_line=[])
    assert config["mirror_gradient"] == (expected and expected.model_dump())
    again = GuiderConfig.from_plain(config.to_plain())
    assert again["mirror_gradient"] == config["mirror_gradient"]


def test_sources_merge_key_by_key_and_null_switches_off(toy: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("mirror_gradient: {interval: 5}\n")
    arguments = ["--mirror_gradient.beta=0.1"]
    config = GuiderConfig("BPR", "toy", [str(file)], toy, arguments)
    assert config["mirror_gradient"] == {"interval": 5, "alpha": 1.0, "beta": 0.1}
    assert GuiderConfig("BPR", "toy", [str(file)], toy, ["--mirror_gradient=None"])["mirror_gradient"] is None
    assert GuiderConfig("GUIDER_BPR", "toy", None, toy, [])["mirror_gradient"] is None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"interval": 0}, r"mirror_gradient\.interval is 0: it must be a whole number >= 1\."),
        ({"alpha": 0.0}, r"mirror_gradient\.alpha is 0\.0: it must be a number > 0\."),
        ({"beta": -1}, r"mirror_gradient\.beta is -1: it must be a number >= 0\."),
        ({"beta": 1.0}, r"mirror_gradient\.beta is 1\.0: it must be below mirror_gradient\.alpha, which is 1\.0"),
        ({"betta": 0.1}, r"mirror_gradient\.betta is not a setting; did you mean mirror_gradient\.beta\?"),
        (3, r"mirror_gradient is 3: give true, null or a block of keys \(interval, alpha, beta\)\."),
    ],
)
def test_mistakes_are_told_before_training(given: Any, message: str, toy: dict[str, Any]) -> None:
    with pytest.raises(GuiderError, match=message):
        GuiderConfig("BPR", "toy", config_dict={**toy, "mirror_gradient": given}, command_line=[])


def test_the_yaml_file_tells_the_defaults() -> None:
    file = properties_dir() / "overall.yaml"
    assert read_yaml(file)["mirror_gradient"] is None
    _, header, keys = file.read_text(encoding="utf-8").partition("# mirror_gradient has these keys\n")
    assert header
    told = dict(re.findall(r"^#   (\w+): (\S+) +# \(", keys, re.MULTILINE))
    assert {name: float(value) for name, value in told.items()} == MirrorGradientSettings().model_dump()
