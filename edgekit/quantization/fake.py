"""FakeQuantized: a Keras model that computes, in float and with gradients, what the device will.

Where numbers are rounded is read from the canonical graph, not from the Keras layers: a tensor that
the deployed file stores is found among the Keras tensors by its values, and only there stands a
fake quantizer (Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference", section 3). Kernels are rounded per output channel before batch
normalisation, which folding multiplies into the channel's scale: the integers are the same.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.base import words
from edgekit.base.errors import InvalidModelError, InvalidOptionError, MissingDependencyError
from edgekit.base.quiet import quiet
from edgekit.graph import walk
from edgekit.graph.flatbuffer import Graph, short_name
from edgekit.quantization import encode, reconstruct
from edgekit.quantization.profiles import DeviceProfile
from edgekit.quantization.ranges import RangeMode
from edgekit.quantization.rounding import Floats
from edgekit.quantization.saturation import LIMIT, pairs_in_groups
from edgekit.quantization.table import Range
from edgekit.records.encodings import (
    FAKE_QUANT_FILE,
    Encoding,
    Encodings,
    FakeQuantRecipe,
    Stored,
)
from edgekit.sources.keras import by_values, tensorflow, tf_keras
from edgekit.sources.keras import load as load_keras

tf = tensorflow()
keras = tf_keras()
try:
    with quiet():
        from tensorflow_model_optimization.quantization import keras as tfmot
except ImportError:
    raise MissingDependencyError("tensorflow-model-optimization", "train") from None

#: The attribute that holds the kernel, by layer class.
_WEIGHTED = {"Conv2D": "kernel", "DepthwiseConv2D": "depthwise_kernel", "Dense": "kernel"}
_PLAIN = frozenset(
    "InputLayer Add Concatenate MaxPooling2D AveragePooling2D GlobalAveragePooling2D "
    "GlobalMaxPooling2D Flatten Reshape ZeroPadding2D Dropout SpatialDropout2D Softmax".split()
)
_DROPPING = frozenset(("Dropout", "SpatialDropout2D"))
_ACTIVATIONS = frozenset(("linear", "relu", "relu6", "softmax"))
_TINY = 1e-12
#: Images by whose values tensors are found.
IMAGES = 8


@dataclass(frozen=True, eq=False)
class _Stage:
    """One tensor of the rebuilt model.

    Attributes:
        key: The layer's name, with ``/activation`` where an activation was split off, and ``:N``
            for later calls of a shared layer.
        tensor: Keras tensor, before a fake quantizer.
        rounded: The same behind its fake quantizer, if it has one: what later layers read.
        layer: Name of the layer.
        weighted: Name of the layer with weights that this tensor is the output of: what lies
            between is batch normalisation and activation.
        softmax_of: Keras tensor that a softmax was taken of, or None.
        activation: Name of the activation, if the layer's own was split off here.
    """

    key: str
    tensor: Any
    rounded: Any
    layer: str
    weighted: str | None = None
    softmax_of: Any = None
    activation: str = ""


@dataclass
class _Built:
    """A rebuilt model: its input, its output, all tensors, copied layers and their kernels."""

    inputs: Any
    outputs: Any
    stages: list[_Stage]
    layers: dict[str, Any] = field(default_factory=dict)
    weights: dict[str, list[Any]] = field(default_factory=dict)
    trainable: list[Any] = field(default_factory=list)
    kernels: dict[str, Any] = field(default_factory=dict)
    normalized: dict[str, str] = field(default_factory=dict)


def check(model: Any, leave_float: Collection[str] = ()) -> None:
    """Refuse, before any training, a model that cannot be fake-quantized.

    Args:
        model: tf_keras model.
        leave_float: Names of layers to leave in float.

    Raises:
        InvalidModelError: If the model is not one flat functional graph, or a layer is of a kind
            that is not known to compute in int8 as it trains.
        InvalidOptionError: If ``leave_float`` names no layer.
    """
    if not getattr(model, "_is_graph_network", False):
        raise InvalidModelError(
            f"{model.name} is no functional model; build it with tf_keras.Model(inputs, outputs)"
        )
    inner = [layer.name for layer in model.layers if isinstance(layer, keras.Model)]
    if inner:
        raise InvalidModelError(
            f"{', '.join(inner)} is a model inside the model; training needs one flat graph: call "
            f"the inner model's layers on your own tensors instead of the model, e.g. build it "
            f"with input_tensor=x where its constructor takes that, then load the weights"
        )
    if len(model.inputs) != 1 or len(model.outputs) != 1:
        raise InvalidModelError(
            f"expected one input and one output to train, got {len(model.inputs)} and "
            f"{len(model.outputs)}"
        )
    names = {layer.name for layer in model.layers}
    unknown = sorted(set(leave_float) - names)
    if unknown:
        raise InvalidOptionError(
            f"--leave-float names no layer of {model.name}: {', '.join(unknown)}"
            f"{words.near(unknown[0], names)}"
        )
    bad = [
        f"{layer.name} ({why})"
        for layer in model.layers
        if layer.name not in leave_float and (why := _unsupported(layer))
    ]
    if bad:
        choice = " ".join(f"--leave-float {description.split(' ')[0]}" for description in bad)
        raise InvalidModelError(
            f"{len(bad)} layers cannot be fake-quantized: {', '.join(bad)}; replace them, or train "
            f"them in float, to be quantized only in the deployed file: {choice}"
        )


def _unsupported(layer: Any) -> str:
    """Why a layer cannot be fake-quantized; empty if it can."""
    kind = type(layer).__name__
    if kind in _PLAIN:
        return ""
    if kind in _WEIGHTED or kind == "Activation":
        name = _activation(layer)
        return "" if name in _ACTIVATIONS else f"{kind} with activation {name}"
    if kind == "ReLU":
        plain = layer.max_value in (None, 6.0) and not layer.negative_slope and not layer.threshold
        return "" if plain else "ReLU that is neither ReLU nor ReLU6"
    if kind == "BatchNormalization":
        before = layer.inbound_nodes[0].inbound_layers
        alone = not isinstance(before, list) and len(before.outbound_nodes) == 1
        folds = (
            alone
            and len(layer.inbound_nodes) == 1
            and type(before).__name__ in _WEIGHTED
            and _activation(before) == "linear"
        )
        return "" if folds else "BatchNormalization that is not right behind a layer with weights"
    return kind


def _activation(layer: Any) -> str:
    return str(getattr(layer.activation, "__name__", layer.activation))


class FakeQuantized:
    """A model beside its canonical graph, trained with both in step.

    Args:
        model: Float tf_keras model; stays as it is.
        canonical: Its canonical float flatbuffer.
        ranges: By canonical tensor name, to start from (a calibration table's).
        images: Preprocessed float32 ``[N, ...]``, by which tensors are found.
        profile: The device.
        leave_float: Names of layers to leave in float.
        mode: ``moving-average`` or ``learned`` ranges.
        bits: Number of bits of the weights, 2 to 8.
        decay: Decay of the moving average per step.
        prior: How many steps' worth of images the starting ranges were taken from; they lose their
            say as the average's bias correction (Kingma and Ba 2015, section 3) has it. Infinite:
            no bias correction.

    Attributes:
        model: Fake-quantized tf_keras model with the same input and output.
        logits: The same up to what its last softmax is taken of.
        untrained: Canonical tensors that training does not see; they keep their given range.

    Raises:
        InvalidModelError: See :func:`check`; or if a layer is not found in the canonical graph.
    """

    def __init__(
        self,
        model: Any,
        canonical: bytes,
        ranges: Mapping[str, Range],
        images: npt.NDArray[np.float32],
        profile: DeviceProfile,
        *,
        leave_float: Collection[str] = (),
        mode: RangeMode = "moving-average",
        bits: int = 8,
        decay: float = 0.99,
        prior: float = 10.0,
    ) -> None:
        check(model, leave_float)
        self.canonical = canonical
        self.profile = profile
        self.bits = bits
        self.left_float = tuple(leave_float)
        self._source = model
        self._ranges = dict(ranges)
        graph = Graph(canonical)
        plain = _build(model)
        self._key_of = _match(plain, graph, images[:IMAGES])
        self._layer_of = _weighted(plain, graph, self._key_of, leave_float)
        self._roots = encode.sharing(graph).roots
        self._inputs_of: dict[str, set[str]] = {}
        for layer in graph.layers:
            if (weighted := self._layer_of[layer.output]) is not None:
                self._inputs_of.setdefault(weighted, set()).add(layer.input)
        skipped = {stage.key for stage in plain.stages if stage.layer in leave_float}
        keys = {name: key for name, key in self._key_of.items() if key not in skipped}
        self._groups = _groups(graph, keys, ranges, profile, mode=mode, decay=decay, prior=prior)
        self.untrained = tuple(n for n, root in self._roots.items() if root not in self._groups)
        places: dict[str, _Group] = {}
        for name, key in keys.items():
            places.setdefault(key, self._groups[self._roots[name]])
        self._built = _build(
            model,
            kernel=_KernelQuantizer(bits, pair_bound=profile.pair_bound),
            places=places,
            leave_float=leave_float,
            shift=self._bias_shift,
        )
        last = self._built.stages[-1]
        self.ends_in_softmax = last.softmax_of is not None
        self.model = keras.Model(self._built.inputs, self._built.outputs, name=model.name)
        self.logits = (
            keras.Model(self._built.inputs, last.softmax_of, name=model.name)
            if self.ends_in_softmax
            else self.model
        )

    @property
    def variables(self) -> list[Any]:
        """All variables, in a fixed order: weights, statistics, ranges."""
        weights_of_layers = [v for weights in self._built.weights.values() for v in weights]
        return weights_of_layers + [v for group in self._groups.values() for v in group.variables]

    @property
    def trainable(self) -> list[Any]:
        """Variables that have a gradient."""
        return self._built.trainable + [
            v for group in self._groups.values() for v in group.trainable
        ]

    @property
    def decayed(self) -> list[Any]:
        """Kernels that weight decay is for: not depthwise."""
        kinds = {layer.name: type(layer).__name__ for layer in self._source.layers}
        return [v for name, v in self._built.kernels.items() if kinds[name] != "DepthwiseConv2D"]

    def settle(self) -> None:
        """Bring learned ranges back to where they mean something; after each step."""
        for group in self._groups.values():
            group.settle()

    def ranges(self) -> dict[str, Range]:
        """The present range of every canonical tensor."""
        ranges = dict(self._ranges)
        for name, root in self._roots.items():
            if root in self._groups:
                low, high = (float(end) for end in self._groups[root].plain_limits())
                ranges[name] = Range(low, high)
        return ranges

    def activations(self) -> dict[str, tuple[float, int]]:
        """(scale, zero_point) of every fake-quantized Keras tensor, by its key."""
        encodings = encode.activations(Graph(self.canonical), self.ranges(), self.profile)
        numbers: dict[str, tuple[float, int]] = {}
        for name, encoding in encodings.items():
            key = self._key_of.get(name)
            if self._roots[name] in self._groups and key is not None:
                numbers.setdefault(key, (encoding.scale[0], encoding.zero_point))
        return numbers

    def deployed(self) -> tuple[bytes, Stored, dict[str, Encoding]]:
        """The int8 model as it now is, without asking a converter.

        Returns:
            Float flatbuffer with the numbers that the integers stand for, what both writers take,
            and the encodings of all tensors.
        """
        graph = Graph(self.canonical)
        encodings = encode.activations(graph, self.ranges(), self.profile)
        layers = self._layers(graph, encodings)
        constants = reconstruct.constants(graph, encode.constants(graph, encodings, self.profile))
        for layer in graph.layers:
            reconstruct.put(graph, layer, layers[layer.output])
        reconstruct.put_constants(graph, constants)
        tensors = dict(encodings)
        for layer in graph.layers:
            integers = layers[layer.output].integers
            tensors[layer.weights] = Encoding(
                "int8", encode.scales(integers.weight_scale), 0, layer.axis
            )
        stored = reconstruct.stored(encodings, layers, constants)
        return graph.serialize(), stored, tensors

    def names_in(self, final: bytes) -> dict[str, str]:
        """Name in the trained model's own graph, by canonical name, of activations and weights.

        Args:
            final: Canonical flatbuffer of a model that :meth:`put_into` was given. The converter
                may call its tensors by other names, never in another order.

        Raises:
            WriterError: If the converter made other operators of it.
        """
        before, after = Graph(self.canonical), Graph(final)
        kinds = [[operator.kind for operator in graph.operators] for graph in (before, after)]
        if kinds[0] != kinds[1]:
            place = next(
                (
                    i
                    for i, (kind, new_kind) in enumerate(zip(*kinds, strict=False))
                    if kind != new_kind
                ),
                min(map(len, kinds)),
            )
            longer = max(before.operators, after.operators, key=len)
            there = longer[place].outputs[0]
            raise InvalidModelError(
                f"expected the trained model to have the float one's {len(kinds[0])} operators, "
                f"got {len(kinds[1])}, the first different one at {short_name(there)}; leave its "
                f"layer in float with --leave-float"
            )
        names = dict(zip(before.inputs, after.inputs, strict=True))
        for old, new in zip(before.operators, after.operators, strict=True):
            names.update(zip(old.outputs, new.outputs, strict=True))
        for layer, other in zip(before.layers, after.layers, strict=True):
            names[layer.weights] = other.weights
        return names

    def encodings(self, final: bytes) -> Encodings:
        """Of all activations and weights, in the names of the trained model's own graph.

        Raises:
            WriterError: See :meth:`names_in`.
        """
        names = self.names_in(final)
        return Encodings(
            hashlib.sha256(final).hexdigest(),
            self.profile.name,
            {names[name]: encoding for name, encoding in self.deployed()[2].items()},
        )

    def grid(self, final: bytes) -> Stored:
        """What training rounded to, in the names of the trained model's graph; without biases.

        Raises:
            WriterError: See :meth:`names_in`.
        """
        names, stored = self.names_in(final), self.deployed()[1].without_biases()
        return Stored(
            {names[name]: number for name, number in stored.activations.items()},
            {names[name]: integers for name, integers in stored.layers.items()},
        )

    def put_into(self, model: Any) -> None:
        """Give the trained numbers to a model of the same architecture.

        Kernels are put on their grid, and what is added behind them (a bias, or batch
        normalisation's beta or mean) where the deployed int32 bias lies.
        """
        graph = Graph(self.canonical)
        encodings = encode.activations(graph, self.ranges(), self.profile)
        layers = self._layers(graph, encodings)
        for layer in model.layers:
            layer.set_weights([v.numpy() for v in self._built.weights.get(layer.name, [])])
        for layer in graph.layers:
            name = self._layer_of[layer.output]
            if name is None:
                continue
            factor, bias = self._fold(name)
            integers = layers[layer.output].integers
            if integers.bias is not None and integers.bias_scale is not None:
                real = integers.bias.astype(np.float64) * integers.bias_scale
                self._move_bias(model, name, real - bias, factor)
            shape = integers.weights.shape
            whole = integers.weights.astype(np.float64)
            rows = whole.reshape(-1, shape[3]).T if layer.kind == "depthwise" else whole
            rows = rows.reshape(len(factor), -1) * integers.weight_scale[:, None]
            safe = np.where(np.abs(factor) > _TINY, factor, 1.0)
            kernel = getattr(model.get_layer(name), _WEIGHTED[_kind(self._source, name)])
            kernel.assign((rows / safe[:, None]).T.reshape(kernel.shape))

    def _move_bias(self, model: Any, name: str, move: Floats, factor: Floats) -> None:
        """Add to a layer's output by a number that the layer, or the one behind it, has."""
        layer = model.get_layer(name)
        normal = self._built.normalized.get(name)
        if normal is None:
            if layer.use_bias:
                layer.bias.assign_add(move.astype(np.float32))
            return
        normalization = model.get_layer(normal)
        if normalization.center:
            normalization.beta.assign_add(move.astype(np.float32))
        else:
            safe = np.where(np.abs(factor) > _TINY, factor, 1.0)
            normalization.moving_mean.assign_sub((move / safe).astype(np.float32))

    def _bias_shift(self, built: _Built, name: str) -> Any:
        """What rounding the folded bias to its int32 step adds to each channel, float32 ``[O]``.

        Without a gradient. 0 for a layer that reads tensors of several scales.
        """
        read = {self._roots[tensor] for tensor in self._inputs_of.get(name, ())}
        group = self._groups.get(next(iter(read))) if len(read) == 1 else None
        if group is None:
            return 0.0
        low, high = group.limits()
        kind = _kind(self._source, name)
        quantizer = _KernelQuantizer(self.bits, pair_bound=self.profile.pair_bound)
        _, scale = quantizer.grid(built.kernels[name], kind)
        layer = built.layers[name]
        bias = layer.bias if layer.use_bias else tf.zeros_like(scale)
        normal = built.normalized.get(name)
        if normal is not None:
            normalization = built.layers[normal]
            factor = tf.math.rsqrt(normalization.moving_variance + normalization.epsilon)
            factor = factor * normalization.gamma if normalization.scale else factor
            bias = (bias - normalization.moving_mean) * factor
            bias = bias + normalization.beta if normalization.center else bias
            scale = scale * tf.abs(factor)
        step = scale * (high - low) / 255
        safe = tf.maximum(step, _TINY)
        rounded = tf.round(bias / safe) * safe
        return tf.stop_gradient(tf.where(step > _TINY, rounded - bias, 0.0))

    def _layers(self, graph: Graph, encodings: Mapping[str, Encoding]) -> reconstruct.Layers:
        """Integers of each layer of a graph, whose float constants are set on the way."""
        rounded: reconstruct.Layers = {}
        nearest = []
        for layer in graph.layers:
            name = self._layer_of[layer.output]
            if name is None:
                nearest.append(layer.output)
                continue
            factor, bias = self._fold(name)
            variable = self._built.kernels.get(name)
            if variable is None:  # left in float: what the deployed file makes of it
                kind = _kind(self._source, name)
                kernel = getattr(self._built.layers[name], _WEIGHTED[kind])
                rows = _as_rows(kernel.numpy(), kind) * factor[:, None]
                weights = rows.T if layer.kind == "depthwise" else rows
                shape = graph.shape(layer.weights)
                graph.set_constant(layer.weights, weights.reshape(shape).astype(np.float32))
                if layer.bias is not None:
                    graph.set_constant(layer.bias, bias.astype(np.float32))
                nearest.append(layer.output)
                continue
            values, scale = (part.numpy().astype(np.float64) for part in self._grid(name))
            kind = _kind(self._source, name)
            steps = np.rint(_as_rows(values, kind) / scale[:, None]) * np.sign(factor)[:, None]
            folded = scale * np.abs(factor)
            silent = folded < _TINY
            steps[silent], folded[silent] = 0.0, 1.0
            rounded[layer.output] = reconstruct.finish(graph, layer, steps, folded, bias, encodings)
        rounded.update(
            reconstruct.nearest(graph, encodings, pair_bound=self.profile.pair_bound, only=nearest)
        )
        return rounded

    def _grid(self, name: str) -> tuple[Any, Any]:
        """(kernel on its grid, float32 ``[O]`` scale) of a layer."""
        quantizer = _KernelQuantizer(self.bits, pair_bound=self.profile.pair_bound)
        return quantizer.grid(self._built.kernels[name], _kind(self._source, name))

    def _fold(self, name: str) -> tuple[Floats, Floats]:
        """(what batch normalisation multiplies each output channel with, bias), float64 ``[O]``."""
        layer, kind = self._built.layers[name], _kind(self._source, name)
        kernel = self._built.kernels.get(name)
        kernel = getattr(layer, _WEIGHTED[kind]) if kernel is None else kernel
        size = _channels(kernel.shape, kind)
        bias = np.zeros(size)
        if layer.use_bias:
            bias = layer.bias.numpy().astype(np.float64)
        normal = self._built.normalized.get(name)
        if normal is None:
            return np.ones(size), bias
        normalization = self._built.layers[normal]
        factor = 1 / np.sqrt(
            normalization.moving_variance.numpy().astype(np.float64) + normalization.epsilon
        )
        if normalization.scale:
            factor = factor * normalization.gamma.numpy()
        bias = (bias - normalization.moving_mean.numpy()) * factor
        if normalization.center:
            bias = bias + normalization.beta.numpy()
        return factor, bias


class _Group:
    """The range of tensors that share a scale, as variables."""

    def __init__(
        self,
        low: float,
        high: float,
        *,
        fixed: bool,
        positive: bool,
        symmetric: bool,
        mode: RangeMode,
        members: Sequence[str],
        decay: float,
        prior: float,
    ) -> None:
        self._fixed, self._symmetric = fixed, symmetric
        self._learned = mode == "learned" and not fixed
        self._positive = positive
        self._decay = decay
        averages = mode == "moving-average" and not fixed
        own = members if averages else [""]

        def variable(value: float, trainable: bool = False) -> Any:
            return tf.Variable(value, trainable=trainable, dtype=tf.float32)

        self._low = {key: variable(low, self._learned and not positive) for key in own}
        self._high = {key: variable(high, self._learned) for key in own}
        self._batches = {key: variable(prior) for key in own} if averages else {}

    @property
    def variables(self) -> list[Any]:
        return [*self._low.values(), *self._high.values(), *self._batches.values()]

    @property
    def trainable(self) -> list[Any]:
        return [v for v in (*self._low.values(), *self._high.values()) if v.trainable]

    def plain_limits(self) -> tuple[Any, Any]:
        low = tf.reduce_min([v.read_value() for v in self._low.values()])
        high = tf.reduce_max([v.read_value() for v in self._high.values()])
        return tf.minimum(low, 0.0), tf.maximum(high, 0.0)

    def limits(self) -> tuple[Any, Any]:
        """Real values of the first and the last of 256 steps."""
        low, high = self.plain_limits()
        if self._symmetric:
            high = tf.maximum(-low, high)
            low = -high * (128 / 127)
        return low, tf.maximum(high, low + 1e-6)

    def quantize(self, values: Any, key: str, training: bool) -> Any:
        """Values to the nearest that can be stored."""
        if training and key in self._batches:
            self._update(values, key)
        low, high = self.limits()
        if training and self._learned:
            return _learned(values, low, high)
        return tf.quantization.fake_quant_with_min_max_vars(
            values, tf.stop_gradient(low), tf.stop_gradient(high)
        )

    def settle(self) -> None:
        if self._learned:
            for v in self._low.values():
                v.assign(tf.minimum(v, 0.0))
            for v in self._high.values():
                v.assign(tf.maximum(v, 1e-5))

    def _update(self, values: Any, key: str) -> None:
        batches = self._batches[key]
        share = (1 - self._decay) / (1 - self._decay ** (batches + 1.0))
        values = tf.stop_gradient(values)
        for average, value in (
            (self._low[key], tf.minimum(tf.reduce_min(values), 0.0)),
            (self._high[key], tf.maximum(tf.reduce_max(values), 0.0)),
        ):
            average.assign_add(share * (value - average))
        batches.assign_add(1.0)


def _groups(
    graph: Graph,
    keys: Mapping[str, str],
    ranges: Mapping[str, Range],
    profile: DeviceProfile,
    *,
    mode: RangeMode,
    decay: float,
    prior: float,
) -> dict[str, _Group]:
    """A range for all tensors that share a scale, by the one that stands for them.

    Args:
        graph: Float.
        keys: Keys of the Keras tensors to round, by canonical name.
        ranges: To start from, by canonical name.
        profile: The device.
        mode: Mode of the ranges that are not fixed.
        decay: Decay of the moving average.
        prior: See :class:`FakeQuantized`.
    """
    shares, bounds = encode.sharing(graph), graph.bounds()
    groups = {}
    for root in dict.fromkeys(shares.roots[name] for name in keys):
        together = [name for name, other in shares.roots.items() if other == root]
        low = min(0.0, *(ranges[name].min for name in together))
        high = max(0.0, *(ranges[name].max for name in together))
        fixed = root in shares.fixed and not profile.symmetric
        if fixed:
            scale, zero_point = shares.fixed[root]
            low, high = (-128 - zero_point) * scale, (127 - zero_point) * scale
        groups[root] = _Group(
            low,
            high,
            fixed=fixed or any(name in graph.inputs for name in together),
            positive=all(bounds.get(name, (-1.0,))[0] >= 0 for name in together),
            symmetric=profile.symmetric,
            mode=mode,
            members=list(dict.fromkeys(keys[name] for name in together if name in keys)),
            decay=decay,
            prior=prior,
        )
    return groups


@tf.custom_gradient  # type: ignore[untyped-decorator]
def _learned(x: Any, low: Any, high: Any) -> Any:
    """Fake quantization with the gradient of its ends from Esser et al. 2020 ("LSQ", section 2).

    ``low`` and ``high`` move as their step size ``(high - low) / 255`` would there, scaled by
    ``1 / sqrt(values * 255)``.
    """
    y = tf.quantization.fake_quant_with_min_max_vars(x, low, high)
    count = tf.cast(tf.reduce_prod(tf.shape(x)[1:]), tf.float32)

    def gradient(dy: Any) -> tuple[Any, Any, Any]:
        dx, below, above = tf.quantization.fake_quant_with_min_max_vars_gradient(dy, x, low, high)
        inside = tf.reduce_sum(dx * (y - x)) / (high - low)
        scale = 255.0**2 / tf.sqrt(count * 255.0)
        return dx, scale * (below - inside), scale * (above + inside)

    return y, gradient


class _KernelQuantizer(tfmot.quantizers.Quantizer):  # type: ignore[misc]
    """Symmetric narrow range per output channel, depthwise too, from the kernel as it is."""

    def __init__(self, bits: int, *, pair_bound: bool, kind: str = "Conv2D") -> None:
        self.bits, self.pair_bound, self.kind = bits, pair_bound, kind

    def build(self, tensor_shape: Any, name: str, layer: Any) -> dict[str, Any]:
        """Needs no variables."""
        return {}

    def __call__(self, inputs: Any, training: bool, weights: Any, **kwargs: Any) -> Any:
        return self.grid(inputs, self.kind)[0]

    def grid(self, kernel: Any, kind: str) -> tuple[Any, Any]:
        """(kernel on its grid, float32 ``[O]`` scale); the gradient passes straight through.

        Where the device adds pairs of products in 16 bits, a channel's scale is large enough for
        neighbours of one sign to stay within the bound (edgekit.quantization.saturation).
        """
        paired = kind != "DepthwiseConv2D" or pairs_in_groups(
            kernel.shape[2], 1, kernel.shape[2] * kernel.shape[3]
        )
        rows = tf.reshape(kernel, [-1, _channels(kernel.shape, kind)])
        largest = 2 ** (self.bits - 1) - 1
        scale = tf.reduce_max(tf.abs(rows), axis=0) / largest
        if self.pair_bound and paired and 2 * largest > LIMIT:
            even = tf.pad(rows, [[0, rows.shape[0] % 2], [0, 0]])
            first, second = even[0::2], even[1::2]
            alike = tf.where(first * second > 0, tf.abs(first + second), 0.0)
            # each of the two is rounded by half a step at the most
            scale = tf.maximum(scale, tf.reduce_max(alike, axis=0) / (LIMIT - 1))
        scale = tf.stop_gradient(tf.maximum(scale, _TINY))
        levels = tf.clip_by_value(tf.round(rows / scale), -largest, largest)
        on_grid = rows + tf.stop_gradient(levels * scale - rows)
        return tf.reshape(on_grid, kernel.shape), scale

    def get_config(self) -> dict[str, Any]:
        """What rebuilds it."""
        return {"bits": self.bits, "pair_bound": self.pair_bound, "kind": self.kind}


class _KernelConfig(tfmot.QuantizeConfig):  # type: ignore[misc]
    """Tells tfmot's wrapper which variable to round, and how."""

    def __init__(self, attribute: str, quantizer: _KernelQuantizer) -> None:
        self.attribute, self.quantizer = attribute, quantizer

    def get_weights_and_quantizers(self, layer: Any) -> list[Any]:
        """The kernel."""
        return [(getattr(layer, self.attribute), self.quantizer)]

    def get_activations_and_quantizers(self, layer: Any) -> list[Any]:
        """None: activations stand on their own."""
        return []

    def set_quantize_weights(self, layer: Any, quantize_weights: Sequence[Any]) -> None:
        """Let the layer compute with the rounded kernel."""
        setattr(layer, self.attribute, quantize_weights[0])

    def set_quantize_activations(self, layer: Any, quantize_activations: Sequence[Any]) -> None:
        """Nothing to set."""

    def get_output_quantizers(self, layer: Any) -> list[Any]:
        """None."""
        return []

    def get_config(self) -> dict[str, Any]:
        """What rebuilds it."""
        return {"attribute": self.attribute, "quantizer": self.quantizer}


class _FakeQuantize(keras.layers.Layer):  # type: ignore[misc, name-defined]
    """Rounds a tensor to what can be stored."""

    def __init__(self, place: Callable[[Any, bool], Any], **settings: Any) -> None:
        super().__init__(**settings)
        self._place = place

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Quantize; ranges follow while training."""
        return self._place(inputs, bool(training))


def load(path: Path) -> Any:
    """The fake-quantized tf_keras model that ``python -m edgekit.qat`` wrote.

    Args:
        path: The model file, with its recipe beside it.

    Raises:
        ArtifactError: If the recipe cannot be read.
        InvalidModelError: If the model cannot be read, or the recipe is another model's.
    """
    recipe = FakeQuantRecipe.load(path.with_name(FAKE_QUANT_FILE))
    return with_activations(load_keras(path), recipe.activations)


class _BiasOnGrid(keras.layers.Layer):  # type: ignore[misc, name-defined]
    """Adds to each channel what rounding its bias does."""

    def __init__(self, shift: Callable[[], Any], **settings: Any) -> None:
        super().__init__(**settings)
        self._shift = shift

    def call(self, inputs: Any) -> Any:
        """Values ``[..., O]`` as they are with the deployed bias."""
        return inputs + self._shift()


def with_activations(model: Any, numbers: Mapping[str, tuple[float, int]]) -> Any:
    """A model that rounds the named tensors: with kernels on their grid, the fake-quantized one.

    Args:
        model: tf_keras model, as an artifact of ``python -m edgekit.qat`` holds it.
        numbers: (scale, zero_point) by key, of :meth:`FakeQuantized.activations`.

    Raises:
        InvalidModelError: If a name is not one of the model's.
    """
    places = {}
    for key, (scale, zero_point) in numbers.items():
        low, high = (-128 - zero_point) * scale, (127 - zero_point) * scale
        places[key] = _Group(
            low,
            high,
            fixed=True,
            positive=False,
            symmetric=False,
            mode="moving-average",
            members=[key],
            decay=0.0,
            prior=0.0,
        )
    built = _build(model, places=places)
    unknown = sorted(set(numbers) - {stage.key for stage in built.stages})
    if unknown:
        raise InvalidModelError(f"{model.name} has no tensor {', '.join(unknown)}")
    return keras.Model(built.inputs, built.outputs, name=model.name)


def _build(
    model: Any,
    *,
    kernel: _KernelQuantizer | None = None,
    places: Mapping[str, _Group] | None = None,
    leave_float: Collection[str] = (),
    shift: Callable[[_Built, str], Any] | None = None,
) -> _Built:
    """Copy a flat functional model layer by layer, with activations as layers of their own.

    Args:
        model: tf_keras model.
        kernel: Rounds kernels, if given.
        places: Ranges of the tensors to round, by key.
        leave_float: Layers whose kernels stay as they are.
        shift: What is added to the output of a layer with a rounded kernel, per channel, once its
            batch normalisation is behind it.
    """
    return _Copy(kernel, places or {}, leave_float, shift).of(model)


class _Copy:
    """See :func:`_build`. Each call of a layer becomes one stage, or two with its activation."""

    def __init__(
        self,
        kernel: _KernelQuantizer | None,
        places: Mapping[str, _Group],
        leave_float: Collection[str],
        shift: Callable[[_Built, str], Any] | None,
    ) -> None:
        self._kernel, self._places = kernel, places
        self._leave_float, self._shift = leave_float, shift
        self._built = _Built(None, None, [])
        self._rounding: dict[str, Any] = {}  # by name, the copies as they are called
        self._last: dict[tuple[str, int], _Stage] = {}  # of each call

    def of(self, model: Any) -> _Built:
        """Copy all calls in the order in which they run."""
        calls: Counter[str] = Counter()
        for depth in sorted(model._nodes_by_depth, reverse=True):
            for node in model._nodes_by_depth[depth]:
                number = calls[node.layer.name]
                calls[node.layer.name] += 1
                call = self._input if node.is_input else self._call
                self._last[_call_of(node.outputs)] = call(node, number)
        end, stages = self._last[_call_of(model.outputs[0])], self._built.stages
        self._built.outputs = end.rounded
        stages.append(stages.pop(stages.index(end)))  # last, whatever branches lie beside it
        return self._built

    def _input(self, node: Any, number: int) -> _Stage:
        name = node.layer.name
        self._built.inputs = keras.Input(batch_shape=node.outputs.shape, name=name)
        return self._put(_key(name, number), name, self._built.inputs)

    def _call(self, node: Any, number: int) -> _Stage:
        layer, kind = node.layer, type(node.layer).__name__
        name, key, built = layer.name, _key(layer.name, number), self._built
        args, settings = tf.nest.map_structure(
            lambda argument: (
                self._last[_call_of(argument)].rounded if _is_tensor(argument) else argument
            ),
            (node.call_args, node.call_kwargs),
        )
        if name not in built.layers:
            self._rounding[name] = self._layer(layer, args[0])
        output = self._rounding[name](*args, **settings)
        before = self._last[_call_of(node.keras_inputs[0])]
        weighted = name if kind in _WEIGHTED else None
        if kind in ("BatchNormalization", "ReLU", "Activation") and not before.activation:
            weighted = before.weighted
            if kind == "BatchNormalization" and weighted is not None:
                built.normalized[weighted] = name
        complete = kind == "BatchNormalization" or kind in _WEIGHTED and not _normalized(layer)
        if self._shift is not None and complete and weighted in built.kernels:
            label = f"bias_on_grid_{name}_{number}"
            output = _BiasOnGrid(partial(self._shift, built, weighted), name=label)(output)
        softmax_of = before.softmax_of if kind in _DROPPING else None
        if kind == "Softmax" or (kind == "Activation" and _activation(layer) == "softmax"):
            softmax_of = args[0]
        stage = self._put(key, name, output, weighted, softmax_of)
        activation = _activation(layer) if self._rounds(layer) else "linear"
        if activation == "linear":
            return stage
        label = f"{name}_{number}_{activation}"
        output = keras.layers.Activation(activation, name=label)(stage.rounded)
        softmax_of = stage.rounded if activation == "softmax" else None
        return self._put(f"{key}/activation", name, output, weighted, softmax_of, activation)

    def _put(
        self,
        key: str,
        layer: str,
        tensor: Any,
        weighted: str | None = None,
        softmax_of: Any = None,
        activation: str = "",
    ) -> _Stage:
        """A stage, and the fake quantizer behind it where the tensor is stored."""
        rounded = tensor
        if key in self._places:
            label = "fake_quantize_" + key.replace("/", "_").replace(":", "_")
            group = self._places[key]
            rounded = _FakeQuantize(
                lambda values, training: group.quantize(values, key, training), name=label
            )(tensor)
        stage = _Stage(key, tensor, rounded, layer, weighted, softmax_of, activation)
        self._built.stages.append(stage)
        return stage

    def _layer(self, layer: Any, read: Any) -> Any:
        """The copy of a layer as it is called: with its kernel rounded, if that is asked for."""
        built, name, kind = self._built, layer.name, type(layer).__name__
        config = layer.get_config()
        if self._rounds(layer):
            config["activation"] = "linear"
        copied = built.layers[name] = type(layer).from_config(config)
        copied.build(tf.nest.map_structure(lambda tensor: tensor.shape, read))
        copied.set_weights(layer.get_weights())
        # taken now: a wrapper puts a tensor in the kernel's place
        built.weights[name] = list(copied.weights)
        built.trainable += copied.trainable_weights
        if self._kernel is None or not self._rounds(layer):
            return copied
        built.kernels[name] = getattr(copied, _WEIGHTED[kind])
        config = _KernelConfig(
            _WEIGHTED[kind],
            _KernelQuantizer(self._kernel.bits, pair_bound=self._kernel.pair_bound, kind=kind),
        )
        return tfmot.QuantizeWrapperV2(copied, config)

    def _rounds(self, layer: Any) -> bool:
        """Whether a layer has a kernel that the device rounds."""
        return type(layer).__name__ in _WEIGHTED and layer.name not in self._leave_float


def _key(layer: str, number: int) -> str:
    return f"{layer}:{number}" if number else layer


def _is_tensor(value: Any) -> bool:
    return hasattr(value, "_keras_history")


def _call_of(tensor: Any) -> tuple[str, int]:
    """(layer, number of the call) that a tensor of a model is the output of."""
    history = tensor._keras_history
    return history.layer.name, history.node_index


def _normalized(layer: Any) -> bool:
    """Whether batch normalisation is right behind a layer."""
    behind = [type(node.layer).__name__ for node in layer.outbound_nodes]
    return behind == ["BatchNormalization"]


def _match(built: _Built, graph: Graph, images: npt.NDArray[np.float32]) -> dict[str, str]:
    """Key of the Keras tensor with the same values, by canonical tensor name."""
    stages = [s for s in built.stages if _kind_of(built, s) not in _DROPPING]
    outputs = keras.Model(built.inputs, [s.tensor for s in stages])(images, training=False)
    names = list(encode.sharing(graph).roots)
    outputs_of_graph = walk.outputs(
        Graph(graph.with_outputs([n for n in names if n not in graph.inputs])),
        {graph.inputs[0]: images},
        threads=1,
    )
    keys = by_values(
        {name: values for name, values in outputs_of_graph.items() if name not in graph.inputs},
        {stage.key: np.asarray(values) for stage, values in zip(stages, outputs, strict=True)},
    )
    return {graph.inputs[0]: stages[0].key, **keys}


def _kind_of(built: _Built, stage: _Stage) -> str:
    layer = built.layers.get(stage.layer)
    return "InputLayer" if layer is None else type(layer).__name__


def _weighted(
    built: _Built, graph: Graph, key_of: Mapping[str, str], leave_float: Collection[str]
) -> dict[str, str | None]:
    """Name of the Keras layer of each canonical layer, by what that one writes."""
    origin = {stage.key: stage.weighted for stage in built.stages}
    layers_of: dict[str, str | None] = {}
    for layer in graph.layers:
        key = key_of.get(layer.output)
        layers_of[layer.output] = origin.get(key) if key is not None else None
    missing = [
        name
        for name, layer in built.layers.items()
        if type(layer).__name__ in _WEIGHTED
        and name not in layers_of.values()
        and name not in leave_float
    ]
    if missing:
        have = ", ".join(short_name(layer.output) for layer in graph.layers)
        raise InvalidModelError(
            f"{', '.join(missing)} is not found in the converted graph (its layers: {have}); the "
            f"converter merged it with others: replace it, or pass --leave-float {missing[0]}"
        )
    return layers_of


def _kind(model: Any, name: str) -> str:
    return type(model.get_layer(name)).__name__


def _channels(shape: Sequence[int], kind: str) -> int:
    """Output channels of a Keras kernel."""
    return int(shape[2] * shape[3] if kind == "DepthwiseConv2D" else shape[-1])


def _as_rows(kernel: npt.NDArray[Any], kind: str) -> Floats:
    """Keras kernel to ``[O, K]`` in the order of the dot product."""
    return kernel.reshape(-1, _channels(kernel.shape, kind)).T.astype(np.float64)
