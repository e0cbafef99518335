"""Every command and every Python block of :data:`PAGES` runs, in the order in which a reader meets
them; every link leads somewhere; what is generated is whole."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from conftest import ROOT

from edgekit.pipeline import recipe

#: Pages whose commands run.
PAGES = (
    "tutorials/android",
    "tutorials/raspberry-pi",
    "tutorials/onnxruntime-x86",
    "how-to/github-actions",
    "how-to/deploy",
    "how-to/your-data",
)
#: Those of which the commands take longest.
_LONG = PAGES[:2] + ("how-to/deploy", "how-to/your-data", "how-to/github-actions")
DOCS = ROOT / "docs"
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
    for number in range(4):
        name = f"cells/{{}}/{number}"
        for place in ("JPEGImages", "Annotations", "ImageSets/Main"):
            (folder / "cells" / place).mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(folder / f"{name.format('JPEGImages')}.jpg")
        (folder / f"{name.format('Annotations')}.xml").write_text(
            "<annotation><size><width>48</width><height>40</height></size><object><name>RBC</name>"
            "<bndbox><xmin>5</xmin><ymin>5</ymin><xmax>20</xmax><ymax>20</ymax></bndbox></object>"
            "</annotation>"
        )
    (folder / "cells/ImageSets/Main/train.txt").write_text("0\n1\n2\n")
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


@pytest.mark.parametrize(
    "page", [pytest.param(p, marks=pytest.mark.slow) if p in _LONG else p for p in PAGES]
)
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
        for name in ("edgekit", "calibration", "exports"):
            shutil.copytree(ROOT / name, checkout / name)
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


ALL = sorted(DOCS.rglob("*.md"))
#: With them the other texts of the repository.
TEXTS = [*ALL, *(ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "SECURITY"))]


@pytest.fixture(scope="module")
def hooks() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_hooks", DOCS / "hooks.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _headings(path: Path) -> set[str]:
    """The anchors of a page; a line of a block is no heading."""
    text = "".join(path.read_text(encoding="utf-8").split("```")[::2])
    return {
        re.sub(r"[^\w -]", "", line.lstrip("# ").lower()).replace(" ", "-")
        for line in text.splitlines()
        if line.startswith("#")
    }


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path, hooks: ModuleType) -> None:
    generated = {DOCS / name for name in hooks.SCHEMAS.values()}
    for link in re.findall(r"\]\(([^)]+)\)", path.read_text(encoding="utf-8")):
        if link.startswith("https://"):
            continue
        place, _, heading = link.partition("#")
        target = (path.parent / place).resolve() if place else path
        assert target.exists() or target in generated, link
        assert not heading or heading in _headings(target), link


def test_every_page_is_linked_from_the_readme_and_stands_in_the_site(hooks: ModuleType) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    site = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for path in ALL:
        name = path.relative_to(DOCS).as_posix()
        assert f"- {name}\n" in site, name
        text = path.read_text(encoding="utf-8")
        if "<!-- generated:" not in text and "\n:::" not in text:  # these are read on the site
            assert f"(docs/{name}" in readme, name


def test_the_command_line_is_whole(hooks: ModuleType) -> None:
    from edgekit.base.cli import VERBS

    page = hooks.on_page_markdown("<!-- generated: commands -->\n")
    options: list[str] = []
    for verb in VERBS:
        assert f"## edgekit {verb}\n" in page
        _, parser = hooks.parser_of(verb)
        for each in [parser, *(action for _, action in hooks._actions(parser))]:
            options += [name for action in each._actions for name in action.option_strings]
            examples = each.epilog.partition("\n")[2]
            assert all(line.strip() in page for line in examples.splitlines())
    assert len(options) > 150
    for option in sorted(set(options) - {"-h", "--help"}):
        assert re.search(rf"^`[^`]*{re.escape(option)}\b[^`]*`$", page, re.MULTILINE), option


def test_the_schemas_take_what_edgekit_reads_and_nothing_else(hooks: ModuleType) -> None:
    files = {
        "manifest": sorted((ROOT / "exports").glob("*/manifest.json")),
        "report": [
            ROOT / "exports" / "baseline.json",
            *sorted((ROOT / "tests" / "broken_calibration").glob("*.json")),
        ],
    }
    for name, paths in files.items():
        schema, document = hooks.json_schema(hooks.DOCUMENTS[name]), hooks.DOCUMENTS[name]
        fields = hooks.on_page_markdown(f"<!-- generated: {name} -->\n")
        assert len(paths) >= 2
        for path in paths:
            document.load(path)
            good = json.loads(path.read_text(encoding="utf-8"))
            assert _fault(schema, good, schema) == ""
            assert all(f"| `{key}`" in fields for key in good)
            for bad in (
                {**good, "unknown": 1},
                {**good, "model_id": 1},
                {**good, "schema_version": document.VERSION + 1},
                {key: value for key, value in good.items() if key != "model_id"},
            ):
                assert _fault(schema, bad, schema) != ""


def test_the_schema_of_a_recipe_takes_what_export_takes(hooks: ModuleType, tmp_path: Path) -> None:
    schema = hooks.json_schema(recipe.Recipe)
    blocks = _BLOCK.findall((DOCS / "how-to" / "recipe.md").read_text(encoding="utf-8"))
    examples = [text for kind, text in blocks if kind == "toml"]
    assert len(examples) == 2
    for text in examples:
        path = tmp_path / "recipe.toml"
        path.write_text(text, encoding="utf-8")
        assert recipe.load(path).recipe.layers
        good = tomllib.loads(text)
        assert _fault(schema, good, schema) == ""
        for bad in (
            {**good, "unknown": 1},
            {**good, "layers": {"x": "float"}},
            {**good, "budget": {"kind": "max-drop"}},
            {key: value for key, value in good.items() if key != "schema_version"},
        ):
            assert _fault(schema, bad, schema) != ""


_TYPES: dict[str, type | tuple[type, ...]] = {
    "object": dict,
    "array": list,
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "null": type(None),
}


def _fault(schema: dict[str, Any], value: Any, root: dict[str, Any], where: str = "") -> str:
    """Why a value does not fit a JSON Schema of these words; empty if it does."""
    known = {"$schema", "$defs", "title", "description", "$ref", "anyOf", "enum", "const", "type"}
    known |= {"properties", "required", "additionalProperties"}
    known |= {"items", "prefixItems", "minItems", "maxItems"}
    assert set(schema) <= known
    if "$ref" in schema:
        return _fault(root["$defs"][schema["$ref"].removeprefix("#/$defs/")], value, root, where)
    if "anyOf" in schema:
        faults = [_fault(each, value, root, where) for each in schema["anyOf"]]
        return "" if "" in faults else faults[0]
    if "const" in schema:
        return "" if value == schema["const"] else f"{where}: {value!r}"
    if "enum" in schema:
        return "" if value in schema["enum"] else f"{where}: {value!r}"
    kind = schema.get("type")
    if kind is None:
        return ""
    if not isinstance(value, _TYPES[kind]) or (isinstance(value, bool) and kind != "boolean"):
        return f"{where}: no {kind}: {value!r}"
    inside: list[tuple[Any, Any, str]] = []
    if kind == "object":
        properties, others = schema.get("properties", {}), schema["additionalProperties"]
        if missing := set(schema.get("required", ())) - set(value):
            return f"{where}: missing {missing}"
        if others is False and set(value) - set(properties):
            return f"{where}: unknown {set(value) - set(properties)}"
        inside = [(properties.get(key, others), value[key], f"{where}.{key}") for key in value]
    if kind == "array":
        parts = schema.get("prefixItems") or [schema["items"]] * len(value)
        if len(parts) != len(value):
            return f"{where}: {len(value)} values"
        inside = [(*pair, f"{where}[]") for pair in zip(parts, value, strict=True)]
    return next(filter(None, (_fault(each, v, root, at) for each, v, at in inside)), "")
