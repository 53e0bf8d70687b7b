"""What is written: folders that can be made, and files that appear whole or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

from recbole_guider.utils.errors import GuiderError


def require_folder(folder: Path, key: str) -> None:
    """Raise unless ``folder`` is one that can be written to, or can be made where it is not there.

    Args:
        folder: its path.
        key: the setting or the option that names it.

    Raises:
        GuiderError: it, or a folder above it, is a file or is not ours to write to.
    """
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise GuiderError(f"{key} is {folder}: {existing} is a file, and must be a folder.")
    if not os.access(existing, os.W_OK):
        raise GuiderError(f"{key} is {folder}: {existing} cannot be written to.")


def write_whole(path: Path, write: Callable[[Path], Any]) -> None:
    """Let ``write`` fill a file beside ``path``, then put it into place at once; after an error none is left.

    Args:
        path: the file, whose folder exists.
        write: is given the path to write to.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
