"""The samples of a comparison, their labels, and whether the two fit the models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit import data
from edgekit.base import words
from edgekit.base.blocks import blocks
from edgekit.base.errors import ClassesError, InvalidDataError, InvalidOptionError
from edgekit.base.progress import Progress
from edgekit.data import feeds
from edgekit.data.images import checked_labels, checked_truth, is_truth
from edgekit.evaluation import mistakes
from edgekit.evaluation.answers import Answers
from edgekit.evaluation.options import Options
from edgekit.records import stats
from edgekit.records.artifact import Artifact, Manifest
from edgekit.records.results import LabelFit
from edgekit.records.signature import Preprocessing
from edgekit.runtimes import model_file
from edgekit.runtimes.worker import Worker
from edgekit.tasks import kind as tasks
from edgekit.tasks.kind import Right, Task

#: Samples on which classic mistakes are looked for; ``edgekit.data check`` takes more.
SUSPECTED = 128
_NO_CLASSES = "if the outputs are no classes, pass --task regression"


@dataclass(frozen=True)
class Samples:
    """Samples with what is known of labels.

    Attributes:
        dataset: The word that names them.
        images: Images, or records with a field for each input.
        right: What outputs are, and which are right; the reference's outputs settle what is open.
        prepare: From pixels to model inputs.
        fit: Whether labels fit the reference; None without any, and before it has run.
        warnings: Classic mistakes, and what became of labels that have no use; a sentence each.
    """

    dataset: str
    images: data.ImageSet
    right: Right
    prepare: Preprocessing
    unsure: bool
    fit: LabelFit | None = None
    warnings: tuple[str, ...] = ()

    @classmethod
    def open(cls, artifact: Artifact, options: Options, progress: Progress) -> Samples:
        """Open what ``--data`` names, for the models that an artifact stands for.

        Raises:
            EdgekitError: If it cannot be used for them, or with the options.
        """
        manifest = artifact.manifest
        tasks.check(options.task, manifest.signature.outputs)
        dataset = options.dataset or model_file.default_data(artifact)
        images, as_array = _images(dataset, manifest, options.task, options.limit, progress)
        right = tasks.right(
            images, manifest, options.task, as_array=as_array, decoding=options.decoding
        )
        classes = tasks.scores(manifest.signature.outputs) >= 2 and right.task != "regression"
        if options.parity and not classes:
            raise InvalidOptionError(
                "--parity compares classes, these models give none; leave it out"
            )
        if right.labels is None and right.truth is None and options.of_accuracy:
            raise InvalidOptionError(
                f"--power and --bound are of accuracy, and {images.name} has no labels for these "
                f"models; leave them out"
            )
        unsure = tasks.declared(manifest, options.task) is None
        unused = (right.unused,) if right.unused else ()
        return cls(dataset, images, right, manifest.preprocessing, unsure, warnings=unused)

    def __len__(self) -> int:
        return len(self.images)

    @property
    def first(self) -> npt.NDArray[Any]:
        """The first of them alone ``[1, ...]``."""
        return self.images.images[:1]

    def settled(
        self, outputs: npt.NDArray[np.float32], worker: Worker | None, options: Options
    ) -> Samples:
        """The same once the reference has run: what its outputs are, and whether labels fit them.

        Args:
            outputs: The reference's, ``[N, M]``.
            worker: Runs the reference on other inputs; None where nothing can.
            options: Options of the comparison.

        Raises:
            InvalidDataError: If labels are of no class, or no better than chance fits them.
            InvalidOptionError: If parity was asked for, and the outputs are no classes.
        """
        right = self._right(outputs)
        fit, findings = _fit(outputs, worker, self.images, right, self.prepare)
        _check_chance(fit, findings, options.allow_chance, unsure=self.unsure)
        if options.parity and right.task != "classification":
            raise InvalidOptionError(
                "--parity compares classes, and nothing says that these outputs are "
                "scores of classes; pass --task classification, or leave it out"
            )
        sentences = (f"{finding.kind}: {finding.said}" for finding in findings)
        return replace(self, right=right, fit=fit, warnings=(*self.warnings, *sentences))

    def judged(self, answers: Answers, options: Options) -> Samples:
        """The same once the reference's outputs were read: whether boxes or masks fit it.

        Args:
            answers: The reference's.
            options: Options of the comparison.

        Raises:
            InvalidDataError: If it is no better than chance on them.
        """
        fit = answers.label_fit()
        if fit is None:
            return self
        metric = "mAP50" if self.right.task == "detection" else "mIoU"
        findings = mistakes.of_fit(fit, len(self.images), whose="the float model", metric=metric)
        _check_chance(fit, findings, options.allow_chance, unsure=False)
        sentences = (f"{finding.kind}: {finding.said}" for finding in findings)
        return replace(self, fit=fit, warnings=(*self.warnings, *sentences))

    def _right(self, outputs: npt.NDArray[np.float32]) -> Right:
        """What is right, decided by the reference's outputs; labels are of its classes."""
        right = tasks.settle(self.right, outputs)
        if right.labels is not None:
            try:
                mistakes.check_range(self.images.name, right.labels, max(2, outputs.shape[1]))
            except InvalidDataError as exc:
                if right.asked or self.right.task == "classification":
                    raise
                raise InvalidDataError(f"{exc}; {_NO_CLASSES}") from None
        return right


