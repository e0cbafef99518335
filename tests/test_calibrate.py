from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Done

from edgekit import calibrate as verb
from edgekit.base.errors import InvalidDataError
from edgekit.data import images as image_sets
from edgekit.graph import litert
from edgekit.pipeline import calibration
from edgekit.pipeline.calibration import cached_parts, observe
from edgekit.quantization.table import METHODS, CalibrationTable, Range
from edgekit.records.signature import preprocessing
from edgekit.sources import convert
from edgekit.sources.keras import tf_keras

UNIT = preprocessing("unit")


def _pixels(count: int, shape: tuple[int, ...] = (6, 6, 1)) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (count, *shape), dtype=np.uint8)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    keras = tf_keras()
    keras.utils.set_random_seed(3)
    image = keras.Input((6, 6, 1), name="image")
    x = keras.layers.Conv2D(4, 3, activation="relu", name="conv")(image)
    x = keras.layers.Flatten()(x)
    x = keras.layers.Dense(3, activation="softmax", name="answers")(x)
    path = tmp_path_factory.mktemp("tiny") / "small.keras"
    keras.Model(image, x).save(path)
    return path


@pytest.fixture(scope="module")
def canonical(tiny: Path) -> bytes:
    return convert.from_keras(tf_keras().models.load_model(tiny))


def test_ranges_are_the_extremes_of_keras_own_layers(tiny: Path, canonical: bytes) -> None:
    keras = tf_keras()
    pixels = _pixels(20)
    table = observe(canonical, image_sets.make("set", pixels, None), prepare=UNIT)
    model = keras.models.load_model(tiny)
    layer = keras.Model(model.input, model.get_layer("conv").output)
    expected = layer.predict(UNIT.apply(pixels), verbose=0)
    found = next(found for name, found in table.ranges.items() if "conv" in name.lower())
    assert found.min == pytest.approx(expected.min(), abs=1e-6)
    assert found.max == pytest.approx(expected.max(), rel=1e-5)
    assert (table.count, table.method) == (20, "minmax")
    assert len(table.ranges) == len(litert.activations(litert.interpreter(canonical)))


def test_table_survives_its_file(canonical: bytes, tmp_path: Path) -> None:
    table = observe(canonical, image_sets.make("set", _pixels(3), None), prepare=UNIT)
    path = tmp_path / "table.json"
    path.write_text(table.dumps())
    assert CalibrationTable.load(path) == table
    path.write_text(table.dumps().replace('"schema_version": 2', '"schema_version": 9'))
    with pytest.raises(InvalidDataError, match="schema_version 9"):
        CalibrationTable.load(path)


@pytest.mark.parametrize("low, high", [(1.0, 0.0), (float("nan"), 1.0), (0.0, float("inf"))])
def test_a_range_is_finite_and_in_order(low: float, high: float) -> None:
    with pytest.raises(InvalidDataError):
        Range(low, high)


def test_an_image_that_overflows_inside_the_model_is_named() -> None:
    keras = tf_keras()
    image = keras.Input((6, 6, 1), name="image")
    x = keras.layers.Conv2D(2, 3, kernel_initializer="ones")(image)
    canonical = convert.from_keras(keras.Model(image, x))
    images = np.zeros((2, 6, 6, 1), np.float32)
    images[1] = 3e38
    with pytest.raises(InvalidDataError, match="image 1 makes .* NaN or infinite"):
        observe(canonical, image_sets.make("set", images, None), prepare=UNIT)


def test_images_of_another_size_are_refused(canonical: bytes) -> None:
    with pytest.raises(InvalidDataError, match=r"expected images \[6, 6, 1\].*got \[7, 7, 1\]"):
        observe(canonical, image_sets.make("set", _pixels(2, (7, 7, 1)), None), prepare=UNIT)


def test_the_verb_writes_a_table_and_keeps_what_is_there(
    tiny: Path, tmp_path: Path, edgekit: Callable[..., Done]
) -> None:
    np.savez(tmp_path / "set.npz", x=_pixels(8))
    command = [
        "calibrate", tiny, "--preprocessing", "unit", "--data", tmp_path / "set.npz",
        "--limit", "5", "--out", tmp_path / "t.json",
    ]  # fmt: skip
    done = edgekit(*command)
    assert done.status == 0, done.stderr
    assert done.document["count"] == 5
    assert CalibrationTable.load(tmp_path / "t.json").count == 5
    assert json.loads((tmp_path / "t.json").read_text())["preprocessing"]["name"] == "unit"
    again = edgekit(*command)
    assert again.status == 2
    assert "--force" in again.error
    assert "examples:" in edgekit("calibrate", "--help").stdout


