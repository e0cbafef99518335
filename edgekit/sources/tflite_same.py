"""Whether two TFLite files compute the same on random numbers: what edgekit reads out of a file is
held against the file itself before anything is made of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.base.errors import EdgekitError, InvalidModelError, reason
from edgekit.graph import litert
from edgekit.sources import random_inputs

Array = npt.NDArray[Any]
#: How far an output may lie from the other file's, as a part of its largest value.
_SAME = 1e-4
#: Difference that rounding explains whatever the size, where the same kernels run.
_ROUNDING = 1e-7


def check(original: bytes, canonical: bytes, name: str) -> tuple[str, ...]:
    """Compare the canonical graph of a float file with the file.

    Args:
        original: The file, as it is.
        canonical: Its canonical graph, with batch 1. Its inputs have the order of the file.
        name: Name of the file, for messages.

    Returns:
        A sentence if the file does not run on random numbers, else nothing.

    Raises:
        InvalidModelError: If an output differs by more than 1e-4 of its largest value.
    """
    opened = litert.interpreter(canonical, exact=True)
    feed = random_feed(opened)
    try:
        first = litert.interpreter(original, exact=True).get_input_details()
        sizes = {detail["index"]: values.shape for detail, values in zip(first, feed, strict=True)}
        expected = outputs(litert.interpreter(original, exact=True, sizes=sizes), feed)
    except (EdgekitError, RuntimeError, ValueError) as exc:
        return (f"not compared with the file, which does not run on random inputs: {reason(exc)}",)
    try:
        said = difference(outputs(opened, feed), expected)
    except EdgekitError as exc:
        said = str(exc)
    if said:
        raise InvalidModelError(
            f"{name} cannot be read as a graph of one sample that computes the same: {said}; "
            f"convert it again with fixed sizes and batch 1"
        )
    return ()


def random_feed(opened: Any) -> list[Array]:
    """An array for each input of an interpreter: numbers from -1 to 1, and 0 or 1 of integers."""
    inputs = [(detail["shape"], detail["dtype"]) for detail in opened.get_input_details()]
    return random_inputs.draw(inputs, seed=0, least=-1)


def outputs(opened: Any, feed: Sequence[Array]) -> list[Array]:
    """Run an interpreter.

    Raises:
        ExecutionError: If an operator refuses its values.
    """
    for detail, values in zip(opened.get_input_details(), feed, strict=True):
        opened.set_tensor(detail["index"], values)
    litert.invoke(opened)
    return [opened.get_tensor(detail["index"]) for detail in opened.get_output_details()]


def difference(outputs: Sequence[Array], expected: Sequence[Array]) -> str:
    """How outputs differ from those expected, in words; empty where they are the same."""
    for number, (each, right) in enumerate(zip(outputs, expected, strict=True)):
        if said := difference_of(f"output {number}", right, each, rounding=_ROUNDING):
            return said
    return ""


def difference_of(
    name: str, right: Array, wrong: Array, *, rounding: float, others: float = 0.0
) -> str:
    """How an output differs from the file's, in words; empty where it is the same.

    Args:
        name: Of the output.
        right: The file's.
        wrong: The other graph's.
        rounding: Difference that is none, whatever the size.
        others: Share of whole numbers that may differ.
    """
    if right.shape != wrong.shape:
        return f"{name} has the sizes {list(wrong.shape)}, in the file {list(right.shape)}"
    if right.dtype.kind != "f":
        share = float(np.mean(right != wrong)) if right.size else 0.0
        return f"{100 * share:.3g} % of {name} differ" if share > others else ""
    finite = np.isfinite(right)
    if not np.array_equal(right[~finite], wrong[~finite], equal_nan=True):
        return f"{name} is NaN or infinite in other places than in the file"
    largest = float(np.abs(right[finite]).max(initial=0))
    error = float(np.abs(wrong[finite].astype(np.float64) - right[finite]).max(initial=0))
    if error <= max(_SAME * largest, rounding):
        return ""
    return f"{name} differs by {error:.3g} from the file's, of {largest:.3g} at most"
