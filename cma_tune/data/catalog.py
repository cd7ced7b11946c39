"""The eleven datasets of the literature and ImageNet's variants: folders, split files, templates, sizes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cma_tune.data.builtin import BUILTIN_NAMES
from cma_tune.data.faults import Complain, refuse
from cma_tune.data.own_catalog import own_entries
from cma_tune.errors import UserError, nearest


@dataclass(frozen=True)
class CatalogEntry:
    """One dataset in the community's folder layout (CoOp's DATASETS.md).

    Attributes:
        folder: folder below the data root that holds the split file.
        images: image folder, relative to `folder`; paths in the split file are relative to it.
        split_file: name of the split file in `folder`, or None where folders or lists say the split.
        split_drive_id: id of the split file on Google Drive.
        template: zero-shot prompt with one ``{}`` for the class name.
        classes: number of classes.
        sizes: images in train, validation and test.

    `layouts.read_layout` reads each of them.
    """

    name: str
    folder: str
    images: str
    split_file: str | None
    split_drive_id: str | None
    template: str
    classes: int
    sizes: tuple[int, int, int]

    def split_url(self) -> str:
        """Where the split file is to be had."""
        return f"https://drive.google.com/file/d/{self.split_drive_id}"

    def where_to_get_split(self) -> str:
        """A sentence on where the split file comes from."""
        return f"get it from {self.split_url()} and put it there"


_PHOTO = "a photo of a {}."

CATALOG: dict[str, CatalogEntry] = {
    entry.name: entry
    for entry in (
        # The literature validates on ImageNet's test images; here it has no validation images instead.
        CatalogEntry("imagenet", "imagenet", "images", None, None, _PHOTO, 1000, (1_281_167, 0, 50_000)),
        CatalogEntry(
            "caltech101",
            "caltech-101",
            "101_ObjectCategories",
            "split_zhou_Caltech101.json",
            "1hyarUivQE36mY6jSomru6Fjd-JzwcCzN",
            _PHOTO,
            100,
            (4128, 1649, 2465),
        ),
        CatalogEntry(
            "oxford_pets",
            "oxford_pets",
            "images",
            "split_zhou_OxfordPets.json",
            "1501r8Ber4nNKvmlFVQZ8SeUHTcdTTEqs",
            "a photo of a {}, a type of pet.",
            37,
            (2944, 736, 3669),
        ),
        CatalogEntry(
            "stanford_cars",
            "stanford_cars",
            ".",
            "split_zhou_StanfordCars.json",
            "1ObCFbaAgVu0I-k_Au-gIUcefirdAuizT",
            _PHOTO,
            196,
            (6509, 1635, 8041),
        ),
        CatalogEntry(
            "oxford_flowers",
            "oxford_flowers",
            "jpg",
            "split_zhou_OxfordFlowers.json",
            "1Pp0sRXzZFZq15zVOzKjKBu4A9i01nozT",
            "a photo of a {}, a type of flower.",
            102,
            (4093, 1633, 2463),
        ),
        CatalogEntry(
            "food101",
            "food-101",
            "images",
            "split_zhou_Food101.json",
            "1QK0tGi096I0Ba6kggatX1ee6dJFIcEJl",
            "a photo of {}, a type of food.",
            101,
            (50500, 20200, 30300),
        ),
        CatalogEntry(
            "fgvc_aircraft",
            "fgvc_aircraft",
            "images",
            None,
            None,
            "a photo of a {}, a type of aircraft.",
            100,
            (3334, 3333, 3333),
        ),
        CatalogEntry(
            "sun397",
            "sun397",
            "SUN397",
            "split_zhou_SUN397.json",
            "1y2RD81BYuiyvebdN-JymPfyWYcd8_MUq",
            _PHOTO,
            397,
            (15880, 3970, 19850),
        ),
        CatalogEntry(
            "dtd",
            "dtd",
            "images",
            "split_zhou_DescribableTextures.json",
            "1u3_QfB467jqHgNXC00UIzbLZRQCg2S7x",
            "{} texture.",
            47,
            (2820, 1128, 1692),
        ),
        CatalogEntry(
            "eurosat",
            "eurosat",
            "2750",
            "split_zhou_EuroSAT.json",
            "1Ip7yaCWFi0eaOFUGga0lUdVi_DDQth1o",
            "a centered satellite photo of {}.",
            10,
            (13500, 5400, 8100),
        ),
        CatalogEntry(
            "ucf101",
            "ucf101",
            "UCF-101-midframes",
            "split_zhou_UCF101.json",
            "1I0S0q91hJfsV9Gf4xDIjgDq4AqBNJb1y",
            "a photo of a person doing {}.",
            101,
            (7639, 1898, 3783),
        ),
    )
}
"""The eleven datasets."""

VARIANTS: dict[str, CatalogEntry] = {
    entry.name: entry
    for entry in (
        CatalogEntry(
            "imagenetv2",
            "imagenetv2",
            "imagenetv2-matched-frequency-format-val",
            None,
            None,
            _PHOTO,
            1000,
            (0, 0, 10_000),
        ),
        CatalogEntry(
            "imagenet_sketch", "imagenet-sketch", "images", None, None, _PHOTO, 1000, (0, 0, 50_889)
        ),
        CatalogEntry(
            "imagenet_a", "imagenet-adversarial", "imagenet-a", None, None, _PHOTO, 200, (0, 0, 7_500)
        ),
        CatalogEntry(
            "imagenet_r", "imagenet-rendition", "imagenet-r", None, None, _PHOTO, 200, (0, 0, 30_000)
        ),
    )
}
"""Test images alone, for what was learned on ImageNet."""

ENTRIES: dict[str, CatalogEntry] = {**CATALOG, **VARIANTS}
"""All that is read from the community's folders."""

