"""Batches of pictures that are read, decoded and distorted while the model trains.

Memory does not grow with the number of images: encoded records wait in a shuffle buffer of
:data:`BUFFER` bytes, two batches wait decoded. What is read in sequence (TFRecord shards, a
``tfds:`` set) is shuffled by an order of shards drawn for each pass, :data:`SHARDS` of them
interleaved, and the buffer; what is found by number (folders, tables, arrays) by a permutation for
each pass. Of folders and tables the list of paths is in memory.

One pass follows the other without a gap, so a batch may hold images of two. The seed, the files and
the versions of edgekit and TensorFlow decide every batch, whatever the number of threads; another
kind of CPU may round the last bit of a resized pixel otherwise. A run that goes on from a
checkpoint gets exactly the batches that it would have got: the position after the last picture that
was used is part of the checkpoint; of a set that is read in sequence the pass is read again up to
there, without decoding.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from edgekit import data
from edgekit.base.errors import (
    EdgekitError,
    ExecutionError,
    InvalidDataError,
    InvalidOptionError,
    reason,
)
from edgekit.base.progress import SILENT, Progress
from edgekit.data import decode, tfrecord
from edgekit.data.source import Fit, Source
from edgekit.data.tfds import Prepared
from edgekit.records import environment
from edgekit.records.signature import Preprocessing
from edgekit.sources import keras as keras_format
from edgekit.training.distort import distorted
from edgekit.training.recipes import Recipe
from edgekit.training.trainer import Trainer

#: Encoded bytes that wait to be shuffled; and images, at most.
BUFFER, MOST = 256 << 20, 50_000
#: Shards that are read at once, a record of each in turn.
SHARDS = 16
_READ_AHEAD = 1 << 20


class Feed(Protocol):
    """Where undecoded pictures come from."""

    @property
    def name(self) -> str:
        """As tables call it."""

    @property
    def sha256(self) -> str:
        """Of what is known without decoding."""

    @property
    def count(self) -> int:
        """Pictures in a pass."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the model's classes."""

    def one_pass(self, number: Any, seed: int) -> Any:
        """A tf.data set of ``(content, label, file, record)`` in the order of a pass.

        Args:
            number: Scalar int64 tensor, of the pass, from 0.
            seed: Seed of the recipe.
        """

    def where(self, file: int, record: int) -> str:
        """Name of one picture."""


def _mapped(dataset: Any, function: Any, parallel: int = 1) -> Any:
    """Each element through a function of tensors, in order; as it is, which traces faster."""
    tf = keras_format.tensorflow()
    as_it_is = tf.autograph.experimental.do_not_convert(function)
    if parallel == 1:
        return dataset.map(as_it_is)
    return dataset.map(as_it_is, num_parallel_calls=parallel, deterministic=True)


def _order(number: Any, seed: int, count: int) -> Any:
    """int64 ``[count]``: a permutation for each pass, the same on every machine."""
    tf = keras_format.tensorflow()

    def permuted(number: Any) -> npt.NDArray[np.int64]:
        return np.random.default_rng([seed, int(number)]).permutation(count)

    order = tf.numpy_function(permuted, [number], tf.int64)
    order.set_shape([count])
    return order


