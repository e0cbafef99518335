"""What a TFLite file takes on a microcontroller, and where TensorFlow Lite Micro computes other
numbers than TFLite does.

The operators are held against those of TFLite one by one: each gets the values that it has in
TensorFlow Lite Micro, so that a difference is its own and not that of an operator before it.
"""

from __future__ import annotations

import collections
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgekit.base.errors import ExecutionError, InvalidModelError, InvalidOptionError
from edgekit.data import feeds
from edgekit.graph import flatbuffer, litert, micro, walk
from edgekit.graph.flatbuffer import Graph
from edgekit.records import environment
from edgekit.records.artifact import Artifact
from edgekit.records.results import Environment, Measurement, Runtime
from edgekit.records.signature import Signature
from edgekit.runtimes import tflm
from edgekit.runtimes.litert import KERNELS, interpreter_options
from edgekit.runtimes.worker import Job, Worker
from edgekit.sources import one_sample

#: Random samples that operators are compared on, unless told otherwise.
SAMPLES = 8


@dataclass(frozen=True)
class OperatorDifference:
    """All operators of one kind, each on the values that it gets in TensorFlow Lite Micro.

    Attributes:
        kind: As TFLite calls it.
        count: How many the file has.
        numbers: Values that they wrote.
        differing: How many of them are other numbers in TFLite, by kernels: ``reference`` and
            ``xnnpack``. Of real numbers, those that differ by more than float32 rounds.
        largest: The largest difference, by kernels: steps of integers, else a share of the largest
            value.
    """

    kind: str
    count: int
    numbers: int
    differing: dict[str, int]
    largest: dict[str, float]


@dataclass(frozen=True)
class MicroBenchmark:
    """What was seen of one file in TensorFlow Lite Micro.

    Attributes:
        metrics: ``arena``, ``arena_persistent`` and ``flash``; with an NPU ``sram``, ``npu_share``
            and ``npu_cycles``.
        operators: How many of each kind the file has.
        resolver: Methods of MicroMutableOpResolver that link their kernels.
        differences: By kind, in order of the file; empty where an operator does not run alone.
        samples: Random samples that those are from.
    """

    name: str
    format: str
    precision: str
    runtime: Runtime
    environment: Environment
    metrics: dict[str, Measurement]
    operators: dict[str, int]
    resolver: tuple[str, ...]
    differences: tuple[OperatorDifference, ...]
    samples: int
    notes: tuple[str, ...] = ()


def benchmark(
    artifact: Artifact, *, npu: str | None = None, samples: int = SAMPLES
) -> MicroBenchmark:
    """Load a file in TensorFlow Lite Micro, and run it.

    Args:
        artifact: A TFLite artifact, or file.
        npu: One of :data:`edgekit.runtimes.vela.ACCELERATORS`.
        samples: Random samples that its operators are compared on.

    Raises:
        InvalidOptionError: If the file is none of TFLite, or the NPU is unknown.
        EdgekitError: If it cannot be loaded or run.
    """
    manifest = artifact.manifest
    if manifest.format != "tflite":
        raise InvalidOptionError(
            f"{tflm.NAME} runs .tflite files, {artifact.name} is {manifest.format}; export it with "
            f"--target tflite-micro"
        )
    options = {} if npu is None else {"npu": npu}
    job = Job(
        artifact.name,
        artifact.model_path,
        manifest.format,
        manifest.preprocessing,
        1,
        options,
        device=tflm.NAME,
    )
    with Worker(job) as worker:  # a kernel that fails may end its process
        loaded = worker.loaded
    content = artifact.model_path.read_bytes()
    asked = micro.operators(content, artifact.name)
    notes = loaded.runtime.notes
    differences: tuple[OperatorDifference, ...] = ()
    try:
        feed = feeds.random(loaded.signature.inputs, job.preprocessing, samples, seed=0)
        differences = differences_of(content, artifact.name, loaded.signature, feed)
    except (ExecutionError, InvalidModelError) as exc:
        notes = (*notes, f"operators were not compared: {exc}")
    return MicroBenchmark(
        name=artifact.name,
        format=manifest.format,
        precision=manifest.precision,
        runtime=loaded.runtime,
        environment=environment.describe(),
        metrics=dict(loaded.metrics),
        operators=asked.counts,
        resolver=asked.calls,
        differences=differences,
        samples=samples,
        notes=notes,
    )


