"""Time of the operators of a model file, by its runtime.

onnxruntime measures its nodes while the model runs. LiteRT shows no profile to Python; there each
operator becomes a file of its own, which the same runtime runs on the values that the operator gets
in the model. What all of them take together is held against a run of the whole model.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.base.errors import ExecutionError, InvalidModelError
from edgekit.data import feeds
from edgekit.data.feeds import Feed
from edgekit.graph import flatbuffer, litert, onnx, walk
from edgekit.graph.flatbuffer import Graph
from edgekit.graph.timed import TimedOperator
from edgekit.records.signature import TensorSpec
from edgekit.runtimes.litert import interpreter_options
from edgekit.sources import one_sample
from edgekit.writers import tflite_integers

PROFILED_RUNS = 30
#: Runs of an operator at the least, however little time there is.
_FEWEST = 10
_WARM_UP = 3


@dataclass(frozen=True)
class Island:
    """Operators of an int8 model that compute in float and hand real numbers to each other.

    Attributes:
        name: Of the last of them.
        kinds: In order of execution.
        ms: Of a run, with the conversions before and behind them.
    """

    name: str
    kinds: tuple[str, ...]
    ms: float


def islands(operators: Sequence[TimedOperator]) -> tuple[Island, ...]:
    """The float islands of an int8 model, those first that take most time.

    Args:
        operators: In order of execution.
    """
    own: dict[str, int] = {}  # the island of each float tensor
    members: dict[int, list[TimedOperator]] = {}
    for place, each in enumerate(operators):
        if not each.in_float or each.converts:
            continue
        joined = [place, *dict.fromkeys(own[name] for name in each.inputs if name in own)]
        members[place] = [one for island in sorted(joined[1:]) for one in members.pop(island)]
        members[place].append(each)
        own.update((name, place) for one in members[place] for name in one.outputs)
    readers: dict[str, int] = {}
    for island, ones in members.items():
        for one in ones:
            readers.update((name, island) for name in one.inputs)
    spent = {island: sum(one.ms for one in ones) for island, ones in members.items()}
    for each in operators:
        if not each.converts:
            continue
        near = [readers[name] for name in each.outputs if name in readers]
        near += [own[name] for name in each.inputs if name in own]
        if near:
            spent[near[0]] += each.ms
    rows = []
    for island, ones in members.items():
        computing = [one for one in ones if one.computes_in_float]
        if computing:
            kinds = tuple(one.kind for one in computing)
            rows.append(Island(computing[-1].name, kinds, spent[island]))
    return tuple(sorted(rows, key=lambda each: -each.ms))


def of_onnx(
    model: Path, feed: Feed, *, threads: int, options: Mapping[str, str]
) -> tuple[TimedOperator, ...]:
    """onnxruntime's profile, a mean of :data:`PROFILED_RUNS` runs.

    Args:
        model: The ``.onnx`` file.
        feed: What one run takes, by input name.
        threads: Of an operator.
        options: Of the session.

    Raises:
        ExecutionError: If it cannot run.
    """
    return onnx.executed(
        model, feed, threads=threads, options=options, runs=PROFILED_RUNS, wired=True
    )


def of_tflite(
    model: Path,
    feed: Feed,
    specs: tuple[TensorSpec, ...],
    *,
    threads: int,
    options: Mapping[str, str],
    seconds: float,
) -> tuple[tuple[TimedOperator, ...], float]:
    """Each operator alone at batch 1, the fastest of its runs.

    Args:
        model: The ``.tflite`` file.
        feed: Stored inputs of samples, by name; the first is run.
        specs: The file's inputs.
        threads: Of an operator.
        options: Of the runtime.
        seconds: For all operators together, about.

    Returns:
        The operators in order of execution; ms of the fastest run of the whole model.

    Raises:
        InvalidModelError: If an operator does not run without the others, e.g. a loop.
    """
    name = str(model)
    content = one_sample.single(model.read_bytes(), name)
    content = flatbuffer.signed(content, name, key=litert.SIGNATURE_KEY)
    asked = interpreter_options(options)
    graph = Graph(content, distinct=True)
    first = next(feeds.one_by_one(feed, specs))
    values = {graph.named_inputs[key]: array for key, array in first.items()}
    budget = seconds / (len(graph.operators) + 1)
    whole = litert.interpreter(content, threads=threads, **asked)
    places = {detail["name"]: detail["index"] for detail in whole.get_input_details()}
    for tensor, array in values.items():
        whole.set_tensor(places[tensor], array)
    ms = _fastest(whole, budget)
    timed = []
    last_readers = walk.last_readers(graph)
    names = tflite_integers.names(graph)
    for position, operator in enumerate(graph.operators):
        try:
            opened = litert.interpreter(graph.single(position), threads=threads, **asked)
            places = {detail["name"]: detail["index"] for detail in opened.get_input_details()}
            for tensor in walk.fed(graph, operator):
                opened.set_tensor(places[tensor], values[tensor])
            ms_alone = _fastest(opened, budget)
        except (ExecutionError, InvalidModelError, KeyError, ValueError):
            raise InvalidModelError(
                f"{operator.kind} {names[position]} does not run without the operators around it"
            ) from None
        for tensor, detail in zip(operator.outputs, opened.get_output_details(), strict=True):
            values[tensor] = opened.get_tensor(detail["index"])
        for tensor in [each for each in values if last_readers.get(each, position + 1) <= position]:
            del values[tensor]
        timed.append(
            TimedOperator(
                operator.kind,
                names[position],
                ms_alone,
                tflite_integers.computes_in_float(graph, operator),
                any(graph.dtype(each) == np.float32 for each in operator.outputs),
                tflite_integers.converts(graph, operator),
                operator.inputs,
                operator.outputs,
            )
        )
    return tuple(timed), ms


def _fastest(opened: Any, seconds: float) -> float:
    """Milliseconds of the fastest run: other programs make runs slower, never faster."""
    for _ in range(_WARM_UP):
        litert.invoke(opened)
    durations: list[float] = []
    until = time.perf_counter() + seconds
    while len(durations) < _FEWEST or time.perf_counter() < until:
        started = time.perf_counter()
        opened.invoke()
        durations.append(time.perf_counter() - started)
    return 1e3 * min(durations)
