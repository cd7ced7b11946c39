"""Where images come from: folder layout, image folder, CSV, a `datasets` dataset, embedded data.

Every source ends in a `Dataset`: a split, a way to load an image by its key, and the prompt templates.
"""

from __future__ import annotations

import csv
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from cma_tune.data.builtin import BUILTIN_NAMES, load_builtin
from cma_tune.data.catalog import CATALOG, check_dataset_name, locate
from cma_tune.data.few_shot import by_class
from cma_tune.data.splits import Item, Split, check_split, read_coop_split
from cma_tune.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
DEFAULT_TEMPLATE = "a photo of a {}."
_SPLIT_SEED = 0  # of our own stratified splits; part of what a split is, so never a flag


class ImageSource(Protocol):
    """Loads images by key; `fingerprint` changes when the image behind a key does."""

    def load(self, key: str) -> Image:
        """The RGB image behind `key`."""

    def fingerprint(self, key: str) -> str:
        """A short text that differs when the content differs, cheap to get."""


@dataclass(frozen=True)
class Dataset:
    """A split with its images and templates; `origin` says where the split comes from."""

    name: str
    split: Split
    images: ImageSource
    templates: tuple[str, ...]
    origin: str


@dataclass(frozen=True)
class SourceOptions:
    """Choices of the general sources (``folder:``, ``csv:``, ``hub:``)."""

    image_column: str = "image"
    label_column: str = "label"
    split_column: str = "split"
    train_split: str = "train"
    val_split: str = "val"
    test_split: str = "test"
    class_names: Path | None = None


