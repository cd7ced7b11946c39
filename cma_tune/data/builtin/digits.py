"""scikit-learn's 1,797 handwritten digits as a data set of 32 px images with named classes.

The scans are the test part of "Optical Recognition of Handwritten Digits" (E. Alpaydin and C. Kaynak, UCI,
1998): 8x8 pixels of 17 grey levels, ink bright on black.
"""

from __future__ import annotations

import random
from functools import lru_cache
from types import MappingProxyType
from typing import TYPE_CHECKING

from . import BuiltinData

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

VERSION = "1"
CLASS_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TEMPLATES = ("a photo of the digit {}.",)
SIZE = 32
_SHARES = {"train": 0.5, "val": 0.2}  # of every class, rounded down; the test part takes the rest
_SEED = 0


@lru_cache(maxsize=1)
def _scans() -> tuple[np.ndarray, tuple[int, ...]]:
    """Return grey levels 0..16, float64 [1797, 8, 8], and the labels."""
    from sklearn.datasets import load_digits as sklearn_digits

    bunch = sklearn_digits()
    return bunch.images, tuple(int(label) for label in bunch.target)


@lru_cache(maxsize=1)
def _split() -> dict[str, tuple[tuple[str, int, int], ...]]:
    """Return (key, label, row among the scans) of every part, stratified by class.

    ``random.Random`` is used because its shuffle is promised to stay the same; NumPy's generators are not.
    """
    labels = _scans()[1]
    rng = random.Random(_SEED)
    parts: dict[str, list[tuple[str, int, int]]] = {"train": [], "val": [], "test": []}
    for label in range(len(CLASS_NAMES)):
        rows = [row for row, own in enumerate(labels) if own == label]
        rng.shuffle(rows)
        train_end = int(_SHARES["train"] * len(rows))
        val_end = train_end + int(_SHARES["val"] * len(rows))
        own_rows = {"train": rows[:train_end], "val": rows[train_end:val_end], "test": rows[val_end:]}
        for part, chosen in own_rows.items():
            parts[part] += [(f"{part}/{label:03d}/{row:04d}", label, row) for row in sorted(chosen)]
    return {part: tuple(items) for part, items in parts.items()}


@lru_cache(maxsize=1)
def _row_of_key() -> dict[str, int]:
    return {key: row for items in _split().values() for key, _, row in items}


def load_digit(key: str) -> Image:
    """Give one digit as an RGB image of 32x32 pixels; ``KeyError`` when no such digit exists."""
    import numpy as np
    from PIL import Image

    row = _row_of_key()[key]
    grey = np.rint(_scans()[0][row] * (255 / 16)).astype(np.uint8)
    # Bicubic is smooth, and Pillow clips its overshoot to 0..255.
    return Image.fromarray(grey).resize((SIZE, SIZE), Image.Resampling.BICUBIC).convert("RGB")


def load_digits() -> BuiltinData:
    """Give the data set ``digits``: 10 classes, 50/20/30 % of each for training, validation and test."""
    parts = {part: tuple((key, label) for key, label, _ in items) for part, items in _split().items()}
    return BuiltinData("digits", VERSION, CLASS_NAMES, TEMPLATES, MappingProxyType(parts), load_digit)
