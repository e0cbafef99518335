"""ONNX files of others as sources: of float TFLite beside onnx2tf, and of int8 for both formats.

    python benchmarks/onnx_sources.py --data FOLDER [--out FILE.md]
    python benchmarks/onnx_sources.py --data FOLDER --int8 --out docs/reference/conversion.md

The first table converts each file (benchmarks/onnx_files.py) to float TFLite by edgekit and by
onnx2tf, each as its command line does it, and holds both results against onnxruntime on the file
itself. onnx2tf lives in an environment of its own, which is made in the user's cache, or is given
by ``--onnx2tf``; it gets a copy of each file, since it writes into the one it reads. The second
table is of the int8 files that edgekit makes of each file.

Latency is the CPU time of runs at batch 1 on one thread, which is the time by the clock where
nothing else runs, in rounds that go through all candidates in turn; each runtime is a process of
its own. The last line of stdout is the JSON document that is written beside ``--out`` too, there
with the raw samples. ``--only NAME`` runs some files. ``--merge FILE.json ...`` measures nothing:
it prints the table of the rows of these documents, of rows of the same name the last one.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import itertools
import json
import multiprocessing
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_files
from onnx_files import Arrays, OnnxFile
from support_table import SECTION, with_section

from edgekit.base import cli, outputs, schema, words
from edgekit.base.errors import EdgekitError, InvalidInputError, reason
from edgekit.base.quiet import quiet
from edgekit.data import feeds
from edgekit.evaluation import parity
from edgekit.graph import onnx
from edgekit.graph.flatbuffer import Graph
from edgekit.records import environment, fidelity, signature, stats
from edgekit.records.artifact import Artifact
from edgekit.records.signature import TensorSpec
from edgekit.sources import onnx_source

#: The peer where Python is 3.12 or newer, in its default mode, which writes the flatbuffer itself.
PEER = "onnx2tf==2.6.9"
#: Its last release for Python 3.11.
OLD_PEER = "onnx2tf==1.29.24"
SMALL = 0.01  # differences of outputs that are smaller everywhere are a part of this
REASON = 160  # letters of a reason in a table
RANDOM = 4  # random samples of a file
SAMPLES = 20  # runs of a turn, fewer where they take longer than TURN in all
TURN = 300.0  # ms
WARM_UP = 5  # runs of each turn that are thrown away: another process had the caches
EDGEKIT, ONNX2TF, ORIGINAL = "edgekit", "onnx2tf", "onnxruntime"
PRECISIONS = ("float32", "int8")
#: Options that let a file be written whatever it is worth, so that it can be measured.
ALLOWED = ("--allow-poor", "--allow-dead")


@dataclass(frozen=True)
class Conversion:
    """What a tool made of a file.

    Attributes:
        path: The model file or folder; None where there is none.
        failed: Why there is none.
        cpu_seconds: Of the command and all that it started, on all cores.
        seconds: By the clock.
    """

    path: Path | None
    failed: str = ""
    cpu_seconds: float = 0.0
    seconds: float = 0.0


def run_command(command: Sequence[str], limit: float, **settings: Any) -> tuple[int, str, Any]:
    """Exit status, the last words of stderr and stdout, and (CPU seconds, seconds)."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=limit,
            **settings,
        )  # fmt: skip
        status, said = done.returncode, done.stdout + done.stderr
    except subprocess.TimeoutExpired:
        status, said = 124, f"not done in {limit:.0f} s"
    after, seconds = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter() - started
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return status, said, (cpu, seconds)


def of_edgekit(
    path: Path,
    folder: Path,
    options: Sequence[str],
    shapes: Mapping[str, Sequence[int]],
    limit: int,
) -> tuple[int, str, Any]:
    """Run ``python -m edgekit.export``; its error is its last line."""
    command = [
        sys.executable,
        "-m",
        "edgekit.export",
        str(path),
        "--out",
        str(folder),
        "--force",
        *options,
    ]
    for name, sizes in shapes.items():
        command += ["--shape", f"{name}={','.join(map(str, sizes))}"]
    status, said, seconds = run_command(command, limit)
    lines = [line for line in said.strip().splitlines() if "error: " in line]
    said = lines[-1].partition("error: ")[2] if lines else said[-300:]
    return status, said.replace(f"{path}: ", "").replace(f"{path} ", ""), seconds


