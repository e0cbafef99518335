"""int8 on x86 without VNNI, where onnxruntime's kernels saturate: every way out, side by side.

    python benchmarks/saturation.py [MODEL --preprocessing NAME] [--hard-case] [--limit N]
    python benchmarks/saturation.py --paper-net          # latency of MobileNetV2 1.0/224

All files have the same activation encodings (minmax) unless "equalized"; they differ in their
weights. Answers to the 10,000 test images and latency (batch 1, one thread, rounds that go through
all files) are taken on kernels of AVX2; on a CPU with VNNI the command runs itself again through
benchmarks/as_avx2.py. The last line of stdout is one JSON document.

--paper-net has random weights and images, since no trained one ships: its latency is that of a
trained one, its answers mean nothing and are not shown.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.markup import escape
from rich.table import Table

from edgekit import data
from edgekit.base import cli, words
from edgekit.graph import onnx
from edgekit.graph.flatbuffer import Graph
from edgekit.pipeline.calibration import observe
from edgekit.quantization import (
    encode,
    equalize,
    profiles,
    quantize,
    reconstruct,
)
from edgekit.quantization.reconstruct import Layers
from edgekit.records import environment, signature, stats
from edgekit.records.encodings import Encoding
from edgekit.records.environment import PRECISE
from edgekit.records.results import Environment, Measurement
from edgekit.sources import convert, float_model
from edgekit.writers import onnx_convert, onnx_integers

SAMPLES, WARM_UP, SHARD = 20, 5, 250


@dataclass
class Row:
    """One file with one set of options."""

    name: str
    content: bytes
    options: Mapping[str, str]
    pairs: int = 0
    way: str = ""
    session: Any = None
    answers: npt.NDArray[np.float32] | None = None


def rows(canonical: bytes, images: data.ImageSet, prepare: Any) -> list[Row]:
    """All ways; the first is the float model."""
    table = observe(canonical, images, prepare=prepare)
    graph, profile = Graph(canonical), profiles.PROFILES["x86-vnni"]
    given = encode.activations(graph, table.ranges, profile)
    feed = {graph.inputs[0]: prepare.apply(images.images)}
    threads = environment.cores()
    part = images.take(quantize.held_out(len(images))[0])

    def nearest(**options: Any) -> Layers:
        return reconstruct.nearest(graph, given, **options)

    def fitted(on: Graph, encodings: Mapping[str, Encoding], bound: bool) -> Layers:
        return reconstruct.fitted(on, encodings, dict(feed), pair_bound=bound, threads=threads)

    changed, _ = equalize.equalize(canonical, table.statistics)
    even = Graph(changed)
    even_table = observe(changed, images, prepare=prepare)
    even_given = encode.activations(even, even_table.ranges, profile)
    means = {"statistics": table.statistics}
    plain = file("8 bit", graph, given, nearest(pair_bound=False))
    bound = {"pair_bound": True}
    best = quantize.quantize(
        canonical,
        table,
        profile=profiles.PROFILES["x86-avx2"],
        samples=quantize.CalibrationSamples.of(
            dict(feed),
            lambda other, fitting: observe(other, part if fitting else images, prepare=prepare),
        ),
    )
    written = onnx_integers.quantize(
        onnx_convert.from_tflite(best.graph), best.stored, Graph(best.graph)
    )
    auto = Row("edgekit", written.SerializeToString(), {}, way=best.way)
    return [
        Row("float32", onnx_convert.from_tflite(canonical).SerializeToString(), {}),
        plain,
        Row("8 bit, precise kernels", plain.content, {PRECISE: "1"}, plain.pairs),
        Row("8 bit, U8U8", unsigned(plain.content), {}),
        file("7 bit", graph, given, nearest(pair_bound=False, bits=7)),
        file("7 bit, bias", graph, given, nearest(pair_bound=False, bits=7, **means)),
        file("8 bit, bias", graph, given, nearest(pair_bound=False, **means)),
        file("pair-sum", graph, given, nearest(**bound)),
        file("pair-sum, bias", graph, given, nearest(**bound, **means)),
        file("pair-sum, fitted", graph, given, fitted(graph, given, True)),
        file(
            "pair-sum, equalized, bias",
            even,
            even_given,
            reconstruct.nearest(even, even_given, **bound, statistics=even_table.statistics),
        ),
        file("pair-sum, equalized, fitted", even, even_given, fitted(even, even_given, True)),
        auto,
    ]


def file(name: str, graph: Graph, given: Mapping[str, Encoding], layers: Layers) -> Row:
    """An ONNX file of these numbers."""
    changed = Graph(graph.serialize())
    for layer in changed.layers:
        reconstruct.put(changed, layer, layers[layer.output])
    model = onnx_convert.from_tflite(changed.serialize())
    written = onnx_integers.quantize(model, reconstruct.stored(given, layers), changed)
    pairs = sum(found.pairs for found in quantize.predictions(graph, layers))
    return Row(name, written.SerializeToString(), {}, pairs)


def unsigned(content: bytes) -> bytes:
    """The same weights as uint8 with zero_point 128: those kernels widen before they multiply."""
    import onnx as library

    model = library.load_from_string(content)
    for tensor in model.graph.initializer:
        name = tensor.name.removesuffix("_zero_point")
        if name.startswith("weights_") and not name.endswith("_scale"):
            values = library.numpy_helper.to_array(tensor).astype(np.int16) + 128
            tensor.CopyFrom(library.numpy_helper.from_array(values.astype(np.uint8), tensor.name))
    return model.SerializeToString()


def measure(found: list[Row], test: data.ImageSet, prepare: Any, rounds: int) -> list[Any]:
    """Answers, then interleaved latency, ``[rows][rounds][samples]`` in ms."""
    for row in found:
        row.session = onnx.session(row.content, threads=1, options=row.options)
        name = row.session.get_inputs()[0].name
        row.answers = np.concatenate(
            [
                row.session.run(None, {name: prepare.apply(test.images[i : i + SHARD])})[0]
                for i in range(0, len(test), SHARD)
            ]
        )
    image = prepare.apply(test.images[:1])
    samples: list[Any] = [[] for _ in found]
    for _ in range(rounds):
        for row, taken in zip(found, samples, strict=True):
            feed, one = {row.session.get_inputs()[0].name: image}, []
            for number in range(WARM_UP + SAMPLES):
                started = time.perf_counter_ns()
                row.session.run(None, feed)
                if number >= WARM_UP:
                    one.append((time.perf_counter_ns() - started) / 1e6)
            taken.append(one)
    return samples


def act(options: argparse.Namespace) -> cli.Outcome:
    """Make, measure, print."""
    machine = environment.describe()
    if options.paper_net:
        return act_paper_net(options, machine)
    source = float_model.load(options.model, preprocessing=options.preprocessing)
    model = source.model
    if options.hard_case:
        from hard_case import build

        model = build(model)
    prepare, test = source.preprocessing, data.load(options.data, "test").head(options.limit)
    images = data.load(options.calibration, "calibration")
    found = rows(convert.from_keras(model), images, prepare)
    samples = np.array(measure(found, test, prepare, options.rounds))
    assert test.labels is not None and found[0].answers is not None
    base = found[0].answers.argmax(axis=1)
    name = f"{source.model_id}{', hard case' if options.hard_case else ''}"
    table = Table(title=f"{name}: onnxruntime, {len(test):,} images")
    table.add_column("weights", no_wrap=True)
    for column in ("pairs", "top-1 %", "p", "same %", "ms", "x"):
        table.add_column(column, justify="right", no_wrap=True)
    document = []
    for row, taken in zip(found, samples, strict=True):
        assert row.answers is not None
        choice = row.answers.argmax(axis=1)
        right = choice == test.labels
        results: dict[str, Measurement] = {
            "top1": stats.proportion(int(right.sum()), len(test)),
            "p": stats.mcnemar(base == test.labels, right),
            "same": stats.proportion(int((choice == base).sum()), len(test)),
            "ratio": stats.latency_ratio(taken, samples[0]),
        }
        p50 = float(np.median(taken))
        ratio = results["ratio"]
        table.add_row(
            row.name,
            str(row.pairs),
            f"{results['top1'].value:.2f}",
            f"{results['p'].value:.3f}",
            f"{results['same'].value:.2f}",
            f"{p50:.3f}",
            f"{ratio.value:.2f}",
        )
        document.append({"weights": row.name, "pairs": row.pairs, "p50_ms": p50, **results})
    cli.console.print(table)
    cli.console.print(f"edgekit chose: {found[-1].way}")
    cli.console.print(
        f"[dim]pairs: of weights that can saturate; p: McNemar against float32; same: % answers of "
        f"float32; x: time against float32[/]\n{escape(machine.machine_class)}, "
        f"1 thread, {options.rounds} rounds of {SAMPLES} runs"
    )
    return 0, {"model": name, "machine": machine.machine_class, "rows": document}


def act_paper_net(options: argparse.Namespace, machine: Environment) -> cli.Outcome:
    """Latency of the paper's network, float32 against the int8 file that edgekit writes."""
    from edgekit.models.mobilenet_v2 import mobilenet_v2

    model, rng = mobilenet_v2(), np.random.default_rng(0)
    for layer in model.layers:
        if type(layer).__name__ == "BatchNormalization":
            gamma, *_ = layer.get_weights()
            size = gamma.shape
            normal = rng.normal(0, 0.3, size), rng.normal(0, 0.1, size)
            layer.set_weights([rng.uniform(0.5, 1.5, size), *normal, rng.uniform(0.5, 1.5, size)])
    coarse = (rng.random((32, 14, 14, 3)) * 255).astype(np.uint8)
    images = data.images.make("random", coarse.repeat(16, axis=1).repeat(16, axis=2), None)
    prepare = signature.preprocessing("symmetric")
    canonical = convert.from_keras(model)
    table = observe(canonical, images, prepare=prepare)
    graph, profile = Graph(canonical), profiles.PROFILES["x86-avx2"]
    given = encode.activations(graph, table.ranges, profile)
    eight = file("8 bit", graph, given, reconstruct.nearest(graph, given, pair_bound=False))
    found = [
        Row("float32", onnx_convert.from_tflite(canonical).SerializeToString(), {}),
        eight,
        Row("8 bit, precise kernels", eight.content, {PRECISE: "1"}, eight.pairs),
        file("pair-sum", graph, given, reconstruct.nearest(graph, given, pair_bound=True)),
    ]
    samples = np.array(measure(found, images.head(2), prepare, options.rounds))
    document = []
    for row, taken in zip(found, samples, strict=True):
        ratio, p50 = stats.latency_ratio(taken, samples[0]), float(np.median(taken))
        cli.console.print(
            f"{row.name:24} {p50:7.3f} ms  {ratio.value:.2f} ({ratio.low:.2f}-{ratio.high:.2f}) "
            f"of float32"
        )
        document.append({"weights": row.name, "pairs": row.pairs, "p50_ms": p50, "ratio": ratio})
    cli.console.print(
        f"{escape(machine.machine_class)}, 1 thread, {options.rounds} rounds of {SAMPLES} runs"
    )
    return 0, {"model": "MobileNetV2 1.0/224", "machine": machine.machine_class, "rows": document}


def main() -> int:
    """Run on AVX2 kernels."""
    result = cli.Parser(
        "saturation",
        description="int8 on x86 without VNNI: every way out, side by side.",
        examples="python benchmarks/saturation.py --hard-case",
    )
    result.prog = "benchmarks/saturation.py"
    float_model.add_arguments(result)
    result.add_argument("--hard-case", action="store_true", help="make a hard case of the model")
    result.add_argument("--paper-net", action="store_true", help="latency at 1.0/224 only")
    result.add_argument("--data", default="fashion_mnist", help="test images")
    result.add_argument("--calibration", default="fashion_mnist", help="calibration images")
    result.add_argument("--limit", type=words.positive_int, help="test the first N images only")
    result.add_argument("--rounds", type=words.positive_int, default=30, help="latency rounds")
    isa = environment.describe().isa
    if any(flag in isa for flag in environment.VNNI):
        print("this CPU has VNNI; running on AVX2 kernels", file=sys.stderr)
        wrapper = Path(__file__).with_name("as_avx2.py")
        os.execv(sys.executable, [sys.executable, str(wrapper), sys.executable, *sys.argv])
    return cli.run(result, act, sys.argv[1:])


if __name__ == "__main__":
    raise SystemExit(main())
