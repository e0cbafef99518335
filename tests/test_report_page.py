"""The page in a headless Chromium: what it does, and that it asks for nothing and says no error."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import browser
import pytest
from conftest import ROOT

from edgekit.records.results import BudgetRecord, Candidate, Measurement, Report
from edgekit.report import report as page_of
from edgekit.reporting.page import Layer

pytestmark = pytest.mark.skipif(browser.find() is None, reason="no Chromium on this machine")

NAMES = "[...document.querySelectorAll('.verdicttable tbody th')].map(th => th.textContent)"
SIZES = "[...document.querySelectorAll('.verdicttable tbody tr')].map(tr => tr.cells[6].innerText)"
SIZE_BUTTON = "document.querySelectorAll('.verdicttable thead button')[6]"
SORTED = (
    "[...document.querySelectorAll('.verdicttable th')].map(th => th.getAttribute('aria-sort'))"
)
TIP = "document.getElementById('tip')"


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of the committed baseline, with layers."""
    layers = [Layer(f"layer {i}", 30 + i % 7, mode) for mode in ("own", "all") for i in range(20)]
    path = tmp_path_factory.mktemp("page") / "report.html"
    report = Report.load(ROOT / "exports" / "baseline.json")
    int8 = [dataclasses.replace(each, budget=_budget()) for each in report.artifacts]
    report = dataclasses.replace(report, artifacts=tuple(int8))
    path.write_text(page_of(report, layers=layers), encoding="utf-8")
    return path


