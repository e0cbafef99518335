from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Done

from edgekit.base.errors import ReportError
from edgekit.evaluation.gpu_suite import Record, _asked, _ratios
from edgekit.records import environment


@pytest.fixture(scope="module")
def tried(
    small: Path, tmp_path_factory: pytest.TempPathFactory, edgekit: Callable[..., Done]
) -> tuple[Done, Path]:
    """The suite on the CPU with a small model, and its record."""
    out = tmp_path_factory.mktemp("suite") / "record.json"
    arguments = ("--preprocessing", "unit", "--device", "cpu", "--rounds", "2", "--record", out)
    done = edgekit("benchmark", "--suite", "gpu", small / "small.keras", *arguments)
    assert done.status == 0, done.stderr
    return done, out


@pytest.mark.slow
def test_a_record_of_the_cpu_says_so(tried: tuple[Done, Path]) -> None:
    done, out = tried
    found = Record.load(out)
    assert found.device.kind == "cpu"
    assert found.device.name == environment.describe().cpu
    assert {case.runtime.device for case in found.cases} == {"cpu"}
    assert "a trial run, no GPU was measured" in " ".join(done.stderr.split())
    assert "left out: NHWC" in done.stderr
    assert found.left_out[0].startswith("NHWC: ")


@pytest.mark.slow
def test_cases_samples_and_ratios(tried: tuple[Done, Path]) -> None:
    done, out = tried
    found = Record.load(out)
    cases = [(case.batch, case.precision, case.layout) for case in found.cases]
    assert cases == [(b, p, "NCHW") for b in (1, 8, 32) for p in ("float32", "float16")]
    for case in found.cases:
        assert len(case.latency_ms) == 40 and min(case.latency_ms) > 0
        assert case.rounds == 2
    assert [(r.of, r.batch, r.at) for r in found.ratios] == [
        ("float16 / float32", batch, "NCHW") for batch in (1, 8, 32)
    ]
    for ratio in found.ratios:
        assert ratio.value.low is not None and ratio.value.high is not None
        assert ratio.value.low <= ratio.value.value <= ratio.value.high
    assert set(found.models) == {"float32", "float16"}
    assert done.document == json.loads(out.read_text())


@pytest.mark.slow
def test_a_cpu_is_never_shown_as_a_gpu(tried: tuple[Done, Path], tmp_path: Path) -> None:
    document = json.loads(tried[1].read_text())
    document["device"]["kind"] = "gpu"
    path = tmp_path / "x.json"
    path.write_text(json.dumps(document))
    with pytest.raises(ReportError, match="the record is of a gpu, its cases ran on cpu"):
        Record.load(path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 2}, "schema_version 2"),
        ({"suite": "cpu"}, "expected one of"),
        ({"extra": 1}, "unknown key"),
    ],
)
def test_another_format_is_refused(
    change: dict[str, Any], message: str, tried: tuple[Done, Path], tmp_path: Path
) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps(json.loads(tried[1].read_text()) | change))
    with pytest.raises(ReportError, match=message):
        Record.load(path)


def test_what_cuda_is_asked_for() -> None:
    assert _asked("cuda", "float32", "NHWC") == {"prefer_nhwc": "1", "use_tf32": "0"}
    assert _asked("cuda", "float16", "NCHW") == {"prefer_nhwc": "0"}
    assert _asked("cpu", "float32", "NCHW") == {}


@pytest.mark.slow
def test_ratios_of_both_layouts(tried: tuple[Done, Path]) -> None:
    """As they would be with a GPU: the cases of one batch, and the same again as NHWC."""
    from dataclasses import replace

    cases = Record.load(tried[1]).cases[:2]
    found = _ratios([*cases, *(replace(case, layout="NHWC") for case in cases)])
    assert [(r.of, r.at) for r in found] == [
        ("float16 / float32", "NCHW"),
        ("NHWC / NCHW", "float32"),
        ("float16 / float32", "NHWC"),
        ("NHWC / NCHW", "float16"),
    ]
    assert found[1].value.value == found[3].value.value == 1


@pytest.mark.skipif(environment.gpu() is not None, reason="a GPU is here")
def test_without_a_gpu_it_refuses(edgekit: Callable[..., Done]) -> None:
    done = edgekit("benchmark", "--suite", "gpu")
    assert done.status == 2
    assert "no NVIDIA driver or GPU" in done.error and "--device cpu" in done.error
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--suite", "gpu", "--batch", "4"], "takes no --batch"),
        (["--device", "cpu"], "--device is for --suite gpu"),
        ([], "expected an ARTIFACT"),
        (["--suite", "all"], "got 'all'"),
        (["--suite", "gpu", "--device", "tpu"], "got 'tpu'"),
        (["--suite", "gpu", "--device", "cpu", "none.keras"], "none.keras not found"),
    ],
)
def test_bad_options(arguments: list[str], message: str, edgekit: Callable[..., Done]) -> None:
    done = edgekit("benchmark", *arguments)
    assert done.status == 2
    assert message in done.error


@pytest.mark.slow
def test_nothing_is_overwritten(
    tried: tuple[Done, Path], small: Path, edgekit: Callable[..., Done]
) -> None:
    before = tried[1].read_bytes()
    arguments = ("--preprocessing", "unit", "--device", "cpu", "--record", tried[1])
    done = edgekit("benchmark", "--suite", "gpu", small / "small.keras", *arguments)
    assert "exists already" in done.error
    assert tried[1].read_bytes() == before
    without = edgekit("benchmark", "--suite", "gpu", small / "small.keras", "--device", "cpu")
    assert "--preprocessing" in without.error
