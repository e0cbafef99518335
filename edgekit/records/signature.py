"""Inputs and outputs of a model: names, shapes, dtypes, scales, preprocessing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from edgekit.base import schema, words
from edgekit.base.errors import InvalidDataError, InvalidInputError, InvalidOptionError

_LARGEST, _SMALLEST = float(np.finfo(np.float32).max), float(np.finfo(np.float32).tiny)
Resize = Literal["bilinear", "bicubic", "area", "nearest", "bilinear-aliased", "bicubic-aliased"]
Channels = Literal["rgb", "bgr"]
#: Where a picture lies that is smaller than the input.
Align = Literal["centre", "corner"]
DTYPES = ("float32", "float16", "float64", "int8", "uint8", "int16", "int32", "int64", "bool")
#: What TensorFlow, ONNX and numpy call text.
_TEXT = ("string", "object", "str")
#: Sizes by the name of an input; under ``""`` those of the only one.
Shapes = Mapping[str, tuple[int, ...]]
#: Where TFLite made of an ONNX file has the channels of pictures; empty: of inputs last, of outputs
#: where the file has them.
Layout = Literal["", "keep", "channels-last"]
LAYOUTS: tuple[Layout, ...] = ("keep", "channels-last")


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of a model.

    Attributes:
        name: Name in the model file, as its runtime knows it.
        shape: Sizes; -1 where any size is accepted (the batch axis).
        dtype: A numpy dtype name.
        scale: Real value of one step, for integer tensors; else None.
        zero_point: Integer that stands for 0.0, for integer tensors; else None.
        batched: Whether the first axis counts samples. If not, as in the state ``[2, 1, 128]`` of a
            recurrent network, a sample is the whole tensor, and the model runs one at a time.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    scale: float | None = None
    zero_point: int | None = None
    batched: bool = True

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            text = self.dtype in _TEXT
            raise InvalidInputError(
                f"expected {self.name} to hold one of {', '.join(DTYPES)}, got {self.dtype!r}"
                + ("; let the model take and give ids, and keep text outside of it" * text)
            )
        if (self.scale is None) != (self.zero_point is None):
            raise InvalidInputError(
                f"tensor {self.name} needs both scale and zero_point, or neither"
            )
        if self.scale is not None and not (math.isfinite(self.scale) and self.scale > 0):
            raise InvalidInputError(f"expected scale of {self.name} > 0, got {self.scale}")

    @property
    def is_real(self) -> bool:
        """Whether it holds real numbers, quantized or not; else integers as they are."""
        return self.scale is not None or np.dtype(self.dtype).kind == "f"

    @property
    def sample(self) -> tuple[int, ...]:
        """Sizes of one sample as the model has it."""
        return self.shape[1:] if self.batched else self.shape

    @property
    def picture(self) -> tuple[int, ...]:
        """Sizes of one sample as data has it: a picture is ``(H, W, C)``, also where the model
        takes its 1 or 3 channels first, as PyTorch's do."""
        sizes = self.sample
        if self.batched and len(sizes) == 3 and sizes[0] in (1, 3) and sizes[2] not in (1, 3):
            return sizes[1], sizes[2], sizes[0]
        return sizes

    @property
    def is_picture(self) -> bool:
        """Whether a sample has height, width and 1 or 3 channels."""
        return self.batched and len(self.sample) == 3 and self.picture[2] in (1, 3)

    @property
    def _channels_first(self) -> tuple[int, ...]:
        """Sizes of one sample as a model with the channels of its pictures first has it."""
        sizes = self.sample
        if self.batched and len(sizes) == 3 and sizes[2] in (1, 3) and sizes[0] not in (1, 3):
            return sizes[2], sizes[0], sizes[1]
        return sizes

    def fits(self, sizes: tuple[int, ...]) -> bool:
        """Whether samples of these sizes can be fed, as they are or by :meth:`arrange`."""
        return any(_same(sizes, own) for own in self._forms)

    @property
    def _forms(self) -> tuple[tuple[int, ...], ...]:
        """The sizes of one sample that are taken, that of data first, each once."""
        return tuple(dict.fromkeys((self.picture, self.sample, self._channels_first)))

    @property
    def expected(self) -> str:
        """The sizes of one sample that are taken, in words."""
        return " or ".join(str(list(sizes)) for sizes in self._forms)

    def arrange(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Samples ``[N, ...]`` as the model takes them: pictures get their channels first or last
        as it has them; what has its sizes already passes."""
        sizes = values.shape[1:]
        if _same(sizes, self.sample):
            return values
        if _same(sizes, self.picture):
            return np.ascontiguousarray(np.moveaxis(values, -1, 1))
        if _same(sizes, self._channels_first):
            return np.ascontiguousarray(np.moveaxis(values, 1, -1))
        return values

    @property
    def numbers(self) -> int:
        """How many it holds of one sample; -1 where that is free."""
        return -1 if -1 in self.sample else math.prod(self.sample)

    def quantize(self, values: npt.NDArray[np.float32]) -> npt.NDArray[Any]:
        """Real values to this tensor's dtype: ``round(x / scale) + zero_point``, saturated.

        Rounds half to even, as both the ONNX QuantizeLinear and numpy do. Float tensors only
        get a cast.
        """
        if self.scale is None or self.zero_point is None:
            return values.astype(self.dtype, copy=False)
        info = np.iinfo(self.dtype)
        steps = np.rint(values / np.float32(self.scale)) + self.zero_point
        return np.asarray(np.clip(steps, info.min, info.max), self.dtype)

    def dequantize(self, values: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """This tensor's values to real ones: ``(q - zero_point) * scale``, float32."""
        if self.scale is None or self.zero_point is None:
            return values.astype(np.float32, copy=False)
        return (values.astype(np.int32) - self.zero_point).astype(np.float32) * np.float32(
            self.scale
        )


def _same(sizes: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    """Whether sizes are those that are wanted; -1 takes any."""
    return len(sizes) == len(wanted) and all(
        other in (-1, size) for size, other in zip(sizes, wanted, strict=True)
    )


@dataclass(frozen=True)
class Signature:
    """Inputs and outputs of a model, in the order of its file."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    @property
    def batch(self) -> int:
        """Samples that one run takes; -1 for any number."""
        specs = (*self.inputs, *self.outputs)
        fixed = {spec.shape[0] for spec in specs if spec.batched} - {-1}
        alone = not all(spec.batched for spec in specs)
        return max(fixed, default=1 if alone else -1)

    def single_input(self) -> TensorSpec:
        """The one input, for callers that serve image classifiers only.

        Raises:
            InvalidInputError: If the model has more inputs than one.
        """
        if len(self.inputs) != 1 or len(self.outputs) != 1:
            raise InvalidInputError(
                f"expected a model with one input and one output, "
                f"got {len(self.inputs)} inputs and {len(self.outputs)} outputs"
            )
        return self.inputs[0]


def turned(outputs: Sequence[TensorSpec], layout: Layout) -> tuple[str, ...]:
    """Names of the outputs whose channels lie last in TFLite and first in its ONNX source."""
    if layout != "channels-last":
        return ()
    return tuple(spec.name for spec in outputs if spec.batched and len(spec.shape) == 4)


def batched(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> Signature:
    """The signature of a model file, which says sizes, but not which axis counts the samples.

    It is the first one where that is free or 1. What has another size there beside such an input
    is no batch of samples. Where no input has such an axis, all with one size have a fixed batch.
    """
    firsts = {spec.shape[0] if spec.shape else 0 for spec in inputs}
    sizes = {-1, 1} if firsts & {-1, 1} or len(firsts) != 1 else firsts - {0} or {1}
    sizes = sizes | {-1}

    def seen(specs: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
        return tuple(
            replace(spec, batched=bool(spec.shape) and spec.shape[0] in sizes) for spec in specs
        )

    return Signature(seen(inputs), seen(outputs))


def sized(specs: Sequence[TensorSpec], shapes: Shapes, model: object) -> tuple[TensorSpec, ...]:
    """Inputs with the sizes that ``--shape`` gives to their free axes.

    Args:
        specs: Specs of a model file, free axes as -1.
        shapes: By name; the file's fixed axes have to have the same size.
        model: Its path, for messages.

    Raises:
        InvalidOptionError: If an input is unknown, or a size is not the file's.
    """
    names = [spec.name for spec in specs]
    if "" in shapes and len(names) != 1:
        shown = ",".join(map(str, shapes[""]))
        raise InvalidOptionError(
            f"--shape {shown}: {model} has the inputs {', '.join(names)}; say which, e.g. "
            f"--shape {names[0]}={shown}"
        )
    sizes_by_name = {name or names[0]: tuple(sizes) for name, sizes in shapes.items()}
    for name in sizes_by_name:
        if name not in names:
            raise InvalidOptionError(
                f"--shape {name}: expected an input of {model}, {', '.join(names)}"
            )
    fixed = []
    for spec in specs:
        sizes = sizes_by_name.get(spec.name, spec.shape)
        if len(sizes) != len(spec.shape):
            raise InvalidOptionError(
                f"--shape {spec.name}: expected {len(spec.shape)} sizes, as {list(spec.shape)}, "
                f"got {len(sizes)}, {list(sizes)}"
            )
        for axis, (size, own) in enumerate(zip(sizes, spec.shape, strict=True)):
            if own not in (-1, size):
                raise InvalidOptionError(
                    f"--shape {spec.name}: expected {own} in axis {axis}, which {model} fixes, "
                    f"got {size}"
                )
        fixed.append(replace(spec, shape=sizes))
    return tuple(fixed)


def refuse_free(specs: Sequence[TensorSpec], model: object) -> None:
    """Refuse inputs with a free axis that does not count samples.

    Raises:
        InvalidOptionError: With the option that fixes it.
    """
    for spec in specs:
        free = [axis for axis, size in enumerate(spec.shape) if size == -1]
        if free and (free != [0] or not spec.batched):
            shown = ",".join(
                str(size) if size != -1 else "1" if axis == 0 else "SIZE"
                for axis, size in enumerate(spec.shape)
            )
            raise InvalidOptionError(
                f"{model}: expected fixed sizes of input {spec.name}, got {list(spec.shape)}, free "
                f"in axis {', '.join(str(axis) for axis in free if axis or not spec.batched)}; "
                f"pass --shape {spec.name}={shown} with the sizes that it will run at"
            )


@dataclass(frozen=True)
class Preprocessing:
    """From a picture to the float input of a model.

    A picture is turned upright, made RGB or grey of 8 bits, resized and cropped to the model's
    input once, by edgekit (:mod:`edgekit.data.decode`); all runtimes get those bytes. Then
    ``pixel * scale + offset``. Images that come as arrays have the model's size already.

    Attributes:
        name: Name in tables and on the command line.
        scale: One factor per channel, or one for all channels, in the order of ``channels``.
        offset: One summand per channel, or one for all channels, in the order of ``channels``.
        resize: ``bilinear`` and ``bicubic`` are antialiased where a picture shrinks, ``area``
            averages, ``nearest`` picks; ``bilinear-aliased`` and ``bicubic-aliased`` read 2x2 and
            4x4 pixels whatever the factor.
        crop: Share of the shorter side that the middle part has: 0.875 resizes the shorter side of
            a picture to size / 0.875 and cuts out the centre. None stretches the whole picture.
        letterbox: Grey value, 0 to 255, of what is beside a picture that keeps its aspect ratio and
            is shown whole; 114 for YOLO. None stretches the picture. Not beside ``crop``.
        align: Where a letterboxed picture lies: in the ``centre`` (YOLOv5 and later), or in the
            upper left ``corner`` (EfficientDet, YOLOX).
        channels: Order that the model takes; images are ``rgb``.
        class_offset: Number that is added to labels: 1 for a model whose class 0 is the background.
    """

    name: str
    scale: tuple[float, ...]
    offset: tuple[float, ...]
    resize: Resize = "bilinear"
    crop: float | None = None
    channels: Channels = "rgb"
    class_offset: int = 0
    letterbox: int | None = None
    align: Align = "centre"

    def __post_init__(self) -> None:
        for field in ("scale", "offset"):
            values = getattr(self, field)
            if not values or not all(abs(v) <= _LARGEST for v in values):
                raise InvalidInputError(f"expected finite preprocessing {field}, got {values}")
        if any(abs(v) < _SMALLEST for v in self.scale):
            raise InvalidInputError("expected a preprocessing scale other than 0")
        words_by_field = (
            ("resize", RESIZES),
            ("channels", get_args(Channels)),
            ("align", get_args(Align)),
        )
        for field, known in words_by_field:
            if getattr(self, field) not in known:
                raise InvalidInputError(
                    f"expected {field} as {', '.join(known)}, got {getattr(self, field)!r}"
                    f"{words.near(getattr(self, field), known)}"
                )
        if self.crop is not None and not 0 < self.crop <= 1:
            raise InvalidInputError(f"expected crop above 0 and up to 1, got {self.crop}")
        if self.letterbox is not None and not 0 <= self.letterbox <= 255:
            raise InvalidInputError(f"expected letterbox from 0 to 255, got {self.letterbox}")
        if self.letterbox is not None and self.crop is not None:
            raise InvalidInputError("expected crop or letterbox, got both")
        if self.letterbox is None and self.align != "centre":
            raise InvalidInputError(f"align {self.align} is for letterbox; pass both")
        if abs(self.class_offset) > 1000:
            raise InvalidInputError(
                f"expected class_offset from -1000 to 1000, got {self.class_offset}"
            )

    def apply(self, images: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """uint8 ``[N, ..., C]`` to the model's float32 input; float arrays pass as they are.

        Float arrays are taken as preprocessed already, in the model's order of channels.

        Raises:
            InvalidDataError: If the dtype is neither uint8 nor floating, or the channels differ.
        """
        if np.issubdtype(images.dtype, np.floating):
            return images.astype(np.float32, copy=False)
        if images.dtype != np.uint8:
            raise InvalidDataError(f"expected uint8 or float images, got {images.dtype}")
        for field in (self.scale, self.offset):
            if len(field) not in (1, images.shape[-1]):
                raise InvalidDataError(
                    f"preprocessing {self.name!r} is for {len(field)} channels, "
                    f"the images have {images.shape[-1]} in their last axis"
                )
        if self.channels == "bgr":
            if images.shape[-1] != 3:
                raise InvalidDataError(
                    f"preprocessing {self.name!r} is for BGR, the images have {images.shape[-1]} "
                    f"channels; expected 3"
                )
            images = images[..., ::-1]
        scale = np.asarray(self.scale, np.float32)
        return images.astype(np.float32) * scale + np.asarray(self.offset, np.float32)


RESIZES: tuple[Resize, ...] = get_args(Resize)
#: What may stand behind ``#``.
_FIELDS = ("resize", "crop", "letterbox", "align", "channels", "class_offset")

_NAMED = {
    "unit": Preprocessing("unit", (1 / 255,), (0.0,)),
    "symmetric": Preprocessing("symmetric", (1 / 127.5,), (-1.0,)),
    "none": Preprocessing("none", (1.0,), (0.0,)),
    "imagenet-rgb": Preprocessing(
        "imagenet-rgb",
        (1 / (255 * 0.229), 1 / (255 * 0.224), 1 / (255 * 0.225)),
        (-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225),
    ),
    "imagenet-bgr": Preprocessing(
        "imagenet-bgr", (1.0,), (-103.939, -116.779, -123.68), channels="bgr"
    ),
}
PREPROCESSING_NAMES = tuple(_NAMED)
IMAGENET_NAMES = tuple(name for name in _NAMED if name.startswith("imagenet"))


def unprepared(path: object, inputs: Sequence[TensorSpec]) -> str:
    """What to say where nobody named the preprocessing of a model, which is ``none`` then.

    Args:
        path: Of the model.
        inputs: Of the model.

    Raises:
        InvalidOptionError: If an input is a picture, whose preprocessing has to be known.
    """
    if any(spec.is_picture for spec in inputs):
        raise InvalidOptionError(
            f"{path} does not say how its input is made of the pixels of a picture; pass "
            f"--preprocessing unit (0 to 1), symmetric (-1 to 1), none (0 to 255), "
            f"{', '.join(IMAGENET_NAMES)} or FILE.json"
        )
    return "no input is a picture: samples go in as they are (preprocessing none)"


def preprocessing(spec: str) -> Preprocessing:
    """Look up a named preprocessing, or read one from a JSON file.

    Args:
        spec: One of ``unit`` ([0, 1]), ``symmetric`` ([-1, 1]), ``none`` ([0, 255]),
            ``imagenet-rgb`` (mean and standard deviation), ``imagenet-bgr`` (mean), or the path of
            a JSON file with the fields of :class:`Preprocessing`. Behind ``#`` the fields that
            differ from it: ``symmetric#resize=bicubic,crop=0.875,channels=bgr,class_offset=1``,
            ``unit#letterbox=114``.

    Raises:
        InvalidOptionError: If it is neither.
    """
    name, options = words.split(spec)
    words.refuse_unknown(spec, options, _FIELDS)
    base = _NAMED.get(name) or _read(Path(name), spec)
    fields: dict[str, Any] = dict(options)
    if "crop" in fields:
        try:
            fields["crop"] = None if fields["crop"] == "none" else float(fields["crop"])
        except ValueError:
            raise InvalidOptionError(
                f"{spec}: expected crop as a share, e.g. 0.875, or none; got {options['crop']!r}"
            ) from None
    if "class_offset" in fields:
        fields["class_offset"] = words.integer(spec, options, "class_offset", least=-1000)
    if "letterbox" in fields:
        grey = None
        if fields["letterbox"] != "none":
            grey = words.integer(spec, options, "letterbox", least=0)
        fields["letterbox"] = grey
    try:
        return replace(base, name=spec if name in _NAMED else base.name, **fields)
    except InvalidInputError as exc:
        raise InvalidOptionError(f"{spec}: {exc}") from None


def _read(path: Path, spec: str) -> Preprocessing:
    if path.suffix != ".json" or not path.is_file():
        looks = path.suffix == ".json" and not path.exists()
        near = words.near(words.split(spec)[0], _NAMED)
        raise InvalidOptionError(
            f"expected --preprocessing as {', '.join(_NAMED)} or a JSON file, got {spec!r}"
            f"{f': {words.not_found(path)}' if looks else near}"
        )
    data = schema.read_json(path, error=InvalidOptionError, what="a preprocessing file")
    try:
        return schema.from_json(Preprocessing, data)
    except (ValueError, InvalidInputError) as exc:
        raise InvalidOptionError(f"{path} is not a preprocessing file: {exc}") from None
