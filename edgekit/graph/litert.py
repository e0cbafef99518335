"""LiteRT's interpreter, and the signature and operators of a TFLite file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.base import words
from edgekit.base.errors import ExecutionError, InvalidModelError, MissingDependencyError, reason
from edgekit.base.quiet import quiet
from edgekit.graph import masks, safe
from edgekit.graph.flatbuffer import Graph
from edgekit.records.signature import Signature, TensorSpec, batched

SIGNATURE_KEY = "serving_default"


def interpreter(
    model: Path | bytes,
    *,
    threads: int = 1,
    exact: bool = False,
    sizes: Mapping[int, Sequence[int]] | None = None,
    **options: Any,
) -> Any:
    """Open a LiteRT interpreter.

    Args:
        model: File or flatbuffer.
        threads: Number of threads of an operator.
        exact: Compute every tensor that the file names, and keep it: no delegate merges any.
        sizes: Sizes of inputs, by the tensor's number, where they are other than in the file.
        options: As LiteRT takes them.

    Raises:
        InvalidModelError: If the file is missing or is no whole TFLite model.
        MissingDependencyError: If ai-edge-litert is not installed.
    """
    try:
        from ai_edge_litert.interpreter import Interpreter, OpResolverType
    except ImportError:
        raise MissingDependencyError("ai-edge-litert", "runtime") from None

    if exact:
        plain = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
        options = {
            "experimental_preserve_all_tensors": True,
            "experimental_op_resolver_type": plain,
            **options,
        }
    if isinstance(model, Path):
        if not model.is_file():
            raise InvalidModelError(f"{words.not_found(model)}; expected a .tflite file")
        name, content = str(model), model.read_bytes()
    else:
        name, content = "the model", model
    if content[4:8] != b"TFL3":
        raise InvalidModelError(f"{name} is not a TFLite model; expected the flatbuffer id TFL3")
    try:
        with quiet():
            opened = Interpreter(model_content=content, num_threads=threads, **options)
            for index, shape in (sizes or {}).items():
                opened.resize_tensor_input(index, list(shape))
            opened.allocate_tensors()
    except (ValueError, RuntimeError) as exc:
        raise InvalidModelError(
            f"{name} cannot be read (cut short?): {reason(exc)}; export it again"
        ) from None
    return opened


def invoke(opened: Any, **inputs: Any) -> Any:
    """Run an interpreter, or a signature's runner on its inputs.

    Raises:
        ExecutionError: If an operator refuses its values.
    """
    try:
        return opened(**inputs) if inputs else opened.invoke()
    except RuntimeError as exc:
        raise ExecutionError(
            f"the model cannot run on these inputs: {reason(exc)}; indices have to be inside of "
            f"their table, and an input that holds them needs a dtype of integers: "
            f"Input(shape, dtype='int32')"
            if "index" in str(exc)
            else f"the model cannot run on these inputs: {reason(exc)}"
        ) from None


def check_operators(content: bytes, name: str) -> None:
    """Refuse operators that are not TFLite's own, as those of TensorFlow ("Flex") are not.

    Args:
        content: Content of a file of others.
        name: Name of the file, for messages.

    Raises:
        InvalidModelError: At the first, with the tensor that it writes; or if it cannot be read.
    """
    try:
        from ai_edge_litert import schema_py_generated as schema
    except ImportError:
        raise MissingDependencyError("ai-edge-litert", "runtime") from None

    known = {number: name for name, number in vars(schema.BuiltinOperator).items()}
    try:
        model = schema.Model.GetRootAs(content, 0)
        for number in range(model.SubgraphsLength()):
            graph = model.Subgraphs(number)
            for place in range(graph.OperatorsLength()):
                operator = graph.Operators(place)
                code = model.OperatorCodes(operator.OpcodeIndex())
                # old files keep small numbers in a field of their own
                builtin = max(code.BuiltinCode(), code.DeprecatedBuiltinCode())
                kind = str(known.get(builtin, builtin))
                custom = (code.CustomCode() or b"").decode(errors="replace")
                if kind in safe.TFLITE_OPERATORS or (
                    kind == "CUSTOM" and custom in safe.TFLITE_CUSTOM
                ):
                    continue
                written = b""
                if operator.OutputsLength():
                    written = graph.Tensors(operator.Outputs(0)).Name() or b""
                tensor = written.decode(errors="replace") or f"operator {place}"
                raise InvalidModelError(
                    f"{name}: {tensor} is written by the operator {custom or kind}, which is not "
                    f"TFLite's own; pass --trust to try it here if you know who made the file"
                )
    except InvalidModelError:
        raise
    except Exception as exc:  # flatbuffers raises struct.error, IndexError, TypeError, ...
        raise InvalidModelError(f"{name} cannot be read (cut short?): {reason(exc)}") from None


def signature(model: Path | bytes) -> Signature:
    """Names (of the signature), shapes, dtypes, scales of inputs and outputs."""
    return signature_of(interpreter(model))


def signature_of(opened: Any) -> Signature:
    """The same of an interpreter that is open already, in the order of the file.

    The runner of a signature has them in the order of the alphabet.
    """
    runner = opened.get_signature_runner(SIGNATURE_KEY)

    def specs(details: Mapping[str, Any], file: Sequence[Any]) -> tuple[TensorSpec, ...]:
        places = {int(detail["index"]): place for place, detail in enumerate(file)}
        tensors = []
        for name, detail in sorted(details.items(), key=lambda each: places[each[1]["index"]]):
            dtype = np.dtype(detail["dtype"]).name
            scale, zero_point = detail["quantization"]
            quantized = dtype in ("int8", "uint8", "int16") and scale > 0
            tensors.append(
                TensorSpec(
                    name=name,
                    shape=tuple(int(size) for size in detail["shape"]),
                    dtype=dtype,
                    scale=float(scale) if quantized else None,
                    zero_point=int(zero_point) if quantized else None,
                )
            )
        return tuple(tensors)

    return batched(
        specs(runner.get_input_details(), opened.get_input_details()),
        specs(runner.get_output_details(), opened.get_output_details()),
    )


@dataclass(frozen=True)
class Activation:
    """A tensor of a graph that is computed, not stored.

    Attributes:
        index: Number in the flatbuffer's subgraph.
        name: As the flatbuffer calls it.
    """

    index: int
    name: str


def activations(opened: Any) -> tuple[Activation, ...]:
    """Inputs and every operator's float outputs, in order of execution."""
    details = {detail["index"]: detail for detail in opened.get_tensor_details()}
    order = [detail["index"] for detail in opened.get_input_details()]
    for operator in opened._get_ops_details():
        order += [int(index) for index in operator["outputs"]]
    seen = dict.fromkeys(index for index in order if index in details)
    return tuple(
        Activation(index, details[index]["name"])
        for index in seen
        if details[index]["dtype"] is np.float32 and details[index]["name"]
    )


