"""Layers that get another precision than their int8 file: names and patterns, as ``--leave-float``,
``--precision-of`` and a recipe give them.

All three are lines of one list, in that order: the recipe's first, what was typed last. Of several
lines that name a layer the last one counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

from edgekit.base import words
from edgekit.base.errors import InvalidOptionError
from edgekit.diagnosis import names, tensors
from edgekit.graph.flatbuffer import Graph
from edgekit.records.artifact import LayerPrecision

#: ``float32``: the output of the layer stays float, and the integers of all others are decided for
#: that. ``float32-after``: it becomes float when all integers are decided, so that the others keep
#: theirs. ``int8``: as if no line before had named it.
LAYER_PRECISIONS: tuple[LayerPrecision, ...] = get_args(LayerPrecision)
#: Why others are refused.
_REFUSED = {
    "float16": "neither LiteRT nor onnxruntime has a CPU kernel of float16, so that it would cost "
    "conversions and run as float32; take float32",
    "int16": "on a CPU, LiteRT's int16 kernels take tens of times as long as those of float32, "
    "which are more exact, and onnxruntime has none; take float32, or --precision int16x8 for a "
    "whole TFLite file",
}


#: How the reason begins why a tensor stays float that the user names; its option follows.
ASKED_BY = "asked for by "


@dataclass(frozen=True)
class Line:
    """The precision of the layers that a pattern names.

    Attributes:
        pattern: As :func:`edgekit.diagnosis.names.tensors` takes it.
        option: Where it stands, for messages.
    """

    pattern: str
    precision: LayerPrecision
    option: str


@dataclass(frozen=True)
class Choice:
    """Tensors of the canonical graph that stay float, and why.

    Attributes:
        decided: Those that integers are decided for.
        after: Those that become float afterwards.
        overruled: A sentence for each line of a recipe that a typed one overrules.
    """

    decided: Mapping[str, str]
    after: Mapping[str, str]
    overruled: tuple[str, ...] = ()

    def precisions(self) -> dict[str, LayerPrecision]:
        """By tensor."""
        decided: dict[str, LayerPrecision] = dict.fromkeys(self.decided, "float32")
        return {**decided, **dict.fromkeys(self.after, "float32-after")}


def parse(text: str) -> tuple[str, LayerPrecision]:
    """``LAYER=PRECISION`` of ``--precision-of``.

    Raises:
        InvalidOptionError: If it is not of that form, or the precision is none of a layer.
    """
    pattern, equals, precision = text.rpartition("=")
    if not equals or not pattern:
        raise InvalidOptionError(
            f"--precision-of: expected LAYER=PRECISION as block1_project=float32, got {text!r}"
        )
    return pattern, precision_of(precision, f"--precision-of {pattern}")


def precision_of(word: object, where: str) -> LayerPrecision:
    """The precision of a layer that a word stands for.

    Raises:
        InvalidOptionError: If it is none; says why others are refused.
    """
    for precision in LAYER_PRECISIONS:
        if word == precision:
            return precision
    near = words.near(word, LAYER_PRECISIONS) if isinstance(word, str) else ""
    why = _REFUSED.get(word) if isinstance(word, str) else None
    raise InvalidOptionError(
        f"{where}: expected {', '.join(LAYER_PRECISIONS)}, got {word!r}"
        + (f": {why}" if why else near)
    )


def resolve(canonical: bytes, lines: Sequence[Line], recipe: str = "") -> Choice:
    """What stays float by these lines.

    Args:
        canonical: The float flatbuffer.
        lines: In order; the last one that names a layer counts.
        recipe: The ``option`` of lines that are a recipe's.

    Raises:
        InvalidOptionError: If a pattern names no layer, or a name several.
    """
    if not lines:
        return Choice({}, {})
    graph = Graph(canonical)
    graph.fold()
    activations = tensors.activations(graph)
    labels = names.labels(graph, activations)
    last: dict[str, Line] = {}
    overruled: dict[tuple[Line, Line], list[str]] = {}
    for line in lines:
        for name in names.tensors(graph, activations, [line.pattern], option=line.option):
            before = last.get(name)
            if (
                before is not None
                and before.option == recipe != line.option
                and before.precision != line.precision
            ):
                overruled.setdefault((before, line), []).append(labels[name])
            last[name] = line
    why = {name: f"{ASKED_BY}{last[name].option}" for name in activations if name in last}
    return Choice(
        {name: reason for name, reason in why.items() if last[name].precision == "float32"},
        {name: reason for name, reason in why.items() if last[name].precision == "float32-after"},
        tuple(
            f"{line.option} {line.pattern}={line.precision} takes the place of the recipe's "
            f"{before.precision} for {', '.join(named)}"
            for (before, line), named in overruled.items()
        ),
    )


def named(canonical: bytes, precisions: Mapping[str, LayerPrecision]) -> dict[str, LayerPrecision]:
    """Precisions by the names of layers that people see, in order of execution.

    Args:
        canonical: The float flatbuffer.
        precisions: By tensor of it.
    """
    if not precisions:
        return {}
    graph = Graph(canonical)
    graph.fold()
    labels = names.labels(graph, tensors.activations(graph))
    return {label: precisions[name] for name, label in labels.items() if name in precisions}
