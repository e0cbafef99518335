"""Every reader of JSON, on anything: an equal object or its own error, never another exception."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from test_schema import reports, words

from edgekit.base import schema
from edgekit.base.errors import (
    ArtifactError,
    EdgekitError,
    InvalidDataError,
    InvalidOptionError,
    ReportError,
)
from edgekit.quantization.histogram import Histogram
from edgekit.quantization.table import METHODS, CalibrationTable, Range, TensorStatistics
from edgekit.records.artifact import (
    MANIFEST,
    Artifact,
    CalibrationRecord,
    Execution,
    Manifest,
    QuantizationRecord,
    Source,
)
from edgekit.records.encodings import Encoding, Encodings, FakeQuantRecipe
from edgekit.records.results import Report
from edgekit.records.signature import (
    DTYPES,
    Preprocessing,
    Signature,
    TensorSpec,
    preprocessing,
)

finite = st.floats(-1e30, 1e30)
positive = st.floats(1e-30, 1e30)
hexes = st.text("0123456789abcdef", min_size=64, max_size=64)
leaves = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | words
)
values = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=8,
)
#: What JSON parsers also take, or programs write.
wild = st.recursive(
    leaves | st.floats() | st.integers() | st.sampled_from([10**400, "\ud800", "Infinity", "NaN"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=6,
)

preprocessings = st.builds(
    Preprocessing,
    name=words,
    scale=st.lists(positive, min_size=1, max_size=3).map(tuple),
    offset=st.lists(finite, min_size=1, max_size=3).map(tuple),
)
specs = st.builds(
    lambda name, shape, dtype, ends: TensorSpec(name, tuple(shape), dtype, *(ends or (None, None))),
    words,
    st.lists(st.integers(-1, 1000), max_size=4),
    st.sampled_from(DTYPES),
    st.none() | st.tuples(positive, st.integers(-128, 127)),
)
ends = st.lists(specs, min_size=1, max_size=2).map(tuple)
manifests = st.builds(
    Manifest,
    model_id=words,
    format=st.sampled_from(["keras", "tflite", "onnx"]),
    precision=st.sampled_from(["float32", "float16", "int8"]),
    model_file=st.just("model.bin"),
    files=st.just({"model.bin": "00"}),
    signature=st.builds(Signature, inputs=ends, outputs=ends),
    preprocessing=preprocessings,
    class_names=st.lists(words, max_size=3).map(tuple),
    source=st.none() | st.builds(Source, path=words, sha256=hexes),
    calibration=st.none()
    | st.builds(
        CalibrationRecord, data=words, sha256=hexes, count=st.integers(0, 10**6), method=words
    ),
    device=words,
    quantization=st.none()
    | st.builds(
        QuantizationRecord,
        way=words,
        tried=st.dictionaries(words, st.floats(allow_nan=False), max_size=2),
        saturating=st.dictionaries(words, st.integers(0, 10**6), max_size=2),
    ),
    execution=st.none()
    | st.builds(
        Execution,
        provider=words,
        isa=st.lists(words, max_size=2).map(tuple),
        kernels=st.dictionaries(words, st.integers(0, 100), max_size=2),
        note=words,
    ),
    runtime_options=st.dictionaries(words, words, max_size=2),
    versions=st.dictionaries(words, words, max_size=2),
    command=words,
    training=st.none() | st.dictionaries(words, values, max_size=3),
    notes=st.lists(words, max_size=2).map(tuple),
)
scales = st.lists(positive, min_size=1, max_size=3).map(tuple)
encodings = st.builds(
    Encodings,
    graph_sha256=hexes,
    device=words,
    tensors=st.dictionaries(
        words,
        st.builds(Encoding, dtype=st.just("int8"), scale=scales, zero_point=st.integers(-128, 127))
        | st.builds(Encoding, dtype=st.just("int32"), scale=scales, axis=st.integers(0, 3)),
        max_size=3,
    ),
    factors=st.dictionaries(words, scales, max_size=2),
)
recipes = st.builds(
    FakeQuantRecipe,
    activations=st.dictionaries(words, st.tuples(positive, st.integers(-128, 127)), max_size=3),
    weight_bits=st.integers(2, 8),
    left_float=st.lists(words, max_size=2).map(tuple),
)


@st.composite
def statistics(draw: st.DrawFn) -> TensorStatistics:
    low, first, last, high = sorted(draw(st.lists(finite, min_size=4, max_size=4)))
    count = draw(st.integers(1, 3))
    channels = st.lists(finite, min_size=count, max_size=count).map(tuple)
    return TensorStatistics(
        low,
        high,
        first,
        last,
        Histogram(
            draw(positive),
            draw(st.integers(-(2**40), 2**40)),
            tuple(draw(st.lists(st.integers(1, 10**9), min_size=1, max_size=4))),
        ),
        draw(channels),
        draw(channels),
        draw(channels),
    )


@st.composite
def tables(draw: st.DrawFn) -> CalibrationTable:
    found = draw(st.dictionaries(words, statistics(), max_size=2))
    return CalibrationTable(
        draw(hexes),
        draw(words),
        draw(hexes),
        draw(st.integers(1, 10**6)),
        draw(preprocessings),
        draw(st.sampled_from(METHODS)),
        {name: Range(each.min, each.max) for name, each in found.items()},
        found,
    )


def read_manifest(path: Path) -> Manifest:
    """Through a folder, as all verbs do; the one file it may name is there."""
    folder = path.parent / "artifact"
    folder.mkdir(exist_ok=True)
    (folder / "model.bin").write_bytes(b"")
    (folder / MANIFEST).write_bytes(path.read_bytes())
    try:
        return Artifact.load(folder).manifest
    except ArtifactError as exc:
        if "was changed" not in str(exc):
            raise
        return Manifest.load(path)


Reader = Callable[[Path], Any]
#: Name: what reads, the error it may raise, what it gives back.
READERS: dict[str, tuple[Reader, type[EdgekitError], st.SearchStrategy[Any]]] = {
    "manifest": (read_manifest, ArtifactError, manifests),
    "encodings": (Encodings.load, ArtifactError, encodings),
    "recipe": (FakeQuantRecipe.load, ArtifactError, recipes),
    "table": (CalibrationTable.load, InvalidDataError, tables()),
    "report": (Report.load, ReportError, reports),
    "preprocessing": (lambda p: preprocessing(str(p)), InvalidOptionError, preprocessings),
}
quick = settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(params=READERS)
def reader(request: pytest.FixtureRequest) -> Any:
    return READERS[request.param]


@quick
@given(data=st.data())
def test_what_is_written_is_read_back_equal(
    reader: Any, tmp_path: Path, data: st.DataObject
) -> None:
    read, _, objects = reader
    written = data.draw(objects)
    path = tmp_path / "x.json"
    path.write_text(schema.dumps(written), encoding="utf-8")
    assert read(path) == written


def read_or_refuse(reader: Any, path: Path) -> None:
    """What is read can be written and is read back equal; else the reader's own error, one line."""
    read, error, _ = reader
    try:
        found = read(path)
    except error as exc:
        assert type(exc) is error and str(exc)
        return
    path.write_text(schema.dumps(found), encoding="utf-8")
    assert read(path) == found


