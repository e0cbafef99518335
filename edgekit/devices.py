"""``python -m edgekit.devices``: the places where deployables can run, and what they need.

``list`` shows every place that ``--on`` takes: whether it can be used, and what is there. Of this
machine it shows CPU, instruction sets, governor and temperature, and whether the clock can be
fixed, as a measurement of latency wants it. ``install`` makes what a place needs in the user's
cache. For ``qemu:arm64`` that is an ARM Python with the ARM builds of both runtimes: ``apt-get``
and ``pip`` fetch them from where they are set up to, or ``--packages`` names a folder that holds
them. Each is checked by its sha256. Nothing is installed on the system.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from edgekit.base import cli, words
from edgekit.base.text import visible_lines
from edgekit.evaluation.machines import At, at_hand
from edgekit.runtimes import qemu

__all__ = ["at_hand", "main", "parser"]

#: Places that something can be installed for.
_INSTALLED = (qemu.WORD,)


def parser() -> cli.Parser:
    """Options of ``python -m edgekit.devices``."""
    result = cli.Parser(
        "devices",
        description="List the places where deployables can run; install what a place needs.",
        examples=f"""
python -m edgekit.devices list
python -m edgekit.devices install {qemu.WORD}
python -m edgekit.devices install {qemu.WORD} --packages folder/of/deb-and-whl
""",
    )
    kind: Any = _sub_parser
    actions = result.add_subparsers(
        dest="action", required=True, metavar="ACTION", parser_class=kind
    )
    actions.add_parser("list", help="show what is at hand", description="Show what is at hand.")
    add = actions.add_parser(
        "install",
        help="make what a place needs",
        description="Make what a place needs, in the user's cache.",
    )
    add.add_argument("place", metavar="PLACE", help=f"{' or '.join(_INSTALLED)}")
    add.add_argument(
        "--packages",
        type=Path,
        metavar="FOLDER",
        help="folder with the .deb files and wheels (default: what apt-get and pip fetch)",
    )
    add.add_argument(
        "--newer",
        action="store_true",
        help="take Debian's packages in another version than the one that was tried",
    )
    add.add_argument("--force", action="store_true", help="replace what is installed")
    return result


def _sub_parser(*, prog: str, **options: Any) -> cli.Parser:
    verb = prog.removeprefix("edgekit ")
    examples = {
        "list": "python -m edgekit.devices list",
        "install": f"python -m edgekit.devices install {qemu.WORD}",
    }
    return cli.Parser(verb, description=options["description"], examples=examples[verb.split()[-1]])


def _show(places: Sequence[At]) -> None:
    table = Table()
    for column in ("place", "times count", "at hand"):
        table.add_column(column, no_wrap=column != "at hand")
    for each in places:
        said = "\n".join(each.facts) if each.ready else f"no: {each.missing}"
        times = "yes" if each.times else "no"
        table.add_row(cli.plain(each.place), times, escape(visible_lines(said)))
    cli.console.print(table)


def _act(options: argparse.Namespace) -> cli.Outcome:
    if options.action == "list":
        places = at_hand()
        _show(places)
        return 0, {"places": places}
    words.one_of("PLACE", options.place, _INSTALLED)
    root = qemu.install(
        options.packages, newer=options.newer, force=options.force, progress=cli.reporter
    )
    cli.say(f"{options.place}: installed in {root}")
    return 0, {"place": options.place, "root": str(root)}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the verb."""
    return cli.run(parser(), _act, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
