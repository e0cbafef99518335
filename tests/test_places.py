"""Places: their words, the channel, and a device end against a local process."""

from __future__ import annotations

import os
import pickle
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_runtimes import NAMES, job

from edgekit import data
from edgekit.base.errors import (
    ExecutionError,
    InvalidModelError,
    InvalidOptionError,
    ProcessDiedError,
    ReportError,
)
from edgekit.compare import Options, compare
from edgekit.evaluation import machines
from edgekit.evaluation.benchmark import benchmark
from edgekit.gate import gate
from edgekit.gating.bounds import Bound
from edgekit.records.artifact import Artifact
from edgekit.runtimes import channel, places, qemu
from edgekit.runtimes.channel import FrameError
from edgekit.runtimes.places import KINDS, Kind, Launch, PlaceSpec
from edgekit.runtimes.worker import Worker


@dataclass(frozen=True)
class Local(PlaceSpec):
    """A device end that a command starts on this machine."""

    word: str = "local"
    kind: Kind = field(default_factory=lambda: Kind("local", "a process of this machine"))
    command: tuple[str, ...] = (sys.executable, "-m", "edgekit.runtimes.device")
    is_here = False

    def launch(self) -> Launch:
        return Launch(self.command, dict(os.environ), {"wire": "1"})


def scripted(script: str) -> Local:
    """A device end that does what it likes."""
    return Local(command=(sys.executable, "-c", script))


# Words


def test_words_of_places() -> None:
    assert places.parse("here") == places.HERE
    plain = places.parse("qemu:arm64")
    assert plain == places.parse("qemu:arm64#cpu=cortex-a76")
    assert plain.word == "qemu:arm64#cpu=cortex-a76"
    assert not plain.kind.times and not plain.is_here


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("qemu:arm46", "did you mean 'qemu:arm64'"),
        ("qemu:arm64#cpus=max", "unknown option 'cpus'; expected cpu; did you mean 'cpu'"),
        ("qemu:arm64#cpu=cortex-a67", "did you mean 'cortex-a76'"),
        ("here#cpu=max", "here takes no options"),
        ("", "unknown place ''"),
    ],
)
def test_unknown_places_name_the_nearest(word: str, message: str) -> None:
    with pytest.raises(InvalidOptionError, match=message):
        places.parse(word)


def test_places_of_models() -> None:
    names = ["a", "b=c", "d#e"]
    arm, here = places.parse("qemu:arm64#cpu=max"), places.HERE
    assert places.assigned([], names) == dict.fromkeys(names, (here,))
    assert places.assigned(["here", arm.word], names) == dict.fromkeys(names, (here, arm))
    given = ["a=qemu:arm64#cpu=max", "b=c=here", f"d#e={arm.word}", "d#e=here"]
    assert places.assigned(given, names) == {"a": (arm,), "b=c": (here,), "d#e": (arm, here)}
    assert places.named("a", arm) == "a on qemu:arm64#cpu=max"
    assert places.named("a", here) == "a"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["ab=here"], "--on names 'ab', which is not compared; expected one of abc"),
        (["abc=there"], "unknown place 'there'"),
        (["qemu:arm46#cpu=max"], "did you mean 'qemu:arm64'"),
        (["here", "abc=here"], "--on gives abc the place here twice"),
    ],
)
def test_places_of_unknown_models(given: list[str], message: str) -> None:
    with pytest.raises(InvalidOptionError, match=message):
        places.assigned(given, ["abc"])


def test_a_cpu_without_dot_product_does_not_claim_it() -> None:
    for name, cpu in qemu.CPUS.items():
        has = name not in ("cortex-a72", "cortex-a53")
        assert ("asimddp" in cpu.features.split()) == has, name


# Frames


def through(said: dict[str, Any], arrays: list[np.ndarray], limit: int = 1 << 20) -> channel.Frame:
    return read(b"".join(channel.packed(said, arrays)), limit)


def read(content: bytes, limit: int = 1 << 20) -> channel.Frame:
    rest = bytearray(content)

    def receive(size: int) -> bytes:
        piece = bytes(rest[: min(size, 7)])  # in pieces, as a pipe gives it
        del rest[: len(piece)]
        return piece

    return channel.read(receive, limit=limit)


