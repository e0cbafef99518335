"""Layers that stay float in an int8 file because the user names them."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import Done
from exported import answers, decibels, export, export_all

from edgekit import parity
from edgekit.base import text
from edgekit.base.errors import InvalidOptionError
from edgekit.diagnosis import names
from edgekit.diagnosis.bisection import Bound
from edgekit.diagnosis.diff import diff
from edgekit.diagnosis.tensors import activations
from edgekit.graph.flatbuffer import Graph, short_name
from edgekit.records.artifact import Artifact
from edgekit.sources import convert, keras

OPTION = "--leave-float"
ASKED = "asked for by --leave-float"


@pytest.fixture(scope="module")
def graph(small: Path) -> Graph:
    return Graph(convert.from_keras(keras.load(small / "small.keras")))


@pytest.fixture(scope="module")
def labels(graph: Graph) -> dict[str, str]:
    return names.labels(graph, activations(graph))


@pytest.fixture(scope="module")
def plain(small: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    return _both(small, tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def mixed(small: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    """The depthwise layer and the last 1x1 layer in float."""
    folder = tmp_path_factory.mktemp("mixed")
    return _both(small, folder, leave_float=("depthwise_conv2d", "conv2d_3"))


def _both(small: Path, out: Path, **options: object) -> dict[str, Artifact]:
    written = export_all(
        small / "small.keras",
        targets=["tflite", "onnx"],
        precisions=["int8"],
        preprocessing="unit",
        calibration=str(small / "set.npz"),
        out=out,
        **options,
    )
    return {each.manifest.format: each for each in written}


def test_named_layers_and_what_reads_them_compute_in_float(mixed: dict[str, Artifact]) -> None:
    for each in mixed.values():
        record, execution = each.manifest.quantization, each.manifest.execution
        assert record is not None and execution is not None
        asked = {name for name, why in record.floats.items() if why == ASKED}
        assert len(asked) == 2
        assert len([name for name in asked if "depthwise_conv2d" in name]) == 1
        assert any("stays float" in note and ASKED in note for note in each.manifest.notes)
    execution = mixed["tflite"].manifest.execution
    assert execution is not None
    kinds = sorted(name.split()[0] for name in execution.floats)
    # the depthwise layer and the 1x1 layer that reads it; the last 1x1 layer and the concatenation
    assert kinds == ["CONCATENATION", "CONV_2D", "CONV_2D", "DEPTHWISE_CONV_2D"]
    assert "CONV_2D int8" in execution.kernels
    execution = mixed["onnx"].manifest.execution
    assert execution is not None
    assert len([name for name in execution.floats if "Conv" in name]) == 3


def test_both_formats_hold_the_same_integers_and_fewer_than_before(
    plain: dict[str, Artifact], mixed: dict[str, Artifact]
) -> None:
    found = parity.numbers(mixed["tflite"], mixed["onnx"])
    assert found.differences == ()
    assert 0 < found.compared < parity.numbers(plain["tflite"], plain["onnx"]).compared
    records = [each.manifest.quantization for each in mixed.values()]
    assert records[0] is not None and records[1] is not None
    assert records[0].floats == records[1].floats


def test_the_two_formats_give_the_same_outputs(small: Path, mixed: dict[str, Artifact]) -> None:
    pixels = np.load(small / "set.npz")["x"].astype(np.float32) / np.float32(255)
    (exact,) = keras.call(keras.load(small / "small.keras"), [pixels])
    for each in mixed.values():
        (name,) = (spec.name for spec in each.manifest.signature.inputs)
        (found,) = answers(each, {name: pixels}).values()
        assert decibels(np.asarray(exact), found) > 30


def test_all_layers_in_float_are_no_int8_layers(small: Path, tmp_path: Path) -> None:
    written = export(
        small / "small.keras",
        target="tflite",
        precision="int8",
        preprocessing="unit",
        calibration=str(small / "set.npz"),
        leave_float=("*",),
        out=tmp_path / "all",
    )
    assert written.manifest.execution is not None
    assert not [kind for kind in written.manifest.execution.kernels if "int8" in kind]


def test_names_that_a_bisection_prints_are_taken_as_they_are(
    graph: Graph, labels: dict[str, str], small: Path, plain: dict[str, Artifact]
) -> None:
    found = diff(
        small / "small.keras",
        plain["tflite"].path,
        dataset=str(small / "set.npz"),
        images=8,
        bisect_bound=Bound(60.0, "dB"),
        preprocessing=None,
    ).bisection
    assert found is not None and len(found.layers) > 1
    every = activations(graph)
    assert names.tensors(graph, every, [", ".join(found.layers)], option=OPTION) == found.tensors
    for name, label in labels.items():
        for word in (name, label, text.shortened(label, 16)):
            if (
                len(
                    [
                        other
                        for other in labels.values()
                        if word in (other, text.shortened(other, 16))
                    ]
                )
                < 2
            ):
                assert names.tensors(graph, every, [word], option=OPTION) == (name,)


def test_the_options_that_a_bisection_prints_can_be_pasted(
    edgekit: Callable[..., Done], small: Path, plain: dict[str, Artifact], tmp_path: Path
) -> None:
    done = edgekit(
        "compare", small / "small.keras", plain["tflite"].path, "--layers", "--data",
        small / "set.npz", "--images", 8, "--bisect", "60dB",
    )  # fmt: skip
    (printed,) = (line for line in done.stderr.splitlines() if "options of export" in line)
    options = shlex.split(printed.partition(": ")[2])
    layers = done.document["bisection"]["layers"]
    assert options == [word for layer in layers for word in ("--leave-float", layer)]
    assert len(layers) > 1
    written = edgekit(
        "export", small / "small.keras", "--preprocessing", "unit", "--target", "tflite",
        "--precision", "int8", "--calibration", small / "set.npz", *options, "--out",
        tmp_path / "out",
    )  # fmt: skip
    assert written.status == 0
    record = Artifact.load(tmp_path / "out").manifest.quantization
    assert record is not None and record.layers == dict.fromkeys(layers, "float32")


def test_a_pattern_stands_for_all_that_it_fits(graph: Graph, labels: dict[str, str]) -> None:
    every = activations(graph)
    found = names.tensors(graph, every, ["conv2d_*", "input"], option=OPTION)
    assert [labels[name] for name in found] == [
        label for label in labels.values() if label == "input" or label.startswith("conv2d_")
    ]
    assert len(found) > 3


def test_a_name_of_several_layers_is_refused_with_their_names(graph: Graph) -> None:
    every = ["net/block1/act/Relu", "net/block2/act/Relu", "net/block2/stem/Relu"]
    graph = Graph(graph.serialize())
    graph.rename(dict(zip(activations(graph)[1:], every, strict=False)))
    assert set(every) < set(activations(graph))
    assert short_name(every[0]) == short_name(every[1])
    refusal = "got 'act/Relu', which 2 are called: block1, block2/act/Relu; "
    with pytest.raises(InvalidOptionError, match=refusal):
        names.tensors(graph, every, ["act/Relu"], option=OPTION)
    assert names.tensors(graph, every, ["*act/Relu"], option=OPTION) == tuple(every[:2])
    with pytest.raises(InvalidOptionError, match="got 'net…Relu', which 3 are called"):
        names.tensors(graph, every, ["net…Relu"], option=OPTION)
    assert names.tensors(graph, every, ["net…stem/Relu"], option=OPTION) == (every[2],)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--leave-float", "depthwise_conv2"], "the nearest is depthwise_conv2d"),
        (["--leave-float", "block*"], "expected a layer of the model, got 'block*'"),
        (["--leave-float", "conv2d", "--strict"], "--strict lets no operator compute in float"),
    ],
)
def test_what_cannot_be_left_float_is_one_line(
    edgekit: Callable[..., Done], small: Path, tmp_path: Path, arguments: list[str], said: str
) -> None:
    out = tmp_path / "out"
    done = edgekit(
        "export", small / "small.keras", "--preprocessing", "unit", "--target", "tflite",
        "--precision", "int8", "--calibration", small / "set.npz", *arguments, "--out", out,
    )  # fmt: skip
    assert done.status == 2
    assert said in done.error
    assert not out.exists()


def test_only_int8_takes_it(small: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidOptionError, match="--leave-float is for int8"):
        export(
            small / "small.keras",
            target="tflite",
            precision="float32",
            preprocessing="unit",
            leave_float=("conv2d",),
            out=tmp_path / "out",
        )
