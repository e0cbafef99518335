"""Shards on the workers of a Dask cluster; each worker runs the artifacts of its device.

::

    dask scheduler
    dask worker tcp://10.0.0.2:8786 --nthreads 1 --resources "device:pi5=1"

A worker resource names a device. The model's bytes and each range of images travel once to a worker
that needs them, and their sha256 is checked there. A task is one shard; it says where it ran.
Whatever becomes of a worker, a shard counts once: results are kept by run and range, and what a
worker took with it is handed out again. Needs edgekit of the same version on all workers, and the
extra ``fleet``.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import hashlib
import logging
import math
import multiprocessing
import queue
import re
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from edgekit.base import outputs, words
from edgekit.base.blocks import let_go
from edgekit.base.errors import (
    EdgekitError,
    ExecutionError,
    InvalidDataError,
    InvalidInputError,
    InvalidOptionError,
    MissingDependencyError,
    ProcessDiedError,
    reason,
)
from edgekit.base.version import __version__
from edgekit.evaluation.shards import Shards, alike, model_files, this_place
from edgekit.records import environment
from edgekit.records.results import Environment, Place, Runtime
from edgekit.runtimes.worker import Job, Worker

#: Device profiles that any machine runs.
_ANYWHERE = ("", "generic", "auto")
ANY, LOCAL = "any", "local"
#: Seconds to wait for the scheduler and the first worker.
CONNECT = 15.0
#: Seconds that shards may wait for a worker that could run them, after the last one has gone.
GRACE = 60.0
#: Seconds for the outputs of one shard to come from the worker that has them.
FETCH = 10.0
#: How often a shard is handed out again when a runtime crashes or a worker takes it along.
RETRIES = 3
#: Loaded models that a worker keeps while it has no shard for them, and for how many seconds.
OPEN_MODELS = 4
IDLE = 30.0


def assignment(text: str) -> tuple[str, str]:
    """argparse type of ``--resources``: ``ARTIFACT=RESOURCE``."""
    name, equals, resource = text.partition("=")
    if not (name and equals and resource):
        raise argparse.ArgumentTypeError(
            f"expected ARTIFACT=RESOURCE as a=device:pi5, got {text!r}"
        )
    return name, resource


def assigned(pairs: list[tuple[str, str]] | None) -> dict[str, str]:
    """The ``--resources`` of a command line.

    Raises:
        InvalidOptionError: If an artifact is named twice.
    """
    resources = dict(pairs or [])
    if len(resources) != len(pairs or []):
        raise InvalidOptionError("--resources names an artifact twice; give it one resource")
    return resources


def devices(
    names: Sequence[str],
    profiles: Mapping[str, str],
    resources: Mapping[str, str],
    *,
    cluster: str | None,
) -> dict[str, str]:
    """Which models go to the cluster, and the worker resource that each needs there.

    Args:
        names: Names of all models, the float model first; it stays here unless ``resources`` names
            it.
        profiles: Device profile of the artifacts; one that is not ``generic`` asks for the resource
            ``device:PROFILE``.
        resources: What the user says: a resource, ``any`` or ``local``, by name.
        cluster: Address of the scheduler, or None.

    Returns:
        Resource by name, empty for any worker.

    Raises:
        InvalidOptionError: If a name is unknown, or there is no cluster to have resources.
    """
    if resources and cluster is None:
        raise InvalidOptionError(
            "--resources is about the workers of a cluster; pass --cluster too"
        )
    for name in resources:
        if name not in names:
            raise InvalidOptionError(
                f"--resources names {name!r}, which is not compared; expected one of "
                f"{', '.join(names)}{words.near(name, names)}"
            )
    if cluster is None:
        return {}
    needed = {}
    for name in names:
        profile = profiles.get(name)
        if profile is None:
            default = LOCAL
        else:
            default = ANY if profile in _ANYWHERE else f"device:{profile}"
        resource = resources.get(name, default)
        if resource != LOCAL:
            needed[name] = "" if resource == ANY else resource
    return needed


def noted(runtime: Runtime, shards: Shards) -> Runtime:
    """What ran, with a sentence on where, and on what was not measured there."""
    where = ", ".join(
        f"{place.shards} on {place.host}" + (f" ({place.device})" if place.device else "")
        for place in shards.places()
    )
    note = (
        f"shards by worker: {where}; latency, load time and memory are measured on the machine of "
        f"the report only and left out here"
    )
    return replace(runtime, notes=(*runtime.notes, note))


@dataclass(frozen=True)
class Task:
    """What a worker is told of one shard, beside the bytes.

    Attributes:
        files: SHA-256 of the model's files, by name.
        images: SHA-256 of the range's bytes.
        job: How to run it; its model path means the file's name only.
        device: Worker resource that it has to run on; empty for any.
        version: Version of the edgekit that asks.
    """

    files: dict[str, str]
    images: str
    job: Job
    device: str
    version: str


@dataclass(frozen=True)
class ShardResult:
    """What a worker says of one shard.

    Attributes:
        outputs: float32 ``[N, ...]``; None with a problem.
        runtime: What executed the model; None with a problem.
        place: Where it ran.
        problem: An error that would come again on any worker.
    """

    outputs: npt.NDArray[np.float32] | None
    runtime: Runtime | None
    place: Place
    problem: EdgekitError | None = None


@dataclass(frozen=True)
class _Out:
    """A shard that is out on a worker.

    Attributes:
        shards: Shards of its run.
        job: How the run's model is loaded.
        model: Its bytes on the cluster.
        start: The first sample.
        tries: How often the scheduler lost it before.
    """

    shards: Shards
    job: Job
    model: Any
    start: int
    tries: int = 0


@dataclass
class _Range:
    """Samples on the cluster, for the shards that need them.

    Attributes:
        samples: The future that holds them.
        sha256: Of their bytes.
        out: How many shards of it are out.
    """

    samples: Any
    sha256: str
    out: int


class _Handout:
    """Ranges of samples on a cluster, and the shards that are out there.

    A range goes out for all runs at once and is let go when the last shard of it is back, so that
    memory does not grow with the number of samples, here or on the workers.

    Args:
        client: Client of the scheduler.
        runs: All of the same samples and shard size.
        jobs: Jobs of the runs.
        images: All of the samples, in memory or mapped.
    """

    def __init__(
        self, client: Any, runs: Sequence[Shards], jobs: Sequence[Job], images: npt.NDArray[Any]
    ) -> None:
        self._client, self._images = client, images
        self._todo: dict[int, list[_Out]] = {}  # by start
        for run, job in zip(runs, jobs, strict=True):
            if not run.todo:
                continue
            files = {path.name: path.read_bytes() for path in model_files(job)}
            # A task, not scattered data: what a dead worker held is made again from it.
            model = client.submit(_held, files, key=f"edgekit-model-{run.key[:32]}")
            for start in run.todo:
                self._todo.setdefault(start, []).append(_Out(run, job, model, start))
        self._starts = iter(sorted(self._todo))
        self._ranges: dict[int, _Range] = {}  # by start
        self._out: dict[Any, _Out] = {}  # by future
        self._ended: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def fill(self, room: int) -> bool:
        """Hand out ranges until so many are out; False when everything is back."""
        while len(self._ranges) < room and (start := next(self._starts, None)) is not None:
            waiting = self._todo.pop(start)
            block = np.array(self._images[start : waiting[0].shards.run.stop(start)])
            let_go(self._images)
            sha256 = _sha256(block)
            held = self._client.submit(_held, block, key=f"edgekit-images-{start}-{sha256[:32]}")
            self._ranges[start] = _Range(held, sha256, len(waiting))
            for shard in waiting:
                self._submit(shard)
        return bool(self._out)

    def next(self, seconds: float) -> tuple[Shards, int, ShardResult]:
        """The run, the start and the result of a shard that is back.

        Raises:
            TimeoutError: If none came in time, or one was lost on its way and is made again.
            ExecutionError: If it failed on all workers, or was lost too often.
        """
        try:
            future = self._ended.get(timeout=seconds)
        except queue.Empty:
            raise TimeoutError from None
        shard = self._out[future]
        try:
            result = _result(future, shard)
        except TimeoutError:
            future.add_done_callback(self._ended.put)
            raise
        except _distributed().CancelledError:
            del self._out[future]
            self._once_more(shard)
            raise TimeoutError from None
        del self._out[future]
        held = self._ranges[shard.start]
        held.out -= 1
        if not held.out:
            del self._ranges[shard.start]
        return shard.shards, shard.start, result

    def waiting(self) -> list[Shards]:
        """Runs of which a shard is out."""
        return list({shard.shards.key: shard.shards for shard in self._out.values()}.values())

    def close(self) -> None:
        """Let go of everything on the cluster."""
        for each in (self._todo, self._out, self._ranges):
            each.clear()

    def _once_more(self, shard: _Out) -> None:
        """Hand out what the scheduler lost, unless it did so too often."""
        if shard.tries == RETRIES:
            raise ExecutionError(
                f"{shard.shards.run.name}: the scheduler at {self._client.scheduler.address} lost "
                f"the images from {shard.start} {shard.tries + 1} times; run it again, shards that "
                f"are done are kept"
            )
        self._submit(replace(shard, tries=shard.tries + 1))

    def _submit(self, shard: _Out) -> None:
        run, held = shard.shards.run, self._ranges[shard.start]
        future = self._client.submit(
            run_shard,
            shard.model,
            held.samples,
            Task(run.files, held.sha256, shard.job, run.device, __version__),
            key=f"edgekit-{shard.shards.key[:32]}-{shard.start}-{shard.tries}",
            resources={run.device: 1} if run.device else None,
            retries=RETRIES,
        )
        self._out[future] = shard
        future.add_done_callback(self._ended.put)


def _result(future: Any, shard: _Out) -> ShardResult:
    """What a task brought.

    Raises:
        TimeoutError: If it is done, but was lost before it came here.
        CancelledError: If the scheduler lost it.
        EdgekitError: What a worker says of the model or the samples.
    """
    if future.status == "error":
        failure = future.exception(timeout=FETCH)
        raise ExecutionError(
            f"{shard.shards.run.name}, images from {shard.start}: {type(failure).__name__}: "
            f"{reason(failure)}"
        )
    result: ShardResult = future.result(timeout=FETCH)
    if result.problem is not None:
        raise result.problem
    return result


class Fleet:
    """The workers of a cluster; a context manager.

    Raises:
        MissingDependencyError: If distributed is not installed.
        InvalidOptionError: If no scheduler replies at the address.
    """

    def __init__(self, address: str) -> None:
        self._distributed = _distributed()
        self.address = address
        if not re.fullmatch(r"[a-z]+://\S+", address):
            raise InvalidOptionError(
                f"expected --cluster as the address of a Dask scheduler, tcp://HOST:PORT, "
                f"got {address!r}"
            )
        import dask

        dask.config.set({"distributed.admin.large-graph-warning-threshold": "1 TB"})
        logging.getLogger("distributed").setLevel(logging.CRITICAL)  # what matters is said here
        try:
            self._client = self._distributed.Client(
                address, timeout=CONNECT, set_as_default=False, name="edgekit"
            )
        except (OSError, ValueError, TimeoutError) as exc:
            raise InvalidOptionError(
                f"no Dask scheduler replies at {address} ({reason(exc)}); start one with `dask "
                f"scheduler`"
            ) from None
        self._places: dict[str, Place] = {}
        self._ranges, self._asked = 0, -math.inf

    def expect(self, resources: Collection[str]) -> None:
        """See to it that every resource has a worker, and that the workers can do the work.

        Raises:
            ExecutionError: If a resource has none, or a worker has no edgekit of this version.
        """
        if not resources:
            return
        until = time.monotonic() + CONNECT
        while not self._workers() and time.monotonic() < until:
            time.sleep(0.1)
        for resource in sorted(set(resources)):
            if not self._able(resource):
                raise ExecutionError(
                    f"no worker at {self.address} has the resource {resource or 'any'!r}; "
                    f"{self._offers()}; start one with `dask worker {self.address} --nthreads 1 "
                    f'--resources "{resource or "device:NAME"}=1"`, or pass --resources'
                )
        able = {address for resource in set(resources) for address in self._able(resource)}
        places = self._client.run(describe, workers=sorted(able), on_error="return")
        for address, place in places.items():
            if not isinstance(place, Place):
                raise ExecutionError(
                    f"worker {address} cannot run edgekit ({reason(place)}); install edgekit "
                    f"{__version__} with the extras runtime and fleet there"
                )
            _check_version(place)
        self._places = places

    def accepts(self, resource: str) -> Callable[[Place], bool]:
        """Takes shards that a worker with the resource could have made."""
        able = [self._places[a] for a in self._able(resource) if a in self._places]
        return lambda place: any(alike(place, each) for each in able)

    def evaluate(
        self,
        runs: Sequence[Shards],
        jobs: Sequence[Job],
        images: npt.NDArray[Any],
        *,
        advance: Callable[[int], Any],
    ) -> None:
        """Run what is still to do of all runs.

        Args:
            runs: All of the same samples and shard size.
            jobs: Jobs of the runs.
            images: All of the samples, in memory or mapped.
            advance: Told how many samples were evaluated, as they are.

        Raises:
            ExecutionError: If no worker is left that could go on, or a shard fails on all.
            EdgekitError: What a worker says of the model or the samples.
        """
        for run in runs:
            advance(run.done)
        heard = time.monotonic()
        with contextlib.closing(_Handout(self._client, runs, jobs, images)) as handout:
            while handout.fill(self._room()):
                try:
                    run, start, result = handout.next(seconds=1)
                except TimeoutError:
                    self._expect_someone(handout.waiting(), heard)
                    continue
                heard = time.monotonic()
                assert result.outputs is not None and result.runtime is not None
                if run.put(start, result.outputs, result.runtime, result.place):
                    advance(len(result.outputs))

    def _room(self) -> int:
        """Ranges that may be out: two for each thread of the workers, which come and go."""
        if time.monotonic() - self._asked > 1:
            threads = sum(int(each["nthreads"]) for each in self._workers().values())
            self._ranges, self._asked = 2 * threads + 2, time.monotonic()
        return self._ranges

    def _expect_someone(self, waiting: Sequence[Shards], since: float) -> None:
        """Give up when nobody could go on for too long.

        Raises:
            ExecutionError: Then.
        """
        if time.monotonic() - since < GRACE:
            return
        if self._client.status != "running":
            raise ExecutionError(
                f"the scheduler at {self.address} does not reply any more; run it again, the "
                f"shards that are done are kept"
            )
        for run in (shards.run for shards in waiting):
            if not self._able(run.device):
                raise ExecutionError(
                    f"{run.name}: no worker with the resource {run.device or 'any'!r} is left; "
                    f"{self._offers()}; start one and run it again, shards that are done are kept"
                )

    def _workers(self) -> dict[str, Any]:
        workers: dict[str, Any] = self._client.scheduler_info(n_workers=-1)["workers"]
        return workers

    def _able(self, resource: str) -> list[str]:
        return [
            address
            for address, each in self._workers().items()
            if not resource or each.get("resources", {}).get(resource, 0) >= 1
        ]

    def _offers(self) -> str:
        workers = self._workers().values()
        if not workers:
            return "no worker is connected"
        offered = sorted({name for each in workers for name in each.get("resources", {})})
        return f"{len(workers)} workers offer {', '.join(offered) or 'no resources'}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._client.close(timeout=5)


def run_shard(files: Mapping[str, bytes], images: npt.NDArray[Any], task: Task) -> ShardResult:
    """On a worker: the outputs for one range of samples.

    A crash of the runtime is raised, so that the shard is tried again; what would come again on
    any worker is returned.
    """
    place = describe()
    try:
        if task.version != __version__:
            _check_version(place, task.version)
        if _sha256(images) != task.images:
            raise ExecutionError("the images changed while they were sent to the worker")
        with _models.model(files, task) as worker:
            if misfit := worker.loaded.misfit(task.job.name, images):
                raise InvalidDataError(misfit)
            return ShardResult(worker.outputs(images), worker.loaded.runtime, place)
    except ProcessDiedError:
        raise
    except EdgekitError as exc:
        return ShardResult(None, None, place, _error(exc, place))


def describe(dask_worker: Any = None) -> Place:
    """On a worker: the machine, and the resources it offers."""
    worker = dask_worker or _distributed().get_worker()
    return this_place(_machine(), " ".join(sorted(worker.state.total_resources)))


class _Models:
    """On a worker: loaded models that wait for their next shard, each in a process of its own."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: dict[str, Worker] = {}
        self._timer: threading.Timer | None = None

    @contextlib.contextmanager
    def model(self, files: Mapping[str, bytes], task: Task) -> Iterator[Worker]:
        """The model for one shard; it is nobody else's meanwhile."""
        key = hashlib.sha256(repr((sorted(task.files.items()), task.job)).encode()).hexdigest()
        with self._lock:
            worker = self._idle.pop(key, None)
            path = None if worker else self._unpacked(files, task, key)
        if worker is None:
            assert path is not None
            # A nanny's worker is a daemon, and those may have no children.
            multiprocessing.current_process().daemon = False
            worker = Worker(replace(task.job, model=path))
        try:
            yield worker
        except BaseException:
            worker.close()
            raise
        with self._lock:
            if key in self._idle:
                self._idle.pop(key).close()
            self._idle[key] = worker
            while len(self._idle) > OPEN_MODELS:
                self._idle.pop(next(iter(self._idle))).close()
            if self._timer is not None:
                self._timer.cancel()
            self._timer = threading.Timer(IDLE, self.close)
            self._timer.daemon = True
            self._timer.start()

    def close(self) -> None:
        """End all that wait."""
        with self._lock:
            while self._idle:
                self._idle.popitem()[1].close()

    def _unpacked(self, files: Mapping[str, bytes], task: Task, key: str) -> Path:
        """The model's path in the worker's own folder, its files checked.

        Raises:
            ExecutionError: If a file is not what it has to be.
        """
        folder = Path(_distributed().get_worker().local_directory) / "edgekit" / key[:32]
        for name, sha256 in task.files.items():
            path = folder / name
            if not path.is_file() or outputs.sha256_file(path) != sha256:
                content = files.get(name, b"")
                if hashlib.sha256(content).hexdigest() != sha256:
                    raise ExecutionError(f"{task.job.name}: {name} changed while it was sent")
                outputs.write_bytes(path, content, force=True, sync=False)
        return folder / task.job.model.name


_models = _Models()


@functools.cache
def _machine() -> Environment:
    return environment.describe()


def _held(value: Any) -> Any:
    """On a worker: bytes that shards there need."""
    return value


def _sha256(images: npt.NDArray[Any]) -> str:
    digest = hashlib.sha256(f"{images.dtype.str}{images.shape}".encode())
    digest.update(np.ascontiguousarray(images).data)
    return digest.hexdigest()


def _check_version(place: Place, expected: str = __version__) -> None:
    version = place.versions.get("edgekit")
    if version != expected:
        raise ExecutionError(
            f"expected edgekit {expected} on all workers, got {version} on {place.host}; install "
            f"the same version there"
        )


def _error(problem: EdgekitError, place: Place) -> EdgekitError:
    """A worker's error with where it was; what is wrong with no input or option is one to run."""
    of_user = isinstance(problem, InvalidInputError | InvalidOptionError)
    return (type(problem) if of_user else ExecutionError)(f"{problem} (worker on {place.host})")


def _distributed() -> Any:
    try:
        import distributed
    except ImportError:
        raise MissingDependencyError("distributed", "fleet") from None
    return distributed