@pytest.mark.parametrize("dtype", ["f4", "f2", "f8", "i1", "u1", "i2", "i4", "i8", ">f4", "bool"])
def test_arrays_pass_as_they_are(dtype: str) -> None:
    values = (np.arange(24).reshape(2, 3, 4) % 2).astype(dtype)
    frame = through({"name": "ä\x1b"}, [values, values[:, ::2], np.zeros((0, 3), dtype)])
    assert frame.said == {"name": "ä\x1b"}
    for got, expected in zip(frame.arrays, [values, values[:, ::2]], strict=False):
        np.testing.assert_array_equal(got, expected)
    assert frame.arrays[2].shape == (0, 3)


def head(text: bytes, size: int, content: bytes = b"") -> bytes:
    return channel._HEAD.pack(channel.MAGIC, len(text), size) + text + content


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pickle.dumps(print, protocol=4) * 9, "expected a frame that begins with"),
        (b"HTTP/1.1 200 OK\r\n\r\n", "expected a frame that begins with"),
        (channel._HEAD.pack(channel.MAGIC, 1 << 31, 0), "expected up to 1048576 bytes of JSON"),
        (channel._HEAD.pack(channel.MAGIC, 2, 1 << 63), "expected up to"),
        (head(b"{}", 4, b"abcd"), "expected 0 bytes for the arrays"),
        (head(b"[]", 0), "expected a JSON object"),
        (head(b"{} {}", 0), "expected JSON"),
        (head(b'{"a": NaN}', 0), "expected JSON"),
        (head(b"\xff\xfe", 0), "expected JSON"),
        (head(b"[" * 9999, 0), "expected JSON"),
        (head(b'{"a": 1', 0), "expected JSON"),
        (channel._HEAD.pack(channel.MAGIC, 9, 0) + b"{", "expected 9 bytes, got 1"),
        (channel.MAGIC, "expected 16 bytes, got 4"),
        (head(b'{"arrays": [{"dtype": "|O", "shape": [1]}]}', 8, b"x" * 8), "expected arrays of"),
        (head(b'{"arrays": [{"dtype": "<f4", "shape": [-1]}]}', 4, b"x" * 4), "integers >= 0"),
        (head(b'{"arrays": [{"dtype": "<f4", "shape": [true]}]}', 4, b"x" * 4), "integers >= 0"),
        (head(b'{"arrays": [{"dtype": "<f4", "shape": [2]}]}', 4, b"x" * 4), "expected 8 bytes"),
        (head(b'{"arrays": [{"dtype": "<f4", "shape": [65536, 65536]}]}', 0), "17179869184 bytes"),
        (head(b'{"arrays": [{"dtype": "<f4"}]}', 0), "dtype and shape"),
        (head(b'{"arrays": {}}', 0), "a list of arrays"),
    ],
)
def test_what_is_no_frame(content: bytes, message: str) -> None:
    with pytest.raises(FrameError, match=message):
        read(content)


def test_the_end_is_no_broken_frame() -> None:
    with pytest.raises(EOFError):
        read(b"")


def test_objects_are_not_sent() -> None:
    with pytest.raises(FrameError, match="expected arrays of"):
        channel.packed({}, [np.array([{}])])


def test_text_of_a_device_steers_no_terminal() -> None:
    said = channel.harmless({"a\x1b[2J": ["\r\n", {"b": "\u202e"}], "n": 1, "long": "x" * 9999})
    assert said == {"a\\x1b[2J": ["\\r\\n", {"b": "\\u202e"}], "n": 1, "long": "x" * 4000}


# A device end


@pytest.mark.parametrize("name", NAMES)
def test_the_same_numbers_as_a_worker_here(name: str, artifacts: dict[str, Path]) -> None:
    images = data.load("fashion_mnist", "test").images[:9]
    with Worker(job(artifacts[name])) as worker:
        expected, here = worker.outputs(images), worker.loaded
    with Worker(job(artifacts[name], place=Local())) as worker:
        np.testing.assert_array_equal(worker.outputs(images), expected)
        assert len(worker.latencies(images[:1], 3)) == 3
        assert 0 < worker.loaded.baseline_memory < worker.peak_memory()
        assert (worker.loaded.runtime, worker.loaded.signature) == (here.runtime, here.signature)
        place = worker.loaded.place
    assert place is not None and place.host == "local" and place.versions["wire"] == "1"
    assert not worker.alive


