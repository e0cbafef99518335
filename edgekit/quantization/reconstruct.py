"""Integers of every layer: nearest, with corrected biases, or fitted to the inputs of the layer.

``fitted`` runs the float model and the model as the device will compute it side by side. Each layer
is fitted so that it gives the float output for inputs that have all errors made so far. Then it is
rounded so that its output changes least, and not its weights (edgekit.quantization.rounding).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.base.errors import InvalidModelError
from edgekit.graph import kernels, walk
from edgekit.graph.flatbuffer import Graph, Layer
from edgekit.quantization import rounding, sampling, saturation
from edgekit.quantization.rounding import Floats
from edgekit.quantization.table import TensorStatistics
from edgekit.records.encodings import ConstantIntegers, Encoding, LayerIntegers, Stored

#: A bias keeps this far from the ends of int32, so that the products fit beside it.
_LARGEST_BIAS = float(1 << 30)
#: Rows with inputs of their own that are looked at together, so that they stay in the cache.
_CHANNELS = 32
#: So many times fewer dot products than inputs are few.
_FEW = 2
#: Part of the weights that get 4 bits for which 8 are kept.
_SMALL = 1 / 16
#: Two models' worth of one layer's input and output, in bytes, while walking.
_WALK_BYTES = 3 << 29


class NotFiniteError(Exception):
    """A tensor becomes NaN or infinite as the device computes it; layers cannot be fitted to it."""

    def __init__(self, tensor: str) -> None:
        super().__init__(tensor)
        self.tensor = tensor


@dataclass(frozen=True)
class Rounded:
    """Integers of one layer, and the float constants that they stand for.

    Attributes:
        integers: As the files store them.
        weights: ``weights * weight_scale``, float32 in the canonical layout.
        bias: ``bias * bias_scale``, float32, or None.
        raised: Whether weight scales were raised to let the bias fit in int32.
    """

    integers: LayerIntegers
    weights: npt.NDArray[np.float32]
    bias: npt.NDArray[np.float32] | None
    raised: bool


Layers = dict[str, Rounded]
#: Whole steps ``[O, K]`` and scales ``[O]`` of a layer.
Steps = tuple[Floats, Floats]


class _AsTheyAre:
    """Stands for the encoding of numbers that are real already."""

    def real(
        self, values: npt.NDArray[np.float32], out: npt.NDArray[np.float32] | None = None
    ) -> npt.NDArray[np.float32]:
        """The numbers."""
        if out is None:
            return values.copy()
        out[...] = values
        return out


@dataclass(frozen=True)
class DeviceInputs:
    """What dot products read on the device.

    Attributes:
        steps: As they are stored, int8; or real numbers.
        encoding: What the steps stand for.
    """

    steps: npt.NDArray[Any]
    encoding: Encoding | _AsTheyAre

    def real(self) -> npt.NDArray[np.float32]:
        """The numbers."""
        return self.encoding.real(self.steps)

    def repeated(self, times: int) -> DeviceInputs:
        """Each channel so many times."""
        return DeviceInputs(np.repeat(self.steps, times, axis=2), self.encoding)


def nearest(
    graph: Graph,
    encodings: Mapping[str, Encoding] | None,
    *,
    pair_bound: bool,
    statistics: Mapping[str, TensorStatistics] | None = None,
    four: Collection[str] = (),
    only: Collection[str] | None = None,
    steps_by_layer: dict[str, Steps] | None = None,
) -> Layers:
    """Every weight to its nearest step.

    Args:
        graph: Float.
        encodings: Encodings of activations; a layer that has none of its input or output stays
            float. None where all activations stay float: then every layer is rounded, and its bias
            is not.
        pair_bound: Keep pairs of products within int16 (edgekit.quantization.saturation).
        statistics: If given, biases are corrected by the mean error that the rounding causes,
            from each channel's mean (Nagel et al. 2019, section 4.2). Borders padded with zeros
            are taken as if they were not there.
        four: Layers, by output, whose weights get 4 bits.
        only: Layers to do, by output; default all.
        steps_by_layer: Steps and scales of this graph, with the same options but ``statistics``;
            those that are not there are added.
    """
    rounded_layers = {}
    steps_by_layer = {} if steps_by_layer is None else steps_by_layer
    for layer in integer_layers(graph, encodings):
        if only is not None and layer.output not in only:
            continue
        rows, bias = rows_of(graph, layer)
        if layer.output not in steps_by_layer:
            steps_by_layer[layer.output] = _nearest(
                rows,
                bits=_bits(layer, four),
                pair_bound=pair_bound and _pairs(graph, layer, encodings),
            )
        steps, scale = steps_by_layer[layer.output]
        if statistics is not None:
            error = rows - steps * scale[:, None]
            bias = bias + _mean_output(
                layer, graph.shape(layer.weights), error, statistics[layer.input].channel_mean
            )
        rounded_layers[layer.output] = finish(
            graph, layer, steps, scale, bias, encodings, bits=_bits(layer, four)
        )
    return rounded_layers


def _bits(layer: Layer, four: Collection[str]) -> int:
    return 4 if layer.output in four else 8


def _nearest(rows: Floats, *, bits: int, pair_bound: bool) -> Steps:
    """Steps and scales of weights ``[O, K]`` that go to the nearest step."""
    scale = _scales(rows, None, bits=bits, pair_bound=pair_bound)
    largest = 2 ** (bits - 1) - 1
    return rounding.nearest(rows, scale, pair_bound=pair_bound, largest=largest), scale


def _scales(rows: Floats, importance: Floats | None, *, bits: int, pair_bound: bool) -> Floats:
    scale = rounding.scales(rows, bits=bits)
    if bits < 8:
        return rounding.cut_scales(rows, scale, importance, bits=bits)
    return rounding.pair_scales(rows, scale, importance) if pair_bound else scale


def of_four_bits(graph: Graph) -> frozenset[str]:
    """Layers, by output, whose weights get 4 bits where the precision has such.

    Not depthwise ones, nor the smallest of the others that hold :data:`_SMALL` of their weights
    together: 8 bits of them are few bytes, and they lose most.
    """
    sizes: dict[bytes, int] = {}
    members: dict[bytes, list[str]] = {}
    for layer in graph.layers:
        if layer.kind != "depthwise":
            key = graph.kernel(layer)
            sizes[key] = int(np.prod(graph.shape(layer.weights)))
            members.setdefault(key, []).append(layer.output)
    left, outputs = _SMALL * sum(sizes.values()), list[str]()
    for key in sorted(sizes, key=sizes.__getitem__):
        left -= sizes[key]
        if left < 0:
            outputs += members[key]
    return frozenset(outputs)


def _pairs(graph: Graph, layer: Layer, encodings: Mapping[str, Encoding] | None) -> bool:
    """Whether a kernel of onnxruntime's multiplies a layer's integers in pairs."""
    if encodings is None and layer.kind not in kernels.DYNAMIC["onnx"]:
        return False
    return saturation.pairs_products(graph, layer)


def integer_layers(graph: Graph, encodings: Mapping[str, Encoding] | None) -> tuple[Layer, ...]:
    """Layers whose weights become integers: those whose input and output are integers, and all
    where no activation is one."""
    if encodings is None:
        return graph.layers
    return tuple(
        layer for layer in graph.layers if layer.input in encodings and layer.output in encodings
    )


def fitted(
    graph: Graph,
    encodings: Mapping[str, Encoding] | None,
    feed: walk.Values,
    *,
    pair_bound: bool,
    threads: int,
    four: Collection[str] = (),
    advance: Callable[[str], None] = lambda name: None,
    seed: int = 0,
) -> Layers:
    """Fit and round every layer to what it sees of the given images.

    Args:
        graph: Float.
        encodings: Encodings of activations; a layer that has none of its input or output stays
            float. None as :func:`nearest` takes it.
        feed: Preprocessed images ``[N, ...]`` by input name.
        pair_bound: Keep pairs of products within int16 (edgekit.quantization.saturation).
        threads: Number of threads of the float operators, and of the fit.
        four: Layers, by output, whose weights get 4 bits.
        advance: Called with each operator's output.
        seed: Seed of the sample of positions.

    Raises:
        NotFiniteError: If a tensor becomes NaN or infinite on the device.
    """
    layers = {layer.output: layer for layer in integer_layers(graph, encodings)}
    shared = shared_weights(graph)
    encoded = encodings or {}
    stored = {name: encoding for name, encoding in encoded.items() if encoding.dtype == "int8"}
    numbers = {name: (encoding.scale[0], encoding.zero_point) for name, encoding in stored.items()}

    def rounded_real(name: str, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Real values of what is stored in 16 bits, which no operator reads here."""
        wide = name in encoded and name not in stored
        return encoded[name].fake_quantize(values) if wide else values

    rng, count = np.random.default_rng(seed), walk.samples(graph, feed)
    places = {name: sampling.draw(graph, layer, count, rng) for name, layer in layers.items()}
    device: dict[str, npt.NDArray[Any]] = {
        name: stored[name].steps(values) if name in stored else rounded_real(name, values)
        for name, values in feed.items()
    }
    rounded_graph = Graph(graph.serialize())
    rounded_layers: Layers = {}
    last_reader = walk.last_readers(graph)
    operators = graph.operators
    with ThreadPoolExecutor(threads) as pool:
        for part, plain in sampling.parts(graph, feed, list(places.values()), threads=threads):
            for position in part:
                operator = operators[position]
                layer = layers.get(operator.outputs[0])
                if layer is not None:
                    rounded = _fit(
                        graph,
                        layer,
                        plain.pop(layer.output),
                        _device_inputs(graph, places[layer.output], device, stored, count),
                        encodings,
                        pair_bound=pair_bound and _pairs(graph, layer, encodings),
                        bits=_bits(layer, four),
                        shared=layer.output in shared,
                        map_parts=pool.map,
                    )
                    rounded_layers[layer.output] = rounded
                    put(rounded_graph, layer, rounded)
                step = walk.Step(rounded_graph, position, threads=threads, numbers=numbers)
                for name, values in zip(operator.outputs, step.run(device), strict=True):
                    device[name] = rounded_real(name, values)
                    if values.dtype == np.float32 and not _finite(values):
                        raise NotFiniteError(name)
                if step.doubtful:
                    _check_finite(rounded_graph, position, device, stored, threads)
                for name in [n for n in device if last_reader.get(n, position + 1) <= position]:
                    del device[name]
                advance(operator.outputs[0])
    return rounded_layers


