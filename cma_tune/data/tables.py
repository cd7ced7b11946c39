"""The general source that is a `datasets` table: from the Hub, a local folder, ``save_to_disk``'s folder."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cma_tune.data.dataset import DEFAULT_TEMPLATE, DIGEST_BYTES, Dataset, SourceOptions
from cma_tune.data.faults import Complain, refuse
from cma_tune.data.labels import labels_of_numbers, labels_of_texts
from cma_tune.data.open_tables import open_table
from cma_tune.data.parts import complete, find_parts
from cma_tune.data.splits import Item
from cma_tune.errors import UserError, typed

if TYPE_CHECKING:
    from PIL.Image import Image

ROWS_AT_ONCE = 1000
"""Rows whose encoded images are fetched together."""


class TableImages:
    """Images of a `datasets` dataset; keys are ``split/row``."""

    def __init__(self, parts: Mapping[str, Any], column: str) -> None:
        self._column = column
        self._sizes: dict[str, list[int | None]] = {}
        # A row is decoded as a whole, so only the column that is wanted stays.
        self._parts = {part: table.select_columns([column]) for part, table in parts.items()}

    def _place(self, key: str) -> tuple[str, int]:
        """Part and row of an image."""
        part, row = key.rsplit("/", 1)
        return part, int(row)

    def load(self, key: str) -> Image:
        """Decode one row as RGB.

        Raises:
            UserError: the row's image can't be decoded.
        """
        part, row = self._place(key)
        try:
            image: Image = self._parts[part][row][self._column]
            rgb: Image = image.convert("RGB")
            return rgb
        except Exception as error:  # Pillow's decoders raise almost anything over a damaged image
            raise self._damaged(part, row, error) from None

    def load_part(self, part: str) -> Iterator[Image]:
        """Decode all rows of a part as RGB, in order: much quicker than one by one.

        Raises:
            UserError: a row's image can't be decoded.
        """
        table = self._parts[part]
        feature = table.features[self._column]
        row = 0
        for rows in self._undecoded(table).iter(ROWS_AT_ONCE):
            for content in rows[self._column]:
                try:
                    rgb: Image = feature.decode_example(content).convert("RGB")
                except Exception as error:
                    raise self._damaged(part, row, error) from None
                yield rgb
                row += 1

    def _damaged(self, part: str, row: int, error: Exception) -> UserError:
        return UserError(
            f"Expected an image in column '{self._column}' of row {row} of '{part}', "
            f"but it can't be decoded ({error}); mend the table or take the row out."
        )

    def digest(self, key: str) -> bytes:
        """BLAKE2b over the encoded image, the same in whichever row it stands.

        Raises:
            UserError: the row holds no image, or a path to a file that can't be read.
        """
        part, row = self._place(key)
        content = self._encoded[part][row][self._column] or {}
        try:
            encoded = content.get("bytes") or Path(content["path"]).read_bytes()
        except (OSError, KeyError, TypeError) as error:
            raise self._damaged(part, row, error) from None
        return hashlib.blake2b(encoded, digest_size=DIGEST_BYTES).digest()

    def size(self, key: str) -> int | None:
        """Length of the encoded image in bytes; None where the row holds a path instead."""
        part, row = self._place(key)
        if part not in self._sizes:
            self._sizes[part] = self._sizes_of(part)
        return self._sizes[part][row]

    def _sizes_of(self, part: str) -> list[int | None]:
        import pyarrow.compute as arrow

        # Arrow knows the lengths without reading what is so long.
        return [
            size
            for rows in self._encoded[part].with_format("arrow").iter(ROWS_AT_ONCE)
            for size in arrow.binary_length(arrow.struct_field(rows[self._column], "bytes")).to_pylist()
        ]

    def status(self, key: str) -> tuple[int, int]:
        """Length of the encoded image, and 0; of a row with a path, the file's length and modification time.

        Raises:
            UserError: the row holds no image, or a path to a file that is missing.
        """
        size = self.size(key)
        if size is not None:
            return size, 0
        part, row = self._place(key)
        content = self._encoded[part][row][self._column] or {}
        try:
            status = Path(content["path"]).stat()
        except (OSError, KeyError, TypeError) as error:
            raise self._damaged(part, row, error) from None
        return status.st_size, status.st_mtime_ns

    @cached_property
    def _encoded(self) -> dict[str, Any]:
        return {part: self._undecoded(table) for part, table in self._parts.items()}

    def _undecoded(self, table: Any) -> Any:
        return table.cast_column(self._column, type(table.features[self._column])(decode=False))

    def table(self, key: str) -> str:
        """The fingerprint `datasets` keeps of the table that holds the image, and the column."""
        return f"{self._parts[self._place(key)[0]]._fingerprint}-{self._column}"

    def fingerprint(self, key: str) -> str:
        """That of the table, and the column."""
        return self.table(key)


def hub_table(name: str, place: str, options: SourceOptions, complain: Complain = refuse) -> Dataset:
    """A `datasets` dataset with an image column and a label column (class labels, text or whole numbers).

    Raises:
        UserError: it can't be opened, a part or column is missing, labels are missing or of another kind, or
            do not match the class names (`complain` may go on where a part has both columns).
    """
    table = open_table(place)
    found = find_parts(options, list(table), place, complain)
    if not found:
        raise UserError(
            f"Expected parts {options.train_split} and {options.test_split} in {place}, "
            f"got {', '.join(table)}; name them with --source.train-split and --source.test-split."
        )
    found = with_columns(found, table, place, options, complain)
    tables = {own: with_images(table[own], own, place, options, complain) for own in found.values()}
    names, labels = table_labels(tables, place, options, complain)
    parts = {
        part: [Item(f"{own}/{row:07d}", label) for row, label in enumerate(labels[own]) if label >= 0]
        for part, own in found.items()
    }
    split, origin = complete(parts, names, place, complain)
    return Dataset(name, split, TableImages(tables, options.image_column), (DEFAULT_TEMPLATE,), origin)


def with_columns(
    found: Mapping[str, str],
    table: Mapping[str, Any],
    place: str,
    options: SourceOptions,
    complain: Complain = refuse,
) -> dict[str, str]:
    """Those of the parts `found` (by their names in `table`) that have both columns.

    Raises:
        UserError: a column is missing (`complain` may go on where another part has both).
    """
    whole = {}
    for part, own in found.items():
        columns = table[own].column_names
        wanted = (options.image_column, "image_column"), (options.label_column, "label_column")
        absent = [(column, flag) for column, flag in wanted if column not in columns]
        for column, flag in absent:
            complain(
                "columns missing",
                [f"'{column}' of '{own}' (--source.{typed(flag)}; there are: {', '.join(columns)})"],
                f"Expected a column '{column}' in part '{own}' of {place}, "
                f"got {', '.join(columns)}; name it with --source.{typed(flag)}.",
            )
        if not absent:
            whole[part] = own
    if not whole:
        raise UserError(f"Expected a part with both columns in {place}, got none; name the columns.")
    return whole


def with_images(
    table: Any, part: str, place: str, options: SourceOptions, complain: Complain = refuse
) -> Any:
    """The table with its image column typed as images; both columns must be there."""
    import datasets

    with_columns({part: part}, {part: table}, place, options, complain)
    feature = table.features[options.image_column]
    if isinstance(feature, datasets.Image):
        return table if feature.decode else table.cast_column(options.image_column, datasets.Image())
    try:  # files written without `datasets` hold bytes or paths
        return table.cast_column(options.image_column, datasets.Image())
    except Exception:
        raise UserError(
            f"Expected images in column '{options.image_column}' of {place}, got {feature}; "
            "name another with --source.image-column."
        ) from None


def table_labels(
    tables: Mapping[str, Any], place: str, options: SourceOptions, complain: Complain = refuse
) -> tuple[list[str], dict[str, list[int]]]:
    """Class names in label order, and the label of every row, by part.

    Raises:
        UserError: labels are missing or of another kind, or do not match the class names (`complain` may go
            on: such rows have label -1).
    """
    own_names = {
        part: getattr(table.features[options.label_column], "names", None) for part, table in tables.items()
    }
    values = label_values(tables, place, options.label_column, complain)
    first = next(iter(own_names.values()))
    if first is None or any(names != first for names in own_names.values()):
        # Where parts number their classes differently, only the names mean the same.
        texts = {part: texts_of(own, own_names[part]) for part, own in values.items()}
        names, label_of = labels_of_texts(
            (t for own in texts.values() for t in own if t is not None), options.class_names, place, complain
        )
        return names, {part: [label_of.get(text or "", -1) for text in own] for part, own in texts.items()}
    names, label_of_number = labels_of_numbers(first, options.class_names, place)
    return names, {
        part: [-1 if value is None else label_of_number[value] for value in own]
        for part, own in values.items()
    }


def texts_of(values: Sequence[Any], names: Sequence[str] | None) -> list[str | None]:
    """What a label column holds as text: class names where numbers have such; None stays."""
    return [None if v is None else str(v) if names is None else names[int(v)] for v in values]


def label_values(
    tables: Mapping[str, Any], place: str, column: str, complain: Complain = refuse
) -> dict[str, list[Any]]:
    """What the label column holds, by part: numbers of its class names where it has such, or text or numbers.

    Raises:
        UserError: a value is missing, of another kind or no class (`complain` may go on: it is None).
    """
    values: dict[str, list[Any]] = {}
    for part, table in tables.items():
        names = getattr(table.features[column], "names", None)
        own = table.select_columns([column])[:][column]
        for row, value in enumerate(own):
            # Test parts whose labels are kept secret hold None or -1.
            if not isinstance(value, (int, str)) or value in ("", -1):
                own[row] = None
                complain(
                    "rows without a label",
                    [f"row {row} of '{part}': {value!r}"],
                    f"Expected a class name or number in column '{column}' of {place}, "
                    f"got {value!r} in row {row} of '{part}'; use labelled parts.",
                )
            elif names is not None and not 0 <= int(value) < len(names):  # `datasets` takes any number
                own[row] = None
                complain(
                    "labels without a class name",
                    [f"{value} in row {row} of '{part}'"],
                    f"Expected labels from 0 to {len(names) - 1}, one of the {len(names)} classes, in column "
                    f"'{column}' of {place}, got {value} in row {row} of '{part}'; mend the table.",
                )
        values[part] = own
    return values