def by_edgekit(file: OnnxFile, path: Path, folder: Path, limit: int) -> Conversion:
    """Float TFLite by edgekit."""
    options = ["--target", "tflite", "--precision", "float32", "--preprocessing", "none"]
    status, said, seconds = of_edgekit(path, folder / "ours", options, file.shapes, limit)
    if status:
        return Conversion(None, said, *seconds)
    return Conversion(folder / "ours" / "model.tflite", "", *seconds)


def by_onnx2tf(file: OnnxFile, path: Path, folder: Path, limit: int, program: Path) -> Conversion:
    """Float TFLite by onnx2tf, of a copy: it rewrites its input in place."""
    place = folder / "theirs"
    place.mkdir()
    for each in path.parent.glob(f"{path.name}*"):
        shutil.copy(each, place)
    command = [str(program), "-i", str(place / path.name), "-o", str(place / "out"), "-b", "1"]
    if file.shapes:
        sizes = [f"{name}:{','.join(map(str, each))}" for name, each in file.shapes.items()]
        command += ["-ois", *sizes]
    # its own programs are found on the PATH, onnxsim among them
    found = os.environ | {"PATH": f"{program.parent}{os.pathsep}{os.environ['PATH']}"}
    found.pop("PYTHONPATH", None)
    status, said, seconds = run_command(command, limit, env=found)
    written = sorted((place / "out").glob("*_float32.tflite"))
    if status or not written:
        lines = [line for line in said.splitlines() if "Error: " in line] or [said[-300:]]
        return Conversion(None, lines[-1].partition("Error: ")[2] or lines[-1], *seconds)
    return Conversion(written[0], "", *seconds)


def peer(program: Path | None) -> tuple[Path, str]:
    """onnx2tf's program, made ready where it has to be, and its version.

    Raises:
        InvalidInputError: If no environment can be made for it.
    """
    if program is None:
        python = _python()
        new = python[1] >= (3, 12)
        package = PEER if new else OLD_PEER
        folder = outputs.cache("benchmarks") / package.replace("==", "-")
        program = folder / "bin" / "onnx2tf"
        if not program.is_file():
            cli.say(f"making an environment for {package} in {folder}")
            shutil.rmtree(folder, ignore_errors=True)
            steps = (
                [python[0], "-m", "venv", "--clear", str(folder)],
                [str(folder / "bin" / "pip"), "install", "--quiet", package],
            )
            for step in steps:
                status, said, _ = run_command(step, 1800)
                if status:
                    shutil.rmtree(folder, ignore_errors=True)
                    raise InvalidInputError(
                        f"{package} cannot be installed: {said.strip().splitlines()[-1]}"
                    )
    version = "from importlib.metadata import version; print(version('onnx2tf'))"
    python_of = program.parent / "python"
    _, said, _ = run_command([str(python_of), "-c", version], 60)
    return program, said.strip().splitlines()[-1] if said.strip() else "?"


def _python() -> tuple[str, tuple[int, int]]:
    """The newest Python up to 3.12 that the peer can run on, and its version."""
    homes = sorted(Path.home().glob(".pyenv/versions/3.12*/bin/python3.12"), reverse=True)
    for name in (shutil.which("python3.12"), *map(str, homes), sys.executable):
        if name is None:
            continue
        status, said, _ = run_command(
            [name, "-c", "import sys, ensurepip; print(*sys.version_info[:2])"], 60
        )
        if status == 0:
            major, minor = said.split()[:2]
            return name, (int(major), int(minor))
    raise InvalidInputError("found no Python that can make an environment; pass --onnx2tf PROGRAM")


# Runtimes ------------------------------------------------------------------------------------


class OnLiteRt:
    """A TFLite file on LiteRT, with inputs and outputs by the names of the ONNX file."""

    def __init__(self, path: Path, options: Mapping[str, str]) -> None:
        from ai_edge_litert.interpreter import Interpreter

        del options
        self._opened = Interpreter(str(path), num_threads=1)
        self._opened.allocate_tensors()
        signatures = self._opened.get_signature_list()
        key = next(iter(signatures))
        runner = self._opened.get_signature_runner(key)
        self._inputs = {_plain(k): v for k, v in runner.get_input_details().items()}
        self._outputs = {_plain(k): v for k, v in runner.get_output_details().items()}

    def prepared(self, feed: Arrays) -> Callable[[], None]:
        """One run, inputs and outputs copied; an input whose sizes a converter lost gets them."""
        by_name = {_plain(name): values for name, values in feed.items()}
        if set(by_name) != set(self._inputs):  # renamed: then they are in the file's order
            by_name = dict(zip(self._inputs, feed.values(), strict=True))
        given = []
        for name, detail in self._inputs.items():
            values = _arranged(by_name[name], detail)
            if values.shape != tuple(self._opened.get_tensor(detail["index"]).shape):
                self._opened.resize_tensor_input(detail["index"], values.shape)
            given.append((detail["index"], values))
        self._opened.allocate_tensors()
        ends = [detail["index"] for detail in self._outputs.values()]

        def once() -> None:
            for index, values in given:
                self._opened.set_tensor(index, values)
            self._opened.invoke()
            for index in ends:
                self._opened.get_tensor(index)

        return once

    def run(self, feed: Arrays) -> Arrays:
        """Outputs by plain name, real values."""
        self.prepared(feed)()
        found = {}
        for name, detail in self._outputs.items():
            values = self._opened.get_tensor(detail["index"])
            found[name] = _real(values, detail)
        return found


