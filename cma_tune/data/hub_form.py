"""Datasets of the catalogue as the Hub has them: other columns, other label orders, often another split."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from cma_tune.data.catalog import ENTRIES, VARIANTS, CatalogEntry
from cma_tune.data.class_names import class_names
from cma_tune.data.dataset import Dataset, SourceOptions
from cma_tune.data.faults import Complain, refuse
from cma_tune.data.hub_labels import label_of_each
from cma_tune.data.hub_names import find_split_file, published, recovered, rows_by_stem
from cma_tune.data.hub_repositories import HUB, HubForm
from cma_tune.data.layouts import miniature_sizes
from cma_tune.data.open_tables import open_table
from cma_tune.data.parts import complete, find_published_parts
from cma_tune.data.splits import Item, Split, check_split
from cma_tune.data.tables import TableImages, label_values, texts_of, with_columns, with_images
from cma_tune.errors import UserError

PREFIX = "hub:"
"""A data root that begins so means the Hub's form: ``hub:`` or ``hub:FOLDER_OR_REPOSITORY``."""


class KeyedImages(TableImages):
    """Images of a table under other keys, such as those of a published split."""

    def __init__(self, parts: Mapping[str, Any], column: str, rows: Mapping[str, str]) -> None:
        super().__init__(parts, column)
        self._rows = rows

    def _place(self, key: str) -> tuple[str, int]:
        return super()._place(self._rows[key])

    def fingerprint(self, key: str) -> str:
        """The table's fingerprint, the column, and the row."""
        return f"{super().fingerprint(key)}-{self._rows[key]}"


def is_hub_root(root: Path) -> bool:
    """Whether a data root asks for the Hub's form."""
    return str(root).startswith(PREFIX)


def read_hub(name: str, root: Path, options: SourceOptions, complain: Complain = refuse) -> Dataset:
    """A dataset of the catalogue from its Hub repository or a local table of that form.

    Classes are matched by name, so a repository's own order is of no account. Where the rows carry file names
    and the published split file is at hand (or the package knows the split by them: Pets, EuroSAT), the split
    is the published one; else it is the source's own, and the origin says so.

    Args:
        name: key of the catalogue.
        root: ``hub:`` for the known repository (split files are looked for in ``data``), ``hub:FOLDER`` for
            tables in ``FOLDER/NAME`` (or FOLDER itself) and split files in FOLDER, ``hub:ORG/REPO`` for
            another repository.
        options: columns, parts and class names where they are not those of the known repository.

    Raises:
        UserError: no repository is known, it can't be opened, or parts, columns or classes are others
            (`complain` may go on where a part has both columns).
    """
    entry, form = ENTRIES[name], HUB[name]
    base, place = hub_place(entry, root)
    table = open_table(place)
    options = _adapted(form, options, table)
    found = _parts(entry, options, table, place, complain)
    found = with_columns(found, table, place, options, complain)
    tables = {own: with_images(table[own], own, place, options, complain) for own in found.values()}
    labels = _labels(name, tables, place, options, complain)
    notes = "miniature of drawn images, " if miniature_sizes(Path(place)) is not None else ""
    split_file = find_split_file(entry, base)
    stemmed = all(form.stem in part.column_names for part in tables.values())
    row_of = rows_by_stem(tables, form.stem) if stemmed else {}
    by_name: tuple[Split, dict[str, str]] | None = None
    if split_file is None:
        by_name = recovered(name, row_of, labels)
    elif stemmed:
        by_name = published(entry, split_file, row_of, labels, form.stem, place, complain)
    if by_name is not None:
        split, rows = by_name
        origin = f"{notes}published split {entry.split_file}, recovered by the file names of {place}"
        images: TableImages = KeyedImages(tables, options.image_column, rows)
        return Dataset(name, split, images, (entry.template,), origin)
    parts = {
        part: [Item(f"{own}/{row:07d}", label) for row, label in enumerate(labels[own]) if label is not None]
        for part, own in found.items()
    }
    split, origin = _own_split(entry, form, parts, place, complain)
    images = TableImages(tables, options.image_column)
    return Dataset(name, split, images, (entry.template,), f"{notes}{origin}")


