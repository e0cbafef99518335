"""``python -m edgekit.train``: train a network and write the float model as a Keras artifact.

``--task`` says what it learns: classes of images (MobileNetV2), boxes of objects (SSDLite on it) or
classes of pixels (DeepLabV3 on it).

A recipe (edgekit.training.recipes) gives optimizer, schedule, augmentation and network, and says
which accuracy is expected. Single options override it. The default is a short training on small
images. L2 weight decay is on convolution and dense kernels only, and not on depthwise kernels,
biases and batch normalisation, as in TF-slim. If the recipe keeps a moving average of the weights,
the average is written.

Images are held in memory. They are streamed from disk if they do not fit, or if each picture is
cropped at its own size (edgekit.training.stream). The verb says which of the two it does.
``--from`` fine-tunes a trained model on other classes: first a new classifier, then all layers. A
detector or segmenter begins with its layers up to the last bottleneck. Their images are held in
memory.

The artifact is NHWC and float32, in whatever layout and precision the model was trained. With
``--strategy multiworker`` every process of TF_CONFIG gets the same command, and the first one
writes; all of them have to see the folder of checkpoints. Training continues from the last
checkpoint when the same command is given again with ``--resume``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from edgekit import data
from edgekit.base import cli, words
from edgekit.base.errors import InvalidOptionError
from edgekit.sources import arrange
from edgekit.sources.float_model import SHIPPED
from edgekit.training import recipes
from edgekit.training import replicas as many
from edgekit.training.inputs import MODES
from edgekit.training.recipes import Network, Recipe
from edgekit.training.run import add_run_arguments, options_for, run_settings, train

__all__ = ["main", "parser", "train"]


def parser() -> cli.Parser:
    """Options of ``python -m edgekit.train``."""
    result = cli.Parser(
        "train",
        description="Train a classifier, a detector or a segmentation network on a data set and "
        "write the float model as an artifact.",
        examples="""
python -m edgekit.train --out exports/mine  # Fashion-MNIST, width 0.35
python -m edgekit.train --out exports/mine --resume  # after a kill
# x uint8 [N,H,W,C], y [N]:
python -m edgekit.train --data images.npz --width 0.5 --out m
python -m edgekit.train --recipes  # what there is, and what to expect
python -m edgekit.train --task detection --from --size 160 \\
    --data coco:boxes.json --out mine
# on GPUs:
python -m edgekit.train --recipe paper --data imagenet-tfrecord:DIR \\
    --size 224 --precision mixed_float16 --data-format NCHW \\
    --strategy mirrored --out m
# own classes:
python -m edgekit.train --from MODEL --data folder:photos --size 96 \\
    --out mine
