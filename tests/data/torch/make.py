"""Write the ONNX files of this folder with PyTorch, and what PyTorch itself answers.

``python tests/data/torch/make.py`` in an environment with torch, onnx and onnxscript; edgekit needs
none of it. Committed files: torch 2.13.0, onnx 1.23.2, onnxscript 0.7.2. Weights are random from a
fixed seed, batch normalisation has the statistics of the first 24 samples in ``answers.npz``, whose
arrays are ``INPUT`` and, of the other 12 samples, ``FILE.OUTPUT``. Stack traces, which name folders
of the machine, are taken out of the files; nothing else is changed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import nn
from torch.nn import functional

HERE = Path(__file__).resolve().parent
COUNT, SETTLING = 36, 24


class Gate(nn.Module):
    """Squeeze and excitation as MobileNetV3 has it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(channels, 8, 1), nn.Conv2d(8, channels, 1)

    def forward(self, x: Any) -> Any:
        y = functional.relu(self.down(functional.adaptive_avg_pool2d(x, 1)))
        return x * functional.hardsigmoid(self.up(y))


class Mobile(nn.Module):
    """Blocks of MobileNetV3, zero padding as an operator of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 12, 3, 2, bias=False), nn.BatchNorm2d(12), nn.Hardswish()
        )
        self.depth = nn.Sequential(
            nn.Conv2d(12, 12, 3, padding=1, groups=12, bias=False), nn.BatchNorm2d(12), nn.ReLU()
        )
        self.gate, self.point = Gate(12), nn.Conv2d(12, 12, 1)
        self.head = nn.Linear(12, 10)

    def forward(self, image: Any) -> Any:
        x = self.stem(functional.pad(image, (0, 1, 0, 1)))
        x = x + self.point(self.gate(self.depth(x)))
        return self.head(functional.hardswish(x).mean((2, 3)))


class Shortcut(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(12, 24, 1, bias=False),
            nn.BatchNorm2d(24),
            nn.ReLU6(),
            nn.Conv2d(24, 24, 3, padding=1, groups=24, bias=False),
            nn.BatchNorm2d(24),
            nn.ReLU6(),
            nn.Conv2d(24, 12, 1, bias=False),
            nn.BatchNorm2d(12),
        )

    def forward(self, x: Any) -> Any:
        return x + self.layers(x)


def unfolded() -> nn.Module:
    """A block of MobileNetV2."""
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, 2, 1, bias=False),
        nn.BatchNorm2d(12),
        nn.ReLU6(),
        Shortcut(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Linear(12 * 16, 10),
    )


class Attention(nn.Module):
    """A vision transformer of one block."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, 4)
        self.label = nn.Parameter(torch.randn(1, 1, width))
        self.places = nn.Parameter(torch.randn(1, 17, width) * 0.2)
        self.before, self.behind = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, 4, batch_first=True)
        self.dense = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )
        self.head = nn.Linear(width, 10)

    def forward(self, image: Any) -> Any:
        x = self.patches(image).flatten(2).transpose(1, 2)
        x = torch.cat([self.label.expand(x.shape[0], -1, -1), x], 1) + self.places
        y = self.before(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return self.head((x + self.dense(self.behind(x)))[:, 0])


class Segments(nn.Module):
    """A U-Net: a score for each pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.deep = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 12, 3, padding=1)
        self.up = nn.ConvTranspose2d(12, 8, 2, 2)
        self.wide = nn.Upsample(scale_factor=2, mode="bilinear")
        self.map = nn.Conv2d(28, 2, 1)

    def forward(self, image: Any) -> Any:
        a = functional.leaky_relu(self.down(image), 0.1)
        b = functional.relu(self.deep(functional.max_pool2d(a, 2)))
        return self.map(torch.cat([a, self.up(b), self.wide(b)], 1))


class Words(nn.Module):
    """Tokens through an embedding and a GRU."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.steps = nn.Embedding(50, 12), nn.GRU(12, 12, batch_first=True)
        self.topic = nn.Linear(12, 4)

    def forward(self, tokens: Any) -> Any:
        return self.topic(self.steps(self.table(tokens))[0][:, -1])


class Both(nn.Module):
    """A picture and numbers in, classes and a number out."""

    def __init__(self) -> None:
        super().__init__()
        self.picture = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU())
        self.numbers, self.kind, self.price = nn.Linear(6, 8), nn.Linear(16, 5), nn.Linear(16, 1)

    def forward(self, image: Any, facts: Any) -> Any:
        x = functional.adaptive_avg_pool2d(self.picture(image), 1).flatten(1)
        x = torch.cat([x, functional.relu(self.numbers(facts))], 1)
        return self.kind(x), self.price(x)


