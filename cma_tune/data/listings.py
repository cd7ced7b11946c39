"""General sources that are files on disk: a folder of class folders, a CSV of paths and labels."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from cma_tune.data.dataset import DEFAULT_TEMPLATE, Dataset, FileImages, SourceOptions, check_images_exist
from cma_tune.data.faults import Complain, refuse
from cma_tune.data.labels import labels_of_texts
from cma_tune.data.parts import complete, find_parts
from cma_tune.data.splits import Item, Split
from cma_tune.errors import UserError, typed

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")

Rows = Mapping[str, Sequence[tuple[str, str]]]
"""(key, class) of every image, by part."""


def image_folder(name: str, place: str, options: SourceOptions, complain: Complain = refuse) -> Dataset:
    """Class folders with images, below part folders (train, val, test) or below the folder itself.

    A folder is a part if it is called so and holds folders itself; a class may be called "train" as well.
    Hidden files and folders don't count.

    Raises:
        UserError: no such folder, no images, a part is missing, labels do not match the class names
            (`complain` may go on where there are images).
    """
    root = Path(place).expanduser()
    if not root.is_dir():
        raise UserError(f"Expected an image folder at {root}, but there is no such folder; check the path.")
    holders = [folder for folder in _folders(root) if _folders(root / folder)]
    found = find_parts(options, holders, str(root), complain) or {"train": "."}
    rows = {part: list(_images_by_class(root, folder)) for part, folder in found.items()}
    if not any(rows.values()):
        raise UserError(
            f"Expected class folders with images below {root}, or below {root}/train, {root}/val and "
            f"{root}/test, got none; the layout is FOLDER/CLASS/IMAGE or FOLDER/train/CLASS/IMAGE."
        )
    split, origin = _split(rows, options, str(root), complain)
    return Dataset(name, split, FileImages(root), (DEFAULT_TEMPLATE,), origin)


def csv_file(name: str, place: str, options: SourceOptions, complain: Complain = refuse) -> Dataset:
    """A CSV with a header, paths relative to its own folder, labels, and maybe a column that names the part.

    Raises:
        UserError: no such file, a missing column or cell, unknown parts, absent images, labels that do not
            match the class names (`complain` may go on where the columns are there).
    """
    path = Path(place).expanduser()
    rows: dict[str, list[tuple[str, str]]] = {}
    try:
        with open(path, newline="", encoding="utf-8-sig") as handle:  # spreadsheets write a byte order mark
            for part, image, label in _csv_rows(csv.DictReader(handle), options, path, complain):
                rows.setdefault(part, []).append((image, label))
    except FileNotFoundError:
        raise UserError(
            f"Expected a CSV file at {path}, but there is no such file; check the path."
        ) from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"Expected a CSV file in UTF-8 at {path}, but it can't be read ({error}).") from None
    found = find_parts(options, rows, str(path), complain) if "" not in rows else {"train": ""}
    unknown = sorted(set(rows) - set(found.values()))
    if unknown:
        expected = ", ".join((options.train_split, options.val_split, options.test_split))
        complain(
            f"values of column '{options.split_column}' that are no part",
            [f"'{part}' in {len(rows[part])} rows" for part in unknown],
            f"Expected {expected} in column '{options.split_column}' of {path}, got '{unknown[0]}'; "
            "mend it or name the parts with --source.train-split, --source.val-split and "
            "--source.test-split.",
        )
    own_rows = {part: rows[own] for part, own in found.items()}
    split, origin = _split(own_rows, options, str(path), complain)
    check_images_exist(split, path.parent, path, complain)
    return Dataset(name, split, FileImages(path.parent), (DEFAULT_TEMPLATE,), origin)


def _csv_rows(
    reader: csv.DictReader[str], options: SourceOptions, path: Path, complain: Complain
) -> Iterator[tuple[str, str, str]]:
    """(part as the file calls it, path, label) of every row; the part is empty if no column names it."""
    columns = list(reader.fieldnames or ())
    image_column = options.image_column
    if image_column == SourceOptions.image_column and "path" in columns:
        image_column = "path"
    wanted = [image_column, options.label_column]
    for column, flag in zip(wanted, ("image_column", "label_column"), strict=True):
        if column not in columns:
            either = "'path'" if column == SourceOptions.image_column else f"'{column}'"
            complain(
                "columns missing",
                [f"{either} (--source.{typed(flag)}; there are: {', '.join(columns) or 'none'})"],
                f"Expected a column {either} in {path}, got {', '.join(columns) or 'none'}; "
                f"name it with --source.{typed(flag)}.",
            )
    if options.split_column in columns:
        wanted.append(options.split_column)
    elif options.split_column != SourceOptions.split_column:
        complain(
            "columns missing",
            [f"'{options.split_column}' (--source.split-column; there are: {', '.join(columns)})"],
            f"Expected a column '{options.split_column}' in {path}, got {', '.join(columns)}; "
            "name it with --source.split-column.",
        )
    if not set(wanted) <= set(columns):
        return
    for row in reader:
        cells = [(row[column] or "").strip() for column in wanted]
        if "" in cells:
            empty = wanted[cells.index("")]
            complain(
                "empty cells",
                [f"line {reader.line_num}, column '{empty}'"],
                f"Expected a value in column '{empty}' of every row of {path}, "
                f"got none in line {reader.line_num}; fill it in or remove the row.",
            )
            continue
        yield cells[2] if len(cells) == 3 else "", cells[0], cells[1]


def _split(rows: Rows, options: SourceOptions, place: str, complain: Complain) -> tuple[Split, str]:
    values = (value for part_rows in rows.values() for _, value in part_rows)
    names, label_of = labels_of_texts(values, options.class_names, place, complain)
    parts = {
        part: [Item(key, label_of[value]) for key, value in own if value in label_of]
        for part, own in rows.items()
    }
    return complete(parts, names, place, complain)


def _folders(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.name[0] != "." and entry.is_dir())


def images_below(folder: Path) -> Iterator[str]:
    """Paths of all image files below a folder, relative to it, in no order; what is hidden does not count."""
    for place, below, files in os.walk(folder):
        below[:] = [name for name in below if name[0] != "."]
        for file in files:
            if file[0] != "." and file.lower().endswith(IMAGE_SUFFIXES):
                yield (Path(place) / file).relative_to(folder).as_posix()


def _images_by_class(root: Path, part: str) -> Iterator[tuple[str, str]]:
    """(path relative to `root`, class folder) of every image below `part`, in the order of their paths."""
    for class_name in _folders(root / part):
        place = (Path(part) / class_name).as_posix()
        for path in sorted(images_below(root / part / class_name)):
            yield f"{place}/{path}", class_name
