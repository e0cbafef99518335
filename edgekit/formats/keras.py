"""Keras 2 models (tf_keras): the one place that imports TensorFlow, and how it is set up."""

from __future__ import annotations

import math
import os
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.errors import InvalidModelError, MissingDependencyError
from edgekit.formats.quiet import quiet
from edgekit.signature import Signature, TensorSpec

#: A Keras tensor is the canonical one if no value is farther away, relative to the largest.
_SAME = 1e-3


def tensorflow() -> Any:
    """Import TensorFlow with the settings edgekit relies on, once.

    Legacy Keras, because tfmot needs it; oneDNN, because TensorFlow leaves it off on many CPUs
    where it is faster; C++ logs below error off, because stderr is for the user.

    Raises:
        MissingDependencyError: If TensorFlow is not installed.
    """
    if "tensorflow" not in sys.modules:
        os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
        os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
        os.environ.setdefault("GLOG_minloglevel", "2")
    try:
        with quiet():
            import tensorflow as tf

            tf.config.list_physical_devices()  # looks for GPUs, and says so when there is none
    except ImportError:
        raise MissingDependencyError("tensorflow", "train") from None
    tf.get_logger().setLevel("ERROR")
    return tf


def tf_keras() -> Any:
    """Import Keras 2.

    Raises:
        MissingDependencyError: If tf-keras is not installed.
    """
    tensorflow()
    try:
        with quiet():
            import tf_keras as keras
    except ImportError:
        raise MissingDependencyError("tf-keras", "train") from None
    return keras


def load(path: Path) -> Any:
    """Read a ``.keras`` file written by tf_keras.

    Code inside the file (Lambda layers) is refused.

    Raises:
        InvalidModelError: If the file is missing, is not a Keras 2 model, or holds code.
    """
    if not path.is_file():
        problem = "is a folder" if path.is_dir() else "not found"
        raise InvalidModelError(f"{path} {problem}; expected a .keras file written by tf_keras")
    if not zipfile.is_zipfile(path):
        raise InvalidModelError(
            f"{path} is not a .keras file (no zip archive, or cut short); "
            f"save the model with model.save('NAME.keras')"
        )
    try:
        return tf_keras().models.load_model(path, compile=False, safe_mode=True)
    except MissingDependencyError:
        raise
    except Exception as exc:  # tf_keras raises many types for a broken or foreign file
        said = str(exc).strip().splitlines()[0] if str(exc).strip() else type(exc).__name__
        raise InvalidModelError(
            f"{path} cannot be read as a tf_keras model: {said[:200]}; "
            f"save it with tf_keras (Keras 2) as model.save('NAME.keras')"
        ) from None


def to_bytes(model: Any) -> bytes:
    """A model as the content of a ``.keras`` file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.keras"
        model.save(path)
        return path.read_bytes()


def tensor_name(tensor: Any) -> str:
    """Name of the layer that a model's input or output belongs to."""
    return str(tensor.name).split("/")[0].split(":")[0]


def tensors_of(model: Any) -> list[tuple[str, Any]]:
    """(layer's name, tensor) of every call of a layer in a functional model, in order.

    Later calls of a layer get ``:1``, ``:2``, …; what is inside of an inner model is left out.

    Raises:
        InvalidModelError: If the model is no functional one.
    """
    if not getattr(model, "_is_graph_network", False):
        raise InvalidModelError(
            f"{model.name} is no functional model; build it with tf_keras.Model(inputs, outputs)"
        )
    calls: dict[str, int] = {}
    found = []
    for depth in sorted(model._nodes_by_depth, reverse=True):
        for node in model._nodes_by_depth[depth]:
            name = node.layer.name
            number = calls[name] = calls.get(name, -1) + 1
            if not isinstance(node.outputs, list | tuple | dict):
                found.append((f"{name}:{number}" if number else name, node.outputs))
    return found


def by_values(
    expected: Mapping[str, npt.NDArray[Any]], answers: Mapping[str, npt.NDArray[Any]]
) -> dict[str, str]:
    """Which Keras tensor holds the values of a canonical one, up to float rounding.

    Args:
        expected: Values ``[N, ...]`` by canonical name.
        answers: Values by the Keras tensor's name, in order of execution; a tensor of another shape
            and the same size counts as well, one of the same shape first.

    Returns:
        Name of the nearest by canonical name; of several that are as near the last, which is behind
        its activation. What has none is left out.
    """
    found = {}
    places = {key: place for place, key in enumerate(answers)}
    for name, values in expected.items():
        size = float(np.abs(values).max(initial=0)) + 1e-6
        off = {
            key: float(np.abs(other.reshape(values.shape) - values).max(initial=0))
            for key, other in answers.items()
            if other.size == values.size
        }
        near = min(off.values(), default=math.inf)
        if near > _SAME * size:
            continue
        same = [key for key, distance in off.items() if distance <= 2 * near + 1e-7 * size]
        found[name] = max(same, key=lambda key: (answers[key].shape == values.shape, places[key]))
    return found


def signature(model: Any) -> Signature:
    """The signature of a functional model, batch axis -1."""

    def specs(tensors: Any) -> tuple[TensorSpec, ...]:
        return tuple(
            TensorSpec(
                name=tensor_name(tensor),
                shape=tuple(-1 if size is None else int(size) for size in tensor.shape),
                dtype=tensor.dtype.name,
            )
            for tensor in tensors
        )

    return Signature(inputs=specs(model.inputs), outputs=specs(model.outputs))
