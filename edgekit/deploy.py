"""``python -m edgekit.deploy``: from a float model to deployables that are proved, in one command.

The verb writes every target in every precision, as ``export`` does: the model is loaded, converted
and quantized once. Then it compares all files with the float model on test data, writes the page,
and judges the report by bounds and a baseline. Everything is in one folder:
``OUT/MODEL_ID-TARGET-PRECISION/``, ``OUT/report.json`` and ``OUT/report.html``.

``[tool.edgekit.deploy]`` of the nearest pyproject.toml that has it keeps the options of a project:
``model``, ``preprocessing``, ``calibration``, ``data``, ``target``, ``precision``, ``device``,
``layout``, ``recipe``, ``task``, ``decoding`` and ``out``. The command line overrides them. Bounds
and the baseline come from ``[tool.edgekit.gate]``, as the gate reads them. Exit status 1 means that
a deployable is dead or poor, or misses a bound. An int8 file that is not worth writing is named and
left out: the others are written, compared and judged, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import itertools
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from edgekit import data
from edgekit.base import cli, outputs, words
from edgekit.base.errors import FidelityError, InvalidInputError, InvalidOptionError
from edgekit.evaluation import functions, verdicts
from edgekit.evaluation.comparison import compare
from edgekit.evaluation.options import Options as CompareOptions
from edgekit.gating import bounds as grammar
from edgekit.gating.checks import Check
from edgekit.gating.gate import check_answerable, gate
from edgekit.pipeline import recipe as recipes
from edgekit.pipeline.exporting import TARGETS, export_all, usual_targets
from edgekit.pipeline.options import Options as ExportOptions
from edgekit.pipeline.recipe import RecipeFile
from edgekit.quantization import profiles
from edgekit.records.artifact import Artifact
from edgekit.records.results import Report
from edgekit.records.schemes import PRECISIONS, SCHEMES, USUAL
from edgekit.records.signature import Layout
from edgekit.reporting import gate_table, tables
from edgekit.reporting.page import report as page_of
from edgekit.sources import float_model
from edgekit.tasks import presets
from edgekit.tasks.kind import HELP as TASK_HELP
from edgekit.tasks.kind import TASKS, Task

__all__ = ["Settings", "main", "parser", "settings"]

TABLE = "tool.edgekit.deploy"


@dataclass(frozen=True)
class Settings:
    """``[tool.edgekit.deploy]`` of one pyproject.toml; None where it says nothing.

    Attributes:
        model: Its path, from the file's folder.
        out: Likewise.
        recipe: Likewise.
    """

    model: Path | None = None
    preprocessing: str | None = None
    calibration: str | None = None
    data: str | None = None
    target: tuple[str, ...] | None = None
    precision: tuple[str, ...] | None = None
    device: str | None = None
    layout: Layout | None = None
    out: Path | None = None
    recipe: Path | None = None
    task: Task | None = None
    decoding: str | None = None


def settings(start: Path | None = None) -> Settings:
    """Read the table of the nearest pyproject.toml that has it, from ``start`` upward.

    Raises:
        InvalidInputError: If the file is no TOML.
        InvalidOptionError: If the table holds what is not known.
    """
    folder = (start or Path.cwd()).absolute()
    for place in (folder, *folder.parents):
        path = place / "pyproject.toml"
        if not path.is_file():
            continue
        try:
            table: Any = tomllib.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as exc:
            raise InvalidInputError(f"{path} is not valid TOML ({exc}); correct it") from None
        for key in TABLE.split("."):
            table = table.get(key) if isinstance(table, dict) else None
        if table is not None:
            return _read(path, table)
    return Settings()


def _read(path: Path, table: Any) -> Settings:
    if not isinstance(table, dict):
        raise InvalidOptionError(f"{path}: expected {TABLE} to be a table, got {table!r}")
    known = [field.name for field in fields(Settings)]
    read: dict[str, Any] = {}
    for key, value in table.items():
        if key not in known:
            raise InvalidOptionError(
                f"{path}: unknown key {key!r} in {TABLE}; expected one of {', '.join(known)}"
                f"{words.near(key, known)}"
            )
        several = key in ("target", "precision")
        listed = [value] if several and isinstance(value, str) else value
        if several and not (isinstance(listed, list) and listed and all(map(_is_word, listed))):
            raise InvalidOptionError(f"{path}: expected {key} to be a list of words, got {value!r}")
        if not several and not _is_word(value):
            raise InvalidOptionError(f"{path}: expected {key} to be text, got {value!r}")
        read[key] = tuple(listed) if several else value
    if (task := read.get("task")) is not None and task not in TASKS:
        raise InvalidOptionError(
            f"{path}: expected task as one of {', '.join(TASKS)}, got {task!r}"
            f"{words.near(task, TASKS)}"
        )
    for key in ("model", "out", "recipe"):
        if key in read:
            read[key] = path.parent / read[key]
    return Settings(**read)


def _recipe(path: Path | None) -> RecipeFile | None:
    """The recipe of a path.

    Raises:
        InvalidOptionError: If it has a budget.
    """
    if path is None:
        return None
    found = recipes.load(path)
    if found.recipe.budget is not None:
        raise InvalidOptionError(
            f"--recipe: {path} has a budget, and deploy searches for no mixture; let `python -m "
            f"edgekit.export --recipe {path} --validation IMAGES --write-recipe FILE.toml` search, "
            f"and take the recipe that it writes"
        )
    return found


def _is_word(value: object) -> bool:
    return isinstance(value, str) and bool(value) and "\0" not in value


def parser() -> cli.Parser:
    """Options of ``python -m edgekit.deploy``."""
    result = cli.Parser(
        "deploy",
        description="Write, compare, report and judge all deployables of a float model. "
        "Exit status: 0 good, 1 one is dead, poor or misses a bound, 2 bad input.",
        examples="""
