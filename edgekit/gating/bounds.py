"""Bounds: what a gate may ask of a metric, and how that is written. Framework-free.

Four kinds. ``min`` and ``max`` look at the report alone; ``max-drop`` and ``max-rise`` say how much
worse than the baseline a metric may be, in the metric's unit (points for shares) or in % of the
baseline's value::

    --min top1=93.0     --max size=700000     --max-drop top1=0.5     --max-rise size='1 %'
    --max-drop mine-tflite-int8:top1=1.0                             (of one artifact)
    --min sqnr:price=30                                              (of one output of several)
    --min 'iou:t-shirt=60'  --max-drop map50:bag=2                   (of one class)
    --min metric:recall_at_5=70                                      (of a function of the user)

    [tool.edgekit.gate]                       in pyproject.toml
    report = "build/report.json"              paths are relative to this file
    baseline = "baseline.json"
    min.top1 = 93.0
    max-drop.top1 = 0.5
    max-rise.size = "1 %"
    min."iou:t-shirt" = 60
    allow-dead = false                        true: channels that are dead are let pass
    [tool.edgekit.gate.artifact."mine-tflite-int8"]
    max-drop.top1 = 1.0

``min`` is for metrics where higher is better, ``max`` and ``max-rise`` for those where lower is.
``max-drop`` is taken for both and then means "worse by at most". Of a user's own metric nobody
knows which is better, so that all four are taken: ``max-drop`` bounds how much it falls,
``max-rise`` how much it rises.
"""

from __future__ import annotations

import argparse
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast, get_args

from edgekit.base import words
from edgekit.base.errors import InvalidInputError, InvalidOptionError
from edgekit.evaluation import verdicts
from edgekit.records.results import (
    CENTRED_OF_OUTPUT,
    IOU_OF_CLASS,
    MAP_OF_CLASS,
    OF_FUNCTION,
    OF_OUTPUT,
)

Kind = Literal["min", "max", "max-drop", "max-rise"]
KINDS: tuple[Kind, ...] = get_args(Kind)

HIGHER_IS_BETTER = (
    "top1",
    "top5",
    "agreement",
    "top1_change",
    "mcnemar_p",
    "r2",
    "r2_change",
    "map",
    "map50",
    "map75",
    "map_small",
    "map_medium",
    "map_large",
    "map_change",
    "map50_change",
    "matched50",
    "matched90",
    "miou",
    "pixel_accuracy",
    "miou_change",
    "pixel_agreement",
    "sqnr",
    "sqnr_centred",
    "npu_share",
)
LOWER_IS_BETTER = (
    "kl",
    "truth_mse",
    "truth_mae",
    "mse",
    "max_error",
    "max_error_share",
    "score_error",
    "size",
    "arena",
    "arena_persistent",
    "flash",
    "sram",
    "npu_cycles",
    "peak_memory",
    "load_time",
    "latency_p50",
    "latency_p90",
    "latency_p99",
    "latency_ratio",
    "energy",
)
METRICS = (*HIGHER_IS_BETTER, *LOWER_IS_BETTER)
#: Times of one run. Those of two runs do not compare; the ratio within a run does.
TIMES = ("load_time", "latency_p50", "latency_p90", "latency_p99")
#: Metrics that compare only where machine class and threads are the same.
OF_THE_MACHINE = ("peak_memory", "latency_ratio", "energy")
#: Metrics that compare outputs with the reference.
OF_THE_REFERENCE = (
    "agreement",
    "top1_change",
    "mcnemar_p",
    "r2_change",
    "map_change",
    "map50_change",
    "matched50",
    "matched90",
    "score_error",
    "miou_change",
    "pixel_agreement",
    "kl",
    "sqnr",
    "sqnr_centred",
    "mse",
    "max_error",
    "max_error_share",
)
#: Metrics whose change against the reference is measured on the same samples.
CHANGES = {**verdicts.CHANGES, "map50": "map50_change"}
#: Metrics that say nothing where labels do not fit.
OF_THE_LABELS = (
    "top1",
    "top5",
    "top1_change",
    "mcnemar_p",
    "r2",
    "r2_change",
    "map",
    "map50",
    "map75",
    "map_small",
    "map_medium",
    "map_large",
    "map_change",
    "map50_change",
    "miou",
    "pixel_accuracy",
    "miou_change",
    "iou",
)
#: Starts of names of metrics of a part, and what the part is: of an output, a class, a function.
PARTS = {
    OF_OUTPUT: "OUTPUT",
    CENTRED_OF_OUTPUT: "OUTPUT",
    MAP_OF_CLASS: "CLASS",
    IOU_OF_CLASS: "CLASS",
    OF_FUNCTION: "NAME",
}
#: Metrics and families, in the order in which the gate shows them.
_FAMILIES = (*METRICS, *(part[:-1] for part in PARTS if part[:-1] not in METRICS))