def delegated(opened: Any) -> bool:
    """Whether a delegate took a part of the graph of an interpreter whose tensors are allocated."""
    return any(operator["op_name"] == "DELEGATE" for operator in opened._get_ops_details())


def undelegated(opened: Any) -> dict[str, int]:
    """How many operators of each kind no delegate took, so that kernels of LiteRT's own run, with
    the dtype of what they write.

    Args:
        opened: An interpreter whose tensors are allocated.
    """
    operators = opened._get_ops_details()
    makers = {
        int(index): operator
        for operator in operators
        if operator["op_name"] != "DELEGATE"
        for index in operator["outputs"]
    }
    delegated: set[int] = set()
    for operator in operators:
        if operator["op_name"] != "DELEGATE":
            continue
        read = set(map(int, operator["inputs"]))
        waiting = [int(index) for index in operator["outputs"]]
        while waiting:
            maker = makers.get(waiting.pop())
            if maker is not None and maker["index"] not in delegated:
                delegated.add(maker["index"])
                waiting += [index for index in map(int, maker["inputs"]) if index not in read]
    dtypes = {each["index"]: np.dtype(each["dtype"]).name for each in opened.get_tensor_details()}
    counts: dict[str, int] = {}
    for operator in operators:
        if operator["op_name"] == "DELEGATE" or operator["index"] in delegated:
            continue
        kind = f"{operator['op_name']} {dtypes.get(int(operator['outputs'][0]), '')}".rstrip()
        counts[kind] = counts.get(kind, 0) + 1
    return counts


def kernels(model: bytes) -> dict[str, int]:
    """How many operators of each kind a file has, with the dtype of what they write."""
    graph = Graph(model)
    counts: dict[str, int] = {}
    for operator in graph.operators:
        kind = f"{operator.kind} {graph.dtype(operator.outputs[0])}"
        counts[kind] = counts.get(kind, 0) + 1
    return counts


def largest_weight(model: bytes) -> tuple[str, float]:
    """(name, magnitude) of the largest float constant; (``""``, 0.0) without any. Infinities, which
    every float type has, and masks that float16 has others for are left out."""
    opened, others = interpreter(model), masks.of_tflite(Graph(model))
    computed = {activation.index for activation in activations(opened)}
    largest = ("", 0.0)
    for detail in opened.get_tensor_details():
        known = detail["index"] in computed or detail["name"] in others
        if detail["dtype"] is np.float32 and not known and detail["name"]:
            try:
                values = opened.get_tensor(detail["index"])
            except ValueError:  # a delegate's own scratch tensor has no data
                continue
            size = float(np.abs(values[~np.isinf(values)]).max(initial=0))
            largest = max(largest, (detail["name"], size), key=_second)
    return largest


def _second(pair: tuple[str, float]) -> float:
    return pair[1]
