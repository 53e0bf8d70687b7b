"""Tables of text on disk, read as text."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pandas as pd

from recbole_guider.utils.errors import GuiderError


def read_table(path: Path, separator: str, encoding: str = "utf-8", **options: Any) -> pd.DataFrame:
    """All columns of a table as text, with the first row as the header.

    Args:
        path: the file.
        separator, encoding: of the file.
        options: further arguments of ``pandas.read_csv``.

    Raises:
        GuiderError: the file is missing, or no table in this encoding; the message names the file, and the line of a
            row that is longer than the header.
    """
    try:
        table = pd.read_csv(path, sep=separator, encoding=encoding, dtype=str, **options)
    except FileNotFoundError:
        raise GuiderError(f"file {path} does not exist.") from None
    except (OSError, pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError, LookupError) as error:
        longer = re.search(r"Expected (\d+) fields in line (\d+), saw (\d+)", str(error))
        if longer:
            named, line, found = longer.groups()
            raise GuiderError(
                f"{path}, line {line} has {found} fields, but the header names {named} columns; each row needs one "
                f"field for each column."
            ) from error
        raise GuiderError(f"{path} cannot be read as a table ({str(error).strip()}).") from error
    if not isinstance(table.index, pd.RangeIndex):  # what pandas makes of the first columns below a shorter header
        raise GuiderError(
            f"{path}: the rows have more fields than the header names columns; each row needs one field for each "
            f"column."
        )
    return table


def read_atomic(path: Path, config: Any, **options: Any) -> pd.DataFrame:
    """An atomic file by :func:`read_table`, as RecBole reads it: the same separator, encoding, and rules for quotes and
    stray separators.

    Args:
        path: the file.
        config: a RecBole ``Config``.
        options: as there.
    """
    return read_table(
        path, config["field_separator"] or "\t", config["encoding"] or "utf-8", engine="python", **options
    )
