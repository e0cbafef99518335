"""``python -m edgekit.export``: turn a float model into a TFLite or ONNX artifact.

All targets come from one canonical float graph, the float TFLite flatbuffer, so that tensor names
and folded weights are the same everywhere. int8 is full integer: in TFLite inputs and outputs too,
in ONNX as QuantizeLinear/DequantizeLinear pairs with float32 ends, both with the same encodings.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgekit import artifact, cli, data, outputs
from edgekit.artifact import Artifact, CalibrationRecord
from edgekit.calibrate import calibrate
from edgekit.errors import ExecutionError, InvalidDataError, InvalidOptionError
from edgekit.formats import float_model, keras, onnx, tflite
from edgekit.formats.float_model import FloatModel
from edgekit.quant import encodings
from edgekit.quant.table import CalibrationTable
from edgekit.signature import Signature

TARGETS = ("tflite", "onnx")


@dataclass(frozen=True)
class _Written:
    """A model file's content, its signature and what to say about it."""

    content: bytes
    signature: Signature
    encodings: encodings.Encodings | None = None
    table: CalibrationTable | None = None
    notes: tuple[str, ...] = ()


def export(
    model: Path | None = None,
    *,
    target: str,
    precision: str,
    calibration: str | None = None,
    preprocessing: str | None = None,
    out: Path | None = None,
    force: bool = False,
    command: str = "",
) -> Artifact:
    """Write one deployable of a float model.

    Args:
        model: A Keras artifact or ``.keras`` file; default the shipped model.
        target: ``tflite`` or ``onnx``.
        precision: ``float32``, ``float16`` or ``int8``.
        calibration: For int8: ``fashion_mnist``, an ``.npz`` with ``x``, or a table of
            ``python -m edgekit.calibrate``. Default for the shipped model: ``fashion_mnist``.
        preprocessing: For a ``.keras`` file: name or JSON file.
        out: Folder; default ``exports/MODEL_ID-TARGET-PRECISION``.
        force: Replace ``out`` if it exists.
        command: Recorded in the manifest.

    Raises:
        EdgekitError: On a bad option, model or calibration set; nothing is written then.
    """
    if target not in TARGETS:
        raise InvalidOptionError(f"expected target {' or '.join(TARGETS)}, got {target!r}")
    if precision not in artifact.PRECISIONS:
        raise InvalidOptionError(
            f"expected precision {', '.join(artifact.PRECISIONS)}, got {precision!r}"
        )
    if calibration is not None and precision != "int8":
        raise InvalidOptionError(f"--calibration is for int8; {precision} has no ranges")
    if calibration is None and precision == "int8" and model not in (None, float_model.SHIPPED):
        if not _is_shipped(model):
            raise InvalidOptionError(
                "int8 needs --calibration: FILE.npz with x, or a table of `edgekit calibrate`"
            )
    if out is not None:
        outputs.check_free(out, force=force)
    source = float_model.load(model, preprocessing=preprocessing)
    out = out or Path("exports") / f"{source.model_id}-{target}-{precision}"
    outputs.check_free(out, force=force)
    written = _make(source, target, precision, calibration or "fashion_mnist")
    _check_answers(written, source, target)
    model_file = f"model.{target}"
    files: dict[str, bytes | Path] = {model_file: written.content}
    if written.encodings is not None:
        files["encodings.json"] = written.encodings.dumps().encode()
    table = written.table
    return artifact.write(
        out,
        files,
        {
            "model_id": source.model_id,
            "format": target,
            "precision": precision,
            "model_file": model_file,
            "signature": written.signature,
            "preprocessing": source.preprocessing,
            "class_names": source.class_names,
            "source": source.source,
            "calibration": None
            if table is None
            else CalibrationRecord(table.data, table.data_sha256, table.count, table.method),
            "command": command,
            "notes": written.notes,
        },
        force=force,
    )


def _is_shipped(model: Path | None) -> bool:
    return model is None or model.resolve() == float_model.SHIPPED