class OnOnnxRuntime:
    """An ONNX file on onnxruntime."""

    def __init__(self, path: Path, options: Mapping[str, str]) -> None:
        self._opened = onnx.session(path, threads=1, options=options)
        self._names = [each.name for each in self._opened.get_outputs()]

    def prepared(self, feed: Arrays) -> Callable[[], None]:
        """One run."""

        def once() -> None:
            self._opened.run(None, feed)

        return once

    def run(self, feed: Arrays) -> Arrays:
        """Outputs by plain name."""
        found = self._opened.run(None, feed)
        return {_plain(name): values for name, values in zip(self._names, found, strict=True)}


def _plain(name: str) -> str:
    """A name without what a converter may have changed in it."""
    name = name.removeprefix("serving_default_").removesuffix(":0")
    return re.sub(r"[^0-9A-Za-z]+", "_", name)


def _arranged(values: npt.NDArray[Any], detail: Mapping[str, Any]) -> npt.NDArray[Any]:
    """A value of the ONNX file as a TFLite input takes it: channels last where it has them so."""
    sizes = tuple(detail["shape"])
    if values.shape != sizes and values.ndim == len(sizes):
        turned = np.moveaxis(values, 1, -1)
        orders = itertools.permutations(range(values.ndim))
        each = [turned, *(values.transpose(order) for order in orders)]
        values = next((one for one in each if one.shape == sizes), values)
    if values.shape != sizes and values.size == np.prod(sizes):
        values = values.reshape(sizes)
    scale, zero = detail["quantization"]
    if scale and np.dtype(detail["dtype"]).kind in "iu" and values.dtype.kind == "f":
        spec = TensorSpec("x", sizes, np.dtype(detail["dtype"]).name, float(scale), int(zero))
        return np.array(spec.quantize(values), order="C")
    return np.array(values, detail["dtype"], order="C")


def _real(values: npt.NDArray[Any], detail: Mapping[str, Any]) -> npt.NDArray[Any]:
    scale, zero = detail["quantization"]
    if not scale or values.dtype.kind not in "iu":
        return np.array(values)
    spec = TensorSpec("y", values.shape, values.dtype.name, float(scale), int(zero))
    return spec.dequantize(values)


_KINDS = {".tflite": OnLiteRt, ".onnx": OnOnnxRuntime}


