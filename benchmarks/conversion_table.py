"""Which models convert to what.

    python benchmarks/conversion_table.py --out docs/reference/conversion.md

Builds each model with random weights and batch statistics of its own inputs, exports it in every
way, and holds the int8 files against the float one on inputs that were not calibrated with. Each
model is a process of its own with a time limit. Prints one line a model; the last line of stdout is
a JSON document. ``--only NAME`` runs some; ``--merge FILE.json`` takes the others from documents of
earlier runs.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from support_table import SECTION, with_section

from edgekit.base import outputs, words
from edgekit.base.errors import EdgekitError, reason
from edgekit.base.quiet import quiet
from edgekit.data import feeds
from edgekit.export import export
from edgekit.graph import litert, onnx
from edgekit.records.artifact import Artifact
from edgekit.sources import keras as keras_format

WAYS = tuple((t, p) for t in ("tflite", "onnx") for p in ("float32", "float16", "int8"))
CALIBRATION, TEST = 40, 64
SIZE, CLASSES = 96, 100
TORCH = Path(__file__).resolve().parents[1] / "tests" / "data" / "torch"


@dataclass(frozen=True)
class Case:
    """A model in a file, and what it is fed with.

    Attributes:
        path: The file or folder.
        preprocessing: As ``--preprocessing`` takes it.
        arrays: By input name, or ``x``; the first are for calibration, the rest for the test.
        calibration: How many are for calibration.
    """

    path: Path
    preprocessing: str
    arrays: dict[str, np.ndarray]
    calibration: int = CALIBRATION


def images(count: int, size: int = SIZE) -> np.ndarray:
    """Smooth random pictures of different contrast, uint8 ``[N, size, size, 3]``."""
    from scipy import ndimage

    random = np.random.default_rng(7)
    found = np.empty((count, size, size, 3), np.uint8)
    for i in range(count):
        cells = int(random.integers(3, 13))
        field = random.normal(0, random.uniform(20, 90), (cells, cells, 3)) + random.uniform(
            60, 190
        )
        field = ndimage.zoom(field, (size / cells, size / cells, 1), order=1)[:size, :size]
        found[i] = np.clip(field + random.normal(0, 4, field.shape), 0, 255)
    return found


def settle(model: Any, inputs: Any) -> None:
    """Give batch normalisation the statistics of these inputs."""
    norms = [layer for layer in model.layers if type(layer).__name__ == "BatchNormalization"]
    for layer in norms:
        layer.momentum = 0.0
    model(inputs, training=True)
    for layer in norms:
        layer.momentum = 0.99


def application(name: str, preprocessing: str) -> Callable[[Path], Case]:
    """A model of ``tf_keras.applications``."""

    def make(folder: Path) -> Case:
        keras = keras_format.tf_keras()
        keras.utils.set_random_seed(0)
        build = getattr(keras.applications, name)
        model = build(weights=None, input_shape=(SIZE, SIZE, 3), classes=CLASSES)
        pixels = images(CALIBRATION + TEST)
        values = pixels[:CALIBRATION].astype(np.float32)
        settle(model, values if preprocessing == "none" else values / 127.5 - 1)
        model.save(folder / f"{name}.keras")
        return Case(folder / f"{name}.keras", preprocessing, {"x": pixels})

    return make


def keywords(folder: Path) -> Case:
    """A 1-D convolutional net on one second of sound at 8 kHz."""
    keras = keras_format.tf_keras()
    keras.utils.set_random_seed(0)
    layers = keras.layers
    sound = keras.Input((8000, 1), name="sound")
    x = sound
    for filters, stride in ((16, 8), (32, 4), (32, 2)):
        x = layers.Conv1D(filters, 9, strides=stride, padding="same", use_bias=False)(x)
        x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.SeparableConv1D(48, 5, padding="same", activation="relu")(x)
    x = layers.GlobalAveragePooling1D()(layers.MaxPooling1D(2)(x))
    model = keras.Model(sound, layers.Dense(12, activation="softmax", name="word")(x))
    waves = sounds(CALIBRATION + TEST)
    settle(model, waves[:CALIBRATION])
    model.save(folder / "keywords.keras")
    return Case(folder / "keywords.keras", "none", {"x": waves})


def sounds(count: int) -> np.ndarray:
    """Tones with noise, float32 ``[N, 8000, 1]`` in [-1, 1]."""
    random = np.random.default_rng(3)
    time_axis = np.arange(8000) / 8000
    tones = np.sin(2 * np.pi * random.uniform(100, 3000, (count, 1)) * time_axis)
    noisy = random.uniform(0.1, 1, (count, 1)) * tones + random.normal(0, 0.05, (count, 8000))
    return np.clip(noisy, -1, 1).astype(np.float32)[..., None]


def two_inputs(folder: Path) -> Case:
    """A picture and a vector in, classes and a number out."""
    keras = keras_format.tf_keras()
    keras.utils.set_random_seed(0)
    layers = keras.layers
    image, facts = keras.Input((32, 32, 3), name="image"), keras.Input((6,), name="facts")
    x = layers.ReLU(6.0)(layers.BatchNormalization()(layers.Conv2D(16, 3, strides=2)(image)))
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(32, 3, activation="relu")(x))
    x = layers.Concatenate()([x, layers.Dense(16, activation="relu")(facts)])
    x = layers.Dense(32, activation="relu")(x)
    heads = [layers.Dense(10, name="kind")(x), layers.Dense(1, name="price")(x)]
    model = keras.Model([image, facts], heads)
    count = CALIBRATION + TEST
    pixels = images(count, 32)
    numbers = np.random.default_rng(4).normal(0, 1, (count, 6)).astype(np.float32)
    settle(model, [pixels[:CALIBRATION] / np.float32(255), numbers[:CALIBRATION]])
    model.save(folder / "two_inputs.keras")
    return Case(folder / "two_inputs.keras", "unit", {"image": pixels, "facts": numbers})


def regression(folder: Path) -> Case:
    """A Keras 3 perceptron on a table, three numbers out."""
    keras = keras_format.keras_3()
    keras.utils.set_random_seed(0)
    layers = keras.layers
    row = keras.Input((13,), name="row")
    x = layers.Dense(64, activation="gelu")(row)
    x = layers.Dense(64, activation="silu")(layers.LayerNormalization()(x))
    keras.Model(row, layers.Dense(3, name="answer")(x)).save(folder / "regression.keras")
    numbers = np.random.default_rng(5).normal(0, 1, (CALIBRATION + TEST, 13)).astype(np.float32)
    return Case(folder / "regression.keras", "none", {"row": numbers})


def tokens(folder: Path) -> Case:
    """Words as integers through an embedding and an unrolled LSTM."""
    keras = keras_format.tf_keras()
    keras.utils.set_random_seed(0)
    layers = keras.layers
    words = keras.Input((12,), name="words", dtype="int32")
    x = layers.LSTM(16, unroll=True)(layers.Embedding(200, 16)(words))
    keras.Model(words, layers.Dense(4, name="topic")(x)).save(folder / "tokens.keras")
    given = np.random.default_rng(6).integers(0, 200, (CALIBRATION + TEST, 12)).astype(np.int32)
    return Case(folder / "tokens.keras", "none", {"words": given})


def segmentation(folder: Path) -> Case:
    """A small U-Net as a SavedModel of Keras 3: a score for each pixel."""
    keras = keras_format.keras_3()
    keras.utils.set_random_seed(0)
    layers = keras.layers
    image = keras.Input((64, 64, 3), name="image")
    a = layers.LeakyReLU(negative_slope=0.1)(layers.Conv2D(16, 3, padding="same")(image))
    b = layers.Conv2D(32, 3, padding="same", activation="relu")(layers.MaxPooling2D()(a))
    c = layers.Conv2DTranspose(16, 3, strides=2, padding="same", activation="relu")(b)
    d = layers.UpSampling2D(interpolation="bilinear")(layers.AveragePooling2D(2)(c))
    x = layers.Conv2D(16, 3, padding="same", activation="relu")(layers.Concatenate()([a, c, d]))
    model = keras.Model(image, layers.Conv2D(4, 1, name="map")(x))
    model.export(str(folder / "segmentation"), verbose=False)
    return Case(folder / "segmentation", "unit", {"x": images(CALIBRATION + TEST, 64)})


def torch_file(name: str, *inputs: str) -> Callable[[Path], Case]:
    """A file that PyTorch wrote; see ``tests/data/torch/make.py``."""

    def make(folder: Path) -> Case:
        for path in TORCH.glob(f"{name}.onnx*"):
            shutil.copy(path, folder)
        with np.load(TORCH / "answers.npz") as file:
            arrays = {key: file[key] for key in inputs}
        return Case(folder / f"{name}.onnx", "symmetric", arrays, 24)

    return make


CASES: dict[str, Callable[[Path], Case]] = {
    "MobileNetV2": application("MobileNetV2", "symmetric"),
    "MobileNetV3Small": application("MobileNetV3Small", "none"),
    "EfficientNetV2B0": application("EfficientNetV2B0", "none"),
    "ResNet50": application("ResNet50", "symmetric"),
    "DenseNet121": application("DenseNet121", "symmetric"),
    "NASNetMobile": application("NASNetMobile", "symmetric"),
    "keywords": keywords,
    "two inputs": two_inputs,
    "regression": regression,
    "tokens": tokens,
    "segmentation": segmentation,
    "torch mobile": torch_file("mobile", "image"),
    "torch attention": torch_file("attention", "image"),
    "torch segments": torch_file("segments", "image"),
    "torch unfolded": torch_file("unfolded", "image"),
    "torch both": torch_file("both", "image", "facts"),
    "torch words": torch_file("words", "tokens"),
    "torch sound": torch_file("sound", "tone"),
}


def run_one(name: str, folder: Path, correction: str) -> None:
    """Print a JSON line a way; called in a process of its own."""
    with quiet():
        case = CASES[name](folder)
    found = folder / "calibration.npz"
    np.savez(found, **{key: values[: case.calibration] for key, values in case.arrays.items()})
    test = {key: values[case.calibration :] for key, values in case.arrays.items()}
    floats: dict[str, dict[str, np.ndarray]] = {}
    for target, precision in WAYS:
        started = time.perf_counter()
        result: dict[str, Any] = {"target": target, "precision": precision}
        try:
            with quiet():
                written = export(
                    case.path,
                    target=target,
                    precision=precision,
                    preprocessing=case.preprocessing,
                    calibration=str(found) if precision == "int8" else None,
                    correction=correction if precision == "int8" else "auto",
                    out=folder / f"{target}-{precision}",
                )
            result["seconds"] = time.perf_counter() - started
            answers = run(written, test)
            floats.setdefault(target, answers) if precision == "float32" else None
            if precision == "int8" and target in floats:
                result.update(distance(floats[target], answers))
            assert written.manifest.execution is not None
            result["floats"] = len(written.manifest.execution.floats)
            told = [n for n in written.manifest.notes if "differs from the float model" in n]
            result["told"] = told[0] if told else ""
        except EdgekitError as exc:
            result["failed"] = str(exc).replace(f"{case.path}: ", "").replace(f"{folder}/", "")
            result["failed"] = result["failed"].replace("python -m edgekit.", "edgekit ")
        except Exception as exc:  # a fault of edgekit's: said as such
            result["failed"] = f"{type(exc).__name__}: {reason(exc)}"
            result["fault"] = True
        print(json.dumps(result), flush=True)


def run(written: Artifact, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Real answers of an artifact by output name."""
    manifest = written.manifest
    signature = manifest.signature
    names = [spec.name for spec in signature.inputs]
    if set(arrays) == {"x"}:
        arrays = {names[0]: arrays["x"]}
    feed = {}
    for spec in signature.inputs:
        values = arrays[spec.name]
        if values.dtype.kind == "f" or values.dtype == np.uint8:
            values = manifest.preprocessing.apply(values)
        feed[spec.name] = spec.quantize(spec.arrange(values))
    ends = [spec.name for spec in signature.outputs]
    if manifest.format == "onnx":
        session = onnx.session(written.model_path)
        parts = [session.run(ends, each) for each in feeds.batches(feed, signature.inputs)]
        got = dict(zip(ends, map(np.concatenate, zip(*parts, strict=True)), strict=True))
    else:
        runner = litert.interpreter(written.model_path).get_signature_runner(litert.SIGNATURE_KEY)
        each = [
            runner(**{name: values[i : i + 1] for name, values in feed.items()})
            for i in range(feeds.count(feed))
        ]
        got = {name: np.concatenate([one[name] for one in each]) for name in ends}
    return {spec.name: spec.dequantize(got[spec.name]) for spec in signature.outputs}


