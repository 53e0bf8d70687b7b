"""The loop that fit, sweeps, replays and benchmarks drive, one evaluation at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from recbole_guider import prepare_run
from recbole_guider.config.guider_config import GuiderConfig
from recbole_guider.quick_start import PreparedRun
from recbole_guider.training.checkpoint import random_state, restore_random_state
from recbole_guider.training.loop import Callback, Evaluation

MODELS = ["BPR", "GUIDER_LightGCN"]


def prepared(model: str, toy: dict[str, Any], **changes: Any) -> PreparedRun:
    return prepare_run(GuiderConfig(model, "toy", config_dict={**toy, **changes}, command_line=[]))


def weights(run: PreparedRun) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in run.training.model.named_parameters()}


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert set(one) == set(other)
    assert all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize("model", MODELS)
def test_driven_by_hand_it_is_fit(model: str, toy: dict[str, Any]) -> None:
    changes = {"epochs": 7, "eval_step": 2, "learning_rate": 0.05}
    fitted = prepared(model, toy, **changes)
    seen: list[tuple[int, float]] = []
    best = fitted.training.fit(
        fitted.train_data, fitted.valid_data, callback_fn=lambda epoch, score: seen.append((epoch, score))
    )
    driven = prepared(model, toy, **changes)
    evaluations = list(driven.iter_evaluations())
    assert [(each.epoch, each.score) for each in evaluations] == seen and [epoch for epoch, _ in seen] == [1, 3, 5]
    assert (evaluations[-1].best_score, evaluations[-1].best_result) == best
    assert best[0] == max(score for _, score in seen)
    for number, each in enumerate(evaluations):
        earlier = [score for _, score in seen[:number]]
        assert each.is_best == (not earlier or each.score >= max(earlier))
        assert each.is_last == (number == 2)
        assert each.train_loss == driven.training.train_loss_dict[each.epoch]
    assert_same(weights(fitted), weights(driven))


def test_the_evaluation_that_early_stopping_ends_with_is_the_last(toy: dict[str, Any]) -> None:
    evaluations = list(prepared("BPR", toy, epochs=50, stopping_step=1, learning_rate=0.0).iter_evaluations())
    # of scores that are equal each is as good as the best: it is the falling ones that stop
    assert len(evaluations) == 50
    run = prepared("BPR", toy, epochs=50, stopping_step=1)
    scores = iter([3.0, 4.0, 2.0, 1.0, 5.0])
    run.training.validate = lambda *_: (next(scores), {"recall@5": 0.0})  # type: ignore[method-assign]  # by a list
    evaluations = list(run.iter_evaluations())
    assert [each.is_last for each in evaluations] == [False, False, False, True]
    assert [each.is_best for each in evaluations] == [True, True, False, False]
    assert run.training.best_valid_score == 4.0


@pytest.mark.parametrize("model", MODELS)
def test_who_asks_for_no_more_leaves_a_run_to_continue(model: str, toy: dict[str, Any]) -> None:
    whole = prepared(model, toy, epochs=4)
    assert len(list(whole.iter_evaluations())) == 4
    assert not Path(whole.training.last_model_file).exists()
    left = prepared(model, toy, epochs=4)
    for evaluation in left.iter_evaluations():
        if evaluation.epoch == 1:
            break
    resumed = prepared(model, toy, epochs=4)
    resumed.training.resume_checkpoint(left.training.last_model_file)
    assert [each.epoch for each in resumed.iter_evaluations()] == [2, 3]
    assert_same(weights(whole), weights(resumed))


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.slow
def test_two_trainings_in_turns_are_each_as_if_alone(model: str, toy: dict[str, Any]) -> None:
    expected = []
    for seed in (1, 2):
        run = prepared(model, toy, epochs=3, seed=seed)
        expected.append([each.score for each in run.iter_evaluations(saved=False)])

    def turns(seed: int, scores: list[float]) -> Any:
        run = prepared(model, toy, epochs=3, seed=seed)
        for each in run.iter_evaluations(saved=False):
            scores.append(each.score)
            state = random_state(run.train_data)
            yield
            restore_random_state(state, run.train_data)

    found: list[list[float]] = [[], []]
    both = [turns(seed, scores) for seed, scores in zip((1, 2), found, strict=True)]
    for _ in range(4):
        for each in both:
            next(each, None)
    assert found == expected


def test_callbacks_are_called_around_epochs_evaluations_and_checkpoints(toy: dict[str, Any]) -> None:
    run = prepared("GUIDER_BPR", toy, epochs=2)
    order: list[Any] = []

    class Recorder(Callback):
        def begin_epoch(self, epoch: int) -> None:
            order.append(("begin", epoch, run.training.train_loss_dict.get(epoch)))

        def end_epoch(self, epoch: int) -> None:
            order.append(("end", epoch, run.training.train_loss_dict.get(epoch) is None))

        def evaluated(self, evaluation: Evaluation) -> None:
            order.append(("evaluated", evaluation.epoch, evaluation.is_best))

        def notes(self) -> dict[str, Any]:
            return {"seen": len(order)}

    run.training.callbacks.append(Recorder())
    run.training.keep_last_model = True
    best = [evaluation.is_best for evaluation in run.iter_evaluations()]
    assert order == [
        step for epoch in (0, 1)
        for step in (("begin", epoch, None), ("end", epoch, False), ("evaluated", epoch, best[epoch]))
    ]
    notes = torch.load(run.training.last_model_file, weights_only=True)["notes"]
    assert notes == {"seen": 6}
