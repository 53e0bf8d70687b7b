"""Starts the processes that train together, and ends them together.

The process that launches takes no part in training. It holds the store where the others meet, waits for them, and when
one fails it ends the others and raises what went wrong first, once. Launchers on several machines tell each other of
failures through the store of the first. Processes end by themselves when their launcher is gone.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import signal
import socket
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NoReturn

import torch
import torch.distributed as dist

from recbole_guider.utils import distributed
from recbole_guider.utils.errors import GuiderError, ProcessFailed

#: Where machines meet if nothing is said; RecBole's.
DEFAULT_PORT = 5678
# Seconds: to find other machines; for the failure that caused another one to be heard of; to end after being asked; for
# other machines to finish.
_TO_MEET, _TO_HEAR, _TO_END, _TO_FINISH = 600.0, 3.0, 10.0, 60.0
_FAILED, _FINISHED = "recbole-guider/failed", "recbole-guider/finished"


@dataclass(frozen=True)
class Processes:
    """Which processes train, and where they meet; the meaning of the fields is RecBole's.

    Attributes:
        nproc: processes on this machine.
        world_size: processes on all machines; -1: nproc.
        ip: the machine of process 0, where all meet.
        port: its port; None: any free one, or 5678 for several machines.
        group_offset: the number of the first process on this machine.
    """

    nproc: int = 1
    world_size: int = -1
    ip: str = "localhost"
    port: int | None = None
    group_offset: int = 0

    def __post_init__(self) -> None:
        if self.nproc < 1:
            raise GuiderError(f"nproc is {self.nproc}: it must be a whole number >= 1.")
        if self.world_size != -1 and self.world_size < self.nproc:
            raise GuiderError(
                f"world_size is {self.world_size}, the processes on all machines: it must be at least nproc, "
                f"{self.nproc}, or -1 for one machine."
            )
        if not 0 <= self.group_offset <= self.total - self.nproc:
            raise GuiderError(
                f"group_offset is {self.group_offset}: with nproc {self.nproc} and world_size {self.total} it must be "
                f"0 to {self.total - self.nproc}."
            )
        if self.port is not None and not 0 < self.port < 65536:
            raise GuiderError(f"port is {self.port}: it must be 1 to 65535.")

    @property
    def total(self) -> int:
        """Processes on all machines."""
        return self.nproc if self.world_size == -1 else self.world_size

    @property
    def several(self) -> bool:
        """Whether there is anything to launch. ``world_size`` 1 launches one process, as in RecBole."""
        return self.nproc > 1 or self.world_size > 0

    @property
    def one_machine(self) -> bool:
        return self.total == self.nproc


def launch(function: Callable[..., Any], processes: Processes, *arguments: Any) -> Any:
    """Call ``function(settings, *arguments)`` in ``processes.nproc`` new processes.

    Args:
        function: at the top level of a module; in the processes its result, and the arguments, are pickled.
        processes: how many, and where they meet.
        arguments: for the function. It is given, before them, RecBole's settings of the process: a dict with
            ``local_rank``, ``nproc``, ``world_size``, ``offset``, ``ip`` and ``port``.

    Returns:
        The result of process 0; None on a machine that has another first process.

    Raises:
        GuiderError: one raised it; the others have ended.
        ProcessFailed: one raised something else, or was killed; the others have ended.
    """
    store = _open_store(processes)
    context = multiprocessing.get_context("spawn")
    channels, workers = [], []
    try:
        for local_rank in range(processes.nproc):
            receive, send = context.Pipe(duplex=False)
            worker = context.Process(
                target=_work, args=(local_rank, processes, store.port, send, function, arguments), daemon=True,
                name=f"process {processes.group_offset + local_rank}",
            )
            worker.start()
            send.close()
            channels.append(receive)
            workers.append(worker)
        result = _wait(workers, channels, store, processes)
        deadline = time.monotonic() + _TO_END
        for worker in workers:
            worker.join(max(deadline - time.monotonic(), 0.0))
    except BaseException as error:
        if not isinstance(error, _HeardOf):
            _tell(store, str(error) or type(error).__name__)
        raise
    finally:
        _end(workers)
    _wait_for_other_machines(store, processes)
    return result


# -- the launcher -----------------------------------------------------------------------------------------------------


class _HeardOf(ProcessFailed):
    """A process on another machine failed."""


@dataclass(frozen=True)
class _Report:
    """What a process says at its end."""

    rank: int
    time: float
    result: Any = None
    #: the message of a GuiderError, or kind and message of another exception; None: it went well
    error: str | None = None
    is_guider_error: bool = False
    #: it failed because another one did
    is_consequence: bool = False
    details: str = ""


def _open_store(processes: Processes) -> dist.TCPStore:
    port = processes.port or (0 if processes.one_machine else DEFAULT_PORT)
    patience = timedelta(seconds=_TO_MEET)
    try:
        if processes.group_offset:
            return dist.TCPStore(processes.ip, port, is_master=False, timeout=patience)
        # one machine: nobody else has to reach the port
        address = "127.0.0.1" if processes.one_machine else ""
        listener = socket.create_server((address, port))
        port = listener.getsockname()[1]
        return dist.TCPStore(
            address or processes.ip, port, is_master=True, wait_for_workers=False, timeout=patience,
            master_listen_fd=listener.detach(),
        )
    except (OSError, RuntimeError) as error:
        what = "reach" if processes.group_offset else "open"
        raise GuiderError(
            f"cannot {what} {processes.ip}:{port}, where the processes meet ({str(error).splitlines()[0]}): set --ip "
            f"to the machine of process 0 and --port to a free port of it."
        ) from None


def _wait(workers: list[Any], channels: list[Any], store: dist.TCPStore, processes: Processes) -> Any:
    """Until all have finished; raises the first failure."""
    reports: dict[int, _Report] = {}
    failure_heard: float | None = None
    while True:
        open_channels = [channel for channel in channels if not channel.closed]
        running = [worker for worker in workers if worker.exitcode is None]
        multiprocessing.connection.wait(
            [*open_channels, *(worker.sentinel for worker in running)], timeout=1.0
        )
        for local_rank, (worker, channel) in enumerate(zip(workers, channels, strict=True)):
            ended = worker.exitcode is not None  # before the last look into its channel
            if not channel.closed and channel.poll():
                with suppress(EOFError):
                    reports[local_rank] = channel.recv()
                channel.close()
            if ended and local_rank not in reports:
                reports[local_rank] = _killed(processes.group_offset + local_rank, worker.exitcode)
        failures = [report for report in reports.values() if report.error is not None]
        if failures:
            failure_heard = failure_heard or time.monotonic()
            # the cause, if it is on this machine, is heard of soon: the others failed because of it
            waited = time.monotonic() - failure_heard > _TO_HEAR
            if waited or len(reports) == len(workers) or any(not report.is_consequence for report in failures):
                _raise(min(failures, key=lambda report: (report.is_consequence, report.time)), store, processes)
        elif len(reports) == len(workers):
            return reports[0].result
        elif not processes.one_machine:
            _listen(store)


def _killed(rank: int, exitcode: int | None) -> _Report:
    if exitcode is not None and exitcode < 0:
        name = signal.Signals(-exitcode).name
        hint = " (the system does that to a process that takes too much memory)" if name == "SIGKILL" else ""
        return _Report(rank, time.time(), error=f"was killed by {name}{hint}")
    return _Report(rank, time.time(), error=f"ended with status {exitcode} and no message")


def _raise(report: _Report, store: dist.TCPStore, processes: Processes) -> NoReturn:
    assert report.error is not None
    if report.is_consequence and not processes.one_machine:
        deadline = time.monotonic() + _TO_HEAR
        while time.monotonic() < deadline:
            _listen(store)
            time.sleep(0.1)
    if report.is_guider_error:
        raise GuiderError(report.error)
    raise ProcessFailed(f"process {report.rank} of {processes.total} {report.error}", report.details)


def _tell(store: dist.TCPStore, message: str) -> None:
    """Let launchers on other machines know."""
    with suppress(RuntimeError):  # the machine with the store has ended: nobody can be told
        store.compare_set(_FAILED, "", message)


def _listen(store: dist.TCPStore) -> None:
    """Raise what a launcher on another machine told."""
    try:
        message = store.get(_FAILED).decode() if store.check([_FAILED]) else ""
    except RuntimeError:
        message = "the machine of process 0 has ended"
    if message:
        raise _HeardOf(f"on another machine: {message}")


def _wait_for_other_machines(store: dist.TCPStore, processes: Processes) -> None:
    """The machine that has the store is the last to end."""
    if processes.one_machine:
        return
    with suppress(RuntimeError):  # it has ended
        finished = store.add(_FINISHED, processes.nproc)
        deadline = time.monotonic() + _TO_FINISH
        while not processes.group_offset and finished < processes.total and time.monotonic() < deadline:
            time.sleep(0.1)
            finished = store.add(_FINISHED, 0)


def _end(workers: list[Any]) -> None:
    running = [worker for worker in workers if worker.is_alive()]
    for worker in running:
        worker.terminate()
    deadline = time.monotonic() + _TO_END
    for worker in running:
        worker.join(max(deadline - time.monotonic(), 0.0))
        if worker.is_alive():
            worker.kill()
            worker.join()


# -- a process --------------------------------------------------------------------------------------------------------


def _work(
    local_rank: int, processes: Processes, port: int, channel: Any, function: Callable[..., Any], arguments: Any
) -> None:
    rank = processes.group_offset + local_rank
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the launcher too, which ends this process
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # files are finished or removed
    threading.Thread(target=_end_with_launcher, daemon=True).start()
    _set_up(processes, rank)
    try:
        ip = "127.0.0.1" if processes.one_machine else processes.ip
        store = dist.TCPStore(ip, port, is_master=False, timeout=timedelta(seconds=_TO_MEET))
        distributed.use_store(dist.PrefixStore("recbole-guider/group", store))
        settings = {
            "local_rank": local_rank, "nproc": processes.nproc, "world_size": processes.total,
            "offset": processes.group_offset, "ip": processes.ip, "port": port,
        }
        result = function(settings, *arguments)
        report = _Report(rank, time.time(), result=result if rank == 0 else None)
    except SystemExit as end:
        os._exit(end.code if isinstance(end.code, int) else 1)
    except BaseException as error:
        report = _failure(rank, error)
    channel.send(report)
    channel.close()
    if report.error is not None:
        # Not through destructors: those of the process group would wait for the others.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    distributed.leave()


def _failure(rank: int, error: BaseException) -> _Report:
    details = traceback.format_exc()
    if isinstance(error, GuiderError):
        return _Report(rank, time.time(), error=str(error), is_guider_error=True)
    # gloo raises a bare RuntimeError
    is_consequence = isinstance(error, dist.DistError) or isinstance(error, RuntimeError) and "gloo" in str(error)
    message = " ".join(f"{type(error).__name__}: {error}".split())
    return _Report(rank, time.time(), error=f"failed: {message}", is_consequence=is_consequence, details=details)


def _set_up(processes: Processes, rank: int) -> None:
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max((os.cpu_count() or 1) // processes.nproc, 1))
    if rank:
        warnings.simplefilter("ignore")  # process 0 says the same
    if processes.one_machine and "lo" in (name for _, name in socket.if_nameindex()):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # by default the name of the host, which need not resolve


def _end_with_launcher() -> None:
    """End this process when the one that started it is gone, however it went."""
    launcher = multiprocessing.parent_process()
    assert launcher is not None
    multiprocessing.connection.wait([launcher.sentinel])
    os._exit(1)
