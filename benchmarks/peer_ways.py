"""The ways to a model file that benchmarks/peers.py compares; each runs in a fresh process.

A way starts from a folder with float.keras or float.onnx, preprocessing.json and calibration.npz,
is used as its documentation recommends, and returns (seconds, model file). The clock starts after
the imports, before the float model is loaded, and stops when the file is written.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit import data
from edgekit.base import schema
from edgekit.base.errors import EdgekitError, reason
from edgekit.graph import onnx as onnx_file
from edgekit.records import signature
from edgekit.sources import float_model, keras

#: OpenVINO's tools report their use by default; with these they do not.
NO_TELEMETRY = {"NNCF_CI": "1", "CI": "true"}

Made = tuple[float, Path]


def make(way: str, folder: Path) -> dict[str, Any]:
    """Run one way in a fresh process; gives ``seconds`` and ``file``, or ``error``."""
    result = folder / f"{way}.json"
    done = subprocess.run(
        [sys.executable, __file__, way, str(folder)],
        # no way profits from what another has left in a cache
        env=os.environ | NO_TELEMETRY | {"XDG_CACHE_HOME": str(folder / f"{way}-cache")},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    if not result.is_file():
        return {"error": f"its process ended with code {done.returncode}"}
    found: dict[str, Any] = json.loads(result.read_text())
    return found


def prepare(folder: Path) -> Made:
    """The float model, as the folder's settings.json names it, and its preprocessing."""
    settings = json.loads((folder / "settings.json").read_text())
    path = Path(settings["model"]) if settings["model"] else None
    started = time.perf_counter()
    source = float_model.load(path, preprocessing=settings["preprocessing"])
    if path is not None and path.suffix == ".onnx":
        out = folder / "float.onnx"
        shutil.copyfile(path, out)  # some tools change their input
    else:
        model, out = source.model, folder / "float.keras"
        if settings["hard_case"]:
            from hard_case import build

            model = build(model)
        model.save(out)
    (folder / "preprocessing.json").write_text(schema.dumps(source.preprocessing))
    return time.perf_counter() - started, out


def tflite_converter(folder: Path) -> Made:
    """TensorFlow's guide "Post-training integer quantization", integer only."""
    tf = keras.tensorflow()
    if not (folder / "float.keras").is_file():
        raise EdgekitError("TFLiteConverter takes models of TensorFlow only, got an ONNX file")
    started = time.perf_counter()
    images, out = calibration(folder), folder / "converter.tflite"
    writer = tf.lite.TFLiteConverter.from_keras_model(keras.load(folder / "float.keras"))
    writer.optimizations = [tf.lite.Optimize.DEFAULT]
    writer.representative_dataset = lambda: ([image[None]] for image in images)
    writer.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    writer.inference_input_type = writer.inference_output_type = tf.int8
    out.write_bytes(writer.convert())
    return time.perf_counter() - started, out


def ai_edge_quantizer(folder: Path) -> Made:
    """Its README: a float flatbuffer, a recipe, calibrate, quantize. Of an ONNX file, for which it
    names no converter, the flatbuffer is edgekit's, whose making is not in the time."""
    from ai_edge_litert.interpreter import Interpreter
    from ai_edge_quantizer import quantizer, recipe

    tf = keras.tensorflow()
    out = folder / "aeq.tflite"
    if (folder / "float.keras").is_file():
        started, plain = time.perf_counter(), folder / "aeq-float.tflite"
        model = keras.load(folder / "float.keras")
        plain.write_bytes(tf.lite.TFLiteConverter.from_keras_model(model).convert())
    else:
        started, plain = time.perf_counter(), folder / "edgekit-tflite-float32" / "model.tflite"
    writer = quantizer.Quantizer(str(plain), recipe.static_wi8_ai8())
    ((key, ends),) = Interpreter(str(plain)).get_signature_list().items()
    feeds = [{ends["inputs"][0]: image[None]} for image in calibration(folder)]
    out.write_bytes(writer.quantize(writer.calibrate({key: feeds})).quantized_model)
    return time.perf_counter() - started, out


