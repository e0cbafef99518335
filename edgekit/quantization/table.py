"""CalibrationTable: statistics of a calibration set in the canonical float graph, and ranges."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from edgekit.base import schema, words
from edgekit.base.errors import EdgekitError, InvalidDataError
from edgekit.quantization.histogram import Histogram
from edgekit.records.signature import Preprocessing

SCHEMA_VERSION = 2
METHODS = ("minmax", "moving-average", "percentile", "entropy", "mse")


@dataclass(frozen=True)
class Range:
    """The real values that a tensor's integers have to reach."""

    min: float
    max: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.min) and math.isfinite(self.max)) or self.min > self.max:
            raise InvalidDataError(
                f"expected a finite range min <= max, got {self.min}, {self.max}"
            )


@dataclass(frozen=True)
class TensorStatistics:
    """What was seen of one tensor.

    Attributes:
        min: Smallest value over all images, exact; 0 of what is behind a ReLU.
        max: Largest value over all images, exact.
        average_min: Moving average of the images' smallest values.
        average_max: Moving average of the images' largest values.
        histogram: Histogram of a sample of the values, on a grid over the tensor.
        channel_min: Smallest value of each channel (last axis); 0 of what is behind a ReLU.
        channel_max: Largest value of each channel.
        channel_mean: Mean value of each channel in the sample.
    """

    min: float
    max: float
    average_min: float
    average_max: float
    histogram: Histogram
    channel_min: tuple[float, ...]
    channel_max: tuple[float, ...]
    channel_mean: tuple[float, ...]

    def __post_init__(self) -> None:
        Range(self.min, self.max)
        if not self.min <= self.average_min <= self.average_max <= self.max:
            raise InvalidDataError(
                f"expected averages within [{self.min}, {self.max}], got {self.average_min}, "
                f"{self.average_max}"
            )
        if not len(self.channel_min) == len(self.channel_max) == len(self.channel_mean) > 0:
            raise InvalidDataError("expected as many channel minima as maxima and means")


@dataclass(frozen=True)
class CalibrationTable(schema.Document):
    """Statistics and ranges by tensor name, and what they were taken from.

    Attributes:
        graph_sha256: Of the canonical float flatbuffer.
        data: The image set, as ``--data`` takes it.
        data_sha256: Of its images and labels.
        count: Images seen.
        method: One of :data:`METHODS`, by which the ranges were found.
    """

    VERSION: ClassVar[int] = SCHEMA_VERSION
    ERROR: ClassVar[type[EdgekitError]] = InvalidDataError
    WHAT: ClassVar[str] = "a calibration table, as `python -m edgekit.calibrate` writes it"
    INDENT: ClassVar[int | None] = None

    graph_sha256: str
    data: str
    data_sha256: str
    count: int
    preprocessing: Preprocessing
    method: str
    ranges: dict[str, Range]
    statistics: dict[str, TensorStatistics]
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        words.one_of("method", self.method, METHODS)
        if set(self.ranges) != set(self.statistics):
            raise InvalidDataError("expected a range of each tensor that has statistics")
