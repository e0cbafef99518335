from __future__ import annotations

import base64
import dataclasses
import hashlib
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

from edgekit.base.errors import InvalidDataError
from edgekit.evaluation.changes import picture
from edgekit.records.results import (
    BudgetRecord,
    Candidate,
    ChangedImage,
    Changes,
    Conditions,
    Data,
    Measurement,
    Report,
    pack_bits,
)
from edgekit.records.stats import median_interval
from edgekit.report import report as page_of
from edgekit.reporting import charts
from edgekit.reporting.charts import place_labels
from edgekit.reporting.page import Layer, read_layers

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
        self.tags: list[str] = []
        self.names: set[str] = set()
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attributes:
            self.names.add(name)
            if name == "id":
                self.ids.append(value or "")
            if name in ("href", "src", "xlink:href"):
                self.links.append(value or "")


def changed(report: Report, changes: Changes) -> Report:
    artifacts = (dataclasses.replace(report.artifacts[0], changes=changes), *report.artifacts[1:])
    return dataclasses.replace(report, artifacts=artifacts)


def test_the_page_is_self_contained(measured: Report) -> None:
    picture_of = picture(np.zeros((2, 2, 1), np.uint8))
    image = ChangedImage(3, 0, 0, 0.5, 1, 0.5, picture_of)
    page = page_of(changed(measured, Changes(((0, 1, 1),), (image,))), layers=[Layer("a", 1.0)])
    parsed = Parsed(page)
    assert len(page) < 2_000_000
    assert not {"link", "iframe", "object", "base", "form"} & set(parsed.tags)
    assert (parsed.tags.count("script"), parsed.tags.count("style")) == (1, 1)
    assert all(link.startswith(("#", "data:image/png;base64,")) for link in parsed.links)
    assert len(set(parsed.ids)) == len(parsed.ids)
    assert {link[1:] for link in parsed.links if link.startswith("#")} <= set(parsed.ids)
    assert not re.search("https?://|url\\(|@import", page)