def test_a_model_of_several_inputs(artifacts: dict[str, Path]) -> None:
    """Records go as one array for each field."""
    images = data.load("fashion_mnist", "test").images[:3]
    with Worker(job(artifacts["onnx-int8"])) as worker:
        expected = worker.outputs(images)
        name = worker.loaded.signature.inputs[0].name
    records = np.empty(3, [(name, images.dtype, images.shape[1:])])
    records[name] = images
    with Worker(job(artifacts["onnx-int8"], place=Local())) as worker:
        np.testing.assert_array_equal(worker.outputs(records), expected)


def test_errors_of_a_device_have_their_type(artifacts: dict[str, Path], tmp_path: Path) -> None:
    model = tmp_path / "model.tflite"
    model.write_bytes(b"\x1c\0\0\0TFL3" + bytes(range(256)) * 4)
    with pytest.raises(InvalidModelError, match="^garbage: .*cannot be read") as caught:
        Worker(job(artifacts["tflite-int8"], model=model, name="garbage", place=Local()))
    assert "\n" not in str(caught.value)
    with pytest.raises(InvalidOptionError, match="xnnpack or reference"):
        Worker(job(artifacts["tflite-int8"], options={"kernels": "fast"}, place=Local()))


def test_nothing_of_a_model_stays_on_the_device(
    artifacts: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with Worker(job(artifacts["tflite-int8"], place=Local())):
        assert not list(tmp_path.iterdir())


def test_the_device_end_imports_no_framework() -> None:
    import subprocess

    script = (
        "import sys, edgekit.runtimes.device\n"
        "print(sorted({name.partition('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    for package in ("tensorflow", "tf_keras", "onnx", "rich", "scipy", "jinja2", "flatbuffers"):
        assert f"'{package}'" not in done.stdout, package


def test_a_place_runs_its_formats_only(artifacts: dict[str, Path]) -> None:
    keras = job(artifacts["tflite-int8"], format="keras", place=Local())
    with pytest.raises(InvalidOptionError, match="local runs tflite and onnx files"):
        Worker(keras)
    with pytest.raises(InvalidOptionError, match="leave --trust out for local"):
        Worker(job(artifacts["onnx-int8"], trust=True, place=Local()))


def test_times_that_mean_nothing_are_not_measured(artifacts: dict[str, Path]) -> None:
    place = Local(kind=Kind("local", "an imitation", times=False))
    images = data.load("fashion_mnist", "test").images[:1]
    with Worker(job(artifacts["tflite-int8"], place=place)) as worker:
        assert worker.loaded.runtime.emulated
        for ask in (lambda: worker.latencies(images, 3), worker.peak_memory):
            with pytest.raises(InvalidOptionError, match="local is an imitation: its times and"):
                ask()


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("import os; os.abort()", "was ended by SIGABRT; out of memory, or a crash there"),
        ("import sys; sys.exit('\\x1b[2J no \\u202e python')", r"\\x1b\[2J no \\u202e python"),
        ("", "ended with code 0"),
        ("import signal, os; os.kill(os.getpid(), signal.SIGILL)", "local was ended by SIGILL"),
    ],
)
def test_a_device_that_dies_is_one_line(
    script: str, message: str, artifacts: dict[str, Path]
) -> None:
    with pytest.raises(ProcessDiedError, match=message) as caught:
        Worker(job(artifacts["tflite-int8"], place=scripted(script)))
    assert str(caught.value).isprintable() and "at local" in str(caught.value)


def test_a_program_that_is_not_there(artifacts: dict[str, Path]) -> None:
    place = Local(command=("/nowhere/qemu",))
    with pytest.raises(ExecutionError, match="local: /nowhere/qemu cannot be started"):
        Worker(job(artifacts["tflite-int8"], place=place))


