"""``python -m edgekit.parity``: do a TFLite and an ONNX int8 file hold the same numbers?

Reads both files back and compares every scale, zero_point, weight and bias, tensor by tensor, in
the words of the canonical graph. Exit status 1 if one differs. What the kernels make of the same
numbers is measured by ``python -m edgekit.compare --parity``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from edgekit import cli, encodings
from edgekit.artifact import Artifact
from edgekit.encodings import Difference, Encodings
from edgekit.errors import InvalidModelError
from edgekit.formats import onnx, tflite
from edgekit.formats.flatbuffer import Graph, short_name

_SHOWN = 20


@dataclass(frozen=True)
class Numbers:
    """What two files hold.

    Attributes:
        compared: Scales, zero points, weights and biases.
        differences: Where they differ, a tensor and a kind of number each.
        expected: Differences that the device profiles ask for, a sentence each.
    """

    compared: int
    differences: tuple[Difference, ...]
    expected: tuple[str, ...] = ()


def numbers(left: Artifact, right: Artifact) -> Numbers:
    """Compare what a TFLite and an ONNX int8 artifact store.

    Raises:
        InvalidModelError: If they are not one of each, or come from different float models.
    """
    formats = {left.manifest.format: left, right.manifest.format: right}
    if set(formats) != {"tflite", "onnx"}:
        raise InvalidModelError(
            f"expected a TFLite and an ONNX artifact, got {left.manifest.format} and "
            f"{right.manifest.format}"
        )
    for artifact in (left, right):
        if artifact.manifest.precision != "int8":
            raise InvalidModelError(
                f"{artifact.path} is {artifact.manifest.precision}; expected int8 artifacts"
            )
    graphs = {
        kind: Encodings.load(artifact.path / encodings.FILE).graph_sha256
        for kind, artifact in formats.items()
    }
    if graphs["tflite"] != graphs["onnx"]:
        raise InvalidModelError(
            f"{left.path} and {right.path} were made from different float models"
        )
    content = formats["tflite"].model_path.read_bytes()
    ours = tflite.read_stored(content)
    theirs = onnx.read_stored(onnx.load(formats["onnx"].model_path), Graph(content))
    expected = []
    if not any(layer.bias is not None for layer in theirs.layers.values()):
        ours = ours.without_biases()
        expected.append(f"{formats['onnx'].name} keeps its biases in float")
    devices = {kind: artifact.manifest.device for kind, artifact in formats.items()}
    if devices["tflite"] != devices["onnx"]:
        expected.append(
            f"TFLite was made for {devices['tflite']}, ONNX for {devices['onnx']}: their profiles "
            f"may ask for other numbers"
        )
    compared = max(ours.numbers(), theirs.numbers())
    return Numbers(compared, encodings.differences(ours, theirs), tuple(expected))


def parser() -> cli.Parser:
    """Options of ``python -m edgekit.parity``."""
    result = cli.Parser(
        "parity",
        description="Prove that a TFLite and an ONNX int8 file hold the same numbers.",
        examples="""
python -m edgekit.parity exports/mine-tflite-int8 exports/mine-onnx-int8
""",
    )
    result.add_argument("left", type=Path, metavar="ARTIFACT", help="int8 artifact folder")
    result.add_argument("right", type=Path, metavar="ARTIFACT", help="of the other format")
    return result


def _act(options: argparse.Namespace) -> cli.Outcome:
    found = numbers(Artifact.load(options.left), Artifact.load(options.right))
    if found.differences:
        table = Table(title=f"{len(found.differences)} differences")
        for column in ("tensor", "what"):
            table.add_column(column)
        for column in ("numbers", "largest"):
            table.add_column(column, justify="right")
        for each in found.differences[:_SHOWN]:
            name = cli.plain(short_name(each.tensor))
            table.add_row(name, each.what, str(each.count), f"{each.largest:.4g}")
        cli.console.print(table)
        if len(found.differences) > _SHOWN:
            cli.console.print(f"... and {len(found.differences) - _SHOWN} more")
    for sentence in found.expected:
        cli.say(f"note: {sentence}")
    cli.console.print(
        f"{found.compared:,} scales, zero points, weights and biases: "
        f"{'no difference' if not found.differences else 'they differ'}"
    )
    return (1 if found.differences else 0), found


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the verb."""
    return cli.run(parser(), _act, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
