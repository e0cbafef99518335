"""The options of ``python -m edgekit.compare A B --layers``, and what they do."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Literal

from edgekit.base import outputs, words
from edgekit.base.errors import InvalidOptionError
from edgekit.base.progress import Progress
from edgekit.diagnosis import views
from edgekit.diagnosis.bisection import Bound
from edgekit.diagnosis.diff import IMAGES, LayerDiff, diff
from edgekit.diagnosis.measure import MODES

#: Layers that the table shows without ``--all``.
SHOWN = 12


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``python -m edgekit.compare A B --layers``."""
    group = parser.add_argument_group(
        "layer by layer",
        "with exactly two models: the reference, which may be float, and the suspect",
    )
    add = group.add_argument
    add("--layers", action="store_true", help="compare tensor by tensor instead of accuracy")
    add(
        "--mode",
        choices=(*MODES, "both"),
        help="accumulated: each network runs on its own values; isolated: each layer runs on the "
        "reference's values; or both (default)",
    )
    add(
        "--bisect",
        type=_bound,
        metavar="BOUND",
        help="find the layers to leave in float so that the outputs reach e.g. 30dB, or 99.5%% "
        "of predictions: of classes, of a detector's boxes, of pixels",
    )
    add("--images", type=words.positive_int, help=f"use the first N samples (default: {IMAGES})")
    add("--all", action="store_true", help=f"show all layers, not only the worst {SHOWN}")
    add("--csv", type=Path, metavar="FILE", help="write the numbers of every layer")
    add("--overlay", type=Path, metavar="FILE", help="write node data for Model Explorer")
    add("--plot", type=Path, metavar="FILE.png", help="write a plot")


_OPTIONS = ("mode", "bisect", "images", "all", "csv", "overlay", "plot")


def _decibel(text: str) -> float:
    """The ``--bound`` of a layer; ``compare`` has the option, which means points there."""
    try:
        value = float(text.removesuffix("dB"))
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise InvalidOptionError(f"--bound with --layers: expected dB, e.g. 20, got {text!r}")
    return value


def _bound(text: str) -> Bound:
    unit: Literal["dB", "%"] = "%" if text.endswith("%") else "dB"
    try:
        value = float(text.removesuffix(unit))
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or (unit == "%" and not 0 < value <= 100):
        raise argparse.ArgumentTypeError(
            f"expected SQNR as 30dB or agreement as 99.5%, got {text!r}"
        )
    return Bound(value, unit)


def requested(options: argparse.Namespace) -> bool:
    """Whether the command line asks for the layer diff.

    Raises:
        InvalidOptionError: If it has options of it without ``--layers``.
    """
    if options.layers:
        return True
    for name in _OPTIONS:
        if getattr(options, name):
            raise InvalidOptionError(f"--{name} needs --layers")
    return False


def run(options: argparse.Namespace, progress: Progress) -> LayerDiff:
    """Compare two models layer by layer as the command line says, and write what it names.

    Raises:
        InvalidOptionError: If it has options of a comparison without ``--layers``.
    """
    if len(options.artifacts) != 2:
        raise InvalidOptionError(
            f"--layers takes two models, the reference and the suspect, got "
            f"{len(options.artifacts)}"
        )
    for name, instead in (
        ("parity", "compare without --layers"),
        ("out", "pass --csv, --overlay or --plot"),
        ("limit", "pass --images"),
        ("record", "compare without --layers"),
        ("power", "compare without --layers"),
        ("task", "compare without --layers"),
        ("decoding", "an artifact has its own"),
        ("metric", "compare without --layers"),
        ("allow_dead", "pass --bound to be told of a low layer"),
        ("allow_poor", "pass --bound to be told of a low layer"),
        ("allow_chance", "labels are not used there"),
    ):
        if getattr(options, name):
            option = name.replace("_", "-")
            raise InvalidOptionError(f"--{option} does not go with --layers; {instead}")
    files = [path for path in (options.csv, options.overlay, options.plot) if path is not None]
    if len({path.absolute() for path in files}) != len(files):
        raise InvalidOptionError("two of --csv, --overlay and --plot are the same file")
    for path in files:
        outputs.check_free(path, force=options.force)
    layers = diff(
        *options.artifacts,
        dataset=options.data,
        images=options.images or IMAGES,
        modes=MODES if options.mode in (None, "both") else (options.mode,),
        bound=None if options.bound is None else _decibel(options.bound),
        bisect_bound=options.bisect,
        source=None if options.reference is None else Path(options.reference),
        threads=options.threads,
        trust=options.trust,
        preprocessing=options.preprocessing,
        progress=progress,
    )
    if options.csv is not None:
        outputs.write_text(options.csv, views.to_csv(layers.rows), force=options.force)
    if options.overlay is not None:
        outputs.write_text(options.overlay, views.to_overlay(layers), force=options.force)
    if options.plot is not None:
        outputs.write_bytes(options.plot, views.plot(layers), force=options.force)
    return layers
