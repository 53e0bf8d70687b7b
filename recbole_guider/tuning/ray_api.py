"""Ray Tune of both generations: 2.6, which RecBole pins, and current releases (2.43 and later).

One function for each thing that the two do differently. All of it can go, in favour of ``ray.tune``, when Ray 2.6 is no
longer supported.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from packaging.version import Version

from recbole_guider.utils import compat
from recbole_guider.utils.errors import GuiderError

compat.apply()  # before Ray's modules, which some of the shims are for


def is_current() -> bool:
    """Whether ``ray.tune`` itself has what trials call and sweeps are configured with (2.43 and later)."""
    from ray import tune

    return hasattr(tune, "RunConfig")


def require_known_release() -> None:
    """Refuse the releases between the two: checkpoints of trials have left ``ray.air`` and are not yet in ``ray.tune``.

    Raises:
        GuiderError: Ray is 2.7 to 2.42.
    """
    import ray

    if Version("2.7") <= Version(ray.__version__) < Version("2.43"):
        raise GuiderError(
            f"Ray {ray.__version__} is installed, and sweeps need 2.43 or later (or 2.6.3, which RecBole pins): "
            f"pip install -U 'ray[data,tune]>=2.43'"
        )


def report(metrics: Mapping[str, Any], checkpoint: Path | None = None) -> None:
    """Tell Tune of one evaluation, and hand it the folder to continue from, if there is one."""
    kept: Any = None
    if is_current():
        from ray import tune

        if checkpoint is not None:
            kept = tune.Checkpoint.from_directory(str(checkpoint))
        tune.report(dict(metrics), checkpoint=kept)
    else:
        from ray.air import Checkpoint, session

        if checkpoint is not None:
            kept = Checkpoint.from_directory(str(checkpoint))
        session.report(dict(metrics), checkpoint=kept)


@contextmanager
def restored_checkpoint() -> Iterator[Path | None]:
    """The folder that this trial is to continue from, or None."""
    if is_current():
        from ray import tune

        checkpoint = tune.get_checkpoint()
    else:
        from ray.air import session

        checkpoint = session.get_checkpoint()
    if checkpoint is None:
        yield None
        return
    with checkpoint.as_directory() as folder:
        yield Path(folder)


def trial_id() -> str:
    """The name of the trial that runs here, unique in its sweep and kept when it is restarted."""
    return str(_context().get_trial_id())


def trial_folder() -> Path:
    """The trial's folder within the sweep's."""
    return Path(_context().get_trial_dir())


def _context() -> Any:
    if is_current():
        from ray import tune

        return tune.get_context()
    from ray.air import session

    return session


def run_config(folder: Path, name: str, *, callbacks: list[Any], retries: int, checkpoints_kept: int) -> Any:
    """Where a sweep is stored (``folder/name``), who listens, and what happens when a worker is lost."""
    if is_current():
        from ray.tune import CheckpointConfig, FailureConfig, RunConfig
    else:
        from ray.air.config import CheckpointConfig, FailureConfig, RunConfig
    return RunConfig(
        name=name,
        storage_path=str(folder),
        callbacks=callbacks,
        failure_config=FailureConfig(max_failures=retries),
        checkpoint_config=CheckpointConfig(num_to_keep=checkpoints_kept),
        verbose=0,
    )
