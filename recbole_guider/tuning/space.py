"""Search spaces: which settings a sweep varies and over what, from YAML or RecBole's ``hyper.test`` files."""

from __future__ import annotations

import ast
import itertools
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from recbole_guider.utils.errors import GuiderError
from recbole_guider.utils.yaml_files import read_yaml

#: How many numbers each kind of range takes.
_BOUNDS = {"uniform": 2, "loguniform": 2, "quniform": 3, "int": 2}
KINDS = ("choice", *_BOUNDS)
_EXAMPLE = "guider.dbpr.eta: {choice: [0.0, 0.1]} or learning_rate: {loguniform: [1e-4, 1e-2]}"


@dataclass(frozen=True)
class SearchedSetting:
    """One setting and the values it may take.

    Attributes:
        key: a setting of RecBole or of this package, nested ones with dots.
        kind: ``choice``: one of ``values``. ``uniform``, ``loguniform``: ``values = (low, high)``, the numbers between
            them, evenly or evenly in the logarithm. ``quniform``: ``values = (low, high, step)``, the multiples of
            step between them. ``int``: ``values = (low, high)``, whole numbers, both ends included.
    """

    key: str
    kind: str
    values: tuple[Any, ...]

    @cached_property
    def _encoded(self) -> dict[Any, Any]:
        """For a choice: what Ray is given -> the value. Samplers compare and hash values, and a list has no hash."""
        return {value if _is_scalar(value) else json.dumps(value): value for value in self.values}

    def domain(self) -> Any:
        """The values as Ray Tune's samplers take them."""
        from ray import tune

        if self.kind == "choice":
            return tune.choice(list(self._encoded))
        if self.kind == "int":
            return tune.randint(self.values[0], self.values[1] + 1)
        return getattr(tune, self.kind)(*self.values)

    def mutation(self) -> Any:
        """The values as population-based training takes them: neighbours in a list, or a range."""
        return list(self._encoded) if self.kind == "choice" else self.domain()

    def encoded_grid(self) -> list[Any]:
        """All values, as :meth:`decode` takes them.

        Raises:
            GuiderError: there are infinitely many.
        """
        if self.kind == "choice":
            return list(self._encoded)
        if self.kind == "int":
            return list(range(self.values[0], self.values[1] + 1))
        if self.kind == "quniform":
            low, high, step = self.values
            return [step * k for k in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]
        raise GuiderError(
            f"{self.key} is {self.kind}, which has no finite grid: give it a choice, int or quniform, or use another "
            f"sampler than grid."
        )

    def decode(self, value: Any) -> Any:
        """The value of the setting that a sampler's ``value`` stands for; numbers are brought into the range."""
        if self.kind == "choice":
            return self._encoded[value]
        low, high = self.values[:2]
        if self.kind == "int":
            return int(min(max(round(value), low), high))
        if self.kind == "quniform":
            step = self.values[2]
            first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
            value = step * min(max(round(value / step), first), last)
            # multiples of 0.1 are to read 0.3, not 0.30000000000000004
            return value if isinstance(value, int) else float(f"{value:.12g}")
        return float(min(max(value, low), high))

    def encode(self, value: Any) -> Any:
        """The inverse of :meth:`decode`."""
        return json.dumps(value) if self.kind == "choice" and not _is_scalar(value) else value

    def extremes(self) -> list[Any]:
        """Every value of a choice, both ends of a range: if these are valid settings, all are."""
        if self.kind == "choice":
            return list(self.values)
        return [self.decode(end) for end in self.values[:2]]


@dataclass(frozen=True)
class Space:
    """The settings that a sweep varies."""

    settings: tuple[SearchedSetting, ...]

    def __iter__(self) -> Iterator[SearchedSetting]:
        return iter(self.settings)

    def domains(self) -> dict[str, Any]:
        """key -> Ray Tune domain."""
        return {setting.key: setting.domain() for setting in self}

    def grid(self) -> dict[str, Any]:
        """key -> all its values, for Ray Tune's grid search.

        Raises:
            GuiderError: a setting has infinitely many.
        """
        return {setting.key: {"grid_search": setting.encoded_grid()} for setting in self}

    def grid_size(self) -> int:
        """How many configurations the grid has."""
        return math.prod(len(setting.encoded_grid()) for setting in self)

    def mutations(self) -> dict[str, Any]:
        """key -> what population-based training may change it to."""
        return {setting.key: setting.mutation() for setting in self}

    def bring_into_range(self, chosen: Mapping[str, Any]) -> dict[str, Any]:
        """What population-based training made of a configuration, within the space again."""
        return {**chosen, **{each.key: each.encode(each.decode(chosen[each.key])) for each in self}}

    def decode(self, chosen: Mapping[str, Any]) -> dict[str, Any]:
        """key -> value of the setting, of what a sampler chose."""
        return {setting.key: setting.decode(chosen[setting.key]) for setting in self}

    def to_plain(self) -> dict[str, Any]:
        """The mapping that :func:`read_space` reads back."""
        return {setting.key: {setting.kind: list(setting.values)} for setting in self}


