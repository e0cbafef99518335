"""ONNX files: from the canonical float graph, float16, int8 QDQ with given encodings."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.errors import ExecutionError, InvalidModelError, MissingDependencyError, reason
from edgekit.formats.quiet import quiet
from edgekit.signature import Signature, TensorSpec

OPSET = 18
_FLOATS = (1, 10)
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
    foreign = sorted({n.op_type for n in model.graph.node if n.domain not in ("", "ai.onnx")})
    if foreign:
        raise InvalidModelError(f"operators without an ONNX form remain: {', '.join(foreign)}")
    del model.opset_import[1:]
    _pool_instead_of_mean(model)
    _gemm_instead_of_matmul(model)
    _restore_gemm_names(model)
    _free_batch(model)
    del model.graph.value_info[:]
    model = onnx.shape_inference.infer_shapes(model)
    onnx.checker.check_model(model, full_check=True)
    return model


def to_float16(model: Any) -> Any:
    """Weights and computation in float16, float32 in and out.

    Weights have to lie in the range of float16, up to 65,504.
    """
    onnx = _onnx()
    try:
        from onnxruntime.transformers.float16 import convert_float_to_float16
    except ImportError:
        raise MissingDependencyError("onnxruntime", "convert") from None
    with quiet():
        half = convert_float_to_float16(model, keep_io_types=True)
    _sort(half)
    onnx.checker.check_model(half)
    return half


def quantize(model: Any, encodings: Mapping[str, tuple[float, int]]) -> tuple[Any, tuple[str, ...]]:
    """QDQ int8: uint8 activations, int8 weights per channel, float32 in and out.

    Args:
        model: Float ``onnx.ModelProto`` from :func:`from_tflite`.
        encodings: (scale, int8 zero_point) of activations by tensor name; zero_point ``z`` is
            written as uint8 ``z + 128``, which is the same number.

    Returns:
        The quantized ``onnx.ModelProto``, and the kinds of operators that stay float because the
        canonical graph has no tensor for them (parts of an operator that ONNX lacks).
    """
    onnx = _onnx()
    try:
        from onnxruntime.quantization import QuantType
        from onnxruntime.quantization.calibrate import CalibrationMethod, TensorData, TensorsData
        from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
        from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry
    except ImportError:
        raise MissingDependencyError("onnxruntime", "convert") from None

    activations = _activation_encodings(model, encodings)
    left = _without_encodings(model, activations)
    overrides = {
        name: [
            {
                "quant_type": QuantType.QUInt8,
                "scale": np.array(scale, np.float32),
                "zero_point": np.array(zero_point, np.uint8),
            }
        ]
        for name, (scale, zero_point) in activations.items()
    }
    ranges = {
        name: TensorData(
            lowest=np.array(-zero_point * scale, np.float32),
            highest=np.array((255 - zero_point) * scale, np.float32),
        )
        for name, (scale, zero_point) in activations.items()
    }
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    with quiet():
        writer = QDQQuantizer(
            copied,
            per_channel=True,
            reduce_range=False,
            weight_qType=QuantType.QInt8,
            activation_qType=QuantType.QUInt8,
            tensors_range=TensorsData(CalibrationMethod.MinMax, ranges),
            nodes_to_quantize=[],
            nodes_to_exclude=[node.name for node in left],
            op_types_to_quantize=sorted({*QDQRegistry, *QLinearOpsRegistry}),
            extra_options={
                "TensorQuantOverrides": overrides,
                "WeightSymmetric": True,
                "QDQDisableWeightAdjustForInt32Bias": True,
            },
        )
        writer.quantize_model()
    quantized = writer.model.model
    _sort(quantized)
    onnx.checker.check_model(quantized)
    kinds = {value.name: value.type.tensor_type.elem_type for value in model.graph.value_info}
    floats = {n.op_type for n in left if kinds.get(n.output[0], onnx.TensorProto.FLOAT) in _FLOATS}
    return quantized, tuple(sorted(floats))


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


def session(
    model: Path | bytes,
    *,
    threads: int = 1,
    options: Mapping[str, str] | None = None,
    profile: Path | None = None,
) -> Any:
    """Open an onnxruntime session on the CPU.

    Args:
        model: File or serialised model.
        threads: Threads inside an operator.
        options: Session config entries, e.g. ``session.x64quantprecision``.
        profile: Path whose name begins that of the profile, which ``end_profiling`` writes.

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
    try:
        found = onnxruntime.InferenceSession(content, settings, providers=["CPUExecutionProvider"])
    except Exception as exc:  # onnxruntime raises its own types
        raise InvalidModelError(
            f"{content if isinstance(content, str) else 'the model'} is no usable ONNX: "
            f"{reason(exc)}"
        ) from None
    if found.get_providers()[0] != "CPUExecutionProvider":
        raise ExecutionError(f"expected CPUExecutionProvider, got {found.get_providers()[0]}")
    return found


