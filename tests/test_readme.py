"""What the README shows is what works."""

from __future__ import annotations

import importlib
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = sorted(
    {
        match.replace("\\\n", " ")
        for match in re.findall(r"python -m edgekit\.\w+(?:[^`\n\\]|\\\n)*", README)
    }
)


def test_the_python_example_runs_as_a_script(tmp_path: Path, artifacts: dict[str, Path]) -> None:
    """As a file: every process that it starts imports it.

    It decides the integers that ``artifacts`` has put into the cache.
    """
    assert "tflite-int8" in artifacts
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    (tmp_path / "example.py").write_text(example)
    done = subprocess.run(
        [sys.executable, "example.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "Measurement(value=99" in done.stdout
    assert (tmp_path / "build" / "api.html").stat().st_size > 10_000


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_the_options_it_shows(command: str) -> None:
    _, _, module, *arguments = shlex.split(command)
    found = importlib.import_module(module)
    if hasattr(found, "__path__"):
        found = importlib.import_module(f"{module}.__main__")
    found.parser().parse_args(arguments)


def test_the_figures_of_the_shipped_model_are_the_manifests() -> None:
    from edgekit.records.artifact import Artifact

    training = Artifact.load(ROOT / "exports" / "fashion_mnist_mobilenet_v2_035").manifest.training
    assert training is not None
    assert f"{training['test_top1']:.2f} % of the 10,000 test images right" in README
    assert f"{training['parameters']:,} parameters" in README
