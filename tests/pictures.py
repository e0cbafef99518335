"""Pictures for tests: JPEGs that show their class and number, in folders and in TFRecord shards."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
from PIL import Image

from edgekit.data.tfrecord import masked_crc


def picture(number: int, label: int, size: tuple[int, int] = (40, 32)) -> np.ndarray:
    """Smooth pixels ``[h, w, 3]`` of one class: a colour, and a ramp that depends on the number."""
    wide, high = size
    ramp = np.linspace(0, 60, wide)[None, :] * (number % 7) / 7
    pixels = np.full((high, wide, 3), 60.0) + ramp[..., None]
    pixels[..., label % 3] += 100
    return pixels.astype(np.uint8)


def jpeg(pixels: np.ndarray, quality: int = 95) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=quality)
    return stream.getvalue()


def folder(root: Path, counts: dict[str, int]) -> Path:
    """Class folders of JPEGs of two sizes."""
    for label, (name, count) in enumerate(counts.items()):
        (root / name).mkdir(parents=True)
        for i in range(count):
            size = ((40, 32), (26, 48))[i % 2]
            (root / name / f"{i}.jpg").write_bytes(jpeg(picture(i, label, size)))
    return root


def example(encoded: bytes, label: int) -> bytes:
    """A tf.train.Example as the TensorFlow research scripts write it, less what is not read."""
    bytes_list = _field(1, _field(1, encoded))
    int_list = _field(3, _field(1, _varint(label)))
    features = b"".join(
        _field(1, _field(1, name) + _field(2, value))
        for name, value in ((b"image/encoded", bytes_list), (b"image/class/label", int_list))
    )
    return _field(1, features)


def record(content: bytes) -> bytes:
    """Framed as TFRecord files are."""
    header = struct.pack("<Q", len(content))
    return b"".join(
        (
            header,
            struct.pack("<I", masked_crc(header)),
            content,
            struct.pack("<I", masked_crc(content)),
        )
    )


def shards(root: Path, part: str, rows: list[tuple[bytes, int]], count: int) -> list[Path]:
    """``PART-0000i-of-0000N`` of (encoded, label), dealt out in turn."""
    root.mkdir(parents=True, exist_ok=True)
    paths = [root / f"{part}-{i:05}-of-{count:05}" for i in range(count)]
    for i, path in enumerate(paths):
        path.write_bytes(b"".join(record(example(*row)) for row in rows[i::count]))
    return paths


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    return bytes([*found, value])


def _field(number: int, content: bytes) -> bytes:
    return bytes([number << 3 | 2]) + _varint(len(content)) + content