def _budget() -> BudgetRecord:
    """Of which candidates lie near each other, as at the end of a search."""
    files = tuple(
        Candidate(floats, 1 + floats / 20, 96 + floats / 4, 95.8 + floats / 4, 0.4, 10_000 + floats)
        for floats in (0, 1, 2, 4, 8, 16, 12, 10, 9)
    )
    return BudgetRecord(
        "--min agreement=98", "agreement", 98.0, "set.npz", "", 300, "tflite", files, files[-2],
        {"float32": 2.0, "int8": 1.0, "taken": 1.4}, Measurement(98.7, "%", 300),
        float32=Candidate(0, 2.0, 100.0, 100.0, 0.0, 40_000),
    )  # fmt: skip


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[browser.Page]:
    with browser.start(tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture
def page(tab: browser.Page, file: Path) -> Iterator[browser.Page]:
    """The page, opened anew; at the end it has complained of nothing and asked for nothing."""
    tab.open(file)
    tab.run("localStorage.clear()")
    tab.open(file)
    yield tab
    assert tab.problems == []
    asked = [url for url in tab.requests if not url.startswith("data:image/png")]
    assert asked == [file.resolve().as_uri()]


def test_it_is_small(file: Path) -> None:
    assert file.stat().st_size <= 2_000_000


def test_a_click_sorts_and_another_turns_it_round(page: browser.Page) -> None:
    names = page.run(NAMES)
    page.run(f"{SIZE_BUTTON}.click()")
    sizes = page.run(SIZES)
    assert [float(size) for size in sizes] == sorted(map(float, sizes))
    assert sizes[0] == "0.55"
    assert page.run(SORTED)[6] == "ascending"
    assert page.run("document.getElementById('said').textContent").startswith("Sorted by size")
    page.run(f"{SIZE_BUTTON}.click()")
    assert page.run(SIZES) == sizes[::-1]
    assert page.run(SORTED)[6] == "descending"
    page.run("document.querySelector('.verdicttable thead button').click()")
    assert page.run(NAMES) == sorted(names)
    assert [each for each in page.run(SORTED) if each] == ["ascending"]


def test_the_keyboard_sorts(page: browser.Page) -> None:
    page.run(f"{SIZE_BUTTON}.focus()")
    page.press("Enter")
    assert page.run(SORTED)[6] == "ascending"


def test_figures_sort_by_value_and_what_is_missing_stays_last(page: browser.Page) -> None:
    """SQNR of the float model is infinite; KL is written as 1.7e-07."""

    names = page.run(
        "[...document.querySelectorAll('.figures thead button')].map(b => b.innerText.trim())"
    )

    def place(name: str) -> int:
        index, *_ = [i for i, text in enumerate(names) if text.split()[0].lower() == name]
        return int(index)

    def column(index: int) -> list[str]:
        found: list[str] = page.run(
            f"document.querySelectorAll('.figures thead button')[{index}].click();"
            "[...document.querySelectorAll('.figures tbody tr')]"
            f".map(tr => tr.cells[{index}].innerText)"
        )
        return found

    kl = [float(text) for text in column(place("kl"))]
    assert kl == sorted(kl) and len(set(kl)) > 3
    assert column(place("sqnr"))[-1] == "exact"
    size = place("size")
    page.run(f"document.querySelector('.figures tbody tr').cells[{size}].dataset.sort = ''")
    hidden = page.run(f"document.querySelector('.figures tbody tr').cells[{size}].innerText")
    assert column(size)[-1] == hidden
    assert column(size)[-1] == hidden


def test_tooltips_come_by_pointer_and_go_by_escape(page: browser.Page) -> None:
    assert page.run(f"{TIP}.hidden")
    x, y = page.run(
        "document.querySelector('#plots .mark').scrollIntoView({block: 'center'});"
        "(r => [r.x + r.width / 2, r.y + r.height / 2])"
        "(document.querySelector('#plots .mark .reach').getBoundingClientRect())"
    )
    page.wait("new Promise(done => requestAnimationFrame(() => done(true)))")
    page.point(x, y)
    assert page.wait(f"!{TIP}.hidden")
    text = page.run(f"{TIP}.textContent")
    assert "% right (" in text and " ms (" in text
    box = page.run(f"(r => [r.left, r.top, r.right, r.bottom])({TIP}.getBoundingClientRect())")
    assert box[0] >= 0 and box[1] >= 0 and box[2] <= 1280 and box[3] <= 900
    page.press("Escape")
    assert page.run(f"{TIP}.hidden")
    page.point(x + 1, y)
    page.point(1, 1)


def test_tooltips_come_by_keyboard(page: browser.Page) -> None:
    header = "document.querySelectorAll('.verdicttable thead button')[4]"
    page.run(f"{header}.focus()")
    assert "McNemar" in page.run(f"{TIP}.textContent")
    assert page.run(f"{header}.getAttribute('aria-describedby')") == "tip"
    page.press("Tab")
    assert page.run(f"{header}.getAttribute('aria-describedby')") is None
    assert "same prediction as the float model" in page.run(f"{TIP}.textContent")


def test_a_chart_is_one_stop_and_arrow_keys_go_through_it(page: browser.Page) -> None:
    stops = """[...document.querySelectorAll('svg.chart')].map(
        chart => chart.querySelectorAll('[tabindex="0"]').length)"""
    assert page.run(stops) == [1, 1, 1, 1, 1]
    page.run("document.querySelector('#plots .mark').focus()")
    first = page.run(f"{TIP}.textContent")
    page.press("ArrowRight")
    second = page.run(f"{TIP}.textContent")
    assert first != second
    assert page.run("document.activeElement.getAttribute('aria-label')") == second
    assert page.run(stops) == [1, 1, 1, 1, 1]


def test_light_and_dark(tab: browser.Page, page: browser.Page, file: Path) -> None:
    ground = "getComputedStyle(document.body).backgroundColor"
    assert page.run(ground) == "rgb(255, 255, 255)"
    page.run("document.getElementById('theme').click()")
    assert page.run(ground) == "rgb(13, 17, 23)"
    assert page.run("document.getElementById('theme').textContent") == "Switch to light"
    tab.open(file)
    assert page.run(ground) == "rgb(13, 17, 23)"  # remembered
    page.run("localStorage.clear()")
    tab.open(file, dark=True)
    assert page.run(ground) == "rgb(13, 17, 23)"
    page.run("document.getElementById('theme').click()")
    assert page.run(ground) == "rgb(255, 255, 255)"


@pytest.mark.parametrize("width", [320, 390, 768])
def test_nothing_overflows_a_narrow_screen(
    width: int, tab: browser.Page, page: browser.Page, file: Path
) -> None:
    tab.open(file, width=width)
    page.run("for (const each of document.querySelectorAll('details')) each.open = true")
    assert page.run("document.documentElement.scrollWidth") <= width


def test_labels_of_a_chart_cover_neither_each_other_nor_a_mark(page: browser.Page) -> None:
    boxes = """[...document.querySelectorAll('#plots svg.chart')].map(chart =>
        ['.label', '.mark > :last-child'].map(what => [...chart.querySelectorAll(what)].map(
            each => (r => [r.left, r.top, r.right, r.bottom])(each.getBoundingClientRect()))))"""
    artifacts = len(Report.load(ROOT / "exports" / "baseline.json").artifacts)
    for labels, marks in page.run(boxes):
        assert len(labels) == len(marks) == artifacts
        for i, one in enumerate(labels):
            for other in (*labels[:i], *marks):
                # A line's box has 3 pixels of air above and below its letters.
                apart = one[0] >= other[2] or other[0] >= one[2]
                apart = apart or one[1] + 3 >= other[3] - 3 or other[1] + 3 >= one[3] - 3
                assert apart, (one, other)


def test_print_is_light_and_unfolded(tab: browser.Page, page: browser.Page, file: Path) -> None:
    tab.open(file, dark=True)
    page.call(
        "Emulation.setEmulatedMedia",
        media="print",
        features=[{"name": "prefers-color-scheme", "value": "dark"}],
    )
    assert page.run("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.run("getComputedStyle(document.querySelector('nav')).display") == "none"
    page.run("dispatchEvent(new Event('beforeprint'))")
    folded = "document.querySelectorAll('details:not([open]):not(.raw)').length"
    assert page.run(folded) == 0
    page.run("dispatchEvent(new Event('afterprint'))")
    assert page.run(folded) > 0
    page.call("Emulation.setEmulatedMedia", media="")


def test_hostile_words_do_nothing(tab: browser.Page, tmp_path: Path) -> None:
    """Nor in a tooltip, which takes its words from an attribute."""
    hostile = """"><img src=x onerror="window.hit = 1"><script>window.hit = 2</script>"""
    report = Report.load(ROOT / "exports" / "baseline.json")
    first = dataclasses.replace(report.artifacts[2], name=hostile, precision=hostile)
    names = (hostile,) * 10
    report = dataclasses.replace(
        report,
        artifacts=(first,),
        command=hostile,
        data=dataclasses.replace(report.data, class_names=names),
    )
    path = tmp_path / "hostile.html"
    path.write_text(page_of(report, layers=[Layer(hostile, 3.0)]), encoding="utf-8")
    tab.open(path)
    tab.run("for (const each of document.querySelectorAll('details')) each.open = true")
    tab.run("document.querySelector('#plots .mark').focus()")
    assert hostile in tab.run(f"{TIP}.textContent")
    assert tab.run(f"{TIP}.children.length") == 0
    assert tab.run("document.querySelectorAll('img:not(.gallery img)').length") == 0
    assert tab.run("window.hit === undefined")
    assert tab.problems == []


@pytest.mark.skipif("EDGEKIT_AXE" not in os.environ, reason="EDGEKIT_AXE names no axe.min.js")
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [390, 1280])
def test_axe_finds_nothing(
    dark: bool, width: int, tab: browser.Page, page: browser.Page, file: Path
) -> None:
    tab.open(file, dark=dark, width=width)
    page.run("for (const each of document.querySelectorAll('details')) each.open = true")
    page.run(Path(os.environ["EDGEKIT_AXE"]).read_text(encoding="utf-8") + "; 0")
    found: Any = json.loads(page.run("axe.run().then(found => JSON.stringify(found.violations))"))
    assert [(each["id"], [node["html"] for node in each["nodes"]]) for each in found] == []
