"""The one exception that bad input raises."""

from __future__ import annotations


class GuiderError(ValueError):
    """Bad input from the user: a setting, a file or a name.

    The message is one sentence that names the file, the key or the value and says what would be right.
    The command line prints it without a traceback.
    """
