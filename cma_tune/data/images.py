"""Images to tensors: the training augmentation whose noise depends on (seed, epoch, image) alone."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from PIL.Image import Image
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset
from torchvision import transforms

from cma_tune.data.dataset import ImageSource
from cma_tune.data.splits import Item

Transform = Callable[[Image], Tensor]


@dataclass(frozen=True)
class Augmentation:
    """The reference's training transform: a random resized crop and a flip, bicubic.

    Attributes:
        scale: smallest and largest share of the image's area that is cut out.
        flip: probability of a horizontal flip.
    """

    scale: tuple[float, float] = (0.08, 1.0)
    flip: float = 0.5


def generator_seed(*parts: object) -> int:
    """A seed for torch's generators out of numbers and texts, the same on every machine."""
    # File names on disk need not be valid UTF-8.
    text = "/".join(str(part) for part in parts).encode("utf-8", "surrogateescape")
    return int.from_bytes(hashlib.sha256(text).digest()[:7], "little")


@contextmanager
def noise_from(seed: int, epoch: int, key: str) -> Iterator[None]:
    """Let torch's CPU generator run from (seed, epoch, key) inside, and go on as before outside.

    So the noise of an image depends on neither workers nor processes nor the order of images. A transform has
    to draw from this generator alone, as torchvision's do.
    """
    before = torch.get_rng_state()
    torch.default_generator.manual_seed(generator_seed(seed, epoch, key))
    try:
        yield
    finally:
        torch.set_rng_state(before)


def train_transform(
    size: tuple[int, int], mean: Sequence[float], std: Sequence[float], augmentation: Augmentation
) -> Transform:
    """RandomResizedCrop, flip and normalisation for an image tower of this input `size` (height, width)."""
    transform: Transform = transforms.Compose(
        [
            transforms.RandomResizedCrop(
                size, scale=augmentation.scale, interpolation=transforms.InterpolationMode.BICUBIC
            ),
            transforms.RandomHorizontalFlip(augmentation.flip),
            transforms.ToTensor(),
            transforms.Normalize(mean, std),
        ]
    )
    return transform


class ItemImages(TorchDataset[tuple[Tensor, int, int]]):
    """Items as tensors: ``[i] → (image [3, H, W], label, i)``; `epoch` None means no noise is drawn."""

    def __init__(
        self,
        items: Sequence[Item],
        images: ImageSource,
        transform: Transform,
        seed: int = 0,
        epoch: int | None = None,
    ) -> None:
        self.items = items
        self.images = images
        self.transform = transform
        self.seed = seed
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[Tensor, int, int]:
        item = self.items[index]
        image = self.images.load(item.key)
        if self.epoch is None:
            return self.transform(image), item.label, index
        with noise_from(self.seed, self.epoch, item.key):
            return self.transform(image), item.label, index
