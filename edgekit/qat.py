"""``python -m edgekit.qat``: fine-tune a float model so that it predicts in int8 as it was trained.

tensorflow-model-optimization rounds the kernels during training. edgekit chooses where and to what
(edgekit.quantization.fake): activations are rounded where the deployed graph stores them, and
kernels per output channel, as the device profile needs them. The ranges start from the calibration
table and follow the batches. Batch normalisation uses the statistics of the batch first; in the
last part of the training, statistics and ranges are frozen (Krishnamoorthi 2018, "Quantizing deep
convolutional networks for efficient inference", sections 3.2 and 3.3). The float model is the
teacher: its predictions are a part of the loss (Hinton et al. 2015; Mishra and Marr 2018,
"Apprentice"). At regular steps a real int8 file is written and run.

The verb writes a Keras artifact: the weights on their grid in the architecture of the model, the
recipe with which it computes as trained, and the encodings, which ``python -m edgekit.export`` uses
without a change.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from edgekit import data
from edgekit.base import cli, words
from edgekit.pipeline.qat import EVERY, QatRecipe, qat
from edgekit.quantization import profiles
from edgekit.quantization.ranges import RANGE_MODES
from edgekit.sources import float_model
from edgekit.training.run import add_run_arguments, options_for, run_settings

__all__ = ["main", "parser", "qat"]


def parser() -> cli.Parser:
    """Options of ``python -m edgekit.qat``."""
    result = cli.Parser(
        "qat",
        description="Train a float model further while its numbers are rounded as int8 will round "
        "them (fake quantization); write it for `edgekit export --precision int8`.",
        examples="""
python -m edgekit.qat --out build/trained  # the shipped model, Fashion-MNIST
python -m edgekit.qat --out build/trained --resume  # after a kill
python -m edgekit.qat mine.keras --preprocessing unit --data images.npz \\
    --out build/mine-qat
python -m edgekit.export build/mine-qat --target onnx --precision int8
""",
    )
    default = QatRecipe()
    float_model.add_arguments(result)
    float_model.add_shape(result)
    add = result.add_argument
    add("--data", metavar="IMAGES", help=f"{data.WORDS} (default of the shipped model: the first)")
    add(
        "--calibration",
        metavar="IMAGES",
        help="images that the first ranges are taken from, as --data takes them, or TABLE.json "
        "(default: some images of --data)",
    )
    add("--out", type=Path, required=True, metavar="FOLDER", help="artifact to write")
    add(
        "--device",
        default=profiles.DEFAULT,
        choices=profiles.NAMES,
        help="device that the int8 file will run on; auto: this machine's CPU (default: "
        "%(default)s)",
    )
    add(
        "--leave-float",
        action="append",
        default=[],
        metavar="LAYER",
        help="train this layer in float; the deployed file rounds it afterwards; repeatable",
    )
    for name, kind, text in (
        ("epochs", words.positive_int, "passes over the images"),
        ("batch", words.positive_int, "images per step"),
        ("learning-rate", float, "largest learning rate, which falls as a cosine"),
        ("warmup-epochs", float, "epochs in which the learning rate rises to its largest"),
        ("weight-decay", float, "L2 decay of convolution and dense kernels"),
        ("label-smoothing", float, "share of a label that is spread over all classes"),
        ("shift", int, "largest number of pixels that an image is moved by"),
        ("erase", float, "probability that a rectangle is erased, from 0 to 1"),
        ("distill", float, "weight of the float model's predictions in the loss, from 0 to 1"),
        ("temperature", float, "temperature of the float model's predictions"),
        ("frozen", float, "share of the steps, the last ones, with fixed statistics and ranges"),
        ("range-decay", float, "decay of the moving averages of ranges"),
        ("weight-bits", int, "bits of the weights, 2 to 8"),
        ("seed", int, "seed of order and augmentation"),
    ):
        value = getattr(default, name.replace("-", "_"))
        add(f"--{name}", type=kind, default=value, help=f"{text} (default: {value})")
    add("--no-flip", dest="flip", action="store_false", help="do not mirror images")
    add(
        "--ranges",
        choices=RANGE_MODES,
        default=default.ranges,
        help="how the ranges of activations are updated (default: %(default)s)",
    )
    add(
        "--every",
        type=words.positive_int,
        default=EVERY,
        help="steps between two evaluations of the int8 file (default: %(default)s)",
    )
    add_run_arguments(result)
    return result


def _act(options: argparse.Namespace) -> cli.Outcome:
    profile = profiles.profile(options.device)
    if options.device == "auto":
        cli.console.print(f"device: {profile.name}, {profile.about}")
    written, scores = qat(
        options.model,
        dataset=options.data,
        calibration=options.calibration,
        recipe=QatRecipe(**options_for(options, QatRecipe)),
        device=profile.name,
        leave_float=options.leave_float,
        preprocessing=options.preprocessing,
        shapes=float_model.shapes_of(options.shape),
        every=options.every,
        **run_settings(options),
        command=cli.command_line(),
        progress=cli.reporter,
    )
    assert written.manifest.training is not None
    table = Table(title=f"{written.manifest.training['tested_images']} images")
    table.add_column("form")
    table.add_column("top-1 %", justify="right")
    table.add_column("predicts as trained %", justify="right")
    for name, score in scores.items():
        top1 = "" if score.top1 is None else f"{score.top1:.2f}"
        table.add_row(name, top1, f"{score.agreement:.2f}")
    cli.console.print(table)
    numbers = written.manifest.training["grid_numbers"]
    cli.console.print(f"{numbers:,} integers, scales and zero points: in the files as in training")
    cli.say(f"{written.path}: export it with `python -m edgekit.export {written.path}`")
    return 0, {
        "artifact": str(written.path),
        "sha256": written.sha256,
        "scores": scores,
        "training": written.manifest.training,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the verb."""
    return cli.run(parser(), _act, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
