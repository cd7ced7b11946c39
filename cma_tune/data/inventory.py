"""What is there of a dataset, and what is wrong with it."""

from __future__ import annotations

import hashlib
import os
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from cma_tune.data.catalog import ENTRIES, CatalogEntry, locate
from cma_tune.data.class_names import class_names
from cma_tune.data.dataset import FileImages, ImageSource, SourceOptions, absent_images
from cma_tune.data.hub_form import is_hub_root
from cma_tune.data.layouts import miniature_sizes
from cma_tune.data.sources import load_dataset
from cma_tune.data.splits import Item, Split
from cma_tune.errors import UserError
from cma_tune.files import read_json

SAMPLE = 200
"""Images that are decoded unless all are."""


@dataclass(frozen=True)
class Finding:
    """One line of a check.

    Attributes:
        what: was looked at.
        expected, found: in words.
        state: ``ok``, ``warning`` or ``wrong``.
    """

    what: str
    expected: str
    found: str
    state: str = "ok"


def missing(entry: CatalogEntry, root: Path) -> list[str]:
    """What of a dataset's folder is not below `root`: paths, none if all is there."""
    folder = root / entry.folder
    wanted = [folder / entry.images]
    if entry.split_file is not None:
        wanted.append(folder / entry.split_file)
    return [str(path) for path in wanted if not path.exists()]


def check_dataset(
    name: str, root: Path, options: SourceOptions | None = None, decode_all: bool = False
) -> list[Finding]:
    """Look through a dataset: classes, counts, absent and damaged images, images in train and test alike.

    Args:
        name: as in `load_dataset`; catalogue datasets in their folders are looked through even if they can't
            be loaded.
        root: data root.
        options: columns and parts of general sources.
        decode_all: decode every image instead of a sample of 200.

    Raises:
        UserError: the dataset is not there at all, or its split can't be read.
    """
    findings: list[Finding] = []
    expected: tuple[int, int, int] | None = None
    if name in ENTRIES and ENTRIES[name].split_file is not None and not is_hub_root(root):
        entry = ENTRIES[name]
        folder = locate(entry, root.expanduser())
        split, findings = _lenient(entry, folder / str(entry.split_file))
        images: ImageSource = FileImages(folder / entry.images)
    else:
        dataset = load_dataset(name, root, options)
        split, images = dataset.split, dataset.images
        findings.append(Finding("split", "", dataset.origin))
    if name in ENTRIES and not is_hub_root(root):
        entry = ENTRIES[name]
        expected = miniature_sizes(root.expanduser() / entry.folder) or entry.sizes
        findings.append(_names(entry, split))
    findings += _counts(split, expected)
    absent: set[str] = set()
    if isinstance(images, FileImages):
        keys = absent_images(split, images.root)
        absent = set(keys)
        total = sum(len(items) for items in split.parts().values())
        findings.append(_of_none("absent images", keys, f"none of {total}"))
    present = [i for items in split.parts().values() for i in items if i.key not in absent]
    findings.append(_decoding(images, present, decode_all))
    findings.append(_alike(split, images, absent))
    return findings


def _of_none(what: str, wrong: Sequence[str], expected: str = "none", state: str = "wrong") -> Finding:
    if not wrong:
        return Finding(what, expected, "none")
    return Finding(what, expected, f"{len(wrong)} (first: {'; '.join(wrong[:3])})", state)


