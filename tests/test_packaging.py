"""What an installation has: every room, the shipped model and its images."""

from __future__ import annotations

import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from conftest import ROOT


def test_every_room_is_packaged() -> None:
    described = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    rooms = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for pattern in ("*.py", "*.toml")
        for path in (ROOT / "edgekit").rglob(pattern)
    }
    assert rooms == {name for name in described["packages"] if ".shipped." not in name}


@pytest.mark.slow
def test_a_wheel_exports_the_shipped_model_elsewhere(tmp_path: Path) -> None:
    """Built, unpacked into an empty folder, run from another one."""
    built = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*built, "-w", tmp_path / "wheel", ROOT], check=True)
    (wheel,) = (tmp_path / "wheel").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    command = [sys.executable, "-m", "edgekit.export", "--target", "tflite", "--precision", "int8"]
    done = subprocess.run(
        [*command, "--correction", "none", "--out", "out"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path / "site"), "HOME": str(tmp_path), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "model.tflite").stat().st_size < 800_000
