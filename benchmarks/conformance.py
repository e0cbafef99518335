"""What int8 and other precisions leave of really trained networks, on samples that were held out.

    python benchmarks/conformance.py --data FOLDER [--only NAME] [--out docs/accuracy.json]

Each network is exported in each format and precision, calibrated with a part of its samples, and
compared with its float model on the others by the kernels of LiteRT and onnxruntime on this machine
(``edgekit.compare``). A vendor's own int8 file of the same network stands beside edgekit's where
there is one. FOLDER holds the networks and pictures that are no part of edgekit (the page names
them); without it only the shipped model, its hard case and two small networks that are trained
first (benchmarks/trained.py) are measured. The results go to --out, and the page beside it,
``docs/accuracy.md``, is written from them. Last line of stdout: the document.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import date
from pathlib import Path
from typing import Any

import hard_case
import numpy as np
import trained

from edgekit import compare
from edgekit.base import outputs
from edgekit.base.errors import EdgekitError
from edgekit.data import fashion_mnist
from edgekit.export import TARGETS, Options, export
from edgekit.records import environment
from edgekit.records.artifact import Artifact
from edgekit.records.results import ArtifactResult
from edgekit.records.schemes import PRECISIONS, SCHEMES
from edgekit.sources import float_model

SCHEMA_VERSION = 1
#: Samples that are compared, at the most: LiteRT computes int16x8 by kernels that take long.
LIMIT = 2000
#: Every so many pictures one is for calibration.
PART = 4
_NAMED = re.compile("edgekit|ai-edge-litert|onnxruntime.*")
#: How EfficientNet-Lite takes its pictures.
_LITE = {
    "name": "lite",
    "scale": [1 / 128],
    "offset": [-127 / 128],
    "resize": "bicubic",
    "crop": 0.875,
}


@dataclass(frozen=True)
class Net:
    """A trained network and its samples.

    Attributes:
        name: For the table.
        model: Its file; None of the shipped one.
        calibration: Samples to calibrate with.
        held: Others to compare on.
        preprocessing: Of its pictures, by name or as JSON file; None where the file says it.
        vendor: Its maker's int8 file.
        note: What a reader should know.
        build: Makes the Keras model that is saved as ``model`` first.
    """

    name: str
    model: Path | None
    calibration: str
    held: str
    preprocessing: str | None = None
    vendor: Path | None = None
    note: str = ""
    build: Callable[[], Any] | None = None


@dataclass(frozen=True)
class Row:
    """What one deployable is worth; each figure with its 95 % interval.

    Attributes:
        deployable: Format and precision, or ``vendor int8``.
        bytes: Of the file.
        sqnr: dB of what varies.
        agreement: Percent of the samples of which the prediction is the float model's.
        drop: Points of top-1 that are lost; None without labels.
        floats: Operators that compute in float; None where it is not known.
        way: How integers were found.
        refused: Why there is no file.
    """

    deployable: str
    bytes: int | None = None
    sqnr: float | None = None
    agreement: tuple[float, float, float] | None = None
    drop: tuple[float, float, float] | None = None
    floats: int | None = None
    way: str = ""
    refused: str = ""


@dataclass(frozen=True)
class Result:
    """All deployables of a network."""

    net: str
    samples: int
    accuracy: float | None
    note: str
    rows: list[Row] = field(default_factory=list)


def nets(folder: Path | None, work: Path) -> Iterator[Net]:
    """The networks that are at hand; what is written for them goes to ``work``."""
    yield Net("shipped MobileNetV2 0.35", None, "fashion_mnist", "fashion_mnist")
    yield Net(
        "hard case of it",
        work / "hard.keras",
        "fashion_mnist",
        "fashion_mnist",
        "unit",
        build=lambda: hard_case.build(float_model.load(None).model),
    )
    pictures, judged = fashion_mnist.load("test"), work / "judged.npz"
    part = slice(trained.TRAINED, None)
    np.savez(judged, x=pictures.images[part], y=pictures.labels[part])
    for name, word in (("vision transformer", "vit"), ("LSTM over the rows", "lstm")):
        yield Net(
            f"{name} of Fashion-MNIST",
            work / f"{word}.keras",
            "fashion_mnist",
            str(judged),
            "unit",
            note="trained by benchmarks/trained.py",
            build=trained.NETWORKS[word],
        )
    if folder is None:
        return
    calibration, held = _divided(folder / "imagenet500" / "labels.csv", work)
    lite = work / "lite.json"
    lite.write_text(json.dumps(_LITE))
    yield Net(
        "ImageNet MobileNetV2 1.0/224",
        folder / "mobilenet_v2_1.0_224.keras",
        calibration,
        held,
        "symmetric#crop=0.875,class_offset=1",
    )
    yield Net(
        "ImageNet EfficientNet-Lite0",
        folder / "efficientnet_lite0.onnx",
        calibration,
        held,
        str(lite),
    )
    tiny = folder / "mlperf_tiny"
    unlabelled = tuple(_without_labels(each.removeprefix("csv:")) for each in (calibration, held))
    yield Net(
        "MLPerf Tiny visual wake words",
        tiny / "vww_96_float.tflite",
        *unlabelled,
        "unit",
        tiny / "vww_96_int8.tflite",
        "photographs of ImageNet, of which few show a person",
    )
    yield Net(
        "MLPerf Tiny image classification",
        tiny / "pretrainedResnet_large_float.tflite",
        *unlabelled,
        "none",
        tiny / "pretrainedResnet_large_int8.tflite",
        "photographs of ImageNet, for a network of CIFAR-10",
    )


def _divided(labels: Path, work: Path) -> tuple[str, str]:
    """Words of the pictures to calibrate with, every fourth, and of the others."""
    with labels.open(newline="") as file:
        head, *rows = csv.reader(file)
    words = []
    for name in ("calibration", "held"):
        own = [row for i, row in enumerate(rows) if (i % PART == 0) == (name == "calibration")]
        path = work / f"{name}.csv"
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(head)
            writer.writerows([str(labels.parent / row[0]), *row[1:]] for row in own)
        words.append(f"csv:{path}")
    return words[0], words[1]


def _without_labels(path: str) -> str:
    """The same pictures for a network of other classes."""
    with open(path, newline="") as file:
        head, *rows = csv.reader(file)
    found = Path(path).with_name(f"{Path(path).stem}-pictures.csv")
    with found.open("w", newline="") as file:
        csv.writer(file).writerows([each[:1] for each in (head, *rows)])
    return f"csv:{found}"


def measured(net: Net, work: Path) -> Result:
    """Export and compare all deployables of a network."""
    folder = work / net.name.replace(" ", "-").replace("/", "-")
    plain = Options(preprocessing=net.preprocessing)
    options = replace(plain, calibration=net.calibration)
    made: dict[str, Artifact] = {}
    refused: dict[str, str] = {}
    for precision in PRECISIONS:
        for target in TARGETS:
            name = f"{target} {precision}"
            try:
                made[name] = export(
                    net.model,
                    options if SCHEMES[precision].integers else plain,
                    target=target,
                    precision=precision,
                    out=folder / name.replace(" ", "-"),
                )
            except EdgekitError as exc:
                refused[name] = str(exc)
    paths = {name: each.path for name, each in made.items()}
    if net.vendor is not None:
        paths["vendor int8"] = net.vendor
    report = compare.compare(
        list(paths.values()),
        compare.Options(
            dataset=net.held,
            limit=LIMIT,
            rounds=0,
            reference=net.model,
            preprocessing=net.preprocessing if net.vendor is not None else None,
        ),
    )
    found = Result(net.name, report.data.count, _value(report.reference, "top1"), net.note)
    for name, each in zip(paths, report.artifacts, strict=True):
        found.rows.append(_row(name, each, made.get(name)))
    found.rows.extend(Row(name, refused=why) for name, why in refused.items())
    return found


def _row(name: str, result: ArtifactResult, written: Artifact | None) -> Row:
    record = None if written is None else written.manifest.quantization
    execution = None if written is None else written.manifest.execution
    size = _value(result, "size")
    return Row(
        name,
        None if size is None else int(size),
        _value(result, "sqnr_centred"),
        _interval(result, "agreement"),
        _interval(result, "top1_change"),
        None if execution is None else len(execution.floats),
        "" if record is None else record.way,
    )


def _value(result: ArtifactResult, metric: str) -> float | None:
    found = result.metrics.get(metric)
    return None if found is None or not math.isfinite(found.value) else found.value


def _interval(result: ArtifactResult, metric: str) -> tuple[float, float, float] | None:
    found = result.metrics.get(metric)
    if found is None or found.low is None or found.high is None:
        return None
    return found.value, found.low, found.high


def page(document: dict[str, Any]) -> str:
    """The page of a document."""
    lines = [
        "# What is left of accuracy",
        "",
        "By `python benchmarks/conformance.py --data FOLDER`, "
        f"{document['date']}, {document['cpu']},",
        ", ".join(f"{each} {of}" for each, of in document["versions"].items() if _NAMED.match(each))
        + ". Device `generic`,",
        "so that nothing saturates without VNNI. Samples that were not calibrated with. Both",
        "formats have the same integers.",
        "",
        "- **left**: dB of what varies over the samples, of the outputs",
        "- **same prediction**: percent, with a Wilson 95 % interval",
        "- **top-1**: points against the float model, with a 95 % interval",
        "- **float**: operators that compute in float",
        "",
    ]
    for result in document["results"]:
        accuracy = result["accuracy"]
        right = "" if accuracy is None else f", float top-1 {accuracy:.2f} %"
        note = f"; {result['note']}" if result["note"] else ""
        lines += [
            f"## {result['net']}",
            "",
            f"{result['samples']} samples{right}{note}.",
            "",
            "| deployable | bytes | left | same prediction | top-1 | float |",
            "|---|---|---|---|---|---|",
        ]
        lines += [_line(row) for row in result["rows"]]
        lines.append("")
    return "\n".join(lines)


def _line(row: dict[str, Any]) -> str:
    if row["refused"]:
        why, *_ = row["refused"].replace("|", "/").split("; `")  # what to type is no row's matter
        return f"| {row['deployable']} | refused: {why} | | | | |"
    left = "exact" if row["sqnr"] is None else f"{row['sqnr']:.1f} dB"
    same, drop = (
        "" if row[key] is None else "{:+.2f} [{:+.2f}, {:+.2f}]".format(*row[key])
        for key in ("agreement", "drop")
    )
    floats = "" if row["floats"] is None else str(row["floats"])
    return (
        f"| {row['deployable']} | {row['bytes']:,} | {left} | {same.replace('+', '')} | {drop} | "
        f"{floats} |"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, write the document and the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="networks and pictures")
    parser.add_argument("--only", metavar="NAME", help="networks whose name holds NAME")
    parser.add_argument("--out", type=Path, metavar="FILE.json")
    chosen = parser.parse_args(arguments)
    machine = environment.describe()
    results = []
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        for net in nets(chosen.data, work):
            if chosen.only and chosen.only not in net.name:
                continue
            if net.build is not None:
                net.build().save(net.model)
            print(f"{net.name} ...", file=sys.stderr, flush=True)
            result = measured(net, work)
            results.append(asdict(result))
            for row in results[-1]["rows"]:
                print(_line(row), file=sys.stderr, flush=True)
    document = {
        "schema_version": SCHEMA_VERSION,
        "date": date.today().isoformat(),
        "cpu": f"{machine.cpu} [{' '.join(machine.isa)}]",
        "versions": machine.versions,
        "results": results,
    }
    if chosen.out is not None:
        outputs.write_text(chosen.out, json.dumps(document, indent=1) + "\n", force=True)
        outputs.write_text(chosen.out.with_suffix(".md"), page(document), force=True)
    print(json.dumps(document))


if __name__ == "__main__":
    main()