def serve(pipe: Any) -> None:
    """Do what is asked for: ("open", key, path, options), ("run", key, feeds), ("time", key, feed,
    count)."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for number in (1, 2):
        os.dup2(os.open(os.devnull, os.O_WRONLY), number)
    models: dict[str, Any] = {}
    with contextlib.suppress(EOFError):
        while True:
            task, key, *rest = pipe.recv()
            try:
                if task == "open":
                    models[key] = _KINDS[rest[0].suffix](*rest)
                    pipe.send(("done", None))
                elif task == "run":
                    pipe.send(("done", [models[key].run(feed) for feed in rest[0]]))
                else:
                    pipe.send(("done", _times(models[key].prepared(rest[0]), rest[1])))
            except Exception as exc:  # whatever a runtime raises is its reason
                pipe.send(("error", f"{type(exc).__name__}: {reason(exc)}"))


def _times(once: Callable[[], None], count: int) -> list[float]:
    samples = []
    warm_up = min(WARM_UP, count)
    for _ in range(warm_up + count):
        started = time.process_time_ns()  # one thread: what others do with the core does not count
        once()
        samples.append((time.process_time_ns() - started) / 1e6)
    return samples[warm_up:]


class Runtimes:
    """A process for each runtime, and which of them has which model.

    Attributes:
        failed: Why a model cannot be run any more, by key.
    """

    def __init__(self) -> None:
        self.failed: dict[str, str] = {}
        self._where: dict[str, str] = {}
        context = multiprocessing.get_context("spawn")
        self._pipes, self._processes = {}, []
        for suffix in _KINDS:
            self._pipes[suffix], theirs = context.Pipe()
            self._processes.append(context.Process(target=serve, args=(theirs,), daemon=True))
            self._processes[-1].start()
            theirs.close()

    def open(self, key: str, path: Path, options: Mapping[str, str] | None = None) -> None:
        """Load a model."""
        self._where[key] = path.suffix
        self._ask("open", key, path, options or {})

    def run(self, key: str, given: Sequence[Arrays]) -> list[Arrays] | None:
        """Outputs of each of these inputs."""
        found: list[Arrays] | None = self._ask("run", key, given)
        return found

    def latency(self, first: Arrays, rounds: int) -> dict[str, npt.NDArray[np.float64]]:
        """Milliseconds ``[rounds, runs]`` by key, of the models that ran."""
        found: dict[str, list[Any]] = {key: [] for key in self._where}
        slowest = max((min(self._ask("time", k, first, 2) or [0.0]) for k in found), default=0.0)
        runs = max(3, min(SAMPLES, int(TURN / max(slowest, 1e-3))))
        for turn in range(rounds):
            keys = [*found]
            for key in keys if turn % 2 else keys[::-1]:
                samples = self._ask("time", key, first, runs)
                if samples is not None:
                    found[key].append(samples)
        return {k: np.asarray(v) for k, v in found.items() if len(v) == rounds}

    def _ask(self, task: str, key: str, *rest: Any) -> Any:
        if key in self.failed:
            return None
        try:
            pipe = self._pipes[self._where[key]]
            pipe.send((task, key, *rest))
            kind, value = pipe.recv()
        except (EOFError, OSError):
            kind, value = "error", "the process of its runtime ended"
        if kind == "done":
            return value
        self.failed[key] = value
        return None

    def __enter__(self) -> Runtimes:
        return self

    def __exit__(self, *error: object) -> None:
        for pipe in self._pipes.values():
            pipe.close()
        for process in self._processes:
            process.join(5)
            process.kill()


# Samples -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A file with what goes into it.

    Attributes:
        random: Random numbers, one dictionary for each sample.
        real: Samples that are not for calibration, preprocessed, likewise; empty where there are
            none.
        lacking: Why there are none.
    """

    file: OnnxFile
    path: Path
    random: list[Arrays]
    real: list[Arrays]
    arrays: Arrays
    prepare: str
    lacking: str


def case(file: OnnxFile, path: Path, data: Path | None, folder: Path) -> Case:
    """Samples of a file, as onnxruntime takes them."""
    with quiet():
        found = onnx.signature(onnx.load(path, whole=False))
    shaped = signature.sized(found.inputs, file.shapes, path) if file.shapes else found.inputs
    specs = tuple(
        TensorSpec(spec.name, tuple(1 if n == -1 else n for n in spec.shape), spec.dtype,
                   batched=spec.batched)
        for spec in shaped
    )  # fmt: skip
    sized = signature.Signature(specs, ())
    drawn = [onnx_source.random_feed(sized, seed=100 + i) for i in range(RANDOM)]
    for feed in drawn:
        for name, value in file.fixed.items():
            feed[name] = np.asarray(value, feed[name].dtype).reshape(feed[name].shape)
    prepare = onnx_files.preprocessing(file, folder)
    arrays = onnx_files.collected(file, path, data)
    if isinstance(arrays, str):
        return Case(file, path, drawn, [], {}, prepare, arrays)
    samples = feeds.make(file.name, arrays)
    rest = slice(file.calibration, file.calibration + file.test)
    real = feeds.feed(samples, specs, signature.preprocessing(prepare), rest)
    return Case(file, path, drawn, [*feeds.one_by_one(real, specs)], arrays, prepare, "")


# Float ---------------------------------------------------------------------------------------


def difference(right: Sequence[Arrays], other: Sequence[Arrays] | None) -> float | None:
    """Largest difference of any output, as a part of that output's largest value; None where it
    cannot be told. Outputs are turned where a converter left their channels last."""
    if other is None:
        return None
    worst = 0.0
    for name in right[0]:
        exact = np.stack([each[name] for each in right]).astype(np.float64)
        if name not in other[0]:
            if len(other[0]) != 1:
                return None
            other = [{name: next(iter(each.values()))} for each in other]
        found = np.stack([each[name] for each in other]).astype(np.float64)
        if exact.size != found.size:
            return None
        orders = itertools.permutations(range(1, found.ndim))
        turned = [found.transpose(0, *order) for order in orders]
        same = [each for each in turned if each.shape == exact.shape]
        same = same or [found.reshape(exact.shape)]
        errors = [float(np.abs(each - exact).max()) for each in same]
        largest = max(float(np.abs(exact).max()), SMALL)
        worst = max(worst, min(errors) / largest)
    return worst


