"""FloatModel: the one float model that all files are written from, the shipped one or the user's.

It is a Keras artifact, a ``.keras`` or HDF5 file of Keras 2 or 3, a TensorFlow SavedModel, a float
``.tflite`` file, or an ``.onnx`` file, float or int8 in QDQ format. All become the canonical float
graph. Only the ONNX files of an ONNX source are written from its own graph.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from edgekit import data
from edgekit.base import shipped, words
from edgekit.base.errors import InvalidModelError, InvalidOptionError
from edgekit.data import feeds
from edgekit.data.feeds import Inputs, Samples
from edgekit.graph import flatbuffer, litert, onnx
from edgekit.graph.flatbuffer import Graph
from edgekit.records import signature
from edgekit.records.artifact import Artifact, Source
from edgekit.records.decoding import Decoding
from edgekit.records.encodings import FILE, Encodings
from edgekit.records.signature import Layout, Shapes, TensorSpec
from edgekit.sources import (
    convert,
    keras,
    one_sample,
    onnx_canonical,
    onnx_qdq,
    onnx_source,
    saved_model,
    tflite_same,
    tflite_sizes,
)
from edgekit.sources.onnx_canonical import Converted
from edgekit.sources.onnx_qdq import Dequantized
from edgekit.tasks import kind as tasks
from edgekit.tasks import presets

Kind = Literal["keras", "saved_model", "tflite", "onnx"]

#: The model that ships with the repository.
SHIPPED = shipped.folder("exports", "fashion_mnist_mobilenet_v2_035")
#: Data of each shipped model, by its folder.
_SHIPPED_DATA = {
    SHIPPED.name: "fashion_mnist",
    "scenes_ssdlite_035": "scenes",
    "scenes_deeplab_035": "scenes:masks",
}
_SUFFIXES: dict[str, Kind] = {
    ".keras": "keras",
    ".h5": "keras",
    ".hdf5": "keras",
    ".tflite": "tflite",
    ".onnx": "onnx",
}
_TORCH = (
    "a file of PyTorch; export the model with torch.onnx.export(model.eval(), (example,), "
    "'NAME.onnx')"
)
_OPENVINO = "a file of OpenVINO; export its source model to ONNX"
_TENSORRT = "an engine of TensorRT, for one GPU; find the ONNX file that it was built from"
_CAFFE = "a file of Caffe; convert it to ONNX, e.g. with caffe2onnx"
_DARKNET = "a file of Darknet; convert it to PyTorch and export that with torch.onnx.export"
_FROZEN = (
    "a graph of TensorFlow 1, or the inside of a SavedModel; pass the SavedModel's folder, or "
    "convert a frozen graph with `python -m tf2onnx.convert --graphdef NAME.pb --inputs X:0 "
    "--outputs Y:0 --output NAME.onnx`"
)
_SKLEARN = "a pickle, which is never loaded; export the model in Python, e.g. with skl2onnx"
#: What to do with a file of another kind to get one that edgekit reads.
_ADVICE = {
    **dict.fromkeys((".pt", ".pth", ".bin", ".ckpt"), _TORCH),
    ".jit": _TORCH,
    ".torchscript": _TORCH,
    ".pt2": _TORCH,
    ".safetensors": "weights without a model; load them into the model in Python and export that, "
    "of PyTorch with torch.onnx.export(model.eval(), (example,), 'NAME.onnx')",
    **dict.fromkeys((".pb", ".pbtxt", ".meta"), _FROZEN),
    **dict.fromkeys(
        (".mlmodel", ".mlpackage"),
        "a Core ML model; export its source model, of PyTorch with torch.onnx.export",
    ),
    **dict.fromkeys((".caffemodel", ".prototxt"), _CAFFE),
    **dict.fromkeys((".engine", ".plan", ".trt"), _TENSORRT),
    ".xml": _OPENVINO,
    **dict.fromkeys((".weights", ".cfg"), _DARKNET),
    **dict.fromkeys((".pkl", ".pickle", ".joblib"), _SKLEARN),
    ".npz": "arrays, no model; save the model with model.save('NAME.keras')",
    ".json": "a description without weights; save the model with model.save('NAME.keras'), of "
    "TensorFlow.js convert it with `tensorflowjs_converter --input_format=tfjs_layers_model`",
    ".lite": "a TFLite file by another name, if it is one; rename it to NAME.tflite",
    ".gguf": "a language model of llama.cpp; export its source model to ONNX",
    **dict.fromkeys(
        (".param", ".mnn", ".rknn", ".pdmodel", ".dlc", ".om", ".hef"),
        "a file for one runtime; export its source model to ONNX, of Paddle with paddle2onnx",
    ),
    **dict.fromkeys((".zip", ".tar", ".gz", ".tgz"), "an archive; unpack it, find the model in it"),
}
_MODEL_HELP = (
    "a Keras artifact folder, a .keras or .h5 file (Keras 2 or 3), a SavedModel folder, a float "
    ".tflite file, an .onnx file, float or in QDQ format (default: the shipped model)"
)


@dataclass(frozen=True)
class FloatModel:
    """A loaded float model and what belongs to it.

    Attributes:
        model: Of Keras the model, of a SavedModel the loaded
            :class:`edgekit.sources.saved_model.SavedModel`, of TFLite the canonical flatbuffer, of
            ONNX the ``ModelProto``.
        model_id: Name that its deployables share.
        source: The float model that everything comes from; of a trained int8 model the one it was
            trained from.
        class_names: One for each class, where its manifest has them.
        encodings: Of a model of ``python -m edgekit.qat``, which deployables take over.
        kind: What it was read from.
        outputs: What it gives.
        task: What the outputs are, where its manifest says it.
        decoding: How outputs become boxes, where its manifest says it.
        notes: What is other than in the file, a sentence each.
        integers: Of an ONNX file that is int8 already: its float form and its encodings, which
            deployables take over.
    """

    model: Any
    model_id: str
    source: Source
    preprocessing: signature.Preprocessing
    class_names: tuple[str, ...]
    encodings: Encodings | None = None
    kind: Kind = "keras"
    outputs: tuple[TensorSpec, ...] = ()
    task: tasks.Task | None = None
    decoding: Decoding | None = None
    notes: tuple[str, ...] = ()
    integers: Dequantized | None = None

    def judged(
        self, graph: bytes, asked: tasks.Task | None = None, decoding: str | None = None
    ) -> dict[str, Any]:
        """What its outputs are, as fields of a manifest: ``task``, ``class_names``, ``decoding``.

        Args:
            graph: Graph of :meth:`canonical`, or an ONNX file's content.
            asked: What the user says.
            decoding: ``--decoding``.

        Raises:
            InvalidOptionError: If the outputs cannot be for the task.
            InvalidDataError: If they cannot be decoded so.
        """
        tasks.check(asked, self.outputs)
        task = asked or self.task
        if task in ("detection", "segmentation"):
            read = self.decoded(decoding) if task == "detection" else None
            return {"task": task, "class_names": self.class_names, "decoding": read}
        scores = tasks.scores(self.outputs)
        if task is None and (self.class_names or (scores and _ends_in_scores(graph))):
            task = "classification"
        names: tuple[str, ...] = ()
        if task == "classification" and scores > 1:
            names = self.class_names or tasks.numbered(scores)
        return {"task": task or "", "class_names": names}

    def decoded(self, word: str | None) -> Decoding:
        """How the outputs of a detector become boxes.

        Args:
            word: ``--decoding``; default as the manifest says.

        Raises:
            InvalidOptionError: If the word is none.
            InvalidDataError: If nothing says it, or the outputs cannot be read so.
        """
        return presets.chosen(
            word, self.decoding, self.outputs, self.inputs, len(self.class_names) or None
        )

    def canonical(self) -> bytes:
        """The canonical float graph.

        Raises:
            InvalidModelError: If the model cannot be converted to TFLite.
        """
        if self.kind == "onnx":
            return self.converted().content
        if self.kind == "tflite":
            return bytes(self.model)
        if self.kind == "keras":
            content = convert.from_keras(self.model, self.source.shapes)
        else:
            content = convert.from_function(
                self.model, self.model.inputs, self.model.outputs, self.source.shapes
            )
        return one_sample.single(content, self.source.path)

    def converted(self) -> Converted:
        """The canonical graph of an ONNX file, and how it lays out the file's values.

        Raises:
            InvalidModelError: If the model cannot be converted to TFLite.
        """
        if self.integers is None:
            return onnx_canonical.from_onnx(self.model, self.source.path, layout=self.source.layout)
        own = self.integers
        return onnx_canonical.from_onnx(
            own.model, self.source.path, layout=self.source.layout, kept=own.activations
        )

    def encodings_of(self, converted: Converted) -> dict[str, tuple[float, int]]:
        """(scale, int8 zero_point) of an int8 ONNX file's values, by canonical tensor.

        Raises:
            InvalidModelError: If TFLite has no tensor for one, or one tensor for several.
        """
        assert self.integers is not None
        return onnx_qdq.numbers(self.integers, converted.tensors, self.source.path)

    def refuse_integers(self, verb: str) -> None:
        """Refuse an ONNX file that is int8 already.

        Args:
            verb: What needs a float model.

        Raises:
            InvalidModelError: If it is one.
        """
        if self.integers is not None:
            raise InvalidModelError(
                f"{self.source.path}: expected a float model to {verb}, got one that is int8 "
                f"already; pass its float source"
            )

    def prepared(self, *, integers: bool = False) -> Any:
        """The ONNX model with batch normalisation folded, as
        :func:`edgekit.sources.onnx_source.prepare` has it."""
        return onnx_source.prepare(self.model, integers=integers)

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What it takes, batch axis -1 or 1."""
        if self.kind == "tflite":
            return litert.signature(self.model).inputs
        if self.kind == "onnx":
            return onnx.signature(self.model).inputs
        keras_model = self.kind == "keras"
        specs = keras.signature(self.model).inputs if keras_model else self.model.specs
        return signature.sized(specs, self.source.shapes, self.source.path)

    def images(self, opened: data.Opened, limit: int | None = None) -> data.ImageSet:
        """The images of a ``--data`` word, for this model.

        Raises:
            InvalidDataError: If they cannot be decoded or their classes are not the model's.
        """
        names = self.class_names
        if not names and self.task != "regression" and tasks.scores(self.outputs) > 1:
            names = tasks.numbered(tasks.scores(self.outputs))  # as many as labels may have
        return feeds.images(opened, self.inputs, self.preprocessing, names, limit)

    def samples(self, opened: data.Opened | Inputs, limit: int | None = None) -> Samples:
        """Images, or samples with an array for each input.

        Raises:
            InvalidDataError: As :meth:`images`.
        """
        return opened.head(limit) if isinstance(opened, Inputs) else self.images(opened, limit)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The MODEL and ``--preprocessing`` arguments of the makers."""
    parser.add_argument("model", nargs="?", type=Path, metavar="MODEL", help=_MODEL_HELP)
    parser.add_argument(
        "--preprocessing",
        metavar="NAME|FILE.json",
        help=f"how pixels become the input; needed for a file that takes pictures, an artifact has "
        f"its own: {', '.join(signature.PREPROCESSING_NAMES)} or FILE.json; options follow behind "
        f"#, as in unit#resize=bicubic,crop=0.875, also letterbox=114, channels=bgr and "
        f"class_offset=1",
    )


def add_shape(parser: argparse.ArgumentParser) -> None:
    """The ``--shape`` argument."""
    parser.add_argument(
        "--shape",
        action="append",
        type=_shape,
        default=[],
        metavar="NAME=SIZES",
        help="sizes of an input with free axes, e.g. image=1,3,320,320; without the name, as in "
        "1,3,320,320, of the only input; repeatable",
    )


def _shape(text: str) -> tuple[str, tuple[int, ...]]:
    name, _, sizes = text.rpartition("=")
    try:
        shape = tuple(int(size) for size in sizes.strip("[]").split(","))
    except ValueError:
        shape = ()
    if not shape or min(shape) < 1:
        raise argparse.ArgumentTypeError(f"expected NAME=1,3,320,320 or 1,3,320,320, got {text!r}")
    return name, shape


def add_layout(parser: argparse.ArgumentParser) -> None:
    """The ``--layout`` argument."""
    parser.add_argument(
        "--layout",
        choices=signature.LAYOUTS,
        default="",
        help="axes of TFLite from an .onnx file: keep those of the file, or channels-last for "
        "inputs that are pictures and for outputs with four axes (default: channels last for "
        "inputs that are pictures, outputs as in the file)",
    )


def shapes_of(pairs: Sequence[tuple[str, tuple[int, ...]]]) -> Shapes:
    """Sizes by input, as ``--shape`` names them.

    Raises:
        InvalidOptionError: If one input is given twice.
    """
    shapes = dict(pairs)
    if len(shapes) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise InvalidOptionError(f"--shape {twice or 'SIZES'}: given twice; expected it once")
    return shapes


def add_trust(parser: argparse.ArgumentParser) -> None:
    """The ``--trust`` argument."""
    parser.add_argument(
        "--trust",
        action="store_true",
        help="also load a file that holds code (Lambda layers, custom layers, operators that "
        "write files); the code runs on this machine",
    )


def shipped_data(path: Path | None) -> str | None:
    """The ``--data`` word of a shipped model, or of an artifact that was made from it; that of the
    first one for None; None for a model of the user's own."""
    if path is None or path.resolve() == SHIPPED.resolve():
        return _SHIPPED_DATA[SHIPPED.name]
    if not path.is_dir() or saved_model.is_saved_model(path):
        return None
    artifact = Artifact.load(path)
    source = artifact.manifest.source
    sha256 = artifact.sha256 if source is None else source.sha256
    for name, word in _SHIPPED_DATA.items():
        folder = shipped.folder("exports", name)
        if folder.is_dir() and Artifact.load(folder).sha256 == sha256:
            return word
    return None


