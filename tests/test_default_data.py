"""The shipped model's images are its own: no other is calibrated or judged on them."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from edgekit.base.errors import InvalidOptionError
from edgekit.sources import float_model

UNIT = ("--preprocessing", "unit")
VERBS: dict[str, tuple[list[str], str]] = {
    "calibrate": (["small.keras", *UNIT], "--data"),
    "export": (["small.keras", *UNIT, *"--target onnx --precision int8".split()], "--calibration"),
    "qat": (["small.keras", *UNIT, "--out", "out"], "--data"),
    "train": (["--from", "small.keras", *UNIT, "--out", "out"], "--data"),
}


@pytest.mark.parametrize("verb", VERBS)
def test_a_model_of_ones_own_needs_data_of_its_own(
    verb: str,
    small: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "small.keras").symlink_to(small / "small.keras")
    monkeypatch.chdir(tmp_path)
    arguments, option = VERBS[verb]
    assert importlib.import_module(f"edgekit.{verb}").main(arguments) == 2
    streams = capfd.readouterr()
    assert streams.out == ""
    assert f"expected {option} IMAGES for your own model, got none" in streams.err
    assert streams.err.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["small.keras"]


def test_the_shipped_model_and_what_is_made_from_it_bring_their_images(
    artifacts: dict[str, Path], small: Path
) -> None:
    shipped = (None, float_model.SHIPPED, *artifacts.values())
    assert float_model.data_word(None, *shipped) == "fashion_mnist"
    assert float_model.data_word("set.npz", small / "small.keras") == "set.npz"
    with pytest.raises(InvalidOptionError, match="small.keras"):
        float_model.data_word(None, *shipped, small / "small.keras")
    # what does not exist is for the verb to refuse
    assert float_model.data_word(None, Path("none.keras")) == "fashion_mnist"


@pytest.mark.parametrize(
    ("name", "word"), [("scenes_ssdlite_035", "scenes"), ("scenes_deeplab_035", "scenes:masks")]
)
def test_each_shipped_network_brings_its_data(name: str, word: str) -> None:
    assert float_model.data_word(None, float_model.SHIPPED.parent / name) == word
