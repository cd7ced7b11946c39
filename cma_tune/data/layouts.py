"""The community's folder layout: split files, FGVC Aircraft's lists, ImageNet's folders and its variants'."""

from __future__ import annotations

import os
from pathlib import Path

from cma_tune.data.catalog import AIRCRAFT_PARTS, ENTRIES, VARIANTS, CatalogEntry, locate
from cma_tune.data.class_names import class_names, imagenet_names, subset_wnids
from cma_tune.data.dataset import DEFAULT_TEMPLATE, Dataset, FileImages, check_images_exist
from cma_tune.data.faults import Complain, refuse
from cma_tune.data.labels import read_class_names
from cma_tune.data.listings import IMAGE_SUFFIXES
from cma_tune.data.splits import Item, Split, check_split, inside, read_coop_split
from cma_tune.errors import UserError
from cma_tune.files import read_json

MINIATURE = "miniature.json"
"""Lies in the folder of a miniature and holds its sizes, so that its numbers pass for nobody's results."""

CLASS_NAMES = "classnames.txt"


def read_layout(name: str, root: Path, complain: Complain = refuse) -> Dataset:
    """A dataset of the catalogue from its folder below `root`.

    Raises:
        UserError: a folder, file or image is missing, with where to get it, or a file has another form
            (`complain` may go on where the dataset's folder is there).
    """
    entry = ENTRIES[name]
    folder = locate(entry, root, complain)
    if entry.split_file is not None:
        split, origin = _from_split_file(entry, folder / entry.split_file, complain), entry.split_file
        check_images_exist(split, folder / entry.images, folder / entry.split_file, complain)
        origin = f"published split {origin}"
    elif name == "fgvc_aircraft":
        split = _aircraft(folder, complain)
        check_images_exist(split, folder / entry.images, folder, complain)
        origin = "published split images_variant_{train,val,test}.txt"
    else:
        split, origin = _imagenet(entry, folder, root, complain)
    if miniature_sizes(folder) is not None:
        origin = f"miniature of drawn images in the form of: {origin}"
    return Dataset(name, split, FileImages(folder / entry.images), (entry.template,), origin)


def folder_with_split(name: str, images: Path, split_file: Path, complain: Complain = refuse) -> Dataset:
    """Images of one's own below a folder, with a split file in CoOp's form.

    Raises:
        UserError: the split file or an image is missing, or it has another form (`complain` may go on).
    """
    split = read_coop_split(split_file, name, complain)
    check_images_exist(split, images, split_file, complain)
    return Dataset(name, split, FileImages(images), (DEFAULT_TEMPLATE,), f"split {split_file}")


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


def _from_split_file(entry: CatalogEntry, path: Path, complain: Complain) -> Split:
    if not path.is_file():  # `locate` has told of it
        return Split((), (), (), ())
    split = read_coop_split(path, entry.name, complain)
    if split.class_names and len(split.class_names) != entry.classes:
        complain(
            "classes",
            [f"{len(split.class_names)} in {path.name}"],
            f"Expected {entry.classes} classes of '{entry.name}' in {path}, got {len(split.class_names)}; "
            f"{entry.where_to_get_split()}.",
        )
    return split


def _aircraft(folder: Path, complain: Complain) -> Split:
    """``variants.txt`` names the classes in label order, each list holds ``IMAGE VARIANT`` lines."""
    try:
        names = read_class_names(folder / "variants.txt")
    except UserError as error:
        complain("lists that can't be read", ["variants.txt"], str(error))
        names = class_names("fgvc_aircraft")
    label_of = {name: label for label, name in enumerate(names)}
    expected = ENTRIES["fgvc_aircraft"].classes
    if len(label_of) != expected:
        complain(
            "variants in variants.txt",
            [f"{len(label_of)} different ones"],
            f"Expected {expected} different variants in {folder / 'variants.txt'}, got {len(label_of)}; "
            "use the file that comes with the images.",
        )
    parts = {}
    for part, file in AIRCRAFT_PARTS.items():
        items = []
        for line in _lines(folder / file, complain):
            image, _, variant = line.partition(" ")
            if variant.strip() in label_of:
                items.append(Item(f"{image}.jpg", label_of[variant.strip()]))
                continue
            complain(
                f"lines of another form in {file}",
                [f"'{line}'"],
                f"Expected 'IMAGE VARIANT' with a variant of variants.txt in every line of "
                f"{folder / file}, got '{line}'; use the file that comes with the images.",
            )
        parts[part] = inside(items, folder / file, complain)
    split = Split(**parts, class_names=tuple(names))
    return check_split(split, "fgvc_aircraft", complain=complain)


