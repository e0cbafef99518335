"""The composite action and the pre-commit hook: what they run is run here."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from test_gate import artifact, make, write

ACTION = ROOT / ".github" / "actions" / "gate" / "action.yml"
HOOKS = ROOT / ".pre-commit-hooks.yaml"
WORKFLOW = ROOT / ".github" / "workflows" / "gate.yml"


def read_yaml(text: str) -> Any:
    """The part of YAML that these files use: maps, lists, strings, ``|`` blocks, comments."""
    lines = [line for line in text.splitlines() if line.strip() and not re.match(r"\s*#", line)]
    value, rest = _block(lines, 0)
    assert rest == [], rest
    return value


def _block(lines: list[str], indent: int) -> tuple[Any, list[str]]:
    found: Any = [] if lines[0].lstrip().startswith("- ") else {}
    while lines and _indent(lines[0]) == indent:
        if isinstance(found, list):
            assert lines[0].lstrip().startswith("- "), lines[0]
            lines = [" " * (indent + 2) + lines[0].lstrip()[2:], *lines[1:]]
            value, lines = _block(lines, indent + 2)
            found.append(value)
            continue
        match = re.fullmatch(r"\s*([\w-]+):(?: (.*))?", lines[0])
        assert match, lines[0]
        key, text = match[1], match[2]
        inner = [line for line in _take(lines[1:], indent)]
        lines = lines[1 + len(inner) :]
        if text == "|":
            found[key] = textwrap.dedent("\n".join(inner)) + "\n"
        elif text is None:
            found[key], rest = _block(inner, _indent(inner[0]))
            assert rest == [], rest
        else:
            assert inner == [], inner
            assert not re.search(r"\s#|^[>|&*!%]", text), text
            found[key] = text[1:-1] if re.fullmatch(r'".*"', text) else text
    return found, lines


def _take(lines: list[str], indent: int) -> list[str]:
    for i, line in enumerate(lines):
        if _indent(line) <= indent:
            return lines[:i]
    return lines


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def run_action(
    folder: Path, *, python: str = sys.executable, **inputs: str
) -> subprocess.CompletedProcess[str]:
    """As the runner does: inputs and defaults into ``env``, the script through bash."""
    action = read_yaml(ACTION.read_text())
    assert action["runs"]["using"] == "composite"
    (step,) = action["runs"]["steps"]
    assert step["shell"] == "bash"
    values = {name: about.get("default", "") for name, about in action["inputs"].items()}
    assert set(inputs) <= set(values)
    values |= {"python": python, **inputs}
    assert "${{" not in step["run"]
    env = {
        key: re.sub(r"\$\{\{ inputs\.(\w+) \}\}", lambda match: values[match[1]], text)
        for key, text in step["env"].items()
    }
    script = folder / "step.sh"
    script.write_text(step["run"])
    return subprocess.run(
        ["bash", "--noprofile", "--norc", "-e", "-o", "pipefail", str(script)],
        cwd=folder,
        env={**os.environ, **env, "GITHUB_ACTIONS": "true"},
        capture_output=True,
        text=True,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    work = tmp_path / "work"
    (work / "with blanks").mkdir(parents=True)
    write(work / "with blanks" / "good.json", make(artifact("a", 60)))
    write(work / "with blanks" / "bad.json", make(artifact("a", 80)))
    write(work / "base.json", make(artifact("a", 60)))
    return work


def test_the_action_judges(folder: Path) -> None:
    good = run_action(folder, report="with blanks/good.json", baseline="base.json")
    assert good.returncode == 0, good.stderr
    bad = run_action(
        folder,
        report="with blanks/bad.json",
        baseline="base.json",
        args="--max-drop top1=0.5 --junit gate.xml",
    )
    assert bad.returncode == 1, bad.stderr
    assert bad.stdout.startswith("::error title=edgekit gate")
    assert (folder / "gate.xml").is_file()
    assert run_action(folder, report="none.json", baseline="base.json").returncode == 2


@pytest.mark.slow
def test_the_action_runs_nothing_that_is_in_its_inputs(folder: Path) -> None:
    for text in (
        "$(touch hit)",
        "`touch hit`",
        "; touch hit",
        "x' ; touch hit '",
        '"; touch hit "',
    ):
        for name in ("report", "baseline", "args", "python"):
            assert run_action(folder, **{name: text}).returncode != 0
    assert not (folder / "hit").exists()
    starred = run_action(folder, report="with blanks/good.json", args="--min *=1")
    assert "unknown metric '*'" in starred.stderr


def configure(folder: Path, report: str) -> None:
    (folder / "pyproject.toml").write_text(
        f"[tool.edgekit.gate]\nreport = 'with blanks/{report}'\nbaseline = 'base.json'\n"
        "max-drop.top1 = 0.5\n"
    )


@pytest.mark.parametrize(("report", "status"), [("good.json", 0), ("bad.json", 1)])
def test_action_and_hook_take_all_from_pyproject(folder: Path, report: str, status: int) -> None:
    configure(folder, report)
    assert run_action(folder).returncode == status
    (hook,) = read_yaml(HOOKS.read_text())
    assert (hook["id"], hook["language"], hook["pass_filenames"]) == (
        "edgekit-gate",
        "python",
        "false",
    )
    # pre-commit puts the environment it made first on the path.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        shlex.split(hook["entry"]),
        cwd=folder,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == status, done.stderr
    assert "bounds from pyproject.toml: max-drop top1=0.5" in done.stderr


def test_the_workflow_uses_the_action_with_arguments_that_exist() -> None:
    from edgekit.gate import parser

    text = WORKFLOW.read_text()
    assert "uses: ./.github/actions/gate" in text
    (block,) = re.findall(r"uses: \./\.github/actions/gate\n +with:\n((?: {10}.*\n)+)", text)
    inputs = read_yaml(textwrap.dedent(block))
    assert set(inputs) <= set(read_yaml(ACTION.read_text())["inputs"])
    words = [inputs["report"], "--baseline", inputs["baseline"], *inputs["args"].split()]
    options = parser().parse_args(words)
    assert [str(bound) for bound in options.bounds] == ["max-drop top1=0.5", "max-rise size=20000"]
