"""The loop over epochs: checkpoints, resuming, the log, TensorBoard."""

from __future__ import annotations

import io
import json
import math
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.base import outputs, schema
from edgekit.base.errors import InvalidDataError, InvalidOptionError, reason
from edgekit.base.progress import SILENT, Progress
from edgekit.sources import keras as keras_format
from edgekit.training.trainer import Trainer


def checkpoints_of(out: Path, named: Path | None, *, resume: bool) -> Path:
    """The folder of a run's checkpoints.

    Raises:
        InvalidOptionError: If it holds an earlier run that is not resumed.
    """
    folder = named or out.with_name(f"{out.name}.checkpoints")
    if folder.exists() and not resume:
        raise InvalidOptionError(
            f"{folder} holds an earlier run; pass --resume to continue it, or delete it"
        )
    return folder


def fit(
    trainer: Trainer,
    checkpoints: Path,
    tensorboard: Path | None,
    resume: bool,
    about: dict[str, Any],
    watch: Callable[[], dict[str, float]] | None = None,
    every: int = 0,
    progress: Progress = SILENT,
) -> list[dict[str, float]]:
    """Run all epochs that a recipe has, from the last checkpoint if resumed.

    Args:
        trainer: What to step.
        checkpoints: Folder of checkpoints, one for each epoch and look, and the log.
        tensorboard: Folder for TensorBoard logs; none when absent.
        resume: Continue from the last checkpoint.
        about: What makes the run what it is; one that is resumed has to have the same.
        watch: Looks at the model at every ``every``-th step, about, and at each epoch's end; what
            it says is shown and logged.
        every: Steps between two looks.
        progress: Hears how far it is, and the metrics of every epoch.

    Returns:
        The log, with an entry for each epoch and look.

    Raises:
        InvalidDataError: If the loss becomes NaN or infinite.
        InvalidOptionError: If another run is resumed than the one that was begun.
    """
    recipe, per_epoch = trainer.recipe, trainer.steps_per_epoch
    measured, in_words = trainer.MEASURED
    chief = trainer.replicas.chief
    _check_same_run(
        checkpoints / "run.json", {"recipe": asdict(recipe), **about}, resume, write=chief
    )
    total = recipe.total_steps(per_epoch)
    fused = min(per_epoch, 20, every or 20)
    with ExitStack() as stack:
        journal = _Journal(trainer, checkpoints, tensorboard, stack)
        if resume:
            progress.say(journal.resume())
        task = stack.enter_context(progress.task("training", total, unit="steps"))
        task.advance(int(trainer.step.numpy()))
        while (step := int(trainer.step.numpy())) < total:
            epoch = step // per_epoch
            last = min((epoch + 1) * per_epoch, total)
            order = trainer.order(epoch)
            started = time.perf_counter()
            losses, rights, weights = [], [], []
            for begin in range(step, last, fused):
                steps = range(begin, min(begin + fused, last))
                rates = np.array([recipe.rate(s, per_epoch) for s in steps], np.float32)
                loss, right = trainer.run_epoch_part(
                    order[steps.start - epoch * per_epoch : steps.stop - epoch * per_epoch], rates
                )
                if not math.isfinite(loss):
                    raise InvalidDataError(
                        f"the loss became {loss} at step {steps[-1]}; lower --learning-rate"
                    )
                losses.append(loss)
                rights.append(right)
                weights.append(len(steps))
                speed = sum(weights) * recipe.batch / (time.perf_counter() - started)
                task.advance(len(steps))
                task.note(f"loss {loss:.3f}  {speed:.0f} images/s")
                looked = every and steps.start // every != steps.stop // every
                if watch is not None and looked and steps.stop < last:
                    journal.keep({"step": steps.stop, **watch()})
            row = {
                "epoch": epoch + 1,
                "step": last,
                "loss": float(np.average(losses, weights=weights)),
                f"augmented_{measured}": 100 * float(np.average(rights, weights=weights)),
                "learning_rate": float(rates[-1]),
                "images_per_second": round(speed, 1),
            }
            if chief:
                progress.say(
                    f"epoch {epoch + 1}/{math.ceil(total / per_epoch)}  loss {row['loss']:.4f}  "
                    f"{in_words} {row[f'augmented_{measured}']:.2f} % (augmented)  "
                    f"{speed:.0f} images/s"
                )
            journal.keep(row | (watch() if watch is not None else {}))
        return journal.log


