"""One picture of any size, decoded and distorted in a TensorFlow graph.

A JPEG is decoded where its crop is, and nowhere else. What TensorFlow would show otherwise than
edgekit does everywhere else (pictures that EXIF turns, CMYK, formats other than JPEG) goes through
:mod:`edgekit.data.decode`, whole.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from edgekit.base.errors import reason
from edgekit.data import decode
from edgekit.records.signature import Preprocessing
from edgekit.sources import keras as keras_format
from edgekit.training.recipes import Recipe

#: TF-slim's ``inception_preprocessing`` in its fast mode, which its training script uses
#: (tensorflow/models, research/slim/preprocessing): width over height of a crop, change of
#: brightness of the range, factor of saturation.
RATIO, BRIGHTNESS, SATURATION = (3 / 4, 4 / 3), 32 / 255, (0.5, 1.5)
#: The middle part of the shorter side that ``plain`` crops at random, where the preprocessing has
#: none: 224 of 256 pixels (Simonyan and Zisserman 2015, section 3.1, with one scale).
MIDDLE = 0.875
#: Below this factor every pixel still counts when two are read a side, and antialiasing takes as
#: long as all the rest (``benchmarks/input_pipeline.py``); TF-slim never does it.
SHRUNK = 2.0
#: Bytes in which EXIF begins, if there is any: it is the first segment, or the one after JFIF.
_EXIF_WITHIN = 4096
_RESIZE: dict[str, tuple[str, bool]] = {
    "bilinear": ("bilinear", True),
    "bicubic": ("bicubic", True),
    "area": ("area", False),
    "nearest": ("nearest", False),
    "bilinear-aliased": ("bilinear", False),
    "bicubic-aliased": ("bicubic", False),
}
#: Streams of random numbers; 0 to 11 are those of edgekit.training.augment.
_WINDOW, _REST = 12, 13


def distorted(
    content: Any,
    position: Any,
    *,
    recipe: Recipe,
    prepare: Preprocessing,
    shape: tuple[int, int, int],
    background: str = "white",
) -> Any:
    """Crop, resize, mirror and, for ``inception``, colour one picture: uint8 ``[H, W, C]``.

    ``inception``: the crop has an area of ``recipe.crop`` to 1 and a ratio of :data:`RATIO`, then
    brightness and saturation change in an order by chance; brightness alone without colours.
    ``plain``: a crop of the ratio of ``shape``, as large as the middle part that testing takes, in
    a place by chance.

    Args:
        content: Scalar string, an encoded picture; or uint8 ``[h, w, C]``.
        position: Scalar int64, of the picture among all that the run sees; with the recipe's seed
            it says what is drawn.
        recipe: Gives ``augmentation``, ``crop``, ``flip`` and ``seed``.
        prepare: Gives ``resize`` and the share of the middle part. A crop that shrinks by less than
            :data:`SHRUNK` is not antialiased, other than when testing.
        shape: ``(H, W, C)`` of the result, C 1 or 3.
        background: Below what is transparent.
    """
    tf = keras_format.tensorflow()
    height, width, channels = shape

    def seed(stream: int) -> Any:
        return tf.stack([tf.constant(recipe.seed * 16 + stream, tf.int64), position])

    def window(size: Any) -> Any:
        if recipe.augmentation == "inception":
            return _any_window(size, seed(_WINDOW), recipe.crop)
        return _large_window(size, seed(_WINDOW), prepare.crop or MIDDLE, (height, width))

    pixels = _cropped(content, window, channels, background)
    x = _resized(pixels, (height, width), prepare.resize)
    x = tf.clip_by_value(x / 255, 0.0, 1.0)  # cubic overshoots
    drawn = tf.random.stateless_uniform([4], seed(_REST))
    if recipe.flip:
        x = tf.cond(drawn[0] < 0.5, lambda: tf.reverse(x, [1]), lambda: x)
    if recipe.augmentation == "inception":
        x = _coloured(x, drawn[1:], channels)
    return tf.ensure_shape(tf.cast(tf.round(x * 255), tf.uint8), shape)


def _resized(pixels: Any, size: tuple[int, int], resize: str) -> Any:
    """Float32 pixels of another size; antialiased from :data:`SHRUNK` on, if ``resize`` says so."""
    tf = keras_format.tensorflow()
    method, antialias = _RESIZE[resize]

    def by(antialias: bool) -> Any:
        return tf.cast(tf.image.resize(pixels, size, method, antialias=antialias), tf.float32)

    if not antialias:
        return by(False)
    ratios = tf.cast(tf.shape(pixels)[:2], tf.float32) / tf.constant(size, tf.float32)
    return tf.cond(tf.reduce_max(ratios) < SHRUNK, lambda: by(False), lambda: by(True))


def _any_window(size: Any, seed: Any, least: float) -> Any:
    """``[top, left, height, width]`` of TensorFlow's own search; the whole where none is found."""
    tf = keras_format.tensorflow()
    begin, extent, _ = tf.image.stateless_sample_distorted_bounding_box(
        tf.concat([size, [3]], 0),
        tf.constant([[[0.0, 0.0, 1.0, 1.0]]]),
        seed,
        min_object_covered=0.1,
        aspect_ratio_range=RATIO,
        area_range=(least, 1.0),
        max_attempts=100,
        use_image_if_no_bounding_boxes=True,
    )
    return tf.concat([begin[:2], extent[:2]], 0)


