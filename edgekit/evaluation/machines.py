"""What is at hand to run deployables: this machine, and the other places that ``--on`` takes."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path

from edgekit.evaluation import conditions
from edgekit.records import environment
from edgekit.runtimes import places, qemu


@dataclass(frozen=True)
class At:
    """A place.

    Attributes:
        place: Its word, without options.
        about: What it is.
        times: Whether times and memory there are those of a device.
        missing: What is not there, and how to get it; empty if it can be used.
        facts: What is there, a line each.
    """

    place: str
    about: str
    times: bool
    missing: str
    facts: tuple[str, ...]

    @property
    def ready(self) -> bool:
        """Whether it can be used."""
        return not self.missing


def at_hand(root: Path = Path("/")) -> tuple[At, ...]:
    """All places, this machine first.

    Args:
        root: Where ``proc`` and ``sys`` are.
    """
    found = []
    for kind in places.KINDS.values():
        missing, facts = "", []
        if kind.head == "here":
            facts = this_machine(root)
        elif kind.head == qemu.WORD:
            missing, facts = qemu.missing(), qemu.facts()
        elif importlib.util.find_spec("tflite_micro") is None:
            missing = f"install it with: {kind.needs}"
        found.append(At(kind.head, kind.about, kind.times, missing, tuple(facts)))
    return tuple(found)


def this_machine(root: Path = Path("/")) -> list[str]:
    """CPU, ISA, clock and temperature of this machine, a line each.

    Args:
        root: Where ``proc`` and ``sys`` are.
    """
    machine, now = environment.describe(), conditions.look(root=root)
    heat = "cannot be read" if now.celsius is None else f"{now.celsius:.0f} °C"
    return [
        f"{machine.cpu}, {machine.cores} cores, {machine.memory_bytes / 2**30:.0f} GiB",
        f"ISA: {' '.join(machine.isa) or 'cannot be read'}",
        _clock(root),
        f"temperature: {heat}",
    ]


def _clock(root: Path) -> str:
    """The governor of the clock, and whether the user may fix the clock."""
    folder = root / "sys/devices/system/cpu/cpu0/cpufreq"
    try:
        governor = (folder / "scaling_governor").read_text(encoding="ascii").strip()
        known = (folder / "scaling_available_governors").read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return "governor: cannot be read; the clock cannot be fixed from here"
    fixing = [each for each in ("performance", "userspace") if each in known]
    if governor == "performance":
        return f"governor: {governor}; the clock is fixed"
    if not fixing:
        return f"governor: {governor}; the clock cannot be fixed"
    who = "can" if os.access(folder / "scaling_governor", os.W_OK) else "as root can"
    return f"governor: {governor}; you {who} fix the clock with the governor {fixing[0]}"
