"""The page and the tables of detectors and segmentation networks."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import browser
import numpy as np
import pytest
import reports
from reports import COUNT, measured, of_detector, of_segmentation, png_text, report, result
from test_report import Parsed

from edgekit.base import cli
from edgekit.records.predictions import (
    Box,
    BoxChanges,
    BoxPicture,
    Confusion,
    MaskChanges,
    MaskPicture,
    pack_classes,
)
from edgekit.records.results import Data, Measurement, Report
from edgekit.report import report as page_of
from edgekit.reporting import tables
from edgekit.reporting.regions import palette

HOSTILE = """"><img src=x onerror="window.hit = 1"><script>window.hit = 2</script>&amp;"""
needs_browser = pytest.mark.skipif(browser.find() is None, reason="no Chromium on this machine")


def words(page: str) -> str:
    """The text of a page without tags, blanks joined."""
    text = re.sub("<(style|script).*?</\\1>|<[^>]*>", " ", page, flags=re.DOTALL)
    return " ".join(text.split())


def test_a_detector_is_judged_by_map() -> None:
    page = page_of(reports.detector())
    text = words(page)
    assert "finds the boxes of 500 images with a mAP of 62.00 %" in text
    assert "1 of 3 deployables is less accurate than the float model: onnx-int8" in text
    assert "is less accurate than the float model, beyond noise (mAP 58.80 %, a change of" in text
    assert "Fewest equal boxes: 97.30 % at IoU 0.5 (tflite-int8)" in text
    assert "mAP change ↕".replace(" ↕", "") in text and "62.00 % mAP" in text
    assert "bootstrap over the images" in page and "McNemar" not in text
    assert 'aria-label="tflite-int8: 61.90 % mAP' in page


def test_a_segmentation_network_is_judged_by_miou() -> None:
    text = words(page_of(reports.segmentation()))
    assert "finds the classes of the pixels of 500 images with a mIoU of 88.00 %" in text
    assert "(mIoU 87.90 %, a change of −0.10 points, 95 % range −0.30 to +0.10)" in text
    assert "Fewest equal pixels: 98.70 % (tflite-int8)" in text


def test_nothing_is_drawn_of_a_classifier() -> None:
    page = page_of(report(result("m", {}), result("a", {"top1": measured(90)})))
    for ident in ("classes", "curves", "boxes", "masks", "confusion"):
        assert f'id="{ident}"' not in page and f'href="#{ident}"' not in page


def test_without_labels_matched_boxes_are_there() -> None:
    metrics = {name: measured(24, "dB") for name in ("sqnr", "sqnr_centred")}
    one = result("a", {**metrics, "matched50": measured(93.25), "score_error": measured(0.1, "")})
    text = words(page_of(report(result("m", metrics), one)))
    assert "no labels are known" in text and "93.25" in text
    assert "Farthest off" in text and "Fewest equal boxes: 93.25 % at IoU 0.5 (a)" in text


def test_both_pages_are_self_contained() -> None:
    for made in (reports.detector(), reports.segmentation()):
        page = page_of(made)
        parsed = Parsed(page)
        assert len(page) < 2_000_000
        assert all(link.startswith(("#", "data:image/png;base64,")) for link in parsed.links)
        assert len(set(parsed.ids)) == len(parsed.ids)
        assert {link[1:] for link in parsed.links if link.startswith("#")} <= set(parsed.ids)
        assert not {name for name in parsed.names if name == "style" or name.startswith("on")}


def test_each_class_with_its_change() -> None:
    page = page_of(reports.detector())
    assert '<th scope="row">bag &amp; &lt;b&gt;</th><td>190</td>' in page
    assert '<td data-sort="79.8">79.80<br><small>−3.20</small></td>' in page
    # A class that only one of them has
    one = result("a", of_detector(60, -2, **{"map50:x": measured(5)}))
    assert '<th scope="row">x</th><td data-sort="">–</td><td data-sort="5">5.00</td>' in page_of(
        report(result("m", of_detector(62)), one)
    )


