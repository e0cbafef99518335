"""``python -m edgekit.parity``: do a TFLite and an ONNX int8 file hold the same numbers?

The verb reads both files and compares every scale, zero_point, weight and bias, tensor by tensor,
by the names of the canonical graph. Exit status 1 means that a number differs. It takes artifacts,
and files of any maker if their tensors have the same names. ``python -m edgekit.compare --parity``
shows how the outputs differ, since each runtime rounds in its own way.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from edgekit.base import cli
from edgekit.evaluation.parity import numbers
from edgekit.graph.flatbuffer import short_name
from edgekit.records.signature import preprocessing
from edgekit.runtimes import model_file

__all__ = ["main", "numbers", "parser"]

_SHOWN = 20


def parser() -> cli.Parser:
    """Options of ``python -m edgekit.parity``."""
    result = cli.Parser(
        "parity",
        description="Prove that a TFLite and an ONNX int8 file hold the same numbers.",
        examples="""
python -m edgekit.parity exports/mine-tflite-int8 exports/mine-onnx-int8
python -m edgekit.parity mine_int8.tflite mine_int8.onnx
""",
    )
    result.add_argument(
        "left", type=Path, metavar="ARTIFACT", help="int8 artifact folder, .tflite or .onnx file"
    )
    result.add_argument(
        "right",
        type=Path,
        metavar="ARTIFACT",
        help="artifact folder or file of the same model in the other format",
    )
    return result


def _act(options: argparse.Namespace) -> cli.Outcome:
    as_is = preprocessing("none")  # stored numbers do not depend on it
    compared = numbers(*(model_file.load(path, as_is) for path in (options.left, options.right)))
    if compared.differences:
        table = Table(title=f"{len(compared.differences)} differences")
        for column in ("tensor", "what"):
            table.add_column(column)
        for column in ("numbers", "largest"):
            table.add_column(column, justify="right")
        for each in compared.differences[:_SHOWN]:
            name = cli.plain(short_name(each.tensor))
            table.add_row(name, each.what, str(each.count), f"{each.largest:.4g}")
        cli.console.print(table)
        if len(compared.differences) > _SHOWN:
            cli.console.print(f"... and {len(compared.differences) - _SHOWN} more")
    for sentence in compared.expected:
        cli.say(f"note: {sentence}")
    cli.console.print(
        f"{compared.compared:,} scales, zero points, weights and biases: "
        f"{'no difference' if not compared.differences else 'they differ'}"
    )
    return (1 if compared.differences else 0), compared


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the verb."""
    return cli.run(parser(), _act, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
