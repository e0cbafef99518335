"""``python -m edgekit.gate``: judge a report by bounds; exit status 1 on a regression.

:mod:`edgekit.gating.bounds` describes the bounds: limits of the report alone (``min``, ``max``),
and how much worse than the baseline a metric may be (``max-drop``, ``max-rise``). Bounds come from
``[tool.edgekit.gate]`` of the nearest pyproject.toml that has it, and from the command line, which
overrides it. Without a bound on top-1, half a point is allowed, as in ``compare`` and on the page.
For a regression it is half a point of R^2, for a detector of mAP, for a segmentation network of
mIoU. For other outputs it is 3 dB of the SQNR of what varies, which is twice the power of the
error; above 100 dB every change is rounding. An artifact with a
dead channel fails with any bounds, unless ``allow-dead = true`` or ``--allow-dead`` is given.

A check fails when a value is beyond its bound. It also says whether the change is more than chance:
for top-1 by the 95 % interval from the images of both reports, for other metrics by whether the
intervals overlap: those of the changes against the float model, where both reports have them. An
artifact or metric of the baseline that the report lacks fails too. An improvement that is
significant or beyond the bound is shown as STALE: the baseline is too old, run ``--update``.
``--update`` prints what changes, metric by metric, and which bound allows it. A value beyond its
bound needs ``--accept REASON``, and the baseline keeps the reason. All updates together may lose no
more than one of them: the baseline keeps the values that were accepted first, and ``--origin``
names others (:mod:`edgekit.gating.review`).

A report on other data or of another model is refused with exit status 2, and so are metrics that
were measured against another reference. Latencies of two runs are not compared. latency_ratio is
compared if both runs have the same class of machine and number of threads, and neither is unstable;
otherwise it is refused. A report with NaN is broken, not worse: the strict reader of reports
refuses the file, also with exit status 2. The verb imports no framework.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from edgekit.base import cli, outputs, words
from edgekit.base.errors import InvalidOptionError, ReportError
from edgekit.base.text import visible
from edgekit.gating import bounds as grammar
from edgekit.gating import checks as judged
from edgekit.gating import ci, review
from edgekit.gating.bounds import Bound
from edgekit.gating.checks import Check
from edgekit.gating.gate import check_answerable, default_of, gate
from edgekit.records.results import Report
from edgekit.reporting import gate_table

__all__ = ["gate", "main", "parser"]


def parser() -> cli.Parser:
    """Options of ``python -m edgekit.gate``."""
    result = cli.Parser(
        "gate",
        description="Judge a report by bounds and a baseline. "
        "Exit status: 0 good, 1 regression, 2 bad input, 3 an error of edgekit's own.",
        examples="""
python -m edgekit.gate  # all from [tool.edgekit.gate] of pyproject.toml
python -m edgekit.gate report.json --baseline exports/baseline.json \\
    --max-drop top1=0.5
python -m edgekit.gate report.json --min top1=93 --max size=700000
python -m edgekit.gate report.json --baseline exports/baseline.json \\
    --max-drop agreement=1 --max-rise 'size=1 %' \\
    --max-drop mine-tflite-int8:top1=1
python -m edgekit.gate report.json --baseline baseline.json \\
    --max-drop map=0.5 --min map50=90 --max-drop 'map50:red car=2'
python -m edgekit.gate report.json --baseline exports/baseline.json \\
    --junit build/gate.xml --markdown build/gate.md
python -m edgekit.gate report.json --baseline exports/baseline.json \\
    --update
python -m edgekit.gate report.json --baseline exports/baseline.json \\
    --update \\
    --accept 'smaller model, 0.7 points of top-1 for half the size'
