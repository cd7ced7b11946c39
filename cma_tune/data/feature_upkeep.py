"""Looking after the feature store: check everything, remove what is damaged, doubled or left over."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cma_tune.data import feature_index
from cma_tune.data.feature_shards import DamagedShardError, read_shard, shard_paths, write_shard

LOCK = "cma_tune_prune.lock"

HEX = "[0-9a-f]{16}"
"""Stem of the store's own names."""

LEFT_OVER = 3600.0
"""Seconds after which a temporary file belongs to no writer any more."""


@dataclass
class Checked:
    """What `verify` found.

    Attributes:
        shards, rows, bytes: of the shards that are whole.
        doubled: rows of images that another row holds too.
        problems: one sentence per damaged shard.
    """

    shards: int = 0
    rows: int = 0
    bytes: int = 0
    doubled: int = 0
    problems: list[str] = field(default_factory=list)


@dataclass
class Removed:
    """What `prune` removed: one line each, and the bytes freed."""

    lines: list[str] = field(default_factory=list)
    bytes: int = 0

    def file(self, path: Path, line: str = "") -> None:
        """Remove one file, unless another process did."""
        with contextlib.suppress(FileNotFoundError):
            size = path.stat().st_size
            path.unlink()
            self.bytes += size
            if line:
                self.lines.append(line)


def verify(store: Path) -> Checked:
    """Read everything and compare the checksums; the index is made again from the headers."""
    checked = Checked()
    for folder in feature_index.space_folders(store):
        seen: set[bytes] = set()
        for path in shard_paths(folder):
            try:
                _, images, _ = read_shard(path)
                size = path.stat().st_size
            except FileNotFoundError:
                continue  # pruned meanwhile
            except (DamagedShardError, OSError) as error:
                checked.problems.append(f"{folder.name}/{path.name}: {error}")
                continue
            checked.shards += 1
            checked.rows += len(images)
            checked.bytes += size
            checked.doubled += len(images) - len(set(images) - seen)
            seen.update(images)
    feature_index.entries(store, trust=False)
    return checked


def prune(store: Path, now: float | None = None) -> Removed:
    """Remove damaged shards, doubled rows and temporary files that a killed writer left over an hour ago.

    Every image whose row is whole keeps one. Readers and writers may go on meanwhile.
    """
    removed = Removed()
    long_ago = (time.time() if now is None else now) - LEFT_OVER
    # Two at once could each leave an image to the other's shard.
    with feature_index.locked(store / LOCK):
        for path in _temporary_files(store):
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_mtime < long_ago:
                    removed.file(path, f"{path.relative_to(store)}: left over by a killed writer")
        for folder in feature_index.space_folders(store):
            seen: set[bytes] = set()
            rests: set[Path] = set()
            for path in shard_paths(folder):
                # A killed prune may have left the rest of a shard that has yet to go: it is no double then.
                if path not in rests:
                    with contextlib.suppress(FileNotFoundError):
                        rests.update(_prune_shard(path, seen, removed))
            with contextlib.suppress(FileNotFoundError):
                if folder.stat().st_mtime < long_ago:  # else a writer may be about to use it
                    _remove_if_empty(folder)
        feature_index.entries(store, trust=False)
    return removed


def _prune_shard(path: Path, seen: set[bytes], removed: Removed) -> list[Path]:
    """Drop rows of images that were seen before; the shard that holds the others now, if it is another."""
    name = f"{path.parent.name}/{path.name}"
    try:
        header, images, features = read_shard(path)
    except DamagedShardError as error:
        removed.file(path, f"{name}: {error}")
        return []
    kept = []
    for row, image in enumerate(images):
        if image not in seen:
            seen.add(image)
            kept.append(row)
    if len(kept) == len(images):
        return []
    rests = []
    if kept:  # what stays is there before the old file goes
        rest = [images[row] for row in kept]
        path_of_rest = write_shard(path.parent, header.space, rest, features[kept], header.about)
        removed.bytes -= path_of_rest.stat().st_size
        rests.append(path_of_rest)
    removed.file(path, f"{name}: {len(images) - len(kept)} of {len(images)} images were stored twice")
    return rests


def remove_spaces(store: Path, chosen: Sequence[str]) -> Removed:
    """Remove all shards of these spaces (by id), and nothing that is not the store's."""
    removed = Removed()
    for folder in feature_index.space_folders(store):
        if folder.name not in chosen:
            continue
        paths = [*shard_paths(folder), *folder.glob(".*.tmp")]
        before = removed.bytes
        for path in paths:
            removed.file(path)
        removed.lines.append(f"{folder.name}: {len(paths)} files, {removed.bytes - before} bytes")
        _remove_if_empty(folder)
    feature_index.entries(store)
    return removed


def remove_everything(store: Path) -> Removed:
    """Remove all spaces, the digests of files and the index, and nothing that is not the store's."""
    removed = remove_spaces(store, [folder.name for folder in feature_index.space_folders(store)])
    digests = [
        path for path in (store / feature_index.CONTENTS).glob("*.json") if re.fullmatch(HEX, path.stem)
    ]
    if digests:
        removed.lines.append(f"contents: digests of image files, {len(digests)} files")
    for path in [*digests, *_temporary_files(store)]:
        removed.file(path)
    for name in (feature_index.INDEX, feature_index.LOCK, LOCK):
        removed.file(store / name)
    for folder in (store / feature_index.CONTENTS, store):
        _remove_if_empty(folder)
    return removed


def _temporary_files(store: Path) -> Iterator[Path]:
    yield from store.glob(f".{feature_index.INDEX}.*.tmp")
    for path in (store / feature_index.CONTENTS).glob(".*.json.*.tmp"):
        if re.fullmatch(HEX, path.name[1:].split(".")[0]):
            yield path
    for folder in feature_index.space_folders(store):
        yield from folder.glob(".*.tmp")


def _remove_if_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):  # other files lie there, or a writer has just come
        folder.rmdir()
