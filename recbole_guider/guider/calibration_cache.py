"""Calibrations that are kept: the same interactions, content, settings and seed are calibrated once."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from importlib import metadata
from logging import getLogger
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from filelock import FileLock

import recbole_guider.amsc
from recbole_guider.amsc import Calibration
from recbole_guider.utils import interactions
from recbole_guider.utils.atomic_io import write_whole
from recbole_guider.utils.errors import GuiderError

#: What may change the numbers beside the input: this package's own files are part of the key, too.
_LIBRARIES = ("numpy", "scipy", "scikit-learn", "torch")
_ARRAYS = ("score", "clean_probability", "is_clean", "confidence")


def calibration_key(arrays: Iterable[np.ndarray], settings: str) -> str:
    """Hexadecimal digits that stand for a calibration's input, for the code that judges it, and for the libraries.

    Args:
        arrays: all that the calibration reads, in a fixed order.
        settings: everything else it depends on, as text.
    """
    digest = hashlib.sha256(settings.encode())
    for name in _LIBRARIES:
        digest.update(f"{name} {metadata.version(name)}".encode())
    sources = sorted(Path(recbole_guider.amsc.__file__).parent.glob("*.py"))
    for file in [*sources, Path(interactions.__file__)]:
        digest.update(file.read_bytes())
    for array in arrays:
        digest.update(f"{array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:24]


def load_or_compute(folder: Path | None, key: str, compute: Callable[[], Calibration]) -> Calibration:
    """The calibration that ``folder`` holds under ``key``, or the computed one, which is then put there.

    A file appears whole or not at all, so that processes may share the folder; one that cannot be read is made anew.
    Of several processes that need the same calibration one computes it, and the others wait for it.

    Args:
        folder: made if need be; None: nothing is kept.
        key: from :func:`calibration_key`.
        compute: gives the calibration.

    Returns:
        The calibration. One that was kept has no ``evidence`` and no null pairs: training needs neither.

    Raises:
        GuiderError: the folder cannot be written to.
    """
    if folder is None:
        return compute()
    file = folder / f"{key}.npz"
    found = _read(file)
    if found is not None:
        return found
    try:
        folder.mkdir(parents=True, exist_ok=True)  # tried before the calibration is computed: that takes minutes
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise GuiderError(f"guider.calibration.cache: the folder {folder} cannot be written to ({error}).") from None
    with _alone(folder / f"{key}.lock"):
        found = _read(file)  # another process may have put it there meanwhile
        if found is None:
            found = compute()
            write_whole(file, partial(_write, found))
    return found


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """Held by one process at a time; the system frees it when that process ends, in whatever way."""
    with ExitStack() as held:
        # Where the file system has no locks, or another user owns this one, every process computes it: a lock that is
        # a mere file would outlive a killed process, and the others would wait for ever.
        with suppress(OSError, NotImplementedError):
            held.enter_context(FileLock(lock, fallback_to_soft=False))
        yield


def _read(file: Path) -> Calibration | None:
    try:
        with np.load(file, allow_pickle=False) as stored:
            weights = dict(zip(stored["modalities"].tolist(), stored["weights"].tolist(), strict=True))
            arrays = {name: stored[name] for name in _ARRAYS}
            found = Calibration(**arrays, modality_weights=weights, noise_rate=float(stored["noise_rate"]))
    except (OSError, BadZipFile, KeyError, ValueError):
        return None
    getLogger().info(f"The calibration is read from {file}.")
    return found


def _write(calibration: Calibration, file: Path) -> None:
    with file.open("wb") as stream:
        np.savez(
            stream,
            **{name: getattr(calibration, name) for name in _ARRAYS},
            modalities=np.array(list(calibration.modality_weights), dtype=str),
            weights=np.array(list(calibration.modality_weights.values()), dtype=float),
            noise_rate=np.array(calibration.noise_rate),
        )
