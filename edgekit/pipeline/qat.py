"""Fine-tune a float model so that it predicts in int8 as it was trained."""

from __future__ import annotations

import hashlib
import math
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

from edgekit import data
from edgekit.base import outputs
from edgekit.base.errors import InvalidDataError, InvalidModelError, InvalidOptionError, WriterError
from edgekit.base.progress import SILENT, Progress
from edgekit.graph import onnx
from edgekit.graph.flatbuffer import Graph, short_name
from edgekit.pipeline.calibration import cached
from edgekit.quantization import profiles
from edgekit.quantization.ranges import RANGE_MODES, RangeMode
from edgekit.quantization.table import CalibrationTable
from edgekit.records import artifact, environment
from edgekit.records.encodings import FAKE_QUANT_FILE, FILE, FakeQuantRecipe, differences
from edgekit.records.signature import Shapes
from edgekit.runtimes import open_runner
from edgekit.sources import convert, float_model
from edgekit.sources import keras as keras_format
from edgekit.tasks import kind as tasks
from edgekit.training import recipes
from edgekit.training.finetune import resized
from edgekit.training.loop import checkpoints_of, fit, log_bytes
from edgekit.training.recipes import Recipe
from edgekit.training.trainer import Trainer, configure_threads
from edgekit.writers import onnx_integers, tflite_integers

if TYPE_CHECKING:
    from edgekit.quantization.fake import FakeQuantized

Floats = npt.NDArray[np.float32]
#: Images of the training set that are kept from training, to look at the deployed model with.
HELD = 1000
#: Steps between two looks at the deployed model.
EVERY = 200


@dataclass(frozen=True)
class QatRecipe(Recipe):
    """Hyper-parameters of fine-tuning; those of training with other defaults, and more.

    Attributes:
        distill: Share of the float model's predictions in the loss; the rest is the labels'.
        temperature: Temperature of both softmaxes in the teacher's part.
        frozen: Last part of the steps, in which statistics and ranges stay.
        ranges: ``moving-average`` or ``learned``.
        range_decay: Decay of the moving average per step of one tower.
        weight_bits: 2 to 8; less than 8 bits are stored in 8.
    """

    epochs: int = 6
    learning_rate: float = 0.01
    warmup_epochs: float = 0.1
    ema: float = 0.0
    distill: float = 0.5
    temperature: float = 2.0
    frozen: float = 0.3
    ranges: RangeMode = "moving-average"
    range_decay: float = 0.99
    weight_bits: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        limits: dict[str, tuple[float, float]] = {
            "distill": (0, 1),
            "temperature": (0.01, 100),
            "frozen": (0, 1),
            "range_decay": (0, 0.999999),
            "weight_bits": (2, 8),
        }
        recipes.check(self, limits, {"ranges": RANGE_MODES})


class QatTrainer(Trainer):
    """A fake-quantized model and its teacher, stepped over arrays of images.

    Args:
        fake: What is trained.
        teacher: The float model; it stays as it is.
        labelled: Whether labels mean something; without them the teacher alone is followed.
        settings: Settings of :class:`edgekit.train.Trainer`.
    """

    PHASES: ClassVar[int] = 2

    def __init__(
        self,
        fake: FakeQuantized,
        teacher: Any,
        recipe: QatRecipe,
        *,
        labelled: bool = True,
        **settings: Any,
    ) -> None:
        self._fake = fake
        self._distill = recipe.distill if labelled else 1.0
        super().__init__(teacher, recipe, **settings)
        total = recipe.total_steps(self.steps_per_epoch)
        self._first_frozen = math.ceil(total * (1 - recipe.frozen))

    def _set_up(self, model: Any) -> None:
        self.variables = self._fake.variables
        self.trainable = self._fake.trainable
        self.decayed = self._fake.decayed
        self._teacher = model

    def _phase_of(self, step: int) -> int:
        """Frozen, 1, when the last part has been reached."""
        return int(step >= self._first_frozen)

    def _loss(self, images: Any, labels: Any) -> tuple[Any, Any]:
        tf = keras_format.tensorflow()
        logits = self._fake.logits(images, training=self._phase == 0)
        loss = tf.constant(0.0)
        if self._distill < 1:
            loss += (1 - self._distill) * tf.reduce_mean(self.cross_entropy(logits, labels))
        if self._distill > 0:
            loss += self._distill * self._to_teacher(images, logits)
        return loss, logits

    def _to_teacher(self, images: Any, logits: Any) -> Any:
        """Mean KL divergence from the teacher's outputs, times the squared temperature."""
        tf = keras_format.tensorflow()
        recipe = self.recipe
        assert isinstance(recipe, QatRecipe)
        predictions = tf.stop_gradient(self._teacher(images, training=False))
        # of probabilities the logarithm is as good as the logits were: softmax ignores a constant
        teacher_logits = (
            tf.math.log(predictions + 1e-12) if self._fake.ends_in_softmax else predictions
        )
        teacher_logs = tf.nn.log_softmax(teacher_logits / recipe.temperature)
        student_logs = tf.nn.log_softmax(logits / recipe.temperature)
        divergences = tf.reduce_sum(tf.exp(teacher_logs) * (teacher_logs - student_logs), axis=-1)
        return recipe.temperature**2 * tf.reduce_mean(divergences)

    def _apply(self, gradients: list[Any], rate: Any) -> None:
        super()._apply(gradients, rate)
        self._fake.settle()