def _device_inputs(
    graph: Graph,
    places: sampling.Places,
    device: Mapping[str, npt.NDArray[Any]],
    stored: Mapping[str, Encoding],
    count: int,
) -> DeviceInputs:
    """What a layer reads on the device."""
    encoding = stored.get(places.layer.input)
    if encoding is None:
        values = np.empty(places.shape(graph, count), np.float32)
        places.read(device[places.layer.input], into=values)
        return DeviceInputs(values, _AsTheyAre())
    steps = np.empty(places.shape(graph, count), np.int8)
    places.read(device[places.layer.input], into=steps, fill=encoding.zero_point)
    return DeviceInputs(steps, encoding)


def _check_finite(
    graph: Graph,
    position: int,
    device: Mapping[str, npt.NDArray[Any]],
    encodings: Mapping[str, Encoding],
    threads: int,
) -> None:
    """Compute an operator again in float, where int8 does not say whether a value was NaN.

    Raises:
        NotFiniteError: If one was.
    """
    step = walk.Step(graph, position, threads=threads)
    inputs = {
        name: encodings[name].real(device[name]) if name in encodings else device[name]
        for name in step.fed
    }
    for name, values in zip(step.operator.outputs, step.run(inputs), strict=True):
        if np.isnan(values).any():
            raise NotFiniteError(name)


