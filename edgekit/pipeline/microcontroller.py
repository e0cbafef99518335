"""What is written beside a TFLite file for TensorFlow Lite Micro: C, a resolver, test vectors."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping
from importlib import util
from pathlib import Path

import numpy as np

from edgekit.base.errors import InvalidModelError
from edgekit.data import feeds
from edgekit.data.feeds import Feed
from edgekit.graph import litert, micro
from edgekit.records.artifact import MicroRecord
from edgekit.records.signature import Preprocessing, Signature
from edgekit.runtimes import tflm
from edgekit.runtimes.litert import interpreter_options
from edgekit.runtimes.worker import Job, Worker
from edgekit.writers import micro_c

#: Test vectors at the most, and bytes of their inputs: they lie in the flash of the device.
_VECTORS, _BYTES = 4, 1 << 16


def files(
    content: bytes,
    signature: Signature,
    prepare: Preprocessing,
    samples: Feed | None,
    *,
    name: str,
) -> tuple[Mapping[str, bytes], MicroRecord, list[str]]:
    """Load the file in TensorFlow Lite Micro, if that is installed, and write C around it.

    Args:
        content: The TFLite file.
        signature: Its inputs and outputs.
        prepare: How pixels become its inputs.
        samples: Preprocessed samples by input name; None for random ones.
        name: Of model and precision, for comments.

    Returns:
        The files by name; what the manifest says; notes.

    Raises:
        InvalidModelError: If an operator has no kernel there.
        ExecutionError: If TensorFlow Lite Micro does not load the file.
    """
    operators = micro.operators(content)
    if missing := operators.missing:
        raise InvalidModelError(
            f"TensorFlow Lite Micro has no kernel for {', '.join(missing)} of {name}; replace "
            f"{'it' if len(missing) == 1 else 'them'} in the model, or export with --target tflite"
        )
    inputs = _stored(signature, prepare, samples)
    kind = "random numbers" if samples is None else "calibration samples"
    notes = []
    arena = persistent = None
    if util.find_spec("tflite_micro") is None:
        outputs = _of_litert(content, signature, inputs)
        kernels = "TFLite's reference kernels"
        notes.append(
            "not run in TensorFlow Lite Micro, and the arena is not known, since tflite-micro is "
            "not installed; install it with: pip install 'edgekit[micro]'"
        )
    else:
        with tempfile.TemporaryDirectory() as folder:
            model = Path(folder) / "model.tflite"
            model.write_bytes(content)
            with Worker(Job(name, model, "tflite", prepare, 1, {}, device=tflm.NAME)) as worker:
                known = worker.loaded.metrics
            outputs = _of_tflm(model, signature, inputs)
        arena, persistent = (int(known[each].value) for each in ("arena", "arena_persistent"))
        kernels = "TensorFlow Lite Micro's reference kernels"
        notes.append(
            f"TensorFlow Lite Micro takes an arena of {arena:,} bytes, {persistent:,} of them "
            f"persistent, with 64-bit pointers; {micro.flash(content):,} bytes of flash for the "
            f"model, without the code of its {len(operators.calls)} kinds of operators"
        )
    golden = f"{kernels} on {len(next(iter(inputs.values())))} {kind}"
    vectors = micro_c.Vectors(inputs, outputs, golden)
    written = micro_c.files(
        content,
        operators,
        signature.inputs,
        signature.outputs,
        vectors,
        name=name,
        arena=arena,
    )
    record = MicroRecord(operators.counts, micro.flash(content), golden, arena, persistent)
    return written, record, notes


def _stored(signature: Signature, prepare: Preprocessing, samples: Feed | None) -> Feed:
    """Some inputs as the file stores them."""
    size = sum(
        math.prod(max(axis, 1) for axis in spec.shape) * np.dtype(spec.dtype).itemsize
        for spec in signature.inputs
    )
    count = max(1, min(_VECTORS, _BYTES // max(size, 1)))
    if samples is None:
        samples = feeds.random(signature.inputs, prepare, count, seed=0)
    places = np.linspace(0, feeds.count(samples) - 1, min(count, feeds.count(samples)))
    chosen = {key: values[places.astype(int)] for key, values in samples.items()}
    return feeds.quantized(chosen, signature.inputs)


def _of_litert(content: bytes, signature: Signature, inputs: Feed) -> Feed:
    opened = litert.interpreter(content, **interpreter_options({"kernels": "reference"}))
    runner = opened.get_signature_runner(litert.SIGNATURE_KEY)
    runs = [litert.invoke(runner, **one) for one in feeds.one_by_one(inputs, signature.inputs)]
    return feeds.joined(runs, signature.outputs)


def _of_tflm(model: Path, signature: Signature, inputs: Feed) -> Feed:
    with tflm.TflmRunner(model) as runner:
        runs = [runner.run(one) for one in feeds.one_by_one(inputs, signature.inputs)]
    return feeds.joined(runs, signature.outputs)
