"""Unpacking archives so that no path leaves the target folder and no link is made."""

from __future__ import annotations

import lzma
import os
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO

from cma_tune.errors import UserError


class BadArchive(UserError):
    """An archive of which nothing is unpacked: damaged, cut off, hostile, or another one."""


_BROKEN = (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError)


def extract(archive: Path, target: Path, strip: str = "") -> int:
    """Unpack the files of a tar (plain, gz, bz2, xz) or zip archive into `target`.

    Everything is unpacked beside its place first: of a damaged or refused archive nothing arrives in
    `target`. Files that are there already are replaced.

    Args:
        archive: the file; its content says what it is.
        target: folder, made if need be.
        strip: path inside the archive whose content is wanted; what lies outside is left out.

    Returns:
        The number of files.

    Raises:
        BadArchive: it is no archive, is damaged or cut off, holds a link or a path that leads outside, or no
            file below `strip`.
        UserError: a folder in `target` is a link.
    """
    target.mkdir(parents=True, exist_ok=True)
    aside = target / f".{archive.name}.unpacking"
    shutil.rmtree(aside, ignore_errors=True)
    prefix = PurePosixPath(strip).parts
    count = 0
    try:
        for name, content in _files(archive):
            parts = _safe(name, archive)
            if parts[: len(prefix)] != prefix or len(parts) == len(prefix):
                continue
            path = aside.joinpath(*parts[len(prefix) :])
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(path, "wb") as handle:
                shutil.copyfileobj(content, handle, 2**20)
            count += 1
        if not count:
            raise BadArchive(
                f"Expected files below '{strip or '.'}' in {archive}, got none; is it another archive?"
            )
        _move(aside, target)
    except UserError:
        raise
    except _BROKEN as error:
        # An error of the system says nothing of the archive: no room left, no right to write.
        if isinstance(error, OSError) and error.errno is not None:
            raise UserError(
                f"Expected to unpack {archive} into {target}, but it failed ({error.strerror}); make room "
                "or choose another folder, the archive is kept."
            ) from None
        raise BadArchive(
            f"Expected a whole tar or zip archive at {archive}, but it can't be unpacked ({error}); "
            "fetch it again."
        ) from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return count


def _safe(name: str, archive: Path) -> tuple[str, ...]:
    """Parts of a path that stays inside."""
    parts = PurePosixPath(name).parts
    if ".." in parts or name.startswith("/") or "\\" in name or "\0" in name or ":" in (parts or ("",))[0]:
        raise BadArchive(
            f"Expected paths inside the target folder in {archive}, got '{name}'; nothing was unpacked, "
            "get the archive from its official place."
        )
    return parts


def _files(archive: Path) -> Iterator[tuple[str, IO[bytes]]]:
    """Name and content of every file, in the archive's order; links and devices are refused."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as packed:
            for info in packed.infolist():
                _safe(info.filename, archive)
                if stat.S_ISLNK(info.external_attr >> 16):
                    raise _link(info.filename, archive)
                if not info.is_dir():
                    with packed.open(info) as content:
                        yield info.filename, content
        return
    with tarfile.open(archive, "r|*") as tar:  # read once, from front to back
        for member in tar:
            _safe(member.name, archive)
            if member.isdir():
                continue
            content_or_none = tar.extractfile(member) if member.isfile() else None
            if content_or_none is None:
                raise _link(member.name, archive)
            yield member.name, content_or_none


def _link(name: str, archive: Path) -> BadArchive:
    return BadArchive(
        f"Expected files and folders alone in {archive}, got the link or device '{name}'; nothing was "
        "unpacked, get the archive from its official place."
    )


def _move(source: Path, target: Path) -> None:
    for folder, _, files in os.walk(source):
        there = target / Path(folder).relative_to(source)
        # A link in the target would lead the files elsewhere.
        if there.is_symlink() and there != target:
            raise UserError(f"Expected a folder at {there}, got a link; remove it.")
        there.mkdir(parents=True, exist_ok=True)
        for file in files:
            os.replace(Path(folder) / file, there / file)
