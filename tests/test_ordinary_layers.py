"""Ordinary layers of Keras in int8: each net answers about as in float, in both formats."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exported import answers, decibels, export

from edgekit.base.errors import ExecutionError, FidelityError, InvalidModelError
from edgekit.sources import keras as keras_format

COUNT = 48
keras = keras_format.tf_keras()
layers = keras.layers


def _one_channel(image: Any) -> Any:
    one = layers.Conv2D(1, 3)(image)
    return [one, layers.DepthwiseConv2D(3, depth_multiplier=3)(layers.Conv2D(1, 1)(image))]


def _activation_at_the_end(image: Any) -> Any:
    return layers.Conv2D(5, 3, activation="relu")(image)


def _rows(rows: Any) -> Any:
    x = layers.Dense(4, activation="relu")(rows)
    one = layers.GlobalAveragePooling1D(keepdims=True)(rows)
    one = layers.MultiHeadAttention(1, 4)(one, one)
    return [layers.Add()([x, layers.MultiHeadAttention(2, 4)(x, x)]), one]


def _rows_of_an_image(image: Any) -> Any:
    x = layers.UpSampling2D()(layers.Conv2D(4, 3)(image))
    return layers.Conv2D(3, 1)(layers.Add()([x, layers.Dense(4)(x)]))


def _facts(facts: Any) -> Any:
    x = layers.Dense(6)(facts)
    read_twice = layers.Dense(3, activation="relu")(layers.Add()([x, layers.Dense(6)(x)]))
    curves = [layers.Dense(3, activation=kind)(facts) for kind in ("sigmoid", "tanh", "softmax")]
    joined = layers.Concatenate()([*curves, layers.Dense(3)(facts)])
    return [read_twice, layers.Dense(2)(joined), layers.UnitNormalization()(x)]


def _words(words: Any, facts: Any) -> Any:
    one = layers.Flatten()(layers.Embedding(20, 6)(words))
    return [layers.Dense(3)(one), layers.Dense(1)(layers.Concatenate()([facts, one]))]


def _normalized(facts: Any) -> Any:
    return layers.LayerNormalization()(facts)


def _ends(facts: Any) -> Any:
    x = layers.Dense(4)(facts)
    inner = layers.LeakyReLU(0.2)(layers.Dense(4)(facts))
    return [x, x, layers.ReLU()(x), facts, inner, layers.Dense(2)(layers.ELU()(inner))]


def _pooled_and_shown(image: Any) -> Any:
    x = layers.Conv2D(4, 3, activation="relu6")(image)
    return [x, layers.Dense(3)(layers.GlobalAveragePooling2D()(x))]


def _bytes(pixels: Any) -> Any:
    x = layers.Conv2D(4, 3)(layers.Rescaling(1 / 16, -0.5)(pixels))
    return layers.Dense(3)(layers.ReLU(threshold=0.1)(layers.GroupNormalization(2)(x)))


IMAGE, ROWS, FACTS = ((8, 8, 3), "float32"), ((10, 4), "float32"), ((6,), "float32")
WORD, PIXELS = ((1,), "int32"), ((8, 8, 3), "uint8")
NETS: dict[str, tuple[Callable[..., Any], tuple[tuple[tuple[int, ...], str], ...]]] = {
    "one channel": (_one_channel, (IMAGE,)),
    "activation at the end": (_activation_at_the_end, (IMAGE,)),
    "pooled and shown": (_pooled_and_shown, (IMAGE,)),
    "rows": (_rows, (ROWS,)),
    "rows of an image": (_rows_of_an_image, (IMAGE,)),
    "facts": (_facts, (FACTS,)),
    "words": (_words, (WORD, FACTS)),
    "normalized": (_normalized, (FACTS,)),
    "ends": (_ends, (FACTS,)),
    "bytes": (_bytes, (PIXELS,)),
}


def _build(
    net: Callable[..., Any], inputs: tuple[tuple[tuple[int, ...], str], ...], place: Path
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Save a net with random weights, and set.npz; its samples and its answers by output."""
    keras.utils.set_random_seed(3)
    random = np.random.default_rng(3)
    entries, values = [], {}
    for i, (shape, dtype) in enumerate(inputs):
        entries.append(keras.Input(shape, name=f"in{i}", dtype=dtype))
        drawn = random.normal(0, 1, (COUNT, *shape)).clip(-3, 3)
        if dtype != "float32":
            drawn = random.integers(0, 20, drawn.shape)
        values[f"in{i}"] = drawn.astype(dtype)
    model = keras.Model(entries, net(*entries))
    for layer in model.layers:
        weights = layer.get_weights()  # biases that are not 0, rows of a table that differ
        layer.set_weights([w + random.normal(0, 0.1, w.shape).astype(np.float32) for w in weights])
    model.save(place / "net.keras")
    np.savez(place / "set.npz", **values)
    found = keras_format.call(model, list(values.values()))
    names = keras_format.output_names(model)
    return values, dict(zip(names, map(np.asarray, found), strict=True))


