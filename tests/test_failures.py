"""What a verb says when something goes wrong: one line, the right status, and the way on."""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT, Done
from test_gate import artifact, make, write

from edgekit.base import cli, outputs, words
from edgekit.base.cli import VERBS
from edgekit.base.errors import last_words
from edgekit.records import artifact as artifacts_of
from edgekit.sources import float_model


@pytest.fixture
def verb(capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, list[str]]]:
    """Run a verb in this process; its status, and the lines on stderr."""

    def call(name: str, *arguments: object) -> tuple[int, list[str]]:
        capfd.readouterr()
        module = importlib.import_module("edgekit.base.cli" if name == "cli" else f"edgekit.{name}")
        if hasattr(module, "__path__"):
            module = importlib.import_module(f"edgekit.{name}.__main__")
        status = module.main(list(map(str, arguments)))
        return status, capfd.readouterr().err.splitlines()

    return call


Verb = Callable[..., tuple[int, list[str]]]


def _export(small: Path, out: Path) -> list[object]:
    common = ["--preprocessing", "unit", "--target", "tflite", "--precision", "float32"]
    return ["export", small / "small.keras", *common, "--out", out]


# What nobody foresaw


def test_an_unforeseen_exception_is_status_three_and_writes_nothing(
    verb: Verb, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(path: Path) -> str:
        raise IndexError("the third\nof two")

    monkeypatch.setattr(outputs, "sha256_file", fails)  # while the folder is written
    monkeypatch.setattr(float_model.saved_model, "sha256_of", lambda path: "0" * 64)
    status, lines = verb(*_export(small, tmp_path / "out"))
    assert status == 3
    (line,) = lines
    assert line.startswith(
        "edgekit export: error: IndexError: the third of two (at edgekit/records/artif"
    )
    assert "no regression" in line and "--traceback" in line and "report" not in line
    assert list(tmp_path.iterdir()) == []
    status, lines = verb(*_export(small, tmp_path / "out"), "--traceback")
    assert status == 3
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[-1].startswith("edgekit export: error: IndexError")
    assert list(tmp_path.iterdir()) == []


def test_a_write_that_breaks_off_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(ZeroDivisionError):
        outputs.write_text(tmp_path / "a.txt", "text", force=False)
    with pytest.raises(ZeroDivisionError):
        artifacts_of.write(tmp_path / "b", {"m": b"1"}, _manifest(), force=False)
    assert list(tmp_path.iterdir()) == []


def _manifest() -> dict[str, Any]:
    from edgekit.records.signature import Signature, TensorSpec, preprocessing

    spec = TensorSpec("a", (-1, 2), "float32")
    return {
        "model_id": "m",
        "format": "onnx",
        "precision": "float32",
        "model_file": "m",
        "signature": Signature((spec,), (spec,)),
        "preprocessing": preprocessing("none"),
        "class_names": (),
    }


@pytest.mark.parametrize("name", VERBS)
def test_every_verb_takes_traceback(name: str, verb: Verb) -> None:
    status, lines = verb(name, "--help")
    assert status == 0 and not lines


def test_traceback_shows_where_an_error_of_the_users_comes_from(verb: Verb, tmp_path: Path) -> None:
    bad = tmp_path / "\x1b[31m.keras"
    plain, whole = (
        verb("export", bad, "--target", "tflite", "--precision", "float32", *more)
        for more in ([], ["--traceback"])
    )
    assert plain[0] == whole[0] == 2
    assert len(plain[1]) == 1 and "\\x1b[31m.keras not found" in plain[1][0]
    assert whole[1][0] == "Traceback (most recent call last):"
    assert whole[1][-1] == plain[1][0]
    assert not any("\x1b" in line for line in whole[1])
    broken = tmp_path / "broken.keras"
    broken.write_bytes(b"PK\x05\x06" + bytes(18))
    call = ["--target", "onnx", "--precision", "float32", "--preprocessing", "unit"]
    _, lines = verb("export", broken, *call, "--traceback")
    assert any(line.startswith("KeyError: ") for line in lines)  # of the archive
    status, lines = verb("sign", "verify", tmp_path / "no", "--public", bad, "--traceback")
    assert status == 2 and lines[0] == "Traceback (most recent call last):"


def test_no_message_asks_for_a_report() -> None:
    """Of the modules that are not about conversion, which have a test of their own."""
    others = ("formats", "proof.py")
    asking = [
        path
        for path in (ROOT / "edgekit").rglob("*.py")
        if path.relative_to(ROOT / "edgekit").parts[0] not in others
        and "please report" in " ".join(path.read_text(encoding="utf-8").split())
    ]
    assert asking == []


# Processes


CRASHING = """
import os, sys
import edgekit.runtimes.worker as worker

def crash(*_, **__):
    os.write(2, b"first\\nterminate called after throwing \\x1b[31mstd::bad_alloc\\n")
    os.abort()

worker.open_runner = crash  # the process that is started imports this file too

if __name__ == "__main__":
    from edgekit.benchmark import main
    raise SystemExit(main(sys.argv[1:]))
"""


def _script(folder: Path, text: str, *arguments: object) -> Done:
    (folder / "mine.py").write_text(text)
    done = subprocess.run(
        [sys.executable, "mine.py", *map(str, arguments)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    return Done(done.returncode, done.stdout, done.stderr)


def test_the_last_words_of_a_process_are_in_the_error(
    tiny: tuple[Path, Path], tmp_path: Path
) -> None:
    done = _script(tmp_path, CRASHING, tiny[0])
    assert done.status == 2
    assert "was ended by SIGABRT; out of memory, or a crash in the runtime" in done.error
    assert "first | terminate called after throwing \\x1b[31mstd::bad_alloc" in done.error
    assert "\x1b" not in done.stderr
    done = _script(tmp_path, CRASHING, tiny[0], "--traceback")
    assert "stderr of the process:\nfirst\nterminate called" in done.stderr
    assert "\x1b" not in done.stderr


def test_last_words() -> None:
    assert last_words("") == ""
    assert last_words("a\n\n  b  c \nd\ne\n") == "b c | d | e"
    assert len(last_words("x" * 1000)) == 300


UNGUARDED = """
from pathlib import Path
from edgekit.compare import Options, compare
from edgekit.base.errors import EdgekitError

print("once")
try:
    compare([Path({artifact!r})], Options(dataset={data!r}, rounds=1))
except EdgekitError as exc:
    print(exc)
    raise SystemExit(7)
"""


@pytest.mark.parametrize("first", ["", "Path('mine').mkdir()\n"])
def test_a_script_without_a_guard_is_told_so(
    first: str, tiny: tuple[Path, Path], tmp_path: Path
) -> None:
    """Whether it fails where it starts a process, or before, since it is run a second time."""
    text = UNGUARDED.format(artifact=str(tiny[0]), data=str(tiny[1]))
    done = _script(tmp_path, text.replace("print(", first + "print(", 1))
    assert done.status == 7, done.stderr
    (line,) = [each for each in done.stdout.splitlines() if "starts by importing mine.py" in each]
    assert 'put what mine.py does under `if __name__ == "__main__":`' in line
    assert "FileExistsError" in line if first else "code 7" in line


# Logs


def test_a_log_gets_lines(capfd: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    import time

    monkeypatch.setattr(cli, "LOG_SECONDS", 0.05)
    with cli.progress("images") as bar:
        task = bar.add_task("evaluating", total=1000, note="\x1b[2Jmine")
        for _ in range(10):
            bar.advance(task, 40)
            time.sleep(0.03)
    found = capfd.readouterr()
    assert not found.out
    lines = found.err.splitlines()
    assert 3 <= len(lines) <= 8
    for line in lines:
        assert line.startswith("evaluating: ") and "/1,000 images, " in line
        assert " a second, " in line and " left  \\x1b[2Jmine" in line
    monkeypatch.setattr(cli, "LOG_SECONDS", 30.0)
    with cli.progress("files") as bar:
        bar.add_task("counting", total=None, note="")
    assert capfd.readouterr().err == ""


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    import io

    from rich.progress import BarColumn

    screen = io.StringIO()
    monkeypatch.setattr(cli, "console", cli.Screen(file=screen, force_terminal=True, width=80))
    monkeypatch.setattr(cli, "LOG_SECONDS", 0.001)
    with cli.progress() as bar:
        assert any(isinstance(column, BarColumn) for column in bar.columns)
        bar.update(bar.add_task("timing", total=3, note=""), completed=3)
    assert "timing" in screen.getvalue() and " left" not in screen.getvalue()


def test_verbs_say_how_far_they_are(
    small: Path,
    tmp_path: Path,
    verb: Verb,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cli, "LOG_SECONDS", 0.001)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    pixels = np.random.default_rng(7).integers(0, 256, (20_000, 12, 12, 3), dtype=np.uint8)
    np.savez(tmp_path / "set.npz", x=pixels)
    call = ["--preprocessing", "unit", "--data", tmp_path / "set.npz", "--out", tmp_path / "t.json"]
    status, lines = verb("calibrate", small / "small.keras", *call)
    assert status == 0
    assert any(line.startswith("calibrating: ") and "/20,000 images" in line for line in lines)


@pytest.mark.slow
def test_training_says_how_far_it_is(tmp_path: Path) -> None:
    code = (
        "import runpy, sys; from edgekit.base import cli; cli.LOG_SECONDS = 0.01; "
        "runpy.run_path(sys.argv.pop(1), run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, ROOT / "tests" / "worker.py", tmp_path / "run", "{}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "training: " in done.stderr and "/24 steps" in done.stderr, done.stderr


# Near misses


def test_near_words() -> None:
    assert words.near("calibrat", VERBS) == "; did you mean 'calibrate'?"
    assert words.near("INT8", ("int8", "float32")) == "; did you mean 'int8'?"
    assert words.near("fp16", ("int8", "float16")) == "; did you mean 'float16'?"
    assert words.near("fp16", ("NHWC", "NCHW")) == ""
    assert words.near("--colour", ("--out", "--data")) == ""
    assert words.near("", VERBS) == words.near("xyzzy", VERBS) == ""


NEAR: list[tuple[list[str], str]] = [
    (["cli", "calibrat"], "'calibrate'"),
    (["export", "--target", "tfllite", "--precision", "int8"], "'tflite'"),
    (["export", "--target", "tflite", "--precision", "fp16"], "'float16'"),
    (["export", "--targt", "tflite", "--precision", "int8"], "'--target'"),
    (["export", "--target", "onnx", "--precision", "int8", "--device", "arm46"], "'arm64'"),
    (["export", "--target", "onnx", "--precision", "int8", "--method", "percentil"],
     "'percentile'"),
    (["calibrate", "--method", "minmx"], "'minmax'"),
    (["export", "NET", "--target", "tflite", "--precision", "float32"]
     + ["--preprocessing", "symetric"], "'symmetric'"),
    (["export", "NET", "--target", "tflite", "--precision", "float32"]
     + ["--preprocessing", "unit#resize=bilinar"], "'bilinear'"),
    (["export", "NET", "--target", "tflite", "--precision", "float32"]
     + ["--preprocessing", "unit#rezise=area"], "'resize'"),
    (["calibrate", "--data", "fashon_mnist"], "'fashion_mnist'"),
    (["calibrate", "--data", "foldr:photos"], "'folder'"),
    (["calibrate", "--data", "folder:.#sampls=3"], "'samples'"),
    (["compare", "ARTIFACT", "--reference", "ort:cuda:float61"], "'ort:cuda:float16'"),
    (["train", "--recipe", "papr", "--out", "m"], "'paper'"),
    (["train", "--schedule", "cosin", "--out", "m"], "'cosine'"),
    (["gate", "REPORT", "--min", "topp1=93"], "'top1'"),
    (["gate", "REPORT", "--min", "agreemnt=93"], "'agreement'"),
    (["gate", "REPORT", "--min", "tflite-int9:top1=93"], "'m-tflite-int8'"),
    (["data", "descibe", "fashion_mnist"], "'describe'"),
    (["data", "describe", "fashion_mnist", "--shet", "a.png"], "'--sheet'"),
    (["sign", "verfy", "x"], "'verify'"),
]  # fmt: skip


@pytest.mark.parametrize("call, meant", NEAR, ids=[" ".join(call[-2:]) for call, _ in NEAR])
def test_what_is_nearly_right_is_named(
    call: list[str],
    meant: str,
    verb: Verb,
    small: Path,
    tiny: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    report = write(tmp_path / "found.json", make(artifact("m-tflite-int8", 60)))
    there = {"NET": small / "small.keras", "ARTIFACT": tiny[0], "REPORT": report}
    status, lines = verb(*(there.get(word, word) for word in call))
    assert status == 2
    assert len(lines) == 1 and f"did you mean {meant}?" in lines[0], lines


def test_keys_of_files_that_are_nearly_right_are_named(
    verb: Verb, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.toml").write_text("about = 'x'\n[recipe]\nepoch = 3\n")
    _, lines = verb("train", "--recipe", "mine.toml", "--out", "m")
    assert "unknown key 'epoch'; did you mean 'epochs'?" in lines[0]
    (tmp_path / "gate.toml").write_text("[tool.edgekit.gate]\nmax-dropp.top1 = 1\n")
    _, lines = verb("gate", "--config", "gate.toml")
    assert "did you mean 'max-drop'?" in lines[0]
    (tmp_path / "p.json").write_text('{"name": "x", "scale": [1.0], "ofset": [0.0]}')
    call = ["--target", "tflite", "--precision", "float32", "--preprocessing", "p.json"]
    _, lines = verb("export", small / "small.keras", *call)
    assert "did you mean 'offset'?" in lines[0]


def test_what_lies_beside_a_missing_file_is_named(
    verb: Verb, small: Path, tiny: tuple[Path, Path], tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(small / "small.keras", "mobilenet.keras")
    shutil.copy(tiny[1], "images.npz")
    Path("photos").mkdir()
    float32 = ["--target", "tflite", "--precision", "float32", "--preprocessing", "unit"]
    for call, meant in (
        (["export", "mobilnet.keras", *float32], "mobilenet.keras"),
        (["export", "mobilenet.h5", *float32], "mobilenet.keras"),
        (["export", "mobilenet.kears", *float32], "mobilenet.keras"),
        (["calibrate", "mobilenet.keras", "--preprocessing", "unit", "--data", "image.npz"],
         "images.npz"),
        (["calibrate", "mobilenet.keras", "--preprocessing", "unit", "--data", "folder:photo"],
         "photos"),
        (["benchmark", "photo"], "photos"),
        (["data", "describe", "image.npz"], "images.npz"),
    ):  # fmt: skip
        status, lines = verb(*call)
        assert status == 2 and len(lines) == 1
        assert f"not found (did you mean {meant}?)" in lines[0], lines
    _, lines = verb("export", "nothing_like_it.onnx", *float32[:2], *float32[2:])
    assert "did you mean" not in lines[0]


def test_a_missing_baseline_names_update(verb: Verb, tmp_path: Path) -> None:
    report = write(tmp_path / "report.json", make(artifact("a", 60)))
    baseline = tmp_path / "baseline.json"
    status, (line,) = verb("gate", report, "--baseline", baseline)
    assert status == 2
    assert f"gate {report} --baseline {baseline} --update" in line
    assert verb("gate", report, "--baseline", baseline, "--update")[0] == 0
    assert verb("gate", report, "--baseline", baseline)[0] == 0


SUFFIXES = {
    ".pt": "torch.onnx.export",
    ".pth": "torch.onnx.export",
    ".ckpt": "torch.onnx.export",
    ".torchscript": "torch.onnx.export",
    ".safetensors": "torch.onnx.export",
    ".pb": "tf2onnx.convert",
    ".mlmodel": "Core ML",
    ".caffemodel": "caffe2onnx",
    ".prototxt": "caffe2onnx",
    ".engine": "ONNX file that it was built from",
    ".trt": "ONNX file that it was built from",
    ".xml": "OpenVINO",
    ".weights": "Darknet",
    ".pkl": "never loaded",
    ".gguf": "llama.cpp",
    ".json": "tensorflowjs_converter",
    ".PT": "torch.onnx.export",
    ".txt": "expected a Keras artifact",
}


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_files_of_others_say_what_to_call(suffix: str, verb: Verb, tmp_path: Path) -> None:
    path = tmp_path / f"net{suffix}"
    path.write_bytes(b"\x80\x02something")
    call = ["--target", "onnx", "--precision", "float32", "--preprocessing", "unit"]
    status, lines = verb("export", path, *call)
    assert status == 2
    (line,) = lines
    assert SUFFIXES[suffix] in line and str(path) in line
