"""``python -m edgekit.report``: turn a report into one self-contained HTML page.

Verdict first, then accuracy against latency and size, every figure, what ran, the environment and
the command. No script, no network; light and dark; printable.
"""

from __future__ import annotations

import argparse
import html
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgekit import cli, outputs
from edgekit.errors import MissingDependencyError
from edgekit.results import ArtifactResult, Measurement, Report

#: Metric: column title, unit, format, factor.
_COLUMNS: dict[str, tuple[str, str, str, float]] = {
    "top1": ("top-1", "%", ".2f", 1),
    "top5": ("top-5", "%", ".2f", 1),
    "agreement": ("agrees", "%", ".2f", 1),
    "mcnemar_p": ("p", "McNemar", ".3f", 1),
    "kl": ("KL", "nats", ".1e", 1),
    "sqnr": ("SQNR", "dB", ".1f", 1),
    "size": ("size", "MB", ".2f", 1e-6),
    "peak_memory": ("peak memory", "MB", ".0f", 1e-6),
    "load_time": ("load", "ms", ".1f", 1),
    "latency_p50": ("p50", "ms", ".3f", 1),
    "latency_p90": ("p90", "ms", ".3f", 1),
    "latency_p99": ("p99", "ms", ".3f", 1),
    "latency_ratio": ("ratio", "x float32", ".2f", 1),
}
SIGNIFICANT = 0.05


def report(source: Report) -> str:
    """The page as text.

    Raises:
        MissingDependencyError: If jinja2 or matplotlib are not installed.
    """
    try:
        import jinja2
        import markupsafe
    except ImportError:
        raise MissingDependencyError("jinja2", "report") from None
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    lines = [_line(result, source) for result in source.artifacts]
    results = (source.reference, *source.artifacts)
    plots = [
        {"label": label, "svg": markupsafe.Markup(_plot(source, metric, axis, factor))}
        for metric, axis, factor, label in (
            ("latency_p50", "latency p50, ms (log scale)", 1.0, "Top-1 against latency"),
            ("size", "size, MB (log scale)", 1e-6, "Top-1 against size"),
        )
    ]
    return environment.get_template("report.html.j2").render(
        report=source,
        reference=source.reference,
        headline=_headline(lines),
        lines=lines,
        plots=plots,
        columns=[{"title": title, "unit": unit} for title, unit, _, _ in _COLUMNS.values()],
        rows=[_row(result, source) for result in results],
        results=results,
        samples=len(source.reference.latency_ms),
    )


def _headline(lines: list[dict[str, Any]]) -> str:
    moved = [line["name"] for line in lines if not line["same"]]
    if not moved:
        return f"All {len(lines)} deployables answer as well as the float model"
    return (
        f"{len(moved)} of {len(lines)} deployables differ from the float model: {', '.join(moved)}"
    )


def _line(result: ArtifactResult, source: Report) -> dict[str, Any]:
    delta = result.metrics["top1"].value - source.reference.metrics["top1"].value
    p = result.metrics["mcnemar_p"].value
    verdict = "no accuracy change seen"
    if p < SIGNIFICANT:
        verdict = "less accurate" if delta < 0 else "more accurate"
    return {
        "name": _short(result, source),
        "same": p >= SIGNIFICANT or delta > 0,
        "verdict": verdict,
        "delta": f"{delta:+.2f}",
        "p": f"{p:.3f}",
        "agreement": f"{result.metrics['agreement'].value:.2f}",
    }


def _short(result: ArtifactResult, source: Report) -> str:
    return result.name.removeprefix(f"{source.model_id}-")


def _row(result: ArtifactResult, source: Report) -> dict[str, Any]:
    return {
        "name": _short(result, source),
        "reference": result is source.reference,
        "cells": [_cell(name, result.metrics.get(name)) for name in _COLUMNS],
    }


def _cell(name: str, found: Measurement | None) -> dict[str, str]:
    if found is None:
        return {"value": "–", "interval": ""}
    _, _, form, factor = _COLUMNS[name]
    if found.value == float("inf"):
        return {"value": "exact", "interval": ""}
    interval = ""
    if found.low is not None and found.high is not None:
        interval = f"{found.low * factor:{form}} – {found.high * factor:{form}}"
    return {"value": f"{found.value * factor:{form}}", "interval": interval}


def _plot(source: Report, metric: str, axis: str, factor: float) -> str:
    """One scatter as SVG text: a point an artifact, bars for the interval of top-1."""
    try:
        import matplotlib
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure
        from matplotlib.ticker import ScalarFormatter
    except ImportError:
        raise MissingDependencyError("matplotlib", "report") from None

    colours = {"float32": "#0969da", "float16": "#8250df", "int8": "#bf3989"}
    markers = {"tflite": "o", "onnx": "s", "keras": "D"}
    # Text stays text: smaller, selectable; file names in it are escaped by the SVG writer.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "edgekit"}):
        figure = Figure(figsize=(6, 4), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        by_x = sorted(source.artifacts, key=lambda result: result.metrics[metric].value)
        for number, result in enumerate(by_x):
            top1, other = result.metrics["top1"], result.metrics[metric]
            x = other.value * factor
            error = [
                [top1.value - (top1.low or top1.value)],
                [(top1.high or top1.value) - top1.value],
            ]
            colour = colours.get(result.precision, "#57606a")
            axes.errorbar(
                x, top1.value, error, color=colour, fmt=markers[result.format], alpha=0.8, capsize=3
            )
            axes.annotate(
                f"{result.format} {result.precision}",
                (x, top1.value),
                # Neighbours on the axis get their labels at different heights.
                xytext=(7, (9, -14, 22, -27)[number % 4]),
                textcoords="offset points",
                fontsize=9,
                color=colour,
            )
        base = source.reference.metrics["top1"].value
        axes.axhline(base, color="#57606a", linewidth=1, linestyle="--")
        axes.text(
            0.01,
            base,
            " float model",
            transform=axes.get_yaxis_transform(),
            va="bottom",
            fontsize=9,
        )
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.xaxis.set_minor_formatter(ScalarFormatter())
        axes.margins(x=0.25, y=0.15)
        axes.set_xlabel(axis)
        axes.set_ylabel("top-1, %")
        axes.grid(alpha=0.25)
        stream = io.StringIO()
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    svg = stream.getvalue()
    # Two figures on one page must not share element ids.
    svg = re.sub(
        r'(id="|url\(#|href="#)', rf"\g<1>{html.escape(metric)}-", svg[svg.index("<svg") :]
    )
    return svg


def parser() -> cli.Parser:
    """Options of ``python -m edgekit.report``."""
    result = cli.Parser(
        "report",
        description="Turn a report of `edgekit compare` into one self-contained HTML page.",
        examples="""
python -m edgekit.report report.json --out report.html
""",
    )
    result.add_argument("report", type=Path, metavar="REPORT", help="report of `edgekit compare`")
    result.add_argument("--out", type=Path, required=True, help="HTML file to write")
    result.add_argument("--force", action="store_true", help="replace OUT if it exists")
    return result


def _act(options: argparse.Namespace) -> cli.Outcome:
    outputs.check_free(options.out, force=options.force)
    page = report(Report.load(options.report))
    outputs.write_text(options.out, page, force=options.force)
    cli.console.print(f"{options.out}  {len(page.encode()):,} bytes")
    return 0, {"page": str(options.out), "bytes": len(page.encode())}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the verb."""
    return cli.run(parser(), _act, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
