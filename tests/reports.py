"""Reports of a detector and of a segmentation network, built of the real records."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.evaluation.changes import png
from edgekit.records.fidelity import Channel, Fidelity
from edgekit.records.predictions import (
    Box,
    BoxChanges,
    BoxPicture,
    Confusion,
    Curve,
    MaskChanges,
    MaskPicture,
    pack_classes,
)
from edgekit.records.results import ArtifactResult, Data, Environment, Measurement, Report, Runtime

COUNT = 500
CLASSES = ("t-shirt/top", "bag & <b>", "red car", "ankle boot")
#: The same behind a class of what is no object.
PIXELS = ("background", *CLASSES)


def measured(value: float, unit: str = "%", spread: float | None = None) -> Measurement:
    if spread is None:
        return Measurement(value, unit, COUNT)
    return Measurement(value, unit, COUNT, value - spread, value + spread, "bootstrap 95 %")


def result(name: str, metrics: dict[str, Measurement], **others: Any) -> ArtifactResult:
    form = "onnx" if "onnx" in name else "tflite" if "tflite" in name else "keras"
    return ArtifactResult(
        name=name,
        path=f"build/{name}",
        format=form,
        precision="int8" if "int8" in name else "float32",
        sha256="f10a7" if name == "m" else "00",
        runtime=Runtime("ort" if form == "onnx" else "litert", "CPU", 1),
        metrics=metrics,
        **others,
    )


def report(reference: ArtifactResult, *artifacts: ArtifactResult, **changes: Any) -> Report:
    return Report(
        **{
            "model_id": "m",
            "data": Data("scenes/test", "da7a", COUNT, CLASSES),
            "environment": Environment("cpu", ("avx2",), 2, 1, "Linux", {}, "cpu [avx2]"),
            "reference": reference,
            "artifacts": artifacts,
            "created": "2026-12-01T00:00:00+00:00",
            "command": "python -m edgekit.compare build/m-* --out report.json",
            "settings": {"threads": 1, "bound": 0.5, "task": "detection"},
            **changes,
        }
    )


def _times(ratio: float, size: float) -> dict[str, Measurement]:
    return {
        "size": Measurement(size, "bytes", 1),
        "latency_p50": Measurement(4 * ratio, "ms", 200),
        "latency_ratio": Measurement(ratio, "x", 200, ratio - 0.02, ratio + 0.02, "bootstrap"),
    }


def of_detector(
    value: float, change: float | None = None, spread: float = 0.3, **more: Measurement
) -> dict[str, Measurement]:
    """Metrics of a detector; those against the float model where ``change`` is given."""
    metrics = {
        "map": measured(value, spread=1.5),
        "map50": measured(value + 25, spread=1.0),
        "map75": measured(value + 8),
        "map_small": measured(value - 20),
        "map_medium": measured(value + 2),
        "map_large": measured(value + 9),
        **{f"map50:{name}": measured(value + 20 + i) for i, name in enumerate(CLASSES)},
        "sqnr": measured(25.1, "dB"),
        "sqnr_centred": measured(24.0, "dB"),
        **_times(0.6 if change is not None else 1.0, 1.2e6),
    }
    if change is not None:
        metrics |= {
            "map_change": measured(change, "points", spread),
            "map50_change": measured(change / 2, "points", spread),
            "matched50": measured(97.3),
            "matched90": measured(81.2),
            "score_error": measured(2.1, "points"),
        }
    return metrics | more


def of_segmentation(
    value: float, change: float | None = None, spread: float = 0.3, **more: Measurement
) -> dict[str, Measurement]:
    """The same of a segmentation network."""
    metrics = {
        "miou": measured(value, spread=0.8),
        "pixel_accuracy": measured(value + 8),
        **{f"iou:{name}": measured(value - 3 * i) for i, name in enumerate(PIXELS)},
        "sqnr": measured(25.1, "dB"),
        "sqnr_centred": measured(24.0, "dB"),
        **_times(0.6 if change is not None else 1.0, 1.2e6),
    }
    if change is not None:
        metrics |= {
            "miou_change": measured(change, "points", spread),
            "pixel_agreement": measured(98.7),
        }
    return metrics | more


def close(name: str, *, dead: bool = False) -> tuple[Fidelity, ...]:
    channels = (Channel(1, 0, 1.0),) if dead else ()
    return (Fidelity(name, COUNT, 24.0, 24.0, dead=channels, dead_count=len(channels)),)


def picture(seed: int, height: int = 96, width: int = 128) -> npt.NDArray[np.uint8]:
    """RGB of a grey gradient with three bright areas."""
    rows, columns = np.mgrid[:height, :width]
    grey = (40 + 60 * rows / height + 30 * columns / width).astype(np.float64)
    pixels = np.repeat(grey[:, :, None], 3, axis=2)
    for i, (left, top, right, bottom) in enumerate(places(seed)):
        area = np.s_[
            int(top * height) : int(bottom * height), int(left * width) : int(right * width)
        ]
        pixels[area] = np.roll([200, 140, 90], i)
    return pixels.astype(np.uint8)


def places(seed: int) -> list[tuple[float, float, float, float]]:
    rng = np.random.default_rng(seed)
    corners = rng.uniform(0.02, 0.6, (3, 2))
    sizes = rng.uniform(0.15, 0.38, (3, 2))
    return [(x, y, x + w, y + h) for (x, y), (w, h) in zip(corners, sizes, strict=True)]


def png_text(pixels: npt.NDArray[np.uint8]) -> str:
    return base64.b64encode(png(pixels)).decode("ascii")


def boxes(count: int = 6) -> BoxChanges:
    pictures = []
    for i in range(count):
        right = [Box(*place, n) for n, place in enumerate(places(i))]
        before = [Box(b.left, b.top, b.right, b.bottom, b.number, 0.95 - n / 10)
                  for n, b in enumerate(right)]  # fmt: skip
        now = [
            Box(b.left + 0.02, b.top, b.right + 0.02, b.bottom, b.number, 0.8) for b in before[:2]
        ]
        now.append(Box(-0.05, 0.7, 0.3, 1.02, 3, 0.31, alone=True))
        lost = Box(*places(i)[2], 2, 0.75, alone=True)
        pictures.append(
            BoxPicture(11 * i, 640, 480, (*before[:2], lost), tuple(now), tuple(right), 1, 1,
                       "" if i == 4 else png_text(picture(i)))
        )  # fmt: skip
    return BoxChanges(37, 29, 21, 0.3, tuple(pictures))


def masks(count: int = 6) -> MaskChanges:
    pictures = []
    for i in range(count):
        height, width = 96, 128
        right = np.zeros((height, width), np.uint8)
        for n, (left, top, far, bottom) in enumerate(places(i)):
            right[
                int(top * height) : int(bottom * height), int(left * width) : int(far * width)
            ] = n + 1
        before, now = right.copy(), np.roll(right, 3, axis=1)
        right[:2] = 255
        now[60:70, 40:60] = 4
        pictures.append(
            MaskPicture(7 * i, width, height, pack_classes(before), pack_classes(now),
                        pack_classes(right), 90.0 + i, "" if i == 4 else png_text(picture(i)))
        )  # fmt: skip
    return MaskChanges(412, tuple(pictures))


def curves(fall: float) -> tuple[Curve, ...]:
    recall = np.linspace(0, 1, 101)
    made = []
    for i in range(len(CLASSES)):
        precision = np.clip(1 - (recall ** (fall + i)) * 0.7, 0, 1)
        precision[recall > 0.97 - 0.02 * i] = 0
        made.append(Curve(i, 150 + 40 * i, tuple(map(float, recall)), tuple(map(float, precision))))
    return tuple(made)


def confusion() -> Confusion:
    rng = np.random.default_rng(0)
    counts = rng.integers(0, 4000, (5, 5)) + np.diag([2_000_000, 90_000, 80_000, 70_000, 60_000])
    return Confusion(tuple(tuple(map(int, row)) for row in counts))


def detector(**changes: Any) -> Report:
    """A detector with a good and a bad deployable, and one whose scores are all 0."""
    float_model = result("m", of_detector(62.0), curves=curves(6))
    return report(
        float_model,
        result("m-tflite-int8", of_detector(61.9, -0.1, 0.2), fidelity=close("scores"),
               box_changes=boxes(), curves=curves(5.9)),
        result("m-onnx-int8", of_detector(58.8, -3.2, 0.8), fidelity=close("scores"),
               box_changes=BoxChanges(0, 0, 0, 0.3), curves=curves(4)),
        result("m-tflite-float32", of_detector(62.0, 0.0, 0.0), fidelity=close("scores"),
               curves=curves(6)),
        **changes,
    )  # fmt: skip


def segmentation(**changes: Any) -> Report:
    float_model = result("m", of_segmentation(88.0), confusion=confusion())
    return report(
        float_model,
        result("m-tflite-int8", of_segmentation(87.9, -0.1, 0.2), fidelity=close("logits"),
               mask_changes=masks(), confusion=confusion()),
        result("m-onnx-int8", of_segmentation(85.1, -2.9, 0.8), fidelity=close("logits"),
               mask_changes=MaskChanges(0), confusion=confusion()),
        **{"data": Data("scenes/test", "da7a", COUNT, PIXELS),
           "settings": {"threads": 1, "bound": 0.5, "task": "segmentation"}, **changes},
    )  # fmt: skip
