"""Bringing datasets: split files, and images where they lie open; what can't be brought is said exactly."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cma_tune.data.archives import BadArchive, extract
from cma_tune.data.catalog import IMAGES_FROM, LISTS, CatalogEntry
from cma_tune.data.class_names import imagenet_names
from cma_tune.data.download import download, put_aside
from cma_tune.data.hub_repositories import HUB
from cma_tune.data.layouts import CLASS_NAMES, miniature_sizes
from cma_tune.data.miniature import find_entry
from cma_tune.data.open_tables import open_table
from cma_tune.data.splits import read_coop_split
from cma_tune.data.survey import Shortfalls, shortfalls
from cma_tune.errors import UserError
from cma_tune.files import write_text

DRIVE = "https://drive.usercontent.google.com/download?export=download&id="
"""Small files on Google Drive come from here without a browser."""

DOWNLOADS = ".downloads"
"""Folder below the data root for what is being downloaded."""


@dataclass(frozen=True)
class Archive:
    """Where a dataset's images lie open.

    Attributes:
        url: of the archive.
        md5: its checksum as torchvision has it, or None where none is known.
        strip: path inside that becomes the dataset's folder.
        inner: archive inside the archive that holds the images, if any.
    """

    url: str
    md5: str | None = None
    strip: str = ""
    inner: str | None = None


_VGG = "https://www.robots.ox.ac.uk/~vgg/data"
ARCHIVES: dict[str, Archive] = {
    "caltech101": Archive(
        "https://data.caltech.edu/records/mzrjq-6wc02/files/caltech-101.zip",
        "3138e1922a9193bfa496528edbbc45d0",
        "caltech-101",
        "101_ObjectCategories.tar.gz",
    ),
    "oxford_pets": Archive(f"{_VGG}/pets/data/images.tar.gz", "5c4f3ee8e5d25df40f4fd59a7f44e54c"),
    "oxford_flowers": Archive(f"{_VGG}/flowers/102/102flowers.tgz", "52808999861908f626f3c1f4e79d11fa"),
    "food101": Archive(
        "http://data.vision.ee.ethz.ch/cvl/food-101.tar.gz", "85eeb15f3717b99a5da872d97d918f87", "food-101"
    ),
    "fgvc_aircraft": Archive(
        f"{_VGG}/fgvc-aircraft/archives/fgvc-aircraft-2013b.tar.gz", None, "fgvc-aircraft-2013b/data"
    ),
    "dtd": Archive(f"{_VGG}/dtd/download/dtd-r1.0.1.tar.gz", "fff73e5086ae6bdbea199a49dfb8a4c1", "dtd"),
    "eurosat": Archive(
        "https://huggingface.co/datasets/torchgeo/eurosat/resolve/"
        "c877bcd43f099cd0196738f714544e355477f3fd/EuroSAT.zip",
        "c8fa014336c82ac7804f0398fcb19387",
    ),
    "imagenetv2": Archive(
        "https://huggingface.co/datasets/vaishaal/ImageNetV2/resolve/main/imagenetv2-matched-frequency.tar.gz"
    ),
    "imagenet_a": Archive("https://people.eecs.berkeley.edu/~hendrycks/imagenet-a.tar"),
    "imagenet_r": Archive("https://people.eecs.berkeley.edu/~hendrycks/imagenet-r.tar"),
}

WHY_NOT = {
    "imagenet": "they are given out only after registration",
    "stanford_cars": "their official server is gone",
    "sun397": "they are 37 GB from a slow server",
    "ucf101": "they lie on Google Drive, which asks for a click in a browser",
    "imagenet_sketch": "they lie on Google Drive, which asks for a click in a browser",
}


def fetch(name: str, root: Path, say: Callable[[str], None] = print) -> list[str]:
    """Bring what is missing or damaged of a dataset below `root`.

    Split file and images come from different places: where one fails, the other is tried all the same. A
    download that breaks is kept and gone on with by the next call; archives are removed once unpacked.

    Args:
        name: key of the catalogue.
        root: data root.
        say: told what happens.

    Returns:
        What is still missing, why, and how to get it by hand, one text each; nothing if all is there.

    Raises:
        UserError: unknown name, or a miniature is in the dataset's place.
    """
    entry = find_entry(name)
    folder, archive = root / entry.folder, _archive_path(entry, root)
    if miniature_sizes(folder) is not None:
        raise UserError(
            f"Expected no miniature at {folder} to fetch '{name}' into, got one; name another --data-root or "
            "remove it."
        )
    lacks = _lacks(entry, root)
    if folder.is_dir():
        for text in (*lacks.split, *lacks.images):
            say(f"{name}: {text}")
    left: list[str] = []
    if lacks.split and entry.split_file is not None:
        left += _tried("split file", lambda: _split_file(entry, folder, say), _split_by_hand(entry, folder))
        lacks = _lacks(entry, root)
    # An archive goes when all of it is unpacked: while it is there, images may be missing.
    if lacks.images or (lacks.split and entry.split_file is None) or archive.is_file():
        left += _tried("images", lambda: _images(entry, folder, archive, say), _images_by_hand(entry, folder))
    if not left:
        lacks = _lacks(entry, root)
        split, by_hand = "split" if entry.split_file is None else "split file", _split_by_hand(entry, folder)
        if lacks.split:
            left.append(f"{split}: still {'; '.join(lacks.split)}. {by_hand}")
        if lacks.images:
            left.append(f"images: still {'; '.join(lacks.images)}. {_images_by_hand(entry, folder)}")
    for empty in (folder, archive.parent):  # the first would look like a dataset
        with contextlib.suppress(OSError):
            empty.rmdir()
    names = root / "imagenet" / CLASS_NAMES
    if name == "imagenet" and not names.exists():
        write_text(names, "".join(f"{wnid} {called}\n" for wnid, called in imagenet_names().items()))
        say(f"{names}: written")
    return left


def _lacks(entry: CatalogEntry, root: Path) -> Shortfalls:
    if not (root / entry.folder).is_dir():
        return Shortfalls(["the folder is missing"], ["the folder is missing"])
    return shortfalls(entry, root)


def _tried(what: str, bring: Callable[[], bool], by_hand: str) -> list[str]:
    """What is left to be done: nothing where it was brought, else why not, and how to do it by hand."""
    try:
        return [] if bring() else [f"{what}: {by_hand}"]
    except UserError as error:
        return [f"{what}: {error} {by_hand}"]


def fetch_hub(name: str, root: Path, say: Callable[[str], None] = print) -> None:
    """Keep a dataset's Hub repository as a local table ``root/NAME``, for ``--data-root hub:ROOT``.

    The `datasets` library downloads it, and goes on with what is in its cache already.

    Args:
        name, root, say: as in `fetch`.

    Raises:
        UserError: no repository is known, it can't be opened, or another folder is in its place.
    """
    import datasets

    repo = HUB[find_entry(name).name].repo
    folder, aside = root / name, root / f".{name}.arriving"
    if repo is None:
        raise UserError(
            f"Expected a dataset with a known Hub repository, got '{name}'; fetch it without --form hub."
        )
    if (folder / "dataset_dict.json").is_file():
        return
    if folder.exists() and not _is_empty(folder):
        raise UserError(
            f"Expected no folder, or a table of '{name}', at {folder}, got another; move it away, or name "
            "another --data-root."
        )
    table = open_table(repo)
    shutil.rmtree(aside, ignore_errors=True)
    datasets.DatasetDict(table).save_to_disk(aside)
    os.replace(aside, folder)  # so that a table is there as a whole or not at all
    say(f"{folder}: {', '.join(f'{len(rows):,} {part}' for part, rows in table.items())} images of {repo}")


def _is_empty(folder: Path) -> bool:
    return folder.is_dir() and not any(folder.iterdir())


def _archive_path(entry: CatalogEntry, root: Path) -> Path:
    url = ARCHIVES[entry.name].url if entry.name in ARCHIVES else entry.name
    return root / DOWNLOADS / url.rsplit("/", 1)[-1]


def _split_by_hand(entry: CatalogEntry, folder: Path) -> str:
    if entry.split_file is None:
        origin, lists = _origin(entry), LISTS.get(entry.name)
        if lists is None:
            return (
                f"The split is the images' folders, which come with {origin}; without {CLASS_NAMES} the "
                "package's own copy is read."
            )
        return f"The lists come with the images' archive, {origin}; put {', '.join(lists)} into {folder}."
    return f"Download {entry.split_url()} in a browser and put it at {folder / str(entry.split_file)}."


def _images_by_hand(entry: CatalogEntry, folder: Path) -> str:
    why = f" ({WHY_NOT[entry.name]})" if entry.name in WHY_NOT else ""
    hub = (
        ""
        if HUB[entry.name].repo is None
        else f", or use the Hub's with --data-root hub: ({HUB[entry.name].repo})"
    )
    where = f"as {folder / entry.images}"
    if entry.images == ".":
        where = f"into {folder}"
    if lists := LISTS.get(entry.name):
        where += f", with {', '.join(lists)} in {folder}"
    return f"Download the images from {_origin(entry)}{why} and unpack them {where}{hub}."


def _origin(entry: CatalogEntry) -> str:
    return ARCHIVES[entry.name].url if entry.name in ARCHIVES else IMAGES_FROM[entry.name]


def _split_file(entry: CatalogEntry, folder: Path, say: Callable[[str], None]) -> bool:
    """Fetch the split file; another one in its place is put aside once the published one is there."""
    path = folder / str(entry.split_file)
    arriving = folder / f".{entry.split_file}.arriving"
    url = f"{DRIVE}{entry.split_drive_id}"
    download(url, arriving, say=say)
    try:
        sizes = tuple(map(len, read_coop_split(arriving, entry.name).parts().values()))
    except UserError:
        sizes = ()
    if sizes != entry.sizes:
        arriving.unlink()
        raise UserError(
            f"Expected the published split file at {url}, but something else came (Google Drive shows a page "
            "instead where it wants a click, or where too many have asked for the file)."
        )
    if path.exists():
        aside = path.with_name(f"{path.name}.replaced")
        os.replace(path, aside)
        say(f"{path}: was another one, which is {aside.name} now")
    arriving.replace(path)
    say(f"{path}: fetched")
    return True


def _images(entry: CatalogEntry, folder: Path, path: Path, say: Callable[[str], None]) -> bool:
    """Fetch and unpack the images; False where they don't lie open."""
    if entry.name not in ARCHIVES:
        return False
    archive, was_there = ARCHIVES[entry.name], path.is_file()
    download(archive.url, path, archive.md5, say)
    if archive.md5 is None:
        say(f"{path.name}: no checksum is published, so none was compared")
    try:
        count = _unpack(archive, path, folder)
    except BadArchive as error:
        # Under its name it would stand in the way of the next download.
        if was_there:
            what = f"is kept as {put_aside(path).name}"
        else:
            what = "was removed"
            path.unlink()
        raise UserError(f"{error} {path} {what}; the same command downloads it again.") from None
    if not (folder / entry.images).is_dir():
        raise UserError(
            f"Expected {path} to hold {entry.images}, but it holds other folders; look into {folder} and "
            f"move the images to {folder / entry.images}."
        )
    path.unlink()
    say(f"{folder}: {count:,} files unpacked")
    return True


def _unpack(archive: Archive, path: Path, folder: Path) -> int:
    if archive.inner is None:
        return extract(path, folder, archive.strip)
    opened = path.with_name(f"{path.name}.opened")
    try:
        extract(path, opened, archive.strip)
        if not (opened / archive.inner).is_file():
            raise BadArchive(f"Expected {archive.inner} in {path}, got none; is it another archive?")
        return extract(opened / archive.inner, folder)
    finally:
        shutil.rmtree(opened, ignore_errors=True)
