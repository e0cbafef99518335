"""Every error that edgekit raises for something that its user can correct.

::

    EdgekitError                 exit status 2, one line, no traceback
    ├── InvalidOptionError       an argument: unknown, out of range, contradicting another
    ├── InvalidInputError        a file or array: not what it should be
    │   ├── InvalidModelError    a model file that cannot be read or is not supported
    │   │   └── NoTfliteFormError  an ONNX graph that TFLite has no form for
    │   ├── InvalidDataError     images, labels, calibration sets
    │   │   └── ClassesError     classes of a data set that are not the model's
    │   ├── ArtifactError        an artifact folder: no manifest, changed byte, unknown schema
    │   ├── ReportError          a report or baseline: unreadable, unknown schema, other model
    │   ├── RecordingError       a recorded reference: changed byte, other model or data
    │   └── SignatureError       a signature or key: missing, of another key, of other bytes
    ├── OutputExistsError        the output is there already and --force was not given
    ├── ExecutionError           a runtime did not run what it was asked to run
    │   ├── ProcessDiedError     the process that ran it is gone
    │   └── WriterError          a file does not hold the chosen numbers: a fault of edgekit
    ├── FidelityError            exit status 1: an int8 file is dead, poor or over its budget
    └── MissingDependencyError   a package of an extra is not installed

Messages are one sentence in one line: expected, got, and the fix.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar


def reason(error: BaseException) -> str:
    """What another library's exception says, in one line short enough to quote."""
    said = " ".join(str(error).split())
    return textwrap.shorten(said, 200, placeholder=" …") or type(error).__name__


def last_words(text: str, lines: int = 3) -> str:
    """The last lines of what a program wrote, as one that is short enough to quote."""
    kept = [" ".join(line.split()) for line in text.splitlines() if line.strip()][-lines:]
    said = " | ".join(kept)
    return said if len(said) <= 300 else f"…{said[-299:]}"


class EdgekitError(Exception):
    """Base of all errors that a user can correct; printed as one line.

    Attributes:
        status: The exit status of a verb that ends with it.
        detail: More lines, of a process that failed, for those who ask with ``--traceback``.
    """

    status: ClassVar[int] = 2
    detail: str = ""


class InvalidOptionError(EdgekitError, ValueError):
    """An option or argument is unknown, out of range or contradicts another."""


class InvalidInputError(EdgekitError):
    """A file or array that was given is not what it should be."""


class InvalidModelError(InvalidInputError):
    """A model file cannot be read, or holds something edgekit does not support."""


class NoTfliteFormError(InvalidModelError):
    """The graph of an ONNX file has no form in TFLite.

    Attributes:
        path: Of the file.
        why: What TFLite has no form for, as the end of a sentence.
    """

    def __init__(self, path: str, why: str) -> None:
        self.path, self.why = path, why.removeprefix(f"{path}: ")
        super().__init__(f"{path} cannot become TFLite: {self.why}; replace it in the model")


class InvalidDataError(InvalidInputError):
    """Images, labels or a calibration set cannot be used."""


class ClassesError(InvalidDataError):
    """The classes of a data set are not the model's, by name or number."""


class ArtifactError(InvalidInputError):
    """An artifact folder is incomplete, was changed, or has an unknown schema."""


class ReportError(InvalidInputError):
    """A report or baseline cannot be read or does not fit the other one."""


class RecordingError(InvalidInputError):
    """A recorded reference cannot be read, or is one of another model or other data."""


class SignatureError(InvalidInputError):
    """A signature or key cannot be read, or what is signed is not what is there."""


class OutputExistsError(EdgekitError):
    """The output path exists and may not be overwritten."""

    def __init__(self, path: object) -> None:
        super().__init__(
            f"{path} exists already; choose another path or pass --force to replace it"
        )


class ExecutionError(EdgekitError):
    """A runtime did not run, or ran something other than what it was asked for."""


class ProcessDiedError(ExecutionError):
    """The process of a runtime ended before its work did."""


class WriterError(ExecutionError):
    """A file was written otherwise than decided; the message names the layer and what differs.

    A fault of edgekit's own, found before anything became an artifact.
    """

    def __init__(self, what: str) -> None:
        super().__init__(f"nothing was written, by a fault of edgekit's own: {what}")


class FidelityError(EdgekitError):
    """A model file that was made is dead, poor or over its budget beside the float model; it is not
    written.

    Args:
        what: Which file it is, and how bad.
        fix: What to do.
        written: Folders of the artifacts of the same call that are good, and were written.
    """

    status: ClassVar[int] = 1

    def __init__(self, what: str, fix: str = "", written: Sequence[Path] = ()) -> None:
        good = f"the good ones were written: {', '.join(map(str, written))}" if written else ""
        super().__init__("; ".join(filter(None, (what, fix, good))))
        self.what, self.fix, self.written = what, fix, tuple(written)


class MissingDependencyError(EdgekitError, ImportError):
    """An optional package is not installed."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(
            f"{package} is not installed; install it with: pip install 'edgekit[{extra}]'"
        )
