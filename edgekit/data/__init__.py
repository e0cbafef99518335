"""Image sets: the built-in Fashion-MNIST and the user's own ``.npz``."""

from edgekit.data.images import ImageSet, load

__all__ = ["ImageSet", "load"]
