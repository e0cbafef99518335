"""``python -m edgekit.train``: train MobileNetV2 and write the float model as a Keras artifact.

SGD with momentum, as the original repository trained; cosine or exponential decay after a linear
warm-up; L2 weight decay on convolution and dense kernels only (not on depthwise kernels, biases
and batch normalisation, as TF-slim does); label smoothing; an exponential moving average of the
weights, which is what gets written; random shift, flip and erasing.

A step splits its batch over *towers*, one a core, inside one graph: each tower computes on one
thread, which uses small cores better than many threads a layer. Training continues from its last
checkpoint when the same command is given again with ``--resume``.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt

from edgekit import artifact, cli, data, environment, outputs, schema, words
from edgekit.errors import InvalidDataError, InvalidOptionError, reason
from edgekit.formats import keras as keras_format
from edgekit.signature import Preprocessing, preprocessing

Schedule = Literal["cosine", "exponential"]


@dataclass(frozen=True)
class Recipe:
    """Hyper-parameters of a run; all of them are recorded in the manifest.

    Attributes:
        epochs: Passes over the training images.
        batch: Images a step, over all towers.
        learning_rate: Peak, after the warm-up.
        schedule: ``cosine`` to zero, or ``exponential`` with ``decay`` every epoch.
        decay: Factor an epoch of the exponential schedule.
        warmup_epochs: Linear rise from zero.
        momentum: Of SGD.
        weight_decay: Factor of ``w`` added to the gradient of convolution and dense kernels.
        label_smoothing: Probability mass spread over all classes.
        ema: Decay of the moving average of the weights; starts lower, as
            ``min(ema, (1 + step) / (10 + step))``.
        shift: Random translation in pixels, each way.
        flip: Mirror left-right at random.
        erase: Probability of erasing a random rectangle (Zhong et al. 2017, "Random Erasing").
        seed: Of initialisation, order and augmentation.
    """

    epochs: int = 30
    batch: int = 128
    learning_rate: float = 0.1
    schedule: Schedule = "cosine"
    decay: float = 0.98
    warmup_epochs: float = 1.0
    momentum: float = 0.9
    weight_decay: float = 1e-4
    label_smoothing: float = 0.1
    ema: float = 0.999
    shift: int = 2
    flip: bool = True
    erase: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        ranges: dict[str, tuple[float, float]] = {
            "epochs": (1, 1e6),
            "batch": (1, 1e6),
            "learning_rate": (1e-9, 1e3),
            "decay": (1e-9, 1),
            "warmup_epochs": (0, 1e6),
            "momentum": (0, 0.99999),
            "weight_decay": (0, 1),
            "label_smoothing": (0, 0.99),
            "ema": (0, 0.999999),
            "shift": (0, 1e4),
            "erase": (0, 1),
        }
        for name, (low, high) in ranges.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise InvalidOptionError(f"expected {low:g} <= {name} <= {high:g}, got {value}")
        if self.schedule not in ("cosine", "exponential"):
            raise InvalidOptionError(
                f"expected schedule cosine or exponential, got {self.schedule!r}"
            )

    @classmethod
    def of(cls, options: argparse.Namespace) -> Self:
        """The recipe that a command line asks for."""
        names = [entry.name for entry in fields(cls) if hasattr(options, entry.name)]
        return cls(**{name: getattr(options, name) for name in names})

    def rate(self, step: int, steps_per_epoch: int) -> float:
        """Learning rate of a step, counted from 0."""
        warmup = self.warmup_epochs * steps_per_epoch
        if step < warmup:
            return self.learning_rate * (step + 1) / max(warmup, 1)
        if self.schedule == "exponential":
            return float(self.learning_rate * self.decay ** (step // steps_per_epoch))
        total = self.epochs * steps_per_epoch
        part = (step - warmup) / max(total - warmup, 1)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * part))


def configure_threads(towers: int) -> None:
    """One thread an operation, ``towers`` operations at once; before TensorFlow's first use.

    Raises:
        InvalidOptionError: If TensorFlow runs already with other threads.
    """
    threading = keras_format.tensorflow().config.threading
    try:
        threading.set_intra_op_parallelism_threads(1)
        threading.set_inter_op_parallelism_threads(max(towers, 1))
    except RuntimeError:
        if (
            threading.get_intra_op_parallelism_threads(),
            threading.get_inter_op_parallelism_threads(),
        ) != (1, max(towers, 1)):
            raise InvalidOptionError(
                "TensorFlow was used in this process before; train in a fresh process"
            ) from None


class Trainer:
    """One model, its optimiser state and moving average, stepped over arrays of images.

    Args:
        model: Functional tf_keras model with a layer ``logits`` before its softmax.
        recipe: Hyper-parameters.
        images: uint8 or float ``[N, H, W, C]``, kept in memory.
        labels: int64 ``[N]``.
        prepare: From pixels to model input.
        towers: Parts a batch is split into.
    """

    def __init__(
        self,
        model: Any,
        recipe: Recipe,
        *,
        images: npt.NDArray[Any],
        labels: npt.NDArray[np.int64],
        prepare: Preprocessing,
        towers: int,
    ) -> None:
        tf = keras_format.tensorflow()
        if recipe.batch % towers:
            raise InvalidOptionError(
                f"expected --batch to be a multiple of the {towers} towers, got {recipe.batch}"
            )
        if len(images) < recipe.batch:
            raise InvalidDataError(
                f"expected at least one batch of {recipe.batch} training images, got {len(images)}"
            )
        self.model = model
        self.recipe = recipe
        self.towers = towers
        self.steps_per_epoch = len(images) // recipe.batch
        self.classes = int(model.output_shape[-1])
        self._prepare = prepare
        with tf.device("/CPU:0"):
            self._images = tf.constant(images)
            self._labels = tf.constant(labels)
        self._set_up(model)
        self._decayed = {id(v) for v in self.decayed}
        self._momenta = [tf.Variable(tf.zeros_like(v), trainable=False) for v in self.trainable]
        averaged = self.variables if recipe.ema else []
        self._averages = [tf.Variable(v, trainable=False) for v in averaged]
        self.step = tf.Variable(0, dtype=tf.int64, trainable=False)
        self.checkpoint = tf.train.Checkpoint(
            variables=self.variables,
            momenta=self._momenta,
            averages=self._averages,
            step=self.step,
        )
        self._run = self._function(self._steps)

    def _set_up(self, model: Any) -> None:
        """Say what is trained, what is kept, and how logits are made."""
        self.variables: list[Any] = model.variables
        self.trainable: list[Any] = model.trainable_variables
        self.decayed: list[Any] = decayed_variables(model)
        self._logits = keras_format.tf_keras().Model(model.input, model.get_layer("logits").output)

    def _function(self, steps: Callable[[Any, Any], tuple[Any, Any]]) -> Any:
        """One trace for any number of fused steps."""
        tf = keras_format.tensorflow()
        return tf.function(
            steps,
            input_signature=[
                tf.TensorSpec([None, self.recipe.batch], tf.int64),
                tf.TensorSpec([None], tf.float32),
            ],
        )

    def run_epoch_part(
        self, indices: npt.NDArray[np.int64], rates: npt.NDArray[np.float32]
    ) -> tuple[float, float]:
        """Run some steps in one graph call.

        Args:
            indices: int64 ``[steps, batch]`` image numbers.
            rates: float32 ``[steps]`` learning rates.

        Returns:
            Mean loss and the share of right answers on the augmented images.
        """
        tf = keras_format.tensorflow()
        loss, right = self._run(tf.constant(indices), tf.constant(rates))
        return float(loss), float(right)

    def averaged_weights(self) -> list[npt.NDArray[Any]]:
        """The moving averages, in the order of :attr:`variables`."""
        return [average.numpy() for average in self._averages or self.variables]

    def _steps(self, indices: Any, rates: Any) -> tuple[Any, Any]:
        tf = keras_format.tensorflow()
        loss = tf.constant(0.0)
        right = tf.constant(0.0)
        count = tf.shape(indices)[0]
        for i in tf.range(count):
            step_loss, step_right = self._one_step(indices[i], rates[i])
            loss += step_loss
            right += step_right
        steps = tf.cast(count, tf.float32)
        return loss / steps, right / steps

    def _one_step(self, indices: Any, rate: Any) -> tuple[Any, Any]:
        tf = keras_format.tensorflow()
        x, y = self._batch(indices)
        part = self.recipe.batch // self.towers
        losses, rights, gradients = [], [], []
        for tower in range(self.towers):
            tower_x, tower_y = (
                x[tower * part : (tower + 1) * part],
                y[tower * part : (tower + 1) * part],
            )
            with tf.GradientTape() as tape:
                loss, logits = self._loss(tower_x, tower_y)
            gradients.append(tape.gradient(loss, self.trainable))
            losses.append(loss)
            hits = tf.equal(tf.argmax(logits, -1), tower_y)
            rights.append(tf.reduce_mean(tf.cast(hits, tf.float32)))
        summed = [
            None if each[0] is None else tf.add_n(list(each)) / self.towers
            for each in zip(*gradients, strict=True)
        ]
        self._apply(summed, rate)
        return tf.add_n(losses) / self.towers, tf.add_n(rights) / self.towers

    def _loss(self, x: Any, y: Any) -> tuple[Any, Any]:
        """(mean loss, logits) of a part of a batch."""
        tf = keras_format.tensorflow()
        logits = tf.cast(self._logits(x, training=True), tf.float32)
        return tf.reduce_mean(self.cross_entropy(logits, y)), logits

    def cross_entropy(self, logits: Any, y: Any) -> Any:
        """Of each image, with smoothed labels."""
        tf = keras_format.tensorflow()
        targets = tf.one_hot(
            y,
            self.classes,
            on_value=1 - self.recipe.label_smoothing * (1 - 1 / self.classes),
            off_value=self.recipe.label_smoothing / self.classes,
        )
        return tf.nn.softmax_cross_entropy_with_logits(targets, logits)

    def _apply(self, gradients: list[Any], rate: Any) -> None:
        """SGD with momentum, then the moving average (Polyak and Juditsky 1992)."""
        tf = keras_format.tensorflow()
        for variable, momentum, gradient in zip(
            self.trainable, self._momenta, gradients, strict=True
        ):
            if gradient is None:  # frozen at this stage
                continue
            if id(variable) in self._decayed:
                gradient = gradient + self.recipe.weight_decay * variable
            momentum.assign(self.recipe.momentum * momentum + gradient)
            variable.assign_sub(rate * momentum)
        self.step.assign_add(1)
        step = tf.cast(self.step, tf.float32)
        decay = tf.minimum(self.recipe.ema, (1.0 + step) / (10.0 + step))
        for average, variable in zip(self._averages, self.variables, strict=bool(self._averages)):
            average.assign_sub((1 - decay) * (average - variable))

    def _batch(self, indices: Any) -> tuple[Any, Any]:
        tf = keras_format.tensorflow()
        x = tf.gather(self._images, indices)
        y = tf.gather(self._labels, indices)
        x = tf.cast(x, tf.float32)
        if self._images.dtype == tf.uint8:
            if self._prepare.channels == "bgr":
                x = tf.reverse(x, [-1])
            x = x * tf.constant(self._prepare.scale) + tf.constant(self._prepare.offset)
        return augment(x, self.recipe, self.step), y


def augment(x: Any, recipe: Recipe, step: Any) -> Any:
    """Shift, flip and erase a batch; the same for the same seed and step.

    Args:
        x: float32 ``[N, H, W, C]``.
        recipe: Gives ``shift``, ``flip``, ``erase`` and ``seed``.
        step: Scalar int64 tensor.
    """
    tf = keras_format.tensorflow()
    n, height, width = tf.shape(x)[0], x.shape[1], x.shape[2]

    def uniform(stream: int, low: int, high: int) -> Any:
        seed = tf.stack([tf.constant(recipe.seed * 16 + stream, tf.int64), step])
        return tf.random.stateless_uniform([n], seed, low, high, tf.int32)

    rows = tf.range(height)[None, :]
    columns = tf.range(width)[None, :]
    s = recipe.shift
    if s:
        x = tf.pad(x, [[0, 0], [s, s], [s, s], [0, 0]])
        x = tf.gather(x, rows + uniform(0, 0, 2 * s + 1)[:, None], batch_dims=1)
        columns = columns + uniform(1, 0, 2 * s + 1)[:, None]
    else:
        columns = tf.tile(columns, [n, 1])
    if recipe.flip:
        mirrored = uniform(2, 0, 2)[:, None] == 1
        columns = tf.where(mirrored, columns[:, ::-1], columns)
    x = tf.transpose(tf.gather(tf.transpose(x, [0, 2, 1, 3]), columns, batch_dims=1), [0, 2, 1, 3])
    if recipe.erase:
        high = uniform(3, height // 8, height // 2)[:, None]
        wide = uniform(4, width // 8, width // 2)[:, None]
        top = uniform(5, 0, height)[:, None]
        left = uniform(6, 0, width)[:, None]
        chosen = uniform(7, 0, 1_000_000)[:, None] < int(recipe.erase * 1_000_000)
        in_rows = (rows >= top - high // 2) & (rows < top + high // 2) & chosen
        in_columns = (tf.range(width)[None, :] >= left - wide // 2) & (
            tf.range(width)[None, :] < left + wide // 2
        )
        erased = in_rows[:, :, None] & in_columns[:, None, :]
        x = tf.where(erased[..., None], tf.reduce_mean(x), x)
    return x


def decayed_variables(model: Any) -> list[Any]:
    """Kernels of convolutions and dense layers; not depthwise, biases, batch normalisation."""
    layers = keras_format.tf_keras().layers
    return [
        layer.kernel
        for layer in model.layers
        if isinstance(layer, layers.Conv2D | layers.Dense)
        and not isinstance(layer, layers.DepthwiseConv2D)
    ]


def train(
    *,
    out: Path,
    dataset: str = "fashion_mnist",
    width: float = 0.35,
    lowered_strides: int = 2,
    recipe: Recipe | None = None,
    prepare: str = "unit",
    towers: int | None = None,
    checkpoints: Path | None = None,
    tensorboard: Path | None = None,
    resume: bool = False,
    limit: int | None = None,
    force: bool = False,
    command: str = "",
) -> artifact.Artifact:
    """Train MobileNetV2 and write the averaged weights as a Keras artifact.

    Args:
        out: Folder of the artifact; its name is the model id.
        dataset: What :func:`edgekit.data.open_word` takes, with labels; pictures need a ``size``.
        width: Multiplier of the channels.
        lowered_strides: See :func:`edgekit.models.mobilenet_v2.mobilenet_v2`.
        recipe: Hyper-parameters; the default is for small data.
        prepare: Preprocessing name or file.
        towers: Parts of a batch that run side by side; default one a core.
        checkpoints: Folder for resuming; default a sibling of ``out``.
        tensorboard: Folder for TensorBoard logs; none when absent.
        resume: Continue from the last checkpoint.
        limit: Use only the first images of the training set.
        force: Replace ``out`` if it exists.
        command: Recorded in the manifest.

    Raises:
        EdgekitError: On a bad option, data, or an output that exists.
    """
    from edgekit.models.mobilenet_v2 import mobilenet_v2

    recipe = recipe or Recipe()
    outputs.check_free(out, force=force)
    checkpoints = checkpoints_of(out, checkpoints, resume=resume)
    prepared = preprocessing(prepare)
    training = data.load(dataset, "train", prepare=prepared, limit=limit)
    testing = data.load(dataset, "test") if dataset == "fashion_mnist" else training
    if training.labels is None or testing.labels is None:
        raise InvalidDataError(f"{dataset}: training needs labels")
    classes = len(training.class_names) or int(training.labels.max()) + 1
    names = training.class_names or tuple(str(i) for i in range(classes))
    towers = towers or environment.cores()

    configure_threads(towers)
    tf = keras_format.tensorflow()
    tf.random.set_seed(recipe.seed)
    model = mobilenet_v2(
        width=width,
        input_shape=tuple(training.images.shape[1:]),
        classes=classes,
        lowered_strides=lowered_strides,
        seed=recipe.seed,
    )
    trainer = Trainer(
        model,
        recipe,
        images=training.images,
        labels=training.labels,
        prepare=prepared,
        towers=towers,
    )
    about = {"data": training.sha256, "width": width, "lowered_strides": lowered_strides}
    log = fit(trainer, checkpoints, tensorboard, resume, about)
    for variable, average in zip(model.variables, trainer.averaged_weights(), strict=True):
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
                "width": width,
                "lowered_strides": lowered_strides,
                "recipe": asdict(recipe),
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
    return written


def checkpoints_of(out: Path, given: Path | None, *, resume: bool) -> Path:
    """The folder of a run's checkpoints.

    Raises:
        InvalidOptionError: If it holds an earlier run that is not resumed.
    """
    folder = given or out.with_name(f"{out.name}.checkpoints")
    if folder.exists() and not resume:
        raise InvalidOptionError(
            f"{folder} holds an earlier run; pass --resume to continue it, or delete it"
        )
    return folder


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


def fit(
    trainer: Trainer,
    checkpoints: Path,
    tensorboard: Path | None,
    resume: bool,
    about: dict[str, Any],
    watch: Callable[[], dict[str, float]] | None = None,
    every: int = 0,
) -> list[dict[str, float]]:
    """Run all epochs that a recipe has, from the last checkpoint if resumed.

    Args:
        trainer: What to step.
        checkpoints: Folder of checkpoints, one an epoch and look, and the log.
        tensorboard: Folder for TensorBoard logs; none when absent.
        resume: Continue from the last checkpoint.
        about: What makes the run what it is; one that is resumed has to have the same.
        watch: Looks at the model at every ``every``-th step, about, and at each epoch's end; what
            it says is shown and logged.
        every: Steps between two looks.

    Returns:
        The log, an entry an epoch or look.

    Raises:
        InvalidDataError: If the loss becomes NaN or infinite.
        InvalidOptionError: If another run is resumed than the one that was begun.
    """
    tf = keras_format.tensorflow()
    _check_same_run(checkpoints / "run.json", {"recipe": asdict(trainer.recipe), **about}, resume)
    recipe, per_epoch = trainer.recipe, trainer.steps_per_epoch
    manager = tf.train.CheckpointManager(trainer.checkpoint, str(checkpoints), max_to_keep=2)
    log_path = checkpoints / "log.jsonl"
    log: list[dict[str, float]] = []
    if resume and manager.latest_checkpoint:
        trainer.checkpoint.restore(manager.latest_checkpoint).assert_existing_objects_matched()
        log = _read_log(log_path, int(trainer.step.numpy()))
        cli.console.print(f"resumed at step {int(trainer.step.numpy())}")
    elif resume:
        cli.say(f"no checkpoint in {checkpoints}: starting from the beginning")
    writer = tf.summary.create_file_writer(str(tensorboard)) if tensorboard else None
    fused = min(per_epoch, 20, every or 20)

    def keep(entry: dict[str, float]) -> None:
        log.append(entry)
        _summarize(writer, entry)
        manager.save()
        outputs.write_bytes(log_path, log_bytes(log), force=True)

    with cli.progress("steps") as bar:
        task = bar.add_task("training", total=recipe.epochs * per_epoch, note="")
        for epoch in range(int(trainer.step.numpy()) // per_epoch, recipe.epochs):
            order = (
                np.random.default_rng([recipe.seed, epoch])
                .permutation(len(trainer._labels))[: per_epoch * recipe.batch]
                .reshape(per_epoch, recipe.batch)
            )
            started = time.perf_counter()
            losses, rights, weights = [], [], []
            done = int(trainer.step.numpy()) - epoch * per_epoch
            for first in range(done, per_epoch, fused):
                chunk = order[first : first + fused]
                steps = range(epoch * per_epoch + first, epoch * per_epoch + first + len(chunk))
                rates = np.array([recipe.rate(s, per_epoch) for s in steps], np.float32)
                loss, right = trainer.run_epoch_part(chunk, rates)
                if not math.isfinite(loss):
                    raise InvalidDataError(
                        f"the loss became {loss} at step {steps[-1]}; lower --learning-rate"
                    )
                losses.append(loss)
                rights.append(right)
                weights.append(len(chunk))
                seen = sum(weights) * recipe.batch
                speed = seen / (time.perf_counter() - started)
                bar.update(
                    task, completed=steps[-1] + 1, note=f"loss {loss:.3f}  {speed:.0f} images/s"
                )
                looked = (
                    watch is not None and every and steps[0] // every != (steps[-1] + 1) // every
                )
                if watch is not None and looked and steps[-1] + 1 < (epoch + 1) * per_epoch:
                    keep({"step": steps[-1] + 1, **watch()})
            entry = {
                "epoch": epoch + 1,
                "step": int(trainer.step.numpy()),
                "loss": float(np.average(losses, weights=weights)),
                "augmented_top1": 100 * float(np.average(rights, weights=weights)),
                "learning_rate": float(rates[-1]),
                "images_per_second": round(speed, 1),
            }
            cli.console.print(
                f"epoch {epoch + 1}/{recipe.epochs}  loss {entry['loss']:.4f}  "
                f"top-1 {entry['augmented_top1']:.2f} % (augmented)  {speed:.0f} images/s"
            )
            keep(entry | (watch() if watch is not None else {}))
    return log


def _read_log(path: Path, step: int) -> list[dict[str, float]]:
    """The log of a run up to a step."""
    try:
        entries = [
            schema.from_json(dict[str, int | float], schema.parse(line), "entry")
            for line in path.read_text(encoding="utf-8").splitlines()
        ]
        return [entry for entry in entries if entry["step"] <= step]
    except (OSError, ValueError, KeyError, RecursionError) as exc:
        raise InvalidOptionError(
            f"--resume: {path} cannot be read ({reason(exc)}); delete {path.parent} and begin again"
        ) from None


def _check_same_run(path: Path, about: dict[str, Any], resume: bool) -> None:
    """What was begun is what goes on; else say what differs."""
    if resume and path.is_file():
        begun = schema.read_json(path, error=InvalidOptionError, what="the options of a run")
        if not isinstance(begun, dict) or not isinstance(begun.get("recipe"), dict):
            raise InvalidOptionError(f"--resume: {path} does not say which run it is; delete it")
        now = json.loads(json.dumps(about))
        flat = [{**found.pop("recipe"), **found} for found in (begun, now)]
        other = [
            f"{key} was {flat[0].get(key)} and is {flat[1].get(key)}"
            for key in sorted({*flat[0], *flat[1]})
            if flat[0].get(key) != flat[1].get(key)
        ]
        if other:
            raise InvalidOptionError(
                f"--resume: {path.parent} holds another run: {', '.join(other)}; give the same "
                f"options, or delete it"
            )
        return
    outputs.write_text(path, json.dumps(about) + "\n", force=True)


def _summarize(writer: Any, entry: dict[str, float]) -> None:
    if writer is None:
        return
    tf = keras_format.tensorflow()
    with writer.as_default(step=int(entry["step"])):
        for name, value in entry.items():
            if name not in ("epoch", "step"):
                tf.summary.scalar(name, value)
    writer.flush()


def log_bytes(log: list[dict[str, float]]) -> bytes:
    text = io.StringIO()
    for entry in log:
        text.write(json.dumps(entry) + "\n")
    return text.getvalue().encode()


def parser() -> cli.Parser:
    """Options of ``python -m edgekit.train``."""
    result = cli.Parser(
        "train",
        description="Train MobileNetV2 on a data set and write the float model as an artifact.",
        examples="""