def part(metric: str) -> tuple[str, str]:
    """Start and rest of the name of a metric of a part: ``map50:``, ``bag``; else two empty texts.

    A class may have any name, so that the rest may hold anything.
    """
    start = next((start for start in PARTS if metric.startswith(start)), "")
    return start, metric[len(start) :] if start else ""


def family(metric: str) -> str:
    """``sqnr`` of an output's SQNR; a metric of the whole model itself."""
    return part(metric)[0].removesuffix(":") or metric


def known(metric: str) -> bool:
    """Whether a bound may be on it."""
    start, rest = part(metric)
    return bool(rest) if start else metric in METRICS


def higher_is_better(metric: str) -> bool:
    """Whether more of a known metric is better; of a user's own metric, nobody knows."""
    return family(metric) in (*HIGHER_IS_BETTER, IOU_OF_CLASS[:-1])


def of_user(metric: str) -> bool:
    """Whether a function of the user computes it."""
    return metric.startswith(OF_FUNCTION)


TABLE = "tool.edgekit.gate"
COMMAND_LINE = "command line"
_NUMBER = re.compile(r"\s*([+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?)\s*(%?)\s*", re.ASCII)


@dataclass(frozen=True)
class Bound:
    """One thing that is asked of one metric.

    Attributes:
        value: With ``min`` and ``max``, the limit; else how much worse the metric may be.
        percent: ``value`` is in % of the baseline's value instead of in the metric's unit.
        artifact: The only artifact it is for; None: all.
        source: Where it was written, for people.
    """

    kind: Kind
    metric: str
    value: float
    percent: bool = False
    artifact: str | None = None
    source: str = COMMAND_LINE

    def __post_init__(self) -> None:
        place = f"{self.kind} {self.metric}"
        if self.kind not in KINDS:
            raise InvalidOptionError(
                f"unknown kind of bound {self.kind!r}; expected one of {', '.join(KINDS)}"
                f"{words.near(self.kind, KINDS)}"
            )
        if not known(self.metric):
            parts = ", ".join(f"{start}{each}" for start, each in PARTS.items())
            raise InvalidOptionError(
                f"unknown metric {self.metric!r} in {self.kind}; expected one of "
                f"{', '.join(METRICS)}, or {parts}{words.near(self.metric, METRICS)}"
            )
        higher, own = higher_is_better(self.metric), of_user(self.metric)
        if own:
            pass  # whatever its function says, it may be bounded from both sides
        elif self.kind == "max-drop" and not higher:
            object.__setattr__(self, "kind", "max-rise")
        elif higher and self.kind in ("max", "max-rise"):
            fix = "min" if self.kind == "max" else "max-drop"
            raise InvalidOptionError(f"{place}: higher {self.metric} is better; use {fix} instead")
        elif not higher and self.kind == "min":
            raise InvalidOptionError(f"{place}: lower {self.metric} is better; use max instead")
        if not math.isfinite(self.value) or (self.of_baseline and self.value < 0):
            least = " >= 0" if self.of_baseline else ""
            raise InvalidOptionError(f"{place}: expected a finite number{least}, got {self.value}")
        if self.percent and not self.of_baseline:
            raise InvalidOptionError(
                f"{place}: {self.value:g} % is of a baseline's value; give {self.kind} a number in "
                f"the metric's unit, or use {'max-drop' if higher else 'max-rise'}"
            )
        if self.of_baseline and self.metric in TIMES:
            raise InvalidOptionError(
                f"{place}: times of two runs do not compare; bound latency_ratio, the time against "
                f"float32 in the same run, or use max {self.metric}"
            )

    @property
    def of_baseline(self) -> bool:
        """Whether it needs a baseline."""
        return self.kind in ("max-drop", "max-rise")

    def __str__(self) -> str:
        value = f"{self.value:.0f}" if self.value.is_integer() else repr(self.value)
        place = "" if self.artifact is None else f"{self.artifact}:"
        return f"{self.kind} {place}{self.metric}={value}{' %' if self.percent else ''}"


