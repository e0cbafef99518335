"""Metrics of the user: functions of predictions and labels, named on the command line.

A function ``f(predictions, labels)`` returns a number, or a number for each sample ``[N]``, whose
mean is then the metric, with an interval. What it gets depends on the task:

* classification: scores float32 ``[N, C]``, labels int64 ``[N]``;
* regression: outputs float32 ``[N, M]``, the right numbers float32 ``[N, M]``;
* detection: found and right :class:`edgekit.data.boxes.Boxes`, in pixels of the pictures;
* segmentation: two sequences of N class maps uint8 ``[h, w]`` of the output's size, 255 where the
  right class is void.

Labels are None where the data has none.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgekit.base.errors import InvalidDataError, InvalidOptionError, reason
from edgekit.data.function import WORD, imported
from edgekit.records.results import OF_FUNCTION, Measurement
from edgekit.tasks import bootstrap


@dataclass(frozen=True)
class Function:
    """A metric of the user.

    Attributes:
        word: ``module:function``, as it was typed.
        call: The function.
    """

    word: str
    call: Callable[[Any, Any], Any]

    @property
    def name(self) -> str:
        """Name of the metric in the report: ``metric:`` and the function's name."""
        return OF_FUNCTION + self.word.partition(":")[2]

    def measure(self, predictions: Any, labels: Any, count: int) -> Measurement:
        """Call it.

        Args:
            predictions: As the module says.
            labels: As the module says; None without any.
            count: Number of samples.

        Raises:
            InvalidDataError: If it raises, or returns something else, or NaN.
        """
        try:
            returned = np.asarray(self.call(predictions, labels), np.float64)
        except Exception as exc:
            raise InvalidDataError(
                f"--metric {self.word} raised {type(exc).__name__}: {reason(exc)}"
            ) from None
        if returned.shape not in ((), (count,)):
            raise InvalidDataError(
                f"--metric {self.word}: expected a number, or one for each of {count:,} samples, "
                f"got shape {list(returned.shape)}"
            )
        if not np.isfinite(returned).all():
            raise InvalidDataError(f"--metric {self.word} returned NaN or infinity")
        if not returned.shape:
            return Measurement(float(returned), "own", count)
        drawn = bootstrap.weights(count, bootstrap.RESAMPLES, 0).astype(np.float64)
        return bootstrap.interval(float(returned.mean()), returned @ drawn / count, "own", count)


def add_metric(parser: argparse.ArgumentParser) -> None:
    """The option ``--metric``."""
    parser.add_argument(
        "--metric",
        action="append",
        default=[],
        metavar="MODULE:FUNCTION",
        help="also compute a metric by a function of your own, f(predictions, labels), which is "
        "imported; repeatable",
    )


def load(words: Sequence[str]) -> tuple[Function, ...]:
    """Import what ``--metric`` names.

    Raises:
        InvalidOptionError: If a word is no ``module:function``, cannot be imported, or two
            functions have one name.
    """
    functions = []
    for word in words:
        if not WORD.fullmatch(word):
            raise InvalidOptionError(f"expected --metric MODULE:FUNCTION, got {word!r}")
        functions.append(Function(word, imported(word)))
    names = [function.name for function in functions]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise InvalidOptionError(
            f"two functions of --metric have the name {twice.removeprefix(OF_FUNCTION)!r}; give "
            f"one another name"
        )
    return tuple(functions)
