from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from edgekit.base.errors import InvalidOptionError
from edgekit.models.__main__ import PUBLISHED, PUBLISHED_TASKS, tasks
from edgekit.models.counts import count
from edgekit.models.deeplab import Segmenter, deeplab
from edgekit.models.mobilenet_v2 import BOTTLENECKS, make_divisible, mobilenet_v2, width_of
from edgekit.models.ssdlite import Detector, ssdlite
from edgekit.sources.keras import tf_keras

SMALL = Detector(head_channels=64, extra_channels=(), scales=(0.2, 0.4, 0.6), fewer=False)


@pytest.mark.parametrize(
    ("width", "resolution"),
    [
        pytest.param(*each, marks=() if number % 5 == 0 else pytest.mark.slow)
        for number, each in enumerate(PUBLISHED)
    ],
)
def test_parameters_and_multiply_adds_equal_the_published(width: float, resolution: int) -> None:
    parameters, multiply_adds = PUBLISHED[width, resolution]
    found = count(mobilenet_v2(width=width, input_shape=(resolution, resolution, 3)))
    assert round(found.parameters / 1e6, 2) == parameters
    assert int(found.multiply_adds / 1e6) == multiply_adds


def test_the_first_block_does_not_expand_and_bottlenecks_are_linear() -> None:
    model = mobilenet_v2(input_shape=(96, 96, 3))
    names = [layer.name for layer in model.layers]
    assert "block0_expand" not in names
    assert "block1_expand" in names
    assert not [name for name in names if name.endswith("project_relu6")]


def test_shortcuts_join_where_stride_is_one_and_channels_are_equal() -> None:
    model = mobilenet_v2(input_shape=(96, 96, 3))
    adds = {layer.name for layer in model.layers if layer.name.endswith("_add")}
    assert adds == {f"block{i}_add" for i in (2, 4, 5, 7, 8, 9, 11, 12, 14, 15)}


def test_the_head_grows_only_above_width_one() -> None:
    heads = {
        width: mobilenet_v2(width=width, input_shape=(32, 32, 3)).get_layer("head").filters
        for width in (0.35, 1.0, 1.4)
    }
    assert heads == {0.35: 1280, 1.0: 1280, 1.4: 1792}


@pytest.mark.parametrize(("lowered", "size"), [(0, 1), (1, 2), (2, 4), (5, 28)])
def test_lowered_strides_keep_resolution(lowered: int, size: int) -> None:
    model = mobilenet_v2(width=0.35, input_shape=(28, 28, 1), classes=10, lowered_strides=lowered)
    assert model.get_layer("head").output_shape[1:3] == (size, size)


@pytest.mark.slow
def test_the_same_seed_gives_the_same_weights() -> None:
    shape = (32, 32, 1)
    first, second, other = (
        mobilenet_v2(width=0.35, input_shape=shape, classes=3, seed=seed).get_weights()[0]
        for seed in (1, 1, 2)
    )
    assert (first == second).all()
    assert (first != other).any()


def test_it_is_one_flat_graph() -> None:
    keras = tf_keras()
    model = mobilenet_v2(width=0.35, input_shape=(32, 32, 3), classes=10)
    assert not [layer for layer in model.layers if isinstance(layer, keras.Model)]


@pytest.mark.parametrize(
    ("value", "rounded"), [(11.2, 16), (5.6, 8), (33.6, 32), (44.8, 48), (22.4, 24), (8.4, 8)]
)
def test_make_divisible(value: float, rounded: int) -> None:
    assert make_divisible(value) == rounded


