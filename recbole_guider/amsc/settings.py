"""The settings of AMSC: ``guider.calibration``."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from recbole_guider.utils.settings import Settings

#: The name of the behaviour modality among AMSC's weights and evidence.
BEHAVIOUR = "behaviour"


class CalibrationSettings(Settings):
    """``guider.calibration``: which interactions are clean (AMSC)."""

    method: Literal["amsc", "none"] = Field(default="amsc", description="amsc; none: every interaction counts as clean")
    modalities: Literal["all"] | list[str] = Field(
        default="all", description="all, or a list of names out of the modalities block"
    )
    confidence: Literal["relative", "none"] = Field(
        default="relative",
        description="how an item's own modalities are compared. relative: by their similarities to anchor items; "
        "none: all items count alike",
    )
    weights: Literal["adaptive", "uniform"] = Field(
        default="adaptive",
        description="how much each modality counts. adaptive: by how well it separates observed from random pairs; "
        "uniform: all alike",
    )
    decision: Literal["lfdr", "quantile"] = Field(
        default="lfdr",
        description="lfdr: local false discovery rate against a paired null; quantile: a threshold on the score",
    )
    null_items: Literal["popularity", "uniform"] = Field(
        default="popularity", description="how the null pairs draw their items: by popularity, or uniform"
    )
    popularity: bool = Field(default=False, description="whether item popularity and user activity are evidence")
    noise_rate: Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)] | None = Field(
        default=None, description="the share of noise; null: estimated"
    )
    noise_by: Literal["popularity", "none"] = Field(
        default="popularity",
        description="whether pairs of rare and of popular items have shares of noise of their own (lfdr). popularity: "
        "counted in up to five groups of pairs; none: one share for all",
    )
    min_profile: Annotated[int, Field(ge=2)] = Field(default=3, description="users with fewer items give no evidence")
    anchors: Annotated[int, Field(ge=2)] = Field(default=512, description="the number of anchor items")
    behaviour: bool = Field(default=True, description="whether co-occurrence in profiles is one more modality")
    learned: bool = Field(
        default=True, description="whether similarities learned from other users' profiles are further evidence"
    )
    nearest: bool = Field(
        default=True,
        description="whether the most similar item of a profile is further evidence, beside the mean over the "
        "profile; left out where profiles are too long to compare all pairs",
    )
    cache: str | None = Field(
        default=None,
        description="a folder that keeps calibrations: the same data, settings and seed are then calibrated once, "
        "however many runs there are",
    )