@dataclass(frozen=True)
class Score:
    """Scores of one form of the model.

    Attributes:
        top1: Percent right, or None without labels.
        agreement: Percent of predictions that are those of the fake-quantized model.
    """

    top1: float | None
    agreement: float


def qat(
    model: Path | None = None,
    *,
    out: Path,
    dataset: str | None = None,
    calibration: str | None = None,
    recipe: QatRecipe | None = None,
    device: str = profiles.DEFAULT,
    leave_float: Sequence[str] = (),
    preprocessing: str | None = None,
    shapes: Shapes | None = None,
    towers: int | None = None,
    checkpoints: Path | None = None,
    tensorboard: Path | None = None,
    every: int = EVERY,
    resume: bool = False,
    limit: int | None = None,
    force: bool = False,
    command: str = "",
    progress: Progress = SILENT,
) -> tuple[artifact.Artifact, dict[str, Score]]:
    """Fine-tune with fake quantization and write the trained model as a Keras artifact.

    Args:
        model: A float Keras artifact or ``.keras`` file; default the shipped model.
        out: Folder of the artifact; its name is the model id.
        dataset: What :func:`edgekit.data.open_word` takes, with labels unless ``distill`` is 1.
            Default for the shipped model: ``fashion_mnist``.
        calibration: Images or table to take the first ranges from; default the first 1,000 of
            the training images.
        recipe: Hyper-parameters.
        device: The device profile that the numbers are trained for, or ``auto``.
        leave_float: Layers to train in float.
        preprocessing: For a ``.keras`` file: name or JSON file.
        shapes: Sizes of a file's input with free axes, by name; under ``""`` of the only one.
        towers: Parts of a batch that run side by side; default one for each core.
        checkpoints: Folder for resuming; default a sibling of ``out``.
        tensorboard: Folder for TensorBoard logs; none when absent.
        every: Steps between two looks at the deployed model.
        resume: Continue from the last checkpoint.
        limit: Use only the first images of the training set.
        force: Replace ``out`` if it exists.
        command: Recorded in the manifest.
        progress: Hears how far it is, and looks at the deployed model.

    Returns:
        The artifact, and the scores on the test images (of your own data: those kept from
        training) by form.

    Raises:
        EdgekitError: On a bad option, model (:func:`trainable`), data, or an output that exists.
    """
    recipe = recipe or QatRecipe()
    outputs.check_free(out, force=force)
    checkpoints = checkpoints_of(out, checkpoints, resume=resume)
    profile = profiles.profile(device)
    if "int8" not in profile.precisions.get("tflite", profile.precisions.get("onnx", ())):
        raise InvalidOptionError(f"device {profile.name} takes no int8 ({profile.about})")
    dataset = float_model.data_word(dataset, model)
    needs_labels = recipe.distill < 1 or dataset == "fashion_mnist"
    opened = data.open_word(dataset, "train" if needs_labels else "calibration", progress=progress)
    towers = towers or environment.cores()
    configure_threads(towers)
    source = float_model.load(model, preprocessing=preprocessing, shapes=shapes)
    source = trainable(source, model, leave_float)
    images = source.images(opened, limit)
    training, held = _split(images)
    _check_data(training, source, recipe)
    canonical = convert.from_keras(source.model)
    table = _table(canonical, calibration, training, source, dataset, progress)
    from edgekit.quantization import fake as fake_quant

    fake = fake_quant.FakeQuantized(
        source.model,
        canonical,
        table.ranges,
        source.preprocessing.apply(training.images[: fake_quant.IMAGES]),
        profile,
        leave_float=leave_float,
        mode=recipe.ranges,
        bits=recipe.weight_bits,
        decay=recipe.range_decay,
        prior=table.count * towers / recipe.batch,
    )
    for name in fake.untrained:
        progress.say(f"keeps its calibrated range, untrained: {name}")
    trainer = QatTrainer(
        fake,
        source.model,
        recipe,
        labelled=training.labels is not None,
        images=training.images,
        labels=_labels(training),
        prepare=source.preprocessing,
        towers=towers,
    )

    trained = predictor(fake.model)

    def watch() -> dict[str, float]:
        scores, sentence = _look(fake, held, source.preprocessing.apply(held.images), trained)
        progress.say(sentence)
        return scores

    about = {"data": images.sha256, "model": source.source.sha256, "device": profile.name}
    log = fit(trainer, checkpoints, tensorboard, resume, about, watch, every, progress)
    testing = held
    if dataset == "fashion_mnist":
        testing = data.load(dataset, "test", progress=progress)
    values = source.preprocessing.apply(testing.images)
    teacher = predict(source.model, values)
    fake.put_into(source.model)
    final = convert.from_keras(source.model)
    files, manifest = _content(source, fake, final, log)
    manifest |= {
        "model_id": out.name,
        "calibration": artifact.CalibrationRecord(
            table.data, table.data_sha256, table.count, table.method
        ),
        "command": command,
    }
    with tempfile.TemporaryDirectory() as folder:
        trial = artifact.write(Path(folder) / out.name, files, manifest, force=False)
        scores = _scores(trial, profile, testing.labels, values, teacher, progress)
        grid = _check_grid(trial, fake, final)
    training_record = {
        "recipe": asdict(recipe),
        "towers": towers,
        "data": images.name,
        "data_sha256": images.sha256,
        "images": len(training),
        "tested_on": testing.name if testing is not held else f"{images.name}, kept from training",
        "tested_images": len(testing),
        "scores": {name: asdict(score) for name, score in scores.items()},
        "grid_numbers": grid,
    }
    written = artifact.write(out, files, manifest | {"training": training_record}, force=force)
    shutil.rmtree(checkpoints, ignore_errors=True)
    return written, scores


