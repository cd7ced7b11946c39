"""Pools of images in memory, all of one size."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class Pool:
    """Images ``[N, 3, H, W]``, uint8, and their labels ``[N]``, int64."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Pools:
    """What a source of images holds.

    Attributes:
        train: images that may be labelled.
        val: for choices; empty where the source has none.
        test: the test images.
        class_names: C names, position = label.
        origin: where they came from.
        unlabelled: further images without a label, ``[M, 3, H, W]``, uint8.
        folds: published choices of labelled images, as positions in train.
    """

    train: Pool
    val: Pool
    test: Pool
    class_names: tuple[str, ...]
    origin: str
    unlabelled: Tensor | None = None
    folds: tuple[tuple[int, ...], ...] = ()


def no_images(side: int) -> Pool:
    """A pool without images."""
    return Pool(torch.empty(0, 3, side, side, dtype=torch.uint8), torch.empty(0, dtype=torch.int64))


def pixels_of(pictures: Iterable[Image], count: int, side: int) -> Tensor:
    """`count` RGB pictures as squares of `side` pixels, ``[count, 3, side, side]``, uint8.

    The shorter side is brought to `side`, bicubic, and the square in the middle is kept.
    """
    from PIL.Image import Resampling

    pixels = np.empty((count, side, side, 3), dtype=np.uint8)
    for row, picture in enumerate(pictures):
        if picture.size != (side, side):
            scale = side / min(picture.size)
            width, height = (max(side, round(length * scale)) for length in picture.size)
            picture = picture.resize((width, height), Resampling.BICUBIC)
            left, top = (width - side) // 2, (height - side) // 2
            picture = picture.crop((left, top, left + side, top + side))
        pixels[row] = np.asarray(picture)
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()


def resized(images: Tensor, side: int) -> Tensor:
    """Images ``[N, 3, H, W]``, uint8, as `pixels_of` sizes them; as they are where that is their size."""
    from PIL.Image import fromarray

    if images.shape[-2:] == (side, side):
        return images
    pictures = (fromarray(image.permute(1, 2, 0).contiguous().numpy()) for image in images)
    return pixels_of(pictures, len(images), side)
