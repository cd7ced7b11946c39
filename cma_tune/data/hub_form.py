"""Datasets of the catalogue as the Hub has them: other columns, other label orders, often another split."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from cma_tune.data.catalog import ENTRIES, VARIANTS, CatalogEntry
from cma_tune.data.class_names import class_names
from cma_tune.data.dataset import Dataset, SourceOptions
from cma_tune.data.hub_labels import label_of_each
from cma_tune.data.hub_repositories import HUB, HubForm
from cma_tune.data.layouts import miniature_sizes
from cma_tune.data.parts import complete, find_published_parts
from cma_tune.data.splits import Item, Split, check_split, read_coop_split
from cma_tune.data.stem_splits import KEYS, published_order
from cma_tune.data.tables import TableImages, open_table, with_images
from cma_tune.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

PREFIX = "hub:"
"""A data root that begins so means the Hub's form: ``hub:`` or ``hub:FOLDER_OR_REPOSITORY``."""


class KeyedImages(TableImages):
    """Images of a table under other keys, such as those of a published split."""

    def __init__(self, parts: Mapping[str, Any], column: str, rows: Mapping[str, str]) -> None:
        super().__init__(parts, column)
        self._rows = rows

    def load(self, key: str) -> Image:
        """Decode the image of `key` as RGB; see `TableImages.load`."""
        return super().load(self._rows[key])

    def fingerprint(self, key: str) -> str:
        """The table's fingerprint, the column, and the row."""
        return f"{super().fingerprint(self._rows[key])}-{self._rows[key]}"


def is_hub_root(root: Path) -> bool:
    """Whether a data root asks for the Hub's form."""
    return str(root).startswith(PREFIX)


def read_hub(name: str, root: Path, options: SourceOptions) -> Dataset:
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
        UserError: no repository is known, it can't be opened, or parts, columns or classes are others.
    """
    entry, form = ENTRIES[name], HUB[name]
    base, place = _place(entry, str(root).removeprefix(PREFIX))
    table = open_table(place)
    options = _adapted(form, options, table)
    found = _parts(entry, options, table, place)
    tables = {own: with_images(table[own], own, place, options) for own in found.values()}
    labels = _labels(name, tables, place, options)
    notes = "miniature of drawn images, " if miniature_sizes(Path(place)) is not None else ""
    split_file = _split_file(entry, base)
    stemmed = all(form.stem in part.column_names for part in tables.values())
    row_of = _rows_by_stem(tables, form.stem) if stemmed else {}
    recovered = _recovered(name, row_of, labels) if split_file is None else None
    if recovered is not None or (stemmed and split_file is not None):
        if recovered is not None:
            split, rows = recovered
        else:
            assert split_file is not None
            split, rows = _published(entry, split_file, row_of, form.stem, place)
            _check_labels(split, rows, labels, split_file, place)
        origin = f"{notes}published split {entry.split_file}, recovered by the file names of {place}"
        images: TableImages = KeyedImages(tables, options.image_column, rows)
        return Dataset(name, split, images, (entry.template,), origin)
    parts = {
        part: [Item(f"{own}/{row:07d}", label) for row, label in enumerate(labels[own]) if label is not None]
        for part, own in found.items()
    }
    split, origin = _own_split(entry, form, parts, place)
    images = TableImages(tables, options.image_column)
    return Dataset(name, split, images, (entry.template,), f"{notes}{origin}")


def _place(entry: CatalogEntry, text: str) -> tuple[Path, str]:
    """Where split files are looked for, and the table's folder or repository."""
    base = Path(text or "data").expanduser()
    if text and (base / entry.name).is_dir():
        return base, str(base / entry.name)
    if (
        text
        and base.is_dir()
        and any((base / file).is_file() for file in ("dataset_dict.json", "state.json"))
    ):
        return base, str(base)
    if text and base.is_dir() and next(base.rglob("*.parquet"), None) is not None:
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
    entry: CatalogEntry, options: SourceOptions, table: Mapping[str, Any], place: str
) -> dict[str, str]:
    if entry.name in VARIANTS:
        if options.test_split in table or len(table) == 1:
            return {"test": options.test_split if options.test_split in table else next(iter(table))}
        raise UserError(
            f"Expected a part '{options.test_split}' in {place}, got {', '.join(table)}; "
            "name it with --source.test_split."
        )
    return find_published_parts(options, list(table), place)


