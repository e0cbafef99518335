"""The images that a run trains on and is tested with: in memory or streamed, with or without a part
held out.
"""

from __future__ import annotations

import csv
import io
import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from edgekit import data
from edgekit.base import words
from edgekit.base.errors import InvalidDataError, InvalidOptionError
from edgekit.base.progress import SILENT, Progress
from edgekit.data import decode
from edgekit.data import images as image_sets
from edgekit.data.images import Split
from edgekit.data.masks import VOID
from edgekit.data.source import Fit, Source, images_of
from edgekit.records import environment
from edgekit.records.signature import Preprocessing
from edgekit.training.recipes import Recipe, Task
from edgekit.training.stream import (
    ArrayFeed,
    Feed,
    NumberFeed,
    Stream,
    stream_of,
)

Mode = Literal["auto", "memory", "stream"]
MODES: tuple[Mode, ...] = get_args(Mode)
#: Training images that a streamed run is tested with when there are no others.
SOME = 2000
#: Pictures that are looked at for colours, evenly over the set.
LOOKED_AT = 32


@dataclass(frozen=True)
class Inputs:
    """Images to train on and to test with.

    Attributes:
        training: Arrays in memory, or a stream.
        testing: With labels.
        tested_on: ``test``, ``validation`` (held out of the training set) or ``train``.
        class_names: One a class.
        tables: CSV tables for ``--data csv:FILE`` by name, of the pictures that were held out and
            of the others; none where nothing was held out, or pictures have no paths.
        split: How they were drawn; None where nothing was held out.
    """

    training: data.ImageSet | Stream
    testing: data.ImageSet
    tested_on: str
    class_names: tuple[str, ...]
    tables: Mapping[str, bytes] = field(default_factory=dict)
    split: dict[str, Any] | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(H, W, C)``."""
        if isinstance(self.training, Stream):
            return self.training.shape
        return _three(self.training)

    @property
    def name(self) -> str:
        """Of the training set, as tables call it."""
        training = self.training
        return training.feed.name if isinstance(training, Stream) else training.name

    @property
    def sha256(self) -> str:
        """Of the training images; of a stream of pictures of their names, lengths and labels."""
        training = self.training
        return training.feed.sha256 if isinstance(training, Stream) else training.sha256


@dataclass(frozen=True)
class InputOptions:
    """How images are to come.

    Attributes:
        shape: ``(H, W, C)`` of the model; None where the data say it.
        mode: ``auto`` streams if pictures are cropped from their own sizes or do not fit memory.
        validation: Share to hold out; 0 for none, None for none if the data have a test part and
            else ``default``.
        default: See there.
        skip_broken: In a stream: leave out what cannot be decoded.
        progress: Hears whether images are streamed, and what loading them says.
    """

    recipe: Recipe
    prepare: Preprocessing
    shape: tuple[int, int, int] | None = None
    limit: int | None = None
    mode: Mode = "auto"
    validation: float | None = None
    default: float = 0.0
    skip_broken: bool = False
    progress: Progress = SILENT

    def __post_init__(self) -> None:
        words.one_of("input", self.mode, MODES)
        if self.mode == "memory" and self.recipe.augmentation != "small":
            raise InvalidOptionError(
                f"augmentation {self.recipe.augmentation} crops pictures while they are decoded; "
                f"leave out --input memory, or pass --augmentation small"
            )
        if self.validation is not None and not 0 <= self.validation < 1:
            raise InvalidOptionError(f"expected 0 <= validation < 1, got {self.validation}")

    def share(self, word: str) -> float:
        """What is held out of a set."""
        if not data.has_test_part(word):
            return self.default if self.validation is None else self.validation
        if self.validation:
            raise InvalidOptionError(f"{word} has a test part; leave out --validation")
        return 0.0

    def streams(self, name: str, count: int | None, shape: tuple[int, ...]) -> bool:
        """Decide, and say so."""
        if self.mode == "memory":
            return False
        why = ""
        size = (count or 0) * math.prod(shape)
        available = environment.available_memory()
        if self.recipe.augmentation != "small":
            why = f"augmentation {self.recipe.augmentation} crops pictures of any size"
        elif self.mode == "stream":
            why = "as asked for"
        elif 2 * size > available:
            why = f"{size / 1e9:.1f} GB decoded, {available / 1e9:.1f} GB of memory are free"
        if why:
            shown = "" if count is None else f"{count:,} images "
            self.progress.say(f"{name}: {shown}streamed ({why})")
        return bool(why)


def in_colour(word: str) -> bool:
    """Whether the first pictures of a ``--data`` word that can be decoded are, some of them.

    Raises:
        EdgekitError: If they cannot be used.
    """
    source = data.open_word(word, "train").source
    if isinstance(source, data.ImageSet):
        return source.images.ndim == 4 and source.images.shape[3] == 3
    spread = None
    if source.count is not None:
        spread = np.unique(np.linspace(0, source.count - 1, LOOKED_AT).astype(np.int64))
    for entry in itertools.islice(source.entries(spread), LOOKED_AT):
        try:
            if decode.in_colour(decode.opened(entry.content())):
                return True
        except decode.PictureError:  # which is said when all are decoded
            continue
    return False


def inputs(word: str, options: InputOptions) -> Inputs:
    """Open the images of a ``--data`` word.

    Raises:
        EdgekitError: If they cannot be used, or an option does not fit them.
    """
    share = options.share(word)
    sequence = data.sequential(word, "train", progress=options.progress)
    if sequence is not None:
        shape = data.shape_of(word, sequence.size, options.shape)
        count = sequence.samples or len(sequence.part)
        if options.streams(word, min(count, options.limit or count), shape):
            return _sequential(word, sequence, shape, share, options)
    opened = data.open_word(word, "train", progress=options.progress)
    if isinstance(opened.source, Source) and opened.source.count is not None:
        return _pictures(word, opened, opened.source, share, options)
    images = opened.load(shape=options.shape, prepare=options.prepare, limit=options.limit)
    if options.shape is not None and images.images.shape[1:] != options.shape:
        raise InvalidDataError(
            f"{images.name}: expected images {list(options.shape)} as the model's input, got "
            f"{list(images.images.shape[1:])}"
        )
    if images.labels is None:
        raise InvalidDataError(f"{word}: training needs labels")
    names = _names(images.class_names, images.labels)
    testing, training, record = images, images, None
    if share:
        rest, held = split(images.name, images.labels, share, options.recipe.seed)
        training, testing = images.take(rest), images.take(held)
        record = _record(share, options.recipe.seed, testing)
    elif data.has_test_part(word):
        testing = _tested(word, images.images.shape[1:], len(names), options)
    tested_on = "validation" if share else "test" if testing is not images else "train"
    if not isinstance(opened.source, Source) and options.streams(
        word, len(training), training.images.shape[1:]
    ):
        feed = ArrayFeed(training, names)
        stream = Stream(feed, _three(training), options.prepare, options.recipe)
        return Inputs(stream, testing, tested_on, names, split=record)
    if options.recipe.augmentation != "small":
        raise InvalidOptionError(
            f"{word}: what is iterated once cannot be streamed; pass --augmentation small"
        )
    return Inputs(training, testing, tested_on, names, split=record)


def objects(word: str, options: InputOptions, task: Task) -> Inputs:
    """Open the images of a ``--data`` word that have boxes, or masks.

    Raises:
        EdgekitError: If they cannot be used, or an option does not fit them.
    """
    if options.mode == "stream":
        raise InvalidOptionError(f"{task}: images are held in memory; leave out --input stream")
    share = options.share(word)

    def load(split: Split) -> data.ImageSet:
        limit = options.limit if split == "train" else None
        images = data.load(
            word, split, prepare=options.prepare, limit=limit, progress=options.progress
        )
        _three(images)
        right, kinds = (images.boxes, "boxes") if task == "detection" else (images.masks, "masks")
        if right is None:
            raise InvalidDataError(
                f"{word}: expected images with {kinds} for --task {task}, got "
                f"{_what_is_there(images)}"
            )
        return images

    images = load("train")
    size, available = images.images.nbytes, environment.available_memory()
    if 2 * size > available:
        raise InvalidDataError(
            f"{images.name}: {size / 1e9:.1f} GB decoded, {available / 1e9:.1f} GB of memory are "
            f"free; take fewer with --limit, or a smaller --size"
        )
    names = images.class_names or _numbered(images)
    testing, training, tested_on, record = images, images, "train", None
    if share:
        seed = options.recipe.seed
        held = max(1, min(len(images) - 1, round(share * len(images))))
        order = np.random.default_rng(seed).permutation(len(images))
        training, testing = images.take(np.sort(order[held:])), images.take(np.sort(order[:held]))
        tested_on, record = "validation", _record(share, seed, testing)
    elif data.has_test_part(word):
        testing, tested_on = load("test"), "test"
        if testing.class_names not in (names, ()):
            raise InvalidDataError(
                f"{word}: the test part has other classes than the training part"
            )
    return Inputs(training, testing, tested_on, names, split=record)


def _what_is_there(images: data.ImageSet) -> str:
    kinds = {"labels": images.labels, "boxes": images.boxes, "masks": images.masks}
    return " and ".join(kind for kind, value in kinds.items() if value is not None) or "none"


def _numbered(images: data.ImageSet) -> tuple[str, ...]:
    """Names of classes that have none: their numbers."""
    if images.boxes is not None:
        highest = int(images.boxes.classes.max(initial=0))
    else:
        assert images.masks is not None
        masks = (images.masks[i] for i in range(len(images)))
        highest = max(1, *(int(np.max(m, where=m != VOID, initial=0)) for m in masks))
    return tuple(str(number) for number in range(highest + 1))


def _three(images: data.ImageSet) -> tuple[int, int, int]:
    shape = images.images.shape
    if len(shape) != 4:
        raise InvalidDataError(f"{images.name}: expected images [N, H, W, C], got {list(shape)}")
    return int(shape[1]), int(shape[2]), int(shape[3])


def _names(classes: tuple[str, ...], labels: npt.NDArray[np.int64]) -> tuple[str, ...]:
    if classes and int(labels.max()) >= len(classes):
        raise InvalidDataError(f"label {int(labels.max())} is outside of {len(classes)} classes")
    return classes or tuple(str(i) for i in range(int(labels.max()) + 1))


def _sequential(
    word: str,
    sequence: data.Sequential,
    shape: tuple[int, int, int],
    share: float,
    options: InputOptions,
) -> Inputs:
    if share:
        raise InvalidOptionError(
            f"{word}: nothing can be held out of what is read in sequence; pass --validation 0, or "
            f"a folder with train-*-of-* and validation-*-of-*"
        )
    stream = stream_of(
        word,
        sequence,
        shape=shape,
        prepare=options.prepare,
        recipe=options.recipe,
        limit=options.limit,
        skip_broken=options.skip_broken,
    )
    names = stream.feed.classes
    if data.has_test_part(word):
        return Inputs(stream, _tested(word, shape, len(names), options), "test", names)
    return Inputs(stream, _some(stream), "train", names)


def _tested(
    word: str, shape: tuple[int, ...], classes: int, options: InputOptions
) -> data.ImageSet:
    """The test part of a set."""
    size = None if word == "fashion_mnist" else shape
    testing = data.load(
        word, "test", shape=size, prepare=options.prepare, progress=options.progress
    )
    if testing.labels is None or int(testing.labels.max()) >= classes:
        raise InvalidDataError(f"{word}: the test part has other classes than the {classes} here")
    return testing


def _some(stream: Stream) -> data.ImageSet:
    """Some training images as testing sees them."""
    count = min(SOME, len(stream))
    plain = replace(stream, recipe=replace(stream.recipe, augmentation="small", crop=1.0, batch=1))
    pixels, labels = [], []
    for x, y, _ in plain.batches(0, count).take(count).as_numpy_iterator():
        pixels.append(x[0])
        labels.append(int(y[0]))
    return image_sets.make(
        f"{stream.feed.name}[{count} of {len(stream)}]", np.stack(pixels), np.array(labels)
    )


def _pictures(
    word: str, opened: data.Opened, source: Source, share: float, options: InputOptions
) -> Inputs:
    """Pictures that are found by number."""
    shape = opened.shape(options.shape)
    assert source.count is not None
    if source.labels is None:
        raise InvalidDataError(f"{word}: training needs labels")
    numbering = opened.numbering(source, (), options.prepare.class_offset)
    assert numbering is not None
    labels = numbering.apply(source.labels)
    known = data.class_count(word)
    if known is None:
        names = _names(numbering.class_names, labels)
    else:
        names = tuple(str(i) for i in range(known + options.prepare.class_offset))
    count, seed = source.count, options.recipe.seed
    chosen, name = np.arange(count), source.name
    if opened.samples is not None:
        chosen = image_sets.stratified(name, source.labels, count, opened.samples, opened.seed)
        name = image_sets.sample_name(name, opened.samples, count, opened.seed)
    if options.limit is not None and options.limit < len(chosen):
        chosen, name = chosen[: options.limit], f"{name}[:{options.limit}]"
    fit = Fit(shape, options.prepare, opened.background)

    def decoded(numbers: npt.NDArray[np.int64], what: str) -> data.ImageSet:
        images = images_of(
            replace(source, name=f"{name}{what}"),
            fit,
            chosen=numbers,
            number=numbering.apply,
            class_names=names,
            progress=options.progress,
        )
        for warning in images.warnings:
            options.progress.say(f"warning: {warning}")
        return images

    streams = options.streams(word, len(chosen), shape)
    rest, held, record = chosen, chosen[: SOME if streams else None], None
    tables: dict[str, bytes] = {}
    if share:
        kept, out = split(name, labels[chosen], share, seed)
        rest, held = chosen[kept], chosen[out]
        for part, numbers in (("training", rest), ("validation", held)):
            table = _table(word, source, numbers, [names[i] for i in labels[numbers]])
            tables |= {f"{part}.csv": table} if table else {}
    tested_on, testing = "validation" if share else "train", None
    if data.has_test_part(word):
        tested_on, testing = "test", _tested(word, shape, len(names), options)
    elif share or streams:
        testing = decoded(held, "[held out]" if share else f"[:{len(held)}]")
        record = _record(share, seed, testing) if share else None
    training: data.ImageSet | Stream
    if streams:
        feed: Feed = NumberFeed(replace(source, name=name), rest, labels[rest], names)
        training = Stream(
            feed, shape, options.prepare, options.recipe, opened.background, options.skip_broken
        )
    else:
        training = decoded(rest, "")
        testing = testing or training
    assert testing is not None
    return Inputs(training, testing, tested_on, names, tables, record)


def split(
    name: str, labels: npt.NDArray[np.int64], share: float, seed: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Numbers to train on and numbers held out, each in order: the same share of every class.

    Every class keeps at least one image and gives at least one.

    Raises:
        InvalidDataError: If a class has one image only.
    """
    random = np.random.default_rng(seed)
    held = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        if len(members) < 2:
            raise InvalidDataError(
                f"{name}: class {int(label)} has one image; expected at least 2 to hold one out, "
                f"or pass --validation 0"
            )
        count = min(max(1, round(share * len(members))), len(members) - 1)
        held.append(random.permutation(members)[:count])
    out = np.sort(np.concatenate(held))
    return np.setdiff1d(np.arange(len(labels)), out), out


def _record(share: float, seed: int, testing: data.ImageSet) -> dict[str, Any]:
    return {
        "held_out": share,
        "seed": seed,
        "images": len(testing),
        "sha256": testing.sha256,
    }


def _table(word: str, source: Source, numbers: npt.NDArray[np.int64], names: list[str]) -> bytes:
    """Paths and classes of pictures in files of their own."""
    root = data.path_of(word)
    if root is None:
        return b""
    root = (root if root.is_dir() else root.parent).resolve()
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("path", "label"))
    for entry, name in zip(source.entries(numbers), names, strict=True):
        writer.writerow((Path(root, entry.where), name))
    return text.getvalue().encode(errors="surrogateescape")
