"""What is wrong with a dataset, in one table."""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from cma_tune.data.alike import content_digests, trained_again
from cma_tune.data.catalog import ENTRIES, IMAGES_FROM, VARIANTS, CatalogEntry
from cma_tune.data.class_names import class_names
from cma_tune.data.dataset import ABSENT, Dataset, FileImages, ImageSource, SourceOptions
from cma_tune.data.hub_form import KeyedImages, hub_place, is_hub_root
from cma_tune.data.hub_repositories import HUB
from cma_tune.data.layouts import miniature_sizes
from cma_tune.data.listings import images_below
from cma_tune.data.own_catalog import own_entries
from cma_tune.data.splits import SHARED, TWICE, Item, Split
from cma_tune.data.survey import SINGLE, Shortfalls, other_names, some_of, survey
from cma_tune.errors import UserError

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


def check_dataset(
    name: str, root: Path, options: SourceOptions | None = None, decode_all: bool = False
) -> list[Finding]:
    """Look through a dataset: form, classes, counts, absent and damaged images, images that are alike.

    It goes on after a fault as far as anything can be read.

    Args:
        name: as in `load_dataset`.
        root: data root.
        options: columns and parts of general sources and the Hub's form.
        decode_all: decode every image instead of a sample of 200.

    Raises:
        UserError: the dataset is not there at all.
    """
    found = survey(name, root, options)
    faults = [_fault(name, what, where) for what, where in found.faults.items()]
    if found.dataset is None:
        return faults
    split, images = found.dataset.split, found.dataset.images
    against = _against_catalogue(name, root, found.dataset) if name in ENTRIES else _counts(split)
    items = [item for part in split.parts().values() for item in part]
    if not items:
        # What is wrong with the split says enough: counts of nothing would say it again, part by part.
        against = [] if faults else against
        if isinstance(images, FileImages):
            items, counted = _files_without_split(name, root, images.root)
            against += [counted, _decoding(images, items, decode_all)]
        return _last_of_each([*faults, *against])
    looked_at = [_of_none(what, ()) for what in (TWICE, SHARED)]
    gone = found.faults.get(ABSENT, [])
    if isinstance(images, FileImages):
        away = list(dict.fromkeys(item.key for item in items if _leaves(images.root, item.key)))
        looked_at.append(_of_none("paths outside the folder", away, state="warning"))
        faults.append(_of_none(ABSENT, gone, f"none of {len(items)}"))
    present = list({item.key: item for item in items if item.key not in set(gone)}.values())
    return _last_of_each(
        [
            Finding("split", "", found.dataset.origin),
            *looked_at,
            *faults,
            *against,
            _decoding(images, present, decode_all),
            *_alike(split, images, gone),
        ]
    )


def hub_shortfalls(entry: CatalogEntry, root: Path) -> Shortfalls:
    """What a table of a dataset in the Hub's form lacks against the repository's or the catalogue's counts.

    A miniature is held against its own sizes. Nothing is decoded.

    Raises:
        UserError: the table can't be opened, or is not the dataset's at all.
    """
    found = survey(entry.name, root)
    if found.dataset is None:
        return Shortfalls(found.texts())
    wrong = [one for one in _against_catalogue(entry.name, root, found.dataset) if one.state == "wrong"]
    texts = [f"{one.what}: {one.found}" + _instead_of(one.expected) for one in wrong]
    sizes = tuple(map(len, found.dataset.split.parts().values()))
    return Shortfalls([*found.texts(), *texts], sizes=sizes)


def _instead_of(expected: str) -> str:
    return "" if expected == "none" else f" instead of {expected}"


def _leaves(root: Path, key: str) -> bool:
    """Whether a file's path leads out of its folder, as it may in a CSV."""
    return not Path(os.path.abspath(root / key)).is_relative_to(os.path.abspath(root))


def _last_of_each(findings: Iterable[Finding]) -> list[Finding]:
    """One finding of a kind: the later one has been held against more."""
    return list({finding.what: finding for finding in findings}.values())


def _fault(name: str, what: str, where: Sequence[str]) -> Finding:
    """A fault of the form; of what there should be one of, its name and where to get it."""
    own = own_entries().get(name)
    if what == "split file" and own is not None and own.split_file is not None:
        return Finding(what, Path(own.split_file).name, where[0], "wrong")
    if name not in ENTRIES or what not in SINGLE:
        return _of_none(what, where)
    entry = ENTRIES[name]
    if what == "split file":
        return Finding(what, str(entry.split_file), f"{where[0]}; {entry.where_to_get_split()}", "wrong")
    return Finding(what, entry.images, f"{where[0]}; get the images from {IMAGES_FROM[name]}", "wrong")


