"""``python -m edgekit.data``: look at images before a model sees them, and check that the two fit.

``describe`` counts classes, boxes or masks, sizes, colours, duplicates and files that cannot be
read. With a second set it also counts the pictures that are in both. ``--sheet`` draws a contact
sheet, with boxes or masks. ``check`` runs a classifier on images and names the classic mistakes:
scaling, RGB for BGR, classes that are off by one or in another order, labels that do not fit at
all. Exit status 1 means that it found one. It says so too if the scores are no probabilities, as a
hint.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.markup import escape
from rich.table import Table

from edgekit import data
from edgekit.base import cli, outputs, words
from edgekit.base.errors import InvalidDataError, InvalidOptionError
from edgekit.base.progress import SILENT, Progress
from edgekit.base.text import visible
from edgekit.data import describe as descriptions
from edgekit.evaluation import mistakes
from edgekit.records.artifact import Artifact, Manifest
from edgekit.records.results import LabelFit
from edgekit.records.signature import Shapes, preprocessing, unprepared
from edgekit.runtimes.worker import Job, Worker
from edgekit.sources import float_model, saved_model
from edgekit.tasks import kind as tasks

#: Sizes, formats and modes that are listed; classes.
_SHOWN, _LISTED = 6, 20
#: Images by whose classes labels are judged, at the most.
_LABELS = 1000


@dataclass(frozen=True)
class Checked:
    """What ``check`` found.

    Attributes:
        sha256: Of the images as the model got them, and their labels.
        fit: How often the model is right, and how often by chance.
    """

    model: str
    data: str
    sha256: str
    images: int
    findings: tuple[mistakes.Finding, ...]
    fit: LabelFit


def check(
    model: Path,
    *,
    dataset: str,
    prepare: str | None = None,
    limit: int | None = None,
    shapes: Shapes | None = None,
    progress: Progress = SILENT,
) -> Checked:
    """Look for classic mistakes between a model and images.

    Args:
        model: An artifact, or another file or SavedModel folder.
        dataset: What :func:`edgekit.data.open_word` takes, with labels.
        prepare: Preprocessing of what is no artifact; default ``none`` where no input is a picture.
        limit: The first images only.
        shapes: Sizes of a file's input with free axes, by name; under ``""`` of the only one.
        progress: Hears what loading the images says.

    Raises:
        EdgekitError: If model and images cannot be used.
    """
    opened = data.open_word(dataset, "test", progress=progress)
    job, manifest = _job(model, prepare, shapes or {})
    with Worker(job) as worker:
        if manifest is None and prepare is None:
            unprepared(model, worker.loaded.signature.inputs)
        shape = worker.loaded.input_shape
        specs = worker.loaded.signature.outputs
        classes = tasks.scores(specs)
        if not classes or (manifest is not None and manifest.task == "regression"):
            raise InvalidOptionError(
                f"{model}: expected scores of classes [N, classes] to check against labels, got "
                f"{tasks.in_words(specs)}"
            )
        names = tasks.numbered(classes) if classes > 1 else ()
        if manifest is not None:
            names = manifest.class_names or names
        images = opened.load(shape=shape, prepare=job.preprocessing, class_names=names, limit=limit)
        misfit = worker.loaded.misfit(job.name, images.images)
        if misfit:
            raise InvalidDataError(f"{images.name}: {misfit}")
        labels = images.labels
        if labels is None:
            raise InvalidDataError(f"{images.name}: checking needs labels")
        mistakes.check_range(images.name, labels, max(2, classes))
        return Checked(
            str(model),
            images.name,
            images.sha256,
            len(images),
            *_findings(worker, images.images, labels, names),
        )


def _findings(
    worker: Worker,
    images: npt.NDArray[Any],
    labels: npt.NDArray[np.int64],
    names: tuple[str, ...],
) -> tuple[tuple[mistakes.Finding, ...], LabelFit]:
    """Mistakes of preprocessing first; labels are looked at where none explains what is wrong."""

    def predict(values: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        return tasks.by_class(worker.outputs(values))

    step = worker.loaded.signature.outputs[0].scale
    findings = mistakes.find(predict, images, labels, worker.job.preprocessing, step=step)
    places = np.unique(np.linspace(0, len(images) - 1, _LABELS).astype(int))
    choices = predict(images[places]).argmax(axis=1)
    fit = mistakes.label_fit(choices, labels[places])
    if all(finding.hint for finding in findings):
        findings += mistakes.renumbered(choices, labels[places], names)
    if all(finding.hint for finding in findings):
        findings += mistakes.of_fit(fit, len(places))
    return tuple(findings), fit


def _job(model: Path, prepare: str | None, shapes: Shapes) -> tuple[Job, Manifest | None]:
    if model.is_dir() and not saved_model.is_saved_model(model):
        for option, value in (("--preprocessing", prepare), ("--shape", shapes)):
            if value:
                raise InvalidOptionError(
                    f"{model} is an artifact, which has its own; give {option} only with a file"
                )
        artifact = Artifact.load(model)
        return Job.of(artifact, threads=1), artifact.manifest
    if not model.exists():
        raise InvalidOptionError(f"{words.not_found(model)}; expected an artifact or a float model")
    kind, named = float_model.kind_of(model), preprocessing(prepare or "none")
    return Job(model.stem, model, kind, named, 1, {}, shapes=shapes), None


def parser() -> cli.Parser:
    """Options of ``python -m edgekit.data``."""
    result = cli.Parser(
        "data",
        description="Describe a set of images; check that a model and images fit.",
        examples="""
