"""ONNX files: from the canonical float graph, float16, int8 QDQ with given encodings."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.encodings import LayerIntegers, Stored
from edgekit.errors import ExecutionError, InvalidModelError, MissingDependencyError, reason
from edgekit.formats.flatbuffer import Graph, short_name
from edgekit.formats.quiet import quiet
from edgekit.signature import Signature, TensorSpec

OPSET = 18
CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
#: Ends the name of a mean over height and width before it is flattened.
POOLED = "__pooled"
#: Operators whose output has the values of their input, in order or not.
_MOVING = ("Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze")
_MOVED = ("RESHAPE", "EXPAND_DIMS", "SQUEEZE", "TRANSPOSE")
#: The last of the ONNX operators that tf2onnx writes for one of TFLite's.
_LAST = {"SQUARED_DIFFERENCE": "Mul", "RSQRT": "Reciprocal"}
_FLOAT_NAMES = frozenset(("float", "float16"))
#: onnxruntime operators that compute; those whose answer is float in an int8 model are named.
#: Moving data (Transpose, Reshape) is no computation.
COMPUTING = frozenset(
    "Conv FusedConv Gemm FusedGemm MatMul FusedMatMul Add Mul Sub Div Relu Clip Sigmoid "
    "HardSigmoid HardSwish Softmax GlobalAveragePool AveragePool MaxPool ReduceMean "
    "BatchNormalization "
    "Concat Pad Resize LeakyRelu PRelu Tanh Exp Sqrt".split()
)
_DTYPES = {
    1: "float32",
    10: "float16",
    2: "uint8",
    3: "int8",
    5: "int16",
    6: "int32",
    7: "int64",
    9: "bool",
}


def from_tflite(canonical: bytes) -> Any:
    """Convert the canonical float flatbuffer; tensor names carry over.

    The global mean becomes GlobalAveragePool and a dense layer becomes Gemm, the forms that
    onnxruntime has integer kernels for. The batch axis becomes free where the graph allows.

    Args:
        canonical: Float flatbuffer.

    Returns:
        A checked ``onnx.ModelProto``.

    Raises:
        InvalidModelError: If an operator has no ONNX form.
    """
    onnx = _onnx()
    try:
        import tf2onnx
    except ImportError:
        raise MissingDependencyError("tf2onnx", "convert") from None
    with tempfile.TemporaryDirectory() as folder, quiet():
        path = Path(folder) / "float.tflite"
        path.write_bytes(canonical)
        try:
            model, _ = tf2onnx.convert.from_tflite(str(path), opset=OPSET)
        except Exception as exc:  # tf2onnx raises many types
            raise InvalidModelError(
                f"the graph cannot be converted to ONNX: {reason(exc)}"
            ) from None
    del model.opset_import[1:]
    _spell_gelu(model)
    for node in model.graph.node:
        if node.domain not in ("", "ai.onnx") or not onnx.defs.has(node.op_type):
            raise InvalidModelError(
                f"{short_name(node.output[0])}: {node.op_type.removeprefix('TFL_')} has no ONNX "
                f"form in tf2onnx; replace the layer, or export --target tflite"
            )
    _pool_instead_of_mean(model, Graph(canonical))
    _gemm_instead_of_matmul(model)
    _restore_gemm_names(model, Graph(canonical))
    _name_activations(model, Graph(canonical))
    del model.graph.value_info[:]
    free = onnx.ModelProto()
    free.CopyFrom(model)
    _free_batch(free)
    model = free if _batches(free, model) else model
    try:
        model = onnx.shape_inference.infer_shapes(model)
        onnx.checker.check_model(model, full_check=True)
    except Exception as exc:  # the checker's own types
        raise InvalidModelError(f"the graph becomes no valid ONNX: {reason(exc)}") from None
    return model


def to_float16(model: Any, *, keep: Collection[str] = ()) -> Any:
    """Weights and computation in float16, float32 in and out.

    Weights have to lie in the range of float16, up to 65,504; :mod:`edgekit.formats.half` sees to
    it, and to what lies between the operators.

    Args:
        model: Float ``onnx.ModelProto``; stays as it is.
        keep: Names of nodes that stay float32, beside the operators that have no float16 form.
    """
    onnx = _onnx()
    try:
        from onnxruntime.transformers.float16 import convert_float_to_float16
    except ImportError:
        raise MissingDependencyError("onnxruntime", "convert") from None
    given = onnx.ModelProto()
    given.CopyFrom(model)
    for node in list(given.graph.node):  # the converter casts every input under one name
        for place, name in enumerate(node.input):
            if name and name in list(node.input)[:place]:
                node.input[place] = f"{node.output[0]}__input_{place}"
                same = onnx.helper.make_node("Identity", [name], [node.input[place]])
                same.name = node.input[place]
                given.graph.node.insert(list(given.graph.node).index(node), same)
    with quiet():
        half = convert_float_to_float16(given, keep_io_types=True, node_block_list=list(keep))
    _sort(half)
    try:
        onnx.checker.check_model(half)
    except Exception as exc:  # the checker's own types
        raise InvalidModelError(f"the graph becomes no valid float16: {reason(exc)}") from None
    return half


def quantize(
    model: Any,
    stored: Stored,
    *,
    activation_dtype: str = "uint8",
    quantize_bias: bool = True,
) -> Any:
    """QDQ int8 with given numbers: weights int8 per channel, float32 in and out.

    onnxruntime's quantizer writes the graph; every scale, zero_point, weight and bias in it is the
    one that was given.

    Args:
        model: Float ``onnx.ModelProto`` from :func:`from_tflite`, with the float constants that
            ``stored`` stands for.
        stored: Of all activations and layers of the canonical graph.
        activation_dtype: ``uint8``, which adds 128 to every zero_point and is the same number, or
            ``int8``.
        quantize_bias: Write int32 biases; else they stay float, as TensorRT asks for.

    Returns:
        The quantized ``onnx.ModelProto``. What has no integer kernel in onnxruntime, or no tensor
        in the canonical graph (parts of an operator that ONNX lacks), stays float.
    """
    onnx = _onnx()
    try:
        from onnxruntime.quantization import QuantType
        from onnxruntime.quantization.calibrate import CalibrationMethod, TensorData, TensorsData
        from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
        from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry
    except ImportError:
        raise MissingDependencyError("onnxruntime", "convert") from None

    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    _separate(copied)
    _drop_clips(copied, stored.activations)
    activations = _activation_encodings(copied, stored.activations)
    left = _without_encodings(copied, activations)
    unsigned = activation_dtype == "uint8"
    dtype, kind = (np.uint8, QuantType.QUInt8) if unsigned else (np.int8, QuantType.QInt8)
    shift = 128 if unsigned else 0
    overrides = {
        name: [
            {
                "quant_type": kind,
                "scale": np.array(scale, np.float32),
                "zero_point": np.array(zero_point + shift, dtype),
            }
        ]
        for name, (scale, zero_point) in activations.items()
    }
    ranges = {
        name: TensorData(
            lowest=np.array((-128 - zero_point) * scale, np.float32),
            highest=np.array((127 - zero_point) * scale, np.float32),
        )
        for name, (scale, zero_point) in activations.items()
    }
    with quiet():
        writer = QDQQuantizer(
            copied,
            per_channel=True,
            reduce_range=False,
            weight_qType=QuantType.QInt8,
            activation_qType=kind,
            tensors_range=TensorsData(CalibrationMethod.MinMax, ranges),
            nodes_to_quantize=[],
            nodes_to_exclude=[node.name for node in left],
            op_types_to_quantize=sorted({*QDQRegistry, *QLinearOpsRegistry}),
            extra_options={
                "TensorQuantOverrides": overrides,
                "WeightSymmetric": True,
                "ActivationSymmetric": all(z == 0 for _, z in activations.values()),
                "QuantizeBias": quantize_bias,
                "QDQDisableWeightAdjustForInt32Bias": True,
                "QDQKeepRemovableActivations": True,  # _drop_clips knows which the ranges replace
            },
        )
        writer.quantize_model()
    quantized = writer.model.model
    _put_integers(quantized, stored, quantize_bias=quantize_bias)
    _round_between(quantized, activations, dtype, shift)
    _sort(quantized)
    onnx.checker.check_model(quantized)
    return quantized


def read_stored(model: Any, graph: Graph) -> Stored:
    """The integers and scales of an int8 file, in the canonical graph's words.

    Args:
        model: Quantized ``onnx.ModelProto``.
        graph: Any flatbuffer of the same model, for its tensors' names.
    """
    constants = stored_constants(model)
    ends = dict(zip((value.name for value in model.graph.input), graph.inputs, strict=True))
    ends.update(zip((value.name for value in model.graph.output), graph.outputs, strict=True))
    makers = {output: node for node in model.graph.node for output in node.output}

    def origin(name: str) -> str:
        """The tensor behind a pair of QuantizeLinear and DequantizeLinear."""
        while name in makers and makers[name].op_type in ("QuantizeLinear", "DequantizeLinear"):
            name = makers[name].input[0]
        name = name.removesuffix("_QuantizeLinear_Input")
        return str(ends.get(name, name))

    found: dict[str, tuple[float, int]] = {}
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear":
            zero_point = constants[node.input[2]]
            shift = 128 if zero_point.dtype == np.uint8 else 0
            number = float(constants[node.input[1]]), int(zero_point) - shift
            found[origin(node.input[0])] = number
    # what is only moved may be rounded before or behind it
    for node in [*model.graph.node, *reversed(model.graph.node)]:
        if node.op_type in _MOVING:
            one, other = origin(node.input[0]), origin(node.output[0])
            if one in found:
                found.setdefault(other, found[one])
            elif other in found:
                found[one] = found[other]
    there = set(makers) | set(ends)
    for operator in graph.operators:  # what the converter took out holds the same numbers
        if operator.kind in _MOVED and operator.outputs[0] not in there:
            if operator.inputs[0] in found:
                found.setdefault(operator.outputs[0], found[operator.inputs[0]])
    for operator in reversed(graph.operators):
        merged = operator.kind in ("RELU", "RELU6")  # by onnxruntime's writer
        if (merged or operator.kind in _MOVED) and operator.inputs[0] not in there:
            if operator.outputs[0] in found:
                found.setdefault(operator.inputs[0], found[operator.outputs[0]])
    names = set(graph.tensors)
    activations = {name: number for name, number in found.items() if name in names}
    layers = {}
    for node, place in _layer_nodes(model):
        weights = _dequantized(model, node.input[1], constants)
        if weights is None:
            continue
        bias = _dequantized(model, node.input[2], constants) if len(node.input) > 2 else None
        layers[ends.get(place, place)] = LayerIntegers(
            weights=_to_canonical(node, weights[0]),
            weight_scale=np.atleast_1d(weights[1]),
            bias=None if bias is None else bias[0],
            bias_scale=None if bias is None else np.atleast_1d(bias[1]),
        )
    return Stored(activations, layers)


def absent(model: Any, graph: Graph) -> tuple[str, ...]:
    """Activations of the canonical graph that the ONNX graph has no tensor for, nor integers.

    tf2onnx merges operators, and names what it turns around anew.
    """
    there = {
        name.removesuffix("_QuantizeLinear_Input") for n in model.graph.node for name in n.output
    }
    known = read_stored(model, graph).activations
    computed = [name for operator in graph.operators for name in operator.outputs]
    return tuple(
        name
        for name in computed
        if graph.dtype(name) == np.float32
        and name not in (*graph.inputs, *graph.outputs)
        and name not in there
        and name not in known
    )


def read_floats(model: Any, graph: Graph) -> dict[str, tuple[Any, Any]]:
    """(weights or None, bias or None) of each layer that are stored in float, canonical layout.

    Args:
        model: ``onnx.ModelProto``.
        graph: Any flatbuffer of the same model, for its tensors' names.
    """
    constants = stored_constants(model)
    ends = dict(zip((value.name for value in model.graph.output), graph.outputs, strict=True))
    found = {}
    for node, place in _layer_nodes(model):
        weights = constants.get(node.input[1])
        bias = constants.get(node.input[2]) if len(node.input) > 2 else None
        if weights is not None or bias is not None:
            whole = None if weights is None else _to_canonical(node, weights).astype(np.float32)
            found[str(ends.get(place, place))] = (
                None if whole is None else np.ascontiguousarray(whole),
                None if bias is None else bias.astype(np.float32),
            )
    return found


def activated(model: Any, graph: Graph) -> frozenset[str]:
    """Layers, by canonical output, whose activation is an operator of the file."""
    ends = dict(zip((value.name for value in model.graph.output), graph.outputs, strict=True))
    found = set()
    for node, place in _layer_nodes(model):
        if node.output[0].removesuffix("_QuantizeLinear_Input") != place:
            found.add(str(ends.get(place, place)))
    return frozenset(found)


def signature(model: Any) -> Signature:
    """Signature of a file or ``ModelProto``, free axes as -1.

    Raises:
        InvalidModelError: If the file is missing or no whole ONNX model.
    """
    if isinstance(model, Path):
        model = load(model)

    def spec(value: Any) -> TensorSpec:
        kind = value.type.tensor_type
        return TensorSpec(
            name=value.name,
            shape=tuple(d.dim_value if d.HasField("dim_value") else -1 for d in kind.shape.dim),
            dtype=_DTYPES.get(kind.elem_type, str(kind.elem_type)),
        )

    weights = {tensor.name for tensor in model.graph.initializer}
    return Signature(
        inputs=tuple(spec(v) for v in model.graph.input if v.name not in weights),
        outputs=tuple(spec(v) for v in model.graph.output),
    )


def load(path: Path) -> Any:
    """Read and check a ``.onnx`` file; returns an ``onnx.ModelProto``.

    Raises:
        InvalidModelError: If the file is missing or no whole ONNX model.
    """
    onnx = _onnx()
    if not path.is_file():
        raise InvalidModelError(f"{path} not found; expected an .onnx file")
    try:
        model = onnx.load(path)
        onnx.checker.check_model(model)
    except Exception as exc:  # protobuf's and the checker's own types
        raise InvalidModelError(
            f"{path} cannot be read as ONNX (cut short?): {reason(exc)}; export it again"
        ) from None
    return model


def parse(content: bytes) -> Any:
    """Bytes as an ``onnx.ModelProto``."""
    return _onnx().ModelProto.FromString(content)


def session(
    model: Path | bytes,
    *,
    threads: int = 1,
    options: Mapping[str, str] | None = None,
    profile: Path | None = None,
    provider: str = CPU,
    provider_options: Mapping[str, str] | None = None,
) -> Any:
    """Open an onnxruntime session on one provider; nothing else steps in for it.

    Args:
        model: File or serialised model.
        threads: Threads inside an operator.
        options: Session config entries, e.g. ``session.x64quantprecision``.
        profile: Path whose name begins that of the profile, which ``end_profiling`` writes.
        provider: Execution provider, the CPU's by default.
        provider_options: Its options.

    Raises:
        InvalidModelError: If the file is missing or no whole ONNX model.
        ExecutionError: If the session runs on another provider than asked for.
        MissingDependencyError: If onnxruntime is not installed.
    """
    try:
        import onnxruntime
    except ImportError:
        raise MissingDependencyError("onnxruntime", "runtime") from None

    if isinstance(model, Path) and not model.is_file():
        raise InvalidModelError(f"{model} not found; expected an .onnx file")
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    settings.inter_op_num_threads = 1
    settings.log_severity_level = 3
    for key, value in (options or {}).items():
        settings.add_session_config_entry(key, value)
    if profile is not None:
        settings.enable_profiling = True
        settings.profile_file_prefix = str(profile)
    content = str(model) if isinstance(model, Path) else model
    there = onnxruntime.get_available_providers()
    if provider not in there:
        raise ExecutionError(
            f"expected {provider}, this onnxruntime has {', '.join(there)}; install one that has "
            f"it: pip install 'edgekit[gpu]'"
        )
    if provider == CUDA:
        with quiet():  # it prints which libraries are missing
            onnxruntime.preload_dlls()
    try:
        found = onnxruntime.InferenceSession(
            content,
            settings,
            providers=[(provider, dict(provider_options or {}))],
            enable_fallback=0,  # else another provider would step in after an error
        )
    except Exception as exc:  # onnxruntime raises its own types
        if provider != CPU:
            raise ExecutionError(f"{provider} cannot run the model: {reason(exc)}") from None
        raise InvalidModelError(
            f"{content if isinstance(content, str) else 'the model'} is no usable ONNX: "
            f"{reason(exc)}"
        ) from None
    got = found.get_providers()
    if got[0] != provider:
        raise ExecutionError(
            f"expected {provider}, the session got {', '.join(got)} only: no usable NVIDIA GPU, "
            f"or CUDA and cuDNN are missing; pip install 'edgekit[gpu]' brings them"
        )
    return found


@dataclass(frozen=True)
class Node:
    """A node that ran.

    Attributes:
        kind: Operator.
        name: Name in the graph that was run, after onnxruntime fused it.
        ms: Time of all runs together.
        computes_in_float: Whether it is a computing operator that answered in float.
    """

    kind: str
    name: str
    ms: float
    computes_in_float: bool


def executed(
    model: Path | bytes,
    feed: Mapping[str, Any],
    *,
    threads: int = 1,
    options: Mapping[str, str] | None = None,
    runs: int = 1,
    provider: str = CPU,
    provider_options: Mapping[str, str] | None = None,
) -> tuple[Node, ...]:
    """Run a model under onnxruntime's profiler; the nodes that ran, in order.

    Raises:
        ExecutionError: If a node ran on another provider; see :func:`ran`.
    """
    with tempfile.TemporaryDirectory() as folder:
        opened = session(
            model,
            threads=threads,
            options=options,
            profile=Path(folder) / "profile",
            provider=provider,
            provider_options=provider_options,
        )
        for _ in range(runs):
            opened.run(None, dict(feed))
        events = json.loads(Path(opened.end_profiling()).read_text(encoding="utf-8"))
    return ran(events, provider)


def ran(events: list[Any], provider: str) -> tuple[Node, ...]:
    """The nodes in a profile, in order.

    Args:
        events: The profile, as onnxruntime writes it.
        provider: Where they are expected to have run. Beside another provider than the CPU's, the
            CPU may run what answers integers only: onnxruntime leaves arithmetic of shapes there.

    Raises:
        ExecutionError: If a node ran elsewhere.
    """
    found: dict[str, Node] = {}
    elsewhere: dict[str, str] = {}
    for event in events:
        if event.get("cat") != "Node" or not event["name"].endswith("_kernel_time"):
            continue
        arguments = event["args"]
        kind, name = arguments["op_name"], event["name"].removesuffix("_kernel_time")
        answers = {dtype for shape in arguments["output_type_shape"] for dtype in shape}
        where = arguments.get("provider", "")
        of_shapes = where == CPU and bool(answers) and not answers & _FLOAT_NAMES
        if where != provider and not of_shapes:
            elsewhere[name] = f"{kind} {name} on {where or 'none'}"
        ms = event["dur"] / 1e3 + (found[name].ms if name in found else 0.0)
        found[name] = Node(kind, name, ms, kind in COMPUTING and bool(answers & _FLOAT_NAMES))
    if elsewhere:
        first = next(iter(elsewhere.values()))
        raise ExecutionError(
            f"expected every node on {provider}, got {len(elsewhere)} of {len(found)} elsewhere, "
            f"first {first}"
        )
    return tuple(found.values())


def rename_ends(model: Any, graph: Graph) -> None:
    """Give inputs and outputs the names that the canonical graph's signature has, in place."""
    renamed = {}
    for values, tensors, signed in (
        (model.graph.input, graph.inputs, graph.entries),
        (model.graph.output, graph.outputs, graph.ends),
    ):
        names = {tensor: name for name, tensor in signed.items()}
        for value, tensor in zip(values, tensors, strict=True):
            renamed[value.name] = names.get(tensor, tensor)
            value.name = renamed[value.name]
    for node in model.graph.node:
        for ends in (node.input, node.output):
            for i, name in enumerate(ends):
                ends[i] = renamed.get(name, name)


