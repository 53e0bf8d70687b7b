"""What this package raises: on bad input, and where one of several processes fails."""

from __future__ import annotations


class GuiderError(ValueError):
    """Bad input from the user: a setting, a file or a name.

    The message is one sentence that names the file, the key or the value and says what would be right.
    The command line prints it without a traceback.
    """


class ProcessFailed(RuntimeError):
    """One of several processes that train together failed, for another reason than bad input.

    Attributes:
        details: the traceback of that process; empty if it left none.
    """

    def __init__(self, message: str, details: str = "") -> None:
        super().__init__(message)
        self.details = details
