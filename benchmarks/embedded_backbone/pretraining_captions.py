"""Captions for the pretraining pictures, and which picture each caption is true of.

Captions vary in length and wording, with the class name mostly at the end, so that the text tower reads a
name at any place up to about the 25th token; prompt learning puts it after as many as 16 context tokens.
Words on the look of a picture ("blurry", "small") are used only where they are true: what comes before the
name then carries meaning.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from pretraining_images import DIGIT_NAMES, Picture

from cma_tune.data.builtin.drawing import COLOURS, SHAPES, TEXTURES

LOOKS = (
    *("small", "large", "tilted", "upright", "noisy", "clean", "blurry", "sharp", "dark", "bright"),
    *("thick", "thin", "slanted", "narrow", "wide"),
)
KINDS = ("figure", "digit")
WORDS: tuple[str, ...] = (*KINDS, *TEXTURES, *COLOURS, *SHAPES, *DIGIT_NAMES, *LOOKS)
_BIT = {word: 1 << i for i, word in enumerate(WORDS)}

_OPENERS = (
    *("here", "look", "as you can see", "in this picture", "what you see here", "from my collection"),
    *("in the middle of the frame", "another example for the album", "this is what the camera saw today"),
    *(
        "among all the pictures that we have in this whole set",
        "please note that in this image we can clearly see",
    ),
    "if you look at it for a while then you will surely find that it shows",
)
_CARRIERS = (
    *("a", "a photo of a", "a picture of a", "an image of a", "this is a", "a drawing of a", "the"),
    *(
        "a photo of the",
        "a close photo of a",
        "there is a",
        "it shows a",
        "a good photo of a",
    ),
    *(
        "a bad photo of a",
        "art of a",
        "a rendering of a",
        "itap of a",
        "my",
        "a sketch of the",
        "a view of the",
    ),
)
_LOOK_CARRIERS = ("a {} photo of a", "a {} picture of the", "a {} image of a", "a {} drawing of some", "{}")
_DIGIT_NOUNS = ("", "", "digit", "digit", "number", "handwritten", "printed", "handwritten digit")
_CLOSERS = (
    "on paper",
    "in the picture",
    "seen from the front",
    "in the middle of the picture",
    "made by a computer",
)


@dataclass(frozen=True)
class Caption:
    """A caption and the vocabulary words it says, as a set of bits over :data:`WORDS`."""

    text: str
    says: int


def bits(words: tuple[str, ...] | frozenset[str]) -> int:
    """Return the set of words as an integer, bit i for ``WORDS[i]``."""
    return sum(_BIT[word] for word in set(words))


def picture_bits(picture: Picture) -> int:
    """Return every word that is true of the picture; a caption is true of it when it says no other."""
    return bits((picture.kind, *picture.content, *picture.look))


def _name(picture: Picture, rng: random.Random) -> tuple[tuple[str, ...], str]:
    """Choose the words that name the picture: all of a figure's, now and then only a part of them."""
    words = picture.content
    if picture.kind == "figure" and rng.random() < 0.15:
        words = rng.choice((words[1:], words[:1] + words[2:], words[2:]))
    return words, " ".join(words)


def caption_of(picture: Picture, rng: random.Random) -> Caption:
    """Make up a caption that is true of the picture."""
    words, name = _name(picture, rng)
    said: list[str] = [picture.kind, *words]
    if picture.kind == "digit":
        noun = rng.choice(_DIGIT_NOUNS)
        name = f"{noun} {name}".strip()
    pieces = []
    if rng.random() < 0.5:
        pieces += rng.sample(_OPENERS, 1 if rng.random() < 0.65 else 2)
    look = [word for word in LOOKS if word in picture.look]  # in a fixed order: sets have none
    if look and rng.random() < 0.35:
        word = rng.choice(look)
        said.append(word)
        pieces.append(rng.choice(_LOOK_CARRIERS).format(word))
    elif rng.random() < 0.85:
        pieces.append(rng.choice(_CARRIERS))
    pieces.append(name)
    if rng.random() < 0.12:
        pieces.append(rng.choice(_CLOSERS))
    return Caption(" ".join(pieces) + rng.choice((".", ".", "")), bits(tuple(said)))
