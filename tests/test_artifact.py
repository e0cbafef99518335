from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edgekit.base.errors import ArtifactError, OutputExistsError
from edgekit.records import artifact
from edgekit.records.artifact import Artifact, Manifest, QuantizationRecord
from edgekit.records.signature import Signature, TensorSpec, preprocessing


def write(path: Path, **changes: Any) -> Artifact:
    spec = TensorSpec("image", (-1, 28, 28, 1), "float32")
    manifest = {
        "model_id": "m",
        "format": "onnx",
        "precision": "float32",
        "model_file": "model.onnx",
        "signature": Signature((spec,), (spec,)),
        "preprocessing": preprocessing("unit"),
        "class_names": ("a", "b"),
        **changes,
    }
    return artifact.write(path, {"model.onnx": b"weights"}, manifest, force=False)


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    written = write(tmp_path / "a")
    assert Artifact.load(tmp_path / "a") == written
    assert written.manifest.versions["edgekit"]


def test_a_changed_byte_does_not_load(tmp_path: Path) -> None:
    write(tmp_path / "a").model_path.write_bytes(b"weightz")
    with pytest.raises(ArtifactError, match="was changed"):
        Artifact.load(tmp_path / "a")


def test_without_a_manifest_or_a_file_it_does_not_load(tmp_path: Path) -> None:
    written = write(tmp_path / "a")
    written.model_path.unlink()
    with pytest.raises(ArtifactError, match="is missing"):
        Artifact.load(tmp_path / "a")
    (tmp_path / "a" / "manifest.json").unlink()
    with pytest.raises(ArtifactError, match="no manifest.json"):
        Artifact.load(tmp_path / "a")
    with pytest.raises(ArtifactError, match="not found"):
        Artifact.load(tmp_path / "b")


def test_an_existing_folder_is_kept(tmp_path: Path) -> None:
    write(tmp_path / "a")
    with pytest.raises(OutputExistsError, match="--force"):
        write(tmp_path / "a", model_id="other")
    assert Artifact.load(tmp_path / "a").manifest.model_id == "m"


@pytest.mark.parametrize(
    "change",
    [
        {"schema_version": 99},
        {"precision": "int3"},
        {"surprise": 1},
        {"model_file": "other.onnx"},
        {"files": {"../model.onnx": "00"}, "model_file": "../model.onnx"},
        {"class_names": None},
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    write(tmp_path / "a")
    path = tmp_path / "a" / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ArtifactError):
        Artifact.load(tmp_path / "a")


@pytest.mark.parametrize(
    ("way", "weights"),
    [
        ("nearest rounding, 3 tensors in float", "nearest"),
        ("corrected biases (from channel means, without images to judge by)", "corrected"),
        ("equalized channels, fitted layers", "fitted"),
        ("trained with fake quantization", "trained"),
        ("taken over from the file", "source"),
    ],
)
def test_a_manifest_without_the_field_says_in_words_how_weights_were_rounded(
    way: str, weights: str, tmp_path: Path
) -> None:
    path = write(tmp_path / "a", quantization=QuantizationRecord(way, {})).path / "manifest.json"
    document = json.loads(path.read_text())
    del document["quantization"]["weights"]
    path.write_text(json.dumps(document))
    record = Manifest.load(path).quantization
    assert record is not None and record.weights == weights


def test_how_weights_were_rounded_is_not_read_from_words() -> None:
    assert QuantizationRecord("layers by least squares", {}, weights="fitted").weights == "fitted"
