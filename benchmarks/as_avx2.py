"""Run a command as on a CPU with AVX2 but without AVX-512 and VNNI.

    python benchmarks/as_avx2.py python -m edgekit.compare ARTIFACT… --out report.json
    python benchmarks/as_avx2.py --only onnxruntime python -m edgekit.benchmark ARTIFACT

onnxruntime, LiteRT, TensorFlow and OpenVINO ask the CPU (instruction CPUID) which kernels to take,
and offer no switch, or one for a part of their kernels (ONEDNN_MAX_CPU_ISA). Here their libraries
are copied with each CPUID replaced by an invalid instruction of the same length, and a preloaded
handler answers in its place, with the flags of AVX-512, VNNI and AMX taken out. So the kernels of
an AVX2 CPU really run, with this CPU's clock and caches: predictions are those of such a CPU, and
latency ratios are close to it. Linux on x86-64, with cc and objdump.

The copies lie in build/as-avx2, share what is not changed with the originals, and are made again
when a library changes (two minutes for TensorFlow's). With --only, the others are neither copied
nor found: the command cannot import them. EDGEKIT_HIDDEN_ISA names the hidden flags, so
that every result made this way says so. `make test-avx2` runs the tests so.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

HIDDEN = (
    "avx512f avx512bw avx512_vnni avx512_bf16 avx512_fp16 avx_vnni amx_int8 amx_bf16 amx_tile"
).split()
PACKAGES = ("onnxruntime", "ai_edge_litert", "tensorflow", "openvino")
CPUID, INVALID = b"\x0f\xa2", b"\x06\x06"  # push ES, which 64-bit code does not have
FOLDER = Path(__file__).resolve().parents[1] / "build" / "as-avx2"

HANDLER = r"""
#define _GNU_SOURCE
#include <cpuid.h>
#include <dlfcn.h>
#include <signal.h>
#include <ucontext.h>

typedef int (*sigaction_t)(int, const struct sigaction *, struct sigaction *);
static sigaction_t kernel;
static struct sigaction before; /* what the program wants to be done with SIGILL */

static void answer(int number, siginfo_t *about, void *context) {
    greg_t *at = ((ucontext_t *)context)->uc_mcontext.gregs;
    const unsigned char *code = (const unsigned char *)at[REG_RIP];
    if (code[0] != 0x06 || code[1] != 0x06) { kernel(SIGILL, &before, 0); return; }
    unsigned leaf = at[REG_RAX], sub = at[REG_RCX], a, b, c, d;
    __cpuid_count(leaf, sub, a, b, c, d);
    if (leaf == 7 && sub == 0) {
        /* F DQ IFMA PF ER CD BW VL */
        b &= ~((1u << 16) | (1u << 17) | (1u << 21) | (1u << 26) | (1u << 27) | (1u << 28)
               | (1u << 30) | (1u << 31));
        /* VBMI VBMI2 VNNI BITALG VPOPCNTDQ */
        c &= ~((1u << 1) | (1u << 6) | (1u << 11) | (1u << 12) | (1u << 14));
        /* 4VNNIW 4FMAPS VP2INTERSECT AMX-BF16 FP16 AMX-TILE AMX-INT8 */
        d &= ~((1u << 2) | (1u << 3) | (1u << 8) | (1u << 22) | (1u << 23) | (1u << 24)
               | (1u << 25));
    } else if (leaf == 7 && sub == 1) {
        a &= ~((1u << 4) | (1u << 5) | (1u << 21)); /* AVX-VNNI AVX512-BF16 AMX-FP16 */
        d &= ~((1u << 4) | (1u << 5) | (1u << 8) | (1u << 10) | (1u << 19)); /* INT8 … AVX10 */
    }
    at[REG_RAX] = a; at[REG_RBX] = b; at[REG_RCX] = c; at[REG_RDX] = d;
    at[REG_RIP] += 2;
}

__attribute__((constructor)) static void install(void) {
    struct sigaction act = {0};
    act.sa_sigaction = answer;
    act.sa_flags = SA_SIGINFO | SA_NODEFER;
    kernel = (sigaction_t)dlsym(RTLD_NEXT, "sigaction");
    kernel(SIGILL, &act, &before);
}

