"""Whether a run needs this package: what the functions in RecBole's places ask first."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from recbole_guider.config.merging import merge, merge_all, parse_values
from recbole_guider.config.registry import is_ours
from recbole_guider.data.settings import AMOUNTS
from recbole_guider.denoising.methods import denoising_settings
from recbole_guider.utils.errors import GuiderError
from recbole_guider.utils.yaml_files import read_yaml


def is_our_run(
    model: str | type | None = None,
    dataset: str | None = None,
    config_file_list: Sequence[str | os.PathLike[str]] | None = None,
    config_dict: Mapping[str, Any] | None = None,
) -> bool:
    """Whether a run with these arguments of RecBole's ``Config``, and this process's command line, needs this package:
    its model is one that RecBole by itself does not know, or a block is on (``guider``, ``denoising``,
    ``mirror_gradient``), its data are not RecBole's (``noise``, ``eval_mask``), or it has an ``import``.

    What cannot be read here is not ours: RecBole says what it thinks of it.
    """
    found = _asked_of_us(model, config_file_list, config_dict)
    blocks_on = _is_on(found.get("guider")) or _is_on(found.get("mirror_gradient"))
    if blocks_on or changes_data(found) or found.get("import"):
        return True
    denoising = found.get("denoising")
    try:
        denoised = denoising_settings(denoising) is not None
    except GuiderError:
        # the run says what is wrong with it, unless it is a parameter of somebody's model
        denoised = isinstance(denoising, (str, Mapping))
    return denoised or is_ours(found["model"])


def changes_data(settings: Mapping[str, Any]) -> bool:
    """Whether ``noise`` or ``eval_mask`` of these settings ask for other data than RecBole makes."""
    noise, mask = settings.get("noise"), settings.get("eval_mask")
    # a number may be a parameter of somebody's model
    asked = isinstance(noise, Mapping) and any(noise.get(key) for key in ("recorded", *AMOUNTS))
    return asked or mask not in (None, False, "recbole")


def _is_on(block: Any) -> bool:
    return block is not None and block is not False


def _asked_of_us(
    model: str | type | None,
    config_file_list: Sequence[str | os.PathLike[str]] | None,
    config_dict: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """The model's name, or "", and the blocks of all sources; no block where a source cannot be read."""
    keys = ("model", "guider", "denoising", "mirror_gradient", "noise", "eval_mask", "import")
    typed = [argument[2:].partition("=") for argument in sys.argv[1:] if argument.startswith("--")]
    try:
        # GuiderConfig refuses a key that is there twice; RecBole's own runs keep to RecBole's reading
        found = merge_all(read_yaml(file, unique_keys=False) for file in config_file_list or [])
        for source in (dict(config_dict or {}), {key: value for key, separator, value in typed if separator}):
            wanted = {key: value for key, value in source.items() if str(key).partition(".")[0] in keys}
            found = merge(found, parse_values(wanted))
    except (GuiderError, TypeError, ValueError):
        return {"model": ""}
    name = model if model is not None else found.get("model")
    blocks = {key: found[key] for key in keys if key in found}
    return {**blocks, "model": name if isinstance(name, str) else getattr(name, "__name__", "")}
