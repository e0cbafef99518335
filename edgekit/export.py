"""``python -m edgekit.export``: turn a float model into a TFLite or ONNX artifact.

All targets are written from one canonical float graph, a float TFLite flatbuffer, so that tensor
names and folded weights are the same everywhere. An int8 file computes in integers. In TFLite the
inputs and outputs are integers too; in ONNX, pairs of QuantizeLinear and DequantizeLinear stand
between float32 inputs and outputs. Both files hold the same encodings and integers
(edgekit.quantization), chosen for the device that ``--device`` names.

The ONNX files of an ``.onnx`` source keep its own graph. The TFLite files take pictures with
channels last, and their outputs keep the axes of the source, unless ``--layout`` says otherwise. An
``.onnx`` source that is int8 already becomes int8 TFLite with the same integers.

An operator computes in float if it has no integer kernel, or if 8 bits cannot hold its values. Such
operators are listed. Every file is read back, loaded and run before it becomes an artifact: each
number has to be the one that the quantizer chose, and the manifest says which kernels ran.

Several targets and precisions, separated by commas, give one artifact for each combination. The
model is then loaded, converted, calibrated and quantized once.

``--max-drop`` and ``--min`` give int8 files a budget: the cheapest mixture of int8 and float
tensors that holds it is searched for on one half of the ``--validation`` samples, and proved on the
other (:mod:`edgekit.evaluation.budget`). A budget that is not held has exit status 1, and nothing
is written.

``--leave-float`` and ``--precision-of`` say which layers of int8 files stay float. ``--recipe``
takes that, the device, the methods and the budget from a TOML file
(:mod:`edgekit.pipeline.recipe`); options of the command line win over it, which the notes say.
``--write-recipe`` writes the recipe of the int8 files, with the layers that a budget's search found
in place of the budget: it gives the same files again.

An int8 file is judged on calibration samples that no method was chosen by. If an output or a
channel is dead, or an output has less than 10 dB, the exit status is 1 and the file is not written,
unless ``--allow-dead`` or ``--allow-poor`` is given. The other files of the same command are
written, and the error names them. After any other error nothing is written.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.table import Table

from edgekit import data
from edgekit.base import cli, outputs
from edgekit.base.errors import FidelityError, InvalidOptionError
from edgekit.evaluation.budget import COSTS, Budget, Kind, Mixture
from edgekit.graph.flatbuffer import short_name
from edgekit.pipeline import layers
from edgekit.pipeline import recipe as recipes
from edgekit.pipeline.exporting import TARGETS, export, export_all
from edgekit.pipeline.options import Options
from edgekit.pipeline.recipe import RecipeFile
from edgekit.quantization import profiles
from edgekit.quantization.quantize import CORRECTIONS
from edgekit.quantization.table import METHODS
from edgekit.records.artifact import Artifact, QuantizationRecord
from edgekit.records.schemes import PRECISIONS, SCHEMES
from edgekit.sources import float_model
from edgekit.tasks.kind import HELP as TASK_HELP
from edgekit.tasks.kind import TASKS
from edgekit.tasks.presets import HELP as DECODING_HELP

__all__ = ["Budget", "Mixture", "Options", "export", "export_all", "main", "parser"]


_BUDGETS: dict[Kind, str] = {
    "max-drop": "for int8: points that may be lost against the float model: top1=0.5 of right "
    "predictions, agreement=1 of predictions that are its own; as many tensors stay float as that "
    "takes",
    "min": "the same with the least value: agreement=99, top1=70, or sqnr=25 in dB",
}


def parser() -> cli.Parser:
    """Options of ``python -m edgekit.export``."""
    result = cli.Parser(
        "export",
        description="Turn a float model into an artifact: a folder with a TFLite or ONNX file.",
        examples="""
# the shipped model:
python -m edgekit.export --target tflite --precision int8
python -m edgekit.export --target onnx --precision float16 --out build/half
python -m edgekit.export --target tflite,onnx \\
    --precision float32,float16,int8 --out build/all
python -m edgekit.export --target onnx --precision int8 --device auto \\
    --strict --out build/here
python -m edgekit.export --target tflite,onnx --precision int8 \\
    --leave-float block1_project --leave-float 'block2_*' --out build/mixed
python -m edgekit.export --target tflite,onnx --precision int8 \\
    --recipe mixed.toml --out build/mixed
python -m edgekit.export mine.keras --preprocessing symmetric \\
    --target tflite --precision int8 --calibration images.npz \\
    --out build/mine
python -m edgekit.export mine.keras --preprocessing symmetric \\
    --target tflite,onnx --precision int8 --calibration folder:train \\
    --max-drop top1=0.5 --validation folder:valid --out build/held
python -m edgekit.export detector.onnx --shape 1,3,320,320 \\
    --preprocessing unit --target onnx --precision int8 \\
    --calibration images.npz --out build/detector
