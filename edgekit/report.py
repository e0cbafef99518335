"""``python -m edgekit.report``: turn a report into one self-contained HTML page.

The page shows the verdict first. Then come accuracy against latency and size, what was tried to
hold a budget (``export --max-drop``), the layers (``--layers FILE.csv``: a file that ``compare
--layers --csv`` wrote, or one with the columns ``layer``, ``sqnr`` in dB and, for several series,
``mode``), the images with another prediction, all metrics, what ran, the environment, and how to
reproduce the report. Of a detector there are precision over recall of each class and the pictures
with lost and new boxes, of a segmentation network the confusion of pixels and the pictures with
changed pixels. The page has at most 2 MB. It uses no network: its policy forbids every
request. It has a light and a dark form, can be printed, and works without scripts except for
sorting and tooltips.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from edgekit.base import cli, outputs
from edgekit.records.results import Report
from edgekit.reporting.page import read_layers, report

__all__ = ["main", "parser", "report"]


def parser() -> cli.Parser:
    """Options of ``python -m edgekit.report``."""
    result = cli.Parser(
        "report",
        description="Turn a report of `edgekit compare` into one self-contained HTML page.",
        examples="""
python -m edgekit.report report.json --out report.html
python -m edgekit.report report.json --layers layers.csv --out report.html
""",
    )
    result.add_argument(
        "report", type=Path, metavar="REPORT", help="file that `edgekit compare --out` wrote"
    )
    result.add_argument(
        "--out", type=Path, required=True, metavar="FILE.html", help="page to write"
    )
    result.add_argument(
        "--layers",
        type=Path,
        metavar="FILE.csv",
        help="add a chart of the layers: what `edgekit compare --layers --csv` wrote, or a table "
        "with the columns layer and sqnr (dB)",
    )
    result.add_argument("--force", action="store_true", help="replace FILE.html if it exists")
    return result


def _act(options: argparse.Namespace) -> cli.Outcome:
    outputs.check_free(options.out, force=options.force)
    layers = read_layers(options.layers) if options.layers else ()
    page = report(Report.load(options.report), layers=layers)
    outputs.write_text(options.out, page, force=options.force)
    cli.say(f"{options.out}  {len(page.encode()):,} bytes")
    return 0, {"page": str(options.out), "bytes": len(page.encode())}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the verb."""
    return cli.run(parser(), _act, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
