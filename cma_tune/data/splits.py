"""Splits: which image belongs to train, validation and test, and to which class."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cma_tune.errors import UserError
from cma_tune.files import read_json


@dataclass(frozen=True, slots=True)
class Item:
    """One image of a split: the key its source loads it by, and its class label."""

    key: str
    label: int


@dataclass(frozen=True)
class Split:
    """Train, validation and test items over `class_names` (position = label)."""

    train: tuple[Item, ...]
    val: tuple[Item, ...]
    test: tuple[Item, ...]
    class_names: tuple[str, ...]

    def parts(self) -> dict[str, tuple[Item, ...]]:
        """The three parts by name."""
        return {"train": self.train, "val": self.val, "test": self.test}

    def digest(self) -> str:
        """SHA-256 over parts, keys, labels and class names, in order: equal digests are equal splits."""
        parts = {name: [[item.key, item.label] for item in items] for name, items in self.parts().items()}
        # Plain ASCII, because file names on disk need not be valid UTF-8.
        return hashlib.sha256(json.dumps({**parts, "class_names": self.class_names}).encode()).hexdigest()

    def restricted_to(self, labels: Sequence[int]) -> Split:
        """Only these classes, relabelled from 0 in the order given.

        Raises:
            ValueError: a label comes twice or has no class name.
        """
        if len(set(labels)) < len(labels) or not set(labels) <= set(range(len(self.class_names))):
            raise ValueError(
                f"Expected distinct labels from 0 to {len(self.class_names) - 1}, got {list(labels)}."
            )
        new_label = {old: new for new, old in enumerate(labels)}

        def keep(items: Iterable[Item]) -> tuple[Item, ...]:
            return tuple(Item(i.key, new_label[i.label]) for i in items if i.label in new_label)

        return replace(
            self,
            train=keep(self.train),
            val=keep(self.val),
            test=keep(self.test),
            class_names=tuple(self.class_names[label] for label in labels),
        )


def base_novel_labels(classes: int) -> tuple[list[int], list[int]]:
    """Labels of the base half, the first ceil(n/2), and of the novel half (CoCoOp's protocol).

    Raises:
        UserError: there are fewer than two classes.
    """
    if classes < 2:
        raise UserError(
            f"Expected at least 2 classes for base and novel halves, got {classes}; use few-shot instead."
        )
    half = math.ceil(classes / 2)
    return list(range(half)), list(range(half, classes))


def check_split(split: Split, name: str, test_only: bool = False) -> Split:
    """Return `split` if its labels have class names and every image is where it should be.

    Train and test must hold images, no image may come twice in a part, and no training image may come again
    in validation or test. Validation may be test itself. With `test_only` there may be no training images.

    Raises:
        UserError: otherwise, with what was found.
    """
    classes = len(split.class_names)
    check_keys(split.parts(), name)
    for part, items in split.parts().items():
        wrong = sorted({item.label for item in items if not 0 <= item.label < classes})
        if wrong:
            raise UserError(
                f"Expected labels 0 to {classes - 1} for the {classes} class names of '{name}', "
                f"got {', '.join(map(str, wrong[:3]))} in its {part} part; "
                "make the labels match the class names."
            )
        if not items and (part == "test" or (part == "train" and not test_only)):
            raise UserError(f"Expected images in the {part} part of '{name}', got none; check the split.")
    return split


def check_keys(parts: Mapping[str, Sequence[Item]], name: str) -> None:
    """Check that no image comes twice in a part, and no training image again in another.

    Raises:
        UserError: otherwise, with the number of images and the first.
    """
    keys = {part: [item.key for item in items] for part, items in parts.items()}
    trained_on = set(keys.get("train", ()))
    for part, own in keys.items():
        if len(set(own)) < len(own):
            twice = [key for key, count in Counter(own).items() if count > 1]
            raise UserError(
                f"Expected every image of '{name}' once in its {part} part, got {len(twice)} more than once "
                f"(first: {twice[0]}); remove the repetitions."
            )
        shared = [key for key in own if key in trained_on] if part != "train" else []
        if shared:
            raise UserError(
                f"Expected no training image of '{name}' in its {part} part, got {len(shared)} "
                f"(first: {shared[0]}); leave every image in one part."
            )


def read_coop_split(path: Path, name: str) -> Split:
    """Read a split file in CoOp's form: ``{"train"|"val"|"test": [[relative path, label, class name], …]}``.

    Raises:
        UserError: the file has another form, labels leave gaps, one label carries two class names, or the
            split fails `check_split`.
    """
    content = read_json(path, f"the split file of '{name}'")
    names: dict[int, str] = {}
    try:
        train, val, test = (_coop_items(content[part], names, path) for part in ("train", "val", "test"))
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"Expected {path} to hold lists 'train', 'val' and 'test' of [path, label, class name], "
            "got another form; use the published split file."
        ) from None
    gaps = [label for label in range(len(names)) if label not in names]
    if gaps:
        raise UserError(
            f"Expected labels 0 to {len(names) - 1} for the {len(names)} classes in {path}, "
            f"but none is {gaps[0]}; mend the split file."
        )
    class_names = tuple(names[label] for label in range(len(names)))
    return check_split(Split(train, val, test, class_names), name)


def _coop_items(rows: Iterable[object], names: dict[int, str], path: Path) -> tuple[Item, ...]:
    """Items of one part; `names` learns the class names. Another form is a TypeError or ValueError."""
    items = []
    for row in rows:
        if not isinstance(row, list):
            raise TypeError
        key, label, class_name = row
        # `true` is an int to Python, but no label.
        if not (isinstance(key, str) and type(label) is int and isinstance(class_name, str)):
            raise TypeError
        if names.setdefault(label, class_name) != class_name:
            raise UserError(
                f"Expected one class name per label in {path}, "
                f"got '{names[label]}' and '{class_name}' for label {label}; mend the split file."
            )
        items.append(Item(key, label))
    return tuple(items)


def prompt_name(class_name: str) -> str:
    """The class name as it is put into prompts: underscores become spaces."""
    return class_name.replace("_", " ")
