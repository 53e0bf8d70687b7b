"""What the sources of a configuration say and how they combine: blocks that merge key by key, dotted keys, and values
that are typed on the command line."""

from __future__ import annotations

import ast
import copy
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import reduce
from logging import getLogger
from typing import Any

import yaml

from recbole_guider.denoising.settings import COMMON_KEYS, expanded
from recbole_guider.utils.arguments import is_setting
from recbole_guider.utils.errors import GuiderError
from recbole_guider.utils.yaml_files import YamlLoader

#: Keys whose mappings are merged key by key over all sources; RecBole replaces other mappings as a whole.
BLOCKS = ("guider", "modalities", "noise", "denoising", "mirror_gradient")

#: Settings of an experiment, for any model, that the guider block may hold as well: ``guider.noise`` is ``noise``.
_EXPERIMENT = ("noise", "eval_mask")

#: RecBole's keys whose values are lists of names.
_LISTS = {
    *("benchmark_filename", "metrics", "additional_feat_suffix", "normalize_field", "numerical_features"),
    *("alias_of_user_id", "alias_of_item_id", "alias_of_entity_id", "alias_of_relation_id"),
}

#: Arguments of the launchers themselves (run_recbole_guider.py, recbole-guider), which are not settings.
_LAUNCHER_FLAGS = {
    *("--model", "-m", "--dataset", "-d", "--config_files", "--nproc", "--ip", "--port", "--world_size"),
    "--group_offset",
}