def float_row(case: Case, folder: Path, program: Path, rounds: int, limit: int) -> dict[str, Any]:
    """Both conversions of a file, and what they are worth."""
    made = {
        EDGEKIT: by_edgekit(case.file, case.path, folder, limit),
        ONNX2TF: by_onnx2tf(case.file, case.path, folder, limit, program),
    }
    row: dict[str, Any] = {"name": case.file.name, "lacking": case.lacking}
    with Runtimes() as runtimes:
        runtimes.open(ORIGINAL, case.path)
        for tool, conversion in made.items():
            if conversion.path is not None:
                runtimes.open(tool, conversion.path)
        right = {kind: runtimes.run(ORIGINAL, each) for kind, each in _kinds(case).items()}
        for tool, conversion in made.items():
            row[tool] = {
                "failed": conversion.failed,
                "cpu_seconds": conversion.cpu_seconds,
                "seconds": conversion.seconds,
            }
            if conversion.path is None:
                continue
            operators = Graph(conversion.path.read_bytes()).operators
            row[tool]["operators"] = len(operators)
            row[tool]["transpositions"] = sum(each.kind == "TRANSPOSE" for each in operators)
            for kind, given in _kinds(case).items():
                exact = right[kind]
                if exact is not None:
                    row[tool][kind] = difference(exact, runtimes.run(tool, given))
        taken = runtimes.latency((case.real or case.random)[0], rounds)
        row["samples_ms"] = {key: values.tolist() for key, values in taken.items()}
        row["ms"] = {key: float(np.median(values)) for key, values in taken.items()}
        for one, other in ((EDGEKIT, ONNX2TF), (EDGEKIT, ORIGINAL), (ONNX2TF, ORIGINAL)):
            if one in taken and other in taken:
                row[f"{one}/{other}"] = _ratio(taken[one], taken[other])
        for tool, why in runtimes.failed.items():
            if tool in row:
                row[tool]["failed"] = f"does not run: {why}"
            else:
                row["lacking"] = f"onnxruntime: {why}"
    return row


def _kinds(case: Case) -> dict[str, list[Arrays]]:
    return {"random": case.random, **({"real": case.real} if case.real else {})}


def _ratio(one: npt.NDArray[np.float64], other: npt.NDArray[np.float64]) -> list[float]:
    found = stats.latency_ratio(one, other)
    assert found.low is not None and found.high is not None
    return [found.value, found.low, found.high]


class _Notes:
    """Reasons below a table, each said once and shortened."""

    def __init__(self) -> None:
        self._all: list[str] = []

    def of(self, why: str) -> str:
        """Its mark."""
        short = textwrap.shorten(why.split(" See instructions")[0], REASON, placeholder=" ...")
        if short not in self._all:
            self._all.append(short)
        return f"[{self._all.index(short) + 1}]"

    def lines(self) -> list[str]:
        """The reasons as Markdown."""
        return [""] * bool(self._all) + [f"{i}. {why}" for i, why in enumerate(self._all, 1)]


def _rounds(document: Mapping[str, Any]) -> str:
    """How many rounds there were, of rows that may come from several runs."""
    counts = {len(v) for row in document["rows"] for v in row.get("samples_ms", {}).values()}
    return " to ".join(map(str, sorted({min(counts), max(counts)}))) if counts else "no"


