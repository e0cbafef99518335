"""Strict JSON for frozen dataclasses: a document that was written is read back equal.

Unknown, missing and doubled keys, wrong types and unknown schema versions are errors, and so are
integers of more than 64 bits, numbers too large for a float, and deep nesting. NaN is an error in
writing and in reading. Infinities are written as the strings ``"Infinity"`` and ``"-Infinity"``.
"""

from __future__ import annotations

import dataclasses
import json
import math
import tomllib
import types
import typing
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar, Union, get_args, get_origin

from edgekit.base import words
from edgekit.base.errors import EdgekitError

T = TypeVar("T")
#: Levels of lists and objects in a file. A report has 6.
DEPTH = 32


class SchemaError(ValueError):
    """A JSON value does not have the form that its dataclass asks for."""


def to_json(value: Any) -> Any:
    """Turn dataclasses, tuples and mappings into what ``json`` can write.

    Raises:
        SchemaError: If a float is NaN, or a value has no JSON form.
    """
    if value is None or isinstance(value, str | bool | int):  # first: a table has many numbers
        return value
    if isinstance(value, float):
        if math.isnan(value):
            raise SchemaError("NaN is not a result")
        if math.isinf(value):
            return "Infinity" if value > 0 else "-Infinity"
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    raise SchemaError(f"cannot write a {type(value).__name__} as JSON")


def from_json(cls: type[T], value: Any, where: str = "") -> T:
    """Build ``cls`` from a parsed JSON value, checking every type on the way.

    Raises:
        SchemaError: If anything is missing, unknown, or of another type; names the place.
    """
    return typing.cast(T, _read(cls, value, where or cls.__name__))


