"""What there is of a dataset, as far as it can be read, and what it lacks of the catalogue's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from cma_tune.data.catalog import CatalogEntry
from cma_tune.data.class_names import class_names
from cma_tune.data.dataset import ABSENT, Dataset, SourceOptions
from cma_tune.data.faults import Faults
from cma_tune.data.layouts import miniature_sizes
from cma_tune.data.listings import images_below
from cma_tune.data.sources import load_dataset
from cma_tune.data.splits import Split
from cma_tune.errors import UserError

OF_IMAGES = (ABSENT, "image folder", "class folders missing", "folders that are no class")
"""Faults of a layout that the images have, not what says their split."""

SINGLE = ("split file", "image folder")
"""Faults of what there is but one of."""


@dataclass(frozen=True)
class Survey:
    """A dataset as far as it can be read.

    Attributes:
        dataset: with what of its split is in order, or None where too little is.
        faults: where each kind of fault was found.
    """

    dataset: Dataset | None
    faults: dict[str, list[str]]

    def texts(self, among: Callable[[str], bool] = bool) -> list[str]:
        """The faults of the kinds that `among` takes, a few words each."""
        return [
            f"{what}: {found[0] if len(found) == 1 else some_of(found)}"
            for what, found in self.faults.items()
            if among(what)
        ]


@dataclass(frozen=True)
class Shortfalls:
    """What a dataset of the catalogue lacks in its folder, a few words each.

    Attributes:
        split: of its split file or lists.
        images: of its images.
        sizes: images in train, val and test of what is there.
    """

    split: list[str] = field(default_factory=list)
    images: list[str] = field(default_factory=list)
    sizes: tuple[int, ...] = (0, 0, 0)

    def __bool__(self) -> bool:
        return bool(self.split or self.images)


def survey(name: str, root: Path, options: SourceOptions | None = None) -> Survey:
    """Read a dataset as `load_dataset` does, but go on after faults.

    Raises:
        UserError: the dataset is not there at all.
    """
    faults = Faults()
    try:
        dataset = load_dataset(name, root, options, complain=faults)
    except UserError:
        if not faults.found:
            raise
        dataset = None
    return Survey(dataset, faults.found)


def some_of(found: list[str]) -> str:
    """The number and the first three."""
    return f"{len(found):,} (first: {'; '.join(found[:3])})"


def other_names(entry: CatalogEntry, split: Split) -> list[str]:
    """Labels whose class name is not the published one; only where there are as many names."""
    pairs = enumerate(zip(class_names(entry.name), split.class_names, strict=True))
    return [f"{label} is '{found}', not '{name}'" for label, (name, found) in pairs if name != found]


def shortfalls(entry: CatalogEntry, root: Path) -> Shortfalls:
    """What a dataset lacks in its folder below `root`: parts, images and classes against the catalogue's.

    A miniature is held against its own sizes. Images are looked for by name and not opened.

    Raises:
        UserError: the dataset's folder is missing.
    """
    found = survey(entry.name, root)
    split = found.texts(lambda what: what not in OF_IMAGES)
    images = found.texts(lambda what: what in OF_IMAGES)
    if found.dataset is None:
        return Shortfalls(split, images)
    parts = found.dataset.split.parts()
    expected = miniature_sizes(root / entry.folder) or entry.sizes
    counts = [
        f"{len(items):,} instead of {size:,} {part} images"
        for (part, items), size in zip(parts.items(), expected, strict=True)
        if len(items) != size
    ]
    folder = root / entry.folder / entry.images
    if not any(parts.values()) and folder.is_dir() and not any(images_below(folder)):
        images.append(f"no images in {folder}")
    if any(parts.values()):
        # Where folders are the split, a count of another size is one of the images.
        (images if entry.name.startswith("imagenet") else split).extend(counts)
    if len(found.dataset.split.class_names) == entry.classes and (
        others := other_names(entry, found.dataset.split)
    ):
        split.append(f"other class names: {some_of(others)}")
    return Shortfalls(split, images, tuple(map(len, parts.values())))
