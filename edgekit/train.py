"""``python -m edgekit.train``: train MobileNetV2 and write the float model as a Keras artifact.

A recipe (edgekit.recipes) says how: optimizer, schedule, augmentation, network, and what it is
expected to reach; single options override it. The default is short training on small images. L2
weight decay is on convolution and dense kernels only (not on depthwise kernels, biases and batch
normalisation, as TF-slim does); where the recipe keeps a moving average of the weights, that is
what gets written.

The artifact is NHWC and float32, whatever layout and precision it was trained in. With
``--strategy multiworker`` every process of TF_CONFIG is given the same command, and the first one
writes; the checkpoints' folder has to be one that all of them see. Training continues from its last
checkpoint when the same command is given again with ``--resume``.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
from rich.markup import escape
from rich.table import Table

from edgekit import artifact, cli, data, environment, outputs, recipes, words
from edgekit.errors import InvalidDataError, InvalidOptionError
from edgekit.formats import arrange
from edgekit.formats import keras as keras_format
from edgekit.recipes import Network, Preset, Recipe
from edgekit.signature import Preprocessing, preprocessing
from edgekit.training import replicas as many
from edgekit.training.loop import checkpoints_of, fit, log_bytes
from edgekit.training.trainer import Trainer, configure_threads


def train(
    *,
    out: Path,
    dataset: str = "fashion_mnist",
    preset: Preset | None = None,
    prepare: str | None = None,
    data_format: str = "NHWC",
    precision: str = "float32",
    strategy: str = "none",
    replicas: int | None = None,
    towers: int | None = None,
    checkpoints: Path | None = None,
    tensorboard: Path | None = None,
    resume: bool = False,
    limit: int | None = None,
    force: bool = False,
    command: str = "",
) -> artifact.Artifact | None:
    """Train MobileNetV2 and write the averaged weights as a Keras artifact.

    Args:
        out: Folder of the artifact; its name is the model id.
        dataset: What :func:`edgekit.data.open_word` takes, with labels; pictures need a ``size``.
        preset: Recipe and network; the default is for small data.
        prepare: Preprocessing name or file; default the preset's.
        data_format: ``NHWC`` or ``NCHW``, while it trains.
        precision: ``float32``, ``mixed_float16`` or ``bfloat16``, while it trains.
        strategy: Devices that share a batch; see :func:`edgekit.training.replicas.replicas`.
        replicas: Of strategy ``mirrored``: how many.
        towers: Parts of a replica's images that run side by side; default one a core, on a GPU 1.
        checkpoints: Folder for resuming; default a sibling of ``out``.
        tensorboard: Folder for TensorBoard logs; none when absent.
        resume: Continue from the last checkpoint.
        limit: Use only the first images of the training set.
        force: Replace ``out`` if it exists.
        command: Recorded in the manifest.

    Returns:
        The artifact; None in a process that is not the chief.

    Raises:
        EdgekitError: On a bad option, data, or an output that exists.
    """
    from edgekit.models.mobilenet_v2 import mobilenet_v2

    preset = preset or recipes.load(recipes.DEFAULT)
    recipe = preset.recipe
    outputs.check_free(out, force=force)
    checkpoints = checkpoints_of(out, checkpoints, resume=resume)
    arrange.check(data_format, precision)
    prepared = preprocessing(prepare or preset.preprocessing)
    training = data.load(dataset, "train", prepare=prepared, limit=limit)
    testing = data.load(dataset, "test") if dataset == "fashion_mnist" else training
    if training.labels is None or testing.labels is None:
        raise InvalidDataError(f"{dataset}: training needs labels")
    classes = len(training.class_names) or int(training.labels.max()) + 1
    names = training.class_names or tuple(str(i) for i in range(classes))

    tf = keras_format.tensorflow()
    device = "/GPU:0" if tf.config.list_physical_devices("GPU") else "/CPU:0"
    towers = towers or _towers(device, strategy, replicas)
    configure_threads(towers)
    group = many.replicas(strategy, replicas)
    if (data_format, precision) != ("NHWC", "float32"):
        arrange.require(data_format, precision, device=device, training=True)
    tf.random.set_seed(recipe.seed)

    def build() -> Any:
        return mobilenet_v2(
            input_shape=tuple(training.images.shape[1:]),
            classes=classes,
            seed=recipe.seed,
            **asdict(preset.network),
        )

    with group.scope():
        model = build()
        arranged = arrange.arrange(
            model, data_format=data_format, precision=precision, matmul=device == "/CPU:0"
        )
    trainer = Trainer(
        arranged,
        recipe,
        images=training.images,
        labels=training.labels,
        prepare=prepared,
        towers=towers,
        replicas=group,
        data_format=data_format,
        scaled=precision == "mixed_float16",
    )
    about = {"data": training.sha256, "data_format": data_format, "precision": precision}
    log = fit(trainer, checkpoints, tensorboard, resume, about | asdict(preset.network))
    averages = trainer.averaged_weights()
    if not group.chief:
        group.wait()
        return None
    if group.count > 1:
        model = build()  # whose variables are this process's alone
    for variable, average in zip(model.variables, averages, strict=True):
        variable.assign(average)
    top1, top5 = accuracy(model, testing, prepared)
    measured_on = "test" if dataset == "fashion_mnist" else "train"
    cli.say(f"{measured_on}: top-1 {top1:.2f} %, top-5 {top5:.2f} % of {len(testing)}")
    written = artifact.write(
        out,
        {"model.keras": keras_format.to_bytes(model), "training.jsonl": log_bytes(log)},
        {
            "model_id": out.name,
            "format": "keras",
            "precision": "float32",
            "model_file": "model.keras",
            "signature": keras_format.signature(model),
            "preprocessing": prepared,
            "class_names": names,
            "command": command,
            "training": {
                "architecture": "mobilenet_v2",
                **asdict(preset.network),
                "preset": preset.name,
                "expected": asdict(preset.expected) if preset.expected else None,
                "recipe": asdict(recipe),
                "data_format": data_format,
                "precision": precision,
                "strategy": strategy,
                "replicas": group.count,
                "towers": towers,
                "data": training.name,
                "data_sha256": training.sha256,
                "images": len(training),
                "parameters": model.count_params(),
                f"{measured_on}_top1": top1,
                f"{measured_on}_top5": top5,
            },
        },
        force=force,
    )
    shutil.rmtree(checkpoints, ignore_errors=True)
    group.wait()
    return written


def _towers(device: str, strategy: str, replicas: int | None) -> int:
    """One a core that a replica has; one on a GPU, which fills itself."""
    if device != "/CPU:0":
        return 1
    shared = replicas if strategy == "mirrored" and replicas else 1
    return max(1, environment.cores() // shared)


def accuracy(model: Any, images: data.ImageSet, prepare: Preprocessing) -> tuple[float, float]:
    """Top-1 and top-5 in percent."""
    tf = keras_format.tensorflow()
    forward = tf.function(lambda x: model(x, training=False))
    top1 = top5 = 0
    assert images.labels is not None
    for start in range(0, len(images), 500):
        part = slice(start, start + 500)
        answers = forward(tf.constant(prepare.apply(images.images[part]))).numpy()
        if not np.isfinite(answers).all():
            raise InvalidDataError("the model answers NaN; lower --learning-rate")
        labels = images.labels[part]
        order = np.argsort(-answers, axis=1)[:, :5]
        top1 += int((order[:, 0] == labels).sum())
        top5 += int((order == labels[:, None]).any(axis=1).sum())
    return 100 * top1 / len(images), 100 * top5 / len(images)


def parser() -> cli.Parser:
    """Options of ``python -m edgekit.train``."""
    result = cli.Parser(
        "train",
        description="Train MobileNetV2 on a data set and write the float model as an artifact.",
        examples="""