@pytest.mark.parametrize("name", NETS)
def test_ordinary_layers_become_int8(name: str, tmp_path: Path) -> None:
    values, exact = _build(*NETS[name], tmp_path)
    for target in ("tflite", "onnx"):
        written = export(
            tmp_path / "net.keras",
            target=target,
            precision="int8",
            preprocessing="none",
            calibration=str(tmp_path / "set.npz"),
            correction="none",
            out=tmp_path / target,
        )
        found = answers(written, values)
        assert found.keys() == exact.keys()
        for output, real in exact.items():
            assert decibels(real, found[output]) > 23


def _looped(rows: Any) -> Any:
    return layers.LSTM(3, name="memory")(rows)


def _real_indices(words: Any) -> Any:
    return layers.Embedding(300, 2, name="table")(layers.ReLU()(words))


@pytest.mark.parametrize(
    "net, inputs, said",
    [
        (_looped, ROWS, "memory is a loop.*unroll=True"),
        (_real_indices, FACTS, "table/Cast takes whole numbers .* dtype='int32'"),
    ],
)
def test_what_has_no_int8_form_is_named(
    net: Callable[..., Any], inputs: tuple[tuple[int, ...], str], said: str, tmp_path: Path
) -> None:
    _build(net, (inputs,), tmp_path)
    with pytest.raises(InvalidModelError, match=said):
        export(
            tmp_path / "net.keras",
            target="tflite",
            precision="int8",
            preprocessing="none",
            calibration=str(tmp_path / "set.npz"),
            out=tmp_path / "out",
        )
    assert not (tmp_path / "out").exists()


def _cancelling(facts: Any) -> Any:
    """What is left of two large numbers is less than a step of theirs."""
    large, small = layers.Rescaling(1000.0)(facts), layers.Dense(6)(facts)
    left = layers.Subtract()([layers.Add()([large, small]), large])
    return layers.Dense(2)(left)


def test_a_file_of_which_little_is_left_is_refused_where_nothing_may_stay_float(
    tmp_path: Path,
) -> None:
    _build(_cancelling, (FACTS,), tmp_path)
    with pytest.raises(FidelityError, match="(is poor|dead in the int8).*leave out --strict"):
        export(
            tmp_path / "net.keras",
            target="tflite",
            precision="int8",
            preprocessing="none",
            calibration=str(tmp_path / "set.npz"),
            strict=True,
            correction="none",
            out=tmp_path / "out",
        )
    assert not (tmp_path / "out").exists()


def _steep(facts: Any, factor: float) -> Any:
    """e^255 is infinite in float32, and random inputs are numbers from 0 to 1 here."""
    grown = layers.Activation("exponential")(layers.Rescaling(factor)(facts))
    return layers.Dense(2, kernel_initializer="ones")(grown)


def test_what_overflows_in_float32_too_is_left_out(tmp_path: Path) -> None:
    given = {"target": "tflite", "precision": "float32", "preprocessing": "none"}
    _build(lambda facts: _steep(facts, 97.0), (FACTS,), tmp_path)
    written = export(tmp_path / "net.keras", out=tmp_path / "out", **given)
    assert "infinities of the float model's own in" in written.manifest.notes[-1]
    _build(lambda facts: _steep(facts, 255.0), (FACTS,), tmp_path)
    with pytest.raises(ExecutionError, match="for each of 4 random inputs, in float32 already"):
        export(tmp_path / "net.keras", out=tmp_path / "none", **given)


@pytest.mark.slow
@pytest.mark.parametrize("target", ["tflite", "onnx"])
def test_recurrent_layers_on_each_other_compute_in_float(target: str, tmp_path: Path) -> None:
    """One loop reads what another wrote, and both start from the same zeros."""
    rows = layers.Input(ROWS[0], name="rows")
    model = keras.Model(rows, layers.LSTM(5)(layers.LSTM(5, return_sequences=True)(rows)))
    model.save(tmp_path / "net.keras")
    x = np.random.default_rng(0).normal(size=(4, *ROWS[0])).astype(np.float32)
    exact = model.predict(x, verbose=0)
    for precision, close in (("float32", 100), ("float16", 50)):
        written = export(
            tmp_path / "net.keras",
            target=target,
            precision=precision,
            preprocessing="none",
            out=tmp_path / precision,
        )
        (found,) = answers(written, {"rows": x}).values()
        assert decibels(exact, found) > close
