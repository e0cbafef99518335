"""``python -m edgekit.calibrate``: run a calibration set through the canonical float graph.

One pass over the stream of images collects the statistics of all methods: the extremes of each
tensor, their moving average, a histogram, and the mean and extremes of each channel. The smallest
value behind a ReLU is taken as 0. Memory does not grow with the number of images. The statistics
are cached under the sha256 of the graph, the data, the preprocessing, edgekit's source code and the
versions of packages. So another method, or ``python -m edgekit.export``, does not run the images
again. The verb writes a CalibrationTable for ``python -m edgekit.export --calibration``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from edgekit import data
from edgekit.base import cli, outputs, words
from edgekit.data import feeds
from edgekit.pipeline.calibration import DEFAULT_METHOD, cached, calibrate
from edgekit.quantization.table import METHODS
from edgekit.sources import float_model

__all__ = ["calibrate", "main", "parser"]


def parser() -> cli.Parser:
    """Options of ``python -m edgekit.calibrate``."""
    result = cli.Parser(
        "calibrate",
        description="Run images through the float model; write which values each tensor has.",
        examples="""
python -m edgekit.calibrate  # the shipped model and images
python -m edgekit.calibrate mine.keras --preprocessing unit \\
    --data images.npz --method mse --out table.json
python -m edgekit.calibrate mine.keras --preprocessing symmetric#crop=0.875 \\
    --data folder:photos --samples 500 --seed 1 --out table.json
python -m edgekit.export mine.keras --preprocessing unit --target tflite \\
    --precision int8 --calibration table.json
""",
    )
    float_model.add_arguments(result)
    float_model.add_shape(result)
    float_model.add_layout(result)
    float_model.add_trust(result)
    add = result.add_argument
    add("--data", metavar="IMAGES", help=f"{data.WORDS} (default of the shipped model: the first)")
    add("--limit", type=words.positive_int, help="use the first N images only")
    add("--samples", type=words.positive_int, help="draw N images, evenly over the classes")
    add("--seed", type=int, help="seed of --samples (default: 0)")
    add(
        "--method",
        choices=METHODS,
        default=DEFAULT_METHOD,
        help=f"how a tensor's range is taken from its values (default: {DEFAULT_METHOD})",
    )
    add(
        "--out",
        type=Path,
        metavar="TABLE.json",
        help="table to write (default: calibration/MODEL_ID-DATA.json)",
    )
    add("--force", action="store_true", help="replace TABLE.json if it exists")
    return result


def _act(options: argparse.Namespace) -> cli.Outcome:
    out: Path | None = options.out
    if out is not None:
        outputs.check_free(out, force=options.force)
    data_word = float_model.data_word(options.data, options.model)
    word = words.join(data_word, samples=options.samples, seed=options.seed)
    opened = feeds.open_word(word, "calibration", progress=cli.reporter)
    source = float_model.load(
        options.model,
        preprocessing=options.preprocessing,
        trust=options.trust,
        shapes=float_model.shapes_of(options.shape),
        layout=options.layout,
    )
    source.refuse_integers("calibrate")
    place = data.path_of(word)
    stem = "data" if place is None else place.resolve().stem
    stem = "fashion_mnist" if data_word == "fashion_mnist" else stem
    out = out or Path("calibration") / f"{source.model_id}-{stem}.json"
    outputs.check_free(out, force=options.force)
    table = cached(
        source.canonical(),
        source.samples(opened, options.limit),
        prepare=source.preprocessing,
        method=options.method,
        word=word,
        progress=cli.reporter,
    )
    outputs.write_text(out, table.dumps(), force=options.force)
    cli.say(f"{len(table.ranges)} tensors from {table.count} samples: {out}")
    return 0, {
        "table": str(out),
        "graph_sha256": table.graph_sha256,
        "data": table.data,
        "data_sha256": table.data_sha256,
        "count": table.count,
        "method": table.method,
        "tensors": len(table.ranges),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the verb."""
    return cli.run(parser(), _act, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
