"""A runner in a process of its own, so that runtimes do not affect each other, and memory is that
of one model.

A process on this machine is :class:`LocalEnd`, one at another place
:class:`edgekit.runtimes.remote.RemoteEnd`; a :class:`Worker` talks to either. The parent process
imports no framework. Workers ignore Ctrl-C, which the terminal sends to all processes of the group;
the parent ends them.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.process
import multiprocessing.resource_tracker
import os
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import IO, Any, Protocol, Self, cast

import numpy as np
import numpy.typing as npt

from edgekit.base.errors import (
    EdgekitError,
    ExecutionError,
    InvalidInputError,
    InvalidModelError,
    InvalidOptionError,
    MissingDependencyError,
    ProcessDiedError,
    last_words,
    reason,
)
from edgekit.data import feeds
from edgekit.records.artifact import Artifact
from edgekit.records.results import Measurement, Place, Runtime
from edgekit.records.signature import Preprocessing, Shapes, Signature, TensorSpec
from edgekit.runtimes import Runner, open_runner
from edgekit.runtimes.places import HERE, PlaceSpec, named

#: What the stderr of a worker starts with, once it has begun.
_BEGUN = b"\0begun\0"
#: Bytes of a worker's stderr that are looked at, the last ones.
_KEPT = 8192
_GUARD = 'if __name__ == "__main__":'


@dataclass(frozen=True)
class Job:
    """What a worker loads.

    Attributes:
        name: For error messages.
        batch: Images in a run; None for what the runtime does best.
        device: As :func:`edgekit.runtimes.open_runner` takes it.
        precision: Policy of a Keras model's layers.
        trust: Let code inside of the model run, as :func:`edgekit.runtimes.open_runner` says.
        outputs: Names of the outputs to give, in order; empty for all as the file has them.
        shapes: Sizes of inputs with free axes, by name; None of an artifact, which has none.
        turned: Outputs whose channels lie last, and first in the model that it was made from; the
            outputs have them as in that model.
        place: Where it runs.
    """

    name: str
    model: Path
    format: str
    preprocessing: Preprocessing
    threads: int
    options: Mapping[str, str]
    batch: int | None = None
    device: str = "cpu"
    precision: str = "float32"
    trust: bool = False
    outputs: tuple[str, ...] = ()
    shapes: Shapes | None = None
    turned: tuple[str, ...] = ()
    place: PlaceSpec = HERE

    @classmethod
    def of(cls, artifact: Artifact, *, threads: int, batch: int | None = None) -> Job:
        """The job that runs an artifact as its manifest says."""
        manifest = artifact.manifest
        source = manifest.source
        return cls(
            artifact.name,
            artifact.model_path,
            manifest.format,
            manifest.preprocessing,
            threads,
            manifest.runtime_options,
            batch,
            turned=() if source is None else source.turned(manifest.signature, manifest.format),
        )

    def at(self, place: PlaceSpec) -> Job:
        """The same job at a place, which its name says.

        Raises:
            InvalidOptionError: If the place does not run files of this format.
        """
        place.check_format(self.name, self.format)
        job = replace(self, name=named(self.name, place), place=place)
        return job if place.device is None else replace(job, device=place.device)


@dataclass(frozen=True)
class Loaded:
    """What a worker says after loading.

    Attributes:
        load_ms: From the file to a model that can run, without imports.
        baseline_memory: Largest resident size before loading, in bytes: Python and the runtime.
        signature: As the model's file has it.
        parameters: As :class:`edgekit.runtimes.Runner` has it.
        metrics: The same.
        place: The machine that loaded it; None if it is this one.
    """

    load_ms: float
    baseline_memory: int
    runtime: Runtime
    signature: Signature
    parameters: int | None = None
    metrics: dict[str, Measurement] = field(default_factory=dict)
    place: Place | None = None

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Of one image, ``(H, W, C)`` of a picture.

        Raises:
            InvalidInputError: If the model has not one input and one output.
        """
        return self.signature.single_input().picture

    def misfit(self, name: str, images: npt.NDArray[Any]) -> str:
        """Why images, or records by input, do not fit the model of this name; empty if they do."""
        inputs = self.signature.inputs
        if images.dtype.names is None:
            fit = inputs[0].fits(images.shape[1:])
            expected: Any = inputs[0].expected
            got: Any = list(images.shape[1:])
        else:
            sizes = {
                input_name: images.dtype[input_name].shape for input_name in images.dtype.names
            }
            specs = {spec.name: spec for spec in inputs}
            fit = set(sizes) == set(specs) and all(specs[n].fits(v) for n, v in sizes.items())
            expected = ", ".join(f"{name} {spec.expected}" for name, spec in specs.items())
            got = ", ".join(f"{name} {list(shape)}" for name, shape in sizes.items())
        return "" if fit else f"expected images {expected} as {name} takes, got {got}"


