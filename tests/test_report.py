from __future__ import annotations

import dataclasses
import html.parser
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Done
from test_gate import artifact, make, write

from edgekit.report import report as page_of
from edgekit.results import Measurement, Report

NAMES = ("m-tflite-int8", "m-onnx-int8")


@pytest.fixture(scope="module")
def measured() -> Report:
    metrics = {
        "top5": Measurement(99, "%", 1000),
        "agreement": Measurement(98, "%", 1000),
        "mcnemar_p": Measurement(0.5, "p", 1000),
        "sqnr": Measurement(float("inf"), "dB", 1000),
        "size": Measurement(1e6, "bytes", 1),
        "latency_p50": Measurement(0.5, "ms", 200),
    }
    results = [artifact(name, 60 + i, **metrics) for i, name in enumerate(NAMES)]
    return make(*results, reference=artifact("m", 60, **metrics))


class Parsed(html.parser.HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.tags: set[str] = set()
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        for name, value in attributes:
            if name == "id":
                self.ids.append(value or "")
            if name in ("href", "src", "xlink:href"):
                self.links.append(value or "")


def test_the_page_is_self_contained(measured: Report) -> None:
    page = page_of(measured)
    parsed = Parsed(page)
    assert len(page) < 2_000_000
    assert not parsed.tags & {"script", "link", "img", "iframe"}
    assert all(link.startswith("#") for link in parsed.links)
    assert len(set(parsed.ids)) == len(parsed.ids)
    assert "url(http" not in page


def test_verdict_figures_and_command_are_there(measured: Report) -> None:
    page = page_of(measured)
    assert "All 2 deployables answer as well as the float model" in page
    assert page.count("<svg") == 2
    for text in ("tflite-int8", "94.00", "exact", "avx2", measured.command):
        assert text in page


def test_a_worse_deployable_is_in_the_headline(measured: Report) -> None:
    worse = dataclasses.replace(
        measured.artifacts[1],
        metrics={
            **artifact("x", 400).metrics,
            **{k: v for k, v in measured.artifacts[1].metrics.items() if k != "top1"},
            "mcnemar_p": Measurement(0.001, "p", 1000),
        },
    )
    page = page_of(dataclasses.replace(measured, artifacts=(measured.artifacts[0], worse)))
    assert "1 of 2 deployables differ from the float model: onnx-int8" in page
    assert "less accurate" in page


def test_hostile_names_are_escaped(measured: Report) -> None:
    hostile = "<script>alert(1)</script>"
    report = dataclasses.replace(
        measured,
        model_id=hostile,
        command=hostile,
        artifacts=(dataclasses.replace(measured.artifacts[0], name=hostile),),
    )
    page = page_of(report)
    assert "<script" not in page
    assert re.search("&lt;script", page)


def test_the_same_report_gives_the_same_page(measured: Report) -> None:
    assert page_of(measured) == page_of(measured)


def test_the_command(measured: Report, tmp_path: Path, edgekit: Callable[..., Done]) -> None:
    source, out = write(tmp_path / "r.json", measured), tmp_path / "r.html"
    done = edgekit("report", source, "--out", out)
    assert done.status == 0, done.stderr
    assert done.document["bytes"] == out.stat().st_size
    before = out.read_bytes()
    assert "exists already" in edgekit("report", source, "--out", out).error
    assert out.read_bytes() == before
    assert edgekit("report", tmp_path / "none.json", "--out", tmp_path / "x.html").status == 2
    assert not (tmp_path / "x.html").exists()
