"""Pictures the embedded CLIP learns from: drawn figures, and digits rendered from fonts.

The 32 compositions of the data set ``shapes`` are never drawn here, and the handwritten digits of the data
set ``digits`` are never opened: every digit is a glyph of a font that Matplotlib ships.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from cma_tune.data.builtin.drawing import (
    ALL_COMPOSITIONS,
    Composition,
    Style,
    draw_figure,
)
from cma_tune.data.builtin.pixels import perspective_coefficients
from cma_tune.data.builtin.shapes import COMPOSITIONS as TEST_COMPOSITIONS

SIZE = 32
DIGIT_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
COMPOSITIONS: tuple[Composition, ...] = tuple(c for c in ALL_COMPOSITIONS if c not in TEST_COMPOSITIONS)

PRETRAINING_STYLE = Style(
    backgrounds=("plain", "gradient"),
    scale=(0.5, 0.95),
    rotation=20.0,
    perspective=0.05,
    shift=0.15,
    colour_jitter=15,
    blur=(0.0, 0.5),
    noise=(0.0, 10.0),
)

FONTS = (
    *("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSansMono", "DejaVuSansMono-Bold"),
    *("DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic"),
    *("STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", "STIXGeneralBolIta"),
    *("cmr10", "cmss10", "cmtt10", "cmb10", "cmti10"),
)
_GLYPH = 96  # pixels; glyphs are distorted at this size, then shrunk


@dataclass(frozen=True)
class Picture:
    """One picture for pretraining and every word of our vocabulary that is true of it.

    Attributes:
        pixels: uint8 [32, 32, 3].
        kind: ``"figure"`` or ``"digit"``.
        content: the figure's texture, colour and shape, or the digit's name.
        look: words on how it looks, e.g. ``{"small", "blurry"}``.
    """

    pixels: np.ndarray
    kind: str
    content: tuple[str, ...]
    look: frozenset[str]


def draw_pretraining_figure(seed: str) -> Picture:
    """Draw a figure of one of the 224 compositions that ``shapes`` does not hold."""
    composition = random.Random(f"{seed}/composition").choice(COMPOSITIONS)
    drawing = draw_figure(composition, PRETRAINING_STYLE, seed)
    look = {
        "large" if drawing.scale > 0.8 else "small" if drawing.scale < 0.62 else "",
        "tilted" if abs(drawing.rotation) > 12 else "upright" if abs(drawing.rotation) < 4 else "",
        "noisy" if drawing.noise > 6 else "clean" if drawing.noise < 2 else "",
        "blurry" if drawing.blur > 0.35 else "sharp" if drawing.blur < 0.1 else "",
        "dark" if drawing.background_grey < 70 else "bright" if drawing.background_grey > 185 else "",
    }
    content = (composition.texture, composition.colour, composition.shape)
    return Picture(np.asarray(drawing.image), "figure", content, frozenset(look - {""}))


@lru_cache(maxsize=len(FONTS) * 10)
def _glyph(font: str, digit: int) -> Image.Image:
    """Render a digit, white on black, cut to its own outline."""
    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{font}.ttf"
    canvas = Image.new("L", (2 * _GLYPH, 2 * _GLYPH), 0)
    drawer = ImageDraw.Draw(canvas)
    drawer.text((_GLYPH // 2, _GLYPH // 4), str(digit), fill=255, font=ImageFont.truetype(str(path), _GLYPH))
    box = canvas.getbbox()
    if box is None:
        raise ValueError(f"Expected font {font} to hold the digit {digit}, got an empty glyph")
    return canvas.crop(box)


def _bend(image: Image.Image, rng: random.Random, amount: float) -> Image.Image:
    """Displace the nodes of a 4x4 grid and stretch the cells between them, which makes print look written."""
    cells = 3
    step = image.width / cells
    nodes = {
        (i, j): (i * step + rng.gauss(0, amount) * step, j * step + rng.gauss(0, amount) * step)
        for i in range(cells + 1)
        for j in range(cells + 1)
    }
    mesh = []
    for i in range(cells):
        for j in range(cells):
            box = tuple(round(edge * step) for edge in (i, j, i + 1, j + 1))
            around = ((i, j), (i, j + 1), (i + 1, j + 1), (i + 1, j))
            mesh.append((box, tuple(value for node in around for value in nodes[node])))
    return image.transform(image.size, Image.Transform.MESH, mesh, Image.Resampling.BILINEAR)


def _thicken(image: Image.Image, pixels: int) -> Image.Image:
    """Grow strokes by ``pixels`` on every side, or thin them when it is negative."""
    if pixels == 0:
        return image
    kind = ImageFilter.MaxFilter if pixels > 0 else ImageFilter.MinFilter
    return image.filter(kind(2 * abs(pixels) + 1))


def render_digit(seed: str) -> Picture:
    """Render a digit from a font, then bend, thicken, turn, shear, shrink and enlarge it."""
    rng = random.Random(seed)
    digit = rng.randrange(10)
    strokes = rng.randint(-1, 5)
    rotation = rng.uniform(-14, 14)
    slant = rng.uniform(-0.3, 0.3)
    half_width, half_height = rng.uniform(0.32, 0.72), rng.uniform(0.72, 0.98)
    x0, y0 = rng.uniform(-0.12, 0.12), rng.uniform(-0.05, 0.05)

    flat = Image.new("L", (_GLYPH, _GLYPH), 0)
    margin = 8
    inner = _GLYPH - 2 * margin
    glyph = _glyph(rng.choice(FONTS), digit)
    width = round(inner * min(1.0, 1.5 * glyph.width / glyph.height))  # a one stays narrower than the others
    flat.paste(glyph.resize((width, inner), Image.Resampling.BICUBIC), ((_GLYPH - width) // 2, margin))
    flat = _thicken(_bend(flat, rng, rng.uniform(0.0, 0.16)), strokes)

    cosine, sine = np.cos(np.radians(rotation)), np.sin(np.radians(rotation))
    corners = []
    for x, y in ((-1, -1), (1, -1), (1, 1), (-1, 1)):
        x_flat, y_flat = half_width * 1.15 * (x - slant * y), half_height * 1.15 * y
        x_turned, y_turned = cosine * x_flat - sine * y_flat + x0, sine * x_flat + cosine * y_flat + y0
        corners.append((_GLYPH / 2 * (1 + x_turned), _GLYPH / 2 * (1 + y_turned)))
    coefficients = perspective_coefficients(corners, _GLYPH)
    placed = flat.transform(flat.size, Image.Transform.PERSPECTIVE, coefficients, Image.Resampling.BILINEAR)

    coarse = rng.random() < 0.7
    side = rng.randint(8, 16) if coarse else SIZE
    small = placed.resize((side, side), Image.Resampling.BOX).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    blur = 0.0 if coarse else rng.uniform(0.0, 1.2)
    ink = np.asarray(small.filter(ImageFilter.GaussianBlur(blur)), dtype=np.float64) / 255

    dark_paper = rng.random() < 0.6
    paper, pen = (0.0, 255.0) if dark_paper else (255.0, 0.0)
    paper += (1 if dark_paper else -1) * rng.choice((0, rng.uniform(0, 60)))
    pen += (-1 if dark_paper else 1) * rng.uniform(0, 80)
    noise = rng.choice((0.0, rng.uniform(0, 12)))
    grain = np.array([rng.gauss(0, 1) for _ in range(SIZE * SIZE)]).reshape(SIZE, SIZE)
    grey = np.clip(paper + (pen - paper) * ink + noise * grain, 0, 255).astype(np.uint8)
    look = {
        "thick" if strokes >= 4 else "thin" if strokes <= 0 else "",
        "tilted" if abs(rotation) > 9 else "upright" if abs(rotation) < 3 else "",
        "slanted" if abs(slant) > 0.2 else "",
        "blurry" if (coarse and side <= 11) or blur > 0.8 else "sharp" if not coarse and blur < 0.4 else "",
        "noisy" if noise > 6 else "clean" if noise == 0 else "",
        "dark" if dark_paper else "bright",
        "narrow" if half_width < 0.42 else "wide" if half_width > 0.62 else "",
    }
    pixels = np.repeat(grey[:, :, None], 3, axis=2)
    return Picture(pixels, "digit", (DIGIT_NAMES[digit],), frozenset(look - {""}))


def pretraining_picture(index: int, seed: int = 0) -> Picture:
    """Give picture ``index`` of the endless stream: even ones are figures, odd ones are digits."""
    name = f"pretraining/{seed}/{index}"
    return draw_pretraining_figure(name) if index % 2 == 0 else render_digit(name)
