"""Evaluator: runs the models of a comparison on all samples, here or on a cluster's workers."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from edgekit import data
from edgekit.base.errors import InvalidDataError, InvalidModelError
from edgekit.base.progress import Task
from edgekit.evaluation import fleet, shards
from edgekit.evaluation.metrics import Measured
from edgekit.evaluation.options import Options
from edgekit.evaluation.replay import replayed
from edgekit.evaluation.subjects import Subject
from edgekit.evaluation.timing import WARM_UP
from edgekit.records.results import Environment, Measurement, Place
from edgekit.runtimes.worker import Job, Worker


class Evaluator:
    """Runs models on all samples, shard by shard; shards that were done are taken over.

    Args:
        images: What they run on.
        kept: Where shards are kept.
        stack: Keeps the workers that are to be timed.
        machine: This one.
        options: Options of the comparison.
    """

    def __init__(
        self,
        images: data.ImageSet,
        kept: shards.Work,
        stack: contextlib.ExitStack,
        machine: Environment,
        options: Options,
    ) -> None:
        self._images, self._kept, self._stack = images, kept, stack
        self._options = options
        self._place, self._accepts = shards.this_place(machine), shards.local(machine)

    def each(
        self, subjects: Sequence[Subject], devices: Mapping[str, str], task: Task
    ) -> Iterator[Measured]:
        """What is measured of each subject, in their order; those of a cluster run first.

        Args:
            subjects: The reference, and what is compared with it.
            devices: Worker resource of the cluster by name of what runs there.
            task: Told of samples that were evaluated.

        Raises:
            InvalidModelError: If outputs are of another size than the reference's.
            EdgekitError: If a model cannot be run.
        """
        remote = self._on_cluster(subjects, devices, task) if self._options.cluster else {}
        size = 0
        for subject in subjects:
            task.note(subject.name)
            if subject.recording is not None:
                measured = replayed(subject.recording)
                task.advance(len(self._images))
            elif subject.name in remote:
                measured = remote[subject.name]
            else:
                measured = self._here(subject.runnable, task)
            _check_size(subject.name, measured.outputs, size)
            size = measured.outputs.shape[1]
            yield measured

    def outputs(self, worker: Worker, advance: Callable[[int], None]) -> npt.NDArray[np.float32]:
        """A worker's outputs for all samples ``[N, M]``, with others like it that join in."""
        return self._outputs(worker, advance)[0]

    def _outputs(
        self, worker: Worker, advance: Callable[[int], None]
    ) -> tuple[npt.NDArray[np.float32], tuple[Place, ...]]:
        """The outputs, and where they were made if that is another place than this machine."""
        there = worker.loaded.place
        accepts = self._accepts if there is None else functools.partial(shards.alike, there)
        store = self._kept.open(self._run(worker.job), accepts)
        values = shards.evaluate(
            store,
            worker,
            self._images.images,
            processes=1 if worker.loaded.runtime.device == "gpu" else self._options.at_once,
            place=there or self._place,
            advance=advance,
        )
        return values, () if there is None else store.places()

    def _run(self, job: Job, device: str = "") -> shards.Run:
        images, shard = self._images, self._options.shard
        return shards.Run.of(job, data=images.sha256, count=len(images), shard=shard, device=device)

    def _here(self, job: Job, task: Task) -> Measured:
        """Start a worker, which stays for the timing, and let it and its like run all samples."""
        worker = self._stack.enter_context(Worker(job))
        images = self._images.images
        if misfit := worker.loaded.misfit(job.name, images):
            raise InvalidDataError(f"{self._images.name}: {misfit}")
        runtime = worker.loaded.runtime
        if runtime.emulated:
            known = dict(worker.loaded.metrics)
            values, places = self._outputs(worker, task.advance)
            worker.close()  # nothing else is asked of it
            return Measured(values, runtime, known, places=places)
        # Evaluation's batches differ between runtimes; memory is taken at batch 1.
        worker.latencies(images[:1], WARM_UP)
        metrics = {
            "peak_memory": Measurement(worker.peak_memory(), "bytes", 1),
            "load_time": Measurement(worker.loaded.load_ms, "ms", 1),
        }
        if worker.loaded.parameters:
            metrics["parameters"] = Measurement(worker.loaded.parameters, "parameters", 1)
        return Measured(self.outputs(worker, task.advance), runtime, metrics, worker)

    def _on_cluster(
        self, subjects: Sequence[Subject], devices: Mapping[str, str], task: Task
    ) -> dict[str, Measured]:
        """What the workers of a cluster make of those that run there, by name."""
        assert self._options.cluster is not None
        jobs = [subject.runnable for subject in subjects if subject.name in devices]
        with fleet.Fleet(self._options.cluster) as workers:
            workers.expect(devices.values())
            stores = []
            for job in jobs:
                device = devices[job.name]
                stores.append(self._kept.open(self._run(job, device), workers.accepts(device)))
            workers.evaluate(stores, jobs, self._images.images, advance=task.advance)
        return {store.run.name: _measured(store) for store in stores}


def _measured(store: shards.Shards) -> Measured:
    assert store.runtime is not None
    return Measured(store.outputs(), fleet.noted(store.runtime, store), places=store.places())


def _check_size(name: str, outputs: npt.NDArray[np.float32], expected: int) -> None:
    """Refuse outputs of another size than the reference's."""
    size = expected or outputs.shape[-1]
    if outputs.ndim != 2 or outputs.shape[1] != size:
        raise InvalidModelError(
            f"{name}: expected {size} numbers per sample, as the float model gives, got shape "
            f"{list(outputs.shape[1:])}"
        )
