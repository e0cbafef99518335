"""Ranges of activations that are narrowed where the operators that read them lose least."""

from __future__ import annotations

import numpy as np
import pytest

from edgekit.data import images as image_sets
from edgekit.graph import walk
from edgekit.graph.flatbuffer import Graph
from edgekit.pipeline.calibration import observe
from edgekit.quantization import clipping, quantize
from edgekit.quantization.judge import Score
from edgekit.quantization.profiles import PROFILES
from edgekit.quantization.quantize import Quantized
from edgekit.quantization.table import CalibrationTable
from edgekit.records.signature import preprocessing
from edgekit.sources import convert
from edgekit.sources.keras import tf_keras

UNIT = preprocessing("unit")
GENERIC = PROFILES["generic"]
COUNT = 40


class Net:
    """A float model and random pictures for it."""

    def __init__(self, canonical: bytes) -> None:
        self.canonical, self.graph = canonical, Graph(canonical)
        shape = self.graph.shape(self.graph.inputs[0])[1:]
        values = np.random.default_rng(1).random((COUNT, *shape), np.float32)
        self.images = image_sets.make("set", values, None)
        self.feed = {self.graph.inputs[0]: UNIT.apply(self.images.images)}
        self.table = self.observe(canonical, False)

    def observe(self, content: bytes, fitting: bool) -> CalibrationTable:
        images = self.images.take(quantize.held_out(COUNT)[0]) if fitting else self.images
        return observe(content, images, prepare=UNIT)

    def parts(self, device: str = "generic") -> clipping.Parts:
        ranges = self.table.ranges
        return clipping.find(self.graph, ranges, PROFILES[device], self.feed, threads=1)

    def quantize(self, *, narrow: bool = True) -> Quantized:
        samples = quantize.CalibrationSamples.of(self.feed, self.observe)
        return quantize.quantize(
            self.canonical, self.table, profile=GENERIC, samples=samples, narrow=narrow
        )

    def named(self, part: str) -> str:
        (found,) = [each.output for each in self.graph.layers if part in each.output]
        return found


def _net(*, heard: float) -> Net:
    """One channel of ``wide`` is 20 times as large as the others; ``last`` hears a part of it."""
    keras = tf_keras()
    keras.utils.set_random_seed(0)
    image = keras.Input((4, 4, 1), name="image")
    wide = keras.layers.Dense(16, name="wide", activation="relu")
    last = keras.layers.Dense(4, name="last")
    model = keras.Model(image, last(wide(keras.layers.Flatten()(image))))
    sizes = np.where(np.arange(16) == 3, 20.0, 1.0)
    wide.set_weights([np.eye(16) * sizes, np.zeros(16)])
    kernel = np.random.default_rng(0).normal(size=(16, 4)) / sizes[:, None]
    kernel[3] *= heard
    last.set_weights([kernel, np.zeros(4)])
    return Net(convert.from_keras(model))


@pytest.fixture(scope="module")
def unheard() -> Net:
    return _net(heard=0.0)


@pytest.fixture(scope="module")
def zoo() -> Net:
    """Readers of each kind, on signed and unsigned numbers."""
    keras = tf_keras()
    keras.utils.set_random_seed(3)
    layers = keras.layers
    image = keras.Input((9, 9, 3), name="image")
    x = layers.Conv2D(6, 3, strides=2, padding="same", name="first")(image)
    deep = layers.DepthwiseConv2D(3, padding="same", depth_multiplier=2, name="deep")(x)
    x = layers.Conv2D(6, 1, activation="relu6", name="point")(deep)
    x = layers.Conv2D(6, 3, groups=2, padding="same", name="groups")(x)
    x = layers.Add()([x, layers.Conv2D(6, 1, activation="relu", name="side")(deep)])
    x = layers.GlobalAveragePooling2D()(layers.Conv2DTranspose(4, 2, strides=2, name="up")(x))
    return Net(convert.from_keras(keras.Model(image, layers.Dense(3, name="last")(x))))


def test_what_no_reader_hears_is_cut_off(unheard: Net) -> None:
    low, high = unheard.parts()[unheard.named("wide")]
    assert high == min(clipping._PARTS)
    heard = _net(heard=1.0)
    assert heard.named("wide") not in heard.parts()


def test_samples_of_places_say_what_whole_layers_do(
    zoo: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All places of these layers are looked at, so that both ways are the same sums."""
    sampled = zoo.parts()
    monkeypatch.setattr(clipping, "_products", lambda *given: None)
    assert zoo.parts() == sampled
    assert sampled


def test_both_ends_keep_the_same_part_where_the_device_has_no_zero_point(zoo: Net) -> None:
    assert any(low != high for low, high in zoo.parts().values())
    symmetric = zoo.parts("tensorrt")
    assert symmetric and all(low == high for low, high in symmetric.values())


def test_the_search_narrows_where_outputs_gain() -> None:
    """A sigmoid is the same for all that is large, and no factor can be moved over it."""
    keras = tf_keras()
    keras.utils.set_random_seed(0)
    image = keras.Input((4, 4, 1), name="image")
    wide = keras.layers.Dense(256, name="wide")
    x = keras.layers.Activation("sigmoid")(wide(keras.layers.Flatten()(image)))
    model = keras.Model(image, keras.layers.Dense(256, name="last")(x))
    wide.set_weights([np.random.default_rng(0).normal(0, 2, (16, 256)), np.zeros(256)])
    deaf = Net(convert.from_keras(model))
    whole, narrow = deaf.quantize(narrow=False), deaf.quantize()
    assert quantize.NARROWED in narrow.way and quantize.NARROWED not in whole.way
    name = deaf.named("wide")
    scales = [found.encodings.tensors[name].scale[0] for found in (narrow, whole)]
    # the part is of the range of all samples, though it was found without those that judge
    assert scales[0] == pytest.approx(scales[1] * min(clipping._PARTS), rel=1e-5)
    best = [max(t.sqnr for t in each.trials if not t.exact) for each in (narrow, whole)]
    assert best[0] > best[1] + quantize.MARGIN


def test_samples_that_are_not_finite_narrow_nothing(unheard: Net) -> None:
    broken: walk.Values = {n: np.full_like(v, np.nan) for n, v in unheard.feed.items()}
    found = clipping.find(unheard.graph, unheard.table.ranges, GENERIC, broken, threads=1)
    assert found == {}


def test_one_sample_does_not_decide_for_all() -> None:
    """The sum of the noise goes from 11 to 4.3, and nearly all samples lose more."""
    before, few, all_of_them = (
        Score(decibels, "far", noise=noise)
        for decibels, noise in (
            (10.0, (8.0, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5)),
            (15.0, (0.6, 0.7, 0.6, 0.4, 0.7, 0.6, 0.7)),
            (11.0, (6.0, 0.4, 0.4, 0.3, 0.4, 0.4, 0.3)),
        )
    )
    assert few.sqnr > before.sqnr and not few.surely_beats(before)
    assert all_of_them.surely_beats(before) and not before.surely_beats(before)


def test_without_noise_by_sample_the_sums_decide() -> None:
    better, worse = Score(20.0, "close"), Score(10.0, "far", noise=(0.1, 0.2))
    assert better.surely_beats(worse) and not worse.surely_beats(better)