def data_word(word: str | None, *models: Path | None, option: str = "--data") -> str:
    """The ``--data`` word of a verb: the data of a shipped model where none is given for it.

    Args:
        word: The word of the user, or None.
        models: What the verb runs.
        option: The option that passes it, for messages.

    Raises:
        InvalidOptionError: If there is none for a model of the user's own.
    """
    if word is not None:
        return word
    known = {model: shipped_data(model) for model in models if model is not None and model.exists()}
    own = [model for model, its in known.items() if its is None]
    if own:
        raise InvalidOptionError(
            f"expected {option} IMAGES for your own model, got none for {own[0]}; Fashion-MNIST "
            f"and its scenes belong to the shipped models: pass {option} {data.WORDS}"
        )
    return next((its for its in known.values() if its is not None), _SHIPPED_DATA[SHIPPED.name])


def load(
    path: Path | None,
    *,
    preprocessing: str | None = None,
    trust: bool = False,
    shapes: Shapes | None = None,
    layout: Layout = "",
    free: bool = False,
) -> FloatModel:
    """Load a Keras artifact, or another file or folder with the name of its preprocessing.

    Args:
        path: Default the shipped model.
        preprocessing: Name or JSON file; default ``none`` where no input is a picture.
        trust: Let code inside of it run.
        shapes: Sizes of inputs with free axes, by name; under ``""`` of the only one.
        layout: Layout of the TFLite files of an ONNX source, where inputs and outputs have their
            channels.
        free: Let axes of a Keras model's inputs be free: they get their sizes later.

    Raises:
        EdgekitError: If it cannot be read, holds code that is not trusted, an axis is free, or the
            preprocessing is missing or given twice.
    """
    path = path or SHIPPED
    if layout:
        words.one_of("layout", layout, signature.LAYOUTS)
        if path.suffix != ".onnx":
            raise InvalidOptionError(
                f"--layout {layout} is for TFLite made of an .onnx file, got {path}, whose axes "
                f"TFLite keeps; leave it out"
            )
    if path.is_dir() and not saved_model.is_saved_model(path):
        if shapes:
            raise InvalidOptionError(
                f"{path} brings the sizes of its inputs; give --shape only with a file"
            )
        return _load_artifact(path, preprocessing)
    kind = kind_of(path)
    prepared = signature.preprocessing(preprocessing or "none")
    opened = _open(path, kind, trust=trust, shapes=shapes or {}, free=free)
    loaded = FloatModel(
        model=opened.model,
        model_id=path.stem,
        source=Source(_from_here(path), saved_model.sha256_of(path), opened.shapes, layout),
        preprocessing=prepared,
        class_names=(),
        kind=kind,
        outputs=opened.outputs,
        notes=opened.notes,
        integers=onnx_qdq.from_qdq(opened.model, path) if kind == "onnx" else None,
    )
    if preprocessing is None:
        said = signature.unprepared(path, loaded.inputs)
        return replace(loaded, notes=(*loaded.notes, said))
    return loaded


