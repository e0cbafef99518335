"""``python -m edgekit.models``: parameters and multiply-adds, counted and published.

The published numbers come from the MobileNetV2 table of the TensorFlow research repository (1,000
classes, multiply-adds cut off to whole millions, parameters without batch normalisation). ``python
-m edgekit.models import-slim`` is described in edgekit.models.slim.

Table 4 of the paper gives 6.9M / 585M for width 1.4. No method of counting this network gives that:
it has 6.06M parameters and 582M multiply-adds with channels made divisible by 8 (562M with channels
cut off, 572M with channels rounded). 6.9M is 3.5M times 1.4 squared. But the classifier, a third of
the network, has one side that does not grow: the 1,000 classes.

Table 6 of the paper gives 4.3M / 0.8B for SSDLite on COCO at 320 x 320: counted here with 81 scores
for each anchor, of 80 classes and a background (with 91, as many as there are category ids, it has
4.50M). Table 7 gives 2.11M / 2.75B for DeepLabV3 at output stride 16 without ASPP, and 4.52M / 5.8B
with it, of 513 x 513 pixels and 21 classes: batch normalisation's scales and offsets are counted
there, and the head without ASPP has a branch of image pooling (1.87M without). With ASPP 5.36B
multiply-adds are counted here; the paper does not say which others it counts.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.table import Table

from edgekit.base import cli

if TYPE_CHECKING:
    from edgekit.models.counts import Counts

#: (width, resolution): (parameters in millions, multiply-adds in millions).
PUBLISHED: dict[tuple[float, int], tuple[float, int]] = {
    (1.4, 224): (6.06, 582),
    (1.3, 224): (5.34, 509),
    (1.0, 224): (3.47, 300),
    (1.0, 192): (3.47, 221),
    (1.0, 160): (3.47, 154),
    (1.0, 128): (3.47, 99),
    (1.0, 96): (3.47, 56),
    (0.75, 224): (2.61, 209),
    (0.75, 192): (2.61, 153),
    (0.75, 160): (2.61, 107),
    (0.75, 128): (2.61, 69),
    (0.75, 96): (2.61, 39),
    (0.5, 224): (1.95, 97),
    (0.5, 192): (1.95, 71),
    (0.5, 160): (1.95, 50),
    (0.5, 128): (1.95, 32),
    (0.5, 96): (1.95, 18),
    (0.35, 224): (1.66, 59),
    (0.35, 192): (1.66, 43),
    (0.35, 160): (1.66, 30),
    (0.35, 128): (1.66, 20),
    (0.35, 96): (1.66, 11),
}


#: Paper's Tables 6 and 7: (network, input size, scores or classes): parameters in millions,
#: multiply-adds in billions. SSDLite at the strides and maps of edgekit's defaults.
PUBLISHED_TASKS: dict[str, tuple[float, float]] = {
    "SSDLite, 320, 81 scores": (4.3, 0.8),
    "DeepLabV3, 513, output stride 16": (2.11, 2.75),
    "DeepLabV3, 513, output stride 16, ASPP": (4.52, 5.8),
}


def parser() -> cli.Parser:
    """Options of ``python -m edgekit.models``."""
    result = cli.Parser(
        "models",
        description="Count parameters and multiply-adds of MobileNetV2, SSDLite and DeepLabV3 "
        "beside the published tables.",
        examples="""
python -m edgekit.models
python -m edgekit.models --width 0.35 --width 1.0
python -m edgekit.models import-slim --help  # a TF-slim checkpoint to Keras
""",
    )
    widths = sorted({width for width, _ in PUBLISHED})
    result.add_argument(
        "--width",
        type=float,
        action="append",
        choices=widths,
        help="count classifiers of this width only; repeatable",
    )
    return result


def _act(options: argparse.Namespace) -> cli.Outcome:
    from edgekit.models.counts import count
    from edgekit.models.mobilenet_v2 import mobilenet_v2

    table = Table(title="MobileNetV2, 1,000 classes")
    for column in ("width", "resolution", "parameters", "published", "MAdds", "published"):
        table.add_column(column, justify="right")
    rows = []
    for (width, resolution), (parameters, multiply_adds) in PUBLISHED.items():
        if options.width and width not in options.width:
            continue
        counts = count(mobilenet_v2(width=width, input_shape=(resolution, resolution, 3)))
        table.add_row(
            f"{width:g}",
            str(resolution),
            f"{counts.parameters / 1e6:.2f}M",
            f"{parameters:.2f}M",
            f"{counts.multiply_adds / 1e6:.1f}M",
            f"{multiply_adds}M",
        )
        rows.append(
            {
                "width": width,
                "resolution": resolution,
                "parameters": counts.parameters,
                "multiply_adds": counts.multiply_adds,
                "published_parameters": parameters,
                "published_multiply_adds": multiply_adds,
            }
        )
    cli.console.print(table)
    result: dict[str, Any] = {"model": "mobilenet_v2", "classes": 1000, "rows": rows}
    if options.width:
        return 0, result
    table = Table(title="on MobileNetV2 of width 1")
    for column in ("network", "parameters", "published", "MAdds", "published"):
        table.add_column(column, justify="left" if column == "network" else "right")
    result["tasks"] = []
    for name, counts in tasks().items():
        published = PUBLISHED_TASKS[name]
        table.add_row(
            name,
            f"{counts.parameters / 1e6:.2f}M",
            f"{published[0]}M",
            f"{counts.multiply_adds / 1e9:.2f}B",
            f"{published[1]}B",
        )
        result["tasks"].append(
            {
                "network": name,
                "parameters": counts.parameters,
                "multiply_adds": counts.multiply_adds,
                "published_parameters": published[0],
                "published_multiply_adds": published[1],
            }
        )
    cli.console.print(table)
    return 0, result


def tasks() -> dict[str, Counts]:
    """The networks of :data:`PUBLISHED_TASKS`, counted with batch normalisation's trained scales
    and offsets, as the paper's Table 7 does.
    """
    from edgekit.models.counts import count
    from edgekit.models.deeplab import Segmenter, deeplab
    from edgekit.models.ssdlite import ssdlite

    detector, _ = ssdlite(classes=81)
    models = (detector, deeplab(), deeplab(segmenter=Segmenter(rates=(6, 12, 18))))
    return {
        name: count(model, normalisation=True)
        for name, model in zip(PUBLISHED_TASKS, models, strict=True)
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the verb, or the one that its first word names."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:1] == ["import-slim"]:
        from edgekit.models import slim

        return slim.main(words[1:])
    return cli.run(parser(), _act, words)


if __name__ == "__main__":
    raise SystemExit(main())
