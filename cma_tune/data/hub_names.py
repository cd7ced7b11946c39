"""The published split over a Hub table whose rows carry file names."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from cma_tune.data.catalog import CatalogEntry
from cma_tune.data.class_names import class_names
from cma_tune.data.dataset import ABSENT
from cma_tune.data.faults import Complain
from cma_tune.data.splits import Item, Split, check_split, read_coop_split
from cma_tune.data.stem_splits import KEYS, published_order


def find_split_file(entry: CatalogEntry, base: Path) -> Path | None:
    """The published split file below `base`, if it lies there."""
    if entry.split_file is None:
        return None
    folders = (base, base / entry.name, base / entry.folder)
    files = (folder / entry.split_file for folder in folders)
    return next((file for file in files if file.is_file()), None)


def rows_by_stem(tables: Mapping[str, Any], stem: str) -> dict[str, str]:
    """Row key of every file name without suffix, from the column `stem`."""
    row_of: dict[str, str] = {}
    for part, table in tables.items():
        for row, text in enumerate(table.select_columns([stem])[:][stem]):
            row_of[_without_suffix(str(text))] = f"{part}/{row:07d}"
    return row_of


def _label_at(labels: Mapping[str, list[int | None]], row_key: str) -> int | None:
    part, row = row_key.rsplit("/", 1)
    return labels[part][int(row)]


def recovered(
    name: str, row_of: Mapping[str, str], labels: Mapping[str, list[int | None]]
) -> tuple[Split, dict[str, str]] | None:
    """The published split of a table that holds exactly its files, and the row of every key."""
    order = published_order(name, list(row_of))
    if order is None:
        return None
    key_of = KEYS[name]
    parts = {
        part: tuple(
            Item(key_of(stem), label)
            for stem in stems
            if (label := _label_at(labels, row_of[stem])) is not None
        )
        for part, stems in order.items()
    }
    rows = {key_of(stem): row for stem, row in row_of.items()}
    return check_split(Split(**parts, class_names=tuple(class_names(name))), name), rows


def published(
    entry: CatalogEntry,
    split_file: Path,
    row_of: Mapping[str, str],
    labels: Mapping[str, list[int | None]],
    stem: str,
    place: str,
    complain: Complain,
) -> tuple[Split, dict[str, str]]:
    """The published split over a table's rows, and the row of every key.

    Stems are file names, or paths below the image folder where file names come more than once.

    Raises:
        UserError: the table lacks images, or it and the split file disagree on a class (`complain` may go on
            with the images that are there).
    """
    split = read_coop_split(split_file, entry.name, complain)
    rows: dict[str, str] = {}
    absent = []
    for items in split.parts().values():
        for item in items:
            path = _without_suffix(item.key)
            row_key = row_of.get(path, row_of.get(PurePosixPath(path).name))
            if row_key is None:
                absent.append(item.key)
            else:
                rows[item.key] = row_key
    if absent:
        complain(
            ABSENT,
            absent,
            f"Expected all images named by {split_file} in {place} (column '{stem}'), but {len(absent)} are "
            f"absent (first: {', '.join(absent[:3])}); use the whole dataset, or take the split file away to "
            "have the source's own split.",
        )
    if len(set(rows.values())) < len(rows):
        count = Counter(rows.values())
        complain(
            "rows that are several images of the split",
            [key for key, row_key in rows.items() if count[row_key] > 1],
            f"Expected one row of {place} per image of {split_file}, but file names in column '{stem}' stand "
            "for several; that column needs paths below the image folder.",
        )
    _check_labels(entry, split, rows, labels, split_file, place, complain)
    train, val, test = (tuple(i for i in items if i.key in rows) for items in split.parts().values())
    return replace(split, train=train, val=val, test=test), rows


def _check_labels(
    entry: CatalogEntry,
    split: Split,
    rows: Mapping[str, str],
    labels: Mapping[str, list[int | None]],
    split_file: Path,
    place: str,
    complain: Complain,
) -> None:
    """The split file and the table have to agree on every image's class, else one is of other data."""
    for item in (item for items in split.parts().values() for item in items if item.key in rows):
        label = _label_at(labels, rows[item.key])
        if label != item.label:
            other = "none" if label is None else f"'{class_names(entry.name)[label]}'"
            complain(
                "classes of the table that are others than the split file's",
                [f"{item.key} is {other}"],
                f"Expected {split_file} and {place} to agree on the classes, got "
                f"'{split.class_names[item.label]}' and {other} for {item.key}; use the published files.",
            )


def _without_suffix(path: str) -> str:
    return (
        path.rsplit(".", 1)[0] if re.search(r"\.(jpe?g|png|tiff?|webp|bmp)$", path, re.IGNORECASE) else path
    )
