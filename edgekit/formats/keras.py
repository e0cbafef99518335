"""Keras 2 models (tf_keras): the one place that imports TensorFlow, and how it is set up."""

from __future__ import annotations

import os
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from edgekit.errors import InvalidModelError, MissingDependencyError
from edgekit.formats.quiet import quiet
from edgekit.signature import Signature, TensorSpec


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
