"""ONNX files: read them, open them in onnxruntime, and list what ran."""

from __future__ import annotations

import contextlib
import json
import mmap
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.base import words
from edgekit.base.errors import (
    ExecutionError,
    InvalidModelError,
    InvalidOptionError,
    MissingDependencyError,
    reason,
)
from edgekit.base.quiet import quiet
from edgekit.graph import safe
from edgekit.graph.timed import TimedOperator
from edgekit.records import environment
from edgekit.records.signature import Signature, TensorSpec, batched

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
_FLOAT_NAMES = frozenset(("float", "float16"))
#: Operators with weights.
WEIGHTED = frozenset("Conv ConvTranspose Gemm MatMul".split())
#: The output has all values of the input as they are, in another shape or order.
MOVED = frozenset("Reshape Transpose Flatten Squeeze Unsqueeze Identity".split())
#: Operators that make integers of real numbers, or real numbers of integers.
_CONVERTING = ("QuantizeLinear", "DequantizeLinear")
#: onnxruntime operators that hand numbers on, store or read them: no computation. Any other one
#: whose output is float in an int8 model is named.
_MOVING = frozenset(
    "Cast Constant ConstantOfShape DepthToSpace DequantizeLinear Expand Flatten Gather "
    "GatherElements GatherND Identity QuantizeLinear ReorderInput ReorderOutput Reshape Slice "
    "SpaceToDepth Split Squeeze Tile Transpose Unsqueeze".split()
)
#: The least version of files that have int4.
_IR = 10
_OTHER_FLOATS = {10: "float16", 11: "float64", 16: "bfloat16"}
_DTYPES = {
    1: "float32",
    10: "float16",
    2: "uint8",
    3: "int8",
    5: "int16",
    6: "int32",
    7: "int64",
    9: "bool",
    11: "float64",
    16: "bfloat16",
}


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
            shape=tuple(
                d.dim_value if d.HasField("dim_value") and d.dim_value >= 0 else -1
                for d in kind.shape.dim
            ),
            dtype=_DTYPES.get(kind.elem_type) or _type_name(kind.elem_type),
        )

    weights = {tensor.name for tensor in model.graph.initializer}
    return batched(
        [spec(v) for v in model.graph.input if v.name not in weights],
        [spec(v) for v in model.graph.output],
    )


def _type_name(kind: int) -> str:
    return str(package().TensorProto.DataType.Name(kind)).lower()


def load(path: Path, *, whole: bool = True, trust: bool = False) -> Any:
    """Read and check a ``.onnx`` file and what lies beside it; returns an ``onnx.ModelProto``.

    Args:
        path: The file.
        whole: Let the checker of the package onnx look at it; else the caller does.
        trust: Let operators pass that are neither ONNX' nor onnxruntime's own.

    Raises:
        InvalidModelError: If a file is missing or no whole ONNX model, or holds such an operator.
    """
    onnx = package()
    try:
        model = _without_data(path)
        if not trust:
            _check_operators(model, path)
        _data_of(model, path)
        onnx.load_external_data_for_model(model, str(path.parent))
        if whole:
            onnx.checker.check_model(model)
    except InvalidModelError:
        raise
    except Exception as exc:  # protobuf's and the checker's own types
        raise InvalidModelError(
            f"{path} cannot be read as ONNX (cut short?): {reason(exc)}; export it again"
        ) from None
    return model


_STANDARD = ("", "ai.onnx", "ai.onnx.ml")


def _check_operators(model: Any, path: Path) -> None:
    """Refuse operators of other domains, unless the file itself says what they are made of."""
    has = package().defs.has
    own = {(function.domain, function.name) for function in model.functions}
    waiting = [(model.graph.node, ""), *((f.node, f" in {f.name}") for f in model.functions)]
    while waiting:
        nodes, where = waiting.pop()
        for node in nodes:
            waiting += [(body.node, where) for body in bodies(node)]
            domain, kind = node.domain, node.op_type
            if (
                (domain in _STANDARD and has(kind, "" if domain == "ai.onnx" else domain))
                or (domain == "com.microsoft" and kind in safe.ONNX_MICROSOFT)
                or (domain, kind) in own
            ):
                continue
            place = node.name or next(iter(node.output), "a node")
            raise InvalidModelError(
                f"{path}: {place}{where} is the operator {f'{domain}.' if domain else ''}{kind}, "
                f"which is not known to compute only; pass --trust to try it here if you know who "
                f"made the file"
            )


