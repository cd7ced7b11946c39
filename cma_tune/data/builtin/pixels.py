"""What is done to whole pictures: perspective, noise, light."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image


def perspective_coefficients(corners: list[tuple[float, float]], size: int) -> list[float]:
    """Solve for Pillow's 8 coefficients that bring a square tile onto four corners of the canvas.

    Args:
        corners: where the upper left, upper right, lower right and lower left corner go, in canvas pixels.
        size: the tile's width and height in pixels.

    Returns:
        (a, ..., h) so that canvas point (x, y) shows the tile's point
        ((ax + by + c)/(gx + hy + 1), (dx + ey + f)/(gx + hy + 1)); rounded to 9 decimals.
    """
    import numpy as np

    tile = [(0, 0), (size, 0), (size, size), (0, size)]
    rows, values = [], []
    for (x, y), (u, v) in zip(corners, tile, strict=True):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
        values += [u, v]
    solved = np.linalg.solve(np.array(rows, dtype=np.float64), np.array(values, dtype=np.float64))
    return [round(float(value), 9) for value in solved]


def add_noise(image: Image, amplitude: float, rng: random.Random) -> Image:
    """Add bell-shaped noise (three even draws summed), in integers alone, clipped to 0..255."""
    import numpy as np
    from PIL import Image

    pixels = np.asarray(image, dtype=np.int32)
    draws = np.frombuffer(rng.randbytes(3 * pixels.size), dtype=np.uint8).astype(np.int32)
    centred = draws.reshape(3, *pixels.shape).sum(axis=0) - 382  # three bytes: mean 382.5, deviation 128
    noisy = pixels + centred * round(256 * amplitude) // (256 * 128)
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def change_light(image: Image, contrast: float, factors: list[float]) -> Image:
    """Scale the distance from mid grey by ``contrast``, then each channel by its factor."""
    table: list[int] = []
    for factor in factors:
        for level in range(256):
            table.append(min(255, max(0, round(round((128 + contrast * (level - 128)) * factor, 6)))))
    return image.point(table)
