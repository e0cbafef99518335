"""Tables of what the gate judged, and of what an update changes; 80 columns are enough."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from edgekit.base import cli
from edgekit.gating import checks as judged
from edgekit.gating import review
from edgekit.gating.bounds import Bound
from edgekit.gating.checks import Check
from edgekit.records.results import Report

_COLOURS = {
    "PASS": "green",
    "FAIL": "bold red",
    "STALE": "yellow",
    "NEW": "cyan",
    "REFUSED": "bold red",
}
#: Width that the column of metrics keeps: of all names but those of a class.
_METRIC = 16


def show(checks: Sequence[Check], bounds: Sequence[Bound], report: Report) -> None:
    """Print what a gate judged.

    Args:
        checks: All of them.
        bounds: Those that were asked, for where they come from.
        report: Judged by them.
    """
    model_id = report.model_id
    columns = ("verdict", "artifact", "metric", "now", "was", "change", "bound", "because")
    alive = [check for check in checks if check.kind == "dead" and not check.current]
    rows = [
        {
            "verdict": f"[{_COLOURS[check.verdict]}]{check.verdict}[/]",
            "artifact": _cell(check.artifact.removeprefix(f"{model_id}-")),
            "metric": _cell(check.metric),
            "now": judged.show(check.current, check.unit),
            "was": judged.show(check.baseline, check.unit),
            "change": judged.show(judged.change(check), check.unit, sign="+"),
            "bound": _cell(check.rule),
            "because": _cell(check.reason),
        }
        for check in checks
        if check not in alive
    ]
    beside = f", compared with {report.reference_in_words}"
    beside = "" if report.reference_is_source else beside
    _table(f"gate of {_cell(model_id + beside)}", columns, rows, narrow=("was", "bound"))
    if alive:
        cli.say(f"no dead channel in {len(alive)} artifacts")
    cli.say(judged.headline(checks))
    asked = {(check.kind, check.metric, check.source) for check in checks}
    used = [bound for bound in bounds if (bound.kind, bound.metric, bound.source) in asked]
    for source in dict.fromkeys(bound.source for bound in used):
        cli.say(f"bounds from {source}: {', '.join(str(b) for b in used if b.source == source)}")


def show_changes(changes: Sequence[review.Change], model_id: str) -> None:
    """Print what an update changes in the baseline."""
    columns = ("", "artifact", "metric", "was", "now", "change", "allowed because")
    rows = []
    for each in changes:
        both = each.before is not None and each.after is not None
        difference = (each.after or 0.0) - (each.before or 0.0) if both else None
        rows.append(
            {
                "": "[bold red]outside[/]" if each.outside else "",
                "artifact": _cell(each.artifact.removeprefix(f"{model_id}-")),
                "metric": _cell(each.metric),
                "was": judged.show(each.before, each.unit),
                "now": judged.show(each.after, each.unit),
                "change": judged.show(difference, each.unit, sign="+"),
                "allowed because": _cell(each.why),
            }
        )
    _table(f"changes to the baseline of {_cell(model_id)}", columns, rows, narrow=("change",))


def _table(
    title: str,
    columns: Sequence[str],
    rows: Sequence[Mapping[str, str]],
    *,
    narrow: Sequence[str],
) -> None:
    """Print a table; a terminal of few columns leaves out those in ``narrow``."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    console = cli.console
    if not console.is_terminal:  # a log has no width; 80 columns would break every reason
        console = cli.Screen(file=console.file, width=160, highlight=False)
    table = Table(title=title, box=SIMPLE_HEAD)
    shown = [name for name in columns if not (console.width < 110 and name in narrow)]
    for name in shown:
        table.add_column(
            name,
            justify="right" if name in ("now", "was", "change") else "left",
            no_wrap=name not in ("artifact", "metric", "bound", "because", "allowed because"),
            min_width=min(_METRIC, max((len(row[name]) for row in rows), default=0))
            if name == "metric"
            else None,
        )
    for row in rows:
        table.add_row(*(row[name] for name in shown))
    console.print(table)


def _cell(text: str) -> str:
    """Text for a table: one line, no markup, and no ``::`` that GitHub takes for a command."""
    return cli.plain(text.replace("::", ": :"))
