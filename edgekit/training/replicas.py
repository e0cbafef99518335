"""Replicas: the devices that share a step, in one process or several, through tf.distribute.

Every replica has all variables and takes an equal part of each batch; gradients are averaged, so
all of them make the same step. Batch normalisation uses the statistics of a replica's own part, as
it does of a tower's; their moving averages are averaged over the replicas after each step, so
that these too stay the same everywhere.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Sequence
from typing import Any

from edgekit.base import words
from edgekit.base.errors import ExecutionError, InvalidOptionError, reason
from edgekit.sources import keras as keras_format

STRATEGIES = ("none", "mirrored", "multiworker")


class Replicas:
    """One replica: what runs without tf.distribute.

    Attributes:
        count: Replicas in all processes.
        chief: Whether this process writes.
    """

    count = 1
    chief = True

    def scope(self) -> contextlib.AbstractContextManager[Any]:
        """In which variables are made."""
        return contextlib.nullcontext()

    def call(self, function: Callable[..., Any], *values: Any) -> Any:
        """Run what takes all replicas, from Python."""
        return function(*values)

    def run(self, step: Callable[..., Any], *values: Any) -> Any:
        """Trace a step on every replica; returns what the first of them returns."""
        return step(*values)

    def number(self) -> Any:
        """Which replica a step runs on, from 0."""
        return 0

    def merge(
        self,
        finish: Callable[..., Any],
        means: Sequence[Any],
        statistics: Sequence[Any],
        *values: Any,
    ) -> Any:
        """End a step for all replicas together.

        Args:
            finish: Called once, with the means of all replicas and ``values``.
            means: Tensors to average.
            statistics: Variables to set to their average.
            values: Equal on all replicas.
        """
        return finish(means, *values)

    def update(self, variable: Any, change: Callable[..., None], *values: Any) -> None:
        """Inside of :meth:`merge`: ``change(variable, *values)`` on every replica's copy."""
        change(variable, *values)

    def wait(self) -> None:
        """Until all processes are here."""


class Distributed(Replicas):
    """Replicas of a ``tf.distribute`` strategy.

    Args:
        strategy: A MirroredStrategy or MultiWorkerMirroredStrategy.
        chief: Whether this process writes.
    """

    def __init__(self, strategy: Any, *, chief: bool) -> None:
        self._strategy = strategy
        self.count = int(strategy.num_replicas_in_sync)
        self.chief = chief

    def scope(self) -> contextlib.AbstractContextManager[Any]:
        """In which variables are mirrored."""
        scope: contextlib.AbstractContextManager[Any] = self._strategy.scope()
        return scope

    def call(self, function: Callable[..., Any], *values: Any) -> Any:
        """Run what takes all replicas.

        Raises:
            ExecutionError: If another worker went away.
        """
        tf = keras_format.tensorflow()
        try:
            return function(*values)
        except (
            tf.errors.AbortedError,
            tf.errors.CancelledError,
            tf.errors.DeadlineExceededError,
            tf.errors.InternalError,
            tf.errors.UnavailableError,
        ) as exc:
            raise ExecutionError(
                f"a worker was lost ({type(exc).__name__}); start all workers again with --resume"
            ) from None

    def run(self, step: Callable[..., Any], *values: Any) -> Any:
        """A step on every replica."""
        per_replica = self._strategy.run(step, args=values)
        return tuple(self._strategy.experimental_local_results(each)[0] for each in per_replica)

    def number(self) -> Any:
        """Of the replica whose step is traced."""
        return keras_format.tensorflow().distribute.get_replica_context().replica_id_in_sync_group

    def merge(
        self,
        finish: Callable[..., Any],
        means: Sequence[Any],
        statistics: Sequence[Any],
        *values: Any,
    ) -> Any:
        """One reduction over all replicas, then ``finish`` in cross-replica context."""
        tf = keras_format.tensorflow()

        def merged(strategy: Any, averaged: list[Any], own: list[Any], *rest: Any) -> Any:
            pairs = [(each, each) for each in [*averaged, *own]]
            reduced = strategy.extended.batch_reduce_to(tf.distribute.ReduceOp.MEAN, pairs)
            for variable, value in zip(statistics, reduced[len(averaged) :], strict=True):
                self.update(variable, lambda v, x: v.assign(x), value)
            return finish(reduced[: len(averaged)], *rest)

        own = [tf.identity(variable) for variable in statistics]
        context = tf.distribute.get_replica_context()
        return context.merge_call(merged, args=(list(means), own, *values))

    def update(self, variable: Any, change: Callable[..., None], *values: Any) -> None:
        """On every replica's copy."""

        def change_copy(copy: Any, *rest: Any) -> None:
            change(copy, *rest)

        self._strategy.extended.update(variable, change_copy, args=values, group=False)

    def wait(self) -> None:
        """Until all workers are here."""
        tf = keras_format.tensorflow()

        def meet() -> Any:
            return tf.distribute.get_replica_context().all_reduce("SUM", tf.constant(1.0))

        self.call(tf.function(lambda: self._strategy.run(meet)))


