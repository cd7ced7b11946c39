"""Draw a textured, coloured figure on a background, for ``shapes`` and for the pretraining pictures.

Every number comes from ``random.Random`` seeded by a string, whose stream is the same on every machine and
Python; coefficients are rounded before they reach Pillow, so that the last bit of a sine does not change a
pixel.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from .pixels import add_noise, change_light, perspective_coefficients

if TYPE_CHECKING:
    from PIL.Image import Image

SIZE = 32
_SUPERSAMPLING = 3
_CANVAS = SIZE * _SUPERSAMPLING
_TILE = 96  # the figure is drawn flat on a tile of this size, then placed on the canvas

SHAPES = ("circle", "square", "triangle", "star", "cross", "heart", "ring", "moon")
TEXTURES = ("solid", "striped", "dotted", "checkered")
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 32, 36),
    "orange": (240, 134, 20),
    "yellow": (238, 216, 36),
    "green": (44, 158, 58),
    "cyan": (48, 200, 208),
    "blue": (36, 72, 206),
    "purple": (128, 44, 164),
    "pink": (244, 132, 188),
}

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Composition:
    """What is drawn. Its name, e.g. "striped red triangle", is a class name."""

    texture: str
    colour: str
    shape: str

    @property
    def name(self) -> str:
        return f"{self.texture} {self.colour} {self.shape}"


ALL_COMPOSITIONS: tuple[Composition, ...] = tuple(
    Composition(texture, colour, shape) for texture in TEXTURES for colour in COLOURS for shape in SHAPES
)


@dataclass(frozen=True)
class Style:
    """How figures are drawn: the ranges from which each picture takes its own values, evenly.

    Attributes:
        backgrounds: kinds to choose from: ``"plain"``, ``"gradient"``, ``"blocks"``, ``"lines"``.
        coloured_background: share of 0..1 by which background greys are pulled to a random colour.
        scale: the figure's half-width as a share of half the picture's width.
        rotation: largest turn either way, in degrees.
        perspective: largest displacement of the figure's corners, as a share of its half-width.
        shift: largest displacement of its centre, as a share of half the picture's width.
        colour_jitter: largest change of each channel of the figure's colour, of 255.
        contrast: factor on the picture's distance from mid grey.
        tint: largest factor either way on each channel, as a change of light (0.2: 0.8..1.2).
        blur: radius of a Gaussian blur, in pixels of the finished picture.
        noise: amplitude of the noise, of 255 (about its standard deviation).
        occlusion: chance that a grey bar covers a part of the figure.
    """

    backgrounds: tuple[str, ...]
    coloured_background: float = 0.0
    scale: tuple[float, float] = (0.6, 0.9)
    rotation: float = 10.0
    perspective: float = 0.0
    shift: float = 0.1
    colour_jitter: int = 10
    contrast: tuple[float, float] = (1.0, 1.0)
    tint: float = 0.0
    blur: tuple[float, float] = (0.0, 0.0)
    noise: tuple[float, float] = (0.0, 0.0)
    occlusion: float = 0.0


@dataclass(frozen=True)
class Drawing:
    """A finished picture with the values it was drawn with (see :class:`Style`)."""

    image: Image
    scale: float
    rotation: float
    blur: float
    noise: float
    background_grey: int


def _regular(points: int, radius: float, inner: float | None = None) -> list[tuple[float, float]]:
    """Return a regular polygon, tip upwards, or a star when ``inner`` is given; units of the half-tile."""
    count = points if inner is None else 2 * points
    corners = []
    for i in range(count):
        r = radius if inner is None or i % 2 == 0 else inner
        angle = 2 * math.pi * i / count
        corners.append((r * math.sin(angle), -r * math.cos(angle)))
    return corners


@lru_cache(maxsize=len(SHAPES))
def _figure_mask(shape: str) -> Image:
    """Draw the white figure on a black tile."""
    from PIL import Image, ImageDraw

    mask = Image.new("L", (_TILE, _TILE), 0)
    draw = ImageDraw.Draw(mask)

    def at(*points: tuple[float, float]) -> list[tuple[float, float]]:
        half = _TILE / 2
        return [(round(half + half * x, 3), round(half + half * y, 3)) for x, y in points]

    if shape == "circle":
        draw.ellipse(at((-0.92, -0.92), (0.92, 0.92)), fill=255)
    elif shape == "square":
        draw.rectangle(at((-0.8, -0.8), (0.8, 0.8)), fill=255)
    elif shape == "triangle":
        draw.polygon(at((0.0, -0.9), (0.95, 0.8), (-0.95, 0.8)), fill=255)
    elif shape == "star":
        draw.polygon(at(*_regular(5, 1.0, inner=0.42)), fill=255)
    elif shape == "cross":
        draw.rectangle(at((-0.3, -0.92), (0.3, 0.92)), fill=255)
        draw.rectangle(at((-0.92, -0.3), (0.92, 0.3)), fill=255)
    elif shape == "heart":
        draw.ellipse(at((-0.95, -0.85), (0.06, 0.16)), fill=255)
        draw.ellipse(at((-0.06, -0.85), (0.95, 0.16)), fill=255)
        draw.polygon(at((-0.87, -0.07), (0.0, -0.5), (0.87, -0.07), (0.0, 0.95)), fill=255)
    elif shape == "ring":
        draw.ellipse(at((-0.95, -0.95), (0.95, 0.95)), fill=255)
        draw.ellipse(at((-0.45, -0.45), (0.45, 0.45)), fill=0)
    elif shape == "moon":
        draw.ellipse(at((-0.9, -0.95), (1.0, 0.95)), fill=255)
        draw.ellipse(at((-0.15, -0.8), (1.3, 0.8)), fill=0)
    else:
        raise ValueError(f"Expected a shape, one of {', '.join(SHAPES)}, got {shape!r}")
    return mask


def _figure_surface(texture: str, main: Colour, rng: random.Random) -> Image:
    """Draw the tile seen through the figure: the colour, and the texture in a darker or lighter shade."""
    from PIL import Image, ImageDraw

    towards, share = rng.choice(((0, 0.75), (0, 0.6), (255, 0.75)))
    shade = tuple(round(channel + share * (towards - channel)) for channel in main)
    tile = Image.new("RGB", (_TILE, _TILE), main)
    draw = ImageDraw.Draw(tile)
    period = rng.randint(20, 30)
    start = -rng.randrange(period)
    if texture == "striped":
        for y in range(start, _TILE, period):
            draw.rectangle((0, y, _TILE, y + period // 2 - 1), fill=shade)
        tile = tile.rotate(rng.choice((0, 90)))
    elif texture == "dotted":
        radius = period * 3 // 10
        for y in range(start, _TILE + period, period):
            for x in range(start, _TILE + period, period):
                draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=shade)
    elif texture == "checkered":
        for row, y in enumerate(range(start, _TILE, period // 2 + 3)):
            for column, x in enumerate(range(start, _TILE, period // 2 + 3)):
                if (row + column) % 2:
                    draw.rectangle((x, y, x + period // 2 + 2, y + period // 2 + 2), fill=shade)
    elif texture != "solid":
        raise ValueError(f"Expected a texture, one of {', '.join(TEXTURES)}, got {texture!r}")
    return tile


def _background(style: Style, rng: random.Random) -> tuple[Image, int]:
    """Draw what lies behind the figure; return it with its mean grey level."""
    from PIL import Image, ImageDraw

    kind = rng.choice(style.backgrounds)
    grey = rng.randint(10, 245)

    def nearby() -> Colour:
        level = min(255, max(0, grey + rng.randint(-70, 70)))
        pulls = [rng.randrange(256) for _ in range(3)]
        red, green, blue = (round(level + style.coloured_background * (pull - level)) for pull in pulls)
        return red, green, blue

    base = (grey, grey, grey) if style.coloured_background == 0 else nearby()
    image = Image.new("RGB", (_CANVAS, _CANVAS), base)
    draw = ImageDraw.Draw(image)
    if kind == "gradient":
        corners = Image.new("RGB", (2, 2))
        for x, y in ((0, 0), (0, 1), (1, 0), (1, 1)):
            corners.putpixel((x, y), nearby())
        image = corners.resize((_CANVAS, _CANVAS), Image.Resampling.BILINEAR)
    elif kind == "blocks":
        for _ in range(rng.randint(5, 9)):
            left, top = rng.randint(-24, _CANVAS), rng.randint(-24, _CANVAS)
            draw.rectangle((left, top, left + rng.randint(10, 48), top + rng.randint(10, 48)), fill=nearby())
    elif kind == "lines":
        for _ in range(rng.randint(5, 9)):
            ends = [(rng.randint(-20, _CANVAS + 20), rng.randint(-20, _CANVAS + 20)) for _ in range(2)]
            draw.line(ends, fill=nearby(), width=rng.randint(2, 9))
    elif kind != "plain":
        raise ValueError(f"Expected a background, one of plain, gradient, blocks, lines, got {kind!r}")
    return image, grey


def draw_figure(composition: Composition, style: Style, seed: str) -> Drawing:
    """Draw one picture of 32x32 pixels; the same arguments always give the same picture.

    Args:
        composition: texture, colour and shape of the figure.
        style: ranges for everything else.
        seed: names the picture; its values are drawn from this string alone.
    """
    from PIL import Image, ImageDraw, ImageFilter

    rng = random.Random(f"{seed}/{composition.name}")
    canvas, grey = _background(style, rng)
    red, green, blue = (
        min(255, max(0, channel + rng.randint(-style.colour_jitter, style.colour_jitter)))
        for channel in COLOURS[composition.colour]
    )
    surface = _figure_surface(composition.texture, (red, green, blue), rng)

    scale = rng.uniform(*style.scale)
    rotation = rng.uniform(-style.rotation, style.rotation)
    half = _CANVAS / 2
    x0, y0 = (half + half * rng.uniform(-style.shift, style.shift) for _ in range(2))
    cosine, sine = math.cos(math.radians(rotation)), math.sin(math.radians(rotation))
    corners = []
    for x, y in ((-1, -1), (1, -1), (1, 1), (-1, 1)):
        x_bent = x + rng.uniform(-style.perspective, style.perspective)
        y_bent = y + rng.uniform(-style.perspective, style.perspective)
        x_turned, y_turned = cosine * x_bent - sine * y_bent, sine * x_bent + cosine * y_bent
        corners.append((x0 + half * scale * x_turned, y0 + half * scale * y_turned))
    coefficients = perspective_coefficients(corners, _TILE)
    how = (Image.Transform.PERSPECTIVE, coefficients, Image.Resampling.BILINEAR)
    mask = _figure_mask(composition.shape).transform((_CANVAS, _CANVAS), *how)
    canvas.paste(surface.transform((_CANVAS, _CANVAS), *how), mask=mask)

    if rng.random() < style.occlusion:
        level = rng.randrange(256)
        bar, place = rng.randint(8, 14), rng.randint(20, _CANVAS - 30)
        box = (0, place, _CANVAS, place + bar) if rng.random() < 0.5 else (place, 0, place + bar, _CANVAS)
        ImageDraw.Draw(canvas).rectangle(box, fill=(level, level, level))
    blur = rng.uniform(*style.blur)
    if blur > 0:
        canvas = canvas.filter(ImageFilter.GaussianBlur(round(blur * _SUPERSAMPLING, 3)))
    image = canvas.reduce(_SUPERSAMPLING)
    contrast = rng.uniform(*style.contrast)
    factors = [1 + rng.uniform(-style.tint, style.tint) for _ in range(3)]
    if style.tint > 0 or contrast != 1:
        image = change_light(image, contrast, factors)
    noise = rng.uniform(*style.noise)
    if noise > 0:
        image = add_noise(image, noise, rng)
    return Drawing(image, scale, rotation, blur, noise, grey)
