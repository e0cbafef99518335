"""Samples as arrays: one array of images, or one array for each input of a model."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit import data
from edgekit.base.errors import InvalidDataError, InvalidModelError, reason
from edgekit.base.progress import SILENT, Progress
from edgekit.data.images import BROKEN, ImageSet, Split, mapped
from edgekit.records.results import Unit
from edgekit.records.signature import Preprocessing, TensorSpec

Feed = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Inputs:
    """Samples with an array for each input of a model.

    Attributes:
        name: As tables call it.
        arrays: ``[N, ...]`` by input name, all with the same N.
        sha256: Of names, dtypes, shapes and bytes.
    """

    name: str
    arrays: Mapping[str, npt.NDArray[Any]]
    sha256: str

    def __len__(self) -> int:
        return count(self.arrays)

    def head(self, limit: int | None) -> Inputs:
        """The first ``limit`` samples; the identity changes with the content."""
        if limit is None or limit >= len(self):
            return self
        return make(f"{self.name}[:{limit}]", {n: v[:limit] for n, v in self.arrays.items()})


def take(samples: Samples, places: npt.NDArray[np.int64]) -> Samples:
    """Some of the samples; the identity changes with the content."""
    if isinstance(samples, ImageSet):
        return samples.take(places)
    name = f"{samples.name}[{len(places)} of {len(samples)}]"
    return make(name, {key: values[places] for key, values in samples.arrays.items()})


#: Images, or samples with an array for each input.
Samples = ImageSet | Inputs


def make(name: str, arrays: Mapping[str, npt.NDArray[Any]]) -> Inputs:
    """Check arrays and give them an identity.

    Raises:
        InvalidDataError: If there is none, they differ in number, or hold NaN, Inf or no numbers.
    """
    digest = hashlib.sha256()
    counts = {key: len(array) if array.ndim else 0 for key, array in arrays.items()}
    if not counts or not min(counts.values()):
        raise InvalidDataError(
            f"{name}: the set is empty; expected an array [N, ...] for each input"
        )
    if len(set(counts.values())) != 1:
        raise InvalidDataError(
            f"{name}: expected as many samples in each array, got "
            + ", ".join(f"{count} of {key}" for key, count in counts.items())
        )
    for key, array in sorted(arrays.items()):
        if array.dtype.kind not in "fiub":
            raise InvalidDataError(f"{name}: expected numbers in {key}, got {array.dtype}")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            first = int(np.argwhere(~np.isfinite(array))[0][0])
            raise InvalidDataError(f"{name}: sample {first} of {key} holds NaN or Inf")
        digest.update(f"{key} {array.dtype.str}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return Inputs(name, dict(arrays), digest.hexdigest())


def open_word(
    word: str,
    split: Split,
    *,
    labels: bool | None = None,
    read_from: Path | None = None,
    progress: Progress = SILENT,
) -> data.Opened | Inputs:
    """Find what a ``--data`` or ``--calibration`` word names.

    Args:
        word: As :func:`edgekit.data.open_word` takes it, or an ``.npz`` with other arrays than
            ``x`` and ``y``, which have the names of the model's inputs.
        split: As :func:`edgekit.data.open_word` takes it.
        labels: As :func:`edgekit.data.open_word` takes it.
        read_from: As :func:`edgekit.data.open_word` takes it.
        progress: Hears what loading them says.

    Raises:
        InvalidDataError: If the data is missing or broken, or a file names something to import.
    """
    path = Path(word)
    if path.suffix == ".npz" and path.is_file() and zipfile.is_zipfile(path):
        try:
            with zipfile.ZipFile(path) as archive:
                members = archive.namelist()
                if not {member.removesuffix(".npy") for member in members} <= {"x", "y"}:
                    arrays = {m.removesuffix(".npy"): mapped(archive, m) for m in members}
                    return make(path.name, arrays)
        except BROKEN as exc:
            raise InvalidDataError(
                f"{path} is not a usable .npz: {reason(exc)}; save it with numpy.savez"
            ) from None
    return data.open_word(word, split, labels=labels, read_from=read_from, progress=progress)


def check(samples: Samples, specs: Sequence[TensorSpec]) -> None:
    """Refuse samples that do not fit a model's inputs.

    Raises:
        InvalidDataError: If an array is missing, is of no input, or has another shape or dtype.
    """
    arrays = _by_name(samples, specs)
    for spec in specs:
        array = arrays[spec.name]
        if not spec.fits(tuple(array.shape[1:])):
            what = "images" if isinstance(samples, ImageSet) else f"{spec.name} as"
            raise InvalidDataError(
                f"{samples.name}: expected {what} {spec.expected} as the model's input, "
                f"got {list(array.shape[1:])}"
            )
        dtype = np.dtype(spec.dtype)
        fits = array.dtype.kind == "f" or array.dtype == np.uint8
        if dtype.kind != "f":
            fits = np.can_cast(array.dtype, dtype, "same_kind") and array.dtype.kind != "f"
        if not fits:
            expected = "uint8 or float" if dtype.kind == "f" else str(dtype)
            raise InvalidDataError(
                f"{samples.name}: expected {spec.name} as {expected}, got {array.dtype}"
            )


def labelled(
    samples: Inputs, specs: Sequence[TensorSpec]
) -> tuple[Inputs, npt.NDArray[Any] | None]:
    """Samples without ``y``, and ``y``; as they are if ``y`` is an input or missing."""
    if "y" not in samples.arrays or "y" in {spec.name for spec in specs}:
        return samples, None
    arrays = {name: values for name, values in samples.arrays.items() if name != "y"}
    return replace(samples, arrays=arrays), samples.arrays["y"]


def feed(samples: Samples, specs: Sequence[TensorSpec], prepare: Preprocessing, where: Any) -> Feed:
    """What goes into each input for some of the samples, ``[n, ...]`` by input name.

    uint8 becomes a float input by the preprocessing, float passes; integer inputs take integers.

    Args:
        samples: As :func:`check` lets them pass.
        specs: The model's inputs, float or integer, before any quantization.
        where: Slice or indices.
    """
    arrays, feed_values = _by_name(samples, specs), {}
    for spec in specs:
        values = arrays[spec.name][where]
        floats = np.dtype(spec.dtype).kind == "f"
        feed_values[spec.name] = spec.arrange(
            prepare.apply(values) if floats else values.astype(spec.dtype)
        )
    return feed_values


def random(
    specs: Sequence[TensorSpec],
    prepare: Preprocessing,
    samples: int,
    *,
    seed: int,
    extremes: bool = False,
    largest: float = 1.0,
) -> Feed:
    """Random samples: preprocessed uint8 pixels, 0 or 1 for integer inputs, and numbers from 0 to
    ``largest`` where an input is no picture and has no preprocessing. Those may become indices.

    Args:
        specs: The model's inputs.
        prepare: Preprocessing of float inputs.
        samples: How many.
        seed: Seed of the numbers.
        extremes: Let the first sample be all 0 and the second all 255, or ``largest``.
        largest: Of numbers that are no pixels.
    """
    generator = np.random.default_rng(seed)
    feed_values: Feed = {}
    for spec in specs:
        if not spec.is_real:
            values = generator.integers(0, 2, (samples, *spec.sample))
            feed_values[spec.name] = values.astype(spec.dtype)
            continue
        sizes = spec.picture
        if not spec.is_picture and (set(prepare.scale), set(prepare.offset)) == ({1.0}, {0.0}):
            real = generator.uniform(0, largest, (samples, *spec.sample)).astype(np.float32)
            if extremes:
                real[0], real[1] = 0, largest
            feed_values[spec.name] = real
            continue
        if len(prepare.scale) not in (1, sizes[-1] if sizes else 1):
            sizes = spec.sample  # no picture with its channels first
        pixels = generator.integers(0, 256, (samples, *sizes), dtype=np.uint8)
        if extremes:
            pixels[0], pixels[1] = 0, 255
        feed_values[spec.name] = spec.arrange(prepare.apply(pixels))
    return feed_values


def quantized(feed: Feed, specs: Sequence[TensorSpec]) -> Feed:
    """Real values as a model's inputs store and arrange them."""
    return {spec.name: spec.quantize(spec.arrange(feed[spec.name])) for spec in specs}


