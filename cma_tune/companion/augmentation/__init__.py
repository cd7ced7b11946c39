"""Weak and strong augmentation of whole batches, with noise that depends on (seed, step, slot) alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from cma_tune.companion.augmentation.noise import uniforms
from cma_tune.companion.augmentation.ops import OPS
from cma_tune.errors import UserError

__all__ = ["OPS", "Augment", "cutout", "flip_and_crop", "normalize", "rand_augment", "uniforms"]

STRENGTHS = ("none", "weak", "strong")

CUTOUT = (125, 123, 114)
"""What a cut-out square is filled with."""


def rand_augment(images: Tensor, noise: Tensor) -> Tensor:
    """Three operations an image, with replacement, each with a value uniform in its range.

    Source: Cubuk et al. (2020), in the form that FixMatch's reference and those after it use.

    Args:
        images: ``[B, 3, H, W]``, uint8.
        noise: ``[B, 6]``, uniform: operation and value of each round.
    """
    if not len(images):
        return images
    ops = list(OPS.values())
    chosen = (noise[:, ::2] * len(ops)).long()
    # All images of one operation at once. How many there are decides shapes, so a GPU has to be waited for:
    # once, for all rounds.
    all_counts = torch.stack([torch.bincount(column, minlength=len(ops)) for column in chosen.T]).tolist()
    shape, rows = images.shape[1:], images.flatten(1)  # whole images are moved fastest as rows
    back = torch.arange(len(images), device=images.device)
    for turn, counts in enumerate(all_counts):
        order = chosen[:, turn].argsort(stable=True)
        groups = rows.index_select(0, back[order]).unflatten(1, shape).split(counts)
        draws = noise[:, 2 * turn + 1].index_select(0, order).split(counts)
        parts = [
            op.apply(group, op.low + (op.high - op.low) * draw)
            for op, group, draw in zip(ops, groups, draws, strict=True)
            if len(group)
        ]
        rows, back = torch.cat(parts).flatten(1), order.argsort()
    return rows.index_select(0, back).unflatten(1, shape)


def cutout(images: Tensor, noise: Tensor) -> Tensor:
    """Fill a square with one colour: side uniform up to half the width, middle uniform in the image.

    Args:
        images: ``[B, 3, H, W]``, uint8.
        noise: ``[B, 3]``, uniform: side, x and y of the middle.
    """
    height, width = images.shape[-2:]
    side = noise[:, 0] * 0.5 * width
    left = (noise[:, 1] * width - side / 2).clamp(min=0).floor()
    top = (noise[:, 2] * height - side / 2).clamp(min=0).floor()
    # The reference draws with Pillow, whose rectangles hold their last row and column too.
    right, bottom = (left + side).clamp(max=width).floor(), (top + side).clamp(max=height).floor()
    x = torch.arange(width, device=images.device)[None, None, :]
    y = torch.arange(height, device=images.device)[None, :, None]
    across = ((x >= left[:, None, None]) & (x <= right[:, None, None])).to(torch.uint8)
    down = ((y >= top[:, None, None]) & (y <= bottom[:, None, None])).to(torch.uint8)
    hole = (across.neg() & down.neg())[:, None]  # 255 inside, all bits
    fill = torch.tensor(CUTOUT, dtype=torch.uint8, device=images.device)[:, None, None]
    return (images & ~hole) | (hole & fill)


def flip_and_crop(images: Tensor, noise: Tensor, padding: int, flip: float = 0.5) -> Tensor:
    """Mirror some images, then cut a window of their size out of the images padded by their reflections.

    Args:
        images: ``[B, 3, H, W]``, uint8.
        noise: ``[B, 3]``, uniform: whether to mirror, place down and across.
        padding: pixels on every side, less than a side.
        flip: probability of mirroring left and right.
    """
    height, width = images.shape[-2:]
    starts = (noise[:, 1:] * (2 * padding + 1)).long() - padding

    def places(start: Tensor, length: int) -> Tensor:
        # Reflection as an index: … 2 1 | 0 1 2 … n−1 | n−2 …
        places = (start[:, None] + torch.arange(length, device=images.device)).abs()
        return torch.where(places >= length, 2 * (length - 1) - places, places)

    rows, columns = places(starts[:, 0], height), places(starts[:, 1], width)
    columns = torch.where((noise[:, 0] < flip)[:, None], width - 1 - columns, columns)
    flat = (rows[:, :, None] * width + columns[:, None, :]).flatten(1)[:, None]
    return images.flatten(2).gather(2, flat.expand(-1, images.shape[1], -1)).reshape(images.shape)


class Augment:
    """Augments batches; the noise of an image depends on (seed, step, slot, view) alone.

    Args:
        strength: weak flips and crops; strong is RandAugment, cutout, then weak; none does nothing.
        seed: of the noise.
        padding: pixels around an image that is cropped, at most one less than its shorter side (more is cut
            down to that); by default 4, and 12 for images of 96 pixels and more.
        flip: probability of a horizontal flip.

    Raises:
        UserError: another strength, negative padding, or no probability.
    """

    def __init__(
        self,
        strength: Literal["none", "weak", "strong"],
        seed: int,
        padding: int | None = None,
        flip: float = 0.5,
    ) -> None:
        if strength not in STRENGTHS:
            raise UserError(f"Expected an augmentation out of {', '.join(STRENGTHS)}, got '{strength}'.")
        if padding is not None and padding < 0:
            raise UserError(f"Expected padding of 0 pixels or more, got {padding}.")
        if not 0 <= flip <= 1:
            raise UserError(f"Expected a probability of flips from 0 to 1, got {flip}.")
        self.strength = strength
        self.seed = seed
        self.padding = padding
        self.flip = flip

    def __call__(self, images: Tensor, step: int, slots: Tensor, view: int = 0) -> Tensor:
        """Augment a batch.

        Args:
            images: ``[B, 3, H, W]``, uint8.
            step: of the training.
            slots: places of the images in the global batch, ``[B]``, int64, on the images' device.
            view: tells apart several uses of one slot in a step.

        Returns:
            ``[B, 3, H, W]``, uint8.

        Raises:
            ValueError: images or slots are of another type or shape.
        """
        if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[1] != 3:
            raise ValueError(
                f"Expected uint8 images of shape [B, 3, H, W], got {images.dtype} {list(images.shape)}."
            )
        if slots.shape != images.shape[:1]:
            raise ValueError(f"Expected {len(images)} slots, one an image, got {list(slots.shape)}.")
        if self.strength == "none" or not len(images):
            return images
        noise = uniforms(self.seed, step, slots, view, 12)
        if self.strength == "strong":
            images = cutout(rand_augment(images, noise[:, 3:9]), noise[:, 9:12])
        padding = self.padding if self.padding is not None else (12 if images.shape[-1] >= 96 else 4)
        padding = min(padding, min(images.shape[-2:]) - 1)
        return flip_and_crop(images, noise[:, :3], padding, self.flip)


def normalize(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(image − mean) / std a channel, float32; all of them of 0…255, images ``[B, 3, H, W]``, uint8."""
    shift = torch.tensor(mean, device=images.device)[:, None, None]
    scale = torch.tensor(std, device=images.device)[:, None, None]
    # In place: a copy of a batch in float32 costs more than the arithmetic.
    return images.float().sub_(shift).div_(scale)
