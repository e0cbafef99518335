"""Fine-tuning on a folder of about 2,000 pictures: minutes, and accuracy from a trained model
against training from scratch with as many passes.

    python benchmarks/finetune.py [--images 2000] [--folder DIR]

Makes two folders of 96-pixel JPEGs: Fashion-MNIST pictures, enlarged, coloured and pasted
somewhere on smooth noise, five classes each. A MobileNetV2 0.35 is trained on the first five
classes, then fine-tuned on the others by the recipe ``finetune`` with
``python -m edgekit.train --from``; the same command without ``--from`` trains from scratch, with as
many passes as both phases have. Both hold the same pictures out. Prints a line a run; the last line
is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from edgekit import data
from edgekit.training import recipes

SIZE = 96
FIRST = (0, 2, 4, 5, 8)


def pasted(pixels: np.ndarray, random: np.random.Generator) -> Image.Image:
    """One 28 x 28 picture as it could lie on a photo: uint8 ``[96, 96, 3]``."""
    coarse = random.integers(0, 200, (6, 6, 3), dtype=np.uint8)
    below = Image.fromarray(coarse).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    side = int(random.integers(48, 84))
    shape = Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC)
    colour = random.uniform(0.3, 1.0, 3)
    painted = (np.asarray(shape)[..., None] * colour).astype(np.uint8)
    mask = shape.point(lambda value: 255 if value > 24 else 0)
    place = tuple(int(each) for each in random.integers(0, SIZE - side, 2))
    below.paste(Image.fromarray(painted), place, mask)
    noise = random.normal(0, 8, (SIZE, SIZE, 3))
    return Image.fromarray(np.clip(np.asarray(below) + noise, 0, 255).astype(np.uint8))


def folder(root: Path, classes: tuple[int, ...], count: int, seed: int) -> Path:
    """``root/CLASS/N.jpg``, as many of each class."""
    images = data.load("fashion_mnist", "train")
    assert images.labels is not None
    random = np.random.default_rng(seed)
    for label in classes:
        here = root / images.class_names[label].replace("/", "_")
        here.mkdir(parents=True)
        for i in np.flatnonzero(images.labels == label)[: count // len(classes)]:
            pasted(images.images[i][..., 0], random).save(here / f"{i}.jpg", quality=90)
    return root


def run(out: Path, *arguments: object) -> dict[str, Any]:
    """One training: its manifest's record, and minutes."""
    command = [sys.executable, "-m", "edgekit.train", "--out", str(out), *map(str, arguments)]
    started = time.perf_counter()
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    minutes = (time.perf_counter() - started) / 60
    record = json.loads(done.stdout.strip().splitlines()[-1])["training"]
    found = {"minutes": round(minutes, 2), "validation_top1": record["validation_top1"]}
    print(f"{out.name}: {found}", flush=True)
    return found


def main() -> None:
    """Make the folders, train three times."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--images", type=int, default=2000)
    options.add_argument("--first", type=int, default=10_000, help="images of the first training")
    options.add_argument("--first-epochs", type=int, default=12)
    options.add_argument("--folder", type=Path, help="keep what is made here")
    chosen = options.parse_args()
    recipe = recipes.load(recipes.FINE_TUNING).recipe
    with tempfile.TemporaryDirectory() as temporary:
        root = chosen.folder or Path(temporary)
        others = tuple(i for i in range(10) if i not in FIRST)
        if not (root / "own").exists():
            folder(root / "first", FIRST, chosen.first, 0)
            folder(root / "own", others, chosen.images, 1)
        net = ("--width", 0.35, "--lowered-strides", 0, "--preprocessing", "symmetric")
        plain = ("--size", SIZE, "--shift", 0, "--erase", 0, "--crop", 0.5, "--validation", 0.2)
        own = ("--data", f"folder:{root / 'own'}", "--size", SIZE)
        document: dict[str, Any] = {}
        if not (root / "base").exists():
            document["first"] = run(
                root / "base",
                *("--data", f"folder:{root / 'first'}", *net, *plain),
                *("--epochs", chosen.first_epochs),
            )
        document["fine-tuned"] = run(root / "tuned", "--from", root / "base", *own, "--force")
        document["from scratch"] = run(
            root / "scratch",
            *("--data", f"folder:{root / 'own'}", *net, *plain, "--force"),
            *("--epochs", recipe.head_epochs + recipe.epochs, "--batch", recipe.batch),
            *("--learning-rate", 0.1, "--ema", recipe.ema),
        )
        print(json.dumps(document))


if __name__ == "__main__":
    main()