class FileImages:
    """Images that are files below `root` (keys are relative paths)."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def load(self, key: str) -> Image:
        """Decode one file as RGB.

        Raises:
            UserError: the file is missing or can't be decoded, naming its path.
        """
        from PIL import Image, UnidentifiedImageError

        path = self.root / key
        try:
            with Image.open(path) as image:
                return image.convert("RGB")
        except FileNotFoundError:
            raise UserError(f"Expected an image at {path}, but there is no such file.") from None
        except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
            raise UserError(
                f"Expected an image at {path}, but it can't be decoded ({error}); replace it or take it out of the split."
            ) from None

    def fingerprint(self, key: str) -> str:
        """Size and modification time of the file."""
        try:
            status = (self.root / key).stat()
        except FileNotFoundError:
            raise UserError(f"Expected an image at {self.root / key}, but there is no such file.") from None
        return f"{status.st_size}-{status.st_mtime_ns}"


class BuiltinImages:
    """Images of an embedded dataset."""

    def __init__(self, name: str) -> None:
        self._data = load_builtin(name)

    def load(self, key: str) -> Image:
        """The image drawn or enlarged for `key`."""
        return self._data.load(key)

    def fingerprint(self, key: str) -> str:
        """The version of the embedded dataset."""
        return self._data.version


class TableImages:
    """Images of a `datasets` dataset; keys are ``split/row``."""

    def __init__(self, parts: Mapping[str, Any], column: str) -> None:
        self._parts = parts
        self._column = column

    def load(self, key: str) -> Image:
        """Decode one row as RGB.

        Raises:
            UserError: the row's image can't be decoded.
        """
        from PIL import UnidentifiedImageError

        part, row = key.rsplit("/", 1)
        try:
            image: Image = self._parts[part][int(row)][self._column]
            return image.convert("RGB")
        except (UnidentifiedImageError, OSError, SyntaxError, AttributeError) as error:
            raise UserError(
                f"Expected an image in column '{self._column}' of row {key}, but it can't be decoded ({error})."
            ) from None

    def fingerprint(self, key: str) -> str:
        """The fingerprint `datasets` keeps of the table."""
        return str(self._parts[key.rsplit("/", 1)[0]]._fingerprint)


def load_dataset(
    name: str, root: Path, options: SourceOptions | None = None, templates: Sequence[str] = ()
) -> Dataset:
    """Load a dataset by its name or source prefix.

    Args:
        name: an embedded dataset, a key of the catalogue, ``folder:PATH``, ``csv:FILE`` or ``hub:REPO_OR_FOLDER``.
        root: folder that holds the folders of the catalogue.
        options: columns, splits and class names of the general sources.
        templates: prompts that replace the dataset's own.

    Raises:
        UserError: unknown name, missing folder or file, absent images, labels without a class name.
    """
    check_dataset_name(name)
    for template in templates:
        if template.count("{}") != 1:
            raise UserError(
                f"Expected one '{{}}' for the class name in a template, got '{template}'; add it or remove the others."
            )
    options = options or SourceOptions()
    if name in BUILTIN_NAMES:
        dataset = _builtin(name)
    elif name in CATALOG:
        dataset = _folder_layout(name, root)
    else:
        kind, place = name.split(":", 1)
        reader = {"folder": _image_folder, "csv": _csv_file, "hub": _hub}[kind]
        dataset = reader(name, place, options)
    check_split(dataset.split, name)
    chosen = tuple(templates) or dataset.templates
    return Dataset(dataset.name, dataset.split, dataset.images, chosen, dataset.origin)


def _builtin(name: str) -> Dataset:
    data = load_builtin(name)
    parts = {part: tuple(Item(key, label) for key, label in items) for part, items in data.parts.items()}
    split = Split(parts["train"], parts["val"], parts["test"], tuple(data.class_names))
    return Dataset(name, split, BuiltinImages(name), tuple(data.templates), f"embedded, version {data.version}")


def _folder_layout(name: str, root: Path) -> Dataset:
    entry = CATALOG[name]
    split_file, images = locate(entry, root)
    split = read_coop_split(split_file, name)
    if len(split.class_names) != entry.classes:
        raise UserError(
            f"Expected {entry.classes} classes of '{name}' in {split_file}, got {len(split.class_names)}; "
            f"{entry.where_to_get_split()}."
        )
    check_images_exist(split, images, split_file)
    return Dataset(name, split, FileImages(images), (entry.template,), f"published split {entry.split_file}")


def check_images_exist(split: Split, images: Path, named_by: Path) -> None:
    """Check that every image of the split is there.

    Raises:
        UserError: with the number of absent images and the first three.
    """
    # One listing per folder is much cheaper than one stat per image.
    present: dict[Path, set[str]] = {}
    absent: list[str] = []
    for items in split.parts().values():
        for item in items:
            path = images / item.key
            if path.parent not in present:
                present[path.parent] = (
                    {entry.name for entry in path.parent.iterdir()} if path.parent.is_dir() else set()
                )
            if path.name not in present[path.parent]:
                absent.append(item.key)
    if absent:
        total = sum(len(items) for items in split.parts().values())
        raise UserError(
            f"Expected all {total} images named by {named_by} in {images}, but {len(absent)} are absent "
            f"(first: {', '.join(absent[:3])}); unpack the whole dataset there."
        )


def _stratified(items: Sequence[Item], fractions: Sequence[float]) -> list[tuple[Item, ...]]:
    """Cut `items` class by class into parts of these fractions; the last part takes the rest."""
    generator = random.Random(_SPLIT_SEED)
    parts: list[list[Item]] = [[] for _ in range(len(fractions) + 1)]
    for group in by_class(items).values():
        shuffled = generator.sample(group, len(group))
        start = 0
        for part, fraction in zip(parts, fractions, strict=False):
            # At least one image each, as long as the class has any left.
            count = max(1, round(fraction * len(group)))
            part += shuffled[start : start + count]
            start += count
        parts[-1] += shuffled[start:]
    return [tuple(part) for part in parts]


def _complete(
    parts: Mapping[str, Sequence[Item]], class_names: Sequence[str], place: str
) -> tuple[Split, str]:
    """A split out of what the source has: missing validation is cut from train, a missing test from everything."""
    names = tuple(class_names)
    train, val, test = (tuple(parts.get(part, ())) for part in ("train", "val", "test"))
    if not (train or val or test):
        raise UserError(f"Expected images in {place}, got none; check the path.")
    if train and test and val:
        return Split(train, val, test, names), f"the source's own train, val and test ({place})"
    if train and test:
        val, train = _stratified(train, [0.2])
        return (
            Split(train, val, test, names),
            f"the source's own train and test, val a fifth of train ({place})",
        )
    if val or test:
        raise UserError(
            f"Expected a train part in {place} beside {'test' if test else 'val'}, got none; "
            "name the parts train, val (optional) and test."
        )
    train, val, test = _stratified(train, [0.5, 0.2])
    return Split(train, val, test, names), f"our stratified 50/20/30 split of {place}"


def _read_names(path: Path) -> list[str]:
    if not path.is_file():
        raise UserError(f"Expected a file of class names, one a line, at {path}, but there is none.")
    return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def _label_of(names: list[str], values: Sequence[str], place: str) -> dict[str, int]:
    """Map label values (names or numbers as text) to labels; see `SourceOptions.class_names`."""
    by_name = {name: label for label, name in enumerate(names)}
    numbers = all(value.isdigit() for value in values)
    mapping = {
        value: int(value) if numbers and value not in by_name else by_name.get(value, -1) for value in values
    }
    wrong = sorted(value for value, label in mapping.items() if not 0 <= label < len(names))
    if wrong:
        shown = ", ".join(f"'{value}'" for value in wrong[:3])
        raise UserError(
            f"Expected labels of {place} to be among the {len(names)} class names (or 0 to {len(names) - 1}), "
            f"got {len(wrong)} that are not (first: {shown}); mend the labels or the list of class names."
        )
    return mapping


def _class_names(values: Sequence[str], options: SourceOptions) -> list[str]:
    return _read_names(options.class_names) if options.class_names else sorted(set(values))


def _image_folder(name: str, place: str, options: SourceOptions) -> Dataset:
    root = Path(place)
    if not root.is_dir():
        raise UserError(f"Expected an image folder at {root}, but there is no such folder.")
    part_folders = {
        "train": options.train_split,
        "val": options.val_split,
        "test": options.test_split,
    }
    found = {part: folder for part, folder in part_folders.items() if (root / folder).is_dir()}
    if "train" not in found:
        found = {"train": "."}
    rows: dict[str, list[tuple[str, str]]] = {}
    for part, folder in found.items():
        rows[part] = [
            (image.relative_to(root).as_posix(), class_folder.name)
            for class_folder in sorted((root / folder).iterdir())
            if class_folder.is_dir()
            for image in sorted(class_folder.rglob("*"))
            if image.suffix.lower() in IMAGE_SUFFIXES
        ]
    values = sorted({value for part_rows in rows.values() for _, value in part_rows})
    if not values:
        raise UserError(
            f"Expected class folders with images below {root} (or below {root}/train, {root}/val and {root}/test), "
            "got none."
        )
    names = _class_names(values, options)
    label_of = _label_of(names, values, str(root))
    parts = {part: [Item(key, label_of[value]) for key, value in rows[part]] for part in rows}
    split, origin = _complete(parts, names, str(root))
    return Dataset(name, split, FileImages(root), (DEFAULT_TEMPLATE,), origin)


def _csv_file(name: str, place: str, options: SourceOptions) -> Dataset:
    path = Path(place)
    if not path.is_file():
        raise UserError(f"Expected a CSV file at {path}, but there is no such file.")
    image_column = options.image_column if options.image_column != SourceOptions.image_column else "path"
    rows: dict[str, list[tuple[str, str]]] = {}
    with open(path, newline="", encoding="utf-8") as handle:
        reader = csv.DictReader(handle)
        columns = reader.fieldnames or []
        for column in (image_column, options.label_column):
            if column not in columns:
                raise UserError(
                    f"Expected a column '{column}' in {path}, got {', '.join(columns) or 'none'}; "
                    "name it with --source.image_column or --source.label_column."
                )
        part_names = {options.train_split: "train", options.val_split: "val", options.test_split: "test"}
        for number, row in enumerate(reader, start=2):
            value = row.get(options.split_column) or options.train_split
            if value not in part_names:
                raise UserError(
                    f"Expected {', '.join(part_names)} in column '{options.split_column}' of {path}, "
                    f"got '{value}' in line {number}."
                )
            rows.setdefault(part_names[value], []).append((row[image_column], row[options.label_column] or ""))
    values = sorted({value for part_rows in rows.values() for _, value in part_rows})
    names = _class_names(values, options)
    label_of = _label_of(names, values, str(path))
    parts = {part: [Item(key, label_of[value]) for key, value in rows[part]] for part in rows}
    split, origin = _complete(parts, names, str(path))
    check_images_exist(split, path.parent, path)
    return Dataset(name, split, FileImages(path.parent), (DEFAULT_TEMPLATE,), origin)


def _hub(name: str, place: str, options: SourceOptions) -> Dataset:
    table = _open_table(place)
    wanted = {
        "train": (options.train_split,),
        "val": (options.val_split, "validation", "valid"),
        "test": (options.test_split,),
    }
    found = {
        part: next(s for s in splits if s in table)
        for part, splits in wanted.items()
        if any(s in table for s in splits)
    }
    if not found:
        raise UserError(
            f"Expected splits {options.train_split} and {options.test_split} in {place}, "
            f"got {', '.join(table)}; name them with --source.train_split and --source.test_split."
        )
    first = table[next(iter(found.values()))]
    for column in (options.image_column, options.label_column):
        if column not in first.column_names:
            raise UserError(
                f"Expected a column '{column}' in {place}, got {', '.join(first.column_names)}; "
                "name it with --source.image_column or --source.label_column."
            )
    values = {part: [str(v) for v in table[split][options.label_column]] for part, split in found.items()}
    feature = first.features[options.label_column]
    if options.class_names is None and hasattr(feature, "names"):
        names = list(feature.names)
    else:
        names = _class_names([v for part_values in values.values() for v in part_values], options)
    distinct = sorted({value for part_values in values.values() for value in part_values})
    label_of = _label_of(names, distinct, place)
    parts = {
        part: [Item(f"{found[part]}/{row:07d}", label_of[value]) for row, value in enumerate(part_values)]
        for part, part_values in values.items()
    }
    split, origin = _complete(parts, names, place)
    images = TableImages({s: table[s] for s in found.values()}, options.image_column)
    return Dataset(name, split, images, (DEFAULT_TEMPLATE,), origin)


def _open_table(place: str) -> Any:
    """A `datasets.DatasetDict` from the Hub, a folder of parquet files, or ``save_to_disk``'s folder."""
    import datasets

    try:
        if (Path(place) / "dataset_dict.json").is_file() or (Path(place) / "state.json").is_file():
            table = datasets.load_from_disk(place)
        else:
            table = datasets.load_dataset(place)
    except Exception as error:  # what `datasets` raises for a wrong or unreachable place has no common base
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"Expected a dataset at '{place}' (a Hub repository or a local folder), but it can't be opened: {reason}"
        ) from None
    return table if isinstance(table, dict) else {"train": table}
