from __future__ import annotations

import gzip
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit import data
from edgekit.base.errors import InvalidDataError, InvalidOptionError
from edgekit.data import fashion_mnist

IMAGES = np.zeros((4, 8, 8, 1), np.uint8)
LABELS = np.array([0, 1, 2, 0])


def save(path: Path, **arrays: np.ndarray) -> str:
    np.savez(path, **arrays)
    return str(path)


def test_the_shipped_parts() -> None:
    test = data.load("fashion_mnist", "test")
    calibration = data.load("fashion_mnist", "calibration")
    assert test.images.shape == (10000, 28, 28, 1)
    assert calibration.images.shape == (1000, 28, 28, 1)
    assert np.bincount(test.labels).tolist() == [1000] * 10
    assert np.bincount(calibration.labels).tolist() == [100] * 10
    assert test.class_names[9] == "Ankle boot"


def test_no_calibration_image_is_a_test_image() -> None:
    test = {image.tobytes() for image in data.load("fashion_mnist", "test").images}
    shared = [i for i in data.load("fashion_mnist", "calibration").images if i.tobytes() in test]
    assert not shared


def test_head_changes_the_identity() -> None:
    whole = data.load("fashion_mnist", "calibration")
    assert whole.head(10).sha256 != whole.sha256
    assert whole.head(10).sha256 == whole.head(10).sha256
    assert whole.head(None) is whole


def test_edgekit_data_comes_first_and_is_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEKIT_DATA", str(tmp_path))
    (tmp_path / "t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(b"something else"))
    with pytest.raises(InvalidDataError, match="sha256"):
        data.load("fashion_mnist", "test")


def test_without_the_training_set_one_line_says_the_ways(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("EDGEKIT_DATA", raising=False)
    monkeypatch.setattr(fashion_mnist, "_DEBIAN", tmp_path)
    # A closed port on this machine stands for a network that does not answer.
    monkeypatch.setattr(fashion_mnist, "_OFFICIAL", "http://127.0.0.1:9")
    with pytest.raises(InvalidDataError, match="EDGEKIT_DATA.*dataset-fashion-mnist.*download"):
        data.load("fashion_mnist", "train")
    assert not list(tmp_path.iterdir())


def test_npz_is_read(tmp_path: Path) -> None:
    loaded = data.load(save(tmp_path / "a.npz", x=IMAGES, y=LABELS), "test")
    assert loaded.images.shape == IMAGES.shape
    assert loaded.labels is not None
    assert loaded.labels.tolist() == LABELS.tolist()


def test_calibration_needs_no_labels(tmp_path: Path) -> None:
    assert data.load(save(tmp_path / "a.npz", x=IMAGES), "calibration").labels is None


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": IMAGES}, "no array 'y'"),
        ({"x": IMAGES[:0], "y": LABELS[:0]}, "empty"),
        ({"x": IMAGES.astype(np.int64), "y": LABELS}, "uint8 or float"),
        ({"x": IMAGES, "y": LABELS[:2]}, "4 images but 2 labels"),
        ({"x": IMAGES, "y": LABELS - 1}, "below 0"),
        ({"x": IMAGES, "y": LABELS.astype(float)}, "labels as integers"),
        ({"x": np.full((2, 4, 4, 1), np.nan, np.float32), "y": LABELS[:2]}, "image 0 holds NaN"),
    ],
)
def test_bad_arrays(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(InvalidDataError, match=message):
        data.load(save(tmp_path / "a.npz", **arrays), "test")


def test_pickles_are_refused(tmp_path: Path) -> None:
    objects = np.empty(2, object)
    objects[:] = [{}, {}]
    path = save(tmp_path / "a.npz", x=objects, y=LABELS[:2])
    with pytest.raises(InvalidDataError, match="pickled objects"):
        data.load(path, "test")
    raw = tmp_path / "b.npz"
    raw.write_bytes(pickle.dumps({"x": 1}))
    with pytest.raises(InvalidDataError, match="not a usable .npz"):
        data.load(str(raw), "test")


def test_a_cut_npz(tmp_path: Path) -> None:
    path = Path(save(tmp_path / "a.npz", x=IMAGES, y=LABELS))
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InvalidDataError, match="not a usable .npz"):
        data.load(str(path), "test")


def test_unknown_words(tmp_path: Path) -> None:
    with pytest.raises(InvalidOptionError, match="fashion_mnist, scenes, scenes:masks, FILE.npz"):
        data.load("mnist", "test")
    with pytest.raises(InvalidDataError, match="not found"):
        data.load(str(tmp_path / "none.npz"), "test")
    np.save(tmp_path / "array.npy", IMAGES)
    with pytest.raises(InvalidOptionError, match=r"another kind; save the array with numpy.savez"):
        data.load(str(tmp_path / "array.npy"), "test")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_an_npz_is_mapped_not_loaded(save: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    save(path, x=np.arange(60, dtype=np.uint8).reshape(3, 4, 5, 1), y=LABELS[:3])
    loaded = data.load(str(path), "test")
    assert isinstance(loaded.images, np.memmap)
    assert loaded.images.ravel().tolist() == list(range(60))


def test_a_changed_byte_in_an_npz(tmp_path: Path) -> None:
    path = Path(save(tmp_path / "a.npz", x=IMAGES, y=LABELS))
    content = bytearray(path.read_bytes())
    content[content.index(b"NUMPY") + 200] ^= 1
    path.write_bytes(content)
    with pytest.raises(InvalidDataError, match="CRC"):
        data.load(str(path), "test")