def hub_place(entry: CatalogEntry, root: Path) -> tuple[Path, str]:
    """Where split files are looked for, and the table's folder or repository.

    Raises:
        UserError: it is neither a folder nor a repository's name, or no repository is known.
    """
    text = str(root).removeprefix(PREFIX)
    base = Path(text or "data").expanduser()
    if text and (base / entry.name).is_dir():
        return base, str(base / entry.name)
    if text and is_table(base):
        return base, str(base)
    if text and not base.exists() and re.fullmatch(r"[\w.-]+/[\w.-]+", text):
        return Path("data"), text
    if text and not base.exists():
        raise UserError(
            f"Expected a folder or a repository after --data-root {PREFIX}, got '{text}', which is neither; "
            f"give hub:FOLDER with {entry.name} in it, hub:ORG/REPO, or hub: alone."
        )
    repo = HUB[entry.name].repo
    if repo is None:
        raise UserError(
            f"Expected a Hub repository of '{entry.name}', but none is known; use the folder layout, or "
            f"a table of your own with --data-root hub:FOLDER."
        )
    return base, repo


def is_table(folder: Path) -> bool:
    """Whether a folder is a table itself; those of the catalogue's datasets below it are their own."""
    if any((folder / file).is_file() for file in ("dataset_dict.json", "state.json")):
        return True
    files = (path.relative_to(folder) for path in folder.rglob("*.parquet"))
    return any(file.parts[0] not in ENTRIES for file in files)


def _adapted(form: HubForm, options: SourceOptions, table: Mapping[str, Any]) -> SourceOptions:
    """The user's options where given, else the known repository's columns and parts where they are there."""
    columns = next(iter(table.values())).column_names if table else []
    default = SourceOptions()
    changes = {
        field: known
        for field, known, there in (
            ("image_column", form.image, columns),
            ("label_column", form.label, columns),
            ("train_split", form.train, table),
            ("test_split", form.test, table),
        )
        if getattr(options, field) == getattr(default, field) and known in there
    }
    return replace(options, **changes)  # type: ignore[arg-type]


def _parts(
    entry: CatalogEntry, options: SourceOptions, table: Mapping[str, Any], place: str, complain: Complain
) -> dict[str, str]:
    if entry.name in VARIANTS:
        if options.test_split in table or len(table) == 1:
            return {"test": options.test_split if options.test_split in table else next(iter(table))}
        raise UserError(
            f"Expected a part '{options.test_split}' in {place}, got {', '.join(table)}; "
            "name it with --source.test-split."
        )
    return find_published_parts(options, list(table), place, complain)


def _labels(
    name: str, tables: Mapping[str, Any], place: str, options: SourceOptions, complain: Complain
) -> dict[str, list[int | None]]:
    """The literature's label of every row, by part; None for rows of classes it leaves out."""
    column = options.label_column
    texts: dict[str, list[str | None]] = {}
    called: dict[str, None] = {}  # in order of the source's numbers
    for part, values in label_values(tables, place, column, complain).items():
        own = getattr(tables[part].features[column], "names", None)
        texts[part] = texts_of(values, own)
        called |= dict.fromkeys(
            own if own is not None else sorted({text for text in texts[part] if text is not None})
        )
    label_of = label_of_each(name, list(called), options.class_names, place, complain)
    return {part: [label_of.get(text or "") for text in own_texts] for part, own_texts in texts.items()}


def _own_split(
    entry: CatalogEntry, form: HubForm, parts: Mapping[str, list[Item]], place: str, complain: Complain
) -> tuple[Split, str]:
    names = tuple(class_names(entry.name))
    if entry.name in VARIANTS:
        split = Split((), (), tuple(parts["test"]), names)
        split = check_split(split, entry.name, test_only=True, complain=complain)
        return split, f"all images are test images ({place})"
    if "val" not in parts and not form.cut:
        split = Split(tuple(parts.get("train", ())), (), tuple(parts.get("test", ())), names)
        origin = f"the source's own train and test, no validation ({place}), not the published split"
    else:
        split, origin = complete(parts, names, place, complain)
        origin = f"{origin}, not the published split"
    return check_split(split, entry.name, complain=complain), origin
