"""Training on several replicas: workers on loopback, one CPU divided, TF_CONFIG."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, Done

from edgekit.base.errors import InvalidOptionError
from edgekit.training.replicas import check_cluster, replicas

Process = subprocess.Popen[str]


def start(folder: Path, cluster: str = "", **options: object) -> Process:
    """``tests/worker.py`` in a process of its own."""
    return subprocess.Popen(
        [sys.executable, str(ROOT / "tests" / "worker.py"), str(folder), json.dumps(options)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **({"TF_CONFIG": cluster} if cluster else {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def pair(folder: Path, **options: object) -> list[Process]:
    """Two workers on loopback."""
    with socket.socket() as first, socket.socket() as second:
        for each in (first, second):
            each.bind(("127.0.0.1", 0))
        addresses = [f"127.0.0.1:{each.getsockname()[1]}" for each in (first, second)]
    return [
        start(
            folder,
            json.dumps(
                {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
            ),
            strategy="multiworker",
            **options,
        )
        for index in range(2)
    ]


def ended(process: Process) -> dict[str, Any]:
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    found: dict[str, Any] = json.loads(out.splitlines()[-1])
    return found


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One process whose two towers take the parts that two workers take."""
    return ended(start(tmp_path_factory.mktemp("alone") / "run", towers=2))


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """Two workers, undisturbed."""
    folder = tmp_path_factory.mktemp("together") / "run"
    return folder, [ended(process) for process in pair(folder)]


@pytest.mark.slow
def test_two_workers_hold_the_same_weights_and_only_the_chief_writes(
    together: tuple[Path, list[dict[str, Any]]],
) -> None:
    folder, (chief, other) = together
    assert (chief["chief"], other["chief"]) == (True, False)
    for what in ("weights", "averages", "losses"):
        assert chief[what] == other[what]
    names = {path.name.split(".")[0] for path in folder.iterdir()}
    assert names == {"checkpoint", "ckpt-3", "ckpt-4", "log", "run"}


@pytest.mark.slow
def test_two_workers_lose_as_one_with_the_whole_batch(
    alone: dict[str, Any], together: tuple[Path, list[dict[str, Any]]]
) -> None:
    losses = together[1][0]["losses"]
    assert losses == pytest.approx(alone["losses"], rel=1e-3)
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.slow
def test_a_killed_worker_ends_the_other_and_both_go_on_from_the_checkpoint(
    tmp_path: Path, together: tuple[Path, list[dict[str, Any]]]
) -> None:
    folder = tmp_path / "run"
    chief, other = pair(folder, epochs=100_000)
    try:
        deadline = time.monotonic() + 120
        while not (folder / "log.jsonl").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        os.kill(other.pid, signal.SIGKILL)
        other.communicate()
        _, said = chief.communicate(timeout=120)
        assert chief.returncode != 0 and "a worker was lost" in said
    finally:
        chief.kill()
    (folder / "run.json").write_text((together[0] / "run.json").read_text())
    done = (folder / "log.jsonl").read_text().count("\n")
    more = pair(folder, epochs=4, resume=True)
    found = [ended(process) for process in more]
    assert found[0]["weights"] == found[1]["weights"]
    assert len(found[0]["losses"]) == max(4, done)


@pytest.mark.slow
def test_replicas_of_one_cpu_lose_as_its_towers(tmp_path: Path, alone: dict[str, Any]) -> None:
    found = ended(start(tmp_path / "run", strategy="mirrored", replicas=2))
    assert found["losses"] == pytest.approx(alone["losses"], rel=1e-3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "needs the environment variable TF_CONFIG"),
        ("{", "expected JSON"),
        ("[]", "expected JSON"),
        ('{"cluster": {"worker": ["a:1"]}}', "expected JSON"),
        ('{"cluster": {"ps": ["a:1"]}, "task": {"type": "ps", "index": 0}}', "chief and worker"),
        ('{"cluster": {"worker": ["a"]}, "task": {"type": "worker", "index": 0}}', "HOST:PORT"),
        ('{"cluster": {"worker": [7]}, "task": {"type": "worker", "index": 0}}', "HOST:PORT"),
        (
            '{"cluster": {"worker": ["a:1", "a:1"]}, "task": {"type": "worker", "index": 0}}',
            "each once",
        ),
        ('{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 1}}', "from 0 to 0"),
        ('{"cluster": {"worker": ["a:1"]}, "task": {"type": "chief", "index": 0}}', "not in the"),
    ],
)
def test_errors_in_tf_config_say_what_is_wrong(text: str | None, message: str) -> None:
    with pytest.raises(InvalidOptionError, match=message):
        check_cluster(text)


def test_the_chief_is_the_first_of_all() -> None:
    cluster = {"chief": ["a:1"], "worker": ["b:1", "c:1"]}
    tasks = [("chief", 0), ("worker", 0), ("worker", 1)]
    texts = [json.dumps({"cluster": cluster, "task": {"type": t, "index": i}}) for t, i in tasks]
    assert [check_cluster(text) for text in texts] == [0, 1, 2]


def test_replicas_are_for_mirrored_only() -> None:
    with pytest.raises(InvalidOptionError, match="for --strategy mirrored"):
        replicas("none", 2)


def test_tf_config_is_refused_in_one_line(tmp_path: Path, edgekit: Callable[..., Done]) -> None:
    done = edgekit("train", "--out", tmp_path / "m", "--strategy", "multiworker", TF_CONFIG="{")
    assert done.status == 2 and "TF_CONFIG" in done.error
    assert not list(tmp_path.iterdir())
