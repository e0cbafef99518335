"""TensorFlow Lite Micro's kernels on this machine, through the package ``tflite-micro``.

They are the reference kernels that run on every microcontroller, built for x86-64: their outputs
are those of a device, and so is the size of the arena but for pointers, which have 8 bytes here and
4 on a 32-bit CPU. Their time means nothing.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.base import words
from edgekit.base.errors import (
    ExecutionError,
    InvalidModelError,
    InvalidOptionError,
    MissingDependencyError,
    last_words,
)
from edgekit.graph import flatbuffer, litert, micro
from edgekit.records.results import Measurement, Runtime
from edgekit.runtimes import Feed, Runner, vela
from edgekit.sources import one_sample

NAME = "tflm"
NOTE = (
    "the kernels of TensorFlow Lite Micro, run on this machine: outputs and the size of the arena, "
    "no times"
)
#: Bytes of the first arena that is tried; it is doubled until the model fits.
_FIRST, _LARGEST = 1 << 20, 1 << 30
_RECORDED = re.compile(r"Arena allocation (head|tail) (\d+) bytes")
#: What the allocator says of an arena that is too small.
_SMALL = re.compile(r"Requested: \d+, available \d+, missing: \d+")
#: Operators whose values live from one run to the next.
_STATES = frozenset(("VAR_HANDLE", "SVDF", "UNIDIRECTIONAL_SEQUENCE_LSTM", "CIRCULAR_BUFFER"))


@dataclass(frozen=True)
class Arena:
    """RAM that the interpreter takes, in bytes.

    Attributes:
        total: The least ``tensor_arena`` that the model loads in; more than it uses where planning
            needs room for a moment.
        persistent: What lives as long as the interpreter: structures of the graph, data of kernels.
        shared: What activations and scratch buffers share.
    """

    total: int
    persistent: int
    shared: int


class TflmRunner(Runner):
    """A ``.tflite`` file in the interpreter of TensorFlow Lite Micro, one sample a run.

    Its option ``npu`` asks Vela for what the file takes on an Ethos-U; the outputs stay those of
    the kernels. ``metrics`` are ``arena``, ``arena_persistent`` and ``flash``; with ``npu`` also
    ``sram``, ``npu_share`` and ``npu_cycles``, which is an estimate.

    Raises:
        InvalidOptionError: If an option or its value is unknown.
        InvalidModelError: If an operator has no kernel, or refuses its types.
        MissingDependencyError: If tflite-micro, or ethos-u-vela for ``npu``, is not installed.
    """

    batch = 1

    def __init__(self, model: Path, *, options: Mapping[str, str] | None = None) -> None:
        asked = dict(options or {})
        npu = asked.pop("npu", None)
        if asked:
            raise InvalidOptionError(f"{NAME} knows the option npu, got {next(iter(asked))!r}")
        if not model.is_file():
            raise InvalidModelError(f"{words.not_found(model)}; expected a .tflite file")
        self._options = dict(options or {})
        name = str(model)
        content = one_sample.single(model.read_bytes(), name)
        operators = micro.operators(content, name)
        if missing := operators.missing:
            raise InvalidModelError(
                f"TensorFlow Lite Micro has no kernel for {', '.join(missing)}; replace "
                f"{'it' if len(missing) == 1 else 'them'} in the model, or register a kernel of "
                f"your own on the device"
            )
        opened = litert.interpreter(content)
        if litert.SIGNATURE_KEY not in opened.get_signature_list():
            signed = flatbuffer.signed(content, name, key=litert.SIGNATURE_KEY)
            opened = litert.interpreter(signed)
        self.signature = litert.signature_of(opened)
        del opened
        self._interpreter = fitting(content)
        self.run(
            {
                spec.name: np.zeros([max(size, 1) for size in spec.shape], spec.dtype)
                for spec in self.signature.inputs
            }
        )
        arena = _arena(self._interpreter, content)
        self.metrics = {
            "arena": Measurement(arena.total, "bytes", 1),
            "arena_persistent": Measurement(arena.persistent, "bytes", 1),
            "flash": Measurement(micro.flash(model.read_bytes()), "bytes", 1),
        }
        self._notes: tuple[str, ...] = (NOTE, *_wrong(content))
        if npu is not None:
            estimate = vela.estimate(model, npu)
            self._notes += (estimate.note,)
            self.metrics |= {
                "sram": Measurement(estimate.sram, "bytes", 1),
                "npu_share": Measurement(estimate.share, "%", sum(operators.counts.values())),
                "npu_cycles": Measurement(estimate.cycles, "cycles, estimated", 1),
            }
        if _STATES & operators.counts.keys():
            self._interpreter.reset()

    def run(self, feed: Feed) -> dict[str, npt.NDArray[Any]]:
        """Run one feed of one sample."""
        for place, spec in enumerate(self.signature.inputs):
            self._interpreter.set_input(feed[spec.name], place)
        with _heard() as said:
            try:
                self._interpreter.invoke()
            except RuntimeError:
                raise ExecutionError(
                    f"TensorFlow Lite Micro cannot run the model on these inputs: "
                    f"{last_words(said())}"
                ) from None
        return {
            spec.name: self._interpreter.get_output(place)
            for place, spec in enumerate(self.signature.outputs)
        }

    def describe(self) -> Runtime:
        """The package's version is in the provider: it is built from one commit a day."""
        provider = f"reference kernels, tflite-micro {metadata.version('tflite-micro')}"
        return Runtime(NAME, provider, 1, self._options, self._notes, emulated=True)

    def close(self) -> None:
        """Let go of the model."""
        del self._interpreter


