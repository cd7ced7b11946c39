"""CIFAR and STL-10 as `datasets` tables: from the Hub, or local parquet files of the same columns."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cma_tune.companion.pools import Pool, Pools, no_images, pixels_of
from cma_tune.data.dataset import SourceOptions
from cma_tune.data.open_tables import open_table
from cma_tune.data.parts import find_published_parts
from cma_tune.data.tables import TableImages, table_labels, with_images
from cma_tune.errors import UserError


class KnownTable(NamedTuple):
    """A Hub repository and what it calls its columns."""

    repository: str
    image: str
    label: str


KNOWN_TABLES = {
    "cifar10": KnownTable("uoft-cs/cifar10", "img", "label"),
    "cifar100": KnownTable("uoft-cs/cifar100", "img", "fine_label"),
    "stl10": KnownTable("jxie/stl10", "image", "label"),
}

UNLABELLED = ("unlabeled", "unlabelled", "unsupervised")
"""What a part of images without a label may be called."""

FOLDS = 10
"""Of STL-10, as parts ``train_0`` to ``train_9``."""


def is_table(folder: Path) -> bool:
    """Whether a folder holds parquet files or what ``save_to_disk`` writes."""
    return (folder / "dataset_dict.json").is_file() or next(folder.rglob("*.parquet"), None) is not None


def read_table(
    name: str, place: str, options: SourceOptions, side: int, unlabelled: bool, folds: bool
) -> Pools:
    """One of `KNOWN_TABLES`, decoded.

    Args:
        name: of the dataset.
        place: repository or local folder.
        options: columns, parts and class names where they are not the known repository's.
        side: pixels a side of the images.
        unlabelled: have the images of STL-10 without a label too.
        folds: have its folds too.

    Raises:
        UserError: it can't be opened, a part or column is missing, a label or image is wrong.
    """
    table = open_table(place)
    options = _adapted(KNOWN_TABLES[name], options, table)
    found = find_published_parts(options, table, place)
    tables = {own: with_images(table[own], own, place, options) for own in found.values()}
    names, labels = table_labels(tables, place, options)
    further = [_unlabelled(name, table, place)] if unlabelled else []
    chosen = [f"{found['train']}_{number}" for number in range(FOLDS)] if folds else []
    chosen = [part for part in chosen if part in table]
    # Whether these have a column of labels is of no account.
    imaged = replace(options, label_column=options.image_column)
    tables |= {part: with_images(table[part], part, place, imaged) for part in (*further, *chosen)}
    images = TableImages(tables, options.image_column)
    pixels = {part: pixels_of(images.load_part(part), len(rows), side) for part, rows in tables.items()}
    pools = {
        part: Pool(pixels[own], torch.tensor(labels[own], dtype=torch.int64)) for part, own in found.items()
    }
    return Pools(
        pools["train"],
        pools.get("val", no_images(side)),
        pools["test"],
        tuple(names),
        f"the source's own parts ({place})",
        pixels[further[0]] if further else None,
        tuple(_positions(pixels[part], pools["train"].images, part, place) for part in chosen),
    )


def _unlabelled(name: str, table: Mapping[str, Any], place: str) -> str:
    """The part of images without a label."""
    found = next((part for part in UNLABELLED if part in table), None)
    if found is None:
        raise UserError(
            f"Expected a part '{UNLABELLED[0]}' with the images of {name} that have no label in {place}, "
            f"got {', '.join(table)}; use the authors' files or another repository."
        )
    return found


def _adapted(known: KnownTable, options: SourceOptions, table: Mapping[str, Any]) -> SourceOptions:
    """The user's columns where given, else the known ones where they are there."""
    columns = next(iter(table.values())).column_names if table else []
    default = SourceOptions()
    changes = {
        field: column
        for field, column in (("image_column", known.image), ("label_column", known.label))
        if getattr(options, field) == getattr(default, field) and column in columns
    }
    return replace(options, **changes)  # type: ignore[arg-type]


def _positions(part: Tensor, train: Tensor, name: str, place: str) -> tuple[int, ...]:
    """Where the images of a fold are in train."""
    places: dict[bytes, list[int]] = defaultdict(list)
    for position, digest in enumerate(_digests(train)):
        places[digest].append(position)
    positions = []
    for row, digest in enumerate(_digests(part)):
        if not places[digest]:
            raise UserError(
                f"Expected the images of part '{name}' of {place} among its training images, "
                f"but that of row {row} is not; use the authors' files for the folds."
            )
        positions.append(places[digest].pop(0))
    return tuple(positions)


def _digests(images: Tensor) -> Iterable[bytes]:
    return (hashlib.sha256(image.contiguous().numpy()).digest() for image in images)
