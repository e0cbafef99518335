from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st

from edgekit.base.errors import InvalidInputError, InvalidOptionError
from edgekit.gating.bounds import (
    DEFAULT,
    HIGHER_IS_BETTER,
    KINDS,
    LOWER_IS_BETTER,
    METRICS,
    PARTS,
    TIMES,
    Bound,
    Config,
    Kind,
    effective,
    load,
    once,
    parse,
)

VALUES = st.floats(min_value=0, allow_nan=False, allow_infinity=False)
NAMES = st.none() | st.text(min_size=1).filter(lambda name: not name.startswith("sqnr"))


def allowed(kind: Kind, metric: str) -> bool:
    higher = metric in HIGHER_IS_BETTER
    if kind in ("max-drop", "max-rise") and metric in TIMES:
        return False
    return {"min": higher, "max": not higher, "max-drop": True, "max-rise": not higher}[kind]


PAIRS = [(kind, metric) for kind in KINDS for metric in METRICS]


@given(st.sampled_from([p for p in PAIRS if allowed(*p)]), VALUES, st.booleans(), NAMES)
def test_what_is_written_is_read_back(
    pair: tuple[Kind, str], value: float, percent: bool, artifact: str | None
) -> None:
    bound = Bound(*pair, value, percent and pair[0].startswith("max-"), artifact)
    kind, _, text = str(bound).partition(" ")
    assert kind in KINDS
    assert parse(bound.kind, text) == bound


@given(st.sampled_from(KINDS), st.text())
def test_any_text_is_a_bound_or_one_error(kind: Kind, text: str) -> None:
    try:
        bound = parse(kind, text)
    except InvalidOptionError as exc:
        assert str(exc)
    else:
        assert bound.metric in METRICS or bound.metric.startswith(tuple(PARTS))
        assert math.isfinite(bound.value)


@pytest.mark.parametrize(("kind", "metric"), PAIRS)
def test_a_direction_is_known_of_every_metric(kind: Kind, metric: str) -> None:
    if allowed(kind, metric):
        bound = Bound(kind, metric, 1.0)
        assert bound.of_baseline == (kind not in ("min", "max"))
        assert bound.kind == ("max-drop" if metric in HIGHER_IS_BETTER else "max-rise") or (
            not bound.of_baseline
        )
    else:
        with pytest.raises(InvalidOptionError, match=f"{kind} {metric}: .*use|{metric}: times"):
            Bound(kind, metric, 1.0)


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        ("min", "top1", "expected [ARTIFACT:]METRIC=VALUE"),
        ("min", ":top1=1", "expected [ARTIFACT:]METRIC=VALUE"),
        ("min", "top1=", 'a number and % as "1 %"'),
        ("min", "top1=nan", 'a number and % as "1 %"'),
        ("min", "top1=1e999", "finite number"),
        ("min", "top1=1_0", "got '1_0'"),
        ("min", "top1=1 %", "1 % is of a baseline's value"),
        ("max-drop", "top1=-1", "finite number >= 0"),
        ("max-drop", "speed=1", "unknown metric 'speed' in max-drop; expected one of top1, "),
        ("max-drop", "top1=1 %%", "got '1 %%'"),
    ],
)
def test_bad_bounds(kind: Kind, text: str, message: str) -> None:
    with pytest.raises(InvalidOptionError, match=re.escape(message)):
        parse(kind, text)


def test_an_output_of_several_can_be_bounded() -> None:
    bound = parse("min", "sqnr:price=30")
    assert (bound.artifact, bound.metric, bound.value) == (None, "sqnr:price", 30)
    bound = parse("max-drop", "mine-int8:sqnr:head:0=3")
    assert (bound.artifact, bound.metric, bound.kind) == ("mine-int8", "sqnr:head:0", "max-drop")
    bound = parse("max-drop", "mine-int8:sqnr_centred:head:0=3")
    assert (bound.artifact, bound.metric) == ("mine-int8", "sqnr_centred:head:0")
    assert parse("max-drop", "sqnr=3").metric == "sqnr"
    assert parse("min", "a:sqnr:energy=30").metric == "sqnr:energy"
    with pytest.raises(InvalidOptionError, match="higher sqnr:price is better; use min"):
        parse("max", "sqnr:price=30")
    with pytest.raises(InvalidOptionError, match="unknown metric 'sqnr:'"):
        parse("min", "sqnr:=30")


