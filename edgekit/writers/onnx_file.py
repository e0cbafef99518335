"""int8 from a float ONNX file of another exporter, on its own tensors.

There is no canonical float graph behind such a file, so it becomes ONNX only. Ranges are taken from
its own tensors by the same methods; weights are rounded to nearest, within the pair-sum bound where
the device asks for it, and biases may take up the mean error (Nagel et al. 2019, section 4.2).
Methods are judged before a last softmax, on samples that neither ranges nor means were taken from.
onnxruntime's quantizer writes the graph, which tensors share a scale is its choice.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.base.errors import InvalidDataError, InvalidModelError
from edgekit.data import feeds
from edgekit.data.feeds import Feed
from edgekit.graph import onnx, onnx_forms
from edgekit.quantization import encode, reconstruct, rounding, saturation
from edgekit.quantization.histogram import StreamingHistogram
from edgekit.quantization.profiles import DeviceProfile
from edgekit.quantization.quantize import CORRECTED, MARGIN, NEAREST, Trial
from edgekit.quantization.rounding import Floats
from edgekit.quantization.table import CalibrationTable, Range, TensorStatistics
from edgekit.records.encodings import Encoding, Encodings
from edgekit.writers import onnx_integers

_SHARE = 0.01
_SAMPLE = 1 << 12
_LAYERS = ("Conv", "Gemm", "MatMul")
#: What onnxruntime's quantizer would round by itself, where a factor is constant.
_PRODUCTS = (*_LAYERS, "ConvTranspose")
#: Operators without an integer kernel whose own constants would lose by being rounded.
_FLOAT = ("LayerNormalization", "InstanceNormalization", "BatchNormalization", "CumSum")
#: Inputs of one concatenation whose sizes differ by more than this need scales of their own.
_APART = 8.0


@dataclass(frozen=True)
class OnnxQuantized:
    """What was decided and written.

    Attributes:
        model: int8 ``ModelProto``.
        encodings: By the file's own tensor names.
        way: What was done to the weights.
        trials: What was tried, on held-out samples.
        saturating: Layers that nearest rounding would let saturate on x86 without VNNI.
        numbers: How many weights and biases were put into the file and read back.
        notes: What a reader should know, a sentence each.
    """

    model: Any
    encodings: Encodings
    way: str
    trials: tuple[Trial, ...]
    saturating: tuple[saturation.Prediction, ...]
    numbers: int
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Held:
    """What methods are judged by.

    Attributes:
        table: Of other samples than ``feed``, by the same method.
        feed: Held-out samples by input name.
    """

    table: CalibrationTable
    feed: Feed


@dataclass
class _Seen:
    """Statistics of one tensor while samples pass."""

    histogram: StreamingHistogram = field(default_factory=StreamingHistogram)
    low: Floats | None = None
    high: Floats | None = None
    total: Floats | None = None
    rows: int = 0
    average: tuple[float, float] | None = None

    def add(self, values: npt.NDArray[np.float32], *, last: bool) -> None:
        """Take in a sample, whose channels are the second axis, or the ``last``."""
        rows = values if last or values.ndim < 3 else np.moveaxis(values, 1, -1)
        channels = rows.shape[-1] if rows.ndim > (not last) else 1
        rows = rows.reshape(-1, channels).astype(np.float64)
        low, high = rows.min(axis=0), rows.max(axis=0)
        self.low = low if self.low is None else np.minimum(self.low, low)
        self.high = high if self.high is None else np.maximum(self.high, high)
        self.total = rows.sum(axis=0) + (0 if self.total is None else self.total)
        self.rows += len(rows)
        ends = float(low.min()), float(high.max())
        before = self.average or ends
        self.average = (
            before[0] + _SHARE * (ends[0] - before[0]),
            before[1] + _SHARE * (ends[1] - before[1]),
        )
        stride = max(1, values.size // _SAMPLE)
        self.histogram.add(values.ravel()[::stride])

    def result(self) -> TensorStatistics:
        assert self.low is not None and self.high is not None
        assert self.total is not None and self.average is not None
        least, most = float(self.low.min()), float(self.high.max())
        return TensorStatistics(
            min=least,
            max=most,
            average_min=min(max(self.average[0], least), most),
            average_max=min(max(self.average[1], least), most),
            histogram=self.histogram.result(),
            channel_min=tuple(self.low.tolist()),
            channel_max=tuple(self.high.tolist()),
            channel_mean=tuple((self.total / self.rows).tolist()),
        )


def observe(model: Any, given: Feed, *, name: str) -> dict[str, TensorStatistics]:
    """Statistics of every float tensor over samples, one at a time.

    Args:
        model: As :func:`edgekit.graph.onnx.prepare` leaves it.
        given: Samples by input name.
        name: Of the data, for messages.

    Raises:
        InvalidDataError: If a tensor becomes NaN or infinite.
    """
    watched = type(model)()
    watched.CopyFrom(model)
    there = {value.name for value in watched.graph.output}
    kinds = {value.name: value for value in model.graph.value_info}
    for node in model.graph.node:
        for output in node.output:
            value = kinds.get(output)
            if output not in there and value is not None:
                if value.type.tensor_type.elem_type == 1:
                    watched.graph.output.append(value)
    session = onnx.session(watched.SerializeToString())
    names = [value.name for value in session.get_outputs()]
    dense = read_as_rows(model)
    seen: dict[str, _Seen] = {}
    for i, feed in enumerate(feeds.one_by_one(given, onnx.signature(model).inputs)):
        answers = dict(zip(names, onnx.run(session, names, feed), strict=True))
        for key, values in {**feed, **answers}.items():
            if values.dtype != np.float32 or not values.size:
                continue
            if not np.isfinite(values).all():
                raise InvalidDataError(
                    f"{name}: sample {i} makes {key} NaN or infinite; check the model and the "
                    f"preprocessing"
                )
            seen.setdefault(key, _Seen()).add(values, last=key in dense)
    return {key: each.result() for key, each in seen.items()}


def read_as_rows(model: Any) -> set[str]:
    """Tensors whose channels are the last axis, since a product of matrices reads them."""
    return {node.input[0] for node in model.graph.node if node.op_type in ("Gemm", "MatMul")}


def quantize(
    model: Any,
    table: CalibrationTable,
    *,
    profile: DeviceProfile,
    held: Held | None,
    correct: bool,
) -> OnnxQuantized:
    """Decide and write the int8 model.

    Args:
        model: As :func:`edgekit.sources.onnx_source.prepare` leaves it.
        table: Of its tensors.
        profile: The device.
        held: To judge by; None for nothing.
        correct: Also try corrected biases.

    Raises:
        InvalidModelError: If onnxruntime's quantizer refuses the model, or there is nothing in it
            to be quantized.
    """
    methods = [NEAREST, *([CORRECTED] if correct else [])]
    best, trials = methods[-1], []
    if held is not None:
        judged = _before_softmax(model)
        expected = _outputs(judged, held.feed, model)
        for method in methods:
            tried = _write(model, held.table, profile, corrected=method == CORRECTED)
            found = _outputs(_before_softmax(tried.model), held.feed, model)
            trials.append(Trial(method, _sqnr(expected, found)))
        best = trials[0].way
        if trials[-1].sqnr > trials[0].sqnr + MARGIN:
            best = trials[-1].way
    written = _write(model, table, profile, corrected=best == CORRECTED)
    saturating = tuple(
        prediction
        for layer in _layers(model)
        if not layer.depthwise
        for prediction in [_predict(layer)]
        if prediction.pairs
    )
    sha256 = hashlib.sha256(model.SerializeToString(deterministic=True)).hexdigest()
    encodings = Encodings(sha256, profile.name, written.encodings)
    return OnnxQuantized(
        written.model, encodings, best, tuple(trials), saturating, written.numbers, written.notes
    )


@dataclass(frozen=True)
class _Layer:
    """A convolution or dense layer with constant weights.

    Attributes:
        rows: Weights ``[O, K]`` in the order of the dot product: height, width, input channel.
        shape: ``[O, H, W, I]``, or ``[O, I]`` of a dense layer.
    """

    node: Any
    rows: Floats
    shape: tuple[int, ...]
    bias: Floats | None
    depthwise: bool


def _layers(model: Any) -> list[_Layer]:
    constants = onnx.stored_constants(model)
    found = []
    for node in model.graph.node:
        if node.op_type not in _LAYERS or node.input[1] not in constants:
            continue
        weights = constants[node.input[1]].astype(np.float64)
        if node.op_type == "Conv":
            whole = np.moveaxis(weights, 1, -1)
        elif weights.ndim != 2:
            continue
        else:
            whole = weights if onnx.attribute(node, "transB", 0) else weights.T
        bias = constants.get(node.input[2]) if len(node.input) > 2 else None
        found.append(
            _Layer(
                node,
                whole.reshape(len(whole), -1),
                whole.shape,
                None if bias is None else bias.astype(np.float64).reshape(-1),
                node.op_type == "Conv"
                and not saturation.pairs_in_groups(
                    onnx.attribute(node, "group", 1), weights.shape[1], len(weights)
                ),
            )
        )
    return found


def weight_steps(model: Any, profile: DeviceProfile) -> dict[str, tuple[str, Floats, int]]:
    """(its input, a weight's step for each output channel, weights of one) by what a layer writes,
    with weights rounded to nearest."""
    found = {}
    for layer in _layers(model):
        scale = rounding.scales(layer.rows)
        if profile.pair_bound and not layer.depthwise:
            scale = rounding.pair_scales(layer.rows, scale)
        found[layer.node.output[0]] = (layer.node.input[0], scale, layer.rows.shape[1])
    return found


def _predict(layer: _Layer) -> saturation.Prediction:
    scale = rounding.scales(layer.rows)
    steps = rounding.nearest(layer.rows, scale, pair_bound=False)
    return saturation.predict(layer.node.output[0], steps.astype(np.int8))


@dataclass(frozen=True)
class _Written:
    """An int8 model, and how many weights and biases were put in."""

    model: Any
    encodings: dict[str, Encoding]
    numbers: int
    notes: tuple[str, ...]


def _write(
    model: Any, table: CalibrationTable, profile: DeviceProfile, *, corrected: bool
) -> _Written:
    layers, notes = {layer.node.name: layer for layer in _layers(model)}, []
    steps, scales, biases = {}, {}, {}
    larger: list[str] = []
    rows = read_as_rows(model)
    for name, layer in layers.items():
        bound = profile.pair_bound and not layer.depthwise
        scale = rounding.scales(layer.rows)
        if bound:
            scale = rounding.pair_scales(layer.rows, scale)
        scales[name] = scale.astype(np.float32)
        scale = scales[name].astype(np.float64)
        steps[name] = rounding.nearest(layer.rows, scale, pair_bound=bound)
        biases[name] = layer.bias
        entry = table.statistics.get(layer.node.input[0])
        if corrected and layer.bias is not None and entry is not None:
            error = layer.rows - steps[name] * scale[:, None]
            mean = _mean_output(layer, error, entry, as_rows=layer.node.input[0] in rows)
            if mean is None:
                notes.append(
                    f"{name}: its bias was not corrected, the means of its input channels are not "
                    f"known"
                )
            else:
                biases[name] = layer.bias + mean

    def finish(name: str, entry: np.float32 | None) -> onnx_integers.Integers | None:
        if name not in layers:
            return None
        layer, found, scale = layers[name], steps[name], scales[name]
        bias = biases[name]
        if bias is not None and entry is not None:
            found, scale, raised = reconstruct.for_bias(found, scale, bias, entry, name)
            if raised:
                larger.append(name)
        return onnx_integers.Integers(_own_layout(layer, found), scale, bias)

    ranges = {name: _stretched(found) for name, found in table.ranges.items()}
    quantized = onnx_integers.quantize_own(
        model,
        ranges,
        activation_dtype=profile.onnx_activations,
        symmetric=profile.symmetric,
        quantize_bias=profile.onnx_bias,
        left=_left_float(model, layers, ranges),
    )
    tensors, numbers = onnx_integers.put_own(quantized, finish, quantize_bias=profile.onnx_bias)
    if not numbers:
        raise InvalidModelError(
            f"nothing in the ONNX file can be quantized: {_why_nothing(model, layers)}; export it "
            f"in float32 or float16"
        )
    if larger:
        more = f" and {len(larger) - 3} more" if len(larger) > 3 else ""
        notes.append(
            f"{', '.join(larger[:3])}{more}: weight scales were raised so that the bias fits in "
            f"int32"
        )
    shift = 128 if profile.onnx_activations == "uint8" else 0
    encodings = {
        name: Encoding("int8", (encode.stored(scale),), zero_point - shift)
        for name, (scale, zero_point) in tensors.items()
    }
    return _Written(quantized, encodings, numbers, tuple(notes))


def _why_nothing(model: Any, layers: Mapping[str, _Layer]) -> str:
    """Why a model has no layer that could be quantized, in words."""
    bodies = [node for node in model.graph.node if any(True for _ in onnx.bodies(node))]
    if layers:
        first = next(iter(layers.values())).node
        return (
            f"its {len(layers)} layers make spectra or variances, which 8 bits do not hold, or "
            f"have no known sizes, first {first.op_type} {first.name}"
        )
    wanted = f"expected operators such as {', '.join(_LAYERS)} with constant weights"
    if bodies:
        wanted += f"; {bodies[0].op_type} {bodies[0].name} keeps its own, which stay float"
    return wanted


def _left_float(
    model: Any, layers: Mapping[str, _Layer], ranges: Mapping[str, tuple[float, float]]
) -> set[str]:
    """Names of nodes that have to stay float.

    Variances and spectra; concatenations of parts of very different sizes; what reads a constant
    that is no number of the model's, as the infinity of a mask; products with constants that no
    layer holds.
    """
    constants = onnx.stored_constants(model)

    def size(name: str) -> float:
        if name in constants:
            return float(np.abs(constants[name].astype(np.float64)).max(initial=0))
        return max(map(abs, ranges[name])) if name in ranges else 0.0

    left = set(onnx_forms.relative(model))
    for node in model.graph.node:
        sizes = [size(name) for name in node.input if name]
        apart = node.op_type == "Concat" and max(sizes) > _APART * min(sizes)
        endless = any(
            constants[name].dtype.kind == "f" and not np.isfinite(constants[name]).all()
            for name in node.input
            if name in constants
        )
        product = node.op_type in _PRODUCTS and node.name not in layers
        if (
            node.op_type in _FLOAT
            or apart
            or endless
            or (product and any(name in constants for name in node.input[:2]))
        ):
            left.add(node.name)
    return left


def _stretched(found: Range) -> tuple[float, float]:
    """Ends with 0 between them; a tensor that is always 0 gets any scale."""
    low, high = min(found.min, 0.0), max(found.max, 0.0)
    return (low, high) if high > low else (0.0, 1.0)


def _own_layout(layer: _Layer, steps: Floats) -> npt.NDArray[np.int8]:
    """Steps ``[O, K]`` as the node's weights are laid out."""
    whole = steps.astype(np.int8).reshape(layer.shape)
    if layer.node.op_type == "Conv":
        return np.ascontiguousarray(np.moveaxis(whole, -1, 1))
    return whole if onnx.attribute(layer.node, "transB", 0) else np.ascontiguousarray(whole.T)


def _mean_output(
    layer: _Layer, error: Floats, entry: TensorStatistics, *, as_rows: bool
) -> Floats | None:
    """What weights ``[O, K]`` make of each input channel's mean; None where means are of another
    axis than the layer's input channels."""
    mean = np.asarray(entry.channel_mean)
    own = layer.shape[-1]
    groups = max(1, len(mean) // own)
    other_axis = layer.node.op_type == "Conv" and as_rows
    if other_axis or onnx.attribute(layer.node, "transA", 0):
        return None
    if len(mean) != groups * own or len(error) % groups:
        return None
    taps = error.reshape(groups, len(error) // groups, -1, own).sum(axis=2)
    return np.asarray(np.einsum("goc,gc->go", taps, mean.reshape(groups, own)).reshape(-1))


def _before_softmax(model: Any) -> Any:
    """The model with what goes into a last softmax as its output in the softmax's place."""
    found = type(model)()
    found.CopyFrom(model)
    makers = {name: node for node in found.graph.node for name in node.output}
    for value in found.graph.output:
        maker = makers.get(value.name)
        while maker is not None and maker.op_type in ("DequantizeLinear", "QuantizeLinear"):
            maker = makers.get(maker.input[0])
        if maker is not None and maker.op_type in ("Softmax", "LogSoftmax"):
            name = maker.input[0]
            if name in {value.name for value in (*found.graph.input, *found.graph.output)}:
                continue
            value.Clear()
            value.name = name
    return found


def _outputs(judged: Any, feed: Feed, model: Any) -> list[npt.NDArray[Any]]:
    """Outputs for every sample, ``[N, ...]``, in the order of the file."""
    session = onnx.session(judged.SerializeToString())
    names = [value.name for value in session.get_outputs()]
    parts = [
        onnx.run(session, names, each)
        for each in feeds.one_by_one(feed, onnx.signature(model).inputs)
    ]
    return [np.stack(each) for each in zip(*parts, strict=True)]


def _sqnr(expected: list[npt.NDArray[Any]], found: list[npt.NDArray[Any]]) -> float:
    """In dB, of all outputs of real numbers together."""
    pairs = [
        (one.astype(np.float64), other)
        for one, other in zip(expected, found, strict=True)
        if one.dtype.kind == "f"
    ]
    signal = sum(float((one**2).sum()) for one, _ in pairs)
    noise = sum(float(((one - other) ** 2).sum()) for one, other in pairs)
    if not np.isfinite(noise):
        return float("-inf")  # loses against whatever is finite
    return float("inf") if noise == 0 else 10 * float(np.log10(max(signal, 1e-30) / noise))