def graph_of(
    place: Path, *, trust: bool = False, shapes: Shapes | None = None, layout: Layout = ""
) -> tuple[bytes, Mapping[str, tuple[int, ...]] | None]:
    """The canonical float graph of a model of any kind.

    Args:
        place: Artifact folder, file or SavedModel folder.
        trust: Let code inside of it run.
        shapes: Sizes of inputs with free axes.
        layout: Layout of the TFLite files of an ONNX source.

    Returns:
        The graph, and of an ONNX file how it lays out the file's values
        (:class:`edgekit.sources.onnx_canonical.Converted`).

    Raises:
        InvalidModelError: If it cannot be loaded, or has no such graph.
    """
    if place.is_dir() and not saved_model.is_saved_model(place):
        return _load_artifact(place, None).canonical(), None
    loaded = load(place, preprocessing="none", trust=trust, shapes=shapes, layout=layout)
    if loaded.kind == "onnx":
        loaded.refuse_integers("compare layer by layer")
        converted = loaded.converted()
        return converted.content, converted.orders
    return loaded.canonical(), None


def kind_of(path: Path) -> Kind:
    """What kind of float model a file or folder is, by its name.

    Raises:
        InvalidModelError: If it is none.
    """
    if saved_model.is_saved_model(path):
        return "saved_model"
    if path.is_dir():
        return "keras"
    if path.suffix not in _SUFFIXES:
        expected = f"a Keras artifact, a SavedModel folder or a file {', '.join(_SUFFIXES)}"
        if not path.exists():
            raise InvalidModelError(f"{words.not_found(path)}; expected {expected}")
        advice = _ADVICE.get(path.suffix.lower())
        if advice is not None:
            raise InvalidModelError(f"{path}: {advice}, and pass that")
        raise InvalidModelError(f"expected {expected}, got {path}")
    return _SUFFIXES[path.suffix]