def _labels(
    name: str, tables: Mapping[str, Any], place: str, options: SourceOptions
) -> dict[str, list[int | None]]:
    """The literature's label of every row, by part; None for rows of classes it leaves out."""
    column = options.label_column
    texts: dict[str, list[str]] = {}
    called: dict[str, None] = {}  # in order of the source's numbers
    for part, table in tables.items():
        values, own = (
            table.select_columns([column])[:][column],
            getattr(table.features[column], "names", None),
        )
        for row, value in enumerate(values):
            if not isinstance(value, (int, str)) or value in ("", -1):
                raise UserError(
                    f"Expected a class name or number in column '{column}' of {place}, "
                    f"got {value!r} in row {row} of '{part}'; use labelled parts."
                )
        texts[part] = [str(value) if own is None else own[int(value)] for value in values]
        called |= dict.fromkeys(own if own is not None else sorted(set(texts[part])))
    label_of = label_of_each(name, list(called), options.class_names, place)
    return {part: [label_of[text] for text in own_texts] for part, own_texts in texts.items()}


def _split_file(entry: CatalogEntry, base: Path) -> Path | None:
    if entry.split_file is None:
        return None
    folders = (base, base / entry.name, base / entry.folder)
    files = (folder / entry.split_file for folder in folders)
    return next((file for file in files if file.is_file()), None)


def _rows_by_stem(tables: Mapping[str, Any], stem: str) -> dict[str, str]:
    row_of: dict[str, str] = {}
    for part, table in tables.items():
        for row, text in enumerate(table.select_columns([stem])[:][stem]):
            row_of[_without_suffix(str(text))] = f"{part}/{row:07d}"
    return row_of


def _label_at(labels: Mapping[str, list[int | None]], row_key: str) -> int | None:
    part, row = row_key.rsplit("/", 1)
    return labels[part][int(row)]


def _recovered(
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


def _published(
    entry: CatalogEntry, split_file: Path, row_of: Mapping[str, str], stem: str, place: str
) -> tuple[Split, dict[str, str]]:
    """The published split over a table's rows, and the row of every key.

    Stems are file names, or paths below the image folder where file names come more than once.
    """
    split = read_coop_split(split_file, entry.name)
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
        raise UserError(
            f"Expected all images named by {split_file} in {place} (column '{stem}'), but {len(absent)} are "
            f"absent (first: {', '.join(absent[:3])}); use the whole dataset, or take the split file away to "
            "have the source's own split."
        )
    if len(set(rows.values())) < len(rows):
        raise UserError(
            f"Expected one row of {place} per image of {split_file}, but file names in column '{stem}' stand "
            "for several; that column needs paths below the image folder."
        )
    return split, rows


def _check_labels(
    split: Split,
    rows: Mapping[str, str],
    labels: Mapping[str, list[int | None]],
    split_file: Path,
    place: str,
) -> None:
    """The split file and the table have to agree on every image's class, else one is of other data."""
    for items in split.parts().values():
        for item in items:
            label = _label_at(labels, rows[item.key])
            if label != item.label:
                other = "none" if label is None else f"'{split.class_names[label]}'"
                raise UserError(
                    f"Expected {split_file} and {place} to agree on the classes, got "
                    f"'{split.class_names[item.label]}' and {other} for {item.key}; use the published files."
                )


def _without_suffix(path: str) -> str:
    return (
        path.rsplit(".", 1)[0] if re.search(r"\.(jpe?g|png|tiff?|webp|bmp)$", path, re.IGNORECASE) else path
    )


def _own_split(
    entry: CatalogEntry, form: HubForm, parts: Mapping[str, list[Item]], place: str
) -> tuple[Split, str]:
    names = tuple(class_names(entry.name))
    if entry.name in VARIANTS:
        split = Split((), (), tuple(parts["test"]), names)
        return check_split(split, entry.name, test_only=True), f"all images are test images ({place})"
    if "val" not in parts and not form.cut:
        split = Split(tuple(parts["train"]), (), tuple(parts["test"]), names)
        origin = f"the source's own train and test, no validation ({place}), not the published split"
    else:
        split, origin = complete(parts, names, place)
        origin = f"{origin}, not the published split"
    return check_split(split, entry.name), origin