def float_table(document: Mapping[str, Any]) -> str:
    """The first table as Markdown."""
    head = (
        "file", "converts", "random inputs", "real inputs", "transpositions", "latency, x onnx2tf",
        "latency, x onnxruntime", "CPU seconds",
    )  # fmt: skip
    versions = document["versions"]
    lines = [
        "# ONNX files as sources of TFLite",
        "",
        f"edgekit {versions['edgekit']} beside onnx2tf {versions[ONNX2TF]}, {document['date']}, on "
        f"{document['machine']}, one thread. Where a cell has two values the first is edgekit's, "
        f"the second onnx2tf's. Differences are from onnxruntime on the file, the largest of all "
        f"outputs as a part of that output's largest value (of {SMALL} at least), on {RANDOM} "
        f"random and up to {onnx_files.TEST} real samples ({onnx_files.UNSURE} of text "
        f"directions). Latency is CPU time, a ratio of medians "
        f"of {_rounds(document)} rounds with a bootstrap 95 % interval. Seconds are those of the "
        f"whole command on all cores; onnx2tf writes float16 too, edgekit runs the result against "
        f"the file.",
        "",
        "| " + " | ".join(head) + " |",
        "|" + "---|" * len(head),
    ]
    notes = _Notes()

    for row in document["rows"]:
        if "skipped" in row:
            lines.append(f"| {row['name']} | left out {notes.of(row['skipped'])} |" + " |" * 6)
            continue
        ours, theirs = row[EDGEKIT], row[ONNX2TF]
        cells = [
            " / ".join(f"no {notes.of(each['failed'])}" if each["failed"] else "yes"
                       for each in (ours, theirs)),
            *(_pair(ours, theirs, kind, _share) for kind in ("random", "real")),
            _pair(ours, theirs, "transpositions", str),
            _times_of(row.get(f"{EDGEKIT}/{ONNX2TF}")),
            " / ".join(
                _times_of(row.get(f"{tool}/{ORIGINAL}"), short=True) for tool in (EDGEKIT, ONNX2TF)
            ),
            _pair(ours, theirs, "cpu_seconds", lambda value: f"{value:.1f}"),
        ]  # fmt: skip
        lines.append(f"| {row['name']} | " + " | ".join(cells) + " |")
    lines += notes.lines()
    return "\n".join(lines).rstrip() + "\n"


def _pair(
    ours: Mapping[str, Any], theirs: Mapping[str, Any], key: str, shown: Callable[[Any], str]
) -> str:
    each = [tool.get(key) for tool in (ours, theirs)]
    return " / ".join("–" if value is None else shown(value) for value in each)


def _share(value: float) -> str:
    return "0" if value == 0 else f"{value:.0e}" if value < 0.01 else f"**{value:.2g}**"


def _times_of(found: Sequence[float] | None, *, short: bool = False) -> str:
    if found is None:
        return "–"
    return f"{found[0]:.2f}" if short else f"{found[0]:.2f} [{found[1]:.2f}, {found[2]:.2f}]"


# int8 ----------------------------------------------------------------------------------------


def int8_row(case: Case, folder: Path, rounds: int, limit: int) -> dict[str, Any]:
    """The int8 files that edgekit makes of a file, beside the float ones."""
    row: dict[str, Any] = {"name": case.file.name, "kind": case.file.kind}
    if not case.arrays:
        return row | {"skipped": case.lacking}
    calibration = folder / "calibration.npz"
    count = case.file.calibration
    np.savez(calibration, **{k: v[:count] for k, v in case.arrays.items()})  # type: ignore[arg-type]
    options = ["--target", "tflite,onnx", "--precision", "float32,int8", "--correction", "none"]
    options += ["--calibration", str(calibration), "--preprocessing", case.prepare]
    out = folder / "all"
    status, said, seconds = of_edgekit(case.path, out, options, case.file.shapes, limit)
    row |= {"calibration": count, "test": len(case.real), "refused": "", "seconds": seconds[1]}
    if status and ("is poor" in said or "dead in the int8" in said):
        row["refused"] = said
        status, said, _ = of_edgekit(case.path, out, [*options, *ALLOWED], case.file.shapes, limit)
    if status:
        return row | {"failed": said}
    folders = {path.name.split("-")[-2] + " " + path.name.split("-")[-1]: path
               for path in out.iterdir()}  # fmt: skip
    artifacts = {key: Artifact.load(path) for key, path in folders.items()}
    found = parity.numbers(artifacts["tflite int8"], artifacts["onnx int8"])
    row["numbers"] = found.compared
    row["differences"] = [str(each) for each in found.differences]
    row["expected"] = list(found.expected)
    for target in ("tflite", "onnx"):
        execution = artifacts[f"{target} int8"].manifest.execution
        assert execution is not None
        row[f"{target} floats"] = list(execution.floats)
        row[f"{target} kernels"] = dict(execution.kernels)
    with Runtimes() as runtimes:
        runtimes.open(ORIGINAL, case.path)
        for key, each in artifacts.items():
            runtimes.open(key, each.model_path, each.manifest.runtime_options)
        answers = {key: runtimes.run(key, case.real) for key in (ORIGINAL, *artifacts)}
        exact = answers[ORIGINAL]
        if exact is None:
            return row | {"failed": f"onnxruntime: {runtimes.failed[ORIGINAL]}"}
        row["equal"] = {
            target: difference(exact, answers[f"{target} float32"]) for target in ("tflite", "onnx")
        }
        row["sqnr"] = {
            target: kept(exact, answers[f"{target} int8"]) for target in ("tflite", "onnx")
        }
        taken = runtimes.latency(case.real[0], rounds)
        row["samples_ms"] = {key: values.tolist() for key, values in taken.items()}
        row["ms"] = {key: float(np.median(values)) for key, values in taken.items()}
        row["latency"] = {
            target: _ratio(taken[f"{target} int8"], taken[f"{target} float32"])
            for target in ("tflite", "onnx")
            if {f"{target} int8", f"{target} float32"} <= set(taken)
        }
        row["broken"] = dict(runtimes.failed)
    return row


