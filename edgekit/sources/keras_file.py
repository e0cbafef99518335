"""What a Keras file says before it is loaded: which Keras wrote it, and what in it is not safe.

``.keras`` is a zip archive with ``metadata.json`` and ``config.json``; HDF5 has both as attributes.
Loading a file that holds code runs it, so whatever is not in :mod:`edgekit.graph.safe` is looked
for here, without any framework, and named by the layer that it belongs to. A file is read as the
loader of Keras reads it: an archive where its name ends in ``.keras`` and it is one, else HDF5.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from edgekit.base import words
from edgekit.base.errors import InvalidModelError, MissingDependencyError, reason
from edgekit.graph import safe

_OWN = ("keras", "tf_keras", "keras_core", "builtins")
#: TensorFlow's initializers, which Keras 2 takes as its own.
_INITIALIZERS = "tensorflow.python.ops.init_ops"
_WEIGHTS = "model.weights.h5"
#: What says that it becomes larger than this when it is read, and more than so many times as large
#: as it is stored, is made to fill memory or disk.
_LARGE, _TIMES = 1 << 28, 100
#: Layers of Keras 2 that are made of a function of TensorFlow.
_OF_FUNCTIONS = ("TFOpLambda", "SlicingOpLambda")
_CODE = {
    "Lambda": "a Lambda layer, which is Python code",
    "__lambda__": "a lambda, which is Python code",
}


@dataclass(frozen=True)
class KerasFile:
    """A file as it describes itself.

    Attributes:
        version: Version of the Keras that wrote it, its first number.
        config: Configuration of the model, as JSON has it.
    """

    path: Path
    version: int
    config: dict[str, Any]

    def code(self) -> Iterator[tuple[str, str]]:
        """(layer, what in it is not known to be safe), in order of the file."""
        # how the whole model was compiled is not read; of a model inside of it, it is
        yield from _code({k: v for k, v in self.config.items() if k != "compile_config"})

    def layer_of(self, kind: str) -> str | None:
        """Name of the first layer of a class."""
        return next((name for name, own in _classes(self.config) if own == kind), None)


def read(path: Path) -> KerasFile:
    """Read version and configuration of a ``.keras`` or HDF5 file.

    Raises:
        InvalidModelError: If it is neither, holds no whole model, or would read other files.
    """
    if not path.is_file():
        problem = f"{path} is a folder" if path.is_dir() else words.not_found(path)
        raise InvalidModelError(f"{problem}; expected a .keras or .h5 file")
    archive = zipfile.is_zipfile(path)
    if archive and path.suffix == ".keras":
        return _read_archive(path)
    if _h5py().is_hdf5(path):
        return _read_hdf5(path)
    if archive:
        raise InvalidModelError(f"{path} is a zip archive; a Keras file that is one ends in .keras")
    raise InvalidModelError(
        f"{path} is not a .keras file (no zip archive, or cut short), nor HDF5; "
        f"save the model with model.save('NAME.keras')"
    )


def _read_archive(path: Path) -> KerasFile:
    try:
        with zipfile.ZipFile(path) as archive:
            _check_members(path, archive)
            metadata = json.loads(archive.read("metadata.json"))
            config = json.loads(archive.read("config.json"))
            file = KerasFile(path, int(str(metadata["keras_version"]).split(".")[0]), dict(config))
            if _WEIGHTS in archive.namelist():
                size = archive.getinfo(_WEIGHTS).file_size
                with archive.open(_WEIGHTS) as member:
                    # HDF5 goes back and forth, for which an archive is read from its beginning
                    whole = io.BytesIO(member.read()) if size <= _LARGE else member
                    _check_weights(path, whole, size)
        return file
    except InvalidModelError:
        raise
    except Exception as exc:  # zipfile, zlib, json and h5py raise many types for a broken archive
        raise InvalidModelError(
            f"{path} cannot be read as a Keras model: {reason(exc)}; "
            f"save it with model.save('NAME.keras')"
        ) from None


def _read_hdf5(path: Path) -> KerasFile:
    try:
        with _h5py().File(path, "r") as file:
            attributes = {name: file.attrs[name] for name in file.attrs}
    except Exception as exc:  # h5py raises many types for a broken file
        raise InvalidModelError(
            f"{path} cannot be read as HDF5 (cut short?): {reason(exc)}; save the model again"
        ) from None
    if "model_config" not in attributes:
        raise InvalidModelError(
            f"{path} holds weights only, no model; save it whole with model.save('NAME.keras')"
        )
    try:
        text = attributes["model_config"]
        config = json.loads(text.decode() if isinstance(text, bytes) else text)
        version = attributes.get("keras_version", "2")
        version = version.decode() if isinstance(version, bytes) else str(version)
        result = KerasFile(path, int(version.split(".")[0]), dict(config))
        with path.open("rb") as stream:
            _check_weights(path, stream, path.stat().st_size)
        return result
    except InvalidModelError:
        raise
    except Exception as exc:  # what json, int and h5py raise for a broken file
        raise InvalidModelError(
            f"{path} cannot be read as a Keras model: {reason(exc)}; save the model again"
        ) from None


def _h5py() -> Any:
    try:
        import h5py
    except ImportError:
        raise MissingDependencyError("h5py", "convert") from None
    return h5py


def _check_members(path: Path, archive: zipfile.ZipFile) -> None:
    """Refuse an archive that would fill the disk, or put a file where it does not belong."""
    names = set()
    for member in archive.infolist():
        name = PurePosixPath(member.filename)
        if name.is_absolute() or ".." in name.parts or "\\" in member.filename:
            raise InvalidModelError(
                f"{path} holds a file outside of its folder, {member.filename!r}; a Keras file has "
                f"none: save the model again"
            )
        if member.filename in names:
            raise InvalidModelError(f"{path} holds {member.filename!r} twice; save the model again")
        names.add(member.filename)
        if member.file_size > _LARGE and member.file_size > _TIMES * member.compress_size:
            raise InvalidModelError(
                f"{path}: {member.filename} says that it becomes {member.file_size:,} bytes of "
                f"{member.compress_size:,}; expected weights as Keras stores them: save it again"
            )


def _check_weights(path: Path, stream: IO[bytes], stored: int) -> None:
    """Refuse weights that lie in other files, or are larger than what is stored of them.

    Args:
        path: For messages.
        stream: An HDF5 file.
        stored: Its bytes.
    """
    h5py = _h5py()
    with h5py.File(stream, "r") as file:
        waiting, seen = [file["/"]], set()
        while waiting:
            group = waiting.pop()
            for name in group:
                link = group.get(name, getlink=True)
                place = f"{group.name.rstrip('/')}/{name}"
                if isinstance(link, h5py.ExternalLink):
                    raise InvalidModelError(
                        f"{path}: {place} is a link into another file, {link.filename!r}; "
                        f"save the model again"
                    )
                if isinstance(link, h5py.SoftLink):
                    continue  # what it leads to is met by itself
                member = group[name]
                if isinstance(member, h5py.Dataset):
                    if member.external or member.is_virtual:
                        raise InvalidModelError(
                            f"{path}: the numbers of {place} lie in another file; save the model "
                            f"again"
                        )
                    if member.nbytes > max(_LARGE, _TIMES * stored):
                        raise InvalidModelError(
                            f"{path}: {place} says that it has {member.nbytes:,} bytes, the file "
                            f"{stored:,}; save the model again"
                        )
                elif isinstance(member, h5py.Group):
                    address = h5py.h5o.get_info(member.id).addr
                    if address not in seen:  # a group may lie within itself
                        seen.add(address)
                        waiting.append(member)


def _code(config: Any) -> Iterator[tuple[str, str]]:
    waiting: list[tuple[Any, str]] = [(config, "the model")]
    while waiting:
        part, layer = waiting.pop()
        if isinstance(part, list):
            waiting += [(each, layer) for each in reversed(part)]
        if not isinstance(part, dict):
            continue
        own = part.get("config")
        if isinstance(own, dict) and isinstance(own.get("name"), str):
            layer = own["name"]
        if "class_name" in part:
            problem = _problem(part["class_name"], part)
            if problem is not None:
                yield layer, problem
                continue
        waiting += [(value, layer) for value in reversed(part.values())]


def _classes(config: Any) -> Iterator[tuple[str, str]]:
    """(name, class) of every object with a name, in order of the file."""
    waiting = [config]
    while waiting:
        part = waiting.pop()
        if isinstance(part, dict):
            own = part.get("config")
            if isinstance(own, dict) and "name" in own and "class_name" in part:
                yield str(own["name"]), str(part["class_name"])
        if isinstance(part, dict | list):
            values = part.values() if isinstance(part, dict) else part
            waiting += reversed(list(values))


def _problem(kind: Any, part: dict[str, Any]) -> str | None:
    """What is not known to be safe in an object of a configuration, or None."""
    config = part.get("config")
    module, registered = part.get("module"), part.get("registered_name")
    if not (isinstance(kind, str) and all(isinstance(e, str | None) for e in (module, registered))):
        return f"an object of the class {kind!r}, whose names are no text"
    if kind in _CODE:
        return _CODE[kind]
    known = isinstance(module, str) and module.startswith(_INITIALIZERS)
    if isinstance(module, str) and module.split(".")[0] not in _OWN and not known:
        return f"the custom object {module}.{kind}"
    if kind == "function":
        if isinstance(config, str) and {config, registered or config} <= safe.KERAS_FUNCTIONS:
            return None
        return f"the custom function {config}"
    own = registered is None or registered in safe.KERAS_REGISTERED or _plain(registered) == kind
    if not own:
        return f"the custom object {registered}"
    if kind in _OF_FUNCTIONS:
        return _of_function(config)
    if kind == "TensorFlowOpLayer":
        return _of_operator(config)
    operations = isinstance(module, str) and not known and ".ops." in f"{module}."
    allowed = safe.KERAS_OPERATIONS if operations else safe.KERAS_CLASSES
    if module is None:  # in HDF5 there is none
        allowed = safe.KERAS_OPERATIONS | safe.KERAS_CLASSES
    if kind in allowed:
        return None
    return f"the class {kind}, which is not among those of Keras that are known to compute only"


def _plain(registered: str) -> str:
    """A registered name without the package, where that is Keras'."""
    package, mark, name = registered.rpartition(">")
    return name if mark and package.split(".")[0] in _OWN else registered


def _of_function(config: Any) -> str | None:
    function = config.get("function") if isinstance(config, dict) else None
    if isinstance(function, str):
        if function.removeprefix("compat.v1.") in safe.TENSORFLOW_FUNCTIONS:
            return None
    return f"the function tf.{function}, which is not known to compute only"


def _of_operator(config: Any) -> str | None:
    node = config.get("node_def") if isinstance(config, dict) else None
    operator = node.get("op") if isinstance(node, dict) else None  # else a message in bytes
    if isinstance(operator, str) and operator in safe.TENSORFLOW_OPERATORS:
        return None
    return f"the operator {operator} of TensorFlow, which is not known to compute only"