def _drop_clips(model: Any, encodings: Mapping[str, tuple[float, int]]) -> None:
    """Take out each Clip or Relu that the integer range behind it does by itself, in place.

    A fused activation is one tensor in TFLite and two in ONNX (convolution, Clip). What writes the
    first then writes the second, under the canonical name.
    """
    constants = stored_constants(model)
    makers = {output: node for node in model.graph.node for output in node.output}
    for node in list(model.graph.node):
        if node.op_type not in ("Clip", "Relu") or node.output[0] not in encodings:
            continue
        source = node.input[0]
        users = [other for other in model.graph.node if source in other.input]
        if len(users) != 1 or source not in makers or source in encodings:
            continue
        scale, zero_point = encodings[node.output[0]]
        low = high = None
        if node.op_type == "Relu":
            low = 0.0
        else:
            ends = [constants.get(name) if name else None for name in node.input[1:3]]
            low, high = (None if end is None else float(end) for end in [*ends, None][:2])
        tolerance = scale / 2
        if low is not None and (-128 - zero_point) * scale < low - tolerance:
            continue
        if high is not None and (127 - zero_point) * scale > high + tolerance:
            continue
        maker = makers[source]
        maker.output[list(maker.output).index(source)] = node.output[0]
        model.graph.node.remove(node)


