"""onnxruntime's own AVX2 kernels against the bit-exact model of what they do."""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT

from edgekit.quantization import saturation
from edgekit.records import environment

RUN = """
import sys
import numpy as np, onnx, onnxruntime
from onnx import TensorProto as T, helper as h, numpy_helper as n

given = np.load(sys.argv[1])
x, w = given["x"], given["w"]

def run(nodes, feeds, constants, output):
    graph = h.make_graph(
        nodes, "g",
        [h.make_tensor_value_info(k, h.np_dtype_to_tensor_dtype(v.dtype), v.shape)
         for k, v in feeds.items()],
        [h.make_tensor_value_info("y", output, None)],
        [n.from_array(np.asarray(v), k) for k, v in constants.items()],
    )
    model = h.make_model(graph, opset_imports=[h.make_opsetid("", 18)], ir_version=9)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return session.run(None, feeds)[0]

matmul = run([h.make_node("MatMulInteger", ["x", "w"], ["y"])], {"x": x},
             {"w": np.ascontiguousarray(w.T)}, T.INT32)
# from 0 to 255, so that numbers are their own steps
dynamic = run(
    [h.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
     h.make_node("MatMulInteger", ["q", "w", "z"], ["i"]),
     h.make_node("Cast", ["i"], ["f"], to=T.FLOAT),
     h.make_node("Mul", ["s", "ones"], ["m"]), h.make_node("Mul", ["f", "m"], ["y"])],
    {"x": x.astype(np.float32)},
    {"w": np.ascontiguousarray(w.T), "ones": np.ones(len(w), np.float32)}, T.FLOAT)
one, zero = np.float32(1), np.uint8(0)
scale = np.float32(given["scale"])
names = ["x", "one", "zero", "w", "ones", "zeros", "scale", "middle"]
convolution = run(
    [h.make_node("QLinearConv", names, ["y"], kernel_shape=[1, 1])],
    {"x": np.ascontiguousarray(x.T)[None, :, None, :]},
    {"w": w[:, :, None, None], "one": one, "zero": zero, "ones": np.ones(len(w), np.float32),
     "zeros": np.zeros(len(w), np.int8), "scale": scale, "middle": np.uint8(128)}, T.UINT8)
deep = given["deep"]
depthwise = run(
    [h.make_node("QLinearConv", names, ["y"], kernel_shape=[3, 3], group=len(deep))],
    {"x": given["planes"][None]},
    {"w": deep[:, None], "one": one, "zero": zero, "ones": np.ones(len(deep), np.float32),
     "zeros": np.zeros(len(deep), np.int8), "scale": np.float32(given["deep_scale"]),
     "middle": np.uint8(128)}, T.UINT8)
np.savez(sys.argv[2], matmul=matmul, dynamic=dynamic, convolution=convolution[0, :, 0].T,
         depthwise=depthwise[0])
"""


def _needs() -> str:
    if platform.machine() not in ("x86_64", "AMD64") or sys.platform != "linux":
        return "needs Linux on x86-64"
    if "avx2" not in environment.describe().isa:
        return "needs a CPU with AVX2"
    missing = [tool for tool in ("cc", "objdump") if shutil.which(tool) is None]
    return f"needs {missing[0]}" if missing else ""


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """Feeds, and what the kernels of an AVX2 CPU without VNNI answer to them."""
    if _needs():
        pytest.skip(_needs())
    folder = tmp_path_factory.mktemp("kernels")
    rng = np.random.default_rng(0)
    x = rng.integers(128, 256, (16, 64), dtype=np.uint8)
    x[0, 0] = 255
    weights = rng.integers(-127, 128, (32, 64))
    weights[:16] = saturation.shrink(weights[:16].astype(float), weights[:16].astype(float))
    deep = rng.integers(-127, 128, (16, 3, 3)).astype(np.int8)
    planes = rng.integers(128, 256, (16, 8, 8), dtype=np.uint8)
    given = {
        "x": x,
        "w": weights.astype(np.int8),
        "scale": np.float32(8192),
        "deep": deep,
        "planes": planes,
        "deep_scale": np.float32(2048),
    }
    np.savez(folder / "given.npz", **given)
    (folder / "run.py").write_text(RUN)
    wrapper = ROOT / "benchmarks" / "as_avx2.py"
    words = [sys.executable, wrapper, "--only", "onnxruntime", sys.executable, folder / "run.py"]
    done = subprocess.run(
        [*map(str, words), str(folder / "given.npz"), str(folder / "found.npz")],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return {**given, **np.load(folder / "found.npz")}


def test_matrix_products_saturate_as_the_model_says(ran: dict[str, np.ndarray]) -> None:
    predicted = saturation.dot(ran["x"], ran["w"])
    exact = ran["x"].astype(np.int32) @ ran["w"].astype(np.int32).T
    assert (predicted != exact).any()
    np.testing.assert_array_equal(ran["matmul"], predicted)


def test_products_that_are_rounded_when_they_run_saturate_too(ran: dict[str, np.ndarray]) -> None:
    np.testing.assert_array_equal(ran["dynamic"], saturation.dot(ran["x"], ran["w"]))


def test_convolutions_saturate_as_the_model_says(ran: dict[str, np.ndarray]) -> None:
    predicted = saturation.dot(ran["x"], ran["w"]).astype(np.float32)
    steps = np.clip(np.rint(predicted / ran["scale"]) + 128, 0, 255)
    np.testing.assert_array_equal(ran["convolution"], steps.astype(np.uint8))


def test_layers_that_cannot_saturate_do_not(ran: dict[str, np.ndarray]) -> None:
    found = saturation.predict("bound", ran["w"][:16])
    assert found.pairs == 0
    assert saturation.predict("free", ran["w"][16:]).pairs > 0
    exact = ran["x"].astype(np.int32) @ ran["w"].astype(np.int32).T
    np.testing.assert_array_equal(ran["matmul"][:, :16], exact[:, :16])
    assert (ran["matmul"][:, 16:] != exact[:, 16:]).any()


def test_depthwise_kernels_do_not_saturate(ran: dict[str, np.ndarray]) -> None:
    windows = np.lib.stride_tricks.sliding_window_view(
        ran["planes"].astype(np.int64), (3, 3), axis=(1, 2)
    )
    exact = np.einsum("cyxij,cij->cyx", windows, ran["deep"].astype(np.int64))
    steps = np.clip(np.rint(exact / ran["deep_scale"]) + 128, 0, 255)
    assert saturation.predict("deep", ran["deep"].reshape(16, -1)).pairs > 0
    np.testing.assert_array_equal(ran["depthwise"], steps.astype(np.uint8))


def test_figures_made_this_way_say_so() -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "from edgekit.records import environment as e; m = e.describe(); print(m.cpu, m.isa)",
        ],
        capture_output=True,
        text=True,
        env={"PATH": "/usr/bin", environment.HIDDEN: "avx2", "PYTHONPATH": str(Path(ROOT))},
    )
    isa = environment.describe().isa
    assert "'avx2'" not in done.stdout
    assert ("without avx2" in done.stdout) == ("avx2" in isa)
