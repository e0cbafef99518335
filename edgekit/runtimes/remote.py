"""A worker at another place: starts the device end there, and talks to it in frames.

What a device says is checked and escaped; it is data, whatever it says. The device end is started
with a list of arguments, in a session of its own, without a shell.
"""

from __future__ import annotations

import contextlib
import math
import os
import select
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.base import errors, schema
from edgekit.base.errors import (
    EdgekitError,
    ExecutionError,
    InvalidOptionError,
    ProcessDiedError,
    last_words,
)
from edgekit.base.text import shortened, visible
from edgekit.graph import onnx
from edgekit.runtimes import channel, device
from edgekit.runtimes.channel import Frame, FrameError
from edgekit.runtimes.worker import Job, Loaded, ending

#: Bytes of a device's stderr that are kept, the last ones.
_KEPT = 8192
#: Seconds that a device end has to leave by itself, when nothing is asked any more.
_LEAVE = 2.0
#: Characters of an error of a device that are shown.
_SHOWN = 500


class RemoteEnd:
    """The parent's end of a device end, as :class:`edgekit.runtimes.worker.End` says.

    Args:
        job: What it loads, and where.

    Raises:
        InvalidOptionError: If the place cannot be used, or not for this job.
        ExecutionError: If the device end cannot be started.
    """

    def __init__(self, job: Job) -> None:
        self._job, self._place = job, job.place
        self._place.check_format(job.name, job.format)
        if job.trust:
            raise InvalidOptionError(
                f"{job.name}: code inside of a model runs on this machine only; leave --trust out "
                f"for {self._place.word}"
            )
        self._launch = self._place.launch()
        self._number = 0
        self._asked = ("load", 0)
        self._stderr = b""
        self._loader: threading.Thread | None = None
        try:
            self._process = subprocess.Popen(
                list(self._launch.command),
                env=dict(self._launch.environment),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,  # Ctrl-C of the terminal is for this process
                bufsize=0,
            )
        except OSError as exc:
            raise ExecutionError(
                f"{self._place.word}: {self._launch.command[0]} cannot be started ({exc.strerror})"
            ) from None
        _no_core(self._process.pid)
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()
        try:
            self._load()
        except BaseException:
            self.close()
            raise

    @property
    def process(self) -> int:
        """Number of the process on this machine."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether the process still runs."""
        return self._process.poll() is None

    def poll(self, seconds: float) -> bool:
        """Whether it says something within this time, be it that it ended."""
        assert self._process.stdout is not None
        return bool(select.select([self._process.stdout], [], [], seconds)[0])

    def send(self, command: str, *arguments: Any) -> None:
        """Ask for something: ``outputs`` of images, ``latencies`` of images, ``peak_memory``."""
        said: dict[str, Any] = {}
        arrays: tuple[npt.NDArray[Any], ...] = ()
        if arguments:
            images = arguments[0]
            names = images.dtype.names
            said["fields"] = None if names is None else list(names)
            arrays = (images,) if names is None else tuple(images[name] for name in names)
        if command == "latencies":
            said["count"] = arguments[1]
        self._asked = (command, len(arguments[0]) if arguments else 0)
        self._send(command, said, arrays)

    def receive(self) -> Any:
        """The reply, checked."""
        command, count = self._asked
        with self._malformed():
            if command == "outputs":
                (values,) = self._reply(arrays=1).arrays
                return self._checked(values, count)
            value: Any = self._reply(arrays=0).said.get("value")
            if command == "load":
                return self._hello(value)
            if command == "latencies":
                return [_finite(each) for each in value]
            return int(_finite(value))

    def close(self) -> None:
        """End the process; it has a moment to leave by itself."""
        assert self._process.stdin is not None and self._process.stdout is not None
        if self._loader is not None and self._loader.is_alive():  # it reads no more of the model
            self._process.kill()
            self._loader.join()
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(_LEAVE if self._process.poll() is None else 0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._listener.join(_LEAVE)

    def _load(self) -> None:
        paths = [self._job.model]
        if self._job.format == "onnx":
            paths += onnx.beside(self._job.model)
        order = device.Order.of(self._job, tuple(path.name for path in paths))
        contents = tuple(np.frombuffer(path.read_bytes(), np.uint8) for path in paths)
        request = self._request("load", {"job": schema.to_json(order)}, contents)
        # A device end takes seconds to begin to read; who starts several does not wait for each.
        self._loader = threading.Thread(target=self._write_all, args=(request,), daemon=True)
        self._loader.start()

    def _hello(self, value: Any) -> Loaded:
        """What the device says once it has loaded the model."""
        try:
            hello = schema.from_json(device.Hello, value)
        except EdgekitError as exc:  # a tensor of no dtype, say
            raise FrameError(str(exc)) from None
        place = replace(
            hello.place,
            host=self._place.word,
            versions={**hello.place.versions, **self._launch.versions},
        )
        runtime = hello.loaded.runtime
        if not self._place.kind.times:
            note = f"it ran on {self._place.kind.about}: outputs count, times and memory do not"
            runtime = replace(runtime, emulated=True, notes=(*runtime.notes, note))
        return replace(hello.loaded, runtime=runtime, place=place)

    def _checked(self, values: npt.NDArray[Any], count: int) -> npt.NDArray[np.float32]:
        """Outputs of the right size, all of them finite."""
        if values.dtype != np.float32 or values.ndim != 2 or len(values) != count:
            raise FrameError(
                f"expected float32 outputs of {count} samples, got {values.dtype} "
                f"{list(values.shape)}"
            )
        if not np.isfinite(values).all():
            raise FrameError("outputs are NaN or Inf")
        return values

    def _send(
        self, command: str, said: dict[str, Any], arrays: tuple[npt.NDArray[Any], ...]
    ) -> None:
        self._write_all(self._request(command, said, arrays))

    def _request(
        self, command: str, said: dict[str, Any], arrays: tuple[npt.NDArray[Any], ...]
    ) -> list[bytes]:
        self._number += 1
        return channel.packed({"number": self._number, "command": command, **said}, arrays)

    def _write_all(self, pieces: list[bytes]) -> None:
        """Write a request. A device that is gone is seen when its reply is read."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            for piece in pieces:
                view = memoryview(piece)
                while view:
                    view = view[os.write(self._process.stdin.fileno(), view) :]

    def _reply(self, *, arrays: int) -> Frame:
        """The reply to the last request."""
        assert self._process.stdout is not None
        number = self._process.stdout.fileno()
        receive: Callable[[int], bytes] = lambda size: os.read(number, size)  # noqa: E731
        try:
            frame = channel.read(receive, limit=channel.ARRAYS_LIMIT if arrays else 0)
        except EOFError:
            raise self._death() from None
        said = channel.harmless(frame.said)
        if said.get("number") != self._number:
            raise FrameError(f"expected reply {self._number}, got {said.get('number')!r:.40}")
        if said.get("kind") == "error":
            raise self._error(said)
        if said.get("kind") != "done" or len(frame.arrays) != arrays:
            raise FrameError(f"expected a reply with {arrays} arrays, got {len(frame.arrays)}")
        return Frame(said, frame.arrays)

    def _error(self, said: dict[str, Any]) -> EdgekitError:
        """An error that the device names; only those of a list have their own type."""
        kind = said.get("error")
        known: type[EdgekitError] = ExecutionError
        if kind in device.ERRORS:
            known = getattr(errors, kind)
        text = shortened(str(said.get("said", "nothing was said")), _SHOWN)
        error = known(f"{self._job.name}: {text}")
        error.detail = self._detail()
        return error

    @contextlib.contextmanager
    def _malformed(self) -> Iterator[None]:
        """Whatever a device sends that is no reply becomes one line."""
        try:
            yield
        except EdgekitError:
            raise
        except (FrameError, schema.SchemaError) as exc:
            problem = str(exc)
        except (TypeError, ValueError, KeyError, OverflowError) as exc:
            problem = f"{type(exc).__name__}: {exc}"
        else:
            return
        error = ExecutionError(
            f"{self._job.name}: the device does not reply as edgekit does: "
            f"{shortened(visible(problem), _SHOWN)}; install the same edgekit there"
        )
        error.detail = self._detail()
        raise error

    def _death(self) -> ProcessDiedError:
        """Why the process is gone, as far as that can be told."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(5)
        self._listener.join(1)
        said = visible(last_words(self._stderr.decode(errors="replace")))
        how = ending(self._process.poll())
        error = ProcessDiedError(
            f"{self._job.name}: the process at {self._place.word} {how}; out of memory, or a crash "
            f"there{f'; its last words: {said}' if said else ''}"
        )
        error.detail = self._detail()
        return error

    def _detail(self) -> str:
        return f"stderr of the device:\n{self._stderr.decode(errors='replace')}\n"

    def _listen(self) -> None:
        """Keep the end of what the device writes to stderr."""
        assert self._process.stderr is not None
        with self._process.stderr as stream:
            while piece := stream.read(_KEPT):
                self._stderr = (self._stderr + piece)[-_KEPT:]


def _finite(value: Any) -> float:
    """A number of a device."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"expected a number, got {value!r:.40}")
    return float(value)


def _no_core(process: int) -> None:
    """A crash at the place leaves no file in the user's folder, as qemu's would."""
    if sys.platform == "linux":
        import resource

        with contextlib.suppress(OSError):
            resource.prlimit(process, resource.RLIMIT_CORE, (0, 0))
