"""The machine that something was measured on."""

from __future__ import annotations

import ctypes
import os
import platform
import subprocess
from pathlib import Path

from edgekit.records import artifact
from edgekit.records.results import Device, Environment, Place

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
#: CPUs of ARM by the number of their part; Linux shows no name.
_ARM_PARTS = {
    "0xd03": "Cortex-A53",
    "0xd05": "Cortex-A55",
    "0xd07": "Cortex-A57",
    "0xd08": "Cortex-A72",
    "0xd09": "Cortex-A73",
    "0xd0a": "Cortex-A75",
    "0xd0b": "Cortex-A76",
    "0xd0c": "Neoverse-N1",
    "0xd0d": "Cortex-A77",
    "0xd40": "Neoverse-V1",
    "0xd41": "Cortex-A78",
    "0xd49": "Neoverse-N2",
    "0xd4f": "Neoverse-V2",
}
_ARM = "0x41"
#: Names flags that a wrapper hides from the runtimes: metrics are then those of a lesser CPU.
HIDDEN = "EDGEKIT_HIDDEN_ISA"
#: onnxruntime's option for int8 kernels on x86 that do not saturate.
PRECISE = "session.x64quantprecision"
VNNI = ("avx512_vnni", "avx_vnni", "amx_int8")


def describe() -> Environment:
    """Read CPU, ISA flags, memory and versions of this machine."""
    cpu, flags = _cpu()
    hidden = os.environ.get(HIDDEN, "").split()
    isa_flags = isa()
    if hidden:
        cpu += " without " + " ".join(flag for flag in _ISA if flag in flags and flag in hidden)
    pages, page = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    return Environment(
        cpu=cpu,
        isa=isa_flags,
        cores=cores(),
        memory_bytes=pages * page,
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        versions=artifact.package_versions(),
        machine_class=f"{cpu} [{' '.join(isa_flags)}]",
    )


def isa() -> tuple[str, ...]:
    """Instruction sets of this CPU that decide about kernels; none where they cannot be read."""
    _, flags = _cpu()
    hidden = os.environ.get(HIDDEN, "").split()
    return tuple(flag for flag in _ISA if flag in flags and flag not in hidden)


def saturates(environment: Environment | Place) -> bool:
    """Whether uint8 x int8 kernels on this CPU may add products in saturating 16 bits."""
    return "avx2" in environment.isa and not any(flag in environment.isa for flag in VNNI)


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def available_memory() -> int:
    """Bytes to take without driving others out; half of all memory, where that is unknown."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return int(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")) // 2


def gpu() -> Device | None:
    """The first GPU that CUDA programs see here, or None; asks the driver, makes no context."""
    device = _first_gpu()
    if device is None:
        return None
    cuda, handle = device
    name, size = ctypes.create_string_buffer(256), ctypes.c_size_t()
    named = cuda.cuDeviceGetName(name, len(name), handle) == 0
    sized = cuda.cuDeviceTotalMem_v2(ctypes.byref(size), handle) == 0
    return Device(
        "gpu",
        name.value.decode(errors="replace") if named else "unknown GPU",
        _driver(),
        size.value if sized else None,
    )


def gpu_bus() -> str | None:
    """PCI address of that GPU, as ``0000:65:00.0``."""
    device = _first_gpu()
    address = ctypes.create_string_buffer(32)
    if device is None or device[0].cuDeviceGetPCIBusId(address, len(address), device[1]):
        return None
    return address.value.decode(errors="replace")


def _first_gpu() -> tuple[ctypes.CDLL, ctypes.c_int] | None:
    """(driver, device)."""
    library = "nvcuda.dll" if platform.system() == "Windows" else "libcuda.so.1"
    try:
        cuda = ctypes.CDLL(library)
    except OSError:
        return None
    count, handle = ctypes.c_int(), ctypes.c_int()
    if cuda.cuInit(0) or cuda.cuDeviceGetCount(ctypes.byref(count)) or count.value < 1:
        return None
    return None if cuda.cuDeviceGet(ctypes.byref(handle), 0) else (cuda, handle)


def _driver() -> str | None:
    """Version of NVIDIA's driver, which all GPUs of a machine share."""
    question = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(question, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = done.stdout.split("\n")
    return lines[0].strip() or None if done.returncode == 0 else None


def _cpu() -> tuple[str, frozenset[str]]:
    info = Path("/proc/cpuinfo")
    model, flags = platform.processor() or platform.machine(), frozenset[str]()
    if info.is_file():
        lines = (line.partition(":") for line in info.read_text(errors="replace").splitlines())
        fields = {key.strip(): value.strip() for key, _, value in lines}
        model = fields.get("model name", model)
        if "model name" not in fields and fields.get("CPU implementer") == _ARM:
            model = _ARM_PARTS.get(fields.get("CPU part", ""), model)
        flags = frozenset(fields.get("flags", fields.get("Features", "")).split())
    return model, flags