_HOSTILE = """
import os, sys, pickle
import numpy as np
from edgekit.runtimes import channel, device
real = channel.packed
class Bomb:
    def __reduce__(self):
        return os.system, ("touch {mark}",)
def packed(said, arrays=()):
    {change}
    return real(said, arrays)
channel.packed = packed
sys.exit(device.main())
"""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("arrays = [each[:-1] for each in arrays]", "expected float32 outputs of 4 samples"),
        ("arrays = [each.astype('f8') for each in arrays]", "expected float32 outputs of 4"),
        ("arrays = [each * np.nan for each in arrays]", "outputs are NaN or Inf"),
        ("arrays = [*arrays, *arrays]", "expected a reply with 1 arrays, got 2"),
        ("if arrays: return [pickle.dumps(Bomb())]", "expected a frame that begins with"),
        ("if arrays: return [b'ekf1' + b'\\xff' * 12]", "expected up to"),
        ("if arrays: return real(said, arrays) * 1000", ""),
        ("said['number'] += 1 if arrays else 0", "expected reply 2, got 3"),
        ("if arrays: said = {'number': 2, 'kind': 'run', 'value': 'x'}", "expected a reply"),
        (
            "if arrays: said, arrays = {'number': 2, 'kind': 'error', 'error': 'SystemExit', "
            "'said': '\\x1b]0;owned\\x07' + 'x' * 9999}, ()",
            r"^tflite-int8: \\x1b\]0;owned\\x07x+…x+$",
        ),
        ("if not arrays: said['value']['loaded']['load_ms'] = 'x'", "expected a number"),
        (
            "if not arrays: said['value']['loaded']['signature']['inputs'][0]['dtype'] = 'object'",
            "hold one of",
        ),
        ("if not arrays: said['value'] = None", "expected an object"),
        ("if not arrays: arrays = [np.zeros(1 << 20)]", "expected up to 1048576 bytes of JSON"),
    ],
)  # fmt: skip
def test_hostile_devices(
    change: str, message: str, artifacts: dict[str, Path], tmp_path: Path
) -> None:
    mark = tmp_path / "mark"
    change = "import edgekit.base.schema as s; said = s.to_json(said)\n    " + change
    place = scripted(_HOSTILE.format(change=change, mark=mark))
    images = data.load("fashion_mnist", "test").images[:4]
    with pytest.raises(ExecutionError, match=message or "expected reply") as caught:
        with Worker(job(artifacts["tflite-int8"], name="tflite-int8", place=place)) as worker:
            worker.outputs(images)
            worker.outputs(images)
    assert "\n" not in str(caught.value) and "\x1b" not in str(caught.value)
    assert len(str(caught.value)) < 900
    assert not mark.exists()


def test_names_of_a_device_are_escaped(artifacts: dict[str, Path]) -> None:
    change = (
        "import edgekit.base.schema as s; said = s.to_json(said)\n    "
        "if not arrays:\n"
        "        said['value']['place']['host'] = 'h\\x1b[31m'\n"
        "        said['value']['place']['machine_class'] = 'm\\r\\n'\n"
        "        said['value']['loaded']['runtime']['provider'] = 'p\\u202e'"
    )
    place = scripted(_HOSTILE.format(change=change, mark=""))
    with Worker(job(artifacts["tflite-int8"], place=place)) as worker:
        assert worker.loaded.place is not None
        assert worker.loaded.place.host == "local"
        assert worker.loaded.place.machine_class == "m\\r\\n"
        assert worker.loaded.runtime.provider == "p\\u202e"


def test_the_device_end_refuses_another_version_and_paths(artifacts: dict[str, Path]) -> None:
    import subprocess

    from edgekit.base import schema
    from edgekit.runtimes.device import Order

    def asked(change: Callable[[dict[str, Any]], None]) -> str:
        order = schema.to_json(Order.of(job(artifacts["tflite-int8"]), ("model.tflite",)))
        change(order)
        request = {"number": 1, "command": "load", "job": order}
        content = np.frombuffer(b"TFL3", np.uint8)
        done = subprocess.run(
            [sys.executable, "-m", "edgekit.runtimes.device"],
            input=b"".join(channel.packed(request, [content])),
            capture_output=True,
        )
        return str(read(done.stdout).said["said"])

    assert "expected edgekit 9 on the device" in asked(lambda o: o.update(version="9"))
    assert "names of files without folders" in asked(lambda o: o.update(files=["../x"]))
    assert "names of files without folders" in asked(lambda o: o.update(model="/etc/x"))


# In a comparison


SIZE = Bound("max", "size", 1e9)


@pytest.fixture
def loop(monkeypatch: pytest.MonkeyPatch) -> str:
    """A place whose device end is a process of this machine, and whose times mean nothing."""
    monkeypatch.setitem(
        KINDS, "loop", Kind("loop", "an imitation", times=False, launch=lambda _: Local().launch())
    )
    return "loop"


