"""What the processes of tests/test_parallel.py do; they find it here by name."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from recbole_guider.utils import distributed
from recbole_guider.utils.errors import GuiderError


class Killed(Exception):
    """Stands for a kill in the middle of a run."""


def train(process: dict[str, Any], cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One run after another; of each the loss curve, the metrics, the weights and what only this process can tell."""
    return [_train(process, case) for case in cases]


def _train(process: dict[str, Any], case: dict[str, Any]) -> dict[str, Any]:
    from recbole_guider.config.guider_config import GuiderConfig
    from recbole_guider.quick_start import prepare_run

    stop_after = case.get("stop_after")
    config = GuiderConfig(config_dict={**case["settings"], **process}, command_line=[])
    distributed.join(config.process)
    trainer, train_data, valid, test = prepare_run(config)
    if config["resume"]:
        trainer.resume_checkpoint(config["resume"])
    curve: list[Any] = []
    trainer.report_losses = lambda epoch, losses: curve.append(losses)

    def callback(epoch: int, score: float) -> None:
        if epoch == stop_after:
            raise Killed

    try:
        best_score, best_result = trainer.fit(train_data, valid, saved=True, callback_fn=callback)
    except Killed:
        return {"last_model_file": trainer.last_model_file}
    result = trainer.evaluate(test, load_best_model=True)
    weights = {
        name: value.numpy().copy() for name, value in trainer.model.state_dict().items() if torch.is_tensor(value)
    }
    teacher = getattr(trainer, "teacher_steps", None) or SimpleNamespace(shared_losses=[])
    own = (curve, best_result, result, trainer.saved_model_file, getattr(trainer, "calibration_summary", None))
    return {
        "curve": [loss if isinstance(loss, tuple) else (loss,) for loss in curve],
        "best_result": best_result,
        "result": result,
        "weights": weights,
        "dealt": {
            **{loss.name: loss.is_dealt for loss in trainer.steps.shared_losses},
            **{f"teacher: {loss.name}": loss.is_dealt for loss in teacher.shared_losses},
        },
        "the same in all": all(other == own for other in distributed.gather(own)),
    }


# -- without training: these need no RecBole, and start fast -----------------------------------------------------------


def meet(process: dict[str, Any]) -> int:
    """Join, and return the sum of all ranks + 1."""
    rank = process["local_rank"] + process["offset"]
    distributed.join(distributed.Process("gloo", rank, process["world_size"], ""))
    total = torch.tensor([rank + 1])
    distributed.sum_over([total])
    return int(total)


def fail(process: dict[str, Any], how: str, folder: str) -> None:
    """Process 1 fails, while process 0 waits for it; each leaves its process id in ``folder``."""
    Path(folder, f"{process['local_rank'] + process['offset']}.pid").write_text(str(os.getpid()))
    meet(process)
    if distributed.rank() == 1:
        if how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif how == "input":
            raise GuiderError("the setting is wrong.")
        elif how == "hang":
            time.sleep(600)
        raise ValueError("the reason")
    distributed.sum_over([torch.zeros(1)])
