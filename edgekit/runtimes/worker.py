"""A runner in a process of its own: runtimes do not meet, and memory is one model's.

The parent stays free of frameworks. Workers ignore Ctrl-C, which reaches the whole terminal
group; the parent ends them.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.resource_tracker
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Self, cast

import numpy as np
import numpy.typing as npt

from edgekit.artifact import Artifact
from edgekit.errors import (
    EdgekitError,
    ExecutionError,
    InvalidInputError,
    InvalidModelError,
    InvalidOptionError,
    MissingDependencyError,
    reason,
)
from edgekit.results import Runtime
from edgekit.runtimes import open_runner
from edgekit.signature import Preprocessing, Signature, TensorSpec


@dataclass(frozen=True)
class Job:
    """What a worker loads.

    Attributes:
        name: For error messages.
        batch: Images a run; None for what the runtime does best.
        device: As :func:`edgekit.runtimes.open_runner` takes it.
        precision: Policy of a Keras model's layers.
        trust: Let code inside of the model run, as :func:`edgekit.runtimes.open_runner` says.
        outputs: Names of the outputs to answer with, in order; empty for all as the file has them.
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

    @classmethod
    def of(cls, artifact: Artifact, *, threads: int, batch: int | None = None) -> Job:
        """The job that runs an artifact as its manifest says."""
        manifest = artifact.manifest
        return cls(
            artifact.name,
            artifact.model_path,
            manifest.format,
            manifest.preprocessing,
            threads,
            manifest.runtime_options,
            batch,
        )


@dataclass(frozen=True)
class Loaded:
    """What a worker says after loading.

    Attributes:
        load_ms: From the file to a model that can run, without imports.
        baseline_memory: Largest resident size before loading, in bytes: Python and the runtime.
        signature: As the model's file has it.
        parameters: As :class:`edgekit.runtimes.Runner` has it.
    """

    load_ms: float
    baseline_memory: int
    runtime: Runtime
    signature: Signature
    parameters: int | None = None

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
            expected: Any = list(inputs[0].picture)
            got: Any = list(images.shape[1:])
        else:
            sizes = {each: images.dtype[each].shape for each in images.dtype.names}
            known = {spec.name: spec for spec in inputs}
            fit = set(sizes) == set(known) and all(known[n].fits(v) for n, v in sizes.items())
            expected = {name: list(spec.picture) for name, spec in known.items()}
            got = {name: list(found) for name, found in sizes.items()}
        return "" if fit else f"expected images {expected} as {name} takes, got {got}"