#: Where a constant that lies in another file says so.
_LOCATION = b"location"


def beside(path: Path) -> tuple[Path, ...]:
    """The files next to a ``.onnx`` file in which it keeps weights; none where it holds all.

    A board that only runs models has no package onnx; it is asked where there may be such files.

    Raises:
        InvalidModelError: If it is missing or no ONNX model.
    """
    if not path.is_file():
        raise InvalidModelError(f"{words.not_found(path)}; expected an .onnx file")
    with path.open("rb") as file, contextlib.suppress(ValueError):  # an empty file has no map
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            if content.find(_LOCATION) < 0:
                return ()
    return _data_of(_without_data(path), path)


def _without_data(path: Path) -> Any:
    """A file as it is, whose weights may lie in others."""
    onnx = package()
    if not path.is_file():
        raise InvalidModelError(f"{words.not_found(path)}; expected an .onnx file")
    try:
        return onnx.load(path, load_external_data=False)
    except Exception as exc:  # protobuf's own types
        raise InvalidModelError(
            f"{path} cannot be read as ONNX (cut short?): {reason(exc)}; export it again"
        ) from None


def _data_of(model: Any, path: Path) -> tuple[Path, ...]:
    locations = {
        entry.value
        for tensor in tensors(model.graph)
        for entry in tensor.external_data
        if entry.key == _LOCATION.decode()
    }
    for name in locations:
        if name in ("", "..") or Path(name).name != name:
            raise InvalidModelError(
                f"{path} keeps weights in {name!r}; expected a file in its own folder: load it and "
                f"save it again with onnx.save"
            )
    files = tuple(path.with_name(name) for name in sorted(locations))
    for file in files:
        if file.is_symlink():
            raise InvalidModelError(
                f"{path} keeps weights in {file.name}, which is a link; put the file itself there, "
                f"e.g. with cp --dereference"
            )
        if not file.is_file():
            raise InvalidModelError(
                f"{path} keeps weights in {file.name}, which is not in its folder; put it there, "
                f"or export with torch.onnx.export(..., external_data=False)"
            )
    return files


def tensors(graph: Any) -> Iterator[Any]:
    """All constants of a graph and of the graphs in it."""
    yield from graph.initializer
    for node in graph.node:
        for each in node.attribute:
            yield from (each.t, *each.tensors)
        for body in bodies(node):
            yield from tensors(body)


def parse(content: bytes) -> Any:
    """Bytes as an ``onnx.ModelProto``."""
    return package().ModelProto.FromString(content)