""",
    )
    add = result.add_argument
    add("--data", metavar="IMAGES", help=f"{data.WORDS} (default: the first, not of --from MODEL)")
    add(
        "--task",
        choices=recipes.TASKS,
        help="what the network is to learn: classes of images, boxes of objects, or classes of "
        "pixels (default: that of --recipe, else the first)",
    )
    add("--size", type=words.positive_int, help="height and width that pictures are resized to")
    add(
        "--from",
        dest="start",
        nargs="?",
        const=SHIPPED,
        type=Path,
        metavar="MODEL",
        help="start from a trained model, a Keras artifact or .keras file, and give it a new "
        "classifier; detection and segmentation begin with its MobileNetV2 (without MODEL: the "
        "shipped one)",
    )
    add(
        "--channels",
        type=int,
        choices=(1, 3),
        help="with --from: channels of the new model's input (default: those of MODEL; 3 if MODEL "
        "takes grey pictures and the images are in colour)",
    )
    add(
        "--input",
        choices=MODES,
        default="auto",
        help="hold images in memory, or stream them (default: by size and augmentation)",
    )
    add(
        "--validation",
        type=float,
        metavar="SHARE",
        help="share of each class to hold out and test with (default: 0; with --from 0.2)",
    )
    add(
        "--skip-broken",
        action="store_true",
        help="leave out pictures of a stream that cannot be decoded, and count them, instead of "
        "stopping; images in memory are always read so",
    )
    add(
        "--out",
        type=Path,
        metavar="FOLDER",
        help="artifact folder to write; the model gets its name",
    )
    add(
        "--recipe",
        help=f"{', '.join(recipes.names())} or FILE.toml (default: {recipes.DEFAULT}, with --from "
        f"{recipes.FINE_TUNING}); gives the values of the options below that are not given",
    )
    add(
        "--recipes",
        action="store_true",
        help="list the recipes and the accuracy that each should reach",
    )
    add(
        "--preprocessing",
        metavar="NAME|FILE.json",
        help="how pixels become the input, as `edgekit export` takes it (default: the recipe's)",
    )
    for name, (kind, text) in _OVERRIDES.items():
        settings = {"choices": kind} if isinstance(kind, tuple) else {"type": kind}
        add(f"--{name}", default=argparse.SUPPRESS, help=text, **settings)
    add(
        "--flip",
        action=argparse.BooleanOptionalAction,
        default=argparse.SUPPRESS,
        help="augmentation: mirror half of the images",
    )
    add(
        "--data-format",
        choices=arrange.DATA_FORMATS,
        default="NHWC",
        help="order of a tensor's axes while it trains (default: %(default)s)",
    )
    add(
        "--precision",
        choices=arrange.PRECISIONS,
        default="float32",
        help="precision that layers compute in during training; weights and loss are float32 "
        "(default: %(default)s)",
    )
    add(
        "--strategy",
        choices=many.STRATEGIES,
        default="none",
        help="divide each batch between GPUs, or between the processes of TF_CONFIG",
    )
    add("--replicas", type=words.positive_int, help="devices of --strategy mirrored (default: all)")
    add_run_arguments(result)
    return result


#: Options that override a recipe: (type or choices, help).
_OVERRIDES: dict[str, tuple[Any, str]] = {
    "width": (float, "multiplier of the number of channels"),
    "lowered-strides": (int, "how many of the first stride-2 layers run with stride 1"),
    "dropout": (float, "share of features dropped before the classifier"),
    "bn-momentum": (float, "decay of batch normalisation's moving averages"),
    "epochs": (words.positive_int, "passes over the images; in fine-tuning: with all layers"),
    "head-epochs": (int, "in fine-tuning: passes before those, with the new classifier alone"),
    "head-learning-rate": (float, "largest learning rate in --head-epochs"),
    "steps": (words.positive_int, "number of steps, instead of epochs"),
    "batch": (words.positive_int, "images per step, of all towers and replicas together"),
    "optimizer": (recipes.OPTIMIZERS, "how weights are changed; both have momentum"),
    "learning-rate": (float, "largest learning rate, after the warm-up"),
    "schedule": (recipes.SCHEDULES, "how the learning rate falls after the warm-up"),
    "decay": (float, "exponential schedule: factor at each decay"),
    "decay-epochs": (float, "exponential schedule: epochs between two decays"),
    "warmup-epochs": (float, "epochs in which the learning rate rises to its largest"),
    "momentum": (float, "momentum of the optimizer"),
    "rms-decay": (float, "rmsprop: decay of its mean square"),
    "rms-epsilon": (float, "rmsprop: number that is added under the root"),
    "weight-decay": (float, "L2 decay of convolution and dense kernels"),
    "label-smoothing": (float, "share of a label that is spread over all classes"),
    "ema": (
        float,
        "decay of the moving average of the weights, which is what is written; 0: no average",
    ),
    "augmentation": (
        recipes.AUGMENTATIONS,
        "how pictures are changed; plain and inception crop each picture at its own size",
    ),
    "crop": (float, "augmentation: smallest share of the area that a random crop has; 1: no crop"),
    "shift": (int, "augmentation: largest number of pixels that an image is moved by"),
    "erase": (float, "augmentation: probability that a rectangle is erased, from 0 to 1"),
    "seed": (int, "seed of first weights, order and augmentation"),
}


def _act(options: argparse.Namespace) -> cli.Outcome:
    if options.recipes:
        return _list_recipes()
    if options.out is None:
        raise InvalidOptionError("expected --out FOLDER, the artifact to write")
    task: recipes.Task = options.task or "classification"
    tuned = options.start is not None and task == "classification"
    recipe = options.recipe or (recipes.FINE_TUNING if tuned else recipes.DEFAULTS[task])
    preset = recipes.load(recipe)
    if options.task not in (None, preset.task):
        raise InvalidOptionError(
            f"--task {task}: expected a recipe for it, as {recipes.DEFAULTS[task]}, got {recipe}, "
            f"which is for {preset.task}"
        )
    preset = recipes.changed(
        preset,
        recipe=options_for(options, Recipe),
        network=options_for(options, Network),
    )
    written = train(
        dataset=options.data,
        preset=preset,
        start=options.start,
        size=options.size,
        prepare=options.preprocessing,
        channels=options.channels,
        input=options.input,
        validation=options.validation,
        skip_broken=options.skip_broken,
        data_format=options.data_format,
        precision=options.precision,
        strategy=options.strategy,
        replicas=options.replicas,
        **run_settings(options),
        command=cli.command_line(),
        progress=cli.reporter,
    )
    if written is None:
        return 0, {"artifact": None, "written_by": "the chief"}
    if preset.expected and recipe not in recipes.DEFAULTS.values():
        cli.say(f"recipe {preset.name}: expected {preset.expected}")
    return 0, {
        "artifact": str(written.path),
        "sha256": written.sha256,
        "training": written.manifest.training,
    }


def _list_recipes() -> cli.Outcome:
    presets = [recipes.load(name) for name in recipes.names()]
    table = Table()
    for column in ("recipe", "task", "what it is", "expected", "of", "source"):
        table.add_column(column)
    for preset in presets:
        expected = preset.expected
        cells = [preset.name, preset.task, preset.about]
        if expected:
            cells += [expected.metrics, expected.of, expected.source]
        table.add_row(*map(escape, cells))
    cli.console.print(table)
    for preset in presets:
        for sentence in preset.chosen:
            cli.say(f"{preset.name}, not published: {sentence}")
        for sentence in preset.differs:
            cli.say(f"{preset.name}, other than its source: {sentence}")
    return 0, {"recipes": presets}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the verb."""
    return cli.run(parser(), _act, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
