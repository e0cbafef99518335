"""``module:function``: a Python function of the user's that returns images."""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.base import words
from edgekit.base.errors import EdgekitError, InvalidDataError, InvalidOptionError, reason
from edgekit.data import images
from edgekit.data.images import ImageSet, Split
from edgekit.data.source import Entry, Source

#: What stands before a colon and is no module.
PREFIXES = (
    *("folder", "csv", "coco", "voc", "yolo", "masks"),
    *("tfrecord", "imagenet-tfrecord", "tfds"),
)
WORD = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", re.ASCII)


class Function:
    """Called without arguments, or with ``split`` if it has such a parameter.

    Returns arrays ``x`` or ``(x, y)`` of the model's size, as an ``.npz`` has them; or an iterable
    of pictures or ``(picture, label)`` of any size: uint8 ``[H, W, C]``, encoded bytes, or a Pillow
    image.
    """

    options: tuple[str, ...] = ("background",)

    def open(
        self, place: str, split: Split, options: Mapping[str, str], *, labels: bool
    ) -> ImageSet | Source:
        """Import the module and call the function.

        Raises:
            InvalidOptionError: If it is not there.
            InvalidDataError: If it raises, or returns something else.
        """
        called = imported(place)
        try:
            takes = "split" in inspect.signature(called).parameters
            returned = called(split=split) if takes else called()
        except EdgekitError:
            raise
        except Exception as exc:
            raise InvalidDataError(f"{place} raised {type(exc).__name__}: {reason(exc)}") from None
        pair = isinstance(returned, tuple) and len(returned) == 2
        x, y = returned if pair and isinstance(returned[0], np.ndarray) else (returned, None)
        if isinstance(x, np.ndarray):
            if y is None and labels:
                raise InvalidDataError(f"{place}: expected (x, y), got x without labels")
            y = None if y is None else np.asarray(y)
            return images.make(place, x, y, numbers=not labels)
        if not hasattr(returned, "__iter__"):
            raise InvalidDataError(
                f"{place}: expected arrays (x, y) or an iterable of (picture, label), got "
                f"{type(returned).__name__}"
            )

        def entries(chosen: npt.NDArray[np.int64] | None) -> Iterator[Entry]:
            assert chosen is None  # what is iterated once has no numbers
            return _entries(place, returned, labelled=labels)

        return Source(place, entries, None, (), None)


def imported(place: str) -> Any:
    """The function of a word ``module:function``; modules of the working directory count.

    Raises:
        InvalidOptionError: If it cannot be imported, or is no function.
    """
    module, _, name = place.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        function = getattr(importlib.import_module(module), name, None)
    except ImportError as exc:
        raise InvalidOptionError(
            f"{place}: cannot import {module}: {reason(exc)}{words.near(module, PREFIXES)}"
        ) from None
    except Exception as exc:
        raise InvalidOptionError(
            f"{place}: importing {module} raised {type(exc).__name__}: {reason(exc)}"
        ) from None
    if not callable(function):
        raise InvalidOptionError(f"{place}: {module} has no function {name}")
    return function


def _entries(place: str, samples: Any, *, labelled: bool) -> Iterator[Entry]:
    waiting = iter(samples)
    i = 0
    while True:
        try:
            each = next(waiting)
        except StopIteration:
            return
        except Exception as exc:
            raise InvalidDataError(
                f"{place} raised {type(exc).__name__} at image {i}: {reason(exc)}"
            ) from None
        picture, label = each if isinstance(each, tuple) and len(each) == 2 else (each, None)
        if labelled and not isinstance(label, int | np.integer):
            raise InvalidDataError(
                f"{place}: image {i}: expected (picture, integer label), got a label of type "
                f"{type(label).__name__}"
            )
        yield Entry(f"image {i}", partial(_same, picture), None if label is None else int(label))
        i += 1


def _same(picture: Any) -> Any:
    return picture
