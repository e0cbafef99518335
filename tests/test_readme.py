"""What the README and the pages of docs/ show is what works."""

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
SHIPPED = (ROOT / "docs" / "tutorials" / "shipped-model.md").read_text(encoding="utf-8")
BENCHMARKS = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
#: All that a reader sees.
TEXTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def _commands(text: str) -> set[str]:
    """The commands of blocks, and of spans of code, which may go on in the next line."""
    blocks = text.split("```")
    blocks[::2] = [
        re.sub(r"`[^`]+`", lambda span: span[0].replace("\n", " "), block) for block in blocks[::2]
    ]
    found = re.findall(r"python -m edgekit\.(?!VERB)\w+(?:[^`\n\\]|\\\n)*", "```".join(blocks))
    return {match.replace("\\\n", " ") for match in found}


COMMANDS = sorted(set().union(*(_commands(path.read_text("utf-8")) for path in TEXTS)))


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 150


@pytest.mark.slow
def test_the_python_example_runs_as_a_script(tmp_path: Path, artifacts: dict[str, Path]) -> None:
    """As a file: every process that it starts imports it.

    It decides the integers that ``artifacts`` has put into the cache.
    """
    assert "tflite-int8" in artifacts
    ((example, shown),) = _examples(README)
    assert _examples(SHIPPED) == [(example, shown)]
    (tmp_path / "example.py").write_text(example)
    done = subprocess.run(
        [sys.executable, "example.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *_path()])},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "Measurement(value=99" in done.stdout
    assert _without_numbers(done.stdout) == _without_numbers(shown)
    assert (tmp_path / "build" / "api.html").stat().st_size > 10_000


def _path() -> list[str]:
    return list(filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)))


def _examples(text: str) -> list[tuple[str, str]]:
    """Each Python script, and what it prints."""
    return re.findall(r"```python\n(.*?)```\n\n(?:It prints:\n\n)?```\n(.*?)```", text, re.DOTALL)


def _without_numbers(text: str) -> str:
    return re.sub(r"[\d.]+", "#", text)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_the_options_it_shows(command: str) -> None:
    _, _, module, *arguments = shlex.split(command)
    found = importlib.import_module(module)
    if hasattr(found, "__path__"):
        found = importlib.import_module(f"{module}.__main__")
    found.parser().parse_args(arguments)


@pytest.mark.parametrize("text", [README, SHIPPED], ids=["README", "shipped-model"])
def test_the_figures_of_the_shipped_model_are_the_manifests(text: str) -> None:
    from edgekit.records.artifact import Artifact

    training = Artifact.load(ROOT / "exports" / "fashion_mnist_mobilenet_v2_035").manifest.training
    assert training is not None
    words = " ".join(text.split())
    assert f"{training['test_top1']:.2f} % of the 10,000 test images right" in words
    assert f"{training['parameters']:,} parameters" in words


def test_the_readme_shows_the_results_of_the_pages() -> None:
    (table,) = re.findall(r"```\n(artifact .*?)```", README, re.DOTALL)
    assert table in SHIPPED
    assert "(0 of 415,844 stored numbers differ)" in SHIPPED
    assert "Of 415,844 numbers" in README
    (agree,) = re.findall(r"│ XNNPACK : onnxruntime +│ +([0-9.]+) │", SHIPPED)
    assert f"same class for {agree} % of the images" in README
    rows = re.findall(r"^\| ([a-z, 0-9]+) \| ([\d.*]+) \| (.*) \| (.*) \|$", README, re.MULTILINE)
    assert len(rows) == 4
    for _, *cells in rows:
        assert " / ".join(cells).replace("**", "") in BENCHMARKS.replace("**", "")
    layers = (ROOT / "docs" / "how-to" / "find-the-layer.md").read_text(encoding="utf-8")
    (blamed,) = re.findall(r"```\n(to blame: .*?)```", README, re.DOTALL)
    assert blamed in layers