def _lines(path: Path, complain: Complain = refuse) -> list[str]:
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        complain(
            "lists that can't be read",
            [path.name],
            f"Expected a list of images and classes at {path}, but it can't be read ({error}); "
            "it comes with the images.",
        )
        return []


def _imagenet(entry: CatalogEntry, folder: Path, root: Path, complain: Complain) -> tuple[Split, str]:
    """ImageNet from ``train`` and ``val`` with a folder per WordNet id; a variant from such folders alone."""
    names, whose = class_names_by_wnid(folder, root, complain)
    wnids = sorted(names) if entry.classes == len(names) else subset_wnids(entry.name)
    # ImageNetV2's folders are called by labels: sorted as text, 10 would come before 2.
    of_folder = {str(n): n for n in range(len(wnids))} if entry.name == "imagenetv2" else None
    label_of = of_folder or {wnid: label for label, wnid in enumerate(wnids)}
    images = folder / entry.images
    called = tuple(names[wnid] for wnid in wnids)
    if entry.name in VARIANTS:
        split = Split((), (), tuple(_listed(images, "", label_of, entry, complain)), called)
        split = check_split(split, entry.name, test_only=True, complain=complain)
        return split, f"all images are test images; {whose}"
    train, test = (tuple(_listed(images, f"{part}/", label_of, entry, complain)) for part in ("train", "val"))
    # Validating on test images, as the literature does, would let a choice of λ see the test.
    split = check_split(Split(train, (), test, called), entry.name, complain=complain)
    return split, f"ImageNet's train, images in the order of their names, and val as test; {whose}"


def class_names_by_wnid(folder: Path, root: Path, complain: Complain = refuse) -> tuple[dict[str, str], str]:
    """Class name by WordNet id, and where from: ``classnames.txt`` here, in ImageNet's folder, or our own."""
    for path in (folder / CLASS_NAMES, root / ENTRIES["imagenet"].folder / CLASS_NAMES):
        if path.is_file():
            names = dict(line.split(" ", 1) for line in _lines(path, complain) if " " in line)
            if set(names) != set(imagenet_names()):
                known = sum(wnid in imagenet_names() for wnid in names)
                complain(
                    f"lines of {CLASS_NAMES}",
                    [f"{known} of ImageNet's 1000 ids in {len(names)}"],
                    f"Expected 'WNID NAME' in 1000 lines of {path}, got {known} such lines; "
                    "use the published file, or take it away to have the same names from the package.",
                )
                break
            return {wnid: name.strip() for wnid, name in names.items()}, f"names of {CLASS_NAMES}"
    return imagenet_names(), "the published class names, as the package carries them"


def _listed(
    images: Path, part: str, label_of: dict[str, int], entry: CatalogEntry, complain: Complain
) -> list[Item]:
    """Images of every class folder, classes by label, images by name; other files don't count."""
    folder = images / part
    try:
        with os.scandir(folder) as found:
            present = {one.name for one in found if one.name[0] != "." and one.is_dir()}
    except OSError as error:
        complain(
            "image folder",
            [f"{folder}: {error.strerror}"],
            f"Expected a folder per class of '{entry.name}' in {folder}, but it can't be read "
            f"({error.strerror}); get the images from the source 'cma-tune data list {entry.name}' shows.",
        )
        return []
    absent = [name for name in label_of if name not in present]
    unknown = sorted(present - set(label_of))
    for what, wrong, how in (
        ("class folders missing", absent, "is missing"),
        ("folders that are no class", unknown, "is none of them"),
    ):
        if wrong:
            complain(
                what,
                [f"{part}{name}" for name in wrong],
                f"Expected the {len(label_of)} class folders of '{entry.name}' in {folder}, "
                f"got {len(absent)} missing and {len(unknown)} others ('{wrong[0]}' {how}); "
                "unpack the whole dataset there.",
            )
    items = []
    for name in (name for name in label_of if name in present):
        files = sorted(file for file in os.listdir(folder / name) if file.lower().endswith(IMAGE_SUFFIXES))
        items += [Item(f"{part}{name}/{file}", label_of[name]) for file in files if file[0] != "."]
    return items
