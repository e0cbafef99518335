"""``tfds:NAME``: a data set that tensorflow_datasets has prepared on disk."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.base import schema, words
from edgekit.base.errors import InvalidDataError, MissingDependencyError, reason
from edgekit.data.images import Split
from edgekit.data.source import Entry, Source

_SPLITS: dict[Split, tuple[str, ...]] = {
    "train": ("train",),
    "test": ("test", "validation"),
    "calibration": ("train",),
}
#: Where the classes of features come from.
_CLASSES = "tensorflow_datasets."


class Tfds:
    """``NAME``, ``NAME/CONFIG`` or ``NAME:VERSION`` with the features ``image`` and ``label``.

    Nothing is downloaded. ``split`` names a part other than the verb's own (training takes
    ``train``, testing ``test`` or ``validation``, calibration ``train``); ``dir`` a folder other
    than ``~/tensorflow_datasets``.
    """

    options: tuple[str, ...] = ("background", "split", "dir")

    def open(self, place: str, split: Split, options: Mapping[str, str], *, labels: bool) -> Source:
        """Find the prepared data set.

        Raises:
            MissingDependencyError: If tensorflow_datasets is not installed.
            InvalidDataError: If the data set or its part is not there.
        """
        part = prepared(place, split, options)

        def entries(chosen: npt.NDArray[np.int64] | None) -> Iterator[Entry]:
            assert chosen is None  # the count is not promised
            for i, record in enumerate(part.records(seed=None).as_numpy_iterator()):
                yield Entry(f"image {i}", partial(bytes, record["image"]), int(record["label"]))

        return Source(part.name, entries, None, part.names, None)


@dataclass(frozen=True)
class Prepared:
    """A part of a data set that lies on disk.

    Attributes:
        builder: Builder of tensorflow_datasets.
        part: Its name.
        names: Names of the classes; empty where the numbers are all there is.
        classes: How many; None where the data set does not say.
        count: Images.
    """

    builder: Any
    part: str
    names: tuple[str, ...]
    classes: int | None
    count: int

    def __len__(self) -> int:
        return self.count

    @property
    def name(self) -> str:
        """As tables call it."""
        return f"{self.builder.info.name}/{self.part}"

    def records(self, *, seed: int | None) -> Any:
        """A tf.data set of encoded ``image`` and ``label``; with a seed, shards in its order."""
        import tensorflow as tf
        import tensorflow_datasets as tfds

        options = tf.data.Options()
        options.deterministic = True
        return self.builder.as_dataset(
            split=self.part,
            decoders={"image": tfds.decode.SkipDecoding()},
            shuffle_files=seed is not None,
            read_config=tfds.ReadConfig(
                options=options, shuffle_seed=seed, shuffle_reshuffle_each_iteration=False
            ),
        )


def prepared(place: str, split: Split, options: Mapping[str, str]) -> Prepared:
    """Find a data set and its part.

    Raises:
        MissingDependencyError: If tensorflow_datasets is not installed.
        InvalidDataError: If the data set or its part is not there.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")  # leave the GPU to the models
    try:
        import tensorflow_datasets as tfds
    except ImportError:
        raise MissingDependencyError("tensorflow-datasets", "tfds") from None
    folder = Path(options.get("dir") or "~/tensorflow_datasets").expanduser()
    check_features(folder / place.partition(":")[0].partition("/")[0])
    try:
        builder = tfds.builder(place, data_dir=options.get("dir"))
    except Exception as exc:  # a registry of its own errors
        raise InvalidDataError(f"tfds:{place}: {reason(exc)}") from None
    part = _part(place, builder, options.get("split"), split)
    features = builder.info.features
    if features is None or not {"image", "label"} <= set(features):
        raise InvalidDataError(
            f"tfds:{place}: expected features image and label, got {', '.join(features or ())}"
        )
    label = features["label"]
    return Prepared(
        builder,
        part,
        tuple(getattr(label, "names", None) or ()),
        getattr(label, "num_classes", None),
        int(builder.info.splits[part].num_examples),
    )


def check_features(folder: Path) -> None:
    """Refuse a prepared data set whose ``features.json`` names Python classes of others.

    tensorflow_datasets imports the module of every class that is named there.

    Raises:
        InvalidDataError: If there is one.
    """
    for path in sorted(folder.rglob("features.json")):
        features = schema.read_json(
            path, error=InvalidDataError, what="the features of a data set, as `tfds` writes them"
        )
        waiting = [features]
        while waiting:
            each = waiting.pop()
            if isinstance(each, list):
                waiting += each
            elif isinstance(each, dict):
                waiting += each.values()
                for key in ("pythonClassName", "type"):
                    name = each.get(key, "")
                    if isinstance(name, str) and name and not name.startswith(_CLASSES):
                        raise InvalidDataError(
                            f"{path} names the Python class {name!r}, which would be imported; "
                            f"expected one of {_CLASSES}*: prepare the data set again"
                        )


def _part(place: str, builder: Any, part: str | None, split: Split) -> str:
    there = list(builder.info.splits)
    if not there:
        raise InvalidDataError(
            f"tfds:{place} is not prepared in {builder.data_dir}; prepare it with "
            f"tensorflow_datasets' own command, `tfds build`, or name its folder with #dir=DIR"
        )
    for each in (part,) if part else _SPLITS[split]:
        if each in there:
            return each
    raise InvalidDataError(
        f"tfds:{place} has the parts {', '.join(there)}; name one with #split=NAME"
        f"{words.near(part or '', there)}"
    )
