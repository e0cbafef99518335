"""A layer diff as a table, CSV, a plot, and an overlay of Model Explorer."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.markup import escape
from rich.table import Table

from edgekit.base import cli, schema
from edgekit.base.errors import MissingDependencyError
from edgekit.base.text import shortened, visible
from edgekit.diagnosis.bisection import Bisection
from edgekit.diagnosis.diff import LayerDiff
from edgekit.diagnosis.measure import (
    ACCUMULATED,
    BLAME,
    INPUT,
    ISOLATED,
    MODES,
    LayerRow,
)

#: Layers that the table shows without ``--all``.
SHOWN = 12
#: What an overlay says of a tensor without any error, in dB; JSON has no infinity.
_EXACT = 200.0


def to_csv(rows: Sequence[LayerRow]) -> str:
    """One line a tensor, with a header; an empty cell where a figure does not apply."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    figures = ("sqnr_db", "cosine", "max_error", "max_error_lsb")
    writer.writerow(
        ["place", "layer", "operator", "tensor", "own_tensor"]
        + [f"{mode}_{figure}" for mode in MODES for figure in figures]
        + ["excess_db", "channel", "range_use_percent", "clipped_percent", "step_ratio", "cut_db"]
    )
    for place, row in enumerate(rows):
        cells: list[object] = [place, row.layer, row.kind, row.name, row.own]
        for mode in MODES:
            found = row.of(mode)
            cells += (
                [""] * 4
                if found is None
                else [found.sqnr, found.cosine, found.largest, _cell(found.lsb)]
            )
        cells += map(_cell, (row.excess, row.channel, row.use, row.clipped, row.step, row.cut))
        writer.writerow(cells)
    return file.getvalue()


def _cell(value: float | int | None) -> float | int | str:
    return "" if value is None else value


def to_overlay(found: LayerDiff) -> str:
    """Custom node data for Model Explorer: ``{graph: {"results": {tensor: {"value": dB}}, …}}``.

    A node is found by the name of a tensor that it writes, as the suspect's file calls it; the
    values are isolated SQNR, or accumulated where that is all there is. 200 stands for a tensor
    without error. What is fed has no operator, so the input is left out. With a bound, nodes
    below it are red; else the colours go from the smallest value to the largest.
    """
    results = {}
    for row in found.rows:
        errors = row.isolated or row.accumulated
        if errors is not None and row.kind != INPUT:
            value = max(-_EXACT, min(_EXACT, errors.sqnr))
            results[row.own] = {"value": round(value, 2)}
    body: dict[str, Any] = {"results": results}
    if found.bound is not None:
        body["thresholds"] = [
            {"value": found.bound, "bgColor": "#e06666"},
            {"value": _EXACT, "bgColor": "#b6d7a8"},
        ]
    else:
        body["gradient"] = [
            {"stop": 0, "bgColor": "#e06666"},
            {"stop": 0.5, "bgColor": "#ffe599"},
            {"stop": 1, "bgColor": "#b6d7a8"},
        ]
    return schema.dumps({found.graph_id: body}) + "\n"