def session(
    model: Path | bytes,
    *,
    threads: int = 1,
    options: Mapping[str, str] | None = None,
    profile: Path | None = None,
    optimized: Path | None = None,
    provider: str = CPU,
    provider_options: Mapping[str, str] | None = None,
) -> Any:
    """Open an onnxruntime session on one provider; nothing else steps in for it.

    Args:
        model: File or serialised model.
        threads: Threads inside an operator.
        options: Session config entries, e.g. ``session.x64quantprecision``.
        profile: Path whose name begins that of the profile, which ``end_profiling`` writes.
        optimized: Where to write the model as it runs, after onnxruntime has merged nodes.
        provider: Execution provider, the CPU's by default.
        provider_options: Its options.

    Raises:
        InvalidModelError: If the file is missing or no whole ONNX model.
        InvalidOptionError: If an option is not one of :data:`edgekit.graph.safe.RUNTIME_OPTIONS`.
        ExecutionError: If the session runs on another provider than asked for.
        MissingDependencyError: If onnxruntime is not installed.
    """
    try:
        import onnxruntime
    except ImportError:
        raise MissingDependencyError("onnxruntime", "runtime") from None

    if isinstance(model, Path) and not model.is_file():
        raise InvalidModelError(f"{words.not_found(model)}; expected an .onnx file")
    for key in (*(options or {}), *(provider_options or {})):
        if key not in safe.RUNTIME_OPTIONS:
            raise InvalidOptionError(
                f"expected runtime options {', '.join(sorted(safe.RUNTIME_OPTIONS))}, got {key!r}"
            )
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    settings.inter_op_num_threads = 1
    settings.log_severity_level = 4  # what fails is raised, in the same words
    for key, value in (options or {}).items():
        settings.add_session_config_entry(key, value)
    if profile is not None:
        settings.enable_profiling = True
        settings.profile_file_prefix = str(profile)
    if optimized is not None:
        settings.optimized_model_filepath = str(optimized)
    content = str(model) if isinstance(model, Path) else model
    if (options or {}).get(environment.PRECISE) == "1":
        proto = load(model) if isinstance(model, Path) else parse(model)
        unshared(proto)
        content = proto.SerializeToString()
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
        opened = onnxruntime.InferenceSession(
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
    got = opened.get_providers()
    if got[0] != provider:
        raise ExecutionError(
            f"expected {provider}, the session got {', '.join(got)} only: no usable NVIDIA GPU, "
            f"or CUDA and cuDNN are missing; pip install 'edgekit[gpu]' brings them"
        )
    return opened


def run(opened: Any, names: Sequence[str] | None, feed: Mapping[str, Any]) -> list[Any]:
    """What a session computes, by the outputs' names in order; None for all.

    Raises:
        ExecutionError: If an operator refuses its values.
    """
    try:
        return list(opened.run(names, dict(feed)))
    except Exception as exc:  # onnxruntime raises its own types
        raise ExecutionError(f"the model cannot run on these inputs: {reason(exc)}") from None


def executed(
    model: Path | bytes,
    feed: Mapping[str, Any],
    *,
    threads: int = 1,
    options: Mapping[str, str] | None = None,
    runs: int = 1,
    provider: str = CPU,
    provider_options: Mapping[str, str] | None = None,
    wired: bool = False,
) -> tuple[TimedOperator, ...]:
    """Run a model under onnxruntime's profiler; the nodes that ran, in order.

    Args:
        model: File or serialised model.
        feed: Of one run, by input name.
        threads: Threads inside an operator.
        options: Session config entries.
        runs: How many.
        provider: Execution provider.
        provider_options: Its options.
        wired: Tell which tensors the nodes read and write.

    Raises:
        ExecutionError: If a node ran on another provider; see :func:`ran`.
    """
    with tempfile.TemporaryDirectory() as folder:
        opened = session(
            model,
            threads=threads,
            options=options,
            profile=Path(folder) / "profile",
            optimized=Path(folder) / "optimized.onnx" if wired else None,
            provider=provider,
            provider_options=provider_options,
        )
        for _ in range(runs):
            run(opened, None, feed)
        events = json.loads(Path(opened.end_profiling()).read_text(encoding="utf-8"))
        nodes = ran(events, provider, runs)
        if wired:
            as_run = package().load(Path(folder) / "optimized.onnx", load_external_data=False)
            wires = {node.name: node for node in as_run.graph.node}
            nodes = tuple(
                replace(each, inputs=tuple(node.input), outputs=tuple(node.output))
                if (node := wires.get(each.name)) is not None
                else each
                for each in nodes
            )
    return nodes


def ran(events: list[Any], provider: str, runs: int = 1) -> tuple[TimedOperator, ...]:
    """The nodes in a profile, in order.

    Args:
        events: The profile, as onnxruntime writes it.
        provider: Where they are expected to have run. Beside another provider than the CPU's, the
            CPU may run what writes integers only: onnxruntime leaves arithmetic of shapes there.
        runs: How many the profile holds; a time is the mean of them.

    Raises:
        ExecutionError: If a node ran elsewhere.
    """
    nodes: dict[str, TimedOperator] = {}
    elsewhere: dict[str, str] = {}
    for event in events:
        if event.get("cat") != "Node" or not event["name"].endswith("_kernel_time"):
            continue
        arguments = event["args"]
        kind, name = arguments["op_name"], event["name"].removesuffix("_kernel_time")
        dtypes = {dtype for shape in arguments["output_type_shape"] for dtype in shape}
        where = arguments.get("provider", "")
        of_shapes = where == CPU and bool(dtypes) and not dtypes & _FLOAT_NAMES
        if where != provider and not of_shapes:
            elsewhere[name] = f"{kind} {name} on {where or 'none'}"
        ms = event["dur"] / 1e3 + (nodes[name].ms if name in nodes else 0.0)
        in_float = bool(dtypes & _FLOAT_NAMES)
        computes = in_float and kind not in _MOVING
        nodes[name] = TimedOperator(kind, name, ms, computes, in_float, kind in _CONVERTING)
    if elsewhere:
        first = next(iter(elsewhere.values()))
        raise ExecutionError(
            f"expected every node on {provider}, got {len(elsewhere)} of {len(nodes)} elsewhere, "
            f"first {first}"
        )
    return tuple(replace(node, ms=node.ms / runs) for node in nodes.values())


def sort(model: Any) -> None:
    """Put nodes in order of execution; onnxruntime's writers append theirs at the end.

    Raises:
        InvalidModelError: If a node reads what no node before it can write.
    """
    nodes = list(model.graph.node)
    waiting: dict[str, list[int]] = {}
    missing: list[int] = []
    for place, node in enumerate(nodes):
        names = [name for name in (*node.input, *captured(node)) if name]
        missing.append(len(names))
        for name in names:
            waiting.setdefault(name, []).append(place)
    ready = [place for place, count in enumerate(missing) if not count]

    def write(name: str) -> None:
        for place in waiting.get(name, []):
            missing[place] -= 1
            if not missing[place]:
                ready.append(place)

    stored = [value.name for value in (*model.graph.initializer, *model.graph.input)]
    for name in sorted(set(stored)):
        write(name)
    for place in ready:  # grows on the way
        for name in nodes[place].output:
            write(name)
    if len(ready) != len(nodes):
        late = next(node for node, count in zip(nodes, missing, strict=True) if count)
        raise InvalidModelError(
            f"{late.op_type} {late.name or late.output[0]} reads what no node before it writes; "
            f"export the model again"
        )
    ordered = [nodes[place] for place in ready]
    del model.graph.node[:]
    model.graph.node.extend(ordered)


def copied(model: Any) -> Any:
    """A copy of an ``onnx.ModelProto``."""
    copy = package().ModelProto()
    copy.CopyFrom(model)
    return copy


def of_set(model: Any, version: int) -> Any:
    """A model of this operator set or a later one; itself where it is.

    Raises:
        InvalidModelError: If it cannot be converted.
    """
    own = [each.version for each in model.opset_import if each.domain in ("", "ai.onnx")]
    if min(own) >= version:
        return model
    try:
        found = package().version_converter.convert_version(model, version)
    except Exception as exc:  # the converter raises many types
        raise InvalidModelError(
            f"expected a model that has a form in ONNX' operator set {version}, got one of "
            f"{min(own)} that has none: {reason(exc)}; export it in another precision"
        ) from None
    found.ir_version = max(found.ir_version, _IR)
    return found


def stored_constants(model: Any) -> dict[str, Any]:
    to_array = package().numpy_helper.to_array
    return {tensor.name: to_array(tensor) for tensor in model.graph.initializer}


def without_constant_nodes(model: Any) -> Any:
    """A model whose Constant nodes are stored tensors; itself where it has none."""
    if not any(node.op_type == "Constant" for node in model.graph.node):
        return model
    plain = copied(model)
    kept = []
    for node in plain.graph.node:
        value = attribute(node, "value", None) if node.op_type == "Constant" else None
        if value is None:
            kept.append(node)
            continue
        tensor = plain.graph.initializer.add()
        tensor.CopyFrom(value)
        tensor.name = node.output[0]
    del plain.graph.node[:]
    plain.graph.node.extend(kept)
    return plain


def plain_integers(model: Any) -> Any:
    """A model whose Constant nodes are stored tensors, as are the numbers of its QuantizeLinear and
    DequantizeLinear, and where nothing lies between the two; itself where it is so.

    PyTorch's older exporter hands on a zero_point by Identity, makes one of zeros by
    ConstantOfShape and Cast, and puts a Cast to the same integers between each two.
    """
    model = without_constant_nodes(model)
    kinds = ("QuantizeLinear", "DequantizeLinear")
    makers = {name: node for node in model.graph.node for name in node.output}
    inputs = {name for node in model.graph.node if node.op_type in kinds for name in node.input}
    if not any(name in makers and makers[name].op_type in _HANDING for name in inputs):
        return model
    model = copied(model)
    makers = {name: node for node in model.graph.node for name in node.output}
    constants = stored_constants(model)
    for node in model.graph.node:
        for i, name in enumerate(node.input) if node.op_type in kinds else ():
            maker = makers.get(name)
            if maker is None or maker.op_type not in _HANDING:
                continue
            array = _handed(name, makers, constants)
            before = makers.get(maker.input[0])
            if array is not None:
                node.input[i] = f"{name}__stored"
                if node.input[i] not in constants:
                    constants[node.input[i]] = array
                    tensor = package().numpy_helper.from_array(array, node.input[i])
                    model.graph.initializer.append(tensor)
            elif before is not None and before.op_type == "QuantizeLinear":
                zero_point = _handed(before.input[2], makers, constants)
                code = package().helper.np_dtype_to_tensor_dtype(zero_point.dtype)
                if maker.op_type == "Identity" or attribute(maker, "to", 0) == code:
                    node.input[i] = maker.input[0]
    outputs = {value.name for value in model.graph.output}
    for node in reversed([each for each in model.graph.node if each.op_type in _HANDING]):
        if outputs.union(read(model.graph)).isdisjoint(node.output):
            model.graph.node.remove(node)
    return model


#: Operators that hand on integers as they are, or make zeros.
_HANDING = ("Cast", "Identity", "ConstantOfShape")


def _handed(name: str, makers: Mapping[str, Any], constants: Mapping[str, Any]) -> Any:
    """The array that a value is, by operators of :data:`_HANDING` alone; None of any other."""
    if name in constants:
        return constants[name]
    node = makers.get(name)
    array = None if node is None else _handed(node.input[0], makers, constants)
    if array is None or node is None or node.op_type not in _HANDING:
        return None
    if node.op_type == "Cast":
        return array.astype(package().helper.tensor_dtype_to_np_dtype(attribute(node, "to", 0)))
    if node.op_type == "ConstantOfShape":
        value = attribute(node, "value", None)
        one = np.zeros(1, np.float32) if value is None else package().numpy_helper.to_array(value)
        return np.full(array, one.reshape(()), one.dtype)
    return array


def read(graph: Any) -> Iterator[str]:
    """What the nodes of a graph read, and those of the graphs in it: bodies of If and Loop."""
    for node in graph.node:
        yield from read_by(node)


def read_by(node: Any) -> Iterator[str]:
    """What a node reads, and the nodes of the graphs in it."""
    yield from node.input
    for body in bodies(node):
        yield from read(body)
        yield from (value.name for value in body.output)


def captured(node: Any) -> tuple[str, ...]:
    """Tensors of the graph around a node that the graphs in it read: beside its own inputs."""
    names: dict[str, None] = {}
    for body in bodies(node):
        own = {value.name for value in (*body.input, *body.initializer)}
        own.update(name for inner in body.node for name in inner.output)
        read_here = [name for inner in body.node for name in (*inner.input, *captured(inner))]
        read_here += [value.name for value in body.output]
        names.update(dict.fromkeys(name for name in read_here if name and name not in own))
    return tuple(names)


def readers(nodes: Iterable[Any]) -> dict[str, list[Any]]:
    """Nodes by the name of each tensor that they read, in their order, without those in bodies."""
    by_tensor: dict[str, list[Any]] = {}
    for node in nodes:
        for name in dict.fromkeys(node.input):
            by_tensor.setdefault(name, []).append(node)
    return by_tensor


def bodies(node: Any) -> Iterator[Any]:
    """The graphs in a node."""
    for each in node.attribute:
        yield from each.graphs
        if each.HasField("g"):
            yield each.g


def drop_unused(model: Any) -> None:
    """Leave out constants that nothing reads, in place."""
    used = {*read(model.graph), *(value.name for value in model.graph.output)}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)


