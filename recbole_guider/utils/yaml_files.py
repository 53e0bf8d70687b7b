"""Reading and writing YAML files of settings."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from recbole_guider.utils.errors import GuiderError
from recbole_guider.utils.plain import to_plain


class YamlLoader(yaml.SafeLoader):
    """A safe YAML loader that reads ``1e-3`` as a number, as RecBole does."""


YamlLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^[-+]?(?:(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?|[0-9][0-9_]*[eE][-+]?[0-9]+)$"
    ),
    list("-+0123456789."),
)


class _FileLoader(YamlLoader):
    """Refuses a key that a mapping has twice, of which YAML's own loaders keep the last without a word."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        # here and not where the mapping is made: by then, what it merges in with << is among its keys
        node = super().compose_mapping_node(anchor)
        lines: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                continue
            same = (key.tag, key.value)
            if same in lines:
                raise yaml.composer.ComposerError(
                    None, None, f"the key {key.value!r} is here a second time, after line {lines[same]}", key.start_mark
                )
            lines[same] = key.start_mark.line + 1
        return node


class _Dumper(yaml.SafeDumper):
    """Writes what :class:`YamlLoader` reads back: a text that looks like a number to it is quoted."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_Dumper.yaml_implicit_resolvers = {key: list(rules) for key, rules in YamlLoader.yaml_implicit_resolvers.items()}


def read_yaml(file: str | os.PathLike[str], *, unique_keys: bool = True) -> dict[str, Any]:
    """The mapping in a YAML file, read safely; an empty file is an empty mapping.

    Args:
        file: the file.
        unique_keys: refuse a key that is there twice in one mapping; else the last wins, as in RecBole.

    Raises:
        GuiderError: the file is missing, is no text or no YAML (the message has the line), or holds no
            mapping.
    """
    try:
        loader = _FileLoader if unique_keys else YamlLoader
        content = yaml.load(Path(file).read_text(encoding="utf-8"), Loader=loader)
    except FileNotFoundError:
        raise GuiderError(f"configuration file {file} does not exist.") from None
    except OSError as error:
        raise GuiderError(f"configuration file {file} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise GuiderError(f"configuration file {file} is not UTF-8 text.") from error
    except yaml.YAMLError as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        line = f", line {mark.line + 1}" if mark is not None else ""
        raise GuiderError(
            f"configuration file {file}{line} is not valid YAML: {problem or error}."
        ) from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise GuiderError(
            f"configuration file {file} holds a {type(content).__name__}: it must be `key: value` lines."
        )
    return content


def write_yaml(content: Mapping[str, Any], file: str | os.PathLike[str], header: str = "") -> None:
    """Write a property file that :func:`read_yaml` reads back to the same values.

    Args:
        content: plain data; tuples become lists.
        file: where to.
        header: comment lines for the top, without their ``#``.
    """
    comment = "".join(f"# {line}".rstrip() + "\n" for line in header.splitlines())
    text = yaml.dump(to_plain(content), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
    Path(file).write_text(comment + text, encoding="utf-8")