def rename_ends(model: Any, names: Signature) -> None:
    """Give inputs and outputs the names of the Keras model, in place."""
    renamed = {}
    for values, specs in (
        (model.graph.input, names.inputs),
        (model.graph.output, names.outputs),
    ):
        for value, spec in zip(values, specs, strict=True):
            renamed[value.name] = spec.name
            value.name = spec.name
    for node in model.graph.node:
        for ends in (node.input, node.output):
            for i, name in enumerate(ends):
                ends[i] = renamed.get(name, name)


def _activation_encodings(
    model: Any, encodings: Mapping[str, tuple[float, int]]
) -> dict[str, tuple[float, int]]:
    """(scale, uint8 zero_point) of each activation of the ONNX graph.

    A fused activation is one tensor in TFLite and two in ONNX (convolution, Clip), and a tensor
    that is only moved (Transpose, Reshape, Flatten) keeps its numbers: both get their input's.
    """
    in_graph = {value.name for value in model.graph.input}
    in_graph.update(output for node in model.graph.node for output in node.output)
    found = {
        name: (scale, zero_point + 128)
        for name, (scale, zero_point) in encodings.items()
        if name in in_graph
    }
    for node in model.graph.node:
        if node.op_type in ("Clip", "Relu", "Transpose", "Reshape", "Flatten", "Squeeze"):
            if node.input[0] in found:
                found.setdefault(node.output[0], found[node.input[0]])
            elif node.output[0] in found:
                found[node.input[0]] = found[node.output[0]]
    return found


def _without_encodings(model: Any, activations: Mapping[str, tuple[float, int]]) -> list[Any]:
    """Nodes that read or write a tensor without encodings, constants apart."""
    stored = {tensor.name for tensor in model.graph.initializer} | {""}
    return [
        node
        for node in model.graph.node
        if any(name not in activations for name in node.output)
        or any(name not in activations and name not in stored for name in node.input)
    ]


def _pool_instead_of_mean(model: Any) -> None:
    """Transpose to NHWC, then the mean over height and width: a global average pool and Flatten."""
    helper = _onnx().helper
    constants = _constants(model)
    makers = {node.output[0]: node for node in model.graph.node}
    for position, node in enumerate(list(model.graph.node)):
        if node.op_type != "ReduceMean" or _attribute(node, "keepdims", 1) != 0:
            continue
        axes = constants.get(node.input[1]) if len(node.input) > 1 else None
        before = makers.get(node.input[0])
        if axes is None or sorted(axes.ravel().tolist()) != [1, 2] or before is None:
            continue
        if before.op_type != "Transpose" or list(_attribute(before, "perm", [])) != [0, 2, 3, 1]:
            continue
        pooled = f"{node.output[0]}__pooled"
        pool = helper.make_node("GlobalAveragePool", [before.input[0]], [pooled], name=pooled)
        flat = helper.make_node("Flatten", [pooled], [node.output[0]], name=node.name, axis=1)
        model.graph.node.remove(node)
        model.graph.node.insert(position, pool)
        model.graph.node.insert(position + 1, flat)
        if sum(before.output[0] in other.input for other in model.graph.node) == 0:
            model.graph.node.remove(before)


def _gemm_instead_of_matmul(model: Any) -> None:
    """A product with a constant matrix, then a constant summand: one Gemm with a bias."""
    helper = _onnx().helper
    constants = _constants(model)
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


def _restore_gemm_names(model: Any) -> None:
    """tf2onnx gives a dense layer it fuses a name of its own; give back the canonical tensor's."""
    for node in model.graph.node:
        canonical, suffix, _ = node.output[0].partition("_Gemm__")
        if node.op_type != "Gemm" or not suffix:
            continue
        for other in model.graph.node:
            for i, name in enumerate(other.input):
                if name == node.output[0]:
                    other.input[i] = canonical
        node.output[0] = canonical


def _free_batch(model: Any) -> None:
    """Make the batch axis free; Reshape copies it from its input instead of fixing it at 1."""
    onnx = _onnx()
    constants = _constants(model)
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


def _sort(model: Any) -> None:
    """Put nodes in order of execution; onnxruntime's writers append theirs at the end."""
    from onnxruntime.quantization.onnx_model import ONNXModel

    ONNXModel(model).topological_sort()


def _constants(model: Any) -> dict[str, Any]:
    to_array = _onnx().numpy_helper.to_array
    return {tensor.name: to_array(tensor) for tensor in model.graph.initializer}


def _attribute(node: Any, name: str, default: Any) -> Any:
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
