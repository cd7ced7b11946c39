"""Batched augmentation against Pillow image by image, and its noise."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from typing import Literal

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageEnhance, ImageOps
from torch import Tensor

from cma_tune.companion import augmentation
from cma_tune.companion.augmentation import (
    OPS,
    Augment,
    cutout,
    flip_and_crop,
    normalize,
    rand_augment,
    uniforms,
)
from cma_tune.companion.augmentation.ops import Op
from cma_tune.errors import UserError

Pillow = Callable[[Image.Image, float], Image.Image]


def affine(matrix: Callable[[Image.Image, float], tuple[float, ...]]) -> Pillow:
    return lambda image, v: image.transform(image.size, Image.Transform.AFFINE, matrix(image, v))


PILLOW: dict[str, Pillow] = {
    "autocontrast": lambda image, v: ImageOps.autocontrast(image),
    "brightness": lambda image, v: ImageEnhance.Brightness(image).enhance(v),
    "color": lambda image, v: ImageEnhance.Color(image).enhance(v),
    "contrast": lambda image, v: ImageEnhance.Contrast(image).enhance(v),
    "equalize": lambda image, v: ImageOps.equalize(image),
    "identity": lambda image, v: image,
    "posterize": lambda image, v: ImageOps.posterize(image, int(v)),
    "rotate": lambda image, v: image.rotate(v),
    "sharpness": lambda image, v: ImageEnhance.Sharpness(image).enhance(v),
    "shear_x": affine(lambda image, v: (1, v, 0, 0, 1, 0)),
    "shear_y": affine(lambda image, v: (1, 0, 0, v, 1, 0)),
    "solarize": lambda image, v: ImageOps.solarize(image, v),  # type: ignore[arg-type]
    "translate_x": affine(lambda image, v: (1, 0, v * image.width, 0, 1, 0)),
    "translate_y": affine(lambda image, v: (1, 0, 0, 0, 1, v * image.height)),
}


RANGES = {
    **dict.fromkeys(("brightness", "color", "contrast", "sharpness"), (0.05, 0.95)),
    **dict.fromkeys(("shear_x", "shear_y", "translate_x", "translate_y"), (-0.3, 0.3)),
    **dict.fromkeys(("autocontrast", "equalize", "identity"), (0, 1)),
    "posterize": (4, 8),
    "rotate": (-30, 30),
    "solarize": (0, 256),
}


def pictures(height: int, width: int | None = None) -> Tensor:
    """Noise, smooth colours, few levels, plain ones, black and white: ``[26, 3, height, width]``."""
    width = width or height
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (8, 3, height, width), generator=generator)
    down, across = torch.linspace(0, 1, height)[:, None], torch.linspace(0, 1, width)[None]
    smooth = torch.stack([down.expand(height, width), across.expand(height, width), down * across])
    ends = torch.randint(0, 256, (8, 3, 1, 1), generator=generator)
    few = torch.randint(0, 3, (4, 3, height, width), generator=generator) * 60 + 20
    plain = torch.randint(0, 256, (4, 3, 1, 1), generator=generator)
    plain = torch.cat([plain, torch.tensor([0, 255])[:, None, None, None].expand(2, 3, 1, 1)])
    parts = [noise, (smooth * ends).long(), few, plain.expand(-1, 3, height, width)]
    return torch.cat(parts).to(torch.uint8)


def as_pillow(image: Tensor) -> Image.Image:
    return Image.fromarray(image.permute(1, 2, 0).numpy())


def as_tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


@pytest.mark.parametrize("sides", [(8, 8), (32, 32), (20, 27)], ids=str)
@pytest.mark.parametrize("name", OPS)
def test_every_operation_is_pillows(name: str, sides: tuple[int, int]) -> None:
    op, images = OPS[name], pictures(*sides)
    before = images.clone()
    for turn in range(4):
        values = op.low + (op.high - op.low) * uniforms(1, turn, torch.arange(len(images)), 0, 1)[:, 0]
        values[:2] = torch.tensor([op.low, math.nextafter(op.high, op.low)], dtype=torch.float64)
        expected = torch.stack(
            [as_tensor(PILLOW[name](as_pillow(i), v)) for i, v in zip(images, values.tolist(), strict=True)]
        )
        assert torch.equal(op.apply(images, values), expected)
    assert torch.equal(images, before)
    # Pillow's equalisation leaves images of fewer than 256 pixels alone.
    changes = name != "identity" and (name != "equalize" or sides != (8, 8))
    assert bool((expected != images).any()) == changes


def test_cutout_draws_the_rectangle_pillow_draws() -> None:
    images = pictures(32)
    for turn in range(20):
        noise = uniforms(2, turn, torch.arange(len(images)), 0, 3)
        made = cutout(images, noise)
        for row, (size, across, down) in enumerate(noise.tolist()):
            expected = as_pillow(images[row])
            side = size * 0.5 * 32
            left, top = (int(max(0.0, at * 32 - side / 2)) for at in (across, down))
            box = (left, top, min(32, left + side), min(32, top + side))
            ImageDraw.Draw(expected).rectangle(box, (125, 123, 114))
            assert torch.equal(made[row], as_tensor(expected))


def test_crops_are_windows_of_the_reflected_image() -> None:
    images = pictures(32, 24)
    padded = torch.nn.functional.pad(images.float(), (4, 4, 4, 4), mode="reflect").to(torch.uint8)
    noise = uniforms(3, 0, torch.arange(len(images)), 0, 3)
    for flip in (0.0, 0.5, 1.0):
        made = flip_and_crop(images, noise, 4, flip)
        for row, (side, *place) in enumerate(noise.tolist()):
            down, across = (int(at * 9) for at in place)
            whole = padded[row].flip(-1) if side < flip else padded[row]
            assert torch.equal(made[row], whole[:, down : down + 32, across : across + 24])


def test_weak_views_are_drawn_evenly() -> None:
    # Every pixel says where it comes from, so the middle one tells place and flip.
    y, x = torch.meshgrid(torch.arange(32), torch.arange(32), indexing="ij")
    image = torch.stack([y, x, torch.zeros_like(x)]).to(torch.uint8)
    made = Augment("weak", 4)(image.expand(16_200, -1, -1, -1), 0, torch.arange(16_200)).long()
    mirrored = made[:, 1, 16, 15] > made[:, 1, 16, 16]
    down = made[:, 0, 16, 16] - 16
    across = torch.where(mirrored, 31 - made[:, 1, 16, 16], made[:, 1, 16, 16]) - 16
    assert {int(down.min()), int(across.min())} == {-4} and {int(down.max()), int(across.max())} == {4}
    counts = torch.bincount(((down + 4) * 9 + across + 4) * 2 + mirrored.long(), minlength=162).double()
    assert float(((counts - 100) ** 2 / 100).sum()) < 230  # 161 degrees of freedom: above it 3 in 10,000


def test_padding_is_that_of_the_references() -> None:
    y, x = torch.meshgrid(torch.arange(96), torch.arange(96), indexing="ij")
    image = torch.stack([y, x, x]).to(torch.uint8).expand(400, -1, -1, -1)
    slots = torch.arange(400)

    def reach(augment: Augment, side: int) -> int:
        middle = augment(image[..., :side, :side], 0, slots)[:, 0, side // 2, side // 2].long()
        return int((middle - side // 2).abs().max())

    assert reach(Augment("weak", 0), 32) == 4 and reach(Augment("weak", 0), 96) == 12
    assert reach(Augment("weak", 0, padding=2), 96) == 2 and reach(Augment("weak", 0, padding=0), 8) == 0


def test_rand_augment_is_three_operations_in_turn() -> None:
    images, names = pictures(32), list(OPS)
    noise = uniforms(5, 0, torch.arange(len(images)), 0, 6)
    made = rand_augment(images, noise)
    for row in range(len(images)):
        expected = as_pillow(images[row])
        for turn in range(3):
            name = names[int(noise[row, 2 * turn] * 14)]
            op = OPS[name]
            value = op.low + (op.high - op.low) * float(noise[row, 2 * turn + 1])
            expected = PILLOW[name](expected, value)
        assert torch.equal(made[row], as_tensor(expected))


def test_operations_and_values_are_drawn_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    # Each operation leaves its images, whose first pixels hold a slot, and notes the values it is given.
    seen: list[tuple[int, Tensor, Tensor]] = []

    def noting(number: int) -> Callable[[Tensor, Tensor], Tensor]:
        def apply(images: Tensor, values: Tensor) -> Tensor:
            pixels = images[:, :, 0, 0].long()
            seen.append((number, pixels[:, 0] * 65536 + pixels[:, 1] * 256 + pixels[:, 2], values))
            return images

        return apply

    noted = {name: Op(noting(i), op.low, op.high) for i, (name, op) in enumerate(OPS.items())}
    monkeypatch.setattr(augmentation, "OPS", noted)
    slots = torch.arange(28_000)
    images = torch.stack([slots // 65536, slots // 256 % 256, slots % 256], dim=1)[:, :, None, None]
    augmentation.rand_augment(images.to(torch.uint8), uniforms(6, 0, slots, 0, 6))
    chosen, shares = torch.empty(3, 28_000, dtype=torch.int64), torch.empty(3, 28_000, dtype=torch.float64)
    assert len(seen) == 3 * 14
    for call, (number, rows, values) in enumerate(seen):
        name = list(OPS)[number]
        low, high = RANGES[name]
        assert (OPS[name].low, OPS[name].high) == (low, high)
        chosen[call // 14, rows] = number
        shares[call // 14, rows] = (values - low) / (high - low)
    # Two rounds' operations are independent, so all 196 pairs are as frequent; so are values in tenths.
    for one, other in ((0, 1), (0, 2), (1, 2)):
        pairs = torch.bincount(chosen[one] * 14 + chosen[other], minlength=196).double()
        assert chi_square(pairs) < 270  # 195 degrees of freedom: above it 3 in 10,000
    for turn in range(3):
        tenths = torch.bincount(chosen[turn] * 10 + (shares[turn] * 10).long(), minlength=140).double()
        assert chi_square(tenths) < 204  # 139


def chi_square(counts: Tensor) -> float:
    expected = counts.sum() / len(counts)
    return float(((counts - expected) ** 2 / expected).sum())


def test_noise_is_splitmix_over_a_hash_of_its_place() -> None:
    def mix(x: int) -> int:
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) % 2**64
        return x ^ (x >> 31)

    golden = 0x9E3779B97F4A7C15
    made = uniforms(7, 1234, torch.tensor([0, 5, 447, 2**40]), 3, 5)
    key = int.from_bytes(hashlib.sha256(b"noise/7/1234/3").digest()[:7], "little")
    for row, slot in zip(made.tolist(), (0, 5, 447, 2**40), strict=True):
        start = mix((slot * golden + key) % 2**64)
        assert row == [(mix((start + draw * golden) % 2**64) >> 11) / 2**53 for draw in range(1, 6)]


def test_noise_is_uniform_and_independent() -> None:
    slots = torch.arange(50_000)
    table = uniforms(7, 3, slots, 1, 4)
    assert table.min() >= 0 and table.max() < 1
    assert torch.allclose(table.mean(dim=0), torch.full((4,), 0.5, dtype=torch.float64), atol=0.006)
    assert torch.allclose(table.var(dim=0), torch.full((4,), 1 / 12, dtype=torch.float64), atol=0.002)
    others = [uniforms(*place, 1) for place in ((7, 4, slots, 1), (7, 3, slots, 2), (8, 3, slots, 1))]
    others += [uniforms(7, 3, slots + shift, 1, 1) for shift in (1, 64, 448)] + [table[:, 1:2], table[:, 3:]]
    for other in others:
        both = ((table[:, 0] * 10).long() * 10 + (other[:, 0] * 10).long()).bincount(minlength=100)
        assert chi_square(both.double()) < 155  # 99 degrees of freedom: above it 3 in 10,000
        assert abs(float(torch.corrcoef(torch.cat([table[:, :1], other], dim=1).T)[0, 1])) < 0.02


def test_noise_of_one_slot_over_the_steps_is_uniform() -> None:
    steps = torch.cat([uniforms(7, step, torch.tensor([9]), 0, 1)[0] for step in range(4000)])
    pairs = (steps[:-1] * 6).long() * 6 + (steps[1:] * 6).long()
    assert chi_square(pairs.bincount(minlength=36).double()) < 71  # 35 degrees of freedom


@pytest.mark.parametrize("strength", ["weak", "strong"])
def test_noise_goes_with_the_slot_not_with_the_batch(strength: Literal["weak", "strong"]) -> None:
    images, augment = pictures(32), Augment(strength, 11)
    slots = torch.arange(len(images))
    whole = augment(images, 5, slots, 1)
    for mine in (slots[1::2], slots[:1], slots.flip(0)):
        assert torch.equal(augment(images[mine], 5, mine, 1), whole[mine])
    assert not torch.equal(augment(images, 6, slots, 1), whole)
    assert not torch.equal(augment(images, 5, slots, 2), whole)
    assert not torch.equal(Augment(strength, 12)(images, 5, slots, 1), whole)
    assert augment(images[:0], 5, slots[:0]).shape == (0, 3, 32, 32)


def test_strong_is_all_three_in_turn_and_none_is_nothing() -> None:
    images, slots = pictures(32), torch.arange(26)
    noise = uniforms(13, 2, slots, 1, 12)
    made = flip_and_crop(cutout(rand_augment(images, noise[:, 3:9]), noise[:, 9:]), noise[:, :3], 4)
    assert torch.equal(Augment("strong", 13)(images, 2, slots, 1), made)
    assert torch.equal(Augment("weak", 13)(images, 2, slots, 1), flip_and_crop(images, noise[:, :3], 4))
    assert torch.equal(Augment("none", 13)(images, 2, slots, 1), images)


def test_grey_images_stay_grey() -> None:
    images = pictures(32)[:, :1].expand(-1, 3, -1, -1).contiguous()
    made = rand_augment(images, uniforms(14, 0, torch.arange(len(images)), 0, 6))
    assert (made == made[:, :1]).all() and not torch.equal(made, images)


def test_mistakes_are_named() -> None:
    with pytest.raises(UserError, match="Expected an augmentation out of none, weak, strong, got 'hard'"):
        Augment("hard", 0)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="padding of 0 pixels or more, got -1"):
        Augment("weak", 0, padding=-1)
    with pytest.raises(UserError, match="flips from 0 to 1, got 2"):
        Augment("weak", 0, flip=2)
    with pytest.raises(ValueError, match=r"Expected uint8 images .* got torch.float32 \[2, 3, 8, 8\]"):
        Augment("weak", 0)(torch.rand(2, 3, 8, 8), 0, torch.arange(2))
    with pytest.raises(ValueError, match="Expected 26 slots"):
        Augment("weak", 0)(pictures(8), 0, torch.arange(3))


def test_normalize_is_per_channel() -> None:
    images = pictures(8)
    before = images.clone()
    made = normalize(images, (5.0, 10.0, 15.0), (1.0, 2.0, 4.0))
    assert made.dtype == torch.float32 and torch.equal(images, before)
    for channel, (mean, std) in enumerate(((5, 1), (10, 2), (15, 4))):
        assert torch.equal(made[:, channel], (images[:, channel].float() - mean) / std)