def _activation_encodings(
    model: Any, encodings: Mapping[str, tuple[float, int]]
) -> dict[str, tuple[float, int]]:
    """(scale, int8 zero_point) of each activation of the ONNX graph.

    A tensor that is only moved (Transpose, Reshape, Flatten) keeps its numbers, and a Clip that is
    left has one encoding on both of its sides.
    """
    in_graph = {value.name for value in model.graph.input}
    in_graph.update(output for node in model.graph.node for output in node.output)
    found = {name: encoding for name, encoding in encodings.items() if name in in_graph}
    for node in model.graph.node:
        if node.op_type in ("Clip", "Relu", *_MOVING):
            if node.input[0] in found:
                found.setdefault(node.output[0], found[node.input[0]])
            elif node.output[0] in found:
                found[node.input[0]] = found[node.output[0]]
    return found


def _separate(model: Any) -> None:
    """Give every convolution and dense layer constants of its own, in place.

    tf2onnx keeps equal ones once; each use gets integers of its own.
    """
    layers = ("Conv", "Gemm", "MatMul")
    seen = {name for n in model.graph.node if n.op_type not in layers for name in n.input}
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        for place, name in enumerate(node.input):
            if node.op_type not in layers or place == 0 or name not in tensors:
                continue
            if name in seen:
                copied = model.graph.initializer.add()
                copied.CopyFrom(tensors[name])
                copied.name = node.input[place] = f"{name}__of__{node.output[0]}"
            seen.add(name)


