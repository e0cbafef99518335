"""Vela, Arm's compiler for Ethos-U: what of a file the NPU computes, and what that takes.

Vela compiles the file and estimates its cycles from a model of the memories; nothing runs on an
NPU. Its memory sizes are those of the compiled file.
"""

from __future__ import annotations

import csv
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path

from edgekit.base import words
from edgekit.base.errors import (
    ExecutionError,
    InvalidModelError,
    MissingDependencyError,
    last_words,
)
from edgekit.graph import micro

#: As ``--accelerator-config`` of Vela 5 takes them.
ACCELERATORS = (
    *(f"ethos-u55-{macs}" for macs in (32, 64, 128, 256)),
    *(f"ethos-u65-{macs}" for macs in (256, 512)),
    *(f"ethos-u85-{macs}" for macs in (128, 256, 512, 1024, 2048)),
)
_OPERATOR = "ethos-u"
#: Seconds; Vela takes about one for a small network.
_LONGEST = 600


@dataclass(frozen=True)
class Estimate:
    """What Vela says of a file on one NPU.

    Attributes:
        accelerator: One of :data:`ACCELERATORS`.
        system: Vela's configuration of clock and memories, and its memory mode.
        sram: Bytes of SRAM that the compiled file takes.
        flash: Bytes of the compiled file.
        cycles: Of one run of the NPU, estimated.
        milliseconds: Those at the clock of the configuration.
        on_cpu: Operators that stay on the CPU, by kind, of the compiled file.
        share: Of the file's operators, in percent, those that the NPU computes.
        version: Of Vela.
    """

    accelerator: str
    system: str
    sram: int
    flash: int
    cycles: int
    milliseconds: float
    on_cpu: Mapping[str, int]
    share: float
    version: str

    @property
    def note(self) -> str:
        """In one sentence, what was estimated and how."""
        left = ", ".join(f"{count} {kind}" for kind, count in self.on_cpu.items())
        return (
            f"{self.accelerator}: estimated by Vela {self.version} for {self.system}, "
            f"{self.cycles:,} cycles ({self.milliseconds:.2f} ms), nothing ran on an NPU; "
            f"{f'on the CPU stay {left}' if left else 'no operator stays on the CPU'}"
        )


def estimate(model: Path, accelerator: str) -> Estimate:
    """Compile a copy of a file for an NPU.

    Args:
        model: An int8 ``.tflite`` file.
        accelerator: One of :data:`ACCELERATORS`.

    Raises:
        InvalidOptionError: If there is no such accelerator.
        InvalidModelError: If Vela refuses the file.
        ExecutionError: If it does not say what it should.
        MissingDependencyError: If ethos-u-vela is not installed.
    """
    words.one_of("npu", accelerator, ACCELERATORS)
    if util.find_spec("ethosu") is None:
        raise MissingDependencyError("ethos-u-vela", "micro")
    before = micro.operators(model.read_bytes(), str(model)).counts
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copyfile(model, folder / "model.tflite")
        command = [sys.executable, "-m", "ethosu.vela", "model.tflite", "--output-dir", "out"]
        try:
            ran = subprocess.run(
                [*command, "--accelerator-config", accelerator],
                cwd=folder,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=_LONGEST,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise ExecutionError(f"Vela took more than {_LONGEST} s for {model}") from None
        compiled = folder / "out" / "model_vela.tflite"
        if ran.returncode or not compiled.is_file():
            said = last_words(ran.stderr) or last_words(ran.stdout) or f"status {ran.returncode}"
            raise InvalidModelError(f"Vela cannot compile {model} for {accelerator}: {said}")
        after = micro.operators(compiled.read_bytes(), str(compiled)).counts
        size = compiled.stat().st_size
        row = _summary(folder / "out")
    on_cpu = {kind: count for kind, count in after.items() if kind != _OPERATOR}
    total = sum(before.values())
    kept = min(sum(on_cpu.values()), total)
    try:
        cycles, seconds = int(float(row["cycles_total"])), float(row["inference_time"])
        sram = round(1024 * float(row["sram_memory_used"]))
        system = f"{row['system_config']}, {row['memory_mode']}"
    except (KeyError, ValueError) as exc:
        raise ExecutionError(
            f"expected SRAM, cycles and time in the summary of Vela, got none ({exc}); install the "
            f"version of requirements.lock"
        ) from None
    return Estimate(
        accelerator,
        system,
        sram,
        size,
        cycles,
        1e3 * seconds,
        on_cpu,
        100 * (total - kept) / total if total else 0.0,
        metadata.version("ethos-u-vela"),
    )


def _summary(folder: Path) -> dict[str, str]:
    """The one row of the summary; its sizes are in KiB."""
    for path in folder.glob("*_summary_*.csv"):
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                return row
    return {}