def sound() -> nn.Module:
    """One-dimensional convolutions."""
    return nn.Sequential(
        nn.Conv1d(1, 8, 9, stride=2, padding=4, bias=False),
        nn.BatchNorm1d(8),
        nn.ReLU(),
        nn.Conv1d(8, 12, 3),
        nn.ReLU(),
        nn.MaxPool1d(2),
        nn.AdaptiveAvgPool1d(1),
        nn.Flatten(),
        nn.Linear(12, 6),
    )


def inputs() -> dict[str, np.ndarray]:
    """Pictures of smooth colours, tones, numbers and tokens."""
    random = np.random.default_rng(0)
    coarse = random.integers(0, 256, (COUNT, 3, 4, 4)).repeat(4, 2).repeat(4, 3)
    noise = random.integers(-8, 9, (COUNT, 3, 16, 16))
    tones = np.sin(random.uniform(0.05, 1, (COUNT, 1, 1)) * np.arange(128))
    return {
        "image": np.clip(coarse + noise, 0, 255).astype(np.uint8),
        "tone": (np.rint(tones * 100) / 128).astype(np.float32),
        "facts": (random.integers(-99, 100, (COUNT, 6)) / 64).astype(np.float32),
        "tokens": random.integers(0, 50, (COUNT, 8)),
    }


def settled(make: Any, given: tuple[Any, ...]) -> nn.Module:
    """A net whose batch normalisation has the statistics of its inputs."""
    torch.manual_seed(2)
    model = make()
    for layer in model.modules():
        if isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d)):
            layer.momentum = None
            nn.init.uniform_(layer.weight, 0.6, 1.4)
            nn.init.normal_(layer.bias, 0, 0.2)
    with torch.no_grad():
        model.train()(*given)
    return model.eval()


def main() -> None:
    arrays = inputs()
    answers: dict[str, np.ndarray] = dict(arrays)
    preserve, training = torch.onnx.TrainingMode.PRESERVE, torch.onnx.TrainingMode.TRAINING
    batch = torch.export.Dim("batch")
    cases: list[tuple[str, Any, list[str], list[str], dict[str, Any]]] = [
        ("mobile", Mobile, ["image"], ["scores"], {"dynamo": True}),
        ("attention", Attention, ["image"], ["scores"], {"dynamo": True, "external_data": False}),
        ("segments", Segments, ["image"], ["map"], {"dynamo": True, "external_data": False}),
        ("unfolded", unfolded, ["image"], ["scores"], {"opset_version": 11, "training": preserve}),
        ("both", Both, ["image", "facts"], ["kind", "price"], {"opset_version": 13}),
        ("words", Words, ["tokens"], ["topic"], {"opset_version": 17}),
        ("sound", sound, ["tone"], ["word"], {"opset_version": 17}),
        ("training", unfolded, ["image"], ["scores"], {"opset_version": 17, "training": training}),
    ]
    for name, make, ins, outs, options in cases:
        given = tuple(
            torch.tensor(
                arrays[key].astype(np.float32) / 127.5 - 1 if key == "image" else arrays[key]
            )
            for key in ins
        )
        model = settled(make, tuple(each[:SETTLING] for each in given))
        with torch.no_grad():
            found = model(*(each[SETTLING:] for each in given))
        if name != "training":
            each = found if isinstance(found, tuple) else (found,)
            answers.update({f"{name}.{out}": v.numpy() for out, v in zip(outs, each, strict=True)})
        if options.get("dynamo"):
            free = {} if name == "segments" else {"dynamic_shapes": ({0: batch},)}
        else:
            axes = {} if name == "both" else {key: {0: "batch"} for key in [*ins, *outs]}
            free = {"dynamo": False, "dynamic_axes": axes}
            free["do_constant_folding"] = "training" not in options
        path = HERE / f"{name}.onnx"
        samples = tuple(each[: 2 if options.get("dynamo") and free else 1] for each in given)
        torch.onnx.export(
            model,
            samples,
            str(path),
            input_names=ins,
            output_names=outs,
            **{**options, **free},
        )
        written = onnx.load(path, load_external_data=False)
        for node in written.graph.node:
            del node.metadata_props[:]
        path.write_bytes(written.SerializeToString())
    np.savez_compressed(HERE / "answers.npz", **answers)


if __name__ == "__main__":
    main()