def _round_between(
    model: Any, activations: Mapping[str, tuple[float, int]], dtype: Any, shift: int
) -> None:
    """Round what lies between two operators without an integer kernel as well, in place.

    onnxruntime's writer leaves such a tensor in float; a pair of QuantizeLinear and
    DequantizeLinear behind it makes it the same number as in TFLite.
    """
    onnx = _onnx()
    makers = {output: node for node in model.graph.node for output in node.output}
    readers: dict[str, list[Any]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    ends = {value.name for value in model.graph.output}

    def rounded_behind(name: str) -> bool:
        return any(
            node.op_type == "QuantizeLinear"
            or (node.op_type in _MOVING and rounded_behind(node.output[0]))
            for node in readers.get(name, [])
        )

    def rounded_before(name: str) -> bool:
        maker = makers.get(name)
        if maker is None or maker.op_type == "DequantizeLinear":
            return True
        return maker.op_type in _MOVING and rounded_before(maker.input[0])

    for name, (scale, zero_point) in activations.items():
        if name not in makers or name in ends or rounded_behind(name) or rounded_before(name):
            continue
        if makers[name].op_type in _MOVING:
            continue  # what it moves is rounded
        numbers = []
        for suffix, value in (
            ("scale", np.float32(scale)),
            ("zero_point", dtype(zero_point + shift)),
        ):
            numbers.append(f"{name}__{suffix}")
            model.graph.initializer.append(
                onnx.numpy_helper.from_array(np.asarray(value), numbers[-1])
            )
        stored, real = f"{name}__stored", f"{name}__rounded"
        for reader in readers[name]:
            for place, given in enumerate(reader.input):
                if given == name:
                    reader.input[place] = real
        make = onnx.helper.make_node
        model.graph.node.append(make("QuantizeLinear", [name, *numbers], [stored], name=stored))
        model.graph.node.append(make("DequantizeLinear", [stored, *numbers], [real], name=real))


def _layer_nodes(model: Any) -> Iterator[tuple[Any, str]]:
    """(node, tensor that it writes in the canonical graph) of convolutions and dense layers."""
    readers: dict[str, list[Any]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    for node in model.graph.node:
        if node.op_type not in ("Conv", "Gemm", "MatMul"):
            continue
        name = node.output[0]
        while True:  # an activation that is an operator of its own is part of the layer
            users = readers.get(name, [])
            if len(users) != 1:
                break
            if _belongs(users[0], name):
                name = users[0].output[0]
            elif users[0].op_type == "QuantizeLinear":
                back = readers.get(users[0].output[0], [])
                users = readers.get(back[0].output[0], []) if len(back) == 1 else []
                if len(users) != 1 or not _belongs(users[0], name):
                    break
                name = users[0].output[0]
            else:
                break
        yield node, name.removesuffix("_QuantizeLinear_Input")


def _belongs(node: Any, name: str) -> bool:
    """Whether a node behind a layer is part of it: an activation, or the turn of an output."""
    return node.op_type in ("Clip", "Relu") or (
        node.op_type == "Transpose" and "_raw_output_" in name
    )


def _put_integers(model: Any, stored: Stored, *, quantize_bias: bool) -> None:
    """Write given integers and scales where onnxruntime's quantizer put its own, in place."""
    makers = {node.output[0]: node for node in model.graph.node}
    for number, (node, place) in enumerate(_layer_nodes(model)):
        layer = stored.layers.get(place)
        if layer is None:
            continue
        weights = _from_canonical(node, layer.weights)
        _replace(model, makers[node.input[1]], f"weights_{number}", weights, layer.weight_scale)
        if layer.bias is not None and quantize_bias and len(node.input) > 2:
            assert layer.bias_scale is not None
            _replace(model, makers[node.input[2]], f"bias_{number}", layer.bias, layer.bias_scale)
    used = {name for node in model.graph.node for name in node.input}
    for tensor in [t for t in model.graph.initializer if t.name not in used]:
        model.graph.initializer.remove(tensor)


def _replace(model: Any, dequantize: Any, name: str, values: Any, scale: Any) -> None:
    """Give a DequantizeLinear constants of its own."""
    onnx = _onnx()
    old = stored_constants(model)[dequantize.input[0]]
    if old.shape != values.shape or old.dtype != values.dtype:
        raise ExecutionError(
            f"onnxruntime wrote {name} as {old.dtype} {old.shape}, expected {values.dtype} "
            f"{values.shape}; please report the model"
        )
    for place, (suffix, array) in enumerate(
        (
            ("", values),
            ("_scale", scale.astype(np.float32)),
            ("_zero_point", np.zeros(len(scale), values.dtype)),
        )
    ):
        tensor = onnx.numpy_helper.from_array(np.ascontiguousarray(array), f"{name}{suffix}")
        model.graph.initializer.append(tensor)
        if place < len(dequantize.input):
            dequantize.input[place] = tensor.name
        else:
            dequantize.input.append(tensor.name)


def _dequantized(model: Any, name: str, constants: Mapping[str, Any]) -> tuple[Any, Any] | None:
    """(integers, scale) of a constant behind a DequantizeLinear, or None."""
    for node in model.graph.node:
        if node.output[0] == name and node.op_type == "DequantizeLinear":
            if node.input[0] in constants:
                return constants[node.input[0]], constants[node.input[1]]
    return None


def _to_canonical(node: Any, weights: Any) -> Any:
    """Weights of a node in TFLite's layout."""
    if node.op_type == "Conv":
        depthwise = attribute(node, "group", 1) > 1 and weights.shape[1] == 1
        return weights.transpose((1, 2, 3, 0) if depthwise else (0, 2, 3, 1))
    return weights if attribute(node, "transB", 0) else weights.T


def _from_canonical(node: Any, weights: Any) -> Any:
    """Weights in TFLite's layout as a node takes them."""
    if node.op_type == "Conv":
        depthwise = attribute(node, "group", 1) > 1 and weights.shape[0] == 1
        return weights.transpose((3, 0, 1, 2) if depthwise else (0, 3, 1, 2))
    return weights if attribute(node, "transB", 0) else weights.T


def _without_encodings(model: Any, activations: Mapping[str, tuple[float, int]]) -> list[Any]:
    """Nodes that read or write a tensor without encodings, constants apart."""
    stored = {tensor.name for tensor in model.graph.initializer} | {""}
    return [
        node
        for node in model.graph.node
        if any(name not in activations for name in node.output)
        or any(name not in activations and name not in stored for name in node.input)
    ]


def _pool_instead_of_mean(model: Any, graph: Graph) -> None:
    """The mean over height and width: a global average pool, then Flatten or Transpose, in place.

    What the converter has channels last is brought to channels first for it.
    """
    helper = _onnx().helper
    constants = stored_constants(model)
    makers = {node.output[0]: node for node in model.graph.node}
    known = set(graph.tensors)
    for node in list(model.graph.node):
        if node.op_type != "ReduceMean":
            continue
        axes = constants.get(node.input[1]) if len(node.input) > 1 else None
        over = [] if axes is None else sorted(axes.ravel().tolist())
        kept = bool(attribute(node, "keepdims", 1))
        if over == [2, 3] and kept and node.output[0] in known:
            if len(graph.shape(node.output[0])) == 4:  # channels first already
                del node.input[1:], node.attribute[:]
                node.op_type = "GlobalAveragePool"
            continue
        if over != [1, 2]:
            continue
        position = list(model.graph.node).index(node)
        before = makers.get(node.input[0])
        added = []
        if before is not None and _is_transpose(before, [0, 2, 3, 1]):
            first = before.input[0]
        else:
            first = f"{node.output[0]}__first"
            added.append(
                helper.make_node("Transpose", [node.input[0]], [first], first, perm=[0, 3, 1, 2])
            )
        pooled = node.output[0] + POOLED
        added.append(helper.make_node("GlobalAveragePool", [first], [pooled], pooled))
        kind, form = "Flatten", dict[str, Any](axis=1)
        if kept:
            kind, form = "Transpose", {"perm": [0, 2, 3, 1]}
        added.append(helper.make_node(kind, [pooled], [node.output[0]], node.name, **form))
        model.graph.node.remove(node)
        for each in reversed(added):
            model.graph.node.insert(position, each)
        if before is not None and not any(before.output[0] in n.input for n in model.graph.node):
            model.graph.node.remove(before)


def _is_transpose(node: Any, order: list[int]) -> bool:
    return node.op_type == "Transpose" and list(attribute(node, "perm", [])) == order


def _gemm_instead_of_matmul(model: Any) -> None:
    """A product with a constant matrix, then a constant summand: one Gemm with a bias."""
    helper = _onnx().helper
    constants = stored_constants(model)
    for node in list(model.graph.node):
        if node.op_type != "MatMul" or node.input[1] not in constants:
            continue
        if constants[node.input[1]].ndim != 2:
            continue
        users = [other for other in model.graph.node if node.output[0] in other.input]
        inputs, output, add = list(node.input), node.output[0], None
        if len(users) == 1 and users[0].op_type == "Add":
            bias = [name for name in users[0].input if name != node.output[0]]
            if bias and bias[0] in constants and constants[bias[0]].ndim == 1:
                add, inputs, output = users[0], [*inputs, bias[0]], users[0].output[0]
        gemm = helper.make_node("Gemm", inputs, [output], name=node.name)
        position = list(model.graph.node).index(node)
        model.graph.node.remove(node)
        model.graph.node.insert(position, gemm)
        if add is not None:
            model.graph.node.remove(add)


def _restore_gemm_names(model: Any, graph: Graph) -> None:
    """tf2onnx gives a dense layer it fuses a name of its own; give back the canonical tensor's.

    A sum with something computed, which it fuses too, becomes an operator of its own again.
    """
    sums = {name: o for o in graph.operators if o.kind == "ADD" for name in o.inputs}
    constants = {tensor.name for tensor in model.graph.initializer}
    for node in list(model.graph.node):
        canonical, suffix, _ = node.output[0].partition("_Gemm__")
        computed = len(node.input) > 2 and node.input[2] not in constants
        if node.op_type != "Gemm" or not suffix or not computed or canonical not in sums:
            continue
        fused, summed = node.output[0], sums[canonical].outputs[0]
        for other in model.graph.node:
            for i, name in enumerate(other.input):
                if name == fused:
                    other.input[i] = summed
        add = _onnx().helper.make_node("Add", [canonical, node.input[2]], [summed], name=summed)
        node.output[0] = canonical
        del node.input[2]
        model.graph.node.insert(list(model.graph.node).index(node) + 1, add)
    for node in model.graph.node:
        canonical, suffix, _ = node.output[0].partition("_Gemm__")
        if node.op_type != "Gemm" or not suffix:
            continue
        for other in model.graph.node:
            for i, name in enumerate(other.input):
                if name == node.output[0]:
                    other.input[i] = canonical
        node.output[0] = canonical


def _name_activations(model: Any, graph: Graph) -> None:
    """Give the canonical name to the last of the operators that one became, not to the first.

    tf2onnx calls the convolution's output as TFLite calls that of convolution and ReLU together.
    """
    lasts = {o.outputs[0]: _LAST[o.kind] for o in graph.operators if o.kind in _LAST}
    fused = graph.fused()
    makers = {output: node for node in model.graph.node for output in node.output}
    for node in model.graph.node:
        activation = node.op_type in ("Clip", "Relu") and node.input[0] in fused
        if not node.input or not (activation or lasts.get(node.input[0]) == node.op_type):
            continue
        canonical, before = node.input[0], f"{node.input[0]}__linear"
        users = [other for other in model.graph.node if canonical in other.input]
        if len(users) != 1 or canonical not in makers:
            continue
        renamed = {canonical: before, node.output[0]: canonical}
        for other in model.graph.node:
            for ends in (other.input, other.output):
                for i, name in enumerate(ends):
                    ends[i] = renamed.get(name, name)


def _free_batch(model: Any) -> None:
    """Make the batch axis free; Reshape copies it from its input instead of fixing it at 1."""
    onnx = _onnx()
    constants = stored_constants(model)
    for node in model.graph.node:
        if node.op_type == "Reshape" and node.input[1] in constants:
            shape = constants[node.input[1]].copy()
            if len(shape) and shape[0] == 1:
                shape[0] = 0
                name = f"{node.output[0]}__shape"
                model.graph.initializer.append(onnx.numpy_helper.from_array(shape, name))
                node.input[1] = name
    used = {name for node in model.graph.node for name in node.input}
    for tensor in [t for t in model.graph.initializer if t.name not in used]:
        model.graph.initializer.remove(tensor)
    for value in [*model.graph.input, *model.graph.output]:
        value.type.tensor_type.shape.dim[0].dim_param = "batch"


def _batches(free: Any, fixed: Any) -> bool:
    """Whether two samples at once answer as one at a time; a batch inside of the graph forbids it.

    A recurrent layer, say, has time before batch, and sizes that hold for one sample only.
    """
    random = np.random.default_rng(0)
    feed = {}
    for spec in signature(fixed).inputs:
        if not spec.shape or spec.shape[0] != 1:
            return False
        values = random.integers(0, 2, (2, *spec.shape[1:]))
        feed[spec.name] = values.astype(spec.dtype)
    try:
        alone = session(fixed.SerializeToString())
        whole = session(free.SerializeToString()).run(None, feed)
    except InvalidModelError:
        raise
    except Exception:  # onnxruntime raises its own types where sizes do not fit
        return False
    for i in range(2):
        one = alone.run(None, {name: values[i : i + 1] for name, values in feed.items()})
        for found, expected in zip(whole, one, strict=True):
            if found.shape != (2, *expected.shape[1:]):
                return False
            if not np.allclose(found[i : i + 1], expected, 1e-2, 1e-3, equal_nan=True):
                return False
    return True


def _spell_gelu(model: Any) -> None:
    """GELU, for which tf2onnx has no form, in operators of ONNX (Hendrycks and Gimpel 2016)."""
    onnx = _onnx()
    make = onnx.helper.make_node
    for node in [node for node in model.graph.node if node.op_type == "TFL_GELU"]:
        x, y = node.input[0], node.output[0]
        exact = not attribute(node, "approximate", 0)
        numbers = {"half": 0.5, "one": 1.0, "root": 0.5**0.5 if exact else (2 / np.pi) ** 0.5}
        if not exact:
            numbers["cubic"] = 0.044715
        for name, value in numbers.items():
            array = np.array(value, np.float32)
            model.graph.initializer.append(onnx.numpy_helper.from_array(array, f"{y}__{name}"))
        steps: list[tuple[str, list[str], str]] = []
        inner = x
        if not exact:
            steps += [
                ("Mul", [x, x], "square"),
                ("Mul", [f"{y}__square", x], "cube"),
                ("Mul", [f"{y}__cube", f"{y}__cubic"], "term"),
                ("Add", [f"{y}__term", x], "inner"),
            ]
            inner = f"{y}__inner"
        steps += [
            ("Mul", [inner, f"{y}__root"], "scaled"),
            ("Erf" if exact else "Tanh", [f"{y}__scaled"], "curve"),
            ("Add", [f"{y}__curve", f"{y}__one"], "raised"),
            ("Mul", [x, f"{y}__half"], "halved"),
            ("Mul", [f"{y}__halved", f"{y}__raised"], ""),
        ]
        place = list(model.graph.node).index(node)
        model.graph.node.remove(node)
        for kind, inputs, name in reversed(steps):
            output = f"{y}__{name}" if name else y
            model.graph.node.insert(place, make(kind, inputs, [output], name=output))


def _sort(model: Any) -> None:
    """Put nodes in order of execution; onnxruntime's writers append theirs at the end."""
    from onnxruntime.quantization.onnx_model import ONNXModel

    ONNXModel(model).topological_sort()


def prepare(model: Any) -> Any:
    """Batch normalisation folded, constants computed, an operator set with scales a channel.

    Raises:
        InvalidModelError: If onnxruntime cannot run the model, or its sizes are not known.
    """
    onnx = _onnx()
    try:
        import onnxruntime
    except ImportError:
        raise MissingDependencyError("onnxruntime", "convert") from None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "prepared.onnx"
        settings = onnxruntime.SessionOptions()
        settings.log_severity_level = 3
        settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        settings.optimized_model_filepath = str(path)
        try:
            older = model.opset_import[0].version < OPSET
            given = onnx.version_converter.convert_version(model, OPSET) if older else model
            onnxruntime.InferenceSession(given.SerializeToString(), settings, providers=[CPU])
            found = onnx.shape_inference.infer_shapes(onnx.load(path), strict_mode=True)
        except Exception as exc:  # onnx and onnxruntime raise many types
            raise InvalidModelError(
                f"the ONNX file cannot be prepared for int8: {reason(exc)}"
            ) from None
    for i, node in enumerate(found.graph.node):
        node.name = node.name or f"{node.op_type}_{i}"
    return found


def quantize_own(
    model: Any,
    ranges: Mapping[str, tuple[float, float]],
    *,
    activation_dtype: str,
    symmetric: bool,
    quantize_bias: bool,
) -> Any:
    """QDQ int8 of a foreign float model with given ranges, weights per channel.

    Args:
        model: Float ``onnx.ModelProto`` of another exporter.
        ranges: (min, max) by tensor name, 0 between them.
        activation_dtype: ``uint8`` or ``int8``.
        symmetric: Whether zero_point has to be 0.
        quantize_bias: Write int32 biases; else they stay float.

    Raises:
        InvalidModelError: If onnxruntime's quantizer refuses the model.
    """
    try:
        from onnxruntime.quantization import QuantType
        from onnxruntime.quantization.calibrate import CalibrationMethod, TensorData, TensorsData
        from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
        from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry
    except ImportError:
        raise MissingDependencyError("onnxruntime", "convert") from None
    onnx = _onnx()
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    _separate(copied)
    found = {
        name: TensorData(lowest=np.array(low, np.float32), highest=np.array(high, np.float32))
        for name, (low, high) in ranges.items()
    }
    known = set(found) | {tensor.name for tensor in copied.graph.initializer} | {""}
    left = [n.name for n in copied.graph.node if not known.issuperset([*n.input, *n.output])]
    try:
        with quiet():
            writer = QDQQuantizer(
                copied,
                per_channel=True,
                reduce_range=False,
                weight_qType=QuantType.QInt8,
                activation_qType=(
                    QuantType.QUInt8 if activation_dtype == "uint8" else QuantType.QInt8
                ),
                tensors_range=TensorsData(CalibrationMethod.MinMax, found),
                nodes_to_quantize=[],
                nodes_to_exclude=left,
                op_types_to_quantize=sorted({*QDQRegistry, *QLinearOpsRegistry}),
                extra_options={
                    "WeightSymmetric": True,
                    "ActivationSymmetric": symmetric,
                    "QuantizeBias": quantize_bias,
                    "QDQDisableWeightAdjustForInt32Bias": True,
                },
            )
            writer.quantize_model()
            quantized = writer.model.model
            _sort(quantized)
            onnx.checker.check_model(quantized)
    except Exception as exc:  # onnxruntime's quantizer raises many types
        raise InvalidModelError(
            f"onnxruntime's quantizer refuses the ONNX file: {reason(exc)}"
        ) from None
    return quantized


def put_own(
    model: Any, layers: Mapping[str, tuple[Any, Any, Any]], *, quantize_bias: bool
) -> tuple[dict[str, tuple[float, int]], int]:
    """Write given weights and biases where :func:`quantize_own` put others, in place.

    Args:
        model: Quantized.
        layers: (int8 weights as the node has them, scale a channel, real bias or None), by what a
            layer writes.
        quantize_bias: Whether biases are int32.

    Returns:
        (scale, zero_point as stored) of each activation, and how many weights and biases were
        written.
    """
    makers = {node.output[0]: node for node in model.graph.node if node.output}
    constants = stored_constants(model)
    numbers = 0
    for node in list(model.graph.node):
        name = node.output[0].removesuffix("_QuantizeLinear_Input") if node.output else ""
        given = layers.get(name)
        if node.op_type not in ("Conv", "Gemm", "MatMul") or given is None:
            continue
        weights, scale, bias = given
        behind, before = makers.get(node.input[1]), makers.get(node.input[0])
        if behind is None or behind.op_type != "DequantizeLinear":
            continue  # stays float
        _replace(model, behind, f"{name}__weights", weights, scale)
        numbers += weights.size
        if bias is None or len(node.input) < 3:
            continue
        end = makers.get(node.input[2])
        if end is None or end.op_type != "DequantizeLinear":
            _set_constant(model, node.input[2], bias.astype(np.float32))
        elif before is not None and quantize_bias:
            entry = np.float32(constants[before.input[1]])
            bias_scale = (entry * scale.astype(np.float32)).astype(np.float32)
            whole = np.clip(np.rint(bias / bias_scale), -(2**31), 2**31 - 1).astype(np.int32)
            _replace(model, end, f"{name}__bias", whole, bias_scale)
        numbers += bias.size
    used = {name for node in model.graph.node for name in node.input}
    for tensor in [t for t in model.graph.initializer if t.name not in used]:
        model.graph.initializer.remove(tensor)
    found = {}
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear":
            name = node.input[0].removesuffix("_QuantizeLinear_Input")
            found[name] = (float(constants[node.input[1]]), int(constants[node.input[2]]))
    return found, numbers


def _set_constant(model: Any, name: str, values: Any) -> None:
    for tensor in model.graph.initializer:
        if tensor.name == name:
            old = list(tensor.dims)
            array = np.ascontiguousarray(values).reshape(old)
            tensor.CopyFrom(_onnx().numpy_helper.from_array(array, name))


def stored_constants(model: Any) -> dict[str, Any]:
    to_array = _onnx().numpy_helper.to_array
    return {tensor.name: to_array(tensor) for tensor in model.graph.initializer}


def attribute(node: Any, name: str, default: Any) -> Any:
    for attribute in node.attribute:
        if attribute.name == name:
            return _onnx().helper.get_attribute_value(attribute)
    return default


def _onnx() -> Any:
    try:
        import onnx
    except ImportError:
        raise MissingDependencyError("onnx", "convert") from None
    return onnx