def _images(
    dataset: str, manifest: Manifest, asked: Task | None, limit: int | None, progress: Progress
) -> tuple[data.ImageSet, bool]:
    """What a ``--data`` word names, images or records with a field for each input; and whether
    labels, if there are any, were given as an array."""
    specs = manifest.signature.inputs
    opened = feeds.open_word(dataset, "test", labels=False, progress=progress)
    if not isinstance(opened, feeds.Inputs):
        declared = tasks.declared(manifest, asked)
        try:
            images = feeds.images(
                opened,
                specs,
                manifest.preprocessing,
                tasks.names(manifest, declared),
                limit,
                quiet=True,  # warnings go into the report, which is printed
            )
        except ClassesError as exc:
            if declared is not None:
                raise
            raise ClassesError(f"{exc}; {_NO_CLASSES}") from None
        shipped = words.split(opened.word)[0] == "fashion_mnist"
        return images, isinstance(opened.source, data.ImageSet) and not shipped
    samples, y = feeds.labelled(opened.head(limit), specs)
    labels = truth = None
    if y is not None and is_truth(y):
        truth = checked_truth(samples.name, y, len(samples))
    elif y is not None:
        labels = checked_labels(samples.name, y, len(samples))
        labels = labels + manifest.preprocessing.class_offset
    real = [
        replace(spec, dtype="float32", scale=None, zero_point=None) if spec.is_real else spec
        for spec in specs
    ]
    feeds.check(samples, real)
    records = feeds.records(samples.arrays)
    return data.ImageSet(samples.name, records, labels, (), samples.sha256, truth=truth), True


def _fit(
    outputs: npt.NDArray[np.float32],
    worker: Worker | None,
    images: data.ImageSet,
    right: Right,
    prepare: Preprocessing,
) -> tuple[LabelFit | None, list[mistakes.Finding]]:
    """Whether labels fit the reference, and classic mistakes."""
    if right.truth is not None:
        return _fit_of_numbers(outputs, right.truth)
    if right.labels is None:
        return None, []
    scores = tasks.by_class(outputs)
    choices = np.concatenate([block.argmax(axis=1) for (block,) in blocks(scores)])
    fit = mistakes.label_fit(choices, right.labels)
    findings: list[mistakes.Finding] = []
    if worker is not None and images.images.dtype.names is None:
        findings = mistakes.find(
            lambda values: tasks.by_class(worker.outputs(values)),
            images.images,
            right.labels,
            prepare,
            count=SUSPECTED,
            step=_step(worker),
        )
    if all(finding.hint for finding in findings):
        findings += mistakes.renumbered(choices, right.labels, right.names)
    if all(finding.hint for finding in findings) or fit.problem == "chance":
        findings += mistakes.of_fit(fit, len(images), whose="the float model")
    return fit, findings


def _fit_of_numbers(
    outputs: npt.NDArray[np.float32], truth: npt.NDArray[np.float32]
) -> tuple[LabelFit | None, list[mistakes.Finding]]:
    r2 = stats.truth(truth, outputs, outputs).get("r2")
    if r2 is None or r2.value > 0:
        return None, []
    said = (
        f"y does not fit the samples: R^2 of the float model is {r2.value / 100:.2f}, its "
        f"numbers are no nearer to y than the mean of y is; check y's order and unit, and the "
        f"preprocessing"
    )
    return LabelFit(r2.value, 0.0, 1.0, "chance"), [mistakes.Finding("labels", said)]


def _step(worker: Worker) -> float | None:
    outputs = worker.loaded.signature.outputs
    return outputs[0].scale if len(outputs) == 1 else None


def _check_chance(
    fit: LabelFit | None, findings: Sequence[mistakes.Finding], allowed: bool, *, unsure: bool
) -> None:
    """Refuse labels by which the reference is no better than chance, unless that is allowed.

    Args:
        fit: Fit of the labels.
        findings: What explains it.
        allowed: Whether the user wants to go on.
        unsure: Whether labels alone say that outputs are classes.
    """
    if fit is None or fit.problem != "chance" or allowed:
        return
    why = "; ".join(f"{each.kind}: {each.said}" for each in findings if not each.hint)
    fix = f"; {_NO_CLASSES}" if unsure else ""
    raise InvalidDataError(
        f"{why}; correct it, leave the labels out, or pass --allow-chance to compare outputs "
        f"only{fix}"
    )
