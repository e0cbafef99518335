"""Exports with the options as keywords; what a file predicts, and how far that is from right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgekit import export as verb
from edgekit.base.progress import SILENT, Progress
from edgekit.data import feeds
from edgekit.graph import litert, onnx
from edgekit.records.artifact import Artifact


def export(
    model: Path | None = None,
    *,
    target: str,
    precision: str,
    out: Path | None = None,
    force: bool = False,
    progress: Progress = SILENT,
    **options: Any,
) -> Artifact:
    """:func:`edgekit.export.export`, with the fields of its options as arguments."""
    return verb.export(
        model,
        verb.Options(**options),
        target=target,
        precision=precision,
        out=out,
        force=force,
        progress=progress,
    )


def export_all(
    model: Path | None = None,
    *,
    targets: Sequence[str],
    precisions: Sequence[str],
    out: Path | None = None,
    force: bool = False,
    progress: Progress = SILENT,
    **options: Any,
) -> tuple[Artifact, ...]:
    """:func:`edgekit.export.export_all`, with the fields of its options as arguments."""
    return verb.export_all(
        model,
        verb.Options(**options),
        targets=targets,
        precisions=precisions,
        out=out,
        force=force,
        progress=progress,
    )


def answers(written: Artifact, values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Real answers by output, for real inputs ``[N, ...]`` by name."""
    found = written.manifest.signature
    feed = feeds.quantized(values, found.inputs)
    names = [spec.name for spec in found.outputs]
    if written.manifest.format == "onnx":
        session = onnx.session(written.model_path)
        cut = feeds.batches if found.batch == -1 else feeds.one_by_one
        parts = [session.run(names, each) for each in cut(feed, found.inputs)]
        runs = [dict(zip(names, each, strict=True)) for each in parts]
        got = feeds.joined(runs, found.outputs)
    else:
        runner = litert.interpreter(written.model_path).get_signature_runner(litert.SIGNATURE_KEY)
        each = [
            runner(**{name: array[i : i + 1] for name, array in feed.items()})
            for i in range(feeds.count(feed))
        ]
        got = {name: np.concatenate([one[name] for one in each]) for name in names}
    return {spec.name: spec.dequantize(got[spec.name]) for spec in found.outputs}


def decibels(exact: np.ndarray, found: np.ndarray) -> float:
    """SQNR of all samples together, 200 where nothing differs."""
    error = float(((exact.astype(np.float64) - found) ** 2).sum())
    return 200.0 if error == 0 else 10 * float(np.log10((exact**2).sum() / error))