def _load_artifact(path: Path, preprocessing: str | None) -> FloatModel:
    artifact = Artifact.load(path)
    manifest = artifact.manifest
    if manifest.format != "keras":
        raise InvalidModelError(
            f"{path} is a {manifest.format} artifact; expected the Keras model it came from"
        )
    if preprocessing is not None:
        raise InvalidOptionError(
            f"{path} has its own preprocessing; give --preprocessing only with a file"
        )
    return FloatModel(
        model=keras.load(artifact.model_path),
        model_id=manifest.model_id,
        source=manifest.source or Source(_from_here(path), artifact.sha256),
        preprocessing=manifest.preprocessing,
        class_names=manifest.class_names,
        encodings=Encodings.load(path / FILE) if manifest.precision == "int8" else None,
        outputs=manifest.signature.outputs,
        task=tasks.declared(manifest, None),
        decoding=manifest.decoding,
    )


@dataclass(frozen=True)
class _Opened:
    """What a file or folder holds.

    Attributes:
        shapes: Sizes of ``--shape``, by the input's name.
    """

    model: Any
    outputs: tuple[TensorSpec, ...]
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def _open(path: Path, kind: Kind, *, trust: bool, shapes: Shapes, free: bool) -> _Opened:
    model: Any
    if kind in ("keras", "saved_model"):
        if kind == "keras":
            model = keras.load(path, trust=trust)
            inputs, outputs = (own := keras.signature(model)).inputs, own.outputs
        else:
            model = saved_model.SavedModel(path, trust=trust)
            inputs, outputs = model.specs, model.output_specs
        specs = signature.sized(inputs, shapes, path)
        if not free:
            signature.refuse_free(specs, path)
        batch = max((spec.shape[0] for spec in specs if spec.shape and spec.batched), default=-1)
        return _Opened(model, outputs, _named(inputs, shapes), _of_batch(batch))
    if kind == "tflite":
        if not path.is_file():
            raise InvalidModelError(f"{words.not_found(path)}; expected a .tflite file")
        original = path.read_bytes()
        if not trust and original[4:8] == b"TFL3":
            litert.check_operators(original, str(path))
        resized = tflite_sizes.sized(original, str(path), shapes)
        content = one_sample.single(resized, str(path))
        notes = _of_batch(one_sample.batch_of(resized)) if content != resized else ()
        same = content == resized
        content = flatbuffer.canonical(content, str(path), key=litert.SIGNATURE_KEY)
        if same:  # else one_sample has compared them
            notes += tflite_same.check(original, content, str(path))
        own = litert.signature(content)
        return _Opened(content, own.outputs, _named(own.inputs, shapes), notes)
    read = onnx_source.read(path, shapes, trust=trust)
    own = onnx.signature(read.model)
    return _Opened(read.model, own.outputs, _named(own.inputs, shapes), read.notes)


