"""``qemu:arm64``: the ARM builds of LiteRT and onnxruntime under qemu's user mode, without a board.

ROOT in the user's cache holds an ARM Python and the wheels of numpy and both runtimes. They come
from packages of Debian and wheels that ``apt-get`` and ``pip`` fetch, or that the user names. Every
one has the sha256 that ``qemu_arm64.json`` says. Their code runs under qemu only.

The runtimes choose kernels by what the CPU says of itself and by ``/proc/cpuinfo``, so that each
CPU has a folder with an own one, beside links to ROOT's.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import lzma
import os
import posixpath
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, ClassVar

from edgekit.base import outputs, schema
from edgekit.base.errors import (
    ArtifactError,
    EdgekitError,
    ExecutionError,
    InvalidDataError,
    InvalidOptionError,
    last_words,
)
from edgekit.base.progress import SILENT, Progress
from edgekit.runtimes.places import Launch

WORD = "qemu:arm64"
INSTALL = f"python -m edgekit.devices install {WORD}"
DEFAULT = "cortex-a76"
_PINS = Path(__file__).with_name("qemu_arm64.json")
_INSTALLED = "installed.json"
_PROGRAMS = ("qemu-aarch64-static", "qemu-aarch64")
_NO_QEMU = (
    f"{WORD} needs qemu-aarch64-static, which is not on PATH; install the package qemu-user-static "
    f"(Debian and Ubuntu: apt-get install qemu-user-static)"
)
#: What every CPU of ARMv8.0 has.
_BASE = "fp asimd evtstrm aes pmull sha1 sha2 crc32 cpuid"
#: What ARMv8.2 brought, with the dot product of 8-bit integers.
_DOT = "atomics fphp asimdhp asimdrdm lrcpc dcpop asimddp"


@dataclass(frozen=True)
class Cpu:
    """A CPU that qemu imitates, as ``/proc/cpuinfo`` shows it.

    Attributes:
        part: Its number by ARM.
        features: What it can do, as Linux calls it.
        implementer: Number of the maker.
        without: What qemu has to leave out of it.
    """

    part: str
    features: str
    implementer: str = "0x41"
    without: str = ""


CPUS: dict[str, Cpu] = {
    "cortex-a76": Cpu("0xd0b", f"{_BASE} {_DOT}"),
    "neoverse-n1": Cpu("0xd0c", f"{_BASE} {_DOT}"),
    "cortex-a72": Cpu("0xd08", _BASE),
    "cortex-a53": Cpu("0xd03", _BASE),
    "max": Cpu(
        "0x051",
        f"{_BASE} {_DOT} jscvt fcma sha3 sm3 sm4 sha512 sve asimdfhm flagm sb sve2 i8mm bf16",
        "0x00",
        # with qemu 7.2's SME, XNNPACK's int8 outputs are wrong
        ",sme=off",
    ),
}


@dataclass(frozen=True)
class Package:
    """One package of Debian, or one wheel."""

    version: str
    sha256: str


@dataclass(frozen=True)
class Pins(schema.Document):
    """The packages of ROOT.

    Attributes:
        release: Name of Debian's release.
        python: Version of Python, which the wheels are for.
        debian: By the name of the package.
        wheels: By the name of the package.
    """

    VERSION: ClassVar[int] = 1
    ERROR: ClassVar[type[EdgekitError]] = ArtifactError
    WHAT: ClassVar[str] = "the packages of qemu:arm64"

    release: str
    python: str
    debian: dict[str, Package]
    wheels: dict[str, Package]
    schema_version: int = 1


def pins() -> Pins:
    """The packages that this edgekit was tried with."""
    return Pins.load(_PINS)


def root() -> Path:
    """Where ROOT is or will be."""
    return outputs.cache("qemu-arm64")


def program() -> str | None:
    """Path of qemu; None where it is not installed."""
    return next((path for name in _PROGRAMS if (path := shutil.which(name))), None)


@functools.cache
def version(path: str) -> str:
    """Version of qemu."""
    done = subprocess.run([path, "--version"], capture_output=True, text=True)
    words = done.stdout.partition("\n")[0].split()
    return words[words.index("version") + 1] if "version" in words[:-1] else "unknown"


def missing() -> str:
    """What is not there, and how to get it, as a sentence; empty if all is there."""
    if program() is None:
        return _NO_QEMU
    file = root() / _INSTALLED
    if not file.is_file():
        return f"{WORD} is not installed; make it with: {INSTALL}"
    try:
        held = Pins.load(file)
    except ArtifactError:
        held = None
    if held is None or held.wheels != pins().wheels:
        return f"{root()} was made by another edgekit; make it again with: {INSTALL} --force"
    return ""


def launch(cpu: str) -> Launch:
    """How the device end is started on a CPU.

    Args:
        cpu: One of :data:`CPUS`.

    Raises:
        InvalidOptionError: If qemu or ROOT is not there.
    """
    if reason := missing():
        raise InvalidOptionError(reason)
    path = program()
    assert path is not None  # missing() has seen to it
    return Launch(
        (*_python(path, root(), cpu), "-m", "edgekit.runtimes.device"),
        _variables(root(), _code(root())),
        {"qemu": version(path)},
    )


def _python(path: str, base: Path, cpu: str) -> tuple[str, ...]:
    """The ARM Python on a CPU, as the beginning of a command."""
    interpreter = base / "base/usr/bin/python3.11"
    imitated = f"{cpu}{CPUS[cpu].without}"
    return (path, "-L", str(_view(base, cpu)), "-cpu", imitated, str(interpreter))


def _variables(base: Path, *code: Path) -> dict[str, str]:
    """All environment variables of the device end: none of this machine's."""
    return {
        "PYTHONHOME": str(base / "base/usr"),
        "PYTHONPATH": os.pathsep.join(map(str, (base / "site", *code))),
        "PYTHONDONTWRITEBYTECODE": "1",
        "LANG": "C.UTF-8",
        "TMPDIR": tempfile.gettempdir(),
    }


