"""Malformed files: models, artifacts, data, tables, reports, manifests, preprocessing, signatures.

``cases`` makes them from good ones. Every one of them has to be refused by every verb that reads
its kind: exit status 2, one line, nothing written. A change that leaves a file equal in meaning is
no case: bytes are changed to what no text holds, or under the sha256 of a manifest.
"""

from __future__ import annotations

import copy
import io
import json
import os
import pickle
import shutil
import struct
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Make = Callable[[Path], None]


@dataclass(frozen=True)
class Good:
    """What the cases are made from; none of it is changed.

    Attributes:
        keras: A ``.keras`` file.
        images: An ``.npz`` with ``x`` and ``y``.
        tflite: int8 artifact.
        onnx: int8 artifact of the same model.
        table: Calibration table of the model.
        report: Of any model.
        preprocessing: A file.
    """

    keras: Path
    images: Path
    tflite: Path
    onnx: Path
    table: Path
    report: Path
    preprocessing: Path


@dataclass(frozen=True)
class Case:
    """One malformed input.

    Attributes:
        kind: ``keras npz tflite onnx table report manifest encodings preprocessing``.
        name: What is wrong with it.
        make: Writes it to a path that does not exist.
    """

    kind: str
    name: str
    make: Make


def cases(good: Good) -> list[Case]:
    """All of them, in a fixed order."""
    found = []
    for kind, source, broken in (
        ("report", good.report, json_values(good.report, "settings")),
        ("table", good.table, json_values(good.table, None)),
        ("preprocessing", good.preprocessing, json_values(good.preprocessing, None)),
    ):
        for name, make in (*json_files(source), *broken, *no_files(source)):
            found.append(Case(kind, name, make))
    manifest = good.onnx / "manifest.json"
    for name, make in (*json_files(manifest), *json_values(manifest, "training"), *manifests(good)):
        found.append(Case("manifest", name, _inside(good.onnx, "manifest.json", make)))
    encodings = good.onnx / "encodings.json"
    for name, make in [*json_files(encodings)][::3] + [*json_values(encodings, None)][::2]:
        found.append(Case("encodings", name, _inside(good.onnx, "encodings.json", make, hash=True)))
    for kind, source in (("tflite", good.tflite), ("onnx", good.onnx)):
        model = f"model.{kind}"
        for name, make in (*flips(source / model), *binaries(source / model)):
            found.append(Case(kind, name, _inside(source, model, make)))
        for name, make in binaries(source / model):
            found.append(
                Case(kind, f"{name}, hash made right", _inside(source, model, make, hash=True))
            )
        found.append(Case(kind, "empty folder", lambda path: path.mkdir()))
    for name, make in (*binaries(good.keras), *archives(good.keras), *no_files(good.keras)):
        found.append(Case("keras", name, make))
    for name, make in (*binaries(good.images), *arrays(good.images), *no_files(good.images)):
        found.append(Case("npz", name, make))
    return found


def _write(content: bytes) -> Make:
    return lambda path: path.write_bytes(content) and None


def _inside(source: Path, name: str, make: Make, *, hash: bool = False) -> Make:
    """A copy of an artifact with one file made anew, and its sha256 put right if asked for."""

    def build(path: Path) -> None:
        shutil.copytree(source, path)
        (path / name).unlink()
        make(path / name)
        if hash and (path / name).is_file():
            from edgekit.base.outputs import sha256_file

            manifest = json.loads((path / "manifest.json").read_text())
            manifest["files"][name] = sha256_file(path / name)
            (path / "manifest.json").write_text(json.dumps(manifest))

    return build


def no_files(source: Path) -> Iterator[tuple[str, Make]]:
    """Instead of a file."""
    yield "folder", lambda path: path.mkdir()
    yield "link to nowhere", lambda path: path.symlink_to("nowhere")
    yield "link to itself", lambda path: path.symlink_to(path.name)
    if source.suffix in (".keras", ".npz"):  # JSON may come through a pipe
        yield "pipe", lambda path: os.mkfifo(path)
    yield "missing", lambda path: None


