from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, same_figures

from edgekit.base.errors import (
    ExecutionError,
    InvalidDataError,
    InvalidOptionError,
    MissingDependencyError,
)
from edgekit.compare import Options, compare
from edgekit.evaluation import fleet, shards
from edgekit.evaluation.fleet import Fleet
from edgekit.records.artifact import Artifact
from edgekit.records.results import Report
from edgekit.runtimes.worker import Job

Start = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture(scope="module")
def scheduler(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    host, port = address[6:].split(":")
    with started("scheduler", "--host", host, "--port", port, "--no-dashboard"):
        yield address


@contextlib.contextmanager
def started(*words: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process of the cluster, in a group of its own, gone when the block ends."""
    process = subprocess.Popen(
        [sys.executable, "-m", "dask", *words],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.fixture
def worker(scheduler: str, tmp_path: Path) -> Iterator[Start]:
    """Start a worker with a resource; all that were started end with the test."""
    with contextlib.ExitStack() as stack:

        def start(resource: str, *, nanny: bool = False) -> subprocess.Popen[bytes]:
            words = ["worker", scheduler, "--nthreads", "1", "--no-dashboard", "--resources"]
            words += [f"{resource}=1", "--local-directory", str(tmp_path / "dask")]
            return stack.enter_context(started(*words, *([] if nanny else ["--no-nanny"])))

        yield start


def until(condition: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def count(scheduler: str, wanted: int) -> None:
    """Wait for the workers."""
    with Fleet(scheduler) as found:
        until(lambda: len(found._workers()) == wanted)


@pytest.mark.slow
def test_a_worker_that_is_killed_loses_nothing(
    scheduler: str, worker: Start, tiny: tuple[Path, Path], whole: Report, tmp_path: Path
) -> None:
    worker("device:pi5", nanny=True)
    victim = worker("device:pi5")
    count(scheduler, 2)
    work = tmp_path / "work"
    with ThreadPoolExecutor() as pool:
        running = pool.submit(
            compare,
            [tiny[0]],
            Options(
                dataset=str(tiny[1]),
                rounds=1,
                shard=2,
                work=work,
                cluster=scheduler,
                resources={"tiny": "device:pi5"},
            ),
        )
        until(lambda: len(list(work.rglob("*.shard"))) >= 5 or running.done())
        victim.send_signal(signal.SIGSTOP)  # with shards in its hands
        time.sleep(0.5)
        before = len(list(work.rglob("*.shard")))
        victim.kill()
        report = running.result(timeout=100)
    assert 5 <= before < 120
    same_figures(report, whole)
    (row,) = report.artifacts
    assert sum(place.shards for place in row.places) == 120
    assert {(place.host, place.device) for place in row.places} == {
        (socket.gethostname(), "device:pi5")
    }
    assert row.places[0].versions == report.environment.versions
    assert not {"latency_p50", "latency_ratio", "peak_memory", "load_time"} & set(row.metrics)
    assert "120 on" in row.runtime.notes[-1] and "left out" in row.runtime.notes[-1]
    assert "latency_p50" in report.reference.metrics and not report.reference.places
    assert Report.load(written(report, tmp_path)) == report


def written(report: Report, folder: Path) -> Path:
    path = folder / "report.json"
    path.write_text(report.dumps())
    return path


def stores(
    work: shards.Work, tiny: tuple[Path, Path], found: Fleet, devices: dict[str, str], size: int
) -> tuple[list[shards.Shards], list[Job]]:
    """The tiny model under several names, each for a resource."""
    artifact = Artifact.load(tiny[0])
    jobs, made = [], []
    for name, device in devices.items():
        manifest = artifact.manifest
        jobs.append(Job(name, artifact.model_path, "tflite", manifest.preprocessing, 1, {}))
        run = shards.Run.of(jobs[-1], data="d", count=240, shard=size, device=device)
        made.append(work.open(run, found.accepts(device)))
    return made, jobs


def test_artifacts_go_where_their_resource_is(
    scheduler: str, worker: Start, tiny: tuple[Path, Path], tmp_path: Path
) -> None:
    for device in ("device:a", "device:b"):
        worker(device)
    count(scheduler, 2)
    images = np.load(tiny[1])["x"]
    devices = {"one": "device:a", "two": "device:b", "three": ""}
    told: list[int] = []
    with shards.Work(tmp_path / "w") as work, Fleet(scheduler) as found:
        found.expect(list(devices.values()))
        made, jobs = stores(work, tiny, found, devices, 20)
        found.evaluate(made, jobs, images, advance=told.append)
        for store, (name, device) in zip(made, devices.items(), strict=True):
            assert sum(place.shards for place in store.places()) == 12
            if device:
                assert [place.device for place in store.places()] == [device], name
            np.testing.assert_array_equal(store.outputs(), made[0].outputs())
        assert sum(told) == 3 * 240
        with pytest.raises(ExecutionError, match="2 workers offer device:a, device:b; start one"):
            found.expect(["device:c"])
        wrong, jobs = stores(work, tiny, found, {"wrong": "device:a"}, 30)
        with pytest.raises(InvalidDataError, match=r"expected images \[12, 12, 3\]"):
            found.evaluate(wrong, jobs, images[:, :8], advance=told.append)


@pytest.mark.slow
def test_another_reference_stays_here(
    scheduler: str, worker: Start, tiny: tuple[Path, Path], tmp_path: Path
) -> None:
    worker("device:a")
    count(scheduler, 1)
    artifact, images = tiny
    made = compare(
        [artifact],
        Options(
            dataset=str(images),
            rounds=1,
            cluster=scheduler,
            reference="emulated:float16",
            record=tmp_path / "reference.rec",
        ),
    )
    played = compare(
        [artifact],
        Options(
            dataset=str(images), rounds=1, cluster=scheduler, reference=tmp_path / "reference.rec"
        ),
    )
    for report in (made, played):
        assert report.reference.runtime.emulated and not report.reference.places
        assert [place.device for place in report.artifacts[0].places] == ["device:a"]
        assert report.conditions is None  # nothing was timed here
    assert played.artifacts[0].metrics == made.artifacts[0].metrics
    with pytest.raises(InvalidOptionError, match="is evaluated or replayed here"):
        compare(
            [artifact],
            Options(
                dataset=str(images),
                cluster=scheduler,
                reference=tmp_path / "reference.rec",
                resources={"emulated:float16 (recorded)": "any"},
            ),
        )


@pytest.mark.slow
def test_without_a_worker_left_the_rest_waits(
    scheduler: str,
    worker: Start,
    tiny: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    only = worker("device:x")
    count(scheduler, 1)
    images = np.load(tiny[1])["x"]
    monkeypatch.setattr(fleet, "GRACE", 2.0)
    monkeypatch.setattr(fleet, "FETCH", 1.0)
    answered: list[int] = []

    def advance(images: int) -> None:
        answered.append(images)
        if sum(answered) >= 20:
            only.kill()

    with Fleet(scheduler) as found:
        found.expect(["device:x"])
        with shards.Work(tmp_path / "w") as work:
            made, jobs = stores(work, tiny, found, {"one": "device:x"}, 2)
            message = "no worker with the resource 'device:x' is left; no worker is connected"
            with pytest.raises(ExecutionError, match=message):
                found.evaluate(made, jobs, images, advance=advance)
            done = made[0].total - len(list(tmp_path.glob("w/*/*.shard")))
        worker("device:x")
        found.expect(["device:x"])
        with shards.Work(tmp_path / "w") as work:
            made, jobs = stores(work, tiny, found, {"one": "device:x"}, 2)
            assert made[0].resumed == 120 - done >= 10
            assert len(made[0].todo) == done > 0
            found.evaluate(made, jobs, images, advance=lambda images: None)
            assert made[0].outputs().shape == (240, 5)
            assert sum(place.shards for place in made[0].places()) == 120


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--resources", "tiny=device:a"], "pass --cluster too"),
        (["--cluster", "here", "--parity"], "leave out --cluster"),
        (["--cluster", "10.0.0.2"], "tcp://HOST:PORT, got '10.0.0.2'"),
        (["--cluster", "tcp://a:1", "--resources", "other=any"], "names 'other'"),
        (["--cluster", "tcp://a:1", "--resources", "tiny"], "expected ARTIFACT=RESOURCE"),
        (["--cluster", "tcp://a:1", *["--resources", "tiny=any"] * 2], "names an artifact twice"),
    ],
)
def test_options_that_do_not_fit(
    options: list[str],
    message: str,
    tiny: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from edgekit.compare import main

    out = tmp_path / "r.json"
    assert main([str(tiny[0]), "--data", str(tiny[1]), "--out", str(out), *options]) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_no_scheduler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet, "CONNECT", 0.5)
    with pytest.raises(InvalidOptionError, match="start one with `dask scheduler`"):
        Fleet("tcp://127.0.0.1:9")
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(MissingDependencyError, match=r"edgekit\[fleet\]"):
        Fleet("tcp://127.0.0.1:9")


def test_which_model_goes_where() -> None:
    names = ["keras-float32", "plain", "board", "near"]
    profiles = {"plain": "generic", "board": "arm64", "near": "generic"}
    found = fleet.devices(names, profiles, {"near": "local"}, cluster="tcp://a:1")
    assert found == {"plain": "", "board": "device:arm64"}
    found = fleet.devices(
        names, profiles, {"keras-float32": "device:cpu", "board": "any"}, cluster="tcp://a:1"
    )
    assert found == {"keras-float32": "device:cpu", "plain": "", "board": "", "near": ""}
    assert fleet.devices(names, profiles, {}, cluster=None) == {}
