"""Hostile files: each of them writes a marker file where what is in it is run.

``cases`` makes them. A case that is ``live`` was seen to write the marker when it is opened with
``--trust``; the others are refused by today's runtimes in other ways, and have to be refused before
those see them.
"""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.sources import keras as keras_format

Make = Callable[[Path, Path], Path]


@dataclass(frozen=True)
class Case:
    """One hostile file.

    Attributes:
        name: What is hostile in it.
        make: Makes it in a folder, for a marker; returns its path.
        says: A piece of the refusal, which names what is refused.
        live: Whether it writes the marker if it is trusted.
    """

    name: str
    make: Make
    says: str
    live: bool = False


def cases() -> list[Case]:
    """All model files, in a fixed order."""
    return [
        *(
            Case(f"Lambda, Keras {version}, {suffix}", _lambda(version, suffix), "Lambda", True)
            for version in (2, 3)
            for suffix in (".keras", ".h5")
        ),
        Case("lambda in a wrapper of cells", _residual, "class ResidualWrapper", True),
        *(
            Case(f"TFOpLambda of {name}, {suffix}", _function(name, suffix), f"tf.{name}", live)
            for name, suffix, live in (
                ("compat.v1.io.write_file", ".keras", True),
                ("compat.v1.io.gfile.copy", ".h5", True),
                ("compat.v1.gfile.Copy", ".keras", True),
                ("compat.v1.print", ".h5", True),
                ("load_op_library", ".keras", False),
                ("raw_ops.WriteFile", ".keras", False),
                ("map_fn", ".keras", False),
            )
        ),
        Case("operator layer", _operator_layer, "operator WriteFile"),
        Case("method of a class", _layer("ClassMethod", _METHOD), "class ClassMethod"),
        Case("method of an instance", _layer("InstanceMethod", _METHOD), "class InstanceMethod"),
        Case("SavedModel in a layer", _tfsm, "class TFSMLayer", True),
        *(
            Case(f"layer of a module, Keras {version}", _foreign(version), "evil.Dense")
            for version in (2, 3)
        ),
        Case("model of a module", _model_of_a_module, "evil.Functional", True),
        Case("type of a module", _typespec, "__typespec__", True),
        Case("optimizer of an inner model", _compiled, "evil.Adam"),
        Case("downloader as activation", _activation, "custom function get_file"),
        Case("lookup of a vocabulary", _vocabulary, "class StringLookup"),
        Case("HDF5 behind an archive", _archive_first, "Lambda", True),
        Case("archive behind HDF5", _hdf5_first, "tf.compat.v1.print", True),
        Case("file outside of its folder", _outside, "outside of its folder"),
        Case("config twice", _twice, "'config.json' twice"),
        Case("archive that fills the disk", _bomb, "says that it becomes 300,000,000 bytes"),
        Case("weights that fill the memory", _huge, "says that it has 1,099,511,627,776 bytes"),
        Case("weights in another file", _external, "lie in another file"),
        Case("weights behind a link", _linked, "link into another file"),
        *(
            Case(f"served {name}", _served(name), says, live)
            for name, says, live in (
                ("WriteFile", "operator WriteFile", True),
                ("CacheDatasetV2", "operator TensorSliceDataset", True),
                ("SaveV2", "operator SaveV2", True),
                ("RestoreV2", "operator RestoreV2", False),
                ("EagerPyFunc", "operator EagerPyFunc", False),
                ("PrintV2", "operator PrintV2", True),
            )
        ),
        Case("saving function that serves", _renamed, "traced_save.*operator WriteFile", True),
        Case("initializer of a resource", _resource, "operator WriteFile", True),
        Case("TensorFlow 1, initializer", _first_version(True), "save/evil.*WriteFile", True),
        Case("TensorFlow 1, served", _first_version(False), "save/evil.*WriteFile", True),
        Case("custom ONNX operator", _onnx("evil.domain", "WriteFile"), "evil.domain.WriteFile"),
        Case("ONNX operator in a branch", _onnx_branch, "evil.domain.WriteFile"),
        Case("binary for an ONNX provider", _onnx("com.microsoft", "EPContext"), "EPContext"),
        Case("TensorFlow in TFLite", _flex, "operator FlexWriteFile"),
    ]


# Keras


def _keras(version: int) -> Any:
    return keras_format.keras_3() if version == 3 else keras_format.tf_keras()


