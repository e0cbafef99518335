"""Every error edgekit raises for something its user can mend.

::

    EdgekitError                 exit status 2, one line, no traceback
    ├── InvalidOptionError       an argument: unknown, out of range, contradicting another
    ├── InvalidInputError        a file or array: not what it should be
    │   ├── InvalidModelError    a model file that cannot be read or is not supported
    │   ├── InvalidDataError     images, labels, calibration sets
    │   ├── ArtifactError        an artifact folder: no manifest, changed byte, unknown schema
    │   ├── ReportError          a report or baseline: unreadable, unknown schema, other model
    │   ├── RecordingError       a recorded reference: changed byte, other model or data
    │   └── SignatureError       a signature or key: missing, of another key, of other bytes
    ├── OutputExistsError        the output is there already and --force was not given
    ├── ExecutionError           a runtime did not run what it was asked to run
    │   └── WriterError          a file does not hold what was decided: a fault of edgekit's own
    └── MissingDependencyError   a package of an extra is not installed

Messages are one sentence in one line: expected, got, and the fix.
"""

from __future__ import annotations


def reason(error: BaseException) -> str:
    """What another library's exception says, in one line short enough to quote."""
    return " ".join(str(error).split())[:200] or type(error).__name__


class EdgekitError(Exception):
    """Base of all errors that a user can mend; printed as one line, exit status 2."""


class InvalidOptionError(EdgekitError, ValueError):
    """An option or argument is unknown, out of range or contradicts another."""


class InvalidInputError(EdgekitError):
    """A file or array that was given is not what it should be."""


class InvalidModelError(InvalidInputError):
    """A model file cannot be read, or holds something edgekit does not support."""


class InvalidDataError(InvalidInputError):
    """Images, labels or a calibration set cannot be used."""


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


class WriterError(ExecutionError):
    """A file was written otherwise than decided; the message names the layer and what differs.

    A fault of edgekit's own, found before anything became an artifact.
    """

    def __init__(self, what: str) -> None:
        super().__init__(f"nothing was written, by a fault of edgekit's own: {what}")


class MissingDependencyError(EdgekitError, ImportError):
    """An optional package is not installed."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(
            f"{package} is not installed; install it with: pip install 'edgekit[{extra}]'"
        )