python -m edgekit.train --out exports/mine                     # Fashion-MNIST, width 0.35
python -m edgekit.train --out exports/mine --resume            # after a kill
python -m edgekit.train --data images.npz --width 0.5 --out m  # x uint8 [N,H,W,C], y [N]
python -m edgekit.train --recipes                              # what there is, and what to expect
python -m edgekit.train --recipe paper --data imagenet.npz --precision mixed_float16 \\
    --data-format NCHW --strategy mirrored --out m             # on GPUs
""",
    )
    add = result.add_argument
    add("--data", default="fashion_mnist", metavar="IMAGES", help=data.WORDS)
    add("--size", type=cli.positive_int, help="height and width that pictures are resized to")
    add("--out", type=Path, help="artifact folder to write; its name is the model id")
    add(
        "--recipe",
        default=recipes.DEFAULT,
        help=f"{', '.join(recipes.names())} or FILE.toml (default: %(default)s); gives the values "
        f"of the options below that are not given",
    )
    add("--recipes", action="store_true", help="list the recipes and what each should reach")
    add("--preprocessing", help="unit, symmetric, … or FILE.json (default: the recipe's)")
    for name, (kind, text) in _OVERRIDES.items():
        settings = {"choices": kind} if isinstance(kind, tuple) else {"type": kind}
        add(f"--{name}", default=argparse.SUPPRESS, help=text, **settings)
    add(
        "--flip",
        action=argparse.BooleanOptionalAction,
        default=argparse.SUPPRESS,
        help="augmentation: mirroring",
    )
    add("--data-format", choices=arrange.DATA_FORMATS, default="NHWC", help="while it trains")
    add(
        "--precision",
        choices=arrange.PRECISIONS,
        default="float32",
        help="of the layers while it trains; weights and loss are float32 (default: %(default)s)",
    )
    add(
        "--strategy",
        choices=many.STRATEGIES,
        default="none",
        help="share each batch over GPUs, or over the processes of TF_CONFIG",
    )
    add("--replicas", type=cli.positive_int, help="devices of --strategy mirrored (default: all)")
    add_run_arguments(result)
    return result


#: Options that override a recipe: (type or choices, help).
_OVERRIDES: dict[str, tuple[Any, str]] = {
    "width": (float, "channel multiplier"),
    "lowered-strides": (int, "stride-2 layers, from the input on, that run with stride 1"),
    "dropout": (float, "fraction dropped before the classifier"),
    "bn-momentum": (float, "decay of the moving batch statistics"),
    "epochs": (cli.positive_int, "passes over the images"),
    "steps": (cli.positive_int, "steps instead of epochs"),
    "batch": (cli.positive_int, "images a step, of all towers and replicas"),
    "optimizer": (("sgd", "rmsprop"), "both have momentum"),
    "learning-rate": (float, "peak, after the warm-up"),
    "schedule": (("cosine", "exponential"), "after the warm-up"),
    "decay": (float, "factor of the exponential schedule"),
    "decay-epochs": (float, "epochs between two decays"),
    "warmup-epochs": (float, "linear rise"),
    "momentum": (float, "of the optimizer"),
    "rms-decay": (float, "of RMSProp's mean square"),
    "rms-epsilon": (float, "of RMSProp, under the root"),
    "weight-decay": (float, "of convolution and dense kernels"),
    "label-smoothing": (float, "mass spread over all classes"),
    "ema": (float, "decay of the weights' moving average; 0: none"),
    "crop": (float, "augmentation: least share of the area in a random crop; 1: none"),
    "shift": (int, "augmentation: pixels each way"),
    "erase": (float, "augmentation: probability of erasing"),
    "seed": (int, "of initialisation, order and augmentation"),
}


def add_run_arguments(parser: cli.Parser) -> None:
    """Options of any run of a :class:`Trainer`; :func:`run_settings` takes them."""
    add = parser.add_argument
    add("--towers", type=cli.positive_int, help="batch parts side by side (default: one a core)")
    add("--limit", type=cli.positive_int, help="use the first N training images only")
    add("--checkpoints", type=Path, help="folder for --resume (default: OUT.checkpoints)")
    add("--tensorboard", type=Path, help="folder for TensorBoard logs")
    add("--resume", action="store_true", help="continue from the last checkpoint")
    add("--force", action="store_true", help="replace OUT if it exists")


def run_settings(options: argparse.Namespace) -> dict[str, Any]:
    """What :func:`add_run_arguments` was given, as arguments of :func:`train`."""
    names = ("out", "towers", "limit", "checkpoints", "tensorboard", "resume", "force")
    return {name: getattr(options, name) for name in names} | {"command": cli.command_line()}


def given(options: argparse.Namespace, cls: type) -> dict[str, Any]:
    """Options that were given and are fields of a dataclass."""
    return {f.name: getattr(options, f.name) for f in fields(cls) if hasattr(options, f.name)}


def _act(options: argparse.Namespace) -> cli.Outcome:
    if options.recipes:
        return _list_recipes()
    if options.out is None:
        raise InvalidOptionError("expected --out FOLDER, the artifact to write")
    preset = recipes.changed(
        recipes.load(options.recipe),
        recipe=given(options, Recipe),
        network=given(options, Network),
    )
    written = train(
        dataset=words.join(options.data, size=options.size),
        preset=preset,
        prepare=options.preprocessing,
        data_format=options.data_format,
        precision=options.precision,
        strategy=options.strategy,
        replicas=options.replicas,
        **run_settings(options),
    )
    if written is None:
        return 0, {"artifact": None, "written_by": "the chief"}
    if preset.expected and options.recipe != recipes.DEFAULT:
        cli.say(f"recipe {preset.name}: expected {preset.expected}")
    return 0, {
        "artifact": str(written.path),
        "sha256": written.sha256,
        "training": written.manifest.training,
    }


def _list_recipes() -> cli.Outcome:
    presets = [recipes.load(name) for name in recipes.names()]
    table = Table()
    for column in ("recipe", "what it is", "top-1 %", "top-5 %", "of", "source"):
        table.add_column(column, justify="right" if "%" in column else "left")
    for preset in presets:
        found = preset.expected
        cells = [preset.name, preset.about]
        if found:
            top5 = "" if found.top5 is None else f"{found.top5:g}"
            cells += [f"{found.top1:g}", top5, found.of, found.source]
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
