"""``python -m edgekit.data``: look at images before a model does, and at how the two fit.

``describe`` counts classes, sizes, colours, duplicates and what cannot be read, with a second set
also the pictures that are in both; ``--sheet`` draws a contact sheet. ``check`` runs a model on
images and names the classic mistakes: scaling, RGB for BGR, classes off by one, no softmax; exit
status 1 if it finds one.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from edgekit import cli, data, mistakes, outputs, words
from edgekit.artifact import Artifact
from edgekit.data import describe as descriptions
from edgekit.errors import InvalidDataError, InvalidOptionError
from edgekit.formats import float_model, saved_model
from edgekit.runtimes.worker import Job, Worker
from edgekit.signature import PREPROCESSING_NAMES, Shapes, preprocessing

_SHOWN = 20


@dataclass(frozen=True)
class Checked:
    """What ``check`` found.

    Attributes:
        sha256: Of the images as the model got them, and their labels.
    """

    model: str
    data: str
    sha256: str
    images: int
    findings: tuple[mistakes.Finding, ...]


def check(
    model: Path,
    *,
    dataset: str,
    prepare: str | None = None,
    limit: int | None = None,
    shapes: Shapes | None = None,
) -> Checked:
    """Look for classic mistakes between a model and images.

    Args:
        model: An artifact, or another file or folder that export takes, with ``prepare``.
        dataset: What :func:`edgekit.data.open_word` takes, with labels.
        prepare: Preprocessing of what is no artifact.
        limit: The first images only.
        shapes: Sizes of a file's input with free axes, by name; under ``""`` of the only one.

    Raises:
        EdgekitError: If model and images cannot be used.
    """
    opened = data.open_word(dataset, "test")
    job, names = _job(model, prepare, shapes or {})
    with Worker(job) as worker:
        shape = worker.loaded.input_shape
        images = opened.load(shape=shape, prepare=job.preprocessing, class_names=names, limit=limit)
        misfit = worker.loaded.misfit(job.name, images.images)
        if misfit:
            raise InvalidDataError(f"{images.name}: {misfit}")
        if images.labels is None:
            raise InvalidDataError(f"{images.name}: checking needs labels")
        classes = worker.outputs(images.images[:1]).shape[-1]
        mistakes.check_range(images.name, images.labels, classes)
        found = mistakes.find(worker.outputs, images.images, images.labels, job.preprocessing)
    return Checked(str(model), images.name, images.sha256, len(images), tuple(found))


def _job(model: Path, prepare: str | None, shapes: Shapes) -> tuple[Job, tuple[str, ...]]:
    if model.is_dir() and not saved_model.is_saved_model(model):
        for option, given in (("--preprocessing", prepare), ("--shape", shapes)):
            if given:
                raise InvalidOptionError(
                    f"{model} is an artifact, which brings it; give {option} only with a file"
                )
        artifact = Artifact.load(model)
        return Job.of(artifact, threads=1), artifact.manifest.class_names
    if model.exists() and prepare is None:
        raise InvalidOptionError(
            f"{model} does not say how its input is made; pass --preprocessing "
            f"{'|'.join(PREPROCESSING_NAMES)}|FILE.json"
        )
    if not model.exists():
        raise InvalidOptionError(f"{words.not_found(model)}; expected an artifact or a float model")
    kind = float_model.kind_of(model)
    prepared = preprocessing(prepare or "")
    return Job(model.stem, model, kind, prepared, 1, {}, shapes=shapes), ()


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
        help="what is in a set of images",
        description="Say what is in a set: classes, sizes, colours, duplicates, broken files.",
    )
    look.add_argument("data", metavar="IMAGES", help=f"{data.WORDS}; or a folder")
    look.add_argument(
        "other", nargs="?", metavar="OTHER", help="another set, which must share no image with it"
    )
    look.add_argument("--limit", type=cli.positive_int, help="look at the first N pictures only")
    look.add_argument("--sheet", type=Path, metavar="FILE.png", help="draw some of the images")
    look.add_argument("--force", action="store_true", help="replace FILE.png if it exists")
    fit = actions.add_parser(
        "check",
        help="whether a model and images fit",
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
    fit.add_argument("--limit", type=cli.positive_int, help="use the first N images only")
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
    opened = data.open_word(options.data, "calibration")
    other = None if options.other is None else data.open_word(options.other, "calibration")
    found = descriptions.survey(opened, limit=options.limit, pictures=out is not None)
    against = None if other is None else descriptions.survey(other)
    description = descriptions.describe(found, against)
    if out is not None:
        outputs.write_bytes(out, descriptions.sheet(found), force=options.force)
    _print(description)
    return 0, {"description": description, "sheet": None if out is None else str(out)}


def _print(found: descriptions.Description) -> None:
    table = Table(title=cli.plain(f"{found.data}, {found.images:,} images"), show_header=False)
    table.add_column("what", no_wrap=True)
    table.add_column("found", overflow="fold")

    def listed(counts: dict[str, int]) -> str:
        more = len(counts) - _SHOWN
        shown = [f"{name} {count:,}" for name, count in list(counts.items())[:_SHOWN]]
        return ", ".join(shown) + (f" and {more} more" if more > 0 else "")

    rows = {
        "classes": listed(found.classes) or "no labels",
        "balance": "-" if found.balance is None else f"{found.balance:.3f} (1: even)",
        "sizes": listed(found.sizes),
        "formats": listed(found.formats),
        "modes": listed(found.modes),
        "turned, transparent, animated": f"{found.turned}, {found.transparent}, {found.animated}",
        "mean of R, G, B": _numbers(found.mean),
        "std of R, G, B": _numbers(found.std),
        "unreadable": str(found.unreadable.count),
        "not pictures": str(found.skipped.count),
        "duplicates": f"{found.duplicates.count} groups, "
        f"{found.across_classes.count} across classes",
        "in the other set": "-" if found.leaked is None else str(found.leaked.count),
    }
    for name, value in rows.items():
        table.add_row(name, cli.plain(value))
    cli.console.print(table)
    for warning in found.warnings:
        cli.say(f"warning: {warning}")


def _numbers(values: Sequence[float]) -> str:
    unit = ", ".join(f"{value / 255:.4f}" for value in values)
    return f"{', '.join(f'{value:.2f}' for value in values)} of 255 ({unit} of 1)"


def _check(options: argparse.Namespace) -> cli.Outcome:
    found = check(
        options.model,
        dataset=options.data,
        prepare=options.preprocessing,
        limit=options.limit,
        shapes=float_model.shapes_of(options.shape),
    )
    for finding in found.findings:
        cli.say(f"{finding.kind}: {finding.said}")
    if not found.findings:
        tried = min(found.images, mistakes.IMAGES)
        cli.say(f"no classic mistake seen in {tried} of {found.images:,} images")
    return (1 if found.findings else 0), found


def _act(options: argparse.Namespace) -> cli.Outcome:
    return _describe(options) if options.action == "describe" else _check(options)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the verb."""
    return cli.run(parser(), _act, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
