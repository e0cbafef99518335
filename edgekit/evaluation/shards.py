"""Shards: the outputs of one model for a set of samples, divided into ranges and kept on disk.

A shard is a range of samples of one run. A run is the bytes of the model and of the data, and the
settings of the runtime. Each shard is one file, written through a temporary sibling and renamed, so
that a run that was killed can continue. A file says which run and which range it holds and where it
was computed; its first line is the sha256 of the rest. A file that does not fit is computed again,
with a warning. Memory does not grow with the number of samples: outputs go to disk and are read
back as a mapped array.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any, Self

import numpy as np
import numpy.typing as npt

from edgekit.base import outputs, schema
from edgekit.base.blocks import let_go
from edgekit.base.errors import EdgekitError, ExecutionError, InvalidModelError, InvalidOptionError
from edgekit.base.progress import SILENT, Progress
from edgekit.graph import onnx
from edgekit.records import environment
from edgekit.records.encodings import FAKE_QUANT_FILE
from edgekit.records.results import Environment, Place, Runtime
from edgekit.records.signature import Preprocessing
from edgekit.runtimes.places import HERE
from edgekit.runtimes.worker import Job, Worker
from edgekit.sources import saved_model

fcntl: Any
try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None

SCHEMA_VERSION = 1
#: Samples in a shard. A multiple of every runtime's own batch.
IMAGES = 250
#: Runs in the cache that nobody came back to are removed after this many days.
KEEP_DAYS = 7
_LOCK = "lock"


@dataclass(frozen=True)
class Run:
    """What the outputs depend on, but for the machine.

    Attributes:
        name: Name of the artifact.
        files: SHA-256 of the files that the runtime loads.
        data: SHA-256 of images and labels.
        count: Number of samples.
        shard: Samples in a shard.
        batch: Samples in a run of the runtime; None for its own choice.
        device: Worker resource that it has to run on; empty for any.
        runner: What computes, and in which policy, as ``cuda:float32``.
        gpu: Name and driver of the GPU that it runs on here; empty for a CPU.
        outputs: Names of the outputs, if there are several, in the order in which they are kept.
        shapes: Sizes of inputs with free axes.
        at: The place that it runs at; empty for this machine.
    """

    name: str
    files: dict[str, str]
    data: str
    count: int
    shard: int
    format: str
    preprocessing: Preprocessing
    threads: int
    options: dict[str, str]
    batch: int | None
    device: str = ""
    runner: str = "cpu:float32"
    gpu: str = ""
    outputs: tuple[str, ...] = ()
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    at: str = ""

    @classmethod
    def of(cls, job: Job, *, data: str, count: int, shard: int, device: str = "") -> Run:
        """The run of a worker's job over a data set."""
        gpu = environment.gpu() if job.device in ("cuda", "gpu") else None
        return cls(
            name=job.name,
            files={path.name: saved_model.sha256_of(path) for path in model_files(job)},
            data=data,
            count=count,
            shard=shard,
            format=job.format,
            preprocessing=job.preprocessing,
            threads=job.threads,
            options=dict(job.options),
            batch=job.batch,
            device=device,
            runner=f"{job.device}:{job.precision}",
            gpu=f"{gpu.name}, driver {gpu.driver}" if gpu else "",
            outputs=job.outputs,
            shapes=dict(job.shapes or {}),
            at="" if job.place == HERE else job.place.word,
        )

    @property
    def key(self) -> str:
        """SHA-256 of all of it."""
        return hashlib.sha256(schema.dumps(self).encode()).hexdigest()

    def stop(self, start: int) -> int:
        """End of the shard that begins at ``start``."""
        return min(start + self.shard, self.count)


@dataclass(frozen=True)
class _Header:
    """What a shard's file says of itself.

    Attributes:
        run: Key of the run.
        shape: Shape of the outputs, samples first.
        place: Where it was made.
    """

    run: str
    start: int
    shape: tuple[int, ...]
    runtime: Runtime
    place: Place
    schema_version: int = SCHEMA_VERSION


