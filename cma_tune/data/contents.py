"""What tells images apart: digests of their content, remembered so that files are read only once."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cma_tune.data.dataset import DIGEST_BYTES, FileImages, ImageSource
from cma_tune.data.splits import Item
from cma_tune.data.tables import TableImages
from cma_tune.files import write_text

SAVE_EVERY = 20_000
"""Images read between two writes of what was found, so that a kill loses little of a big dataset."""

UNSETTLED = 2_000_000_000
"""Nanoseconds after which a file's modification time would show another change (coarse file systems)."""

Known = dict[str, tuple[int, int, bytes]]
"""Size, modification time in nanoseconds and digest by key."""


def image_digests(
    folder: Path,
    images: ImageSource,
    items: Sequence[Item],
    write: bool = True,
    progress: Callable[[int], None] | None = None,
) -> list[bytes]:
    """One digest of 32 bytes per item, in order; equal where the images are the same.

    Files and images of tables are told apart by their encoded bytes (BLAKE2b), wherever they lie; embedded
    images by the source's fingerprint and the key. Digests are kept by size and modification time in one JSON
    file in `folder` per root or table; a missing or torn one costs only time, and of two writers the last one
    wins.

    Args:
        folder: where digests are kept.
        images, items: the images.
        write: whether to keep what was found.
        progress: called with the number of images read, now and then.

    Raises:
        UserError: an image is missing or can't be read.
    """
    if not isinstance(images, (FileImages, TableImages)):
        return [_digest(f"{images.fingerprint(item.key)}\0", item.key) for item in items]
    keys: dict[str, dict[str, None]] = {}
    for item in items:
        where = str(images.root.resolve()) if isinstance(images, FileImages) else images.table(item.key)
        keys.setdefault(where, {})[item.key] = None
    found: dict[str, bytes] = {}
    for where, own in keys.items():
        found |= _digests_of(folder, where, images, list(own), write, progress)
    return [found[item.key] for item in items]


def _digests_of(
    folder: Path,
    where: str,
    images: FileImages | TableImages,
    wanted: Sequence[str],
    write: bool,
    progress: Callable[[int], None] | None,
) -> dict[str, bytes]:
    """Digests by key, of images of one root or table."""
    path = _kept_in(folder, where)
    known = _read(path)
    stats = {key: images.status(key) for key in wanted}
    unread = [key for key, status in stats.items() if key not in known or known[key][:2] != status]
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # hashing and reading let go of the GIL
        for start in range(0, len(unread), SAVE_EVERY):
            keys = unread[start : start + SAVE_EVERY]
            now = time.time_ns()
            found: Known = {}
            for key, digest in zip(keys, pool.map(images.digest, keys), strict=True):
                found[key] = (*stats[key], digest)
                if progress is not None:
                    progress(1)
            known |= found
            # A file that has just been written may be written again without its time showing it.
            settled = {key: entry for key, entry in found.items() if now - entry[1] > UNSETTLED}
            if write and settled:
                _write(path, where, _read(path) | settled)
    return {key: known[key][2] for key in wanted}


def of_key(digest: bytes, key: str) -> bytes:
    """The digest of an image whose augmentation noise depends on its key."""
    return _digest(digest.hex(), key)


def _digest(text: str, key: str) -> bytes:
    # File names on disk need not be valid UTF-8.
    content = f"{text}\0{key}".encode("utf-8", "surrogateescape")
    return hashlib.blake2b(content, digest_size=DIGEST_BYTES).digest()


def _kept_in(folder: Path, where: str) -> Path:
    return folder / f"{_digest('root', where).hex()[:16]}.json"


def _read(path: Path) -> Known:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return {key: (int(s), int(t), _exact(d)) for key, (s, t, d) in content["digests"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def _exact(text: str) -> bytes:
    digest = bytes.fromhex(text)
    if len(digest) != DIGEST_BYTES:
        raise ValueError(f"Expected {DIGEST_BYTES} bytes, got {len(digest)}.")
    return digest


def _write(path: Path, where: str, known: Known) -> None:
    digests = {key: [size, mtime, digest.hex()] for key, (size, mtime, digest) in known.items()}
    with contextlib.suppress(OSError):  # a store that can only be read; the files are read again next time
        # Plain ASCII, for names that are not valid UTF-8.
        write_text(path, json.dumps({"root": where, "digests": digests}))
