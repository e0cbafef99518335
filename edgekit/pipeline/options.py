"""The options of an export, which every file that it writes shares."""

from __future__ import annotations

from dataclasses import dataclass

from edgekit.pipeline import layers
from edgekit.pipeline.layers import Line
from edgekit.pipeline.recipe import RecipeFile
from edgekit.quantization import profiles
from edgekit.quantization.quantize import Correction
from edgekit.records.artifact import LayerPrecision
from edgekit.records.signature import Layout, Shapes
from edgekit.tasks.kind import Task, of_decoding


@dataclass(frozen=True)
class Options:
    """How deployables of a float model are written.

    Attributes:
        calibration: For int8: what :func:`edgekit.data.feeds.open_word` takes, or a table of
            ``python -m edgekit.calibrate``. Default for the shipped model: ``fashion_mnist``.
            For ONNX in float16: images whose activations must not overflow; default random ones.
        dataset: The images of a calibration table, where they are not where the table says.
        method: How a range is taken from the values; default ``minmax``, narrowed where what reads
            the tensor then loses less, or the table's.
        device: A device profile, or ``auto`` for that of this machine's CPU.
        correction: For int8: ``auto`` tries equalization, narrowed ranges, bias correction and
            fitted layers and takes what is best on held-out calibration images; ``none`` rounds to
            nearest.
        strict: Refuse an int8 model in which an operator stays float; no tensor stays float for the
            sake of accuracy.
        leave_float: For int8: layers whose outputs stay float, as
            :func:`edgekit.diagnosis.names.tensors` takes them. What writes or reads such an output
            computes in float. The same as ``float32`` in ``precision_of``.
        precision_of: For int8: (layer, precision), one of
            :data:`edgekit.pipeline.layers.LAYER_PRECISIONS`. They count after the layers of
            ``leave_float``, and those after the recipe's; of several that name a layer the last
            one counts.
        recipe: What :func:`edgekit.pipeline.recipe.load` read; its layers count, and the manifest
            names it. Its other keys count once :meth:`RecipeFile.applied` has taken them over.
        overruled: What the command line took the place of in it, a sentence each.
        allow_dead: Write an int8 file of which an output or a channel is constant where the float
            model's varies.
        allow_poor: Write an int8 file of which less than 10 dB of an output are left.
        preprocessing: For a file: name or JSON file.
        shapes: Sizes of a file's inputs with free axes, by name; under ``""`` of the only one.
        layout: Layout of the TFLite files of an ONNX source: ``keep`` the axes that inputs and
            outputs have in the file, or ``channels-last`` of pictures and of outputs with four
            axes. Default: channels last of pictures that are inputs, outputs as in the file.
        trust: Let code inside of the model's file run.
        task: What the outputs are, where neither the model's outputs nor its manifest say it.
        decoding: How outputs of a detector become boxes, as
            :func:`edgekit.tasks.presets.decoding_for` takes it; the task is detection then.
        command: Recorded in the manifest.
    """

    calibration: str | None = None
    dataset: str | None = None
    method: str | None = None
    device: str = profiles.DEFAULT
    correction: Correction = "auto"
    strict: bool = False
    leave_float: tuple[str, ...] = ()
    precision_of: tuple[tuple[str, LayerPrecision], ...] = ()
    recipe: RecipeFile | None = None
    overruled: tuple[str, ...] = ()
    allow_dead: bool = False
    allow_poor: bool = False
    preprocessing: str | None = None
    shapes: Shapes | None = None
    layout: Layout = ""
    trust: bool = False
    task: Task | None = None
    decoding: str | None = None
    command: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "task", of_decoding(self.task, self.decoding))

    def lines(self) -> list[Line]:
        """The precision of layers, the recipe's first.

        Raises:
            InvalidOptionError: If a precision is none of a layer.
        """
        for name, precision in self.precision_of:
            layers.precision_of(precision, f"--precision-of {name}")
        return [
            *(self.recipe.lines() if self.recipe is not None else ()),
            *(Line(name, "float32", "--leave-float") for name in self.leave_float),
            *(
                Line(name, layer_precision, "--precision-of")
                for name, layer_precision in self.precision_of
            ),
        ]

    def for_int8(self) -> tuple[tuple[str, object], ...]:
        """(option, value) of what only int8 has a use for; None where it was not given."""
        return (
            ("--calibration", self.calibration),
            ("--data", self.dataset),
            ("--method", self.method),
            ("--strict", self.strict or None),
            *((line.option, line.pattern) for line in self.lines()[:1]),
            ("--correction", self.correction if self.correction != "auto" else None),
            ("--allow-dead", self.allow_dead or None),
            ("--allow-poor", self.allow_poor or None),
        )
