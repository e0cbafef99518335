"""The options of a comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from edgekit.base.errors import InvalidOptionError
from edgekit.evaluation import shards, verdicts
from edgekit.records import signature
from edgekit.records.signature import Preprocessing
from edgekit.tasks.kind import Task, of_decoding

#: Samples of latency that a round takes of each model.
SAMPLES = 20
#: The power that is customary (Cohen 1988).
DEFAULT_POWER = 0.8
#: Images of each artifact whose prediction changed that the report shows.
PICTURES = 24


@dataclass(frozen=True)
class Options:
    """How deployables are compared with their float model.

    Attributes:
        dataset: What :func:`edgekit.data.feeds.open_word` takes; default ``fashion_mnist`` for the
            shipped model, needed for others. Labels are compared where they are there:
            integers as classes, floats ``[N, M]`` as the numbers of a regression.
        limit: Use the first samples only.
        threads: Number of threads inside an operator.
        rounds: Latency rounds; each takes :data:`SAMPLES` samples of every model. With 0 no latency
            and no energy is measured.
        reference: The float model, an artifact or a file or folder that ``export`` takes; default
            where the manifests say or the shipped one. Or a runner of it, e.g.
            ``ort:cuda:float16``; or a recording.
        record: Write the outputs and the latency of the reference to this file, which stands in
            for it as a ``reference`` on machines without its device.
        force: Replace ``record`` if it exists.
        parity: Also hold the int8 TFLite and the int8 ONNX artifact of the first model that has
            one of each against each other, in numbers and in outputs, with TFLite's reference
            kernels as a third.
        power: How often a loss of ``bound`` has to be found, of 1; the report says how many samples
            that takes, and warns where there are fewer.
        bound: Loss of top-1 or R^2 that matters, in points.
        pictures: How many images with another prediction go into the report as small pictures, for
            each artifact; all such images are counted.
        work: Folder that keeps the outputs shard by shard, so that a run that was killed goes on
            where it was; default the user's cache, until the comparison is whole.
        shard: Samples in a shard.
        processes: Processes that evaluate at once on this machine; default as many as fit on the
            cores.
        cluster: Address of a Dask scheduler, whose workers evaluate the artifacts. The reference
            is evaluated here, and what a worker evaluated has no latency, load time and memory.
        resources: Worker resource, ``any`` or ``local``, by artifact; see
            :func:`edgekit.evaluation.fleet.devices`.
        trust: Let code inside of the float model run, as ``export --trust`` does.
        preprocessing: How the inputs of files are made, name or JSON file; default as those of the
            artifacts beside them, or of the reference.
        on: Where deployables run, ``PLACE`` for all or ``ARTIFACT=PLACE`` for one, as
            :func:`edgekit.runtimes.places.assigned` reads them; default this machine. With several
            places each of them gets a row.
        task: What the outputs are; default what manifests, labels or outputs say.
        metric: Functions of the user, ``module:function``, that compute metrics of their own; see
            :mod:`edgekit.evaluation.functions`. They are imported.
        decoding: How outputs of a detector become boxes, as
            :func:`edgekit.tasks.presets.decoding_for` takes it; default as the manifest says. The
            task is detection then.
        allow_chance: Go on where the float model is no better than chance, without a verdict on
            accuracy.
        command: Recorded in the report.
    """

    dataset: str | None = None
    limit: int | None = None
    threads: int = 1
    rounds: int = 10
    reference: Path | str | None = None
    record: Path | None = None
    force: bool = False
    parity: bool = False
    power: float = DEFAULT_POWER
    bound: float = verdicts.BOUND
    pictures: int = PICTURES
    work: Path | None = None
    shard: int = shards.IMAGES
    processes: int | None = None
    cluster: str | None = None
    resources: Mapping[str, str] = field(default_factory=dict)
    trust: bool = False
    preprocessing: str | None = None
    on: Sequence[str] = ()
    task: Task | None = None
    metric: Sequence[str] = ()
    decoding: str | None = None
    allow_chance: bool = False
    command: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "task", of_decoding(self.task, self.decoding))
        if self.rounds < 0:
            raise InvalidOptionError(f"expected a number of rounds >= 0, got {self.rounds}")
        if self.pictures < 0:
            raise InvalidOptionError(f"expected a number of pictures >= 0, got {self.pictures}")
        if self.cluster and self.parity:
            raise InvalidOptionError(
                "--parity is about one machine's kernels; leave it out or leave out --cluster"
            )
        if self.cluster and self.on:
            raise InvalidOptionError(
                "--on says where deployables run, and so does --cluster; leave one of them out"
            )

    @property
    def of_accuracy(self) -> bool:
        """Whether ``power`` or ``bound`` were given, which are about labels."""
        return (self.power, self.bound) != (DEFAULT_POWER, verdicts.BOUND)

    @property
    def at_once(self) -> int:
        """Processes that evaluate at once on this machine."""
        return self.processes or shards.processes_for(self.threads)

    def prepared(self) -> Preprocessing | None:
        """The preprocessing of files, where it was named."""
        return None if self.preprocessing is None else signature.preprocessing(self.preprocessing)


DEFAULTS = Options()
