"""``python -m edgekit.calibrate``: run a calibration set through the canonical float graph.

One pass, image by image; of each tensor only its extremes are kept, so that memory does not grow
with the number of images. Writes a CalibrationTable for ``python -m edgekit.export --calibration``.
"""

from __future__ import annotations

import argparse
import hashlib
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgekit import cli, data, environment, outputs
from edgekit.errors import InvalidDataError
from edgekit.formats import float_model, tflite
from edgekit.formats.float_model import FloatModel
from edgekit.quant.table import CalibrationTable, Range
from edgekit.signature import Preprocessing


def calibrate(
    model: Path | None = None,
    *,
    images: str = "fashion_mnist",
    preprocessing: str | None = None,
    limit: int | None = None,
) -> CalibrationTable:
    """Find the range of every activation of a float model.

    Args:
        model: A Keras artifact or ``.keras`` file; default the shipped model.
        images: ``fashion_mnist`` or an ``.npz`` with ``x``; labels are not used.
        preprocessing: For a ``.keras`` file: name or JSON file.
        limit: Use the first images only.

    Raises:
        InvalidModelError: If the model cannot be read or converted.
        InvalidDataError: If the images do not fit the model.
    """
    source = float_model.load(model, preprocessing=preprocessing)
    return _calibrate(source, data.load(images, "calibration").head(limit))


def observe(canonical: bytes, images: data.ImageSet, *, prepare: Preprocessing) -> CalibrationTable:
    """Run images through a canonical float graph and keep each tensor's extremes.

    Image by image, and no value is copied out of the runtime: memory beyond the images themselves
    does not depend on their number.

    Args:
        canonical: Float flatbuffer with one input of batch 1.
        images: The calibration set.
        prepare: From pixels to model input.

    Raises:
        InvalidDataError: If the images do not fit the input, or a tensor becomes NaN or infinite.
    """
    opened = tflite.interpreter(
        canonical, threads=environment.cores(), experimental_preserve_all_tensors=True
    )
    spec = tflite.signature_of(opened).single_input()
    if images.images.shape[1:] != spec.shape[1:]:
        raise InvalidDataError(
            f"{images.name}: expected images {list(spec.shape[1:])} as the model's input, "
            f"got {list(images.images.shape[1:])}"
        )
    tensors = tflite.activations(opened)
    extremes = _MinMax(len(tensors))
    entry = opened.get_input_details()[0]["index"]
    with cli.progress() as bar:
        task = bar.add_task("calibrating", total=len(images), note="")
        for number in range(len(images)):
            opened.set_tensor(entry, prepare.apply(images.images[number : number + 1]))
            opened.invoke()
            for i, tensor in enumerate(tensors):
                if not extremes.add(i, opened.tensor(tensor.index)()):
                    raise InvalidDataError(
                        f"{images.name}: image {number} makes {tensor.name} NaN or infinite; "
                        f"check the model and the preprocessing"
                    )
            bar.advance(task)
    return CalibrationTable(
        graph_sha256=hashlib.sha256(canonical).hexdigest(),
        data=images.name,
        data_sha256=images.sha256,
        count=len(images),
        preprocessing=prepare,
        method=extremes.method,
        ranges={tensor.name: extremes.range(i) for i, tensor in enumerate(tensors)},
    )


class _MinMax:
    """Range of a tensor: the smallest and largest value over all images."""

    method = "minmax"

    def __init__(self, tensors: int) -> None:
        self._low = np.full(tensors, np.inf, np.float64)
        self._high = np.full(tensors, -np.inf, np.float64)

    def add(self, tensor: int, values: npt.NDArray[np.float32]) -> bool:
        """Take one image's values in; False when one of them is NaN or infinite."""
        low, high = float(values.min()), float(values.max())
        self._low[tensor] = min(self._low[tensor], low)
        self._high[tensor] = max(self._high[tensor], high)
        return math.isfinite(low) and math.isfinite(high)

    def range(self, tensor: int) -> Range:
        return Range(float(self._low[tensor]), float(self._high[tensor]))


def _calibrate(source: FloatModel, images: data.ImageSet) -> CalibrationTable:
    return observe(tflite.from_keras(source.model), images, prepare=source.preprocessing)


def parser() -> cli.Parser:
    """Options of ``python -m edgekit.calibrate``."""
    result = cli.Parser(
        "calibrate",
        description="Run a calibration set through the float model; write each tensor's range.",
        examples="""
python -m edgekit.calibrate                                  # the shipped model and images
python -m edgekit.calibrate mine.keras --preprocessing unit --data images.npz --out table.json
python -m edgekit.export mine.keras --preprocessing unit --target tflite --precision int8 \\
    --calibration table.json
""",
    )
    float_model.add_arguments(result)
    add = result.add_argument
    add("--data", default="fashion_mnist", help="fashion_mnist or FILE.npz with x")
    add("--limit", type=cli.positive_int, help="use the first N images only")
    add("--out", type=Path, help="JSON file (default: calibration/MODEL_ID-DATA.json)")
    add("--force", action="store_true", help="replace OUT if it exists")
    return result


def _act(options: argparse.Namespace) -> cli.Outcome:
    out: Path | None = options.out
    if out is not None:
        outputs.check_free(out, force=options.force)
    source = float_model.load(options.model, preprocessing=options.preprocessing)
    out = out or Path("calibration") / f"{source.model_id}-{Path(options.data).stem}.json"
    outputs.check_free(out, force=options.force)
    table = _calibrate(source, data.load(options.data, "calibration").head(options.limit))
    outputs.write_text(out, table.dumps(), force=options.force)
    cli.console.print(f"{len(table.ranges)} tensors from {table.count} images: {out}")
    return 0, {
        "table": str(out),
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
