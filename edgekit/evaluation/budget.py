"""An accuracy budget for int8: the cheapest mixture of int8 and float tensors that holds it.

The budget bounds a metric of ``compare``. The validation set is divided into two halves, whose
samples alternate. On the first half the float32 file and the plain int8 file are measured against
the float model. If plain int8 holds the budget, nothing more stays float. Else tensors are ranked:
the noise that rounding a tensor adds to what is computed from it, over what its operators cost more
in float: the time that they take longer, or the bytes by which their weights grow, with the
conversions between int8 and float. The shortest part of the ranking that holds is found by doubling
and bisection, and tensors that turn out to be needless become int8 again. A candidate holds if it
does so on the samples of the search, and if what is expected of other samples
(:meth:`Budget.expected`) holds with a standard error to spare: else chance would choose among
candidates, and let every second one miss the budget on the other half.

Each candidate is written as a file and run by its runtime; its integers are those of plain int8.
Then integers are decided anew for what was found, as ``--leave-float`` does; as they are better,
fewer tensors may do, which a few more candidates show. If another candidate that holds is clearly
cheaper than the one that this ends at, it is taken. The files of the mixture that is taken are
measured on the second half, which had no part in the choice.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import NormalDist
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from edgekit.base import words
from edgekit.base.errors import (
    ExecutionError,
    FidelityError,
    InvalidDataError,
    InvalidModelError,
    InvalidOptionError,
)
from edgekit.base.progress import SILENT, Progress, Task
from edgekit.data import feeds
from edgekit.evaluation import operators, subjects
from edgekit.evaluation.options import SAMPLES as RUNS
from edgekit.evaluation.options import Options
from edgekit.evaluation.samples import Samples
from edgekit.evaluation.timing import WARM_UP
from edgekit.graph import kernels
from edgekit.graph.flatbuffer import Graph
from edgekit.graph.timed import TimedOperator
from edgekit.pipeline.exporting import File, Mixing, Pipeline, Proved, format_of
from edgekit.quantization import equalize, islands, mixture
from edgekit.quantization.mixture import Costs
from edgekit.records import environment, stats
from edgekit.records.artifact import Artifact
from edgekit.records.encodings import Encoding, Stored
from edgekit.records.results import BudgetRecord, Candidate, Cost, Measurement
from edgekit.runtimes.worker import Job, Worker
from edgekit.tasks import kind as tasks
from edgekit.writers import tflite_integers

Kind = Literal["max-drop", "min"]
KINDS: tuple[Kind, ...] = get_args(Kind)
COSTS: tuple[Cost, ...] = get_args(Cost)
#: Metrics that a budget may bound.
METRICS: dict[Kind, tuple[str, ...]] = {
    "max-drop": ("top1", "agreement"),
    "min": ("top1", "agreement", "sqnr"),
}
#: Samples of a half, at the least.
FEWEST = 20
#: Where the samples of the two halves lie.
_SEARCHING, _PROVING = slice(0, None, 2), slice(1, None, 2)
#: Samples that a worker gets at a time.
_AT_ONCE = 64
#: Tensors that are tried as int8 again, at the most.
_TRIES = 8
#: The same, and tries of a bisection, where all integers are decided anew each time.
_DECISIONS = 4
#: Part by which another candidate has to cost less than the one that the search ends at: times
#: vary from run to run.
_CLEARLY: dict[Cost, float] = {"time": 0.1, "size": 0.0}
#: One tensor of so many stays float in a file whose conversions are timed, or weighed.
_CONVERTED = 4
#: Bytes by which a number grows that becomes float32.
_REAL = 3.0
#: Samples by which the size of errors is told, at the least.
_NEAREST = 10
_NORMAL = NormalDist()
#: Rounds in which files are timed in turn.
_ROUNDS = 10
#: Seconds in which the operators of a file are timed, about.
_SECONDS = 2.0


@dataclass(frozen=True)
class Budget:
    """How much an int8 file may lose.

    Attributes:
        kind: ``max-drop``: points that may be lost against the float model; ``min``: the least
            value.
        metric: ``top1``: right predictions in %; ``agreement``: predictions that are the float
            model's in %; ``sqnr``: SQNR of the outputs in dB.
        value: Points, % or dB.
    """

    kind: Kind
    metric: str
    value: float

    def __post_init__(self) -> None:
        if self.metric not in METRICS[self.kind]:
            if self.metric == "sqnr":
                raise InvalidOptionError(
                    f"--{self.kind} sqnr: the float model has no SQNR that could drop; use --min "
                    f"sqnr={self.value:g}"
                )
            raise InvalidOptionError(
                f"--{self.kind}: expected metric {', '.join(METRICS[self.kind])}, got "
                f"{self.metric!r}{words.near(self.metric, METRICS[self.kind])}"
            )
        most = math.inf if self.metric == "sqnr" else 100.0
        if not 0 < self.value < most:
            raise InvalidOptionError(
                f"--{self.kind} {self.metric}: expected a number above 0"
                f"{'' if most == math.inf else ' and below 100'}, got {self.value:g}"
            )

    @classmethod
    def parse(cls, kind: Kind, text: str) -> Budget:
        """``METRIC=VALUE`` to a budget.

        Raises:
            InvalidOptionError: If it is not of that form, or asks something without meaning.
        """
        metric, equals, value = text.partition("=")
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not equals or not math.isfinite(number):
            raise InvalidOptionError(
                f"--{kind}: expected METRIC=VALUE as {METRICS[kind][0]}=0.5, got {text!r}"
            )
        return cls(kind, metric, number)

    def __str__(self) -> str:
        return f"--{self.kind} {self.metric}={self.value:g}"

    @property
    def bounded(self) -> str:
        """The metric of ``compare`` that has a least value."""
        return "top1_change" if (self.kind, self.metric) == ("max-drop", "top1") else self.metric

    @property
    def least(self) -> float:
        """The least value of it."""
        if self.kind == "min":
            return self.value
        return -self.value if self.metric == "top1" else 100 - self.value

    @property
    def needed(self) -> int:
        """Samples of a half: one prediction that changes must be less than what may be lost."""
        if self.metric == "sqnr" or (self.kind, self.metric) == ("min", "top1"):
            return FEWEST
        lost = self.value if self.kind == "max-drop" else 100 - self.value
        return max(FEWEST, math.floor(100 / lost) + 1)

    def of(
        self,
        exact: npt.NDArray[np.float32],
        of_file: npt.NDArray[np.float32],
        labels: npt.NDArray[np.int64] | None,
    ) -> Measurement:
        """What the budget bounds, measured.

        Args:
            exact: Outputs of the float model ``[N, M]``.
            of_file: Those of a file.
            labels: Right classes ``[N]``; needed for ``top1``.
        """
        if self.metric == "sqnr":
            return stats.sqnr(exact, of_file)
        before, after = (
            stats.ranking(tasks.by_class(outputs))[:, 0] for outputs in (exact, of_file)
        )
        if self.metric == "agreement":
            return stats.proportion(int((before == after).sum()), len(after))
        assert labels is not None  # Mixture has refused it
        if self.kind == "min":
            return stats.proportion(int((after == labels).sum()), len(after))
        return stats.paired_change(before == labels, after == labels)

    def expected(
        self,
        exact: npt.NDArray[np.float32],
        of_file: npt.NDArray[np.float32],
        labels: npt.NDArray[np.int64] | None,
    ) -> tuple[float, float]:
        """What :meth:`of` would measure on other samples like these, and its standard error there.

        Few predictions change, so that their number is mostly chance. More is known: by how much
        the score of the right class, or of the float model's, leads the best other one, and how
        much rounding moves that lead where it is small. With normal errors of that size, the share
        of leads that stay leads is expected.

        Args:
            exact: As :meth:`of` takes it.
            of_file: The same.
            labels: The same.
        """
        if self.metric == "sqnr":
            return stats.sqnr(exact, of_file).value, _error_of_sqnr(exact, of_file)
        before, after = (tasks.by_class(outputs) for outputs in (exact, of_file))
        rows = np.arange(len(before))
        own = stats.ranking(before)[:, 0] if self.metric == "agreement" else labels
        others = before.copy()
        others[rows, own] = -np.inf
        rival = others.argmax(axis=1)
        lead, moved = (
            scores[rows, own].astype(np.float64) - scores[rows, rival] for scores in (before, after)
        )
        moved -= lead
        near = np.argsort(np.abs(lead), kind="stable")[: max(_NEAREST, len(lead) // 4)]
        size = float(np.sqrt(np.square(moved[near]).mean()))
        leads = np.asarray(lead > 0, np.float64)
        stays = leads if size == 0 else np.array([_NORMAL.cdf(ratio) for ratio in lead / size])
        share, changing = float(stays.mean()), float(np.abs(stays - leads).mean())
        if self.bounded == "top1_change":
            return 100 * (share - float(leads.mean())), 100 * math.sqrt(changing / len(lead))
        return 100 * share, 100 * math.sqrt(share * (1 - share) / len(lead))


@dataclass(frozen=True)
class _SearchResult:
    """What the search found; what :meth:`Mixture.prove` needs.

    Attributes:
        samples: All samples.
        exact: Outputs of the float model for them ``[N, M]``.
        target: The format of the candidates.
        candidates: In the order in which they were written.
        cheapest: The one of them that the search ends at.
        latency_ms: As :class:`edgekit.records.results.BudgetRecord` has it.
        float32: The float32 file, measured as they are.
    """

    samples: Samples
    exact: npt.NDArray[np.float32]
    target: str
    candidates: tuple[Candidate, ...]
    cheapest: Candidate
    latency_ms: dict[str, float]
    float32: Candidate


class Mixture(Mixing):
    """The cheapest mixture of int8 and float tensors that holds a budget.

    Args:
        budget: What may be lost.
        validation: What :func:`edgekit.data.feeds.open_word` takes, with labels for ``top1``; other
            samples than those of the calibration.
        minimize: What is made small: ``time`` of a run here, or ``size`` of the file.
        progress: Hears how far it is, and what it finds.

    Raises:
        InvalidOptionError: If ``minimize`` is neither.
    """

    def __init__(
        self,
        budget: Budget,
        validation: str,
        *,
        minimize: Cost = "time",
        progress: Progress = SILENT,
    ) -> None:
        words.one_of("minimize", minimize, COSTS)
        self._budget, self._validation, self._progress = budget, validation, progress
        self._minimize = minimize
        self._result: _SearchResult | None = None

    def choose(self, pipeline: Pipeline, files: Sequence[File]) -> Pipeline:
        """Search on every other sample.

        Raises:
            InvalidOptionError: If the files or the model leave nothing to choose, or the float32
                file does not hold the budget.
            InvalidDataError: If there are too few samples, or labels are missing.
            FidelityError: If only a file without integers holds the budget.
        """
        budget, source = self._budget, pipeline.source
        targets = [format_of(target) for target, precision in files if precision == "int8"]
        if not targets:
            raise InvalidOptionError(f"{budget} is for int8, got no --precision int8")
        if pipeline.options.strict:
            raise InvalidOptionError(
                f"{budget} lets tensors stay float, and --strict none; leave one of them out"
            )
        if source.encodings is not None or source.integers is not None:
            raise InvalidOptionError(
                f"{budget} is for float models; {source.source.path} has integers of its own"
            )
        with tempfile.TemporaryDirectory() as folder:
            float32 = pipeline.proved(targets[0], "float32").write(
                Path(folder) / "float32", force=False
            )
            samples, exact = self._reference(float32, pipeline)
            search = _Search(
                budget,
                pipeline,
                targets[0],
                samples,
                exact,
                Path(folder),
                self._progress,
                minimize=self._minimize,
            )
            chosen, cheapest, ms = search.run(float32)
            alone = search.alone
        candidates = tuple(search.candidates)
        self._result = _SearchResult(samples, exact, targets[0], candidates, cheapest, ms, alone)
        return chosen

    def prove(self, files: Mapping[File, Proved]) -> dict[File, Proved]:
        """Measure int8 files on the samples that the search did not see.

        Raises:
            FidelityError: If one of them does not hold the budget.
        """
        assert self._result is not None  # choose() was called
        budget, result, samples = self._budget, self._result, self._result.samples
        measured = {}
        with tempfile.TemporaryDirectory() as folder:
            for file in [file for file in files if file[1] == "int8"]:
                written = files[file].write(Path(folder) / "-".join(file), force=False)
                with Worker(Job.of(written, threads=1)) as worker:
                    outputs = _outputs(worker, samples.images.images[_PROVING])
                labels = _labels(samples, _PROVING)
                measured[file] = budget.of(result.exact[_PROVING], outputs, labels)
        sentences = {
            file: self._sentence(file[0], measurement) for file, measurement in measured.items()
        }
        missed = [
            sentences[file]
            for file, measurement in measured.items()
            if measurement.value < budget.least
        ]
        if missed:
            raise FidelityError(
                f"the budget is not held: {'; '.join(missed)}",
                "give --validation more samples, so that chance decides less, or allow less, so "
                "that the search leaves more in float",
            )
        return {
            file: self._recorded(proved_file, measured[file], sentences[file])
            if file in measured
            else proved_file
            for file, proved_file in files.items()
        }

    def _sentence(self, target: str, measurement: Measurement) -> str:
        """What a file was measured at, beside what was asked."""
        budget, unit = self._budget, measurement.unit
        between = ""
        if measurement.low is not None and measurement.high is not None:
            between = f" (95 % interval {measurement.low:.2f} to {measurement.high:.2f})"
        return (
            f"{budget}: expected {budget.bounded} {budget.least:.2f} {unit} at least, the {target} "
            f"int8 file has {measurement.value:.2f} {unit}{between} on {measurement.count} "
            f"validation samples that the search did not see"
        )

    def _recorded(self, proved: Proved, proof: Measurement, sentence: str) -> Proved:
        """A file whose manifest says what it may lose and what it loses."""
        assert self._result is not None
        budget, result = self._budget, self._result
        images = result.samples.images
        record = BudgetRecord(
            asked=str(budget),
            metric=budget.bounded,
            least=budget.least,
            data=images.name,
            sha256=images.sha256,
            searched=len(images) - proof.count,
            target=result.target,
            candidates=result.candidates,
            taken=result.cheapest,
            latency_ms=result.latency_ms,
            proof=proof,
            minimized=self._minimize,
            float32=result.float32,
        )
        manifest = dict(proved.manifest)
        manifest["quantization"] = replace(manifest["quantization"], budget=record)
        manifest["notes"] = (*manifest["notes"], _paid(record), sentence)
        return Proved(proved.files, manifest)

    def _reference(
        self, float32: Artifact, pipeline: Pipeline
    ) -> tuple[Samples, npt.NDArray[np.float32]]:
        """The validation samples, and what the float model gives for them ``[N, M]``.

        Raises:
            InvalidDataError: If they are too few, or have no labels that the budget needs.
        """
        budget, progress, trust = self._budget, self._progress, pipeline.options.trust
        options = Options(
            dataset=self._validation,
            task=pipeline.options.task,
            trust=trust,
            allow_chance=True,  # it is refused below where labels matter
        )
        samples = Samples.open(float32, options, progress)
        name, count = samples.images.name, len(samples)
        if count < 2 * budget.needed:
            raise InvalidDataError(
                f"{budget}: expected {2 * budget.needed} validation samples or more, so that one "
                f"prediction of a half is less than what may be lost, got {count} of {name}"
            )
        progress.say(
            f"{budget}: {count - count // 2} samples of {name} search, {count // 2} others prove"
        )
        if shared := _shared(samples, pipeline):
            progress.say(
                f"warning: {shared} of {count} validation samples are calibration samples too, "
                f"which int8 is better on than on others"
            )
        base = subjects.reference_of([float32], None, environment.cores(), trust=trust)
        outputs = float32.manifest.signature.outputs
        job = base.runnable
        if len(outputs) > 1:
            job = replace(job, outputs=tuple(spec.name for spec in outputs))
        with progress.task("the float model", count) as task, Worker(job) as worker:
            exact = _outputs(worker, samples.images.images, task)
        samples = samples.settled(exact, None, options)
        self._check(samples)
        return samples, exact

    def _check(self, samples: Samples) -> None:
        """Refuse samples that the metric of the budget says nothing of."""
        budget, name = self._budget, samples.images.name
        if budget.metric == "sqnr":
            return
        if samples.right.task != "classification":
            raise InvalidOptionError(
                f"{budget}: expected outputs that are scores of classes, got others; use --min "
                f"sqnr=25, or pass --task classification if they are"
            )
        if budget.metric == "agreement":
            return
        if samples.right.labels is None:
            raise InvalidDataError(
                f"{budget}: expected validation samples with labels, got {name} without; add y to "
                f"the .npz, or bound agreement, which needs none"
            )
        if samples.fit is not None and samples.fit.problem == "chance":
            raise InvalidDataError(
                f"{budget}: the float model is no better than chance on the labels of {name}; "
                f"correct them, or bound agreement, which needs none"
            )


def _paid(record: BudgetRecord) -> str:
    """What the mixture costs, beside plain int8 and float32."""
    cheapest, plain, float32, ms = (
        record.taken,
        record.candidates[0],
        record.float32,
        record.latency_ms,
    )
    assert float32 is not None  # it was measured before the search
    times = (
        f"{ms['taken']:.3g} ms in {record.target} here, plain int8 {ms['int8']:.3g} ms, float32 "
        f"{ms['float32']:.3g} ms"
    )
    sizes = (
        f"{cheapest.bytes:,} bytes in {record.target}, plain int8 {plain.bytes:,}, float32 "
        f"{float32.bytes:,}"
    )
    costs = (sizes, times) if record.minimized == "size" else (times, sizes)
    sentence = (
        f"tensors that stay float: {cheapest.floats}, found with {len(record.candidates)} files "
        f"for the least {record.minimized}; {'; '.join(costs)}"
    )
    if record.minimized == "time" and ms["taken"] >= ms["float32"]:
        sentence += "; the float32 file is no slower"
    if record.minimized == "size" and 2 * cheapest.bytes >= float32.bytes:
        sentence += "; a float16 file has half the bytes of float32"
    return sentence


#: Whether all integers are decided for what stays float, and what does.
_Key = tuple[bool, frozenset[str]]


class _Search:
    """Writes and runs candidates.

    Args:
        budget: What may be lost.
        pipeline: Writes them.
        target: Their format.
        samples: All; every other one is used.
        exact: Outputs of the float model ``[N, M]``.
        folder: For the files.
        progress: Hears of each file.
        minimize: What a candidate costs.

    Attributes:
        candidates: What was written and run, in that order.
        alone: The float32 file.
    """

    def __init__(
        self,
        budget: Budget,
        pipeline: Pipeline,
        target: str,
        samples: Samples,
        exact: npt.NDArray[np.float32],
        folder: Path,
        progress: Progress,
        *,
        minimize: Cost,
    ) -> None:
        self._budget, self._pipeline, self._target = budget, pipeline, target
        self._minimize = minimize
        self._samples, self._folder, self._progress = samples, folder, progress
        self._images = samples.images.images[_SEARCHING]
        self._labels = _labels(samples, _SEARCHING)
        self._exact = exact[_SEARCHING]
        self._candidate_of: dict[_Key, Candidate] = {}
        self._tried: dict[_Key, tuple[tuple[str, ...], ...]] = {}
        self.candidates: list[Candidate] = []

    def run(self, float32: Artifact) -> tuple[Pipeline, Candidate, dict[str, float]]:
        """The pipeline of the mixture that is taken, its candidate, and the latency of the files.

        Raises:
            InvalidOptionError: If the float32 file does not hold the budget.
            FidelityError: If only a file without integers does.
        """
        budget = self._budget
        self.alone, metric_unit = self._measured(float32)
        alone = self.alone
        if not self._enough(alone):
            raise InvalidOptionError(
                f"{budget}: expected {budget.bounded} {budget.least:.2f} with a standard error to "
                f"spare, the float32 {self._target} file has {alone.value:.2f}, with a standard "
                f"error of {alone.error:.2f}, on {len(self._images)} validation samples already; "
                f"allow more, or give more samples"
            )
        self._progress.say(f"float32: {alone.value:.2f} {metric_unit} at {self._costing(alone)}")
        if self._holds(()):
            self._progress.say("plain int8 holds the budget; nothing more stays float")
            return self._pipeline, self.candidates[0], self._in_turn(float32, self.candidates[0])
        units = self._ranked(float32)
        low, high = 0, 1  # too few; to be tried
        while high < len(units) and not self._holds(units[:high]):
            low, high = high, min(2 * high, len(units))  # all of them are the float32 file
        high = self._shortest(units, low, high)
        anew = self._holds(units[:high], anew=True)
        if anew:
            high = self._shortest(units, 0, high, anew=True, tries=_DECISIONS)
        left = list(units[:high])
        # the last one was needed; of the others the first ones gain most
        for unit in reversed(left[:-1][-(_DECISIONS if anew else _TRIES) :]):
            fewer = [other for other in left if other != unit]
            if self._holds(fewer, anew=anew):
                left = fewer
        if not self._mixed(left, anew).quantized.stored.layers:
            raise FidelityError(
                f"{budget} is held only with every layer in float, which is no int8 file",
                "allow more, or export in float16",
            )
        key = self._cheapest(self._key(left, anew))
        cheapest = self._candidate_of[key]
        return self._mixed(self._tried[key], key[0]), cheapest, self._in_turn(float32, cheapest)

    def _cheapest(self, key: _Key) -> _Key:
        """The candidate that the search ends at, or another one that holds and clearly costs
        less."""
        holding = [
            candidate_key
            for candidate_key, candidate in self._candidate_of.items()
            if self._enough(candidate)
            and self._mixed(self._tried[candidate_key], candidate_key[0]).quantized.stored.layers
        ]
        costs = {
            candidate_key: self._cost(self._candidate_of[candidate_key])
            for candidate_key in holding
        }
        least = min(holding, key=costs.__getitem__)
        clearly = (1 - _CLEARLY[self._minimize]) * costs[key]
        return least if costs[least] < clearly else key

    def _cost(self, candidate: Candidate) -> float:
        return candidate.ms if self._minimize == "time" else candidate.bytes

    def _costing(self, candidate: Candidate) -> str:
        return f"{candidate.ms:.3g} ms and {candidate.bytes:,} bytes"

    def _in_turn(self, float32: Artifact, cheapest: Candidate) -> dict[str, float]:
        """Median ms of files, which run in turn, so that a change of the machine's speed affects
        all of them."""
        plain, chosen = (
            Artifact.load(self._folder / f"int8-{self.candidates.index(candidate)}")
            for candidate in (self.candidates[0], cheapest)
        )
        files = {"float32": float32, "int8": plain, "taken": chosen}
        spent: dict[str, list[float]] = {name: [] for name in files}
        image = self._images[:1]
        with contextlib.ExitStack() as stack:
            workers = {
                name: stack.enter_context(Worker(Job.of(written, threads=1)))
                for name, written in files.items()
            }
            for worker in workers.values():
                worker.latencies(image, WARM_UP)
            for _ in range(_ROUNDS):
                for name, worker in workers.items():
                    spent[name] += worker.latencies(image, RUNS)
        return {name: float(np.median(times)) for name, times in spent.items()}

    def _shortest(
        self,
        units: Sequence[tuple[str, ...]],
        low: int,
        high: int,
        *,
        anew: bool = False,
        tries: float = math.inf,
    ) -> int:
        """How many of the first units hold the budget: fewer than ``high``, which do, and more than
        ``low``, which do not."""
        while high - low > 1 and tries > 0:
            middle = (low + high) // 2
            if self._holds(units[:middle], anew=anew):
                high = middle
            else:
                low = middle
            tries -= 1
        return high

    def _holds(self, units: Sequence[tuple[str, ...]], *, anew: bool = False) -> bool:
        """Whether the budget is held with these tensors in float.

        Args:
            units: The tensors.
            anew: Decide all integers for them, instead of taking those of plain int8.
        """
        key = self._key(units, anew)
        if key not in self._candidate_of:
            self._try(self._mixed(units, anew), decided=anew)
            self._candidate_of[key], self._tried[key] = self.candidates[-1], tuple(units)
        return self._enough(self._candidate_of[key])

    def _mixed(self, units: Sequence[tuple[str, ...]], anew: bool) -> Pipeline:
        why = f"chosen to hold {self._budget}"
        floats = {name: why for unit in units for name in unit}
        return self._pipeline.deciding(floats) if anew else self._pipeline.leaving(floats)

    def _key(self, units: Sequence[tuple[str, ...]], anew: bool) -> _Key:
        return anew, frozenset(self._mixed(units, False).quantized.floats)

    def _try(self, mixed: Pipeline, *, decided: bool) -> None:
        """Write and run a file, which becomes a candidate."""
        name, trial = f"int8-{len(self.candidates)}", mixed.leaving({}, trial=True)
        written = self._write(trial.proved(self._target, "int8"), name)
        measured, unit = self._measured(written, len(trial.quantized.floats))
        candidate = replace(measured, decided=decided)
        self.candidates.append(candidate)
        self._progress.say(
            f"int8, tensors in float: {candidate.floats}; {candidate.value:.2f} {unit}, expected "
            f"{candidate.expected:.2f} of others, at {self._costing(candidate)}"
        )

    def _enough(self, candidate: Candidate) -> bool:
        """Whether it holds the budget, and chance on other samples would seldom change that."""
        return candidate.sure >= self._budget.least

    def _measured(self, written: Artifact, floats: int = 0) -> tuple[Candidate, str]:
        """A file on the samples of the search, and the unit of its metric."""
        with Worker(Job.of(written, threads=1)) as worker:
            outputs = _outputs(worker, self._images)
            worker.latencies(self._images[:1], WARM_UP)
            ms = min(worker.latencies(self._images[:1], 2 * RUNS))
        compared = self._exact, outputs, self._labels
        result = self._budget.of(*compared)
        expected = self._budget.expected(*compared)
        return Candidate(floats, ms, result.value, *expected, bytes=written.size), result.unit

    def _ranked(self, float32: Artifact) -> list[tuple[str, ...]]:
        """Tensors that stay float together, those first that gain most for their cost."""
        pipeline = self._pipeline
        quantized, canonical = pipeline.quantized, pipeline.canonical
        few = np.linspace(0, len(self._images) - 1, islands.SAMPLES).astype(np.int64)
        samples = _fed(self._samples, np.unique(few) * _SEARCHING.step)
        walked = islands.Search(
            equalize.apply(canonical, quantized.encodings.factors),
            {},
            pipeline.profile,
            pipeline.feed(samples, np.arange(len(samples))),
            threads=environment.cores(),
        )
        encodings = {
            name: Encoding("int8", (scale,), zero_point)
            for name, (scale, zero_point) in quantized.stored.activations.items()
        }
        noise = walked.noise(encodings, quantized.floats)
        costs = self._bytes() if self._minimize == "size" else self._times(float32)
        return mixture.ranking(quantized, canonical, noise, costs)

    def _some(self) -> Pipeline:
        """A mixture with many conversions."""
        names = sorted(self._pipeline.quantized.stored.activations)
        return self._pipeline.leaving(dict.fromkeys(names[::_CONVERTED], ""), trial=True)

    def _bytes(self) -> Costs:
        """What it costs in bytes: a weight, or a number of a constant, takes four in place of one.
        In TFLite an operator converts; in ONNX every tensor of integers has such operators."""
        graph, sizes = Graph(self._pipeline.canonical), _sizes(self._pipeline.quantized.stored)
        longer = {
            operator.outputs[0]: _REAL
            * sum(
                sizes.get(name, 0)
                for name in (operator.outputs[0], *kernels.constants(graph, operator))
            )
            for operator in graph.operators
        }
        if self._target != "tflite":
            return Costs(longer)
        some = self._some()
        mixed = self._write(some.proved("tflite", "int8"), "weighed-mixed")
        plain = Artifact.load(self._folder / "int8-0")
        grown = sum(_REAL * sizes[name] for name in sizes.keys() - _sizes(some.quantized.stored))
        before, after = (
            sum(tflite_integers.converts(file, operator) for operator in file.operators)
            for file in (Graph(deployable.model_path.read_bytes()) for deployable in (plain, mixed))
        )
        spent = mixed.size - plain.size - grown
        return Costs(longer, converter=max(0.0, spent / (after - before) if after > before else 0))

    def _times(self, float32: Artifact) -> Costs:
        """What it costs to compute in float: by LiteRT, which runs each operator of a file alone,
        for ONNX files too."""
        integers = self._pipeline.leaving({}, trial=True).proved("tflite", "int8")
        mixed = self._some().proved("tflite", "int8")
        if self._target != "tflite":
            float32 = self._write(self._pipeline.proved("tflite", "float32"), "timed-float32")
        files = [float32, self._write(integers, "timed-int8"), self._write(mixed, "timed-mixed")]
        try:
            real, whole, both = ([*_timed(file)] for file in files)
        except (ExecutionError, InvalidModelError) as exc:
            self._progress.say(f"note: all operators count the same, without a time: {exc}")
            return Costs({})
        in_float = {operator.outputs[0]: operator.ms for operator in real}
        longer = {
            operator.outputs[0]: in_float[operator.outputs[0]] - operator.ms
            for operator in whole
            if operator.outputs[0] in in_float
        }
        graph = Graph(files[-1].model_path.read_bytes(), distinct=True)
        converting = [operator for operator in both if operator.converts]
        numbers = sum(int(np.prod(graph.shape(operator.outputs[0]))) for operator in converting)
        spent = sum(operator.ms for operator in converting)
        return Costs(longer, spent / numbers if numbers else 0.0)

    def _write(self, proved: Proved, name: str) -> Artifact:
        return proved.write(self._folder / name, force=False)


def _error_of_sqnr(exact: npt.NDArray[np.float32], of_file: npt.NDArray[np.float32]) -> float:
    """Standard error of an SQNR in dB, from how much samples differ (delta method)."""
    signal, noise = (
        np.square(values.reshape(len(exact), -1), dtype=np.float64).sum(axis=1)
        for values in (exact, exact.astype(np.float64) - of_file)
    )
    if not (0 < signal.sum() < np.inf and 0 < noise.sum() < np.inf):
        return 0.0
    shares = signal / signal.sum() - noise / noise.sum()
    return float(10 / math.log(10) * np.sqrt(np.square(shares).sum()))


def _sizes(stored: Stored) -> dict[str, int]:
    """How many weights a layer has, by its output, and numbers a constant."""
    sizes = {name: layer.weights.size for name, layer in stored.layers.items()}
    return sizes | {name: constant.values.size for name, constant in stored.constants.items()}


def _timed(written: Artifact) -> tuple[TimedOperator, ...]:
    """Each operator of a TFLite file alone.

    Raises:
        InvalidModelError: If one does not run without the others.
    """
    specs, prepare = written.manifest.signature.inputs, written.manifest.preprocessing
    ran, _ = operators.of_tflite(
        written.model_path,
        feeds.quantized(feeds.random(specs, prepare, 1, seed=0), specs),
        specs,
        threads=1,
        options=written.manifest.runtime_options,
        seconds=_SECONDS,
    )
    return ran


def _outputs(
    worker: Worker, images: npt.NDArray[Any], task: Task | None = None
) -> npt.NDArray[np.float32]:
    """Outputs ``[N, M]`` of a worker, which gets some samples at a time."""
    parts = []
    for start in range(0, len(images), _AT_ONCE):
        parts.append(worker.outputs(images[start : start + _AT_ONCE]))
        if task is not None:
            task.advance(len(parts[-1]))
    return np.concatenate(parts)


def _labels(samples: Samples, where: slice) -> npt.NDArray[np.int64] | None:
    labels = samples.right.labels
    return None if labels is None else labels[where]


def _fed(samples: Samples, places: npt.NDArray[np.int64]) -> feeds.Samples:
    """Some samples as images, or as an array for each input."""
    images = samples.images
    if images.images.dtype.names is None:
        return images.take(places)
    arrays = {name: images.images[name][places] for name in images.images.dtype.names}
    return feeds.make(images.name, arrays)


def _shared(samples: Samples, pipeline: Pipeline) -> int:
    """How many validation samples are calibration samples too."""
    calibration = pipeline.calibration
    if calibration is None or calibration.images is None:
        return 0
    calibrated = set(_digests(calibration.images))
    every = _fed(samples, np.arange(len(samples)))
    return sum(digest in calibrated for digest in _digests(every))


def _digests(samples: feeds.Samples) -> Iterator[bytes]:
    arrays = samples.arrays if isinstance(samples, feeds.Inputs) else {"": samples.images}
    for i in range(len(samples)):
        digest = hashlib.sha256()
        for name in sorted(arrays):
            digest.update(np.ascontiguousarray(arrays[name][i]).tobytes())
        yield digest.digest()
