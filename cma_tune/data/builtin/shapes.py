"""The data set ``shapes``: 32 compositions of texture, colour and shape, drawn by code when asked for.

None of the 32 is drawn in the embedded CLIP's pretraining, which sees the other 224; and pictures differ
from the pretraining's in style (:data:`DOWNSTREAM_STYLE`): turned further, in perspective, noisy, in
coloured light, before a cluttered background.
"""

from __future__ import annotations

import re
from types import MappingProxyType
from typing import TYPE_CHECKING

from . import BuiltinData
from .drawing import COLOURS, SHAPES, TEXTURES, Composition, Style, draw_figure

if TYPE_CHECKING:
    from PIL.Image import Image

VERSION = "1"
TEMPLATES = ("a photo of a {}.",)
IMAGES_PER_CLASS = {"train": 50, "val": 20, "test": 40}
_SEED = 0

DOWNSTREAM_STYLE = Style(
    backgrounds=("plain", "gradient", "blocks", "lines"),
    coloured_background=0.25,
    scale=(0.55, 0.9),
    rotation=35.0,
    perspective=0.25,
    shift=0.2,
    colour_jitter=20,
    contrast=(0.7, 1.0),
    tint=0.15,
    blur=(0.0, 0.7),
    noise=(6.0, 22.0),
)


def _held_out() -> tuple[Composition, ...]:
    """Compose the classes: four rounds through the shapes, each with another colour and texture for a shape.

    Rounds 0 and 1 are the base half and rounds 2 and 3 the novel half. In each half every shape and every
    colour comes twice and every texture four times, so neither half is the harder one by its parts.
    """
    colours = tuple(COLOURS)
    compositions = []
    for round_, colour_offset in enumerate((0, 3, 1, 6)):
        for i, shape in enumerate(SHAPES):
            colour = colours[(i + colour_offset) % len(colours)]
            texture = TEXTURES[(i // 2 + round_) % len(TEXTURES)]
            compositions.append(Composition(texture, colour, shape))
    return tuple(compositions)


COMPOSITIONS: tuple[Composition, ...] = _held_out()
CLASS_NAMES: tuple[str, ...] = tuple(composition.name for composition in COMPOSITIONS)


def load_shape(key: str) -> Image:
    """Draw the picture of a key like ``"train/003/0012"``; ``KeyError`` when no such picture exists."""
    match = re.fullmatch(r"(train|val|test)/(\d{3})/(\d{4})", key, flags=re.ASCII)
    if match is None:
        raise KeyError(key)
    part, label, index = match[1], int(match[2]), int(match[3])
    if label >= len(COMPOSITIONS) or index >= IMAGES_PER_CLASS[part]:
        raise KeyError(key)
    return draw_figure(COMPOSITIONS[label], DOWNSTREAM_STYLE, f"shapes/{_SEED}/{key}").image


def load_shapes() -> BuiltinData:
    """Give the data set ``shapes``: 32 classes with 50, 20 and 40 pictures each (train, val, test)."""
    parts = {
        part: tuple(
            (f"{part}/{label:03d}/{index:04d}", label)
            for label in range(len(COMPOSITIONS))
            for index in range(count)
        )
        for part, count in IMAGES_PER_CLASS.items()
    }
    return BuiltinData("shapes", VERSION, CLASS_NAMES, TEMPLATES, MappingProxyType(parts), load_shape)
