from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.base import schema
from edgekit.base.errors import EdgekitError, ReportError
from edgekit.base.schema import SchemaError
from edgekit.records.results import (
    ArtifactResult,
    Data,
    Environment,
    Measurement,
    Report,
    Runtime,
    pack_bits,
)


@dataclass(frozen=True)
class Inner:
    kind: Literal["a", "b"]
    values: tuple[float, ...]
    pair: tuple[int, str] = (0, "")


@dataclass(frozen=True)
class Outer(schema.Document):
    VERSION: ClassVar[int] = 1
    ERROR: ClassVar[type[EdgekitError]] = ReportError
    WHAT: ClassVar[str] = "an outer"

    name: str
    count: int
    share: float
    flag: bool
    inner: Inner
    table: dict[str, Inner]
    maybe: float | None = None
    schema_version: int = 1


GOOD: dict[str, Any] = {
    "name": "n",
    "count": 3,
    "share": 0.5,
    "flag": True,
    "inner": {"kind": "a", "values": [1, 2.5]},
    "table": {"t": {"kind": "b", "values": [], "pair": [1, "x"]}},
}

# Reports as measurers could write them: any text, any float but NaN.
numbers = st.floats(allow_nan=False)
whole = st.integers(-(2**63), 2**63 - 1)  # what a report may hold
words = st.text(max_size=12)
measurements = st.builds(
    Measurement,
    value=numbers,
    unit=st.sampled_from(["%", "ms", "bytes", "dB", "x"]),
    count=st.integers(0, 2**60),
    low=st.none() | numbers,
    high=st.none() | numbers,
    interval=words,
)
runtimes = st.builds(
    Runtime,
    name=words,
    provider=words,
    threads=st.integers(1, 64),
    options=st.dictionaries(words, words, max_size=2),
    notes=st.lists(words, max_size=2).map(tuple),
)
results = st.builds(
    ArtifactResult,
    name=words,
    path=words,
    format=words,
    precision=words,
    sha256=words,
    runtime=runtimes,
    metrics=st.dictionaries(words, measurements, max_size=3),
    correct=st.lists(st.booleans(), max_size=20).map(lambda bits: pack_bits(np.array(bits, bool))),
    latency_ms=st.lists(numbers, max_size=3).map(tuple),
    latency_rounds=st.integers(0, 10),
)
reports = st.builds(
    Report,
    model_id=words,
    data=st.builds(Data, name=words, sha256=words, count=st.integers(0, 10**6)),
    environment=st.builds(
        Environment,
        cpu=words,
        isa=st.lists(words, max_size=2).map(tuple),
        cores=st.integers(1, 256),
        memory_bytes=st.integers(0, 2**50),
        system=words,
        versions=st.dictionaries(words, words, max_size=2),
        machine_class=words,
    ),
    reference=results,
    artifacts=st.lists(results, max_size=3, unique_by=lambda result: result.name).map(tuple),
    created=words,
    command=words,
    settings=st.dictionaries(words, st.none() | st.booleans() | whole | words, max_size=2),
    warnings=st.lists(words, max_size=2).map(tuple),
)


@settings(deadline=None, max_examples=50)
@given(reports)
def test_a_report_is_read_back_equal(tmp_path_factory: pytest.TempPathFactory, x: Report) -> None:
    path = tmp_path_factory.getbasetemp() / "round.json"
    path.write_text(x.dumps(), encoding="utf-8")
    assert Report.load(path) == x


@settings(deadline=None, max_examples=50)
@given(reports)
def test_any_key_that_goes_missing_is_noticed(x: Report) -> None:
    value = schema.to_json(x)
    required = [f.name for f in dataclasses.fields(Report) if f.default is dataclasses.MISSING]
    for name in set(required) - {"settings"}:
        cut = {key: item for key, item in value.items() if key != name}
        with pytest.raises(SchemaError, match="missing key"):
            schema.from_json(Report, cut)


