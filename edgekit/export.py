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
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit import artifact, cli, data, outputs
from edgekit.artifact import Artifact, CalibrationRecord
from edgekit.calibrate import observe
from edgekit.errors import (
    ExecutionError,
    InvalidDataError,
    InvalidModelError,
    InvalidOptionError,
)
from edgekit.formats import float_model, keras, onnx, tflite
from edgekit.formats.float_model import FloatModel
from edgekit.quant import encodings
from edgekit.quant.table import CalibrationTable
from edgekit.signature import Signature

TARGETS = ("tflite", "onnx")
#: What is exported when no model is named.
DEFAULT_MODEL = float_model.SHIPPED
#: Largest difference from the float answers, as a part of their largest value.
_TOLERANCE = {"float32": 1e-3, "float16": 5e-2}
_CHECKED_IMAGES = 4


@dataclass(frozen=True)
class _Written:
    """A model file's content, its signature and what to say about it."""

    content: bytes
    signature: Signature
    canonical: bytes
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
    if out is not None:
        outputs.check_free(out, force=force)
    images = _read_calibration(calibration) if calibration is not None else None
    source = float_model.load(model, preprocessing=preprocessing)
    if precision == "int8" and images is None:
        if model is not None and model.resolve() != DEFAULT_MODEL:
            raise InvalidOptionError(
                "int8 of your own model needs --calibration: fashion_mnist, a FILE.npz with x, "
                "or a TABLE.json of `python -m edgekit.calibrate`"
            )
        images = _read_calibration("fashion_mnist")
    out = out or Path("exports") / f"{source.model_id}-{target}-{precision}"
    outputs.check_free(out, force=force)
    written = _make(source, target, precision, images)
    difference = _check_answers(written, source, target, precision)
    notes = (
        *written.notes,
        f"answers to {_CHECKED_IMAGES} random images differ from float32 by {difference:.2g} "
        f"at most",
    )
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
            "notes": notes,
        },
        force=force,
    )


def _read_calibration(word: str) -> data.ImageSet | CalibrationTable:
    """Images, or the table that ``python -m edgekit.calibrate`` made from them."""
    if word.endswith(".json"):
        return CalibrationTable.load(Path(word))
    return data.load(word, "calibration")


def _make(
    source: FloatModel,
    target: str,
    precision: str,
    calibration: data.ImageSet | CalibrationTable | None,
) -> _Written:
    canonical = tflite.from_keras(source.model)
    if precision == "int8":
        assert calibration is not None  # export() has seen to it
        return _make_int8(source, target, canonical, _table(calibration, canonical, source))
    if precision == "float16":
        name, size = tflite.largest_weight(canonical)
        if size > float(np.finfo(np.float16).max):
            raise InvalidModelError(
                f"expected weights that float16 can hold, up to 65504, got {size:.3g} in {name}; "
                f"export it in float32"
            )
    if target == "tflite":
        half = precision == "float16"
        content = tflite.from_keras(source.model, float16=True) if half else canonical
        return _Written(content, tflite.signature(content), canonical)
    model = onnx.from_tflite(canonical)
    onnx.rename_ends(model, keras.signature(source.model))
    if precision == "float16":
        model = onnx.to_float16(model)
    return _Written(model.SerializeToString(), onnx.signature(model), canonical)


def _make_int8(
    source: FloatModel, target: str, canonical: bytes, table: CalibrationTable
) -> _Written:
    quantized = tflite.quantize(
        canonical, {name: (found.min, found.max) for name, found in table.ranges.items()}
    )
    found = encodings.read_tflite(quantized, table.graph_sha256)
    if target == "tflite":
        floats = tflite.float_operators(quantized)
        if floats:
            raise InvalidModelError(
                f"expected operators that have an int8 form in TFLite, got {', '.join(floats)}; "
                f"replace them, or export --target onnx, where they can stay float"
            )
        return _Written(quantized, tflite.signature(quantized), canonical, found, table)
    model, floats = onnx.quantize(onnx.from_tflite(canonical), found.activations())
    onnx.rename_ends(model, keras.signature(source.model))
    notes = [
        "uint8 activations with int8 weights: on x86 without VNNI onnxruntime's kernels add pairs "
        "of products in saturating 16 bits; there set session.x64quantprecision=1, slower but exact"
    ]
    if floats:
        notes.append(f"operators that stay float: {', '.join(floats)}")
    return _Written(
        model.SerializeToString(), onnx.signature(model), canonical, found, table, tuple(notes)
    )


def _table(
    found: data.ImageSet | CalibrationTable, canonical: bytes, source: FloatModel
) -> CalibrationTable:
    if isinstance(found, data.ImageSet):
        return observe(canonical, found, prepare=source.preprocessing)
    table, graph = found, hashlib.sha256(canonical).hexdigest()
    if table.graph_sha256 != graph:
        raise InvalidDataError(
            f"the calibration table was made from another graph (sha256 "
            f"{table.graph_sha256[:12]}…, this model has {graph[:12]}…); calibrate this model"
        )
    if table.preprocessing != source.preprocessing:
        raise InvalidDataError(
            f"the calibration table was made with preprocessing {table.preprocessing.name!r}, "
            f"this model has {source.preprocessing.name!r}; calibrate again"
        )
    return table


def _check_answers(written: _Written, source: FloatModel, target: str, precision: str) -> float:
    """Run what will be written, on fixed random images, beside the canonical float graph.

    Returns:
        The largest difference between their answers.

    Raises:
        ExecutionError: If an answer is NaN or infinite, or differs by more than the precision
            explains. How much int8 may differ is for ``compare`` and ``gate`` to judge.
    """
    spec = written.signature.single_input()
    pixels = np.random.default_rng(0).integers(
        0, 256, (_CHECKED_IMAGES, *spec.shape[1:]), dtype=np.uint8
    )
    values = source.preprocessing.apply(pixels)
    expected = _answers_tflite(written.canonical, values)
    feed = spec.quantize(values)
    if target == "tflite":
        answers = _answers_tflite(written.content, feed)
    else:
        run = onnx.session(written.content).run
        each = [feed] if spec.shape[0] == -1 else [feed[i : i + 1] for i in range(len(feed))]
        answers = np.concatenate([run(None, {spec.name: images})[0] for images in each])
    found = written.signature.outputs[0].dequantize(answers)
    if not np.isfinite(found).all():
        raise ExecutionError(
            f"the {target} {precision} model of {source.model_id} answers NaN or infinity; "
            f"export it in float32"
        )
    difference = float(np.abs(found - expected).max(initial=0))
    allowed = _TOLERANCE.get(precision, np.inf) * max(1e-6, float(np.abs(expected).max(initial=0)))
    if difference > allowed:
        raise ExecutionError(
            f"the {target} {precision} model of {source.model_id} differs from the float model by "
            f"{difference:.3g}, expected {allowed:.3g} at most; please report the model"
        )
    return difference


def _answers_tflite(content: bytes, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    opened = tflite.interpreter(content)
    entry = opened.get_input_details()[0]["index"]
    end = opened.get_output_details()[0]["index"]
    answers = []
    for i in range(len(values)):
        opened.set_tensor(entry, values[i : i + 1])
        opened.invoke()
        answers.append(opened.get_tensor(end))
    return np.concatenate(answers)


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
        cli.console.print(f"note: {note}", soft_wrap=True)
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
