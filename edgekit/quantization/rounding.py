"""Rounding of weights that is chosen, not nearest: what one weight loses, the others make up for.

``round_rows`` is the column-wise solution of Frantar et al. 2022 ("GPTQ", section 3; after Hassibi
and Stork 1993) to the problem that Nagel et al. 2020 ("Up or Down?", section 3) pose: least squared
error of the layer's output, not of its weights. The bias is one more weight, whose input is always
1 and which needs no rounding; it comes last and takes what is left of the mean error, so that bias
correction (Nagel et al. 2019, section 4.2) is part of the solution.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.quantization import saturation

Floats = npt.NDArray[np.float64]
MapParts = Callable[..., Iterable[Any]]

LARGEST = 127  # int8 weights are narrow range, [-127, 127]
_BLOCK = 96
_TINY = 1e-30  # weights that float32 can hardly hold are as good as 0
#: Of the mean second moment, added to the diagonal when weights are rounded (Frantar et al. 2022,
#: section 3, step 3).
DAMPING = 0.01
#: The same when weights are fitted: keeps the solution near the given weights where the inputs say
#: little. The damping of a layer is chosen between the first and the last of these.
DAMPINGS = (0.01, 3.0, 100.0)
#: The same of the bias.
_BIAS_DAMPING = 1e-9
#: How far a pair-bound layer's scales are raised to see what costs least.
_RAISES = (1.0, 1.05, 1.1, 1.15, 1.2, 1.3, 1.4, 1.6, 2.0)
#: How far a scale of 4 bits is lowered, which cuts off the largest weights.
_LOWERED = tuple(1 - 0.025 * step for step in range(24))


def scales(rows: Floats, *, bits: int = 8) -> Floats:
    """Largest magnitude of each row over 127 (of 8 bits), float64 ``[O]``; 1 for zeros."""
    largest = np.abs(rows).max(axis=1)
    return np.where(largest > _TINY, largest / (2 ** (bits - 1) - 1), 1.0)


def cut_scales(
    rows: Floats, scale: Floats, importance: Floats | None = None, *, bits: int
) -> Floats:
    """Scales that cost least where the largest weights may be cut off.

    Few bits have coarse steps: smaller ones for all weights can be worth the error of the largest.

    Args:
        rows: Real weights ``[O, K]``.
        scale: ``[O]`` by which none is cut off.
        importance: As :func:`pair_scales` takes it.
        bits: Of a weight.
    """
    largest = 2 ** (bits - 1) - 1
    return _cheapest(
        rows,
        scale,
        importance,
        _LOWERED,
        lambda tried: nearest(rows, tried, pair_bound=False, largest=largest),
    )


def _cheapest(
    rows: Floats,
    scale: Floats,
    importance: Floats | None,
    factors: Sequence[float],
    rounded: Callable[[Floats], Floats],
) -> Floats:
    """The scales times those factors, one for each row, whose steps leave the least error."""
    weight = np.ones(rows.shape[1]) if importance is None else importance
    best, best_scale = np.full(len(rows), np.inf), scale.copy()
    for factor in factors:
        tried = scale * factor
        off = rows - rounded(tried) * tried[:, None]
        error = (off**2 * weight).sum(axis=1)
        better = error < best * (1 - 1e-9)
        best, best_scale = np.where(better, error, best), np.where(better, tried, best_scale)
    return best_scale


def nearest(rows: Floats, scale: Floats, *, pair_bound: bool, largest: int = LARGEST) -> Floats:
    """Each weight to its nearest step; pairs that could saturate step back towards 0.

    Args:
        rows: Real weights ``[O, K]``.
        scale: ``[O]``.
        pair_bound: Keep pairs within :data:`edgekit.quantization.saturation.LIMIT`.
        largest: Of the steps, e.g. 7 of 4 bits.

    Returns:
        Whole steps ``[O, K]``.
    """
    values = rows / scale[:, None]
    steps = np.clip(np.rint(values), -largest, largest)
    return saturation.shrink(steps, values) if pair_bound else steps


def pair_scales(rows: Floats, scale: Floats, importance: Floats | None = None) -> Floats:
    """Scales that cost least under the pair bound.

    A larger scale brings more pairs within the bound, and makes all steps coarser.

    Args:
        rows: Real weights ``[O, K]``.
        scale: ``[O]`` without the bound.
        importance: Second moment of each input, ``[K]``, or ``[O, K]`` where every row has inputs
            of its own; default all the same.
    """
    return _cheapest(
        rows, scale, importance, _RAISES, lambda tried: nearest(rows, tried, pair_bound=True)
    )


@dataclass(frozen=True)
class Part:
    """What a part of the samples says of a layer.

    Attributes:
        count: Dot products in it.
        moments: E[x x'] of the device's inputs, the last of which is 1: ``[K + 1, K + 1]``, or one
            for each row, ``[O, K + 1, K + 1]``.
        cross: E[error x'] of the error that is there already, ``[O, K + 1]``.
        inputs: x, ``[count, K + 1]`` float32, where they are few beside K, else None.
        errors: Theirs, ``[count, O]`` float32, or None.
    """

    count: int
    moments: Floats
    cross: Floats
    inputs: npt.NDArray[np.float32] | None = None
    errors: npt.NDArray[np.float32] | None = None


def fit(
    rows: Floats, bias: Floats, parts: Sequence[Part], *, map_parts: MapParts = map
) -> tuple[Floats, Floats]:
    """Weights and biases that give the float output best from the inputs as the device has them.

    Ridge regression of the error that is there already, in all layers before, on those inputs. The
    damping is the one whose solution from the other parts leaves the least error in each part: how
    much of the error the inputs explain is the layer's own (leave-one-out, Stone 1974, with parts
    for samples). It is found by the errors of :data:`DAMPINGS`.

    Args:
        rows: ``[O, K]``.
        bias: ``[O]``.
        parts: Parts of the samples, two or more for a choice.
        map_parts: As :func:`map`, e.g. that of a pool of threads.

    Returns:
        Changed (rows, bias).
    """
    whole = joined(parts)
    damping = DAMPINGS[-1]
    if len(parts) > 1:
        left = _left_by_samples(parts)
        if left is None:
            others = [joined([*parts[:i], *parts[i + 1 :]]) for i in range(len(parts))]
            count, tried = len(DAMPINGS), np.repeat(DAMPINGS, len(parts))
            deltas = map_parts(_ridge, others * count, tried)
            each_left = np.array([*map(_left, list(parts) * count, deltas)])
            left = each_left.reshape(count, -1).sum(axis=1)
        damping = _least(left)
    delta = _ridge(whole, damping)
    return rows + delta[:, :-1], bias + delta[:, -1]


def _least(left: Floats) -> float:
    """The damping that leaves the least error, by what each of :data:`DAMPINGS` leaves: the least
    of the parabola through them over the logarithm, but no damping beyond them."""
    low, middle, high = np.log(DAMPINGS)
    falls, rises = (left[1] - left[0]) / (middle - low), (left[2] - left[1]) / (high - middle)
    bend = (rises - falls) / (high - low)
    if not bend > 0:  # it has no least, one of its ends is it
        return DAMPINGS[int(np.argmin(left))]
    return float(np.exp(np.clip((low + middle) / 2 - falls / (2 * bend), low, high)))


def _left_by_samples(parts: Sequence[Part]) -> Floats | None:
    """:func:`_left` of each damping, summed over two parts, from their samples.

    A few samples of many inputs: what they say is found by as many equations as there are samples
    (the dual form of ridge regression, Saunders et al. 1998). None where the samples are not at
    hand.
    """
    losses = np.zeros(len(DAMPINGS))
    if len(parts) != 2:
        return None
    for own, other in (parts, parts[::-1]):
        if own.inputs is None or own.errors is None or other.inputs is None or other.errors is None:
            return None
        other_inputs, own_inputs = (
            part[:, :-1].astype(np.float64) for part in (other.inputs, own.inputs)
        )
        errors, exact = other.errors.astype(np.float64), own.errors.astype(np.float64)
        alike, across = other_inputs @ other_inputs.T, own_inputs @ other_inputs.T
        for number, damping in enumerate(DAMPINGS):
            added = _added(other.moments, damping)
            # the bias is one input more, 1 everywhere, that is all but undamped
            system = alike / added + 1 / _BIAS_DAMPING + other.count * np.eye(other.count)
            dual = np.linalg.solve(system, errors)
            bias = (errors - other.count * dual - alike @ dual / added).mean(axis=0)
            gain = across @ dual / added + bias
            losses[number] += float((gain * (gain - 2 * exact)).sum())
    return losses


def joined(parts: Sequence[Part]) -> Part:
    """Several parts as one."""
    if len(parts) == 1:
        return parts[0]
    count = sum(part.count for part in parts)
    moments = sum(part.moments * (part.count / count) for part in parts)
    cross = sum(part.cross * (part.count / count) for part in parts)
    return Part(count, np.asarray(moments), np.asarray(cross))


def _left(part: Part, delta: Floats) -> float:
    """How much larger the squared error of a part's samples is with this change than without."""
    flat = part.moments.ndim == 2
    product = delta @ part.moments if flat else (delta[:, None] @ part.moments)[:, 0]
    return part.count * float((delta * (product - 2 * part.cross)).sum())


def _ridge(part: Part, damping: float) -> Floats:
    """What to add to weights and bias, ``[O, K + 1]``."""
    damped = _damped(part.moments, damping)
    if part.moments.ndim == 2:
        return np.asarray(np.linalg.solve(damped, part.cross.T).T, np.float64)
    return np.asarray(np.linalg.solve(damped, part.cross[..., None])[..., 0], np.float64)


def round_rows(
    rows: Floats,
    bias: Floats,
    moments: Floats,
    scale: Floats,
    *,
    pair_bound: bool,
    largest: int = LARGEST,
) -> tuple[Floats, Floats]:
    """Round one weight after another; each error goes to the weights that are still free.

    Args:
        rows: Real weights ``[O, K]``.
        bias: ``[O]``.
        moments: E[x x'] with a last input of 1: ``[K + 1, K + 1]``, or one a row.
        scale: ``[O]``.
        pair_bound: Keep pairs within :data:`edgekit.quantization.saturation.LIMIT`.
        largest: Of the steps, e.g. 7 of 4 bits.

    Returns:
        Whole steps ``[O, K]``, and the biases that go with them ``[O]``, real.
    """
    count = rows.shape[1]
    order = np.arange(count + 1)
    if moments.ndim == 2:  # the strongest inputs first: most is left then to make up for them
        order[:count] = np.argsort(-np.diag(moments)[:count], kind="stable")
    damped = _damped(moments, DAMPING)[..., order[:, None], order]
    inverse = np.linalg.inv(damped)
    factor = np.linalg.cholesky((inverse + np.swapaxes(inverse, -1, -2)) / 2)
    factor = np.swapaxes(factor, -1, -2)  # upper: the inverse of what is still free, row by row
    if factor.ndim == 2:
        factor = factor[None]
    by_input = np.moveaxis(factor, 0, -1)  # ``[K + 1, K + 1, O]``, the last axis 1 where one is all
    # one input of all rows after the other: ``[K + 1, O]``
    free = np.ascontiguousarray(np.concatenate([rows, bias[:, None]], axis=1)[:, order].T)
    steps = np.zeros((count, len(rows)))
    done = np.zeros(count, bool)
    for begin in range(0, count, _BLOCK):
        end = min(begin + _BLOCK, count)
        errors = np.zeros((end - begin, len(rows)))
        for i in range(begin, end):
            place, partner = order[i], order[i] ^ 1
            step = np.clip(np.rint(free[i] / scale), -largest, largest)
            if pair_bound and partner < count and done[partner]:
                other = steps[partner]
                bound = np.where(step * other > 0, saturation.LIMIT - np.abs(other), LARGEST)
                step = np.clip(step, -bound, bound)
            steps[place], done[place] = step, True
            errors[i - begin] = (free[i] - step * scale) / by_input[i, i]
            free[i + 1 : end] -= by_input[i, i + 1 : end] * errors[i - begin]
        later = factor[:, begin:end, end:]
        if len(later) == 1:
            free[end:] -= (errors.T @ later[0]).T
        else:
            errors_by_row = np.ascontiguousarray(errors.T)
            free[end:] -= np.einsum("ob,obk->ok", errors_by_row, later).T
    return np.ascontiguousarray(steps.T), free[count]


def _damped(moments: Floats, damping: float) -> Floats:
    count = moments.shape[-1] - 1
    damped = moments.copy()
    places = np.arange(count)
    damped[..., places, places] += np.asarray(_added(moments, damping))[..., None]
    damped[..., count, count] += _BIAS_DAMPING
    return damped


def _added(moments: Floats, damping: float) -> Any:
    """What is added to the moments of the inputs; one number, or ``[O]``."""
    diagonal = np.diagonal(moments, axis1=-2, axis2=-1)[..., : moments.shape[-1] - 1]
    return damping * diagonal.mean(axis=-1) + 1e-12
