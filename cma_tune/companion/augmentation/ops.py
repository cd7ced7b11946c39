"""RandAugment's operations on batches: uint8 images ``[B, 3, H, W]``, one value an image ``[B]``, float64.

Each gives what Pillow gives image by image with the same value, to the bit (a test says so). None changes its
input. Choices between pixels are bit operations where they can be: on bytes those are many times as fast as
`torch.where`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


def identity(images: Tensor, values: Tensor) -> Tensor:
    """The image itself."""
    return images


def _blend(degenerate: Tensor, images: Tensor, factors: Tensor) -> Tensor:
    """degenerate + factor·(image − degenerate), cut to whole numbers; factors from 0 to 1."""
    # Pillow computes this in single precision.
    start, end = degenerate.float(), images.float()
    return (start + factors.float()[:, None, None, None] * (end - start)).to(torch.uint8)


def _grey(images: Tensor) -> Tensor:
    """Luma in ITU-R 601-2's weights of 16 bits, ``[B, 1, H, W]``, int32."""
    red, green, blue = images.int().unbind(dim=1)
    return ((red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16)[:, None]


def brightness(images: Tensor, values: Tensor) -> Tensor:
    """Towards black."""
    return _blend(images.new_zeros(()), images, values)


def color(images: Tensor, values: Tensor) -> Tensor:
    """Towards the grey image."""
    return _blend(_grey(images), images, values)


def contrast(images: Tensor, values: Tensor) -> Tensor:
    """Towards the mean of the grey image."""
    pixels = images.shape[-2] * images.shape[-1]
    mean = (_grey(images).sum(dim=(1, 2, 3)).double() / pixels + 0.5).floor()
    return _blend(mean[:, None, None, None], images, values)


def sharpness(images: Tensor, values: Tensor) -> Tensor:
    """Towards the image smoothed by a 3×3 kernel of ones with 5 in its middle; borders stay."""
    x = images.float()
    smooth = x.clone()
    if min(x.shape[-2:]) > 2:
        across = x[..., :-2] + x[..., 1:-1] + x[..., 2:]
        around = across[:, :, :-2] + across[:, :, 1:-1] + across[:, :, 2:]
        inner = x[:, :, 1:-1, 1:-1]
        smooth[:, :, 1:-1, 1:-1] = ((around + 4 * inner) / 13 + 0.5).floor()
    return _blend(smooth, images, values)


def autocontrast(images: Tensor, values: Tensor) -> Tensor:
    """Stretch every channel to 0…255."""
    flat = images.flatten(2)
    low, high = flat.amin(dim=2, keepdim=True).double(), flat.amax(dim=2, keepdim=True).double()
    # Divided as such: torch takes a number over a tensor as its reciprocal's product, which rounds otherwise.
    scale = torch.full_like(high, 255.0) / (high - low).clamp(min=1)
    levels = torch.arange(256, device=images.device, dtype=torch.float64)
    table = torch.where(high > low, (levels * scale - low * scale).trunc().clamp(0, 255), levels)
    return table.to(torch.uint8).gather(2, flat.long()).reshape(images.shape)


def equalize(images: Tensor, values: Tensor) -> Tensor:
    """Spread every channel's histogram evenly."""
    batch, channels = images.shape[:2]
    flat = images.reshape(batch * channels, -1).long()
    counts = torch.zeros(batch * channels, 256, dtype=torch.int64, device=images.device)
    counts.scatter_add_(1, flat, torch.ones_like(flat))
    last = counts.gather(1, flat.amax(dim=1, keepdim=True))
    step = (flat.shape[1] - last) // 255
    table = ((counts.cumsum(dim=1) - counts + step // 2) // step.clamp(min=1)).clamp(max=255)
    # Too few pixels below the brightest value, or one value only: as it was.
    table = torch.where(step > 0, table, torch.arange(256, device=images.device))
    return table.to(torch.uint8).gather(1, flat).reshape(images.shape)


def posterize(images: Tensor, values: Tensor) -> Tensor:
    """Keep the highest bits, as many as the value's whole part."""
    dropped = (2 ** (8 - values.long())) - 1
    return images & (255 - dropped).to(torch.uint8)[:, None, None, None]


def solarize(images: Tensor, values: Tensor) -> Tensor:
    """Invert pixels from the value on."""
    least = values.ceil().to(torch.int16)[:, None, None, None]
    return (
        images ^ (images.to(torch.int16) >= least).to(torch.uint8).neg()
    )  # 255 − x is x with all bits turned


def _moved(images: Tensor, columns: Tensor, rows: Tensor) -> Tensor:
    """Output pixel (y, x) is input pixel (rows, columns), black outside.

    Rows and columns broadcast to ``[B, H, W]``: what depends on x or y alone is left small.
    """
    height, width = images.shape[-2:]
    near_columns, near_rows = columns.clamp(0, width - 1), rows.clamp(0, height - 1)
    inside = (near_columns == columns) & (near_rows == rows)
    places = (near_rows * width + near_columns).flatten(1)[:, None]
    moved = images.flatten(2).gather(2, places.expand(-1, images.shape[1], -1)).reshape(images.shape)
    return moved * inside[:, None].to(torch.uint8)


def _fixed(value: Tensor) -> Tensor:
    """Whole number of 2⁻¹⁶, the nearest."""
    return (value * 65536.0 + 0.5).floor().long()


def _places(images: Tensor) -> tuple[Tensor, Tensor]:
    """x ``[1, 1, W]`` and y ``[1, H, 1]``."""
    height, width = images.shape[-2:]
    x = torch.arange(width, device=images.device)[None, None, :]
    return x, torch.arange(height, device=images.device)[None, :, None]


def _line(images: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """a·x + b·y + c at pixels' middles, as Pillow's affine transform has it: in fixed point of 16 bits.

    Coefficients ``[B]``, float64; the result is ``[B, H, W]``.
    """
    x, y = _places(images)
    a, b, c = (coefficient[:, None, None] for coefficient in (a, b, c))
    return ((_fixed(a * 0.5 + b * 0.5 + c) + _fixed(b) * y) + _fixed(a) * x) >> 16


def rotate(images: Tensor, values: Tensor) -> Tensor:
    """By the value in degrees, against the clock, about the middle."""
    angle = -values * (math.pi / 180)
    cos, sin = angle.cos(), angle.sin()
    middle_x, middle_y = images.shape[-1] / 2, images.shape[-2] / 2
    c = -cos * middle_x - sin * middle_y + middle_x
    f = sin * middle_x - cos * middle_y + middle_y
    return _moved(images, _line(images, cos, sin, c), _line(images, -sin, cos, f))


def shear_x(images: Tensor, values: Tensor) -> Tensor:
    """x ← x + value·y."""
    columns = _line(images, torch.ones_like(values), values, torch.zeros_like(values))
    return _moved(images, columns, _places(images)[1])


def shear_y(images: Tensor, values: Tensor) -> Tensor:
    """y ← y + value·x."""
    rows = _line(images, values, torch.ones_like(values), torch.zeros_like(values))
    return _moved(images, _places(images)[0], rows)


def translate_x(images: Tensor, values: Tensor) -> Tensor:
    """x ← x + value·width."""
    x, y = _places(images)
    # Without rotation or shear Pillow's transform computes in double precision.
    return _moved(images, (x + 0.5 + (values * images.shape[-1])[:, None, None]).floor().long(), y)


def translate_y(images: Tensor, values: Tensor) -> Tensor:
    """y ← y + value·height."""
    x, y = _places(images)
    return _moved(images, x, (y + 0.5 + (values * images.shape[-2])[:, None, None]).floor().long())


class Op(NamedTuple):
    """An operation and the range its value is drawn from, uniformly."""

    apply: Callable[[Tensor, Tensor], Tensor]
    low: float
    high: float


OPS: dict[str, Op] = {
    "autocontrast": Op(autocontrast, 0.0, 1.0),
    "brightness": Op(brightness, 0.05, 0.95),
    "color": Op(color, 0.05, 0.95),
    "contrast": Op(contrast, 0.05, 0.95),
    "equalize": Op(equalize, 0.0, 1.0),
    "identity": Op(identity, 0.0, 1.0),
    "posterize": Op(posterize, 4.0, 8.0),
    "rotate": Op(rotate, -30.0, 30.0),
    "sharpness": Op(sharpness, 0.05, 0.95),
    "shear_x": Op(shear_x, -0.3, 0.3),
    "shear_y": Op(shear_y, -0.3, 0.3),
    "solarize": Op(solarize, 0.0, 256.0),
    "translate_x": Op(translate_x, -0.3, 0.3),
    "translate_y": Op(translate_y, -0.3, 0.3),
}
"""The fourteen of the references."""
