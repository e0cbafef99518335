from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from edgekit.evaluation import conditions
from edgekit.evaluation.conditions import (
    Energy,
    GpuEnergy,
    look,
    reasons,
    summarize,
)
from edgekit.records.results import Conditions

TICKS = os.sysconf("SC_CLK_TCK")


def put(root: Path, **files: object) -> Path:
    """Write files named by a path with ``__`` for ``/``."""
    for name, content in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n")
    return root


def machine(
    root: Path,
    *,
    user: int,
    own: int,
    stolen: int = 0,
    mhz: int = 3000,
    heat: int = 50,
    slow: int = 0,
) -> Path:
    """proc and sys of a machine with two cores; times in seconds since it began."""
    cpu = "sys__devices__system__cpu__cpu"
    times = [user * TICKS, 0, 0, (1000 - user - stolen) * TICKS, 0, 0, 0, stolen * TICKS, 0, 0]
    mine = f"{os.getpid()} (a b) c) S " + " ".join(["0"] * 10) + f" {own * TICKS} 0 0 0"
    return put(
        root,
        **{
            "proc__stat": "cpu  " + " ".join(map(str, times)) + "\ncpu0 0",
            f"proc__{os.getpid()}__stat": mine,
            f"{cpu}0__cpufreq__scaling_cur_freq": 1000 * mhz,
            f"{cpu}1__cpufreq__scaling_cur_freq": 1000 * mhz,
            f"{cpu}0__thermal_throttle__core_throttle_count": slow,
            "sys__class__thermal__thermal_zone0__temp": 1000 * heat,
            "sys__class__thermal__thermal_zone1__temp": 1000 * (heat - 9),
        },
    )


def test_what_happened_is_said_with_its_reasons(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([100.0, 110.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    first = look(root=machine(tmp_path, user=100, own=5))
    last = look(root=machine(tmp_path, user=125, own=10, stolen=2, mhz=2400, heat=97, slow=3))
    found = summarize([first, last])
    # 25 busy seconds less 5 of its own in 10 seconds
    assert found.other_load == pytest.approx(2.0)
    assert found.clock_mhz == (2400, 3000)
    assert (found.celsius, found.throttled) == (97, 3)
    said = "; ".join(reasons(found))
    assert "clock went from 2,400 to 3,000 MHz" in said
    assert "other programs kept 2.0 cores busy" in said
    assert "slowed down for its temperature 3 times, up to 97 °C" in said


def test_stolen_time_is_a_share_of_all(tmp_path: Path) -> None:
    first = conditions.Reading(0, None, 0, 0, 0, 0, None, None)
    last = conditions.Reading(10, None, 5, 1, 20, 5, None, None)
    found = summarize([first, last])
    assert (found.stolen, found.other_load) == (5, 0)
    assert reasons(found) == ["the hypervisor took 5 % of the CPU time"]


def test_a_quiet_machine_has_no_reasons(tmp_path: Path) -> None:
    root = machine(tmp_path, user=100, own=5)
    assert reasons(summarize([look(root=root), look(root=root)])) == []


def test_what_cannot_be_read_is_none(tmp_path: Path) -> None:
    found = summarize([look(root=tmp_path), look(root=tmp_path)])
    assert found == Conditions()
    assert reasons(found) == []
    assert conditions.unread(found) == ["clock", "other load", "stolen time", "temperature"]


@pytest.mark.parametrize("content", ["", "cpu", "cpu a b c d e f g h", "intr 1 2 3 4 5 6 7 8 9"])
def test_files_in_another_form_are_as_if_they_were_not_there(tmp_path: Path, content: str) -> None:
    put(tmp_path, proc__stat=content, sys__class__thermal__thermal_zone0__temp="hot")
    assert look(root=tmp_path).busy is None
    assert look(root=tmp_path).celsius is None


def test_this_machine_can_be_looked_at() -> None:
    started = time.perf_counter()
    found = summarize([look(), look()])
    assert time.perf_counter() - started < 1
    assert found.other_load is None or found.other_load >= 0


def rapl(root: Path, *microjoules: int, name: str = "package") -> Path:
    for i, value in enumerate(microjoules):
        zone = f"sys__class__powercap__intel-rapl:{i}"
        put(
            root,
            **{
                f"{zone}__name": f"{name}-{i}",
                f"{zone}__energy_uj": value,
                f"{zone}__max_energy_range_uj": 1_000_000,
            },
        )
    return root


def test_energy_is_the_sum_of_the_packages_and_survives_a_counter_that_turns(
    tmp_path: Path,
) -> None:
    counters = Energy(rapl(tmp_path, 100_000, 900_000))
    inside = "sys__class__powercap__intel-rapl:0:0"  # part of package 0: not counted twice
    put(tmp_path, **{f"{inside}__name": "core", f"{inside}__energy_uj": 5})
    rapl(tmp_path, 350_000, 150_000)
    assert counters.readable
    assert counters.since() == pytest.approx(0.25 + 0.25)
    assert counters.since() == 0


def test_energy_is_absent_without_counters_or_the_right_to_read_one(tmp_path: Path) -> None:
    assert Energy(tmp_path).since() is None
    assert Energy(rapl(tmp_path / "psys", 5, name="psys")).since() is None
    hidden = rapl(tmp_path / "hidden", 5, 6)
    (hidden / "sys/class/powercap/intel-rapl:1/energy_uj").unlink()
    assert not Energy(hidden).readable
    gone = rapl(tmp_path / "gone", 5)
    counters = Energy(gone)
    (gone / "sys/class/powercap/intel-rapl:0/energy_uj").write_text("?")
    assert counters.since() is None


#: NVML as far as it is used: a GPU at one address, a counter that grows by 250 mJ a call.
_NVML = r"""
#include <string.h>
static unsigned long long count = 1000;
int nvmlInit_v2(void) { return 0; }
int nvmlDeviceGetHandleByPciBusId_v2(const char *bus, void **device) {
    *device = (void *)7;
    return strcmp(bus, "0000:65:00.0") ? 6 : 0;
}
int nvmlDeviceGetTotalEnergyConsumption(void *device, unsigned long long *millijoules) {
    *millijoules = (count += 250);
    return device == (void *)7 ? 0 : 3;
}
"""


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler to build a driver's stand-in")
def test_energy_of_a_gpu_is_the_drivers(tmp_path: Path) -> None:
    source, library = tmp_path / "nvml.c", str(tmp_path / "nvml.so")
    source.write_text(_NVML)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source], check=True)
    meter = GpuEnergy("0000:65:00.0", library)
    assert meter.readable
    assert meter.since() == pytest.approx(0.25)
    other = GpuEnergy("0000:01:00.0", library)
    assert not other.readable and other.since() is None


def test_energy_of_a_gpu_is_absent_without_one_or_its_driver(tmp_path: Path) -> None:
    assert not GpuEnergy(None).readable
    assert GpuEnergy("0000:65:00.0", str(tmp_path / "missing.so")).since() is None
