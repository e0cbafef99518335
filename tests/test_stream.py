"""Streamed training input: what comes out of it is what is on disk, again and again the same."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pictures
import pytest
from conftest import Done
from PIL import Image

from edgekit import data
from edgekit.base import cli
from edgekit.base.errors import EdgekitError, InvalidDataError, InvalidOptionError
from edgekit.data import tfrecord
from edgekit.records.artifact import Artifact
from edgekit.records.signature import Preprocessing, preprocessing
from edgekit.sources import keras as keras_format
from edgekit.training.distort import distorted
from edgekit.training.inputs import InputOptions, inputs, split
from edgekit.training.recipes import Recipe
from edgekit.training.stream import ShardFeed, Stream, StreamTrainer, stream_of

SHAPE = (24, 24, 3)
PREPARE = preprocessing("unit#crop=0.875")
PLAIN = Recipe(augmentation="plain", batch=4, erase=0, shift=0)
KINDS = {
    "small": replace(PLAIN, augmentation="small"),
    "plain": PLAIN,
    "inception": replace(PLAIN, augmentation="inception", crop=0.08),
}
ROWS = [
    (pictures.jpeg(pictures.picture(i, i % 3, ((40, 32), (26, 48))[i % 2])), i % 3 + 1)
    for i in range(23)
]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """23 JPEGs of 3 classes in 4 shards to train with, 6 in one to test with."""
    root = tmp_path_factory.mktemp("imagenet")
    pictures.shards(root, "train", ROWS, 4)
    pictures.shards(root, "validation", ROWS[:6], 1)
    return root


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures.folder(tmp_path_factory.mktemp("photos") / "set", {"a": 9, "b": 7, "c": 8})


def stream(root: Path, recipe: Recipe, **options: Any) -> Stream:
    return Stream(ShardFeed(tfrecord.shards(str(root), "train", {}), offset=0), SHAPE, PREPARE,
                  recipe, **options)  # fmt: skip


def drawn(
    content: bytes, recipe: Recipe, count: int = 1, prepare: Preprocessing = PREPARE
) -> np.ndarray:
    """The first pictures that are made of one, ``[count, H, W, C]``."""
    tf = keras_format.tensorflow()

    @tf.function
    def made(position: Any) -> Any:
        return distorted(
            tf.constant(content), position, recipe=recipe, prepare=prepare, shape=SHAPE
        )

    return np.stack([made(tf.constant(i, tf.int64)).numpy() for i in range(count)])


def taken(found: Stream, first: int, count: int) -> list[tuple[np.ndarray, ...]]:
    return list(found.batches(first, count).take(count).as_numpy_iterator())


def same(ours: list[tuple[np.ndarray, ...]], theirs: list[tuple[np.ndarray, ...]]) -> bool:
    pairs = [pair for a, b in zip(ours, theirs, strict=True) for pair in zip(a, b, strict=True)]
    return all((a == b).all() for a, b in pairs)


def test_without_augmentation_a_pass_is_what_is_on_disk(shards: Path, photos: Path) -> None:
    still = replace(KINDS["small"], batch=1)
    on_disk = data.load(f"imagenet-tfrecord:{shards}", "train", shape=SHAPE, prepare=PREPARE)
    of_folder = data.load(f"folder:{photos}", "train", shape=SHAPE, prepare=PREPARE)
    opened = inputs(f"folder:{photos}", InputOptions(still, PREPARE, SHAPE, mode="stream")).training
    assert isinstance(opened, Stream)
    for expected, found in ((on_disk, stream(shards, still)), (of_folder, opened)):
        a_pass = taken(found, 0, len(expected))
        assert Counter((x.tobytes(), int(y[0])) for x, y, _ in a_pass) == Counter(
            (x.tobytes(), int(y)) for x, y in zip(expected.images, expected.labels, strict=True)
        )
        again = taken(found, len(expected), len(expected))
        assert [y[0] for _, y, _ in again] != [y[0] for _, y, _ in a_pass], "each pass its own"


@pytest.mark.parametrize("kind", ["plain", "inception"])
def test_the_whole_picture_uncropped_is_as_pillow_decodes_it(kind: str) -> None:
    """A window of all of it, at its own size, leaves nothing but decoding."""
    pixels = pictures.picture(3, 1, SHAPE[:2])
    encoded = pictures.jpeg(pixels)
    expected = np.asarray(Image.open(io.BytesIO(encoded)))
    recipe = replace(KINDS[kind], flip=False, crop=1.0)
    (found,) = drawn(encoded, recipe, prepare=preprocessing("unit#crop=1.0"))
    if kind == "plain":
        assert (found == expected).all()
    else:  # brightness is one number for all pixels where nothing else changes
        assert found.shape == expected.shape
        assert found[..., 1].mean() > found[..., 0].mean(), "still the colour of its class"


@pytest.mark.parametrize("kind", ["folder", *KINDS])
def test_the_seed_decides_and_a_later_start_gives_the_following_batches(
    kind: str, shards: Path, photos: Path
) -> None:
    def made(seed: int) -> Stream:
        if kind != "folder":
            return stream(shards, replace(KINDS[kind], seed=seed))
        wanted = InputOptions(replace(PLAIN, seed=seed), PREPARE, SHAPE)
        found = inputs(f"folder:{photos}", wanted).training
        assert isinstance(found, Stream)
        return found

    whole = taken(made(0), 0, 9)  # over the end of the first pass
    assert same(taken(made(0), 7 * 4, 2), whole[7:])
    if kind in ("folder", "inception"):
        assert same(taken(made(0), 0, 9), whole)
        assert not same(taken(made(1), 0, 9), whole)


@pytest.mark.parametrize("kind", KINDS)
def test_batches_have_the_form_of_the_model_and_labels_follow_pictures(
    kind: str, shards: Path
) -> None:
    for x, y, position in taken(stream(shards, KINDS[kind]), 0, 6):
        assert (x.dtype, x.shape, y.dtype) == (np.uint8, (4, *SHAPE), np.int64)
        assert (x.mean((1, 2)).argmax(1) == y).all(), "a class is a colour"
        assert (np.diff(position) == 1).all()


def test_distortions_vary_within_their_bounds() -> None:
    """Of a picture whose left half is dark: crops move the edge, colours move both halves."""
    pixels = np.full((40, 60, 3), 100, np.uint8)
    pixels[:, 30:] = (180, 140, 120)
    encoded = pictures.jpeg(pixels)
    plain = drawn(encoded, PLAIN, 40)
    assert plain.min() >= 88 and plain.max() <= 192, "no colour but those of the picture"
    mirrored = [image[:, 0].mean() > image[:, -1].mean() for image in plain]
    assert 5 < sum(mirrored) < 35
    assert not any(drawn(encoded, replace(PLAIN, flip=False), 40)[:, 0, 0, 0] > 140), "dark is left"
    brightness = [image.min() for image in drawn(encoded, KINDS["inception"], 40)]
    # grey stays grey; the least channel of the colour is 90 in its fullest tone
    assert 90 - 32 - 4 <= min(brightness) < 90 and max(brightness) > 115


def test_exif_and_other_formats_are_decoded_as_everywhere() -> None:
    pixels = pictures.picture(1, 0, (40, 40))
    pixels[:20] = 10
    turned = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    Image.fromarray(pixels).save(turned, "JPEG", quality=95, exif=exif.tobytes())
    png = io.BytesIO()
    Image.fromarray(pixels).save(png, "PNG")
    for content, dark in ((pictures.jpeg(pixels), 0), (turned.getvalue(), -1), (png.getvalue(), 0)):
        (found,) = drawn(
            content, replace(PLAIN, flip=False), prepare=preprocessing("unit#crop=1.0")
        )
        assert found[dark].mean() < 20 < found[-1 - dark].mean()


def test_grey_models_get_grey_pictures(shards: Path) -> None:
    for recipe in KINDS.values():
        found = replace(stream(shards, recipe), shape=(24, 24, 1))
        assert taken(found, 0, 1)[0][0].shape == (4, 24, 24, 1)


# A trainer over a stream.


def trainer(root: Path, recipe: Recipe, **options: Any) -> StreamTrainer:
    keras = keras_format.tf_keras()
    keras.utils.set_random_seed(1)
    image = keras.Input(SHAPE)
    x = keras.layers.Conv2D(4, 3, strides=4)(image)
    x = keras.layers.GlobalAveragePooling2D()(x)
    logits = keras.layers.Dense(3, name="logits")(x)
    model = keras.Model(image, keras.layers.Softmax()(logits))
    return StreamTrainer(
        model,
        recipe,
        stream=stream(root, recipe, **options),
        prepare=PREPARE,
        towers=1,
        progress=cli.reporter,
    )


def stepped(run: StreamTrainer, steps: int) -> float:
    rates = np.full(steps, 0.05, np.float32)
    return run.run_epoch_part(run.order(0)[:steps], rates)[0]


@pytest.mark.slow
def test_a_restored_trainer_goes_on_as_the_one_that_was_not_stopped(
    shards: Path, tmp_path: Path
) -> None:
    recipe = KINDS["inception"]
    whole, stopped, resumed = (trainer(shards, recipe) for _ in range(3))
    assert stepped(whole, 3) == stepped(stopped, 3)
    path = stopped.checkpoint.save(str(tmp_path / "c"))
    resumed.checkpoint.restore(path).assert_existing_objects_matched()
    for _ in range(2):
        assert stepped(whole, 3) == stepped(resumed, 3)
    for a, b in zip(whole.averaged_weights(), resumed.averaged_weights(), strict=True):
        assert (a == b).all()


def broken(root: Path, tmp_path: Path, change: Callable[[bytes], bytes]) -> Path:
    """The shards with one record of shard 2 changed."""
    for path in root.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    path = tmp_path / "train-00002-of-00004"
    path.write_bytes(change(path.read_bytes()))
    return tmp_path


def cut_picture(content: bytes) -> bytes:
    """Record 3 has half a JPEG in it, and right checksums."""
    rows = ROWS[2::4]
    rows[3] = (rows[3][0][:200], rows[3][1])
    return b"".join(pictures.record(pictures.example(*row)) for row in rows)


def flipped_bit(content: bytes) -> bytes:
    """In the picture of record 1."""
    at = len(pictures.record(pictures.example(*ROWS[2]))) + 300
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (cut_picture, r"train-00002-of-00004, record 3: .*; correct or remove it, or pass --sk"),
        (flipped_bit, r"train-00002-of-00004, record 1: fails the checksum; correct or remove it"),
    ],
)
@pytest.mark.parametrize("kind", ["small", "inception"])
def test_a_broken_record_is_named(
    kind: str, change: Any, said: str, shards: Path, tmp_path: Path
) -> None:
    root = broken(shards, tmp_path, change)
    run = trainer(root, KINDS[kind])
    with pytest.raises(InvalidDataError, match=said):
        for _ in range(3):
            stepped(run, 2)


def test_a_file_that_is_gone_is_named(photos: Path, tmp_path: Path) -> None:
    import shutil

    root = tmp_path / "set"
    shutil.copytree(photos, root)
    found = inputs(f"folder:{root}", InputOptions(PLAIN, PREPARE, SHAPE)).training
    assert isinstance(found, Stream)
    (root / "b" / "3.jpg").unlink()
    with pytest.raises(Exception, match="No such file") as gone:
        taken(found, 0, 6)
    assert str(found.blame(0, 24, gone.value)) == (
        "set: b/3.jpg: No such file or directory; correct or remove it, or pass --skip-broken"
    )


@pytest.mark.slow
def test_broken_records_are_left_out_and_counted_where_that_is_asked_for(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = broken(shards, tmp_path, cut_picture)
    run = trainer(root, replace(KINDS["plain"], steps=12), skip_broken=True)
    for _ in range(6):
        stepped(run, 2)
    assert run.left_out in (2, 3), "one a pass, and 48 pictures are two passes and 4"
    assert "1 pictures cannot be read" in capsys.readouterr().err
    nothing = tmp_path / "nothing"
    pictures.shards(nothing, "train", [(b"none", 1), (b"none", 2)] * 4, 2)
    with pytest.raises(InvalidDataError, match="more than half"):
        stepped(trainer(nothing, replace(PLAIN, steps=4), skip_broken=True), 2)


# What is opened, and what is refused.


def test_imagenet_shards_have_two_parts_and_classes_from_one(shards: Path) -> None:
    word = f"imagenet-tfrecord:{shards}"
    wanted = InputOptions(KINDS["inception"], PREPARE, SHAPE)
    found = inputs(word, wanted)
    assert isinstance(found.training, Stream)
    assert (len(found.training), len(found.testing), found.tested_on) == (23, 6, "test")
    assert len(found.class_names) == 1000
    assert found.testing.labels is not None
    assert sorted(set(found.testing.labels.tolist())) == [0, 1, 2]
    with_background = replace(wanted, prepare=preprocessing("unit#class_offset=1"))
    moved = inputs(word, with_background)
    assert len(moved.class_names) == 1001
    assert isinstance(moved.training, Stream)
    (_, labels, _), *_ = taken(moved.training, 0, 6)
    assert set(labels.tolist()) <= {1, 2, 3}
    plain = inputs(f"tfrecord:{shards}", wanted)
    assert len(plain.class_names) == 3
    in_memory = inputs(word, replace(wanted, recipe=KINDS["small"]))
    assert isinstance(in_memory.training, data.ImageSet)
    assert (len(in_memory.training), len(in_memory.testing)) == (23, 6)
    assert (in_memory.tested_on, len(in_memory.class_names)) == ("test", 1000)


def test_small_augmentation_of_a_small_set_is_in_memory_and_the_choice_is_said(
    photos: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = InputOptions(KINDS["small"], PREPARE, SHAPE, progress=cli.reporter)
    assert isinstance(inputs(f"folder:{photos}", wanted).training, data.ImageSet)
    assert "streamed" not in capsys.readouterr().err
    monkeypatch.setattr("edgekit.records.environment.available_memory", lambda: 50_000)
    assert isinstance(inputs(f"folder:{photos}", wanted).training, Stream)
    assert "streamed (0.0 GB decoded" in capsys.readouterr().err


def test_arrays_can_be_distorted_too(tmp_path: Path) -> None:
    x = np.stack([pictures.picture(i, i % 3, (24, 24)) for i in range(12)])
    np.savez(tmp_path / "set.npz", x=x, y=np.arange(12) % 3)
    found = inputs(str(tmp_path / "set.npz"), InputOptions(KINDS["inception"], PREPARE)).training
    assert isinstance(found, Stream)
    for x, y, _ in taken(found, 0, 3):
        assert (x.mean((1, 2)).argmax(1) == y).all()
    np.savez(tmp_path / "set.npz", x=np.zeros((12, 24, 24, 3), np.float32), y=np.arange(12) % 3)
    with pytest.raises(InvalidDataError, match="as uint8 to distort"):
        inputs(str(tmp_path / "set.npz"), InputOptions(KINDS["inception"], PREPARE))


def test_held_out_pictures_are_drawn_from_every_class(photos: Path) -> None:
    labels = np.array([0] * 50 + [1] * 20 + [2] * 3)
    kept, held = split("set", labels, 0.2, 3)
    assert Counter(labels[held].tolist()) == {0: 10, 1: 4, 2: 1}
    assert sorted([*kept, *held]) == list(range(73))
    assert (held == split("set", labels, 0.2, 3)[1]).all()
    assert (held != split("set", labels, 0.2, 4)[1]).any()
    with pytest.raises(InvalidDataError, match="class 1 has one image"):
        split("set", np.array([0, 0, 1]), 0.2, 0)
    for recipe in (KINDS["small"], KINDS["plain"]):
        found = inputs(f"folder:{photos}", InputOptions(recipe, PREPARE, SHAPE, validation=0.25))
        assert found.tested_on == "validation"
        table = found.tables["validation.csv"].decode().splitlines()[1:]
        assert len(found.training) == 24 - len(table) == 18
        assert all(Path(row.split(",")[0]).is_file() for row in table)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([(b"x", 1)] * 8, "at least 2 classes, got only label 1"),
        ([(b"x", 1), (b"x", 0)] * 4, r"train-00000-of-00001, record 1: label 0 is below"),
        ([(b"x", 1), (b"x", 1 << 40)], "record 1 has the label"),
    ],
)
def test_bad_labels(rows: list[tuple[bytes, int]], said: str, tmp_path: Path) -> None:
    pictures.shards(tmp_path, "train", rows, 1)
    with pytest.raises(InvalidDataError, match=said):
        inputs(f"tfrecord:{tmp_path}", InputOptions(PLAIN, PREPARE, SHAPE))


def test_what_does_not_fit_is_refused(shards: Path, tmp_path: Path) -> None:
    wanted = InputOptions(PLAIN, PREPARE, SHAPE)
    pictures.shards(tmp_path, "train", [(b"x", 1), (b"x", 1001)], 1)
    cases = (
        (f"imagenet-tfrecord:{tmp_path}", wanted, "expected labels 1 to 1000, got 1001"),
        (f"imagenet-tfrecord:{tmp_path / 'none'}", wanted, r"expected a folder with train-\*"),
        (f"tfrecord:{shards}#samples=5", wanted, "samples is for sets in memory"),
        (f"tfrecord:{shards}", replace(wanted, validation=0.5), "has a test part"),
        (f"tfrecord:{shards}/train-*", replace(wanted, validation=0.5), "nothing can be held out"),
        (f"tfrecord:{shards}", replace(wanted, shape=None), "pass --size N"),
    )
    for word, options, said in cases:
        with pytest.raises(EdgekitError, match=said):
            inputs(word, options)
    with pytest.raises(InvalidOptionError, match="leave out --input memory"):
        replace(wanted, mode="memory")
    with pytest.raises(InvalidOptionError, match="crop of its own"):
        replace(PLAIN, crop=0.5)
    path = tmp_path / "train-00000-of-00001"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(InvalidDataError, match=r"train-00000-of-00001, byte [0-9]+: it is cut off"):
        inputs(f"tfrecord:{tmp_path}", wanted)


def test_tfds(tmp_path: Path) -> None:
    """A real data set, prepared here; where the package is missing, one line says so."""
    wanted = InputOptions(KINDS["inception"], PREPARE, SHAPE)
    try:
        import tensorflow_datasets as tfds
    except ImportError:
        with pytest.raises(EdgekitError, match=r"^tensorflow-datasets is not installed.*\[tfds\]'"):
            inputs("tfds:imagenet2012", wanted)
        return
    features = tfds.features.FeaturesDict({
        "image": tfds.features.Image(shape=(None, None, 3)),
        "label": tfds.features.ClassLabel(names=("r", "g", "b")),
    })  # fmt: skip
    rows = [{"image": pictures.picture(i, i % 3), "label": i % 3} for i in range(23)]
    tfds.dataset_builders.store_as_tfds_dataset(
        "tiny_stream", version="1.0.0", data_dir=tmp_path, features=features,
        split_datasets={"train": list(enumerate(rows))},
    )  # fmt: skip
    found = data.sequential(f"tfds:tiny_stream#dir={tmp_path}", "train")
    assert found is not None
    made = stream_of("tfds:", found, shape=SHAPE, prepare=PREPARE, recipe=KINDS["inception"],
                     limit=None, skip_broken=False)  # fmt: skip
    whole = taken(made, 0, 9)
    assert same(taken(made, 28, 2), whole[7:])
    assert all((x.mean((1, 2)).argmax(1) == y).all() for x, y, _ in whole)


@pytest.mark.slow
def test_a_paper_recipe_trains_from_shards(
    shards: Path, tmp_path: Path, edgekit: Callable[..., Done]
) -> None:
    done = edgekit(
        "train", "--recipe", "paper", "--data", f"tfrecord:{shards}", "--size", "32",
        "--width", "0.35", "--batch", "4", "--towers", "1", "--steps", "8", "--out", tmp_path / "m",
    )  # fmt: skip
    assert done.status == 0, done.stderr
    assert "23 images streamed (augmentation inception" in " ".join(done.stderr.split())
    manifest = Artifact.load(tmp_path / "m").manifest
    assert manifest.training is not None
    assert manifest.training["input"] == "stream"
    assert "test_top1" in manifest.training
    assert manifest.preprocessing.crop == 0.875