#: What is asked where nothing says anything of top-1: the loss that matters, at the most.
DEFAULT = Bound("max-drop", "top1", verdicts.BOUND, source="default")
#: The same of regressions whose right numbers are known.
DEFAULT_OF_TRUTH = Bound("max-drop", "r2", verdicts.BOUND, source="default")
#: The same of detectors and of segmentation networks.
DEFAULT_OF_BOXES = Bound("max-drop", "map", verdicts.BOUND, source="default")
DEFAULT_OF_MASKS = Bound("max-drop", "miou", verdicts.BOUND, source="default")
#: The same of outputs whose right values nobody knows: 3 dB, twice the power of the error, at the
#: most. Values above ROUNDING count as that many dB.
DEFAULT_OF_NUMBERS = Bound("max-drop", "sqnr_centred", 3.0, source="default")
#: The same of a baseline that does not know what varies.
DEFAULT_OF_OLD = Bound("max-drop", "sqnr", 3.0, source="default")
OF_NUMBERS = (DEFAULT_OF_NUMBERS, DEFAULT_OF_OLD)
DEFAULTS = (DEFAULT, DEFAULT_OF_TRUTH, DEFAULT_OF_BOXES, DEFAULT_OF_MASKS, *OF_NUMBERS)
ROUNDING = 100.0


@dataclass(frozen=True)
class Config:
    """``[tool.edgekit.gate]`` of one pyproject.toml.

    Attributes:
        path: The file; None where there is none.
        report: What is judged, unless the command line names another.
        bounds: Those of all artifacts first.
        allow_dead: Artifacts whose dead channels are let pass; None among them stands for all.
    """

    path: Path | None = None
    report: Path | None = None
    baseline: Path | None = None
    bounds: tuple[Bound, ...] = ()
    allow_dead: frozenset[str | None] = frozenset()


def parse(kind: Kind, text: str, *, source: str = COMMAND_LINE) -> Bound:
    """``[ARTIFACT:]METRIC=VALUE`` to a bound; VALUE is a number or a number and %.

    Raises:
        InvalidOptionError: If it is not of that form, or asks something without meaning.
    """
    place, equals, value = text.rpartition("=")
    artifact, colon, metric = place.rpartition(":")
    # The first one: what follows is a name, which may hold anything.
    starts = [at for start in PARTS if (at := f":{place}".find(f":{start}")) >= 0]
    if starts:
        at = min(starts)
        artifact, colon, metric = place[: max(0, at - 1)], place[at - 1 : at], place[at:]
    if not equals or (colon and not artifact):
        raise InvalidOptionError(
            f"{kind}: expected [ARTIFACT:]METRIC=VALUE as top1=0.5, got {text!r}"
        )
    return read(kind, metric, value, artifact=artifact if colon else None, source=source)


def read(
    kind: Kind, metric: str, value: object, *, artifact: str | None = None, source: str
) -> Bound:
    """A bound from a value as TOML or a command line has it: a number, or text as ``1 %``.

    Raises:
        InvalidOptionError: If the value is neither, or asks something without meaning.
    """
    percent = False
    number = value
    if isinstance(value, str):
        match = _NUMBER.fullmatch(value)
        if match:
            number, percent = float(match[1]), match[2] == "%"
    if isinstance(number, bool) or not isinstance(number, int | float):
        raise InvalidOptionError(
            f'{kind} {metric}: expected a number, or a number and % as "1 %", got {value!r}'
        )
    try:
        number = float(number)
    except OverflowError:  # an integer of TOML can have any length
        number = math.inf
    return Bound(kind, metric, number, percent, artifact, source)