def records(feed: Mapping[str, npt.NDArray[Any]]) -> npt.NDArray[Any]:
    """Arrays ``[N, ...]`` as records ``[N]`` with a field for each input, in one array.

    It is cut into ranges, sent and mapped as an array of images is.
    """
    fields = [(name, values.dtype, values.shape[1:]) for name, values in feed.items()]
    rows = np.empty(count(feed), fields)
    for name, values in feed.items():
        rows[name] = values
    return rows


def unit(samples: npt.NDArray[Any]) -> Unit:
    """What people call the things in an array ``[N, ...]`` or in records.

    ``images`` are pictures with one or three channels, first or last, and nothing else goes in
    beside them.
    """
    if samples.dtype.names is not None:
        if len(samples.dtype.names) != 1:
            return "samples"
        samples = samples[samples.dtype.names[0]]
    pictures = samples.ndim == 4 and {samples.shape[1], samples.shape[3]} & {1, 3}
    return "images" if pictures else "samples"


def images(
    opened: data.Opened,
    specs: Sequence[TensorSpec],
    prepare: Preprocessing,
    class_names: tuple[str, ...],
    limit: int | None,
    *,
    quiet: bool = False,
) -> ImageSet:
    """The images of a word for a model of one input.

    Args:
        opened: What the word names.
        specs: The model's inputs.
        prepare: Says how pictures become images.
        class_names: Class names of the model.
        limit: The first images only.
        quiet: Do not say the set's warnings.

    Raises:
        InvalidDataError: If the model has several inputs, or the images cannot be used.
    """
    refuse_images(opened.word, specs)
    return opened.load(
        shape=specs[0].picture,
        prepare=prepare,
        class_names=class_names,
        limit=limit,
        quiet=quiet,
    )