class Worker:
    """Parent's end of a worker process; a context manager.

    Args:
        job: What it loads.
        wait: Until it has loaded; else :meth:`ready` does.

    Raises:
        InvalidInputError: If the worker cannot use the model; the type that it raised.
        InvalidOptionError: If the runtime cannot take an option.
        ExecutionError: If the runtime failed, or its process died.
    """

    loaded: Loaded

    def __init__(self, job: Job, *, wait: bool = True) -> None:
        self.job = job
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        self._pipe: Connection[Any, Any] = ours
        self._process = context.Process(target=_serve, args=(theirs, job), daemon=True)
        try:
            with _deaf_to_ctrl_c():
                self._process.start()
            theirs.close()
            if wait:
                self.ready()
        except BaseException:
            self._end()
            raise

    def ready(self) -> Loaded:
        """Wait until the model is loaded, if it was not yet."""
        if not hasattr(self, "loaded"):
            self.loaded = cast(Loaded, self._receive())
        return self.loaded

    def poll(self, seconds: float) -> bool:
        """Whether the process says something within this time, be it that it ended."""
        return self._pipe.poll(seconds)

    @property
    def alive(self) -> bool:
        """Whether the process still runs."""
        return self._process.is_alive()

    @property
    def process(self) -> int:
        """Number of the process."""
        assert self._process.pid is not None  # it has answered
        return self._process.pid

    def outputs(self, images: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Real-valued answers float32 ``[N, M]`` for raw images ``[N, ...]``, or for records of
        :func:`edgekit.feeds.records`; several outputs are flattened and follow each other.

        Raises:
            InvalidModelError: If an output of the job is not there, or has no batch axis.
            ExecutionError: If an answer is NaN or Inf.
        """
        self.send(images)
        return self.receive()

    def send(self, images: npt.NDArray[Any]) -> None:
        """The first half of :meth:`outputs`; nothing else may be asked before the second."""
        self._send("outputs", images)

    def receive(self) -> npt.NDArray[np.float32]:
        """The second half of :meth:`outputs`."""
        return cast("npt.NDArray[np.float32]", self._receive())

    def latencies(self, image: npt.NDArray[Any], count: int) -> list[float]:
        """Milliseconds of ``count`` runs on one feed, prepared beforehand."""
        return cast("list[float]", self._ask("latencies", image, count))

    def peak_memory(self) -> int:
        """Largest resident size of the process so far, in bytes."""
        return int(self._ask("peak_memory"))

    def close(self) -> None:
        """End the process."""
        self._end()

    def _ask(self, command: str, *arguments: Any) -> Any:
        self._send(command, *arguments)
        return self._receive()

    def _send(self, command: str, *arguments: Any) -> None:
        try:
            self._pipe.send((command, *arguments))
        except OSError:
            raise self._death() from None

    def _receive(self) -> Any:
        try:
            kind, value = self._pipe.recv()
        except (EOFError, OSError):
            raise self._death() from None
        if kind == "error":
            raise value
        return value

    def _death(self) -> ExecutionError:
        self._process.join(5)
        return ExecutionError(
            f"{self.job.name}: the runtime's process ended with code {self._process.exitcode}; "
            f"out of memory, or a crash in the runtime"
        )

    def _end(self) -> None:
        self._pipe.close()
        if self._process.pid is None:  # not even started
            return
        self._process.join(0.5)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._end()


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


def _serve(pipe: Connection[Any, Any], job: Job) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Runtimes write notes to stderr as they load; stderr is for the user.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    try:
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
        )
        load_ms = 1e3 * (time.perf_counter() - started)
        loaded = Loaded(load_ms, baseline, runner.describe(), runner.signature, runner.parameters)
        pipe.send(("done", loaded))
        commands: dict[str, Callable[..., Any]] = {
            "outputs": _outputs,
            "latencies": _latencies,
            "peak_memory": _peak_memory,
        }
        while True:
            command, *arguments = pipe.recv()
            pipe.send(("done", commands[command](runner, job, *arguments)))
    except EOFError:
        return
    except (InvalidInputError, InvalidOptionError) as exc:
        pipe.send(("error", type(exc)(f"{job.name}: {exc}")))
    except EdgekitError as exc:
        pipe.send(("error", ExecutionError(f"{job.name}: {exc}")))
    except Exception as exc:  # whatever a runtime raises has to reach the parent as one line
        pipe.send(("error", ExecutionError(f"{job.name}: {type(exc).__name__}: {reason(exc)}")))


def _import_runtime(format: str) -> None:
    if format == "keras":
        from edgekit.formats.keras import tf_keras

        tf_keras()
    elif format == "saved_model":
        from edgekit.formats.keras import tensorflow

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


def _outputs(runner: Any, job: Job, images: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    feed = _feed(runner.signature.inputs, job, images)
    ends = _ends(runner.signature.outputs, job)
    fixed = any(spec.shape[0] != -1 for spec in runner.signature.inputs)
    missing = -len(images) % runner.batch if fixed else 0
    if missing:  # a model of a fixed batch: its last run is filled up with the last image
        feed = {n: np.concatenate([v, np.repeat(v[-1:], missing, axis=0)]) for n, v in feed.items()}
    total = len(images) + missing
    answers = []
    for start in range(0, total, runner.batch):
        stop = min(start + runner.batch, total)
        each = runner.run({name: values[start:stop] for name, values in feed.items()})
        for end in ends:
            if each[end.name].shape[:1] != (stop - start,):
                raise InvalidModelError(
                    f"expected an answer of {end.name} for each of {stop - start} samples, got "
                    f"shape {list(each[end.name].shape)}; give the output a batch axis"
                )
        answers.append(each)
    parts = [
        end.dequantize(np.concatenate([each[end.name] for each in answers])[: len(images)])
        for end in ends
    ]
    found: npt.NDArray[np.float32] = np.concatenate(
        [part.reshape(len(images), -1) for part in parts], axis=1
    )
    if not np.isfinite(found).all():
        first = int(np.argwhere(~np.isfinite(found))[0][0])
        raise ExecutionError(f"the answer to image {first} of the shard is NaN or Inf")
    return found


def _feed(
    specs: Sequence[TensorSpec], job: Job, images: npt.NDArray[Any]
) -> dict[str, npt.NDArray[Any]]:
    """What each input stores, for images or records."""
    found = {}
    for spec in specs:
        values = images if images.dtype.names is None else images[spec.name]
        values = spec.arrange(job.preprocessing.apply(values)) if spec.is_real else values
        found[spec.name] = np.ascontiguousarray(spec.quantize(values))
    return found


def _ends(specs: Sequence[TensorSpec], job: Job) -> list[TensorSpec]:
    """The outputs that are asked for, in order."""
    known = {spec.name: spec for spec in specs}
    if job.outputs and set(job.outputs) != set(known):
        raise InvalidModelError(
            f"expected the outputs {', '.join(job.outputs)}, got {', '.join(known)}; compare what "
            f"was exported from one model"
        )
    return [known[name] for name in job.outputs or known]


def _latencies(runner: Any, job: Job, images: npt.NDArray[Any], count: int) -> list[float]:
    run = runner.prepared(_feed(runner.signature.inputs, job, images))
    samples = []
    for _ in range(count):
        started = time.perf_counter_ns()
        run()
        samples.append((time.perf_counter_ns() - started) / 1e6)
    return samples


def _peak_memory(runner: Any, job: Job) -> int:
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
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else 1024 * largest
