"""int8 from a float ONNX file of another exporter, on its own tensors.

There is no canonical float graph behind such a file, so it becomes ONNX only. Ranges are taken from
its own tensors by the same methods; weights are rounded to nearest, within the pair-sum bound where
the device asks for it, and biases may take up the mean error (Nagel et al. 2019, section 4.2).
onnxruntime's quantizer writes the graph, which tensors share a scale is its choice.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit import feeds
from edgekit.encodings import Encoding, Encodings
from edgekit.errors import InvalidDataError, InvalidModelError
from edgekit.feeds import Feed
from edgekit.formats import onnx, onnx_integers
from edgekit.quant import encode, rounding, saturation
from edgekit.quant.histogram import StreamingHistogram
from edgekit.quant.profiles import DeviceProfile
from edgekit.quant.quantize import CORRECTED, MARGIN, NEAREST, Trial
from edgekit.quant.rounding import Floats
from edgekit.quant.table import CalibrationTable, Range, TensorStatistics

_SHARE = 0.01
_SAMPLE = 1 << 12
_LAYERS = ("Conv", "Gemm", "MatMul")


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
    """

    model: Any
    encodings: Encodings
    way: str
    trials: tuple[Trial, ...]
    saturating: tuple[saturation.Prediction, ...]
    numbers: int


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
        rows = rows.reshape(-1, rows.shape[-1] if rows.ndim > 1 else 1).astype(np.float64)
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
        model: As :func:`edgekit.formats.onnx.prepare` leaves it.
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
    dense = {n.input[0] for n in model.graph.node if n.op_type in ("Gemm", "MatMul")}
    seen: dict[str, _Seen] = {}
    for i in range(feeds.count(given)):
        feed = {key: values[i : i + 1] for key, values in given.items()}
        answers = dict(zip(names, session.run(names, feed), strict=True))
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


def quantize(
    model: Any,
    table: CalibrationTable,
    *,
    profile: DeviceProfile,
    feed: Feed | None,
    correct: bool,
) -> OnnxQuantized:
    """Decide and write the int8 model.

    Args:
        model: As :func:`edgekit.formats.onnx.prepare` leaves it.
        table: Of its tensors.
        profile: The device.
        feed: Held-out samples by input name, to judge by; None for none.
        correct: Also try corrected biases.

    Raises:
        InvalidModelError: If onnxruntime's quantizer refuses the model, or there is nothing in it
            to be quantized.
    """
    ways = [NEAREST, *([CORRECTED] if correct else [])]
    made = {way: _write(model, table, profile, corrected=way == CORRECTED) for way in ways}
    trials: list[Trial] = []
    best = ways[-1] if feed is None else NEAREST
    if feed is not None:
        expected = _answers(model, feed)
        trials = [Trial(way, _sqnr(expected, _answers(made[way][0], feed))) for way in ways]
        if trials[-1].sqnr > trials[0].sqnr + MARGIN:
            best = ways[-1]
    quantized, tensors, numbers = made[best]
    saturating = tuple(
        found
        for layer in _layers(model)
        if not layer.depthwise
        for found in [_predict(layer)]
        if found.pairs
    )
    sha256 = hashlib.sha256(model.SerializeToString(deterministic=True)).hexdigest()
    encodings = Encodings(sha256, profile.name, tensors)
    return OnnxQuantized(quantized, encodings, best, tuple(trials), saturating, numbers)


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


def _predict(layer: _Layer) -> saturation.Prediction:
    scale = rounding.scales(layer.rows)
    steps = rounding.nearest(layer.rows, scale, pair_bound=False)
    return saturation.predict(layer.node.name, steps.astype(np.int8))


def _write(
    model: Any, table: CalibrationTable, profile: DeviceProfile, *, corrected: bool
) -> tuple[Any, dict[str, Encoding], int]:
    """(int8 model, encodings, numbers put in)."""
    decided: dict[str, tuple[Floats, Floats, Floats | None, _Layer]] = {}
    for layer in _layers(model):
        bound = profile.pair_bound and not layer.depthwise
        scale = rounding.scales(layer.rows)
        if bound:
            scale = rounding.pair_scales(layer.rows, scale)
        scale = scale.astype(np.float32).astype(np.float64)
        steps = rounding.nearest(layer.rows, scale, pair_bound=bound)
        bias = layer.bias
        entry = table.statistics.get(layer.node.input[0])
        if corrected and bias is not None and entry is not None:
            bias = bias + _mean_answer(layer, layer.rows - steps * scale[:, None], entry)
        decided[layer.node.name] = (steps, scale, bias, layer)
    ranges = {name: _stretched(found) for name, found in table.ranges.items()}
    quantized = onnx_integers.quantize_own(
        model,
        ranges,
        activation_dtype=profile.onnx_activations,
        symmetric=profile.symmetric,
        quantize_bias=profile.onnx_bias,
    )
    tensors, numbers = onnx_integers.put_own(
        quantized,
        {
            name: (_own_layout(layer, steps), scale, bias)
            for name, (steps, scale, bias, layer) in decided.items()
        },
        quantize_bias=profile.onnx_bias,
    )
    if not numbers:
        raise InvalidModelError(
            f"nothing in the ONNX file can be quantized: expected operators such as "
            f"{', '.join(_LAYERS)} with constant weights"
        )
    shift = 128 if profile.onnx_activations == "uint8" else 0
    encodings = {
        name: Encoding("int8", (encode.stored(scale),), zero_point - shift)
        for name, (scale, zero_point) in tensors.items()
    }
    return quantized, encodings, numbers


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


def _mean_answer(layer: _Layer, error: Floats, entry: TensorStatistics) -> Floats:
    """What weights ``[O, K]`` answer to each input channel's mean."""
    mean = np.asarray(entry.channel_mean)
    own = layer.shape[-1]
    groups = max(1, len(mean) // own)
    if len(mean) != groups * own or len(error) % groups:
        return np.zeros(len(error))
    taps = error.reshape(groups, len(error) // groups, -1, own).sum(axis=2)
    return np.asarray(np.einsum("goc,gc->go", taps, mean.reshape(groups, own)).reshape(-1))


def _answers(model: Any, feed: Feed) -> Mapping[str, npt.NDArray[Any]]:
    session = onnx.session(model.SerializeToString())
    names = [value.name for value in session.get_outputs()]
    parts = [
        session.run(names, {key: values[i : i + 1] for key, values in feed.items()})
        for i in range(feeds.count(feed))
    ]
    return dict(zip(names, map(np.concatenate, zip(*parts, strict=True)), strict=True))


def _sqnr(expected: Mapping[str, Any], found: Mapping[str, Any]) -> float:
    signal = sum(float((v.astype(np.float64) ** 2).sum()) for v in expected.values())
    noise = sum(float(((v.astype(np.float64) - found[n]) ** 2).sum()) for n, v in expected.items())
    return float("inf") if noise == 0 else 10 * float(np.log10(max(signal, 1e-30) / noise))
