"""Checks of a model file before it becomes an artifact.

Every stored number has to be the one that the quantizer chose. The file has to load and run. Its
outputs have to be those of the float graph, as far as the precision allows: in float16, an error
that rounding does not explain is a fault, and the layer at fault is named. A file with int8 weights
is judged by its outputs on held-out samples, computed by the kernels of its runtime.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.base.errors import ExecutionError, InvalidDataError, WriterError
from edgekit.base.text import percent
from edgekit.data import feeds
from edgekit.data.feeds import Feed
from edgekit.diagnosis import measure
from edgekit.diagnosis.tensors import OnnxTensors, TfLiteTensors
from edgekit.graph import litert, onnx
from edgekit.graph.flatbuffer import Graph, short_name
from edgekit.quantization import judge as judging
from edgekit.quantization import saturation
from edgekit.quantization.profiles import DeviceProfile
from edgekit.records import environment
from edgekit.records.artifact import Execution
from edgekit.records.encodings import Stored, differences
from edgekit.records.fidelity import Fidelity
from edgekit.records.schemes import SCHEMES
from edgekit.records.signature import Signature
from edgekit.sources.float_model import FloatModel
from edgekit.writers import onnx_dynamic, onnx_integers, onnx_tensors, tflite_integers

#: Largest difference from the float outputs, as a part of their largest value.
_TOLERANCE = {"float32": 1e-3, "float16": 5e-2}
#: Difference that rounding explains whatever the size, as of a sigmoid that is nearly 0.
_ROUNDING = 1e-6
SAMPLES = 4
#: dB below which a tensor is said to be off.
_OFF = 30.0


def check_stored(file: str, read: Stored, decided: Stored, *, biases: bool = True) -> None:
    """Check that the file holds the chosen numbers, every one.

    Args:
        file: Format and precision, for the message.
        read: Numbers that were read from it.
        decided: Numbers that the quantizer chose.
        biases: Whether its biases are integers.

    Raises:
        WriterError: If it does not.
    """
    differing = differences(read, decided if biases else decided.without_biases())
    if differing:
        named = ", ".join(
            f"{difference.what} of {short_name(difference.tensor)} ({difference.count} by "
            f"{difference.largest:.3g})"
            for difference in differing[:3]
        )
        more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
        raise WriterError(
            f"the {file} file holds other numbers than the quantizer chose: {named}{more}; "
            f"float32 and float16 of it can be exported"
        )


def check_products(model: Any, profile: DeviceProfile) -> None:
    """Check that no two products together exceed 16 bits, if the device adds them in 16 bits.

    Args:
        model: The int8 file, as it will be stored.
        profile: The device.

    Raises:
        WriterError: If two products can exceed them.
    """
    if not profile.pair_bound or profile.onnx_activations != "uint8":
        return
    over = [
        (product, pairs)
        for product in onnx_integers.products(model)
        if saturation.pairs_in_groups(product.groups, product.inputs, len(product.rows))
        and (pairs := saturation.predict(product.name, product.rows).pairs)
    ]
    if over:
        first, pairs = over[0]
        raise WriterError(
            f"{pairs} pairs of products of {short_name(first.name)} can saturate on {profile.name} "
            f"({first.groups} groups of {first.inputs} channels); export with --device "
            f"x86-vnni for CPUs that have VNNI"
        )


def execution(
    content: bytes,
    signature: Signature,
    source: FloatModel,
    target: str,
    precision: str,
    profile: DeviceProfile,
    numbers: int,
) -> Execution:
    """Load and run the file that will be written; say which kernels ran.

    Args:
        content: The model file.
        signature: Its signature.
        source: Its float model.
        numbers: Number of weights and biases that were read back from it.
    """
    isa, scheme = environment.describe().isa, SCHEMES[precision]
    if target == "tflite":
        graph, in_float = Graph(content), tuple[str, ...]()
        if scheme.ranges:
            in_float = tflite_integers.floats(graph)
        elif scheme.dynamic:
            in_float = tflite_integers.real_weights(graph)
        opened = litert.interpreter(content)
        provider, own = "builtin kernels", dict[str, int]()
        if litert.delegated(opened):
            provider, own = "XNNPACK", litert.undelegated(opened)
        return Execution(provider, isa, litert.kernels(content), in_float, numbers, own_kernels=own)
    if profile.provider != "CPUExecutionProvider":
        note = f"not run: {profile.provider} is not on this machine"
        return Execution(profile.provider, isa, {}, (), numbers, note)
    feed = feeds.quantized(
        feeds.random(signature.inputs, source.preprocessing, 1, seed=0), signature.inputs
    )
    feed = next(feeds.one_by_one(feed, signature.inputs))
    options = profile.options(target, precision)
    nodes = onnx.executed(content, feed, options=options)
    kernels: dict[str, int] = {}
    for node in nodes:
        kernels[node.kind] = kernels.get(node.kind, 0) + 1
    floats: tuple[str, ...] = ()
    if scheme.ranges:
        floats = tuple(sorted({f"{n.kind} {n.name}" for n in nodes if n.computes_in_float}))
    elif scheme.dynamic:
        floats = onnx_dynamic.in_float(onnx.parse(content))
    return Execution("CPUExecutionProvider", isa, kernels, floats, numbers)


def check_outputs(
    content: bytes,
    signature: Signature,
    canonical: bytes,
    source: FloatModel,
    target: str,
    precision: str,
    samples: Feed | None = None,
) -> str:
    """Run the file that will be written and the float graph on the same samples.

    Args:
        content: The model file.
        signature: Its signature.
        canonical: The float graph: a flatbuffer, or the ONNX file that ``source`` is.
        samples: Preprocessed calibration samples by input name; default random ones.

    Returns:
        How far the outputs differ, in words.

    Raises:
        ExecutionError: If an output is NaN or infinite, or differs by more than the precision
            explains. How much int8 may differ is for :func:`judge`.
    """
    base = onnx.signature(source.model) if source.kind == "onnx" else None
    source_inputs = (base or litert.signature(canonical)).inputs
    kind = "random inputs" if samples is None else "calibration samples"
    values = samples or feeds.random(source_inputs, source.preprocessing, SAMPLES, seed=0)
    expected = of_source(source, canonical, values)
    feed = feeds.quantized(values, signature.inputs)
    run = (
        _as_source(_of_tflite(content, feed), signature, source)
        if target == "tflite"
        else _of_onnx(content, feed, signature)
    )
    if source.integers is not None:
        return _beside(signature, run, expected, f"{feeds.count(values)} {kind}")
    largest, beyond, where, odd, flat = -1.0, "", "", [], []
    for spec in signature.outputs:
        outputs, exact = spec.dequantize(run[spec.name]), expected[spec.name]
        whole = np.isfinite(exact)
        if not SCHEMES[precision].ranges and not whole.any():
            raise ExecutionError(
                f"{source.model_id} gives NaN or infinity in {spec.name} for each of "
                f"{feeds.count(values)} {kind}, in float32 already; check its weights, and whether "
                f"it was trained with preprocessing {source.preprocessing.name}"
            )
        if not whole.all():
            odd.append(spec.name)
        # integers without a sign would wrap, and truth values have no difference
        outputs, exact = outputs[whole].astype(np.float64), exact[whole].astype(np.float64)
        if not np.isfinite(outputs).all():
            fix = "export it to TFLite" if precision == "float32" else "export it in float32"
            if SCHEMES[precision].ranges:
                fix = "give it real samples with --calibration"
            raise ExecutionError(
                f"the {target} {precision} model of {source.model_id} gives NaN or infinity in "
                f"{spec.name} where the float model does not; {fix}"
            )
        difference = float(np.abs(outputs - exact).max(initial=0))
        size = float(np.abs(exact).max(initial=0))
        allowed = max(_TOLERANCE.get(precision, np.inf) * size, _ROUNDING)
        if difference > allowed and not beyond:
            beyond = f"by {difference:.3g} in {spec.name}, expected {allowed:.3g} at most"
        span = float(np.ptp(exact)) if exact.size else 0.0
        if span <= _ROUNDING and difference <= _ROUNDING:  # a share of that range tells nothing
            flat.append((spec.name, difference))
            continue
        share = 100 * difference / (span or size or 1.0)
        if share > largest:
            largest = share
            where = f"by {difference:.2g} at most, {percent(share)} % of the range of {spec.name}"
    if not beyond:
        constant = ", ".join(f"{name} by {difference:.2g} at most" for name, difference in flat)
        parts = [where, f"{constant}, where all values are equal but for rounding" if flat else ""]
        return (
            f"outputs for {feeds.count(values)} {kind} differ from float32 "
            f"{'; '.join(filter(None, parts))}"
        ) + (f"; infinities of the float model's own in {', '.join(odd)} left out" if odd else "")
    sentence = f"the {target} {precision} model of {source.model_id} differs from the float model"
    if base is None or target == "tflite":
        fault, why = _judge(content, canonical, target, values)
    else:
        fault, why = _judge_onnx(content, canonical, values)
    if precision == "float32":
        raise WriterError(f"{sentence} {beyond}: {why}")
    if fault:
        raise ExecutionError(f"{sentence} {beyond}: {why}; export it in float32")
    return f"{sentence} {beyond}, on {feeds.count(values)} {kind}: {why}"


def _beside(
    signature: Signature,
    run: Mapping[str, npt.NDArray[Any]],
    expected: Mapping[str, npt.NDArray[Any]],
    samples: str,
) -> str:
    """Say in words how far the outputs of a file are from those of its int8 source."""
    sentences = []
    for spec in signature.outputs:
        exact, scale = expected[spec.name].astype(np.float64), spec.scale or 0.0
        off = np.abs(spec.dequantize(run[spec.name]).astype(np.float64) - exact)
        steps = np.rint(off / scale) if scale else off
        unit = "{:.0f} LSB" if scale else "{:.2g}"
        share = 100 * float(np.mean(steps == 0 if scale else off <= _ROUNDING))
        sentences.append(
            f"{spec.name}: {share:.4g} % equal, off by {unit.format(steps.max(initial=0))} at most"
        )
    return f"outputs for {samples} beside the file in onnxruntime: {'; '.join(sentences)}"


def judge(
    content: bytes,
    signature: Signature,
    source: FloatModel,
    target: str,
    precision: str,
    profile: DeviceProfile,
    samples: Feed,
    expected: Mapping[str, npt.NDArray[Any]],
) -> tuple[Fidelity, ...]:
    """Judge the outputs of a file with int8 weights, computed by the kernels that its user has.

    Args:
        content: The model file.
        signature: Its signature.
        source: What it was made from.
        target: ``tflite`` or ``onnx``.
        precision: Its precision.
        profile: The device. Weights that are free to saturate on this CPU, and not there, are
            computed with precise kernels.
        samples: Preprocessed calibration samples by input name.
        expected: What the float model gives, as :func:`of_source` says.

    Raises:
        ExecutionError: If an output is NaN or infinite.
    """
    feed = feeds.quantized(samples, signature.inputs)
    if target == "tflite":
        run = _as_source(_of_tflite(content, feed), signature, source)
    else:
        options = profile.options(target, precision)
        free = SCHEMES[precision].multiplies_integers and not profile.cannot_saturate(precision)
        if free and environment.saturates(environment.describe()):
            options[environment.PRECISE] = "1"
        run = _of_onnx(content, feed, signature, options)
    real = {
        spec.name: spec.dequantize(run[spec.name]) if spec.is_real else run[spec.name]
        for spec in signature.outputs
    }
    try:
        return judging.of({name: expected[name] for name in real}, real, feeds.count(samples))
    except InvalidDataError as exc:
        raise ExecutionError(f"the {target} {precision} file of {source.model_id}: {exc}") from None


@dataclass(frozen=True)
class _Rounding:
    """Errors of a layer in float16.

    Attributes:
        excess: With exact inputs, over those of a sound layer, in dB.
        off: Whether the tensor is below :data:`_OFF` dB when the network runs on its own.
    """

    layer: str
    excess: float
    off: bool


def _judge(content: bytes, canonical: bytes, target: str, values: Feed) -> tuple[bool, str]:
    """Find a layer of a float16 file whose error is more than rounding; say it in words."""
    graph = Graph(canonical)
    right = TfLiteTensors(canonical, graph, threads=1)
    wrong = (
        TfLiteTensors(content, graph, threads=1)
        if target == "tflite"
        else OnnxTensors(onnx.parse(content), graph, threads=1)
    )
    arranged = feeds.quantized(values, litert.signature(canonical).inputs)
    feed = {graph.named_inputs[name]: array for name, array in arranged.items()}
    try:
        rows = measure.measure(right, wrong, measure.Sound(canonical), feed, feed, half=True)
    except measure.NotFiniteError as exc:
        return True, str(exc)
    return _verdict(
        [
            _Rounding(row.layer, row.excess, row.accumulated.sqnr < _OFF)
            for row in rows
            if row.excess is not None and row.accumulated is not None
        ]
    )


def _judge_onnx(content: bytes, original: bytes, values: Feed) -> tuple[bool, str]:
    """The same for a file of an ONNX source, whose tensors are paired by their names."""
    models = onnx.parse(original), onnx.parse(content)
    places = [onnx_tensors.own_places(model) for model in models]
    names = [name for name in places[0] if name in places[1]]
    if not names:
        raise ExecutionError("no tensor of both files has a known size; export it in float32")
    places = [{name: placed[name] for name in names} for placed in places]

    def run(cut: bytes, fed: Feed) -> Feed:
        session = onnx.session(cut)
        input_names = {spec.name for spec in session.get_inputs()}
        output_names = [spec.name for spec in session.get_outputs()]
        arrays = onnx.run(session, output_names, {name: fed[name] for name in input_names})
        return dict(zip(output_names, arrays, strict=True))

    totals = {name: np.zeros(4) for name in names}
    for i in range(feeds.count(values)):
        sample = feeds.part(values, slice(i, i + 1))
        whole = [
            run(onnx_tensors.watched(model, placed), sample)
            for model, placed in zip(models, places, strict=True)
        ]
        held = measure.halved(whole[0])
        alone = [
            run(
                onnx_tensors.cut(model, placed),
                sample | {onnx_tensors.fed(p): p.own(held[n]) for n, p in placed.items()},
            )
            for model, placed in zip(models, places, strict=True)
        ]
        for name in names:
            right, wrong, exact, own = (
                outputs[name].astype(np.float64) for outputs in (*whole, *alone)
            )
            finite = np.isfinite(right) & np.isfinite(exact)  # e.g. not a mask of -infinity
            parts = (right, wrong, exact, own)
            right, wrong, exact, own = (
                np.where(np.isnan(part), np.inf, part)[finite] for part in parts
            )
            parts = (right, wrong - right, exact, own - exact)
            totals[name] += [float((part**2).sum()) for part in parts]
    sound = measure.HALF**2
    return _verdict(
        [
            _Rounding(
                name,
                measure.decibels(noise_alone, sound * (power_alone + 1e-12)),
                measure.decibels(power, noise) < _OFF,
            )
            for name, (power, noise, power_alone, noise_alone) in totals.items()
        ]
    )


def _verdict(rows: Sequence[_Rounding]) -> tuple[bool, str]:
    """(whether a layer is at fault, a sentence about it), of layers in order of execution."""
    worst = max(rows, key=lambda row: row.excess)
    if worst.excess >= measure.BLAME:
        return True, (
            f"{worst.layer} is to blame, it errs {worst.excess:.1f} dB more than a sound layer"
        )
    first = next((row.layer for row in rows if row.off), None)
    return False, (
        f"every layer rounds as float16 does (worst {worst.layer}, {worst.excess:.1f} dB over a "
        f"sound layer's error), the network amplifies it"
        + (f", below {_OFF:.0f} dB from {first} on" if first else "")
    )


def of_source(source: FloatModel, canonical: bytes, values: Feed) -> dict[str, npt.NDArray[Any]]:
    """Outputs ``[N, ...]`` of the float model: onnxruntime runs an ONNX file, LiteRT a canonical
    graph.

    Args:
        source: The float model.
        canonical: Its float graph as a flatbuffer.
        values: Preprocessed samples by input name.
    """
    if source.kind == "onnx":
        own = bytes(source.model.SerializeToString())
        precise = source.integers is not None and environment.saturates(environment.describe())
        options = {environment.PRECISE: "1"} if precise else None
        return _of_onnx(own, values, onnx.signature(source.model), options)
    return _of_tflite(canonical, values)


def _of_onnx(
    content: bytes, values: Feed, signature: Signature, options: Mapping[str, str] | None = None
) -> dict[str, npt.NDArray[Any]]:
    names = [spec.name for spec in signature.outputs]
    opened = onnx.session(content, options=options)
    divided = feeds.batches if signature.batch == -1 else feeds.one_by_one
    parts = [onnx.run(opened, names, part) for part in divided(values, signature.inputs)]
    return feeds.joined(
        [dict(zip(names, arrays, strict=True)) for arrays in parts], signature.outputs
    )


def _as_source(
    run: Mapping[str, npt.NDArray[Any]], signature: Signature, source: FloatModel
) -> dict[str, npt.NDArray[Any]]:
    """Outputs of a TFLite file with the axes of its source."""
    turned = source.source.turned(signature, "tflite")
    return {name: np.moveaxis(v, -1, 1) if name in turned else v for name, v in run.items()}


def _of_tflite(content: bytes, values: Feed) -> dict[str, npt.NDArray[Any]]:
    """Outputs ``[N, ...]`` by name of the signature."""
    opened = litert.interpreter(content, threads=environment.cores())
    runner = opened.get_signature_runner(litert.SIGNATURE_KEY)
    signature = litert.signature_of(opened)
    outputs = [
        litert.invoke(runner, **sample) for sample in feeds.one_by_one(values, signature.inputs)
    ]
    return feeds.joined(outputs, signature.outputs)