@pytest.mark.slow
def test_images_run_once_for_all_methods(
    small: Path, tmp_path: Path, edgekit: Callable[..., Done]
) -> None:
    tables = {}
    for method in METHODS:
        done = edgekit(
            "calibrate", small / "small.keras", "--preprocessing", "unit",
            "--data", small / "set.npz", "--method", method, "--out", tmp_path / f"{method}.json",
            XDG_CACHE_HOME=str(tmp_path / "cache"),
        )  # fmt: skip
        assert done.status == 0, done.stderr
        assert done.document["method"] == method
        assert ("calibration statistics of 40 samples" in done.stderr) == (method != METHODS[0])
        tables[method] = CalibrationTable.load(tmp_path / f"{method}.json")
    first = tables["minmax"]
    for table in tables.values():
        assert table.statistics == first.statistics
        assert table.data == str(small / "set.npz")
        for name, found in table.ranges.items():
            assert first.ranges[name].min <= found.min <= found.max <= first.ranges[name].max
    # of few values entropy may keep them all, as minmax does
    assert len({tuple(table.ranges.items()) for table in tables.values()}) >= len(METHODS) - 1
    assert len(list((tmp_path / "cache").rglob("*.json"))) == 1


def test_statistics_of_another_version_of_the_code_are_made_again(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    options: dict[str, Any] = {"dataset": str(small / "set.npz"), "preprocessing": "unit"}
    for code, files in (("one", 1), ("one", 1), ("another", 2)):
        monkeypatch.setattr(calibration, "sources", lambda code=code: code)
        verb.calibrate(small / "small.keras", **options)
        assert len(list(tmp_path.rglob("*.json"))) == files


def test_a_broken_cache_is_said_and_made_again(
    small: Path, tmp_path: Path, edgekit: Callable[..., Done]
) -> None:
    def run(out: str) -> Done:
        return edgekit(
            "calibrate", small / "small.keras", "--preprocessing", "unit",
            "--data", small / "set.npz", "--out", tmp_path / out,
            XDG_CACHE_HOME=str(tmp_path / "cache"),
        )  # fmt: skip

    assert run("one.json").status == 0
    (cached,) = (tmp_path / "cache").rglob("*.json")
    cached.write_text(cached.read_text()[:1000])
    again = run("two.json")
    assert again.status == 0
    assert "is not valid JSON" in again.stderr and "calibrating again" in again.stderr
    assert (tmp_path / "one.json").read_text() == (tmp_path / "two.json").read_text()


def test_statistics_are_those_of_all_values(canonical: bytes) -> None:
    images = image_sets.make("set", _pixels(6), None)
    table = observe(canonical, images, prepare=UNIT)
    opened = litert.interpreter(canonical, experimental_preserve_all_tensors=True)
    entry = opened.get_input_details()[0]["index"]
    values: dict[str, list[np.ndarray]] = {name: [] for name in table.ranges}
    for i in range(6):
        opened.set_tensor(entry, UNIT.apply(images.images[i : i + 1]))
        opened.invoke()
        for tensor in litert.activations(opened):
            values[tensor.name].append(opened.get_tensor(tensor.index))
    for name, found in table.statistics.items():
        whole = np.concatenate(values[name])
        assert (np.float32(found.min), np.float32(found.max)) == (whole.min(), whole.max())
        # so few values that the sample is all of them
        assert sum(found.histogram.counts) == whole.size
        flat = whole.reshape(-1, whole.shape[-1])
        np.testing.assert_allclose(found.channel_mean, flat.mean(axis=0), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found.channel_max, flat.max(axis=0), rtol=1e-5)


def test_parts_of_the_images_have_the_tables_of_a_pass_of_their_own(
    canonical: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    images = image_sets.make("set", _pixels(40), None)
    parts = np.arange(0, 40, 3), np.array([1, 5, 17, 39])
    given = {"prepare": UNIT, "method": "minmax", "word": "set"}
    whole, tables = cached_parts(canonical, images, *parts, **given)
    assert whole == observe(canonical, images, **given)
    for places, table in zip(parts, tables, strict=True):
        assert table == observe(canonical, images.take(places), **given)
        # and they are kept, each as if it had been asked for alone
        assert cached_parts(canonical, images.take(places), **given) == (table, ())
