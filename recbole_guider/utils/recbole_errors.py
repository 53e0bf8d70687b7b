"""What RecBole says of bad input, as this package says it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from logging import getLogger

from recbole_guider.utils.errors import GuiderError


@contextmanager
def recboles_errors() -> Iterator[None]:
    """What RecBole says of a configuration that it does not accept becomes a GuiderError."""
    try:
        yield
    except GuiderError:
        raise
    except (
        # what RecBole, and pandas and torch below it, raise where a setting is wrong: it checks few of them, and
        # stumbles over the others (an unknown encoding is a LookupError, two ways to split are an AssertionError)
        ValueError, TypeError, LookupError, AttributeError, NotImplementedError, RuntimeError, AssertionError
    ) as error:
        # some messages hold whole tables
        told, *more = str(error).splitlines() or [type(error).__name__]
        raise GuiderError(f"RecBole does not accept this configuration: {told}{' ..' if more else ''}") from error


@cache
def warn_once(message: str) -> None:
    """Log a warning, but the first time only: a sweep makes one configuration for each trial."""
    getLogger().warning(message)
