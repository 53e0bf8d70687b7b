"""Where a run computes, and as which process: the keys device, use_gpu and gpu_id, and those of several processes."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from logging import getLogger
from typing import Any

import torch

from recbole_guider.utils.distributed import Process
from recbole_guider.utils.errors import GuiderError
from recbole_guider.utils.recbole_errors import warn_once

#: What this process has put into CUDA_VISIBLE_DEVICES, and may therefore replace.
_shown_gpus: str | None = None


def device_request(final: Mapping[str, Any]) -> str:
    """The key ``device`` in lower case: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.

    Raises:
        GuiderError: it is none of them.
    """
    device = final["device"]
    request = "auto" if device is None else str(device).lower()
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", request):
        raise GuiderError(f"device is {device!r}: it must be auto, cpu, cuda or cuda:N.")
    return request


def stored_request(request: Any) -> Any:
    """What a stored ``device`` means on this machine: ``auto``, where it is a CUDA device that is not here."""
    if not str(request).startswith("cuda"):
        return request
    index = int(request.partition(":")[2] or 0)
    return request if torch.cuda.is_available() and index < torch.cuda.device_count() else "auto"


def choose_device(
    final: dict[str, Any], in_files: Mapping[str, Any], given: Mapping[str, Any], typed: Mapping[str, Any]
) -> Process | None:
    """Put into ``final`` the device of the run, and what RecBole wants to know of it.

    RecBole's version overwrites CUDA_VISIBLE_DEVICES, knows no backend but NCCL, and joins the processes itself.

    Args:
        final: all settings; ``local_rank`` is among them where several processes train.
        in_files, given, typed: what property files, ``config_dict`` and the command line say of them.

    Returns:
        Which of several processes this one is to become; None: it is the only one.

    Raises:
        GuiderError: settings that contradict each other, or CUDA asked for where there is none.
    """
    gpu_id = final["gpu_id"]
    final["gpu_id"] = ",".join(map(str, gpu_id)) if isinstance(gpu_id, (tuple, list)) else str(gpu_id)
    device = _pick_device(final, in_files, given, typed)
    # to RecBole a process looks like a single one: recbole_guider.training.parallel deals batches and evaluations
    final["single_spec"] = True
    process = None
    if "local_rank" in final:
        process = _process(final, on_cuda=device != "cpu")
        final["device"] = process.device
        if process.rank != 0:
            final.update(
                state="error", show_progress=False, log_wandb=False, save_dataset=False, save_dataloaders=False
            )
    else:
        final.update(local_rank=0, device=torch.device(device))
    if final["device"].type == "cpu" and torch.cuda.is_available():
        final["use_gpu"] = False  # RecBole would report the memory of a GPU that the run does not use
    return process


def _pick_device(
    final: Mapping[str, Any], in_files: Mapping[str, Any], given: Mapping[str, Any], typed: Mapping[str, Any]
) -> str:
    """``cpu``, ``cuda`` or ``cuda:N``, from the keys device, use_gpu and gpu_id."""
    request, use_gpu, gpu_id = device_request(final), final["use_gpu"], final["gpu_id"]
    if request.startswith("cuda") and use_gpu is False:
        raise GuiderError(f"device is {request} but use_gpu is False: change one of the two.")
    asks = typed.get("use_gpu", given.get("use_gpu"))
    if request == "cpu" and asks is True and ("use_gpu" in typed or "device" not in typed):
        raise GuiderError("device is cpu but use_gpu is True: change one of the two.")
    if request == "cpu" or request == "auto" and (use_gpu is False or not gpu_id):
        return "cpu"
    if request in ("auto", "cuda") and gpu_id:
        _show_gpus(gpu_id)
    if torch.cuda.is_available():
        if int(request.partition(":")[2] or 0) >= torch.cuda.device_count():
            raise GuiderError(
                f"device is {request}, but this process sees {torch.cuda.device_count()} CUDA device(s): the first is "
                f"cuda:0."
            )
        return "cuda" if request == "auto" else request
    asked = f"device={request}" if request != "auto" else f"use_gpu={asks}" if asks else ""
    if not asked and "gpu_id" in typed:
        asked = f"gpu_id={gpu_id}"
    if asked:
        raise GuiderError(
            f"{asked} asks for CUDA, but torch {torch.__version__} finds no CUDA device here; use device=cpu, or "
            f"device=auto to take what is there."
        )
    if in_files.get("use_gpu") and not final.get("local_rank"):
        # no error: machines share property files
        warn_once(
            f"a property file has use_gpu: {in_files['use_gpu']}, but torch {torch.__version__} finds no CUDA device "
            f"here: this run takes the CPU"
        )
    return "cpu"


def _process(final: Mapping[str, Any], on_cuda: bool) -> Process:
    """Which of several processes the settings make of this one, and how it talks to the others."""
    backend = final["backend"]
    if backend == "auto":
        backend = "nccl" if on_cuda else "gloo"
    elif backend == "nccl" and not on_cuda:
        raise GuiderError("backend is nccl, which needs CUDA devices: use gloo or auto on a CPU.")
    if on_cuda and torch.cuda.device_count() < final["nproc"]:
        raise GuiderError(
            f"nproc is {final['nproc']}, but this process sees {torch.cuda.device_count()} CUDA device(s): name as "
            f"many in gpu_id, e.g. gpu_id=0,1."
        )
    local_rank, address = final["local_rank"], f"tcp://{final['ip']}:{final['port']}"
    device = torch.device("cuda", local_rank) if on_cuda else torch.device("cpu")
    return Process(backend, local_rank + final["offset"], final["world_size"], address, device)


def _show_gpus(gpu_id: str) -> None:
    """Let CUDA see the devices ``gpu_id`` only, as RecBole does; a choice that the user made before stays."""
    global _shown_gpus
    current = os.environ.get("CUDA_VISIBLE_DEVICES")
    if current is not None and current != _shown_gpus:
        if current != gpu_id and gpu_id != "0":
            getLogger().warning(
                f"CUDA_VISIBLE_DEVICES={current} is set and stays: gpu_id {gpu_id} is not used"
            )
        return
    os.environ["CUDA_VISIBLE_DEVICES"] = _shown_gpus = gpu_id
