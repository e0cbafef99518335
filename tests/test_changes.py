from __future__ import annotations

import base64
import struct
import zlib

import numpy as np
import pytest

from edgekit.base.errors import ReportError
from edgekit.evaluation.changes import find, picture, png
from edgekit.records.results import ChangedImage, Changes


def decoded(content: bytes) -> np.ndarray:
    """Pixels of a PNG whose rows have filter 0, every checksum looked at."""
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    place, chunks = 8, {}
    while place < len(content):
        (length,) = struct.unpack(">I", content[place : place + 4])
        kind, body = content[place + 4 : place + 8], content[place + 8 : place + 8 + length]
        (crc,) = struct.unpack(">I", content[place + 8 + length : place + 12 + length])
        assert crc == zlib.crc32(kind + body)
        chunks[kind] = body
        place += 12 + length
    width, height, depth, colour = struct.unpack(">IIBB", chunks[b"IHDR"][:10])
    assert depth == 8 and list(chunks) == [b"IHDR", b"IDAT", b"IEND"]
    rows = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), np.uint8).reshape(height, -1)
    assert not rows[:, 0].any()
    return rows[:, 1:].reshape(height, width, {0: 1, 2: 3}[colour])


@pytest.mark.parametrize("shape", [(28, 28, 1), (5, 9, 3), (1, 1, 1)])
def test_png_holds_the_pixels(shape: tuple[int, int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    assert (decoded(png(pixels)) == pixels).all()
    assert (decoded(base64.b64decode(picture(pixels))) == pixels).all()


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((224, 224, 3), (64, 64, 3)), ((100, 65, 1), (64, 42, 1)), ((4000, 2, 1), (64, 1, 1))],
)
def test_large_images_become_small_ones(shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    small = decoded(base64.b64decode(picture(pixels)))
    assert small.shape == expected
    assert abs(float(small.mean()) - float(pixels.mean())) < 1


def test_floats_are_scaled_and_what_is_no_picture_has_none() -> None:
    ramp = np.linspace(-1, 1, 16, dtype=np.float32).reshape(4, 4, 1)
    small = decoded(base64.b64decode(picture(ramp)))
    assert (small.min(), small.max()) == (0, 255)
    assert not decoded(base64.b64decode(picture(np.full((2, 2, 3), 0.5)))).any()
    assert picture(np.zeros((4, 4, 2), np.uint8)) == ""
    assert picture(np.zeros(7, np.float32)) == ""


def test_what_changed_is_counted_and_the_greatest_changes_are_pictured() -> None:
    base = np.array([[0.9, 0.1, 0], [0.6, 0.4, 0], [0, 0, 1], [0.8, 0.2, 0]], np.float32)
    answers = np.array([[0.1, 0.9, 0], [0.4, 0.6, 0], [0, 0, 1], [0.3, 0.2, 0.5]], np.float32)
    choices = base.argmax(axis=1), answers.argmax(axis=1)
    labels = np.array([0, 1, 2, 2])
    images = np.zeros((4, 2, 2, 1), np.uint8)
    found = find(base, answers, choices, labels, images, 2)
    assert found.counts == ((0, 1, 2), (0, 2, 1)) and found.total == 3
    assert [image.index for image in found.images] == [0, 3]
    assert found.images[1] == ChangedImage(3, 2, 0, 0.8, 2, 0.5, picture(images[3]))
    assert find(base, answers, choices, labels, images, 0).images == ()
    same = find(base, base, (choices[0], choices[0]), labels, images, 9)
    assert same == Changes(())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"index": -1}, "negative"),
        ({"now_probability": 1.5}, "from 0 to 1"),
        ({"picture": "<"}, "not base64"),
        ({"picture": "AAAA"}, "not a PNG"),
    ],
)
def test_broken_changes_are_refused(changes: dict[str, object], message: str) -> None:
    good = {"index": 0, "label": 0, "before": 0, "before_probability": 1.0, "now": 1}
    with pytest.raises(ReportError, match=message):
        ChangedImage(**{**good, "now_probability": 1.0, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize("count", [(1, 1, 3), (0, 1, 0), (-1, 0, 1)])
def test_counts_are_of_changes(count: tuple[int, int, int]) -> None:
    with pytest.raises(ReportError, match="counts of changes"):
        Changes((count,))
