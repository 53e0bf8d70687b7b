"""The files that a run reads, and what stands for their content."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import recbole

from recbole_guider.data.dataset import noise_of
from recbole_guider.data.features import modality_files
from recbole_guider.utils.errors import GuiderError, nearest
from recbole_guider.utils.paths import user_path
from recbole_guider.utils.yaml_files import read_yaml

#: Ends of the names of RecBole's atomic files; ``additional_feat_suffix`` names more.
_SUFFIXES = ("inter", "user", "item", "net", "kg", "link")


@dataclass(frozen=True)
class DataFiles:
    """Where the data of a run lie.

    Attributes:
        name: of the data set.
        folder: of its atomic files.
        suffixes: ends of their names.
        others: files of the modalities and of recorded noise, wherever they are.
    """

    name: str
    folder: Path
    suffixes: frozenset[str]
    others: frozenset[Path]

    def fingerprint(self) -> str | None:
        """Hexadecimal digits that stand for the names and the content of all files; None where there is no folder.

        A file is read once in a process, and again when its size or time has changed.
        """
        if not self.folder.is_dir():
            return None
        # not all files with the name: notes and copies beside the data are not read
        atomic = {path for path in self.folder.glob(f"{self.name}.*") if path.suffix[1:] in self.suffixes}
        digest = hashlib.sha256()
        for path in sorted(atomic | self.others, key=lambda path: (path.name, str(path))):
            if path.is_file():
                stat = path.stat()
                digest.update(f"{path.name} {_hashed(path, stat.st_size, stat.st_mtime_ns)}\n".encode())
        return digest.hexdigest()[:16]

    def check(self) -> None:
        """Raise GuiderError where there is no folder, and RecBole cannot download one."""
        if self.folder.is_dir():
            return
        known = read_yaml(Path(recbole.__file__).parent / "properties" / "dataset" / "url.yaml")
        if self.name in known:
            return
        beside = [path.name for path in self.folder.parent.iterdir()] if self.folder.parent.is_dir() else []
        near = nearest(self.name, beside)
        raise GuiderError(
            f"there is no folder {self.folder} with the data set {self.name!r}"
            + (f"; did you mean {near!r}? " if near else ": ")
            + "Correct its name in the spec, set data_path, or make one with recbole-guider convert."
        )


def data_files(config: Any) -> DataFiles:
    """The files that a run with this configuration reads, by absolute paths.

    Raises:
        GuiderError: something is wrong in the ``modalities`` block.
    """
    folder = Path(os.path.abspath(config["data_path"]))
    others = set(modality_files(config))
    recorded = noise_of(config).recorded
    if recorded is not None:
        others.add(Path(config["data_path"]) / user_path(recorded))
    return DataFiles(
        str(config["dataset"]), folder, frozenset({*_SUFFIXES, *(config["additional_feat_suffix"] or [])}),
        frozenset(Path(os.path.abspath(path)) for path in others),
    )


@cache
def _hashed(path: Path, size: int, time: int) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while piece := stream.read(2**20):
            digest.update(piece)
    return digest.hexdigest()
