"""Names from files, made safe to show, and numbers.

An artifact, a class, a layer or a folder may be called anything. What steers a terminal, ends a
line or turns the direction of writing is shown as its escape, ``\\x1b`` say.
"""

from __future__ import annotations

import re

#: C0, DEL and C1 controls; separators of lines and paragraphs; marks that turn the direction of
#: writing (Unicode Standard Annex 9); halves of characters and what is none, which XML cannot hold.
_CONTROL = re.compile(
    "[\x00-\x1f\x7f-\x9f\u2028\u2029\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff\ud800-\udfff\ufffe\uffff]"
)
_BUT_LINES = re.compile(_CONTROL.pattern.replace("\x00-\x1f", "\x00-\x09\x0b-\x1f"))


def decimals(value: float, form: str) -> str:
    """A number as a format says, but small ones, which two decimals would hide, with two digits."""
    return f"{value:.2g}" if form == ".2f" and 0 < abs(value) < 0.1 else f"{value:{form}}"


def percent(value: float) -> str:
    """A share in % with two digits, from 100 on without decimals."""
    return f"{value:.2g}" if value < 100 else f"{value:.0f}"


def shortened(text: str, width: int) -> str:
    """Text of at most ``width`` characters, with an ellipsis in the middle of what is longer: names
    of layers begin with the model's and end with the operator's."""
    if len(text) <= width:
        return text
    head = (width - 1) // 2
    return f"{text[:head]}…{text[len(text) - (width - 1 - head) :]}"


def visible(text: str) -> str:
    """One line without control characters; any other text stays as it is."""
    return _CONTROL.sub(_shown, text)


def visible_lines(text: str) -> str:
    """The same, but ends of lines stay."""
    return _BUT_LINES.sub(_shown, text)


def _shown(found: re.Match[str]) -> str:
    return found.group().encode("unicode_escape").decode("ascii")