def kept(exact: Sequence[Arrays], other: Sequence[Arrays] | None) -> dict[str, float] | None:
    """SQNR in dB of what varies over the samples, by output."""
    if other is None:
        return None
    found = {}
    for name, values in exact[0].items():
        if values.dtype.kind != "f":
            continue
        flat = [
            np.stack([each[name] for each in side]).reshape(len(side), -1).astype(np.float32)
            for side in (exact, other)
        ]
        judged = fidelity.judge(*flat, {name: flat[0].shape[1:]})
        found[name] = min(judged[0].sqnr_centred, 200.0)
    return found


INT8_HEAD = (
    "file", "float TFLite, ONNX", "int8 TFLite", "int8 ONNX", "integers that differ",
    "float operators", "latency TFLite", "latency ONNX",
)  # fmt: skip


def int8_table(document: Mapping[str, Any], command: str) -> str:
    """The second table as Markdown: the page without the layers."""
    versions = document["versions"]
    lines = [
        "# What converts",
        "",
        f"By `{command}`: files of others, with up to {onnx_files.CALIBRATION} real samples to "
        f"calibrate with and {onnx_files.TEST} others to test (24 and 12 for `torch ...`, the "
        f"files of `tests/data/torch`, which are not trained; {onnx_files.UNSURE} to test the text "
        f"direction, of two classes). {document['date']}, "
        f"{document['machine']}, two shared cores; edgekit {versions['edgekit']}, "
        f"ai-edge-litert {versions['ai-edge-litert']}, onnxruntime "
        f"{next(v for k, v in versions.items() if k.startswith('onnxruntime'))}.",
        "",
        "- **float**: the largest difference of float32 TFLite and ONNX from the file on "
        f"onnxruntime, as a part of the largest value (of {SMALL} at least)",
        "- **int8**: dB that are left of what varies over the test samples, for each output, "
        "against the file on onnxruntime; weights rounded to nearest (`--correction none`)",
        "- **integers that differ**: of all scales, zero points, weights and biases that both int8 "
        "files hold; what ONNX has no integers for, as an LSTM or a branch of an If, is not among "
        "them",
        "- **float operators**: how many compute in float in TFLite and in ONNX",
        f"- **latency**: CPU time of int8 over that of float32 of the same format, one thread, "
        f"medians of {_rounds(document)} interleaved rounds, with a bootstrap 95 % interval",
        "",
        "| " + " | ".join(INT8_HEAD) + " |",
        "|" + "---|" * len(INT8_HEAD),
    ]
    lines = [
        textwrap.fill(
            line, 112, subsequent_indent="  " * line.startswith("-"),
            break_long_words=False, break_on_hyphens=False,
        )
        if line[:1] not in ("|", "#")
        else line
        for line in lines
    ]  # fmt: skip
    notes = _Notes()

    for row in document["rows"]:
        if "skipped" in row:
            continue
        if "failed" in row:
            lines.append(f"| {row['name']} | no {notes.of(row['failed'])} |" + " |" * 6)
            continue
        name = row["name"] + (f" {notes.of(row['refused'])}" if row["refused"] else "")
        left = [
            ", ".join(f"{value:.1f}" for value in (row["sqnr"][target] or {}).values()) + " dB"
            for target in ("tflite", "onnx")
        ]
        cells = [
            ", ".join(
                "–" if row["equal"][t] is None else _share(row["equal"][t])
                for t in ("tflite", "onnx")
            ),
            *left,
            f"{len(row['differences'])} of {row['numbers']:,}",
            f"{len(row['tflite floats'])}, {len(row['onnx floats'])}",
            *(_times_of(row["latency"].get(target)) for target in ("tflite", "onnx")),
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += notes.lines()
    return "\n".join(lines).rstrip() + "\n"


# Command -------------------------------------------------------------------------------------


def cases(names: Sequence[str], data: Path | None) -> Iterator[tuple[OnnxFile, Path | str]]:
    """Each file with its path, or why there is none."""
    for file in onnx_files.files():
        if file.name not in names:
            continue
        try:
            yield file, onnx_files.find(file, data)
        except FileNotFoundError as exc:
            yield file, reason(exc)


def row_of(file: OnnxFile, path: Path | str, options: argparse.Namespace) -> dict[str, Any]:
    """A row of the table that is asked for."""
    if isinstance(path, str):
        return {"name": file.name, "skipped": path}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        found = case(file, path, options.data, folder)
        if options.int8:
            return int8_row(found, folder, options.rounds, options.seconds)
        return float_row(found, folder, options.program, options.rounds, options.seconds)


def measured(options: argparse.Namespace) -> dict[str, Any]:
    """The document of a run.

    Raises:
        InvalidInputError: If no environment can be made for the peer.
    """
    machine = environment.describe()
    versions = dict(machine.versions)
    if not options.int8:
        options.program, versions[ONNX2TF] = peer(options.onnx2tf)
    rows = []
    for file, path in cases(options.only, options.data):
        try:
            rows.append(row_of(file, path, options))
        except (EdgekitError, OSError) as exc:
            rows.append({"name": file.name, "skipped": reason(exc)})
        row = {key: value for key, value in rows[-1].items() if key != "samples_ms"}
        print(json.dumps(row), file=sys.stderr, flush=True)
    return {
        "date": datetime.date.today().isoformat(),
        "machine": machine.machine_class,
        "threads": 1,
        "versions": versions,
        "rows": rows,
    }


def merged(paths: Sequence[Path]) -> dict[str, Any]:
    """One document of the rows of several.

    Raises:
        InvalidInputError: If they are of several machines or versions, which one table cannot say.
    """
    documents = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    first = documents[0]
    for path, document in zip(paths, documents, strict=True):
        for key in ("machine", "threads", "versions"):
            if document[key] != first[key]:
                raise InvalidInputError(
                    f"{path}: expected {key} of {paths[0]}, {first[key]}, got {document[key]}; "
                    f"measure all files in one run"
                )
    dates = sorted({document["date"] for document in documents})
    rows = [row for document in documents for row in document["rows"]]
    return {**first, "date": " to ".join(sorted({dates[0], dates[-1]})), "rows": rows}


def main() -> int:
    names = [file.name for file in onnx_files.files()]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--data", type=Path, help="folder with efficientnet_lite0.onnx and imagenet500")
    add("--int8", action="store_true", help="the table of int8 files")
    add("--onnx2tf", type=Path, help="its program (default: one in the user's cache)")
    add("--only", nargs="*", choices=names, default=names, metavar="NAME")
    add("--rounds", type=words.positive_int, default=20, help=f"of up to {SAMPLES} runs each")
    add("--seconds", type=words.positive_int, default=600, help="limit of a conversion")
    add("--merge", type=Path, nargs="+", help="only print the rows of these JSON documents")
    add("--out", type=Path, help="Markdown page (default: build/onnx-sources.md)")
    options = parser.parse_args()
    try:
        document = merged(options.merge) if options.merge else measured(options)
    except EdgekitError as exc:
        parser.error(str(exc))
    by_name = {row["name"]: row for row in document["rows"]}
    document["rows"] = [by_name[name] for name in names if name in by_name]
    out = options.out or Path("build") / ("onnx-int8.md" if options.int8 else "onnx-sources.md")
    if options.int8:
        page = int8_table(
            document, "python benchmarks/onnx_sources.py --data FOLDER --int8 --out "
            "docs/reference/conversion.md",
        )  # fmt: skip
        before = out.read_text(encoding="utf-8") if out.is_file() else ""
        if SECTION in before:  # of benchmarks/support_table.py
            page = with_section(page, SECTION + before.split(SECTION, 1)[1])
    else:
        page = float_table(document)
    outputs.write_text(out, page, force=True)
    raw = out.with_suffix(".json") if out.parts[:1] != ("docs",) else Path("build/onnx-int8.json")
    outputs.write_text(raw, schema.dumps(document), force=True)
    print(page)
    rows = [{k: v for k, v in row.items() if k != "samples_ms"} for row in document["rows"]]
    print(json.dumps({**document, "rows": rows}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
