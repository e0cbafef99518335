"""Outputs are written whole or not at all: a temporary sibling, fsync, rename.

A kill at any moment leaves the old state or the new one. It may leave a hidden sibling
``.NAME.PID.part`` too, which no reader takes for an output.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from edgekit.base.errors import InvalidOptionError, OutputExistsError


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def cache(name: str) -> Path:
    """``$XDG_CACHE_HOME/edgekit/NAME``: the user's folder for what can be made again."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "edgekit" / name


def check_free(path: Path, *, force: bool) -> None:
    """Refuse an output path that is taken, before any work is done.

    Raises:
        OutputExistsError: If ``path`` exists and ``force`` is false.
        InvalidOptionError: If the path cannot be an output: a part of its parent is a file.
    """
    if path.exists() and not force:
        raise OutputExistsError(path)
    for parent in path.absolute().parents:
        if parent.is_dir():
            return
        if parent.exists():
            raise InvalidOptionError(
                f"{parent} is a file; expected a folder to write {path.name} into"
            )


def write_text(path: Path, text: str, *, force: bool) -> None:
    """Write a text file through a temporary sibling."""
    write_bytes(path, text.encode("utf-8"), force=force)


def write_bytes(
    path: Path, content: bytes, *, force: bool, sync: bool = True, mode: int = 0o666
) -> None:
    """Write a file through a temporary sibling.

    Args:
        path: The file to make.
        content: All of it.
        force: Replace a file that is there.
        sync: Also outlive a loss of power. Many small files that can be made again do without.
        mode: Permissions, less the umask, from the first byte on.

    Raises:
        OutputExistsError: If ``path`` exists and ``force`` is false.
    """
    check_free(path, force=force)
    if path.is_dir():
        raise InvalidOptionError(f"{path} is a folder; expected a file path")
    path.parent.mkdir(parents=True, exist_ok=True)
    part = _part(path)
    try:
        part.unlink(missing_ok=True)  # one that is left of a killed process
        number = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with open(number, "wb") as stream:
            stream.write(content)
            stream.flush()
            if sync:
                os.fsync(stream.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def new_folder(path: Path, *, force: bool) -> Iterator[Path]:
    """Give a temporary folder that becomes ``path`` when the block ends without an error.

    With ``force`` an existing folder is replaced: it is moved aside first and deleted last, so
    that no mix of old and new is ever seen under ``path``.

    Raises:
        OutputExistsError: If ``path`` exists and ``force`` is false.
    """
    with new_folders([path], force=force) as (part,):
        yield part


@contextmanager
def new_folders(paths: Sequence[Path], *, force: bool) -> Iterator[tuple[Path, ...]]:
    """Give a temporary folder for each of ``paths``; as :func:`new_folder`, all of them or none.

    Raises:
        OutputExistsError: If one of ``paths`` exists and ``force`` is false.
    """
    for path in paths:
        check_free(path, force=force)
        if path.is_file():
            raise InvalidOptionError(f"{path} is a file; expected a folder path")
    parts = tuple(_part(path) for path in paths)
    old = [part.with_suffix(".old") for part in parts]
    try:
        for part in parts:
            part.parent.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir()
        yield parts
        for file in [file for part in parts for file in part.rglob("*")]:
            if file.is_file():
                with file.open("rb") as stream:
                    os.fsync(stream.fileno())
        replaced: list[Path] = []
        try:
            for path, part, aside in zip(paths, parts, old, strict=True):
                if path.exists():
                    path.replace(aside)
                part.replace(path)
                replaced.append(path)
        except BaseException:
            for path in replaced:
                shutil.rmtree(path, ignore_errors=True)
            raise
    finally:
        for path, part, aside in zip(paths, parts, old, strict=True):
            shutil.rmtree(part, ignore_errors=True)
            if aside.exists() and not path.exists():
                aside.replace(path)
            shutil.rmtree(aside, ignore_errors=True)


def _part(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.part")
