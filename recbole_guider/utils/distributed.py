"""The processes that train together: which one this is, and values that all of them share.

Everything here also works, and does nothing, where there is one process only.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from recbole_guider.utils.errors import GuiderError

T = TypeVar("T")

#: How long a process waits for another one. Long, since the others wait while the first calibrates a large log; that a
#: process has ended is seen by what started it (launch.py), not by this.
PATIENCE = timedelta(days=7)


class Process(NamedTuple):
    """Which one of several processes this is to become."""

    #: ``gloo``, or ``nccl`` for tensors on CUDA devices (those in memory then go over gloo)
    backend: str
    #: its number, and that of all, over all machines
    rank: int
    world_size: int
    #: ``tcp://host:port``, where process 0 waits; unused where :func:`use_store` named a place
    address: str
    #: where it computes
    device: torch.device = torch.device("cpu")


#: Where the processes meet, if launch.py started this one.
_meeting_point: Any = None


def use_store(store: Any) -> None:
    """Let :func:`join` meet the others at a ``torch.distributed`` store."""
    global _meeting_point
    _meeting_point = store


def join(process: Process | None) -> None:
    """Become one of several processes, unless this one belongs to a group already; None: it is the only one.

    Whoever makes the configuration of a run joins next, with its ``process``: logger, data and model ask which one
    this is.
    """
    if process is None:
        return
    if process.device.type == "cuda":
        torch.cuda.set_device(process.device)
    if dist.is_initialized():
        return
    place = {"init_method": process.address} if _meeting_point is None else {"store": _meeting_point}
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if process.backend == "nccl" else process.backend,
        rank=process.rank, world_size=process.world_size, timeout=PATIENCE, **place,
    )


def leave() -> None:
    """Stop being one of several processes."""
    if dist.is_initialized():
        dist.destroy_process_group()


def is_parallel() -> bool:
    """Whether this process trains together with others."""
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """The number of this process over all machines, from 0."""
    return dist.get_rank() if is_parallel() else 0


def world_size() -> int:
    """The number of processes over all machines."""
    return dist.get_world_size() if is_parallel() else 1


def is_main() -> bool:
    """Whether this is the process that writes: checkpoints, logs, progress."""
    return rank() == 0


def share(value: T) -> T:
    """What the main process gives, in every process; ``value`` of the others is ignored. It must pickle."""
    if not is_parallel():
        return value
    box = [value if is_main() else None]
    dist.broadcast_object_list(box, src=0)
    return box[0]  # type: ignore[return-value]  # the main process' value


def once(compute: Callable[[], T]) -> T:
    """The result of ``compute()``, which only the main process calls."""
    return share(compute() if is_main() else None)  # type: ignore[return-value]  # the main process' value


def gather(value: T) -> list[T]:
    """The values of all processes, by rank, in every process. They must pickle."""
    if not is_parallel():
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def require_same(what: str, value: Any) -> None:
    """Raise in every process unless all of them have the same ``value``.

    Raises:
        GuiderError: they differ; ``what`` is the subject of its message.
    """
    values = gather(value)
    for other, different in enumerate(values):
        if different != values[0]:
            raise GuiderError(
                f"{what} of process {other} differs from that of process 0 ({different} and {values[0]}): all machines "
                f"need the same files and settings."
            )


def sum_over(tensors: Iterable[Tensor]) -> None:
    """Replace each tensor by its sum over all processes, in place. All must have the same shapes, in the same order."""
    if is_parallel():
        for pending in [dist.all_reduce(tensor, async_op=True) for tensor in tensors]:
            pending.wait()


def largest(number: float) -> float:
    """The largest of the processes' numbers."""
    return max(gather(number))


def copy_from_main(tensors: Iterable[Tensor]) -> None:
    """Overwrite dense tensors by those of the main process, in place."""
    if is_parallel():
        with torch.no_grad():
            for tensor in tensors:
                if tensor.layout == torch.strided and tensor.numel():
                    whole = tensor.detach().contiguous()
                    dist.broadcast(whole, src=0)
                    tensor.copy_(whole)


@contextmanager
def file_of_main(file: str | os.PathLike[str]) -> Iterator[str]:
    """A path at which this process reads the main process' ``file``, for as long as the block lasts.

    Other machines need not see its folder: there it is a temporary copy.

    Raises:
        GuiderError: the main process has no such file; in every process.
    """
    path = os.fspath(file)
    if not is_parallel():
        yield path
        return
    content = once(lambda: Path(path).read_bytes() if Path(path).is_file() else None)
    if content is None:
        raise GuiderError(f"There is no checkpoint {path}: give the path that a run printed as its checkpoint.")
    if is_main():
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, Path(path).name)
        copy.write_bytes(content)
        del content
        yield str(copy)
