"""The version, and a number that changes with every change of the code."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

__version__ = "0.1.0"


@functools.cache
def sources() -> str:
    """Hex SHA-256 of all source files of edgekit: what is kept on disk is found again by it.

    A formula that changes cannot be forgotten so, as a number that is raised by hand is.
    """
    folder = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0")
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()