def test_curves_are_those_of_classes_that_lie_apart() -> None:
    page = page_of(reports.detector())
    assert page.count('<svg class="chart"') == 2 + 4
    assert "tflite-float32 has precision 0.99 at recall 0.5 and 0.63 at 0.9" in page
    assert '<th scope="row">red car</th><td>onnx-int8</td><td>230</td>' in page
    # Level parts are two points
    assert len(page) < 250_000
    many = tuple(
        dataclasses.replace(curve, number=i)
        for i in range(40)
        for curve in reports.curves(6 if i != 31 else 2)[:1]
    )
    plain = tuple(dataclasses.replace(reports.curves(6)[0], number=i) for i in range(40))
    one = result("a", of_detector(60, -2), curves=many)
    page = page_of(report(result("m", of_detector(62), curves=plain), one))
    assert page.count('<svg class="chart"') == 2 + 12
    assert "class 31, 150 boxes" in page and "28 more are in the table" in page


def test_boxes_stand_side_by_side_with_what_became_of_them() -> None:
    page = page_of(reports.detector())
    (section,) = re.findall('<section id="boxes".*?</section>', page, re.DOTALL)
    assert "tflite-int8: 37 of 500 images" in section
    assert "29 boxes lost" in section and "21 new" in section
    assert "None of 500 images: onnx-int8" in section
    said = re.findall('<svg class="boxes"[^>]*aria-label="([^"]*)"', section)
    assert len(said) == 6 * 3
    assert said[0] == (
        "the float model: 3 boxes: t-shirt/top 95 %, bag &amp; &lt;b&gt; 85 %, red car 75 % (lost)"
    )
    assert said[1].endswith("ankle boot 31 % (new)")
    assert said[2] == "right: 3 boxes: t-shirt/top, bag &amp; &lt;b&gt;, red car"
    # a picture is there once, and drawn again
    assert section.count("data:image/png") == 5 and section.count("<use ") == 10
    assert section.count('class="blank"') == 3


def test_boxes_without_labels_and_without_any() -> None:
    changes = BoxChanges(1, 0, 1, 0.3, (BoxPicture(0, 10, 20, (), (Box(0, 0, 1, 1, 9, 0.5, True),),
                                                   new=1),))  # fmt: skip
    one = result("a", of_detector(60, -2), box_changes=changes)
    page = page_of(report(result("m", of_detector(62)), one))
    assert 'aria-label="the float model: no box"' in page
    assert 'aria-label="this deployable: 1 box: class 9 50 % (new)"' in page
    assert 'aria-label="right' not in page


def test_classes_of_pixels_stand_side_by_side() -> None:
    page = page_of(reports.segmentation())
    (section,) = re.findall('<section id="masks".*?</section>', page, re.DOTALL)
    assert "tflite-int8: 412 of 500 images" in section
    assert section.count("<img ") == 6 * 5 - 1  # one picture cannot be shown
    assert "90.0 % of pixels agree" in section
    assert re.search('alt="the float model: background \\d+ %, bag &amp; &lt;b&gt; \\d+ %', section)
    assert re.search('alt="right: background [^"]*no class 2 %', section)
    assert re.search('fill="#[0-9a-f]{6}"/></svg> t-shirt/top', section)
    assert 'fill="#e6e6e6"/></svg> no class' in section


def test_colours_of_classes_are_seen_on_black_and_told_apart() -> None:
    colours = palette().astype(int)
    assert colours[0].max() == 0 and len(np.unique(colours, axis=0)) == 256
    luminance = colours[1:] @ np.array([0.2126, 0.7152, 0.0722])
    assert luminance.min() > 30
    for number in range(1, 30):  # the neighbours of a class are the likeliest to be taken for it
        assert np.abs(colours[number] - colours[number + 1]).max() > 60


def test_labels_of_boxes_cover_each_other_only_where_there_is_no_room() -> None:
    boxes = tuple(Box(0.1 * i, 0.5, 0.1 * i + 0.09, 0.7, 0, 0.9) for i in range(4))
    changes = BoxChanges(1, 0, 0, 0.3, (BoxPicture(0, 100, 100, boxes, boxes),))
    page = page_of(report(result("m", {}), result("a", of_detector(60, -2), box_changes=changes)))
    found = re.findall('<text class="kept" x="([^"]*)" y="([^"]*)">', page)[:4]
    assert len({y for _, y in found}) == 4


