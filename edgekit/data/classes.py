"""From the classes of a data set to the classes of a model, by name where names say it."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgekit.base.errors import ClassesError
from edgekit.base.text import visible


@dataclass(frozen=True)
class Numbering:
    """The model's class of each class of a data set.

    Attributes:
        table: int64, by the data's number; None where a number is what it says, plus ``shift``.
        shift: Added to numbers.
        class_names: Class names of the model's numbers.
        said: How it was decided, a sentence; empty where there was nothing to decide.
    """

    table: npt.NDArray[np.int64] | None
    shift: int
    class_names: tuple[str, ...]
    said: str = ""

    def apply(self, numbers: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The model's numbers."""
        return numbers + self.shift if self.table is None else self.table[numbers] + self.shift


def number(
    name: str,
    classes: tuple[str, ...],
    known: tuple[str, ...],
    *,
    offset: int = 0,
    objects: bool = False,
    drop_unknown: bool = False,
) -> Numbering:
    """Decide which class is which.

    Names that the model knows decide, whatever their case and punctuation; names that are numbers
    are the numbers; else classes count in the order that the set has them in, if there are as many
    as the model has.

    Args:
        name: Name of the data set.
        classes: Names of its classes, sorted, of objects in the order of the set's numbers; empty
            where it has numbers only.
        known: The model's class names; empty without a model, ``0, 1, …`` where it has no names.
        offset: Offset of the preprocessing; not added to classes that were found by name.
        objects: Whether they are classes of boxes or pixels, of which a picture has several.
        drop_unknown: Give -1 to classes that the model does not know, where it knows others.

    Raises:
        ClassesError: If names and numbers of classes do not fit the model.
    """
    if not classes:
        return Numbering(None, offset, known)
    numbers = tuple(str(i) for i in range(len(known)))
    places = {_plain(each): place for place, each in enumerate(known)}
    ours = [_plain(each) for each in classes]
    unknown = [label for label, each in zip(classes, ours, strict=True) if each not in places]
    fits = len(unknown) < len(ours) if objects else not unknown
    if known != numbers and fits:
        if len(places) != len(known) or len(set(ours)) != len(classes):
            instead = "rename one" if objects else "give numbers with csv:FILE"
            raise ClassesError(f"{name}: two classes have one name; {instead}")
        if unknown and not drop_unknown:
            raise ClassesError(
                f"{name}: the model does not know {_short(tuple(unknown))}; it knows "
                f"{_short(known)}; name classes as the model does, or pass #unknown=drop to leave "
                f"such objects out"
            )
        return Numbering(np.array([places.get(each, -1) for each in ours]), 0, known)
    if all(each.isascii() and each.isdecimal() and len(each) < 10 for each in classes):
        table = np.array([int(each) for each in classes])
        names = known or tuple(str(i) for i in range(int(table.max()) + 1))
        return Numbering(table, offset, names, "class names are numbers, taken as labels")
    expected = len(known) - max(offset, 0)
    instead = "" if objects else ", or list numbers with csv:FILE"
    if known and len(classes) != expected:
        raise ClassesError(
            f"{name}: has {len(classes)} classes ({_short(classes)}), the model {expected} "
            f"({_short(known)}); name them as the model does{instead}"
        )
    if known and known != numbers:
        raise ClassesError(
            f"{name}: its classes ({_short(classes)}) are not the model's ({_short(known)}); name "
            f"them as the model does{instead}"
        )
    names = ("background",) * max(offset, 0) + classes
    said = "classes in the order of their names"
    if objects:
        said = f"classes in this order: {', '.join(map(visible, classes[:20]))}"
        said += ", …" if len(classes) > 20 else ""
    return Numbering(np.arange(len(classes)), offset, names, said)


def _plain(name: str) -> str:
    """A name as it can be that of a folder: of ``T-shirt/top``, ``t_shirt_top``."""
    return re.sub(r"[\W_]+", "_", name.casefold()).strip("_")


def _short(names: tuple[str, ...]) -> str:
    return ", ".join(map(visible, names[:3])) + (", …" if len(names) > 3 else "")
