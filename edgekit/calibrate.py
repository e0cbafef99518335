"""``python -m edgekit.calibrate``: run a calibration set through the canonical float graph.

One pass, image by image; of each tensor only its extremes are kept, so that memory does not grow
with the number of images. Writes a CalibrationTable for ``python -m edgekit.export --calibration``.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from edgekit import cli, data, outputs
from edgekit.errors import InvalidDataError
from edgekit.formats import float_model, tflite
from edgekit.quant.table import CalibrationTable, Range
from edgekit.signature import Preprocessing


def calibrate(
    canonical: bytes, images: data.ImageSet, *, prepare: Preprocessing
) -> CalibrationTable:
    """Find the range of every activation of a canonical float graph.

    Args:
        canonical: Float flatbuffer with one input.
        images: The calibration set; labels are not used.
        prepare: From pixels to model input.

    Raises:
        InvalidDataError: If the images do not fit the input, or a tensor becomes NaN or infinite.
    """
    opened = tflite.interpreter(canonical, threads=1, experimental_preserve_all_tensors=True)
    spec = tflite.signature(canonical).single_input()
    if images.images.shape[1:] != spec.shape[1:]:
        raise InvalidDataError(
            f"{images.name}: expected images {list(spec.shape[1:])} as the model's input, "
            f"got {list(images.images.shape[1:])}"
        )
    tensors = tflite.activations(opened)
    lows = np.full(len(tensors), np.inf, np.float64)
    highs = np.full(len(tensors), -np.inf, np.float64)
    entry = opened.get_input_details()[0]["index"]
    with cli.progress() as bar:
        for number in bar.track(range(len(images)), description="calibrating"):
            opened.set_tensor(entry, prepare.apply(images.images[number : number + 1]))
            opened.invoke()
            for i, tensor in enumerate(tensors):
                values = opened.get_tensor(tensor.index)
                low, high = values.min(), values.max()
                if not (np.isfinite(low) and np.isfinite(high)):
                    raise InvalidDataError(
                        f"{images.name}: image {number} makes {tensor.name} NaN or infinite; "
                        f"check the model and the preprocessing"
                    )
                lows[i] = min(lows[i], low)
                highs[i] = max(highs[i], high)
    return CalibrationTable(
        graph_sha256=hashlib.sha256(canonical).hexdigest(),
        data=images.name,
        data_sha256=images.sha256,
        count=len(images),
        preprocessing=prepare,
        method="minmax",
        ranges={
            tensor.name: Range(float(low), float(high))
            for tensor, low, high in zip(tensors, lows, highs, strict=True)
        },
    )


def parser() -> cli.Parser:
    """Options of ``python -m edgekit.calibrate``."""
    result = cli.Parser(
        "calibrate",
        description="Run a calibration set through the float model; write each tensor's range.",
        examples="""
python -m edgekit.calibrate --out table.json                       # the shipped model and set
python -m edgekit.calibrate mine.keras --preprocessing unit --data images.npz --out table.json
python -m edgekit.export mine.keras --preprocessing unit --target tflite --precision int8 \\
    --calibration table.json
""",
    )
    float_model.add_arguments(result)
    add = result.add_argument
    add("--data", default="fashion_mnist", help="fashion_mnist or FILE.npz with x")
    add("--limit", type=cli.positive_int, help="use the first N images only")
    add("--out", type=Path, required=True, help="JSON file to write")
    add("--force", action="store_true", help="replace OUT if it exists")
    return result


def _act(options: argparse.Namespace) -> cli.Outcome:
    outputs.check_free(options.out, force=options.force)
    source = float_model.load(options.model, preprocessing=options.preprocessing)
    images = data.load(options.data, "calibration").head(options.limit)
    table = calibrate(tflite.from_keras(source.model), images, prepare=source.preprocessing)
    outputs.write_text(options.out, table.dumps(), force=options.force)
    cli.console.print(f"{len(table.ranges)} tensors from {table.count} images: {options.out}")
    return 0, {
        "table": str(options.out),
        "graph_sha256": table.graph_sha256,
        "data_sha256": table.data_sha256,
        "count": table.count,
        "tensors": len(table.ranges),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the verb."""
    return cli.run(parser(), _act, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
