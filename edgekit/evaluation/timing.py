"""Measure latency in rounds that run all models in turn, and the energy of one sample."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.base.progress import Progress
from edgekit.evaluation import conditions
from edgekit.evaluation.metrics import Measured
from edgekit.evaluation.options import SAMPLES
from edgekit.records import environment
from edgekit.records.results import Conditions, Measurement

WARM_UP = 10


def take_latency(
    measured: Sequence[Measured], sample: npt.NDArray[Any], rounds: int, progress: Progress
) -> Conditions | None:
    """Interleaved latency rounds at batch 1, after a warm-up that is thrown away.

    Returns:
        What the machine did meanwhile; None if there was nothing to be timed.
    """
    timed = [(each.worker, each.latency) for each in measured if each.worker is not None]
    if not timed or not rounds:
        return None
    processes = [worker.process for worker, _ in timed]
    with progress.task("timing", rounds, unit="rounds") as task:
        for worker, _ in timed:
            worker.latencies(sample, WARM_UP)
        readings = [conditions.look(processes)]
        for _ in range(rounds):
            for worker, latency in timed:
                latency.append(worker.latencies(sample, SAMPLES))
            readings.append(conditions.look(processes))
            task.advance()
    return conditions.summarize(readings)


def take_energy(measured: Sequence[Measured], sample: npt.NDArray[Any]) -> None:
    """Energy of a sample at batch 1, where the counters of the device that ran it can be read.

    They move once in some milliseconds; half a second makes that no matter.
    """
    meters: dict[str, conditions.Meter] = {"cpu": conditions.Energy()}
    for each in measured:
        if each.worker is None or not each.latency:
            continue
        device = each.runtime.device
        if device not in meters:  # the driver is asked where a GPU ran
            meters[device] = conditions.GpuEnergy(environment.gpu_bus())
        meter = meters[device]
        if not meter.readable:
            continue
        runs = max(SAMPLES, math.ceil(500 / float(np.median(each.latency))))
        meter.since()
        each.worker.latencies(sample, runs)
        joules = meter.since()
        if joules is not None:
            each.metrics["energy"] = Measurement(1e3 * joules / runs, "mJ", runs)