def _of_none(what: str, wrong: Sequence[str], expected: str = "none", state: str = "wrong") -> Finding:
    if not wrong:
        return Finding(what, expected, "none")
    return Finding(what, expected, wrong[0] if what in SINGLE else some_of(list(wrong)), state)


def _against_catalogue(name: str, root: Path, dataset: Dataset) -> list[Finding]:
    entry, split = ENTRIES[name], dataset.split
    if not is_hub_root(root):
        sizes = miniature_sizes(root.expanduser() / entry.folder) or entry.sizes
        return [_names(entry, split), *_counts(split, sizes)]
    small = miniature_sizes(Path(hub_place(entry, root)[1]))
    if isinstance(dataset.images, KeyedImages) or name in VARIANTS:
        return [_names(entry, split), *_counts(split, small or entry.sizes)]
    own = small or HUB[name].sizes
    counts = _counts(split) if own is None else _own_counts(entry, split, own)
    total, whole = sum(map(len, split.parts().values())), sum(own or entry.sizes)
    state = "ok" if total in (whole, sum(entry.sizes)) else "wrong"
    return [_names(entry, split), Finding("images in all parts", str(whole), str(total), state), *counts]


def _own_counts(entry: CatalogEntry, split: Split, sizes: tuple[int, int, int]) -> list[Finding]:
    """Counts of a source's own split, whose validation may have been cut from its train."""
    train, val, test = sizes
    learned, whole = len(split.train) + len(split.val), sum(map(len, split.parts().values()))
    # Another source with all the images may have cut them in another way.
    other = "warning" if whole in (sum(sizes), sum(entry.sizes)) else "wrong"
    states = {
        "train": "ok" if learned == train + val else other,
        "val": "ok" if learned == train + val else other,
        "test": "ok" if len(split.test) == test else other,
    }
    together = f"{train + val} in train and val"
    expected = {"train images": together, "val images": together, "test images": str(test)}
    return [
        replace(one, expected=expected[one.what], state=states[one.what.split()[0]])
        if one.what in expected
        else one
        for one in _counts(split)
    ]


def _names(entry: CatalogEntry, split: Split) -> Finding:
    ours = class_names(entry.name)
    if len(split.class_names) != len(ours):
        return Finding("classes", str(len(ours)), str(len(split.class_names)), "wrong")
    expected = f"the {len(ours)} published ones"
    others = other_names(entry, split)
    return (
        _of_none("class names", others, expected) if others else Finding("class names", expected, "the same")
    )


def _counts(split: Split, expected: tuple[int, int, int] | None = None) -> list[Finding]:
    findings = []
    for number, (part, items) in enumerate(split.parts().items()):
        per_class = Counter(item.label for item in items)
        counts = [per_class[label] for label in range(len(split.class_names))]
        each = " to ".join(map(str, dict.fromkeys((min(counts), max(counts))))) if items and counts else ""
        spread = f"{len(items)}, {each} per class" if items else "0"
        good = expected is None or len(items) == expected[number]
        wanted = str(expected[number]) if expected is not None else ""
        findings.append(Finding(f"{part} images", wanted, spread, "ok" if good else "wrong"))
        # A dataset of test images alone has none of train and val, and validation may be absent altogether.
        if items and part != "val":
            empty = [f"'{name}'" for name in split.classes_without(part)]
            findings.append(_of_none(f"classes without a {part} image", empty))
    return findings


def _files_without_split(name: str, root: Path, folder: Path) -> tuple[list[Item], Finding]:
    """The image files of a folder whose split can't be read."""
    keys = sorted(images_below(folder))
    sizes = (
        (miniature_sizes(root.expanduser() / ENTRIES[name].folder) or ENTRIES[name].sizes)
        if name in ENTRIES and not is_hub_root(root)
        else (0, 0, 0)
    )
    wanted = sum(sizes)
    state = "ok" if len(keys) >= wanted else "wrong"
    return [Item(key, 0) for key in keys], Finding("image files", str(wanted or ""), str(len(keys)), state)


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


def _alike(split: Split, images: ImageSource, absent: Iterable[str]) -> list[Finding]:
    """Images with the same content: of train in test, and within a part."""
    gone = set(absent)
    parts = {
        part: list({item.key: item for item in items if item.key not in gone}.values())
        for part, items in split.parts().items()
    }
    keys = dict.fromkeys(item.key for items in parts.values() for item in items)
    digests = content_digests(images, list(keys))
    twice = []
    for items in parts.values():
        first: dict[bytes, str] = {}
        for key in (item.key for item in items if item.key in digests):
            other = first.setdefault(digests[key], key)
            if other != key:
                twice.append(f"{key} is {other}")
    same = [f"{key} is {other}" for key, other in trained_again(parts["train"], parts["test"], digests)]
    return [
        _of_none("images of train in test, by content", same, state="warning"),
        _of_none("images twice in a part, by content", twice, state="warning"),
    ]