def model_files(job: Job) -> list[Path]:
    """The model's file or folder, and what belongs to it beside it: a Keras model's recipe of fake
    quantization, the weights of an ONNX file."""
    if job.format == "onnx":
        return [job.model, *onnx.beside(job.model)]
    recipe = job.model.with_name(FAKE_QUANT_FILE)
    return [job.model, *([recipe] if job.format == "keras" and recipe.is_file() else [])]


def this_place(machine: Environment, device: str = "") -> Place:
    """This machine as a shard names it."""
    return Place(socket.gethostname(), device, machine.machine_class, machine.isa, machine.versions)


def alike(one: Place, other: Place) -> bool:
    """Whether two places give the same outputs: the same CPU, ISA and package versions."""
    return one.machine_class == other.machine_class and one.versions == other.versions


class Shards:
    """The shards of one run: those that are done, and room for the rest.

    Attributes:
        todo: Where the shards begin that are still to be run, in order.
        resumed: How many were done before.
        broken: Why files that were there are not used, a sentence each.
        runtime: What executed the model; None until a shard is there.
    """

    def __init__(self, folder: Path, run: Run, accepts: Callable[[Place], bool]) -> None:
        self.folder = folder
        self.run = run
        self.key = run.key
        self.runtime: Runtime | None = None
        self.broken: list[str] = []
        self._places: list[Place] = []
        self._done: set[int] = set()
        self._shape: tuple[int, ...] | None = None
        self._lock = threading.Lock()
        # Without a name: it is gone with this process, however that ends.
        self._values: IO[bytes] = tempfile.TemporaryFile(dir=folder)
        for start in range(0, run.count, run.shard):
            path = self.path(start)
            if not path.exists():
                continue
            try:
                header, values = self._read(path, start)
            except ValueError as exc:
                self.broken.append(f"{path.name} of {run.name} is broken ({exc}); it runs again")
                continue
            if accepts(header.place):
                self._take(start, values, header.runtime, header.place)
            else:
                self.broken.append(
                    f"{path.name} of {run.name} was made on another kind of machine or with other "
                    f"versions ({header.place.host}); it runs again"
                )
        self.resumed = len(self._done)
        self.todo = [s for s in range(0, run.count, run.shard) if s not in self._done]

    @property
    def done(self) -> int:
        """Samples whose outputs were there before."""
        return self.run.count - sum(self.run.stop(start) - start for start in self.todo)

    @property
    def total(self) -> int:
        """How many shards the run has."""
        return -(-self.run.count // self.run.shard)

    def path(self, start: int) -> Path:
        """File of the shard that begins at ``start``."""
        return self.folder / f"{start:010d}.shard"

    def put(
        self, start: int, values: npt.NDArray[np.float32], runtime: Runtime, place: Place
    ) -> bool:
        """Keep one shard; False if it is there already, which changes nothing.

        Raises:
            ExecutionError: If there are not finite outputs for every sample.
            InvalidModelError: If outputs differ in shape from the shard before.
        """
        count = self.run.stop(start) - start
        if len(values) != count or not np.isfinite(values).all():
            raise ExecutionError(
                f"{self.run.name}: expected finite outputs for {count} samples from {start}, "
                f"got {len(values)}, or NaN among them"
            )
        with self._lock:
            if start in self._done:
                return False
        content = np.ascontiguousarray(values, "<f4").tobytes()
        header = _Header(self.key, start, values.shape, runtime, replace(place, shards=1))
        body = schema.dumps(header, indent=None).encode() + b"\n" + content
        digest = hashlib.sha256(body).hexdigest().encode()
        outputs.write_bytes(self.path(start), digest + b"\n" + body, force=True, sync=False)
        return self._take(start, values, runtime, place)

    def outputs(self) -> npt.NDArray[np.float32]:
        """All outputs in the order of the samples, mapped from disk.

        Raises:
            ExecutionError: If a shard is missing.
        """
        missing = self.total - len(self._done)
        if missing or self._shape is None:
            raise ExecutionError(
                f"{self.run.name}: {missing} of {self.total} shards are missing; run it again, "
                f"the others are kept"
            )
        shape = (self.run.count, *self._shape)
        return np.memmap(self._values, "<f4", "r", shape=shape)

    def places(self) -> tuple[Place, ...]:
        """Where shards were made, each with how many."""
        return tuple(self._places)

    def close(self) -> None:
        """Let go of the file of outputs; a mapped array of it stays good."""
        self._values.close()

    def _read(self, path: Path, start: int) -> tuple[_Header, npt.NDArray[np.float32]]:
        """One file, checked.

        Raises:
            ValueError: If anything is not as it was written.
        """
        digest, newline, body = path.read_bytes().partition(b"\n")
        if not newline or hashlib.sha256(body).hexdigest().encode() != digest:
            raise ValueError("its sha256 is not the one it begins with")
        text, _, content = body.partition(b"\n")
        try:
            header = schema.from_json(_Header, json.loads(text))
        except EdgekitError as exc:
            raise ValueError(str(exc)) from None
        count = self.run.stop(start) - start
        expected = (SCHEMA_VERSION, self.key, start, (count,))
        if (header.schema_version, header.run, header.start, header.shape[:1]) != expected:
            raise ValueError("it holds other images or another run")
        values = np.frombuffer(content, "<f4").reshape(header.shape)
        if not np.isfinite(values).all():
            raise ValueError("it holds NaN or Inf")
        return header, values

    def _take(
        self, start: int, values: npt.NDArray[np.float32], runtime: Runtime, place: Place
    ) -> bool:
        row = values.shape[1:]
        with self._lock:
            if start in self._done:
                return False
            if self._shape is None:
                self._shape = row
            if row != self._shape:
                raise InvalidModelError(
                    f"{self.run.name}: expected outputs {list(self._shape)} as before, "
                    f"got {list(row)} for the samples from {start}"
                )
            size = 4 * int(np.prod(row, dtype=np.int64))
            self._values.seek(start * size)
            self._values.write(np.ascontiguousarray(values, "<f4").tobytes())
            self._values.flush()
            self._done.add(start)
            self.runtime = self.runtime or runtime
            for i, known in enumerate(self._places):
                if replace(known, shards=0) == replace(place, shards=0):
                    self._places[i] = replace(known, shards=known.shards + 1)
                    break
            else:
                self._places.append(replace(place, shards=1))
        return True


class Work:
    """The folder that keeps the shards of a comparison; a context manager.

    A folder that was given stays. Without one the user's cache is used: what a run left behind is
    taken up, and removed once a comparison is whole.

    Args:
        folder: Where to keep shards; None for the cache.
        progress: Hears which shards were done before, and which run again.

    Raises:
        InvalidOptionError: If the folder is a file, or another process works in it.
    """

    def __init__(self, folder: Path | None, progress: Progress = SILENT) -> None:
        self._given = folder
        self._progress = progress
        self._root = cache_folder() if folder is None else folder
        self._opened: list[Shards] = []
        self._stack = contextlib.ExitStack()
        if folder is not None and folder.exists() and not folder.is_dir():
            raise InvalidOptionError(f"{folder} is a file; expected a folder to keep shards in")
        if folder is not None and fcntl is None:
            raise InvalidOptionError(
                "--work needs locks of files, which Python has on POSIX systems only; leave it out"
            )

    def open(self, run: Run, accepts: Callable[[Place], bool]) -> Shards:
        """The shards of a run, with those taken over that were done; says so.

        Args:
            run: What is run.
            accepts: Whether a shard made at a place may be used.
        """
        folder = self._locked(run)
        store = Shards(folder, run, accepts)
        self._stack.callback(store.close)
        self._opened.append(store)
        for line in store.broken:
            self._progress.say(f"warning: {line}")
        if store.resumed:
            self._progress.say(
                f"{run.name}: {store.resumed} of {store.total} shards were done, in {folder}"
            )
        return store

    @property
    def resumed(self) -> int:
        """How many shards were done before, of all runs."""
        return sum(each.resumed for each in self._opened)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self._given is None:
            for each in self._opened:
                if error[0] is None or not any(each.folder.glob("*.shard")):
                    shutil.rmtree(each.folder, ignore_errors=True)
        self._stack.close()

    def _locked(self, run: Run) -> Path:
        """The run's folder, for this process alone."""
        folder = self._root / run.key[:32]
        if fcntl is None:
            self._progress.say(
                f"{run.name}: shards are not kept, this system has no locks of files"
            )
            return Path(self._stack.enter_context(tempfile.TemporaryDirectory()))
        try:
            path = folder / _LOCK
            while True:
                folder.mkdir(parents=True, exist_ok=True)
                lock = self._stack.enter_context(path.open("a"))
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if path.exists() and os.path.samestat(path.stat(), os.fstat(lock.fileno())):
                    break  # else the run before removed the folder just now
            if self._given is None:
                _remove_old(self._root)
            return folder
        except OSError as exc:
            if self._given is None:  # in use, or no cache to write to: this run is not kept
                return Path(self._stack.enter_context(tempfile.TemporaryDirectory()))
            if isinstance(exc, BlockingIOError):
                raise InvalidOptionError(
                    f"{folder} is in use by another comparison; wait for it or pass another --work"
                ) from None
            raise


def cache_folder() -> Path:
    """Where shards are kept without ``--work``: ``$XDG_CACHE_HOME/edgekit/shards``."""
    return outputs.cache("shards")


def _remove_old(root: Path) -> None:
    """Runs that nobody came back to, unless a process is at work there."""
    before = time.time() - 86400 * KEEP_DAYS
    for folder in root.iterdir():
        lock = folder / _LOCK
        if lock.is_file() and folder.stat().st_mtime < before:
            with lock.open("a") as stream, contextlib.suppress(OSError):
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)