def _lenient(entry: CatalogEntry, path: Path) -> tuple[Split, list[Finding]]:
    """The split of a file as far as it can be read, and what is wrong with its classes and keys."""
    content = read_json(path, f"the split file of '{entry.name}'")
    parts: dict[str, tuple[Item, ...]] = {}
    names: dict[int, Counter[str]] = defaultdict(Counter)
    try:
        for part in ("train", "val", "test"):
            items = []
            for key, label, class_name in content[part]:
                items.append(Item(str(key), int(label)))
                names[int(label)][str(class_name)] += 1
            parts[part] = tuple(items)
    except (KeyError, TypeError, ValueError):
        raise UserError(
            f"Expected {path} to hold lists 'train', 'val' and 'test' of [path, label, class name], "
            "got another form; use the published split file."
        ) from None
    several = [
        f"label {label}: {', '.join(sorted(own))}" for label, own in sorted(names.items()) if len(own) > 1
    ]
    labels_of: dict[str, set[int]] = defaultdict(set)
    for label, own in names.items():
        for class_name in own:
            labels_of[class_name].add(label)
    twice = [f"'{n}': labels {', '.join(map(str, sorted(o)))}" for n, o in labels_of.items() if len(o) > 1]
    gaps = [str(label) for label in range(max(names, default=-1) + 1) if label not in names]
    doubled = [key for items in parts.values() for key, n in Counter(i.key for i in items).items() if n > 1]
    trained = {item.key for item in parts["train"]}
    again = [item.key for part in ("val", "test") for item in parts[part] if item.key in trained]
    count = max(names, default=-1) + 1
    called = tuple(names[label].most_common(1)[0][0] if label in names else "" for label in range(count))
    findings = [
        _of_none("labels with several names", several),
        _of_none("classes named twice", twice),
        _of_none("labels without a class", gaps),
        _of_none("images twice in a part", doubled),
        _of_none("training images in val or test", again),
    ]
    return Split(parts["train"], parts["val"], parts["test"], called), findings


def _names(entry: CatalogEntry, split: Split) -> Finding:
    ours = class_names(entry.name)
    if len(split.class_names) != len(ours):
        return Finding("classes", str(len(ours)), str(len(split.class_names)), "wrong")
    pairs = enumerate(zip(ours, split.class_names, strict=True))
    others = [f"{label} is '{found}', not '{name}'" for label, (name, found) in pairs if name != found]
    return (
        _of_none("class names", others, f"the {len(ours)} published ones")
        if others
        else Finding("class names", f"the {len(ours)} published ones", "the same")
    )


def _counts(split: Split, expected: tuple[int, int, int] | None) -> list[Finding]:
    findings = []
    for number, (part, items) in enumerate(split.parts().items()):
        per_class = Counter(item.label for item in items)
        counts = [per_class[label] for label in range(len(split.class_names))]
        each = " to ".join(map(str, dict.fromkeys((min(counts), max(counts))))) if items else ""
        spread = f"{len(items)}, {each} per class" if items else "0"
        good = expected is None or len(items) == expected[number]
        wanted = str(expected[number]) if expected is not None else ""
        findings.append(Finding(f"{part} images", wanted, spread, "ok" if good else "wrong"))
        # A dataset of test images alone has none of train and val, and validation may be absent altogether.
        if items and part != "val":
            empty = [f"'{split.class_names[label]}'" for label, count in enumerate(counts) if not count]
            findings.append(_of_none(f"classes without a {part} image", empty))
    return findings


def _decoding(images: ImageSource, present: Sequence[Item], decode_all: bool) -> Finding:
    chosen = present if decode_all else random.Random(0).sample(present, min(SAMPLE, len(present)))

    def trouble(item: Item) -> str | None:
        try:
            images.load(item.key)
        except UserError:
            return item.key
        return None

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # decoders let go of the GIL
        broken = [key for key in pool.map(trouble, chosen) if key is not None]
    how = "all" if decode_all else "a sample of"
    return _of_none("damaged images", broken, f"none of {how} {len(chosen)}")


def _alike(split: Split, images: ImageSource, absent: Iterable[str]) -> Finding:
    """Images of train and test with the same content."""
    what = "images of train in test, by content"
    gone = set(absent)
    train = {item.key for item in split.train} - gone
    test = {item.key for item in split.test} - gone - train
    if isinstance(images, FileImages):
        sizes = {key: images.status(key)[0] for key in sorted(train | test)}
        both = {sizes[key] for key in train} & {sizes[key] for key in test}
        digest_of = {key: images.digest(key) for key, size in sizes.items() if size in both}
    else:
        digest_of = {key: d for key in sorted(train | test) if (d := _pixels(images, key)) is not None}
    in_train = {digest_of[key]: key for key in sorted(train) if key in digest_of}
    same = [
        f"{key} is {in_train[digest_of[key]]}"
        for key in sorted(test)
        if key in digest_of and digest_of[key] in in_train
    ]
    return _of_none(what, same, state="warning")


def _pixels(images: ImageSource, key: str) -> bytes | None:
    try:
        picture = images.load(key)
    except UserError:
        return None
    return hashlib.blake2b(repr(picture.size).encode() + picture.tobytes()).digest()
