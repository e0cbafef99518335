"""Read an ONNX file of any exporter into the one form that the rest of edgekit takes.

In this form the model has float32 numbers (or int8 numbers behind QuantizeLinear and
DequantizeLinear), inputs of known sizes that hold one sample or any number of samples, and no
constants among its inputs. Every change that this needs is said.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.base.errors import (
    ExecutionError,
    InvalidModelError,
    InvalidOptionError,
    MissingDependencyError,
    reason,
)
from edgekit.graph import onnx, onnx_forms
from edgekit.records import signature
from edgekit.records.signature import Shapes, Signature, TensorSpec
from edgekit.sources import onnx_branches, onnx_qdq, random_inputs

#: onnxruntime runs operator sets from this one on.
OLDEST = 7
#: What an older one becomes.
_SET = 13
#: The operator set of a file that is prepared for int8; it has one scale for each channel.
PREPARED = 18
_FLOAT = 1
_OTHERS = {10: "float16", 11: "float64", 16: "bfloat16"}
#: Attributes that hold the type of what a node writes.
_TYPES = ("to", "dtype", "output_datatype")
#: Operators whose second input is a shape that may have the batch in front.
_SHAPED = {"Reshape": 1, "Expand": 1, "ConstantOfShape": 0}
#: Relative difference that rounding to a type explains.
_ROUNDING = {"float16": 2e-2, "bfloat16": 1e-1, "float64": 1e-3}
#: What exporters call an axis that has no name.
_NAMELESS = ("", "?", "unk", "None")
#: Difference that rounding explains whatever the size, as of a sigmoid that is nearly 0.
_LEAST = 1e-6
_Feed = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class OnnxSource:
    """A file that was read.

    Attributes:
        model: ``onnx.ModelProto``.
        notes: What is other than in the file, a sentence each.
    """

    model: Any
    notes: tuple[str, ...]


def read(path: Path, shapes: Shapes | None = None, *, trust: bool = False) -> OnnxSource:
    """Read an ONNX file, float or in QDQ format.

    Args:
        path: The ``.onnx`` file; weights may lie beside it.
        shapes: Sizes of inputs with free axes, by name.
        trust: Let operators pass that are neither ONNX' nor onnxruntime's own.

    Raises:
        InvalidModelError: If it is no ONNX model, is quantized in another format, computes as in
            training, or has a batch that cannot be one sample; names the node.
        InvalidOptionError: If an axis is free that does not count samples, or ``shapes`` does not
            fit.
    """
    model, notes = onnx.load(path, whole=False, trust=trust), []
    _check(model, path)
    _constants_are_no_inputs(model)
    if (older := _newer(model, path)) is not None:
        notes.append(f"the file's operator set {_opset(model)} became {_opset(older)}")
        model = older
    notes += onnx_branches.take(model)
    original = model.SerializeToString()
    wide = _widen(model, path)
    _give_sizes(model, shapes or {}, path)
    try:
        onnx.package().checker.check_model(model)
    except Exception as exc:  # the checker's own types
        raise InvalidModelError(
            f"{path} is no valid ONNX: {reason(exc)}; export it again"
        ) from None
    model_signature = onnx.signature(model)
    signature.refuse_free(model_signature.inputs, path)
    if wide:
        notes.append(
            f"the file's {wide} numbers "
            + ("were rounded to float32" if wide == "float64" else "are float32 here, the same")
        )
    if shapes:
        _open(model, model_signature, path)
    before = model
    if model_signature.batch > 1:
        model = _one_sample(model, model_signature.batch, path)
        notes.append(f"the file's batch of {model_signature.batch} became 1")
    if wide:
        _check_wide(onnx.parse(original), before, _ROUNDING[wide], path)
    _give_output_sizes(model)
    trained = onnx.in_training(model)
    if trained is not None:
        raise InvalidModelError(
            f"{path}: {trained} computes as in training, so that outputs depend on the batch or on "
            f"chance; export it after model.eval(), with training=TrainingMode.EVAL"
        )
    return OnnxSource(model, tuple(notes))


def _check(model: Any, path: Path) -> None:
    """Refuse what is no model of tensors that onnxruntime can run."""
    onnx_qdq.check_format(model, path)
    stored = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in stored]
    if not inputs:
        raise InvalidModelError(f"{path}: expected an input, the model has none")
    for value in (*inputs, *model.graph.output):
        if value.type.WhichOneof("value") != "tensor_type":
            raise InvalidModelError(
                f"{path}: expected tensors, {value.name} is a {value.type.WhichOneof('value')}"
            )


def _constants_are_no_inputs(model: Any) -> None:
    """Up to IR version 3 a file lists its constants among its inputs as well."""
    stored = {tensor.name for tensor in model.graph.initializer}
    kept = [value for value in model.graph.input if value.name not in stored]
    del model.graph.input[:]
    model.graph.input.extend(kept)
    model.ir_version = max(model.ir_version, 4)


def _opset(model: Any) -> int:
    own = [each.version for each in model.opset_import if each.domain in ("", "ai.onnx")]
    return max(own, default=1)


def _newer(model: Any, path: Path) -> Any:
    """The model in an operator set that onnxruntime runs; None where it is in one."""
    if _opset(model) >= OLDEST:
        return None
    try:
        return onnx.package().version_converter.convert_version(model, _SET)
    except Exception as exc:  # the converter raises many types
        raise InvalidModelError(
            f"{path}: expected operator set {OLDEST} or later, got {_opset(model)}, which cannot "
            f"be converted: {reason(exc)}; export it again"
        ) from None


def _graphs(graph: Any) -> Iterator[Any]:
    yield graph
    for node in graph.node:
        for body in onnx.bodies(node):
            yield from _graphs(body)


def _widen(model: Any, path: Path) -> str:
    """Make float32 of a model in another float type, in place; the name of that type, or ``""``.

    A float32 model that computes a size in float64 in between stays as it is.
    """
    wide = onnx.other_float(model)
    if wide is None:
        return ""
    package = onnx.package()

    def change(tensor: Any, name: str) -> None:
        if tensor.data_type not in _OTHERS:
            return
        values = package.numpy_helper.to_array(tensor).astype(np.float64)
        with np.errstate(over="ignore"):
            single = values.astype(np.float32)
        if not np.array_equal(np.isfinite(single), np.isfinite(values)):
            raise InvalidModelError(
                f"{path}: expected weights that float32 can hold, got {np.abs(values).max():.3g} "
                f"in {name}"
            )
        tensor.CopyFrom(package.numpy_helper.from_array(single, tensor.name))

    for graph in _graphs(model.graph):
        for tensor in graph.initializer:
            change(tensor, tensor.name)
        for value in (*graph.input, *graph.output, *graph.value_info):
            if value.type.tensor_type.elem_type in _OTHERS:
                value.type.tensor_type.elem_type = _FLOAT
        for node in graph.node:
            for attribute in node.attribute:
                for tensor in (attribute.t, *attribute.tensors):
                    change(tensor, node.name or node.output[0])
                if attribute.name in _TYPES and attribute.i in _OTHERS:
                    attribute.i = _FLOAT
    return wide


def _give_sizes(model: Any, shapes: Shapes, path: Path) -> None:
    """Put the sizes of ``--shape`` into inputs, and wherever an axis has the same name."""
    by_input = {name or model.graph.input[0].name: sizes for name, sizes in shapes.items()}
    for value in model.graph.input:
        kind = value.type.tensor_type
        if kind.HasField("shape"):
            continue
        if value.name not in by_input:
            raise InvalidOptionError(
                f"{path}: expected sizes of input {value.name}, the file has none; pass --shape "
                f"{value.name}=1,SIZE,..."
            )
        for size in by_input[value.name]:
            kind.shape.dim.add().dim_value = size
    specs = onnx.signature(model).inputs
    sized = signature.sized(specs, shapes, path)
    if sized == specs:
        return
    named: dict[str, tuple[int, str]] = {}
    for value, spec in zip(model.graph.input, sized, strict=True):
        for dim, size in zip(value.type.tensor_type.shape.dim, spec.shape, strict=True):
            if size == -1 or dim.dim_param in _NAMELESS:
                continue
            known = named.setdefault(dim.dim_param, (size, value.name))
            if known[0] != size:
                raise InvalidOptionError(
                    f"--shape {value.name}: expected {known[0]} in the axis {dim.dim_param}, as "
                    f"in {known[1]}, got {size}"
                )
    for value, spec in zip(model.graph.input, sized, strict=True):
        for dim, size in zip(value.type.tensor_type.shape.dim, spec.shape, strict=True):
            if size == -1 and dim.dim_param in named:
                size = named[dim.dim_param][0]
            if size != -1:
                dim.dim_value = size
    _forget_sizes(model, named)


def _open(model: Any, model_signature: Signature, path: Path) -> None:
    """Refuse sizes that the graph does not take; what does, onnxruntime says."""
    try:
        onnx.session(model.SerializeToString())
    except InvalidModelError as exc:
        sizes = ", ".join(f"{spec.name} {list(spec.shape)}" for spec in model_signature.inputs)
        branch, fix = onnx_branches.deciding(model), "pass other sizes with --shape"
        if branch is not None and branch[1]:
            name, inputs = branch
            fix += (
                f", or store {' and '.join(inputs)}, which {name} depends on, in the file: as an "
                f"initializer in place of the input"
            )
        raise InvalidModelError(
            f"{path} does not take the sizes {sizes}: {_said(exc)}; {fix}"
        ) from None


def _said(exc: Exception) -> str:
    """What onnxruntime says, from the first node that it names."""
    text = str(exc)
    return text[text.index("Node (") :] if "Node (" in text else text.partition(": ")[2]


def _forget_sizes(model: Any, named: Mapping[str, object]) -> None:
    """Drop sizes that followed from free axes: of inner tensors all, of outputs the free ones."""
    for graph in _graphs(model.graph):
        del graph.value_info[:]
    for value in model.graph.output:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in named:
                dim.Clear()


def _one_sample(model: Any, batch: int, path: Path) -> Any:
    """The same model for one sample a run.

    Raises:
        InvalidModelError: If its samples depend on each other, or sizes inside hold for several.
    """
    package = onnx.package()
    single = onnx.copied(model)
    for value in (*single.graph.input, *single.graph.output):
        dims = value.type.tensor_type.shape.dim
        if len(dims) and dims[0].dim_value == batch:
            dims[0].dim_value = 1
    del single.graph.value_info[:]
    constants = {tensor.name: tensor for tensor in single.graph.initializer}
    for node in single.graph.node:
        if node.op_type == "Constant":
            constants[node.output[0]] = next(
                (a.t for a in node.attribute if a.name == "value"), None
            )
    for node in single.graph.node:
        place = _SHAPED.get(node.op_type)
        tensor = None if place is None or place >= len(node.input) else node.input[place]
        stored = constants.get(tensor) if tensor else None
        if stored is None:
            continue
        sizes = package.numpy_helper.to_array(stored).copy()
        if sizes.size and sizes[0] > 0 and sizes[0] % batch == 0:
            sizes[0] //= batch
            name = f"{node.output[0]}__of_one"
            single.graph.initializer.append(package.numpy_helper.from_array(sizes, name))
            node.input[place] = name
    said = "their values depend on each other"
    try:
        feed = random_feed(onnx.signature(model), seed=0)
        whole = _run(model, feed)
        alone = [_run(single, {k: v[i : i + 1] for k, v in feed.items()}) for i in range(batch)]
        same = all(
            one.shape == (batch, *each[0].shape[1:]) and _near(one, np.concatenate(each), 1e-3)
            for one, each in zip(whole, zip(*alone, strict=True), strict=True)
        )
    except Exception as exc:  # onnxruntime raises its own types
        same, said = False, reason(exc)
    if not same:
        names = ", ".join(value.name for value in model.graph.input)
        raise InvalidModelError(
            f"{path}: expected one sample per run, got {batch} in {names}, which cannot be taken "
            f"apart ({said}); export it with one sample, e.g. torch.onnx.export(model, x[:1], "
            f"...), or, if its first axis counts no samples, with an axis of size 1 before that"
        )
    return single


def _check_wide(original: Any, widened: Any, allowed: float, path: Path) -> None:
    """Refuse what is another model in float32; where onnxruntime lacks the type, nobody knows."""
    feed = random_feed(onnx.signature(widened), seed=0)
    try:
        kinds = {spec.name: spec.dtype for spec in onnx.signature(original).inputs}
        right = _run(original, {k: v.astype(kinds[k]) for k, v in feed.items()})
    except Exception:  # onnxruntime raises its own types
        return
    try:
        outputs = _run(widened, feed)
    except Exception as exc:
        raise InvalidModelError(
            f"{path}: it cannot run in float32: {reason(exc)}; export it after model.float()"
        ) from None
    for value, one, other in zip(widened.graph.output, right, outputs, strict=True):
        if not _near(one.astype(np.float64), other, allowed):
            raise InvalidModelError(
                f"{path}: {value.name} is another in float32 than in the file's type, by more than "
                f"rounding; export it after model.float()"
            )


def _give_output_sizes(model: Any) -> None:
    """Put the sizes of outputs in that the file leaves open, where the inputs decide them."""
    model_signature = onnx.signature(model)
    open_ended = [
        value
        for value in model.graph.output
        if not value.type.tensor_type.HasField("shape")
        or -1 in (spec := _spec(model_signature.outputs, value.name)).shape[1:]
        or (
            spec.shape[:1] == (-1,)
            and all(each.shape[:1] != (-1,) for each in model_signature.inputs)
        )
    ]
    if not open_ended:
        return
    try:
        names = [value.name for value in open_ended]
        runs = [_run(model, random_feed(model_signature, seed=seed), names) for seed in (0, 1)]
    except Exception:  # whatever it is, the checks of what is written will say it
        return
    free = any(each.shape[:1] == (-1,) for each in model_signature.inputs)
    for value, one, other in zip(open_ended, *runs, strict=True):
        kind = value.type.tensor_type
        if one.ndim != other.ndim or (kind.HasField("shape") and len(kind.shape.dim) != one.ndim):
            continue
        if not kind.HasField("shape"):
            kind.shape.SetInParent()
            for _ in range(one.ndim):
                kind.shape.dim.add()
            if free and one.ndim and one.shape[0] == 1:
                kind.shape.dim[0].dim_param = "batch"
        for axis, dim in enumerate(kind.shape.dim):
            is_free = not dim.HasField("dim_value") or dim.dim_value < 0
            if is_free and one.shape[axis] == other.shape[axis] and (axis or not free):
                dim.dim_value = one.shape[axis]


def differ(one: Any, other: Any, *, share: float = 5e-2) -> str | None:
    """Name of the first output in which two models of the same inputs differ on random numbers by
    more than ``share`` of its largest: what rounding can do, amplified by a network that was never
    shown noise. None where there is none, or the first cannot run on them.

    Raises:
        InvalidModelError: If the second cannot run where the first can.
    """
    feed = random_feed(onnx.signature(one), seed=0)
    try:
        right = _run(one, feed)
    except Exception:  # e.g. indices out of their table
        return None
    try:
        outputs = _run(other, feed)
    except Exception as exc:
        raise InvalidModelError(f"the changed model cannot run: {reason(exc)}") from None
    for value, exact, each in zip(one.graph.output, right, outputs, strict=True):
        if not _near(exact, each, share):
            return str(value.name)
    return None


def _spec(specs: tuple[TensorSpec, ...], name: str) -> TensorSpec:
    return next(spec for spec in specs if spec.name == name)


def random_feed(model_signature: Signature, *, seed: int) -> dict[str, npt.NDArray[Any]]:
    """Numbers from 0 to 1 for every input, and 0 or 1 of integers; a free batch is 1."""
    specs = model_signature.inputs
    sizes = [[1 if size == -1 else size for size in spec.shape] for spec in specs]
    dtypes = [spec.dtype for spec in specs]
    arrays = random_inputs.draw(zip(sizes, dtypes, strict=True), seed=seed, least=0)
    return {spec.name: values for spec, values in zip(specs, arrays, strict=True)}


def _run(model: Any, feed: _Feed, names: list[str] | None = None) -> list[npt.NDArray[Any]]:
    return list(onnx.session(model.SerializeToString()).run(names, feed))


def _near(one: npt.NDArray[Any], other: npt.NDArray[Any], share: float) -> bool:
    size = float(np.abs(one[np.isfinite(one)]).max(initial=0)) if one.dtype.kind == "f" else 0.0
    return one.shape == other.shape and bool(
        np.allclose(other, one, rtol=share, atol=share * size + _LEAST, equal_nan=True)
    )


def _give_inner_sizes(model: Any) -> None:
    """Say the sizes of what products read where the graph computes them, in place: those of runs on
    one and on two samples. Where the model does not run on random numbers they stay unknown, which
    :func:`edgekit.graph.onnx_forms.without_sizes` tells."""
    known, stored = onnx_forms.sizes(model), {tensor.name for tensor in model.graph.initializer}
    names = {
        node.input[0]
        for node in model.graph.node
        if node.op_type == "MatMul" and node.input[1] in stored and node.input[0] not in known
    }
    if not names:
        return
    watched = onnx.copied(model)
    del watched.graph.output[:]
    for name in sorted(names):
        watched.graph.output.add().name = name
    model_signature = onnx.signature(model)
    feeds = [random_feed(model_signature, seed=0)]
    if all(spec.shape[:1] == (-1,) for spec in model_signature.inputs):
        feeds.append({name: np.concatenate([each] * 2) for name, each in feeds[0].items()})
    opened = onnx.session(watched.SerializeToString())
    try:
        runs = [onnx.run(opened, sorted(names), feed) for feed in feeds]
    except ExecutionError:  # e.g. indices out of their table, or a batch that has to be 1
        return
    kinds = {value.name: value for value in model.graph.value_info}
    for name, *arrays in zip(sorted(names), *runs, strict=True):
        if name not in kinds:
            kinds[name] = model.graph.value_info.add(name=name)
        kind = kinds[name].type.tensor_type
        kind.elem_type = _FLOAT
        kind.shape.SetInParent()
        del kind.shape.dim[:]
        for axis, size in enumerate(arrays[0].shape):
            dim = kind.shape.dim.add()
            if all(each.shape[axis] == size for each in arrays):
                dim.dim_value = size
            else:
                dim.dim_param = "batch"


def prepare(model: Any, *, integers: bool) -> Any:
    """Batch normalisation folded, constants computed, an operator set with one scale per channel.

    Args:
        model: ``onnx.ModelProto`` of another exporter; stays as it is.
        integers: Also put operators into the forms that int8 has kernels for.

    Raises:
        InvalidModelError: If onnxruntime cannot run the model, or its sizes are not known.
    """
    package = onnx.package()
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
            own = [each.version for each in model.opset_import if each.domain in ("", "ai.onnx")]
            older = any(version < PREPARED for version in own)
            newer = package.version_converter.convert_version(model, PREPARED) if older else model
            if integers:
                newer = onnx.copied(newer)
                onnx_forms.spell_hard_swishes(newer)
            onnxruntime.InferenceSession(newer.SerializeToString(), settings, providers=[onnx.CPU])
            prepared = package.shape_inference.infer_shapes(package.load(path), strict_mode=True)
        except Exception as exc:  # onnx and onnxruntime raise many types
            raise InvalidModelError(f"the ONNX file cannot be prepared: {reason(exc)}") from None
    if integers:
        before = onnx.copied(prepared)
        _give_inner_sizes(prepared)
        onnx_forms.for_integers(prepared)
        if (output := differ(before, prepared)) is not None:
            raise InvalidModelError(
                f"{output} is another in the forms that int8 has kernels for, by more than "
                f"rounding; export the model in float32 or float16"
            )
    seen: set[str] = set()
    for i, node in enumerate(prepared.graph.node):
        if not node.name or node.name in seen:
            node.name = f"{node.op_type}_{i}_{node.output[0]}"
        seen.add(node.name)
    return package.shape_inference.infer_shapes(prepared, strict_mode=True)