def _saved(keras: Any, path: Path, *layers: Any) -> Path:
    """A small functional model."""
    image = keras.Input((4,), name="image")
    x = image
    for layer in layers or (keras.layers.Dense(2, name="inner"),):
        x = layer(x)
    keras.Model(image, x, name="net").save(path)
    return path


def _lambda(version: int, suffix: str) -> Make:
    def make(folder: Path, mark: Path) -> Path:
        keras = _keras(version)
        code = f"lambda x: (open({str(mark)!r}, 'w').close(), x * 2)[1]"
        layer = keras.layers.Lambda(eval(code), output_shape=(4,), name="twice")
        path = _saved(keras, folder / f"net{suffix}", layer)
        mark.unlink(missing_ok=True)
        return path

    return make


def _residual(folder: Path, mark: Path) -> Path:
    keras = _keras(2)
    from tf_keras.src.layers.rnn.cell_wrappers import ResidualWrapper

    code = f"lambda i, o: (open({str(mark)!r}, 'w').close(), i + o)[1]"
    cell = ResidualWrapper(keras.layers.GRUCell(4), residual_fn=eval(code))
    words = keras.Input((3, 4), name="image")
    keras.Model(words, keras.layers.RNN(cell)(words)).save(folder / "net.h5")
    mark.unlink(missing_ok=True)
    return folder / "net.h5"


def changed(
    path: Path, change: Callable[[dict[str, Any]], None], members: dict[str, bytes] | None = None
) -> Path:
    """A Keras file with another configuration."""
    if path.suffix == ".h5":
        import h5py

        with h5py.File(path, "r+") as file:
            config = json.loads(file.attrs["model_config"])
            change(config)
            file.attrs["model_config"] = json.dumps(config)
        return path
    with zipfile.ZipFile(path) as archive:
        found = {name: archive.read(name) for name in archive.namelist()}
    config = json.loads(found["config.json"])
    change(config)
    found |= {"config.json": json.dumps(config).encode(), **(members or {})}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in found.items():
            archive.writestr(name, content)
    return path


def _function(name: str, suffix: str) -> Make:
    """A function that is called on constants while the graph is built."""

    def make(folder: Path, mark: Path) -> Path:
        first, more = {
            "compat.v1.io.write_file": (str(mark), {"contents": "x"}),
            "compat.v1.io.gfile.copy": ("/etc/hostname", {"dst": str(mark)}),
            "compat.v1.gfile.Copy": ("/etc/hostname", {"newpath": str(mark)}),
            "compat.v1.print": ("x", {"output_stream": f"file://{mark}"}),
        }.get(name, ("evil.so", {}))
        layer = {
            "class_name": "TFOpLambda",
            "module": "tf_keras.src.layers.core.tf_op_layer",
            "registered_name": "TFOpLambda",
            "config": {"name": "evil", "trainable": True, "dtype": "float32", "function": name},
            "name": "evil",
            "inbound_nodes": [["_CONSTANT_VALUE", -1, first, more]],
        }
        path = _saved(_keras(2), folder / f"net{suffix}")
        return changed(path, lambda config: config["config"]["layers"].insert(1, layer))

    return make


_METHOD = {"cls_symbol": "io.TFRecordWriter", "method_name": "write", "attr_name": "write"}


def _layer(kind: str, config: dict[str, Any]) -> Make:
    """Another class for the layer of a small model."""

    def make(folder: Path, mark: Path) -> Path:
        def change(found: dict[str, Any]) -> None:
            layer = found["config"]["layers"][1]
            layer |= {"class_name": kind, "registered_name": kind}
            layer["config"] = {"name": "inner", **config}

        return changed(_saved(_keras(2), folder / "net.keras"), change)

    return make


def _vocabulary(folder: Path, mark: Path) -> Path:
    return _layer("StringLookup", {"vocabulary": "/etc/passwd"})(folder, mark)


def _operator_layer(folder: Path, mark: Path) -> Path:
    node = {"name": "evil", "op": "WriteFile", "input": ["filename", "contents"]}
    config = {"node_def": node, "constants": {"0": str(mark), "1": "x"}, "dtype": "float32"}
    return _layer("TensorFlowOpLayer", config)(folder, mark)


def module(folder: Path, mark: Path) -> None:
    """A module that writes the marker when it is imported."""
    (folder / "evil.py").write_text(
        f"open({str(mark)!r}, 'w').close()\n\n\ndef images():\n    return None\n"
    )


def _foreign(version: int) -> Make:
    def make(folder: Path, mark: Path) -> Path:
        def change(found: dict[str, Any]) -> None:
            found["config"]["layers"][1]["module"] = "evil"

        module(folder, mark)
        return changed(_saved(_keras(version), folder / "net.keras"), change)

    return make