def differences_of(
    content: bytes, name: str, signature: Signature, samples: feeds.Feed
) -> tuple[OperatorDifference, ...]:
    """Hold each operator against TFLite's.

    Args:
        content: A TFLite file that TensorFlow Lite Micro loads.
        name: Name of the file, for messages.
        signature: Of the file.
        samples: Preprocessed samples by input name.

    Raises:
        InvalidModelError: If an operator does not run without the others, e.g. a loop.
        ExecutionError: If one cannot run on its values.
    """
    content = one_sample.single(content, name)
    graph = Graph(flatbuffer.signed(content, name, key=litert.SIGNATURE_KEY), distinct=True)
    places = {tensor: place for place, tensor in enumerate(graph.tensors)}
    stored = feeds.quantized(samples, signature.inputs)
    kept: list[dict[str, npt.NDArray[np.generic]]] = []
    whole = tflm.fitting(content, keep=True)
    wanted = {
        tensor
        for operator in graph.operators
        for tensor in (*walk.fed(graph, operator), *operator.outputs)
    }
    for one in feeds.one_by_one(stored, signature.inputs):
        for place, spec in enumerate(signature.inputs):
            whole.set_input(one[spec.name], place)
        whole.invoke()
        kept.append(
            {
                tensor: np.array(whole.GetTensor(places[tensor], 0)["tensor_data"])
                for tensor in wanted
            }
        )
    counts: collections.Counter[str] = collections.Counter()
    numbers: collections.Counter[str] = collections.Counter()
    differing: dict[str, dict[str, int]] = {}
    largest: dict[str, dict[str, float]] = {}
    for position, operator in enumerate(graph.operators):
        kind = operator.kind
        counts[kind] += 1
        numbers[kind] += sum(values[each].size for values in kept for each in operator.outputs)
        of_kind = differing.setdefault(kind, dict.fromkeys(KERNELS, 0))
        worst = largest.setdefault(kind, dict.fromkeys(KERNELS, 0.0))
        alone = graph.single(position)
        for kernels in KERNELS:
            try:
                opened = litert.interpreter(alone, **interpreter_options({"kernels": kernels}))
                inputs = {each["name"]: each["index"] for each in opened.get_input_details()}
                for values in kept:
                    for tensor in walk.fed(graph, operator):
                        opened.set_tensor(inputs[tensor], values[tensor])
                    litert.invoke(opened)
                    for tensor, detail in zip(
                        operator.outputs, opened.get_output_details(), strict=True
                    ):
                        few, most = _differing(values[tensor], opened.get_tensor(detail["index"]))
                        of_kind[kernels] += few
                        worst[kernels] = max(worst[kernels], most)
            except (KeyError, ValueError):
                raise InvalidModelError(
                    f"{kind} {operator.outputs[0]} does not run without the operators around it"
                ) from None
    return tuple(
        OperatorDifference(kind, count, numbers[kind], differing[kind], largest[kind])
        for kind, count in counts.items()
    )


def _differing(micro: npt.NDArray[np.generic], other: npt.NDArray[np.generic]) -> tuple[int, float]:
    """How many numbers differ, and by how much at most."""
    ours = micro.astype(np.float64).reshape(-1)
    theirs = other.astype(np.float64).reshape(-1)
    off = np.abs(ours - theirs)
    if micro.dtype.kind == "f":
        size = float(np.abs(theirs).max(initial=0)) or 1.0
        off = off / size
        return int((off > 1e-5).sum()), float(off.max(initial=0))
    return int((off > 0).sum()), float(off.max(initial=0))
