"""Names may hold anything: no terminal is steered, no markup is read, no page is broken."""

from __future__ import annotations

import dataclasses
import html.parser
import io
import json
import unicodedata
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Done
from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table
from test_gate import artifact, make, write

from edgekit.base import cli, schema
from edgekit.base.cli import Screen
from edgekit.base.text import decimals, shortened, visible
from edgekit.records.results import (
    Data,
    Measurement,
    Parity,
    ParityPair,
    Report,
)
from edgekit.report import report as page_of
from edgekit.reporting import tables

HOSTILE = (
    "\x1b[31mred\x1b[0m",
    "\x1b]0;title\x07",
    "\x9b2J",
    "a\rb\nc",
    "[bold]x[/bold]",
    "[/nothing]",
    "x[link=http://example.com]y",
    "back\\",
    "\u202eevil\u2028line",
    "<script>alert(1)</script>",
    "]]>&amp;\"'<!--",
    "{{ 7 * 7 }}",
    "\x00\x7f\ufeff",
    "emoji 🦀 中文",
)


def steers(text: str) -> list[str]:
    """Characters that a terminal or a line reader would act on."""
    return [
        c
        for c in text
        if (unicodedata.category(c) in ("Cc", "Zl", "Zp", "Cs") and c != "\n")
        or unicodedata.bidirectional(c) in ("RLO", "LRO", "RLE", "LRE", "RLI", "LRI", "PDF", "PDI")
    ]


def hostile_report(name: str) -> Report:
    share = Measurement(98, "%", 1000, 97, 99, "wilson 95 %")
    metrics = {
        name: share,
        "agreement": share,
        "mcnemar_p": Measurement(0.5, "p", 1000),
        "images_needed": Measurement(500, "images", 1000),
        "sqnr": Measurement(30, "dB", 1000),
        "size": Measurement(1e6, "bytes", 1),
        "latency_p50": Measurement(0.5, "ms", 200),
    }
    result = dataclasses.replace(
        artifact(name, 60, **metrics), path=name, format=name, precision=name, sha256=name
    )
    runtime = dataclasses.replace(
        result.runtime, name=name, provider=name, options={name: name}, notes=(name,)
    )
    result = dataclasses.replace(result, runtime=runtime)
    pair = ParityPair(name, name, share, Measurement(0.1, "LSB", 10), (5, 5))
    report = make(
        result,
        reference=dataclasses.replace(result, name="m"),
        model_id=f"{name}-m",
        data=Data(name, name, 1000, (name, name)),
        created=name,
        command=name,
        settings={name: name, "threads": 1, "bound": 0.5, "power": 0.8},
        warnings=(name,),
        parity=Parity(10, 0, (pair,)),
    )
    return dataclasses.replace(
        report,
        environment=dataclasses.replace(
            report.environment, cpu=name, isa=(name,), versions={name: name}, machine_class=name
        ),
    )


@given(st.text())
def test_what_is_made_visible_has_no_control_characters(text: str) -> None:
    assert not steers(visible(text))
    assert "\n" not in visible(text)
    assert visible(visible(text)) == visible(text)


def test_ordinary_text_stays() -> None:
    assert visible("T-shirt/top, Straße, 中文, 🦀 [x]") == "T-shirt/top, Straße, 中文, 🦀 [x]"
    assert visible("\x1b[2J") == "\\x1b[2J"


@pytest.mark.parametrize("name", HOSTILE)
def test_tables_of_compare(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    screen = Screen(file=stream, width=200, highlight=False)
    monkeypatch.setattr(cli, "console", screen)
    tables.show(hostile_report(name))
    printed = stream.getvalue()
    assert not steers(printed)
    assert visible(name) in printed


@pytest.mark.parametrize("name", HOSTILE)
def test_whatever_is_printed_on_the_screen(name: str) -> None:
    stream = io.StringIO()
    screen = Screen(file=stream, width=200, force_terminal=True, color_system=None)
    table = Table(title=cli.plain(name))
    table.add_column("x")
    table.add_row(cli.plain(name))
    screen.print(table)
    screen.print(name, markup=False)
    assert not steers(stream.getvalue())


def test_own_colours_stay() -> None:
    stream = io.StringIO()
    screen = Screen(file=stream, force_terminal=True, color_system="standard", highlight=False)
    screen.print("[red]x[/]\x1b[2J")
    assert stream.getvalue() == "\x1b[31mx\x1b[0m\\x1b[2J\n"


@pytest.mark.parametrize("name", HOSTILE)
def test_errors_and_documents_are_one_line(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    cli._print_error("edgekit x", f"bad {name} name")
    parser = cli.Parser("x", description="", examples="")
    assert cli.run(parser, lambda _: (0, {"name": name}), []) == 0
    found = capsys.readouterr()
    assert len(found.err.splitlines()) == len(found.out.splitlines()) == 1
    assert not steers(found.err + found.out)
    assert json.loads(found.out)["name"] == name


class Tags(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()
        self.text = ""

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.found.add(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.parametrize("name", HOSTILE)
def test_the_page_and_its_plots(name: str) -> None:
    page = page_of(hostile_report(name))
    plain = page_of(hostile_report("plain"))
    tags, usual = Tags(), Tags()
    tags.feed(page)
    usual.feed(plain)
    assert tags.found == usual.found
    assert not steers(page)
    assert visible(name) in tags.text
    assert page.count('<svg class="chart"') == 2
    for part in page.split("<svg")[1:]:
        ET.fromstring("<svg" + part.partition("</svg>")[0] + "</svg>")  # well-formed XML


def test_a_page_is_made_of_a_file_with_a_hostile_name(
    tmp_path: Path, edgekit: Callable[..., Done]
) -> None:
    source = write(tmp_path / "\x1b[31m[x]\nr.json", hostile_report(HOSTILE[0]))
    done = edgekit("report", source, "--out", tmp_path / "\x1b[2J.html")
    assert done.status == 0, done.stderr
    assert not steers(done.stderr + done.stdout)
    assert done.document["page"].endswith("\x1b[2J.html")


def test_documents_on_standard_output_are_ascii() -> None:
    assert schema.dumps({"é\u2028": "\x9b"}, indent=None, ascii=True).isascii()


def test_small_numbers_keep_two_digits() -> None:
    shown = [decimals(value, ".2f") for value in (12.34, 0.1, 0.0123, 0.00000523, 0.0)]
    assert shown == ["12.34", "0.10", "0.012", "5.2e-06", "0.00"]


@given(st.text(max_size=60), st.integers(3, 40))
def test_long_names_lose_their_middle(text: str, width: int) -> None:
    found = shortened(text, width)
    assert len(found) == min(len(text), width)
    head, mark, tail = found.partition("…")
    if len(text) > width:
        assert mark and text.startswith(head) and text.endswith(tail)
        assert abs(len(head) - len(tail)) <= 1 or "…" in text
    else:
        assert found == text