@pytest.mark.parametrize(
    "options",
    [
        {"width": 0},
        {"classes": 1},
        {"lowered_strides": 6},
        {"dropout": 1.0},
        {"input_shape": (0, 1, 1)},
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(InvalidOptionError, match="expected"):
        mobilenet_v2(**options)  # type: ignore[arg-type]


def test_detector_and_segmenter_have_the_published_sizes() -> None:
    for name, counts in tasks().items():
        parameters, multiply_adds = PUBLISHED_TASKS[name]
        assert counts.parameters / 1e6 == pytest.approx(parameters, rel=0.01), name
        least = 0.92 if "ASPP" in name else 0.985
        assert least <= counts.multiply_adds / 1e9 / multiply_adds <= 1.001, name


def test_feature_maps_and_anchors_of_the_paper_s_detector() -> None:
    model, decoding = ssdlite(classes=81)
    assert decoding.anchors is not None
    grids = decoding.anchors.grids
    assert [(grid.rows, len(grid.sizes)) for grid in grids] == [
        *((20, 3), (10, 6), (5, 6)),
        *((3, 6), (2, 6), (1, 6)),
    ]
    count = len(decoding.anchors.boxes())
    assert [tuple(each.shape) for each in model.outputs] == [(None, count, 4), (None, count, 81)]
    assert model.output_names == ["boxes", "scores"]
    assert model.get_layer("block13_expand").output_shape[-1] == 576
    assert grids[1].sizes[1] == pytest.approx((0.35 / 2**0.5, 0.35 * 2**0.5))


def test_anchors_have_a_score_of_one_hundredth_before_training() -> None:
    model, _ = ssdlite(width=0.35, input_shape=(64, 64, 1), classes=3, detector=SMALL)
    scores = model(np.zeros((1, 64, 64, 1), np.float32))[1].numpy()
    assert 1 / (1 + np.exp(-scores)) == pytest.approx(0.01, abs=2e-3)


@pytest.mark.parametrize(("stride", "side"), [(4, 16), (8, 8), (16, 4), (32, 2)])
def test_output_stride_by_dilation(stride: int, side: int) -> None:
    segmenter = Segmenter(output_stride=stride, pooling=False, upsample=False)
    model = deeplab(width=0.35, input_shape=(64, 64, 1), classes=4, segmenter=segmenter)
    assert model.output_shape == (None, side, side, 4)
    dilations = {model.get_layer(f"block{i}_depthwise").dilation_rate[0] for i in range(14, 17)}
    assert dilations == {32 // stride}
    assert model.get_layer("block0_depthwise").dilation_rate == (1, 1)


@pytest.mark.slow
def test_a_dilated_network_computes_as_the_strided_one_where_that_looks() -> None:
    """With the same weights, every second position of a map is the position of the strided map."""
    shape, wide = (64, 64, 1), Segmenter(output_stride=32, pooling=False, upsample=False)
    strided = deeplab(width=0.35, input_shape=shape, classes=4, segmenter=wide)
    dilated = deeplab(
        width=0.35, input_shape=shape, classes=4, segmenter=replace(wide, output_stride=16)
    )
    dilated.set_weights(strided.get_weights())
    x = np.random.default_rng(0).random((1, *shape), np.float32)
    keras, name = tf_keras(), "block13_depthwise"
    outputs = [
        keras.Model(model.input, model.get_layer(name).output)(x).numpy()
        for model in (strided, dilated)
    ]
    # TensorFlow pads a stride of 2 on the right side only
    assert outputs[0][:, :-1, :-1] == pytest.approx(outputs[1][:, 1:-1:2, 1:-1:2], abs=1e-5)


def test_logits_are_upsampled_to_the_input() -> None:
    small = Segmenter(output_stride=8, head_channels=16, rates=(2,))
    model = deeplab(width=0.35, input_shape=(40, 56, 3), classes=4, segmenter=small)
    assert model.output_shape == (None, 40, 56, 4)
    assert model.output_names == ["logits"]


@pytest.mark.parametrize(
    "make",
    [
        lambda: Detector(strides=(2, 2, 2)),
        lambda: Detector(strides=(2, 2, 2, 3, 1)),
        lambda: Detector(scales=(0.1, 0.2)),
        lambda: Detector(ratios=()),
        lambda: Segmenter(output_stride=7),
        lambda: Segmenter(rates=(0,)),
        lambda: ssdlite(classes=0),
        lambda: deeplab(classes=1),
        lambda: deeplab(dropout=1.0),
    ],
)
def test_what_makes_no_detector_or_segmenter_is_refused(make: Callable[[], object]) -> None:
    with pytest.raises(InvalidOptionError, match="expected"):
        make()


@pytest.mark.parametrize("width", [0.35, 0.5, 1.0, 1.4])
def test_the_width_of_channels(width: float) -> None:
    bottlenecks = [make_divisible(c * width) for _, c, n, _ in BOTTLENECKS for _ in range(n)]
    channels = [make_divisible(32 * width), *bottlenecks]
    assert width_of(channels) == width
    assert width_of([*channels[:-1], 8]) is None