def evaluate(
    shards: Shards,
    worker: Worker,
    images: npt.NDArray[Any],
    *,
    processes: int,
    place: Place,
    advance: Callable[[int], Any],
) -> npt.NDArray[np.float32]:
    """Run what is still to do on this machine.

    Args:
        shards: Shards of the worker's job.
        worker: Takes shards from the start; the others join in as soon as they have loaded.
        images: All of them, in memory or mapped.
        processes: How many work at once at the most.
        place: This machine.
        advance: Told how many samples were evaluated, as they are.

    Returns:
        All outputs ``[N, ...]``, mapped from disk.
    """
    starts = list(shards.todo)
    advance(shards.done)
    failures: list[BaseException] = []
    lock = threading.Lock()

    def next_images() -> Iterator[tuple[int, npt.NDArray[Any]]]:
        while not failures:
            with lock:
                if not starts:
                    return
                start = starts.pop(0)
            block = np.array(images[start : shards.run.stop(start)])
            let_go(images)
            yield start, block

    def work(through: Worker) -> None:
        """The next samples are on their way before the last outputs are put down."""
        try:
            runtime = through.ready().runtime
            upcoming = next_images()
            sent = next(upcoming, None)
            if sent is not None:
                through.send(sent[1])
            while sent is not None:
                values = through.receive()
                following = next(upcoming, None)
                if following is not None:
                    through.send(following[1])
                shards.put(sent[0], values, runtime, place)
                with lock:
                    advance(len(values))
                sent = following
        except BaseException as exc:
            failures.append(exc)

    def join_in(other: Worker) -> None:
        while not other.poll(0.05):
            if not starts or failures:
                return
        work(other)

    with contextlib.ExitStack() as stack:
        more = min(processes, len(starts)) - 1
        others = [stack.enter_context(Worker(worker.job, wait=False)) for _ in range(more)]
        threads = [threading.Thread(target=join_in, args=(o,), daemon=True) for o in others]
        for thread in threads:
            thread.start()
        work(worker)
        for thread in threads:
            thread.join()
    if failures:
        raise failures[0]
    return shards.outputs()


def local(machine: Environment) -> Callable[[Place], bool]:
    """Takes the shards that this machine could have made."""
    here = this_place(machine)
    return lambda place: alike(place, here)


def processes_for(threads: int) -> int:
    """As many as fit on the cores."""
    return max(1, environment.cores() // threads)
