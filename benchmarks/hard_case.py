"""A hard case for int8, made from the shipped model: the same function, unequal channels.

    python benchmarks/hard_case.py OUT.keras [--seed 0]

In each expand, depthwise, project chain ReLU6 becomes ReLU, since only a ReLU lets a positive
factor through. Then every channel between two convolutions is multiplied by a factor of its own,
log-uniform from 0.1 to 10: it goes into gamma and beta of the batch normalisation before the ReLU
and is divided out of the kernel behind it. In float nothing changes; with one scale a tensor, small
channels keep few of int8's 256 steps. Nagel et al. 2019 ("Data-Free Quantization Through Weight
Equalization and Bias Correction") describe how such models come about, and the way back.

The result takes the shipped model's preprocessing, `unit`:

    python -m edgekit.export OUT.keras --preprocessing unit --target tflite --precision int8 \\
        --calibration fashion_mnist --out build/hard-int8
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

FACTORS = (0.1, 10.0)
TOLERANCE = 1e-4
IMAGES = 64


def build(model: Any, *, seed: int = 0) -> Any:
    """The hard case of a flat functional tf_keras model; the model itself stays as it is.

    Args:
        model: With chains of 1x1 convolution, depthwise convolution, 1x1 convolution, each of the
            first two with batch normalisation and ReLU6.
        seed: Of the factors.

    Raises:
        ValueError: If the model has no such chain, or the answers changed by more than 1e-4.
    """
    plain = without_clip(model)
    hard = without_clip(model)
    rng = np.random.default_rng(seed)
    for name in scaled(model):
        activation = hard.get_layer(name)
        normal, consumer = _before(activation), _behind(activation)[0]
        low, high = np.log(FACTORS)
        factors = np.exp(rng.uniform(low, high, activation.output.shape[-1])).astype(np.float32)
        gamma, beta, *statistics = normal.get_weights()
        normal.set_weights([gamma * factors, beta * factors, *statistics])
        kernel, *bias = consumer.get_weights()  # [height, width, channels in, ...]
        consumer.set_weights([kernel / factors[:, None], *bias])
    images = np.random.default_rng(0).random((IMAGES, *model.input_shape[1:]), np.float32)
    difference = float(np.abs(hard(images).numpy() - plain(images).numpy()).max())
    if not difference <= TOLERANCE:
        raise ValueError(f"scaling changed the answers by {difference:.2g}, expected {TOLERANCE:g}")
    return hard


def without_clip(model: Any) -> Any:
    """A copy of the model whose ReLU6 within the chains are ReLU."""
    from edgekit.sources.keras import tf_keras

    keras = tf_keras()
    names = scaled(model)
    if not names:
        raise ValueError(f"{model.name} has no chain of convolution, depthwise, convolution")

    def copied(layer: Any) -> Any:
        if layer.name in names:
            return keras.layers.ReLU(name=layer.name)
        return layer.__class__.from_config(layer.get_config())

    found = keras.models.clone_model(model, clone_function=copied)
    found.set_weights(model.get_weights())
    return found


def scaled(model: Any) -> list[str]:
    """Names of the ReLUs on both sides of each depthwise convolution, the stem's left out."""
    from edgekit.sources.keras import tf_keras

    layers = tf_keras().layers
    found = []
    for layer in model.layers:
        if not isinstance(layer, layers.ReLU) or len(_behind(layer)) != 1:
            continue
        normal, consumer = _before(layer), _behind(layer)[0]
        if not isinstance(normal, layers.BatchNormalization) or len(_behind(normal)) != 1:
            continue
        convolution = _before(normal)
        if isinstance(convolution, layers.DepthwiseConv2D):
            fits = type(consumer) is layers.Conv2D
        else:
            fits = isinstance(consumer, layers.DepthwiseConv2D) and (
                type(convolution) is layers.Conv2D and convolution.kernel_size == (1, 1)
            )
        if fits:
            found.append(layer.name)
    return found


def spread(model: Any, images: npt.NDArray[np.float32]) -> dict[str, float]:
    """Largest over smallest range of the channels of each scaled tensor; silent ones left out."""
    from edgekit.sources.keras import tf_keras

    names = scaled(model)
    outputs = [model.get_layer(name).output for name in names]
    found = {}
    for name, values in zip(names, tf_keras().Model(model.input, outputs)(images), strict=True):
        ranges = values.numpy().max(axis=(0, 1, 2))
        ranges = ranges[ranges > 0]
        found[name] = float(ranges.max() / ranges.min())
    return found


def _before(layer: Any) -> Any:
    return layer.inbound_nodes[0].inbound_layers


def _behind(layer: Any) -> list[Any]:
    return [node.outbound_layer for node in layer.outbound_nodes]


def main() -> None:
    """Write the hard case; print what the change and the scaling do to the float model."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("out", type=Path, metavar="OUT.keras")
    options.add_argument("--seed", type=int, default=0)
    chosen = options.parse_args()
    from edgekit import data
    from edgekit.sources import float_model

    source = float_model.load(None)
    test = data.load("fashion_mnist", "test")
    values = source.preprocessing.apply(test.images)
    hard = build(source.model, seed=chosen.seed)
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    hard.save(chosen.out)
    models = {"shipped": source.model, "relu": without_clip(source.model), "hard case": hard}
    document: dict[str, Any] = {"out": str(chosen.out), "preprocessing": source.preprocessing.name}
    for name, model in models.items():
        answers = model.predict(values, batch_size=250, verbose=0).argmax(1)
        spreads = list(spread(model, values[:IMAGES]).values())
        row = {
            "top1": 100 * float((answers == test.labels).mean()),
            "spread_min": min(spreads),
            "spread_median": float(np.median(spreads)),
        }
        print(
            f"{name:10} top-1 {row['top1']:.2f} %; channel ranges of {len(spreads)} tensors spread "
            f"over {row['spread_min']:.0f}x at least, {row['spread_median']:.0f}x in the median"
        )
        document[name.replace(" ", "_")] = row
    print(json.dumps(document))


if __name__ == "__main__":
    main()