def once(bounds: Sequence[Bound]) -> tuple[Bound, ...]:
    """The bounds of one source, those of all artifacts first.

    Raises:
        InvalidOptionError: If two of them are for the same thing.
    """
    seen: set[tuple[str | None, str, str]] = set()
    for bound in bounds:
        key = (bound.artifact, bound.kind, bound.metric)
        if key in seen:
            of = "" if bound.artifact is None else f" of {bound.artifact}"
            raise InvalidOptionError(
                f"{bound.source}: {bound.kind} {bound.metric}{of} is given twice; give it once"
            )
        seen.add(key)
    return tuple(sorted(bounds, key=lambda bound: bound.artifact is not None))


def effective(bounds: Sequence[Bound], artifact: str) -> tuple[Bound, ...]:
    """What is asked of one artifact, metric by metric; of one kind, the later bound wins.

    The default goes as soon as anything else is asked of its metric.
    """
    latest: dict[tuple[str, str], Bound] = {}
    for bound in bounds:
        if bound.artifact in (None, artifact):
            latest[bound.kind, bound.metric] = bound
    others = {bound.metric for bound in latest.values() if bound not in DEFAULTS}
    kept = [b for b in latest.values() if b not in DEFAULTS or b.metric not in others]
    return tuple(
        sorted(
            kept, key=lambda b: (_FAMILIES.index(family(b.metric)), b.metric, KINDS.index(b.kind))
        )
    )


def named(bounds: Sequence[Bound], artifacts: Sequence[str], model_id: str) -> tuple[Bound, ...]:
    """The bounds with full artifact names.

    Raises:
        InvalidOptionError: If a bound is for an artifact that is not there.
    """
    return tuple(
        replace(b, artifact=full_name(b.artifact, artifacts, model_id, f"{b.source}: in {b.kind}"))
        for b in bounds
    )


def full_name(name: str | None, artifacts: Sequence[str], model_id: str, where: str) -> str | None:
    """An artifact's name; tables leave out the model's, and so may a bound.

    Raises:
        InvalidOptionError: If no such artifact is there.
    """
    if name is None or name in artifacts:
        return name
    if f"{model_id}-{name}" in artifacts:
        return f"{model_id}-{name}"
    raise InvalidOptionError(
        f"{where}: unknown artifact {name!r}; expected one of {', '.join(artifacts)}"
        f"{words.near(name, artifacts)}"
    )


_HELP: dict[Kind, str] = {
    "min": "least value of a metric, e.g. top1=93",
    "max": "largest value of a metric, e.g. size=700000",
    "max-drop": "how much worse than the baseline a metric may be, e.g. top1=0.5, "
    "'agreement=1 %%', mine-int8:top1=1 (default: top1=0.5 points; without it r2, map or "
    "miou=0.5 points, or sqnr_centred=3 dB)",
    "max-rise": "the same for metrics where lower is better, e.g. size=20000",
}


def add_bounds(parser: argparse.ArgumentParser) -> None:
    """``--baseline``, and ``--min``, ``--max``, ``--max-drop``, ``--max-rise`` as ``bounds``."""
    add = parser.add_argument
    add("--baseline", type=Path, metavar="FILE", help="a report that was accepted before")
    for kind, text in _HELP.items():
        add(
            f"--{kind}",
            type=_argument(kind),
            action="append",
            default=[],
            dest="bounds",
            metavar="[ARTIFACT:]NAME=VALUE",
            help=f"{text}; repeatable",
        )


def _argument(kind: Kind) -> Callable[[str], Bound]:
    """An argparse type: a bound of one kind."""

    def read_argument(text: str) -> Bound:
        try:
            return parse(kind, text)
        except InvalidOptionError as exc:
            raise argparse.ArgumentTypeError(str(exc)) from None

    return read_argument


def load(path: Path | None = None, *, start: Path | None = None) -> Config:
    """Read ``[tool.edgekit.gate]``.

    Args:
        path: The file; None looks for a pyproject.toml with that table, from ``start`` upward.
        start: The folder where the search begins; default the current one.

    Raises:
        InvalidInputError: If the file is missing, is no TOML, or lacks the table.
        InvalidOptionError: If the table holds what is not known.
    """
    if path is not None:
        table = _table(path)
        if table is None:
            raise InvalidInputError(f"{path} has no table [{TABLE}]; add it or leave --config out")
        return _config(path, table)
    folder = (start or Path.cwd()).absolute()
    for place in (folder, *folder.parents):
        file = place / "pyproject.toml"
        if file.is_file():
            shown = Path(os.path.relpath(file))
            table = _table(shown)
            if table is not None:
                return _config(shown, table)
    return Config()


