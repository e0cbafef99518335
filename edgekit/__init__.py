"""One float model in, every edge deployable out, and proof that they are still the same model."""

from edgekit.artifact import Artifact, Manifest
from edgekit.errors import EdgekitError
from edgekit.results import Measurement, Report
from edgekit.signature import Preprocessing, Signature, TensorSpec
from edgekit.version import __version__

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