def replicas(strategy: str = "none", count: int | None = None) -> Replicas:
    """What ``--strategy`` asks for; before TensorFlow computes anything.

    Args:
        strategy: ``none``; ``mirrored`` over this machine's GPUs; ``multiworker`` over the
            processes that TF_CONFIG names.
        count: With ``mirrored``: how many; default all GPUs. Without a GPU the CPU is divided.

    Raises:
        InvalidOptionError: If TF_CONFIG or the number of devices does not fit.
        ExecutionError: If the workers do not find each other.
    """
    words.one_of("strategy", strategy, STRATEGIES)
    if count is not None and strategy != "mirrored":
        raise InvalidOptionError(f"--replicas is for --strategy mirrored, got {strategy}")
    if strategy == "none":
        return Replicas()
    if strategy == "mirrored":
        return _mirrored(count)
    return _multiworker()


def _mirrored(count: int | None) -> Distributed:
    if "TF_CONFIG" in os.environ:  # TensorFlow would read it
        raise InvalidOptionError(
            "--strategy mirrored is for one process, TF_CONFIG names a cluster; unset it, or use "
            "--strategy multiworker"
        )
    tf = keras_format.tensorflow()
    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        if count is not None and count > len(gpus):
            raise InvalidOptionError(f"--replicas {count}: this machine has {len(gpus)} GPUs")
        devices = [f"GPU:{i}" for i in range(count or len(gpus))]
    else:
        if count is None:
            raise InvalidOptionError(
                "--strategy mirrored found no GPU; --replicas N divides the CPU into N devices"
            )
        parts = [tf.config.LogicalDeviceConfiguration()] * count
        try:
            tf.config.set_logical_device_configuration(
                tf.config.list_physical_devices("CPU")[0], parts
            )
        except RuntimeError:
            raise InvalidOptionError(
                "TensorFlow was used in this process before; train in a fresh process"
            ) from None
        devices = [f"CPU:{i}" for i in range(count)]
    return Distributed(tf.distribute.MirroredStrategy(devices), chief=True)


def _multiworker() -> Distributed:
    index = check_cluster(os.environ.get("TF_CONFIG"))
    tf = keras_format.tensorflow()
    try:
        strategy = tf.distribute.MultiWorkerMirroredStrategy()
    except (tf.errors.OpError, RuntimeError, ValueError) as exc:
        raise ExecutionError(
            f"worker {index} could not join the cluster of TF_CONFIG ({reason(exc)}); start every "
            f"worker, each with a free port of its own"
        ) from None
    return Distributed(strategy, chief=index == 0)


def check_cluster(text: str | None) -> int:
    """This process's number in the cluster that a TF_CONFIG describes; 0 is the chief.

    Raises:
        InvalidOptionError: If the text is not ``{"cluster": {"worker": [HOST:PORT, …]}, "task":
            {"type": "worker", "index": N}}``; a ``chief`` may stand beside the workers.
    """
    if not text:
        raise InvalidOptionError(
            "--strategy multiworker needs the environment variable TF_CONFIG, such as "
            '{"cluster": {"worker": ["10.0.0.1:2222", "10.0.0.2:2222"]}, '
            '"task": {"type": "worker", "index": 0}}'
        )
    try:
        config = json.loads(text)
        cluster, kind, index = (
            config["cluster"],
            config["task"]["type"],
            config["task"]["index"],
        )
        jobs = {str(name): list(addresses) for name, addresses in cluster.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as exc:
        raise InvalidOptionError(
            f"TF_CONFIG: expected JSON with cluster.worker, task.type and task.index, got "
            f"{text[:80]!r} ({type(exc).__name__}: {reason(exc)})"
        ) from None
    unknown = sorted(set(jobs) - {"chief", "worker"})
    if unknown:
        raise InvalidOptionError(f"TF_CONFIG: expected the jobs chief and worker, got {unknown[0]}")
    addresses = [address for job in jobs.values() for address in job]
    for address in addresses:
        _check_address(address)
    if len(set(addresses)) != len(addresses) or not addresses:
        raise InvalidOptionError(
            f"TF_CONFIG: expected one HOST:PORT for each worker, each once, got {addresses}"
        )
    if len(jobs.get("chief", ())) > 1:
        raise InvalidOptionError(f"TF_CONFIG: expected one chief, got {len(jobs['chief'])}")
    if kind not in jobs:
        raise InvalidOptionError(f"TF_CONFIG: task.type {kind!r} is not in the cluster")
    if not isinstance(index, int) or isinstance(index, bool) or not 0 <= index < len(jobs[kind]):
        raise InvalidOptionError(
            f"TF_CONFIG: expected task.index from 0 to {len(jobs[kind]) - 1}, got {index!r}"
        )
    return index if kind == "chief" else index + len(jobs.get("chief", ()))


def _check_address(address: Any) -> None:
    host, _, port = str(address).rpartition(":")
    if not (isinstance(address, str) and host and port.isdecimal() and 0 < int(port) < 65536):
        raise InvalidOptionError(f"TF_CONFIG: expected HOST:PORT, got {address!r}")
