"""What says that outputs are classes, and what becomes of right answers that fit or do not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import nets
import numpy as np
import pytest
from exported import export

from edgekit.base.errors import InvalidDataError, InvalidOptionError
from edgekit.data import ImageSet
from edgekit.data.images import make
from edgekit.records.artifact import Artifact, Manifest
from edgekit.records.signature import Signature, TensorSpec, preprocessing
from edgekit.tasks import kind as task

COUNT = 12


def manifest(*outputs: TensorSpec, names: tuple[str, ...] = (), said: str = "") -> Manifest:
    return Manifest(
        model_id="m",
        format="onnx",
        precision="int8",
        model_file="model.onnx",
        files={"model.onnx": "00"},
        signature=Signature((TensorSpec("x", (-1, 4, 4, 3), "float32"),), outputs),
        preprocessing=preprocessing("unit"),
        class_names=names,
        task=said,  # type: ignore[arg-type]
    )


def spec(*sizes: int, name: str = "y") -> TensorSpec:
    return TensorSpec(name, (-1, *sizes), "float32")


def images(y: np.ndarray | None) -> ImageSet:
    return make("set", np.zeros((COUNT, 4, 4, 3), np.uint8), y, numbers=True)


LABELS = np.arange(COUNT) % 3
NUMBERS = np.random.default_rng(0).normal(size=(COUNT, 3))


def test_labels_and_numbers_are_told_apart() -> None:
    assert images(LABELS).labels is not None and images(LABELS).truth is None
    for y in (NUMBERS, NUMBERS[:, 0], np.stack([LABELS, LABELS], axis=1)):
        found = images(y)
        assert found.labels is None and found.truth is not None
        assert found.truth.shape == (COUNT, y.size // COUNT)
        assert found.head(5).truth.shape[0] == 5  # type: ignore[union-attr]
        assert found.sha256 != images(LABELS).sha256
    with pytest.raises(InvalidDataError, match="y of image 2 holds NaN"):
        images(np.where(np.arange(COUNT) == 2, np.nan, 1.0))
    with pytest.raises(InvalidDataError, match="expected labels as integers"):
        make("set", np.zeros((COUNT, 4, 4, 3), np.uint8), NUMBERS)  # where classes are needed


@pytest.mark.parametrize(
    ("found", "asked", "expected"),
    [
        (manifest(spec(3)), None, None),  # a shape says nothing
        (manifest(spec(3), names=("0", "1", "2")), None, None),  # nor do numbers for names
        (manifest(spec(3), names=("a", "b", "c")), None, "classification"),
        (manifest(spec(3), said="classification"), None, "classification"),
        (manifest(spec(3), names=("a", "b", "c")), "regression", "regression"),
        (manifest(spec(3), said="regression"), None, "regression"),
    ],
)
def test_what_says_what_outputs_are(
    found: Manifest, asked: task.Task | None, expected: str | None
) -> None:
    assert task.declared(found, asked) == expected


def test_labels_make_classes_of_scores_and_of_nothing_else() -> None:
    right = task.right(images(LABELS), manifest(spec(3)), None, as_array=True)
    assert (right.task, right.names) == ("classification", ("0", "1", "2"))
    for outputs in ([spec(6, 6, 2)], [spec(3), spec(1, name="z")]):
        with pytest.raises(InvalidDataError, match="labels of classes do not fit y .*leave y out"):
            task.right(images(LABELS), manifest(*outputs), None, as_array=True)
        right = task.right(images(LABELS), manifest(*outputs), None, as_array=False)
        assert right.labels is None and "are not used" in right.unused  # folders are classes
    right = task.right(images(LABELS), manifest(spec(3), said="regression"), None, as_array=False)
    assert "pass --task classification" in right.unused


def test_numbers_are_the_truth_of_one_output_of_their_size() -> None:
    right = task.right(images(NUMBERS), manifest(spec(3)), None, as_array=True)
    assert right.task == "regression" and right.truth is not None
    task.right(images(NUMBERS), manifest(spec(1, 3)), None, as_array=True)
    for found in (manifest(spec(4)), manifest(spec(2), spec(1, name="z"))):
        with pytest.raises(InvalidDataError, match="expected y of one output with as many"):
            task.right(images(NUMBERS), found, None, as_array=True)
    with pytest.raises(InvalidDataError, match="got 3"):
        task.settle(right, np.zeros((COUNT, 2), np.float32))


def test_outputs_settle_what_is_open() -> None:
    unknown = task.right(images(None), manifest(spec(3)), None, as_array=False)
    shares = np.abs(NUMBERS) / np.abs(NUMBERS).sum(axis=1, keepdims=True)
    assert task.settle(unknown, shares.astype(np.float32)).task == "classification"
    assert task.settle(unknown, NUMBERS.astype(np.float32)).task == "regression"
    asked = task.right(images(None), manifest(spec(3)), "regression", as_array=False)
    assert task.settle(asked, shares.astype(np.float32)).task == "regression"


def test_one_number_is_a_score_of_two_classes_or_itself() -> None:
    share = np.linspace(0, 1, COUNT, dtype=np.float32)[:, None]
    two = task.right(images(LABELS % 2), manifest(spec(1)), None, as_array=True)
    assert task.settle(two, share).task == "classification"
    assert task.settle(two, 9 * share).task == "regression"
    asked = task.right(images(LABELS % 2), manifest(spec(1)), "classification", as_array=True)
    assert task.settle(asked, 9 * share).task == "classification"
    many = task.settle(task.right(images(LABELS), manifest(spec(1)), None, as_array=True), share)
    assert many.task == "regression" and many.truth is not None and many.truth.shape == (COUNT, 1)
    np.testing.assert_allclose(task.by_class(share), np.concatenate([1 - share, share], 1))
    np.testing.assert_array_equal(task.by_class(9 * share)[:, 0], 0)


@pytest.mark.parametrize(
    ("asked", "softmax", "expected"),
    [
        (None, True, ("classification", ("0", "1", "2"))),
        (None, False, ("", ())),
        ("classification", False, ("classification", ("0", "1", "2"))),
        ("regression", True, ("regression", ())),
    ],
)
def test_export_records_what_the_end_of_the_model_says(
    asked: task.Task | None, softmax: bool, expected: tuple[str, tuple[str, ...]], tmp_path: Path
) -> None:
    nets.linear(tmp_path / "net.onnx", np.ones((4, 3)), softmax=softmax)
    written = export(
        tmp_path / "net.onnx", target="onnx", precision="float32", preprocessing="none",
        task=asked, out=tmp_path / "out",
    )  # fmt: skip
    found = Artifact.load(written.path).manifest
    assert (found.task, found.class_names) == expected


def test_a_softmax_of_keras_is_seen_in_the_graph(tiny: tuple[Path, Path]) -> None:
    found = Artifact.load(tiny[0]).manifest
    assert (found.task, len(found.class_names)) == ("classification", 5)


def test_a_task_that_cannot_be_is_refused(tmp_path: Path) -> None:
    nets.detector(tmp_path / "net.onnx")
    with pytest.raises(InvalidOptionError, match=r"expected one output \[N, classes\], got found"):
        export(
            tmp_path / "net.onnx", target="onnx", precision="float32", preprocessing="none",
            task="classification", out=tmp_path / "out",
        )  # fmt: skip
    assert not (tmp_path / "out").exists()


def test_manifests_of_before_load(tiny: tuple[Path, Path]) -> None:
    found = Artifact.load(tiny[0]).manifest
    assert task.names(replace(found, task=""), None) == task.numbered(5)
