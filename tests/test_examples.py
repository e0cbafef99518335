"""What lies in examples/ does what it says."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from conftest import ROOT

EXAMPLE = ROOT / "examples" / "broken_calibration.py"
#: Reports that the example made.
REPORTS = ROOT / "tests" / "broken_calibration"


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("broken_calibration", EXAMPLE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_gate_stops_the_broken_calibration(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The example's gate on the reports of an earlier run of it."""
    load().judge(REPORTS / "good.json", REPORTS / "broken.json", tmp_path)
    assert "2 checks, 2 failed" in capfd.readouterr().err
    assert "failed" in (tmp_path / "gate.md").read_text()
    with pytest.raises(SystemExit, match="expected exit status 1, got 0"):
        load().judge(REPORTS / "good.json", REPORTS / "good.json", tmp_path / "same")


def test_the_tutorial_quotes_the_results() -> None:
    from edgekit.records.results import Report

    good, broken = (
        Report.load(REPORTS / f"{name}.json").artifacts[0].metrics["top1"].value
        for name in ("good", "broken")
    )
    page = ROOT / "docs" / "tutorials" / "shipped-model.md"
    text = " ".join(page.read_text(encoding="utf-8").split())
    assert f"with {broken:.2f} % top-1 on 1,000 images instead of {good:.2f}" in text


def test_its_images_are_scaled_twice(tmp_path: Path) -> None:
    import numpy as np

    with np.load(load().scale_twice(tmp_path / "new" / "set.npz")) as stored:
        assert stored["x"].dtype == np.float32
        assert stored["x"].max() == pytest.approx(1 / 255)


@pytest.mark.slow
def test_the_broken_calibration_from_the_start(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(EXAMPLE), str(tmp_path / "out")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "The gate stopped it" in done.stdout
    again = subprocess.run(
        [sys.executable, str(EXAMPLE), str(tmp_path / "out")], capture_output=True, text=True
    )
    assert "exists already" in again.stderr