@quick
@given(data=st.data())
def test_one_value_changed(reader: Any, tmp_path: Path, data: st.DataObject) -> None:
    """A good file with another value in one place, at any depth."""
    value = schema.to_json(data.draw(reader[2]))
    place = value
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        if not keys:
            return
        key = data.draw(st.sampled_from(keys))
        inside = place[key]
        if not (isinstance(inside, dict | list) and inside and data.draw(st.booleans())):
            break
        place = inside
    place[key] = data.draw(wild)
    path = tmp_path / "x.json"
    path.write_text(json.dumps(value))
    read_or_refuse(reader, path)


@quick
@given(value=wild)
def test_any_json(reader: Any, tmp_path: Path, value: Any) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps(value))
    read_or_refuse(reader, path)


@quick
@given(content=st.binary(max_size=60))
def test_any_bytes(reader: Any, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(content)
    read_or_refuse(reader, path)


@quick
@given(data=st.data())
def test_cut_or_flipped(reader: Any, tmp_path: Path, data: st.DataObject) -> None:
    content = bytearray(schema.dumps(data.draw(reader[2])).encode())
    at = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        content = content[:at]
    else:
        content[at] ^= 1 << data.draw(st.integers(0, 7))
    path = tmp_path / "x.json"
    path.write_bytes(bytes(content))
    read_or_refuse(reader, path)


@pytest.mark.parametrize("name", [name for name in READERS if name != "preprocessing"])
@settings(quick, max_examples=25)
@given(
    data=st.data(),
    version=st.sampled_from([0, -1, 3, 99, 2**62, 1.0, 2.0, "1", True, None, [], {}])
    | st.integers(),
)
def test_any_other_schema_version_is_refused(
    name: str, tmp_path: Path, data: st.DataObject, version: Any
) -> None:
    read, error, objects = READERS[name]
    value = schema.to_json(data.draw(objects))
    path = tmp_path / "x.json"
    if type(version) is not int or version != value["schema_version"]:
        path.write_text(json.dumps({**value, "schema_version": version}))
        with pytest.raises(error, match="schema_version|64 bits"):
            read(path)
    del value["schema_version"]
    path.write_text(json.dumps(value))
    with pytest.raises(error, match="schema_version None"):
        read(path)


@settings(quick, max_examples=20, phases=(Phase.generate,))
@given(report=reports)
def test_a_report_that_is_read_is_drawn(tmp_path: Path, report: Report) -> None:
    """No figure, however odd, breaks the page."""
    from edgekit.report import report as page_of

    named = [
        dataclasses.replace(
            result,
            correct="",
            metrics=dict(
                zip(("top1", "latency_p50", "sqnr"), result.metrics.values(), strict=False)
            ),
        )
        for result in (report.reference, *report.artifacts)
    ]
    page = page_of(dataclasses.replace(report, reference=named[0], artifacts=tuple(named[1:])))
    assert page.rstrip().endswith("</html>")
