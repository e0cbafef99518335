"""Train a small classifier of Fashion-MNIST with PyTorch, quantize it and write it as ONNX.

``EDGEKIT_DATA=FOLDER python tests/data/pt2e/make.py`` in an environment with torch, torchao, onnx
and onnxscript, where FOLDER holds the four files of Fashion-MNIST; edgekit needs none of it.
Committed files: torch 2.15.0, torchao 0.18.0, onnx 1.23.2, onnxscript 0.7.2.

- ``xnnpack.onnx``, ``inductor.onnx``: pt2e with the XNNPACK and the X86Inductor quantizer, by the
  newer exporter; ``fx.onnx``: FX graph mode, by the older one. All of the trained classifier.
- ``gates.onnx``, ``rows.onnx``: pt2e with the XNNPACK quantizer, of two nets that are not trained.
- ``outputs.npz``: pictures, and of each file but ``inductor.onnx`` what PyTorch itself computes.

Stack traces, which name folders of the machine, are taken out of the files; nothing else is
changed.
"""

from __future__ import annotations

import gzip
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import nn
from torch.ao.quantization import QConfigMapping, observer, qconfig, quantize_fx
from torch.nn import functional
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as inductor
from torchao.testing.pt2e import _xnnpack_quantizer as xnnpack

HERE = Path(__file__).resolve().parent
STEPS, CALIBRATION, TEST = 1500, 512, 24


def images(name: str) -> torch.Tensor:
    content = gzip.decompress((Path(os.environ["EDGEKIT_DATA"]) / name).read_bytes())
    return torch.tensor(np.frombuffer(content, np.uint8, offset=16).reshape(-1, 1, 28, 28).copy())


def labels(name: str) -> torch.Tensor:
    content = gzip.decompress((Path(os.environ["EDGEKIT_DATA"]) / name).read_bytes())
    return torch.tensor(np.frombuffer(content, np.uint8, offset=8).astype(np.int64))


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()

        def block(inputs: int, outputs: int, size: int, *more: nn.Module, **options: Any) -> Any:
            conv = nn.Conv2d(inputs, outputs, size, padding=size // 2, bias=False, **options)
            return nn.Sequential(conv, nn.BatchNorm2d(outputs), *more)

        self.stem = block(1, 16, 3, nn.ReLU(), stride=2)
        self.depth = block(16, 16, 3, nn.ReLU6(), groups=16)
        self.point, self.pool = block(16, 16, 1), nn.MaxPool2d(2)
        self.deep, self.head = block(16, 32, 3, nn.ReLU()), nn.Linear(32, 10)

    def forward(self, image: Any) -> Any:
        x = self.stem(image)
        x = functional.relu(x + self.point(self.depth(x)))
        x = functional.adaptive_avg_pool2d(self.deep(self.pool(x)), 1)
        return self.head(x.flatten(1))


class Gates(nn.Module):
    """A value that is read as it was and rounded, and one that is rounded to a second scale."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 8, 3, 2, 1), nn.Conv2d(8, 8, 1)
        self.gate, self.head = nn.Conv2d(8, 8, 1), nn.Linear(8, 10)

    def forward(self, image: Any) -> Any:
        x = functional.hardswish(self.first(image))
        x = self.second(x) * torch.sigmoid(self.gate(x.mean((2, 3), keepdim=True)))
        return self.head(functional.max_pool2d(functional.relu(x) - 0.5, 14).flatten(1))


class Rows(nn.Module):
    """Convolutions of one axis, and dense layers of three axes."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv1d(28, 16, 5, 2, 2), nn.Conv1d(16, 16, 3)
        self.wide, self.norm, self.head = nn.Linear(16, 24), nn.LayerNorm(24), nn.Linear(24, 10)

    def forward(self, image: Any) -> Any:
        x = functional.relu(self.second(functional.relu(self.first(image[:, 0]))))
        x = functional.gelu(self.norm(self.wide(x.transpose(1, 2))))
        return self.head(x.mean(1))


def trained(pictures: torch.Tensor, classes: torch.Tensor) -> nn.Module:
    model = Classifier()
    optimizer = torch.optim.AdamW(model.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, STEPS)
    for _ in range(STEPS):
        chosen = torch.randint(0, len(pictures), (128,))
        loss = functional.cross_entropy(model(pictures[chosen] / 255), classes[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


def write(model: Any, name: str, sample: torch.Tensor, **options: Any) -> None:
    path = HERE / f"{name}.onnx"
    names: dict[str, Any] = {"input_names": ["image"], "output_names": ["scores"]}
    torch.onnx.export(model, (sample,), str(path), **names, **options)
    written = onnx.load(path)
    for node in written.graph.node:
        del node.metadata_props[:]
        node.ClearField("doc_string")
    for value in (*written.graph.input, *written.graph.output, *written.graph.value_info):
        del value.metadata_props[:]
    path.write_bytes(written.SerializeToString())
    print(name, path.stat().st_size, "bytes")


def main() -> None:
    torch.manual_seed(3)
    torch.set_num_threads(1)
    pictures, test = images("train-images-idx3-ubyte.gz"), images("t10k-images-idx3-ubyte.gz")
    classes, right = labels("train-labels-idx1-ubyte.gz"), labels("t10k-labels-idx1-ubyte.gz")
    settling, shown = pictures[:CALIBRATION] / 255, test[:TEST] / 255
    classifier = trained(pictures, classes)
    arrays = {"image": test[:TEST].numpy()}

    def keep(name: str, model: Any) -> None:
        with torch.no_grad():
            arrays[name] = model(shown).numpy()
            if name in ("xnnpack", "fx"):
                share = (model(test / 255).argmax(1) == right).float().mean()
                print(name, f"{100 * share:.2f} % right")

    batch = {"dynamic_shapes": ({0: torch.export.Dim("batch")},)}
    config = xnnpack.get_symmetric_quantization_config(is_per_channel=True)
    for name, model, quantizer in (
        ("xnnpack", classifier, xnnpack.XNNPACKQuantizer().set_global(config)),
        ("inductor", classifier, inductor.X86InductorQuantizer().set_global(
            inductor.get_default_x86_inductor_quantization_config())),
        ("gates", Gates().eval(), xnnpack.XNNPACKQuantizer().set_global(config)),
        ("rows", Rows().eval(), xnnpack.XNNPACKQuantizer().set_global(config)),
    ):  # fmt: skip
        prepared = prepare_pt2e(
            torch.export.export(model, (shown[:2],), **batch).module(), quantizer
        )
        with torch.no_grad():
            prepared(settling)
        quantized = convert_pt2e(prepared)
        if name != "inductor":
            keep(name, quantized)
        write(quantized, name, shown[:2], dynamo=True, external_data=False, **batch)

    torch.backends.quantized.engine = "x86"
    how = qconfig.QConfig(
        activation=observer.HistogramObserver.with_args(reduce_range=False),
        weight=observer.per_channel_weight_observer_range_neg_127_to_127,
    )
    prepared = quantize_fx.prepare_fx(classifier, QConfigMapping().set_global(how), (shown[:1],))
    with torch.no_grad():
        prepared(settling)
    quantized = quantize_fx.convert_fx(prepared)
    keep("fx", quantized)
    axes = {"image": {0: "batch"}, "scores": {0: "batch"}}
    write(quantized, "fx", shown[:1], dynamo=False, opset_version=17, dynamic_axes=axes)
    np.savez_compressed(HERE / "outputs.npz", **arrays)


if __name__ == "__main__":
    main()
