from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nets
import numpy as np
import pytest

from edgekit.base import outputs
from edgekit.base.errors import ArtifactError, InvalidOptionError, OutputExistsError
from edgekit.records.artifact import Artifact

WRITER = """
import sys, time
from pathlib import Path
from edgekit.records import artifact
from edgekit.base import outputs
from edgekit.records.signature import Signature, TensorSpec, preprocessing

class Slow(dict):
    def items(self):
        for name, content in super().items():
            yield name, content
            print("wrote", flush=True)
            time.sleep(60)

spec = TensorSpec("x", (-1, 1), "float32")
artifact.write(
    Path(sys.argv[1]),
    Slow({"model.onnx": b"weights"}),
    dict(model_id="m", format="onnx", precision="float32", model_file="model.onnx",
         signature=Signature((spec,), (spec,)), preprocessing=preprocessing("unit"),
         class_names=("a", "b")),
    force=False,
)
"""

LIMITED = """
import resource, signal, sys
from edgekit.{verb} import main
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
raise SystemExit(main(sys.argv[1:]))
"""


def test_a_kill_leaves_no_folder_that_loads(tmp_path: Path) -> None:
    out = tmp_path / "a"
    running = subprocess.Popen([sys.executable, "-c", WRITER, str(out)], stdout=subprocess.PIPE)
    assert running.stdout is not None
    assert running.stdout.readline() == b"wrote\n"
    time.sleep(0.05)
    os.kill(running.pid, signal.SIGKILL)
    running.wait()
    assert not out.exists()
    for left in tmp_path.iterdir():
        with pytest.raises(ArtifactError):
            Artifact.load(left)


def test_an_error_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), outputs.new_folder(tmp_path / "a", force=False) as folder:
        (folder / "file").write_text("half")
        raise RuntimeError
    assert not list(tmp_path.iterdir())


def test_force_replaces_whole_folders(tmp_path: Path) -> None:
    for name in ("old", "new"):
        with outputs.new_folder(tmp_path / "a", force=True) as folder:
            (folder / name).write_text(name)
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["new"]
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_an_error_under_force_keeps_the_old(tmp_path: Path) -> None:
    with outputs.new_folder(tmp_path / "a", force=False) as folder:
        (folder / "old").write_text("old")
    with pytest.raises(RuntimeError), outputs.new_folder(tmp_path / "a", force=True):
        raise RuntimeError
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["old"]


def test_files_are_not_overwritten(tmp_path: Path) -> None:
    outputs.write_text(tmp_path / "f", "one", force=False)
    with pytest.raises(OutputExistsError):
        outputs.write_text(tmp_path / "f", "two", force=False)
    assert (tmp_path / "f").read_text() == "one"
    outputs.write_text(tmp_path / "f", "two", force=True)
    assert (tmp_path / "f").read_text() == "two"


def test_a_parent_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("")
    with pytest.raises(InvalidOptionError, match="is a file"):
        outputs.check_free(tmp_path / "f" / "out", force=False)


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["export", "compare", "report", "calibrate"])
def test_a_full_disk_is_one_line_and_leaves_nothing(
    verb: str, artifacts: dict[str, Path], tmp_path: Path
) -> None:
    """A limit on the size of files stands for the full disk: writing fails midway."""
    root = Path(__file__).resolve().parents[1]
    arguments = {
        "export": ["--target", "tflite", "--precision", "float32"],
        "compare": [artifacts["onnx-int8"], "--limit", "20", "--rounds", "1"],
        "report": [root / "exports" / "baseline.json"],
        "calibrate": ["--limit", "2"],
    }[verb]
    out = tmp_path / "out" / "x"
    done = subprocess.run(
        [sys.executable, "-c", LIMITED.format(verb=verb), *map(str, arguments), "--out", str(out)],
        cwd=root,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert "error" in done.stderr
    assert not out.exists()
    assert not out.parent.exists() or not list(out.parent.iterdir())


def test_a_full_disk_leaves_none_of_several_artifacts(tmp_path: Path) -> None:
    """The first file is small enough for the limit, the second is not."""
    source = nets.linear(tmp_path / "net.onnx", np.eye(400))
    program = LIMITED.format(verb="export").replace("(1000, 1000)", "(500_000, 500_000)")
    arguments = [source, "--target", "tflite", "--precision", "float16,float32", "--out"]
    for force in ([], ["--force"]):
        done = subprocess.run(
            [sys.executable, "-c", program, *map(str, arguments), str(tmp_path / "out"), *force],
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 2, done.stderr
        assert done.stderr.splitlines()[-1].endswith("File too large; nothing was written")
        assert [path.name for path in (tmp_path / "out").rglob("*")] == []


def test_several_folders_are_replaced_together_or_not_at_all(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "old").write_text("old")
    paths = [tmp_path / "a", tmp_path / "b"]
    with pytest.raises(OSError), outputs.new_folders(paths, force=True) as (first, second):
        (first / "new").write_text("new")
        second.rmdir()  # so that it cannot take its place
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")) == [
        "a", "a/old", "b", "b/old",
    ]  # fmt: skip


def test_a_kill_while_a_file_is_replaced_keeps_it_whole(tmp_path: Path) -> None:
    size = 64_000_000
    code = (
        "import sys; from pathlib import Path; from edgekit.base import outputs; "
        f"outputs.write_bytes(Path(sys.argv[1]), b'n' * {size}, force=True)"
    )
    file = tmp_path / "baseline.json"
    file.write_bytes(b"old")
    running = subprocess.Popen([sys.executable, "-c", code, str(file)])
    while running.poll() is None and not list(tmp_path.glob(".*.part")):
        time.sleep(0.001)
    running.kill()
    running.wait()
    content = file.read_bytes()
    assert content == b"old" or len(content) == size
    left = [path for path in tmp_path.iterdir() if path != file]
    assert all(path.name.startswith(".") and path.suffix == ".part" for path in left)


def test_a_full_disk_keeps_the_baseline(tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[1]
    report = root / "exports" / "baseline.json"
    baseline = tmp_path / "baseline.json"
    baseline.write_bytes(report.read_bytes())
    done = subprocess.run(
        [sys.executable, "-c", LIMITED.format(verb="gate"), str(report)]
        + ["--baseline", str(baseline), "--update"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert baseline.read_bytes() == report.read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["baseline.json"]


@pytest.mark.parametrize("verb", ["gate", "report"])
def test_an_interrupt_of_a_reader_is_one_line(verb: str, tmp_path: Path) -> None:
    """The report comes through a pipe that nobody fills, so the verb waits and can be met."""
    pipe, out = tmp_path / "report.json", tmp_path / "out"
    os.mkfifo(pipe)
    options = {"gate": ["--baseline", str(out)], "report": ["--out", str(out)]}[verb]
    running = subprocess.Popen(
        [sys.executable, "-m", f"edgekit.{verb}", str(pipe), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with pipe.open("w"):  # opens once the verb reads
        running.send_signal(signal.SIGINT)
        stdout, stderr = running.communicate(timeout=30)
    assert running.returncode == 130
    assert stderr.strip() == f"edgekit {verb}: error: interrupted; nothing was written"
    assert stdout == ""
    assert not out.exists()
