"""Words with options, ``HEAD#key=value,key=value``, as ``--data`` and ``--preprocessing`` are."""

from __future__ import annotations

import re

from edgekit.errors import InvalidOptionError

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
    found = {key: value for key, value in pairs}
    if len(found) != len(pairs):
        raise InvalidOptionError(f"{word}: an option is there twice")
    return head, found


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
