"""Classic mistakes between a model and its data, found by trying what would mend them.

A scaling, an order of channels or a number of classes is only named where it makes the answers
significantly better than those of the declared preprocessing (exact McNemar test on the same
images), so that a sound model gives no finding.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from edgekit.errors import InvalidDataError
from edgekit.signature import PREPROCESSING_NAMES, Preprocessing, preprocessing
from edgekit.stats import discordant, is_probability, mcnemar_exact

Kind = Literal["scaling", "channels", "classes", "softmax"]
#: Images that are tried, evenly spread over the set.
IMAGES = 256
SIGNIFICANT = 1e-3

Answer = Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float32]]
Right = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Finding:
    """One likely mistake.

    Attributes:
        said: What was seen, and the fix, a sentence.
    """

    kind: Kind
    said: str


def check_range(name: str, labels: npt.NDArray[np.int64], classes: int) -> None:
    """Refuse labels that the model has no class for.

    Raises:
        InvalidDataError: If there is one; says so where labels seem to count from 1.
    """
    least, most = int(labels.min()), int(labels.max())
    if 0 <= least and most < classes:
        return
    hint = ""
    if least == 1 and most == classes:
        hint = "; they count from 1: set class_offset=-1 in the preprocessing, or change them"
    raise InvalidDataError(
        f"{name}: label {least if least < 0 else most} is outside the model's {classes} classes "
        f"(0 to {classes - 1}){hint}"
    )


def find(
    answer: Answer,
    images: npt.NDArray[Any],
    labels: npt.NDArray[np.int64],
    prepare: Preprocessing,
    *,
    count: int = IMAGES,
) -> list[Finding]:
    """Look for wrong scaling, RGB for BGR, classes that are off by one, and a missing softmax.

    Args:
        answer: The model: from its float32 input ``[N, H, W, C]`` to ``[N, classes]``.
        images: uint8 pixels, or floats that are preprocessed already.
        labels: The right classes, ``class_offset`` of ``prepare`` added.
        prepare: As declared.
        count: Images to try, at most.
    """
    chosen = np.unique(np.linspace(0, len(images) - 1, count).astype(int))
    pixels, labels = np.asarray(images[chosen]), labels[chosen]
    answers = answer(prepare.apply(pixels))
    found = _softmax(answers)
    if pixels.dtype != np.uint8:
        found += _range(pixels, prepare)
    choice = answers.argmax(axis=1)
    declared = choice == labels
    if mcnemar_exact(0, int((~declared).sum())) >= SIGNIFICANT:
        return found  # so many are right that nothing could be seen to be better
    tried = {prepare: choice}
    if pixels.dtype == np.uint8:
        for other in _others(prepare, pixels.shape[-1]):
            tried[other] = answer(other.apply(pixels)).argmax(axis=1)
    best = _best(tried, labels, _Way(prepare, 0, declared))
    return found + ([] if best is None else _in_sentences(best, prepare, declared))


@dataclass(frozen=True)
class _Way:
    """A preprocessing and a shift of the labels, and which images are right with them."""

    prepare: Preprocessing
    shift: int
    right: Right

    def changes(self, declared: Preprocessing) -> int:
        """How many things are other than declared."""
        return (
            int(_rescaled(self.prepare, declared))
            + int(self.prepare.channels != declared.channels)
            + int(self.shift != 0)
        )


def _best(
    tried: dict[Preprocessing, npt.NDArray[Any]], labels: npt.NDArray[np.int64], declared: _Way
) -> _Way | None:
    """The way that changes least among those that are as good as the best; None if none is better.

    A shift counts only where little is right without it: models do confuse neighbours.
    """
    better = []
    for prepare, choice in tried.items():
        plain = _Way(prepare, 0, choice == labels)
        shifted = [_Way(prepare, shift, choice == labels + shift) for shift in (1, -1)]
        ways = [plain, *(way for way in shifted if plain.right.mean() < 0.5 * way.right.mean())]
        better += [way for way in ways if _better(declared.right, way.right)]
    if not better:
        return None
    most = max(better, key=lambda way: int(way.right.sum()))
    equal = [way for way in better if not _better(way.right, most.right)]
    return min(equal, key=lambda way: (way.changes(declared.prepare), -int(way.right.sum())))


def _better(before: Right, after: Right) -> bool:
    """Whether more are right now, by more than chance explains."""
    lost, gained = discordant(before, after)
    return gained > lost and mcnemar_exact(lost, gained) < SIGNIFICANT


def _softmax(answers: npt.NDArray[np.float32]) -> list[Finding]:
    if is_probability(answers):
        return []
    return [
        Finding(
            "softmax",
            f"the answers are no probabilities: from {answers.min():.3g} to {answers.max():.3g}, "
            f"sums from {answers.sum(axis=1).min():.3g} to {answers.sum(axis=1).max():.3g}; end "
            f"the model with a softmax",
        )
    ]


def _others(prepare: Preprocessing, channels: int) -> list[Preprocessing]:
    """The declared preprocessing with another scaling, another order of channels, or both."""
    scalings = [prepare, *map(preprocessing, PREPROCESSING_NAMES)]
    orders: tuple[Literal["rgb", "bgr"], ...] = ("rgb", "bgr")
    found: dict[tuple[Any, ...], Preprocessing] = {}
    for scaling, order in itertools.product(scalings, orders):
        if channels != 3 and (len(scaling.scale) > 1 or len(scaling.offset) > 1 or order == "bgr"):
            continue
        other = replace(scaling, channels=order)
        found.setdefault((_spread(other.scale), _spread(other.offset), order), other)
    declared = (_spread(prepare.scale), _spread(prepare.offset), prepare.channels)
    return [other for key, other in found.items() if key != declared]


def _spread(values: tuple[float, ...]) -> tuple[float, ...]:
    """One value for all channels, or one each: to be compared."""
    return values[:1] if len(set(values)) == 1 else values


def _in_sentences(best: _Way, prepare: Preprocessing, declared: Right) -> list[Finding]:
    seen = (
        f"{_percent(declared)} of {len(declared)} images are right with preprocessing "
        f"{prepare.name!r} and the labels as they are, {_percent(best.right)}"
    )
    other = best.prepare
    found = []
    if _rescaled(other, prepare):
        said = (
            f"{seen} with {_in_words(other)} ({other.name}) instead of {_in_words(prepare)}; "
            f"export the model again with the preprocessing that it was trained with"
        )
        found.append(Finding("scaling", said))
    if other.channels != prepare.channels:
        said = (
            f"{seen} in the order {other.channels.upper()} instead of {prepare.channels.upper()}; "
            f"set channels={other.channels} in the preprocessing"
        )
        found.append(Finding("channels", said))
    if best.shift:
        said = (
            f"{seen} with every label {best.shift:+d}: classes are off by one; set "
            f"class_offset={prepare.class_offset + best.shift} in the preprocessing"
        )
        found.append(Finding("classes", said))
    return found


def _rescaled(other: Preprocessing, prepare: Preprocessing) -> bool:
    pairs = ((other.scale, prepare.scale), (other.offset, prepare.offset))
    return any(_spread(one) != _spread(two) for one, two in pairs)


def _range(values: npt.NDArray[Any], prepare: Preprocessing) -> list[Finding]:
    """Floats whose range is not that of the preprocessing they are said to have gone through."""
    low, high = _ends(prepare)
    least, most = float(values.min()), float(values.max())
    room = 0.05 * (high - low)
    if low - room <= least and most <= high + room and most - least > 0.55 * (high - low):
        return []
    return [
        Finding(
            "scaling",
            f"the images are floats from {least:.4g} to {most:.4g}, preprocessing {prepare.name!r} "
            f"gives {_in_words(prepare)}; save pixels as uint8, or preprocess them as the model "
            f"was trained",
        )
    ]


def _ends(prepare: Preprocessing) -> tuple[float, float]:
    black = np.asarray(prepare.offset, np.float64)
    ends = np.append(black, black + 255 * np.asarray(prepare.scale))
    return float(ends.min()), float(ends.max())


def _in_words(prepare: Preprocessing) -> str:
    low, high = _ends(prepare)
    return f"[{low:.4g}, {high:.4g}]"


def _percent(right: Right) -> str:
    return f"{100 * float(right.mean()):.1f} %"
