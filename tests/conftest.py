"""Fixtures shared by all tests: one small trained-enough model, made once a session."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]


class Done:
    """A finished command: exit status, both streams, the closing JSON document."""

    def __init__(self, status: int, stdout: str, stderr: str) -> None:
        self.status = status
        self.stdout = stdout
        self.stderr = stderr

    @property
    def document(self) -> Any:
        return json.loads(self.stdout.strip().splitlines()[-1])

    @property
    def error(self) -> str:
        """The one line of a failed command."""
        lines = [line for line in self.stderr.splitlines() if "edgekit" in line and "error" in line]
        assert len(lines) == 1, self.stderr
        assert "Traceback" not in self.stderr, self.stderr
        return lines[0]


@pytest.fixture(scope="session")
def edgekit() -> Callable[..., Done]:
    """Run ``python -m edgekit.VERB ARGUMENTS`` in a fresh process, from the repository."""

    def call(verb: str, *arguments: object, timeout: float = 300, **env: str) -> Done:
        import os

        done = subprocess.run(
            [sys.executable, "-m", f"edgekit.{verb}", *map(str, arguments)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=timeout,
            env={**os.environ, **env},
        )
        return Done(done.returncode, done.stdout, done.stderr)

    return call


@pytest.fixture(scope="session")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The shipped model as TFLite and ONNX in float32 and int8, by ``TARGET-PRECISION``."""
    from edgekit.export import export

    folder = tmp_path_factory.mktemp("artifacts")
    made = {}
    for target in ("tflite", "onnx"):
        for precision in ("float32", "int8"):
            name = f"{target}-{precision}"
            made[name] = export(target=target, precision=precision, out=folder / name).path
    return made