def _of_batch(size: int) -> tuple[str, ...]:
    if size <= 1:
        return ()
    return (f"the model takes batches of {size}; what is made of it takes one sample",)


def _named(specs: Sequence[TensorSpec], shapes: Shapes) -> dict[str, tuple[int, ...]]:
    return {name or specs[0].name: tuple(sizes) for name, sizes in shapes.items()}


#: Operators whose outputs are scores of classes, and those that only arrange them, by format.
_SCORES = frozenset("SOFTMAX LOG_SOFTMAX LOGISTIC Softmax LogSoftmax Sigmoid".split())
_ARRANGING = frozenset(
    "RESHAPE SQUEEZE EXPAND_DIMS QUANTIZE DEQUANTIZE "
    "Reshape Squeeze Unsqueeze Flatten Identity Cast QuantizeLinear DequantizeLinear".split()
)


def _ends_in_scores(graph: bytes) -> bool:
    """Whether the last operator of a model of one output is one that scores classes."""
    if graph[4:8] != b"TFL3":
        proto = onnx.parse(graph)
        name = proto.graph.output[0].name
        makers = {each: (n.op_type, n.input) for n in proto.graph.node for each in n.output}
    else:
        canonical = Graph(graph)
        (name,) = canonical.outputs
        makers = {each: (op.kind, op.inputs) for op in canonical.operators for each in op.outputs}
    while name in makers:
        operator, inputs = makers[name]
        if operator not in _ARRANGING:
            return operator in _SCORES
        name = inputs[0]
    return False