class End(Protocol):
    """The parent's end of a process that runs a job.

    Attributes:
        process: Number of the process on this machine.
    """

    @property
    def process(self) -> int: ...

    @property
    def alive(self) -> bool:
        """Whether the process still runs."""

    def poll(self, seconds: float) -> bool:
        """Whether the process says something within this time, be it that it ended."""

    def send(self, command: str, *arguments: Any) -> None:
        """Ask for something; :meth:`receive` has to come before the next."""

    def receive(self) -> Any:
        """The reply to what was asked; of loading, without being asked.

        Raises:
            EdgekitError: What the process says of it, or that it died.
        """

    def close(self) -> None:
        """End the process."""


class Worker:
    """Parent's end of a worker process; a context manager.

    Args:
        job: What it loads, and where.
        wait: Until it has loaded; else :meth:`ready` does.

    Raises:
        InvalidInputError: If the worker cannot use the model; the type that it raised.
        InvalidOptionError: If the runtime cannot take an option, or the place cannot be used.
        ExecutionError: If the runtime failed, or its process died.
    """

    loaded: Loaded

    def __init__(self, job: Job, *, wait: bool = True) -> None:
        if getattr(multiprocessing.process.current_process(), "_inheriting", False):
            raise ExecutionError(
                f"a process was started by a script that is imported only; put what the script "
                f"does under `{_GUARD}`"
            )
        self.job = job
        self._end = _end_of(job)
        try:
            if wait:
                self.ready()
        except BaseException:
            self._end.close()
            raise

    def ready(self) -> Loaded:
        """Wait until the model is loaded, if it was not yet."""
        if not hasattr(self, "loaded"):
            self.loaded = cast(Loaded, self._end.receive())
        return self.loaded

    def poll(self, seconds: float) -> bool:
        """Whether the process says something within this time, be it that it ended."""
        return self._end.poll(seconds)

    @property
    def alive(self) -> bool:
        """Whether the process still runs."""
        return self._end.alive

    @property
    def process(self) -> int:
        """Number of the process on this machine."""
        return self._end.process

    def outputs(self, images: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Real-valued outputs float32 ``[N, M]`` for raw images ``[N, ...]``, or for records of
        :func:`edgekit.data.feeds.records`; several outputs are flattened and follow each other.

        Raises:
            InvalidModelError: If an output of the job is not there, or has no batch axis.
            ExecutionError: If an output is NaN or Inf.
        """
        self.send(images)
        return self.receive()

    def send(self, images: npt.NDArray[Any]) -> None:
        """The first half of :meth:`outputs`; nothing else may be asked before the second."""
        self._end.send("outputs", images)

    def receive(self) -> npt.NDArray[np.float32]:
        """The second half of :meth:`outputs`."""
        return cast("npt.NDArray[np.float32]", self._end.receive())

    def latencies(self, image: npt.NDArray[Any], count: int) -> list[float]:
        """Milliseconds of ``count`` runs on one feed, prepared beforehand.

        Raises:
            InvalidOptionError: If times at the place mean nothing.
        """
        self.job.place.check_times()
        return cast("list[float]", self._ask("latencies", image, count))

    def peak_memory(self) -> int:
        """Largest resident size of the process so far, in bytes.

        Raises:
            InvalidOptionError: If that means nothing at the place, as times do not.
        """
        self.job.place.check_times()
        return int(self._ask("peak_memory"))

    def close(self) -> None:
        """End the process."""
        self._end.close()

    def _ask(self, command: str, *arguments: Any) -> Any:
        self._end.send(command, *arguments)
        return self._end.receive()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._end.close()


def _end_of(job: Job) -> End:
    if job.place.is_here:
        return LocalEnd(job)
    from edgekit.runtimes.remote import RemoteEnd

    return RemoteEnd(job)


class LocalEnd:
    """A process of this machine, over a pipe that pickles.

    Args:
        job: What it loads.

    Raises:
        ExecutionError: If the process died.
    """

    def __init__(self, job: Job) -> None:
        self._name = job.name
        self._stderr: IO[bytes] = tempfile.TemporaryFile()
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        self._pipe: Connection[Any, Any] = ours
        self._process = context.Process(target=_serve, args=(theirs, job), daemon=True)
        try:
            with _deaf_to_ctrl_c(), _stderr_into(self._stderr):
                self._process.start()
            theirs.close()
        except BaseException:
            self.close()
            raise

    @property
    def process(self) -> int:
        """Number of the process."""
        assert self._process.pid is not None  # it was started
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether the process still runs."""
        return self._process.is_alive()

    def poll(self, seconds: float) -> bool:
        """Whether the process says something within this time, be it that it ended."""
        return self._pipe.poll(seconds)

    def send(self, command: str, *arguments: Any) -> None:
        """Ask for something."""
        try:
            self._pipe.send((command, *arguments))
        except OSError:
            raise self._death() from None

    def receive(self) -> Any:
        """The reply."""
        try:
            kind, value = self._pipe.recv()
        except (EOFError, OSError):
            raise self._death() from None
        if kind == "error":
            error, detail = value
            error.detail = detail
            raise error
        return value

    def close(self) -> None:
        """End the process."""
        self._pipe.close()
        self._stderr.close()
        if self._process.pid is None:  # not even started
            return
        self._process.join(0.5)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def _death(self) -> ProcessDiedError:
        """Why the process is gone, as far as that can be told."""
        self._process.join(5)
        begun, written = self._written()
        how = ending(self._process.exitcode)
        script = None if begun else _script()
        if begun:
            said = last_words(written)
            error = ProcessDiedError(
                f"{self._name}: the runtime's process {how}; out of memory, or a crash in the "
                f"runtime{f'; its last words: {said}' if said else ''}"
            )
        else:
            said = last_words(written, 1) or "nothing was said"
            error = ProcessDiedError(
                f"{self._name}: the runtime's process {how} before it began: {said}"
                if script is None
                else f"{self._name}: the runtime's process starts by importing {script}, and {how} "
                f"there: {said}; put what {script} does under `{_GUARD}`"
            )
        error.detail = f"stderr of the process:\n{written}\n"
        return error

    def _written(self) -> tuple[bool, str]:
        """Whether the process began its work, and the end of what it wrote to stderr."""
        number = self._stderr.fileno()
        begun = os.pread(number, len(_BEGUN), 0) == _BEGUN
        first = max(len(_BEGUN) if begun else 0, os.fstat(number).st_size - _KEPT)
        return begun, os.pread(number, _KEPT, first).decode(errors="replace")


def ending(code: int | None) -> str:
    """How a process ended, as a part of a sentence."""
    if code is not None and code < 0:
        return f"was ended by {_signal(-code)}"
    return f"ended with code {code}"


@contextlib.contextmanager
def _deaf_to_ctrl_c() -> Iterator[None]:
    """A process started here never sees Ctrl-C, not even while Python boots in it.

    The child inherits the signal mask. Python's resource tracker is started before: it would lift
    the block. Here, Ctrl-C waits until the child has got all it needs to boot; the mask alone does
    not see to that, since the threads of a library have masks of their own.
    """
    multiprocessing.resource_tracker.ensure_running()
    held: list[int] = []
    main = threading.current_thread() is threading.main_thread()
    handler = signal.signal(signal.SIGINT, lambda number, _: held.append(number)) if main else None
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if main:
            signal.signal(signal.SIGINT, handler)
    if held and callable(handler):
        handler(signal.SIGINT, None)


_starting = threading.Lock()


@contextlib.contextmanager
def _stderr_into(file: IO[bytes]) -> Iterator[None]:
    """A process started here writes its stderr into a file, from Python's first word on.

    Runtimes write notes there as they load, and stderr is for the user; the end of it is what
    there is to say of a process that dies. What other threads of this process say meanwhile is
    lost.
    """
    with _starting:
        try:
            saved = os.dup(2)
        except OSError:  # there is no stderr
            yield
            return
        try:
            sys.stderr.flush()
            os.dup2(file.fileno(), 2)
            yield
        finally:
            os.dup2(saved, 2)
            os.close(saved)


def _script() -> str | None:
    """The user's script, which every started process imports; None where it is edgekit's own."""
    path: str | None = getattr(sys.modules.get("__main__"), "__file__", None)
    if path is None or Path(path).resolve().is_relative_to(Path(__file__).resolve().parents[1]):
        return None
    return os.path.basename(path)


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _serve(pipe: Connection[Any, Any], job: Job) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.ftruncate(2, 0)  # what was written while Python imported things has done no harm
    os.lseek(2, 0, os.SEEK_SET)
    os.write(2, _BEGUN)
    try:
        runner, loaded = opened(job)
        pipe.send(("done", loaded))
        commands: dict[str, Callable[..., Any]] = {
            "outputs": outputs,
            "latencies": latencies,
            "peak_memory": peak_memory,
        }
        while True:
            command, *arguments = pipe.recv()
            pipe.send(("done", commands[command](runner, job, *arguments)))
    except EOFError:
        return
    except (InvalidInputError, InvalidOptionError) as exc:
        _send_error(pipe, type(exc)(f"{job.name}: {exc}"))
    except EdgekitError as exc:
        _send_error(pipe, ExecutionError(f"{job.name}: {exc}"))
    except Exception as exc:  # whatever a runtime raises has to reach the parent as one line
        _send_error(pipe, ExecutionError(f"{job.name}: {type(exc).__name__}: {reason(exc)}"))


def _send_error(pipe: Connection[Any, Any], error: EdgekitError) -> None:
    """An error, with what the parent can show of where it came from."""
    pipe.send(("error", (error, f"in the runtime's process:\n{traceback.format_exc()}")))


def opened(job: Job) -> tuple[Runner, Loaded]:
    """Load a job's model in this process; what was seen of it."""
    _import_runtime(job.format)
    baseline = _largest_resident()
    started = time.perf_counter()
    runner = open_runner(
        job.model,
        format=job.format,
        threads=job.threads,
        options=job.options,
        batch=job.batch,
        device=job.device,
        precision=job.precision,
        trust=job.trust,
        shapes=job.shapes,
    )
    load_ms = 1e3 * (time.perf_counter() - started)
    loaded = Loaded(
        load_ms,
        baseline,
        runner.describe(),
        runner.signature,
        runner.parameters,
        metrics=dict(runner.metrics),
    )
    return runner, loaded


def _import_runtime(format: str) -> None:
    if format == "keras":
        from edgekit.sources.keras import tf_keras

        tf_keras()
    elif format == "saved_model":
        from edgekit.sources.keras import tensorflow

        tensorflow()
    elif format == "onnx":
        try:
            import onnxruntime  # noqa: F401
        except ImportError:
            raise MissingDependencyError("onnxruntime", "runtime") from None
    else:
        try:
            import ai_edge_litert.interpreter  # noqa: F401
        except ImportError:
            raise MissingDependencyError("ai-edge-litert", "runtime") from None


def outputs(runner: Runner, job: Job, images: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """As :meth:`Worker.outputs`, of a runner of this process."""
    inputs, specs = runner.signature.inputs, _asked(runner.signature.outputs, job)
    feed = _feed(inputs, job, images)
    if runner.batch == 1:
        runs = [runner.run(each) for each in feeds.one_by_one(feed, inputs)]
        specs = [  # without a batch axis all of it is of one sample
            replace(spec, batched=spec.batched and runs[0][spec.name].shape[:1] == (1,))
            for spec in specs
        ]
    else:
        runs = _in_batches(runner, feed, specs, len(images))
    try:
        whole = feeds.joined(runs, specs)
    except InvalidModelError as exc:
        raise InvalidModelError(f"{job.name}: {exc}") from None
    whole = {n: np.moveaxis(v, -1, 1) if n in job.turned else v for n, v in whole.items()}
    count = len(images)
    values: npt.NDArray[np.float32] = np.concatenate(
        [spec.dequantize(whole[spec.name][:count]).reshape(count, -1) for spec in specs], axis=1
    )
    if not np.isfinite(values).all():
        first = int(np.argwhere(~np.isfinite(values))[0][0])
        raise ExecutionError(f"the output for image {first} of the shard is NaN or Inf")
    return values


def _in_batches(
    runner: Any, feed: dict[str, npt.NDArray[Any]], outputs: Sequence[TensorSpec], count: int
) -> list[dict[str, npt.NDArray[Any]]]:
    """Outputs for several samples in each run; the last run of a model of a fixed batch is filled
    up with the last sample."""
    fixed = runner.signature.batch != -1
    missing = -count % runner.batch if fixed else 0
    if missing:
        feed = {n: np.concatenate([v, np.repeat(v[-1:], missing, axis=0)]) for n, v in feed.items()}
    total, runs = count + missing, []
    for start in range(0, total, runner.batch):
        stop = min(start + runner.batch, total)
        each = runner.run({name: values[start:stop] for name, values in feed.items()})
        for spec in outputs:
            if each[spec.name].shape[:1] != (stop - start,):
                raise InvalidModelError(
                    f"expected one value of {spec.name} for each of {stop - start} samples, got "
                    f"shape {list(each[spec.name].shape)}; give the output a batch axis"
                )
        runs.append(each)
    return runs


def _feed(
    inputs: Sequence[TensorSpec], job: Job, images: npt.NDArray[Any]
) -> dict[str, npt.NDArray[Any]]:
    """What each input stores, for images or records."""
    feed = {}
    for spec in inputs:
        values = images if images.dtype.names is None else images[spec.name]
        values = job.preprocessing.apply(values) if spec.is_real else values
        feed[spec.name] = np.ascontiguousarray(spec.quantize(spec.arrange(values)))
    return feed


def _asked(outputs: Sequence[TensorSpec], job: Job) -> list[TensorSpec]:
    """The outputs that are asked for, in order."""
    known = {spec.name: spec for spec in outputs}
    if job.outputs and set(job.outputs) != set(known):
        raise InvalidModelError(
            f"expected the outputs {', '.join(job.outputs)}, got {', '.join(known)}; compare what "
            f"was exported from one model"
        )
    return [known[name] for name in job.outputs or known]


def latencies(runner: Runner, job: Job, images: npt.NDArray[Any], count: int) -> list[float]:
    """As :meth:`Worker.latencies`, of a runner of this process."""
    specs = runner.signature.inputs
    feed = _feed(specs, job, images)
    if runner.batch == 1:
        feed = next(feeds.one_by_one(feed, specs))
    run = runner.prepared(feed)
    samples = []
    for _ in range(count):
        started = time.perf_counter_ns()
        run()
        samples.append((time.perf_counter_ns() - started) / 1e6)
    return samples


def peak_memory(runner: Runner, job: Job) -> int:
    """As :meth:`Worker.peak_memory`, of this process."""
    return _largest_resident()


def _largest_resident() -> int:
    """Bytes, from the kernel's high-water mark of this program.

    ``ru_maxrss`` is no substitute on Linux: it survives exec, so that a process started by a large
    one would report the size of its parent.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    import resource  # macOS and other POSIX systems

    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else 1024 * largest