def onnxruntime(folder: Path, *, reduce_range: bool = False) -> Made:
    """Its page "Quantize ONNX models": pre-processing, then QDQ; U8S8 on x86, S8S8 on ARM."""
    import tf2onnx
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    tf = keras.tensorflow()
    started = time.perf_counter()
    plain, prepared = folder / "float.onnx", folder / "ort-prepared.onnx"
    out = folder / ("ort-7-bit.onnx" if reduce_range else "ort.onnx")
    if (folder / "float.keras").is_file():
        plain, model = folder / "ort-float.onnx", keras.load(folder / "float.keras")
        spec = tf.TensorSpec(model.inputs[0].shape, tf.float32, name="image")
        tf2onnx.convert.from_keras(model, input_signature=[spec], output_path=str(plain))
    quant_pre_process(str(plain), str(prepared))
    (first,) = onnx_file.session(prepared).get_inputs()
    images = arranged(calibration(folder), first.shape)
    arm = platform.machine().lower() in ("aarch64", "arm64")
    quantize_static(
        str(prepared),
        str(out),
        _Reader({first.name: image[None]} for image in images),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        reduce_range=reduce_range,
        activation_type=QuantType.QInt8 if arm else QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    return time.perf_counter() - started, out


class _Reader:
    """onnxruntime's CalibrationDataReader over any feeds."""

    def __init__(self, feeds: Any) -> None:
        self._feeds = iter(feeds)

    def get_next(self) -> Any:
        return next(self._feeds, None)


def openvino(folder: Path) -> Made:
    """The guide "Basic quantization flow"; all images count, where the default takes 300."""
    import nncf
    import openvino as ov

    tf = keras.tensorflow()
    started = time.perf_counter()
    saved, out = folder / "saved-model", folder / "openvino.xml"
    if (folder / "float.keras").is_file():
        model = keras.load(folder / "float.keras")
        tf.saved_model.save(model, str(saved))
        plain = ov.convert_model(str(saved), input=[1, *model.input_shape[1:]])
    else:
        plain = ov.convert_model(str(folder / "float.onnx"))
    images = arranged(calibration(folder), list(plain.input().shape))
    dataset = nncf.Dataset(images, lambda image: image[None])
    ov.save_model(nncf.quantize(plain, dataset, subset_size=len(images)), str(out))
    return time.perf_counter() - started, out


def edgekit(folder: Path, *, target: str, precision: str) -> Made:
    """What ``python -m edgekit.export`` does."""
    import ai_edge_quantizer.quantizer  # noqa: F401
    import onnxruntime.quantization  # noqa: F401
    import tf2onnx  # noqa: F401

    from edgekit.export import Options, export

    options = Options(preprocessing=str(folder / "preprocessing.json"))
    if precision == "int8":
        options = replace(options, calibration=str(folder / "calibration.npz"))
        device = json.loads((folder / "settings.json").read_text())["device"]
        if device is not None:
            options = replace(options, device=device)
    started = time.perf_counter()
    keras_file = folder / "float.keras"
    made = export(
        keras_file if keras_file.is_file() else folder / "float.onnx",
        options,
        target=target,
        precision=precision,
        out=folder / f"edgekit-{target}-{precision}",
    )
    return time.perf_counter() - started, made.model_path


def arranged(images: npt.NDArray[np.float32], shape: Sequence[Any]) -> npt.NDArray[np.float32]:
    """Images ``[N, H, W, C]`` with their channels where an input of this shape has them."""
    last = images.shape[-1]
    return np.moveaxis(images, -1, 1) if shape[1] == last != shape[-1] else images


def calibration(folder: Path) -> npt.NDArray[np.float32]:
    """The calibration images ``[N, H, W, C]``, preprocessed."""
    images = data.load(str(folder / "calibration.npz"), "calibration").images
    return signature.preprocessing(str(folder / "preprocessing.json")).apply(images)


WAYS: dict[str, Callable[[Path], Made]] = {
    "prepare": prepare,
    "tflite-converter": tflite_converter,
    "ai-edge-quantizer": ai_edge_quantizer,
    "onnxruntime": onnxruntime,
    "onnxruntime-7-bit": lambda folder: onnxruntime(folder, reduce_range=True),
    "openvino": openvino,
    "edgekit-tflite-float32": lambda folder: edgekit(folder, target="tflite", precision="float32"),
    "edgekit-onnx-float32": lambda folder: edgekit(folder, target="onnx", precision="float32"),
    "edgekit-tflite-int8": lambda folder: edgekit(folder, target="tflite", precision="int8"),
    "edgekit-onnx-int8": lambda folder: edgekit(folder, target="onnx", precision="int8"),
}


def main(way: str, folder: Path) -> None:
    """The child's side of :func:`make`."""
    try:
        keras.tf_keras()
        seconds, file = WAYS[way](folder)
        found = {"seconds": seconds, "file": str(file)}
    except EdgekitError as exc:
        found = {"error": str(exc)}
    except Exception as exc:  # whatever a quantizer raises is its reason
        found = {"error": f"{type(exc).__name__}: {reason(exc)}"}
    (folder / f"{way}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
