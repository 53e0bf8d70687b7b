"""What this package raises: on bad input, and where one of several processes fails."""

from __future__ import annotations

from collections.abc import Sequence


class GuiderError(ValueError):
    """Bad input from the user: a setting, a file or a name.

    The message is one sentence that names the file, the key or the value and says what would be right.
    The command line prints it without a traceback.
    """


def one_of(key: str, value: object, allowed: Sequence[str]) -> str:
    """``value``, if it is one of at least two ``allowed`` ones.

    Raises:
        GuiderError: it is not; the message names the setting ``key``, the value and what is allowed.
    """
    if isinstance(value, str) and value in allowed:
        return value
    raise GuiderError(f"{key} is {value!r}: it must be {', '.join(allowed[:-1])} or {allowed[-1]}.")


def share_below_one(key: str, value: float, what: str) -> float:
    """``value``, if 0 <= value < 1.

    Raises:
        GuiderError: it is not; the message names the setting ``key``, the value and ``what`` it is for.
    """
    if 0.0 <= value < 1.0:
        return value
    raise GuiderError(f"{key} is {value}: {what}, 0 <= {key} < 1.")


def above_zero(key: str, value: float, what: str) -> float:
    """``value``, if it is above 0.

    Raises:
        GuiderError: as :func:`share_below_one`.
    """
    if value > 0:
        return value
    raise GuiderError(f"{key} is {value}: {what}, {key} > 0.")


class ProcessFailed(RuntimeError):
    """One of several processes that train together failed, for another reason than bad input.

    Attributes:
        details: the traceback of that process; empty if it left none.
    """

    def __init__(self, message: str, details: str = "") -> None:
        super().__init__(message)
        self.details = details
