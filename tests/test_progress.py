"""Library code prints nothing; what takes long says so to whoever asks."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgekit.base import cli
from edgekit.base.progress import Progress, Task
from edgekit.compare import Options, compare


class Notebook(Progress):
    """Writes down what it hears."""

    def __init__(self) -> None:
        self.sentences: list[str] = []
        self.done: dict[str, int] = {}
        self.totals: dict[str, int | None] = {}

    def say(self, sentence: str) -> None:
        self.sentences.append(sentence)

    @contextlib.contextmanager
    def task(
        self, name: str, total: int | None = None, *, unit: str = "images", note: str = ""
    ) -> Iterator[Task]:
        self.totals[name] = total
        yield _Line(self, name)


class _Line(Task):
    def __init__(self, notebook: Notebook, name: str) -> None:
        self._notebook, self._name = notebook, name

    def advance(self, count: int = 1) -> None:
        self._notebook.done[self._name] = self._notebook.done.get(self._name, 0) + count


@pytest.mark.slow
def test_a_library_call_is_silent_and_tells_whoever_asks(
    tiny: tuple[Path, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    artifact, images = tiny
    heard = Notebook()
    asked = {"dataset": str(images), "rounds": 1, "processes": 1, "work": tmp_path / "work"}
    compare([artifact], Options(**asked))
    compare([artifact], Options(**asked), progress=heard)
    printed = capfd.readouterr()
    assert (printed.out, printed.err) == ("", "")
    assert heard.totals == {"evaluating": 480, "timing": 1}
    assert heard.done == heard.totals
    assert any("shards were done" in sentence for sentence in heard.sentences)


def test_what_the_verbs_pass_writes_lines_to_a_log(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "LOG_SECONDS", 0.05)
    cli.reporter.say("left out: \x1b[2J [bold]")
    with cli.reporter.task("calibrating", 1000, unit="samples", note="mine") as task:
        for _ in range(6):
            task.advance(50)
            time.sleep(0.03)
        task.note("the last")
        time.sleep(0.08)
    said, *lines = capfd.readouterr().err.splitlines()
    assert said == "left out: \\x1b[2J [bold]"
    assert all(line.startswith("calibrating: ") for line in lines)
    assert "/1,000 samples, " in lines[-1] and " left  the last" in lines[-1]
