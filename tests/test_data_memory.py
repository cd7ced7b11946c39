"""Decoded images kept in memory, within a budget."""

from __future__ import annotations

import pickle
from collections import Counter

import pytest
from PIL import Image

from cma_tune.data.memory import BYTES_PER_PIXEL, RememberedImages
from cma_tune.errors import UserError

SIZES = {"a": (10, 10), "b": (20, 10), "c": (5, 4), "d": (10, 10)}
BYTES = {key: width * height * BYTES_PER_PIXEL for key, (width, height) in SIZES.items()}


class Counted:
    """Draws an image per key and counts how often."""

    def __init__(self) -> None:
        self.loads: Counter[str] = Counter()

    def load(self, key: str) -> Image.Image:
        self.loads[key] += 1
        if key not in SIZES:
            raise UserError(f"Expected an image, got none at {key}.")
        return Image.new("RGB", SIZES[key], (ord(key), 0, 0))

    def content(self, key: str) -> str:
        return key

    def fingerprint(self, key: str) -> str:
        return f"print of {key}"


def test_an_image_is_decoded_once_while_it_fits() -> None:
    source = Counted()
    images = RememberedImages(source, BYTES["a"] + BYTES["c"])
    for _ in range(3):
        for key in "abc":
            image = images.load(key)
            assert image.size == SIZES[key] and image.getpixel((0, 0)) == (ord(key), 0, 0)
    assert source.loads == {"a": 1, "b": 3, "c": 1}
    assert images.used == BYTES["a"] + BYTES["c"]
    assert images.fingerprint("a") == "print of a"


@pytest.mark.parametrize("threads", [1, 4])
def test_remembering_beforehand(threads: int) -> None:
    source = Counted()
    images = RememberedImages(source, sum(BYTES.values()))
    images.remember(["a", "b", "a", "damaged", "c"], threads)
    for key in "abc":
        images.load(key)
    assert source.loads == {"a": 1, "b": 1, "c": 1, "damaged": 1}
    with pytest.raises(UserError, match="got none at damaged"):
        images.load("damaged")


def test_nothing_is_decoded_beforehand_without_a_budget() -> None:
    source = Counted()
    images = RememberedImages(source, 0)
    images.remember("abc", 2)
    assert not source.loads and images.load("a").size == SIZES["a"]


def test_room_is_made_when_an_image_has_not_fitted() -> None:
    source = Counted()
    images = RememberedImages(source, BYTES["a"] + BYTES["c"])
    images.load("a")
    images.load("c")
    images.make_room("c")  # all of it has fitted
    assert images.used == BYTES["a"] + BYTES["c"] and not images.full
    images.load("b")
    assert images.full
    images.make_room(["c", "c", "d"])
    assert images.used == BYTES["c"] and not images.full
    for _ in range(2):
        for key in "cd":
            images.load(key)
    assert source.loads == {"a": 1, "b": 1, "c": 1, "d": 1}


def test_what_is_not_decoded_beforehand_has_not_fitted() -> None:
    images = RememberedImages(Counted(), BYTES["a"])
    images.remember("a" * 64, 1)
    assert not images.full
    images.remember("d", 1)
    assert images.full


def test_a_copy_in_another_process_starts_empty() -> None:
    images = RememberedImages(Counted(), sum(BYTES.values()))
    images.load("a")
    other = pickle.loads(pickle.dumps(images))
    assert other.used == 0 and other.budget == images.budget
    assert other.load("a").size == SIZES["a"]