def json_files(source: Path) -> Iterator[tuple[str, Make]]:
    """Text that is no JSON, or not of this kind."""
    text = source.read_text(encoding="utf-8").strip()
    content = text.encode()
    for part in range(6):
        at = 1 + part * (len(content) - 2) // 5
        yield f"cut at {at}", _write(content[:at])
    random = np.random.default_rng(0)
    for byte in (0x00, 0x1B, 0xFF, 0xC0):
        at = int(random.integers(1, len(content)))
        yield f"byte {at} is {byte:#x}", _write(content[:at] + bytes([byte]) + content[at + 1 :])
    for name, other in {
        "empty": b"",
        "white space": b" \n\t",
        "null": b"null",
        "true": b"true",
        "a number": b"2",
        "a list": b"[]",
        "an object": b"{}",
        "a text": b'"report"',
        "NaN": b"NaN",
        "UTF-16": text.encode("utf-16"),
        "a byte order mark": b"\xef\xbb\xbf" + content,
        "two documents": content + content,
        "a comma too many": content[:-1] + b",}",
        "single quotes": text.replace('"', "'").encode(),
        "pickle": pickle.dumps({"schema_version": 1}),
        "HTML": b"<!doctype html><html></html>",
        "deep lists": b"[" * 100_000,
        "deep objects": b'{"a":' * 100_000,
        "closed deep lists": b"[" * 900 + b"]" * 900,
    }.items():
        yield name, _write(other)


def json_values(source: Path, free: str | None) -> Iterator[tuple[str, Make]]:
    """JSON with a value that does not belong there; ``free`` is a key that takes any object."""
    good = json.loads(source.read_text(encoding="utf-8"))
    content = json.dumps(good)

    def changed(**values: Any) -> Make:
        return _write(json.dumps({**copy.deepcopy(good), **values}).encode())

    def raw(key: str, text: str) -> Make:
        """A value as text, which Python could not write."""
        marked = json.dumps({**good, key: "@@"})
        return _write(marked.replace('"@@"', text).encode())

    first = next(iter(good))
    for key, value in good.items():
        yield (
            f"{key} of another type",
            changed(**{key: [[3]] if not isinstance(value, list) else 3}),
        )
    yield "unknown key", changed(surprise=1)
    yield "key twice", _write(f'{content[:-1]}, "{first}": {json.dumps(good[first])}}}'.encode())
    yield (
        "first key missing",
        _write(json.dumps({key: value for key, value in good.items() if key != first}).encode()),
    )
    for name, text in {
        "NaN": "NaN",
        "infinite": "-Infinity",
        "1e999": "1e999",
        "400 digits": "1" + "0" * 400,
        "5,000 digits": "1" * 5000,
        "half a character": '"\\ud800"',
    }.items():
        yield f"{first} is {name}", raw(first, text)
    if "schema_version" in good:
        for version in (0, 99, -1, True, "1", None, [1], {"a": 1}, 1.0, 10**30):
            yield f"schema_version {version!r}", changed(schema_version=version)
    if free is not None:
        yield "deep free values", raw(free, '{"a":' * 200 + "1" + "}" * 200)
        yield "deeper free values", raw(free, '{"a":' * 5000 + "1" + "}" * 5000)
        yield "NaN in free values", raw(free, '{"a": NaN}')
        yield "1e999 in free values", raw(free, '{"a": 1e999}')
        yield "5,000 digits in free values", raw(free, '{"a": ' + "9" * 5000 + "}")
        yield "half a character in free values", raw(free, '{"\\udcff": "\\ud800"}')
        yield "key twice in free values", raw(free, '{"a": 1, "a": 2}')


