"""The training transform: crops, flips and normalisation as they are asked for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from cma_tune.data.images import Augmentation, train_transform

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.5)


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_the_transform_without_chance_is_normalisation(flip: float) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 15, 3), dtype=np.uint8))
    # A crop of all of the area at its own size is the image itself, unless its sides are rounded down.
    transform = train_transform((12, 15), MEAN, STD, Augmentation(scale=(1.0, 1.0), flip=flip))
    values = np.asarray(image).transpose(2, 0, 1) / 255
    expected = (values - np.array(MEAN)[:, None, None]) / np.array(STD)[:, None, None]
    if flip:
        expected = expected[:, :, ::-1]
    torch.manual_seed(0)
    results = [transform(image).numpy() for _ in range(20)]
    whole = [result for result in results if np.allclose(result, expected, atol=1e-5)]
    assert len(whole) > len(results) // 2


def test_crops_cover_the_share_of_the_area_that_is_asked_for() -> None:
    # A ramp from left to right: a crop's spread over it is its share of the width.
    ramp = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 256, 0).repeat(3, 2)
    image = Image.fromarray(ramp)

    def widths(scale: tuple[float, float]) -> list[float]:
        transform = train_transform((32, 32), (0, 0, 0), (1, 1, 1), Augmentation(scale, 0.0))
        torch.manual_seed(0)
        crops = [transform(image)[0] for _ in range(60)]
        return [float(crop.max() - crop.min()) for crop in crops]

    small, large = widths((0.08, 0.1)), widths((0.8, 1.0))
    assert max(small) < 0.45 and min(large) > 0.7