def store_once(model: Any) -> None:
    """Keep constants that hold the same numbers once, in place.

    Zero points of weights stay apart: onnxruntime's precise kernels (``x64quantprecision``) turn
    each weight's into uint8, and refuse one that they have turned already.
    """
    apart = set()
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear":
            apart.update(node.input[2:3])
    kept: dict[tuple[Any, ...], str] = {}
    renamed: dict[str, str] = {}
    outputs = {value.name for value in model.graph.output}
    for tensor in model.graph.initializer:
        array = package().numpy_helper.to_array(tensor)
        key = (tensor.data_type, tuple(tensor.dims), array.tobytes())
        if tensor.name in outputs or (tensor.name in apart and array.dtype == np.int8):
            continue
        if kept.setdefault(key, tensor.name) != tensor.name:
            renamed[tensor.name] = kept[key]
    for node in model.graph.node:
        for place, name in enumerate(node.input):
            node.input[place] = renamed.get(name, name)
    drop_unused(model)


def unshared(model: Any) -> None:
    """Give every layer int8 weights of its own, in place: see :func:`store_once`."""
    int8 = package().TensorProto.INT8
    stored = {t.name: t for t in model.graph.initializer if t.data_type == int8}
    makers = {
        node.output[0]: node
        for node in model.graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in stored
    }
    used: set[str] = set()
    for node in list(model.graph.node):
        for place, name in enumerate(node.input):
            maker = makers.get(name)
            if maker is None:
                continue
            if used.isdisjoint((*maker.input[:1], *maker.input[2:3])):
                used.update((*maker.input[:1], *maker.input[2:3]))
                continue
            own = model.graph.node.add()
            own.CopyFrom(maker)
            own.name = own.output[0] = node.input[place] = f"{name}__{len(model.graph.node)}"
            for i in (0, 2):
                if own.input[i : i + 1] and own.input[i] in stored:
                    copy = model.graph.initializer.add()
                    copy.CopyFrom(stored[own.input[i]])
                    copy.name = own.input[i] = f"{copy.name}__{len(model.graph.node)}"
    needed = {*read(model.graph), *(value.name for value in model.graph.output)}
    for name, maker in makers.items():
        if name not in needed:
            model.graph.node.remove(maker)
    sort(model)
    drop_unused(model)