def _model_of_a_module(folder: Path, mark: Path) -> Path:
    module(folder, mark)
    return changed(
        _saved(_keras(2), folder / "net.keras"), lambda config: config.update(module="evil")
    )


def _typespec(folder: Path, mark: Path) -> Path:
    def change(found: dict[str, Any]) -> None:
        found |= _TYPE

    module(folder, mark)
    return changed(_saved(_keras(2), folder / "net.keras"), change)


_TYPE = {
    "class_name": "__typespec__",
    "spec_name": "Spec",
    "registered_name": None,
    "module": "evil",
    "config": [],
}


def _compiled(folder: Path, mark: Path) -> Path:
    """How a model within the model was compiled is read, whatever is asked of the outer one."""
    keras = _keras(2)
    image = keras.Input((4,), name="inside")
    inner = keras.Model(image, keras.layers.Dense(2)(image), name="within")
    inner.compile("adam", "mse")

    def change(found: dict[str, Any]) -> None:
        found["config"]["layers"][1]["compile_config"] = {
            "optimizer": {"module": "evil", "class_name": "Adam", "config": {}},
            "loss": "mse",
        }

    module(folder, mark)
    return changed(_saved(keras, folder / "net.keras", inner), change)


def _activation(folder: Path, mark: Path) -> Path:
    def change(found: dict[str, Any]) -> None:
        found["config"]["layers"][1]["config"]["activation"] = {
            "module": "keras.utils",
            "class_name": "function",
            "config": "get_file",
            "registered_name": "get_file",
        }

    return changed(_saved(_keras(3), folder / "net.keras"), change)


def _tfsm(folder: Path, mark: Path) -> Path:
    saved = _served("WriteFile")(folder, mark)
    keras = _keras(3)
    image = keras.Input((4,), name="image", batch_size=1)
    layer = keras.layers.TFSMLayer(str(saved), call_endpoint="serving_default", name="inner")
    keras.Model(image, layer(image)).save(folder / "net.keras")
    mark.unlink(missing_ok=True)
    return folder / "net.keras"


def _archive_first(folder: Path, mark: Path) -> Path:
    """Both an archive and HDF5: Keras reads the HDF5 in it, because of its name."""
    good = _saved(_keras(2), folder / "good.keras").read_bytes()
    bad = _lambda(2, ".h5")(folder, mark)
    import h5py

    # an archive in the user block of an HDF5 file
    block = 512
    while block < len(good):
        block *= 2
    with (
        h5py.File(bad, "r") as source,
        h5py.File(folder / "both.h5", "w", userblock_size=block) as file,
    ):
        for key, value in source.attrs.items():
            file.attrs[key] = value
        for name in source:
            source.copy(name, file)
    content = bytearray((folder / "both.h5").read_bytes())
    content[: len(good)] = good
    (folder / "both.h5").write_bytes(bytes(content))
    return folder / "both.h5"


def _hdf5_first(folder: Path, mark: Path) -> Path:
    """Both: Keras reads the archive behind the HDF5, because of its name."""
    good = _saved(_keras(2), folder / "good.h5").read_bytes()
    bad = _function("compat.v1.print", ".keras")(folder, mark)
    path = folder / "both.keras"
    path.write_bytes(good)
    with zipfile.ZipFile(bad) as source, zipfile.ZipFile(path, "a") as archive:
        for name in source.namelist():
            archive.writestr(name, source.read(name))
    return path


def _outside(folder: Path, mark: Path) -> Path:
    path = _saved(_keras(2), folder / "net.keras")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(f"assets/../../../../../..{mark}", b"x")
    return path


def _twice(folder: Path, mark: Path) -> Path:
    path = _saved(_keras(2), folder / "net.keras")
    stream = io.BytesIO()
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(stream, "w") as archive:
        for name in [*source.namelist(), "config.json"]:
            archive.writestr(name, source.read(name))
    path.write_bytes(stream.getvalue())
    return path


def _weights(folder: Path, change: Callable[[Any], None]) -> Path:
    path = _saved(_keras(2), folder / "net.keras")
    import h5py

    with zipfile.ZipFile(path) as archive:
        stream = io.BytesIO(archive.read("model.weights.h5"))
    with h5py.File(stream, "r+") as file:
        change(file)
    return changed(path, lambda _: None, {"model.weights.h5": stream.getvalue()})