def refuse_images(name: str, specs: Sequence[TensorSpec]) -> None:
    """Refuse images for a model of several inputs.

    Raises:
        InvalidDataError: If it has not exactly one.
    """
    if len(specs) != 1:
        raise InvalidDataError(
            f"{name}: expected an .npz with an array for each input, {in_words(specs)}, "
            f"saved as numpy.savez('set.npz', **arrays); got images only"
        )


def in_words(specs: Sequence[TensorSpec]) -> str:
    """What an ``.npz`` needs for these inputs: name, shape and dtype of each array."""
    return ", ".join(
        f"{spec.name} {spec.dtype} [{', '.join(['N', *map(str, spec.sample)])}]" for spec in specs
    )


def count(feed: Mapping[str, npt.NDArray[Any]]) -> int:
    """Number of samples."""
    return len(next(iter(feed.values())))


def part(feed: Mapping[str, npt.NDArray[Any]], where: slice) -> Feed:
    """Some of the samples."""
    return {name: values[where] for name, values in feed.items()}


def batches(feed: Feed, specs: Sequence[TensorSpec]) -> Iterator[Feed]:
    """The whole feed where the batch is free, else sample by sample."""
    if all(spec.batched and spec.shape[0] == -1 for spec in specs):
        yield feed
        return
    yield from one_by_one(feed, specs)


def one_by_one(feed: Feed, specs: Sequence[TensorSpec]) -> Iterator[Feed]:
    """What the inputs take of each sample; a tensor without a batch axis loses that of the feed."""
    for i in range(count(feed)):
        yield {
            spec.name: feed[spec.name][i : i + 1]
            if spec.batched
            else np.asarray(feed[spec.name][i])
            for spec in specs
        }


def joined(parts: Sequence[Feed], specs: Sequence[TensorSpec]) -> Feed:
    """Outputs of several runs as arrays ``[N, ...]``.

    Raises:
        InvalidModelError: If an output has another size each time.
    """
    outputs: Feed = {}
    for spec in specs:
        each = [run[spec.name] for run in parts]
        if len({values.shape[spec.batched :] for values in each}) != 1:
            raise InvalidModelError(
                f"the size of output {spec.name} depends on the values of the inputs, got "
                f"{list(each[0].shape)} and others; export the model without what picks out "
                f"results, e.g. NonMaxSuppression"
            )
        outputs[spec.name] = np.concatenate(each) if spec.batched else np.stack(each)
    return outputs


def _by_name(samples: Samples, specs: Sequence[TensorSpec]) -> Mapping[str, npt.NDArray[Any]]:
    names = [spec.name for spec in specs]
    if isinstance(samples, ImageSet):
        refuse_images(samples.name, specs)
        return {names[0]: samples.images}
    missing = [name for name in names if name not in samples.arrays]
    unknown = [name for name in samples.arrays if name not in names]
    if missing or unknown:
        raise InvalidDataError(
            f"{samples.name}: expected an array for each input, {in_words(specs)}; got "
            f"{', '.join(samples.arrays)}"
        )
    return samples.arrays
