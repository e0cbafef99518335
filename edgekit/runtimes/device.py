"""``python -m edgekit.runtimes.device``: the end of edgekit on a device.

It reads requests from stdin and writes replies to stdout, as frames of
:mod:`edgekit.runtimes.channel`; edgekit starts it, on this machine, in an emulator or on a board.
It needs numpy and the runtime of one format, and no framework. The first request brings the model,
whose file lies in a private folder until it is loaded.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import tempfile
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy.typing as npt

from edgekit.base import errors, schema
from edgekit.base.errors import EdgekitError, InvalidOptionError, reason
from edgekit.base.version import __version__
from edgekit.data import feeds
from edgekit.records import environment
from edgekit.records.results import Place
from edgekit.records.signature import Preprocessing
from edgekit.runtimes import channel, worker
from edgekit.runtimes.channel import Frame
from edgekit.runtimes.worker import Job, Loaded

#: Errors that a device may name; any other one is an ExecutionError.
ERRORS = ("InvalidModelError", "InvalidDataError", "InvalidInputError", "InvalidOptionError")


@dataclass(frozen=True)
class Order:
    """A job as it is sent to a device; the attributes are those of a job.

    Attributes:
        model: Name of the model's file.
        files: Names of all files, whose contents follow as arrays of uint8.
    """

    name: str
    model: str
    files: tuple[str, ...]
    format: str
    preprocessing: Preprocessing
    threads: int
    options: dict[str, str]
    batch: int | None
    device: str
    precision: str
    outputs: tuple[str, ...]
    shapes: dict[str, tuple[int, ...]] | None
    turned: tuple[str, ...]
    version: str = __version__

    @classmethod
    def of(cls, job: Job, files: tuple[str, ...]) -> Order:
        """The order of a job."""
        own = {
            each.name: getattr(job, each.name) for each in fields(cls) if hasattr(job, each.name)
        }
        shapes = None if job.shapes is None else dict(job.shapes)
        return cls(
            **{**own, "model": job.model.name, "shapes": shapes, "options": dict(job.options)},
            files=files,
        )

    def job(self, folder: Path) -> Job:
        """The job, with the model in a folder of this machine."""
        own = {
            name: value for name, value in vars(self).items() if name not in ("files", "version")
        }
        return Job(**{**own, "model": folder / self.model})


@dataclass(frozen=True)
class Hello:
    """What a device says once it has loaded a model.

    Attributes:
        loaded: As a worker says it.
        place: The machine.
    """

    loaded: Loaded
    place: Place


class _Channel:
    """The two ends of this process, which nothing else reads or writes: what a runtime prints goes
    to stderr."""

    def __init__(self) -> None:
        self._in, self._out = os.dup(0), os.dup(1)
        with open(os.devnull) as nothing:
            os.dup2(nothing.fileno(), 0)
        os.dup2(2, 1)

    def receive(self, size: int) -> bytes:
        return os.read(self._in, size)

    def send(self, said: dict[str, Any], arrays: tuple[npt.NDArray[Any], ...] = ()) -> None:
        for piece in channel.packed(said, arrays):
            view = memoryview(piece)
            while view:
                view = view[os.write(self._out, view) :]


def _load(request: Frame) -> tuple[Any, Job, Hello]:
    """A runner of the model that a request brings; its file is gone when it is loaded."""
    order = schema.from_json(Order, request.said["job"])
    if order.version != __version__:
        raise InvalidOptionError(
            f"expected edgekit {order.version} on the device, as on the machine that asks, got "
            f"{__version__}; install the same version"
        )
    names = {order.model, *order.files}
    if any(Path(name).name != name or name in ("", ".", "..") for name in names):
        raise InvalidOptionError(f"expected names of files without folders, got {sorted(names)}")
    with tempfile.TemporaryDirectory(prefix="edgekit-") as folder:
        for name, content in zip(order.files, request.arrays, strict=True):
            (Path(folder) / name).write_bytes(content.tobytes())
        job = order.job(Path(folder))
        runner, loaded = worker.opened(job)
    machine = environment.describe()
    place = Place(socket.gethostname(), "", machine.machine_class, machine.isa, machine.versions)
    return runner, job, Hello(loaded, place)


def _samples(request: Frame) -> npt.NDArray[Any]:
    names = request.said["fields"]
    if names is None:
        (images,) = request.arrays
        return images
    return feeds.records(dict(zip(names, request.arrays, strict=True)))


def _reply(runner: Any, job: Job, request: Frame) -> tuple[Any, tuple[npt.NDArray[Any], ...]]:
    command = request.said["command"]
    if command == "outputs":
        return None, (worker.outputs(runner, job, _samples(request)),)
    if command == "latencies":
        return worker.latencies(runner, job, _samples(request), request.said["count"]), ()
    return worker.peak_memory(runner, job), ()


def main() -> int:
    """Serve one model until stdin ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ends = _Channel()
    runner: Any = None
    job: Any = None
    number = 0
    try:
        while True:
            request = channel.read(ends.receive)
            number = request.said["number"]
            arrays: tuple[npt.NDArray[Any], ...] = ()
            if request.said["command"] == "load":
                runner, job, value = _load(request)
            else:
                value, arrays = _reply(runner, job, request)
            ends.send({"number": number, "kind": "done", "value": value}, arrays)
    except EOFError:
        return 0
    except EdgekitError as exc:
        known = next((name for name in ERRORS if isinstance(exc, getattr(errors, name))), "")
        _fail(ends, number, known, str(exc))
    except Exception as exc:  # whatever a runtime raises has to reach the other end as one line
        _fail(ends, number, "", f"{type(exc).__name__}: {reason(exc)}")
    return 1


def _fail(ends: _Channel, number: int, kind: str, said: str) -> None:
    ends.send({"number": number, "kind": "error", "error": kind, "said": said})


if __name__ == "__main__":
    sys.exit(main())