def between(
    graph: Graph,
    layers: Layers,
    before: Mapping[str, Encoding],
    after: Mapping[str, Encoding],
) -> Layers:
    """The same layers between activations of other encodings: weights stay, biases follow the scale
    of what their layer reads.

    Args:
        graph: Float.
        layers: Of the graph.
        before: Encodings of activations that the layers were made for.
        after: Encodings of the same activations.

    Raises:
        InvalidModelError: If a bias fits in int32 at no weight scale.
    """
    moved = {}
    for layer in graph.layers:
        if layer.output not in layers:
            continue
        rounded = moved[layer.output] = layers[layer.output]
        if before[layer.input].scale == after[layer.input].scale:
            continue
        integers = rounded.integers
        steps = _rows(layer, integers.weights.astype(np.float64))
        bias = np.zeros(len(steps))
        if integers.bias is not None and integers.bias_scale is not None:
            bias = integers.bias * integers.bias_scale.astype(np.float64)
        scale = integers.weight_scale.astype(np.float64)
        again = finish(graph, layer, steps, scale, bias, after)
        moved[layer.output] = replace(again, raised=again.raised or rounded.raised)
    return moved


def shared_weights(graph: Graph) -> frozenset[str]:
    """Layers, by output, whose weights another has too, such as the steps of a recurrent one."""
    by_content: dict[bytes, list[str]] = {}
    for layer in graph.layers:
        by_content.setdefault(graph.kernel(layer), []).append(layer.output)
    return frozenset(name for names in by_content.values() for name in names if len(names) > 1)