def test_a_class_and_a_function_can_be_bounded() -> None:
    bound = parse("min", "iou:t-shirt/top, long=60")
    assert (bound.artifact, bound.metric, bound.value) == (None, "iou:t-shirt/top, long", 60)
    bound = parse("max-drop", "mine-int8:map50:red car: left=2")
    assert (bound.artifact, bound.metric) == ("mine-int8", "map50:red car: left")
    # What stands behind the first start of such a name is a name, whatever it holds.
    assert parse("min", "iou:sqnr:x=1").metric == "iou:sqnr:x"
    assert parse("min", "a:sqnr:map50:x=1").metric == "sqnr:map50:x"
    assert parse("min", "map50=90").metric == "map50"
    assert parse("min", "iou: =1").metric == "iou: "
    for text in ("iou=60", "iou:=60", "metric=1", "metric:=1", "map50:=1", "iou.a=1"):
        with pytest.raises(InvalidOptionError, match="unknown metric"):
            parse("min", text)
    for text, near in (("mious", "miou"), ("iou", "miou"), ("mAP@0.5", "map50"), ("AP", "map")):
        with pytest.raises(InvalidOptionError, match=f"did you mean '{near}'"):
            parse("min", f"{text}=60")
    with pytest.raises(InvalidOptionError, match="higher iou:a is better; use min"):
        parse("max", "iou:a=60")


def test_a_metric_of_the_user_is_bounded_from_either_side() -> None:
    for kind in KINDS:
        bound = parse(kind, "mine:metric:recall at 5=1")
        expected = (kind, "mine", "metric:recall at 5")
        assert (bound.kind, bound.artifact, bound.metric) == expected


def test_bounds_of_classes_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "pyproject.toml"
    path.write_text(
        '[tool.edgekit.gate]\nmin."iou:t-shirt top" = 60\nmax-drop."map50:bag" = 2\n'
        '[tool.edgekit.gate.artifact."m:int8"]\nmin."metric:x" = 1\n'
    )
    assert list(map(str, load(path).bounds)) == [
        "min iou:t-shirt top=60",
        "max-drop map50:bag=2",
        "min m:int8:metric:x=1",
    ]
    path.write_text("[tool.edgekit.gate]\nmin.iou.shirt = 60\n")
    with pytest.raises(InvalidOptionError, match='got a table; .* min."iou:shirt" = 60'):
        load(path)


def test_names_may_hold_what_the_grammar_uses() -> None:
    assert parse("min", "a:b=c:top1=1").artifact == "a:b=c"


def test_twice_is_an_error_also_under_two_names() -> None:
    with pytest.raises(InvalidOptionError, match="max-rise size is given twice"):
        once([parse("max-rise", "size=1"), parse("max-drop", "size=2")])
    assert len(once([parse("max-rise", "size=1"), parse("max-rise", "a:size=2")])) == 2


@given(
    st.permutations([parse("min", "a:top1=1"), parse("min", "b:top1=2"), parse("min", "top1=3")])
)
def test_an_artifacts_own_bound_wins_within_a_source(bounds: list[Bound]) -> None:
    found = once(bounds)
    assert [[b.value for b in effective(found, name)] for name in "abc"] == [[1], [2], [3]]
    later = (*found, parse("min", "top1=9"))
    assert [[b.value for b in effective(later, name)] for name in "abc"] == [[9], [9], [9]]


def test_the_default_goes_where_its_metric_is_asked_of() -> None:
    assert effective([DEFAULT, parse("min", "sqnr=1")], "a") == (DEFAULT, parse("min", "sqnr=1"))
    assert effective([DEFAULT, parse("min", "top1=1")], "a") == (parse("min", "top1=1"),)
    assert effective([DEFAULT, parse("min", "b:top1=1")], "a") == (DEFAULT,)


TABLE = """
[tool.edgekit.gate]
report = "build/report.json"
baseline = "baseline.json"
min.top1 = 93.0
max-drop.top1 = 0.5
max-rise.size = "1 %"

[tool.edgekit.gate.artifact."mine-tflite-int8"]
max-drop.top1 = 1
"""


def test_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pyproject.toml").write_text(TABLE)
    monkeypatch.chdir(tmp_path)
    source = "pyproject.toml"
    assert load() == Config(
        Path(source),
        Path("build/report.json"),
        Path("baseline.json"),
        (
            Bound("min", "top1", 93, source=source),
            Bound("max-drop", "top1", 0.5, source=source),
            Bound("max-rise", "size", 1, percent=True, source=source),
            Bound("max-drop", "top1", 1, artifact="mine-tflite-int8", source=source),
        ),
    )
    given_path = tmp_path / "pyproject.toml"
    assert load(given_path).report == tmp_path / "build" / "report.json"


