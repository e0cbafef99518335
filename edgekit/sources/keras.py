"""Keras models: the one place that imports TensorFlow, and how it is set up."""

from __future__ import annotations

import contextlib
import gc
import math
import os
import re
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.base.errors import InvalidModelError, MissingDependencyError
from edgekit.base.quiet import quiet
from edgekit.records.signature import Signature, TensorSpec
from edgekit.sources import keras_file

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
        with quiet(), _uncollected():
            import tensorflow as tf

            tf.config.list_physical_devices()  # looks for GPUs, and says so when there is none
    except ImportError:
        raise MissingDependencyError("tensorflow", "train") from None
    tf.get_logger().setLevel("ERROR")
    return tf


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """Keep Python's collector from looking for garbage during a first import, and later in the
    hundreds of thousands of objects that it creates, which stay."""
    first, enabled = "tensorflow" not in sys.modules, gc.isenabled()
    if first:
        gc.disable()
    try:
        yield
    finally:
        if first:
            gc.freeze()
        if enabled:
            gc.enable()


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


def keras_3() -> Any:
    """Import Keras 3 on its TensorFlow backend, beside Keras 2.

    Raises:
        MissingDependencyError: If Keras 3 is not installed.
        InvalidModelError: If it was imported on another backend before.
    """
    tensorflow()
    if "keras" not in sys.modules:
        os.environ["KERAS_BACKEND"] = "tensorflow"
    try:
        with quiet():
            import keras
    except ImportError:
        raise MissingDependencyError("keras>=3", "convert") from None
    if keras.backend.backend() != "tensorflow":
        raise InvalidModelError(
            f"expected Keras 3 on the backend tensorflow, got {keras.backend.backend()}; "
            f"set KERAS_BACKEND=tensorflow"
        )
    return keras


