"""Progress of long work, and where it is shown.

Library code prints nothing. A function whose work takes long, or that has something to say, takes a
:class:`Progress`. The default shows nothing. The verbs pass the one of :mod:`edgekit.base.cli`,
which writes to stderr. To show progress elsewhere, pass a subclass.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext


class Task:
    """Work of many equal parts, while it lasts."""

    def advance(self, count: int = 1) -> None:
        """So many parts more are done."""

    def note(self, text: str) -> None:
        """What is worked on now, shown beside the count."""


class Progress:
    """Hears what long work says of itself; this one passes nothing on."""

    def say(self, sentence: str) -> None:
        """One sentence for people, shown as it is."""

    def task(
        self, name: str, total: int | None = None, *, unit: str = "images", note: str = ""
    ) -> AbstractContextManager[Task]:
        """Work that begins now and ends with the context.

        Args:
            name: What is done, as ``calibrating``.
            total: How many parts there are; None where nobody knows.
            unit: What the parts are.
            note: As :meth:`Task.note` takes it.
        """
        return nullcontext(Task())


SILENT = Progress()