python -m edgekit.train --out exports/mine                     # Fashion-MNIST, width 0.35
python -m edgekit.train --out exports/mine --resume            # after a kill
python -m edgekit.train --data images.npz --width 0.5 --out m  # x uint8 [N,H,W,C], y [N]
""",
    )
    default = Recipe()
    add = result.add_argument
    add("--data", default="fashion_mnist", metavar="IMAGES", help=data.WORDS)
    add("--size", type=cli.positive_int, help="height and width that pictures are resized to")
    add(
        "--out", type=Path, required=True, help="artifact folder to write; its name is the model id"
    )
    add("--width", type=float, default=0.35, help="channel multiplier (default: %(default)s)")
    add(
        "--lowered-strides",
        type=int,
        default=2,
        help="stride-2 layers, from the input on, that run with stride 1 (default: %(default)s)",
    )
    add("--preprocessing", default="unit", help="unit, symmetric, … or FILE.json (default: unit)")
    add("--epochs", type=cli.positive_int, default=default.epochs)
    add("--batch", type=cli.positive_int, default=default.batch)
    add("--learning-rate", type=float, default=default.learning_rate)
    add("--schedule", choices=("cosine", "exponential"), default=default.schedule)
    add("--decay", type=float, default=default.decay, help="factor an epoch, exponential schedule")
    add("--warmup-epochs", type=float, default=default.warmup_epochs)
    add("--momentum", type=float, default=default.momentum)
    add("--weight-decay", type=float, default=default.weight_decay)
    add("--label-smoothing", type=float, default=default.label_smoothing)
    add("--ema", type=float, default=default.ema, help="decay of the weights' moving average")
    add("--shift", type=int, default=default.shift, help="augmentation: pixels each way")
    add("--no-flip", dest="flip", action="store_false", help="augmentation: no mirroring")
    add("--erase", type=float, default=default.erase, help="augmentation: probability of erasing")
    add("--seed", type=int, default=default.seed)
    add_run_arguments(result)
    return result


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


def _act(options: argparse.Namespace) -> cli.Outcome:
    written = train(
        dataset=words.join(options.data, size=options.size),
        width=options.width,
        lowered_strides=options.lowered_strides,
        recipe=Recipe.of(options),
        prepare=options.preprocessing,
        **run_settings(options),
    )
    return 0, {
        "artifact": str(written.path),
        "sha256": written.sha256,
        "training": written.manifest.training,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the verb."""
    return cli.run(parser(), _act, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