def test_the_policy_allows_the_pages_own_style_and_script_only(measured: Report) -> None:
    page = page_of(measured)
    (policy,) = re.findall('http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    assert policy.startswith("default-src 'none'; img-src data:; ")
    for tag in ("style", "script"):
        (text,) = re.findall(f"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    # Neither would run under it.
    assert not {name for name in Parsed(page).names if name == "style" or name.startswith("on")}


def test_verdict_figures_and_command_are_there(measured: Report) -> None:
    page = page_of(measured)
    assert "All 2 deployables predict as well as the float model" in page
    assert page.count('<svg class="chart"') == 2
    for text in ("tflite-int8", "94.00", "exact", "avx2", measured.command):
        assert text in page


def test_a_worse_deployable_is_in_the_headline(measured: Report) -> None:
    worse = dataclasses.replace(
        measured.artifacts[1],
        correct=artifact("x", 400).correct,
        metrics={
            **artifact("x", 400).metrics,
            **{k: v for k, v in measured.artifacts[1].metrics.items() if k != "top1"},
            "mcnemar_p": Measurement(0.001, "p", 1000),
        },
    )
    page = page_of(dataclasses.replace(measured, artifacts=(measured.artifacts[0], worse)))
    assert "1 of 2 deployables is less accurate than the float model: onnx-int8" in page
    assert 'class="worse">less accurate' in page
    first = page.index('<li class="worse"')
    assert first < page.index('<li class="', first + 1)
    assert page.index('<ul class="verdicts">') + 30 > first
    assert "is less accurate than the float model, beyond noise (60.00 % right" in page
    assert "−34.00" in page


HOSTILE = "<script>alert('x')</script> \"'> </style> ]]> {{ 7*7 }} $\\frac{$ &amp;"


def test_hostile_words_are_escaped(measured: Report) -> None:
    """Whatever a report says, in every place, is text."""
    result = dataclasses.replace(
        measured.artifacts[0],
        name=HOSTILE,
        path=HOSTILE,
        format=HOSTILE,
        precision=HOSTILE,
        sha256=HOSTILE,
        runtime=dataclasses.replace(
            measured.artifacts[0].runtime, name=HOSTILE, options={HOSTILE: "1"}, notes=(HOSTILE,)
        ),
        changes=Changes(((0, 1, 1),), (ChangedImage(0, 1, 0, 1.0, 1, 1.0),)),
    )
    report = dataclasses.replace(
        measured,
        model_id=f"{HOSTILE}-model",
        created=HOSTILE,
        command=HOSTILE,
        warnings=(HOSTILE,),
        settings={HOSTILE: HOSTILE},
        data=dataclasses.replace(measured.data, name=HOSTILE, class_names=(HOSTILE, HOSTILE)),
        environment=dataclasses.replace(measured.environment, cpu=HOSTILE, versions={"a": HOSTILE}),
        artifacts=(result,),
    )
    layer = Layer(HOSTILE, 1.0, HOSTILE)
    page = page_of(report, layers=[layer, dataclasses.replace(layer, name="b")])
    plain = Parsed(page_of(measured, layers=[Layer("a", 1.0)]))
    found = Parsed(page)
    assert (page.count("<script"), page.count("</script"), page.count("</style")) == (1, 1, 1)
    assert "&lt;script&gt;" in page and "{{ 7*7 }}" in page
    assert found.names <= plain.names | {"alt", "open"}
    assert set(found.tags) <= set(plain.tags) | {"details", "summary", "h3", "caption", "strong"}


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


def test_missing_and_infinite_figures_are_shown_as_such(measured: Report) -> None:
    bare = dataclasses.replace(measured.artifacts[0], metrics={}, correct="")
    endless = dataclasses.replace(
        measured.artifacts[1],
        metrics={**measured.artifacts[1].metrics, "latency_p50": Measurement(math.inf, "ms", 1)},
    )
    page = page_of(dataclasses.replace(measured, artifacts=(bare, endless)))
    assert "No proof for 1 of 2 deployables: tflite-int8" in page
    assert "not measured" in page
    assert page.count('<svg class="chart"') == 1  # nothing has a finite latency
    assert "was not compared with the float model" in page
    assert "Not drawn, a metric is missing: tflite-int8" in page
    assert "No deployable was measured" in page_of(dataclasses.replace(measured, artifacts=()))


def test_plots_have_words_for_those_who_do_not_see_them(measured: Report) -> None:
    page = page_of(measured)
    assert "Top-1 against latency: tflite-int8 94.00 % at 0.5 ms; onnx-int8 93.90 %" in page


def searched(metric: str = "agreement", **changed: object) -> BudgetRecord:
    """A search of four files, of which the third is taken."""
    files = tuple(
        Candidate(floats, ms, value, value - 0.1, 0.2, size, decided=floats == 2)
        for floats, ms, value, size in (
            (0, 1.0, 96.0, 100_000),
            (4, 1.6, 99.0, 190_000),
            (2, 1.4, 98.5, 150_000),
            (1, 1.5, 98.1, 160_000),
        )
    )
    record = BudgetRecord(
        asked=f"--max-drop {metric}=2", metric=metric, least=98.0, data="set.npz", sha256="",
        searched=300, target="tflite", candidates=files, taken=files[2],
        latency_ms={"float32": 2.0, "int8": 1.0, "taken": 1.4},
        proof=Measurement(98.67, "%", 300, 96.6, 99.5, "wilson 95 %"),
        float32=Candidate(0, 2.0, 100.0, 100.0, 0.0, 400_000),
    )  # fmt: skip
    return dataclasses.replace(record, **changed)


def with_budgets(report: Report, *records: BudgetRecord | None) -> Report:
    artifacts = tuple(
        dataclasses.replace(result, budget=record)
        for result, record in zip(report.artifacts, records, strict=True)
    )
    return dataclasses.replace(report, artifacts=artifacts)


def test_what_a_budget_tried_is_drawn_once_for_all_files_of_it(measured: Report) -> None:
    record = searched()
    other = dataclasses.replace(record, proof=Measurement(99.0, "%", 300, 97.1, 99.7))
    page = page_of(with_budgets(measured, record, other))
    section = re.search('<section id="budget".*?</section>', page, re.DOTALL)
    assert section is not None
    found = section[0]
    assert found.count('<svg class="chart"') == 2
    assert (
        "tflite-int8 has 98.67 % (95 % interval 96.60 to 99.50) on 300 samples; onnx-int8" in found
    )
    assert "the shortest run was looked for" in found
    by_time, by_size = re.findall('<svg class="chart".*?</svg>', found, re.DOTALL)
    said = "file 3, chosen: 98.50 %, 98.20 % sure, 1.4 ms, tensors in float: 2; no other beats"
    assert said in by_time
    assert "150.0 kB" in by_size and ">budget<" in by_time
    # beaten by the third, which is faster, smaller and more exact
    assert "file 4: 98.10 %, 97.80 % sure, 1.5 ms, tensors in float: 1&quot;" not in by_time
    assert re.search(r'file 4: [^"]*"', by_time)[0].endswith('tensors in float: 1"')
    assert by_time.count('class="mark other"') == 2  # plain int8 and the fourth miss it
    rows = re.findall("<tr><th scope=.row.>(.*?)</th>(.*?)</tr>", found)
    assert [name for name, _ in rows] == [
        "plain int8", "file 2", "file 3, chosen", "file 4", "float32"
    ]  # fmt: skip
    assert [cells.count(">yes<") for _, cells in rows] == [0, 1, 1, 0, 1]
    assert '<li><a href="#budget">' in page


def test_only_a_budget_has_its_section(measured: Report) -> None:
    assert 'id="budget"' not in page_of(measured)
    assert 'id="budget"' in page_of(with_budgets(measured, searched(), None))


def test_searches_of_their_own_are_drawn_each(measured: Report) -> None:
    page = page_of(with_budgets(measured, searched(), searched(least=98.2, minimized="size")))
    assert page.count('<svg class="chart"') == 6
    assert len(set(Parsed(page).ids)) == len(Parsed(page).ids)
    assert "the smallest file was looked for" in page


def test_a_budget_of_an_earlier_version_has_times_alone(measured: Report) -> None:
    record = searched(float32=None)
    files = tuple(dataclasses.replace(each, bytes=0) for each in record.candidates)
    record = dataclasses.replace(record, candidates=files, taken=files[2])
    assert page_of(with_budgets(measured, record, None)).count('<svg class="chart"') == 3


def test_exact_outputs_leave_room_for_the_others(measured: Report) -> None:
    exact = Candidate(0, 2.0, float("inf"), float("inf"), 0.0, 400_000)
    record = searched("sqnr", float32=exact, proof=Measurement(98.5, "dB", 300))
    page = page_of(with_budgets(measured, record, None))
    assert ">float32: exact<" in page


def test_plots_have_no_colours_of_their_own(measured: Report) -> None:
    """Light and dark are the page's choice."""
    charts_found = re.findall('<svg class="chart".*?</svg>', page_of(measured), re.DOTALL)
    assert len(charts_found) == 2
    for svg in charts_found:
        assert not re.search(r"#[0-9a-f]{3,6}\b|(fill|stroke)=", svg)
        assert svg.count('class="mark int8"') == 2


def test_colours_can_be_read_light_and_dark() -> None:
    """Contrast of text (4.5) and of controls and marks (3) by WCAG 2.2, on all backgrounds."""
    style = (ROOT / "edgekit" / "reporting" / "templates" / "report.css").read_text()
    pairs = dict(re.findall(r"--([\w-]+): (light-dark\([^)]*\))", style))

    def luminance(colour: str) -> float:
        digits = colour.strip("# ")
        digits = "".join(2 * d for d in digits) if len(digits) == 3 else digits
        parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return sum(w * p for w, p in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    for theme in (0, 1):
        colours = {name: luminance(pair[11:-1].split(",")[theme]) for name, pair in pairs.items()}
        texts = ("ink", "soft", "link", "good", "bad", "note", "float32", "float16", "int8")
        for ground in ("paper", "panel"):
            for name, least in (*((text, 4.5) for text in texts), ("edge", 3.0)):
                light, dark = sorted((colours[name], colours[ground]), reverse=True)
                assert (light + 0.05) / (dark + 0.05) >= least, (theme, name, ground)


def test_each_deployable_has_its_sentence(measured: Report) -> None:
    def with_ratio(ratio: Measurement) -> Report:
        base = dataclasses.replace(
            measured.artifacts[0], name="m-onnx-float32", precision="float32"
        )
        size = Measurement(4e6, "bytes", 1)
        base = dataclasses.replace(base, metrics={**base.metrics, "size": size})
        metrics = {**measured.artifacts[1].metrics, "latency_ratio": ratio}
        result = dataclasses.replace(measured.artifacts[1], metrics=metrics)
        return dataclasses.replace(measured, artifacts=(base, result))

    faster = page_of(with_ratio(Measurement(0.6, "x", 9, 0.55, 0.7)))
    words = "is as accurate as the float model within 0.5 points (93.90 % right, a change of"
    assert words in faster
    assert "a change of −0.10 points, 95 % range −0.38 to +0.18), takes 0.5 ms" in faster
    assert "takes 0.5 ms an image, 40 % less (faster) than float32 ONNX, and is 1.00 MB" in faster
    assert "75 % smaller than float32 ONNX." in faster
    slower = page_of(with_ratio(Measurement(1.34, "x", 9, 1.3, 1.4)))
    assert "34 % more (slower) than float32 ONNX" in slower
    same = page_of(with_ratio(Measurement(0.98, "x", 9, 0.9, 1.1)))
    assert "as fast as float32 ONNX within noise, and is" in same
    alike = {**measured.artifacts[0].metrics, "agreement": Measurement(100, "%", 1000)}
    page = page_of(
        dataclasses.replace(
            measured, artifacts=(dataclasses.replace(measured.artifacts[0], metrics=alike),)
        )
    )
    assert "predicts what the float model predicts on all 1,000 images" in page


def test_a_size_is_held_against_float32_and_no_optimizer(measured: Report) -> None:
    """A Keras file of 10 MB says nothing of the size: it may hold the state of an optimizer."""
    large = {"size": Measurement(1e7, "bytes", 1)}
    keras = dataclasses.replace(
        measured.reference, format="keras", precision="float32", metrics=large
    )
    page = page_of(dataclasses.replace(measured, reference=keras))
    assert "is 1.00 MB." in page and "smaller" not in page
    counted = {**large, "parameters": Measurement(500_000, "parameters", 1)}
    keras = dataclasses.replace(keras, metrics=counted)
    page = page_of(dataclasses.replace(measured, reference=keras))
    assert "is 1.00 MB, 50 % smaller than 500,000 parameters in float32." in page


def mark(x: float, y: float) -> charts.Mark:
    return charts.Mark("n", "w", x, y, (x, x), (y, y), "int8", "onnx")


def test_the_front_is_what_no_other_beats() -> None:
    marks = [mark(2, 90), mark(1, 80), mark(3, 85), mark(2, 90), mark(4, 95), mark(1, 70)]
    assert charts.front(marks) == [1, 0, 3, 4]
    assert charts.front([mark(1, 1)]) == [0]


def test_latency_has_an_interval_where_samples_are_in_rounds(measured: Report) -> None:
    times = tuple(float(x) for x in np.random.default_rng(0).normal(0.5, 0.02, 200))
    (first, second) = measured.artifacts
    first = dataclasses.replace(first, latency_ms=times, latency_rounds=10)
    page = page_of(dataclasses.replace(measured, artifacts=(first, second)))
    (interval,) = re.findall(
        r'aria-label="tflite-int8: 94.00 % right \(93.00 to 95.00\), 0.500 ms \(([^)]*)\)', page
    )
    low, high = map(float, interval.split(" to "))
    assert 0.49 < low < 0.5 < high < 0.51
    assert "onnx-int8: 93.90 % right (92.90 to 94.90), 0.500 ms&quot;" not in page


def test_the_interval_of_a_median_covers_it() -> None:
    """About 95 of 100 intervals hold the true median, also of drifting rounds: seeded."""
    random = np.random.default_rng(0)
    hits = 0
    for _ in range(200):
        rounds = random.normal(1, 0.05, (20, 1))
        found = median_interval(rounds + random.normal(0, 0.02, (20, 20)))
        assert found is not None
        hits += found[0] <= 1 <= found[1]
    assert 0.9 <= hits / 200 <= 0.99


@pytest.mark.parametrize(
    ("low", "high"), [(92.8, 94.1), (0.0, 100.0), (59.9, 60.1), (1e-6, 2e-6), (-3.0, 1e5)]
)
def test_even_ticks_are_few_and_told_apart(low: float, high: float) -> None:
    ticks = charts.even_ticks(low, high)
    assert 3 <= len(ticks) <= 11
    assert len({text for _, text in ticks}) == len(ticks)
    assert all(low <= value <= high for value, _ in ticks)


def test_changed_images_are_shown_with_what_became_of_them(measured: Report) -> None:
    seen = picture(np.full((4, 4, 3), 7, np.uint8))
    images = (
        ChangedImage(11, 0, 0, 0.61, 1, 0.52, seen),
        ChangedImage(12, 1, 0, 0.6, 1, 0.5, seen),
        ChangedImage(13, 2, 0, 0.6, 1, 0.5),
    )
    report = changed(measured, Changes(((0, 1, 17), (1, 0, 2)), images))
    report = dataclasses.replace(
        report, data=dataclasses.replace(report.data, class_names=("cat",))
    )
    page = page_of(report)
    assert "tflite-int8: 19 of 1,000 images (1.90 %)" in page
    assert page.count(f"data:image/png;base64,{seen}") == 2
    for words in ("was right", "is right now", "wrong both times"):
        assert f">{words}</span>" in page
    assert "cat 61\u00a0%<br>→ class 1 52\u00a0%" in page
    assert '<td class="heat4">17</td>' in page and '<td class="heat1">2</td>' in page
    assert "Not recorded: onnx-int8" in page
    assert 'id="changes"' not in page_of(measured)
    assert "None of 1,000 images: tflite-int8" in page_of(changed(measured, Changes(())))


def test_many_classes_and_pictures_stay_below_two_megabytes(measured: Report) -> None:
    random = np.random.default_rng(0)
    noise = picture(random.integers(0, 256, (64, 64, 3), dtype=np.uint8))
    images = tuple(ChangedImage(i, 0, 0, 0.5, 1, 0.5, noise) for i in range(300))
    changes = Changes(tuple((i, i + 1, 1) for i in range(300)), images)
    times = tuple(float(x) for x in random.random(10_000))
    results = tuple(
        dataclasses.replace(result, changes=changes, latency_ms=times, latency_rounds=10)
        for result in measured.artifacts
    )
    page = page_of(dataclasses.replace(measured, artifacts=results))
    assert len(page.encode()) < 2_000_000
    assert "more are in the report&#39;s JSON" in page or "more are in the report's JSON" in page
    assert "276 rarer ones" in page
    assert "without pictures, correct, latency_ms" in page


def test_layers_are_drawn_where_there_are_any(measured: Report) -> None:
    layers = [Layer("conv1", 40.0, "own"), Layer("conv2", 21.5, "own"), Layer("conv1", 30.0, "all")]
    page = page_of(measured, layers=[*layers, Layer("conv2", math.inf, "all")])
    assert page.count('<svg class="chart"') == 3
    assert "Lowest: conv2 (own) 21.5 dB; conv1 (all) 30.0 dB; conv1 (own) 40.0 dB" in page
    assert 'aria-label="conv2: exact (all)"' in page
    assert 'id="layers-title"' not in page_of(measured)
    assert "exact" in page_of(measured, layers=[Layer("only", math.inf)])


def test_layers_are_read(tmp_path: Path) -> None:
    path = tmp_path / "layers.csv"
    path.write_text('\ufefflayer,kind,sqnr,mode\n"a, b",conv,41.5,own\nc,add,inf,own\na,x,3,all\n')
    assert read_layers(path) == (
        Layer("a, b", 41.5, "own"),
        Layer("c", math.inf, "own"),
        Layer("a", 3.0, "all"),
    )
    path.write_text("layer,sqnr_db\na,1\n")
    assert read_layers(path) == (Layer("a", 1.0),)
    header = "place,layer,tensor,accumulated_sqnr_db,accumulated_cosine,isolated_sqnr_db\n"
    path.write_text(header + "0,input,x,inf,1,inf\n1,stem,y,44.9,1,45\n2,add,z,30,1,\n")
    assert read_layers(path) == (
        Layer("input", math.inf, "accumulated"),
        Layer("input", math.inf, "isolated"),
        Layer("stem", 44.9, "accumulated"),
        Layer("stem", 45.0, "isolated"),
        Layer("add", 30.0, "accumulated"),
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "columns layer and sqnr"),
        ("layer,value\na,1\n", "got layer, value"),
        ("layer,sqnr,sqnr_db\na,1,1\n", "columns layer and sqnr"),
        ("layer,mode,own_sqnr\na,b,1\n", "columns layer and sqnr"),
        ("layer,own_sqnr\na,high\n", "expected own_sqnr in dB, a number or inf, got 'high'"),
        ("layer,own_sqnr\na,\n", "got 0"),
        ("layer,sqnr\na,\n", "a number or inf, got ''"),
        ("layer,layer,sqnr\na,a,1\n", "each once"),
        ("layer,sqnr\n", "got 0"),
        ("layer,sqnr\na\n", "row 2: expected 2 values, got 1"),
        ("layer,sqnr\na,high\n", "a number or inf, got 'high'"),
        ("layer,sqnr\na,nan\n", "a number or inf"),
        ("layer,sqnr\na,-inf\n", "a number or inf"),
        ("layer,sqnr\n,3\n", "no name"),
        ("layer,sqnr\na,3\na,3\n", "row 3: the layer 'a' is there twice"),
        ("layer,sqnr\n" + "".join(f"{i},3\n" for i in range(2001)), "1 to 2,000 layers"),
    ],
)
def test_broken_layers_are_refused(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "layers.csv"
    path.write_text(text)
    with pytest.raises(InvalidDataError, match=message):
        read_layers(path)


def test_layers_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"layer,sqnr\n\xff,1\n")
    for path, message in (
        (tmp_path / "a.csv", "no CSV text"),
        (tmp_path, "is a folder"),
        (tmp_path / "none.csv", "not found"),
    ):
        with pytest.raises(InvalidDataError, match=message):
            read_layers(path)


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


def test_a_missing_package_names_its_extra(measured: Report, tmp_path: Path) -> None:
    package = "jinja2"
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
    baseline = Report.load(ROOT / "exports" / "baseline.json")
    page = page_of(baseline)
    assert "<h1>" in page
    assert page.count('<svg class="chart"') == 2
    pictured = [len(each.changes.images) for each in baseline.artifacts if each.changes]
    assert page.count("<img ") == sum(pictured) > 24


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
    layers = tmp_path / "layers.csv"
    layers.write_text("layer,sqnr\nconv,30\n")
    assert edgekit("report", source, "--out", out, "--force", "--layers", layers).status == 0
    assert b'id="layer-by-layer"' in out.read_bytes()
    layers.write_text("layer\nconv\n")
    refused = edgekit("report", source, "--out", tmp_path / "x.html", "--layers", layers)
    assert "columns layer and sqnr" in refused.error
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
    assert "mJ per sample" not in page  # nobody read a counter
    assert "nothing could be read" in page_of(measured)
