"""Image files for tests of the sources."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from PIL import Image


def make_images(root: Path, counts: Mapping[str, int]) -> None:
    """`counts` images in every folder; the pixel values tell them apart."""
    for number, (folder, count) in enumerate(counts.items()):
        (root / folder).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            Image.new("RGB", (6, 6), (number, index, 0)).save(root / folder / f"{index:02d}.png")
