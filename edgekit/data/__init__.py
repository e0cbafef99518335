"""Image sets: the built-in Fashion-MNIST, arrays, and the user's own pictures.

A word of ``--data`` or ``--calibration`` names one. Options follow behind ``#``, as in
``folder:photos#samples=200,seed=3``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from edgekit.base import words
from edgekit.base.errors import InvalidDataError, InvalidOptionError
from edgekit.base.progress import SILENT, Progress
from edgekit.data import classes, fashion_mnist, images
from edgekit.data.coco import Coco
from edgekit.data.folder import Folder
from edgekit.data.function import PREFIXES, WORD, Function
from edgekit.data.images import ImageSet, Split, load_npz
from edgekit.data.scenes import Scenes
from edgekit.data.segmented import Segmented
from edgekit.data.source import Fit, Source, background_of, images_of
from edgekit.data.table import Csv
from edgekit.data.tfds import Prepared, Tfds, prepared
from edgekit.data.tfrecord import (
    IMAGENET_CLASSES,
    ImageNet,
    Shards,
    TfRecord,
    has_parts,
    shards,
)
from edgekit.data.voc import Voc
from edgekit.data.yolo import Yolo
from edgekit.records.signature import Preprocessing, preprocessing

__all__ = [
    "WORDS",
    "ImageSet",
    "Opened",
    "Sequential",
    "class_count",
    "has_test_part",
    "load",
    "open_word",
    "path_of",
    "sequential",
    "shape_of",
]

#: What ``--data`` takes, for help texts and errors.
WORDS = (
    "fashion_mnist, scenes, scenes:masks, FILE.npz, folder:DIR, csv:FILE, coco:FILE, voc:DIR, "
    "yolo:DIR, masks:DIR, tfrecord:DIR, imagenet-tfrecord:DIR, tfds:NAME or MODULE:FUNCTION"
)
#: Kinds of data that a file may name: they are read, and nothing is imported for them.
_READ_ONLY = (
    *("fashion_mnist", "scenes", "npz", "folder", "csv", "tfrecord", "imagenet-tfrecord"),
    *("coco", "voc", "yolo", "masks"),
)
_COMMON = ("samples", "seed", "size")


class Adapter(Protocol):
    """A kind of place that images come from.

    Attributes:
        options: Options of its word, beside ``samples``, ``seed`` and ``size``.
    """

    options: tuple[str, ...]

    def open(
        self, place: str, split: Split, options: Mapping[str, str], *, labels: bool
    ) -> ImageSet | Source:
        """Arrays, or pictures that are listed but not decoded; ``labels`` where they are needed."""


class _FashionMnist:
    options: tuple[str, ...] = ()

    def open(
        self, place: str, split: Split, options: Mapping[str, str], *, labels: bool
    ) -> ImageSet:
        return fashion_mnist.load(split)


class _Npz:
    options: tuple[str, ...] = ()

    def open(
        self, place: str, split: Split, options: Mapping[str, str], *, labels: bool
    ) -> ImageSet:
        return load_npz(Path(place), labels=labels)


_ADAPTERS = (
    *(Folder(), Csv(), Coco(), Voc(), Yolo(), Segmented()),
    *(TfRecord(), ImageNet(), Tfds()),
)
_PREFIXED: dict[str, Adapter] = dict(zip(PREFIXES, _ADAPTERS, strict=True))


@dataclass(frozen=True)
class Opened:
    """What a word names; pictures are not decoded yet.

    Attributes:
        source: Arrays, or pictures of any size.
        samples: How many to draw; None for all.
        progress: Hears how classes were numbered, what was left out, and how far decoding is.
    """

    word: str
    split: Split
    source: ImageSet | Source
    samples: int | None
    seed: int
    size: int | None
    background: str
    progress: Progress = SILENT

    def load(
        self,
        *,
        shape: tuple[int, ...] | None = None,
        prepare: Preprocessing | None = None,
        class_names: tuple[str, ...] = (),
        limit: int | None = None,
        quiet: bool = False,
    ) -> ImageSet:
        """Images for a model.

        Args:
            shape: ``(H, W, C)`` that pictures are resized to, the model's input; without a model
                the word's ``size`` says it. Arrays have it already.
            prepare: Says how pictures are resized and cropped, and the offset of classes.
            class_names: The model's; empty without a model.
            limit: The first images that can be decoded only.
            quiet: The caller says the warnings.

        Raises:
            InvalidOptionError: If no size is given, or two.
            InvalidDataError: If the images cannot be decoded or their classes are not the model's.
        """
        prepare = prepare or preprocessing("none")
        if isinstance(self.source, ImageSet):
            image_set = self.source
            if self.samples is not None:
                image_set = image_set.sample(self.samples, self.seed)
            image_set = image_set.head(limit).offset(prepare.class_offset)
        else:
            image_set = self._decoded(self.source, self.shape(shape), prepare, class_names, limit)
        for warning in () if quiet else image_set.warnings:
            self.progress.say(f"warning: {warning}")
        return image_set

    def shape(self, model_input: tuple[int, ...] | None) -> tuple[int, int, int]:
        """``(H, W, C)`` that pictures get, by the model or the word.

        Raises:
            InvalidOptionError: If neither says it, or both and not the same.
        """
        return shape_of(self.word, self.size, model_input)

    def _decoded(
        self,
        source: Source,
        shape: tuple[int, int, int],
        prepare: Preprocessing,
        class_names: tuple[str, ...],
        limit: int | None,
    ) -> ImageSet:
        numbering = self.numbering(source, class_names, prepare.class_offset)
        chosen, name = None, source.name
        if source.count is not None and self.samples is not None:
            chosen = source.draw(self.samples, self.seed)
            name = images.sample_name(name, self.samples, source.count, self.seed)
        drawn_later = source.count is None and self.samples is not None
        if limit is not None and (source.count is None or limit < source.count):
            name += "" if drawn_later else f"[:{limit}]"
        image_set = images_of(
            replace(source, name=name),
            Fit(shape, prepare, self.background),
            chosen=chosen,
            number=None if numbering is None else numbering.apply,
            class_names=() if numbering is None else numbering.class_names,
            most=None if drawn_later else limit,
            progress=self.progress,
        )
        if drawn_later:
            assert self.samples is not None
            image_set = image_set.sample(self.samples, self.seed).head(limit)
        return image_set

    def numbering(
        self, source: Source, class_names: tuple[str, ...], offset: int
    ) -> classes.Numbering | None:
        """Which class is which; says how that was decided.

        None for calibration, which takes pictures of any class: their hash is of pixels only.
        """
        if self.split == "calibration":
            return None
        numbering = classes.number(
            source.name,
            source.names,
            class_names,
            offset=offset,
            objects=source.shows_objects,
            drop_unknown=source.drop_unknown,
        )
        if numbering.said:
            self.progress.say(f"{source.name}: {numbering.said}")
        return numbering


def shape_of(
    word: str, size: int | None, model_input: tuple[int, ...] | None
) -> tuple[int, int, int]:
    """``(H, W, C)`` of ``model_input``, or of a square of ``size`` in colours.

    Raises:
        InvalidOptionError: If there is neither, or both and not the same.
        InvalidDataError: If the model's input has no fixed size.
    """
    if model_input is None:
        if size is None:
            raise InvalidOptionError(
                f"{word}: no model says how large the images are to be; pass --size N, or "
                f"#size=N behind the word"
            )
        return size, size, 3
    if len(model_input) != 3 or min(model_input) < 1:
        raise InvalidDataError(
            f"{word}: expected a model with an input of fixed size [H, W, C] to resize "
            f"pictures for, got {list(model_input)}; pass an .npz"
        )
    if size is not None and model_input[:2] != (size, size):
        raise InvalidOptionError(
            f"{word}: the model's input is {model_input[0]} x {model_input[1]}; leave size out"
        )
    return model_input[0], model_input[1], model_input[2]


def open_word(
    word: str,
    split: Split,
    *,
    labels: bool | None = None,
    read_from: Path | None = None,
    progress: Progress = SILENT,
) -> Opened:
    """Find what a ``--data`` word names; broken words and missing files are refused here.

    Args:
        word: :data:`WORDS`, or a folder as it is. Options behind ``#``: ``samples`` and ``seed``
            draw images evenly over the classes; ``size`` where no model says it; those of the kind.
        split: Which part; an ``.npz``, a folder or a table is one part and serves any.
        labels: Whether labels are needed; default for all but ``calibration``.
        read_from: The file that the word stands in, where nobody typed it. Such a word names images
            that are read, never something to import.
        progress: Hears what loading them says.

    Raises:
        InvalidOptionError: If the word or an option is unknown.
        InvalidDataError: If the data is missing or broken, or a file names something to import.
    """
    head, options = _split(word)
    kind, adapter, place = _adapter(word, head)
    if read_from is not None and kind not in _READ_ONLY:
        raise InvalidDataError(
            f"{read_from} names its images as {word!r}, which would import Python code; name them "
            f"on the command line if you know who made the file: --data {word}"
        )
    words.refuse_unknown(word, options, (*adapter.options, *_COMMON))
    samples = words.integer(word, options, "samples", least=1)
    seed = words.integer(word, options, "seed", least=0)
    if seed is not None and samples is None:
        raise InvalidOptionError(f"{word}: seed is for samples; pass both")
    size = words.integer(word, options, "size", least=1)
    background = background_of(word, options)
    needed = split != "calibration" if labels is None else labels
    source = adapter.open(place, split, options, labels=needed)
    if size is not None and isinstance(source, ImageSet):
        raise InvalidOptionError(f"{word}: size is for pictures; arrays are not resized")
    return Opened(word, split, source, samples, seed or 0, size, background, progress)


@dataclass(frozen=True)
class Sequential:
    """A set that is read from its start to its end, a pass after the other.

    Attributes:
        part: What is read.
        samples: How many its word asks to draw; None for all.
        size: Height and width that its word asks for.
        background: Below what is transparent.
    """

    word: str
    part: Shards | Prepared
    samples: int | None
    size: int | None
    background: str


def sequential(word: str, split: Split, *, progress: Progress = SILENT) -> Sequential | None:
    """Find a set that is read in sequence; None for one whose pictures are found by number.

    Of TFRecord files headers and labels are read, of a ``tfds:`` set nothing.

    Raises:
        EdgekitError: As :func:`open_word`.
    """
    head, options = _split(word)
    _, adapter, place = _adapter(word, head)
    if not isinstance(adapter, TfRecord | ImageNet | Tfds):
        return None
    words.refuse_unknown(word, options, (*adapter.options, *_COMMON))
    samples = words.integer(word, options, "samples", least=1)
    size = words.integer(word, options, "size", least=1)
    background = background_of(word, options)
    part: Shards | Prepared
    if isinstance(adapter, Tfds):
        part = prepared(place, split, options)
    else:
        with progress.task("counting", unit="files") as task:
            part = shards(
                place,
                split,
                options,
                imagenet=isinstance(adapter, ImageNet),
                advance=task.advance,
            )
    return Sequential(word, part, samples, size, background)


def class_count(word: str) -> int | None:
    """How many classes a kind of set has, whatever labels are there; None where labels say it."""
    return IMAGENET_CLASSES if word.startswith("imagenet-tfrecord:") else None


def has_test_part(word: str) -> bool:
    """Whether the ``test`` part of a word is another one than its ``train`` part."""
    head, _ = _split(word)
    kind, _, place = head.partition(":")
    if kind in ("tfrecord", "imagenet-tfrecord"):
        return has_parts(place)
    return kind in ("fashion_mnist", "scenes")


def load(
    word: str,
    split: Split,
    *,
    shape: tuple[int, ...] | None = None,
    prepare: Preprocessing | None = None,
    class_names: tuple[str, ...] = (),
    limit: int | None = None,
    quiet: bool = False,
    progress: Progress = SILENT,
) -> ImageSet:
    """:func:`open_word` and :meth:`Opened.load` in one."""
    opened = open_word(word, split, progress=progress)
    return opened.load(
        shape=shape, prepare=prepare, class_names=class_names, limit=limit, quiet=quiet
    )


def path_of(word: str) -> Path | None:
    """The file or folder of a word; None if it names none, as ``fashion_mnist``."""
    head, _ = _split(word)
    kind, _, place = head.partition(":")
    if kind in ("folder", "csv", "coco", "voc", "yolo", "masks"):
        return Path(place)
    return Path(head) if head.endswith(".npz") or Path(head).is_dir() else None


def _split(word: str) -> tuple[str, dict[str, str]]:
    """A path that is there has no options, whatever its name."""
    return (word, {}) if Path(word).exists() else words.split(word)


#: What to do with a file that holds samples in another form.
_INSTEAD = {
    ".npy": "; save the array with numpy.savez('FILE.npz', x=array)",
    ".csv": "; pass it as csv:FILE",
    ".json": "; pass boxes of COCO as coco:FILE",
    **dict.fromkeys((".tfrecord", ".tfrecords"), "; pass it as tfrecord:GLOB"),
    **dict.fromkeys((".jpg", ".jpeg", ".png", ".bmp", ".webp"), "; pass the folder that it is in"),
}


def _adapter(word: str, head: str) -> tuple[str, Adapter, str]:
    """Kind, adapter and place of a word without its options."""
    kind, colon, place = head.partition(":")
    if colon and kind in _PREFIXED:
        if not place:
            raise InvalidOptionError(f"{word}: expected a path behind {kind}:")
        return kind, _PREFIXED[kind], place
    if head == "fashion_mnist":
        return head, _FashionMnist(), head
    if kind == "scenes":
        return kind, Scenes(), place
    if head.endswith(".npz"):
        return "npz", _Npz(), head
    if WORD.fullmatch(head):
        return "function", Function(), head
    if Path(head).is_dir():
        return "folder", _PREFIXED["folder"], head
    near = words.near(kind if colon else head, ("fashion_mnist", "scenes", *_PREFIXED))
    if Path(head).exists():
        near = f", a file of another kind{_INSTEAD.get(Path(head).suffix.lower(), '')}"
    elif "." in head or "/" in head:  # meant as a path
        near = f": {words.not_found(Path(head))}"
    raise InvalidOptionError(f"expected samples as {WORDS}, got {word!r}{near}")
