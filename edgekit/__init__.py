"""One float model in, every edge deployable out, and proof that they are still the same model."""

from edgekit.base.errors import EdgekitError
from edgekit.base.version import __version__
from edgekit.records.artifact import Artifact, Manifest
from edgekit.records.results import Measurement, Report
from edgekit.records.signature import Preprocessing, Signature, TensorSpec

__all__ = [
    "Artifact",
    "EdgekitError",
    "Manifest",
    "Measurement",
    "Preprocessing",
    "Report",
    "Signature",
    "TensorSpec",
    "__version__",
]