class _Journal:
    """What a run leaves behind as it goes: checkpoints, the log, TensorBoard.

    A checkpoint is saved by all processes together, because each holds a part of what is averaged;
    those that are not the chief save theirs into a folder that is thrown away.
    """

    def __init__(
        self, trainer: Trainer, checkpoints: Path, tensorboard: Path | None, stack: ExitStack
    ) -> None:
        tf = keras_format.tensorflow()
        self.log: list[dict[str, float]] = []
        self._trainer, self._folder = trainer, checkpoints
        self._chief = trainer.replicas.chief
        own = str(checkpoints)
        if not self._chief:
            own = stack.enter_context(tempfile.TemporaryDirectory())
        self._manager = tf.train.CheckpointManager(trainer.checkpoint, own, max_to_keep=2)
        self._writer = None
        if tensorboard and self._chief:
            self._writer = tf.summary.create_file_writer(str(tensorboard))

    def resume(self) -> str:
        """Take up the chief's last checkpoint; says which."""
        tf = keras_format.tensorflow()
        latest = tf.train.latest_checkpoint(str(self._folder))
        if not latest:
            return f"no checkpoint in {self._folder}: starting from the beginning"
        self._trainer.checkpoint.restore(latest).assert_existing_objects_matched()
        step = int(self._trainer.step.numpy())
        self.log = _read_log(self._folder / "log.jsonl", step)
        return f"resumed at step {step}"

    def keep(self, row: dict[str, float]) -> None:
        """Log an entry, with a checkpoint."""
        self.log.append(row)
        _summarize(self._writer, row)
        self._trainer.replicas.call(self._manager.save)
        if self._chief:
            outputs.write_bytes(self._folder / "log.jsonl", log_bytes(self.log), force=True)


def _read_log(path: Path, step: int) -> list[dict[str, float]]:
    """The log of a run up to a step."""
    try:
        rows = [
            schema.from_json(dict[str, int | float], schema.parse(line), "entry")
            for line in path.read_text(encoding="utf-8").splitlines()
        ]
        return [row for row in rows if row["step"] <= step]
    except (OSError, ValueError, KeyError, RecursionError) as exc:
        raise InvalidOptionError(
            f"--resume: {path} cannot be read ({reason(exc)}); delete {path.parent} and begin again"
        ) from None


def _check_same_run(path: Path, about: dict[str, Any], resume: bool, *, write: bool) -> None:
    """What was begun is what goes on, else say what differs; what begins is written down."""
    if resume and path.is_file():
        begun = schema.read_json(path, error=InvalidOptionError, what="the options of a run")
        if not isinstance(begun, dict) or not isinstance(begun.get("recipe"), dict):
            raise InvalidOptionError(f"--resume: {path} does not say which run it is; delete it")
        now = json.loads(json.dumps(about))
        flat = [{**run.pop("recipe"), **run} for run in (begun, now)]
        other = [
            f"{key} was {flat[0].get(key)} and is {flat[1].get(key)}"
            for key in sorted({*flat[0], *flat[1]})
            if flat[0].get(key) != flat[1].get(key)
        ]
        if other:
            raise InvalidOptionError(
                f"--resume: {path.parent} holds another run: {', '.join(other)}; give the same "
                f"options, or delete it"
            )
        return
    if write:
        outputs.write_text(path, json.dumps(about) + "\n", force=True)


def _summarize(writer: Any, row: dict[str, float]) -> None:
    if writer is None:
        return
    tf = keras_format.tensorflow()
    with writer.as_default(step=int(row["step"])):
        for name, value in row.items():
            if name not in ("epoch", "step"):
                tf.summary.scalar(name, value)
    writer.flush()


def log_bytes(log: list[dict[str, float]]) -> bytes:
    text = io.StringIO()
    for row in log:
        text.write(json.dumps(row) + "\n")
    return text.getvalue().encode()
