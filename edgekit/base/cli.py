"""The command line that all verbs share: exit status, errors of one line, the closing JSON
document.

Exit status: 0 good, 1 a regression or a failed verdict, 2 wrong usage or bad input, 3 an error of
edgekit's own, 130 interrupted. Tables and progress go to stderr. The last line of stdout is one
JSON document. ``--traceback`` shows where in the code an error comes from, and what a process that
failed wrote to stderr.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import errno
import importlib
import itertools
import os
import shlex
import signal
import sys
import textwrap
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from rich.console import Console, ConsoleOptions, RenderableType
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bars
from rich.progress import Task as Bar
from rich.segment import Segment

from edgekit.base import schema, words
from edgekit.base.errors import EdgekitError, reason
from edgekit.base.progress import Progress, Task
from edgekit.base.text import visible, visible_lines
from edgekit.base.version import __version__

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_Options = TypeVar("_Options", bound="DataclassInstance")

#: What each verb does; also the order in which ``python -m edgekit`` lists them.
VERBS: dict[str, str] = {
    "data": "describe a set of images; find the classic mistakes between a model and images",
    "models": "print the architectures beside the paper's table of parameters and multiply-adds",
    "train": "train MobileNetV2 on a data set; write a float Keras artifact",
    "qat": "fine-tune with fake quantization; write a Keras artifact for int8 export",
    "calibrate": "run a calibration set through the float model; write a calibration table",
    "export": "turn a float model into TFLite and ONNX artifacts",
    "deploy": "write, compare, report and judge all deployables of a model in one command",
    "compare": "measure accuracy, agreement and latency against the float model; write a report",
    "parity": "prove that a TFLite and an ONNX int8 file hold the same numbers",
    "benchmark": "measure latency, memory and operators of one artifact on one runtime",
    "devices": "list the places where deployables can run; install what a place needs",
    "gate": "judge a report against a baseline; exit status 1 on a regression",
    "report": "turn a report into one self-contained HTML page",
    "sign": "sign artifacts, reports and baselines with a key; verify signatures",
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


class _Help(argparse.RawDescriptionHelpFormatter):
    """Help in which a number is called N or X, and long lists of choices stand in the text."""

    def _get_default_metavar_for_optional(self, action: argparse.Action) -> str:
        if action.type in (words.positive_int, int, float):
            return "X" if action.type is float else "N"
        return super()._get_default_metavar_for_optional(action)

    def _metavar_formatter(self, action: argparse.Action, default_metavar: str) -> Any:
        if _is_long(action):
            return lambda size: (action.dest.upper(),) * size
        return super()._metavar_formatter(action, default_metavar)

    def _expand_help(self, action: argparse.Action) -> str:
        text = super()._expand_help(action)
        if _is_long(action):
            text += f"; one of {', '.join(map(str, action.choices or ()))}"
        return text

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(
            " ".join(text.split()), width, break_long_words=False, break_on_hyphens=False
        )


def _is_long(action: argparse.Action) -> bool:
    listed = ",".join(map(str, action.choices or ()))
    return action.metavar is None and bool(action.option_strings) and len(listed) > 40


class Parser(argparse.ArgumentParser):
    """argparse with edgekit's error form: one line, exit status 2, no abbreviations."""

    def __init__(self, verb: str, *, description: str, examples: str) -> None:
        super().__init__(
            prog=f"edgekit {verb}",
            description=textwrap.fill(description, 78),
            epilog=f"examples:\n{_indent(examples)}",
            formatter_class=_Help,
            allow_abbrev=False,
        )
        self._last = self.add_argument_group("errors")
        self._last.add_argument(
            "--traceback",
            action="store_true",
            default=argparse.SUPPRESS,  # of an action, it would overwrite the verb's
            help="with an error, show where in the code it comes from",
        )

    def format_help(self) -> str:
        """What is seldom needed comes last."""
        self._action_groups.sort(key=lambda group: group is self._last)
        return super().format_help()

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Options that are not known are named first, with the one that is nearest."""
        arguments = list(sys.argv[1:] if args is None else args)
        known = set(self._options())
        options = itertools.takewhile(lambda word: word != "--", arguments)
        self._refuse(word for word in options if word[:2] == "--" and _name(word) not in known)
        parsed, rest = self.parse_known_args(arguments, namespace)
        self._refuse(word for word in rest if word[:1] == "-")  # of another action
        if rest:
            self.error(f"expected no more arguments, got {shlex.join(rest)}")
        return parsed

    def _refuse(self, unknown: Iterable[str]) -> None:
        for word in unknown:
            near = words.near(_name(word), self._options())
            self.error(f"unknown option {_name(word)}{near}")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is None or value in action.choices:
            return
        known = [str(choice) for choice in action.choices]
        raise argparse.ArgumentError(
            action, f"expected {', '.join(known)}, got {value!r}{words.near(str(value), known)}"
        )

    def _options(self) -> Iterator[str]:
        for action in self._actions:
            yield from action.option_strings
            if isinstance(action.choices, dict):  # the parsers of actions
                for parser in action.choices.values():
                    yield from parser._options()

    def error(self, message: str) -> NoReturn:
        _print_error(self.prog, f"{message}; see `{self.prog} --help`")
        raise SystemExit(2)


def _name(option: str) -> str:
    return option.partition("=")[0]


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
    except BrokenPipeError:
        # The reader of our output went away; point stdout elsewhere so that exit stays quiet.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 2
    except (Exception, KeyboardInterrupt) as exc:
        return _failed(parser.prog, exc, whole=getattr(options, "traceback", False))


def _failed(prog: str, error: BaseException, *, whole: bool) -> int:
    """Say in one line what went wrong, with ``whole`` all that is known; the exit status."""
    if whole:
        cause: BaseException | None = error
        while cause is not None:  # also what stood behind a message of ours
            cause.__suppress_context__, cause = False, cause.__context__
        text = "".join(traceback.format_exception(error))
        print(visible_lines(text + getattr(error, "detail", "")), file=sys.stderr, flush=True)
    if isinstance(error, EdgekitError):
        _print_error(prog, str(error))
        return error.status
    if isinstance(error, KeyboardInterrupt):
        _print_error(prog, "interrupted; nothing was written")
        return 130
    if isinstance(error, OSError) and error.errno in _PLAIN_OS_ERRORS:
        where = f"{error.filename}: " if error.filename else ""
        _print_error(prog, f"{where}{os.strerror(error.errno)}; nothing was written")
        return 2
    if isinstance(error, MemoryError):
        said = f": {reason(error)}" if str(error) else ""
        _print_error(prog, f"there is not enough memory{said}; nothing was written")
        return 2
    said = " ".join(str(error).split())
    more = "" if whole else "; --traceback shows all of it"
    _print_error(
        prog,
        f"{type(error).__name__}{f': {said[:400]}' if said else ''} (at {place_of(error)}), which "
        f"edgekit did not foresee; this is no regression, and no output is left half written{more}",
    )
    return 3


def place_of(error: BaseException) -> str:
    """Where in edgekit an exception was raised, as ``edgekit/compare.py:123``; else where else."""
    root = Path(__file__).resolve().parents[2]
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if Path(f.filename).is_relative_to(root / "edgekit")]
    for frame in (own or frames)[-1:]:
        path = Path(frame.filename)
        return f"{path.relative_to(root) if own else path}:{frame.lineno}"
    return "no place in the code"


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


#: Seconds between two lines of progress where there is no terminal.
LOG_SECONDS = 10.0


def progress(unit: str = "images") -> Bars:
    """Progress of tasks with counts and the time that remains, on stderr.

    On a terminal it is a bar; elsewhere a line every :data:`LOG_SECONDS`, so that a log shows that
    something happens.
    """
    if not console.is_terminal:
        return _Lines(unit)
    return Bars(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
        console=console,
    )


class _Lines(Bars):
    """Tasks whose state is printed now and then, by a thread of its own."""

    def __init__(self, unit: str) -> None:
        super().__init__(console=console, disable=True)
        self._unit = unit
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._print, daemon=True)

    def start(self) -> None:
        """Print from now on."""
        self._thread.start()

    def stop(self) -> None:
        """Print no more."""
        self._ended.set()
        self._thread.join()

    def _print(self) -> None:
        while not self._ended.wait(LOG_SECONDS):
            for task in self.tasks:
                if not task.finished:
                    say(self._line(task))

    def _line(self, task: Bar) -> str:
        done, passed = task.completed, task.elapsed or 0.0
        total = "" if task.total is None else f"/{task.total:,.0f}"
        line = f"{task.description}: {done:,.0f}{total} {self._unit}"
        if done and passed:
            line += f", {_rate(done / passed)}"
            if task.total is not None:
                line += f", {_duration((task.total - done) * passed / done)} left"
        return f"{line}  {task.fields.get('note', '')}".rstrip()


class _Reporter(Progress):
    """Sentences and progress on stderr."""

    def say(self, sentence: str) -> None:
        """One line."""
        say(sentence)

    @contextlib.contextmanager
    def task(
        self, name: str, total: int | None = None, *, unit: str = "images", note: str = ""
    ) -> Iterator[Task]:
        """A bar, or lines."""
        with progress(unit) as bars:
            yield _Shown(bars, bars.add_task(name, total=total, note=note))


class _Shown(Task):
    def __init__(self, bars: Bars, number: TaskID) -> None:
        self._bars, self._number = bars, number

    def advance(self, count: int = 1) -> None:
        self._bars.advance(self._number, count)

    def note(self, text: str) -> None:
        self._bars.update(self._number, note=text)


#: What verbs pass to the functions that do the work.
reporter: Progress = _Reporter()


def _rate(a_second: float) -> str:
    if a_second >= 1:
        return f"{a_second:,.0f} a second" if a_second >= 10 else f"{a_second:.1f} a second"
    return f"{60 * a_second:.1f} a minute"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def several(known: Sequence[str]) -> Callable[[str], list[str]]:
    """A type of argument: one or more of these words, separated by commas."""

    def read(text: str) -> list[str]:
        chosen = [word.strip() for word in text.split(",")]
        for word in chosen:
            if word not in known:
                raise argparse.ArgumentTypeError(
                    f"expected {', '.join(known)}, got {word!r}{words.near(word, known)}"
                )
        return chosen

    return read


def gathered(kind: type[_Options], parsed: argparse.Namespace, **own: object) -> _Options:
    """The options of a function, from what was typed.

    Args:
        kind: A dataclass; each field takes what the option of its name got.
        parsed: What was typed.
        own: Fields of other names, or other values than what was typed.
    """
    names = [each.name for each in dataclasses.fields(kind) if each.name not in own]
    return kind(**{name: getattr(parsed, name) for name in names}, **own)


def main(arguments: Sequence[str] | None = None) -> int:
    """``edgekit VERB ...`` and ``python -m edgekit VERB ...``."""
    typed = list(sys.argv[1:] if arguments is None else arguments)
    if not typed or typed[0] in ("-h", "--help"):
        print(_overview())
        return 0
    if typed[0] == "--version":
        print(f"edgekit {__version__}")
        return 0
    verb, rest = typed[0], typed[1:]
    if verb not in VERBS:
        near = words.near(verb, VERBS)
        _print_error("edgekit", f"unknown verb {verb!r}; expected one of {', '.join(VERBS)}{near}")
        return 2
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        module = importlib.import_module(f"edgekit.{verb}")
        if hasattr(module, "__path__"):  # a package: what `python -m` runs of it
            module = importlib.import_module(f"edgekit.{verb}.__main__")
    except KeyboardInterrupt:
        return 130
    except Exception as exc:
        return _failed(f"edgekit {verb}", exc, whole="--traceback" in rest)
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