def _table(path: Path) -> Mapping[str, Any] | None:
    import tomllib

    try:
        table: Any = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InvalidInputError(
            f"{words.not_found(path)}; expected a TOML file with [{TABLE}]"
        ) from None
    except IsADirectoryError:
        raise InvalidInputError(f"{path} is a folder; expected a file with [{TABLE}]") from None
    except (ValueError, RecursionError) as exc:  # ValueError: no UTF-8, no TOML, too many digits
        raise InvalidInputError(f"{path} is not valid TOML ({exc}); correct it") from None
    for key in TABLE.split("."):
        if not isinstance(table, dict):
            raise InvalidOptionError(f"{path}: expected tables [{TABLE}], got {key} in a value")
        if key not in table:
            return None
        table = table[key]
    if not isinstance(table, dict):
        raise InvalidOptionError(f"{path}: expected {TABLE} to be a table, got {table!r}")
    return table


def _config(path: Path, table: Mapping[str, Any]) -> Config:
    known = ("report", "baseline", *KINDS, _ALLOW_DEAD, "artifact")
    _check_keys(path, table, known, TABLE)
    bounds = _bounds(path, table, None)
    dead: set[str | None] = {None} if _allows_dead(path, table, TABLE) else set()
    artifacts = _subtable(path, table, "artifact", TABLE)
    for name in artifacts:
        place = f"{TABLE}.artifact.{name!r}"
        of_one = _subtable(path, artifacts, name, f"{TABLE}.artifact")
        _check_keys(path, of_one, (*KINDS, _ALLOW_DEAD), place)
        bounds += _bounds(path, of_one, name)
        if _allows_dead(path, of_one, place):
            dead.add(name)
    files: dict[str, Path | None] = {}
    for key in ("report", "baseline"):
        value = table.get(key)
        if value is not None and not (isinstance(value, str) and value and "\0" not in value):
            raise InvalidOptionError(f"{path}: expected {key} to be a path, got {value!r}")
        files[key] = None if value is None else path.parent / value
    return Config(path, files["report"], files["baseline"], once(bounds), frozenset(dead))


_ALLOW_DEAD = "allow-dead"


def _allows_dead(path: Path, table: Mapping[str, Any], where: str) -> bool:
    allowed = table.get(_ALLOW_DEAD, False)
    if not isinstance(allowed, bool):
        raise InvalidOptionError(
            f"{path}: expected {_ALLOW_DEAD} of {where} to be true or false, got {allowed!r}"
        )
    return allowed


def _bounds(path: Path, table: Mapping[str, Any], artifact: str | None) -> list[Bound]:
    bounds = []
    for kind in KINDS:
        for metric, value in _subtable(path, table, kind, TABLE).items():
            try:
                if isinstance(value, dict):
                    example = next(iter(value), "NAME")
                    raise InvalidOptionError(
                        f"{kind} {metric}: expected a number, got a table; write the name of a "
                        f'metric of a part in quotes, as {kind}."{metric}:{example}" = 60'
                    )
                bounds.append(read(kind, metric, value, artifact=artifact, source=str(path)))
            except InvalidOptionError as exc:
                of = "" if artifact is None else f"artifact {artifact!r}: "
                raise InvalidOptionError(f"{path}: {of}{exc}") from None
    return bounds


def _subtable(path: Path, table: Mapping[str, Any], key: str, where: str) -> dict[str, Any]:
    subtable = table.get(key, {})
    if not isinstance(subtable, dict):
        raise InvalidOptionError(
            f"{path}: expected {where}.{key} to be a table as {key}.top1 = 0.5, got {subtable!r}"
            if key in KINDS
            else f"{path}: expected {where}.{key} to be a table, got {subtable!r}"
        )
    return cast(dict[str, Any], subtable)


def _check_keys(path: Path, table: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    for key in table:
        if key not in known:
            raise InvalidOptionError(
                f"{path}: unknown key {key!r} in {where}; expected one of {', '.join(known)}"
                f"{words.near(key, known)}"
            )
