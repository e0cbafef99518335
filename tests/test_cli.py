from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Done

import edgekit as package
from edgekit.base.cli import VERBS


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


ACTIONS = (
    "data describe",
    "data check",
    "models import-slim",
    "sign keygen",
    "sign sign",
    "devices install",
)


@pytest.mark.parametrize("verb", [*VERBS, *ACTIONS, "sign verify"])
def test_help_fits_a_terminal_and_says_something_of_every_option(verb: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "edgekit", *verb.split(), "--help"],
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "80"},
    )
    lines = done.stdout.splitlines()
    assert [line for line in lines if len(line) > 80] == []
    for number, line in enumerate(lines[:-1]):
        if line.startswith("  -") and "  " not in line.strip():  # its text is in the next line
            assert lines[number + 1].startswith(" " * 12), line
    assert lines[lines.index("errors:") + 1].startswith("  --traceback")


@pytest.mark.parametrize("verb", VERBS)
def test_unknown_options_are_one_line_and_status_two(
    verb: str, edgekit: Callable[..., Done]
) -> None:
    done = edgekit(verb, "--no-such-option")
    assert done.status == 2
    assert done.error
    assert done.stdout == ""


def test_unknown_verbs() -> None:
    done = run("deplo")
    assert done.returncode == 2
    assert "unknown verb 'deplo'" in done.stderr


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


@pytest.mark.parametrize("verb", ["gate", "report"])
def test_readers_import_no_framework(verb: str) -> None:
    """What they cost to start is printed; what is imported is what decides it."""
    code = (
        f"import sys, edgekit.{verb} as verb; status = verb.main(['--help']); "
        "print([m for m in ('tensorflow', 'tf_keras', 'onnx', 'onnxruntime', 'ai_edge_litert', "
        "'scipy', 'matplotlib', 'jinja2') if m in sys.modules])"
    )
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    print(f"{verb} --help: {time.perf_counter() - started:.2f} s")
    assert done.stdout.splitlines()[-1] == "[]"


def test_ctrl_c_in_models_is_one_line() -> None:
    running = subprocess.Popen(
        [sys.executable, "-m", "edgekit.models"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    loaded = Path(f"/proc/{running.pid}/maps")
    until = time.monotonic() + 60
    while "tensorflow" not in loaded.read_text() and time.monotonic() < until:
        time.sleep(0.1)
    time.sleep(1)
    for _ in range(20):  # one that falls into a callback of TensorFlow's is lost; press again
        if running.poll() is not None:
            break
        running.send_signal(signal.SIGINT)
        time.sleep(1)
    stdout, stderr = running.communicate(timeout=60)
    assert running.returncode == 130, stderr
    assert stdout == ""
    assert "Traceback" not in stderr
