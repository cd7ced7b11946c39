"""The index of the feature store: what shards there are, so that listing them opens none.

The shards are the truth. An index that is missing, torn or disagrees with the folder is made again from their
headers.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from cma_tune.data.feature_shards import DamagedShardError, Header, is_shard, read_header
from cma_tune.files import write_text

INDEX = "cma_tune_features.json"
"""Named so that no other program's file is taken for it, or it for another's."""
LOCK = "cma_tune_features.lock"
CONTENTS = "contents"
"""Folder of the digests of image files."""
WAIT = 10.0
"""Seconds for another process to finish its entry. Without an entry nothing is lost."""


@dataclass(frozen=True)
class Entry:
    """One shard: shape of its features ``[rows, dim]``, size in bytes, `Header.space` and `Header.about`."""

    rows: int
    dim: int
    bytes: int
    space: str
    about: dict[str, str]

    def __post_init__(self) -> None:
        kinds = [(self.rows, int), (self.dim, int), (self.bytes, int), (self.space, str), (self.about, dict)]
        if any(not isinstance(value, kind) for value, kind in kinds):
            raise TypeError("an entry of the index holds another type")


def space_folders(store: Path) -> list[Path]:
    """Folders of the store's spaces."""
    try:
        folders = [path for path in store.iterdir() if _is_space(path.name) and path.is_dir()]
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(folders)


def is_store(folder: Path) -> bool:
    """Whether a folder is a store, or empty and may become one."""
    own = (folder / INDEX, folder / CONTENTS)
    return bool(space_folders(folder)) or any(path.exists() for path in own) or not any(folder.iterdir())


def _is_space(name: str) -> bool:
    return len(name) == 16 and set(name) <= set("0123456789abcdef")


def sizes(store: Path) -> dict[str, int]:
    """Bytes of every shard by its path in the store."""
    found = {}
    for folder in space_folders(store):
        with contextlib.suppress(FileNotFoundError), os.scandir(folder) as files:
            for file in files:
                with contextlib.suppress(FileNotFoundError):  # removed by another process meanwhile
                    if is_shard(file.name):
                        found[f"{folder.name}/{file.name}"] = file.stat().st_size
    return found


def add(store: Path, path: Path, header: Header) -> None:
    """Enter a shard that has just been written."""
    with locked(store / LOCK, WAIT) as alone, contextlib.suppress(FileNotFoundError):  # pruned meanwhile
        if alone:
            entry = Entry(header.rows, header.dim, path.stat().st_size, header.space, header.about)
            read = _read(store)
            others = _agreeing(store, {}) if read is None else read
            _write(store, others | {f"{path.parent.name}/{path.name}": entry})


def entries(store: Path, trust: bool = True) -> dict[str, Entry]:
    """Every readable shard by its path in the store; the index is mended where it disagrees with the folder.

    Args:
        store: folder of the store.
        trust: whether entries that agree with a file's size are taken as they are.
    """
    read = _read(store)
    current = _agreeing(store, (read or {}) if trust else {})
    # A folder that was never a store is not made one by looking at it.
    if current != read and store.is_dir() and (current or read is not None or (store / INDEX).exists()):
        with locked(store / LOCK, WAIT) as alone:
            if alone:  # look again: others may have written
                current = _agreeing(store, (_read(store) or {}) if trust else {})
                _write(store, current)
    return current


def _agreeing(store: Path, known: dict[str, Entry]) -> dict[str, Entry]:
    found = {}
    for name, size in sizes(store).items():
        if name in known and known[name].bytes == size:
            found[name] = known[name]
            continue
        with contextlib.suppress(DamagedShardError, OSError):
            header = read_header(store / name)
            found[name] = Entry(header.rows, header.dim, size, header.space, header.about)
    return found


def _read(store: Path) -> dict[str, Entry] | None:
    """The entries, or None if there is no index that can be read."""
    try:
        content = json.loads((store / INDEX).read_text(encoding="utf-8"))
        return {str(name): Entry(**entry) for name, entry in content["shards"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _write(store: Path, found: dict[str, Entry]) -> None:
    content = {name: asdict(entry) for name, entry in sorted(found.items())}
    with contextlib.suppress(OSError):  # a store that can only be read
        write_text(store / INDEX, json.dumps({"shards": content}, indent=1) + "\n")


@contextlib.contextmanager
def locked(path: Path, timeout: float = -1) -> Iterator[bool]:
    """Whether this process alone is inside: not if another holds on, or the file system knows no locks.

    Args:
        path: the lock's file. A process that dies lets go.
        timeout: seconds to wait; -1 is for ever.
    """
    lock = FileLock(path)
    try:
        lock.acquire(timeout=timeout)
    except (Timeout, OSError, NotImplementedError):
        yield False
        return
    try:
        yield True
    finally:
        lock.release()