SOURCE_PREFIXES = ("folder:", "csv:", "hub:")
"""General sources: ``folder:PATH``, ``csv:FILE``, ``hub:REPO_OR_FOLDER``."""


def known_names() -> list[str]:
    """Every dataset that can be named without a prefix: embedded, the eleven, ImageNet's variants, own ones.

    Raises:
        UserError: the file of own datasets can't be read, or takes a name that is there already.
    """
    own = own_entries()
    taken = [name for name in own if name in BUILTIN_NAMES or name in ENTRIES]
    if taken:
        raise UserError(f"Expected new names for datasets of one's own, got '{taken[0]}'; rename it.")
    return [*BUILTIN_NAMES, *ENTRIES, *own]


def check_dataset_name(name: str) -> None:
    """Check a ``--dataset`` value without loading anything.

    Raises:
        UserError: the name is unknown (with the nearest known one), or nothing follows a prefix.
    """
    if name.startswith(SOURCE_PREFIXES):
        if not name.split(":", 1)[1]:
            raise UserError(f"Expected a path or repository after '{name}', got nothing; add it.")
    elif name not in known_names():
        raise UserError(
            f"Expected a dataset out of {', '.join(known_names())}, or folder:PATH, csv:FILE, hub:REPO, "
            f"got '{name}'{nearest(name, known_names())}."
        )


AIRCRAFT_PARTS = {part: f"images_variant_{part}.txt" for part in ("train", "val", "test")}
"""FGVC Aircraft's list of each part."""

LISTS = {"fgvc_aircraft": ("variants.txt", *AIRCRAFT_PARTS.values())}
"""Files in a dataset's folder that are its split and come with its images."""

IMAGES_FROM = {
    "caltech101": "https://data.caltech.edu/records/mzrjq-6wc02",
    "oxford_pets": "https://www.robots.ox.ac.uk/~vgg/data/pets/",
    "stanford_cars": "a copy with the original files, as https://github.com/pytorch/vision/issues/7545 names",
    "oxford_flowers": "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/",
    "food101": "https://data.vision.ee.ethz.ch/cvl/datasets_extra/food-101/",
    "fgvc_aircraft": "https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/",
    "sun397": "https://vision.princeton.edu/projects/2010/SUN/",
    "dtd": "https://www.robots.ox.ac.uk/~vgg/data/dtd/",
    "eurosat": "https://github.com/phelber/EuroSAT",
    "ucf101": "https://drive.google.com/file/d/10Jqome3vtUA2keJkNanAiFpgbyC9Hc2O (mid-frames)",
    "imagenet": "https://www.image-net.org",
    "imagenetv2": "https://huggingface.co/datasets/vaishaal/ImageNetV2",
    "imagenet_sketch": "https://github.com/HaohanWang/ImageNet-Sketch",
    "imagenet_a": "https://github.com/hendrycks/natural-adv-examples",
    "imagenet_r": "https://github.com/hendrycks/imagenet-r",
}
"""Where the images of each dataset are to be had."""


def locate(entry: CatalogEntry, root: Path, complain: Complain = refuse) -> Path:
    """The dataset's folder below `root`, with its split file and its image folder in it.

    Raises:
        UserError: the folder is missing, with where to get it, or one of the others is (`complain` may go on
            instead).
    """
    folder = root / entry.folder
    if not folder.is_dir():
        split = f" and the split file from {entry.split_url()} into {folder}" if entry.split_file else ""
        raise UserError(
            f"Expected the folder of '{entry.name}' at {folder}, but it does not exist; "
            f"name another --data-root, or get the images from {IMAGES_FROM[entry.name]} into "
            f"{folder / entry.images}{split}."
        )
    if entry.split_file is not None and not (folder / entry.split_file).is_file():
        complain(
            "split file",
            [f"missing at {folder / entry.split_file}"],
            f"Expected the split file of '{entry.name}' at {folder / entry.split_file}, "
            f"but it does not exist; {entry.where_to_get_split()}.",
        )
    images = folder / entry.images
    if not images.is_dir():
        complain(
            "image folder",
            [f"missing at {images}"],
            f"Expected the images of '{entry.name}' in {images}, but there is no such folder; "
            f"get them from {IMAGES_FROM[entry.name]} and unpack them there.",
        )
    return folder