def find(artifact: Artifact, reference: Path | None = None) -> tuple[Path, Path, str]:
    """The float model that an artifact was made from.

    Args:
        artifact: With a source in its manifest.
        reference: Where it is; default where the manifest says, or the shipped model.

    Returns:
        Artifact folder, file or SavedModel folder; the model in it; its sha256.

    Raises:
        InvalidModelError: If it is not there or another one.
    """
    source = artifact.manifest.source
    assert source is not None
    if reference and not reference.exists():
        raise InvalidModelError(
            f"{words.not_found(reference)}; expected the float model of {artifact.path}, a "
            f"recording of it, or a runner such as ort:cuda:float16"
        )
    for place in [reference] if reference else [Path(source.path), SHIPPED]:
        if place.is_dir() and not saved_model.is_saved_model(place):
            original = Artifact.load(place)
            model, sha256 = original.model_path, original.sha256
        elif place.exists():
            model, sha256 = place, saved_model.sha256_of(place)
        else:
            continue
        if sha256 == source.sha256:
            return place, model, sha256
        if reference:
            raise InvalidModelError(
                f"{reference} is not the model that {artifact.path} was made from "
                f"(sha256 {sha256[:12]}…, expected {source.sha256[:12]}…)"
            )
    raise InvalidModelError(
        f"the float model of {artifact.path} ({source.path}) was not found; "
        f"pass --reference MODEL, or put it there"
    )


def _from_here(path: Path) -> str:
    """Relative to the current folder where it lies below it, so that other clones find it."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)