def manifests(good: Good) -> Iterator[tuple[str, Make]]:
    """Manifests that point at what they must not."""
    source = json.loads((good.onnx / "manifest.json").read_text())

    def changed(**values: Any) -> Make:
        return _write(json.dumps({**source, **values}).encode())

    hashes = source["files"]
    for name in (
        "../model.onnx",
        "/etc/passwd",
        "..",
        "",
        "a/b",
        "manifest.json",
        "a\x00b",
        "x" * 300,
    ):
        yield f"names {name[:20]!r}", changed(files={**hashes, name: "00"})
    yield "the model is not among its files", changed(model_file="other.onnx")
    yield "no files", changed(files={})
    yield "a hash of nothing", changed(files={**hashes, "model.onnx": ""})
    yield "a hash in capitals", changed(files={**hashes, "model.onnx": "A" * 64})
    yield "a file that is not there", changed(files={**hashes, "gone": "0" * 64})
    signature = copy.deepcopy(source["signature"])
    signature["inputs"][0]["dtype"] = "object"
    yield "dtype object", changed(signature=signature)
    signature = copy.deepcopy(source["signature"])
    signature["inputs"][0]["scale"] = -1.0
    yield "scale without zero_point", changed(signature=signature)
    yield (
        "preprocessing without a scale",
        changed(preprocessing={"name": "x", "scale": [], "offset": [0]}),
    )
    yield (
        "preprocessing of scale 0",
        changed(preprocessing={"name": "x", "scale": [0], "offset": [0]}),
    )


def flips(source: Path) -> Iterator[tuple[str, Make]]:
    """One bit, under the manifest's sha256."""
    content = source.read_bytes()
    random = np.random.default_rng(1)
    for _ in range(8):
        at, bit = int(random.integers(len(content))), int(random.integers(8))
        changed = bytearray(content)
        changed[at] ^= 1 << bit
        yield f"bit {bit} of byte {at}", _write(bytes(changed))
    yield "a byte more", _write(content + b"\x00")


def binaries(source: Path) -> Iterator[tuple[str, Make]]:
    """Cut short, or something else altogether."""
    content = source.read_bytes()
    for part in (0.001, 0.02, 0.3, 0.7, 0.95):
        at = max(1, int(part * len(content)))
        yield f"cut at {at}", _write(content[:at])
    half = len(content) // 2
    random = np.random.default_rng(2)
    for name, other in {
        "empty": b"",
        "one byte": b"\x00",
        "zeros": bytes(4096),
        "noise": random.bytes(4096),
        "the second half": content[half:],
        "text": b"not a model\n" * 9,
        "pickle": pickle.dumps([1, 2, 3]),
        "an empty archive": b"PK\x05\x06" + bytes(18),
        "another magic": b"\x89PNG\r\n\x1a\n" + content[8:2000],
        "JSON": b"{}",
        "huge offsets": b"\xff\xff\xff\x7fTFL3" + b"\xff" * 64,
    }.items():
        yield name, _write(other)


def archives(source: Path) -> Iterator[tuple[str, Make]]:
    """Archives as ``.keras`` files are, with a member broken."""
    with zipfile.ZipFile(source) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    config = next(name for name in members if name.endswith("config.json"))
    weights = next(name for name in members if name.endswith(".h5"))
    lost = json.loads(members[config])
    lost["config"] = {}
    strange = json.loads(members[config])
    strange["class_name"], strange["module"] = "system", "os"
    for name, change in {
        "without config": {config: None},
        "without weights": {weights: None},
        "config is no JSON": {config: b"{"},
        "config is a list": {config: b"[]"},
        "config is deep": {config: b"[" * 50_000},
        "config is empty": {config: json.dumps(lost).encode()},
        "config asks for os.system": {config: json.dumps(strange).encode()},
        "weights are cut": {weights: members[weights][:1000]},
        "weights are text": {weights: b"weights"},
        "weights are a bomb": {weights: bytes(20_000_000)},
    }.items():
        yield name, _write(_zip({**members, **change}))