class ShardFeed:
    """TFRecord files.

    Args:
        shards: With at least two classes.
        offset: Added to labels.
        classes: How many there are, without the offset; None for those that labels say.
    """

    def __init__(self, shards: tfrecord.Shards, *, offset: int, classes: int | None = None) -> None:
        if np.count_nonzero(shards.images) < 2:
            raise InvalidDataError(
                f"{shards.name}: expected images of at least 2 classes, got only label "
                f"{int(np.flatnonzero(shards.images)[0]) + shards.first}"
            )
        self.name, self.sha256, self.count = shards.name, shards.sha256, len(shards)
        self.classes = _numbers(classes or len(shards.images), offset)
        self._shards, self._offset = shards, offset - shards.first
        self._buffer = buffer_of(self.count, shards.bytes / int(shards.images.sum()))

    def one_pass(self, number: Any, seed: int) -> Any:
        """Shards in the order of the pass, interleaved, then shuffled in the buffer."""
        tf = keras_format.tensorflow()
        shards = self._shards
        counts = tf.constant(shards.counts, tf.int64)
        paths = tf.constant(shards.paths)

        def records(file: Any) -> Any:
            dataset = tf.data.TFRecordDataset(paths[file], buffer_size=_READ_AHEAD)
            dataset = dataset.take(counts[file]).enumerate()
            return _mapped(dataset, lambda record, content: (content, file, record))

        dataset = tf.data.Dataset.from_tensor_slices(_order(number, seed, len(shards.paths)))
        dataset = dataset.interleave(
            tf.autograph.experimental.do_not_convert(records),
            cycle_length=min(SHARDS, len(shards.paths)),
            num_parallel_calls=min(environment.cores(), SHARDS, len(shards.paths)),
            deterministic=True,
        )
        dataset = dataset.shuffle(self._buffer, seed=seed + number, reshuffle_each_iteration=False)
        return _mapped(dataset, self._parsed)

    def _parsed(self, content: Any, file: Any, record: Any) -> Any:
        tf = keras_format.tensorflow()
        shards = self._shards
        features = {
            shards.encoded: tf.io.FixedLenFeature([], tf.string, default_value=b""),
            shards.label: tf.io.FixedLenFeature([], tf.int64),
        }
        parsed = tf.io.parse_single_example(content, features)
        return parsed[shards.encoded], parsed[shards.label] + self._offset, file, record

    def where(self, file: int, record: int) -> str:
        """File and number of the record."""
        return f"{self._shards.paths[file]}, record {record}"

    def broken(self, start: int) -> str | None:
        """The record with a wrong checksum that begins at this byte of its file."""
        record = tfrecord.broken_at(self._shards.paths, start)
        return None if record is None else f"{record[0]}, record {record[1]}"


class TfdsFeed:
    """A set of tensorflow_datasets; its shards are in one order by the seed, for all passes."""

    def __init__(self, part: Prepared, *, offset: int) -> None:
        if part.classes is None or part.classes < 2:
            raise InvalidDataError(f"{part.name}: expected at least 2 classes, got {part.classes}")
        self.name, self.count = part.name, part.count
        self._part, self._offset = part, offset
        info = part.builder.info
        self.sha256 = hashlib.sha256(
            f"{info.full_name}/{part.part} {part.count} {info.splits[part.part].num_bytes}".encode()
        ).hexdigest()
        self.classes = _numbers(part.classes, offset)
        if part.names:
            self.classes = ("background",) * max(offset, 0) + part.names[max(-offset, 0) :]
        whole = info.splits[part.part]
        mean = (whole.num_bytes or BUFFER) / max(whole.num_examples, 1)
        self._buffer = buffer_of(part.count, mean)

    def one_pass(self, number: Any, seed: int) -> Any:
        """Records as tensorflow_datasets reads them, then shuffled in the buffer."""
        tf = keras_format.tensorflow()
        dataset = self._part.records(seed=seed).take(self.count).enumerate()
        dataset = dataset.shuffle(self._buffer, seed=seed + number, reshuffle_each_iteration=False)

        def parsed(place: Any, record: Any) -> Any:
            label = tf.cast(record["label"], tf.int64) + self._offset
            return record["image"], label, tf.constant(0, tf.int64), place

        return _mapped(dataset, parsed)

    def where(self, file: int, record: int) -> str:
        """Number of the picture."""
        return f"{self.name}, image {record} in the order of this seed"


@dataclass(frozen=True)
class NumberFeed:
    """Pictures that are found by their number.

    Attributes:
        source: Where they are.
        chosen: int64 ``[N]``: numbers of those to train on.
        labels: int64 ``[N]``: the model's classes.
    """

    source: Source
    chosen: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]
    classes: tuple[str, ...]

    @property
    def name(self) -> str:
        """As tables call it."""
        return self.source.name

    @property
    def count(self) -> int:
        """Pictures in a pass."""
        return len(self.chosen)

    @property
    def sha256(self) -> str:
        """Of names and labels; not of pixels."""
        digest = hashlib.sha256(self.labels.tobytes())
        for entry in self.source.entries(self.chosen):
            digest.update(entry.where.encode(errors="surrogateescape") + b"\0")
        return digest.hexdigest()

    def one_pass(self, number: Any, seed: int) -> Any:
        """In the order of a permutation, read on as many threads as there are cores."""
        tf = keras_format.tensorflow()
        labels = tf.constant(self.labels)

        def read(place: Any) -> bytes:
            (entry,) = self.source.entries(self.chosen[int(place)][None])
            try:
                return bytes(entry.content())
            except decode.PictureError as exc:
                raise ValueError(f"{entry.where}: {reason(exc)}") from None

        def example(place: Any) -> Any:
            content = tf.numpy_function(read, [place], tf.string)
            content.set_shape([])
            return content, labels[place], tf.constant(0, tf.int64), place

        dataset = tf.data.Dataset.from_tensor_slices(_order(number, seed, self.count))
        return _mapped(dataset, example, environment.cores())

    def where(self, file: int, record: int) -> str:
        """Its name in the source."""
        return f"{self.name}: {self.source.where(int(self.chosen[record]))}"