class Document:
    """A frozen dataclass that is a JSON file of its own, with a field ``schema_version``.

    Attributes:
        VERSION: The only one that is read.
        ERROR: What :meth:`load` raises.
        WHAT: The file in words, and what writes it.
        INDENT: Of the text; None for one line.
    """

    VERSION: ClassVar[int]
    ERROR: ClassVar[type[EdgekitError]]
    WHAT: ClassVar[str]
    INDENT: ClassVar[int | None] = 2

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a file.

        Raises:
            EdgekitError: ``ERROR``, if it cannot be read, holds NaN, or has another schema version.
        """
        data = read_json(path, error=cls.ERROR, what=cls.WHAT)
        version = data.get("schema_version") if isinstance(data, dict) else None
        if version != cls.VERSION or type(version) is not int:
            raise cls.ERROR(
                f"{path} has schema_version {_short(version)}, this edgekit reads {cls.VERSION}; "
                f"make it again with this version or install the one that wrote it"
            )
        try:
            return from_json(cls, data)
        except (SchemaError, EdgekitError) as exc:
            raise cls.ERROR(f"{path} is not {cls.WHAT}: {exc}") from None

    def dumps(self) -> str:
        """All of it as JSON text."""
        return dumps(self, indent=self.INDENT) + "\n"


def read_toml(path: Path, *, error: type[EdgekitError], what: str) -> tuple[dict[str, Any], bytes]:
    """Parse a TOML file; gives its bytes too.

    Raises:
        EdgekitError: The given ``error`` type, if the file is missing or is no TOML.
    """
    try:
        content = path.read_bytes()
        return tomllib.loads(content.decode("utf-8")), content
    except FileNotFoundError:
        raise error(f"{words.not_found(path)}; expected {what}") from None
    except IsADirectoryError:
        raise error(f"{path} is a folder; expected {what}") from None
    except OSError as exc:
        raise error(f"{path} cannot be read ({exc.strerror}); expected {what}") from None
    except (ValueError, RecursionError) as exc:
        raise error(f"{path} is not valid TOML ({exc}); expected {what}") from None


def read_json(path: Path, *, error: type[EdgekitError], what: str) -> Any:
    """Parse a JSON file, strictly.

    Raises:
        EdgekitError: The given ``error`` type, if the file is missing or is no JSON.
    """
    try:
        text = path.read_text(encoding="utf-8")  # of a pipe, too
    except FileNotFoundError:
        raise error(f"{words.not_found(path)}; expected {what}") from None
    except IsADirectoryError:
        raise error(f"{path} is a folder; expected {what}") from None
    except UnicodeDecodeError:
        raise error(f"{path} is not a text file; expected {what}") from None
    except OSError as exc:
        raise error(f"{path} cannot be read ({exc.strerror}); expected {what}") from None
    try:
        return parse(text)
    except (ValueError, RecursionError) as exc:
        raise error(f"{path} is not valid JSON ({exc}); expected {what}") from None


def parse(text: str) -> Any:
    """Parse JSON text, strictly.

    Raises:
        ValueError: If it is no JSON, or holds a key twice, NaN, an infinity, a number too large, a
            half of a character, or more than :data:`DEPTH` levels.
        RecursionError: If it is nested deeper than the parser goes.
    """
    data = json.loads(
        text, object_pairs_hook=_object, parse_constant=_constant, parse_float=_finite
    )
    level = [data]
    for _ in range(DEPTH):
        below: list[Any] = []
        for each in level:
            if isinstance(each, dict):
                below += each.keys()
                below += each.values()
            elif isinstance(each, list):
                below += each
            elif isinstance(each, str) and not (each.isascii() or _is_text(each)):
                raise SchemaError("expected Unicode text, got half a character")
            elif isinstance(each, int) and not -(2**63) <= each < 2**63:
                raise SchemaError("expected integers of up to 64 bits, got a larger one")
        if not below:
            return data
        level = below
    raise SchemaError(f"expected up to {DEPTH} levels, got more")


def dumps(value: Any, *, indent: int | None = 2, ascii: bool = False) -> str:
    """Serialise with keys in the order of their declaration and no NaN.

    Args:
        value: Dataclasses, mappings, sequences and scalars.
        indent: Spaces a level; None for one line.
        ascii: Escape everything else, so that no terminal or line reader can stumble.
    """
    return json.dumps(to_json(value), indent=indent, ensure_ascii=ascii, allow_nan=False)


def _constant(name: str) -> float:
    raise SchemaError(f"expected a finite number, got {name}")


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise SchemaError(f"expected a finite number, got {_short(digits)}")
    return number


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        names = [name for name, _ in pairs]
        doubled = next(name for name in names if names.count(name) > 1)
        raise SchemaError(f"the key {doubled!r} is there twice")
    return members


def _read(hint: Any, value: Any, where: str) -> Any:
    origin = get_origin(hint)
    if hint is Any:
        return value
    if origin in (Union, types.UnionType):
        return _read_union(get_args(hint), value, where)
    if origin is tuple:
        return _read_tuple(get_args(hint), value, where)
    if origin is list:
        _expect(isinstance(value, list), "a list", value, where)
        return [_read(get_args(hint)[0], item, f"{where}[{i}]") for i, item in enumerate(value)]
    if origin is dict:
        _expect(isinstance(value, dict), "an object", value, where)
        return {
            key: _read(get_args(hint)[1], item, f"{where}.{key}") for key, item in value.items()
        }
    if origin is typing.Literal:
        known = [str(each) for each in get_args(hint)]
        near = words.near(value, known) if isinstance(value, str) else ""
        _expect(value in get_args(hint), f"one of {list(get_args(hint))}", value, where, near)
        return value
    if dataclasses.is_dataclass(hint):
        return _read_dataclass(typing.cast(type, hint), value, where)
    return _read_scalar(hint, value, where)


def _read_union(options: tuple[Any, ...], value: Any, where: str) -> Any:
    if value is None and type(None) in options:
        return None
    real = [option for option in options if option is not type(None)]
    problem: SchemaError | None = None
    for option in real:
        try:
            return _read(option, value, where)
        except SchemaError as exc:
            problem = problem or exc
    raise problem or SchemaError(f"{where}: unexpected {value!r}")


def _read_tuple(items: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    _expect(isinstance(value, list), "a list", value, where)
    if len(items) == 2 and items[1] is Ellipsis:
        return tuple(_read(items[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    _expect(len(value) == len(items), f"{len(items)} values", value, where)
    return tuple(
        _read(hint, item, f"{where}[{i}]")
        for i, (hint, item) in enumerate(zip(items, value, strict=True))
    )


def _read_dataclass(cls: type, value: Any, where: str) -> Any:
    _expect(isinstance(value, dict), "an object", value, where)
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}
    unknown = sorted(set(value) - set(fields))
    if unknown:
        near = words.near(unknown[0], fields)
        raise SchemaError(f"{where}: unknown key {unknown[0]!r}{near}")
    arguments = {}
    for name, field in fields.items():
        if name in value:
            arguments[name] = _read(hints[name], value[name], f"{where}.{name}")
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise SchemaError(f"{where}: missing key {name!r}")
    return cls(**arguments)


def _read_scalar(hint: Any, value: Any, where: str) -> Any:
    if hint is float:
        if value in ("Infinity", "-Infinity"):
            return float(value)
        _expect(
            isinstance(value, int | float) and not isinstance(value, bool), "a number", value, where
        )
        try:
            number = float(value)
        except OverflowError:
            raise SchemaError(f"{where}: expected a number, got one too large") from None
        _expect(math.isfinite(number), "a finite number", value, where)
        return number
    if hint is int:
        _expect(isinstance(value, int) and not isinstance(value, bool), "an integer", value, where)
        return value
    _expect(isinstance(value, hint), f"a {hint.__name__}", value, where)
    if isinstance(value, str):  # JSON can escape half a character; nothing could write it again
        _expect(value.isascii() or _is_text(value), "Unicode text", value, where)
    return value


def _is_text(value: str) -> bool:
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _expect(condition: bool, expected: str, value: Any, where: str, near: str = "") -> None:
    if not condition:
        raise SchemaError(f"{where}: expected {expected}, got {_short(value)}{near}")


def _short(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else shown[:57] + "..."
