"""What mkdocs generates while it builds the site, so that no page repeats the code.

A line ``<!-- generated: WHAT -->`` of a page becomes the command line (``commands``), or the fields
of a document (``manifest``, ``report``), whose JSON Schema is written beside the page.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import inspect
import json
import re
import types
import typing
from collections.abc import Iterator
from typing import Any, Literal, Union, get_args, get_origin

from edgekit.base import schema
from edgekit.base.cli import VERBS, Parser
from edgekit.pipeline.recipe import Recipe
from edgekit.records.artifact import Manifest
from edgekit.records.results import Report

DOCUMENTS: dict[str, type[schema.Document]] = {
    "manifest": Manifest,
    "report": Report,
    "recipe": Recipe,
}
#: Files of the site that are in no folder, by the document they describe.
SCHEMAS = {name: f"reference/{name}.schema.json" for name in DOCUMENTS}
_MARK = re.compile(r"^<!-- generated: (\w+) -->$", re.MULTILINE)
_ROLE = re.compile(r":(?:class|func|mod|meth|data|attr):(?=<code|`)")
_WORDS = {
    str: "text",
    int: "integer",
    float: "number",
    bool: "true or false",
    type(None): "null",
}
_SCALARS = {str: "string", int: "integer", bool: "boolean"}


def on_files(files: Any, config: Any) -> Any:
    """Add the JSON Schema of every document."""
    from mkdocs.structure.files import File

    for name, path in SCHEMAS.items():
        text = json.dumps(json_schema(DOCUMENTS[name]), indent=2) + "\n"
        files.append(File.generated(config, path, content=text))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put what is generated in the place of its mark."""
    return _MARK.sub(lambda mark: generated(mark[1]), markdown)


def on_page_content(html: str, **_: Any) -> str:
    """Docstrings name objects as ``:class:`Name```; a reader needs the name only."""
    return _ROLE.sub("", html)


def generated(what: str) -> str:
    """Markdown of ``commands``, or of the fields of a document."""
    return commands() if what == "commands" else fields(DOCUMENTS[what])


# The command line


def parser_of(verb: str) -> tuple[types.ModuleType, Parser]:
    """The module that runs a verb, and its parser."""
    module = importlib.import_module(f"edgekit.{verb}")
    if hasattr(module, "__path__"):
        module = importlib.import_module(f"edgekit.{verb}.__main__")
    return module, module.parser()


def commands() -> str:
    """All verbs: the manual, the options and the examples of each."""
    parts: list[str] = []
    for verb, summary in VERBS.items():
        module, parser = parser_of(verb)
        manual = _ROLE.sub("", inspect.getdoc(module) or "").split("\n\n", 1)
        parts += [f"## edgekit {verb}", f"{summary[0].upper()}{summary[1:]}.", *manual[1:]]
        actions = list(_actions(parser))
        parts += _parser(parser, described=False)
        for name, action in actions:
            parts += [f"### edgekit {verb} {name}", *_parser(action, described=True)]
    return "\n\n".join(parts)


