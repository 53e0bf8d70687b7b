"""What this package raises: on bad input, and where one of several processes fails."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class GuiderError(ValueError):
    """Bad input from the user: a setting, a file or a name.

    The message is one sentence that names the file, the key or the value and says what would be right.
    The command line prints it without a traceback.
    """


def nearest(written: object, known: Iterable[object], alike: float = 0.6) -> str | None:
    """The one of ``known`` that a name which does not exist may be a slip of; None: there is none.

    Args:
        written: the name; case and hyphens do not count.
        known: names that exist.
        alike: how alike two names must be, 0 to 1.
    """
    by_lower = {str(name).lower(): str(name) for name in known}
    spellings = (str(written).lower(), str(written).lower().replace("-", "_"))
    near = next((found for each in spellings if (found := difflib.get_close_matches(each, by_lower, 1, alike))), None)
    return by_lower[near[0]] if near else None


def did_you_mean(written: object, known: Iterable[object], alike: float = 0.6) -> str:
    """How a sentence about a name that does not exist ends: with the nearest one that does, or with a full stop."""
    near = nearest(written, known, alike)
    return "." if near is None else f"; did you mean {near}?"


def one_of(key: str, value: object, allowed: Sequence[str]) -> str:
    """``value``, if it is one of at least two ``allowed`` ones.

    Raises:
        GuiderError: it is not; the message names the setting ``key``, the value and what is allowed.
    """
    if isinstance(value, str) and value in allowed:
        return value
    raise GuiderError(f"{key} is {value!r}: it must be {', '.join(allowed[:-1])} or {allowed[-1]}.")


class ProcessFailed(RuntimeError):
    """One of several processes that train together failed, for another reason than bad input.

    Attributes:
        details: the traceback of that process; empty if it left none.
    """

    def __init__(self, message: str, details: str = "") -> None:
        super().__init__(message)
        self.details = details
