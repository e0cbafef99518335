"""Where XNNPACK and onnxruntime round differently: every operator on the same integers.

    python benchmarks/kernel_rounding.py TFLITE_ARTIFACT ONNX_ARTIFACT [--images N]

onnxruntime runs the int8 model and gives every tensor's integers; each TFLite operator then runs
alone on those integers (isolated), and the whole TFLite model from the image on (accumulated). Both
are compared with onnxruntime's integers, value by value.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from edgekit import data
from edgekit.graph import onnx, walk
from edgekit.graph.flatbuffer import Graph, short_name
from edgekit.records.artifact import Artifact


def integers(model: Any, graph: Graph, images: Any) -> dict[str, Any]:
    """onnxruntime's integers of every canonical tensor, int8 and NHWC."""
    import onnx as library

    makers = {output: node for node in model.graph.node for output in node.output}
    ends = dict(zip((v.name for v in model.graph.input), graph.inputs, strict=True))
    ends.update(zip((v.name for v in model.graph.output), graph.outputs, strict=True))
    wanted = {}
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear":
            name = node.input[0].removesuffix("_QuantizeLinear_Input")
            maker = makers.get(name)
            if maker is not None and maker.op_type == "Reshape" and maker.input[0] in ends:
                name = maker.input[0]
            wanted[ends.get(name, name)] = node.output[0]
    wanted = {name: place for name, place in wanted.items() if name in graph.tensors}
    for place in wanted.values():
        model.graph.output.append(
            library.helper.make_tensor_value_info(place, library.TensorProto.UINT8, None)
        )
    session = onnx.session(model.SerializeToString(), threads=2)
    found = session.run(list(wanted.values()), {session.get_inputs()[0].name: images})
    result = {}
    for name, values in zip(wanted, found, strict=True):
        signed = (values.astype(np.int16) - 128).astype(np.int8)
        shape = (len(images), *graph.shape(name)[1:])
        if signed.ndim == 4 and signed.shape != shape:
            signed = signed.transpose(0, 2, 3, 1)
        result[name] = np.ascontiguousarray(signed).reshape(shape)
    return result


def main() -> None:
    """Print each kind of operator, then the operators that differ."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("tflite", type=Path, metavar="TFLITE_ARTIFACT")
    options.add_argument("onnx", type=Path, metavar="ONNX_ARTIFACT")
    options.add_argument("--images", type=int, default=500)
    chosen = options.parse_args()
    ours, theirs = Artifact.load(chosen.tflite), Artifact.load(chosen.onnx)
    test = data.load("fashion_mnist", "test").head(chosen.images)
    images = ours.manifest.preprocessing.apply(test.images)
    graph = Graph(ours.model_path.read_bytes())
    expected = integers(onnx.load(theirs.model_path), graph, images)
    running = {graph.inputs[0]: ours.manifest.signature.inputs[0].quantize(images)}
    kinds: dict[str, list[int]] = {}
    rows = []
    for position, operator in enumerate(graph.operators):
        step = walk.Step(graph, position, threads=2)
        (alone,) = step.run(expected)
        (whole,) = step.run(running)
        name = operator.outputs[0]
        running[name] = whole
        apart = np.abs(alone.astype(int) - expected[name])
        accumulated = np.abs(whole.astype(int) - expected[name])
        counts = kinds.setdefault(operator.kind, [0, 0, 0, 0])
        counts[0] += 1
        counts[1] += apart.size
        counts[2] += int((apart > 0).sum())
        counts[3] = max(counts[3], int(apart.max()))
        rows.append((short_name(name), operator.kind, apart, accumulated))
    print(f"{len(images)} images; isolated: each operator on the same integers")
    for kind, (count, size, other, largest) in kinds.items():
        share = 100 * other / size
        print(f"  {count:3} {kind:18} {share:8.4f} % of values differ, by {largest} at most")
    print("accumulated: first operators that differ")
    shown = [row for row in rows if row[3].any()][:5]
    for name, kind, _, accumulated in shown:
        share = 100 * float((accumulated > 0).mean())
        print(f"  {name:36} {kind:18} {share:8.4f} %, by {int(accumulated.max())} at most")
    print(json.dumps({kind: counts for kind, counts in kinds.items()}))


if __name__ == "__main__":
    main()