def trainable(
    source: float_model.FloatModel, name: object, leave_float: Sequence[str] = ()
) -> float_model.FloatModel:
    """Refuse a model that cannot be fine-tuned, before any images are read.

    Args:
        source: The float model.
        name: What errors call it.
        leave_float: Layers to train in float.

    Returns:
        The same, with an input of the sizes that were given.

    Raises:
        InvalidModelError: If it is no Keras 2 model, was trained for int8 already, does not make
            the scores of two classes or more of one picture, or has a layer that cannot be
            fake-quantized.
        InvalidOptionError: If ``leave_float`` names no layer.
        MissingDependencyError: If tensorflow-model-optimization is not installed.
    """
    if source.kind != "keras" or not keras_format.is_keras_2(source.model):
        raise InvalidModelError(
            f"{name}: fine-tuning needs a Keras 2 model, as tfmot does; build it with tf_keras"
        )
    if source.encodings is not None:
        raise InvalidModelError(
            f"{name} was trained with fake quantization already; pass the float model"
        )
    from edgekit.quantization import fake as fake_quant

    fake_quant.check(source.model, leave_float)
    size, scores = source.inputs[0].sample, tasks.scores(source.outputs)
    if len(size) != 3:
        raise InvalidModelError(
            f"{name}: expected one input [H, W, C] to train on, got {list(size)}"
        )
    if scores < 2 or source.task == "regression":
        shape = list(source.outputs[0].shape)
        raise InvalidModelError(
            f"{name}: expected scores of two classes or more, [N, classes], to train on, got "
            f"{'numbers that are no classes, ' if scores > 1 else ''}{shape}; fine-tuning follows "
            f"classes"
        )
    if not source.source.shapes:
        return source
    return replace(source, model=resized(source.model, (size[0], size[1], size[2])))


