from __future__ import annotations

import dataclasses
import html.parser
import math
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, Done
from test_gate import artifact, make, write

from edgekit.report import _change_interval, place_labels
from edgekit.report import report as page_of
from edgekit.results import Conditions, Data, Measurement, Report, pack_bits

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
    assert "1 of 2 deployables is less accurate than the float model: onnx-int8" in page
    assert 'class="worse">less accurate' in page
    assert "−34.00" in page


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


def test_hostile_names_in_the_plots_are_escaped(measured: Report) -> None:
    hostile = dataclasses.replace(
        measured.artifacts[0], name="<script> $\\frac{$ ]]> &amp;", format="<b>", precision="<i>"
    )
    page = page_of(dataclasses.replace(measured, artifacts=(hostile,)))
    assert "<script" not in page and "<b>" not in page and "<i>" not in page
    assert page.count("&lt;script&gt; $\\frac{$ ]]&gt; &amp;amp;</text>") == 2


def test_few_images_prove_nothing(measured: Report) -> None:
    """Eight images, all right: no change is significant, and nothing is proved either."""
    bits = pack_bits(np.ones(8, bool))
    few = [
        dataclasses.replace(result, correct=bits)
        for result in (measured.reference, measured.artifacts[0])
    ]
    page = page_of(
        dataclasses.replace(measured, data=Data("d", "0", 8), reference=few[0], artifacts=(few[1],))
    )
    assert "No proof for 1 of 1 deployables: tflite-int8" in page
    assert "too few images to tell" in page


def test_the_interval_of_a_paired_change_covers_it(measured: Report) -> None:
    """95 of 100 samples of the same net change hold the true one: seeded simulation."""
    random = np.random.default_rng(0)
    hits = 0
    for _ in range(400):
        draw = random.choice(3, 1000, p=(0.03, 0.01, 0.96))  # lost, gained, alike
        before, now = draw != 1, draw != 0
        reference = dataclasses.replace(measured.reference, correct=pack_bits(before))
        result = dataclasses.replace(measured.artifacts[0], correct=pack_bits(now))
        found = _change_interval(result, dataclasses.replace(measured, reference=reference))
        assert found is not None
        hits += found[0] <= -2.0 <= found[1]
    assert 0.92 <= hits / 400 <= 0.98


def test_missing_and_infinite_figures_are_shown_as_such(measured: Report) -> None:
    bare = dataclasses.replace(measured.artifacts[0], metrics={}, correct="")
    endless = dataclasses.replace(
        measured.artifacts[1],
        metrics={**measured.artifacts[1].metrics, "latency_p50": Measurement(math.inf, "ms", 1)},
    )
    page = page_of(dataclasses.replace(measured, artifacts=(bare, endless)))
    assert "No proof for 1 of 2 deployables: tflite-int8" in page
    assert "not measured" in page
    assert page.count("<svg") == 1  # nothing has a finite latency
    assert "Not drawn, a figure is missing: tflite-int8" in page
    assert "No deployable was measured" in page_of(dataclasses.replace(measured, artifacts=()))


def test_plots_have_words_for_those_who_do_not_see_them(measured: Report) -> None:
    page = page_of(measured)
    assert "Top-1 against latency: tflite-int8 94.00 % at 0.5 ms; onnx-int8 93.90 %" in page


def test_plots_have_no_colours_of_their_own(measured: Report) -> None:
    """Light and dark are the page's choice: whatever is drawn takes its variables."""
    for svg in re.findall("<svg.*?</svg>", page_of(measured), re.DOTALL):
        assert not re.findall(r"#[0-9a-f]{6}\b", svg)
        assert "var(--ink)" in svg
        assert "var(--int8)" in svg


@pytest.mark.parametrize("seed", range(5))
def test_labels_cover_nothing(seed: int) -> None:
    random = np.random.default_rng(seed)
    points = [(60 + 40 * float(x), 100 + 20 * float(y)) for x, y in random.random((7, 2)) * 8]
    points[1] = points[0]
    bars = [(x - 3, y - 30, x + 3, y + 30) for x, y in points]
    sizes = [(60.0, 10.0)] * len(points)
    frame = (40.0, 40.0, 460.0, 320.0)
    places = place_labels(points, sizes, obstacles=bars, frame=frame)
    boxes = [(x, y, x + 60, y + 10) for x, y in places]
    for i, (left, bottom, right, top) in enumerate(boxes):
        assert frame[0] <= left < right <= frame[2] and frame[1] <= bottom < top <= frame[3]
        for other in (*bars, *boxes[:i]):
            apart = left >= other[2] or other[0] >= right or bottom >= other[3] or other[1] >= top
            assert apart, (i, other)


@pytest.mark.parametrize("package", ["jinja2", "matplotlib"])
def test_a_missing_package_names_its_extra(package: str, measured: Report, tmp_path: Path) -> None:
    source, out = write(tmp_path / "r.json", measured), tmp_path / "r.html"
    code = (
        f"import sys; sys.modules[{package!r}] = None; from edgekit.report import main; "
        "raise SystemExit(main(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(source), "--out", str(out)], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert f"{package} is not installed; install it with: pip install 'edgekit[report]'" in (
        done.stderr
    )
    assert not out.exists()


def test_the_committed_baseline_is_a_page() -> None:
    page = page_of(Report.load(ROOT / "exports" / "baseline.json"))
    assert "<h1>" in page
    assert page.count("<svg") == 2


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


def test_statistics_conditions_and_links_are_on_the_page(measured: Report) -> None:
    result = dataclasses.replace(
        measured.artifacts[0],
        manifest_sha256="feedface" * 8,
        metrics={
            **measured.artifacts[0].metrics,
            "top1_change": Measurement(-1.5, "points", 1000, -2.5, -0.5, "bootstrap 95 %"),
            "images_needed": Measurement(1583, "images", 1000),
        },
    )
    page = page_of(
        dataclasses.replace(
            measured,
            artifacts=(result,),
            conditions=Conditions(clock_mhz=(2400, 3000), stolen=0.5),
            settings={"bound": 0.5, "power": 0.8},
        )
    )
    for text in (
        "-1.50",
        "-2.50 – -0.50",
        "1,583",
        "feedfacefeed",
        "clock 2,400 to 3,000 MHz, stolen 0.5 %",
        "finds a loss of 0.5 points with power 0.8",
    ):
        assert text in page
    assert "mJ an image" not in page  # nobody read a counter
    assert "nothing could be read" in page_of(measured)
