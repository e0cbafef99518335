"""One picture to uint8 pixels of a given size: the same bytes for every runtime.

Pillow decodes and resizes, in integers. A picture is turned upright as its EXIF says; transparency
is laid on a background; CMYK, palettes and other colours become RGB as Pillow converts them,
without colour profiles; 16 bits a channel become 8 (grey: rounded ``value / 257``; colour: as
Pillow's decoder does). Of an animation the first frame is taken.
"""

from __future__ import annotations

import functools
import io
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgekit.base.errors import InvalidDataError, MissingDependencyError, reason
from edgekit.records.signature import Preprocessing

if TYPE_CHECKING:
    from PIL.Image import Image

Pixels = npt.NDArray[np.uint8]
#: Undecoded bytes, pixels ``[H, W]`` or ``[H, W, C]``, or an image of Pillow's.
Content = Any

#: Decoders that are asked; others (of PostScript, say) start programs or are seldom looked after.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
SUFFIXES = (
    *(".bmp", ".gif", ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".ppm", ".pgm", ".pbm"),
    *(".tif", ".tiff", ".webp"),
)
#: Pixels of a picture, at most; what says it has more is not unpacked. 400 MB as RGBA.
MAX_PIXELS = 89_478_485
MAX_BYTES = 1 << 30
#: Channels of a grey picture differ by no more; JPEG and palettes are not exact.
_GREY = 16
_SIXTEEN = ("I;16", "I;16L", "I;16B", "I;16N")


class PictureError(InvalidDataError):
    """A picture that cannot be decoded; it is left out and counted."""


@functools.cache
def pillow() -> Any:
    """The module ``PIL.Image``.

    Raises:
        MissingDependencyError: If Pillow is not installed.
    """
    try:
        from PIL import Image, ImageOps  # noqa: F401
    except ImportError:
        raise MissingDependencyError("pillow", "data") from None
    # said of pictures between one and two times MAX_PIXELS, which are refused here in words
    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
    return Image


