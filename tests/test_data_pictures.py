"""Pictures of the user's own: every adapter on real files, and what becomes of odd ones."""

from __future__ import annotations

import io
import itertools
import os
import struct
import sys
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Done
from PIL import Image

from edgekit import data
from edgekit.base import cli, schema, words
from edgekit.base.errors import EdgekitError, InvalidDataError, InvalidOptionError
from edgekit.data import decode, tfrecord
from edgekit.data.images import stratified
from edgekit.records.signature import Preprocessing, preprocessing

RANDOM = np.random.default_rng(7)
NOISE = RANDOM.integers(0, 256, (30, 40, 3), dtype=np.uint8)
SAME_SIZE = {"shape": (30, 40, 3)}


def packed(pixels: np.ndarray, format: str = "PNG", mode: str | None = None, **how: Any) -> bytes:
    image = Image.fromarray(pixels)
    stream = io.BytesIO()
    (image.convert(mode) if mode else image).save(stream, format, **how)
    return stream.getvalue()


def file(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def decoded(content: Any, channels: int = 3, background: str = "white") -> np.ndarray:
    return np.asarray(
        decode.upright(decode.opened(content), channels=channels, background=background)
    )


def fitted(pixels: np.ndarray, size: tuple[int, int], word: str) -> np.ndarray:
    image = Image.fromarray(pixels)
    return decode.fit(image, height=size[0], width=size[1], prepare=preprocessing(f"unit#{word}"))


def empty_png(width: int, height: int) -> bytes:
    """A header that promises pixels, and none."""
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"0")),
        (b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 PNG files of 3 classes, 30, 20 and 10, of one colour each."""
    root = tmp_path_factory.mktemp("shapes")
    for name, colour, count in (("red", 0, 30), ("green", 1, 20), ("blue", 2, 10)):
        for i in range(count):
            pixels = RANDOM.integers(0, 60, (14, 14, 3), dtype=np.uint8)
            pixels[..., colour] += 180
            file(root / name / f"{i}.png", packed(pixels))
    return root


# What is stored differently is the same picture.


def test_colours_and_depths() -> None:
    assert (decoded(packed(NOISE)) == NOISE).all()
    grey = NOISE[..., 0]
    assert (decoded(packed(grey)) == grey[..., None]).all()
    assert (decoded(packed(grey), channels=1) == grey).all()
    deep = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    assert (decoded(packed(deep), channels=1) == np.rint(deep / 257)).all()
    palette = Image.fromarray(NOISE).quantize(16)
    stream = io.BytesIO()
    palette.save(stream, "GIF")
    assert (decoded(stream.getvalue()) == np.asarray(palette.convert("RGB"))).all()
    ink = packed(np.full((8, 8, 3), (200, 100, 50), np.uint8), "JPEG", "CMYK", quality=100)
    assert np.abs(decoded(ink).astype(int) - (200, 100, 50)).max() <= 3
    bits = Image.fromarray(grey).convert("1")
    assert set(np.unique(decoded(packed(grey, mode="1")))) <= {0, 255}
    assert (decoded(packed(grey, mode="1"), channels=1) == np.asarray(bits) * 255).all()


@pytest.mark.parametrize(("background", "below"), [("white", 255), ("black", 0), ("grey", 128)])
def test_transparency_lies_on_the_background_that_is_asked_for(background: str, below: int) -> None:
    alpha = np.zeros((30, 40), np.uint8)
    alpha[:10], alpha[10:20] = 255, 51
    found = decoded(packed(np.dstack([NOISE, alpha])), background=background)
    assert (found[:10] == NOISE[:10]).all()
    assert (found[20:] == below).all()
    expected = 0.2 * NOISE[10:20] + 0.8 * below
    assert np.abs(found[10:20] - expected).max() <= 1


def test_exif_turns_pictures() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it a quarter clockwise
    found = decoded(packed(NOISE, exif=exif.tobytes()))
    assert (found == np.rot90(NOISE, -1)).all()


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a picture"),
        (b"<html>", "not a picture"),
        (packed(NOISE, "JPEG")[:400], "."),
        (packed(NOISE)[:-30], "."),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a picture"),
        (empty_png(100_000, 100_000), "more than 89,478,485 pixels"),
        (empty_png(12_000, 12_000), "12,000 x 12,000"),
        (packed(np.zeros((9, 9), np.float32), "TIFF"), "floats"),
        (packed(np.full((9, 9), 1 << 20, np.int32), "TIFF"), "32 bits"),
    ],
)
def test_pictures_that_are_none(content: bytes, message: str) -> None:
    with pytest.raises(decode.PictureError, match=message):
        decoded(content)


@pytest.mark.filterwarnings("ignore")
def test_damaged_pictures_are_pictures_or_left_out() -> None:
    """Whatever a decoder raises on changed bytes is a PictureError, in one line."""
    exif = Image.Exif()
    exif[0x0112] = 6
    whole = [
        packed(NOISE, "JPEG", exif=exif.tobytes()),
        packed(np.dstack([NOISE, NOISE[..., 0]]), exif=exif.tobytes()),
        *(packed(NOISE, format) for format in ("GIF", "BMP", "PPM")),
    ]
    left_out = 0
    for i in range(500):
        content = bytearray(whole[i % len(whole)])
        for _ in range(3):
            content[RANDOM.integers(min(len(content), 200))] = RANDOM.integers(256)
        try:
            assert decoded(bytes(content)).shape[2] == 3
        except decode.PictureError as exc:
            assert "\n" not in str(exc)
            left_out += 1
    assert 100 < left_out < 500


# Resizing says what it does.


def test_methods_on_a_step() -> None:
    """Columns 0 0 255 255 ... at a quarter of their number."""
    step = np.tile(np.repeat([0, 255], 2).astype(np.uint8), 4)[None, :].repeat(16, axis=0)
    found = {
        method: fitted(step, (4, 4), f"resize={method}")[0, :, 0].tolist()
        for method in ("area", "nearest", "bilinear-aliased", "bilinear")
    }
    assert found["area"] == [128] * 4  # (0 + 0 + 255 + 255) / 4
    assert found["nearest"] == [255] * 4
    assert found["bilinear-aliased"] == [128] * 4  # between the second and the third
    assert all(100 < value < 156 for value in found["bilinear"])
    same = fitted(NOISE, (30, 40), "resize=bicubic-aliased")
    assert (same == NOISE).all()


@pytest.mark.parametrize("method", ["bilinear", "bicubic"])
def test_aliased_methods_are_tensorflows(method: str) -> None:
    from edgekit.sources.keras import tensorflow

    tf = tensorflow()
    for size in ((11, 13), (64, 80)):
        theirs = tf.image.resize(NOISE, size, method=method, antialias=False).numpy()
        ours = fitted(NOISE, size, f"resize={method}-aliased").astype(int)
        inner = (slice(3, -3), slice(3, -3))  # TensorFlow's cubic weighs pixels at the edge anew
        # rounding, and TensorFlow's cubic weights come from a table of 1,024
        assert np.abs(ours - np.clip(theirs, 0, 255))[inner].max() <= 0.6


def test_the_crop_is_of_the_shorter_side() -> None:
    wide = RANDOM.integers(0, 256, (64, 128, 3), dtype=np.uint8)
    found = fitted(wide, (28, 28), "crop=0.875")
    whole = np.asarray(Image.fromarray(wide).resize((64, 32), Image.Resampling.BILINEAR))
    assert (found == whole[2:30, 18:46]).all()
    stretched = np.asarray(Image.fromarray(wide).resize((28, 28), Image.Resampling.BILINEAR))
    assert (fitted(wide, (28, 28), "crop=none") == stretched).all()
    with pytest.raises(decode.PictureError, match="too long"):
        fitted(np.zeros((1, 20_000), np.uint8), (224, 224), "crop=1")


# Preprocessing.


def test_words() -> None:
    assert words.split("a:b#c#x=1,y_z=k.2") == ("a:b#c", {"x": "1", "y_z": "k.2"})
    for word in ("plain", "a#b", "a#=1", "a#x=", "#"):
        assert words.split(word) == (word, {})
    assert words.join("a", x=1, y=None) == "a#x=1"
    assert words.join("a#x=1", y=2) == "a#x=1,y=2"
    assert words.join("a") == "a"
    with pytest.raises(InvalidOptionError, match="twice"):
        words.split("a#x=1,x=2")


def test_preprocessing_words() -> None:
    found = preprocessing("symmetric#resize=area,crop=0.875,channels=bgr,class_offset=1")
    assert (found.resize, found.crop, found.channels, found.class_offset) == (
        ("area", 0.875, "bgr", 1)
    )
    assert found.scale == preprocessing("symmetric").scale
    pixels = np.array([[[[0, 127.5, 255]]]]).astype(np.uint8)
    assert np.abs(found.apply(pixels) - [1, 0, -1]).max() < 0.01
    assert schema.from_json(Preprocessing, schema.to_json(found)) == found
    caffe = preprocessing("imagenet-bgr").apply(pixels)
    assert np.allclose(caffe, [255 - 103.939, 127 - 116.779, 0 - 123.68])


@pytest.mark.parametrize(
    "word",
    ["unit#resize=lanczos", "unit#crop=0", "unit#crop=2", "unit#crop=half", "unit#channels=rbg"]
    + ["unit#class_offset=x", "unit#gamma=2", "unit#crop=nan", "unit#crop=1,crop=1"],
)
def test_bad_preprocessing_words(word: str) -> None:
    with pytest.raises(InvalidOptionError):
        preprocessing(word)


def test_manifests_of_before_still_load() -> None:
    from edgekit.records.artifact import Artifact
    from edgekit.sources.float_model import SHIPPED

    assert "resize" not in (SHIPPED / "manifest.json").read_text()
    found = Artifact.load(SHIPPED).manifest.preprocessing
    assert (found.resize, found.crop, found.channels, found.class_offset) == (
        ("bilinear", None, "rgb", 0)
    )


def test_every_runtime_gets_the_same_bytes(tmp_path: Path) -> None:
    """A network that answers its input, in three formats; the hash is that of numpy's tensor."""
    from edgekit.evaluation.recording import inputs_sha256
    from edgekit.runtimes.worker import Job, Worker
    from edgekit.sources import convert
    from edgekit.sources.keras import tf_keras
    from edgekit.writers import onnx_convert

    keras = tf_keras()
    for name, i in itertools.product("ab", range(2)):
        pixels = RANDOM.integers(0, 256, (30 + i, 50, 3), dtype=np.uint8)
        file(tmp_path / "set" / name / f"{i}.jpg", packed(pixels, "JPEG"))
    image = keras.Input((12, 16, 3), name="image")
    model = keras.Model(image, keras.layers.Flatten()(image))
    flatbuffer = convert.from_keras(model)
    model.save(tmp_path / "m.keras")
    (tmp_path / "m.tflite").write_bytes(flatbuffer)
    (tmp_path / "m.onnx").write_bytes(onnx_convert.from_tflite(flatbuffer).SerializeToString())
    prepare = preprocessing("imagenet-rgb#crop=0.875,channels=bgr,resize=bicubic-aliased")
    found = data.load(f"{tmp_path}/set", "test", shape=(12, 16, 3), prepare=prepare)
    expected = inputs_sha256(found.images, prepare)
    for kind in ("keras", "tflite", "onnx"):
        job = Job(kind, tmp_path / f"m.{kind}", kind, prepare, 1, {})
        with Worker(job) as worker:
            got = worker.outputs(np.array(found.images)).reshape(found.images.shape)
        assert inputs_sha256(got, prepare) == expected, kind


# Adapters.


def test_a_folder(shapes: Path) -> None:
    for word in (f"folder:{shapes}", str(shapes)):
        found = data.load(word, "test", shape=(14, 14, 3))
        assert found.class_names == ("blue", "green", "red")
        assert Counter(found.labels.tolist()) == {2: 30, 1: 20, 0: 10}
        assert isinstance(found.images, np.memmap)
        brightest = found.images.mean(axis=(1, 2)).argmax(axis=1)
        assert (brightest == 2 - found.labels).all()
        assert found.warnings == ()
    assert len(set(found.labels[:12].tolist())) > 1  # the first N are of all classes
    again = data.load(f"folder:{shapes}", "test", shape=(14, 14, 3), limit=12)
    assert (again.images == found.images[:12]).all()
    grey = data.load(f"folder:{shapes}#size=7", "test").images.shape
    assert grey == (60, 7, 7, 3)


def test_a_folder_without_classes_calibrates(tmp_path: Path) -> None:
    for i in range(3):
        file(tmp_path / f"{i}.png", packed(NOISE))
    assert data.load(str(tmp_path), "calibration", **SAME_SIZE).labels is None
    with pytest.raises(InvalidDataError, match="class folders"):
        data.load(str(tmp_path), "test", **SAME_SIZE)


def test_what_is_left_out_is_counted_and_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file(tmp_path / "a" / "good.png", packed(NOISE))
    file(tmp_path / "a" / "cut.jpg", packed(NOISE, "JPEG")[:300])
    file(tmp_path / "a" / "notes.txt", b"")
    file(tmp_path / "b" / "twin.PNG", packed(NOISE, compress_level=1))
    file(tmp_path / "b" / ".hidden.png", b"")
    file(tmp_path / "b" / "clear.png", packed(np.dstack([NOISE, NOISE[..., 0]])))
    (tmp_path / "b" / "gone.png").symlink_to("nowhere")
    os.mkfifo(tmp_path / "b" / "pipe.png")
    found = data.load(str(tmp_path), "test", **SAME_SIZE, progress=cli.reporter)
    assert len(found) == 3
    left_out, broken, twins = found.warnings
    assert left_out.startswith("2 files are not pictures") and "a/notes.txt, b/pipe.png" in left_out
    assert broken.startswith("2 of 5 pictures cannot be decoded")
    assert "b/gone.png (No such file" in broken and "a/cut.jpg (" in broken
    assert twins.startswith("1 exact duplicates have another label")
    assert "a/good.png" in twins and "b/twin.PNG" in twins
    said = capsys.readouterr().err
    assert "1 pictures have transparency; they lie on white" in said
    assert all(f"warning: {each}" in said for each in found.warnings)


def test_hostile_names_are_shown_not_obeyed(tmp_path: Path, edgekit: Callable[..., Done]) -> None:
    file(tmp_path / "[red]a\x1b[31m" / "x\n\x1b[2J.png", b"not one")
    file(tmp_path / "[red]a\x1b[31m" / "y.png", packed(NOISE))
    file(tmp_path / "b#samples=1" / "z.png", packed(NOISE[::-1]))
    done = edgekit("data", "describe", tmp_path)
    assert done.status == 0
    assert "\x1b" not in done.stdout + done.stderr
    assert "x\\n\\x1b[2J.png" in done.stderr
    assert done.document["description"]["classes"] == {"[red]a\x1b[31m": 1, "b#samples=1": 1}
    os.mkdir(os.fsencode(tmp_path) + b"/\xff")
    file(Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff/z.png")), packed(NOISE))
    with pytest.raises(InvalidDataError, match="UTF-8"):
        data.load(str(tmp_path), "test", **SAME_SIZE)


def test_a_table(tmp_path: Path, shapes: Path) -> None:
    lines = [f"{shapes}/red/{i}.png,3,x" for i in range(3)] + [f"{shapes}/blue/0.png,1,y"]
    table = file(tmp_path / "t.csv", "\n".join(["path,label,note", *lines]).encode("utf-8-sig"))
    found = data.load(f"csv:{table}#first_label=1", "test", shape=(14, 14, 3))
    assert found.labels.tolist() == [2, 2, 2, 0]
    assert found.images[3].mean(axis=(0, 1)).argmax() == 2
    named = file(
        tmp_path / "n.csv",
        "\n".join(
            [
                "label,path",
                *(f"dog,{p.split(',')[0]}" for p in lines[:2]),
                f"cat,{shapes}/blue/0.png",
            ]
        ).encode(),
    )
    found = data.load(f"csv:{named}", "test", shape=(14, 14, 3), class_names=("Dog", "bird", "cat"))
    assert found.labels.tolist() == [0, 0, 2]


def example(**features: Any) -> bytes:
    from edgekit.sources.keras import tensorflow

    train = tensorflow().train
    made = {
        name.replace("__", "/"): train.Feature(bytes_list=train.BytesList(value=[value]))
        if isinstance(value, bytes)
        else train.Feature(int64_list=train.Int64List(value=[value]))
        for name, value in features.items()
    }
    made["image/float"] = train.Feature(float_list=train.FloatList(value=[0.5]))
    return bytes(train.Example(features=train.Features(feature=made)).SerializeToString())


def test_tfrecords_of_the_research_scripts(tmp_path: Path) -> None:
    from edgekit.sources.keras import tensorflow

    pixels = [np.roll(NOISE, i, axis=1) for i in range(6)]
    for shard in range(2):
        path = tmp_path / f"validation-{shard:05d}-of-00002"
        with tensorflow().io.TFRecordWriter(str(path)) as writer:
            for i in range(3 * shard, 3 * shard + 3):
                encoded = packed(pixels[i])
                writer.write(example(image__encoded=encoded, image__class__label=1000 - i))
    found = data.load(f"tfrecord:{tmp_path}", "test", **SAME_SIZE)
    assert found.labels.tolist() == [999 - i for i in range(6)]
    assert all((found.images[i] == pixels[i]).all() for i in range(6))
    word = f"tfrecord:{tmp_path}/validation-*#first_label=0"
    assert data.load(word, "test", **SAME_SIZE).labels[0] == 1000
    with pytest.raises(InvalidDataError, match="label 995 is below the first label, 996"):
        data.open_word(f"tfrecord:{tmp_path}#first_label=996", "test")
    path = tmp_path / "validation-00001-of-00002"
    content = bytearray(path.read_bytes())
    for place, message in ((200, "fails the checksum"), (3, "header fails"), (-1, "cut off")):
        changed = content[:-20] if place < 0 else bytearray(content)
        changed[place] ^= 1 if place > 0 else 0
        path.write_bytes(changed)
        with pytest.raises(InvalidDataError, match=message):
            data.open_word(f"tfrecord:{tmp_path}", "test")


def test_crc_is_castagnolis() -> None:
    # The check value of the CRC catalogue, and the definition bit by bit.
    assert tfrecord._crc32c()(b"123456789") == 0xE3069283
    for length in (0, 1, 3, 4, 5, 1000):
        content, crc = RANDOM.bytes(length), 0xFFFFFFFF
        for byte in content:
            crc ^= byte
            for _ in range(8):
                crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
        assert tfrecord._crc32c()(content) == crc ^ 0xFFFFFFFF


def test_tfds(tmp_path: Path) -> None:
    """A real data set, prepared here; where the package is missing, one line says so."""
    try:
        import tensorflow_datasets as tfds
    except ImportError:
        with pytest.raises(EdgekitError, match=r"^tensorflow-datasets is not installed.*\[tfds\]'"):
            data.load("tfds:mnist", "test", **SAME_SIZE)
        return
    from edgekit.sources.keras import tensorflow

    labels = ("no", "yes")
    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "label": tfds.features.ClassLabel(names=labels),
        }
    )
    rows = {
        "image": np.stack([np.roll(NOISE, i, axis=0) for i in range(5)]),
        "label": np.arange(5) % 2,
    }
    tfds.dataset_builders.store_as_tfds_dataset(
        "tiny_set",
        version="1.0.0",
        data_dir=tmp_path,
        split_datasets={"test": tensorflow().data.Dataset.from_tensor_slices(rows)},
        features=features,
    )
    found = data.load(f"tfds:tiny_set#dir={tmp_path}", "test", **SAME_SIZE)
    assert Counter(found.labels.tolist()) == {0: 3, 1: 2}
    assert found.class_names == labels
    assert {each.tobytes() for each in found.images} == {each.tobytes() for each in rows["image"]}
    with pytest.raises(InvalidDataError, match="has the parts test"):
        data.load(f"tfds:tiny_set#dir={tmp_path}", "train", **SAME_SIZE)