def put(graph: Graph, layer: Layer, rounded: Rounded) -> None:
    """Replace a layer's float constants by those that its integers stand for, in place."""
    graph.set_constant(layer.weights, rounded.weights)
    if layer.bias and rounded.bias is not None:
        graph.set_constant(layer.bias, rounded.bias)


def constants(graph: Graph, encodings: Mapping[str, Encoding]) -> dict[str, ConstantIntegers]:
    """Constants to their nearest step.

    Args:
        graph: Float, with the real constants or with those that the integers stand for.
        encodings: Encodings of constants (:func:`edgekit.quantization.encode.constants`).
    """
    integers = {}
    for name, encoding in encodings.items():
        steps = np.rint(graph.constant(name) / np.float32(encoding.scale[0])) + encoding.zero_point
        values = np.clip(steps, *encoding.limits).astype(encoding.dtype)
        integers[name] = ConstantIntegers(values, encoding.scale[0], encoding.zero_point)
    return integers


def put_constants(graph: Graph, constants: Mapping[str, ConstantIntegers]) -> None:
    """Replace float constants by those that their integers stand for, in place."""
    for name, integers in constants.items():
        graph.set_constant(name, integers.real())


def stored(
    encodings: Mapping[str, Encoding],
    layers: Layers,
    constants: Mapping[str, ConstantIntegers] | None = None,
) -> Stored:
    """What a file of these encodings, layers and constants holds."""
    return Stored(
        {name: (encoding.scale[0], encoding.zero_point) for name, encoding in encodings.items()},
        {name: rounded.integers for name, rounded in layers.items()},
        constants or {},
        dtype=dtype_of(encodings.values()),
    )


def dtype_of(encodings: Iterable[Encoding]) -> str:
    """dtype of activations, by the encodings of some."""
    return next((encoding.dtype for encoding in encodings if encoding.axis is None), "int8")