""",
    )
    float_model.add_arguments(result)
    float_model.add_shape(result)
    float_model.add_layout(result)
    float_model.add_trust(result)
    add = result.add_argument
    add(
        "--target",
        required=True,
        type=cli.several(TARGETS),
        metavar="TARGET[,TARGET]",
        help=f"format of the file, or several: {', '.join(TARGETS)}",
    )
    add(
        "--precision",
        required=True,
        type=cli.several(PRECISIONS),
        metavar="PRECISION[,PRECISION]",
        help=f"precision of the numbers in the file, or several: "
        f"{'; '.join(f'{name} ({each.about})' for name, each in SCHEMES.items())}",
    )
    add(
        "--calibration",
        metavar="IMAGES",
        help=f"for int8: images that show which values occur ({data.WORDS}), or TABLE.json, which "
        f"`edgekit calibrate` wrote; for onnx float16: images",
    )
    add(
        "--data",
        metavar="IMAGES",
        help="the images of TABLE.json, if they are not where the table says",
    )
    add(
        "--method",
        choices=METHODS,
        help="how a tensor's range is taken from its values (default: minmax, narrowed where what "
        "reads the tensor then loses less; or the table's)",
    )
    add(
        "--device",
        choices=profiles.NAMES,
        help=f"device that the file will run on; auto: this machine's CPU (default: "
        f"{profiles.DEFAULT})",
    )
    add(
        "--correction",
        choices=CORRECTIONS,
        help="for int8: auto tries several methods and keeps the one that is best on calibration "
        "images that were held out; none rounds to the nearest (default: auto)",
    )
    add(
        "--strict",
        action="store_true",
        help="for int8: refuse a model in which an operator computes in float",
    )
    add(
        "--leave-float",
        action="append",
        default=[],
        metavar="LAYER",
        help="for int8: let the output of a layer stay float, so that the layer and what reads it "
        "compute in float; a name that `compare --layers` prints, or a pattern such as 'block1_*'; "
        "repeatable",
    )
    add(
        "--precision-of",
        action="append",
        default=[],
        metavar="LAYER=PRECISION",
        help="for int8: precision of the output of a layer: float32, as --leave-float; "
        "float32-after, where all others keep the integers that they have without it; or int8, "
        "against a pattern before it; of several that name a layer the last one counts",
    )
    add(
        "--recipe",
        type=Path,
        metavar="FILE.toml",
        help="device, method, correction, budget and precisions of layers from a file; what is "
        "typed wins over it",
    )
    add(
        "--write-recipe",
        type=Path,
        metavar="FILE.toml",
        help="write the recipe that gives the int8 files again, also those of a budget",
    )
    for kind, text in _BUDGETS.items():
        add(
            f"--{kind}",
            action="append",
            default=[],
            metavar="METRIC=VALUE",
            help=text,
        )
    add(
        "--minimize",
        choices=COSTS,
        help="with --max-drop or --min: what the mixture of int8 and float costs least of: time of "
        "a run here, or size of the file (default: time)",
    )
    add(
        "--validation",
        metavar="IMAGES",
        help="with --max-drop or --min: images or samples, with labels for top1, that are no "
        "calibration samples; one half of them searches, the other proves",
    )
    add("--allow-dead", action="store_true", help="for int8: write a file with dead outputs")
    add("--allow-poor", action="store_true", help="for int8: write a file below 10 dB")
    add("--task", choices=TASKS, help=TASK_HELP)
    add("--decoding", metavar="NAME|FILE", help=DECODING_HELP)
    add(
        "--out",
        type=Path,
        metavar="FOLDER",
        help="artifact folder to write (default: exports/MODEL_ID-TARGET-PRECISION); with several "
        "targets or precisions, the folder in which each artifact gets that name",
    )
    add("--force", action="store_true", help="replace FOLDER, and FILE.toml, if it exists")
    return result


def _act(options: argparse.Namespace) -> cli.Outcome:
    recipe = None if options.recipe is None else recipes.load(options.recipe)
    how = _options(options, recipe)
    if options.write_recipe is not None:
        if not any(SCHEMES[each].ranges for each in options.precision):
            raise InvalidOptionError(
                f"--write-recipe is for int8; {options.precision[0]} has no ranges"
            )
        outputs.check_free(options.write_recipe, force=options.force)
    mix, sentences = _mixture(options, recipe)
    how = replace(how, overruled=(*how.overruled, *sentences))
    where: dict[str, Any] = {
        "out": options.out,
        "force": options.force,
        "mix": mix,
        "progress": cli.reporter,
    }
    targets, precisions = options.target, options.precision
    if len(targets) == len(precisions) == 1:
        written = export(options.model, how, target=targets[0], precision=precisions[0], **where)
        _print(written)
        return 0, {**_document(written), **_keep([written], how, options)}
    try:
        artifacts = export_all(options.model, how, targets=targets, precisions=precisions, **where)
    except FidelityError as exc:
        for path in exc.written:
            _print(Artifact.load(path))
        raise
    for written in artifacts:
        _print(written)
    documents = [_document(written) for written in artifacts]
    return 0, {"artifacts": documents, **_keep(artifacts, how, options)}


def _options(options: argparse.Namespace, recipe: RecipeFile | None) -> Options:
    """What was typed, and what the recipe says of the rest."""
    how = cli.gathered(
        Options,
        options,
        dataset=options.data,
        device=options.device or profiles.DEFAULT,
        correction=options.correction or "auto",
        leave_float=tuple(options.leave_float),
        precision_of=tuple(map(layers.parse, options.precision_of)),
        recipe=None,
        overruled=(),
        shapes=float_model.shapes_of(options.shape),
        command=cli.command_line(),
    )
    if recipe is not None:
        names = ("device", "method", "correction", "strict")
        how = recipe.applied(how, typed=[name for name in names if getattr(options, name)])
    profile = profiles.profile(how.device)
    if how.device == "auto":
        cli.console.print(f"device: {profile.name}, {profile.about}")
    return replace(how, device=profile.name)


def _keep(
    artifacts: Sequence[Artifact], how: Options, options: argparse.Namespace
) -> dict[str, str]:
    """Write the recipe that was asked for."""
    if options.write_recipe is None:
        return {}
    ranged = [each for each in artifacts if SCHEMES[each.manifest.precision].ranges]
    chosen = min(ranged, key=lambda each: each.manifest.precision != "int8")
    text = recipes.written(chosen, how)
    outputs.write_text(options.write_recipe, text, force=options.force)
    cli.say(f"recipe: {options.write_recipe}")
    return {"recipe": str(options.write_recipe)}


def _mixture(
    options: argparse.Namespace, recipe: RecipeFile | None
) -> tuple[Mixture | None, tuple[str, ...]]:
    """What holds the budget of the command line, or else of the recipe; and what the command line
    took the place of in the recipe, in sentences.

    Raises:
        InvalidOptionError: If it gives several, or validation samples without one.
    """
    typed = [
        Budget.parse(kind, text)
        for kind in _BUDGETS
        for text in getattr(options, kind.replace("-", "_"))
    ]
    if len(typed) > 1:
        raise InvalidOptionError(
            f"expected one budget, got {' and '.join(map(str, typed))}; leave out all but one"
        )
    budget = typed[0] if typed else None
    minimize, sentences = options.minimize, []
    if recipe is not None and recipe.recipe.budget is not None:
        kept, least = _budget_of(recipe), recipe.recipe.budget.minimize
        if budget not in (None, kept):
            sentences.append(f"{budget} takes the place of the recipe's {kept}")
        if minimize not in (None, least):
            sentences.append(f"--minimize {minimize} takes the place of the recipe's {least}")
        budget, minimize = budget or kept, minimize or least
    if budget is None:
        for option in ("validation", "minimize"):
            if (word := getattr(options, option)) is not None:
                raise InvalidOptionError(
                    f"--{option} {word} is for a budget; add --max-drop or --min, or leave it out"
                )
        return None, ()
    word = float_model.data_word(options.validation, options.model, option="--validation")
    mixture = Mixture(budget, word, minimize=minimize or "time", progress=cli.reporter)
    return mixture, tuple(sentences)


def _budget_of(recipe: RecipeFile) -> Budget:
    """The budget of a recipe that has one."""
    found = recipe.recipe.budget
    assert found is not None
    try:
        return Budget(found.kind, found.metric, found.value)
    except InvalidOptionError as exc:
        raise InvalidOptionError(f"{recipe.option}, budget: {exc}") from None


def _print(written: Artifact) -> None:
    manifest = written.manifest
    record, execution = manifest.quantization, manifest.execution
    if record is not None and manifest.device == "x86-avx2":
        _print_saturating(record)
    if SCHEMES[manifest.precision].integers and execution is not None:
        kernels = ", ".join(f"{count} {kind}" for kind, count in execution.kernels.items())
        cli.say(f"ran on {execution.provider}: {kernels}")
        if execution.own_kernels:
            own = ", ".join(f"{count} {kind}" for kind, count in execution.own_kernels.items())
            cli.say(f"on LiteRT's own kernels, as {execution.provider} takes none of them: {own}")
        for name in execution.floats:
            cli.say(f"computes in float: {name}")
        if execution.floats and SCHEMES[manifest.precision].ranges:
            cli.say(f"its share of the time: python -m edgekit.benchmark {written.path}")
    for note in manifest.notes:
        cli.say(f"note: {note}")
    cli.say(f"{written.model_path}  {written.size:,} bytes")


def _document(written: Artifact) -> dict[str, object]:
    return {
        "artifact": str(written.path),
        "model": str(written.model_path),
        "sha256": written.sha256,
        "bytes": written.size,
        "device": written.manifest.device,
        "quantization": written.manifest.quantization,
        "execution": written.manifest.execution,
    }


def _print_saturating(record: QuantizationRecord) -> None:
    """Which layers would have saturated; what was done stands in the notes."""
    if not record.saturating:
        cli.console.print("no layer would saturate with weights rounded to nearest")
        return
    table = Table(title="would saturate with weights rounded to nearest")
    table.add_column("layer")
    table.add_column("pairs of weights", justify="right")
    for name, pairs in record.saturating.items():
        table.add_row(cli.plain(short_name(name)), f"{pairs:,}")
    cli.console.print(table)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the verb."""
    return cli.run(parser(), _act, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