def test_a_function(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "my_images.py").write_text(
        "import itertools, io\n"
        "import numpy as np\n"
        "from PIL import Image\n"
        "seen = []\n"
        "def arrays(): return np.full((4, 6, 6, 1), 9, np.uint8), [0, 1, 0, 1]\n"
        "def endless(split):\n"
        "    for i in itertools.count():\n"
        "        seen.append(split)\n"
        "        yield Image.new('RGB', (8 + i, 8), (i % 256, 0, 0)), i % 3\n"
        "def broken(): raise RuntimeError('no disk')\n"
        "def unlabelled(): return [np.zeros((6, 6), np.uint8)]\n"
    )
    found = data.load("my_images:arrays", "test")
    assert found.images.shape == (4, 6, 6, 1) and found.labels.tolist() == [0, 1, 0, 1]
    found = data.load("my_images:endless", "train", shape=(6, 6, 3), limit=70)
    assert found.images[:, 0, 0, 0].tolist() == list(range(70))
    import my_images  # type: ignore[import-not-found]

    assert set(my_images.seen) == {"train"}
    assert len(my_images.seen) <= 128  # read as needed, a batch of 64 at a time
    for word, message in (
        ("my_images:broken", "RuntimeError: no disk"),
        ("my_images:unlabelled", "label"),
        ("my_images:nothing", "no function nothing"),
        ("my_imagess:arrays", "cannot import"),
    ):
        with pytest.raises(EdgekitError, match=message):
            data.load(word, "test", shape=(6, 6, 3))


