"""Files of a user's own that register models and methods: ``import:`` in property files and specs, ``--import``."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from recbole_guider.utils.errors import GuiderError
from recbole_guider.utils.paths import user_path

#: What this process has imported, by the file's path.
_imported: set[str] = set()


def import_extensions(named: Any, base: Path) -> list[str]:
    """Import Python files, or modules by their dotted names; each once in a process.

    Only what a user names in a command, a property file or a spec comes here: of a checkpoint or any other file that
    may be a stranger's nothing is imported.

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
        _run(name, lambda: importlib.import_module(name))
        return name
    file = (base / user_path(name)).resolve()
    if not file.is_file():
        raise GuiderError(f"import names {name}: there is no file {file}.")
    if str(file) in _imported:
        return str(file)
    # under its own name, so that what it defines can be pickled and found again
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    loader = spec.loader

    def execute() -> None:
        sys.modules.setdefault(file.stem, module)
        loader.exec_module(module)

    _run(str(file), execute)
    _imported.add(str(file))
    return str(file)


def _run(name: str, execute: Any) -> None:
    try:
        execute()
    except GuiderError as error:
        raise GuiderError(f"import of {name}: {error}") from error
    except Exception as error:  # whatever a user's file raises
        raise GuiderError(f"import of {name} failed: {type(error).__name__}: {error}") from error
