"""Two small networks that are trained in a minute or two on real pictures, for trials of int8.

    python benchmarks/trained.py vit|lstm OUT.keras

Both classify Fashion-MNIST, with the pixels in [0, 1] (preprocessing `unit`). They see the first
9,000 pictures of the test set; the last 1,000 are left to judge by. The training set's pictures,
of which edgekit calibrates, are left too.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.data import fashion_mnist
from edgekit.sources.keras import tf_keras

#: Pictures of the test set that are trained with; those behind them are not.
TRAINED = 9000
BLOCKS, WIDTH, UNITS = 4, 48, 32


def transformer() -> Any:
    """A vision transformer (Dosovitskiy et al. 2021, section 3.1) of four blocks, trained.

    Returns:
        A tf_keras model: float32 ``[N, 28, 28, 1]`` to probabilities ``[N, 10]``.
    """
    keras = tf_keras()
    layers = keras.layers
    keras.utils.set_random_seed(0)
    image = keras.Input((28, 28, 1), name="image")
    x = layers.Reshape((16, WIDTH))(layers.Conv2D(WIDTH, 7, 7)(image))
    for _ in range(BLOCKS):
        y = layers.LayerNormalization(epsilon=1e-6)(x)
        x = layers.Add()([x, layers.MultiHeadAttention(4, WIDTH // 4)(y, y)])
        y = layers.LayerNormalization(epsilon=1e-6)(x)
        y = layers.Dense(2 * WIDTH, activation="gelu")(y)
        x = layers.Add()([x, layers.Dense(WIDTH)(y)])
    x = layers.GlobalAveragePooling1D()(layers.LayerNormalization(epsilon=1e-6)(x))
    return _trained(keras, keras.Model(image, layers.Dense(10, activation="softmax")(x)), 8)


def recurrent() -> Any:
    """An LSTM (Hochreiter and Schmidhuber 1997) that reads a picture row by row, trained.

    Unrolled, so that each step is a dense layer that can be int8.

    Returns:
        As :func:`transformer`.
    """
    keras = tf_keras()
    layers = keras.layers
    keras.utils.set_random_seed(0)
    image = keras.Input((28, 28, 1), name="image")
    x = layers.LSTM(UNITS, unroll=True)(layers.Reshape((28, 28))(image))
    return _trained(keras, keras.Model(image, layers.Dense(10, activation="softmax")(x)), 15)


#: By the word of the command.
NETWORKS: dict[str, Callable[[], Any]] = {"vit": transformer, "lstm": recurrent}


def _trained(keras: Any, model: Any, epochs: int) -> Any:
    images = fashion_mnist.load("test")
    pixels, labels = images.images[:TRAINED] / np.float32(255), images.labels[:TRAINED]
    model.compile(keras.optimizers.Adam(1e-3), "sparse_categorical_crossentropy")
    model.fit(pixels, labels, batch_size=64, epochs=epochs, verbose=0)
    return model


def main() -> None:
    """Train one and save it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("network", choices=NETWORKS)
    parser.add_argument("out", type=Path, metavar="OUT.keras")
    chosen = parser.parse_args()
    NETWORKS[chosen.network]().save(chosen.out)


if __name__ == "__main__":
    main()