def _view(base: Path, cpu: str) -> Path:
    """A folder that stands for ``/`` to programs on a CPU: ROOT's libraries, an own cpuinfo."""
    cores, described = os.cpu_count() or 1, CPUS[cpu]

    def fill(folder: Path) -> None:
        (folder / "proc").mkdir()
        for name in ("lib", "usr"):
            (folder / name).symlink_to(Path("../../base") / name)
        (folder / "proc/cpuinfo").write_text(
            "".join(
                f"processor\t: {number}\nBogoMIPS\t: 100.00\nFeatures\t: {described.features}\n"
                f"CPU implementer\t: {described.implementer}\nCPU architecture: 8\n"
                f"CPU variant\t: 0x4\nCPU part\t: {described.part}\nCPU revision\t: 1\n\n"
                for number in range(cores)
            )
        )

    return _once(base / "cpus" / f"{cpu}-{cores}", fill)


def _code(base: Path) -> Path:
    """A folder with edgekit alone in it: the packages beside it are of another CPU."""
    package = Path(__file__).resolve().parents[1]
    key = hashlib.sha256(os.fsencode(package)).hexdigest()[:16]
    return _once(base / "code" / key, lambda folder: (folder / "edgekit").symlink_to(package))


def _once(folder: Path, fill: Callable[[Path], None]) -> Path:
    """A folder that is made once; of two processes that make it the first one's stays."""
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        part = Path(scratch) / "part"
        part.mkdir()
        fill(part)
        try:
            part.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another process was faster
                raise
    return folder


def install(
    packages: Path | None = None,
    *,
    newer: bool = False,
    force: bool = False,
    progress: Progress = SILENT,
) -> Path:
    """Make ROOT, and import both runtimes in it under qemu.

    Args:
        packages: Folder with the ``.deb`` files and wheels; default what ``apt-get`` and ``pip``
            fetch, from where they are set up to.
        newer: Take packages of Debian in the version that is there, if it is not the one that
            edgekit was tried with.
        force: Replace a ROOT that is there.
        progress: Hears what is done.

    Raises:
        InvalidOptionError: If qemu is not there, or a package cannot be had.
        InvalidDataError: If a package has another sha256.
        ExecutionError: If the runtimes cannot be imported.
        OutputExistsError: If ROOT is there.
    """
    path = program()
    if path is None:
        raise InvalidOptionError(_NO_QEMU)
    base, wanted = root(), pins()
    outputs.check_free(base, force=force)
    with contextlib.ExitStack() as stack:
        if packages is None:
            packages = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            packages.chmod(0o755)  # apt-get fetches as another user
            _fetch(wanted, packages, progress)
        debian = _checked(packages, ".deb", wanted.debian, newer=newer)
        wheels = _checked(packages, ".whl", wanted.wheels)
        part = stack.enter_context(outputs.new_folder(base, force=force))
        for file, content in debian:
            _unpack_deb(file, content, part / "base")
        for file, content in wheels:
            _unpack_wheel(file, content, part / "site")
        progress.say(f"{len(debian)} packages and {len(wheels)} wheels are unpacked; trying them")
        _try(path, part)
        held = {
            control["Package"]: (control["Version"], content)
            for control, content in ((_control(content), content) for _, content in debian)
        }
        unpacked = {
            name: Package(version, hashlib.sha256(content).hexdigest())
            for name, (version, content) in held.items()
        }
        record = Pins(wanted.release, wanted.python, unpacked, wanted.wheels)
        (part / _INSTALLED).write_text(record.dumps(), encoding="utf-8")
    return base


