"""The base of every block of settings, and what is said where a value is not what it must be."""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self, TypeVar, Union, get_args, get_origin

import numpy as np
from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo

from recbole_guider.utils.errors import GuiderError, nearest

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
UnitInterval = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]
Natural = Annotated[int, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]


class AllowedValues(NamedTuple):
    """Put into an annotation: what values it takes, in words, where its type does not say it well."""

    words: str


class Settings(BaseModel):
    """A block of settings: typed, immutable, without unknown keys. The base of every block of this package."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class SwitchedSettings(Settings):
    """A block that true stands for as well (all defaults), and false or null (off)."""

    #: the block's key in a configuration
    block_name: ClassVar[str]
    #: the word for off that messages name
    off: ClassVar[str] = "false"

    @classmethod
    def from_block(cls, block: Mapping[str, Any] | bool | None) -> Self | None:
        """The settings that a configuration's value for this block stands for.

        Args:
            block: a mapping with any part of the keys (the others keep their defaults; a nested block that is null
                counts as not given); True for all defaults; False or None for off.

        Returns:
            The settings; None: off.

        Raises:
            GuiderError: a key that does not exist, a value of another type or out of range; the message names the
                dotted key, the value and what is allowed.
        """
        if block is None or block is False:
            return None
        if block is True:
            return cls()
        if not isinstance(block, Mapping):
            raise GuiderError(
                f"{cls.block_name} is {block!r}: give true, {cls.off} or a block of keys "
                f"({', '.join(cls.model_fields)})."
            )
        return validated(cls, block, cls.block_name)


SomeSettings = TypeVar("SomeSettings", bound=Settings)


def validated(schema: type[SomeSettings], block: Mapping[Any, Any], name: str) -> SomeSettings:
    """The settings that ``block`` stands for, the others at their defaults.

    Args:
        schema: the class of the settings.
        block: any part of its keys.
        name: what the block is called in messages; empty for what stands at the top level.

    Raises:
        GuiderError: a key that does not exist, a value of another type or out of range; the message names the dotted
            key, the value and what is allowed.
    """
    try:
        return schema.model_validate(_plain(block, schema))
    except ValidationError as error:
        raise GuiderError(_explain(error, schema, block, name)) from None


def check_part(schema: type[Settings], block: Mapping[Any, Any], name: str) -> None:
    """Raise as :func:`validated` does where ``block``, which may lack any of the keys, has one that is wrong.

    Raises:
        GuiderError: as there.
    """
    try:
        schema.model_validate(_plain(block, schema))
    except ValidationError as error:
        if any(each["type"] != "missing" for each in error.errors()):
            raise GuiderError(_explain(error, schema, block, name)) from None


def _plain(block: Mapping[Any, Any], model: type[BaseModel] | None) -> dict[Any, Any]:
    """``block`` with numpy numbers, tuples and empty nested blocks turned into what the schema reads."""
    plain: dict[Any, Any] = {}
    for key, value in block.items():
        nested = nested_settings(model.model_fields[key]) if model is not None and key in model.model_fields else None
        if value is None and nested is not None:
            continue
        plain[key] = _plain(value, nested) if isinstance(value, Mapping) else _plain_value(value)
    return plain


def _plain_value(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, (list, tuple)):
        return [_plain_value(part) for part in value]
    return value


def nested_settings(field: FieldInfo) -> type[Settings] | None:
    """The class of a field that is a block of its own; None: it is a value."""
    annotation = field.annotation
    return annotation if isinstance(annotation, type) and issubclass(annotation, Settings) else None


def _dotted_keys(model: type[BaseModel], prefix: str) -> Iterator[str]:
    for name, field in model.model_fields.items():
        nested = nested_settings(field)
        yield f"{prefix}.{name}"
        if nested is not None:
            yield from _dotted_keys(nested, f"{prefix}.{name}")


def _explain(error: ValidationError, schema: type[BaseModel], block: Any, name: str) -> str:
    """One sentence for the first mistake; a key that does not exist comes before a value that is wrong."""
    mistakes = [
        each for each in error.errors(include_url=False, include_context=False) if each["type"] != "missing"
    ]
    mistake = next((each for each in mistakes if each["type"] == "extra_forbidden"), mistakes[0])
    model, given = schema, block
    path = [name] if name else []
    for part in mistake["loc"]:
        path.append(str(part))
        given = given.get(part) if isinstance(given, Mapping) else None
        if part not in model.model_fields:
            return _explain_unknown(".".join(path), model, schema, name)
        field = model.model_fields[str(part)]
        nested = nested_settings(field)
        if nested is None:
            break  # what follows in loc is the branch of a union or the index in a list
        model = nested
    else:
        keys = ", ".join(model.model_fields)
        return f"{'.'.join(path)} is {mistake['input']!r}: it is a block of keys ({keys})."
    in_words = any(isinstance(part, AllowedValues) for part in field.metadata)
    entries = None if in_words else _entries(field.annotation)
    if isinstance(given, Mapping) and entries is not None:
        # one entry of a mapping, such as from modalities to numbers; its key ends the place of the mistake
        wrong = next((each for each in mistakes if each["loc"][-1] in given), None)
        if wrong is not None:
            return f"{'.'.join(path)}.{wrong['loc'][-1]} is {wrong['input']!r}: it must be {_allowed(entries, [])}."
    value = mistake["input"]
    return f"{'.'.join(path)} is {value!r}: it must be {allowed_values(field)}."


def _entries(annotation: Any) -> Any:
    """What the values of a mapping are that an annotation allows; None: it allows no mapping."""
    for branch in (annotation, *get_args(annotation)):
        if get_origin(branch) is dict:
            return get_args(branch)[1]
    return None


def _explain_unknown(key: str, model: type[BaseModel], schema: type[BaseModel], root: str) -> str:
    block, _, leaf = key.rpartition(".")
    # the names of the same block first, then those of all blocks
    known = {name: f"{block}.{name}" for name in model.model_fields}
    near = nearest(leaf, known, 0.7)
    if near is None:
        known = {other.rpartition(".")[2]: other for other in _dotted_keys(schema, root)}
        near = nearest(leaf, known, 0.7)
    guess = "." if near is None else f"; did you mean {known[near]}?"
    return f"{key} is not a setting{guess} Allowed: {', '.join(model.model_fields)}."


def allowed_values(field: FieldInfo) -> str:
    """What values a field takes, in words."""
    return _allowed(field.annotation, field.metadata)


def _allowed(annotation: Any, metadata: list[Any]) -> str:
    """What values a field takes, in words."""
    for part in metadata:
        if isinstance(part, AllowedValues):
            return part.words
    origin = get_origin(annotation)
    if origin is Annotated:
        inner, *constraints = get_args(annotation)
        return _allowed(inner, [*metadata, *constraints])
    if origin in (Union, types.UnionType):
        return " or ".join(_allowed(branch, metadata) for branch in get_args(annotation))
    if origin is Literal:
        values = [str(value) for value in get_args(annotation)]
        return values[0] if len(values) == 1 else f"{', '.join(values[:-1])} or {values[-1]}"
    if origin is list:
        return "a list of names"
    if origin is dict:
        return "a block of keys"
    words = {bool: "true or false", str: "a name", type(None): "null"}
    if annotation in words:
        return words[annotation]
    return ("a whole number" if annotation is int else "a number") + _bounds(metadata)


def _bounds(metadata: list[Any]) -> str:
    flat = [part for entry in metadata for part in (entry.metadata if isinstance(entry, FieldInfo) else [entry])]
    bounds = []
    for part in flat:
        if isinstance(part, Gt):
            bounds.append(f"> {part.gt}")
        elif isinstance(part, Ge):
            bounds.append(f">= {part.ge}")
        elif isinstance(part, Le):
            bounds.append(f"<= {part.le}")
        elif isinstance(part, Lt):
            bounds.append(f"< {part.lt}")
    return " " + " and ".join(bounds) if bounds else ""
