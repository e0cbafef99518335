"""Fashion-MNIST (Xiao, Rasul, Vollgraf 2017; MIT): test and calibration images ship with the
repository, the 60,000 training images are looked for and always checked by SHA-256.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import urllib.error
import urllib.request
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.base import outputs, shipped
from edgekit.base.errors import InvalidDataError
from edgekit.data import images

CLASS_NAMES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)

#: SHA-256 of the uncompressed IDX files. Compressed copies differ by packager, these do not.
SHA256 = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
CALIBRATION_FILE = "calibration-1000.npz"
CALIBRATION_SHA256 = "a330a34765a053ef340ea25da2b9b45205fa58336556a648f432c7b8ddd73ce1"
CALIBRATION_PER_CLASS = 100
CALIBRATION_SEED = 2018

_DEBIAN = Path("/usr/share/datasets/fashion-mnist")
_OFFICIAL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com"
_WAYS = (
    "set EDGEKIT_DATA to a folder with the four .gz files, or install Debian's package "
    "dataset-fashion-mnist, or allow the download of the official files"
)


def load(split: images.Split) -> images.ImageSet:
    """Read one part: ``train`` 60,000, ``test`` 10,000, ``calibration`` 1,000 images.

    Returns:
        uint8 images ``[N, 28, 28, 1]`` with labels.

    Raises:
        InvalidDataError: If the files cannot be found or their SHA-256 differs.
    """
    if split == "calibration":
        return _load_calibration(_shipped_folder() / CALIBRATION_FILE)
    prefix = "train" if split == "train" else "t10k"
    x = _idx(_read(f"{prefix}-images-idx3-ubyte"))
    y = _idx(_read(f"{prefix}-labels-idx1-ubyte"))
    return images.make(f"fashion_mnist/{split}", x[..., None], y.astype(np.int64), CLASS_NAMES)


def calibration_indices(labels: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Which training images the calibration set holds: 100 a class, seeded, in file order."""
    rng = np.random.default_rng(CALIBRATION_SEED)
    chosen = [
        rng.choice(np.flatnonzero(labels == label), CALIBRATION_PER_CLASS, replace=False)
        for label in range(len(CLASS_NAMES))
    ]
    return np.sort(np.concatenate(chosen))


def cache_folder() -> Path:
    """Where downloads are kept: ``$XDG_CACHE_HOME/edgekit/fashion_mnist``."""
    return outputs.cache("fashion_mnist")


def _shipped_folder() -> Path:
    return shipped.folder("calibration", "fashion_mnist")


def _load_calibration(path: Path) -> images.ImageSet:
    if not path.is_file():
        raise InvalidDataError(
            f"{path} not found; run from a checkout or pass --calibration FILE.npz"
        )
    if outputs.sha256_file(path) != CALIBRATION_SHA256:
        raise InvalidDataError(
            f"{path} was changed (its sha256 is not the recorded one); restore it"
        )
    loaded = images.load_npz(path, labels=True)
    return images.make("fashion_mnist/calibration", loaded.images, loaded.labels, CLASS_NAMES)


def _read(name: str) -> bytes:
    """Find one IDX file in the four places, in order, and check it."""
    folders = [_shipped_folder(), cache_folder(), _DEBIAN]
    own = os.environ.get("EDGEKIT_DATA")
    if own:
        folders.insert(0, Path(own))
    for folder in folders:
        path = folder / f"{name}.gz"
        if path.is_file():
            return _checked(name, path.read_bytes(), str(path))
    packed = _download(name)
    content = _checked(name, packed, _OFFICIAL)
    outputs.write_bytes(cache_folder() / f"{name}.gz", packed, force=True)
    return content


def _download(name: str) -> bytes:
    try:
        with urllib.request.urlopen(f"{_OFFICIAL}/{name}.gz", timeout=20) as response:
            return bytes(response.read())
    except (urllib.error.URLError, TimeoutError, OSError) as exc:
        raise InvalidDataError(
            f"Fashion-MNIST's {name} was found nowhere and could not be downloaded ({exc}); {_WAYS}"
        ) from None


def _checked(name: str, packed: bytes, where: str) -> bytes:
    try:
        content = gzip.decompress(packed)
    except (OSError, EOFError, zlib.error) as exc:
        raise InvalidDataError(
            f"{where}: {name} is not a whole gzip file ({exc}); {_WAYS}"
        ) from None
    sha256 = hashlib.sha256(content).hexdigest()
    if sha256 != SHA256[name]:
        raise InvalidDataError(
            f"{where}: {name} has sha256 {sha256[:12]}…, expected {SHA256[name][:12]}…; {_WAYS}"
        )
    return content


def _idx(content: bytes) -> npt.NDArray[np.uint8]:
    """Parse the IDX format: a big-endian header with the sizes, then uint8 values."""
    rank = content[3]
    sizes = np.frombuffer(content, ">u4", count=rank, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * rank).reshape(sizes.astype(int))
