"""Train a network and write the float model as a Keras artifact."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit import data
from edgekit.base import outputs, words
from edgekit.base.errors import InvalidDataError, InvalidOptionError
from edgekit.base.progress import SILENT, Progress
from edgekit.data.boxes import Views
from edgekit.records import artifact, environment
from edgekit.records.decoding import Decoding
from edgekit.records.signature import Preprocessing, preprocessing
from edgekit.sources import arrange
from edgekit.sources import keras as keras_format
from edgekit.sources.float_model import FloatModel, data_word
from edgekit.tasks import detection, segmentation
from edgekit.tasks.decode import decode
from edgekit.training import finetune, networks, recipes
from edgekit.training import replicas as many
from edgekit.training.detection import DetectionTrainer, misfits
from edgekit.training.inputs import (
    InputOptions,
    Inputs,
    Mode,
    in_colour,
    inputs,
    objects,
)
from edgekit.training.loop import checkpoints_of, fit, log_bytes
from edgekit.training.networks import Network
from edgekit.training.recipes import METRICS, Preset
from edgekit.training.segmentation import SegmentationTrainer
from edgekit.training.stream import Stream, StreamTrainer
from edgekit.training.trainer import Trainer, configure_threads

#: Data of each task where none are named.
_WORDS = {"detection": "scenes", "segmentation": "scenes:masks"}
#: Share of a set without a test part that fine-tuning holds out.
VALIDATION = 0.2


def train(
    *,
    out: Path,
    dataset: str | None = None,
    preset: Preset | None = None,
    start: Path | None = None,
    size: int | None = None,
    prepare: str | None = None,
    channels: int | None = None,
    input: Mode = "auto",
    validation: float | None = None,
    skip_broken: bool = False,
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
    progress: Progress = SILENT,
) -> artifact.Artifact | None:
    """Train a network, or fine-tune a model, and write the averaged weights as a Keras artifact.

    Args:
        out: Folder of the artifact; its name is the model id.
        dataset: What :func:`edgekit.data.open_word` takes, with labels, boxes or masks, as the
            preset's task needs; pictures need a ``size``. Default for a network of edgekit's, and
            with the shipped model as ``start``: ``fashion_mnist``, ``scenes`` or ``scenes:masks``.
        preset: Recipe and network; the default is for small data, with ``start`` for fine-tuning.
        start: Model to fine-tune: a Keras artifact or ``.keras`` file; its network is taken, of
            a detector or segmenter the layers of MobileNetV2 up to the last bottleneck.
        size: Height and width that pictures are resized to.
        prepare: Preprocessing name or file; default the preset's, or what ``start`` brings.
        channels: Channels of the input, with ``start``: 1 or 3; default that of ``start``, or 3 if
            it takes grey pictures and these are in colour.
        input: ``auto``, ``memory`` or ``stream``; see :class:`InputOptions`.
        validation: Share of the images to hold out and test with; default 0, with ``start`` 0.2.
        skip_broken: In a stream: leave out pictures that cannot be decoded, and count them.
        data_format: ``NHWC`` or ``NCHW``, while it trains.
        precision: ``float32``, ``mixed_float16`` or ``bfloat16``, while it trains.
        strategy: Devices that share a batch; see :func:`edgekit.training.replicas.replicas`.
        replicas: With strategy ``mirrored``: how many.
        towers: Parts of a replica's images that run side by side; default one for each core,
            one on a GPU.
        checkpoints: Folder for resuming; default a sibling of ``out``.
        tensorboard: Folder for TensorBoard logs; none when absent.
        resume: Continue from the last checkpoint.
        limit: Use only the first images of the training set.
        force: Replace ``out`` if it exists.
        command: Recorded in the manifest.
        progress: Hears how far it is and what was decided on the way.

    Returns:
        The artifact; None in a process that is not the chief.

    Raises:
        EdgekitError: On a bad option, model, data, or an output that exists.
    """
    preset = preset or recipes.load(recipes.DEFAULT if start is None else recipes.FINE_TUNING)
    recipe, task = preset.recipe, preset.task
    own = data_word(dataset, start)
    dataset = dataset or _WORDS.get(task, own)
    outputs.check_free(out, force=force)
    checkpoints = checkpoints_of(out, checkpoints, resume=resume)
    if channels is not None and (start is None or task != "classification"):
        raise InvalidOptionError("channels is for fine-tuning a classifier; pass --from MODEL")
    arrange.check(data_format, precision)
    if task != "classification" and data_format != "NHWC":
        raise InvalidOptionError(f"{task}: expected --data-format NHWC, got {data_format}")
    tf = keras_format.tensorflow()
    device = "/GPU:0" if tf.config.list_physical_devices("GPU") else "/CPU:0"
    towers = towers or _towers(device, strategy, replicas)
    configure_threads(towers)
    group = many.replicas(strategy, replicas)
    word = words.join(dataset, size=size)
    begun = _begun(preset, start, size, prepare, channels, lambda: in_colour(word), progress)
    options = InputOptions(
        recipe,
        begun.prepare,
        shape=begun.shape,
        limit=limit,
        mode=input,
        validation=validation,
        default=0.0 if start is None else VALIDATION,
        skip_broken=skip_broken,
        progress=progress,
    )
    if task == "classification":
        images = inputs(word, options)
    else:
        images = objects(word, options, task)
    if (data_format, precision) != ("NHWC", "float32"):
        arrange.require(data_format, precision, device=device, training=True)
    tf.random.set_seed(recipe.seed)

    with group.scope():
        network = begun.build(images)
        model = network.model
        arranged = arrange.arrange(
            model, data_format=data_format, precision=precision, matmul=device == "/CPU:0"
        )
    trainer = _trainer(
        images,
        arranged,
        preset,
        network.decoding,
        fine_tuned=start is not None,
        prepare=begun.prepare,
        towers=towers,
        replicas=group,
        data_format=data_format,
        scaled=precision == "mixed_float16",
        progress=progress,
    )
    about = {"data": images.sha256, "data_format": data_format, "precision": precision}
    about |= begun.about
    log = fit(trainer, checkpoints, tensorboard, resume, about, progress=progress)
    averages = trainer.averaged_weights()
    if not group.chief:
        group.wait()
        return None
    if group.count > 1:
        model = begun.build(images).model  # whose variables are this process's alone
    for variable, average in zip(model.variables, averages, strict=True):
        variable.assign(average)
    metrics = measured(model, images.testing, begun.prepare, network.decoding, task)
    listed = ", ".join(f"{METRICS[name]} {value:.2f} %" for name, value in metrics.items())
    progress.say(f"{images.tested_on}: {listed} of {len(images.testing)}")
    written = artifact.write(
        out,
        {
            "model.keras": keras_format.to_bytes(model),
            "training.jsonl": log_bytes(log),
            **images.tables,
        },
        {
            "model_id": out.name,
            "format": "keras",
            "precision": "float32",
            "model_file": "model.keras",
            "signature": keras_format.signature(model),
            "preprocessing": begun.prepare,
            "class_names": images.class_names,
            "task": "" if task == "classification" else task,
            "decoding": network.decoding,
            "command": command,
            "training": {
                **begun.about,
                "preset": preset.name,
                "expected": asdict(preset.expected) if preset.expected else None,
                "recipe": asdict(recipe),
                "data_format": data_format,
                "precision": precision,
                "strategy": strategy,
                "replicas": group.count,
                "towers": towers,
                "data": images.name,
                "data_sha256": images.sha256,
                "images": len(images.training),
                "validation": images.split,
                **_of_stream(trainer),
                "parameters": model.count_params(),
                **{f"{images.tested_on}_{name}": value for name, value in metrics.items()},
            },
        },
        force=force,
    )
    shutil.rmtree(checkpoints, ignore_errors=True)
    group.wait()
    return written


@dataclass(frozen=True)
class _Begun:
    """What is trained.

    Attributes:
        shape: ``(H, W, C)`` of its input; None where the images say it.
        build: Makes the network for some images.
        about: For the manifest, and what a resumed run has to have the same.
    """

    prepare: Preprocessing
    shape: tuple[int, int, int] | None
    build: Callable[[Inputs], Network]
    about: dict[str, Any]


def _begun(
    preset: Preset,
    start: Path | None,
    size: int | None,
    prepare: str | None,
    channels: int | None,
    colours: Callable[[], bool],
    progress: Progress = SILENT,
) -> _Begun:
    if start is not None and preset.task == "classification":
        begun = finetune.start(
            start,
            size=size,
            preprocessing=prepare,
            channels=channels,
            colours=colours,
            progress=progress,
        )
        dropout, seed = preset.network.dropout, preset.recipe.seed

        def tuned(images: Inputs) -> Network:
            return Network(begun.build(len(images.class_names), dropout=dropout, seed=seed))

        own = {"dropout": dropout, "channels": begun.shape[2]}
        return _Begun(begun.prepare, begun.shape, tuned, _origin(begun.original) | own)
    if preset.recipe.head_epochs:
        raise InvalidOptionError("head_epochs is for fine-tuning a classifier; pass --from MODEL")
    prepared = preprocessing(prepare or preset.preprocessing)
    about: dict[str, Any] = {"architecture": networks.architecture(preset)}
    beginning: networks.Backbone | None = None
    if start is not None:
        beginning = networks.backbone(start, prepare)
        prepared = beginning.original.preprocessing
        preset = recipes.changed(preset, recipe={}, network={"width": beginning.width})
        about |= _origin(beginning.original)
    about |= asdict(preset.network)
    if extra := preset.detector or preset.segmenter:
        about |= asdict(extra)

    def fresh(images: Inputs) -> Network:
        network = networks.build(preset, images.shape, len(images.class_names))
        if beginning is not None:
            beginning.give(network.model)
        return network

    return _Begun(prepared, None, fresh, about)


def _origin(original: FloatModel) -> dict[str, Any]:
    return {"from": original.model_id, "from_sha256": original.source.sha256}


def _trainer(
    images: Inputs,
    model: Any,
    preset: Preset,
    decoding: Decoding | None,
    *,
    fine_tuned: bool,
    progress: Progress = SILENT,
    **settings: Any,
) -> Trainer:
    training, recipe = images.training, preset.recipe
    if isinstance(training, Stream):
        kind = finetune.StreamFineTuner if fine_tuned else StreamTrainer
        return kind(model, recipe, stream=training, progress=progress, **settings)
    if decoding is not None:
        assert decoding.anchors is not None
        for sentence in misfits(decoding.anchors, training):
            progress.say(f"warning: {sentence}")
        return DetectionTrainer(
            model, recipe, images=training, anchors=decoding.anchors, **settings
        )
    if preset.task == "segmentation":
        return SegmentationTrainer(model, recipe, images=training, **settings)
    in_memory = finetune.FineTuner if fine_tuned else Trainer
    return in_memory(model, recipe, images=training.images, labels=training.labels, **settings)


def _of_stream(trainer: Trainer) -> dict[str, Any]:
    if not isinstance(trainer, StreamTrainer):
        return {"input": "memory"}
    return {"input": "stream", "left_out": trainer.left_out}


def _towers(device: str, strategy: str, replicas: int | None) -> int:
    """One a core that a replica has; one on a GPU, which fills itself."""
    if device != "/CPU:0":
        return 1
    shared = replicas if strategy == "mirrored" and replicas else 1
    return max(1, environment.cores() // shared)


def measured(
    model: Any,
    images: data.ImageSet,
    prepare: Preprocessing,
    decoding: Decoding | None,
    task: recipes.Task,
) -> dict[str, float]:
    """How right a model is, percent by the name of the metric.

    Raises:
        InvalidDataError: If it gives NaN.
    """
    if task == "classification":
        top1, top5 = accuracy(model, images, prepare)
        return {"top1": top1, "top5": top5}
    outputs = _outputs(model, images, prepare)
    height, width = images.images.shape[1:3]
    if decoding is None:
        assert images.masks is not None
        (logits,) = outputs.values()
        layout = segmentation.layout(logits.shape[1:], logits.shape[-1])
        flat = logits.reshape(len(logits), -1)
        confusion = segmentation.confusion(flat, layout, images.masks, images.views)
        return {"miou": 100 * confusion.miou()}
    assert images.boxes is not None
    views = images.views or Views.whole(len(images), height, width)
    boxes = decode(outputs, decoding, views, (height, width))
    classes = outputs[decoding.scores[0]].shape[-1]
    score = detection.score(detection.match(images.boxes, boxes, classes))
    return {"map50": 100 * score.mean(0.5), "map": 100 * score.mean()}


def _outputs(
    model: Any, images: data.ImageSet, prepare: Preprocessing
) -> dict[str, npt.NDArray[np.float32]]:
    """Outputs of all images, float32 ``[N, ...]`` by name."""
    tf = keras_format.tensorflow()
    forward = tf.function(lambda x: model(x, training=False))
    names, parts = model.output_names, []
    for start in range(0, len(images), 100):
        values = forward(tf.constant(prepare.apply(images.images[start : start + 100])))
        parts.append([each.numpy() for each in tf.nest.flatten(values)])
    joined = [np.concatenate(each) for each in zip(*parts, strict=True)]
    return dict(zip(names, joined, strict=True))


def accuracy(model: Any, images: data.ImageSet, prepare: Preprocessing) -> tuple[float, float]:
    """Top-1 and top-5 in percent."""
    tf = keras_format.tensorflow()
    forward = tf.function(lambda x: model(x, training=False))
    top1 = top5 = 0
    assert images.labels is not None
    for start in range(0, len(images), 500):
        part = slice(start, start + 500)
        predictions = forward(tf.constant(prepare.apply(images.images[part]))).numpy()
        if not np.isfinite(predictions).all():
            raise InvalidDataError("the model gives NaN; lower --learning-rate")
        labels = images.labels[part]
        order = np.argsort(-predictions, axis=1)[:, :5]
        top1 += int((order[:, 0] == labels).sum())
        top5 += int((order == labels[:, None]).any(axis=1).sum())
    return 100 * top1 / len(images), 100 * top5 / len(images)


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of any run of a :class:`Trainer`; :func:`run_settings` takes them."""
    add = parser.add_argument
    add(
        "--towers",
        type=words.positive_int,
        help="parts of a batch that are computed in parallel (default: one for each core)",
    )
    add("--limit", type=words.positive_int, help="use the first N training images only")
    add(
        "--checkpoints",
        type=Path,
        metavar="DIR",
        help="where the state for --resume is kept (default: FOLDER.checkpoints)",
    )
    add("--tensorboard", type=Path, metavar="DIR", help="write logs for TensorBoard there")
    add("--resume", action="store_true", help="continue from the last checkpoint")
    add("--force", action="store_true", help="replace FOLDER if it exists")


def run_settings(options: argparse.Namespace) -> dict[str, Any]:
    """What :func:`add_run_arguments` was given, as arguments of :func:`train`."""
    names = ("out", "towers", "limit", "checkpoints", "tensorboard", "resume", "force")
    return {name: getattr(options, name) for name in names}


def options_for(options: argparse.Namespace, cls: type) -> dict[str, Any]:
    """Options that were given and are fields of a dataclass."""
    return {f.name: getattr(options, f.name) for f in fields(cls) if hasattr(options, f.name)}
