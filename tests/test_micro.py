"""TensorFlow Lite Micro: what is written for it, and what runs in it.

What needs the packages ``tflite-micro`` and ``ethos-u-vela`` is skipped where they are not
installed; the C is compiled wherever a compiler is.
"""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nets
import numpy as np
import pytest
from conftest import Done, made_once
from exported import export, export_all

from edgekit.base.errors import (
    InvalidModelError,
    InvalidOptionError,
    MissingDependencyError,
)
from edgekit.compare import Options, compare
from edgekit.evaluation import micro as measuring
from edgekit.graph import kernels, micro
from edgekit.pipeline import exporting
from edgekit.quantization import profiles
from edgekit.records.artifact import Artifact
from edgekit.records.signature import TensorSpec
from edgekit.runtimes import open_runner, tflm, vela
from edgekit.writers import micro_c

needs_tflm = pytest.mark.skipif(
    importlib.util.find_spec("tflite_micro") is None, reason="tflite-micro is not installed"
)
needs_vela = pytest.mark.skipif(
    importlib.util.find_spec("ethosu") is None, reason="ethos-u-vela is not installed"
)
needs_gcc = pytest.mark.skipif(
    shutil.which("gcc") is None or shutil.which("g++") is None, reason="gcc is not installed"
)
STRICT = ("-Wall", "-Wextra", "-Werror", "-pedantic", "-Wno-unused-const-variable")


