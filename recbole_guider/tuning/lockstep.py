"""Several functions in one process that advance in turns, one at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any


class _Closed(BaseException):
    """Ends a function whose turns are over; no ``except Exception`` in it may catch that."""


class _Turns:
    """One function, in a thread that runs only between :meth:`advance` and the function's next pause."""

    def __init__(self, function: Callable[[Callable[[], None]], None]) -> None:
        self.over = False
        self.error: BaseException | None = None
        self._closing = False
        self._go, self._paused = threading.Semaphore(0), threading.Semaphore(0)
        self._thread = threading.Thread(target=self._run, args=(function,), daemon=True)

    def _run(self, function: Callable[[Callable[[], None]], None]) -> None:
        self._go.acquire()
        try:
            if not self._closing:
                function(self._pause)
        except _Closed:
            pass
        except BaseException as error:  # handed to the thread that advances this one
            self.error = error
        finally:
            self.over = True
            self._paused.release()

    def _pause(self) -> None:
        self._paused.release()
        self._go.acquire()
        if self._closing:
            raise _Closed

    def advance(self) -> None:
        if self._thread.ident is None:
            self._thread.start()
        self._go.release()
        self._paused.acquire()
        if self.error is not None:
            error, self.error = self.error, None
            raise error

    def close(self) -> None:
        self._closing = True
        if self._thread.ident is not None and not self.over:
            self.advance()
        self.over = True


class Lockstep:
    """Runs functions in turns. Only one runs at any time, so they may share what is no thread's own.

    A function is given ``pause``, which returns when it is its turn again. As a context manager, leaving it ends the
    functions that are not over at their pause.

    Args:
        functions: what to run; each in a thread of its own.
    """

    def __init__(self, functions: Sequence[Callable[[Callable[[], None]], None]]) -> None:
        self._turns = [_Turns(function) for function in functions]

    def advance(self) -> bool:
        """Let each function run to its next pause or its end; False if all had ended before.

        Raises:
            whatever a function raised.
        """
        running = [turns for turns in self._turns if not turns.over]
        for turns in running:
            turns.advance()
        return bool(running)

    def __enter__(self) -> Lockstep:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> Any:
        for turns in self._turns:
            turns.close()
