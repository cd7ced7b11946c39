"""Weak and strong augmentation of a batch: tensors at once, against Pillow image by image in 2 workers.

python benchmarks/speed/augmentation.py

Both sides start from uint8 images of CIFAR's size, make a weak and a strong view of each, and end with
normalised float32 batches. The Pillow side is what the references' data sets do in a worker process, written
anew; it is checked to give the same pixels from the same noise. Its loader runs ahead as fast as its workers
allow, with nothing else to do on the machine: in a training run they would share the cores with the training.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageEnhance, ImageOps
from speed_options import leave, parse, timing_options
from speed_tools import seconds, synchronize
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from cma_tune.companion.augmentation import OPS, Augment, normalize, uniforms

MEAN, STD = (125.3, 123.0, 113.9), (63.0, 62.1, 66.7)
SIDE, PADDING, WORKERS = 32, 4, 2


def affine(image: Image.Image, *matrix: float) -> Image.Image:
    """Nearest pixels, black outside."""
    return image.transform(image.size, Image.Transform.AFFINE, matrix)


PILLOW: dict[str, Callable[[Image.Image, float], Image.Image]] = {
    "autocontrast": lambda image, value: ImageOps.autocontrast(image),
    "brightness": lambda image, value: ImageEnhance.Brightness(image).enhance(value),
    "color": lambda image, value: ImageEnhance.Color(image).enhance(value),
    "contrast": lambda image, value: ImageEnhance.Contrast(image).enhance(value),
    "equalize": lambda image, value: ImageOps.equalize(image),
    "identity": lambda image, value: image,
    "posterize": lambda image, value: ImageOps.posterize(image, int(value)),
    "rotate": lambda image, value: image.rotate(value),
    "sharpness": lambda image, value: ImageEnhance.Sharpness(image).enhance(value),
    "shear_x": lambda image, value: affine(image, 1, value, 0, 0, 1, 0),
    "shear_y": lambda image, value: affine(image, 1, 0, 0, value, 1, 0),
    "solarize": lambda image, value: ImageOps.solarize(image, value),  # type: ignore[arg-type]
    "translate_x": lambda image, value: affine(image, 1, 0, value * image.width, 0, 1, 0),
    "translate_y": lambda image, value: affine(image, 1, 0, 0, 0, 1, value * image.height),
}
NAMES = list(OPS)


def weak(image: Image.Image, noise: Sequence[float]) -> np.ndarray:
    """Flip and crop; pixels ``[H, W, 3]``."""
    if noise[0] < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    padded = np.pad(np.asarray(image), ((PADDING, PADDING), (PADDING, PADDING), (0, 0)), mode="reflect")
    top, left = (int(place * (2 * PADDING + 1)) for place in noise[1:3])
    return padded[top : top + SIDE, left : left + SIDE]


def strong(image: Image.Image, noise: Sequence[float]) -> np.ndarray:
    """Three operations, cutout, then the weak ones; pixels ``[H, W, 3]``."""
    for turn in range(3):
        name = NAMES[int(noise[3 + 2 * turn] * len(NAMES))]
        op = OPS[name]
        image = PILLOW[name](image, op.low + (op.high - op.low) * noise[4 + 2 * turn])
    image = image.copy()  # the identity's result is the data set's own
    side = noise[9] * 0.5 * SIDE
    left, top = (int(max(0.0, place * SIDE - side / 2)) for place in noise[10:12])
    box = (left, top, min(SIDE, left + side), min(SIDE, top + side))
    ImageDraw.Draw(image).rectangle(box, (125, 123, 114))
    return weak(image, noise)


class ImageByImage(Dataset[tuple[Tensor, Tensor]]):
    """The two views of an image, made by Pillow and normalised."""

    def __init__(self, images: Tensor, length: int) -> None:
        self.images = images.permute(0, 2, 3, 1).contiguous().numpy()
        self.length = length
        self.mean = torch.tensor(MEAN)[:, None, None]
        self.std = torch.tensor(STD)[:, None, None]

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image = Image.fromarray(self.images[index % len(self.images)])
        views = (make(image, [random.random() for _ in range(12)]) for make in (weak, strong))
        first, second = (
            (torch.from_numpy(view.copy()).permute(2, 0, 1).float() - self.mean) / self.std for view in views
        )
        return first, second


def check(images: Tensor) -> None:
    """Both sides give the same pixels from the same noise."""
    slots = torch.arange(len(images))
    pictures = [Image.fromarray(image) for image in images.permute(0, 2, 3, 1).numpy()]
    for view, (strength, make) in enumerate((("weak", weak), ("strong", strong))):
        ours = Augment(strength, 0)(images, 0, slots, view)  # type: ignore[arg-type]
        noise = uniforms(0, 0, slots, view, 12).tolist()
        theirs = np.stack([make(picture, row) for picture, row in zip(pictures, noise, strict=True)])
        assert torch.equal(ours, torch.from_numpy(theirs).permute(0, 3, 1, 2)), strength


def loaded(images: Tensor, batch: int, batches: int) -> float:
    """Seconds a batch out of a loader with workers, once it is running.

    They have begun with later batches by the time the first is here: a few of them are not measured.
    """
    loader = DataLoader(ImageByImage(images, batch * (batches + 1)), batch, num_workers=WORKERS)
    batch_of: Iterator[list[Tensor]] = iter(loader)
    next(batch_of)
    start = time.perf_counter()
    for _ in batch_of:
        pass
    return (time.perf_counter() - start) / batches


def at_once(options: argparse.Namespace, images: Tensor, threads: int) -> float:
    """Seconds a batch in the main process."""
    weakly, strongly = Augment("weak", 0), Augment("strong", 0)
    slots = torch.arange(len(images), device=images.device)
    steps = iter(range(10**9))

    def step() -> None:
        number = next(steps)
        normalize(weakly(images, number, slots, 0), MEAN, STD)
        normalize(strongly(images, number, slots, 1), MEAN, STD)

    torch.set_num_threads(threads)
    step()
    synchronize(options.device)
    return seconds(step, options.device, least=options.least)


def main() -> None:
    """One line for each number of threads."""
    parser = timing_options(__doc__.splitlines()[0] if __doc__ else "", repeats=5)
    parser.add_argument("--batch", type=int, default=448)
    parser.add_argument("--batches", type=int, default=20, help="of the loader, a measurement")
    parser.add_argument("--quick", action="store_true", help="a small batch, measured once: does it run?")
    options = parse(parser)
    if options.quick:
        options.batch, options.batches, options.repeats, options.least = 16, 2, 1, 0.05
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (options.batch, 3, SIDE, SIDE), dtype=torch.uint8, generator=generator)
    check(images)
    there = images.to(options.device)
    threads = sorted({1, int(options.threads)})
    pillow: list[float] = []
    ours: dict[int, list[float]] = {count: [] for count in threads}
    for _ in range(options.repeats):
        pillow.append(loaded(images, options.batch, options.batches))
        for count in threads:
            ours[count].append(at_once(options, there, count))
    rows: list[dict[str, object]] = []
    for count in threads:
        ratios = [theirs / mine for theirs, mine in zip(pillow, ours[count], strict=True)]
        rows.append(
            {
                "batch": options.batch,
                "threads": count,
                f"Pillow, {WORKERS} workers, ms": 1e3 * statistics.median(pillow),
                "at once ms": 1e3 * statistics.median(ours[count]),
                "times faster": statistics.median(ratios),
                "least": min(ratios),
                "most": max(ratios),
            }
        )
    leave("augmentation", options, rows)


if __name__ == "__main__":
    main()
