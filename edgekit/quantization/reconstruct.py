"""Integers of every layer: nearest, with corrected biases, or fitted to the inputs of the layer.

``fitted`` runs the float model and the model as the device will compute it side by side. Each layer
is fitted so that it gives the float output for inputs that have all errors made so far. Then it is
rounded so that its output changes least, and not its weights (edgekit.quantization.rounding).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from edgekit.base.errors import InvalidModelError
from edgekit.graph import walk
from edgekit.graph.flatbuffer import Graph, Layer
from edgekit.quantization import rounding, saturation
from edgekit.quantization.rounding import Floats
from edgekit.quantization.table import TensorStatistics
from edgekit.records.encodings import ConstantIntegers, Encoding, LayerIntegers, Stored

#: A bias keeps this far from the ends of int32, so that the products fit beside it.
_LARGEST_BIAS = float(1 << 30)
_ROWS = 4096
_MOST_ROWS = 16384
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


def nearest(
    graph: Graph,
    encodings: Mapping[str, Encoding],
    *,
    pair_bound: bool,
    statistics: Mapping[str, TensorStatistics] | None = None,
    bits: int = 8,
    only: Collection[str] | None = None,
) -> Layers:
    """Every weight to its nearest step.

    Args:
        graph: Float.
        encodings: Encodings of activations; a layer that has none of its input or output stays
            float.
        pair_bound: Keep pairs of products within int16 (edgekit.quantization.saturation).
        statistics: If given, biases are corrected by the mean error that the rounding causes,
            from each channel's mean (Nagel et al. 2019, section 4.2). Borders padded with zeros
            are taken as if they were not there.
        bits: Number of bits of the weights, 2 to 8; they are stored in 8.
        only: Layers to do, by output; default all.
    """
    found = {}
    for layer in integer_layers(graph, encodings):
        if only is not None and layer.output not in only:
            continue
        rows, bias = rows_of(graph, layer)
        scale = rounding.scales(rows, bits=bits)
        bound = pair_bound and saturation.pairs_products(graph, layer)
        if bound:
            scale = rounding.pair_scales(rows, scale)
        steps = rounding.nearest(rows, scale, pair_bound=bound)
        if statistics is not None:
            error = rows - steps * scale[:, None]
            bias = bias + _mean_output(
                layer, graph.shape(layer.weights), error, statistics[layer.input].channel_mean
            )
        found[layer.output] = finish(graph, layer, steps, scale, bias, encodings)
    return found


def integer_layers(graph: Graph, encodings: Mapping[str, Encoding]) -> tuple[Layer, ...]:
    """Layers whose input and output are integers; the others stay float."""
    return tuple(
        layer for layer in graph.layers if layer.input in encodings and layer.output in encodings
    )


def fitted(
    graph: Graph,
    encodings: Mapping[str, Encoding],
    feed: walk.Values,
    *,
    pair_bound: bool,
    threads: int,
    advance: Callable[[str], None] = lambda name: None,
    seed: int = 0,
) -> Layers:
    """Fit and round every layer to what it sees of the given images.

    Args:
        graph: Float.
        encodings: Encodings of activations; a layer that has none of its input or output stays
            float.
        feed: Preprocessed images ``[N, ...]`` by input name.
        pair_bound: Keep pairs of products within int16 (edgekit.quantization.saturation).
        threads: Number of threads of the float operators, and of the fit.
        advance: Called with each operator's output.
        seed: Seed of the sample of positions.

    Raises:
        NotFiniteError: If a tensor becomes NaN or infinite on the device.
    """
    rng = np.random.default_rng(seed)
    layers = {layer.output: layer for layer in integer_layers(graph, encodings)}
    shared = shared_weights(graph)
    plain = dict(feed)
    device = {name: _stored(name, values, encodings) for name, values in feed.items()}
    changed = Graph(graph.serialize())
    found: Layers = {}
    ends = walk.last_readers(graph)
    with ThreadPoolExecutor(threads) as pool:
        for position, operator in enumerate(graph.operators):
            step = walk.Step(graph, position, threads=threads)
            exact_outputs = step.run(plain)
            layer = layers.get(operator.outputs[0])
            if layer is not None:
                rounded = _fit(
                    graph,
                    layer,
                    plain[layer.input],
                    device[layer.input],
                    encodings,
                    pair_bound=pair_bound and saturation.pairs_products(graph, layer),
                    shared=layer.output in shared,
                    rng=rng,
                    each=pool.map,
                )
                found[layer.output] = rounded
                put(changed, layer, rounded)
                step = walk.Step(changed, position, threads=threads)
            seen = step.run(device)
            for name, exact, noisy in zip(operator.outputs, exact_outputs, seen, strict=True):
                plain[name] = exact
                device[name] = _stored(name, noisy, encodings, inplace=True)
                if noisy.dtype == np.float32 and not _finite(device[name]):
                    raise NotFiniteError(name)
            for name in [name for name in plain if ends.get(name, position + 1) <= position]:
                del plain[name], device[name]
            advance(operator.outputs[0])
    return found


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
    found = {}
    for name, encoding in encodings.items():
        steps = np.rint(graph.constant(name) / np.float32(encoding.scale[0])) + encoding.zero_point
        values = np.clip(steps, -128, 127).astype(np.int8)
        found[name] = ConstantIntegers(values, encoding.scale[0], encoding.zero_point)
    return found


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
        {name: (found.scale[0], found.zero_point) for name, found in encodings.items()},
        {name: rounded.integers for name, rounded in layers.items()},
        constants or {},
    )


def images_that_fit(graph: Graph, count: int) -> int:
    """How many images can be walked at once in 1.5 GiB, at least 32."""
    largest = 1
    for operator in graph.operators:
        names = (*walk.fed(graph, operator), *operator.outputs)
        largest = max(largest, sum(int(np.prod(graph.shape(name))) for name in names))
    return min(count, max(32, _WALK_BYTES // (8 * largest)))


def _stored(
    name: str,
    values: npt.NDArray[np.float32],
    encodings: Mapping[str, Encoding],
    *,
    inplace: bool = False,
) -> npt.NDArray[np.float32]:
    encoding = encodings.get(name)
    return values if encoding is None else encoding.fake_quantize(values, inplace=inplace)


def _finite(values: npt.NDArray[np.float32]) -> bool:
    return bool(np.isfinite(values.min(initial=0)) and np.isfinite(values.max(initial=0)))


def _fit(
    graph: Graph,
    layer: Layer,
    plain: npt.NDArray[np.float32],
    device: npt.NDArray[np.float32],
    encodings: Mapping[str, Encoding],
    *,
    pair_bound: bool,
    shared: bool,
    rng: np.random.Generator,
    each: rounding.Each,
) -> Rounded:
    rows, bias = rows_of(graph, layer)
    exact, seen = _sample(graph, layer, plain, device, rows.shape[1], rng)
    if shared:  # one kernel for all layers that have it, a bias for each
        scale = rounding.scales(rows)
        if pair_bound:
            scale = rounding.pair_scales(rows, scale)
        steps = rounding.nearest(rows, scale, pair_bound=pair_bound)
        if exact.ndim == 2 and exact.shape[1] == rows.shape[1]:
            error = exact.mean(axis=0) @ rows.T - seen.mean(axis=0) @ (steps * scale[:, None]).T
            bias = bias + error
        return finish(graph, layer, steps, scale, bias, encodings)
    channels = seen.shape[-1]
    if layer.kind == "depthwise":
        wide = len(rows) // channels  # the depth multiplier
        if wide > 1:
            exact, seen = np.repeat(exact, wide, axis=2), np.repeat(seen, wide, axis=2)
    if layer.kind != "conv" or channels == rows.shape[1]:
        steps, scale, bias = _solve(rows, bias, exact, seen, pair_bound=pair_bound, each=each)
        return finish(graph, layer, steps, scale, bias, encodings)
    # a grouped convolution: each group has rows and channels of its own
    taps = int(np.prod(graph.shape(layer.weights)[1:3]))
    own = rows.shape[1] // taps
    groups = channels // (taps * own)
    parts = []
    for number, chosen in enumerate(np.split(np.arange(len(rows)), groups)):
        taken = slice(number * own, (number + 1) * own)
        exact_part, seen_part = (
            values.reshape(len(values), taps, -1)[..., taken].reshape(len(values), -1)
            for values in (exact, seen)
        )
        parts.append(
            _solve(
                rows[chosen], bias[chosen], exact_part, seen_part, pair_bound=pair_bound, each=each
            )
        )
    steps, scale, bias = (np.concatenate(found) for found in zip(*parts, strict=True))
    return finish(graph, layer, steps, scale, bias, encodings)


def _solve(
    rows: Floats,
    bias: Floats,
    exact: npt.NDArray[np.float32],
    seen: npt.NDArray[np.float32],
    *,
    pair_bound: bool,
    each: rounding.Each,
) -> tuple[Floats, Floats, Floats]:
    """(steps ``[O, K]``, scale ``[O]``, bias ``[O]``) from what the dot products read.

    ``exact`` and ``seen`` are ``[N, K]``, or ``[N, K, O]`` where every row has inputs of its own.
    """
    # rows are in the order of the samples: two halves share none but one
    count = min(2, len(seen))
    halves = np.array_split(exact, count), np.array_split(seen, count)
    parts = list(each(partial(_part, rows), *halves))
    moments = rounding.joined(parts).moments
    wanted, wanted_bias = rounding.fit(rows, bias, parts, each=each)
    scale = rounding.scales(wanted)
    if pair_bound:
        importance = np.diagonal(moments, axis1=-2, axis2=-1)[..., :-1]
        scale = rounding.pair_scales(wanted, scale, importance)
    steps, bias = rounding.round_rows(wanted, wanted_bias, moments, scale, pair_bound=pair_bound)
    return steps, scale, bias


def _part(
    rows: Floats, exact: npt.NDArray[np.float32], seen: npt.NDArray[np.float32]
) -> rounding.Part:
    """What some of the dot products say, as :func:`_solve` takes them."""
    count, length = seen.shape[:2]
    single = rows.astype(np.float32)
    inputs = np.ones((*seen.shape[2:], count, length + 1), np.float32)
    inputs[..., :length] = np.moveaxis(seen, 2, 0) if seen.ndim == 3 else seen
    if seen.ndim == 3:
        moments = (inputs.transpose(0, 2, 1) @ inputs).astype(np.float64) / count
        error = np.einsum("nkc,ck->cn", exact - seen, single)
        cross = np.einsum("cn,cnk->ck", error, inputs).astype(np.float64) / count
    else:
        moments = (inputs.T @ inputs).astype(np.float64) / count
        error = (exact - seen) @ single.T
        cross = (error.T @ inputs).astype(np.float64) / count
    return rounding.Part(count, moments, cross)


def _sample(
    graph: Graph,
    layer: Layer,
    plain: npt.NDArray[np.float32],
    device: npt.NDArray[np.float32],
    length: int,
    rng: np.random.Generator,
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """What a layer's dot products read at a sample of places, float and on the device.

    Returns:
        Two arrays ``[N, K]``, or ``[N, K, C]`` of a depthwise layer.
    """
    if layer.kind == "dense":
        return plain.reshape(-1, length), device.reshape(-1, length)
    height, width = graph.shape(layer.weights)[1:3]
    wanted = _ROWS if layer.kind == "depthwise" else min(_MOST_ROWS, max(_ROWS, 8 * length))
    images, rows, columns, channels = plain.shape
    transposed = layer.kind == "transposed"
    # of a transposed convolution, the convolution that it is the gradient of reads its output
    sizes = graph.shape(layer.output)[1:3] if transposed else (rows, columns)
    (high, top), (wide, left) = (
        _grid(size, kernel, stride, dilation, same=layer.same)
        for size, kernel, stride, dilation in zip(
            sizes, (height, width), layer.strides, layer.dilation, strict=True
        )
    )
    if transposed:
        high, wide = sizes
    total = images * high * wide
    picked = np.arange(total) if total <= wanted else np.sort(rng.choice(total, wanted, False))
    image, place = np.divmod(picked, high * wide)
    y, x = np.divmod(place, wide)
    if transposed:
        y, x = y + top, x + left
    else:
        y, x = y * layer.strides[0] - top, x * layer.strides[1] - left
    found = []
    for values in (plain, device):
        taken = np.zeros((len(picked), height * width, channels), np.float32)
        for i in range(height):
            for j in range(width):
                if transposed:
                    (down, off), (across, beside) = (
                        np.divmod(place - tap, stride)
                        for place, tap, stride in zip((y, x), (i, j), layer.strides, strict=True)
                    )
                    inside = (off == 0) & (beside == 0)
                else:
                    down, across = y + i * layer.dilation[0], x + j * layer.dilation[1]
                    inside = np.ones(len(y), bool)
                inside &= (down >= 0) & (down < rows) & (across >= 0) & (across < columns)
                read = slice(None) if inside.all() else inside
                taken[read, i * width + j] = values[image[read], down[read], across[read]]
        found.append(taken if layer.kind == "depthwise" else taken.reshape(len(picked), -1))
    return found[0], found[1]


def _grid(size: int, kernel: int, stride: int, dilation: int, *, same: bool) -> tuple[int, int]:
    """(number of places, zeros in front) along one axis, as TensorFlow pads."""
    reach = (kernel - 1) * dilation + 1
    if not same:
        return (size - reach) // stride + 1, 0
    places = -(-size // stride)
    return places, max(0, (places - 1) * stride + reach - size) // 2


def rows_of(graph: Graph, layer: Layer) -> tuple[Floats, Floats]:
    """Weights ``[O, K]`` in the order of the dot product, and biases ``[O]``, float64."""
    weights = graph.constant(layer.weights).astype(np.float64)
    if not np.isfinite(weights).all():
        raise InvalidModelError(f"the weights of {layer.short} hold NaN or infinity")
    if layer.kind == "depthwise":
        rows = weights.reshape(-1, weights.shape[3]).T
    else:
        rows = weights.reshape(len(weights), -1)
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


def for_bias(
    steps: Floats,
    scale: npt.NDArray[np.float32],
    bias: Floats,
    entry: np.float32,
    name: str,
) -> tuple[Floats, npt.NDArray[np.float32], bool]:
    """Raise weight scales where the bias would not fit in int32, whose step is the input's times
    the weights'.

    Args:
        steps: Whole steps ``[O, K]``.
        scale: ``[O]``.
        bias: Real ``[O]``.
        entry: Scale of the input.
        name: Name of the layer, for messages.

    Returns:
        Steps and scales, and whether a scale was raised.

    Raises:
        InvalidModelError: If the bias fits at no scale.
    """
    with np.errstate(divide="ignore", over="ignore"):
        over = np.abs(bias) / (entry * scale).astype(np.float32) > _LARGEST_BIAS
    if not over.any():
        return steps, scale, False
    # weights that are this small beside their bias do not need all of their steps
    wanted = np.abs(bias) / _LARGEST_BIAS / float(entry) * (1 + 1e-6)
    with np.errstate(over="ignore"):
        larger = np.where(over, wanted, scale).astype(np.float32)
    if not np.isfinite(larger).all():
        raise InvalidModelError(f"the bias of {name} does not fit in int32 at any weight scale")
    kept = np.rint(steps * scale[:, None] / larger[:, None])
    return np.where(over[:, None], kept, steps), larger, True


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
    encodings: Mapping[str, Encoding],
) -> Rounded:
    """Integers of a layer, and the numbers that they stand for.

    Args:
        graph: Float.
        layer: A layer of the graph.
        steps: Whole steps ``[O, K]`` in the order of the dot product.
        scale: ``[O]``.
        bias: Real ``[O]``.
        encodings: Encodings of activations; the input's gives the bias its scale.

    Raises:
        InvalidModelError: If the bias fits in int32 at no weight scale.
    """
    entry = np.float32(encodings[layer.input].scale[0])
    weight_scale = scale.astype(np.float32)
    raised = False
    bias_scale: npt.NDArray[np.float32] | None = None
    stored_bias: npt.NDArray[np.int32] | None = None
    real_bias: npt.NDArray[np.float32] | None = None
    if layer.bias is not None:
        steps, weight_scale, raised = for_bias(steps, weight_scale, bias, entry, layer.short)
        bias_scale = (entry * weight_scale).astype(np.float32)
        stored_bias = np.rint(bias / bias_scale).astype(np.int32)
        real_bias = (stored_bias * bias_scale.astype(np.float64)).astype(np.float32)
    shape = graph.shape(layer.weights)
    whole = steps.astype(np.int8)
    real = (whole * weight_scale[:, None]).astype(np.float32)
    if layer.kind == "depthwise":
        whole, real = whole.T, real.T
    return Rounded(
        LayerIntegers(
            np.ascontiguousarray(whole).reshape(shape), weight_scale, stored_bias, bias_scale
        ),
        np.ascontiguousarray(real).reshape(shape),
        real_bias,
        raised,
    )
