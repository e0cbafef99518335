"""Malformed files: every verb that reads one refuses it in one line, and writes nothing."""

from __future__ import annotations

import collections
import importlib
import os
import shutil
import traceback
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import Done
from corpus import Case, Good, cases
from test_gate import artifact, make, write

from edgekit.base import schema
from edgekit.records.signature import Preprocessing

COUNT = 200
KINDS = (
    "report",
    "table",
    "preprocessing",
    "manifest",
    "encodings",
    "tflite",
    "onnx",
    "keras",
    "npz",
)


@pytest.fixture(scope="module")
def good(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Good:
    """Good files of a small net."""
    from exported import export

    from edgekit.calibrate import calibrate

    folder = tmp_path_factory.mktemp("good")
    keras = small / "small.keras"
    with np.load(small / "set.npz") as archive:
        images = archive["x"]
    np.savez(folder / "set.npz", x=images, y=np.arange(len(images)) % 5)
    table = folder / "table.json"
    found = calibrate(keras, dataset=str(folder / "set.npz"), preprocessing="unit")
    table.write_text(found.dumps())
    made = {
        target: export(
            keras,
            target=target,
            precision="int8",
            preprocessing="unit",
            calibration=str(folder / "set.npz"),
            correction="none",
            out=folder / target,
        ).path
        for target in ("tflite", "onnx")
    }
    unit = folder / "unit.json"
    unit.write_text(schema.dumps(Preprocessing("mine", (0.5,), (0.0,))))
    report = write(folder / "report.json", make(artifact("a", 60)))
    return Good(keras, folder / "set.npz", made["tflite"], made["onnx"], table, report, unit)


def commands(case: Case, path: Path, good: Good, out: Path) -> list[list[object]]:
    """Every way to read the file, verb first."""
    to_tflite = ("--target", "tflite", "--out", out)
    return {
        "report": [
            ["gate", path, "--baseline", good.report],
            ["gate", good.report, "--baseline", path],
            ["gate", path, "--baseline", out, "--update"],
            ["report", path, "--out", out],
        ],
        "table": [
            ["export", good.keras, "--preprocessing", "unit", *to_tflite]
            + ["--precision", "int8", "--calibration", path],
        ],
        "preprocessing": [
            ["export", good.keras, "--preprocessing", path, *to_tflite, "--precision", "float32"],
        ],
        "manifest": [
            ["benchmark", path],
            ["compare", path, "--out", out],
            ["parity", path, good.tflite],
            ["export", path, *to_tflite, "--precision", "float32"],
        ],
        "encodings": [["parity", path, good.tflite]],
        "tflite": [["parity", path, good.onnx]],
        "onnx": [["parity", path, good.tflite]],
        "keras": [
            ["export", path, "--preprocessing", "unit", *to_tflite, "--precision", "float32"],
        ],
        "npz": [
            ["compare", good.onnx, "--reference", good.keras, "--data", path, "--out", out],
        ],
    }[case.kind]


SUFFIXES = {
    "keras": ".keras",
    "npz": ".npz",
    "tflite": "",
    "onnx": "",
    "manifest": "",
    "encodings": "",
}


def state(folder: Path) -> list[tuple[str, int]]:
    """Everything in a folder, with sizes; links are not followed."""
    return sorted((str(path), path.lstat().st_size) for path in folder.rglob("*"))


def build(case: Case, folder: Path) -> Path:
    path = folder / f"bad{SUFFIXES.get(case.kind, '.json')}"
    case.make(path)
    return path


def problem(words: list[object], folder: Path, capfd: pytest.CaptureFixture[str]) -> str | None:
    """What is wrong with how a verb refuses, or None."""
    verb, *rest = map(str, words)
    before = state(folder)
    try:
        status = importlib.import_module(f"edgekit.{verb}").main(rest)
    except BaseException as exc:
        capfd.readouterr()
        return f"traceback: {''.join(traceback.format_exception(exc)[-3:])}"
    found = capfd.readouterr()
    lines = found.err.splitlines()
    if status != 2:
        return f"exit status {status}: {found.err[-300:]}"
    if len(lines) != 1 or not lines[0].startswith(f"edgekit {verb}: error: "):
        return f"{len(lines)} lines: {found.err[-600:]}"
    if len(lines[0]) > 1000:
        return f"a line of {len(lines[0])} characters: {lines[0][:200]}"
    if found.out:
        return f"printed {found.out[:200]}"
    return None if state(folder) == before else "something was written"


def test_there_are_enough_of_them(good: Good) -> None:
    found = collections.Counter(case.kind for case in cases(good))
    print(dict(found), sum(found.values()))
    assert set(found) == set(KINDS)
    assert sum(found.values()) >= COUNT
    assert min(found.values()) >= 10
    names = [(case.kind, case.name) for case in cases(good)]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("kind", KINDS)
def test_every_one_is_refused(
    kind: str, good: Good, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    problems = []
    for i, case in enumerate(case for case in cases(good) if case.kind == kind):
        folder = tmp_path / str(i)
        folder.mkdir()
        path = build(case, folder)
        for words in commands(case, path, good, folder / "out"):
            found = problem(words, folder, capfd)
            if found is not None:
                problems.append(f"{case.kind}, {case.name}, {words[0]}: {found}")
        shutil.rmtree(folder)
    assert not problems, f"{len(problems)} problems:\n" + "\n".join(problems)


@pytest.mark.parametrize("kind", ["report", "manifest", "npz", "keras", "onnx"])
def test_in_a_process_of_its_own(
    kind: str, good: Good, tmp_path: Path, edgekit: Callable[..., Done]
) -> None:
    case = [case for case in cases(good) if case.kind == kind][3]
    path = build(case, tmp_path)
    words = commands(case, path, good, tmp_path / "out")[0]
    before = state(tmp_path)
    done = edgekit(*map(str, words))
    assert done.status == 2
    assert len(done.stderr.splitlines()) == 1
    assert done.error and not done.stdout
    assert state(tmp_path) == before


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tflite", "onnx"])
def test_models_that_only_a_runtime_can_refuse(
    kind: str, good: Good, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Their hashes are right: a worker process opens them, and may die of them."""
    problems = []
    for i, case in enumerate(cases(good)):
        if case.kind != kind or "hash made right" not in case.name:
            continue
        folder = tmp_path / str(i)
        folder.mkdir()
        path = build(case, folder)
        for words in (
            ["benchmark", path, "--seconds", "0.1"],
            ["compare", path, "--reference", good.keras, "--data", good.images]
            + ["--out", folder / "out", "--work", tmp_path / f"work-{i}"],
        ):
            found = problem(words, folder, capfd)
            if found is not None:
                problems.append(f"{case.kind}, {case.name}, {words[0]}: {found}")
    assert not problems, f"{len(problems)} problems:\n" + "\n".join(problems)


def test_a_name_that_is_no_text(good: Good, tmp_path: Path, edgekit: Callable[..., Done]) -> None:
    """Linux takes any bytes as a name: what is refused, and what is made."""
    bad = os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe.json")
    assert "not found" in edgekit("gate", bad, "--baseline", good.report).error
    shutil.copy(good.report, bad)
    done = edgekit("report", bad, "--out", tmp_path / "x.html")
    assert done.status == 0, done.stderr
