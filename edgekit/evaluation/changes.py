"""Find the images whose prediction differs from the float model's, with small pictures of them."""

from __future__ import annotations

import base64
import struct
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.records import stats
from edgekit.records.results import PNG_SIGNATURE, ChangedImage, Changes

#: Longer edge of a picture, at most.
EDGE = 64


def find(
    base: npt.NDArray[np.float32],
    scores: npt.NDArray[np.float32],
    choices: tuple[npt.NDArray[np.integer[Any]], npt.NDArray[np.integer[Any]]],
    labels: npt.NDArray[np.int64],
    images: npt.NDArray[Any],
    pictures: int,
) -> Changes:
    """Count the changed predictions by class, and picture those that changed most.

    Args:
        base: Probabilities of the float model, ``[N, classes]``; of scores that are none, those
            that a softmax makes of them.
        scores: The same of the other model.
        choices: The class that each of the two predicts, ``[N]``.
        labels: The right class, ``[N]``.
        images: ``[N, H, W, C]``.
        pictures: At most so many are pictured: those whose first class lost most probability.
    """
    before, now = choices
    where = np.flatnonzero(before != now)
    pairs, counts = np.unique(
        np.stack([before[where], now[where]], axis=1), axis=0, return_counts=True
    )
    order = np.argsort(-counts, kind="stable")
    ours, theirs = base[where], scores[where]
    if not stats.is_probability(base):
        ours, theirs = (stats.softmax(each) for each in (ours, theirs))
    rows = np.arange(len(where))
    lost = ours[rows, before[where]] - theirs[rows, before[where]]
    most = np.argsort(-lost, kind="stable")[:pictures]
    return Changes(
        counts=tuple((int(pairs[i, 0]), int(pairs[i, 1]), int(counts[i])) for i in order),
        images=tuple(
            ChangedImage(
                index=int(i),
                label=int(labels[i]),
                before=int(before[i]),
                before_probability=_share(ours[row, before[i]]),
                now=int(now[i]),
                now_probability=_share(theirs[row, now[i]]),
                picture=picture(images[i]),
            )
            for row, i in zip(most, where[most], strict=True)
        ),
    )


def _share(probability: np.float32) -> float:
    return round(min(1.0, max(0.0, float(probability))), 4)


def picture(image: npt.NDArray[Any], edge: int = EDGE) -> str:
    """Base64 of a PNG of ``[H, W, C]``, no edge longer than ``edge``; empty unless C is 1 or 3.

    Floats are scaled from the image's own least and greatest value.
    """
    if image.ndim != 3 or image.shape[2] not in (1, 3):
        return ""
    pixels = image.astype(np.float64)
    if image.dtype != np.uint8:
        low, high = pixels.min(), pixels.max()
        pixels = (pixels - low) * (255 / (high - low) if high > low else 0)
    small = _shrunk(pixels, edge)
    return base64.b64encode(png(np.rint(small).astype(np.uint8))).decode("ascii")


def _shrunk(pixels: npt.NDArray[np.float64], edge: int) -> npt.NDArray[np.float64]:
    """Means of areas, where the longer edge has more than so many pixels."""
    longer = max(pixels.shape[:2])
    if longer <= edge:
        return pixels
    for axis in (0, 1):
        length = pixels.shape[axis]
        short = max(1, round(length * edge / longer))
        edges = np.arange(short + 1) * length // short
        sums = np.add.reduceat(pixels, edges[:-1], axis=axis)
        sizes = np.diff(edges).reshape([-1 if each == axis else 1 for each in range(3)])
        pixels = sums / sizes
    return pixels


def png(pixels: npt.NDArray[np.uint8]) -> bytes:
    """A PNG file of uint8 ``[H, W, 1]`` (grey) or ``[H, W, 3]`` (RGB)."""
    height, width, channels = pixels.shape
    header = struct.pack(">IIBBBBB", width, height, 8, {1: 0, 3: 2}[channels], 0, 0, 0)
    rows = np.zeros((height, 1 + width * channels), np.uint8)  # each row starts with filter 0
    rows[:, 1:] = pixels.reshape(height, -1)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows.tobytes(), 9)), (b"IEND", b""))
    return PNG_SIGNATURE + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )
