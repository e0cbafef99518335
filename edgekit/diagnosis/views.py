"""Write a layer diff as CSV, as a plot, and as an overlay for Model Explorer."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from edgekit.base import schema
from edgekit.base.errors import MissingDependencyError
from edgekit.diagnosis.diff import LayerDiff
from edgekit.diagnosis.measure import (
    ACCUMULATED,
    BLAME,
    INPUT,
    ISOLATED,
    MODES,
    LayerRow,
)

#: What an overlay says of a tensor without any error, in dB; JSON has no infinity.
_EXACT = 200.0


def to_csv(rows: Sequence[LayerRow]) -> str:
    """One line for each tensor, with a header; an empty cell where a metric does not apply."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    numbers = ("sqnr_db", "cosine", "max_error", "max_error_lsb")
    writer.writerow(
        ["place", "layer", "operator", "tensor", "own_tensor"]
        + [f"{mode}_{number}" for mode in MODES for number in numbers]
        + ["excess_db", "channel", "range_use_percent", "clipped_percent", "step_ratio", "cut_db"]
    )
    for place, row in enumerate(rows):
        cells: list[object] = [place, row.layer, row.kind, row.name, row.own]
        for mode in MODES:
            errors = row.of(mode)
            cells += (
                [""] * 4
                if errors is None
                else [errors.sqnr, errors.cosine, errors.largest, _cell(errors.lsb)]
            )
        cells += map(_cell, (row.excess, row.channel, row.use, row.clipped, row.step, row.cut))
        writer.writerow(cells)
    return file.getvalue()


def _cell(value: float | int | None) -> float | int | str:
    return "" if value is None else value


def to_overlay(diff: LayerDiff) -> str:
    """Custom node data for Model Explorer: ``{graph: {"results": {tensor: {"value": dB}}, …}}``.

    A node is found by the name of a tensor that it writes, as the suspect's file calls it; the
    values are isolated SQNR, or accumulated where that is all there is. 200 stands for a tensor
    without error. An input has no operator and is left out. With a bound, nodes
    below it are red; else the colours go from the smallest value to the largest.
    """
    results = {}
    for row in diff.rows:
        errors = row.isolated or row.accumulated
        if errors is not None and row.kind != INPUT:
            value = max(-_EXACT, min(_EXACT, errors.sqnr))
            results[row.own] = {"value": round(value, 2)}
    body: dict[str, Any] = {"results": results}
    if diff.bound is not None:
        body["thresholds"] = [
            {"value": diff.bound, "bgColor": "#e06666"},
            {"value": _EXACT, "bgColor": "#b6d7a8"},
        ]
    else:
        body["gradient"] = [
            {"stop": 0, "bgColor": "#e06666"},
            {"stop": 0.5, "bgColor": "#ffe599"},
            {"stop": 1, "bgColor": "#b6d7a8"},
        ]
    return schema.dumps({diff.graph_id: body}) + "\n"


def plot(diff: LayerDiff) -> bytes:
    """A PNG: SQNR of every layer in both views above, excess or cut below.

    Raises:
        MissingDependencyError: If matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingDependencyError("matplotlib", "report") from None
    rows = diff.rows
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
    if diff.bound is not None:
        axes[0].axhline(diff.bound, color="0.5", linestyle="--", label=f"{diff.bound:g} dB")
    if judged:
        faults = [0.0 if row.fault is None else max(row.fault, 0.0) for row in rows]
        axes[1].bar(places, faults, color="0.6")
        axes[1].axhline(BLAME, color="0.5", linestyle="--")
        axes[1].set_ylabel("excess or cut, dB")
    if diff.verdict is not None:
        place = next(i for i, row in enumerate(rows) if row.name == diff.verdict.tensor)
        for axis in axes:
            axis.axvline(place, color="tab:red", alpha=0.3, linewidth=6)
        axes[0].plot([], [], color="tab:red", alpha=0.3, linewidth=6, label="to blame")
    axes[0].legend(fontsize=8)
    axes[-1].set_xticks(places, [row.layer for row in rows], rotation=90, fontsize=6)
    axes[-1].set_xlim(-1, len(rows))
    axes[0].set_title(f"{diff.suspect} against {diff.reference}", fontsize=9)
    figure.tight_layout()
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=130)
    return file.getvalue()