def _zip(members: dict[str, bytes | None]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            if content is not None:
                archive.writestr(name, content)
    return stream.getvalue()


def _npy(header: str, content: bytes = b"", version: bytes = b"\x01\x00") -> bytes:
    text = header.encode("latin-1")
    return b"\x93NUMPY" + version + struct.pack("<H", len(text)) + text + content


def _header(shape: str, dtype: str = "'|u1'") -> str:
    return f"{{'descr': {dtype}, 'fortran_order': False, 'shape': {shape}}}\n"


def arrays(source: Path) -> Iterator[tuple[str, Make]]:
    """Archives of arrays that are no image set."""
    with np.load(source) as archive:
        x, y = archive["x"], archive["y"]
    pixels = len(x) * x[0].size

    def saved(**members: Any) -> Make:
        stream = io.BytesIO()
        np.savez(stream, **members)
        return _write(stream.getvalue())

    good = io.BytesIO()
    np.save(good, y)
    labels = good.getvalue()

    def packed(member: bytes) -> Make:
        return _write(_zip({"x.npy": member, "y.npy": labels}))

    objects = np.array([{"a": 1}] * len(x), dtype=object)
    yield from {
        "pickled images": saved(x=objects, y=y),
        "pickled labels": saved(x=x, y=objects),
        "no images": saved(y=y),
        "other names": saved(images=x, labels=y),
        "nothing": saved(),
        "no image": saved(x=x[:0], y=y[:0]),
        "labels too few": saved(x=x, y=y[:-1]),
        "labels below 0": saved(x=x, y=y - 100),
        "labels too large": saved(x=x, y=y + 1000),
        "labels as float": saved(x=x, y=y.astype(np.float32)),
        "labels as a table": saved(x=x, y=np.stack([y, y], 1)),
        "images as text": saved(x=np.array(["a"] * len(x)), y=y),
        "complex images": saved(x=x.astype(np.complex64), y=y),
        "images as int64": saved(x=x.astype(np.int64), y=y),
        "NaN": saved(x=np.full(x.shape, np.nan, np.float32), y=y),
        "infinite": saved(x=np.full(x.shape, np.inf, np.float32), y=y),
        "flat": saved(x=np.zeros(len(x), np.uint8), y=y),
        "another size": saved(x=x[:, :5], y=y),
        "a scalar": saved(x=np.uint8(1), y=y),
        "a bare array": _write(labels),
        "member is empty": packed(b""),
        "member is text": packed(b"not an array"),
        "member is a header only": packed(_npy(_header(str(x.shape)))),
        "version 9": packed(_npy(_header("(2,)"), version=b"\x09\x00")),
        "header is cut": packed(_npy(_header(str(x.shape)))[:20]),
        "header has no end": packed(_npy("{'descr': '|u1', 'shape': ((((")),
        "header calls": packed(_npy(_header("__import__('os').system('true')"))),
        "header is deep": packed(_npy("(" * 3000 + ")" * 3000)),
        "header is another thing": packed(_npy("[1, 2]\n")),
        "shape is huge": packed(_npy(_header("(4611686018427387904, 4, 12, 3)"), bytes(99))),
        "shape is large": packed(_npy(_header("(99999999999, 12, 12, 3)"), bytes(99))),
        "shape is negative": packed(_npy(_header("(-4, 12, 12, 3)"), bytes(pixels))),
        "shape is no number": packed(_npy(_header("('a', 12)"), bytes(99))),
        "dtype is unknown": packed(_npy(_header(str(x.shape), "'|q9'"), bytes(pixels))),
        "dtype is empty": packed(_npy(_header(str(x.shape), "'|V0'"), bytes(pixels))),
        "a bomb behind the array": packed(_npy(_header(str(x.shape)), bytes(30_000_000))),
        "checksum": _write(_one_bit_of_a_member(source)),
        "unknown compression": _write(_patched(source, 8, 99)),
        "encrypted": _write(_patched(source, 6, 1)),
    }.items()


def _one_bit_of_a_member(source: Path) -> bytes:
    content = bytearray(source.read_bytes())
    content[len(content) // 2] ^= 1
    return bytes(content)


def _patched(source: Path, offset: int, value: int) -> bytes:
    """A field of 16 bits in all headers: 6 the flags, 8 the compression, of a local header."""
    content = bytearray(source.read_bytes())
    for magic, more in ((b"PK\x03\x04", 0), (b"PK\x01\x02", 2)):
        at = content.find(magic)
        while at >= 0:
            struct.pack_into("<H", content, at + offset + more, value)
            at = content.find(magic, at + 4)
    return bytes(content)
