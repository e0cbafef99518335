"""The formats that continuous integration reads: JUnit XML, Markdown, GitHub's annotations.

Names and reasons come from a report that anyone may have written. They are written in one line
without control characters (edgekit.base.text), and characters with a meaning in the format are
escaped.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from edgekit.base.text import visible
from edgekit.gating import checks as judged
from edgekit.gating.checks import Check

#: GitHub shows this many annotations of a level and step.
MOST_ANNOTATIONS = 10
#: Lets a program find its earlier comment in a pull request.
MARKER = "<!-- edgekit gate -->"
_MARKS = {"PASS": "✅", "FAIL": "❌", "STALE": "⚠️", "NEW": "🆕", "REFUSED": "⛔"}


def junit(checks: Sequence[Check], *, model_id: str) -> str:
    """JUnit XML: a suite with one case a check. FAIL is a failure, NEW is skipped."""
    from xml.etree import ElementTree

    failures = sum(check.verdict == "FAIL" for check in checks)
    skipped = sum(check.verdict == "NEW" for check in checks)
    counts = {"tests": str(len(checks)), "failures": str(failures), "errors": "0"}
    root = ElementTree.Element("testsuites", {"name": "edgekit gate", **counts, "time": "0"})
    suite = ElementTree.SubElement(
        root,
        "testsuite",
        {
            "name": f"edgekit gate of {visible(model_id)}",
            **counts,
            "skipped": str(skipped),
            "time": "0",
        },
    )
    for check in checks:
        name = visible(f"{check.metric} {check.kind}")
        attributes = {"classname": visible(check.artifact), "name": name, "time": "0"}
        case = ElementTree.SubElement(suite, "testcase", attributes)
        text = sentence(check)
        if check.verdict == "FAIL":
            failure = {"message": text, "type": "regression"}
            ElementTree.SubElement(case, "failure", failure).text = text
        elif check.verdict == "NEW":
            ElementTree.SubElement(case, "skipped", {"message": text})
        else:
            ElementTree.SubElement(case, "system-out").text = text
    ElementTree.indent(root)
    body: str = ElementTree.tostring(root, encoding="unicode")
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{body}\n'


def markdown(checks: Sequence[Check], *, model_id: str) -> str:
    """Text for a comment on a pull request: the verdict, then a table, what failed first."""
    failed = [check for check in checks if check.verdict == "FAIL"]
    mark = _MARKS["FAIL" if failed else "PASS"]
    lines = [
        MARKER,
        f"### {mark} edgekit gate of {escape_markdown(model_id)}: "
        f"{'failed' if failed else 'passed'}",
        "",
        f"{judged.headline(checks)}.",
        "",
        "| | artifact | metric | now | baseline | change | bound | because | bound from |",
        "|---|---|---|---:|---:|---:|---|---|---|",
    ]
    for check in (*failed, *(check for check in checks if check not in failed)):
        cells = (
            f"{_MARKS[check.verdict]} {check.verdict}",
            escape_markdown(check.artifact.removeprefix(f"{model_id}-")),
            escape_markdown(check.metric),
            judged.show(check.current, check.unit),
            judged.show(check.baseline, check.unit),
            judged.show(judged.change(check), check.unit, sign="+"),
            escape_markdown(check.rule),
            escape_markdown(check.reason),
            escape_markdown(check.source),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def commands(checks: Sequence[Check], *, model_id: str) -> list[str]:
    """GitHub's workflow commands, a line each: an error a failed check, notices for the rest."""
    failed = [check for check in checks if check.verdict == "FAIL"]
    noted = [check for check in checks if check.verdict in ("STALE", "NEW")]
    verdict = f"{visible(model_id)}: {judged.headline(checks)}"
    return [
        *_level("error", failed, MOST_ANNOTATIONS),
        *_level("notice", noted, MOST_ANNOTATIONS - 1),
        f"::notice title=edgekit gate::{escape_message(verdict)}",
    ]


def _level(level: str, checks: Sequence[Check], most: int) -> list[str]:
    shown = checks if len(checks) <= most else checks[: most - 1]
    lines = []
    for check in shown:
        title = escape_property(visible(f"edgekit gate: {check.metric} {check.verdict}"))
        lines.append(f"::{level} title={title}::{escape_message(sentence(check))}")
    if len(shown) < len(checks):
        more = len(checks) - len(shown)
        lines.append(f"::{level} title=edgekit gate::and {more} more; see the table in the log")
    return lines


def sentence(check: Check) -> str:
    """A check in one line, as ``mine-int8: top1 92.00 (was 94.00), max-drop 0.5 points: …``."""
    was = "" if check.baseline is None else f" (was {judged.show(check.baseline, check.unit)})"
    return visible(
        f"{check.artifact}: {check.metric} {judged.show(check.current, check.unit)}{was}, "
        f"{check.rule}: {check.reason} [{check.source}]"
    )


def append(path: Path, text: str) -> None:
    """Add text to a file that others write to as well, as GitHub's step summary."""
    with path.open("a", encoding="utf-8") as stream:
        stream.write(text)


def escape_message(text: str) -> str:
    """Text after the second ``::`` of a workflow command."""
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def escape_property(text: str) -> str:
    """A value between the first word and the second ``::`` of a workflow command."""
    return escape_message(text).replace(":", "%3A").replace(",", "%2C")


def escape_markdown(text: str) -> str:
    """Text that Markdown shows as it is, in a cell of a table too, and that mentions nobody.

    Character references never act as Markdown. The blank without width after ``@`` and ``#`` keeps
    GitHub from turning a name or a number into a link.
    """
    return re.sub(r"[^\w\s-]|_", _reference, visible(text))


def _reference(match: re.Match[str]) -> str:
    sign = match[0]
    before, after = match.string[: match.start()][-1:], match.string[match.end() :][:1]
    if not sign.isascii():
        return sign
    if sign == "_" and before.isalnum() and after.isalnum():
        return sign
    if sign == "." and before.isdigit() and after.isdigit():
        return sign
    if sign in "(),=+%" or (sign in ".:;" and not after.strip()):
        return sign
    return f"&#{ord(sign)};" + ("&#8203;" if sign in "@#" else "")
