"""Every command and every Python block of docs/ runs, in the order in which a reader meets them."""

from __future__ import annotations

import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT

PAGES = ("android", "raspberry-pi", "onnxruntime-x86", "github-actions")
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
#: What a board has not got.
_ABSENT = ("tensorflow", "tf_keras", "tensorflow_model_optimization", "onnx", "tf2onnx", "keras")


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """mine.keras and photos: three kinds of animals, each of a colour of its own."""
    from PIL import Image

    from edgekit.sources.keras import tf_keras

    folder = tmp_path_factory.mktemp("docs")
    random = np.random.default_rng(0)
    pixels, labels = [], []
    for split, count in (("train", 60), ("test", 20)):
        for label, name in enumerate(("cat", "dog", "fox")):
            place = folder / "photos" / split / name
            place.mkdir(parents=True)
            for number in range(count):
                picture = random.integers(0, 120, (40, 48, 3), dtype=np.uint8)
                picture[..., label] += 100
                Image.fromarray(picture).save(place / f"{number}.jpg")
                pixels.append(picture[:32, :32])
                labels.append(label)
    keras = tf_keras()
    layers = keras.layers
    keras.utils.set_random_seed(1)
    image = keras.Input((32, 32, 3), name="image")
    x = layers.Conv2D(8, 3, strides=2, padding="same", use_bias=False)(image)
    x = layers.ReLU(6.0)(layers.BatchNormalization()(x))
    x = layers.ReLU(6.0)(layers.DepthwiseConv2D(3, padding="same")(x))
    x = layers.Dense(3, activation="softmax")(layers.GlobalAveragePooling2D()(x))
    model = keras.Model(image, x)
    model.compile(keras.optimizers.Adam(0.02), "sparse_categorical_crossentropy")
    model.fit(np.array(pixels) / 255, np.array(labels), epochs=8, verbose=0)
    model.save(folder / "mine.keras")
    return folder


def _commands(block: str) -> list[str]:
    return [line for line in block.replace("\\\n", " ").splitlines() if line.strip()]


def _run(command: str, folder: Path) -> None:
    """A verb in this process, which has TensorFlow already; anything else in a shell."""
    words = shlex.split(command)
    if words[:2] == ["python", "-m"] and words[2].startswith("edgekit."):
        verb = importlib.import_module(words[2])
        verb = (
            importlib.import_module(f"{words[2]}.__main__") if hasattr(verb, "__path__") else verb
        )
        assert verb.main(words[3:]) == 0, command
        return
    done = subprocess.run(
        ["bash", "-euc", command], cwd=folder, capture_output=True, text=True, env=_shell(folder)
    )
    assert done.returncode == 0, f"{command}\n{done.stderr}"


def _shell(folder: Path) -> dict[str, str]:
    """``python`` is this one; pip asks nobody; a board finds no framework in its path."""
    absent = folder / "absent"
    absent.mkdir(exist_ok=True)
    for name in _ABSENT:
        (absent / f"{name}.py").write_text("raise ImportError('not on a board')\n")
    packages = next(path for path in sys.path if path.endswith("site-packages"))
    here = Path(sys.executable).parent
    return {
        **os.environ,
        "PATH": f"{here}:{os.environ['PATH']}",
        "PYTHONPATH": f"{absent}:{packages}",
        "PIP_NO_INDEX": "1",
        "PIP_NO_DEPS": "1",
        "PIP_NO_BUILD_ISOLATION": "off",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    }


@pytest.mark.parametrize("page", PAGES)
def test_every_command_of_a_page_runs(
    page: str,
    workspace: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
    folder = tmp_path / "work"
    shutil.copytree(workspace, folder)
    monkeypatch.chdir(folder)
    if "./edgekit" in text:
        checkout = folder / "edgekit"
        shutil.copytree(ROOT / "edgekit", checkout / "edgekit")
        for name in ("pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(ROOT / name, checkout / name)
    ran: list[str] = []
    for kind, block in _BLOCK.findall(text):
        if kind == "sh":
            for command in _commands(block):
                _run(command, folder)
                ran.append(" ".join(command.split()))
        elif kind == "python":
            exec(compile(block, f"{page}.md", "exec"), {})
            assert capsys.readouterr().out.split()[-2] in ("0", "1", "2")
        elif kind == "toml":
            (folder / "pyproject.toml").write_text(block)
        elif kind == "yaml":
            steps = [" ".join(line.split()) for line in _commands(block)]
            for step in (step for step in steps if step.startswith("python -m edgekit.")):
                assert step.removesuffix(" --force") in ran, step
    assert len(ran) >= 4
    for name in re.findall(r"`(build/[\w./-]+)`", text):
        assert (folder / name).exists(), name


def test_pages_are_linked_and_their_links_lead_somewhere() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    headings = {
        re.sub(r"[^\w -]", "", line.lstrip("# ").lower()).replace(" ", "-")
        for line in readme.splitlines()
        if line.startswith("#")
    }
    for page in PAGES:
        assert f"(docs/{page}.md)" in readme
        text = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
        for link in re.findall(r"\]\(([^)]+)\)", text):
            path, _, heading = link.partition("#")
            assert (ROOT / "docs" / path).exists(), link
            assert not heading or heading in headings, link
