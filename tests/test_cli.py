"""The command line itself; what each command does is tested with the code that it calls."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from recbole_guider.cli.main import COMMANDS, main


@pytest.mark.parametrize("arguments", [["--help"], *([name, "--help"] for name in COMMANDS)])
def test_help_needs_neither_torch_nor_recbole(arguments: list[str]) -> None:
    code = f"""
import sys
from recbole_guider.cli.main import main
try:
    main({arguments})
except SystemExit as ended:
    assert ended.code == 0
assert not {{"torch", "recbole", "ray", "pandas", "sklearn"}} & set(sys.modules), sorted(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"usage: recbole-guider {arguments[0] if len(arguments) > 1 else ''}")


def test_a_command_hands_on_the_settings_and_not_its_own_name(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from recbole_guider import quick_start
    from recbole_guider.config.guider_config import GuiderConfig

    made: list[Any] = []

    def run(model: str, dataset: str, files: list[str], command_line: list[str], processes: object) -> None:
        made.append((GuiderConfig(model, dataset, files, command_line=command_line), command_line))

    monkeypatch.setattr(quick_start, "run_from_command_line", run)
    assert main(["run", "--model", "BPR", "-d", "ml-100k", "--epochs=3", "--import", "json", "--nproc=1"]) == 0
    (config, command_line), = made
    assert command_line == ["--import=['json']", "--epochs=3"]
    assert (config["epochs"], config["import"]) == (3, ["json"])
    assert "will not be used" not in caplog.text