@pytest.mark.slow
def test_a_comparison_at_two_places(loop: str, artifacts: dict[str, Path], tmp_path: Path) -> None:
    paths = [artifacts["tflite-int8"], artifacts["onnx-int8"]]
    options = Options(limit=60, rounds=1, shard=20, parity=True, work=tmp_path, on=("here", loop))
    report = compare(paths, options)
    rows = {result.name: result for result in report.artifacts}
    assert list(rows) == [
        "tflite-int8", "tflite-int8 on loop", "onnx-int8", "onnx-int8 on loop"
    ]  # fmt: skip
    for name in ("tflite-int8", "onnx-int8"):
        here, there = rows[name], rows[f"{name} on loop"]
        assert not here.places and here.latency_ms
        (place,) = there.places
        assert (place.host, place.shards, place.versions["wire"]) == ("loop", 3, "1")
        assert there.runtime.emulated and not there.latency_ms
        assert there.correct == here.correct and there.fidelity == here.fidelity
        times = {"latency_p50", "load_time", "peak_memory", "latency_ratio", "energy"}
        assert not times & set(there.metrics)
    assert report.parity is not None
    pairs = {(pair.left, pair.right): pair for pair in report.parity.pairs}
    assert len(pairs) == 6
    for runtime in ("XNNPACK", "onnxruntime"):
        same = pairs[runtime, f"{runtime} on loop"]
        assert same.mean_lsb.value == 0 and same.agreement.value == 100
    assert ("XNNPACK on loop", "onnxruntime on loop") in pairs
    # all shards of both places are there, and of no other
    assert compare(paths, options).settings["shards_resumed"] == 18
    assert compare(paths, replace(options, on=(), parity=False)).settings["shards_resumed"] == 9


def test_the_gate_refuses_times_of_a_place(loop: str, artifacts: dict[str, Path]) -> None:
    report = compare([artifacts["tflite-int8"]], Options(limit=30, rounds=0, on=(loop,)))
    for metric in ("latency_p50", "peak_memory", "load_time"):
        with pytest.raises(ReportError, match=f"ran on loop, where {metric} means nothing and is"):
            gate(report, bounds=[Bound("max", metric, 1e9)])
    verdicts = {each.metric: each.verdict for each in gate(report, bounds=[SIZE])}
    assert verdicts["size"] == "PASS"


def test_places_of_a_comparison_that_cannot_be(loop: str, artifacts: dict[str, Path]) -> None:
    with pytest.raises(InvalidOptionError, match="--on says where deployables run, and so does"):
        Options(on=(loop,), cluster="tcp://nowhere:1")
    with pytest.raises(InvalidOptionError, match="tflm runs tflite files, onnx-int8 is onnx"):
        compare([artifacts["onnx-int8"]], Options(limit=10, on=("tflm",)))
    with pytest.raises(InvalidOptionError, match="loop is an imitation: its times and its memory"):
        benchmark(Artifact.load(artifacts["onnx-int8"]), place=places.parse(loop))


def test_the_verbs_say_it_in_one_line(edgekit: Any, artifacts: dict[str, Path]) -> None:
    done = edgekit("benchmark", artifacts["onnx-int8"], "--on", "qemu:arm64")
    assert done.status == 2 and "its times and its memory are not those of a device" in done.error
    done = edgekit("compare", artifacts["onnx-int8"], "--on", "qemu:arm46")
    assert done.status == 2 and "did you mean 'qemu:arm64'" in done.error


def test_what_is_at_hand(tmp_path: Path) -> None:
    here, *others = machines.at_hand()
    assert here.ready and here.place == "here" and here.times
    assert [each.place for each in others] == [name for name in KINDS if name != "here"]
    assert all(each.ready or "install" in each.missing for each in others)


@pytest.mark.parametrize(
    ("governor", "known", "said"),
    [
        ("performance", "performance powersave", "governor: performance; the clock is fixed"),
        ("schedutil", "schedutil", "governor: schedutil; the clock cannot be fixed"),
        ("powersave", "performance powersave", "fix the clock with the governor performance"),
        (None, "", "governor: cannot be read"),
    ],
)
def test_whether_the_clock_can_be_fixed(
    governor: str | None, known: str, said: str, tmp_path: Path
) -> None:
    folder = tmp_path / "sys/devices/system/cpu/cpu0/cpufreq"
    folder.mkdir(parents=True)
    if governor is not None:
        (folder / "scaling_governor").write_text(f"{governor}\n")
        (folder / "scaling_available_governors").write_text(f"{known}\n")
    assert any(said in fact for fact in machines.this_machine(tmp_path))


def test_every_kind_says_what_it_needs() -> None:
    for kind in KINDS.values():
        assert kind.about and (kind.needs or kind.head == "here")