def _try(path: str, base: Path) -> None:
    """Import both runtimes on the CPU that is the default, which also compiles their Python."""
    variables = _variables(base)
    del variables["PYTHONDONTWRITEBYTECODE"]
    done = subprocess.run(
        [*_python(path, base, DEFAULT), "-c", "import onnxruntime, ai_edge_litert.interpreter"],
        env=variables,
        capture_output=True,
        text=True,
        errors="replace",
    )
    shutil.rmtree(base / "cpus")
    if done.returncode:
        raise ExecutionError(
            f"{WORD}: the runtimes cannot be imported under {path} {version(path)}: "
            f"{last_words(done.stderr) or f'status {done.returncode}'}"
        )


def _fetch(wanted: Pins, folder: Path, progress: Progress) -> None:
    """Let ``apt-get`` and ``pip`` fetch the packages into a folder, from where they are set up to.

    apt-get gets lists of its own, so that nothing of this machine's packages changes.
    """
    state = folder / "apt"
    for name in ("lists/partial", "cache/archives/partial"):
        (state / name).mkdir(parents=True)
    (state / "status").touch()
    settings = {
        "APT::Architecture": "arm64",
        "APT::Architectures": "arm64",
        "Dir::State::Lists": state / "lists",
        "Dir::Cache": state / "cache",
        "Dir::State::status": state / "status",
    }
    options = [word for key, value in settings.items() for word in ("-o", f"{key}={value}")]
    by_hand = f"or name a folder with the packages of {_PINS.name}: {INSTALL} --packages FOLDER"
    needs = f"this needs apt-get set up for Debian {wanted.release}"
    progress.say(f"fetching {len(wanted.debian)} packages of Debian {wanted.release} for arm64")
    _run(["apt-get", *options, "update"], folder, f"{needs}, {by_hand}")
    _run(["apt-get", *options, "download", *wanted.debian], folder, f"{needs}, {by_hand}")
    progress.say(f"fetching {len(wanted.wheels)} wheels for aarch64")
    platforms = [f"manylinux_2_{glibc}_aarch64" for glibc in (28, 27, 17)]
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    pip += [word for each in platforms for word in ("--platform", each)]
    pip += ["--implementation", "cp", "--python-version", wanted.python]
    pip += [f"{name}=={each.version}" for name, each in wanted.wheels.items()]
    _run(pip, folder, by_hand)


def _run(command: Sequence[str], folder: Path, fix: str) -> None:
    """Run a program that fetches into a folder."""
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace")
    except OSError as exc:
        raise InvalidOptionError(f"{command[0]}: {exc.strerror}; {fix}") from None
    if done.returncode:
        said = last_words(done.stderr or done.stdout, 2)
        raise InvalidOptionError(f"{Path(command[0]).name} failed: {said}; {fix}")


def _checked(
    folder: Path, suffix: str, wanted: Mapping[str, Package], *, newer: bool = False
) -> list[tuple[Path, bytes]]:
    """The files of the packages that are wanted, with their contents.

    Raises:
        InvalidOptionError: If one is missing.
        InvalidDataError: If one has another sha256.
    """
    if not folder.is_dir():
        raise InvalidOptionError(f"{folder} is no folder; expected one with {suffix} files")
    by_sum: dict[str, tuple[Path, bytes]] = {}
    by_name: dict[str, tuple[Path, bytes]] = {}
    for file in sorted(folder.glob(f"*{suffix}")):
        content = file.read_bytes()
        by_sum[hashlib.sha256(content).hexdigest()] = (file, content)
        by_name[_file_package(file)] = (file, content)
    held = []
    for name, package in wanted.items():
        if package.sha256 in by_sum:
            held.append(by_sum[package.sha256])
        elif name not in by_name:
            raise InvalidOptionError(
                f"{folder} has no {suffix} file of {name} {package.version}; expected the packages "
                f"of {_PINS.name}"
            )
        elif newer and _is_arm64(_control(by_name[name][1]), name):
            held.append(by_name[name])
        else:
            fix = "--newer takes what the archive has now" if suffix == ".deb" else "fetch it again"
            raise InvalidDataError(
                f"{by_name[name][0].name}: expected {name} {package.version} with the sha256 "
                f"{package.sha256}, got another; {fix}"
            )
    return held