def _actions(parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            yield from action.choices.items()


def _parser(parser: argparse.ArgumentParser, *, described: bool) -> Iterator[str]:
    if described and parser.description:
        yield _escaped(" ".join(parser.description.split()))
    formatter = parser._get_formatter()
    shown: list[str] = []
    for action in sorted(parser._actions, key=lambda each: each.dest == "traceback"):
        if isinstance(action, argparse._HelpAction | argparse._SubParsersAction):
            continue
        name = formatter._format_action_invocation(action)
        text = " ".join(formatter._expand_help(action).split()) if action.help else ""
        required = ["required"] if action.required and action.option_strings else []
        shown.append(f"`{name}`\n:   {_escaped('; '.join([*required, text]))}")
    yield "\n\n".join(shown)
    if parser.epilog:
        title, _, examples = parser.epilog.partition("\n")
        yield f"{title.capitalize()}\n\n```sh\n{inspect.cleandoc(examples)}\n```"


def _escaped(text: str) -> str:
    """Text of a terminal as Markdown that shows the same; what is in backticks stays."""
    pieces = re.split(r"(`[^`]+`)", text)
    pieces[::2] = [re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", piece) for piece in pieces[::2]]
    return "".join(pieces)


# Documents


def json_schema(document: type[schema.Document]) -> dict[str, Any]:
    """JSON Schema (2020-12) of what ``edgekit.base.schema`` reads as this document."""
    classes = list(_classes(document))
    definitions = {cls.__name__: _object(cls) for cls in classes}
    root = definitions.pop(document.__name__)
    root["properties"]["schema_version"] = {"const": document.VERSION}
    root["required"] = sorted({*root["required"], "schema_version"})
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": document.WHAT,
        **root,
        "$defs": definitions,
    }


def fields(document: type[schema.Document]) -> str:
    """A table of the fields of a document, and of every object inside of it."""
    parts = []
    for cls in _classes(document):
        told, hints = _told(cls), typing.get_type_hints(cls)
        rows = [
            f"| `{field.name}`{'' if _is_required(field) else ' (optional)'} "
            f"| {_type(hints[field.name])} | {_cell(told.get(field.name, ''))} |"
            for field in dataclasses.fields(cls)
            if field.name != "schema_version"
        ]
        if cls is document:
            told_version = "the only version that is read"
            rows.append(f"| `schema_version` | `{document.VERSION}` | {told_version} |")
        summary = _ROLE.sub("", (inspect.getdoc(cls) or "").partition("\n\n")[0])
        parts += [f"## {cls.__name__}", summary, "\n".join([_HEAD, *rows])]
    return "\n\n".join(parts)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


_HEAD = "| field | type | meaning |\n|---|---|---|"


def _classes(cls: type, known: list[type] | None = None) -> list[type]:
    """A dataclass and those of its fields, in the order in which a reader meets them."""
    known = [] if known is None else known
    if cls not in known:
        known.append(cls)
        for hint in typing.get_type_hints(cls).values():
            for each in _inside(hint):
                _classes(each, known)
    return known


def _inside(hint: Any) -> Iterator[type]:
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        yield hint
    if get_origin(hint) not in (None, Literal, typing.ClassVar):
        for each in get_args(hint):
            yield from _inside(each)


def _told(cls: type) -> dict[str, str]:
    """The ``Attributes:`` of a docstring, by name."""
    _, _, block = (inspect.getdoc(cls) or "").partition("Attributes:\n")
    entries = re.split(r"^    (?=\w+:)", block, flags=re.MULTILINE)[1:]
    pairs = (entry.split("\n\n")[0].partition(":") for entry in entries)
    return {name: _ROLE.sub("", " ".join(text.split())) for name, _, text in pairs}


def _is_required(field: Any) -> bool:
    return field.default is field.default_factory is dataclasses.MISSING


def _object(cls: type) -> dict[str, Any]:
    told, hints = _told(cls), typing.get_type_hints(cls)
    properties = {}
    for field in dataclasses.fields(cls):
        text = told.get(field.name)
        properties[field.name] = _schema(hints[field.name]) | (
            {"description": text} if text else {}
        )
    return {
        "type": "object",
        "properties": properties,
        "required": [field.name for field in dataclasses.fields(cls) if _is_required(field)],
        "additionalProperties": False,
    }


def _schema(hint: Any) -> dict[str, Any]:
    origin, inner = get_origin(hint), get_args(hint)
    if hint is Any:
        return {}
    if hint is type(None):
        return {"type": "null"}
    if hint is float:
        return {"anyOf": [{"type": "number"}, {"enum": ["Infinity", "-Infinity"]}]}
    if hint in _SCALARS:
        return {"type": _SCALARS[hint]}
    if origin in (Union, types.UnionType):
        return {"anyOf": [_schema(each) for each in inner]}
    if origin is Literal:
        return {"enum": list(inner)}
    if origin is list or (origin is tuple and inner[1:] == (Ellipsis,)):
        return {"type": "array", "items": _schema(inner[0])}
    if origin is tuple:
        sizes = {"minItems": len(inner), "maxItems": len(inner)}
        return {"type": "array", "prefixItems": [_schema(each) for each in inner], **sizes}
    if origin is dict:
        return {"type": "object", "additionalProperties": _schema(inner[1])}
    if dataclasses.is_dataclass(hint):
        return {"$ref": f"#/$defs/{typing.cast(type, hint).__name__}"}
    raise TypeError(f"expected a type that edgekit.base.schema reads, got {hint}")


def _type(hint: Any) -> str:
    """A type in words."""
    origin, inner = get_origin(hint), get_args(hint)
    if dataclasses.is_dataclass(hint):
        name = typing.cast(type, hint).__name__
        return f"[{name}](#{name.lower()})"
    if origin in (Union, types.UnionType):
        return " or ".join(map(_type, inner))
    if origin is Literal:
        return ", ".join(f"`{json.dumps(each)}`" for each in inner)
    if origin is list or (origin is tuple and inner[1:] == (Ellipsis,)):
        return f"list of {_type(inner[0])}"
    if origin is tuple:
        return f"[{', '.join(map(_type, inner))}]".replace("[", "\\[", 1)
    if origin is dict:
        return f"object of {_type(inner[1])}"
    return _WORDS.get(hint, "any")