@pytest.fixture(scope="module")
def written(small: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """small.keras for TensorFlow Lite Micro and for TFLite, by ``TARGET-PRECISION``."""

    def make(folder: Path) -> None:
        export_all(
            small / "small.keras",
            targets=["tflite", "tflite-micro"],
            precisions=["int8", "float32"],
            preprocessing="unit",
            calibration=str(small / "set.npz"),
            correction="none",
            out=folder,
        )

    folder = made_once(tmp_path_factory, "micro", make)
    return {
        f"{target}-{precision}": folder / f"small-{target}-{precision}"
        for target in ("tflite", "tflite-micro")
        for precision in ("int8", "float32")
    }


def built(folder: Path, sources: list[Path], *, std: str, include: Path) -> Path:
    """A program of C or C++ sources, compiled without a warning."""
    compiler = "g++" if "++" in std else "gcc"
    program = folder / "program"
    language = ["-x", "c++"] if "++" in std else []
    subprocess.run(
        [compiler, f"-std={std}", *STRICT, f"-I{include}", *language, *sources, "-o", program],
        check=True,
    )
    return program


@pytest.mark.parametrize("precision", ["int8", "float32"])
def test_the_micro_file_is_the_tflite_file(written: dict[str, Path], precision: str) -> None:
    plain = Artifact.load(written[f"tflite-{precision}"])
    of_micro = Artifact.load(written[f"tflite-micro-{precision}"])
    assert of_micro.model_path.read_bytes() == plain.model_path.read_bytes()
    assert of_micro.manifest.format == "tflite"
    assert of_micro.manifest.signature.inputs[0].dtype == precision  # no float ends in int8
    assert plain.manifest.micro is None
    record = of_micro.manifest.micro
    assert record is not None
    assert record.operators == micro.operators(of_micro.model_path.read_bytes()).counts
    assert record.flash == -(-of_micro.size // 16) * 16
    expected = {"model.c", "model.h", "resolver.h", "golden.h", "main.cc", "CMakeLists.txt"}
    assert expected <= set(of_micro.manifest.files)


@needs_gcc
@pytest.mark.parametrize("std", ["c99", "c11", "c++11", "c++17"])
def test_the_c_array_is_the_file(written: dict[str, Path], std: str, tmp_path: Path) -> None:
    artifact = Artifact.load(written["tflite-micro-int8"])
    main = tmp_path / "main.c"
    main.write_text(
        '#include <stdint.h>\n#include <stdio.h>\n#include "model.h"\n'
        "int main(void) {\n"
        "  if ((uintptr_t)g_model % 16) return 1;\n"
        "  return fwrite(g_model, 1, g_model_len, stdout) != g_model_len;\n}\n"
    )
    program = built(tmp_path, [main, artifact.path / "model.c"], std=std, include=artifact.path)
    ran = subprocess.run([program], check=True, capture_output=True)
    assert ran.stdout == artifact.model_path.read_bytes()


@needs_gcc
@pytest.mark.parametrize("precision", ["int8", "float32"])
@pytest.mark.parametrize("std", ["c99", "c++17"])
def test_golden_outputs_are_those_of_the_reference_kernels(
    written: dict[str, Path], precision: str, std: str, tmp_path: Path
) -> None:
    artifact = Artifact.load(written[f"tflite-micro-{precision}"])
    main = tmp_path / "main.c"
    main.write_text(
        '#include <stdio.h>\n#include "golden.h"\n'
        "int main(void) {\n"
        "  fwrite(golden_inputs[0].values, 1, GOLDEN_COUNT * golden_inputs[0].bytes, stdout);\n"
        "  fwrite(golden_outputs[0].values, 1, GOLDEN_COUNT * golden_outputs[0].bytes, stdout);\n"
        "  return GOLDEN_COUNT;\n}\n"
    )
    program = built(tmp_path, [main], std=std, include=artifact.path)
    ran = subprocess.run([program], capture_output=True)
    entry, end = artifact.manifest.signature.inputs[0], artifact.manifest.signature.outputs[0]
    size = int(np.prod(entry.shape[1:]))
    flat = np.frombuffer(ran.stdout, entry.dtype)
    inputs = flat[: ran.returncode * size].reshape(ran.returncode, 1, *entry.shape[1:])
    outputs = flat[ran.returncode * size :].reshape(ran.returncode, 1, *end.shape[1:])
    assert ran.returncode == 4
    assert len(np.unique(outputs)) > 1
    with open_runner(
        artifact.model_path, format="tflite", threads=1, options={"kernels": "reference"}
    ) as runner:
        for given, expected in zip(inputs, outputs, strict=True):
            got = runner.run({entry.name: given})[end.name]
            np.testing.assert_allclose(got, expected, atol=0 if precision == "int8" else 1e-6)


#: What the written C++ takes of TensorFlow Lite Micro, with every method that a resolver has.
STUBS = {
    "tensorflow/lite/micro/micro_mutable_op_resolver.h": (
        "#pragma once\nenum TfLiteStatus { kTfLiteOk, kTfLiteError };\nnamespace tflite {\n"
        "template <unsigned int N> struct MicroMutableOpResolver {\n"
        "  unsigned int room = N;\n"
        "  TfLiteStatus Add() { return room-- ? kTfLiteOk : kTfLiteError; }\n"
        + "".join(
            f"  TfLiteStatus {each}() {{ return Add(); }}\n"
            for each in sorted({*micro.RESOLVER.values(), *micro.CUSTOM.values()})
        )
        + "};\n}\n"
    ),
    "tensorflow/lite/micro/micro_interpreter.h": (
        "#pragma once\n#include <cstddef>\n#include <cstdint>\n"
        '#include "tensorflow/lite/micro/micro_mutable_op_resolver.h"\n'
        "struct TfLiteTensor { struct { char* raw; } data; size_t bytes; };\nnamespace tflite {\n"
        "struct Model {};\nstruct MicroInterpreter {\n"
        "  template <class R> MicroInterpreter(const Model*, const R&, uint8_t*, size_t) {}\n"
        "  TfLiteStatus AllocateTensors() { return kTfLiteOk; }\n"
        "  TfLiteStatus Invoke() { return kTfLiteOk; }\n"
        "  TfLiteTensor* input(size_t) { return nullptr; }\n"
        "  TfLiteTensor* output(size_t) { return nullptr; }\n"
        "  size_t arena_used_bytes() const { return 0; }\n};\n}\n"
    ),
    "tensorflow/lite/micro/system_setup.h": (
        "#pragma once\nnamespace tflite { inline void InitializeTarget() {} }\n"
    ),
    "tensorflow/lite/schema/schema_generated.h": (
        "#pragma once\nnamespace tflite { inline const Model* GetModel(const void*) "
        "{ return nullptr; } }\n"
    ),
}


@pytest.fixture(scope="module")
def stubs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Headers in place of a checkout, which show that the C++ is C++."""
    folder = tmp_path_factory.mktemp("stubs")
    for name, text in STUBS.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


@needs_gcc
def test_the_resolver_has_room_for_its_operators_and_no_other(
    written: dict[str, Path], stubs: Path, tmp_path: Path
) -> None:
    artifact = Artifact.load(written["tflite-micro-int8"])
    text = (artifact.path / "resolver.h").read_text()
    calls = re.findall(r"resolver\.(Add\w+)\(\)", text)
    assert calls == sorted(
        ["AddAdd", "AddConcatenation", "AddConv2D", "AddDepthwiseConv2D", "AddFullyConnected",
         "AddMaxPool2D", "AddMean", "AddSoftmax"]
    )  # fmt: skip
    assert f"MicroMutableOpResolver<{len(calls)}>" in text
    main = tmp_path / "main.cc"
    main.write_text(
        '#include "resolver.h"\nint main() {\n  edgekit::Resolver resolver;\n'
        "  if (edgekit::AddOperators(resolver) != kTfLiteOk) return 1;\n"
        "  return static_cast<int>(resolver.room);\n}\n"
    )
    subprocess.run(
        ["g++", "-std=c++17", *STRICT, f"-I{artifact.path}", f"-I{stubs}", main, "-o",
         tmp_path / "program"],
        check=True,
    )  # fmt: skip
    assert subprocess.run([tmp_path / "program"]).returncode == 0


@needs_gcc
def test_the_example_is_c_plus_plus(written: dict[str, Path], stubs: Path) -> None:
    artifact = Artifact.load(written["tflite-micro-int8"])
    subprocess.run(
        ["g++", "-std=c++17", *STRICT, "-DMODEL_ARENA_BYTES=1024", "-fsyntax-only", f"-I{stubs}",
         artifact.path / "main.cc"],
        check=True,
    )  # fmt: skip


@pytest.mark.skipif(shutil.which("cmake") is None, reason="cmake is not installed")
def test_the_example_asks_for_a_checkout(written: dict[str, Path], tmp_path: Path) -> None:
    source = Artifact.load(written["tflite-micro-int8"]).path
    ran = subprocess.run(
        ["cmake", "-S", source, "-B", tmp_path / "build"], capture_output=True, text=True
    )
    assert ran.returncode != 0
    assert "TFLM_DIR" in ran.stderr


def test_names_of_others_end_no_comment() -> None:
    hostile = '*/ int evil; /* \\\n #include "x" // ??/\n'
    spec = TensorSpec(hostile, (1, 2), "int8", 1.0, 0)
    vectors = micro_c.Vectors(
        {hostile: np.zeros((1, 2), np.int8)}, {hostile: np.zeros((1, 2), np.int8)}, hostile
    )
    files = micro_c.files(
        b"1234TFL3", micro.Operators({hostile: 1}), [spec], [spec], vectors, name=hostile, arena=16
    )
    for name, content in files.items():
        text = content.decode("ascii")
        assert "*/ int evil" not in text and "\\\n #" not in text, name
        if name.endswith(".h") or name == "model.c":
            code = re.sub(r"/\*.*?\*/|//[^\n]*", "", text, flags=re.S)
            assert "evil" not in code, name


def test_an_operator_without_a_kernel_is_named(tmp_path: Path) -> None:
    net = nets.write(
        tmp_path / "tile.onnx",
        [("Tile", ["x", "twice"], "out_float")],
        {"twice": np.array([1, 2], np.int64)},
        {"out": [8]},
        inputs=4,
    )
    with pytest.raises(InvalidModelError, match="no kernel for TILE of tile float32"):
        export(net, target="tflite-micro", precision="float32", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    export(net, target="tflite", precision="float32", out=tmp_path / "out")
    with pytest.raises(InvalidModelError, match="no kernel for TILE"):
        tflm.TflmRunner(tmp_path / "out" / "model.tflite")


def test_the_profile_says_what_it_lacks() -> None:
    lacks = profiles.profile("tflite-micro").lacks
    assert {"TILE", "GELU", "TOPK_V2", "SELECT", "RELU_N1_TO_1"} == lacks
    assert lacks <= kernels.INTEGER
    assert not lacks & micro.RESOLVER.keys()


@pytest.mark.parametrize("precision", ["float16", "int8-weights", "int4-weights", "int8-dynamic"])
def test_precisions_without_kernels_are_refused(small: Path, precision: str) -> None:
    for device in ("generic", "tflite-micro"):
        with pytest.raises(InvalidOptionError, match=f"got tflite-micro in {precision}"):
            export(small / "small.keras", target="tflite-micro", precision=precision, device=device)


def test_what_deploy_writes_where_no_target_is_named() -> None:
    usual = {name: exporting.usual_targets(each) for name, each in profiles.PROFILES.items()}
    assert usual["generic"] == ["tflite", "onnx"]
    assert usual["cuda"] == ["onnx"]
    assert usual["tflite-micro"] == ["tflite-micro"]


def test_a_package_that_is_missing_names_its_extra(
    written: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = written["tflite-int8"] / "model.tflite"
    monkeypatch.setitem(sys.modules, "tflite_micro", None)
    monkeypatch.setitem(sys.modules, "tflite_micro.python.tflite_micro", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'edgekit\[micro\]'"):
        tflm.TflmRunner(model)


def test_gate_bounds_arena_and_flash(
    edgekit: Callable[..., Done], written: dict[str, Path], small: Path, tmp_path: Path
) -> None:
    artifact = Artifact.load(written["tflite-micro-int8"])
    record = artifact.manifest.micro
    assert record is not None
    report = compare(
        [artifact.path],
        Options(
            dataset=str(small / "set.npz"),
            reference=small / "small.keras",
            rounds=0,
            processes=1,
        ),
    )
    metrics = report.artifacts[0].metrics
    assert metrics["flash"].value == record.flash
    assert ("arena" in metrics) == (record.arena is not None)
    path = tmp_path / "report.json"
    path.write_text(report.dumps())
    for limit, status in ((record.flash, 0), (record.flash - 1, 1)):
        assert edgekit("gate", path, "--max", f"flash={limit}").status == status
    bound = "--max=arena=65536" if record.arena is not None else "--max=flash=65536"
    assert edgekit("gate", path, bound).status == 0


@needs_tflm
def test_the_list_of_kernels_is_that_of_the_package(tmp_path: Path) -> None:
    script = tmp_path / "probe.py"
    script.write_text(PROBE)
    ran = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, check=True, timeout=300
    )
    found = set(json.loads(ran.stdout.splitlines()[-1]))
    assert found | {"VAR_HANDLE"} == set(micro.RESOLVER)  # VAR_HANDLE needs options to be tried


#: Loads each operator before one that has no kernel: the first of them that is missing is named.
PROBE = """
import json, os, tempfile
import flatbuffers
from ai_edge_litert import schema_py_generated as schema
from tflite_micro.python.tflite_micro import runtime

kinds = {n: k for k, n in vars(schema.BuiltinOperator).items() if k.isupper()}
ABSENT = "GELU"

def model(kind_numbers):
    made, graph = schema.ModelT(), schema.SubGraphT()
    made.version, made.operatorCodes, made.buffers = 3, [], [schema.BufferT()]
    graph.tensors, graph.operators, graph.inputs, graph.outputs = [], [], [0], [1]
    for place in range(2):
        tensor = schema.TensorT()
        tensor.shape, tensor.type, tensor.buffer = [1], schema.TensorType.INT8, 0
        tensor.name = b"t%d" % place
        graph.tensors.append(tensor)
    for place, number in enumerate(kind_numbers):
        code, operator = schema.OperatorCodeT(), schema.OperatorT()
        code.builtinCode, code.deprecatedBuiltinCode, code.version = number, min(number, 127), 1
        operator.opcodeIndex, operator.inputs, operator.outputs = place, [0], [1]
        made.operatorCodes.append(code)
        graph.operators.append(operator)
    made.subgraphs = [graph]
    builder = flatbuffers.Builder(1024)
    builder.Finish(made.Pack(builder), b"TFL3")
    return bytes(builder.Output())

absent = next(n for n, k in kinds.items() if k == ABSENT)
found = []
for number, kind in kinds.items():
    if kind in (ABSENT, "CUSTOM", "VAR_HANDLE"):
        continue
    with tempfile.TemporaryFile() as said:
        saved = os.dup(2)
        os.dup2(said.fileno(), 2)
        try:
            runtime.Interpreter.from_bytes(model([number, absent]), arena_size=20000)
        except RuntimeError:
            pass
        finally:
            os.dup2(saved, 2)
            os.close(saved)
        said.seek(0)
        text = said.read().decode()
    if f"'{ABSENT}'" in text:
        found.append(kind)
    else:
        assert f"'{kind}'" in text, (kind, text)
print(json.dumps(found))
"""


@needs_tflm
@pytest.mark.parametrize("precision", ["int8", "float32"])
def test_tensorflow_lite_micro_computes_as_the_reference_kernels(
    written: dict[str, Path], precision: str
) -> None:
    model = written[f"tflite-micro-{precision}"] / "model.tflite"
    with (
        open_runner(model, format="tflite", threads=1, device="tflm") as ours,
        open_runner(model, format="tflite", threads=1, options={"kernels": "reference"}) as theirs,
    ):
        assert ours.signature == theirs.signature
        entry, end = ours.signature.inputs[0], ours.signature.outputs[0]
        random = np.random.default_rng(0)
        for _ in range(8):
            feed = {entry.name: entry.quantize(random.random((1, 12, 12, 3), np.float32))}
            found, expected = ours.run(feed)[end.name], theirs.run(feed)[end.name]
            np.testing.assert_allclose(found, expected, atol=0 if precision == "int8" else 1e-6)
        assert ours.describe().emulated  # no times


@needs_tflm
def test_no_smaller_arena_holds_the_model(written: dict[str, Path]) -> None:
    from tflite_micro.python.tflite_micro import runtime

    artifact = Artifact.load(written["tflite-micro-int8"])
    record = artifact.manifest.micro
    assert record is not None and record.arena is not None
    assert record.arena_persistent is not None and 0 < record.arena_persistent < record.arena
    content = artifact.model_path.read_bytes()
    runtime.Interpreter.from_bytes(content, arena_size=record.arena).invoke()
    with pytest.raises(RuntimeError):
        runtime.Interpreter.from_bytes(content, arena_size=record.arena - 16).invoke()
    assert f"MODEL_ARENA_BYTES {record.arena}" in (artifact.path / "model.h").read_text()
    assert record.golden.startswith("TensorFlow Lite Micro's reference kernels on 4 calibration")


@needs_tflm
def test_int8_weights_are_said_to_be_wrong(small: Path, tmp_path: Path) -> None:
    made = export(
        small / "small.keras",
        target="tflite",
        precision="int8-weights",
        preprocessing="unit",
        out=tmp_path / "out",
    )
    with tflm.TflmRunner(made.model_path) as ours:
        assert any("one for all of them without an error" in note for note in ours.describe().notes)


@needs_tflm
def test_types_without_a_kernel_are_told_in_its_words(small: Path, tmp_path: Path) -> None:
    made = export(
        small / "small.keras",
        target="tflite",
        precision="int8-dynamic",
        preprocessing="unit",
        out=tmp_path / "out",
    )
    with pytest.raises(InvalidModelError, match="Hybrid models are not supported"):
        tflm.TflmRunner(made.model_path)


@needs_tflm
def test_benchmark_tells_what_a_microcontroller_needs(
    edgekit: Callable[..., Done], written: dict[str, Path]
) -> None:
    artifact = Artifact.load(written["tflite-micro-int8"])
    record = artifact.manifest.micro
    assert record is not None
    done = edgekit("benchmark", artifact.path, "--runtime", "tflm")
    assert done.status == 0, done.stderr
    document = done.document
    assert document["metrics"]["arena"]["value"] == record.arena
    assert document["operators"] == record.operators
    assert document["resolver"] == sorted(document["resolver"])
    assert "latency_p50" not in document["metrics"]
    assert {each["kind"] for each in document["differences"]} == set(record.operators)
    for each in document["differences"]:  # the plain kernels are the same
        assert each["differing"]["reference"] == 0, each
    refused = edgekit("benchmark", artifact.path, "--runtime", "tflm", "--threads", "2")
    assert "times nothing" in refused.error
    assert (
        "--npu ethos-u55-128 is for --runtime tflm"
        in edgekit("benchmark", artifact.path, "--npu", "ethos-u55-128").error
    )


@needs_tflm
@needs_vela
def test_vela_estimates_an_npu(written: dict[str, Path]) -> None:
    model = Artifact.load(written["tflite-micro-int8"])
    measured = measuring.benchmark(model, npu="ethos-u55-128")
    assert measured.metrics["npu_share"].value == 100
    assert measured.metrics["sram"].value > 0
    assert measured.metrics["npu_cycles"].unit == "cycles, estimated"
    assert any("estimated by Vela" in note for note in measured.notes)
    real = vela.estimate(written["tflite-micro-float32"] / "model.tflite", "ethos-u55-128")
    assert real.share == 0 and real.cycles == 0
    assert sum(real.on_cpu.values()) == sum(measured.operators.values())


def test_an_npu_that_nobody_makes_is_refused(written: dict[str, Path]) -> None:
    with pytest.raises(InvalidOptionError, match="did you mean 'ethos-u55-128'"):
        vela.estimate(written["tflite-int8"] / "model.tflite", "ethos-u55-12")


def test_a_broken_file_is_no_model(tmp_path: Path) -> None:
    for content in (b"", b"1234TFL3", b"1234TFL3" + bytes(range(64))):
        with pytest.raises(InvalidModelError):
            micro.operators(content, "broken.tflite")
