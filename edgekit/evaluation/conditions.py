"""State of the machine while it measures: clock, load of other programs, temperature, energy.

Everything is read from the kernel's files, and a GPU's energy from NVIDIA's driver. A value that
cannot be read is None. Nothing is estimated.
"""

from __future__ import annotations

import ctypes
import os
import platform
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from edgekit.records.results import Conditions

#: From here on a reading is a reason why metrics may be unstable.
_CLOCK, _LOAD, _STEAL = 0.1, 0.25, 1.0


@dataclass(frozen=True)
class Reading:
    """One look at the machine; None where it cannot be read.

    Attributes:
        seconds: When, on a clock that only grows.
        clock_mhz: Mean over the cores.
        busy: Seconds of all cores together that were not idle, stolen ones left out.
        stolen: Seconds in which a hypervisor ran something else.
        total: Seconds of all cores together.
        own: Seconds that the measuring processes used.
        celsius: Temperature of the hottest zone.
        throttled: How often a core was slowed down for its temperature.
    """

    seconds: float
    clock_mhz: float | None
    busy: float | None
    stolen: float | None
    total: float | None
    own: float | None
    celsius: float | None
    throttled: int | None


def look(processes: Iterable[int] = (), *, root: Path = Path("/")) -> Reading:
    """Read the machine's state.

    Args:
        processes: Numbers of the processes whose time is no other load, beside this one.
        root: Where ``proc`` and ``sys`` are.
    """
    cpu = root / "sys/devices/system/cpu"
    clocks = _numbers(cpu.glob("cpu[0-9]*/cpufreq/scaling_cur_freq"))
    zones = _numbers((root / "sys/class/thermal").glob("thermal_zone*/temp"))
    slowed = _numbers(cpu.glob("cpu[0-9]*/thermal_throttle/core_throttle_count"))
    busy, stolen, total = _times(root)
    return Reading(
        seconds=time.monotonic(),
        clock_mhz=sum(clocks) / len(clocks) / 1000 if clocks else None,
        busy=busy,
        stolen=stolen,
        total=total,
        own=_own({os.getpid(), *processes}, root),
        celsius=max(zones) / 1000 if zones else None,
        throttled=sum(slowed) if slowed else None,
    )


def summarize(readings: Sequence[Reading]) -> Conditions:
    """What happened from the first reading to the last.

    Args:
        readings: In order of time, two or more.
    """
    first, last = readings[0], readings[-1]
    clocks = [reading.clock_mhz for reading in readings if reading.clock_mhz is not None]
    heat = [reading.celsius for reading in readings if reading.celsius is not None]
    elapsed = last.seconds - first.seconds
    busy, own = _between(first.busy, last.busy), _between(first.own, last.own)
    stolen, total = _between(first.stolen, last.stolen), _between(first.total, last.total)
    throttled = _between(first.throttled, last.throttled)
    return Conditions(
        clock_mhz=(min(clocks), max(clocks)) if clocks else None,
        other_load=None
        if busy is None or own is None or not elapsed
        # both count in ticks of 10 ms, each for itself
        else max(0.0, (busy - own) / elapsed),
        stolen=100 * stolen / total if stolen is not None and total else None,
        celsius=max(heat) if heat else None,
        throttled=None if throttled is None else int(throttled),
    )


def reasons(conditions: Conditions) -> list[str]:
    """Why a metric may be unstable, one clause each; empty if nothing was seen."""
    clauses = []
    if conditions.clock_mhz is not None:
        low, high = conditions.clock_mhz
        if low < (1 - _CLOCK) * high:
            clauses.append(f"the CPU's clock went from {low:,.0f} to {high:,.0f} MHz")
    if conditions.other_load is not None and conditions.other_load > _LOAD:
        clauses.append(f"other programs kept {conditions.other_load:.1f} cores busy")
    if conditions.stolen is not None and conditions.stolen > _STEAL:
        clauses.append(f"the hypervisor took {conditions.stolen:.0f} % of the CPU time")
    if conditions.throttled:
        where = "" if conditions.celsius is None else f", up to {conditions.celsius:.0f} °C"
        clauses.append(
            f"the CPU was slowed down for its temperature {conditions.throttled} times{where}"
        )
    return clauses


def unread(conditions: Conditions) -> list[str]:
    """What this machine does not let one read, by name."""
    fields = {
        "clock": conditions.clock_mhz,
        "other load": conditions.other_load,
        "stolen time": conditions.stolen,
        "temperature": conditions.celsius,
    }
    return [name for name, value in fields.items() if value is None]


