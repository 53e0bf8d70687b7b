"""The samplers and schedulers of a sweep, by name."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from recbole_guider.tuning.definition import SweepDefinition
from recbole_guider.utils.errors import GuiderError

SAMPLERS = ("random", "grid", "hyperopt", "optuna")
SCHEDULERS = ("asha", "pbt", "none")
#: The metric that searchers and ASHA compare: the best so far, as RecBole keeps the best model.
BEST, CURRENT = "best_valid_score", "valid_score"


def check_names(sampler: str, scheduler: str) -> None:
    """Whether there are such a sampler and scheduler, and the two work together.

    Raises:
        GuiderError: there are not, or what they need is not installed.
    """
    if sampler not in SAMPLERS:
        raise GuiderError(f"the sampler is {sampler!r}: it must be one of {', '.join(SAMPLERS)}.")
    if scheduler not in SCHEDULERS:
        raise GuiderError(f"the scheduler is {scheduler!r}: it must be one of {', '.join(SCHEDULERS)}.")
    if sampler in ("hyperopt", "optuna") and find_spec(sampler) is None:
        raise GuiderError(f"the sampler {sampler} needs the package {sampler}: pip install {sampler}.")
    if scheduler == "pbt" and sampler != "random":
        raise GuiderError(
            f"the scheduler pbt changes the settings itself, and works with the sampler random, not {sampler}."
        )


def search_algorithm(definition: SweepDefinition) -> Any:
    """Ray Tune's object that chooses configurations."""
    seed = definition.sampler_seed
    if definition.sampler == "hyperopt":
        from ray.tune.search.hyperopt import HyperOptSearch

        return HyperOptSearch(random_state_seed=seed)
    if definition.sampler == "optuna":
        from optuna.samplers import TPESampler
        from ray.tune.search.optuna import OptunaSearch

        return OptunaSearch(sampler=TPESampler(seed=seed))
    from ray.tune.search.basic_variant import BasicVariantGenerator

    return BasicVariantGenerator(max_concurrent=definition.max_concurrent or 0, random_state=seed)


def scheduler(definition: SweepDefinition) -> Any:
    """Ray Tune's object that stops trials early, or None."""
    if definition.scheduler == "asha":
        from ray.tune.schedulers import ASHAScheduler

        # a rung at the last evaluation would stop nothing; beyond it, a trial ends by itself
        return ASHAScheduler(
            time_attr="evaluation", max_t=definition.evaluations + 1, grace_period=definition.grace_period,
            reduction_factor=3,
        )
    if definition.scheduler == "pbt":
        from ray.tune.schedulers import PopulationBasedTraining

        return PopulationBasedTraining(
            time_attr="evaluation", perturbation_interval=definition.perturbation_interval,
            hyperparam_mutations=definition.space.mutations(), custom_explore_fn=definition.space.bring_into_range,
        )
    return None


def compared_metric(definition: SweepDefinition) -> str:
    """The metric that the sampler and the scheduler are given.

    Population-based training copies what a trial is now: a trial that inherited a good past would seem good for ever.
    """
    return CURRENT if definition.scheduler == "pbt" else BEST