def images_that_fit(graph: Graph, count: int) -> int:
    """How many images can be walked at once in 1.5 GiB, at least 32."""
    largest = 1
    for operator in graph.operators:
        names = (*walk.fed(graph, operator), *operator.outputs)
        largest = max(largest, sum(int(np.prod(graph.shape(name))) for name in names))
    return min(count, max(32, _WALK_BYTES // (8 * largest)))


def _finite(values: npt.NDArray[np.float32]) -> bool:
    return bool(np.isfinite(values.min(initial=0)) and np.isfinite(values.max(initial=0)))


def _fit(
    graph: Graph,
    layer: Layer,
    exact: npt.NDArray[np.float32],
    device_inputs: DeviceInputs,
    encodings: Mapping[str, Encoding] | None,
    *,
    pair_bound: bool,
    bits: int,
    shared: bool,
    map_parts: rounding.MapParts,
) -> Rounded:
    rows, bias = rows_of(graph, layer)
    if shared:  # one kernel for all layers that have it, a bias for each
        steps, scale = _nearest(rows, bits=bits, pair_bound=pair_bound)
        if exact.ndim == 2 and exact.shape[1] == rows.shape[1]:
            mean = device_inputs.real().mean(axis=0)
            error = exact.mean(axis=0) @ rows.T - mean @ (steps * scale[:, None]).T
            bias = bias + error
        return finish(graph, layer, steps, scale, bias, encodings, bits=bits)
    channels = exact.shape[-1]
    if layer.kind == "depthwise":
        wide = len(rows) // channels  # the depth multiplier
        if wide > 1:
            exact, device_inputs = np.repeat(exact, wide, axis=2), device_inputs.repeated(wide)
    if layer.kind != "conv" or channels == rows.shape[1]:
        steps, scale, bias = _solve(
            rows, bias, exact, device_inputs, pair_bound=pair_bound, bits=bits, map_parts=map_parts
        )
        return finish(graph, layer, steps, scale, bias, encodings, bits=bits)
    # a grouped convolution: each group has rows and channels of its own
    taps = int(np.prod(graph.shape(layer.weights)[1:3]))
    own = rows.shape[1] // taps
    groups = channels // (taps * own)
    parts = []
    for number, chosen in enumerate(np.split(np.arange(len(rows)), groups)):
        own_channels = slice(number * own, (number + 1) * own)
        exact_part = exact.reshape(len(exact), taps, -1)[..., own_channels]
        device_part = device_inputs.steps.reshape(len(exact), taps, -1)[..., own_channels]
        parts.append(
            _solve(
                rows[chosen],
                bias[chosen],
                exact_part.reshape(len(exact), -1),
                DeviceInputs(device_part.reshape(len(exact), -1), device_inputs.encoding),
                pair_bound=pair_bound,
                bits=bits,
                map_parts=map_parts,
            )
        )
    steps, scale, bias = (np.concatenate(group_parts) for group_parts in zip(*parts, strict=True))
    return finish(graph, layer, steps, scale, bias, encodings, bits=bits)


def _solve(
    rows: Floats,
    bias: Floats,
    exact: npt.NDArray[np.float32],
    device_inputs: DeviceInputs,
    *,
    pair_bound: bool,
    bits: int,
    map_parts: rounding.MapParts,
) -> tuple[Floats, Floats, Floats]:
    """(steps ``[O, K]``, scale ``[O]``, bias ``[O]``) from what the dot products read.

    ``exact`` and ``device_inputs`` are ``[N, K]``, or ``[N, K, O]`` where every row has inputs of
    its own.
    """
    # rows are in the order of the samples: two halves share none but one
    count = min(2, len(exact))
    halves = np.array_split(exact, count), np.array_split(device_inputs.steps, count)
    part = _part_of_each if exact.ndim == 3 else _part
    parts = list(map_parts(partial(part, rows, device_inputs.encoding), *halves))
    moments = rounding.joined(parts).moments
    fitted_rows, fitted_bias = rounding.fit(rows, bias, parts, map_parts=map_parts)
    importance = np.diagonal(moments, axis1=-2, axis2=-1)[..., :-1]
    scale = _scales(fitted_rows, importance, bits=bits, pair_bound=pair_bound)
    steps, bias = rounding.round_rows(
        fitted_rows,
        fitted_bias,
        moments,
        scale,
        pair_bound=pair_bound,
        largest=2 ** (bits - 1) - 1,
    )
    return steps, scale, bias


def _part(
    rows: Floats,
    encoding: Encoding | _AsTheyAre,
    exact: npt.NDArray[np.float32],
    device_inputs: npt.NDArray[Any],
) -> rounding.Part:
    """What some of the dot products say, as :func:`_solve` takes them, ``[N, K]``."""
    count, length = device_inputs.shape
    inputs = np.ones((count, length + 1), np.float32)
    encoding.real(device_inputs, inputs[:, :length])
    moments = (inputs.T @ inputs).astype(np.float64) / count
    error = (exact - inputs[:, :length]) @ rows.astype(np.float32).T
    cross = (error.T @ inputs).astype(np.float64) / count
    if _FEW * count < length:
        return rounding.Part(count, moments, cross, inputs, error)
    return rounding.Part(count, moments, cross)


def _part_of_each(
    rows: Floats,
    encoding: Encoding | _AsTheyAre,
    exact: npt.NDArray[np.float32],
    device_inputs: npt.NDArray[Any],
) -> rounding.Part:
    """The same of rows with inputs of their own, ``[N, K, O]``; some rows at a time, which stay in
    the cache."""
    count, length, wide = device_inputs.shape
    single = rows.astype(np.float32)
    moments = np.empty((wide, length + 1, length + 1))
    cross = np.empty((wide, length + 1))
    step = _CHANNELS
    for start in range(0, wide, step):
        own = slice(start, start + step)
        values = encoding.real(device_inputs[:, :, own])
        inputs = np.ones((values.shape[2], count, length + 1), np.float32)
        inputs[..., :length] = np.moveaxis(values, 2, 0)
        moments[own] = (inputs.transpose(0, 2, 1) @ inputs).astype(np.float64) / count
        error = np.einsum("nkc,ck->nc", exact[:, :, own] - values, single[own])
        # in the order of the dot products, as the sums over all rows at once are
        values *= error[:, None]
        cross[own, :length] = values.sum(axis=0).T.astype(np.float64) / count
        cross[own, length] = error.sum(axis=0).astype(np.float64) / count
    return rounding.Part(count, moments, cross)


def rows_of(graph: Graph, layer: Layer) -> tuple[Floats, Floats]:
    """Weights ``[O, K]`` in the order of the dot product, and biases ``[O]``, float64."""
    weights = graph.constant(layer.weights).astype(np.float64)
    if not np.isfinite(weights).all():
        raise InvalidModelError(f"the weights of {layer.short} hold NaN or infinity")
    rows = _rows(layer, weights)
    if layer.bias is None:
        return rows, np.zeros(len(rows))
    bias = graph.constant(layer.bias).astype(np.float64)
    if not np.isfinite(bias).all():
        raise InvalidModelError(f"the bias of {layer.short} holds NaN or infinity")
    if len(bias) != len(rows):
        raise InvalidModelError(
            f"{layer.short}: expected a bias for each of {len(rows)} output channels, got "
            f"{len(bias)}"
        )
    return rows, bias


def _rows(layer: Layer, weights: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Weights ``[O, K]`` in the order of the dot product."""
    if layer.kind == "depthwise":
        return weights.reshape(-1, weights.shape[3]).T
    return weights.reshape(len(weights), -1)


def for_bias(
    steps: Floats,
    scale: npt.NDArray[np.float32],
    bias: Floats,
    input_scale: np.float32,
    name: str,
) -> tuple[Floats, npt.NDArray[np.float32], bool]:
    """Raise weight scales where the bias would not fit in int32, whose step is the input's times
    the weights'.

    Args:
        steps: Whole steps ``[O, K]``.
        scale: ``[O]``.
        bias: Real ``[O]``.
        input_scale: Scale of the input.
        name: Name of the layer, for messages.

    Returns:
        Steps and scales, and whether a scale was raised.

    Raises:
        InvalidModelError: If the bias fits at no scale.
    """
    with np.errstate(divide="ignore", over="ignore"):
        over = np.abs(bias) / (input_scale * scale).astype(np.float32) > _LARGEST_BIAS
    if not over.any():
        return steps, scale, False
    # weights that are this small beside their bias do not need all of their steps
    needed = np.abs(bias) / _LARGEST_BIAS / float(input_scale) * (1 + 1e-6)
    with np.errstate(over="ignore"):
        larger = np.where(over, needed, scale).astype(np.float32)
    if not np.isfinite(larger).all():
        raise InvalidModelError(f"the bias of {name} does not fit in int32 at any weight scale")
    rounded = np.rint(steps * scale[:, None] / larger[:, None])
    return np.where(over[:, None], rounded, steps), larger, True


def _mean_output(
    layer: Layer, shape: tuple[int, ...], error: Floats, means: tuple[float, ...]
) -> Floats:
    """What weights ``[O, K]``, of ``shape`` in the graph, give for each channel's mean."""
    mean = np.asarray(means)
    if layer.kind == "depthwise":
        multiplier = len(error) // len(mean)
        return np.asarray(error.sum(axis=1) * np.repeat(mean, multiplier))
    own = len(mean) if layer.kind == "dense" else shape[-1]
    if layer.kind == "dense" and error.shape[1] % own or len(mean) % own:
        raise InvalidModelError(
            f"{layer.short}: expected means of {own} input channels, got {len(mean)}"
        )
    if layer.kind == "transposed":  # each place of the output sees a part of the taps
        error = error / (layer.strides[0] * layer.strides[1])
    groups = len(mean) // own
    taps = error.reshape(groups, len(error) // groups, -1, own).sum(axis=2)
    return np.asarray(np.einsum("goc,gc->go", taps, mean.reshape(groups, own)).reshape(-1))


def finish(
    graph: Graph,
    layer: Layer,
    steps: Floats,
    scale: Floats,
    bias: Floats,
    encodings: Mapping[str, Encoding] | None,
    *,
    bits: int = 8,
) -> Rounded:
    """Integers of a layer, and the numbers that they stand for.

    Args:
        graph: Float.
        layer: A layer of the graph.
        steps: Whole steps ``[O, K]`` in the order of the dot product.
        scale: ``[O]``.
        bias: Real ``[O]``.
        encodings: Encodings of activations; the input's gives the bias its scale. Without any the
            bias stays real.
        bits: In which a file stores a weight.

    Raises:
        InvalidModelError: If the bias fits in int32 at no weight scale.
    """
    weight_scale = scale.astype(np.float32)
    raised = False
    bias_scale: npt.NDArray[np.float32] | None = None
    stored_bias: npt.NDArray[Any] | None = None
    real_bias: npt.NDArray[np.float32] | None = None
    if layer.bias is not None and encodings is None:
        real_bias = bias.astype(np.float32)
    elif layer.bias is not None and encodings is not None:
        input_scale = np.float32(encodings[layer.input].scale[0])
        # the same for biases of 64 bits: a kernel takes a product of scales below 2^-31 for 0
        steps, weight_scale, raised = for_bias(steps, weight_scale, bias, input_scale, layer.short)
        wide = encodings[layer.input].dtype == "int16"
        bias_scale = (input_scale * weight_scale).astype(np.float32)
        stored_bias = np.rint(bias / bias_scale).astype(np.int64 if wide else np.int32)
        real_bias = (stored_bias * bias_scale.astype(np.float64)).astype(np.float32)
    shape = graph.shape(layer.weights)
    whole = steps.astype(np.int8)
    real = (whole * weight_scale[:, None]).astype(np.float32)
    if layer.kind == "depthwise":
        whole, real = whole.T, real.T
    return Rounded(
        LayerIntegers(
            np.ascontiguousarray(whole).reshape(shape), weight_scale, stored_bias, bias_scale, bits
        ),
        np.ascontiguousarray(real).reshape(shape),
        real_bias,
        raised,
    )