# Classes.


def test_classes_are_found_by_name(shapes: Path) -> None:
    load = data.open_word(str(shapes), "test").load
    shape = (14, 14, 3)
    found = load(shape=shape, class_names=("Red", "green!", "BLUE", "white"))
    assert Counter(found.labels.tolist()) == {0: 30, 1: 20, 2: 10}
    numbers = tuple("012")
    found = load(shape=shape, class_names=numbers)
    assert Counter(found.labels.tolist()) == {2: 30, 1: 20, 0: 10}
    offset = preprocessing("unit#class_offset=1")
    found = load(shape=shape, class_names=tuple("0123"), prepare=offset)
    assert Counter(found.labels.tolist()) == {3: 30, 2: 20, 1: 10}
    assert found.class_names == ("background", "blue", "green", "red")
    for names in (("cat", "dog", "red"), tuple("0123")):
        with pytest.raises(InvalidDataError, match="model"):
            load(shape=shape, class_names=names)
    calibration = data.load(str(shapes), "calibration", shape=shape, class_names=tuple("0123"))
    assert calibration.labels is None  # any class will do, and its hash is of pixels only


def test_folders_named_by_numbers_are_those_labels(tmp_path: Path) -> None:
    for name in ("2", "10"):
        file(tmp_path / name / "x.png", packed(np.full((4, 4), int(name), np.uint8)))
    found = data.load(f"{tmp_path}", "test", shape=(4, 4, 1))
    assert (found.labels == found.images[:, 0, 0, 0]).all()


