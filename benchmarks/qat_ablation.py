"""What each part of quantization-aware training brings, one after the other, over seeds.

    python benchmarks/qat_ablation.py [--hard-case | --weight-bits 4] [--seeds 3] [--log FILE.jsonl]

Every arm fine-tunes the same float model with the same images, order, augmentation, optimiser and
length, and adds one thing to the arm before it:

    tfmot defaults      quantize_model as it comes, deployed by TFLiteConverter
    + per channel       per output channel, depthwise too, where the deployed graph stores tensors;
                        ranges still from +-6, moving average of 0.999 without bias correction
    + calibrated        ranges start from the calibration table and follow with bias correction
    (learned ranges     instead of the moving average: LSQ)
    + frozen end        batch statistics and ranges frozen in the last 30 % of the steps
    + distillation      half of the loss is the float model's answers

Top-1 is of the 10,000 test images: as the fake-quantized model answers, and as the int8 TFLite file
does. With --log, arms that stand in the file are not run again.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from hard_case import build
from rich.console import Console
from rich.table import Table

from edgekit import data
from edgekit.pipeline.calibration import cached
from edgekit.pipeline.qat import QatRecipe, QatTrainer, outputs_of, predict
from edgekit.quantization import profiles, reconstruct
from edgekit.quantization.encode import activations
from edgekit.quantization.table import Range
from edgekit.records import environment
from edgekit.sources import convert, float_model
from edgekit.sources import keras as keras_format
from edgekit.training.loop import fit
from edgekit.training.trainer import Trainer, configure_threads
from edgekit.writers import tflite_integers

ARMS = (
    "tfmot defaults",
    "+ per channel",
    "+ calibrated",
    "(learned ranges)",
    "+ frozen end",
    "+ distillation",
)


class TfmotTrainer(Trainer):
    """``quantize_model`` as it comes, in the same loop."""

    def _set_up(self, model: Any) -> None:
        keras = keras_format.tf_keras()
        self.variables = model.variables
        self.trainable = model.trainable_variables
        self.decayed = [v for v in self.trainable if v.name.endswith("/kernel:0")]
        self._logits = keras.Model(model.input, model.get_layer("quant_probabilities").input)


def tfmot_defaults(setting: Setting, recipe: QatRecipe, folder: Path) -> tuple[Any, Any]:
    """(answers as trained, answers as deployed)."""
    from tensorflow_model_optimization.quantization.keras import quantize_model

    tf = keras_format.tensorflow()
    model = quantize_model(setting.model)
    fit(TfmotTrainer(model, recipe, **setting.training), folder, None, False, {})
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    return predict(model, setting.values), outputs_of(converter.convert(), "tflite", setting.values)


def edgekit_arm(setting: Setting, recipe: QatRecipe, folder: Path, arm: str) -> tuple[Any, Any]:
    """(answers as trained, answers as deployed)."""
    from edgekit.quantization import fake

    ranges = setting.table.ranges
    start: dict[str, Any] = {"ranges": ranges, "prior": setting.table.count * 2 / recipe.batch}
    if arm == "+ per channel":
        six = dict.fromkeys(ranges, Range(-6.0, 6.0))
        start = {"ranges": six, "prior": math.inf, "decay": 0.999}
    made = fake.FakeQuantized(
        setting.model,
        setting.canonical,
        images=setting.values[: fake.IMAGES],
        profile=profiles.profile(profiles.DEFAULT),
        mode=recipe.ranges,
        bits=recipe.weight_bits,
        **start,
    )
    fit(QatTrainer(made, setting.model, recipe, **setting.training), folder, None, False, {})
    graph, stored, _ = made.deployed()
    plain = keras_format.tf_keras().models.clone_model(setting.model)
    made.put_into(plain)
    trained = fake.with_activations(plain, made.activations())
    return (
        predict(trained, setting.values),
        outputs_of(tflite_integers.write(graph, stored), "tflite", setting.values),
    )


class Setting:
    """The float model and images that all arms share."""

    def __init__(self, *, hard: bool, limit: int) -> None:
        source = float_model.load(None)
        self.model = build(source.model) if hard else source.model
        self.canonical = convert.from_keras(self.model)
        calibration = data.load("fashion_mnist", "calibration")
        prepare = source.preprocessing
        self.table = cached(
            self.canonical, calibration, prepare=prepare, method="minmax", word="fashion_mnist"
        )
        images = data.load("fashion_mnist", "train").head(limit)
        test = data.load("fashion_mnist", "test")
        self.labels = test.labels
        self.values = prepare.apply(test.images)
        self.training = {
            "images": images.images,
            "labels": images.labels,
            "prepare": prepare,
            "towers": environment.cores(),
        }

    def top1(self, answers: Any) -> float:
        return 100 * float((answers.argmax(1) == self.labels).mean())

    def post_training(self, bits: int) -> float:
        """Top-1 of plain post-training rounding to nearest."""
        from edgekit.graph.flatbuffer import Graph

        graph = Graph(self.canonical)
        profile = profiles.profile(profiles.DEFAULT)
        given = activations(graph, self.table.ranges, profile)
        layers = reconstruct.nearest(graph, given, pair_bound=True, bits=bits)
        for layer in graph.layers:
            reconstruct.put(graph, layer, layers[layer.output])
        file = tflite_integers.write(graph.serialize(), reconstruct.stored(given, layers))
        return self.top1(outputs_of(file, "tflite", self.values))


def recipe_of(arm: str, base: QatRecipe) -> QatRecipe:
    """The hyper-parameters of an arm."""
    recipe = replace(base, distill=0.0, frozen=0.0)
    if arm == "(learned ranges)":
        recipe = replace(recipe, ranges="learned")
    if arm in ("+ frozen end", "+ distillation"):
        recipe = replace(recipe, frozen=base.frozen)
    if arm == "+ distillation":
        recipe = replace(recipe, distill=base.distill)
    return recipe


def main() -> None:
    """Run the arms that are missing; print the table."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--hard-case", action="store_true", help="benchmarks/hard_case.py's model")
    options.add_argument("--weight-bits", type=int, default=8)
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--epochs", type=int, default=1)
    options.add_argument("--limit", type=int, default=30000, help="training images")
    options.add_argument("--learning-rate", type=float, default=QatRecipe().learning_rate)
    options.add_argument("--log", type=Path, help="keeps results, a line an arm and seed")
    options.add_argument("--work", type=Path, default=Path("build/qat-ablation"))
    chosen = options.parse_args()
    console = Console(stderr=True, highlight=False)
    configure_threads(environment.cores())
    setting = Setting(hard=chosen.hard_case, limit=chosen.limit)
    shared = {
        "model": "hard case" if chosen.hard_case else "shipped",
        "weight_bits": chosen.weight_bits,
        "epochs": chosen.epochs,
        "images": chosen.limit,
        "learning_rate": chosen.learning_rate,
    }
    reference = predict(setting.model, setting.values)
    known = {"float32": setting.top1(reference), "ptq": setting.post_training(chosen.weight_bits)}
    console.print(
        f"{shared['model']}: float {known['float32']:.2f} %, post-training int8 (nearest, "
        f"{chosen.weight_bits}-bit weights) {known['ptq']:.2f} %"
    )
    rows: list[dict[str, Any]] = []
    if chosen.log is not None and chosen.log.is_file():
        found = [json.loads(line) for line in chosen.log.read_text().splitlines()]
        rows = [row for row in found if all(row[key] == shared[key] for key in shared)]
    arms = ARMS if chosen.weight_bits == 8 else ARMS[1:]  # tfmot's defaults are 8-bit
    for seed in range(chosen.seeds):
        for arm in arms:
            if any(row["arm"] == arm and row["seed"] == seed for row in rows):
                continue
            base = QatRecipe(
                epochs=chosen.epochs,
                learning_rate=chosen.learning_rate,
                weight_bits=chosen.weight_bits,
                seed=seed,
            )
            recipe = recipe_of(arm, base)
            started = time.perf_counter()
            folder = chosen.work / f"{time.time_ns()}"
            if arm == ARMS[0]:
                trained, deployed = tfmot_defaults(setting, recipe, folder)
            else:
                trained, deployed = edgekit_arm(setting, recipe, folder, arm)
            row = shared | {
                "arm": arm,
                "seed": seed,
                "trained": setting.top1(trained),
                "deployed": setting.top1(deployed),
                "agreement": 100 * float((trained.argmax(1) == deployed.argmax(1)).mean()),
                "as_float": 100 * float((deployed.argmax(1) == reference.argmax(1)).mean()),
                "seconds": time.perf_counter() - started,
            }
            rows.append(row)
            console.print(
                f"seed {seed}  {arm}: {row['trained']:.2f} trained, "
                f"{row['deployed']:.2f} deployed, {row['agreement']:.2f} % agree"
            )
            if chosen.log is not None:
                with chosen.log.open("a") as stream:
                    stream.write(json.dumps(row) + "\n")
    show(console, shared, rows, arms, known)
    print(json.dumps({"shared": shared, "known": known, "rows": rows}))


def show(
    console: Console,
    shared: dict[str, Any],
    rows: list[dict[str, Any]],
    arms: tuple[str, ...],
    known: dict[str, float],
) -> None:
    """Mean and range over the seeds."""
    table = Table(
        title=f"{shared['model']}, {shared['weight_bits']}-bit weights, "
        f"{shared['epochs']} x {shared['images']} images"
    )
    table.add_column("arm")
    for name in ("as trained %", "int8 TFLite %", "same answers %", "seconds"):
        table.add_column(name, justify="right")
    table.add_row("float32", f"{known['float32']:.2f}", "", "", "")
    table.add_row("post-training, nearest", "", f"{known['ptq']:.2f}", "", "")
    for arm in arms:
        own = [row for row in rows if row["arm"] == arm]
        if not own:
            continue
        cells = []
        for key in ("trained", "deployed", "agreement"):
            values = [row[key] for row in own]
            spread = (max(values) - min(values)) / 2
            cells.append(f"{np.mean(values):.2f} ± {spread:.2f}")
        seconds = np.mean([row["seconds"] for row in own])
        table.add_row(arm, *cells, f"{seconds:.0f}")
    console.print(table)
    sys.stderr.flush()


if __name__ == "__main__":
    main()
