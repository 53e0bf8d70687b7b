"""Property files on the command line: as the commands read them, and as they are printed for somebody to run."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Sequence

from recbole_guider.utils.errors import GuiderError


def is_setting(argument: str) -> bool:
    """Whether an argument has the form ``--key=value``."""
    name, separator, _ = argument.partition("=")
    return bool(separator) and len(name) > 2 and name.startswith("--")


def split_files(texts: str | Sequence[str] | None) -> list[str]:
    """The files that ``--config_files`` names, given once or several times: separated by spaces, as RecBole has it; one
    in quotes may hold spaces.

    Raises:
        GuiderError: a quotation mark that begins a file's name and does not end it.
    """
    if texts is not None and not isinstance(texts, str):
        return [file for text in texts for file in split_files(text)]
    text = texts or ""
    if not re.search(r"(?:^|\s)['\"]", text):
        return text.split()  # a quotation mark within a name, or a backslash, is a part of it
    words = shlex.shlex(text, posix=True)
    words.whitespace_split, words.commenters, words.escape = True, "", ""
    try:
        return list(words)
    except ValueError as error:
        raise GuiderError(f"--config_files is {text}: a quotation mark is not closed.") from error


def run_command(program: str, file: str | os.PathLike[str], dataset: str | None = None) -> str:
    """The command that runs ``program`` with a property file, to be pasted into a shell.

    Args:
        program: such as ``recbole-guider run``.
        file: the property file.
        dataset: name of the data set, where the file does not say it.
    """
    words = [program, *([] if dataset is None else [f"--dataset={shlex.quote(dataset)}"]), files_argument(file)]
    return " ".join(words)


def files_argument(*files: str | os.PathLike[str]) -> str:
    """``--config_files=`` with these files, to be pasted into a shell."""
    # quoted twice: once for split_files, once for the shell
    names = " ".join(shlex.quote(str(file)) for file in files)
    if names != shlex.quote(names):
        names = shlex.quote(names) if re.search(r'["$`\\!]', names) else f'"{names}"'
    return f"--config_files={names}"