@dataclass(frozen=True)
class ArrayFeed:
    """Images of one size, in memory or mapped, uint8."""

    images: data.ImageSet
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.images.images.dtype != np.uint8:
            raise InvalidDataError(
                f"{self.images.name}: expected pixels as uint8 to distort, got "
                f"{self.images.images.dtype}; pass --augmentation small"
            )

    @property
    def name(self) -> str:
        """As tables call it."""
        return self.images.name

    @property
    def count(self) -> int:
        """Images in a pass."""
        return len(self.images)

    @property
    def sha256(self) -> str:
        """Of images and labels."""
        return self.images.sha256

    def one_pass(self, number: Any, seed: int) -> Any:
        """In the order of a permutation."""
        tf = keras_format.tensorflow()
        labels = tf.constant(self.images.labels)
        shape = self.images.images.shape[1:]

        def example(place: Any) -> Any:
            pixels = tf.numpy_function(lambda i: self.images.images[i], [place], tf.uint8)
            pixels.set_shape(shape)
            return pixels, labels[place], tf.constant(0, tf.int64), place

        dataset = tf.data.Dataset.from_tensor_slices(_order(number, seed, self.count))
        return _mapped(dataset, example)

    def where(self, file: int, record: int) -> str:
        """Number of the image."""
        return f"{self.name}: image {record}"


def buffer_of(count: int, bytes: float) -> int:
    """Records that wait to be shuffled, when one has so many bytes on average."""
    return max(1, min(count, MOST, int(BUFFER / max(bytes, 1))))


def _numbers(count: int, offset: int) -> tuple[str, ...]:
    if count + offset < 2:
        raise InvalidDataError(f"expected at least 2 classes, got {count} with offset {offset}")
    return tuple(str(i) for i in range(count + offset))