def _bomb(folder: Path, mark: Path) -> Path:
    path = _saved(_keras(2), folder / "net.keras")
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        with archive.open("assets/zeros", "w") as member:
            for _ in range(300):
                member.write(bytes(1_000_000))
    return path


def _huge(folder: Path, mark: Path) -> Path:
    """Chunks that were never written take no room in a file."""

    def change(file: Any) -> None:
        file.create_dataset("more", (1 << 40,), np.uint8, chunks=(1 << 20,))

    return _weights(folder, change)


def _external(folder: Path, mark: Path) -> Path:
    def change(file: Any) -> None:
        file.create_dataset("more", (8,), np.uint8, external=[("/etc/passwd", 0, 8)])

    return _weights(folder, change)


def _linked(folder: Path, mark: Path) -> Path:
    def change(file: Any) -> None:
        import h5py

        file["more"] = h5py.ExternalLink("/tmp/other.h5", "/")

    return _weights(folder, change)


# SavedModel


def _put_mark(tf: Any, name: str, mark: Path, image: Any) -> Any:
    """Operators that write the marker, or read; a number that depends on them."""
    if name == "WriteFile":
        with tf.control_dependencies([tf.io.write_file(str(mark), "x")]):
            return tf.constant(1.0)
    if name == "CacheDatasetV2":
        data = tf.data.Dataset.from_tensor_slices([1.0]).cache(str(mark.with_suffix("")))
        return data.reduce(0.0, lambda a, b: a + b)
    if name == "SaveV2":
        done = tf.raw_ops.SaveV2(
            prefix=str(mark), tensor_names=["a"], shape_and_slices=[""], tensors=[[1.0]]
        )
        with tf.control_dependencies([done]):
            return tf.constant(1.0)
    if name == "RestoreV2":
        return tf.raw_ops.RestoreV2(
            prefix="/etc/x", tensor_names=["a"], shape_and_slices=[""], dtypes=[tf.float32]
        )[0]
    if name == "EagerPyFunc":
        return tf.py_function(lambda: 1.0, [], tf.float32)
    with tf.control_dependencies([tf.print("x", output_stream=f"file://{mark}")]):
        return tf.constant(1.0)


def _served(name: str) -> Make:
    def make(folder: Path, mark: Path) -> Path:
        tf = keras_format.tensorflow()
        root = tf.Module()

        @tf.function(input_signature=[tf.TensorSpec((1, 4), tf.float32, name="image")])  # type: ignore[untyped-decorator]
        def serve_what_was_asked(image: Any) -> Any:
            return {"out": image + tf.reshape(_put_mark(tf, name, mark, image), [1])}

        root.serve = serve_what_was_asked
        tf.saved_model.save(root, str(folder / "saved"), {"serving_default": serve_what_was_asked})
        return folder / "saved"

    return make


def _renamed(folder: Path, mark: Path) -> Path:
    """The function that serves is called as those that save variables are."""
    path = _served("WriteFile")(folder, mark)
    content = (path / "saved_model.pb").read_bytes()
    (old,) = set(re.findall(rb"__inference_serve_what_was_asked_\d+", content))
    new = b"__inference__traced_save".ljust(len(old), b"_")  # lengths stand in the message
    (path / "saved_model.pb").write_bytes(content.replace(old, new))
    return path


def _resource(folder: Path, mark: Path) -> Path:
    """What fills a resource runs when the folder is loaded."""
    tf = keras_format.tensorflow()

    class Evil(tf.saved_model.experimental.TrackableResource):  # type: ignore[misc, name-defined]
        def _create_resource(self) -> Any:
            return tf.raw_ops.MutableHashTableV2(key_dtype=tf.int64, value_dtype=tf.int64)

        def _initialize(self) -> None:
            tf.io.write_file(str(mark), "x")

    root = tf.Module()
    root.evil = Evil()
    root.evil.resource_handle  # noqa: B018  makes it

    @tf.function(input_signature=[tf.TensorSpec((1, 4), tf.float32, name="image")])  # type: ignore[untyped-decorator]
    def serve(image: Any) -> Any:
        size = tf.raw_ops.LookupTableSizeV2(table_handle=root.evil.resource_handle)
        return {"out": image + tf.cast(size, tf.float32)}

    root.serve = serve
    tf.saved_model.save(root, str(folder / "saved"), {"serving_default": serve})
    mark.unlink(missing_ok=True)
    return folder / "saved"


