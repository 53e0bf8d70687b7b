"""What a sweep is: everything that a worker needs to run a trial of it, as plain data."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any

from recbole_guider.config.merging import BLOCKS, merge
from recbole_guider.tuning.space import Space, read_space


@dataclass(frozen=True)
class SweepDefinition:
    """A sweep, independent of where it runs.

    Attributes:
        name: of this sweep alone.
        settings: what all trials have in common: the user's files, dict and command line in one, with ``model`` and
            ``dataset``. Paths are absolute.
        space: what the trials differ in.
        seeds: the seeds that every configuration is trained with; empty: the one that the settings say.
        metric: the validation metric that selects, as RecBole names it; ``bigger``: whether more of it is better.
        evaluations: how many evaluations a full training has.
        gpus_per_trial: None until the machines are known.
    """

    name: str
    settings: dict[str, Any]
    space: Space
    samples: int
    sampler: str
    scheduler: str
    seeds: tuple[int, ...]
    sampler_seed: int
    metric: str
    bigger: bool
    evaluations: int
    grace_period: int
    perturbation_interval: int
    cpus_per_trial: float
    gpus_per_trial: float | None
    max_concurrent: int | None
    time_budget: float | None
    retries: int
    versions: dict[str, str] = field(default_factory=dict)

    def trial_settings(self, chosen: dict[str, Any]) -> dict[str, Any]:
        """The property file of a trial, as a dict. ``chosen``: key -> value."""
        # only the blocks are nested here: a dotted key of another mapping changes one entry of its default
        in_blocks = {key: value for key, value in chosen.items() if key.partition(".")[0] in BLOCKS}
        return {**merge(self.settings, in_blocks), **{key: chosen[key] for key in chosen if key not in in_blocks}}

    def to_plain(self) -> dict[str, Any]:
        """As JSON keeps it."""
        return {**asdict(self), "space": self.space.to_plain(), "seeds": list(self.seeds)}

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> SweepDefinition:
        """The inverse of :meth:`to_plain`."""
        known = {each.name for each in fields(cls)}
        given = {key: value for key, value in plain.items() if key in known}
        return cls(**{**given, "space": read_space(plain["space"]), "seeds": tuple(plain["seeds"])})