def load(path: Path, *, trust: bool = False) -> Any:
    """Read a ``.keras`` or HDF5 file of Keras 2 or 3 with the Keras that wrote it.

    Args:
        path: The file.
        trust: Let code inside of the file run: Lambda layers, functions and layers of others.

    Raises:
        InvalidModelError: If the file is missing, is no Keras model, or holds what is not known to
            be safe.
    """
    file = keras_file.read(path)
    if not trust:
        for layer, problem in file.code():
            raise InvalidModelError(
                f"{path}: {layer} holds {problem}; pass --trust to run it here if you know who "
                f"made the file, or save the model with model.export('NAME'), which needs no Python"
            )
    keras = keras_3() if file.version >= 3 else tf_keras()
    try:
        with quiet():
            return keras.models.load_model(path, compile=False, safe_mode=not trust)
    except Exception as exc:  # Keras raises many types for a broken or foreign file
        said = str(exc).strip().splitlines()[0] if str(exc).strip() else type(exc).__name__
        unknown = re.search(r"(?:Unknown layer: |Could not locate class )'(\w+)'", said)
        own = file.layer_of(unknown.group(1)) if unknown else None
        if unknown and own:
            raise InvalidModelError(
                f"{path}: {own} is a {unknown.group(1)}, which is no layer of Keras; save the "
                f"model as a SavedModel with model.export('NAME'), which needs no Python"
            ) from None
        raise InvalidModelError(
            f"{path} cannot be read as a model of Keras {file.version}: {said[:200]}; "
            f"save it as model.save('NAME.keras'), or as a SavedModel with model.export('NAME')"
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
    tensors = []
    for depth in sorted(model._nodes_by_depth, reverse=True):
        for node in model._nodes_by_depth[depth]:
            name = node.layer.name
            number = calls[name] = calls.get(name, -1) + 1
            if not isinstance(node.outputs, list | tuple | dict):
                tensors.append((f"{name}:{number}" if number else name, node.outputs))
    return tensors


def by_values(
    expected: Mapping[str, npt.NDArray[Any]], outputs: Mapping[str, npt.NDArray[Any]]
) -> dict[str, str]:
    """Which Keras tensor holds the values of a canonical one, up to float rounding.

    Args:
        expected: Values ``[N, ...]`` by canonical name.
        outputs: Values by the Keras tensor's name, in order of execution; a tensor of another shape
            and the same size counts as well, one of the same shape first.

    Returns:
        Name of the nearest by canonical name; of several that are as near the last, which is behind
        its activation. What has none is left out.
    """
    nearest = {}
    places = {key: place for place, key in enumerate(outputs)}
    for name, values in expected.items():
        size = float(np.abs(values).max(initial=0)) + 1e-6
        off = {
            key: float(np.abs(other.reshape(values.shape) - values).max(initial=0))
            for key, other in outputs.items()
            if other.size == values.size
        }
        near = min(off.values(), default=math.inf)
        if near > _SAME * size:
            continue
        same = [key for key, distance in off.items() if distance <= 2 * near + 1e-7 * size]
        nearest[name] = max(same, key=lambda key: (outputs[key].shape == values.shape, places[key]))
    return nearest


def input_names(model: Any) -> tuple[str, ...]:
    """A name for each input, each once."""
    return _once([tensor_name(tensor) for tensor in model.inputs])


def output_names(model: Any) -> tuple[str, ...]:
    """A name for each output, each once: that of the layer that computes it.

    An input that is an output as well is called ``NAME_out`` there.
    """
    names = [tensor_name(tensor) for tensor in model.outputs]
    if not is_keras_2(model):  # there a tensor has no name of its layer
        names = [tensor._keras_history.operation.name for tensor in model.outputs]
    inputs = input_names(model)
    return _once([f"{name}_out" if name in inputs else name for name in names])


def is_keras_2(model: Any) -> bool:
    """Whether it is a model of tf_keras; else of Keras 3."""
    return isinstance(model, tf_keras().Model)


def own_names(model: Any, tensors: Iterable[str]) -> dict[str, str]:
    """Names of tensors that a model was traced to, with the layers called as the model calls them.

    Keras 3 opens the scope of a layer twice a call, so that TensorFlow names the layer ``conv2d``
    ``conv2d_1``, as another layer may be called, and ``conv2d_1`` then ``conv2d_1_1``.

    Returns:
        The new name by that of TensorFlow, of tensors that get another one.
    """
    if is_keras_2(model):
        return {}
    names, models = {model.name}, [model]
    while models:
        for layer in models.pop().layers:
            names.add(layer.name)
            models += [layer] if hasattr(layer, "layers") else []

    def renamed(part: str) -> str:
        stem, _, number = part.rpartition("_")
        return stem if number.isdigit() and stem in names else part

    new_names: dict[str, str] = {}
    for tensor in tensors:
        own = ";".join("/".join(map(renamed, p.split("/"))) for p in tensor.split(";"))
        # a layer called twice keeps its numbers
        if own != tensor and own not in new_names.values():
            new_names[tensor] = own
    return new_names


def _once(names: list[str]) -> tuple[str, ...]:
    seen: dict[str, int] = {}
    unique = []
    for name in names:
        number = seen[name] = seen.get(name, -1) + 1
        unique.append(f"{name}_{number}" if number else name)
    return tuple(unique)


def call(model: Any, inputs: Sequence[Any]) -> list[Any]:
    """Run a functional model on a flat list of inputs; a flat list of outputs."""
    nest = sys.modules["tensorflow"].nest  # a model is there; and this may be traced, line by line
    struct = getattr(model, "_inputs_struct", None)
    if struct is None:
        struct = getattr(model, "_nested_inputs", None)
    if struct is None:
        struct = list(model.inputs) if len(inputs) > 1 else model.inputs[0]
    packed = nest.pack_sequence_as(struct, list(inputs))
    return list(nest.flatten(model(packed, training=False)))


def signature(model: Any) -> Signature:
    """The signature of a functional model, batch axis -1."""
    as_dtype = tensorflow().as_dtype

    def specs(names: Sequence[str], tensors: Any) -> tuple[TensorSpec, ...]:
        return tuple(
            TensorSpec(
                name=name,
                shape=tuple(-1 if size is None else int(size) for size in tensor.shape),
                dtype=as_dtype(tensor.dtype).name,
            )
            for name, tensor in zip(names, tensors, strict=True)
        )

    return Signature(
        inputs=specs(input_names(model), model.inputs),
        outputs=specs(output_names(model), model.outputs),
    )
