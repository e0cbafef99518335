"""Silence around code that prints: converters, quantizers, C++ start-up messages."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import threading
import warnings
from collections.abc import Iterator

_lock = threading.Lock()
_inside = 0
_silence = contextlib.ExitStack()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Drop what Python and C++ code writes to stdout and stderr; exceptions pass.

    Works on the process's file descriptors: what other threads write meanwhile is dropped too.
    Several threads may be inside; output is back when the last one leaves.
    """
    global _inside
    with _lock:
        if not _inside:
            _silence.enter_context(_silent())
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if not _inside:
                _silence.close()


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    saved: list[tuple[int, int]] = []
    with (
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
        warnings.catch_warnings(),
        open(os.devnull, "w") as nowhere,
    ):
        warnings.simplefilter("ignore")
        try:
            for number in (1, 2):
                with contextlib.suppress(OSError):  # a closed stream has nothing to silence
                    saved.append((number, os.dup(number)))
                    os.dup2(nowhere.fileno(), number)
            yield
        finally:
            for number, copy in saved:
                os.dup2(copy, number)
                os.close(copy)
