"""docs/accuracy.md is of its document, and the code still gives its figures."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from edgekit.compare import Options, compare

sys.path.insert(0, str(ROOT / "benchmarks"))

import conformance  # noqa: E402

DOCUMENT = ROOT / "docs" / "accuracy.json"
#: dB by which another CPU's sums may move what is left.
_NOISE = 1.0


def test_the_page_is_of_its_document() -> None:
    document = json.loads(DOCUMENT.read_text())
    assert document["schema_version"] == conformance.SCHEMA_VERSION
    assert DOCUMENT.with_suffix(".md").read_text() == conformance.page(document)
    for result in document["results"]:
        assert {row["deployable"] for row in result["rows"]} >= {"tflite int8", "onnx int8"}


@pytest.mark.slow
def test_the_shipped_model_is_worth_what_the_table_says(artifacts: dict[str, Path]) -> None:
    (table,) = (
        each for each in json.loads(DOCUMENT.read_text())["results"] if "shipped" in each["net"]
    )
    rows = {row["deployable"].replace(" ", "-"): row for row in table["rows"]}
    report = compare(list(artifacts.values()), Options(limit=table["samples"], rounds=0))
    for found in report.artifacts:
        row = rows[found.name]
        assert found.metrics["size"].value == pytest.approx(row["bytes"], rel=0.01)
        assert found.metrics["agreement"].value >= row["agreement"][1]
        if found.precision == "int8":
            assert found.metrics["sqnr_centred"].value > row["sqnr"] - _NOISE