def test_dead_channels_can_be_let_pass(tmp_path: Path) -> None:
    path = tmp_path / "pyproject.toml"
    table = "[tool.edgekit.gate]\n{}\n[tool.edgekit.gate.artifact.a]\n{}\n"
    for everywhere, one, expected in (
        ("", "", set()),
        ("allow-dead = false", "allow-dead = true", {"a"}),
        ("allow-dead = true", "", {None}),
    ):
        path.write_text(table.format(everywhere, one))
        assert load(path).allow_dead == expected


def test_the_table_of_the_page(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "reference" / "gate.md").read_text(encoding="utf-8")
    (table,) = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    path = tmp_path / "pyproject.toml"
    path.write_text(table)
    assert list(map(str, load(path).bounds)) == [
        "min agreement=99",
        "max-drop top1=0.5",
        "max-rise size=1 %",
        "max-drop mine-tflite-int8:top1=1",
    ]
    words = " ".join(text.split())
    assert f"Higher is better for `{' '.join(HIGHER_IS_BETTER)}`" in words
    assert f"lower for `{' '.join(LOWER_IS_BETTER)}`" in words


def test_every_metric_is_on_the_page_of_metrics() -> None:
    text = (ROOT / "docs" / "reference" / "metrics.md").read_text(encoding="utf-8")
    cells = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    named = [name for cell in cells for name in re.findall("`([^`]*)`", cell)]
    parts = [f"{start}{part}" for start, part in PARTS.items()]
    assert len(set(named)) == len(named)
    assert {*METRICS, *parts, "images_needed"} <= set(named)


def test_the_nearest_table_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pyproject.toml").write_text(TABLE)
    nearer = tmp_path / "one"
    (nearer / "two").mkdir(parents=True)
    (nearer / "pyproject.toml").write_text("[tool.edgekit.gate]\nmin.top1 = 1\n")
    (nearer / "two" / "pyproject.toml").write_text("[project]\nname = 'x'\n")
    monkeypatch.chdir(nearer / "two")
    assert [b.value for b in load().bounds] == [1]
    assert load().path == Path("../pyproject.toml")
    (nearer / "two" / "pyproject.toml").write_text("[project\n")
    with pytest.raises(InvalidInputError, match="not valid TOML"):
        load()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("min.top1 = 'a'", 'min top1: expected a number, or a number and % as "1 %"'),
        ("min.top1 = true", "got True"),
        ("allow-dead = 1", "expected allow-dead of tool.edgekit.gate to be true or false, got 1"),
        ("min.top1 = nan", "finite number"),
        (f"min.top1 = {'9' * 400}", "finite number"),
        ("min.top1 = 2026-01-01", "expected a number"),
        ("min.speed = 1", "unknown metric 'speed' in min; expected one of top1, "),
        ("min = 1", "expected tool.edgekit.gate.min to be a table as min.top1 = 0.5"),
        ("max_drop.top1 = 1", "unknown key 'max_drop' in tool.edgekit.gate; expected one of repo"),
        ("report = 1", "expected report to be a path"),
        ("report = ''", "expected report to be a path"),
        ("artifact.a = 1", "expected tool.edgekit.gate.artifact.a to be a table"),
        ("artifact.a.report = 'x'", "unknown key 'report' in tool.edgekit.gate.artifact.'a'"),
        ("artifact.a.max-drop.kl = '-1 %'", "artifact 'a': max-drop kl: expected a finite number"),
        ("max-rise.size = 1\nmax-drop.size = 1", "given twice"),
    ],
)
def test_bad_tables(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "pyproject.toml"
    path.write_text(f"[tool.edgekit.gate]\n{text}\n")
    with pytest.raises(InvalidOptionError, match=re.escape(message)) as caught:
        load(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"tool = 1", "expected tables"),
        (b"[tool.edgekit]\ngate = 1", "expected tool.edgekit.gate to be a table"),
        (b"[tool.other]", "has no table"),
        (b"\xff", "not valid TOML"),
        (b"x = " + b"9" * 5000, "not valid TOML"),
    ],
)
def test_files_without_a_good_table(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "pyproject.toml"
    path.write_bytes(content)
    with pytest.raises((InvalidOptionError, InvalidInputError), match=message):
        load(path)
    with pytest.raises(InvalidInputError, match="not found"):
        load(tmp_path / "other.toml")
    with pytest.raises(InvalidInputError, match="is a folder"):
        load(tmp_path)
