"""Property files and docs/settings.md, made of the declarations of the settings.

    python -m recbole_guider.config.reference            # write them
    python -m recbole_guider.config.reference --check    # exit 1, and name them, where they differ

Run it in a checkout, whenever a field of a settings class has changed.
"""

from __future__ import annotations

import argparse
import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from pydantic.fields import FieldInfo

from recbole_guider.config.registry import MODELS, backbone_class
from recbole_guider.config.settings import OverallSettings
from recbole_guider.config.validation import parameters_of
from recbole_guider.data.settings import NoiseSettings
from recbole_guider.denoising import METHODS, DenoisingSettings
from recbole_guider.guider.settings import GuiderSettings
from recbole_guider.training.settings import MirrorGradientSettings
from recbole_guider.utils.resources import properties_dir
from recbole_guider.utils.settings import Settings, allowed_values, nested_settings

_WIDTH = 120
_MADE = "Made by `python -m recbole_guider.config.reference` of the declarations in the code; change those."


def files() -> dict[Path, str]:
    """Every file that is made of declarations, with what it has to hold."""
    folder = properties_dir()
    made = {
        folder / "overall.yaml": _overall(),
        folder / "guider.yaml": _guider(),
        folder / "denoising.yaml": _denoising(),
        folder.parent / "docs" / "settings.md": _page(),
    }
    for name in MODELS:
        made[folder / "model" / f"{name}.yaml"] = f"# {_MADE}\n" + _lines(_parameters(name))
    return made


def _parameters(model: str) -> type[Settings]:
    declared = parameters_of(backbone_class(model))
    assert declared is not None, model
    return declared


# -- property files -----------------------------------------------------------------------------------------------


def _overall() -> str:
    return (
        f"# What recbole-guider adds to RecBole's own defaults (recbole/properties/overall.yaml, which all stay).\n"
        f"# {_MADE}\n{_lines(OverallSettings)}"
        "# guider.eval_mask and guider.noise are other spellings of eval_mask and noise.\n"
        f"#\n# noise has these keys\n{_commented(NoiseSettings)}"
        f"#\n# mirror_gradient has these keys\n{_commented(MirrorGradientSettings)}"
    )


def _guider() -> str:
    return (
        f"# The guider block with its defaults; a partial block keeps the other defaults.\n# {_MADE}\n"
        f"guider:\n{_lines(GuiderSettings, 2)}"
    )


def _denoising() -> str:
    common = _commented(DenoisingSettings)
    methods = ""
    for name, method in METHODS.items():
        schema, own = method.settings_class, _own(method.settings_class)
        methods += f"\n# {_title(schema)}\n{name}:{'' if own else ' {}'}\n{_lines(schema, 2, own)}"
    return (
        "# Denoising methods to compare GUIDER with: `denoising: <name>`, or a block with its parameters,\n"
        "#     denoising: {method: t-ce, drop_rate: 0.2}\n"
        f"# This file lists the methods with their parameters and defaults; it is not read by a run.\n# {_MADE}\n"
        f"#\n# Every method also takes\n{common}{methods}"
    )


def _commented(schema: type[Settings]) -> str:
    return "".join(f"# {line}\n" for line in _lines(schema, 2).splitlines())


def _own(schema: type[Settings]) -> list[str]:
    """The parameters that a method does not share with all methods."""
    return [name for name in schema.model_fields if name not in DenoisingSettings.model_fields]


def _title(schema: type[Settings]) -> str:
    return (schema.__doc__ or "").partition("\n")[0].replace("``", "")


def _lines(schema: type[Settings], indent: int = 0, names: list[str] | None = None) -> str:
    """The fields of a class as YAML, with their values and meanings as comments."""
    fields = {name: field for name, field in schema.model_fields.items() if names is None or name in names}
    text = ""
    for name, field in fields.items():
        inner = nested_settings(field)
        if inner is not None:
            text += f"\n{' ' * indent}{name}:  # {_title(inner)}\n{_lines(inner, indent + 2)}\n"
        elif not field.is_required():
            text += _line(f"{' ' * indent}{field.alias or name}: {_value(field)}", _comment(field))
    return text