def distance(exact: dict[str, np.ndarray], found: dict[str, np.ndarray]) -> dict[str, float]:
    """Worst SQNR of the outputs in dB, and % of the same largest entries where there are some."""
    noise, same = [], []
    for name, values in exact.items():
        error = float(((values.astype(np.float64) - found[name]) ** 2).sum())
        signal = float((values.astype(np.float64) ** 2).sum())
        noise.append(float(10 * np.log10(signal / error)) if error else 200.0)
        if values.shape[-1] > 1:
            agreed = values.argmax(axis=-1) == found[name].argmax(axis=-1)
            same.append(100 * float(agreed.mean()))
    return {"sqnr": min(noise), **({"agreement": min(same)} if same else {})}


def collect(name: str, seconds: float, correction: str) -> list[dict[str, Any]]:
    """All ways of one model, from a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--one", name, "--folder", folder]
        started = time.perf_counter()
        said, status = "", 0
        try:
            done = subprocess.run(
                [*command, "--correction", correction],
                capture_output=True,
                text=True,
                timeout=seconds,
            )
            said, status, errors = done.stdout, done.returncode, done.stderr
        except subprocess.TimeoutExpired as exc:
            raw = exc.stdout or b""
            said, status, errors = (raw if isinstance(raw, str) else raw.decode()), 124, ""
    results = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    for target, precision in WAYS[len(results) :]:
        why = f"not done in {seconds:.0f} s" if status == 124 else "the process died"
        if status not in (0, 124):
            why += f": {errors.strip().splitlines()[-1] if errors.strip() else status}"
        results.append({"target": target, "precision": precision, "failed": why, "fault": True})
    taken = time.perf_counter() - started
    print(f"{name}: {sum('failed' not in r for r in results)} of {len(WAYS)} in {taken:.0f} s")
    return results


def table(found: dict[str, list[dict[str, Any]]], correction: str) -> str:
    """The page as Markdown."""
    head = [f"{target} {precision}" for target, precision in WAYS]
    lines = [
        "# What converts",
        "",
        "By `python benchmarks/conversion_table.py --out docs/reference/conversion.md",
        f"--correction {correction}`: random weights,",
        f"{SIZE}x{SIZE} pictures where nothing else is said, {CALIBRATION} samples to calibrate",
        f"with and {TEST} others to test; 16x16, 24 and 12 for the files that PyTorch wrote, of",
        "`tests/data/torch`. A cell has the seconds of the export; int8 cells also",
        "SQNR in dB of the worst output and % of the same largest entry, against float32 of the",
        "same format, and `f N` where N operators compute in float. Random networks amplify",
        "rounding more than trained ones: the results compare formats and precisions, not tools.",
        "",
        "| model | " + " | ".join(head) + " |",
        "|" + "---|" * (len(WAYS) + 1),
    ]
    notes: dict[str, list[str]] = {}
    for name, results in found.items():
        cells = []
        for result in results:
            where = f"{name}, {result['target']} {result['precision']}"
            if "failed" in result:
                notes.setdefault(result["failed"], []).append(where)
                cells.append(f"no [{list(notes).index(result['failed']) + 1}]")
                continue
            cell = f"{result['seconds']:.1f} s"
            if result.get("told"):
                notes.setdefault(result["told"], []).append(where)
                cell += f" [{list(notes).index(result['told']) + 1}]"
            if "sqnr" in result:
                cell += f", {result['sqnr']:.1f} dB"
            if "agreement" in result:
                cell += f", {result['agreement']:.0f} %"
            if result.get("floats"):
                cell += f", f {result['floats']}"
            cells.append(cell)
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    for i, (why, where) in enumerate(notes.items(), 1):
        lines += [""] * (i == 1)
        more = f" and {len(where) - 1} others" if len(where) > 1 else ""
        lines.append(f"{i}. {where[0]}{more}: {why}")
    return "\n".join(lines).rstrip() + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument(
        "--merge", nargs="+", type=Path, default=[], help="JSON documents of earlier runs"
    )
    parser.add_argument("--out", type=Path, help="Markdown file")
    parser.add_argument(
        "--seconds", type=words.positive_int, default=600, help="a model at the most"
    )
    parser.add_argument("--correction", choices=("auto", "none"), default="auto")
    parser.add_argument("--one", choices=CASES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        run_one(options.one, options.folder, options.correction)
        return 0
    found = {name: collect(name, options.seconds, options.correction) for name in options.only}
    known = {}
    for path in options.merge:
        known.update(json.loads(path.read_text().strip().splitlines()[-1]))
    found = {name: {**known, **found}[name] for name in CASES if name in {**known, **found}}
    if options.out:
        page = table(found, options.correction)
        before = options.out.read_text(encoding="utf-8") if options.out.is_file() else ""
        if SECTION in before:  # of the other table
            page = with_section(page, SECTION + before.split(SECTION, 1)[1])
        outputs.write_text(options.out, page, force=True)
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
