"""One decision for all formats: encodings and integers of a canonical float graph.

Ways are tried in turn and held against each other on calibration images that none of them was made
from: nearest rounding of the graph as it is, of the equalized graph, corrected biases, and layers
fitted to what they see. The one whose answers are nearest the float model's is taken, and what the
others would have given is said.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from edgekit import environment
from edgekit.encodings import Encoding, Encodings, LayerIntegers, Stored
from edgekit.errors import InvalidModelError
from edgekit.formats.flatbuffer import Graph, Layer
from edgekit.quant import encode, equalize, reconstruct, saturation, walk
from edgekit.quant.profiles import DeviceProfile
from edgekit.quant.reconstruct import Layers
from edgekit.quant.table import CalibrationTable

Correction = Literal["auto", "none"]
CORRECTIONS: tuple[str, ...] = ("auto", "none")
#: Changes when the same inputs would give other integers.
VERSION = 2
#: Every fifth image judges what the others were used for.
HELD_OUT = 5
FEWEST_IMAGES = 20
#: Another way has to be better by this much, in dB, than the simpler one before it.
MARGIN = 0.25
_LARGEST_HELD_OUT = 256

NEAREST = "nearest rounding"
EQUALIZED = "equalized channels"
CORRECTED = "corrected biases"
FITTED = "fitted layers"
TRAINED = "trained with fake quantization"
#: How far a trained weight may lie from a whole step: what folding in float32 can move it.
_OFF_GRID = 0.05


@dataclass(frozen=True)
class Trial:
    """One way that was tried.

    Attributes:
        way: What was done.
        sqnr: Of the outputs, before a softmax, on held-out calibration images, in dB.
    """

    way: str
    sqnr: float


@dataclass(frozen=True)
class Quantized:
    """What both writers take.

    Attributes:
        graph: Float flatbuffer whose layers hold the real numbers that the integers stand for.
        encodings: Of all tensors.
        stored: Integers and scales.
        way: What was taken.
        trials: What was tried; empty when there were no images to judge by.
        saturating: Layers that nearest rounding would let saturate on x86 without VNNI.
        notes: What a reader should know, a sentence each.
    """

    graph: bytes
    encodings: Encodings
    stored: Stored
    way: str
    trials: tuple[Trial, ...]
    saturating: tuple[saturation.Prediction, ...]
    notes: tuple[str, ...]


def quantize(
    canonical: bytes,
    table: CalibrationTable,
    *,
    profile: DeviceProfile,
    feed: walk.Values | None,
    observe: Callable[[bytes], CalibrationTable] | None,
    correction: Correction = "auto",
    advance: Callable[[str], None] = lambda name: None,
) -> Quantized:
    """Decide every number of the int8 model.

    Args:
        canonical: Float flatbuffer.
        table: Its calibration table.
        profile: The device.
        feed: Calibration images, preprocessed, ``[N, ...]`` by input name, as many as can be walked
            at once (edgekit.quant.reconstruct.images_that_fit); None when only
            their table is at hand, then biases are corrected from its channel means, unjudged.
        observe: Makes the table of a changed graph, from the same images and by the same method.
        correction: ``auto``, or ``none`` for nearest rounding.
        advance: Called with the name of each operator that is walked.

    Raises:
        InvalidDataError: If a tensor has no usable range.
        InvalidModelError: If a weight or bias cannot be stored.
    """
    graph = Graph(canonical)
    encodings = encode.activations(graph, table.ranges, profile)
    bound = profile.pair_bound
    plain = reconstruct.nearest(graph, encodings, pair_bound=bound)
    unbound = reconstruct.nearest(graph, encodings, pair_bound=False) if bound else plain
    saturating = tuple(p for p in predictions(graph, unbound) if p.pairs)
    factors: dict[str, tuple[float, ...]] = {}
    trials: list[Trial] = []
    way, layers = NEAREST, plain
    if correction == "auto" and (feed is None or _count(feed) < FEWEST_IMAGES):
        way = f"{CORRECTED} (from channel means, without images to judge by)"
        layers = reconstruct.nearest(
            graph, encodings, pair_bound=bound, statistics=table.statistics
        )
    elif correction == "auto":
        assert feed is not None
        threads = environment.cores()
        fit, held = _split(feed)
        judge = _before_softmax(graph)
        expected = walk.outputs(Graph(judge), held, threads=threads)

        def score(tried: Graph, found: Layers, given: Mapping[str, Encoding]) -> float:
            rounded = Graph(tried.serialize())
            of_constants = encode.constants(tried, given, profile)
            reconstruct.put_constants(rounded, reconstruct.constants(tried, of_constants))
            end = Graph(_before_softmax(rounded))
            return reconstruct.score(end, found, given, held, expected, threads=threads)

        best = score(graph, plain, encodings)
        trials.append(Trial(NEAREST, best))
        if observe is not None:
            changed, changes = equalize.equalize(canonical, table.statistics)
            if changes:
                other, other_table = Graph(changed), observe(changed)
                given = encode.activations(other, other_table.ranges, profile)
                found = reconstruct.nearest(other, given, pair_bound=bound)
                trials.append(Trial(EQUALIZED, score(other, found, given)))
                if trials[-1].sqnr > best + MARGIN:
                    way, layers, best, factors = EQUALIZED, found, trials[-1].sqnr, changes
                    graph, encodings, table = other, given, other_table
        ways: list[tuple[str, Callable[[], Layers]]] = [
            (
                CORRECTED,
                lambda: reconstruct.nearest(
                    graph, encodings, pair_bound=bound, statistics=table.statistics
                ),
            ),
            (
                FITTED,
                lambda: reconstruct.fitted(
                    graph, encodings, fit, pair_bound=bound, threads=threads, advance=advance
                ),
            ),
        ]
        start = way
        for name, make in ways:
            found = make()
            full = name if start == NEAREST else f"{start}, {name}"
            trials.append(Trial(full, score(graph, found, encodings)))
            if trials[-1].sqnr > best + MARGIN:
                way, layers, best = full, found, trials[-1].sqnr
    return _result(canonical, graph, encodings, layers, factors, profile, way, trials, saturating)


def predictions(graph: Graph, layers: Layers) -> list[saturation.Prediction]:
    """What can saturate, layer by layer; depthwise kernels of onnxruntime cannot."""
    return [
        predict(layer, layers[layer.output].integers)
        for layer in graph.layers
        if saturation.pairs_products(graph, layer)
    ]


def predict(layer: Layer, integers: LayerIntegers) -> saturation.Prediction:
    """What can saturate in a layer whose products are added in pairs."""
    weights = integers.weights
    rows = weights.reshape(-1, weights.shape[3]).T if layer.kind == "depthwise" else weights
    return saturation.predict(layer.short, rows.reshape(len(rows), -1))


def trained(canonical: bytes, encodings: Encodings, *, profile: DeviceProfile) -> Quantized:
    """The int8 model whose encodings were found in training; nothing is decided anew.

    Args:
        canonical: Float flatbuffer of the trained model.
        encodings: Of its activations and weights.
        profile: The device; what it asks of the numbers must hold already.

    Raises:
        InvalidModelError: If the graph is another than the encodings', a weight is not on its
            grid, or the device asks for other numbers.
    """
    graph = Graph(canonical)
    sha256 = hashlib.sha256(canonical).hexdigest()
    if sha256 != encodings.graph_sha256:
        raise InvalidModelError(
            f"the converted graph (sha256 {sha256[:12]}…) is not the one that was trained "
            f"({encodings.graph_sha256[:12]}…); export with the package versions that the "
            f"manifest names, or train again"
        )
    computed = {name: e for name, e in encodings.tensors.items() if e.axis is None}
    if profile.symmetric and any(e.zero_point for e in computed.values()):
        raise InvalidModelError(
            f"device {profile.name} takes zero_point 0 only, the model was trained for "
            f"{encodings.device}; train it with --device {profile.name}"
        )
    layers: Layers = {}
    for layer in graph.layers:
        rows, bias = reconstruct.rows_of(graph, layer)
        scale = np.asarray(encodings.tensors[layer.weights].scale, np.float64)
        real = rows / scale[:, None]
        steps = np.rint(real)
        off = float(np.abs(real - steps).max(initial=0))
        if off > _OFF_GRID or np.abs(steps).max(initial=0) > 127:
            raise InvalidModelError(
                f"the weights of {layer.short} are not on their int8 grid (off by {off:.2g} of a "
                f"step); they were changed after training"
            )
        layers[layer.output] = reconstruct.finish(graph, layer, steps, scale, bias, computed)
    saturating = tuple(p for p in predictions(graph, layers) if p.pairs)
    if profile.pair_bound and saturating:
        raise InvalidModelError(
            f"{len(saturating)} layers would saturate on {profile.name}, the model was trained for "
            f"{encodings.device}; train it with --device {profile.name}"
        )
    return _result(canonical, graph, computed, layers, {}, profile, TRAINED, [], ())


def _result(
    canonical: bytes,
    graph: Graph,
    encodings: Mapping[str, Encoding],
    layers: Layers,
    factors: dict[str, tuple[float, ...]],
    profile: DeviceProfile,
    way: str,
    trials: list[Trial],
    saturating: tuple[saturation.Prediction, ...],
) -> Quantized:
    tensors = dict(encodings)
    changed = Graph(graph.serialize())
    notes = []
    for layer in graph.layers:
        rounded = layers[layer.output]
        reconstruct.put(changed, layer, rounded)
        found = rounded.integers
        tensors[layer.weights] = Encoding("int8", _short(found.weight_scale), 0, layer.axis)
        if layer.bias is not None and found.bias_scale is not None:
            tensors[layer.bias] = Encoding("int32", _short(found.bias_scale), 0, 0)
        if rounded.raised:
            notes.append(f"{layer.short}: weight scales were raised so that the bias fits in int32")
    of_constants = encode.constants(graph, encodings, profile)
    constants = reconstruct.constants(graph, of_constants)
    reconstruct.put_constants(changed, constants)
    stored = reconstruct.stored(encodings, layers, constants)
    sha256 = hashlib.sha256(canonical).hexdigest()
    made = Encodings(sha256, profile.name, tensors, factors, of_constants)
    return Quantized(
        changed.serialize(), made, stored, way, tuple(trials), saturating, tuple(notes)
    )


def _short(scales: np.ndarray) -> tuple[float, ...]:
    return tuple(encode.stored(scale) for scale in scales)


def _count(feed: walk.Values) -> int:
    return len(next(iter(feed.values())))


def _split(feed: walk.Values) -> tuple[walk.Values, walk.Values]:
    """(images to fit to, images to judge by), spread evenly over the set."""
    places = np.arange(_count(feed))
    judging = places[HELD_OUT - 1 :: HELD_OUT][:_LARGEST_HELD_OUT]
    fitting = np.setdiff1d(places, judging)
    return (
        {name: values[fitting] for name, values in feed.items()},
        {name: values[judging] for name, values in feed.items()},
    )


def _before_softmax(graph: Graph) -> bytes:
    """The graph, with what goes into a last softmax as its output in the softmax's place."""
    ends = {
        operator.outputs[0]: operator.inputs[0]
        for operator in graph.operators
        if operator.kind in ("SOFTMAX", "LOG_SOFTMAX") and operator.outputs[0] in graph.outputs
    }
    return graph.with_outputs([ends.get(name, name) for name in graph.outputs])