def read(path: Path) -> bytes:
    """A file's bytes.

    Raises:
        PictureError: If it cannot be read or is larger than a picture.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise PictureError(f"larger than {MAX_BYTES >> 30} GiB")
        return path.read_bytes()
    except OSError as exc:
        raise PictureError(exc.strerror or reason(exc)) from None


def opened(content: Content) -> Image:
    """A picture whose header is read; its pixels wait.

    Raises:
        PictureError: If it is no picture that edgekit decodes, or too large a one.
    """
    image = pillow()
    if isinstance(content, np.ndarray):
        if content.dtype != np.uint8 or content.ndim not in (2, 3):
            raise PictureError(
                f"expected uint8 pixels [H, W, C], got {content.dtype} {list(content.shape)}"
            )
        squeezed = content[..., 0] if content.ndim == 3 and content.shape[2] == 1 else content
        content = np.ascontiguousarray(squeezed)
    try:
        if isinstance(content, image.Image):
            picture: Image = content
        elif isinstance(content, np.ndarray):
            picture = image.fromarray(content)
        else:
            picture = image.open(io.BytesIO(content), formats=FORMATS)
    except image.DecompressionBombError:
        raise PictureError(f"more than {MAX_PIXELS:,} pixels") from None
    except image.UnidentifiedImageError:
        raise PictureError(f"not a picture of {', '.join(FORMATS)}") from None
    except Exception as exc:  # decoders raise what they like on hostile bytes
        raise PictureError(reason(exc)) from None
    width, height = picture.size
    if width * height > MAX_PIXELS:
        raise PictureError(f"{width:,} x {height:,}, more than {MAX_PIXELS:,} pixels")
    return picture


def has_alpha(picture: Image) -> bool:
    """Whether parts may be transparent."""
    return bool(picture.has_transparency_data)


def is_turned(picture: Image) -> bool:
    """Whether its EXIF asks for a rotation or a mirror image."""
    return orientation(picture) != 1


def orientation(picture: Image) -> int:
    """How its EXIF says that it is to be turned: 1 not at all, 2 to 8 as the standard counts.

    Raises:
        PictureError: If its EXIF cannot be read.
    """
    try:
        turn = picture.getexif().get(0x0112, 1)
    except Exception as exc:  # as above
        raise PictureError(f"EXIF: {reason(exc)}") from None
    return turn if turn in range(2, 9) else 1


def in_colour(picture: Image) -> bool:
    """Whether it shows colours, and not only greys in an RGB file."""
    if picture.mode in (*_SIXTEEN, "1", "L", "LA", "La", "I", "F"):
        return False
    try:
        pixels = np.asarray(picture.resize((32, 32)).convert("RGB"), np.int16)
    except Exception as exc:  # as above
        raise PictureError(reason(exc)) from None
    return bool((pixels.max(axis=2) - pixels.min(axis=2)).max() > _GREY)


def upright(picture: Image, *, channels: int, background: str) -> Image:
    """Turned as its EXIF says, opaque, of 8 bits and 1 (grey) or 3 (RGB) channels.

    Grey from colour is ITU-R 601 luma.

    Raises:
        PictureError: If its pixels cannot be decoded, or have no scale, as floats.
    """
    image = pillow()
    from PIL import ImageOps

    try:
        picture = ImageOps.exif_transpose(picture)
        if picture.mode in _SIXTEEN or picture.mode == "I":
            values = np.asarray(picture).astype(np.int64)
            if values.min() < 0 or values.max() > 65535:
                raise PictureError("32 bits per pixel; expected 8 or 16")
            picture = image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))
        if picture.mode == "F":
            raise PictureError("pixels are floats; expected 8 or 16 bits")
        if has_alpha(picture):
            below = image.new("RGBA", picture.size, background)
            picture = image.alpha_composite(below, picture.convert("RGBA"))
        return picture.convert("RGB" if channels == 3 else "L")
    except PictureError:
        raise
    except Exception as exc:  # as above
        raise PictureError(reason(exc)) from None


@dataclass(frozen=True)
class Placement:
    """Where a picture lies in a model's input.

    Attributes:
        size: Width and height that the picture is resized to.
        left: Of its left edge in the input, in pixels; negative where it is cropped.
        top: Of its upper edge, likewise.
        region: Left, top, width and height of what the input shows, in pixels of the picture, as
            :attr:`edgekit.data.boxes.Views.regions`.
    """

    size: tuple[int, int]
    left: int
    top: int
    region: tuple[float, float, float, float]


def placed(size: tuple[int, int], *, height: int, width: int, prepare: Preprocessing) -> Placement:
    """Where a picture of a size lies in a model's input.

    Args:
        size: Width and height of the upright picture.
        height: Height of the model's input, in pixels.
        width: Width of the model's input, in pixels.
        prepare: Says how: ``crop`` or ``letterbox``, else the picture is stretched.

    Raises:
        PictureError: If the shape is so long that what has to be cropped is too large.
    """
    across, down = size
    new = width, height
    if prepare.crop is not None:
        factor = max(width / across, height / down) / prepare.crop
        new = max(width, round(across * factor)), max(height, round(down * factor))
        if new[0] * new[1] > MAX_PIXELS:
            raise PictureError(f"{across:,} x {down:,}, too long to be cropped")
    elif prepare.letterbox is not None:
        factor = min(width / across, height / down)
        new = (
            min(width, max(1, round(across * factor))),
            min(height, max(1, round(down * factor))),
        )
    left, top = -((new[0] - width) // 2), -((new[1] - height) // 2)
    if prepare.letterbox is not None:
        left, top = (width - new[0]) // 2, (height - new[1]) // 2
        if prepare.align == "corner":
            left, top = 0, 0
    x, y = across / new[0], down / new[1]
    return Placement(new, left, top, (-left * x, -top * y, width * x, height * y))


def fit(picture: Image, *, height: int, width: int, prepare: Preprocessing) -> Pixels:
    """Resize, and crop or letterbox, ``[height, width, C]``.

    Args:
        picture: As :func:`upright` gives it.
        height: Height of the model's input, in pixels.
        width: Width of the model's input, in pixels.
        prepare: Says how: ``resize``, ``crop`` and ``letterbox``.

    Raises:
        PictureError: If the shape is so long that what has to be cropped is too large.
    """
    at = placed(picture.size, height=height, width=width, prepare=prepare)
    pixels = _resized(picture, at.size, prepare.resize)
    pixels = pixels if pixels.ndim == 3 else pixels[..., None]
    if prepare.letterbox is not None:
        boxed = np.full((height, width, pixels.shape[2]), prepare.letterbox, np.uint8)
        boxed[at.top : at.top + at.size[1], at.left : at.left + at.size[0]] = pixels
        return boxed
    return np.ascontiguousarray(pixels[-at.top : height - at.top, -at.left : width - at.left])


def _resized(picture: Image, size: tuple[int, int], method: str) -> Pixels:
    if method.endswith("-aliased"):
        taps = _CUBIC if method.startswith("bicubic") else _LINEAR
        values = _interpolated(np.asarray(picture), size[1], taps)
        values = _interpolated(values.swapaxes(0, 1), size[0], taps).swapaxes(0, 1)
        return np.clip(np.rint(values), 0, 255).astype(np.uint8)
    kinds = pillow().Resampling
    resampling = {
        "bilinear": kinds.BILINEAR,
        "bicubic": kinds.BICUBIC,
        "area": kinds.BOX,
        "nearest": kinds.NEAREST,
    }[method]
    return np.asarray(picture.resize(size, resampling))


_LINEAR, _CUBIC = (0, 1), (-1, 0, 1, 2)


def _interpolated(
    values: npt.NDArray[Any], length: int, taps: tuple[int, ...]
) -> npt.NDArray[np.float32]:
    """Along the first axis, from the ``taps`` around each centre; pixels at the edge repeat.

    Centres of pixels are at half integers. Cubic: Keys 1981, a = -0.5. Sums are elementwise and in
    a fixed order, so that every machine gets the same.
    """
    centre = (np.arange(length) + 0.5) * (len(values) / length) - 0.5
    first = np.floor(centre).astype(np.int64)
    part = centre - first
    total: npt.NDArray[np.float32] | None = None
    for tap in taps:
        distance = np.abs(part - tap)
        weight = (1 - distance) if taps == _LINEAR else _keys(distance)
        rows = values[np.clip(first + tap, 0, len(values) - 1)].astype(np.float32)
        term = rows * weight.astype(np.float32).reshape(-1, *[1] * (values.ndim - 1))
        total = term if total is None else total + term
    assert total is not None
    return total


def _keys(distance: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    near = (1.5 * distance - 2.5) * distance**2 + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    return np.where(distance <= 1, near, far)
