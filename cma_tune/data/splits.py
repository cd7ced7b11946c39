"""Splits: which image belongs to train, validation and test, and to which class."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath, PureWindowsPath

from cma_tune.data.faults import Complain, refuse
from cma_tune.errors import UserError
from cma_tune.files import read_json

TWICE, SHARED = "images twice in a part", "training images in val or test"
"""Faults of any split."""

OUTSIDE = "paths that leave the image folder"
"""Fault of a split file or list."""


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

    def classes_without(self, part: str) -> list[str]:
        """Names of the classes that have no image in "train", "val" or "test", in label order."""
        present = {item.label for item in self.parts()[part]}
        return [name for label, name in enumerate(self.class_names) if label not in present]

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


def check_split(split: Split, name: str, test_only: bool = False, complain: Complain = refuse) -> Split:
    """Return `split` if its labels have class names and every image is where it should be.

    Train and test must hold images, no image may come twice in a part, and no training image may come again
    in validation or test. Validation may be test itself. With `test_only` there may be no training images.

    Raises:
        UserError: otherwise, with what was found (`complain` may go on instead).
    """
    classes = len(split.class_names)
    check_keys(split.parts(), name, complain)
    for part, items in split.parts().items():
        wrong = sorted({item.label for item in items if not 0 <= item.label < classes})
        if wrong:
            complain(
                "labels without a class name",
                [f"{label} in {part}" for label in wrong],
                f"Expected labels 0 to {classes - 1} for the {classes} class names of '{name}', "
                f"got {', '.join(map(str, wrong[:3]))} in its {part} part; "
                "make the labels match the class names.",
            )
        if not items and (part == "test" or (part == "train" and not test_only)):
            complain(
                "parts without images",
                [part],
                f"Expected images in the {part} part of '{name}', got none; check the split.",
            )
    return split


def check_keys(parts: Mapping[str, Sequence[Item]], name: str, complain: Complain = refuse) -> None:
    """Check that no image comes twice in a part, and no training image again in another.

    Raises:
        UserError: otherwise, with the number of images and the first (`complain` may go on instead).
    """
    keys = {part: [item.key for item in items] for part, items in parts.items()}
    trained_on = set(keys.get("train", ()))
    for part, own in keys.items():
        if len(set(own)) < len(own):
            twice = [key for key, count in Counter(own).items() if count > 1]
            complain(
                TWICE,
                twice,
                f"Expected every image of '{name}' once in its {part} part, got {len(twice)} more than once "
                f"(first: {twice[0]}); remove the repetitions.",
            )
        shared = [key for key in own if key in trained_on] if part != "train" else []
        if shared:
            complain(
                SHARED,
                shared,
                f"Expected no training image of '{name}' in its {part} part, got {len(shared)} "
                f"(first: {shared[0]}); leave every image in one part.",
            )


def read_coop_split(path: Path, name: str, complain: Complain = refuse) -> Split:
    """Read a split file in CoOp's form: ``{"train"|"val"|"test": [[relative path, label, class name], …]}``.

    Raises:
        UserError: the file has another form, labels leave gaps, one label carries two class names or one
            name two labels, or the split fails `check_split` (`complain` may go on with the rest instead).
    """
    try:
        content = read_json(path, f"the split file of '{name}'")
    except UserError as error:
        complain("split file", ["can't be read as JSON" if path.exists() else "missing"], str(error))
        return Split((), (), (), ())
    parts, names = _coop_parts(content, path, complain)
    _check_names(names, path, complain)
    # A label far outside would make a list of that length.
    count = max(len(names), min(max(names, default=-1) + 1, 2 * len(names)))
    gaps = [label for label in range(count) if label not in names]
    if gaps:
        complain(
            "labels without a class",
            [str(gap) for gap in gaps],
            f"Expected labels 0 to {len(names) - 1} for the {len(names)} classes in {path}, "
            f"but none is {gaps[0]}; mend the split file.",
        )
    called = (names[label].most_common(1)[0][0] if label in names else "" for label in range(count))
    return check_split(Split(**parts, class_names=tuple(called)), name, complain=complain)


def _coop_parts(
    content: object, path: Path, complain: Complain
) -> tuple[dict[str, tuple[Item, ...]], dict[int, Counter[str]]]:
    """Items by part, and how often each label carries which class name."""
    names: dict[int, Counter[str]] = defaultdict(Counter)
    parts: dict[str, tuple[Item, ...]] = {"train": (), "val": (), "test": ()}
    another_form = (
        f"Expected {path} to hold lists 'train', 'val' and 'test' of [path, label, class name], "
        "got another form; use the published split file."
    )
    for part in parts:
        rows = content.get(part) if isinstance(content, dict) else None
        if not isinstance(rows, list):
            complain("lists missing in the split file", [part], another_form)
            continue
        good = [row for row in rows if _is_coop_row(row)]
        if len(good) < len(rows):
            wrong = [json.dumps(row)[:60] for row in rows if not _is_coop_row(row)]
            complain("rows of another form", wrong, another_form)
        parts[part] = inside(tuple(Item(key, label) for key, label, _ in good), path, complain)
        for _, label, class_name in good:
            names[label][class_name] += 1
    return parts, names


def inside(items: Sequence[Item], path: Path, complain: Complain = refuse) -> tuple[Item, ...]:
    """The items whose keys are paths below the image folder; `path` is the file that names them.

    Raises:
        UserError: one is absolute or goes up by ".." (`complain` may go on without such items).
    """
    kept = tuple(item for item in items if _is_below(item.key))
    if len(kept) < len(items):
        out = [item.key for item in items if not _is_below(item.key)]
        complain(
            OUTSIDE,
            out,
            f"Expected paths below the image folder in {path}, got {len(out)} that leave it "
            f"(first: {out[0]}); use the published file.",
        )
    return kept


def _is_below(key: str) -> bool:
    # A file made on another system may be malicious in that system's way.
    ways = PurePosixPath(key), PureWindowsPath(key)
    return not any(way.is_absolute() or way.drive or ".." in way.parts for way in ways)


def _is_coop_row(row: object) -> bool:
    # `true` is an int to Python, but no label.
    return (
        isinstance(row, list)
        and len(row) == 3
        and isinstance(row[0], str)
        and type(row[1]) is int
        and isinstance(row[2], str)
    )


def _check_names(names: Mapping[int, Mapping[str, int]], path: Path, complain: Complain) -> None:
    """One class name per label, and one label per class name."""
    labels_of: dict[str, list[int]] = defaultdict(list)
    for label, own in sorted(names.items()):
        for class_name in own:
            labels_of[class_name].append(label)
        if len(own) > 1:
            first, second, *_ = own
            complain(
                "labels with several names",
                [f"label {label}: {', '.join(sorted(own))}"],
                f"Expected one class name per label in {path}, "
                f"got '{first}' and '{second}' for label {label}; mend the split file.",
            )
    for class_name, labels in labels_of.items():
        if len(labels) > 1:
            complain(
                "classes named twice",
                [f"'{class_name}': labels {', '.join(map(str, labels))}"],
                f"Expected every class named once in {path}, got '{class_name}' for labels "
                f"{' and '.join(map(str, labels))}; mend the split file.",
            )


def prompt_name(class_name: str) -> str:
    """The class name as it is put into prompts: underscores become spaces."""
    return class_name.replace("_", " ")
