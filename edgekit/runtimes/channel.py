"""Frames between edgekit and a device: JSON and raw little-endian arrays, and nothing else.

::

    "ekf1" | bytes of JSON, uint32 | bytes of arrays, uint64 | JSON | arrays, one after the other

The JSON is an object; under ``arrays`` it gives dtype and shape of each array. Nothing that comes
from a device is unpickled or executed. All sizes are checked before memory is taken: a frame ends
where its head says, and its arrays have the sizes that its JSON says.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.base import schema
from edgekit.base.text import visible

MAGIC = b"ekf1"
#: Bytes that the JSON of a frame may have.
JSON_LIMIT = 1 << 20
#: Bytes that the arrays of a frame may have, unless the reader expects less.
ARRAYS_LIMIT = 1 << 33
#: What an array may hold; the names are numpy's, and say the order of bytes.
DTYPES = ("<f4", "<f2", "<f8", "|i1", "|u1", "<i2", "<i4", "<i8")
_HEAD = struct.Struct("<4sIQ")
#: Bytes that are asked for at once: a head that lies takes no memory.
_PIECE = 1 << 20
_ARRAYS = "arrays"


class FrameError(ValueError):
    """Bytes that are no frame, or a frame that is larger than the reader takes."""


@dataclass(frozen=True)
class Frame:
    """One message.

    Attributes:
        said: The JSON, without the arrays' dtypes and shapes.
        arrays: Of dtypes of :data:`DTYPES`.
    """

    said: dict[str, Any]
    arrays: tuple[npt.NDArray[Any], ...] = ()


def packed(said: Mapping[str, Any], arrays: Sequence[npt.NDArray[Any]] = ()) -> list[bytes]:
    """A frame as pieces of bytes, to be written one after the other.

    Args:
        said: What becomes JSON; the key ``arrays`` is the frame's own.
        arrays: Numbers; bool goes as uint8.

    Raises:
        FrameError: If an array has another dtype, or there is too much.
    """
    contents, described = [], []
    for array in arrays:
        plain = array.view(np.uint8) if array.dtype == np.bool_ else array
        dtype = plain.dtype.newbyteorder("<").str
        if dtype not in DTYPES:
            raise FrameError(f"expected arrays of {', '.join(DTYPES)}, got {plain.dtype}")
        described.append({"dtype": dtype, "shape": list(array.shape)})
        contents.append(np.ascontiguousarray(plain, dtype).tobytes())
    text = schema.dumps({**said, _ARRAYS: described}, indent=None, ascii=True).encode()
    size = sum(map(len, contents))
    if len(text) > JSON_LIMIT or size > ARRAYS_LIMIT:
        raise FrameError(
            f"expected a frame of up to {JSON_LIMIT} bytes of JSON and {ARRAYS_LIMIT} of arrays, "
            f"got {len(text)} and {size}"
        )
    return [_HEAD.pack(MAGIC, len(text), size), text, *contents]


def read(receive: Callable[[int], bytes], *, limit: int = ARRAYS_LIMIT) -> Frame:
    """The next frame.

    Args:
        receive: Gives up to so many bytes, and none at the end.
        limit: Bytes that the arrays may have.

    Raises:
        EOFError: If there is no frame any more.
        FrameError: If what is there is no frame, or more than the limit.
    """
    head = _exactly(receive, _HEAD.size, began=False)
    magic, text_size, size = _HEAD.unpack(head)
    if magic != MAGIC:
        raise FrameError(f"expected a frame that begins with {MAGIC!r}, got {magic!r}")
    if text_size > JSON_LIMIT or size > limit:
        raise FrameError(
            f"expected up to {JSON_LIMIT} bytes of JSON and {limit} of arrays, got {text_size} and "
            f"{size}"
        )
    text = _exactly(receive, text_size)
    try:
        said = schema.parse(text.decode("utf-8"))
    except (ValueError, RecursionError) as exc:
        raise FrameError(f"expected JSON, got other bytes ({exc})") from None
    if not isinstance(said, dict):
        raise FrameError(f"expected a JSON object, got {type(said).__name__}")
    shapes = _described(said.pop(_ARRAYS, []), size)
    content = _exactly(receive, size)
    arrays, start = [], 0
    for dtype, shape in shapes:
        count = math.prod(shape)
        arrays.append(np.frombuffer(content, dtype, count, start).reshape(shape))
        start += count * dtype.itemsize
    return Frame(said, tuple(arrays))


def _described(described: Any, size: int) -> list[tuple[np.dtype[Any], tuple[int, ...]]]:
    """Dtypes and shapes, whose bytes have to be as many as the head says."""
    if not isinstance(described, list):
        raise FrameError("expected a list of arrays")
    shapes = []
    for each in described:
        if not isinstance(each, dict) or set(each) != {"dtype", "shape"}:
            raise FrameError("expected dtype and shape of each array")
        dtype, shape = each["dtype"], each["shape"]
        if dtype not in DTYPES:
            raise FrameError(f"expected arrays of {', '.join(DTYPES)}, got {dtype!r:.40}")
        if not (
            isinstance(shape, list)
            and len(shape) <= 32
            and all(type(axis) is int and axis >= 0 for axis in shape)
        ):
            raise FrameError(f"expected a shape of integers >= 0, got {shape!r:.60}")
        shapes.append((np.dtype(dtype), tuple(shape)))
    needed = sum(dtype.itemsize * math.prod(shape) for dtype, shape in shapes)
    if needed != size:
        raise FrameError(f"expected {needed} bytes for the arrays of the frame, got {size}")
    return shapes


def _exactly(receive: Callable[[int], bytes], size: int, *, began: bool = True) -> bytearray:
    """So many bytes, whatever pieces they come in."""
    content = bytearray()
    while len(content) < size:
        piece = receive(min(_PIECE, size - len(content)))
        if not piece:
            if content or began:
                raise FrameError(f"expected {size} bytes, got {len(content)} and then the end")
            raise EOFError
        content += piece
    return content


def harmless(value: Any, length: int = 4000) -> Any:
    """JSON of a device whose text, keys too, is one line that steers no terminal and is not
    endless."""
    if isinstance(value, str):
        return visible(value[:length])
    if isinstance(value, list):
        return [harmless(each, length) for each in value]
    if isinstance(value, dict):
        return {harmless(key, length): harmless(each, length) for key, each in value.items()}
    return value