def test_confused_pixels_are_shares_of_the_right_class() -> None:
    before = Confusion(((90, 10, 0), (0, 50, 50), (0, 0, 0)))
    now = Confusion(((80, 20, 0), (0, 50, 50), (0, 0, 0)))
    float_model = result("m", of_segmentation(88), confusion=before)
    one = result("a", of_segmentation(85, -3), confusion=now)
    data = Data("d", "00", COUNT, ("a", "b"))
    page = page_of(report(float_model, one, data=data))
    (section,) = re.findall('<section id="confusion".*?</section>', page, re.DOTALL)
    assert "<td>80.0<br><small>−10.00</small></td>" in section
    assert '<td class="heat2">20.0<br><small>+10.00</small></td>' in section
    assert '<td class="heat4">50.0</td>' in section
    assert '<th scope="row">class 2</th><td>–</td><td>–</td><td>–</td>' in section
    rng = np.random.default_rng(0).integers(0, 9, (40, 40)) + 1000 * np.eye(40, dtype=int)
    many = Confusion(tuple(tuple(map(int, row)) for row in rng))
    page = page_of(report(float_model, dataclasses.replace(one, confusion=many), data=data))
    (section,) = re.findall('<section id="confusion".*?</section>', page, re.DOTALL)
    assert section.count('<th scope="row">') == 24 and "rarer ones" in section


def test_large_pictures_stay_below_two_megabytes() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (160, 160, 3), dtype=np.uint8)
    picture, places = png_text(noise), np.kron(noise[:40, :40, 0] % 20, np.ones((4, 4), np.uint8))
    boxes = tuple(Box(0.1, 0.1, 0.4, 0.4, 1, 0.5) for _ in range(100))
    of_boxes = BoxChanges(
        50, 1, 1, 0.3,
        tuple(BoxPicture(i, 9, 9, boxes, boxes, boxes, picture=picture) for i in range(50)),
    )  # fmt: skip
    packed = pack_classes(places)
    of_masks = MaskChanges(
        50,
        tuple(MaskPicture(i, 160, 160, packed, packed, packed, 9.0, picture) for i in range(50)),
    )
    for changes in ({"box_changes": of_boxes}, {"mask_changes": of_masks}):
        several = [result(name, of_detector(60, -2), **changes) for name in "abc"]
        page = page_of(report(result("m", of_detector(62)), *several))
        assert len(page.encode()) < 2_000_000
        assert "more are in the report's JSON" in page


def test_the_raw_data_are_without_pictures() -> None:
    for made, name in ((reports.detector(), "box"), (reports.segmentation(), "mask")):
        page = page_of(made)
        (raw,) = re.findall("<pre tabindex.*?</pre>", page, re.DOTALL)
        assert f"{name}_changes" in raw and "iVBOR" not in raw and "pictures&#34;" not in raw


def test_a_report_of_many_classes_is_a_page(tmp_path: Path) -> None:
    """As of COCO: 80 classes and four deployables."""
    names = tuple(f"class {i}" for i in range(80))
    curve = reports.curves(6)[0]
    curves = tuple(dataclasses.replace(curve, number=i) for i in range(80))
    of_classes = {f"map50:{name}": measured(50.0) for name in names}
    several = [result(f"a{i}", of_detector(60, -2, **of_classes), curves=curves) for i in range(4)]
    float_model = result("m", of_detector(62, **of_classes), curves=curves)
    page = page_of(report(float_model, *several, data=Data("d", "00", COUNT, names)))
    assert len(page.encode()) < 2_000_000
    assert "without pictures, curves</summary>" in page


def test_metrics_of_the_user_are_columns_and_lines(capsys: pytest.CaptureFixture[str]) -> None:
    own = {"metric:recall <b>": Measurement(0.93512, "", COUNT)}
    one = result("a", of_detector(60, -2, **own))
    made = report(result("m", of_detector(62)), one)
    page = page_of(made)
    assert "recall &lt;b&gt;" in page and "0.9351" in page
    tables.show(made)
    assert "metric:recall <b>: a 0.9351" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["detector", "segmentation"])