def _large_window(size: Any, seed: Any, share: float, target: tuple[int, int]) -> Any:
    tf = keras_format.tensorflow()
    sides = tf.cast(size, tf.float32)
    factor = share * tf.reduce_min(sides / tf.constant(target, tf.float32))
    extent = tf.cast(tf.round(factor * tf.constant(target, tf.float32)), tf.int32)
    extent = tf.clip_by_value(extent, 1, size)
    room = tf.cast(size - extent + 1, tf.float32)
    begin = tf.cast(tf.random.stateless_uniform([2], seed) * room, tf.int32)
    return tf.concat([tf.minimum(begin, size - extent), extent], 0)


def _cropped(content: Any, window: Any, channels: int, background: str) -> Any:
    """Pixels of a window of a picture, uint8 ``[h, w, C]``."""
    tf = keras_format.tensorflow()

    def cut(pixels: Any) -> Any:
        top, left, high, wide = tf.unstack(window(tf.shape(pixels)[:2]))
        return pixels[top : top + high, left : left + wide]

    if content.dtype != tf.string:
        return cut(content)

    def fast() -> Any:
        size = tf.image.extract_jpeg_shape(content)[:2]
        tf.debugging.assert_less_equal(
            tf.reduce_prod(tf.cast(size, tf.int64)),
            tf.constant(decode.MAX_PIXELS, tf.int64),
            message=f"more than {decode.MAX_PIXELS:,} pixels",
        )
        return tf.image.decode_and_crop_jpeg(
            content, window(size), channels=channels, dct_method="INTEGER_ACCURATE"
        )

    def slow() -> Any:
        return cut(whole(content, channels, background))

    pixels = tf.cond(_is_plain_jpeg(content), fast, slow)
    pixels.set_shape([None, None, channels])
    return pixels


def whole(content: Any, channels: int, background: str) -> Any:
    """A picture as edgekit decodes it everywhere, uint8 ``[h, w, C]``."""
    tf = keras_format.tensorflow()

    def upright(encoded: bytes) -> Any:
        try:
            opened = decode.opened(encoded)
            pixels = np.asarray(decode.upright(opened, channels=channels, background=background))
        except decode.PictureError as exc:
            raise ValueError(reason(exc)) from None  # of all errors TensorFlow knows a few
        return pixels.reshape(*pixels.shape[:2], channels)

    pixels = tf.numpy_function(upright, [content], tf.uint8)
    pixels.set_shape([None, None, channels])
    return pixels


def _is_plain_jpeg(content: Any) -> Any:
    """Whether it is a JPEG in grey or YCbCr without EXIF."""
    tf = keras_format.tensorflow()

    def plain() -> Any:
        head = tf.io.decode_raw(tf.strings.substr(content, 0, _EXIF_WITHIN), tf.uint8)
        pieces = [tf.equal(head[i : tf.size(head) - 3 + i], code) for i, code in enumerate(b"Exif")]
        exif = tf.reduce_any(tf.reduce_all(tf.stack(pieces), axis=0))
        return ~exif & (tf.image.extract_jpeg_shape(content)[2] < 4)

    return tf.cond(tf.io.is_jpeg(content), plain, lambda: tf.constant(False))


def _coloured(x: Any, drawn: Any, channels: int) -> Any:
    """Brightness and saturation of values in [0, 1], by three numbers of [0, 1)."""
    tf = keras_format.tensorflow()

    def brighter(x: Any) -> Any:
        return x + (2 * drawn[1] - 1) * BRIGHTNESS

    def richer(x: Any) -> Any:
        return tf.image.adjust_saturation(
            x, SATURATION[0] + drawn[2] * (SATURATION[1] - SATURATION[0])
        )

    if channels == 1:
        return tf.clip_by_value(brighter(x), 0.0, 1.0)
    x = tf.cond(drawn[0] < 0.5, lambda: richer(brighter(x)), lambda: brighter(richer(x)))
    return tf.clip_by_value(x, 0.0, 1.0)
