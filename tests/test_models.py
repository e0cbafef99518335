from __future__ import annotations

import pytest

from edgekit.base.errors import InvalidOptionError
from edgekit.models.__main__ import PUBLISHED
from edgekit.models.counts import count
from edgekit.models.mobilenet_v2 import make_divisible, mobilenet_v2
from edgekit.sources.keras import tf_keras


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
