"""Which images are meant, and their pixels in batches."""

from __future__ import annotations

import glob
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from cma_tune.data.dataset import FileImages
from cma_tune.data.images import Transform
from cma_tune.data.listings import IMAGE_SUFFIXES, images_below
from cma_tune.errors import UserError

STANDARD_INPUT = "-"


def image_files(arguments: Sequence[str]) -> list[str]:
    """Paths of all images meant, each once, in the order in which they are first named.

    Args:
        arguments: files, folders (all images below them, sorted by path), glob patterns (sorted), or ``-``
            for standard input with one of these a line, or between NUL characters as ``find -print0`` does.

    Raises:
        UserError: there are none, or a folder or pattern has none.
    """
    lines = [line for argument in arguments for line in _lines(argument)]
    paths = [path for line in lines for path in _expanded(line)]
    if not paths:
        raise UserError("Expected at least one image, got none.")
    seen: dict[str, str] = {}
    for path in paths:
        seen.setdefault(os.path.realpath(path), path)
    return list(seen.values())


def _lines(argument: str) -> Iterator[str]:
    if argument != STANDARD_INPUT:
        yield argument
        return
    for line in sys.stdin:
        yield from (name for part in line.split("\0") if (name := part.rstrip("\r\n")).strip())


def _expanded(name: str) -> list[str]:
    if os.path.isdir(name):
        found = sorted(os.path.join(name, path) for path in images_below(Path(name)))
    elif not os.path.exists(name) and glob.has_magic(name):
        # A file of that very name goes before a pattern.
        found = sorted(path for path in glob.glob(name, recursive=True) if os.path.isfile(path))
    else:
        return [name]
    if not found:
        kind = "below the folder" if os.path.isdir(name) else "for the pattern"
        raise UserError(f"Expected images {kind} {name}, got none ({', '.join(IMAGE_SUFFIXES)}).")
    return found


def check_exist(paths: Sequence[str]) -> None:
    """Raise a `UserError` naming the first path that is no file."""
    for path in paths:
        if not Path(path).is_file():
            raise UserError(f"Expected an image at {path}, but there is no such file; check the path.")


class _Pixels(Dataset["Tensor | UserError"]):
    """Every image as a tensor, or the mistake that keeps it from being one."""

    def __init__(self, paths: Sequence[str], transform: Transform, otherwise: str) -> None:
        self.paths = [str(Path(path).absolute()) for path in paths]
        self.transform = transform
        self.files = FileImages(Path("/"), otherwise)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor | UserError:
        try:
            return self.transform(self.files.load(self.paths[index]))
        except UserError as error:
            return error


def pixel_batches(
    paths: Sequence[str],
    transform: Transform,
    batch_size: int,
    workers: int,
    otherwise: str,
) -> Iterator[tuple[Tensor | None, list[UserError | None]]]:
    """Images ``[b, 3, H, W]`` of every batch of paths, and for each path what was wrong with it.

    Args:
        paths: image files.
        transform: from an image to ``[3, H, W]``.
        batch_size: paths in a batch; those that can't be read are left out of its images.
        workers: processes that decode.
        otherwise: see `FileImages`.

    Yields:
        The images, None if there are none, and one entry a path, None where it could be read.
    """
    loader: DataLoader[Tensor | UserError] = DataLoader(
        _Pixels(paths, transform, otherwise), batch_size=batch_size, num_workers=workers, collate_fn=list
    )
    for batch in loader:
        mistakes = [one if isinstance(one, UserError) else None for one in batch]
        images = [one for one in batch if isinstance(one, Tensor)]
        yield torch.stack(images) if images else None, mistakes