""",
    )
    add = result.add_argument
    add(
        "report",
        type=Path,
        nargs="?",
        metavar="REPORT",
        help="file that `edgekit compare --out` wrote",
    )
    grammar.add_bounds(result)
    add(
        "--config",
        type=Path,
        metavar="FILE",
        help="TOML file with [tool.edgekit.gate] (default: the nearest pyproject.toml with it)",
    )
    add("--junit", type=Path, metavar="FILE", help="write JUnit XML")
    add("--markdown", type=Path, metavar="FILE", help="write text for a pull-request comment")
    add(
        "--github",
        action="store_true",
        help="print annotations for GitHub (default where GITHUB_ACTIONS is true)",
    )
    add("--force", action="store_true", help="replace the files of --junit and --markdown")
    add("--update", action="store_true", help="write the report as the new baseline")
    add(
        "--accept",
        metavar="REASON",
        help="with --update: reason to accept values that miss a bound",
    )
    add(
        "--origin",
        type=Path,
        metavar="FILE",
        help="with --update: report that all updates together are compared with (default: the "
        "values that were accepted first, which the baseline keeps)",
    )
    add("--allow-dead", action="store_true", help="accept channels that are dead")
    return result


def _act(options: argparse.Namespace) -> cli.Outcome:
    config = grammar.load(options.config)
    path = options.report or config.report
    if path is None:
        raise InvalidOptionError(
            f"no report to judge; pass REPORT, or set report in [{grammar.TABLE}] of pyproject.toml"
        )
    baseline_path = options.baseline or config.baseline
    bounds = (*config.bounds, *grammar.once(options.bounds))
    dead = config.allow_dead | ({None} if options.allow_dead else set())
    if options.origin is not None and not options.update:
        raise InvalidOptionError(
            "--origin is the report that --update compares all updates with; pass both"
        )
    if options.update or options.accept is not None:
        target = _checked_update(options, baseline_path)
        report = Report.load(path)
        accepted = Report.load(target) if target.exists() else report
        asked = (*default_of(accepted, bounds), *bounds)
        return _update(report, target, asked, options.accept, dead, options.origin)
    if baseline_path is None:
        check_answerable(bounds, False)
    written = _outputs(options, [path, baseline_path, config.path])
    report = Report.load(path)
    if baseline_path is not None and not baseline_path.exists():
        raise ReportError(
            f"{words.not_found(baseline_path)}; expected an accepted report: make it from a report "
            f"that is good with `python -m edgekit.gate {path} --baseline {baseline_path} --update`"
        )
    baseline = None if baseline_path is None else Report.load(baseline_path)
    checks = gate(report, baseline=baseline, bounds=bounds, allow_dead=dead)
    gate_table.show(checks, (*grammar.DEFAULTS, *bounds), report)
    _say_unjudged(report)
    for word, option, file in (
        ("report", options.report, path),
        ("baseline", options.baseline, baseline_path),
    ):
        if option is None and file is not None:
            cli.say(f"{word} from {config.path}: {file}")
    for file, make in written.items():
        outputs.write_text(file, make(checks, model_id=report.model_id), force=options.force)
    _tell_github(checks, report.model_id, forced=options.github)
    passed = all(check.verdict != "FAIL" for check in checks)
    config_path = None if config.path is None else str(config.path)
    return (0 if passed else 1), {
        "passed": passed,
        "report": str(path),
        "baseline": None if baseline_path is None else str(baseline_path),
        "config": config_path,
        "checks": checks,
    }


def _checked_update(options: argparse.Namespace, baseline: Path | None) -> Path:
    if not options.update:
        raise InvalidOptionError("--accept is a reason for --update; pass both")
    if baseline is None:
        raise InvalidOptionError("--update writes a baseline; pass its path with --baseline FILE")
    if options.accept is not None and not options.accept.strip():
        raise InvalidOptionError("--accept needs a reason that a reviewer can read, got none")
    if options.junit or options.markdown:
        raise InvalidOptionError(
            "--update writes the baseline only; leave out --junit and --markdown"
        )
    return baseline


def _outputs(
    options: argparse.Namespace, inputs: Sequence[Path | None]
) -> dict[Path, Callable[..., str]]:
    """The files to write and what makes their text; refused where one would hit another file."""
    used = {os.path.realpath(path) for path in inputs if path is not None}
    files: dict[Path, Callable[..., str]] = {}
    for option, make in (("junit", ci.junit), ("markdown", ci.markdown)):
        path = getattr(options, option)
        if path is None:
            continue
        if os.path.realpath(path) in used:
            raise InvalidOptionError(
                f"--{option} {path} is another file of this command; choose another path"
            )
        used.add(os.path.realpath(path))
        outputs.check_free(path, force=options.force)
        files[path] = make
    return files


def _say_unjudged(report: Report) -> None:
    """A report of before has not looked for dead channels."""
    names = [result.name for result in report.artifacts if not result.fidelity]
    if names:
        cli.say(
            f"note: the report does not say whether channels are dead in {', '.join(names)}; "
            f"compare again"
        )


def _tell_github(checks: Sequence[Check], model_id: str, *, forced: bool) -> None:
    """Annotations to stdout, where GitHub reads them, and the Markdown to the step's summary."""
    if forced or os.environ.get("GITHUB_ACTIONS") == "true":
        for line in ci.commands(checks, model_id=model_id):
            print(line, flush=True)
    summary = os.environ.get("GITHUB_STEP_SUMMARY")
    if summary:
        try:
            ci.append(Path(summary), ci.markdown(checks, model_id=model_id))
        except OSError as exc:  # the verdict is not to be lost for it
            why = exc.strerror
            cli.say(f"warning: GITHUB_STEP_SUMMARY {summary}: {why}; no summary was written")


def _update(
    report: Report,
    path: Path,
    bounds: Sequence[Bound],
    reason: str | None,
    dead: Collection[str | None],
    named: Path | None,
) -> cli.Outcome:
    """Show what the new baseline changes; write it where that is allowed."""
    if not report.artifacts:
        raise ReportError("the report has no artifacts; a baseline needs at least one")
    exists = path.exists()
    baseline = Report.load(path) if exists else None
    origin: review.Origin | None = None if baseline is None else review.origin_of(baseline)
    if named is not None:
        other = Report.load(named)
        judged.judge(report, baseline=other, bounds=())  # refuses another model or other data
        origin = review.values_of(other)
    checks = judged.judge(report, baseline=baseline, bounds=bounds, allow_dead=dead)
    if origin is not None:
        failed = {(check.artifact, check.metric) for check in checks if check.verdict == "FAIL"}
        checks += tuple(
            check
            for check in review.creep(report, origin, bounds)
            if (check.artifact, check.metric) not in failed
        )
    changes = review.changes(report, baseline, checks)
    outside = [change for change in changes if change.outside]
    reason = None if reason is None else visible(reason.strip())
    gate_table.show_changes(changes, report.model_id)
    document: dict[str, Any] = {
        "changes": changes,
        "accepted": reason if outside else None,
        "checks": checks,
    }
    if outside and reason is None:
        cli.say(
            f"{path}: not updated, {len(outside)} of {len(changes)} changes are outside of their "
            f"bounds; correct them, or pass --accept REASON"
        )
        return 1, {"passed": False, "updated": None, **document}
    if outside:
        cli.say(
            f"{len(outside)} of {len(changes)} changes are outside of their bounds; "
            f"accepted: {reason}"
        )
    new = review.accept(report, baseline, outside, reason, origin)
    outputs.write_text(path, new.dumps(), force=exists)
    if exists:
        cli.say(f"{path}: updated, {len(changes)} changes; review them in git")
    else:
        cli.say(f"{path}: new baseline of {len(report.artifacts)} artifacts")
    return 0, {"passed": True, "updated": str(path), **document}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the verb."""
    return cli.run(parser(), _act, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
