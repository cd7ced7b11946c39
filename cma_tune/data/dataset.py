"""A dataset as every source gives it: a split, images behind its keys, prompt templates."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from cma_tune.data.builtin import BuiltinData, load_builtin
from cma_tune.data.faults import Complain, refuse
from cma_tune.data.splits import Split
from cma_tune.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

DEFAULT_TEMPLATE = "a photo of a {}."

DIGEST_BYTES = 32
"""Length of an image's digest."""


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
    """Choices of the general sources (``folder:``, ``csv:``, ``hub:``).

    Attributes:
        image_column: holds the image (hub) or its path (csv, where it is called "path" by default).
        label_column: holds the class, as a name or a number.
        split_column: csv column that says train, val or test; without it the split is ours.
        train_split, val_split, test_split: names of the parts. By default validation may also be called
            validation, valid or dev. A name that is given must exist.
        class_names: file with one class name a line. Labels are matched with it by name where all of them are
            in the file, else by number from 0.
    """

    image_column: str = "image"
    label_column: str = "label"
    split_column: str = "split"
    train_split: str = "train"
    val_split: str = "val"
    test_split: str = "test"
    class_names: Path | None = None


class FileImages:
    """Images that are files below `root` (keys are relative paths).

    Args:
        root: folder of the files.
        otherwise: what a user can do about a file that is missing or damaged, but for mending it.
    """

    def __init__(self, root: Path, otherwise: str = "take it out of the split") -> None:
        self.root = root
        self.otherwise = otherwise

    def load(self, key: str) -> Image:
        """Decode one file as RGB.

        Raises:
            UserError: the file is missing or can't be decoded, naming its path.
        """
        from PIL import Image

        path = self.root / key
        try:
            with Image.open(path) as image:
                rgb: Image.Image = image.convert("RGB")
                return rgb
        except FileNotFoundError:
            raise self._missing(key) from None
        except Exception as error:  # Pillow's decoders raise almost anything over a damaged file
            raise UserError(
                f"Expected an image at {path}, but it can't be decoded ({error}); "
                f"replace it or {self.otherwise}."
            ) from None

    def status(self, key: str) -> tuple[int, int]:
        """Size in bytes and modification time in nanoseconds of the file.

        Raises:
            UserError: the file is missing.
        """
        try:
            status = (self.root / key).stat()
        except FileNotFoundError:
            raise self._missing(key) from None
        return status.st_size, status.st_mtime_ns

    def fingerprint(self, key: str) -> str:
        """Size and modification time of the file.

        Raises:
            UserError: the file is missing.
        """
        size, modified = self.status(key)
        return f"{size}-{modified}"

    def digest(self, key: str) -> bytes:
        """BLAKE2b over the file's bytes, the same wherever the file lies.

        Raises:
            UserError: the file is missing or can't be read.
        """
        content = hashlib.blake2b(digest_size=DIGEST_BYTES)
        try:
            with open(self.root / key, "rb") as handle:
                while block := handle.read(2**20):
                    content.update(block)
        except FileNotFoundError:
            raise self._missing(key) from None
        except OSError as error:
            raise UserError(
                f"Expected an image at {self.root / key}, but it can't be read ({error.strerror}); "
                f"replace it or {self.otherwise}."
            ) from None
        return content.digest()

    def _missing(self, key: str) -> UserError:
        return UserError(
            f"Expected an image at {self.root / key}, but there is no such file; "
            f"put it there or {self.otherwise}."
        )


class BuiltinImages:
    """Images of an embedded dataset."""

    def __init__(self, name: str) -> None:
        self.name = name

    @cached_property
    def _data(self) -> BuiltinData:
        return load_builtin(self.name)

    def __getstate__(self) -> dict[str, str]:
        # Workers that are not forked get a copy. The data's read-only mappings can't travel; the name can.
        return {"name": self.name}

    def load(self, key: str) -> Image:
        """The image drawn or enlarged for `key`."""
        return self._data.load(key)

    def fingerprint(self, key: str) -> str:
        """Name and version of the embedded dataset."""
        return f"{self.name}-{self._data.version}"


def absent_images(split: Split, images: Path) -> list[str]:
    """Keys of the images that are not in the folder, in the order of the split."""
    # One listing per folder is much cheaper than one look per image.
    present: dict[str, set[str]] = {}
    absent: list[str] = []
    for items in split.parts().values():
        for item in items:
            folder, name = os.path.split(item.key)
            if folder not in present:
                present[folder] = _listing(images / folder)
            if name not in present[folder]:
                absent.append(item.key)
    return absent


ABSENT = "absent images"
"""Fault of files that a split names."""


def check_images_exist(split: Split, images: Path, named_by: Path, complain: Complain = refuse) -> None:
    """Check that every image of the split is there.

    Raises:
        UserError: with the number of absent images and the first three (`complain` may go on instead).
    """
    absent = absent_images(split, images)
    if absent:
        total = sum(len(items) for items in split.parts().values())
        complain(
            ABSENT,
            absent,
            f"Expected all {total} images named by {named_by} in {images}, but {len(absent)} are absent "
            f"(first: {', '.join(absent[:3])}); unpack the whole dataset there.",
        )


def _listing(folder: Path) -> set[str]:
    try:
        return set(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return set()
    except OSError as error:
        raise UserError(
            f"Expected to list the images in {folder}, but it can't be read ({error.strerror})."
        ) from None