def merge(base: Mapping[str, Any], update: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` overridden by ``update``, both untouched.

    Mappings under the keys in :data:`BLOCKS` merge key by key, at every depth; there, a mapping after False
    switches the block on, and True after a mapping keeps it. In ``denoising`` a name stands for ``{method: name}``,
    and another method drops the parameters of the one before. Other values are replaced. A dotted key sets one
    entry of a mapping, and comes after the plain keys of the same ``update``.

    ``guider.noise`` and ``guider.eval_mask`` are other spellings of ``noise`` and ``eval_mask``, which win over these
    within ``update``. The result has them at the top level only; null leaves them as they are.

    Raises:
        GuiderError: a dotted key goes through a value that is no mapping, or stands beside ``False`` for its block.
    """
    merged = dict(base)
    for key in update:
        head, dot, _ = str(key).partition(".")
        if dot and head in BLOCKS:
            _require_block(head, update.get(head), key)
    in_guider: dict[str, Any] = {}
    for key, value in _plain_keys_first(update):
        head, *path = key.split(".") if isinstance(key, str) else [key]
        if key in _EXPERIMENT and value is None:
            merged.setdefault(key, None)
        elif head in BLOCKS:
            if head == "guider" and isinstance(value, Mapping):
                value = _expand(value)
            value, before = _nest(path, value), merged.get(head)
            if head == "denoising":
                value, before = expanded(value), _of_same_method(before, expanded(value))
            elif head == "guider" and isinstance(value, Mapping):
                moved = {name: value[name] for name in _EXPERIMENT if name in value}
                in_guider = _merge_block(in_guider, moved)
                value = {name: part for name, part in value.items() if name not in moved}
            merged[head] = _merge_block(before, value)
        elif path:
            merged[head] = _with_entry(merged.get(head), path, value, key)
        else:
            merged[key] = copy.deepcopy(value)
    for key, value in in_guider.items():
        if value is not None:
            merged[key] = _merge_block(merged.get(key), value)
    return merged


def merge_all(sources: Iterable[Mapping[str, Any]], base: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """``base`` overridden by one source after another; see :func:`merge`."""
    return reduce(merge, sources, dict(base or {}))


def _require_block(head: str, value: Any, key: str) -> None:
    """Raise if ``value``, which one source gives a block, leaves no place for the entry ``key`` of the same source."""
    if value is False:
        raise GuiderError(f"{key} is set where {head} is False, which switches it off: give one of the two.")
    value = expanded(value) if head == "denoising" else value
    if not (value is None or value is True or isinstance(value, Mapping)):
        raise GuiderError(f"{key} cannot be set: {head} is {value!r}, which is not a mapping.")


def _of_same_method(before: Any, value: Any) -> Any:
    """What remains of an earlier ``denoising`` block: where another method is named, what all methods have."""
    before = expanded(before)
    if not isinstance(before, Mapping) or not isinstance(value, Mapping):
        return before
    if value.get("method", before.get("method")) == before.get("method"):
        return before
    return {key: before[key] for key in COMMON_KEYS if key in before}


def _plain_keys_first(mapping: Mapping[Any, Any]) -> Iterable[tuple[Any, Any]]:
    return sorted(mapping.items(), key=lambda item: "." in str(item[0]))


def _nest(path: Sequence[str], value: Any) -> Any:
    for part in reversed(path):
        value = {part: value}
    return value


def _expand(block: Mapping[Any, Any]) -> dict[Any, Any]:
    """Dotted keys inside a block, made nested mappings."""
    expanded: dict[Any, Any] = {}
    for key, value in _plain_keys_first(block):
        value = _expand(value) if isinstance(value, Mapping) else value
        head, *path = key.split(".") if isinstance(key, str) else [key]
        expanded[head] = _merge_block(expanded.get(head), _nest(path, value))
    return expanded


def _merge_block(old: Any, new: Any) -> Any:
    """What a value inside a block, or a block as a whole, is after a later source; mappings merge at every depth."""
    if new is True and isinstance(old, Mapping):
        return old
    if not isinstance(new, Mapping):
        return copy.deepcopy(new)
    merged = dict(old) if isinstance(old, Mapping) else {}
    for key, value in new.items():
        merged[key] = _merge_block(merged.get(key), value)
    return merged


def _with_entry(mapping: Any, path: Sequence[str], value: Any, key: str) -> dict[str, Any]:
    if mapping is not None and not isinstance(mapping, Mapping):
        above = key[: -len(".".join(path)) - 1]
        raise GuiderError(f"{key} cannot be set: {above} is {mapping!r}, which is not a mapping.")
    entries = dict(mapping or {})
    first, *rest = path
    entries[first] = _with_entry(entries.get(first), rest, value, key) if rest else copy.deepcopy(value)
    return entries


def parse_values(settings: Mapping[str, Any]) -> dict[str, Any]:
    """``settings`` with :func:`parse_value` of those that are strings."""
    return {key: parse_value(key, value) if isinstance(value, str) else value for key, value in settings.items()}


def parse_value(key: str, text: str) -> Any:
    """What ``text``, given for ``key`` on the command line or as a string in ``config_dict``, stands for.

    A Python literal, else true or false in any case, else the text itself: RecBole's rules, but nothing is
    executed. In the blocks of this package, and where the text begins with a brace, YAML is understood too; lists of
    names need no quotes.

    Raises:
        GuiderError: the value of a block is neither, or lacks the space after a colon.
    """
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        pass
    else:
        return value if value is None or isinstance(value, (str, int, float, list, tuple, dict)) else text
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    in_block = key.partition(".")[0] in BLOCKS
    if key in _LISTS and re.fullmatch(r"\[.*\]", text):
        return [part.strip() for part in text[1:-1].split(",") if part.strip()]
    if not in_block and not text.startswith("{"):
        return text
    try:
        value = yaml.load(text, Loader=YamlLoader)
    except yaml.YAMLError as error:
        if not in_block:
            return text
        raise GuiderError(
            f"{key} is {text!r}, which is neither a value nor YAML: {getattr(error, 'problem', error)}."
        ) from error
    _require_spaces(key, text, value)
    if in_block:
        return value if value is None or isinstance(value, (str, int, float, list, dict)) else text
    return value if isinstance(value, dict) else text


def _require_spaces(key: str, text: str, value: Any) -> None:
    """Raise if YAML took ``{a:1}`` for a mapping without values."""
    if not isinstance(value, dict):
        return
    for name, part in value.items():
        if part is None and isinstance(name, str) and ":" in name:
            spaced = text.replace(name, name.replace(":", ": ", 1), 1)
            raise GuiderError(f"{key} is {text!r}: YAML wants a space after a colon, as in {spaced!r}.")
        _require_spaces(key, text, part)


def split_arguments(arguments: Sequence[str]) -> dict[str, str]:
    """``--key=value`` arguments as a dict of strings; the launchers' own are skipped, others give a warning."""
    settings: dict[str, str] = {}
    unused = []
    remaining = list(arguments)
    while remaining:
        argument = remaining.pop(0)
        name, _, value = argument.partition("=")
        if argument in _LAUNCHER_FLAGS:
            if remaining and not remaining[0].startswith("-"):
                del remaining[0]
        elif is_setting(argument):
            name = name[2:]
            if settings.get(name, value) != value:
                raise GuiderError(
                    f"--{name} is given twice, as {settings[name]!r} and as {value!r}: give it once."
                )
            settings[name] = value
        elif not re.fullmatch(r"-[md]=?[^-]\S*", argument):
            unused.append(argument)
    if unused:
        getLogger().warning(f"command line args [{' '.join(unused)}] will not be used in RecBole")
    return settings