def _line(setting: str, comment: str) -> str:
    column = max(32, len(setting) + 2)
    first, *more = textwrap.wrap(comment, _WIDTH - column - 2, break_on_hyphens=False, break_long_words=False)
    rest = "".join(f"{' ' * column}#   {line}\n" for line in textwrap.wrap(
        " ".join(more), _WIDTH - column - 4, break_on_hyphens=False, break_long_words=False
    ))
    return f"{setting.ljust(column)}# {first}\n{rest}"


def _default(field: FieldInfo) -> Any:
    return field.get_default(call_default_factory=True)


def _value(field: FieldInfo) -> str:
    if _default(field) is None:
        return "~"
    return yaml.safe_dump(_default(field), default_flow_style=True, width=1000).removesuffix("\n...\n").strip()


def _comment(field: FieldInfo) -> str:
    return f"({allowed_values(field)}) {_sentence(field)}"


def _sentence(field: FieldInfo) -> str:
    extra = field.json_schema_extra
    experimental = "Experimental: " if isinstance(extra, dict) and extra.get("experimental") else ""
    text = str(field.description)
    # a sentence that begins with one of the values keeps its spelling
    begins = text[:1] if experimental or re.match(r"[\w-]+[:;,]", text) else text[:1].upper()
    return f"{experimental}{begins}{text[1:]}."


# -- the page -----------------------------------------------------------------------------------------------------


def _page() -> str:
    parts = [
        "# Settings\n",
        f"<!-- {_MADE} -->\n",
        "Every setting that recbole-guider adds to RecBole's, with its default, the values that it takes, and what it",
        "does. Nested keys are written with dots, as on the command line (`--guider.dbpr.eta=0.3`); in a property file",
        "they are blocks. A key or a value that is not among these is refused before anything is trained.\n",
        "## For all models\n",
        *_table(OverallSettings),
        "\n## guider\n",
        *_table(GuiderSettings, "guider."),
        "\n## noise\n",
        "Of any run; `guider.noise` and `guider.eval_mask` are other spellings of `noise` and `eval_mask`.\n",
        *_table(NoiseSettings, "noise."),
        "\n## mirror_gradient\n",
        *_table(MirrorGradientSettings, "mirror_gradient."),
        "\n## denoising\n",
        "Keys of every method, then those of single ones; [denoising.md](denoising.md) says what the methods do.\n",
        *_table(DenoisingSettings, "denoising."),
    ]
    for name, method in METHODS.items():
        if own := _own(method.settings_class):
            parts += [f"\n`denoising: {name}`\n", *_table(method.settings_class, "denoising.", own)]
    parts.append("\n## Models\n")
    for name in MODELS:
        parts += [f"\n### {name}\n", *_table(_parameters(name))]
    return "\n".join(parts).replace("\n\n\n", "\n\n") + "\n"


def _table(schema: type[Settings], prefix: str = "", names: list[str] | None = None) -> Iterator[str]:
    yield "| setting | default | values | what it does |"
    yield "|---|---|---|---|"
    yield from _rows(schema, prefix, names)


def _rows(schema: type[Settings], prefix: str, names: list[str] | None) -> Iterator[str]:
    for name, field in schema.model_fields.items():
        inner = nested_settings(field)
        if names is not None and name not in names:
            continue
        if inner is not None:
            yield from _rows(inner, f"{prefix}{name}.", None)
        elif not field.is_required():
            value = "null" if _value(field) == "~" else _value(field)
            cells = (f"`{prefix}{field.alias or name}`", f"`{value}`", allowed_values(field), _sentence(field))
            yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def main(arguments: list[str] | None = None) -> int:
    """Write the files, or say which of them differ; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 where a file differs")
    given = parser.parse_args(arguments)
    made = files().items()
    differing = {file: text for file, text in made if not file.is_file() or file.read_text("utf-8") != text}
    for file, text in differing.items():
        print(f"{'differs' if given.check else 'wrote'}: {file}")
        if not given.check:
            file.write_text(text, "utf-8")
    return 1 if given.check and differing else 0


if __name__ == "__main__":
    sys.exit(main())
