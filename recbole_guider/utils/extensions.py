"""Files of a user's own that register models and methods: ``import:`` in property files and specs, ``--import``."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from recbole_guider.utils.errors import GuiderError
from recbole_guider.utils.paths import user_path

#: What this process has imported, by the file's path.
_imported: set[str] = set()


def import_extensions(named: Any, base: Path) -> list[str]:
    """Import Python files, or modules by their dotted names; each once in a process.

    Only what a user names in a command, a property file, a spec or the folder of a sweep that goes on comes here: a
    checkpoint imports nothing.

    Args:
        named: a name or a list of names; None for none. A name that ends in ``.py`` is a file.
        base: the folder that relative paths start from.

    Returns:
        The names, paths being absolute: the same from any folder.

    Raises:
        GuiderError: a file or a module that does not exist, or what it raises.
    """
    names = [named] if isinstance(named, str) else named
    if names is None:
        return []
    if not isinstance(names, Iterable) or not all(isinstance(name, str) and name for name in names):
        raise GuiderError(f"import is {named!r}: it must be the name of a Python file or a module, or a list of them.")
    return [_import(name, base) for name in names]


def _import(name: str, base: Path) -> str:
    if not name.endswith(".py"):
        if not all(part.isidentifier() for part in name.split(".")):
            raise GuiderError(f"import names {name}: give a Python file (name.py) or the dotted name of a module.")
        with _told(name):
            importlib.import_module(name)
        return name
    file = (base / user_path(name)).resolve()
    if not file.is_file():
        raise GuiderError(f"import names {name}: there is no file {file}.")
    if str(file) in _imported:
        return str(file)
    # under its own name, by which pickle finds what it defines
    if file.stem in sys.modules:
        raise GuiderError(f"import names {file}, but a module called {file.stem} is loaded already: rename the file.")
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None and spec.loader is not None  # it ends in .py
    module = sys.modules[file.stem] = importlib.util.module_from_spec(spec)
    try:
        with _told(str(file)):
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[file.stem]  # half of it has run
        raise
    _imported.add(str(file))
    return str(file)


@contextmanager
def _told(name: str) -> Iterator[None]:
    """What a user's file raises becomes one sentence that names the file."""
    try:
        yield
    except GuiderError as error:
        raise GuiderError(f"import of {name}: {error}") from error
    except (Exception, SystemExit) as error:
        raise GuiderError(f"import of {name} failed: {type(error).__name__}: {error}") from error
