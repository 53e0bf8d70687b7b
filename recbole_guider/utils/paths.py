"""Paths as users write them."""

from __future__ import annotations

import os
from pathlib import Path

from recbole_guider.utils.errors import GuiderError


def user_path(text: str | os.PathLike[str]) -> Path:
    """A path in which ``~`` stands for somebody's home.

    Raises:
        GuiderError: of somebody who is not known here.
    """
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise GuiderError(
            f"{os.fspath(text)}: there is no user of that name; write ./~.. for a file whose name begins with ~."
        ) from None
