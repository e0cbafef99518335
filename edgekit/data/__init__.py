"""Image sets: the built-in Fashion-MNIST and the user's own ``.npz``."""

from pathlib import Path

from edgekit.data import fashion_mnist
from edgekit.data.images import ImageSet, Split, load_npz
from edgekit.errors import InvalidOptionError

__all__ = ["ImageSet", "load"]


def load(spec: str, split: Split) -> ImageSet:
    """Turn a ``--data`` word into images.

    Args:
        spec: ``fashion_mnist``, or the path of an ``.npz`` with ``x`` and, unless for
            calibration, ``y``.
        split: Which part; an ``.npz`` is one part and serves any.

    Raises:
        InvalidOptionError: If the word is neither.
        InvalidDataError: If the data is missing or broken.
    """
    if spec == "fashion_mnist":
        return fashion_mnist.load(split)
    if spec.endswith(".npz"):
        return load_npz(Path(spec), labels=split != "calibration")
    raise InvalidOptionError(f"expected --data to be fashion_mnist or a FILE.npz, got {spec!r}")