def read_space(source: str | os.PathLike[str] | Mapping[str, Any]) -> Space:
    """The search space in a file or a mapping.

    Args:
        source: a mapping, or a ``.yaml``/``.yml`` file with one, such as
            ``{"guider.dbpr.eta": {"choice": [0.0, 0.1]}, "learning_rate": {"loguniform": [1e-4, 1e-2]}}`` (kinds:
            :class:`SearchedSetting`; nested mappings in place of dotted keys are fine); or any other file, read as
            RecBole's ``hyper.test``: lines of key, kind and values. There, as in RecBole, the bounds of ``loguniform``
            are logarithms: ``learning_rate loguniform -8,0`` is e^-8 to 1.

    Raises:
        GuiderError: the file is missing, or a line or an entry is not a setting with its values.
    """
    if isinstance(source, Mapping):
        entries, origin = list(_flat(source)), "the search space"
    elif Path(source).suffix.lower() in (".yaml", ".yml"):
        entries, origin = list(_flat(read_yaml(source))), str(source)
    else:
        entries, origin = list(_hyper_test(Path(source))), str(source)
    if not entries:
        raise GuiderError(f"{origin} names no setting to search over: write for example {_EXAMPLE}.")
    settings = [_checked(key, kind, values, origin) for key, kind, values in entries]
    repeated = [setting.key for setting in settings if [other.key for other in settings].count(setting.key) > 1]
    if repeated:
        raise GuiderError(f"{origin} names {repeated[0]} twice: name it once.")
    for first, second in itertools.permutations([setting.key for setting in settings], 2):
        if second.startswith(f"{first}."):
            raise GuiderError(f"{origin} searches {first} and {second}, which is part of it: search one of the two.")
    return Space(tuple(settings))


def _flat(mapping: Mapping[Any, Any], above: str = "") -> Iterator[tuple[str, str, Any]]:
    for name, entry in mapping.items():
        key = f"{above}{name}"
        if isinstance(entry, Mapping) and len(entry) == 1 and next(iter(entry)) in KINDS:
            yield key, *next(iter(entry.items()))
        elif isinstance(entry, Mapping) and entry and all(isinstance(part, Mapping) for part in entry.values()):
            yield from _flat(entry, f"{key}.")
        else:
            raise GuiderError(
                f"the search space gives {key} as {entry!r}: it must be one of {', '.join(KINDS)} with values, such as "
                f"{_EXAMPLE}."
            )


def _hyper_test(file: Path) -> Iterator[tuple[str, str, Any]]:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise GuiderError(f"the search space {file} does not exist.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise GuiderError(f"the search space {file} cannot be read: {error}.") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        where = f"{file}, line {number}: {line.strip()!r}"
        key, kind, text = [*line.split(maxsplit=2), "", ""][:3]
        if kind not in KINDS or not text:
            raise GuiderError(f"{where} must be a key, one of {', '.join(KINDS)}, and its values.")
        try:
            values = ast.literal_eval(text if kind == "choice" else f"[{text.strip().strip('[]')}]")
        except (ValueError, SyntaxError) as error:
            raise GuiderError(f"{where}: {text.strip()!r} is not a list of values.") from error
        if kind == "loguniform" and all(_is_number(bound) for bound in values):
            values = [math.exp(bound) for bound in values]
        yield key, kind, values


def _checked(key: str, kind: str, values: Any, origin: str) -> SearchedSetting:
    where = f"{origin}: {key}: {kind} {values!r}"
    if not isinstance(values, Sequence) or isinstance(values, str):
        raise GuiderError(f"{where} must be a list.")
    values = list(values)
    if kind == "choice":
        if not values:
            raise GuiderError(f"{where} has no value to choose from.")
        try:
            distinct = {json.dumps(value) for value in values}
        except TypeError as error:
            raise GuiderError(f"{where} holds values that are neither numbers, text, lists nor mappings.") from error
        if len(distinct) < len(values):
            raise GuiderError(f"{where} names a value twice.")
        return SearchedSetting(key, kind, tuple(values))
    rules: list[tuple[bool, str]] = [
        (len(values) == _BOUNDS[kind] and all(_is_number(value) for value in values),
         "must be [low, high, step]" if kind == "quniform" else "must be [low, high]"),
    ]
    further: dict[str, Callable[[], tuple[bool, str]]] = {
        "order": lambda: (values[0] < values[1], "must have low below high"),
        "int": lambda: (kind != "int" or all(isinstance(value, int) for value in values), "must be whole numbers"),
        "log": lambda: (kind != "loguniform" or values[0] > 0, "must have low above 0"),
        "step": lambda: (kind != "quniform" or values[2] > 0, "must have a step above 0"),
    }
    for holds, rule in itertools.chain(rules, (check() for check in further.values())):
        if not holds:
            raise GuiderError(f"{where} {rule}.")
    if kind == "quniform" and all(float(value).is_integer() for value in values):
        values = [int(value) for value in values]  # an embedding size of 64.0 is none
    return SearchedSetting(key, kind, tuple(values))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_scalar(value: Any) -> bool:
    return value is None or isinstance(value, (bool, int, float, str))
