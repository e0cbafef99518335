"""CalibrationTable: the ranges that a calibration set produced in the canonical float graph."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from edgekit import schema
from edgekit.errors import InvalidDataError
from edgekit.signature import Preprocessing

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Range:
    """Smallest and largest value of a tensor over the calibration set."""

    min: float
    max: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.min) and math.isfinite(self.max)) or self.min > self.max:
            raise InvalidDataError(
                f"expected a finite range min <= max, got {self.min}, {self.max}"
            )


@dataclass(frozen=True)
class CalibrationTable:
    """Ranges by tensor name, and what they were taken from.

    Attributes:
        graph_sha256: Of the canonical float flatbuffer.
        data: Name of the image set.
        data_sha256: Of its images and labels.
        count: Images seen.
        method: ``minmax``: extremes over all images.
    """

    graph_sha256: str
    data: str
    data_sha256: str
    count: int
    preprocessing: Preprocessing
    method: str
    ranges: dict[str, Range]
    schema_version: int = SCHEMA_VERSION

    @classmethod
    def load(cls, path: Path) -> CalibrationTable:
        """Read a table.

        Raises:
            InvalidDataError: If it cannot be read or has another schema version.
        """
        return schema.read_file(
            cls,
            path,
            version=SCHEMA_VERSION,
            error=InvalidDataError,
            what="a calibration table, as `python -m edgekit.calibrate` writes it",
        )

    def dumps(self) -> str:
        """The table as JSON text."""
        return schema.dumps(self) + "\n"