python -m edgekit.deploy  # all from [tool.edgekit.deploy]
python -m edgekit.deploy --target tflite,onnx --precision float32,int8 \\
    --out build/shipped
python -m edgekit.deploy mine.keras --preprocessing symmetric \\
    --calibration folder:train --data folder:test \\
    --max-drop top1=0.5 --out build/mine
""",
    )
    float_model.add_arguments(result)
    float_model.add_shape(result)
    float_model.add_layout(result)
    float_model.add_trust(result)
    add = result.add_argument
    add("--data", metavar="IMAGES", help=f"test images or samples: {data.WORDS}")
    add("--calibration", metavar="IMAGES", help="for int8: images that show which values occur")
    add(
        "--target",
        type=cli.several(TARGETS),
        metavar="TARGET[,TARGET]",
        help=f"what is written: {', '.join(TARGETS)} (default: tflite,onnx)",
    )
    add(
        "--precision",
        type=cli.several(PRECISIONS),
        metavar="PRECISION[,PRECISION]",
        help=f"precisions of the numbers, of {', '.join(PRECISIONS)} (default: those of "
        f"{', '.join(USUAL)} that the device takes)",
    )
    add(
        "--device",
        choices=profiles.NAMES,
        help="device that the files will run on (default: generic)",
    )
    add(
        "--recipe",
        type=Path,
        metavar="FILE.toml",
        help="how integers are chosen, as `edgekit export --recipe` takes it; without a budget",
    )
    add("--task", choices=TASKS, help=TASK_HELP)
    add(
        "--decoding",
        metavar="NAME|FILE",
        help=f"{presets.HELP}; an artifact of a detector has its own",
    )
    functions.add_metric(result)
    add("--limit", type=words.positive_int, help="compare on the first N images only")
    add(
        "--rounds",
        type=words.positive_int,
        default=10,
        help="rounds in which latency is measured (default: %(default)s)",
    )
    add(
        "--no-latency",
        action="store_const",
        dest="rounds",
        const=0,
        help="measure no latency and no energy, which takes less time",
    )
    add("--parity", action="store_true", help="also compare the numbers of the two int8 files")
    grammar.add_bounds(result)
    add("--out", type=Path, metavar="FOLDER", help="folder for all files that are written")
    add("--force", action="store_true", help="replace what is in FOLDER")
    return result


def _act(options: argparse.Namespace) -> cli.Outcome:
    table, judged = settings(), grammar.load()
    out = options.out or table.out
    if out is None:
        raise InvalidOptionError(f"expected --out FOLDER, or out in [{TABLE}]; got neither")
    named = options.model is not None
    model = options.model or table.model
    recipe = _recipe(options.recipe or (None if named else table.recipe))
    device = options.device or table.device
    chosen = ExportOptions(device=device or profiles.DEFAULT)
    if recipe is not None:
        chosen = recipe.applied(chosen, typed=["device"] if device else [])
    profile = profiles.profile(chosen.device)
    targets = options.target or table.target or usual_targets(profile)
    precisions = options.precision or table.precision
    if precisions is None:
        precisions = [
            each
            for each in USUAL
            if all(each in profile.precisions.get(target, ()) for target in targets)
        ]
    judged_ones = any(each in SCHEMES and SCHEMES[each].integers for each in precisions)
    bounds = (*judged.bounds, *grammar.once(options.bounds))
    baseline = options.baseline or judged.baseline
    if named or baseline is None or not baseline.exists():
        baseline = options.baseline
    if bounds:
        check_answerable(bounds, baseline is not None)
    files = {name: out / name for name in ("report.json", "report.html")}
    for file in files.values():
        outputs.check_free(file, force=options.force)
    layout = options.layout or (None if named else table.layout) or ""
    test = float_model.data_word(options.data or table.data, model)
    written = replace(
        chosen,
        calibration=(options.calibration or table.calibration) if judged_ones else None,
        device=profile.name,
        preprocessing=options.preprocessing or (None if named else table.preprocessing),
        shapes=float_model.shapes_of(options.shape),
        layout=layout,
        task=options.task or (None if named else table.task),
        decoding=options.decoding or (None if named else table.decoding),
        trust=options.trust,
        command=cli.command_line(),
    )
    refused: FidelityError | None = None
    try:
        artifacts = export_all(
            model,
            written,
            targets=targets,
            precisions=precisions,
            out=out,
            force=options.force,
            progress=cli.reporter,
        )
    except FidelityError as exc:
        if not exc.written:
            raise
        refused, artifacts = exc, tuple(map(Artifact.load, exc.written))
        cli.say(f"not written: {exc.what}; {exc.fix}")
    name = artifacts[0].manifest.model_id
    asked_for = ["-".join((name, *each)) for each in itertools.product(targets, precisions)]
    good = {each.path.name for each in artifacts}
    missing = [each for each in asked_for if each not in good]
    pair = [each for each in artifacts if each.manifest.precision == "int8"]
    parity = options.parity and not (missing and len(pair) < 2)
    if options.parity and not parity:
        cli.say("--parity is left out, since it takes both int8 files")
    for each in artifacts:
        cli.say(f"{each.model_path}  {each.size:,} bytes")
    compared = CompareOptions(
        dataset=test,
        limit=options.limit,
        rounds=options.rounds,
        parity=parity,
        reference=model if model is not None and model.exists() else None,
        task=written.task,
        decoding=written.decoding,
        metric=options.metric,
        trust=options.trust,
        command=cli.command_line(),
    )
    report = compare([each.path for each in artifacts], compared, progress=cli.reporter)
    outputs.write_text(files["report.json"], report.dumps(), force=options.force)
    outputs.write_text(files["report.html"], page_of(report), force=options.force)
    tables.show(report)
    broken = {result.name: verdicts.of(result, report).broken for result in report.artifacts}
    failed = {name: how for name, how in broken.items() if how}
    checks: tuple[Check, ...] = ()
    bounds = tuple(
        bound
        for bound in bounds
        if bound.artifact not in missing and f"{name}-{bound.artifact}" not in missing
    )
    if bounds or baseline is not None:
        accepted = None if baseline is None else Report.load(baseline)
        checks = gate(report, baseline=accepted, bounds=bounds, allow_dead=judged.allow_dead)
        asked = (*grammar.DEFAULTS, *bounds)
        gate_table.show(checks, asked, report)
    for file in files.values():
        cli.say(str(file))
    if missing:
        cli.say(f"not written, as said above: {', '.join(missing)}")
    passed = not failed and not missing and all(check.verdict != "FAIL" for check in checks)
    return (0 if passed else 1), {
        "passed": passed,
        "artifacts": [str(each.path) for each in artifacts],
        "report": str(files["report.json"]),
        "page": str(files["report.html"]),
        "failed": failed,
        "refused": {} if refused is None else {"artifacts": missing, "why": refused.what},
        "checks": checks,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the verb."""
    return cli.run(parser(), _act, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