def _is_arm64(control: Mapping[str, str], name: str) -> bool:
    return control.get("Package") == name and control.get("Architecture") in ("arm64", "all")


def _file_package(file: Path) -> str:
    """Name of the package, as its file says."""
    if file.suffix == ".deb":
        return file.name.partition("_")[0]
    return file.name.partition("-")[0].replace("_", "-")


def _members(file: str, content: bytes) -> Iterator[tuple[str, bytes]]:
    """Members of a ``.deb`` file, which is an archive of ``ar``."""
    if content[:8] != b"!<arch>\n":
        raise InvalidDataError(f"{file} is no package of Debian; expected a .deb file")
    start = 8
    while start + 60 <= len(content):
        head = content[start : start + 60]
        try:
            name, size = head[:16].decode("ascii").strip().rstrip("/"), int(head[48:58])
        except ValueError:
            raise InvalidDataError(f"{file} is broken; fetch it again") from None
        yield name, content[start + 60 : start + 60 + size]
        start += 60 + size + size % 2


def _tar(file: str, content: bytes, part: str) -> tarfile.TarFile:
    """The archive ``control`` or ``data`` of a package."""
    for name, held in _members(file, content):
        if name in (f"{part}.tar.xz", f"{part}.tar.gz", f"{part}.tar"):
            stream: IO[bytes] = io.BytesIO(held)
            if name.endswith(".xz"):
                stream = io.BytesIO(lzma.decompress(held))
            return tarfile.open(fileobj=stream)
    raise InvalidDataError(f"{file}: expected {part}.tar.xz in it; this edgekit reads no other")


def _control(content: bytes) -> dict[str, str]:
    """What a package of Debian says of itself."""
    with _tar("the package", content, "control") as archive:
        stream = archive.extractfile("./control")
        assert stream is not None
        lines = stream.read().decode(errors="replace").splitlines()
    return {
        key: value
        for key, colon, value in (line.partition(": ") for line in lines)
        if colon and not key.startswith(" ")
    }


def _unpack_deb(file: Path, content: bytes, folder: Path) -> None:
    """Files and links of a package, but for its pages; nothing outside of the folder."""
    with _tar(file.name, content, "data") as archive:
        for member in archive:
            name = posixpath.normpath(member.name)
            if name == "." or f"{name}/".startswith(("usr/share/", "etc/")):
                continue
            target = _inside(folder, name, file)
            if member.isdir():
                target.mkdir(parents=True, exist_ok=True)
            elif member.issym():
                if member.linkname.startswith("/"):
                    continue  # settings of the machine, which are left out
                _inside(folder, posixpath.join(posixpath.dirname(name), member.linkname), file)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.symlink_to(member.linkname)
            elif member.isfile():
                stream = archive.extractfile(member)
                assert stream is not None
                _write(target, stream.read(), executable=bool(member.mode & 0o100))
            else:
                raise InvalidDataError(f"{file.name}: {name!r} is neither file, folder nor link")


def _unpack_wheel(file: Path, content: bytes, folder: Path) -> None:
    """Files of a wheel; nothing outside of the folder."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        for name in archive.namelist():
            if not name.endswith("/"):
                _write(_inside(folder, name, file), archive.read(name), executable=False)


def _write(path: Path, content: bytes, *, executable: bool) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.write_bytes(content)
    if executable:
        path.chmod(0o755)


def _inside(folder: Path, name: str, file: Path) -> Path:
    """A path below a folder that no link leads out of.

    Raises:
        InvalidDataError: If the name leads out of it.
    """
    plain = posixpath.normpath(name)
    if plain.startswith(("/", "../")) or plain == "..":
        raise InvalidDataError(f"{file.name}: {name!r} lies outside of the package; fetch it again")
    path = folder / plain
    if any(parent.is_symlink() for parent in path.parents if parent != folder):
        raise InvalidDataError(f"{file.name}: {name!r} lies behind a link; fetch it again")
    return path


def facts() -> list[str]:
    """What is installed, in words; empty if nothing is."""
    if missing():
        return []
    path = program()
    assert path is not None
    held = Pins.load(root() / _INSTALLED)
    versions = [f"{name} {each.version}" for name, each in held.wheels.items()]
    return [f"qemu {version(path)}", *versions, f"CPUs {', '.join(CPUS)}"]
