"""``--decoding``: presets by shapes of outputs, files, what does not fit; from export to report."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import nets
import numpy as np
import pytest
from exported import export, export_all

from edgekit.base import schema
from edgekit.base.errors import InvalidDataError, InvalidOptionError
from edgekit.compare import Options, compare
from edgekit.data.boxes import Boxes, Views
from edgekit.data.images import make
from edgekit.pipeline.options import Options as ExportOptions
from edgekit.records.artifact import Manifest
from edgekit.records.decoding import AnchorGrid, Anchors, Decoding
from edgekit.records.signature import Signature, TensorSpec, preprocessing
from edgekit.tasks import kind, presets

COCO = 80


def specs(**sizes: tuple[int, ...]) -> list[TensorSpec]:
    return [TensorSpec(name, (-1, *size), "float32") for name, size in sizes.items()]


def levels(strides: tuple[int, ...], size: int, of: Any) -> dict[str, tuple[int, ...]]:
    return {f"p{stride}": of(size // stride) for stride in reversed(strides)}


YOLO = (8, 16, 32)
#: Word, outputs, side of the input, classes of the data; anchors, boxes and scores that are read.
FITTING: tuple[
    tuple[str, dict[str, tuple[int, ...]], int, int, int | None, tuple[str, ...]], ...
] = (
    ("yolov8", {"o": (84, 8400)}, 640, COCO, None, ("o",)),
    ("yolov8", {"o": (8400, 84)}, 640, COCO, None, ("o",)),
    ("YOLO11#score_threshold=0.001", {"o": (84, 8400)}, 640, COCO, None, ("o",)),
    ("yolov8", levels(YOLO, 640, lambda s: (s, s, 144)), 640, COCO, 8400, ("p8", "p16", "p32")),
    ("yolov8", levels(YOLO, 320, lambda s: (67, s, s)), 320, 3, 2100, ("p8", "p16", "p32")),
    ("yolov5", {"o": (25200, 85)}, 640, COCO, None, ("o",)),
    ("yolov5", levels(YOLO, 640, lambda s: (3, s, s, 85)), 640, COCO, 25200, ("p8", "p16", "p32")),
    ("yolov5", levels(YOLO, 640, lambda s: (255, s, s)), 640, COCO, 25200, ("p8", "p16", "p32")),
    ("yolov7", levels(YOLO, 640, lambda s: (s, s, 255)), 640, COCO, 25200, ("p8", "p16", "p32")),
    ("yolox", {"o": (3549, 85)}, 416, COCO, 3549, ("o",)),
    ("ssd", {"b": (1917, 4), "s": (1917, 91)}, 300, 90, 1917, ("b",)),
    ("ssd", {"s": (1917, 91), "b": (1917, 1, 4)}, 300, 90, 1917, ("b",)),
    ("efficientdet", {"b": (19206, 4), "s": (19206, 90)}, 320, 90, 19206, ("b",)),
    (
        "efficientdet",
        {
            **{f"b{side}": (side, side, 36) for side in (64, 32, 16, 8, 4)},
            **{f"s{side}": (810, side, side) for side in (64, 32, 16, 8, 4)},
        },
        512,
        90,
        49104,
        ("b64", "b32", "b16", "b8", "b4"),
    ),
    ("detr", {"logits": (100, 92), "boxes": (100, 4)}, 800, 91, None, ("boxes",)),
    ("rtdetr", {"o": (300, 84)}, 640, COCO, None, ("o",)),
    ("rtdetr", {"logits": (300, 80), "boxes": (300, 4)}, 640, COCO, None, ("boxes",)),
    ("detections", {"b": (10, 4), "c": (10,), "s": (10,), "n": ()}, 300, 90, None, ("b",)),
    ("detections", {"b": (10, 4), "scores": (10,), "labels": (10,)}, 300, 90, None, ("b",)),
    ("detections", {"o": (300, 6)}, 640, COCO, None, ("o",)),
    ("ssd#boxes=b,scores=s", {"b": (1917, 4), "s": (1917, 91), "x": (7,)}, 300, 90, 1917, ("b",)),
)


@pytest.mark.parametrize(("word", "outputs", "size", "classes", "anchors", "boxes"), FITTING)
def test_presets_find_their_outputs(
    word: str,
    outputs: dict[str, tuple[int, ...]],
    size: int,
    classes: int,
    anchors: int | None,
    boxes: tuple[str, ...],
) -> None:
    own = specs(**outputs)
    decoding = presets.decoding_for(word, own, (size, size), classes)
    assert decoding.boxes == boxes
    assert (None if decoding.anchors is None else decoding.anchors.count) == anchors
    counted = presets.classes_of(decoding, own)
    assert counted in (classes, None) and (counted is None) == bool(decoding.classes)
    presets.check(decoding, own, classes)
    assert presets.decoding_for(word, own, (size, size)) == decoding  # also without data
    if decoding.classes:
        assert decoding.scores != (decoding.classes,) or boxes == ("o",)


def test_anchors_of_the_ssds_and_efficientdets_of_tensorflow() -> None:
    """The first and last anchors that their generators give, cy, cx, h, w."""
    ssd = presets.decoding_for("ssd", specs(b=(1917, 4), s=(1917, 91)), (300, 300), 90).anchors
    assert ssd is not None
    half = 0.5 / 19
    np.testing.assert_allclose(
        ssd.boxes()[:3],
        [
            [half, half, 0.1, 0.1],
            [half, half, 0.2 / 2**0.5, 0.2 * 2**0.5],
            [half, half, 0.2 * 2**0.5, 0.2 / 2**0.5],
        ],
        rtol=1e-6,
    )
    np.testing.assert_allclose(ssd.boxes()[-1], [0.5, 0.5, 0.95**0.5, 0.95**0.5], rtol=1e-6)
    outputs = specs(b=(49104, 4), s=(49104, 90))
    efficient = presets.decoding_for("efficientdet", outputs, (512, 512), 90).anchors
    assert efficient is not None and efficient.scales == (1, 1, 1, 1)
    boxes = efficient.boxes() * 512
    np.testing.assert_allclose(boxes[0], [4, 4, 32, 32], rtol=1e-5)
    np.testing.assert_allclose(boxes[1], [4, 4, 32 / 2**0.5, 32 * 2**0.5], rtol=1e-5)
    np.testing.assert_allclose(boxes[3, 2:], [32 * 2 ** (1 / 3)] * 2, rtol=1e-5)
    np.testing.assert_allclose(boxes[-9], [448, 448, 512, 512], rtol=1e-5)


@pytest.mark.parametrize(
    ("word", "outputs", "classes", "error", "said"),
    (
        ("yolo8", {"o": (84, 8400)}, 80, InvalidOptionError, "did you mean 'yolov8'"),
        (
            "yolov8#score_treshold=0.1",
            {"o": (84, 8400)},
            80,
            InvalidOptionError,
            "unknown option 'score_treshold'; .* did you mean 'score_threshold'",
        ),
        ("yolov8#order=cxcyhw", {"o": (84, 8400)}, 80, InvalidOptionError, "did you mean 'cxcywh'"),
        ("yolov8#max_boxes=0", {"o": (84, 8400)}, 80, InvalidOptionError, "max_boxes .* >= 1"),
        (
            "yolov8#score_threshold=2",
            {"o": (84, 8400)},
            80,
            InvalidOptionError,
            "from 0 to below 1",
        ),
        ("yolov8#objectness=yes", {"o": (84, 8400)}, 80, InvalidOptionError, "as true or false"),
        ("no.json", {"o": (84, 8400)}, 80, InvalidOptionError, "no.json not found"),
        (
            "yolov8",
            {"o": (84, 8400)},
            3,
            InvalidDataError,
            "expected scores of 3 classes, as the data has, got 80 in o",
        ),
        ("yolov8", {"o": (25200, 85)}, 80, InvalidDataError, "pass --decoding yolov5"),
        (
            "ssd",
            {"b": (1900, 4), "s": (1900, 91)},
            90,
            InvalidDataError,
            r"expected 1,917 boxes, as many as anchors, got 1,900; add #anchors=FILE.json",
        ),
        (
            "ssd#background=none",
            {"b": (1917, 4), "s": (1917, 91)},
            90,
            InvalidDataError,
            "got 91 in s; if one of them is the background, pass background=first",
        ),
        (
            "detections",
            {"a": (10,), "b": (10, 4), "c": (10,), "n": ()},
            90,
            InvalidDataError,
            "which of a and c has the scores; add #scores=a or #scores=c",
        ),
        (
            "detr",
            {"o": (7,)},
            80,
            InvalidDataError,
            r"got o \[N, 7\]; no other preset fits: ssd \(.*\), .* rtdetr \(.*boxes=NAME",
        ),
        (
            "ssd#boxes=bo,scores=s",
            {"box": (1917, 4), "s": (1917, 91)},
            90,
            InvalidDataError,
            "got 'bo'; did you mean 'box'",
        ),
    ),
)
def test_what_does_not_fit_is_one_line(
    word: str, outputs: dict[str, tuple[int, ...]], classes: int, error: type[Exception], said: str
) -> None:
    size = (300, 300) if word.startswith(("ssd", "det")) else (640, 640)
    with pytest.raises(error, match=said) as caught:
        presets.decoding_for(word, specs(**outputs), size, classes)
    assert "\n" not in str(caught.value)


def test_decodings_and_anchors_of_files(tmp_path: Path) -> None:
    anchors = Anchors(listed=((0.5, 0.5, 0.2, 0.2), (0.5, 0.5, 0.4, 0.4)), scales=(1, 1, 1, 1))
    decoding = Decoding(("b",), ("s",), anchors=anchors, activation="sigmoid")
    (tmp_path / "how.json").write_text(schema.dumps(decoding))
    (tmp_path / "how.toml").write_text(
        'boxes = ["b"]\nscores = ["s"]\nactivation = "sigmoid"\n[anchors]\nscales = [1, 1, 1, 1]\n'
        "listed = [[0.5, 0.5, 0.2, 0.2], [0.5, 0.5, 0.4, 0.4]]\n"
    )
    (tmp_path / "anchors.json").write_text(schema.dumps(anchors))
    outputs, size = specs(b=(2, 4), s=(2, 5)), (64, 64)
    for name in ("how.json", "how.toml"):
        word = str(tmp_path / name)
        assert presets.decoding_for(word, outputs, size, 5) == decoding
        other = presets.decoding_for(
            f"{word}#score_threshold=0.3,iou_threshold=none", outputs, size
        )
        assert other == replace(decoding, score_threshold=0.3, iou_threshold=None)
    word = f"ssd#anchors={tmp_path / 'anchors.json'}"
    own = presets.decoding_for(word, specs(b=(2, 4), s=(2, 6)), size, 5)
    assert own.anchors == anchors and own.background == "first"
    (tmp_path / "broken.json").write_text(json.dumps({"boxes": ["b"]}))
    with pytest.raises(InvalidOptionError, match="broken.json is not a decoding.*missing key"):
        presets.decoding_for(str(tmp_path / "broken.json"), outputs, size, 5)
    (tmp_path / "both.json").write_text(json.dumps({"grids": [], "listed": []}))
    with pytest.raises(InvalidOptionError, match="expected anchors as grids or listed, one of"):
        presets.decoding_for(f"ssd#anchors={tmp_path / 'both.json'}", outputs, size, 5)


@pytest.mark.parametrize(
    ("fields", "said"),
    (
        ({"boxes": ()}, "as many outputs with boxes as with scores"),
        ({"boxes": ("a", "b")}, "as many outputs with boxes as with scores"),
        ({"order": "cxcyhw"}, "expected order of a decoding as xyxy, .* did you mean 'cxcywh'"),
        ({"iou_threshold": 0.0}, "iou_threshold above 0"),
        ({"bins": 16}, "with coding=distances and anchors"),
        ({"classes": "c", "objectness": True}, "boxes that are decoded already"),
    ),
)
def test_a_decoding_that_contradicts_itself(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidOptionError, match=said):
        replace(Decoding(("b",), ("s",)), **fields)
    with pytest.raises(InvalidOptionError, match="at least one row, column and size"):
        AnchorGrid(0, 3, ((0.1, 0.1),))


def manifest(outputs: list[TensorSpec], **more: Any) -> Manifest:
    return Manifest(
        model_id="m",
        format="onnx",
        precision="int8",
        model_file="model.onnx",
        files={"model.onnx": "00"},
        signature=Signature((TensorSpec("x", (-1, 64, 64, 3), "float32"),), tuple(outputs)),
        preprocessing=preprocessing("unit"),
        class_names=(),
        **more,
    )


NAMES = ("a", "b", "c")
PIXELS = np.zeros((2, 64, 64, 3), np.uint8)


def boxes() -> Boxes:
    corners = np.array([[0, 0, 9, 9], [1, 1, 5, 5], [2, 2, 7, 7]], np.float32)
    return Boxes(np.array([0, 1, 3]), corners, np.array([0, 1, 2], np.int32))


class Masks:
    def __len__(self) -> int:
        return 2

    def __getitem__(self, picture: int) -> np.ndarray:
        return np.full((64, 64), picture, np.uint8)

    def take(self, pictures: np.ndarray) -> Masks:
        return self


def test_the_task_of_boxes_and_masks() -> None:
    with_boxes = make("set", PIXELS, None, NAMES, boxes=boxes(), views=Views.whole(2, 64, 64))
    with_masks = make("set", PIXELS, None, NAMES, masks=Masks(), views=Views.whole(2, 64, 64))
    plain = make("set", PIXELS, None)
    detector = specs(o=(7, 84))
    right = kind.right(with_boxes, manifest(detector), None, as_array=False, decoding="yolov8")
    assert right.task == "detection" and right.boxes is with_boxes.boxes and right.names == NAMES
    assert right.pictures is not None and right.pictures.decoding is not None
    own = manifest(detector, decoding=right.pictures.decoding)
    assert kind.declared(own, None) == "detection"
    again = kind.right(with_boxes, own, None, as_array=False)
    assert again.pictures is not None and again.pictures.decoding == right.pictures.decoding
    blind = kind.right(plain, own, None, as_array=False)
    assert blind.task == "detection" and blind.boxes is None
    with pytest.raises(InvalidDataError, match="pass --decoding yolov8 or rtdetr, which such outp"):
        kind.right(with_boxes, manifest(detector), None, as_array=False)
    with pytest.raises(InvalidDataError, match="has masks, which are not labels of detection"):
        kind.right(with_masks, own, None, as_array=False)
    with pytest.raises(InvalidDataError, match="expected scores of 2 classes, as the data has"):
        kind.right(with_boxes.named(("a", "b")), own, None, as_array=False)
    pixels = manifest(specs(o=(16, 16, 3)))
    right = kind.right(with_masks, pixels, None, as_array=False)
    assert right.task == "segmentation" and right.masks is with_masks.masks
    assert right.pictures is not None and right.pictures.layout is not None
    assert right.pictures.layout.classes == 3 and not right.pictures.layout.first
    turned = right.beside(specs(o=(3, 16, 16))).pictures  # the reference has its channels first
    assert turned is not None and turned.layout is not None and turned.layout.first
    with pytest.raises(InvalidDataError, match="a score for each of 2 classes of the data"):
        kind.right(with_masks.named(("a", "b")), pixels, None, as_array=False)
    with pytest.raises(InvalidDataError, match="has boxes, which are not labels of segmentation"):
        kind.right(with_boxes, pixels, "segmentation", as_array=False)
    with pytest.raises(InvalidOptionError, match="--task segmentation: expected one output"):
        kind.check("segmentation", specs(a=(7,), b=(8,)))
    with pytest.raises(InvalidOptionError, match="--decoding is of detectors"):
        Options(task="classification", decoding="yolov8")
    assert Options(decoding="yolov8").task == ExportOptions(decoding="ssd").task == "detection"


def test_outputs_of_a_reference_in_another_order() -> None:
    own = manifest(specs(s=(7, 3), b=(7, 4)), decoding=Decoding(("b",), ("s",)))
    right = kind.right(make("set", PIXELS, None), own, None, as_array=False)
    other = right.beside(specs(boxes=(7, 4), scores=(7, 3))).pictures
    assert other is not None and list(other.sizes) == ["boxes", "scores"]
    assert other.decoding == Decoding(("boxes",), ("scores",))
    outputs = np.zeros((2, 49), np.float32)
    outputs[:, :28] = np.tile([0.25, 0.25, 0.5, 0.75], 7)
    outputs[0, 28] = 0.9
    found = other.boxes(outputs)
    np.testing.assert_allclose(found.corners, [[16, 16, 48, 32]])
    assert found.offsets.tolist() == [0, 1, 1]


def foreign(path: Path) -> Path:
    """A detector of scenes with random weights, laid out as a YOLOv8: ``[N, 4 + 10, 144]``."""
    rng = np.random.default_rng(0)
    weights = rng.normal(0, 0.3, (14, 1, 8, 8)).astype(np.float32)
    return nets.write(
        path,
        [
            ("Conv", ["x", "weights", "bias"], "found"),
            ("Reshape", ["found", "shape"], "rows"),
            ("Sigmoid", ["rows"], "shares"),
            ("Mul", ["shares", "sizes"], "o_float"),
        ],
        {
            "weights": weights,
            "bias": rng.normal(0, 0.5, 14).astype(np.float32),
            "shape": np.array([0, 14, -1], np.int64),
            "sizes": np.array([96] * 4 + [1] * 10, np.float32)[:, None],
        },
        {"o": [14, 89 * 89]},
        inputs=(1, 96, 96),
    )


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("detector")
    foreign(folder / "foreign.onnx")
    export_all(
        folder / "foreign.onnx",
        targets=("tflite", "onnx"),
        precisions=("float32",),
        preprocessing="unit",
        decoding="yolov8#max_boxes=20",
        out=folder,
    )
    return folder


def test_a_detector_of_others_from_export_to_report(files: Path) -> None:
    folders = sorted(files.glob("foreign-*"))
    assert len(folders) == 2
    compared = compare(folders, Options(dataset="scenes", limit=12, rounds=0, allow_chance=True))
    for result in compared.artifacts:
        metrics = result.metrics
        assert metrics["matched50"].value == metrics["matched90"].value == 100
        assert metrics["score_error"].value < 0.01
        assert {"map", "map50", "map75", "map_change", "map50_change"} <= metrics.keys()
        assert metrics["map"].count == 12 and abs(metrics["map_change"].value) < 0.1
    written = Manifest.load(folders[0] / "manifest.json")
    assert written.task == "detection" and written.decoding is not None
    assert written.decoding.max_boxes == 20 and written.decoding.order == "cxcywh"


def test_a_bare_file_needs_a_decoding(files: Path) -> None:
    (model,) = files.glob("foreign-tflite-float32/model.tflite")
    bare = files / "bare.tflite"
    bare.write_bytes(model.read_bytes())
    how = Options(
        dataset="scenes",
        limit=8,
        rounds=0,
        allow_chance=True,
        reference=files / "foreign.onnx",
        preprocessing="unit",
    )
    with pytest.raises(InvalidDataError, match="pass --decoding yolov8"):
        compare([bare], how)
    (result,) = compare([bare], replace(how, decoding="yolov8#max_boxes=20")).artifacts
    assert result.metrics["matched50"].value == 100
    (artifact,) = files.glob("foreign-onnx-float32")  # as a reference it says it for the file
    (again,) = compare([bare], replace(how, reference=artifact, preprocessing=None)).artifacts
    assert again.metrics["matched50"].value == 100
    assert again.metrics["map"].value == result.metrics["map"].value


def test_export_refuses_a_decoding_that_does_not_fit(files: Path) -> None:
    for word, error, said in (
        ("detr", InvalidDataError, r"expected outputs .N, A, 4. and"),
        ("yolo", InvalidOptionError, "did you mean"),
    ):
        with pytest.raises(error, match=said):
            export(
                files / "foreign.onnx",
                target="onnx",
                precision="float32",
                preprocessing="unit",
                decoding=word,
                out=files / "refused",
            )
    with pytest.raises(InvalidDataError, match="nothing says how the outputs become boxes"):
        export(
            files / "foreign.onnx",
            target="onnx",
            precision="float32",
            preprocessing="unit",
            task="detection",
            out=files / "refused",
        )
    assert not (files / "refused").exists()