@dataclass(frozen=True)
class Stream:
    """Batches of a feed, for a model.

    Attributes:
        feed: Undecoded pictures.
        shape: ``(H, W, C)`` of the model's input.
        prepare: Says how to resize and crop.
        recipe: Gives batch, augmentation and seed. With ``small`` pictures come as testing sees
            them, to be augmented in batches.
        background: Below what is transparent.
        skip_broken: Leave out what cannot be read or decoded, instead of ending.
    """

    feed: Feed
    shape: tuple[int, int, int]
    prepare: Preprocessing
    recipe: Recipe
    background: str = "white"
    skip_broken: bool = False

    def __len__(self) -> int:
        return self.feed.count

    def batches(self, first: int, steps: int) -> Any:
        """A tf.data set of ``(x, y, position)``.

        ``x`` is uint8 ``[batch, H, W, C]``, ``y`` int64 ``[batch]`` and ``position`` int64
        ``[batch]``, of each picture among all that the run sees.

        Args:
            first: Position of the first picture.
            steps: Batches that are needed. The set ends when twice as many pictures have been
                read, however many were left out.
        """
        tf = keras_format.tensorflow()

        def example(position: Any, record: Any) -> Any:
            return self.picture(record[0], position), record[1], position

        passes = -(-2 * steps * self.recipe.batch // len(self)) + 1
        dataset = self._raw(first, passes)
        dataset = _mapped(dataset, example, environment.cores())
        if self.skip_broken:
            dataset = dataset.ignore_errors()
        dataset = dataset.batch(self.recipe.batch, drop_remainder=True).prefetch(2)
        options = tf.data.Options()
        options.deterministic = True
        # the model's own threads are as few as its towers, and busy
        options.threading.private_threadpool_size = environment.cores()
        options.threading.max_intra_op_parallelism = 1
        return dataset.with_options(options)

    def _raw(self, first: int, passes: int) -> Any:
        """``(position, (content, label, file, record))`` from a position on."""
        tf = keras_format.tensorflow()
        number, within = divmod(first, len(self))

        def one(each: Any) -> Any:
            tf.random.set_seed(1)  # of this graph: the process' own seed is not to matter
            done = tf.where(each == number, tf.constant(within, tf.int64), 0)
            start = each * len(self) + done
            dataset = self.feed.one_pass(each, self.recipe.seed).skip(done)
            return _mapped(dataset.enumerate(), lambda i, rest: (start + i, rest))

        as_it_is = tf.autograph.experimental.do_not_convert(one)
        return tf.data.Dataset.range(number, number + passes).flat_map(as_it_is)

    def picture(self, content: Any, position: Any) -> Any:
        """One picture as it is trained on, uint8 ``[H, W, C]``."""
        tf = keras_format.tensorflow()
        if self.recipe.augmentation != "small":
            return distorted(
                content,
                position,
                recipe=self.recipe,
                prepare=self.prepare,
                shape=self.shape,
                background=self.background,
            )
        if content.dtype != tf.string:
            return content
        fit = Fit(self.shape, self.prepare, self.background)

        def fitted(encoded: bytes) -> Any:
            try:
                return fit.apply(encoded).pixels
            except decode.PictureError as exc:
                raise ValueError(reason(exc)) from None

        pixels = tf.numpy_function(fitted, [content], tf.uint8)
        pixels.set_shape(self.shape)
        return pixels

    def blame(self, first: int, count: int, error: Exception) -> EdgekitError:
        """Which of ``count`` pictures from a position on ended the stream."""
        tf = keras_format.tensorflow()
        picture = tf.function(self.picture)
        raw = iter(self._raw(first, -(-count // len(self)) + 1).take(count))
        while True:
            try:
                position, (content, _, file, record) = next(raw)
            except StopIteration:
                return ExecutionError(f"{self.feed.name}: the input ended ({reason(error)})")
            except tf.errors.OpError as exc:
                return InvalidDataError(f"{self._place_of(exc)}; {_MEND}")
            try:
                picture(content, position)
            except tf.errors.OpError as exc:
                where = self.feed.where(int(file), int(record))
                return InvalidDataError(f"{where}: {_why(content, exc)}; {_MEND}")

    def _place_of(self, error: Exception) -> str:
        """Of a record that cannot be read: file and number, where they can be told."""
        start = re.search(r"record at ([0-9]+)", str(error))
        record = None
        if start and isinstance(self.feed, ShardFeed):
            record = self.feed.broken(int(start[1]))
        if record:
            return f"{record}: fails the checksum"
        return f"{self.feed.name}: {_said(error)}"


_MEND = "correct or remove it, or pass --skip-broken"


def _why(content: Any, error: Exception) -> str:
    """What edgekit's own decoder says, or else TensorFlow."""
    if content.dtype == keras_format.tensorflow().string:
        try:
            decode.upright(decode.opened(content.numpy()), channels=3, background="white")
        except decode.PictureError as exc:
            return str(exc)
    return _said(error)


def _said(error: Exception) -> str:
    """What TensorFlow says, without the nodes of its graph."""
    text = str(getattr(error, "message", error)).split("[Op:")[0].split("[[")[0]
    text = re.sub(r"\{\{.*?\}\}|Error in user.*?Iterator::\S+ |ValueError: ", "", text)
    lines = text.strip().split("\n")
    return reason(ValueError(lines[-1 if lines[0].startswith("Graph execution") else 0]))


class StreamTrainer(Trainer):
    """A model that is stepped over a stream.

    Every replica in every process reads the whole batch and takes its own part.

    Args:
        stream: What to train on.
        progress: Hears how many pictures were left out.
        settings: Settings of :class:`edgekit.training.trainer.Trainer`.
    """

    def __init__(
        self,
        model: Any,
        recipe: Recipe,
        *,
        stream: Stream,
        progress: Progress = SILENT,
        **settings: Any,
    ) -> None:
        if settings.get("jit"):
            raise InvalidOptionError("a step that takes its batch from a stream is not for XLA")
        self._stream, self._progress = stream, progress
        self._said = 0
        self._iterator: Any = None
        self._position: Any = None
        super().__init__(model, recipe, images=stream, labels=None, **settings)
        self.checkpoint.position = self._position
        if recipe.augmentation != "small":  # cropped and mirrored already
            self._augmentation = replace(recipe, augmentation="small", crop=1.0, flip=False)

    @property
    def left_out(self) -> int:
        """Pictures that were left out so far."""
        return int(self._position.numpy()) - int(self.step.numpy()) * self.recipe.batch

    def order(self, epoch: int) -> npt.NDArray[np.int64]:
        """Nothing: the stream knows."""
        return np.zeros((self.steps_per_epoch, 0), np.int64)

    def run_epoch_part(
        self, indices: npt.NDArray[np.int64], rates: npt.NDArray[np.float32]
    ) -> tuple[float, float]:
        """See :class:`edgekit.training.trainer.Trainer`; ``indices`` are not looked at.

        Raises:
            InvalidDataError: If a picture cannot be read or decoded; names it.
        """
        tf = keras_format.tensorflow()
        first = int(self._position.numpy())
        if self._iterator is None:
            total = self.recipe.total_steps(self.steps_per_epoch)
            self._iterator = iter(self._stream.batches(first, total - int(self.step.numpy())))
        try:
            loss, right = self.replicas.call(self._run, self._iterator, tf.constant(rates))
        except tf.errors.OutOfRangeError:
            raise InvalidDataError(
                f"{self._stream.feed.name}: more than half of the pictures cannot be decoded"
            ) from None
        except (
            tf.errors.DataLossError,
            tf.errors.InvalidArgumentError,
            tf.errors.NotFoundError,
            tf.errors.UnknownError,
        ) as exc:
            ahead = (len(rates) + 4) * self.recipe.batch + environment.cores()
            raise self._stream.blame(first, ahead, exc) from None
        if self.left_out > 2 * self._said:
            self._said = self.left_out
            self._progress.say(f"{self._said} pictures cannot be read and are left out, so far")
        return float(loss), float(right)

    def _hold(self, images: Any, labels: Any) -> None:
        tf = keras_format.tensorflow()
        with tf.device("/CPU:0"):
            self._position = tf.Variable(0, dtype=tf.int64, trainable=False)

    def _function(self, steps: Any) -> Any:
        tf = keras_format.tensorflow()
        batch = self.recipe.batch
        spec = (
            tf.TensorSpec([batch, *self._stream.shape], tf.uint8),
            tf.TensorSpec([batch], tf.int64),
            tf.TensorSpec([batch], tf.int64),
        )
        return tf.function(
            steps,
            input_signature=[tf.data.IteratorSpec(spec), tf.TensorSpec([None], tf.float32)],
        )

    def _taken(self, batches: Any, i: Any) -> Any:
        """Pictures and labels that come next, whichever step it is."""
        x, y, position = next(batches)
        self._position.assign(position[-1] + 1)
        return x, y

    def _gathered(self, batch: Any, first: Any, size: int) -> tuple[Any, Any]:
        if self.replicas.count == 1:
            first, size = 0, self.recipe.batch
        x, y = batch
        return x[first : first + size], y[first : first + size]


def stream_of(
    word: str,
    sequence: data.Sequential,
    *,
    shape: tuple[int, int, int],
    prepare: Preprocessing,
    recipe: Recipe,
    limit: int | None,
    skip_broken: bool,
) -> Stream:
    """The stream of a set that is read in sequence.

    Raises:
        InvalidOptionError: If its word draws samples.
        InvalidDataError: If there is one class only.
    """
    if sequence.samples is not None:
        raise InvalidOptionError(
            f"{word}: samples is for sets in memory; to take the first N, pass --limit N"
        )
    feed: Feed
    part = sequence.part
    if isinstance(part, Prepared):
        count = min(part.count, limit or part.count)
        feed = TfdsFeed(replace(part, count=count), offset=prepare.class_offset)
    else:
        feed = ShardFeed(
            part.head(limit), offset=prepare.class_offset, classes=data.class_count(word)
        )
    return Stream(feed, shape, prepare, recipe, sequence.background, skip_broken)
