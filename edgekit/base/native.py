"""How C libraries of the process behave while numpy computes on large arrays."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import os
from collections.abc import Iterator
from typing import Any

#: Numbers of glibc's mallopt(), and what it has without being asked (malloc.h, mallopt(3)).
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
_USUAL = {_MMAP_MAX: 65536, _TRIM_THRESHOLD: 64 << 20}
#: OpenBLAS, as numpy's wheels call it.
_BLAS = "scipy_openblas_{}_num_threads64_"


@contextlib.contextmanager
def steady() -> Iterator[None]:
    """Let memory that is freed be used again, and a matrix product have one thread.

    Each large array gets new pages from the system else, which zeroes them first: that took more
    time than what was computed. And a thread of OpenBLAS waits for the others by spinning, which
    takes as much again where another process has its core. Where the libraries are others, nothing
    happens.
    """
    libc: Any = ctypes.CDLL(None) if os.name == "posix" else None
    blas: Any = ctypes.CDLL(importlib.import_module("numpy._core._multiarray_umath").__file__)
    keeps = hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim")
    threads = blas[_BLAS.format("get")]() if hasattr(blas, _BLAS.format("get")) else 0
    try:
        if keeps:
            libc.mallopt(_MMAP_MAX, 0)
            libc.mallopt(_TRIM_THRESHOLD, (1 << 31) - 1)
        if threads:
            blas[_BLAS.format("set")](1)
        yield
    finally:
        if threads:
            blas[_BLAS.format("set")](threads)
        if keeps:
            for number, usual in _USUAL.items():
                libc.mallopt(number, usual)
            libc.malloc_trim(0)
