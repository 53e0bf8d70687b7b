"""A data set that is written to disk: its folder and its YAML file come to be together, or not at all."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from recbole_guider.utils.atomic_io import require_folder
from recbole_guider.utils.errors import GuiderError


def check_name(name: str) -> None:
    """Raise GuiderError unless ``name`` can be that of a folder and a file."""
    if Path(name).name != name or name in ("", ".", ".."):
        raise GuiderError(f"{name!r} cannot name a data set; use letters, digits, '-' and '_'.")


def new_data_set(to: Path, name: str) -> Path:
    """Path of the YAML file ``to/<name>.yaml`` of a data set that does not exist yet.

    Raises:
        GuiderError: it, or the folder ``to/<name>``, exists; or ``to`` is no folder that can be written to.
    """
    require_folder(to, "--to")
    yaml_file = to / f"{name}.yaml"
    for target in (to / name, yaml_file):
        if target.exists():
            raise GuiderError(f"{target} already exists; remove it, or choose another --name or --to.")
    return yaml_file


@contextmanager
def written_together(yaml_file: Path) -> Iterator[tuple[Path, Path]]:
    """Write a data set elsewhere, and put it in its place when all of it is there.

    Args:
        yaml_file: of the data set, ``<to>/<name>.yaml``.

    Returns:
        A context that gives an empty folder, which becomes ``<to>/<name>``, and the file to write the YAML text to.
        Nothing is left behind if its body fails.
    """
    to, name = yaml_file.parent, yaml_file.stem
    to.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=to))
    try:
        inside, text_file = work / name, work / yaml_file.name
        inside.mkdir()
        yield inside, text_file
        inside.rename(to / name)
        try:
            text_file.rename(yaml_file)
        except OSError:
            shutil.rmtree(to / name)
            raise
    finally:
        shutil.rmtree(work)
