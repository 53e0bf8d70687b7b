"""A run that is killed and resumed, beside the same run left alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from recbole_guider.config.guider_config import GuiderConfig
from recbole_guider.quick_start import prepare_run


class Killed(Exception):
    """Stands for a kill in the middle of a run."""


def assert_resumes_exactly(
    model: str, settings: dict[str, Any], kill_after: int, look: Callable[[dict[str, Any]], None] | None = None
) -> None:
    """As :func:`assert_resumes`, to the last bit."""
    assert_resumes(model, settings, kill_after, look, tolerance=0.0)


def assert_resumes(
    model: str, settings: dict[str, Any], kill_after: int, look: Callable[[dict[str, Any]], None] | None = None, *,
    tolerance: float,
) -> None:
    """A run killed after epoch ``kill_after`` (from 0) and resumed ends in the state of one that was not.

    Args:
        model, settings: of a run on the toy data.
        look: is shown the checkpoint that the killed run left.
        tolerance: by how much weights may differ.
    """

    def state(resume: str | None, kill_after: int | None) -> tuple[dict[str, Any], str]:
        config = GuiderConfig(model, "toy", config_dict={**settings, "resume": resume}, command_line=[])
        trainer, train, valid, _ = prepare_run(config)
        if resume:
            trainer.resume_checkpoint(resume)
        # what others draw from the global generator must not matter
        torch.manual_seed(99 if resume else 1)

        def callback(epoch: int, score: float) -> None:
            if epoch == kill_after:
                raise Killed

        try:
            trainer.fit(train, valid, saved=True, callback_fn=callback)
        except Killed:
            return {}, trainer.last_model_file
        return trainer.model.state_dict(), trainer.last_model_file

    whole, last_file = state(None, None)
    assert not Path(last_file).exists()  # a finished run leaves its best model only
    _, last_file = state(None, kill_after)
    assert Path(last_file).exists()
    if look:
        look(torch.load(last_file, weights_only=True))
    resumed, _ = state(last_file, None)
    assert set(whole) == set(resumed)
    for name, value in whole.items():
        if torch.is_tensor(value):
            torch.testing.assert_close(value, resumed[name], rtol=tolerance, atol=tolerance, msg=name)
        else:  # the state of random streams, and counters
            assert set(value) == set(resumed[name]), name
            assert all(torch.equal(part, resumed[name][key]) for key, part in value.items()), name
