"""``--decoding``: how the outputs of a detector are read, as a user describes it.

A preset knows how a family of detectors lays out its outputs, and finds them by their shapes. What
it takes and what a file says is checked against the outputs before anything runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from edgekit.base import schema, words
from edgekit.base.errors import EdgekitError, InvalidDataError, InvalidOptionError
from edgekit.records.decoding import FIELDS, AnchorGrid, Anchors, Decoding
from edgekit.records.signature import TensorSpec
from edgekit.tasks import decode

_HELP = (
    "how a detector's outputs become boxes: {presets}, or FILE.json or FILE.toml; fields that "
    "differ follow behind #, as in ssd#anchors=FILE.json,score_threshold=0.05"
)
#: Anchors of YOLOv5 at strides 8, 16 and 32: width and height in pixels.
_YOLOV5 = (
    ((10, 13), (16, 30), (33, 23)),
    ((30, 61), (62, 45), (59, 119)),
    ((116, 90), (156, 198), (373, 326)),
)
_STRIDES = (8, 16, 32)
#: Logits of a side's distance in YOLOv8.
_BINS = 16
T = TypeVar("T")


class _Misfit(Exception):
    """Outputs that a preset is not for; says what it expects."""


class _NearMiss(_Misfit):
    """Outputs that a preset is for, but for something that the user has to say."""


@dataclass(frozen=True)
class _Asked:
    """What a preset has to go by.

    Attributes:
        outputs: Sizes of one sample of each output, by name.
        size: Height and width of the input.
        classes: Number of classes of the data; None if nobody knows.
        options: What stands behind ``#``; anchors are in ``anchors``.
        anchors: Anchors of a file; None without.
    """

    outputs: Mapping[str, tuple[int, ...]]
    size: tuple[int, int]
    classes: int | None
    options: Mapping[str, Any] = field(default_factory=dict)
    anchors: Anchors | None = None

    def rows(self) -> dict[str, tuple[int, int]]:
        """(A, K) of each output with two axes, told by what is longer; of one axis K is 1."""
        found = {}
        for name, shape in self.outputs.items():
            shape = tuple(side for side in shape if side != 1) if len(shape) > 2 else shape
            if len(shape) == 2:
                found[name] = (max(shape), min(shape))
            elif len(shape) == 1:
                found[name] = (shape[0], 1)
        return found

    def joined(self, extra: int) -> str:
        """The one output with ``extra`` columns before its scores."""
        rows = self.rows()
        if len(rows) != 1 or len(self.outputs) != 1:
            raise _Misfit(f"one output [N, A, {extra} + classes]")
        ((name, (_, columns)),) = rows.items()
        if columns <= extra or (self.classes is not None and columns != extra + self.classes):
            raise _Misfit(f"one output [N, A, {extra} + {self.classes or 'classes'}]")
        return name

    def apart(self, extra: int) -> tuple[str, str, int]:
        """(boxes, scores, A) of an output with 4 columns and one with scores and ``extra`` more."""
        columns_said = f"{self.classes or 'classes'}{f' + {extra}' * bool(extra)}"
        said = f"outputs [N, A, 4] and [N, A, {columns_said}]"
        if len(self.outputs) != 2:
            raise _Misfit(said)
        shapes = [self._two(shape) for shape in self.outputs.values()]
        names = list(self.outputs)
        for box, other in ((0, 1), (1, 0)):
            boxes, scores = shapes[box], shapes[other]
            if boxes is None or scores is None or 4 not in boxes:
                continue
            for count in dict.fromkeys(boxes):
                rest = boxes[1] if boxes[0] == count else boxes[0]
                if rest != 4 or count not in scores:
                    continue
                columns = scores[1] if scores[0] == count else scores[0]
                if self.classes is None or columns == self.classes + extra:
                    return names[box], names[other], count
        raise _Misfit(said)

    @staticmethod
    def _two(shape: tuple[int, ...]) -> tuple[int, int] | None:
        if len(shape) == 3 and 1 in shape:
            inner = list(shape)
            inner.remove(1)
            shape = tuple(inner)
        if len(shape) == 1:
            return shape[0], 1
        return (shape[0], shape[1]) if len(shape) == 2 else None

    def maps(self, sizes: int, columns: Callable[[int], bool]) -> list[tuple[str, int, int]]:
        """(name, rows, columns) of outputs that are feature maps, largest first.

        Args:
            sizes: Anchors of a position.
            columns: Whether a number of channels for one anchor fits.
        """
        found = []
        for name, shape in self.outputs.items():
            for rows, wide, channels in _readings(shape, sizes):
                if self._stride(rows, wide) and columns(channels):
                    found.append((name, rows, wide))
                    break
        return sorted(found, key=lambda each: -each[1] * each[2])

    def _stride(self, rows: int, columns: int) -> bool:
        """Whether a feature map has the aspect ratio of the input, nearly."""
        high, wide = self.size[0] / rows, self.size[1] / columns
        return rows * columns > 0 and high >= 1 and abs(math.log(high / wide)) < 0.3


def _readings(shape: tuple[int, ...], sizes: int) -> Iterator[tuple[int, int, int]]:
    """(rows, columns, channels of one anchor) that a shape can be."""
    if len(shape) == 3:
        for rows, columns, channels in (shape, (shape[1], shape[2], shape[0])):
            if channels % sizes == 0:
                yield rows, columns, channels // sizes
    if len(shape) == 4:
        if shape[0] == sizes:
            yield shape[1], shape[2], shape[3]
            yield shape[2], shape[3], shape[1]
        if shape[2] == sizes:
            yield shape[0], shape[1], shape[3]


# --- Presets -------------------------------------------------------------------------------------


def _detections(asked: _Asked) -> Decoding:
    """Boxes that are decoded already: the four outputs of TFLite_Detection_PostProcess, or one
    output of box, score and class."""
    rows = asked.rows()
    flat = {name for name, (_, columns) in rows.items() if columns == 1}
    if len(asked.outputs) == 1:
        ((name, shape),) = asked.outputs.items()
        if rows.get(name, (0, 0))[1] == 6 or tuple(shape)[-1:] == (6,):
            return Decoding((name,), (name,), name, order="xyxy", unit="pixels", iou_threshold=None)
    said = (
        "outputs [N, A, 4], [N, A], [N, A] and [N, 1]: boxes, classes, scores, number of boxes; or "
        "one output [N, A, 6]"
    )
    boxes = [name for name, shape in asked.outputs.items() if shape[-1:] == (4,) and len(shape) > 1]
    counts = [name for name in asked.outputs if math.prod(asked.outputs[name]) == 1]
    if len(boxes) != 1:
        raise _Misfit(said)
    total = math.prod(asked.outputs[boxes[0]]) // 4
    same = [
        name
        for name in asked.outputs
        if name not in boxes and math.prod(asked.outputs[name]) == total and name in flat
    ]
    if total == 1:
        same, counts = [name for name in asked.outputs if name not in boxes][:2], []
    if len(same) != 2 or len(counts) > 1 or len(asked.outputs) != 3 + len(counts):
        raise _Misfit(said)
    classes, scores = _class_and_score(same, asked, first=next(iter(asked.outputs)) == boxes[0])
    return Decoding(
        (boxes[0],), (scores,), classes, counts[0] if counts else "", iou_threshold=None
    )


def _class_and_score(same: list[str], asked: _Asked, *, first: bool) -> tuple[str, str]:
    """Which of two outputs of one size has class numbers, and which has scores."""
    typed = {
        "classes": {asked.options.get("classes", "")},
        "scores": set(asked.options.get("scores", ())),
    }
    parts = {"classes": ("class", "label"), "scores": ("score",)}
    by_option = {role: [name for name in same if name in typed[role]] for role in typed}
    by_name = {
        role: [name for name in same if any(part in name.lower() for part in parts[role])]
        for role in parts
    }
    for told in (by_option, by_name):
        for role, names in told.items():
            if len(names) == 1:
                other = same[1 - same.index(names[0])]
                return (names[0], other) if role == "classes" else (other, names[0])
    if not first:  # not in the operator's order
        raise _NearMiss(
            f"to know which of {' and '.join(same)} has the scores; add "
            f"#scores={same[0]} or #scores={same[1]}"
        )
    return same[0], same[1]


def _yolov8(asked: _Asked) -> Decoding:
    """YOLOv8 and YOLO11: one output of box and scores, or feature maps before decoding."""
    try:
        name = asked.joined(4)
    except _Misfit as exc:
        classes = asked.classes
        found = asked.maps(
            1,
            lambda k: k == 4 * _BINS + classes if classes is not None else k > 4 * _BINS,
        )
        if len(found) != len(asked.outputs):
            raise _Misfit(
                f"{exc}, or feature maps of {4 * _BINS} + {classes or 'classes'} channels"
            ) from None
        grids = tuple(AnchorGrid(rows, wide, ((1 / rows, 1 / wide),)) for _, rows, wide in found)
        names = tuple(name for name, _, _ in found)
        return Decoding(
            names,
            names,
            order="xyxy",
            anchors=Anchors(grids),
            coding="distances",
            bins=_BINS,
            activation="sigmoid",
            iou_threshold=0.7,
        )
    return Decoding((name,), (name,), order="cxcywh", unit="pixels", iou_threshold=0.7)


def _yolov5(asked: _Asked) -> Decoding:
    """YOLOv5 and YOLOv7: one output of box, objectness and scores, or feature maps of three anchors
    before decoding."""
    try:
        name = asked.joined(5)
    except _Misfit as exc:
        classes = asked.classes
        found = asked.maps(3, lambda k: k == 5 + classes if classes is not None else k > 5)
        if len(found) != 3 or len(asked.outputs) != 3:
            raise _Misfit(
                f"{exc}, or three feature maps of 3 x (5 + {classes or 'classes'}) channels"
            ) from None
        height, width = asked.size
        anchors = asked.anchors or Anchors(
            tuple(
                AnchorGrid(rows, wide, tuple((high / height, w / width) for w, high in sizes))
                for (_, rows, wide), sizes in zip(found, _YOLOV5, strict=True)
            )
        )
        names = tuple(name for name, _, _ in found)
        return Decoding(
            names,
            names,
            order="cxcywh",
            anchors=anchors,
            coding="yolov5",
            activation="sigmoid",
            objectness=True,
        )
    return Decoding((name,), (name,), order="cxcywh", unit="pixels", objectness=True)


def _yolox(asked: _Asked) -> Decoding:
    """YOLOX: one output of box, objectness and scores, boxes coded against their cells."""
    name = asked.joined(5)
    height, width = asked.size
    grids: list[AnchorGrid] = []
    for stride in _STRIDES:
        rows, columns = math.ceil(height / stride), math.ceil(width / stride)
        grids.append(AnchorGrid(rows, columns, ((1 / rows, 1 / columns),)))
    anchors = Anchors(tuple(grids), scales=(1.0, 1.0, 1.0, 1.0), offset=0.0)
    if asked.rows()[name][0] != anchors.count:
        raise _Misfit(f"one output with {anchors.count:,} boxes, those of strides 8, 16 and 32")
    return Decoding(
        (name,), (name,), order="cxcywh", anchors=anchors, objectness=True, iou_threshold=0.65
    )


def _ssd(asked: _Asked) -> Decoding:
    """SSD: boxes coded against anchors, and scores with a first class for the background."""
    boxes, scores, count = asked.apart(1)
    anchors = asked.anchors or _ssd_anchors(asked.size)
    if anchors.count != count:
        raise _NearMiss(
            f"{anchors.count:,} boxes, as many as anchors, got {count:,}; add #anchors=FILE.json"
        )
    return Decoding((boxes,), (scores,), anchors=anchors, activation="sigmoid", background="first")


def _ssd_anchors(size: tuple[int, int]) -> Anchors:
    """Those of the SSDs on MobileNet of TensorFlow: six feature maps from stride 16 on, scales from
    0.2 to 0.95, aspect ratios 1, 2, 1/2, 3, 1/3."""
    scales = [0.2 + 0.15 * number for number in range(6)] + [1.0]
    rows, columns = (math.ceil(side / 16) for side in size)
    grids: list[AnchorGrid] = []
    for scale, larger in zip(scales[:-1], scales[1:], strict=True):
        ratios = [(scale, ratio) for ratio in (1.0, 2.0, 0.5, 3.0, 1 / 3)]
        ratios.append((math.sqrt(scale * larger), 1.0))
        if not grids:
            ratios = [(0.1, 1.0), (scale, 2.0), (scale, 0.5)]
        sizes = tuple((side / math.sqrt(ratio), side * math.sqrt(ratio)) for side, ratio in ratios)
        grids.append(AnchorGrid(rows, columns, sizes))
        rows, columns = math.ceil(rows / 2), math.ceil(columns / 2)
    return Anchors(tuple(grids))


def _efficientdet(asked: _Asked) -> Decoding:
    """EfficientDet: boxes coded against nine anchors a position at strides 8 to 128."""
    grids = []
    for level in range(3, 8):
        rows, columns = (math.ceil(side / 2**level) for side in asked.size)
        sizes = []
        for octave in (0, 1 / 3, 2 / 3):
            base = 4 * 2 ** (level + octave)
            sizes += [
                (base / math.sqrt(ratio) / asked.size[0], base * math.sqrt(ratio) / asked.size[1])
                for ratio in (1.0, 2.0, 0.5)
            ]
        grids.append(AnchorGrid(rows, columns, tuple(sizes)))
    anchors = asked.anchors or Anchors(tuple(grids), scales=(1.0, 1.0, 1.0, 1.0))
    how: dict[str, Any] = {"anchors": anchors, "activation": "sigmoid", "iou_threshold": 0.5}
    if len(asked.outputs) == 2:
        boxes, scores, count = asked.apart(0)
        if count != anchors.count:
            raise _NearMiss(f"{anchors.count:,} boxes, those of strides 8 to 128, got {count:,}")
        return Decoding((boxes,), (scores,), **how)
    of_boxes = asked.maps(9, lambda k: k == 4)
    of_scores = asked.maps(9, lambda k: k == (asked.classes or k))
    of_scores = [each for each in of_scores if each not in of_boxes]
    if len(of_boxes) != 5 or len(of_scores) != 5 or len(asked.outputs) != 10:
        raise _Misfit(
            f"outputs [N, A, 4] and [N, A, {asked.classes or 'classes'}], or five feature maps of "
            f"9 x 4 and five of 9 x {asked.classes or 'classes'} channels"
        )
    return Decoding(
        tuple(name for name, *_ in of_boxes), tuple(name for name, *_ in of_scores), **how
    )


def _detr(asked: _Asked) -> Decoding:
    """DETR: a fixed number of boxes, and logits with a last class for no object."""
    boxes, scores, _ = asked.apart(1)
    return Decoding(
        (boxes,),
        (scores,),
        order="cxcywh",
        activation="softmax",
        background="last",
        iou_threshold=None,
        best_class=True,
    )


def _rtdetr(asked: _Asked) -> Decoding:
    """RT-DETR and Deformable DETR: a fixed number of boxes; one output of box and scores, or boxes
    and logits."""
    how: dict[str, Any] = {"order": "cxcywh", "iou_threshold": None}
    try:
        name = asked.joined(4)
    except _Misfit as exc:
        try:
            boxes, scores, _ = asked.apart(0)
        except _Misfit as other:
            raise _Misfit(f"{exc}, or {other}") from None
        return Decoding((boxes,), (scores,), activation="sigmoid", **how)
    return Decoding((name,), (name,), **how)


_PRESETS: dict[str, Callable[[_Asked], Decoding]] = {
    "ssd": _ssd,
    "efficientdet": _efficientdet,
    "yolov5": _yolov5,
    "yolov8": _yolov8,
    "yolox": _yolox,
    "detr": _detr,
    "rtdetr": _rtdetr,
    "detections": _detections,
}
PRESETS = tuple(_PRESETS)
#: Other names of the same layout.
_ALIASES = {"yolov7": "yolov5", "yolov9": "yolov8", "yolo11": "yolov8", "yolov11": "yolov8"}
HELP = _HELP.format(presets=", ".join(PRESETS))


def known(word: str) -> None:
    """Refuse a ``--decoding`` that is neither a preset nor a file that is there.

    Raises:
        InvalidOptionError: If it is neither, or an option behind it is unknown.
    """
    _parsed(word)


def decoding_for(
    word: str,
    outputs: Sequence[TensorSpec],
    input_size: tuple[int, int],
    classes: int | None = None,
) -> Decoding:
    """The decoding that a word stands for, checked against the outputs.

    Args:
        word: A preset, or the path of a JSON or TOML file with the fields of :class:`Decoding`;
            behind ``#`` fields that differ, ``ssd#anchors=FILE.json,score_threshold=0.05``.
            Several names of outputs are joined with ``+``.
        outputs: What the model gives.
        input_size: Height and width of its input.
        classes: Number of classes of the data; None if nobody knows.

    Raises:
        InvalidOptionError: If the word is none, or a field has a value that is none.
        InvalidDataError: If the outputs are not what it is for; says which presets fit.
    """
    head, options, anchors = _parsed(word)
    sizes = {spec.name: tuple(spec.sample) for spec in outputs}
    if isinstance(head, Decoding):
        decoding = head if anchors is None else replace(head, anchors=anchors)
    else:
        decoding = _of_preset(word, head, _Asked(sizes, input_size, classes, options, anchors))
    try:
        decoding = replace(decoding, **options)
    except InvalidOptionError as exc:
        raise InvalidOptionError(f"--decoding {word}: {exc}") from None
    check(decoding, outputs, classes, word)
    return decoding


def _of_preset(word: str, name: str, asked: _Asked) -> Decoding:
    """The decoding of a preset, also of outputs with other classes than the data."""
    if {"boxes", "scores"} <= asked.options.keys():
        return _with_outputs(word, name, asked)
    try:
        return _PRESETS[name](asked)
    except _Misfit as exc:
        misfit = exc
    if not _fitting(asked):
        try:
            return _PRESETS[name](replace(asked, classes=None))
        except _Misfit:
            pass
    others = "" if isinstance(misfit, _NearMiss) else _others(name, asked)
    raise InvalidDataError(
        f"--decoding {word}: expected {misfit}; got {_shapes(asked.outputs)}{others}"
    )


def _with_outputs(word: str, name: str, asked: _Asked) -> Decoding:
    """The decoding of a preset, of outputs that the user names."""
    read = (*asked.options["boxes"], *asked.options["scores"])
    read += tuple(asked.options[key] for key in ("classes", "count") if key in asked.options)
    unknown = [each for each in read if each not in asked.outputs]
    if unknown:
        raise InvalidDataError(
            f"--decoding {word}: expected outputs of {_shapes(asked.outputs)}, got {unknown[0]!r}"
            f"{words.near(unknown[0], asked.outputs)}"
        )
    named = {each: asked.outputs[each] for each in dict.fromkeys(read)}
    others = {key: value for key, value in asked.options.items() if key not in ("boxes", "scores")}
    return _of_preset(word, name, replace(asked, outputs=named, options=others))


def chosen(
    word: str | None,
    own: Decoding | None,
    outputs: Sequence[TensorSpec],
    inputs: Sequence[TensorSpec],
    classes: int | None = None,
) -> Decoding:
    """The decoding that the user names, else that of the manifest.

    Args:
        word: ``--decoding``; None without.
        own: The manifest's; None without.
        outputs: What the model gives.
        inputs: What it takes.
        classes: Number of classes of the data; None if nobody knows.

    Raises:
        InvalidOptionError: If the word is none, or no input is a picture.
        InvalidDataError: If nothing says how outputs become boxes, or they are not what the
            decoding is for; says which presets fit.
    """
    size = input_size(inputs)
    if word is not None:
        return decoding_for(word, outputs, size, classes)
    if own is None:
        raise InvalidDataError(
            f"nothing says how the outputs become boxes: {refused(outputs, size, classes)}"
        )
    check(own, outputs, classes)
    return own


def input_size(inputs: Sequence[TensorSpec]) -> tuple[int, int]:
    """Height and width of the picture that a model takes.

    Raises:
        InvalidOptionError: If no input is a picture.
    """
    for spec in inputs:
        if spec.is_picture:
            return spec.picture[0], spec.picture[1]
    raise InvalidOptionError(
        f"expected a model that takes a picture [N, H, W, 3], got "
        f"{', '.join(f'{spec.name} {list(spec.shape)}' for spec in inputs)}; detection and "
        f"segmentation are of pictures"
    )


def refused(outputs: Sequence[TensorSpec], input_size: tuple[int, int], classes: int | None) -> str:
    """What to say where a detector has no decoding: which presets fit its outputs."""
    asked = _Asked({spec.name: tuple(spec.sample) for spec in outputs}, input_size, classes)
    return f"outputs {_shapes(asked.outputs)}{_others('', asked)}"


def _others(tried: str, asked: _Asked) -> str:
    """Which presets fit, or which were tried in vain."""
    fits = _fitting(asked)
    if fits:
        return f"; pass --decoding {' or '.join(fits)}, which such outputs can be of"
    misfits = []
    for name, preset in _PRESETS.items():
        try:
            preset(asked)
        except _Misfit as exc:
            misfits.append(f"{name} ({exc})" if name != tried else "")
    misfits = [each for each in misfits if each]
    return (
        f"; no other preset fits: {', '.join(misfits)}; name the outputs with "
        f"#boxes=NAME,scores=NAME or in a FILE.json"
    )


def _fitting(asked: _Asked) -> list[str]:
    """Names of the presets that such outputs can be of."""
    fits = []
    for name, preset in _PRESETS.items():
        try:
            preset(asked)
        except _Misfit:
            continue
        fits.append(name)
    return fits


def _shapes(outputs: Mapping[str, tuple[int, ...]]) -> str:
    """Names and shapes."""
    return ", ".join(
        f"{name} [N{''.join(f', {side}' for side in shape)}]" for name, shape in outputs.items()
    )


def classes_of(decoding: Decoding, outputs: Sequence[TensorSpec]) -> int | None:
    """How many classes the outputs have scores for; None where they are class numbers, or where a
    size is free.

    Raises:
        InvalidDataError: If the outputs are not what the decoding is for.
    """
    by_name = {spec.name: tuple(spec.sample) for spec in outputs}
    missing = [name for name in decoding.outputs if name not in by_name]
    if missing:
        raise InvalidDataError(
            f"expected an output {missing[0]!r}, got {_shapes(by_name)}"
            f"{words.near(missing[0], by_name)}"
        )
    shapes = {name: by_name[name] for name in decoding.outputs}
    if any(side < 1 for shape in shapes.values() for side in shape):
        return None
    empty = np.float32(0)
    return decode.classes_of(
        {name: np.broadcast_to(empty, (1, *shape)) for name, shape in shapes.items()}, decoding
    )


def check(
    decoding: Decoding,
    outputs: Sequence[TensorSpec],
    classes: int | None = None,
    word: str = "",
) -> None:
    """Refuse outputs that a decoding is not for, by their names and shapes.

    Args:
        decoding: How they are read.
        outputs: What the model gives.
        classes: Number of classes of the data; None if nobody knows.
        word: What the user typed.

    Raises:
        InvalidDataError: If an output is missing or of another shape, or if the classes are not as
            many as those of the data.
    """
    said = f"--decoding {word}: " if word else "the manifest's decoding: "
    try:
        own = classes_of(decoding, outputs)
    except InvalidDataError as exc:
        raise InvalidDataError(f"{said}{exc}") from None
    if own is not None and classes is not None and own != classes:
        hint = ""
        if own == classes + 1 and decoding.background == "none":
            hint = "; if one of them is the background, pass background=first or background=last"
        raise InvalidDataError(
            f"{said}expected scores of {classes} classes, as the data has, got {own} in "
            f"{', '.join(decoding.scores)}{hint}"
        )


# --- Words and files -----------------------------------------------------------------------------


def _parsed(word: str) -> tuple[str | Decoding, dict[str, Any], Anchors | None]:
    """(preset or decoding of a file, fields behind ``#``, anchors of a file)."""
    head, texts = words.split(word)
    words.refuse_unknown(f"--decoding {word}", texts, FIELDS)
    options = {name: _value(word, name, text) for name, text in texts.items() if name != "anchors"}
    anchors = _anchors(Path(texts["anchors"])) if "anchors" in texts else None
    if anchors is not None:
        options["anchors"] = anchors
    path = Path(head)
    if path.suffix in (".json", ".toml"):
        return _file(path), options, anchors
    preset = _ALIASES.get(head.lower(), head.lower())
    if preset not in _PRESETS:
        raise InvalidOptionError(
            f"expected --decoding as {', '.join(PRESETS)}, FILE.json or FILE.toml, got {head!r}"
            f"{words.near(head, PRESETS)}"
        )
    return preset, options, anchors


def _value(word: str, name: str, text: str) -> Any:
    """The value of a field."""
    if name in ("boxes", "scores"):
        return tuple(text.split("+"))
    if name in ("max_boxes", "candidates", "bins"):
        return words.integer(f"--decoding {word}", {name: text}, name, least=1)
    if name in ("objectness", "best_class"):
        if text not in ("true", "false"):
            raise InvalidOptionError(
                f"--decoding {word}: expected {name} as true or false, got {text!r}"
            )
        return text == "true"
    if name in ("score_threshold", "iou_threshold"):
        if name == "iou_threshold" and text == "none":
            return None
        try:
            return float(text)
        except ValueError:
            raise InvalidOptionError(
                f"--decoding {word}: expected {name} as a number, got {text!r}"
            ) from None
    return text


def _file(path: Path) -> Decoding:
    return _read(path, Decoding, "a decoding, with fields such as boxes, scores and order")


def _anchors(path: Path) -> Anchors:
    what = 'anchors, as {"grids": [...]} or {"listed": [[cy, cx, h, w], ...]}'
    return _read(path, Anchors, what)


def _read(path: Path, cls: type[T], what: str) -> T:
    """A dataclass of a JSON or TOML file."""
    if path.suffix == ".toml":
        content, _ = schema.read_toml(path, error=InvalidOptionError, what=what)
    else:
        content = schema.read_json(path, error=InvalidOptionError, what=what)
    try:
        return schema.from_json(cls, content, path.name)
    except (schema.SchemaError, EdgekitError) as exc:
        raise InvalidOptionError(f"{path} is not {what}: {exc}") from None
