"""Fidelity: how near the outputs of a deployable are to the float model's. Numpy only.

One place decides it for ``export``, ``compare``, the gate and the page. A signal-to-noise ratio
over a whole output hides two things: a part that is dead, where another part is larger (boxes of 0
to 320 beside scores of 0 to 1), and a constant that is most of the signal. So every output is
judged with its mean over the samples removed, and channel by channel: along its last axis, and
along its first one too where it has several, since PyTorch keeps channels first.

A channel is *dead* when it varies in the float model and not in the deployable. What counts as
varying depends on what the channel is, which its values tell:

* a share (all values from 0 to 1, as scores and probabilities) has to move by :data:`SHARE`: a
  score that never gets so far is picked by no threshold;
* what is rectified (0 is its least value, it exceeds 1) is compared with the largest of its kind:
  features of one layer that are nearly switched off carry little;
* anything else is compared with its own size.

Constant channels that miss these conditions are *faint*: a note, no failure. Where every channel
that varies is constant in the deployable, the output is dead whatever its values are.

An output that is the same for all samples in the float model (a table of anchors, say) has nothing
that varies: it is judged by its own size.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from edgekit.base.blocks import blocks
from edgekit.base.errors import InvalidDataError

Level = Literal["exact", "close", "far", "poor", "dead"]
#: SQNR in dB, mean removed, from which on outputs are close: the error is a tenth of what varies.
CLOSE = 20.0
#: SQNR in dB, mean removed, below which outputs are poor: the error is a third of what varies.
POOR = 10.0
#: A channel is constant when its variance is below this part of the float model's.
_CONSTANT = 1e-3
#: A reference hardly varies when what varies is below this part of its power (-40 dB).
_HARDLY = 1e-4
#: It does not vary at all below this part, which the rounding of float32 explains (-100 dB).
_SAME = 1e-10
#: Channels that are listed; beyond it they are counted.
LISTED = 32
#: How far a share has to move to matter.
SHARE = 0.05
#: A channel varies when it moves by this part of its largest magnitude: half a step of int8.
_OWN = 1 / 512
#: What is rectified varies when it moves by this part of the largest movement of its kind.
_RECTIFIED = 1 / 128


@dataclass(frozen=True)
class Channel:
    """One channel of an output.

    Attributes:
        axis: Axis of the output, with the batch: 1 is the first axis of a sample.
        index: Index along that axis, from 0.
        moves: How far its values move in the float model, in its own unit.
    """

    axis: int
    index: int
    moves: float


@dataclass(frozen=True)
class Fidelity:
    """One output of a deployable, compared with the same output of the float model.

    Attributes:
        output: Name of the output.
        count: Number of samples.
        sqnr: ``10 log10(sum r^2 / sum (r - o)^2)``, in dB; infinite where all numbers are equal.
        sqnr_centred: The same, with the mean over the samples subtracted from the signal, position
            by position: what varies over the error. It equals ``sqnr`` if there is one sample, or
            nothing varies.
        worst: Of the channels that matter, the one with the lowest ``sqnr_centred``; None if no
            channel matters.
        worst_sqnr: ``sqnr_centred`` of that channel, in dB.
        dead: Channels that vary in the float model and not in the deployable, the first
            :data:`LISTED`.
        faint: Constant channels that hardly matter, by the module's conditions; the first
            :data:`LISTED`.
        hardly_varies: Whether the float model's output is nearly the same for all samples, so that
            ``sqnr`` says little.
        dead_count: Number of all dead channels.
        faint_count: Number of all faint channels.
        low: Smallest value of the float model, in the output's own unit.
        high: Largest value of the float model.
        max_error: Largest difference of a value, in the same unit.
    """

    output: str
    count: int
    sqnr: float
    sqnr_centred: float
    worst: Channel | None = None
    worst_sqnr: float = math.inf
    dead: tuple[Channel, ...] = ()
    faint: tuple[Channel, ...] = ()
    hardly_varies: bool = False
    dead_count: int = 0
    faint_count: int = 0
    low: float = 0.0
    high: float = 0.0
    max_error: float = 0.0

    def __post_init__(self) -> None:
        numbers = (self.sqnr, self.sqnr_centred, self.worst_sqnr, self.low, self.high)
        if any(math.isnan(value) for value in (*numbers, self.max_error)):
            raise InvalidDataError(f"the fidelity of {self.output} is NaN; evaluate it again")

    @property
    def error_share(self) -> float:
        """The largest error in % of the range of the float model's values; of a constant, of its
        size."""
        if self.max_error == 0:
            return 0.0
        span = self.high - self.low or abs(self.high)
        return 100 * self.max_error / span if span else math.inf

    @property
    def level(self) -> Level:
        """The verdict: ``dead`` before any number."""
        return "dead" if self.dead else level(self.sqnr, self.sqnr_centred)


def level(sqnr: float, centred: float) -> Level:
    """The level of numbers in dB, as of :class:`Fidelity`, where no channel is dead."""
    if sqnr == math.inf:
        return "exact"
    if centred >= CLOSE:
        return "close"
    return "far" if centred >= POOR else "poor"


def named(output: Fidelity, channels: Sequence[Channel] | None = None) -> str:
    """Which channels of an output, as ``scores: channels 4, 5, 6 of axis 2``.

    Args:
        output: The output.
        channels: Channels of the output; default the dead ones.
    """
    return f"{output.output}: {channels_of(output, channels)}"


def channels_of(output: Fidelity, channels: Sequence[Channel] | None = None) -> str:
    """The same without the name of the output."""
    listed, count = (output.dead, output.dead_count) if channels is None else (channels, 0)
    by_axis: dict[int, list[int]] = {}
    for channel in listed:
        by_axis.setdefault(channel.axis, []).append(channel.index)
    parts = [
        f"channel{'s' if len(places) > 1 else ''} {_runs(places)} of axis {axis}"
        for axis, places in by_axis.items()
    ]
    more = count - len(listed)
    return ", ".join(parts) + (f" and {more} more" if more > 0 else "")


def _runs(places: Sequence[int]) -> str:
    """Ascending numbers, where three or more follow each other as ``4 to 6``."""
    runs: list[list[int]] = []
    for place in places:
        if runs and place == runs[-1][-1] + 1:
            runs[-1].append(place)
        else:
            runs.append([place])
    texts = []
    for run in runs:
        texts += [f"{run[0]} to {run[-1]}"] if len(run) > 2 else [str(place) for place in run]
    return ", ".join(texts)


#: From the best level to the worst.
LEVELS: tuple[Level, ...] = ("exact", "close", "far", "poor", "dead")


def worst(fidelities: Sequence[Fidelity]) -> Level:
    """The worst level of several outputs."""
    return max((fidelity.level for fidelity in fidelities), key=LEVELS.index, default="exact")


def judge(
    reference: npt.NDArray[np.float32],
    other: npt.NDArray[np.float32],
    outputs: Mapping[str, tuple[int, ...]],
) -> tuple[Fidelity, ...]:
    """Judge every output.

    Args:
        reference: The float model's outputs ``[N, numbers]``, one output behind the other, each
            flattened.
        other: The deployable's, of the same shape.
        outputs: Sizes of a sample of each output, in that order, batch axis left out; ``()`` for a
            scalar.

    Raises:
        InvalidDataError: If the arrays differ in shape, do not have as many numbers as the outputs,
            hold no sample, or hold NaN or infinity.
    """
    numbers = sum(math.prod(sizes) for sizes in outputs.values())
    if reference.shape != other.shape or reference.shape[1:] != (numbers,) or not len(reference):
        raise InvalidDataError(
            f"expected outputs [N, {numbers}] of both models, got {list(reference.shape)} and "
            f"{list(other.shape)}"
        )
    judges = []
    start = 0
    for name, sizes in outputs.items():
        stop = start + math.prod(sizes)
        judges.append((_Judge(name, sizes or (1,)), slice(start, stop)))
        start = stop
    for exact, deployed in blocks(reference, other):
        for output_judge, part in judges:
            output_judge.add(exact[:, part], deployed[:, part])
    return tuple(output_judge.result() for output_judge, _ in judges)


class _Judge:
    """Sums over the samples of one output; memory does not grow with their number."""

    def __init__(self, name: str, sizes: tuple[int, ...]) -> None:
        self._name, self._sizes, self._count = name, sizes, 0
        self._axes = sorted({0, len(sizes) - 1})
        self._signal = 0.0
        self._first: list[npt.NDArray[np.float64]] = []
        self._sums: list[npt.NDArray[np.float64]] = []
        # by axis: squares of both models' deviations from the first sample, and of the error
        self._squares = {axis: np.zeros((3, sizes[axis])) for axis in self._axes}
        self._all_squares = np.zeros(3)
        self._largest = 0.0
        # by axis: least and largest value, and largest deviation, of the reference
        self._low = {axis: np.full(sizes[axis], np.inf) for axis in self._axes}
        self._high = {axis: np.full(sizes[axis], -np.inf) for axis in self._axes}
        self._moves = {axis: np.zeros(sizes[axis]) for axis in self._axes}

    def add(self, exact: npt.NDArray[np.float32], deployed: npt.NDArray[np.float32]) -> None:
        """Take in samples ``[n, numbers]`` of the float model and of the deployable."""
        values = [part.reshape(-1, *self._sizes).astype(np.float64) for part in (exact, deployed)]
        for part, whose in zip(values, ("float model", "deployable"), strict=True):
            if not np.isfinite(part).all():
                raise InvalidDataError(
                    f"the {whose} gives NaN or infinity in {self._name}; its outputs cannot be "
                    f"judged"
                )
        if not self._count:
            self._first = [part[0].copy() for part in values]
            self._sums = [np.zeros(self._sizes) for _ in values]
        self._count += len(values[0])
        self._signal += float((values[0] ** 2).sum())
        moved = [part - first for part, first in zip(values, self._first, strict=True)]
        for total, part in zip(self._sums, moved, strict=True):
            total += part.sum(axis=0)
        squares = [(part**2).sum(axis=0) for part in (*moved, values[0] - values[1])]
        self._all_squares += [float(part.sum()) for part in squares]
        self._largest = max(self._largest, float(np.abs(values[0] - values[1]).max()))
        bounds = values[0].min(axis=0), values[0].max(axis=0), np.abs(moved[0]).max(axis=0)
        for axis in self._axes:
            others = tuple(i for i in range(len(self._sizes)) if i != axis)
            self._squares[axis] += [part.sum(axis=others) for part in squares]
            low, high, moves = self._low[axis], self._high[axis], self._moves[axis]
            np.minimum(low, bounds[0].min(axis=others), out=low)
            np.maximum(high, bounds[1].max(axis=others), out=high)
            np.maximum(moves, bounds[2].max(axis=others), out=moves)

    def result(self) -> Fidelity:
        """The verdict over all samples."""
        noise = float(self._all_squares[2])
        means = [total**2 / self._count for total in self._sums]
        varies = max(0.0, float(self._all_squares[0] - means[0].sum()))
        several = self._count > 1 and varies > _SAME * self._signal
        dead: list[Channel] = []
        faint: list[Channel] = []
        worst: Channel | None = None
        worst_sqnr = math.inf
        for axis in self._axes if several else ():
            others = tuple(i for i in range(len(self._sizes)) if i != axis)
            variance, other = (
                np.maximum(0, squares - mean.sum(axis=others))
                for squares, mean in zip(self._squares[axis][:2], means, strict=True)
            )
            errors = self._squares[axis][2]
            moving, matters = self._matter(axis)
            constant = moving & (other <= _CONSTANT * variance)
            if moving.any() and constant[moving].all():
                matters = moving
            for into, those in ((dead, constant & matters), (faint, constant & ~matters)):
                into += [self._channel(axis, int(index)) for index in np.flatnonzero(those)]
            for index in np.flatnonzero(matters):
                sqnr = decibels(float(variance[index]), float(errors[index]))
                if worst is None or sqnr < worst_sqnr:
                    worst, worst_sqnr = self._channel(axis, int(index)), sqnr
        return Fidelity(
            output=self._name,
            count=self._count,
            sqnr=decibels(self._signal, noise),
            sqnr_centred=decibels(varies if several else self._signal, noise),
            worst=worst,
            worst_sqnr=worst_sqnr,
            dead=tuple(dead[:LISTED]),
            faint=tuple(faint[:LISTED]),
            hardly_varies=self._count > 1 and varies < _HARDLY * self._signal,
            dead_count=len(dead),
            faint_count=len(faint),
            low=min(float(low.min()) for low in self._low.values()),
            high=max(float(high.max()) for high in self._high.values()),
            max_error=self._largest,
        )

    def _channel(self, axis: int, index: int) -> Channel:
        return Channel(axis + 1, index, float(f"{self._moves[axis][index]:.4g}"))

    def _matter(self, axis: int) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
        """(channels that move at all, those whose movement matters) along an axis."""
        low, high, moves = self._low[axis], self._high[axis], self._moves[axis]
        size = np.maximum(np.abs(low), np.abs(high))
        moving = moves > _OWN * size
        share = (low >= 0) & (high <= 1)
        rectified = (low >= 0) & (low <= _OWN * high) & ~share
        most = float(moves[rectified].max(initial=0))
        enough = np.where(share, moves >= SHARE, ~rectified | (moves >= _RECTIFIED * most))
        return moving, moving & enough


def decibels(signal: float, noise: float) -> float:
    """A ratio of powers in dB: infinite without noise, minus infinity without a signal."""
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal > 0 else -math.inf