def plot(found: LayerDiff) -> bytes:
    """A PNG: SQNR of every layer in both views above, excess or cut below.

    Raises:
        MissingDependencyError: If matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingDependencyError("matplotlib", "report") from None
    rows = found.rows
    judged = any(row.excess is not None for row in rows)
    figure = Figure(figsize=(max(7.0, 0.17 * len(rows) + 1.5), 6.0 if judged else 4.5))
    FigureCanvasAgg(figure)
    axes = figure.subplots(
        2 if judged else 1, 1, sharex=True, squeeze=False, height_ratios=[2, 1][: 1 + judged]
    )[:, 0]
    places = np.arange(len(rows))
    for mode, style in ((ACCUMULATED, "-"), (ISOLATED, "o")):
        errors = [row.of(mode) for row in rows]
        if any(each is not None for each in errors):
            values = [math.nan if e is None or math.isinf(e.sqnr) else e.sqnr for e in errors]
            axes[0].plot(places, values, style, label=mode, markersize=4)
    axes[0].set_ylabel("SQNR, dB")
    if found.bound is not None:
        axes[0].axhline(found.bound, color="0.5", linestyle="--", label=f"{found.bound:g} dB")
    if judged:
        faults = [0.0 if row.fault is None else max(row.fault, 0.0) for row in rows]
        axes[1].bar(places, faults, color="0.6")
        axes[1].axhline(BLAME, color="0.5", linestyle="--")
        axes[1].set_ylabel("excess or cut, dB")
    if found.verdict is not None:
        place = next(i for i, row in enumerate(rows) if row.name == found.verdict.tensor)
        for axis in axes:
            axis.axvline(place, color="tab:red", alpha=0.3, linewidth=6)
        axes[0].plot([], [], color="tab:red", alpha=0.3, linewidth=6, label="to blame")
    axes[0].legend(fontsize=8)
    axes[-1].set_xticks(places, [row.layer for row in rows], rotation=90, fontsize=6)
    axes[-1].set_xlim(-1, len(rows))
    axes[0].set_title(f"{found.suspect} against {found.reference}", fontsize=9)
    figure.tight_layout()
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=130)
    return file.getvalue()


def show(found: LayerDiff, shown: int | None) -> None:
    """Print the table: the ``shown`` worst layers, or all of them."""

    def badness(row: LayerRow) -> float:
        if row.fault is not None:
            return -row.fault
        return row.accumulated.sqnr if row.accumulated is not None else math.inf

    rows = found.rows
    if shown is not None and len(rows) > shown:
        worst = sorted(rows, key=badness)[:shown]
        rows = tuple(row for row in rows if row in worst)
    title = f"{len(found.rows)} of {found.tensors} tensors, {found.images} samples"
    if len(rows) < len(found.rows):
        title += f"; the worst {len(rows)}, --all shows the rest"
    table = Table(title=title)
    table.add_column("layer", no_wrap=True)
    # names give way to figures
    width = max(16, cli.console.width - 62)
    for column in ("excess", "cut", "alone", "LSB", "whole", "cosine", "use"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        one, other = row.isolated, row.accumulated
        guilty = found.verdict is not None and row.name == found.verdict.tensor
        table.add_row(
            escape(shortened(visible(row.layer), width)),
            _figure(row.excess, 1),
            _figure(row.cut, 1),
            _figure(None if one is None else one.sqnr, 1),
            _figure(None if one is None else one.lsb, 1),
            _figure(None if other is None else other.sqnr, 1),
            _figure(None if other is None else other.cosine, 5),
            _figure(row.use, 0),
            style="bold red" if guilty else None,
        )
    cli.console.print(table)
    cli.console.print(
        "[dim]excess: error of its worst channel, fed with the reference's values, over a sound "
        "layer's, in dB; cut: error of what its range cuts off over rounding noise, in dB; alone, "
        "LSB: SQNR of such a layer in dB, and its largest error in steps; whole, cosine: both "
        "networks on their own; use: % of the steps that the reference's values span[/]"
    )
    for layers, why in (
        (found.computed, "the reference has no tensor for {}; computed from its other values"),
        (found.unjudged, "not judged, the suspect has not all tensors of {}"),
    ):
        if layers:
            more = len(layers) - SHOWN
            names = ", ".join(layers[:SHOWN]) + (f" and {more} more" if more > 0 else "")
            cli.say(f"note: {why.format(names)}")
    if found.through_lite:
        cli.console.print(
            f"note: {escape(found.reference)} ran as the float TFLite graph that it becomes",
            soft_wrap=True,
        )
    for mode, name in found.first_below.items():
        said = "none" if name is None else escape(name)
        cli.console.print(f"first layer below {found.bound:g} dB, {mode}: {said}")
    if any(row.excess is not None for row in found.rows):
        if found.verdict is None:
            every = "every layer that is judged" if found.unjudged else "every layer"
            cli.console.print(f"to blame: none; {every} is as good as a sound one")
        else:
            cli.console.print(
                f"to blame: {escape(found.verdict.layer)}: {found.verdict.reason}",
                soft_wrap=True,
            )
    if found.bisection is not None:
        _print_bisection(found.bisection)


def _print_bisection(found: Bisection) -> None:
    unit = found.bound.unit
    if not found.reached:
        said = f"not reached, not even with every layer in float: {found.after:.2f} {unit}"
    elif not found.layers:
        said = f"reached with no layer in float: {found.before:.2f} {unit}"
    else:
        said = (
            f"{len(found.layers)} left in float: {escape(', '.join(found.layers))}; "
            f"from {found.before:.2f} to {found.after:.2f} {unit}"
        )
    cli.console.print(
        f"bisect to {found.bound}: {said} ({found.evaluations} runs of the emulated network; "
        f"the file itself answers at {found.actual:.2f} {unit})",
        soft_wrap=True,
    )


def _figure(value: float | None, digits: int) -> str:
    if value is None:
        return "-"
    if math.isinf(value):
        return "exact" if digits == 1 and value > 0 else "none"
    return f"{value:.{digits}f}"