/* Python's faulthandler, which pytest switches on, must not take the handler away. */
int sigaction(int number, const struct sigaction *act, struct sigaction *old) {
    if (!kernel) install();
    if (number != SIGILL) return kernel(number, act, old);
    if (old) *old = before;
    if (act) before = *act;
    return 0;
}
"""


def prepare(only: str | None = None) -> list[Path]:
    """Make or refresh the copies; returns the folders for PYTHONPATH, one a package.

    Args:
        only: The one package that is copied; the others are in the way of an import.
    """
    FOLDER.mkdir(parents=True, exist_ok=True)
    with (FOLDER / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # others may start at the same time
        _make_handler()
        folders = [
            _copied(package) if only in (None, package) else _left_out(package)
            for package in PACKAGES
        ]
    return [folder for folder in folders if folder is not None]


def _left_out(package: str) -> Path:
    """A folder with a module that says why there is no such package."""
    folder = FOLDER / "left-out" / package
    folder.mkdir(parents=True, exist_ok=True)
    said = f"{package} has no copy for AVX2 here; leave out --only"
    (folder / f"{package}.py").write_text(f"raise ImportError({said!r})\n")
    return folder


def _make_handler() -> None:
    source, library = FOLDER / "answer.c", FOLDER / "answer.so"
    if library.is_file() and source.is_file() and source.read_text() == HANDLER:
        return
    part = FOLDER / "answer.part.so"  # a running process keeps the library that it has
    command = ["cc", "-O1", "-shared", "-fPIC", "-o", str(part), "-x", "c", "-", "-ldl"]
    subprocess.run(command, input=HANDLER.encode(), check=True)
    part.replace(library)
    source.write_text(HANDLER)


def _copied(package: str) -> Path | None:
    """The folder with the copy of a package; None of one that is not installed."""
    try:
        origin = Path(str(metadata.distribution(_name(package)).locate_file(package)))
    except metadata.PackageNotFoundError:
        return None
    folder = FOLDER / package
    stamp = folder / "stamp"
    libraries = sorted(
        p for p in origin.rglob("*.so*") if not p.is_symlink() and "cuda" not in p.name
    )
    files = [(str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in libraries]
    state = hashlib.sha256(repr((INVALID, files)).encode()).hexdigest()
    if stamp.is_file() and stamp.read_text() == state:
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(
        origin,
        folder / package,
        symlinks=True,
        ignore=shutil.ignore_patterns("__pycache__", "*_cuda.so", "include"),
        copy_function=_same,
    )
    for library in libraries:
        count = patch(folder / package / library.relative_to(origin))
        if count:
            print(f"{package}/{library.name}: {count} CPUID instructions", file=sys.stderr)
    stamp.write_text(state)
    return folder


def patch(library: Path) -> int:
    """Replace each CPUID of a library; returns their number. The file is a new one if there are."""
    content = bytearray(library.read_bytes())
    if CPUID not in content:
        return 0
    sections = subprocess.run(
        ["objdump", "-h", "-w", library], capture_output=True, text=True, check=True
    ).stdout
    offsets = {
        name: int(file, 16) - int(address, 16)
        for name, address, file in re.findall(
            r"^\s*\d+ (\S+)\s+[0-9a-f]+\s+([0-9a-f]+)\s+[0-9a-f]+\s+([0-9a-f]+)", sections, re.M
        )
    }
    listing = subprocess.Popen(
        ["objdump", "-d", "-w", "--no-show-raw-insn", library], stdout=subprocess.PIPE
    )
    lines = subprocess.run(
        ["grep", "-P", r"^Disassembly of section |\tcpuid\s*$"],
        stdin=listing.stdout,
        capture_output=True,
        text=True,
    ).stdout.splitlines()
    if listing.wait():
        return 0
    section, places = "", []
    for line in lines:
        if line.startswith("Disassembly of section "):
            section = line.split()[-1].rstrip(":")
        else:
            places.append(int(line.split(":")[0], 16) + offsets[section])
    for place in places:
        assert content[place : place + 2] == CPUID, hex(place)
        content[place : place + 2] = INVALID
    if places:
        library.unlink()  # or the original would change with it
        library.write_bytes(content)
    return len(places)


def _same(origin: str, copy: str) -> None:
    """The same file in another place; a copy where the file system is another one."""
    try:
        os.link(origin, copy)
    except OSError:
        shutil.copy2(origin, copy)


def _name(package: str) -> str:
    names = metadata.packages_distributions().get(package)
    if not names:
        raise metadata.PackageNotFoundError(package)
    return names[0]


def main() -> None:
    """Replace this process by the command."""
    command = sys.argv[1:]
    if not command or command[0] in ("-h", "--help"):
        print(__doc__)
        raise SystemExit(0 if command else 2)
    only = None
    if command[0] == "--only":
        only, command = command[1] if len(command) > 1 else "", command[2:]
        if only not in PACKAGES or not command:
            print(f"expected --only PACKAGE COMMAND…, one of {PACKAGES}", file=sys.stderr)
            raise SystemExit(2)
    folders = [str(folder) for folder in prepare(only)]
    paths = [*folders, *filter(None, [os.environ.get("PYTHONPATH")])]
    settings = {
        "LD_PRELOAD": str(FOLDER / "answer.so"),
        "PYTHONPATH": os.pathsep.join(paths),
        "EDGEKIT_HIDDEN_ISA": " ".join(HIDDEN),
    }
    if command[0] == "python":
        command[0] = sys.executable
    os.execvpe(command[0], command, os.environ | settings)


if __name__ == "__main__":
    main()