# Samples.


def test_a_sample_is_even_seeded_and_known_by_its_pixels(shapes: Path) -> None:
    def load(options: str) -> data.ImageSet:
        return data.load(f"folder:{shapes}#{options}", "test", shape=(14, 14, 3))

    found = load("samples=42,seed=1")
    assert Counter(found.labels.tolist()) == {0: 10, 1: 16, 2: 16}
    assert found.sha256 == load("samples=42,seed=1").sha256
    assert found.sha256 != load("samples=42,seed=2").sha256
    assert found.name.endswith("[42 of 60, seed 1]")
    with pytest.raises(InvalidDataError, match="at least 61"):
        load("samples=61")
    shipped = data.load("fashion_mnist#samples=30", "calibration")
    assert np.bincount(shipped.labels).tolist() == [3] * 10


def test_every_image_may_be_drawn() -> None:
    labels = np.array([0] * 5 + [1] * 2 + [2] * 1)
    for count in range(1, 9):
        drawn = stratified("x", labels, 8, count, seed=count)
        assert len(set(drawn.tolist())) == count
        counts = np.bincount(labels[drawn], minlength=3)
        assert counts[0] >= counts[1] - 1 and counts.sum() == count


def test_calibration_of_a_folder(
    tmp_path: Path, small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The table names the draw and its pixels; export draws it again, or refuses."""
    from exported import export

    from edgekit import calibrate
    from edgekit.quantization.table import CalibrationTable

    root = tmp_path / "photos"
    for name, i in itertools.product("ab", range(6)):
        pixels = RANDOM.integers(0, 256, (20, 25, 3), dtype=np.uint8)
        file(root / name / f"{i}.png", packed(pixels))
    model, how, out = small / "small.keras", "symmetric#crop=0.875", tmp_path / "table.json"
    options = ["--data", f"folder:{root}", "--samples", "8", "--seed", "3", "--out", str(out)]
    assert calibrate.main([str(model), "--preprocessing", how, *options]) == 0
    table = CalibrationTable.load(out)
    assert table.data == f"folder:{root}#samples=8,seed=3"
    drawn = data.load(table.data, "calibration", shape=(12, 12, 3), prepare=preprocessing(how))
    assert table.data_sha256 == drawn.sha256

    def int8(name: str) -> Any:
        return export(
            model,
            target="tflite",
            precision="int8",
            correction="none",
            preprocessing=how,
            calibration=str(out),
            out=tmp_path / name,
        )

    manifest = int8("made").manifest
    assert manifest.preprocessing.crop == 0.875
    assert manifest.calibration is not None
    assert (manifest.calibration.sha256, manifest.calibration.count) == (drawn.sha256, 8)
    for path in root.glob("a/*.png"):
        file(path, packed(NOISE))
    with pytest.raises(InvalidDataError, match="made from other images"):
        int8("other")


# One line each.


@pytest.fixture
def bad(tmp_path: Path) -> Path:
    for name in ("empty", "one/a", "loop/a", "loop/b", "self/a", "text/a", "text/b"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("one/a", "loop/a", "loop/b"):
        file(tmp_path / name / "x.png", packed(NOISE))
    (tmp_path / "loop/a/up").symlink_to("..")
    (tmp_path / "self/a/x.png").symlink_to("x.png")
    for name in ("text/a/x.png", "text/b/x.jpg", "x.tfrecord"):
        file(tmp_path / name, b"not what it is called")
    (tmp_path / "gone.csv").write_text("path,label\nno.png,1\n")
    (tmp_path / "columns.csv").write_text("file,class\nno.png,1\n")
    (tmp_path / "below.csv").write_text("path,label\nno.png,-1\n")
    (tmp_path / "short.csv").write_text("path,label\nno.png\n")
    (tmp_path / "latin.csv").write_bytes(b"path,label\n\xff,1\n")
    (tmp_path / "nothing.csv").write_text("path,label\n")
    return tmp_path


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("{}/empty", "got none"),
        ("{}/one", "at least 2 class folders .*'a'"),
        ("{}/loop", "leads back"),
        ("{}/self", "Too many levels"),
        ("{}/text", "none of 2 pictures can be decoded"),
        ("{}/nowhere", "got '.*nowhere'"),
        ("folder:{}/nowhere", "not found"),
        ("folder:", "expected a path"),
        ("csv:{}/gone.csv", "none of 1 pictures can be decoded: no.png"),
        ("csv:{}/columns.csv", "got file, class"),
        ("csv:{}/below.csv", "label -1 is below"),
        ("csv:{}/short.csv", "line 2 lacks"),
        ("csv:{}/latin.csv", "UTF-8"),
        ("csv:{}/nothing.csv", "empty"),
        ("csv:{}", "Is a directory"),
        ("tfrecord:{}/x.tfrecord", "byte 0: its header fails the checksum"),
        ("tfrecord:{}/*.nothing", "no TFRecord file"),
        ("{}/one#sample=1", "unknown option 'sample'"),
        ("{}/one#samples=0", "samples as an integer >= 1"),
        ("{}/one#seed=1", "seed is for samples"),
        ("{}/loop#background=red", "background white"),
        ("fashion_mnist#size=9", "arrays are not resized"),
    ],
)
def test_bad_sets_are_one_line(bad: Path, word: str, message: str) -> None:
    with pytest.raises(EdgekitError, match=message) as caught:
        data.load(word.format(bad), "test", shape=(8, 8, 3))
    assert "\n" not in str(caught.value)


def test_pictures_need_a_size(shapes: Path) -> None:
    with pytest.raises(InvalidOptionError, match="--size"):
        data.load(str(shapes), "train")
    with pytest.raises(InvalidOptionError, match="leave size out"):
        data.load(f"{shapes}#size=9", "test", shape=(8, 8, 3))
    with pytest.raises(InvalidDataError, match="fixed size"):
        data.load(str(shapes), "test", shape=(-1, -1, 3))


def test_a_folder_that_is_called_like_an_option(tmp_path: Path) -> None:
    for name in "ab":
        file(tmp_path / "set#samples=1" / name / "x.png", packed(NOISE))
    assert len(data.load(f"{tmp_path}/set#samples=1", "test", **SAME_SIZE)) == 2


def test_a_full_disk_is_told_before_decoding(shapes: Path) -> None:
    with pytest.raises(InvalidDataError, match="GB free; set TMPDIR"):
        data.load(str(shapes), "test", shape=(1_000_000, 100_000, 3))


# Describe.


def test_describe(tmp_path: Path, shapes: Path, edgekit: Callable[..., Done]) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    file(tmp_path / "a" / "1.jpg", packed(np.full((8, 10, 3), (200, 100, 0), np.uint8), "JPEG"))
    file(tmp_path / "a" / "2.png", packed(np.full((8, 10), 50, np.uint8), exif=exif.tobytes()))
    file(tmp_path / "b" / "3.png", packed(np.full((8, 10), 50, np.uint8)))
    file(tmp_path / "b" / "leak.png", (shapes / "red" / "0.png").read_bytes())
    file(tmp_path / "b" / "cut.png", packed(NOISE)[:99])
    sheet = tmp_path / "sheet.png"
    done = edgekit("data", "describe", tmp_path, shapes, "--sheet", sheet)
    assert done.status == 0, done.stderr
    found = done.document["description"]
    assert found["images"] == 4
    assert found["classes"] == {"a": 2, "b": 2}
    assert found["sizes"] == {"10x8": 3, "14x14": 1}
    assert found["modes"] == {"RGB": 2, "L": 2}
    assert found["formats"] == {"PNG": 3, "JPEG": 1}
    assert found["turned"] == 1
    leak = np.asarray(Image.open(shapes / "red" / "0.png"), float).reshape(-1, 3)
    mean = (np.array([300.0, 200.0, 100.0]) + leak.mean(axis=0)) / 4
    square = (np.array([[200, 100, 0], [50, 50, 50], [50, 50, 50]]) ** 2).sum(axis=0)
    std = np.sqrt((square + (leak**2).mean(axis=0)) / 4 - mean**2)
    assert np.allclose(found["mean"], mean, atol=0.5)
    assert np.allclose(found["std"], std, atol=0.5)
    assert found["unreadable"]["count"] == 1
    assert found["unreadable"]["first"][0].startswith("b/cut.png (")
    (same,) = found["across_classes"]["first"]
    assert set(same.split(" = ")) == {"a/2.png", "b/3.png"}
    assert found["leaked"] == {"count": 1, "first": ["b/leak.png"]}
    assert found["balance"] == 1
    picture = np.asarray(Image.open(sheet))
    assert picture.shape == (2 * 84 + 4, 160 + 10 * 84 + 4, 3)
    assert (np.abs(picture.astype(int) - (200, 100, 0)).max(axis=2) < 4).sum() == 80 * 64
    assert edgekit("data", "describe", tmp_path, "--sheet", sheet).status == 2


def test_describe_of_arrays(edgekit: Callable[..., Done]) -> None:
    done = edgekit("data", "describe", "fashion_mnist", "--limit", 200)
    assert done.document["description"]["sizes"] == {"28x28": 200}
    assert done.document["description"]["formats"] == {"array": 200}
