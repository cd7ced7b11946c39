"""Miniatures: a few drawn images per class in the very folders and files of a dataset of the catalogue."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from cma_tune.data.catalog import AIRCRAFT_PARTS, ENTRIES, VARIANTS, CatalogEntry
from cma_tune.data.class_names import class_names, imagenet_names, wnids
from cma_tune.data.layouts import CLASS_NAMES, MINIATURE
from cma_tune.errors import UserError, nearest
from cma_tune.files import write_json, write_text

if TYPE_CHECKING:
    from PIL.Image import Image

PARTS = ("train", "val", "test")
PER_CLASS = (2, 1, 2)
"""Images per class in train, validation and test."""

SIZE = 24
"""Side of the drawn images, in pixels."""

CALTECH_FOLDERS = {"airplane": "airplanes", "face": "Faces", "leopard": "Leopards", "motorbike": "Motorbikes"}
EUROSAT_FOLDERS = (
    *("AnnualCrop", "Forest", "HerbaceousVegetation", "Highway", "Industrial"),
    *("Pasture", "PermanentCrop", "Residential", "River", "SeaLake"),
)


def find_entry(name: str) -> CatalogEntry:
    """The catalogue's entry of this name.

    Raises:
        UserError: there is none, with the nearest.
    """
    if name not in ENTRIES:
        raise UserError(
            f"Expected a dataset out of {', '.join(ENTRIES)}, got '{name}'{nearest(name, ENTRIES)}."
        )
    return ENTRIES[name]


def write_miniature(name: str, root: Path, per_class: tuple[int, int, int] = PER_CLASS) -> Path:
    """Write a miniature of dataset `name` below the data root `root`, in the community's folder layout.

    Class names and their order are the real ones, images are drawn; the same arguments give the same files.

    Args:
        name: a key of the catalogue.
        root: data root; the dataset's own folder below it is written.
        per_class: images per class in train, validation and test (parts a dataset lacks stay empty).

    Returns:
        The dataset's folder.

    Raises:
        UserError: unknown name, an image count below 1 for train or test, or the folder holds something else
            than a miniature.
    """
    entry = find_entry(name)
    sizes = sizes_of(entry, per_class)
    folder = fresh_folder(root / entry.folder)
    write_json(folder / MINIATURE, dict(zip(PARTS, sizes, strict=True)))
    rows: dict[str, list[tuple[str, int, str]]] = {part: [] for part in PARTS}
    made: set[Path] = set()
    for part, label, class_name, number in plan(entry, per_class):
        key = image_key(name, part, label, class_name, number)
        rows[part].append((key, label, class_name))
        path = folder / entry.images / key
        if path.parent not in made:
            path.parent.mkdir(parents=True, exist_ok=True)
            made.add(path.parent)
        draw(label, class_name, number).save(path, "JPEG", quality=90)
    _write_lists(entry, folder, rows)
    return folder


def fresh_folder(folder: Path) -> Path:
    """`folder`, empty: a former miniature goes, anything else stays and is refused."""
    if folder.exists():
        if not (folder / MINIATURE).is_file():
            raise UserError(
                f"Expected no folder, or a miniature's, at {folder}, got another; name another OUT."
            )
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    return folder


def sizes_of(entry: CatalogEntry, per_class: tuple[int, int, int]) -> tuple[int, int, int]:
    """Images in the three parts of a miniature.

    Raises:
        UserError: train or test has less than one image per class, or validation less than none.
    """
    train, val, test = per_class
    if train < 1 or val < 0 or test < 1:
        raise UserError(
            "Expected at least 1 training, 0 validation and 1 test image per class, "
            f"got {train}, {val} and {test}."
        )
    if entry.name in VARIANTS:
        return 0, 0, test * entry.classes
    return train * entry.classes, val * entry.classes * (entry.name != "imagenet"), test * entry.classes


def plan(entry: CatalogEntry, per_class: tuple[int, int, int]) -> Iterator[tuple[str, int, str, int]]:
    """(part, label, class name, number from 1) of every image; numbers go on over the parts of a class."""
    sizes = sizes_of(entry, per_class)
    first = 1
    for part, size in zip(PARTS, sizes, strict=True):
        each = size // entry.classes
        for label, class_name in enumerate(class_names(entry.name)):
            for number in range(first, first + each):
                yield part, label, class_name, number
        first += each


def image_key(name: str, part: str, label: int, class_name: str, number: int) -> str:
    """Where the dataset would keep such an image, relative to its image folder."""
    running = 1000 * label + number
    if name == "caltech101":
        return f"{CALTECH_FOLDERS.get(class_name, class_name)}/image_{number:04d}.jpg"
    if name == "oxford_pets":
        return f"{class_name}_{number}.jpg"
    if name == "stanford_cars":
        return f"cars_{'test' if part == 'test' else 'train'}/{running:06d}.jpg"
    if name == "oxford_flowers":
        return f"image_{running:06d}.jpg"
    if name == "fgvc_aircraft":
        return f"{running:07d}.jpg"
    if name == "sun397":
        *first, last = class_name.split(" ")
        folder = "/".join([last, *reversed(first)])
        return f"{folder[0]}/{folder}/sun_{number:04d}.jpg"
    if name == "eurosat":
        return f"{EUROSAT_FOLDERS[label]}/{EUROSAT_FOLDERS[label]}_{number}.jpg"
    if name == "ucf101":
        return f"{class_name}/v_{class_name.replace('_', '')}_g{number:02d}_c01.jpg"
    if name.startswith("imagenet"):
        folder = str(label) if name == "imagenetv2" else wnids(name)[label]
        key = f"{folder}/{folder}_{number}.JPEG"
        return key if name != "imagenet" else f"train/{key}" if part == "train" else f"val/{key}"
    return f"{class_name}/{class_name}_{number:04d}.jpg"


def draw(label: int, class_name: str, number: int) -> Image:
    """A picture whose colours and shape go with the class, and whose tint and place go with the number."""
    from PIL import Image, ImageDraw

    code = hashlib.sha256(f"{label} {class_name}".encode()).digest()
    ground = tuple((channel + 11 * number) % 256 for channel in code[:3])
    picture = Image.new("RGB", (SIZE, SIZE), ground)
    pen = ImageDraw.Draw(picture)
    colour = (code[3], code[4], code[5])
    left, top = (3 * number) % 8, (5 * number) % 8
    box = (left, top, left + 12, top + 6 + code[6] % 8)
    (pen.ellipse if code[7] % 2 else pen.rectangle)(box, fill=colour)
    pen.line((0, code[8] % SIZE, SIZE, code[9] % SIZE), fill=(code[10], code[11], code[12]), width=2)
    return picture


def _write_lists(entry: CatalogEntry, folder: Path, rows: dict[str, list[tuple[str, int, str]]]) -> None:
    """What says the split, as the dataset has it."""
    if entry.split_file is not None:
        write_text(folder / entry.split_file, json.dumps(rows))
    elif entry.name == "fgvc_aircraft":
        write_text(folder / "variants.txt", "\n".join(class_names(entry.name)) + "\n")
        for part, file in AIRCRAFT_PARTS.items():
            lines = [f"{Path(key).stem} {class_name}\n" for key, _, class_name in rows[part]]
            write_text(folder / file, "".join(lines))
    else:
        lines = [f"{wnid} {name}\n" for wnid, name in imagenet_names().items()]
        write_text(folder / CLASS_NAMES, "".join(lines))
        if entry.name == "imagenet_r":
            write_text(folder / entry.images / "README.txt", "As in the real one, this file is no class.\n")
