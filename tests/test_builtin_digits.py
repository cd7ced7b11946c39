"""The embedded handwritten digits: split, keys, images."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from sklearn.datasets import load_digits as sklearn_digits

from cma_tune.data.builtin import BUILTIN_NAMES, load_builtin

DATA = load_builtin("digits")

# The split is a promise: these keys were read once from the split of version 1.
FIRST_TRAIN = ["train/000/0010", "train/000/0020", "train/000/0036"]
LAST_TEST = ["test/009/1696", "test/009/1706", "test/009/1772"]


def test_every_scan_is_in_exactly_one_part() -> None:
    rows = [int(key.rsplit("/", 1)[1]) for items in DATA.parts.values() for key, _ in items]
    assert sorted(rows) == list(range(1797))
    keys = [key for items in DATA.parts.values() for key, _ in items]
    assert len(set(keys)) == 1797


def test_labels_are_those_of_the_scans() -> None:
    target = sklearn_digits().target
    for items in DATA.parts.values():
        assert all(target[int(key.rsplit("/", 1)[1])] == label for key, label in items)


def test_split_is_stratified_and_fixed() -> None:
    assert {part: len(items) for part, items in DATA.parts.items()} == {"train": 896, "val": 355, "test": 546}
    totals = Counter(sklearn_digits().target.tolist())
    for part, share in (("train", 0.5), ("val", 0.2)):
        counts = Counter(label for _, label in DATA.parts[part])
        assert counts == {label: int(share * total) for label, total in totals.items()}
    assert DATA.version == "1"
    assert [key for key, _ in DATA.parts["train"][:3]] == FIRST_TRAIN
    assert [key for key, _ in DATA.parts["test"][-3:]] == LAST_TEST


def test_image_is_the_scan_enlarged() -> None:
    for key, _ in DATA.parts["test"][::50]:
        image = DATA.load(key)
        assert (image.mode, image.size) == ("RGB", (32, 32))
        pixels = np.asarray(image, dtype=np.float64)
        assert (pixels == pixels[:, :, :1]).all()
        # Averaging 4x4 blocks undoes the enlargement up to bicubic's overshoot at the edges of strokes.
        blocks = pixels[:, :, 0].reshape(8, 4, 8, 4).mean(axis=(1, 3)) * 16 / 255
        scan = sklearn_digits().images[int(key.rsplit("/", 1)[1])]
        assert np.corrcoef(blocks.ravel(), scan.ravel())[0, 1] > 0.98


def test_images_are_deterministic_and_loaded_by_key_alone() -> None:
    key = DATA.parts["val"][17][0]
    assert DATA.load(key).tobytes() == load_builtin("digits").load(key).tobytes()
    assert DATA.load(key).tobytes() != DATA.load(DATA.parts["val"][18][0]).tobytes()


def test_names_and_templates() -> None:
    assert DATA.class_names == (
        "zero",
        "one",
        "two",
        "three",
        "four",
        "five",
        "six",
        "seven",
        "eight",
        "nine",
    )
    assert all(template.count("{}") == 1 for template in DATA.templates)


@pytest.mark.parametrize("key", ["", "train/000/9999", "test/000/0000/", "0"])
def test_unknown_key(key: str) -> None:
    with pytest.raises(KeyError):
        DATA.load(key)


def test_unknown_name_lists_what_there_is() -> None:
    with pytest.raises(ValueError, match=r"one of digits, shapes, got 'digit'; did you mean 'digits'\?"):
        load_builtin("digit")
    assert all(load_builtin(name).name == name for name in BUILTIN_NAMES)
