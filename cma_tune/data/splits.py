"""Splits: which image belongs to train, validation and test, and to which class."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cma_tune.errors import UserError
from cma_tune.files import read_json


@dataclass(frozen=True)
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
        content = {name: [[item.key, item.label] for item in items] for name, items in self.parts().items()}
        content["class_names"] = [[name] for name in self.class_names]
        return hashlib.sha256(json.dumps(content, ensure_ascii=False).encode()).hexdigest()

    def restricted_to(self, labels: Sequence[int]) -> Split:
        """Only these classes, relabelled from 0 in the order given."""
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


def check_split(split: Split, name: str) -> Split:
    """Return `split` if every label has a class name, keys are unique within each part, and train and test hold images.

    Raises:
        UserError: otherwise, with what was found.
    """
    classes = len(split.class_names)
    for part, items in split.parts().items():
        wrong = sorted({item.label for item in items if not 0 <= item.label < classes})
        if wrong:
            raise UserError(
                f"Expected labels 0 to {classes - 1} for the {classes} class names of '{name}', got {wrong[:3]} "
                f"in its {part} part; make the labels match the class names."
            )
        twice = [key for key, count in Counter(item.key for item in items).items() if count > 1]
        if twice:
            raise UserError(
                f"Expected every image of '{name}' once in its {part} part, got {len(twice)} more than once "
                f"(first: {twice[0]}); remove the repetitions."
            )
    for part in ("train", "test"):
        if not split.parts()[part]:
            raise UserError(f"Expected images in the {part} part of '{name}', got none; check the split.")
    return split


def read_coop_split(path: Path, name: str) -> Split:
    """Read a split file in CoOp's form: ``{"train"|"val"|"test": [[relative path, label, class name], …]}``.

    Raises:
        UserError: the file has another form, or one label carries two class names.
    """
    content = read_json(path, f"the split file of '{name}'")
    names: dict[int, str] = {}
    parts: dict[str, tuple[Item, ...]] = {}
    try:
        for part in ("train", "val", "test"):
            items = []
            for key, label, class_name in content[part]:
                if not isinstance(label, int) or not isinstance(key, str) or not isinstance(class_name, str):
                    raise TypeError
                if names.setdefault(label, class_name) != class_name:
                    raise UserError(
                        f"Expected one class name per label in {path}, got '{names[label]}' and '{class_name}' "
                        f"for label {label}; mend the split file."
                    )
                items.append(Item(key, label))
            parts[part] = tuple(items)
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"Expected {path} to hold lists 'train', 'val' and 'test' of [path, label, class name], "
            "got another form; use the published split file."
        ) from None
    if sorted(names) != list(range(len(names))):
        raise UserError(
            f"Expected labels 0 to {len(names) - 1} without gaps in {path}, got {sorted(names)[-3:]} as the last; "
            "mend the split file."
        )
    class_names = tuple(names[label] for label in range(len(names)))
    return check_split(Split(parts["train"], parts["val"], parts["test"], class_names), name)


def prompt_name(class_name: str) -> str:
    """The class name as it is put into prompts: underscores become spaces."""
    return class_name.replace("_", " ")
