"""The drawn data set: classes, split, and pictures that do not change."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from cma_tune.data.builtin import load_builtin
from cma_tune.data.builtin.drawing import (
    ALL_COMPOSITIONS,
    COLOURS,
    SHAPES,
    TEXTURES,
    perspective_coefficients,
)
from cma_tune.data.builtin.shapes import COMPOSITIONS

DATA = load_builtin("shapes")

# Mean of each channel and standard deviation of a few pictures of version 1, read once. Another Pillow may
# move a pixel by a little, a change of the drawing moves these by much more than the tolerance.
STATISTICS = {
    "test/031/0039": (142.75, 157.07, 137.14, 26.52),
    "train/000/0000": (76.42, 30.42, 43.16, 53.37),
    "train/013/0049": (178.52, 83.34, 134.11, 60.79),
    "val/022/0007": (120.88, 96.11, 89.37, 26.57),
}


def test_parts() -> None:
    assert {part: len(items) for part, items in DATA.parts.items()} == {
        "train": 1600,
        "val": 640,
        "test": 1280,
    }
    for part, count in (("train", 50), ("val", 20), ("test", 40)):
        assert Counter(label for _, label in DATA.parts[part]) == dict.fromkeys(range(32), count)
    keys = [key for items in DATA.parts.values() for key, _ in items]
    assert len(set(keys)) == len(keys)


def test_names_are_the_compositions_words() -> None:
    assert len(set(DATA.class_names)) == 32
    for name, composition in zip(DATA.class_names, COMPOSITIONS, strict=True):
        assert name.split(" ") == [composition.texture, composition.colour, composition.shape]
        assert composition in ALL_COMPOSITIONS


@pytest.mark.parametrize("half", [COMPOSITIONS[:16], COMPOSITIONS[16:]], ids=["base", "novel"])
def test_each_half_is_a_fair_mix(half: tuple) -> None:
    assert Counter(c.shape for c in half) == dict.fromkeys(SHAPES, 2)
    assert Counter(c.colour for c in half) == dict.fromkeys(COLOURS, 2)
    assert Counter(c.texture for c in half) == dict.fromkeys(TEXTURES, 4)


def test_pictures_depend_on_the_key_alone() -> None:
    keys = [DATA.parts[part][i][0] for part in DATA.parts for i in (0, 321)]
    forwards = {key: DATA.load(key).tobytes() for key in keys}
    backwards = {key: load_builtin("shapes").load(key).tobytes() for key in reversed(keys)}
    assert forwards == backwards
    assert len(set(forwards.values())) == len(keys)


def test_pictures_are_the_same_in_another_process() -> None:
    code = (
        "import hashlib; from cma_tune.data.builtin import load_builtin; load = load_builtin('shapes').load;"
        "print(hashlib.sha256(load('test/031/0039').tobytes()).hexdigest())"
    )

    there = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.strip()
    assert there == hashlib.sha256(DATA.load("test/031/0039").tobytes()).hexdigest()


def test_pictures_stay_those_of_this_version() -> None:
    assert DATA.version == "1"
    for key, expected in STATISTICS.items():
        image = DATA.load(key)
        assert (image.mode, image.size) == ("RGB", (32, 32))
        pixels = np.asarray(image, dtype=np.float64)
        got = (*pixels.mean(axis=(0, 1)), pixels.std())
        np.testing.assert_allclose(got, expected, atol=0.5, err_msg=key)


def test_perspective_brings_the_tiles_corners_to_the_canvas() -> None:
    corners = [(10.0, 12.0), (80.0, 5.0), (90.0, 88.0), (3.0, 70.0)]
    a, b, c, d, e, f, g, h = perspective_coefficients(corners, 96)
    for (x, y), expected in zip(corners, [(0, 0), (96, 0), (96, 96), (0, 96)], strict=True):
        scale = g * x + h * y + 1
        assert ((a * x + b * y + c) / scale, (d * x + e * y + f) / scale) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    "key", ["train/032/0000", "train/000/0050", "val/0/0", "best/000/0000", "train/000/٠٠٠٠"]
)
def test_unknown_key(key: str) -> None:
    with pytest.raises(KeyError):
        DATA.load(key)


def test_import_is_light() -> None:
    code = (
        "import sys, cma_tune.data.builtin as b; assert b.BUILTIN_NAMES;"
        "print([m for m in ('torch', 'sklearn', 'PIL', 'numpy') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"
