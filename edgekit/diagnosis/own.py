"""Two models of one ONNX file of another exporter, tensor by tensor of the file's own names.

What :mod:`edgekit.diagnosis.measure` does on the canonical graph, which such a file has not: whole
networks, and every part between two tensors that both have, from the reference's values.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.base.errors import InvalidModelError
from edgekit.data import feeds
from edgekit.data.feeds import Feed
from edgekit.diagnosis.measure import (
    ACCUMULATED,
    HALF,
    INPUT,
    ISOLATED,
    SINGLE,
    LayerRow,
    Seen,
    Sums,
    as_stored,
    check_finite,
    decibels,
    halved,
    within,
)
from edgekit.graph import onnx
from edgekit.quantization.profiles import DeviceProfile
from edgekit.records.signature import TensorSpec
from edgekit.writers import onnx_file, onnx_tensors
from edgekit.writers.onnx_tensors import Place

Values = dict[str, npt.NDArray[np.float32]]


def rows(
    reference: Any,
    suspect: Any,
    specs: tuple[TensorSpec, ...],
    expected: Feed,
    given: Feed,
    *,
    profile: DeviceProfile,
    modes: Collection[str],
    half: bool,
    options: Mapping[str, str],
    advance: Callable[[int], None] = lambda count: None,
) -> tuple[LayerRow, ...]:
    """Hold the tensors that two models have against each other, in order of execution.

    Args:
        reference: Float ``onnx.ModelProto`` that the suspect was made from, or a file made from it.
        suspect: ``onnx.ModelProto``.
        specs: Of the inputs.
        expected: Samples as the reference takes them.
        given: The same as the suspect takes them.
        profile: The device that an int8 suspect was made for.
        modes: Of :data:`edgekit.diagnosis.measure.MODES`.
        half: Whether the suspect is float16.
        options: Of onnxruntime, for the suspect.
        advance: Called with the number of samples done.

    Raises:
        InvalidModelError: If fewer than half of the reference's tensors are in the suspect.
        NotFiniteError: If a tensor holds NaN or infinity.
    """
    right, wrong = (onnx_tensors.own_places(model, stored=True) for model in (reference, suspect))
    names = [name for name in right if name in wrong]
    ends = {value.name for value in reference.graph.output}
    if 2 * len(names) < min(len(right), len(wrong)) or not ends & set(names):
        raise InvalidModelError(
            f"only {len(names)} of {len(right)} tensors are found in the suspect; expected two "
            f"models made from one ONNX file"
        )
    sides = [
        _Side(reference, {name: right[name] for name in names}, {}),
        _Side(suspect, {name: wrong[name] for name in names}, options),
    ]
    as_rows = onnx_file.read_as_rows(reference)
    makers = {name: node for node in reference.graph.node for name in node.output}
    whole: dict[str, Sums] = {}
    alone: dict[str, Sums] = {}
    seen: dict[str, Seen] = {}
    encodings = {name: wrong[name].encoding for name in names}

    def channels_last(name: str, values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        return values if name in as_rows or values.ndim < 3 else np.moveaxis(values, 1, -1)

    def add(
        sums: dict[str, Sums], name: str, exact: npt.NDArray[Any], found: npt.NDArray[Any]
    ) -> None:
        one, other = channels_last(name, exact), channels_last(name, found)
        sums.setdefault(name, Sums(one.shape[-1], name)).add(one, other)

    pairs = zip(feeds.one_by_one(expected, specs), feeds.one_by_one(given, specs), strict=True)
    for one, own in pairs:
        exact = sides[0].run(one)
        for name in names:
            check_finite(name, exact[name])
            values = channels_last(name, exact[name])
            seen.setdefault(name, Seen(values.shape[-1])).add(values, encodings[name])
        if ACCUMULATED in modes:
            found = sides[1].run(own)
            for name in names:
                add(whole, name, exact[name], found[name])
        if ISOLATED in modes:
            held = halved(exact) if half else exact
            stored = {name: as_stored(held[name], encodings[name]) for name in names}
            floats, parts = sides[0].alone(one, stored), sides[1].alone(own, held)
            for name in names:
                if name in makers:
                    add(alone, name, within(floats[name], encodings[name]), parts[name])
        advance(1)
    limits = _sound_noise(reference, suspect, seen, encodings, profile, half=half)
    result = []
    for name in names:
        encoding = encodings[name]
        step = None if encoding is None else encoding[0]
        excess = channel = None
        if name in alone:
            ratio = alone[name].noise / alone[name].count / limits[name]
            channel = int(ratio.argmax())
            excess = decibels(float(ratio[channel]), 1.0)
        needed = _step(seen[name])
        result.append(
            LayerRow(
                layer=name,
                name=name,
                own=wrong[name].named,
                kind=makers[name].op_type if name in makers else INPUT,
                accumulated=whole[name].errors(step) if name in whole else None,
                isolated=alone[name].errors(step) if name in alone else None,
                excess=excess,
                channel=channel,
                use=None if encoding is None else seen[name].use(encoding),
                clipped=None if encoding is None else 100 * seen[name].clipped / seen[name].count,
                cut=None
                if not seen[name].clipped
                else decibels(seen[name].cut / seen[name].count, needed**2 / 12),
                step=None if step is None else step / needed,
            )
        )
    return tuple(result)


class _Side:
    """A model whose tensors can be read, and which can be run in parts."""

    def __init__(self, model: Any, places: Mapping[str, Place], options: Mapping[str, str]) -> None:
        self._places = places
        self._whole = onnx.session(onnx_tensors.watched(model, places), options=options)
        self._cut = onnx.session(onnx_tensors.cut(model, places), options=options)
        self._inputs = {value.name for value in model.graph.input}

    def run(self, feed: Feed) -> Values:
        return self._values(self._whole, feed, feed)

    def alone(self, feed: Feed, values: Values) -> Values:
        """What every part makes of given real values."""
        wanted = {each.name for each in self._cut.get_inputs()}
        fed = {name: array for name, array in feed.items() if name in wanted}
        for name, place in self._places.items():
            if onnx_tensors.fed(place) in wanted:
                fed[onnx_tensors.fed(place)] = place.own(values[name])
        return self._values(self._cut, fed, feed)

    def _values(self, session: Any, fed: Feed, feed: Feed) -> Values:
        ends = [end.name for end in session.get_outputs()]
        found = {**feed, **dict(zip(ends, onnx.run(session, ends, fed), strict=True))}
        return {
            name: place.real(found[place.tensor], found[place.tensor].shape)
            for name, place in self._places.items()
            if place.tensor in found
        }


def _step(seen: Seen) -> float:
    """That the values of a tensor need in 8 bits."""
    return max(max(seen.high, 0.0) - min(seen.low, 0.0), 1e-9) / 255


def _sound_noise(
    reference: Any,
    suspect: Any,
    seen: Mapping[str, Seen],
    encodings: Mapping[str, tuple[float, int] | None],
    profile: DeviceProfile,
    *,
    half: bool,
) -> dict[str, npt.NDArray[np.float64]]:
    """Mean square error of each channel that a sound layer makes, by tensor."""
    rounded = onnx.quantized(suspect) is not None
    layers = {}
    for name, (entry, scale, length) in onnx_file.weight_steps(reference, profile).items():
        if rounded and entry in seen:
            layers[name] = (
                scale**2 / 12 * length * float((seen[entry].power / seen[entry].rows).mean())
            )
    found = {}
    for name, values in seen.items():
        mean = values.power / values.rows
        relative = HALF if half else SINGLE
        noise = np.full(len(mean), relative**2 * (float(mean.mean()) + 1e-12))
        if encodings[name] is not None:
            noise = np.full(len(mean), _step(values) ** 2 / 12)
        behind = layers.get(name)
        if behind is not None and len(behind) == len(noise):
            noise = noise + behind
        found[name] = noise
    return found
