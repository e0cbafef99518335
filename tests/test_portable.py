"""Export, compare and gate run without ``fcntl`` and ``resource``, which Windows does not have."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from edgekit.base.errors import InvalidOptionError
from edgekit.evaluation import shards

ROOT = Path(__file__).resolve().parents[1]
#: Python imports a module of this name first, in the processes of the runtimes too.
BLOCKED = """
import sys

sys.modules.update(fcntl=None, resource=None)
"""


@pytest.mark.slow
def test_export_compare_and_gate_without_modules_of_posix(
    small: Path, tiny: tuple[Path, Path], tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text(BLOCKED)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}

    def run(*arguments: object) -> tuple[dict[str, object], str]:
        done = subprocess.run(
            [sys.executable, "-m", "edgekit", *map(str, arguments)],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout), done.stderr

    target = ["--target", "tflite", "--precision", "float32", "--preprocessing", "unit"]
    run("export", small / "small.keras", *target, "--out", tmp_path / "mine")
    quick = ["--data", tiny[1], "--limit", "20", "--rounds", "1"]
    compared, said = run("compare", tmp_path / "mine", *quick)
    assert compared["failed"] == []
    assert "shards are not kept, this system has no locks of files" in said
    judged, _ = run("gate", "report.json", "--min", "top1=10")
    assert judged["passed"] is True


def test_a_work_folder_needs_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "fcntl", None)
    with pytest.raises(InvalidOptionError, match="--work needs locks of files"):
        shards.Work(tmp_path)