def _wrong(content: bytes) -> tuple[str, ...]:
    """What a kernel is known to compute wrongly without saying so."""
    graph = flatbuffer.Graph(content, distinct=True)
    several = [
        operator.outputs[0]
        for operator in graph.operators
        if operator.kind == "DEQUANTIZE"
        and (known := graph.quantization(operator.inputs[0])) is not None
        and len(known.scale) > 1
    ]
    if not several:
        return ()
    return (
        f"{len(several)} DEQUANTIZE have a scale for each channel, and TensorFlow Lite Micro takes "
        f"one for all of them without an error: the outputs are wrong on a device too; export int8",
    )


def fitting(content: bytes, *, keep: bool = False) -> Any:
    """An interpreter with an arena that is large enough.

    Args:
        content: A TFLite file whose operators all have a kernel.
        keep: Keep the values of all tensors of a run; its arena is not that of a device.

    Raises:
        InvalidModelError: If a kernel refuses the model, or no arena is large enough.
        MissingDependencyError: If tflite-micro is not installed.
    """
    try:
        from tflite_micro.python.tflite_micro import runtime
    except ImportError:
        raise MissingDependencyError("tflite-micro", "micro") from None
    config = runtime.InterpreterConfig
    size = _FIRST
    while True:
        with _heard() as said:
            try:
                return runtime.Interpreter.from_bytes(
                    content,
                    arena_size=size,
                    intrepreter_config=config.kPreserveAllTensors
                    if keep
                    else config.kAllocationRecording,
                )
            except RuntimeError:
                written = said()
        if not _SMALL.search(written):
            raise InvalidModelError(
                f"TensorFlow Lite Micro cannot load the model: {last_words(written)}"
            )
        if size >= _LARGEST:
            raise InvalidModelError(
                f"the model needs an arena of more than {_LARGEST:,} bytes: {last_words(written)}"
            )
        size *= 2


def _arena(interpreter: Any, content: bytes) -> Arena:
    """What the allocator recorded of a run, and by bisection the least arena that holds it."""
    with _heard() as said:
        interpreter.print_allocations()
        found = {part: int(size) for part, size in _RECORDED.findall(said())}
    if set(found) != {"head", "tail"}:
        raise ExecutionError(
            "expected the allocator of tflite-micro to say head and tail of the arena, got "
            f"{', '.join(found) or 'neither'}; install the version of requirements.lock"
        )
    least = -(-sum(found.values()) // micro.ALIGNMENT)
    short, enough = least - 1, least
    while not _holds(content, micro.ALIGNMENT * enough):
        short, enough = enough, 2 * enough
    while enough - short > 1:
        middle = (short + enough) // 2
        if _holds(content, micro.ALIGNMENT * middle):
            enough = middle
        else:
            short = middle
    return Arena(micro.ALIGNMENT * enough, found["tail"], found["head"])


def _holds(content: bytes, size: int) -> bool:
    """Whether a model that loads in a large arena loads in one of this size."""
    from tflite_micro.python.tflite_micro import runtime

    with _heard():
        try:
            runtime.Interpreter.from_bytes(content, arena_size=size)
        except RuntimeError:
            return False
    return True


@contextlib.contextmanager
def _heard() -> Iterator[Callable[[], str]]:
    """What C++ writes to stderr meanwhile, which is where all that TensorFlow Lite Micro says goes;
    nobody else sees it."""
    with tempfile.TemporaryFile() as file:
        sys.stderr.flush()
        saved = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:

            def said() -> str:
                size = os.fstat(file.fileno()).st_size
                return os.pread(file.fileno(), size, 0).decode(errors="replace")

            yield said
        finally:
            os.dup2(saved, 2)
            os.close(saved)
