"""The machine a figure was measured on."""

from __future__ import annotations

import os
import platform
from pathlib import Path

from edgekit import artifact
from edgekit.results import Environment, Place

#: Instruction sets that decide which kernels a runtime picks.
_ISA = (
    "sse4_1",
    "avx",
    "avx2",
    "fma",
    "f16c",
    "avx_vnni",
    "avx512f",
    "avx512bw",
    "avx512_vnni",
    "avx512_bf16",
    "amx_int8",
    "asimd",
    "asimddp",
    "asimdhp",
    "i8mm",
    "sve",
)
#: Names flags that a wrapper hides from the runtimes: figures are then those of a lesser CPU.
HIDDEN = "EDGEKIT_HIDDEN_ISA"
VNNI = ("avx512_vnni", "avx_vnni", "amx_int8")


def describe() -> Environment:
    """Read CPU, ISA flags, memory and versions of this machine."""
    cpu, flags = _cpu()
    hidden = os.environ.get(HIDDEN, "").split()
    isa = tuple(flag for flag in _ISA if flag in flags and flag not in hidden)
    if hidden:
        cpu += " without " + " ".join(flag for flag in _ISA if flag in flags and flag in hidden)
    pages, page = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    return Environment(
        cpu=cpu,
        isa=isa,
        cores=cores(),
        memory_bytes=pages * page,
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        versions=artifact.package_versions(),
        machine_class=f"{cpu} [{' '.join(isa)}]",
    )


def saturates(environment: Environment | Place) -> bool:
    """Whether uint8 x int8 kernels on this CPU may add products in saturating 16 bits."""
    return "avx2" in environment.isa and not any(flag in environment.isa for flag in VNNI)


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cpu() -> tuple[str, frozenset[str]]:
    info = Path("/proc/cpuinfo")
    model, flags = platform.processor() or platform.machine(), frozenset[str]()
    if info.is_file():
        for line in info.read_text(errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                model = value.strip()
            elif key.strip() in ("flags", "Features"):
                flags = frozenset(value.split())
    return model, flags
