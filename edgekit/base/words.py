"""Words that people type: words with options, ``HEAD#key=value,key=value``, as ``--data`` and
``--preprocessing`` take them; suggestions for words that are nearly right.
"""

from __future__ import annotations

import argparse
import difflib
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from edgekit.base.errors import InvalidOptionError

_OPTIONS = re.compile(r"[a-z_]+=[^,#=]+(,[a-z_]+=[^,#=]+)*")


def split(word: str) -> tuple[str, dict[str, str]]:
    """Head and options; a ``#`` that no ``key=value`` follows belongs to the head.

    Raises:
        InvalidOptionError: If an option is there twice.
    """
    head, mark, tail = word.rpartition("#")
    if not mark or not _OPTIONS.fullmatch(tail):
        return word, {}
    pairs = [tuple(pair.split("=")) for pair in tail.split(",")]
    options = {key: value for key, value in pairs}
    if len(options) != len(pairs):
        raise InvalidOptionError(f"{word}: an option is there twice")
    return head, options


def join(word: str, **options: object) -> str:
    """The word with more options; those that are None are left out."""
    more = ",".join(f"{key}={value}" for key, value in options.items() if value is not None)
    if not more:
        return word
    return f"{word}{',' if split(word)[1] else '#'}{more}"


def refuse_unknown(word: str, options: dict[str, str], known: tuple[str, ...]) -> None:
    """Name an option that is not known.

    Raises:
        InvalidOptionError: If there is one.
    """
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise InvalidOptionError(
            f"{word}: unknown option {unknown[0]!r}; expected {', '.join(known)}"
            f"{near(unknown[0], known)}"
        )


def integer(word: str, options: dict[str, str], key: str, *, least: int) -> int | None:
    """An option as an integer, None if it is not there.

    Raises:
        InvalidOptionError: If it is no integer of at least ``least``.
    """
    if key not in options:
        return None
    text = options[key]
    if not re.fullmatch(r"-?[0-9]{1,9}", text) or int(text) < least:
        raise InvalidOptionError(f"{word}: expected {key} as an integer >= {least}, got {text!r}")
    return int(text)


def positive_int(text: str) -> int:
    """argparse type: an integer of at least 1."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected an integer >= 1, got {text!r}")
    return value


#: What others call the same.
_ALIASES = {
    **dict.fromkeys(("fp32", "f32", "float"), "float32"),
    **dict.fromkeys(("fp16", "f16", "half"), "float16"),
    **dict.fromkeys(("i8", "uint8", "w8a8", "quantized"), "int8"),
    **dict.fromkeys(("w8", "w8a32", "weights", "weight-only", "int8-weight"), "int8-weights"),
    **dict.fromkeys(("int4", "w4", "w4a32", "4bit", "int4-weight"), "int4-weights"),
    **dict.fromkeys(("dynamic", "dynamic-range", "drq", "hybrid", "w8a8-dynamic"), "int8-dynamic"),
    **dict.fromkeys(("int16", "w8a16", "a16w8", "16x8"), "int16x8"),
    **dict.fromkeys(("lite", "litert", "tf-lite"), "tflite"),
    **dict.fromkeys(("ort", "onnxruntime"), "onnx"),
    **dict.fromkeys(("accuracy", "acc"), "top1"),
    **dict.fromkeys(("ap", "mean_ap", "map@.5:.95", "map50-95"), "map"),
    **dict.fromkeys(("ap50", "map_50", "map@.5", "map@0.5"), "map50"),
    **dict.fromkeys(("iou", "mean_iou", "meaniou"), "miou"),
    **dict.fromkeys(("latency", "p50"), "latency_p50"),
    **dict.fromkeys(("cpu", "x86"), "generic"),
    **dict.fromkeys(("gpu", "nvidia"), "cuda"),
}


def near(word: str, known: Iterable[str]) -> str:
    """``; did you mean 'WORD'?`` where a known word is much like this one; else nothing."""
    by_lower = {each.lower().lstrip("-"): each for each in known}
    typed = word.lower().lstrip("-")
    alias = _ALIASES.get(typed)
    closest = [alias] if alias in by_lower else difflib.get_close_matches(typed, by_lower, n=1)
    return f"; did you mean {by_lower[closest[0]]!r}?" if closest else ""


def one_of(what: str, word: str, known: Sequence[str]) -> None:
    """Refuse a word that is none of those that are known.

    Raises:
        InvalidOptionError: If it is none; names the one that is nearest.
    """
    if word not in known:
        listed = " or ".join(known) if len(known) == 2 else ", ".join(known)
        raise InvalidOptionError(f"expected {what} {listed}, got {word!r}{near(str(word), known)}")


def not_found(path: Path) -> str:
    """``PATH not found``, with the path of what has nearly its name and lies in the same folder."""
    try:
        names = os.listdir(path.parent)
    except OSError:
        names = []
    names = [name for name in names if not name.startswith(".") and name != path.name]
    alike = [name for name in names if Path(name).stem == path.stem]
    close = difflib.get_close_matches(path.name, names, n=1, cutoff=0.8) or alike[:1]
    return f"{path} not found" + (f" (did you mean {path.parent / close[0]}?)" if close else "")
