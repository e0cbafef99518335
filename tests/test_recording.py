from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Done, mostly_right
from exported import export

from edgekit import data
from edgekit.base.errors import InvalidOptionError, RecordingError, ReportError
from edgekit.compare import Options, compare
from edgekit.evaluation.recording import Recording, is_recording
from edgekit.gate import gate
from edgekit.records import environment
from edgekit.records.results import Report
from edgekit.records.signature import preprocessing
from edgekit.report import report as page_of
from edgekit.sources import keras

COUNT = 40


@pytest.fixture(scope="module")
def folder(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """onnx-float32 of the small model, labelled images, and recordings of runners of it."""
    made = tmp_path_factory.mktemp("recording")
    options: dict[str, Any] = {"target": "onnx", "precision": "float32", "preprocessing": "unit"}
    export(small / "small.keras", out=made / "onnx-float32", **options)
    pixels = np.load(small / "set.npz")["x"]
    model = keras.load(small / "small.keras")
    scores = np.asarray(keras.call(model, [pixels / np.float32(255)])[0])
    labels = mostly_right(scores, np.random.default_rng(0))
    np.savez(made / "set.npz", x=pixels, y=labels)
    for name, word in (("cpu", "ort:cpu:float16"), ("emulated", "emulated:float16")):
        found = compare(
            [made / "onnx-float32"],
            Options(
                dataset=str(made / "set.npz"), rounds=2, reference=word, record=made / f"{name}.rec"
            ),
        )
        (made / f"{name}.json").write_text(found.dumps())
    return made


def replayed(folder: Path, name: str = "cpu.rec", **options: Any) -> Report:
    options = {"dataset": str(folder / "set.npz"), "rounds": 1, **options}
    return compare([folder / "onnx-float32"], Options(reference=folder / name, **options))


def test_a_recording_made_on_a_cpu_says_so(folder: Path) -> None:
    found = Recording.load(folder / "cpu.rec")
    facts = found.facts
    assert (facts.device.kind, facts.device.driver) == ("cpu", None)
    assert facts.device.name == environment.describe().cpu
    assert facts.runtime.provider == "CPUExecutionProvider"
    assert not facts.runtime.emulated
    assert found.outputs.shape == (COUNT, 5)
    assert found.latency is not None and found.latency.shape == (2, 20)
    assert set(facts.metrics) == {"peak_memory", "load_time"}
    assert facts.data.count == COUNT


def test_a_replay_is_what_was_recorded(folder: Path) -> None:
    before, after = Report.load(folder / "cpu.json"), replayed(folder)
    assert after.reference.name == "ort:cpu:float16 (recorded)"

    # a ratio needs float32 beside it; alone, its rounds have a warm-up of their own
    def without_times(report: Report) -> dict[str, object]:
        found = report.reference.metrics
        return {name: each for name, each in found.items() if not name.startswith("latency")}

    assert without_times(after) == without_times(before)
    assert "latency_p50" in after.reference.metrics
    assert after.reference.latency_ms == before.reference.latency_ms
    assert after.reference.correct == before.reference.correct
    assert after.reference.runtime.device == "cpu"
    for name in ("agreement", "sqnr", "kl", "top1"):
        assert after.artifacts[0].metrics[name] == before.artifacts[0].metrics[name]
    assert any("recorded" in warning and "on CPU" in warning for warning in after.warnings)
    page = page_of(after)
    assert "predicts as well as ort:cpu:float16 (recorded)" in page or "No proof" in page
    assert "GPU" not in page.replace("onnxruntime-gpu", "")


def test_an_emulation_has_no_times_and_is_labelled_everywhere(folder: Path) -> None:
    found = Report.load(folder / "emulated.json")
    result = found.reference
    assert result.name == "emulated:float16"
    assert result.runtime.emulated
    assert result.latency_ms == ()
    assert not {name for name in result.metrics if "latency" in name or "memory" in name}
    assert found.artifacts[0].metrics["latency_p50"].value > 0
    assert any("emulated on the CPU, for accuracy only" in text for text in found.warnings)
    page = page_of(found)
    assert page.count("emulated:float16") > 4
    assert "cpu, emulates float16" in page
    recording = Recording.load(folder / "emulated.rec")
    assert recording.latency is None and recording.facts.runtime.emulated
    again = replayed(folder, "emulated.rec")
    assert again.reference.runtime.emulated and again.reference.latency_ms == ()


def test_the_same_recording_gives_the_same_bytes(folder: Path) -> None:
    found = Recording.load(folder / "cpu.rec")
    assert found.dumps() == found.dumps()
    found.write(folder / "again.rec", force=True)
    again = Recording.load(folder / "again.rec")
    assert again.facts == found.facts
    np.testing.assert_array_equal(again.outputs, found.outputs)
    assert is_recording(folder / "cpu.rec")
    assert not is_recording(folder / "set.npz")


def test_any_changed_byte_is_refused(folder: Path, tmp_path: Path) -> None:
    content = (folder / "cpu.rec").read_bytes()
    path = tmp_path / "x.rec"
    places = np.random.default_rng(0).integers(0, len(content), 60)
    for place in [0, len(content) - 1, *places.tolist()]:
        changed = bytearray(content)
        changed[place] ^= 1
        path.write_bytes(changed)
        with pytest.raises(RecordingError, match="was changed or cut short"):
            Recording.load(path)
    for size in (0, 10, 64, len(content) - 1):
        path.write_bytes(content[:size])
        with pytest.raises(RecordingError, match="was changed or cut short|no recording"):
            Recording.load(path)


def forged(path: Path, change: Callable[[dict[str, Any]], None], **arrays: bytes) -> Path:
    """A recording with another document or other arrays, and a right sha256 at its end."""
    with zipfile.ZipFile(path) as archive:
        document = json.loads(archive.read("recording.json"))
        found = {n: archive.read(n) for n in archive.namelist() if n != "recording.json"}
    found.update({f"{name}.npy": content for name, content in arrays.items()})
    document["arrays"] = {
        name.removesuffix(".npy"): hashlib.sha256(content).hexdigest()
        for name, content in found.items()
    }
    change(document)
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("recording.json", json.dumps(document))
        for name, content in found.items():
            archive.writestr(name, content)
        archive.comment = b"0" * 64
    content = stream.getvalue()[:-64]
    out = path.with_name("forged.rec")
    out.write_bytes(content + hashlib.sha256(content).hexdigest().encode())
    return out


def npy(values: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, values, allow_pickle=True)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(schema_version=1), "schema_version 1, this edgekit reads 2"),
        (
            lambda d: d["outputs"].update(more=1),
            "of the outputs dense of 5, more of 1, got",
        ),
        (lambda d: d.update(outputs={}), "values of the outputs"),
        (lambda d: d.pop("schema_version"), "schema_version None"),
        (lambda d: d.update(extra=1), "unknown key 'extra'"),
        (lambda d: d.pop("device"), "missing key 'device'"),
        (lambda d: d["device"].update(kind="tpu"), "expected one of"),
        (lambda d: d["arrays"].update(answers="0" * 64), "answers are not those of its sha256"),
        (lambda d: d["arrays"].update(more="0" * 64), "expected the arrays"),
        (lambda d: d["data"].update(count=3), "finite outputs for 3 images"),
        (lambda d: d["runtime"].update(emulated=True), "cannot have been measured"),
    ],
)
def test_a_document_that_does_not_fit_is_refused(
    change: Callable[[dict[str, Any]], None], message: str, folder: Path
) -> None:
    with pytest.raises(RecordingError, match=message):
        Recording.load(forged(folder / "cpu.rec", change))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros((COUNT, 5)), "expected float32"),
        (np.zeros(COUNT * 5, np.float32), "expected float32"),
        (np.full((COUNT, 5), np.nan, np.float32), "finite outputs"),
        (np.array([[{}]], object), "broken array"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(values: np.ndarray, message: str, folder: Path) -> None:
    path = forged(folder / "cpu.rec", lambda document: None, answers=npy(values))
    with pytest.raises(RecordingError, match=message):
        Recording.load(path)


def test_an_array_that_says_it_is_larger_than_it_is(folder: Path) -> None:
    small = npy(np.zeros((COUNT, 5), np.float32)).replace(b"(40, 5)", b"(9999999, 99)")
    with pytest.raises(RecordingError, match="broken array"):
        Recording.load(forged(folder / "cpu.rec", lambda document: None, answers=small))


def test_another_model_data_or_preprocessing_is_refused_and_named(folder: Path) -> None:
    found = Recording.load(folder / "cpu.rec")
    facts = found.facts
    images = data.load(str(folder / "set.npz"), "test")
    fits: dict[str, Any] = {
        "source_sha256": facts.source_sha256,
        "images": images,
        "preprocessing": facts.preprocessing,
    }
    path = Path("x.rec")
    found.check(path, **fits)
    for change, message in (
        ({"source_sha256": "0" * 64}, r"another float model \(sha256 .*here 000000000000"),
        ({"images": images.head(20)}, r"another data set .*, another number of images \(40, here"),
        ({"preprocessing": preprocessing("symmetric")}, r"another preprocessing \(unit: .*symm"),
    ):
        with pytest.raises(RecordingError, match=message):
            found.check(path, **{**fits, **change})
    other = replace(found, facts=replace(facts, inputs_sha256="0" * 64))
    with pytest.raises(RecordingError, match="another preprocessed tensors"):
        other.check(path, **fits)


def test_compare_refuses_in_one_line(
    folder: Path, tmp_path: Path, edgekit: Callable[..., Done]
) -> None:
    out = tmp_path / "r.json"
    call = ("compare", folder / "onnx-float32", "--data", folder / "set.npz", "--out", out)
    changed = tmp_path / "changed.rec"
    content = bytearray((folder / "cpu.rec").read_bytes())
    content[len(content) // 2] ^= 1
    changed.write_bytes(content)
    for more, message in (
        (("--reference", changed), "was changed or cut short"),
        (("--reference", folder / "cpu.rec", "--limit", "10"), "recorded with another data set"),
        (("--reference", folder / "cpu.rec", "--record", tmp_path / "x"), "is a recording"),
        (("--reference", "ort:gpu:float16"), "unknown runner 'ort:gpu:float16'; expected one of"),
        (("--reference", tmp_path / "none"), "not found; expected the float model"),
        (("--record", folder / "cpu.rec"), "exists already"),
        (("--record", out), "are one file"),
    ):
        done = edgekit(*call, *more)
        assert done.status == 2, more
        assert message in done.error
        assert not out.exists()


@pytest.mark.skipif(environment.gpu() is not None, reason="a GPU is here")
@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("ort:cuda:float16", "asks for CUDAExecutionProvider, .*usable here: CPUExecutionProvider"),
        ("keras:gpu:mixed_float16", "no NVIDIA driver or GPU"),
    ],
)
def test_without_a_gpu_its_runners_are_refused(
    word: str, message: str, folder: Path, tmp_path: Path, edgekit: Callable[..., Done]
) -> None:
    out, record = tmp_path / "r.json", tmp_path / "gpu.rec"
    done = edgekit(
        "compare",
        folder / "onnx-float32",
        *("--data", folder / "set.npz", "--reference", word, "--record", record, "--out", out),
    )
    assert done.status == 2
    import re

    assert re.search(message, done.error)
    assert not out.exists() and not record.exists()


def test_the_gate_holds_against_one_reference(folder: Path) -> None:
    one, other = (Report.load(folder / f"{name}.json") for name in ("cpu", "emulated"))
    assert gate(one, baseline=other)
    with pytest.raises(ReportError, match="agreement compares within one reference only"):
        gate(one, baseline=other, max_drop={"agreement": 1})
    assert gate(replayed(folder), baseline=one, max_drop={"agreement": 1})[0].verdict == "PASS"


def test_a_reference_of_keras(folder: Path) -> None:
    found = compare(
        [folder / "onnx-float32"],
        Options(dataset=str(folder / "set.npz"), rounds=1, reference="keras:cpu:mixed_float16"),
    )
    assert found.reference.name == "keras:cpu:mixed_float16"
    assert found.reference.runtime.provider == "TensorFlow CPU, mixed_float16"
    assert found.artifacts[0].metrics["agreement"].value > 80
    with pytest.raises(InvalidOptionError, match="unknown runner"):
        compare([folder / "onnx-float32"], Options(reference="keras:tpu:float32"))