class Meter(Protocol):
    """Counts what a device takes."""

    @property
    def readable(self) -> bool:
        """Whether there is anything to be read."""

    def since(self) -> float | None:
        """Joules since the last call, or since this was made; None where they cannot be read."""


class Energy(Meter):
    """The CPU packages' energy counters (Intel and AMD RAPL), where they can be read.

    The kernel shows them at ``/sys/class/powercap``, by default to root only. They count all that
    the packages take, idle power and other programs too.
    """

    def __init__(self, root: Path = Path("/")) -> None:
        zones = sorted((root / "sys/class/powercap").glob("intel-rapl:*"))
        self._packages = [zone for zone in zones if _text(zone / "name").startswith("package")]
        self._last = self._read()

    @property
    def readable(self) -> bool:
        """Whether there is a counter for every package."""
        return self._last is not None

    def since(self) -> float | None:
        """Joules since the last call, or since this was made; None where they cannot be read.

        A counter that began again at 0 is taken to have done so once.
        """
        before, now = self._last, self._read()
        self._last = now
        if before is None or now is None:
            return None
        microjoules = 0
        for zone, start, end in zip(self._packages, before, now, strict=True):
            if end < start:
                turn = _number(zone / "max_energy_range_uj")
                if turn is None:
                    return None
                end += turn
            microjoules += end - start
        return microjoules / 1e6

    def _read(self) -> list[int] | None:
        counters = [_number(zone / "energy_uj") for zone in self._packages]
        values = [value for value in counters if value is not None]
        return values if values and len(values) == len(counters) else None


class GpuEnergy(Meter):
    """An NVIDIA GPU's energy counter (NVML; Volta and later), idle power and other programs too.

    Args:
        bus: PCI address of the GPU, as ``0000:65:00.0``; None if there is none.
        library: The driver's library; default where it is installed.
    """

    def __init__(self, bus: str | None, library: str | None = None) -> None:
        names = {"Windows": "nvml.dll"}
        self._handle = ctypes.c_void_p()
        self._nvml = None
        if bus is not None:
            try:
                self._nvml = ctypes.CDLL(
                    library or names.get(platform.system(), "libnvidia-ml.so.1")
                )
            except OSError:
                pass
        if self._nvml is not None and (
            self._nvml.nvmlInit_v2()
            or self._nvml.nvmlDeviceGetHandleByPciBusId_v2(
                (bus or "").encode(), ctypes.byref(self._handle)
            )
        ):
            self._nvml = None
        self._last = self._read()

    @property
    def readable(self) -> bool:
        """Whether the driver knows the GPU and its counter."""
        return self._last is not None

    def since(self) -> float | None:
        """Joules since the last call, or since this was made; None where they cannot be read."""
        before, self._last = self._last, self._read()
        change = _between(before, self._last)
        return None if change is None else change / 1e3

    def _read(self) -> int | None:
        millijoules = ctypes.c_ulonglong()
        if self._nvml is None or self._nvml.nvmlDeviceGetTotalEnergyConsumption(
            self._handle, ctypes.byref(millijoules)
        ):
            return None
        return millijoules.value


def _between(first: float | None, last: float | None) -> float | None:
    return None if first is None or last is None else last - first


def _times(root: Path) -> tuple[float | None, float | None, float | None]:
    """(busy, stolen, total) seconds of all cores since the machine began (man proc_stat)."""
    line = _text(root / "proc/stat").partition("\n")[0].split()
    if len(line) < 9 or line[0] != "cpu" or not all(word.isdigit() for word in line[1:9]):
        return None, None, None
    user, nice, system, idle, waiting, irq, softirq, stolen = (
        int(word) / _ticks() for word in line[1:9]
    )
    busy = user + nice + system + irq + softirq
    return busy, stolen, busy + stolen + idle + waiting


def _own(processes: Iterable[int], root: Path) -> float | None:
    """Seconds of CPU time that these processes have used."""
    seconds = 0.0
    for number in processes:
        # the name, in brackets, may hold anything
        words = _text(root / f"proc/{number}/stat").rpartition(")")[2].split()
        if len(words) < 13 or not (words[11].isdigit() and words[12].isdigit()):
            return None
        seconds += (int(words[11]) + int(words[12])) / _ticks()
    return seconds


def _ticks() -> int:
    return os.sysconf("SC_CLK_TCK")


def _numbers(files: Iterable[Path]) -> list[int]:
    return [value for value in map(_number, files) if value is not None]


def _number(file: Path) -> int | None:
    try:
        return int(_text(file))
    except ValueError:
        return None


def _text(file: Path) -> str:
    """Content, or nothing where there is no such file or it may not be read."""
    try:
        return file.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""
