"""The command line shared by all verbs: exit codes, one-line errors, the closing JSON document.

Exit status: 0 good, 1 regression or failed verdict, 2 usage or bad input, 130 interrupted. Tables
and progress go to stderr; the last line of stdout is one JSON document.
"""

from __future__ import annotations

import argparse
import errno
import importlib
import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn

from rich.console import Console, ConsoleOptions, RenderableType
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)
from rich.segment import Segment

from edgekit import schema
from edgekit.errors import EdgekitError
from edgekit.text import visible, visible_lines
from edgekit.version import __version__

#: What each verb does; also the order in which ``python -m edgekit`` lists them.
VERBS: dict[str, str] = {
    "data": "describe a set of images; find the classic mistakes between a model and images",
    "models": "the architectures, and the paper's table of parameters and multiply-adds",
    "train": "train MobileNetV2 on a data set; writes a float Keras artifact",
    "qat": "fine-tune with fake quantization; writes a Keras artifact for int8 export",
    "calibrate": "run a calibration set through the float model; writes a calibration table",
    "export": "turn a float model into a TFLite or ONNX artifact",
    "compare": "accuracy, agreement, latency of artifacts against the float model; writes a report",
    "parity": "prove that a TFLite and an ONNX int8 file hold the same numbers",
    "benchmark": "latency, memory and operators of one artifact on one runtime",
    "gate": "judge a report against a baseline; exit status 1 on a regression",
    "report": "turn a report into one self-contained HTML page",
    "sign": "vouch for artifacts, reports and baselines with a key; verify them",
}


class Screen(Console):
    """A console on which no text that is printed can steer the terminal."""

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """Segments of text with control characters shown as their escapes."""
        for segment in super().render(renderable, options):
            if segment.control:  # rich's own, of a progress bar
                yield segment
            else:
                yield Segment(visible_lines(segment.text), segment.style)


#: For people: tables, progress, warnings. Standard output is for the JSON document.
console: Console = Screen(stderr=True, highlight=False)


def plain(text: object) -> str:
    """A name or path as a piece of console markup: shown as it is, in one line."""
    return escape(visible(str(text)))


def say(text: str) -> None:
    """Print one line as it is, without markup; a terminal breaks it where it has to."""
    console.print(visible(text), markup=False, soft_wrap=True)


Outcome = tuple[int, Any]


class Parser(argparse.ArgumentParser):
    """argparse with edgekit's error form: one line, exit status 2, no abbreviations."""

    def __init__(self, verb: str, *, description: str, examples: str) -> None:
        super().__init__(
            prog=f"edgekit {verb}",
            description=description,
            epilog=f"examples:\n{_indent(examples)}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        _print_error(self.prog, f"{message}; see `{self.prog} --help`")
        raise SystemExit(2)


def run(
    parser: Parser,
    action: Callable[[argparse.Namespace], Outcome],
    arguments: Sequence[str] | None = None,
) -> int:
    """Parse, act, print the JSON document, and turn every expected failure into one line.

    Args:
        parser: The verb's parser.
        action: Does the work; returns (exit status, document).
        arguments: Instead of ``sys.argv[1:]``.

    Returns:
        The exit status.
    """
    try:
        options = parser.parse_args(arguments)
    except SystemExit as exc:
        return int(exc.code or 0)
    try:
        status, document = action(options)
        print(schema.dumps(document, indent=None, ascii=True), flush=True)
        return status
    except EdgekitError as exc:
        _print_error(parser.prog, str(exc))
        return exc.status
    except KeyboardInterrupt:
        _print_error(parser.prog, "interrupted; nothing was written")
        return 130
    except BrokenPipeError:
        # The reader of our output went away; point stdout elsewhere so that exit stays quiet.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 2
    except OSError as exc:
        if exc.errno not in _PLAIN_OS_ERRORS:
            raise
        where = f"{exc.filename}: " if exc.filename else ""
        _print_error(parser.prog, f"{where}{os.strerror(exc.errno)}; nothing was written")
        return 2


_PLAIN_OS_ERRORS = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOENT,
    errno.EISDIR,
    errno.ENOTDIR,
    errno.ENAMETOOLONG,
}


def command_line() -> str:
    """The command as the user could type it again."""
    verb = os.path.basename(sys.argv[0] or "")
    if verb.endswith(".py"):
        folder = os.path.basename(os.path.dirname(sys.argv[0]))
        module = "edgekit" if folder == "edgekit" else f"edgekit.{folder}"
        name = module if verb == "__main__.py" else f"edgekit.{verb[:-3]}"
        return shlex.join(["python", "-m", name, *sys.argv[1:]])
    return shlex.join([verb, *sys.argv[1:]])


def progress(unit: str = "images") -> Progress:
    """A progress bar on stderr with counts and the time that remains."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
        console=console,
        transient=not console.is_terminal,
        disable=not console.is_terminal,
    )


def positive_int(text: str) -> int:
    """argparse type: an integer of at least 1."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected an integer >= 1, got {text!r}")
    return value


def main(arguments: Sequence[str] | None = None) -> int:
    """``edgekit VERB ...`` and ``python -m edgekit VERB ...``."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help"):
        print(_overview())
        return 0
    if words[0] == "--version":
        print(f"edgekit {__version__}")
        return 0
    verb, rest = words[0], words[1:]
    if verb not in VERBS:
        _print_error("edgekit", f"unknown verb {verb!r}; expected one of {', '.join(VERBS)}")
        return 2
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        module = importlib.import_module(f"edgekit.{verb}")
        if hasattr(module, "__path__"):  # a package: what `python -m` runs of it
            module = importlib.import_module(f"edgekit.{verb}.__main__")
    except EdgekitError as exc:
        _print_error(f"edgekit {verb}", str(exc))
        return 2
    except KeyboardInterrupt:
        return 130
    return int(module.main(rest))


def _overview() -> str:
    width = max(map(len, VERBS))
    lines = [f"  {verb:{width}}  {text}" for verb, text in VERBS.items()]
    return "\n".join(
        [
            "usage: python -m edgekit VERB ...  (or: edgekit VERB ..., python -m edgekit.VERB ...)",
            "",
            *lines,
            "",
            "`python -m edgekit VERB --help` shows a verb's options with examples.",
        ]
    )


def _print_error(prog: str, message: str) -> None:
    print(f"{prog}: error: {visible(' '.join(message.split()))}", file=sys.stderr, flush=True)


def _indent(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.strip().splitlines())
