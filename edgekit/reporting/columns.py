"""Columns of the page: title, unit, format and meaning of each metric."""

from __future__ import annotations

from collections.abc import Mapping

from edgekit.records.results import OF_FUNCTION

#: Metric: column title, unit, format, factor.
COLUMNS: dict[str, tuple[str, str, str, float]] = {
    "top1": ("top-1", "%", ".2f", 1),
    "top5": ("top-5", "%", ".2f", 1),
    "agreement": ("agrees", "%", ".2f", 1),
    "top1_change": ("change", "points", "+.2f", 1),
    "mcnemar_p": ("p", "McNemar", ".3f", 1),
    "images_needed": ("needs", "images", ",.0f", 1),
    "kl": ("KL", "nats", ".1e", 1),
    "r2": ("R²", "%", ".2f", 1),
    "r2_change": ("change of R²", "points", "+.2f", 1),
    "truth_mae": ("MAE", "unit", ".3g", 1),
    "truth_mse": ("MSE", "unit²", ".3g", 1),
    "map": ("mAP", "%", ".2f", 1),
    "map50": ("mAP50", "%", ".2f", 1),
    "map75": ("mAP75", "%", ".2f", 1),
    "map_small": ("mAP small", "%", ".2f", 1),
    "map_medium": ("mAP medium", "%", ".2f", 1),
    "map_large": ("mAP large", "%", ".2f", 1),
    "map_change": ("change of mAP", "points", "+.2f", 1),
    "map50_change": ("change of mAP50", "points", "+.2f", 1),
    "matched50": ("same boxes", "% at IoU 0.5", ".2f", 1),
    "matched90": ("same boxes", "% at IoU 0.9", ".2f", 1),
    "score_error": ("score error", "points", ".2f", 1),
    "miou": ("mIoU", "%", ".2f", 1),
    "pixel_accuracy": ("right pixels", "%", ".2f", 1),
    "miou_change": ("change of mIoU", "points", "+.2f", 1),
    "pixel_agreement": ("same pixels", "%", ".2f", 1),
    "sqnr": ("SQNR", "dB", ".1f", 1),
    "sqnr_centred": ("SQNR of what varies", "dB", ".1f", 1),
    "mse": ("distance²", "unit²", ".3g", 1),
    "max_error": ("largest error", "unit", ".3g", 1),
    "max_error_share": ("largest error", "% of range", ".2g", 1),
    "size": ("size", "MB", ".2f", 1e-6),
    "arena": ("arena", "kB", ".1f", 1e-3),
    "arena_persistent": ("persistent arena", "kB", ".1f", 1e-3),
    "flash": ("flash", "kB", ".1f", 1e-3),
    "sram": ("SRAM of the NPU", "kB", ".1f", 1e-3),
    "npu_share": ("on the NPU", "% of operators", ".0f", 1),
    "npu_cycles": ("NPU cycles", "thousands, estimated", ",.0f", 1e-3),
    "peak_memory": ("peak memory", "MB", ".0f", 1e-6),
    "load_time": ("load", "ms", ".1f", 1),
    "latency_p50": ("p50", "ms", ".3f", 1),
    "latency_p90": ("p90", "ms", ".3f", 1),
    "latency_p99": ("p99", "ms", ".3f", 1),
    "latency_ratio": ("ratio", "x float32", ".2f", 1),
    "energy": ("energy", "mJ per sample", ".3f", 1),
}
#: Metric: what it says, for those who do not know it.
MEANINGS = {
    "top1": "Share of images whose most probable class is the right one; below it the 95 % "
    "interval (Wilson)",
    "top5": "Share of images with the right class among the five most probable",
    "agreement": "Share of images with the same prediction as the float model, right or wrong",
    "top1_change": "Top-1 minus the top-1 of the float model; below it the 95 % interval "
    "from the paired images (Agresti and Min 2005)",
    "r2": "Share of the variance of the labels that is explained; mean over the numbers of a "
    "sample",
    "r2_change": "R² minus the R² of the float model; below it the 95 % interval from the paired "
    "samples",
    "truth_mae": "Mean absolute difference from the labels",
    "truth_mse": "Mean squared difference from the labels",
    "images_needed": "Images with which a loss of the size that matters is found",
    "energy": "Energy of the device for one sample",
    "mcnemar_p": "How often chance alone makes a difference as large as this one (exact McNemar "
    "test on the same images); below 0.05 it is taken for real",
    "kl": "Distance of the probabilities from those of the float model; 0: they are equal",
    "map": "Mean over the classes and over IoU 0.5, 0.55 … 0.95 of the average precision (COCO); "
    "below it the 95 % interval",
    "map50": "The same at IoU 0.5: a box is right if it covers its object that well",
    "map75": "The same at IoU 0.75",
    "map_small": "mAP of objects of less than 32² pixels",
    "map_medium": "mAP of objects of 32² to 96² pixels",
    "map_large": "mAP of objects of more than 96² pixels",
    "map_change": "mAP minus the mAP of the float model; below it the 95 % interval from the "
    "paired images",
    "map50_change": "mAP at IoU 0.5 minus that of the float model; below it the 95 % interval from "
    "the paired images",
    "matched50": "Share of the boxes of the float model that are found too: same class, IoU of 0.5 "
    "or more",
    "matched90": "Share of the boxes of the float model that are found too: same class, IoU of 0.9 "
    "or more",
    "score_error": "Mean difference of the scores of boxes that both find",
    "miou": "Mean over the classes of pixels that are right, of all that are or should be of the "
    "class; below it the 95 % interval",
    "pixel_accuracy": "Share of the pixels with the right class",
    "miou_change": "mIoU minus the mIoU of the float model; below it the 95 % interval from the "
    "paired images",
    "pixel_agreement": "Share of the pixels with the same class as the float model, right or wrong",
    "metric": "What a function of the user computes",
    "sqnr": "Power of the outputs over the power of their error; with 10 dB more, the error power "
    "is a tenth",
    "sqnr_centred": "SQNR of the values that vary between the samples: their mean is subtracted "
    "before. With several outputs, the lowest",
    "mse": "Mean squared difference from the float model's numbers, in their own unit",
    "max_error": "Largest difference of a number from the float model's, in its own unit. With "
    "several outputs, that of the output with the largest",
    "max_error_share": "Largest difference of a number from the float model's, in % of the range "
    "of its output. With several outputs, that of the output with the largest",
    "size": "Bytes of the model file",
    "arena": "RAM that TensorFlow Lite Micro takes for the model on a 64-bit CPU",
    "arena_persistent": "Bytes of the arena that activations do not share",
    "flash": "Bytes of the model as a constant, without the code of kernels",
    "sram": "SRAM that the model compiled by Vela takes",
    "npu_share": "Share of the operators that the NPU computes",
    "npu_cycles": "Cycles of the NPU for one sample, as Vela estimates them; nothing was run on it",
    "peak_memory": "Highest memory of the process that ran the model",
    "load_time": "Time from opening the file until it is ready for the first image",
    "latency_p50": "Time for one sample: half of the samples were faster",
    "latency_p90": "Time for one sample: nine of ten samples were faster",
    "latency_p99": "Time for one sample: 99 of 100 samples were faster",
    "latency_ratio": "Time divided by the time of float32 in the same runtime; below 1 is faster",
}


def column(name: str) -> tuple[str, str, str, float]:
    """Title, unit, format and factor of a metric; ``sqnr:NAME`` is the SQNR of an output."""
    if name.startswith(OF_FUNCTION):
        return (name.removeprefix(OF_FUNCTION), "", ".4g", 1)
    kind, colon, output = name.partition(":")
    title, unit, form, factor = COLUMNS[kind]
    return (f"{title} {output}" if colon else title, unit, form, factor)


def head(name: str, meanings: Mapping[str, str]) -> tuple[str, str, str]:
    """Title, unit and meaning of a metric, for the head of its column."""
    title, unit, _, _ = column(name)
    return title, unit, meanings[name.partition(":")[0]]
