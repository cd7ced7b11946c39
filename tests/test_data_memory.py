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


def test_preferred_images_take_the_room_of_others() -> None:
    source = Counted()
    images = RememberedImages(source, BYTES["a"] + BYTES["c"])
    for key in "ac":
        images.load(key)
    images.prefer("d")
    assert images.used == BYTES["a"] + BYTES["c"], "nothing is forgotten before its room is needed"
    images.load("d")  # takes the room of a, the oldest; c fits beside it
    assert images.used == BYTES["d"] + BYTES["c"]
    for _ in range(2):
        for key in "dac":
            images.load(key)
    assert source.loads == {"a": 3, "c": 1, "d": 1}, "what is not preferred takes nobody's room"
    images.prefer("b")  # larger than all there is
    assert images.load("b").size == SIZES["b"] and images.used <= images.budget


@pytest.mark.parametrize("threads", [1, 3])
def test_decoding_beforehand_ends_where_the_memory_does(
    threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cma_tune.data.memory.TURN", 2)
    source = Counted()
    images = RememberedImages(source, BYTES["a"] + BYTES["c"] + 1)  # never quite used up
    images.remember(["a", "damaged", "c", "b", "d", "also damaged"], threads)
    assert source.loads == {"a": 1, "damaged": 1, "c": 1, "b": 1}


def test_a_copy_in_another_process_starts_empty() -> None:
    images = RememberedImages(Counted(), sum(BYTES.values()))
    images.load("a")
    other = pickle.loads(pickle.dumps(images))
    assert other.used == 0 and other.budget == images.budget
    assert other.load("a").size == SIZES["a"]
