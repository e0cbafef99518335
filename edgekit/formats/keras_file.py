"""What a Keras file says before it is loaded: which Keras wrote it, and what in it is code.

``.keras`` is a zip archive with ``metadata.json`` and ``config.json``; HDF5 has both as attributes.
Loading a file that holds code runs it, so code is looked for here, without any framework, and named
by the layer that it belongs to.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekit.errors import InvalidModelError, MissingDependencyError, reason

#: Names of functions that configurations may refer to, by the last part of their module.
_FUNCTIONS = frozenset(
    "activations initializers regularizers constraints losses metrics ops".split()
)
_OWN = ("keras", "tf_keras", "keras_core", "builtins")
#: TensorFlow's initializers, which Keras 2 takes as its own.
_INITIALIZERS = "tensorflow.python.ops.init_ops"
#: Functions of TensorFlow that reach beyond the graph, as a layer made of a function names them.
_REACHING = (
    "io.",
    "py_function",
    "numpy_function",
    "raw_ops.",
    "saved_model.",
    "print",
    "debugging.",
)
_HDF5 = b"\x89HDF\r\n\x1a\n"


@dataclass(frozen=True)
class KerasFile:
    """A file as it describes itself.

    Attributes:
        version: Of the Keras that wrote it, its first number.
        config: Of the model, as JSON has it.
    """

    path: Path
    version: int
    config: dict[str, Any]

    def code(self) -> Iterator[tuple[str, str]]:
        """(layer, what in it is code or comes from elsewhere), in order of the file."""
        yield from _code(self.config, "the model")

    def layer_of(self, kind: str) -> str | None:
        """Name of the first layer of a class."""
        return next((name for name, own in _classes(self.config) if own == kind), None)


def is_hdf5(path: Path) -> bool:
    """Whether a file begins as HDF5 does."""
    with path.open("rb") as stream:
        return stream.read(len(_HDF5)) == _HDF5


def read(path: Path) -> KerasFile:
    """Read version and configuration of a ``.keras`` or HDF5 file.

    Raises:
        InvalidModelError: If it is neither, or holds no whole model.
    """
    if not path.is_file():
        problem = "is a folder" if path.is_dir() else "not found"
        raise InvalidModelError(f"{path} {problem}; expected a .keras or .h5 file")
    if is_hdf5(path):
        return _read_hdf5(path)
    if not zipfile.is_zipfile(path):
        raise InvalidModelError(
            f"{path} is not a .keras file (no zip archive, or cut short), nor HDF5; "
            f"save the model with model.save('NAME.keras')"
        )
    try:
        with zipfile.ZipFile(path) as archive:
            metadata = json.loads(archive.read("metadata.json"))
            config = json.loads(archive.read("config.json"))
        return KerasFile(path, int(str(metadata["keras_version"]).split(".")[0]), dict(config))
    except Exception as exc:  # zipfile, zlib and json raise many types for a broken archive
        raise InvalidModelError(
            f"{path} cannot be read as a Keras model: {reason(exc)}; "
            f"save it with model.save('NAME.keras')"
        ) from None


def _read_hdf5(path: Path) -> KerasFile:
    try:
        import h5py
    except ImportError:
        raise MissingDependencyError("h5py", "convert") from None
    try:
        with h5py.File(path, "r") as file:
            found = {name: file.attrs[name] for name in file.attrs}
    except Exception as exc:  # h5py raises many types for a broken file
        raise InvalidModelError(
            f"{path} cannot be read as HDF5 (cut short?): {reason(exc)}; save the model again"
        ) from None
    if "model_config" not in found:
        raise InvalidModelError(
            f"{path} holds weights only, no model; save it whole with model.save('NAME.keras')"
        )
    try:
        text = found["model_config"]
        config = json.loads(text.decode() if isinstance(text, bytes) else text)
        version = found.get("keras_version", "2")
        version = version.decode() if isinstance(version, bytes) else str(version)
        return KerasFile(path, int(version.split(".")[0]), dict(config))
    except Exception as exc:  # what json and int raise for a broken attribute
        raise InvalidModelError(
            f"{path} cannot be read as a Keras model: {reason(exc)}; save the model again"
        ) from None


def _code(found: Any, layer: str) -> Iterator[tuple[str, str]]:
    if isinstance(found, list):
        for each in found:
            yield from _code(each, layer)
        return
    if not isinstance(found, dict):
        return
    kind = found.get("class_name")
    config = found.get("config")
    if isinstance(config, dict) and isinstance(config.get("name"), str):
        layer = config["name"]
    if isinstance(kind, str):
        problem = _problem(kind, found)
        if problem is not None:
            yield layer, problem
            return
    for key, value in found.items():
        if key not in ("compile_config", "build_config"):
            yield from _code(value, layer)


def _classes(found: Any) -> Iterator[tuple[str, str]]:
    """(name, class) of every object with a name, in order of the file."""
    if isinstance(found, dict):
        config = found.get("config")
        if isinstance(config, dict) and "name" in config and "class_name" in found:
            yield str(config["name"]), str(found["class_name"])
    for value in found.values() if isinstance(found, dict) else found:
        if isinstance(value, dict | list):
            yield from _classes(value)


def _problem(kind: str, found: dict[str, Any]) -> str | None:
    """What is code in an object of a configuration, or None."""
    config = found.get("config")
    if kind == "Lambda":
        return "a Lambda layer, which is Python code"
    if kind == "__lambda__":
        return "a lambda, which is Python code"
    if kind in ("TFOpLambda", "SlicingOpLambda"):
        function = str(config.get("function", "")) if isinstance(config, dict) else ""
        if function.startswith(_REACHING):
            return f"the function tf.{function}, which reaches beyond the model"
        return None
    module = found.get("module")
    known = isinstance(module, str) and module.startswith(_INITIALIZERS)
    if isinstance(module, str) and module.split(".")[0] not in _OWN and not known:
        return f"the custom object {module}.{kind}"
    registered = found.get("registered_name")
    if isinstance(registered, str) and ">" in registered:
        return f"the custom object {registered}"
    if kind == "function":
        if isinstance(module, str) and module.rsplit(".", 1)[-1] in _FUNCTIONS:
            return None
        return f"the custom function {config}"
    return None