python -m edgekit.data describe folder:photos --sheet photos.png
# and what is in both:
python -m edgekit.data describe folder:test folder:train
python -m edgekit.data check build/mine-int8 --data folder:test
python -m edgekit.data check mine.keras \\
    --preprocessing symmetric#channels=bgr --data test.npz
""",
    )
    kind: Any = _sub_parser
    actions = result.add_subparsers(
        dest="action", required=True, metavar="ACTION", parser_class=kind
    )
    look = actions.add_parser(
        "describe",
        help="say what is in a set of images",
        description="Say what is in a set: classes, boxes or masks, sizes, colours, duplicates, "
        "broken files.",
    )
    look.add_argument("data", metavar="IMAGES", help=f"{data.WORDS}; or a folder")
    look.add_argument(
        "other", nargs="?", metavar="OTHER", help="another set, which must share no image with it"
    )
    look.add_argument("--limit", type=words.positive_int, help="use the first N pictures only")
    look.add_argument("--sheet", type=Path, metavar="FILE.png", help="draw some of the images")
    look.add_argument("--force", action="store_true", help="replace FILE.png if it exists")
    fit = actions.add_parser(
        "check",
        help="say whether a model and images fit",
        description="Look for classic mistakes between a model and images: scaling, order of "
        "colours, numbering of classes. Exit status 1 if one is seen.",
    )
    fit.add_argument("model", type=Path, metavar="MODEL", help="artifact folder or a float model")
    fit.add_argument("--data", required=True, metavar="IMAGES", help=data.WORDS)
    fit.add_argument(
        "--preprocessing",
        metavar="NAME|FILE.json",
        help="for a file: how pixels become its input, as `edgekit export` takes it",
    )
    float_model.add_shape(fit)
    fit.add_argument("--limit", type=words.positive_int, help="use the first N images only")
    return result


def _sub_parser(**options: Any) -> cli.Parser:
    verb = str(options["prog"]).removeprefix("edgekit ")
    examples = {
        "describe": "python -m edgekit.data describe folder:photos --sheet photos.png",
        "check": "python -m edgekit.data check build/mine-int8 --data folder:test",
    }
    word = verb.split()[-1]
    return cli.Parser(verb, description=options["description"], examples=examples[word])


def _describe(options: argparse.Namespace) -> cli.Outcome:
    out: Path | None = options.sheet
    if out is not None:
        if out.suffix.lower() != ".png":
            raise InvalidOptionError(f"expected --sheet as FILE.png, got {out}")
        outputs.check_free(out, force=options.force)
    opened, *others = (
        data.open_word(word, "calibration", progress=cli.reporter)
        for word in (options.data, options.other)
        if word is not None
    )
    survey = descriptions.survey(opened, limit=options.limit, pictures=out is not None)
    against = descriptions.survey(others[0]) if others else None
    description = descriptions.describe(survey, against)
    if out is not None:
        outputs.write_bytes(out, descriptions.sheet(survey), force=options.force)
    _print(description)
    return 0, {"description": description, "sheet": None if out is None else str(out)}


def _print(about: descriptions.Description) -> None:
    table = Table(title=cli.plain(f"{about.data}, {about.images:,} images"), show_header=False)
    table.add_column("what", no_wrap=True)
    table.add_column("found", overflow="fold")

    def listed(counts: dict[str, int]) -> str:
        more = len(counts) - _SHOWN
        shown = [f"{name} {count:,}" for name, count in list(counts.items())[:_SHOWN]]
        return ", ".join(shown) + (f" and {more} more" if more > 0 else "")

    rows = {
        **_content(about),
        "sizes": listed(about.sizes),
        "formats": listed(about.formats),
        "modes": listed(about.modes),
        "turned, transparent, animated": f"{about.turned}, {about.transparent}, {about.animated}",
        "mean of R, G, B": _numbers(about.mean),
        "std of R, G, B": _numbers(about.std),
        "unreadable": str(about.unreadable.count),
        "not pictures": str(about.skipped.count),
        "duplicates": f"{about.duplicates.count} groups, "
        f"{about.across_classes.count} across classes",
        "in the other set": "-" if about.leaked is None else str(about.leaked.count),
    }
    for name, value in rows.items():
        table.add_row(name, escape(value))
    cli.console.print(table)
    for warning in about.warnings:
        cli.say(f"warning: {warning}")


def _content(about: descriptions.Description) -> dict[str, str]:
    """Rows of classes, boxes or masks."""
    objects = about.objects
    if objects is None:
        return {
            "classes": _classes(about.classes),
            "balance": "-" if about.balance is None else f"{about.balance:.3f} (1: even)",
        }
    several = [
        f"{objects.boxes[name]:,} {visible(name)} in {pictures:,} images"
        if objects.boxes
        else f"{objects.pixels[name]:.2f} % {visible(name)} in {pictures:,} images"
        for name, pictures in list(objects.pictures.items())[:_LISTED]
    ]
    more = len(objects.pictures) - _LISTED
    several += [f"and {more:,} classes more"] if more > 0 else []
    if objects.void is not None:
        return {
            "pixels": "\n".join(several),
            "void": f"{objects.void:.2f} %",
            "of the first class only": f"{objects.empty:,} images",
        }
    sizes = ", ".join(f"{count:,} {name}" for name, count in objects.sizes.items())
    crowds = f", {objects.crowds:,} crowds" if objects.crowds else ""
    return {
        "boxes": "\n".join([f"{sum(objects.boxes.values()):,}{crowds}", *several]),
        "sizes of boxes": f"{sizes} (below 32 x 32 pixels, 96 x 96, larger)",
        "without any box": f"{objects.empty:,} images",
    }


def _classes(counts: dict[str, int]) -> str:
    """How many classes, of how many images; a line each where there are few and they differ."""
    if not counts:
        return "no labels"
    least, most = min(counts.values()), max(counts.values())
    each = f"{most:,} each" if least == most else f"{least:,} to {most:,} each"
    lines = [f"{len(counts):,}, {each}"]
    if least != most:
        lines += [f"{count:,} {visible(name)}" for name, count in list(counts.items())[:_LISTED]]
        more = len(counts) - _LISTED
        lines += [f"and {more:,} classes more"] if more > 0 else []
    return "\n".join(lines)


def _numbers(values: Sequence[float]) -> str:
    unit = ", ".join(f"{value / 255:.4f}" for value in values)
    return f"{', '.join(f'{value:.2f}' for value in values)} of 255 ({unit} of 1)"


def _check(options: argparse.Namespace) -> cli.Outcome:
    checked = check(
        options.model,
        dataset=options.data,
        prepare=options.preprocessing,
        limit=options.limit,
        shapes=float_model.shapes_of(options.shape),
        progress=cli.reporter,
    )
    for finding in checked.findings:
        cli.say(f"{'hint: ' if finding.hint else ''}{finding.kind}: {finding.said}")
    bad = [finding for finding in checked.findings if not finding.hint]
    if not bad:
        tried = min(checked.images, _LABELS)
        cli.say(
            f"no classic mistake seen in {tried:,} of {checked.images:,} images; "
            f"{checked.fit.accuracy:.1f} % are right, {checked.fit.chance:.1f} % would be by chance"
        )
    return (1 if bad else 0), checked


def _act(options: argparse.Namespace) -> cli.Outcome:
    return _describe(options) if options.action == "describe" else _check(options)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the verb."""
    return cli.run(parser(), _act, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
