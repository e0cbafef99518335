"""``python -m edgekit.sign``: sign artifacts, reports and baselines, and verify them.

``keygen`` makes an Ed25519 key pair (RFC 8032). ``sign`` writes a signature beside the file that it
signs. For an artifact it signs the bytes of ``manifest.json``, which name the sha256 of every file;
the signature is ``manifest.json.sig`` in the folder. For a report or a baseline it signs the bytes
of the file; the signature is ``FILE.sig``. ``verify`` refuses a changed byte, a file that is
missing or was added, and another key, with exit status 2.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgekit.base import cli
from edgekit.records.signing import Signed, keygen, sign, verify

__all__ = ["keygen", "main", "parser", "sign", "verify"]


def parser() -> cli.Parser:
    """Options of ``python -m edgekit.sign``."""
    result = cli.Parser(
        "sign",
        description="Sign artifacts, reports and baselines with Ed25519, and verify them.",
        examples="""
python -m edgekit.sign keygen release.key  # and release.key.pub
python -m edgekit.sign sign build/mine-int8 --key release.key
python -m edgekit.sign verify build/mine-int8 --public release.key.pub
python -m edgekit.sign verify report.json --public release.key.pub \\
    --artifact build/mine-int8
""",
    )
    kind: Any = _sub_parser
    actions = result.add_subparsers(
        dest="action", required=True, metavar="ACTION", parser_class=kind
    )
    make = actions.add_parser("keygen", help="make a key pair", description="Make a key pair.")
    make.add_argument("key", type=Path, metavar="KEY", help="private key to write; also KEY.pub")
    make.add_argument("--force", action="store_true", help="replace KEY and KEY.pub if they exist")
    vouch = actions.add_parser("sign", help="write a signature", description="Write a signature.")
    vouch.add_argument(
        "path", type=Path, metavar="PATH", help="artifact folder, report or baseline"
    )
    vouch.add_argument(
        "--key", type=Path, required=True, metavar="KEY", help="private key that keygen wrote"
    )
    vouch.add_argument("--force", action="store_true", help="replace a signature that is there")
    check = actions.add_parser("verify", help="check a signature", description="Check a signature.")
    check.add_argument(
        "path", type=Path, metavar="PATH", help="artifact folder, report or baseline"
    )
    check.add_argument(
        "--public", type=Path, required=True, metavar="KEY.pub", help="public key that keygen wrote"
    )
    check.add_argument(
        "--artifact",
        type=Path,
        action="append",
        default=[],
        metavar="FOLDER",
        help="with a report: an artifact that the report has to contain; repeatable",
    )
    return result


def _sub_parser(*, prog: str, **options: Any) -> cli.Parser:
    verb = prog.removeprefix("edgekit ")
    word = verb.split()[-1]
    examples = {
        "keygen": "python -m edgekit.sign keygen release.key",
        "sign": "python -m edgekit.sign sign exports/baseline.json --key release.key",
        "verify": "python -m edgekit.sign verify exports/baseline.json --public release.key.pub",
    }
    return cli.Parser(verb, description=options["description"], examples=examples[word])


def _act(options: argparse.Namespace) -> cli.Outcome:
    if options.action == "keygen":
        public = keygen(options.key, force=options.force)
        cli.say(f"{options.key}: keep it secret; {public}: give it to those who verify")
        return 0, {"private": str(options.key), "public": str(public)}
    if options.action == "sign":
        place = sign(options.path, key=options.key, force=options.force)
        cli.say(f"{place}: signature of {options.path}")
        return 0, {"signature": str(place), "key": Signed.load(place).key}
    signed = verify(options.path, public=options.public, artifacts=options.artifact)
    cli.say(f"{options.path}: signed with {options.public}, every byte as it was")
    return 0, {"verified": str(options.path), "key": signed.key, "sha256": signed.sha256}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the verb."""
    return cli.run(parser(), _act, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
