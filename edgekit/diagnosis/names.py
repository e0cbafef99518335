"""Names of layers: what people see, and what of it they may type."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Callable, Collection, Sequence

from edgekit.base.errors import InvalidOptionError
from edgekit.base.text import visible
from edgekit.graph.flatbuffer import Graph, path_of, short_name

#: Stands for the middle of a name that a table has no room for (edgekit.base.text.shortened).
_CUT = "…"
#: Names that an error lists.
_LISTED = 5


def labels(graph: Graph, names: Collection[str]) -> dict[str, str]:
    """Names for people: the Keras layer's where it is of one tensor only, else a longer one.

    Several inputs have the names of the signature, and so have several outputs.

    Args:
        graph: The canonical graph.
        names: Tensors of it.

    Returns:
        A name for each tensor; no two are the same.
    """
    inputs = {tensor: name for name, tensor in graph.named_inputs.items()}
    outputs = {tensor: name for name, tensor in graph.named_outputs.items()}
    if len(inputs) == 1:
        inputs = dict.fromkeys(inputs, "input")
    if len(outputs) == 1:
        outputs = dict.fromkeys(outputs, "output")
    # the converter's name of what the model's function returns
    outputs = {name: end for name, end in outputs.items() if "PartitionedCall" in name}
    by_tensor = {name: label for name, label in (outputs | inputs).items() if name in names}
    for make in _NAMES:
        longer = {name: make(path_of(name)) for name in names if name not in by_tensor}
        count = Counter([*by_tensor.values(), *longer.values()])
        by_tensor |= {name: label for name, label in longer.items() if count[label] == 1}
    return {name: by_tensor.get(name, name) for name in names}


#: From a path of model, layer, …, operator: the layer, where in it, all of it.
_NAMES: tuple[Callable[[list[str]], str], ...] = (
    lambda path: path[1] if len(path) > 2 else path[0],
    lambda path: "/".join(path[1:] if len(path) > 2 else path),
    "/".join,
)


def tensors(
    graph: Graph, names: Collection[str], words: Sequence[str], *, option: str
) -> tuple[str, ...]:
    """The tensors that typed names of layers stand for, in the order of ``names``.

    A name is one that a table of layers, a note or a manifest shows, also one that was shortened
    for the screen; several may be joined by ``, `` as a bisection prints them. ``*`` stands for any
    text, and such a pattern for all layers that it fits.

    Args:
        graph: The canonical graph.
        names: Tensors of it that may be named.
        words: What was typed.
        option: Of the command line, for messages.

    Raises:
        InvalidOptionError: If a name is of no layer, or of several.
    """
    own = labels(graph, names)
    signed = {tensor: name for name, tensor in (graph.named_inputs | graph.named_outputs).items()}
    forms = {
        name: {name, visible(name), own[name], visible(own[name]), short_name(name)}
        | ({signed[name]} if name in signed else set())
        for name in names
    }

    def fitting(word: str) -> list[str]:
        exact = [name for name in names if word in (name, own[name])]
        if len(exact) == 1:
            return exact
        text = word if word in set().union(*forms.values()) else word.replace(_CUT, "*")
        pattern = re.compile(".*".join(map(re.escape, text.split("*"))), re.DOTALL)
        return [name for name in names if any(map(pattern.fullmatch, forms[name]))]

    chosen: set[str] = set()
    for word in words:
        parts = [word] if fitting(word) else word.split(", ")
        for part in parts:
            fits = fitting(part)
            if not fits:
                raise InvalidOptionError(
                    f"{option}: expected a layer of the model, got {part!r}"
                    f"{_nearest(part, own, forms)}; `python -m edgekit.compare MODEL ARTIFACT "
                    f"--layers --all` lists them"
                )
            if len(fits) > 1 and "*" not in part:
                raise InvalidOptionError(
                    f"{option}: expected one layer, got {part!r}, which {len(fits)} are called: "
                    f"{_listed([own[name] for name in fits])}; give one of these names, or a "
                    f"pattern with *"
                )
            chosen.update(fits)
    return tuple(name for name in names if name in chosen)


def _nearest(word: str, own: dict[str, str], forms: dict[str, set[str]]) -> str:
    """``; the nearest are A, B``: of layers one of whose names is much like a word."""

    def ratio(form: str) -> float:
        return difflib.SequenceMatcher(None, word.lower(), form.lower()).ratio()

    alike = {name: max(map(ratio, forms[name])) for name in own}
    near = [name for name in sorted(own, key=lambda n: -alike[n])[:3] if alike[name] >= 0.5]
    if not near:
        return ""
    return f"; the nearest {'are' if len(near) > 1 else 'is'} {_listed([own[n] for n in near])}"


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _LISTED
    return ", ".join(names[:_LISTED]) + (f" and {more} more" if more > 0 else "")
