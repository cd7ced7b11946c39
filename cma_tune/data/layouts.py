"""The community's folder layout: split files, FGVC Aircraft's lists, ImageNet's folders and its variants'."""

from __future__ import annotations

import os
from pathlib import Path

from cma_tune.data.catalog import ENTRIES, VARIANTS, CatalogEntry, locate
from cma_tune.data.class_names import imagenet_names, subset_wnids
from cma_tune.data.dataset import Dataset, FileImages, check_images_exist
from cma_tune.data.labels import read_class_names
from cma_tune.data.listings import IMAGE_SUFFIXES
from cma_tune.data.splits import Item, Split, check_split, read_coop_split
from cma_tune.errors import UserError
from cma_tune.files import read_json

MINIATURE = "miniature.json"
"""Lies in the folder of a miniature and holds its sizes, so that its numbers pass for nobody's results."""

CLASS_NAMES = "classnames.txt"
AIRCRAFT_PARTS = {part: f"images_variant_{part}.txt" for part in ("train", "val", "test")}


def read_layout(name: str, root: Path) -> Dataset:
    """A dataset of the catalogue from its folder below `root`.

    Raises:
        UserError: a folder, file or image is missing, with where to get it, or a file has another form.
    """
    entry = ENTRIES[name]
    folder = locate(entry, root)
    if entry.split_file is not None:
        split, origin = _from_split_file(entry, folder / entry.split_file), entry.split_file
        check_images_exist(split, folder / entry.images, folder / entry.split_file)
        origin = f"published split {origin}"
    elif name == "fgvc_aircraft":
        split = _aircraft(folder)
        check_images_exist(split, folder / entry.images, folder)
        origin = "published split images_variant_{train,val,test}.txt"
    else:
        split, origin = _imagenet(entry, folder, root)
    if miniature_sizes(folder) is not None:
        origin = f"miniature of drawn images in the form of: {origin}"
    return Dataset(name, split, FileImages(folder / entry.images), (entry.template,), origin)


def miniature_sizes(folder: Path) -> tuple[int, int, int] | None:
    """Images in train, val and test of a miniature, or None where `folder` holds none."""
    path = folder / MINIATURE
    if not path.is_file():
        return None
    content = read_json(path, "a miniature's sizes")
    try:
        train, val, test = (int(content[part]) for part in ("train", "val", "test"))
    except (KeyError, TypeError, ValueError):
        raise UserError(
            f"Expected numbers train, val and test in {path}, got another form; write the miniature again."
        ) from None
    return train, val, test


def _from_split_file(entry: CatalogEntry, path: Path) -> Split:
    split = read_coop_split(path, entry.name)
    if len(split.class_names) != entry.classes:
        raise UserError(
            f"Expected {entry.classes} classes of '{entry.name}' in {path}, got {len(split.class_names)}; "
            f"{entry.where_to_get_split()}."
        )
    return split


def _aircraft(folder: Path) -> Split:
    """``variants.txt`` names the classes in label order, each list holds ``IMAGE VARIANT`` lines."""
    names = read_class_names(folder / "variants.txt")
    label_of = {name: label for label, name in enumerate(names)}
    expected = ENTRIES["fgvc_aircraft"].classes
    if len(label_of) != expected:
        raise UserError(
            f"Expected {expected} different variants in {folder / 'variants.txt'}, got {len(label_of)}; "
            "use the file that comes with the images."
        )
    parts = {}
    for part, file in AIRCRAFT_PARTS.items():
        items = []
        for line in _lines(folder / file):
            image, _, variant = line.partition(" ")
            if variant.strip() not in label_of:
                raise UserError(
                    f"Expected 'IMAGE VARIANT' with a variant of variants.txt in every line of "
                    f"{folder / file}, got '{line}'; use the file that comes with the images."
                )
            items.append(Item(f"{image}.jpg", label_of[variant.strip()]))
        parts[part] = tuple(items)
    return check_split(Split(**parts, class_names=tuple(names)), "fgvc_aircraft")


def _lines(path: Path) -> list[str]:
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"Expected a list of images and classes at {path}, but it can't be read ({error}); "
            "it comes with the images."
        ) from None


def _imagenet(entry: CatalogEntry, folder: Path, root: Path) -> tuple[Split, str]:
    """ImageNet from ``train`` and ``val`` with a folder per WordNet id; a variant from such folders alone."""
    names, whose = class_names_by_wnid(folder, root)
    wnids = sorted(names) if entry.classes == len(names) else subset_wnids(entry.name)
    # ImageNetV2's folders are called by labels: sorted as text, 10 would come before 2.
    of_folder = {str(n): n for n in range(len(wnids))} if entry.name == "imagenetv2" else None
    label_of = of_folder or {wnid: label for label, wnid in enumerate(wnids)}
    images = folder / entry.images
    class_names = tuple(names[wnid] for wnid in wnids)
    if entry.name in VARIANTS:
        split = Split((), (), tuple(_listed(images, "", label_of, entry)), class_names)
        return check_split(split, entry.name, test_only=True), f"all images are test images; {whose}"
    train, test = (tuple(_listed(images, f"{part}/", label_of, entry)) for part in ("train", "val"))
    # Validating on test images, as the literature does, would let a choice of λ see the test.
    split = check_split(Split(train, (), test, class_names), entry.name)
    return split, f"ImageNet's train, images in the order of their names, and val as test; {whose}"


def class_names_by_wnid(folder: Path, root: Path) -> tuple[dict[str, str], str]:
    """Class name by WordNet id, and where from: ``classnames.txt`` here, in ImageNet's folder, or our own."""
    for path in (folder / CLASS_NAMES, root / ENTRIES["imagenet"].folder / CLASS_NAMES):
        if path.is_file():
            names = dict(line.split(" ", 1) for line in _lines(path) if " " in line)
            if len(names) != ENTRIES["imagenet"].classes:
                raise UserError(
                    f"Expected 'WNID NAME' in 1000 lines of {path}, got {len(names)} such lines; "
                    "use the published file, or take it away to have the same names from the package."
                )
            return {wnid: name.strip() for wnid, name in names.items()}, f"names of {CLASS_NAMES}"
    return imagenet_names(), "the published class names, as the package carries them"


def _listed(images: Path, part: str, label_of: dict[str, int], entry: CatalogEntry) -> list[Item]:
    """Images of every class folder, classes by label, images by name; other files don't count."""
    folder = images / part
    try:
        with os.scandir(folder) as found:
            present = {one.name for one in found if one.name[0] != "." and one.is_dir()}
    except OSError as error:
        raise UserError(
            f"Expected a folder per class of '{entry.name}' in {folder}, but it can't be read "
            f"({error.strerror}); get the images from the source 'cma-tune data list' shows."
        ) from None
    absent = [name for name in label_of if name not in present]
    unknown = sorted(present - set(label_of))
    if absent or unknown:
        first = f"'{absent[0]}' is missing" if absent else f"'{unknown[0]}' is none of them"
        raise UserError(
            f"Expected the {len(label_of)} class folders of '{entry.name}' in {folder}, "
            f"got {len(absent)} missing and {len(unknown)} others ({first}); unpack the whole dataset there."
        )
    items = []
    for name in label_of:
        files = sorted(file for file in os.listdir(folder / name) if file.lower().endswith(IMAGE_SUFFIXES))
        items += [Item(f"{part}{name}/{file}", label_of[name]) for file in files if file[0] != "."]
    return items
