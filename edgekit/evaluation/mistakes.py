"""Classic mistakes between a model and its data, found by trying their corrections.

A scaling, or an order of channels or classes, is only named if it makes the predictions
significantly better than those of the declared preprocessing (exact McNemar test on the same
images). So a sound model gives no finding. Labels that no correction makes fit, and that are right
no more often than by chance, do not belong to the model at all.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from edgekit.base.errors import InvalidDataError, MissingDependencyError
from edgekit.data import feeds
from edgekit.records import stats
from edgekit.records.results import LabelFit
from edgekit.records.signature import PREPROCESSING_NAMES, Preprocessing, preprocessing
from edgekit.records.stats import discordant, is_probability, mcnemar_exact

Kind = Literal["scaling", "channels", "classes", "labels", "softmax"]
#: Images that are tried, evenly spread over the set.
IMAGES = 256
SIGNIFICANT = 1e-3
#: Classes that are named of many.
_NAMED = 6

Predict = Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float32]]
Right = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Finding:
    """One likely mistake.

    Attributes:
        said: What was seen, and the fix, a sentence.
        hint: Whether it may be as it is: no mistake, but worth to know.
    """

    kind: Kind
    said: str
    hint: bool = False


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
    predict: Predict,
    images: npt.NDArray[Any],
    labels: npt.NDArray[np.int64],
    prepare: Preprocessing,
    *,
    count: int = IMAGES,
    step: float | None = None,
) -> list[Finding]:
    """Look for wrong scaling, RGB for BGR, classes that are off by one, and a missing softmax.

    Args:
        predict: The model: from its float32 input ``[N, H, W, C]`` to ``[N, classes]``.
        images: uint8 pixels, or floats that are preprocessed already.
        labels: The right classes, ``class_offset`` of ``prepare`` added.
        prepare: As declared.
        count: Images to try, at most.
        step: Scale of a quantized output; default what its numbers show.
    """
    chosen = np.unique(np.linspace(0, len(images) - 1, count).astype(int))
    pixels, labels = np.asarray(images[chosen]), labels[chosen]
    outputs = predict(prepare.apply(pixels))
    findings = _softmax(outputs, step)
    if pixels.dtype != np.uint8 and feeds.unit(pixels) == "images":
        findings += _range(pixels, prepare)
    choice = outputs.argmax(axis=1)
    declared = choice == labels
    if mcnemar_exact(0, int((~declared).sum())) >= SIGNIFICANT:
        return findings  # so many are right that nothing could be seen to be better
    tried = {prepare: choice}
    if pixels.dtype == np.uint8:
        for other in _others(prepare, pixels.shape[-1]):
            tried[other] = predict(other.apply(pixels)).argmax(axis=1)
    best = _best(tried, labels, _Correction(prepare, 0, declared))
    return findings + ([] if best is None else _in_sentences(best, prepare, declared))


@dataclass(frozen=True)
class _Correction:
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
    tried: dict[Preprocessing, npt.NDArray[Any]],
    labels: npt.NDArray[np.int64],
    declared: _Correction,
) -> _Correction | None:
    """The correction that changes least among those as good as the best; None if none is better.

    A shift counts only where little is right without it: models do confuse neighbours.
    """
    better = []
    for prepare, choice in tried.items():
        plain = _Correction(prepare, 0, choice == labels)
        shifted = [_Correction(prepare, shift, choice == labels + shift) for shift in (1, -1)]
        corrections = [
            plain,
            *(
                correction
                for correction in shifted
                if plain.right.mean() < 0.5 * correction.right.mean()
            ),
        ]
        better += [
            correction for correction in corrections if _better(declared.right, correction.right)
        ]
    if not better:
        return None
    most = max(better, key=lambda correction: int(correction.right.sum()))
    equal = [correction for correction in better if not _better(correction.right, most.right)]
    return min(
        equal,
        key=lambda correction: (correction.changes(declared.prepare), -int(correction.right.sum())),
    )


def _better(before: Right, after: Right) -> bool:
    """Whether more are right now, by more than chance explains."""
    lost, gained = discordant(before, after)
    return gained > lost and mcnemar_exact(lost, gained) < SIGNIFICANT


def _softmax(outputs: npt.NDArray[np.float32], step: float | None) -> list[Finding]:
    """Scores that are no probabilities rank the classes as well; who reads them has to know."""
    if is_probability(outputs, step=step):
        return []
    sums = outputs.sum(axis=1)
    return [
        Finding(
            "softmax",
            f"outputs are scores, no probabilities: from {outputs.min():.3g} to "
            f"{outputs.max():.3g}, sums from {sums.min():.3g} to {sums.max():.3g}; if "
            f"probabilities are expected, end the model with a softmax",
            hint=True,
        )
    ]


def label_fit(choices: npt.NDArray[np.integer[Any]], labels: npt.NDArray[np.int64]) -> LabelFit:
    """Whether labels are those of the images, by what the float model chooses.

    They are not where it is no better than chance, and so few are right that it is not even half
    way between chance and perfect; with fewer images nothing can be said.

    Args:
        choices: The class that the float model chose, ``[N]``.
        labels: The right class, ``[N]``.
    """
    accuracy = stats.proportion(int((choices == labels).sum()), len(labels))
    chance, p = stats.by_chance(choices, labels)
    problem: Literal["", "chance", "one class"] = ""
    half_way = 50 + 50 * chance
    if p >= stats.SIGNIFICANT and accuracy.high is not None and accuracy.high < half_way:
        problem = "chance"
    elif len(labels) > 1 and (labels == labels[0]).all():
        problem = "one class"
    return LabelFit(accuracy.value, 100 * chance, p, problem)


def of_fit(
    fit: LabelFit, count: int, *, whose: str = "the model", metric: str = ""
) -> list[Finding]:
    """What is wrong with labels, in words; ``metric`` is what stands in for the accuracy."""
    if fit.problem == "one class":
        return [
            Finding(
                "labels",
                f"all {count:,} labels are one class, so that accuracy says nothing; draw from "
                f"all classes with #samples=N behind the data's word",
                hint=True,
            )
        ]
    if not fit.problem:
        return []
    right = f"{whose} is right on {fit.accuracy:.1f} % of {count:,}"
    if metric:
        right = f"{metric} of {whose} is {fit.accuracy:.2g} % on {count:,}"
    return [
        Finding(
            "labels",
            f"the labels do not fit the samples: {right}, {fit.chance:.2g} % are by chance "
            f"(p = {fit.p:.2g}); check that labels are in the order of the samples and number the "
            f"classes as the model does, and the preprocessing",
        )
    ]


def renumbered(
    choices: npt.NDArray[np.integer[Any]],
    labels: npt.NDArray[np.int64],
    names: tuple[str, ...] = (),
) -> list[Finding]:
    """Look for labels that number the classes in another order than the model.

    The best one-to-one assignment of labels to classes is taken from half of the samples and tried
    on the other half: it is named where it makes significantly more right, and each class that it
    moves is right then more often than not.

    Args:
        choices: The class that the float model chose, ``[N]``.
        labels: The right class, ``[N]``.
        names: Names of the classes.
    """
    classes = int(max(choices.max(), labels.max())) + 1
    order = np.random.default_rng(0).permutation(len(labels))
    fitted_places, tested_places = order[::2], order[1::2]
    if not len(tested_places):
        return []
    counts = np.zeros((classes, classes))
    np.add.at(counts, (labels[fitted_places], choices[fitted_places]), 1)
    assigned = _assigned(counts)
    occurring = counts.sum(axis=1) > 0
    assigned = np.where(occurring, assigned, np.arange(classes))
    moved = np.flatnonzero(assigned != np.arange(classes))
    where = tested_places[np.isin(labels[tested_places], moved)]
    before, after = choices == labels, choices == assigned[labels]
    if not len(where) or not _better(before[where], after[where]):
        return []
    if after[where].mean() <= 0.5 or before[where].mean() >= 0.5 * after[where].mean():
        return []
    real = len(names) == classes and names != tuple(map(str, range(classes)))
    pairs = [
        f"{label} is the model's {assigned[label]} ({names[assigned[label]]})"
        if real
        else f"{label} is the model's {assigned[label]}"
        for label in moved[:_NAMED].tolist()
    ]
    more = f" and {len(moved) - _NAMED} more" if len(moved) > _NAMED else ""
    alphabet = sorted(range(classes), key=lambda place: names[place]) if real else []
    by_name = bool(alphabet) and all(assigned[place] == alphabet[place] for place in moved)
    why = "; they count the classes by alphabet, the model does not" if by_name else ""
    return [
        Finding(
            "labels",
            f"they number the classes otherwise than the model: {_percent(after)} of "
            f"{len(labels):,} samples are right instead of {_percent(before)} where label "
            f"{', '.join(pairs)}{more}{why}; number them as the model does",
        )
    ]


def _assigned(counts: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """The class of each label, one to one, that makes most right."""
    try:
        from scipy.optimize import linear_sum_assignment
    except ImportError:
        raise MissingDependencyError("scipy", "report") from None
    # as it is where two assignments are as good
    return np.asarray(linear_sum_assignment(-counts - 0.5 * np.eye(len(counts)))[1], np.int64)


def _others(prepare: Preprocessing, channels: int) -> list[Preprocessing]:
    """The declared preprocessing with another scaling, another order of channels, or both."""
    scalings = [prepare, *map(preprocessing, PREPROCESSING_NAMES)]
    orders: tuple[Literal["rgb", "bgr"], ...] = ("rgb", "bgr")
    by_values: dict[tuple[Any, ...], Preprocessing] = {}
    for scaling, order in itertools.product(scalings, orders):
        if channels != 3 and (len(scaling.scale) > 1 or len(scaling.offset) > 1 or order == "bgr"):
            continue
        other = replace(scaling, channels=order)
        by_values.setdefault((_spread(other.scale), _spread(other.offset), order), other)
    declared = (_spread(prepare.scale), _spread(prepare.offset), prepare.channels)
    return [other for key, other in by_values.items() if key != declared]


def _spread(values: tuple[float, ...]) -> tuple[float, ...]:
    """One value for all channels, or one each: to be compared."""
    return values[:1] if len(set(values)) == 1 else values


def _in_sentences(best: _Correction, prepare: Preprocessing, declared: Right) -> list[Finding]:
    shares = (
        f"{_percent(declared)} of {len(declared)} images are right with preprocessing "
        f"{prepare.name!r} and the labels as they are, {_percent(best.right)}"
    )
    other = best.prepare
    findings = []
    if _rescaled(other, prepare):
        sentence = (
            f"{shares} with {_in_words(other)} ({other.name}) instead of {_in_words(prepare)}; "
            f"export the model again with the preprocessing that it was trained with"
        )
        findings.append(Finding("scaling", sentence))
    if other.channels != prepare.channels:
        sentence = (
            f"{shares} in the order {other.channels.upper()} instead of "
            f"{prepare.channels.upper()}; set channels={other.channels} in the preprocessing"
        )
        findings.append(Finding("channels", sentence))
    if best.shift:
        sentence = (
            f"{shares} with every label {best.shift:+d}: classes are off by one; set "
            f"class_offset={prepare.class_offset + best.shift} in the preprocessing"
        )
        findings.append(Finding("classes", sentence))
    return findings


def _rescaled(other: Preprocessing, prepare: Preprocessing) -> bool:
    pairs = ((other.scale, prepare.scale), (other.offset, prepare.offset))
    return any(_spread(values) != _spread(declared_values) for values, declared_values in pairs)


def _range(values: npt.NDArray[Any], prepare: Preprocessing) -> list[Finding]:
    """Floats whose range is not that of the preprocessing they are said to have gone through."""
    low, high = _value_limits(prepare)
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


def _value_limits(prepare: Preprocessing) -> tuple[float, float]:
    black = np.asarray(prepare.offset, np.float64)
    extremes = np.append(black, black + 255 * np.asarray(prepare.scale))
    return float(extremes.min()), float(extremes.max())


def _in_words(prepare: Preprocessing) -> str:
    low, high = _value_limits(prepare)
    return f"[{low:.4g}, {high:.4g}]"


def _percent(right: Right) -> str:
    return f"{100 * float(right.mean()):.1f} %"
