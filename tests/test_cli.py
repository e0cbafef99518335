from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest
from conftest import Done

import edgekit as package
from edgekit.cli import VERBS


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "edgekit", *arguments], capture_output=True, text=True
    )


def test_without_a_verb_all_are_listed() -> None:
    done = run()
    assert done.returncode == 0
    assert [verb for verb in VERBS if f"\n  {verb}" not in done.stdout] == []


@pytest.mark.parametrize("verb", VERBS)
def test_help_shows_examples_both_ways(verb: str, edgekit: Callable[..., Done]) -> None:
    done = edgekit(verb, "--help")
    assert done.status == 0
    assert f"python -m edgekit.{verb}" in done.stdout
    assert run(verb, "--help").stdout == done.stdout


@pytest.mark.parametrize("verb", VERBS)
def test_unknown_options_are_one_line_and_status_two(
    verb: str, edgekit: Callable[..., Done]
) -> None:
    done = edgekit(verb, "--no-such-option")
    assert done.status == 2
    assert done.error
    assert done.stdout == ""


def test_unknown_verbs() -> None:
    done = run("deploy")
    assert done.returncode == 2
    assert "unknown verb 'deploy'" in done.stderr


def test_public_names() -> None:
    assert package.__all__ == [
        "Artifact",
        "EdgekitError",
        "Manifest",
        "Measurement",
        "Preprocessing",
        "Report",
        "Signature",
        "TensorSpec",
        "__version__",
    ]