def test_defaults_tuples_and_whole_floats() -> None:
    read = schema.from_json(Outer, GOOD)
    assert read.inner == Inner("a", (1.0, 2.5))
    assert isinstance(read.inner.values[0], float)
    assert read.table == {"t": Inner("b", (), (1, "x"))}
    assert read.maybe is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"extra": 1}, "unknown key 'extra'"),
        ({"name": 1}, "Outer.name: expected a str, got 1"),
        ({"name": "\ud800"}, "expected Unicode text"),
        ({"count": 1.0}, "expected an integer"),
        ({"count": True}, "expected an integer"),
        ({"share": "0.5"}, "expected a number"),
        ({"share": True}, "expected a number"),
        ({"share": None}, "expected a number"),
        ({"share": 10**400}, "one too large"),
        ({"share": "NaN"}, "expected a number"),
        ({"flag": 1}, "expected a bool"),
        ({"maybe": []}, "expected a number"),
        ({"inner": []}, "expected an object"),
        ({"inner": {"kind": "c", "values": []}}, "expected one of"),
        ({"inner": {"kind": "a"}}, "Outer.inner: missing key 'values'"),
        ({"inner": {"kind": "a", "values": [0, "x"]}}, r"Outer.inner.values\[1\]"),
        ({"inner": {"kind": "a", "values": [], "pair": [1]}}, "expected 2 values"),
        ({"table": {"t": 3}}, "Outer.table.t: expected an object"),
    ],
)
def test_what_does_not_fit_is_refused_and_its_place_named(
    change: dict[str, Any], message: str
) -> None:
    with pytest.raises(SchemaError, match=message):
        schema.from_json(Outer, {**GOOD, **change})


@pytest.mark.parametrize("value", [math.nan, [math.nan], {"x": math.nan}])
def test_nan_is_never_written(value: Any) -> None:
    with pytest.raises(SchemaError, match="NaN"):
        schema.dumps(value)


@pytest.mark.parametrize("value", [np.float32(1), {1, 2}, b"bytes", object()])
def test_what_has_no_json_form_is_not_written(value: Any) -> None:
    with pytest.raises(SchemaError, match="cannot write"):
        schema.dumps(value)


def test_infinities_travel_as_text() -> None:
    outer = schema.from_json(Outer, {**GOOD, "share": "-Infinity", "maybe": "Infinity"})
    assert (outer.share, outer.maybe) == (-math.inf, math.inf)
    assert json.loads(schema.dumps(outer))["share"] == "-Infinity"


def read(path: Path) -> Outer:
    return Outer.load(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"\xff\xfe", "not a text file"),
        (b"[" * 100_000, "not valid JSON"),
        (b'{"schema_version": ' + b"1" * 5000 + b"}", "not valid JSON"),
        (b'{"schema_version": 1, "schema_version": 1}', "'schema_version' is there twice"),
        (b"[]", "schema_version None"),
        (b"{}", "schema_version None"),
        (b'{"schema_version": true}', "schema_version True"),
        (b'{"schema_version": "1"}', "schema_version '1'"),
        (b'{"schema_version": 2}', "schema_version 2, this edgekit reads 1"),
        (b'{"schema_version": 1}', "missing key 'name'"),
        (json.dumps({**GOOD, "share": math.nan, "schema_version": 1}).encode(), "finite"),
        (json.dumps({**GOOD, "share": math.inf, "schema_version": 1}).encode(), "finite"),
    ],
)
def test_broken_files_are_one_error(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(ReportError, match=message):
        read(path)


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match="not found; expected an outer"):
        read(tmp_path / "x.json")
    with pytest.raises(ReportError, match="is a folder"):
        read(tmp_path)


@pytest.mark.parametrize("correct", ["*", "AAA", "AAAA"])
def test_a_record_of_the_wrong_length_is_refused(correct: str) -> None:
    result = ArtifactResult("a", "a", "onnx", "int8", "", Runtime("ort", "CPU", 1), {}, correct)
    with pytest.raises(ReportError, match="per-image record"):
        result.correct_bits(10)


@given(st.lists(st.booleans(), min_size=1, max_size=99))
def test_the_record_is_read_back_equal(bits: list[bool]) -> None:
    packed = pack_bits(np.array(bits))
    result = ArtifactResult("a", "a", "onnx", "int8", "", Runtime("ort", "CPU", 1), {}, packed)
    assert result.correct_bits(len(bits)).tolist() == bits
