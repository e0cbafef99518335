from __future__ import annotations

import dataclasses
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, Done, same_figures

from edgekit.base.blocks import blocks
from edgekit.base.errors import ExecutionError, InvalidModelError, InvalidOptionError
from edgekit.evaluation import shards
from edgekit.records import environment
from edgekit.records.artifact import Artifact
from edgekit.records.results import Place, Report, Runtime
from edgekit.records.signature import Preprocessing
from edgekit.runtimes.worker import Job, Worker

HERE = Place("here", "", "a cpu", ("avx2",), {"edgekit": "1"})
RUNTIME = Runtime("litert", "XNNPACK", 1)
RUN = shards.Run(
    "m", {"m.tflite": "0" * 64}, "1" * 64, 10, 4, "tflite", Preprocessing("p", (1.0,), (0.0,)), 1,
    {}, None,
)  # fmt: skip
ANSWERS = np.random.default_rng(0).random((10, 3), np.float32)


def opened(work: shards.Work, run: shards.Run = RUN) -> shards.Shards:
    return work.open(run, lambda place: shards.alike(place, HERE))


def fill(store: shards.Shards, place: Place = HERE) -> None:
    for start in store.todo:
        assert store.put(start, ANSWERS[start : store.run.stop(start)], RUNTIME, place)


@pytest.mark.slow
def test_a_killed_comparison_goes_on(
    tiny: tuple[Path, Path], whole: Report, tmp_path: Path, edgekit: Callable[..., Done]
) -> None:
    artifact, data = tiny
    work, out = tmp_path / "work", tmp_path / "r.json"
    arguments = [artifact, "--data", data, "--rounds", 1, "--shard", 2, "--work", work]
    command = [sys.executable, "-m", "edgekit.compare", *map(str, arguments), "--out", str(out)]
    running = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 60
    while len(list(work.rglob("*.shard"))) < 5 and time.monotonic() < until:
        time.sleep(0.001)
    running.send_signal(signal.SIGKILL)
    running.wait()
    before = {path: path.stat().st_mtime_ns for path in work.rglob("*.shard")}
    assert 5 <= len(before) < 2 * 120
    assert not out.exists()

    done = edgekit("compare", *arguments, "--out", out)
    assert done.status == 0, done.stderr
    assert f"{len(before)} of 120 shards were done" in done.stderr
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert len(list(work.rglob("*.shard"))) == 2 * 120
    found = Report.load(out)
    assert found.settings["shards_resumed"] == len(before)
    same_figures(found, whole)