def _split(images: data.ImageSet) -> tuple[data.ImageSet, data.ImageSet]:
    """(to train on, to look with): evenly spread images are kept from training."""
    count = min(HELD, len(images) // 10)
    if count < 1:
        raise InvalidDataError(
            f"{images.name}: expected at least 10 images to train on, got {len(images)}"
        )
    held = np.unique(np.linspace(0, len(images) - 1, count).astype(int))
    to_train = np.setdiff1d(np.arange(len(images)), held)
    return images.take(to_train), images.take(held)


def _check_data(images: data.ImageSet, source: float_model.FloatModel, recipe: QatRecipe) -> None:
    expected = tuple(source.model.input_shape[1:])
    if images.images.shape[1:] != expected:
        raise InvalidDataError(
            f"{images.name}: expected images {list(expected)} as the model's input, got "
            f"{list(images.images.shape[1:])}"
        )
    classes = int(source.model.output_shape[-1])
    if images.labels is None and recipe.distill < 1:
        raise InvalidDataError(
            f"{images.name}: has no labels; add y, or pass --distill 1 to follow the float model "
            f"alone"
        )
    if images.labels is not None and int(images.labels.max()) >= classes:
        raise InvalidDataError(
            f"{images.name}: label {int(images.labels.max())} is outside the model's {classes} "
            f"classes (0 to {classes - 1})"
        )


def _labels(images: data.ImageSet) -> npt.NDArray[np.int64]:
    return np.zeros(len(images), np.int64) if images.labels is None else images.labels


def _table(
    canonical: bytes,
    calibration: str | None,
    training: data.ImageSet,
    source: float_model.FloatModel,
    dataset: str,
    progress: Progress,
) -> CalibrationTable:
    """Where ranges start."""
    if calibration is not None and calibration.endswith(".json"):
        table = CalibrationTable.load(Path(calibration))
        if table.graph_sha256 != hashlib.sha256(canonical).hexdigest():
            raise InvalidDataError(
                f"{calibration} was made from another graph; calibrate this model"
            )
        return table
    if calibration is None and dataset != "fashion_mnist":
        images, word = training.head(HELD), dataset
    else:
        word = calibration or dataset
        images = source.images(data.open_word(word, "calibration", progress=progress))
    prepare = source.preprocessing
    return cached(canonical, images, prepare=prepare, method="minmax", word=word, progress=progress)


def _look(
    fake: FakeQuantized, held: data.ImageSet, values: Floats, predicted: Callable[[Floats], Floats]
) -> tuple[dict[str, float], str]:
    """Write the int8 TFLite file of this step, run it, and compare it with the training.

    Returns:
        Metrics for the log, and a sentence.
    """
    graph, stored, _ = fake.deployed()
    predictions = outputs_of(tflite_integers.write(graph, stored), "tflite", values)
    trained = predicted(values)
    score = _score(predictions, trained, held.labels)
    metrics = {"deployed_agreement": score.agreement}
    sentence = f"deployed int8 predicts as trained {score.agreement:.2f} %"
    if held.labels is not None:
        own = _score(trained, trained, held.labels).top1
        assert score.top1 is not None and own is not None
        metrics |= {"deployed_top1": score.top1, "trained_top1": own}
        sentence += f", top-1 {score.top1:.2f} % (as trained {own:.2f} %)"
    return metrics, f"  {sentence} of {len(held)} images kept from training"


def _scores(
    trial: artifact.Artifact,
    profile: profiles.DeviceProfile,
    labels: npt.NDArray[np.int64] | None,
    values: Floats,
    teacher: Floats,
    progress: Progress,
) -> dict[str, Score]:
    """Rebuild and export what was written, as a user would, and run all beside the float model."""
    from edgekit.pipeline.exporting import export
    from edgekit.pipeline.options import Options
    from edgekit.quantization import fake

    trained = predict(fake.load(trial.model_path), values)
    scores = {
        "float32": _score(teacher, trained, labels),
        "fake-quantized": _score(trained, trained, labels),
    }
    for target in ("tflite", "onnx"):
        runs = profile.provider == "CPUExecutionProvider"
        if not runs or "int8" not in profile.precisions.get(target, ()):
            continue
        exported = export(
            trial.path,
            Options(device=profile.name),
            target=target,
            precision="int8",
            out=trial.path.with_name(target),
            progress=progress,
        )
        predictions = outputs_of(exported.model_path, target, values)
        scores[f"{target} int8"] = _score(predictions, trained, labels)
    return scores


def _check_grid(trial: artifact.Artifact, fake: FakeQuantized, final: bytes) -> int:
    """Compare the numbers that training rounded to with those that the exported files store.

    Returns:
        How many integers, scales and zero points are equal in each file: all.

    Raises:
        WriterError: If one differs.
    """
    trained = fake.grid(final)
    for target in ("tflite", "onnx"):
        folder = trial.path.with_name(target)
        if not folder.is_dir():
            continue
        path = artifact.Artifact.load(folder).model_path
        if target == "tflite":
            stored = tflite_integers.read_file(path.read_bytes())
        else:
            stored = onnx_integers.read_stored(onnx.load(path), Graph(final))
        of_layers = stored.without((), (), stored.constants).without_biases()
        differing = differences(of_layers, trained)
        if differing:
            raise WriterError(
                f"the {target} file differs from the grid of training in {len(differing)} places, "
                f"first {differing[0].what} of {short_name(differing[0].tensor)}"
            )
    return trained.numbers()


def _score(predictions: Floats, trained: Floats, labels: npt.NDArray[np.int64] | None) -> Score:
    if not np.isfinite(predictions).all():
        raise InvalidModelError("the model gives NaN or infinity; lower --learning-rate")
    chosen = predictions.argmax(axis=1)
    return Score(
        None if labels is None else 100 * float((chosen == labels).mean()),
        100 * float((chosen == trained.argmax(axis=1)).mean()),
    )


def outputs_of(model: bytes | Path, format: str, values: Floats) -> Floats:
    """Real outputs of a deployed file."""
    with tempfile.TemporaryDirectory() as folder:
        path = model if isinstance(model, Path) else Path(folder) / f"model.{format}"
        if isinstance(model, bytes):
            path.write_bytes(model)
        with open_runner(path, format=format, threads=environment.cores()) as runner:
            read, written = runner.signature.inputs[0], runner.signature.outputs[0]
            parts = []
            for start in range(0, len(values), runner.batch):
                feed = {read.name: read.quantize(values[start : start + runner.batch])}
                parts.append(written.dequantize(runner.run(feed)[written.name]))
    return np.concatenate(parts)


def predictor(model: Any) -> Callable[[Floats], Floats]:
    """Predictions of a Keras model with the weights that it has by then; its graph is built once,
    which takes longer than most uses of it."""
    tf = keras_format.tensorflow()
    forward = tf.function(lambda values: model(values, training=False), reduce_retracing=True)

    def predicted(values: Floats) -> Floats:
        parts = (tf.constant(values[i : i + 250]) for i in range(0, len(values), 250))
        return np.concatenate([forward(part).numpy() for part in parts])

    return predicted


def predict(model: Any, values: Floats) -> Floats:
    """Predictions of a Keras model, once."""
    return predictor(model)(values)


def _content(
    source: float_model.FloatModel,
    fake: FakeQuantized,
    final: bytes,
    log: list[dict[str, float]],
) -> tuple[dict[str, bytes | Path], dict[str, Any]]:
    """(files, manifest) of the trained model: ``source`` holds it, ``final`` is its graph."""
    encodings = fake.encodings(final)
    rebuild = FakeQuantRecipe(fake.activations(), fake.bits, fake.left_float)
    return {
        "model.keras": keras_format.to_bytes(source.model),
        FILE: encodings.dumps().encode(),
        FAKE_QUANT_FILE: rebuild.dumps().encode(),
        "training.jsonl": log_bytes(log),
    }, {
        "format": "keras",
        "precision": "int8",
        "model_file": "model.keras",
        "signature": keras_format.signature(source.model),
        "preprocessing": source.preprocessing,
        **source.judged(final),
        "source": source.source,
        "device": fake.profile.name,
    }
