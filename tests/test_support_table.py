"""docs/reference/conversion.md says of each layer what it becomes; here it is tried."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
from conftest import ROOT

#: Of every kind of cell, and of what was a fault before.
QUICK = ("Conv2DTranspose", "LSTM, GRU", "selu", "PReLU", "where, with logical operators")


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "support_table", ROOT / "benchmarks" / "support_table.py"
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _table(script: ModuleType) -> dict[str, list[str]]:
    """The cells of each layer, in words."""
    page = (ROOT / "docs" / "reference" / "conversion.md").read_text(encoding="utf-8")
    lines = page.split(f"\n{script.SECTION}\n")[1].splitlines()
    rows = [line.strip("| ").split(" | ") for line in lines if line.startswith("| ")][1:]
    notes = {line[2:5]: line[6:] for line in lines if line.startswith("- [")}
    found = {}
    for name, *cells in rows:
        found[name] = [
            f"refused: {notes[cell[-3:]]}" if cell.startswith("refused") else cell for cell in cells
        ]
    return found


def test_the_page_names_every_layer(script: ModuleType) -> None:
    table = _table(script)
    assert tuple(table) == script.NAMES
    assert all(len(cells) == len(script.FORMATS) for cells in table.values())


@pytest.mark.parametrize("name", QUICK)
def test_a_layer_becomes_what_the_page_says(script: ModuleType, name: str, tmp_path: Path) -> None:
    path, samples = script.built(name, tmp_path)
    for (target, precision), cell in zip(script.FORMATS, _table(script)[name], strict=True):
        if precision == "int8":
            found = script.outcome(path, samples, target, precision, tmp_path)
            assert _without_numbers(found) == _without_numbers(cell)


@pytest.mark.slow
def test_every_layer_becomes_what_the_page_says(script: ModuleType) -> None:
    for name, cells in _table(script).items():
        assert [*map(_without_numbers, script.row(name))] == [*map(_without_numbers, cells)], name


def _without_numbers(text: str) -> str:
    """Keras counts the models of a process."""
    return "".join(letter for letter in text if not letter.isdigit() and letter != "_")