def _make(source: FloatModel, target: str, precision: str, calibration: str) -> _Written:
    names = keras.signature(source.model)
    if target == "tflite" and precision == "float16":
        half = tflite.from_keras(source.model, float16=True)
        return _Written(half, tflite.signature(half))
    canonical = tflite.from_keras(source.model)
    if precision != "int8":
        if target == "tflite":
            return _Written(canonical, tflite.signature(canonical))
        model = onnx.from_tflite(canonical)
        onnx.rename_ends(model, names)
        if precision == "float16":
            model = onnx.to_float16(model)
        return _Written(model.SerializeToString(), onnx.signature(model))
    table = _table(calibration, canonical, source)
    quantized = tflite.quantize(
        canonical, {name: (found.min, found.max) for name, found in table.ranges.items()}
    )
    found = encodings.read_tflite(quantized, table.graph_sha256)
    if target == "tflite":
        return _Written(quantized, tflite.signature(quantized), found, table)
    model = onnx.quantize(onnx.from_tflite(canonical), found)
    onnx.rename_ends(model, names)
    note = (
        "uint8 activations with int8 weights: on x86 without VNNI the kernels of onnxruntime add "
        "pairs of products in 16 bits and can saturate"
    )
    return _Written(model.SerializeToString(), onnx.signature(model), found, table, (note,))


def _table(calibration: str, canonical: bytes, source: FloatModel) -> CalibrationTable:
    if not calibration.endswith(".json"):
        images = data.load(calibration, "calibration")
        return calibrate(canonical, images, prepare=source.preprocessing)
    table = CalibrationTable.load(Path(calibration))
    graph = hashlib.sha256(canonical).hexdigest()
    if table.graph_sha256 != graph:
        raise InvalidDataError(
            f"{calibration} was made from another graph (sha256 {table.graph_sha256[:12]}…, this "
            f"model has {graph[:12]}…); calibrate this model"
        )
    return table


def _check_answers(written: _Written, source: FloatModel, target: str) -> None:
    """Run what will be written once, on a fixed random input; its answer has to be finite."""
    spec = written.signature.single_input()
    shape = (1, *spec.shape[1:])
    values = np.random.default_rng(0).random(shape, np.float32)
    feed = spec.quantize(values)
    if target == "tflite":
        opened = tflite.interpreter(written.content)
        opened.set_tensor(opened.get_input_details()[0]["index"], feed)
        opened.invoke()
        answer = opened.get_tensor(opened.get_output_details()[0]["index"])
    else:
        answer = onnx.session(written.content).run(None, {spec.name: feed})[0]
    real = written.signature.outputs[0].dequantize(answer)
    if not np.isfinite(real).all():
        raise ExecutionError(f"the exported {target} model of {source.model_id} answers NaN or Inf")


def parser() -> cli.Parser:
    """Options of ``python -m edgekit.export``."""
    result = cli.Parser(
        "export",
        description="Turn a float model into a TFLite or ONNX artifact.",
        examples="""
python -m edgekit.export --target tflite --precision int8      # the shipped model
python -m edgekit.export --target onnx --precision float16 --out build/half
python -m edgekit.export mine.keras --preprocessing symmetric --target tflite --precision int8 \\
    --calibration images.npz --out build/mine
""",
    )
    float_model.add_arguments(result)
    add = result.add_argument
    add("--target", required=True, choices=TARGETS)
    add("--precision", required=True, choices=artifact.PRECISIONS)
    add("--calibration", help="for int8: fashion_mnist, FILE.npz with x, or TABLE.json")
    add("--out", type=Path, help="folder (default: exports/MODEL_ID-TARGET-PRECISION)")
    add("--force", action="store_true", help="replace OUT if it exists")
    return result


def _act(options: argparse.Namespace) -> cli.Outcome:
    written = export(
        options.model,
        target=options.target,
        precision=options.precision,
        calibration=options.calibration,
        preprocessing=options.preprocessing,
        out=options.out,
        force=options.force,
        command=cli.command_line(),
    )
    for note in written.manifest.notes:
        cli.console.print(f"note: {note}")
    cli.console.print(f"{written.model_path}  {written.size:,} bytes")
    return 0, {
        "artifact": str(written.path),
        "model": str(written.model_path),
        "sha256": written.sha256,
        "bytes": written.size,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the verb."""
    return cli.run(parser(), _act, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
