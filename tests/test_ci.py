from __future__ import annotations

import dataclasses
import html
import re
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_gate import artifact, make

from edgekit.base.text import visible
from edgekit.gate import gate
from edgekit.gating import ci
from edgekit.gating.bounds import parse
from edgekit.gating.checks import Check

HOSTILE = st.text(st.sampled_from("ab1 _.-|`*[]()<>&\"'#@!~$\\/:;,%=+\r\n\t\0\x1b\x85\u2028\u202e"))
TEXTS = st.text() | HOSTILE

BEFORE = make(artifact("a", 60), artifact("b", 80), artifact("gone", 60))
NOW = make(artifact("a", 80), artifact("b", 60), artifact("new", 60))
CHECKS = gate(NOW, baseline=BEFORE)


def failing(name: str, reason: str = "why") -> Check:
    return dataclasses.replace(CHECKS[0], artifact=name, reason=reason)


def test_junit_has_one_case_a_check() -> None:
    root = ElementTree.fromstring(ci.junit(CHECKS, model_id="m"))
    (suite,) = root
    assert suite.attrib == {
        "name": "edgekit gate of m",
        "tests": "4",
        "failures": "2",
        "errors": "0",
        "skipped": "1",
        "time": "0",
    }
    cases = {case.get("classname"): case for case in suite}
    assert {name: case[0].tag for name, case in cases.items()} == {
        "a": "failure",
        "b": "system-out",
        "gone": "failure",
        "new": "skipped",
    }
    assert all(case.get("name") == "top1 max-drop" for case in suite)
    message = "a: top1 92.00 (was 94.00), max-drop 0.5 points: worse: 20 lost, 0 gained, 95 %"
    assert (cases["a"][0].get("message") or "").startswith(message)
    keys = [(case.get("classname"), case.get("name")) for case in suite]
    assert len(set(keys)) == len(keys)


@given(TEXTS, TEXTS, TEXTS)
def test_junit_of_hostile_names_is_xml(name: str, reason: str, model: str) -> None:
    text = ci.junit([failing(name, reason)], model_id=model)
    ((case,),) = ElementTree.fromstring(text.encode("utf-8"))
    assert case.get("classname") == visible(name)
    assert case[0].text == case[0].get("message")
    assert visible(reason) in (case[0].text or "")


def test_markdown_shows_failures_first() -> None:
    lines = ci.markdown(CHECKS, model_id="m").splitlines()
    assert lines[:4] == [
        "<!-- edgekit gate -->",
        "### ❌ edgekit gate of m: failed",
        "",
        "4 checks, 2 failed; 1 new; 1 better than the baseline, which is stale.",
    ]
    assert [line.split("|")[2].strip() for line in lines[7:]] == ["a", "gone", "b", "new"]
    assert lines[7].startswith(
        "| ❌ FAIL | a | top1 | 92.00 | 94.00 | -2.00 | max-drop 0.5 points |"
    )
    passed = ci.markdown(gate(NOW, bounds=[parse("min", "top1=1")]), model_id="m")
    assert "### ✅ edgekit gate of m: passed" in passed


@given(TEXTS)
def test_markdown_keeps_text_and_gives_it_no_meaning(text: str) -> None:
    escaped = ci.escape_markdown(text)
    assert html.unescape(escaped).replace("\u200b", "") == visible(text).replace("\u200b", "")
    bare = re.sub(r"&#\d+;", "", escaped)
    assert not re.search(r"[|`*<>\[\]&#@!~$\\/\"'\n\r]", bare)
    assert not re.search(r"(?<![^\W_])_|_(?![^\W_])", bare)
    assert "://" not in escaped


@given(TEXTS, TEXTS)
def test_a_table_keeps_its_columns(name: str, reason: str) -> None:
    lines = ci.markdown([failing(name, reason)], model_id=reason).splitlines()
    assert len(lines) == 8
    assert [line.count("|") for line in lines[5:]] == [10, 10, 10]


def test_names_in_markdown_stay_readable() -> None:
    assert (
        ci.escape_markdown("fashion_mnist_035-tflite (0.35)") == "fashion_mnist_035-tflite (0.35)"
    )
    assert ci.escape_markdown("@all #1 www.x.y") == (
        "&#64;&#8203;all &#35;&#8203;1 www&#46;x&#46;y"
    )


@pytest.mark.parametrize(
    ("text", "message", "value"),
    [
        ("100 %\r\nnext: a, b", "100 %25%0D%0Anext: a, b", "100 %25%0D%0Anext%3A a%2C b"),
        ("%0A", "%250A", "%250A"),
    ],
)
def test_escapes_of_workflow_commands(text: str, message: str, value: str) -> None:
    assert ci.escape_message(text) == message
    assert ci.escape_property(text) == value


def unescape(text: str) -> str:
    """As the runner reads a value: https://github.com/actions/runner ActionCommand.cs."""
    for code, sign in (("%2C", ","), ("%3A", ":"), ("%0A", "\n"), ("%0D", "\r"), ("%25", "%")):
        text = text.replace(code, sign)
    return text


@given(TEXTS)
def test_escapes_are_read_back(text: str) -> None:
    escaped = ci.escape_property(text)
    assert unescape(escaped) == text
    assert not re.search(r"[:,\r\n]", escaped)


@given(st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=3), TEXTS)
def test_annotations_are_one_command_a_line(names: list[tuple[str, str]], model: str) -> None:
    lines = ci.commands([failing(*pair) for pair in names], model_id=model)
    assert len(lines) == len(names) + 1
    for line in lines:
        assert len(line.splitlines()) == 1
        assert re.match(r"::(error|notice) title=[^:,]*::", line)
        assert not re.search("[\x00-\x1f\x7f-\x9f]", line)


def test_github_is_told_no_more_than_it_shows() -> None:
    lines = ci.commands([failing(str(i)) for i in range(25)], model_id="m")
    errors = [line for line in lines if line.startswith("::error")]
    assert len(errors) == 10
    assert errors[-1].endswith("::and 16 more; see the table in the log")
    assert len(lines) == 11


def test_infinite_values_have_a_form() -> None:
    from edgekit.records.results import Measurement

    exact = make(artifact("a", 60, sqnr=Measurement(float("inf"), "dB", 1)))
    checks = gate(exact, baseline=exact, max_drop={"sqnr": 1})
    assert "| inf | inf | +0 |" in ci.markdown(checks, model_id="m")
    assert ElementTree.fromstring(ci.junit(checks, model_id="m")).get("failures") == "0"