def quantized(model: Any) -> str | None:
    """The first node that is quantized already, by operator and name; None where none is."""
    for node in model.graph.node:
        if node.op_type.endswith("uantizeLinear") or "QLinear" in node.op_type:
            return f"{node.op_type} {node.name or node.output[0]}"
    return None


def other_float(model: Any) -> str | None:
    """Which other float type than float32 a model's inputs, outputs or weights have, if any."""
    for value in (*model.graph.input, *model.graph.output):
        if value.type.tensor_type.elem_type in _OTHER_FLOATS:
            return _OTHER_FLOATS[value.type.tensor_type.elem_type]
    for tensor in tensors(model.graph):
        if tensor.data_type in _OTHER_FLOATS and len(tensor.dims) > 1:
            return _OTHER_FLOATS[tensor.data_type]
    return None


def in_training(model: Any) -> str | None:
    """The first node that computes as in training, by operator and name; None where none does."""
    constants = stored_constants(model)
    for node in model.graph.node:
        if node.op_type == "Constant":
            value = attribute(node, "value", None)
            if value is not None:
                constants[node.output[0]] = package().numpy_helper.to_array(value)
    for node in model.graph.node:
        if node.op_type == "BatchNormalization":
            training = attribute(node, "training_mode", 0) or len(node.output) > 1
        elif node.op_type == "Dropout" and len(node.input) > 2:
            training = bool(np.any(constants.get(node.input[2], True)))
        else:
            continue
        if training:
            return f"{node.op_type} {node.name or node.output[0]}"
    return None


def attribute(node: Any, name: str, default: Any) -> Any:
    for attribute in node.attribute:
        if attribute.name == name:
            return package().helper.get_attribute_value(attribute)
    return default


def package() -> Any:
    try:
        import onnx
    except ImportError:
        raise MissingDependencyError("onnx", "convert") from None
    return onnx
