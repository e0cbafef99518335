"""Recipes of training as data: a TOML file each, with what it is expected to reach and who says so.

The files beside this module are found by name; a file of your own has the same keys::

    about = "what it is"
    preprocessing = "symmetric"

    [recipe]            # keys of Recipe; those left out have its defaults
    optimizer = "rmsprop"

    [network]           # keys of Network
    width = 1.0

    [detector]          # of a detector: keys of edgekit.models.ssdlite.Detector
    [segmenter]         # of a segmenter: keys of edgekit.models.deeplab.Segmenter

    [expected]          # optional
    top1 = 72.0
    of = "ImageNet validation"
    source = "who published it"
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from edgekit.base import schema, words
from edgekit.base.errors import InvalidOptionError
from edgekit.models.deeplab import Segmenter
from edgekit.models.ssdlite import Detector

Task = Literal["classification", "detection", "segmentation"]
Schedule = Literal["cosine", "exponential"]
Optimizer = Literal["sgd", "rmsprop"]
Augmentation = Literal["small", "plain", "inception"]
TASKS: tuple[Task, ...] = get_args(Task)
SCHEDULES: tuple[Schedule, ...] = get_args(Schedule)
OPTIMIZERS: tuple[Optimizer, ...] = get_args(Optimizer)
AUGMENTATIONS: tuple[Augmentation, ...] = get_args(Augmentation)

DEFAULT = "small"
FINE_TUNING = "finetune"
#: Recipe of each task where none is named.
DEFAULTS: Mapping[Task, str] = {
    "classification": DEFAULT,
    "detection": "ssdlite",
    "segmentation": "deeplab",
}
_FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Recipe:
    """Hyper-parameters of a run; all of them are recorded in the manifest.

    Attributes:
        epochs: Passes over the training images; of fine-tuning, those that train all layers.
        head_epochs: In fine-tuning: passes before that train the new classifier only.
        head_learning_rate: Peak in those, falling to 0 by half a cosine.
        steps: Steps to train, instead of ``epochs``; 0 for those of ``epochs``.
        batch: Images a step, over all towers and replicas.
        optimizer: ``sgd`` with momentum, or ``rmsprop`` (edgekit.training.optimizers).
        learning_rate: Peak, after the warm-up.
        schedule: ``cosine`` to zero, or ``exponential`` with ``decay`` every ``decay_epochs``.
        decay: Factor of the exponential schedule.
        decay_epochs: Epochs between two decays, at least a step.
        warmup_epochs: Linear rise from zero.
        momentum: Momentum of both optimizers.
        rms_decay: Decay of RMSProp's mean of squared gradients.
        rms_epsilon: Epsilon of RMSProp, under the root.
        weight_decay: Factor of ``w`` added to the gradient of convolution and dense kernels.
        label_smoothing: Probability mass spread over all classes.
        ema: Decay of the moving average of the weights; starts lower, as
            ``min(ema, (1 + step) / (10 + step))``.
        augmentation: ``small``: images are brought to the model's size first, then cropped,
            shifted, mirrored and erased in batches. ``plain`` and ``inception``
            (:mod:`edgekit.training.distort`): each picture is cropped from its own size while it is
            decoded; shifting and erasing come after.
        crop: Least share of an image's area that a random crop keeps; it is resized to the whole
            size (Szegedy et al. 2015, "Going Deeper with Convolutions", section 6). 1: no crop.
            ``plain`` has a crop of its own.
        shift: Random translation in pixels, each way.
        flip: Mirror left-right at random.
        erase: Probability of erasing a random rectangle (Zhong et al. 2017, "Random Erasing").
        seed: Seed of initialisation, order and augmentation.
    """

    epochs: int = 30
    head_epochs: int = 0
    head_learning_rate: float = 0.1
    steps: int = 0
    batch: int = 128
    optimizer: Optimizer = "sgd"
    learning_rate: float = 0.1
    schedule: Schedule = "cosine"
    decay: float = 0.98
    decay_epochs: float = 1.0
    warmup_epochs: float = 1.0
    momentum: float = 0.9
    rms_decay: float = 0.9
    rms_epsilon: float = 1.0
    weight_decay: float = 1e-4
    label_smoothing: float = 0.1
    ema: float = 0.999
    augmentation: Augmentation = "small"
    crop: float = 1.0
    shift: int = 2
    flip: bool = True
    erase: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        limits: dict[str, tuple[float, float]] = {
            "epochs": (1, 1e6),
            "head_epochs": (0, 1e6),
            "head_learning_rate": (1e-9, 1e3),
            "steps": (0, 1e9),
            "batch": (1, 1e6),
            "learning_rate": (1e-9, 1e3),
            "decay": (1e-9, 1),
            "decay_epochs": (1e-6, 1e6),
            "warmup_epochs": (0, 1e6),
            "momentum": (0, 0.99999),
            "rms_decay": (0, 0.99999),
            "rms_epsilon": (1e-30, 1e3),
            "weight_decay": (0, 1),
            "label_smoothing": (0, 0.99),
            "ema": (0, 0.999999),
            "crop": (0.01, 1),
            "shift": (0, 1e4),
            "erase": (0, 1),
        }
        choices = {
            "schedule": SCHEDULES,
            "optimizer": OPTIMIZERS,
            "augmentation": AUGMENTATIONS,
        }
        check(self, limits, choices)
        if self.augmentation == "plain" and self.crop < 1:
            raise InvalidOptionError(
                f"augmentation plain has a crop of its own; expected crop 1, got {self.crop:g}"
            )

    def total_steps(self, steps_per_epoch: int) -> int:
        """Steps of the whole run."""
        return self.steps or (self.head_epochs + self.epochs) * steps_per_epoch

    def rate(self, step: int, steps_per_epoch: int) -> float:
        """Learning rate of a step, counted from 0."""
        head = self.head_epochs * steps_per_epoch
        if step < head:
            return self.head_learning_rate * 0.5 * (1 + math.cos(math.pi * step / head))
        step -= head
        warmup = self.warmup_epochs * steps_per_epoch
        if step < warmup:
            return self.learning_rate * (step + 1) / max(warmup, 1)
        if self.schedule == "exponential":
            every = max(1, round(self.decay_epochs * steps_per_epoch))
            return float(self.learning_rate * self.decay ** (step // every))
        part = (step - warmup) / max(self.total_steps(steps_per_epoch) - head - warmup, 1)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * part))


def check(
    values: object,
    limits: Mapping[str, tuple[float, float]],
    choices: Mapping[str, Sequence[str]],
) -> None:
    """Refuse attributes outside of their limits or choices.

    Raises:
        InvalidOptionError: If there is one; NaN is outside.
    """
    for name, (low, high) in limits.items():
        value = getattr(values, name)
        if not low <= value <= high:
            raise InvalidOptionError(f"expected {low:g} <= {name} <= {high:g}, got {value}")
    for name, known in choices.items():
        value = getattr(values, name)
        words.one_of(name, value, known)


@dataclass(frozen=True)
class Network:
    """The MobileNetV2 that is trained; see :func:`edgekit.models.mobilenet_v2.mobilenet_v2`.

    Attributes:
        width: Multiplier of the channels.
        lowered_strides: Stride-2 layers, from the input on, that run with stride 1.
        dropout: Fraction dropped before the classifier.
        bn_momentum: Decay of the moving averages of batch statistics.
    """

    width: float = 0.35
    lowered_strides: int = 2
    dropout: float = 0.2
    bn_momentum: float = 0.99


#: Metrics of :class:`Expected` in words.
METRICS = {
    "top1": "top-1",
    "top5": "top-5",
    "map50": "mAP@0.5",
    "map": "mAP@[.5:.95]",
    "miou": "mIoU",
}


@dataclass(frozen=True)
class Expected:
    """What a recipe reached where it comes from.

    Attributes:
        of: Images and input size.
        source: Who says so.
        top1: Percent.
        top5: Percent, where it was published.
        map50: Mean average precision at IoU 0.5 of a detector, percent.
        map: The mean of those at IoU 0.5 to 0.95, percent.
        miou: Mean IoU of a segmenter, percent.
    """

    of: str
    source: str
    top1: float | None = None
    top5: float | None = None
    map50: float | None = None
    map: float | None = None
    miou: float | None = None

    def __post_init__(self) -> None:
        if not self.values():
            raise InvalidOptionError(f"expected one of {', '.join(METRICS)}, got none")

    def values(self) -> dict[str, float]:
        """What is known, by the name of the metric."""
        known = {name: getattr(self, name) for name in METRICS}
        return {name: value for name, value in known.items() if value is not None}

    @property
    def metrics(self) -> str:
        """Metrics and values, in words."""
        return ", ".join(f"{METRICS[name]} {value:g} %" for name, value in self.values().items())

    def __str__(self) -> str:
        return f"{self.metrics} of {self.of} ({self.source})"


@dataclass(frozen=True)
class Preset:
    """A recipe with its name and all that belongs to it.

    Attributes:
        name: Its own, or the path of the file.
        about: One sentence.
        preprocessing: Name or JSON file.
        chosen: Hyper-parameters that its source does not publish, and what was taken for them.
        differs: What the source does otherwise.
        detector: What makes a detector of the network; None for no detector.
        segmenter: What makes a segmenter of it; None for no segmenter.
    """

    name: str
    about: str
    preprocessing: str = "unit"
    recipe: Recipe = Recipe()
    network: Network = Network()
    expected: Expected | None = None
    chosen: tuple[str, ...] = ()
    differs: tuple[str, ...] = ()
    detector: Detector | None = None
    segmenter: Segmenter | None = None

    def __post_init__(self) -> None:
        if self.detector and self.segmenter:
            raise InvalidOptionError("expected [detector] or [segmenter], got both")
        if self.task == "classification":
            return
        recipe, network = self.recipe, self.network
        unused = {
            "head_epochs": recipe.head_epochs,
            "label_smoothing": recipe.label_smoothing,
            "lowered_strides": network.lowered_strides,
            "dropout": network.dropout if self.detector else 0,
        }
        for name, value in unused.items():
            if value:
                raise InvalidOptionError(f"{name} is not for {self.task}; expected 0, got {value}")
        if recipe.augmentation != "small":
            raise InvalidOptionError(
                f"{self.task}: expected augmentation small, got {recipe.augmentation}"
            )

    @property
    def task(self) -> Task:
        """What it trains for."""
        if self.detector:
            return "detection"
        return "segmentation" if self.segmenter else "classification"


def names() -> tuple[str, ...]:
    """Names of the recipes that ship, the default first."""
    found = sorted(path.stem for path in _FOLDER.glob("*.toml"))
    return (DEFAULT, *(name for name in found if name != DEFAULT))


def load(word: str) -> Preset:
    """Read a recipe by its name, or from a TOML file.

    Raises:
        InvalidOptionError: If there is none, or a key or value does not fit.
    """
    own = word.endswith(".toml")
    path = Path(word) if own else _FOLDER / f"{word}.toml"
    if not own and word not in names():
        raise InvalidOptionError(
            f"unknown recipe {word!r}; expected one of {', '.join(names())} or a FILE.toml"
            f"{words.near(word, names())}"
        )
    try:
        found, _ = schema.read_toml(path, error=InvalidOptionError, what="a recipe of train")
    except InvalidOptionError as exc:
        raise InvalidOptionError(f"recipe {exc}") from None
    if "name" in found:
        raise InvalidOptionError(f"recipe {path}: unknown key 'name'; its file name is its name")
    try:
        return schema.from_json(Preset, {"name": word, **found}, "recipe")
    except (schema.SchemaError, InvalidOptionError) as exc:
        raise InvalidOptionError(f"recipe {path}: {exc}") from None


def changed(preset: Preset, *, recipe: dict[str, Any], network: dict[str, Any]) -> Preset:
    """A recipe with some values replaced. ``epochs`` alone takes the place of its ``steps``.

    Raises:
        InvalidOptionError: If a value is out of range, or both ``epochs`` and ``steps`` are given.
    """
    if recipe.get("steps") and "epochs" in recipe:
        raise InvalidOptionError("expected --epochs or --steps, got both")
    if "epochs" in recipe:
        recipe = {**recipe, "steps": 0}
    return replace(
        preset,
        recipe=replace(preset.recipe, **recipe),
        network=replace(preset.network, **network),
    )