def test_the_table_of_the_screen_fits_80_columns(
    kind: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = cli.Screen(width=80, highlight=False, force_terminal=True, color_system=None)
    monkeypatch.setattr(cli, "console", screen)
    made: Report = getattr(reports, kind)()
    tables.show(made)
    out = capsys.readouterr().out
    rows = [line for line in out.splitlines() if not line.startswith("worse: ")]
    assert max(map(len, rows)) <= 80 and "…" not in out
    unit, lost = ("mAP", "map50") if kind == "detector" else ("mIoU", "iou")
    assert f"{unit} %" in out and "change" in out and "same" in out and "+0.00" not in out
    assert f"worse: m-onnx-int8: {unit} changed by -" in out
    assert f"most lost {lost}:" in out


@pytest.mark.parametrize("kind", ["detector", "segmentation"])
def test_a_narrow_table_does_without_columns_and_not_without_names(
    kind: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = cli.Screen(width=80, highlight=False, force_terminal=True, color_system=None)
    monkeypatch.setattr(cli, "console", screen)
    made: Report = getattr(reports, kind)()
    slow = {"latency_p50": Measurement(1016.119, "ms", 200), "size": Measurement(77000, "bytes", 1)}
    metrics = {**made.reference.metrics, **slow}
    made = dataclasses.replace(
        made,
        reference=dataclasses.replace(made.reference, name="keras-float32", metrics=metrics),
    )
    tables.show(made)
    out = capsys.readouterr().out
    rows = [line for line in out.splitlines() if not line.startswith("worse: ")]
    assert max(map(len, rows)) <= 80
    for name in ("keras-float32 ", "tflite-int8 ", "change", "same"):
        assert name in out
    assert "pixels:" not in out and ("x: ms" not in out) == (kind == "detector")


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[browser.Page]:
    with browser.start(tmp_path_factory.mktemp("profile")) as page:
        yield page


@needs_browser
@pytest.mark.parametrize("kind", ["detector", "segmentation"])
def test_pictures_are_drawn_and_nothing_overflows(
    kind: str, tab: browser.Page, tmp_path: Path
) -> None:
    path = tmp_path / "page.html"
    path.write_text(page_of(getattr(reports, kind)()), encoding="utf-8")
    for width in (320, 390, 768):
        tab.open(path, width=width, dark=width == 390)
        tab.run("for (const each of document.querySelectorAll('details')) each.open = true")
        assert tab.run("document.documentElement.scrollWidth") <= width
    if kind == "segmentation":
        loaded = "[...document.querySelectorAll('.panels img')].map(each => each.naturalWidth)"
        assert set(tab.run(loaded)) == {128}
        swatch = "getComputedStyle(document.querySelectorAll('.swatch rect')[1]).fill"
        assert tab.run(swatch) == "rgb({}, {}, {})".format(*palette()[1])
    else:
        sizes = tab.run(
            "[...document.querySelectorAll('.boxes use')].map(each => each.getBBox().width)"
        )
        assert len(sizes) == 10 and min(sizes) == max(sizes) == 220
    assert tab.problems == []


@needs_browser
def test_hostile_names_of_classes_do_nothing(tab: browser.Page, tmp_path: Path) -> None:
    names = (HOSTILE,) * 5
    for kind in ("detector", "segmentation"):
        made: Report = getattr(reports, kind)()
        own = {f"{start}{HOSTILE}": measured(5.0) for start in ("map50:", "iou:", "metric:")}
        first = dataclasses.replace(
            made.artifacts[0], name=HOSTILE, metrics={**made.artifacts[0].metrics, **own}
        )
        made = dataclasses.replace(
            made,
            artifacts=(first,),
            data=dataclasses.replace(made.data, class_names=names),
        )
        path = tmp_path / "hostile.html"
        path.write_text(page_of(made), encoding="utf-8")
        tab.open(path)
        tab.run("for (const each of document.querySelectorAll('details')) each.open = true")
        assert tab.run("document.querySelectorAll('img:not(.panels img)').length") == 0
        assert tab.run("window.hit === undefined")
        assert HOSTILE in tab.run("document.querySelector('#classes').textContent")
        assert tab.problems == []


@needs_browser
@pytest.mark.skipif("EDGEKIT_AXE" not in os.environ, reason="EDGEKIT_AXE names no axe.min.js")
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("kind", ["detector", "segmentation"])
def test_axe_finds_nothing(kind: str, dark: bool, tab: browser.Page, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text(page_of(getattr(reports, kind)()), encoding="utf-8")
    tab.open(path, dark=dark)
    tab.run("for (const each of document.querySelectorAll('details')) each.open = true")
    tab.run(Path(os.environ["EDGEKIT_AXE"]).read_text(encoding="utf-8") + "; 0")
    found: Any = json.loads(tab.run("axe.run().then(found => JSON.stringify(found.violations))"))
    assert [(each["id"], [node["html"] for node in each["nodes"]]) for each in found] == []