def test_what_is_done_is_not_done_again(tmp_path: Path) -> None:
    with shards.Work(tmp_path / "w") as work:
        store = opened(work)
        assert store.todo == [0, 4, 8]
        store.put(4, ANSWERS[4:8], RUNTIME, HERE)
        with pytest.raises(ExecutionError, match="2 of 3 shards are missing"):
            store.outputs()
    with shards.Work(tmp_path / "w") as work:
        store = opened(work)
        assert (store.todo, store.resumed, work.resumed) == ([0, 8], 1, 1)
        fill(store)
        np.testing.assert_array_equal(store.outputs(), ANSWERS)
        assert store.places() == (dataclasses.replace(HERE, shards=3),)
        assert not store.put(4, ANSWERS[:4], RUNTIME, HERE)  # the second answer changes nothing
        np.testing.assert_array_equal(store.outputs(), ANSWERS)
        assert store.runtime == RUNTIME
    changed = dataclasses.replace(RUN, options={"kernels": "reference"})
    with shards.Work(tmp_path / "w") as work:
        assert opened(work, changed).resumed == 0


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda content: content[:-1], "sha256"),
        (lambda content: b"", "sha256"),
        (lambda content: content[:90] + bytes([content[90] ^ 1]) + content[91:], "sha256"),
        (lambda content: content[-12:], "sha256"),
    ],
)
def test_a_broken_file_runs_again(
    spoil: Callable[[bytes], bytes],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with shards.Work(tmp_path) as work:
        store = opened(work)
        fill(store)
    path = store.path(4)
    path.write_bytes(spoil(path.read_bytes()))
    with shards.Work(tmp_path) as work:
        store = opened(work)
        assert store.todo == [4]
        assert message in store.broken[0] and "0000000004.shard of m is broken" in store.broken[0]
        fill(store)
        np.testing.assert_array_equal(store.outputs(), ANSWERS)


def test_a_whole_file_that_does_not_belong_runs_again(tmp_path: Path) -> None:
    with shards.Work(tmp_path) as work:
        store = opened(work)
        fill(store)
        files = [store.path(start) for start in (0, 4, 8)]
        nan = np.full((4, 3), np.nan, np.float32)
        with pytest.raises(ExecutionError, match="finite"):
            store.put(0, nan, RUNTIME, HERE)
    files[0].write_bytes(files[1].read_bytes())  # other images under this name
    with shards.Work(tmp_path) as work:
        store = opened(work)
        assert store.todo == [0] and "other images" in store.broken[0]
        other = dataclasses.replace(HERE, machine_class="another cpu")
        fill(store, other)
    with shards.Work(tmp_path) as work:
        store = opened(work)
        assert store.todo == [0] and "another kind of machine" in store.broken[0]


def test_answers_of_two_shapes(tmp_path: Path) -> None:
    with shards.Work(tmp_path) as work:
        store = opened(work)
        store.put(0, ANSWERS[:4], RUNTIME, HERE)
        with pytest.raises(InvalidModelError, match=r"expected outputs \[3\] as before, got \[2\]"):
            store.put(4, ANSWERS[4:8, :2], RUNTIME, HERE)


def test_a_folder_is_one_comparison_at_a_time(tmp_path: Path) -> None:
    with shards.Work(tmp_path) as work, shards.Work(tmp_path) as other:
        opened(work)
        with pytest.raises(InvalidOptionError, match="in use by another comparison"):
            opened(other)
    (tmp_path / "file").touch()
    with pytest.raises(InvalidOptionError, match="is a file"):
        shards.Work(tmp_path / "file")


def test_the_cache_is_for_runs_that_were_cut_short() -> None:
    with pytest.raises(KeyboardInterrupt), shards.Work(None) as work:
        store = opened(work)
        store.put(0, ANSWERS[:4], RUNTIME, HERE)
        raise KeyboardInterrupt
    with shards.Work(None) as work, shards.Work(None) as other:
        store = opened(work)
        assert store.resumed == 1
        beside = opened(other)  # the folder is in use: this one is on its own
        assert beside.resumed == 0 and beside.folder != store.folder
    assert not store.folder.exists() and not beside.folder.exists()
    with pytest.raises(KeyboardInterrupt), shards.Work(None) as work:
        store = opened(work)
        raise KeyboardInterrupt  # nothing to come back to
    assert not store.folder.exists()


def test_two_processes_answer_as_one(tiny: tuple[Path, Path], tmp_path: Path) -> None:
    images = np.load(tiny[1])["x"]
    job = Job.of(Artifact.load(tiny[0]), threads=1)
    run = shards.Run.of(job, data="0", count=len(images), shard=7)
    machine = environment.describe()
    found, counts = [], []
    for processes in (1, 2):
        with shards.Work(tmp_path / str(processes)) as work, Worker(job) as worker:
            counts.append(0)

            def advance(count: int) -> None:
                counts[-1] += count

            store = work.open(run, shards.local(machine))
            place = shards.this_place(machine)
            found.append(
                shards.evaluate(
                    store, worker, images, processes=processes, place=place, advance=advance
                )
            )
            assert store.places() == (dataclasses.replace(place, shards=store.total),)
    np.testing.assert_array_equal(found[0], found[1])
    with Worker(job) as worker:
        np.testing.assert_array_equal(found[0], worker.outputs(images))
    assert counts == [240, 240]


def test_blocks_of_mapped_and_changed_arrays(tmp_path: Path) -> None:
    values = np.arange(5000, dtype=np.float32).reshape(2500, 2)
    np.save(tmp_path / "a.npy", values)
    mapped = np.load(tmp_path / "a.npy", mmap_mode="r")
    private = np.load(tmp_path / "a.npy", mmap_mode="c")
    private += 1
    total = sum(float((b - a).sum()) for a, b in blocks(mapped, private))
    assert total == 5000
    np.testing.assert_array_equal(private, values + 1)
