"""Recipes: how the integers of a model's files are chosen, as a TOML file that can be kept in git.

A recipe is data. It names no files and runs no code: model, samples and outputs stand on the
command line, whose options win over the recipe. ``docs/how-to/recipe.md`` has an example.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from edgekit.base import schema, words
from edgekit.base.errors import EdgekitError, InvalidOptionError
from edgekit.base.text import visible
from edgekit.base.version import __version__
from edgekit.pipeline import layers
from edgekit.pipeline.layers import Line
from edgekit.quantization import profiles
from edgekit.quantization.quantize import Correction
from edgekit.quantization.table import METHODS
from edgekit.records.artifact import Artifact, LayerPrecision
from edgekit.records.results import Cost

if TYPE_CHECKING:
    from edgekit.pipeline.options import Options

#: Keys that are options of ``export``.
_OPTIONS = ("device", "method", "correction", "strict")


@dataclass(frozen=True)
class RecipeBudget:
    """What an int8 file may lose; ``export`` takes the samples from ``--validation``.

    Attributes:
        kind: The option: ``max-drop`` or ``min``.
        metric: ``top1``, ``agreement``, or ``sqnr`` of ``min``.
        value: Points, % or dB.
        minimize: What the search makes small.
    """

    kind: Literal["max-drop", "min"]
    metric: str
    value: float
    minimize: Cost = "time"


@dataclass(frozen=True)
class Recipe(schema.Document):
    """How integers are chosen; what is left out is as ``export`` has it without a recipe.

    Attributes:
        about: What it is for; nothing reads it.
        device: As ``--device`` takes it.
        method: As ``--method`` takes it.
        correction: As ``--correction`` takes it.
        strict: As ``--strict``.
        budget: What an int8 file may lose; layers below are no part of the search.
        layers: The precision of layers, by a name or a pattern as ``--leave-float`` takes it:
            ``float32``, ``float32-after`` or ``int8``. Of several that name a layer the last one
            counts.
    """

    VERSION: ClassVar[int] = 1
    ERROR: ClassVar[type[EdgekitError]] = InvalidOptionError
    WHAT: ClassVar[str] = "a recipe of export"

    about: str = ""
    device: str | None = None
    method: str | None = None
    correction: Correction | None = None
    strict: bool | None = None
    budget: RecipeBudget | None = None
    layers: dict[str, LayerPrecision] = field(default_factory=dict)
    schema_version: int = 1

    def __post_init__(self) -> None:
        if self.device is not None:
            words.one_of("device", self.device, profiles.NAMES)
        if self.method is not None:
            words.one_of("method", self.method, METHODS)

    def dumps(self) -> str:
        """It as TOML text; what is left out is not written."""
        lines = [f"schema_version = {self.VERSION}"]
        lines += [f"about = {_quoted(self.about)}"] if self.about else []
        for name in _OPTIONS:
            value = getattr(self, name)
            if value is not None:
                shown = str(value).lower() if isinstance(value, bool) else _quoted(value)
                lines.append(f"{name} = {shown}")
        if self.budget is not None:
            lines += [
                "",
                "[budget]",
                f"kind = {_quoted(self.budget.kind)}",
                f"metric = {_quoted(self.budget.metric)}",
                f"value = {self.budget.value!r}",
                f"minimize = {_quoted(self.budget.minimize)}",
            ]
        if self.layers:
            lines += ["", "[layers]"]
            lines += [
                f"{_quoted(name)} = {_quoted(precision)}" for name, precision in self.layers.items()
            ]
        return "\n".join(lines) + "\n"


@dataclass(frozen=True)
class RecipeFile:
    """A recipe that was read.

    Attributes:
        path: As it was given.
        sha256: SHA-256 of the file.
    """

    path: str
    sha256: str
    recipe: Recipe

    @property
    def option(self) -> str:
        """What names it in messages and manifests."""
        return f"--recipe {self.path}"

    def lines(self) -> list[Line]:
        """The precision of layers."""
        return [
            Line(name, precision, self.option) for name, precision in self.recipe.layers.items()
        ]

    def applied(self, options: Options, *, typed: Collection[str] = ()) -> Options:
        """Options with what the recipe says.

        Args:
            options: Without it.
            typed: Names of options that win over the recipe; what they take the place of is noted.
        """
        values: dict[str, Any] = {}
        overruled = []
        for name in _OPTIONS:
            value, own = getattr(self.recipe, name), getattr(options, name)
            if value is None or value == own:
                continue
            if name in typed:
                overruled.append(f"--{name} {own} takes the place of the recipe's {value}")
            else:
                values[name] = value
        return replace(options, recipe=self, overruled=tuple(overruled), **values)


def load(path: Path) -> RecipeFile:
    """Read a recipe.

    Raises:
        InvalidOptionError: If it cannot be read, or a key or value does not fit.
    """
    try:
        data, content = schema.read_toml(path, error=InvalidOptionError, what=Recipe.WHAT)
    except InvalidOptionError as exc:
        raise InvalidOptionError(f"--recipe: {exc}") from None
    version = data.get("schema_version")
    if version != Recipe.VERSION or type(version) is not int:
        stated = "has none" if version is None else f"has {version!r}"
        raise InvalidOptionError(
            f"--recipe: {path}: expected schema_version = {Recipe.VERSION}, the file {stated}; "
            f"write that line at its top"
        )
    words_of_layers = data.get("layers")
    if isinstance(words_of_layers, dict):
        for name, word in words_of_layers.items():
            if isinstance(word, dict):
                raise InvalidOptionError(
                    f"--recipe: {path}: expected a precision of the layer {name!r}, got a table; "
                    f"put names with dots in quotes"
                )
            layers.precision_of(word, f"--recipe: {path}: layer {name!r}")
    try:
        recipe = schema.from_json(Recipe, data, "recipe")
    except (schema.SchemaError, InvalidOptionError) as exc:
        raise InvalidOptionError(f"--recipe: {path}: {exc}") from None
    return RecipeFile(str(path), hashlib.sha256(content).hexdigest(), recipe)


def written(artifact: Artifact, options: Options) -> str:
    """A recipe that gives the same int8 file, from the same model and calibration samples.

    Args:
        artifact: That file. What a search found is in it as layers.
        options: How it was written.
    """
    manifest, quantization = artifact.manifest, artifact.manifest.quantization
    assert quantization is not None  # a file of integers
    comments = [f"edgekit {__version__}: how the integers of {manifest.model_id} were chosen"]
    if manifest.source is not None:
        comments.append(f"model: {manifest.source.path}, sha256 {manifest.source.sha256}")
    if manifest.calibration is not None:
        used = manifest.calibration
        comments.append(f"calibration: {used.data}, {used.count} samples, sha256 {used.sha256}")
    if quantization.budget is not None:
        budget = quantization.budget
        comments.append(
            f"budget: {budget.asked} on {budget.data}, least {budget.minimized}; found with "
            f"{len(budget.candidates)} files"
        )
    recipe = Recipe(
        device=manifest.device,
        method=options.method,
        correction=None if options.correction == "auto" else options.correction,
        strict=options.strict or None,
        layers=quantization.layers,
    )
    return "".join(f"# {visible(line)}\n" for line in comments) + recipe.dumps()


def _quoted(text: str) -> str:
    """A basic string of TOML."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
