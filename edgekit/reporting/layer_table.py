"""A layer diff on the screen: the worst layers, the one to blame, the bisection."""

from __future__ import annotations

import math
import shlex

from rich.markup import escape
from rich.table import Table

from edgekit.base import cli
from edgekit.base.text import shortened, visible
from edgekit.diagnosis.bisection import Bisection
from edgekit.diagnosis.diff import LayerDiff
from edgekit.diagnosis.measure import LayerRow
from edgekit.diagnosis.options import SHOWN


def show(diff: LayerDiff, shown: int | None) -> None:
    """Print the table: the ``shown`` worst layers, or all of them."""

    def badness(row: LayerRow) -> float:
        if row.fault is not None:
            return -row.fault
        return row.accumulated.sqnr if row.accumulated is not None else math.inf

    rows = diff.rows
    if shown is not None and len(rows) > shown:
        worst = sorted(rows, key=badness)[:shown]
        rows = tuple(row for row in rows if row in worst)
    title = f"{len(diff.rows)} of {diff.tensors} tensors, {diff.images} samples"
    if len(rows) < len(diff.rows):
        title += f"; the worst {len(rows)}, --all shows the rest"
    table = Table(title=title)
    table.add_column("layer", no_wrap=True)
    # names give way to numbers
    width = max(16, cli.console.width - 62)
    for column in ("excess", "cut", "alone", "LSB", "whole", "cosine", "use"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        one, other = row.isolated, row.accumulated
        guilty = diff.verdict is not None and row.name == diff.verdict.tensor
        table.add_row(
            escape(shortened(visible(row.layer), width)),
            _number(row.excess, 1),
            _number(row.cut, 1),
            _number(None if one is None else one.sqnr, 1),
            _number(None if one is None else one.lsb, 1),
            _number(None if other is None else other.sqnr, 1),
            _number(None if other is None else other.cosine, 5),
            _number(row.use, 0),
            style="bold red" if guilty else None,
        )
    cli.console.print(table)
    cli.console.print(
        "[dim]excess: error of its worst channel on the reference's values, over that of a sound "
        "layer, in dB; cut: error of what its range cuts off over rounding noise, in dB; alone, "
        "LSB: SQNR of such a layer in dB, and its largest error in steps; whole, cosine: both "
        "networks on their own; use: % of the steps that the reference's values span[/]"
    )
    for layers, why in (
        (diff.computed, "the reference has no tensor for {}; computed from its other values"),
        (diff.unjudged, "not judged, the suspect has not all tensors of {}"),
    ):
        if layers:
            more = len(layers) - SHOWN
            names = ", ".join(layers[:SHOWN]) + (f" and {more} more" if more > 0 else "")
            cli.say(f"note: {why.format(names)}")
    if diff.through_lite:
        cli.console.print(
            f"note: {escape(diff.reference)} ran as the float TFLite graph that it becomes",
            soft_wrap=True,
        )
    for mode, name in diff.first_below.items():
        said = "none" if name is None else escape(name)
        cli.console.print(f"first layer below {diff.bound:g} dB, {mode}: {said}")
    if any(row.excess is not None for row in diff.rows):
        if diff.verdict is None:
            every = "every layer that is judged" if diff.unjudged else "every layer"
            cli.console.print(f"to blame: none; {every} is as good as a sound one")
        else:
            cli.console.print(
                f"to blame: {escape(diff.verdict.layer)}: {diff.verdict.reason}",
                soft_wrap=True,
            )
    if diff.bisection is not None:
        _print_bisection(diff.bisection)


def _print_bisection(bisection: Bisection) -> None:
    unit = bisection.bound.unit
    if not bisection.reached:
        said = f"not reached, not even with every layer in float: {bisection.after:.2f} {unit}"
    elif not bisection.layers:
        said = f"reached with no layer in float: {bisection.before:.2f} {unit}"
    else:
        said = (
            f"{len(bisection.layers)} left in float: {escape(', '.join(bisection.layers))}; "
            f"from {bisection.before:.2f} to {bisection.after:.2f} {unit}"
        )
    cli.console.print(
        f"bisect to {bisection.bound}: {said} ({bisection.evaluations} runs of the emulated "
        f"network; the file itself reaches {bisection.actual:.2f} {unit})",
        soft_wrap=True,
    )
    if bisection.reached and bisection.layers:
        options = (word for layer in bisection.layers for word in ("--leave-float", layer))
        cli.say(f"options of export that leave them in float: {shlex.join(options)}")


def _number(value: float | None, digits: int) -> str:
    if value is None:
        return "-"
    if math.isinf(value):
        return "exact" if digits == 1 and value > 0 else "none"
    return f"{value:.{digits}f}"