def _first_version(initializer: bool) -> Make:
    def make(folder: Path, mark: Path) -> Path:
        tf = keras_format.tensorflow()
        with tf.Graph().as_default(), tf.compat.v1.Session() as session:
            image = tf.compat.v1.placeholder(tf.float32, (1, 4), name="image")
            weight = tf.compat.v1.get_variable("w", (4, 2))
            answer = image @ weight
            evil = tf.io.write_file(str(mark), "x", name="save/evil")
            if not initializer:
                with tf.control_dependencies([evil]):
                    answer = answer + 1.0
            session.run(tf.compat.v1.global_variables_initializer())
            tf.compat.v1.saved_model.simple_save(
                session,
                str(folder / "saved"),
                {"image": image},
                {"out": answer},
                legacy_init_op=evil if initializer else None,
            )
        mark.unlink(missing_ok=True)
        return folder / "saved"

    return make


# ONNX and TFLite


def _onnx(domain: str, kind: str) -> Make:
    def make(folder: Path, mark: Path) -> Path:
        from onnx import helper

        node = helper.make_node(kind, ["image"], ["out"], "evil", domain=domain, path=str(mark))
        return _onnx_file(folder, [node], domain)

    return make


def _onnx_file(folder: Path, nodes: list[Any], domain: str) -> Path:
    from onnx import TensorProto, helper, save

    kind = TensorProto.FLOAT
    values = [helper.make_tensor_value_info(n, kind, [1, 4]) for n in ("image", "out")]
    graph = helper.make_graph(nodes, "net", values[:1], values[1:])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(domain, 1)]
    save(helper.make_model(graph, opset_imports=opsets, ir_version=8), folder / "net.onnx")
    return folder / "net.onnx"


def _onnx_branch(folder: Path, mark: Path) -> Path:
    from onnx import TensorProto, helper

    bodies = [
        helper.make_graph(
            [helper.make_node("WriteFile", ["image"], ["inside"], "evil", domain="evil.domain")],
            side,
            [],
            [helper.make_tensor_value_info("inside", TensorProto.FLOAT, [1, 4])],
        )
        for side in ("then", "else")
    ]
    yes = helper.make_tensor("yes", TensorProto.BOOL, [], [True])
    nodes = [
        helper.make_node("Constant", [], ["yes"], value=yes),
        helper.make_node("If", ["yes"], ["out"], then_branch=bodies[0], else_branch=bodies[1]),
    ]
    return _onnx_file(folder, nodes, "evil.domain")


def _flex(folder: Path, mark: Path) -> Path:
    """A TFLite file with operators of TensorFlow, as its converter writes it on demand."""
    tf = keras_format.tensorflow()
    saved = _served("WriteFile")(folder, mark)
    converter = tf.lite.TFLiteConverter.from_saved_model(str(saved))
    kinds = tf.lite.OpsSet
    converter.target_spec.supported_ops = [kinds.TFLITE_BUILTINS, kinds.SELECT_TF_OPS]
    (folder / "net.tflite").write_bytes(converter.convert())
    mark.unlink(missing_ok=True)
    return folder / "net.tflite"


# Data


class _Marks:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return open, (str(self.mark), "w")


def pickled(folder: Path, mark: Path, *names: str) -> Path:
    """An ``.npz`` whose arrays are pickles that write the marker."""
    path = folder / "set.npz"
    evil = np.empty(2, object)
    evil[:] = [_Marks(mark)] * 2
    np.savez(path, **{name: evil for name in names})
    return path


def trusted(path: Path, folder: Path) -> None:
    """Open and run a model file in a process of its own that trusts it."""
    code = (
        "import sys, contextlib, numpy as np\n"
        "from pathlib import Path\n"
        "from edgekit.sources import float_model\n"
        "from edgekit.runtimes import open_runner\n"
        "path = Path(sys.argv[1])\n"
        "with contextlib.suppress(Exception):\n"
        "    runner = open_runner(path, format=float_model.kind_of(path), threads=1, trust=True)\n"
        "    runner.run({s.name: np.zeros([abs(n) for n in s.shape], s.dtype)\n"
        "                for s in runner.signature.inputs})\n"
        "with contextlib.suppress(Exception):\n"
        "    float_model.load(path, preprocessing='none', trust=True).canonical()\n"
    )
    subprocess.run(
        [sys.executable, "-c", code, str(path)], cwd=folder, capture_output=True, check=False
    )


def copy_with(artifact: Path, out: Path, **values: Any) -> Path:
    """An artifact whose manifest says other things."""
    shutil.copytree(artifact, out)
    manifest = json.loads((out / "manifest.json").read_text())
    (out / "manifest.json").write_text(json.dumps({**manifest, **values}))
    return out
